//! Registries that drip, fail over, send our token back, or lead us to our own host: they harm
//! neither other registries nor our secrets.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::Builder;
use std::time::{Duration, Instant};

use standin::{Dns, Fault, Match, Options, Standin};

use crate::support::{Cached, Front, Http, Proxy, Response, SOON, Scratch, error_of};

/// A client must have its answer by then: containerd gives up at 30 s.
const CLIENTS_PATIENCE: Duration = Duration::from_secs(29);

/// A registry whose every byte a test writes. Its threads end with the test's process.
pub(crate) struct Scripted {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

/// Answers the head of one request; false closes the connection.
type Script = dyn Fn(&str, &mut TcpStream) -> bool + Send + Sync;

impl Scripted {
    pub(crate) fn start(
        script: impl Fn(&str, &mut TcpStream) -> bool + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, script): (_, Arc<Script>) = (Arc::clone(&connections), Arc::new(script));
        let accept = move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                count.fetch_add(1, Ordering::SeqCst);
                let script = Arc::clone(&script);
                let serve = move || {
                    while let Some(head) = read_head(&mut stream) {
                        if !script(&head, &mut stream) {
                            return;
                        }
                    }
                };
                Builder::new().spawn(serve).unwrap();
            }
        };
        Builder::new().spawn(accept).unwrap();
        Self {
            address,
            connections,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The proxy in front of it alone.
    fn front(&self, settings: &[(&str, &str)]) -> Front {
        let url = self.url();
        let mut all = vec![("ECR", url.as_str())];
        all.extend_from_slice(settings);
        Front::with(Options::default(), &all)
    }
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.extend_from_slice(&byte);
    }
    String::from_utf8(head).ok()
}

/// Sends a whole reply; true when the connection lives on.
pub(crate) fn reply(stream: &mut TcpStream, head: &str, body: &str) -> bool {
    let length = body.len();
    let text = format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).is_ok()
}

/// Sends a head at once, and then a byte now and then, for ever.
fn drip(stream: &mut TcpStream, head: &str) -> bool {
    let text = format!("HTTP/1.1 {head}\r\nContent-Length: 1000000\r\n\r\n");
    let mut sent = stream.write_all(text.as_bytes());
    while sent.is_ok() {
        std::thread::sleep(Duration::from_millis(100));
        sent = stream.write_all(b"x");
    }
    false
}

fn list_of(head: &str) -> String {
    let target = head.split(' ').nth(1).unwrap_or_default();
    let name = target
        .trim_start_matches("/v2/")
        .trim_end_matches("/tags/list");
    format!("{{\"name\":\"{name}\",\"tags\":[]}}")
}

