//! What all pushes share: supplying the fields that a registry left out of its answer, and reading
//! from the answer what was done. Must not: change what the registry said.

use crate::cache::names::Scope;
use crate::message::Reply;
use crate::oci::Repository;
use crate::proxy::exchange::Exchange;

/// Sets a field that upstream has left out.
pub(super) fn supply(reply: &mut Reply, name: &str, value: impl FnOnce() -> Option<String>) {
    if reply.headers.first(name).is_none_or(str::is_empty)
        && let Some(value) = value()
    {
        reply.headers.set(name, value);
    }
}

/// A URL of ours: the client's own path with `from` and all after it replaced by `with`.
pub(super) fn own_url(exchange: &Exchange, from: &str, with: &str) -> String {
    let path = exchange.request.path();
    let start = path.rsplit_once(from).map_or(path, |(start, _)| start);
    format!("{}{start}{with}", exchange.client_address().origin)
}

pub(super) const fn is_success(reply: &Reply) -> bool {
    matches!(reply.status, 200..=299)
}

/// Deleted now, or not there any more.
pub(super) const fn is_gone(reply: &Reply) -> bool {
    is_success(reply) || reply.status == 404
}

/// Something was pushed to the repository: what was missing lately may be there now.
pub(super) fn forget_missing(exchange: &Exchange, repository: &Repository) {
    if let Some(cache) = &exchange.parts.cache {
        let registry = &exchange.registry;
        let scope = Scope {
            registry,
            repository,
        };
        cache.negative.forget(&format!("{scope} "));
    }
}
