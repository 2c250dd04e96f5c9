//! Manifests and blobs, with a cache and without one, from ECR and from a registry that serves its
//! blobs itself: the same fields, conditions, ranges and encodings on every way.

use standin::image::MANIFEST;
use standin::{Content, Fault, Image, Layer, Match, Options, Quirks, Server, digest};

use crate::support::{Cached, Http, Response, Scratch, error_of};

const TAG: &str = "/v2/team/app/manifests/1.0";
const OFF: (&str, &str) = ("CACHE_DIR", "off");

/// One way, with an image of one layer behind it.
struct Way {
    cached: Cached,
    image: Image,
    has_cache: bool,
}

impl Way {
    fn blob(&self) -> String {
        format!("/v2/team/app/blobs/{}", self.image.layers[0])
    }

    fn by_digest(&self) -> String {
        format!("/v2/team/app/manifests/{}", self.image.manifest)
    }

    /// Has it in the cache, if there is one.
    fn pull(&self) {
        assert_eq!(self.cached.get(TAG).body, self.image.bytes);
        let got = self.cached.get(&self.blob());
        assert_eq!(got.digest, self.image.layers[0]);
        if self.has_cache {
            self.cached.wait_for_blob(&self.image.layers[0]);
        }
    }
}

fn ways() -> Vec<Way> {
    let mut ways = Vec::new();
    for quirks in [Quirks::ecr(), Quirks::none()] {
        for has_cache in [true, false] {
            let options = Options {
                quirks: quirks.clone(),
                ..Options::default()
            };
            let settings = if has_cache { &[][..] } else { &[OFF] };
            let cached = Cached::on(Scratch::new(), options, settings);
            let layer = Layer::of_files(&[("hello", b"content")]);
            let image = cached.standin.put_image("team/app", "1.0", &[layer]);
            ways.push(Way {
                cached,
                image,
                has_cache,
            });
        }
    }
    ways
}

fn assert_fields(got: &Response, expected: &[(&str, &str)], what: &str) {
    for (name, value) in expected {
        assert_eq!(got.header(name), Some(*value), "{what}: {name}");
        assert_eq!(got.all(name).count(), 1, "{what}: {name}");
    }
}

#[test]
fn content_has_the_same_fields_on_every_way() {
    for way in ways() {
        let (image, layer) = (&way.image, &way.image.layers[0]);
        let quoted = |digest: &str| format!("\"{digest}\"");
        let (manifest_tag, blob_tag) = (quoted(&image.manifest), quoted(layer));
        let length = image.bytes.len().to_string();
        let of_manifest = [
            ("Content-Type", MANIFEST),
            ("Content-Length", &length),
            ("Docker-Content-Digest", &image.manifest),
            ("ETag", &manifest_tag),
        ];
        let size = way.cached.standin.blob("team/app", layer).unwrap().len();
        let size = size.to_string();
        let of_blob = [
            ("Content-Type", "application/octet-stream"),
            ("Content-Length", &size),
            ("Docker-Content-Digest", layer),
            ("ETag", &blob_tag),
            ("Accept-Ranges", "bytes"),
            ("Cache-Control", "max-age=31536000, immutable"),
        ];
        // HEAD first, so that it is cold; then from upstream, then from the cache.
        for method in ["HEAD", "GET", "GET", "HEAD"] {
            for target in [TAG, &way.by_digest()] {
                let got = way.cached.call(method, target, &[]);
                assert_eq!(got.status, 200, "{}", got.text());
                assert_fields(&got, &of_manifest, target);
            }
            let got = way.cached.call(method, &way.blob(), &[]);
            assert_eq!(got.status, 200, "{}", got.text());
            assert_fields(&got, &of_blob, method);
            if method == "HEAD" {
                assert_eq!(got.length, 0);
            } else {
                way.pull();
            }
        }
    }
}

