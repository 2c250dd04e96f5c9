//! `ACCESS_CONTROL_ALLOW_ORIGIN`: which pages a browser lets read the replies, and its preflight
//! requests.

use standin::{Fault, Match, Options, Server};

use crate::config::run;
use crate::login::CHEAP;
use crate::support::{Cached, Front, Response, Scratch};

const UI: &str = "https://ui.example";
const ORIGIN: (&str, &str) = ("Origin", UI);
const LOGIN: (&str, &str) = ("Authorization", "Basic YWxpY2U6b3BlbiBzZXNhbWU=");
const NAMED: (&str, &str) = (
    "ACCESS_CONTROL_ALLOW_ORIGIN",
    "http://localhost:3000, https://ui.example:443/",
);
const TAGS: &str = "/v2/team/app/tags/list";

fn allowed(response: &Response) -> Option<&str> {
    response.header("Access-Control-Allow-Origin")
}

fn has_cors(response: &Response) -> bool {
    let mut names = response.headers.iter().map(|(name, _)| name);
    names.any(|name| name.to_ascii_lowercase().starts_with("access-control-"))
}

fn assert_readable(response: &Response, what: &str) {
    assert_eq!(allowed(response), Some(UI), "{what}");
    assert_eq!(
        response.header("Access-Control-Allow-Credentials"),
        Some("true"),
        "{what}"
    );
    let readable = response.header("Access-Control-Expose-Headers").unwrap();
    for field in ["Docker-Content-Digest", "Link", "WWW-Authenticate"] {
        assert!(readable.contains(field), "{what}: {readable}");
    }
    let mut fields = response.headers.iter();
    let varies = fields.any(|(name, value)| {
        name.eq_ignore_ascii_case("Vary") && value.eq_ignore_ascii_case("Origin")
    });
    assert!(varies, "{what}: {:?}", response.headers);
}

#[test]
fn a_page_may_read_every_reply() {
    let folder = Scratch::new();
    let logins = folder.path().join("htpasswd");
    std::fs::write(&logins, CHEAP).unwrap();
    let settings = [
        NAMED,
        ("AUTH_FILE", logins.to_str().unwrap()),
        ("ALLOW_REPOSITORIES", "team/*"),
        ("BLOB_REDIRECT", "pass"),
    ];
    let front = Front::with(Options::default(), &settings);
    let image = front.standin.put_image("team/app", "1.0", &[]);
    let blob = front.standin.add_blob("team/app", b"bytes");
    let blob = format!("/v2/team/app/blobs/{blob}");
    front.standin.fault(
        Match::registry().path("/v2/team/bad/").always(),
        Fault::status(500),
    );
    for (method, target, status) in [
        ("GET", TAGS, 200),
        ("HEAD", "/v2/team/app/manifests/1.0", 200),
        ("GET", "/v2/team/app/manifests/none", 404),
        ("GET", "/v2/secret/tags/list", 403),
        ("GET", "/v2/team/bad/tags/list", 500),
        ("GET", blob.as_str(), 307),
        ("GET", "/nowhere", 404),
        ("GET", "/healthz", 200),
        ("PATCH", TAGS, 405),
    ] {
        let got = front.call(method, target, &[ORIGIN, LOGIN], b"");
        assert_eq!(got.status, status, "{method} {target}: {}", got.text());
        assert_readable(&got, target);
    }
    let same = [
        ORIGIN,
        LOGIN,
        ("If-None-Match", &format!("\"{}\"", image.manifest)),
    ];
    let got = front.call("GET", "/v2/team/app/manifests/1.0", &same, b"");
    assert_eq!(got.status, 304, "{}", got.text());
    assert_readable(&got, "304");
    let got = front.call("GET", TAGS, &[ORIGIN], b"");
    assert_eq!(got.status, 401);
    assert!(got.header("WWW-Authenticate").is_some());
    assert_readable(&got, "401");
}

#[test]
fn no_other_page_may_read_and_caches_know_it() {
    let front = Front::with(Options::default(), &[NAMED]);
    front.standin.put_image("team/app", "1.0", &[]);
    for origin in ["https://evil.example", "null", "http://ui.example", "*"] {
        for (method, target) in [
            ("GET", TAGS),
            ("GET", "/v2/none/tags/list"),
            ("OPTIONS", TAGS),
        ] {
            let got = front.call(method, target, &[("Origin", origin)], b"");
            assert!(!has_cors(&got), "{origin}: {:?}", got.headers);
            assert_eq!(got.header("Vary"), Some("Origin"), "{origin}");
        }
    }
    let got = front.get(TAGS);
    assert_eq!((got.status, got.header("Vary")), (200, Some("Origin")));
    assert!(!has_cors(&got));
}

