//! Why a request is made, and in whose name the proxy makes its own. Owns: [`Purpose`] and
//! [`OwnClient`]. Must not: know how a request is answered.

use std::sync::Arc;

use crate::cache::names::OwnedScope;
use crate::message::Request;

/// Why a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A client has made it, or it is made for one.
    Client,
    /// `PREFETCH`: nobody waits for it.
    Prefetch,
    /// `pull`: somebody waits for it.
    Pull,
}

impl Purpose {
    /// True when upstream has to confirm a tag, even if it did so a moment ago.
    pub(super) const fn confirms_tags(self) -> bool {
        matches!(self, Self::Prefetch | Self::Pull)
    }
}

/// The client in whose name the proxy itself asks for the content of a repository.
#[derive(Debug, Clone)]
pub(super) struct OwnClient {
    pub(super) scope: OwnedScope,
    /// The request whose fields are used, since `CACHE_KEY` may read them.
    pub(super) like: Arc<Request>,
    /// 0 for a manifest that a client asked for; 1 for one that refers to such a manifest.
    pub(super) depth: u8,
    pub(super) purpose: Purpose,
}
