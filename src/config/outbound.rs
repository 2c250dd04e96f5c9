//! Settings of the way out. Owns: their values and how they are written. Must not: act on
//! them.

/// The way out to registries and AWS.
#[derive(Debug, Clone, Default)]
pub struct OutboundSettings {}
