//! Profiles and where they lead, as tables.

use super::super::super::super::fake::Folder;
use super::super::files::SharedFiles;
use super::*;
use crate::config::AwsSettings;

const ARN: &str = "arn:aws:iam::123456789012:role/";

/// `ROLE x` in `config` is a role's ARN, `KEYS` a pair of keys.
fn planned(config: &str) -> Result<Option<Plan>, String> {
    let folder = Folder::new();
    let config = config
        .replace("ROLE ", &format!("role_arn = {ARN}"))
        .replace(
            "KEYS",
            "aws_access_key_id = AKID\naws_secret_access_key = hunter2",
        );
    let settings = AwsSettings {
        profile: Some("top".into()),
        config_file: Some(folder.write("config", &config)),
        ..AwsSettings::default()
    };
    let profiles = SharedFiles::new(&settings).load().unwrap().unwrap();
    plan(&profiles, "top")
}

fn keys() -> Base {
    Base::Keys {
        id: "AKID".into(),
        secret: Secret::new("hunter2".into()),
        session_token: None,
    }
}

fn roles(plan: &Plan) -> Vec<&str> {
    let names = plan.roles.iter().map(|role| &role.arn[ARN.len()..]);
    names.collect()
}

#[test]
fn keys_are_keys() {
    let plan = planned("[profile top]\nKEYS\naws_session_token = t\n");
    let plan = plan.unwrap().unwrap();
    let Base::Keys { session_token, .. } = plan.base else {
        panic!("expected keys");
    };
    assert_eq!(session_token, Some(Secret::new("t".into())));
    assert!(plan.roles.is_empty());
}

#[test]
fn a_role_is_assumed_with_its_sources_keys_and_all_it_asks_for() {
    let plan = planned(
        "[profile top]\nROLE a\nsource_profile = base\nexternal_id = id one\n\
         role_session_name = node-1\nduration_seconds = 900\nKEYS\n[profile base]\nKEYS\n",
    );
    let plan = plan.unwrap().unwrap();
    assert_eq!(plan.base, keys());
    let role = Role {
        arn: format!("{ARN}a"),
        session_name: "node-1".into(),
        external_id: Some("id one".into()),
        duration_s: Some(900),
    };
    assert_eq!(plan.roles, [role]);
}

#[test]
fn chains_are_followed_to_their_end_and_assumed_from_there() {
    let plan = planned(
        "[profile top]\nROLE a\nsource_profile = two\n[profile two]\nROLE b\n\
         source_profile = three\n[profile three]\nROLE c\ncredential_source = Environment\n",
    );
    let plan = plan.unwrap().unwrap();
    assert_eq!(plan.base, Base::Named(NamedSource::Environment));
    assert_eq!(roles(&plan), ["c", "b", "a"]);
}

#[test]
fn a_sources_keys_come_before_its_role() {
    let plan = planned(
        "[profile top]\nROLE a\nsource_profile = two\n\
         [profile two]\nROLE b\nsource_profile = three\nKEYS\n",
    );
    let plan = plan.unwrap().unwrap();
    assert_eq!(plan.base, keys());
    assert_eq!(roles(&plan), ["a"]);
}

#[test]
fn a_profile_with_keys_may_be_its_own_source() {
    let plan = planned("[profile top]\nROLE a\nsource_profile = top\nKEYS\n");
    let plan = plan.unwrap().unwrap();
    assert_eq!((plan.base, plan.roles.len()), (keys(), 1));
}

#[test]
fn other_circles_are_faults() {
    for config in [
        "[profile top]\nROLE a\nsource_profile = top\n",
        "[profile top]\nROLE a\nsource_profile = two\n\
         [profile two]\nROLE b\nsource_profile = top\n",
    ] {
        let fault = planned(config).unwrap_err();
        let told = "profile top: source_profile leads back to it";
        assert!(fault.starts_with(told), "{fault}");
    }
}

#[test]
fn roles_in_a_row_are_limited() {
    let chain = |length: usize| {
        let mut config = String::from("[profile top]\nROLE r\nsource_profile = p1\n");
        for n in 1..length {
            let next = n + 1;
            config += &format!("[profile p{n}]\nROLE r{n}\nsource_profile = p{next}\n");
        }
        config + &format!("[profile p{length}]\nKEYS\n")
    };
    let plan = planned(&chain(ROLES_MAX)).unwrap().unwrap();
    assert_eq!(plan.roles.len(), ROLES_MAX);
    let fault = planned(&chain(ROLES_MAX + 1)).unwrap_err();
    assert!(fault.ends_with("more than 8 roles in a row"), "{fault}");
}

