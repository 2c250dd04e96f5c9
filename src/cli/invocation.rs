//! A command as it was called. Owns: [`Invocation`], and the reasons why a command fails. Must not:
//! know any command.

use crate::config::{Arguments, Effective, Fault, Settings};

/// A command's words and flags, and the settings.
#[derive(Clone, Copy)]
pub(super) struct Invocation<'a> {
    /// The settings, as far as they could be read.
    pub(super) settings: &'a Settings,
    pub(super) effective: &'a [Effective],
    /// All faults of the settings.
    pub(super) faults: &'a [Fault],
    /// The words behind its name.
    pub(super) words: &'a [String],
    pub(super) arguments: &'a Arguments,
}

impl Invocation<'_> {
    /// The word behind the command, for those that take one.
    pub(super) fn word(&self) -> Option<&str> {
        self.words.first().map(String::as_str)
    }

    /// True when a flag without a value is given, such as `--json`.
    pub(super) fn has(&self, flag: &str) -> bool {
        self.arguments.flags.contains(&flag)
    }

    /// The value of a flag, such as `--host`.
    pub(super) fn value(&self, flag: &str) -> Option<&str> {
        self.arguments.value(flag)
    }
}

/// Why a command has failed.
#[derive(Debug)]
pub(super) enum CommandFault {
    /// All that is wrong with its words and flags.
    Usage(Vec<String>),
    /// Anything else.
    Failed(String),
}

impl From<String> for CommandFault {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}
