//! Where clients come in: unix sockets, and sockets that systemd hands in.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use standin::{Options, Standin};

use crate::support::{Http, Proxy, Scratch, wait_until};

/// For what is to happen soon.
const SOON: Duration = Duration::from_secs(30);

/// A folder for a socket.
pub(crate) fn folder() -> (Scratch, PathBuf) {
    let scratch = Scratch::new();
    std::fs::create_dir_all(scratch.path()).unwrap();
    let path = scratch.path().join("socket");
    (scratch, path)
}

/// One request; the whole of the reply.
fn ask(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let head = format!("{request} HTTP/1.1\r\nHost: registry.local\r\nConnection: close\r\n");
    stream
        .write_all(format!("{head}Content-Length: 0\r\n\r\n").as_bytes())
        .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

pub(crate) fn on_unix(standin: &Standin, path: &Path) -> Command {
    let mut command = Proxy::command();
    command
        .envs(standin.settings())
        .env("LISTEN_HOST", format!("unix:{}", path.display()));
    command
}

pub(crate) fn start(command: Command) -> Proxy {
    let proxy = Proxy::spawn(command);
    proxy.wait_for_log("listening on unix:");
    proxy
}

fn health(host: &str) -> (Option<i32>, String) {
    health_with(host, &[])
}

pub(crate) fn health_with(
    host: &str,
    settings: &[(&'static str, String)],
) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aws-ecr-proxy"));
    command.env_clear().arg("health").env("LISTEN_HOST", host);
    command.envs(settings.iter().map(|(name, value)| (name, value)));
    let output = command.output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), out)
}

#[test]
fn a_unix_socket_serves_and_goes() {
    let standin = Standin::start(Options::default());
    standin.put_image("sample/hello", "1.0", &[]);
    let (_scratch, path) = folder();
    let mut proxy = start(on_unix(&standin, &path));
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
    wait_until("it is ready", SOON, || {
        ask(&path, "GET /readyz").starts_with("HTTP/1.1 200 OK\r\n")
    });
    let catalog = ask(&path, "GET /v2/_catalog");
    assert!(catalog.contains("sample/hello"), "{catalog}");
    // There is no port, so what the client calls the host is all there is.
    let begun = ask(&path, "POST /v2/sample/new/blobs/uploads/");
    let begun = begun.replacen("Location", "location", 1);
    assert!(
        begun.contains("\r\nlocation: http://registry.local/v2/sample/new/blobs/uploads/"),
        "{begun}"
    );
    let log = proxy.wait_for_log("path=/v2/_catalog");
    assert!(log.contains("peer=unix"), "{log}");
    let host = format!("unix:{}", path.display());
    let (code, out) = health(&host);
    assert_eq!((code, out.starts_with("ready: ")), (Some(0), true), "{out}");
    // No address is bound beside it.
    assert!(!proxy.log().contains("listening on 127"), "{}", proxy.log());
    proxy.term();
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(!path.exists());
    let (code, out) = health(&host);
    assert_eq!(code, Some(1));
    let why = format!("health: no answer from {host}: No such file");
    assert!(out.starts_with(&why), "{out}");
}

#[test]
fn a_name_stands_for_all_its_addresses() {
    let mut command = Proxy::command();
    command.envs(Standin::start(Options::default()).settings());
    command.env("LISTEN_HOST", "localhost");
    let proxy = Proxy::start_command(command);
    let port = proxy.address().port();
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    assert_eq!(Http::connect(at).get("/healthz").status, 200);
    if let Ok(stream) = TcpStream::connect((Ipv6Addr::LOCALHOST, port)) {
        assert_eq!(Http::on(stream).get("/healthz").status, 200);
    }
    let port = ("LISTEN_PORT", port.to_string());
    let (_, said) = health_with("localhost", &[port]);
    assert!(!said.contains("no answer"), "{said}");
    let mut command = Proxy::command();
    command.env("LISTEN_HOST", "no-such-host.invalid");
    let mut proxy = Proxy::spawn(command);
    assert_eq!(proxy.wait_exit().code(), Some(1));
    for why in ["cannot look up no-such-host.invalid: ", "set LISTEN_HOST"] {
        assert!(proxy.log().contains(why), "{}", proxy.log());
    }
}

#[test]
fn a_socket_left_by_a_killed_proxy_is_replaced_and_one_in_use_is_not() {
    let standin = Standin::start(Options::default());
    let (_scratch, path) = folder();
    // Dropping it kills it.
    drop(start(on_unix(&standin, &path)));
    assert!(path.exists());
    let mut proxy = start(on_unix(&standin, &path));
    let mut second = Proxy::spawn(on_unix(&standin, &path));
    assert_eq!(second.wait_exit().code(), Some(1));
    let log = second.log();
    assert!(log.contains("another process listens there"), "{log}");
    assert!(ask(&path, "GET /healthz").starts_with("HTTP/1.1 200 OK\r\n"));
    // A second signal ends it at once, and leaves no file either.
    let mut stalled = UnixStream::connect(&path).unwrap();
    let head = b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n";
    stalled.write_all(head).unwrap();
    wait_until("the upload is busy", SOON, || {
        proxy
            .thread_names()
            .iter()
            .any(|name| name.starts_with("conn-"))
    });
    proxy.term();
    proxy.wait_for_log("draining");
    proxy.term();
    proxy.wait_exit();
    assert!(!path.exists());
}

