//! Uploads that are refused while they are on their way: the client gets the registry's own words,
//! soon, whatever the registry does with the connection afterwards.

use std::time::{Duration, Instant};

use standin::{Content, Fault, Match, Options, Server, Then, digest};

use crate::support::{Cached, Front, Http, Response, SOON, Scratch, error_of, target_of};

const UPLOADS: &str = "/v2/new/repo/blobs/uploads/";
/// Larger than what all buffers on the way hold.
const SIZE: u64 = 64 << 20;
/// What a client is told by when the registry closes.
const BOUND: Duration = Duration::from_secs(15);

/// And when it stays and takes nothing: a few of the proxy's write time-outs.
const STALLED: Duration = Duration::from_secs(90);

fn upload(address: std::net::SocketAddr) -> String {
    let begun = Http::once(address, "POST", UPLOADS, &[], b"");
    target_of(begun.header("Location").expect("a Location")).to_owned()
}

/// Pushes noise, and says what came back and how long it took.
fn push(
    address: std::net::SocketAddr,
    method: &str,
    target: &str,
    chunked: bool,
) -> (Response, Duration) {
    let content = Content::Generated {
        size: SIZE,
        seed: 1,
    };
    let mut body = content.reader();
    let mut http = Http::connect_within(address, Duration::from_secs(120));
    let begun = Instant::now();
    let got = if chunked {
        http.request_chunked(method, target, &[], &mut body)
    } else {
        http.request_streamed(method, target, &[], (SIZE, &mut body))
    };
    (got.expect("an answer"), begun.elapsed())
}

fn refuse(front: &Front, method: &str, fault: Fault) {
    front.standin.fault(Match::registry().method(method), fault);
}

#[test]
fn an_early_refusal_reaches_the_client() {
    let front = Front::start();
    for status in [403, 404, 413, 429, 500] {
        for (then, chunked) in [
            (Then::Close, false),
            (Then::Close, true),
            (Then::Drain, false),
        ] {
            for fault in [
                Fault::RefuseEarly { status, then },
                Fault::RefuseMidway {
                    after: 3 << 20,
                    status,
                    then,
                },
            ] {
                let target = upload(front.address());
                refuse(&front, "PATCH", fault);
                let (got, took) = push(front.address(), "PATCH", &target, chunked);
                let said = error_of(&got);
                assert_eq!(got.status, status, "{then:?} {chunked}");
                assert_eq!(said, ("EARLY".to_owned(), "refused early".to_owned()));
                assert!(got.complete, "{:?}", got.fault);
                assert!(took < BOUND, "{took:?}");
                if then == Then::Close {
                    // The rest of the body is still coming.
                    assert_eq!(got.header("Connection"), Some("close"));
                }
                if status == 429 {
                    assert!(got.header("Retry-After").is_some());
                }
            }
        }
    }
    assert_eq!(front.token_calls(), 1);
}

#[test]
fn an_early_401_is_our_affair() {
    let front = Front::start();
    for then in [Then::Close, Then::Drain] {
        let target = upload(front.address());
        refuse(&front, "PATCH", Fault::RefuseEarly { status: 401, then });
        let (got, took) = push(front.address(), "PATCH", &target, true);
        assert_eq!(got.status, 503, "{}", got.text());
        assert_eq!(got.header("WWW-Authenticate"), None);
        assert!(got.header("Retry-After").is_some());
        assert!(took < BOUND, "{took:?}");
    }
}

#[test]
fn a_manifest_and_a_put_are_refused_early_too() {
    let front = Front::start();
    let target = upload(front.address());
    let target = format!("{target}?digest={}", digest(b"x"));
    let fault = Fault::RefuseEarly {
        status: 403,
        then: Then::Close,
    };
    refuse(&front, "PUT", fault.clone());
    let (got, _) = push(front.address(), "PUT", &target, false);
    assert_eq!((got.status, error_of(&got).0), (403, "EARLY".into()));
    refuse(&front, "PUT", fault);
    let manifest = vec![b' '; 4 << 20];
    let target = "/v2/new/repo/manifests/1";
    let got = front.call("PUT", target, &[], &manifest);
    assert_eq!((got.status, error_of(&got).0), (403, "EARLY".into()));
}

#[test]
fn the_connection_that_was_refused_on_is_not_used_again() {
    let front = Front::start();
    let target = upload(front.address());
    for _ in 0..3 {
        let fault = Fault::RefuseMidway {
            after: 1 << 20,
            status: 500,
            then: Then::Close,
        };
        refuse(&front, "PATCH", fault);
        let (got, _) = push(front.address(), "PATCH", &target, false);
        assert_eq!(got.status, 500);
        let refused = front.seen(Server::Registry).pop().unwrap().connection;
        assert_eq!(front.get(&target).status, 204);
        assert_ne!(
            front.seen(Server::Registry).pop().unwrap().connection,
            refused
        );
    }
    // And nothing came of what was sent.
    assert_eq!(front.get(&target).header("Range"), Some("0-0"));
}

