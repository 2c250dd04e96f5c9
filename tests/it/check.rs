//! `check`: what a pull needs, tried once by the real binary, when all is well, when each part
//! fails, and beside a running proxy.

use standin::{Dns, Fault, Match, Options, Role, Server, Standin};

use crate::support::{Cached, Front, Pki, Proxy, SOON, Scratch, wait_until};
use crate::upstream_hostile::{Scripted, forms_of, reply};

pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Run {
    /// What one line of the table says, behind the name of its step.
    fn line(&self, what: &str) -> (&str, &str) {
        let mut lines = self.out.lines().filter_map(|line| {
            let (word, rest) = line.split_once(' ')?;
            let (name, detail) = rest.trim_start().split_once(' ').unwrap_or((rest, ""));
            (name == what).then_some((word, detail.trim_start()))
        });
        lines
            .next()
            .unwrap_or_else(|| panic!("no {what} in:\n{}", self.out))
    }

    pub(crate) fn is(&self, what: &str, word: &str, parts: &[&str]) {
        let (found, detail) = self.line(what);
        assert_eq!(found, word, "{what} in:\n{}", self.out);
        for part in parts {
            assert!(detail.contains(part), "no {part:?} in {what}: {detail}");
        }
    }
}

/// Runs `check` in front of a stand-in; an empty value leaves a setting out.
pub(crate) fn check(standin: &Standin, settings: &[(&str, &str)]) -> Run {
    check_with(standin, &[], settings)
}

pub(crate) fn check_with(standin: &Standin, arguments: &[&str], settings: &[(&str, &str)]) -> Run {
    let mut command = Proxy::command();
    command.arg("check").args(arguments).env("CACHE_DIR", "off");
    command
        .envs(standin.settings())
        .envs(settings.iter().copied());
    let output = command.output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let run = Run {
        code: output.status.code(),
        out: text(output.stdout),
        err: text(output.stderr),
    };
    for secret in standin.secrets() {
        assert!(!run.out.contains(&secret), "in the table: {secret}");
        assert!(!run.err.contains(&secret), "in the log: {secret}");
    }
    run
}

pub(crate) fn standin() -> Standin {
    Standin::start(Options::default())
}

#[test]
fn when_all_is_well_each_step_is_told_in_one_line() {
    let standin = standin();
    let run = check(&standin, &[]);
    assert_eq!(run.code, Some(0), "{}{}", run.out, run.err);
    run.is(
        "settings",
        "ok",
        &["given: ", "ECR", "AWS_SECRET_ACCESS_KEY"],
    );
    run.is("cache", "skip", &["CACHE_DIR"]);
    run.is("tls", "skip", &["ENABLE_SSL"]);
    run.is("logins", "skip", &["AUTH_FILE"]);
    let who = "arn:aws:iam::123456789012:user/stand-in via environment, credentials without an end";
    run.is("identity", "ok", &[who]);
    run.is("token", "ok", &["of eu-west-1, until 20"]);
    run.is("dns", "ok", &["127.0.0.1 is 127.0.0.1"]);
    run.is("registry", "ok", &["/v2/ 200 in ", &standin.registry_url()]);
    run.is("port", "ok", &["127.0.0.1:", "can be bound"]);
    run.is("clock", "ok", &["s off AWS's"]);
    run.is("proxy", "skip", &["none leads to"]);
    run.is("storage", "ok", &[&standin.blob_host(), "answers ("]);
    run.is("image", "skip", &["check IMAGE"]);
    assert_eq!(run.out.lines().count(), 14, "{}", run.out);
    // One call of each kind, and a look at the storage.
    assert_eq!(standin.requests().len(), 4);
}

#[test]
fn temporary_credentials_are_told_with_role_and_end() {
    let standin = standin();
    let role = Role {
        web_identity_token: Some("web.identity.token".into()),
        ..Role::named("puller")
    };
    let arn = role.arn.clone();
    standin.add_role(role);
    let folder = Scratch::new();
    let token = folder.path().join("token");
    std::fs::write(&token, "web.identity.token").unwrap();
    let settings = [
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ROLE_ARN", &arn),
    ];
    let run = check(&standin, &settings);
    assert_eq!(run.code, Some(0), "{}", run.out);
    let who = "arn:aws:sts::123456789012:assumed-role/puller/aws-ecr-proxy via web identity, role ";
    run.is("identity", "ok", &[who, &arn, ", credentials until 20"]);
    assert!(!run.out.contains("web.identity.token"));
}

