//! Many clients at once, and clients that stall or leave: others are served meanwhile, and what
//! they held is given back.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::Duration;

use standin::{Fault, Match, Server, Standin};

use crate::attacks::assert_is_refusal;
use crate::support::{Http, Proxy, Target, in_parallel, raise_descriptors, wait_until};

/// For what is to happen soon.
const SOON: Duration = Duration::from_secs(30);
/// So many requests fill a pipe (64 KiB) and the log's queue (4096 lines) several times.
const UNREAD_REQUESTS: usize = 20_000;

fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect_timeout(&address, SOON).expect("a connection")
}

#[test]
fn four_hundred_connections_under_200_descriptors() {
    let mut target = Target::start_with(|standin| {
        let mut command = Proxy::command_after("ulimit -n 200;");
        command.envs(standin.settings());
        Proxy::start_command(command)
    });
    target
        .proxy
        .wait_for_log("fewer connections than MAX_CONNECTIONS fit");
    let held: Vec<TcpStream> = (0..400)
        .map(|number| {
            let mut client = connect(target.address());
            if number % 2 == 0 {
                // It may have had to make room already.
                let _ = client.write_all(b"GET /healthz HTTP/1.1\r\nHo");
            }
            client
        })
        .collect();
    for _ in 0..5 {
        target.assert_well();
        assert!(target.proxy.fds() <= 200);
    }
    let log = target.proxy.log();
    assert!(!log.contains("accept failed"), "descriptors ran out");
    drop(held);
    target.assert_well();
    target.assert_nothing_leaked();
}

/// The binary where any user may run it; the build directory may be closed to others.
struct OpenBinary(PathBuf);

impl OpenBinary {
    fn new() -> Self {
        let unique = aws_ecr_proxy::random::unguessable();
        let name = format!("aws-ecr-proxy-test-{unique:x}");
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let binary = folder.join("aws-ecr-proxy");
        std::fs::copy(env!("CARGO_BIN_EXE_aws-ecr-proxy"), &binary).unwrap();
        for path in [&folder, &binary] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        Self(folder)
    }
}

impl Drop for OpenBinary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn as_user(user: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
    command
}

/// The proxy as a user who may have 100 processes, and has no others. Root itself has no such
/// limit: it becomes somebody else. Others get a user namespace, where they are counted anew.
fn command_with_100_processes(binary: &Path, user: &str) -> Command {
    let mut command = if is_root() {
        as_user(user)
    } else {
        let mut command = Command::new("unshare");
        command.arg("--user");
        command
    };
    command.args(["prlimit", "--nproc=100:100"]).arg(binary);
    command
}

fn start_with_100_processes(standin: &Standin, binary: &OpenBinary, user: &str) -> Proxy {
    let mut command = command_with_100_processes(&binary.0.join("aws-ecr-proxy"), user);
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .envs([("LISTEN_HOST", "127.0.0.1"), ("LISTEN_PORT", "0")])
        .envs(standin.settings());
    Proxy::start_command(command)
}

#[test]
fn two_hundred_connections_under_100_processes() {
    let binary = OpenBinary::new();
    let mut target =
        Target::start_with(|standin| start_with_100_processes(standin, &binary, "61234"));
    target.proxy.wait_for_log("limit=RLIMIT_NPROC value=100");
    let held: Vec<TcpStream> = (0..200)
        .map(|number| {
            let mut client = connect(target.address());
            if number % 2 == 0 {
                let _ = client.write_all(b"GET /healthz HTTP/1.1\r\nHo");
            }
            client
        })
        .collect();
    for _ in 0..5 {
        target.assert_well();
        assert!(target.proxy.threads() <= 100);
    }
    drop(held);
    target.assert_well();
    target.assert_nothing_leaked();
}

/// Sets a soft limit of the running proxy, as the user it runs as.
fn limit(proxy: &Proxy, limit: &str, user: Option<&str>) {
    let pid = proxy.pid().to_string();
    let mut command = match user.filter(|_| is_root()) {
        Some(user) => as_user(user),
        None => Command::new("env"),
    };
    let set = command.args(["prlimit", "--pid", &pid, limit]).status();
    assert!(set.unwrap().success(), "prlimit {limit}");
}