/// A registry that answers, reads no more and stays: the write time-out ends it, without a busy
/// loop.
#[test]
fn a_registry_that_answers_and_then_takes_nothing_is_heard() {
    let front = Front::start();
    let target = upload(front.address());
    let fault = Fault::RefuseMidway {
        after: 1 << 20,
        status: 413,
        then: Then::Hold,
    };
    refuse(&front, "PATCH", fault);
    let before = cpu_ticks(front.proxy.pid());
    let (got, took) = push(front.address(), "PATCH", &target, true);
    assert_eq!((got.status, error_of(&got).0), (413, "EARLY".into()));
    assert!(took < STALLED, "{took:?}");
    // A second has a hundred ticks.
    let ticks = cpu_ticks(front.proxy.pid()) - before;
    assert!(ticks < 500, "{ticks} ticks of CPU in {took:?}");
    front.standin.release();
}

/// A registry that says nothing and takes nothing: a time-out, not a hang.
#[test]
fn a_registry_that_takes_nothing_and_says_nothing_is_a_504() {
    let front = Front::start();
    let target = upload(front.address());
    refuse(&front, "PATCH", Fault::StallUpload(1 << 20));
    let (got, took) = push(front.address(), "PATCH", &target, false);
    assert_eq!(got.status, 504, "{}", got.text());
    assert!(took < STALLED, "{took:?}");
    front.standin.release();
}

#[test]
fn a_registry_that_closes_without_a_word_is_a_502() {
    let front = Front::start();
    let target = upload(front.address());
    for raw in ["", "HTTP/1.1 4", "nonsense\r\n\r\n"] {
        refuse(&front, "PATCH", Fault::Raw(raw.into()));
        let (got, took) = push(front.address(), "PATCH", &target, true);
        assert_eq!(got.status, 502, "{raw:?}: {}", got.text());
        assert!(took < BOUND, "{took:?}");
    }
    // A success that did not wait for the body is none.
    let early = "HTTP/1.1 201 Created\r\nLocation: /v2/x\r\nContent-Length: 0\r\n\r\n";
    refuse(&front, "PATCH", Fault::Raw(early.into()));
    let (got, _) = push(front.address(), "PATCH", &target, true);
    assert_eq!(got.status, 502, "{}", got.text());
}

#[test]
fn a_refusal_is_heard_with_a_cache_too() {
    let cached = Cached::on(Scratch::new(), Options::default(), &[]);
    for then in [Then::Close, Then::Drain] {
        let target = upload(cached.address());
        let fault = Fault::RefuseEarly { status: 413, then };
        cached
            .standin
            .fault(Match::registry().method("PATCH"), fault);
        let (got, took) = push(cached.address(), "PATCH", &target, false);
        assert_eq!((got.status, error_of(&got).0), (413, "EARLY".into()));
        assert!(took < BOUND, "{took:?}");
    }
    assert!(cached.blobs().is_empty());
}

/// The bytes that went into an upload that is cut must not look like all of it.
#[test]
fn a_client_that_stops_aborts_the_upload_upstream() {
    let front = Front::start();
    for chunked in [false, true] {
        let target = upload(front.address());
        let mut http = front.http();
        let framing = match chunked {
            true => ("Transfer-Encoding", "chunked"),
            false => ("Content-Length", "2000000"),
        };
        http.send_head("PATCH", &target, &[framing]).unwrap();
        if chunked {
            http.send(b"100000\r\n").unwrap();
        }
        http.send(&vec![b'x'; 1_000_000]).unwrap();
        let came = |seen: &[standin::Seen]| {
            let last = seen.last().expect("the upload");
            last.method == "PATCH" && last.body_len > 0
        };
        drop(http);
        assert!(front.standin.wait_for(SOON, came));
        let seen = front.seen(Server::Registry).pop().unwrap();
        assert_eq!(seen.status, None);
        assert_eq!(front.get(&target).header("Range"), Some("0-0"));
    }
}

/// User and system time of a process, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running proxy");
    let (_, fields) = stat.rsplit_once(')').expect("its name");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number = |at: usize| fields[at].parse::<u64>().expect("a number");
    // utime and stime: the 14th and 15th field of proc(5), the 12th and 13th after the name.
    number(11) + number(12)
}
