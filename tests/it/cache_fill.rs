//! Downloads into the cache: one for all clients, served while it grows, published when verified,
//! and what upstream's faults on the way look like to the client and in the cache.

use std::time::{Duration, Instant};

use standin::{Content, Fault, Match, Server};

use crate::support::{Cached, Http, Response, SOON, error_of, in_parallel, wait_until};

const SIZE: u64 = 3 << 20;

fn target(digest: &str) -> String {
    format!("/v2/team/app/blobs/{digest}")
}

fn blob(cached: &Cached, size: u64, seed: u64) -> (String, Vec<u8>) {
    let digest = cached.standin.add_blob_of("team/app", size, seed);
    (digest, Content::Generated { size, seed }.to_vec())
}

fn x_cache(got: &Response) -> &str {
    let shown = got.header("X-Cache").unwrap_or_default();
    assert_eq!(got.header("X-Cache-Status"), got.header("X-Cache"));
    shown
}

#[test]
fn sixteen_clients_cost_one_download() {
    let cached = Cached::start();
    let (digest, _) = blob(&cached, SIZE, 1);
    cached.standin.throttle(Server::S3, Some(6 << 20));
    in_parallel(16, |_| {
        let got = cached.get(&target(&digest));
        assert_eq!((got.status, got.complete), (200, true), "{:?}", got.fault);
        assert_eq!((&got.digest, x_cache(&got)), (&digest, "MISS"));
        assert_eq!(got.header("Content-Length"), Some("3145728"));
        assert_eq!(got.header("Docker-Content-Digest"), Some(digest.as_str()));
    });
    assert_eq!(cached.seen(Server::Registry).len(), 1);
    assert_eq!(cached.seen(Server::S3).len(), 1);
    cached.wait_for_blob(&digest);
    // The second time it costs nothing.
    let calls = cached.calls();
    let got = cached.get(&target(&digest));
    assert_eq!((&got.digest, x_cache(&got)), (&digest, "HIT"));
    assert_eq!(got.header("ETag"), Some(format!("\"{digest}\"").as_str()));
    assert_eq!(cached.calls(), calls);
    cached.proxy().wait_for_log(" cache=hit");
}

#[test]
fn bug_a_blob_that_came_between_two_looks_was_fetched_again() {
    const BLOBS: u64 = 200;
    let cached = Cached::start();
    let blobs: Vec<String> = (0..BLOBS).map(|seed| blob(&cached, 500, seed).0).collect();
    // Each client comes to a blob in the moment in which the download of another ends.
    in_parallel(8, |_| {
        let mut http = Http::connect(cached.address());
        for digest in &blobs {
            let got = http.get(&target(digest));
            assert_eq!((got.status, &got.digest), (200, digest));
        }
    });
    assert_eq!(cached.seen(Server::S3).len() as u64, BLOBS);
}

#[test]
fn bytes_reach_the_client_before_upstream_has_sent_them_all() {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, SIZE, 2);
    cached.standin.fault(Match::s3(), Fault::StallAfter(0));
    // The head comes with upstream's head, and each byte when it is there.
    let begun = cached.begin(&target(&digest), &[]);
    assert_eq!(begun.status(), "200");
    cached.release();
    assert_eq!(begun.whole(bytes.len()).unwrap(), bytes);
    let (digest, bytes) = blob(&cached, SIZE, 3);
    cached
        .standin
        .fault(Match::s3(), Fault::StallAfter(1 << 20));
    let mut first = cached.begin(&target(&digest), &[]);
    first.read_to(1 << 20);
    assert_eq!(first.body, bytes[..1 << 20]);
    // One who comes now gets what is there, at once.
    let mut second = cached.begin(&target(&digest), &[]);
    second.read_to(1 << 20);
    assert_eq!(cached.partials().get(&digest), Some(&(1 << 20)));
    assert!(!cached.has(&digest));
    assert!(first.is_silent_for(Duration::from_millis(200)));
    cached.release();
    assert_eq!(first.whole(bytes.len()).unwrap(), bytes);
    assert_eq!(second.whole(bytes.len()).unwrap(), bytes);
    assert_eq!(cached.seen(Server::S3).len(), 2);
    cached.wait_for_blob(&digest);
}

/// The client has its head and `comes` bytes long before upstream's idle limit (60 s), and before
/// it stops to wait for a head (26 s).
fn small_blob_is_shown(fault: Fault, comes: usize) -> Cached {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, 40_000, 20);
    cached.standin.fault(Match::s3(), fault);
    let asked_at = Instant::now();
    let mut begun = cached.begin(&target(&digest), &[]);
    begun.read_to(comes);
    assert!(asked_at.elapsed() < Duration::from_secs(15));
    assert_eq!(begun.body[..comes], bytes[..comes]);
    assert!(!cached.has(&digest));
    cached
}

