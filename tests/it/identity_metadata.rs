//! Credentials and region from the endpoints of AWS's own machines: containers and EC2 instances,
//! each down to a pull; and what is told, and to whom, when they fail.

use standin::{Fault, Match, Options, Seen, Server, Standin};

use crate::support::{Front, Http, Proxy, SOON, Scratch, error_of, wait_until};

const MANIFEST: &str = "/v2/team/app/manifests/1.0";
const NO_KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")];
const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";

/// A stand-in whose API demands the session token of temporary credentials.
fn standin() -> Standin {
    standin_in("eu-west-1")
}

fn standin_in(region: &str) -> Standin {
    let standin = Standin::start(Options {
        secret_access_key: "temporary/secret+key".into(),
        session_token: Some("temporary+session/token==".into()),
        region: region.into(),
        ..Options::default()
    });
    standin.put_image("team/app", "1.0", &[]);
    standin
}

/// A proxy without keys in front of it.
fn front(standin: Standin, settings: &[(&str, &str)]) -> Front {
    let settings: Vec<(&str, &str)> = NO_KEYS
        .iter()
        .chain(&[("AWS_SESSION_TOKEN", "")])
        .chain(settings)
        .copied()
        .collect();
    let proxy = Proxy::in_front_of(&standin, &settings);
    Front { proxy, standin }
}

fn on_ec2(standin: Standin, settings: &[(&str, &str)]) -> Front {
    let endpoint = standin.metadata_url();
    let mut all = vec![
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str()),
    ];
    all.extend(settings);
    front(standin, &all)
}

fn in_a_container(standin: Standin, settings: &[(&str, &str)]) -> Front {
    let uri = format!("{}/v1/credentials", standin.metadata_url());
    let mut all = vec![(FULL_URI, uri.as_str())];
    all.extend(settings);
    front(standin, &all)
}

impl Front {
    fn metadata_calls(&self, text: &str) -> usize {
        let calls = self.seen(Server::Metadata);
        let line = |seen: &Seen| format!("{} {}", seen.method, seen.target);
        calls
            .iter()
            .filter(|seen| line(seen).contains(text))
            .count()
    }

    fn pulls(&self) {
        let got = self.get(MANIFEST);
        assert_eq!(got.status, 200, "{}", got.text());
    }

    /// Makes the next token need new credentials: AWS says that those in use have ended.
    fn end_credentials(&self) {
        let ended = Fault::aws_error(400, "ExpiredTokenException", "The token has expired");
        let pick = Match::api().path("GetAuthorizationToken");
        self.standin.fault(pick, ended);
        self.standin.expire_tokens();
    }

    fn pulls_again(&self) {
        wait_until("a pull with new credentials", SOON, || {
            self.get(MANIFEST).status == 200
        });
        assert_eq!(self.standin.pending_faults(), 0);
    }

    /// The fault that probes, clients and the log are told, which must hold all `parts`.
    fn tells(&self, parts: &[&str]) {
        let line = self.proxy.wait_for_log("no new ECR token");
        let ready = self.get("/readyz");
        assert_eq!(ready.status, 503);
        let pull = self.get(MANIFEST);
        assert_eq!(pull.status, 503, "{}", pull.text());
        for text in [line, ready.text(), error_of(&pull).1] {
            for part in parts {
                assert!(text.contains(part), "no {part:?} in: {text}");
            }
        }
        assert_eq!(self.get("/healthz").status, 200);
        assert!(self.seen(Server::Registry).is_empty());
        self.keeps_secrets();
    }

    fn keeps_secrets(&self) {
        let log = self.proxy.log();
        let secrets = self.standin.secrets();
        assert!(secrets.len() >= 4, "only {} secrets", secrets.len());
        for secret in secrets {
            assert!(!log.contains(&secret), "in the log: {secret}");
        }
    }
}

