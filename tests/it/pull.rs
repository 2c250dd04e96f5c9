//! Pulls: manifests and blobs through the proxy, byte for byte, and what either side gets to see.

use std::io::Read;
use std::net::TcpListener;

use standin::image::{INDEX, MANIFEST};
use standin::{Fault, Layer, Match, Options, Quirks, Server};

use crate::support::{Front, Http, Proxy, Response, SOON, error_of, target_of, wait_until};

/// Fields that no side may pass on (RFC 9110 §7.6.1).
const HOP_BY_HOP: [(&str, &str); 6] = [
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Authenticate", "Basic realm=x"),
    ("Proxy-Connection", "keep-alive"),
    ("TE", "trailers"),
    ("Trailer", "X-Sum"),
    ("Upgrade", "h2c"),
];

fn digest_field(response: &Response) -> &str {
    response.header("Docker-Content-Digest").unwrap_or("none")
}

/// The text of a reply's head, as far as it can tell something.
fn head_text(response: &Response) -> String {
    format!("{:?}", response.headers)
}

#[test]
fn a_manifest_comes_by_tag_and_by_digest() {
    let front = Front::start();
    let layer = Layer::of_files(&[("hello", b"hi")]);
    let image = front.standin.put_image("team/app", "1.0", &[layer]);
    for reference in ["1.0", &image.manifest] {
        let target = format!("/v2/team/app/manifests/{reference}");
        let got = front.get(&target);
        assert_eq!((got.status, got.complete), (200, true), "{}", got.text());
        assert_eq!(got.body, image.bytes);
        let head = front.head(&target);
        assert_eq!((head.status, head.length), (200, 0));
        for reply in [&got, &head] {
            assert_eq!(digest_field(reply), image.manifest, "{reference}");
            assert_eq!(reply.header("Content-Type"), Some(MANIFEST));
            let length = image.bytes.len().to_string();
            assert_eq!(reply.header("Content-Length"), Some(length.as_str()));
            let api = reply.header("Docker-Distribution-Api-Version");
            assert_eq!(api, Some("registry/2.0"));
            assert_eq!(reply.all("Docker-Content-Digest").count(), 1);
        }
    }
}

#[test]
fn an_index_comes_with_the_images_it_names() {
    let front = Front::start();
    let (index, images) = front.standin.put_index("team/app", "2.0");
    let got = front.get("/v2/team/app/manifests/2.0");
    assert_eq!(
        (got.digest.as_str(), digest_field(&got)),
        (&*index, &*index)
    );
    assert_eq!(got.header("Content-Type"), Some(INDEX));
    for image in images {
        let target = format!("/v2/team/app/manifests/{}", image.manifest);
        assert_eq!(front.get(&target).body, image.bytes);
    }
}

#[test]
fn what_is_not_there_is_upstreams_own_404() {
    let front = Front::start();
    front.standin.put_image("team/app", "1.0", &[]);
    let absent = format!("sha256:{}", "a".repeat(64));
    for (target, code) in [
        ("/v2/team/app/manifests/9".to_owned(), "MANIFEST_UNKNOWN"),
        ("/v2/team/other/manifests/1.0".to_owned(), "NAME_UNKNOWN"),
        (
            format!("/v2/team/app/manifests/{absent}"),
            "MANIFEST_UNKNOWN",
        ),
        (format!("/v2/team/app/blobs/{absent}"), "BLOB_UNKNOWN"),
    ] {
        let got = front.get(&target);
        assert_eq!((got.status, error_of(&got).0), (404, code.to_owned()));
        assert_eq!(front.head(&target).status, 404);
    }
}

#[test]
fn a_manifest_that_is_another_one_is_no_manifest() {
    let front = Front::start();
    let image = front.standin.put_image("team/app", "1.0", &[]);
    front.standin.fault(Match::registry(), Fault::WrongBytes);
    let got = front.get(&format!("/v2/team/app/manifests/{}", image.manifest));
    assert_eq!(got.status, 502, "{}", got.text());
    assert!(error_of(&got).1.contains("digest"), "{}", got.text());
}

