//! Rows of the table: log and shutdown. Pure data.

use std::time::Duration;

use crate::config::parse;
use crate::config::table::Kind::*;
use crate::config::table::Preset::Value;
use crate::config::table::*;

pub(super) static ROWS: &[Setting] = &[
    row(
        "SHUTDOWN_GRACE",
        Value("30s"),
        Time(
            range(
                Duration::ZERO,
                Duration::from_secs(3600),
                "a stop that takes longer is no stop",
            ),
            |s, time| s.shutdown_grace = time,
        ),
        "Time that running transfers get to end after SIGTERM.",
    ),
    row(
        "LOG_LEVEL",
        Value("INFO"),
        Text(
            Unit::Text,
            "DEBUG, INFO, WARN or ERROR in any case",
            |s, text| put(&mut s.log_level, one_of(text, parse::LOG_LEVELS)),
        ),
        "`DEBUG`, `INFO`, `WARN` (or `WARNING`) or `ERROR`, in any case.",
    ),
    row(
        "LOG_FORMAT",
        Value("text"),
        Text(Unit::Text, "text or json", |s, text| {
            put(&mut s.log_format, one_of(text, parse::LOG_FORMATS))
        }),
        "`text` (key=value) or `json`; one line per request.",
    ),
];
