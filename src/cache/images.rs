//! The images in the cache, as people look for them. Owns: finding tags by name, and what is there
//! of each. Must not: change anything, or take longer than [`TIME_MAX`] by much.
//!
//! Only names and times are read of all tags. Manifests are read of the few on the page that was
//! asked for.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use super::closure::{ClosureBounds, ClosureWalk};
use super::holdings::PlatformsHere;
use super::names::{Names, Scope};
use super::paths::{file_names, modified};
use super::store::Store;
use crate::oci::{Digest, Tag};

/// Images on one page.
pub const PAGE_MAX: usize = 100;
/// Tags that are looked at: their names take some 10 MB meanwhile.
const TAGS_MAX: usize = 50_000;
/// Longest time that one listing takes; what was not looked at by then is left out.
const TIME_MAX: Duration = Duration::from_secs(2);
/// Images in use have a few hundred blobs, and manifests of a few KB.
const BOUNDS: ClosureBounds = ClosureBounds {
    members: 4096,
    manifest_bytes: 512 * 1024,
    total_bytes: 8 << 20,
};

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

/// A tag in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The registry's name.
    pub registry: String,
    /// The repository.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// The manifest that it means; none when that is not here.
    pub digest: Option<Digest>,
    /// Its platforms, such as `linux/arm64/v8`.
    pub platforms: PlatformsHere,
    /// Bytes of all that is here of it.
    pub size: u64,
    /// When a client last pulled it.
    pub pulled: SystemTime,
    /// When upstream last confirmed the tag.
    pub confirmed: Option<SystemTime>,
}

/// A page of images, the last pulled one first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImagePage {
    /// At most as many as were asked for.
    pub images: Vec<Image>,
    /// Images that fit the search.
    pub matching: usize,
    /// Images that were looked at.
    pub total: usize,
    /// False when there was no time, or no room, for all of them.
    pub is_whole: bool,
}

/// The files of the cache that are read.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// Manifests.
    pub store: &'a Store,
    /// Tags.
    pub names: &'a Names,
}

impl Files<'_> {
    /// Lists images of the repositories that are allowed. Blocks while it reads the disk, for two
    /// seconds at the longest.
    pub fn images(&self, query: &ImageQuery, is_allowed: &dyn Fn(&str) -> bool) -> ImagePage {
        self.list(query, is_allowed, Instant::now() + TIME_MAX)
    }

    fn list(
        &self,
        query: &ImageQuery,
        is_allowed: &dyn Fn(&str) -> bool,
        deadline: Instant,
    ) -> ImagePage {
        let words = query.search.split_whitespace().map(str::to_lowercase);
        let words: Vec<String> = words.collect();
        let mut found = Vec::new();
        let mut page = ImagePage {
            is_whole: true,
            ..ImagePage::default()
        };
        let mut places = self.names.scopes();
        places.retain(|place| is_allowed(place.repository.as_str()));
        for place in &places {
            let scope = place.scope();
            if Instant::now() >= deadline || page.total >= TAGS_MAX {
                page.is_whole = false;
                break;
            }
            let tags = tags_of(self.names, scope, TAGS_MAX - page.total);
            page.total += tags.len();
            let tags = tags.into_iter();
            let fitting = tags.filter(|(tag, _)| fits(scope, tag, &words));
            found.extend(fitting.map(|(tag, pulled)| (scope, tag, pulled)));
        }
        page.matching = found.len();
        found.sort_by_key(|(_, _, pulled)| Reverse(*pulled));
        let limit = query.limit.min(PAGE_MAX);
        for (scope, tag, pulled) in found.into_iter().skip(query.offset).take(limit) {
            page.is_whole &= Instant::now() < deadline;
            if page.is_whole {
                page.images.push(self.describe(scope, &tag, pulled));
            }
        }
        page
    }

    fn describe(&self, scope: Scope<'_>, tag: &Tag, pulled: SystemTime) -> Image {
        let entries = self.names.tag_anywhere(scope, tag);
        let confirmed = entries.first().map(|entry| entry.confirmed);
        let mut entries = entries.into_iter();
        let digest = entries.find_map(|entry| Some(entry.digest).filter(|d| self.store.has(d)));
        let walk = ClosureWalk {
            store: self.store,
            names: self.names,
            bounds: BOUNDS,
        };
        let closure = digest.as_ref().map(|digest| walk.closure(digest));
        let closure = closure.unwrap_or_default();
        Image {
            registry: scope.registry.to_string(),
            repository: scope.repository.to_string(),
            tag: tag.as_str().to_owned(),
            digest,
            platforms: PlatformsHere::of(&closure.parts),
            size: closure.bytes_here,
            pulled,
            confirmed,
        }
    }
}

