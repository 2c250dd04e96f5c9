//! Pushes through a proxy with a cache: what was pushed is there at once, verified, and what was
//! deleted is gone; what breaks off, or is refused, leaves nothing.

use std::io::Read;
use std::time::Duration;

use standin::image::{self, MANIFEST};
use standin::{Content, Fault, Layer, Match, Options, Quirks, Server, Then, digest};

use crate::support::{Cached, Http, Response, SOON, Scratch, target_of, wait_until};

const UPLOADS: &str = "/v2/new/repo/blobs/uploads/";
const TAG: &str = "/v2/new/repo/manifests/1.0";

fn call(cached: &Cached, method: &str, target: &str, body: &[u8]) -> Response {
    Http::once(cached.address(), method, target, &[], body)
}

fn begin(cached: &Cached) -> String {
    next(&call(cached, "POST", UPLOADS, b""))
}

fn next(reply: &Response) -> String {
    assert!((200..300).contains(&reply.status), "{}", reply.text());
    target_of(reply.header("Location").expect("a Location")).to_owned()
}

fn with_digest(target: &str, digest: &str) -> String {
    let separator = if target.contains('?') { '&' } else { '?' };
    format!("{target}{separator}digest={}", digest.replace(':', "%3A"))
}

/// As docker does it: one PATCH, chunked, and a PUT without a body.
fn push_like_docker(cached: &Cached, bytes: &[u8]) -> String {
    let mut http = Http::connect(cached.address());
    let begun = http.request("POST", UPLOADS, &[], b"");
    let patch = http.request_chunked("PATCH", &next(&begun), &[], &mut &*bytes);
    let target = with_digest(&next(&patch.unwrap()), &digest(bytes));
    assert_eq!(http.request("PUT", &target, &[], b"").status, 201);
    digest(bytes)
}

fn push_in_put(cached: &Cached, bytes: &[u8]) -> String {
    let target = with_digest(&begin(cached), &digest(bytes));
    assert_eq!(call(cached, "PUT", &target, bytes).status, 201);
    digest(bytes)
}

fn push_in_post(cached: &Cached, bytes: &[u8]) -> String {
    let target = with_digest(UPLOADS, &digest(bytes));
    assert_eq!(call(cached, "POST", &target, bytes).status, 201);
    digest(bytes)
}

/// Three PATCHes, and the last byte in the PUT.
fn push_in_chunks(cached: &Cached, bytes: &[u8]) -> String {
    let mut http = Http::connect(cached.address());
    let mut target = next(&http.request("POST", UPLOADS, &[], b""));
    let (most, last) = bytes.split_at(bytes.len() - 1);
    let mut at = 0;
    for part in most.chunks(most.len().div_ceil(3)) {
        let range = format!("{at}-{}", at + part.len() - 1);
        let fields = [("Content-Range", range.as_str())];
        target = next(&http.request("PATCH", &target, &fields, part));
        at += part.len();
    }
    let target = with_digest(&target, &digest(bytes));
    assert_eq!(http.request("PUT", &target, &[], last).status, 201);
    digest(bytes)
}

type Way = fn(&Cached, &[u8]) -> String;
const WAYS: [Way; 4] = [push_like_docker, push_in_put, push_in_post, push_in_chunks];

fn put_manifest(cached: &Cached, target: &str, bytes: &[u8]) -> Response {
    let fields = [("Content-Type", MANIFEST)];
    Http::once(cached.address(), "PUT", target, &fields, bytes)
}

fn blob(digest: &str) -> String {
    format!("/v2/new/repo/blobs/{digest}")
}

fn no_upload_is_left(cached: &Cached) {
    wait_until("no upload has a file", SOON, || {
        let entries = std::fs::read_dir(cached.path("partial")).expect("a folder");
        let files = entries.flatten().filter(|e| e.path().is_file());
        files.count() == 0
    });
}

