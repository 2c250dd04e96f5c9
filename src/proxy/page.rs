//! A page of a list on its way through. Owns: asking upstream for one, its `Link` as the client
//! follows it, what of upstream's failures lets an older page stand in. Must not: know what is
//! listed, or store a `Link` that is rewritten.

use std::io::Cursor;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::manifest::age;
use super::{CacheOutcome, Exchange, fail, marked, pull, stale_warning};
use crate::cache::names::{LIST_BYTES_MAX, Page};
use crate::message::{Body, Buffered, Headers, Reply, RequestBody};
use crate::oci::{ERROR_DOCUMENT_BYTES_MAX, Registry};
use crate::upstream::client::Incoming;
use crate::upstream::exchange::{Call, Fetched, HEAD_TIMEOUT};
use crate::upstream::{Stage, UpstreamError};
use crate::uri;

/// Longest wait for upstream's list where an older one is at hand: longer than for a tag, since the
/// cache may know but a few of all names.
const STALE_PATIENCE: Duration = Duration::from_secs(5);
/// Fields of the client's that would make the answer less than the list.
const CONDITIONS: [&str; 6] = [
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "If-Unmodified-Since",
    "Range",
];

/// What asking for a page came to; shared by all who asked at the same time.
#[derive(Debug, Clone)]
pub(super) enum Asked {
    Failed(UpstreamError),
    /// All of upstream's fields, and a body that holds what was to be in it.
    Page(Headers, Vec<u8>),
    /// Upstream answered something else.
    Refused(Buffered),
    /// Too long to be read whole.
    TooLarge,
}

/// Asks upstream for the exchange's target, once for all who ask at the same time. `in_hand`: an
/// older answer is.
pub(super) fn ask(exchange: &Exchange, registry: &Registry, in_hand: bool) -> Asked {
    let patience = if in_hand {
        STALE_PATIENCE
    } else {
        HEAD_TIMEOUT
    };
    // Who has pushed since must not get an answer to a question from before.
    let pushes = exchange
        .parts
        .cache
        .as_ref()
        .map_or(0, |cache| cache.pushes.count());
    let key = format!("{registry}{} {pushes} {in_hand}", exchange.target);
    let deadline = Instant::now() + HEAD_TIMEOUT;
    let asked = exchange.parts.pages.run(&key, deadline, || {
        fetch(exchange, registry, patience).unwrap_or_else(Asked::Failed)
    });
    asked.unwrap_or_else(|| {
        let reason = "no answer came in time".to_owned();
        Asked::Failed(fault(registry, Stage::Timeout, reason))
    })
}

fn fetch(
    exchange: &Exchange,
    registry: &Registry,
    patience: Duration,
) -> Result<Asked, UpstreamError> {
    let mut headers = exchange.headers.clone();
    headers.retain(|name, _| !is_condition(name));
    let call = Call {
        registry,
        // The answer to HEAD is made of it: not every registry knows HEAD of a list.
        method: "GET",
        target: &exchange.target,
        headers: &headers,
        patience,
        whole: true,
    };
    let mut reply = exchange.parts.upstream.fetch_bodiless(call)?.reply;
    if reply.status != 200 {
        let body = pull::read_whole(&mut *reply.body, ERROR_DOCUMENT_BYTES_MAX, registry)?;
        return Ok(Asked::Refused(Buffered {
            status: reply.status,
            headers: reply.headers,
            body: body.into(),
        }));
    }
    let bytes = pull::read_whole(&mut *reply.body, LIST_BYTES_MAX, registry)?;
    if bytes.len() as u64 > LIST_BYTES_MAX {
        return Ok(Asked::TooLarge);
    }
    // What stands between us and the registry, such as a captive portal, answers 200 too.
    let document = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    if !document.is_object() {
        let reason = "its answer is no list".to_owned();
        return Err(fault(registry, Stage::Transfer, reason));
    }
    Ok(Asked::Page(reply.headers, bytes))
}

/// Why an older answer may stand in for this one, if it may: upstream is out of order, throttles,
/// sends us somewhere else, or refuses our own credentials. What it says of the list itself stands.
pub(super) fn excuse(registry: &Registry, refused: &Buffered) -> Option<UpstreamError> {
    let status = refused.status;
    let excused = matches!(status, 300..=399 | 401 | 403 | 407 | 429 | 500..=599);
    excused.then(|| fault(registry, Stage::Transfer, format!("it answered {status}")))
}

fn fault(registry: &Registry, stage: Stage, reason: String) -> UpstreamError {
    UpstreamError {
        stage,
        to: registry.url(),
        reason,
    }
}

/// A page as the client gets it: its `Link` leads to us.
pub(super) fn reply(
    exchange: &Exchange,
    registry: &Registry,
    headers: Headers,
    body: Vec<u8>,
) -> Reply {
    let incoming = Incoming {
        status: 200,
        headers,
        length: Some(body.len() as u64),
        body: Box::new(Cursor::new(body)),
    };
    let fetched = Fetched {
        reply: incoming,
        redirected: false,
    };
    let reply = exchange.reply_to("GET", registry, fetched);
    let mut reply = reply.unwrap_or_else(|error| fail(&error));
    if let Body::Stream { mut reader, .. } = reply.body {
        reply.body = match pull::read_whole(&mut *reader, LIST_BYTES_MAX, registry) {
            Ok(bytes) => Body::Bytes(bytes.into()),
            Err(error) => return fail(&error),
        };
    }
    reply
}

/// A page that was kept, where upstream could not be asked.
pub(super) fn stale(
    exchange: &Exchange,
    registry: &Registry,
    page: &Page,
    why: &UpstreamError,
) -> Reply {
    let age = age(page.confirmed).to_string();
    let reply = reply(exchange, registry, page.headers.clone(), page.body.clone());
    outdated(reply, why).with("Age", age)
}

/// Says that upstream could not confirm a list.
pub(super) fn outdated(reply: Reply, why: &UpstreamError) -> Reply {
    marked(reply, CacheOutcome::Stale).with("Warning", stale_warning(why))
}

/// Upstream's own answer, where it was no list.
pub(super) fn refused(exchange: &Exchange, registry: &Registry, refused: Buffered) -> Reply {
    let fetched = Fetched {
        reply: refused.into(),
        redirected: false,
    };
    let reply = exchange.reply(registry, fetched);
    reply.unwrap_or_else(|error| fail(&error))
}

/// A list that is too long to be looked into.
pub(super) fn stream(exchange: &Exchange, registry: &Registry) -> Reply {
    let mut nothing = std::io::empty();
    exchange.forward_or_fail(registry, &mut RequestBody::new(&mut nothing, Some(0)))
}

/// Without its body, if HEAD asked for it.
pub(super) fn headless(exchange: &Exchange, mut reply: Reply) -> Reply {
    if exchange.request.method == "HEAD" {
        let length = reply.body.length();
        reply.body = Body::Empty { length };
    }
    reply
}

/// True for a field that asks for less than the whole.
pub(super) fn is_condition(name: &str) -> bool {
    CONDITIONS
        .iter()
        .any(|field| field.eq_ignore_ascii_case(name))
}

/// The pages that belong together, from `first` on as each names the next; none twice.
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
