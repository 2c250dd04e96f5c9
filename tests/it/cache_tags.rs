//! Manifests through the cache: by tag and digest, freshness, what a push changes, `Accept`,
//! `CACHE_KEY`, and `index.json`.

use std::time::Duration;

use standin::image::{INDEX, MANIFEST};
use standin::{Fault, Layer, Match, Server};

use crate::support::{Cached, Http, Response, SOON, error_of, in_parallel, wait_until};

const TAG: &str = "/v2/team/app/manifests/1.0";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

fn x_cache(got: &Response) -> &str {
    assert_eq!(got.header("X-Cache-Status"), got.header("X-Cache"));
    got.header("X-Cache").unwrap_or_default()
}

fn by_digest(digest: &str) -> String {
    format!("/v2/team/app/manifests/{digest}")
}

fn put(cached: &Cached, text: &str) -> standin::Image {
    let layer = Layer::of_files(&[("hello", text.as_bytes())]);
    cached.standin.put_image("team/app", "1.0", &[layer])
}

#[test]
fn a_manifest_is_served_as_upstream_sent_it() {
    let cached = Cached::with(&[("CACHE_TAG_TTL", "1h")]);
    let image = put(&cached, "one");
    let own = format!("\"{}\"", image.manifest);
    let check = |got: &Response, how: &str| {
        assert_eq!((got.status, x_cache(got)), (200, how));
        assert_eq!(got.header("Content-Type"), Some(MANIFEST));
        assert_eq!(got.header("Docker-Content-Digest"), Some(&*image.manifest));
        assert_eq!(got.header("ETag"), Some(own.as_str()));
        let length = image.bytes.len().to_string();
        assert_eq!(got.header("Content-Length"), Some(length.as_str()));
    };
    let got = cached.get(TAG);
    check(&got, "MISS");
    assert_eq!(got.body, image.bytes);
    let calls = cached.calls();
    for target in [TAG.to_owned(), by_digest(&image.manifest)] {
        let got = cached.get(&target);
        check(&got, "HIT");
        assert_eq!(got.body, image.bytes);
        check(&cached.head(&target), "HIT");
        let got = cached.call("GET", &target, &[("If-None-Match", &own)]);
        assert_eq!((got.status, got.length), (304, 0));
        assert_eq!(got.header("Docker-Content-Digest"), Some(&*image.manifest));
    }
    assert_eq!(cached.calls(), calls);
    // A digest and a tag that are not there, and a manifest that is not what its digest says.
    assert_eq!(cached.get("/v2/team/app/manifests/2.0").status, 404);
    let wrong = put(&cached, "wrong");
    let pick = Match::registry().path(&wrong.manifest);
    cached.standin.fault(pick, Fault::WrongBytes);
    assert_eq!(cached.get(&by_digest(&wrong.manifest)).status, 502);
    assert!(!cached.has(&wrong.manifest));
    assert_eq!(cached.get(&by_digest(&wrong.manifest)).body, wrong.bytes);
}

#[test]
fn a_head_by_tag_is_enough_to_pull_without_upstream() {
    let mut cached = Cached::start();
    let image = put(&cached, "head");
    let head = cached.head(TAG);
    assert_eq!((head.status, head.length), (200, 0));
    assert!(cached.has(&image.manifest));
    for digest in [&image.config, &image.layers[0]] {
        let blob = format!("/v2/team/app/blobs/{digest}");
        assert_eq!(&cached.get(&blob).digest, digest);
        cached.wait_for_blob(digest);
    }
    cached.all_down();
    cached.stop();
    cached.start_again();
    let got = cached.get(TAG);
    assert_eq!(
        (got.status, x_cache(&got), &got.body),
        (200, "STALE", &image.bytes)
    );
    let got = cached.get(&by_digest(&image.manifest));
    assert_eq!(
        (got.status, x_cache(&got), &got.body),
        (200, "HIT", &image.bytes)
    );
    for digest in [&image.config, &image.layers[0]] {
        let got = cached.get(&format!("/v2/team/app/blobs/{digest}"));
        assert_eq!((&got.digest, x_cache(&got)), (digest, "HIT"));
    }
}

