//! Settings of what clients may do. Owns: their values and how they are written. Must not: act on
//! them.

/// What clients may do.
#[derive(Debug, Clone, Default)]
pub struct AccessSettings {}
