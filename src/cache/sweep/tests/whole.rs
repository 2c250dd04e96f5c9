//! An image is whole or gone, with its signatures; and what is pinned stays.

use super::*;
use crate::cache::scratch::IMAGE;
use crate::config::ImageGlobs;

fn evict_with(cache: &Cache, pins: &Pins, target: u64) -> Option<u64> {
    evict::evict(task(cache, pins), target, &|| false)
}

fn pinned(globs: &str) -> Pins {
    Pins {
        globs: vec![ImageGlobs::parse(globs).unwrap()],
        ..Pins::default()
    }
}

/// A signature: a manifest with one layer that refers to another manifest.
fn signature(cache: &Cache, name: &str, subject: &Digest, n: u8, used: u64) -> Digest {
    let repository = name.split(':').next().unwrap();
    let layer = cache.blob(repository, &layer(n));
    let document = serde_json::json!({
        "layers": [{"digest": layer.as_str()}],
        "subject": {"digest": subject.as_str()},
    });
    cache.manifest(name, IMAGE, &document, used)
}

fn tags(cache: &Cache, repository: &str) -> Vec<String> {
    let tags = cache.with(repository, |scope| cache.names.tags(scope));
    tags.iter().map(|tag| tag.as_str().to_owned()).collect()
}

#[test]
fn two_tags_of_one_manifest_are_two_images() {
    let cache = Cache::new();
    let one = cache.image("a:old", &[&layer(1)], 10);
    assert_eq!(cache.image("b:new", &[&layer(1)], 20), one);
    let other = cache.image("a:other", &[&layer(2)], 30);
    evict(&cache, used(&cache) - 25_000);
    // The first to go freed its names, so the second went, too; the newest was not needed.
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
    evict_one(&cache);
    assert!(!cache.store.has(&plain));
    assert!(cache.store.has(&index) && cache.store.has(&arm) && cache.store.has(&amd));
    evict_one(&cache);
    assert!(!cache.is_whole("b", &untagged, &[&layer(4)]));
    evict_one(&cache);
    assert_eq!(cache.store.used_bytes(), 0);
}

#[test]
fn bug_a_signature_went_before_its_image() {
    let cache = Cache::new();
    let image = cache.image("a:new", &[&layer(1)], 30);
    let signed = signature(&cache, "a", &image, 2, 10);
    let again = signature(&cache, "a", &signed, 3, 5);
    let other = cache.image("b:old", &[&layer(4)], 20);
    evict_one(&cache);
    assert!(!cache.is_whole("b", &other, &[&layer(4)]));
    assert!(cache.is_whole("a", &signed, &[&layer(2)]));
    assert!(cache.is_whole("a", &again, &[&layer(3)]));
    // It goes as a whole.
    evict_one(&cache);
    assert!(!cache.store.has(&image) && !cache.store.has(&signed) && !cache.store.has(&again));
    assert_eq!(cache.store.used_bytes(), 0);
}

#[test]
fn a_signature_by_the_name_of_its_tag_goes_with_its_image() {
    let cache = Cache::new();
    let image = cache.image("a:new", &[&layer(1)], 30);
    let name = format!("a:sha256-{}.sig", image.hex());
    let signed = cache.image(&name, &[&layer(2)], 10);
    // What it is attached to was never here.
    let elsewhere = format!("a:sha256-{}.att", "9".repeat(64));
    let stray = cache.image(&elsewhere, &[&layer(3)], 20);
    evict_one(&cache);
    assert!(!cache.is_whole("a", &stray, &[&layer(3)]));
    assert!(cache.is_whole("a", &signed, &[&layer(2)]));
    assert_eq!(tags(&cache, "a"), ["new", &name[2..]]);
    evict_one(&cache);
    assert_eq!((tags(&cache, "a").len(), cache.store.used_bytes()), (0, 0));
}

#[test]
fn use_of_a_signature_is_use_of_its_image() {
    let cache = Cache::new();
    let image = cache.image("a:old", &[&layer(1)], 10);
    signature(&cache, "a", &image, 2, 30);
    let other = cache.image("b:new", &[&layer(3)], 20);
    evict_one(&cache);
    assert!(cache.is_whole("a", &image, &[&layer(1), &layer(2)]));
    assert!(!cache.store.has(&other));
}

#[test]
fn manifests_that_lead_back_to_their_subject_go_all_the_same() {
    let cache = Cache::new();
    let image = cache.image("a:tag", &[&layer(1)], 10);
    // An index that names its own subject, and the tag of a signature that is the image itself.
    let document = serde_json::json!({
        "manifests": [{"digest": image.as_str(), "mediaType": IMAGE}],
        "subject": {"digest": image.as_str()},
    });
    cache.manifest("a", IMAGE, &document, 20);
    let name = format!("a:sha256-{}", image.hex());
    assert_eq!(cache.image(&name, &[&layer(1)], 10), image);
    evict(&cache, 0);
    assert_eq!(cache.store.used_bytes(), 0);
    assert_eq!(cache.names.registries(), []);
}

