//! The outcome of a step. Owns: its word in the table. Must not: know a step.

/// The step's word in the table, and what it found; or why it failed, and what to do.
pub(super) type StepResult = Result<(&'static str, String), String>;

pub(super) fn ok(detail: impl Into<String>) -> StepResult {
    Ok(("ok", detail.into()))
}

/// An outcome that is worth a look, but no failure.
pub(super) fn noted(detail: impl Into<String>) -> StepResult {
    Ok(("note", detail.into()))
}

pub(super) fn skipped(why: impl Into<String>) -> StepResult {
    Ok(("skip", why.into()))
}