#[test]
fn web_identity_and_process_are_bases() {
    let plan =
        planned("[profile top]\nROLE a\nweb_identity_token_file = /t\nrole_session_name = s1\n");
    let plan = plan.unwrap().unwrap();
    let Base::WebIdentity { path, role } = plan.base else {
        panic!("expected a web identity");
    };
    assert_eq!(
        (path, role.session_name.as_str()),
        (PathBuf::from("/t"), "s1")
    );
    let plan = planned("[profile top]\ncredential_process = /bin/x --y\n");
    let process = Base::Process(Secret::new("/bin/x --y".into()));
    assert_eq!(plan.unwrap().unwrap().base, process);
    // Keys come first, as in botocore and the SDK for Go.
    let plan = planned("[profile top]\ncredential_process = /bin/x\nKEYS\n");
    assert_eq!(plan.unwrap().unwrap().base, keys());
}

#[test]
fn a_profile_without_a_word_of_credentials_is_no_source() {
    assert_eq!(planned("[profile top]\nregion = eu-west-1\n"), Ok(None));
    assert_eq!(planned("[profile top]\naws_access_key_id =\n"), Ok(None));
}

#[test]
fn the_names_of_sources_are_read_in_any_case() {
    for (name, source) in [
        ("Environment", NamedSource::Environment),
        ("Ec2InstanceMetadata", NamedSource::InstanceMetadata),
        ("ecscontainer", NamedSource::Container),
    ] {
        let plan = planned(&format!(
            "[profile top]\nROLE a\ncredential_source = {name}\n"
        ));
        assert_eq!(plan.unwrap().unwrap().base, Base::Named(source));
    }
}

#[test]
fn what_is_wrong_is_named_by_profile_and_key() {
    for (config, told) in [
        ("ROLE a\n", "role_arn needs exactly one of source_profile"),
        (
            "ROLE a\nsource_profile = x\ncredential_source = Environment\n",
            "exactly one of source_profile, credential_source",
        ),
        (
            "role_arn = a\nsource_profile = x\n",
            "role_arn = a: expected arn:",
        ),
        (
            "ROLE a\ncredential_source = Moon\n",
            "expected Environment, Ec2Instance",
        ),
        (
            "ROLE a\nsource_profile = top\nmfa_serial = m\n",
            "mfa_serial asks for a code",
        ),
        (
            "ROLE a\nsource_profile = x\nduration_seconds = 899\n",
            "from 900 to 43200",
        ),
        (
            "ROLE a\nsource_profile = x\nduration_seconds = 1h\n",
            "from 900 to 43200",
        ),
        (
            "ROLE a\nsource_profile = x\nrole_session_name = a/b\n",
            "role_session_name: ",
        ),
        (
            "web_identity_token_file = /t\n",
            "web_identity_token_file needs role_arn",
        ),
        ("aws_access_key_id = a\n", "aws_secret_access_key is not"),
        (
            "aws_secret_access_key = hunter2\n",
            "aws_access_key_id is not",
        ),
        (
            "aws_access_key_id = a\naws_secret_access_key = hunter2 é\n",
            "other than visible ASCII",
        ),
        (
            "sso_session = s\n",
            "signs in with sso_session, which takes a person",
        ),
        ("sso_start_url = s\nKEYS\n", "use a role (role_arn"),
        ("login_session = s\n", "credential_process such as"),
    ] {
        let fault = planned(&format!("[profile top]\n{config}")).unwrap_err();
        assert!(fault.starts_with("profile top: "), "{fault}");
        assert!(fault.contains(told), "{fault}");
        assert!(!fault.contains("hunter2"), "{fault}");
    }
    let missing = planned("[profile top]\nROLE a\nsource_profile = gone\n").unwrap_err();
    assert!(
        missing.starts_with("source_profile = gone: there is no such"),
        "{missing}"
    );
    let empty = "[profile top]\nROLE a\nsource_profile = b\n[profile b]\nregion = x\n";
    let fault = planned(empty).unwrap_err();
    assert!(
        fault.starts_with("profile b: it is a source_profile"),
        "{fault}"
    );
}
