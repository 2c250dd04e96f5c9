//! The limits of a connection, crossed: with times short enough to wait for.

use std::io::Read;
use std::time::{Duration, Instant};

use aws_ecr_proxy::door::DoorLimits;
use aws_ecr_proxy::message::{Answer, Body, Headers, LogNote, Reply, Request};

use crate::attacks::assert_is_refusal;
use crate::support::door::{Server, ok};
use crate::support::{Http, wait_until};

/// The limit a test crosses.
const SHORT: Duration = Duration::from_millis(200);
/// For what is to happen soon after that.
const SOON: Duration = Duration::from_secs(30);

fn limits() -> DoorLimits {
    DoorLimits::new(100)
}

/// Reads the body where there is one and says how long it was, streams without end on `/endless`.
fn decide(request: &Request) -> Answer {
    match (request.method.as_str(), request.path()) {
        ("GET", "/endless") => Answer::Now(Reply {
            status: 200,
            headers: Headers::new(),
            body: Body::Stream {
                reader: Box::new(std::io::repeat(b'x')),
                length: None,
            },
            outcome: LogNote::default(),
        }),
        ("POST", "/read") => Answer::Later(Box::new(|body| {
            let mut whole = Vec::new();
            let text = match body.read_to_end(&mut whole) {
                Ok(count) => count.to_string(),
                Err(error) => error.to_string(),
            };
            Reply::new(200, "text/plain", text)
        })),
        _ => ok(request),
    }
}

/// Between two bytes of a slow client.
fn pause() {
    std::thread::sleep(SHORT / 10);
}

fn assert_gone(server: &Server) {
    wait_until("the connection is let go", SOON, || {
        server.door().connections() == 0
    });
    server.assert_whole();
}

#[test]
fn an_idle_connection_is_closed() {
    let server = Server::start(
        DoorLimits {
            idle: SHORT,
            ..limits()
        },
        decide,
    );
    let mut fresh = Http::connect(server.address());
    assert!(fresh.is_closed_within(SOON));
    let mut used = Http::connect(server.address());
    let begun = Instant::now();
    assert_eq!(used.get("/").status, 200);
    assert!(used.is_closed_within(SOON));
    assert!(begun.elapsed() >= SHORT);
    assert_gone(&server);
}

#[test]
fn empty_lines_do_not_keep_a_connection() {
    let server = Server::start(
        DoorLimits {
            idle: SHORT,
            ..limits()
        },
        decide,
    );
    let mut client = Http::connect(server.address());
    let until = Instant::now() + SOON;
    while client.send(b"\r\n").is_ok() {
        assert!(Instant::now() < until, "empty lines keep a connection");
        pause();
    }
    assert_gone(&server);
}

#[test]
fn a_head_that_takes_too_long_is_408() {
    let server = Server::start(
        DoorLimits {
            head: SHORT,
            ..limits()
        },
        decide,
    );
    let mut client = Http::connect(server.address());
    client.send(b"GET / HTTP/1.1\r\nHo").unwrap();
    assert_is_refusal("half a head", &client.receive("GET").unwrap(), 408);
    drop(client);
    // A byte now and then does not help.
    let mut client = Http::connect(server.address());
    let begun = Instant::now();
    for byte in b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" {
        if client.send(&[*byte]).is_err() || begun.elapsed() > SHORT * 2 {
            break;
        }
        pause();
    }
    assert_is_refusal("a slow head", &client.receive("GET").unwrap(), 408);
    client.half_close();
    assert!(client.is_closed_within(SOON));
    assert_gone(&server);
}

