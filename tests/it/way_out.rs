//! The way out: outbound proxies, trust, redirects passed on, connections used again.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_ecr_proxy::config::{Arguments, resolve};
use aws_ecr_proxy::message::Headers;
use aws_ecr_proxy::upstream::client::Client;
use aws_ecr_proxy::upstream::outbound::Proxies;
use aws_ecr_proxy::upstream::resolver::{Addresses, Resolver};
use aws_ecr_proxy::upstream::{Api, ApiCall};
use standin::image::MANIFEST as MANIFEST_TYPE;
use standin::{
    Dns, Fault, ForwardBehaviour, ForwardProxy, Layer, Match, Options, Quirks, Server, Standin,
    TlsFront, ca_bundle, digest,
};

use crate::support::{
    Front, Http, Proxy, Response, SOON, Scratch, error_of, in_parallel, wait_until,
};

const NAME: &str = "registry.test";
const MANIFEST: &str = "/v2/team/app/manifests/1.0";
/// Longest time to connect, by the proxy or not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// A registry behind TLS, known by a name that only the outbound proxy can look up.
struct Site {
    standin: Standin,
    tls: TlsFront,
    /// Knows nothing, and counts who asks all the same.
    dns: Dns,
}

impl Site {
    fn new() -> Self {
        // With a blob host that has no TLS the registry would not be followed.
        let options = Options {
            quirks: Quirks::none(),
            ..Options::default()
        };
        let standin = Standin::start(options);
        standin.put_image("team/app", "1.0", &[Layer::of_files(&[("a", b"b")])]);
        Self {
            tls: TlsFront::start(&standin.registry_url()),
            standin,
            dns: Dns::start(),
        }
    }

    fn registry(&self) -> String {
        format!("https://{NAME}:{}", self.tls.port())
    }

    fn proxy(&self, further: &[(&str, &str)]) -> Proxy {
        let (registry, resolver) = (self.registry(), self.dns.address());
        let bundle = ca_bundle();
        let mut settings = vec![
            ("ECR", registry.as_str()),
            ("RESOLVER", &resolver),
            ("AWS_CA_BUNDLE", bundle.to_str().unwrap()),
            ("ALLOW_PLAIN_TOKEN", "true"),
        ];
        settings.extend_from_slice(further);
        Proxy::in_front_of(&self.standin, &settings)
    }
}

fn get(proxy: &Proxy, target: &str) -> Response {
    Http::get_once(proxy.address(), target)
}

fn refusal(got: &Response) -> String {
    let (code, message) = error_of(got);
    assert_eq!(
        (got.status, code.as_str()),
        (504, "UNAVAILABLE"),
        "{message}"
    );
    message
}

#[test]
fn https_goes_through_a_tunnel_and_names_are_left_to_the_proxy() {
    let (site, outbound) = (Site::new(), ForwardProxy::start());
    let proxy = site.proxy(&[("HTTPS_PROXY", &outbound.url())]);
    let blob = site.standin.add_blob_of("team/app", 3 << 20, 1);
    for _ in 0..3 {
        assert_eq!(get(&proxy, MANIFEST).status, 200);
        let got = get(&proxy, &format!("/v2/team/app/blobs/{blob}"));
        assert_eq!((got.complete, &got.digest), (true, &blob));
    }
    // A tunnel is used again: two at the most for nine requests, as one may still be on its way
    // back when the next request comes.
    let target = format!("CONNECT {NAME}:{}", site.tls.port());
    let requests = outbound.requests();
    assert!((1..=2).contains(&requests.len()), "{requests:?}");
    assert!(requests.iter().all(|request| *request == target));
    assert_eq!(site.tls.connections(), requests.len());
    assert_eq!(site.dns.queries(), []);
}

#[test]
fn lower_case_and_no_scheme_do_too() {
    let (site, outbound) = (Site::new(), ForwardProxy::start());
    let bare = outbound.address().to_string();
    let proxy = site.proxy(&[("https_proxy", &bare), ("http_proxy", "gone.test:1")]);
    assert_eq!(get(&proxy, MANIFEST).status, 200);
    assert_eq!(outbound.requests().len(), 1);
}

