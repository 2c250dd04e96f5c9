//! `READ_ONLY` and `ALLOW_REPOSITORIES`: what is refused before anything else is looked at, and what
//! the catalogue shows.

use serde_json::json;
use standin::{Fault, Image, Layer, Match, Options, Quirks, Server, digest};

use crate::support::{Cached, Front, Proxy, Response, SOON, Scratch, error_of, target_of};

const ALLOWED: (&str, &str) = ("ALLOW_REPOSITORIES", "team-a/*, base");
const NEVER: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn names(response: &Response) -> Vec<String> {
    assert_eq!(response.status, 200, "{}", response.text());
    let list: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    let names = list["repositories"].as_array().unwrap().iter();
    names
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

fn assert_denied(response: &Response, what: &str) {
    assert_eq!(response.status, 403, "{what}: {}", response.text());
    assert_eq!(error_of(response).0, "DENIED", "{what}");
}

/// Every way to a repository: method and path.
fn ways(name: &str) -> Vec<(&'static str, String)> {
    let path = |rest: &str| format!("/v2/{name}/{rest}");
    let mut ways = Vec::new();
    for method in ["GET", "HEAD"] {
        ways.push((method, path("manifests/1.0")));
        ways.push((method, path(&format!("manifests/{NEVER}"))));
        ways.push((method, path(&format!("blobs/{NEVER}"))));
        ways.push((method, path(&format!("referrers/{NEVER}"))));
        ways.push((method, path("tags/list")));
    }
    ways.extend([
        ("GET", path("blobs/uploads/session")),
        ("PUT", path("manifests/1.0")),
        ("DELETE", path("manifests/1.0")),
        ("DELETE", path(&format!("blobs/{NEVER}"))),
        ("POST", path("blobs/uploads/")),
        ("POST", path(&format!("blobs/uploads/?digest={NEVER}"))),
        ("PATCH", path("blobs/uploads/session")),
        (
            "PUT",
            path(&format!("blobs/uploads/session?digest={NEVER}")),
        ),
        ("DELETE", path("blobs/uploads/session")),
    ]);
    ways
}

#[test]
fn a_proxy_that_only_reads_refuses_all_else() {
    let front = Front::with(Options::default(), &[("READ_ONLY", "true")]);
    let image = front.standin.put_image("team/app", "1.0", &[]);
    for (method, path) in ways("team/app") {
        let got = front.call(method, &path, &[], b"");
        if matches!(method, "GET" | "HEAD") {
            assert_ne!(got.status, 405, "{method} {path}");
            continue;
        }
        assert_eq!(got.status, 405, "{method} {path}");
        let (code, message) = error_of(&got);
        assert!(
            code == "UNSUPPORTED" && message.contains("read-only"),
            "{message}"
        );
        let allow = got.header("Allow").expect("what is possible");
        let expected = match path.contains("/blobs/uploads/") && !path.contains("session") {
            true => "",
            false => "GET, HEAD",
        };
        assert_eq!(allow, expected, "{method} {path}");
    }
    for seen in front.seen(Server::Registry) {
        assert!(matches!(seen.method.as_str(), "GET" | "HEAD"), "{seen:?}");
    }
    assert_eq!(front.get("/v2/team/app/manifests/1.0").body, image.bytes);
    assert_eq!(front.get("/v2/").status, 200);
}

#[test]
fn a_refused_upload_is_told_before_its_body() {
    for setting in [("READ_ONLY", "true"), ALLOWED] {
        let front = Front::with(Options::default(), &[setting]);
        let mut http = front.http();
        let target = format!("/v2/secret/blobs/uploads/?digest={NEVER}");
        // 5 GB of which not one byte is sent.
        let length = [("Content-Length", "5000000000"), ("Expect", "100-continue")];
        http.send_head("POST", &target, &length).unwrap();
        let got = http.receive("POST").unwrap();
        assert!(matches!(got.status, 403 | 405), "{}", got.status);
        assert_eq!(got.header("Connection"), Some("close"));
        assert!(front.seen(Server::Registry).is_empty());
    }
}

#[test]
fn repositories_that_are_left_out_are_refused_on_every_way() {
    let front = Front::with(Options::default(), &[ALLOWED]);
    for name in ["secret", "team-b/x", "team-a", "x/team-a/y", "base/x"] {
        front.standin.put_image(name, "1.0", &[]);
        for (method, path) in ways(name) {
            let got = front.call(method, &path, &[], b"");
            if method == "HEAD" {
                assert_eq!((got.status, got.length), (403, 0), "{path}");
            } else {
                assert_denied(&got, &format!("{method} {path}"));
            }
        }
    }
    assert!(front.seen(Server::Registry).is_empty() && front.seen(Server::S3).is_empty());
    for name in ["team-a/x", "team-a/deep/er", "base"] {
        let image = front.standin.put_image(name, "1.0", &[]);
        let got = front.get(&format!("/v2/{name}/manifests/1.0"));
        assert_eq!(got.body, image.bytes, "{name}");
        for (method, path) in ways(name) {
            let got = front.call(method, &path, &[], b"");
            assert_ne!(got.status, 403, "{method} {path}");
        }
    }
}

#[test]
fn no_blob_is_mounted_from_a_repository_that_is_left_out() {
    let front = Front::with(Options::default(), &[ALLOWED]);
    let secret = front.standin.add_blob("secret", b"secret");
    let base = front.standin.add_blob("base", b"base");
    for from in [
        "from=secret",
        "from=s%65cret",
        "from=team-a/../secret",
        "from=team-a%2F..%2Fsecret",
    ] {
        for method in ["POST", "PUT", "PATCH"] {
            let uploads = match method {
                "POST" => "uploads/",
                _ => "uploads/session",
            };
            let target = format!("/v2/team-a/x/blobs/{uploads}?mount={secret}&{from}");
            let got = front.call(method, &target, &[], b"");
            assert_denied(&got, &format!("{method} {from}"));
        }
    }
    assert!(front.seen(Server::Registry).is_empty());
    assert!(front.standin.blob("team-a/x", &secret).is_none());
    let target = format!("/v2/team-a/x/blobs/uploads/?mount={base}&from=base");
    assert_eq!(front.call("POST", &target, &[], b"").status, 201);
    let from_encoded = format!("/v2/base/blobs/uploads/?from=team-a%2Fx&mount={base}");
    assert_eq!(front.call("POST", &from_encoded, &[], b"").status, 201);
}

/// A catalogue of three repositories that may be seen among six.
fn six(standin: &standin::Standin) -> [&'static str; 3] {
    for name in ["aaa", "base", "secret/one", "team-a/x", "team-a/y", "zzz"] {
        standin.put_image(name, "1.0", &[]);
    }
    ["base", "team-a/x", "team-a/y"]
}

#[test]
fn the_catalogue_shows_what_may_be_used_page_by_page() {
    for quirks in [Quirks::ecr(), Quirks::none()] {
        let options = Options {
            quirks,
            ..Options::default()
        };
        let front = Front::with(options, &[ALLOWED]);
        let visible = six(&front.standin);
        assert_eq!(names(&front.get("/v2/_catalog")), visible);
        let mut found = Vec::new();
        let mut target = "/v2/_catalog?n=1".to_owned();
        for page in 1.. {
            let got = front.get(&target);
            assert_eq!(got.header("Content-Type"), Some("application/json"));
            found.extend(names(&got));
            let Some(link) = got.header("Link") else {
                assert_eq!(page, 6, "an empty page is not the last");
                break;
            };
            let (url, _) = link[1..].split_once('>').unwrap();
            target = match url.starts_with('/') {
                true => url.to_owned(),
                false => target_of(url).to_owned(),
            };
        }
        assert_eq!(found, visible);
        let head = front.head("/v2/_catalog");
        assert_eq!((head.status, head.length), (200, 0));
        let whole = front.get("/v2/_catalog").length.to_string();
        let length = head.header("Content-Length");
        assert_eq!(length, Some(whole.as_str()), "of what is shown");
    }
}

#[test]
fn a_catalogue_that_cannot_be_read_is_not_shown() {
    let front = Front::with(Options::default(), &[ALLOWED]);
    six(&front.standin);
    let long = "x".repeat(4 << 20);
    for body in [
        "secret/one".to_owned(),
        "[\"secret/one\"]".to_owned(),
        "{\"repositories\": [\"base\", 1, \"secret/one\"]}".to_owned(),
        "{\"repositories\": [\"base\", \"secret/one\"".to_owned(),
        "{\"repositories\": \"secret/one\"}".to_owned(),
        json!({"repositories": ["base", "secret/one", long]}).to_string(),
    ] {
        let fault = Fault::Status(200, Vec::new(), body.clone().into_bytes());
        front.standin.fault(Match::registry(), fault);
        let got = front.get("/v2/_catalog");
        let shown = body.get(..60).unwrap_or(&body);
        assert_eq!(got.status, 502, "{shown}: {}", got.text());
        assert!(!got.text().contains("secret"), "{}", got.text());
    }
    let fault = Fault::Status(200, Vec::new(), b"{\"repositories\": null}".to_vec());
    front.standin.fault(Match::registry(), fault);
    assert!(names(&front.get("/v2/_catalog")).is_empty());
    // What says something of the bytes would say something else now.
    let fields = ["ETag", "Content-Digest"].map(|name| (name.into(), "\"of-all\"".into()));
    let list = b"{\"repositories\": [\"base\", \"secret/one\"], \"other\": \"secret/one\"}";
    let fault = Fault::Status(200, fields.into(), list.to_vec());
    front.standin.fault(Match::registry(), fault);
    let got = front.get("/v2/_catalog");
    assert_eq!(got.text(), "{\"repositories\":[\"base\"]}");
    assert_eq!(
        (got.header("ETag"), got.header("Content-Digest")),
        (None, None)
    );
}

/// A cache in which two repositories are, filled before the rule came.
fn filled() -> (Cached, Image) {
    let mut cached = Cached::with(&[("CACHE_TAG_TTL", "1h")]);
    let layer = Layer::of_files(&[("hello", b"access")]);
    let pull = |name: &str| {
        let image = cached
            .standin
            .put_image(name, "1.0", std::slice::from_ref(&layer));
        let manifest = format!("/v2/{name}/manifests/1.0");
        assert_eq!(cached.get(&manifest).body, image.bytes);
        let blob = format!("/v2/{name}/blobs/{}", image.layers[0]);
        assert_eq!(cached.get(&blob).digest, image.layers[0]);
        cached.wait_for_blob(&image.layers[0]);
        image
    };
    pull("base");
    let image = pull("secret");
    cached.stop();
    (cached, image)
}

#[test]
fn cached_content_obeys_the_same_rules() {
    let (mut cached, image) = filled();
    cached.start_again_with(&[ALLOWED]);
    let calls = cached.calls();
    let blob = &image.layers[0];
    for path in [
        "manifests/1.0".to_owned(),
        format!("manifests/{}", image.manifest),
        format!("blobs/{blob}"),
        "tags/list".to_owned(),
    ] {
        assert_denied(&cached.get(&format!("/v2/secret/{path}")), &path);
    }
    assert_eq!(cached.calls(), calls, "nothing was asked for");
    let hit = cached.get("/v2/base/manifests/1.0");
    assert_eq!(hit.header("X-Cache"), Some("HIT"));
    assert_eq!(cached.get(&format!("/v2/base/blobs/{blob}")).status, 200);
}

#[test]
fn the_catalogue_of_what_is_cached_is_filtered_too() {
    let (mut cached, _) = filled();
    cached.start_again_with(&[ALLOWED]);
    assert_eq!(names(&cached.get("/v2/_catalog")), ["base"]);
    cached.all_down();
    let stale = cached.get("/v2/_catalog?n=1");
    assert_eq!(stale.header("X-Cache"), Some("STALE"));
    assert_eq!(names(&stale), ["base"]);
    assert_eq!(
        stale.header("Link"),
        None,
        "nothing is behind it that may be seen"
    );
    cached.stop();
    // Upstream listed names, of which none may be seen: that is known, and is an empty list.
    cached.start_again_with(&[("ALLOW_REPOSITORIES", "other/*")]);
    for target in ["/v2/_catalog", "/v2/_catalog?n=1"] {
        let got = cached.get(target);
        assert_eq!((got.status, names(&got).len()), (200, 0), "{target}");
        assert_eq!(got.header("X-Cache"), Some("STALE"), "{target}");
        assert_eq!(got.header("Link"), None, "{target}");
    }
}

#[test]
fn a_cache_of_which_nothing_may_be_seen_is_as_if_empty() {
    let (mut cached, _) = filled();
    cached.all_down();
    cached.start_again_with(&[("ALLOW_REPOSITORIES", "other/*")]);
    let got = cached.get("/v2/_catalog");
    // 503: since the restart there is no token either.
    assert_eq!(got.status, 503, "{}", got.text());
    assert!(!got.text().contains("base"), "{}", got.text());
}

#[test]
fn a_proxy_that_is_open_to_all_says_so_once() {
    const WARNING: &str = "everybody who reaches this address";
    let standin = standin::Standin::start(Options::default());
    let login = Scratch::new();
    let file = login.path().join("htpasswd");
    std::fs::write(&file, crate::login::CHEAP).unwrap();
    let file = file.to_str().unwrap();
    for (host, setting, warned) in [
        ("0.0.0.0", ("LOG_LEVEL", "INFO"), true),
        ("::", ("READ_ONLY", "false"), true),
        ("0.0.0.0", ALLOWED, true),
        ("0.0.0.0", ("READ_ONLY", "true"), false),
        ("0.0.0.0", ("AUTH_FILE", file), false),
        ("127.0.0.1", ("LOG_LEVEL", "INFO"), false),
        ("::1", ("LOG_LEVEL", "INFO"), false),
    ] {
        let mut proxy = Proxy::in_front_of(&standin, &[("LISTEN_HOST", host), setting]);
        if warned {
            let line = proxy.wait_for_log_within(WARNING, SOON);
            assert!(
                line.contains(" WARN ") && line.contains("AUTH_FILE"),
                "{line}"
            );
        }
        proxy.term();
        proxy.wait_exit();
        let count = proxy.log().matches(WARNING).count();
        assert_eq!(count, usize::from(warned), "{host} {setting:?}");
    }
}

#[test]
fn a_name_that_no_rule_could_mean_is_no_way_around_it() {
    let front = Front::with(Options::default(), &[ALLOWED]);
    front.standin.put_image("secret", "1.0", &[]);
    for path in [
        "/v2/base/../secret/manifests/1.0",
        "/v2/base%2F..%2Fsecret/manifests/1.0",
        "/v2/base//secret/manifests/1.0",
        "/v2/team-a/x/manifests/../../../secret/manifests/1.0",
        "/v2/s%65cret/manifests/1.0",
        "/v2/Base/manifests/1.0",
        "/v2//base/manifests/1.0",
        "/v2/team-a/x/blobs/uploads/../../../secret/manifests/1.0",
    ] {
        let got = front.get(path);
        assert!((400..405).contains(&got.status), "{path}: {}", got.status);
    }
    let absolute = format!("http://{}/v2/secret/manifests/1.0", front.address());
    assert_denied(&front.get(&absolute), "the absolute form");
    assert!(front.seen(Server::Registry).is_empty());
    assert_ne!(digest(b"x"), NEVER);
}
