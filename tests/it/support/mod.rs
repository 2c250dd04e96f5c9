//! What tests share: the proxy as a child process, and clients that notice every wrong byte.
#![allow(
    dead_code,
    unused_imports,
    reason = "a toolbox: not every tool is in use at all times"
)]

mod attack;
mod cached;
mod client;
pub(crate) mod door;
mod front;
mod proxy;
mod relay;
mod scratch;
mod tls;

pub(crate) use attack::{Target, in_parallel, raise_descriptors};
pub(crate) use cached::{Begun, Cached, listing};
pub(crate) use client::{Http, Response, raw};
pub(crate) use front::{Front, SOON, error_of, target_of};
pub(crate) use proxy::{Proxy, proxy_for, wait_until};
pub(crate) use relay::Relay;
pub(crate) use scratch::Scratch;
pub(crate) use tls::{Authority, Identity, Pki};
