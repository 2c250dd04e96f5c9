//! The outcome of one step of `check`. Owns: [`StepOutcome`]. Must not: run a step.

/// The outcome of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StepOutcome {
    Ok(String),
    Failed(String),
    Skipped(String),
}