#[test]
fn the_stand_in_is_strict() {
    let standin = standin();
    let address = standin.metadata_url();
    let address = address.strip_prefix("http://").unwrap().parse().unwrap();
    let ask = |method: &str, target: &str, headers: &[(&str, &str)]| {
        Http::once(address, method, target, headers, b"")
    };
    let (token, ttl) = ("/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds");
    let roles = "/latest/meta-data/iam/security-credentials/";
    assert_eq!(ask("GET", roles, &[]).status, 401, "version 1");
    let wrong = [("X-aws-ec2-metadata-token", "guessed")];
    assert_eq!(ask("GET", roles, &wrong).status, 401);
    for bad in ["0", "21601", "x"] {
        assert_eq!(ask("PUT", token, &[(ttl, bad)]).status, 400, "{bad}");
    }
    assert_eq!(ask("PUT", token, &[]).status, 400);
    let through = [(ttl, "60"), ("X-Forwarded-For", "10.0.0.1")];
    assert_eq!(ask("PUT", token, &through).status, 403);
    let session = ask("PUT", token, &[(ttl, "60")]).text();
    let session = [("X-aws-ec2-metadata-token", session.as_str())];
    assert_eq!(ask("GET", roles, &session).text(), "stand-in-role");
    assert_eq!(ask("GET", &format!("{roles}other"), &session).status, 404);
    assert_eq!(ask("POST", roles, &session).status, 405);
    standin.end_metadata_sessions();
    assert_eq!(ask("GET", roles, &session).status, 401);
    let container = |authorization| ask("GET", "/v1/credentials", authorization).status;
    assert_eq!(container(&[]), 403);
    assert_eq!(container(&[("Authorization", "guessed")]), 403);
    let right = [("Authorization", "stand-in-container-token")];
    assert_eq!(container(&right), 200);
    assert_eq!(ask("GET", "/v1/other", &right).status, 404);
}

#[test]
fn the_role_of_an_instance_pulls() {
    let front = on_ec2(standin(), &[]);
    front.pulls();
    assert_eq!(front.get("/readyz").status, 200);
    let line = front.proxy.wait_for_log("identity");
    assert!(line.contains("EC2 instance role stand-in-role"), "{line}");
    // Version 1 is never spoken: everything but the first call brings a session token.
    for seen in front.seen(Server::Metadata) {
        let session = seen.header("X-aws-ec2-metadata-token").is_some();
        assert_eq!(
            session,
            seen.method == "GET",
            "{} {}",
            seen.method,
            seen.target
        );
        assert_eq!(seen.status, Some(200));
        let length = (seen.method == "PUT").then_some("0");
        assert_eq!(seen.header("Content-Length"), length);
    }
    assert_eq!(front.metadata_calls("PUT /latest/api/token"), 1);
    front.keeps_secrets();
}

#[test]
fn a_stand_in_like_moto_is_understood() {
    let standin = standin();
    standin.set_metadata(|metadata| {
        metadata.code = None;
        metadata.ttl_field = false;
    });
    on_ec2(standin, &[]).pulls();
}

#[test]
fn a_session_that_has_ended_is_replaced() {
    let front = on_ec2(standin(), &[]);
    front.pulls();
    front.standin.end_metadata_sessions();
    front.end_credentials();
    front.pulls_again();
    assert!(front.metadata_calls("PUT") >= 2);
    let refused = front.seen(Server::Metadata);
    assert!(refused.iter().any(|seen| seen.status == Some(401)));
    front.keeps_secrets();
}

#[test]
fn errors_of_the_metadata_service_pass() {
    let standin = standin();
    for (method, path) in [
        ("PUT", "/latest/api/token"),
        ("GET", "/security-credentials/ "),
        ("GET", "/security-credentials/stand-in-role"),
    ] {
        let pick = Match::metadata().method(method).path(path);
        standin.fault(pick, Fault::status(503));
    }
    let pick = Match::metadata().method("GET").nth(2);
    standin.fault(pick, Fault::CloseBeforeHead);
    let front = on_ec2(standin, &[]);
    front.pulls();
    assert_eq!(front.standin.pending_faults(), 0);
    assert!(front.metadata_calls("") >= 3 + 4);
}

