//! The client of a connection. Owns: [`Peer`], [`Certificate`] and [`Entrance`]. Must not: touch a
//! socket.

use std::fmt;
use std::net::IpAddr;

/// The client at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The address the connection comes from; none on a unix socket.
    pub address: Option<IpAddr>,
    /// The port it comes from; 0 on a unix socket.
    pub port: u16,
    /// True when the connection is TLS.
    pub tls: bool,
    /// The client's certificate.
    pub certificate: Certificate,
    /// The address that the client connected to.
    pub entrance: Entrance,
}

impl Peer {
    /// A client on a unix socket, without TLS.
    pub const fn on_unix_socket() -> Self {
        Self {
            address: None,
            port: 0,
            tls: false,
            certificate: Certificate::NotAsked,
            entrance: Entrance::Main,
        }
    }
}

/// An address that clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entrance {
    /// The address of the registry.
    Main,
    /// `METRICS_LISTEN`
    Metrics,
}

/// The client's certificate on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certificate {
    /// The client was asked for one and has none. It may only use the probes.
    Absent,
    /// The client was not asked for one (no `SSL_CLIENT_CA`).
    NotAsked,
    /// Shown and verified.
    Verified,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            Some(address) => write!(f, "{address}:{}", self.port),
            None => f.write_str("unix"),
        }
    }
}
