//! Blobs whose files were damaged on disk: whatever was done to them, and whenever, no client gets
//! damaged bytes as a whole blob, and the blob is fetched again.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use standin::{Content, Server};

use crate::support::{Cached, Response};

const SIZE: u64 = 1 << 20;
/// Larger than what is hashed before it is answered.
const LARGE: u64 = 80 << 20;

fn target(digest: &str) -> String {
    format!("/v2/team/app/blobs/{digest}")
}

fn file(cached: &Cached, digest: &str) -> PathBuf {
    cached.path("blobs/sha256").join(&digest[7..])
}

/// A blob that is in the cache.
fn cached_blob(cached: &Cached, size: u64, seed: u64) -> String {
    let digest = cached.standin.add_blob_of("team/app", size, seed);
    assert!(is_whole(cached, &digest, &cached.get(&target(&digest))));
    cached.wait_for_blob(&digest);
    digest
}

fn is_whole(cached: &Cached, digest: &str, got: &Response) -> bool {
    assert_eq!(got.status, 200, "{}", cached.proxy().log());
    got.complete && got.digest == digest
}

const DAMAGES: [&str; 4] = ["truncated", "emptied", "lengthened", "flipped"];

fn damage(path: &PathBuf, how: &str) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let size = file.metadata().unwrap().len();
    match how {
        "truncated" => file.set_len(size - 1000).unwrap(),
        "emptied" => file.set_len(0).unwrap(),
        "lengthened" => file.set_len(size + 1).unwrap(),
        _ => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, size / 2).unwrap();
            file.write_all_at(&[byte[0] ^ 1], size / 2).unwrap();
        }
    }
}

#[test]
fn a_blob_that_is_damaged_while_we_run_is_fetched_again() {
    let cached = Cached::start();
    for (seed, how) in (1..).zip(DAMAGES) {
        let digest = cached_blob(&cached, SIZE, seed);
        let calls = cached.seen(Server::S3).len();
        damage(&file(&cached, &digest), how);
        let got = cached.get(&target(&digest));
        assert!(is_whole(&cached, &digest, &got), "{how}");
        assert_eq!(cached.seen(Server::S3).len(), calls + 1, "{how}");
        cached.wait_for_blob(&digest);
        cached.proxy().wait_for_log("cached blob is damaged");
        // Nobody doubts the new one.
        let calls = cached.calls();
        assert!(is_whole(&cached, &digest, &cached.get(&target(&digest))));
        assert_eq!(cached.calls(), calls, "{how}");
    }
}

#[test]
fn a_blob_that_was_damaged_before_the_start_is_fetched_again() {
    let mut cached = Cached::start();
    let digests: Vec<_> = (1..)
        .zip(DAMAGES)
        .map(|(seed, how)| (cached_blob(&cached, SIZE, seed), how))
        .collect();
    cached.stop();
    for (digest, how) in &digests {
        damage(&file(&cached, digest), how);
    }
    cached.start_again();
    for (digest, how) in &digests {
        // A HEAD does not fetch, and must not show the length of the damaged file.
        let head = cached.head(&target(digest));
        let length = head.header("Content-Length").map(str::to_owned);
        assert_eq!(length, Some(SIZE.to_string()), "{how}");
        let got = cached.get(&target(digest));
        assert!(is_whole(&cached, digest, &got), "{how}");
    }
}

#[test]
fn a_large_damaged_blob_is_never_sent_whole() {
    let mut cached = Cached::start();
    for (seed, how) in (1..).zip(["truncated", "flipped"]) {
        let digest = cached_blob(&cached, LARGE, seed);
        cached.stop();
        damage(&file(&cached, &digest), how);
        cached.start_again();
        // What the first client gets is cut, or was fetched anew; the second finds a new one.
        let first = cached.get(&target(&digest));
        assert!(
            !first.complete || is_whole(&cached, &digest, &first),
            "{how}"
        );
        let second = cached.get(&target(&digest));
        assert!(is_whole(&cached, &digest, &second), "{how}");
    }
}

#[test]
fn a_blob_without_a_known_length_is_served_and_checked() {
    // As an older version, or somebody's tool, has put it there.
    let mut cached = Cached::start();
    let bytes = Content::Generated {
        size: SIZE,
        seed: 9,
    }
    .to_vec();
    let digest = cached_blob(&cached, SIZE, 9);
    cached.stop();
    let registry = cached.standin.registry_url();
    let registry = registry.trim_start_matches("http://");
    let link = cached.path("repos").join(registry);
    let link = link.join("team/app/_links").join(&digest[7..]);
    fs::write(&link, "-\n").unwrap();
    fs::write(file(&cached, &digest), &bytes).unwrap();
    cached.start_again();
    let calls = cached.seen(Server::S3).len();
    assert!(is_whole(&cached, &digest, &cached.get(&target(&digest))));
    assert_eq!(cached.seen(Server::S3).len(), calls);
    // Now it is known.
    assert_eq!(fs::read_to_string(&link).unwrap(), format!("{SIZE}\n"));
}
