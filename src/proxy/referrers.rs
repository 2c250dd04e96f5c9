//! Referrers: what was attached to a manifest (signatures, SBOMs). Owns: the referrers API through
//! the cache, its filter, and the 404 that sends clients to the tag fallback. Must not: say that
//! there are no referrers where nobody knows.
//!
//! Cached as tags are: within `CACHE_TAG_TTL` no upstream call; in an outage what upstream listed
//! last, and what is in the cache and names the manifest as its `subject`.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::manifest::age;
use super::page::{self, Asked};
use super::{CacheOutcome, Exchange, fail, marked, refuse};
use crate::cache::Cache;
use crate::cache::manifest::referrer;
use crate::cache::names::{List, Page, Scope};
use crate::message::{Buffered, Headers, Reply};
use crate::oci::{Digest, ErrorCode, OciError, Registry, Repository, Tag};
use crate::upstream::UpstreamError;
use crate::uri;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const FILTERS_FIELD: &str = "OCI-Filters-Applied";
const FILTER: &str = "artifactType";
/// Largest manifest that is looked into for its subject: those of artifacts are small.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Manifests of a repository that are looked into at the most, in an outage.
const MANIFESTS_MAX: usize = 10_000;

/// A list of referrers on its way to the client.
pub(super) fn list(reply: Reply) -> Reply {
    match reply.status {
        200 => reply.with("Content-Type", INDEX),
        _ => reply,
    }
}

/// Answers GET and HEAD of the referrers of `digest`.
pub(super) fn get(
    exchange: &Exchange,
    registry: &Registry,
    repository: &Repository,
    digest: &Digest,
) -> Reply {
    let wanted = Wanted {
        exchange,
        registry,
        scope: Scope {
            registry,
            repository,
        },
        digest,
        query: uri::query_of(&exchange.target),
    };
    let reply = match exchange.parts.cache.as_deref() {
        Some(cache) => wanted.through(cache),
        None => wanted.past(),
    };
    page::headless(exchange, reply)
}

struct Wanted<'a> {
    exchange: &'a Exchange,
    registry: &'a Registry,
    scope: Scope<'a>,
    digest: &'a Digest,
    query: &'a str,
}

/// Descriptors, and when upstream last listed them; none for what only the cache knows of.
struct Known {
    descriptors: Vec<Value>,
    confirmed: Option<SystemTime>,
}

impl<'a> Wanted<'a> {
    /// Without a cache.
    fn past(&self) -> Reply {
        match page::ask(self.exchange, self.registry, false) {
            Asked::Failed(why) => fail(&why),
            Asked::Page(headers, body) => self.reply(headers, body),
            Asked::Refused(refused) => self.refused(refused),
            Asked::TooLarge => page::stream(self.exchange, self.registry),
        }
    }

    fn through(&self, cache: &Cache) -> Reply {
        if let Some(reply) = self.fresh(cache) {
            return marked(reply, CacheOutcome::Hit);
        }
        let in_hand = [self.query, ""]
            .iter()
            .any(|query| cache.names.page(self.stored(), query).is_some());
        let pushes = cache.pushes.count();
        let offline = |why: &UpstreamError| self.offline(cache, why);
        match page::ask(self.exchange, self.registry, in_hand) {
            Asked::Failed(why) => offline(&why).unwrap_or_else(|| fail(&why)),
            Asked::Page(headers, body) => {
                if cache.pushes.count() == pushes {
                    self.keep(cache, &headers, &body);
                }
                self.note_api(cache, true);
                marked(self.reply(headers, body), CacheOutcome::Miss)
            }
            Asked::Refused(refused) => {
                if let Some(why) = page::excuse(self.registry, &refused)
                    && let Some(reply) = offline(&why)
                {
                    return reply;
                }
                if is_no_api(&refused) {
                    self.note_api(cache, false);
                }
                self.refused(refused)
            }
            Asked::TooLarge => page::stream(self.exchange, self.registry),
        }
    }

