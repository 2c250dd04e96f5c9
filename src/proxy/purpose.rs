//! Why a request is made. Owns: [`Purpose`]. Must not: know how it is answered.

/// Why a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A client has made it, or it is made for one.
    Client,
    /// `PREFETCH`: nobody waits for it.
    Prefetch,
    /// `pull`: somebody waits for it.
    Pull,
}

impl Purpose {
    /// True when a tag is to be confirmed by upstream, however lately it was.
    pub(super) const fn confirms(self) -> bool {
        matches!(self, Self::Prefetch | Self::Pull)
    }
}
