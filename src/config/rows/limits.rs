//! Rows of the table: threads and limits. Pure data.

use crate::config::parse;
use crate::config::table::Kind::*;
use crate::config::table::Preset::Value;
use crate::config::table::*;

pub(super) static ROWS: &[Setting] = &[
    row(
        "WORKERS",
        Value("8"),
        Number(
            range(
                1,
                64,
                "they touch memory only: more than one a core gains nothing",
            ),
            |s, count| s.workers = size(count),
        ),
        "Threads that decide on requests. They never wait, so a few suffice.",
    ),
    row(
        "LANES",
        Value("16"),
        Number(
            range(
                2,
                256,
                "each is a thread and two descriptors; with one alone, requests would wait in a \
                 row",
            ),
            |s, count| s.lanes = size(count),
        ),
        "Request heads that may be with the workers at a time.",
    ),
    row(
        "MAX_CONNECTIONS",
        Value("1024"),
        Number(
            range(1, 100_000, "each is a thread and up to three descriptors"),
            |s, count| s.max_connections = size(count),
        ),
        "Connections of clients at a time; lowered at start to what the system allows. Past it \
         the longest idle one is closed.",
    ),
    row(
        "MAX_CONNECTIONS_PER_PEER",
        Value("256"),
        Number(range(1, 100_000, "each is a thread"), |s, count| {
            s.max_connections_per_peer = size(count)
        }),
        "Connections of one client address (IPv6: of one /64) at a time; not on unix sockets. \
         Raise it where all clients come by one load balancer.",
    ),
    row(
        "MAX_EXCHANGES",
        Value("256"),
        Number(range(1, 10_000, COUNT_REASON), |s, count| {
            s.max_exchanges = size(count)
        }),
        "Requests that wait for a registry's head at a time, for each; others queue, then get 503.",
    ),
    row(
        "MAX_UPLOADS",
        Value("128"),
        Number(range(1, 10_000, COUNT_REASON), |s, count| {
            s.max_uploads = size(count)
        }),
        "Request bodies that are streamed to one registry at a time; at most half as many from one \
         client address.",
    ),
    row(
        "MAX_FILLS",
        Value("32"),
        Number(range(1, 1024, "each is a thread"), |s, count| {
            s.max_fills = size(count)
        }),
        "Cold blobs fetched into the cache at a time.",
    ),
    row(
        "MIN_RATE",
        Value("256"),
        Text(Unit::Size, "bytes a second, or with k", |s, text| {
            put(&mut s.min_rate, parse::min_rate(text))
        }),
        "Bytes a second over 60 s of waiting for the client (180 s for who takes a reply); \
         slower ones are cut. `0` switches it off.",
    ),
];
