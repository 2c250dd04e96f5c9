//! Where a request ends: bodies that lie about their length, requests hidden in bodies, and the
//! forms of HTTP/1.0 and 1.1 that clients may use. Nothing hidden ever reaches upstream.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use standin::{Server, digest};

use crate::attacks::{assert_is_refusal, assert_refused};
use crate::support::{Http, Target, in_parallel, wait_until};

/// For a connection that is to be closed after its answer.
const CLOSED: Duration = Duration::from_secs(30);
/// What a smuggler would have upstream see.
const HIDDEN: &str = "GET /v2/secret/tags/list HTTP/1.1\r\nHost: a\r\n\r\n";
const UPLOADS: &str = "/v2/sample/new/blobs/uploads/";
/// A length nobody has memory for; tiny_http would ask for it all at once.
const HUGE: &str = "Content-Length: 40000000000\r\n\r\n";
/// The same as a chunk.
const HUGE_CHUNK: &str = "Transfer-Encoding: chunked\r\n\r\n9502f9000\r\n";

fn upload_target(bytes: &[u8]) -> String {
    format!("{UPLOADS}?digest={}", digest(bytes))
}

#[test]
fn broken_chunks_are_refused_and_nothing_of_them_is_stored() {
    let mut target = Target::start();
    let long_extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(1000));
    let long_trailer = format!("5\r\nhello\r\n0\r\nX: {}\r\n\r\n", "x".repeat(9000));
    let bodies = [
        "x\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "5,\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\r\n\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5;\nx\r\nhello\r\n0\r\n\r\n",
        "5;\rx\r\nhello\r\n0\r\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "5;\x7f\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\n",
        "5\r\nhello\r\n0\r\nX: \0\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: y\n\r\n",
        "5\r\nhello\r\n-0\r\n\r\n",
        "5\r\nhello\r\n10000000000000000\r\n",
        "fffffffffffffffff\r\nhello",
        &long_extension,
        &long_trailer,
    ];
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        upload_target(b"hello")
    );
    in_parallel(4, |thread| {
        for body in bodies.iter().skip(thread).step_by(4) {
            let bytes = format!("{head}{body}");
            assert_refused(&target, &format!("{body:?}"), bytes.as_bytes(), 400);
        }
    });
    assert!(
        target
            .standin
            .blob("sample/new", &digest(b"hello"))
            .is_none()
    );
    // The same upload in good chunks is stored, so it was the chunks that were refused.
    let mut client = Http::connect(target.address());
    let good = "2 ; a=\"b\"\r\nhe\r\n0003\r\nllo\r\n0\r\nX: y\r\n\r\n";
    client.send(format!("{head}{good}").as_bytes()).unwrap();
    assert_eq!(client.receive("POST").unwrap().status, 201);
    assert!(
        target
            .standin
            .blob("sample/new", &digest(b"hello"))
            .is_some()
    );
    assert_eq!(client.get("/healthz").status, 200);
    drop(client);
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn bodies_that_end_early_are_no_uploads() {
    let mut target = Target::start();
    for framing in [
        "Content-Length: 6\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ] {
        let head = format!("POST {} HTTP/1.1\r\nHost: a\r\n", upload_target(b"hello"));
        let mut client = Http::connect(target.address());
        client.send(format!("{head}{framing}").as_bytes()).unwrap();
        client.half_close();
        let reply = client.receive("POST").unwrap();
        assert_is_refusal(framing, &reply, 400);
        assert!(client.is_closed_within(CLOSED), "{framing}");
    }
    assert!(
        target
            .standin
            .blob("sample/new", &digest(b"hello"))
            .is_none()
    );
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn a_request_in_a_body_is_a_body() {
    let mut target = Target::start();
    // In an upload, with a length and in chunks: it is stored, byte for byte, and a second request
    // on the same connection is answered as such.
    let length = HIDDEN.len();
    for framing in [
        format!("Content-Length: {length}\r\n\r\n{HIDDEN}"),
        format!("Transfer-Encoding:\tChunked\r\n\r\n{length:x}\r\n{HIDDEN}\r\n0\r\n\r\n"),
    ] {
        let mut client = Http::connect(target.address());
        let uploads = upload_target(HIDDEN.as_bytes());
        let upload = format!("POST {uploads} HTTP/1.1\r\nHost: a\r\n{framing}");
        let next = "GET /version HTTP/1.1\r\nHost: a\r\n\r\n";
        client.send(format!("{upload}{next}").as_bytes()).unwrap();
        assert_eq!(client.receive("POST").unwrap().status, 201);
        let version = client.receive("GET").unwrap();
        assert!(version.text().contains("\"version\""), "{}", version.text());
        client.half_close();
        assert!(client.is_closed_within(CLOSED), "a third answer came");
    }
    // Where no body is expected, it is thrown away with the connection.
    for path in [
        "/healthz",
        "/v2/",
        "/v2/_catalog",
        "/nowhere",
        "/v2/sample/hello/manifests/1.0",
    ] {
        for framing in [
            format!("Content-Length: {length}\r\n\r\n{HIDDEN}"),
            format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{HIDDEN}\r\n0\r\n\r\n"),
            // More than it says: what is left over is not read as a request either.
            format!("Content-Length: 1\r\n\r\nx{HIDDEN}"),
        ] {
            let mut client = Http::connect(target.address());
            let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{framing}");
            client.send(head.as_bytes()).unwrap();
            let reply = client.receive("GET").unwrap();
            assert_eq!(reply.header("connection"), Some("close"), "{path}");
            client.half_close();
            assert!(client.is_closed_within(CLOSED), "{path}: a second answer");
        }
    }
    assert_eq!(target.reached_upstream("secret"), 0);
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn two_framings_hide_nothing() {
    let mut target = Target::start();
    let length = HIDDEN.len();
    let chunks = format!("0\r\n\r\n{HIDDEN}");
    let all = chunks.len();
    for (fields, status) in [
        (
            format!("Content-Length: {all}\r\nTransfer-Encoding: chunked"),
            400,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 4".to_owned(),
            400,
        ),
        (
            format!("Content-Length: {all}\r\nTransfer-Encoding : chunked"),
            400,
        ),
        (
            format!("Content-Length: {all}\r\nX: y\r\n Transfer-Encoding: chunked"),
            400,
        ),
        (
            format!("Content-Length: {all}\r\nX: y\rTransfer-Encoding: chunked"),
            400,
        ),
        (
            format!("Content-Length: {all}\r\nX: y\nTransfer-Encoding: chunked"),
            400,
        ),
        ("Content-Length: 0\r\nContent-Length: 46".to_owned(), 400),
        (format!("Content-Length: {length}, 0"), 400),
        ("Transfer-Encoding: xchunked".to_owned(), 501),
        ("Transfer-Encoding: chunked, identity".to_owned(), 501),
        (
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked".to_owned(),
            400,
        ),
        ("Transfer-Encoding: \"chunked\"".to_owned(), 400),
        ("Transfer-Encoding: chunked;x".to_owned(), 400),
    ] {
        for start in [
            format!("POST {} HTTP/1.1", upload_target(b"")),
            "GET /v2/_catalog HTTP/1.1".to_owned(),
            "GET /healthz HTTP/1.1".to_owned(),
        ] {
            let bytes = format!("{start}\r\nHost: a\r\n{fields}\r\n\r\n{chunks}");
            assert_refused(&target, &format!("{bytes:?}"), bytes.as_bytes(), status);
        }
    }
    assert_eq!(target.reached_upstream("secret"), 0);
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn a_length_that_nothing_follows_costs_nothing() {
    let mut target = Target::start();
    let mut staying = Vec::new();
    for framing in [HUGE, HUGE_CHUNK] {
        for (start, answered) in [
            ("GET /healthz", true),
            ("GET /v2/_catalog", true),
            ("POST /healthz", true),
            ("PUT /nowhere", true),
            ("POST /v2/sample/new/blobs/uploads/", false),
            ("PUT /v2/sample/new/manifests/1", false),
        ] {
            // A manifest of that length is refused by its length.
            let answered = answered || (start.contains("manifests") && framing == HUGE);
            for stays in [true, false] {
                let mut client = Http::connect(target.address());
                let head = format!("{start} HTTP/1.1\r\nHost: a\r\n{framing}");
                client.send(head.as_bytes()).unwrap();
                if answered {
                    let reply = client.receive("GET").unwrap();
                    assert_eq!(reply.header("connection"), Some("close"), "{head}");
                }
                if stays {
                    staying.push(client);
                } else {
                    client.half_close();
                    if !answered {
                        assert_is_refusal(&head, &client.receive("GET").unwrap(), 400);
                    }
                    assert!(client.is_closed_within(CLOSED), "{head}");
                }
            }
        }
    }
    target.assert_well();
    drop(staying);
    target.assert_nothing_leaked();
}

#[test]
fn a_thousand_lengths_that_nothing_follows_cost_nothing() {
    let mut target = Target::start();
    in_parallel(8, |thread| {
        for number in 0..125 {
            let framing = [HUGE, HUGE_CHUNK][number % 2];
            let start = ["GET /healthz", "POST /v2/sample/new/blobs/uploads/"][thread % 2];
            let mut client = TcpStream::connect(target.address()).unwrap();
            let head = format!("{start} HTTP/1.1\r\nHost: a\r\n{framing}");
            client.write_all(head.as_bytes()).unwrap();
            if number % 3 == 0 {
                let _ = client.shutdown(Shutdown::Write);
            }
        }
    });
    target.assert_well();
    let peak = target.proxy.peak_rss_kib();
    assert!(peak < 200 * 1024, "{peak} KiB of memory");
    target.assert_nothing_leaked();
}

#[test]
fn absolute_form_names_the_host() {
    let mut target = Target::start();
    target.standin.add_repositories(3);
    let mut client = Http::connect(target.address());
    let target_of = |path: &str| format!("http://mirror.example:81{path}");
    let upload = client.request("POST", &target_of(UPLOADS), &[], b"");
    let location = upload.header("location").unwrap_or_default();
    assert!(location.starts_with(&target_of(UPLOADS)), "{location}");
    let catalog = client.get(&target_of("/v2/_catalog?n=1"));
    let link = catalog.header("link").unwrap_or_default();
    assert!(
        link.starts_with(&format!("<{}", target_of("/v2/_catalog?"))),
        "{link}"
    );
    assert_eq!(
        client.get("HTTPS://mirror.example/healthz").text(),
        "ok\n",
        "the scheme's case"
    );
    target.assert_well();
}

#[test]
fn http_1_0_is_served_without_chunks() {
    let mut target = Target::start();
    // Without keep-alive the connection's end is the reply's end; Host is optional.
    let reply = raw_reply(&target, "GET /healthz HTTP/1.0\r\n\r\n");
    assert!(
        reply.contains("\r\nConnection: close\r\n") && reply.ends_with("ok\n"),
        "{reply}"
    );
    // An upstream body of unknown length is delimited by the end, never by chunks.
    let blob = target.standin.add_blob("sample/hello", b"0123456789");
    target.standin.fault(
        standin::Match::s3(),
        standin::Fault::Chunked { cut_after: None },
    );
    let reply = raw_reply(
        &target,
        &format!("GET /v2/sample/hello/blobs/{blob} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
    );
    let lower = reply.to_ascii_lowercase();
    assert!(
        !lower.contains("transfer-encoding") && !lower.contains("content-length"),
        "{reply}"
    );
    assert!(reply.ends_with("\r\n\r\n0123456789"), "{reply}");
    // With keep-alive it goes on.
    let mut client = Http::connect(target.address());
    for _ in 0..3 {
        client
            .send(b"GET /healthz HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
            .unwrap();
        let reply = client.receive("GET").unwrap();
        assert_eq!(
            (reply.status, reply.header("connection")),
            (200, Some("keep-alive"))
        );
    }
    client.send(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(
        client.receive("GET").unwrap().header("connection"),
        Some("close")
    );
    assert!(client.is_closed_within(CLOSED));
    target.assert_well();
    target.assert_nothing_leaked();
}

fn raw_reply(target: &Target, request: &str) -> String {
    let reply = crate::support::raw(target.address(), request.as_bytes());
    String::from_utf8(reply).unwrap()
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut target = Target::start();
    let pipeline: String = (0..50)
        .flat_map(|_| ["/healthz", "/v2/_catalog", "/version", "/v2/"])
        .map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
        .collect();
    let mut client = Http::connect(target.address());
    let mut sender = client.stream().try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || sender.write_all(pipeline.as_bytes()).unwrap());
        for number in 0..50 {
            for text in ["ok\n", "sample/hello", "\"commit\"", "{}"] {
                let reply = client.receive("GET").unwrap();
                assert_eq!(reply.status, 200);
                assert!(reply.text().contains(text), "{number}: {}", reply.text());
            }
        }
    });
    // A close in the middle ends the pipeline there.
    client
        .send(
            b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /version HTTP/1.1\r\nHost: a\r\n\
              Connection: close\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .unwrap();
    assert_eq!(client.receive("GET").unwrap().text(), "ok\n");
    let last = client.receive("GET").unwrap();
    assert_eq!(last.header("connection"), Some("close"));
    assert!(client.is_closed_within(CLOSED));
    target.assert_well();
}

#[test]
fn a_continue_comes_before_the_body() {
    let mut target = Target::start();
    let mut client = TcpStream::connect(target.address()).unwrap();
    client.set_read_timeout(Some(CLOSED)).unwrap();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n",
        upload_target(b"hello")
    );
    client.write_all(head.as_bytes()).unwrap();
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut got = vec![0; interim.len()];
    client.read_exact(&mut got).unwrap();
    assert_eq!(got, interim);
    client.write_all(b"hello").unwrap();
    let mut got = [0; 12];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"HTTP/1.1 201");
    // Where the body is not wanted, the answer itself comes, and no 100.
    let refused = raw_reply(
        &target,
        "POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    );
    assert!(refused.starts_with("HTTP/1.1 405 "), "{refused}");
    assert!(
        target
            .standin
            .blob("sample/new", &digest(b"hello"))
            .is_some()
    );
    target.assert_well();
}

#[test]
fn one_connection_serves_many_requests() {
    let mut target = Target::start();
    let mut client = Http::connect(target.address());
    let manifest = "/v2/sample/hello/manifests/1.0";
    let whole = client.get(manifest);
    let head = client.head(manifest);
    assert_eq!((whole.status, head.status, head.length), (200, 200, 0));
    for name in ["content-length", "docker-content-digest", "content-type"] {
        assert_eq!(head.header(name), whole.header(name), "{name}");
    }
    assert_eq!(client.head("/healthz").header("content-length"), Some("3"));
    assert_eq!(client.get("/nowhere").status, 404);
    let stored = client.request("POST", &upload_target(b"again"), &[], b"again");
    assert_eq!(stored.status, 201);
    let unread = client.request("POST", "/healthz", &[], b"");
    assert_eq!((unread.status, unread.header("connection")), (405, None));
    let sent = target.standin.count(Server::Registry, "POST", "sample/new");
    assert_eq!(sent, 1);
    assert_eq!(client.get("/healthz").text(), "ok\n");
    drop(client);
    wait_until("the connection is let go", CLOSED, || {
        let threads = target.proxy.thread_names();
        !threads.iter().any(|name| name.starts_with("conn-"))
    });
    target.assert_well();
}
