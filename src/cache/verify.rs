//! Damaged blobs. Owns: opening a blob for a client, and the thread `verify`, which hashes blobs
//! that are not known to be whole. Must not: delay a hit on a blob that is known to be whole.
//!
//! A disk loses bytes, and people write where they should not. A blob is known to be whole when
//! this process has downloaded or hashed it and its file was not changed since. Any other one is
//! hashed when it is first asked for: a small one before it is answered, a large one while it is
//! sent, and then its last byte waits for the result. A damaged one is removed, and fetched again.
//!
//! Locks: the list of jobs, and under it each job's state, held to hash a piece at the longest,
//! never across I/O.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::store::{Blob, Reading, Store};
use super::verified::{HashVerdict, Stamp};
use crate::hash::Hasher;
use crate::locked::{Locked as _, TimedWait as _};
use crate::message::{Body, Piece, Pieces};
use crate::oci::Digest;

/// Blobs up to this size are hashed before they are answered: a tenth of a second.
const SMALL_BYTES_MAX: u64 = 64 << 20;
/// Longest wait for that; after it the blob is sent while it is hashed.
const SMALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait of the last byte. After it the byte is sent: a slow disk is no damage, and the
/// client checks the digest by itself. Clients give up at 30 s without a byte.
const LAST_BYTE_TIMEOUT: Duration = Duration::from_secs(20);
/// Blobs that wait to be hashed; more are sent without.
const JOBS_MAX: usize = 256;
/// Bytes hashed before the thread looks for a smaller blob.
const SLICE_BYTES: u64 = 4 << 20;
/// Bytes hashed in a second: what a disk reads, and half of what one core hashes.
const BYTES_PER_SECOND_MAX: u64 = 512 << 20;
/// Least time for one slice.
const SLICE_TIME: Duration = Duration::from_micros(SLICE_BYTES * 1_000_000 / BYTES_PER_SECOND_MAX);
/// Bytes read at a time.
const READ_BYTES: usize = 64 * 1024;

/// Hashes blobs, one at a time.
pub struct Verifier {
    store: Arc<Store>,
    queue: Mutex<HashQueue>,
    work: Condvar,
}

#[derive(Default)]
struct HashQueue {
    stopped: bool,
    /// Those that are not ended.
    jobs: Vec<Arc<Job>>,
}

/// A blob that is to be hashed.
struct Job {
    digest: Digest,
    stamp: Stamp,
    file: Arc<File>,
    state: Mutex<JobState>,
    /// The verdict is there.
    ended: Condvar,
    /// Keeps eviction from it.
    _reading: Reading,
}

struct JobState {
    hasher: Hasher,
    /// Bytes hashed so far.
    hashed: u64,
    verdict: Option<HashVerdict>,
}

impl Job {
    fn left(&self) -> u64 {
        let hashed = self.state.locked().hashed;
        self.stamp.size().saturating_sub(hashed)
    }

    fn end(&self, verdict: HashVerdict) {
        self.state.locked().verdict = Some(verdict);
        self.ended.notify_all();
    }

    /// Waits for the verdict, until `deadline` at the longest.
    fn wait(&self, deadline: Instant) -> HashVerdict {
        let is_there = |state: &JobState| state.verdict.is_some();
        let state = self.state.locked();
        let state = self.ended.wait_until(state, deadline, is_there);
        state.verdict.unwrap_or(HashVerdict::Unknown)
    }
}

/// A blob that may be sent.
pub struct Opened {
    blob: Blob,
    /// None when it is known to be whole.
    pending: Option<Arc<Job>>,
}

impl Opened {
    /// Its length in bytes.
    pub const fn size(&self) -> u64 {
        self.blob.size
    }

    /// True when its bytes are known to be what its name says.
    pub const fn is_verified(&self) -> bool {
        self.pending.is_none()
    }

    /// A body of the bytes `start..end`.
    pub fn body(self, start: u64, end: u64) -> Body {
        let length = Some(end.saturating_sub(start));
        let pieces = Box::new(BlobPart {
            opened: self,
            position: start,
            end,
        });
        Body::Pieces { pieces, length }
    }
}

