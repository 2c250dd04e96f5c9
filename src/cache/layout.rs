//! `index.json`, for tools that read the cache without us. Owns: that file. Must not: be read by
//! us: `repos/` is the truth, and the index is written from it.

use std::fs;
use std::io;

use serde_json::json;

use super::files;
use super::names::{Names, Scope};
use super::store::Store;
use crate::oci::{Repository, Tag};

/// The index of a layout that holds nothing.
pub(super) const EMPTY_INDEX: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

/// Writes the index anew if anything in it has changed: one descriptor for every cached tag whose
/// manifest is here, named `host/repository:tag` (image-spec `annotations.md`).
///
/// # Errors
/// The disk's own.
pub fn write_index(store: &Store, names: &Names) -> io::Result<()> {
    let mut manifests = Vec::new();
    for registry in names.registries() {
        for name in names.repositories(&registry) {
            let Ok(repository) = name.parse::<Repository>() else {
                continue;
            };
            let scope = Scope {
                registry: &registry,
                repository: &repository,
            };
            for tag in names.tags(scope) {
                manifests.extend(descriptor(store, names, scope, &tag));
            }
        }
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    let text = index.to_string();
    let path = store.root().join("index.json");
    if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    files::replace(&store.partial_root(), &path, text.as_bytes())
}

fn descriptor(
    store: &Store,
    names: &Names,
    scope: Scope<'_>,
    tag: &str,
) -> Option<serde_json::Value> {
    let tag: Tag = tag.parse().ok()?;
    // Where CACHE_KEY splits a tag, the index can name only one meaning: the newest.
    let entries = names.tag_anywhere(scope, &tag);
    let entry = entries.iter().find(|entry| store.has(&entry.digest))?;
    let name = format!("{}/{}:{}", scope.registry, scope.repository, tag.as_str());
    Some(json!({
        "mediaType": entry.media_type,
        "digest": entry.digest.as_str(),
        "size": store.size(&entry.digest)?,
        "annotations": {"org.opencontainers.image.ref.name": name},
    }))
}