#[test]
fn a_blob_comes_from_the_blob_host_and_no_credential_goes_there() {
    let front = Front::start();
    let blob = front.standin.add_blob("team/app", b"abcdefghij");
    let target = format!("/v2/team/app/blobs/{blob}");
    let client = [
        ("Authorization", "Basic Y2xpZW50OnNlY3JldA=="),
        ("Cookie", "session=client"),
        ("X-Forwarded-For", "10.1.2.3"),
        ("X-Real-IP", "10.1.2.3"),
        ("Forwarded", "for=10.1.2.3"),
    ];
    let got = front.call("GET", &target, &client, b"");
    assert_eq!((got.status, got.body.as_slice()), (200, &b"abcdefghij"[..]));
    assert_eq!(digest_field(&got), blob);
    assert_eq!(got.header("ETag"), Some(format!("\"{blob}\"").as_str()));
    assert_eq!(got.header("Content-Type"), Some("application/octet-stream"));
    assert_eq!(got.header("Content-Length"), Some("10"));
    for gone in ["Location", "x-amz-request-id", "Server", "Connection"] {
        assert_eq!(got.header(gone), None, "{gone}");
    }
    let (registry, s3) = (front.seen(Server::Registry), front.seen(Server::S3));
    let (asked, fetched) = (registry.last().unwrap(), s3.last().unwrap());
    assert_eq!((registry.len(), s3.len()), (1, 1));
    assert_eq!(asked.target, target);
    let basic = asked.header("Authorization").unwrap();
    assert!(
        front
            .standin
            .secrets()
            .contains(&basic["Basic ".len()..].to_owned())
    );
    assert_eq!(fetched.header("Authorization"), None);
    for (name, value) in client {
        for seen in [asked, fetched] {
            let passed = seen.header(name).is_some_and(|seen| seen.contains(value));
            assert!(!passed, "{name} reached {:?}", seen.server);
        }
    }
    for seen in [asked, fetched] {
        assert_eq!(seen.header("Accept-Encoding"), Some("identity"));
    }
}

#[test]
fn a_blob_that_the_registry_serves_itself_is_the_same() {
    let front = Front::with(
        Options {
            quirks: Quirks::none(),
            ..Options::default()
        },
        &[],
    );
    let blob = front.standin.add_blob("team/app", b"abcdefghij");
    let got = front.get(&format!("/v2/team/app/blobs/{blob}"));
    assert_eq!((got.status, got.digest.as_str()), (200, blob.as_str()));
    assert_eq!(digest_field(&got), blob);
    assert!(front.seen(Server::S3).is_empty());
}

#[test]
fn ranges_are_passed_and_conditions_are_held_to_the_digest() {
    let front = Front::start();
    let blob = front.standin.add_blob("team/app", b"abcdefghij");
    let target = format!("/v2/team/app/blobs/{blob}");
    let ask = |fields: &[(&str, &str)]| {
        let got = front.call("GET", &target, fields, b"");
        let range = got.header("Content-Range").map(str::to_owned);
        (got.status, got.text(), range)
    };
    let part = (206, "cde".to_owned(), Some("bytes 2-4/10".to_owned()));
    let whole = (200, "abcdefghij".to_owned(), None);
    let range = ("Range", "bytes=2-4");
    let own = format!("\"{blob}\"");
    assert_eq!(ask(&[range]), part);
    assert_eq!(ask(&[range, ("If-Range", &own)]), part);
    assert_eq!(ask(&[range, ("If-Range", "\"another\"")]), whole);
    let suffix = (206, "ij".to_owned(), Some("bytes 8-9/10".to_owned()));
    assert_eq!(ask(&[("Range", "bytes=-2")]), suffix);
    let (status, _, range) = ask(&[("Range", "bytes=10-")]);
    assert_eq!((status, range.as_deref()), (416, Some("bytes */10")));
}

