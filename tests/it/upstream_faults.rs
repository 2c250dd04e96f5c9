//! Upstreams that break off, stall, lie or refuse: clients see an error, never a wrong body, and
//! the proxy lives on.

use std::time::{Duration, Instant};

use standin::{Fault, Match, Options, Quirks, Server, Then};

use crate::support::{Front, Http, SOON, error_of, target_of, wait_until};

const MANIFEST: &str = "/v2/team/app/manifests/1.0";
/// Longer than any buffer on the way.
const BLOB_BYTES: u64 = 3 << 20;

/// Blobs by the blob host, and by the registry itself.
fn ways() -> [(Front, Server); 2] {
    let direct = Options {
        quirks: Quirks::none(),
        ..Options::default()
    };
    [
        (Front::start(), Server::S3),
        (Front::with(direct, &[]), Server::Registry),
    ]
}

fn from(server: Server) -> Match {
    let pick = match server {
        Server::S3 => Match::s3(),
        Server::Registry | Server::Api | Server::Metadata => Match::registry(),
    };
    pick.method("GET")
}

#[test]
fn a_blob_that_is_cut_is_never_taken_for_whole() {
    for (front, server) in ways() {
        let blob = front.standin.add_blob_of("team/app", BLOB_BYTES, 3);
        let target = format!("/v2/team/app/blobs/{blob}");
        let chunked = |cut_after| Fault::Chunked { cut_after };
        for fault in [
            Fault::CutAfter(0),
            Fault::CutAfter(1),
            Fault::CutAfter(BLOB_BYTES / 2),
            Fault::CutAfter(BLOB_BYTES - 1),
            Fault::ResetAfter(BLOB_BYTES / 2),
            Fault::WrongLength(1),
            Fault::WrongLength(1 << 20),
            chunked(Some(0)),
            chunked(Some(BLOB_BYTES / 2)),
            chunked(Some(BLOB_BYTES)),
        ] {
            front.standin.fault(from(server), fault.clone());
            let mut http = front.http();
            let got = http.try_request("GET", &target, &[], b"");
            let whole = got.is_ok_and(|got| got.status == 200 && got.complete);
            assert!(!whole, "{fault:?} from {server:?}");
            assert_eq!(front.standin.pending_faults(), 0, "{fault:?}");
        }
        // A chunked one that is whole is whole, and HTTP/1.0 gets it by the connection's end.
        front.standin.fault(from(server), chunked(None));
        let got = front.get(&target);
        assert_eq!((got.complete, got.digest.as_str()), (true, blob.as_str()));
        assert_eq!(front.get(&target).digest, blob);
    }
}

#[test]
fn a_cut_is_a_reset_even_for_http_1_0() {
    let front = Front::start();
    let blob = front.standin.add_blob_of("team/app", BLOB_BYTES, 4);
    let request = format!("GET /v2/team/app/blobs/{blob} HTTP/1.0\r\n\r\n");
    let fault = |cut_after| {
        front
            .standin
            .fault(Match::s3(), Fault::Chunked { cut_after })
    };
    let ask = || {
        let mut http = front.http();
        http.send(request.as_bytes()).unwrap();
        http.receive("GET")
    };
    fault(None);
    let whole = ask().unwrap();
    assert_eq!(
        (whole.complete, whole.digest.as_str()),
        (true, blob.as_str())
    );
    assert_eq!(whole.header("Transfer-Encoding"), None);
    fault(Some(BLOB_BYTES / 2));
    assert!(!ask().is_ok_and(|got| got.complete));
}

#[test]
fn a_manifest_that_is_cut_is_a_502() {
    let front = Front::start();
    front.standin.put_image("team/app", "1.0", &[]);
    for fault in [
        Fault::CutAfter(10),
        Fault::WrongLength(5),
        Fault::Chunked {
            cut_after: Some(10),
        },
    ] {
        front
            .standin
            .fault(Match::registry().times(2), fault.clone());
        let got = front.get(MANIFEST);
        assert_eq!(got.status, 502, "{fault:?}: {}", got.text());
        front.standin.clear_faults();
    }
    assert_eq!(front.get(MANIFEST).status, 200);
}

#[test]
fn a_blob_of_the_wrong_length_for_a_range_is_cut_too() {
    let front = Front::start();
    let blob = front.standin.add_blob_of("team/app", BLOB_BYTES, 5);
    front.standin.fault(Match::s3(), Fault::CutAfter(100));
    let target = format!("/v2/team/app/blobs/{blob}");
    let got = front.call("GET", &target, &[("Range", "bytes=1000-200000")], b"");
    assert_eq!((got.status, got.complete), (206, false));
}

