//! A circuit breaker for each registry. Owns: when an upstream that is out of reach is asked again.
//! Must not: know why it is.
//!
//! Without it every request of an outage would wait for its own connect time-out. After a few slow
//! failures in a row the registry counts as out of reach, and requests fail at once; after a pause
//! one request is let through to try, and the pause doubles until one succeeds.
//!
//! A caller that has an older answer at hand waits for a few seconds only. That its patience ran
//! out says nothing for callers that would wait longer, so such callers have a circuit of their
//! own beside the registry's.
//!
//! Locks: the map of circuits, held for map operations.

use std::collections::HashMap;
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
/// Registries watched; a proxy knows a handful.
const CIRCUITS_MAX: usize = 256;

/// The circuits.
#[derive(Debug, Default)]
pub struct Breaker {
    circuits: Mutex<HashMap<CircuitKey, Circuit>>,
}

type CircuitKey = (String, Patience);

/// How long a caller is ready to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Patience {
    /// As long as any client waits.
    Full,
    /// A few seconds: an older answer is at hand.
    Short,
}

#[derive(Debug, Default)]
struct Circuit {
    failures: u32,
    pause: Duration,
    open_until: Option<Instant>,
}

impl Breaker {
    /// Says whether `to` may be asked at `now`.
    ///
    /// # Errors
    /// How long until the next try.
    pub fn allow(&self, to: &str, patience: Patience, now: Instant) -> Result<(), Duration> {
        let mut circuits = self.circuits.locked();
        if patience == Patience::Short
            && let Some(circuit) = circuits.get(&key(to, Patience::Full))
            && let Some(until) = circuit.open_until
            && now < until
        {
            return Err(until - now);
        }
        let Some(circuit) = circuits.get_mut(&key(to, patience)) else {
            return Ok(());
        };
        match circuit.open_until {
            None => Ok(()),
            Some(until) if now < until => Err(until - now),
            Some(_) => {
                // This one tries; the others wait for what it finds.
                circuit.open_until = Some(now + TRY_TIMEOUT);
                Ok(())
            }
        }
    }

    /// `to` answered a caller of this patience: all that are as patient may ask it.
    pub fn note_success(&self, to: &str, patience: Patience) {
        let mut circuits = self.circuits.locked();
        circuits.remove(&key(to, Patience::Full));
        if patience == Patience::Short {
            circuits.remove(&key(to, Patience::Short));
        }
    }

    /// `to` was out of reach at `now`, or for this patience. Says whether the circuit is open.
    pub fn note_failure(&self, to: &str, patience: Patience, now: Instant) -> bool {
        let mut circuits = self.circuits.locked();
        let key = key(to, patience);
        if circuits.len() >= CIRCUITS_MAX && !circuits.contains_key(&key) {
            circuits.clear();
        }
        let circuit = circuits.entry(key).or_default();
        circuit.failures += 1;
        if circuit.failures >= FAILURES_MIN {
            circuit.pause = (circuit.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            circuit.open_until = Some(now + circuit.pause);
        }
        circuit.open_until.is_some()
    }

    /// How long until `to` is tried again; none while it may be asked. Changes nothing.
    pub fn pause(&self, to: &str, now: Instant) -> Option<Duration> {
        let until = self
            .circuits
            .locked()
            .get(&key(to, Patience::Full))?
            .open_until?;
        until.checked_duration_since(now)
    }
}

fn key(to: &str, patience: Patience) -> CircuitKey {
    (to.to_owned(), patience)
}

#[cfg(test)]
mod tests {
    use super::Patience::{Full, Short};
    use super::*;

    #[test]
    fn one_failure_is_borne() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        breaker.note_failure("r", Full, now);
        assert!(breaker.allow("r", Full, now).is_ok());
        assert_eq!(breaker.pause("r", now), None);
    }

    #[test]
    fn an_open_circuit_lets_one_try_through_after_a_growing_pause() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        breaker.note_failure("r", Full, now);
        breaker.note_failure("r", Full, now);
        for expected in [500, 1000, 2000, 4000, 5000, 5000] {
            let left = breaker.allow("r", Full, now).unwrap_err();
            assert_eq!(left, Duration::from_millis(expected));
            assert!(breaker.allow("other", Full, now).is_ok());
            now += left;
            assert!(breaker.allow("r", Full, now).is_ok());
            assert!(breaker.allow("r", Full, now).is_err());
            breaker.note_failure("r", Full, now);
        }
    }

    #[test]
    fn a_success_closes_it() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        breaker.note_failure("r", Full, now);
        breaker.note_failure("r", Full, now);
        breaker.note_success("r", Full);
        assert!(breaker.allow("r", Full, now).is_ok());
        breaker.note_failure("r", Full, now);
        assert!(breaker.allow("r", Full, now).is_ok());
    }

    #[test]
    fn a_try_that_is_lost_is_not_the_last() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        breaker.note_failure("r", Full, now);
        breaker.note_failure("r", Full, now);
        let later = now + PAUSE_MIN;
        assert!(breaker.allow("r", Full, later).is_ok());
        assert!(breaker.allow("r", Full, later + TRY_TIMEOUT).is_ok());
    }

    #[test]
    fn short_patience_has_a_circuit_of_its_own() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        breaker.note_failure("r", Short, now);
        breaker.note_failure("r", Short, now);
        assert!(breaker.allow("r", Short, now).is_err());
        assert!(breaker.allow("r", Full, now).is_ok());
        // An answer that the patient got may have taken long.
        breaker.note_success("r", Full);
        assert!(breaker.allow("r", Short, now).is_err());
        breaker.note_success("r", Short);
        assert!(breaker.allow("r", Short, now).is_ok());
        // A registry that patient callers cannot reach is out of reach for all; the try is theirs.
        breaker.note_failure("r", Full, now);
        breaker.note_failure("r", Full, now);
        assert!(breaker.allow("r", Short, now).is_err());
        let later = now + PAUSE_MIN;
        assert!(breaker.allow("r", Short, later).is_ok());
        assert!(breaker.allow("r", Full, later).is_ok());
        assert!(breaker.allow("r", Full, later).is_err());
    }
}
