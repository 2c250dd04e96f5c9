//! Heads that nobody should send, over raw sockets: each gets its status, an OCI error document and
//! a closed connection, and the process goes on. Bodies are in `framing`, crowds in `crowds`.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::support::{Http, Response, Target, in_parallel};

/// For a connection that is to be closed after its answer.
const CLOSED: Duration = Duration::from_secs(30);
/// A TLS 1.2 record that opens a handshake, as a client that takes the port for HTTPS sends it.
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\x00\x01\x02\x03\x04";

/// Sends `bytes` and expects to be refused with `status`.
pub(crate) fn assert_refused(target: &Target, what: &str, bytes: &[u8], status: u16) {
    let mut client = Http::connect(target.address());
    // The proxy may have answered and closed before it has read all.
    let _ = client.send(bytes);
    let reply = client.receive("GET");
    let reply = reply.unwrap_or_else(|error| panic!("{what}: no answer: {error}"));
    assert_is_refusal(what, &reply, status);
    client.half_close();
    assert!(client.is_closed_within(CLOSED), "{what}: stays open");
}

/// Expects the refusal of `status`, with its document.
pub(crate) fn assert_is_refusal(what: &str, reply: &Response, status: u16) {
    assert_eq!(reply.status, status, "{what}: {}", reply.text());
    assert!(reply.complete, "{what}: {:?}", reply.fault);
    assert_eq!(reply.header("connection"), Some("close"), "{what}");
    let media_type = reply.header("content-type");
    assert_eq!(media_type, Some("application/json"), "{what}");
    let length = reply.header("content-length").map(str::to_owned);
    assert_eq!(length, Some(reply.length.to_string()), "{what}");
    let document: serde_json::Value = serde_json::from_slice(&reply.body)
        .unwrap_or_else(|error| panic!("{what}: {error}: {}", reply.text()));
    let error = &document["errors"][0];
    for field in ["code", "message"] {
        let text = error[field].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "{what}: no {field} in {document}");
    }
}