impl Verifier {
    /// For the blobs of `store`.
    pub fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            queue: Mutex::default(),
            work: Condvar::new(),
        }
    }

    /// Opens a blob for a client; none when there is none, or it was damaged and is removed now.
    /// `known_size` is its length as its link has it: a file of another length is hashed first.
    /// Blocks for [`SMALL_TIMEOUT`] at the longest, and not at all for a blob that is known to be
    /// whole.
    ///
    /// # Errors
    /// The disk's own, and a file of another length that was not hashed in time.
    pub fn open(&self, digest: &Digest, known_size: Option<u64>) -> io::Result<Option<Opened>> {
        let Some(blob) = self.store.blob(digest)? else {
            return Ok(None);
        };
        if blob.is_verified {
            return Ok(Some(Opened {
                blob,
                pending: None,
            }));
        }
        let right_size = known_size.is_none_or(|known| known == blob.size);
        let mut pending = self.begin(digest, &blob);
        if blob.size <= SMALL_BYTES_MAX || !right_size {
            let deadline = Instant::now() + SMALL_TIMEOUT;
            let verdict = pending
                .as_ref()
                .map_or(HashVerdict::Unknown, |pending| pending.wait(deadline));
            match verdict {
                HashVerdict::Damaged => return Ok(None),
                HashVerdict::Whole => pending = None,
                HashVerdict::Unknown if right_size => {}
                HashVerdict::Unknown => {
                    let (size, known) = (blob.size, known_size.unwrap_or_default());
                    let why = format!("blob {digest} has {size} bytes on disk, expected {known}");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
            }
        }
        Ok(Some(Opened { blob, pending }))
    }

    /// The work of the thread `verify`; returns after [`Self::stop`].
    pub fn run(&self) {
        while let Some(job) = self.next() {
            let begun = Instant::now();
            match self.hash_slice(&job) {
                Some(verdict) => {
                    let jobs = &mut self.queue.locked().jobs;
                    jobs.retain(|other| !Arc::ptr_eq(other, &job));
                    job.end(verdict);
                }
                None => std::thread::sleep(SLICE_TIME.saturating_sub(begun.elapsed())),
            }
        }
    }

    /// Ends [`Self::run`].
    pub fn stop(&self) {
        let mut queue = self.queue.locked();
        queue.stopped = true;
        for job in queue.jobs.drain(..) {
            job.end(HashVerdict::Unknown);
        }
        drop(queue);
        self.work.notify_all();
    }

    /// Queues a blob, unless it is queued already; none when too many are.
    fn begin(&self, digest: &Digest, blob: &Blob) -> Option<Arc<Job>> {
        let mut queue = self.queue.locked();
        let is_same = |job: &&Arc<Job>| job.digest == *digest && job.stamp == blob.stamp;
        if let Some(job) = queue.jobs.iter().find(is_same) {
            return Some(Arc::clone(job));
        }
        if queue.stopped || queue.jobs.len() >= JOBS_MAX {
            return None;
        }
        let job = Arc::new(Job {
            digest: digest.clone(),
            stamp: blob.stamp,
            file: Arc::clone(&blob.file),
            state: Mutex::new(JobState {
                hasher: Hasher::new(digest),
                hashed: 0,
                verdict: None,
            }),
            ended: Condvar::new(),
            _reading: self.store.reading(digest),
        });
        queue.jobs.push(Arc::clone(&job));
        drop(queue);
        self.work.notify_all();
        Some(job)
    }

    /// Waits for a job, and finds the one with the least to do; none after [`Self::stop`].
    fn next(&self) -> Option<Arc<Job>> {
        let mut queue = self.queue.locked();
        while queue.jobs.is_empty() && !queue.stopped {
            let waited = self.work.wait(queue);
            queue = waited.unwrap_or_else(PoisonError::into_inner);
        }
        queue.jobs.iter().min_by_key(|job| job.left()).cloned()
    }

    /// Hashes the next bytes; none while there are more.
    fn hash_slice(&self, job: &Job) -> Option<HashVerdict> {
        let mut buffer = vec![0; READ_BYTES];
        let mut at = job.state.locked().hashed;
        let until = at + SLICE_BYTES;
        while at < until {
            let count = match job.file.read_at(&mut buffer, at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(count @ 1..) => count,
                ended => {
                    let found = job.state.locked().hasher.clone().finish();
                    let found = ended.map(|_| found);
                    let judged = self.store.judge(&job.digest, &job.file, job.stamp, found);
                    return Some(judged);
                }
            };
            let mut state = job.state.locked();
            state.hasher.update(buffer.get(..count).unwrap_or_default());
            at += count as u64;
            state.hashed = at;
        }
        None
    }
}

