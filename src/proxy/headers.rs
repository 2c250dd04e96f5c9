//! Header fields on their way through. Owns: what goes upstream and what comes back. Must not: know
//! what a route does.

use super::conditional::{self, RangeSpec};
use super::links::{ClientAddress, rewrite_link, rewrite_url};
use crate::message::Headers;
use crate::oci::Route;

/// Names the digest of the content (distribution-spec, "Pulling manifests").
pub(super) const DIGEST_FIELD: &str = "Docker-Content-Digest";
/// Sent upstream when the client names none.
const USER_AGENT: &str = concat!("aws-ecr-proxy/", env!("CARGO_PKG_VERSION"));

/// Fields of a request that upstream gets. All others stay here: they concern the connection to us,
/// name the client, are a login for this proxy, or could mean something to an unknown front end of
/// the registry. RFC 9110 (§8, §12, §13, §14) has the fields of representation and conditions, and
/// RFC 9530 the digests of content. The door owns those of framing.
const FOR_UPSTREAM: [&str; 19] = [
    "Accept",
    "Cache-Control",
    "Content-Digest",
    "Content-Encoding",
    "Content-Language",
    "Content-MD5",
    "Content-Range",
    "Content-Type",
    "Digest",
    "Docker-Content-Digest",
    "Docker-Upload-UUID",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "If-Unmodified-Since",
    "Range",
    "Repr-Digest",
    "User-Agent",
];
/// Fields of the distribution-spec, whatever a later version adds.
const SPECIFICATION_PREFIX: &str = "oci-";

/// Fields of upstream that the client never sees: hop-by-hop fields (RFC 9110 §7.6.1), framing
/// (which the door writes), the challenge (its realm names ECR), cookies, offers for the connection
/// to upstream, and what the caches of other proxies say: `X-Cache` is about our own cache.
const NOT_FOR_CLIENT: [&str; 17] = [
    "Alt-Svc",
    "Connection",
    "Content-Length",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Connection",
    "Set-Cookie",
    "Strict-Transport-Security",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
    "WWW-Authenticate",
    "X-Cache",
    "X-Cache-Status",
    "X-Cache-Upstream",
    "X-Request-Id",
];

/// Upstream's fields that say which web pages may read a reply. They hold for upstream's address
/// alone (Fetch standard, CORS).
const CROSS_ORIGIN_PREFIX: &str = "access-control-";

/// The client's fields as upstream gets them. `Accept` lines are joined into one: docker sends
/// several, and a registry that reads the first alone would answer with the wrong media type.
pub(super) fn for_upstream(client: &Headers, route: &Route, method: &str) -> Headers {
    let mut headers = client.clone();
    headers.retain(|name, _| {
        begins_with(name, SPECIFICATION_PREFIX)
            || FOR_UPSTREAM
                .iter()
                .any(|field| field.eq_ignore_ascii_case(name))
    });
    if let Some(accept) = client.join_values("Accept") {
        headers.set("Accept", accept);
    }
    if headers.first("User-Agent").is_none_or(str::is_empty) {
        headers.set("User-Agent", USER_AGENT);
    }
    // Digest and length are made of the plain bytes.
    headers.set("Accept-Encoding", "identity");
    if matches!(method, "GET" | "HEAD") {
        remove_what_upstream_cannot_judge(&mut headers, route);
    }
    headers
}

/// The fields under which the cache itself asks: what the client accepts, and nothing that would
/// make the answer less than the whole.
pub(super) fn for_cache(client: &Headers) -> Headers {
    let mut headers = Headers::from_iter([("Accept-Encoding", "identity")]);
    if let Some(accept) = client.join_values("Accept") {
        headers.add("Accept", accept);
    }
    let agent = client.first("User-Agent").filter(|agent| !agent.is_empty());
    headers.add("User-Agent", agent.unwrap_or(USER_AGENT));
    headers
}

/// Removes the conditions that name content by our `ETag`, its digest: registries and blob hosts
/// have tags of their own. A malformed range, or several, is removed too: each host answers it in
/// another way (S3 with the whole, others with 400, 416 or 501).
fn remove_what_upstream_cannot_judge(headers: &mut Headers, route: &Route) {
    let wanted = match route {
        Route::Blob(_, digest) => conditional::requested_range(headers, &format!("\"{digest}\"")),
        // The digest can be checked on the whole alone.
        Route::Manifest(..) => RangeSpec::Whole,
        _ => return,
    };
    headers.remove("If-None-Match");
    headers.remove("If-Range");
    if matches!(wanted, RangeSpec::Inverted | RangeSpec::Whole) {
        headers.remove("Range");
    }
}

/// Upstream's fields as the client gets them.
pub(super) fn for_client(upstream: Headers, own: &ClientAddress) -> Headers {
    let options = upstream.connection_options();
    upstream
        .iter()
        .filter(|(name, _)| {
            !NOT_FOR_CLIENT
                .iter()
                .any(|field| field.eq_ignore_ascii_case(name))
                && !begins_with(name, CROSS_ORIGIN_PREFIX)
                && !options
                    .iter()
                    .any(|option| option.eq_ignore_ascii_case(name))
        })
        .map(|(name, value)| {
            let value = if name.eq_ignore_ascii_case("Location") {
                rewrite_url(value, own)
            } else if name.eq_ignore_ascii_case("Link") {
                rewrite_link(value, own)
            } else {
                value.to_owned()
            };
            (name.to_owned(), value)
        })
        .collect()
}

