//! Uploads, manifests and deletions on their way in. Owns: the rule that a push is passed on as it
//! is (streamed, never split, joined or repeated), what a registry owes in its answer and ECR
//! leaves out, and what the cache keeps or must forget after one. Must not: derive offsets from
//! `Range`.

mod manifest;
mod upload;

use super::{Exchange, Pull, fail};
use crate::cache::Cache;
use crate::message::{Reply, RequestBody};
use crate::oci::{Registry, Repository, Route};
use crate::upstream::UpstreamError;
use crate::upstream::exchange::HEAD_TIMEOUT;

/// True for whatever may change something at the registry, and for the state of an upload.
pub(super) fn is_push(route: &Route, method: &str) -> bool {
    match route {
        Route::Upload(_) | Route::Uploads(_) => true,
        Route::Blob(..) | Route::Manifest(..) => !matches!(method, "GET" | "HEAD"),
        Route::Base | Route::Catalog | Route::Referrers(..) | Route::Tags(_) => false,
    }
}

/// The target as the specification has it: an upload begins below `blobs/uploads/`, and a registry
/// may send whoever leaves the slash out somewhere else.
pub(super) fn target(target: String, route: &Route) -> String {
    if !matches!(route, Route::Uploads(_)) {
        return target;
    }
    match target.split_once('?') {
        Some((path, query)) if !path.ends_with('/') => format!("{path}/?{query}"),
        None if !target.ends_with('/') => format!("{target}/"),
        _ => target,
    }
}

/// Passes a push on.
pub(super) fn run(exchange: &Exchange, registry: &Registry, body: &mut RequestBody<'_>) -> Reply {
    let cache = exchange.parts.cache.as_ref();
    let push = Push {
        exchange,
        registry,
        pull: cache.map(|cache| Pull {
            exchange,
            cache,
            registry,
        }),
    };
    let reply = match &exchange.route {
        Route::Uploads(repository) => upload::begin(&push, repository, body),
        Route::Upload(repository) => upload::go_on(&push, repository, body),
        Route::Manifest(repository, reference) => match exchange.request.method.as_str() {
            "PUT" => manifest::put(&push, repository, reference, body),
            _ => manifest::delete(&push, repository, reference, body),
        },
        Route::Blob(repository, digest) => push.forward(body).inspect(|reply| {
            if let (Some(pull), true) = (&push.pull, is_gone(reply)) {
                push.forget(repository);
                pull.cache.names.remove_link(pull.scope(repository), digest);
            }
        }),
        Route::Base | Route::Catalog | Route::Referrers(..) | Route::Tags(_) => push.forward(body),
    };
    reply.unwrap_or_else(|error| fail(&error))
}

/// One push.
struct Push<'a> {
    exchange: &'a Exchange,
    registry: &'a Registry,
    /// None without a cache.
    pull: Option<Pull<'a>>,
}

impl<'a> Push<'a> {
    fn method(&self) -> &str {
        &self.exchange.request.method
    }

    fn cache(&self) -> Option<&'a Cache> {
        self.pull.as_ref().map(|pull| &**pull.cache)
    }

    fn forward(&self, body: &mut RequestBody<'_>) -> Result<Reply, UpstreamError> {
        self.exchange.forward(self.registry, body, HEAD_TIMEOUT)
    }

    /// What lately was not there may be there now.
    fn forget(&self, repository: &Repository) {
        if let Some(pull) = &self.pull {
            pull.cache.negative.forget(&pull.key(repository, &""));
        }
    }

    /// A URL of ours: the client's own path with `from` and all after it replaced by `with`.
    fn own_url(&self, from: &str, with: &str) -> String {
        let path = self.exchange.request.path();
        let start = path.rsplit_once(from).map_or(path, |(start, _)| start);
        format!("{}{start}{with}", self.exchange.own.address)
    }
}

/// Sets a field that upstream has left out.
fn supply(reply: &mut Reply, name: &str, value: impl FnOnce() -> Option<String>) {
    if reply.headers.first(name).is_none_or(str::is_empty)
        && let Some(value) = value()
    {
        reply.headers.set(name, value);
    }
}

const fn is_success(reply: &Reply) -> bool {
    matches!(reply.status, 200..=299)
}

/// Deleted now, or not there any more.
const fn is_gone(reply: &Reply) -> bool {
    is_success(reply) || reply.status == 404
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_begins_below_the_slash() {
        let route = |path| Route::parse(path).unwrap();
        let uploads = route("/v2/a/blobs/uploads/");
        for (asked, sent) in [
            ("/v2/a/blobs/uploads", "/v2/a/blobs/uploads/"),
            ("/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/"),
            (
                "/v2/a/blobs/uploads?mount=x/",
                "/v2/a/blobs/uploads/?mount=x/",
            ),
            ("/v2/a/blobs/uploads/?from=b", "/v2/a/blobs/uploads/?from=b"),
        ] {
            assert_eq!(target(asked.into(), &uploads), sent);
        }
        let upload = route("/v2/a/blobs/uploads/1");
        assert_eq!(
            target("/v2/a/blobs/uploads/1".into(), &upload),
            "/v2/a/blobs/uploads/1"
        );
    }

    #[test]
    fn reading_is_no_push() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (path, method, expected) in [
            ("/v2/a/manifests/1".to_owned(), "GET", false),
            ("/v2/a/manifests/1".to_owned(), "PUT", true),
            (format!("/v2/a/blobs/{digest}"), "HEAD", false),
            (format!("/v2/a/blobs/{digest}"), "DELETE", true),
            ("/v2/a/blobs/uploads/1".to_owned(), "GET", true),
            ("/v2/a/tags/list".to_owned(), "GET", false),
        ] {
            let route = Route::parse(&path).unwrap();
            assert_eq!(is_push(&route, method), expected, "{method} {path}");
        }
    }
}
