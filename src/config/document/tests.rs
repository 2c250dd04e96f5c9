//! The documents that come out of the table: `docs/configuration.md`, and the table of the README.

use std::path::Path;

use super::super::table::{Preset, Unit};
use super::*;

/// `docs/configuration.md`.
fn markdown_page() -> String {
    format!("{PAGE_HEAD}\n{}\n", markdown_tables())
}

const PAGE_HEAD: &str = "\
# Configuration

<!-- Written from the table in src/config/rows.rs by `UPDATE_DOCS=1 cargo test`. -->

Each setting is an environment variable and, in the same words, a flag: `LISTEN_PORT` is
`--listen-port 8080` or `--listen-port=8080`.

* A flag beats a variable, which beats the default. A blank variable counts as unset.
* Two names of one setting with different values are an error; the same value twice is fine.
* A switch takes `true yes on 1` or `false no off 0`; the flag alone means true.
* A time is a whole number with one of the units `ms s m h`.
* A size is a whole number of bytes, or of one of the units `k m g t`, `ki mi gi ti`, `kb mb gb tb`
  and `kib mib gib tib`, in any case. All of them are powers of 1024.
* An unknown flag is an error. An unknown variable is ignored, unless its name is close to a
  setting's: then it is a warning at the start, and `check` fails. If that setting keeps clients out
  (`AUTH_FILE`, `READ_ONLY`, `ALLOW_REPOSITORIES`, `ENABLE_SSL`, `SSL_*`, `LISTEN_HOST`,
  `METRICS_LISTEN`) and is not set, the start ends with 64.
* All faults are reported at once, one line each, and the exit code is 64.
* `aws-ecr-proxy settings` shows every value that holds and where it comes from, secrets hidden.
";

/// The settings that most set-ups need, in the order of the README.
const README_SETTINGS: [&str; 12] = [
    "ECR",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "LISTEN_PORT",
    "CACHE_DIR",
    "CACHE_MAX_SIZE",
    "CACHE_TAG_TTL",
    "AUTH_FILE",
    "READ_ONLY",
    "ALLOW_REPOSITORIES",
    "ENABLE_SSL",
    "HTTPS_PROXY",
];

/// The settings of [`README_SETTINGS`] as one Markdown table, which a test holds the README to.
fn readme_table() -> String {
    let mut text = "| setting | default | meaning |\n| --- | --- | --- |\n".to_owned();
    for name in README_SETTINGS {
        let setting = table_rows().find(|setting| setting.name == name);
        let setting = setting.expect("a setting of this name");
        let meaning = setting.meaning.replace('|', "\\|");
        let _ = writeln!(text, "| `{name}` | {} | {meaning} |", write_preset(setting));
    }
    text
}

/// The built settings as Markdown, a table for each group.
fn markdown_tables() -> String {
    let mut text = String::new();
    for group in Group::ALL {
        let gap = if text.is_empty() { "" } else { "\n" };
        let _ = write!(
            text,
            "{gap}## {}\n\n| setting | other names | takes | default | meaning |\n\
             | --- | --- | --- | --- | --- |\n",
            group.title()
        );
        for setting in rows_of(group) {
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} | {} |",
                setting.name,
                code(setting.other_names),
                describe_value(setting),
                write_preset(setting),
                setting.meaning
            );
        }
    }
    text
}

fn code(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

fn describe_value(setting: &Setting) -> String {
    let unit = match setting.kind.unit() {
        Unit::Address => "address",
        Unit::Hours => "hours",
        Unit::List => "list with commas",
        Unit::Number => "number",
        Unit::Path => "path",
        Unit::Size => "size",
        Unit::Switch => "switch",
        Unit::Text => "text",
        Unit::Time => "time",
        Unit::Url => "URL",
    };
    match limits(setting) {
        None => unit.to_owned(),
        Some((ends, reason)) => format!("{unit}, {ends} ({reason})"),
    }
}

fn write_preset(setting: &Setting) -> String {
    match setting.preset {
        Preset::Unset(text) => text.to_owned(),
        Preset::Value(text) => format!("`{text}`"),
    }
}

#[test]
fn help_names_every_setting_and_fits_a_terminal() {
    let help = help();
    for setting in table_rows() {
        for name in setting.names().map(flag_of) {
            assert!(help.contains(&name), "{name}");
        }
    }
    for line in help.lines().skip(3) {
        assert!(line.chars().count() <= HELP_COLUMNS, "{line}");
    }
}

#[test]
fn long_words_are_not_torn() {
    let mut text = String::new();
    wrap(&mut text, &format!("a {} b", "x".repeat(90)), 2);
    assert_eq!(text, format!("  a\n  {}\n  b\n", "x".repeat(90)));
}

/// Holds `path` to `text`; with `UPDATE_DOCS=1` it writes the file.
fn hold(path: &str, text: impl Fn(&str) -> String) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    let wanted = text(&kept);
    let environment = super::super::process_environment();
    if environment.iter().any(|(name, _)| name == "UPDATE_DOCS") {
        std::fs::write(&file, &wanted).unwrap();
        return;
    }
    let mut lines = kept.lines().zip(wanted.lines());
    let differs = lines.find(|(kept, wanted)| kept != wanted);
    assert!(
        kept == wanted,
        "{path} is not what src/config/rows.rs says; first difference: {differs:?}; \
         `UPDATE_DOCS=1 cargo test` writes it anew"
    );
}

#[test]
fn the_page_is_the_table() {
    hold("docs/configuration.md", |_| markdown_page());
}

#[test]
fn the_readme_has_the_table() {
    hold("README.md", |readme| {
        let (before, rest) = readme.split_once("<!-- settings -->\n").unwrap();
        let (_, after) = rest.split_once("<!-- /settings -->").unwrap();
        let table = readme_table();
        format!("{before}<!-- settings -->\n{table}<!-- /settings -->{after}")
    });
}
