//! TLS towards clients, by rustls. Owns: certificate, key and client authorities as they were last
//! read, and the session of one connection. Must not: know sockets or time limits: it reads and
//! writes through what it is given, which fails when a limit runs out.
//!
//! Sessions are resumed by tickets (RFC 5077, RFC 8446 §4.6.1). So nothing is kept for each client,
//! and nothing needs a limit. Each reading of the files makes new ticket keys: no session outlives
//! the certificates with which it began.
//!
//! Locks: [`ServerTls`]'s one mutex, held to copy or to change a handle.

mod validity;

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{HandshakeKind, RootCertStore, ServerConfig, ServerConnection};

use crate::calendar;
use crate::config::TlsSettings;
use crate::locked::Locked as _;
use crate::log;
use crate::message::Certificate;
use crate::small_file;
use validity::{Validity, is_version_1, names, validity};

/// Largest PEM file: a chain or a key is a few kB, a bundle of all public authorities 250 kB.
const PEM_BYTES_MAX: u64 = 1 << 20;
/// Encrypted bytes of one connection that may wait for its socket. With it, 200 stalled readers
/// took 23 MB together; twice as many bytes made that 35 MB and were no faster.
const UNSENT_BYTES_MAX: usize = 32 * 1024;
/// Tickets after a TLS 1.3 handshake. A client uses each ticket once, for one more connection.
const TICKETS: usize = 2;
/// The one protocol that the door speaks (RFC 7301 §6). A client that offers only others gets an
/// alert that says so.
const PROTOCOL: &[u8] = b"http/1.1";
/// The log warns of a certificate that ends sooner. Let's Encrypt, cert-manager and AWS renew
/// earlier than that.
const ENDS_SOON: Duration = Duration::from_secs(7 * 24 * 3600);
/// A fatal `internal_error` (RFC 8446 §6) for a client that gets no handshake. A TLS client would
/// take anything else for the words of a server without TLS.
pub(super) const NO_ROOM_ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 80];

/// The paths of certificate and key. Faults name them by their settings.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// `SSL_CERTIFICATE`: PEM, the door's own certificate first.
    pub certificate: PathBuf,
    /// `SSL_KEY`: PEM.
    pub key: PathBuf,
    /// `SSL_CLIENT_CA`: PEM; none when clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// The files that the settings name; none unless they name a certificate and a key.
    pub fn of(settings: &TlsSettings) -> Option<Self> {
        Some(Self {
            certificate: settings.certificate.clone()?,
            key: settings.key.clone()?,
            client_ca: settings.client_ca.clone(),
        })
    }

    /// The paths of all files.
    pub fn paths(&self) -> Vec<PathBuf> {
        let own = [self.certificate.clone(), self.key.clone()];
        own.into_iter().chain(self.client_ca.clone()).collect()
    }
}

/// The certificate, and how new connections use it.
pub struct ServerTls {
    files: TlsFiles,
    loaded: Mutex<Arc<LoadedTls>>,
}

/// One reading of the files.
struct LoadedTls {
    config: Arc<ServerConfig>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    /// The end of the certificate, where that can be read.
    until: Option<SystemTime>,
    /// The names and addresses that it is good for.
    names: Vec<String>,
}

impl ServerTls {
    /// Reads the files, and logs when the certificate ends.
    ///
    /// # Errors
    /// All that is wrong with the files; each fault has setting, path and remedy.
    pub fn load(files: TlsFiles) -> Result<Self, Vec<String>> {
        let loaded = Mutex::new(Arc::new(LoadedTls::read(&files)?));
        Ok(Self { files, loaded })
    }

    /// Reads the files again, for the connections to come. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// The same as those of [`load`](Self::load). The files that were read before stay in use.
    pub fn reload(&self) -> Result<(), Vec<String>> {
        let loaded = Arc::new(LoadedTls::read(&self.files)?);
        *self.loaded.locked() = loaded;
        Ok(())
    }

    /// When the certificate ends, if that can be read.
    pub fn good_until(&self) -> Option<SystemTime> {
        let loaded = self.loaded.locked();
        loaded.until
    }

    /// The names and addresses that the certificate is good for.
    pub fn names(&self) -> Vec<String> {
        self.loaded.locked().names.clone()
    }

    /// Makes the session of a new connection.
    pub(super) fn new_session(&self) -> Result<TlsSession, HandshakeFault> {
        // A handle is copied or replaced whole, so a poisoned lock still guards a good one.
        let loaded = self.loaded.locked();
        let loaded = Arc::clone(&loaded);
        let config = Arc::clone(&loaded.config);
        let mut connection = ServerConnection::new(config).map_err(HandshakeFault::from)?;
        connection.set_buffer_limit(Some(UNSENT_BYTES_MAX));
        Ok(TlsSession {
            connection,
            clients: loaded.clients.clone(),
        })
    }
}

