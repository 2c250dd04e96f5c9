//! Certificates that we trust. Owns: where they come from, and that there is one. Must not: verify
//! anything with them.

use std::path::Path;

use ureq::tls::{PemItem, RootCerts};

use crate::config::CA_BUNDLE_BYTES_MAX;
use crate::small_file;

/// The file of Linux distributions with the roots that the administrator chose.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The roots to trust: the bundle; else the system's, which its administrator chose; else
/// Mozilla's, built in (a scratch image has no file).
///
/// # Errors
/// When the bundle cannot be read or holds no certificate.
pub(super) fn read_roots(ca_bundle: Option<&Path>) -> Result<RootCerts, String> {
    let Some(path) = ca_bundle else {
        let system = std::fs::read(SYSTEM_ROOTS)
            .ok()
            .and_then(|pem| parse_certificates(&pem).ok());
        return Ok(system.unwrap_or(RootCerts::WebPki));
    };
    let fault = |why: String| format!("AWS_CA_BUNDLE={}: {why}", path.display());
    let pem =
        small_file::read(path, CA_BUNDLE_BYTES_MAX).map_err(|error| fault(error.to_string()))?;
    parse_certificates(&pem).map_err(fault)
}

/// Every certificate of a PEM file; none, or one that is damaged, is an error.
fn parse_certificates(pem: &[u8]) -> Result<RootCerts, String> {
    let mut found = Vec::new();
    for item in ureq::tls::parse_pem(pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => found.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(format!("not a PEM file of certificates: {error}")),
        }
    }
    // ureq takes an empty set of roots, with which every handshake fails, and drops bad ones.
    let mut store = rustls::RootCertStore::empty();
    let ders = found
        .iter()
        .map(|certificate| certificate.der().to_vec().into());
    let (usable, _) = store.add_parsable_certificates(ders);
    if usable == 0 {
        return Err("no usable certificate in it; expected PEM".to_owned());
    }
    Ok(RootCerts::from(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_without_a_certificate_is_refused() {
        assert!(
            parse_certificates(b"")
                .unwrap_err()
                .contains("no usable certificate")
        );
        let garbage = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(parse_certificates(garbage).is_err());
        let missing = read_roots(Some(Path::new("/nonexistent.pem"))).unwrap_err();
        assert!(
            missing.starts_with("AWS_CA_BUNDLE=/nonexistent.pem: "),
            "{missing}"
        );
    }
}
