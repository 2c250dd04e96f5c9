//! A circuit breaker for each registry. Owns: when an upstream that is out of reach is asked again.
//! Must not: know why it is.
//!
//! Without it every request of an outage would wait for its own connect time-out. After a few slow
//! failures in a row the registry counts as out of reach, and requests fail at once; after a pause
//! one request is let through to try, and the pause doubles until one succeeds.
//!
//! Locks: the map of circuits, held for map operations.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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
    circuits: Mutex<HashMap<String, Circuit>>,
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
    pub fn allow(&self, to: &str, now: Instant) -> Result<(), Duration> {
        let mut circuits = self.lock();
        let Some(circuit) = circuits.get_mut(to) else {
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

    /// `to` answered: everybody may ask it.
    pub fn succeeded(&self, to: &str) {
        self.lock().remove(to);
    }

    /// `to` was out of reach at `now`.
    pub fn failed(&self, to: &str, now: Instant) {
        let mut circuits = self.lock();
        if circuits.len() >= CIRCUITS_MAX && !circuits.contains_key(to) {
            circuits.clear();
        }
        let circuit = circuits.entry(to.to_owned()).or_default();
        circuit.failures += 1;
        if circuit.failures >= FAILURES_MIN {
            circuit.pause = (circuit.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            circuit.open_until = Some(now + circuit.pause);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Circuit>> {
        self.circuits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_is_borne() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        breaker.failed("r", now);
        assert!(breaker.allow("r", now).is_ok());
    }

    #[test]
    fn an_open_circuit_lets_one_try_through_after_a_growing_pause() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        breaker.failed("r", now);
        breaker.failed("r", now);
        for expected in [500, 1000, 2000, 4000, 5000, 5000] {
            let left = breaker.allow("r", now).unwrap_err();
            assert_eq!(left, Duration::from_millis(expected));
            assert!(breaker.allow("other", now).is_ok());
            now += left;
            assert!(breaker.allow("r", now).is_ok());
            assert!(breaker.allow("r", now).is_err());
            breaker.failed("r", now);
        }
    }

    #[test]
    fn a_success_closes_it() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        breaker.failed("r", now);
        breaker.failed("r", now);
        breaker.succeeded("r");
        assert!(breaker.allow("r", now).is_ok());
        breaker.failed("r", now);
        assert!(breaker.allow("r", now).is_ok());
    }

    #[test]
    fn a_try_that_is_lost_is_not_the_last() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        breaker.failed("r", now);
        breaker.failed("r", now);
        let later = now + PAUSE_MIN;
        assert!(breaker.allow("r", later).is_ok());
        assert!(breaker.allow("r", later + TRY_TIMEOUT).is_ok());
    }
}
