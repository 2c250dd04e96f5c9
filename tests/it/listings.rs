//! Lists of tags and repositories: their pages, in every form of `Link` and from every address, and
//! what is left of them in an outage.

use std::collections::HashSet;

use serde_json::Value;
use standin::{Fault, Match, Options, Quirks, Server};

use crate::support::{Cached, Front, Http, Response, Scratch, error_of, target_of};

const ECR: &str = "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com";

fn names(got: &Response, list: &str) -> Vec<String> {
    let document: Value = serde_json::from_slice(&got.body).unwrap();
    let names = document[list].as_array().unwrap().iter();
    names
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

/// The URL of the relation `next`.
fn next_of(got: &Response) -> Option<String> {
    let link = got.header("Link")?;
    let (before, _) = link.split_once("rel=\"next\"")?;
    let url = before
        .rsplit('<')
        .find(|part| part.contains("/v2/_catalog") || part.contains("list"));
    Some(url?.split('>').next()?.to_owned())
}

/// A registry that pages in this way.
fn options(quirks: Quirks) -> Options {
    Options {
        quirks,
        public_base: Some(ECR.into()),
        ..Options::default()
    }
}

/// Every form of `Link` that registries send.
fn forms() -> [Quirks; 4] {
    let several = Quirks {
        several_links: true,
        ..Quirks::ecr()
    };
    let relative = Quirks {
        absolute_links: false,
        ..Quirks::ecr()
    };
    [Quirks::ecr(), several, relative, Quirks::none()]
}

/// How clients reach the proxy: directly, through a terminator of TLS, through a port mapping, and
/// through both. The fields that arrive, and the address that the client knows.
const ADDRESSES: [(&[(&str, &str)], &str); 5] = [
    (&[("Host", "proxy:8080")], "http://proxy:8080"),
    (
        &[("Host", "mirror.example"), ("X-Forwarded-Proto", "https")],
        "https://mirror.example",
    ),
    (
        &[("Host", "mapped.example:15000")],
        "http://mapped.example:15000",
    ),
    (
        &[
            ("Host", "proxy:8080"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "mirror.example"),
            ("X-Forwarded-Port", "8443"),
        ],
        "https://mirror.example:8443",
    ),
    (
        &[
            ("Host", "inner"),
            ("Forwarded", "host=\"[2001:db8::1]:5000\";proto=https"),
        ],
        "https://[2001:db8::1]:5000",
    ),
];

/// Follows `Link` to the end, and holds every absolute one to the client's own address.
fn walk(http: &mut Http, fields: &[(&str, &str)], own: &str, first: &str, list: &str) -> usize {
    let (mut target, mut seen, mut pages) = (first.to_owned(), HashSet::new(), 0);
    loop {
        let got = http.request("GET", &target, fields, b"");
        assert_eq!(got.status, 200, "{target}: {}", got.text());
        assert_eq!(got.header("Content-Type"), Some("application/json"));
        for name in names(&got, list) {
            assert!(seen.insert(name.clone()), "{name} comes twice");
        }
        pages += 1;
        assert!(pages < 100, "no end");
        let Some(next) = next_of(&got) else {
            return seen.len();
        };
        // Relative where the registry's own is, and where a list is made here.
        let is_ours = next.starts_with(&format!("{own}/v2/")) || next.starts_with("/v2/");
        assert!(is_ours, "{next}");
        target = target_of(&next).to_owned();
    }
}

#[test]
fn long_lists_page_from_every_address_and_in_every_form_of_link() {
    for quirks in forms() {
        let front = Front::with(options(quirks), &[]);
        front.standin.add_tags("team/app", 1000);
        front.standin.add_repositories(2499);
        let mut http = front.http();
        for (fields, own) in ADDRESSES {
            let tags = walk(
                &mut http,
                fields,
                own,
                "/v2/team/app/tags/list?n=250",
                "tags",
            );
            assert_eq!(tags, 1000, "{own}");
            let catalogue = walk(&mut http, fields, own, "/v2/_catalog?n=900", "repositories");
            assert_eq!(catalogue, 2500, "{own}");
        }
        // A form that Link does not ask for is not made up.
        let log = front.seen(Server::Registry);
        let cursors = log.iter().filter(|seen| seen.target.contains("last="));
        assert!(cursors.count() >= ADDRESSES.len() * 5);
    }
}

#[test]
fn more_names_than_ecr_takes_are_asked_for_in_its_pages() {
    for n in ["1001", "5000", "99999999999999999999"] {
        let front = Front::with(options(Quirks::ecr()), &[]);
        front.standin.add_repositories(2500);
        front.standin.add_tags("many/repository-0000", 1000);
        let (http, own) = (&mut front.http(), format!("http://{}", front.address()));
        let first = format!("/v2/_catalog?n={n}");
        assert_eq!(walk(http, &[], &own, &first, "repositories"), 2500);
        let first = format!("/v2/many/repository-0000/tags/list?n={n}");
        assert_eq!(walk(http, &[], &own, &first, "tags"), 1000);
        assert_eq!(
            front.seen(Server::Registry)[0].target,
            "/v2/_catalog?n=1000"
        );
    }
    // Another proxy, or a registry of another kind, says itself what it takes.
    let front = Front::with(
        Options {
            demand_token: false,
            ..options(Quirks::none())
        },
        &[("UPSTREAM_AUTH", "none")],
    );
    front.standin.add_repositories(2500);
    let got = front.get("/v2/_catalog?n=5000");
    assert_eq!(names(&got, "repositories").len(), 2500);
    assert_eq!(
        front.seen(Server::Registry)[0].target,
        "/v2/_catalog?n=5000"
    );
}

#[test]
fn a_client_that_asks_for_nothing_gets_nothing() {
    for quirks in [Quirks::ecr(), Quirks::none()] {
        let front = Front::with(options(quirks), &[]);
        front.standin.add_tags("team/app", 3);
        let got = front.get("/v2/team/app/tags/list?n=0");
        assert_eq!((got.status, got.header("Link")), (200, None));
        let document: Value = serde_json::from_slice(&got.body).unwrap();
        assert_eq!(
            document,
            serde_json::json!({"name": "team/app", "tags": []})
        );
        let got = front.get("/v2/_catalog?n=0");
        assert_eq!(
            (got.text().as_str(), got.header("Link")),
            (r#"{"repositories":[]}"#, None)
        );
        let got = front.get("/v2/absent/tags/list?n=0");
        assert_eq!((got.status, error_of(&got).0), (404, "NAME_UNKNOWN".into()));
    }
}

#[test]
fn a_number_that_is_none_is_refused_here() {
    let front = Front::start();
    for n in ["-1", "x", "1e3", "%30", "+1", "0x10", "1.5"] {
        for path in ["/v2/_catalog", "/v2/team/app/tags/list"] {
            let got = front.get(&format!("{path}?last=a&n={n}"));
            let expected = (400, "PAGINATION_NUMBER_INVALID".to_owned());
            assert_eq!((got.status, error_of(&got).0), expected, "{n}");
        }
    }
    assert!(front.seen(Server::Registry).is_empty());
}

#[test]
fn head_of_a_list_is_its_head() {
    for settings in [&[][..], &[("CACHE_DIR", "off")]] {
        let front = Front::with(options(Quirks::ecr()), settings);
        front.standin.add_tags("team/app", 150);
        for target in [
            "/v2/team/app/tags/list",
            "/v2/_catalog",
            "/v2/team/app/tags/list?n=0",
        ] {
            let (get, head) = (front.get(target), front.head(target));
            assert_eq!((head.status, head.body.len()), (200, 0));
            for name in ["Content-Type", "Content-Length", "Link"] {
                assert_eq!(head.header(name), get.header(name), "{target} {name}");
            }
        }
        let absent = front.head("/v2/absent/tags/list");
        assert_eq!((absent.status, absent.body.len()), (404, 0));
    }
}

#[test]
fn what_is_no_list_is_not_passed_off_as_one() {
    let cached = Cached::start();
    cached.standin.add_tags("team/app", 2);
    let list = "/v2/team/app/tags/list";
    let html = || Fault::Status(200, Vec::new(), b"<html>please log in</html>".to_vec());
    cached.standin.fault(Match::registry(), html());
    assert_eq!(cached.get(list).status, 502);
    assert_eq!(cached.get(list).status, 200);
    for fault in [html(), Fault::CutAfter(5)] {
        cached.standin.fault(Match::registry(), fault);
        let got = cached.get(list);
        assert_eq!((got.status, got.header("X-Cache")), (200, Some("STALE")));
        assert_eq!(names(&got, "tags"), ["tag-0000", "tag-0001"]);
    }
}

fn assert_stale(got: &Response) {
    assert_eq!(
        (got.status, got.header("X-Cache")),
        (200, Some("STALE")),
        "{}",
        got.text()
    );
    let warning = got.header("Warning").unwrap();
    assert!(warning.starts_with("299 - \""), "{warning}");
    assert_eq!(got.header("Content-Type"), Some("application/json"));
}

#[test]
fn a_list_outlives_upstream_and_a_restart_with_its_own_cursors() {
    let mut cached = Cached::on(Scratch::new(), options(Quirks::ecr()), &[]);
    cached.standin.add_tags("team/app", 1000);
    cached.standin.add_repositories(2499);
    let lists = [
        ("/v2/team/app/tags/list?n=300", "tags"),
        ("/v2/_catalog?n=1000", "repositories"),
    ];
    let walk_all = |cached: &Cached, fields: &[(&str, &str)], own: &str| {
        let mut http = Http::connect(cached.address());
        lists.map(|(first, list)| walk(&mut http, fields, own, first, list))
    };
    let own = format!("http://{}", cached.address());
    assert_eq!(walk_all(&cached, &[], &own), [1000, 2500]);
    let before = cached.get(lists[0].0);
    cached.all_down();
    cached.stop();
    cached.start_again();
    // The Link is upstream's, to the byte, and leads to whatever address the client used.
    for (fields, own) in ADDRESSES {
        assert_eq!(walk_all(&cached, fields, own), [1000, 2500]);
        let got = cached.call("GET", lists[0].0, fields);
        assert_stale(&got);
        assert_eq!(got.body, before.body);
        assert!(got.header("Age").unwrap().parse::<u64>().unwrap() < 600);
        let cursor = |got: &Response| next_of(got).unwrap().split_once("?").unwrap().1.to_owned();
        assert_eq!(cursor(&got), cursor(&before));
        assert!(cursor(&got).ends_with("last=Zm9v+/300%2Bx/y%3D=="));
    }
    // Asked in another way than before, it is paged here.
    let own = format!("http://{}", cached.address());
    let http = &mut Http::connect(cached.address());
    for (first, list, count) in [
        ("/v2/team/app/tags/list", "tags", 1000),
        ("/v2/team/app/tags/list?n=77", "tags", 1000),
        ("/v2/team/app/tags/list?n=100&last=tag-0899", "tags", 100),
        ("/v2/_catalog?n=999999", "repositories", 2500),
        (
            "/v2/_catalog?last=many%2Frepository-2497",
            "repositories",
            2,
        ),
    ] {
        assert_eq!(walk(http, &[], &own, first, list), count, "{first}");
    }
    let none = cached.get("/v2/team/app/tags/list?n=0");
    assert_stale(&none);
    assert_eq!((names(&none, "tags").len(), none.header("Link")), (0, None));
    // A cursor that nobody knows is no place to go on from.
    let lost = cached.get("/v2/team/app/tags/list?n=300&last=Zm9v+/301%2Bx/y%3D==");
    // 503: since the restart there is no token either.
    assert_eq!(lost.status, 503, "{}", lost.text());
    assert_eq!(cached.get("/v2/absent/tags/list").status, 503);
}

#[test]
fn what_was_pulled_since_is_listed_beside_what_was_listed() {
    let cached = Cached::start();
    for tag in ["b", "a"] {
        cached.standin.put_image("team/app", tag, &[]);
    }
    assert_eq!(
        names(&cached.get("/v2/team/app/tags/list"), "tags"),
        ["b", "a"]
    );
    assert_eq!(
        names(&cached.get("/v2/_catalog"), "repositories"),
        ["team/app"]
    );
    cached.standin.put_image("team/app", "ab", &[]);
    cached.standin.put_image("other", "1", &[]);
    for target in ["/v2/team/app/manifests/ab", "/v2/other/manifests/1"] {
        assert_eq!(cached.get(target).status, 200);
    }
    cached.all_down();
    let got = cached.get("/v2/team/app/tags/list");
    assert_stale(&got);
    assert_eq!(got.text(), r#"{"name":"team/app","tags":["a","ab","b"]}"#);
    let first = cached.get("/v2/team/app/tags/list?n=2");
    let next = next_of(&first).unwrap();
    assert_eq!(next, "/v2/team/app/tags/list?n=2&last=ab");
    assert_eq!(names(&cached.get(target_of(&next)), "tags"), ["b"]);
    assert_eq!(
        names(&cached.get("/v2/_catalog"), "repositories"),
        ["other", "team/app"]
    );
}

#[test]
fn a_list_goes_when_upstream_says_that_it_is_gone() {
    let cached = Cached::start();
    cached.standin.add_tags("team/app", 2);
    let list = "/v2/team/app/tags/list";
    assert_eq!(cached.get(list).status, 200);
    let gone = Fault::registry_error(404, "NAME_UNKNOWN", "gone");
    cached.standin.fault(Match::registry(), gone);
    assert_eq!(cached.get(list).status, 404);
    cached.all_down();
    assert_eq!(cached.get(list).status, 504);
}

#[test]
fn any_fault_but_an_answer_lets_an_older_list_stand_in() {
    let mut cached = Cached::start();
    cached.standin.add_tags("team/app", 2);
    let list = "/v2/team/app/tags/list";
    let before = cached.get(list);
    for fault in [
        Fault::status(500),
        Fault::status(503),
        Fault::registry_error(403, "DENIED", "not you"),
        Fault::CloseBeforeHead,
        // The registry is left alone for a while after this one.
        Fault::TooMany429 {
            retry_after: Some(1),
        },
    ] {
        cached.standin.clear_faults();
        cached
            .standin
            .fault(Match::registry().always(), fault.clone());
        let got = cached.get(list);
        assert_stale(&got);
        assert_eq!(got.body, before.body, "{fault:?}");
        // What nobody has listed before gets the registry's word, not an empty list.
        assert_ne!(cached.get("/v2/other/tags/list").status, 200, "{fault:?}");
    }
    cached.standin.clear_faults();
    cached.stop();
    cached.start_again();
    let fault = Fault::registry_error(400, "UNSUPPORTED", "bad cursor");
    cached.standin.fault(Match::registry(), fault);
    assert_eq!(cached.get(list).status, 400);
}

#[test]
fn without_a_cache_a_list_is_what_upstream_says_now() {
    let front = Front::with(options(Quirks::ecr()), &[("CACHE_DIR", "off")]);
    front.standin.add_tags("team/app", 2);
    let list = "/v2/team/app/tags/list";
    assert_eq!(names(&front.get(list), "tags").len(), 2);
    front.standin.down(Server::Registry);
    assert_eq!(front.get(list).status, 504);
}
