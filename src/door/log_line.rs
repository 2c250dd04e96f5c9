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
        let (first_byte, id) = (ms(first_byte), self.scope.id());
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
        let (forwarded, upstream_id) = (self.forwarded_for(), self.scope.upstream_id());
        let notes: [Option<log::Field<'_>>; 14] = [
            outcome.login.as_ref().map(|login| ("login", login as _)),
            forwarded
                .as_ref()
                .map(|client| ("forwarded_for", client as _)),
            host.as_ref().map(|host| ("host", host as _)),
            user_agent.as_ref().map(|agent| ("user_agent", agent as _)),
            outcome
                .registry
                .as_ref()
                .map(|registry| ("registry", registry as _)),
            outcome
                .repository
                .as_ref()
                .map(|name| ("repository", name as _)),
            outcome
                .reference
                .as_ref()
                .map(|name| ("reference", name as _)),
            outcome
                .digest
                .as_ref()
                .map(|digest| ("digest", digest as _)),
            cache.as_ref().map(|cache| ("cache", cache as _)),
            outcome
                .upstream_status
                .as_ref()
                .map(|status| ("upstream_status", status as _)),
            outcome
                .upstream_fault
                .as_ref()
                .map(|stage| ("upstream_fault", stage as _)),
            upstream_id
                .as_ref()
                .map(|id| ("upstream_request_id", id as _)),
            outcome.error.as_ref().map(|error| ("error", error as _)),
            cut.as_ref().map(|cut| ("aborted", cut as _)),
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
