//! The account of the store. Owns: what is counted of the files. Must not: look at them.

use std::collections::HashMap;

use crate::oci::Digest;

/// Bytes on disk.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// Bytes of blobs, in whole blocks.
    pub(super) blobs: u64,
    /// How many blobs there are.
    pub(super) count: u64,
    /// Bytes of downloads, by length: they grow byte by byte.
    pub(super) partial: u64,
    /// Grows with every change of `partial`: shows a count that it was overtaken.
    pub(super) partial_changes: u64,
    /// Blobs that came while a count runs, with their sizes; the count leaves them out.
    pub(super) arrived: Option<HashMap<Digest, u64>>,
    /// Blobs that came, or were to be kept again, while an eviction runs.
    pub(super) watched: Option<Vec<Digest>>,
}
