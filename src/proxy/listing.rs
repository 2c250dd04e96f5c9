//! Lists of tags and repositories. Owns: what a list is owed on its way to the client, what of the
//! catalogue may be seen, and the list of what is cached when upstream is out of reach. Must not:
//! read or make up a cursor of the registry's.

use std::time::Duration;

use super::access::Access;
use super::{CacheOutcome, Pull, fail, marked, pull, stale_warning};
use crate::message::{Body, Reply, RequestBody};
use crate::oci::{Registry, Route};
use crate::upstream::exchange::HEAD_TIMEOUT;
use crate::upstream::{Stage, UpstreamError};

/// Longest wait for upstream's list where names are cached: longer than for a tag, since the cache
/// knows but a few of all names.
const STALE_PATIENCE: Duration = Duration::from_secs(5);
/// Names on a page at the most, as ECR has it.
const PAGE_MAX: usize = 1000;
/// Longest page of a catalogue that is read to be filtered: ten times what [`PAGE_MAX`] names of
/// 256 characters make, for registries that know no pages.
const CATALOGUE_BYTES_MAX: u64 = 4 << 20;
/// Fields that say something of the bytes, which are others once names are left out.
const OF_THE_BYTES: [&str; 6] = [
    "Accept-Ranges",
    "Content-Digest",
    "Content-MD5",
    "Content-Range",
    "Digest",
    "ETag",
];

/// ECR sends lists as `text/plain`, which some clients do not read as JSON.
pub(super) fn names(reply: Reply) -> Reply {
    let media_type = reply.headers.first("Content-Type").unwrap_or_default();
    if reply.status == 200 && !media_type.starts_with("application/") {
        return reply.with("Content-Type", "application/json");
    }
    reply
}

/// The catalogue without the repositories that clients may not see. `Link` stays, so a page may
/// have fewer names than were asked for, or none, and not be the last.
///
/// # Errors
/// When the registry's page is not one: what cannot be read cannot be filtered.
pub(super) fn catalogue(
    reply: Reply,
    access: &Access,
    registry: &Registry,
) -> Result<Reply, UpstreamError> {
    let mut reply = names(reply);
    let is_list = (200..300).contains(&reply.status);
    if access.shows_everything() || !is_list {
        return Ok(reply);
    }
    let headers = &mut reply.headers;
    headers.retain(|name, _| !OF_THE_BYTES.iter().any(|of| of.eq_ignore_ascii_case(name)));
    if let Body::Empty { length } = &mut reply.body {
        // Of a HEAD; the length of what a GET would bring is not known here.
        *length = None;
        return Ok(reply);
    }
    let unreadable = |reason: &str| UpstreamError {
        stage: Stage::Transfer,
        to: registry.url(),
        reason: reason.to_owned(),
    };
    let bytes = match reply.body {
        Body::Stream { mut reader, .. } => {
            pull::read_whole(&mut *reader, CATALOGUE_BYTES_MAX, registry)?
        }
        Body::Bytes(bytes) => bytes,
        Body::Empty { .. } | Body::Pieces { .. } => Vec::new(),
    };
    if bytes.len() as u64 > CATALOGUE_BYTES_MAX {
        let limit_mib = CATALOGUE_BYTES_MAX >> 20;
        return Err(unreadable(&format!(
            "its catalogue is larger than {limit_mib} MiB; ask for pages (n=1000)"
        )));
    }
    let list = serde_json::from_slice(&bytes).ok().and_then(repositories);
    let all = list.ok_or_else(|| unreadable("its catalogue is not a list of names"))?;
    let visible = serde_json::json!({"repositories": access.visible(all)});
    reply.status = 200;
    reply.body = Body::Bytes(visible.to_string().into_bytes());
    Ok(reply)
}

/// The names in a catalogue; none at all may be `null` (Go's empty list).
fn repositories(catalogue: serde_json::Value) -> Option<Vec<String>> {
    let name = |name: &serde_json::Value| name.as_str().map(str::to_owned);
    match catalogue.get("repositories")? {
        serde_json::Value::Array(names) => names.iter().map(name).collect(),
        serde_json::Value::Null => Some(Vec::new()),
        _ => None,
    }
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
        _ => {
            let access = &pull.exchange.parts.access;
            access.visible(pull.cache.names.repositories(pull.registry))
        }
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
        let (own, path) = (&pull.exchange.own_address, pull.exchange.request.path());
        let link = format!("<{own}{path}?n={}&last={last}>; rel=\"next\"", page.len());
        reply.headers.set("Link", link);
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