#[test]
fn what_is_no_socket_is_not_removed() {
    let standin = Standin::start(Options::default());
    let (_scratch, path) = folder();
    std::fs::write(&path, "precious").unwrap();
    let mut proxy = Proxy::spawn(on_unix(&standin, &path));
    assert_eq!(proxy.wait_exit().code(), Some(1));
    let log = proxy.log();
    assert!(log.contains("no socket is there already"), "{log}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

// === sockets handed in ===

/// The proxy as systemd starts it: `first` is descriptor 3, `second` is 4. They come as standard
/// input and output, since those are what a child can be given.
pub(crate) fn with_sockets(
    standin: &Standin,
    (first, second): (OwnedFd, Option<OwnedFd>),
    variables: &str,
) -> Command {
    let rearrange = "exec 3<&0 4>&1 </dev/null >/dev/null;";
    let mut command = Proxy::command_after(&format!("{rearrange} export {variables};"));
    let second = second.map_or_else(Stdio::null, Stdio::from);
    command
        .envs(standin.settings())
        .stdin(Stdio::from(first))
        .stdout(second);
    command
}

#[test]
fn sockets_that_are_handed_in_are_served_and_outlive_us() {
    let standin = Standin::start(Options::default());
    standin.put_image("sample/hello", "1.0", &[]);
    let (_scratch, path) = folder();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = UnixListener::bind(&path).unwrap();
    let address = tcp.local_addr().unwrap();
    let given = (
        OwnedFd::from(tcp.try_clone().unwrap()),
        Some(OwnedFd::from(unix.try_clone().unwrap())),
    );
    let variables = "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:local";
    let mut proxy = Proxy::spawn_on(with_sockets(&standin, given, variables));
    proxy.wait_for_log(&format!("listening on {address}"));
    proxy.wait_for_log(&format!("listening on unix:{}", path.display()));
    proxy.wait_for_log("LISTEN_HOST and LISTEN_PORT are not bound");
    let lines = proxy.log();
    assert_eq!(lines.matches("listening on").count(), 2, "{lines}");
    assert_eq!(Http::get_once(address, "/v2/_catalog").status, 200);
    let catalog = ask(&path, "GET /v2/_catalog");
    assert!(catalog.contains("sample/hello"), "{catalog}");
    // A helper that we start must not get them: they are closed on exec.
    for fd in [3, 4] {
        let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", proxy.pid()));
        let info = info.unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        assert_eq!(
            flags & 0o2_000_000,
            0o2_000_000,
            "O_CLOEXEC of {fd}: {info}"
        );
    }
    proxy.term();
    assert_eq!(proxy.wait_exit().code(), Some(0));
    // Their owner goes on with them: clients wait there for the next proxy.
    let waiting = TcpStream::connect_timeout(&address, SOON).unwrap();
    tcp.set_nonblocking(false).unwrap();
    assert!(tcp.accept().is_ok());
    drop(waiting);
    assert!(path.exists());
    let given = (OwnedFd::from(tcp), None);
    let variables = "LISTEN_PID=$$ LISTEN_FDS=1";
    let next = Proxy::spawn_on(with_sockets(&standin, given, variables));
    next.wait_for_log("listening on 127.0.0.1:");
    assert_eq!(Http::get_once(address, "/healthz").status, 200);
}

#[test]
fn what_is_handed_in_must_be_a_listening_stream_socket() {
    let standin = Standin::start(Options::default());
    let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let connected = || OwnedFd::from(UnixStream::pair().unwrap().0);
    let datagrams = || OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    for (given, code, why) in [
        (
            file(),
            1,
            "descriptor 3 (web) is neither a TCP nor a unix stream socket",
        ),
        (
            datagrams(),
            1,
            "descriptor 3 (web) is neither a TCP nor a unix stream socket",
        ),
        (connected(), 1, "descriptor 3 (web) does not listen"),
    ] {
        let variables = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web";
        let command = with_sockets(&standin, (given, None), variables);
        let mut proxy = Proxy::spawn_on(command);
        assert_eq!(proxy.wait_exit().code(), Some(code));
        let log = proxy.log();
        assert!(log.contains(why), "{why} in {log}");
    }
    let command = with_sockets(&standin, (file(), None), "LISTEN_PID=$$ LISTEN_FDS=17");
    let mut proxy = Proxy::spawn_on(command);
    assert_eq!(proxy.wait_exit().code(), Some(64));
    let log = proxy.log();
    assert!(
        log.contains("LISTEN_FDS=17: expected a whole number"),
        "{log}"
    );
}

#[test]
fn sockets_of_another_process_are_not_taken() {
    let standin = Standin::start(Options::default());
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let given = (OwnedFd::from(tcp), None);
    let variables = "LISTEN_PID=1 LISTEN_FDS=1";
    let proxy = Proxy::spawn_on(with_sockets(&standin, given, variables));
    proxy.wait_for_log("LISTEN_FDS is not for this process");
    proxy.wait_for_log("listening on 127.0.0.1:");
}
