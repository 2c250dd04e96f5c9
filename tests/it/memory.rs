//! Memory: whole replies are sent from files or shared, and what is held is bounded, however many
//! clients read slowly.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
use standin::{Fault, Match, Options, Quirks, Server, Standin};

use crate::support::{Cached, Front, Proxy, Scratch, in_parallel, wait_until};

/// Clients at a time. On loopback the system holds up to 2.6 MB for each that reads slowly.
const CLIENTS: usize = 256;
/// Clients at a time where each costs seconds of work.
const FEWER_CLIENTS: usize = 64;
/// What the process may take with them: two and a half times the 120 MiB that the static release
/// build is held to. A debug build has larger stacks, and glibc an arena a thread, which keeps some
/// of what it gave out (112 MiB were measured on two cores). Unbounded it was over 2 GB.
const RESIDENT_KIB_MAX: u64 = 300 << 10;
/// All of them come from one address.
const MANY: (&str, &str) = ("MAX_CONNECTIONS_PER_PEER", "1024");
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LARGE: usize = 4 << 20;
const LARGEST: usize = 16 << 20;
/// For a reply's head on a machine that is busy.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// One test at a time: together they take more of the system's memory for sockets than it likes to
/// give, and then it drops what the tests beside them have sent.
static ALONE: Mutex<()> = Mutex::new(());

fn run_alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client that has asked for something and takes next to nothing of it.
struct SlowReader {
    stream: TcpStream,
    head: String,
}

impl SlowReader {
    fn ask(address: SocketAddr, target: &str) -> Self {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        // Before it connects, or the kernel takes megabytes on its behalf.
        sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
        connect(&socket, &address).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(HEAD_TIMEOUT)).unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            assert_eq!(stream.read(&mut byte).unwrap(), 1, "an answer");
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        Self { stream, head }
    }

    fn status(&self) -> u16 {
        self.head.get(9..12).unwrap().parse().unwrap()
    }

    fn is_alive(&self) -> bool {
        self.stream.peer_addr().is_ok()
    }
}

/// So many clients that ask for `target(number)`, and hold on to it.
fn hold_all(
    proxy: &Proxy,
    clients: usize,
    target: impl Fn(usize) -> String + Sync,
) -> Vec<SlowReader> {
    let readers = Mutex::new(Vec::new());
    in_parallel(clients, |number| {
        let reader = SlowReader::ask(proxy.address(), &target(number));
        readers.lock().unwrap().push(reader);
    });
    let readers = readers.into_inner().unwrap();
    assert!(readers.iter().all(SlowReader::is_alive));
    assert_bounded(proxy);
    readers
}

fn assert_bounded(proxy: &Proxy) {
    let resident = proxy.peak_rss_kib();
    assert!(resident < RESIDENT_KIB_MAX, "{resident} KiB");
}

/// So many clients that ask for `target(number)`, and hold on to it; how many got it. All others
/// are told to come again.
fn ask_all(proxy: &Proxy, clients: usize, target: impl Fn(usize) -> String + Sync) -> usize {
    let readers = hold_all(proxy, clients, target);
    for reader in readers.iter().filter(|reader| reader.status() != 200) {
        assert_eq!(reader.status(), 503, "{}", reader.head);
        assert!(reader.head.contains("\r\nRetry-After: "), "{}", reader.head);
    }
    let got = readers.iter().filter(|reader| reader.status() == 200);
    got.count()
}

fn manifest(number: usize, size: usize) -> Vec<u8> {
    let mut bytes = format!("{{\"schemaVersion\":2,\"layers\":[],\"n\":{number}}}").into_bytes();
    bytes.resize(size, b' ');
    bytes
}

#[test]
fn bug_250_slow_readers_of_one_manifest_cost_2_gb() {
    let _alone = run_alone();
    let cached = Cached::with(&[MANY, ("CACHE_TAG_TTL", "1h")]);
    let standin = &cached.standin;
    standin.add_manifest("team/app", "large", MANIFEST, &manifest(0, LARGE));
    standin.add_manifest("team/app", "largest", MANIFEST, &manifest(1, LARGEST));
    // Cold, and then from the cache.
    for tag in ["large", "large", "largest", "largest"] {
        let target = format!("/v2/team/app/manifests/{tag}");
        assert_eq!(
            ask_all(cached.proxy(), CLIENTS, |_| target.clone()),
            CLIENTS,
            "{tag}"
        );
    }
}

/// 256 MiB of manifests in all: five times what may be held.
#[test]
fn many_manifests_at_a_time_wait_for_room_or_are_told_to_come_again() {
    let _alone = run_alone();
    let cached = Cached::with(&[MANY, ("CACHE_TAG_TTL", "1h")]);
    let front = Front::with(Options::default(), &[MANY, ("CACHE_DIR", "off")]);
    for number in 0..FEWER_CLIENTS {
        let (tag, bytes) = (format!("t{number}"), manifest(number, LARGE));
        for standin in [&cached.standin, &front.standin] {
            standin.add_manifest("team/app", &tag, MANIFEST, &bytes);
        }
    }
    let target = |number: usize| format!("/v2/team/app/manifests/t{number}");
    // With a cache each is sent from its file as soon as it is there.
    for number in 0..FEWER_CLIENTS {
        let got = cached.get(&target(number));
        assert_eq!(got.status, 200);
    }
    let got = ask_all(cached.proxy(), FEWER_CLIENTS, target);
    assert_eq!(got, FEWER_CLIENTS);
    // Without one they are held for as long as their readers take.
    assert!(ask_all(&front.proxy, FEWER_CLIENTS, target) >= 4);
    let has_room = || front.get(&target(0)).status == 200;
    wait_until("room again", HEAD_TIMEOUT, has_room);
}

