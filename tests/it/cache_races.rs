//! Answers and changes that cross: an answer from before a push or a deletion leaves nothing in the
//! cache after it, and changes elsewhere do not get in the way.

use standin::image::MANIFEST;
use standin::{Content, Fault, Match, Options, Quirks, digest};

use crate::support::{Cached, Http, Response, SOON, Scratch, wait_until};

const TAG: &str = "/v2/team/app/manifests/1.0";
const NEW: &[u8] = br#"{"schemaVersion":2,"layers":[],"new":true}"#;

/// In front of a registry that deletes whatever it is told to.
fn cached_with(settings: &[(&str, &str)]) -> Cached {
    let options = Options {
        quirks: Quirks::none(),
        ..Options::default()
    };
    Cached::on(Scratch::new(), options, settings)
}

fn cached() -> Cached {
    cached_with(&[("CACHE_TAG_TTL", "forever")])
}

fn manifests(method: &str) -> Match {
    Match::registry().method(method).path("/manifests/")
}

fn blobs(method: &str) -> Match {
    Match::registry().method(method).path("/blobs/")
}

fn by_digest(digest: &str) -> String {
    format!("/v2/team/app/manifests/{digest}")
}

fn delete(cached: &Cached, target: &str) {
    let got = cached.call("DELETE", target, &[]);
    assert_eq!(got.status, 202, "{target}: {}", got.text());
}

fn put(cached: &Cached, target: &str, headers: &[(&str, &str)], manifest: &[u8]) -> Response {
    let kind = [("Content-Type", MANIFEST)];
    let headers = [&kind, headers].concat();
    let got = Http::once(cached.address(), "PUT", target, &headers, manifest);
    assert_eq!(got.status, 201, "{}", got.text());
    got
}

/// Asks, makes a change while the registry's answer to what `pick` picks is on its way, and gives
/// the answer.
fn cross<T: Send>(
    cached: &Cached,
    pick: Match,
    ask: impl FnOnce() -> T + Send,
    change: impl FnOnce(),
) -> T {
    cached.standin.fault(pick, Fault::Late);
    std::thread::scope(|scope| {
        let asking = scope.spawn(ask);
        let is_late = || cached.standin.stalled() > 0;
        wait_until("the registry has been asked", SOON, is_late);
        change();
        cached.standin.release();
        asking.join().unwrap()
    })
}

/// Neither now, nor when the registry is out of reach.
fn is_gone(cached: &Cached, target: &str) {
    assert_eq!(cached.get(target).status, 404, "{target}");
    cached.all_down();
    assert_ne!(cached.get(target).status, 200, "{target}");
    cached.all_up();
}

#[test]
fn a_tag_that_is_deleted_while_it_is_asked_for_is_not_kept() {
    let cached = cached();
    cached.standin.put_image("team/app", "1.0", &[]);
    let ask = || cached.get(TAG);
    let got = cross(&cached, manifests("GET"), ask, || delete(&cached, TAG));
    assert_eq!(got.status, 200);
    is_gone(&cached, TAG);
}

#[test]
fn a_manifest_that_is_deleted_while_it_is_asked_for_is_not_kept() {
    for by_tag in [false, true] {
        let cached = cached();
        let image = cached.standin.put_image("team/app", "1.0", &[]);
        let own = by_digest(&image.manifest);
        let target = if by_tag { TAG } else { &own };
        let ask = || cached.get(target);
        let got = cross(&cached, manifests("GET"), ask, || delete(&cached, &own));
        assert_eq!(got.status, 200, "{target}");
        is_gone(&cached, &own);
        is_gone(&cached, TAG);
    }
}

#[test]
fn a_manifest_that_is_deleted_while_it_is_pushed_is_not_kept() {
    let cached = cached();
    let own = by_digest(&digest(NEW));
    let push = || put(&cached, TAG, &[], NEW);
    // Upstream has taken it, and its answer comes after the one to the deletion.
    cross(&cached, manifests("PUT"), push, || delete(&cached, &own));
    is_gone(&cached, &own);
    is_gone(&cached, TAG);
}