#[test]
fn a_proxy_by_name_is_looked_up_and_may_speak_tls() {
    let site = Site::new();
    site.dns.set("proxy.test", 60, &["127.0.0.1"]);
    for tls in [false, true] {
        let outbound = ForwardProxy::with(None, tls);
        let url = outbound.url().replace("127.0.0.1", "proxy.test");
        let proxy = site.proxy(&[("HTTPS_PROXY", &url)]);
        let got = get(&proxy, MANIFEST);
        assert_eq!(got.status, 200, "{}", got.text());
        assert_eq!(outbound.requests().len(), 1);
    }
    assert_eq!(site.dns.count(NAME), 0);
    assert_eq!(site.dns.count("proxy.test"), 4);
    let outbound = ForwardProxy::with(None, true);
    let url = outbound.url().replace("127.0.0.1", "proxy.elsewhere");
    site.dns.set("proxy.elsewhere", 60, &["127.0.0.1"]);
    let got = get(&site.proxy(&[("HTTPS_PROXY", &url)]), MANIFEST);
    let (_, message) = error_of(&got);
    assert!(
        message.contains(&format!("TLS with the proxy {url}: ")),
        "{message}"
    );
    assert_eq!(got.status, 502);
}

#[test]
fn a_login_is_sent_decoded_and_never_shown() {
    let (site, login) = (Site::new(), "us er:p@ss/w%rd:?");
    let outbound = ForwardProxy::with(Some(login), false);
    let with = |login: &str| outbound.url().replace("//", &format!("//{login}@"));
    let proxy = site.proxy(&[("HTTPS_PROXY", &with("us%20er:p%40ss%2Fw%25rd%3A%3F"))]);
    assert_eq!(get(&proxy, MANIFEST).status, 200);
    let wrong = site.proxy(&[("HTTPS_PROXY", &with("user:hunter2"))]);
    let message = refusal(&get(&wrong, MANIFEST));
    let told = format!(
        "the proxy {} refuses the user and password in HTTPS_PROXY (407)",
        outbound.url()
    );
    assert!(message.contains(&told), "{message}");
    let none = site.proxy(&[("HTTPS_PROXY", &outbound.url())]);
    let message = refusal(&get(&none, MANIFEST));
    let told = format!(
        "the proxy {} wants a login (407); set HTTPS_PROXY",
        outbound.url()
    );
    assert!(message.contains(&told), "{message}");
    for log in [proxy.log(), wrong.log()] {
        // In any form: as it was written, decoded, and as it is sent (base64).
        for secret in ["hunter2", "p%40ss", "p@ss", "aHVudGVyMg", "dXMgZXI6"] {
            assert!(!log.contains(secret), "{secret} in {log}");
        }
    }
}

#[test]
fn a_refused_tunnel_is_told_with_its_status() {
    let (site, outbound) = (Site::new(), ForwardProxy::start());
    let proxy = site.proxy(&[("HTTPS_PROXY", &outbound.url())]);
    for status in [403, 502, 503] {
        outbound.behave(ForwardBehaviour::Refuse(status));
        let message = refusal(&get(&proxy, MANIFEST));
        let told = format!(
            "the proxy {} refused CONNECT {NAME}:{}: {status} Not today",
            outbound.url(),
            site.tls.port()
        );
        assert!(message.contains(&told), "{message}");
    }
    for (behaviour, told) in [
        (ForwardBehaviour::Close, "broke off CONNECT"),
        (ForwardBehaviour::Garbage, "does not speak HTTP"),
        (ForwardBehaviour::EndlessHead, "broke off CONNECT"),
    ] {
        outbound.behave(behaviour);
        let message = refusal(&get(&proxy, MANIFEST));
        assert!(
            message.contains(told) && message.contains(&outbound.url()),
            "{message}"
        );
    }
    outbound.behave(ForwardBehaviour::Honest);
    assert_eq!(get(&proxy, MANIFEST).status, 200);
}

