//! Whose blobs a client may read: a blob that the cache holds for one repository is shown in
//! another only by proof. The attacker may push to `team-a` and knows a digest of `team-b`.

use serde_json::json;
use standin::image::{self, MANIFEST};
use standin::{Fault, Layer, Match, Server, digest};

use crate::support::{Cached, Http, Response, target_of};

const UPLOADS: &str = "/v2/team-a/x/blobs/uploads/";
const SECRET: &[u8] = b"the secret layer of team-b";

/// A proxy whose cache holds the secret, and the secret's digest.
fn with_secret(settings: &[(&str, &str)]) -> (Cached, String) {
    let cached = Cached::with(settings);
    let secret = cached.standin.add_blob("team-b/x", SECRET);
    let target = format!("/v2/team-b/x/blobs/{secret}");
    assert_eq!(cached.get(&target).body, SECRET);
    cached.wait_for_blob(&secret);
    (cached, secret)
}

fn call(cached: &Cached, method: &str, target: &str, body: &[u8]) -> Response {
    Http::once(cached.address(), method, target, &[], body)
}

fn begin(cached: &Cached) -> String {
    let begun = call(cached, "POST", UPLOADS, b"");
    target_of(begun.header("Location").expect("a Location")).to_owned()
}

#[track_caller]
fn assert_closed(cached: &Cached, secret: &str, what: &str) {
    for method in ["HEAD", "GET"] {
        let got = call(cached, method, &format!("/v2/team-a/x/blobs/{secret}"), b"");
        assert_eq!(got.status, 404, "{what}: {method}");
        assert_ne!(got.header("X-Cache"), Some("HIT"), "{what}: {method}");
    }
}

#[test]
fn bug_a_parameter_that_only_upstream_decoded_opened_a_blob() {
    let (cached, secret) = with_secret(&[]);
    let real = digest(b"real");
    for query in [
        format!("%64igest={real}&digest={secret}"),
        format!("digest={secret}&%64igest={real}"),
        format!("%2564igest={real}&digest={secret}"),
        format!("DIGEST={real}&digest={secret}"),
        format!("digest={secret}&digest={real}"),
        format!("digest={real};digest={secret}"),
        format!("x=1;digest={real}&digest={secret}"),
        format!("digest[]={real}&digest={secret}"),
        format!("digest+={real}&digest={secret}"),
        format!("%6dount={real}&from=team-a/y&mount={secret}"),
        format!("mount={secret}&from=team-b/x&%66rom=team-a/y"),
    ] {
        let session = begin(&cached);
        let before = cached.calls();
        for (method, target) in [
            ("PUT", format!("{session}?{query}")),
            ("POST", format!("{UPLOADS}?{query}")),
            ("PATCH", format!("{session}?{query}")),
        ] {
            let got = call(&cached, method, &target, b"real");
            assert_eq!(got.status, 400, "{method} {query}: {}", got.text());
            assert!(got.text().contains("parameter"), "{}", got.text());
        }
        assert_eq!(cached.calls(), before, "{query} went upstream");
        assert_closed(&cached, &secret, &query);
    }
}

#[test]
fn bug_the_clients_word_for_a_digest_opened_a_blob() {
    let (cached, secret) = with_secret(&[]);
    let fields = |named: Option<&str>| {
        let named = named.map(|digest| ("Docker-Content-Digest".to_owned(), digest.to_owned()));
        named.into_iter().collect::<Vec<_>>()
    };
    let other = digest(b"other");
    // A registry that takes the upload and names no digest, or another one.
    for named in [None, Some(other.as_str())] {
        let taken = || Fault::Status(201, fields(named), Vec::new());
        let session = begin(&cached);
        for (method, target, body) in [
            ("PUT", format!("{session}?digest={secret}"), &b"other"[..]),
            ("POST", format!("{UPLOADS}?digest={secret}"), b"other"),
            (
                "POST",
                format!("{UPLOADS}?mount={secret}&from=team-b/x"),
                b"",
            ),
            ("POST", format!("{UPLOADS}?mount={secret}"), b""),
        ] {
            cached
                .standin
                .fault(Match::registry().method(method), taken());
            let got = call(&cached, method, &target, body);
            assert_eq!(got.status, 201, "{method} {target}: {}", got.text());
            assert_closed(&cached, &secret, &target);
        }
    }
    // One that says itself that it has mounted the blob is believed.
    let mount = format!("{UPLOADS}?mount={secret}&from=team-b/x");
    assert_eq!(call(&cached, "POST", &mount, b"").status, 201);
    let got = cached.get(&format!("/v2/team-a/x/blobs/{secret}"));
    assert_eq!((got.status, got.header("X-Cache")), (200, Some("HIT")));
}

#[test]
fn whoever_has_the_bytes_may_have_them_back() {
    let (cached, secret) = with_secret(&[]);
    let session = begin(&cached);
    let got = call(
        &cached,
        "PUT",
        &format!("{session}?digest={secret}"),
        SECRET,
    );
    assert_eq!(got.status, 201, "{}", got.text());
    let got = cached.get(&format!("/v2/team-a/x/blobs/{secret}"));
    assert_eq!((got.status, got.header("X-Cache")), (200, Some("HIT")));
}

