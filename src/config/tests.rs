//! Tests of how settings are resolved: names, origins, faults, secrets.

use super::*;
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
        let mut settings = Settings::unset();
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
        AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE AWS_ENDPOINT_URL AWS_ENDPOINT_URL_ECR \
        AWS_ENDPOINT_URL_STS AWS_USE_FIPS_ENDPOINT AWS_USE_DUALSTACK_ENDPOINT \
        AWS_STS_REGIONAL_ENDPOINTS AWS_CA_BUNDLE RENEW_INTERVAL_HOURS LISTEN_HOST LISTEN_PORT \
        PORT ENABLE_SSL SSL_CERTIFICATE SSL_KEY REGISTRY_HTTP_TLS_CERTIFICATE \
        REGISTRY_HTTP_TLS_KEY SSL_CLIENT_CA AUTH_FILE READ_ONLY ALLOW_REPOSITORIES \
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
fn the_defaults() {
    let settings = read(&[], &[]);
    assert_eq!(
        format!("{settings:?}"),
        format!("{:?}", Settings::default())
    );
    assert_eq!(settings.registry, None);
    assert_eq!(settings.upstream_auth, UpstreamAuth::Ecr);
    assert_eq!(settings.renew_interval, Duration::from_secs(6 * 3600));
    assert_eq!(settings.listen_host.to_string(), "0.0.0.0");
    assert_eq!(settings.listen_port, 8080);
    assert!(settings.trust_proxy_headers);
    assert_eq!((settings.workers, settings.lanes), (8, 16));
    assert_eq!(settings.max_connections, 1024);
    assert_eq!(settings.max_connections_per_peer, 256);
    assert_eq!((settings.min_rate, settings.listen_unix), (256, None));
    assert_eq!(settings.activation, Activation::None);
    assert_eq!((settings.max_exchanges, settings.max_uploads), (256, 128));
    assert_eq!(settings.shutdown_grace, Duration::from_secs(30));
    assert_eq!(
        (settings.log_level, settings.log_format),
        (Level::Info, Format::Text)
    );
    assert!(settings.blob_hosts.is_empty() && settings.aws.region.is_none());
}

#[test]
fn every_built_setting_arrives() {
    let settings = read(
        &[],
        &[
            ("ECR", "http://Registry.local:5000/"),
            ("UPSTREAM_AUTH", "None"),
            ("AWS_DEFAULT_REGION", "eu-west-1"),
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "secret\n"),
            ("AWS_SESSION_TOKEN", "token"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:5000/"),
            ("AWS_ENDPOINT_URL_ECR", "https://ecr.example"),
            ("AWS_ENDPOINT_URL_STS", "https://sts.example"),
            ("RENEW_INTERVAL_HOURS", "0.5"),
            ("LISTEN_HOST", "::"),
            ("PORT", "0"),
            ("DISABLE_PROXY_HEADERS", "yes"),
            ("BLOB_HOSTS", "cdn.example"),
            ("WORKERS", "1"),
            ("LANES", "2"),
            ("MAX_CONNECTIONS", "3"),
            ("MAX_CONNECTIONS_PER_PEER", "7"),
            ("MIN_RATE", "1k"),
            ("MAX_EXCHANGES", "4"),
            ("MAX_UPLOADS", "5"),
            ("SHUTDOWN_GRACE", "6s"),
            ("LOG_LEVEL", "warning"),
            ("LOG_FORMAT", "JSON"),
        ],
    );
    let registry = settings.registry.unwrap();
    assert_eq!(
        (registry.scheme(), registry.authority()),
        (Scheme::Http, "registry.local:5000")
    );
    assert_eq!(settings.upstream_auth, UpstreamAuth::None);
    let aws = settings.aws;
    assert_eq!(aws.region.as_deref(), Some("eu-west-1"));
    assert_eq!(aws.access_key_id.as_deref(), Some("AKIDEXAMPLE"));
    assert_eq!(aws.secret_access_key.unwrap().expose(), "secret");
    assert_eq!(aws.session_token.unwrap().expose(), "token");
    assert_eq!(aws.endpoint_url.as_deref(), Some("http://127.0.0.1:5000"));
    assert_eq!(aws.endpoint_url_ecr.as_deref(), Some("https://ecr.example"));
    assert_eq!(aws.endpoint_url_sts.as_deref(), Some("https://sts.example"));
    assert_eq!(settings.renew_interval, Duration::from_secs(1800));
    assert_eq!(settings.listen_host.to_string(), "::");
    assert_eq!(settings.listen_port, 0);
    assert!(!settings.trust_proxy_headers);
    assert_eq!(settings.blob_hosts, ["cdn.example"]);
    assert_eq!((settings.workers, settings.lanes), (1, 2));
    assert_eq!(settings.max_connections, 3);
    assert_eq!(settings.max_connections_per_peer, 7);
    assert_eq!(settings.min_rate, 1024);
    assert_eq!((settings.max_exchanges, settings.max_uploads), (4, 5));
    assert_eq!(settings.shutdown_grace, Duration::from_secs(6));
    assert_eq!(
        (settings.log_level, settings.log_format),
        (Level::Warn, Format::Json)
    );
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
        ("ENABLE_SSL", "true"),
    ];
    let faults = faults(&arguments, &environment);
    for start in [
        "--nope: unknown flag",
        "--lanes=1: expected a whole number from 2 to 256",
        "--max-uploads: expected a value",
        "WORKERS=65: expected a whole number from 1 to 64",
        "LOG_FORMAT=xml: expected text or json",
        "SHUTDOWN_GRACE=30: expected a time with its unit, such as",
        "ENABLE_SSL=true: not built yet in this version, expected it unset or false",
    ] {
        let hits = faults.iter().filter(|fault| fault.starts_with(start));
        assert_eq!(hits.count(), 1, "{start} in {faults:#?}");
    }
    assert_eq!(faults.len(), 7);
}

