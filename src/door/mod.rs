//! The door: the client's socket from accept to close. Owns: connections, request heads and their
//! limits, body framing, writing replies. Must not: know what a request means (a worker says),
//! or talk to upstream except by running the exchange it was handed.
//!
//! `accept` hands each connection to a thread of its own and `connections` keeps the list of them;
//! `connection` runs the loop there: `tls` shakes hands, `head` checks what came, `lanes` asks a
//! worker, `body` feeds the exchange, `cross_origin` says which web pages may read the answer,
//! `reply` writes it. `rate` and `pace` find clients that are too slow, `peers` those that are too
//! many.

mod accept;
mod body;
mod connection;
mod connections;
mod cross_origin;
#[cfg(any(fuzzing, test))]
#[path = "../../fuzz/hooks/door.rs"]
pub mod fuzz;
mod head;
mod lanes;
mod limits;
mod log_line;
mod pace;
mod peers;
mod rate;
mod recent;
mod reply;
mod request_id;
mod socket;
mod stream;
mod tls;

pub use accept::{Door, Drained};
pub use cross_origin::CrossOrigin;
pub use head::{Head, HeadParser};
pub use lanes::{Lanes, Workers};
pub use limits::{CONNECTION_STACK_BYTES, DoorLimits, HEAD_BYTES_MAX, HEAD_FIELDS_MAX};
pub use rate::MinRate;
pub use stream::Listener;
pub use tls::{ServerTls, TlsFiles};
