//! Pushes: uploads in every form, manifests, deletions, streamed and with `Location`s that lead
//! back through the proxy.

use std::io::Read;

use standin::image::{self, MANIFEST};
use standin::{Content, Fault, Layer, Match, Options, Quirks, Server, digest};

use crate::support::{Front, Http, Response, error_of, target_of};

const UPLOADS: &str = "/v2/new/repo/blobs/uploads/";

/// ECR's ways, and the specification's with `_state` in every `Location`, absolute and relative.
fn ways() -> [Options; 3] {
    let strict = |absolute_locations| Options {
        quirks: Quirks {
            absolute_locations,
            ..Quirks::none()
        },
        ..Options::default()
    };
    [Options::default(), strict(true), strict(false)]
}

/// The target in `Location`, which must name the proxy.
fn next(front: &Front, reply: &Response) -> String {
    let location = reply.header("Location").expect("a Location");
    let own = format!("http://{}/v2/", front.address());
    // Relative where the registry's own is.
    let is_ours = location.starts_with(&own) || location.starts_with("/v2/");
    assert!(is_ours, "{location}");
    assert_eq!(reply.all("Location").count(), 1);
    target_of(location).to_owned()
}

fn with_digest(target: &str, digest: &str) -> String {
    let separator = if target.contains('?') { '&' } else { '?' };
    format!("{target}{separator}digest={}", digest.replace(':', "%3A"))
}

fn begin(front: &Front) -> String {
    let begun = front.call("POST", UPLOADS, &[], b"");
    assert_eq!(begun.status, 202, "{}", begun.text());
    next(front, &begun)
}

/// POST, then PUT with the whole blob.
fn put_blob(front: &Front, bytes: &[u8]) -> String {
    let digest = digest(bytes);
    let target = with_digest(&begin(front), &digest);
    let put = front.call("PUT", &target, &[], bytes);
    assert_eq!(put.status, 201, "{}", put.text());
    digest
}

fn held(front: &Front, digest: &str) -> Option<Vec<u8>> {
    let blob = front.standin.blob("new/repo", digest);
    blob.map(|content| content.to_vec())
}

#[test]
fn a_blob_is_pushed_in_chunks() {
    for options in ways() {
        let front = Front::with(options, &[]);
        let mut http = front.http();
        let begun = http.request("POST", UPLOADS, &[], b"");
        let mut target = next(&front, &begun);
        let kind = [("Content-Type", "application/octet-stream")];
        for (range, part) in [("0-4", b"abcde"), ("5-9", b"fghij")] {
            let fields = [kind[0], ("Content-Range", range)];
            let reply = http.request("PATCH", &target, &fields, part);
            assert_eq!(reply.status, 202, "{}", reply.text());
            assert!(reply.header("Range").is_some());
            let seen = front.seen(Server::Registry).pop().unwrap();
            for (name, value) in fields {
                assert_eq!(seen.header(name), Some(value));
            }
            target = next(&front, &reply);
        }
        let progress = http.get(&target);
        assert_eq!(progress.status, 204);
        target = next(&front, &progress);
        let wanted = digest(b"abcdefghij");
        let put = http.request("PUT", &with_digest(&target, &wanted), &[], b"");
        assert_eq!(put.status, 201, "{}", put.text());
        assert_eq!(next(&front, &put), format!("/v2/new/repo/blobs/{wanted}"));
        assert_eq!(held(&front, &wanted).unwrap(), b"abcdefghij");
        assert_eq!(front.standin.open_uploads(), 0);
    }
}

#[test]
fn a_state_that_is_touched_would_be_refused() {
    let options = ways()[2].clone();
    let front = Front::with(options, &[]);
    let target = begin(&front);
    assert!(target.contains("_state="), "{target}");
    let touched = format!("{target}x");
    let reply = front.call("PATCH", &touched, &[], b"abc");
    assert_eq!(
        (reply.status, error_of(&reply).0),
        (400, "BLOB_UPLOAD_INVALID".into())
    );
    assert_eq!(front.call("PATCH", &target, &[], b"abc").status, 202);
}

