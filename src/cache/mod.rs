//! What passed through, kept. Owns: the cache directory, which is an OCI image layout (image-spec
//! `image-layout.md`). Must not: know AWS, or what a client asked.
//!
//! All of it is blocking file I/O, called by connection, fill and sweep threads, never by workers.
//! The file system is the truth: a look-up is an `open` or a `stat`, and nothing keeps an index of
//! blobs in memory, so that starting with a full cache costs nothing.

mod files;
mod hash;
pub mod layout;
mod manifest;
pub mod names;
mod open;
#[cfg(test)]
mod scratch;
pub mod store;
pub mod sweep;
mod tagfile;
