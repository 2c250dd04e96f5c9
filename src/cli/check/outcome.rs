//! What a step found. Owns: the words for it. Must not: know a step.

/// What a step found, or why it failed and what to do.
pub(super) type StepResult = Result<StepOutcome, String>;

/// The outcome of a step that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StepOutcome {
    /// Worth a look, and no failure.
    Noted(String),
    Ok(String),
    Skipped(String),
}

pub(super) fn noted(detail: impl Into<String>) -> StepResult {
    Ok(StepOutcome::Noted(detail.into()))
}

pub(super) fn ok(detail: impl Into<String>) -> StepResult {
    Ok(StepOutcome::Ok(detail.into()))
}

pub(super) fn skipped(why: impl Into<String>) -> StepResult {
    Ok(StepOutcome::Skipped(why.into()))
}

/// A result's word in the table, and the detail.
pub(super) fn parts(result: &StepResult) -> (&'static str, &str) {
    match result {
        Ok(StepOutcome::Noted(detail)) => ("note", detail),
        Ok(StepOutcome::Ok(detail)) => ("ok", detail),
        Ok(StepOutcome::Skipped(why)) => ("skip", why),
        Err(why) => ("FAIL", why),
    }
}
