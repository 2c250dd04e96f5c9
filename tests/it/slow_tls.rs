//! TLS together with the limits for slow and greedy clients, and with other kinds of sockets: unix
//! sockets, and sockets that systemd hands in.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_ecr_proxy::door::{DoorLimits, Listener, MinRate, ServerTls, TlsFiles};
use aws_ecr_proxy::message::{Answer, Request};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use standin::{Options, Standin};

use crate::slow::{
    PAUSE, WINDOW, assert_gone, connect, endless, limits, megabyte, pause, read_body, read_slowly,
};
use crate::sockets::{folder, health_with, on_unix, start, with_sockets};
use crate::support::door::Server;
use crate::support::{Http, Pki, Proxy, SOON, wait_until};

/// The largest TLS record (RFC 8446 §5.1).
const RECORD_BYTES: usize = 16 * 1024;

fn door(
    pki: &Pki,
    others: Vec<Listener>,
    limits: DoorLimits,
    decide: impl Fn(&Request) -> Answer + Send + Sync + 'static,
) -> Server {
    let files = TlsFiles {
        certificate: pki.path("tls.crt"),
        key: pki.path("tls.key"),
        client_ca: None,
    };
    let tls = ServerTls::load(files).unwrap();
    Server::start_with(others, limits, Some(Arc::new(tls)), decide)
}

fn session(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    ClientConnection::new(Arc::clone(config), name).unwrap()
}

/// A client with a receive buffer of the smallest kind.
fn reader(to: SocketAddr, config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    StreamOwned::new(session(config), connect(to, Ipv4Addr::LOCALHOST, true))
}

#[test]
fn a_client_that_takes_a_reply_too_slowly_is_cut() {
    let (_scratch, file) = megabyte();
    let pki = Pki::new();
    let server = door(&pki, Vec::new(), limits(), endless(&file));
    for path in ["/file", "/stream"] {
        let mut client = reader(server.address(), &pki.client());
        let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        client.write_all(head.as_bytes()).unwrap();
        // 1 KB/s. That it is cut shows to the client when the record that it has is read, and that
        // takes longer than all this.
        wait_until("it is cut", SOON, || {
            let _ = client.read(&mut [0; 20]);
            pause();
            server.door().connections() == 0
        });
        server.assert_whole();
    }
}

#[test]
fn a_client_that_takes_a_reply_fast_enough_is_served_on() {
    let (_scratch, file) = megabyte();
    let pki = Pki::new();
    let server = door(&pki, Vec::new(), limits(), endless(&file));
    for path in ["/file", "/stream"] {
        let mut client = reader(server.address(), &pki.client());
        let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        client.write_all(head.as_bytes()).unwrap();
        let cut = read_slowly(&mut client, 4000, WINDOW * 5);
        assert_eq!(cut, None, "{path}");
        assert_eq!(server.door().connections(), 1);
        drop(client);
        assert_gone(&server);
    }
}

#[test]
fn a_body_slower_than_the_least_rate_is_408() {
    let pki = Pki::new();
    let server = door(&pki, Vec::new(), limits(), read_body);
    let mut client = Http::connect_tls(server.address(), &pki.client()).unwrap();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n";
    client.send(head).unwrap();
    // 3 KB/s with all that TLS adds.
    for _ in 0..100 {
        if client.send(&[b'x'; 40]).is_err() {
            break;
        }
        pause();
    }
    let reply = client.receive("POST").unwrap();
    assert_eq!(reply.status, 408);
    let why = "request body slower than 16384 bytes/s over 0.6 s (MIN_RATE)";
    assert!(reply.text().contains(why), "{}", reply.text());
    client.half_close();
    assert!(client.is_closed_within(SOON));
    assert_gone(&server);
}

/// A record can be decrypted only when it is whole, and a window or two may pass meanwhile.
#[test]
fn a_record_that_takes_longer_than_the_window_counts_as_it_comes() {
    const BODY: usize = 2 * RECORD_BYTES;
    // A record takes three windows at the least, at 9 KB/s at the most.
    const STEPS: u32 = 90;
    assert!(PAUSE * STEPS >= WINDOW * 3);
    let pki = Pki::new();
    let limits = DoorLimits {
        // The idle limit, too, goes by the wire.
        body_idle: WINDOW * 2,
        min_rate: MinRate {
            bytes_per_second: 1024,
            window: WINDOW,
        },
        ..limits()
    };
    let server = door(&pki, Vec::new(), limits, read_body);
    let mut tls = session(&pki.client());
    let mut stream = connect(server.address(), Ipv4Addr::LOCALHOST, false);
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).unwrap();
    }
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY}\r\n\r\n");
    tls.writer().write_all(head.as_bytes()).unwrap();
    tls.complete_io(&mut stream).unwrap();
    tls.writer().write_all(&[b'x'; BODY]).unwrap();
    let mut wire = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut wire).unwrap();
    }
    for part in wire.chunks(RECORD_BYTES / STEPS as usize) {
        stream.write_all(part).unwrap();
        pause();
    }
    let mut reply = String::new();
    let mut client = StreamOwned::new(tls, stream);
    while !reply.ends_with(&BODY.to_string()) {
        let mut piece = [0; 1024];
        let count = client.read(&mut piece).unwrap();
        assert_ne!(count, 0, "{reply}");
        reply.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    drop(client);
    assert_gone(&server);
}

