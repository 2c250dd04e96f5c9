//! Tests of how settings are resolved: names, origins, faults, secrets.

mod arrivals;
mod values;

use super::fault::{SHOWN_CHARACTERS_MAX, mask};
use super::*;
use crate::log::{Format, Level};
use crate::oci::Scheme;
use std::collections::HashSet;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn resolution(arguments: &[&str], environment: Pairs<'_>) -> Resolution {
    let arguments = Arguments::parse(arguments.iter().map(OsString::from));
    let environment: Vec<(OsString, OsString)> = environment
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    resolve(&arguments, &environment)
}

fn read(arguments: &[&str], environment: Pairs<'_>) -> Settings {
    resolution(arguments, environment).settings.unwrap()
}

fn faults(arguments: &[&str], environment: Pairs<'_>) -> Vec<String> {
    let faults = resolution(arguments, environment).settings.unwrap_err();
    faults.iter().map(ToString::to_string).collect()
}

fn fault(name: &str, value: &str) -> String {
    let mut faults = faults(&[], &[(name, value)]);
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.remove(0)
}

#[test]
fn no_name_and_no_flag_means_two_settings() {
    let mut names = HashSet::from(["HELP".to_owned(), "VERSION".to_owned()]);
    for setting in table_rows() {
        let mut own: Vec<String> = setting.names().map(str::to_ascii_uppercase).collect();
        own.dedup();
        for name in own {
            assert!(names.insert(name.clone()), "{name} is there twice");
        }
    }
}

#[test]
fn every_row_is_whole() {
    for setting in table_rows() {
        let name = setting.name;
        let fit = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        assert!(!name.is_empty() && name.bytes().all(fit), "{name}");
        assert!(setting.meaning.ends_with('.'), "{name} has no meaning");
        assert!(!setting.preset.text().is_empty(), "{name} has no default");
        assert!(
            !setting.meaning.contains(['|', '\n']),
            "{name} breaks the page"
        );
        let mut settings = Settings::default();
        assert_eq!(apply_preset(setting, &mut settings), Ok(()), "{name}");
        let shown = matches!(setting.preset, Preset::Value(_));
        assert!(!(setting.secret && shown), "{name} has a secret default");
    }
}

#[test]
fn no_setting_of_the_contract_is_missing() {
    for name in "ECR UPSTREAM UPSTREAM_AUTH AWS_REGION AWS_DEFAULT_REGION AWS_ACCESS_KEY_ID \
        AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_PROFILE AWS_SHARED_CREDENTIALS_FILE \
        AWS_CONFIG_FILE AWS_ROLE_ARN AWS_WEB_IDENTITY_TOKEN_FILE AWS_ROLE_SESSION_NAME \
        AWS_CONTAINER_CREDENTIALS_RELATIVE_URI AWS_CONTAINER_CREDENTIALS_FULL_URI \
        AWS_CONTAINER_AUTHORIZATION_TOKEN AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE \
        AWS_EC2_METADATA_DISABLED AWS_EC2_METADATA_SERVICE_ENDPOINT \
        AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE AWS_METADATA_SERVICE_TIMEOUT \
        AWS_METADATA_SERVICE_NUM_ATTEMPTS AWS_EC2_METADATA_V1_DISABLED AWS_ENDPOINT_URL \
        AWS_ENDPOINT_URL_ECR AWS_ENDPOINT_URL_STS AWS_USE_FIPS_ENDPOINT AWS_USE_DUALSTACK_ENDPOINT \
        AWS_STS_REGIONAL_ENDPOINTS AWS_IGNORE_CONFIGURED_ENDPOINT_URLS AWS_CA_BUNDLE \
        RENEW_INTERVAL_HOURS LISTEN_HOST LISTEN_PORT \
        PORT ENABLE_SSL SSL_CERTIFICATE SSL_KEY REGISTRY_HTTP_TLS_CERTIFICATE \
        REGISTRY_HTTP_TLS_KEY SSL_CLIENT_CA AUTH_FILE READ_ONLY ALLOW_REPOSITORIES \
        ACCESS_CONTROL_ALLOW_ORIGIN \
        DISABLE_PROXY_HEADERS CACHE_DIR CACHE_MAX_SIZE CACHE_KEY CACHE_TAG_TTL BLOB_REDIRECT \
        BLOB_HOSTS RESOLVER HTTPS_PROXY HTTP_PROXY NO_PROXY https_proxy http_proxy no_proxy \
        OFFLINE PREFETCH PREFETCH_INTERVAL PREFETCH_PLATFORMS PIN SCRUB_INTERVAL WORKERS LANES \
        MAX_CONNECTIONS MAX_CONNECTIONS_PER_PEER MAX_EXCHANGES MAX_UPLOADS MAX_FILLS MIN_RATE \
        SHUTDOWN_GRACE LOG_LEVEL LOG_FORMAT"
        .split_whitespace()
    {
        let known = table_rows().any(|setting| setting.names().any(|n| n == name));
        assert!(known, "{name}");
    }
}

