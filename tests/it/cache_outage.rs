//! Upstream is gone, slow, or refuses: what was pulled once is pulled again, and soon.

use std::time::{Duration, Instant};

use standin::{Fault, Image, Layer, Match, Options};

use crate::support::{Cached, Response, SOON, Scratch, error_of, wait_until};

const TAG: &str = "/v2/team/app/manifests/1.0";
/// No answer from the cache takes longer, on a machine that is busy with other tests too.
const AT_ONCE: Duration = Duration::from_secs(1);

fn x_cache(got: &Response) -> &str {
    assert_eq!(got.header("X-Cache-Status"), got.header("X-Cache"));
    got.header("X-Cache").unwrap_or_default()
}

fn assert_stale(got: &Response, image: &Image) {
    assert_eq!((got.status, x_cache(got)), (200, "STALE"), "{}", got.text());
    assert_eq!(got.body, image.bytes);
    let warning = got.header("Warning").unwrap_or_default();
    assert!(
        warning.starts_with("299 - \"upstream is out of reach: "),
        "{warning}"
    );
    assert!(warning.ends_with('"') && warning.len() < 600, "{warning}");
    let age = got.header("Age").unwrap_or_default();
    assert!(age.parse::<u64>().is_ok_and(|age| age < 60), "{age}");
}

/// A cache that one pull has gone through.
fn pulled(settings: &[(&str, &str)]) -> (Cached, Image) {
    pulled_from(Options::default(), settings)
}

fn pulled_from(options: Options, settings: &[(&str, &str)]) -> (Cached, Image) {
    let mut all = vec![("CACHE_TAG_TTL", "0s")];
    all.extend_from_slice(settings);
    let cached = Cached::on(Scratch::new(), options, &all);
    let layer = Layer::of_files(&[("hello", b"outage")]);
    let image = cached.standin.put_image("team/app", "1.0", &[layer]);
    assert_eq!(cached.get(TAG).body, image.bytes);
    for digest in image.layers.iter().chain([&image.config]) {
        let got = cached.get(&format!("/v2/team/app/blobs/{digest}"));
        assert_eq!(&got.digest, digest);
        cached.wait_for_blob(digest);
    }
    (cached, image)
}