#[test]
fn a_silent_proxy_costs_one_connect_time_out() {
    let (site, outbound) = (Site::new(), ForwardProxy::start());
    outbound.behave(ForwardBehaviour::Silent);
    let proxy = site.proxy(&[("HTTPS_PROXY", &outbound.url())]);
    let asked = Instant::now();
    let message = refusal(&get(&proxy, MANIFEST));
    let told = format!("the proxy {} does not answer CONNECT", outbound.url());
    assert!(message.contains(&told), "{message}");
    let took = asked.elapsed();
    assert!(
        took >= CONNECT_TIMEOUT && took < CONNECT_TIMEOUT * 2,
        "{took:?}"
    );
}

#[test]
fn the_cache_serves_when_the_proxy_is_gone() {
    let (site, outbound, scratch) = (Site::new(), ForwardProxy::start(), Scratch::new());
    let url = outbound.url();
    let proxy = site.proxy(&[
        ("HTTPS_PROXY", url.as_str()),
        ("CACHE_DIR", scratch.text()),
        ("CACHE_TAG_TTL", "0s"),
    ]);
    assert_eq!(get(&proxy, MANIFEST).status, 200);
    let refused = [
        ForwardBehaviour::Refuse(407),
        ForwardBehaviour::Refuse(503),
        ForwardBehaviour::Close,
        ForwardBehaviour::Silent,
    ];
    // The tunnel that is there would do, so it is cut.
    drop(site.tls);
    site.standin.down(Server::Registry);
    for behaviour in refused {
        outbound.behave(behaviour);
        let asked = Instant::now();
        let got = get(&proxy, MANIFEST);
        assert_eq!((got.status, got.header("X-Cache")), (200, Some("STALE")));
        let warning = got.header("Warning").unwrap_or_default();
        assert!(warning.contains("the proxy http://127.0.0.1:"), "{warning}");
        assert!(asked.elapsed() < CONNECT_TIMEOUT, "{:?}", asked.elapsed());
    }
    drop(outbound);
    let got = get(&proxy, MANIFEST);
    assert_eq!((got.status, got.header("X-Cache")), (200, Some("STALE")));
}

/// A registry without TLS, by name.
fn plain(further: &[(&str, &str)]) -> Front {
    let standin = Standin::start(Options::default());
    standin.put_image("team/app", "1.0", &[]);
    let registry = standin.registry_url().replace("127.0.0.1", NAME);
    let api = standin.api_url().replace("127.0.0.1", "api.test");
    let mut settings = vec![
        ("ECR", registry.as_str()),
        ("AWS_ENDPOINT_URL", &api),
        ("ALLOW_PLAIN_TOKEN", "true"),
    ];
    settings.extend_from_slice(further);
    let proxy = Proxy::in_front_of(&standin, &settings);
    Front { proxy, standin }
}

#[test]
fn http_goes_to_the_proxy_with_the_whole_url() {
    let outbound = ForwardProxy::with(Some("u:p"), false);
    let url = outbound.url().replace("//", "//u:p@");
    let front = plain(&[("HTTP_PROXY", &url)]);
    assert_eq!(front.get(MANIFEST).status, 200);
    assert_eq!(front.head(MANIFEST).status, 200);
    let blob = front.standin.add_blob_of("team/app", 1 << 20, 1);
    // The blob host is on loopback and never proxied.
    let got = front.get(&format!("/v2/team/app/blobs/{blob}"));
    assert_eq!((got.complete, &got.digest), (true, &blob));
    let port = front.standin.registry_url();
    let (_, port) = port.rsplit_once(':').unwrap();
    let requests = outbound.requests();
    for (method, target) in [
        ("GET", MANIFEST.to_owned()),
        ("HEAD", MANIFEST.to_owned()),
        ("GET", format!("/v2/team/app/blobs/{blob}")),
    ] {
        let expected = format!("{method} http://{NAME}:{port}{target}");
        assert!(requests.contains(&expected), "{expected} in {requests:?}");
    }
    let api = |request: &&String| request.starts_with("POST http://api.test:");
    assert!(requests.iter().any(|request| api(&request)), "{requests:?}");
    assert!(!requests.iter().any(|request| request.contains("localhost")));
    let seen = front.standin.requests();
    assert!(
        seen.iter()
            .all(|seen| seen.header("proxy-authorization").is_none())
    );
    let host = |seen: &standin::Seen| seen.header("host") == Some(&format!("{NAME}:{port}"));
    let mut of_registry = seen.iter().filter(|seen| seen.server == Server::Registry);
    assert!(of_registry.all(host));
    // Registry and API, a connection each.
    assert_eq!(outbound.connections(), 2, "{requests:?}");
}

