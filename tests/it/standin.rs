//! The stand-in itself, since all other tests trust it.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use standin::{Fault, Layer, Match, Options, Quirks, Server, Standin, Then, digest};

use crate::support::{Http, Response, raw, wait_until};

const GET_TOKEN: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
const SOON: Duration = Duration::from_secs(30);

fn address(url: &str) -> SocketAddr {
    let port = url.trim_end_matches('/').rsplit(':').next().unwrap();
    SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()))
}

/// A stand-in with a blob of `abc…` in `a/b`, the blob's path, and a good `Authorization`.
struct Fixture {
    standin: Standin,
    address: SocketAddr,
    blob: String,
    basic: String,
}

impl Fixture {
    fn new(options: Options) -> Self {
        let standin = Standin::start(options);
        let digest = standin.add_blob("a/b", b"abcdefghij");
        Self {
            address: address(&standin.registry_url()),
            blob: format!("/v2/a/b/blobs/{digest}"),
            basic: format!("Basic {}", standin.token()),
            standin,
        }
    }

    /// Without redirects, so that blobs come from the registry.
    fn direct() -> Self {
        let quirks = Quirks {
            blob_redirects: false,
            ..Quirks::ecr()
        };
        Self::new(Options {
            quirks,
            ..Options::default()
        })
    }

    fn call(&self, method: &str, target: &str, body: &[u8]) -> Response {
        let headers = [("Authorization", self.basic.as_str())];
        Http::once(self.address, method, target, &headers, body)
    }

    fn get(&self, target: &str) -> Response {
        self.call("GET", target, b"")
    }

    /// A target within an absolute URL.
    fn path(url: &str) -> String {
        let at = url.match_indices('/').nth(2).map_or(0, |(at, _)| at);
        url[at..].to_owned()
    }
}

/// Signs and sends an API call as the AWS SDK for Rust does.
fn api(standin: &Standin, secret: &str, service: &str, at: SystemTime) -> Response {
    let (content_type, body) = match service {
        "ecr" => ("application/x-amz-json-1.1", "{}"),
        _ => (
            "application/x-www-form-urlencoded; charset=utf-8",
            "Action=GetCallerIdentity&Version=2011-06-15",
        ),
    };
    let url = format!("{}/", standin.api_url());
    let host = url
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    let mut headers = vec![("host", host.as_str()), ("content-type", content_type)];
    if service == "ecr" {
        headers.push(("x-amz-target", GET_TOKEN));
    }
    let identity = Credentials::new("AKIDSTANDIN", secret, None, None, "test").into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region("eu-west-1")
        .name(service)
        .time(at)
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let signable = SignableBody::Bytes(body.as_bytes());
    let request = SignableRequest::new("POST", &url, headers.iter().copied(), signable).unwrap();
    let (instructions, _) = sign(request, &params).unwrap().into_parts();
    headers.extend(instructions.headers());
    Http::once(address(&url), "POST", "/", &headers, body.as_bytes())
}

#[test]
fn the_apis_take_a_right_signature_and_no_other() {
    let standin = Standin::start(Options {
        token_bytes: 5000,
        token_newline: true,
        ..Options::default()
    });
    let secret = Options::default().secret_access_key;
    let now = SystemTime::now();
    let reply = api(&standin, &secret, "ecr", now);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let document: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    let data = &document["authorizationData"][0];
    let token = data["authorizationToken"].as_str().unwrap();
    assert!(token.len() >= 5000 && token.ends_with('\n'));
    assert!(data["expiresAt"].is_f64());
    assert_eq!(data["proxyEndpoint"], standin.registry_url());
    let basic = format!("Basic {}", token.trim());
    let headers = [("Authorization", basic.as_str())];
    let registry = address(&standin.registry_url());
    assert_eq!(
        Http::once(registry, "GET", "/v2/", &headers, b"").status,
        200
    );
    assert!(standin.secrets().contains(&token.trim().to_owned()));

    let reply = api(&standin, "another", "ecr", now);
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("InvalidSignatureException"));
    let reply = api(&standin, &secret, "ecr", now - Duration::from_secs(86_400));
    assert!(
        reply.text().contains("Signature expired"),
        "{}",
        reply.text()
    );

    let reply = api(&standin, &secret, "sts", now);
    assert!(reply.text().contains("<Account>123456789012</Account>"));
    assert_eq!(api(&standin, "another", "sts", now).status, 403);
}

#[test]
fn a_skewed_clock_shows_in_date_and_refuses_our_time() {
    let standin = Standin::start(Options {
        clock_skew: 86_400,
        ..Options::default()
    });
    let secret = Options::default().secret_access_key;
    let reply = api(&standin, &secret, "ecr", SystemTime::now());
    assert_eq!(reply.status, 400);
    let date = reply.header("date").unwrap();
    let theirs = httpdate::parse_http_date(date).unwrap();
    assert_eq!(api(&standin, &secret, "ecr", theirs).status, 200);
}

