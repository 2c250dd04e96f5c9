//! Lists of tags and repositories. Owns: the fields of a list on its way to the client, which part
//! of the catalogue it may see, and the list of what is known when upstream is out of reach. Must
//! not: read or make up a cursor of the registry's.
//!
//! In an outage the client gets the page that it asks for as upstream last sent it, if that page
//! belongs to the newest list and the cache knows no name beside it. Otherwise the list is made
//! anew, from the newest one and from what is cached, with pages of our own.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::access::Access;
use super::answer::{API_VERSION, age, fail, mark_stale, or_fail};
use super::exchange::Exchange;
use super::lookup::PageLookup;
use super::{content, links, page};
use crate::cache::Cache;
use crate::cache::names::Scope;
use crate::cache::pages::{List, Page};
use crate::message::{Body, Buffered, Reply, SharedBytes};
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
/// names than were asked for, or none, and still not be the last.
///
/// # Errors
/// When the page cannot be read, and so cannot be filtered.
fn filter_catalogue(
    reply: Reply,
    access: &Access,
    registry: &Registry,
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
    let list = serde_json::from_slice(&bytes).ok().and_then(repositories);
    let all = list.ok_or_else(|| unreadable("its catalogue is not a list of names"))?;
    let visible = json!({"repositories": access.visible(all)});
    reply.status = 200;
    reply.body = Body::Bytes(visible.to_string().into_bytes().into());
    Ok(reply)
}

/// The names in a catalogue; none at all may be `null` (Go's empty list).
fn repositories(catalogue: Value) -> Option<Vec<String>> {
    let name = |name: &Value| name.as_str().map(str::to_owned);
    match catalogue.get("repositories")? {
        Value::Array(names) => names.iter().map(name).collect(),
        Value::Null => Some(Vec::new()),
        _ => None,
    }
}

