//! Rows of the table: threads and limits. Pure data.

use crate::config::parse;
use crate::config::table::*;

pub(super) static ROWS: &[Setting] = &[
    Setting {
        name: "WORKERS",
        group: Group::Limits,
        preset: Preset::Value("8"),
        meaning: "Threads that decide on requests. They never wait, so a few suffice.",
        state: number(
            1,
            64,
            "they touch memory only: more than one a core gains nothing",
            |settings, count| settings.workers = size(count),
        ),
        ..ROW
    },
    Setting {
        name: "LANES",
        group: Group::Limits,
        preset: Preset::Value("16"),
        meaning: "Request heads that may be with the workers at a time.",
        state: number(
            2,
            256,
            "each is a thread and two descriptors; with one alone, requests would wait in a row",
            |settings, count| settings.lanes = size(count),
        ),
        ..ROW
    },
    Setting {
        name: "MAX_CONNECTIONS",
        group: Group::Limits,
        preset: Preset::Value("1024"),
        meaning: "Connections of clients at a time; lowered at start to what the system allows. \
                  Past it the longest idle one is closed.",
        state: number(
            1,
            100_000,
            "each is a thread and up to three descriptors",
            |settings, count| settings.max_connections = size(count),
        ),
        ..ROW
    },
    Setting {
        name: "MAX_CONNECTIONS_PER_PEER",
        group: Group::Limits,
        preset: Preset::Value("256"),
        meaning: "Connections of one client address (IPv6: of one /64) at a time; not on unix \
                  sockets. Raise it where all clients come by one load balancer.",
        state: number(1, 100_000, "each is a thread", |settings, count| {
            settings.max_connections_per_peer = size(count);
        }),
        ..ROW
    },
    Setting {
        name: "MAX_EXCHANGES",
        group: Group::Limits,
        preset: Preset::Value("256"),
        meaning: "Requests that wait for an upstream reply's head at a time; others queue, then \
                  get 503.",
        state: number(1, 10_000, COUNT_REASON, |settings, count| {
            settings.max_exchanges = size(count);
        }),
        ..ROW
    },
    Setting {
        name: "MAX_UPLOADS",
        group: Group::Limits,
        preset: Preset::Value("128"),
        meaning: "Request bodies that are streamed upstream at a time.",
        state: number(1, 10_000, COUNT_REASON, |settings, count| {
            settings.max_uploads = size(count);
        }),
        ..ROW
    },
    Setting {
        name: "MAX_FILLS",
        group: Group::Limits,
        preset: Preset::Value("32"),
        meaning: "Cold blobs fetched into the cache at a time.",
        state: number(1, 1024, "each is a thread", |settings, count| {
            settings.max_fills = size(count);
        }),
        ..ROW
    },
    Setting {
        name: "MIN_RATE",
        group: Group::Limits,
        preset: Preset::Value("256"),
        meaning: "Bytes a second over 60 s of waiting for the client (180 s for who takes a \
                  reply); slower ones are cut. `0` switches it off.",
        state: text(Unit::Size, "bytes a second, or with k", parse::min_rate),
        ..ROW
    },
];
