//! Clients that are slow, that leave, or that take more than their share: by the least rate, by
//! the cap per client, and over raw sockets. Nothing of them stays.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_ecr_proxy::door::{DoorLimits, MinRate};
use aws_ecr_proxy::message::{Answer, Body, Headers, LogNote, Piece, Pieces, Reply, Request};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use standin::{Fault, Match, Options};

use crate::attacks::assert_is_refusal;
use crate::support::door::{Server, ok};
use crate::support::{Cached, Http, Proxy, Scratch, Target, in_parallel, wait_until};

/// For what is to happen soon.
const SOON: Duration = Duration::from_secs(30);
/// The least rate of these tests, and the time over which it is judged.
const RATE: u64 = 16 * 1024;
pub(crate) const WINDOW: Duration = Duration::from_millis(600);
/// Between two pieces of a slow client.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

pub(crate) fn limits() -> DoorLimits {
    DoorLimits {
        min_rate: MinRate {
            bytes_per_second: RATE,
            window: WINDOW,
        },
        ..DoorLimits::new(100)
    }
}

pub(crate) fn pause() {
    std::thread::sleep(PAUSE);
}

/// A connection from another address of the loopback, with a receive buffer of the smallest kind if
/// that is wanted: a large one would hide for long that nobody reads.
pub(crate) fn connect(to: SocketAddr, from: Ipv4Addr, small_buffer: bool) -> TcpStream {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
    let socket = socket.unwrap();
    if small_buffer {
        sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
    }
    rustix::net::bind(&socket, &SocketAddrV4::new(from, 0)).unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    TcpStream::from(socket)
}

pub(crate) fn assert_gone(server: &Server) {
    wait_until("the connection is let go", SOON, || {
        server.door().connections() == 0
    });
    server.assert_whole();
}

// === the least rate ===

/// Reads the body and says how long it was; on `/late` with long pauses of its own.
pub(crate) fn read_body(request: &Request) -> Answer {
    let own_pause = request.path() == "/late";
    Answer::Later(Box::new(move |body| {
        let mut whole = 0;
        let mut piece = vec![0; 64 * 1024];
        loop {
            match body.read(&mut piece) {
                Ok(0) => return Reply::new(200, "text/plain", whole.to_string()),
                Ok(count) => whole += count,
                Err(error) => return Reply::new(500, "text/plain", error.to_string()),
            }
            if own_pause {
                std::thread::sleep(WINDOW / 2);
            }
        }
    }))
}

#[test]
fn a_body_slower_than_the_least_rate_is_408() {
    let server = Server::start(limits(), read_body);
    for framing in [
        "Content-Length: 1000000\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nf4240\r\n",
    ] {
        let mut client = Http::connect(server.address());
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}");
        client.send(head.as_bytes()).unwrap();
        let begun = Instant::now();
        // 5 KB/s, and never idle.
        while begun.elapsed() < WINDOW * 3 && client.send(&[b'x'; 100]).is_ok() {
            pause();
        }
        let reply = client.receive("POST").unwrap();
        assert_is_refusal(framing, &reply, 408);
        let why = "request body slower than 16384 bytes/s over 0.6 s (MIN_RATE)";
        assert!(reply.text().contains(why), "{}", reply.text());
        client.half_close();
        assert!(client.is_closed_within(SOON), "{framing}");
    }
    assert_gone(&server);
}

#[test]
fn a_body_that_is_fast_enough_may_take_its_time() {
    let server = Server::start(limits(), read_body);
    let mut client = Http::connect(server.address());
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n";
    client.send(head).unwrap();
    // At the most 100 KB/s, four windows long.
    for _ in 0..100 {
        client.send(&[b'x'; 2000]).unwrap();
        pause();
    }
    assert_eq!(client.receive("POST").unwrap().text(), "200000");
    drop(client);
    assert_gone(&server);
}

#[test]
fn time_that_upstream_takes_is_not_the_senders() {
    let server = Server::start(limits(), read_body);
    let mut client = Http::connect(server.address());
    // All of it is there at once; the exchange takes four windows to read it.
    let reply = client.request("POST", "/late", &[], &[b'x'; 500_000]);
    assert_eq!((reply.status, reply.text().as_str()), (200, "500000"));
    drop(client);
    assert_gone(&server);
}

