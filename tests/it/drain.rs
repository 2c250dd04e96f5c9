//! The start that fails, and the end: which clients are waited for, which are not, and the exit
//! codes.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use aws_ecr_proxy::door::DoorLimits;
use standin::{Fault, Match, Server, digest};

use crate::support::door::{Server as OwnDoor, ok};
use crate::support::{Cached, Front, Http, Proxy, Target, in_parallel, wait_until};

/// For what is to happen soon.
const SOON: Duration = Duration::from_secs(30);
/// Bytes of the blob that a busy client waits for, and how many of them come before the stall.
const SIZE: u64 = 1_000_000;
const BEFORE_STALL: u64 = 1000;

/// A proxy that is sending a stalled blob to a client.
struct Busy {
    target: Target,
    client: Http,
}

fn busy(grace: &str) -> Busy {
    let target =
        Target::start_with(|standin| Proxy::in_front_of(standin, &[("SHUTDOWN_GRACE", grace)]));
    let digest = target.standin.add_blob_of("sample/hello", SIZE, 7);
    target
        .standin
        .fault(Match::s3(), Fault::StallAfter(BEFORE_STALL));
    let mut client = Http::connect(target.address());
    let path = format!("/v2/sample/hello/blobs/{digest}");
    client.send_head("GET", &path, &[]).unwrap();
    // Some of the reply is there, so the transfer runs.
    client.stream().peek(&mut [0]).unwrap();
    assert_eq!(target.standin.count(Server::S3, "GET", ""), 1);
    Busy { target, client }
}

#[test]
fn a_drain_waits_for_the_busy_and_for_nobody_else() {
    let Busy {
        mut target,
        mut client,
    } = busy("30s");
    let mut idle = Http::connect(target.address());
    assert_eq!(idle.get("/readyz").status, 200);
    let mut silent = Http::connect(target.address());
    let mut half_open = Http::connect(target.address());
    half_open.send(b"GET /healthz HTTP/1.1\r\nHost").unwrap();
    target.proxy.term();
    target.proxy.wait_for_log("draining");
    for client in [&mut idle, &mut silent, &mut half_open] {
        assert!(
            client.is_closed_within(SOON),
            "an idle connection is waited for"
        );
    }
    wait_until("new connections are refused", SOON, || {
        TcpStream::connect_timeout(&target.address(), SOON).is_err()
    });
    assert!(target.proxy.is_alive(), "the busy one is not waited for");
    let standin = &target.standin;
    let reply = std::thread::scope(|scope| {
        let reply = scope.spawn(|| client.receive("GET").unwrap());
        // The stall may begin a moment after its last byte has come.
        wait_until("the transfer ends", SOON, || {
            standin.release();
            reply.is_finished()
        });
        reply.join().unwrap()
    });
    assert_eq!((reply.status, reply.complete), (200, true));
    assert_eq!(reply.length, SIZE);
    assert_eq!(target.proxy.wait_exit().code(), Some(0));
    target.proxy.wait_for_log("stopped connections_cut=0");
}