#[test]
fn numbers_hold_at_both_ends() {
    for (name, min, max) in [
        ("WORKERS", 1, 64),
        ("LANES", 2, 256),
        ("MAX_CONNECTIONS", 1, 100_000),
        ("MAX_CONNECTIONS_PER_PEER", 1, 100_000),
        ("MAX_EXCHANGES", 1, 10_000),
        ("MAX_UPLOADS", 1, 10_000),
        ("LISTEN_PORT", 0, 65535),
    ] {
        for good in [min, max] {
            read(&[], &[(name, &good.to_string())]);
        }
        for bad in [min - 1, max + 1] {
            let start = format!("{name}={bad}: expected a whole number from {min} to {max} (");
            let fault = fault(name, &bad.to_string());
            assert!(fault.starts_with(&start), "{fault}");
        }
    }
    assert_eq!(read(&[], &[("LISTEN_PORT", "65535")]).listen_port, 65535);
}

#[test]
fn times_hold_at_both_ends() {
    for good in ["0s", "3600s", "1h"] {
        read(&[], &[("SHUTDOWN_GRACE", good)]);
    }
    let too_long = fault("SHUTDOWN_GRACE", "61m");
    assert!(
        too_long.contains("expected a time from 0s to 1h ("),
        "{too_long}"
    );
    for good in ["0.01", "12"] {
        read(&[], &[("RENEW_INTERVAL_HOURS", good)]);
    }
    for bad in ["0", "12.1", "6h"] {
        let fault = fault("RENEW_INTERVAL_HOURS", bad);
        assert!(
            fault.contains("expected a number of hours from 0.01 to 12 ("),
            "{fault}"
        );
    }
}

#[test]
fn texts_have_a_form() {
    for (name, bad, expected) in [
        (
            "ECR",
            "a.example,b.example",
            "several registries are not built yet",
        ),
        ("ECR", "ftp://h", "this has a scheme other than"),
        ("ECR", ",", "expected one registry"),
        ("UPSTREAM_AUTH", "basic", "expected ecr or none"),
        ("AWS_REGION", "eu west", "such as eu-west-1"),
        ("AWS_REGION", "evil.example/", "such as eu-west-1"),
        ("AWS_ENDPOINT_URL_STS", "sts.local", "this has no scheme"),
        ("LISTEN_HOST", "localhost", "expected an IP address"),
        ("LISTEN_HOST", "unix:p", "does not begin with /"),
        ("MIN_RATE", "1m", "would cut clients behind slow lines"),
        ("DISABLE_PROXY_HEADERS", "maybe", "expected true or false"),
        ("LOG_LEVEL", "trace", "expected DEBUG, INFO, WARN or ERROR"),
        ("BLOB_HOSTS", "https://h", "is none of these"),
    ] {
        let fault = fault(name, bad);
        assert!(
            fault.starts_with(&format!("{name}={bad}: expected ")),
            "{fault}"
        );
        assert!(fault.contains(expected), "{fault}");
    }
    assert_eq!(
        read(&[], &[("LISTEN_HOST", "[::1]")])
            .listen_host
            .to_string(),
        "::1"
    );
}

