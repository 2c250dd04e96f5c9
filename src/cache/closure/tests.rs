//! What a walk finds, and that it ends.

use serde_json::{Value, json};

use super::*;
use crate::cache::manifest::DESCRIPTORS_MAX;
use crate::cache::scratch::{Cache, IMAGE, INDEX, digest_of};
use crate::cache::tree::DEPTH_MAX;

const ARM: &str = "linux/arm64/v8";

fn closure_of(cache: &Cache, root: &Digest) -> Closure {
    cache.holdings().closure(root, IMAGE_BYTES_MAX)
}

fn with_referrers(cache: &Cache, repository: &str, root: &Digest) -> Closure {
    cache.with(repository, |scope| {
        let index = ReferrerIndex::read(cache.holdings(), scope);
        cache.holdings().closure_with_referrers(scope, root, &index)
    })
}

/// An image with a configuration and one layer.
fn image(cache: &Cache, name: &str, layer: &[u8], config: &Value) -> Digest {
    let repository = name.split(':').next().unwrap();
    let config = cache.blob(repository, config.to_string().as_bytes());
    let layer = cache.blob(repository, layer);
    let document = json!({
        "config": {"digest": config.as_str(), "size": 7},
        "layers": [{"digest": layer.as_str(), "size": 5}],
    });
    cache.manifest(name, IMAGE, &document, 5)
}

fn parts(closure: &Closure) -> Vec<(&str, usize)> {
    let parts = closure.parts.iter();
    parts
        .map(|part| (part.platform.as_str(), part.missing.len()))
        .collect()
}

#[test]
fn an_index_leads_to_every_blob_with_its_platform() {
    let cache = Cache::new();
    let config = json!({"os": "linux", "architecture": "s390x"});
    let own = image(&cache, "app", b"shared", &config);
    let arm = image(&cache, "app", b"shared", &json!({"config": {}}));
    let attestation = digest_of(b"never pulled");
    let children = [
        (&own, json!(null)),
        (
            &arm,
            json!({"os": "linux", "architecture": "arm64", "variant": "v8"}),
        ),
        (
            &attestation,
            json!({"os": "unknown", "architecture": "unknown"}),
        ),
    ];
    let children = children.map(|(digest, platform)| {
        json!({"digest": digest.as_str(), "mediaType": IMAGE, "size": 9, "platform": platform})
    });
    let index = cache.manifest("app:v1", INDEX, &json!({"manifests": children}), 5);
    let closure = closure_of(&cache, &index);
    assert_eq!(closure.indexes, std::slice::from_ref(&index));
    let counts = closure.parts.iter().map(|part| part.digests.len());
    assert_eq!(counts.collect::<Vec<_>>(), [3, 3, 1]);
    assert_eq!(
        parts(&closure),
        [("linux/s390x", 0), (ARM, 0), (NO_PLATFORM, 1)]
    );
    assert!(closure.is_whole() && closure.parts[2].is_absent());
    let whole = closure.bytes_here;
    // The layer is needed by both, and is missed by both.
    cache.store.remove(&digest_of(b"shared")).unwrap();
    let closure = closure_of(&cache, &index);
    assert_eq!(parts(&closure)[..2], [("linux/s390x", 1), (ARM, 1)]);
    assert!(!closure.is_whole() && !closure.parts[0].is_absent());
    assert_eq!(
        whole - closure.bytes_here,
        b"shared".len() as u64,
        "it counted once"
    );
}

#[test]
fn a_tag_leads_to_the_newest_manifest_that_is_here() {
    let cache = Cache::new();
    let old = cache.image("app:v1", &[b"old"], 5);
    let index = cache.index("app:v1", &[&old], 6);
    let root = |tag: &str| {
        let tag = tag.parse().unwrap();
        let entry = cache.with("app", |scope| cache.holdings().tag_entry(scope, &tag));
        entry.map(|entry| entry.digest)
    };
    assert_eq!(root("v1"), Some(index.clone()));
    cache.store.remove(&index).unwrap();
    assert_eq!(root("v1"), Some(old.clone()));
    cache.store.remove(&old).unwrap();
    assert_eq!(root("v1"), Some(index));
    assert_eq!(root("v2"), None);
}