#[test]
fn a_client_past_its_cap_is_refused_by_an_alert() {
    let pki = Pki::new();
    let limits = DoorLimits {
        connections_per_peer: 2,
        ..DoorLimits::new(10)
    };
    let reading = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reading);
    let server = door(&pki, Vec::new(), limits, move |request| {
        count.fetch_add(1, Ordering::SeqCst);
        read_body(request)
    });
    let config = pki.client();
    let held: Vec<Http> = (0..2)
        .map(|_| {
            let mut client = Http::connect_tls(server.address(), &config).unwrap();
            let length = [("Content-Length", "5")];
            client.send_head("POST", "/", &length).unwrap();
            client
        })
        .collect();
    wait_until("both are busy", SOON, || {
        reading.load(Ordering::SeqCst) == 2
    });
    let refused = Http::connect_tls(server.address(), &config);
    let told = refused.err().unwrap().to_string();
    assert!(told.contains("InternalError"), "{told}");
    for mut client in held {
        client.send(b"hello").unwrap();
        assert_eq!(client.receive("POST").unwrap().text(), "5");
    }
    assert_gone(&server);
}

/// One request through TLS on a unix socket; the whole of the reply.
fn ask(path: &Path, config: &Arc<ClientConfig>, target: &str) -> String {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut client = StreamOwned::new(session(config), stream);
    let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    client.write_all(head.as_bytes()).unwrap();
    let mut reply = String::new();
    client.read_to_string(&mut reply).unwrap();
    reply
}

#[test]
fn a_unix_socket_speaks_tls_and_health_does_too() {
    let standin = Standin::start(Options::default());
    standin.put_image("sample/hello", "1.0", &[]);
    let (_scratch, path) = folder();
    let pki = Pki::new();
    let mut command = on_unix(&standin, &path);
    command.envs(pki.settings());
    let proxy = start(command);
    let config = pki.client();
    wait_until("it is ready", SOON, || {
        ask(&path, &config, "/readyz").starts_with("HTTP/1.1 200 OK\r\n")
    });
    let catalog = ask(&path, &config, "/v2/_catalog");
    assert!(catalog.contains("sample/hello"), "{catalog}");
    let host = format!("unix:{}", path.display());
    let (code, out) = health_with(&host, &pki.settings());
    assert_eq!((code, out.starts_with("ready: ")), (Some(0), true), "{out}");
    // Without TLS it is told that there is some.
    let (code, out) = health_with(&host, &[]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("not ready: 400"), "{out}");
    drop(proxy);
}

#[test]
fn sockets_that_are_handed_in_speak_tls() {
    let standin = Standin::start(Options::default());
    standin.put_image("sample/hello", "1.0", &[]);
    let (_scratch, path) = folder();
    let pki = Pki::new();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let unix = UnixListener::bind(&path).unwrap();
    let given = (OwnedFd::from(tcp), Some(OwnedFd::from(unix)));
    let mut command = with_sockets(&standin, given, "LISTEN_PID=$$ LISTEN_FDS=2");
    command.envs(pki.settings());
    let proxy = Proxy::spawn_on(command);
    let line = proxy.wait_for_log(&format!("listening on {address}"));
    assert!(line.contains("tls=true"), "{line}");
    proxy.wait_for_log(&format!("listening on unix:{}", path.display()));
    let config = pki.client();
    let mut client = Http::connect_tls(address, &config).unwrap();
    assert_eq!(client.get("/v2/_catalog").status, 200);
    let catalog = ask(&path, &config, "/v2/_catalog");
    assert!(catalog.contains("sample/hello"), "{catalog}");
}

/// What everybody may do is warned of where there can be an everybody.
#[test]
fn only_addresses_that_others_reach_are_warned_of() {
    const WARNING: &str = "everybody who reaches this address";
    let standin = Standin::start(Options::default());
    let (_scratch, path) = folder();
    let mut proxy = start(on_unix(&standin, &path));
    proxy.term();
    proxy.wait_exit();
    assert!(!proxy.log().contains(WARNING), "{}", proxy.log());
    // What LISTEN_HOST says is not what is bound.
    for (address, warned) in [("127.0.0.1:0", false), ("0.0.0.0:0", true)] {
        let unix = OwnedFd::from(UnixListener::bind(&path).unwrap());
        let tcp = OwnedFd::from(TcpListener::bind(address).unwrap());
        let given = (tcp, Some(unix));
        let mut command = with_sockets(&standin, given, "LISTEN_PID=$$ LISTEN_FDS=2");
        let other = if warned { "127.0.0.1" } else { "0.0.0.0" };
        command.env("LISTEN_HOST", other);
        let mut proxy = Proxy::spawn_on(command);
        proxy.wait_for_log("listening on unix:");
        proxy.term();
        proxy.wait_exit();
        let warnings = proxy.log().matches(WARNING).count();
        assert_eq!(warnings, usize::from(warned), "{}", proxy.log());
        std::fs::remove_file(&path).unwrap();
    }
}