#[test]
fn a_push_goes_through_the_proxy_too() {
    let outbound = ForwardProxy::start();
    let front = plain(&[("HTTP_PROXY", &outbound.url())]);
    let begun = front.call("POST", "/v2/new/repo/blobs/uploads/", &[], b"");
    assert_eq!(begun.status, 202, "{}", begun.text());
    let location = begun.header("Location").unwrap();
    // What looks like the head of a request is a body all the same.
    let bytes = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n";
    let digest = digest(bytes);
    let separator = if location.contains('?') { '&' } else { '?' };
    let target = format!(
        "{}{separator}digest={digest}",
        crate::support::target_of(location)
    );
    let put = front.call("PUT", &target, &[], bytes);
    assert_eq!(put.status, 201, "{}", put.text());
    let kept = front.standin.blob("new/repo", &digest).expect("the blob");
    assert_eq!(kept.digest(), digest);
    let manifest = br#"{"schemaVersion":2}"#;
    let headers = [("Content-Type", MANIFEST_TYPE)];
    let put = front.call("PUT", "/v2/new/repo/manifests/1", &headers, manifest);
    assert_eq!(put.status, 201, "{}", put.text());
    let puts = outbound
        .requests()
        .iter()
        .filter(|r| r.starts_with("PUT http://"))
        .count();
    assert_eq!(puts, 2);
}

#[test]
fn a_407_to_a_plain_request_is_the_proxys() {
    let outbound = ForwardProxy::with(Some("u:p"), false);
    let told = format!(
        "the proxy {} wants a login (407); set HTTP_PROXY",
        outbound.url()
    );
    // To the registry, and to the API that has the token.
    let registry = plain(&[("HTTP_PROXY", &outbound.url()), ("UPSTREAM_AUTH", "none")]);
    let message = refusal(&registry.get(MANIFEST));
    assert!(message.contains(&told), "{message}");
    let api = plain(&[("HTTP_PROXY", &outbound.url())]);
    let (_, message) = error_of(&api.get(MANIFEST));
    assert!(message.contains(&told), "{message}");
}

#[test]
fn exceptions_and_loopback_are_reached_directly() {
    let outbound = ForwardProxy::start();
    let url = outbound.url();
    let both = [("HTTPS_PROXY", url.as_str()), ("HTTP_PROXY", &url)];
    // All of the stand-in is on loopback.
    let front = Front::with(Options::default(), &both);
    front.standin.put_image("team/app", "1.0", &[]);
    assert_eq!(front.get(MANIFEST).status, 200);
    // By name it is not, unless the name is an exception.
    let dns = Dns::start();
    dns.set(NAME, 60, &["127.0.0.1"]);
    dns.set("api.test", 60, &["127.0.0.1"]);
    let resolver = dns.address();
    for no_proxy in [".test", "x, api.test,registry.test", "*"] {
        let mut settings = both.to_vec();
        settings.extend([("RESOLVER", resolver.as_str()), ("NO_PROXY", no_proxy)]);
        let front = plain(&settings);
        assert_eq!(front.get(MANIFEST).status, 200, "{no_proxy}");
    }
    assert_eq!(outbound.connections(), 0, "{:?}", outbound.requests());
}