#[test]
fn manifests_that_lead_to_each_other_are_one_image() {
    let cache = Cache::new();
    let image = cache.image("a", &[&layer(1), &layer(2)], 20);
    let document = serde_json::json!({
        "manifests": [{"digest": image.as_str(), "mediaType": IMAGE}],
        "subject": {"digest": image.as_str()},
    });
    cache.manifest("a", IMAGE, &document, 20);
    for n in [1, 2] {
        let digest = digest_of(&layer(n));
        cache.with("a", |scope| {
            cache.names.touch_at(scope, "", None, &digest, at(1))
        });
    }
    let older = cache.image("b:old", &[&layer(3)], 10);
    evict_one(&cache);
    assert!(cache.is_whole("a", &image, &[&layer(1), &layer(2)]) && !cache.store.has(&older));
    evict_one(&cache);
    assert_eq!(cache.store.used_bytes(), 0);
}

#[test]
fn a_pinned_image_stays_with_all_it_needs() {
    let cache = Cache::new();
    let amd = cache.image("a", &[&layer(1), &layer(2)], 10);
    let index = cache.index("a:v1", &[&amd, &digest_of(b"another platform")], 10);
    let signed = signature(&cache, "a", &index, 3, 10);
    cache.image("a:w1", &[&layer(1), &layer(4)], 40);
    cache.image("b:v1", &[&layer(1), &layer(5)], 30);
    let bytes = evict_with(&cache, &pinned("a:v*"), 0).unwrap();
    assert!(cache.is_whole("a", &signed, &[&layer(3)]));
    assert!(cache.is_whole("a", &amd, &[&layer(1), &layer(2)]));
    assert!(cache.store.has(&index));
    assert_eq!(tags(&cache, "a"), ["v1"]);
    assert_eq!(bytes, cache.store.used_bytes());
    // A tag that means something else by now lets the old image go.
    let moved = cache.image("a:v1", &[&layer(6)], 50);
    cache
        .with("a", |scope| {
            let entry = crate::cache::names::TagEntry {
                digest: moved.clone(),
                media_type: crate::cache::scratch::INDEX.to_owned(),
                confirmed: at(50),
            };
            let tag = "v1".parse().unwrap();
            cache.names.set_tag(scope, "", &tag, entry, Moment::LAST)
        })
        .unwrap();
    evict_with(&cache, &pinned("a:v*"), 0);
    assert!(cache.is_whole("a", &moved, &[&layer(6)]) && !cache.store.has(&index));
}

#[test]
fn bug_a_manifest_that_was_pinned_by_its_digest_went_with_its_index() {
    let cache = Cache::new();
    let amd = cache.image("a", &[&layer(1)], 10);
    let arm = cache.image("a", &[&layer(2)], 10);
    let index = cache.index("a:v1", &[&amd, &arm], 10);
    let pins = Pins {
        names: vec![format!("host.example/a@{amd}").parse().unwrap()],
        ..Pins::default()
    };
    let bytes = evict_with(&cache, &pins, 0).unwrap();
    assert!(cache.is_whole("a", &amd, &[&layer(1)]));
    assert!(!cache.store.has(&index) && !cache.store.has(&arm));
    assert_eq!(bytes, cache.store.used_bytes());
}

#[test]
fn bug_a_tag_that_was_pinned_went_with_what_it_is_attached_to() {
    let cache = Cache::new();
    let image = cache.image("a:v1", &[&layer(1)], 10);
    let tag = format!("sha256-{}.sig", image.hex());
    let signed = cache.image(&format!("a:{tag}"), &[&layer(2)], 10);
    evict_with(&cache, &pinned("a:sha256-*"), 0);
    assert_eq!(tags(&cache, "a"), [tag]);
    assert!(cache.is_whole("a", &signed, &[&layer(2)]) && !cache.store.has(&image));
}

#[test]
fn an_image_is_pinned_by_its_digest() {
    let cache = Cache::new();
    let kept = cache.image("a", &[&layer(1)], 10);
    let other = cache.image("a", &[&layer(2)], 20);
    let pins = Pins {
        names: vec![format!("a@{kept}").parse().unwrap()],
        ..Pins::default()
    };
    evict_with(&cache, &pins, 0);
    assert!(cache.is_whole("a", &kept, &[&layer(1)]));
    assert!(!cache.is_whole("a", &other, &[&layer(2)]));
}

#[test]
fn pins_that_fill_the_quota_keep_others_out() {
    let cache = Cache::new();
    let kept = cache.image("a:v1", &[&layer(1)], 10);
    let sweeper = sweeper(&cache, used(&cache) + 1000);
    sweeper.pin(pinned("a:*"));
    sweeper.count();
    assert!(!sweeper.is_full_of_pins());
    assert!(sweeper.make_room(10_000, soon()).is_none());
    assert!(sweeper.is_full_of_pins() && sweeper.pinned_bytes() > 10_000);
    assert!(cache.is_whole("a", &kept, &[&layer(1)]));
    // Pinned no more, as by a restart with other settings.
    let sweeper = super::sweeper(&cache, used(&cache) + 1000);
    sweeper.count();
    assert!(sweeper.make_room(10_000, soon()).is_some() && !sweeper.is_full_of_pins());
}

