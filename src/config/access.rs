//! The settings of what clients may do. Owns: their values. Must not: act on them, or read
//! `AUTH_FILE`: a running proxy keeps its users when the file goes bad, and then `health`, which
//! reads the same settings, must not report a fault.

use std::path::PathBuf;

use super::fault::mask;
use super::globs::Globs;
use super::parse;

/// Most entries of `ACCESS_CONTROL_ALLOW_ORIGIN`: each request of a page is compared with them.
const ORIGINS_MAX: usize = 64;

/// The rights of clients.
#[derive(Debug, Clone, Default)]
pub struct AccessSettings {
    /// `AUTH_FILE`
    pub auth_file: Option<PathBuf>,
    /// `READ_ONLY`
    pub read_only: bool,
    /// `ALLOW_REPOSITORIES`
    pub repositories: Globs,
    /// `ACCESS_CONTROL_ALLOW_ORIGIN`: `scheme://host[:port]` as browsers write it, or one `*`
    pub origins: Vec<String>,
}

/// `ACCESS_CONTROL_ALLOW_ORIGIN`
pub(super) fn origins(text: &str) -> Result<Vec<String>, String> {
    let origins: Vec<&str> = parse::list(text).collect();
    match origins.len() {
        0 => return Err(String::new()),
        1 if origins == ["*"] => return Ok(vec!["*".to_owned()]),
        count if count > ORIGINS_MAX => return Err(format!("these are {count}")),
        _ => {}
    }
    let read = |origin: &&str| {
        let read = match *origin {
            "*" => Err("* goes alone".to_owned()),
            origin => parse::url(origin),
        };
        read.map_err(|why| format!("{}: {why}", mask(origin)))
    };
    origins.iter().map(read).collect()
}
