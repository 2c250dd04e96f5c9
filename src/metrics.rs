//! Counters. Owns: every number that the process keeps about itself. Must not: log, lock, or
//! allocate while it counts, but for a name that is new.
//!
//! `status/metrics.rs` shows them under `/metrics`, with what other parts know.

mod counted;
mod number;
pub mod requests;
mod table;
pub mod text;

pub use counted::*;
pub use number::{Counter, Gauge, Held, Histogram};
pub use requests::{CacheOutcome, Finished, Route, Source};