#[test]
fn an_instance_that_renews_nothing_goes_on_with_what_it_has() {
    let standin = standin();
    standin.set_metadata(|metadata| metadata.credentials_life = -60);
    let front = on_ec2(standin, &[]);
    front.pulls();
    let line = front
        .proxy
        .wait_for_log("expired AWS credentials stay in use");
    assert!(
        line.contains("WARN") && line.contains("past their end"),
        "{line}"
    );
    front.keeps_secrets();
}

#[test]
fn a_service_that_never_answers_delays_nothing_and_hints_at_the_hop_limit() {
    let standin = standin();
    let pick = Match::metadata().method("PUT").always();
    standin.fault(pick, Fault::Silent);
    let front = on_ec2(standin, &[]);
    // Listening already, while the first attempt is still waiting.
    assert_eq!(front.get("/healthz").status, 200);
    front.tells(&["does not answer", "hop limit 2"]);
    assert!(front.metadata_calls("") <= 4, "not asked in a loop");
    front.standin.release();
}

#[test]
fn an_instance_without_a_role_is_told_of() {
    let standin = standin();
    standin.set_metadata(|metadata| metadata.role = None);
    on_ec2(standin, &[]).tells(&[
        "this EC2 instance has no role",
        "attach an instance profile",
    ]);
}

#[test]
fn a_role_that_cannot_be_assumed_is_told_of_with_its_code() {
    let standin = standin();
    let code = "AssumeRoleUnauthorizedAccess";
    let message = "EC2 cannot assume the role stand-in-role";
    standin.set_metadata(|metadata| metadata.code = Some((code.into(), message.into())));
    on_ec2(standin, &[]).tells(&[code, message, "trust policy"]);
}

#[test]
fn a_service_that_is_off_is_told_of() {
    let standin = standin();
    standin.fault(Match::metadata().always(), Fault::status(403));
    let front = on_ec2(standin, &[]);
    front.tells(&[
        "PUT /latest/api/token 403",
        "enable the instance's metadata service",
    ]);
    assert_eq!(front.metadata_calls("GET"), 0, "no way back to version 1");
}

#[test]
fn switched_off_the_service_is_not_asked() {
    let front = on_ec2(standin(), &[("AWS_EC2_METADATA_DISABLED", "true")]);
    front.tells(&["set AWS_ACCESS_KEY_ID", "off (AWS_EC2_METADATA_DISABLED)"]);
    assert!(front.seen(Server::Metadata).is_empty());
}

#[test]
fn keys_in_the_environment_come_first() {
    let standin = standin();
    let endpoint = standin.metadata_url();
    let settings = [
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str()),
        (FULL_URI, endpoint.as_str()),
    ];
    let proxy = Proxy::in_front_of(&standin, &settings);
    let front = Front { proxy, standin };
    front.pulls();
    assert!(front.seen(Server::Metadata).is_empty());
}

#[test]
fn the_region_of_the_instance_serves_a_registry_whose_name_tells_none() {
    // Signatures for any other region are refused.
    let front = on_ec2(standin_in("ap-southeast-2"), &[("AWS_REGION", "")]);
    front.pulls();
    let line = front.proxy.wait_for_log("region found");
    assert!(line.contains("ap-southeast-2"), "{line}");
    assert_eq!(front.metadata_calls("/placement/region"), 1);
    // Where neither registry nor region is set, it gives both.
    let both = [("AWS_REGION", ""), ("ECR", "")];
    on_ec2(standin_in("ap-southeast-2"), &both).pulls();
}

#[test]
fn keys_go_with_the_region_of_the_instance() {
    let standin = standin();
    let endpoint = standin.metadata_url();
    let settings = [
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str()),
        ("AWS_REGION", ""),
    ];
    let proxy = Proxy::in_front_of(&standin, &settings);
    let front = Front { proxy, standin };
    front.pulls();
    assert_eq!(front.metadata_calls("security-credentials"), 0);
}

#[test]
fn a_region_that_is_nowhere_is_told_of() {
    let standin = standin();
    let pick = Match::metadata().path("/placement/region").always();
    standin.fault(pick, Fault::status(404));
    let front = on_ec2(standin, &[("AWS_REGION", "")]);
    front.proxy.wait_for_log("no region found; set AWS_REGION");
    for reply in [front.get("/readyz"), front.get(MANIFEST)] {
        assert_eq!(reply.status, 503);
        for part in ["set AWS_REGION", "/placement/region 404"] {
            assert!(reply.text().contains(part), "{}", reply.text());
        }
    }
}

