//! The address under which the client sees us, in `Link` and `Location`. Owns: reading it from
//! `Host` and `X-Forwarded-*`, and putting it into URLs of the registry's API. Must not: change a
//! byte of a query, or touch any other URL.

use crate::message::{Headers, Request};
use crate::oci;

/// The address under which the client sees us, and the way in which it names the registry there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ClientAddress {
    /// Scheme and authority, without a slash at the end. When it is empty, URLs are paths.
    pub(super) origin: String,
    /// The host that the client puts before repositories, with its slash; or nothing.
    pub(super) prefix: String,
    /// What stands before the repositories of an origin (`NAMESPACES`), with its slash. The client
    /// does not see it. Or nothing.
    pub(super) added: String,
    /// The parameter `ns=HOST` as the client wrote it.
    pub(super) parameter: Option<String>,
}

impl ClientAddress {
    /// The client's URL for a path of the registry, which begins with `/v2/`.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{}", self.origin, self.path(path))
    }

    /// The client's path for a path of the registry.
    fn path(&self, path: &str) -> String {
        match path.strip_prefix("/v2/") {
            Some(rest) => {
                let rest = rest.strip_prefix(&self.added).unwrap_or(rest);
                format!("/v2/{}{rest}", self.prefix)
            }
            None => path.to_owned(),
        }
    }

    /// Adds `ns` to a URL that the client follows as it stands, so that it leads to the same
    /// registry again.
    pub(super) fn add_namespace(&self, url: String) -> String {
        let Some(parameter) = &self.parameter else {
            return url;
        };
        let path = url.strip_prefix(&self.origin).unwrap_or(&url);
        if !path.starts_with("/v2/") && !is_below_request(path) {
            return url;
        }
        match url.split_once('?') {
            None => format!("{url}?{parameter}"),
            // Another proxy says it already.
            Some((_, query)) if query.split('&').any(|own| own.starts_with("ns=")) => url,
            Some(_) => format!("{url}&{parameter}"),
        }
    }
}

/// Scheme and authority under which the client sees us, without a slash at the end; empty when
/// the client (HTTP/1.0) did not say, so that URLs become paths.
pub(super) fn own_origin(request: &Request, trust_proxy_headers: bool) -> String {
    let forwarded = if trust_proxy_headers {
        read_forwarded(&request.headers)
    } else {
        Forwarded::default()
    };
    let own_scheme = if request.peer.tls { "https" } else { "http" };
    let scheme = forwarded.scheme.unwrap_or(own_scheme);
    let host = forwarded
        .host
        .as_deref()
        .or_else(|| request.headers.first("Host"));
    let Some(host) = host.filter(|host| oci::is_authority(host)) else {
        return String::new();
    };
    let Some(port) = forwarded.port else {
        return format!("{scheme}://{host}");
    };
    let default = if scheme == "https" { 443 } else { 80 };
    let name = oci::host_of(host);
    if port == default {
        format!("{scheme}://{name}")
    } else {
        format!("{scheme}://{name}:{port}")
    }
}

/// The client's side as proxies in front of us describe it.
#[derive(Default)]
struct Forwarded {
    scheme: Option<&'static str>,
    host: Option<String>,
    port: Option<u16>,
}

