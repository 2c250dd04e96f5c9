//! Rows of the table: log, shutdown and modes of running. Pure data.

use std::time::Duration;

use crate::config::parse;
use crate::config::table::*;

pub(super) static ROWS: &[Setting] = &[
    Setting {
        name: "OFFLINE",
        group: Group::Registry,
        preset: Preset::Value("false"),
        meaning: "No upstream or AWS call at all: serve the cache.",
        state: later(Unit::Switch, OFF),
        ..ROW
    },
    Setting {
        name: "SHUTDOWN_GRACE",
        group: Group::Operation,
        preset: Preset::Value("30s"),
        meaning: "Time that running transfers get to end after SIGTERM.",
        state: State::Built(Kind::Time {
            min: Duration::ZERO,
            max: Duration::from_secs(3600),
            reason: "a stop that takes longer is no stop",
            set: |settings, time| settings.shutdown_grace = time,
        }),
        ..ROW
    },
    Setting {
        name: "LOG_LEVEL",
        group: Group::Operation,
        preset: Preset::Value("INFO"),
        meaning: "`DEBUG`, `INFO`, `WARN` (or `WARNING`) or `ERROR`, in any case.",
        state: text(
            Unit::Text,
            "DEBUG, INFO, WARN or ERROR in any case",
            parse::log_level,
        ),
        ..ROW
    },
    Setting {
        name: "LOG_FORMAT",
        group: Group::Operation,
        preset: Preset::Value("text"),
        meaning: "`text` (key=value) or `json`; one line per request.",
        state: text(Unit::Text, "text or json", parse::log_format),
        ..ROW
    },
];
