//! What the specification owes a client that pushes, whatever the registry behind leaves out:
//! statuses, `Location`, `Range`, digests; and what is passed on as it is.

use standin::image::MANIFEST;
use standin::{Fault, Match, Options, Quirks, Server, digest};

use crate::support::{Cached, Front, Http, Response, Scratch, error_of, target_of};

const UPLOADS: &str = "/v2/new/repo/blobs/uploads/";
const TAG: &str = "/v2/new/repo/manifests/1.0";

fn with_digest(target: &str, digest: &str) -> String {
    let separator = if target.contains('?') { '&' } else { '?' };
    format!("{target}{separator}digest={digest}")
}

fn location(front: &Front, reply: &Response) -> String {
    let location = reply.header("Location").expect("a Location");
    let own = format!("http://{}/v2/", front.address());
    // Relative where the registry's own is.
    let is_ours = location.starts_with(&own) || location.starts_with("/v2/");
    assert!(is_ours, "{location}");
    target_of(location).to_owned()
}

/// An answer of upstream's with these fields and nothing else.
fn bare(status: u16, fields: &[(&str, &str)]) -> Fault {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Fault::Status(status, fields.iter().map(own).collect(), Vec::new())
}

#[test]
fn an_upload_has_all_its_fields() {
    // ECR: absolute Locations, no id, no Range, 201 for PATCH.
    let front = Front::start();
    for target in [UPLOADS, UPLOADS.trim_end_matches('/')] {
        let begun = front.call("POST", target, &[], b"");
        assert_eq!(begun.status, 202);
        assert_eq!(front.seen(Server::Registry).pop().unwrap().target, UPLOADS);
        let target = location(&front, &begun);
        let uuid = target.rsplit('/').next().unwrap();
        assert_eq!(begun.header("Docker-Upload-UUID"), Some(uuid));
        assert_eq!(begun.header("Range"), Some("0-0"));
        let patch = front.call("PATCH", &target, &[], b"abcde");
        assert_eq!((patch.status, patch.header("Range")), (202, Some("0-4")));
        assert_eq!(location(&front, &patch), target);
        let status = front.get(&target);
        assert_eq!((status.status, status.header("Range")), (204, Some("0-4")));
        assert_eq!(location(&front, &status), target);
        let digest = digest(b"abcde");
        let put = front.call("PUT", &with_digest(&target, &digest), &[], b"");
        assert_eq!(put.status, 201);
        assert_eq!(put.header("Docker-Content-Digest"), Some(digest.as_str()));
        assert_eq!(
            location(&front, &put),
            format!("/v2/new/repo/blobs/{digest}")
        );
    }
}

#[test]
fn what_a_registry_leaves_out_is_supplied() {
    let front = Front::start();
    let uploads = Match::registry;
    front.standin.fault(
        uploads(),
        bare(202, &[("Location", "/v2/new/repo/blobs/uploads/a-1?x=%2B")]),
    );
    let begun = front.call("POST", UPLOADS, &[], b"");
    assert_eq!(
        location(&front, &begun),
        "/v2/new/repo/blobs/uploads/a-1?x=%2B"
    );
    assert_eq!(begun.header("Docker-Upload-UUID"), Some("a-1"));
    assert_eq!(begun.header("Range"), Some("0-0"));
    let target = location(&front, &begun);
    front.standin.fault(uploads(), bare(201, &[]));
    let range = [("Content-Range", "5-9")];
    let patch = front.call("PATCH", &target, &range, b"fghij");
    assert_eq!((patch.status, patch.header("Range")), (202, Some("0-9")));
    assert_eq!(location(&front, &patch), target);
    let digest = digest(b"x");
    front.standin.fault(uploads(), bare(201, &[]));
    let put = front.call("PUT", &with_digest(&target, &digest), &[], b"x");
    assert_eq!(
        (put.status, put.header("Docker-Content-Digest")),
        (201, Some(digest.as_str()))
    );
    assert_eq!(
        location(&front, &put),
        format!("/v2/new/repo/blobs/{digest}")
    );
    // What it does say stays, odd or not.
    let said = [
        ("Location", "/v2/elsewhere/blobs/sha256:0"),
        ("Docker-Content-Digest", "sha256:0"),
    ];
    front.standin.fault(uploads(), bare(201, &said));
    let put = front.call("PUT", &with_digest(&target, &digest), &[], b"x");
    assert_eq!(location(&front, &put), "/v2/elsewhere/blobs/sha256:0");
    assert_eq!(put.header("Docker-Content-Digest"), Some("sha256:0"));
    let said = [
        ("Location", "/v2/new/repo/blobs/uploads/b?_state=1"),
        ("OCI-Chunk-Min-Length", "5242880"),
        ("Docker-Upload-UUID", "other"),
        ("Range", "0-7"),
    ];
    front.standin.fault(uploads(), bare(202, &said));
    let begun = front.call("POST", UPLOADS, &[], b"");
    assert_eq!(begun.header("OCI-Chunk-Min-Length"), Some("5242880"));
    assert_eq!(begun.header("Docker-Upload-UUID"), Some("other"));
    assert_eq!(begun.header("Range"), Some("0-7"));
}