#[test]
fn bug_a_foreign_layer_opened_a_blob() {
    let (cached, secret) = with_secret(&[]);
    let layers = [Layer::of_files(&[("a", b"a")])];
    let config = image::config("amd64", &layers);
    for bytes in [&config[..], &layers[0].content.to_vec()] {
        cached.standin.add_blob("team-a/x", bytes);
    }
    let plain: serde_json::Value =
        serde_json::from_slice(&image::manifest(&config, &layers)).unwrap();
    let descriptor = |more: serde_json::Value| {
        let mut layer = json!({"digest": secret, "size": SECRET.len(), "mediaType": "x/y"});
        let fields = layer.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        layer
    };
    let urls = json!({"urls": ["https://elsewhere.example/layer"]});
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    for (field, more) in [
        ("layers", urls.clone()),
        ("layers", json!({"mediaType": foreign})),
        ("manifests", json!({})),
        ("manifests", urls),
        ("blobs", json!({})),
        ("Layers", json!({})),
        ("subject", json!({})),
    ] {
        let mut manifest = plain.clone();
        match field {
            "layers" => manifest["layers"]
                .as_array_mut()
                .unwrap()
                .push(descriptor(more)),
            "subject" => manifest["subject"] = descriptor(more),
            _ => manifest[field] = json!([descriptor(more)]),
        }
        let bytes = manifest.to_string();
        let target = "/v2/team-a/x/manifests/1.0";
        let fields = [("Content-Type", MANIFEST)];
        let got = Http::once(cached.address(), "PUT", target, &fields, bytes.as_bytes());
        assert_eq!(got.status, 201, "{}", got.text());
        assert_eq!(cached.get(target).text(), bytes);
        assert_closed(&cached, &secret, &bytes);
    }
}

#[test]
fn bug_a_middlebox_that_says_200_to_a_head_opened_a_blob() {
    let (cached, secret) = with_secret(&[]);
    let html = vec![("Content-Type".to_owned(), "text/html".to_owned())];
    for _ in 0..2 {
        let page = Fault::Status(200, html.clone(), b"<html>log in</html>".to_vec());
        let head = Match::registry().method("HEAD").path(&secret);
        cached.standin.fault(head, page);
        let got = cached.get(&format!("/v2/team-a/x/blobs/{secret}"));
        assert_eq!(got.status, 404, "{}", got.text());
        assert_closed(&cached, &secret, "a page");
    }
}

#[test]
fn a_mount_that_names_no_repository_becomes_an_upload_where_some_are_closed() {
    let (cached, secret) = with_secret(&[("ALLOW_REPOSITORIES", "team-a/*,team-b/*")]);
    let got = call(&cached, "POST", &format!("{UPLOADS}?mount={secret}"), b"");
    assert_eq!(got.status, 202, "{}", got.text());
    let seen = cached.seen(Server::Registry);
    let sent = &seen.last().expect("a request").target;
    assert_eq!(sent, UPLOADS);
    assert_closed(&cached, &secret, "a mount");
    // Without such a rule it is the registry's to decide, as the client asked.
    let (cached, secret) = with_secret(&[]);
    let target = format!("{UPLOADS}?mount={secret}");
    call(&cached, "POST", &target, b"");
    let seen = cached.seen(Server::Registry);
    assert_eq!(seen.last().expect("a request").target, target);
}

#[test]
fn upstream_sees_no_field_that_a_front_end_could_obey() {
    let (cached, _) = with_secret(&[]);
    let fields = [
        ("X-Original-URL", "/v2/team-b/x/tags/list"),
        ("X-Rewrite-URL", "/v2/team-b/x/tags/list"),
        ("X-HTTP-Method-Override", "DELETE"),
        ("X-Amz-Security-Token", "x"),
        ("X-Forwarded-Host", "elsewhere.example"),
        ("Authorization", "Basic eDp5"),
        ("Cookie", "a=b"),
        ("OCI-Something", "kept"),
    ];
    cached.call("GET", "/v2/team-b/x/tags/list", &fields);
    let seen = cached.seen(Server::Registry);
    let sent = seen.last().expect("a request");
    for (name, value) in &fields[..7] {
        assert_ne!(sent.header(name), Some(*value), "{name}");
    }
    assert_eq!(sent.header("OCI-Something"), Some("kept"));
}

#[test]
fn a_path_that_a_front_end_may_read_as_another_never_leaves() {
    let (cached, secret) = with_secret(&[]);
    let before = cached.calls();
    for path in [
        "/v2/team-a/x/blobs/uploads/..;/..;/..;/team-b/x/tags/list".to_owned(),
        "/v2/team-a/x/blobs/uploads/..;x".to_owned(),
        "/v2/team-a/x/blobs/uploads/1;x".to_owned(),
        "/v2/team-a/x/blobs/uploads/.../1".to_owned(),
        "/v2/team-a/x/blobs/uploads/%2e%2e/1".to_owned(),
        "/v2/team-a/x/blobs/uploads/..%2f1".to_owned(),
        "/v2/team-a/x/blobs/uploads/..\\1".to_owned(),
        "/v2/team-a/..;/team-b/x/tags/list".to_owned(),
        format!("/v2/team-a/%2e%2e/team-b/x/blobs/{secret}"),
        format!("/v2/team-a/..;/team-b/x/blobs/{secret}"),
        "/v2/team-a/x;y/manifests/1.0".to_owned(),
        "/v2/team-a/x/manifests/..;".to_owned(),
    ] {
        for method in ["GET", "PUT"] {
            let got = call(&cached, method, &path, b"");
            assert!(
                matches!(got.status, 400 | 404 | 405),
                "{path}: {}",
                got.status
            );
        }
    }
    assert_eq!(cached.calls(), before);
}