/// Sends each row's bytes to one proxy, and expects the row's status.
fn assert_all_refused(rows: &[(&str, u16)]) {
    let mut target = Target::start();
    in_parallel(8, |thread| {
        for (bytes, status) in rows.iter().skip(thread).step_by(8) {
            assert_refused(&target, &format!("{bytes:?}"), bytes.as_bytes(), *status);
        }
    });
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn bad_request_lines_are_refused() {
    assert_all_refused(&[
        ("\r\nGET\r\n\r\n", 400),
        ("hello\r\n\r\n", 400),
        ("GET /\r\n", 400),
        ("GET /healthz HTTP/0.9\r\nHost: a\r\n\r\n", 505),
        ("GET /healthz HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("GET /healthz HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        ("GET /healthz HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        ("GET /healthz HTTP/1.10\r\nHost: a\r\n\r\n", 400),
        ("GET /healthz HTTP/1,1\r\nHost: a\r\n\r\n", 400),
        ("GET /healthz http/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /healthz ICY/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /healthz\r\nHost: a\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("GET  /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET\t/healthz\tHTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        ("GET /heal thz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (" GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("G@T /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /healthz#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET registry:5000 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT registry:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET v2/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET ftp://a/v2/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http:///v2/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://u:p@a/v2/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://a:99999/v2/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ]);
}

#[test]
fn bad_hosts_are_refused() {
    assert_all_refused(&[
        ("GET /healthz HTTP/1.1\r\n\r\n", 400),
        ("GET http://a/healthz HTTP/1.1\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400),
        ("GET /healthz HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: <a>\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    ]);
}

#[test]
fn bad_lengths_and_codings_are_refused() {
    let post = |fields: &str, version: &str| {
        format!(
            "POST /v2/sample/new/blobs/uploads/ HTTP/{version}\r\nHost: a\r\n{fields}\r\n\r\nhello"
        )
    };
    let rows: Vec<(String, u16)> = [
        ("Content-Length: ", 400),
        ("Content-Length: x", 400),
        ("Content-Length: +5", 400),
        ("Content-Length: -5", 400),
        ("Content-Length: 0x5", 400),
        ("Content-Length: 5.0", 400),
        ("Content-Length: 5 5", 400),
        ("Content-Length: 5, 5", 400),
        ("Content-Length: 5;", 400),
        ("Content-Length: \"5\"", 400),
        ("Content-Length: 18446744073709551616", 400),
        (
            "Content-Length: 99999999999999999999999999999999999999999",
            400,
        ),
        ("Content-Length: 5\r\nContent-Length: 5", 400),
        ("Content-Length: 5\r\ncontent-length: 6", 400),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
        ("Transfer-Encoding: identity\r\nContent-Length: 5", 400),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            400,
        ),
        ("Transfer-Encoding: chunked, chunked", 400),
        ("Transfer-Encoding: ", 400),
        ("Transfer-Encoding : chunked", 400),
        ("Transfer-Encoding: gzip", 501),
        ("Transfer-Encoding: identity", 501),
        ("Transfer-Encoding: xchunked", 501),
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Expect: 200-ok\r\nContent-Length: 5", 417),
        ("Expect: 100-continue, x\r\nContent-Length: 5", 417),
        ("Expect: \r\nContent-Length: 5", 417),
    ]
    .map(|(fields, status)| (post(fields, "1.1"), status))
    .into_iter()
    .chain([(post("Transfer-Encoding: chunked", "1.0"), 400)])
    .collect();
    let rows: Vec<(&str, u16)> = rows.iter().map(|(text, code)| (&**text, *code)).collect();
    assert_all_refused(&rows);
}

#[test]
fn bytes_that_no_head_has_are_refused() {
    assert_all_refused(&[
        ("GET /healthz HTTP/1.1\nHost: a\n\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\n\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\r\n\r\n", 400),
        (
            "GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\r\n folded\r\n\r\n",
            400,
        ),
        (
            "GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\r\n\tfolded\r\n\r\n",
            400,
        ),
        ("GET /healthz HTTP/1.1\r\n Host: a\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
        ("GET /heal\0thz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("\0\0\0\0", 400),
        (
            "GET /healthz HTTP/1.1\r\nHost: a\r\nX: \x1b[1m\r\n\r\n",
            400,
        ),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nX: é\r\n\r\n", 400),
        ("GET /healthzé HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHöst: a\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nX(: b\r\n\r\n", 400),
    ]);
}

#[test]
fn what_is_not_http_is_refused() {
    let mut target = Target::start();
    // It is refused in its own words, by an alert (RFC 8446 §6), so that it says what is wrong.
    let mut stream = TcpStream::connect(target.address()).unwrap();
    stream.set_read_timeout(Some(CLOSED)).unwrap();
    stream.write_all(CLIENT_HELLO).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    assert_eq!(said.first(), Some(&0x15), "{said:?}");
    assert_refused(&target, "an SSH client", b"SSH-2.0-OpenSSH_9.2p1\r\n", 400);
    assert_refused(&target, "every byte", &(0..=255).collect::<Vec<u8>>(), 400);
    let beyond_ascii = b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: \xff\xfe\r\n\r\n";
    assert_refused(&target, "bytes beyond UTF-8", beyond_ascii, 400);
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn oversized_heads_are_refused() {
    let mut target = Target::start();
    let long = "x".repeat(40 * 1024);
    let fields = |count: usize| {
        let fields: Vec<String> = (1..count).map(|n| format!("X-{n}: y\r\n")).collect();
        let fields = fields.concat();
        format!("GET /healthz HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
    };
    for (what, text, status) in [
        (
            "a long target",
            format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"),
            414,
        ),
        (
            "a long method",
            format!("{long} / HTTP/1.1\r\nHost: a\r\n\r\n"),
            414,
        ),
        ("a line without end", long.repeat(20), 414),
        (
            "a long field",
            format!("GET /healthz HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"),
            431,
        ),
        (
            "a long name",
            format!("GET /healthz HTTP/1.1\r\nHost: a\r\n{long}: x\r\n\r\n"),
            431,
        ),
        (
            "a head of many megabytes",
            format!(
                "GET /healthz HTTP/1.1\r\nHost: a\r\n{}",
                "X: y\r\n".repeat(1 << 20)
            ),
            431,
        ),
        ("101 fields", fields(101), 431),
        ("5000 fields", fields(5000), 431),
    ] {
        assert_refused(&target, what, text.as_bytes(), status);
    }
    // The limits themselves are within the limits.
    let mut client = Http::connect(target.address());
    client.send(fields(100).as_bytes()).unwrap();
    assert_eq!(client.receive("GET").unwrap().status, 200);
    let start = "GET /healthz HTTP/1.1\r\nHost: a\r\nX: ";
    let filling = "x".repeat(32 * 1024 - start.len() - 4);
    client
        .send(format!("{start}{filling}\r\n\r\n").as_bytes())
        .unwrap();
    assert_eq!(client.receive("GET").unwrap().status, 200);
    drop(client);
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn odd_heads_that_are_allowed_do_no_harm() {
    let mut target = Target::start();
    let mut client = Http::connect(target.address());
    for (method, text, status) in [
        (
            "GET",
            "\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
            200,
        ),
        (
            "GET",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nX:\r\nY: \t \r\n\r\n",
            200,
        ),
        (
            "GET",
            "GET /healthz?a=/../%00%0d%0a&b=<>\"{}|\\^` HTTP/1.1\r\nhOsT: a\r\n\r\n",
            200,
        ),
        (
            "GET",
            "GET /healthz HTTP/1.1\r\nHost: [::1]:80\r\nX-Door: 1\r\nx-door: probe\r\n\r\n",
            200,
        ),
        (
            "GET",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\
                 Connection: Upgrade, HTTP2-Settings, Host, X-Door\r\n\r\n",
            200,
        ),
        (
            "GET",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            200,
        ),
        (
            "GET",
            "!#$%&'*+-.^_`|~ /healthz HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~9aZ: x\r\n\r\n",
            405,
        ),
        ("GET", "get /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("GET", "CONNECT /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("GET", "GET // HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        ("GET", "GET /%2e%2e/v2/ HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        (
            "HEAD",
            "HEAD /healthz HTTP/1.1\r\nHost: a\r\nContent-Type: text/html; charset=\"x\"\r\n\r\n",
            200,
        ),
    ] {
        client.send(text.as_bytes()).unwrap();
        let reply = client.receive(method);
        let reply = reply.unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(reply.status, status, "{text:?}: {}", reply.text());
        assert_eq!(reply.header("connection"), None, "{text:?}");
    }
    drop(client);
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn odd_paths_below_v2_never_leave_the_proxy() {
    let mut target = Target::start();
    // The last that AWS is asked for.
    target.proxy.wait_for_log("identity arn");
    let before = target.standin.requests().len();
    let mut client = Http::connect(target.address());
    for path in [
        "/v2/../secret",
        "/v2/a/../../secret/tags/list",
        "/v2/%2e%2e/secret/tags/list",
        "/v2/a%0d%0aX:y/tags/list",
        "/v2//secret/tags/list",
        "/v2/a/manifests/../secret",
        "/v2/a/blobs/sha256:zz",
        "/v2/A/tags/list",
        "/v2/@secret:80/tags/list",
        "/v2/a/b",
    ] {
        let reply = client.get(path);
        assert!(
            (400..500).contains(&reply.status),
            "{path}: {}",
            reply.status
        );
        let media_type = reply.header("content-type");
        assert_eq!(media_type, Some("application/json"), "{path}");
    }
    assert_eq!(target.standin.requests().len(), before);
    drop(client);
    target.assert_well();
}