#[test]
fn after_its_time_a_tag_costs_one_head_however_many_ask() {
    let cached = Cached::with(&[("CACHE_TAG_TTL", "3s")]);
    let image = put(&cached, "ttl");
    assert_eq!(x_cache(&cached.get(TAG)), "MISS");
    let calls = cached.calls();
    assert_eq!(x_cache(&cached.get(TAG)), "HIT");
    assert_eq!(cached.calls(), calls);
    std::thread::sleep(Duration::from_millis(3100));
    // Slow enough that all 32 come while it is being answered.
    let pick = Match::registry().method("HEAD");
    let slow = Fault::Drip {
        bytes: 1,
        every: Duration::from_millis(1),
    };
    cached.standin.fault(pick, slow);
    cached.standin.throttle(Server::Registry, Some(1500));
    in_parallel(32, |_| {
        let got = cached.get(TAG);
        assert_eq!((got.status, &got.body), (200, &image.bytes));
        assert!(
            ["REVALIDATED", "HIT"].contains(&x_cache(&got)),
            "{}",
            x_cache(&got)
        );
    });
    cached.standin.throttle(Server::Registry, None);
    let seen = cached.seen(Server::Registry);
    let methods: Vec<&str> = seen[calls..].iter().map(|s| s.method.as_str()).collect();
    assert_eq!(methods, ["HEAD"]);
    assert_eq!(x_cache(&cached.get(TAG)), "HIT");
}

#[test]
fn a_tag_that_moved_is_fetched_and_one_that_went_is_gone() {
    let cached = Cached::start();
    let first = put(&cached, "first");
    assert_eq!(cached.get(TAG).body, first.bytes);
    assert_eq!(x_cache(&cached.get(TAG)), "REVALIDATED");
    let second = put(&cached, "second");
    let got = cached.get(TAG);
    assert_eq!((x_cache(&got), &got.body), ("MISS", &second.bytes));
    assert_eq!(got.header("Docker-Content-Digest"), Some(&*second.manifest));
    // The old one is still there by its digest.
    assert_eq!(cached.get(&by_digest(&first.manifest)).body, first.bytes);
    cached.standin.remove_tag("team/app", "1.0");
    let got = cached.get(TAG);
    assert_eq!(
        (got.status, error_of(&got).0.as_str()),
        (404, "MANIFEST_UNKNOWN")
    );
    // It does not come back by an outage.
    cached.all_down();
    wait_until("the 404 is forgotten, or not", SOON, || {
        [404, 504].contains(&cached.get(TAG).status)
    });
}

#[test]
fn a_tag_may_be_kept_for_ever() {
    let mut cached = Cached::with(&[("CACHE_TAG_TTL", "forever")]);
    let first = put(&cached, "first");
    assert_eq!(cached.get(TAG).body, first.bytes);
    put(&cached, "second");
    cached.stop();
    cached.start_again();
    let calls = cached.calls();
    let got = cached.get(TAG);
    assert_eq!((x_cache(&got), &got.body), ("HIT", &first.bytes));
    assert_eq!(cached.calls(), calls);
}

#[test]
fn an_answer_is_of_a_type_that_the_client_takes() {
    let cached = Cached::with(&[("CACHE_TAG_TTL", "1h")]);
    let oci = put(&cached, "types");
    let ask = |accept: &str| cached.call("GET", TAG, &[("Accept", accept)]);
    assert_eq!(ask(DOCKER).status, 404);
    // One that accepts what is there is not answered with the other's 404.
    let got = ask(MANIFEST);
    assert_eq!((got.status, &got.body), (200, &oci.bytes));
    // Upstream converts for a client that takes docker's types alone.
    let docker = br#"{"schemaVersion":2,"mediaType":"docker"}"#;
    let headers = vec![("Content-Type".to_owned(), DOCKER.to_owned())];
    let both = format!("{DOCKER}, application/vnd.docker.distribution.manifest.list.v2+json");
    let pick = Match::registry().path("/manifests/1.0");
    cached
        .standin
        .fault(pick, Fault::Status(200, headers, docker.to_vec()));
    let got = ask(&both);
    assert_eq!((got.status, &got.body[..]), (200, &docker[..]));
    assert_eq!(got.header("Content-Type"), Some(DOCKER));
    // Both are kept.
    let calls = cached.calls();
    for (accept, bytes) in [
        (MANIFEST, &oci.bytes[..]),
        (DOCKER, &docker[..]),
        ("x/y, */*", b""),
    ] {
        let got = ask(accept);
        assert_eq!(x_cache(&got), "HIT", "{accept}");
        assert!(accept.contains('*') || got.body == bytes, "{accept}");
    }
    assert_eq!(cached.calls(), calls);
}

