//! Why no reply came. Owns: the error of everything in this folder. Must not: decide what a client
//! is told of it.

use std::fmt;
use std::time::Duration;

use crate::label::label;
use crate::oci::Registry;

/// Why nothing is asked with `OFFLINE=true`.
pub const OFFLINE: &str = "OFFLINE=true: nothing is asked upstream";

/// Why no reply came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamError {
    /// The stage that failed.
    pub stage: Stage,
    /// The server we called: scheme, host and port, never path or query.
    pub to: String,
    /// The reason in words.
    pub reason: String,
    /// How long the registry wants to be left alone, if it said so.
    pub retry_after: Option<Duration>,
}

impl UpstreamError {
    /// `to`: scheme, host and port of what was asked, or words for it.
    pub fn new(stage: Stage, to: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            stage,
            to: to.into(),
            reason: reason.into(),
            retry_after: None,
        }
    }

    /// A failure of an exchange with `registry`.
    pub fn at(registry: &Registry, stage: Stage, reason: impl Into<String>) -> Self {
        Self::new(stage, registry.url(), reason)
    }
}

label! {
    /// The stage at which an exchange with upstream failed.
    pub enum Stage {
        /// No authorization to send.
        Authorize = "authorize",
        /// The client's own body failed or ended early.
        ClientBody = "client-body",
        /// No connection.
        Connect = "connect",
        /// A redirect that may not be followed, or whose target refuses.
        Redirect = "redirect",
        /// The registry refuses an authorization that is fresh.
        Refused = "authorization refused",
        /// The name has no address.
        Resolve = "resolve",
        /// The connection broke, or what came was not HTTP.
        Transfer = "transfer",
        /// A time-out.
        Timeout = "timeout",
        /// A certificate or handshake.
        Tls = "tls",
        /// Too many exchanges at a time.
        Queue = "queue",
        /// Nothing may be asked: `OFFLINE` is set, or the client wants what the cache has alone.
        Offline = "offline",
        /// The registry asked us to come later.
        Throttled = "throttled",
    }
}

impl Stage {
    /// True when the registry could not be reached at all, so that others need not try at once.
    pub const fn is_out_of_reach(self) -> bool {
        matches!(
            self,
            Self::Connect | Self::Resolve | Self::Timeout | Self::Tls
        )
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            stage, to, reason, ..
        } = self;
        match stage {
            Stage::Authorize => write!(f, "no authorization for {to}: {reason}"),
            Stage::ClientBody => write!(f, "the request's body for {to} broke off: {reason}"),
            Stage::Offline => f.write_str(reason),
            Stage::Queue => write!(f, "no room for a request to {to}: {reason}"),
            Stage::Refused => write!(f, "{to} refused {reason}"),
            Stage::Throttled => write!(f, "{to} throttles us: {reason}"),
            Stage::Timeout => write!(f, "timed out at {to}: {reason}"),
            Stage::Tls => write!(f, "TLS failed for {to}: {reason}"),
            Stage::Connect | Stage::Redirect | Stage::Resolve | Stage::Transfer => {
                write!(f, "{} failed for {to}: {reason}", stage.name())
            }
        }
    }
}

impl std::error::Error for UpstreamError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_counted_by_their_place_in_the_list() {
        for (place, stage) in Stage::ALL.iter().enumerate() {
            assert_eq!(*stage as usize, place, "{stage:?}");
        }
    }
}
