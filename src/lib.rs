//! `aws-ecr-proxy`: lets OCI clients use AWS ECR without holding any AWS credential.
//!
//! A request comes in at `door`, which owns the client's socket. `pool` (tiny_http and the workers)
//! hands it to `proxy` or `pages`, which decide what it means. Back on the connection's own thread
//! the answer is fetched from `cache` or `upstream`, and `door` writes it. `aws` keeps identity and
//! tokens meanwhile.
//!
//! Imports point one way; `tests/it/layers.rs` holds them to it:
//! `main → cli → app → {door, pool} → {proxy, pages, status} → {aws, cache} → upstream →
//! {config, image_name, media_type, message, hash} → oci → {metrics, log, clock} →
//! {address, budget, calendar, history, permits, platforms, prefetched, random, range, secret,
//! small_file, transfers, uri} → {label, locked}`.

pub mod address;
pub mod app;
pub mod aws;
pub mod budget;
pub mod cache;
pub mod calendar;
pub mod cli;
pub mod clock;
pub mod config;
pub mod door;
pub mod hash;
pub mod history;
pub mod image_name;
mod label;
pub mod locked;
pub mod log;
pub mod media_type;
pub mod message;
pub mod metrics;
pub mod oci;
pub mod pages;
pub mod permits;
pub mod platforms;
pub mod pool;
pub mod prefetched;
pub mod proxy;
pub mod random;
pub mod range;
pub mod secret;
pub mod small_file;
pub mod status;
pub mod transfers;
pub mod upstream;
pub mod uri;
pub mod via;