/// Registries of ECR's ways, and of the specification's.
fn registries() -> [Options; 2] {
    let quirks = Quirks::none();
    let strict = Options {
        quirks,
        ..Options::default()
    };
    [Options::default(), strict]
}

#[test]
fn a_pushed_image_is_pulled_without_a_download_and_offline() {
    for options in registries() {
        let mut cached = Cached::on(Scratch::new(), options, &[("CACHE_TAG_TTL", "1h")]);
        let layers = [
            Layer::of_files(&[("a", b"a")]),
            Layer::of_files(&[("b", b"b")]),
            Layer::of_files(&[("c", b"c")]),
        ];
        let config = image::config("amd64", &layers);
        let manifest = image::manifest(&config, &layers);
        let mut blobs = vec![config.clone()];
        blobs.extend(layers.iter().map(|layer| layer.content.to_vec()));
        for (push, bytes) in WAYS.iter().zip(&blobs) {
            push(&cached, bytes);
        }
        let put = put_manifest(&cached, TAG, &manifest);
        assert_eq!(put.status, 201, "{}", put.text());
        let by_digest = format!("/v2/new/repo/manifests/{}", digest(&manifest));
        let calls = cached.calls();
        let pull = |cached: &Cached| {
            for target in [TAG, &by_digest] {
                for got in [cached.get(target), cached.head(target)] {
                    assert_eq!((got.status, got.header("X-Cache")), (200, Some("HIT")));
                    assert_eq!(got.header("Content-Type"), Some(MANIFEST));
                    let named = got.header("Docker-Content-Digest");
                    assert_eq!(named, Some(digest(&manifest).as_str()));
                }
                assert_eq!(cached.get(target).body, manifest);
            }
            for bytes in &blobs {
                let got = cached.get(&blob(&digest(bytes)));
                assert_eq!((got.status, got.header("X-Cache")), (200, Some("HIT")));
                assert_eq!(&got.body, bytes);
            }
        };
        pull(&cached);
        assert_eq!(cached.calls(), calls, "upstream was asked");
        no_upload_is_left(&cached);
        // Another repository has no part in it.
        let other = blob(&digest(&blobs[0])).replace("new/repo", "other");
        assert_eq!(cached.get(&other).status, 404);
        cached.all_down();
        cached.stop();
        cached.start_again();
        pull(&cached);
    }
}

#[test]
fn pushed_blobs_are_verified() {
    let cached = Cached::start();
    // A registry that takes anything under any digest.
    let took = Fault::Status(201, Vec::new(), Vec::new());
    for push in WAYS {
        let right = digest(b"right bytes");
        let pick = Match::registry().path("digest=");
        cached.standin.fault(pick, took.clone());
        let wrong = push(&cached, b"wrong bytes");
        assert!(cached.has(&wrong), "the bytes are what their digest says");
        // The same bytes, sent for another digest.
        let target = with_digest(&begin(&cached), &right);
        let pick = Match::registry().path("digest=");
        cached.standin.fault(pick, took.clone());
        assert_eq!(call(&cached, "PUT", &target, b"wrong bytes").status, 201);
        no_upload_is_left(&cached);
        assert!(!cached.has(&right));
    }
}

#[test]
fn an_upload_that_is_refused_is_not_kept() {
    let cached = Cached::start();
    for status in [400, 403, 416, 500] {
        for push_to in ["PATCH", "PUT"] {
            let bytes = format!("{push_to} {status}");
            let (bytes, mut target) = (bytes.as_bytes(), begin(&cached));
            if push_to == "PUT" {
                target = with_digest(&target, &digest(bytes));
            }
            let pick = Match::registry().method(push_to);
            let refusal = Fault::registry_error(status, "NO", "no");
            cached.standin.fault(pick, refusal);
            assert_eq!(call(&cached, push_to, &target, bytes).status, status);
            no_upload_is_left(&cached);
            assert!(!cached.has(&digest(bytes)));
        }
    }
}