/// An answer of the registry's in place of its own, to everybody.
fn say(standin: &Standin, path: &str, media_type: &str, body: Vec<u8>) {
    let fields = vec![("Content-Type".to_owned(), media_type.to_owned())];
    let pick = Match::registry().path(path).always();
    standin.clear_faults();
    standin.fault(pick, Fault::Status(200, fields, body));
}

/// `{"field":[element,element,…]}` of so many bytes.
fn list_of(field: &str, element: &str, size: usize) -> Vec<u8> {
    let head = format!("{{\"schemaVersion\":2,\"{field}\":[{element}");
    let element = format!(",{element}");
    let count = (size - head.len() - 2) / element.len();
    let list = format!("{head}{}]}}", element.repeat(count));
    assert!(list.len() > size / 2 && list.len() <= size);
    list.into_bytes()
}

#[test]
fn bug_lists_were_parsed_into_trees() {
    let _alone = run_alone();
    let settings = [
        MANY,
        ("CACHE_TAG_TTL", "0s"),
        ("ALLOW_REPOSITORIES", "team/*"),
    ];
    let cached = Cached::with(&settings);
    let settings = [MANY, ("CACHE_DIR", "off"), ("ALLOW_REPOSITORIES", "team/*")];
    let front = Front::with(Options::default(), &settings);
    let referrers = format!("/v2/team/app/referrers/{}", standin::digest(b"x"));
    let descriptor = format!("{{\"digest\":\"{}\"}}", standin::digest(b"y"));
    for (target, field, element) in [
        ("/v2/team/app/tags/list", "tags", "\"a\""),
        ("/v2/_catalog", "repositories", "\"a\""),
        ("/v2/_catalog", "repositories", "\"team/a\""),
        (&referrers, "manifests", "0"),
        (&referrers, "manifests", &descriptor),
        ("/v2/team/app/manifests/zeros", "n", "0"),
    ] {
        let kind = if field == "n" {
            MANIFEST
        } else {
            "application/json"
        };
        // As trees they took 18 times their size: over a gigabyte each time.
        for (size, clients) in [(LARGE, 24), (LARGEST, 8)] {
            let body = list_of(field, element, size);
            for (proxy, standin) in [
                (cached.proxy(), &cached.standin),
                (&front.proxy, &front.standin),
            ] {
                say(standin, target, kind, body.clone());
                hold_all(proxy, clients, |_| target.to_owned());
            }
            // What is kept stands in.
            let pick = Match::registry().path(target).always();
            cached.standin.clear_faults();
            cached.standin.fault(pick, Fault::status(500));
            hold_all(cached.proxy(), clients, |_| target.to_owned());
        }
    }
}

#[test]
fn bug_pushed_manifests_were_held_without_bounds() {
    let _alone = run_alone();
    let cached = Cached::with(&[MANY, ("MAX_UPLOADS", "256")]);
    let body = vec![b' '; LARGE];
    // All but the last byte, so that each has to be held.
    let senders = Mutex::new(Vec::new());
    in_parallel(CLIENTS, |number| {
        let mut stream = TcpStream::connect(cached.address()).unwrap();
        let target = format!("/v2/team/app/manifests/t{number}");
        let head = format!("PUT {target} HTTP/1.1\r\nHost: x\r\nContent-Type: {MANIFEST}\r\n");
        let head = format!("{head}Content-Length: {}\r\n\r\n", LARGE);
        stream
            .set_write_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let sent = stream.write_all(head.as_bytes());
        let _ = sent.and_then(|()| stream.write_all(&body[..LARGE - 1]));
        senders.lock().unwrap().push(stream);
    });
    let resident = cached.proxy().peak_rss_kib();
    assert!(resident < RESIDENT_KIB_MAX, "{resident} KiB");
    drop(senders);
    assert_eq!(cached.get("/v2/").status, 200);
}

#[test]
fn lists_are_bounded_too() {
    let _alone = run_alone();
    // ECR gives out a thousand names at a time, other registries as many as are asked for.
    let options = Options {
        demand_token: false,
        quirks: Quirks::none(),
        ..Options::default()
    };
    let mut cached = Cached::on(Scratch::new(), options, &[MANY, ("UPSTREAM_AUTH", "none")]);
    cached.standin.add_tags("team/app", 100_000);
    let target = "/v2/team/app/tags/list?n=200000";
    let whole = cached.get(target);
    assert_eq!(whole.status, 200);
    assert!(whole.body.len() > 1_000_000, "{}", whole.body.len());
    assert!(ask_all(cached.proxy(), FEWER_CLIENTS, |_| target.to_owned()) > 0);
    cached.standin.down(Server::Registry);
    cached.kill();
    cached.start_again();
    assert!(ask_all(cached.proxy(), FEWER_CLIENTS, |_| target.to_owned()) > 0);
}