impl LoadedTls {
    fn read(files: &TlsFiles) -> Result<Self, Vec<String>> {
        let provider = Arc::new(default_provider());
        let chain = read_certificates("SSL_CERTIFICATE", &files.certificate);
        let key = read_private_key(&files.key);
        let clients = files.client_ca.as_deref();
        let clients = clients
            .map(|path| client_verifier(path, &provider))
            .transpose();
        match (chain, key, clients) {
            (Ok(chain), Ok(key), Ok(clients)) => {
                let valid = chain.first().and_then(|leaf| validity(leaf));
                let names = chain.first().map(|leaf| names(leaf)).unwrap_or_default();
                if chain.first().is_some_and(|leaf| is_version_1(leaf)) {
                    return Err(vec![explain_version_1(files)]);
                }
                let own = CertifiedKey::from_der(chain, key, &provider);
                let own = own.map_err(|error| vec![explain_unusable(files, &error)])?;
                let config = build_config(&provider, own, clients.as_ref());
                let unusable = |error| vec![format!("TLS cannot be set up: {error}")];
                let loaded = Self {
                    config: Arc::new(config.map_err(unusable)?),
                    clients,
                    until: valid.map(|valid| valid.until),
                    names,
                };
                log_validity(&files.certificate, valid);
                Ok(loaded)
            }
            (chain, key, clients) => {
                let faults = [chain.err(), key.err(), clients.err()];
                Err(faults.into_iter().flatten().collect())
            }
        }
    }
}

fn explain_version_1(files: &TlsFiles) -> String {
    let own = files.certificate.display();
    format!(
        "SSL_CERTIFICATE={own}: an X.509 certificate of version 1, which no client takes; make one \
         of version 3 with the names of this host (openssl req -x509 … -addext \
         subjectAltName=DNS:NAME)"
    )
}

/// Why the certificate and the key cannot be used together.
fn explain_unusable(files: &TlsFiles, error: &rustls::Error) -> String {
    let (own, private) = (files.certificate.display(), files.key.display());
    match error {
        rustls::Error::InconsistentKeys(_) => {
            let first = "the first certificate there must be the proxy's own";
            format!("SSL_KEY={private}: not the key of SSL_CERTIFICATE={own}; {first}")
        }
        rustls::Error::InvalidCertificate(why) => {
            format!("SSL_CERTIFICATE={own}: its first certificate is unusable: {why:?}")
        }
        other => format!("SSL_KEY={private}: unusable: {other}"),
    }
}

fn build_config(
    provider: &Arc<CryptoProvider>,
    own: CertifiedKey,
    clients: Option<&Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(Arc::clone(clients)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Ticketer::new()?;
    config.send_tls13_tickets = TICKETS;
    // 0-RTT may be replayed (RFC 8446 §8).
    config.max_early_data_size = 0;
    Ok(config)
}

/// Logs when the certificate ends, if that can be read.
fn log_validity(path: &Path, valid: Option<Validity>) {
    let path = path.display();
    let Some(Validity { from, until }) = valid else {
        return log::info("TLS certificate loaded", &[("certificate", &path)]);
    };
    let now = SystemTime::now();
    let (shown_from, shown_until) = (
        calendar::format_rfc3339(from),
        calendar::format_rfc3339(until),
    );
    let fields: [log::Field<'_>; 3] = [
        ("certificate", &path),
        ("not_before", &shown_from),
        ("not_after", &shown_until),
    ];
    match () {
        () if now < from => log::warn("TLS certificate is not valid yet", &fields),
        () if now > until => log::warn("TLS certificate has expired", &fields),
        () if now + ENDS_SOON > until => log::warn("TLS certificate expires soon", &fields),
        () => log::info("TLS certificate loaded", &fields),
    }
}

fn read_pem(setting: &str, path: &Path) -> Result<Vec<u8>, String> {
    small_file::read(path, PEM_BYTES_MAX).map_err(|error| {
        let (shown, user) = (path.display(), rustix::process::geteuid().as_raw());
        format!("{setting}={shown}: cannot be read by user {user}: {error}")
    })
}

/// Every certificate of a file, in order.
fn read_certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read_pem(setting, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let shown = path.display();
    match found {
        Err(_) => Err(format!("{setting}={shown}: damaged PEM")),
        Ok(found) if found.is_empty() => Err(format!(
            "{setting}={shown}: no certificate in it; expected PEM with a CERTIFICATE block"
        )),
        Ok(found) => Ok(found),
    }
}

/// The first private key of a file. No fault shows any of its bytes.
fn read_private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let pem = read_pem("SSL_KEY", path)?;
    let shown = path.display();
    // An encrypted key says so in its label (PKCS #8, RFC 7468 §11) or, in older forms, in a header
    // (RFC 1421 §4.6.1.1).
    let is_encrypted = [
        &b"BEGIN ENCRYPTED PRIVATE KEY"[..],
        b"Proc-Type: 4,ENCRYPTED",
    ]
    .iter()
    .any(|mark| pem.windows(mark.len()).any(|part| part == *mark));
    if is_encrypted {
        return Err(format!(
            "SSL_KEY={shown}: the key is encrypted; expected it without passphrase (openssl pkey \
             -in FILE -out PLAIN)"
        ));
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => format!(
            "SSL_KEY={shown}: no private key in it; expected PEM with a PRIVATE KEY, RSA PRIVATE \
             KEY or EC PRIVATE KEY block"
        ),
        _ => format!("SSL_KEY={shown}: damaged PEM"),
    })
}

