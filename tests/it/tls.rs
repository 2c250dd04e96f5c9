//! TLS towards clients: whole pulls and pushes through it, who is let in, and what hostile and slow
//! clients get.

use std::io::{self, Cursor, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_ecr_proxy::door::{DoorLimits, ServerTls, TlsFiles};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, SupportedProtocolVersion};
use standin::{Fault, Match, Options, Server as Upstream, digest};

use crate::support::door::{Server, ok};
use crate::support::{
    Authority, Cached, Front, Http, Pki, Proxy, SOON, error_of, in_parallel, raw, wait_until,
};

const V12: &SupportedProtocolVersion = &rustls::version::TLS12;
const V13: &SupportedProtocolVersion = &rustls::version::TLS13;
/// The limit a test crosses; long enough for a handshake on a busy machine.
const SHORT: Duration = Duration::from_secs(1);

fn text<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    let pair = |(name, value): &'a (&'static str, String)| (*name, value.as_str());
    settings.iter().map(pair).collect()
}

/// A proxy that speaks TLS, in front of a stand-in.
fn front(settings: &[(&'static str, String)]) -> Front {
    Front::with(Options::default(), &text(settings))
}

fn tls(front: &Front, config: &Arc<ClientConfig>) -> Http {
    Http::connect_tls(front.address(), config).expect("a handshake")
}

#[test]
fn pulls_are_whole_through_both_versions() {
    const SIZE: u64 = 24 << 20;
    let pki = Pki::new();
    let settings = pki.settings();
    let cached = Cached::with(&text(&settings));
    for (version, seed) in [(V12, 1), (V13, 2)] {
        let digest = cached.standin.add_blob_of("team/app", SIZE, seed);
        let target = format!("/v2/team/app/blobs/{digest}");
        let config = pki.authority.client(&[version], None);
        let connect = || Http::connect_tls(cached.address(), &config).unwrap();
        let mut client = connect();
        assert_eq!(client.tls().protocol_version(), Some(version.version));
        assert_eq!(client.tls().alpn_protocol(), Some(&b"http/1.1"[..]));
        for cache in ["MISS", "HIT", "HIT"] {
            let blob = client.get(&target);
            assert_eq!((blob.status, blob.complete), (200, true));
            assert_eq!(blob.digest, digest);
            assert_eq!(blob.header("x-cache"), Some(cache));
            cached.wait_for_blob(&digest);
        }
        let head = client.head(&target);
        let length = SIZE.to_string();
        assert_eq!(head.header("content-length"), Some(length.as_str()));
        let whole = cached.standin.blob("team/app", &digest).unwrap().to_vec();
        for (range, from, to) in [
            ("bytes=0-0", 0, 1),
            ("bytes=70000-200000", 70_000, 200_001),
            ("bytes=-5", whole.len() - 5, whole.len()),
        ] {
            let part = client.request("GET", &target, &[("Range", range)], b"");
            assert_eq!((part.status, part.complete), (206, true));
            assert!(part.body == whole[from..to], "{range}");
        }
        // All of that went over one connection; a request that ends it ends it with a word.
        let last = client.request("GET", "/healthz", &[("Connection", "close")], b"");
        assert_eq!(last.text(), "ok\n");
        assert_eq!(client.read_to_end().unwrap(), b"");
        assert_eq!(connect().get("/readyz").status, 200);
    }
}

#[test]
fn pushes_are_whole_and_addresses_are_https() {
    let pki = Pki::new();
    let front = front(&pki.settings());
    let mut client = tls(&front, &pki.client());
    let bytes: Vec<u8> = (0..9_000_000_u32)
        .map(|n| (n / 251).to_le_bytes()[0])
        .collect();
    let name = digest(&bytes);
    let begun = client.request("POST", "/v2/team/new/blobs/uploads/", &[], b"");
    assert_eq!(begun.status, 202, "{}", begun.text());
    let location = begun.header("location").unwrap();
    let own = format!("https://{}/v2/", front.address());
    assert!(location.starts_with(&own), "{location}");
    let target = crate::support::target_of(location);
    let mut body = Cursor::new(bytes.clone());
    let patched = client.request_chunked("PATCH", target, &[], &mut body);
    let patched = patched.unwrap();
    assert!(matches!(patched.status, 201 | 202), "{}", patched.text());
    let location = patched.header("location").unwrap();
    let target = crate::support::target_of(location);
    let joint = if target.contains('?') { '&' } else { '?' };
    let done = client.request("PUT", &format!("{target}{joint}digest={name}"), &[], b"");
    assert_eq!(done.status, 201, "{}", done.text());
    let stored = front.standin.blob("team/new", &name).unwrap();
    assert!(stored.to_vec() == bytes);
    front.standin.add_tags("team/new", 5);
    let page = client.get("/v2/team/new/tags/list?n=2");
    let link = page.header("link").unwrap();
    assert!(link.starts_with(&format!("<{own}")), "{link}");
}

#[test]
fn sessions_are_resumed() {
    let pki = Pki::new();
    let front = front(&pki.settings());
    for version in [V12, V13] {
        let config = pki.authority.client(&[version], None);
        let mut kinds = Vec::new();
        for _ in 0..3 {
            let mut client = tls(&front, &config);
            assert_eq!(client.get("/healthz").status, 200);
            kinds.push(client.tls().handshake_kind().unwrap());
        }
        let resumed = HandshakeKind::Resumed;
        assert_eq!(kinds, [HandshakeKind::Full, resumed, resumed]);
    }
}

#[test]
fn http_2_alone_is_refused_by_an_alert() {
    let pki = Pki::new();
    let front = front(&pki.settings());
    let mut config = (*pki.client()).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let refused = Http::connect_tls(front.address(), &Arc::new(config));
    let told = refused.err().unwrap().to_string();
    assert!(told.contains("NoApplicationProtocol"), "{told}");
    front.proxy.wait_for_log("INFO TLS handshake failed");
    assert_eq!(tls(&front, &pki.client()).get("/healthz").status, 200);
}

#[test]
fn plain_http_is_told_to_use_https() {
    let pki = Pki::new();
    let front = front(&pki.settings());
    let mut plain = Http::connect(front.address());
    let reply = plain.get("/v2/");
    assert_eq!((reply.status, reply.complete), (400, true));
    let (code, message) = error_of(&reply);
    assert_eq!(code, "BAD_REQUEST");
    assert!(message.contains("this port speaks https"), "{message}");
    assert_eq!(reply.header("connection"), Some("close"));
    plain.half_close();
    assert!(plain.is_closed_within(SOON));
    // Bytes on the way to us do not tear the answer down.
    let upload = "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n";
    let mut bytes = upload.as_bytes().to_vec();
    bytes.resize(bytes.len() + 500_000, b'x');
    let mut client = Http::connect(front.address());
    client.send(&bytes).unwrap();
    assert_eq!(client.receive("POST").unwrap().status, 400);
    // Anything else gets an alert.
    let answer = raw(
        front.address(),
        b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\r\n",
    );
    assert_eq!(answer.first(), Some(&21));
    assert_eq!(front.seen(Upstream::Registry).len(), 0);
    assert_eq!(tls(&front, &pki.client()).get("/healthz").status, 200);
}

#[test]
fn without_a_certificate_there_are_probes_and_with_one_everything() {
    let pki = Pki::new();
    let front = front(&pki.settings_with_clients());
    front.standin.put_image("team/app", "1.0", &[]);
    let manifest = "/v2/team/app/manifests/1.0";
    let upload = "/v2/team/app/blobs/uploads/";
    for version in [V12, V13] {
        let config = pki.authority.client(&[version], None);
        let mut client = tls(&front, &config);
        for probe in ["/healthz", "/version"] {
            assert_eq!(client.get(probe).status, 200);
        }
        wait_until("the proxy is ready", SOON, || {
            client.get("/readyz").status == 200
        });
        let before = front.seen(Upstream::Registry).len();
        for (method, target) in [
            ("GET", "/v2/"),
            ("GET", manifest),
            ("HEAD", manifest),
            ("POST", upload),
            ("GET", "/metrics"),
            ("GET", "/"),
        ] {
            let refused = client.request(method, target, &[], b"");
            assert_eq!(refused.status, 403, "{method} {target}");
            if method != "HEAD" {
                let (code, message) = error_of(&refused);
                assert_eq!(code, "DENIED");
                assert!(message.contains("client certificate"), "{message}");
            }
        }
        assert_eq!(front.seen(Upstream::Registry).len(), before);
        front.proxy.wait_for_log("SSL_CLIENT_CA");
        let good = pki.authority.sign("node.example", 2090);
        let config = pki.authority.client(&[version], Some(&good));
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut client = tls(&front, &config);
            assert_eq!(client.get(manifest).status, 200);
            let begun = client.request("POST", upload, &[], b"");
            assert_eq!(begun.status, 202, "{}", begun.text());
            assert_eq!(client.tls().handshake_kind(), Some(kind));
        }
    }
}

#[test]
fn a_wrong_certificate_is_refused_and_the_log_says_why() {
    let pki = Pki::new();
    let front = front(&pki.settings_with_clients());
    let stranger = Authority::new().sign("node.example", 2090);
    let late = pki.authority.sign("node.example", 2001);
    for version in [V12, V13] {
        for (identity, why) in [(&stranger, "UnknownIssuer"), (&late, "Expired")] {
            let config = pki.authority.client(&[version], Some(identity));
            // In TLS 1.3 the client is done before its certificate is looked at.
            let refused = Http::connect_tls(front.address(), &config)
                .and_then(|mut client| client.try_request("GET", "/healthz", &[], b""));
            let told = refused.unwrap_err().to_string();
            assert!(told.contains("received fatal alert"), "{told}");
            let line = front.proxy.wait_for_log(why);
            assert!(line.contains("WARN client certificate refused"), "{line}");
            assert!(line.contains("peer=127.0.0.1:"), "{line}");
        }
    }
    assert_eq!(front.seen(Upstream::Registry).len(), 0);
}

#[test]
fn health_asks_through_tls_and_needs_no_certificate() {
    let pki = Pki::new();
    for settings in [pki.settings(), pki.settings_with_clients()] {
        let front = front(&settings);
        wait_until("the proxy is ready", SOON, || {
            tls(&front, &pki.client()).get("/readyz").status == 200
        });
        let health = |settings: &[(&'static str, String)]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_aws-ecr-proxy"));
            command.env_clear().envs(settings.iter().cloned());
            command.env("LISTEN_PORT", front.address().port().to_string());
            let output = command.arg("health").output().unwrap();
            let out = String::from_utf8(output.stdout).unwrap();
            (output.status.code(), out)
        };
        let (code, out) = health(&settings);
        assert_eq!(code, Some(0), "{out}");
        assert!(out.starts_with("ready: token of "), "{out}");
        let (code, out) = health(&[]);
        assert_eq!(code, Some(1), "plain HTTP on that port: {out}");
        assert!(out.starts_with("not ready: 400 "), "{out}");
    }
}

#[test]
fn what_is_wrong_with_the_files_ends_the_start_with_64() {
    let pki = Pki::new();
    let fine = pki.settings();
    let empty = pki.write("empty.pem", "");
    let other = pki.write(
        "other.key",
        &Authority::new().sign("x", 2090).key.serialize_pem(),
    );
    let directory = pki.scratch.text();
    for (name, value, why) in [
        (
            "SSL_CERTIFICATE",
            "/nonexistent.pem",
            "cannot be read by user",
        ),
        ("SSL_CERTIFICATE", empty.as_str(), "no certificate in it"),
        ("SSL_KEY", directory, "not a regular file"),
        ("SSL_KEY", empty.as_str(), "no private key in it"),
        ("SSL_KEY", other.as_str(), "not the key of SSL_CERTIFICATE="),
        ("SSL_CLIENT_CA", empty.as_str(), "no certificate in it"),
    ] {
        let mut command = Proxy::command();
        command.envs(fine.iter().cloned()).env(name, value);
        let mut proxy = Proxy::spawn(command);
        assert_eq!(proxy.wait_exit().code(), Some(64), "{name}={value}");
        let log = proxy.log();
        assert!(log.contains(&format!("{name}={value}: ")), "{log}");
        assert!(log.contains(why), "{log}");
    }
    // Names alone, which nothing need be read for.
    let mut command = Proxy::command();
    let mut proxy = Proxy::spawn({
        command.env("ENABLE_SSL", "true");
        command
    });
    assert_eq!(proxy.wait_exit().code(), Some(64));
    assert!(proxy.log().contains("expected SSL_KEY to be set too"));
}

#[test]
fn files_without_enable_ssl_serve_plain_http_and_say_so() {
    let pki = Pki::new();
    let mut settings = pki.settings();
    settings.remove(0);
    let front = front(&settings);
    assert_eq!(front.get("/healthz").status, 200);
    front.proxy.wait_for_log("ENABLE_SSL is not true");
    front.proxy.signal("HUP");
    front.proxy.wait_for_log("nothing to reload");
}

#[test]
fn a_cut_reply_ends_without_close_notify() {
    const SIZE: u64 = 3_000_000;
    let pki = Pki::new();
    let front = front(&pki.settings());
    let digest = front.standin.add_blob_of("team/app", SIZE, 5);
    let target = format!("/v2/team/app/blobs/{digest}");
    for version in [V12, V13] {
        front.standin.fault(Match::s3(), Fault::CutAfter(1_000_000));
        let mut client = tls(&front, &pki.authority.client(&[version], None));
        let cut = client.get(&target);
        assert_eq!((cut.status, cut.complete), (200, false));
        assert!(cut.length < SIZE);
        assert!(
            client.read_to_end().is_err(),
            "it ended as if it were whole"
        );
        front.proxy.wait_for_log("aborted=");
        let whole = tls(&front, &pki.client()).get(&target);
        assert_eq!(
            (whole.complete, whole.digest.as_str()),
            (true, digest.as_str())
        );
    }
}

#[test]
fn a_growing_blob_that_is_cut_ends_without_close_notify() {
    const SIZE: u64 = 3_000_000;
    let pki = Pki::new();
    let settings = pki.settings();
    let cached = Cached::with(&text(&settings));
    let digest = cached.standin.add_blob_of("team/app", SIZE, 6);
    // Wrong to the last byte: it is cut there, and nobody may take it for whole.
    cached
        .standin
        .fault(Match::s3().always(), Fault::WrongBytes);
    let mut client = Http::connect_tls(cached.address(), &pki.client()).unwrap();
    let cut = client.get(&format!("/v2/team/app/blobs/{digest}"));
    assert!(!cut.complete && cut.length < SIZE, "{:?}", cut.length);
    assert!(
        client.read_to_end().is_err(),
        "it ended as if it were whole"
    );
}

#[test]
fn the_half_closed_are_answered() {
    let pki = Pki::new();
    let front = front(&pki.settings());
    let digest = front.standin.add_blob_of("team/app", 2_000_000, 7);
    let target = format!("/v2/team/app/blobs/{digest}");
    for version in [V12, V13] {
        let config = pki.authority.client(&[version], None);
        // With the word for it, and without.
        for polite in [true, false] {
            let mut client = tls(&front, &config);
            client.send_head("GET", &target, &[]).unwrap();
            if polite {
                client.close_notify();
            }
            client.half_close();
            let blob = client.receive("GET").unwrap();
            assert_eq!(
                (blob.complete, blob.digest.as_str()),
                (true, digest.as_str())
            );
            assert_eq!(client.read_to_end().unwrap(), b"");
        }
    }
}

#[test]
fn http_1_0_ends_with_close_notify() {
    let pki = Pki::new();
    let front = front(&pki.settings());
    let mut client = tls(&front, &pki.client());
    client.send(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    let reply = String::from_utf8(client.read_to_end().unwrap()).unwrap();
    assert!(reply.ends_with("\r\n\r\nok\n"), "{reply}");
}

#[test]
fn an_early_refusal_of_a_large_upload_is_read() {
    let pki = Pki::new();
    let front = front(&pki.settings_with_clients());
    for version in [V12, V13] {
        let mut client = tls(&front, &pki.authority.client(&[version], None));
        let length = [("Content-Length", "5000000000")];
        let target = "/v2/team/app/blobs/uploads/";
        client.send_head("POST", target, &length).unwrap();
        // More than socket buffers hold; the proxy may stop reading at any time.
        for _ in 0..64 {
            if client.send(&[b'x'; 64 * 1024]).is_err() {
                break;
            }
        }
        let refused = client.receive("POST").unwrap();
        assert_eq!((refused.status, refused.complete), (403, true));
        assert_eq!(refused.header("connection"), Some("close"));
    }
}

#[test]
fn garbage_within_a_session_ends_it() {
    let pki = Pki::new();
    let front = front(&pki.settings());
    let mut client = tls(&front, &pki.client());
    let mut stream = client.stream();
    stream.write_all(&[23, 3, 3, 0, 32]).unwrap();
    stream.write_all(&[7; 32]).unwrap();
    let told = client.read_to_end().unwrap_err().to_string();
    assert!(told.contains("BadRecordMac"), "{told}");
    // A request after it was refused within TLS is answered within TLS.
    let mut client = tls(&front, &pki.client());
    client.send(b"GET / HTTP/1.1\n\n").unwrap();
    assert_eq!(client.receive("GET").unwrap().status, 400);
    assert_eq!(client.read_to_end().unwrap(), b"");
}

#[test]
fn handshakes_in_progress_make_room_for_others() {
    let pki = Pki::new();
    let mut settings = pki.settings();
    settings.push(("MAX_CONNECTIONS", "4".to_owned()));
    let front = front(&settings);
    let config = pki.client();
    let mut silent: Vec<TcpStream> = Vec::new();
    for _ in 0..12 {
        silent.push(TcpStream::connect(front.address()).unwrap());
        let mut begun = TcpStream::connect(front.address()).unwrap();
        // It may have had to make room already.
        let _ = begun.write_all(&hello(&config)[..20]);
        silent.push(begun);
        assert_eq!(tls(&front, &config).get("/healthz").status, 200);
    }
}

/// The first flight of a client.
fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let mut client = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// A door of this process with so much time for handshakes.
fn door(pki: &Pki, handshake: Duration) -> Server {
    let files = TlsFiles {
        certificate: pki.path("tls.crt"),
        key: pki.path("tls.key"),
        client_ca: None,
    };
    let tls = ServerTls::load(files).unwrap();
    let limits = DoorLimits {
        handshake,
        ..DoorLimits::new(400)
    };
    Server::start_with(Vec::new(), limits, Some(Arc::new(tls)), ok)
}

fn ends_within(mut stream: &TcpStream, limit: Duration) -> bool {
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut sink = [0; 4096];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn a_handshake_that_is_never_finished_is_cut() {
    let pki = Pki::new();
    let server = door(&pki, SHORT);
    let config = pki.client();
    let hello = hello(&config);
    let mut served = Http::connect_tls(server.address(), &config).unwrap();
    let parts = [0, 1, 5, 100, hello.len()];
    in_parallel(parts.len(), |number| {
        let (part, begun) = (parts[number], Instant::now());
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(&hello[..part]).unwrap();
        assert!(ends_within(&stream, SOON), "{part} bytes of a hello");
        assert!(begun.elapsed() >= SHORT);
    });
    // Past the handshake its limit is over.
    assert_eq!(served.get("/").status, 200);
    drop(served);
    // Byte by byte, each in time.
    let mut stream = TcpStream::connect(server.address()).unwrap();
    let begun = Instant::now();
    let mut bytes = hello.iter();
    while begun.elapsed() < SOON {
        let Some(byte) = bytes.next() else { break };
        if stream.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(SHORT / 20);
    }
    assert!(begun.elapsed() < SOON, "a slow hello is waited for");
    wait_until("the connections are let go", SOON, || {
        server.door().connections() == 0
    });
    server.assert_whole();
}

#[test]
fn silent_clients_cost_others_nothing() {
    let pki = Pki::new();
    let server = door(&pki, SHORT * 5);
    let config = pki.client();
    in_parallel(40, |number| {
        let silent = TcpStream::connect(server.address()).unwrap();
        let begun = Instant::now();
        let mut client = Http::connect_tls(server.address(), &config).unwrap();
        assert_eq!(client.get("/").status, 200, "client {number}");
        // The silent one has its own time; nobody waited for it to be over.
        let took = begun.elapsed();
        assert!(took < SHORT * 5, "{took:?}");
        let _ = silent.shutdown(Shutdown::Write);
        assert!(ends_within(&silent, SOON));
    });
    wait_until("the connections are let go", SOON, || {
        server.door().connections() == 0
    });
    server.assert_whole();
}

#[test]
fn a_drain_lets_transfers_end_and_says_goodbye_to_the_idle() {
    const SIZE: u64 = 1_000_000;
    let pki = Pki::new();
    let mut front = front(&pki.settings());
    let digest = front.standin.add_blob_of("team/app", SIZE, 8);
    front.standin.fault(Match::s3(), Fault::StallAfter(1000));
    let config = pki.client();
    let mut busy = tls(&front, &config);
    let target = format!("/v2/team/app/blobs/{digest}");
    busy.send_head("GET", &target, &[]).unwrap();
    wait_until("the transfer has stalled", SOON, || {
        front.standin.stalled() > 0
    });
    let mut idle = tls(&front, &config);
    assert_eq!(idle.get("/healthz").status, 200);
    let mut shaking = TcpStream::connect(front.address()).unwrap();
    shaking.write_all(&hello(&config)[..50]).unwrap();
    front.proxy.term();
    front.proxy.wait_for_log("draining");
    assert_eq!(idle.read_to_end().unwrap(), b"", "without close_notify");
    assert!(ends_within(&shaking, SOON), "a handshake is waited for");
    front.standin.release();
    let reply = busy.receive("GET").unwrap();
    assert_eq!(
        (reply.complete, reply.digest.as_str()),
        (true, digest.as_str())
    );
    assert_eq!(front.proxy.wait_exit().code(), Some(0));
    front.proxy.wait_for_log("stopped connections_cut=0");
}

#[test]
fn nothing_of_the_key_is_logged() {
    let pki = Pki::new();
    let mut front = front(&pki.settings());
    assert_eq!(tls(&front, &pki.client()).get("/v2/").status, 200);
    front.proxy.signal("HUP");
    front.proxy.wait_for_log("reloaded");
    let key = std::fs::read_to_string(pki.path("tls.key")).unwrap();
    front.proxy.term();
    front.proxy.wait_exit();
    let log = front.proxy.log();
    for line in key.lines().filter(|line| !line.starts_with("-----")) {
        assert!(!log.contains(line));
    }
    assert!(log.contains("not_after=2090-01-01T"), "{log}");
}
