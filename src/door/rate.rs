//! How fast a client is. Owns: comparing bytes with the time we waited for the client. Must not:
//! look at a clock: only the time that a caller waited for the client counts.

use std::fmt;
use std::time::Duration;

/// The slowest a client may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinRate {
    /// Bytes a second; 0 for no limit.
    pub bytes_per_second: u64,
    /// The client is judged each time we have waited for it this long.
    pub window: Duration,
}

/// A client was slower than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooSlow(MinRate);

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MinRate {
            bytes_per_second,
            window,
        } = self.0;
        let seconds = window.as_secs_f64();
        write!(
            f,
            "slower than {bytes_per_second} bytes/s over {seconds} s (MIN_RATE)"
        )
    }
}

/// Bytes in one direction of a connection, judged one window of waiting time after the other.
#[derive(Debug)]
pub(super) struct Rate {
    least: MinRate,
    waited: Duration,
    bytes: u64,
}

impl Rate {
    pub(super) const fn new(least: MinRate) -> Self {
        Self {
            least,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Waiting time until the client is judged next.
    pub(super) const fn time_left(&self) -> Duration {
        if self.least.bytes_per_second == 0 {
            return Duration::MAX;
        }
        self.least.window.saturating_sub(self.waited)
    }

    /// Adds a wait for the client and the bytes that it brought.
    ///
    /// # Errors
    /// When a window has ended and too few bytes came in it.
    pub(super) fn record(&mut self, waited: Duration, bytes: u64) -> Result<(), TooSlow> {
        self.waited += waited;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.waited < self.least.window {
            return Ok(());
        }
        // One wait may be longer than the window. All of it counts.
        let least = u128::from(self.least.bytes_per_second) * self.waited.as_millis() / 1000;
        let enough = u128::from(self.bytes) >= least;
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        if enough {
            Ok(())
        } else {
            Err(TooSlow(self.least))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: MinRate = MinRate {
        bytes_per_second: 256,
        window: Duration::from_secs(60),
    };
    const SECOND: Duration = Duration::from_secs(1);

    /// Seconds until a client is cut that sends `bytes` every `every` seconds; none within an hour.
    fn cut_after(bytes: u64, every: u64) -> Option<u64> {
        let mut rate = Rate::new(LEAST);
        let pauses = 1..=3600 / every;
        let pause = Duration::from_secs(every);
        let mut verdicts = pauses.map(|n| (n * every, rate.record(pause, bytes)));
        verdicts.find_map(|(at, verdict)| verdict.is_err().then_some(at))
    }

    #[test]
    fn a_slower_client_is_cut_at_the_end_of_a_window() {
        assert_eq!(cut_after(256, 1), None);
        assert_eq!(cut_after(255, 1), Some(60));
        assert_eq!(cut_after(0, 1), Some(60));
        // The bytes of the whole window count, not those of each second.
        assert_eq!(cut_after(15_360, 60), None);
        assert_eq!(cut_after(15_359, 60), Some(60));
        assert_eq!(cut_after(32_768, 32), None);
        // One wait longer than the window is measured whole.
        assert_eq!(cut_after(20_000, 90), Some(90));
        assert_eq!(cut_after(23_040, 90), None);
    }

    #[test]
    fn every_window_is_judged_alone() {
        let mut rate = Rate::new(LEAST);
        assert_eq!(rate.record(SECOND * 60, 1 << 40), Ok(()));
        // Bytes that were sent fast before buy no time.
        assert_eq!(rate.record(SECOND * 59, 0), Ok(()));
        assert_eq!(rate.record(SECOND, 100), Err(TooSlow(LEAST)));
    }

    #[test]
    fn only_waiting_counts() {
        let mut rate = Rate::new(LEAST);
        assert_eq!(rate.time_left(), LEAST.window);
        for _ in 0..1_000_000 {
            // Bytes that were there at once take no time, however few they are.
            assert_eq!(rate.record(Duration::ZERO, 1), Ok(()));
        }
        assert_eq!(rate.time_left(), LEAST.window);
        assert_eq!(rate.record(SECOND * 20, 0), Ok(()));
        assert_eq!(rate.time_left(), SECOND * 40);
    }

    #[test]
    fn without_a_rate_nobody_is_cut() {
        let mut rate = Rate::new(MinRate {
            bytes_per_second: 0,
            ..LEAST
        });
        assert_eq!(rate.record(SECOND * 3600, 0), Ok(()));
        assert_eq!(rate.time_left(), Duration::MAX);
    }

    #[test]
    fn the_verdict_names_the_limit() {
        let text = "slower than 256 bytes/s over 60 s (MIN_RATE)";
        assert_eq!(TooSlow(LEAST).to_string(), text);
    }
}
