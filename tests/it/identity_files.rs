//! Identities out of files and from STS, each down to a pull: web identity, profiles with keys,
//! roles and processes; what is told when one fails; and files that change.

use std::os::unix::fs::PermissionsExt as _;

use standin::{Fault, Match, Options, Role, Server, Standin};

use crate::support::{Front, Proxy, SOON, Scratch, error_of, wait_until};

const MANIFEST: &str = "/v2/team/app/manifests/1.0";
const WEB_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.c3lzdGVtOnB1bGxlcg.c2lnbmF0dXJl";
const WEB_TOKEN_2: &str = "eyJhbGciOiJSUzI1NiJ9.YW5vdGhlciBwdWxsZXI.c2lnbmF0dXJl";
/// The stand-in's own key, as a profile has it.
const KEYS: &str = "aws_access_key_id = AKIDSTANDIN\n\
                    aws_secret_access_key = standin/secret+access+key\n";

/// A stand-in with an image, and files of AWS beside it.
struct Site {
    standin: Standin,
    folder: Scratch,
}

impl Site {
    fn new() -> Self {
        let standin = Standin::start(Options::default());
        standin.put_image("team/app", "1.0", &[]);
        Self {
            standin,
            folder: Scratch::new(),
        }
    }

    /// Writes a file; gives its path.
    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Starts the proxy without the environment's keys.
    fn start(self, settings: &[(&str, &str)]) -> Started {
        let mut all = vec![("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")];
        all.extend(settings);
        let proxy = Proxy::in_front_of(&self.standin, &all);
        let front = Front {
            proxy,
            standin: self.standin,
        };
        Started {
            front,
            folder: self.folder,
        }
    }

    /// The same with this config file and the profile `dev`.
    fn start_with_profile(self, config: &str) -> Started {
        let path = self.write("config", config);
        self.start(&[("AWS_CONFIG_FILE", &path), ("AWS_PROFILE", "dev")])
    }

    fn add_web_role(&self) -> String {
        let role = Role {
            web_identity_token: Some(WEB_TOKEN.into()),
            ..Role::named("puller")
        };
        let arn = role.arn.clone();
        self.standin.add_role(role);
        arn
    }
}

struct Started {
    front: Front,
    folder: Scratch,
}

impl Started {
    /// A pull that succeeds, as the identity `arn` out of `source`.
    fn pulls_as(&self, arn: &str, source: &str) {
        let got = self.front.get(MANIFEST);
        assert_eq!(got.status, 200, "{}", got.text());
        let line = self.front.proxy.wait_for_log(" identity ");
        assert!(line.contains(arn), "{line}");
        let who = format!("{arn} via {source} until ");
        wait_until("/readyz names the identity", SOON, || {
            self.front.get("/readyz").text().contains(&who)
        });
        self.tells_no_secret();
    }

    /// No pull, and everywhere the same reason, with these words in it.
    fn fails_with(&self, words: &[&str]) -> String {
        self.front.proxy.wait_for_log("no new ECR token");
        let ready = self.front.get("/readyz");
        assert_eq!(ready.status, 503);
        let pull = self.front.get(MANIFEST);
        assert_eq!(pull.status, 503, "{}", pull.text());
        for text in [ready.text(), error_of(&pull).1] {
            for word in words {
                assert!(text.contains(word), "no {word:?} in {text}");
            }
        }
        assert_eq!(self.front.get("/healthz").status, 200);
        self.tells_no_secret();
        ready.text()
    }

    fn tells_no_secret(&self) {
        let ready = self.front.get("/readyz").text();
        let log = self.front.proxy.log();
        let mut secrets = self.front.standin.secrets();
        secrets.extend([WEB_TOKEN.to_owned(), WEB_TOKEN_2.to_owned()]);
        for secret in secrets {
            assert!(!log.contains(&secret), "in the log: {secret}");
            assert!(!ready.contains(&secret), "in /readyz: {secret}");
        }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }
}

