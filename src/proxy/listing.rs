//! Lists of tags and repositories. Owns: what a list is owed on its way to the client, and the list
//! of what is cached when upstream is out of reach. Must not: read or make up a cursor of the
//! registry's.

use std::time::Duration;

use super::{CacheOutcome, Pull, fail, headers, marked, stale_warning};
use crate::message::{Reply, RequestBody};
use crate::oci::Route;
use crate::upstream::exchange::HEAD_TIMEOUT;
use crate::upstream::{Stage, UpstreamError};

/// Longest wait for upstream's list where names are cached: longer than for a tag, since the cache
/// knows but a few of all names.
const STALE_PATIENCE: Duration = Duration::from_secs(5);
/// Names on a page at the most, as ECR has it.
const PAGE_MAX: usize = 1000;

/// ECR sends lists as `text/plain`, which some clients do not read as JSON.
pub(super) fn names(reply: Reply) -> Reply {
    let media_type = reply.headers.first("Content-Type").unwrap_or_default();
    if reply.status == 200 && !media_type.starts_with("application/") {
        return reply.with("Content-Type", "application/json");
    }
    reply
}

/// Upstream's list; if it fails for any reason but that there is none, the list of what is cached.
pub(super) fn get(pull: &Pull<'_>) -> Reply {
    let mut nothing = std::io::empty();
    let body = &mut RequestBody::new(&mut nothing, Some(0));
    let held = held(pull);
    let patience = match held.is_empty() {
        true => HEAD_TIMEOUT,
        false => STALE_PATIENCE,
    };
    let why = match pull.exchange.forward(pull.registry, body, patience) {
        Ok(reply) if matches!(reply.status, 401 | 403 | 429 | 500..=599) => {
            let why = UpstreamError {
                stage: Stage::Transfer,
                to: pull.registry.url(),
                reason: format!("it answered {}", reply.status),
            };
            return cached(pull, &held, &why).unwrap_or(reply);
        }
        Ok(reply) => return reply,
        Err(error) => error,
    };
    cached(pull, &held, &why).unwrap_or_else(|| fail(&why))
}

/// The names that are cached.
fn held(pull: &Pull<'_>) -> Vec<String> {
    match &pull.exchange.route {
        Route::Tags(repository) => pull.cache.names.tags(pull.scope(repository)),
        _ => pull.cache.names.repositories(pull.registry),
    }
}

/// The list of what is cached; none when there is nothing.
fn cached(pull: &Pull<'_>, all: &[String], why: &UpstreamError) -> Option<Reply> {
    if all.is_empty() {
        return None;
    }
    let (field, head) = match &pull.exchange.route {
        Route::Tags(repository) => ("tags", serde_json::json!({"name": repository.as_str()})),
        _ => ("repositories", serde_json::json!({})),
    };
    let query = pull.exchange.request.query().unwrap_or_default();
    let (page, more) = page(all, query);
    let mut document = head;
    if let Some(document) = document.as_object_mut() {
        document.insert(field.to_owned(), serde_json::json!(page));
    }
    let mut reply = Reply::new(200, "application/json", document.to_string())
        .with(super::API_VERSION.0, super::API_VERSION.1)
        .with("Warning", stale_warning(why));
    if let (true, Some(last)) = (more, page.last()) {
        let (own, path) = (&pull.exchange.own, &pull.exchange.path);
        let next = format!("<{path}?n={}&last={last}>; rel=\"next\"", page.len());
        reply.headers.set("Link", headers::rewrite_link(&next, own));
    }
    Some(marked(reply, CacheOutcome::Stale))
}

/// The names after `last`, at most `n` of them, and whether there are more.
fn page<'a>(all: &'a [String], query: &str) -> (Vec<&'a str>, bool) {
    let parameter = |wanted: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| value)
    };
    // Names hold nothing that needs encoding, but a client may encode their slashes.
    let last = parameter("last").map(|last| last.replace("%2F", "/").replace("%2f", "/"));
    let count = parameter("n")
        .and_then(|n| n.parse().ok())
        .unwrap_or(PAGE_MAX)
        .min(PAGE_MAX);
    let after = |name: &&String| last.as_ref().is_none_or(|last| *name > last);
    let mut rest = all.iter().filter(after).map(String::as_str);
    let page: Vec<&str> = rest.by_ref().take(count).collect();
    (page, count > 0 && rest.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_json() {
        let plain = Reply::new(200, "text/plain; charset=utf-8", "{}");
        assert_eq!(
            names(plain).headers.first("Content-Type"),
            Some("application/json")
        );
        let error = Reply::new(500, "text/plain", "down");
        assert_eq!(
            names(error).headers.first("Content-Type"),
            Some("text/plain")
        );
    }

    #[test]
    fn pages() {
        let all: Vec<String> = ["a", "b/c", "d"].map(str::to_owned).into();
        assert_eq!(page(&all, ""), (vec!["a", "b/c", "d"], false));
        assert_eq!(page(&all, "n=2"), (vec!["a", "b/c"], true));
        assert_eq!(page(&all, "n=2&last=b%2Fc"), (vec!["d"], false));
        assert_eq!(page(&all, "last=d"), (vec![], false));
        assert_eq!(page(&all, "n=0"), (vec![], false));
        assert_eq!(page(&all, "n=-1&last="), (vec!["a", "b/c", "d"], false));
    }
}