#[test]
fn a_tag_is_asked_for_under_the_type_of_what_is_held_too() {
    let cached = Cached::with(&[("CACHE_TAG_TTL", "0s")]);
    put(&cached, "one");
    assert_eq!(cached.get(TAG).status, 200);
    // docker-registry says 404 of an OCI manifest to who takes everything, and the tag would go.
    for (accept, sent) in [
        (None, format!("{MANIFEST}, */*")),
        (Some("*/*"), format!("{MANIFEST}, */*")),
        (
            Some("application/*;q=0.5"),
            format!("{MANIFEST}, application/*;q=0.5"),
        ),
        (Some(MANIFEST), MANIFEST.to_owned()),
    ] {
        let fields: Vec<_> = accept
            .map(|accept| ("Accept", accept))
            .into_iter()
            .collect();
        let got = cached.call("GET", TAG, &fields);
        assert_eq!((got.status, x_cache(&got)), (200, "REVALIDATED"), "{sent}");
        let head = cached.seen(Server::Registry).pop().unwrap();
        assert_eq!(
            (head.method.as_str(), head.header("Accept")),
            ("HEAD", Some(&*sent))
        );
    }
}

#[test]
fn an_index_is_whole_and_its_children_come_on_demand() {
    let mut cached = Cached::start();
    let (index, images) = cached.standin.put_index("team/app", "2.0");
    let got = cached.get("/v2/team/app/manifests/2.0");
    assert_eq!(got.header("Content-Type"), Some(INDEX));
    assert_eq!(got.digest, index);
    assert_eq!(cached.blobs().len(), 1);
    let child = by_digest(&images[0].manifest);
    assert_eq!(x_cache(&cached.get(&child)), "MISS");
    assert_eq!(x_cache(&cached.get(&child)), "HIT");
    // Looking at the index again takes nothing from the child.
    assert_eq!(cached.get("/v2/team/app/manifests/2.0").digest, index);
    cached.all_down();
    cached.stop();
    cached.start_again();
    assert_eq!(cached.get("/v2/team/app/manifests/2.0").digest, index);
    assert_eq!(cached.get(&child).body, images[0].bytes);
    // Without a token 503, with one 504: in no case a 404, which upstream alone can say.
    let absent = cached.get(&by_digest(&images[1].manifest));
    assert!([503, 504].contains(&absent.status), "{}", absent.status);
}

#[test]
fn a_push_through_us_is_seen_at_once() {
    let cached = Cached::with(&[("CACHE_TAG_TTL", "forever")]);
    let first = put(&cached, "first");
    assert_eq!(cached.get(TAG).body, first.bytes);
    let next = "/v2/team/app/manifests/next";
    assert_eq!(cached.get(next).status, 404);
    let calls = cached.calls();
    assert_eq!(cached.get(next).status, 404);
    assert_eq!(cached.calls(), calls, "a 404 is remembered");
    let second = cached.standin.put_image("team/app", "sha256:", &[]);
    let typed = [("Content-Type", MANIFEST)];
    for target in [TAG, next] {
        let pushed = Http::once(cached.address(), "PUT", target, &typed, &second.bytes);
        assert_eq!(pushed.status, 201, "{}", pushed.text());
        assert_eq!(cached.get(target).body, second.bytes);
    }
    // A push that upstream refuses changes nothing.
    let refused = Http::once(cached.address(), "PUT", TAG, &typed, b"no json");
    assert_eq!(refused.status, 400);
    let calls = cached.calls();
    assert_eq!(x_cache(&cached.get(TAG)), "HIT");
    assert_eq!(cached.calls(), calls);
    // What is deleted through us is gone, by digest and by the tags that led to it.
    let deleted = cached.call("DELETE", &by_digest(&second.manifest), &[]);
    assert_eq!(deleted.status, 202, "{}", deleted.text());
    for target in [TAG, next, &by_digest(&second.manifest)] {
        assert_eq!(cached.get(target).status, 404, "{target}");
    }
}

