//! Levels and formats of lines. Owns: their names. Must not: write a line.

/// How much a line matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Details, for a person who hunts a fault.
    Debug,
    /// Normal events.
    #[default]
    Info,
    /// Something failed and the process copes.
    Warn,
    /// Something failed that somebody must mend.
    Error,
}

impl Level {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
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
