//! Levels and formats of lines. Owns: their names. Must not: write a line.

use crate::label::label;

label! {
    /// How much a line matters.
    #[derive(Default, PartialOrd, Ord)]
    pub enum Level {
        /// Details, for a person who hunts a fault.
        Debug = "DEBUG",
        /// Normal events.
        #[default]
        Info = "INFO",
        /// Something failed and the process copes.
        Warn = "WARN",
        /// Something failed that somebody must mend.
        Error = "ERROR",
    }
}

/// The shape of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// `time LEVEL message key=value …`
    #[default]
    Text,
}
