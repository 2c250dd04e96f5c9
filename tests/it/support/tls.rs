//! Certificates for tests, and clients that verify them. Owns: the authority, the files the proxy
//! reads. Must not: believe a server whose certificate the authority did not sign.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SerialNumber};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use super::Scratch;

/// Names and numbers are given once: two authorities of one name are hard to tell apart.
static COUNT: AtomicU64 = AtomicU64::new(1);

/// Who signs.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

/// What one end shows of itself.
pub(crate) struct Identity {
    pub(crate) certificate: rcgen::Certificate,
    pub(crate) key: KeyPair,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut wanted = CertificateParams::new(Vec::new()).expect("no names");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test authority {number}");
        wanted.distinguished_name.push(DnType::CommonName, name);
        wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = wanted.self_signed(&key).expect("a certificate");
        Self {
            issuer: Issuer::new(wanted, key),
            certificate,
        }
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// Signs an identity of that name or address, good until the start of a year.
    pub(crate) fn sign(&self, name: &str, until_year: i32) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut wanted = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        wanted.serial_number = Some(SerialNumber::from(number));
        wanted.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let certificate = wanted.signed_by(&key, &self.issuer).expect("a certificate");
        Identity { certificate, key }
    }

    /// A client that believes this authority alone.
    pub(crate) fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        identity: Option<&Identity>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match identity {
            Some(identity) => builder
                .with_client_auth_cert(vec![identity.certificate.der().clone()], identity.der())
                .expect("an identity"),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.resumption = Resumption::in_memory_sessions(8);
        Arc::new(config)
    }
}

impl Identity {
    fn der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).expect("a key")
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }
}

/// An authority, and a folder with a certificate for loopback and its key.
pub(crate) struct Pki {
    pub(crate) authority: Authority,
    pub(crate) scratch: Scratch,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let pki = Self {
            authority: Authority::new(),
            scratch: Scratch::new(),
        };
        pki.renew();
        pki
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Writes a file and says where it is.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file");
        path.to_str().expect("a path that is text").to_owned()
    }

    /// Puts a new certificate and key in the place of the old ones, one after the other.
    pub(crate) fn renew(&self) -> CertificateDer<'static> {
        let identity = self.authority.sign("127.0.0.1", 2090);
        self.write("tls.key", &identity.key.serialize_pem());
        self.write("tls.crt", &identity.certificate.pem());
        identity.certificate()
    }

    /// The settings that make the proxy use them.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.path(name).to_str().expect("text").to_owned();
        vec![
            ("ENABLE_SSL", "true".to_owned()),
            ("SSL_CERTIFICATE", path("tls.crt")),
            ("SSL_KEY", path("tls.key")),
        ]
    }

    /// The same, and a certificate is asked of clients that the same authority has signed.
    pub(crate) fn settings_with_clients(&self) -> Vec<(&'static str, String)> {
        let path = self.write("ca.crt", &self.authority.pem());
        let mut settings = self.settings();
        settings.push(("SSL_CLIENT_CA", path));
        settings
    }

    /// A client of either version, without a certificate.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        self.authority.client(&versions, None)
    }
}
