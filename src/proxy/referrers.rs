//! Referrers: signatures, SBOMs and others that were attached to a manifest. Owns: the referrers
//! API through the cache, its filter, and the 404 that sends clients to the tag fallback. Must not:
//! say that there are no referrers where nobody knows.
//!
//! Lists are cached like tags: within `CACHE_TAG_TTL` they need no upstream call. In an outage the
//! answer is the last list of upstream's, and every cached manifest whose `subject` this one is.

use std::time::SystemTime;

use serde_json::Value;

use super::answer::{API_VERSION, CacheOutcome, age, fail, mark, mark_stale, or_fail, refuse};
use super::descriptors::{Descriptor, Descriptors, INDEX, is_empty, is_list};
use super::exchange::Exchange;
use super::lookup::PageLookup;
use super::{page, refusal};
use crate::cache::Cache;
use crate::cache::changes::Moment;
use crate::cache::manifest::referrer;
use crate::cache::names::Scope;
use crate::cache::pages::{List, Page};
use crate::message::{Buffered, Headers, Reply, WholeBody};
use crate::oci::{Digest, ErrorCode, OciError, Repository, Tag};
use crate::upstream::UpstreamError;
use crate::upstream::exchange::HEAD_TIMEOUT;
use crate::uri;

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
        query: uri::query_of(&exchange.resolved.target),
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
    descriptors: Descriptors,
    confirmed: Option<SystemTime>,
}

impl<'a> ReferrersRequest<'a> {
    fn without_cache(&self) -> Reply {
        match page::ask(self.exchange, false, is_list, |_, _| None) {
            PageLookup::Failed(why) => fail(&why),
            PageLookup::Found(page) => finish(self.exchange.dress_page(page.headers, page.body)),
            PageLookup::Refused(refused) => match self.judge(&refused) {
                ListRefusal::Outage(why) if refused.status == 404 => fail(&why),
                ListRefusal::NoApi => refuse(&no_api()),
                ListRefusal::Outage(_) | ListRefusal::OfTheList => self.pass_on(refused),
            },
            PageLookup::TooLarge => self.stream(),
        }
    }

    fn through_cache(&self, cache: &Cache) -> Reply {
        if let Some(reply) = self.answer_fresh(cache) {
            return mark(reply, CacheOutcome::Hit);
        }
        let offline = |why: &UpstreamError| {
            page::answer_in_turn(self.scope.registry, || self.answer_offline(cache, why))
        };
        let in_hand = [self.query, ""]
            .iter()
            .any(|query| cache.names.page(self.list_key(), query).is_some());
        let asked_at = cache.now();
        let keep = |headers: &Headers, body: &[u8]| self.keep(cache, headers, body, asked_at);
        match page::ask(self.exchange, in_hand, is_list, keep) {
            PageLookup::Failed(why) => offline(&why).unwrap_or_else(|| fail(&why)),
            PageLookup::Found(page) => {
                self.note_api(cache, true);
                let reply = self.exchange.dress_page(page.headers, page.body);
                mark(finish(reply), CacheOutcome::Miss)
            }
            PageLookup::Refused(refused) => self.answer_refused(cache, refused, in_hand),
            PageLookup::TooLarge => self.stream(),
        }
    }

    /// Answers where upstream did not send a list. `in_hand`: it has sent one before.
    fn answer_refused(&self, cache: &Cache, refused: Buffered, in_hand: bool) -> Reply {
        let excuse = page::excuse(self.scope.registry, &refused);
        // A registry that has listed them has the API: this 404 is not its own.
        let refusal = match excuse.filter(|_| in_hand) {
            Some(why) => ListRefusal::Outage(why),
            None => self.judge(&refused),
        };
        match refusal {
            ListRefusal::Outage(why) => {
                let offline = || self.answer_offline(cache, &why);
                let stale = page::answer_in_turn(self.scope.registry, offline);
                stale.unwrap_or_else(|| match refused.status {
                    404 => fail(&why),
                    _ => self.pass_on(refused),
                })
            }
            ListRefusal::NoApi => {
                self.note_api(cache, false);
                refuse(&no_api())
            }
            ListRefusal::OfTheList => self.pass_on(refused),
        }
    }

