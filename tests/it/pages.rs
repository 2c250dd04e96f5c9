//! The proxy's own answers: probes, version, and every request that it refuses without asking
//! upstream.

use standin::{Options, Server};

use crate::support::{Front, SOON, error_of, raw, wait_until};

#[test]
fn probes_answer_get_and_head() {
    let front = Front::start();
    wait_until("the proxy is ready", SOON, || {
        front.get("/readyz").status == 200
    });
    for page in ["/healthz", "/readyz", "/version", "/healthz?verbose=1"] {
        let (got, head) = (front.get(page), front.head(page));
        assert_eq!((got.status, head.status), (200, 200), "{page}");
        assert!(got.complete && got.length > 0);
        assert_eq!(got.header("Content-Length"), head.header("Content-Length"));
        assert_eq!(head.length, 0);
        assert_eq!(got.header("Cache-Control"), Some("no-store"));
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let refused = front.call(method, page, &[], b"");
            assert_eq!(refused.status, 405, "{method} {page}");
            assert_eq!(refused.header("Allow"), Some("GET, HEAD"));
            assert_eq!(error_of(&refused).0, "UNSUPPORTED");
        }
    }
    assert!(front.seen(Server::Registry).is_empty());
}

#[test]
fn the_version_is_json() {
    let front = Front::start();
    let got = front.get("/version");
    assert_eq!(got.header("Content-Type"), Some("application/json"));
    let version: serde_json::Value = serde_json::from_slice(&got.body).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    for name in ["commit", "build_date"] {
        assert!(
            version[name].as_str().is_some_and(|text| !text.is_empty()),
            "{version}"
        );
    }
}

#[test]
fn readiness_ends_when_it_drains_and_health_does_not() {
    let mut front = Front::with(Options::default(), &[("SHUTDOWN_GRACE", "5s")]);
    let blob = front.standin.add_blob("team/app", b"abcdefghij");
    wait_until("the proxy is ready", SOON, || {
        front.get("/readyz").status == 200
    });
    front
        .standin
        .fault(standin::Match::s3(), standin::Fault::StallAfter(4));
    let mut http = front.http();
    http.send_head("GET", &format!("/v2/team/app/blobs/{blob}"), &[])
        .unwrap();
    let asked = |seen: &[standin::Seen]| {
        seen.iter()
            .any(|s| s.server == Server::S3 && s.status.is_some())
    };
    assert!(front.standin.wait_for(SOON, asked));
    front.proxy.term();
    front.proxy.wait_for_log("draining");
    front.standin.release();
    let got = http.receive("GET").unwrap();
    assert_eq!((got.complete, got.digest), (true, blob));
    assert!(front.proxy.wait_exit().success());
}

#[test]
fn paths_that_are_no_endpoint_are_404() {
    let front = Front::start();
    for target in [
        "/index.html",
        "/v1/",
        "/v2x",
        "/v3/",
        "/metrics/",
        "/status",
        "/status.json/",
        "/healthz/",
        "/V2/",
        "/v2/a",
        "/v2/a/b",
        "/v2/a/blob/x",
        "//v2/",
        "/v2/a/blobs/uploads/../x",
        "/v2/a/blobs/uploads/%2e%2e",
    ] {
        let got = front.get(target);
        assert_eq!(got.status, 404, "{target}");
        assert_eq!(error_of(&got).0, "NOT_FOUND", "{target}");
        assert_eq!(got.header("Content-Type"), Some("application/json"));
    }
    assert!(front.seen(Server::Registry).is_empty());
}

