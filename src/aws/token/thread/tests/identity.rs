//! Temporary credentials under the token thread: refreshed, refused, out of reach.

use super::super::super::super::fake::Folder;
use super::*;

/// A bench whose identity is a web identity; the folder holds its token.
fn web_identity() -> (Bench, Folder) {
    let folder = Folder::new();
    let aws = AwsSettings {
        web_identity_token_file: Some(folder.write("token", "tok.en")),
        role_arn: Some("arn:aws:iam::123456789012:role/puller".into()),
        ..AwsSettings::default()
    };
    (Bench::new(Some(EU), aws), folder)
}

/// STS's reply: credentials that end so many seconds after [`START`].
fn session(id: &str, ends_s: u64) -> fake::Scripted {
    let expires = calendar::format_rfc3339(UNIX_EPOCH + Duration::from_secs(START + ends_s));
    let body = format!(
        "<AccessKeyId>{id}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t\
         </SessionToken><Expiration>{expires}</Expiration>"
    );
    json(200, &body)
}

/// Which key signed each call so far; empty for unsigned ones.
fn signers(bench: &Bench) -> Vec<String> {
    let calls = bench.api.calls().into_iter();
    calls
        .map(|call| {
            let value = call.headers.first("authorization").unwrap_or_default();
            let (_, rest) = value.split_once("Credential=").unwrap_or_default();
            rest.split('/').next().unwrap().to_owned()
        })
        .collect()
}

#[test]
fn credentials_are_refreshed_before_their_end_and_sign_what_follows() {
    let (bench, _folder) = web_identity();
    bench.api.reply(session("one", 3600));
    bench.api.reply(token("a", START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(bench.step(), "identify");
    assert_eq!(bench.step(), "sleep");
    let role = "web identity, role arn:aws:iam::123456789012:role/puller";
    assert_eq!(bench.tokens.status().source.as_deref(), Some(role));
    bench.clock.advance(SECOND * 3299);
    assert_eq!(bench.step(), "sleep");
    // STS is out of reach: told, and tried again a minute later.
    bench.clock.advance(SECOND);
    bench.api.fail(refused());
    assert_eq!(bench.step(), "refresh");
    assert_eq!(bench.step(), "sleep");
    bench.clock.advance(SECOND * 60);
    bench.api.reply(session("two", 7200));
    assert_eq!(bench.step(), "refresh");
    assert_eq!(bench.step(), "sleep");
    // The token is refused meanwhile.
    assert!(bench.renew(1).is_err());
    bench.api.reply(token("b", START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(signers(&bench), ["", "one", "one", "", "", "two"]);
}

#[test]
fn a_token_outlives_the_credentials_it_was_fetched_with() {
    let (bench, _folder) = web_identity();
    bench.api.reply(session("one", 3600));
    bench.api.reply(token("a", START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(bench.step(), "identify");
    bench.clock.advance(HOUR * 11);
    // Nothing answers any more. The old token serves all the same, to its end.
    assert_eq!(bench.step(), "fetch");
    assert_eq!(value(&bench.header(EU).unwrap()), "Basic a");
    let fault = bench.tokens.status().last_error.unwrap();
    let told = "AWS credentials: AssumeRoleWithWebIdentity failed in eu-west-1 via web identity";
    assert!(fault.starts_with(told), "{fault}");
    bench.clock.advance(HOUR);
    assert_eq!(bench.step(), "fetch");
    bench.clock.advance(SECOND);
    assert!(bench.header(EU).unwrap_err().starts_with(told));
    // STS is back: in seconds, not minutes.
    bench.clock.advance(SECOND * 2);
    bench.api.reply(session("two", 14 * 3600));
    bench.api.reply(token("b", START + 24 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(value(&bench.header(EU).unwrap()), "Basic b");
}

#[test]
fn credentials_that_aws_calls_expired_are_replaced_at_once() {
    let (bench, folder) = web_identity();
    bench.api.reply(session("one", 3600));
    let expired = r#"{"__type":"ExpiredTokenException","message":"expired"}"#;
    bench.api.reply(json(400, expired));
    folder.write("token", "another");
    bench.api.reply(session("two", 3600));
    bench.api.reply(token("a", START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(value(&bench.header(EU).unwrap()), "Basic a");
    assert_eq!(signers(&bench), ["", "one", "", "two"]);
    let body = String::from_utf8(bench.api.calls()[2].body.clone()).unwrap();
    assert!(body.ends_with("WebIdentityToken=another"), "{body}");
}

#[test]
fn credentials_that_aws_does_not_know_are_not_used_again() {
    let (bench, _folder) = web_identity();
    bench.api.reply(session("one", 3600));
    let unknown = r#"{"__type":"UnrecognizedClientException","message":"invalid"}"#;
    bench.api.reply(json(400, unknown));
    assert_eq!(bench.step(), "fetch");
    bench.clock.advance(SECOND * 66);
    bench.api.reply(session("two", 3600));
    bench.api.reply(token("a", START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(signers(&bench), ["", "one", "", "two"]);
}

#[test]
fn a_profile_whose_words_make_no_sense_stops_every_call() {
    let folder = Folder::new();
    let aws = AwsSettings {
        config_file: Some(folder.write("config", "[default]\nuse_fips_endpoint = maybe\n")),
        ..keys()
    };
    let bench = Bench::new(Some(EU), aws);
    assert_eq!(bench.step(), "fetch");
    let fault = bench.header(EU).unwrap_err();
    assert!(
        fault.starts_with("profile default: use_fips_endpoint"),
        "{fault}"
    );
    assert!(bench.api.calls().is_empty());
}

#[test]
fn the_profiles_region_and_endpoints_are_used() {
    let folder = Folder::new();
    let config = "[default]\nregion = eu-north-1\nuse_dualstack_endpoint = true\n";
    let aws = AwsSettings {
        config_file: Some(folder.write("config", config)),
        ..keys()
    };
    let bench = Bench::new(None, aws);
    bench.api.reply(token("a", START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(bench.step(), "identify");
    let urls: Vec<String> = bench.api.calls().into_iter().map(|call| call.url).collect();
    let ecr = "https://ecr.eu-north-1.api.aws/";
    assert_eq!(urls, [ecr, "https://sts.eu-north-1.api.aws/"]);
}
