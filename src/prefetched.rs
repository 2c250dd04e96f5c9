//! The last results of `PREFETCH`, for log, metrics and status. Owns: those results. Must not:
//! fetch.
//!
//! Lock: the round, held for a few reads and writes of memory.

use std::sync::{Mutex, MutexGuard};
use std::time::{Instant, SystemTime};

use crate::locked::Locked as _;

/// The state of `PREFETCH` in this process.
pub static PREFETCHED: Prefetched = Prefetched(Mutex::new(None));

/// The last result of an image.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PrefetchedImage {
    /// As the setting names it.
    pub name: String,
    /// The digest of its manifest, once that was fetched.
    pub digest: Option<String>,
    /// Why it is not complete or not confirmed; none before the first attempt and after a success.
    pub error: Option<String>,
    /// When it was last complete and confirmed.
    pub confirmed: Option<SystemTime>,
}

/// The state of the rounds.
#[derive(Debug, Clone, Default)]
pub struct PrefetchRound {
    /// Every image of the list.
    pub images: Vec<PrefetchedImage>,
    /// The image that is being fetched.
    pub running: Option<String>,
    /// When the next round begins; none during one.
    pub next: Option<Instant>,
    /// Rounds that have ended.
    pub rounds: u64,
    /// Why the list could not be read; then the images of the last round stay.
    pub list_error: Option<String>,
}

/// The state, once there is one.
#[derive(Debug)]
pub struct Prefetched(Mutex<Option<PrefetchRound>>);

impl Prefetched {
    /// A copy of the state; none when nothing is prefetched.
    pub fn get(&self) -> Option<PrefetchRound> {
        self.lock().clone()
    }

    /// Changes the state.
    pub fn change(&self, change: impl FnOnce(&mut PrefetchRound)) {
        change(self.lock().get_or_insert_default());
    }

    /// How many images are complete and confirmed, failed, or not yet tried.
    pub fn counts(&self) -> Option<[usize; 3]> {
        let state = self.lock();
        let mut counts = [0; 3];
        let [whole, failed, waiting] = &mut counts;
        for image in &state.as_ref()?.images {
            match (&image.error, image.confirmed) {
                (Some(_), _) => *failed += 1,
                (None, Some(_)) => *whole += 1,
                (None, None) => *waiting += 1,
            }
        }
        Some(counts)
    }

    fn lock(&self) -> MutexGuard<'_, Option<PrefetchRound>> {
        self.0.locked()
    }
}
