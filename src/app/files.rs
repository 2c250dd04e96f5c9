//! Files that settings name. Owns: whether they can be read at all. Must not: judge their content.

use std::path::PathBuf;

use crate::config::Settings;
use crate::small_file;

/// The faults of files that settings name. They are shown beside faults of the settings themselves,
/// so that one start shows all that is wrong. Logs nothing.
pub fn file_faults(settings: &Settings) -> Vec<String> {
    let tls = &settings.tls;
    let enabled = |path: &Option<PathBuf>| path.clone().filter(|_| tls.enabled);
    let files = [
        ("AUTH_FILE", settings.access.auth_file.clone()),
        ("SSL_CERTIFICATE", enabled(&tls.certificate)),
        ("SSL_KEY", enabled(&tls.key)),
        ("SSL_CLIENT_CA", enabled(&tls.client_ca)),
    ];
    let named = files
        .into_iter()
        .filter_map(|(name, path)| Some((name, path?)));
    named
        .filter_map(|(name, path)| {
            let error = small_file::open(&path).err()?;
            Some(format!(
                "{name}={}: it cannot be read: {error}",
                path.display()
            ))
        })
        .collect()
}
