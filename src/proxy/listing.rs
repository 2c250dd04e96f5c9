//! Lists of tags and repositories. Owns: the fields of a list on its way to the client, which part
//! of the catalogue the client may see, and the list of known names when upstream is out of reach.
//! Must not: read or make up a cursor of the registry's.
//!
//! In an outage the client gets the page that it asks for as upstream last sent it, if that page
//! belongs to the newest list and the cache knows no name beside it. Otherwise the list is made
//! anew, from the newest one and from what is cached, with pages of our own.

use std::collections::BTreeSet;

use serde_json::json;

use super::access::Access;
use super::answer::{API_VERSION, age, fail, mark_stale, or_fail};
use super::elements::for_each;
use super::exchange::Exchange;
use super::lookup::PageLookup;
use super::{content, links, page};
use crate::cache::Cache;
use crate::cache::changes::Moment;
use crate::cache::names::Scope;
use crate::cache::pages::{List, Page};
use crate::message::{Body, Headers, Reply, SharedBytes, WholeBody};
use crate::oci::{ErrorCode, OciError, Registry, Repository, Route, Tag};
use crate::upstream::{Stage, UpstreamError};
use crate::uri;

/// Most names on a page, as ECR has it: it refuses to be asked for more.
const PAGE_MAX: usize = 1000;
/// Longest page of a catalogue that is filtered: ten times as long as [`PAGE_MAX`] names of 256
/// characters, for registries that know no pages.
const CATALOGUE_BYTES_MAX: u64 = 4 << 20;
/// Fields that describe the bytes, which change when names are left out.
const BYTE_FIELDS: [&str; 6] = [
    "Accept-Ranges",
    "Content-Digest",
    "Content-MD5",
    "Content-Range",
    "Digest",
    "ETag",
];

/// ECR sends lists as `text/plain`, which some clients do not read as JSON.
fn as_json(reply: Reply) -> Reply {
    let media_type = reply.headers.first("Content-Type").unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    let is_json = media_type.eq_ignore_ascii_case("application/json");
    if reply.status == 200 && !is_json {
        return reply.with("Content-Type", "application/json");
    }
    reply
}

/// Leaves the repositories out that clients may not see. `Link` stays, so a page may have fewer
/// names than were asked for, or none, and still not be the last. `take_turn` waits for the turn
/// that a large catalogue needs.
///
/// # Errors
/// When the page cannot be read, and so cannot be filtered.
fn filter_catalogue<T>(
    reply: Reply,
    access: &Access,
    registry: &Registry,
    take_turn: impl FnOnce(&[u8]) -> Result<T, UpstreamError>,
) -> Result<Reply, UpstreamError> {
    let mut reply = as_json(reply);
    let is_list = (200..300).contains(&reply.status);
    if access.shows_everything() || !is_list {
        return Ok(reply);
    }
    let headers = &mut reply.headers;
    headers.retain(|name, _| !BYTE_FIELDS.iter().any(|of| of.eq_ignore_ascii_case(name)));
    if let Body::Empty { length } = &mut reply.body {
        // The answer to HEAD: the length that a GET would bring is not known here.
        *length = None;
        return Ok(reply);
    }
    let unreadable = |reason: &str| UpstreamError::at(registry, Stage::Transfer, reason.to_owned());
    let bytes = match reply.body {
        Body::Stream { mut reader, length } => {
            content::read_whole(&mut *reader, length, CATALOGUE_BYTES_MAX, registry)?
        }
        Body::Bytes(bytes) => bytes,
        Body::Empty { .. } | Body::Pieces { .. } => SharedBytes::default(),
    };
    if bytes.len() as u64 > CATALOGUE_BYTES_MAX {
        let limit_mib = CATALOGUE_BYTES_MAX >> 20;
        return Err(unreadable(&format!(
            "its catalogue is larger than {limit_mib} MiB; ask for pages (n=1000)"
        )));
    }
    let _turn = take_turn(&bytes)?;
    let visible = visible_names(&bytes, access);
    let visible = visible.ok_or_else(|| unreadable("its catalogue is not a list of names"))?;
    reply.status = 200;
    reply.body = Body::Bytes(visible.into_bytes().into());
    Ok(content::count_body(reply, registry))
}