/// The bytes of a blob on their way to a client; eviction leaves the blob alone meanwhile.
struct BlobPart {
    opened: Opened,
    position: u64,
    end: u64,
}

impl Pieces for BlobPart {
    fn is_ready(&self) -> bool {
        self.opened.is_verified() && self.position < self.end
    }

    fn next(&mut self) -> io::Result<Piece<'_>> {
        if self.position >= self.end {
            return Ok(Piece::End);
        }
        let mut until = self.end;
        if let Some(pending) = &self.opened.pending {
            match pending.wait(self.patience()) {
                HashVerdict::Damaged => return Err(io::Error::other("the cached blob is damaged")),
                HashVerdict::Whole => {}
                HashVerdict::Unknown if self.is_at_last_byte() => {}
                HashVerdict::Unknown => until -= 1,
            }
        }
        let (offset, length) = (self.position, until - self.position);
        self.position = until;
        Ok(Piece::File {
            file: &self.opened.blob.file,
            offset,
            length,
        })
    }
}

impl BlobPart {
    const fn is_at_last_byte(&self) -> bool {
        self.position + 1 == self.end
    }

    /// Until when the next piece may wait for the verdict.
    fn patience(&self) -> Instant {
        let now = Instant::now();
        match self.is_at_last_byte() {
            true => now + LAST_BYTE_TIMEOUT,
            false => now,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;
    use crate::cache::scratch::{Cache, digest_of};

    const BYTES: &[u8] = b"the bytes of a blob";

    struct Bench {
        cache: Cache,
        verifier: Arc<Verifier>,
        digest: Digest,
    }

    impl Bench {
        fn new() -> Self {
            let cache = Cache::new();
            let digest = cache.blob("a", BYTES);
            let verifier = Arc::new(Verifier::new(Arc::clone(&cache.store)));
            Self {
                cache,
                verifier,
                digest,
            }
        }

        /// With the thread `verify` at work.
        fn while_running<T>(&self, test: impl FnOnce() -> T) -> T {
            struct Stop<'a>(&'a Verifier);
            impl Drop for Stop<'_> {
                fn drop(&mut self) {
                    self.0.stop();
                }
            }
            thread::scope(|scope| {
                scope.spawn(|| self.verifier.run());
                let _stop = Stop(&self.verifier);
                test()
            })
        }

        fn write(&self, bytes: &[u8]) {
            let blobs = self.cache.scratch.path().join("blobs/sha256");
            fs::write(blobs.join(self.digest.hex()), bytes).unwrap();
        }

        fn blob(&self) -> Blob {
            self.cache.store.blob(&self.digest).unwrap().unwrap()
        }
    }

    fn pieces(opened: Opened) -> Box<dyn Pieces> {
        let end = opened.size();
        match opened.body(0, end) {
            Body::Pieces { pieces, .. } => pieces,
            _ => panic!("no pieces"),
        }
    }

    fn length(pieces: &mut dyn Pieces) -> io::Result<u64> {
        pieces.next().map(|piece| match piece {
            Piece::File { length, .. } => length,
            Piece::Bytes(bytes) => bytes.len() as u64,
            _ => 0,
        })
    }