    /// Finds what a refusal says. Many registries without the API answer an unknown path in plain
    /// text, as a load balancer without backends does. A registry answers `/v2/`, the others do
    /// not.
    fn judge(&self, refused: &Buffered) -> ListRefusal {
        let excuse = page::excuse(self.scope.registry, refused);
        match (is_no_api(refused), excuse) {
            (true, Some(why)) if refused.status == 404 && !self.is_from_registry(refused) => {
                ListRefusal::Outage(why)
            }
            (true, _) if refused.status != 501 => ListRefusal::NoApi,
            (_, Some(why)) => ListRefusal::Outage(why),
            (true, None) => ListRefusal::NoApi,
            (false, None) => ListRefusal::OfTheList,
        }
    }

    fn is_from_registry(&self, refused: &Buffered) -> bool {
        let has_version = |headers: &Headers| headers.first(API_VERSION.0).is_some();
        if has_version(&refused.headers) || refusal::is_error_document(&refused.body) {
            return true;
        }
        let base = self
            .exchange
            .ask("GET", "/v2/", &Headers::new(), HEAD_TIMEOUT);
        base.is_ok_and(|base| base.status == 200 && has_version(&base.headers))
    }

    /// Passes a list on without keeping it.
    fn stream(&self) -> Reply {
        let exchange = self.exchange;
        let reply = exchange.forward_bodiless();
        finish(reply.and_then(|reply| page::check_stream(reply, exchange, is_list)))
    }

    /// Passes on what upstream said instead of a list.
    fn pass_on(&self, refused: Buffered) -> Reply {
        let method = &self.exchange.request.method;
        finish(self.exchange.dress_buffered(method, refused))
    }

    /// Answers with a kept page.
    fn serve(&self, page: &Page) -> Reply {
        let headers = page.headers.clone();
        let reply = finish(self.exchange.dress_page(headers, page.body()));
        reply.with("Age", age(page.confirmed).to_string())
    }

