//! The sources of credentials. Owns: the list of them; each is a file, and [`chain`] asks
//! them in turn. Must not: keep anything.

pub(super) mod chain;
mod container;
mod document;
mod env;
mod file;
mod instance;
mod process;
pub(super) mod profile;
mod web_identity;
