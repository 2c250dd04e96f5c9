//! Messages to a service manager (sd_notify(3), `Type=notify`). Owns: when each is sent. Must not:
//! decide what the process does, or end it.
//!
//! The sign of life is a real one: a worker is asked for `/readyz` over a lane. The text of the
//! answer is the status. A process whose workers hang gives no sign, and the watchdog restarts it.

use std::io;
use std::time::Duration;

use sd_notify::NotifyState;

use super::threads;
use crate::door::Workers;
use crate::log;
use crate::message::{Body, Reply};

/// Longest time between two signs of life, and so the age of the status.
const INTERVAL_MAX: Duration = Duration::from_secs(5);
/// Stack of the thread: it formats a line.
const NOTIFY_STACK_BYTES: usize = 128 * 1024;

/// Starts the thread that says that the process is ready, and then keeps status and watchdog. Call
/// it when clients can come.
///
/// # Errors
/// When the thread is refused.
pub(super) fn start(workers: Workers) -> Result<(), String> {
    let interval = interval(sd_notify::watchdog_enabled());
    threads::start("notify", NOTIFY_STACK_BYTES, move || {
        let (mut is_ready, mut last) = (false, String::new());
        loop {
            if let Some(status) = workers.get("/readyz").map(first_line) {
                let mut states = vec![NotifyState::Watchdog];
                if !is_ready {
                    states.push(NotifyState::Ready);
                }
                if status != last {
                    states.push(NotifyState::Status(&status));
                }
                tell(&states);
                (is_ready, last) = (true, status);
            } else {
                log::warn(
                    "no worker answers; the service manager is told nothing",
                    &[],
                );
            }
            std::thread::sleep(interval);
        }
    })
}

/// Says that files are about to be read again; [`ready`] ends that.
pub(super) fn reloading() {
    let now = NotifyState::monotonic_usec_now();
    if let Some(now) = report(now) {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// Says that the process serves, with the files as they were last read.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Says that the process ends as soon as its transfers have ended.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The time between two signs of life: half of the watchdog's, as sd_watchdog_enabled(3) asks.
fn interval(watchdog: Option<Duration>) -> Duration {
    watchdog.map_or(INTERVAL_MAX, |limit| INTERVAL_MAX.min(limit / 2))
}

/// The first line of a text; its end would begin another message.
fn first_line(reply: Reply) -> String {
    let Body::Bytes(text) = reply.body else {
        return String::new();
    };
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or_default().to_owned()
}

/// Sends a message. Without a service manager it does nothing; one that does not listen is no
/// fault.
fn tell(states: &[NotifyState<'_>]) {
    report(sd_notify::notify(states));
}

fn report<T>(result: io::Result<T>) -> Option<T> {
    let told = result.inspect_err(|error| {
        log::debug("the service manager was not told", &[("error", error)]);
    });
    told.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_of_life_come_twice_in_the_watchdogs_time() {
        let seconds = Duration::from_secs;
        assert_eq!(interval(None), seconds(5));
        assert_eq!(interval(Some(seconds(30))), seconds(5));
        assert_eq!(interval(Some(seconds(1))), Duration::from_millis(500));
    }

    #[test]
    fn a_status_is_one_line() {
        let status = |text: &str| first_line(Reply::new(503, "text/plain", text));
        assert_eq!(status("not ready: a\nREADY=1\n"), "not ready: a");
        assert_eq!(status(""), "");
    }
}
