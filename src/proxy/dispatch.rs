//! The exchange of one request, run by its connection's thread. Owns: which registry is asked,
//! which handler answers, and what the log says was asked for. Must not: answer anything itself.

use std::sync::Arc;
use std::time::Instant;

use super::answer::{fail, refuse};
use super::exchange::{Exchange, Parts};
use super::headers::DIGEST_FIELD;
use super::purpose::Purpose;
use super::registries::{self, Choice, ResolvedRequest};
use super::{blob, listing, manifest, push, referrers};
use crate::message::{Reply, Request, RequestBody};
use crate::oci::{Digest, Reference, Registry, Route};

/// A request that the rules let pass.
pub(super) struct Accepted {
    pub(super) request: Arc<Request>,
    pub(super) resolved: ResolvedRequest,
    /// See [`Exchange::depth`].
    pub(super) depth: u8,
    /// See [`Exchange::purpose`].
    pub(super) purpose: Purpose,
    /// See [`Exchange::deadline`].
    pub(super) deadline: Instant,
}

/// Gets the answer to a request. Blocks while upstream is asked.
pub(super) fn run(parts: &Arc<Parts>, accepted: Accepted, body: &mut RequestBody<'_>) -> Reply {
    let Accepted {
        request,
        mut resolved,
        depth,
        purpose,
        deadline,
    } = accepted;
    match &resolved.route {
        Route::Catalog | Route::Tags(_) => {
            match listing::target(&resolved.route, &resolved.target, parts.is_ecr) {
                Ok(target) => resolved.target = target,
                Err(error) => return refuse(&error),
            }
        }
        Route::Uploads(_) => {
            let mount_is_open = parts.access.mount_is_open(&resolved.query);
            resolved.target = push::target(resolved.target, &resolved.route, mount_is_open);
        }
        _ => {}
    }
    let registry = match resolve_registry(parts, &resolved.choice, deadline) {
        Ok(registry) => registry,
        Err(reply) => return *reply,
    };
    let exchange = Exchange {
        parts: Arc::clone(parts),
        registry,
        request,
        resolved,
        depth,
        purpose,
        deadline,
    };
    let mut reply = answer(&exchange, body);
    note_target(&mut reply, &exchange.resolved.route);
    reply.outcome.registry = Some(exchange.registry);
    reply
}

fn answer(exchange: &Exchange, body: &mut RequestBody<'_>) -> Reply {
    let method = exchange.request.method.as_str();
    let reads = matches!(method, "GET" | "HEAD");
    let passed_on = match &exchange.resolved.route {
        Route::Blob(repository, digest) if reads => return blob::get(exchange, repository, digest),
        Route::Manifest(repository, reference) if reads => {
            return manifest::get(exchange, repository, reference);
        }
        Route::Catalog => return listing::get(exchange, None),
        Route::Tags(repository) => return listing::get(exchange, Some(repository)),
        Route::Referrers(repository, digest) => {
            return referrers::get(exchange, repository, digest);
        }
        Route::Blob(repository, digest) => {
            push::upload::delete_blob(exchange, repository, digest, body)
        }
        Route::Manifest(repository, reference) if method == "PUT" => {
            push::manifest::put(exchange, repository, reference, body)
        }
        Route::Manifest(repository, reference) => {
            push::manifest::delete(exchange, repository, reference, body)
        }
        Route::Uploads(repository) => push::upload::begin(exchange, repository, body),
        Route::Upload(repository) => push::upload::go_on(exchange, repository, body),
        Route::Base => exchange.forward(body),
    };
    passed_on.unwrap_or_else(|error| fail(&error))
}

/// The registry that the client names, else the first that is set, else the identity's, else,
/// before there is an identity, the one that the cache was filled from. The error is the answer.
pub(super) fn resolve_registry(
    parts: &Parts,
    choice: &Choice,
    deadline: Instant,
) -> Result<Registry, Box<Reply>> {
    if let Choice::Known(registry) = choice {
        return Ok(registry.clone());
    }
    let known = parts.registries.list.first().cloned();
    let registry = match known.or_else(|| parts.own_registry()) {
        Some(registry) => registry,
        None => parts
            .ask_registry(deadline)
            .map_err(|error| Box::new(fail(&error)))?,
    };
    match choice {
        Choice::IfCalled(name) if !registries::is_named(&registry, name) => {
            Err(Box::new(refuse(&registries::unknown_registry(name))))
        }
        _ => Ok(registry),
    }
}

/// Notes for the log what a route names. A tag's digest is the one that the reply names.
pub(super) fn note_target(reply: &mut Reply, route: &Route) {
    let (repository, reference, digest) = match route {
        Route::Base | Route::Catalog => return,
        Route::Blob(repository, digest) | Route::Referrers(repository, digest) => {
            (repository, None, Some(digest.clone()))
        }
        Route::Manifest(repository, reference) => {
            let named = reply.headers.first(DIGEST_FIELD);
            let named = named.and_then(|named| named.parse::<Digest>().ok());
            let digest = match reference {
                Reference::Digest(digest) => Some(digest.clone()),
                Reference::Tag(_) => named,
            };
            (repository, Some(reference.as_str().to_owned()), digest)
        }
        Route::Tags(repository) | Route::Upload(repository) | Route::Uploads(repository) => {
            (repository, None, None)
        }
    };
    reply.outcome.repository = Some(repository.clone());
    reply.outcome.reference = reference;
    reply.outcome.digest = digest;
}