/// Pieces of one file, for ever.
struct Endless(std::fs::File);

impl Pieces for Endless {
    fn next(&mut self) -> std::io::Result<Piece<'_>> {
        Ok(Piece::File {
            file: &self.0,
            offset: 0,
            length: 1 << 20,
        })
    }
}

/// A byte now and then, for four windows.
struct Drip(u32);

impl Read for Drip {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            return Ok(0);
        }
        self.0 -= 1;
        std::thread::sleep(WINDOW / 4);
        into[0] = b'x';
        Ok(1)
    }
}

pub(crate) fn endless(
    file: &Arc<std::fs::File>,
) -> impl Fn(&Request) -> Answer + Send + Sync + 'static {
    let file = Arc::clone(file);
    move |request| {
        let body = match request.path() {
            "/file" => Body::Pieces {
                pieces: Box::new(Endless(file.try_clone().unwrap())),
                length: Some(1 << 40),
            },
            "/drip" => Body::Stream {
                reader: Box::new(Drip(16)),
                length: Some(16),
            },
            _ => Body::Stream {
                reader: Box::new(std::io::repeat(b'x')),
                length: Some(1 << 40),
            },
        };
        Answer::Now(Reply {
            status: 200,
            headers: Headers::new(),
            body,
            outcome: LogNote::default(),
        })
    }
}

pub(crate) fn megabyte() -> (Scratch, Arc<std::fs::File>) {
    let scratch = Scratch::new();
    let path = scratch.path().join("megabyte");
    std::fs::create_dir_all(scratch.path()).unwrap();
    std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
    let file = std::fs::File::open(path).unwrap();
    (scratch, Arc::new(file))
}

/// Reads `bytes` every [`PAUSE`] for as long as `limit`; how long it lasted until it was cut.
pub(crate) fn read_slowly(
    stream: &mut impl Read,
    bytes: usize,
    limit: Duration,
) -> Option<Duration> {
    let begun = Instant::now();
    let mut piece = vec![0; bytes];
    while begun.elapsed() < limit {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return Some(begun.elapsed()),
            Ok(_) => pause(),
        }
    }
    None
}

#[test]
fn a_client_that_takes_a_reply_too_slowly_is_cut() {
    let (_scratch, file) = megabyte();
    let server = Server::start(limits(), endless(&file));
    for path in ["/file", "/stream"] {
        let mut client = connect(server.address(), Ipv4Addr::LOCALHOST, true);
        let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        client.write_all(head.as_bytes()).unwrap();
        // 1 KB/s: whatever is read is taken from the kernel in the end, and is too little.
        let cut = read_slowly(&mut client, 20, SOON);
        assert!(cut.is_some(), "{path}: who reads 1 KB/s is served on");
        assert_gone(&server);
    }
}

#[test]
fn a_client_that_takes_a_reply_fast_enough_is_served_on() {
    let (_scratch, file) = megabyte();
    let server = Server::start(limits(), endless(&file));
    for path in ["/file", "/stream"] {
        let mut client = connect(server.address(), Ipv4Addr::LOCALHOST, true);
        let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        client.write_all(head.as_bytes()).unwrap();
        // At the most 200 KB/s, of which little would fill a third of the send buffer in a window.
        let cut = read_slowly(&mut client, 4000, WINDOW * 5);
        assert_eq!(cut, None, "{path}");
        assert_eq!(server.door().connections(), 1);
        drop(client);
        assert_gone(&server);
    }
}

#[test]
fn time_that_a_source_takes_is_not_the_readers() {
    let (_scratch, file) = megabyte();
    let server = Server::start(limits(), endless(&file));
    let reply = Http::get_once(server.address(), "/drip");
    assert!(reply.complete, "{:?}", reply.fault);
    assert_eq!(reply.text(), "x".repeat(16));
    assert_gone(&server);
}

// === the cap per client ===

/// Waits for the body of `/read`.
fn busy_or_ok(request: &Request) -> Answer {
    match request.path() {
        "/read" => read_body(request),
        _ => ok(request),
    }
}

/// A client whose request is being read.
fn busy(stream: TcpStream) -> Http {
    let mut client = Http::on(stream);
    let expects = [("Expect", "100-continue"), ("Content-Length", "5")];
    client.send_head("POST", "/read", &expects).unwrap();
    let mut interim = [0; 25];
    client.stream().peek(&mut interim).unwrap();
    assert!(interim.starts_with(b"HTTP/1.1 100"));
    client
}