#[test]
fn without_ecr_the_registry_of_the_token_is_tried() {
    let standin = standin();
    let run = check(&standin, &[("ECR", "")]);
    assert_eq!(run.code, Some(0), "{}", run.out);
    run.is("registry", "ok", &[&standin.registry_url()]);
    standin.down(Server::Api);
    let run = check(&standin, &[("ECR", "")]);
    assert_eq!(run.code, Some(1));
    run.is("registry", "skip", &["set ECR"]);
}

#[test]
fn without_credentials_the_registry_is_tried_all_the_same() {
    let standin = standin();
    let none = [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")];
    let run = check(&standin, &none);
    assert_eq!(run.code, Some(1));
    run.is(
        "identity",
        "FAIL",
        &["set AWS_ACCESS_KEY_ID", "AWS_EC2_METADATA_DISABLED"],
    );
    run.is("token", "skip", &["no credentials"]);
    run.is("registry", "ok", &["401", "asked without a token"]);
}

#[test]
fn a_wrong_secret_fails_identity_and_token_with_a_remedy() {
    let standin = standin();
    let run = check(&standin, &[("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")]);
    assert_eq!(run.code, Some(1));
    let remedy = "check the secret access key";
    run.is(
        "identity",
        "FAIL",
        &[
            "GetCallerIdentity 403",
            "in eu-west-1 via environment",
            remedy,
        ],
    );
    let token = "GetAuthorizationToken 400 InvalidSignatureException in eu-west-1 via environment";
    run.is("token", "FAIL", &[token, remedy]);
    assert!(!run.out.contains("hunter2") && !run.err.contains("hunter2"));
}

#[test]
fn an_identity_without_rights_is_named_and_told_what_to_grant() {
    let standin = standin();
    let denied = Fault::aws_error(400, "AccessDeniedException", "User x is not authorized");
    let pick = Match::api().path("GetAuthorizationToken");
    standin.fault(pick.always(), denied);
    let run = check(&standin, &[]);
    assert_eq!(run.code, Some(1));
    run.is("identity", "ok", &["user/stand-in"]);
    run.is(
        "token",
        "FAIL",
        &["AccessDeniedException", "grant ecr:GetAuthorizationToken"],
    );
}

#[test]
fn sts_out_of_reach_is_no_failure_while_the_token_comes() {
    let standin = standin();
    let pick = Match::api().path("GetCallerIdentity");
    standin.fault(pick.always(), Fault::CloseBeforeHead);
    let run = check(&standin, &[]);
    assert_eq!(run.code, Some(0), "{}", run.out);
    run.is(
        "identity",
        "skip",
        &[
            "the ARN is unknown, environment",
            "GetCallerIdentity failed",
        ],
    );
    run.is("token", "ok", &[]);
}

#[test]
fn a_clock_that_is_off_is_told() {
    let standin = Standin::start(Options {
        clock_skew: 86_400,
        ..Options::default()
    });
    let run = check(&standin, &[]);
    assert_eq!(run.code, Some(1), "{}", run.out);
    run.is("token", "ok", &[]);
    run.is(
        "clock",
        "FAIL",
        &["clock is 86", " s behind AWS's", "set-ntp"],
    );
}

#[test]
fn a_registry_that_refuses_or_is_away_is_told_with_a_remedy() {
    let refusals = [
        (
            Fault::Unauthorized401,
            "401",
            "with a fresh token too; check that this identity may use this registry",
        ),
        (
            Fault::ExpiredToken403,
            "the token has expired",
            "the token's region",
        ),
        (Fault::status(503), "503", "try again later"),
        (
            Fault::TooMany429 { retry_after: None },
            "429",
            "it throttles",
        ),
        (Fault::status(404), "404", "is it a registry? check ECR"),
        (
            Fault::garbage_head(),
            "failed for http://127.0.0.1",
            "check network",
        ),
    ];
    for (fault, said, remedy) in refusals {
        let standin = standin();
        standin.fault(Match::registry().always(), fault);
        let run = check(&standin, &[]);
        assert_eq!(run.code, Some(1), "{}", run.out);
        run.is("token", "ok", &[]);
        run.is("registry", "FAIL", &[said, remedy]);
    }
    let standin = standin();
    standin.down(Server::Registry);
    let run = check(&standin, &[]);
    assert_eq!(run.code, Some(1));
    run.is(
        "registry",
        "FAIL",
        &["connect failed for http://127.0.0.1", "firewall"],
    );
}

#[test]
fn a_name_that_leads_nowhere_is_told() {
    let (standin, dns) = (standin(), Dns::start());
    let resolver = dns.address();
    let settings = [
        ("ECR", "http://registry.test:1"),
        ("RESOLVER", &resolver),
        ("ALLOW_PLAIN_TOKEN", "true"),
    ];
    let run = check(&standin, &settings);
    assert_eq!(run.code, Some(1));
    run.is(
        "dns",
        "FAIL",
        &["no address for registry.test", "check the name in ECR"],
    );
    run.is("registry", "FAIL", &["registry.test"]);
}

#[test]
fn a_misspelt_setting_fails_the_check() {
    let standin = standin();
    let run = check(&standin, &[("CACHEDIR", "/nowhere")]);
    assert_eq!(run.code, Some(1), "{}", run.out);
    let why = "CACHEDIR is no setting; did you mean CACHE_DIR?";
    assert!(run.out.contains(why), "{}", run.out);
    let run = check(&standin, &[("READONLY", "true")]);
    assert_eq!(run.code, Some(64), "{}", run.out);
    run.is("settings", "FAIL", &["READONLY", "did you mean READ_ONLY?"]);
}

#[test]
fn a_token_for_a_stranger_fails_the_check() {
    let run = check(&standin(), &[("ECR", "http://registry.test:5000")]);
    assert_eq!(run.code, Some(64), "{}", run.out);
    run.is("settings", "FAIL", &["over http", "ALLOW_PLAIN_TOKEN=true"]);
}

#[test]
fn behind_an_outbound_proxy_names_are_its_business() {
    let standin = standin();
    let settings = [
        ("ECR", "http://registry.test:5000"),
        ("HTTP_PROXY", "http://user:hunter2@127.0.0.1:1"),
        ("ALLOW_PLAIN_TOKEN", "true"),
    ];
    let run = check(&standin, &settings);
    run.is(
        "dns",
        "skip",
        &["registry.test is looked up by http://127.0.0.1:1 (HTTP_PROXY)"],
    );
    run.is(
        "registry",
        "FAIL",
        &["no connection to the proxy http://127.0.0.1:1"],
    );
    assert!(!run.out.contains("hunter2") && !run.err.contains("hunter2"));
}

#[test]
fn another_proxy_as_upstream_needs_neither_identity_nor_token() {
    let front = Front::start();
    let url = format!("http://{}", front.address());
    let settings = [("ECR", url.as_str()), ("UPSTREAM_AUTH", "none")];
    let run = check(&front.standin, &settings);
    assert_eq!(run.code, Some(0), "{}", run.out);
    run.is("identity", "skip", &["UPSTREAM_AUTH=none"]);
    run.is("token", "skip", &["UPSTREAM_AUTH=none"]);
    run.is("registry", "ok", &["200"]);
    // ECR itself wants a token.
    let run = check(&front.standin, &[("UPSTREAM_AUTH", "none")]);
    assert_eq!(run.code, Some(1));
    run.is(
        "registry",
        "FAIL",
        &[
            "refused a request without a token: the registry answered 401",
            "UPSTREAM_AUTH is none; set it to ecr",
        ],
    );
    assert!(!run.err.contains("renewing"), "{}", run.err);
}

#[test]
fn the_cache_of_a_running_proxy_is_looked_at_and_not_touched() {
    let cached = Cached::start();
    let directory = cached.scratch.path().to_owned();
    let list = || {
        let mut command = std::process::Command::new("find");
        let listed = command.arg(&directory).output().unwrap().stdout;
        String::from_utf8(listed).unwrap()
    };
    // The proxy's own sweep writes the index, some time after the start.
    wait_until("the index is written", SOON, || {
        list().contains("/locks/index") && !list().contains("/temp-")
    });
    let before = list();
    let directory_text = directory.to_str().unwrap();
    let run = check(&cached.standin, &[("CACHE_DIR", directory_text)]);
    assert_eq!(run.code, Some(0), "{}", run.out);
    run.is(
        "cache",
        "ok",
        &[directory_text, "can be written", " free, quota 75.0 GiB"],
    );
    assert_eq!(list(), before);
}

#[test]
fn a_cache_that_cannot_be_is_told_with_its_remedy() {
    let (standin, folder) = (standin(), Scratch::new());
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let run = check(&standin, &[("CACHE_DIR", file.to_str().unwrap())]);
    assert_eq!(run.code, Some(1));
    run.is(
        "cache",
        "FAIL",
        &["cannot be used by uid", "set CACHE_DIR to another one"],
    );
    let missing = folder.path().join("not/yet");
    let run = check(&standin, &[("CACHE_DIR", missing.to_str().unwrap())]);
    assert_eq!(run.code, Some(0), "{}", run.out);
    run.is("cache", "ok", &["can be made"]);
    assert!(!missing.exists());
}

#[test]
fn certificates_and_logins_are_read() {
    let (standin, pki) = (standin(), Pki::new());
    let own = pki.settings();
    let mut settings: Vec<(&str, &str)> = own.iter().map(|(k, v)| (*k, v.as_str())).collect();
    // bcrypt of "x" with cost 4.
    let users = "alice:$2y$04$abcdefghijklmnopqrstuuWqZ0HrfNfhXfQxIXYBYpZDrVmHnJvG6\n";
    let users = pki.write("users", users);
    settings.push(("AUTH_FILE", &users));
    let run = check(&standin, &settings);
    assert_eq!(run.code, Some(0), "{}", run.out);
    run.is("tls", "ok", &["good until 20"]);
    run.is("logins", "ok", &["1 users in /"]);
    let empty = pki.write("empty", "");
    let plain = pki.write("plain", "alice:hunter2\n");
    settings.extend([("SSL_KEY", empty.as_str()), ("AUTH_FILE", plain.as_str())]);
    let run = check(&standin, &settings);
    assert_eq!(run.code, Some(1));
    run.is("tls", "FAIL", &["SSL_KEY=", "no private key in it"]);
    run.is("logins", "FAIL", &["AUTH_FILE=", "line 1"]);
    assert!(!run.out.contains("hunter2") && !run.err.contains("hunter2"));
}

#[test]
fn bad_settings_end_it_with_64() {
    let run = check(&standin(), &[("WORKERS", "0"), ("LOG_LEVEL", "LOUD")]);
    assert_eq!((run.code, run.err.as_str()), (Some(64), ""));
    assert_eq!(run.out.lines().count(), 2, "{}", run.out);
    run.is("settings", "FAIL", &["=", "expected"]);
}

#[test]
fn the_log_is_as_loud_as_it_is_told_to_be() {
    let standin = standin();
    let quiet = check_with(&standin, &["--log-level=ERROR"], &[]);
    assert_eq!((quiet.code, quiet.err.as_str()), (Some(0), ""));
    let skewed = Standin::start(Options {
        clock_skew: -86_400,
        ..Options::default()
    });
    let loud = check_with(&skewed, &["--log-level=DEBUG"], &[]);
    assert!(
        loud.err.contains("clock differs from AWS's"),
        "{}",
        loud.err
    );
}

#[test]
fn a_refusal_that_holds_the_token_is_quoted_without_it() {
    let standin = Standin::start(Options::default());
    let registry = Scripted::start(|head, stream| {
        let text = format!("denied: {}", forms_of(head)[0]);
        reply(stream, "403 Forbidden\r\nContent-Type: text/plain", &text)
    });
    let run = check(&standin, &[("ECR", &registry.url())]);
    assert!(run.out.contains(": denied: ****"), "{}", run.out);
}
