//! Which blobs are known to be whole. Owns: a bounded memory of files that were hashed. Must not:
//! do I/O, or hash.
//!
//! Locks: the map, held for map operations.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::locked::Locked as _;
use crate::oci::Digest;

/// Blobs remembered. When they are more, all are forgotten, which costs hashing and no more: 4 MB.
const BLOBS_MAX: usize = 16_384;
/// After this time a blob is hashed again: a disk that loses bits tells nobody.
const VERIFIED_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Tells one content of a file from another without reading it: a program that writes changes
/// the time of its last change, and no program can set that one back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    changed: (i64, i64),
    size: u64,
}

impl Stamp {
    /// The stamp of a file that was opened or looked up.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            size: metadata.len(),
        }
    }

    /// The length of the file in bytes.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// True when both are of one file, changed or not.
    pub const fn is_same_file(self, other: Self) -> bool {
        self.inode == other.inode
    }
}

/// What hashing a blob has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HashVerdict {
    /// Its bytes are what its name says.
    Whole,
    /// They are not; it has been removed.
    Damaged,
    /// Its file was changed meanwhile, or the proxy stops.
    Unknown,
}

/// The memory.
#[derive(Debug, Default)]
pub(super) struct Verified {
    blobs: Mutex<HashMap<Digest, (Stamp, Instant)>>,
}

impl Verified {
    /// Notes that the file with this stamp has the digest.
    pub(super) fn insert(&self, digest: &Digest, stamp: Stamp, now: Instant) {
        let mut blobs = self.blobs.locked();
        if blobs.len() >= BLOBS_MAX {
            blobs.clear();
        }
        blobs.insert(digest.clone(), (stamp, now));
    }

    /// True when the file was hashed not long before `now`, and was not changed since.
    pub(super) fn has(&self, digest: &Digest, stamp: Stamp, now: Instant) -> bool {
        self.blobs.locked().get(digest).is_some_and(|(known, at)| {
            *known == stamp && now.saturating_duration_since(*at) < VERIFIED_FOR
        })
    }

    /// Forgets a blob that is gone.
    pub(super) fn remove(&self, digest: &Digest) {
        self.blobs.locked().remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: usize) -> Digest {
        format!("sha256:{number:064x}").parse().unwrap()
    }

    const STAMP: Stamp = Stamp {
        inode: 1,
        changed: (2, 3),
        size: 4,
    };

    #[test]
    fn a_file_that_was_changed_is_not_known() {
        let (verified, now) = (Verified::default(), Instant::now());
        verified.insert(&digest(1), STAMP, now);
        assert!(verified.has(&digest(1), STAMP, now));
        assert!(!verified.has(&digest(2), STAMP, now));
        let changed = [
            Stamp { inode: 9, ..STAMP },
            Stamp {
                changed: (2, 9),
                ..STAMP
            },
            Stamp { size: 9, ..STAMP },
        ];
        for other in changed {
            assert!(!verified.has(&digest(1), other, now), "{other:?}");
        }
        verified.remove(&digest(1));
        assert!(!verified.has(&digest(1), STAMP, now));
    }

    #[test]
    fn a_blob_is_hashed_again_after_a_day() {
        let (verified, now) = (Verified::default(), Instant::now());
        verified.insert(&digest(1), STAMP, now);
        let last = now + VERIFIED_FOR - Duration::from_nanos(1);
        assert!(verified.has(&digest(1), STAMP, last));
        assert!(!verified.has(&digest(1), STAMP, now + VERIFIED_FOR));
    }

    #[test]
    fn the_memory_is_bounded() {
        let (verified, now) = (Verified::default(), Instant::now());
        for number in 0..BLOBS_MAX + 10 {
            verified.insert(&digest(number), STAMP, now);
        }
        assert!(verified.blobs.locked().len() <= BLOBS_MAX);
        assert!(verified.has(&digest(BLOBS_MAX + 9), STAMP, now));
    }
}