#[test]
fn the_registry_demands_a_token_that_is_known_and_fresh() {
    let fixture = Fixture::new(Options::default());
    let refused = Http::get_once(fixture.address, "/v2/");
    assert_eq!(refused.status, 401);
    assert!(
        refused
            .header("www-authenticate")
            .unwrap()
            .contains("dkr.ecr")
    );
    assert_eq!(fixture.get("/v2/").status, 200);
    fixture.standin.expire_tokens();
    let expired = fixture.get("/v2/");
    assert_eq!(
        (expired.status, expired.header("www-authenticate")),
        (403, None)
    );
    assert!(
        expired
            .text()
            .contains("Your authorization token has expired")
    );
    fixture.standin.forget_tokens();
    assert_eq!(fixture.get("/v2/").status, 401);
}

#[test]
fn blobs_come_by_a_presigned_url_that_suffers_no_second_credential() {
    let fixture = Fixture::new(Options::default());
    let redirect = fixture.get(&fixture.blob);
    assert_eq!(redirect.status, 307);
    let location = redirect.header("location").unwrap();
    assert!(
        location.starts_with(&fixture.standin.s3_url()),
        "{location}"
    );
    let target = Fixture::path(location);
    let host = fixture.standin.blob_host();
    let s3 = |method: &str, target: &str, more: &[(&str, &str)]| {
        let headers = [&[("Host", host.as_str())], more].concat();
        Http::once(
            address(&fixture.standin.s3_url()),
            method,
            target,
            &headers,
            b"",
        )
    };
    assert_eq!(s3("GET", &target, &[]).body, b"abcdefghij");
    let part = s3("GET", &target, &[("Range", "bytes=8-")]);
    assert_eq!((part.status, part.text().as_str()), (206, "ij"));
    let refused = s3("GET", &target, &[("Authorization", &fixture.basic)]);
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("Only one auth mechanism"));
    assert_eq!(s3("HEAD", &target, &[]).status, 403);
    assert_eq!(s3("GET", &target.replace("%2B", "+"), &[]).status, 403);
    let pick = Match::registry().path("/blobs/");
    fixture.standin.fault(pick, Fault::PresignExpired);
    let stale = fixture.get(&fixture.blob);
    let reply = s3(
        "GET",
        &Fixture::path(stale.header("location").unwrap()),
        &[],
    );
    assert_eq!(
        (reply.status, reply.text().contains("expired")),
        (403, true)
    );
}

#[test]
fn a_large_blob_takes_no_memory_and_keeps_its_digest() {
    let fixture = Fixture::direct();
    let digest = fixture.standin.add_blob_of("a/b", 40_000_000, 1);
    let reply = fixture.get(&format!("/v2/a/b/blobs/{digest}"));
    assert_eq!((reply.complete, reply.length), (true, 40_000_000));
    assert_eq!(reply.digest, digest);
}

#[test]
fn manifests_are_found_by_tag_digest_and_accepted_type() {
    let fixture = Fixture::new(Options::default());
    let (index, images) = fixture.standin.put_index("a/b", "1.0");
    let got = fixture.get("/v2/a/b/manifests/1.0");
    assert_eq!((got.status, digest(&got.body)), (200, index.clone()));
    assert_eq!(got.header("docker-content-digest"), None);
    let head = fixture.call("HEAD", "/v2/a/b/manifests/1.0", b"");
    assert_eq!(head.header("docker-content-digest"), Some(index.as_str()));
    let child = fixture.get(&format!("/v2/a/b/manifests/{}", images[1].manifest));
    assert_eq!(child.body, images[1].bytes);
    let accept = |types: &[&str]| {
        let types = types.iter().map(|accepted| ("Accept", *accepted));
        let headers: Vec<_> = types.chain([("Authorization", &*fixture.basic)]).collect();
        Http::once(
            fixture.address,
            "GET",
            "/v2/a/b/manifests/1.0",
            &headers,
            b"",
        )
        .status
    };
    let other = standin::image::MANIFEST;
    assert_eq!(accept(&[other]), 404);
    assert_eq!(accept(&[other, standin::image::INDEX]), 200);
    assert_eq!(fixture.get("/v2/a/b/manifests/2.0").status, 404);
    assert!(
        fixture
            .get("/v2/x/manifests/1")
            .text()
            .contains("NAME_UNKNOWN")
    );
}

