//! Settings of how clients are listened to. Owns: their values and how they are written. Must
//! not: act on them.

/// TLS towards clients.
#[derive(Debug, Clone, Default)]
pub struct TlsSettings {}