#[test]
fn a_tag_that_is_pushed_while_it_is_asked_for_is_the_new_one() {
    let cached = cached();
    cached.standin.put_image("team/app", "1.0", &[]);
    let ask = || cached.get(TAG);
    let old = cross(&cached, manifests("GET"), ask, || {
        put(&cached, TAG, &[], NEW);
    });
    assert_ne!(old.body, NEW);
    assert_eq!(cached.get(TAG).body, NEW);
    assert_eq!(cached.get(TAG).header("X-Cache"), Some("HIT"));
}

#[test]
fn a_tag_that_changes_while_it_is_confirmed_is_the_new_one() {
    let cached = cached_with(&[("CACHE_TAG_TTL", "0s")]);
    cached.standin.put_image("team/app", "1.0", &[]);
    let ask = || cached.get(TAG);
    assert_eq!(ask().status, 200);
    cross(&cached, manifests("HEAD"), ask, || {
        put(&cached, TAG, &[], NEW);
    });
    cached.all_down();
    assert_eq!(ask().body, NEW);
    cached.all_up();
    cross(&cached, manifests("HEAD"), ask, || delete(&cached, TAG));
    is_gone(&cached, TAG);
}

#[test]
fn a_404_from_before_a_push_does_not_take_the_tag_away() {
    let cached = cached_with(&[("CACHE_TAG_TTL", "0s")]);
    cached.standin.put_image("team/app", "1.0", &[]);
    let ask = || cached.get(TAG);
    assert_eq!(ask().status, 200);
    cached.standin.remove_tag("team/app", "1.0");
    let got = cross(&cached, manifests("GET"), ask, || {
        put(&cached, TAG, &[], NEW);
    });
    assert_eq!(got.status, 404);
    cached.all_down();
    assert_eq!(ask().body, NEW);
}

#[test]
fn a_404_from_before_a_push_is_not_remembered() {
    let cached = cached_with(&[
        ("CACHE_TAG_TTL", "forever"),
        ("CACHE_KEY", "$uri$http_x_team"),
    ]);
    let ask = || cached.get(TAG);
    // What is pushed is kept for the team that pushed it.
    let got = cross(&cached, manifests("GET"), ask, || {
        put(&cached, TAG, &[("X-Team", "other")], NEW);
    });
    assert_eq!(got.status, 404);
    assert_eq!(cached.get(TAG).body, NEW);
}

#[test]
fn a_404_from_before_an_upload_is_not_remembered() {
    // The blob is too large to be kept, so that the registry is asked for it.
    let cached = cached_with(&[("CACHE_MAX_SIZE", "1m")]);
    let bytes = vec![7; 2 << 20];
    let target = format!("/v2/team/app/blobs/{}", digest(&bytes));
    let ask = || cached.get(&target);
    let got = cross(&cached, blobs("GET"), ask, || {
        let post = "/v2/team/app/blobs/uploads/?digest=";
        let post = format!("{post}{}", digest(&bytes));
        let got = Http::once(cached.address(), "POST", &post, &[], &bytes);
        assert_eq!(got.status, 201, "{}", got.text());
    });
    assert!(matches!(got.status, 200 | 404), "{}", got.status);
    assert_eq!(cached.get(&target).digest, digest(&bytes));
}

#[test]
fn a_question_after_a_deletion_gets_no_answer_from_before() {
    let cached = cached();
    let image = cached.standin.put_image("team/app", "1.0", &[]);
    let own = by_digest(&image.manifest);
    let ask = || cached.get(TAG);
    let got = cross(&cached, manifests("GET"), ask, || {
        delete(&cached, &own);
        // The first answer is still on its way.
        assert_eq!(cached.get(TAG).status, 404);
    });
    assert_eq!(got.status, 200);
}

#[test]
fn a_blob_that_is_deleted_while_it_is_downloaded_does_not_belong() {
    let cached = cached();
    let size = 1 << 20;
    let blob = cached.standin.add_blob_of("team/app", size, 7);
    let target = format!("/v2/team/app/blobs/{blob}");
    cached
        .standin
        .fault(blobs("GET"), Fault::StallAfter(size / 2));
    let got = std::thread::scope(|scope| {
        let asking = scope.spawn(|| cached.get(&target));
        let stalled = || cached.standin.stalled() > 0;
        wait_until("the download has stalled", SOON, stalled);
        delete(&cached, &target);
        // Who comes now does not join it.
        assert_eq!(cached.get(&target).status, 404);
        cached.standin.release();
        asking.join().unwrap()
    });
    let bytes = Content::Generated { size, seed: 7 }.to_vec();
    assert_eq!(got.digest, digest(&bytes));
    cached.wait_for_blob(&blob);
    is_gone(&cached, &target);
}

