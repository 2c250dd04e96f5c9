//! What all pushes share: supplying the fields that a registry left out of its answer, and reading
//! from the answer what was done. Must not: change what the registry said.

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

/// Upstream has taken a manifest or a blob with this digest: supplies the fields that name it. Its
/// URL is the client's own path with `from` and all after it replaced by `to` and the digest.
pub(super) fn supply_digest(
    exchange: &Exchange,
    reply: &mut Reply,
    digest: &Digest,
    (from, to): (&str, &str),
) {
    // The digest that upstream names goes before the one that we compute.
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

/// Deleted now, or not there any more.
pub(super) const fn is_gone(reply: &Reply) -> bool {
    is_success(reply) || reply.status == 404
}
