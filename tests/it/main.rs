//! Integration tests: the real binary against the stand-in in `tests/standin`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "test code: a panic here is a test's verdict, and says where"
)]

mod access;
mod attacks;
mod belonging;
mod cache_damage;
mod cache_disk;
mod cache_fill;
mod cache_impostors;
mod cache_outage;
mod cache_quota;
mod cache_races;
mod cache_range;
mod cache_resume;
mod cache_shared;
mod cache_store;
mod cache_tags;
mod carry;
mod check;
mod check_faults;
mod config;
mod cross_origin;
mod crowds;
mod drain;
mod framing;
mod frozen;
mod identity_files;
mod identity_metadata;
mod identity_outage;
mod imports;
mod kept;
mod kills;
mod layers;
mod limits;
mod listings;
mod log_lines;
mod login;
mod memory;
mod messages;
mod metrics;
mod migration;
mod notify;
mod offline;
mod pages;
mod pool;
mod prefetch;
mod protocol;
mod protocol_content;
mod protocol_errors;
mod protocol_outage;
mod pull;
mod push;
mod push_cache;
mod push_early;
mod push_fields;
mod referrers;
mod registries;
mod resolver;
mod rewrite;
mod scrub;
mod secrets;
mod security;
mod slow;
mod slow_tls;
mod sockets;
mod standin;
mod status;
mod support;
mod throttling;
mod tidy;
mod tiers;
mod tls;
mod tls_reload;
mod token;
mod uploads;
mod upstream_faults;
mod upstream_hostile;
mod way_out;
