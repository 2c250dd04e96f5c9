//! Tags over time: those that keep their digest (`FREEZE_TAGS`), and the log of those that moved.

use serde_json::Value;
use standin::{Image, Layer, Options, Server};

use crate::support::{Cached, Http, Response, Scratch, error_of};

const V1: &str = "/v2/team/app/manifests/v1";
const LATEST: &str = "/v2/team/app/manifests/latest";

fn frozen(settings: &[(&str, &str)]) -> Cached {
    let mut all = vec![
        ("CACHE_TAG_TTL", "0s"),
        ("FREEZE_TAGS", "team/app:v*,*/lib:*"),
    ];
    all.extend_from_slice(settings);
    Cached::on(Scratch::new(), Options::default(), &all)
}

fn put(cached: &Cached, tag: &str, text: &str) -> Image {
    let layer = Layer::of_files(&[("content", text.as_bytes())]);
    cached.standin.put_image("team/app", tag, &[layer])
}

fn push(cached: &Cached, target: &str, bytes: &[u8]) -> Response {
    Http::once(cached.address(), "PUT", target, &[], bytes)
}

fn assert_frozen(got: &Response, image: &Image) {
    let (code, text) = error_of(got);
    assert_eq!((got.status, code.as_str()), (403, "DENIED"), "{text}");
    assert!(text.contains("FREEZE_TAGS"), "{text}");
    assert!(text.contains(&image.manifest), "{text}");
}

#[test]
fn a_frozen_tag_keeps_its_digest_whatever_upstream_says() {
    let mut cached = frozen(&[]);
    let one = put(&cached, "v1", "one");
    put(&cached, "latest", "one");
    assert_eq!(cached.get(V1).body, one.bytes);
    cached.get(LATEST);
    let asked = cached.seen(Server::Registry).len();
    put(&cached, "v1", "two");
    let two = put(&cached, "latest", "two");
    for _ in 0..2 {
        let got = cached.get(V1);
        assert_eq!(
            (got.header("X-Cache"), &got.body),
            (Some("HIT"), &one.bytes)
        );
        assert!(got.header("Age").is_some());
        cached.stop();
        cached.start_again();
    }
    cached.standin.remove_tag("team/app", "v1");
    assert_eq!(cached.get(V1).body, one.bytes);
    assert_eq!(cached.seen(Server::Registry).len(), asked);
    assert_eq!(cached.get(LATEST).body, two.bytes, "others move");
}

#[test]
fn a_frozen_tag_whose_manifest_was_lost_is_fetched_by_its_digest() {
    let cached = frozen(&[]);
    let one = put(&cached, "v1", "one");
    assert_eq!(cached.get(V1).body, one.bytes);
    put(&cached, "v1", "two");
    let hex = &one.manifest["sha256:".len()..];
    std::fs::remove_file(cached.path("blobs/sha256").join(hex)).expect("a manifest");
    assert_eq!(cached.get(V1).body, one.bytes);
}

#[test]
fn each_media_type_and_cache_key_freezes_by_itself() {
    let cached = frozen(&[("CACHE_KEY", "$uri$http_x_team")]);
    let ask = |team: &str, accept: &str| {
        let fields = [("X-Team", team), ("Accept", accept)];
        cached.call("GET", V1, &fields)
    };
    let one = put(&cached, "v1", "one");
    assert_eq!(ask("a", "*/*").body, one.bytes);
    let (index, _) = cached.standin.put_index("team/app", "v1");
    assert_eq!(ask("a", "*/*").body, one.bytes);
    let of_index = "application/vnd.oci.image.index.v1+json";
    assert_eq!(
        ask("a", of_index).digest,
        index,
        "this type was not here yet"
    );
    assert_eq!(ask("b", "*/*").digest, index, "nor this key");
    let three = put(&cached, "v1", "three");
    assert_eq!(ask("b", "*/*").digest, index);
    assert_eq!(ask("c", "*/*").body, three.bytes);
}

#[test]
fn a_push_that_would_move_a_frozen_tag_is_refused() {
    let cached = frozen(&[]);
    let (one, other) = (put(&cached, "w1", "one"), put(&cached, "w2", "two"));
    // Nothing is cached yet: the first push freezes it.
    assert_eq!(push(&cached, V1, &one.bytes).status, 201);
    let asked = cached.seen(Server::Registry).len();
    assert_frozen(&push(&cached, V1, &other.bytes), &one);
    let by_digest = format!("/v2/team/app/manifests/{}?tag=v1", other.manifest);
    assert_frozen(&push(&cached, &by_digest, &other.bytes), &one);
    let own = format!("/v2/team/app/manifests/{}", one.manifest);
    for target in [V1, &own] {
        assert_frozen(&cached.call("DELETE", target, &[]), &one);
    }
    assert_eq!(
        cached.seen(Server::Registry).len(),
        asked,
        "upstream is not asked"
    );
    // What moves nothing passes.
    assert_eq!(push(&cached, V1, &one.bytes).status, 201);
    let by_digest = format!("/v2/team/app/manifests/{}?tag=v1", one.manifest);
    assert_eq!(push(&cached, &by_digest, &one.bytes).status, 201);
    assert_eq!(push(&cached, LATEST, &other.bytes).status, 201);
    assert_eq!(cached.get(V1).body, one.bytes);
    let large = vec![b' '; (4 << 20) + 1];
    assert_eq!(push(&cached, V1, &large).status, 413);
}

/// The moves that `/status.json` lists: tag, and both digests.
fn moves(cached: &Cached) -> Vec<(String, String, String)> {
    let document = cached.get("/status.json?images=0").text();
    let document: Value = serde_json::from_str(&document).expect("a document");
    let list = document["images"]["moves"]
        .as_array()
        .expect("a list")
        .clone();
    let word = |moved: &Value, name: &str| moved[name].as_str().expect("a text").to_owned();
    let all = list.iter().map(|moved| {
        assert_eq!(moved["repository"], "team/app");
        (word(moved, "tag"), word(moved, "from"), word(moved, "to"))
    });
    all.collect()
}

#[test]
fn tags_that_move_are_logged_by_pull_and_by_push() {
    let mut cached = Cached::start();
    let one = put(&cached, "latest", "one");
    cached.get(LATEST);
    cached.get(LATEST);
    assert_eq!(moves(&cached), []);
    let two = put(&cached, "latest", "two");
    cached.get(LATEST);
    let pulled = (
        "latest".to_owned(),
        one.manifest.clone(),
        two.manifest.clone(),
    );
    assert_eq!(moves(&cached).first(), Some(&pulled));
    // Pushed again it stays, pushed anew it moves.
    assert_eq!(push(&cached, LATEST, &two.bytes).status, 201);
    assert_eq!(moves(&cached).len(), 1);
    assert_eq!(push(&cached, LATEST, &one.bytes).status, 201);
    let pushed = (
        "latest".to_owned(),
        two.manifest.clone(),
        one.manifest.clone(),
    );
    cached.stop();
    cached.start_again();
    assert_eq!(moves(&cached), [pushed, pulled]);
    // From an image to an index.
    let (index, _) = cached.standin.put_index("team/app", "latest");
    assert_eq!(cached.get(LATEST).digest, index);
    assert_eq!(
        moves(&cached)[0],
        ("latest".to_owned(), one.manifest, index)
    );
    // And those whom it does not concern do not see it.
    cached.stop();
    cached.start_again_with(&[("ALLOW_REPOSITORIES", "other/*")]);
    assert_eq!(moves(&cached), []);
}
