//! `Link` and `Location`: always the address under which the client sees the proxy.

use std::collections::HashSet;

use standin::{Fault, Match, Options, Quirks, Server};

use crate::support::{Front, error_of, raw, target_of};

const UPLOADS: &str = "/v2/new/repo/blobs/uploads/";
const ECR: &str = "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com";

/// Scheme and authority of the `Location` of an upload that is begun with these fields.
fn seen_as(front: &Front, fields: &[(&str, &str)]) -> String {
    let begun = front.call("POST", UPLOADS, fields, b"");
    assert_eq!(begun.status, 202, "{}", begun.text());
    let location = begun.header("Location").unwrap();
    let path = target_of(location);
    assert!(path.starts_with(UPLOADS), "{location}");
    location[..location.len() - path.len()].to_owned()
}

/// What the table of forwarding fields comes to.
const FORWARDED: [(&[(&str, &str)], &str); 8] = [
    (&[("Host", "mirror.example")], "http://mirror.example"),
    (
        &[
            ("Host", "mirror.example:5000"),
            ("X-Forwarded-Proto", "https"),
        ],
        "https://mirror.example:5000",
    ),
    (
        &[
            ("Host", "inner:8080"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "mirror.example"),
        ],
        "https://mirror.example",
    ),
    (
        &[
            ("Host", "inner:8080"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "mirror.example"),
            ("X-Forwarded-Port", "8443"),
        ],
        "https://mirror.example:8443",
    ),
    (
        &[
            ("Host", "inner:8080"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Port", "443"),
        ],
        "https://inner",
    ),
    (
        &[
            ("Host", "inner"),
            (
                "Forwarded",
                "for=1.2.3.4;host=\"mirror.example:1\";proto=https",
            ),
        ],
        "https://mirror.example:1",
    ),
    (
        &[("Host", "inner"), ("X-Forwarded-Host", "evil/\"><a")],
        "http://inner",
    ),
    (&[("Host", "[::1]:8080")], "http://[::1]:8080"),
];

#[test]
fn locations_name_the_address_that_the_client_sees() {
    let absolute = Options {
        public_base: Some(ECR.into()),
        ..Options::default()
    };
    for options in [absolute, Options::default()] {
        let front = Front::with(options, &[]);
        assert_eq!(seen_as(&front, &[]), format!("http://{}", front.address()));
        for (fields, expected) in FORWARDED {
            assert_eq!(seen_as(&front, fields), expected, "{fields:?}");
        }
        let forwarded = |name: &str| {
            let name = name.to_ascii_lowercase();
            name.starts_with("x-forwarded") || name == "forwarded"
        };
        for seen in front.seen(Server::Registry) {
            assert!(!seen.headers.iter().any(|(name, _)| forwarded(name)));
        }
    }
}

/// The terminator says nothing of the client's scheme: `http://` would lead past it.
#[test]
fn bug_relative_links_became_http_behind_a_tls_terminator() {
    let relative = Options {
        quirks: Quirks::none(),
        ..Options::default()
    };
    let front = Front::with(relative, &[]);
    front.standin.add_repositories(3);
    for fields in [&[][..], &[("X-Forwarded-Proto", "https")]] {
        assert_eq!(seen_as(&front, fields), "");
        let page = front.call("GET", "/v2/_catalog?n=1", fields, b"");
        let link = page.header("Link").unwrap();
        assert!(link.starts_with("</v2/_catalog?"), "{link}");
    }
    assert_eq!(pages(&front, "/v2/_catalog?n=1", "repositories").1, 3);
}

#[test]
fn forwarding_fields_are_ignored_when_they_are_disabled() {
    let front = Front::with(Options::default(), &[("DISABLE_PROXY_HEADERS", "true")]);
    for (fields, _) in FORWARDED {
        let expected = format!("http://{}", fields[0].1);
        assert_eq!(seen_as(&front, fields), expected, "{fields:?}");
    }
}

/// The URL of the relation `next` in a `Link` field that the stand-in wrote.
fn next(link: &str) -> &str {
    let (before, _) = link.split_once("rel=\"next\"").expect("a next page");
    let url = &before[before.rfind('<').expect("a URL") + 1..];
    url.split('>').next().unwrap()
}

/// Follows `Link` to the end, as a client does; returns the names and the pages.
fn pages(front: &Front, first: &str, list: &str) -> (Vec<String>, usize) {
    let (mut target, mut names, mut count) = (first.to_owned(), Vec::new(), 0);
    let mut http = front.http();
    let own = format!("http://{}/v2/", front.address());
    loop {
        let page = http.get(&target);
        assert_eq!(page.status, 200, "{target}: {}", page.text());
        assert_eq!(page.header("Content-Type"), Some("application/json"));
        let document: serde_json::Value = serde_json::from_slice(&page.body).unwrap();
        let found = document[list].as_array().unwrap();
        names.extend(found.iter().map(|name| name.as_str().unwrap().to_owned()));
        count += 1;
        let Some(link) = page.header("Link") else {
            return (names, count);
        };
        assert!(!link.contains("amazonaws"), "{link}");
        let url = next(link);
        assert!(url.starts_with(&own) || url.starts_with("/v2/"), "{url}");
        target = target_of(url).to_owned();
    }
}

/// Absolute links of ECR with an opaque cursor, the same among others, and the specification's.
fn ways() -> [Options; 3] {
    let several = Quirks {
        several_links: true,
        ..Quirks::ecr()
    };
    [Quirks::ecr(), several, Quirks::none()].map(|quirks| Options {
        quirks,
        public_base: Some(ECR.into()),
        ..Options::default()
    })
}

#[test]
fn a_thousand_tags_are_listed_to_the_end() {
    for options in ways() {
        let by_default = if options.quirks.opaque_cursors { 10 } else { 1 };
        let front = Front::with(options, &[]);
        front.standin.add_tags("team/app", 1000);
        for (query, expected) in [("", by_default), ("?n=300", 4), ("?n=1000", 1)] {
            let first = format!("/v2/team/app/tags/list{query}");
            let (names, count) = pages(&front, &first, "tags");
            let unique: HashSet<&String> = names.iter().collect();
            assert_eq!((names.len(), unique.len(), count), (1000, 1000, expected));
            assert!(unique.contains(&"tag-0999".to_owned()));
        }
    }
}

#[test]
fn the_catalogue_is_listed_to_the_end() {
    for options in ways() {
        let front = Front::with(options, &[]);
        front.standin.add_repositories(2500);
        let (names, count) = pages(&front, "/v2/_catalog?n=1000", "repositories");
        let unique: HashSet<&String> = names.iter().collect();
        assert_eq!((names.len(), unique.len(), count), (2500, 2500, 3));
        assert!(unique.contains(&"many/repository-2499".to_owned()));
    }
}

#[test]
fn other_links_and_parameters_stay_as_they_are() {
    let [_, options, _] = ways();
    let front = Front::with(options, &[]);
    front.standin.add_repositories(200);
    let page = front.get("/v2/_catalog?n=100");
    let link = page.header("Link").unwrap();
    let own = format!("http://{}", front.address());
    let expected = format!(
        "<{own}/v2/>; rel=\"start\"; title=\"a, b; c>\", \
         <{own}/v2/_catalog?n=100&last=Zm9v+/100%2Bx/y%3D==>; title=\"the, next\"; rel=\"next\"; \
         type=\"application/json\", <https://docs.example.com/help,me>; rel=help"
    );
    assert_eq!(link, expected);
}

#[test]
fn a_list_that_upstream_refuses_is_refused() {
    let front = Front::start();
    front.standin.add_tags("team/app", 3);
    // As ECR does a cursor that it has not given out.
    let got = front.get("/v2/team/app/tags/list?last=tag-0001");
    assert_eq!((got.status, error_of(&got).0), (405, "UNSUPPORTED".into()));
    let got = front.get("/v2/team/absent/tags/list");
    assert_eq!((got.status, error_of(&got).0), (404, "NAME_UNKNOWN".into()));
}

#[test]
fn a_client_that_names_no_host_gets_paths() {
    let front = Front::start();
    let asked = b"POST /v2/new/repo/blobs/uploads/ HTTP/1.0\r\n\r\n";
    let answer = String::from_utf8(raw(front.address(), asked)).unwrap();
    let location = answer
        .lines()
        .find_map(|line| line.strip_prefix("location: "));
    assert!(
        location.is_some_and(|path| path.starts_with(UPLOADS)),
        "{answer}"
    );
}

#[test]
fn each_of_several_link_lines_is_rewritten() {
    let front = Front::start();
    let lines = [
        ("Link", format!("<{ECR}/v2/_catalog?last=a>; rel=\"next\"")),
        ("link", "</v2/>; rel=x".into()),
    ];
    let fields = lines.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let fault = Fault::Status(200, fields, br#"{"repositories":[]}"#.to_vec());
    front.standin.fault(Match::registry(), fault);
    let got = front.get("/v2/_catalog");
    let own = format!("http://{}", front.address());
    let expected = [
        format!("<{own}/v2/_catalog?last=a>; rel=\"next\""),
        "</v2/>; rel=x".to_owned(),
    ];
    assert_eq!(got.all("Link").collect::<Vec<_>>(), expected);
}
