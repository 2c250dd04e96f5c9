//! Work within a time limit. Owns: leaving behind work that hangs. Must not: be used by a process
//! that goes on for long: such work ends only with the process.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::Builder;
use std::time::Duration;

/// Stack of the thread: TLS and JSON.
const STACK_BYTES: usize = 1 << 20;

/// Does `work` on a thread of its own, and waits for its outcome for `limit` at the longest.
///
/// # Errors
/// Why there is no outcome.
pub(super) fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (done, outcome) = sync_channel(1);
    Builder::new()
        .name("bounded".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || drop(done.send(work())))
        .map_err(|error| format!("no thread to try it with: {error}"))?;
    outcome.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => format!("no outcome within {} s", limit.as_secs().max(1)),
        RecvTimeoutError::Disconnected => "it ended without an outcome; see the log".to_owned(),
    })
}