#[test]
fn a_client_that_holds_it_is_sent_nothing() {
    for way in ways() {
        way.pull();
        for (target, digest) in [
            (TAG.to_owned(), &way.image.manifest),
            (way.by_digest(), &way.image.manifest),
            (way.blob(), &way.image.layers[0]),
        ] {
            let quoted = format!("\"{digest}\"");
            for (held, status) in [
                (quoted.clone(), 304),
                (digest.clone(), 304),
                (format!("W/{quoted}"), 304),
                ("*".to_owned(), 304),
                (format!("\"a\", {quoted}"), 304),
                (format!("\"{}\"", way.image.config), 200),
                ("\"\"".to_owned(), 200),
            ] {
                for method in ["GET", "HEAD"] {
                    let fields = [("If-None-Match", held.as_str()), ("Range", "bytes=0-1")];
                    // A range has no say in it (RFC 9110 §13.2.2).
                    let most = if status == 304 { 2 } else { 1 };
                    let got = way.cached.call(method, &target, &fields[..most]);
                    let what = format!("{method} {target} {held}");
                    assert_eq!(got.status, status, "{what}");
                    let fields = [("ETag", &*quoted), ("Docker-Content-Digest", &**digest)];
                    assert_fields(&got, &fields, &what);
                    assert_eq!(got.length == 0, status == 304 || method == "HEAD", "{what}");
                    if status == 304 {
                        assert_eq!(got.header("Content-Range"), None, "{what}");
                    }
                }
            }
        }
        // Registry and blob host have tags of their own, and never see ours.
        let all = way.cached.standin.requests();
        assert!(
            all.iter()
                .all(|seen| seen.header("If-None-Match").is_none())
        );
    }
}

#[test]
fn ranges_mean_the_same_on_every_way() {
    const SIZE: usize = 1000;
    for way in ways() {
        let content = Content::Generated {
            size: SIZE as u64,
            seed: 7,
        };
        let bytes = content.to_vec();
        let blob = way.cached.standin.add_blob("team/app", &bytes);
        let target = format!("/v2/team/app/blobs/{blob}");
        let own = format!("\"{blob}\"");
        for (range, condition, status, part) in [
            ("bytes=0-", "", 206, 0..SIZE),
            ("bytes=10-19", "", 206, 10..20),
            ("bytes=999-", "", 206, 999..SIZE),
            ("bytes=-10", "", 206, 990..SIZE),
            ("bytes=500-9999", "", 206, 500..SIZE),
            ("bytes=1000-", "", 416, 0..0),
            ("bytes=0-1,5-6", "", 200, 0..SIZE),
            ("bytes=9-5", "", 416, 0..0),
            ("bytes=500-0", "", 416, 0..0),
            ("lines=1-2", "", 200, 0..SIZE),
            ("bytes=x", "", 200, 0..SIZE),
            ("bytes=10-19", own.as_str(), 206, 10..20),
            ("bytes=10-19", "\"other\"", 200, 0..SIZE),
        ] {
            let mut fields = vec![("Range", range)];
            if !condition.is_empty() {
                fields.push(("If-Range", condition));
            }
            // Cold at first, then not.
            for _ in 0..2 {
                let got = way.cached.call("GET", &target, &fields);
                let what = format!("{range} {condition}, cache: {}", way.has_cache);
                assert_eq!((got.status, got.complete), (status, true), "{what}");
                let expected = match status {
                    206 => Some(format!("bytes {}-{}/{SIZE}", part.start, part.end - 1)),
                    416 => Some(format!("bytes */{SIZE}")),
                    _ => None,
                };
                assert_eq!(got.header("Content-Range"), expected.as_deref(), "{what}");
                assert!(got.all("Content-Range").count() <= 1);
                if status == 416 {
                    assert_eq!(error_of(&got).0, "RANGE_INVALID", "{what}");
                    assert_eq!(got.header("Cache-Control"), None, "{what}");
                } else {
                    assert!(got.body == bytes[part.clone()], "{what}");
                    assert_eq!(got.header("ETag"), Some(own.as_str()), "{what}");
                }
            }
        }
        let head = way.cached.call("HEAD", &target, &[("Range", "bytes=5-9")]);
        assert_eq!(
            (head.status, head.header("Content-Length")),
            (200, Some("1000"))
        );
        // A manifest comes whole: a part of it could not be verified.
        let got = way.cached.call("GET", TAG, &[("Range", "bytes=0-4")]);
        assert_eq!((got.status, &got.body), (200, &way.image.bytes));
    }
}

#[test]
fn an_empty_blob_is_whole_on_every_way() {
    for way in ways() {
        let empty = way.cached.standin.add_blob("team/app", b"");
        let target = format!("/v2/team/app/blobs/{empty}");
        for range in ["bytes=0-", "bytes=-5", "bytes=3-"] {
            for fields in [&[][..], &[("Range", range)]] {
                let got = way.cached.call("GET", &target, fields);
                assert_eq!(
                    (got.status, got.length, got.complete),
                    (200, 0, true),
                    "{range}"
                );
                let fields = [
                    ("Content-Length", "0"),
                    ("Docker-Content-Digest", &*empty),
                    ("Content-Type", "application/octet-stream"),
                ];
                assert_fields(&got, &fields, range);
                assert_eq!(got.header("Content-Range"), None);
            }
        }
    }
}