/// A catalogue with those of its names that clients may see.
fn visible_names(catalogue: &[u8], access: &Access) -> Option<String> {
    let mut visible = r#"{"repositories":["#.to_owned();
    let mut separator = "";
    for_each(catalogue, "repositories", |name: String| {
        if access.is_visible(&name) {
            // A name that may be seen holds nothing that JSON escapes.
            visible.extend([separator, "\"", &name, "\""]);
            separator = ",";
        }
    })?;
    visible.push_str("]}");
    Some(visible)
}

/// The target of a list as upstream is asked for it: ECR refuses pages that are larger than its
/// own, and pages of nothing. All else stays byte for byte.
///
/// # Errors
/// When `n` is not a number.
pub(super) fn target(route: &Route, target: &str, is_ecr: bool) -> Result<String, OciError> {
    let Some((path, query)) = target
        .split_once('?')
        .filter(|_| matches!(route, Route::Catalog | Route::Tags(_)))
    else {
        return Ok(target.to_owned());
    };
    let mut parameters = Vec::new();
    for parameter in query.split('&') {
        let Some(number) = parameter.strip_prefix("n=").filter(|n| !n.is_empty()) else {
            parameters.push(parameter.to_owned());
            continue;
        };
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            let why = format!("n={number}: expected a whole number of names, such as n=100");
            return Err(OciError::new(ErrorCode::PaginationNumberInvalid, why));
        }
        parameters.push(match number.parse() {
            // Whether there is such a repository is for upstream to say.
            Ok(0) => "n=1".to_owned(),
            Ok(number) if number <= PAGE_MAX => parameter.to_owned(),
            _ if is_ecr => format!("n={PAGE_MAX}"),
            _ => parameter.to_owned(),
        });
    }
    Ok(format!("{path}?{}", parameters.join("&")))
}

/// Answers GET and HEAD of a list: upstream's, or what is known of it when upstream fails. Without
/// a repository it is the catalogue.
pub(super) fn get(exchange: &Exchange, repository: Option<&Repository>) -> Reply {
    let list = ListRequest {
        exchange,
        repository,
    };
    let mut reply = list.answer();
    if list.asks_for_none() && reply.status == 200 {
        reply = list.remove_names(reply);
    }
    page::remove_body_for_head(exchange, reply)
}

/// A request for a list.
struct ListRequest<'a> {
    exchange: &'a Exchange,
    /// None: the catalogue.
    repository: Option<&'a Repository>,
}

impl<'a> ListRequest<'a> {
    fn answer(&self) -> Reply {
        let exchange = self.exchange;
        let cache = exchange.parts.cache.as_deref();
        if cache.is_none() && !exchange.is_head() && !self.asks_for_none() {
            // Nothing is kept of it, and nothing could stand in for it.
            return self.stream();
        }
        let in_hand = cache.is_some_and(|cache| self.is_known(cache));
        let asked_at = cache.map(Cache::now);
        let offline = |why: &UpstreamError| {
            let cache = cache?;
            page::answer_in_turn(&exchange.registry, || self.answer_offline(cache, why))
        };
        let is_list = |body: &[u8]| self.is_list(body);
        let keep = |headers: &Headers, body: &[u8]| self.keep(cache?, headers, body, asked_at?);
        match page::ask(exchange, in_hand, is_list, keep) {
            PageLookup::Failed(why) => offline(&why).unwrap_or_else(|| fail(&why)),
            PageLookup::Found(page) => self.finish(exchange.dress_page(page.headers, page.body)),
            PageLookup::Refused(refused) => {
                let excuse = page::excuse(&exchange.registry, &refused);
                let is_gone = refused.status == 404 && excuse.is_none();
                let stale = excuse.and_then(|why| offline(&why));
                if is_gone && let Some(cache) = cache {
                    cache.names.forget_pages(self.list_key());
                }
                let method = &exchange.request.method;
                stale.unwrap_or_else(|| self.finish(exchange.dress_buffered(method, refused)))
            }
            PageLookup::TooLarge => self.stream(),
        }
    }