#[test]
fn an_upload_that_ends_in_the_drain_is_told_that_it_was_the_last() {
    let mut target = Target::start();
    let path = "/v2/sample/new/blobs/uploads/";
    let with_digest = format!("{path}?digest={}", digest(b"hello"));
    let mut client = Http::connect(target.address());
    let length = [("Content-Length", "5")];
    client.send_head("POST", &with_digest, &length).unwrap();
    client.send(b"he").unwrap();
    wait_until("the upload has begun", SOON, || {
        target.standin.count(Server::Registry, "POST", path) == 1
    });
    target.proxy.term();
    target.proxy.wait_for_log("draining");
    client
        .send(b"lloGET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let reply = client.receive("POST").unwrap();
    assert_eq!(
        (reply.status, reply.header("connection")),
        (201, Some("close"))
    );
    client.half_close();
    assert!(client.is_closed_within(SOON), "a second answer");
    assert!(
        target
            .standin
            .blob("sample/new", &digest(b"hello"))
            .is_some()
    );
    assert_eq!(target.proxy.wait_exit().code(), Some(0));
    target.proxy.wait_for_log("stopped connections_cut=0");
}

#[test]
fn bug_requests_that_had_come_before_the_drain_were_not_answered() {
    for _ in 0..5 {
        let server = OwnDoor::start(DoorLimits::new(200), ok);
        let connect = |_| Http::connect(server.address());
        let mut clients: Vec<Http> = (0..100).map(connect).collect();
        for client in &mut clients {
            assert_eq!(client.get("/").status, 200);
        }
        for client in &mut clients {
            client.send_head("GET", "/", &[]).unwrap();
        }
        assert_eq!(server.door().drain(SOON).cut, 0);
        for client in &mut clients {
            let reply = client.receive("GET").expect("an answer");
            assert_eq!((reply.status, reply.complete), (200, true));
        }
    }
}

#[test]
fn a_drain_ends_with_the_grace() {
    let Busy {
        mut target,
        mut client,
    } = busy("1s");
    let begun = Instant::now();
    target.proxy.signal("INT");
    let reply = client.receive("GET").unwrap();
    assert!(!reply.complete, "a cut transfer looks whole");
    assert!(reply.length <= BEFORE_STALL);
    assert_eq!(target.proxy.wait_exit().code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_secs(1));
    target.proxy.wait_for_log("stopped connections_cut=1");
}

#[test]
fn an_upload_that_outlasts_the_grace_is_cut_and_counted() {
    let mut target =
        Target::start_with(|standin| Proxy::in_front_of(standin, &[("SHUTDOWN_GRACE", "1s")]));
    let path = "/v2/sample/new/blobs/uploads/";
    let with_digest = format!("{path}?digest={}", digest(b"hello"));
    let mut clients: Vec<Http> = (0..3)
        .map(|_| {
            let mut client = Http::connect(target.address());
            let length = [("Content-Length", "5")];
            client.send_head("POST", &with_digest, &length).unwrap();
            client.send(b"he").unwrap();
            client
        })
        .collect();
    wait_until("the uploads have begun", SOON, || {
        target.standin.count(Server::Registry, "POST", path) == 3
    });
    target.proxy.term();
    assert_eq!(target.proxy.wait_exit().code(), Some(0));
    target.proxy.wait_for_log("stopped connections_cut=3");
    for client in &mut clients {
        // The rest comes too late, and nobody says that it was taken.
        let _ = client.send(b"llo");
        assert!(client.receive("POST").is_err(), "an answer from the dead");
    }
    let kept = target.standin.blob("sample/new", &digest(b"hello"));
    assert!(kept.is_none());
}

#[test]
fn a_drain_waits_for_a_client_that_reads_a_blob_still_coming() {
    let mut cached = Cached::start();
    let digest = cached.standin.add_blob_of("sample/hello", SIZE, 8);
    let stall = Fault::StallAfter(BEFORE_STALL);
    cached.standin.fault(Match::s3(), stall);
    let path = format!("/v2/sample/hello/blobs/{digest}");
    let reader = cached.begin(&path, &[]);
    cached.proxy().term();
    cached.proxy().wait_for_log("draining");
    cached.release();
    let whole = reader
        .whole(usize::try_from(SIZE).unwrap())
        .expect("all of it");
    assert_eq!(standin::digest(&whole), digest);
    let log = cached.wait_stopped();
    assert!(log.contains("stopped connections_cut=0"), "{log}");
    // Whether it was stored in time or not, the next one has to fetch none of it twice.
    cached.start_again();
    let sent = cached.standin.sent(Server::S3);
    assert_eq!(cached.get(&path).digest, digest);
    assert!(cached.standin.sent(Server::S3) - sent < SIZE / 2);
}

#[test]
fn a_drain_does_not_wait_for_a_download_that_nobody_reads() {
    let mut cached = Cached::start();
    let digest = cached.standin.add_blob_of("sample/hello", SIZE, 9);
    // It would take 20 s and more in all; who has left is noticed at the next piece.
    let drip = Fault::Drip {
        bytes: 1000,
        every: Duration::from_millis(20),
    };
    cached.standin.fault(Match::s3(), drip);
    let path = format!("/v2/sample/hello/blobs/{digest}");
    drop(cached.begin(&path, &[]));
    wait_until("some of it has come", SOON, || {
        cached.partials().get(&digest).is_some_and(|size| *size > 0)
    });
    let begun = Instant::now();
    cached.stop();
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "it waited for its grace of 30 s"
    );
    assert!(cached.partials().contains_key(&digest));
    cached.start_again();
    assert_eq!(cached.get(&path).digest, digest);
}