#[test]
fn a_chunk_out_of_order_does_not_end_the_copy() {
    let cached = Cached::start();
    let target = begin(&cached);
    let mut http = Http::connect(cached.address());
    let mut patch = |range: &str, part: &[u8]| {
        let fields = [("Content-Range", range)];
        http.request("PATCH", &target, &fields, part)
    };
    assert_eq!(patch("0-2", b"abc").status, 202);
    let refused = patch("9-11", b"xyz");
    assert_eq!(
        (refused.status, refused.header("Range")),
        (416, Some("0-2"))
    );
    assert_eq!(patch("3-5", b"def").status, 202);
    let put = with_digest(&target, &digest(b"abcdef"));
    assert_eq!(call(&cached, "PUT", &put, b"").status, 201);
    assert!(cached.has(&digest(b"abcdef")));
}

#[test]
fn an_upload_whose_beginning_went_elsewhere_is_not_kept() {
    let mut cached = Cached::start();
    let target = begin(&cached);
    assert_eq!(call(&cached, "PATCH", &target, b"abc").status, 202);
    cached.kill();
    cached.start_again();
    assert_eq!(call(&cached, "PATCH", &target, b"def").status, 202);
    let put = with_digest(&target, &digest(b"abcdef"));
    assert_eq!(call(&cached, "PUT", &put, b"").status, 201);
    assert!(!cached.has(&digest(b"abcdef")));
    // What the killed process left is gone.
    no_upload_is_left(&cached);
    assert_eq!(cached.get(&blob(&digest(b"abcdef"))).body, b"abcdef");
}

#[test]
fn an_upload_is_given_up() {
    let cached = Cached::start();
    let target = begin(&cached);
    assert_eq!(call(&cached, "PATCH", &target, b"abc").status, 202);
    let status = cached.get(&target);
    assert_eq!((status.status, status.header("Range")), (204, Some("0-2")));
    assert_eq!(call(&cached, "DELETE", &target, b"").status, 204);
    no_upload_is_left(&cached);
    assert_eq!(cached.standin.open_uploads(), 0);
}

#[test]
fn a_client_that_is_cut_off_leaves_nothing_anywhere() {
    let cached = Cached::start();
    let bytes = vec![b'x'; 1 << 20];
    let whole = digest(&bytes);
    for chunked in [false, true] {
        let target = with_digest(&begin(&cached), &whole);
        let before = cached.standin.requests().len();
        let mut http = Http::connect(cached.address());
        if chunked {
            let fields = [("Transfer-Encoding", "chunked")];
            http.send_head("PUT", &target, &fields).unwrap();
            http.send(b"80000\r\n").unwrap();
            http.send(&bytes[..0x80000]).unwrap();
            http.send(b"\r\n").unwrap();
        } else {
            let length = bytes.len().to_string();
            let fields = [("Content-Length", length.as_str())];
            http.send_head("PUT", &target, &fields).unwrap();
            http.send(&bytes[..0x80000]).unwrap();
        }
        let reached = cached.standin.wait_for(SOON, |seen| seen.len() > before);
        assert!(reached);
        drop(http);
        // Upstream sees the end of the connection in place of the rest.
        wait_until("the upload was aborted", SOON, || {
            let seen = cached.standin.requests().pop().expect("the upload");
            seen.body_len > 0 && seen.body_len < bytes.len() as u64
        });
        let seen = cached.standin.requests().pop().unwrap();
        assert_eq!((seen.method.as_str(), seen.status), ("PUT", None));
        no_upload_is_left(&cached);
        assert!(!cached.has(&whole) && cached.standin.blob("new/repo", &whole).is_none());
    }
}

