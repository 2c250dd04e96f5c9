//! The scrub: a blob that the disk has damaged is found without a client, is never served again,
//! and is fetched anew.

use std::fs;
use std::time::Duration;

use standin::{Image, Layer};

use crate::support::{Cached, SOON, wait_until};

/// Hashes everything once a second.
const OFTEN: [(&str, &str); 2] = [("CACHE_TAG_TTL", "forever"), ("SCRUB_INTERVAL", "1s")];

fn pulled(settings: &[(&str, &str)]) -> (Cached, Image) {
    let cached = Cached::with(settings);
    let layer = Layer::of_files(&[("hello", b"scrubbed")]);
    let image = cached.standin.put_image("team/app", "1.0", &[layer]);
    assert_eq!(cached.get("/v2/team/app/manifests/1.0").status, 200);
    for digest in image.layers.iter().chain([&image.config]) {
        assert_eq!(&cached.get(&blob(digest)).digest, digest);
        cached.wait_for_blob(digest);
    }
    (cached, image)
}

fn blob(digest: &str) -> String {
    format!("/v2/team/app/blobs/{digest}")
}

fn damage(cached: &Cached, digest: &str) {
    let path = cached.path("blobs/sha256").join(&digest[7..]);
    fs::write(path, "damaged").unwrap();
}

/// True when the file is there and has the right bytes.
fn is_whole(cached: &Cached, digest: &str) -> bool {
    let path = cached.path("blobs/sha256").join(&digest[7..]);
    fs::read(path).is_ok_and(|bytes| standin::digest(&bytes) == digest)
}

#[test]
fn a_damaged_blob_is_found_and_fetched_again() {
    let (cached, image) = pulled(&OFTEN);
    for digest in [&image.layers[0], &image.config, &image.manifest] {
        damage(&cached, digest);
        wait_until("the blob is whole again", SOON, || {
            is_whole(&cached, digest)
        });
        let said = format!("fetched again, check the disk digest={digest}");
        cached.proxy().wait_for_log(&said);
    }
    cached.proxy().wait_for_log("cache scrubbed");
    let status = cached.get("/status.json").text();
    assert!(status.contains("\"scrub_ended\":\"20"), "{status}");
    let metrics = cached.get("/metrics").text();
    for name in ["scrubbed_bytes_total", "scrub_end_timestamp_seconds"] {
        assert!(metrics.contains(name), "{name}");
    }
}

#[test]
fn without_upstream_a_damaged_blob_is_never_served() {
    let (cached, image) = pulled(&OFTEN);
    cached.all_down();
    let layer = &image.layers[0];
    let path = cached.path("blobs/sha256").join(&layer[7..]);
    damage(&cached, layer);
    wait_until("the damaged blob is removed", SOON, || !path.exists());
    assert!(cached.get(&blob(layer)).status >= 500);
    cached.all_up();
    wait_until("the client gets it again", SOON, || {
        &cached.get(&blob(layer)).digest == layer
    });
    wait_until("it is kept again", SOON, || is_whole(&cached, layer));
}

#[test]
fn a_scrub_goes_on_after_a_restart_and_can_be_off() {
    let (mut cached, image) = pulled(&[("CACHE_TAG_TTL", "forever"), ("SCRUB_INTERVAL", "0s")]);
    assert!(!cached.proxy().thread_names().contains(&"scrub".to_owned()));
    damage(&cached, &image.config);
    cached.stop();
    // Half a pass: the blobs before this digest were hashed by the process that is gone.
    let last = format!("sha256:{}", "f".repeat(64));
    let state = format!("{{\"started\":1000,\"ended\":null,\"last\":\"{last}\"}}");
    fs::write(cached.path("aws-ecr-proxy-scrub"), state).unwrap();
    cached.start_again_with(&[("SCRUB_INTERVAL", "1000h")]);
    let log = cached
        .proxy()
        .wait_for_log_within("cache scrubbed", Duration::from_secs(60));
    assert!(log.contains("blobs=0 damaged=0"), "{log}");
    let kept = fs::read_to_string(cached.path("aws-ecr-proxy-scrub")).unwrap();
    assert!(
        kept.contains("\"last\":null") && !kept.contains("\"ended\":null"),
        "{kept}"
    );
}
