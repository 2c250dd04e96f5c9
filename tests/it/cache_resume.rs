//! Downloads that break off: resumed where they stopped, within a run and after `kill -9`.

use std::time::Duration;

use standin::{Content, Fault, Match, Seen, Server};

use crate::support::{Cached, SOON, wait_until};

const SIZE: u64 = 3 << 20;
const HALF: u64 = SIZE / 2;
/// Bytes that may have been on the way twice: what was in buffers when a connection ended.
const IN_FLIGHT: u64 = 512 << 10;

fn target(digest: &str) -> String {
    format!("/v2/team/app/blobs/{digest}")
}

fn blob(cached: &Cached, seed: u64) -> (String, Vec<u8>) {
    let digest = cached.standin.add_blob_of("team/app", SIZE, seed);
    let bytes = Content::Generated { size: SIZE, seed }.to_vec();
    (digest, bytes)
}

fn ranges(seen: &[Seen]) -> Vec<Option<&str>> {
    seen.iter().map(|seen| seen.header("Range")).collect()
}

/// The resumed request is answered with `fault`; the client still gets the right bytes.
fn resumed_with(seed: u64, fault: Option<Fault>, answers: usize) -> Cached {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, seed);
    cached.standin.fault(Match::s3(), Fault::CutAfter(HALF));
    if let Some(fault) = fault {
        cached.standin.fault(Match::s3(), fault);
    }
    let got = cached.get(&target(&digest));
    assert_eq!((got.status, got.complete), (200, true), "{:?}", got.fault);
    assert_eq!(got.body, bytes);
    let seen = cached.seen(Server::S3);
    let from_half = format!("bytes={HALF}-");
    assert_eq!(ranges(&seen)[..2], [None, Some(from_half.as_str())]);
    assert_eq!(seen.len(), answers);
    assert_eq!(cached.standin.pending_faults(), 0);
    cached.wait_for_blob(&digest);
    cached
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let cached = resumed_with(1, None, 2);
    assert_eq!(cached.standin.sent(Server::S3), SIZE);
}

#[test]
fn a_resumed_request_that_is_answered_whole_starts_again() {
    let bytes = Content::Generated {
        size: SIZE,
        seed: 2,
    }
    .to_vec();
    resumed_with(2, Some(Fault::Status(200, Vec::new(), bytes)), 2);
}

#[test]
fn another_range_than_was_asked_for_starts_again() {
    let bytes = Content::Generated {
        size: SIZE,
        seed: 3,
    }
    .to_vec();
    let wrong = format!("bytes {}-{}/{SIZE}", HALF - 1, SIZE - 1);
    let headers = vec![("Content-Range".to_owned(), wrong)];
    let part = bytes[bytes.len() / 2 - 1..].to_vec();
    resumed_with(3, Some(Fault::Status(206, headers, part)), 3);
}

#[test]
fn a_refused_range_starts_again() {
    let headers = vec![("Content-Range".to_owned(), format!("bytes */{SIZE}"))];
    resumed_with(4, Some(Fault::Status(416, headers, Vec::new())), 3);
}

#[test]
fn a_presigned_url_that_expired_meanwhile_is_asked_for_again() {
    let cached = resumed_with(5, Some(Fault::PresignExpired), 3);
    assert_eq!(cached.seen(Server::Registry).len(), 3);
    assert_eq!(
        ranges(&cached.seen(Server::S3)).last(),
        Some(&Some("bytes=1572864-"))
    );
}

#[test]
fn an_upstream_that_is_down_for_a_moment_is_no_end() {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, 6);
    cached.standin.fault(Match::s3(), Fault::StallAfter(HALF));
    let mut begun = cached.begin(&target(&digest), &[]);
    begun.read_to(bytes.len() / 2);
    cached.standin.down(Server::S3);
    cached.release();
    cached.proxy().wait_for_log("download broke off");
    std::thread::sleep(Duration::from_millis(300));
    cached.standin.up(Server::S3);
    assert_eq!(begun.whole(bytes.len()).unwrap(), bytes);
    cached.wait_for_blob(&digest);
    assert!(cached.standin.sent(Server::S3) <= SIZE + IN_FLIGHT);
}

