//! The images in the cache, as people look for them. Owns: finding tags by name, and what is there
//! of each. Must not: change anything, or take longer than [`TIME_MAX`] by much.
//!
//! Only names and times are read of all tags. Manifests are read of the few on the page that was
//! asked for.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use super::closure::Holdings;
use super::holdings::CachedImage;
use super::names::{OwnedScope, Scope};
use crate::oci::{Reference, Tag};

/// Images on one page.
pub const PAGE_MAX: usize = 100;
/// Tags that are looked at: their names take some 10 MB meanwhile.
const TAGS_MAX: usize = 50_000;
/// Longest time that one listing takes; what was not looked at by then is left out.
const TIME_MAX: Duration = Duration::from_secs(2);
/// Which images are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageQuery {
    /// Words that `registry/repository:tag` must all hold, in any case.
    pub search: String,
    /// Images left out at the beginning.
    pub offset: usize,
    /// Most images on the page; at most [`PAGE_MAX`].
    pub limit: usize,
}

/// A page of images, the last pulled one first.
#[derive(Debug, Default)]
pub struct ImagePage {
    /// At most as many as were asked for, without what refers to them.
    pub images: Vec<CachedImage>,
    /// Images that fit the search.
    pub matching: usize,
    /// Images that were looked at.
    pub total: usize,
    /// False when there was no time, or no room, for all of them.
    pub is_whole: bool,
}

impl Holdings<'_> {
    /// Lists images of these repositories. Blocks while it reads the disk, for two seconds at the
    /// longest.
    pub fn page(&self, scopes: &[OwnedScope], query: &ImageQuery) -> ImagePage {
        self.page_until(scopes, query, Instant::now() + TIME_MAX)
    }

    fn page_until(
        &self,
        scopes: &[OwnedScope],
        query: &ImageQuery,
        deadline: Instant,
    ) -> ImagePage {
        let words = query.search.split_whitespace().map(str::to_lowercase);
        let words: Vec<String> = words.collect();
        let mut found = Vec::new();
        let mut page = ImagePage {
            is_whole: true,
            ..ImagePage::default()
        };
        for scope in scopes.iter().map(OwnedScope::as_scope) {
            if Instant::now() >= deadline || page.total >= TAGS_MAX {
                page.is_whole = false;
                break;
            }
            let tags = self.names.tag_uses(scope, TAGS_MAX - page.total);
            page.total += tags.len();
            let tags = tags.into_iter();
            let fitting = tags.filter(|(tag, _)| fits(scope, tag, &words));
            found.extend(fitting.map(|(tag, used)| (scope, tag, used.accessed)));
        }
        page.matching = found.len();
        found.sort_by_key(|(_, _, pulled)| Reverse(*pulled));
        let limit = query.limit.min(PAGE_MAX);
        for (scope, tag, pulled) in found.into_iter().skip(query.offset).take(limit) {
            page.is_whole &= Instant::now() < deadline;
            if page.is_whole {
                page.images
                    .extend(self.image(scope, &Reference::Tag(tag), pulled, None));
            }
        }
        page
    }
}