#[test]
fn a_flag_beats_a_variable_which_beats_the_default() {
    let environment = [("LISTEN_PORT", "1111"), ("LANES", "4")];
    let settings = read(&["--port=2222"], &environment);
    assert_eq!(
        (settings.listen_port, settings.lanes, settings.workers),
        (2222, 4, 8)
    );
    let resolution = resolution(&["--port=2222"], &environment);
    let origin = |name: &str| {
        let mut rows = resolution.effective.iter();
        rows.find(|row| row.setting.name == name).unwrap().origin
    };
    assert_eq!(origin("LISTEN_PORT"), Origin::Flag("PORT"));
    assert_eq!(origin("LANES"), Origin::Environment("LANES"));
    assert_eq!(origin("WORKERS"), Origin::Default);
    // A variable that is not used is not judged either.
    assert_eq!(read(&["--listen-port=1"], &[("PORT", "x")]).listen_port, 1);
}

#[test]
fn two_names_must_agree() {
    assert_eq!(
        read(&[], &[("PORT", "1"), ("LISTEN_PORT", "1 ")]).listen_port,
        1
    );
    assert_eq!(read(&["--port=1", "--listen-port=1"], &[]).listen_port, 1);
    assert_eq!(
        read(&[], &[("PORT", "1"), ("LISTEN_PORT", " ")]).listen_port,
        1
    );
    assert_eq!(
        faults(&[], &[("PORT", "1"), ("LISTEN_PORT", "2")]),
        ["LISTEN_PORT=2: expected the same value as PORT=1, as both mean one setting"]
    );
    assert_eq!(
        faults(&["--port=1", "--listen-port=2"], &[]),
        ["--port=1: expected the same value as --listen-port=2, as both mean one setting"]
    );
    let twice = faults(
        &["--aws-session-token=ab12", "--aws-session-token=cd34"],
        &[],
    );
    let pair = "--aws-session-token=***";
    let expected = format!("{pair}: expected the same value as {pair}, as both mean");
    assert!(twice.join("\n").starts_with(&expected), "{twice:?}");
}

#[test]
fn blank_variables_are_unset_and_unknown_ones_are_not_looked_at() {
    let blank = [
        ("WORKERS", ""),
        ("CACHE_DIR", " "),
        ("AWS_SESSION_TOKEN", "\n"),
    ];
    let settings = read(&[], &blank);
    assert_eq!(settings.workers, 8);
    assert_eq!(settings.aws.session_token, None);
    read(
        &[],
        &[
            ("WORKERZ", "0"),
            ("workers", "0"),
            ("CACHE_DIRECTORY", "/x"),
        ],
    );
}

