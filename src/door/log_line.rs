//! The log line of a request. Owns: which fields it has, and its level. Must not: count, or change
//! a reply.

use std::time::{Duration, Instant};

use super::reply::WriteFault;
use crate::log::{self, Level, RequestScope};
use crate::message::{Headers, LogNote, Peer};
use crate::metrics::{CacheOutcome, Finished};

/// Paths that machines ask for every few seconds. Their lines are written at DEBUG.
const PROBES: [&str; 4] = ["/healthz", "/readyz", "/metrics", "/status.json"];
/// Longest value of a client's field in a line.
const FIELD_BYTES_MAX: usize = 256;

/// A request, as far as the log names it.
pub(super) struct LogLine<'a> {
    pub(super) started: Instant,
    pub(super) peer: &'a Peer,
    pub(super) scope: &'a RequestScope,
    pub(super) method: &'a str,
    pub(super) target: &'a str,
    pub(super) headers: &'a Headers,
    /// True when a front end may name the client.
    pub(super) forwarded: bool,
}

impl LogLine<'_> {
    /// Writes the line, after the reply. `fault`: why the reply is not whole.
    pub(super) fn write(&self, end: &Finished<'_>, outcome: &LogNote, fault: Option<&WriteFault>) {
        let path = self.target.split('?').next().unwrap_or_default();
        let is_probe = PROBES.contains(&path);
        let level = match end.status {
            _ if is_probe => Level::Debug,
            500.. => Level::Warn,
            _ => Level::Info,
        };
        if is_probe && end.status >= 500 {
            let why = outcome.error.as_deref().unwrap_or_default();
            let path: [log::Field<'_>; 1] = [("path", &path)];
            log::cause(Level::Warn, "probe failed", ("error", &why), &path);
        }
        if !log::enabled(level) {
            return;
        }
        let cut = fault.map(|fault| match fault {
            WriteFault::Client(error) => format!("client: {error}"),
            WriteFault::Source(why) => format!("cut: {why}"),
        });
        let ms = |time: Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
        let target = log::target(self.target);
        let fields: [log::Field<'_>; 8] = [
            ("method", &self.method),
            ("path", &target),
            ("status", &end.status),
            ("bytes", &end.bytes),
            ("duration_ms", &ms(end.duration)),
            ("first_byte_ms", &ms(end.first_byte)),
            ("peer", self.peer),
            ("id", &self.scope.id),
        ];
        let [host, user_agent] = ["Host", "User-Agent"].map(|name| self.field(name));
        let cache = outcome.cache.map(CacheOutcome::name);
        let (forwarded, upstream_id) = (self.forwarded_for(), self.scope.upstream().id);
        let notes: [Option<log::Field<'_>>; 14] = [
            log::optional("login", &outcome.login),
            log::optional("forwarded_for", &forwarded),
            log::optional("host", &host),
            log::optional("user_agent", &user_agent),
            log::optional("registry", &outcome.registry),
            log::optional("repository", &outcome.repository),
            log::optional("reference", &outcome.reference),
            log::optional("digest", &outcome.digest),
            log::optional("cache", &cache),
            log::optional("upstream_status", &outcome.upstream_status),
            log::optional("upstream_fault", &outcome.upstream_fault),
            log::optional("upstream_request_id", &upstream_id),
            log::optional("error", &outcome.error),
            log::optional("aborted", &cut),
        ];
        let fields = fields.into_iter().chain(notes.into_iter().flatten());
        log::at(level, "request", &fields.collect::<Vec<_>>());
    }

    fn field(&self, name: &str) -> Option<String> {
        let value = self.headers.first(name).filter(|value| !value.is_empty())?;
        Some(value.chars().take(FIELD_BYTES_MAX).collect())
    }

    /// The client as a front end names it (RFC 7239, or the older fields).
    fn forwarded_for(&self) -> Option<String> {
        let names = ["Forwarded", "X-Forwarded-For", "X-Real-IP"];
        let mut named = names.into_iter().filter(|_| self.forwarded);
        named.find_map(|name| self.field(name))
    }
}