#[test]
fn names_that_cannot_be_never_reach_upstream() {
    let front = Front::start();
    let hex = "a".repeat(64);
    for (target, code) in [
        ("/v2/UPPER/tags/list".to_owned(), "NAME_INVALID"),
        ("/v2/a//b/tags/list".to_owned(), "NAME_INVALID"),
        ("/v2/a/../b/manifests/1".to_owned(), "NAME_INVALID"),
        ("/v2/../manifests/1".to_owned(), "NAME_INVALID"),
        ("/v2/a/%2e%2e/b/manifests/1".to_owned(), "NAME_INVALID"),
        ("/v2/a%2Fb/manifests/1".to_owned(), "NAME_INVALID"),
        ("/v2/a/./b/tags/list".to_owned(), "NAME_INVALID"),
        (format!("/v2/{}/tags/list", "a".repeat(257)), "NAME_INVALID"),
        ("/v2/a/manifests/sha256:12".to_owned(), "DIGEST_INVALID"),
        (format!("/v2/a/blobs/md5:{hex}"), "DIGEST_INVALID"),
        (
            format!("/v2/a/blobs/sha256:{}", hex.to_uppercase()),
            "DIGEST_INVALID",
        ),
        (format!("/v2/a/referrers/sha256:{hex}0"), "DIGEST_INVALID"),
    ] {
        let got = front.get(&target);
        assert_eq!(
            (got.status, error_of(&got).0),
            (400, code.to_owned()),
            "{target}"
        );
    }
    assert!(front.seen(Server::Registry).is_empty());
    assert_eq!(front.get("/v2/a/manifests/_ok.1-x").status, 404);
    assert_eq!(front.seen(Server::Registry).len(), 1);
}

#[test]
fn a_reference_that_is_not_a_valid_tag_is_404() {
    let front = Front::start();
    let long = "t".repeat(129);
    for tag in [".INVALID_MANIFEST_NAME", "-x", "..", "%2e%2e", &long] {
        let target = format!("/v2/a/manifests/{tag}");
        for (method, status) in [("GET", 404), ("HEAD", 404), ("DELETE", 404), ("PUT", 400)] {
            let got = front.call(method, &target, &[], b"");
            assert_eq!(got.status, status, "{method} {tag}");
            if method != "HEAD" {
                assert_eq!(error_of(&got).0, "TAG_INVALID", "{method} {tag}");
            }
        }
    }
    assert!(front.seen(Server::Registry).is_empty());
}

#[test]
fn targets_that_no_uri_may_have_are_400() {
    let front = Front::start();
    for odd in ["\"", "<", ">", "`"] {
        let got = front.get(&format!("/v2/a/tags/list?last=a{odd}b"));
        assert_eq!(
            (got.status, error_of(&got).0),
            (400, "BAD_REQUEST".into()),
            "{odd}"
        );
    }
    assert!(front.seen(Server::Registry).is_empty());
}

#[test]
fn methods_that_an_endpoint_lacks_are_405() {
    let front = Front::start();
    let digest = format!("sha256:{}", "a".repeat(64));
    for (target, method, allow) in [
        ("/v2/".to_owned(), "DELETE", "GET, HEAD"),
        ("/v2/_catalog".to_owned(), "POST", "GET, HEAD"),
        ("/v2/a/tags/list".to_owned(), "PUT", "GET, HEAD"),
        (
            "/v2/a/manifests/1".to_owned(),
            "PATCH",
            "GET, HEAD, PUT, DELETE",
        ),
        (format!("/v2/a/blobs/{digest}"), "PUT", "GET, HEAD, DELETE"),
        ("/v2/a/blobs/uploads/".to_owned(), "GET", "POST"),
        (
            "/v2/a/blobs/uploads/1".to_owned(),
            "POST",
            "GET, HEAD, PATCH, PUT, DELETE",
        ),
        ("/v2/".to_owned(), "BREW", "GET, HEAD"),
    ] {
        let got = front.call(method, &target, &[], b"");
        assert_eq!(got.status, 405, "{method} {target}");
        assert_eq!(got.header("Allow"), Some(allow), "{method} {target}");
        assert_eq!(error_of(&got).0, "UNSUPPORTED");
    }
    assert!(front.seen(Server::Registry).is_empty());
}

#[test]
fn the_base_says_that_this_is_a_registry() {
    let front = Front::start();
    for target in ["/v2/", "/v2", "/v2/?ns=x"] {
        let got = front.get(target);
        assert_eq!((got.status, got.text().as_str()), (200, "{}"));
        let version = got.header("Docker-Distribution-Api-Version");
        assert_eq!(version, Some("registry/2.0"));
        assert_eq!(got.header("WWW-Authenticate"), None);
    }
    let absolute =
        b"GET http://registry.example/v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = raw(front.address(), absolute);
    assert!(
        answer.starts_with(b"HTTP/1.1 200 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    assert!(front.seen(Server::Registry).is_empty());
}
