//! What all targets share. Owns: how the outcome of an input is shown. Must not: know a target.

use std::sync::LazyLock;

/// Set by `fuzz/run` for inputs whose outcome is compared with the expected one.
const SHOW: &str = "FUZZ_SHOW_OUTCOMES";

static IS_SHOWN: LazyLock<bool> = LazyLock::new(|| std::env::var_os(SHOW).is_some());

/// Prints the outcome of an input in one line of ASCII, if that is asked for.
pub fn show(outcome: &str) {
    if *IS_SHOWN {
        println!("outcome: {}", outcome.escape_default());
    }
}
