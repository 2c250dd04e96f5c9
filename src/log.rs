//! Logging. Owns: the log's format, its writer thread, and the choice of what may be shown of a
//! request target. Must not: block the caller, ever.
//!
//! Lines go to a bounded queue that one thread, `log`, writes to standard error. When nobody reads
//! the log (a full pipe), lines are dropped and counted: a stuck log collector stops no pull.

use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

use crate::calendar::format_rfc3339;
use crate::metrics;

/// Lines that may wait for the writer thread: at 300 bytes a line about 1.2 MB.
const QUEUE_LINES_MAX: usize = 4096;

/// How much a line matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Details, for a person who hunts a fault.
    Debug,
    /// What normally happens.
    #[default]
    Info,
    /// Something failed and the process copes.
    Warn,
    /// Something failed that somebody must mend.
    Error,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }
}

/// The shape of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// `time LEVEL message key=value …`
    #[default]
    Text,
}

/// A field of a line.
pub type Field<'a> = (&'a str, &'a dyn Display);

struct Logger {
    level: Level,
    format: Format,
    queue: SyncSender<Queued>,
}

enum Queued {
    Line(String),
    Flush(SyncSender<()>),
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Starts the writer thread. Before this call, and when the system refuses the thread, lines are
/// written by the caller itself, at INFO and in text. A second call changes nothing.
pub fn init(level: Level, format: Format) {
    let (queue, lines) = sync_channel(QUEUE_LINES_MAX);
    let thread = std::thread::Builder::new()
        .name("log".into())
        .stack_size(64 * 1024);
    if thread.spawn(move || write_lines(&lines)).is_ok() {
        let _ = LOGGER.set(Logger {
            level,
            format,
            queue,
        });
    }
}

/// Makes panics appear in the log like everything else. The standard hook would write in another
/// format, and would block when nobody reads the log.
pub fn hook_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic
            .location()
            .map_or_else(String::new, ToString::to_string);
        let message = panic.payload_as_str().unwrap_or("no message");
        error(
            "panicked",
            &[
                ("thread", &thread.name().unwrap_or("unnamed")),
                ("at", &place),
                ("reason", &message),
            ],
        );
    }));
}

/// Waits until the lines logged so far are written, at most for `limit`.
pub fn flush(limit: Duration) {
    let Some(logger) = LOGGER.get() else { return };
    let (done, wait) = sync_channel(1);
    if logger.queue.try_send(Queued::Flush(done)).is_ok() {
        let _ = wait.recv_timeout(limit);
    }
}

/// True when a line of `level` would be written.
pub fn enabled(level: Level) -> bool {
    level >= LOGGER.get().map_or(Level::Info, |logger| logger.level)
}

