//! Whatever answers in the registry's place is an outage: a captive portal, a load balancer without
//! backends, an answer that was cut. The cache keeps what it has and answers with it.

use std::time::{Duration, Instant};

use standin::image::{self, INDEX, MANIFEST};
use standin::{Fault, Image, Layer, Match, Options, digest};

use crate::support::{Cached, Front, Http, Response, SOON, error_of, wait_until};

const TAG: &str = "/v2/team/app/manifests/1.0";
const TAGS: &str = "/v2/team/app/tags/list";
const SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

fn page(status: u16, media_type: &str, body: &str) -> Fault {
    let fields = vec![("Content-Type".to_owned(), media_type.to_owned())];
    Fault::Status(status, fields, body.as_bytes().to_vec())
}

/// An answer without a length, which ends with the connection: nothing shows where it was cut.
fn cut(media_type: &str, body: &str) -> Fault {
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: ";
    Fault::Raw(format!("{head}{media_type}\r\n\r\n{body}").into_bytes())
}

fn x_cache(got: &Response) -> Option<&str> {
    got.header("X-Cache")
}

/// A cache that has a tag, its list and the catalogue.
fn filled() -> (Cached, Image) {
    let cached = Cached::start();
    let layer = Layer::of_files(&[("hello", b"impostor")]);
    let image = cached.standin.put_image("team/app", "1.0", &[layer]);
    assert_eq!(cached.get(TAG).body, image.bytes);
    for list in [TAGS, "/v2/_catalog"] {
        assert_eq!(cached.get(list).status, 200);
    }
    (cached, image)
}