#[test]
fn one_client_cannot_take_every_connection() {
    let server = Server::start(
        DoorLimits {
            connections_per_peer: 2,
            ..DoorLimits::new(10)
        },
        busy_or_ok,
    );
    let (one, other) = (Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2));
    let mut bystander = Http::on(connect(server.address(), other, false));
    assert_eq!(bystander.get("/").status, 200);
    let mut held: Vec<Http> = (0..2)
        .map(|_| busy(connect(server.address(), one, false)))
        .collect();
    for _ in 0..3 {
        let mut client = Http::on(connect(server.address(), one, false));
        let _ = client.send_head("GET", "/", &[]);
        let reply = client.receive("GET").unwrap();
        assert_is_refusal("one too many", &reply, 503);
        assert_eq!(reply.header("retry-after"), Some("2"));
    }
    // Nobody else pays for it, not even who is idle.
    assert_eq!(bystander.get("/").status, 200);
    let mut another = Http::on(connect(server.address(), other, false));
    assert_eq!(another.get("/").status, 200);
    // When one is idle again, which is a moment after its reply, it makes room for the next of the
    // same client.
    held[0].send(b"hello").unwrap();
    assert_eq!(held[0].receive("POST").unwrap().text(), "5");
    let mut next = None;
    wait_until("there is room", SOON, || {
        let mut client = Http::on(connect(server.address(), one, false));
        let is_answered = client.get("/").status == 200;
        next = is_answered.then_some(client);
        is_answered
    });
    assert!(held[0].is_closed_within(SOON));
    assert_eq!(bystander.get("/").status, 200);
    wait_until("the refused are gone", SOON, || {
        server.door().connections() == 4
    });
    drop((held, next, bystander, another));
    assert_gone(&server);
}

#[test]
fn unix_sockets_have_no_client_to_count() {
    let scratch = Scratch::new();
    std::fs::create_dir_all(scratch.path()).unwrap();
    let path = scratch.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let limits = DoorLimits {
        connections_per_peer: 1,
        ..DoorLimits::new(10)
    };
    let server = Server::start_with(vec![listener.into()], limits, None, busy_or_ok);
    let held = busy(connect(server.address(), Ipv4Addr::LOCALHOST, false));
    let clients: Vec<UnixStream> = (0..4)
        .map(|_| {
            let mut client = UnixStream::connect(&path).unwrap();
            let head = b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel";
            client.write_all(head).unwrap();
            client
        })
        .collect();
    // bug: connections of two listeners had the same numbers, and one of a pair was forgotten.
    wait_until("all are counted", SOON, || server.door().connections() == 5);
    for mut client in clients {
        client.write_all(b"lo").unwrap();
        let mut piece = [0; 15];
        client.read_exact(&mut piece).unwrap();
        assert_eq!(&piece, b"HTTP/1.1 200 OK");
    }
    drop(held);
    assert_gone(&server);
}

#[test]
fn the_cap_per_peer_is_the_settings() {
    let standin = standin::Standin::start(Options::default());
    let settings = [("MAX_CONNECTIONS_PER_PEER", "3")];
    let proxy = Proxy::in_front_of(&standin, &settings);
    let held: Vec<Http> = (0..3)
        .map(|_| {
            let mut client = Http::connect(proxy.address());
            let uploads = "/v2/sample/new/blobs/uploads/";
            let length = [("Content-Length", "5")];
            client.send_head("POST", uploads, &length).unwrap();
            client.send(b"he").unwrap();
            client
        })
        .collect();
    // Until its head is there, each of them is idle and would have to make room.
    wait_until("all three are busy", SOON, || {
        standin.count(standin::Server::Registry, "POST", "/uploads/") == 3
    });
    let mut client = Http::connect(proxy.address());
    let _ = client.send_head("GET", "/healthz", &[]);
    assert_is_refusal("a fourth", &client.receive("GET").unwrap(), 503);
    proxy.wait_for_log("all 3 connections of 127.0.0.1 are busy");
    drop(held);
    wait_until("the next is served", SOON, || {
        let mut client = Http::connect(proxy.address());
        let reply = client.try_request("GET", "/healthz", &[], b"");
        reply.is_ok_and(|reply| reply.status == 200)
    });
}