#[test]
fn a_blob_is_pushed_in_one_request() {
    for options in ways() {
        let front = Front::with(options, &[]);
        let put = put_blob(&front, b"by put");
        assert_eq!(held(&front, &put).unwrap(), b"by put");
        let wanted = digest(b"by post");
        let post = front.call("POST", &with_digest(UPLOADS, &wanted), &[], b"by post");
        assert_eq!(post.status, 201, "{}", post.text());
        assert_eq!(held(&front, &wanted).unwrap(), b"by post");
        let wrong = front.call("POST", &with_digest(UPLOADS, &wanted), &[], b"another");
        assert_eq!(
            (wrong.status, error_of(&wrong).0),
            (400, "DIGEST_INVALID".into())
        );
    }
}

#[test]
fn an_image_is_pushed_and_pulled_again() {
    for options in ways() {
        let front = Front::with(options, &[]);
        let layer = Layer::of_files(&[("hello", b"hi")]);
        let config = image::config("amd64", std::slice::from_ref(&layer));
        let manifest = image::manifest(&config, std::slice::from_ref(&layer));
        let kind = [("Content-Type", MANIFEST)];
        let target = "/v2/new/repo/manifests/1.0";
        let early = front.call("PUT", target, &kind, &manifest);
        assert_eq!(
            (early.status, error_of(&early).0),
            (404, "MANIFEST_BLOB_UNKNOWN".into())
        );
        put_blob(&front, &layer.content.to_vec());
        put_blob(&front, &config);
        let put = front.call("PUT", target, &kind, &manifest);
        assert_eq!(put.status, 201, "{}", put.text());
        let wanted = digest(&manifest);
        assert_eq!(put.header("Docker-Content-Digest"), Some(wanted.as_str()));
        if put.header("Location").is_some() {
            next(&front, &put);
        }
        let (_, media_type, bytes) = front.standin.manifest("new/repo", "1.0").unwrap();
        assert_eq!((media_type.as_str(), &bytes), (MANIFEST, &manifest));
        let pulled = front.get(target);
        assert_eq!(
            (pulled.body.as_slice(), pulled.header("Content-Type")),
            (&*manifest, Some(MANIFEST))
        );
        assert_eq!(front.call("DELETE", target, &[], b"").status, 202);
        assert_eq!(front.get(target).status, 404);
    }
}

#[test]
fn a_blob_is_mounted_from_another_repository() {
    let front = Front::start();
    let blob = front.standin.add_blob("team/base", b"shared");
    let target = format!("{UPLOADS}?mount={blob}&from=team%2Fbase");
    let mounted = front.call("POST", &target, &[], b"");
    assert_eq!(mounted.status, 201);
    assert_eq!(next(&front, &mounted), format!("/v2/new/repo/blobs/{blob}"));
    assert_eq!(held(&front, &blob).unwrap(), b"shared");
    assert_eq!(front.seen(Server::Registry).pop().unwrap().target, target);
    let absent = format!("{UPLOADS}?mount={}&from=team%2Fbase", digest(b"absent"));
    assert_eq!(front.call("POST", &absent, &[], b"").status, 202);
}

#[test]
fn an_upload_is_given_up() {
    let front = Front::start();
    let target = begin(&front);
    assert_eq!(front.standin.open_uploads(), 1);
    assert_eq!(front.call("DELETE", &target, &[], b"").status, 204);
    assert_eq!(front.standin.open_uploads(), 0);
    let gone = front.get(&target);
    assert_eq!(
        (gone.status, error_of(&gone).0),
        (404, "BLOB_UPLOAD_UNKNOWN".into())
    );
}