#[test]
fn an_early_refusal_leaves_nothing_in_the_cache() {
    let cached = Cached::start();
    let content = Content::Generated {
        size: 64 << 20,
        seed: 7,
    };
    let target = with_digest(&begin(&cached), &content.digest());
    let fault = Fault::RefuseMidway {
        after: 1 << 20,
        status: 413,
        then: Then::Close,
    };
    cached.standin.fault(Match::registry().method("PUT"), fault);
    let mut http = Http::connect_within(cached.address(), Duration::from_secs(60));
    let mut reader = content.reader();
    let got = http.request_streamed("PUT", &target, &[], (64 << 20, &mut reader));
    assert_eq!(got.unwrap().status, 413);
    no_upload_is_left(&cached);
    assert!(!cached.has(&content.digest()));
}

#[test]
fn a_large_blob_is_kept_in_constant_memory() {
    const SIZE: u64 = 300 << 20;
    let cached = Cached::start();
    let content = Content::Generated {
        size: SIZE,
        seed: 3,
    };
    let wanted = content.digest();
    let mut http = Http::connect_within(cached.address(), Duration::from_secs(120));
    let target = next(&http.request("POST", UPLOADS, &[], b""));
    let mut body = content.reader();
    let patch = http.request_chunked("PATCH", &target, &[], &mut body);
    assert_eq!(patch.unwrap().status, 202);
    let put = http.request("PUT", &with_digest(&target, &wanted), &[], b"");
    assert_eq!(put.status, 201, "{}", put.text());
    cached.wait_for_blob(&wanted);
    let peak = cached.proxy().peak_rss_kib();
    assert!(peak < 64 << 10, "{peak} KiB resident at the most");
    assert_eq!(cached.get(&blob(&wanted)).digest, wanted);
    assert_eq!(cached.seen(Server::S3).len(), 0);
}

#[test]
fn a_blob_that_is_larger_than_the_cache_is_pushed_all_the_same() {
    let cached = Cached::with(&[("CACHE_MAX_SIZE", "1m")]);
    let bytes = vec![b'x'; 3 << 20];
    for push in WAYS {
        let pushed = push(&cached, &bytes);
        no_upload_is_left(&cached);
        assert!(!cached.has(&pushed));
    }
    assert!(cached.disk_use() <= 1 << 20);
    let small = push_in_put(&cached, b"small");
    assert!(cached.has(&small));
}

