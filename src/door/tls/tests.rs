//! Tests of TLS: what is fit to be loaded, and handshakes with a client of rustls, in memory.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use std::cell::RefCell;
use std::fs;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A folder with a certificate and its key.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("door-tls-{}-{number}", std::process::id());
        let below = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/unit");
        let path = below.join(name);
        fs::create_dir_all(&path).unwrap();
        let folder = Self(path);
        folder.renew();
        folder
    }

    /// Puts a new certificate and key in the place of the old.
    fn renew(&self) {
        let (certificate, key) = self_signed();
        self.write("certificate.pem", &certificate);
        self.write("key.pem", &key);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn files(&self) -> TlsFiles {
        TlsFiles {
            certificate: self.path("certificate.pem"),
            key: self.path("key.pem"),
            client_ca: None,
        }
    }

    fn files_with(&self, client_ca: PathBuf) -> TlsFiles {
        TlsFiles {
            client_ca: Some(client_ca),
            ..self.files()
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn self_signed() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let wanted = CertificateParams::new(vec!["proxy.example".into()]).unwrap();
    let certificate = wanted.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// An authority that signs clients.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut wanted = CertificateParams::new(Vec::new()).unwrap();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("authority {number}");
        wanted.distinguished_name.push(DnType::CommonName, name);
        wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = wanted.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(wanted, key);
        Self { issuer, pem }
    }

    fn client(&self, until_year: i32) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut wanted = CertificateParams::new(vec!["node.example".into()]).unwrap();
        wanted.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let certificate = wanted.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (vec![certificate.der().clone()], key)
    }
}

#[derive(Debug)]
struct BelieveAll;

impl ServerCertVerifier for BelieveAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = default_provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

const V12: &rustls::SupportedProtocolVersion = &rustls::version::TLS12;
const V13: &rustls::SupportedProtocolVersion = &rustls::version::TLS13;

/// The kind of a client; one that is used again resumes its session.
fn client_config(
    version: &'static rustls::SupportedProtocolVersion,
    protocols: &[&str],
    identity: Option<Identity>,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(BelieveAll));
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    config.resumption = Resumption::in_memory_sessions(8);
    Arc::new(config)
}

/// A client at the other end of a session: reading gets what it sends, writing is what it gets.
#[derive(Clone)]
struct Client(Rc<RefCell<ClientConnection>>);

impl Client {
    fn new(config: &Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from("proxy.example").unwrap();
        let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
        Self(Rc::new(RefCell::new(connection)))
    }

    /// Shakes hands with a session of `tls`.
    fn meet(&self, tls: &ServerTls) -> Result<(TlsSession, Certificate), HandshakeFault> {
        self.meet_session(tls.new_session()?)
    }

    fn meet_session(
        &self,
        mut session: TlsSession,
    ) -> Result<(TlsSession, Certificate), HandshakeFault> {
        let certificate = session.handshake(&mut self.clone(), &mut self.clone())?;
        Ok((session, certificate))
    }

    fn kind(&self) -> Option<HandshakeKind> {
        self.0.borrow().handshake_kind()
    }

    fn own_certificate_of_server(&self) -> CertificateDer<'static> {
        let client = self.0.borrow();
        client.peer_certificates().unwrap()[0].clone().into_owned()
    }

    /// Reads what has come.
    fn received(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut client = self.0.borrow_mut();
        match client.reader().read_to_end(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(bytes),
            outcome => outcome.map(|_| bytes),
        }
    }
}

impl Read for Client {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut client = self.0.borrow_mut();
        if client.wants_write() {
            let mut into = into;
            return client.write_tls(&mut into);
        }
        Ok(0)
    }
}