fn fits(scope: Scope<'_>, tag: &Tag, words: &[String]) -> bool {
    if words.is_empty() {
        return true;
    }
    let name = format!("{scope}:{}", tag.as_str()).to_lowercase();
    words.iter().all(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::holdings::PlatformsHere;
    use crate::cache::scratch;
    use crate::oci::Digest;

    /// An image as a page shows it.
    struct Shown {
        name: String,
        here: PlatformsHere,
        bytes: u64,
        digest: Digest,
    }

    fn list(
        cache: &scratch::Cache,
        query: &ImageQuery,
        deadline: Instant,
    ) -> (Vec<Shown>, [usize; 2], bool) {
        let holdings = cache.holdings();
        let mut scopes = cache.names.scopes();
        scopes.retain(|scope| scope.repository.as_str() != "secret");
        let page = holdings.page_until(&scopes, query, deadline);
        let show = |image: CachedImage| Shown {
            name: image.name().replace("host.example/", ""),
            here: PlatformsHere::of(&image.closure.parts),
            bytes: image.closure.bytes_here,
            digest: image.digest,
        };
        let shown = page.images.into_iter().map(show).collect();
        (shown, [page.matching, page.total], page.is_whole)
    }

    fn listed(
        cache: &scratch::Cache,
        search: &str,
        offset: usize,
    ) -> (Vec<Shown>, [usize; 2], bool) {
        let query = ImageQuery {
            search: search.to_owned(),
            offset,
            limit: usize::MAX,
        };
        list(cache, &query, Instant::now() + TIME_MAX * 30)
    }

    fn names(page: &(Vec<Shown>, [usize; 2], bool)) -> Vec<&str> {
        page.0.iter().map(|image| image.name.as_str()).collect()
    }

    #[test]
    fn images_come_last_pulled_first_and_are_found_by_words() {
        let cache = scratch::Cache::new();
        cache.image("team/app:v1", &[b"layer"], 5);
        cache.image("team/app:v2", &[b"layer", b"more"], 7);
        cache.image("base:v1", &[b"base"], 6);
        cache.image("secret:v1", &[b"base"], 8);
        let page = listed(&cache, "", 0);
        assert_eq!(names(&page), ["team/app:v2", "base:v1", "team/app:v1"]);
        assert_eq!((page.1, page.2), ([3, 3], true));
        assert_eq!(
            names(&listed(&cache, " APP host.example V2", 0)),
            ["team/app:v2"]
        );
        let rest = listed(&cache, "v1", 1);
        assert_eq!((names(&rest), rest.1[0]), (vec!["team/app:v1"], 2));
        assert_eq!(names(&listed(&cache, "nothing", 0)), [""; 0]);
    }

    #[test]
    fn an_image_without_a_blob_is_incomplete() {
        let cache = scratch::Cache::new();
        cache.image("app:v1", &[b"layer", b"other"], 5);
        let image = |cache| listed(cache, "", 0).0.remove(0);
        let before = image(&cache);
        assert_eq!(
            (before.here.whole, before.here.partial),
            (vec!["any".into()], vec![])
        );
        let manifest = cache.store.size(&before.digest).unwrap();
        assert_eq!(before.bytes, 10 + manifest);
        cache.store.remove(&cache.blob("app", b"layer")).unwrap();
        let after = image(&cache);
        assert_eq!(
            (after.here.whole, after.here.partial),
            (vec![], vec!["any".into()])
        );
        assert_eq!(after.bytes, before.bytes - 5);
    }

    #[test]
    fn an_index_lists_the_platforms_that_are_here() {
        let cache = scratch::Cache::new();
        let one = cache.image("app", &[b"one"], 5);
        let gone = cache.image("app", &[b"two"], 5);
        cache.index("app:v1", &[&one, &gone], 5);
        cache.store.remove(&gone).unwrap();
        let here = listed(&cache, "", 0).0.remove(0).here;
        let counts = [&here.whole, &here.partial, &here.absent].map(Vec::len);
        assert_eq!(counts, [1, 0, 1]);
    }

    #[test]
    fn a_page_and_its_time_are_bounded() {
        let cache = scratch::Cache::new();
        for number in 0..=PAGE_MAX {
            cache.image(&format!("app:v{number}"), &[b"layer"], 5);
        }
        let page = listed(&cache, "", 0);
        assert_eq!((page.0.len(), page.1[0]), (PAGE_MAX, PAGE_MAX + 1));
        assert_eq!(listed(&cache, "", PAGE_MAX).0.len(), 1);
        let late = list(&cache, &ImageQuery::default(), Instant::now());
        assert_eq!((late.0.len(), late.2), (0, false));
    }
}
