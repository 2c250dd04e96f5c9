//! A request for a registry, and its answer. Owns: [`Call`] and [`Fetched`]. Must not: send
//! anything.

use std::time::Duration;

use super::breaker::Patience;
use super::error::{Stage, UpstreamError};
use super::incoming::Incoming;
use super::redirect::Url;
use crate::message::Headers;
use crate::oci::Registry;

/// Longest time from a request to its reply's head: containerd gives up at 30 s.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(25);

/// A shorter patience judges us and not the registry: an older answer is at hand, or the client has
/// waited for something else before.
const FULL_PATIENCE_MIN: Duration = Duration::from_secs(10);

/// A request for a registry.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The registry.
    pub registry: &'a Registry,
    /// The method.
    pub method: &'a str,
    /// Path and query, sent byte for byte.
    pub target: &'a str,
    /// Fields, without `Host`, framing and `Authorization`.
    pub headers: &'a Headers,
    /// Longest wait for the reply's head, [`HEAD_TIMEOUT`] at the most. It is less where an older
    /// answer is at hand, or where a part of the time has gone already.
    pub patience: Duration,
    /// The reply's body must come within the time for its head, too.
    pub whole: bool,
}

impl Call<'_> {
    /// True for a request that pushes something.
    pub(super) fn is_upload(&self) -> bool {
        matches!(self.method, "PATCH" | "POST" | "PUT")
    }

    /// Whether a time-out of this call says something about the registry.
    pub(super) fn patience_kind(&self) -> Patience {
        if self.patience < FULL_PATIENCE_MIN {
            Patience::Short
        } else {
            Patience::Full
        }
    }

    pub(super) fn url(&self) -> Url {
        Url::for_registry(self.registry, self.target)
    }

    pub(super) fn fault(&self, stage: Stage, reason: impl Into<String>) -> UpstreamError {
        UpstreamError::at(self.registry, stage, reason)
    }
}

/// A registry's reply.
pub struct Fetched {
    /// The reply.
    pub reply: Incoming,
    /// The reply comes from a blob host that the registry named.
    pub redirected: bool,
}
