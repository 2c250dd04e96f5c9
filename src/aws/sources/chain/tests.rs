//! The chain: order, faults that do not fall through, and temporary credentials in use.

use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use super::super::super::fake::{self, FakeApi};
use super::*;
use crate::clock::{Clock as _, ManualClock};
use crate::secret::Secret;

const SECOND: Duration = Duration::from_secs(1);

/// Answers from a script; not configured when that is over.
#[derive(Default)]
struct Scripted(Mutex<Vec<Result<Credentials, AwsFault>>>);

impl Scripted {
    fn add(&self, outcome: Result<Credentials, AwsFault>) {
        self.0.lock().unwrap().push(outcome);
    }

    fn left(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl Source for Scripted {
    fn fetch(&self) -> Result<Option<Credentials>, AwsFault> {
        let mut script = self.0.lock().unwrap();
        if script.is_empty() {
            return Ok(None);
        }
        script.remove(0).map(Some)
    }
}

struct Bench {
    clock: Arc<ManualClock>,
    source: Arc<Scripted>,
    chain: Chain,
}

impl Bench {
    fn new() -> Self {
        let clock = fake::clock();
        let caller = Arc::new(Caller::new(FakeApi::new(&clock), clock.clone()));
        let source = Arc::new(Scripted::default());
        let chain = chain_of(vec![source.clone()], &caller);
        Self {
            clock,
            source,
            chain,
        }
    }

    /// Credentials with this id that end so many seconds from now.
    fn gives(&self, id: &str, life_s: u64) {
        let expires = self.clock.now() + SECOND * u32::try_from(life_s).unwrap();
        self.source.add(Ok(Credentials {
            expires: Some(expires),
            ..named(id)
        }));
    }

    fn fails(&self) {
        self.source.add(Err(AwsFault::passing("sts is down")));
    }

    fn fetch(&self) -> Result<String, String> {
        let fetched = self.chain.fetch();
        fetched
            .map(|found| found.access_key_id)
            .map_err(|fault| fault.to_string())
    }

    fn pass(&self, seconds: u32) {
        self.clock.advance(SECOND * seconds);
    }
}

fn chain_of(sources: Vec<Arc<dyn Source>>, caller: &Arc<Caller>) -> Chain {
    let sts = Sts::new(caller, &AwsSettings::default(), None);
    Chain::of(sources, caller, Arc::new(sts))
}

fn named(id: &str) -> Credentials {
    Credentials {
        access_key_id: id.into(),
        secret: Secret::new("hunter2".into()),
        session_token: Some(Secret::new("token+/=".into())),
        expires: None,
        source: "test".into(),
    }
}

fn chain(sources: [Option<Result<&str, &str>>; 3]) -> Result<String, AwsFault> {
    let source = |outcome: Option<Result<&str, &str>>| {
        let source = Scripted::default();
        if let Some(outcome) = outcome {
            source.add(outcome.map(named).map_err(AwsFault::lasting));
        }
        Arc::new(source) as Arc<dyn Source>
    };
    let clock = fake::clock();
    let caller = Arc::new(Caller::new(FakeApi::new(&clock), clock));
    let chain = chain_of(sources.map(source).into(), &caller);
    chain.fetch().map(|found| found.access_key_id)
}

#[test]
fn the_first_configured_source_decides_even_by_failing() {
    let found = chain([None, Some(Ok("b")), Some(Err("late"))]);
    assert_eq!(found, Ok("b".into()));
    let failed = chain([None, Some(Err("broken")), Some(Ok("c"))]);
    let broken = AwsFault::lasting("AWS credentials: broken");
    assert_eq!(failed, Err(broken));
    let none = format!("{NOT_CONFIGURED}; none of them is set");
    let none = AwsFault::new(none, FaultKind::Unconfigured);
    assert_eq!(chain([None, None, None]), Err(none));
}

#[test]
fn the_sources_of_the_settings_are_asked_in_their_order() {
    let caller = Arc::new(Caller::new(FakeApi::new(&fake::clock()), fake::clock()));
    let fetch = |settings: &AwsSettings| Chain::new(settings, &caller, None).fetch();
    let mut settings = AwsSettings {
        profile: Some("dev".into()),
        ..AwsSettings::default()
    };
    let fault = fetch(&settings).unwrap_err().to_string();
    assert!(
        fault.starts_with("AWS credentials: AWS_PROFILE=dev: "),
        "{fault}"
    );
    settings.web_identity_token_file = Some("/nonexistent".into());
    let fault = fetch(&settings).unwrap_err().to_string();
    assert!(fault.contains("AWS_ROLE_ARN is not"), "{fault}");
    settings.access_key_id = Some("AKID".into());
    let fault = fetch(&settings).unwrap_err().to_string();
    assert!(fault.contains("AWS_SECRET_ACCESS_KEY is not"), "{fault}");
    settings.secret_access_key = Some(Secret::new("s".into()));
    assert_eq!(fetch(&settings).unwrap().source, "environment");
    let none = fetch(&AwsSettings::default()).unwrap_err();
    assert_eq!(none.kind, FaultKind::Unconfigured);
}

#[test]
fn temporary_credentials_are_used_until_they_are_about_to_end() {
    let bench = Bench::new();
    bench.gives("one", 3600);
    assert_eq!(bench.fetch().unwrap(), "one");
    let due = bench.clock.monotonic() + SECOND * 3300;
    assert_eq!(bench.chain.refresh_due(), Some(due));
    bench.gives("two", 7200);
    bench.pass(3299);
    assert_eq!(bench.fetch().unwrap(), "one");
    assert_eq!(bench.source.left(), 1);
    bench.pass(1);
    assert_eq!(bench.fetch().unwrap(), "two");
    bench.pass(3600);
    assert_eq!(bench.fetch().unwrap(), "two");
}

#[test]
fn while_the_source_fails_the_old_ones_serve_to_their_end_and_no_longer() {
    let bench = Bench::new();
    bench.gives("one", 3600);
    bench.fetch().unwrap();
    bench.pass(3400);
    bench.fails();
    bench.fails();
    assert_eq!(bench.fetch().unwrap(), "one");
    // No second try for a minute.
    bench.pass(59);
    assert_eq!(bench.fetch().unwrap(), "one");
    assert_eq!(bench.source.left(), 1);
    bench.pass(1);
    assert_eq!(bench.fetch().unwrap(), "one");
    assert_eq!(bench.source.left(), 0);
    bench.pass(139);
    bench.fails();
    assert_eq!(bench.fetch().unwrap(), "one");
    bench.pass(1);
    bench.fails();
    let fault = bench.fetch().unwrap_err();
    assert_eq!(fault, "AWS credentials: sts is down");
    assert_eq!(bench.chain.refresh_due(), None);
    bench.gives("two", 3600);
    assert_eq!(bench.fetch().unwrap(), "two");
}

#[test]
fn credentials_without_an_end_are_asked_for_each_time() {
    let bench = Bench::new();
    for id in ["one", "two"] {
        bench.source.add(Ok(named(id)));
        assert_eq!(bench.fetch().unwrap(), id);
    }
    assert_eq!(bench.chain.refresh_due(), None);
}

#[test]
fn what_seems_to_have_ended_is_given_out_once_and_not_kept() {
    let bench = Bench::new();
    for id in ["one", "two"] {
        bench.gives(id, 0);
        assert_eq!(bench.fetch().unwrap(), id);
    }
    assert_eq!(bench.chain.refresh_due(), None);
}

#[test]
fn refused_credentials_are_fetched_anew_before_their_time() {
    let bench = Bench::new();
    bench.gives("one", 3600);
    bench.fetch().unwrap();
    bench.gives("two", 3600);
    let fresh = bench.chain.refetch().unwrap();
    assert_eq!(fresh.access_key_id, "two");
    assert_eq!(bench.fetch().unwrap(), "two");
    bench.chain.forget();
    bench.gives("three", 3600);
    assert_eq!(bench.fetch().unwrap(), "three");
}

#[test]
fn their_end_is_judged_by_awss_clock() {
    let clock = fake::clock();
    let api = FakeApi::new(&clock);
    let caller = Arc::new(Caller::new(api.clone(), clock.clone()));
    let source = Arc::new(Scripted::default());
    let chain = chain_of(vec![source.clone()], &caller);
    // Ours is a day behind, so that an hour more seems to be a day and an hour.
    let day = SECOND * 86_400;
    source.add(Ok(Credentials {
        expires: Some(clock.now() + day + SECOND * 3600),
        ..named("one")
    }));
    chain.fetch().unwrap();
    api.reply(fake::json(200, "").dated(clock.now() + day));
    let ask = super::super::super::call::UnsignedCall {
        operation: "GetCallerIdentity",
        service: "sts",
        region: "eu-west-1".into(),
        url: "https://h/".into(),
        headers: crate::message::Headers::new(),
        body: Secret::default(),
        permission: None,
        timeout: SECOND,
    };
    caller.call(&ask, &named("one")).unwrap();
    clock.advance(SECOND * 3500);
    source.add(Ok(named("two")));
    assert_eq!(chain.fetch().unwrap().access_key_id, "two");
}

#[test]
fn secrets_are_cut_out_of_texts_and_debug_prints() {
    let credentials = named("AKID");
    let text = credentials
        .redactor()
        .clean("key hunter2, x-amz-security-token:token+/= for AKID");
    assert_eq!(text, "key ***, x-amz-security-token:*** for AKID");
    let kept = LastingCredentials::new(
        &Credentials {
            expires: Some(UNIX_EPOCH),
            ..credentials.clone()
        },
        Instant::now(),
    );
    let debug = format!("{credentials:?} {kept:?}");
    assert!(!debug.contains("hunter2") && !debug.contains("token+"));
}
