//! The settings of TLS towards clients. Owns: their values, and which go together. Must not: read
//! the files.

use std::path::PathBuf;

use super::fault::{Fault, mask};

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
    /// The faults that show only when the settings are looked at together. `is_missing` is true for
    /// a setting without a value; a value that is wrong in itself is a fault already.
    pub(super) fn faults(&self, is_missing: impl Fn(&str) -> bool) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut fault = |why: &str| faults.push(Fault::new(why.to_owned()));
        if self.enabled {
            for name in ["SSL_CERTIFICATE", "SSL_KEY"] {
                if is_missing(name) {
                    fault(&format!("ENABLE_SSL=true: expected {name} to be set too"));
                }
            }
        } else if let Some(path) = &self.client_ca {
            // Without TLS no client could show a certificate, and all of them would get in.
            let path = mask(&path.to_string_lossy());
            fault(&format!(
                "SSL_CLIENT_CA={path}: expected ENABLE_SSL=true too, as TLS is where certificates \
                 are shown"
            ));
        }
        faults
    }
}