#[test]
fn a_slow_blob_arrives_as_it_comes() {
    let front = Front::start();
    let blob = front.standin.add_blob("team/app", b"abcdefghij");
    front.standin.fault(Match::s3(), Fault::StallAfter(4));
    let mut http = front.http();
    http.send_head("GET", &format!("/v2/team/app/blobs/{blob}"), &[])
        .unwrap();
    http.stream().set_read_timeout(Some(SOON)).unwrap();
    let mut buf = [0; 4096];
    // The first bytes must not wait for the last ones.
    wait_until("the first bytes are there", SOON, || {
        let length = http.stream().peek(&mut buf).unwrap();
        buf[..length].ends_with(b"\r\n\r\nabcd")
    });
    front.standin.release();
    let got = http.receive("GET").unwrap();
    assert_eq!((got.complete, got.text().as_str()), (true, "abcdefghij"));
}

#[test]
fn what_stalls_is_a_504_before_containerd_gives_up() {
    let front = Front::start();
    front.standin.put_image("team/app", "1.0", &[]);
    let blob = front.standin.add_blob("team/app", b"x");
    let manifest = |fault| {
        front
            .standin
            .fault(Match::registry().path("/manifests/"), fault)
    };
    manifest(Fault::Silent);
    manifest(Fault::StallAfter(5));
    manifest(Fault::Drip {
        bytes: 1,
        every: Duration::from_secs(1),
    });
    front.standin.fault(Match::s3(), Fault::Silent);
    let blob = format!("/v2/team/app/blobs/{blob}");
    // With one permit for all: whoever waits in vain for a turn is told to come back.
    let narrow = Front::with(Options::default(), &[("MAX_EXCHANGES", "1")]);
    narrow.standin.fault(Match::registry(), Fault::Silent);
    let ask = |front: &Front, target: &str| {
        let start = Instant::now();
        let mut http = Http::connect_within(front.address(), Duration::from_secs(40));
        let got = http.get(target);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(29), "{took:?}");
        assert_eq!(error_of(&got).0, "UNAVAILABLE");
        (got.status, got.header("Retry-After").is_some())
    };
    std::thread::scope(|scope| {
        for target in [MANIFEST, MANIFEST, MANIFEST, &blob] {
            let (front, ask) = (&front, &ask);
            scope.spawn(move || assert_eq!(ask(front, target), (504, false)));
        }
        scope.spawn(|| assert_eq!(ask(&narrow, MANIFEST), (504, false)));
        let asked = |seen: &[standin::Seen]| seen.iter().any(|s| s.target == MANIFEST);
        assert!(narrow.standin.wait_for(SOON, asked));
        scope.spawn(|| assert_eq!(ask(&narrow, MANIFEST), (503, true)));
        // Meanwhile everything else goes on.
        assert!(front.standin.wait_for(SOON, |seen| seen.len() > 5));
        let start = Instant::now();
        assert_eq!(front.get("/healthz").status, 200);
        assert_eq!(narrow.get("/healthz").status, 200);
        assert_eq!(front.get("/v2/_catalog").status, 200);
        assert!(start.elapsed() < Duration::from_secs(10));
    });
}

#[test]
fn a_body_on_its_way_takes_no_turn() {
    let front = Front::with(Options::default(), &[("MAX_EXCHANGES", "1")]);
    let blob = front.standin.add_blob("team/app", b"abcdefghij");
    let target = format!("/v2/team/app/blobs/{blob}");
    front.standin.fault(Match::s3(), Fault::StallAfter(4));
    let mut http = front.http();
    http.send_head("GET", &target, &[]).unwrap();
    let answered = |seen: &[standin::Seen]| {
        seen.iter()
            .any(|s| s.server == Server::S3 && s.status.is_some())
    };
    assert!(front.standin.wait_for(SOON, answered));
    assert_eq!(front.get(&target).digest, blob);
    front.standin.release();
    assert_eq!(http.receive("GET").unwrap().digest, blob);
}

#[test]
fn a_body_without_meaning_is_not_passed_on() {
    let front = Front::start();
    front.standin.put_image("team/app", "1.0", &[]);
    for method in ["GET", "DELETE"] {
        let got = front.call(method, MANIFEST, &[], b"GET /v2/ HTTP/1.1\r\n\r\n");
        assert!(got.status < 300, "{}", got.text());
        assert_eq!(got.header("Connection"), Some("close"));
        let seen = front.seen(Server::Registry).pop().unwrap();
        assert_eq!((seen.method.as_str(), seen.body_len), (method, 0));
        assert_eq!(seen.header("Content-Length"), None);
    }
    assert_eq!(front.seen(Server::Registry).len(), 2);
}