#[test]
fn accept_survives_a_shortage_of_descriptors() {
    let mut target = Target::start();
    // What is open stays open; nothing more can be opened.
    limit(&target.proxy, "--nofile=3:", None);
    let mut waiting: Vec<Http> = (0..20).map(|_| Http::connect(target.address())).collect();
    for client in &mut waiting {
        client.send_head("GET", "/healthz", &[]).unwrap();
    }
    target.proxy.wait_for_log("accept failed; pausing");
    limit(&target.proxy, "--nofile=1000:", None);
    // One that was let in last may have had to make room for the next before it was heard.
    let answers = waiting
        .iter_mut()
        .filter_map(|client| client.receive("GET").ok());
    let answered = answers.filter(|reply| reply.status == 200).count();
    assert!(answered >= 10, "only {answered} of 20 are answered");
    drop(waiting);
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn a_refused_thread_is_a_503() {
    let binary = OpenBinary::new();
    let mut target =
        Target::start_with(|standin| start_with_100_processes(standin, &binary, "61235"));
    // The user is over the limit now, and gets no thread any more.
    limit(&target.proxy, "--nproc=1:", Some("61235"));
    for _ in 0..20 {
        let mut client = Http::connect(target.address());
        let _ = client.send_head("GET", "/healthz", &[]);
        assert_is_refusal("no thread", &client.receive("GET").unwrap(), 503);
    }
    limit(&target.proxy, "--nproc=100:", Some("61235"));
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn sixty_four_at_once_a_hundred_times_over() {
    let mut target = Target::start();
    let barrier = Barrier::new(64);
    in_parallel(64, |_| {
        for round in 0..100 {
            barrier.wait();
            let reply = Http::get_once(target.address(), "/healthz");
            assert_eq!(
                (reply.status, reply.text().as_str()),
                (200, "ok\n"),
                "{round}"
            );
        }
    });
    target.assert_well();
    target.assert_nothing_leaked();
}

#[test]
fn three_hundred_half_open_connections() {
    let mut target = Target::start();
    let held: Vec<TcpStream> = (0..300)
        .map(|number| {
            let mut client = connect(target.address());
            let part = [
                "",
                "G",
                "GET /healthz HTTP/1.1\r\nHost: a\r\n",
                "\x16",
                "\r\n",
            ];
            let part = part[number % part.len()];
            client.write_all(part.as_bytes()).unwrap();
            client
        })
        .collect();
    for _ in 0..10 {
        target.assert_well();
    }
    drop(held);
    target.assert_nothing_leaked();
}

#[test]
fn a_hundred_stalled_uploads() {
    let mut target = Target::start();
    let held: Vec<Http> = (0..100)
        .map(|number| {
            let mut client = Http::connect(target.address());
            let framing = if number % 2 == 0 {
                "Content-Length: 40000000000\r\n\r\nhello"
            } else {
                "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
            };
            let method = ["POST", "PATCH"][number / 2 % 2];
            let head = format!("{method} /v2/sample/new/blobs/uploads/ HTTP/1.1\r\nHost: a\r\n");
            client.send(format!("{head}{framing}").as_bytes()).unwrap();
            client
        })
        .collect();
    let all_there = target.standin.wait_for(SOON, |seen| {
        let uploads = seen.iter().filter(|seen| seen.target.contains("/uploads/"));
        uploads.count() >= 50
    });
    assert!(all_there, "the uploads do not reach upstream");
    for _ in 0..10 {
        target.assert_well();
    }
    drop(held);
    target.assert_nothing_leaked();
}

#[test]
fn a_hundred_requests_to_a_black_hole() {
    raise_descriptors();
    // The system takes the connections; nobody ever answers.
    let black_hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", black_hole.local_addr().unwrap());
    let mut proxy = Proxy::start(&[("ECR", &url), ("UPSTREAM_AUTH", "none")]);
    let held: Vec<Http> = (0..100)
        .map(|number| {
            let mut client = Http::connect(proxy.address());
            let target = ["/v2/_catalog", "/v2/a/tags/list", "/v2/a/manifests/1"][number % 3];
            client.send_head("GET", target, &[]).unwrap();
            client
        })
        .collect();
    let waiting = |name: &String| name.starts_with("conn-");
    wait_until("100 requests wait", SOON, || {
        proxy.thread_names().into_iter().filter(waiting).count() >= 100
    });
    for _ in 0..10 {
        let health = Http::connect_within(proxy.address(), SOON).get("/healthz");
        assert_eq!(health.status, 200);
    }
    assert!(proxy.is_alive());
    drop(held);
}

#[test]
fn a_hundred_requests_to_a_silent_registry() {
    let mut target = Target::start();
    let pick = Match::registry().path("/v2/sample/hello/").times(100);
    target.standin.fault(pick, Fault::Silent);
    let mut held: Vec<Http> = (0..100)
        .map(|_| {
            let mut client = Http::connect(target.address());
            let path = "/v2/sample/hello/manifests/1.0";
            client.send_head("GET", path, &[]).unwrap();
            client
        })
        .collect();
    let waiting = |target: &Target| target.reached_upstream("/v2/sample/hello/manifests/") >= 100;
    wait_until("100 requests wait", SOON, || waiting(&target));
    for _ in 0..10 {
        target.assert_well();
    }
    wait_until("the faults have struck", SOON, || {
        target.standin.pending_faults() == 0
    });
    // Upstream hangs up on all: that is an error for each of them, and for nobody else. A stall may
    // begin a moment after its fault was taken.
    let standin = &target.standin;
    std::thread::scope(|scope| {
        let receive = scope.spawn(|| {
            for client in &mut held {
                let status = client.receive("GET").unwrap().status;
                assert!([200, 502, 504].contains(&status), "{status}");
            }
        });
        wait_until("all are answered", SOON, || {
            standin.release();
            receive.is_finished()
        });
    });
    drop(held);
    target.assert_well();
    target.assert_no_thread_leaked();
}

#[test]
fn clients_that_leave_take_nothing_with_them() {
    let mut target = Target::start();
    let size = 50_000_000;
    let digest = target.standin.add_blob_of("sample/hello", size, 1);
    in_parallel(4, |_| {
        for round in 0..5 {
            let path = format!("/v2/sample/hello/blobs/{digest}");
            let mut client = connect(target.address());
            let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            client.write_all(head.as_bytes()).unwrap();
            client.read_exact(&mut vec![0; 64 * 1024]).unwrap();
            drop(client);
            let uploads = "/v2/sample/new/blobs/uploads/";
            let method = ["POST", "PATCH"][round % 2];
            let mut client = connect(target.address());
            let head = format!("{method} {uploads} HTTP/1.1\r\nHost: a\r\n");
            let framing = format!("Content-Length: {size}\r\n\r\n");
            client
                .write_all(format!("{head}{framing}").as_bytes())
                .unwrap();
            // A refusal may come first, and then a reset.
            let _ = client.write_all(&vec![0; 1_000_000]);
        }
    });
    target.assert_well();
    target.assert_nothing_leaked();
    assert_eq!(target.standin.count(Server::Registry, "PUT", ""), 0);
}

#[test]
fn a_stranger_at_the_unix_socket_is_refused() {
    let mut target = Target::start();
    let pid = target.proxy.pid();
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    let inodes: Vec<String> = links
        .filter_map(|link| {
            let link = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(link.to_owned())
        })
        .collect();
    // proc_net_unix(5): `Num RefCount Protocol Flags Type St Inode Path`, `@` for a NUL byte.
    let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap();
    let mut names: Vec<&str> = sockets
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_ours = inodes.iter().any(|inode| Some(&&**inode) == fields.get(6));
            fields
                .get(7)
                .filter(|_| is_ours)
                .and_then(|name| name.strip_prefix('@'))
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(names[0].starts_with("aws-ecr-proxy-"), "{names:?}");
    let address = std::os::unix::net::SocketAddr::from_abstract_name(names[0]).unwrap();
    for _ in 0..100 {
        let refused = UnixStream::connect_addr(&address).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    target.assert_well();
    target.assert_nothing_leaked();
}

/// A proxy whose log nobody reads beyond its first lines.
struct Unread {
    child: Child,
    _log: BufReader<std::process::ChildStderr>,
    address: SocketAddr,
}

impl Unread {
    fn start() -> Self {
        let mut command = Proxy::command();
        command
            .envs([("ECR", "http://127.0.0.1:9"), ("UPSTREAM_AUTH", "none")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it does not listen");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(' ').next().unwrap().trim().parse().unwrap();
            }
        };
        Self {
            child,
            _log: log,
            address,
        }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let mut proxy = Unread::start();
    let (threads, batch) = (4, 100);
    in_parallel(threads, |_| {
        let mut client = Http::connect(proxy.address);
        let requests = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".repeat(batch);
        for _ in 0..UNREAD_REQUESTS / threads / batch {
            client.send(requests.as_bytes()).unwrap();
            for _ in 0..batch {
                assert_eq!(client.receive("GET").unwrap().status, 200);
            }
        }
    });
    assert!(proxy.child.try_wait().unwrap().is_none());
    // Nor does it stop the end.
    let pid = proxy.child.id().to_string();
    let sent = Command::new("kill").args(["-s", "TERM", &pid]).status();
    assert!(sent.unwrap().success());
    let mut status = None;
    wait_until("the proxy ends", SOON, || {
        status = proxy.child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(0));
}
