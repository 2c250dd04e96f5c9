//! Registries that throttle: all requests leave them alone for a while, what is cached is served
//! meanwhile, and a client hears of it only when there is nothing for it.

use std::time::{Duration, Instant};

use standin::{Fault, Match, Seen, Server};

use crate::support::{Cached, Front, SOON, error_of, in_parallel, wait_until};

const TAG: &str = "/v2/team/app/manifests/1.0";

fn after(seconds: u64) -> Fault {
    Fault::TooMany429 {
        retry_after: Some(seconds),
    }
}

/// What the registry saw under these names.
fn asked(cached: &Cached, text: &str) -> Vec<Seen> {
    let mut seen = cached.seen(Server::Registry);
    seen.retain(|seen| seen.target.contains(text));
    seen
}

#[test]
fn a_pull_that_is_throttled_waits_and_is_asked_for_once_more() {
    let slow_down = || {
        let xml = vec![("Content-Type".to_owned(), "application/xml".to_owned())];
        Fault::Status(503, xml, b"<Error><Code>SlowDown</Code></Error>".to_vec())
    };
    let words = Fault::registry_error(400, "ThrottlingException", "Rate exceeded");
    for (pick, fault) in [
        (Match::registry().path("/team/app/"), after(1)),
        (
            Match::registry().path("/team/app/"),
            Fault::TooMany429 { retry_after: None },
        ),
        (Match::registry().path("/team/app/"), words),
        (Match::registry().path("/team/app/"), slow_down()),
        (Match::s3(), slow_down()),
    ] {
        let cached = Cached::start();
        let blob = cached.standin.add_blob("team/app", b"layer");
        cached.standin.fault(pick, fault.clone());
        let begun = Instant::now();
        let got = cached.get(&format!("/v2/team/app/blobs/{blob}"));
        assert_eq!((got.status, &got.digest), (200, &blob), "{fault:?}");
        assert!(begun.elapsed() >= Duration::from_secs(1), "{fault:?}");
        assert_eq!(asked(&cached, &blob).len(), 2, "{fault:?}");
        cached
            .proxy()
            .wait_for_log("registry throttles; backing off");
    }
}

#[test]
fn a_throttled_pull_holds_all_others_back() {
    let cached = Cached::start();
    let pause = Duration::from_secs(2);
    cached.standin.put_image("team/app", "1.0", &[]);
    let targets: Vec<String> = (0_u8..20)
        .map(|number| cached.standin.add_blob("team/app", &[number]))
        .map(|digest| format!("/v2/team/app/blobs/{digest}"))
        .collect();
    cached.standin.fault(Match::registry().path(TAG), after(2));
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(cached.get(TAG).status, 200));
        wait_until("the registry throttles", SOON, || {
            cached.proxy().log().contains("registry throttles")
        });
        in_parallel(targets.len(), |number| {
            assert_eq!(cached.get(&targets[number]).status, 200);
        });
    });
    let throttled = asked(&cached, TAG)[0].at;
    for seen in asked(&cached, "/blobs/") {
        let waited = seen.at - throttled;
        assert!(waited >= pause, "{} after {waited:?}", seen.target);
    }
}

#[test]
fn what_is_cached_is_served_while_the_registry_is_left_alone() {
    let cached = Cached::start();
    let image = cached.standin.put_image("team/app", "1.0", &[]);
    cached.standin.put_image("team/app", "2.0", &[]);
    let config = format!("/v2/team/app/blobs/{}", image.config);
    assert_eq!(cached.get(TAG).body, image.bytes);
    assert_eq!(cached.get(&config).digest, image.config);
    cached.wait_for_blob(&image.config);
    // An hour is not waited for, but a while is.
    cached
        .standin
        .fault(Match::registry().path(TAG), after(3600));
    let stale = cached.get(TAG);
    assert_eq!(
        (stale.status, stale.header("X-Cache")),
        (200, Some("STALE"))
    );
    let calls = cached.calls();
    for _ in 0..5 {
        let stale = cached.get(TAG);
        assert_eq!(
            (stale.status, stale.header("X-Cache")),
            (200, Some("STALE"))
        );
        assert!(stale.header("Warning").unwrap().contains("throttles us"));
        assert_eq!(cached.get(&config).header("X-Cache"), Some("HIT"));
        let cold = cached.get("/v2/team/app/manifests/2.0");
        assert_eq!(
            (cold.status, error_of(&cold).0),
            (429, "TOOMANYREQUESTS".into())
        );
        let seconds: u64 = cold.header("Retry-After").unwrap().parse().unwrap();
        assert!((1..=40).contains(&seconds), "{seconds}");
    }
    assert_eq!(cached.calls(), calls, "the registry was asked in its pause");
}

#[test]
fn a_push_that_is_throttled_holds_no_pull_back() {
    let front = Front::start();
    front.standin.put_image("team/app", "1.0", &[]);
    front
        .standin
        .fault(Match::registry().method("PUT"), after(3600));
    let put = front.call("PUT", TAG, &[], b"{}");
    assert_eq!((put.status, put.header("Retry-After")), (429, Some("3600")));
    assert_eq!(front.get(TAG).status, 200);
}
