//! Profiles down to credentials, with files that change, and what else they say.

use std::path::PathBuf;

use super::super::super::call::Caller;
use super::super::super::fake::{FakeApi, Folder, clock, json};
use super::super::env::Environment;
use super::*;
use crate::secret::Secret;

const ROLE: &str = "arn:aws:iam::123456789012:role/puller";

struct Bench {
    folder: Folder,
    api: Arc<FakeApi>,
    settings: AwsSettings,
}

impl Bench {
    fn new(config: &str) -> Self {
        let folder = Folder::new();
        let settings = AwsSettings {
            config_file: Some(folder.write("config", config)),
            region: Some("eu-west-1".into()),
            ..AwsSettings::default()
        };
        Self {
            folder,
            api: FakeApi::new(&clock()),
            settings,
        }
    }

    fn profile(&self) -> Arc<Profile> {
        let caller = Arc::new(Caller::new(self.api.clone(), clock()));
        let sts = Arc::new(Sts::new(&caller, &self.settings, None));
        let named = NamedSources {
            environment: Arc::new(Environment::new(&self.settings)),
            container: None,
            instance_metadata: None,
        };
        Arc::new(Profile::new(&self.settings, &sts, named))
    }

    fn session(&self, id: &str) {
        let body = format!(
            "<AccessKeyId>{id}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t\
             </SessionToken><Expiration>2023-11-14T23:13:20Z</Expiration>"
        );
        self.api.reply(json(200, &body));
    }

    fn forms(&self) -> Vec<String> {
        let calls = self.api.calls().into_iter();
        calls
            .map(|call| String::from_utf8(call.body).unwrap())
            .collect()
    }
}

fn keys(id: &str) -> String {
    format!("aws_access_key_id = {id}\naws_secret_access_key = hunter2\n")
}

#[test]
fn keys_are_read_anew_each_time() {
    let bench = Bench::new(&format!("[default]\n{}", keys("one")));
    let profile = bench.profile();
    let found = profile.fetch().unwrap().unwrap();
    assert_eq!((found.access_key_id.as_str(), found.expires), ("one", None));
    assert_eq!(found.source, "profile default");
    bench
        .folder
        .write("config", &format!("[default]\n{}", keys("two")));
    let found = profile.fetch().unwrap().unwrap();
    assert_eq!(found.access_key_id, "two");
    bench.folder.write("config", "[default\n");
    let fault = profile.fetch().unwrap_err();
    assert!(
        fault.to_string().starts_with("AWS_CONFIG_FILE=/"),
        "{fault}"
    );
    bench.folder.write("config", "");
    assert_eq!(profile.fetch(), Ok(None));
}

#[test]
fn roles_are_assumed_one_after_the_other() {
    let bench = Bench::new(&format!(
        "[default]\nrole_arn = {ROLE}\nsource_profile = two\nexternal_id = id\n\
         [profile two]\nrole_arn = {ROLE}-2\nsource_profile = base\n[profile base]\n{}",
        keys("base")
    ));
    bench.session("first");
    bench.session("second");
    let found = bench.profile().fetch().unwrap().unwrap();
    assert_eq!(found.access_key_id, "second");
    assert_eq!(
        found.source,
        format!("profile default, role {ROLE}-2, role {ROLE}")
    );
    assert!(found.expires.is_some());
    let forms = bench.forms();
    assert!(forms[0].contains("puller-2&") && !forms[0].contains("ExternalId"));
    assert!(forms[1].contains("puller&") && forms[1].contains("&ExternalId=id"));
    let signer = |at: usize| {
        bench.api.calls()[at]
            .headers
            .first("authorization")
            .unwrap()
            .to_owned()
    };
    assert!(signer(0).contains("Credential=base/"), "{}", signer(0));
    assert!(signer(1).contains("Credential=first/"), "{}", signer(1));
}

