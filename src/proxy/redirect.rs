//! `BLOB_REDIRECT=pass`. Owns: handing the registry's redirect of a blob to the client. Must not:
//! change where it leads: the URL is signed, and good for the client as it is.

use super::answer::{CacheOutcome, mark, or_fail};
use super::content;
use super::exchange::Exchange;
use crate::message::Reply;
use crate::oci::Digest;

/// Asks the registry and passes its answer on, redirects too.
pub(super) fn pass(exchange: &Exchange, digest: &Digest) -> Reply {
    let client = &exchange.request.headers;
    let reply = exchange.forward_unfollowed();
    let reply = reply.map(|reply| content::finish_blob(reply, digest, client));
    mark(or_fail(reply), CacheOutcome::Bypass)
}