#[test]
fn what_refers_to_an_image_is_found_also_by_its_tag() {
    let cache = Cache::new();
    let root = image(&cache, "app:v1", b"layer", &json!({}));
    let refer = |name: &str, subject: &Digest, blob: &[u8]| {
        let blob = cache.blob("app", blob);
        let document = json!({
            "layers": [{"digest": blob.as_str()}],
            "subject": {"digest": subject.as_str()},
        });
        cache.manifest(name, IMAGE, &document, 5)
    };
    let signature = refer("app", &root, b"signature");
    let countersigned = refer("app", &signature, b"again");
    refer("app", &digest_of(b"another image"), b"no");
    let name = format!("app:sha256-{}.sig", root.hex());
    let cosign = image(&cache, &name, b"by cosign", &json!({}));
    let closure = with_referrers(&cache, "app", &root);
    let found: Vec<_> = closure
        .referrers
        .iter()
        .map(|part| &part.manifest)
        .collect();
    assert_eq!(found, [&signature, &cosign, &countersigned]);
    let (tag, entry) = &closure.attached[0];
    assert_eq!((tag.as_str(), &entry.digest), (&name[4..], &cosign));
    assert_eq!(closure.parts.len(), 1);
    assert_eq!(closure_of(&cache, &root).referrers, []);
}

#[test]
fn a_walk_ends_whatever_the_manifests_say() {
    let cache = Cache::new();
    // Manifests that lead to each other cannot be made, but a list may name one many times.
    let end = image(&cache, "app", b"layer", &json!({}));
    let mut top = end.clone();
    for _ in 0..=DEPTH_MAX {
        top = cache.index("app", &[&top, &top, &end], 5);
    }
    let closure = closure_of(&cache, &top);
    assert!(closure.is_cut && !closure.is_whole());
    assert_eq!(closure.parts.len(), 1);

    let size = cache.store.size(&end).unwrap();
    let bounded = |bytes_max| cache.holdings().closure(&end, bytes_max);
    assert!(!bounded(size).is_cut && bounded(size).is_whole());
    let small = bounded(size - 1);
    assert!(small.is_cut && !small.is_whole() && small.parts[0].digests.len() == 1);
    // One manifest after another, until there are too many bytes.
    let other = image(&cache, "app", b"other", &json!({}));
    let index = cache.index("app", &[&end, &other], 5);
    let most = cache.store.size(&index).unwrap() + 2 * size;
    let bounded = |bytes_max| cache.holdings().closure(&index, bytes_max).is_cut;
    assert_eq!((bounded(most), bounded(most - 1)), (false, true));
}

#[test]
fn what_is_damaged_or_absent_is_missing() {
    let cache = Cache::new();
    let root = image(&cache, "app", b"layer", &json!({}));
    let path = cache.scratch.path().join("blobs/sha256").join(root.hex());
    std::fs::write(path, "{").unwrap();
    for _ in 0..2 {
        let closure = closure_of(&cache, &root);
        assert_eq!(parts(&closure), [(ANY_PLATFORM, 1)]);
        assert!(closure.parts[0].is_absent() && closure.bytes_here == 0);
    }
}

#[test]
fn bug_a_manifest_that_another_one_names_as_its_layer_was_not_looked_into() {
    let cache = Cache::new();
    let hidden = image(&cache, "app", b"layer", &json!({}));
    let blob = |digest: &Digest| json!({"digest": digest.as_str()});
    let config = cache.blob("app", b"{}");
    let document = json!({"config": blob(&config), "layers": [blob(&hidden)]});
    let first = cache.manifest("app", IMAGE, &document, 5);
    let index = cache.index("app:v1", &[&first, &hidden], 5);
    cache.store.remove(&digest_of(b"layer")).unwrap();
    let closure = closure_of(&cache, &index);
    assert_eq!(parts(&closure), [(ANY_PLATFORM, 0), (ANY_PLATFORM, 1)]);
    assert!(!closure.is_whole());
}

#[test]
fn bug_an_image_that_names_more_than_is_read_was_whole() {
    let cache = Cache::new();
    let of_layers = |count: usize| {
        let blob = cache.blob("app", b"layer");
        // Different digests that need not be here.
        let layer = |n: usize| json!({"digest": digest_of(&n.to_le_bytes()).as_str(), "size": 5});
        let layers = (1..count)
            .map(layer)
            .chain([json!({"digest": blob.as_str()})]);
        let document = json!({"layers": layers.collect::<Vec<_>>()});
        closure_of(&cache, &cache.manifest("app", IMAGE, &document, 5))
    };
    let most = of_layers(DESCRIPTORS_MAX);
    assert!(!most.is_cut && most.parts[0].digests.len() == 1 + DESCRIPTORS_MAX);
    let more = of_layers(DESCRIPTORS_MAX + 1);
    assert!(more.is_cut && !more.is_whole());
}