/// Reads `X-Forwarded-*`, else `Forwarded` (RFC 7239). Of each the first element counts, which the
/// proxy nearest to the client wrote. A malformed value counts as absent.
fn read_forwarded(headers: &Headers) -> Forwarded {
    let first = |name| {
        headers
            .first(name)
            .and_then(|value| value.split(',').next())
            .map(str::trim)
    };
    let element = first("Forwarded").unwrap_or_default();
    let parameter = |wanted: &str| {
        element.split(';').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            name.trim()
                .eq_ignore_ascii_case(wanted)
                .then(|| value.trim().trim_matches('"'))
        })
    };
    let scheme = first("X-Forwarded-Proto").or_else(|| parameter("proto"));
    let scheme = scheme.and_then(|scheme| match scheme {
        scheme if scheme.eq_ignore_ascii_case("https") => Some("https"),
        scheme if scheme.eq_ignore_ascii_case("http") => Some("http"),
        _ => None,
    });
    let host = first("X-Forwarded-Host").or_else(|| parameter("host"));
    let host = host
        .filter(|host| oci::is_authority(host))
        .map(str::to_owned);
    // A port in the host is the one that the client itself wrote.
    let named = host
        .as_deref()
        .is_some_and(|host| oci::split_port(host).1.is_some());
    let port = first("X-Forwarded-Port").filter(|_| !named);
    let port = port
        .and_then(|port| port.parse().ok())
        .filter(|port| *port > 0);
    Forwarded { scheme, host, port }
}

/// Makes a URL of the registry's API lead to us; path and query stay byte for byte. An absolute one
/// gets the client's address. The host is not compared: a registry may know itself by another name
/// than ours for it. A relative one stays relative: the client knows its way here, while we may
/// know no more than `http://`. Any other URL is left alone.
pub(super) fn rewrite_url(url: &str, own: &ClientAddress) -> String {
    if url.starts_with("/v2/") {
        return own.path(url);
    }
    let rest = url.split_once("//").map(|(_, rest)| rest);
    let path = rest.and_then(|rest| rest.get(rest.find('/')?..));
    let path = path.filter(|path| path.starts_with("/v2/"));
    path.map_or_else(|| url.to_owned(), |path| own.url(path))
}

/// True for a reference that begins at the path of the request, such as `?last=a` (RFC 3986 §4.2).
fn is_below_request(url: &str) -> bool {
    let first = url.split(['/', '?']).next().unwrap_or_default();
    !url.starts_with('/') && !first.contains(':')
}

/// Rewrites each `<URI-Reference>` of a `Link` field (RFC 8288 §3) and nothing else of it.
pub(super) fn rewrite_link(link: &str, own: &ClientAddress) -> String {
    let mut rewritten = String::with_capacity(link.len());
    let mut rest = link;
    while let Some(open) = find_unquoted(rest, b"<") {
        let (before, from_url) = rest.split_at(open + 1);
        let Some(close) = from_url.find('>') else {
            break;
        };
        let (url, after) = from_url.split_at(close);
        rewritten.push_str(before);
        rewritten.push_str(&own.add_namespace(rewrite_url(url, own)));
        rest = after;
    }
    rewritten.push_str(rest);
    rewritten
}

/// The target of the relation `next` in a `Link` field, if it has one.
pub(super) fn next_link(link: &str) -> Option<&str> {
    let mut rest = link;
    while let Some(open) = find_unquoted(rest, b"<") {
        let (url, mut after) = rest.get(open + 1..)?.split_once('>')?;
        loop {
            let end = find_unquoted(after, b";,").unwrap_or(after.len());
            let (parameter, others) = after.split_at_checked(end)?;
            if is_relation_next(parameter) {
                return Some(url);
            }
            after = others;
            match others.strip_prefix(';') {
                Some(others) => after = others,
                None => break,
            }
        }
        rest = after;
    }
    None
}

/// `rel=next`, or one of several relations in quotes (RFC 8288 §3.3).
fn is_relation_next(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else {
        return false;
    };
    let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
    name.trim().eq_ignore_ascii_case("rel") && relations.any(|rel| rel.eq_ignore_ascii_case("next"))
}