#[test]
fn a_call_that_no_proxy_may_see_goes_directly_whatever_its_host() {
    let (outbound, standin) = (ForwardProxy::start(), Standin::start(Options::default()));
    let environment = [("HTTP_PROXY".into(), outbound.url().into())];
    let settings = resolve(&Arguments::default(), &environment)
        .settings
        .unwrap();
    let lookup = |_: &str| {
        let (addresses, fresh) = (vec![[127, 0, 0, 1].into()], SOON);
        Ok(Addresses { addresses, fresh })
    };
    let resolver = Resolver::start(Arc::new(lookup)).unwrap();
    let client = Client::new(resolver, Proxies::new(&settings.outbound), None, 1).unwrap();
    let mut call = ApiCall {
        method: "GET",
        url: standin.api_url().replace("127.0.0.1", "metadata.test"),
        headers: Headers::new(),
        body: Vec::new(),
        connect_timeout: SOON,
        timeout: SOON,
        through_proxy: false,
    };
    assert!(client.call(&call).is_ok());
    assert_eq!(outbound.connections(), 0);
    call.through_proxy = true;
    assert!(client.call(&call).is_ok());
    assert_eq!(outbound.requests().len(), 1);
    assert_eq!(standin.requests().len(), 2);
}

/// ureq builds a configuration of TLS for each connection of a request that has settings of its
/// own, with which every handshake is a whole one, after all roots have been parsed again.
#[test]
fn bug_each_tls_connection_had_a_configuration_of_its_own() {
    let (site, outbound) = (Site::new(), ForwardProxy::start());
    let proxy = site.proxy(&[("HTTPS_PROXY", &outbound.url())]);
    assert_eq!(get(&proxy, MANIFEST).status, 200);
    let blob = site.standin.add_blob("team/app", b"slow");
    let slow = Match::registry().path("/blobs/");
    site.standin.fault(slow, Fault::StallAfter(1));
    let mut http = Http::connect(proxy.address());
    let target = format!("/v2/team/app/blobs/{blob}");
    http.send_head("GET", &target, &[]).unwrap();
    wait_until("one connection is in use", SOON, || {
        site.standin.stalled() > 0
    });
    assert_eq!(get(&proxy, MANIFEST).status, 200);
    site.standin.release();
    assert_eq!(http.receive("GET").unwrap().digest, blob);
    assert_eq!((site.tls.connections(), site.tls.resumed()), (2, 1));
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let (site, outbound) = (Site::new(), ForwardProxy::start());
    let proxy = site.proxy(&[("HTTPS_PROXY", &outbound.url()), ("AWS_CA_BUNDLE", "")]);
    let got = get(&proxy, MANIFEST);
    let (_, message) = error_of(&got);
    assert_eq!(got.status, 502, "{message}");
    assert!(
        message.contains("TLS failed") && message.contains("UnknownIssuer"),
        "{message}"
    );
}

#[test]
fn a_bundle_that_cannot_be_used_ends_the_start() {
    let scratch = Scratch::new();
    let file = |name: &str, text: &str| {
        let path = scratch.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (bundle, code) in [
        (file("empty.pem", ""), 64),
        (file("text.pem", "no certificate"), 64),
        (scratch.text().to_owned(), 64),
        (scratch.path().join("none").to_str().unwrap().to_owned(), 64),
        (file("damaged.pem", damaged), 1),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aws-ecr-proxy"));
        command
            .env_clear()
            .env("LISTEN_HOST", "127.0.0.1")
            .env("LISTEN_PORT", "0");
        let output = command.env("AWS_CA_BUNDLE", &bundle).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains(&format!("AWS_CA_BUNDLE={bundle}")), "{told}");
    }
}

