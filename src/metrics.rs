//! Counters. Owns: every number that the process keeps about itself. Must not: log, lock, or
//! allocate while it counts, but for a name that is new.
//!
//! `status/metrics.rs` shows them under `/metrics`, with what other parts know.

mod counted;
mod number;
pub mod requests;
mod table;
pub mod text;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use counted::*;
pub use number::{Counter, Gauge, Held, Histogram};
pub use requests::{CacheOutcome, Finished, Route, Source};

/// Does `work`. None when it panicked, which is counted: what it worked on must not be used again.
pub fn count_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    if done.is_err() {
        PANICS.inc();
    }
    done.ok()
}
