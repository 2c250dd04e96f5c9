//! Errors, one by one: each has its status, its code in an OCI document, and the fields that HTTP
//! demands with it; and a HEAD gets all of that but the document.

use standin::{Fault, Match, Options, Quirks, Server};

use crate::support::{Cached, Http, Response, Scratch, error_of};

const TAG: &str = "/v2/team/app/manifests/1.0";
const ABSENT: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// With a cache and without one, in front of ECR and of a registry as the specification has it.
fn ways(settings: &[(&str, &str)]) -> Vec<Cached> {
    let mut ways = Vec::new();
    for quirks in [Quirks::ecr(), Quirks::none()] {
        for cache in [&[][..], &[("CACHE_DIR", "off")]] {
            let options = Options {
                quirks: quirks.clone(),
                ..Options::default()
            };
            let settings = [settings, cache].concat();
            let cached = Cached::on(Scratch::new(), options, &settings);
            cached.standin.put_image("team/app", "1.0", &[]);
            ways.push(cached);
        }
    }
    ways
}

/// The document of a refusal, as the distribution-spec has it ("Error Codes").
fn assert_refused(got: &Response, status: u16, code: &str, what: &str) {
    assert_eq!(
        (got.status, error_of(got).0.as_str()),
        (status, code),
        "{what}: {}",
        got.text()
    );
    assert!(got.complete, "{what}");
    assert_eq!(got.header("Content-Type"), Some("application/json"));
    let api = got.header("Docker-Distribution-Api-Version");
    assert_eq!(api, Some("registry/2.0"), "{what}");
    let document: serde_json::Value = serde_json::from_slice(&got.body).unwrap();
    let errors = document["errors"].as_array().unwrap();
    assert!(!errors.is_empty(), "{what}");
    let is_code = |code: &str| code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    for error in errors {
        assert!(is_code(error["code"].as_str().unwrap()), "{document}");
        assert!(error["message"].is_string(), "{document}");
    }
}

/// The same refusal of a HEAD, but for what says that it comes anew.
fn assert_headless(head: &Response, got: &Response, what: &str) {
    assert_eq!((head.status, head.length), (got.status, 0), "{what}");
    for name in ["Content-Type", "Retry-After", "WWW-Authenticate", "Allow"] {
        assert_eq!(head.header(name), got.header(name), "{what}: {name}");
    }
}

#[test]
fn what_is_refused_here_has_its_code() {
    let rules = [("ALLOW_REPOSITORIES", "team/*,docker.io/*")];
    for cached in ways(&rules) {
        let before = cached.calls();
        for (target, status, code) in [
            ("/v2/team/App/tags/list".to_owned(), 400, "NAME_INVALID"),
            ("/v2/team/app/manifests/.x".to_owned(), 404, "TAG_INVALID"),
            ("/v2/team/app/blobs/sha256:00".into(), 400, "DIGEST_INVALID"),
            (
                "/v2/team/app/manifests/sha512:00".into(),
                400,
                "DIGEST_INVALID",
            ),
            ("/v2/team/app/referrers/x".to_owned(), 400, "DIGEST_INVALID"),
            (
                "/v2/_catalog?n=-1".to_owned(),
                400,
                "PAGINATION_NUMBER_INVALID",
            ),
            (
                "/v2/team/app/tags/list?n=x".into(),
                400,
                "PAGINATION_NUMBER_INVALID",
            ),
            ("/v2/team/app/tags/list?last=<".into(), 400, "BAD_REQUEST"),
            ("/v2/team/app/layers/1".to_owned(), 404, "NOT_FOUND"),
            (format!("{TAG}?ns=%zz"), 404, "NAME_UNKNOWN"),
            (
                "/v2/docker.io:443/x/manifests/1".into(),
                404,
                "NAME_UNKNOWN",
            ),
            ("/v2/secret/manifests/1".to_owned(), 403, "DENIED"),
        ] {
            let got = cached.get(&target);
            assert_refused(&got, status, code, &target);
            assert_headless(&cached.head(&target), &got, &target);
        }
        for (method, target, allow) in [
            ("POST", TAG, "GET, HEAD, PUT, DELETE"),
            ("DELETE", "/v2/team/app/tags/list", "GET, HEAD"),
            ("OPTIONS", "/v2/", "GET, HEAD"),
            ("PATCH", "/v2/_catalog", "GET, HEAD"),
        ] {
            let got = cached.call(method, target, &[]);
            assert_refused(&got, 405, "UNSUPPORTED", target);
            assert_eq!(got.header("Allow"), Some(allow), "{method} {target}");
        }
        let head = cached.head("/v2/team/app/blobs/uploads/");
        assert_eq!((head.status, head.length), (405, 0));
        assert_eq!(head.header("Allow"), Some("POST"));
        assert_eq!(cached.calls(), before);
    }
}

