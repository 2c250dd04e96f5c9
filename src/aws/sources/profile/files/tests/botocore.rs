//! The shared files as botocore reads them, which is the AWS command line's reader. The files and
//! its answers are in `tests/data/aws_files.json`; `tests/e2e/aws_files.py` compares those answers
//! with botocore itself.

use serde_json::{Map, Value, json};

use super::super::*;
use crate::aws::fake::Folder;

const CASES: &str = include_str!("../../../../../../tests/data/aws_files.json");
const REFUSED: &str = "refused";

/// The differences that are kept: the case, our answer, and the reason.
const KEPT: [(&str, &str, &str); 20] = {
    const ONE_BAD: &str = "botocore refuses every profile for one bad line; here a bad line spoils \
                           the profile that it stands in, when that is used";
    const TWICE: &str =
        "botocore refuses the whole file; the SDKs join them, the later value holds";
    const COMMENT: &str = "the SDKs take this for a comment; no region or key has a blank and #";
    const PREFIXED: &str = "the SDKs and their guide prefer [profile default] wherever it stands";
    [
        (
            "a key without = in another profile",
            r#"{"region":"a"}"#,
            ONE_BAD,
        ),
        ("an open bracket", "null", ONE_BAD),
        ("an empty header", r#"{"region":"a"}"#, ONE_BAD),
        (
            "an open bracket after a good profile",
            r#"{"region":"a"}"#,
            ONE_BAD,
        ),
        ("a bad profile in credentials", KEYS, ONE_BAD),
        (
            "nested text that is no key",
            r#"{"region":"a","s3":"\nmax"}"#,
            ONE_BAD,
        ),
        (
            "nested text that is no key, in another profile",
            r#"{"region":"a"}"#,
            ONE_BAD,
        ),
        (
            "a key before any section",
            r#"{"region":"b"}"#,
            "the line belongs to no profile, so none is refused for it",
        ),
        (
            "a section twice",
            r#"{"output":"json","region":"a"}"#,
            TWICE,
        ),
        ("another section twice", r#"{"output":"json"}"#, TWICE),
        ("a key twice", r#"{"region":"b"}"#, TWICE),
        ("a comment after a value", r#"{"region":"a"}"#, COMMENT),
        ("a ; comment after a value", r#"{"region":"a"}"#, COMMENT),
        (
            "brackets in the comment after a header",
            r#"{"region":"a"}"#,
            "botocore takes the comment into the name; nobody means that",
        ),
        (
            "a bracket in a name",
            "null",
            "the name ends at the first bracket, as in the SDKs",
        ),
        (
            "two headers on a line",
            r#"{"region":"a"}"#,
            "the name ends at the first bracket, as in the SDKs",
        ),
        (
            "blanks in a header",
            r#"{"region":"a"}"#,
            "the SDKs leave the blanks out; botocore finds no profile",
        ),
        (
            "default without and with its prefix",
            r#"{"region":"b"}"#,
            PREFIXED,
        ),
        (
            "a byte order mark",
            r#"{"region":"a"}"#,
            "editors on Windows write one; botocore refuses the file",
        ),
        (
            "[DEFAULT] in capitals",
            r#"{"output":"json"}"#,
            "Python gives the keys of [DEFAULT] to every section; no guide of AWS knows that",
        ),
    ]
};
const KEYS: &str = r#"{"aws_access_key_id":"AKID","aws_secret_access_key":"secret"}"#;

/// Our answer in botocore's form.
fn answer(case: &Value) -> Value {
    let folder = Folder::new();
    let text = |name: &str| case[name].as_str().unwrap_or_default();
    let settings = AwsSettings {
        config_file: Some(folder.write("config", text("config"))),
        credentials_file: Some(folder.write("credentials", text("credentials"))),
        ..AwsSettings::default()
    };
    let files = SharedFiles {
        // Any name will do, as it is not looked for.
        named: Some(text("profile").to_owned()),
        ..SharedFiles::new(&settings)
    };
    let Ok(Some(profiles)) = files.load() else {
        return Value::Null;
    };
    match profiles.get(text("profile")) {
        Err(_) => REFUSED.into(),
        Ok(None) => Value::Null,
        Ok(Some(properties)) => flat(properties),
    }
}

fn flat(properties: &Properties) -> Value {
    let mut found = Map::new();
    for (key, value) in properties {
        let value = value.expose();
        let below = value.strip_prefix('\n').unwrap_or_default();
        let pairs: Option<Vec<_>> = below.lines().map(|line| line.split_once('=')).collect();
        match pairs {
            Some(pairs) if !pairs.is_empty() => found.extend(
                pairs
                    .into_iter()
                    .map(|(name, value)| (format!("{key}.{}", name.trim()), json!(value.trim()))),
            ),
            _ => drop(found.insert(key.clone(), json!(value))),
        }
    }
    found.into()
}

#[test]
fn the_files_are_read_as_the_aws_command_line_reads_them() {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() > 60);
    let mut kept = HashSet::new();
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let difference = KEPT.iter().find(|(kept, _, _)| *kept == name);
        let expected = match difference {
            Some((_, ours, _)) => serde_json::from_str(ours).unwrap(),
            None => case["botocore"].clone(),
        };
        assert_eq!(answer(case), expected, "{name}");
        if difference.is_some() {
            assert_ne!(expected, case["botocore"], "{name}: no difference any more");
            kept.insert(name);
        }
    }
    assert_eq!(kept.len(), KEPT.len(), "a difference without its case");
}
