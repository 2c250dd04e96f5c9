//! The token thread against a scripted API and a clock moved by hand. No sleeps: `step()` is what
//! the thread does once, and where a caller must wait, the thread runs beside it.

mod faults;
mod identity;
mod region;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, UNIX_EPOCH};

use super::super::super::fake::{self, FakeApi, START, json, refused};
use super::super::attempts::Availability;
use super::super::tokens::{REGIONS_MAX, TokenConfig};
use super::*;
use crate::clock::{Clock, ManualClock};
use crate::config::AwsSettings;
use crate::oci::Registry;
use crate::secret::Secret;
use crate::upstream::{AuthFault, Authorizer as _, Grant};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);
const EU: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const US: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
const STS_REPLY: &str = "<R><Arn>arn:aws:iam::123456789012:user/a</Arn>\
                         <Account>123456789012</Account><UserId>AIDAX</UserId></R>";

struct Bench {
    api: Arc<FakeApi>,
    clock: Arc<ManualClock>,
    tokens: Arc<Tokens>,
}

impl Bench {
    fn new(registry: Option<&str>, aws: AwsSettings) -> Self {
        let clock = fake::clock();
        let api = FakeApi::new(&clock);
        let config = TokenConfig {
            aws,
            renew_interval: HOUR * 6,
            registry: registry.map(|text| text.parse().unwrap()),
        };
        let tokens = Tokens::new(config, api.clone(), clock.clone());
        Self { api, clock, tokens }
    }

    /// Asks with a deadline that has come: nothing may wait.
    fn header(&self, registry: &str) -> Result<Grant, String> {
        self.tokens
            .header(&registry.parse().unwrap(), self.clock.monotonic())
            .map_err(|fault| fault.0)
    }

    fn renew(&self, generation: u64) -> Result<Grant, String> {
        self.tokens
            .renew(&EU.parse().unwrap(), generation, self.clock.monotonic())
            .map_err(|fault| fault.0)
    }

    fn step(&self) -> &'static str {
        match self.tokens.step() {
            TokenJob::Fetch(_) => "fetch",
            TokenJob::Identify(_) => "identify",
            TokenJob::Refresh => "refresh",
            TokenJob::Search => "search",
            TokenJob::Sleep(_) => "sleep",
            TokenJob::Stop => "stop",
        }
    }

    fn first_token(&self) {
        self.api.reply(token("one", START + 12 * 3600));
        assert_eq!(self.step(), "fetch");
        self.api.reply(json(200, STS_REPLY));
        assert_eq!(self.step(), "identify");
        assert_eq!(self.step(), "sleep");
    }
}

fn keys() -> AwsSettings {
    AwsSettings {
        access_key_id: Some("AKIDEXAMPLE".into()),
        secret_access_key: Some(Secret::new("hunter2".into())),
        ..AwsSettings::default()
    }
}

fn token(text: &str, expires: u64) -> fake::Scripted {
    let body = format!(
        r#"{{"authorizationData":[{{"authorizationToken":"{text}","expiresAt":{expires}.5,
            "proxyEndpoint":"https://{EU}"}}]}}"#
    );
    json(200, &body)
}

fn value(grant: &Grant) -> &str {
    grant.value.as_ref().unwrap().authorization().expose()
}

#[test]
fn the_configured_registrys_token_is_fetched_without_being_asked() {
    let bench = Bench::new(Some(EU), keys());
    assert!(
        bench
            .header(EU)
            .unwrap_err()
            .contains("has not answered yet")
    );
    bench.first_token();
    let grant = bench.header(EU).unwrap();
    assert_eq!((value(&grant), grant.generation), ("Basic one", 1));
    // Bug: the forms of a token were looked for anew for each request.
    let again = bench.header(EU).unwrap().value.unwrap();
    assert!(Arc::ptr_eq(&grant.value.unwrap(), &again));
    let deadline = bench.clock.monotonic();
    assert_eq!(bench.tokens.default_registry(deadline).unwrap().host(), EU);
    let status = bench.tokens.status();
    assert!(status.has_token && status.last_error.is_none());
    let expires = UNIX_EPOCH + Duration::from_secs(START + 12 * 3600) + SECOND / 2;
    assert_eq!(status.expires, Some(expires));
    assert_eq!(
        status.arn.as_deref(),
        Some("arn:aws:iam::123456789012:user/a")
    );
    let urls: Vec<String> = bench.api.calls().into_iter().map(|call| call.url).collect();
    assert_eq!(
        urls,
        [
            "https://api.ecr.eu-west-1.amazonaws.com/",
            "https://sts.eu-west-1.amazonaws.com/"
        ]
    );
}