#[test]
fn listings_are_paged_by_opaque_absolute_links() {
    let public = "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let fixture = Fixture::new(Options {
        public_base: Some(public.into()),
        ..Options::default()
    });
    fixture.standin.add_repositories(2500);
    let (mut target, mut names) = ("/v2/_catalog?n=1000".to_owned(), 0);
    loop {
        let page = fixture.get(&target);
        assert!(
            page.header("content-type")
                .unwrap()
                .starts_with("text/plain")
        );
        let document: serde_json::Value = serde_json::from_slice(&page.body).unwrap();
        names += document["repositories"].as_array().unwrap().len();
        let Some(link) = page.header("link") else {
            break;
        };
        let url = link.strip_prefix('<').unwrap().split('>').next().unwrap();
        assert!(url.starts_with(public), "{url}");
        target = Fixture::path(url);
    }
    assert_eq!(names, 2501);
    let broken = target.replace('+', "%2B");
    assert_eq!(fixture.get(&broken).status, 405);
    let refused = fixture.get("/v2/_catalog?n=1001");
    assert_eq!(
        (refused.status, refused.text().contains("UNSUPPORTED")),
        (405, true)
    );
    fixture.standin.add_tags("t/t", 1000);
    let tags = fixture.get("/v2/t/t/tags/list");
    let document: serde_json::Value = serde_json::from_slice(&tags.body).unwrap();
    assert_eq!(document["tags"].as_array().unwrap().len(), 100);
}

/// Pushes `bytes` in two chunks and returns the last reply.
fn push(fixture: &Fixture, bytes: &[u8], status_of_patch: u16) -> Response {
    let mut reply = fixture.call("POST", "/v2/new/repo/blobs/uploads/", b"");
    assert_eq!(reply.status, 202);
    for part in bytes.chunks(bytes.len().div_ceil(2)) {
        let target = Fixture::path(reply.header("location").unwrap());
        reply = fixture.call("PATCH", &target, part);
        assert_eq!(reply.status, status_of_patch);
    }
    let target = Fixture::path(reply.header("location").unwrap());
    let separator = if target.contains('?') { '&' } else { '?' };
    let wanted = digest(bytes).replace(':', "%3A");
    fixture.call("PUT", &format!("{target}{separator}digest={wanted}"), b"")
}

#[test]
fn a_push_arrives_in_ecrs_way_and_in_the_specifications() {
    let strict = Options {
        quirks: Quirks {
            absolute_locations: true,
            ..Quirks::none()
        },
        ..Options::default()
    };
    for (options, status_of_patch) in [(Options::default(), 201), (strict, 202)] {
        let fixture = Fixture::new(options);
        let layer = Layer::of_files(&[("hello", b"hi")]);
        let bytes = layer.content.to_vec();
        let created = push(&fixture, &bytes, status_of_patch);
        assert_eq!(created.status, 201, "{}", created.text());
        let held = fixture.standin.blob("new/repo", &digest(&bytes)).unwrap();
        assert_eq!(held.to_vec(), bytes);
        let config = standin::image::config("amd64", std::slice::from_ref(&layer));
        let manifest = standin::image::manifest(&config, &[layer]);
        let target = "/v2/new/repo/manifests/1";
        assert_eq!(fixture.call("PUT", target, &manifest).status, 404);
        push(&fixture, &config, status_of_patch);
        assert_eq!(fixture.call("PUT", target, &manifest).status, 201);
        assert_eq!(fixture.standin.open_uploads(), 0);
        let mount = format!(
            "/v2/o/blobs/uploads/?mount={}&from=a%2Fb",
            digest(b"abcdefghij")
        );
        assert_eq!(fixture.call("POST", &mount, b"").status, 201);
        let wrong = format!("/v2/o/blobs/uploads/?digest={}", digest(b"x"));
        assert_eq!(fixture.call("POST", &wrong, b"y").status, 400);
    }
}

#[test]
fn faults_of_a_body_are_seen_by_the_client() {
    let fixture = Fixture::direct();
    let with = |fault: Fault| {
        fixture.standin.fault(Match::registry(), fault);
        let reply = fixture.get(&fixture.blob);
        assert_eq!(fixture.standin.pending_faults(), 0);
        (reply.status, reply.complete, reply.text())
    };
    let text = |text: &str| text.to_owned();
    assert_eq!(with(Fault::CutAfter(4)), (200, false, text("abcd")));
    assert!(!with(Fault::ResetAfter(4)).1);
    assert_eq!(with(Fault::WrongBytes), (200, true, text("abcdefghi?")));
    assert_eq!(
        with(Fault::WrongLength(3)),
        (200, false, text("abcdefghij"))
    );
    assert_eq!(with(Fault::WrongLength(-3)), (200, true, text("abcdefg")));
    let chunked = |cut_after| Fault::Chunked { cut_after };
    assert_eq!(with(chunked(None)), (200, true, text("abcdefghij")));
    assert_eq!(with(chunked(Some(10))), (200, false, text("abcdefghij")));
    let drip = Fault::Drip {
        bytes: 3,
        every: Duration::from_millis(1),
    };
    assert_eq!(with(drip), (200, true, text("abcdefghij")));
    assert_eq!(with(Fault::ExpiredToken403).0, 403);
    assert_eq!(with(Fault::PublicExpired400).0, 400);
    assert_eq!(with(Fault::RedirectLoop).0, 307);
    assert_eq!(
        with(Fault::registry_error(503, "UNAVAILABLE", "later")).0,
        503
    );
    let retry_after = Some(7);
    fixture
        .standin
        .fault(Match::registry(), Fault::TooMany429 { retry_after });
    assert_eq!(fixture.get("/v2/").header("retry-after"), Some("7"));
}

