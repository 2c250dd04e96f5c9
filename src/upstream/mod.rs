//! Everything that goes out: registries and AWS. Owns: every outgoing connection. Must not: know
//! what is cached, or how an AWS identity comes about (an [`Authorizer`] is handed in).

mod address_rule;
pub mod api;
mod attempt;
pub mod authorizer;
mod breaker;
mod call;
pub mod client;
mod connector;
mod contact;
pub mod dns;
mod early;
mod error;
pub mod exchange;
mod fault;
pub mod incoming;
pub mod loopback;
pub mod outbound;
mod part;
pub mod redirect;
pub mod resolver;
mod roots;
pub mod secrets;
mod steps;
mod tcp;
mod throttle;

pub use self::address_rule::AddressRule;
pub use self::api::{Api, ApiCall, ApiReply};
pub use self::authorizer::{AuthFault, Authorizer, FixedToken, Grant};
pub use self::error::{OFFLINE, Stage, UpstreamError};
pub use self::tcp::connect;