fn user(name: &str) -> String {
    format!("arn:aws:iam::123456789012:user/{name}")
}

fn session(role: &str, name: &str) -> String {
    format!("arn:aws:sts::123456789012:assumed-role/{role}/{name}")
}

#[test]
fn a_web_identity_pulls() {
    let site = Site::new();
    let arn = site.add_web_role();
    let token = site.write("token", WEB_TOKEN);
    let site = site.start(&[
        ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
        ("AWS_ROLE_ARN", &arn),
        ("AWS_ROLE_SESSION_NAME", "node-1"),
    ]);
    let source = format!("web identity, role {arn}");
    site.pulls_as(&session("puller", "node-1"), &source);
    let calls = site.front.standin.sts_calls();
    let first = &calls[0];
    assert_eq!(first.field("Action"), Some("AssumeRoleWithWebIdentity"));
    assert_eq!(first.key_id, None);
    assert_eq!(first.field("RoleSessionName"), Some("node-1"));
    // One session signs everything.
    let of_roles = calls.iter().filter(|call| call.key_id.is_none());
    assert_eq!(of_roles.count(), 1);
}

#[test]
fn the_keys_of_a_profile_pull() {
    let site = Site::new();
    let credentials = site.write("credentials", &format!("[other]\n\n[dev]\n{KEYS}"));
    let settings = [
        ("AWS_SHARED_CREDENTIALS_FILE", credentials.as_str()),
        ("AWS_PROFILE", "dev"),
    ];
    site.start(&settings)
        .pulls_as(&user("stand-in"), "profile dev");
}

#[test]
fn the_default_profile_of_the_home_directory_pulls() {
    let site = Site::new();
    std::fs::create_dir(site.folder.path().join(".aws")).unwrap();
    site.write(".aws/credentials", &format!("[default]\n{KEYS}"));
    site.write(".aws/config", "[default]\nregion = eu-west-1\n");
    let home = site.folder.text().to_owned();
    let site = site.start(&[("HOME", &home), ("AWS_REGION", "")]);
    site.pulls_as(&user("stand-in"), "profile default");
}

#[test]
fn a_role_with_a_source_profile_and_an_external_id_pulls() {
    let site = Site::new();
    let role = Role {
        external_id: Some("the id".into()),
        trusts: Some("user/stand-in".into()),
        ..Role::named("puller")
    };
    let arn = role.arn.clone();
    site.standin.add_role(role);
    let site = site.start_with_profile(&format!(
        "[profile dev]\nrole_arn = {arn}\nsource_profile = base\nexternal_id = the id\n\
         role_session_name = edge-7\nduration_seconds = 900\n[profile base]\n{KEYS}"
    ));
    let source = format!("profile dev, role {arn}");
    site.pulls_as(&session("puller", "edge-7"), &source);
    let call = &site.front.standin.sts_calls()[0];
    assert_eq!(call.key_id.as_deref(), Some("AKIDSTANDIN"));
    assert_eq!(call.field("DurationSeconds"), Some("900"));
}

#[test]
fn a_role_assumed_by_way_of_another_pulls() {
    let site = Site::new();
    let through = Role::named("through");
    let puller = Role {
        trusts: Some("assumed-role/through/".into()),
        ..Role::named("puller")
    };
    let (first, second) = (through.arn.clone(), puller.arn.clone());
    site.standin.add_role(through);
    site.standin.add_role(puller);
    let site = site.start_with_profile(&format!(
        "[profile dev]\nrole_arn = {second}\nsource_profile = middle\n\
         [profile middle]\nrole_arn = {first}\nsource_profile = base\n[profile base]\n{KEYS}"
    ));
    let source = format!("profile dev, role {first}, role {second}");
    site.pulls_as(&session("puller", "aws-ecr-proxy"), &source);
}