#[test]
fn a_refused_role_is_a_fault_with_its_kind() {
    let bench = Bench::new(&format!(
        "[default]\nrole_arn = {ROLE}\nsource_profile = default\n{}",
        keys("base")
    ));
    bench
        .api
        .reply(json(403, "<Error><Code>AccessDenied</Code></Error>"));
    let fault = bench.profile().fetch().unwrap_err();
    let told = "AssumeRole 403 AccessDenied in eu-west-1 via profile default, assuming arn:";
    assert!(fault.to_string().starts_with(told), "{fault}");
    assert_eq!(fault.kind, super::super::super::fault::FaultKind::Permanent);
}

#[test]
fn a_web_identity_of_a_profile_is_exchanged() {
    let bench = Bench::new("");
    let token = bench.folder.write("token", "tok.en");
    let config = format!(
        "[default]\nrole_arn = {ROLE}\nweb_identity_token_file = {}\n",
        token.display()
    );
    bench.folder.write("config", &config);
    bench.session("web");
    let found = bench.profile().fetch().unwrap().unwrap();
    assert_eq!(found.access_key_id, "web");
    let source = format!("profile default's web identity, role {ROLE}");
    assert_eq!(found.source, source);
    bench.folder.write("token", "");
    let fault = bench.profile().fetch().unwrap_err().text;
    let told = "profile default: web_identity_token_file=/";
    assert!(
        fault.starts_with(told) && fault.contains("it is empty"),
        "{fault}"
    );
}

#[test]
fn the_environment_is_a_source_when_the_profile_says_so() {
    let config = format!("[profile dev]\nrole_arn = {ROLE}\ncredential_source = Environment\n");
    let mut bench = Bench::new(&config);
    bench.settings.profile = Some("dev".into());
    let fault = bench.profile().fetch().unwrap_err().text;
    assert_eq!(
        fault,
        "profile dev: credential_source = Environment has no credentials; set AWS_ACCESS_KEY_ID \
         and AWS_SECRET_ACCESS_KEY"
    );
    bench.settings.access_key_id = Some("env".into());
    bench.settings.secret_access_key = Some(Secret::new("s".into()));
    bench.session("assumed");
    let profile = bench.profile();
    let environment = Arc::clone(&profile.named.environment);
    // So the keys are not used by themselves.
    let taken = UnlessTakenBy::new(&profile, Arc::clone(&environment));
    assert_eq!(taken.fetch(), Ok(None));
    let found = profile.fetch().unwrap().unwrap();
    assert_eq!(found.access_key_id, "assumed");
    assert_eq!(
        found.source,
        format!("profile dev, environment, role {ROLE}")
    );
    // They are, as in all SDKs, when nobody has named the profile or it has a source of its own.
    bench
        .folder
        .write("config", &format!("[profile dev]\n{}", keys("own")));
    assert_eq!(taken.fetch().unwrap().unwrap().access_key_id, "env");
    bench.settings.profile = None;
    bench
        .folder
        .write("config", &config.replace("profile dev", "default"));
    let taken = UnlessTakenBy::new(&bench.profile(), environment);
    assert_eq!(taken.fetch().unwrap().unwrap().access_key_id, "env");
}

#[test]
fn sources_that_are_not_there_are_named_with_a_remedy() {
    for (name, remedy) in [
        ("EcsContainer", "task of ECS"),
        ("Ec2InstanceMetadata", "AWS_EC2_METADATA_DISABLED"),
    ] {
        let bench = Bench::new(&format!(
            "[default]\nrole_arn = {ROLE}\ncredential_source = {name}\n"
        ));
        let fault = bench.profile().fetch().unwrap_err().text;
        assert!(fault.contains(name) && fault.contains(remedy), "{fault}");
    }
}

