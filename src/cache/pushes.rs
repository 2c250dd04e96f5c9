//! Manifests that are being pushed or deleted through us. Owns: who may say what a tag means now.
//! Must not: know what was pushed.
//!
//! Upstream's order is not ours: of two pushes of one tag at a time, the answer that comes last
//! need not be that of the push that came last. So after such a pair upstream is asked.
//!
//! Locks: the map, held for map operations.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// All pushes of manifests.
#[derive(Default)]
pub struct Pushes {
    count: AtomicU64,
    running: Mutex<HashMap<String, Running>>,
}

#[derive(Default)]
struct Running {
    count: usize,
    /// Two met.
    contested: bool,
}

/// A push of a name that goes on.
pub struct Pushing<'a> {
    pushes: &'a Pushes,
    name: String,
}

impl Pushes {
    /// How many have ended so far. Who asks upstream for a tag notes it before, and keeps the
    /// answer only if it is the same afterwards: the answer may be older than a push.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// A push or deletion of `name` begins.
    pub fn begin(&self, name: String) -> Pushing<'_> {
        let mut running = self.lock();
        let entry = running.entry(name.clone()).or_default();
        entry.contested |= entry.count > 0;
        entry.count += 1;
        drop(running);
        Pushing { pushes: self, name }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pushing<'_> {
    /// Upstream has taken it. True when nobody else pushed the same name at the time, so that it is
    /// known what the name means.
    pub fn succeeded(&self) -> bool {
        self.pushes.count.fetch_add(1, Ordering::SeqCst);
        let running = self.pushes.lock();
        running
            .get(&self.name)
            .is_some_and(|entry| !entry.contested)
    }
}

impl Drop for Pushing<'_> {
    fn drop(&mut self) {
        let mut running = self.pushes.lock();
        if let Some(entry) = running.get_mut(&self.name) {
            entry.count -= 1;
            if entry.count == 0 {
                running.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_is_sure() {
        let pushes = Pushes::default();
        let push = pushes.begin("a".into());
        let other = pushes.begin("b".into());
        assert!(push.succeeded() && other.succeeded());
        assert_eq!(pushes.count(), 2);
        drop((push, other));
        assert!(pushes.lock().is_empty());
    }

    #[test]
    fn two_at_a_time_are_not_sure_of_each_other() {
        let pushes = Pushes::default();
        let first = pushes.begin("a".into());
        let second = pushes.begin("a".into());
        assert!(!first.succeeded());
        drop(first);
        // The first may have been taken after this one.
        assert!(!second.succeeded());
        drop(second);
        assert!(pushes.begin("a".into()).succeeded());
    }
}