// === raw sockets ===

/// A length that nobody reads to its end.
const FIVE_GB: u64 = 5_000_000_000;

#[test]
fn an_early_refusal_of_5_gb_arrives_while_the_client_writes_on() {
    let mut target = Target::start();
    for (method, path, status) in [
        ("PUT", "/v2/UPPER/manifests/1", 400),
        ("POST", "/healthz", 405),
        ("PUT", "/nowhere", 404),
    ] {
        let mut client = TcpStream::connect(target.address()).unwrap();
        client.set_write_timeout(Some(SOON)).unwrap();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {FIVE_GB}\r\n\r\n");
        client.write_all(head.as_bytes()).unwrap();
        // It looks for no answer until it cannot write any more.
        let mut written = 0_u64;
        let piece = vec![0; 1 << 20];
        while written < FIVE_GB {
            match client.write(&piece) {
                Ok(count) => written += count as u64,
                Err(_) => break,
            }
        }
        assert!(written < FIVE_GB, "all of it was read");
        let reply = Http::on(client).receive(method).unwrap();
        assert_is_refusal(path, &reply, status);
    }
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn half_closed_clients_get_their_answers() {
    let mut target = Target::start();
    let digest = target.standin.add_blob_of("sample/hello", 3_000_000, 5);
    for path in ["/healthz", &format!("/v2/sample/hello/blobs/{digest}")] {
        let mut client = Http::connect(target.address());
        client.send_head("GET", path, &[]).unwrap();
        client.half_close();
        let reply = client.receive("GET").unwrap();
        assert_eq!((reply.status, reply.complete), (200, true), "{path}");
        assert!(client.is_closed_within(SOON));
    }
    // Before a head, or in the middle of it, there is nothing to answer.
    for start in ["", "GET /healthz HTTP/1.1\r\nHo"] {
        let mut client = Http::connect(target.address());
        client.send(start.as_bytes()).unwrap();
        client.half_close();
        assert!(client.is_closed_within(SOON), "{start:?}");
    }
    // In the middle of an upload it is an error that is said.
    let mut client = Http::connect(target.address());
    let head = b"POST /v2/sample/new/blobs/uploads/ HTTP/1.1\r\nHost: a\r\n\
        Content-Length: 1000000\r\n\r\nhello";
    client.send(head).unwrap();
    client.half_close();
    assert_is_refusal("upload", &client.receive("POST").unwrap(), 400);
    assert!(client.is_closed_within(SOON));
    target.assert_well();
    target.assert_nothing_leaked();
}

/// Closes with a reset.
fn reset(stream: TcpStream) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
}