#[test]
fn a_registry_that_drips_its_refusals_starves_no_other() {
    let bad = Scripted::start(|head, stream| {
        let status = ["403 Forbidden", "500 Oops", "307 Temporary Redirect"];
        // The target alone: a port may hold such a number, too.
        let target = head.split(' ').nth(1).expect("a target");
        let which = status.iter().find(|status| target.contains(&status[..3]));
        let status = which.expect("a status in the target");
        drip(stream, &format!("{status}\r\nLocation: /v2/307/again"))
    });
    let good = Standin::start(Options::default());
    good.put_image("team/app", "1.0", &[]);
    let list = format!("{},{}", good.registry_url(), bad.url());
    let settings = [("ECR", list.as_str()), ("MAX_EXCHANGES", "2")];
    let proxy = Proxy::in_front_of(&good, &settings);
    let ask_bad = |target: &str| {
        let start = Instant::now();
        let mut http = Http::connect_within(proxy.address(), Duration::from_secs(40));
        let got = http.get(&format!("{target}?ns={}", bad.address));
        let took = start.elapsed();
        assert!(took < CLIENTS_PATIENCE, "{target}: {took:?}");
        let expected = if target.contains("307") {
            502
        } else {
            target[4..7].parse().unwrap()
        };
        assert_eq!(got.status, expected, "{target}: {}", got.text());
        assert!(!error_of(&got).0.is_empty());
        took
    };
    std::thread::scope(|scope| {
        let mut asked = Vec::new();
        for target in ["/v2/403/manifests/1", "/v2/500/manifests/1"] {
            asked.push(scope.spawn(|| ask_bad(target)));
        }
        while bad.connections.load(Ordering::SeqCst) < 2 {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Both permits of the bad one are taken; this registry has its own.
        let start = Instant::now();
        let got = Http::get_once(proxy.address(), "/v2/team/app/manifests/1.0");
        let took = start.elapsed();
        assert_eq!(got.status, 200, "{}", got.text());
        assert!(took < SOON, "{took:?}");
        for asked in asked {
            asked.join().unwrap();
        }
    });
    // The body of a redirect is not waited for.
    let took = ask_bad(
        "/v2/307/blobs/sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    );
    assert!(took < SOON, "{took:?}");
}

#[test]
fn after_a_failover_gets_are_answered_over_fresh_connections() {
    const CLIENTS: usize = 12;
    let over = Arc::new(AtomicBool::new(false));
    let (all_connected, failed_over) = (Barrier::new(CLIENTS), Arc::clone(&over));
    let registry = Scripted::start(move |head, stream| {
        // The first request of a connection after the failover is answered; whoever has a
        // connection from before it gets its end.
        if !failed_over.load(Ordering::SeqCst) {
            all_connected.wait();
            let sent = reply(stream, "200 OK", &list_of(head));
            while !failed_over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let next = read_head(stream);
            return sent && next.is_none();
        }
        reply(stream, "200 OK", &list_of(head))
    });
    let front = registry.front(&[]);
    let ask = |number: usize| front.get(&format!("/v2/team/app{number}/tags/list"));
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || ask(number).status))
            .collect();
        for asked in asked {
            assert_eq!(asked.join().unwrap(), 200);
        }
    });
    over.store(true, Ordering::SeqCst);
    let answers: Vec<u16> = (0..CLIENTS).map(|number| ask(number).status).collect();
    assert_eq!(answers, [200; CLIENTS]);
}

/// Our token as a registry gets it, and as it may send it back.
pub(crate) fn forms_of(head: &str) -> [String; 4] {
    let line = head
        .lines()
        .find(|line| line.to_ascii_lowercase().starts_with("authorization:"))
        .expect("a token");
    let token = line.rsplit(' ').next().unwrap().to_owned();
    let pair = standin::decode_token(&token);
    let password = pair.strip_prefix("AWS:").expect("ECR's user").to_owned();
    let escaped = token.replace('=', "%3D");
    [token, pair, password, escaped]
}

/// A registry that sends the token back: `/v2/WHERE/formFORM/…`.
fn echo(head: &str, stream: &mut TcpStream) -> bool {
    let target = head.split(' ').nth(1).unwrap_or_default();
    let part = |index| target.split('/').nth(index).unwrap_or_default();
    let form: usize = part(3)
        .trim_start_matches("form")
        .parse()
        .unwrap_or_default();
    let secret = forms_of(head)[form].clone();
    let digest = format!("sha256:{}", "0".repeat(64));
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\
             \"manifests\":[],\"annotations\":{{\"a\":\"{secret}\"}}}}"
    );
    let json = "Content-Type: application/vnd.oci.image.index.v1+json";
    match part(2) {
        "field" => reply(
            stream,
            &format!("404 Not Found\r\nX-Echo: {secret}\r\nLink: </v2/?{secret}>; rel=next"),
            "{\"errors\":[]}",
        ),
        "body" => reply(
            stream,
            "404 Not Found",
            &format!("{{\"errors\":[{{\"message\":\"{secret}\"}}]}}"),
        ),
        "text" => reply(
            stream,
            "403 Forbidden\r\nContent-Type: text/plain",
            &format!("denied: {secret}"),
        ),
        "long" => reply(
            stream,
            "500 Oops\r\nContent-Type: text/plain",
            &format!("{}{secret}", "x".repeat(200_000)),
        ),
        "ok" => reply(
            stream,
            &format!("200 OK\r\n{json}\r\nX-Echo: {secret}"),
            &manifest,
        ),
        "redirect" => reply(
            stream,
            &format!("307 Temporary Redirect\r\nLocation: http://{secret}.example/{secret}"),
            "",
        ),
        "chunks" => {
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\n{json}\r\nTransfer-Encoding: chunked\r\n\r\n"
            );
            for byte in manifest.chars() {
                let _ = write!(stream, "1\r\n{byte}\r\n");
            }
            write!(stream, "0\r\n\r\n").is_ok()
        }
        "created" => reply(
            stream,
            &format!("201 Created\r\nLocation: /v2/{secret}\r\nDocker-Content-Digest: {digest}"),
            &secret,
        ),
        other => panic!("{other}"),
    }
}

