//! `CACHE_MAX_SIZE`: held on disk at every moment, least recently used images first, and no client
//! that reads is cut.

use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use standin::{Image, Layer};

use crate::support::{Cached, SOON, wait_until};

const QUOTA: u64 = 20 << 20;
const MIB: u64 = 1 << 20;

fn settings() -> [(&'static str, &'static str); 2] {
    [("CACHE_MAX_SIZE", "20m"), ("CACHE_TAG_TTL", "forever")]
}

fn put(cached: &Cached, tag: &str, layers: &[(u64, u64)]) -> Image {
    let noise = |(size, seed): &(u64, u64)| Layer::of_noise(*size, *seed);
    let layers: Vec<Layer> = layers.iter().map(noise).collect();
    cached.standin.put_image("team/app", tag, &layers)
}

fn pull(cached: &Cached, tag: &str, image: &Image) {
    let got = cached.get(&format!("/v2/team/app/manifests/{tag}"));
    assert_eq!((got.status, &got.body), (200, &image.bytes));
    for digest in image.layers.iter().chain([&image.config]) {
        let got = cached.get(&format!("/v2/team/app/blobs/{digest}"));
        assert_eq!(
            (got.complete, &got.digest),
            (true, digest),
            "{:?}",
            got.fault
        );
    }
}

fn pull_and_wait(cached: &Cached, tag: &str, image: &Image) {
    pull(cached, tag, image);
    for digest in image.layers.iter().chain([&image.config]) {
        cached.wait_for_blob(digest);
    }
}

#[test]
fn the_quota_is_held_while_images_come() {
    let cached = Cached::with(&settings());
    let images: Vec<_> = (0..12)
        .map(|n| put(&cached, &n.to_string(), &[(3 * MIB, n), (MIB, 100 + n)]))
        .collect();
    let (over, most) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(cached.disk_use(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        for (n, image) in images.iter().enumerate() {
            pull(&cached, &n.to_string(), image);
        }
        cached.wait_for_blob(&images[11].config);
        over.store(true, Ordering::Relaxed);
    });
    let most = most.into_inner();
    assert!(
        most <= QUOTA && most > QUOTA / 2,
        "{most} bytes at the most"
    );
    // The last one is there, the first ones are not, and what is there is right.
    let blobs = cached.blobs();
    assert!(
        images[11]
            .layers
            .iter()
            .all(|layer| blobs.contains_key(layer))
    );
    assert!(
        images[0]
            .layers
            .iter()
            .all(|layer| !blobs.contains_key(layer))
    );
    // A blob larger than the quota passes, and drives nothing out.
    let large = cached.standin.add_blob_of("team/app", QUOTA + 1, 999);
    let got = cached.get(&format!("/v2/team/app/blobs/{large}"));
    assert_eq!(
        (&got.digest, got.header("X-Cache")),
        (&large, Some("BYPASS"))
    );
    assert_eq!(cached.blobs().len(), blobs.len());
}

#[test]
fn what_was_not_used_for_longest_goes_first_and_shared_layers_stay() {
    let mut cached = Cached::with(&settings());
    let shared = (2 * MIB, 50);
    let names = ["one", "two", "three"];
    let put_one = |(n, name): (u64, &&str)| put(&cached, name, &[shared, (4 * MIB, n)]);
    let images: Vec<Image> = (1..).zip(&names).map(put_one).collect();
    for (name, image) in names.iter().zip(&images) {
        pull_and_wait(&cached, name, image);
        // So that no two were used at the same time.
        std::thread::sleep(Duration::from_millis(20));
    }
    // The oldest is used once more; the order is known after a restart.
    let got = cached.get("/v2/team/app/manifests/one");
    assert_eq!(got.header("X-Cache"), Some("HIT"));
    cached.stop();
    cached.start_again();
    let fourth = put(&cached, "four", &[(7 * MIB, 60)]);
    pull_and_wait(&cached, "four", &fourth);
    wait_until("room was made", SOON, || cached.disk_use() <= QUOTA);
    let blobs = cached.blobs();
    let there = |image: &Image| blobs.contains_key(&image.layers[1]);
    assert_eq!([there(&images[0]), there(&images[1])], [true, false]);
    assert!(
        blobs.contains_key(&images[0].layers[0]),
        "a shared layer stays"
    );
    assert!(!blobs.contains_key(&images[1].manifest));
    // An image is there as a whole.
    cached.all_down();
    pull(&cached, "one", &images[0]);
    pull(&cached, "four", &fourth);
    assert_ne!(cached.get("/v2/team/app/manifests/two").status, 200);
}

