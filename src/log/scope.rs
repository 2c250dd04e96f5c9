//! The request that a thread works for. Owns: its id, which every line of that thread gets, the
//! proxies that it passed, and upstream's words about it. Must not: know how a request is answered.
//!
//! Locks: what upstream said, held for a copy.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use crate::locked::Locked as _;

/// Longest word of upstream that is kept: an id of AWS has 36 characters, `REVALIDATED` for each of
/// ten tiers of caches has 119.
const UPSTREAM_CHARACTERS_MAX: usize = 128;

thread_local! {
    static CURRENT: RefCell<Option<Arc<RequestScope>>> = const { RefCell::new(None) };
}

/// A request, for as long as a thread works for it.
#[derive(Debug)]
pub struct RequestScope {
    /// Its id.
    pub id: String,
    /// The client's `traceparent`, if it sent a valid one.
    pub trace: Option<String>,
    /// The field `Via` for upstream: the way so far, and this process.
    pub via: Cow<'static, str>,
    upstream: Mutex<UpstreamWords>,
}

/// Upstream's words about a request.
#[derive(Debug, Default, Clone)]
pub struct UpstreamWords {
    /// The id that upstream last gave the request.
    pub id: Option<String>,
    /// What upstream's last reply says about its own cache.
    pub cache: Option<String>,
}

impl RequestScope {
    /// The request `id`, with the client's valid `traceparent`. `via`: the field for upstream.
    pub fn new(id: String, trace: Option<String>, via: impl Into<Cow<'static, str>>) -> Arc<Self> {
        let upstream = Mutex::default();
        Arc::new(Self {
            id,
            trace,
            via: via.into(),
            upstream,
        })
    }

    /// The request that this thread works for.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Wraps `work` for another thread, which then works for the same request as this one: its log
    /// lines have the same id.
    pub fn pass_on<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
        let request = Self::current();
        move || match request {
            Some(request) => request.run(work),
            None => work(),
        }
    }

    /// Runs `work` for this request.
    pub fn run<T>(self: &Arc<Self>, work: impl FnOnce() -> T) -> T {
        let _restored = Restored(CURRENT.replace(Some(Arc::clone(self))));
        work()
    }

    /// Keeps the words of a reply of upstream. An id stays until there is another.
    pub fn note_upstream(&self, id: Option<&str>, cache: Option<String>) {
        let kept = |word: &str| word.chars().take(UPSTREAM_CHARACTERS_MAX).collect();
        let mut upstream = self.upstream.locked();
        upstream.id = id.map(kept).or_else(|| upstream.id.take());
        upstream.cache = cache.as_deref().map(kept);
    }

    /// Upstream's words about this request.
    pub fn upstream(&self) -> UpstreamWords {
        self.upstream.locked().clone()
    }
}

/// Restores the request that the thread worked for before, whatever ended the work.
struct Restored(Option<Arc<RequestScope>>);

impl Drop for Restored {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current_id() -> Option<String> {
        RequestScope::current().map(|scope| scope.id.clone())
    }

    #[test]
    fn a_scope_ends_with_its_work_and_a_panic_too() {
        let scope = RequestScope::new("one".into(), None, String::new());
        scope.run(|| {
            assert_eq!(current_id().as_deref(), Some("one"));
            RequestScope::new("two".into(), None, String::new()).run(|| {
                assert_eq!(current_id().as_deref(), Some("two"));
            });
            assert_eq!(current_id().as_deref(), Some("one"));
        });
        let panics = || scope.run(|| panic!("this panic belongs to a test"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert_eq!(current_id(), None);
    }

    #[test]
    fn what_upstream_calls_it_is_seen_by_all_and_bounded() {
        let scope = RequestScope::new("one".into(), None, String::new());
        let other = Arc::clone(&scope);
        std::thread::scope(|threads| {
            threads.spawn(|| other.note_upstream(Some(&"x".repeat(1000)), Some("HIT".into())));
        });
        scope.note_upstream(None, None);
        let words = scope.upstream();
        let long = "x".repeat(UPSTREAM_CHARACTERS_MAX);
        assert_eq!((words.id, words.cache), (Some(long), None));
    }
}