#[test]
fn a_disk_that_fails_fails_no_push() {
    let cached = Cached::start();
    std::fs::rename(cached.path("partial"), cached.path("away")).unwrap();
    for (push, bytes) in WAYS.iter().zip(["one", "two", "three", "four"]) {
        let pushed = push(&cached, bytes.as_bytes());
        assert_eq!(
            cached.standin.blob("new/repo", &pushed).unwrap().to_vec(),
            bytes.as_bytes()
        );
    }
    let put = put_manifest(&cached, TAG, br#"{"schemaVersion":2,"layers":[]}"#);
    assert_eq!(put.status, 201, "{}", put.text());
    cached.proxy().wait_for_log("the cache cannot be written");
    std::fs::rename(cached.path("away"), cached.path("partial")).unwrap();
    assert!(cached.has(&push_in_put(&cached, b"five")));
}

#[test]
fn a_mounted_blob_belongs_where_it_was_mounted() {
    let cached = Cached::start();
    let base = cached.standin.add_blob("team/base", b"shared");
    assert_eq!(
        cached.get(&format!("/v2/team/base/blobs/{base}")).status,
        200
    );
    cached.wait_for_blob(&base);
    let target = format!("{UPLOADS}?mount={base}&from=team%2Fbase");
    let mounted = call(&cached, "POST", &target, b"");
    assert_eq!((mounted.status, next(&mounted)), (201, blob(&base)));
    let calls = cached.calls();
    let got = cached.get(&blob(&base));
    assert_eq!(
        (got.body.as_slice(), got.header("X-Cache")),
        (&b"shared"[..], Some("HIT"))
    );
    assert_eq!(cached.calls(), calls);
    // One that upstream does not mount begins an upload, which is kept as any other.
    let absent = format!("{UPLOADS}?mount={}&from=team%2Fbase", digest(b"absent"));
    let begun = call(&cached, "POST", &absent, b"");
    assert_eq!(begun.status, 202);
    let target = with_digest(&next(&begun), &digest(b"absent"));
    assert_eq!(call(&cached, "PUT", &target, b"absent").status, 201);
    assert!(cached.has(&digest(b"absent")));
}

#[test]
fn a_deletion_drops_what_is_kept() {
    let strict = || Options {
        quirks: Quirks::none(),
        ..Options::default()
    };
    let cached = Cached::on(Scratch::new(), strict(), &[("CACHE_TAG_TTL", "1h")]);
    let pushed = push_in_put(&cached, b"blob");
    let manifest = br#"{"schemaVersion":2,"layers":[]}"#;
    let by_digest = format!("/v2/new/repo/manifests/{}", digest(manifest));
    let put = || assert_eq!(put_manifest(&cached, TAG, manifest).status, 201);
    let deleted = |target: &str| {
        assert_eq!(call(&cached, "DELETE", target, b"").status, 202, "{target}");
        assert_eq!(cached.get(target).status, 404, "{target}");
    };
    put();
    deleted(TAG);
    assert_eq!(cached.get(&by_digest).status, 200);
    put();
    // By digest: the tag goes, too.
    deleted(&by_digest);
    assert_eq!(cached.get(TAG).status, 404);
    deleted(&blob(&pushed));
    // Deleted elsewhere: that it is not there any more is as good.
    put();
    cached.standin.remove_tag("new/repo", "1.0");
    assert_eq!(cached.get(TAG).status, 200);
    assert_eq!(call(&cached, "DELETE", TAG, b"").status, 404);
    assert_eq!(cached.get(TAG).status, 404);
    // A deletion that is refused changes nothing.
    put();
    let pick = Match::registry().method("DELETE");
    cached
        .standin
        .fault(pick, Fault::registry_error(403, "DENIED", "no"));
    assert_eq!(call(&cached, "DELETE", TAG, b"").status, 403);
    assert_eq!(cached.get(TAG).header("X-Cache"), Some("HIT"));
    // What ECR does not do is passed on as it says it.
    let ecr = Cached::start();
    let pushed = push_in_put(&ecr, b"blob");
    assert_eq!(call(&ecr, "DELETE", &blob(&pushed), b"").status, 405);
    assert_eq!(ecr.get(&blob(&pushed)).header("X-Cache"), Some("HIT"));
}

#[test]
fn a_tag_that_is_moved_by_a_push_is_seen_at_once() {
    let cached = Cached::with(&[("CACHE_TAG_TTL", "forever")]);
    for number in 0..5 {
        let manifest = format!(r#"{{"schemaVersion":2,"layers":[],"number":{number}}}"#);
        let put = put_manifest(&cached, TAG, manifest.as_bytes());
        assert_eq!(put.status, 201);
        assert_eq!(cached.get(TAG).text(), manifest);
        assert_eq!(cached.get(TAG).header("X-Cache"), Some("HIT"));
    }
}

#[test]
fn pushes_of_one_tag_at_a_time_leave_what_upstream_has() {
    let cached = Cached::with(&[("CACHE_TAG_TTL", "forever")]);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let cached = &cached;
            scope.spawn(move || {
                let manifest = format!(r#"{{"schemaVersion":2,"layers":[],"number":{number}}}"#);
                let put = put_manifest(cached, TAG, manifest.as_bytes());
                assert_eq!(put.status, 201);
            });
        }
    });
    let (_, _, bytes) = cached.standin.manifest("new/repo", "1.0").unwrap();
    assert_eq!(cached.get(TAG).body, bytes);
}