#[test]
fn a_browser_asks_without_login_and_nobody_upstream_hears_of_it() {
    let folder = Scratch::new();
    let logins = folder.path().join("htpasswd");
    std::fs::write(&logins, CHEAP).unwrap();
    let login = ("AUTH_FILE", logins.to_str().unwrap());
    for (read_only, expected) in [
        ("false", "GET, HEAD, PUT, POST, PATCH, DELETE"),
        ("true", "GET, HEAD"),
    ] {
        let front = Front::with(
            Options::default(),
            &[NAMED, login, ("READ_ONLY", read_only)],
        );
        let question = [
            ORIGIN,
            ("Access-Control-Request-Method", "DELETE"),
            ("Access-Control-Request-Headers", "authorization"),
        ];
        for target in ["/v2/", TAGS, "/v2/team/app/manifests/1.0", "/v2/%2e%2e/x"] {
            let got = front.call("OPTIONS", target, &question, b"");
            assert_eq!((got.status, got.length), (204, 0), "{target}");
            assert_readable(&got, target);
            let methods = got.header("Access-Control-Allow-Methods");
            assert_eq!(methods, Some(expected));
            let fields = got.header("Access-Control-Allow-Headers").unwrap();
            for field in ["Authorization", "Accept", "Content-Type"] {
                assert!(fields.contains(field), "{fields}");
            }
            assert_eq!(got.header("Access-Control-Max-Age"), Some("7200"));
        }
        // The question opens nothing.
        assert_eq!(front.call("GET", TAGS, &[ORIGIN], b"").status, 401);
        assert!(front.seen(Server::Registry).is_empty());
    }
}

#[test]
fn every_page_may_read_but_not_with_the_login_that_a_browser_remembers() {
    let setting = ("ACCESS_CONTROL_ALLOW_ORIGIN", "*");
    let front = Front::with(Options::default(), &[setting]);
    front.standin.put_image("team/app", "1.0", &[]);
    for (method, status) in [("GET", 200), ("OPTIONS", 204)] {
        let got = front.call(method, TAGS, &[ORIGIN], b"");
        assert_eq!((got.status, allowed(&got)), (status, Some("*")));
        assert_eq!(got.header("Access-Control-Allow-Credentials"), None);
    }
    let log = front.proxy.log();
    let warning = "any web page that is open in a browser which reaches this proxy";
    assert!(log.contains(warning), "{log}");
}

#[test]
fn without_the_setting_no_page_may_read_whatever_upstream_says() {
    let leaks = vec![
        ("Access-Control-Allow-Origin".to_owned(), "*".to_owned()),
        (
            "access-control-allow-credentials".to_owned(),
            "true".to_owned(),
        ),
        ("Content-Type".to_owned(), "application/json".to_owned()),
    ];
    let body = br#"{"name":"team/app","tags":["1.0"]}"#.to_vec();
    for settings in [vec![], vec![NAMED]] {
        let cached = Cached::on(Scratch::new(), Options::default(), &settings);
        let fault = Fault::Status(200, leaks.clone(), body.clone());
        cached
            .standin
            .fault(Match::registry().path(TAGS).always(), fault);
        for _ in 0..2 {
            let got = cached.call("GET", TAGS, &[("Origin", "https://evil")]);
            assert_eq!(got.status, 200);
            assert!(!has_cors(&got), "{:?}", got.headers);
        }
        let got = cached.call("OPTIONS", TAGS, &[("Origin", "https://evil")]);
        assert_eq!(got.status, 405);
        assert!(!has_cors(&got), "{:?}", got.headers);
    }
}

#[test]
fn what_is_no_origin_ends_the_start() {
    for (value, why) in [
        ("*,https://ui.example", "* goes alone"),
        ("ui.example", "this has no scheme"),
        ("https://ui.example/app", "a path"),
        ("https://*.example", "not a host name"),
        ("null", "this has no scheme"),
        ("ftp://ui.example", "a scheme other than http or https"),
        (",", "expected * or at most 64"),
    ] {
        let got = run(&["serve"], &[("ACCESS_CONTROL_ALLOW_ORIGIN", value)]);
        assert_eq!(got.code, Some(64), "{value}: {}", got.err);
        let start = "ACCESS_CONTROL_ALLOW_ORIGIN=";
        assert!(
            got.err.contains(start) && got.err.contains(why),
            "{}",
            got.err
        );
    }
    let many: Vec<String> = (0..65).map(|n| format!("https://ui{n}.example")).collect();
    let got = run(
        &["serve"],
        &[("ACCESS_CONTROL_ALLOW_ORIGIN", &many.join(","))],
    );
    assert!(
        got.code == Some(64) && got.err.contains("these are 65"),
        "{}",
        got.err
    );
    let near = run(&["serve"], &[("ACCESS_CONTROL_ALLOW_ORIGINS", "*")]);
    let why = "did you mean ACCESS_CONTROL_ALLOW_ORIGIN?";
    assert!(
        near.code == Some(64) && near.err.contains(why),
        "{}",
        near.err
    );
}