    const fn stored(&self) -> List<'a> {
        List::Referrers(self.scope, self.digest)
    }

    /// Within its time, what upstream last said: to this very question, or to the one for all.
    fn fresh(&self, cache: &Cache) -> Option<Reply> {
        let page = cache.names.page(self.stored(), self.query);
        if let Some(page) = page.filter(|page| cache.is_fresh(page.confirmed)) {
            let age = age(page.confirmed).to_string();
            return Some(self.reply(page.headers, page.body).with("Age", age));
        }
        let wanted = self.filter()?;
        let all = cache.names.page(self.stored(), "")?;
        if !cache.is_fresh(all.confirmed) || page::next_query(&all.headers).is_some() {
            return None;
        }
        let age = age(all.confirmed).to_string();
        let reply = self.made(filtered(descriptors(&all.body)?, Some(&wanted)), true);
        Some(reply.with("Age", age))
    }

    /// The artifact type asked for, if that is all that the query says.
    fn filter(&self) -> Option<String> {
        let value = self.query.strip_prefix("artifactType=")?;
        uri::decode_visible(value).filter(|value| !value.contains('&'))
    }

    /// A list is kept for what is known to be there: clients may ask for any digest.
    fn keep(&self, cache: &Cache, headers: &Headers, body: &[u8]) {
        let known = cache.names.link(self.scope, self.digest).is_some();
        let empty = descriptors(body).is_none_or(|found| found.is_empty());
        if empty && !known {
            return;
        }
        let page = Page::new(self.query, headers, body.to_vec(), SystemTime::now());
        if let Err(error) = cache.names.set_page(self.stored(), &page) {
            cache.disk_faults.report("referrers", &error);
        }
    }

    fn note_api(&self, cache: &Cache, there: bool) {
        if let Err(error) = cache.names.set_referrers_api(self.registry, there) {
            cache.disk_faults.report("referrers", &error);
        }
    }

    /// What is known without upstream; none when that is nothing.
    fn offline(&self, cache: &Cache, why: &UpstreamError) -> Option<Reply> {
        let exact = cache.names.page(self.stored(), self.query);
        let filter = self.filter();
        let is_whole_answer = self.query.is_empty() || filter.is_some();
        let local = if is_whole_answer {
            filtered(self.local(cache), filter.as_deref())
        } else {
            Vec::new()
        };
        if let Some(page) = &exact {
            let listed = descriptors(&page.body).unwrap_or_default();
            if local
                .iter()
                .all(|own| listed.iter().any(|known| is_same(own, known)))
            {
                return Some(page::stale(self.exchange, self.registry, page, why));
            }
        }
        let known = self.listed(cache, exact, filter.as_deref());
        if known.confirmed.is_none() && local.is_empty() {
            return self.fallback(cache);
        }
        let mut all = known.descriptors;
        for own in local {
            if !all.iter().any(|known| is_same(&own, known)) {
                all.push(own);
            }
        }
        let mut reply = page::outdated(self.made(all, filter.is_some()), why);
        if let Some(confirmed) = known.confirmed {
            reply.headers.set("Age", age(confirmed).to_string());
        }
        Some(reply)
    }

    /// What upstream listed last: the answer to this question, else to that for all.
    fn listed(&self, cache: &Cache, exact: Option<Page>, filter: Option<&str>) -> Known {
        let mut next = exact.or_else(|| cache.names.page(self.stored(), ""));
        let confirmed = next.as_ref().map(|page| page.confirmed);
        let (mut all, mut queries) = (Vec::new(), Vec::new());
        while let Some(page) = next {
            all.extend(descriptors(&page.body).unwrap_or_default());
            let query = page::next_query(&page.headers).map(str::to_owned);
            queries.push(page.query);
            next = query
                .filter(|query| !queries.contains(query))
                .and_then(|query| cache.names.page(self.stored(), &query));
        }
        Known {
            descriptors: filtered(all, filter),
            confirmed,
        }
    }

    /// What the cache holds that names the manifest as its subject.
    fn local(&self, cache: &Cache) -> Vec<Value> {
        let manifests = cache.names.manifests(self.scope).into_iter();
        let found = manifests.take(MANIFESTS_MAX).filter_map(|(digest, kind)| {
            let small = cache.store.size(&digest)? <= MANIFEST_BYTES_MAX;
            let bytes = small.then(|| cache.store.read(&digest, MANIFEST_BYTES_MAX).ok())???;
            referrer(&bytes, self.digest, &digest, &kind)
        });
        let mut found: Vec<Value> = found.collect();
        found.sort_by_cached_key(|descriptor| descriptor.get("digest").map(Value::to_string));
        found
    }

    /// 404 where clients can go on with the tag that takes the API's place.
    fn fallback(&self, cache: &Cache) -> Option<Reply> {
        let (algorithm, hex) = (self.digest.algorithm(), self.digest.hex());
        let tag: Option<Tag> = format!("{algorithm}-{hex}").parse().ok();
        let tagged = tag.is_some_and(|tag| !cache.names.tag(self.scope, "", &tag).is_empty());
        let absent = tagged || !cache.names.has_referrers_api(self.registry);
        absent.then(|| refuse(&no_api()))
    }

    fn reply(&self, headers: Headers, body: Vec<u8>) -> Reply {
        page::reply(self.exchange, self.registry, headers, body)
    }

    /// A list that is made here.
    fn made(&self, descriptors: Vec<Value>, is_filtered: bool) -> Reply {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors});
        let mut headers = Headers::new();
        if is_filtered {
            headers.set(FILTERS_FIELD, FILTER);
        }
        self.reply(headers, index.to_string().into_bytes())
    }

    fn refused(&self, refused: Buffered) -> Reply {
        if is_no_api(&refused) {
            return refuse(&no_api());
        }
        page::refused(self.exchange, self.registry, refused)
    }
}

