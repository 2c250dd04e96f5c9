//! The quota holds, the right images go, and what is in use stays.

use std::io::Write as _;
use std::thread;

use super::*;
use crate::cache::changes::Moment;
use crate::cache::manifest::{Named, list_named};
use crate::cache::pages::List;
use crate::cache::scratch::{Cache, at, digest_of};
use crate::message::Headers;
use crate::oci::{Digest, Tag};

mod whole;

/// Nothing is pinned.
const NO_PINS: Pins = Pins {
    globs: Vec::new(),
    names: Vec::new(),
    default_registry: None,
};
const KB: usize = 1000;

fn layer(n: u8) -> Vec<u8> {
    vec![n; 10 * KB]
}

fn sweeper(cache: &Cache, quota: u64) -> Arc<Sweeper> {
    Sweeper::new(Arc::clone(&cache.store), Arc::clone(&cache.names), quota)
}

/// An eviction in which nothing else has to stay.
fn task<'a>(cache: &'a Cache, pins: &'a Pins) -> EvictionTask<'a> {
    EvictionTask {
        store: &cache.store,
        names: &cache.names,
        pins,
        unnamed_since: None,
    }
}

/// Evicts down to `target` as the thread would.
fn evict(cache: &Cache, target: u64) {
    evict::evict(task(cache, &NO_PINS), target, &|| false);
}

/// Bytes on disk, as they are counted now.
fn used(cache: &Cache) -> u64 {
    cache.names.count();
    cache.store.used_bytes() + cache.names.used_bytes()
}