#[test]
fn a_process_is_run() {
    let json = r#"{"Version": 1, "AccessKeyId": "proc", "SecretAccessKey": "s"}"#;
    let bench = Bench::new("");
    let output = bench.folder.write("output", json);
    let command = format!(
        "[default]\ncredential_process = /bin/cat '{}'\n",
        output.display()
    );
    bench.folder.write("config", &command);
    let found = bench.profile().fetch().unwrap().unwrap();
    assert_eq!(found.access_key_id, "proc");
    assert_eq!(found.source, "profile default's process");
    bench
        .folder
        .write("config", "[default]\ncredential_process = 'x\n");
    let fault = bench.profile().fetch().unwrap_err().text;
    let told = "profile default's process: credential_process: a quotation mark is not closed";
    assert_eq!(fault, told);
}

fn complete_with(config: &str, settings: &AwsSettings) -> (AwsSettings, Option<String>) {
    let folder = Folder::new();
    let path: PathBuf = folder.write("config", config);
    complete(AwsSettings {
        config_file: Some(path),
        ..settings.clone()
    })
}

const WORDS: &str = "[default]\nregion = eu-west-3\nendpoint_url = http://any\nservices = s\n\
    use_fips_endpoint = TRUE\nuse_dualstack_endpoint = false\nsts_regional_endpoints = legacy\n\
    ignore_configured_endpoint_urls = true\n\
    [services s]\necr =\n  endpoint_url = http://ecr\nsts =\n  endpoint_url = http://sts\n";

#[test]
fn region_and_endpoints_of_the_profile_hold_where_the_settings_are_silent() {
    let (found, fault) = complete_with(WORDS, &AwsSettings::default());
    assert_eq!(fault, None);
    assert_eq!(found.region.as_deref(), Some("eu-west-3"));
    assert_eq!(
        (found.use_fips, found.use_dual_stack),
        (Some(true), Some(false))
    );
    assert_eq!(found.sts_endpoints, Some(StsEndpoints::Legacy));
    assert_eq!(found.ignore_endpoint_urls, Some(true));
    let endpoints = ProfileEndpoints {
        any: Some("http://any".into()),
        ecr: Some("http://ecr".into()),
        sts: Some("http://sts".into()),
    };
    assert_eq!(found.profile_endpoints, endpoints);
    let set = AwsSettings {
        region: Some("us-east-1".into()),
        use_fips: Some(false),
        use_dual_stack: Some(true),
        sts_endpoints: Some(StsEndpoints::Regional),
        ignore_endpoint_urls: Some(false),
        ..AwsSettings::default()
    };
    let (found, _) = complete_with(WORDS, &set);
    assert_eq!(found.region, set.region);
    assert_eq!(
        (found.use_fips, found.use_dual_stack),
        (Some(false), Some(true))
    );
    assert_eq!(found.sts_endpoints, set.sts_endpoints);
    assert_eq!(found.ignore_endpoint_urls, Some(false));
}

#[test]
fn words_that_make_no_sense_are_a_fault() {
    for (words, told) in [
        (
            "use_fips_endpoint = yes\n",
            "use_fips_endpoint: expected true or false",
        ),
        (
            "sts_regional_endpoints = x\n",
            "expected regional or legacy",
        ),
        (
            "services = gone\n",
            "services: expected a section [services gone]",
        ),
    ] {
        let (_, fault) = complete_with(&format!("[default]\n{words}"), &AwsSettings::default());
        let fault = fault.unwrap();
        assert!(fault.starts_with("profile default: "), "{fault}");
        assert!(
            fault.contains(told) && fault.ends_with("mend it and restart"),
            "{fault}"
        );
    }
}

#[test]
fn without_a_profile_the_settings_stay_as_they_are() {
    let set = AwsSettings {
        region: Some("us-east-1".into()),
        ..AwsSettings::default()
    };
    for config in ["", "[profile other]\nregion = x\n", "garbage"] {
        let (found, fault) = complete_with(config, &set);
        assert_eq!((found.region, fault), (set.region.clone(), None));
    }
}
