//! Results of a question to upstream, which all clients that ask at the same time share. Owns:
//! their types. Must not: do anything.

use std::time::SystemTime;

use crate::cache::held::Manifest;
use crate::message::{Buffered, Headers, WholeBody};
use crate::upstream::UpstreamError;

/// The result of asking for a manifest.
#[derive(Debug, Clone)]
pub(super) enum ManifestLookup {
    Failed(UpstreamError),
    /// Upstream confirmed what we have, or sent it anew.
    Found(Manifest, Freshness),
    /// Upstream answered something else.
    Refused(Buffered),
    /// A manifest that is passed on as it is, without being verified or kept: a signed one.
    Signed(Buffered),
    /// Too large to keep.
    TooLarge,
    /// A manifest of a type that the client does not accept. The client gets it all the same, as
    /// from a registry, but the manifest is not kept.
    Unaccepted(Buffered),
}

/// Where a manifest comes from, and when the registry itself last confirmed it. That time has
/// passed when another proxy answered from its own cache.
#[derive(Debug, Clone)]
pub(super) enum Freshness {
    Fetched(SystemTime),
    Revalidated(SystemTime),
    /// Upstream could not confirm it.
    Stale(UpstreamError, SystemTime),
}

/// The result of asking for a page of a list.
#[derive(Debug, Clone)]
pub(super) enum PageLookup {
    Failed(UpstreamError),
    Found(FoundPage),
    /// Upstream answered something else.
    Refused(Buffered),
    /// Too long to be read whole.
    TooLarge,
}

/// A page of a list as upstream sent it just now. A clone shares its body.
#[derive(Debug, Clone)]
pub(super) struct FoundPage {
    /// All of upstream's fields.
    pub(super) headers: Headers,
    pub(super) body: WholeBody,
}