#[test]
fn a_container_pulls_with_its_token() {
    for name in ["127.0.0.1", "localhost"] {
        let standin = standin();
        let uri = format!("{}/v1/credentials", standin.metadata_url());
        let uri = uri.replace("127.0.0.1", name);
        let settings = [
            (FULL_URI, uri.as_str()),
            (TOKEN, "stand-in-container-token"),
        ];
        let front = front(standin, &settings);
        front.pulls();
        let line = front.proxy.wait_for_log("identity");
        assert!(
            line.contains(&format!("container credentials ({FULL_URI})")),
            "{line}"
        );
        for seen in front.seen(Server::Metadata) {
            assert!(seen.header("Host").unwrap().starts_with(name));
            assert_eq!(seen.header("Accept"), Some("application/json"));
        }
        front.keeps_secrets();
    }
}

#[test]
fn the_tokens_file_is_read_anew_when_credentials_are() {
    let scratch = Scratch::new();
    let file = scratch.path().join("eks-pod-identity-token");
    let standin = standin();
    let rotate = |standin: &Standin, token: &str| {
        std::fs::write(&file, format!("{token}\n")).unwrap();
        standin.set_metadata(|metadata| metadata.container_token = Some(token.into()));
    };
    rotate(&standin, "pod-token-one");
    let front = in_a_container(standin, &[(TOKEN_FILE, file.to_str().unwrap())]);
    front.pulls();
    rotate(&front.standin, "pod-token-two");
    front.end_credentials();
    front.pulls_again();
    let sent = front.seen(Server::Metadata);
    let sent = |token| {
        sent.iter()
            .any(|seen| seen.header("Authorization") == Some(token))
    };
    assert!(sent("pod-token-one") && sent("pod-token-two"));
    let refused = front.seen(Server::Metadata);
    assert!(refused.iter().all(|seen| seen.status == Some(200)));
    front.keeps_secrets();
}

#[test]
fn a_wrong_container_token_is_told_of_and_not_sent_again_and_again() {
    let scratch = Scratch::new();
    let file = scratch.path().join("token");
    std::fs::write(&file, "wrong").unwrap();
    let front = in_a_container(standin(), &[(TOKEN_FILE, file.to_str().unwrap())]);
    front.tells(&[
        "container credentials 403 AccessDeniedException: the token is not valid",
        "check AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    ]);
    let missing = in_a_container(standin(), &[(TOKEN_FILE, "/nowhere/token")]);
    missing
        .tells(&["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=/nowhere/token: there is no such file"]);
    assert!(missing.seen(Server::Metadata).is_empty());
}

#[test]
fn errors_of_the_container_endpoint_pass() {
    let standin = standin();
    let busy = br#"{"code":"InternalServerException","message":"again"}"#.to_vec();
    standin.fault(Match::metadata(), Fault::Status(500, Vec::new(), busy));
    standin.fault(Match::metadata(), Fault::CloseBeforeHead);
    let front = in_a_container(standin, &[(TOKEN, "stand-in-container-token")]);
    front.pulls();
    assert_eq!(front.standin.pending_faults(), 0);
}

#[test]
fn a_redirect_of_the_container_endpoint_is_not_followed() {
    let standin = standin();
    let elsewhere = format!("{}/v1/credentials", standin.api_url());
    standin.fault(Match::metadata().always(), Fault::RedirectTo(elsewhere));
    let front = in_a_container(standin, &[(TOKEN, "stand-in-container-token")]);
    front.tells(&["container credentials 307"]);
    assert!(front.seen(Server::Api).is_empty());
}

#[test]
fn a_container_that_fails_does_not_become_an_instance() {
    let standin = standin();
    let endpoint = standin.metadata_url();
    let settings = [
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str()),
        (TOKEN, "wrong"),
    ];
    let front = in_a_container(standin, &settings);
    front.tells(&["container credentials 403"]);
    assert_eq!(front.metadata_calls("/latest/"), 0);
}
