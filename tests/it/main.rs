//! Integration tests: the real binary against the stand-in in `tests/standin`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "test code: a panic here is a test's verdict, and says where"
)]

mod attacks;
mod cache_disk;
mod cache_fill;
mod cache_outage;
mod cache_quota;
mod cache_range;
mod cache_resume;
mod cache_store;
mod cache_tags;
mod config;
mod crowds;
mod drain;
mod framing;
mod layers;
mod limits;
mod pages;
mod pool;
mod pull;
mod push;
mod rewrite;
mod secrets;
mod slow;
mod sockets;
mod standin;
mod support;
mod tidy;
mod token;
mod upstream_faults;
