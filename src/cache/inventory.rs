//! The files below `blobs/` and `partial/`, for the sweep and others that need all of them. Owns:
//! walking through the two folders, and counting them. Must not: make or move a file.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::SystemTime;

use super::files;
use super::store::{Entry, Store};
use crate::hash::ALGORITHMS;
use crate::locked::Locked as _;
use crate::oci::Digest;

/// What the sweep asks for.
impl Store {
    /// Calls `visit` for every blob, and sets the account to what was found. What arrives meanwhile
    /// is counted once; what is removed meanwhile may be counted until the next time.
    pub(super) fn count(&self, visit: &mut dyn FnMut(Entry)) -> io::Result<()> {
        self.account.locked().arrived.get_or_insert_default();
        let (mut seen, mut count) = (0_u64, 0_u64);
        let counted = self.each("blobs", &mut |entry| {
            let arrived = |arrived: &HashMap<_, _>| arrived.contains_key(&entry.digest);
            if !self.account.locked().arrived.as_ref().is_some_and(arrived) {
                seen = seen.saturating_add(entry.size);
                count += 1;
            }
            visit(entry);
        });
        {
            let mut account = self.account.locked();
            let arrived = account.arrived.take().unwrap_or_default();
            if counted.is_ok() {
                account.blobs = arrived.values().fold(seen, |sum, size| sum + size);
                account.count = count + arrived.values().filter(|size| **size > 0).count() as u64;
            }
        }
        counted?;
        self.count_partial()
    }

    /// Bytes that all blobs take on the disk, as they are there now. Blocks, for as long as it
    /// takes to look at every file.
    ///
    /// # Errors
    /// The disk's own.
    pub fn count_blob_bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        self.each("blobs", &mut |entry| bytes += entry.size)?;
        Ok(bytes)
    }

    /// Sets the account of downloads to their measured size, if none changed meanwhile.
    fn count_partial(&self) -> io::Result<()> {
        let before = self.account.locked().partial_changes;
        let mut partial = 0_u64;
        self.each_partial(&mut |entry| partial = partial.saturating_add(entry.size))?;
        let mut account = self.account.locked();
        if account.partial_changes == before {
            account.partial = partial;
        }
        Ok(())
    }

    /// Calls `visit` for every blob.
    pub(super) fn each_blob(&self, visit: &mut dyn FnMut(Digest)) -> io::Result<()> {
        self.each("blobs", &mut |entry| visit(entry.digest))
    }

    /// Calls `visit` for every download.
    pub(super) fn each_partial(&self, visit: &mut dyn FnMut(Entry)) -> io::Result<()> {
        self.each("partial", visit)
    }

    fn each(&self, kind: &str, visit: &mut dyn FnMut(Entry)) -> io::Result<()> {
        for algorithm in ALGORITHMS {
            for found in fs::read_dir(self.root.join(kind).join(algorithm))? {
                let found = found?;
                let name = found.file_name();
                let digest = name
                    .to_str()
                    .and_then(|hex| format!("{algorithm}:{hex}").parse().ok());
                // Gone meanwhile, or not ours: an operator's file is neither counted nor touched.
                let (Some(digest), Ok(metadata)) = (digest, found.metadata()) else {
                    continue;
                };
                if !metadata.is_file() {
                    continue;
                }
                visit(Entry {
                    digest,
                    size: match kind {
                        "blobs" => files::on_disk(&metadata),
                        _ => metadata.len(),
                    },
                    modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                });
            }
        }
        Ok(())
    }

    /// From now on arrivals are remembered for [`Self::arrivals`].
    pub(super) fn watch(&self, on: bool) {
        self.account.locked().watched = on.then(Vec::new);
    }

    /// What arrived since the last call.
    pub(super) fn arrivals(&self) -> Vec<Digest> {
        let watched = &mut self.account.locked().watched;
        watched.as_mut().map(std::mem::take).unwrap_or_default()
    }
}
