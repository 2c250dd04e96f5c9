//! A disk that is too small, fills up, or takes nothing: no pull fails by it.

use std::fs::File;
use std::io::Write as _;

use standin::{Content, Fault, Match, Options, Server};

use crate::support::{Cached, SOON, Scratch, wait_until};

fn target(digest: &str) -> String {
    format!("/v2/team/app/blobs/{digest}")
}

fn on_tmpfs(options: &str) -> Cached {
    let scratch = Scratch::tmpfs(options);
    Cached::on(scratch, Options::default(), &[("CACHE_TAG_TTL", "0s")])
}

/// Takes all that is left of a file system.
fn fill_up(cached: &Cached) -> std::path::PathBuf {
    let path = cached.path("filler");
    let mut file = File::create(&path).unwrap();
    for size in [1 << 16, 1 << 12] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
    path
}

#[test]
fn a_blob_larger_than_the_disk_is_streamed_through() {
    const SIZE: u64 = 300 << 20;
    let cached = on_tmpfs("size=64m");
    let large = cached.standin.add_blob_of("team/app", SIZE, 1);
    let small = cached.standin.add_blob_of("team/app", 100_000, 2);
    let got = cached.get(&target(&large));
    assert_eq!((got.status, got.complete, got.length), (200, true, SIZE));
    assert_eq!(
        (&got.digest, got.header("X-Cache")),
        (&large, Some("BYPASS"))
    );
    assert_eq!(cached.seen(Server::S3).len(), 1, "its reply was used");
    let range = [("Range", "bytes=100-199")];
    let got = cached.call("GET", &target(&large), &range);
    assert_eq!((got.status, got.length), (206, 100));
    assert!(cached.partials().is_empty());
    assert_eq!(cached.get(&target(&small)).digest, small);
    cached.wait_for_blob(&small);
    let got = cached.get(&target(&small));
    assert_eq!(got.header("X-Cache"), Some("HIT"));
    assert!(cached.proxy().peak_rss_kib() < 64 << 10);
}

#[test]
fn a_disk_that_fills_up_in_mid_download_cuts_nobody() {
    const SIZE: u64 = 12 << 20;
    let cached = on_tmpfs("size=24m");
    let digest = cached.standin.add_blob_of("team/app", SIZE, 3);
    let bytes = Content::Generated {
        size: SIZE,
        seed: 3,
    }
    .to_vec();
    let pick = Match::s3().method("GET");
    cached.standin.fault(pick, Fault::StallAfter(SIZE / 4));
    let mut readers: Vec<_> = (0..4)
        .map(|_| cached.begin(&target(&digest), &[]))
        .collect();
    for reader in &mut readers {
        reader.read_to(bytes.len() / 8);
    }
    let part = cached.begin(&target(&digest), &[("Range", "bytes=4000000-5999999")]);
    let filler = fill_up(&cached);
    cached.release();
    for reader in readers {
        assert!(reader.whole(bytes.len()).expect("all bytes") == bytes);
    }
    assert!(part.whole(2_000_000).expect("all bytes") == bytes[4_000_000..6_000_000]);
    let line = cached.proxy().wait_for_log("the cache cannot be written");
    assert!(line.contains("No space left"), "{line}");
    assert!(cached.blobs().is_empty());
    wait_until("the download is gone", SOON, || {
        cached.partials().is_empty()
    });
    // Each went on by itself, from where it was.
    let seen = cached.seen(Server::S3);
    let own = seen.iter().filter(|s| s.header("Range").is_some());
    assert_eq!(own.count(), 5);
    // With the disk still full all goes through, manifests too.
    let image = cached.standin.put_image("team/app", "1.0", &[]);
    let got = cached.get("/v2/team/app/manifests/1.0");
    assert_eq!((got.status, &got.body), (200, &image.bytes));
    assert_eq!(cached.get(&target(&digest)).digest, digest);
    // It was said once, not with every write.
    let log = cached.proxy().log();
    assert_eq!(log.matches("the cache cannot be written").count(), 1);
    // And with room again it is kept.
    std::fs::remove_file(filler).unwrap();
    assert_eq!(cached.get(&target(&digest)).digest, digest);
    cached.wait_for_blob(&digest);
}

#[test]
fn a_cache_on_a_full_disk_still_serves_what_it_holds() {
    let mut cached = on_tmpfs("size=8m");
    let digest = cached.standin.add_blob_of("team/app", 100_000, 4);
    let image = cached.standin.put_image("team/app", "1.0", &[]);
    assert_eq!(cached.get(&target(&digest)).digest, digest);
    cached.wait_for_blob(&digest);
    assert_eq!(cached.get("/v2/team/app/manifests/1.0").body, image.bytes);
    cached.stop();
    fill_up(&cached);
    cached.all_down();
    cached.start_again();
    let got = cached.get(&target(&digest));
    assert_eq!((&got.digest, got.header("X-Cache")), (&digest, Some("HIT")));
    let got = cached.get("/v2/team/app/manifests/1.0");
    assert_eq!(
        (&got.body, got.header("X-Cache")),
        (&image.bytes, Some("STALE"))
    );
}

#[test]
fn a_directory_that_goes_away_cuts_nobody() {
    let cached = Cached::start();
    let hot = cached.standin.add_blob_of("team/app", 100_000, 5);
    assert_eq!(cached.get(&target(&hot)).digest, hot);
    cached.wait_for_blob(&hot);
    // The index may be written into it meanwhile.
    wait_until("the directory is gone", SOON, || {
        let _ = std::fs::remove_dir_all(cached.scratch.path());
        !cached.scratch.path().exists()
    });
    let cold = cached.standin.add_blob_of("team/app", 100_000, 6);
    let image = cached.standin.put_image("team/app", "1.0", &[]);
    for digest in [&hot, &cold] {
        let got = cached.get(&target(digest));
        assert_eq!((got.status, &got.digest), (200, digest), "{}", got.text());
    }
    let got = cached.get("/v2/team/app/manifests/1.0");
    assert_eq!((got.status, &got.body), (200, &image.bytes));
    assert_eq!(cached.get("/healthz").status, 200);
}