#[test]
fn nothing_is_compressed_on_its_way() {
    for way in ways() {
        let accept = [
            ("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5"),
            ("TE", "gzip, trailers"),
        ];
        way.pull();
        let absent = "/v2/team/app/manifests/9";
        for target in [
            TAG,
            &way.blob(),
            "/v2/",
            "/v2/_catalog",
            "/v2/team/app/tags/list",
            &format!("/v2/team/app/referrers/{}", way.image.manifest),
            absent,
        ] {
            let (got, plain) = (
                way.cached.call("GET", target, &accept),
                way.cached.get(target),
            );
            assert_eq!(got.header("Content-Encoding"), None, "{target}");
            assert_eq!(got.header("Transfer-Encoding"), None, "{target}");
            assert_eq!((got.status, &got.body), (plain.status, &plain.body));
        }
        for seen in way.cached.standin.requests() {
            if matches!(seen.server, Server::Registry | Server::S3) {
                assert_eq!(seen.header("Accept-Encoding"), Some("identity"));
                assert_eq!(seen.header("TE"), None);
            }
        }
    }
}

#[test]
fn bug_an_encoded_manifest_was_taken_for_the_content() {
    for way in ways() {
        let fields = [("Content-Type", MANIFEST), ("Content-Encoding", "gzip")];
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let encoded = Fault::Status(200, fields.map(own).into(), b"\x1f\x8b\x08 no".to_vec());
        way.cached.standin.fault(Match::registry(), encoded);
        let got = way.cached.get(TAG);
        assert_eq!(got.status, 502, "{}", got.text());
        assert!(error_of(&got).1.contains("gzip"), "{}", got.text());
        assert!(!way.has_cache || way.cached.blobs().is_empty());
        assert_eq!(way.cached.get(TAG).body, way.image.bytes);
    }
}

#[test]
fn a_media_type_comes_without_parameters() {
    for way in ways() {
        let typed = format!("{MANIFEST}; charset=utf-8");
        let fields = vec![("Content-Type".to_owned(), typed)];
        let fault = Fault::Status(200, fields, way.image.bytes.clone());
        way.cached.standin.fault(Match::registry().times(2), fault);
        for method in ["GET", "HEAD"] {
            let got = way.cached.call(method, TAG, &[]);
            assert_fields(&got, &[("Content-Type", MANIFEST)], method);
        }
    }
}

#[test]
fn a_manifest_of_any_size_that_clients_take_comes_whole() {
    for way in ways() {
        // 4 MiB is what all take, 16 MiB what is read whole and kept, and beyond it passes.
        for (tag, size) in [("m4", 4 << 20), ("m16", 16 << 20), ("m17", 17 << 20)] {
            let mut bytes = br#"{"schemaVersion":2,"layers":[]}"#.to_vec();
            bytes.resize(size, b' ');
            let digest = digest(&bytes);
            let standin = &way.cached.standin;
            standin.add_manifest("team/app", tag, MANIFEST, &bytes);
            for reference in [tag, &digest] {
                let got = way
                    .cached
                    .get(&format!("/v2/team/app/manifests/{reference}"));
                assert_eq!(
                    (got.status, got.complete, &got.digest),
                    (200, true, &digest)
                );
                assert_eq!(got.header("Content-Type"), Some(MANIFEST));
            }
            if way.has_cache {
                assert_eq!(way.cached.has(&digest), size <= 16 << 20, "{tag}");
            }
        }
    }
}

#[test]
fn a_manifest_that_is_another_one_is_not_kept() {
    for way in ways() {
        for target in [TAG.to_owned(), way.by_digest()] {
            let fields = vec![
                ("Content-Type".to_owned(), MANIFEST.to_owned()),
                (
                    "Docker-Content-Digest".to_owned(),
                    way.image.manifest.clone(),
                ),
            ];
            let other = Fault::Status(200, fields, b"{\"layers\": []}".to_vec());
            way.cached.standin.fault(Match::registry(), other);
            let got = way.cached.get(&target);
            assert_eq!((got.status, error_of(&got).0), (502, "UNAVAILABLE".into()));
            assert!(!way.has_cache || way.cached.blobs().is_empty());
        }
        assert_eq!(way.cached.get(TAG).body, way.image.bytes);
    }
}

