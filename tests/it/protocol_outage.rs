//! What an outage is: every way in which upstream or our own identity can fail leaves what is
//! cached, says so, and costs nobody any time; nothing that fails is taken for a 404.

use std::time::{Duration, Instant};

use standin::{Fault, Image, Layer, Match, Options, Server};

use crate::support::{Cached, Response, Scratch};

const TAG: &str = "/v2/team/app/manifests/1.0";
const LIST: &str = "/v2/team/app/tags/list";
/// No answer of the cache takes longer, on a machine that is busy with other tests too.
const AT_ONCE: Duration = Duration::from_secs(1);

fn pulled() -> (Cached, Image) {
    let settings = [("CACHE_TAG_TTL", "0s")];
    let cached = Cached::on(Scratch::new(), Options::default(), &settings);
    let layer = Layer::of_files(&[("hello", b"outage")]);
    let image = cached.standin.put_image("team/app", "1.0", &[layer]);
    for target in [TAG.to_owned(), LIST.to_owned(), referrers(&image)] {
        assert_eq!(cached.get(&target).status, 200, "{target}");
    }
    let blob = &image.layers[0];
    let got = cached.get(&format!("/v2/team/app/blobs/{blob}"));
    assert_eq!(&got.digest, blob);
    cached.wait_for_blob(blob);
    (cached, image)
}

fn referrers(image: &Image) -> String {
    format!("/v2/team/app/referrers/{}", image.manifest)
}

fn assert_stale(got: &Response, what: &str) {
    assert_eq!(got.status, 200, "{what}: {}", got.text());
    assert_eq!(got.header("X-Cache"), Some("STALE"), "{what}");
    let warning = got.header("Warning").unwrap_or_default();
    let text = warning.strip_prefix("299 - \"").unwrap_or_default();
    let text = text.strip_suffix('"').unwrap_or_default();
    assert!(!text.is_empty() && !text.contains(['"', '\\']), "{warning}");
    assert!(warning.len() <= 4096, "{what}");
    let age: Option<u64> = got.header("Age").and_then(|age| age.parse().ok());
    assert!(
        age.is_some_and(|age| age < 600),
        "{what}: {:?}",
        got.headers
    );
}

/// Everything that is cached, and something that is not.
fn assert_outage(cached: &Cached, image: &Image, what: &str) {
    for target in [TAG.to_owned(), LIST.to_owned(), referrers(image)] {
        assert_stale(&cached.get(&target), &format!("{what}: {target}"));
        let head = cached.head(&target);
        assert_stale(&head, what);
        assert_eq!(head.length, 0);
    }
    let since = Instant::now();
    for (target, digest) in [
        (
            format!("/v2/team/app/manifests/{}", image.manifest),
            &image.manifest,
        ),
        (
            format!("/v2/team/app/blobs/{}", image.layers[0]),
            &image.layers[0],
        ),
    ] {
        let got = cached.get(&target);
        assert_eq!((got.header("X-Cache"), &got.digest), (Some("HIT"), digest));
        assert_eq!(
            got.header("Warning"),
            None,
            "what cannot change is not stale"
        );
    }
    assert!(since.elapsed() < AT_ONCE, "{what}: {:?}", since.elapsed());
    for target in [
        "/v2/team/app/manifests/absent".to_owned(),
        format!("/v2/team/app/blobs/sha256:{}", "0".repeat(64)),
        "/v2/other/tags/list".to_owned(),
    ] {
        let got = cached.get(&target);
        let status = got.status;
        assert!(
            matches!(status, 403 | 429 | 500..=599),
            "{what}: {target}: {status}"
        );
    }
}

#[test]
fn whatever_the_registry_answers_but_404_leaves_what_is_cached() {
    let (mut cached, image) = pulled();
    let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let html = vec![field("Content-Type", "text/html")];
    for fault in [
        Fault::Status(500, Vec::new(), Vec::new()),
        Fault::Status(502, html.clone(), b"<h1>bad gateway</h1>".to_vec()),
        Fault::Status(504, Vec::new(), Vec::new()),
        Fault::Unauthorized401,
        Fault::ExpiredToken403,
        Fault::registry_error(403, "DENIED", "not authorized \"at all\" \\ to pull"),
        Fault::Status(407, vec![field("Proxy-Authenticate", "Basic")], Vec::new()),
        Fault::Status(
            302,
            vec![field("Location", "https://login.example/")],
            Vec::new(),
        ),
        Fault::CloseBeforeHead,
        Fault::garbage_head(),
        Fault::Raw(Vec::new()),
        // The registry is left alone for a while after these.
        Fault::Status(503, vec![field("Retry-After", "120")], Vec::new()),
        Fault::TooMany429 {
            retry_after: Some(600),
        },
    ] {
        cached.standin.clear_faults();
        cached
            .standin
            .fault(Match::registry().always(), fault.clone());
        assert_outage(&cached, &image, &format!("{fault:?}"));
    }
    cached.standin.clear_faults();
    cached.stop();
    cached.start_again();
    cached.standin.fault(
        Match::registry().always(),
        Fault::Status(200, html, b"<p>".to_vec()),
    );
    // What is no list, and no manifest of that digest, is an outage too.
    assert_stale(&cached.get(LIST), "a captive portal");
    cached.standin.clear_faults();
    let got = cached.get(TAG);
    assert_eq!(got.header("X-Cache"), Some("REVALIDATED"), "{}", got.text());
}

