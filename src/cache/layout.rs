//! `index.json`, for tools that read the cache without us. Owns: that file. Must not: be read by
//! us: `repos/` is the truth, and the index is written from it.

use std::fs;
use std::io;

use serde_json::{Value, json};

use super::closure::Holdings;
use super::files;
use super::names::{Names, Scope};
use super::store::Store;
use crate::oci::Tag;

/// Writes the index anew if anything in it has changed: one descriptor for every cached tag whose
/// manifest is here, named `host/repository:tag` (image-spec `annotations.md`). Says how many there
/// are. In a cache that is only read, it counts them and no more.
///
/// # Errors
/// The disk's own.
pub fn write_index(store: &Store, names: &Names) -> io::Result<usize> {
    let mut manifests = Vec::new();
    for owned in names.scopes() {
        let scope = owned.as_scope();
        for tag in names.tags(scope) {
            manifests.extend(descriptor(Holdings { store, names }, scope, &tag));
        }
    }
    let count = manifests.len();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    let text = index.to_string();
    let path = store.root().join("index.json");
    if store.is_read_only() || fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(count);
    }
    files::replace(&store.partial_root(), &path, text.as_bytes())?;
    Ok(count)
}

fn descriptor(files: Holdings<'_>, scope: Scope<'_>, tag: &Tag) -> Option<Value> {
    // Where CACHE_KEY splits a tag, the index can name only one meaning: the newest.
    let entry = files.tag_entry(scope, tag)?;
    let name = format!("{}/{}:{}", scope.registry, scope.repository, tag.as_str());
    Some(json!({
        "mediaType": entry.media_type,
        "digest": entry.digest.as_str(),
        "size": files.store.size(&entry.digest)?,
        "annotations": {"org.opencontainers.image.ref.name": name},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::scratch::{Cache, IMAGE, INDEX};
    use crate::oci::Digest;

    fn index(cache: &Cache) -> Value {
        write_index(&cache.store, &cache.names).unwrap();
        let text = fs::read(cache.store.root().join("index.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn every_cached_tag_has_a_descriptor() {
        let cache = Cache::new();
        assert_eq!(index(&cache)["manifests"], json!([]));
        let image = cache.image("team/app:v1", &[b"layer"], 5);
        let list = cache.index("app:latest", &[&image], 6);
        cache.image("untagged", &[b"other"], 7);
        let index = index(&cache);
        assert_eq!(index["schemaVersion"], 2);
        let descriptor = |name: &str, digest: &Digest, kind: &str| {
            json!({
                "mediaType": kind,
                "digest": digest.as_str(),
                "size": cache.store.size(digest).unwrap(),
                "annotations": {"org.opencontainers.image.ref.name": name},
            })
        };
        let expected = json!([
            descriptor("host.example/app:latest", &list, INDEX),
            descriptor("host.example/team/app:v1", &image, IMAGE),
        ]);
        assert_eq!(index["manifests"], expected);
    }

    #[test]
    fn a_tag_without_its_manifest_is_left_out() {
        let cache = Cache::new();
        let image = cache.image("app:v1", &[b"layer"], 5);
        assert_eq!(index(&cache)["manifests"].as_array().unwrap().len(), 1);
        cache.store.remove(&image).unwrap();
        assert_eq!(index(&cache)["manifests"], json!([]));
    }

    #[test]
    fn an_unchanged_index_is_not_written() {
        use std::os::unix::fs::MetadataExt as _;
        let cache = Cache::new();
        let file = || {
            let metadata = fs::metadata(cache.store.root().join("index.json"));
            metadata.unwrap().ino()
        };
        cache.image("app:v1", &[b"layer"], 5);
        index(&cache);
        let before = file();
        index(&cache);
        assert_eq!(file(), before);
        cache.image("app:v2", &[b"layer"], 6);
        index(&cache);
        assert_ne!(file(), before);
    }

    #[test]
    fn a_failed_write_leaves_the_old_index() {
        let cache = Cache::new();
        cache.image("app:v0", &[b"layer"], 5);
        let before = index(&cache);
        cache.image("app:v1", &[b"layer"], 5);
        let partial = cache.store.root().join("partial");
        fs::rename(&partial, cache.store.root().join("away")).unwrap();
        assert!(write_index(&cache.store, &cache.names).is_err());
        let text = fs::read(cache.store.root().join("index.json")).unwrap();
        let after: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(after, before);
    }
}
