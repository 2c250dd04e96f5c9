//! The quota holds, the right images go, and what is in use stays.

use std::io::Write as _;
use std::thread;

use super::*;
use crate::cache::manifest::named_by;
use crate::cache::scratch::{Cache, at, digest_of};
use crate::oci::Tag;

const KB: usize = 1000;

fn layer(n: u8) -> Vec<u8> {
    vec![n; 10 * KB]
}

fn sweeper(cache: &Cache, quota: u64) -> Arc<Sweeper> {
    Sweeper::new(Arc::clone(&cache.store), Arc::clone(&cache.names), quota)
}

/// Evicts down to `target` as the thread would.
fn evict(cache: &Cache, target: u64) {
    sweeper(cache, target).evict(target);
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
        while !sweeper.locked().counted {
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
    let used = cache.store.used_bytes();
    evict(&cache, used);
    assert_eq!(whole(&cache), [true, true, true]);
    evict(&cache, used - 1);
    assert_eq!(whole(&cache), [true, true, false]);
    let cache = cache.restart();
    sweeper(&cache, 0).first_count();
    evict(&cache, 25_000);
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
    sweeper(&cache, 0).first_count();
    evict(&cache, 25_000);
    assert!(!cache.is_whole("a", &three, &[]));
    evict(&cache, 15_000);
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
    evict(&cache, cache.store.used_bytes() - 1);
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
    evict(&cache, 25_000);
    assert!(linked("a") && !linked("b"));
    assert!(cache.is_whole("a", &newer, &[&layer(1), &layer(4)]));
    evict(&cache, 5_000);
    assert!(!cache.store.has(&shared) && !linked("a"));
}

#[test]
fn two_tags_of_one_manifest_are_two_images() {
    let cache = Cache::new();
    let one = cache.image("a:old", &[&layer(1)], 10);
    assert_eq!(cache.image("b:new", &[&layer(1)], 20), one);
    let other = cache.image("a:other", &[&layer(2)], 30);
    evict(&cache, 15_000);
    // The first to go freed nothing, so the second went, too; the newest was not needed.
    assert!(!cache.store.has(&one));
    assert!(cache.is_whole("a", &other, &[&layer(2)]));
}

#[test]
fn an_index_is_one_image_with_its_platforms() {
    let cache = Cache::new();
    let arm = cache.image("a", &[&layer(1)], 10);
    let amd = cache.image("a", &[&layer(2)], 50);
    let index = cache.index("a:latest", &[&arm, &amd, &digest_of(b"not pulled")], 20);
    let plain = cache.image("a:plain", &[&layer(3)], 30);
    let untagged = cache.index("b", &[&cache.image("b", &[&layer(4)], 1)], 40);
    // The pull of one platform keeps the whole image, so the plain one is the oldest.
    evict(&cache, cache.store.used_bytes() - 1);
    assert!(!cache.store.has(&plain));
    assert!(cache.store.has(&index) && cache.store.has(&arm) && cache.store.has(&amd));
    evict(&cache, cache.store.used_bytes() - 1);
    assert!(!cache.is_whole("b", &untagged, &[&layer(4)]));
    evict(&cache, cache.store.used_bytes() - 1);
    assert_eq!(cache.store.used_bytes(), 0);
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
    evict(&cache, cache.store.used_bytes() - 1);
    assert!(!cache.store.has(&linked));
    cache.with("a", |scope| {
        assert!(cache.names.link(scope, &linked).is_none())
    });
    evict(&cache, cache.store.used_bytes() - 1);
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
    evict(&cache, 25_000);
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
    let came = std::cell::Cell::new(None);
    // Asked between the survey and the first image that goes.
    let stop = || {
        if came.get().is_none() {
            let new = cache.image("b:new", &[&layer(1)], 20);
            came.set(Some(
                named_by(&cache.store.read(&new, 9999).unwrap().unwrap()).len(),
            ));
        }
        false
    };
    evict::evict(&cache.store, &cache.names, 0, &stop);
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
    evict::evict(&cache.store, &cache.names, 0, &stop);
    assert!(cache.is_whole("a", &image, &[&layer(1)]));
    evict::evict(&cache.store, &cache.names, 0, &|| true);
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
    sweeper(&cache, 0).first_count();
    evict(&cache, 0);
    assert_eq!(cache.store.used_bytes(), 0);
    cache.with("a", |scope| {
        assert!(cache.names.tag_uses(scope).is_empty());
        assert!(cache.names.link(scope, &bad).is_none());
    });
}

#[test]
fn room_is_made_reserved_and_given_back() {
    let cache = Cache::new();
    let old = cache.image("a:old", &[&layer(1)], 10);
    let new = cache.image("a:new", &[&layer(2)], 20);
    let sweeper = sweeper(&cache, 25_000);
    let _running = Running::new(&sweeper);
    assert!(sweeper.make_room(25_001, soon()).is_none());
    let room = sweeper.make_room(10_000, soon()).unwrap();
    assert!(!cache.store.has(&old) && cache.store.has(&new));
    // Held: another one does not fit beside it unless something goes.
    let other = sweeper.make_room(10_000, soon()).unwrap();
    assert!(!cache.store.has(&new));
    assert_eq!(sweeper.locked().reserved, 20_000);
    drop((room, other));
    assert_eq!(sweeper.locked().reserved, 0);
    assert_eq!(sweeper.locked().wanted, 0);
}

#[test]
fn room_that_cannot_be_made_is_refused_before_the_deadline() {
    let cache = Cache::new();
    cache.image("a:tag", &[&layer(1)], 10);
    let sweeper = sweeper(&cache, 15_000);
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
    let sweeper = sweeper(&cache, 20_000);
    let _running = Running::new(&sweeper);
    let mut room = sweeper.make_room(15_000, soon()).unwrap();
    cache.store.add_used(10_000);
    room.spend(10_000);
    assert_eq!((room.left(), sweeper.locked().reserved), (5_000, 5_000));
    assert!(sweeper.fits(&sweeper.locked(), 5_000));
    assert!(!sweeper.fits(&sweeper.locked(), 5_001));
    room.spend(99_000);
    assert_eq!((room.left(), sweeper.locked().reserved), (0, 0));
}

#[test]
fn until_all_is_counted_whatever_fits_the_quota_may_begin() {
    let cache = Cache::new();
    cache.image("a:tag", &[&layer(1)], 10);
    let sweeper = sweeper(&cache, 10_000);
    assert!(sweeper.make_room(10_000, Instant::now()).is_some());
    assert!(sweeper.make_room(10_001, Instant::now()).is_none());
}

#[test]
fn a_stopped_thread_leaves_nobody_waiting() {
    let cache = Cache::new();
    cache.image("a:tag", &[&layer(1)], 10);
    let sweeper = sweeper(&cache, 15_000);
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
    let sweeper = sweeper(&cache, 15_000);
    let running = Running::new(&sweeper);
    let deadline = soon();
    while sweeper.locked().ended == 0 && Instant::now() < deadline {
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
    let sweeper = sweeper(&cache, 50_000);
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

#[test]
fn twenty_thousand_blobs_are_counted_in_two_seconds() {
    let cache = Cache::new();
    let folder = cache.scratch.path().join("blobs/sha256");
    for n in 0..20_000 {
        std::fs::write(folder.join(format!("{n:064x}")), "x").unwrap();
    }
    let cache = cache.restart();
    let begun = Instant::now();
    sweeper(&cache, 1).first_count();
    let took = begun.elapsed();
    assert_eq!(cache.store.used_bytes(), 20_000);
    assert!(took < Duration::from_secs(2), "{took:?}");
}
