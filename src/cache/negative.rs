//! The memory of 404s. Owns: what upstream lately said is missing, so that a loop of pulls of a
//! missing tag does not become a loop of upstream calls. Must not: outlive a push.
//!
//! Locks: the map, held for map operations.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::locked::Locked as _;
use crate::message::Buffered;

/// How long a 404 is remembered: long enough for the retries of one pull, short enough that nobody
/// waits for a tag that was just pushed elsewhere.
pub const NEGATIVE_TTL: Duration = Duration::from_secs(10);
/// Entries kept; when they are full they are forgotten, which costs upstream calls and no more.
const ENTRIES_MAX: usize = 4096;
/// Bytes of an answer and its key at the most: ECR's answers are a few hundred, and all entries
/// together stay in 16 MB.
const ENTRY_BYTES_MAX: usize = 4096;

/// The memory.
#[derive(Default)]
pub struct Negative {
    entries: Mutex<HashMap<String, (Instant, Buffered)>>,
}

impl Negative {
    /// The answer remembered under `key`, if it is young enough at `now`.
    pub fn get(&self, key: &str, now: Instant) -> Option<Buffered> {
        let mut entries = self.entries.locked();
        let (until, refused) = entries.get(key)?;
        if now < *until {
            return Some(refused.clone());
        }
        entries.remove(key);
        None
    }

    /// Remembers an answer, unless it is too large, or `is_current` says that it holds no longer.
    pub(super) fn put(
        &self,
        key: &str,
        refused: Buffered,
        now: Instant,
        is_current: impl FnOnce() -> bool,
    ) {
        let fields = refused.headers.iter();
        let bytes: usize = fields.map(|(name, value)| name.len() + value.len()).sum();
        // The key holds what the client accepts, which may be as long as a head.
        if key.len() + bytes + refused.body.len() > ENTRY_BYTES_MAX {
            return;
        }
        let mut entries = self.entries.locked();
        // Under the lock: a push is noted first, and takes the answers away then.
        if !is_current() {
            return;
        }
        if entries.len() >= ENTRIES_MAX {
            entries.retain(|_, (until, _)| now < *until);
        }
        if entries.len() >= ENTRIES_MAX {
            entries.clear();
        }
        entries.insert(key.to_owned(), (now + NEGATIVE_TTL, refused));
    }

    /// Forgets every answer whose key begins with `prefix`: something was pushed there.
    pub fn forget(&self, prefix: &str) {
        let mut entries = self.entries.locked();
        entries.retain(|key, _| !key.starts_with(prefix));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Headers;

    fn refused() -> Buffered {
        Buffered {
            status: 404,
            headers: Headers::new(),
            body: b"no".to_vec().into(),
        }
    }

    #[test]
    fn an_answer_lives_for_its_time() {
        let (negative, now) = (Negative::default(), Instant::now());
        negative.put("a", refused(), now, || true);
        assert_eq!(negative.get("a", now).unwrap().status, 404);
        assert!(negative.get("b", now).is_none());
        negative.put("b", refused(), now, || false);
        assert!(negative.get("b", now).is_none());
        assert!(negative.get("a", now + NEGATIVE_TTL).is_none());
        assert!(negative.get("a", now).is_none());
    }

    #[test]
    fn a_push_ends_it() {
        let (negative, now) = (Negative::default(), Instant::now());
        negative.put("r/a manifest 1", refused(), now, || true);
        negative.put("r/b manifest 1", refused(), now, || true);
        negative.forget("r/a ");
        assert!(negative.get("r/a manifest 1", now).is_none());
        assert!(negative.get("r/b manifest 1", now).is_some());
    }

    #[test]
    fn a_large_answer_is_not_kept() {
        let (negative, now) = (Negative::default(), Instant::now());
        let sized = |bytes| Buffered {
            body: vec![b'x'; bytes].into(),
            ..refused()
        };
        negative.put("a", sized(ENTRY_BYTES_MAX - 1), now, || true);
        negative.put("b", sized(ENTRY_BYTES_MAX), now, || true);
        assert!(negative.get("a", now).is_some() && negative.get("b", now).is_none());
    }

    #[test]
    fn it_is_bounded() {
        let (negative, now) = (Negative::default(), Instant::now());
        for number in 0..ENTRIES_MAX * 2 {
            negative.put(&number.to_string(), refused(), now, || true);
        }
        assert!(negative.entries.locked().len() <= ENTRIES_MAX);
    }
}
