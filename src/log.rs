//! Logging. Owns: the log's format, its writer thread, and the choice of what may be shown of a
//! request target. Must not: block the caller, ever.
//!
//! Lines go to a bounded queue that one thread, `log`, writes to standard error. When nobody reads
//! the log (a full pipe), lines are dropped and counted: a stuck log collector stops no pull.
//!
//! Each request has one line. Whatever else a request or a connection can cause goes through
//! [`cause`], which writes it once a minute.
//!
//! Locks: the table of repeated causes, held for a look-up.

mod fields;
mod level;
mod repeats;
mod scope;

use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{LazyLock, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use crate::calendar::format_rfc3339;
use crate::locked::Locked as _;
use crate::metrics;
pub use fields::{Field, optional};
use fields::{quote, shorten};
pub use level::{Format, Level};
use repeats::Repeats;
pub use scope::RequestScope;

/// Lines that may wait for the writer thread: at 300 bytes a line about 1.2 MB.
const QUEUE_LINES_MAX: usize = 4096;
/// Longest request target in a line. Names and digests fit; a client may send 32 KiB.
const TARGET_BYTES_MAX: usize = 512;
/// Room for a line: that of a request has 300 to 500 bytes.
const LINE_BYTES: usize = 512;
/// Longest value of a field: an error may quote what a client or a registry sent.
const VALUE_BYTES_MAX: usize = 1024;
/// Time between two checks of the causes that were left out.
const REPEATS_POLL: Duration = Duration::from_secs(5);

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
static REPEATS: LazyLock<Mutex<Repeats>> = LazyLock::new(Mutex::default);

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
        let thread = thread.name().unwrap_or("unnamed");
        let place = panic.location().map(ToString::to_string);
        let place = place.unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("no message");
        let fields: [Field<'_>; 3] = [("thread", &thread), ("place", &place), ("reason", &reason)];
        error("panicked", &fields);
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
    at(Level::Debug, message, fields);
}

/// Logs at INFO.
pub fn info(message: &str, fields: &[Field<'_>]) {
    at(Level::Info, message, fields);
}

/// Logs at WARN.
pub fn warn(message: &str, fields: &[Field<'_>]) {
    at(Level::Warn, message, fields);
}

/// Logs at ERROR.
pub fn error(message: &str, fields: &[Field<'_>]) {
    at(Level::Error, message, fields);
}

/// Logs a line that a request or a connection can cause. A line with the same message and the same
/// text is left out for a minute. The next one then says in `repeated` how many were left out.
pub fn cause(
    level: Level,
    message: &'static str,
    (name, text): (&'static str, &dyn Display),
    fields: &[Field<'_>],
) {
    if !enabled(level) {
        return;
    }
    let text = text.to_string();
    let noted = REPEATS
        .locked()
        .note(Instant::now(), level, message, (name, &text));
    let Some(repeated) = noted else { return };
    let mut fields = fields.to_vec();
    fields.push((name, &text));
    if repeated > 0 {
        fields.push(("repeated", &repeated));
    }
    at(level, message, &fields);
}

/// A request target fit for a log: the path, and those query parameters that carry no secret.
/// Presigned URLs and upload states carry secrets in their query. The result is cut
/// at [`TARGET_BYTES_MAX`].
pub fn target(target: &str) -> String {
    const OPEN: [&str; 7] = ["n", "last", "mount", "from", "digest", "ns", "artifactType"];
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let is_open = |pair: &&str| OPEN.iter().any(|name| pair.split('=').next() == Some(name));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let (mut open, hidden): (Vec<&str>, Vec<&str>) = pairs.partition(is_open);
    if !hidden.is_empty() {
        open.push("…");
    }
    let mut shown = path.to_owned();
    if !open.is_empty() {
        shown = format!("{path}?{}", open.join("&"));
    }
    shorten(&mut shown, TARGET_BYTES_MAX);
    shown
}

/// Logs at `level`.
pub fn at(level: Level, message: &str, fields: &[Field<'_>]) {
    if !enabled(level) {
        return;
    }
    let scope = RequestScope::current();
    let mut fields = fields.to_vec();
    if let Some(scope) = &scope
        && fields.iter().all(|(name, _)| *name != "id")
    {
        fields.push(("id", &scope.id));
    }
    let line = line(level, message, &fields);
    let Some(logger) = LOGGER.get() else {
        return write_stderr(&line);
    };
    if let Err(TrySendError::Full(_)) = logger.queue.try_send(Queued::Line(line)) {
        metrics::LOG_LINES_DROPPED.inc();
    }
}

fn line(level: Level, message: &str, fields: &[Field<'_>]) -> String {
    let format = LOGGER.get().map_or(Format::Text, |logger| logger.format);
    format_line(format, level, message, fields)
}

/// Formats a line as the log would write it now, with its line end: for output without a log.
pub fn format_line(format: Format, level: Level, message: &str, fields: &[Field<'_>]) -> String {
    let (time, level) = (format_rfc3339(SystemTime::now()), level.name());
    // Each request writes a line: its text takes room once, and so do its values. Writing to a
    // string cannot fail.
    let (mut line, mut text) = (String::with_capacity(LINE_BYTES), String::new());
    let _ = match format {
        Format::Json => write!(
            line,
            "{{\"time\":\"{time}\",\"level\":\"{level}\",\"message\":{}",
            quote(message)
        ),
        Format::Text => write!(
            line,
            "{time} {level} {}",
            message.replace(['\n', '\r'], " ")
        ),
    };
    for (name, value) in fields {
        text.clear();
        let _ = write!(text, "{value}");
        shorten(&mut text, VALUE_BYTES_MAX);
        let _ = match format {
            Format::Json => write!(line, ",\"{name}\":{}", fields::json(name, &text)),
            Format::Text => write!(line, " {name}={}", fields::text(&text)),
        };
    }
    line.push_str(match format {
        Format::Json => "}\n",
        Format::Text => "\n",
    });
    line
}

fn write_lines(lines: &Receiver<Queued>) {
    let mut looked = Instant::now();
    let mut reported = 0;
    loop {
        match lines.recv_timeout(REPEATS_POLL) {
            Ok(Queued::Line(line)) => write_stderr(&line),
            Ok(Queued::Flush(done)) => {
                // The process ends: nothing will be written later.
                write_left_out(Duration::ZERO);
                let _ = done.try_send(());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if looked.elapsed() >= REPEATS_POLL {
            looked = Instant::now();
            write_left_out(repeats::INTERVAL);
        }
        let all = metrics::LOG_LINES_DROPPED.get();
        let dropped = all - std::mem::replace(&mut reported, all);
        if dropped > 0 {
            let fields: [Field<'_>; 1] = [("lines", &dropped)];
            write_stderr(&line(Level::Warn, "log lines dropped", &fields));
        }
    }
}

/// Writes how often causes repeated that nobody logs any more.
fn write_left_out(age: Duration) {
    let mut lines = String::new();
    REPEATS
        .locked()
        .take(Instant::now(), age, |level, message, fields| {
            lines.push_str(&line(level, message, fields));
        });
    write_stderr(&lines);
}

fn write_stderr(line: &str) {
    // A closed standard error is no reason to stop serving.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_forge_a_line() {
        let fields: [Field<'_>; 2] = [("path", &"/v2/\n2026 INFO forged"), ("bytes", &7)];
        let text = format_line(Format::Text, Level::Info, "request", &fields);
        assert_eq!(text.lines().count(), 1);
        assert!(
            text.ends_with("INFO request path=\"/v2/\\n2026 INFO forged\" bytes=7\n"),
            "{text}"
        );
        let json = format_line(Format::Json, Level::Info, "request", &fields);
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed["bytes"], 7);
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

    #[test]
    fn long_values_are_cut() {
        let long = "x".repeat(VALUE_BYTES_MAX + 1);
        let fields: [Field<'_>; 1] = [("error", &long)];
        for format in [Format::Text, Format::Json] {
            let line = format_line(format, Level::Info, "m", &fields);
            let kept = format!("{}…", "x".repeat(VALUE_BYTES_MAX));
            assert!(line.contains(&kept), "{line}");
        }
    }

    #[test]
    fn long_targets_are_cut() {
        let just = format!("/{}", "a".repeat(TARGET_BYTES_MAX - 1));
        assert_eq!(target(&just), just);
        assert_eq!(target(&format!("{just}b")), format!("{just}…"));
        let long = target(&format!("/v2/a/tags/list?last={}", "é".repeat(20_000)));
        assert!(long.len() <= TARGET_BYTES_MAX + "…".len() && long.ends_with("é…"));
    }
}
