//! What passed through, kept. Owns: the cache directory, which is an OCI image layout (image-spec
//! `image-layout.md`). Must not: know AWS, or what a client asked.
//!
//! All of it is blocking file I/O, called by connection, fill and sweep threads, never by workers.
//! The file system is the truth: a look-up is an `open` or a `stat`, and nothing keeps an index of
//! blobs in memory, so that starting with a full cache costs nothing.

mod account;
pub mod archive;
pub mod audit;
pub mod changes;
pub mod closure;
pub mod description;
pub mod disk;
pub mod export;
mod files;
pub mod fill;
pub mod flights;
pub mod held;
pub mod holdings;
pub mod images;
pub mod import;
mod inventory;
pub mod layout;
mod links;
pub mod manifest;
pub mod moves;
pub mod names;
pub mod negative;
mod open;
pub mod origin;
pub mod pages;
mod partials;
mod paths;
mod pending;
pub mod pins;
pub mod probe;
mod processes;
pub mod pushed;
mod remembered;
#[cfg(test)]
pub(crate) mod scratch;
pub mod scrub;
pub mod store;
pub mod sweep;
mod tagfile;
pub mod tree;
pub mod uploads;
mod verified;
pub mod verify;
mod whole;

pub use self::disk::DiskFaults;
pub use self::whole::{Cache, CacheSettings};
