//! The entry point of the fuzzer for the shared AWS files, compiled for it and for tests. Owns: the
//! rules that hold for any bytes, and their outcome in words. Must not: be part of the program.

use std::fmt::Write as _;

use super::super::process;
use super::files::Profiles;
use super::plan::{Base, Plan};
use super::{ini, plan};

/// Most profiles of one input whose way to keys is followed.
const FOLLOWED_MAX: usize = 64;
/// A word in all values; no fault may show it.
const MARK: &str = "hunter2";

/// A shared credentials or config file. A fault names the number of a line and no value; every
/// profile leads to keys or to a fault. Returns the sections, and the end of each profile's way.
///
/// # Panics
/// When that does not hold.
pub fn profile(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return "no text".to_owned();
    };
    let marked = ini::parse(&text.replace('=', &format!("={MARK} ")));
    let marked = marked.unwrap_or_default();
    let sections = marked.sections.iter().map(|(_, section)| &section.fault);
    for fault in sections.chain([&marked.fault]).flatten() {
        assert!(fault.starts_with("line "), "{fault}");
        assert!(!fault.contains(MARK), "{fault}");
    }
    let found = match ini::parse(text) {
        Ok(found) => found,
        Err(fault) => return line(Some(&fault)).to_owned(),
    };
    let sections = found.sections;
    let mut outcome = line(found.fault.as_ref()).to_owned();
    let mut names = Vec::new();
    for (header, section) in &sections {
        assert!(
            !header.is_empty() && !header.contains(['\n', ']']),
            "{header:?}"
        );
        let _ = write!(outcome, "[{header}]{}", line(section.fault.as_ref()));
        let mut properties: Vec<_> = section.properties.iter().collect();
        properties.sort_by_key(|(key, _)| *key);
        for (key, value) in properties {
            assert!(!key.is_empty() && !key.contains('\n'), "{key:?}");
            let value = value.expose();
            let _ = write!(outcome, " {key}={value:?} {}", words(value));
        }
        names.push(header.split_whitespace().next_back().unwrap_or_default());
    }
    let profiles = Profiles::of(sections.clone(), sections.clone());
    for name in names.iter().take(FOLLOWED_MAX) {
        let plan = plan(&profiles, name);
        let plan = plan.map(|plan| plan.map_or_else(|| "nothing".to_owned(), |plan| steps(&plan)));
        let _ = write!(outcome, " {name}: {}", plan.as_deref().unwrap_or("a fault"));
    }
    outcome
}

/// The line of a fault.
fn line(fault: Option<&String>) -> &str {
    let fault = fault.map(String::as_str).unwrap_or_default();
    fault.split(':').next().unwrap_or_default()
}

/// The words of a value, were it a command.
fn words(command: &str) -> String {
    let Ok(words) = process::split(command) else {
        return "no command".to_owned();
    };
    let length: usize = words.iter().map(String::len).sum();
    assert!(length <= command.len(), "{words:?}");
    format!("{words:?}")
}

/// A way to keys.
fn steps(plan: &Plan) -> String {
    let mut steps = match &plan.base {
        Base::Keys {
            id,
            secret,
            session_token,
        } => {
            let token = session_token.as_ref().map(|token| token.expose().as_str());
            format!("keys {id} {} {}", secret.expose(), token.unwrap_or("-"))
        }
        Base::Named(named) => format!("{named:?}"),
        Base::Process(command) => format!("process {}", command.expose()),
        Base::WebIdentity { path, role } => format!("{} of {}", path.display(), role.arn),
    };
    for role in &plan.roles {
        let (id, seconds) = (role.external_id.as_deref(), role.duration_s);
        let _ = write!(steps, " {} {}", role.arn, role.session_name);
        let _ = write!(steps, " {} {}", id.unwrap_or("-"), seconds.unwrap_or(0));
    }
    steps
}