#[test]
fn the_token_is_renewed_before_half_of_its_life_and_kept_when_that_fails() {
    let bench = Bench::new(Some(EU), keys());
    bench.first_token();
    bench.clock.advance(HOUR * 5);
    assert_eq!(bench.step(), "sleep");
    bench.clock.advance(HOUR);
    bench.api.fail(refused());
    assert_eq!(bench.step(), "fetch");
    assert_eq!(value(&bench.header(EU).unwrap()), "Basic one");
    let status = bench.tokens.status();
    assert!(status.has_token && status.last_error.unwrap().contains("connect failed"));
    assert_eq!(bench.step(), "sleep");
    bench.clock.advance(SECOND);
    bench.api.reply(token("two", START + 18 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(value(&bench.header(EU).unwrap()), "Basic two");
    assert_eq!(bench.tokens.status().last_error, None);
}

#[test]
fn at_its_end_a_token_is_sent_no_more() {
    let bench = Bench::new(Some(EU), keys());
    bench.first_token();
    bench.clock.advance(HOUR * 12);
    bench.api.fail(refused());
    assert_eq!(bench.step(), "fetch");
    assert_eq!(value(&bench.header(EU).unwrap()), "Basic one");
    bench.clock.advance(SECOND / 2);
    assert!(bench.header(EU).unwrap_err().contains("connect failed"));
    assert!(!bench.tokens.status().has_token);
}

#[test]
fn a_fault_is_told_at_once_while_backing_off() {
    let bench = Bench::new(Some(EU), keys());
    let body = r#"{"__type":"AccessDeniedException","message":"no."}"#;
    bench.api.reply(json(400, body));
    assert_eq!(bench.step(), "fetch");
    let fault = bench.header(EU).unwrap_err();
    let text = "GetAuthorizationToken 400 AccessDeniedException in eu-west-1 via environment: no; \
                grant ecr:GetAuthorizationToken (next try in ";
    assert!(fault.starts_with(text), "{fault}");
    bench.clock.advance(SECOND * 59);
    assert_eq!(bench.step(), "sleep");
    bench.clock.advance(SECOND * 7);
    assert_eq!(bench.step(), "fetch");
    assert_eq!(bench.api.calls().len(), 2);
}

#[test]
fn throttling_is_waited_out() {
    let bench = Bench::new(Some(EU), keys());
    bench.api.reply(json(429, "").with("Retry-After", "30"));
    assert_eq!(bench.step(), "fetch");
    bench.clock.advance(SECOND * 29);
    assert_eq!(bench.step(), "sleep");
    bench.clock.advance(SECOND * 4);
    bench.api.reply(token("one", START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert!(bench.header(EU).is_ok());
}

#[test]
fn an_expiry_in_2015_causes_one_call_a_minute() {
    let bench = Bench::new(Some(EU), keys());
    let body = r#"{"authorizationData":[{"authorizationToken":"dG9r","expiresAt":1420070400}]}"#;
    for _ in 0..20 {
        bench.api.reply(json(200, body));
    }
    let mut fetches = 0;
    for _ in 0..300 {
        while bench.step() != "sleep" {
            fetches += 1;
        }
        assert_eq!(value(&bench.header(EU).unwrap()), "Basic dG9r");
        bench.clock.advance(SECOND);
    }
    // Five minutes, each up to a tenth shorter, and the one call to STS.
    assert!((6..=7).contains(&fetches), "{fetches}");
}

#[test]
fn a_clock_off_by_a_day_costs_one_more_call_and_expiry_is_judged_by_aws_time() {
    let bench = Bench::new(Some(EU), keys());
    let real = bench.clock.now() + HOUR * 24;
    let late = r#"{"__type":"InvalidSignatureException","message":"Signature expired"}"#;
    bench.api.reply(json(400, late).dated(real));
    bench.api.reply(token("one", START + 36 * 3600).dated(real));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(bench.api.calls().len(), 2);
    assert_eq!(value(&bench.header(EU).unwrap()), "Basic one");
    bench.step();
    // Twelve hours of life by AWS's clock, not thirty-six by ours.
    bench.clock.advance(HOUR * 12 + SECOND);
    assert!(bench.header(EU).is_err());
}

#[test]
fn a_signature_late_for_want_of_a_date_is_tried_again_soon() {
    let bench = Bench::new(Some(EU), keys());
    let late = r#"{"__type":"InvalidSignatureException","message":"Signature expired"}"#;
    bench.api.reply(json(400, late));
    assert_eq!(bench.step(), "fetch");
    assert!(
        bench
            .header(EU)
            .unwrap_err()
            .contains("set this machine's clock")
    );
    bench.clock.advance(SECOND);
    assert_eq!(bench.step(), "fetch");
}

#[test]
fn each_region_has_its_own_token() {
    let bench = Bench::new(Some(EU), keys());
    bench.first_token();
    assert!(bench.header(US).is_err());
    bench.api.reply(token("us", START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(value(&bench.header(US).unwrap()), "Basic us");
    assert_eq!(value(&bench.header(EU).unwrap()), "Basic one");
    let url = bench.api.calls().pop().unwrap().url;
    assert_eq!(url, "https://api.ecr.us-east-1.amazonaws.com/");
    // Another account in the same region needs no token of its own.
    let other = EU.replace("123456789012", "210987654321");
    assert_eq!(value(&bench.header(&other).unwrap()), "Basic one");
}

#[test]
fn ecr_public_has_bearer_tokens_and_no_registry_of_ours() {
    let bench = Bench::new(Some("public.ecr.aws"), keys());
    bench.api.reply(json(
        200,
        r#"{"authorizationData":{"authorizationToken":"dG9r","expiresAt":1.7E9}}"#,
    ));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(
        value(&bench.header("public.ecr.aws").unwrap()),
        "Bearer dG9r"
    );
    let fault = bench.tokens.default_registry(bench.clock.monotonic());
    assert!(fault.unwrap_err().0.contains("set ECR"));
}

#[test]
fn without_credentials_the_fault_says_what_to_set() {
    let aws = AwsSettings {
        region: Some("eu-west-1".into()),
        ..AwsSettings::default()
    };
    let bench = Bench::new(None, aws);
    assert_eq!(bench.step(), "fetch");
    let fault = bench.header(EU).unwrap_err();
    assert!(
        fault.contains("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        "{fault}"
    );
    assert_eq!(bench.step(), "sleep");
    assert!(bench.api.calls().is_empty());
    assert!(bench.tokens.status().last_error.is_some());
    let half = AwsSettings {
        secret_access_key: None,
        ..keys()
    };
    let bench = Bench::new(Some(EU), half);
    assert_eq!(bench.step(), "fetch");
    assert!(
        bench
            .header(EU)
            .unwrap_err()
            .contains("AWS_SECRET_ACCESS_KEY is not")
    );
}

#[test]
fn wrong_keys_are_named_as_such_and_not_tried_again_for_a_minute() {
    let bench = Bench::new(Some(EU), keys());
    let xml = "<ErrorResponse><Error><Code>InvalidClientTokenId</Code><Message>The security token \
               included in the request is invalid.</Message></Error></ErrorResponse>";
    bench.api.reply(json(403, xml));
    assert_eq!(bench.step(), "fetch");
    assert!(
        bench
            .header(EU)
            .unwrap_err()
            .contains("check the access key id")
    );
    bench.clock.advance(SECOND * 59);
    assert_eq!(bench.step(), "sleep");
    assert_eq!(bench.api.calls().len(), 1);
}

#[test]
fn without_a_region_nothing_is_fetched_and_the_fault_says_what_to_set() {
    let bench = Bench::new(Some("http://127.0.0.1:5000"), keys());
    assert_eq!(bench.step(), "sleep");
    let fault = bench.header("http://127.0.0.1:5000").unwrap_err();
    assert!(
        fault.ends_with("127.0.0.1:5000 has no region: set AWS_REGION"),
        "{fault}"
    );
    assert!(
        bench
            .tokens
            .status()
            .last_error
            .unwrap()
            .contains("set AWS_REGION")
    );
    let bench = Bench::new(None, keys());
    let fault = bench.tokens.default_registry(bench.clock.monotonic());
    assert!(fault.unwrap_err().0.contains("set ECR or AWS_REGION"));
    let odd = AwsSettings {
        region: Some("eu west".into()),
        ..keys()
    };
    let bench = Bench::new(None, odd);
    assert!(
        bench
            .tokens
            .status()
            .last_error
            .unwrap()
            .contains("AWS_REGION=\"eu west\"")
    );
}

#[test]
fn a_bad_endpoint_is_a_fault_not_a_call() {
    let aws = AwsSettings {
        endpoint_url_ecr: Some("localhost:4566".into()),
        ..keys()
    };
    let bench = Bench::new(Some(EU), aws);
    assert_eq!(bench.step(), "fetch");
    assert!(
        bench
            .header(EU)
            .unwrap_err()
            .starts_with("AWS_ENDPOINT_URL_ECR is not a URL")
    );
    assert!(bench.api.calls().is_empty());
}

#[test]
fn an_unreachable_sts_is_asked_once_and_harms_nothing() {
    let bench = Bench::new(Some(EU), keys());
    bench.api.reply(token("one", START + 12 * 3600));
    bench.api.fail(refused());
    assert_eq!(bench.step(), "fetch");
    assert!(bench.header(EU).is_ok());
    assert_eq!(bench.step(), "identify");
    assert_eq!(bench.step(), "sleep");
    let status = bench.tokens.status();
    assert!(status.has_token && status.arn.is_none() && status.last_error.is_none());
}

#[test]
fn a_refused_token_is_renewed_once_and_limited_after_that() {
    let bench = Bench::new(Some(EU), keys());
    bench.first_token();
    assert!(bench.renew(1).is_err(), "nobody has fetched yet");
    assert!(bench.renew(1).is_err());
    bench.api.reply(token("two", START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(bench.step(), "sleep");
    let grant = bench.renew(1).unwrap();
    assert_eq!((value(&grant), grant.generation), ("Basic two", 2));
    assert!(bench.renew(2).unwrap_err().contains("renewals are limited"));
    assert_eq!(bench.step(), "sleep");
}

#[test]
fn many_callers_share_one_fetch() {
    let bench = Bench::new(Some(EU), keys());
    bench.first_token();
    bench.api.reply(token("two", START + 12 * 3600));
    let registry: Registry = EU.parse().unwrap();
    let deadline = bench.clock.monotonic() + SECOND * 30;
    std::thread::scope(|scope| {
        scope.spawn(|| bench.tokens.run());
        let ask = || bench.tokens.renew(&registry, 1, deadline);
        let callers: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        let grants: Vec<_> = callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .collect();
        // Before anything can fail: the scope waits for the thread.
        bench.tokens.stop();
        for grant in grants {
            assert_eq!(grant.unwrap().generation, 2);
        }
    });
    assert_eq!(bench.api.calls().len(), 3);
}

/// A clock that goes on with each look. After the next look another caller asks first, if the lock
/// lets it.
struct Hurried {
    clock: Arc<ManualClock>,
    tokens: std::sync::OnceLock<Arc<Tokens>>,
    comes_between: std::sync::atomic::AtomicBool,
}

impl Clock for Hurried {
    fn now(&self) -> std::time::SystemTime {
        self.clock.now()
    }

    fn monotonic(&self) -> Instant {
        let now = self.clock.monotonic();
        self.clock.advance(Duration::from_millis(1));
        if self.comes_between.swap(false, Ordering::Relaxed)
            && let Some(tokens) = self.tokens.get()
            && let Ok(mut table) = tokens.shared.try_lock()
        {
            let later = self.clock.monotonic();
            let first = table.regions.values_mut().next().unwrap().renew(1, later);
            assert!(matches!(first, Availability::Wait(2)), "{first:?}");
        }
        now
    }
}

#[test]
fn bug_a_refused_token_was_not_renewed_for_a_caller_that_looked_at_the_clock_first() {
    let clock = Arc::new(Hurried {
        clock: fake::clock(),
        tokens: std::sync::OnceLock::new(),
        comes_between: false.into(),
    });
    let api = FakeApi::new(&clock.clock);
    let config = TokenConfig {
        aws: keys(),
        renew_interval: HOUR * 6,
        registry: Some(EU.parse().unwrap()),
    };
    let tokens = Tokens::new(config, api.clone(), clock.clone());
    api.reply(token("one", START + 12 * 3600));
    assert!(matches!(tokens.step(), TokenJob::Fetch(_)));
    clock.tokens.set(tokens.clone()).ok().unwrap();
    clock.comes_between.store(true, Ordering::Relaxed);
    let deadline = clock.clock.monotonic();
    let fault = tokens.renew(&EU.parse().unwrap(), 1, deadline).unwrap_err();
    assert!(fault.0.contains("in time"), "{}", fault.0);
    let table = tokens.lock();
    assert!(matches!(tokens.next_job(&table), TokenJob::Fetch(_)));
}

#[test]
fn an_upload_waits_for_a_token_that_outlives_it() {
    const FRESH: Duration = Duration::from_secs(15 * 60);
    let registry: Registry = EU.parse().unwrap();
    let ask = |bench: &Bench, patience| {
        let deadline = bench.clock.monotonic() + patience;
        bench.tokens.header_fresh_for(&registry, FRESH, deadline)
    };
    let bench = Bench::new(Some(EU), keys());
    bench.first_token();
    bench.clock.advance(HOUR * 11);
    assert_eq!(ask(&bench, Duration::ZERO).unwrap().generation, 1);
    bench.clock.advance(HOUR * 3 / 4 + SECOND * 30);
    // No time to wait: the old one, which is good still.
    assert_eq!(ask(&bench, Duration::ZERO).unwrap().generation, 1);
    bench.api.reply(token("two", START + 24 * 3600));
    std::thread::scope(|scope| {
        scope.spawn(|| bench.tokens.run());
        let grant = ask(&bench, SECOND * 30);
        bench.tokens.stop();
        assert_eq!(grant.unwrap().generation, 2);
    });
    assert_eq!(bench.api.calls().len(), 3);
    // A renewal that fails is not asked for again by each upload.
    let bench = Bench::new(Some(EU), keys());
    bench.first_token();
    bench.clock.advance(HOUR * 12 - SECOND);
    bench.api.fail(refused());
    assert_eq!(bench.step(), "fetch");
    for _ in 0..3 {
        assert_eq!(ask(&bench, SECOND * 30).unwrap().generation, 1);
    }
    assert_eq!(bench.step(), "sleep");
}

#[test]
fn stopping_frees_callers_that_wait() {
    let bench = Bench::new(Some(EU), keys());
    let registry: Registry = EU.parse().unwrap();
    let deadline = bench.clock.monotonic() + SECOND * 30;
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| bench.tokens.header(&registry, deadline));
        bench.tokens.stop();
        assert_eq!(
            caller.join().unwrap(),
            Err(AuthFault("shutting down".into()))
        );
    });
    assert_eq!(bench.step(), "stop");
    bench.tokens.run();
}

#[test]
fn the_number_of_regions_is_limited() {
    let bench = Bench::new(Some(EU), keys());
    let host = |n: usize| format!("123456789012.dkr.ecr.eu-test-{n}.amazonaws.com");
    for n in 0..REGIONS_MAX - 1 {
        assert!(
            bench
                .header(&host(n))
                .unwrap_err()
                .contains("has not answered")
        );
    }
    let fault = bench.header(&host(REGIONS_MAX)).unwrap_err();
    assert!(fault.contains("64 regions are in use"), "{fault}");
}

#[test]
fn no_debug_print_shows_a_secret() {
    let bench = Bench::new(Some(EU), keys());
    bench.first_token();
    let shown = format!(
        "{:?} {:?} {:?} {:?}",
        bench.tokens,
        bench.header(EU),
        bench.tokens.config,
        bench.tokens.status()
    );
    assert!(
        !shown.contains("hunter2") && !shown.contains("Basic"),
        "{shown}"
    );
}