#[test]
fn what_upstream_does_not_have_has_its_code() {
    for cached in ways(&[]) {
        for (target, code) in [
            ("/v2/team/app/manifests/9".to_owned(), "MANIFEST_UNKNOWN"),
            (
                format!("/v2/team/app/manifests/{ABSENT}"),
                "MANIFEST_UNKNOWN",
            ),
            (format!("/v2/team/app/blobs/{ABSENT}"), "BLOB_UNKNOWN"),
            ("/v2/absent/manifests/1".to_owned(), "NAME_UNKNOWN"),
            ("/v2/absent/tags/list".to_owned(), "NAME_UNKNOWN"),
            (format!("/v2/absent/referrers/{ABSENT}"), "NAME_UNKNOWN"),
        ] {
            // Once from upstream, once from the memory of 404s.
            for _ in 0..2 {
                let got = cached.get(&target);
                assert_refused(&got, 404, code, &target);
                assert_headless(&cached.head(&target), &got, &target);
            }
        }
        let upload = "/v2/team/app/blobs/uploads/none";
        assert_refused(&cached.get(upload), 404, "BLOB_UPLOAD_UNKNOWN", upload);
    }
}

#[test]
fn an_upstream_that_fails_has_its_status() {
    for cached in ways(&[]) {
        let standin = &cached.standin;
        let cold = || {
            let blob = standin.add_blob("team/app", b"cold");
            [format!("/v2/team/app/blobs/{blob}"), "/v2/_catalog".into()]
        };
        let targets = [TAG.to_owned(), "/v2/team/app/tags/list".to_owned()];
        let targets = || targets.iter().cloned().chain(cold());
        let plain = |status: u16| {
            let html = ("Content-Type".to_owned(), "text/html".to_owned());
            Fault::Status(status, vec![html], b"<p>no</p>".to_vec())
        };
        for (fault, status, code) in [
            (plain(500), 500, "UNAVAILABLE"),
            (plain(502), 502, "UNAVAILABLE"),
            (plain(503), 503, "UNAVAILABLE"),
            (plain(403), 403, "DENIED"),
            // Neither is an answer to a client of ours, which could log in nowhere.
            (Fault::Unauthorized401, 502, "UNAVAILABLE"),
            (plain(407), 502, "UNAVAILABLE"),
            (Fault::ExpiredToken403, 502, "UNAVAILABLE"),
            (plain(302), 502, "UNAVAILABLE"),
            // Nobody asked for a part, for changes alone, or for anything to be made.
            (plain(304), 502, "UNAVAILABLE"),
            (plain(206), 502, "UNAVAILABLE"),
            (plain(201), 502, "UNAVAILABLE"),
            (plain(204), 502, "UNAVAILABLE"),
            (Fault::CloseBeforeHead, 502, "UNAVAILABLE"),
        ] {
            standin.clear_faults();
            standin.fault(Match::registry().always(), fault.clone());
            for target in targets() {
                let got = cached.get(&target);
                let what = format!("{fault:?} {target}");
                assert_refused(&got, status, code, &what);
                assert_eq!(got.header("Retry-After"), None, "{what}");
                assert_eq!(got.header("WWW-Authenticate"), None, "{what}");
                assert_eq!(got.header("Proxy-Authenticate"), None, "{what}");
                let head = cached.head(&target);
                assert_eq!((head.status, head.length), (status, 0), "{what}");
            }
        }
        standin.clear_faults();
        standin.down(Server::Registry);
        for target in targets() {
            let got = cached.get(&target);
            assert_refused(&got, 504, "UNAVAILABLE", &target);
            assert_headless(&cached.head(&target), &got, &target);
        }
        // What needs no upstream needs none.
        let base = cached.get("/v2/");
        assert_eq!((base.status, base.text().as_str()), (200, "{}"));
    }
}

