//! What a manifest names. Owns: reading manifests of every kind. Must not: do I/O.

use std::collections::HashSet;

use serde_json::{Value, json};

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

/// What a list of referrers says of a manifest, if that refers to `subject` (distribution-spec
/// "Listing Referrers").
pub fn referrer(
    manifest: &[u8],
    subject: &Digest,
    digest: &Digest,
    media_type: &str,
) -> Option<Value> {
    let document: Value = serde_json::from_slice(manifest).ok()?;
    if word(document.get("subject")?, "digest")? != subject.as_str() {
        return None;
    }
    let mut descriptor = json!({
        "mediaType": media_type,
        "digest": digest.as_str(),
        "size": manifest.len(),
    });
    let config = document
        .get("config")
        .and_then(|config| word(config, "mediaType"));
    let artifact_type = word(&document, "artifactType").filter(|kind| !kind.is_empty());
    let fields = descriptor.as_object_mut()?;
    if let Some(artifact_type) = artifact_type.or(config) {
        fields.insert("artifactType".to_owned(), artifact_type.into());
    }
    if let Some(annotations) = document.get("annotations").filter(|a| a.is_object()) {
        fields.insert("annotations".to_owned(), annotations.clone());
    }
    Some(descriptor)
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
    fn a_referrer_is_described_as_registries_do() {
        let (subject, own): (Digest, Digest) =
            (digest(1).parse().unwrap(), digest(2).parse().unwrap());
        let describe = |document: &Value| {
            let text = document.to_string();
            let size = text.len();
            referrer(text.as_bytes(), &subject, &own, "a/b").map(|found| (found, size))
        };
        let signature = serde_json::json!({"subject": {"digest": digest(1)},
            "artifactType": "sig/x", "config": {"mediaType": "c/d"}, "annotations": {"k": "v"}});
        let (found, size) = describe(&signature).unwrap();
        let expected = serde_json::json!({"mediaType": "a/b", "digest": digest(2), "size": size,
            "artifactType": "sig/x", "annotations": {"k": "v"}});
        assert_eq!(found, expected);
        let by_config = serde_json::json!({"subject": {"digest": digest(1)},
            "artifactType": "", "config": {"mediaType": "c/d"}});
        assert_eq!(describe(&by_config).unwrap().0["artifactType"], "c/d");
        for other in [
            serde_json::json!({"subject": {"digest": digest(3)}}),
            serde_json::json!({"subject": null}),
            serde_json::json!({"config": {}}),
            serde_json::json!([]),
        ] {
            assert_eq!(describe(&other), None, "{other}");
        }
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
