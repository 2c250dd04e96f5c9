//! The pace of downloads that no client waits for (`PREFETCH_RATE`). Owns: how long one waits for
//! its bytes. Must not: slow a client down.
//!
//! Lock: the time of the next byte, held for arithmetic.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::locked::Locked as _;

/// Longest wait until a client that has joined is seen.
const LOOK: Duration = Duration::from_millis(50);

/// A rate that all downloads in the background share.
#[derive(Debug, Default)]
pub(super) struct Pace {
    bytes_per_second: Option<u64>,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// None: no limit.
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second,
            next: Mutex::default(),
        }
    }

    /// Waits until so many bytes that have come were due, or until a client waits for them.
    pub(super) fn wait(&self, bytes: u64, is_background: impl Fn() -> bool) {
        let Some(rate) = self.bytes_per_second.filter(|_| is_background()) else {
            return;
        };
        let time = Duration::from_millis(bytes.saturating_mul(1000) / rate.max(1));
        let due = {
            let mut next = self.next.locked();
            let now = Instant::now();
            let due = next.map_or(now, |next| next.max(now)) + time;
            *next = Some(due);
            due
        };
        while is_background() {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(LOOK));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfers::{Subject, Transfer, TransferKind};

    #[test]
    fn only_what_no_client_waits_for_is_slowed_down() {
        let transfer = Transfer::new(TransferKind::Fill, false, Subject::default(), None);
        let is_background = || transfer.is_background();
        let pace = Pace::new(Some(1000));
        let begun = Instant::now();
        pace.wait(1 << 40, is_background);
        transfer.set_background(true);
        Pace::new(None).wait(1 << 40, is_background);
        assert!(begun.elapsed() < Duration::from_secs(30));
        pace.wait(50, is_background);
        pace.wait(50, is_background);
        assert!(begun.elapsed() >= Duration::from_millis(100));
        // A client joins meanwhile.
        thread::scope(|scope| {
            scope.spawn(|| pace.wait(1 << 40, is_background));
            transfer.set_background(false);
        });
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