#[test]
fn a_client_that_expects_100_is_told_to_go_on() {
    let front = Front::start();
    let target = begin(&front);
    let mut http = front.http();
    let fields = [("Content-Length", "3"), ("Expect", "100-continue")];
    http.send_head("PATCH", &target, &fields).unwrap();
    let mut interim = [0; 25];
    http.stream()
        .set_read_timeout(Some(crate::support::SOON))
        .unwrap();
    (&mut http.stream()).read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    http.send(b"abc").unwrap();
    assert_eq!(http.receive("PATCH").unwrap().status, 202);
    let seen = front.seen(Server::Registry).pop().unwrap();
    assert_eq!((seen.header("Expect"), seen.body_len), (None, 3));
}

#[test]
fn lengths_and_chunks_go_upstream_as_they_came() {
    let front = Front::start();
    let mut http = front.http();
    let target = begin(&front);
    let reply = http.request_chunked("PATCH", &target, &[], &mut &b"abcde"[..]);
    assert_eq!(reply.unwrap().status, 202);
    let seen = front.seen(Server::Registry).pop().unwrap();
    assert_eq!(seen.header("Transfer-Encoding"), Some("chunked"));
    assert_eq!((seen.header("Content-Length"), seen.body_len), (None, 5));
    assert_eq!(http.request("PATCH", &target, &[], b"fgh").status, 202);
    let seen = front.seen(Server::Registry).pop().unwrap();
    assert_eq!(seen.header("Content-Length"), Some("3"));
    assert_eq!((seen.header("Transfer-Encoding"), seen.body_len), (None, 3));
    let wanted = digest(b"abcdefgh");
    let put = http.request_chunked("PUT", &with_digest(&target, &wanted), &[], &mut &b""[..]);
    assert_eq!(put.unwrap().status, 201);
    assert_eq!(held(&front, &wanted).unwrap(), b"abcdefgh");
}

#[test]
fn a_large_blob_is_pushed_in_constant_memory() {
    const SIZE: u64 = 300 << 20;
    let front = Front::start();
    let content = Content::Generated {
        size: SIZE,
        seed: 2,
    };
    let wanted = content.digest();
    for chunked in [false, true] {
        let target = with_digest(&begin(&front), &wanted);
        let mut http = Http::connect_within(front.address(), std::time::Duration::from_secs(60));
        let mut body = content.reader();
        let put = if chunked {
            http.request_chunked("PUT", &target, &[], &mut body)
        } else {
            http.request_streamed("PUT", &target, &[], (SIZE, &mut body))
        };
        // The stand-in answers 400 to any other bytes.
        let put = put.unwrap();
        assert_eq!(put.status, 201, "{}", put.text());
        let seen = front.seen(Server::Registry).pop().unwrap();
        assert_eq!((seen.method.as_str(), seen.body_len), ("PUT", SIZE));
    }
    let peak = front.proxy.peak_rss_kib();
    assert!(peak < 64 << 10, "{peak} KiB resident at the most");
}

#[test]
fn upstreams_refusals_reach_the_client_as_they_are() {
    let front = Front::start();
    let refusals = [
        Fault::registry_error(400, "TAG_INVALID", "immutable"),
        Fault::registry_error(403, "DENIED", "not authorized to perform: ecr:PutImage"),
        Fault::registry_error(404, "NAME_UNKNOWN", "no such repository"),
        Fault::registry_error(429, "TOOMANYREQUESTS", "slower"),
        Fault::registry_error(500, "INTERNAL", "again"),
    ];
    for fault in refusals {
        let Fault::Status(status, _, body) = &fault else {
            continue;
        };
        let (status, body) = (*status, body.clone());
        for (method, target, sent) in [
            ("POST", UPLOADS, &b""[..]),
            ("PUT", "/v2/new/repo/manifests/1", b"{}"),
        ] {
            front.standin.fault(Match::registry(), fault.clone());
            let got = front.call(method, target, &[], sent);
            assert_eq!((got.status, &got.body), (status, &body), "{method}");
        }
    }
    assert_eq!(front.token_calls(), 1);
}
