//! What a manifest names. Owns: reading manifests of every kind. Must not: do I/O.

use std::collections::HashSet;

use serde_json::Value;

use crate::oci::Digest;

/// Everything a manifest names: config, layers and blobs (no media type), and the manifests of an
/// index (with theirs). What is no manifest names nothing.
///
/// A `subject` is not among them: a registry takes a manifest whose subject it does not have
/// (distribution-spec "Pushing Manifests with Subject"), so it vouches for nothing.
pub fn named_by(manifest: &[u8]) -> Vec<(Digest, Option<String>)> {
    let document: Value = serde_json::from_slice(manifest).unwrap_or_default();
    let config = document.get("config").into_iter();
    // `blobs`: the artifact manifest of OCI 1.1's release candidates.
    let blobs = config.chain(list(&document, "layers"));
    let blobs = blobs.chain(list(&document, "blobs"));
    let mut named: Vec<(Digest, Option<String>)> = blobs
        .filter_map(|descriptor| Some((word(descriptor, "digest")?.parse().ok()?, None)))
        .collect();
    // Docker's schema 1.
    let layers = list(&document, "fsLayers");
    named.extend(layers.filter_map(|layer| Some((word(layer, "blobSum")?.parse().ok()?, None))));
    named.extend(list(&document, "manifests").filter_map(|descriptor| {
        let media_type = word(descriptor, "mediaType").map(str::to_owned);
        Some((word(descriptor, "digest")?.parse().ok()?, media_type))
    }));
    let mut seen = HashSet::new();
    named.retain(|(digest, _)| seen.insert(digest.clone()));
    named
}

fn list<'a>(document: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    let list = document.get(name).and_then(Value::as_array);
    list.into_iter().flatten()
}

fn word<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> String {
        format!("sha256:{}", format!("{n:02x}").repeat(32))
    }

    fn named(document: &Value) -> Vec<(String, Option<String>)> {
        named_by(document.to_string().as_bytes())
            .into_iter()
            .map(|(digest, media_type)| (digest.as_str().to_owned(), media_type))
            .collect()
    }

    #[test]
    fn every_kind_of_manifest_is_read() {
        let image = serde_json::json!({
            "config": {"digest": digest(1), "mediaType": "application/json"},
            "layers": [{"digest": digest(2)}, {"digest": digest(3)}, {"digest": digest(2)}],
            "subject": {"digest": digest(9)},
        });
        let plain: Vec<_> = [1, 2, 3].map(|n| (digest(n), None)).into();
        assert_eq!(named(&image), plain);
        let typed = Some("application/vnd.oci.image.manifest.v1+json".to_owned());
        let index = serde_json::json!({"manifests": [
            {"digest": digest(4), "mediaType": typed}, {"digest": digest(5)}]});
        assert_eq!(named(&index), [(digest(4), typed), (digest(5), None)]);
        let old = serde_json::json!({"fsLayers": [{"blobSum": digest(6)}]});
        assert_eq!(named(&old), [(digest(6), None)]);
        let artifact = serde_json::json!({"blobs": [{"digest": digest(7)}]});
        assert_eq!(named(&artifact), [(digest(7), None)]);
    }

    #[test]
    fn what_is_no_manifest_names_nothing() {
        for text in ["", "{", "[]", "null", "7", r#"{"layers":{"digest":1}}"#] {
            assert_eq!(named_by(text.as_bytes()), [], "{text}");
        }
        let hostile = serde_json::json!({"config": "x", "layers": [1, {"digest": "sha256:../.."},
            {"digest": 5}, {}], "manifests": [{"digest": "md5:00"}]});
        assert_eq!(named(&hostile), []);
        let deep = "[".repeat(100_000);
        assert_eq!(named_by(deep.as_bytes()), []);
    }
}
