//! What may go wrong around a token, by a clock that is moved by hand: STS is down while a token
//! ends, credentials rotate, AWS throttles, clocks differ; and several regions at once.

use super::super::super::super::fake::Folder;
use super::*;

/// A bench whose identity is the profile `default` of a file; the folder holds it.
fn profile() -> (Bench, Folder) {
    let folder = Folder::new();
    let aws = AwsSettings {
        credentials_file: Some(folder.write("credentials", &keys_of("AKIDONE"))),
        ..AwsSettings::default()
    };
    (Bench::new(Some(EU), aws), folder)
}

fn keys_of(id: &str) -> String {
    format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = hunter2\n")
}

/// The key that signed the last call.
fn signer(bench: &Bench) -> String {
    let call = bench.api.calls().pop().unwrap();
    let value = call.headers.first("authorization").unwrap_or_default();
    let (_, rest) = value.split_once("Credential=").unwrap_or_default();
    rest.split('/').next().unwrap().to_owned()
}

/// Seconds until the thread does something of itself, up to `limit`.
fn seconds_until_a_step(bench: &Bench, limit: u32) -> u32 {
    for second in 0..limit {
        if bench.step() != "sleep" {
            return second;
        }
        bench.clock.advance(SECOND);
    }
    limit
}

#[test]
fn credentials_that_rotate_under_a_running_pull_change_nothing_for_it() {
    let (bench, folder) = profile();
    bench.first_token();
    let running = bench.header(EU).unwrap();
    folder.write("credentials", &keys_of("AKIDTWO"));
    // The pull goes on with what it has, and so does the next one.
    assert_eq!(value(&running), "Basic one");
    assert_eq!(bench.header(EU).unwrap(), running);
    // The registry refuses the old token: the new one is signed with the new key.
    assert!(bench.renew(running.generation).is_err());
    bench.api.reply(token("two", START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(signer(&bench), "AKIDTWO");
    assert_eq!(
        value(&bench.renew(running.generation).unwrap()),
        "Basic two"
    );
}

#[test]
fn our_arn_is_asked_for_anew_when_another_key_signs() {
    let (bench, folder) = profile();
    bench.first_token();
    assert!(bench.tokens.status().arn.unwrap().ends_with("user/a"));
    folder.write("credentials", &keys_of("AKIDTWO"));
    bench.clock.advance(HOUR * 6);
    bench.api.reply(token("two", START + 18 * 3600));
    assert_eq!(bench.step(), "fetch");
    bench
        .api
        .reply(json(200, &STS_REPLY.replace("user/a", "user/b")));
    assert_eq!(bench.step(), "identify");
    assert!(bench.tokens.status().arn.unwrap().ends_with("user/b"));
    // The same key again: nothing to ask.
    bench.clock.advance(HOUR * 6);
    bench.api.reply(token("three", START + 24 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(bench.step(), "sleep");
}

#[test]
fn a_throttled_renewal_waits_as_long_as_aws_asks_while_the_old_token_serves() {
    for (name, asked, least) in [
        ("Retry-After", "120", 120),
        ("x-amz-retry-after", "90000", 90),
    ] {
        let bench = Bench::new(Some(EU), keys());
        bench.first_token();
        bench.clock.advance(HOUR * 6);
        let body = r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#;
        bench.api.reply(json(400, body).with(name, asked));
        assert_eq!(bench.step(), "fetch");
        let told = bench.tokens.status().last_error.unwrap();
        assert!(told.contains("400 ThrottlingException"), "{told}");
        assert_eq!(value(&bench.header(EU).unwrap()), "Basic one");
        bench.api.reply(token("two", START + 18 * 3600));
        let waited = seconds_until_a_step(&bench, 300);
        assert!(
            (least..=least + least / 10 + 1).contains(&waited),
            "{waited}"
        );
        assert_eq!(value(&bench.header(EU).unwrap()), "Basic two");
    }
}

#[test]
fn throttling_without_a_time_backs_off_further_and_further() {
    let bench = Bench::new(Some(EU), keys());
    let mut waits = Vec::new();
    bench.api.reply(json(429, ""));
    assert_eq!(bench.step(), "fetch");
    for _ in 0..7 {
        bench.api.reply(json(429, ""));
        waits.push(seconds_until_a_step(&bench, 300));
    }
    // Doubled each time up to a minute, and up to half of it less.
    for (wait, most) in waits.iter().zip([1, 2, 4, 8, 16, 32, 60]) {
        assert!((most / 2..=most).contains(wait), "{waits:?}");
    }
}

#[test]
fn a_throttled_sts_is_waited_for_as_it_asks() {
    let folder = Folder::new();
    let aws = AwsSettings {
        web_identity_token_file: Some(folder.write("token", "tok.en")),
        role_arn: Some("arn:aws:iam::123456789012:role/puller".into()),
        ..AwsSettings::default()
    };
    let bench = Bench::new(Some(EU), aws);
    let xml = "<ErrorResponse><Error><Code>Throttling</Code><Message>Rate exceeded</Message>\
               </Error></ErrorResponse>";
    bench.api.reply(json(400, xml).with("Retry-After", "40"));
    assert_eq!(bench.step(), "fetch");
    let told = bench.header(EU).unwrap_err();
    let start = "AWS credentials: AssumeRoleWithWebIdentity 400 Throttling in eu-west-1 via web \
                 identity";
    assert!(told.starts_with(start), "{told}");
    let waited = seconds_until_a_step(&bench, 300);
    assert!((40..=45).contains(&waited), "{waited}");
}

#[test]
fn a_clock_a_day_ahead_or_behind_is_corrected_for_signatures_and_ends() {
    for ahead in [true, false] {
        let bench = Bench::new(Some(EU), keys());
        let ours = bench.clock.now();
        let theirs = if ahead {
            ours - HOUR * 24
        } else {
            ours + HOUR * 24
        };
        let since = theirs.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let refused =
            r#"{"__type":"InvalidSignatureException","message":"Signature not yet current"}"#;
        bench.api.reply(json(400, refused).dated(theirs));
        bench
            .api
            .reply(token("one", since + 12 * 3600).dated(theirs));
        assert_eq!(bench.step(), "fetch");
        let dates: Vec<String> = bench
            .api
            .calls()
            .iter()
            .map(|call| call.headers.first("x-amz-date").unwrap().to_owned())
            .collect();
        let expected = if ahead {
            "20231113T221320Z"
        } else {
            "20231115T221320Z"
        };
        assert_eq!(dates, ["20231114T221320Z", expected]);
        bench.step();
        bench.clock.advance(HOUR * 12 - SECOND);
        assert!(bench.header(EU).is_ok());
        bench.clock.advance(SECOND * 2);
        assert!(bench.header(EU).is_err());
    }
}

#[test]
fn a_token_of_5_kb_is_handed_out_whole() {
    let bench = Bench::new(Some(EU), keys());
    let long = "QVdT".repeat(1280);
    bench.api.reply(token(&long, START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(value(&bench.header(EU).unwrap()), format!("Basic {long}"));
}

#[test]
fn a_region_is_fetched_when_first_needed_and_kept_fresh_afterwards() {
    let bench = Bench::new(Some(EU), keys());
    bench.first_token();
    let regions = || -> Vec<String> {
        let calls = bench.api.calls().into_iter();
        let ecr = calls.filter_map(|call| {
            let host = call.url.strip_prefix("https://api.ecr.")?.to_owned();
            Some(host.split('.').next().unwrap().to_owned())
        });
        ecr.collect()
    };
    // Nobody asks for the second one: nothing is fetched for it.
    bench.clock.advance(HOUR);
    assert_eq!(bench.step(), "sleep");
    assert_eq!(regions(), ["eu-west-1"]);
    assert!(bench.header(US).is_err());
    bench.api.reply(token("us", START + 13 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(value(&bench.header(US).unwrap()), "Basic us");
    // Both are renewed in time from now on, without being asked for, in whatever order.
    bench.clock.advance(HOUR * 6);
    for text in ["third", "fourth"] {
        bench.api.reply(token(text, START + 19 * 3600));
        assert_eq!(bench.step(), "fetch");
    }
    assert_eq!(bench.step(), "sleep");
    let both = || {
        let mut both = [EU, US].map(|host| value(&bench.header(host).unwrap()).to_owned());
        both.sort();
        both
    };
    assert_eq!(both(), ["Basic fourth", "Basic third"]);
    let mut renewed = regions().split_off(2);
    renewed.sort();
    assert_eq!(renewed, ["eu-west-1", "us-east-1"]);
    // One of them fails: the other does not notice.
    bench.clock.advance(HOUR * 6);
    bench.api.fail(refused());
    assert_eq!(bench.step(), "fetch");
    bench.api.reply(token("fifth", START + 25 * 3600));
    assert_eq!(bench.step(), "fetch");
    let both = both();
    assert_eq!(both[0], "Basic fifth");
    assert!(["Basic fourth", "Basic third"].contains(&both[1].as_str()));
}

#[test]
fn after_thirteen_hours_of_sleep_the_token_is_renewed_before_a_request_has_it() {
    let bench = Bench::new(Some(EU), keys());
    bench.first_token();
    // The monotonic clock stands still, and the thread with it.
    bench.clock.sleep(HOUR * 13);
    let waits = bench.header(EU).unwrap_err();
    assert!(waits.contains("AWS has not answered yet"), "{waits}");
    bench.api.reply(token("two", START + 25 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(value(&bench.header(EU).unwrap()), "Basic two");
    // The same without a request: the thread looks by itself.
    bench.clock.sleep(HOUR * 13);
    bench.api.reply(token("three", START + 38 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(value(&bench.header(EU).unwrap()), "Basic three");
}

#[test]
fn many_short_sleeps_bring_the_renewal_nearer_by_their_sum() {
    let bench = Bench::new(Some(EU), keys());
    bench.first_token();
    for _ in 0..100 {
        bench.clock.sleep(SECOND * 30);
        assert_eq!(bench.step(), "sleep");
    }
    // Fifty minutes of sleep in all: the renewal comes that much earlier.
    let waited = seconds_until_a_step(&bench, 6 * 3600);
    let latest = 6 * 3600 - 3000 + 60;
    assert!((latest - 2200..=latest).contains(&waited), "{waited}");
}

#[test]
fn a_clock_set_forward_while_aws_is_out_of_reach_does_not_end_a_good_token() {
    let bench = Bench::new(Some(EU), keys());
    bench.first_token();
    bench.clock.sleep(HOUR * 24 * 365);
    bench.api.fail(refused());
    assert_eq!(bench.step(), "fetch");
    assert_eq!(value(&bench.header(EU).unwrap()), "Basic one");
}

#[test]
fn a_request_has_a_source_that_is_back_asked_at_once_and_not_in_a_loop() {
    let bench = Bench::new(Some(EU), keys());
    let denied = r#"{"__type":"AccessDeniedException","message":"no"}"#;
    bench.api.reply(json(400, denied));
    assert_eq!(bench.step(), "fetch");
    // The pause has a minute at least; requests within two seconds change nothing.
    for _ in 0..9 {
        assert!(bench.header(EU).unwrap_err().contains("next try in"));
        assert_eq!(bench.step(), "sleep");
    }
    bench.clock.advance(SECOND * 2);
    assert!(bench.header(EU).is_err());
    bench.api.reply(token("one", START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(value(&bench.header(EU).unwrap()), "Basic one");
}

#[test]
fn a_request_with_little_time_asks_for_an_attempt_but_does_not_wait_for_it() {
    let bench = Bench::new(Some(EU), keys());
    bench.api.fail(refused());
    assert_eq!(bench.step(), "fetch");
    bench.clock.advance(SECOND * 2);
    // Nothing runs: a caller that waited would wait for ever, as this clock stands still.
    let deadline = bench.clock.monotonic() + SECOND * 2;
    let registry = EU.parse().unwrap();
    let fault = bench.tokens.header(&registry, deadline).unwrap_err().0;
    assert!(fault.contains("connect failed"), "{fault}");
    bench.api.reply(token("one", START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
}
