//! Values that a user gave. Owns: where each comes from, and how it is shown. Must not: judge it.

use std::fmt;

use super::fault::mask;
use super::table::{Setting, flag_of};
use crate::secret::Secret;

/// The origin of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Neither a flag nor a variable.
    Default,
    /// The variable of this name.
    Environment(&'static str),
    /// The flag that belongs to the variable of this name.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {}", flag_of(name)),
        }
    }
}

/// A value and the name it was given by.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) setting: &'static Setting,
    /// The variable's name, also where its flag was used.
    pub(super) name: &'static str,
    pub(super) by_flag: bool,
    /// None: not UTF-8. It stays a `Secret` until the setting is known not to be one.
    pub(super) value: Option<Secret<String>>,
}

impl Given {
    pub(super) fn label(&self) -> String {
        if self.by_flag {
            flag_of(self.name)
        } else {
            self.name.to_owned()
        }
    }

    /// The value. A line feed at its end, which a secret mounted from a file often has, is dropped.
    pub(super) fn text(&self) -> &str {
        let value = self.value.as_ref().map(Secret::expose);
        value.map_or("", |value| value.trim())
    }

    pub(super) fn pair(&self) -> String {
        format!("{}={}", self.label(), self.shown())
    }

    pub(super) fn shown(&self) -> String {
        match &self.value {
            Some(value) if self.setting.secret => value.to_string(),
            Some(_) => mask(self.text()),
            None => "(not UTF-8)".to_owned(),
        }
    }

    pub(super) const fn origin(&self) -> Origin {
        if self.by_flag {
            Origin::Flag(self.name)
        } else {
            Origin::Environment(self.name)
        }
    }
}