#[test]
fn bug_a_small_blob_that_stalled_was_shown_only_when_it_was_whole() {
    small_blob_is_shown(Fault::StallAfter(0), 0).release();
    small_blob_is_shown(Fault::StallAfter(20_000), 20_000).release();
}

#[test]
fn bug_a_small_blob_that_dripped_was_shown_only_when_it_was_whole() {
    let fault = Fault::Drip {
        bytes: 100,
        every: Duration::from_millis(500),
    };
    small_blob_is_shown(fault, 300);
}

#[test]
fn a_download_outlives_its_clients() {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, SIZE, 4);
    cached
        .standin
        .fault(Match::s3(), Fault::StallAfter(100_000));
    let mut clients: Vec<_> = (0..3)
        .map(|_| cached.begin(&target(&digest), &[]))
        .collect();
    clients[0].read_to(1000);
    drop(clients);
    cached.release();
    cached.wait_for_blob(&digest);
    let calls = cached.calls();
    let got = cached.get(&target(&digest));
    assert_eq!((x_cache(&got), &got.body), ("HIT", &bytes));
    assert_eq!(cached.calls(), calls);
}

#[test]
fn the_last_byte_is_held_until_the_blob_is_verified() {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, SIZE, 5);
    cached
        .standin
        .fault(Match::s3(), Fault::Chunked { cut_after: None });
    // Without a length nothing would tell its end from a cut: it passes, and is not kept.
    let got = cached.get(&target(&digest));
    assert_eq!((got.status, got.complete, &got.body), (200, true, &bytes));
    assert_eq!(x_cache(&got), "BYPASS");
    assert!(cached.blobs().is_empty() && cached.partials().is_empty());
    let (digest, bytes) = blob(&cached, SIZE, 6);
    cached
        .standin
        .fault(Match::s3(), Fault::StallAfter(SIZE - 1));
    let mut begun = cached.begin(&target(&digest), &[]);
    begun.read_to(bytes.len() - 1);
    assert!(begun.is_silent_for(Duration::from_millis(200)));
    assert!(!cached.has(&digest));
    cached.release();
    assert_eq!(begun.whole(bytes.len()).unwrap(), bytes);
}

#[test]
fn wrong_bytes_are_cut_and_not_kept() {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, SIZE, 7);
    let pick = Match::s3();
    cached.standin.fault(pick, Fault::WrongBytes);
    cached.standin.throttle(Server::S3, Some(12 << 20));
    in_parallel(4, |_| {
        let got = cached.try_get(&target(&digest)).unwrap();
        assert!(!got.complete && got.length < SIZE, "{}", got.length);
    });
    cached.proxy().wait_for_log("download failed");
    assert!(cached.blobs().is_empty());
    wait_until("nothing is left of it", SOON, || {
        cached.partials().is_empty()
    });
    // The next pull fetches anew, from the first byte.
    let before = cached.seen(Server::S3).len();
    let got = cached.get(&target(&digest));
    assert_eq!((got.complete, &got.body), (true, &bytes));
    let seen = cached.seen(Server::S3);
    assert_eq!(seen.len(), before + 1);
    assert_eq!(seen.last().unwrap().header("Range"), None);
    cached.wait_for_blob(&digest);
}

#[test]
fn bug_an_empty_body_was_passed_off_as_a_blob() {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, SIZE, 7);
    let empty = Fault::Status(200, Vec::new(), Vec::new());
    cached.standin.fault(Match::s3(), empty);
    let refused = cached.get(&target(&digest));
    assert_eq!((refused.status, refused.complete), (502, true));
    assert!(!cached.has(&digest));
    let got = cached.get(&target(&digest));
    assert_eq!((got.status, got.body), (200, bytes));
}

#[test]
fn a_wrong_length_is_cut_and_not_kept() {
    let cached = Cached::start();
    for (seed, delta) in [(8, -1), (9, -1_000_000), (10, 1), (11, 1_000_000)] {
        let (digest, bytes) = blob(&cached, SIZE, seed);
        cached.standin.fault(Match::s3(), Fault::WrongLength(delta));
        let got = cached.try_get(&target(&digest));
        let whole = got.is_some_and(|got| got.complete && got.digest == digest);
        assert!(!whole, "{delta}");
        assert!(!cached.has(&digest), "{delta}");
        // One that was announced too long may have come whole; one too short is of no use.
        wait_until("nothing wrong is left of it", SOON, || {
            let partial = cached.partials().get(&digest).copied();
            partial.is_none_or(|length| delta > 0 && length == SIZE)
        });
        let got = cached.get(&target(&digest));
        assert_eq!((got.complete, &got.body), (true, &bytes), "{delta}");
        cached.wait_for_blob(&digest);
    }
}

