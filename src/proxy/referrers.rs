//! Referrers: signatures, SBOMs and others that were attached to a manifest. Owns: the referrers
//! API through the cache, its filter, and the 404 that sends clients to the tag fallback. Must not:
//! say that there are no referrers where nobody knows.
//!
//! Lists are cached like tags: within `CACHE_TAG_TTL` they need no upstream call. In an outage the
//! answer is the last list of upstream's, and every cached manifest whose `subject` this one is.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::answer::{CacheOutcome, age, fail, mark, mark_stale, or_fail, refuse};
use super::exchange::Exchange;
use super::lookup::PageLookup;
use super::page;
use crate::budget;
use crate::cache::Cache;
use crate::cache::manifest::referrer;
use crate::cache::names::Scope;
use crate::cache::pages::{List, Page};
use crate::message::{Buffered, Headers, Reply};
use crate::oci::{Digest, ErrorCode, OciError, Repository, Tag};
use crate::upstream::UpstreamError;
use crate::uri;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const FILTERS_FIELD: &str = "OCI-Filters-Applied";
const FILTER: &str = "artifactType";
/// Largest manifest that is searched for its subject: those of artifacts are small.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Most manifests of a repository that are searched in an outage.
const MANIFESTS_MAX: usize = 10_000;

/// Answers GET and HEAD of the referrers of `digest`.
pub(super) fn get(exchange: &Exchange, repository: &Repository, digest: &Digest) -> Reply {
    let request = ReferrersRequest {
        exchange,
        scope: Scope {
            registry: &exchange.registry,
            repository,
        },
        digest,
        query: uri::query_of(&exchange.target),
    };
    let reply = match exchange.parts.cache.as_deref() {
        Some(cache) => request.through_cache(cache),
        None => request.without_cache(),
    };
    page::remove_body_for_head(exchange, reply)
}

/// A request for the referrers of a manifest.
struct ReferrersRequest<'a> {
    exchange: &'a Exchange,
    scope: Scope<'a>,
    digest: &'a Digest,
    query: &'a str,
}

/// Descriptors, and when upstream last listed them; none for what only the cache knows of.
struct KnownReferrers {
    descriptors: Vec<Value>,
    confirmed: Option<SystemTime>,
}

impl<'a> ReferrersRequest<'a> {
    fn without_cache(&self) -> Reply {
        match page::ask(self.exchange, false, is_list) {
            PageLookup::Failed(why) => fail(&why),
            PageLookup::Found(page) => self.dress(page),
            PageLookup::Refused(refused) => self.answer_refused(refused),
            PageLookup::TooLarge => self.stream(),
        }
    }

    fn through_cache(&self, cache: &Cache) -> Reply {
        if let Some(reply) = page::answer_in_turn(self.scope.registry, || self.answer_fresh(cache))
        {
            return mark(reply, CacheOutcome::Hit);
        }
        let offline = |why: &UpstreamError| {
            page::answer_in_turn(self.scope.registry, || self.answer_offline(cache, why))
        };
        let turn = budget::take_turn();
        let in_hand = [self.query, ""]
            .iter()
            .any(|query| cache.names.page(self.list_key(), query).is_some());
        drop(turn);
        let pushes_before = cache.pushes.count();
        match page::ask(self.exchange, in_hand, is_list) {
            PageLookup::Failed(why) => offline(&why).unwrap_or_else(|| fail(&why)),
            PageLookup::Found(page) => {
                if cache.pushes.count() == pushes_before {
                    self.keep(cache, &page);
                }
                self.note_api(cache, true);
                mark(self.dress(page), CacheOutcome::Miss)
            }
            PageLookup::Refused(refused) => {
                // A registry that has listed them has the API: this 404 is not its own.
                let excuse = page::excuse(self.scope.registry, &refused)
                    .filter(|_| in_hand || refused.status != 404);
                if let Some(reply) = excuse.and_then(|why| offline(&why)) {
                    return reply;
                }
                if is_no_api(&refused) {
                    self.note_api(cache, false);
                }
                self.answer_refused(refused)
            }
            PageLookup::TooLarge => self.stream(),
        }
    }

    /// A list that is not looked into.
    fn stream(&self) -> Reply {
        finish(self.exchange.forward_bodiless())
    }

    fn dress(&self, page: Buffered) -> Reply {
        finish(self.exchange.dress_buffered("GET", page))
    }