#[test]
fn a_reset_in_mid_upload_gives_everything_back() {
    let mut target = Target::start_with(|standin| {
        // With one permit alone, a single one that is lost would show.
        Proxy::in_front_of(standin, &[("MAX_UPLOADS", "1")])
    });
    let path = "/v2/sample/new/blobs/uploads/";
    for framing in [
        "Content-Length: 1000000\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\nf4240\r\nhello",
        "Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n",
    ] {
        let seen = target.reached_upstream(path);
        let mut client = TcpStream::connect(target.address()).unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\n{framing}");
        client.write_all(head.as_bytes()).unwrap();
        if framing.ends_with("hello") {
            wait_until("the upload has begun", SOON, || {
                target.reached_upstream(path) > seen
            });
        }
        reset(client);
        let begun = Http::once(target.address(), "POST", path, &[], b"");
        assert_eq!(begun.status, 202, "{framing}: {}", begun.text());
    }
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn a_reset_in_mid_reply_gives_everything_back() {
    let mut target = Target::start();
    let digest = target.standin.add_blob_of("sample/hello", 50_000_000, 6);
    let path = format!("/v2/sample/hello/blobs/{digest}");
    in_parallel(4, |_| {
        for _ in 0..6 {
            let mut client = TcpStream::connect(target.address()).unwrap();
            let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            client.write_all(head.repeat(3).as_bytes()).unwrap();
            client.read_exact(&mut [0; 10_000]).unwrap();
            reset(client);
        }
    });
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut target = Target::start();
    let kinds = [
        ("GET", "/healthz", 200),
        ("GET", "/nowhere", 404),
        ("HEAD", "/v2/sample/hello/manifests/1.0", 200),
        ("POST", "/version", 405),
        ("GET", "/v2/", 200),
        ("GET", "/v2/UPPER/tags/list", 400),
        ("GET", "/v2/sample/hello/manifests/none", 404),
    ];
    let mut client = Http::connect(target.address());
    let mut all = String::new();
    for (method, path, _) in kinds.iter().cycle().take(70) {
        all.push_str(&format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
    }
    client.send(all.as_bytes()).unwrap();
    client.half_close();
    for (number, (method, path, status)) in kinds.iter().cycle().take(70).enumerate() {
        let reply = client.receive(method).unwrap();
        assert_eq!(reply.status, *status, "{number}: {method} {path}");
    }
    assert!(client.is_closed_within(SOON));
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn a_connection_goes_on_after_every_kind_of_error() {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let server = Server::start(DoorLimits::new(10), move |request| {
        count.fetch_add(1, Ordering::SeqCst);
        let status = request.path().trim_start_matches('/').parse().unwrap();
        let reply = Reply::new(status, "application/json", "{}");
        if request.method == "POST" {
            return Answer::Later(Box::new(move |body| {
                std::io::copy(body, &mut std::io::sink()).unwrap();
                reply
            }));
        }
        Answer::Now(reply)
    });
    let statuses = [400, 401, 403, 404, 405, 408, 416, 429, 500, 502, 503, 504];
    let mut client = Http::connect(server.address());
    for method in ["GET", "HEAD", "POST"] {
        for status in statuses {
            let body: &[u8] = if method == "POST" { b"hello" } else { b"" };
            let reply = client.request(method, &format!("/{status}"), &[], body);
            assert_eq!((reply.status, reply.complete), (status, true), "{method}");
            assert_eq!(reply.header("connection"), None, "{method} {status}");
        }
    }
    assert_eq!(client.get("/200").status, 200);
    assert_eq!(served.load(Ordering::SeqCst), 3 * statuses.len() + 1);
    assert_eq!(server.door().connections(), 1);
    drop(client);
    assert_gone(&server);
}

#[test]
fn a_connection_goes_on_after_the_proxys_own_errors() {
    let cached = Cached::with(&[("CACHE_TAG_TTL", "0s")]);
    let standin = &cached.standin;
    let digest = standin.add_blob("sample/hello", b"hello");
    let manifest = |name: &str| format!("/v2/sample/{name}/manifests/1.0");
    let says = |name: &str, status| {
        let fault = Fault::registry_error(status, "CODE", "because");
        // One that is throttled is asked for once more.
        let times = if status == 429 { 2 } else { 1 };
        standin.fault(Match::registry().path(name).times(times), fault);
    };
    says("forbidden", 403);
    says("throttled", 429);
    says("broken", 500);
    let garbled = Match::registry().path("garbled").always();
    standin.fault(garbled, Fault::garbage_head());
    let blob = format!("/v2/sample/hello/blobs/{digest}");
    assert_eq!(cached.get(&blob).status, 200);
    cached.wait_for_blob(&digest);
    let mut client = Http::connect(cached.address());
    let range = ("Range", "bytes=9-");
    let mut statuses = Vec::new();
    for (method, path, fields) in [
        ("GET", "/v2/UPPER/tags/list".to_owned(), None),
        ("GET", manifest("none"), None),
        ("PATCH", "/healthz".to_owned(), None),
        ("GET", blob, Some(range)),
        ("GET", manifest("forbidden"), None),
        ("GET", manifest("throttled"), None),
        ("GET", manifest("broken"), None),
        ("GET", manifest("garbled"), None),
    ] {
        let fields: Vec<(&str, &str)> = fields.into_iter().collect();
        let reply = client.request(method, &path, &fields, b"");
        assert!(reply.complete && reply.status >= 400, "{path}: {reply:?}");
        assert_eq!(reply.header("connection"), None, "{path}: {}", reply.status);
        statuses.push(reply.status);
    }
    cached.all_down();
    let reply = client.get(&manifest("never-pulled"));
    assert_eq!(reply.header("connection"), None, "{}", reply.status);
    statuses.push(reply.status);
    assert_eq!(client.get("/healthz").status, 200);
    assert_eq!(
        statuses,
        [400, 404, 405, 416, 403, 429, 500, 502, 504],
        "what each was meant to be"
    );
}
