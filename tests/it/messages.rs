//! Messages for a person in front of a set-up that does not work: each says what is wrong and what
//! to do.

use std::process::Command;

use standin::{Layer, Options, Server, Standin};

use crate::support::{Cached, Front, Proxy, SOON, Scratch, raw, wait_until};

/// What `check` prints with these settings alone.
fn check(settings: &[(&str, &str)]) -> String {
    let mut command = Proxy::command();
    command.arg("check").env("CACHE_DIR", "off");
    command.envs(settings.iter().copied());
    let output = command.output().expect("the binary runs");
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

fn contains_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn without_an_identity_files_and_settings_are_named() {
    let told = check(&[("HOME", "/nonexistent"), ("AWS_REGION", "eu-west-1")]);
    contains_all(
        &told,
        &[
            "no AWS credentials configured",
            "the only settings given are AWS_REGION, HOME",
            "/nonexistent/.aws/credentials is not there",
            "/nonexistent/.aws/config is not there",
        ],
    );
    let told = check(&[
        ("HOME", ""),
        ("AWS_CONFIG_FILE", "/no/c"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/no/k"),
    ]);
    let both = [
        "AWS_CONFIG_FILE=/no/c: there is no such file",
        "AWS_SHARED_CREDENTIALS_FILE=/no/k: there is no such file",
    ];
    contains_all(&told, &both);
}

#[test]
fn a_profile_that_no_file_has_is_told_with_those_there_are() {
    let folder = Scratch::new();
    let config = folder.path().join("config");
    std::fs::write(
        &config,
        "[profile dev]\nregion=a-b-1\n[profile prod]\nregion=a-b-1\n",
    )
    .unwrap();
    let file = config.to_str().unwrap();
    let told = check(&[("AWS_PROFILE", "staging"), ("AWS_CONFIG_FILE", file)]);
    contains_all(
        &told,
        &[
            "AWS_PROFILE=staging: there is no such profile",
            "there is dev, prod",
        ],
    );
}

#[test]
fn a_temporary_key_without_its_token_is_told() {
    let keys = [
        ("AWS_ACCESS_KEY_ID", "ASIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
    ];
    let told = check(&keys);
    contains_all(
        &told,
        &[
            "FAIL  settings",
            "begins with ASIA",
            "set AWS_SESSION_TOKEN",
        ],
    );
    let token = [keys[0], keys[1], ("AWS_SESSION_TOKEN", "x")];
    assert!(!check(&token).contains("begins with ASIA"));
}

#[test]
fn a_file_that_is_named_and_missing_is_a_warning_while_the_profile_is_whole() {
    let folder = Scratch::new();
    let keys = folder.path().join("credentials");
    let text = "[default]\naws_access_key_id = AKIA\naws_secret_access_key = x\n";
    std::fs::write(&keys, text).unwrap();
    let standin = Standin::start(Options::default());
    let proxy = Proxy::in_front_of(
        &standin,
        &[
            ("AWS_ACCESS_KEY_ID", ""),
            ("AWS_SECRET_ACCESS_KEY", ""),
            ("AWS_SHARED_CREDENTIALS_FILE", keys.to_str().unwrap()),
            ("AWS_CONFIG_FILE", "/nonexistent/config"),
        ],
    );
    let line = proxy.wait_for_log("without one of its files");
    contains_all(&line, &[" WARN ", "AWS_CONFIG_FILE=/nonexistent/config"]);
}

#[test]
fn all_faults_are_told_at_once() {
    let mut command = Proxy::command();
    let settings = [
        ("LISTEN_PORT", "1"),
        ("PORT", "2"),
        ("WORKERS", "0"),
        ("AUTH_FILE", "/nonexistent/users"),
        ("AWS_ACCESS_KEY_ID", "AKIA"),
        ("ECR", "http://registry.test"),
    ];
    command.envs(settings);
    let output = command.output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(64));
    let told = String::from_utf8(output.stderr).unwrap();
    contains_all(
        &told,
        &[
            "LISTEN_PORT=1: expected the same value as PORT=2",
            "WORKERS=0: expected",
            "AUTH_FILE=/nonexistent/users: it cannot be read",
            "AWS_ACCESS_KEY_ID: expected AWS_SECRET_ACCESS_KEY to be set too",
            "ECR=http://registry.test: the ECR token would travel over http",
        ],
    );
    assert_eq!(told.lines().count(), 5, "{told}");
    // Files alone: those of both settings.
    let mut command = Proxy::command();
    command.env("AUTH_FILE", "/nonexistent/users");
    command.envs([
        ("ENABLE_SSL", "true"),
        ("SSL_CERTIFICATE", "/no/c"),
        ("SSL_KEY", "/no/k"),
    ]);
    let output = command.output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(64));
    let told = String::from_utf8(output.stderr).unwrap();
    contains_all(
        &told,
        &[
            "AUTH_FILE=/nonexistent/users",
            "SSL_CERTIFICATE=/no/c",
            "SSL_KEY=/no/k",
        ],
    );
}

#[test]
fn bug_a_pipe_as_a_file_kept_the_list_of_faults_waiting() {
    let scratch = Scratch::new();
    let pipe = scratch.path().join("users");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    let mut command = Proxy::command();
    command.env("WORKERS", "0").env("AUTH_FILE", &pipe);
    let mut proxy = Proxy::spawn(command);
    assert_eq!(proxy.wait_exit().code(), Some(64));
    let why = format!("AUTH_FILE={}: it cannot be read: it is not", pipe.display());
    contains_all(&proxy.log(), &["WORKERS=0: expected", &why]);
}

#[test]
fn tls_at_a_plain_port_is_answered_by_an_alert_and_logged_once() {
    let front = Front::start();
    for _ in 0..5 {
        // A record with the beginning of a ClientHello.
        let answer = raw(front.address(), b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03");
        // Fatal: handshake_failure.
        assert_eq!(answer, [21, 3, 1, 0, 2, 2, 40]);
    }
    let line = front.proxy.wait_for_log("TLS came to a plain HTTP port");
    contains_all(&line, &[" DEBUG ", "ENABLE_SSL", "peer=127.0.0.1:"]);
    assert_eq!(
        front
            .proxy
            .log()
            .matches("TLS came to a plain HTTP port")
            .count(),
        1
    );
    assert_eq!(front.get("/healthz").status, 200);
}

#[test]
fn a_miss_without_a_way_out_says_so_and_no_more() {
    let cached = Cached::with(&[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")]);
    cached.standin.down(Server::Registry);
    let got = cached.get("/v2/team/app/manifests/1.0");
    assert!(got.status >= 500, "{}", got.text());
    contains_all(
        &got.text(),
        &["not in the cache, and upstream is out of reach"],
    );
    assert!(
        !got.text().contains("set AWS_ACCESS_KEY_ID"),
        "{}",
        got.text()
    );
    // The person on call reads all of it.
    cached.proxy().wait_for_log("set AWS_ACCESS_KEY_ID");
}

#[test]
fn an_image_over_the_quota_is_told_with_both_sizes() {
    let cached = Cached::with(&[("CACHE_MAX_SIZE", "1m")]);
    // Bytes that gzip makes no smaller (xorshift).
    let mut state = 7_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state & 0xff) as u8
    };
    let big: Vec<u8> = (0..1_500_000).map(|_| next()).collect();
    let layers = [Layer::of_files(&[("big", &big)])];
    let image = cached.standin.put_image("team/big", "1.0", &layers);
    for _ in 0..3 {
        assert_eq!(cached.get("/v2/team/big/manifests/1.0").status, 200);
    }
    let line = cached
        .proxy()
        .wait_for_log("image is larger than CACHE_MAX_SIZE");
    let name = format!("team/big@{}", image.manifest);
    contains_all(&line, &[" WARN ", &name, " bytes=", " quota_bytes=1048576"]);
    wait_until("the requests are in the log", SOON, || {
        cached.proxy().log().matches(" request method=GET").count() >= 3
    });
    let said = cached.proxy().log().matches("image is larger than").count();
    assert_eq!(said, 1);
}

#[test]
fn a_low_port_without_the_right_is_told_with_every_way_to_get_it() {
    // A network of its own, where nothing is configured, and root without that one right.
    let namespace = ["--user", "--map-root-user", "--net", "setpriv"];
    let arguments = [&namespace[..], &["--bounding-set=-net_bind_service"]].concat();
    let low = ("LISTEN_PORT", "443");
    let metrics = ("METRICS_LISTEN", "127.0.0.1:443");
    for (command, setting, names) in [
        ("serve", low, "LISTEN_HOST or LISTEN_PORT"),
        ("check", low, "LISTEN_HOST or LISTEN_PORT"),
        ("serve", metrics, "METRICS_LISTEN"),
    ] {
        let mut proxy = Proxy::command_through("unshare", &arguments);
        proxy.arg(command).env("CACHE_DIR", "off");
        let output = proxy.env(setting.0, setting.1).output().expect("unshare");
        let told =
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        contains_all(
            &told,
            &[
                "cannot listen on 127.0.0.1:443: Permission denied",
                "a low port needs CAP_NET_BIND_SERVICE",
                &format!("choose one from 1024 on ({names})"),
                "aws-ecr-proxy.socket",
            ],
        );
    }
}