#[test]
fn a_download_that_fails_again_and_again_is_cut_and_goes_on_next_time() {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, 7);
    cached.standin.fault(Match::s3(), Fault::CutAfter(HALF));
    let pick = Match::s3().always();
    cached.standin.fault(pick, Fault::status(503));
    let got = cached.try_get(&target(&digest)).unwrap();
    assert_eq!((got.status, got.complete), (200, false));
    assert_eq!(
        (got.length, &got.body[..]),
        (HALF, &bytes[..bytes.len() / 2])
    );
    assert!(cached.blobs().is_empty());
    assert_eq!(cached.partials().get(&digest), Some(&HALF));
    cached.standin.clear_faults();
    let before = cached.seen(Server::S3).len();
    let got = cached.get(&target(&digest));
    assert_eq!((got.complete, &got.body), (true, &bytes));
    let seen = cached.seen(Server::S3);
    assert_eq!(ranges(&seen[before..]), [Some("bytes=1572864-")]);
    assert_eq!(cached.standin.sent(Server::S3), SIZE);
    cached.wait_for_blob(&digest);
}

#[test]
fn an_upstream_that_never_gets_further_is_given_up() {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, 8);
    // It knows no ranges, and breaks off at the same byte every time.
    let field = ("Content-Length".to_owned(), SIZE.to_string());
    let mut raw = format!("HTTP/1.1 200 OK\r\n{}: {}\r\n\r\n", field.0, field.1).into_bytes();
    raw.extend_from_slice(&bytes[..100_000]);
    cached.standin.fault(Match::s3().always(), Fault::Raw(raw));
    let got = cached.try_get(&target(&digest)).unwrap();
    assert_eq!(
        (got.status, got.complete, got.length),
        (200, false, 100_000)
    );
    assert_eq!(got.body, bytes[..100_000]);
    let asked = cached.seen(Server::S3).len();
    assert!(asked <= 8, "{asked} requests without getting further");
    assert!(cached.blobs().is_empty());
}

#[test]
fn a_killed_proxy_goes_on_where_it_was() {
    let mut cached = Cached::start();
    let (digest, bytes) = blob(&cached, 9);
    cached.standin.fault(Match::s3(), Fault::StallAfter(HALF));
    let mut begun = cached.begin(&target(&digest), &[]);
    begun.read_to(bytes.len() / 2);
    cached.kill();
    assert!(begun.whole(bytes.len()).is_none());
    cached.release();
    assert!(cached.blobs().is_empty());
    assert_eq!(cached.partials().get(&digest), Some(&HALF));
    cached.start_again();
    let got = cached.get(&target(&digest));
    assert_eq!((got.complete, &got.body), (true, &bytes));
    let seen = cached.seen(Server::S3);
    assert_eq!(ranges(&seen).last(), Some(&Some("bytes=1572864-")));
    cached.wait_for_blob(&digest);
}

#[test]
fn a_download_that_lacked_its_end_alone_is_not_fetched_again() {
    let mut cached = Cached::start();
    let (digest, bytes) = blob(&cached, 10);
    cached.kill();
    // All bytes were there when the proxy was killed, and the blob was not yet published.
    let partial = cached.path("partial/sha256").join(&digest[7..]);
    std::fs::write(&partial, &bytes).unwrap();
    cached.start_again();
    let got = cached.get(&target(&digest));
    assert_eq!((got.status, got.complete), (200, true), "{}", got.text());
    assert_eq!(got.body, bytes);
    assert_eq!(cached.standin.sent(Server::S3), 0);
    cached.wait_for_blob(&digest);
    // What is longer than the blob, or is wrong, is fetched anew.
    for (seed, length) in [(11, bytes.len()), (12, bytes.len() + 1)] {
        let (digest, bytes) = blob(&cached, seed);
        let partial = cached.path("partial/sha256").join(&digest[7..]);
        std::fs::write(&partial, vec![7; length]).unwrap();
        let got = cached.get(&target(&digest));
        assert_eq!((got.status, got.complete), (200, true), "{}", got.text());
        assert_eq!(got.body, bytes);
        cached.wait_for_blob(&digest);
    }
}

#[test]
fn partial_bytes_that_are_wrong_cut_one_pull_alone() {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, 13);
    let partial = cached.path("partial/sha256").join(&digest[7..]);
    std::fs::write(&partial, vec![7; 100_000]).unwrap();
    let got = cached.try_get(&target(&digest)).unwrap();
    assert!(!got.complete);
    wait_until("nothing is left of it", SOON, || {
        cached.partials().is_empty()
    });
    assert!(cached.blobs().is_empty());
    let got = cached.get(&target(&digest));
    assert_eq!((got.complete, &got.body), (true, &bytes));
}