fn sha512(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA512, bytes);
    let hex: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha512:{hex}")
}

#[test]
fn sha512_is_an_algorithm_like_the_other() {
    for mut way in ways() {
        let blob = b"named by sha512".as_slice();
        let manifest = br#"{"schemaVersion":2,"layers":[]}"#.as_slice();
        let answer = |digest: &str, media_type: &str, bytes: &[u8]| {
            let fields = vec![
                ("Content-Type".to_owned(), media_type.to_owned()),
                ("Docker-Content-Digest".to_owned(), digest.to_owned()),
            ];
            Fault::Status(200, fields, bytes.to_vec())
        };
        let (blob_digest, digest) = (sha512(blob), sha512(manifest));
        let blob_target = format!("/v2/team/app/blobs/{blob_digest}");
        let by_digest = format!("/v2/team/app/manifests/{digest}");
        let by_tag = "/v2/team/app/manifests/512";
        let lay = |target: &str, fault: Fault| {
            let pick = Match::registry().path(target).always();
            way.cached.standin.fault(pick, fault);
        };
        lay(&blob_target, answer(&blob_digest, "", blob));
        lay(&by_digest, answer(&digest, MANIFEST, manifest));
        lay(by_tag, answer(&digest, MANIFEST, manifest));
        let check = |way: &Way| {
            for (target, digest, bytes) in [
                (by_tag, &digest, manifest),
                (&by_digest, &digest, manifest),
                (&blob_target, &blob_digest, blob),
            ] {
                let got = way.cached.get(target);
                assert_eq!((got.status, &*got.body), (200, bytes), "{}", got.text());
                let tag = format!("\"{digest}\"");
                let fields = [("Docker-Content-Digest", &**digest), ("ETag", &tag)];
                assert_fields(&got, &fields, target);
            }
        };
        check(&way);
        if way.has_cache {
            // From the cache, and after a restart without upstream.
            let hex = &blob_digest["sha512:".len()..];
            let file = way.cached.path("blobs/sha512").join(hex);
            crate::support::wait_until("it is kept", crate::support::SOON, || file.exists());
            check(&way);
            way.cached.all_down();
            way.cached.stop();
            way.cached.start_again();
            check(&way);
            way.cached.all_up();
        }
        // Wrong bytes are none, whatever they are named by.
        way.cached.standin.clear_faults();
        let other = sha512(b"other");
        for kind in ["blobs", "manifests"] {
            let target = format!("/v2/team/app/{kind}/{other}");
            let pick = Match::registry().path(&target).always();
            way.cached
                .standin
                .fault(pick, answer(&other, MANIFEST, b"wrong"));
            let got = way.cached.try_get(&target);
            let passed = got.is_some_and(|got| got.status == 200 && got.complete);
            // Without a cache nobody but the client verifies a blob.
            assert!(!passed || (kind == "blobs" && !way.has_cache), "{target}");
        }
    }
}

#[test]
fn the_order_of_accept_makes_no_other_answer() {
    const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
    let cached = Cached::start();
    let image = cached.standin.put_image("team/app", "1.0", &[]);
    let one = [("Accept", DOCKER), ("Accept", MANIFEST)];
    let mut http = Http::connect(cached.address());
    assert_eq!(http.request("HEAD", TAG, &one, b"").status, 200);
    cached.all_down();
    let joined = format!("{MANIFEST};q=0.9 ,{DOCKER}");
    for fields in [
        &[("Accept", MANIFEST), ("Accept", DOCKER)][..],
        &[("accept", joined.as_str())],
        &[("Accept", "application/*")],
        &[("Accept", "text/plain, */*")],
        &[],
    ] {
        let got = http.request("GET", TAG, fields, b"");
        assert_eq!((got.status, got.header("X-Cache")), (200, Some("STALE")));
        assert_eq!(got.body, image.bytes, "{fields:?}");
    }
    // Who cannot read it is not sent it.
    let other = [("Accept", DOCKER)];
    assert_eq!(http.request("GET", TAG, &other, b"").status, 504);
    // By its digest it is what it is.
    let target = format!("/v2/team/app/manifests/{}", image.manifest);
    assert_eq!(http.request("GET", &target, &other, b"").body, image.bytes);
}