#[test]
fn without_grace_the_idle_are_not_counted_as_cut() {
    // A connection is busy for a moment after its client has the reply, so that not every try has
    // none.
    wait_until("none was cut", SOON, || {
        let mut target =
            Target::start_with(|standin| Proxy::in_front_of(standin, &[("SHUTDOWN_GRACE", "0s")]));
        let mut idle: Vec<Http> = (0..10).map(|_| Http::connect(target.address())).collect();
        for client in &mut idle {
            assert_eq!(client.get("/healthz").status, 200);
        }
        target.proxy.term();
        assert_eq!(target.proxy.wait_exit().code(), Some(0));
        let stopped = target.proxy.wait_for_log("stopped connections_cut=");
        stopped.contains("connections_cut=0")
    });
}

#[test]
fn bug_blobs_that_clients_had_got_were_lost_at_the_stop() {
    const SIZE: u64 = 1 << 20;
    let mut cached = Cached::start();
    let add = |seed| cached.standin.add_blob_of("team/app", SIZE, seed);
    let blobs: Vec<String> = (0..40).map(add).collect();
    in_parallel(blobs.len(), |number| {
        let blob = &blobs[number];
        let got = cached.get(&format!("/v2/team/app/blobs/{blob}"));
        assert_eq!(got.digest, *blob);
    });
    cached.stop();
    let kept = cached.blobs();
    let lost: Vec<_> = blobs
        .iter()
        .filter(|blob| !kept.contains_key(*blob))
        .collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
fn a_second_signal_ends_at_once() {
    let Busy { mut target, client } = busy("60s");
    target.proxy.term();
    target.proxy.wait_for_log("draining");
    assert!(target.proxy.is_alive());
    target.proxy.term();
    assert_eq!(target.proxy.wait_exit_within(SOON).code(), Some(1));
    target.proxy.wait_for_log("second signal");
    drop(client);
}

#[test]
fn a_hangup_signal_ends_nothing() {
    let mut target = Target::start();
    target.proxy.signal("HUP");
    target.proxy.wait_for_log("SIGHUP");
    target.assert_well();
    target.proxy.term();
    assert_eq!(target.proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut command = Proxy::command();
    command
        .envs([("ECR", "http://127.0.0.1:9"), ("UPSTREAM_AUTH", "none")])
        .env("LISTEN_PORT", address.port().to_string());
    let mut proxy = Proxy::spawn(command);
    assert_eq!(proxy.wait_exit().code(), Some(1));
    let log = proxy.log();
    assert!(
        log.contains(&address.to_string()) && log.contains("LISTEN_PORT"),
        "{log}"
    );
}

#[test]
fn bad_settings_are_named_all_at_once() {
    let mut command = Proxy::command();
    command.envs([
        ("LISTEN_PORT", "no"),
        ("SHUTDOWN_GRACE", "30"),
        ("READ_ONLY", "maybe"),
    ]);
    let mut proxy = Proxy::spawn(command);
    assert_eq!(proxy.wait_exit().code(), Some(64));
    let log = proxy.log();
    for name in ["LISTEN_PORT", "SHUTDOWN_GRACE", "READ_ONLY"] {
        assert!(log.contains(name), "{name} is not in {log}");
    }
}

#[test]
fn bug_sigusr1_ended_the_process() {
    let mut front = Front::start();
    front.proxy.signal("USR1");
    front.proxy.wait_for_log("SIGUSR1 is ignored");
    assert!(front.proxy.is_alive());
    assert_eq!(front.get("/v2/").status, 200);
}