#[test]
fn a_role_assumed_with_the_environments_keys_pulls() {
    let site = Site::new();
    let role = Role::named("puller");
    let arn = role.arn.clone();
    site.standin.add_role(role);
    let config = format!("[profile dev]\nrole_arn = {arn}\ncredential_source = Environment\n");
    let path = site.write("config", &config);
    let site = site.start(&[
        ("AWS_CONFIG_FILE", &path),
        ("AWS_PROFILE", "dev"),
        ("AWS_ACCESS_KEY_ID", "AKIDSTANDIN"),
        ("AWS_SECRET_ACCESS_KEY", "standin/secret+access+key"),
    ]);
    let source = format!("profile dev, environment, role {arn}");
    site.pulls_as(&session("puller", "aws-ecr-proxy"), &source);
}

#[test]
fn a_web_identity_of_a_profile_pulls() {
    let site = Site::new();
    let arn = site.add_web_role();
    let token = site.write("token", &format!("{WEB_TOKEN}\n"));
    let site = site.start_with_profile(&format!(
        "[profile dev]\nrole_arn = {arn}\nweb_identity_token_file = {token}\n"
    ));
    let source = format!("profile dev's web identity, role {arn}");
    site.pulls_as(&session("puller", "aws-ecr-proxy"), &source);
}

/// Writes a program for `credential_process`, and the profile that names it.
fn process(site: &Site, script: &str) -> String {
    let program = site.write("print credentials", &format!("#!/bin/sh\n{script}"));
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    format!("[profile dev]\ncredential_process = \"{program}\" --account 'a b'\n")
}

#[test]
fn the_credentials_of_a_process_pull() {
    let site = Site::new();
    let config = process(
        &site,
        r#"[ "$2" = "a b" ] || exit 9
           echo '{"Version": 1, "AccessKeyId": "AKIDSTANDIN",'
           echo ' "SecretAccessKey": "standin/secret+access+key"}'"#,
    );
    let site = site.start_with_profile(&config);
    site.pulls_as(&user("stand-in"), "profile dev's process");
}

#[test]
fn a_process_that_fails_is_quoted_without_its_secrets() {
    let site = Site::new();
    let script = format!("echo '{{'; echo 'no session; had {WEB_TOKEN}' >&2; exit 3");
    let config = process(&site, &script);
    let site = site.start_with_profile(&config);
    site.fails_with(&[
        "profile dev's process: ",
        "print credentials failed: exit status: 3: no session; had ***",
    ]);
}

#[test]
fn region_and_endpoints_of_a_profile_are_used() {
    let site = Site::new();
    let api = site.standin.api_url();
    let path = site.write(
        "config",
        &format!(
            "[profile dev]\nregion = eu-west-1\nservices = here\n{KEYS}\
             [services here]\necr =\n  endpoint_url = {api}\nsts =\n  endpoint_url = {api}\n"
        ),
    );
    let site = site.start(&[
        ("AWS_CONFIG_FILE", &path),
        ("AWS_PROFILE", "dev"),
        ("AWS_REGION", ""),
        ("AWS_ENDPOINT_URL", ""),
    ]);
    site.pulls_as(&user("stand-in"), "profile dev");
}

#[test]
fn each_refusal_of_sts_says_what_to_mend() {
    let table = [
        (403, "AccessDenied", "let its trust policy allow"),
        (400, "ExpiredTokenException", "see that its file is rotated"),
        (
            400,
            "IDPCommunicationError",
            "cannot reach the token's issuer",
        ),
        (403, "IDPRejectedClaim", "issue a new one"),
        (
            400,
            "InvalidIdentityToken",
            "identity provider of the role's account",
        ),
        (403, "RegionDisabledException", "or set AWS_REGION"),
        (400, "ValidationError", "check the role's ARN"),
    ];
    for (status, code, remedy) in table {
        let site = Site::new();
        let arn = site.add_web_role();
        let token = site.write("token", WEB_TOKEN);
        let call = "AssumeRoleWithWebIdentity";
        let refusal = Fault::sts_error(status, code, &format!("no, not {WEB_TOKEN}"));
        site.standin
            .fault(Match::api().path(call).always(), refusal);
        let site = site.start(&[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
            ("AWS_ROLE_ARN", &arn),
        ]);
        let call = format!(
            "{call} {status} {code} in eu-west-1 via web identity, assuming {arn}: no, not ***"
        );
        site.fails_with(&["AWS credentials: ", &call, remedy]);
        // Nobody was asked for a token in somebody else's name.
        assert_eq!(site.front.token_calls(), 0);
    }
}

