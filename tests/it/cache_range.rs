//! Ranges and conditions, on cached blobs and on blobs that are being downloaded; and the
//! repositories that a cached blob belongs to.

use std::time::{Duration, Instant};

use standin::{Content, Fault, Match, Server};

use crate::support::{Cached, Response, SOON, error_of};

const SIZE: u64 = 100_000;

fn target(digest: &str) -> String {
    format!("/v2/team/app/blobs/{digest}")
}

fn hot() -> (Cached, String, Vec<u8>) {
    let cached = Cached::start();
    let (digest, bytes) = cold(&cached, SIZE, 1);
    assert_eq!(cached.get(&target(&digest)).digest, digest);
    cached.wait_for_blob(&digest);
    (cached, digest, bytes)
}

fn cold(cached: &Cached, size: u64, seed: u64) -> (String, Vec<u8>) {
    let digest = cached.standin.add_blob_of("team/app", size, seed);
    (digest, Content::Generated { size, seed }.to_vec())
}

fn ask(cached: &Cached, digest: &str, fields: &[(&str, &str)]) -> Response {
    let got = cached.call("GET", &target(digest), fields);
    assert!(got.complete, "{:?}", got.fault);
    got
}

/// What a range must get, of a blob of 100000 bytes.
const RANGES: &[(&str, u16, std::ops::Range<usize>)] = &[
    ("bytes=0-", 206, 0..100_000),
    ("bytes=0-0", 206, 0..1),
    ("bytes=10-19", 206, 10..20),
    ("bytes=99999-", 206, 99_999..100_000),
    ("bytes=50000-999999999", 206, 50_000..100_000),
    ("bytes=-10", 206, 99_990..100_000),
    ("bytes=-999999", 206, 0..100_000),
    ("bytes=100000-", 416, 0..0),
    ("bytes=18446744073709551616-", 416, 0..0),
    ("bytes=-0", 416, 0..0),
    ("bytes=0-1,5-6", 200, 0..100_000),
    ("bytes=9-5", 416, 0..0),
    ("bytes=a-b", 200, 0..100_000),
    ("bytes=-", 200, 0..100_000),
    ("bytes", 200, 0..100_000),
    ("lines=1-2", 200, 0..100_000),
];

fn check(got: &Response, range: &str, status: u16, bytes: &[u8], part: std::ops::Range<usize>) {
    assert_eq!(got.status, status, "{range}");
    if status == 416 {
        assert_eq!(error_of(got).0, "RANGE_INVALID", "{range}");
        // Registries name the blob in it, and the conformance suite looks.
        let digest = standin::digest(bytes);
        assert_eq!(got.header("Docker-Content-Digest"), Some(&*digest));
        // Nobody who keeps it may take it for the blob.
        for name in ["Cache-Control", "ETag"] {
            assert_eq!(got.header(name), None, "{range}");
        }
    } else {
        assert!(got.body == bytes[part.clone()], "{range}");
        let digest = standin::digest(bytes);
        assert_eq!(got.header("Docker-Content-Digest"), Some(&*digest));
        assert_eq!(got.header("ETag"), Some(&*format!("\"{digest}\"")));
    }
    let shown = match status {
        206 => Some(format!("bytes {}-{}/{SIZE}", part.start, part.end - 1)),
        416 => Some(format!("bytes */{SIZE}")),
        _ => None,
    };
    assert_eq!(got.header("Content-Range"), shown.as_deref(), "{range}");
    assert_eq!(got.header("Accept-Ranges"), Some("bytes"), "{range}");
}

#[test]
fn ranges_of_a_cached_blob() {
    let (cached, digest, bytes) = hot();
    let calls = cached.calls();
    for (range, status, part) in RANGES {
        let got = ask(&cached, &digest, &[("Range", range)]);
        check(&got, range, *status, &bytes, part.clone());
        assert_eq!(got.header("X-Cache"), Some("HIT"), "{range}");
    }
    let own = format!("\"{digest}\"");
    let part = ("Range", "bytes=5-9");
    assert_eq!(
        ask(&cached, &digest, &[part, ("If-Range", &own)]).status,
        206
    );
    let other = [part, ("If-Range", "\"another\"")];
    assert_eq!(ask(&cached, &digest, &other).body, bytes);
    let date = [part, ("If-Range", "Sun, 06 Nov 1994 08:49:37 GMT")];
    assert_eq!(ask(&cached, &digest, &date).status, 200);
    for tags in [
        own.as_str(),
        "*",
        &format!("W/{own}"),
        &format!("\"x\", {own}"),
    ] {
        let got = ask(&cached, &digest, &[("If-None-Match", tags)]);
        assert_eq!((got.status, got.length), (304, 0), "{tags}");
        assert_eq!(got.header("ETag"), Some(own.as_str()));
    }
    let head = cached.call("HEAD", &target(&digest), &[part]);
    assert_eq!(
        (head.status, head.header("Content-Length")),
        (200, Some("100000"))
    );
    assert_eq!(cached.calls(), calls);
    // An empty blob has no byte to give a range of.
    let (empty, _) = cold(&cached, 0, 2);
    for _ in 0..2 {
        let got = ask(&cached, &empty, &[("Range", "bytes=0-")]);
        assert_eq!((got.status, got.length), (200, 0));
        cached.wait_for_blob(&empty);
    }
}

#[test]
fn ranges_of_a_cold_blob_download_it_once() {
    let cached = Cached::start();
    for (seed, (range, status, part)) in (10..).zip(RANGES) {
        let (digest, bytes) = cold(&cached, SIZE, seed);
        let got = ask(&cached, &digest, &[("Range", range)]);
        check(&got, range, *status, &bytes, part.clone());
        assert_eq!(got.header("X-Cache"), Some("MISS"), "{range}");
        // What was kept is the whole, whatever part was asked for.
        cached.wait_for_blob(&digest);
        assert_eq!(cached.blobs()[&digest], SIZE);
        assert_eq!(cached.standin.count(Server::S3, "GET", &digest[7..]), 1);
    }
}

