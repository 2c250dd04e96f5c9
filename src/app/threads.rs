//! The process's own threads. Owns: how one is started, and what its loss means. Must not: know
//! what a thread does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::Builder;

/// Called with the name of a thread that is lost; the process then ends.
pub(super) type OnLost = Arc<dyn Fn(&str) + Send + Sync>;

/// Starts a thread.
///
/// # Errors
/// When the system refuses it.
pub(super) fn start(
    name: &'static str,
    stack_bytes: usize,
    work: impl FnOnce() + Send + 'static,
) -> Result<(), String> {
    let thread = Builder::new().name(name.into()).stack_size(stack_bytes);
    let started = thread.spawn(work);
    started.map_err(|error| format!("thread {name}: {error}"))?;
    Ok(())
}

/// Starts a thread that the process cannot do without. It ends only when it is told to; a panic is
/// reported to `on_lost`.
///
/// # Errors
/// When the system refuses it.
pub(super) fn start_vital(
    name: &'static str,
    stack_bytes: usize,
    on_lost: &OnLost,
    work: impl FnOnce() + Send + 'static,
) -> Result<(), String> {
    let on_lost = Arc::clone(on_lost);
    start(name, stack_bytes, move || {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            on_lost(name);
        }
    })
}