    #[test]
    fn a_blob_is_hashed_once() {
        let bench = Bench::new();
        bench.while_running(|| {
            assert!(!bench.blob().is_verified);
            let opened = bench.verifier.open(&bench.digest, None).unwrap().unwrap();
            assert!(opened.is_verified() && bench.blob().is_verified);
        });
        // The thread is gone, and is not missed.
        let size = Some(BYTES.len() as u64);
        let opened = bench.verifier.open(&bench.digest, size).unwrap().unwrap();
        let mut pieces = pieces(opened);
        assert_eq!(length(&mut *pieces).unwrap(), BYTES.len() as u64);
        assert_eq!(length(&mut *pieces).unwrap(), 0);
    }

    #[test]
    fn a_damaged_blob_is_removed_and_not_sent() {
        let bench = Bench::new();
        let flipped = BYTES.to_ascii_uppercase();
        let longer = [BYTES, b"!"].concat();
        bench.while_running(|| {
            for damaged in [&BYTES[..5], b"", &longer, &flipped] {
                for known in [None, Some(BYTES.len() as u64)] {
                    bench.cache.store.put(&bench.digest, BYTES).unwrap();
                    assert!(bench.verifier.open(&bench.digest, known).unwrap().is_some());
                    bench.write(damaged);
                    assert!(bench.verifier.open(&bench.digest, known).unwrap().is_none());
                    assert!(!bench.cache.store.has(&bench.digest));
                }
            }
        });
    }

    #[test]
    fn a_manifest_that_lies_about_the_length_costs_a_hash() {
        let bench = Bench::new();
        bench.while_running(|| {
            let opened = bench.verifier.open(&bench.digest, Some(1)).unwrap();
            assert!(opened.unwrap().is_verified());
        });
    }

    #[test]
    fn a_wrong_length_that_nobody_hashes_is_a_fault() {
        let bench = Bench::new();
        bench.verifier.stop();
        let opened = bench.verifier.open(&bench.digest, Some(1));
        let fault = opened.err().unwrap();
        assert!(
            fault
                .to_string()
                .ends_with("has 19 bytes on disk, expected 1")
        );
        // Without that sign of damage it is sent.
        let opened = bench.verifier.open(&bench.digest, Some(19)).unwrap();
        assert!(opened.is_some());
    }

    #[test]
    fn the_last_byte_waits_for_the_result() {
        for damaged in [false, true] {
            let bench = Bench::new();
            if damaged {
                bench.write(&BYTES.to_ascii_uppercase());
            }
            let blob = bench.blob();
            let pending = bench.verifier.begin(&bench.digest, &blob);
            let mut pieces = pieces(Opened { blob, pending });
            assert_eq!(length(&mut *pieces).unwrap(), BYTES.len() as u64 - 1);
            let last = bench.while_running(|| length(&mut *pieces));
            assert_eq!(last.ok(), (!damaged).then_some(1));
            assert_eq!(bench.cache.store.has(&bench.digest), !damaged);
        }
    }

    #[test]
    fn a_blob_fetched_again_meanwhile_is_not_removed() {
        let bench = Bench::new();
        bench.write(b"damaged");
        let blob = bench.blob();
        let pending = bench.verifier.begin(&bench.digest, &blob).unwrap();
        bench.cache.store.remove(&bench.digest).unwrap();
        bench.cache.store.put(&bench.digest, BYTES).unwrap();
        bench.while_running(|| pending.wait(Instant::now() + LAST_BYTE_TIMEOUT));
        assert!(bench.cache.store.has(&bench.digest));
    }

    #[test]
    fn blobs_that_wait_are_bounded_and_queued_once() {
        let bench = Bench::new();
        let blob = bench.blob();
        let first = bench.verifier.begin(&bench.digest, &blob).unwrap();
        let again = bench.verifier.begin(&bench.digest, &blob).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        for number in 1..JOBS_MAX {
            let digest = digest_of(&number.to_le_bytes());
            assert!(bench.verifier.begin(&digest, &blob).is_some());
        }
        assert!(
            bench
                .verifier
                .begin(&digest_of(b"one more"), &blob)
                .is_none()
        );
        assert!(bench.cache.store.is_read(&bench.digest));
        bench.verifier.stop();
        assert_eq!(first.wait(Instant::now()), HashVerdict::Unknown);
        assert!(bench.verifier.begin(&bench.digest, &blob).is_none());
    }
}