/// The tag and both lists are answered as they were.
fn assert_stale(cached: &Cached, image: &Image, why: &str) {
    let got = cached.get(TAG);
    let stale = (200, Some("STALE"));
    assert_eq!((got.status, x_cache(&got)), stale, "{why}: {}", got.text());
    assert_eq!(got.body, image.bytes, "{why}");
    for (list, expected) in [
        (TAGS, r#"{"name":"team/app","tags":["1.0"]}"#),
        ("/v2/_catalog", r#""team/app""#),
    ] {
        let got = cached.get(list);
        assert_eq!((got.status, x_cache(&got)), stale, "{why}: {}", got.text());
        assert!(got.text().contains(expected), "{why}: {}", got.text());
    }
}

#[test]
fn bug_a_page_took_the_place_of_what_was_cached() {
    let (cached, image) = filled();
    for (media_type, body) in [
        ("text/html", "<html>log in</html>"),
        ("text/html; charset=utf-8", "{}"),
        ("application/json", "{}"),
        ("application/json", r#"{"login":"please"}"#),
        ("application/json", ""),
        (MANIFEST, "<html>log in</html>"),
        (MANIFEST, r#"{"schemaVersion":2,"layers":["#),
        (MANIFEST, r#"{"tags":5,"repositories":{},"manifests":"x"}"#),
    ] {
        cached.standin.clear_faults();
        let pick = Match::registry().always();
        cached.standin.fault(pick, page(200, media_type, body));
        assert_stale(&cached, &image, &format!("{media_type}: {body}"));
    }
    cached.standin.clear_faults();
    let got = cached.get(TAG);
    assert_eq!((got.status, x_cache(&got)), (200, Some("REVALIDATED")));
}

#[test]
fn bug_a_404_of_a_load_balancer_removed_a_tag() {
    let (cached, image) = filled();
    for (number, (media_type, body)) in [
        ("text/html", "<h1>404 Not Found</h1>"),
        ("text/plain", "default backend - 404"),
        ("application/json", r#"{"message":"no such host"}"#),
        ("application/json", ""),
    ]
    .into_iter()
    .enumerate()
    {
        cached.standin.clear_faults();
        let pick = Match::registry().always();
        cached.standin.fault(pick, page(404, media_type, body));
        assert_stale(&cached, &image, &format!("404 {media_type}: {body}"));
        // What was never there is passed on, and asked for again at once.
        let name = format!("new/{number}");
        let absent = format!("/v2/{name}/manifests/1");
        assert_eq!(cached.get(&absent).status, 404);
        cached.standin.clear_faults();
        cached.standin.put_image(&name, "1", &[]);
        assert_eq!(cached.get(&absent).status, 200, "{body}");
        cached.standin.remove_tag(&name, "1");
        let got = cached.get(&absent);
        assert_eq!(got.status, 404, "the registry itself says so");
    }
    cached.standin.clear_faults();
    let got = cached.get(TAG);
    assert_eq!((got.status, x_cache(&got)), (200, Some("REVALIDATED")));
}

#[test]
fn bug_a_cut_answer_without_a_length_was_taken_for_whole() {
    let (cached, image) = filled();
    let fresh = cached.standin.put_image("team/app", "1.0", &[]);
    let text = String::from_utf8(fresh.bytes.clone()).unwrap();
    let part = &text[..text.len() / 2];
    let pick = || Match::registry().method("GET").path("/manifests/");
    cached.standin.fault(pick(), cut(MANIFEST, part));
    let got = cached.get(TAG);
    assert_eq!((got.status, x_cache(&got)), (200, Some("STALE")));
    assert_eq!(got.body, image.bytes);
    assert_eq!(cached.get(TAG).body, fresh.bytes);
    // Nothing was there before, and nothing is kept.
    cached.standin.put_image("team/app", "2.0", &[]);
    cached.standin.fault(pick(), cut(MANIFEST, part));
    let cold = "/v2/team/app/manifests/2.0";
    let got = cached.get(cold);
    assert_eq!((got.status, error_of(&got).0), (502, "UNAVAILABLE".into()));
    assert_eq!(x_cache(&cached.get(cold)), Some("MISS"));
    // A list.
    assert_eq!(cached.get(TAGS).status, 200);
    let pick = Match::registry().path("/tags/list");
    let list = cut("application/json", r#"{"name":"team/app","tags":["1.0","#);
    cached.standin.fault(pick, list);
    let got = cached.get(TAGS);
    assert_eq!((got.status, x_cache(&got)), (200, Some("STALE")));
    assert_eq!(got.text(), r#"{"name":"team/app","tags":["1.0","2.0"]}"#);
}

#[test]
fn bug_without_a_cache_a_cut_list_was_passed_on_as_whole() {
    let front = Front::with(Options::default(), &[("CACHE_DIR", "off")]);
    let json = "application/json";
    let (tags, names) = (r#"{"name":"team/app","tags":["#, r#"{"repositories":["#);
    let index = r#"{"schemaVersion":2,"manifests":["#;
    let referrers = format!("/v2/team/app/referrers/{}", digest(b"x"));
    let long = r#""a-name-that-makes-a-list-long","#.repeat(10_000);
    for (target, beginning) in [(TAGS, tags), ("/v2/_catalog", names), (&referrers, index)] {
        for part in [
            beginning.to_owned(),
            format!("{beginning}\"a\""),
            String::new(),
        ] {
            front.standin.fault(Match::registry(), cut(json, &part));
            let got = front.get(target);
            assert_eq!(
                (got.status, error_of(&got).0),
                (502, "UNAVAILABLE".into()),
                "{part}"
            );
        }
        // One that is too long to be read first breaks off.
        let list = format!("{beginning}{long}\"b\"]}}");
        for (end, is_whole) in [
            (list.len(), true),
            (list.len() - 1, false),
            (200_000, false),
        ] {
            let part = &list[..end];
            front.standin.fault(Match::registry(), cut(json, part));
            let got = front.get(target);
            let is_read_first = target == referrers;
            let expected = if is_read_first && !is_whole { 502 } else { 200 };
            assert_eq!(
                (got.status, got.complete),
                (expected, is_whole || is_read_first)
            );
            assert_eq!(got.text() == list, is_whole);
        }
        // What is no list is none, whatever its type.
        for other in ["{}", r#"{"login":"please"}"#, "<html>"] {
            front
                .standin
                .fault(Match::registry(), page(200, json, other));
            assert_eq!(front.get(target).status, 502, "{target} {other}");
        }
    }
}

#[test]
fn a_page_is_an_error_without_a_cache_too() {
    let front = Front::start();
    let blob = front.standin.add_blob("team/app", b"x");
    let blob = format!("/v2/team/app/blobs/{blob}");
    let pick = Match::registry().always();
    let portal = page(200, "text/html", "<html>log in</html>");
    front.standin.fault(pick, portal);
    for target in [TAG, TAGS, "/v2/_catalog", blob.as_str()] {
        let got = front.get(target);
        assert_eq!(got.status, 502, "{target}: {}", got.text());
        assert_eq!(front.head(target).status, 502, "HEAD {target}");
    }
    front.standin.clear_faults();
    for body in ["", "{", "{}", r#"{"schemaVersion":2,"layers":["#] {
        let pick = Match::registry().path(TAG);
        front.standin.fault(pick, cut("application/json", body));
        assert_eq!(front.get(TAG).status, 502, "{body}");
    }
}

#[test]
fn a_type_that_was_not_asked_for_takes_no_place_of_what_was() {
    let (cached, image) = filled();
    let index = image::index(&[]);
    let accept = [("Accept", MANIFEST)];
    let call = || cached.call("GET", TAG, &accept);
    assert_eq!(call().body, image.bytes);
    let text = String::from_utf8(index.clone()).unwrap();
    let pick = Match::registry().path("/manifests/").always();
    cached.standin.fault(pick, page(200, INDEX, &text));
    let got = call();
    assert_eq!((got.status, x_cache(&got)), (200, Some("STALE")));
    assert_eq!(got.body, image.bytes);
    // A client that has nothing else gets what the registry has.
    let cold = "/v2/team/app/manifests/2.0";
    let got = cached.call("GET", cold, &accept);
    assert_eq!((got.status, x_cache(&got)), (200, Some("BYPASS")));
    assert_eq!(got.body, index);
}

#[test]
fn bug_the_type_of_a_digest_was_the_one_of_the_last_push() {
    let cached = Cached::start();
    let typed = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[]}}"#);
    let untyped = r#"{"schemaVersion":2,"manifests":[]}"#;
    let served = |target: &str| {
        let got = cached.get(target);
        assert_eq!(got.status, 200, "{}", got.text());
        got.header("Content-Type").map(str::to_owned)
    };
    for (name, body, other) in [("typed", &*typed, MANIFEST), ("untyped", untyped, MANIFEST)] {
        let add = |tag: &str, kind: &str| {
            cached
                .standin
                .add_manifest("team/app", tag, kind, body.as_bytes())
        };
        let by_digest = format!("/v2/team/app/manifests/{}", add(name, INDEX));
        let by_tag = format!("/v2/team/app/manifests/{name}");
        assert_eq!(served(&by_tag).as_deref(), Some(INDEX));
        let again = format!("/v2/team/app/manifests/{name}-again");
        let fields = [("Content-Type", other)];
        let pick = Match::registry().method("PUT");
        cached.standin.fault(pick, Fault::status(201));
        let pushed = Http::once(cached.address(), "PUT", &again, &fields, body.as_bytes());
        assert_eq!(pushed.status, 201, "{}", pushed.text());
        for target in [&by_tag, &by_digest] {
            assert_eq!(served(target).as_deref(), Some(INDEX), "{target}");
        }
    }
    // A registry that gives the wrong type is put right by the document.
    cached
        .standin
        .add_manifest("team/odd", "1", "application/json", typed.as_bytes());
    assert_eq!(served("/v2/team/odd/manifests/1").as_deref(), Some(INDEX));
}

#[test]
fn bug_a_signed_manifest_was_a_502() {
    let body = r#"{"schemaVersion":1,"name":"team/app","fsLayers":[],"signatures":[{}]}"#;
    let named = digest(b"the payload without its signatures");
    let fields = vec![
        ("Content-Type".to_owned(), SIGNED.to_owned()),
        ("Docker-Content-Digest".to_owned(), named.clone()),
    ];
    let fault = Fault::Status(200, fields, body.as_bytes().to_vec());
    let by_digest = format!("/v2/team/app/manifests/{named}");
    let (front, cached) = (Front::start(), Cached::start());
    for standin in [&front.standin, &cached.standin] {
        standin.fault(
            Match::registry().path("/manifests/").always(),
            fault.clone(),
        );
    }
    for target in [TAG, TAG, by_digest.as_str(), by_digest.as_str()] {
        let (direct, through) = (front.get(target), cached.get(target));
        assert_eq!(x_cache(&through), Some("BYPASS"), "never kept");
        for got in [direct, through, front.head(target), cached.head(target)] {
            assert_eq!(got.status, 200, "{target}: {}", got.text());
            assert_eq!(got.header("Content-Type"), Some(SIGNED));
            assert_eq!(got.header("Docker-Content-Digest"), Some(named.as_str()));
            assert!(got.body.is_empty() || got.body == body.as_bytes());
        }
    }
    // It is not kept: nothing stands in for it.
    cached.standin.clear_faults();
    cached
        .standin
        .fault(Match::registry().always(), Fault::status(500));
    assert_ne!(cached.get(TAG).status, 200);
}

#[test]
fn bug_a_second_client_of_a_stalled_tag_waited_twice_as_long() {
    let cached = Cached::start();
    let blob = cached.standin.add_blob("team/app", b"stalled");
    let blob = format!("/v2/team/app/blobs/{blob}");
    let by_digest = format!("/v2/team/app/manifests/{}", digest(b"unknown"));
    let pick = Match::registry().always();
    cached.standin.fault(pick, Fault::Silent);
    let targets = [TAG, TAGS, blob.as_str(), by_digest.as_str()];
    let ask = |target: &str| {
        let start = Instant::now();
        let mut http = Http::connect_within(cached.address(), Duration::from_secs(60));
        let got = http.get(target);
        let took = start.elapsed();
        assert_eq!(got.status, 504, "{target}: {}", got.text());
        assert!(took < Duration::from_secs(29), "{target}: {took:?}");
    };
    std::thread::scope(|scope| {
        let start = Instant::now();
        for target in targets {
            scope.spawn(move || ask(target));
        }
        // The second ones come while the first are being asked for, with a deadline of their own.
        wait_until("the first clients have waited", SOON, || {
            start.elapsed() > Duration::from_secs(3) && cached.standin.stalled() > 0
        });
        for target in targets {
            scope.spawn(move || ask(target));
        }
    });
}
