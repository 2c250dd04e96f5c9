//! The container source against a scripted API. The token's file is a real one, in a directory of
//! the test's own.

use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use super::super::super::fake::{FakeApi, Folder, clock, json, refused};
use super::*;
use crate::clock::ManualClock;

const DOCUMENT: &str = r#"{"AccessKeyId":"ASIAX","SecretAccessKey":"hunter2","Token":"t+/=",
    "Expiration":"2023-11-15T04:13:20Z","RoleArn":"arn:aws:iam::1:role/x"}"#;
const POD_IDENTITY: &str = "http://169.254.170.23/v1/credentials";

struct Bench {
    api: Arc<FakeApi>,
    clock: Arc<ManualClock>,
    source: Container,
}

fn bench(container: ContainerSettings) -> Bench {
    let clock = clock();
    let api = FakeApi::new(&clock);
    let settings = AwsSettings {
        container,
        ..AwsSettings::default()
    };
    let mut source = Container::new(&settings, api.clone(), clock.clone());
    source.pause = |_| {};
    Bench { api, clock, source }
}

fn full(uri: &str) -> ContainerSettings {
    ContainerSettings {
        full_uri: Some(uri.into()),
        ..ContainerSettings::default()
    }
}

impl Bench {
    fn fault(&self) -> String {
        self.source.fetch().unwrap_err().text
    }

    fn urls(&self) -> Vec<String> {
        self.api.calls().into_iter().map(|call| call.url).collect()
    }

    fn sent(&self, name: &str) -> Option<String> {
        let call = self.api.calls().pop().unwrap();
        call.headers.first(name).map(ToOwned::to_owned)
    }
}

/// The token's file, in a folder of its own.
struct File(Folder);

impl File {
    fn new() -> Self {
        Self(Folder::new())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("token")
    }

    fn write(&self, text: &[u8]) {
        std::fs::write(self.path(), text).unwrap();
    }

    fn settings(&self) -> ContainerSettings {
        ContainerSettings {
            authorization_token_file: Some(self.path()),
            ..full(POD_IDENTITY)
        }
    }
}

#[test]
fn without_a_uri_it_is_not_configured() {
    let bench = bench(ContainerSettings {
        authorization_token: Some(Secret::new("token".into())),
        ..ContainerSettings::default()
    });
    assert_eq!(bench.source.fetch(), Ok(None));
    assert!(bench.api.calls().is_empty());
}