#[test]
fn a_role_that_may_not_be_assumed_says_what_to_grant() {
    let site = Site::new();
    let role = Role {
        external_id: Some("the id".into()),
        ..Role::named("puller")
    };
    let arn = role.arn.clone();
    site.standin.add_role(role);
    let site = site.start_with_profile(&format!(
        "[profile dev]\nrole_arn = {arn}\nsource_profile = dev\nexternal_id = another\n{KEYS}"
    ));
    site.fails_with(&[
        "AssumeRole 403 AccessDenied in eu-west-1 via profile dev, assuming ",
        "grant sts:AssumeRole on the role",
        "external_id",
    ]);
}

#[test]
fn passing_refusals_of_sts_pass() {
    for code in ["IDPCommunicationError", "InvalidIdentityToken"] {
        let site = Site::new();
        let arn = site.add_web_role();
        let token = site.write("token", WEB_TOKEN);
        let pick = Match::api().path("AssumeRoleWithWebIdentity");
        site.standin
            .fault(pick.times(2), Fault::sts_error(400, code, "soon"));
        let site = site.start(&[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
            ("AWS_ROLE_ARN", &arn),
        ]);
        wait_until("the proxy is ready", SOON, || {
            site.front.get("/readyz").status == 200
        });
        assert_eq!(site.front.get(MANIFEST).status, 200, "{code}");
    }
}

#[test]
fn sts_out_of_reach_is_told_and_waited_out() {
    let site = Site::new();
    let arn = site.add_web_role();
    let token = site.write("token", WEB_TOKEN);
    site.standin.down(Server::Api);
    let site = site.start(&[
        ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
        ("AWS_ROLE_ARN", &arn),
    ]);
    let text = site.fails_with(&["AssumeRoleWithWebIdentity failed in eu-west-1 via web identity"]);
    assert!(text.contains("connect failed"), "{text}");
    site.front.standin.up(Server::Api);
    wait_until("the proxy is ready", SOON, || {
        site.front.get("/readyz").status == 200
    });
    assert_eq!(site.front.get(MANIFEST).status, 200);
}

/// A config file, settings beside it, and what must be told.
type Wrong<'a> = (String, &'a [(&'a str, &'a str)], &'a [&'a str]);

#[test]
fn what_is_missing_or_wrong_is_named_with_its_remedy() {
    let arn = Role::named("puller").arn;
    let dev = |text: &str| format!("[profile dev]\n{text}\n");
    let table: [Wrong<'_>; 8] = [
        (
            dev("sso_session = corp\nsso_account_id = 1\nsso_role_name = r"),
            &[],
            &[
                "profile dev: it signs in with sso_session",
                "credential_process",
            ],
        ),
        (
            "[profile other]\n".into(),
            &[],
            &["AWS_PROFILE=dev: there is no such profile; expected [profile dev] in /"],
        ),
        (
            dev(&format!(
                "role_arn = {arn}\nsource_profile = dev\nmfa_serial = x\n{KEYS}"
            )),
            &[],
            &["profile dev: mfa_serial asks for a code"],
        ),
        (
            dev("aws_secret_access_key = standin/secret+access+key"),
            &[],
            &["profile dev: aws_secret_access_key is there, aws_access_key_id is not"],
        ),
        (
            "[profile dev]\nstandin/secret+access+key\n".into(),
            &[],
            &["config: line 2: expected key = value"],
        ),
        (
            dev("region = eu-west-1"),
            &[("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")],
            &["AWS_SHARED_CREDENTIALS_FILE=/nonexistent/credentials: there is no such file"],
        ),
        // What comes first decides, though the profile would do.
        (
            dev(KEYS),
            &[("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent/token")],
            &["AWS_WEB_IDENTITY_TOKEN_FILE is set but AWS_ROLE_ARN is not"],
        ),
        (
            dev("credential_process = /nonexistent/program"),
            &[],
            &[
                "/nonexistent/program cannot be run",
                "mount one that is static",
            ],
        ),
    ];
    for (config, settings, words) in table {
        let site = Site::new();
        let path = site.write("config", &config);
        let mut all = vec![("AWS_CONFIG_FILE", path.as_str()), ("AWS_PROFILE", "dev")];
        all.extend(settings);
        let site = site.start(&all);
        site.fails_with(words);
        assert!(site.front.seen(Server::Api).is_empty(), "{config}");
    }
}