/// The position of the first of these bytes outside quoted strings: a quoted value may hold any.
fn find_unquoted(text: &str, wanted: &[u8]) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            byte if !quoted && wanted.contains(&byte) => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Peer;

    const OWN: &str = "http://proxy:8080";

    fn own() -> ClientAddress {
        ClientAddress {
            origin: OWN.into(),
            ..ClientAddress::default()
        }
    }

    fn request(fields: &[(&str, &str)]) -> Request {
        Request {
            method: "GET".into(),
            target: "/v2/".into(),
            headers: fields.iter().copied().collect(),
            peer: Peer::on_unix_socket(),
            id: "1".into(),
        }
    }

    fn address(fields: &[(&str, &str)]) -> String {
        own_origin(&request(fields), true)
    }

    #[test]
    fn the_prefix_of_an_origin_is_not_shown() {
        let own = ClientAddress {
            added: "docker-hub/".into(),
            parameter: Some("ns=docker.io".into()),
            ..own()
        };
        assert_eq!(
            rewrite_link(
                "</v2/docker-hub/library/a/tags/list?n=1&last=2>; rel=\"next\"",
                &own
            ),
            "</v2/library/a/tags/list?n=1&last=2&ns=docker.io>; rel=\"next\""
        );
        assert_eq!(
            own.url("/v2/other/tags/list"),
            format!("{OWN}/v2/other/tags/list")
        );
    }

    #[test]
    fn links_in_every_form() {
        let ecr = "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com";
        for (link, expected) in [
            (
                format!("<{ecr}/v2/a/tags/list?last=x%2By+z/=&n=5>; rel=\"next\""),
                format!("<{OWN}/v2/a/tags/list?last=x%2By+z/=&n=5>; rel=\"next\""),
            ),
            (
                "</v2/_catalog?last=b&n=1>;rel=next".into(),
                "</v2/_catalog?last=b&n=1>;rel=next".into(),
            ),
            (
                "<list?last=a%2Bb>; rel=next, <?last=b>".into(),
                "<list?last=a%2Bb>; rel=next, <?last=b>".into(),
            ),
            (
                format!("<{ecr}:443/v2/a>; rel=\"next\"; title=\"<x>, y\", <//r/v2/b>; rel=prev"),
                format!("<{OWN}/v2/a>; rel=\"next\"; title=\"<x>, y\", <{OWN}/v2/b>; rel=prev"),
            ),
            (
                "<https://docs.example/help>; rel=help".into(),
                "<https://docs.example/help>; rel=help".into(),
            ),
            ("<unclosed".into(), "<unclosed".into()),
            (String::new(), String::new()),
        ] {
            assert_eq!(rewrite_link(&link, &own()), expected);
        }
    }

    #[test]
    fn locations_in_every_form() {
        let path = "/v2/a/blobs/uploads/1?_state=a%2Bb+c/=";
        for location in [
            format!("https://r.example:5000{path}"),
            format!("//r{path}"),
        ] {
            assert_eq!(rewrite_url(&location, &own()), format!("{OWN}{path}"));
        }
        assert_eq!(rewrite_url(path, &own()), path, "relative stays relative");
        assert_eq!(rewrite_url(path, &ClientAddress::default()), path);
        assert_eq!(
            rewrite_url("https://s3.example/x?sig", &own()),
            "https://s3.example/x?sig"
        );
        assert_eq!(rewrite_url("/elsewhere", &own()), "/elsewhere");
    }

    #[test]
    fn the_next_page_is_found_in_every_form() {
        for (link, next) in [
            (
                "</v2/_catalog?last=b&n=1>;rel=next",
                Some("/v2/_catalog?last=b&n=1"),
            ),
            (
                "<https://r/v2/a?x=+/%2B=>; rel=\"next\"",
                Some("https://r/v2/a?x=+/%2B="),
            ),
            (
                "</a>; rel=\"start\"; title=\"a, <b>; rel=next\", </c>; REL=Next",
                Some("/c"),
            ),
            ("</a>; title=\"x\"; rel=\"prev next\"", Some("/a")),
            ("</a>; rel=prev, </b>; rel=nextish", None),
            ("</a", None),
            ("", None),
        ] {
            assert_eq!(next_link(link), next, "{link}");
        }
    }

    #[test]
    fn links_and_locations_lead_to_the_registry_that_was_named() {
        let path = "/v2/a/tags/list?n=1&last=x+/%2B=";
        let by_path = ClientAddress {
            prefix: "r.example:5000/".into(),
            ..own()
        };
        let expected = "/v2/r.example:5000/a/tags/list?n=1&last=x+/%2B=";
        let absolute = format!("https://r{path}");
        assert_eq!(rewrite_url(path, &by_path), expected);
        assert_eq!(rewrite_url(&absolute, &by_path), format!("{OWN}{expected}"));
        let link = rewrite_link(&format!("<{path}>; rel=\"next\""), &by_path);
        assert_eq!(link, format!("<{expected}>; rel=\"next\""));
        let by_name = ClientAddress {
            parameter: Some("ns=r.example%3A5000".into()),
            ..own()
        };
        // A push names its registry by the path alone.
        assert_eq!(rewrite_url(path, &by_name), path);
        for (url, expected) in [
            (path, format!("{path}&ns=r.example%3A5000")),
            (&absolute, format!("{OWN}{path}&ns=r.example%3A5000")),
            ("list?last=a", "list?last=a&ns=r.example%3A5000".into()),
            ("?last=a", "?last=a&ns=r.example%3A5000".into()),
            (
                "https://r/v2/_catalog",
                format!("{OWN}/v2/_catalog?ns=r.example%3A5000"),
            ),
            ("/v2/_catalog?n=1&ns=r", "/v2/_catalog?n=1&ns=r".to_owned()),
            (
                "https://docs.example/help",
                "https://docs.example/help".into(),
            ),
        ] {
            assert_eq!(
                rewrite_link(&format!("<{url}>"), &by_name),
                format!("<{expected}>")
            );
        }
    }

    #[test]
    fn the_address_the_client_sees() {
        let host = ("Host", "proxy:8080");
        assert_eq!(address(&[host]), OWN);
        assert_eq!(address(&[]), "");
        assert_eq!(
            address(&[host, ("X-Forwarded-Proto", "https")]),
            "https://proxy:8080"
        );
        let lb = [
            host,
            ("X-Forwarded-Proto", "HTTPS, http"),
            ("X-Forwarded-Host", "lb.example, b"),
        ];
        assert_eq!(address(&lb), "https://lb.example");
        let port = [&lb[..], &[("X-Forwarded-Port", "8443")]].concat();
        assert_eq!(address(&port), "https://lb.example:8443");
        let default = [&lb[..], &[("X-Forwarded-Port", "443")]].concat();
        assert_eq!(address(&default), "https://lb.example");
        assert_eq!(
            address(&[host, ("X-Forwarded-Port", "9")]),
            "http://proxy:9"
        );
        let named = [
            host,
            ("X-Forwarded-Host", "lb:1"),
            ("X-Forwarded-Port", "2"),
        ];
        assert_eq!(address(&named), "http://lb:1");
        let standard = [
            host,
            ("Forwarded", "for=x;host=\"lb:1\";Proto=https, host=b"),
        ];
        assert_eq!(address(&standard), "https://lb:1");
        assert_eq!(
            address(&[host, ("X-Forwarded-Host", "[::1]:5")]),
            "http://[::1]:5"
        );
    }

    #[test]
    fn forged_addresses_are_ignored() {
        let host = ("Host", "proxy:8080");
        for forged in ["a b", "a/b", "a\"", "u@h", "", "a:99999"] {
            assert_eq!(
                address(&[host, ("X-Forwarded-Host", forged)]),
                OWN,
                "{forged}"
            );
        }
        assert_eq!(address(&[host, ("X-Forwarded-Proto", "javascript")]), OWN);
        assert_eq!(address(&[host, ("X-Forwarded-Port", "x")]), OWN);
        let said = [
            host,
            ("X-Forwarded-Host", "lb"),
            ("X-Forwarded-Proto", "https"),
        ];
        assert_eq!(own_origin(&request(&said), false), OWN);
    }
}