    const fn list_key(&self) -> List<'a> {
        List::Referrers(self.scope, self.digest)
    }

    /// Within its time, what upstream last said: to this very question, or to the one for all.
    fn answer_fresh(&self, cache: &Cache) -> Option<Reply> {
        let page = cache.names.page(self.list_key(), self.query);
        if let Some(page) = page.filter(|page| cache.is_fresh(page.confirmed)) {
            let age = age(page.confirmed).to_string();
            return Some(self.dress(page::unfold(page)).with("Age", age));
        }
        let artifact_type = self.filter()?;
        let all = cache.names.page(self.list_key(), "")?;
        if !cache.is_fresh(all.confirmed) || page::next_query(&all.headers).is_some() {
            return None;
        }
        let age = age(all.confirmed).to_string();
        let descriptors = filter_by_type(descriptors(&all.body)?, Some(&artifact_type));
        let reply = self.make_list(descriptors, true);
        Some(reply.with("Age", age))
    }

    /// The artifact type asked for, if that is all that the query says.
    fn filter(&self) -> Option<String> {
        let value = self.query.strip_prefix("artifactType=")?;
        uri::decode_visible(value).filter(|value| !value.contains('&'))
    }

    /// A list is kept for what is known to be there: clients may ask for any digest.
    fn keep(&self, cache: &Cache, page: &Buffered) {
        let Ok(_turn) = page::take_turn_for(&page.body, self.scope.registry) else {
            return;
        };
        let known = cache.names.link(self.scope, self.digest).is_some();
        let empty = descriptors(&page.body).is_none_or(|found| found.is_empty());
        if empty && !known {
            return;
        }
        let page = Page::new(
            self.query,
            &page.headers,
            page.body.to_vec(),
            SystemTime::now(),
        );
        if let Err(error) = cache.names.set_page(self.list_key(), &page) {
            cache.disk_faults.report("referrers", &error);
        }
    }

    fn note_api(&self, cache: &Cache, there: bool) {
        if let Err(error) = cache.names.set_referrers_api(self.scope.registry, there) {
            cache.disk_faults.report("referrers", &error);
        }
    }

    /// Answers from what is known without upstream; none when nothing is known.
    fn answer_offline(&self, cache: &Cache, why: &UpstreamError) -> Option<Reply> {
        let exact = cache.names.page(self.list_key(), self.query);
        let filter = self.filter();
        let is_whole_answer = self.query.is_empty() || filter.is_some();
        let local = if is_whole_answer {
            filter_by_type(self.find_local(cache), filter.as_deref())
        } else {
            Vec::new()
        };
        if let Some(page) = &exact {
            let listed = descriptors(&page.body).unwrap_or_default();
            if local
                .iter()
                .all(|own| listed.iter().any(|known| is_same(own, known)))
            {
                let age = age(page.confirmed).to_string();
                let reply = self.dress(page::unfold(page.clone()));
                return Some(mark_stale(reply, why).with("Age", age));
            }
        }
        let known = self.collect_listed(cache, exact, filter.as_deref());
        if known.confirmed.is_none() && local.is_empty() {
            return self.answer_without_api(cache);
        }
        let mut all = known.descriptors;
        for own in local {
            if !all.iter().any(|known| is_same(&own, known)) {
                all.push(own);
            }
        }
        let mut reply = mark_stale(self.make_list(all, filter.is_some()), why);
        if let Some(confirmed) = known.confirmed {
            reply.headers.set("Age", age(confirmed).to_string());
        }
        Some(reply)
    }

    /// Collects the pages that upstream listed last: for this query, else for all referrers.
    fn collect_listed(
        &self,
        cache: &Cache,
        exact: Option<Page>,
        filter: Option<&str>,
    ) -> KnownReferrers {
        let mut next = exact.or_else(|| cache.names.page(self.list_key(), ""));
        let confirmed = next.as_ref().map(|page| page.confirmed);
        let (mut all, mut queries) = (Vec::new(), Vec::new());
        while let Some(page) = next {
            all.extend(descriptors(&page.body).unwrap_or_default());
            let query = page::next_query(&page.headers).map(str::to_owned);
            queries.push(page.query);
            next = query
                .filter(|query| !queries.contains(query))
                .and_then(|query| cache.names.page(self.list_key(), &query));
        }
        KnownReferrers {
            descriptors: filter_by_type(all, filter),
            confirmed,
        }
    }

    /// Finds the cached manifests whose subject is this one.
    fn find_local(&self, cache: &Cache) -> Vec<Value> {
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
    fn answer_without_api(&self, cache: &Cache) -> Option<Reply> {
        let (algorithm, hex) = (self.digest.algorithm(), self.digest.hex());
        let tag: Option<Tag> = format!("{algorithm}-{hex}").parse().ok();
        let tagged = tag.is_some_and(|tag| !cache.names.tag(self.scope, "", &tag).is_empty());
        let absent = tagged || !cache.names.has_referrers_api(self.scope.registry);
        absent.then(|| refuse(&no_api()))
    }

    /// A list that is made here.
    fn make_list(&self, descriptors: Vec<Value>, is_filtered: bool) -> Reply {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors});
        let mut headers = Headers::new();
        if is_filtered {
            headers.set(FILTERS_FIELD, FILTER);
        }
        let body = index.to_string().into_bytes().into();
        let status = 200;
        self.dress(Buffered {
            status,
            headers,
            body,
        })
    }

    fn answer_refused(&self, refused: Buffered) -> Reply {
        if is_no_api(&refused) {
            return refuse(&no_api());
        }
        let method = &self.exchange.request.method;
        finish(self.exchange.dress_buffered(method, refused))
    }
}

/// The list as the client gets it.
fn finish(reply: Result<Reply, UpstreamError>) -> Reply {
    or_fail(reply.map(|reply| match reply.status {
        200 => reply.with("Content-Type", INDEX),
        _ => reply,
    }))
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

fn is_list(body: &[u8]) -> bool {
    descriptors(body).is_some()
}

fn filter_by_type(mut descriptors: Vec<Value>, artifact_type: Option<&str>) -> Vec<Value> {
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
        assert_eq!(filter_by_type(all.clone(), None).len(), 4);
        let some = filter_by_type(all.clone(), Some("c/d"));
        assert!(some.len() == 1 && is_same(&some[0], &all[1]));
        assert_eq!(filter_by_type(all, Some("x")), Vec::<Value>::new());
        assert_eq!(descriptors(br#"{"manifests":null}"#), Some(Vec::new()));
        for text in ["", "[]", "{}", r#"{"manifests":{}}"#] {
            assert_eq!(descriptors(text.as_bytes()), None, "{text}");
        }
    }
}