/// The target of a list as upstream is asked for it: ECR refuses pages that are larger than its
/// own, and pages of nothing. All else stays byte for byte.
///
/// # Errors
/// A number of names that is none.
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
        let offline = |why: &UpstreamError| {
            let cache = cache?;
            page::answer_in_turn(&exchange.registry, || self.answer_offline(cache, why))
        };
        let is_list = |body: &[u8]| read(body, self.field()).is_some();
        match page::ask(exchange, in_hand, is_list) {
            PageLookup::Failed(why) => offline(&why).unwrap_or_else(|| fail(&why)),
            PageLookup::Found(page) => {
                if let Some(cache) = cache {
                    self.keep(cache, &page);
                }
                self.dress("GET", page)
            }
            PageLookup::Refused(refused) => {
                let excuse = page::excuse(&exchange.registry, &refused);
                let is_gone = refused.status == 404 && excuse.is_none();
                let stale = excuse.and_then(|why| offline(&why));
                if is_gone && let Some(cache) = cache {
                    cache.names.forget_pages(self.list_key());
                }
                stale.unwrap_or_else(|| self.dress(&exchange.request.method, refused))
            }
            PageLookup::TooLarge => self.stream(),
        }
    }

    /// A list that is not looked into.
    fn stream(&self) -> Reply {
        self.finish(self.exchange.forward_bodiless())
    }

    fn dress(&self, method: &str, page: Buffered) -> Reply {
        self.finish(self.exchange.dress_buffered(method, page))
    }

    /// The list as the client may see it.
    fn finish(&self, reply: Result<Reply, UpstreamError>) -> Reply {
        let (access, registry) = (&self.exchange.parts.access, &self.exchange.registry);
        or_fail(reply.and_then(|reply| match self.repository {
            Some(_) => Ok(as_json(reply)),
            None => filter_catalogue(reply, access, registry),
        }))
    }

    /// A page that was kept, because upstream could not be asked.
    fn serve_stale(&self, page: &Page, why: &UpstreamError) -> Reply {
        let age = age(page.confirmed).to_string();
        let reply = self.dress("GET", page::unfold(page.clone()));
        mark_stale(reply, why).with("Age", age)
    }

    fn keep(&self, cache: &Cache, page: &Buffered) {
        let Ok(_turn) = page::take_turn_for(&page.body, &self.exchange.registry) else {
            return;
        };
        let query = uri::query_of(&self.exchange.target);
        let now = std::time::SystemTime::now();
        let page = Page::new(query, &page.headers, page.body.to_vec(), now);
        if let Err(error) = cache.names.set_page(self.list_key(), &page) {
            cache.disk_faults.report("list", &error);
        }
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

    /// True when an outage would leave something to list.
    fn is_known(&self, cache: &Cache) -> bool {
        cache.names.has_pages(self.list_key()) || !self.cached_names(cache).is_empty()
    }

    /// The names that are cached.
    fn cached_names(&self, cache: &Cache) -> Vec<String> {
        match self.list_key() {
            List::Tags(scope) => cache.names.tags(scope),
            _ => {
                let access = &self.exchange.parts.access;
                access.visible(cache.names.repositories(&self.exchange.registry))
            }
        }
    }

    /// Answers from what is known. None when nothing is known of the list, or of the page that the
    /// client asks for.
    fn answer_offline(&self, cache: &Cache, why: &UpstreamError) -> Option<Reply> {
        let query = uri::query_of(&self.exchange.target);
        let pages = cache.names.pages(self.list_key());
        let firsts = pages.iter().filter(|page| is_first(&page.query));
        let chain = page::chain(&pages, firsts.max_by_key(|page| page.confirmed));
        let lists = chain
            .iter()
            .filter_map(|page| read(&page.body, self.field()));
        let mut names: BTreeSet<String> = lists.flatten().collect();
        let held = self.cached_names(cache);
        let nothing_beside = held.iter().all(|name| names.contains(name));
        let mut kept = chain.iter().copied().filter(|_| nothing_beside);
        if let Some(page) = kept.find(|page| page.query == query) {
            return Some(self.serve_stale(page, why));
        }
        let last = uri::parameter(query, "last").map(decode);
        if last.as_ref().is_some_and(|last| !self.is_name(last)) {
            // A cursor of the registry's, in a list from before the last one perhaps.
            let page = pages.iter().find(|page| page.query == query)?;
            return Some(self.serve_stale(page, why));
        }
        names.extend(held);
        if self.repository.is_none() {
            let access = &self.exchange.parts.access;
            let visible = access.visible(names.into_iter().collect());
            names = visible.into_iter().collect();
        }
        if names.is_empty() && chain.is_empty() {
            return None;
        }
        let page = self.make_page(&names, query, last.as_deref());
        Some(mark_stale(page, why))
    }

    /// A page of names we know.
    fn make_page(&self, names: &BTreeSet<String>, query: &str, last: Option<&str>) -> Reply {
        let (page, more) = cut_page(names, query, last);
        let document = match self.repository {
            Some(repository) => json!({"name": repository.as_str(), "tags": page}),
            None => json!({"repositories": page}),
        };
        let mut reply = Reply::new(200, "application/json", document.to_string())
            .with(API_VERSION.0, API_VERSION.1);
        if let (true, Some(last)) = (more, page.last()) {
            let path = &self.exchange.path;
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

    /// The same list without a name and without a next page (distribution-spec: `n=0`).
    fn remove_names(&self, mut reply: Reply) -> Reply {
        let sent: Option<Value> = match &reply.body {
            Body::Bytes(bytes) => serde_json::from_slice(bytes).ok(),
            // Longer than what is read, or from a registry that sends more than it is asked for.
            _ => None,
        };
        let mut document = sent.filter(Value::is_object).unwrap_or_else(|| json!({}));
        if let Some(fields) = document.as_object_mut() {
            fields.insert(self.field().to_owned(), json!([]));
        }
        reply.headers.remove("Link");
        reply.body = Body::Bytes(document.to_string().into_bytes().into());
        reply
    }
}

/// The names in a list; an empty one may be `null`.
fn read(body: &[u8], field: &str) -> Option<Vec<String>> {
    let document: Value = serde_json::from_slice(body).ok()?;
    match document.get(field)? {
        Value::Null => Some(Vec::new()),
        list => {
            let names = list.as_array()?.iter();
            names.map(|name| name.as_str().map(str::to_owned)).collect()
        }
    }
}

fn is_first(query: &str) -> bool {
    uri::parameter(query, "last").is_none()
}

/// Names hold nothing that needs encoding, but a client may encode their slashes.
fn decode(last: &str) -> String {
    uri::decode_visible(last).unwrap_or_else(|| last.to_owned())
}

/// The names after `last`, at most `n` of them, and whether there are more.
fn cut_page<'a>(
    names: &'a BTreeSet<String>,
    query: &str,
    last: Option<&str>,
) -> (Vec<&'a str>, bool) {
    let count = uri::parameter(query, "n").and_then(|n| n.parse().ok());
    let count = count.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    let after = |name: &&String| last.is_none_or(|last| name.as_str() > last);
    let mut rest = names.iter().filter(after).map(String::as_str);
    let page: Vec<&str> = rest.by_ref().take(count).collect();
    (page, rest.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn pages() {
        let all: BTreeSet<String> = ["a", "b/c", "d"].map(str::to_owned).into();
        assert_eq!(cut_page(&all, "", None), (vec!["a", "b/c", "d"], false));
        assert_eq!(cut_page(&all, "n=2", None), (vec!["a", "b/c"], true));
        assert_eq!(cut_page(&all, "n=2", Some("b/c")), (vec!["d"], false));
        assert_eq!(cut_page(&all, "", Some("b/d")), (vec!["d"], false));
        assert_eq!(cut_page(&all, "", Some("d")), (vec![], false));
        assert_eq!(decode("b%2Fc%2fd"), "b/c/d");
    }

    #[test]
    fn what_is_no_list_is_not_read_as_one() {
        let tags = |text: &str| read(text.as_bytes(), "tags");
        assert_eq!(
            tags(r#"{"name":"a","tags":["x","y"]}"#),
            Some(vec!["x".into(), "y".into()])
        );
        assert_eq!(tags(r#"{"tags":null}"#), Some(Vec::new()));
        for text in ["", "<html>", "[]", "{}", r#"{"tags":5}"#, r#"{"tags":[5]}"#] {
            assert_eq!(tags(text), None, "{text}");
        }
    }
}