#[test]
fn bug_images_that_were_pinned_later_were_evicted() {
    let cache = Cache::new();
    let image = cache.image("a:v1", &[&layer(1)], 10);
    let sweeper = sweeper(&cache, used(&cache) + 1000);
    sweeper.count();
    for (pins, stays) in [
        (pinned("b:*"), None),
        (pinned("a:*"), Some(true)),
        (Pins::default(), Some(false)),
    ] {
        sweeper.pin(pins);
        if let Some(stays) = stays {
            assert_eq!(sweeper.make_room(10_000, soon()).is_none(), stays);
            assert_eq!(cache.is_whole("a", &image, &[&layer(1)]), stays);
        }
    }
}

#[test]
fn what_upstream_no_longer_has_stays_for_longer() {
    const DAY: u64 = 24 * 60 * 60;
    let cache = Cache::new();
    let gone = cache.image("a:v1", &[&layer(1)], 10);
    let newer = cache.image("b:v1", &[&layer(2)], 29 * DAY);
    let newest = cache.image("c:v1", &[&layer(3)], 31 * DAY);
    let tag: Tag = "v1".parse().unwrap();
    cache.with("a", |scope| {
        cache.names.remove_missing_tag(scope, &tag, Moment::LAST)
    });
    let cache = cache.restart();
    sweeper(&cache, 0).count();
    evict_one(&cache);
    assert!(!cache.is_whole("b", &newer, &[&layer(2)]));
    evict_one(&cache);
    assert!(!cache.is_whole("a", &gone, &[&layer(1)]));
    assert!(cache.is_whole("c", &newest, &[&layer(3)]));
    assert_eq!(cache.names.repositories(&cache.registry), ["c"]);
}

#[test]
fn an_image_that_upstream_has_again_is_like_others() {
    let cache = Cache::new();
    let image = cache.image("a", &[&layer(1)], 10);
    let gone = |cache: &Cache| cache.with("a", |scope| cache.names.gone(scope).len());
    cache
        .with("a", |scope| cache.names.mark_gone(scope, &image))
        .unwrap();
    assert_eq!(gone(&cache), 1);
    cache.image("a", &[&layer(1)], 10);
    assert_eq!(gone(&cache), 0);
}

#[test]
fn bug_an_image_that_was_named_again_meanwhile_lost_its_blobs() {
    for repository in ["a", "b"] {
        let cache = Cache::new();
        let old = cache.image("a:old", &[&layer(1)], 10);
        let came = Cell::new(false);
        // Asked between the survey and the first image that goes.
        let stop = || {
            if !came.replace(true) {
                cache.image(&format!("{repository}:new"), &[&layer(1)], 5);
            }
            false
        };
        evict::evict(task(&cache, &NO_PINS), 0, &stop);
        assert!(
            cache.is_whole(repository, &old, &[&layer(1)]),
            "{repository}"
        );
        let tagged = tags(&cache, repository);
        assert!(tagged.contains(&"new".to_owned()), "{tagged:?}");
    }
}

fn remove(cache: &Cache, pins: &Pins, repository: &str, reference: &str) -> Result<u64, String> {
    let sweeper = sweeper(cache, 0);
    sweeper.pin(pins.clone());
    let reference = reference.parse().unwrap();
    cache.with(repository, |scope| sweeper.remove(scope, &reference))
}

#[test]
fn an_image_that_is_removed_takes_what_it_alone_needs() {
    let cache = Cache::new();
    let one = cache.image("a:one", &[&layer(1), &layer(2)], 10);
    let signed = signature(&cache, "a", &one, 3, 10);
    let two = cache.image("a:two", &[&layer(1), &layer(4)], 10);
    let none = Pins::default();
    let stays = |reference: &str, pins: &Pins| remove(&cache, pins, "a", reference).unwrap_err();
    assert!(stays("three", &none).contains("not in the cache"));
    assert!(stays(signed.as_str(), &none).contains("belongs to another image"));
    assert!(stays("one", &pinned("a:one")).contains("PIN"));
    assert!(
        remove(&cache, &none, "b", "one")
            .unwrap_err()
            .contains("nothing of this")
    );
    assert!(cache.is_whole("a", &one, &[&layer(1), &layer(2)]));
    // Two layers, two manifests: in whole blocks.
    assert_eq!(remove(&cache, &none, "a", "one"), Ok(2 * 12_288 + 2 * 4096));
    assert!(!cache.store.has(&one) && !cache.store.has(&signed));
    assert!(cache.is_whole("a", &two, &[&layer(1), &layer(4)]));
    assert_eq!(tags(&cache, "a"), ["two"]);
    assert!(remove(&cache, &none, "a", two.as_str()).is_ok());
    assert_eq!(
        (cache.store.used_bytes(), cache.names.registries().len()),
        (0, 0)
    );
}
