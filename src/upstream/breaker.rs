//! A circuit breaker for each registry. Owns: when an upstream that is out of reach is asked again.
//! Must not: know why it is out of reach.
//!
//! Without it every request of an outage would wait for its own connect time-out. After a few slow
//! failures in a row the registry counts as out of reach, and requests fail at once; after a pause
//! one request is let through to try, and the pause doubles until one succeeds.
//!
//! A caller that has an older answer at hand waits for a few seconds only. That its patience ran
//! out says nothing for callers that would wait longer, so such callers have a circuit of their
//! own beside the registry's.
//!
//! Lock: the two circuits, held for arithmetic.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::locked::Locked as _;

/// Failures in a row that open the circuit: one alone may be a lost packet.
const FAILURES_MIN: u32 = 2;
/// First pause before a try.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause before a try: an upstream that is back is noticed within it.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A try that never reports (its thread is gone) is given up after this.
const TRY_TIMEOUT: Duration = Duration::from_secs(30);

/// Decides whether a registry is asked.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<Circuits>);

/// How long a caller is ready to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// As long as any client waits.
    Full,
    /// A few seconds: an older answer is at hand.
    Short,
}

#[derive(Debug, Default)]
struct Circuits {
    full: Circuit,
    short: Circuit,
}

#[derive(Debug, Default)]
struct Circuit {
    failures: u32,
    pause: Duration,
    open_until: Option<Instant>,
}

impl Breaker {
    /// Says whether the registry may be asked at `now`.
    ///
    /// # Errors
    /// How long until the next try.
    pub(super) fn allow(&self, patience: Patience, now: Instant) -> Result<(), Duration> {
        let mut circuits = self.0.locked();
        if patience == Patience::Short
            && let Some(left) = circuits.full.time_left(now)
        {
            return Err(left);
        }
        let circuit = circuits.of(patience);
        if let Some(left) = circuit.time_left(now) {
            return Err(left);
        }
        if circuit.open_until.is_some() {
            // This request tries; the others wait for its outcome.
            circuit.open_until = Some(now + TRY_TIMEOUT);
        }
        Ok(())
    }

    /// Notes that the registry answered a caller of this patience: all that are as patient may ask.
    pub(super) fn note_success(&self, patience: Patience) {
        let mut circuits = self.0.locked();
        circuits.full = Circuit::default();
        if patience == Patience::Short {
            circuits.short = Circuit::default();
        }
    }

    /// Notes that the registry was out of reach at `now`, or for this patience. True when the
    /// circuit is open.
    pub(super) fn note_failure(&self, patience: Patience, now: Instant) -> bool {
        let mut circuits = self.0.locked();
        let circuit = circuits.of(patience);
        circuit.failures += 1;
        if circuit.failures >= FAILURES_MIN {
            circuit.pause = (circuit.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            circuit.open_until = Some(now + circuit.pause);
        }
        circuit.open_until.is_some()
    }

    /// How long until the registry is tried again; none while it may be asked. Changes nothing.
    pub(super) fn pause(&self, now: Instant) -> Option<Duration> {
        self.0.locked().full.time_left(now)
    }
}

impl Circuits {
    const fn of(&mut self, patience: Patience) -> &mut Circuit {
        match patience {
            Patience::Full => &mut self.full,
            Patience::Short => &mut self.short,
        }
    }
}

impl Circuit {
    fn time_left(&self, now: Instant) -> Option<Duration> {
        let left = self.open_until?.checked_duration_since(now)?;
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::Patience::{Full, Short};
    use super::*;

    #[test]
    fn one_failure_is_borne() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        breaker.note_failure(Full, now);
        assert!(breaker.allow(Full, now).is_ok());
        assert_eq!(breaker.pause(now), None);
    }

    #[test]
    fn an_open_circuit_lets_one_try_through_after_a_growing_pause() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        breaker.note_failure(Full, now);
        breaker.note_failure(Full, now);
        for expected in [500, 1000, 2000, 4000, 5000, 5000] {
            let left = breaker.allow(Full, now).unwrap_err();
            assert_eq!(left, Duration::from_millis(expected));
            now += left;
            assert!(breaker.allow(Full, now).is_ok());
            assert!(breaker.allow(Full, now).is_err());
            breaker.note_failure(Full, now);
        }
    }

    #[test]
    fn a_success_closes_it() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        breaker.note_failure(Full, now);
        breaker.note_failure(Full, now);
        breaker.note_success(Full);
        assert!(breaker.allow(Full, now).is_ok());
        breaker.note_failure(Full, now);
        assert!(breaker.allow(Full, now).is_ok());
    }

    #[test]
    fn a_try_that_is_lost_is_not_the_last() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        breaker.note_failure(Full, now);
        breaker.note_failure(Full, now);
        let later = now + PAUSE_MIN;
        assert!(breaker.allow(Full, later).is_ok());
        assert!(breaker.allow(Full, later + TRY_TIMEOUT).is_ok());
    }

    #[test]
    fn short_patience_has_a_circuit_of_its_own() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        breaker.note_failure(Short, now);
        breaker.note_failure(Short, now);
        assert!(breaker.allow(Short, now).is_err());
        assert!(breaker.allow(Full, now).is_ok());
        // An answer that the patient got may have taken long.
        breaker.note_success(Full);
        assert!(breaker.allow(Short, now).is_err());
        breaker.note_success(Short);
        assert!(breaker.allow(Short, now).is_ok());
        // A registry that patient callers cannot reach is out of reach for all; the try is theirs.
        breaker.note_failure(Full, now);
        breaker.note_failure(Full, now);
        assert!(breaker.allow(Short, now).is_err());
        let later = now + PAUSE_MIN;
        assert!(breaker.allow(Short, later).is_ok());
        assert!(breaker.allow(Full, later).is_ok());
        assert!(breaker.allow(Full, later).is_err());
    }
}