#[test]
fn a_head_of_a_cold_blob_downloads_nothing() {
    let cached = Cached::start();
    let (digest, _) = cold(&cached, SIZE, 3);
    let head = cached.head(&target(&digest));
    assert_eq!((head.status, head.length), (200, 0));
    assert_eq!(head.header("Content-Length"), Some("100000"));
    assert_eq!(head.header("Docker-Content-Digest"), Some(digest.as_str()));
    let absent = cached.head(&target(&format!("sha256:{}", "0".repeat(64))));
    assert_eq!(absent.status, 404);
    assert!(cached.blobs().is_empty() && cached.partials().is_empty());
    assert_eq!(
        cached
            .seen(Server::S3)
            .iter()
            .filter(|s| s.method == "GET")
            .count(),
        0
    );
}

#[test]
fn a_range_within_what_has_come_is_served_from_it() {
    let cached = Cached::start();
    let (digest, bytes) = cold(&cached, 3 << 20, 4);
    cached
        .standin
        .fault(Match::s3(), Fault::StallAfter(1 << 20));
    let mut first = cached.begin(&target(&digest), &[]);
    first.read_to(1 << 20);
    let got = ask(&cached, &digest, &[("Range", "bytes=1000-199999")]);
    assert_eq!((got.status, got.body == bytes[1000..200_000]), (206, true));
    // A suffix waits for its bytes.
    let suffix = cached.begin(&target(&digest), &[("Range", "bytes=-1000")]);
    assert_eq!(suffix.status(), "206");
    assert!(
        suffix.head.contains("bytes 3144728-3145727/3145728"),
        "{}",
        suffix.head
    );
    cached.release();
    assert_eq!(suffix.whole(1000).unwrap(), bytes[bytes.len() - 1000..]);
    assert_eq!(first.whole(bytes.len()).unwrap(), bytes);
    assert_eq!(cached.seen(Server::S3).len(), 1);
}

#[test]
fn a_range_far_ahead_is_fetched_on_its_own() {
    let cached = Cached::start();
    let (digest, bytes) = cold(&cached, 20 << 20, 5);
    cached
        .standin
        .fault(Match::s3(), Fault::StallAfter(1 << 20));
    let mut first = cached.begin(&target(&digest), &[]);
    first.read_to(1 << 20);
    let since = Instant::now();
    let got = ask(&cached, &digest, &[("Range", "bytes=15000000-15000999")]);
    assert_eq!((got.status, got.length), (206, 1000));
    assert!(got.body == bytes[15_000_000..15_001_000]);
    assert!(since.elapsed() < Duration::from_secs(10));
    let seen = cached.seen(Server::S3);
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[1].header("Range"), Some("bytes=15000000-15000999"));
    // The download goes on meanwhile.
    assert!(!cached.has(&digest));
    cached.release();
    assert!(first.whole(bytes.len()).unwrap() == bytes);
    cached.wait_for_blob(&digest);
    assert_eq!(cached.standin.sent(Server::S3), (20 << 20) + 1000);
}

#[test]
fn the_bytes_of_one_repository_are_anothers_when_upstream_says_so() {
    let (cached, digest, bytes) = hot();
    cached.standin.add_blob("second/app", &bytes);
    let (seen, sent) = (cached.calls(), cached.standin.sent(Server::S3));
    let second = format!("/v2/second/app/blobs/{digest}");
    for _ in 0..2 {
        let got = cached.get(&second);
        assert_eq!((got.header("X-Cache"), &got.body), (Some("HIT"), &bytes));
    }
    // One HEAD, by way of the blob host, and no byte again.
    let asked = &cached.standin.requests()[..];
    let blobs = asked.iter().filter(|s| s.target == second);
    let methods: Vec<&str> = blobs.map(|s| s.method.as_str()).collect();
    assert_eq!(methods, ["HEAD"], "{seen} calls before");
    assert_eq!(cached.standin.sent(Server::S3), sent);
    // Where upstream does not have it, the cache does not either.
    cached.standin.add_blob("third/app", b"x");
    let third = format!("/v2/third/app/blobs/{digest}");
    assert_eq!(cached.get(&third).status, 404);
    assert_eq!(cached.head(&third).status, 404);
    // Nor when upstream cannot be asked.
    cached.all_down();
    let since = Instant::now();
    assert_eq!(cached.get(&third).status, 504);
    assert_eq!(cached.get(&second).body, bytes);
    assert!(since.elapsed() < SOON);
}

#[test]
fn a_download_going_on_is_not_for_every_repository() {
    let cached = Cached::start();
    let (digest, bytes) = cold(&cached, 3 << 20, 6);
    cached.standin.add_blob("second/app", &bytes);
    cached.standin.add_blob("third/app", b"x");
    cached
        .standin
        .fault(Match::s3().method("GET"), Fault::StallAfter(1 << 20));
    let mut first = cached.begin(&target(&digest), &[]);
    first.read_to(1 << 20);
    let mut second = cached.begin(&format!("/v2/second/app/blobs/{digest}"), &[]);
    second.read_to(1 << 20);
    assert_eq!(
        cached.get(&format!("/v2/third/app/blobs/{digest}")).status,
        404
    );
    cached.release();
    assert_eq!(first.whole(bytes.len()).unwrap(), bytes);
    assert_eq!(second.whole(bytes.len()).unwrap(), bytes);
    assert_eq!(cached.standin.sent(Server::S3), 3 << 20);
}