    /// A list that is passed on without being kept.
    fn stream(&self) -> Reply {
        let exchange = self.exchange;
        let reply = exchange.forward_bodiless();
        let is_list = |body: &[u8]| self.is_list(body);
        self.finish(match self.is_filtered() {
            // It will be read whole.
            true => reply,
            false => reply.and_then(|reply| page::check_stream(reply, exchange, is_list)),
        })
    }

    /// Makes a list what the client may see of it.
    fn finish(&self, reply: Result<Reply, UpstreamError>) -> Reply {
        let registry = &self.exchange.registry;
        self.finish_with(reply, |bytes| content::take_turn_for(bytes, registry))
    }

    fn finish_with<T>(
        &self,
        reply: Result<Reply, UpstreamError>,
        take_turn: impl FnOnce(&[u8]) -> Result<T, UpstreamError>,
    ) -> Reply {
        let (access, registry) = (&self.exchange.parts.access, &self.exchange.registry);
        or_fail(reply.and_then(|reply| match self.repository {
            Some(_) => Ok(as_json(reply)),
            None => filter_catalogue(reply, access, registry, take_turn),
        }))
    }

    fn is_list(&self, body: &[u8]) -> bool {
        for_each(body, self.field(), |_: String| {}).is_some()
    }

    /// Answers with a kept page, because upstream could not be asked. Needs a turn.
    fn serve_stale(&self, page: &Page, why: &UpstreamError) -> Option<Reply> {
        let age = age(page.confirmed).to_string();
        let body = match self.is_filtered() {
            true => WholeBody::Bytes(page.read()?),
            false => page.body(),
        };
        let reply = self.exchange.dress_page(page.headers.clone(), body);
        let reply = self.finish_with(reply, |_| Ok(()));
        Some(mark_stale(reply, why).with("Age", age))
    }

    /// Keeps a page. Returns its body in its file, if the client gets the page unfiltered.
    fn keep(
        &self,
        cache: &Cache,
        headers: &Headers,
        body: &[u8],
        asked_at: Moment,
    ) -> Option<WholeBody> {
        let query = uri::query_of(&self.exchange.resolved.target);
        let list = self.list_key();
        let page = cache.keep_page(list, query, headers, body, asked_at)?;
        (!self.is_filtered()).then(|| page.body())
    }

    /// True for a list that clients may not see whole.
    fn is_filtered(&self) -> bool {
        self.repository.is_none() && !self.exchange.parts.access.shows_everything()
    }

    fn asks_for_none(&self) -> bool {
        let query = self.exchange.request.query().unwrap_or_default();
        uri::parameter(query, "n").is_some_and(|number| number.parse() == Ok(0_u8))
    }