#[test]
fn what_is_no_http_is_a_502() {
    let front = Front::start();
    front.standin.put_image("team/app", "1.0", &[]);
    let huge = [
        &b"HTTP/1.1 200 OK\r\nX: "[..],
        &[b'x'; 200_000],
        b"\r\n\r\n",
    ]
    .concat();
    for fault in [
        Fault::CloseBeforeHead,
        Fault::garbage_head(),
        Fault::Raw(Vec::new()),
        Fault::Raw(b"HTTP/1.1 200 OK\r\nContent-".to_vec()),
        Fault::Raw(huge),
        Fault::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nab".to_vec()),
        // It closes, or the last request here could find the connection open and be sent over it.
        Fault::Raw(
            b"HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec(),
        ),
    ] {
        front.standin.clear_faults();
        front
            .standin
            .fault(Match::registry().always(), fault.clone());
        let got = front.get(MANIFEST);
        let told = got.text();
        assert_eq!(got.status, 502, "{told} for {:.60}", format!("{fault:?}"));
        assert_eq!(error_of(&got).0, "UNAVAILABLE");
    }
    front.standin.clear_faults();
    // A connection that was closed under a request is tried once more.
    front
        .standin
        .fault(Match::registry(), Fault::CloseBeforeHead);
    assert_eq!(front.get(MANIFEST).status, 200);
}

