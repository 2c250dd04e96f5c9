//! The request that a thread works for. Owns: its id, which every line of that thread gets, the way
//! that it came, and what upstream said of it. Must not: know how a request is answered.
//!
//! Locks: what upstream said, held for a copy.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use super::text::cut;
use crate::locked::Locked as _;

/// Longest id that is kept of upstream's; AWS's have 36 characters.
const UPSTREAM_ID_BYTES_MAX: usize = 128;
/// Longest word of upstream's cache that is kept: `REVALIDATED` for each of ten tiers.
const UPSTREAM_CACHE_BYTES_MAX: usize = 128;

thread_local! {
    static CURRENT: RefCell<Option<RequestScope>> = const { RefCell::new(None) };
}

/// A request, as long as somebody works for it. A clone is the same request, for a thread that
/// goes on with its work.
#[derive(Debug, Clone)]
pub struct RequestScope(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: String,
    /// The client's `traceparent`, if it sent a valid one.
    trace: Option<String>,
    via: Cow<'static, str>,
    upstream: Mutex<UpstreamWords>,
}

/// What upstream said of a request.
#[derive(Debug, Default)]
struct UpstreamWords {
    id: Option<String>,
    cache: Option<String>,
}

impl RequestScope {
    /// The request `id`, with the client's valid `traceparent`. `via`: the field for upstream.
    pub fn new(id: String, trace: Option<String>, via: impl Into<Cow<'static, str>>) -> Self {
        let upstream = Mutex::default();
        Self(Arc::new(Inner {
            id,
            trace,
            via: via.into(),
            upstream,
        }))
    }

    /// The request that this thread works for.
    pub fn current() -> Option<Self> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Runs `work` for this request.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        let _restored = Restored(CURRENT.replace(Some(self.clone())));
        work()
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The client's `traceparent`.
    pub fn trace(&self) -> Option<&str> {
        self.0.trace.as_deref()
    }

    /// The field `Via` for upstream: the way so far, and this process.
    pub fn via(&self) -> &str {
        &self.0.via
    }

    /// Keeps the id that upstream gave it. The last one stands.
    pub fn note_upstream_id(&self, id: &str) {
        let id = cut(id, UPSTREAM_ID_BYTES_MAX).to_owned();
        self.0.upstream.locked().id = Some(id);
    }

    /// The id that upstream gave it.
    pub fn upstream_id(&self) -> Option<String> {
        self.0.upstream.locked().id.clone()
    }

    /// Keeps what upstream's last reply says about its own cache.
    pub fn note_upstream_cache(&self, words: Option<String>) {
        let words = words.map(|words| cut(&words, UPSTREAM_CACHE_BYTES_MAX).to_owned());
        self.0.upstream.locked().cache = words;
    }

    /// What upstream's last reply says about its own cache.
    pub fn upstream_cache(&self) -> Option<String> {
        self.0.upstream.locked().cache.clone()
    }
}

/// Puts the request back that the thread worked for before, whatever ended the work.
struct Restored(Option<RequestScope>);

impl Drop for Restored {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current_id() -> Option<String> {
        RequestScope::current().map(|scope| scope.id().to_owned())
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
        let other = scope.clone();
        std::thread::scope(|threads| {
            threads.spawn(|| other.note_upstream_id(&"x".repeat(1000)));
        });
        assert_eq!(scope.upstream_id().unwrap().len(), UPSTREAM_ID_BYTES_MAX);
    }
}