    const fn field(&self) -> &'static str {
        match self.repository {
            Some(_) => "tags",
            None => "repositories",
        }
    }

    const fn list_key(&self) -> List<'a> {
        let registry = &self.exchange.registry;
        match self.repository {
            Some(repository) => List::Tags(Scope {
                registry,
                repository,
            }),
            None => List::Catalog(registry),
        }
    }

    /// True when the cache knows a name or a page of the list, so that it could answer in an
    /// outage.
    fn is_known(&self, cache: &Cache) -> bool {
        let names = &cache.names;
        let is_held = match self.list_key() {
            List::Tags(scope) => names.has_tags(scope),
            _ => names.has_repository(&self.exchange.registry),
        };
        is_held || names.has_pages(self.list_key())
    }

    /// The names that are cached.
    fn cached_names(&self, cache: &Cache) -> Vec<String> {
        match self.list_key() {
            List::Tags(scope) => {
                let tags = cache.names.tags(scope).into_iter();
                tags.map(|tag| tag.as_str().to_owned()).collect()
            }
            _ => cache.names.repositories(&self.exchange.registry),
        }
    }

    fn is_visible(&self, name: &str) -> bool {
        self.repository.is_some() || self.exchange.parts.access.is_visible(name)
    }

    /// Answers from what is known. None when nothing is known of the list, or of the page that the
    /// client asks for. Lists are read one after another, and only one page of names is kept.
    fn answer_offline(&self, cache: &Cache, why: &UpstreamError) -> Option<Reply> {
        let query = uri::query_of(&self.exchange.resolved.target);
        let pages = cache.names.pages(self.list_key());
        let firsts = pages.iter().filter(|page| is_first(&page.query));
        let chain = page::chain(&pages, firsts.max_by_key(|page| page.confirmed));
        let last = uri::parameter(query, "last").map(decode);
        let mut held: BTreeSet<String> = self.cached_names(cache).into_iter().collect();
        held.retain(|name| self.is_visible(name));
        let mut names = NextNames::new(query, last.as_deref());
        held.iter().for_each(|name| names.add(name));
        for page in &chain {
            for_each(&page.read()?, self.field(), |name: String| {
                held.remove(&name);
                if self.is_visible(&name) {
                    names.add(&name);
                }
            });
        }
        // The names that are still in `held` are in no list of upstream's.
        let mut kept = chain.iter().copied().filter(|_| held.is_empty());
        if let Some(page) = kept.find(|page| page.query == query) {
            return self.serve_stale(page, why);
        }
        if last.as_ref().is_some_and(|last| !self.is_name(last)) {
            // A cursor of the registry's, in a list from before the last one perhaps.
            let page = pages.iter().find(|page| page.query == query)?;
            return self.serve_stale(page, why);
        }
        if !names.found_any && chain.is_empty() {
            return None;
        }
        Some(mark_stale(self.make_page(names), why))
    }

    /// A page of names we know.
    fn make_page(&self, names: NextNames<'_>) -> Reply {
        let (page, more) = names.into_page();
        let document = match self.repository {
            Some(repository) => json!({"name": repository.as_str(), "tags": page}),
            None => json!({"repositories": page}),
        };
        let mut reply = Reply::new(200, "application/json", document.to_string())
            .with(API_VERSION.0, API_VERSION.1);
        if let (true, Some(last)) = (more, page.last()) {
            let path = &self.exchange.resolved.path;
            let next = format!("<{path}?n={}&last={last}>; rel=\"next\"", page.len());
            let link = links::rewrite_link(&next, &self.exchange.client_address());
            reply.headers.set("Link", link);
        }
        reply
    }

    fn is_name(&self, text: &str) -> bool {
        match self.repository {
            Some(_) => text.parse::<Tag>().is_ok(),
            None => text.parse::<Repository>().is_ok(),
        }
    }

    /// Removes all names and the next page from a list (distribution-spec: `n=0`).
    fn remove_names(&self, mut reply: Reply) -> Reply {
        let document = match self.repository {
            Some(repository) => json!({"name": repository.as_str(), "tags": []}),
            None => json!({"repositories": []}),
        };
        reply.headers.remove("Link");
        reply.body = Body::Bytes(document.to_string().into_bytes().into());
        reply
    }
}

fn is_first(query: &str) -> bool {
    uri::parameter(query, "last").is_none()
}

/// Names hold nothing that needs encoding, but a client may encode their slashes.
fn decode(last: &str) -> String {
    uri::decode_visible(last).unwrap_or_else(|| last.to_owned())
}

/// The names of one page: at most `n` names after `last`. However many are added, only those of the
/// page are held.
struct NextNames<'a> {
    last: Option<&'a str>,
    count: usize,
    /// The names of the page, and one more if there is one.
    names: BTreeSet<String>,
    /// A name was added, on this page or not.
    found_any: bool,
}

impl<'a> NextNames<'a> {
    fn new(query: &str, last: Option<&'a str>) -> Self {
        let count = uri::parameter(query, "n").and_then(|n| n.parse().ok());
        Self {
            last,
            count: count.unwrap_or(PAGE_MAX).min(PAGE_MAX),
            names: BTreeSet::new(),
            found_any: false,
        }
    }

    fn add(&mut self, name: &str) {
        self.found_any = true;
        let is_full = self.names.len() > self.count;
        let is_behind = is_full && self.names.last().is_some_and(|most| most.as_str() <= name);
        if is_behind || self.last.is_some_and(|last| name <= last) {
            return;
        }
        if self.names.insert(name.to_owned()) && is_full {
            self.names.pop_last();
        }
    }

