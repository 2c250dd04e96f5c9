//! Uploads against a cache of their own. Threads do the writing, so what they leave is waited for.

use std::fs;

use super::writer::Queue;
use super::*;
use crate::cache::disk::DiskFaults;
use crate::cache::names::OwnedScope;
use crate::cache::scratch::{Cache, digest_of};
use crate::cache::sweep::Sweeper;
use crate::oci::{Digest, Repository};

const QUOTA: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    cache: Cache,
    uploads: Arc<Uploads>,
}

impl Bench {
    fn new() -> Self {
        let cache = Cache::new();
        let (store, names) = (Arc::clone(&cache.store), Arc::clone(&cache.names));
        let disk = Disk {
            sweeper: Sweeper::new(Arc::clone(&store), Arc::clone(&names), QUOTA),
            faults: Arc::new(DiskFaults::new(&store)),
            store,
            names,
        };
        let uploads = Arc::new(Uploads::new(disk));
        Self { cache, uploads }
    }

    fn wanted(&self, digest: &Digest) -> BlobRequest {
        BlobRequest {
            scope: OwnedScope {
                registry: self.cache.registry.clone(),
                repository: "team/app".parse::<Repository>().unwrap(),
            },
            digest: digest.clone(),
            asked_at: self.cache.names.changes.now(),
            is_background: false,
        }
    }

    /// An upload of these pieces.
    fn upload(&self, pieces: &[&[u8]]) -> Upload {
        let mut upload = Upload::default();
        for piece in pieces {
            self.uploads.push(&mut upload, piece);
        }
        upload
    }

    fn commit(&self, upload: Upload, digest: &Digest) -> bool {
        let wanted = self.wanted(digest);
        self.uploads.commit(Some(upload), &wanted, false)
    }

    fn is_linked(&self, digest: &Digest) -> bool {
        let wanted = self.wanted(digest);
        self.cache
            .names
            .link(wanted.scope.as_scope(), digest)
            .is_some()
    }

    fn files(&self) -> usize {
        let entries = fs::read_dir(self.cache.scratch.path().join("partial")).unwrap();
        let is_file = |entry: &fs::DirEntry| entry.file_type().unwrap().is_file();
        entries.flatten().filter(is_file).count()
    }

    /// Waits until no upload has a file, or a thread.
    fn settle(&self) {
        let until = Instant::now() + PATIENCE;
        while self.files() > 0 || !self.is_idle() {
            assert!(Instant::now() < until, "{} files are left", self.files());
            std::thread::yield_now();
        }
    }

    fn is_idle(&self) -> bool {
        let free = |_| self.uploads.writers.take(Instant::now());
        let taken: Vec<_> = (0..WRITERS_MAX).map_while(free).collect();
        taken.len() == WRITERS_MAX
    }
}

#[test]
fn what_was_pushed_is_a_blob_of_the_repository() {
    let bench = Bench::new();
    let digest = digest_of(b"abcdef");
    bench.uploads.keep("1", Upload::default());
    let mut upload = bench.uploads.take("1", Some(0)).unwrap();
    bench.uploads.push(&mut upload, b"abc");
    // Upstream knows it by another name from now on.
    bench.uploads.keep("2", upload);
    assert!(bench.uploads.take("1", None).is_none());
    let mut upload = bench.uploads.take("2", Some(3)).unwrap();
    bench.uploads.push(&mut upload, b"");
    bench.uploads.push(&mut upload, b"def");
    assert_eq!(upload.length, 6);
    assert!(bench.commit(upload, &digest));
    let bytes = bench.cache.store.read(&digest, 100).unwrap().unwrap();
    assert_eq!(bytes, b"abcdef");
    assert!(bench.is_linked(&digest));
    assert_eq!(bench.cache.store.used_bytes(), 4096);
    bench.settle();
}

#[test]
fn an_empty_upload_is_a_blob_too() {
    let bench = Bench::new();
    let digest = digest_of(b"");
    assert!(!bench.commit(Upload::default(), &digest_of(b"x")));
    assert!(bench.commit(Upload::default(), &digest));
    assert_eq!(bench.cache.store.size(&digest), Some(0));
    assert!(bench.is_linked(&digest));
}

