//! Status page, its data, and metrics. Owns: `/`, `/status.json` and `/metrics`, and what they say.
//! Must not: ask upstream or AWS, or decide which clients may see them.
//!
//! `docs/status.md` lists the fields of `/status.json`; a test holds it to them. Nothing here is
//! kept: each answer is made of what other parts know, on the connection's own thread.

mod metrics;
mod page;
mod snapshot;
mod sources;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

pub use self::sources::{Sources, list_registries};
use crate::cache::Cache;
use crate::cache::images::{ImageQuery, PAGE_MAX};
use crate::cache::moves::TagMove;
use crate::message::{Answer, Reply, Request};
use crate::oci::{ErrorCode, OciError};
use crate::permits::Permits;
use crate::uri::{decode_leniently, parameter, query_of};

/// Longest wait for another listing of images to end.
const LISTING_TIMEOUT: Duration = Duration::from_secs(5);
/// Value of `Retry-After` when there are too many listings or scrapes.
const RETRY_SECONDS: &str = "5";
/// Most moves of tags in one document.
const MOVES_MAX: usize = 50;
/// Longest text that is searched for.
const SEARCH_BYTES_MAX: usize = 256;

/// The status page, its data, and the metrics.
pub struct Status {
    sources: Arc<Sources>,
    listing: Permits,
}

impl Status {
    /// Nothing is looked at before it is asked for.
    pub const fn new(sources: Arc<Sources>) -> Self {
        let listing = Permits::new(1);
        Self { sources, listing }
    }

    /// Answers a request for `/metrics`, `/status.json`, or else for the page. Never blocks; the
    /// exchange may, for a moment.
    pub fn answer(self: &Arc<Self>, request: &Request) -> Answer {
        if !matches!(request.method.as_str(), "GET" | "HEAD") {
            let why = format!("{} is not allowed here; use GET or HEAD", request.method);
            let refusal = Reply::error(&OciError::new(ErrorCode::Unsupported, why));
            return Answer::Now(refusal.with("Allow", "GET, HEAD"));
        }
        match request.path() {
            "/metrics" => {
                Answer::Now(metrics::answer(&self.sources).unwrap_or_else(ask_again_later))
            }
            "/status.json" => {
                let (status, query) = (Arc::clone(self), query_of(&request.target).to_owned());
                Answer::Later(Box::new(move |_| {
                    status.document(&query).unwrap_or_else(|no| *no)
                }))
            }
            _ => Answer::Now(page::answer(request.headers.first("If-None-Match"))),
        }
    }

    /// `/status.json`. `?history` adds the last day by the minute, `?images=OFFSET` (with
    /// `limit=COUNT` and `search=WORDS`) a page of images. Blocks while images are read.
    fn document(&self, query: &str) -> Result<Reply, Box<Reply>> {
        let names = query.split('&').filter_map(|pair| pair.split('=').next());
        let names: Vec<&str> = names.collect();
        let mut document = snapshot::document(&self.sources);
        if names.contains(&"history") {
            document.insert("history".to_owned(), snapshot::history());
        }
        if names.contains(&"images")
            && let Some(cache) = &self.sources.cache
        {
            document.insert("images".to_owned(), self.images(cache, query)?);
        }
        let reply = Reply::new(200, "application/json", Value::Object(document).to_string())
            .with("Cache-Control", "no-store")
            .with("X-Content-Type-Options", "nosniff");
        Ok(reply)
    }

    /// The page of images that is asked for, with the tags that moved.
    fn images(&self, cache: &Cache, query: &str) -> Result<Value, Box<Reply>> {
        let asked = read_image_query(query).map_err(|error| Box::new(Reply::error(&error)))?;
        let turn = self.listing.take(Instant::now() + LISTING_TIMEOUT);
        let why = "images are being listed for others; try again";
        let _turn = turn.ok_or_else(|| Box::new(ask_again_later(why)))?;
        let mut scopes = cache.names.scopes();
        scopes.retain(|scope| self.sources.allowed.matches(scope.repository.as_str()));
        let page = cache.holdings().page(&scopes, &asked);
        Ok(snapshot::images(&page, &self.tag_moves(cache)))
    }

    /// The last tags that moved, of all registries.
    fn tag_moves(&self, cache: &Cache) -> Vec<(String, TagMove)> {
        let registries = cache.names.registries().into_iter();
        let moves = registries.flat_map(|registry| {
            let moves = cache.names.moves(&registry).into_iter();
            moves.map(move |moved| (registry.to_string(), moved))
        });
        let allowed = |(_, moved): &(_, TagMove)| self.sources.allowed.matches(&moved.repository);
        let mut moves: Vec<_> = moves.filter(allowed).collect();
        moves.sort_by(|(_, one), (_, other)| other.at.cmp(&one.at));
        moves.truncate(MOVES_MAX);
        moves
    }
}

/// Reads which images are asked for.
fn read_image_query(query: &str) -> Result<ImageQuery, OciError> {
    let number = |name, default| match parameter(query, name).unwrap_or_default() {
        "" => Ok(default),
        text => text.parse().map_err(|_| {
            let why = format!("{name}={text:?}: expected a whole number");
            OciError::new(ErrorCode::BadRequest, why)
        }),
    };
    let search = decode_leniently(parameter(query, "search").unwrap_or_default());
    Ok(ImageQuery {
        search: search.chars().take(SEARCH_BYTES_MAX).collect(),
        offset: number("images", 0)?,
        limit: number("limit", PAGE_MAX)?,
    })
}

fn ask_again_later(why: &str) -> Reply {
    let refusal = Reply::error(&OciError::new(ErrorCode::Unavailable, why));
    refusal.with("Retry-After", RETRY_SECONDS)
}