fn assert_no_secret(what: &str, text: &str, standin: &Standin) {
    for secret in standin.secrets() {
        assert!(!text.contains(&secret), "{secret} in {what}: {text}");
    }
}

#[test]
fn a_token_that_a_registry_sends_back_reaches_nobody() {
    let registry = Scripted::start(echo);
    let mut front = registry.front(&[("LOG_LEVEL", "DEBUG")]);
    let blob = format!("blobs/sha256:{}", "a".repeat(64));
    for case in ["field", "body", "text", "long", "ok", "redirect", "chunks"] {
        for form in 0..4 {
            for rest in ["manifests/1", "tags/list", &blob] {
                let target = format!("/v2/{case}/form{form}/{rest}");
                for method in ["GET", "HEAD"] {
                    let got = front.http().try_request(method, &target, &[], b"");
                    let text = |got: &Response| format!("{:?} {}", got.headers, got.text());
                    let text = got.as_ref().map_or_else(|_| String::new(), text);
                    assert_no_secret(&target, &text, &front.standin);
                }
            }
        }
    }
    for form in 0..4 {
        let target = format!("/v2/created/form{form}/manifests/1");
        let got = front.call("PUT", &target, &[], b"{}");
        let text = format!("{:?} {}", got.headers, got.text());
        assert_no_secret(&target, &text, &front.standin);
    }
    front.proxy.term();
    front.proxy.wait_exit();
    let log = front.proxy.log();
    assert!(log.lines().count() > 100, "{log}");
    assert_no_secret("the log", &log, &front.standin);
}

#[test]
fn a_range_that_was_not_asked_for_is_no_answer() {
    let registry = Scripted::start(|head, stream| {
        let part = |range: &str, body: &str| {
            reply(
                &mut stream.try_clone().unwrap(),
                &format!("206 Partial Content\r\nContent-Range: {range}"),
                body,
            )
        };
        match head.split('/').nth(2).unwrap_or_default() {
            "right" => part("bytes 5-9/20", "56789"),
            "other" => part("bytes 0-4/20", "01234"),
            "longer" => part("bytes 5-9/20", "5678901"),
            "none" => part("bytes */20", "56789"),
            "cut" => {
                let text = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-9/20\r\n\r\n567";
                let _ = stream.write_all(text.as_bytes());
                false
            }
            other => panic!("{other}"),
        }
    });
    let front = registry.front(&[]);
    let ask = |case: &str| {
        let target = format!("/v2/{case}/blobs/sha256:{}", "a".repeat(64));
        let mut http = front.http();
        http.try_request("GET", &target, &[("Range", "bytes=5-9")], b"")
    };
    let right = ask("right").unwrap();
    assert_eq!((right.status, right.text().as_str()), (206, "56789"));
    for case in ["other", "longer", "none"] {
        let got = ask(case).unwrap();
        assert_eq!(got.status, 502, "{case}: {}", got.text());
    }
    assert!(!ask("cut").is_ok_and(|got| got.complete));
}

/// A proxy whose registry sends blobs to `location`, with these DNS records.
fn redirecting(records: &[(&str, &str)], location: &str, blob_hosts: &str) -> (Front, Dns) {
    let dns = Dns::start();
    for (name, address) in records {
        dns.set(name, 60, &[*address]);
    }
    let resolver = dns.address();
    let settings = [("RESOLVER", resolver.as_str()), ("BLOB_HOSTS", blob_hosts)];
    let front = Front::with(Options::default(), &settings);
    let fault = Fault::RedirectTo(location.to_owned());
    front.standin.fault(Match::registry().always(), fault);
    (front, dns)
}

