//! Everything that goes out: registries and AWS. Owns: every outgoing connection. Must not: know
//! what is cached, or how an AWS identity comes about (an [`Authorizer`] is handed in).

pub mod api;
pub mod authorizer;
pub mod breaker;
pub mod client;
mod connector;
pub mod dns;
mod early;
mod error;
pub mod exchange;
mod fault;
pub mod loopback;
pub mod outbound;
pub mod redirect;
pub mod resolver;
mod scrub;
mod tcp;

pub use self::api::{Api, ApiCall, ApiReply};
pub use self::authorizer::{Anonymous, AuthFault, Authorizer, Grant};
pub use self::error::{Stage, UpstreamError};
