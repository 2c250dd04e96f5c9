//! The settings of what clients may do. Owns: their values. Must not: act on them, or read
//! `AUTH_FILE`: a running proxy keeps its users when the file goes bad, and then `health`, which
//! reads the same settings, must not report a fault.

use std::path::PathBuf;

use super::globs::Globs;

/// The rights of clients.
#[derive(Debug, Clone, Default)]
pub struct AccessSettings {
    /// `AUTH_FILE`
    pub auth_file: Option<PathBuf>,
    /// `READ_ONLY`
    pub read_only: bool,
    /// `ALLOW_REPOSITORIES`
    pub repositories: Globs,
}
