//! What a step found. Owns: the words for it. Must not: know a step.

/// The outcome of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StepOutcome {
    /// Worth a look, and no failure.
    Noted(String),
    Ok(String),
    Failed(String),
    Skipped(String),
}

impl StepOutcome {
    /// Its word in the table, and the detail.
    pub(super) fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::Noted(detail) => ("note", detail),
            Self::Ok(detail) => ("ok", detail),
            Self::Failed(detail) => ("FAIL", detail),
            Self::Skipped(detail) => ("skip", detail),
        }
    }
}
