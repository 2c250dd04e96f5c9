//! Settings of how clients are listened to. Owns: their values and how they are written. Must
//! not: act on them.

use std::path::PathBuf;

use super::Fault;

/// TLS towards clients. The files are read, and judged, where they are used.
#[derive(Debug, Clone, Default)]
pub struct TlsSettings {
    /// `ENABLE_SSL`
    pub enabled: bool,
    /// `SSL_CERTIFICATE`
    pub certificate: Option<PathBuf>,
    /// `SSL_KEY`
    pub key: Option<PathBuf>,
    /// `SSL_CLIENT_CA`
    pub client_ca: Option<PathBuf>,
}

impl TlsSettings {
    /// What only the settings together show to be wrong. `is_missing`: nobody gave a value; one
    /// that was given and is wrong in itself is a fault already.
    pub(super) fn faults(&self, is_missing: impl Fn(&str) -> bool) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut fault = |why: &str| faults.push(Fault(why.to_owned()));
        if self.enabled {
            for name in ["SSL_CERTIFICATE", "SSL_KEY"] {
                if is_missing(name) {
                    fault(&format!("ENABLE_SSL=true: expected {name} to be set too"));
                }
            }
        } else if let Some(path) = &self.client_ca {
            // Without TLS nobody could show a certificate: everybody would get in.
            let path = super::mask(&path.to_string_lossy());
            fault(&format!(
                "SSL_CLIENT_CA={path}: expected ENABLE_SSL=true too, as TLS is where certificates \
                 are shown"
            ));
        }
        faults
    }
}