#[test]
fn fips_and_an_endpoint_of_ones_own_exclude_each_other() {
    let site = Site::new();
    let credentials = site.write("credentials", &format!("[default]\n{KEYS}"));
    let site = site.start(&[
        ("AWS_SHARED_CREDENTIALS_FILE", &credentials),
        ("AWS_USE_FIPS_ENDPOINT", "true"),
    ]);
    site.fails_with(&["AWS_ENDPOINT_URL and AWS_USE_FIPS_ENDPOINT", "unset one"]);
    assert!(site.front.seen(Server::Api).is_empty());
}

#[test]
fn a_rotated_web_identity_token_is_used_at_the_next_refresh() {
    let site = Site::new();
    let arn = site.add_web_role();
    let token = site.write("token", WEB_TOKEN);
    let site = site.start(&[
        ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
        ("AWS_ROLE_ARN", &arn),
    ]);
    let standin = &site.front.standin;
    assert_eq!(site.front.get(MANIFEST).status, 200);
    // The old token, session and ECR token are over, all at once.
    standin.add_role(Role {
        web_identity_token: Some(WEB_TOKEN_2.into()),
        ..Role::named("puller")
    });
    site.write("token", WEB_TOKEN_2);
    standin.expire_sessions();
    standin.expire_tokens();
    assert_eq!(site.front.get(MANIFEST).status, 200);
    let calls = standin.sts_calls();
    let tokens: Vec<_> = calls
        .iter()
        .filter_map(|call| call.field("WebIdentityToken"))
        .collect();
    assert_eq!(tokens, [WEB_TOKEN, WEB_TOKEN_2]);
    site.tells_no_secret();
}

#[test]
fn sessions_are_used_until_they_end_and_then_replaced() {
    let site = Site::new();
    let role = Role {
        web_identity_token: Some(WEB_TOKEN.into()),
        session_s: 3,
        ..Role::named("puller")
    };
    let arn = role.arn.clone();
    site.standin.add_role(role);
    let token = site.write("token", WEB_TOKEN);
    let site = site.start(&[
        ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
        ("AWS_ROLE_ARN", &arn),
    ]);
    let sessions = || {
        let calls = site.front.standin.sts_calls();
        calls.iter().filter(|call| call.key_id.is_none()).count()
    };
    assert_eq!(site.front.get(MANIFEST).status, 200);
    site.front.proxy.wait_for_log(" identity ");
    let before = sessions();
    // The token outlives the session; the next one is signed by the next session.
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_eq!(site.front.get(MANIFEST).status, 200);
    assert_eq!(sessions(), before);
    site.front.standin.expire_tokens();
    assert_eq!(site.front.get(MANIFEST).status, 200);
    assert_eq!((sessions(), site.front.token_calls()), (before + 1, 2));
}