fn begins_with(name: &str, prefix: &str) -> bool {
    let start = name.get(..prefix.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// True for the fields of a blob host's reply that hold for the blob itself.
pub(super) fn describes_blob(name: &str) -> bool {
    const KEPT: [&str; 6] = [
        "Accept-Ranges",
        "Content-Range",
        "Content-Type",
        "Date",
        "Last-Modified",
        "Docker-Distribution-Api-Version",
    ];
    KEPT.iter().any(|field| field.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> ClientAddress {
        ClientAddress {
            origin: "http://proxy:8080".into(),
            ..ClientAddress::default()
        }
    }

    #[test]
    fn upstream_sees_no_field_but_those_that_are_listed() {
        let client = Headers::from_iter([
            ("Host", "proxy"),
            ("Authorization", "Basic x"),
            ("Cookie", "x"),
            ("x-forwarded-for", "10.0.0.1"),
            ("Accept", "a"),
            ("Accept", "b"),
            ("Accept-Encoding", "gzip"),
            ("X-Meta-Custom", "gone"),
            ("X-Original-URL", "/v2/secret/tags/list"),
            ("X-Rewrite-URL", "/v2/secret/tags/list"),
            ("X-HTTP-Method-Override", "DELETE"),
            ("X-Amz-Security-Token", "gone"),
            ("oci-subject", "kept"),
            ("Content-Digest", "kept"),
            ("é", "an odd name is no panic"),
        ]);
        let sent = for_upstream(&client, &Route::Catalog, "GET");
        assert_eq!(sent.join_values("Accept").as_deref(), Some("a, b"));
        assert_eq!(sent.all("Accept").count(), 1);
        assert_eq!(
            sent.join_values("Accept-Encoding").as_deref(),
            Some("identity")
        );
        assert_eq!(sent.first("OCI-Subject"), Some("kept"));
        assert_eq!(sent.first("Content-Digest"), Some("kept"));
        assert!(
            sent.first("User-Agent")
                .unwrap()
                .starts_with("aws-ecr-proxy/")
        );
        let names = sent.iter().map(|(name, _)| name.to_ascii_lowercase());
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        let expected = [
            "accept",
            "accept-encoding",
            "content-digest",
            "oci-subject",
            "user-agent",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_condition_on_the_blobs_tag_is_ours_to_judge() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let route = Route::Blob("a".parse().unwrap(), digest.parse().unwrap());
        let ranged = |tag: String| {
            let fields = [("Range", "bytes=1-".to_owned()), ("If-Range", tag)];
            for_upstream(&fields.into_iter().collect(), &route, "GET")
        };
        let same = ranged(format!("\"{digest}\""));
        assert_eq!(
            (same.first("Range"), same.first("If-Range")),
            (Some("bytes=1-"), None)
        );
        let other = ranged("\"other\"".into());
        assert_eq!(
            (other.first("Range"), other.first("If-Range")),
            (None, None)
        );
    }

    #[test]
    fn bug_a_range_that_is_none_was_left_to_the_blob_host() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let repository = || "a".parse().unwrap();
        let blob = Route::Blob(repository(), digest.parse().unwrap());
        let fields = |range| Headers::from_iter([("Range", range), ("If-None-Match", "\"x\"")]);
        let sent = |range, route: &Route| for_upstream(&fields(range), route, "GET");
        for range in ["bytes=0-1,5-6", "bytes=5-2", "lines=0-1", "bytes=x-"] {
            assert_eq!(sent(range, &blob).first("Range"), None, "{range}");
        }
        for range in ["bytes=5-", "bytes=-5", "bytes=0-0"] {
            assert_eq!(sent(range, &blob).first("Range"), Some(range));
            assert_eq!(sent(range, &blob).first("If-None-Match"), None);
        }
        let manifest = Route::Manifest(repository(), "1.0".parse().unwrap());
        assert_eq!(sent("bytes=0-5", &manifest).first("Range"), None);
        // A condition on a write is for the registry to judge.
        let put = for_upstream(&fields("bytes=0-5"), &manifest, "PUT");
        assert_eq!(put.first("If-None-Match"), Some("\"x\""));
    }

    #[test]
    fn the_client_sees_no_challenge_and_no_hop_by_hop_field() {
        let upstream = Headers::from_iter([
            ("WWW-Authenticate", "Basic realm=\"https://ecr\""),
            ("Connection", "close, X-Hop"),
            ("X-Hop", "1"),
            ("access-control-Allow-Origin", "*"),
            ("Content-Length", "5"),
            ("Location", "https://r/v2/x"),
            ("Docker-Content-Digest", "sha256:1"),
        ]);
        let seen = for_client(upstream, &own());
        let names: Vec<&str> = seen.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["Location", "Docker-Content-Digest"]);
        assert_eq!(seen.first("Location"), Some("http://proxy:8080/v2/x"));
    }
}