#[test]
fn faults_of_a_connection_are_seen_by_the_client() {
    let fixture = Fixture::direct();
    let fails = |fault: Fault| {
        fixture.standin.fault(Match::any().method("GET"), fault);
        let headers = [("Authorization", fixture.basic.as_str())];
        let mut http = Http::connect(fixture.address);
        http.try_request("GET", "/v2/", &headers, b"").is_err()
    };
    assert!(fails(Fault::CloseBeforeHead));
    assert!(fails(Fault::garbage_head()));
    assert!(!fails(Fault::CutAfter(100)));
    for then in [Then::Close, Then::Drain] {
        let fault = Fault::RefuseEarly { status: 413, then };
        fixture
            .standin
            .fault(Match::registry().method("POST"), fault);
        let mut http = Http::connect(fixture.address);
        let length = ("Content-Length", "1000000");
        http.send_head("POST", "/v2/a/blobs/uploads/", &[length])
            .unwrap();
        assert_eq!(http.receive("POST").unwrap().status, 413);
    }
}

#[test]
fn what_is_stalled_goes_on_when_released() {
    let fixture = Fixture::direct();
    fixture
        .standin
        .fault(Match::registry(), Fault::StallAfter(4));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| fixture.get(&fixture.blob));
        let answered = |seen: &[standin::Seen]| seen.last().is_some_and(|s| s.status.is_some());
        assert!(fixture.standin.wait_for(SOON, answered));
        wait_until("the reader has its reply", SOON, || {
            fixture.standin.release();
            reader.is_finished()
        });
        let reply = reader.join().unwrap();
        assert_eq!(
            (reply.complete, reply.text().as_str()),
            (true, "abcdefghij")
        );
    });
}

#[test]
fn a_server_is_throttled_goes_down_and_comes_up() {
    let fixture = Fixture::direct();
    let standin = &fixture.standin;
    standin.add_blob("a/b", &[7; 30_000]);
    standin.throttle(Server::Registry, Some(60_000));
    let start = Instant::now();
    let reply = fixture.get(&format!("/v2/a/b/blobs/{}", digest(&[7; 30_000])));
    assert!(reply.complete && start.elapsed() > Duration::from_millis(300));
    standin.throttle(Server::Registry, None);
    let mut http = Http::connect(fixture.address);
    assert_eq!(http.get("/v2/").status, 401);
    assert_eq!(http.get("/v2/").status, 401);
    let seen = standin.requests();
    assert_eq!(
        seen[seen.len() - 1].connection,
        seen[seen.len() - 2].connection
    );
    standin.down(Server::Registry);
    assert!(http.is_closed_within(SOON));
    assert!(TcpStream::connect(fixture.address).is_err());
    standin.up(Server::Registry);
    assert_eq!(fixture.get("/v2/").status, 200);
    assert_eq!(standin.count(Server::Registry, "GET", "/v2/a/b/blobs/"), 1);
}

#[test]
fn a_broken_client_ends_nothing() {
    let fixture = Fixture::direct();
    let endless = [&b"GET /"[..], &[b'a'; 300_000]].concat();
    for bytes in [
        &b"\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v2/%zz/manifests/%/%2 HTTP/1.1\r\nConnection: close\r\n\r\n",
        &endless,
    ] {
        raw(fixture.address, bytes);
    }
    let mut short = TcpStream::connect(fixture.address).unwrap();
    short
        .write_all(b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nContent-Length: 9\r\n\r\nab")
        .unwrap();
    drop(short);
    assert_eq!(fixture.get("/v2/").status, 200);
    let upload = |seen: &[standin::Seen]| seen.iter().any(|seen| seen.method == "POST");
    assert!(fixture.standin.wait_for(SOON, upload));
}

#[test]
fn dropping_it_frees_whoever_waits() {
    let fixture = Fixture::direct();
    fixture
        .standin
        .fault(Match::registry().always(), Fault::Silent);
    let mut http = Http::connect(fixture.address);
    http.send_head("GET", "/v2/", &[]).unwrap();
    assert!(fixture.standin.wait_for(SOON, |seen| !seen.is_empty()));
    let address = fixture.address;
    drop(fixture);
    assert!(http.is_closed_within(SOON));
    assert!(TcpStream::connect(address).is_err());
}
