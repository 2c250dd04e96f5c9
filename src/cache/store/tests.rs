//! Blobs come whole, go whole, and are counted.

use std::io::{Seek as _, SeekFrom, Write as _};

use super::*;
use crate::cache::scratch::Scratch;
use crate::hash::{Hasher, sha256_hex};

fn open(scratch: &Scratch) -> Arc<Store> {
    Arc::new(Store::open(scratch.path()).unwrap())
}

fn digest_of(bytes: &[u8]) -> Digest {
    format!("sha256:{}", sha256_hex(bytes)).parse().unwrap()
}

/// Downloads as a fill does.
fn fill(store: &Store, digest: &Digest, bytes: &[u8]) -> File {
    let mut partial = store.partial(digest).unwrap();
    partial.file.seek(SeekFrom::End(0)).unwrap();
    partial.file.write_all(bytes).unwrap();
    store.add_used(i64::try_from(bytes.len()).unwrap());
    partial.file
}

/// What a small file takes on the disk.
const BLOCK: u64 = 4096;

/// What a count from nothing finds.
fn counted(store: &Store) -> u64 {
    store.count(&mut |_| ()).unwrap();
    store.used_bytes()
}

#[test]
fn bug_a_blob_that_could_not_be_moved_in_was_taken_off_the_count() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    store.put(&digest_of(b"here"), b"here").unwrap();
    let digest = digest_of(b"manifest");
    fs::create_dir(store.blob_path(&digest)).unwrap();
    assert!(store.put(&digest, b"manifest").is_err());
    assert_eq!((store.blob_count(), store.used_bytes()), (1, BLOCK));
}

#[test]
fn put_bytes_are_read_back() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let digest = digest_of(b"manifest");
    assert!(store.blob(&digest).unwrap().is_none());
    assert!(store.read(&digest, 100).unwrap().is_none());
    assert!(!store.has(&digest));
    store.put(&digest, b"manifest").unwrap();
    store.put(&digest, b"manifest").unwrap();
    assert_eq!(store.used_bytes(), BLOCK);
    assert_eq!(store.size(&digest), Some(8));
    assert_eq!(store.read(&digest, 8).unwrap().unwrap(), b"manifest");
    let error = store.read(&digest, 7).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    let blob = store.blob(&digest).unwrap().unwrap();
    assert_eq!(blob.size, 8);
    store.remove(&digest).unwrap();
    store.remove(&digest).unwrap();
    assert_eq!(store.used_bytes(), 0);
    // Removed, yet whole for a reader that has it open.
    let mut bytes = Vec::new();
    (&*blob.file).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"manifest");
}

#[test]
fn a_long_digest_has_its_own_folder() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let digest: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
    let mut hasher = Hasher::new(&digest);
    hasher.update(b"x");
    let digest: Digest = hasher.finish().parse().unwrap();
    store.put(&digest, b"x").unwrap();
    assert!(
        scratch
            .path()
            .join("blobs/sha512")
            .join(digest.hex())
            .exists()
    );
    assert_eq!(store.read(&digest, 1).unwrap().unwrap(), b"x");
}

#[test]
fn a_damaged_manifest_is_removed_and_counted() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    for bad in [b"manifesT".as_slice(), b"manif", b""] {
        let digest = digest_of(b"manifest");
        store.put(&digest, b"manifest").unwrap();
        let path = scratch.path().join("blobs/sha256").join(digest.hex());
        fs::write(&path, bad).unwrap();
        let before = metrics::CACHE_BLOBS_DAMAGED.get();
        assert_eq!(store.read(&digest, 100).unwrap(), None);
        assert!(metrics::CACHE_BLOBS_DAMAGED.get() > before);
        assert!(!path.exists());
    }
}