#[test]
fn wrong_bytes_of_before_a_restart_are_never_part_of_a_whole_blob() {
    let cached = Cached::start();
    let (digest, bytes) = blob(&cached, 14);
    let partial = cached.path("partial/sha256").join(&digest[7..]);
    std::fs::write(&partial, vec![7; 100_000]).unwrap();
    // The reader gets the wrong bytes; then the download breaks off and begins anew.
    cached.standin.fault(Match::s3(), Fault::CutAfter(HALF));
    let whole = Fault::Status(200, Vec::new(), bytes.clone());
    cached.standin.fault(Match::s3(), whole);
    let got = cached.try_get(&target(&digest)).unwrap();
    assert!(!got.complete, "wrong bytes in a body that looks whole");
    cached.wait_for_blob(&digest);
    let got = cached.get(&target(&digest));
    assert_eq!((got.complete, &got.body), (true, &bytes));
}

/// A number from the environment, for who repeats a test or makes it longer.
fn given(name: &str) -> Option<u64> {
    let mut given = std::env::vars_os().filter(|(other, _)| other == name);
    given.next().map(|(_, value)| {
        let text = value.to_str().expect("a number");
        text.parse().expect("a number")
    })
}

/// Bytes that a process has read, from files and sockets (proc(5): `rchar`).
fn bytes_read(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let found = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    found.unwrap().parse().unwrap()
}

#[test]
fn a_resumed_download_does_not_read_what_it_has() {
    const LARGE: u64 = 24 << 20;
    let mut cached = Cached::start();
    let digest = cached.standin.add_blob_of("team/app", LARGE, 77);
    let blob = Content::Generated {
        size: LARGE,
        seed: 77,
    };
    let stall = |after| cached.standin.fault(Match::s3(), Fault::StallAfter(after));
    stall(LARGE / 3 * 2);
    let begun = cached.begin(&target(&digest), &[]);
    let had = || cached.partials().get(&digest).copied().unwrap_or_default();
    wait_until("most of it is there", SOON, || had() > LARGE / 2);
    stall(1 << 20);
    cached.kill();
    drop(begun);
    cached.standin.release();
    let first = cached.partials()[&digest];
    cached.start_again();
    let range = format!("bytes={first}-");
    let begun = cached.begin(&target(&digest), &[("Range", &range)]);
    assert_eq!(begun.status(), "206");
    wait_until("it goes on", SOON, || {
        cached
            .partials()
            .get(&digest)
            .is_some_and(|now| *now > first)
    });
    let read = bytes_read(cached.proxy().pid());
    assert!(read < LARGE / 4, "{read} bytes read, with {first} at hand");
    cached.release();
    let rest = blob.to_vec().split_off(first.try_into().unwrap());
    assert_eq!(begun.whole(rest.len()).unwrap(), rest);
    cached.wait_for_blob(&digest);
}

/// `KILLS` says how often; 5 unless said otherwise. `SEED` says when: it is printed on failure.
#[test]
fn kills_at_random_points_never_leave_a_wrong_blob() {
    let kills = given("KILLS").unwrap_or(5);
    let mut cached = Cached::start();
    cached.standin.throttle(Server::S3, Some(8 << 20));
    let mut random = given("SEED").unwrap_or_else(|| std::process::id().into());
    #[expect(
        clippy::print_stderr,
        reason = "the harness shows it with the failed test"
    )]
    {
        eprintln!("SEED={random} repeats the moments of the kills");
    }
    for seed in 100..100 + kills {
        let (digest, bytes) = blob(&cached, seed);
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let begun = cached.begin(&target(&digest), &[]);
        std::thread::sleep(Duration::from_millis((random >> 33) % 420));
        cached.kill();
        drop(begun);
        // What it sent last has been seen by now, or never will be.
        wait_until("its connections are gone", SOON, || {
            let open = [Server::Registry, Server::S3].map(|of| cached.standin.connections(of));
            open == [0, 0]
        });
        let had = cached.partials().get(&digest).copied().unwrap_or_default();
        let complete = cached.has(&digest);
        let (asked, sent) = (
            cached.seen(Server::S3).len(),
            cached.standin.sent(Server::S3),
        );
        cached.start_again();
        let got = cached.get(&target(&digest));
        let told = (got.status, got.body.len(), &got.fault, cached.proxy().log());
        assert!(got.complete && got.body == bytes, "had {had}: {told:?}");
        cached.wait_for_blob(&digest);
        let seen = cached.seen(Server::S3);
        let from = format!("bytes={had}-");
        let expected = match (complete, had) {
            (true, _) => vec![],
            (false, 0) => vec![None],
            (false, _) => vec![Some(from.as_str())],
        };
        // Killed between the link and the blob, it has nothing left to ask.
        let whole = had == SIZE && seen.len() == asked;
        assert!(whole || ranges(&seen[asked..]) == expected, "had {had}");
        if !complete {
            let fetched = cached.standin.sent(Server::S3) - sent;
            assert!(fetched <= SIZE - had + IN_FLIGHT, "{fetched} after {had}");
        }
    }
}