#[test]
fn a_head_of_a_blob_is_answered_though_its_url_is_signed_for_get() {
    let front = Front::start();
    let blob = front.standin.add_blob("team/app", b"abcdefghij");
    let target = format!("/v2/team/app/blobs/{blob}");
    let check = |head: &Response| {
        assert_eq!((head.status, head.length), (200, 0));
        assert_eq!(head.header("Content-Length"), Some("10"));
        assert_eq!(digest_field(head), blob);
    };
    check(&front.head(&target));
    // ECR redirects a HEAD, too, to a URL that refuses it.
    let basic = format!("Basic {}", front.standin.token());
    let registry = front.standin.registry_url()["http://".len()..]
        .parse()
        .unwrap();
    let fields = [("Authorization", basic.as_str())];
    let redirect = Http::once(registry, "GET", &target, &fields, b"");
    let url = redirect.header("Location").unwrap().to_owned();
    let pick = Match::registry().method("HEAD");
    front.standin.fault(pick, Fault::RedirectTo(url.clone()));
    check(&front.head(&target));
    let methods: Vec<_> = front
        .seen(Server::S3)
        .into_iter()
        .map(|s| s.method)
        .collect();
    assert_eq!(methods, ["HEAD", "GET"]);
    assert_eq!(front.seen(Server::S3)[0].target, target_of(&url));
}

#[test]
fn several_accept_lines_become_one() {
    let front = Front::start();
    let (index, _) = front.standin.put_index("team/app", "2.0");
    let accept = [
        ("Accept", MANIFEST),
        ("Accept", INDEX),
        ("Accept-Encoding", "gzip, zstd"),
        ("User-Agent", "docker/27.0"),
    ];
    let got = front.call("GET", "/v2/team/app/manifests/2.0", &accept, b"");
    assert_eq!((got.status, digest_field(&got)), (200, index.as_str()));
    let seen = front.seen(Server::Registry).pop().unwrap();
    let joined = format!("{MANIFEST}, {INDEX}");
    assert_eq!(seen.header("Accept"), Some(joined.as_str()));
    let lines = |name: &str| {
        let names = seen.headers.iter().map(|(name, _)| name);
        names.filter(|n| n.eq_ignore_ascii_case(name)).count()
    };
    assert_eq!((lines("Accept"), lines("Accept-Encoding")), (1, 1));
    assert_eq!(seen.header("Accept-Encoding"), Some("identity"));
    assert_eq!(seen.header("User-Agent"), Some("docker/27.0"));
    // One that accepts the wrong type alone gets upstream's refusal.
    let got = front.call("GET", "/v2/team/app/manifests/2.0", &accept[..1], b"");
    assert_eq!(got.status, 404);
}