    /// The page, and whether there are more names.
    fn into_page(mut self) -> (Vec<String>, bool) {
        let more = self.names.len() > self.count;
        if more {
            self.names.pop_last();
        }
        (self.names.into_iter().collect(), more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AccessSettings, Globs};

    #[test]
    fn a_list_is_json() {
        for (status, sent, expected) in [
            (200, "text/plain; charset=utf-8", "application/json"),
            (200, "", "application/json"),
            (200, "application/octet-stream", "application/json"),
            (
                200,
                "application/json; charset=utf-8",
                "application/json; charset=utf-8",
            ),
            (500, "text/plain", "text/plain"),
        ] {
            let reply = as_json(Reply::new(status, sent, "{}"));
            assert_eq!(reply.headers.first("Content-Type"), Some(expected));
        }
    }

    #[test]
    fn the_number_of_names_is_held_to_what_ecr_takes() {
        let tags = Route::Tags("a".parse().unwrap());
        let path = "/v2/a/tags/list";
        for (query, ecr, other) in [
            (
                "n=1000&last=+/%2B=",
                "n=1000&last=+/%2B=",
                "n=1000&last=+/%2B=",
            ),
            ("last=x&n=1001&a", "last=x&n=1000&a", "last=x&n=1001&a"),
            (
                "n=99999999999999999999999",
                "n=1000",
                "n=99999999999999999999999",
            ),
            ("n=0", "n=1", "n=1"),
            ("n=", "n=", "n="),
            ("", "", ""),
            ("nn=5000", "nn=5000", "nn=5000"),
        ] {
            for (is_ecr, expected) in [(true, ecr), (false, other)] {
                let asked = target(&tags, &format!("{path}?{query}"), is_ecr).unwrap();
                assert_eq!(asked, format!("{path}?{expected}"));
            }
        }
        assert_eq!(target(&tags, path, true).unwrap(), path);
        for number in ["-1", "x", "1e3", "5 ", "%31", "+5", "1,0"] {
            let error = target(&tags, &format!("{path}?n={number}"), true).unwrap_err();
            assert_eq!(
                (error.status, error.code),
                (400, ErrorCode::PaginationNumberInvalid)
            );
        }
        let other = format!("/v2/a/referrers/{path}?n=x");
        assert_eq!(target(&Route::Base, &other, true).unwrap(), other);
    }

    #[test]
    fn a_page_holds_the_next_names_in_order() {
        let page = |query: &str, last| {
            let mut names = NextNames::new(query, last);
            for name in ["d", "a", "b/c", "a"] {
                names.add(name);
            }
            assert!(names.found_any && names.names.len() <= 4);
            names.into_page()
        };
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(page("", None), (owned(&["a", "b/c", "d"]), false));
        assert_eq!(page("n=2", None), (owned(&["a", "b/c"]), true));
        assert_eq!(page("n=3", None), (owned(&["a", "b/c", "d"]), false));
        assert_eq!(page("n=2", Some("b/c")), (owned(&["d"]), false));
        assert_eq!(page("", Some("b/d")), (owned(&["d"]), false));
        assert_eq!(page("", Some("d")), (owned(&[]), false));
        assert_eq!(decode("b%2Fc%2fd"), "b/c/d");
    }

    #[test]
    fn bug_a_million_names_were_held_for_one_page() {
        let mut names = NextNames::new("n=5000", Some("000009"));
        for number in (0..3000).rev() {
            names.add(&format!("{number:06}"));
        }
        assert_eq!(names.names.len(), PAGE_MAX + 1);
        let (page, more) = names.into_page();
        assert!(more && page.len() == PAGE_MAX);
        assert_eq!((page[0].as_str(), page[999].as_str()), ("000010", "001009"));
    }

    #[test]
    fn only_visible_names_are_in_a_filtered_catalogue() {
        let settings = AccessSettings {
            repositories: Globs::parse("team/*").unwrap(),
            ..AccessSettings::default()
        };
        let access = Access::new(&settings, false, None);
        let visible = |catalogue: &str| visible_names(catalogue.as_bytes(), &access);
        let some = visible(r#"{"repositories":["a","team/b","Odd \"","team/c"]}"#);
        assert_eq!(
            some.as_deref(),
            Some(r#"{"repositories":["team/b","team/c"]}"#)
        );
        let none = Some(r#"{"repositories":[]}"#);
        assert_eq!(visible(r#"{"repositories":null}"#).as_deref(), none);
        assert_eq!(visible(r#"{"repositories":["team/b",5]}"#), None);
    }
}