#[test]
fn bytes_of_another_digest_are_not_kept() {
    let bench = Bench::new();
    let digest = digest_of(b"abc");
    assert!(!bench.commit(bench.upload(&[b"abx"]), &digest));
    // Named by an algorithm that was not known while it was hashed.
    let long: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
    assert!(!bench.commit(bench.upload(&[b"abc"]), &long));
    bench.settle();
    assert!(!bench.cache.store.has(&digest));
    assert_eq!(bench.cache.store.used_bytes(), 0);
    // Nothing but the client's word says that upstream has it there.
    assert!(!bench.is_linked(&digest));
    let wanted = bench.wanted(&digest);
    assert!(!bench.uploads.commit(None, &wanted, true));
    assert!(bench.is_linked(&digest));
}

#[test]
fn an_upload_that_is_dropped_leaves_nothing() {
    let bench = Bench::new();
    drop(bench.upload(&[b"abc"]));
    bench.settle();
    bench.uploads.keep("1", bench.upload(&[b"abc"]));
    bench.uploads.forget("1");
    bench.settle();
    assert!(bench.uploads.take("1", None).is_none());
}

#[test]
fn an_upload_goes_on_where_it_stands_only() {
    let bench = Bench::new();
    bench.uploads.keep("1", bench.upload(&[b"abc"]));
    for start in [0, 2, 4] {
        assert!(bench.uploads.take("1", Some(start)).is_none());
    }
    assert!(bench.uploads.take("2", Some(0)).is_none());
    // One at a time.
    let upload = bench.uploads.take("1", Some(3)).unwrap();
    assert!(bench.uploads.take("1", Some(3)).is_none());
    assert!(bench.commit(upload, &digest_of(b"abc")));
}

#[test]
fn uploads_past_the_limit_are_not_kept() {
    let bench = Bench::new();
    let kept: Vec<Upload> = (0..WRITERS_MAX).map(|_| bench.upload(&[b"abc"])).collect();
    let mut further = bench.upload(&[b"abc"]);
    assert!(further.given_up);
    bench.uploads.push(&mut further, b"def");
    assert!(!bench.commit(further, &digest_of(b"abcdef")));
    drop(kept);
    bench.settle();
    assert!(bench.commit(bench.upload(&[b"abc"]), &digest_of(b"abc")));
}

#[test]
fn what_is_larger_than_the_quota_is_not_begun() {
    let bench = Bench::new();
    let mut upload = Upload::default();
    bench.uploads.expect(&mut upload, QUOTA + 1);
    // The thread ends; from then on nothing is taken.
    bench.settle();
    bench.uploads.push(&mut upload, b"abc");
    assert!(upload.given_up);
    assert!(!bench.commit(upload, &digest_of(b"abc")));
    assert_eq!(bench.files(), 0);
}

#[test]
fn a_disk_that_fails_fails_no_push() {
    let bench = Bench::new();
    let partial = bench.cache.scratch.path().join("partial");
    let away = bench.cache.scratch.path().join("away");
    fs::rename(&partial, &away).unwrap();
    let digest = digest_of(b"abc");
    assert!(!bench.commit(bench.upload(&[b"abc"]), &digest));
    fs::rename(&away, &partial).unwrap();
    // The second half fails: there is no folder to move it to.
    let blobs = bench.cache.scratch.path().join("blobs/sha256");
    fs::remove_dir(&blobs).unwrap();
    assert!(!bench.commit(bench.upload(&[b"abc"]), &digest));
    fs::create_dir(&blobs).unwrap();
    assert!(bench.commit(bench.upload(&[b"abc"]), &digest));
    bench.settle();
}

#[test]
fn a_disk_that_is_slow_delays_no_push_for_long() {
    let queue = Queue::default();
    let piece = vec![0; 64 << 10];
    let mut pushed = 0;
    // Nobody takes anything out.
    while queue.push(&piece, Duration::from_millis(1)).is_some() {
        pushed += piece.len();
        assert!(pushed < 4 << 20, "the queue has no end");
    }
    assert!(pushed >= 1 << 20, "{pushed}");
}

#[test]
fn the_number_of_uploads_known_is_limited() {
    let bench = Bench::new();
    for number in 0..SESSIONS_MAX * 2 {
        bench.uploads.keep(&number.to_string(), Upload::default());
    }
    assert_eq!(bench.uploads.sessions.locked().len(), SESSIONS_MAX);
    let newest = (SESSIONS_MAX * 2 - 1).to_string();
    assert!(bench.uploads.take(&newest, None).is_some());
    assert!(bench.uploads.take("0", None).is_none());
}