/// The tags of a repository, with the time of the last use in any partition.
fn tags_of(names: &Names, scope: Scope<'_>, limit: usize) -> HashMap<Tag, SystemTime> {
    let mut tags = HashMap::new();
    for folder in names.paths.partitions(scope) {
        for name in file_names(&folder) {
            let Ok(tag) = name.parse::<Tag>() else {
                continue;
            };
            if tags.len() >= limit && !tags.contains_key(&tag) {
                continue;
            }
            let pulled = modified(&folder.join(name));
            let latest = tags.entry(tag).or_insert(pulled);
            *latest = pulled.max(*latest);
        }
    }
    tags
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
    use crate::cache::scratch;

    fn files(cache: &scratch::Cache) -> Files<'_> {
        Files {
            store: &cache.store,
            names: &cache.names,
        }
    }

    fn listed(cache: &scratch::Cache, search: &str, offset: usize) -> ImagePage {
        let query = ImageQuery {
            search: search.to_owned(),
            offset,
            limit: usize::MAX,
        };
        let deadline = Instant::now() + TIME_MAX * 30;
        files(cache).list(&query, &|name| name != "secret", deadline)
    }

    fn names(page: &ImagePage) -> Vec<String> {
        let name = |image: &Image| format!("{}:{}", image.repository, image.tag);
        page.images.iter().map(name).collect()
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
        assert_eq!((page.matching, page.total, page.is_whole), (3, 3, true));
        assert_eq!(
            names(&listed(&cache, " APP host.example V2", 0)),
            ["team/app:v2"]
        );
        let rest = listed(&cache, "v1", 1);
        assert_eq!(
            (names(&rest), rest.matching),
            (vec!["team/app:v1".to_owned()], 2)
        );
        assert_eq!(names(&listed(&cache, "nothing", 0)), [""; 0]);
    }

    #[test]
    fn an_image_without_a_blob_is_incomplete() {
        let cache = scratch::Cache::new();
        cache.image("app:v1", &[b"layer", b"other"], 5);
        let image = |cache| listed(cache, "", 0).images.remove(0);
        let before = image(&cache);
        assert_eq!(
            (before.platforms.whole, before.platforms.partial),
            (vec!["any".into()], vec![])
        );
        assert_eq!(
            before.size,
            10 + cache.store.size(&before.digest.unwrap()).unwrap()
        );
        cache.store.remove(&cache.blob("app", b"layer")).unwrap();
        let after = image(&cache);
        assert_eq!(
            (after.platforms.whole, after.platforms.partial),
            (vec![], vec!["any".into()])
        );
        assert_eq!(after.size, before.size - 5);
    }

    #[test]
    fn an_index_lists_the_platforms_that_are_here() {
        let cache = scratch::Cache::new();
        let one = cache.image("app", &[b"one"], 5);
        let gone = cache.image("app", &[b"two"], 5);
        cache.index("app:v1", &[&one, &gone], 5);
        cache.store.remove(&gone).unwrap();
        let image = listed(&cache, "", 0).images.remove(0);
        let here = &image.platforms;
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
        assert_eq!((page.images.len(), page.matching), (PAGE_MAX, PAGE_MAX + 1));
        assert_eq!(listed(&cache, "", PAGE_MAX).images.len(), 1);
        let late = files(&cache).list(&ImageQuery::default(), &|_| true, Instant::now());
        assert_eq!((late.images.len(), late.is_whole), (0, false));
    }
}