#[test]
fn all_faults_are_reported_at_once() {
    let arguments = ["--nope", "--lanes=1", "--max-uploads"];
    let environment = [
        ("WORKERS", "65"),
        ("LOG_FORMAT", "xml"),
        ("SHUTDOWN_GRACE", "30"),
        ("PREFETCH_INTERVAL", "1d"),
        ("CACHE_DIR", "off"),
        ("OFFLINE", "true"),
    ];
    let faults = faults(&arguments, &environment);
    for start in [
        "--nope: unknown flag",
        "--lanes=1: expected a whole number from 2 to 256",
        "--max-uploads: expected a value",
        "WORKERS=65: expected a whole number from 1 to 64",
        "LOG_FORMAT=xml: expected text or json",
        "SHUTDOWN_GRACE=30: expected a time with its unit, such as",
        "PREFETCH_INTERVAL=1d: expected a time such as",
        "OFFLINE=true: expected CACHE_DIR to name a cache",
    ] {
        let hits = faults.iter().filter(|fault| fault.starts_with(start));
        assert_eq!(hits.count(), 1, "{start} in {faults:#?}");
    }
    assert_eq!(faults.len(), 8);
}

#[test]
fn values_must_be_utf_8_where_the_name_is_known() {
    let odd = || OsString::from_vec(vec![b'h', 0xff]);
    let known = [("ECR".into(), odd()), ("AWS_SESSION_TOKEN".into(), odd())];
    let faults = resolve(&Arguments::default(), &known).settings.unwrap_err();
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(
        faults,
        ["ECR: expected UTF-8", "AWS_SESSION_TOKEN: expected UTF-8"]
    );
    let unknown = [("OTHER".into(), odd()), (odd(), "x".into())];
    assert!(resolve(&Arguments::default(), &unknown).settings.is_ok());
}

#[test]
fn no_secret_is_shown() {
    let secret = "hunter2 spaced";
    let environment = [
        ("AWS_ACCESS_KEY_ID", "AKIA"),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_SESSION_TOKEN", secret),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "hunter2 \t spaced"),
        ("HTTPS_PROXY", "socks5://user:hunter2@proxy:1080"),
        ("HTTP_PROXY", "user:hunter2@proxy:port"),
        ("ECR", "AWS:hunter2@registry.example"),
        ("BLOB_HOSTS", "u:hunter2@cdn.example"),
        ("AWS_ENDPOINT_URL", "https://sts.example/?sig=hunter2"),
    ];
    let bad = resolution(&[], &environment);
    let shown = format!("{bad:?}").replace("\\", "");
    let faults = bad.settings.unwrap_err();
    assert_eq!(faults.len(), 8);
    for fault in &faults {
        assert!(!fault.to_string().contains("hunter2"), "{fault}");
    }
    assert!(!shown.contains("hunter2"), "{shown}");
    let arguments = ["--aws-session-token=hunter2".into()];
    let shown = format!("{:?}", Arguments::parse(arguments));
    assert!(
        shown.contains("***") && !shown.contains("hunter2"),
        "{shown}"
    );
    let good = [
        ("AWS_ACCESS_KEY_ID", "AKIA"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ("HTTPS_PROXY", "http://user:hunter2@proxy:3128"),
        ("http_proxy", "user:p?hunter2@proxy:3128"),
    ];
    let good = resolution(&[], &good);
    assert!(good.settings.is_ok());
    let shown = format!("{good:?}");
    assert!(
        shown.contains("***") && !shown.contains("hunter2"),
        "{shown}"
    );
}

#[test]
fn a_shown_value_is_one_short_line() {
    assert_eq!(mask("plain"), "plain");
    assert_eq!(mask("a\nb\u{1b}[0m"), "a\u{fffd}b\u{fffd}[0m");
    assert_eq!(mask("http://u:p@w@h/x?y=1"), "http://***@h/x?…");
    assert_eq!(mask("http://u:p?q@h/x"), "http://***@h/x");
    assert_eq!(mask("u:p@h"), "***@h");
    assert_eq!(mask("@file"), "@file");
    assert_eq!(
        mask(&"é".repeat(300)).chars().count(),
        SHOWN_CHARACTERS_MAX + 1
    );
}