#[test]
fn a_pushed_manifest_has_its_digest_and_location() {
    let strict = Options {
        quirks: Quirks::none(),
        ..Options::default()
    };
    for options in [Options::default(), strict] {
        let front = Front::with(options, &[]);
        let kind = [("Content-Type", MANIFEST)];
        let subject = digest(b"subject");
        let manifest = format!(r#"{{"layers":[], "subject":{{"digest":"{subject}"}}}}"#);
        let wanted = digest(manifest.as_bytes());
        let by_digest = format!("/v2/new/repo/manifests/{wanted}");
        for target in [TAG, &by_digest] {
            let put = front.call("PUT", target, &kind, manifest.as_bytes());
            assert_eq!(put.status, 201, "{}", put.text());
            assert_eq!(put.header("Docker-Content-Digest"), Some(wanted.as_str()));
            assert_eq!(put.all("Docker-Content-Digest").count(), 1);
            assert_eq!(put.header("OCI-Subject"), Some(subject.as_str()));
            assert_eq!(location(&front, &put), by_digest);
            let (_, media_type, bytes) = front.standin.manifest("new/repo", &wanted).unwrap();
            assert_eq!(
                (media_type.as_str(), &*bytes),
                (MANIFEST, manifest.as_bytes())
            );
        }
        // Chunked: the digest is of what streams by.
        let mut body = manifest.as_bytes();
        let put = front.http().request_chunked("PUT", TAG, &kind, &mut body);
        let put = put.unwrap();
        assert_eq!(put.header("Docker-Content-Digest"), Some(wanted.as_str()));
        // The registry's refusal of another digest is its own.
        let wrong = front.call("PUT", &by_digest, &kind, b"{}");
        assert_eq!(
            (wrong.status, error_of(&wrong).0),
            (400, "DIGEST_INVALID".into())
        );
    }
}

#[test]
fn a_manifest_of_4_mib_is_taken_and_no_larger_one() {
    const MOST: usize = 4 << 20;
    let cached = Cached::on(
        Scratch::new(),
        Options::default(),
        &[("CACHE_TAG_TTL", "1h")],
    );
    let mut manifest = br#"{"schemaVersion":2,"layers":[]}"#.to_vec();
    manifest.resize(MOST, b' ');
    let kind = [("Content-Type", MANIFEST)];
    let put = Http::once(cached.address(), "PUT", TAG, &kind, &manifest);
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!(cached.get(TAG).digest, digest(&manifest));
    manifest.push(b' ');
    let requests = cached.calls();
    let put = Http::once(cached.address(), "PUT", TAG, &kind, &manifest);
    assert_eq!(
        (put.status, error_of(&put).0),
        (413, "MANIFEST_INVALID".into())
    );
    assert_eq!(cached.calls(), requests);
    let mut body = manifest.as_slice();
    let mut http = Http::connect(cached.address());
    let put = http.request_chunked("PUT", TAG, &kind, &mut body).unwrap();
    assert_eq!(
        (put.status, error_of(&put).0),
        (413, "MANIFEST_INVALID".into())
    );
    // Upstream did not get the part for the whole, and the tag is what it was.
    let (_, _, bytes) = cached.standin.manifest("new/repo", "1.0").unwrap();
    assert_eq!(bytes.len(), MOST);
    assert_eq!(cached.get(TAG).digest, digest(&bytes));
}

#[test]
fn a_registry_that_takes_no_whole_blob_in_a_post_is_passed_on() {
    let quirks = Quirks {
        single_post_begins: true,
        ..Quirks::none()
    };
    let options = Options {
        quirks,
        ..Options::default()
    };
    let cached = Cached::on(Scratch::new(), options, &[]);
    let wanted = digest(b"by post");
    let call =
        |method: &str, target: &str| Http::once(cached.address(), method, target, &[], b"by post");
    let begun = call("POST", &with_digest(UPLOADS, &wanted));
    assert_eq!(begun.status, 202, "{}", begun.text());
    assert!(!cached.has(&wanted));
    let target = target_of(begun.header("Location").unwrap());
    assert_eq!(call("PUT", &with_digest(target, &wanted)).status, 201);
    assert!(cached.has(&wanted));
}

#[test]
fn a_mount_that_is_refused_begins_an_upload() {
    let quirks = Quirks {
        blob_mounts: false,
        ..Quirks::ecr()
    };
    let options = Options {
        quirks,
        ..Options::default()
    };
    let front = Front::with(options, &[]);
    let blob = front.standin.add_blob("team/base", b"shared");
    let target = format!("{UPLOADS}?mount={blob}&from=team%2Fbase");
    let begun = front.call("POST", &target, &[], b"");
    assert_eq!(
        (begun.status, begun.header("Docker-Content-Digest")),
        (202, None)
    );
    assert!(location(&front, &begun).starts_with(UPLOADS));
}

#[test]
fn chunks_out_of_order_and_empty_blobs_are_refused_in_the_registrys_words() {
    let front = Front::start();
    let begun = front.call("POST", UPLOADS, &[], b"");
    let target = location(&front, &begun);
    let range = [("Content-Range", "5-9")];
    let refused = front.call("PATCH", &target, &range, b"fghij");
    assert_eq!(
        (refused.status, error_of(&refused).0),
        (416, "BLOB_UPLOAD_INVALID".into())
    );
    let empty = front.call("PUT", &with_digest(&target, &digest(b"")), &[], b"");
    assert_eq!(empty.status, 400);
    assert!(error_of(&empty).1.contains("does not have any parts"));
}

#[test]
fn a_chunk_out_of_order_is_told_where_the_upload_stands() {
    let options = Options {
        quirks: Quirks::none(),
        ..Options::default()
    };
    let front = Front::with(options, &[]);
    let begun = front.call("POST", UPLOADS, &[], b"");
    let chunk = |target: &str, range: &str, body: &[u8]| {
        front.call("PATCH", target, &[("Content-Range", range)], body)
    };
    let first = chunk(&location(&front, &begun), "0-4", b"abcde");
    assert_eq!((first.status, first.header("Range")), (202, Some("0-4")));
    let target = location(&front, &first);
    let gap = chunk(&target, "7-9", b"hij");
    assert_eq!((gap.status, gap.header("Range")), (416, Some("0-4")));
    assert_eq!(error_of(&gap).0, "BLOB_UPLOAD_INVALID");
    let state = front.get(&target);
    assert_eq!((state.status, state.header("Range")), (204, Some("0-4")));
    let second = chunk(&location(&front, &state), "5-6", b"fg");
    assert_eq!((second.status, second.header("Range")), (202, Some("0-6")));
    let digest = digest(b"abcdefg");
    let put = with_digest(&location(&front, &second), &digest);
    assert_eq!(front.call("PUT", &put, &[], b"").status, 201);
}

#[test]
fn every_refusal_is_an_error_document() {
    let front = Front::start();
    front.standin.put_image("team/app", "1.0", &[]);
    let plain = vec![(
        "Content-Type".to_owned(),
        "text/plain; charset=utf-8".to_owned(),
    )];
    let denied = "denied: User: arn:aws:iam::1:user/x is not authorized to perform: ecr:PutImage";
    let html = vec![("Content-Type".to_owned(), "text/html".to_owned())];
    let faults = [
        (Fault::Status(403, plain, denied.into()), 403, "DENIED"),
        (
            Fault::Status(503, html, b"<h1>down</h1>".to_vec()),
            503,
            "UNAVAILABLE",
        ),
        // The code follows from what was asked for.
        (Fault::status(404), 404, ""),
        (
            Fault::TooMany429 {
                retry_after: Some(9),
            },
            429,
            "TOOMANYREQUESTS",
        ),
    ];
    for (fault, status, code) in faults {
        for (method, target, body, unknown) in [
            (
                "GET",
                "/v2/team/app/manifests/1.0",
                &b""[..],
                "MANIFEST_UNKNOWN",
            ),
            ("GET", "/v2/team/app/tags/list", b"", "NAME_UNKNOWN"),
            ("POST", UPLOADS, b"", "NAME_UNKNOWN"),
            ("PUT", TAG, b"{}", "MANIFEST_UNKNOWN"),
            ("DELETE", TAG, b"", "MANIFEST_UNKNOWN"),
        ] {
            let other = (status == 429).then(Front::start);
            // After a 429 the registry is left alone for a while.
            let front = other.as_ref().unwrap_or(&front);
            front.standin.fault(Match::registry(), fault.clone());
            let got = front.call(method, target, &[], body);
            let code = if code.is_empty() { unknown } else { code };
            assert_eq!(
                (got.status, error_of(&got).0),
                (status, code.to_owned()),
                "{method}"
            );
            assert_eq!(got.header("Content-Type"), Some("application/json"));
            assert_eq!(got.header("Retry-After").is_some(), status == 429);
            if status == 403 {
                assert_eq!(error_of(&got).1, denied);
            }
        }
        front.standin.fault(Match::registry(), fault.clone());
        let head = front.head("/v2/team/app/manifests/1.0");
        assert_eq!((head.status, head.length), (status, 0));
    }
    let wrong = front.call("DELETE", UPLOADS, &[], b"");
    assert_eq!((wrong.status, wrong.header("Allow")), (405, Some("POST")));
    assert_eq!(error_of(&wrong).0, "UNSUPPORTED");
}

#[test]
fn a_registry_that_shows_what_it_was_sent_does_not_show_the_token() {
    let front = Front::start();
    assert_eq!(front.get("/v2/_catalog").status, 200);
    let sent = front.seen(Server::Registry).pop().unwrap();
    let authorization = sent.header("Authorization").unwrap().to_owned();
    let page = format!(r#"{{"errors":[{{"code":"X","message":"you sent {authorization}"}}]}}"#);
    let fields = vec![
        ("Content-Type".to_owned(), "application/json".to_owned()),
        ("X-Echo".to_owned(), authorization.clone()),
    ];
    let token = authorization.strip_prefix("Basic ").unwrap();
    for (method, body) in [("GET", &b""[..]), ("PUT", b"{}")] {
        let fault = Fault::Status(400, fields.clone(), page.clone().into_bytes());
        front.standin.fault(Match::registry(), fault);
        let got = front.call(method, TAG, &[], body);
        assert_eq!((got.status, error_of(&got).0), (400, "X".into()));
        assert!(!got.text().contains(token), "{}", got.text());
        assert_eq!(got.header("X-Echo"), None);
    }
}