/// Logs at DEBUG.
pub fn debug(message: &str, fields: &[Field<'_>]) {
    write(Level::Debug, message, fields);
}

/// Logs at INFO.
pub fn info(message: &str, fields: &[Field<'_>]) {
    write(Level::Info, message, fields);
}

/// Logs at WARN.
pub fn warn(message: &str, fields: &[Field<'_>]) {
    write(Level::Warn, message, fields);
}

/// Logs at ERROR.
pub fn error(message: &str, fields: &[Field<'_>]) {
    write(Level::Error, message, fields);
}

/// A request target fit for a log: the path, and those query parameters that carry no secret.
/// Presigned URLs and upload states carry secrets in their query.
pub fn target(target: &str) -> String {
    const OPEN: [&str; 7] = ["n", "last", "mount", "from", "digest", "ns", "artifactType"];
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut shown = path.to_owned();
    let mut hidden = false;
    let mut separator = '?';
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let name = parameter.split('=').next().unwrap_or_default();
        if OPEN.contains(&name) {
            shown.push(separator);
            shown.push_str(parameter);
            separator = '&';
        } else {
            hidden = true;
        }
    }
    if hidden {
        shown.push(separator);
        shown.push('…');
    }
    shown
}

fn write(level: Level, message: &str, fields: &[Field<'_>]) {
    if !enabled(level) {
        return;
    }
    let line = line(level, message, fields);
    match LOGGER.get() {
        None => write_stderr(&line),
        Some(logger) => {
            if let Err(TrySendError::Full(_)) = logger.queue.try_send(Queued::Line(line)) {
                metrics::LOG_LINES_DROPPED.inc();
            }
        }
    }
}

fn line(level: Level, message: &str, fields: &[Field<'_>]) -> String {
    match LOGGER.get().map_or(Format::Text, |logger| logger.format) {
        Format::Json => json_line(SystemTime::now(), level, message, fields),
        Format::Text => text_line(SystemTime::now(), level, message, fields),
    }
}

fn text_line(time: SystemTime, level: Level, message: &str, fields: &[Field<'_>]) -> String {
    let mut line = format!(
        "{} {} {}",
        format_rfc3339(time),
        level.name(),
        one_line(message)
    );
    for (name, value) in fields {
        let value = value.to_string();
        let plain = !value.is_empty()
            && value
                .chars()
                .all(|c| c.is_alphanumeric() || "-_.:/@+,%*?&=~…[]".contains(c));
        let _ = if plain {
            write!(line, " {name}={value}")
        } else {
            write!(line, " {name}={}", quoted(&value))
        };
    }
    line.push('\n');
    line
}

fn json_line(time: SystemTime, level: Level, message: &str, fields: &[Field<'_>]) -> String {
    let mut line = format!(
        "{{\"time\":\"{}\",\"level\":\"{}\",\"message\":{}",
        format_rfc3339(time),
        level.name(),
        quoted(message)
    );
    for (name, value) in fields {
        let value = value.to_string();
        // Numbers stay numbers, so that a log store can sum and compare them. `upstream` is a
        // number or a word, so it is always text: a store would refuse a change of type.
        let number = *name != "upstream"
            && !value.is_empty()
            && value.len() < 16
            && value.bytes().all(|b| b.is_ascii_digit())
            && (value == "0" || !value.starts_with('0'));
        let _ = if number {
            write!(line, ",\"{name}\":{value}")
        } else {
            write!(line, ",\"{name}\":{}", quoted(&value))
        };
    }
    line.push_str("}\n");
    line
}

/// A JSON string. The text format quotes in the same way, so that no value can forge a line.
fn quoted(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

fn one_line(message: &str) -> String {
    message.replace(['\n', '\r'], " ")
}

fn write_lines(lines: &Receiver<Queued>) {
    while let Ok(entry) = lines.recv() {
        match entry {
            Queued::Line(line) => write_stderr(&line),
            Queued::Flush(done) => drop(done.try_send(())),
        }
        let dropped = metrics::LOG_LINES_DROPPED.take();
        if dropped > 0 {
            let fields: [Field<'_>; 1] = [("lines", &dropped)];
            write_stderr(&line(Level::Warn, "log lines dropped", &fields));
        }
    }
}

fn write_stderr(line: &str) {
    // A closed standard error is no reason to stop serving.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn a_value_cannot_forge_a_line() {
        let fields: [Field<'_>; 2] = [("path", &"/v2/\n2026 INFO forged"), ("n", &7)];
        let text = text_line(UNIX_EPOCH, Level::Info, "request", &fields);
        assert_eq!(text.lines().count(), 1);
        assert!(
            text.ends_with("INFO request path=\"/v2/\\n2026 INFO forged\" n=7\n"),
            "{text}"
        );
        let json = json_line(UNIX_EPOCH, Level::Info, "request", &fields);
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed["n"], 7);
        assert_eq!(parsed["path"], "/v2/\n2026 INFO forged");
    }

    #[test]
    fn targets_keep_only_open_parameters() {
        assert_eq!(
            target("/v2/a/tags/list?n=5&last=x"),
            "/v2/a/tags/list?n=5&last=x"
        );
        assert_eq!(
            target("/v2/a/blobs/uploads/1?_state=s3cret"),
            "/v2/a/blobs/uploads/1?…"
        );
        assert_eq!(target("/b?X-Amz-Signature=s&n=1"), "/b?n=1&…");
    }
}