#[test]
fn a_blob_host_that_leads_to_this_host_is_not_connected_to() {
    let blob = format!("/v2/team/app/blobs/sha256:{}", "a".repeat(64));
    let internal = Scripted::start(|_, stream| reply(stream, "200 OK", "internal"));
    let port = internal.address.port();
    for (host, address, blob_hosts) in [
        ("a.blobs.test", "127.0.0.1", ".blobs.test"),
        ("a.blobs.test", "::1", ".blobs.test"),
        ("a.blobs.test", "::ffff:127.0.0.1", ".blobs.test"),
        ("a.blobs.test", "0.0.0.0", "a.blobs.test"),
        ("a.blobs.test", "169.254.169.254", "a.blobs.test"),
        ("a.blobs.test", "fd00:ec2::254", "a.blobs.test"),
        ("a.blobs.test", "64:ff9b::a9fe:a9fe", "a.blobs.test"),
    ] {
        let location = format!("http://{host}:{port}/x");
        let (front, _dns) = redirecting(&[(host, address)], &location, blob_hosts);
        let got = front.get(&blob);
        assert_eq!(got.status, 504, "{address}: {}", got.text());
        assert!(
            error_of(&got).1.contains("never connected to"),
            "{}",
            got.text()
        );
    }
    // A bucket's name that its owner lets point here.
    let bucket = "bucket.s3.eu-west-1.amazonaws.com";
    let location = format!("https://{bucket}/x");
    let (front, _dns) = redirecting(&[(bucket, "127.0.0.1")], &location, "x.test");
    let got = front.get(&blob);
    assert!(
        error_of(&got).1.contains("never connected to"),
        "{}",
        got.text()
    );
    // Hosts that are no buckets are not even looked up.
    for host in [
        "s3.lambda-url.eu-west-1.on.aws",
        "s3.x.execute-api.eu-west-1.amazonaws.com",
        "bucket.s3.eu-west-1.amazonaws.com:8080",
        "d111111abcdef8.cloudfront.net",
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "2852039166",
    ] {
        let (front, dns) = redirecting(&[], &format!("https://{host}/x"), "x.test");
        let got = front.get(&blob);
        assert_eq!(got.status, 502, "{host}: {}", got.text());
        assert!(error_of(&got).1.contains("BLOB_HOSTS"), "{}", got.text());
        assert!(dns.queries().is_empty(), "{host}");
    }
    assert_eq!(internal.connections.load(Ordering::SeqCst), 0);
    // The operator may give such a host by its name or address.
    for host in ["a.blobs.test", "127.0.0.1"] {
        let location = format!("http://{host}:{port}/x");
        let (front, _dns) = redirecting(&[("a.blobs.test", "127.0.0.1")], &location, host);
        let got = front.get(&blob);
        assert_eq!((got.status, got.text().as_str()), (200, "internal"));
    }
}

#[test]
fn patience_that_ran_out_opens_no_circuit_for_others() {
    let settings = [("CACHE_TAG_TTL", "0s")];
    let cached = Cached::on(Scratch::new(), Options::default(), &settings);
    cached.standin.put_image("team/app", "1.0", &[]);
    cached.standin.put_image("team/app", "2.0", &[]);
    assert_eq!(cached.get("/v2/team/app/manifests/1.0").status, 200);
    for _ in 0..2 {
        cached.standin.fault(Match::registry(), Fault::Silent);
        let got = cached.get("/v2/team/app/manifests/1.0");
        assert_eq!(got.header("X-Cache"), Some("STALE"), "{}", got.text());
    }
    cached.standin.clear_faults();
    let got = cached.get("/v2/team/app/manifests/2.0");
    assert_eq!((got.status, got.header("X-Cache")), (200, Some("MISS")));
}

#[test]
fn a_body_of_unknown_length_with_another_digest_is_cut() {
    let registry = Scripted::start(|head, stream| {
        let (framing, body) = match head.split('/').nth(2).unwrap_or_default() {
            "chunked" => ("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"),
            "wrong" => ("Transfer-Encoding: chunked\r\n", "3\r\nabd\r\n0\r\n\r\n"),
            "closed" => ("Connection: close\r\n", "abc"),
            "short" => ("Connection: close\r\n", "ab"),
            other => panic!("{other}"),
        };
        let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{framing}\r\n{body}").as_bytes());
        false
    });
    let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let cache = Scratch::new();
    let directory = cache.text();
    let fronts = [
        registry.front(&[]),
        registry.front(&[("CACHE_DIR", directory)]),
    ];
    for front in fronts {
        for (case, whole) in [
            ("chunked", true),
            ("wrong", false),
            ("closed", true),
            ("short", false),
        ] {
            let target = format!("/v2/{case}/blobs/{abc}");
            let got = front.http().try_request("GET", &target, &[], b"");
            let complete = got.is_ok_and(|got| got.complete && got.text() == "abc");
            assert_eq!(complete, whole, "{case}");
        }
    }
}