#[test]
fn a_download_goes_on_after_a_restart_and_is_published() {
    let scratch = Scratch::new();
    let digest = digest_of(b"hello world");
    {
        let store = open(&scratch);
        drop(fill(&store, &digest, b"hello "));
        assert!(!store.has(&digest));
    }
    let store = open(&scratch);
    assert_eq!(store.used_bytes(), 6);
    assert_eq!(store.partial(&digest).unwrap().length, 6);
    let file = fill(&store, &digest, b"world");
    assert_eq!(store.used_bytes(), 11);
    store.publish(&digest, &file).unwrap();
    assert_eq!(store.read(&digest, 100).unwrap().unwrap(), b"hello world");
    assert_eq!(store.used_bytes(), BLOCK);
    assert_eq!(counted(&store), BLOCK);
    // A download that begins now finds the blob.
    let found = store.partial(&digest).unwrap();
    assert_eq!((found.length, found.is_ours), (11, false));
    assert_eq!(
        fs::read_dir(scratch.path().join("partial/sha256"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn of_two_openers_of_a_download_one_writes_and_the_other_takes_over() {
    let scratch = Scratch::new();
    let (store, other) = (open(&scratch), open(&scratch));
    let digest = digest_of(b"hello world");
    let file = fill(&store, &digest, b"hello ");
    let followed = other.partial(&digest).unwrap();
    assert_eq!((followed.length, followed.is_ours), (6, false));
    other.discard_idle_partial(&digest).unwrap();
    let taken = || other.take_over(&digest, &followed.file).unwrap();
    assert_eq!(taken(), None);
    file.unlock().unwrap();
    assert_eq!(taken(), Some(true));
    assert!(!store.partial(&digest).unwrap().is_ours);
    other.publish(&digest, &followed.file).unwrap();
    assert_eq!(taken(), Some(false));
}

#[test]
fn a_restarted_download_is_another_file() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let digest = digest_of(b"right");
    let mut old = fill(&store, &digest, b"wrong bytes");
    let mut new = store.fresh_partial(&digest).unwrap();
    assert_eq!(store.used_bytes(), 0);
    new.write_all(b"right").unwrap();
    store.add_used(5);
    let mut bytes = String::new();
    old.rewind().unwrap();
    old.read_to_string(&mut bytes).unwrap();
    assert_eq!(bytes, "wrong bytes");
    // The old file must never come under the blob's name.
    assert!(store.publish(&digest, &old).is_err());
    assert!(!store.has(&digest));
    store.publish(&digest, &new).unwrap();
    assert_eq!(store.read(&digest, 5).unwrap().unwrap(), b"right");
    assert_eq!(store.used_bytes(), BLOCK);
}

#[test]
fn a_discarded_download_is_not_published() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let digest = digest_of(b"x");
    let file = fill(&store, &digest, b"x");
    store.discard_partial(&digest);
    store.discard_partial(&digest);
    assert_eq!(store.used_bytes(), 0);
    assert!(store.publish(&digest, &file).is_err());
    assert!(!store.has(&digest));
    assert_eq!(counted(&store), 0);
}

#[test]
fn a_failed_put_keeps_nothing() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let digest = digest_of(b"x");
    let folder = scratch.path().join("blobs/sha256");
    fs::remove_dir(&folder).unwrap();
    fs::write(&folder, "in the way").unwrap();
    assert!(store.put(&digest, b"x").is_err());
    assert_eq!(store.used_bytes(), 0);
    assert!(store.blob(&digest).is_err());
    assert!(!store.has(&digest));
}

#[test]
fn a_count_finds_what_an_earlier_run_left() {
    let scratch = Scratch::new();
    {
        let store = open(&scratch);
        store.put(&digest_of(b"one"), b"one").unwrap();
        drop(fill(&store, &digest_of(b"two"), b"tw"));
    }
    fs::write(scratch.path().join("blobs/sha256/not-ours"), "12345").unwrap();
    fs::write(scratch.path().join("partial/temp-0.1-7"), "12345").unwrap();
    let store = open(&scratch);
    // Before the count: only the downloads, and what comes.
    assert_eq!(store.used_bytes(), 2);
    store.put(&digest_of(b"three"), b"three").unwrap();
    let own = scratch.path().join("partial").join(files::temp_name());
    fs::write(&own, "").unwrap();
    assert!(!store.tidy().unwrap());
    assert!(own.exists() && !scratch.path().join("partial/temp-0.1-7").exists());
    assert_eq!(counted(&store), 2 * BLOCK + 2);
    assert_eq!(counted(&store), 2 * BLOCK + 2);
    // A hand in the directory: the next count sees it.
    fs::remove_file(store.blob_path(&digest_of(b"one"))).unwrap();
    fs::remove_file(store.partial_path(&digest_of(b"two"))).unwrap();
    assert_eq!(store.used_bytes(), 2 * BLOCK + 2);
    assert_eq!(counted(&store), BLOCK);
}

#[test]
fn what_arrives_while_a_count_runs_is_counted_once() {
    let scratch = Scratch::new();
    {
        let store = open(&scratch);
        store.put(&digest_of(b"old"), b"old").unwrap();
    }
    let store = open(&scratch);
    let mut came = false;
    let during = &mut |_| {
        // `count` holds no lock here, and the folder of the longer digests is yet to be read.
        if !std::mem::replace(&mut came, true) {
            store.put(&digest_of(b"four"), b"four").unwrap();
            let long: Digest = {
                let mut hasher = Hasher::new(&format!("sha512:{:0128}", 0).parse().unwrap());
                hasher.update(b"fives");
                hasher.finish().parse().unwrap()
            };
            store.put(&long, b"fives").unwrap();
        }
    };
    store.count(during).unwrap();
    assert_eq!(store.used_bytes(), 3 * BLOCK);
}

#[test]
fn readers_are_counted() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let digest = digest_of(b"x");
    assert!(!store.is_read(&digest));
    let one = store.reading(&digest);
    let two = store.reading(&digest);
    drop(one);
    assert!(store.is_read(&digest));
    drop(two);
    assert!(!store.is_read(&digest));
    assert!(store.blob(&digest).unwrap().is_none());
    assert!(!store.is_read(&digest));
    store.put(&digest, b"x").unwrap();
    let blob = store.blob(&digest).unwrap();
    assert!(store.is_read(&digest));
    drop(blob);
    assert!(!store.is_read(&digest));
}

#[test]
fn the_disk_says_what_is_free() {
    let scratch = Scratch::new();
    assert!(open(&scratch).free_bytes().unwrap() > 0);
}

#[test]
fn a_blob_that_is_renewed_looks_new() {
    let scratch = Scratch::new();
    let (store, digest) = (open(&scratch), digest_of(b"layer"));
    store.put(&digest, b"layer").unwrap();
    let file = File::options().append(true).open(store.blob_path(&digest));
    let file = file.unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    store.renew(&digest);
    let age = file.metadata().unwrap().modified().unwrap().elapsed();
    assert!(age.unwrap_or_default() < Duration::from_secs(3600));
    let gone = digest_of(b"gone");
    store.renew(&gone);
    assert!(!store.has(&gone));
}