/// All of an image, by tag and by digest, each answer at once.
fn assert_pulls(cached: &Cached, image: &Image) {
    let timed = |target: &str| {
        let since = Instant::now();
        let got = cached.get(target);
        let took = since.elapsed();
        assert!(took < AT_ONCE, "{target} took {took:?}");
        got
    };
    assert_stale(&timed(TAG), image);
    let got = timed(&format!("/v2/team/app/manifests/{}", image.manifest));
    assert_eq!((x_cache(&got), &got.body), ("HIT", &image.bytes));
    for digest in image.layers.iter().chain([&image.config]) {
        let got = timed(&format!("/v2/team/app/blobs/{digest}"));
        assert_eq!((x_cache(&got), &got.digest), ("HIT", digest));
    }
    let tags = timed("/v2/team/app/tags/list");
    assert_eq!((tags.status, x_cache(&tags)), (200, "STALE"));
    assert_eq!(tags.text(), r#"{"name":"team/app","tags":["1.0"]}"#);
    assert!(
        tags.header("Warning")
            .is_some_and(|w| w.starts_with("299 - "))
    );
}

#[test]
fn what_was_pulled_is_pulled_again_with_all_of_aws_gone() {
    let (mut cached, image) = pulled(&[]);
    cached.all_down();
    assert_pulls(&cached, &image);
    let absent = cached.get("/v2/team/app/manifests/2.0");
    assert_eq!(absent.status, 504, "{}", absent.text());
    assert_eq!(error_of(&absent).0, "UNAVAILABLE");
    let blob = format!("/v2/team/app/blobs/sha256:{}", "0".repeat(64));
    assert_eq!(cached.get(&blob).status, 504);
    assert_eq!(cached.get("/v2/team/other/tags/list").status, 504);
    // The same after a restart, without a token.
    cached.stop();
    cached.start_again();
    assert_pulls(&cached, &image);
    assert_eq!(cached.get("/readyz").status, 200);
    assert!(cached.get("/readyz").text().contains("cache only"));
    assert_eq!(cached.get("/healthz").status, 200);
    // And when all is back, it is noticed.
    cached.all_up();
    wait_until("the tag is confirmed again", SOON, || {
        x_cache(&cached.get(TAG)) == "REVALIDATED"
    });
}

#[test]
fn the_registry_is_remembered_when_none_is_set() {
    let standin = Options {
        // Found by the identity: the API names the registry beside the token.
        ..Options::default()
    };
    let (mut cached, image) = pulled_from(standin, &[]);
    cached.all_down();
    cached.stop();
    cached.start_again_with(&[("ECR", "")]);
    assert_pulls(&cached, &image);
    // Without any credentials, too.
    cached.stop();
    cached.start_again_with(&[
        ("ECR", ""),
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]);
    assert_pulls(&cached, &image);
    assert_eq!(cached.get("/readyz").status, 200);
}

#[test]
fn an_empty_cache_without_upstream_is_not_ready() {
    let mut cached = Cached::start();
    cached.all_down();
    cached.stop();
    cached.start_again();
    assert_eq!(cached.get("/readyz").status, 503);
    let got = cached.get(TAG);
    assert!([503, 504].contains(&got.status), "{}", got.text());
}

#[test]
fn refusals_of_upstream_are_no_reason_to_have_nothing() {
    let (mut cached, image) = pulled(&[]);
    let pick = || Match::registry().always();
    for fault in [
        Fault::ExpiredToken403,
        Fault::Unauthorized401,
        Fault::registry_error(403, "DENIED", "not you"),
        Fault::status(500),
        Fault::status(502),
        Fault::status(503),
        Fault::CloseBeforeHead,
        Fault::garbage_head(),
        // The registry is left alone for a while after this one.
        Fault::TooMany429 {
            retry_after: Some(1),
        },
    ] {
        cached.standin.clear_faults();
        cached.standin.fault(pick(), fault.clone());
        let got = cached.get(TAG);
        assert!(
            x_cache(&got) == "STALE",
            "{fault:?}: {} {}",
            got.status,
            got.text()
        );
        assert_stale(&got, &image);
        let tags = cached.get("/v2/team/app/tags/list");
        assert_eq!((tags.status, x_cache(&tags)), (200, "STALE"), "{fault:?}");
    }
    cached.stop();
    cached.start_again();
    // A 404 is another thing.
    cached.standin.clear_faults();
    let fault = Fault::registry_error(404, "MANIFEST_UNKNOWN", "gone");
    cached.standin.fault(pick(), fault);
    assert_eq!(cached.get(TAG).status, 404);
    cached.standin.clear_faults();
    cached.standin.fault(pick(), Fault::status(500));
    assert_ne!(cached.get(TAG).status, 200, "upstream said that it is gone");
}

#[test]
fn a_tag_whose_new_manifest_cannot_be_had_is_served_as_it_was() {
    let (cached, image) = pulled(&[]);
    cached.standin.put_image("team/app", "1.0", &[]);
    let pick = Match::registry().method("GET").path("/manifests/");
    cached.standin.fault(pick, Fault::CutAfter(10));
    assert_stale(&cached.get(TAG), &image);
    assert_ne!(cached.get(TAG).body, image.bytes);
}

#[test]
fn a_silent_upstream_costs_two_seconds_once_or_twice() {
    let (cached, image) = pulled(&[]);
    let pick = Match::registry().always();
    cached.standin.fault(pick, Fault::Silent);
    for _ in 0..2 {
        let since = Instant::now();
        assert_stale(&cached.get(TAG), &image);
        assert!(
            since.elapsed() < Duration::from_secs(10),
            "{:?}",
            since.elapsed()
        );
    }
    // Now the circuit is open: nobody waits, but for the one that tries.
    let mut waits = 0;
    for _ in 0..20 {
        let since = Instant::now();
        assert_stale(&cached.get(TAG), &image);
        waits += usize::from(since.elapsed() > Duration::from_millis(500));
    }
    assert!(waits <= 1, "{waits} of 20 answers were slow");
    let since = Instant::now();
    assert_eq!(x_cache(&cached.get("/v2/team/app/tags/list")), "STALE");
    assert!(since.elapsed() < Duration::from_secs(10));
    cached.standin.clear_faults();
    cached.standin.release();
    wait_until("the recovery is noticed", SOON, || {
        x_cache(&cached.get(TAG)) == "REVALIDATED"
    });
}

#[test]
fn a_silent_api_keeps_nobody_waiting() {
    let (mut cached, image) = pulled(&[]);
    cached.stop();
    cached.standin.fault(Match::api().always(), Fault::Silent);
    cached.start_again();
    // Nobody knows yet that no token will come.
    assert_stale(&cached.get(TAG), &image);
    let mut waits = 0;
    for _ in 0..10 {
        let since = Instant::now();
        assert_stale(&cached.get(TAG), &image);
        waits += usize::from(since.elapsed() > AT_ONCE);
    }
    assert!(waits <= 2, "{waits} of 10 answers were slow");
}

#[test]
fn lists_come_from_the_cache_in_pages() {
    let cached = Cached::start();
    for name in ["a/one", "b/two", "c/three"] {
        for tag in ["2.0", "1.0", "latest"] {
            cached.standin.put_image(name, tag, &[]);
            let got = cached.get(&format!("/v2/{name}/manifests/{tag}"));
            assert_eq!(got.status, 200);
        }
    }
    cached.all_down();
    let text = |target: &str| {
        let got = cached.get(target);
        assert_eq!(
            (got.status, x_cache(&got)),
            (200, "STALE"),
            "{}",
            got.text()
        );
        assert_eq!(got.header("Content-Type"), Some("application/json"));
        assert!(got.header("Warning").is_some());
        (got.text(), got.header("Link").map(str::to_owned))
    };
    let tags = |list: &str| format!(r#"{{"name":"a/one","tags":[{list}]}}"#);
    let whole = (tags(r#""1.0","2.0","latest""#), None);
    assert_eq!(text("/v2/a/one/tags/list"), whole);
    let (page, link) = text("/v2/a/one/tags/list?n=2");
    assert_eq!(page, tags(r#""1.0","2.0""#));
    let next = "</v2/a/one/tags/list?n=2&last=2.0>; rel=\"next\"".to_owned();
    assert_eq!(link, Some(next));
    let last = (tags(r#""latest""#), None);
    assert_eq!(text("/v2/a/one/tags/list?n=2&last=2.0"), last);
    let (page, link) = text("/v2/_catalog?n=2");
    assert_eq!(page, r#"{"repositories":["a/one","b/two"]}"#);
    let next = "</v2/_catalog?n=2&last=b/two>; rel=\"next\"".to_owned();
    assert_eq!(link, Some(next));
    let last = r#"{"repositories":["c/three"]}"#.to_owned();
    assert_eq!(text("/v2/_catalog?n=2&last=b%2Ftwo"), (last, None));
}

#[test]
fn a_tag_is_revalidated_though_its_token_has_expired() {
    let cached = Cached::start();
    cached.standin.put_image("team/app", "1.0", &[]);
    let manifest = "/v2/team/app/manifests/1.0";
    assert_eq!(cached.get(manifest).status, 200);
    cached.standin.expire_tokens();
    let got = cached.get(manifest);
    let cache = got.header("X-Cache");
    assert_eq!(
        (got.status, cache),
        (200, Some("REVALIDATED")),
        "{}",
        got.text()
    );
}
