//! The last failure of each registry, for people. Owns: those texts. Must not: decide anything.
//!
//! Lock: the map, held to add a text or to copy one.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::SystemTime;

use crate::locked::Locked;

/// Registries remembered; a proxy knows a handful.
const REGISTRIES_MAX: usize = 256;

/// Why something failed, and when.
pub(super) type LastError = (SystemTime, String);

/// The last failure of each registry.
#[derive(Debug, Default)]
pub(super) struct LastErrors(Mutex<HashMap<String, LastError>>);

impl LastErrors {
    /// `to` failed now.
    pub(super) fn note(&self, to: &str, why: String) {
        let mut errors = self.0.locked();
        if errors.len() >= REGISTRIES_MAX && !errors.contains_key(to) {
            errors.clear();
        }
        errors.insert(to.to_owned(), (SystemTime::now(), why));
    }

    /// The last failure of `to`.
    pub(super) fn get(&self, to: &str) -> Option<LastError> {
        let errors = self.0.locked();
        errors.get(to).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_kept_for_a_bounded_number_of_registries() {
        let errors = LastErrors::default();
        for number in 0..=REGISTRIES_MAX {
            errors.note(&format!("https://r{number}"), "other".into());
        }
        errors.note("https://a", "before".into());
        errors.note("https://a", "again".into());
        assert_eq!(errors.get("https://a").unwrap().1, "again");
        assert_eq!(errors.get("https://none"), None);
        assert!(errors.0.lock().unwrap().len() <= REGISTRIES_MAX);
    }
}
