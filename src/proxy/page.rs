//! One page of a list, from upstream or from the cache. Owns: asking for it, its `Link` as the
//! client follows it, and which failures of upstream let an older page stand in. Must not: know
//! what is listed, or pass on a list that was cut.

use std::io::{Cursor, Read as _};
use std::time::Duration;

use super::answer::fail;
use super::content;
use super::elements::WholeObject;
use super::exchange::Exchange;
use super::lookup::{FoundPage, PageLookup};
use super::refusal;
use crate::budget;
use crate::cache::changes::{Fact, Moment};
use crate::cache::names::Scope;
use crate::cache::pages::{LIST_BYTES_MAX, Page};
use crate::message::{Body, Buffered, Headers, Reply, WholeBody};
use crate::oci::{ERROR_DOCUMENT_BYTES_MAX, Registry, Route};
use crate::upstream::exchange::HEAD_TIMEOUT;
use crate::upstream::incoming::Incoming;
use crate::upstream::{Stage, UpstreamError};
use crate::uri;

/// Longest wait for upstream's list while an older one is at hand: longer than for a tag, since the
/// cache may know but a few of all names.
const STALE_PATIENCE: Duration = Duration::from_secs(5);
/// A list up to this size, a thousand short names, is read before it is passed on, so that a body
/// that is no list is an error. The beginning of a longer one is held while its client reads.
const BEGINNING_BYTES_MAX: u64 = 16 << 10;
/// Fields of a client with which upstream would not send the whole list.
const CONDITIONS: [&str; 6] = [
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "If-Unmodified-Since",
    "Range",
];

/// Asks upstream for the exchange's target, once for all that ask at the same time. `in_hand`: the
/// cache has an older answer. `is_list`: whether a body is the list that was asked for; a captive
/// portal answers 200, too. `keep` keeps a page; the body that it returns is sent in its place.
pub(super) fn ask(
    exchange: &Exchange,
    in_hand: bool,
    is_list: impl Fn(&[u8]) -> bool,
    keep: impl Fn(&Headers, &[u8]) -> Option<WholeBody>,
) -> PageLookup {
    // This comes before the shared question: the other clients may ask upstream.
    if let Err(why) = exchange.upstream() {
        return PageLookup::Failed(why);
    }
    let patience = if in_hand {
        STALE_PATIENCE
    } else {
        HEAD_TIMEOUT
    };
    // A client that has pushed must not get the answer to a question from before its push.
    let changed = last_change(exchange);
    let registry = &exchange.registry;
    let key = format!(
        "{registry}{} {changed:?} {in_hand}",
        exchange.resolved.target
    );
    let lookup = exchange.parts.pages.run(&key, exchange.deadline, || {
        let fetched = fetch(exchange, patience, is_list, keep);
        fetched.unwrap_or_else(PageLookup::Failed)
    });
    lookup.unwrap_or_else(|| {
        let reason = "no answer came in time".to_owned();
        PageLookup::Failed(UpstreamError::at(registry, Stage::Timeout, reason))
    })
}

/// When what is listed was last changed through us.
fn last_change(exchange: &Exchange) -> Option<Moment> {
    let (cache, registry) = (exchange.parts.cache.as_ref()?, &exchange.registry);
    Some(match &exchange.resolved.route {
        Route::Tags(repository) | Route::Referrers(repository, _) => {
            let scope = Scope {
                registry,
                repository,
            };
            cache.names.changes.last(scope, Fact::Contents)
        }
        _ => cache.now(),
    })
}

fn fetch(
    exchange: &Exchange,
    patience: Duration,
    is_list: impl Fn(&[u8]) -> bool,
    keep: impl Fn(&Headers, &[u8]) -> Option<WholeBody>,
) -> Result<PageLookup, UpstreamError> {
    let registry = &exchange.registry;
    let mut headers = exchange.upstream_headers();
    headers.retain(|name, _| !is_condition(name));
    // A HEAD is answered from a GET, too: not every registry knows HEAD of a list.
    let mut reply = exchange.ask("GET", &exchange.resolved.target, &headers, patience)?;
    let is_success = reply.status == 200;
    let limit = if is_success {
        LIST_BYTES_MAX
    } else {
        ERROR_DOCUMENT_BYTES_MAX
    };
    let bytes = content::read_whole(&mut *reply.body, reply.length, limit, registry)?;
    let is_too_large = bytes.len() as u64 > limit;
    let buffered = Buffered {
        status: reply.status,
        headers: reply.headers,
        body: bytes,
    };
    if !is_success {
        return Ok(PageLookup::Refused(buffered));
    }
    if is_too_large {
        return Ok(PageLookup::TooLarge);
    }
    let Buffered { headers, body, .. } = buffered;
    let _turn = content::take_turn_for(&body, registry)?;
    if !is_list(&body) {
        return Err(no_list(registry));
    }
    let kept = keep(&headers, &body);
    let is_large = budget::count_bytes(body.len() as u64) > 0;
    let body = match kept.filter(|_| is_large) {
        Some(kept) => kept,
        None => WholeBody::Bytes(body),
    };
    Ok(PageLookup::Found(FoundPage { headers, body }))
}