    const fn list_key(&self) -> List<'a> {
        List::Referrers(self.scope, self.digest)
    }

    /// Answers with upstream's last list while that is fresh: the list for this query, else the
    /// matching part of the list of all referrers.
    fn answer_fresh(&self, cache: &Cache) -> Option<Reply> {
        let page = cache.names.page(self.list_key(), self.query);
        if let Some(page) = page.filter(|page| cache.is_fresh(page.confirmed)) {
            return Some(self.serve(&page));
        }
        let artifact_type = self.filter()?;
        let all = cache.names.page(self.list_key(), "")?;
        if !cache.is_fresh(all.confirmed) || page::next_query(&all.headers).is_some() {
            return None;
        }
        let age = age(all.confirmed).to_string();
        page::answer_in_turn(self.scope.registry, || {
            let list = Descriptors::read(&all.read()?, Some(&artifact_type));
            // Upstream has more than we may list.
            (!list.is_cut()).then(|| self.make_list(&list, true).with("Age", age))
        })
    }

    /// The artifact type asked for, if that is all that the query says.
    fn filter(&self) -> Option<String> {
        let value = self.query.strip_prefix("artifactType=")?;
        uri::decode_visible(value).filter(|value| !value.contains('&'))
    }

    /// Keeps a list, but not an empty one of an unknown manifest: clients may ask for any digest.
    /// Returns the body in its file.
    fn keep(
        &self,
        cache: &Cache,
        headers: &Headers,
        body: &[u8],
        asked_at: Moment,
    ) -> Option<WholeBody> {
        let is_known = cache.names.link(self.scope, self.digest).is_some();
        if !is_known && is_empty(body) {
            return None;
        }
        let page = cache.keep_page(self.list_key(), self.query, headers, body, asked_at)?;
        Some(page.body())
    }

    fn note_api(&self, cache: &Cache, has_api: bool) {
        let noted = cache.names.set_referrers_api(self.scope.registry, has_api);
        cache.disk_faults.check("referrers", noted);
    }

    /// Answers from what is known without upstream; none when nothing is known.
    fn answer_offline(&self, cache: &Cache, why: &UpstreamError) -> Option<Reply> {
        let exact = cache.names.page(self.list_key(), self.query);
        let filter = self.filter();
        let is_whole_answer = self.query.is_empty() || filter.is_some();
        let local = if is_whole_answer {
            self.find_local(cache, filter.as_deref())
        } else {
            Descriptors::default()
        };
        if let Some(page) = &exact {
            let listed = Descriptors::read(&page.read()?, None);
            if listed.hold_all(&local) {
                return Some(mark_stale(self.serve(page), why));
            }
        }
        let known = self.collect_listed(cache, exact, filter.as_deref());
        if known.confirmed.is_none() && local.is_empty() {
            return self.answer_without_api(cache);
        }
        let mut all = known.descriptors;
        all.join(local);
        let mut reply = mark_stale(self.make_list(&all, filter.is_some()), why);
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
        let (mut descriptors, mut queries) = (Descriptors::default(), Vec::new());
        while let Some(page) = next {
            let body = page.read().unwrap_or_default();
            descriptors.join(Descriptors::read(&body, filter));
            let query = page::next_query(&page.headers).map(str::to_owned);
            queries.push(page.query);
            next = query
                .filter(|query| !queries.contains(query))
                .and_then(|query| cache.names.page(self.list_key(), &query));
        }
        KnownReferrers {
            descriptors,
            confirmed,
        }
    }

    /// Finds the cached manifests whose subject is this one; of one type only, if `filter` names
    /// it.
    fn find_local(&self, cache: &Cache, filter: Option<&str>) -> Descriptors {
        let mut found = Descriptors::default();
        let names = &cache.names;
        for digest in names.manifests(self.scope).take(MANIFESTS_MAX) {
            let is_small = |size| size <= MANIFEST_BYTES_MAX;
            if !cache.store.size(&digest).is_some_and(is_small) || found.is_cut() {
                continue;
            }
            let bytes = cache.store.read(&digest, MANIFEST_BYTES_MAX).ok().flatten();
            let link = names.link(self.scope, &digest);
            let descriptor = link.and_then(|link| {
                let bytes = bytes.unwrap_or_default();
                referrer(&bytes, self.digest, &digest, &link.media_type?)
            });
            let is_of_type = |descriptor: &Value| {
                let artifact_type = descriptor.get(FILTER).and_then(Value::as_str);
                filter.is_none() || artifact_type == filter
            };
            if let Some(descriptor) = descriptor.filter(is_of_type) {
                let (json, digest) = (descriptor.to_string(), digest.to_string());
                found.add(Descriptor { json, digest });
            }
        }
        found.sort();
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

    /// Answers with a list that is made here.
    fn make_list(&self, descriptors: &Descriptors, is_filtered: bool) -> Reply {
        let mut headers = Headers::new();
        if is_filtered {
            headers.set(FILTERS_FIELD, FILTER);
        }
        let body = descriptors.to_index().into_bytes();
        let body = WholeBody::Bytes(body.into());
        finish(self.exchange.dress_page(headers, body))
    }
}

/// What a refusal says.
enum ListRefusal {
    /// Nothing about the list: upstream is out of order, or the answer is not the registry's.
    Outage(UpstreamError),
    /// The registry has no referrers API.
    NoApi,
    /// The registry refuses this list.
    OfTheList,
}

/// The list as the client gets it.
fn finish(reply: Result<Reply, UpstreamError>) -> Reply {
    or_fail(reply.map(|reply| match reply.status {
        200 => reply.with("Content-Type", INDEX),
        _ => reply,
    }))
}

/// True when the registry has no referrers API. One with the API answers every digest with a list,
/// except in a repository that does not exist (distribution-spec "Listing Referrers").
fn is_no_api(refused: &Buffered) -> bool {
    match refused.status {
        404 => refusal::error_code(&refused.body).as_deref() != Some("NAME_UNKNOWN"),
        405 | 501 => true,
        _ => false,
    }
}

fn no_api() -> OciError {
    let why = "the registry has no referrers API; look for the tag <algorithm>-<digest>";
    OciError::new(ErrorCode::Unsupported, why).with_status(404)
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
        let code = |code: &str| format!(r#"{{"errors":[{{"code":"{code}"}}]}}"#);
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
}