#[test]
fn a_blob_that_is_deleted_while_upstream_shows_it_does_not_belong() {
    let cached = cached();
    let blob = cached.standin.add_blob("team/app", b"shared");
    cached.standin.add_blob("team/base", b"shared");
    let of = |repository| format!("/v2/{repository}/blobs/{blob}");
    assert_eq!(cached.get(&of("team/base")).status, 200);
    cached.wait_for_blob(&blob);
    let target = of("team/app");
    let ask = || cached.get(&target);
    let got = cross(&cached, blobs("HEAD"), ask, || delete(&cached, &target));
    assert_eq!(got.status, 200);
    is_gone(&cached, &target);
    assert_eq!(cached.get(&of("team/base")).status, 200);
}

#[test]
fn a_blob_that_is_deleted_while_it_is_pushed_does_not_belong() {
    let cached = cached();
    let target = format!("/v2/team/app/blobs/{}", digest(b"pushed"));
    let push = || {
        let post = "/v2/team/app/blobs/uploads/?digest=";
        let post = format!("{post}{}", digest(b"pushed"));
        Http::once(cached.address(), "POST", &post, &[], b"pushed")
    };
    let pick = blobs("POST");
    let got = cross(&cached, pick, push, || delete(&cached, &target));
    assert_eq!(got.status, 201);
    is_gone(&cached, &target);
}

#[test]
fn a_list_from_before_a_change_is_not_kept() {
    let cached = cached();
    let image = cached.standin.put_image("team/app", "1.0", &[]);
    cached.standin.put_image("team/app", "2.0", &[]);
    assert_eq!(cached.get("/v2/team/app/manifests/2.0").status, 200);
    let list = "/v2/team/app/tags/list";
    let pick = Match::registry().path("/tags/list");
    let got = cross(&cached, pick, || cached.get(list), || delete(&cached, TAG));
    assert!(got.text().contains("1.0"));
    cached.all_down();
    let stale = cached.get(list).text();
    assert!(stale.contains("2.0") && !stale.contains("1.0"), "{stale}");
    cached.all_up();

    let list = format!("/v2/team/app/referrers/{}", image.manifest);
    let ask = || cached.get(&list);
    let subject = &image.manifest;
    let signature = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","artifactType":"a/b",
            "config":{{"mediaType":"a/b","digest":"{}","size":2}},"layers":[],
            "subject":{{"mediaType":"{MANIFEST}","digest":"{subject}","size":1}}}}"#,
        cached.standin.add_blob("team/app", b"{}"),
    );
    let pick = Match::registry().path("/referrers/");
    let signature = signature.as_bytes();
    let got = cross(&cached, pick, ask, || {
        put(&cached, &by_digest(&digest(signature)), &[], signature);
    });
    assert!(!got.text().contains(&digest(signature)), "{}", got.text());
    assert!(ask().text().contains(&digest(signature)));
}

#[test]
fn deletions_of_nothing_do_not_switch_the_cache_off() {
    let cached = cached();
    let image = cached.standin.put_image("team/app", "1.0", &[]);
    let ask = || cached.get(TAG);
    let got = cross(&cached, manifests("GET"), ask, || {
        let mut http = Http::connect(cached.address());
        let mut delete = |target: String| {
            assert_eq!(http.request("DELETE", &target, &[], b"").status, 404);
        };
        for number in 0..40 {
            delete(format!("/v2/team/app/manifests/nothing-{number}"));
        }
        for number in 0..200 {
            delete(format!("/v2/team/other/manifests/{number}"));
        }
    });
    assert_eq!(got.body, image.bytes);
    assert_eq!(cached.get(TAG).header("X-Cache"), Some("HIT"));
}
