//! TLS to the proxy on the same machine, for `health` and `status`. Owns: a client that believes
//! either any certificate or a single one. The proxy's certificate need not name `127.0.0.1`, nor
//! be trusted on this machine. Must not: send a secret to a proxy whose certificate is not known.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
};

use crate::small_file;

/// Largest PEM file: a certificate, its chain and a key are a few kilobytes.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// PEM files of the two ends.
#[derive(Debug, Clone, Default)]
pub struct LoopbackCertificates {
    /// A file that begins with the proxy's own certificate. None: any certificate is believed.
    pub proxy: Option<PathBuf>,
    /// Our own certificate and its key.
    pub client: Option<PathBuf>,
}

/// Speaks TLS over `stream`. The first use shakes hands.
///
/// # Errors
/// When a file cannot be used; nothing is sent before the first use.
pub fn connect<S: Read + Write>(
    stream: S,
    files: &LoopbackCertificates,
) -> io::Result<impl Read + Write> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let only = files.proxy.as_deref().map(read_certificate);
    let only = only.transpose()?;
    let verifier = LoopbackVerifier {
        provider: Arc::clone(&provider),
        only,
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match &files.client {
        None => config.with_no_client_auth(),
        Some(path) => {
            let key = PrivateKeyDer::from_pem_slice(&read_pem(path)?);
            let key = key.map_err(|error| fault(path, error))?;
            config
                .with_client_auth_cert(vec![read_certificate(path)?], key)
                .map_err(|error| fault(path, error))?
        }
    };
    // A name that the certificate need not have; the server is told no address.
    let host = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let connection = ClientConnection::new(Arc::new(config), host);
    let connection = connection.map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, stream))
}

/// The first certificate of a PEM file.
fn read_certificate(path: &Path) -> io::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(&read_pem(path)?).map_err(|error| fault(path, error))
}

fn read_pem(path: &Path) -> io::Result<Vec<u8>> {
    small_file::read(path, PEM_BYTES_MAX).map_err(|error| fault(path, error))
}

fn fault(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

#[derive(Debug)]
struct LoopbackVerifier {
    provider: Arc<CryptoProvider>,
    /// The one certificate that is believed; none: all are.
    only: Option<CertificateDer<'static>>,
}

impl LoopbackVerifier {
    /// Judges a signature, where it matters whose it is.
    fn judge(
        &self,
        verify: impl FnOnce(&WebPkiSupportedAlgorithms) -> Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.only {
            Some(_) => verify(&self.provider.signature_verification_algorithms),
            None => Ok(HandshakeSignatureValid::assertion()),
        }
    }
}

impl ServerCertVerifier for LoopbackVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.only {
            Some(only) if only != end_entity => Err(Error::General(
                "the proxy shows another certificate than the first in SSL_CERTIFICATE".to_owned(),
            )),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge(|algorithms| verify_tls12_signature(message, cert, dss, algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge(|algorithms| verify_tls13_signature(message, cert, dss, algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