#[test]
fn without_a_token_the_registry_must_be_named() {
    read(
        &[],
        &[("UPSTREAM_AUTH", "none"), ("ECR", "http://site.example")],
    );
    let fault = fault("UPSTREAM_AUTH", "none");
    assert!(fault.contains("expected ECR to be set too"), "{fault}");
    // A registry that is set but wrong is one fault, not two.
    assert_eq!(
        faults(&[], &[("UPSTREAM_AUTH", "none"), ("ECR", "a b")]).len(),
        1
    );
}

#[test]
fn what_is_not_built_passes_only_when_it_is_true_today() {
    for setting in table_rows() {
        let State::NotBuilt { accepts, .. } = &setting.state else {
            continue;
        };
        for name in setting.names() {
            match accepts {
                Accepts::Anything => drop(read(&[], &[(name, "some value")])),
                Accepts::Nothing | Accepts::Only(_) => {
                    let fault = fault(name, "some value");
                    let shown = if setting.secret { "***" } else { "some value" };
                    let start = format!("{name}={shown}: not built yet in this version");
                    assert!(fault.starts_with(&start), "{fault}");
                }
            }
            if let Accepts::Only(words) = accepts {
                for word in *words {
                    read(&[], &[(name, word)]);
                }
            }
        }
        let flag = flag_of(setting.name);
        let by_flag = resolution(&[&format!("{flag}=some value")], &[]).settings;
        assert_eq!(by_flag.is_err(), *accepts != Accepts::Anything, "{flag}");
    }
}

#[test]
fn truths_of_today() {
    read(
        &["--enable-ssl=no", "--allow-repositories", "*"],
        &[
            ("READ_ONLY", "FALSE"),
            ("CACHE_DIR", "off"),
            ("CACHE_KEY", "$uri"),
            ("BLOB_REDIRECT", "follow"),
            ("OFFLINE", "0"),
            ("NO_PROXY", "localhost"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_USE_FIPS_ENDPOINT", "false"),
            ("AWS_USE_DUALSTACK_ENDPOINT", "false"),
            ("AWS_STS_REGIONAL_ENDPOINTS", "regional"),
        ],
    );
    assert_eq!(faults(&["--enable-ssl"], &[]).len(), 1);
    fault("AWS_EC2_METADATA_DISABLED", "false");
}

#[test]
fn a_ca_bundle_is_a_file_with_certificates() {
    let folder = std::env::temp_dir().join(format!("ca-bundle-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let block = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    let good = write("good.pem", block);
    let settings = read(&[], &[("AWS_CA_BUNDLE", &good)]);
    assert_eq!(settings.aws.ca_bundle, Some(PathBuf::from(good)));
    let key = block.replace("CERTIFICATE", "PRIVATE KEY");
    for (path, why) in [
        (write("key.pem", &key), "it has none"),
        (write("empty.pem", ""), "it has none"),
        (
            write("large.pem", &"\n".repeat((4 << 20) + 1)),
            "larger than 4 MiB",
        ),
        (folder.to_str().unwrap().to_owned(), "not a regular file"),
        (
            folder.join("none").to_str().unwrap().to_owned(),
            "it cannot be read: No such",
        ),
    ] {
        let fault = fault("AWS_CA_BUNDLE", &path);
        assert!(
            fault.contains("AWS_CA_BUNDLE=/") && fault.contains(why),
            "{fault}"
        );
    }
    std::fs::remove_dir_all(&folder).unwrap();
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
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_SESSION_TOKEN", secret),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", secret),
        ("HTTPS_PROXY", "http://user:hunter2@proxy:3128"),
        ("ECR", "AWS:hunter2@registry.example"),
        ("BLOB_HOSTS", "u:hunter2@cdn.example"),
        ("AWS_ENDPOINT_URL", "https://sts.example/?sig=hunter2"),
    ];
    let bad = resolution(&[], &environment);
    let shown = format!("{bad:?}").replace("\\", "");
    let faults = bad.settings.unwrap_err();
    assert_eq!(faults.len(), 7);
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
    let good = resolution(&[], &[("AWS_SECRET_ACCESS_KEY", "hunter2")]);
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
    assert_eq!(mask("u:p@h"), "***@h");
    assert_eq!(mask("@file"), "@file");
    assert_eq!(
        mask(&"é".repeat(300)).chars().count(),
        SHOWN_CHARACTERS_MAX + 1
    );
}