#[test]
fn bug_ecrs_405_said_nothing_of_what_is_allowed() {
    for cached in ways(&[]) {
        let refusal = Fault::registry_error(405, "UNSUPPORTED", "The operation is unsupported.");
        for (method, target, allow) in [
            (
                "DELETE",
                format!("/v2/team/app/blobs/{ABSENT}"),
                "GET, HEAD",
            ),
            ("GET", "/v2/team/app/tags/list?last=x".into(), "GET, HEAD"),
            ("PUT", TAG.to_owned(), "GET, HEAD, DELETE"),
        ] {
            cached.standin.fault(Match::registry(), refusal.clone());
            let got = cached.call(method, &target, &[]);
            assert_refused(&got, 405, "UNSUPPORTED", &target);
            assert_eq!(got.header("Allow"), Some(allow), "{method} {target}");
        }
    }
}

#[test]
fn the_base_is_answered_without_network_names_or_identity() {
    let mut cached = Cached::start();
    cached.all_down();
    cached.stop();
    let nothing = [
        ("ECR", ""),
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_REGION", ""),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("RESOLVER", "127.66.66.66"),
        ("CACHE_DIR", "off"),
    ];
    cached.start_again_with(&nothing);
    for target in ["/v2/", "/v2", "/healthz", "/version"] {
        let (got, head) = (cached.get(target), cached.head(target));
        assert_eq!((got.status, head.status, head.length), (200, 200, 0));
        assert_eq!(got.header("Content-Length"), head.header("Content-Length"));
    }
    let base = cached.get("/v2/");
    assert_eq!(base.text(), "{}");
    assert_eq!(base.header("Content-Type"), Some("application/json"));
    let api = base.header("Docker-Distribution-Api-Version");
    assert_eq!(api, Some("registry/2.0"));
    assert_refused(&cached.get(TAG), 503, "UNAVAILABLE", TAG);
    assert!(cached.get(TAG).header("Retry-After").is_some());
}

#[test]
fn a_challenge_is_not_followed_wherever_it_leads() {
    let elsewhere = std::net::TcpListener::bind("127.0.0.9:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let realm = format!("http://{}/token", elsewhere.local_addr().unwrap());
    for cached in ways(&[]) {
        for scheme in ["Bearer", "Basic"] {
            let challenge = format!("{scheme} realm=\"{realm}\",service=\"x\"");
            let field = ("WWW-Authenticate".to_owned(), challenge);
            let fault = Fault::Status(401, vec![field], Vec::new());
            cached.standin.fault(Match::registry().times(2), fault);
            let mut http = Http::connect(cached.address());
            let login = [("Authorization", "Basic Y2xpZW50OnNlY3JldA==")];
            let got = http.request("GET", TAG, &login, b"");
            assert_refused(&got, 502, "UNAVAILABLE", scheme);
            assert!(!got.text().contains("127.0.0.9"), "{}", got.text());
            for seen in cached.seen(Server::Registry) {
                assert_ne!(seen.header("Authorization"), Some(login[0].1));
            }
        }
    }
    let dialled = elsewhere.accept();
    assert!(dialled.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock));
}