#[test]
fn a_blob_that_is_being_read_is_not_cut() {
    let cached = Cached::with(&settings());
    let first = put(&cached, "first", &[(12 * MIB, 70)]);
    pull_and_wait(&cached, "first", &first);
    let target = format!("/v2/team/app/blobs/{}", first.layers[0]);
    let mut slow = cached.begin(&target, &[]);
    slow.read_to(1000);
    for n in 0..4 {
        let image = put(&cached, &n.to_string(), &[(6 * MIB, 80 + n)]);
        pull(&cached, &n.to_string(), &image);
        assert!(cached.disk_use() <= QUOTA);
    }
    assert!(cached.has(&first.layers[0]));
    let length = usize::try_from(12 * MIB).unwrap();
    let body = slow.whole(length).expect("all bytes");
    assert_eq!(standin::digest(&body), first.layers[0]);
}

/// Files and directories of the cache, and what they take on the disk.
fn on_disk(cached: &Cached) -> (usize, u64) {
    let (mut count, mut bytes) = (0, 0);
    let mut open = vec![cached.scratch.path().to_owned()];
    while let Some(path) = open.pop() {
        // What is evicted meanwhile is not there.
        let Ok(metadata) = path.symlink_metadata() else {
            continue;
        };
        (count, bytes) = (count + 1, bytes + metadata.blocks() * 512);
        let below = path.read_dir().into_iter().flatten().flatten();
        open.extend(below.map(|entry| entry.path()));
    }
    (count, bytes)
}

#[test]
fn partitions_that_clients_choose_are_bounded_and_count() {
    let quota = 3 * MIB / 2;
    let text = quota.to_string();
    let cached = Cached::with(&[
        ("CACHE_MAX_SIZE", text.as_str()),
        ("CACHE_KEY", "$request_uri"),
        ("CACHE_TAG_TTL", "forever"),
    ]);
    let image = put(&cached, "1.0", &[]);
    for n in 0..400 {
        let got = cached.get(&format!("/v2/team/app/manifests/1.0?n={n}"));
        assert_eq!((got.status, &got.body), (200, &image.bytes));
    }
    // 128 partitions with a folder and a file each, and the layout.
    let (files, _) = on_disk(&cached);
    assert!(files < 2 * 128 + 60, "{files}");
    wait_until("the quota holds", SOON, || on_disk(&cached).1 <= quota);
}

#[test]
fn a_manifest_of_thousands_of_digests_stays_in_the_quota() {
    let quota = 8 * MIB;
    let cached = Cached::with(&[("CACHE_MAX_SIZE", "8m"), ("CACHE_TAG_TTL", "forever")]);
    let layers: Vec<String> = (0..10_000)
        .map(|n| format!(r#"{{"digest":"sha256:{n:064x}","size":1}}"#))
        .collect();
    let manifest = format!(r#"{{"schemaVersion":2,"layers":[{}]}}"#, layers.join(","));
    let kind = "application/vnd.oci.image.manifest.v1+json";
    cached
        .standin
        .add_manifest("team/app", "1.0", kind, manifest.as_bytes());
    let got = cached.get("/v2/team/app/manifests/1.0");
    assert_eq!((got.status, got.text()), (200, manifest));
    wait_until("the quota holds", SOON, || on_disk(&cached).1 <= quota);
    let (files, _) = on_disk(&cached);
    assert!(files < 4_300, "{files}");
}
