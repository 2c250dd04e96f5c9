//! The limits of the door. Owns: how long it waits for a client and how much it takes from one.
//! Must not: enforce them.

use std::time::Duration;

use super::cross_origin::CrossOrigin;
use super::rate::MinRate;

/// Head bytes at the most, request line included: four times what the longest token-bearing
/// client head needs, and what nginx takes at the most (4 × 8 KiB).
pub const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Field lines at the most: the busiest client sends under 20, a chain of proxies adds a few.
pub const HEAD_FIELDS_MAX: usize = 100;
/// Stack of a connection's thread. An exchange through TLS with a redirect was measured below
/// 64 KiB in a debug build; the rest is reserve, and untouched pages cost no memory.
pub const CONNECTION_STACK_BYTES: usize = 256 * 1024;

/// How long the door waits for a client, how many it takes, and what it adds to replies. Settings
/// and constants in production; tests hand in shorter times.
#[derive(Debug, Clone)]
pub struct DoorLimits {
    /// Connections at a time; further ones take the place of the longest idle one.
    pub connections: usize,
    /// Connections of one client address (IPv6: of one /64) at a time; the same holds among them.
    pub connections_per_peer: usize,
    /// Longest time for a TLS handshake, from the wait for its first byte on. Clients written in Go
    /// (docker, containerd) give up after 10 s, too.
    pub handshake: Duration,
    /// Longest wait for a request on an open connection: above the usual 60 s of load balancers,
    /// so that they close first.
    pub idle: Duration,
    /// Longest time from the first to the last byte of a head.
    pub head: Duration,
    /// Longest wait for the next piece of a request body.
    pub body_idle: Duration,
    /// Longest wait for a client to take the next piece of a reply: three windows of `min_rate`, as
    /// `pace` says.
    pub write_idle: Duration,
    /// A client that sends a body more slowly is cut. One that takes a reply has three windows.
    pub min_rate: MinRate,
    /// Longest time a closing connection is read from, so that the client sees the reply.
    pub linger: Duration,
    /// Bytes a closing connection is read at the most.
    pub linger_bytes: u64,
    /// True when the log also names the client that a front end names.
    pub trust_proxy_headers: bool,
    /// The web pages that may read replies.
    pub cross_origin: CrossOrigin,
}

impl DoorLimits {
    /// The limits in force, with `connections` at a time, of all clients together.
    pub const fn new(connections: usize) -> Self {
        Self {
            connections,
            connections_per_peer: connections,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            head: Duration::from_secs(20),
            body_idle: Duration::from_secs(60),
            write_idle: Duration::from_secs(180),
            min_rate: MinRate {
                bytes_per_second: 256,
                window: Duration::from_secs(60),
            },
            linger: Duration::from_secs(10),
            linger_bytes: 64 << 20,
            trust_proxy_headers: true,
            cross_origin: CrossOrigin::none(),
        }
    }
}