/// Builds the check of client certificates, with the authorities in a file.
fn client_verifier(
    path: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    let unusable = |why: &dyn fmt::Display| {
        let path = path.display();
        format!("SSL_CLIENT_CA={path}: unusable: {why}")
    };
    for certificate in read_certificates("SSL_CLIENT_CA", path)? {
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    let builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    // Probes carry no certificate. The request of any other client without one is refused later.
    let verifier = builder.allow_unauthenticated().build();
    let verifier: Arc<dyn ClientCertVerifier> = verifier.map_err(|error| unusable(&error))?;
    Ok(verifier)
}

/// Why a handshake failed.
#[derive(Debug)]
pub(super) enum HandshakeFault {
    /// The client showed a certificate that is not good here.
    Certificate(String),
    /// The client went away, or was too slow.
    Gone(io::Error),
    /// The client and the door share no version or cipher, or the client refused our certificate.
    Protocol(String),
}

impl From<rustls::Error> for HandshakeFault {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(why) => Self::Certificate(format!("{why:?}")),
            other => Self::Protocol(other.to_string()),
        }
    }
}

impl From<io::Error> for HandshakeFault {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

/// One connection's TLS.
pub(super) struct TlsSession {
    connection: ServerConnection,
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl TlsSession {
    /// Shakes hands, and returns what the client showed of itself. After a fault the client has
    /// already got its alert.
    pub(super) fn handshake(
        &mut self,
        from: &mut dyn Read,
        to: &mut dyn Write,
    ) -> Result<Certificate, HandshakeFault> {
        while self.connection.is_handshaking() {
            self.flush(to)?;
            if self.connection.read_tls(from)? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            if let Err(error) = self.connection.process_new_packets() {
                let _ = self.flush(to);
                return Err(HandshakeFault::from(error));
            }
        }
        self.flush(to)?;
        self.certificate()
    }

    fn certificate(&self) -> Result<Certificate, HandshakeFault> {
        let Some(clients) = &self.clients else {
            return Ok(Certificate::NotAsked);
        };
        let shown = self.connection.peer_certificates();
        let Some((own, chain)) = shown.and_then(<[_]>::split_first) else {
            return Ok(Certificate::Absent);
        };
        // rustls does not verify the certificate of a resumed session again, and it may have
        // expired since the session began.
        if self.connection.handshake_kind() == Some(HandshakeKind::Resumed) {
            let verified = clients.verify_client_cert(own, chain, UnixTime::now());
            verified.map_err(HandshakeFault::from)?;
        }
        Ok(Certificate::Verified)
    }

    /// Reads what the client sends; 0 is the end. An end without `close_notify` counts as an end,
    /// too: the framing of requests shows what it cuts short.
    pub(super) fn read(
        &mut self,
        from: &mut dyn Read,
        to: &mut dyn Write,
        into: &mut [u8],
    ) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                outcome => return outcome,
            }
            self.connection.read_tls(from)?;
            let processed = self.connection.process_new_packets();
            // The records may ask for an answer: an alert, or new keys.
            self.flush(to)?;
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    /// Encrypts and writes all of `bytes`, [`UNSENT_BYTES_MAX`] at a time.
    pub(super) fn write_all(&mut self, to: &mut dyn Write, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = self.connection.writer().write(bytes)?;
            self.flush(to)?;
            bytes = bytes.get(taken..).unwrap_or_default();
            if taken == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Sends `close_notify` (RFC 8446 §6.1): a client that does not get it knows that it was cut.
    pub(super) fn close(mut self, to: &mut dyn Write) {
        self.connection.send_close_notify();
        // This fails only when the client is gone, or no longer reads.
        let _ = self.flush(to);
    }

    fn flush(&mut self, to: &mut dyn Write) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(to) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
