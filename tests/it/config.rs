//! The command line of the real binary: help, faults, names of the predecessors, `settings`,
//! `health`, exit codes.

use std::process::Command;

use aws_ecr_proxy::config::{flag_of, table_rows};
use standin::{Options, Server, Standin};

use crate::support::{Front, Http, Proxy, SOON, wait_until};

/// How a run of the binary ended.
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs the binary with these variables alone.
pub(crate) fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aws-ecr-proxy"));
    command.env_clear().envs(variables.iter().copied());
    let output = command.args(arguments).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Run {
        code: output.status.code(),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

#[test]
fn help_lists_every_setting_and_command() {
    for arguments in [&["--help"][..], &["-h"], &["help"]] {
        let help = run(arguments, &[]);
        assert_eq!(
            (help.code, help.err.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
        for setting in table_rows() {
            let flag = flag_of(setting.name);
            let mut words = help.out.split([' ', ',', '\n']);
            let found = words.any(|word| word == flag);
            assert!(found, "{}", setting.name);
        }
        for command in ["serve", "check", "health", "settings"] {
            assert!(help.out.contains(&format!("\n  {command} ")), "{command}");
        }
    }
    let version = run(&["--version"], &[]);
    assert_eq!(version.code, Some(0));
    assert!(version.out.starts_with("aws-ecr-proxy "), "{}", version.out);
}

#[test]
fn all_faults_are_told_at_once() {
    let variables = [
        ("LISTEN_PORT", "99999"),
        ("LOG_LEVEL", "loud"),
        ("ECR", "ftp://nowhere"),
        ("RENEW_INTERVAL_HOURS", "never"),
        ("CACHE_MAX_SIZE", "1"),
        ("AWS_SECRET_ACCESS_KEY", "not a \u{1} secret"),
    ];
    // The other half of the key is in order.
    let all = [&variables[..], &[("AWS_ACCESS_KEY_ID", "AKIA")]].concat();
    let refused = run(
        &["--workers=0", "--no-such-flag", "--shutdown-grace=30"],
        &all,
    );
    assert_eq!((refused.code, refused.out.as_str()), (Some(64), ""));
    let told = ["--workers", "--no-such-flag", "--shutdown-grace"];
    let start = |name: &str| format!("aws-ecr-proxy: {name}");
    for name in variables.iter().map(|(name, _)| *name).chain(told) {
        let lines = refused
            .err
            .lines()
            .filter(|line| line.starts_with(&start(name)));
        assert_eq!(lines.count(), 1, "{name} in {}", refused.err);
    }
    assert_eq!(refused.err.lines().count(), 9, "{}", refused.err);
    assert!(!refused.err.contains("not a"), "{}", refused.err);
}

#[test]
fn names_of_the_predecessors_still_work() {
    let standin = Standin::start(Options::default());
    standin.put_image("team/app", "1.0", &[]);
    let host = standin.registry_url();
    let settings = [
        ("ECR", ""),
        ("UPSTREAM", host.as_str()),
        ("LISTEN_PORT", ""),
        ("PORT", "0"),
    ];
    let proxy = Proxy::in_front_of(&standin, &settings);
    let front = Front { proxy, standin };
    assert_eq!(front.get("/v2/team/app/manifests/1.0").status, 200);
    let both = [
        ("ECR", "http://a.example"),
        ("UPSTREAM", "http://b.example"),
    ];
    let refused = run(&["settings"], &both);
    assert_eq!(refused.code, Some(64));
    assert!(
        refused.err.contains("ECR") && refused.err.contains("UPSTREAM"),
        "{}",
        refused.err
    );
    let same = [("PORT", "5000"), ("LISTEN_PORT", "5000")];
    assert_eq!(run(&["settings"], &same).code, Some(0));
}

/// Nor must the name that another program gives to the same thing.
#[test]
fn bug_a_setting_by_another_programs_name_opened_the_door() {
    for (name, meant) in [
        ("ENABLE_TLS", "ENABLE_SSL"),
        ("SSL_ENABLED", "ENABLE_SSL"),
        ("TLS_CLIENT_CA", "SSL_CLIENT_CA"),
        ("READ_ONLY_MODE", "READ_ONLY"),
        ("ECR_READ_ONLY", "READ_ONLY"),
        ("ALLOWREPOS", "ALLOW_REPOSITORIES"),
        ("REGISTRY_AUTH_HTPASSWD_PATH", "AUTH_FILE"),
        ("REGISTRY_HTTP_TLS_CLIENTCAS_0", "SSL_CLIENT_CA"),
        ("REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED", "READ_ONLY"),
    ] {
        let refused = run(&["serve"], &[(name, "/x")]);
        let text = refused.err + &refused.out;
        assert_eq!(refused.code, Some(64), "{name}: {text}");
        let said = format!("{name}: no setting; did you mean {meant}?");
        assert!(text.contains(&said), "{text}");
    }
}

/// A typing error in the name of a setting that keeps clients out must not open the door.
#[test]
fn a_misspelt_security_setting_ends_the_start() {
    let variables = [
        ("READONLY", "true"),
        ("AUTHFILE", "the-secret-file"),
        ("ALLOW_REPOS", "team-a/*"),
        ("SSLCLIENTCA", "/ca.crt"),
    ];
    for command in [&[][..], &["serve"], &["health"], &["settings"], &["check"]] {
        for (name, value) in variables {
            let refused = run(command, &[(name, value)]);
            let text = refused.err + &refused.out;
            assert_eq!(refused.code, Some(64), "{command:?} {name}: {text}");
            assert!(
                text.contains(&format!("{name}: no setting; did you mean ")),
                "{text}"
            );
        }
        let all = run(command, &variables);
        let text = all.err + &all.out;
        assert_eq!(
            text.matches(": no setting; did you mean ").count(),
            4,
            "{text}"
        );
        assert!(!text.contains("the-secret-file"), "{text}");
    }
    // What the right name says holds, and the door is not open.
    let both = run(
        &["settings"],
        &[("READONLY", "true"), ("READ_ONLY", "true")],
    );
    assert_eq!(both.code, Some(0));
    let warning = "aws-ecr-proxy: READONLY is no setting; did you mean READ_ONLY?\n";
    assert_eq!(both.err, warning);
}

#[test]
fn another_misspelt_setting_is_a_warning_at_the_start() {
    let standin = Standin::start(Options::default());
    let proxy = Proxy::in_front_of(&standin, &[("CACHE_TAGTTL", "1h"), ("LINES", "24")]);
    let warning = "WARN CACHE_TAGTTL is no setting; did you mean CACHE_TAG_TTL?";
    let log = proxy.log();
    assert_eq!(log.matches("did you mean").count(), 1, "{log}");
    assert!(log.contains(warning), "{log}");
}

#[test]
fn a_token_is_sent_to_strangers_and_over_http_only_with_leave() {
    for (registry, why) in [
        (
            "http://123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            "over http",
        ),
        ("http://10.0.0.1:5000", "over http"),
        ("https://registry.example", "no name of ECR's"),
        ("public.ecr.aws,registry.example", "no name of ECR's"),
    ] {
        let refused = run(&["serve"], &[("ECR", registry)]);
        assert_eq!(refused.code, Some(64), "{}", refused.err);
        for part in [why, "ALLOW_PLAIN_TOKEN=true", "UPSTREAM_AUTH=none"] {
            assert!(refused.err.contains(part), "{part} in {}", refused.err);
        }
        for leave in [("ALLOW_PLAIN_TOKEN", "true"), ("UPSTREAM_AUTH", "none")] {
            let shown = run(&["settings"], &[("ECR", registry), leave]);
            assert_eq!(shown.code, Some(0), "{}", shown.err);
        }
    }
}

#[test]
fn settings_are_shown_with_their_origin_and_without_secrets() {
    let variables = [
        ("ECR", "http://registry.example:5000"),
        ("ALLOW_PLAIN_TOKEN", "true"),
        ("AWS_SECRET_ACCESS_KEY", "the-secret-key"),
        ("AWS_SESSION_TOKEN", "the-session-token"),
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        (
            "HTTPS_PROXY",
            "http://user:the-secret-word@proxy.example:3128",
        ),
        ("LISTEN_PORT", "5000"),
    ];
    let shown = run(&["settings", "--listen-port", "6000"], &variables);
    assert_eq!((shown.code, shown.err.as_str()), (Some(0), ""));
    let line = |name: &str| {
        let lines = shown.out.lines();
        let mut found = lines.filter(|line| line.split(' ').next() == Some(name));
        let words = found.next().expect(name).split_whitespace();
        words.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("LISTEN_PORT"), "LISTEN_PORT 6000 flag --listen-port");
    assert_eq!(
        line("ECR"),
        "ECR http://registry.example:5000 environment ECR"
    );
    assert_eq!(line("WORKERS"), "WORKERS 8 default");
    let secret = "AWS_SECRET_ACCESS_KEY *** environment AWS_SECRET_ACCESS_KEY";
    assert_eq!(line("AWS_SECRET_ACCESS_KEY"), secret);
    let proxy = "HTTPS_PROXY http://***@proxy.example:3128 environment HTTPS_PROXY";
    assert_eq!(line("HTTPS_PROXY"), proxy);
    assert!(!shown.out.contains("the-se"), "{}", shown.out);
}

#[test]
fn health_says_by_its_exit_code_whether_it_is_ready() {
    let front = Front::start();
    wait_until("the proxy is ready", SOON, || {
        front.get("/readyz").status == 200
    });
    let port = front.address().port().to_string();
    let health = run(&["health"], &[("LISTEN_PORT", &port)]);
    assert_eq!(health.code, Some(0), "{}{}", health.out, health.err);
    let front = Front::with(
        Options::default(),
        &[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")],
    );
    let port = front.address().port().to_string();
    let health = run(&["health", "--listen-port", &port], &[]);
    assert_eq!(health.code, Some(1), "{}{}", health.out, health.err);
    assert!(health.out.contains("not ready: 503"), "{}", health.out);
    let address = front.address();
    drop(front);
    assert!(std::net::TcpStream::connect(address).is_err());
    let health = run(&["health", "--listen-port", &port], &[]);
    assert_eq!(health.code, Some(1));
    assert!(health.out.contains("no answer from"), "{}", health.out);
}

#[test]
fn a_port_that_is_taken_fails_the_start_with_words() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let failed = run(&["--listen-host=127.0.0.1", "--listen-port", &port], &[]);
    assert_eq!(failed.code, Some(1), "{}", failed.err);
    assert!(failed.err.contains("LISTEN_PORT"), "{}", failed.err);
}

#[test]
fn flags_start_it_as_variables_do() {
    let standin = Standin::start(Options::default());
    let mut command = Proxy::command();
    command.env("LISTEN_PORT", "1").arg("--listen-port=0");
    for (name, value) in standin.settings() {
        command.args([flag_of(name), value]);
    }
    let proxy = Proxy::start_command(command);
    assert_eq!(Http::get_once(proxy.address(), "/v2/_catalog").status, 200);
    assert_eq!(standin.count(Server::Registry, "GET", "/v2/_catalog"), 1);
}