#[test]
fn a_body_that_stalls_is_408() {
    let server = Server::start(
        DoorLimits {
            body_idle: SHORT,
            ..limits()
        },
        decide,
    );
    for framing in [
        "Content-Length: 10\r\n\r\nhello",
        "Content-Length: 10\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5",
    ] {
        let mut client = Http::connect(server.address());
        let head = format!("POST /read HTTP/1.1\r\nHost: a\r\n{framing}");
        client.send(head.as_bytes()).unwrap();
        assert_is_refusal(framing, &client.receive("POST").unwrap(), 408);
        client.half_close();
        assert!(client.is_closed_within(SOON), "{framing}");
    }
    // A body that goes on is not stalled, however long it takes in all.
    let mut client = Http::connect(server.address());
    client
        .send(b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n")
        .unwrap();
    for _ in 0..20 {
        client.send(b"x").unwrap();
        pause();
    }
    assert_eq!(client.receive("POST").unwrap().text(), "20");
    drop(client);
    assert_gone(&server);
}

#[test]
fn a_client_that_takes_nothing_is_cut() {
    let server = Server::start(
        DoorLimits {
            write_idle: SHORT,
            ..limits()
        },
        decide,
    );
    let mut client = Http::connect(server.address());
    client.send_head("GET", "/endless", &[]).unwrap();
    // The reply has begun, and nobody takes it.
    client.stream().peek(&mut [0]).unwrap();
    assert_gone(&server);
    let reply = client.receive("GET").unwrap();
    assert!(!reply.complete, "{} bytes and a good end", reply.length);
}

#[test]
fn lingering_ends_by_time_and_by_bytes() {
    for limits in [
        DoorLimits {
            linger: SHORT,
            ..limits()
        },
        DoorLimits {
            linger_bytes: 100_000,
            ..limits()
        },
    ] {
        let server = Server::start(limits, decide);
        let mut client = Http::connect(server.address());
        // The answer comes while the body, which nobody reads, is still being sent.
        client
            .send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 40000000000\r\n\r\n")
            .unwrap();
        let reply = client.receive("POST").unwrap();
        assert_eq!(
            (reply.status, reply.header("connection")),
            (200, Some("close"))
        );
        let until = Instant::now() + SOON;
        while client.send(&[0; 16 * 1024]).is_ok() {
            assert!(Instant::now() < until, "lingers for ever");
        }
        assert_gone(&server);
    }
}

#[test]
fn the_longest_idle_connection_makes_room() {
    let server = Server::start(DoorLimits::new(3), decide);
    let mut busy = Http::connect(server.address());
    let head = b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    busy.send(head).unwrap();
    // Where a connection is still busy after its reply, another is the longest idle one.
    wait_until("the one that was idle for longer went", SOON, || {
        let mut older = connect_when_room(&server);
        let mut newer = connect_when_room(&server);
        pause();
        // Idle for longer than the other now, though it connected later.
        let is_here = older.try_request("GET", "/", &[], b"").is_ok();
        let _fourth = connect_when_room(&server);
        is_here && newer.is_closed_within(SHORT) && older.try_request("GET", "/", &[], b"").is_ok()
    });
    for _ in 0..20 {
        assert_has_room(&server);
        wait_until("the connection is let go", SOON, || {
            server.door().connections() < 3
        });
    }
    busy.send(b"hello").unwrap();
    assert_eq!(busy.receive("POST").unwrap().text(), "5");
    assert!(server.door().connections() <= 3);
    server.assert_whole();
}

/// A connection is busy for a moment after its client has the reply, on a busy machine for some
/// milliseconds; then it makes room.
fn connect_when_room(server: &Server) -> Http {
    let mut client = None;
    wait_until("there is room", SOON, || {
        let mut http = Http::connect(server.address());
        let has_room = http.get("/").status == 200;
        client = Some(http);
        has_room
    });
    client.unwrap()
}

fn assert_has_room(server: &Server) {
    drop(connect_when_room(server));
}

#[test]
fn when_all_are_busy_the_next_is_told_so() {
    let server = Server::start(DoorLimits::new(2), decide);
    let mut busy: Vec<Http> = (0..2).map(|_| Http::connect(server.address())).collect();
    for client in &mut busy {
        client
            .send(
                b"POST /read HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\
                    Content-Length: 5\r\n\r\n",
            )
            .unwrap();
        // The `100 Continue` says that the exchange has begun.
        let mut interim = [0; 25];
        client.stream().peek(&mut interim).unwrap();
        assert!(interim.starts_with(b"HTTP/1.1 100"));
    }
    for _ in 0..5 {
        let mut client = Http::connect(server.address());
        let _ = client.send_head("GET", "/", &[]);
        let reply = client.receive("GET").unwrap();
        assert_is_refusal("one too many", &reply, 503);
        assert_eq!(reply.header("retry-after"), Some("2"));
        assert!(client.is_closed_within(SOON));
    }
    for client in &mut busy {
        client.send(b"hello").unwrap();
        assert_eq!(client.receive("POST").unwrap().text(), "5");
    }
    assert_has_room(&server);
    server.assert_whole();
}

#[test]
fn refused_clients_that_stay_make_room() {
    let server = Server::start(DoorLimits::new(2), decide);
    let mut refused: Vec<Http> = (0..2).map(|_| Http::connect(server.address())).collect();
    for client in &mut refused {
        client.send(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_is_refusal("no Host", &client.receive("GET").unwrap(), 400);
    }
    // They linger for up to 10 s, and are not in the way meanwhile.
    assert_has_room(&server);
    server.assert_whole();
}

#[test]
fn an_empty_line_may_come_in_two_pieces() {
    let server = Server::start(limits(), decide);
    let mut client = Http::connect(server.address());
    for piece in ["\r", "\n\r", "\nGET / HTTP/1.1\r\nHost: a\r\n\r", "\n"] {
        client.send(piece.as_bytes()).unwrap();
        pause();
    }
    assert_eq!(client.receive("GET").unwrap().status, 200);
    server.assert_whole();
}

#[test]
fn a_long_last_reply_arrives_whatever_follows_its_request() {
    const BYTES: usize = 8 << 20;
    let server = Server::start(limits(), |_| {
        Answer::Now(Reply::new(200, "text/plain", vec![b'x'; BYTES]))
    });
    for version in ["1.0", "1.1"] {
        let mut client = Http::connect(server.address());
        let head = format!("GET / HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n");
        let more = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
        client.send(format!("{head}{more}").as_bytes()).unwrap();
        // It reads only once all is on its way: by then the proxy is done with it.
        wait_until("the reply is written or waits", SOON, || {
            client.stream().peek(&mut [0]).is_ok_and(|count| count > 0)
        });
        pause();
        let reply = client.receive("GET").unwrap();
        assert!(reply.complete, "HTTP/{version}: {:?}", reply.fault);
        assert_eq!(reply.length, BYTES as u64);
        assert!(client.is_closed_within(SOON));
    }
    assert_gone(&server);
}