/// A registry with the API answers every digest with a list, so that 404 means that it has none
/// (distribution-spec "Listing Referrers"); but for a repository that is not there.
fn is_no_api(refused: &Buffered) -> bool {
    let document: Value = serde_json::from_slice(&refused.body).unwrap_or_default();
    let code = document.pointer("/errors/0/code").and_then(Value::as_str);
    match refused.status {
        404 => code != Some("NAME_UNKNOWN"),
        405 | 501 => true,
        _ => false,
    }
}

fn no_api() -> OciError {
    let why = "the registry has no referrers API; look for the tag <algorithm>-<digest>";
    OciError::new(ErrorCode::Unsupported, why).with_status(404)
}

fn descriptors(body: &[u8]) -> Option<Vec<Value>> {
    let document: Value = serde_json::from_slice(body).ok()?;
    match document.get("manifests")? {
        Value::Null => Some(Vec::new()),
        list => list.as_array().cloned(),
    }
}

fn filtered(mut descriptors: Vec<Value>, artifact_type: Option<&str>) -> Vec<Value> {
    if let Some(wanted) = artifact_type {
        let kind = |descriptor: &Value| descriptor.get(FILTER)?.as_str().map(|k| k == wanted);
        descriptors.retain(|descriptor| kind(descriptor) == Some(true));
    }
    descriptors
}

fn is_same(one: &Value, other: &Value) -> bool {
    one.get("digest") == other.get("digest")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: &str) -> Buffered {
        Buffered {
            status,
            headers: Headers::new(),
            body: body.as_bytes().to_vec().into(),
        }
    }

    #[test]
    fn a_registry_without_the_api_is_told_from_one_without_the_repository() {
        let code = |code: &str| json!({"errors": [{"code": code}]}).to_string();
        for (status, body, expected) in [
            (404, "404 page not found".to_owned(), true),
            (404, String::new(), true),
            (404, code("NOT_FOUND"), true),
            (404, code("NAME_UNKNOWN"), false),
            (405, code("UNSUPPORTED"), true),
            (501, String::new(), true),
            (400, code("DIGEST_INVALID"), false),
            (403, code("DENIED"), false),
            (503, String::new(), false),
        ] {
            assert_eq!(
                is_no_api(&refused(status, &body)),
                expected,
                "{status} {body}"
            );
        }
    }

    #[test]
    fn a_list_is_filtered_by_its_type() {
        let body = json!({"manifests": [{"digest": "1", "artifactType": "a/b"},
            {"digest": "2", "artifactType": "c/d"}, {"digest": "3"}, 7]});
        let all = descriptors(body.to_string().as_bytes()).unwrap();
        assert_eq!(filtered(all.clone(), None).len(), 4);
        let some = filtered(all.clone(), Some("c/d"));
        assert!(some.len() == 1 && is_same(&some[0], &all[1]));
        assert_eq!(filtered(all, Some("x")), Vec::<Value>::new());
        assert_eq!(descriptors(br#"{"manifests":null}"#), Some(Vec::new()));
        for text in ["", "[]", "{}", r#"{"manifests":{}}"#] {
            assert_eq!(descriptors(text.as_bytes()), None, "{text}");
        }
    }
}
