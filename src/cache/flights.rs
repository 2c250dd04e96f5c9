//! Single flight: of many callers that want the same thing, one fetches it and the others wait.
//! Owns: which is first, and handing its result on. Must not: know what is fetched.
//!
//! Waiting costs no permit: a thousand nodes may ask for one tag at once. A first that panics
//! leaves its followers to try by themselves, never with a result that is none.
//!
//! Locks: the map of flights and each flight's result, held for memory operations only.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use crate::locked::{Locked as _, TimedWait as _};

/// Flights by key.
pub struct Flights<T> {
    running: Mutex<HashMap<String, Arc<Flight<T>>>>,
}

struct Flight<T> {
    result: Mutex<Landing<T>>,
    landed: Condvar,
}

enum Landing<T> {
    Flying,
    /// The first is gone without a result.
    Lost,
    With(T),
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
        }
    }
}

impl<T: Clone> Flights<T> {
    /// Runs `fetch`, or waits for the one that runs it under the same key. None when no result came
    /// until `deadline`.
    pub fn run(&self, key: &str, deadline: Instant, fetch: impl FnOnce() -> T) -> Option<T> {
        let (flight, first) = self.enter(key);
        if !first {
            return flight.wait(deadline);
        }
        // Ends the flight also when `fetch` panics.
        let mut landing = Land {
            flights: self,
            key,
            flight: &flight,
            result: None,
        };
        let result = fetch();
        landing.result = Some(result.clone());
        drop(landing);
        Some(result)
    }

    fn enter(&self, key: &str) -> (Arc<Flight<T>>, bool) {
        let mut running = self.running.locked();
        if let Some(flight) = running.get(key) {
            return (Arc::clone(flight), false);
        }
        let flight = Arc::new(Flight {
            result: Mutex::new(Landing::Flying),
            landed: Condvar::new(),
        });
        running.insert(key.to_owned(), Arc::clone(&flight));
        (flight, true)
    }
}

impl<T: Clone> Flight<T> {
    fn wait(&self, deadline: Instant) -> Option<T> {
        let is_over = |landing: &Landing<T>| !matches!(landing, Landing::Flying);
        let result = self.result.locked();
        match &*self.landed.wait_until(result, deadline, is_over) {
            Landing::With(result) => Some(result.clone()),
            Landing::Flying | Landing::Lost => None,
        }
    }
}

struct Land<'a, T> {
    flights: &'a Flights<T>,
    key: &'a str,
    flight: &'a Flight<T>,
    result: Option<T>,
}

impl<T> Drop for Land<'_, T> {
    fn drop(&mut self) {
        let landing = self.result.take().map_or(Landing::Lost, Landing::With);
        self.flights.running.locked().remove(self.key);
        *self.flight.result.locked() = landing;
        self.flight.landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn one_fetches_and_all_get_it() {
        let flights: Flights<usize> = Flights::default();
        let fetches = AtomicUsize::new(0);
        let (entered, first_is_in) = channel();
        let (release, held) = channel::<()>();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                let held = held;
                flights.run("k", soon(), move || {
                    entered.send(()).unwrap();
                    held.recv().unwrap();
                    1
                })
            });
            first_is_in.recv().unwrap();
            let followers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        flights.run("k", soon(), || fetches.fetch_add(1, Ordering::SeqCst) + 7)
                    })
                })
                .collect();
            assert_eq!(flights.run("other", soon(), || 2), Some(2));
            release.send(()).unwrap();
            assert_eq!(first.join().unwrap(), Some(1));
            for follower in followers {
                // One that came after the landing fetched for itself.
                assert!(matches!(follower.join().unwrap(), Some(1 | 7..)));
            }
        });
        assert!(flights.running.locked().is_empty());
    }

    #[test]
    fn a_follower_waits_no_longer_than_its_deadline() {
        let flights: Flights<usize> = Flights::default();
        let (release, held) = channel::<()>();
        let (entered, first_is_in) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let held = held;
                flights.run("k", soon(), move || {
                    entered.send(()).unwrap();
                    held.recv().unwrap();
                    1
                })
            });
            first_is_in.recv().unwrap();
            let deadline = Instant::now() + Duration::from_millis(20);
            assert_eq!(flights.run("k", deadline, || 2), None);
            release.send(()).unwrap();
        });
    }

    #[test]
    fn a_first_that_panics_leaves_nothing_behind() {
        let flights: Flights<usize> = Flights::default();
        let panicking = AssertUnwindSafe(|| flights.run("k", soon(), || panic!("fetch")));
        assert!(catch_unwind(panicking).is_err());
        assert_eq!(flights.run("k", soon(), || 3), Some(3));
    }
}