impl Write for Client {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<usize> {
        let mut client = self.0.borrow_mut();
        let count = client.read_tls(&mut bytes)?;
        // The client's next bytes show whether it accepts the certificate.
        let _ = client.process_new_packets();
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn faults(files: TlsFiles) -> Vec<String> {
    ServerTls::load(files).err().unwrap_or_default()
}

const RSA_KEY: &str = include_str!("../../../tests/data/tls/rsa-pkcs1.pem");
const RSA_CERTIFICATE: &str = include_str!("../../../tests/data/tls/rsa-certificate.pem");
const EC_CERTIFICATE: &str = include_str!("../../../tests/data/tls/ec-certificate.pem");
const EC_SEC1: &str = include_str!("../../../tests/data/tls/ec-sec1.pem");
const EC_PKCS8: &str = include_str!("../../../tests/data/tls/ec-pkcs8.pem");
const EC_SEC1_ENCRYPTED: &str = include_str!("../../../tests/data/tls/ec-sec1-encrypted.pem");
const EC_PKCS8_ENCRYPTED: &str = include_str!("../../../tests/data/tls/ec-pkcs8-encrypted.pem");

#[test]
fn keys_of_every_form_are_taken() {
    for (certificate, key) in [
        (RSA_CERTIFICATE, RSA_KEY),
        (EC_CERTIFICATE, EC_SEC1),
        (EC_CERTIFICATE, EC_PKCS8),
    ] {
        let folder = Folder::new();
        folder.write("certificate.pem", certificate);
        folder.write("key.pem", key);
        let tls = ServerTls::load(folder.files()).unwrap();
        for version in [V12, V13] {
            Client::new(&client_config(version, &[], None))
                .meet(&tls)
                .unwrap();
        }
        // The order in one file, and what else is in it, do not matter.
        let both = folder.write("both.pem", &format!("{key}{certificate}"));
        let files = TlsFiles {
            certificate: both.clone(),
            key: both,
            client_ca: None,
        };
        assert_eq!(faults(files), Vec::<String>::new());
    }
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_setting_and_path() {
    let damaged = "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n";
    let no_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let large = "\n".repeat((1 << 20) + 1);
    let user = rustix::process::geteuid().as_raw();
    for (name, text, why) in [
        ("certificate.pem", "", "no certificate in it; expected PEM"),
        ("certificate.pem", damaged, "damaged PEM"),
        (
            "certificate.pem",
            no_der,
            "its first certificate is unusable",
        ),
        ("certificate.pem", large.as_str(), "larger than 1 MiB"),
        (
            "key.pem",
            "not PEM at all",
            "no private key in it; expected",
        ),
        ("key.pem", EC_CERTIFICATE, "no private key in it; expected"),
        ("key.pem", EC_PKCS8, "not the key of SSL_CERTIFICATE=/"),
        ("key.pem", RSA_KEY, "not the key of SSL_CERTIFICATE=/"),
        (
            "key.pem",
            EC_PKCS8_ENCRYPTED,
            "encrypted; expected it without",
        ),
        (
            "key.pem",
            EC_SEC1_ENCRYPTED,
            "encrypted; expected it without",
        ),
        ("key.pem", &EC_PKCS8.replace("MIGH", "M!GH"), "damaged PEM"),
        ("key.pem", &EC_PKCS8.replace("MIGH", "AAAA"), "unusable: "),
        ("ca.pem", "", "no certificate in it; expected PEM"),
        ("ca.pem", no_der, "unusable: "),
    ] {
        let folder = Folder::new();
        let ca = folder.write("ca.pem", EC_CERTIFICATE);
        let path = folder.write(name, text);
        let faults = faults(folder.files_with(ca));
        let setting = match name {
            "certificate.pem" => "SSL_CERTIFICATE",
            "key.pem" => "SSL_KEY",
            _ => "SSL_CLIENT_CA",
        };
        let start = format!("{setting}={}: ", path.display());
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with(&start), "{start}: {faults:?}");
        assert!(faults[0].contains(why), "{why}: {faults:?}");
        let mut bytes = text.lines().filter(|line| line.len() > 10);
        assert!(!bytes.any(|line| faults[0].contains(line)), "{faults:?}");
    }
    let folder = Folder::new();
    let files = TlsFiles {
        certificate: folder.path("none.pem"),
        key: folder.0.clone(),
        client_ca: Some(folder.path("none-either.pem")),
    };
    let faults = faults(files);
    assert_eq!(faults.len(), 3, "all at once: {faults:?}");
    let unread = format!("none.pem: cannot be read by user {user}: No such file");
    assert!(faults[0].contains(&unread), "{faults:?}");
    assert!(
        faults[1].ends_with(": it is not a regular file"),
        "{faults:?}"
    );
    assert!(faults[2].starts_with("SSL_CLIENT_CA=/"), "{faults:?}");
}

#[test]
fn both_versions_speak_http_1_1_and_nothing_else() {
    let folder = Folder::new();
    let tls = ServerTls::load(folder.files()).unwrap();
    for version in [V12, V13] {
        let docker = client_config(version, &["h2", "http/1.1"], None);
        let client = Client::new(&docker);
        let (session, certificate) = client.meet(&tls).unwrap();
        assert_eq!(session.connection.alpn_protocol(), Some(PROTOCOL));
        let spoken = session.connection.protocol_version();
        assert_eq!(spoken, Some(version.version));
        assert_eq!(certificate, Certificate::NotAsked);
        // A client that offers no protocol is served, too.
        let plain = client_config(version, &[], None);
        Client::new(&plain).meet(&tls).unwrap();
        let client = Client::new(&client_config(version, &["h2"], None));
        let fault = client.meet(&tls).err();
        assert!(matches!(fault, Some(HandshakeFault::Protocol(_))));
        let told = client.0.borrow_mut().process_new_packets().unwrap_err();
        assert_eq!(
            told.to_string(),
            "received fatal alert: NoApplicationProtocol"
        );
    }
}

#[test]
fn what_is_no_tls_is_a_fault_of_the_protocol() {
    let folder = Folder::new();
    let tls = ServerTls::load(folder.files()).unwrap();
    let mut answer = Vec::new();
    let fault = tls
        .new_session()
        .unwrap()
        .handshake(&mut &b"\x80\x2e\x01\x03\x01\x00\x15\x00"[..], &mut answer);
    assert!(matches!(fault, Err(HandshakeFault::Protocol(_))));
    assert_eq!(answer.first(), Some(&21), "an alert");
    let mut nothing = io::empty();
    let fault = tls
        .new_session()
        .unwrap()
        .handshake(&mut nothing, &mut answer);
    assert!(matches!(fault, Err(HandshakeFault::Gone(_))));
}

#[test]
fn the_alert_for_want_of_room_is_one_a_client_understands() {
    let mut client = Client::new(&client_config(V13, &[], None));
    client.write_all(NO_ROOM_ALERT).unwrap();
    let told = client.0.borrow_mut().process_new_packets().unwrap_err();
    assert_eq!(told.to_string(), "received fatal alert: InternalError");
}

#[test]
fn bytes_go_both_ways_and_the_end_is_told() {
    let folder = Folder::new();
    let tls = ServerTls::load(folder.files()).unwrap();
    for version in [V12, V13] {
        let client = Client::new(&client_config(version, &[], None));
        let (mut session, _) = client.meet(&tls).unwrap();
        client.0.borrow_mut().writer().write_all(b"GET").unwrap();
        let mut buffer = [0; 16];
        let (mut from, mut to) = (client.clone(), client.clone());
        let count = session.read(&mut from, &mut to, &mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"GET");
        session.write_all(&mut to, b"200").unwrap();
        assert_eq!(client.received().unwrap(), b"200");
        client.0.borrow_mut().send_close_notify();
        let end = session.read(&mut from, &mut to, &mut buffer);
        assert_eq!(end.unwrap(), 0);
        // Half-closed: the answer still gets there.
        session.write_all(&mut to, b"late").unwrap();
        session.close(&mut to);
        let mut rest = Vec::new();
        let mut client = client.0.borrow_mut();
        client.reader().read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"late");
    }
}

#[test]
fn without_close_notify_the_client_knows_that_it_was_cut() {
    let folder = Folder::new();
    let tls = ServerTls::load(folder.files()).unwrap();
    let client = Client::new(&client_config(V13, &[], None));
    let (mut session, _) = client.meet(&tls).unwrap();
    session.write_all(&mut client.clone(), b"half").unwrap();
    drop(session);
    // The end of the stream.
    let mut client = client.0.borrow_mut();
    client.read_tls(&mut io::empty()).unwrap();
    let cut = client.reader().read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
}

/// Takes so many bytes, and then no more.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.0);
        self.0 -= count;
        match count {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(count),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_client_that_takes_nothing_costs_a_bounded_buffer() {
    let folder = Folder::new();
    let tls = ServerTls::load(folder.files()).unwrap();
    let client = Client::new(&client_config(V13, &[], None));
    let (mut session, _) = client.meet(&tls).unwrap();
    let error = session.write_all(&mut Full(100), &vec![7; 1 << 20]);
    assert_eq!(error.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let mut unsent = Vec::new();
    session.flush(&mut unsent).unwrap();
    // Each record of 16 KiB has 22 bytes of its own.
    let limit = UNSENT_BYTES_MAX + 8 * 22;
    assert!((1..=limit).contains(&unsent.len()), "{}", unsent.len());
}

#[test]
fn sessions_are_resumed_until_the_files_are_read_again() {
    let folder = Folder::new();
    let tls = ServerTls::load(folder.files()).unwrap();
    for version in [V12, V13] {
        let config = client_config(version, &[], None);
        let kind = || {
            let client = Client::new(&config);
            client.meet(&tls).unwrap();
            client.kind()
        };
        assert_eq!(kind(), Some(HandshakeKind::Full));
        assert_eq!(kind(), Some(HandshakeKind::Resumed));
        tls.reload().unwrap();
        assert_eq!(kind(), Some(HandshakeKind::Full));
        assert_eq!(kind(), Some(HandshakeKind::Resumed));
    }
}

#[test]
fn a_new_pair_is_taken_and_a_bad_one_changes_nothing() {
    let folder = Folder::new();
    let tls = ServerTls::load(folder.files()).unwrap();
    let shown = || {
        let client = Client::new(&client_config(V13, &[], None));
        client.meet(&tls).unwrap();
        client.own_certificate_of_server()
    };
    let first = shown();
    folder.write("key.pem", EC_PKCS8);
    let faults = tls.reload().unwrap_err();
    assert!(faults[0].contains("not the key of"), "{faults:?}");
    assert_eq!(shown(), first);
    folder.write("certificate.pem", EC_CERTIFICATE);
    tls.reload().unwrap();
    let second = shown();
    assert_eq!(
        second,
        CertificateDer::from_pem_slice(EC_CERTIFICATE.as_bytes()).unwrap()
    );
    fs::remove_file(folder.path("key.pem")).unwrap();
    assert_eq!(tls.reload().unwrap_err().len(), 1);
    assert_eq!(shown(), second);
}

#[test]
fn clients_are_known_by_their_certificate() {
    let folder = Folder::new();
    let (ours, others) = (Authority::new(), Authority::new());
    let ca = folder.write("ca.pem", &ours.pem);
    let tls = ServerTls::load(folder.files_with(ca)).unwrap();
    for version in [V12, V13] {
        let meet = |identity: Option<Identity>| {
            let client = Client::new(&client_config(version, &[], identity));
            let met = client.meet(&tls).map(|(_, certificate)| certificate);
            (client, met)
        };
        assert_eq!(meet(None).1.unwrap(), Certificate::Absent);
        let good = meet(Some(ours.client(2090))).1;
        assert_eq!(good.unwrap(), Certificate::Verified);
        for (identity, why) in [
            (others.client(2090), "UnknownIssuer"),
            (ours.client(2001), "Expired"),
        ] {
            let (client, met) = meet(Some(identity));
            let Err(HandshakeFault::Certificate(reason)) = met else {
                panic!("{why} is not refused: {met:?}");
            };
            assert!(reason.contains(why), "{reason}");
            let told = client.0.borrow_mut().process_new_packets();
            let told = told.unwrap_err().to_string();
            assert!(told.starts_with("received fatal alert"), "{told}");
        }
    }
}

#[test]
fn a_resumed_session_shows_its_certificate_anew() {
    let folder = Folder::new();
    let (ours, others) = (Authority::new(), Authority::new());
    let ca = folder.write("ca.pem", &ours.pem);
    let other_ca = folder.write("other-ca.pem", &others.pem);
    let tls = ServerTls::load(folder.files_with(ca)).unwrap();
    for version in [V12, V13] {
        let config = client_config(version, &[], Some(ours.client(2090)));
        Client::new(&config).meet(&tls).unwrap();
        let client = Client::new(&config);
        let (_, certificate) = client.meet(&tls).unwrap();
        assert_eq!(client.kind(), Some(HandshakeKind::Resumed));
        assert_eq!(certificate, Certificate::Verified);
        // One that is no longer good, here by its authority, is refused although rustls resumes.
        let mut session = tls.new_session().unwrap();
        let provider = Arc::new(default_provider());
        session.clients = Some(client_verifier(&other_ca, &provider).unwrap());
        let fault = Client::new(&config).meet_session(session).err();
        assert!(matches!(fault, Some(HandshakeFault::Certificate(_))));
    }
}
