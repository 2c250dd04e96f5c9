//! The common part of all pushes: supplying the fields that a registry left out of its answer, and
//! reading from the answer what was done. Must not: change what the registry said.

use crate::message::Reply;
use crate::oci::Digest;
use crate::proxy::exchange::Exchange;
use crate::proxy::headers::DIGEST_FIELD;
use crate::proxy::links;

/// Sets a field that upstream has left out.
pub(super) fn supply(reply: &mut Reply, name: &str, value: String) {
    if lacks(reply, name) {
        reply.headers.set(name, value);
    }
}

/// True for a field that upstream has left out.
pub(super) fn lacks(reply: &Reply, name: &str) -> bool {
    reply.headers.first(name).is_none_or(str::is_empty)
}

/// Supplies the fields that name a manifest or a blob that upstream has taken. Its URL is the
/// client's own path, in which `to` and the digest replace `from` and everything after it.
pub(super) fn supply_digest(
    exchange: &Exchange,
    reply: &mut Reply,
    digest: &Digest,
    from: &str,
    to: &str,
) {
    // The digest that upstream names takes precedence over the one that we compute.
    supply(reply, DIGEST_FIELD, digest.to_string());
    if lacks(reply, "Location") {
        let named = reply.headers.first(DIGEST_FIELD).unwrap_or_default();
        let path = exchange.request.path();
        let start = path.rsplit_once(from).map_or(path, |(start, _)| start);
        let origin = links::own_origin(&exchange.request, exchange.parts.trust_proxy_headers);
        let url = format!("{origin}{start}{to}{named}");
        reply.headers.set("Location", url);
    }
}

pub(super) const fn is_success(reply: &Reply) -> bool {
    matches!(reply.status, 200..=299)
}

/// True when the content is deleted now, or was not there any more.
pub(super) const fn is_gone(reply: &Reply) -> bool {
    is_success(reply) || reply.status == 404
}