#[test]
fn rotated_keys_of_a_profile_are_used_at_the_next_renewal() {
    let site = Site::new();
    let credentials = site.write("credentials", &format!("[default]\n{KEYS}"));
    let site = site.start(&[("AWS_SHARED_CREDENTIALS_FILE", &credentials)]);
    let standin = &site.front.standin;
    assert_eq!(site.front.get(MANIFEST).status, 200);
    site.front.proxy.wait_for_log(" identity ");
    standin.add_key("second", "AKIDSECOND", "the/second+secret");
    standin.remove_key("AKIDSTANDIN");
    site.write(
        "credentials",
        "[default]\naws_access_key_id = AKIDSECOND\naws_secret_access_key = the/second+secret\n",
    );
    standin.expire_tokens();
    assert_eq!(site.front.get(MANIFEST).status, 200);
    assert_eq!(site.front.token_calls(), 2);
    site.tells_no_secret();
}

#[test]
fn a_profile_that_is_mended_is_noticed_without_a_restart() {
    let site = Site::new();
    let site = site.start_with_profile("[profile dev]\naws_access_key_id = AKIDSTANDIN\n");
    site.fails_with(&["aws_secret_access_key is not"]);
    site.write("config", &format!("[profile dev]\n{KEYS}"));
    wait_until("the proxy is ready", SOON, || {
        site.front.get("/readyz").status == 200
    });
    assert_eq!(site.front.get(MANIFEST).status, 200);
}

#[test]
fn without_an_identity_the_files_that_were_looked_for_are_named() {
    let home = Scratch::new();
    let folder = home.path().join(".aws");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("config"), "[profile dev]\nregion = eu-west-1\n").unwrap();
    let home = home.path().to_str().unwrap();
    let settings = [
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/puller"),
        ("HOME", home),
    ];
    let front = Front::with(Options::default(), &settings);
    let got = front.get("/v2/team/app/manifests/1.0");
    let message = error_of(&got).1;
    for part in [
        "AWS_ROLE_ARN is set, AWS_WEB_IDENTITY_TOKEN_FILE is not",
        "no profile default with keys or a role: ",
        &format!("{home}/.aws/credentials is not there"),
        &format!("{home}/.aws/config has none"),
    ] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
    let named = Front::with(
        Options::default(),
        &[&settings[..], &[("AWS_PROFILE", "prod")]].concat(),
    );
    let got = named.get("/v2/team/app/manifests/1.0");
    let message = error_of(&got).1;
    assert!(
        message.contains("AWS_PROFILE=prod: there is no such profile"),
        "{message}"
    );
    assert!(message.contains("; there is dev"), "{message}");
}

#[test]
fn one_bad_profile_refuses_no_other_one() {
    let folder = Scratch::new();
    let config = folder.path().join("config");
    let text = "[profile bad]\noops\n[profile indented]\n  region = a\n[profile good] ; ours\n  \
                aws_access_key_id = AKIDSTANDIN\n  aws_secret_access_key = \
                standin/secret+access+key\n";
    std::fs::write(&config, text).unwrap();
    let settings = |profile| {
        [
            ("AWS_ACCESS_KEY_ID", ""),
            ("AWS_SECRET_ACCESS_KEY", ""),
            ("AWS_CONFIG_FILE", config.to_str().unwrap()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials"),
            ("AWS_PROFILE", profile),
        ]
    };
    let front = Front::with(Options::default(), &settings("good"));
    front.standin.put_image("team/app", "1.0", &[]);
    assert_eq!(front.get("/v2/team/app/manifests/1.0").status, 200);
    front.proxy.wait_for_log(
        "AWS_SHARED_CREDENTIALS_FILE=/nonexistent/credentials: there is no such file",
    );
    let bad = Front::with(Options::default(), &settings("bad"));
    let got = bad.get("/v2/team/app/manifests/1.0");
    let message = error_of(&got).1;
    assert!(
        message.contains("config: line 2: expected key = value"),
        "{message}"
    );
    assert!(!message.contains("oops"), "{message}");
}