#[test]
fn a_404_is_forgotten_after_a_push() {
    let cached = Cached::start();
    assert_eq!(cached.get(TAG).status, 404);
    assert_eq!(
        put_manifest(&cached, TAG, br#"{"schemaVersion":2,"layers":[]}"#).status,
        201
    );
    assert_eq!(cached.get(TAG).status, 200);
    let target = blob(&digest(b"later"));
    assert_eq!(cached.get(&target).status, 404);
    push_like_docker(&cached, b"later");
    assert_eq!(cached.get(&target).status, 200);
}

#[test]
fn a_slow_registry_holds_no_more_than_its_upload() {
    // The registry takes nothing for a while: the copy must not run ahead of the client.
    let cached = Cached::start();
    let target = with_digest(&begin(&cached), &digest(b"x"));
    let pick = Match::registry().method("PUT");
    cached.standin.fault(pick, Fault::StallUpload(1 << 20));
    let mut http = Http::connect(cached.address());
    let fields = [("Content-Length", "1073741824")];
    http.send_head("PUT", &target, &fields).unwrap();
    let piece = vec![b'x'; 1 << 20];
    http.stream()
        .set_write_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let mut sent = 0;
    while (&mut http.stream()).write_piece(&piece) {
        sent += piece.len();
        assert!(sent < 256 << 20, "the proxy takes what nobody took from it");
    }
    cached.standin.release();
    let mut rest = Vec::new();
    let _ = (&mut http.stream()).take(1 << 16).read_to_end(&mut rest);
    drop(http);
    no_upload_is_left(&cached);
}

trait WritePiece {
    fn write_piece(&mut self, piece: &[u8]) -> bool;
}

impl<T: std::io::Write> WritePiece for T {
    fn write_piece(&mut self, piece: &[u8]) -> bool {
        self.write_all(piece).is_ok()
    }
}

#[test]
fn bug_a_page_was_taken_for_a_push_or_a_deletion() {
    let cached = Cached::with(&[("CACHE_TAG_TTL", "1h")]);
    let image = cached.standin.put_image("new/repo", "1.0", &[]);
    assert_eq!(cached.get(TAG).body, image.bytes);
    let html = || {
        vec![(
            "Content-Type".to_owned(),
            "text/html; charset=utf-8".to_owned(),
        )]
    };
    let page = |status| Fault::Status(status, html(), b"<html>log in</html>".to_vec());
    let by_digest = format!("/v2/new/repo/manifests/{}", digest(&image.bytes));
    let session = begin(&cached);
    let lost = digest(b"lost");
    for (method, target, fault) in [
        ("PUT", TAG.to_owned(), page(200)),
        ("PUT", TAG.to_owned(), Fault::status(200)),
        ("PUT", TAG.to_owned(), page(201)),
        ("DELETE", TAG.to_owned(), page(200)),
        ("DELETE", TAG.to_owned(), page(404)),
        ("DELETE", by_digest.clone(), page(202)),
        ("POST", UPLOADS.to_owned(), page(200)),
        ("POST", UPLOADS.to_owned(), page(202)),
        ("POST", with_digest(UPLOADS, &lost), page(201)),
        ("PATCH", session.clone(), Fault::status(200)),
        ("PUT", with_digest(&session, &lost), Fault::status(200)),
        ("DELETE", session.clone(), page(204)),
    ] {
        let fault_at = Match::registry().method(method);
        cached.standin.fault(fault_at, fault);
        let got = call(&cached, method, &target, b"lost");
        assert_eq!(got.status, 502, "{method} {target}: {}", got.text());
        // What was there is there still, and nothing of the push is.
        for target in [TAG, &by_digest] {
            let got = cached.get(target);
            assert_eq!((got.status, got.header("X-Cache")), (200, Some("HIT")));
            assert_eq!(got.body, image.bytes);
        }
        assert_eq!(cached.get(&blob(&lost)).status, 404);
    }
}