#[test]
fn a_length_that_is_always_too_high_is_given_up() {
    let cached = Cached::start();
    let (digest, _) = blob(&cached, 100_000, 12);
    let always = || Match::s3().always();
    cached.standin.fault(always(), Fault::WrongLength(1));
    let got = cached.try_get(&target(&digest));
    assert!(got.is_none_or(|got| !got.complete));
    cached.proxy().wait_for_log("download failed");
    assert!(cached.blobs().is_empty());
    let asked = cached.seen(Server::S3).len();
    assert!(asked <= 12, "{asked} requests for nothing");
}

#[test]
fn refusals_of_a_cold_blob_reach_all_waiting_clients() {
    let cached = Cached::start();
    for (seed, status) in [(20, 404), (21, 403), (22, 500), (23, 429)] {
        let (digest, bytes) = blob(&cached, 50_000, seed);
        let pick = Match::registry().method("GET").path(&digest);
        let fault = Fault::registry_error(status, "SOME_CODE", "upstream's own words");
        cached.standin.fault(pick.clone().always(), fault);
        in_parallel(8, |_| {
            let got = cached.get(&target(&digest));
            assert_eq!(got.status, status);
            let words = ("SOME_CODE".to_owned(), "upstream's own words".to_owned());
            assert_eq!(error_of(&got), words);
        });
        assert!(!cached.has(&digest));
        assert!(!cached.partials().contains_key(&digest));
        cached.standin.clear_faults();
        if status == 404 {
            // A 404 is remembered for a while: the registry is not asked again and again.
            let calls = cached.calls();
            assert_eq!(cached.get(&target(&digest)).status, 404);
            assert_eq!(cached.calls(), calls);
            continue;
        }
        let got = cached.get(&target(&digest));
        assert_eq!((got.status, &got.body), (200, &bytes));
    }
}

#[test]
fn a_download_that_never_began_leaves_nothing() {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, 50_000, 30);
    cached.standin.down(Server::Registry);
    for number in 0..5 {
        let digest = format!("sha256:{number:064}");
        let got = cached.get(&target(&digest));
        assert_eq!(got.status, 504, "{}", got.text());
    }
    assert_eq!(cached.partials().len(), 0, "{:?}", cached.partials());
    cached.standin.up(Server::Registry);
    let got = cached.get(&target(&digest));
    assert_eq!((got.status, &got.body), (200, &bytes));
}

#[test]
fn a_stalled_download_goes_on() {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, SIZE, 31);
    cached
        .standin
        .fault(Match::s3(), Fault::StallAfter(SIZE / 2));
    let mut begun = cached.begin(&target(&digest), &[]);
    begun.read_to(bytes.len() / 2);
    let since = Instant::now();
    assert!(begun.is_silent_for(Duration::from_secs(1)));
    // Others are served meanwhile.
    let (other, _) = blob(&cached, 50_000, 32);
    assert_eq!(cached.get(&target(&other)).digest, other);
    assert!(since.elapsed() < SOON);
    cached.release();
    assert_eq!(begun.whole(bytes.len()).unwrap(), bytes);
    assert_eq!(cached.standin.count(Server::S3, "GET", &digest[7..]), 1);
}

#[test]
fn a_404_of_one_repository_is_not_anothers() {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, 100_000, 33);
    let elsewhere = format!("/v2/other/app/blobs/{digest}");
    cached.standin.add_blob("other/app", b"x");
    // While upstream thinks about a repository that lacks the blob, one that has it is asked.
    let pick = Match::registry().path("/v2/other/app/blobs/");
    let slow = Fault::Drip {
        bytes: 40,
        every: Duration::from_millis(100),
    };
    cached.standin.fault(pick, slow);
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| cached.get(&elsewhere));
        cached
            .standin
            .wait_for(SOON, |seen| seen.iter().any(|s| s.target == elsewhere));
        let got = cached.get(&target(&digest));
        assert_eq!((got.status, &got.body), (200, &bytes), "{}", got.text());
        assert_eq!(refused.join().unwrap().status, 404);
    });
}

#[test]
fn a_digest_that_is_no_manifest_may_be_a_blob() {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, 100_000, 34);
    let manifest = format!("/v2/team/app/manifests/{digest}");
    assert_eq!(cached.get(&manifest).status, 404);
    let got = cached.get(&target(&digest));
    assert_eq!((got.status, &got.body), (200, &bytes));
    assert_eq!(cached.get(&manifest).status, 404);
}