#[test]
fn a_status_that_is_no_answer_is_a_502() {
    let front = Front::start();
    for head in [
        "101 Switching Protocols\r\nUpgrade: x",
        "600 Beyond",
        "999 Beyond",
    ] {
        let raw = format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n").into_bytes();
        front.standin.clear_faults();
        front
            .standin
            .fault(Match::registry().always(), Fault::Raw(raw));
        for (method, body) in [("GET", &b""[..]), ("PUT", b""), ("PUT", b"{}")] {
            let got = front.call(method, MANIFEST, &[], body);
            assert_eq!(got.status, 502, "{method} {head}: {}", got.text());
            assert_eq!(error_of(&got).0, "UNAVAILABLE");
        }
    }
    // An interim answer before the real one is none of the client's business.
    let raw = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n\
                HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"schemaVersion\":2}";
    front.standin.clear_faults();
    front
        .standin
        .fault(Match::registry(), Fault::Raw(raw.to_vec()));
    let got = front.get(MANIFEST);
    assert_eq!(
        (got.status, got.text().as_str()),
        (200, r#"{"schemaVersion":2}"#)
    );
    assert_eq!(got.header("Link"), None);
}

#[test]
fn an_upstream_that_refuses_connections_is_a_504() {
    let front = Front::start();
    front.standin.put_image("team/app", "1.0", &[]);
    let blob = front.standin.add_blob("team/app", b"abc");
    let target = format!("/v2/team/app/blobs/{blob}");
    assert_eq!(front.get(&target).status, 200);
    front.standin.down(Server::S3);
    let got = front.get(&target);
    assert_eq!((got.status, error_of(&got).0), (504, "UNAVAILABLE".into()));
    assert_eq!(front.get(MANIFEST).status, 200);
    front.standin.down(Server::Registry);
    for (method, target, body) in [
        ("GET", MANIFEST, &b""[..]),
        ("HEAD", MANIFEST, b""),
        ("POST", "/v2/new/blobs/uploads/", b""),
        ("PUT", "/v2/new/manifests/1", b"{}"),
    ] {
        assert_eq!(
            front.call(method, target, &[], body).status,
            504,
            "{method}"
        );
    }
    assert_eq!(front.get("/healthz").status, 200);
    for server in [Server::S3, Server::Registry] {
        front.standin.up(server);
    }
    // Connections in the pool are stale now.
    assert_eq!(front.get(&target).digest, blob);
    let begun = front.call("POST", "/v2/new/blobs/uploads/", &[], b"");
    assert_eq!(begun.status, 202);
}

#[test]
fn a_stale_connection_fails_no_push() {
    let front = Front::start();
    for (method, target, body, expected) in [
        ("POST", "/v2/new/blobs/uploads/", &b""[..], 202),
        ("PUT", "/v2/new/manifests/1", b"{}", 201),
    ] {
        assert_eq!(front.get("/v2/_catalog").status, 200);
        front.standin.down(Server::Registry);
        front.standin.up(Server::Registry);
        let got = front.call(method, target, &[], body);
        assert_eq!(got.status, expected, "{method}: {}", got.text());
    }
}

#[test]
fn upstreams_own_errors_pass() {
    let front = Front::start();
    front.standin.put_image("team/app", "1.0", &[]);
    let retry_after = Some(7);
    front
        .standin
        .fault(Match::registry(), Fault::TooMany429 { retry_after });
    let got = front.get(MANIFEST);
    assert_eq!(
        (got.status, error_of(&got).0),
        (429, "TOOMANYREQUESTS".into())
    );
    assert_eq!(got.header("Retry-After"), Some("7"));
    // A pause follows, which is another test's.
    let front = Front::start();
    front.standin.put_image("team/app", "1.0", &[]);
    for status in [400, 406, 500, 502, 503, 504] {
        let fault = Fault::registry_error(status, "INTERNAL", "upstream's own");
        front.standin.fault(Match::registry(), fault);
        let got = front.get(MANIFEST);
        assert_eq!(
            (got.status, error_of(&got).1),
            (status, "upstream's own".into())
        );
    }
    assert_eq!(
        front.seen(Server::Registry).len(),
        6,
        "nothing was asked twice"
    );
    for status in [403, 404, 500, 503] {
        let blob = front.standin.add_blob("team/app", b"abc");
        front
            .standin
            .fault(Match::s3().times(2), Fault::status(status));
        let got = front.get(&format!("/v2/team/app/blobs/{blob}"));
        front.standin.clear_faults();
        assert_eq!(
            got.status, 502,
            "the blob host's {status} is no answer of a registry"
        );
    }
}

fn upload(front: &Front) -> String {
    let begun = front.call("POST", "/v2/new/blobs/uploads/", &[], b"");
    assert_eq!(begun.status, 202, "{}", begun.text());
    target_of(begun.header("Location").unwrap()).to_owned()
}

#[test]
fn a_client_that_hangs_up_in_an_upload_ends_the_upload() {
    let mut front = Front::start();
    for fields in [
        ("Content-Length", "1000000"),
        ("Transfer-Encoding", "chunked"),
    ] {
        let target = upload(&front);
        let open = front.standin.connections(Server::Registry);
        let mut http = front.http();
        http.send_head("PATCH", &target, &[fields]).unwrap();
        http.send(b"400\r\n").unwrap();
        http.send(&[b'x'; 500]).unwrap();
        let arrived = |seen: &[standin::Seen]| {
            seen.iter()
                .any(|s| s.target == target && s.method == "PATCH")
        };
        assert!(front.standin.wait_for(SOON, arrived));
        drop(http);
        // Only the connection's end tells upstream that the body is not whole.
        wait_until("upstream's connection is closed", SOON, || {
            front.standin.connections(Server::Registry) < open.max(1)
        });
        let before = front.proxy.cpu_time();
        std::thread::sleep(Duration::from_millis(700));
        let used = front.proxy.cpu_time() - before;
        assert!(
            used < Duration::from_millis(200),
            "{used:?} of CPU time at rest"
        );
        assert!(front.proxy.is_alive());
        let seen = front
            .seen(Server::Registry)
            .into_iter()
            .find(|s| s.target == target);
        assert_eq!(
            seen.unwrap().status,
            None,
            "upstream took half a body for a whole one"
        );
    }
    assert_eq!(front.get("/v2/_catalog").status, 200);
    wait_until("its thread is gone", SOON, || {
        !front
            .proxy
            .thread_names()
            .iter()
            .any(|name| name.starts_with("conn-"))
    });
}

#[test]
fn an_upload_that_is_refused_early_is_an_error_and_not_a_hang() {
    let front = Front::start();
    for then in [Then::Close, Then::Drain] {
        for status in [401, 403, 413, 500] {
            let target = upload(&front);
            let pick = Match::registry().method("PATCH");
            front
                .standin
                .fault(pick, Fault::RefuseEarly { status, then });
            let body = vec![b'x'; 8 << 20];
            let got = front.http().try_request("PATCH", &target, &[], &body);
            let got = got.expect("a reply");
            assert!((400..600).contains(&got.status), "{}", got.status);
            assert_eq!(got.header("WWW-Authenticate"), None);
            assert_eq!(front.get("/healthz").status, 200);
        }
    }
}

#[test]
fn an_upload_with_an_expired_token_is_told_to_try_again() {
    for expire in [
        standin::Standin::expire_tokens,
        standin::Standin::forget_tokens,
    ] {
        let front = Front::start();
        let target = upload(&front);
        expire(&front.standin);
        let got = front.call("PATCH", &target, &[], b"abc");
        assert_eq!(got.status, 503, "{}", got.text());
        assert!(error_of(&got).1.contains("try again"), "{}", got.text());
        assert!(got.header("Retry-After").is_some());
        assert_eq!(got.header("WWW-Authenticate"), None);
        assert_eq!(front.call("PATCH", &target, &[], b"abc").status, 202);
        assert_eq!(front.token_calls(), 2);
    }
}
