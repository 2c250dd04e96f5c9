//! The log line of a request. Owns: which fields it has, and its level. Must not: count, or change
//! a reply.

use std::time::{Duration, Instant};

use super::reply::{WriteFault, Written};
use crate::log::{self, Level, RequestScope};
use crate::message::{Headers, LogNote, Peer};
use crate::metrics::CacheOutcome;

/// Asked every few seconds by machines: their lines are for a person who hunts a fault.
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
    /// Whether a front end may name the client.
    pub(super) forwarded: bool,
}

impl LogLine<'_> {
    /// Writes the line, after the reply.
    pub(super) fn write(
        &self,
        status: u16,
        outcome: &LogNote,
        written: &Written,
        first_byte: Duration,
    ) {
        let path = self.target.split('?').next().unwrap_or_default();
        let is_probe = PROBES.contains(&path);
        let level = match status {
            _ if is_probe => Level::Debug,
            500.. => Level::Warn,
            _ => Level::Info,
        };
        if is_probe && status >= 500 {
            let why = outcome.error.as_deref().unwrap_or_default();
            log::cause(
                Level::Warn,
                "probe failed",
                ("error", &why),
                &[("path", &path)],
            );
        }
        if !log::enabled(level) {
            return;
        }
        let cut = written.fault.as_ref().map(|fault| match fault {
            WriteFault::Client(error) => format!("client: {error}"),
            WriteFault::Source(why) => format!("cut: {why}"),
        });
        let ms = |time: Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
        let (target, duration) = (log::target(self.target), ms(self.started.elapsed()));
        let (first_byte, id) = (ms(first_byte), &self.scope.id);
        let mut fields: Vec<log::Field<'_>> = vec![
            ("method", &self.method),
            ("path", &target),
            ("status", &status),
            ("bytes", &written.bytes),
            ("duration_ms", &duration),
            ("first_byte_ms", &first_byte),
            ("peer", self.peer),
            ("id", &id),
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
        fields.extend(notes.into_iter().flatten());
        log::at(level, "request", &fields);
    }

    fn field(&self, name: &str) -> Option<String> {
        let value = self.headers.first(name).filter(|value| !value.is_empty())?;
        Some(value.chars().take(FIELD_BYTES_MAX).collect())
    }

    /// The client as a front end names it (RFC 7239, or what is older).
    fn forwarded_for(&self) -> Option<String> {
        let names = ["Forwarded", "X-Forwarded-For", "X-Real-IP"];
        let mut named = names.into_iter().filter(|_| self.forwarded);
        named.find_map(|name| self.field(name))
    }
}