#[test]
fn hop_by_hop_fields_go_no_further_in_either_direction() {
    let front = Front::start();
    front.standin.put_image("team/app", "1.0", &[]);
    let mut fields = HOP_BY_HOP.to_vec();
    let more = [
        ("Connection", "X-Hop"),
        ("X-Hop", "1"),
        ("X-Kept", "client"),
        ("OCI-Kept", "client"),
    ];
    fields.extend(more);
    let more = [("Set-Cookie", "a=b"), ("Alt-Svc", "h3=\":443\"")];
    let owned = |fields: &[(&str, &str)]| -> Vec<(String, String)> {
        let owned = fields
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        owned.collect()
    };
    let upstream = [owned(&fields), owned(&more)].concat();
    let pick = Match::registry().path("/manifests/");
    front.standin.fault(
        pick,
        Fault::Status(200, upstream, br#"{"schemaVersion":2}"#.to_vec()),
    );
    let got = front.call("GET", "/v2/team/app/manifests/1.0", &fields, b"");
    assert_eq!(
        (got.status, got.text().as_str()),
        (200, r#"{"schemaVersion":2}"#)
    );
    let seen = front.seen(Server::Registry).pop().unwrap();
    // Upstream gets only fields that are known to be for it.
    assert_eq!(seen.header("X-Kept"), None);
    assert_eq!(got.header("X-Kept"), Some("client"));
    for side in [seen.header("OCI-Kept"), got.header("OCI-Kept")] {
        assert_eq!(side, Some("client"));
    }
    for (name, _) in HOP_BY_HOP.iter().chain(&more).chain(&[("X-Hop", "")]) {
        assert_eq!(seen.header(name), None, "upstream saw {name}");
        assert_eq!(got.header(name), None, "the client saw {name}");
    }
}

#[test]
fn the_namespace_of_containerd_stays_here() {
    let front = Front::start();
    let blob = front.standin.add_blob("team/app", b"x");
    front.standin.put_image("team/app", "1.0", &[]);
    let ns = "ns=123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let manifest = "/v2/team/app/manifests/1.0";
    assert_eq!(front.get(&format!("{manifest}?{ns}")).status, 200);
    assert_eq!(
        front.get(&format!("/v2/team/app/blobs/{blob}?{ns}")).status,
        200
    );
    let list = "/v2/team/app/tags/list?n=5";
    assert_eq!(front.get(&format!("{list}&{ns}")).status, 200);
    let targets: Vec<_> = front
        .seen(Server::Registry)
        .into_iter()
        .map(|s| s.target)
        .collect();
    let blob = format!("/v2/team/app/blobs/{blob}");
    assert_eq!(targets, [manifest, blob.as_str(), list]);
}

#[test]
fn referrers_are_passed_with_their_filter() {
    let front = Front::start();
    let image = front.standin.put_image("team/app", "1.0", &[]);
    let target = format!("/v2/team/app/referrers/{}", image.manifest);
    let got = front.get(&format!("{target}?artifactType=a%2Fb"));
    assert_eq!((got.status, got.header("Content-Type")), (200, Some(INDEX)));
    assert_eq!(got.header("OCI-Filters-Applied"), Some("artifactType"));
    assert!(
        front.seen(Server::Registry)[0]
            .target
            .ends_with("?artifactType=a%2Fb")
    );
}

#[test]
fn a_redirect_to_a_foreign_host_is_not_followed() {
    let front = Front::start();
    let blob = front.standin.add_blob("team/app", b"abcdefghij");
    let target = format!("/v2/team/app/blobs/{blob}");
    let foreign = TcpListener::bind("127.0.0.9:0").unwrap();
    foreign.set_nonblocking(true).unwrap();
    let url = format!(
        "http://{}/x?X-Amz-Signature=hidden",
        foreign.local_addr().unwrap()
    );
    for method in ["GET", "HEAD"] {
        let pick = Match::registry().path("/blobs/");
        front.standin.fault(pick, Fault::RedirectTo(url.clone()));
        let got = front.call(method, &target, &[], b"");
        assert_eq!(got.status, 502);
        if method == "GET" {
            let (code, message) = error_of(&got);
            assert_eq!(code, "UNAVAILABLE");
            assert!(message.contains("BLOB_HOSTS"), "{message}");
            assert!(message.contains("127.0.0.9"), "{message}");
        }
        assert!(!format!("{}{}", head_text(&got), got.text()).contains("hidden"));
    }
    let dialled = foreign.accept();
    assert!(dialled.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock));
    assert_eq!(front.get(&target).digest, blob);
}

#[test]
fn a_redirect_that_leads_nowhere_is_given_up() {
    let front = Front::start();
    let blob = front.standin.add_blob("team/app", b"abcdefghij");
    let target = format!("/v2/team/app/blobs/{blob}");
    let with = |fault: Fault| {
        front.standin.clear_faults();
        front.standin.fault(Match::registry().always(), fault);
        let got = front.get(&target);
        (got.status, error_of(&got).1)
    };
    let (status, message) = with(Fault::RedirectLoop);
    assert!(status == 502 && message.contains("redirects"), "{message}");
    assert!(front.seen(Server::Registry).len() <= 8);
    for bad in [
        "ftp://localhost/x",
        "relative",
        "http://u:p@localhost/",
        "//",
    ] {
        let (status, message) = with(Fault::RedirectTo(bad.to_owned()));
        assert!(
            status == 502 && message.contains("redirect"),
            "{bad}: {message}"
        );
    }
    front.standin.clear_faults();
    assert_eq!(front.get(&target).status, 200);
}

#[test]
fn a_presigned_url_that_expired_is_asked_for_again_once() {
    let front = Front::start();
    let blob = front.standin.add_blob("team/app", b"abcdefghij");
    let target = format!("/v2/team/app/blobs/{blob}");
    let pick = || Match::registry().path("/blobs/");
    front.standin.fault(pick(), Fault::PresignExpired);
    assert_eq!(front.get(&target).digest, blob);
    assert_eq!(front.seen(Server::Registry).len(), 2);
    front.standin.fault(pick().times(2), Fault::PresignExpired);
    let got = front.get(&target);
    assert_eq!(got.status, 502);
    let (_, message) = error_of(&got);
    assert!(message.contains("403"), "{message}");
    assert!(!message.contains("X-Amz"), "{message}");
    assert_eq!(front.seen(Server::Registry).len(), 4);
    assert_eq!(front.token_calls(), 1);
}

#[test]
fn a_large_blob_takes_constant_memory() {
    const SIZE: u64 = 300 << 20;
    let front = Front::start();
    let blob = front.standin.add_blob_of("team/app", SIZE, 1);
    let got = front.get(&format!("/v2/team/app/blobs/{blob}"));
    assert_eq!((got.status, got.complete, got.length), (200, true, SIZE));
    assert_eq!(got.digest, blob);
    let peak = front.proxy.peak_rss_kib();
    assert!(peak < 64 << 10, "{peak} KiB resident at the most");
}

#[test]
fn connections_to_upstream_are_used_again() {
    let front = Front::start();
    let blob = front.standin.add_blob("team/app", b"abcdefghij");
    front.standin.put_image("team/app", "1.0", &[]);
    for _ in 0..25 {
        assert_eq!(front.get("/v2/team/app/manifests/1.0").status, 200);
        assert_eq!(front.get(&format!("/v2/team/app/blobs/{blob}")).status, 200);
    }
    for server in [Server::Registry, Server::S3] {
        let seen = front.seen(server);
        let used: std::collections::HashSet<u64> = seen.iter().map(|s| s.connection).collect();
        assert!(used.len() <= 2, "{} connections to {server:?}", used.len());
        assert!(front.standin.connections(server) <= 2);
    }
}

#[test]
fn many_blobs_at_a_time_take_constant_memory() {
    let front = Front::start();
    let blob = front.standin.add_blob_of("team/app", 20 << 20, 9);
    let target = format!("/v2/team/app/blobs/{blob}");
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| assert_eq!(front.get(&target).digest, blob));
        }
    });
    let peak = front.proxy.peak_rss_kib();
    assert!(peak < 64 << 10, "{peak} KiB resident at the most");
}