fn no_list(registry: &Registry) -> UpstreamError {
    let reason = "its answer is no list".to_owned();
    UpstreamError::at(registry, Stage::Transfer, reason)
}

/// Checks a list that is passed on without being read whole. Its beginning is read until the
/// exchange's deadline. A short body must be a list; a long body that breaks off is cut here, too.
///
/// # Errors
/// When it is no list, breaks off, or comes too late.
pub(super) fn check_stream(
    mut reply: Reply,
    exchange: &Exchange,
    is_list: impl Fn(&[u8]) -> bool,
) -> Result<Reply, UpstreamError> {
    let Body::Stream { reader, length } = reply.body else {
        return Ok(reply);
    };
    let (registry, status) = (&exchange.registry, reply.status);
    let mut incoming = Incoming {
        status,
        headers: Headers::new(),
        body: reader,
        length,
    };
    let beginning = incoming.read_body(BEGINNING_BYTES_MAX + 1, exchange.deadline);
    let beginning = beginning.map_err(|error| content::broken_off(registry, &error))?;
    let is_all = beginning.len() as u64 <= BEGINNING_BYTES_MAX;
    if is_all && status == 200 && !is_list(&beginning) {
        return Err(no_list(registry));
    }
    reply.body = if is_all {
        Body::Bytes(beginning.into())
    } else {
        let reader = WholeObject::new(Cursor::new(beginning).chain(incoming.body));
        let reader = Box::new(reader);
        Body::Stream { reader, length }
    };
    Ok(reply)
}

/// Makes an answer of what the cache holds, in a turn of its own, and counts its body.
pub(super) fn answer_in_turn(
    registry: &Registry,
    make: impl FnOnce() -> Option<Reply>,
) -> Option<Reply> {
    let Some(_turn) = budget::take_turn() else {
        return Some(fail(&content::no_room(registry)));
    };
    make().map(|reply| content::count_body(reply, registry))
}

/// Why an older answer may stand in for this one; none when it may not. It may when upstream is out
/// of order, throttles, sends us somewhere else, or refuses our own credentials. It may not when
/// the registry speaks of the list itself; a 404 without an error document is not the registry's.
pub(super) fn excuse(registry: &Registry, refused: &Buffered) -> Option<UpstreamError> {
    let status = refused.status;
    let reason = match status {
        404 if refusal::is_offline(&refused.headers) => {
            "it is offline, and its cache has no such list".to_owned()
        }
        404 if !refusal::is_error_document(&refused.body) => {
            "it answered 404 without an error document".to_owned()
        }
        300..=399 | 401 | 403 | 407 | 429 | 500..=599 => format!("it answered {status}"),
        _ => return None,
    };
    Some(UpstreamError::at(registry, Stage::Transfer, reason))
}

/// Leaves the body out of the answer to a HEAD.
pub(super) fn remove_body_for_head(exchange: &Exchange, mut reply: Reply) -> Reply {
    if exchange.is_head() {
        let length = reply.body.length();
        reply.body = Body::Empty { length };
    }
    reply
}

/// True for a field with which upstream would not send the whole list.
pub(super) fn is_condition(name: &str) -> bool {
    CONDITIONS
        .iter()
        .any(|field| field.eq_ignore_ascii_case(name))
}

/// The pages that belong together: `first`, and the page that each names as the next. None twice.
pub(super) fn chain<'a>(pages: &'a [Page], first: Option<&'a Page>) -> Vec<&'a Page> {
    let mut chain: Vec<&Page> = Vec::new();
    let mut next = first;
    while let Some(page) = next {
        if chain.iter().any(|known| known.query == page.query) {
            break;
        }
        chain.push(page);
        next = next_query(&page.headers)
            .and_then(|query| pages.iter().find(|page| page.query == query));
    }
    chain
}

/// The query of the page that follows, as its `Link` has it.
pub(super) fn next_query(headers: &Headers) -> Option<&str> {
    let next = headers.all("Link").find_map(super::links::next_link)?;
    Some(uri::query_of(next))
}