#[test]
fn whatever_keeps_us_from_the_registry_leaves_what_is_cached() {
    let (mut cached, image) = pulled();
    cached.standin.down(Server::Registry);
    assert_outage(&cached, &image, "refused");
    cached.standin.up(Server::Registry);
    let registry = cached.standin.registry_url();
    // TLS where plain text is spoken.
    let tls = registry.replace("http://", "https://");
    cached.stop();
    cached.start_again_with(&[("ECR", &tls)]);
    assert_outage(&cached, &image, "TLS");
}

#[test]
fn whatever_is_wrong_with_our_identity_leaves_what_is_cached() {
    let (mut cached, image) = pulled();
    let error = |status, code: &str| Fault::aws_error(status, code, "no");
    for fault in [
        error(400, "ExpiredTokenException"),
        error(400, "UnrecognizedClientException"),
        error(400, "InvalidSignatureException"),
        error(400, "AccessDeniedException"),
        error(400, "ThrottlingException"),
        error(500, "ServerException"),
        Fault::aws_error(
            400,
            "InvalidSignatureException",
            "Signature expired: 2001 is now earlier",
        ),
        Fault::Status(200, Vec::new(), b"<html>".to_vec()),
        Fault::CloseBeforeHead,
    ] {
        cached.stop();
        cached.standin.clear_faults();
        cached.standin.fault(Match::api().always(), fault.clone());
        cached.start_again();
        assert_outage(&cached, &image, &format!("{fault:?}"));
        assert_eq!(cached.get("/readyz").status, 200, "{fault:?}");
    }
    cached.standin.clear_faults();
    cached.stop();
    cached.start_again_with(&[
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]);
    assert_outage(&cached, &image, "no credentials at all");
}

#[test]
fn a_tag_within_its_time_has_an_age_and_no_warning() {
    let cached = Cached::with(&[("CACHE_TAG_TTL", "1h")]);
    cached.standin.put_image("team/app", "1.0", &[]);
    let first = cached.get(TAG);
    assert_eq!(
        (first.header("X-Cache"), first.header("Age")),
        (Some("MISS"), None)
    );
    let calls = cached.calls();
    let got = cached.get(TAG);
    assert_eq!(
        (got.header("X-Cache"), got.header("Warning")),
        (Some("HIT"), None)
    );
    let age: u64 = got.header("Age").unwrap().parse().unwrap();
    assert!(age < 600);
    assert_eq!(cached.calls(), calls);
}

#[test]
fn tags_pushed_along_with_a_digest_are_true_at_once() {
    const KIND: (&str, &str) = ("Content-Type", standin::image::MANIFEST);
    let cached = Cached::with(&[("CACHE_TAG_TTL", "forever")]);
    for tag in ["1.0", "1.1", "1.2", "kept"] {
        cached.standin.put_image("team/app", tag, &[]);
        let target = format!("/v2/team/app/manifests/{tag}");
        assert_eq!(cached.get(&target).status, 200);
    }
    let layer = Layer::of_files(&[("hello", b"new")]);
    let image = ["1.0", "1.1", "1.2", "kept"].map(|tag| {
        cached
            .standin
            .put_image("team/app", tag, std::slice::from_ref(&layer))
    });
    let image = &image[0];
    // As the specification has it from version 1.2 on: the tags in the query, and `OCI-Tag` for
    // each that was taken.
    let target = format!(
        "/v2/team/app/manifests/{}?tag=1.0&tag=1%2E1",
        image.manifest
    );
    let taken = [("OCI-Tag", "1.0"), ("OCI-Tag", "1.2")];
    let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let fields = taken.map(own).into();
    cached.standin.fault(
        Match::registry().method("PUT"),
        Fault::Status(201, fields, Vec::new()),
    );
    let mut http = crate::support::Http::connect(cached.address());
    let put = http.request("PUT", &target, &[KIND], &image.bytes);
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!(put.all("OCI-Tag").collect::<Vec<_>>(), ["1.0", "1.2"]);
    let seen = cached.seen(Server::Registry).pop().unwrap();
    assert_eq!(seen.target, target);
    for tag in ["1.0", "1.1", "1.2"] {
        let got = cached.get(&format!("/v2/team/app/manifests/{tag}"));
        assert_eq!(got.body, image.bytes, "{tag}");
    }
    let kept = cached.get("/v2/team/app/manifests/kept");
    assert_eq!(kept.header("X-Cache"), Some("HIT"));
    assert_ne!(kept.body, image.bytes);
}
