//! The fuzzer's entry to the shared AWS files; compiled for it alone. Owns: what must hold for any
//! text. Must not: be part of the program.

use super::files::Profiles;
use super::{ini, plan, process};

/// Most profiles of one input that are followed to their keys.
const FOLLOWED_MAX: usize = 64;
/// Each value contains it, and no fault may show it.
const MARK: &str = "hunter2";

/// Reads `text` as a file. A fault names the number of a line and no value; every profile of a good
/// file leads to keys or to a fault.
///
/// # Panics
/// When that does not hold.
pub(in crate::aws) fn profile(text: &str) {
    let marked = text.replace('=', &format!("={MARK} "));
    if let Err(fault) = ini::parse(&marked) {
        assert!(fault.starts_with("line "), "{fault}");
        assert!(!fault.contains(MARK), "{fault}");
    }
    let Ok(sections) = ini::parse(text) else {
        return;
    };
    let mut names = Vec::new();
    for (header, properties) in &sections {
        assert!(
            !header.is_empty() && !header.contains(['\n', ']']),
            "{header:?}"
        );
        for (key, value) in properties {
            assert!(!key.is_empty() && !key.contains('\n'), "{key:?}");
            let command = value.expose();
            if let Ok(words) = process::split(command) {
                let length: usize = words.iter().map(String::len).sum();
                assert!(length <= command.len(), "{words:?}");
            }
        }
        let name = header.split_whitespace().next_back().unwrap_or_default();
        names.push(name.to_owned());
    }
    let profiles = Profiles::of(sections.clone(), sections);
    for name in names.iter().take(FOLLOWED_MAX) {
        let _ = plan(&profiles, name);
    }
}