#[test]
fn a_redirect_is_passed_as_it_is() {
    let scratch = Scratch::new();
    for cache in ["off", scratch.text()] {
        let settings = [("BLOB_REDIRECT", "pass"), ("CACHE_DIR", cache)];
        let options = Options {
            s3_host: "127.0.0.1".into(),
            ..Options::default()
        };
        let front = Front::with(options, &settings);
        front.standin.put_image("team/app", "1.0", &[]);
        let blob = front.standin.add_blob("team/app", b"a blob");
        let target = format!("/v2/team/app/blobs/{blob}");
        let mut http = front.http();
        for _ in 0..2 {
            let got = http.get(&target);
            assert_eq!((got.status, got.header("X-Cache")), (307, Some("BYPASS")));
            let location = got.header("Location").unwrap();
            let host = front.standin.blob_host();
            assert!(
                location.starts_with(&format!("http://{host}/")),
                "{location}"
            );
            assert!(location.contains("X-Amz-Signature="), "{location}");
            // It is good for the client, too.
            let port: u16 = host.rsplit_once(':').unwrap().1.parse().unwrap();
            let address = ([127, 0, 0, 1], port).into();
            let got = Http::get_once(address, crate::support::target_of(location));
            assert_eq!(got.body, b"a blob");
        }
        // A URL that is signed for GET is of no use to who asks for the head alone.
        let head = http.head(&target);
        assert_eq!(
            (head.status, head.header("Content-Length")),
            (200, Some("6"))
        );
        let absent = format!("/v2/team/app/blobs/{}", digest(b"absent"));
        assert_eq!(http.get(&absent).status, 404);
        // Manifests are kept as ever.
        let outcomes: Vec<_> = (0..2).map(|_| http.get(MANIFEST)).collect();
        let shown = outcomes[1].header("X-Cache");
        assert_eq!(shown, (cache != "off").then_some("HIT"));
        let ids: HashSet<u64> = front
            .seen(Server::Registry)
            .iter()
            .map(|s| s.connection)
            .collect();
        assert_eq!(ids.len(), 1, "the connection is used again");
    }
}

#[test]
fn a_redirect_to_what_is_not_http_is_not_passed() {
    let front = Front::with(Options::default(), &[("BLOB_REDIRECT", "pass")]);
    let blob = front.standin.add_blob("team/app", b"a blob");
    let target = format!("/v2/team/app/blobs/{blob}");
    for odd in ["ftp://host/x", "javascript:alert(1)", "http://u:p@host/x"] {
        let fault = Fault::RedirectTo(odd.to_owned());
        front
            .standin
            .fault(Match::registry().path("/blobs/"), fault);
        let got = front.get(&target);
        assert_eq!((got.status, got.header("Location")), (502, None), "{odd}");
    }
    assert_eq!(front.get(&target).status, 307);
}

#[test]
fn connections_are_used_again_one_after_the_other() {
    let front = Front::start();
    let layers: Vec<Layer> = (0..5)
        .map(|number| Layer::of_files(&[("n", format!("{number}").as_bytes())]))
        .collect();
    let image = front.standin.put_image("team/app", "1.0", &layers);
    // One connection here, too: only then has the one before been given back for sure.
    let mut http = front.http();
    for _ in 0..3 {
        assert_eq!(http.get(MANIFEST).status, 200);
        assert_eq!(http.head(MANIFEST).status, 200);
        assert_eq!(http.get("/v2/team/app/manifests/none").status, 404);
        for digest in &image.layers {
            let got = http.get(&format!("/v2/team/app/blobs/{digest}"));
            assert_eq!(&got.digest, digest);
        }
    }
    for server in [Server::Registry, Server::S3] {
        let seen = front.seen(server);
        let ids: HashSet<u64> = seen.iter().map(|seen| seen.connection).collect();
        assert!(seen.len() >= 15);
        assert_eq!(ids.len(), 1, "{server:?}");
        assert_eq!(front.standin.connections(server), 1, "{server:?}");
    }
}

#[test]
fn connections_are_used_again_by_32_at_a_time() {
    const CLIENTS: usize = 32;
    let front = Front::start();
    front.standin.put_image("team/app", "1.0", &[]);
    let blob = front.standin.add_blob_of("team/app", 64 * 1024, 1);
    let target = format!("/v2/team/app/blobs/{blob}");
    for _ in 0..4 {
        in_parallel(CLIENTS, |_| {
            assert_eq!(front.get(MANIFEST).status, 200);
            assert_eq!(front.get(&target).digest, blob);
        });
    }
    for server in [Server::Registry, Server::S3] {
        let seen = front.seen(server);
        let ids: HashSet<u64> = seen.iter().map(|seen| seen.connection).collect();
        // 128 requests or more; each connection belongs to one of those who ask at a time.
        assert!(seen.len() >= 4 * CLIENTS);
        assert!(
            ids.len() <= CLIENTS,
            "{server:?}: {} connections",
            ids.len()
        );
        assert!(front.standin.connections(server) <= CLIENTS);
    }
}