#[test]
fn a_deleted_tag_is_gone_in_every_partition() {
    let cached = Cached::with(&[
        ("CACHE_TAG_TTL", "forever"),
        ("CACHE_KEY", "$uri$http_x_team"),
    ]);
    let image = put(&cached, "partition");
    let team = [("X-Team", "one")];
    assert_eq!(cached.call("GET", TAG, &team).status, 200);
    let deleted = cached.call("DELETE", &by_digest(&image.manifest), &[]);
    assert_eq!(deleted.status, 202, "{}", deleted.text());
    assert_eq!(cached.call("GET", TAG, &team).status, 404);
    assert_eq!(
        std::fs::read_dir(cached.path("blobs/sha256"))
            .unwrap()
            .count(),
        1,
        "the bytes are eviction's"
    );
    cached.all_down();
    assert_ne!(cached.call("GET", TAG, &team).status, 200);
}

#[test]
fn the_cache_key_partitions_tags_and_shares_blobs() {
    let cached = Cached::with(&[
        ("CACHE_TAG_TTL", "forever"),
        ("CACHE_KEY", "$uri$http_x_team"),
    ]);
    let first = put(&cached, "first");
    let ask = |team: &str| cached.call("GET", TAG, &[("X-Team", team)]);
    assert_eq!(ask("one").body, first.bytes);
    let second = put(&cached, "second");
    assert_eq!(
        (x_cache(&ask("one")), ask("one").body),
        ("HIT", first.bytes)
    );
    assert_eq!(
        (x_cache(&ask("two")), ask("two").body),
        ("MISS", second.bytes.clone())
    );
    assert_eq!(x_cache(&ask("two")), "HIT");
    let blob = format!("/v2/team/app/blobs/{}", second.config);
    let get = |team: &str| cached.call("GET", &blob, &[("X-Team", team)]);
    assert_eq!(x_cache(&get("one")), "MISS");
    cached.wait_for_blob(&second.config);
    assert_eq!(x_cache(&get("two")), "HIT");
}

fn names_in_index(cached: &Cached) -> Vec<String> {
    let text = std::fs::read(cached.path("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(index["schemaVersion"], 2);
    let manifests = index["manifests"].as_array().unwrap();
    let name = |manifest: &serde_json::Value| {
        let digest = manifest["digest"].as_str().unwrap().to_owned();
        assert_eq!(cached.blobs()[&digest], manifest["size"].as_u64().unwrap());
        let name = &manifest["annotations"]["org.opencontainers.image.ref.name"];
        name.as_str().unwrap().to_owned()
    };
    manifests.iter().map(name).collect()
}

#[test]
fn index_json_names_what_is_cached() {
    let mut cached = Cached::start();
    put(&cached, "index");
    let host = cached.standin.registry_url()["http://".len()..].to_owned();
    assert_eq!(cached.get(TAG).status, 200);
    let named = [format!("{host}/team/app:1.0")];
    wait_until("index.json names the tag", SOON, || {
        names_in_index(&cached) == named
    });
    cached.standin.put_image("team/app", "2.0", &[]);
    assert_eq!(cached.get("/v2/team/app/manifests/2.0").status, 200);
    cached.stop();
    let mut names = names_in_index(&cached);
    names.sort();
    assert_eq!(names, [named[0].clone(), format!("{host}/team/app:2.0")]);
    let layout = std::fs::read_to_string(cached.path("oci-layout")).unwrap();
    assert_eq!(layout.trim(), r#"{"imageLayoutVersion":"1.0.0"}"#);
}