#[test]
fn a_client_that_hangs_up_ends_the_download() {
    let front = Front::start();
    let blob = front.standin.add_blob_of("team/app", 100 << 20, 10);
    let mut http = front.http();
    let target = format!("/v2/team/app/blobs/{blob}");
    http.send_head("GET", &target, &[]).unwrap();
    let mut start = [0; 4096];
    (&mut http.stream()).read_exact(&mut start).unwrap();
    assert!(start.starts_with(b"HTTP/1.1 200 "));
    drop(http);
    wait_until("the blob host's connection is closed", SOON, || {
        front.standin.connections(Server::S3) == 0
    });
    wait_until("its thread is gone", SOON, || {
        let names = front.proxy.thread_names();
        !names.iter().any(|name| name.starts_with("conn-"))
    });
    front.proxy.wait_for_log(" aborted=\"client: ");
    assert_eq!(front.get("/healthz").status, 200);
}

#[test]
fn a_proxy_behind_a_proxy_serves_the_same() {
    let site = Front::start();
    let image = site.standin.put_image("team/app", "1.0", &[]);
    let blob = site.standin.add_blob("team/app", b"abcdefghij");
    site.standin.add_repositories(150);
    let url = format!("http://{}", site.address());
    let node = [("ECR", url.as_str()), ("UPSTREAM_AUTH", "none")];
    let node = Proxy::start(&node);
    let get = |target: &str| Http::get_once(node.address(), target);
    let manifest = get("/v2/team/app/manifests/1.0");
    assert_eq!((manifest.status, &manifest.body), (200, &image.bytes));
    assert_eq!(digest_field(&manifest), image.manifest);
    assert_eq!(get(&format!("/v2/team/app/blobs/{blob}")).digest, blob);
    let own = format!("<http://{}/v2/_catalog?n=100&last=", node.address());
    let page = get("/v2/_catalog?n=100");
    assert!(
        page.header("Link")
            .is_some_and(|link| link.starts_with(&own))
    );
    let begun = Http::once(node.address(), "POST", "/v2/new/blobs/uploads/", &[], b"");
    let location = begun.header("Location").unwrap();
    let own = format!("http://{}/v2/new/blobs/uploads/", node.address());
    assert!(location.starts_with(&own), "{location}");
    let target = target_of(location);
    let patch = Http::once(node.address(), "PATCH", target, &[], b"abc");
    assert_eq!(patch.status, 202);
    assert_eq!(get("/v2/team/app/manifests/9").status, 404);
}