/// Evicts the one image that is due.
fn evict_one(cache: &Cache) {
    evict(cache, used(cache) - 1);
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// The thread `sweep`, stopped at the end, whatever a test comes to.
struct Running(Arc<Sweeper>, Option<thread::JoinHandle<()>>);

impl Running {
    fn new(sweeper: &Arc<Sweeper>) -> Self {
        let own = Arc::clone(sweeper);
        let running = thread::Builder::new().spawn(move || own.run()).unwrap();
        while !sweeper.state.locked().is_counted {
            thread::yield_now();
        }
        Self(Arc::clone(sweeper), Some(running))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop();
        let ended = self.1.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

#[test]
fn the_least_recently_used_image_goes_first_and_whole() {
    let cache = Cache::new();
    let old = cache.image("a:old", &[&layer(1), &layer(2)], 30);
    let older = cache.image("b:older", &[&layer(3)], 20);
    let oldest = cache.image("a", &[&layer(4)], 10);
    let whole = |cache: &Cache| {
        [("a", &old, 1), ("b", &older, 3), ("a", &oldest, 4)]
            .map(|(repository, digest, n)| cache.is_whole(repository, digest, &[&layer(n)]))
    };
    evict(&cache, used(&cache));
    assert_eq!(whole(&cache), [true, true, true]);
    evict_one(&cache);
    assert_eq!(whole(&cache), [true, true, false]);
    let cache = cache.restart();
    sweeper(&cache, 0).count();
    evict_one(&cache);
    assert_eq!(whole(&cache), [true, false, false]);
    cache.with("b", |scope| assert!(cache.names.tags(scope).is_empty()));
    assert_eq!(cache.names.repositories(&cache.registry), ["a"]);
    evict(&cache, 0);
    assert_eq!(whole(&cache), [false, false, false]);
    assert_eq!(cache.store.used_bytes(), 0);
    assert!(cache.names.repositories(&cache.registry).is_empty());
}

#[test]
fn use_saves_an_image_also_across_a_restart() {
    let cache = Cache::new();
    let one = cache.image("a:one", &[&layer(1)], 10);
    let two = cache.image("a:two", &[&layer(2)], 20);
    let three = cache.image("a:three", &[&layer(3)], 30);
    // By its tag, and by its digest alone.
    let tag: Tag = "one".parse().unwrap();
    cache.with("a", |scope| {
        cache.names.touch_at(scope, "", Some(&tag), &one, at(40))
    });
    cache.with("a", |scope| {
        cache.names.touch_at(scope, "", None, &two, at(50))
    });
    let cache = cache.restart();
    sweeper(&cache, 0).count();
    evict_one(&cache);
    assert!(!cache.is_whole("a", &three, &[]));
    evict_one(&cache);
    assert!(!cache.is_whole("a", &one, &[]));
    assert!(cache.is_whole("a", &two, &[&layer(2)]));
}

#[test]
fn a_blob_that_another_image_needs_stays() {
    let cache = Cache::new();
    // The same layer under a tag, under another repository's tag, and beside it.
    let old = cache.image("a:old", &[&layer(1), &layer(2)], 10);
    let new = cache.image("b:new", &[&layer(1), &layer(3)], 20);
    let newer = cache.image("a:newer", &[&layer(1), &layer(4)], 30);
    evict_one(&cache);
    assert!(!cache.store.has(&old) && !cache.store.has(&digest_of(&layer(2))));
    assert!(cache.is_whole("b", &new, &[&layer(1), &layer(3)]));
    assert!(cache.is_whole("a", &newer, &[&layer(1), &layer(4)]));
    // It still belongs to the repository whose other image names it.
    let shared = digest_of(&layer(1));
    let linked = |repository: &str| {
        cache
            .with(repository, |scope| cache.names.link(scope, &shared))
            .is_some()
    };
    assert!(linked("a") && linked("b"));
    evict_one(&cache);
    assert!(linked("a") && !linked("b"));
    assert!(cache.is_whole("a", &newer, &[&layer(1), &layer(4)]));
    evict_one(&cache);
    assert!(!cache.store.has(&shared) && !linked("a"));
}

#[test]
fn a_blob_that_no_manifest_names_goes_by_its_own_use() {
    let cache = Cache::new();
    let image = cache.image("a:tag", &[&layer(1)], 20);
    let linked = cache.blob("a", &layer(2));
    cache.with("a", |scope| {
        cache.names.touch_at(scope, "", None, &linked, at(10))
    });
    let bare = digest_of(&layer(3));
    cache.store.put(&bare, &layer(3)).unwrap();
    evict_one(&cache);
    assert!(!cache.store.has(&linked));
    cache.with("a", |scope| {
        assert!(cache.names.link(scope, &linked).is_none())
    });
    evict_one(&cache);
    // Written just now, long after the image was used.
    assert!(!cache.store.has(&image) && cache.store.has(&bare));
    evict(&cache, 0);
    assert!(!cache.store.has(&bare));
}

#[test]
fn what_is_being_read_stays() {
    let cache = Cache::new();
    let old = cache.image("a:old", &[&layer(1), &layer(2)], 10);
    let new = cache.image("a:new", &[&layer(3)], 20);
    let blob = cache.store.blob(&digest_of(&layer(2))).unwrap().unwrap();
    evict(&cache, 0);
    assert!(cache.is_whole("a", &old, &[&layer(1), &layer(2)]));
    assert!(!cache.store.has(&new));
    drop(blob);
    evict(&cache, 0);
    assert_eq!(cache.store.used_bytes(), 0);
}

#[test]
fn an_image_that_stays_keeps_what_it_shares_with_one_that_goes() {
    let cache = Cache::new();
    let old = cache.image("a:old", &[&layer(1), &layer(2)], 10);
    let new = cache.image("a:new", &[&layer(1), &layer(3)], 20);
    let reading = cache.store.reading(&digest_of(&layer(2)));
    evict(&cache, 0);
    assert!(cache.is_whole("a", &old, &[&layer(1), &layer(2)]));
    assert!(!cache.store.has(&new) && !cache.store.has(&digest_of(&layer(3))));
    drop(reading);
    evict(&cache, 0);
    assert_eq!(cache.store.used_bytes(), 0);
}

#[test]
fn a_shared_blob_being_read_does_not_keep_the_rest() {
    let cache = Cache::new();
    let old = cache.image("a:old", &[&layer(1), &layer(2)], 10);
    let new = cache.image("a:new", &[&layer(1)], 20);
    let _reading = cache.store.reading(&digest_of(&layer(1)));
    evict(&cache, 0);
    assert!(!cache.store.has(&old) && !cache.store.has(&digest_of(&layer(2))));
    assert!(cache.is_whole("a", &new, &[&layer(1)]));
}

#[test]
fn downloads_that_nobody_goes_on_with_go_first() {
    let cache = Cache::new();
    let image = cache.image("a:tag", &[&layer(1)], 10);
    let (stale, busy) = (digest_of(b"stale"), digest_of(b"busy"));
    for digest in [&stale, &busy] {
        cache
            .store
            .partial(digest)
            .unwrap()
            .file
            .write_all(&layer(0))
            .unwrap();
        cache.store.add_used(10_000);
    }
    let filling = cache.store.reading(&busy);
    evict_one(&cache);
    assert!(cache.is_whole("a", &image, &[&layer(1)]));
    assert_eq!(cache.store.partial(&stale).unwrap().length, 0);
    evict(&cache, 0);
    assert!(!cache.store.has(&image));
    assert_eq!(cache.store.partial(&busy).unwrap().length, 10_000);
    assert_eq!(cache.store.used_bytes(), 10_000);
    drop(filling);
    evict(&cache, 0);
    assert_eq!(cache.store.used_bytes(), 0);
}

#[test]
fn a_manifest_that_comes_meanwhile_holds_what_it_names() {
    let cache = Cache::new();
    let old = cache.image("a:old", &[&layer(1), &layer(2)], 10);
    let came = Cell::new(None);
    // Asked between the survey and the first image that goes.
    let stop = || {
        if came.get().is_none() {
            let new = cache.image("b:new", &[&layer(1)], 20);
            came.set(Some(
                list_named(&cache.store.read(&new, 9999).unwrap().unwrap()).len(),
            ));
        }
        false
    };
    evict::evict(task(&cache, &NO_PINS), 0, &stop);
    assert_eq!(came.get(), Some(1));
    assert!(!cache.store.has(&old) && !cache.store.has(&digest_of(&layer(2))));
    assert!(cache.store.has(&digest_of(&layer(1))));
}

#[test]
fn an_image_used_meanwhile_stays() {
    let cache = Cache::new();
    let image = cache.image("a:tag", &[&layer(1)], 10);
    let stop = || {
        cache.with("a", |scope| {
            cache.names.touch_at(scope, "", None, &image, at(20))
        });
        false
    };
    evict::evict(task(&cache, &NO_PINS), 0, &stop);
    assert!(cache.is_whole("a", &image, &[&layer(1)]));
    evict::evict(task(&cache, &NO_PINS), 0, &|| true);
    assert!(cache.is_whole("a", &image, &[&layer(1)]));
}

#[test]
fn a_damaged_manifest_or_tag_stops_no_eviction() {
    let cache = Cache::new();
    let bad = cache.image("a:bad", &[&layer(1)], 10);
    let repos = cache
        .scratch
        .path()
        .join("repos/host.example/a/_tags/worse");
    std::fs::write(repos, "{").unwrap();
    let worse: Tag = "worse".parse().unwrap();
    cache.with("a", |scope| {
        cache.names.touch_at(scope, "", Some(&worse), &bad, at(5))
    });
    let path = cache.scratch.path().join("blobs/sha256").join(bad.hex());
    std::fs::write(path, "{").unwrap();
    sweeper(&cache, 0).count();
    evict(&cache, 0);
    assert_eq!(cache.store.used_bytes(), 0);
    cache.with("a", |scope| {
        assert!(cache.names.tag_uses(scope, 1).is_empty());
        assert!(cache.names.link(scope, &bad).is_none());
    });
}

#[test]
fn room_is_made_reserved_and_given_back() {
    let cache = Cache::new();
    let old = cache.image("a:old", &[&layer(1)], 10);
    let new = cache.image("a:new", &[&layer(2)], 20);
    let quota = used(&cache) + 5_000;
    let sweeper = sweeper(&cache, quota);
    sweeper.count();
    assert!(sweeper.make_room(quota + 1, soon()).is_none());
    let room = sweeper.make_room(25_000, soon()).unwrap();
    assert!(!cache.store.has(&old) && cache.store.has(&new));
    // Held: another one does not fit beside it unless something goes.
    let other = sweeper.make_room(25_000, soon()).unwrap();
    assert!(!cache.store.has(&new));
    // In whole blocks.
    assert_eq!(sweeper.state.locked().reserved, 2 * 7 * 4096);
    drop((room, other));
    assert_eq!(sweeper.state.locked().reserved, 0);
    assert_eq!(sweeper.state.locked().wanted, 0);
}

#[test]
fn room_that_cannot_be_made_is_refused_before_the_deadline() {
    let cache = Cache::new();
    cache.image("a:tag", &[&layer(1)], 10);
    let sweeper = sweeper(&cache, used(&cache) + 5_000);
    let _running = Running::new(&sweeper);
    let reading = cache.store.reading(&digest_of(&layer(1)));
    let begun = Instant::now();
    assert!(sweeper.make_room(10_000, soon()).is_none());
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(sweeper.make_room(10_000, Instant::now()).is_none());
    drop(reading);
    assert!(sweeper.make_room(10_000, soon()).is_some());
}

#[test]
fn spent_room_counts_once() {
    let cache = Cache::new();
    let sweeper = sweeper(&cache, used(&cache) + 20_480);
    sweeper.count();
    let mut room = sweeper.make_room(16_384, soon()).unwrap();
    cache.store.add_used(10_000);
    room.spend(10_000);
    assert_eq!(
        (room.left(), sweeper.state.locked().reserved),
        (6_384, 6_384)
    );
    assert!(sweeper.fits(&sweeper.state.locked(), 4_096));
    assert!(!sweeper.fits(&sweeper.state.locked(), 4_097));
    room.spend(99_000);
    assert_eq!((room.left(), sweeper.state.locked().reserved), (0, 0));
}

#[test]
fn until_all_is_counted_whatever_fits_the_quota_may_begin() {
    let cache = Cache::new();
    cache.image("a:tag", &[&layer(1)], 10);
    let sweeper = sweeper(&cache, 8_192);
    assert!(sweeper.make_room(8_192, Instant::now()).is_some());
    assert!(sweeper.make_room(8_193, Instant::now()).is_none());
}

#[test]
fn a_stopped_thread_leaves_nobody_waiting() {
    let cache = Cache::new();
    cache.image("a:tag", &[&layer(1)], 10);
    let sweeper = sweeper(&cache, used(&cache) + 5_000);
    drop(Running::new(&sweeper));
    assert!(sweeper.make_room(10_000, soon()).is_none());
}

#[test]
fn a_smaller_quota_holds_after_a_start() {
    let cache = Cache::new();
    let old = cache.image("a:old", &[&layer(1)], 10);
    let new = cache.image("a:new", &[&layer(2)], 20);
    let cache = cache.restart();
    std::fs::write(cache.scratch.path().join("partial/temp-0.1-0"), "x").unwrap();
    sweeper(&cache, 0).count();
    let sweeper = sweeper(&cache, used(&cache) - 1);
    let running = Running::new(&sweeper);
    let deadline = soon();
    while sweeper.state.locked().ended == 0 && Instant::now() < deadline {
        thread::yield_now();
    }
    drop(running);
    assert!(!cache.store.has(&old));
    assert!(cache.is_whole("a", &new, &[&layer(2)]));
    assert!(!cache.scratch.path().join("partial/temp-0.1-0").exists());
}

#[test]
fn a_changed_tag_comes_into_the_index() {
    let cache = Cache::new();
    let sweeper = sweeper(&cache, 5_000_000);
    let _running = Running::new(&sweeper);
    cache.image("a:tag", &[&layer(1)], 10);
    sweeper.mark_dirty();
    let index = || std::fs::read_to_string(cache.store.root().join("index.json")).unwrap();
    let deadline = soon();
    while !index().contains("host.example/a:tag") && Instant::now() < deadline {
        thread::yield_now();
    }
    assert!(index().contains("host.example/a:tag"));
}

/// A manifest for each, which names the one before.
fn chain(cache: &Cache, repository: &str, length: usize) -> Digest {
    let mut last = cache.blob(repository, b"the end of the chain");
    for n in 0..length {
        last = cache.index(repository, &[&last], n as u64);
    }
    last
}

#[test]
fn a_chain_of_manifests_is_one_image() {
    let cache = Cache::new();
    let last = chain(&cache, "a", 300);
    let used = |survey: &survey::Survey| survey.images[0].accessed;
    let survey = survey::Survey::take(task(&cache, &NO_PINS)).unwrap();
    assert_eq!((survey.images.len(), used(&survey)), (1, at(299)));
    assert_eq!(survey.images[0].alone.len(), 301);
    // Used in the middle: used as a whole.
    let middle = cache.index("a", &[&digest_of(b"the end of the chain")], 0);
    cache.with("a", |scope| {
        cache.names.touch_at(scope, "", None, &middle, at(500))
    });
    let survey = survey::Survey::take(task(&cache, &NO_PINS)).unwrap();
    assert_eq!((survey.images.len(), used(&survey)), (1, at(500)));
    drop(survey);
    evict(&cache, 0);
    assert!(!cache.store.has(&last));
    assert_eq!(cache.store.used_bytes(), 0);
    cache.with("a", |scope| {
        assert!(cache.names.link_uses(scope).is_empty())
    });
}

#[test]
fn chains_that_share_their_end_cost_each_link_once() {
    let cache = Cache::new();
    let shared = chain(&cache, "a", 100);
    let tops: Vec<Digest> = (0..100)
        .map(|n| cache.index("a", &[&shared, &digest_of(&[n])], 1000 + u64::from(n)))
        .collect();
    let survey = survey::Survey::take(task(&cache, &NO_PINS)).unwrap();
    assert_eq!(survey.images.len(), 100);
    let alone = survey.images.iter().map(|image| image.alone.len());
    // The chain with its end goes with the last one.
    assert_eq!(alone.collect::<Vec<_>>(), [&[2; 99][..], &[103]].concat());
    drop(survey);
    evict_one(&cache);
    assert!(!cache.store.has(&tops[0]) && cache.store.has(&tops[1]));
    assert!(cache.store.has(&shared));
    evict(&cache, 0);
    assert_eq!(cache.store.used_bytes(), 0);
}

#[test]
fn names_and_folders_count_and_are_evicted() {
    let cache = Cache::new();
    let empty = used(&cache);
    assert!(empty >= 8 * 4096, "{empty}");
    cache.image("a:tag", &[&layer(1)], 10);
    // A link to a blob that is not here, and pages of a repository of which there is nothing else.
    let absent = digest_of(b"absent");
    cache.with("b", |scope| {
        cache
            .names
            .link_blob(scope, &absent, None, Moment::LAST)
            .unwrap();
    });
    cache.with("c", |scope| {
        let (list, headers) = (List::Tags(scope), Headers::new());
        cache
            .names
            .set_page(list, "", &headers, b"{}", at(5), Moment::LAST)
            .unwrap();
    });
    let counted_along = cache.store.used_bytes() + cache.names.used_bytes();
    assert_eq!(counted_along, used(&cache));
    evict(&cache, 0);
    assert_eq!(used(&cache), empty);
    assert_eq!(cache.names.registries(), []);
}

#[test]
fn room_is_made_without_the_thread() {
    let cache = Cache::new();
    let old = cache.image("a:old", &[&layer(1)], 10);
    let sweeper = sweeper(&cache, used(&cache) + 5_000);
    sweeper.count();
    assert!(sweeper.make_room(20_000, soon()).is_some());
    assert!(!cache.store.has(&old));
    assert!(!sweeper.state.locked().is_evicting);
}

#[test]
fn one_evicts_and_the_others_wait_for_their_room() {
    let cache = Cache::new();
    for n in 0..20 {
        cache.image(&format!("a:{n}"), &[&layer(n)], u64::from(n));
    }
    let sweeper = sweeper(&cache, used(&cache));
    sweeper.count();
    let rooms: Vec<_> = thread::scope(|scope| {
        let waiting: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| sweeper.make_room(30_000, soon())))
            .collect();
        waiting
            .into_iter()
            .map(|room| room.join().unwrap())
            .collect()
    });
    assert_eq!(rooms.iter().flatten().count(), 8);
    assert!(used(&cache) + 8 * 30_000 <= sweeper.quota);
}

#[test]
fn the_thread_evicts_before_the_quota_is_reached() {
    let cache = Cache::new();
    let old = cache.image("a:old", &[&layer(1)], 10);
    let new = cache.image("a:new", &[&layer(2)], 20);
    let sweeper = sweeper(&cache, used(&cache) + 100);
    let running = Running::new(&sweeper);
    let deadline = soon();
    while cache.store.has(&old) && Instant::now() < deadline {
        thread::yield_now();
    }
    drop(running);
    assert!(!cache.store.has(&old) && cache.store.has(&new));
}

#[test]
fn bug_links_that_waited_were_written_past_the_quota() {
    let cache = Cache::new();
    let named = (0..100).map(|n| Named {
        platform: None,
        digest: format!("sha256:{n:064x}").parse().unwrap(),
        media_type: None,
        size: Some(7),
    });
    cache.with("team/app", |scope| {
        let linked = cache.names.link_named(scope, named.collect(), Moment::LAST);
        linked.unwrap();
    });
    // Room for ten files of a block each.
    let quota = used(&cache) + 10 * 4096;
    sweeper(&cache, quota).write_all();
    let written = cache.with("team/app", |scope| cache.names.link_uses(scope).len());
    assert!((1..=10).contains(&written), "{written} links");
}

#[test]
fn twenty_thousand_blobs_are_counted_in_seconds() {
    let cache = Cache::new();
    let folder = cache.scratch.path().join("blobs/sha256");
    for n in 0..20_000 {
        std::fs::write(folder.join(format!("{n:064x}")), "x").unwrap();
    }
    let cache = cache.restart();
    let begun = Instant::now();
    sweeper(&cache, 1).count();
    let took = begun.elapsed();
    assert_eq!(cache.store.used_bytes(), 20_000 * 4096);
    // Ten times what a machine takes that is not busy.
    assert!(took < Duration::from_secs(20), "{took:?}");
}
