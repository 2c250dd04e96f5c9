//! `aws-ecr-proxy`: lets OCI clients use AWS ECR without holding any AWS credential.
//!
//! The way of a request: `door` (the client's socket) → `pool` (tiny_http and the workers) →
//! `proxy` or `pages` (what the request means) → back to the connection's own thread, which talks
//! to `upstream` where needed and writes the reply. `aws` keeps identity and tokens beside it.
//!
//! Imports point one way; `tests/it/layers.rs` holds them to it:
//! `main → cli → app → {door, pool} → {proxy, pages} → {aws, cache} → upstream →
//! {config, oci, message, hash} → {metrics, log, clock} → {address, calendar, permits, random, range, secret, uri}`.

pub mod address;
pub mod app;
pub mod aws;
pub mod cache;
pub mod calendar;
pub mod cli;
pub mod clock;
pub mod config;
pub mod door;
pub mod hash;
pub mod log;
pub mod message;
pub mod metrics;
pub mod oci;
pub mod pages;
pub mod permits;
pub mod pool;
pub mod proxy;
pub mod random;
pub mod range;
pub mod secret;
pub mod upstream;
pub mod uri;