#[test]
fn the_relative_uri_wins_and_leads_to_ecs() {
    let bench = bench(ContainerSettings {
        relative_uri: Some("/v2/credentials/1".into()),
        ..full(POD_IDENTITY)
    });
    bench.api.reply(json(200, DOCUMENT));
    let found = bench.source.fetch().unwrap().unwrap();
    assert_eq!(bench.urls(), ["http://169.254.170.2/v2/credentials/1"]);
    assert_eq!(bench.sent("accept").as_deref(), Some("application/json"));
    assert_eq!(bench.sent("authorization"), None);
    assert_eq!(found.access_key_id, "ASIAX");
    assert_eq!(found.session_token.unwrap().expose(), "t+/=");
    let end = UNIX_EPOCH + Duration::from_secs(1_700_021_600);
    assert_eq!(found.expires, Some(end));
    assert!(
        found
            .source
            .contains("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
    );
}

#[test]
fn no_proxy_ever_sees_a_call() {
    for uri in [POD_IDENTITY, "https://vault.example/a", "http://[::1]/"] {
        let bench = bench(full(uri));
        bench.api.reply(json(500, ""));
        bench.api.reply(json(200, DOCUMENT));
        bench.source.fetch().unwrap();
        let calls = bench.api.calls();
        assert_eq!(calls.len(), 2);
        for call in calls {
            assert!(!call.through_proxy);
            assert_eq!(call.connect_timeout, CONNECT_TIMEOUT);
            assert_eq!(call.timeout, CALL_TIMEOUT);
        }
    }
}

#[test]
fn a_name_may_lead_to_this_host_or_awss_addresses_alone() {
    let uri = "http://agent.local:8080/creds?a=b";
    let bench = bench(full(uri));
    bench.api.name("agent.local", &["::1", "127.0.0.1"]);
    bench.api.fail(refused());
    bench.api.reply(json(200, DOCUMENT));
    bench.source.fetch().unwrap();
    // The address that was checked is dialled; the server still sees the name.
    let dialled = [
        "http://[::1]:8080/creds?a=b",
        "http://127.0.0.1:8080/creds?a=b",
    ];
    assert_eq!(bench.urls(), dialled);
    assert_eq!(bench.sent("host").as_deref(), Some("agent.local:8080"));
    for foreign in ["10.0.0.1", "169.254.169.254", "fe80::1"] {
        let bench = self::bench(full(uri));
        bench.api.name("agent.local", &["127.0.0.1", foreign]);
        let fault = bench.fault();
        assert!(fault.contains(&format!("leads to {foreign}")), "{fault}");
        assert!(bench.api.calls().is_empty());
    }
    let unknown = self::bench(full(uri));
    assert!(unknown.fault().contains("no such name"));
    assert!(unknown.api.calls().is_empty());
}

#[test]
fn https_needs_no_look_up() {
    let bench = bench(full("https://vault.example/a"));
    bench.api.reply(json(200, DOCUMENT));
    bench.source.fetch().unwrap();
    assert_eq!(bench.urls(), ["https://vault.example/a"]);
}

#[test]
fn a_foreign_address_is_refused_even_if_the_settings_let_it_pass() {
    let bench = bench(full("http://10.0.0.1/a"));
    assert!(bench.fault().contains("this address is none of these"));
    assert!(bench.api.calls().is_empty());
}

#[test]
fn the_tokens_file_is_read_each_time_and_beats_the_token() {
    let file = File::new();
    let mut settings = file.settings();
    settings.authorization_token = Some(Secret::new("lesser".into()));
    let bench = bench(settings);
    for (text, sent) in [
        ("one", "one"),
        ("two\n", "two"),
        ("Bearer x\r\n\n", "Bearer x"),
    ] {
        file.write(text.as_bytes());
        bench.api.reply(json(200, DOCUMENT));
        bench.source.fetch().unwrap();
        assert_eq!(bench.sent("authorization").as_deref(), Some(sent));
    }
}

#[test]
fn a_token_file_that_is_no_token_is_told_and_nothing_is_sent() {
    let file = File::new();
    let bench = bench(file.settings());
    let too_long = "a".repeat(16 * 1024 + 1);
    let missing = bench.fault();
    assert!(missing.contains("there is no such file"), "{missing}");
    for (text, why) in [
        (&b""[..], "it is empty"),
        (b"\n", "it is empty"),
        (b"a\nhunter2", "line breaks"),
        (b"a\r\nX-Evil: hunter2", "line breaks"),
        ("hünter2".as_bytes(), "fit no header field"),
        (b"\xff", "it is not UTF-8"),
        (too_long.as_bytes(), "larger than 16384 bytes"),
    ] {
        file.write(text);
        let fault = bench.fault();
        assert!(
            fault.starts_with("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=/"),
            "{fault}"
        );
        assert!(fault.contains(why) && !fault.contains("hunter2"), "{fault}");
    }
    file.write(&too_long.as_bytes()[1..]);
    bench.api.reply(json(200, DOCUMENT));
    assert!(bench.source.fetch().is_ok(), "at the limit");
    let folder = self::bench(ContainerSettings {
        authorization_token_file: Some(file.0.path().to_owned()),
        ..full(POD_IDENTITY)
    });
    assert!(folder.fault().contains("not a regular file"));
    assert_eq!((bench.api.calls().len(), folder.api.calls().len()), (1, 0));
}

#[test]
fn refusals_name_code_message_and_remedy_and_are_not_repeated() {
    let body = r#"{"code":"AccessDeniedException","message":"token hunter2 is not trusted."}"#;
    let with = |token: Option<&str>| ContainerSettings {
        authorization_token: token.map(|text| Secret::new(text.into())),
        ..full(POD_IDENTITY)
    };
    for (status, token, expected) in [
        (
            403,
            Some("hunter2"),
            "container credentials 403 AccessDeniedException: token *** is not trusted; check \
             AWS_CONTAINER_AUTHORIZATION_TOKEN and the role's trust policy",
        ),
        (
            401,
            None,
            "container credentials 401 AccessDeniedException: token hunter2 is not trusted; set \
             AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE or AWS_CONTAINER_AUTHORIZATION_TOKEN",
        ),
        (
            404,
            None,
            "container credentials 404 AccessDeniedException: token hunter2 is not trusted; check \
             AWS_CONTAINER_CREDENTIALS_FULL_URI and the task's or pod's role",
        ),
    ] {
        let bench = bench(with(token));
        bench.api.reply(json(status, body));
        assert_eq!(bench.fault(), expected);
        assert_eq!(bench.api.calls().len(), 1);
    }
}

#[test]
fn what_may_pass_is_tried_three_times() {
    for status in [500, 503, 429] {
        let bench = bench(full(POD_IDENTITY));
        bench.api.reply(json(status, ""));
        bench.api.fail(refused());
        bench.api.reply(json(200, DOCUMENT));
        assert!(bench.source.fetch().unwrap().is_some());
        (0..9).for_each(|_| bench.api.reply(json(status, "")));
        let fault = bench.fault();
        assert!(
            fault.contains(&format!("credentials {status}: no reason given")),
            "{fault}"
        );
        assert_eq!(bench.api.calls().len(), 3 + 3);
    }
    let bench = bench(full(POD_IDENTITY));
    assert!(bench.fault().contains("connect failed"), "nothing answers");
    assert_eq!(bench.api.calls().len(), 3);
}

#[test]
fn a_slow_endpoint_does_not_hold_the_thread() {
    let bench = bench(full(POD_IDENTITY));
    bench.api.takes(CALL_TIMEOUT);
    (0..9).for_each(|_| bench.api.reply(json(500, "")));
    let begun = bench.clock.monotonic();
    bench.fault();
    assert_eq!(bench.api.calls().len(), 2);
    assert_eq!(bench.clock.monotonic() - begun, CALL_TIMEOUT * 2);
}

#[test]
fn redirects_are_refusals() {
    let bench = bench(full(POD_IDENTITY));
    bench
        .api
        .reply(json(307, "").with("Location", "http://evil.example/"));
    assert!(bench.fault().contains("container credentials 307"));
    assert_eq!(bench.api.calls().len(), 1);
}

#[test]
fn documents_without_keys_are_told() {
    for body in ["", "{}", "<html>hunter2"] {
        let bench = bench(full(POD_IDENTITY));
        bench.api.reply(json(200, body));
        let fault = bench.fault();
        assert!(
            fault.starts_with("container credentials: the reply "),
            "{fault}"
        );
        assert!(!fault.contains("hunter2"), "{fault}");
    }
}

#[test]
fn what_somebody_must_mend_is_told_from_what_passes() {
    let lasting = |container: ContainerSettings, reply: Option<(u16, &str)>| {
        let bench = bench(container);
        for _ in 0..ATTEMPTS {
            if let Some((status, body)) = reply {
                bench.api.reply(json(status, body));
            }
        }
        bench.source.fetch().unwrap_err().is_lasting()
    };
    let settings = || full(POD_IDENTITY);
    for (status, body) in [(401, ""), (403, ""), (404, ""), (307, "")] {
        assert!(lasting(settings(), Some((status, body))), "{status}");
    }
    let refused = r#"{"Code":"AssumeRoleUnauthorizedAccess"}"#;
    assert!(lasting(settings(), Some((200, refused))));
    // Nobody listens yet, the agent is busy, the file is being replaced.
    assert!(!lasting(settings(), None));
    for (status, body) in [(500, ""), (429, ""), (200, "<html>")] {
        assert!(!lasting(settings(), Some((status, body))), "{status}");
    }
    let without_file = ContainerSettings {
        authorization_token_file: Some("/nonexistent/token".into()),
        ..settings()
    };
    assert!(!lasting(without_file, None));
}
