//! What a manifest names. Owns: reading manifests of every kind, and the limits of that. Must not:
//! do I/O.
//!
//! A manifest is up to 16 MiB of anybody's JSON. It is read in one pass that keeps the fields named
//! in [`KEYS`] and skips the rest, so that reading costs little more memory than the manifest.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::sync::Mutex;

use serde_core::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value, json};

use crate::locked::Locked as _;
use crate::oci::Digest;

/// Digests that are read from one manifest; it may name more, which are then looked up one by one
/// when they are asked for. docker builds 127 layers, ECR takes 4,200 (its quotas).
pub const DESCRIPTORS_MAX: usize = 4_200;
/// Fields kept of all descriptors of one manifest: six of each. What begins after them is skipped.
const FIELDS_MAX: usize = 6 * DESCRIPTORS_MAX;
/// Longest text that is kept: twice the longest media type (RFC 6838) or digest.
const TEXT_BYTES_MAX: usize = 512;
/// Annotations of a referrer that are repeated in the list of referrers.
const ANNOTATIONS_MAX: usize = 256;
/// Longest value of an annotation that is repeated: an icon, a licence.
const ANNOTATION_BYTES_MAX: usize = 64 * 1024;
/// Manifests above this are read one at a time, so that their memory is needed once.
const LARGE_BYTES: usize = 256 * 1024;

/// The fields that are read.
const KEYS: [&str; 13] = [
    "annotations",
    "artifactType",
    "blobSum",
    "blobs",
    "config",
    "digest",
    "fsLayers",
    "layers",
    "manifests",
    "mediaType",
    "size",
    "subject",
    "urls",
];

/// A digest that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The digest.
    pub digest: Digest,
    /// For a manifest: its media type.
    pub media_type: Option<String>,
    /// Its length in bytes, as the manifest has it.
    pub size: Option<u64>,
}

/// Everything a manifest names: config, layers and blobs (without a media type), and the manifests
/// of an index (with theirs); at most [`DESCRIPTORS_MAX`]. What is no manifest names nothing.
///
/// A `subject` is not among them: a registry takes a manifest whose subject it does not have
/// (distribution-spec "Pushing Manifests with Subject"), so it vouches for nothing. Neither are
/// foreign layers, whose bytes are elsewhere: no registry looks whether it has them.
pub fn list_named(manifest: &[u8]) -> Vec<Named> {
    let document = read(manifest);
    let mut named = Vec::new();
    if !document.is_of_one_kind() {
        return named;
    }
    // `blobs`: the artifact manifest of OCI 1.1's release candidates. `fsLayers`: Docker's schema
    // 1.
    let config = document.get("config").into_iter();
    let blobs = config
        .chain(document.list("layers"))
        .chain(document.list("blobs"));
    named.extend(blobs.filter_map(|blob| blob.describe("digest", None)));
    let layers = document.list("fsLayers");
    named.extend(layers.filter_map(|layer| layer.describe("blobSum", None)));
    let manifests = document.list("manifests");
    named.extend(manifests.filter_map(|child| child.describe("digest", child.text("mediaType"))));
    let mut seen = HashSet::new();
    named.retain(|named| seen.insert(named.digest.clone()));
    named.truncate(DESCRIPTORS_MAX);
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
    let document = read(manifest);
    if document.get("subject")?.text("digest")? != subject.as_str() {
        return None;
    }
    let mut descriptor = json!({
        "mediaType": media_type,
        "digest": digest.as_str(),
        "size": manifest.len(),
    });
    let config = document
        .get("config")
        .and_then(|config| config.text("mediaType"));
    let artifact_type = document
        .text("artifactType")
        .filter(|kind| !kind.is_empty());
    let fields = descriptor.as_object_mut()?;
    if let Some(artifact_type) = artifact_type.or(config) {
        fields.insert("artifactType".to_owned(), artifact_type.into());
    }
    if let Some(Kept::Annotations(annotations)) = document.get("annotations") {
        fields.insert("annotations".to_owned(), Value::Object(annotations.clone()));
    }
    Some(descriptor)
}

fn read(manifest: &[u8]) -> Kept {
    static LARGE: Mutex<()> = Mutex::new(());
    let _one_at_a_time = (manifest.len() > LARGE_BYTES).then(|| LARGE.locked());
    let left = Cell::new(FIELDS_MAX);
    let mut json = serde_json::Deserializer::from_slice(manifest);
    let kept = Keep {
        left: &left,
        part: JsonPlace::Document,
    };
    let kept = kept.deserialize(&mut json);
    let kept = kept.and_then(|kept| json.end().map(|()| kept));
    kept.unwrap_or(Kept::Other)
}

/// What is kept of a JSON value.
#[derive(Debug)]
enum Kept {
    Text(String),
    Number(u64),
    List(Vec<Self>),
    Object(Vec<(&'static str, Self)>),
    Annotations(Map<String, Value>),
    Null,
    /// An object that does not fit. It is there, and says nothing.
    Skipped,
    /// Anything else, and a text that is longer than is kept.
    Other,
}

impl Kept {
    fn get(&self, key: &str) -> Option<&Self> {
        let Self::Object(fields) = self else {
            return None;
        };
        let field = fields.iter().find(|(name, _)| *name == key);
        field.map(|(_, value)| value)
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn list(&self, key: &str) -> impl Iterator<Item = &Self> {
        let list = match self.get(key) {
            Some(Self::List(list)) => list.as_slice(),
            _ => &[],
        };
        list.iter()
    }

    /// False for a document that could be an image and an index at once, or that is not what its
    /// media type says: the registry that took it has looked at one kind only (CVE-2021-41190).
    fn is_of_one_kind(&self) -> bool {
        let has = |key| self.list(key).next().is_some();
        let config = self.get("config");
        let has_config = matches!(config, Some(Self::Object(_) | Self::Skipped));
        let is_image = has_config || has("layers");
        let kinds = [is_image, has("blobs"), has("fsLayers"), has("manifests")];
        let media_type = self.text("mediaType").unwrap_or_default();
        let says_index = media_type.contains(".index.") || media_type.contains(".list.");
        kinds.into_iter().filter(|kind| *kind).count() == 1
            && (media_type.is_empty() || says_index == has("manifests"))
    }

    /// True for a layer that may be fetched elsewhere (image-spec "urls"), or that no registry need
    /// have: Docker's `…foreign.diff.tar.gzip`, OCI's `…layer.nondistributable.v1.tar`.
    fn is_foreign(&self) -> bool {
        let media_type = self.text("mediaType").unwrap_or_default();
        !matches!(self.get("urls"), None | Some(Self::Null))
            || media_type.contains(".foreign.")
            || media_type.contains(".nondistributable.")
    }

    fn describe(&self, digest: &str, media_type: Option<&str>) -> Option<Named> {
        if self.is_foreign() {
            return None;
        }
        let size = match self.get("size") {
            Some(Self::Number(size)) => Some(*size),
            _ => None,
        };
        Some(Named {
            digest: self.text(digest)?.parse().ok()?,
            media_type: media_type.map(str::to_owned),
            size,
        })
    }
}

/// Where in the manifest a value is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum JsonPlace {
    Document,
    Annotations,
    Inside,
}

/// Reads a value and keeps what is wanted of it, as long as there are fields `left` to keep. The
/// fields of the document itself are always kept: they say of which kind it is.
#[derive(Clone, Copy)]
struct Keep<'a> {
    left: &'a Cell<usize>,
    part: JsonPlace,
}

impl Keep<'_> {
    const fn of(self, part: JsonPlace) -> Self {
        Self { part, ..self }
    }

    /// One field more is kept; false when there are too many.
    fn count(self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        self.part == JsonPlace::Document || left > 0
    }

    fn annotations<'de, A: MapAccess<'de>>(self, mut object: A) -> Result<Kept, A::Error> {
        let mut annotations = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            let value = object.next_value_seed(self)?;
            if let (Kept::Text(text), true) = (value, annotations.len() < ANNOTATIONS_MAX) {
                annotations.insert(name, text.into());
            }
        }
        Ok(Kept::Annotations(annotations))
    }
}

impl<'de> DeserializeSeed<'de> for Keep<'_> {
    type Value = Kept;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Kept, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keep<'_> {
    type Value = Kept;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Kept, E> {
        Ok(Kept::Other)
    }

    fn visit_unit<E>(self) -> Result<Kept, E> {
        Ok(Kept::Null)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Kept, E> {
        Ok(Kept::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Kept, E> {
        Ok(Kept::Other)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Kept, E> {
        Ok(Kept::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Kept, E> {
        let limit = match self.part {
            JsonPlace::Annotations => ANNOTATION_BYTES_MAX,
            JsonPlace::Document | JsonPlace::Inside => TEXT_BYTES_MAX,
        };
        Ok(match text.len() <= limit {
            true => Kept::Text(text.to_owned()),
            false => Kept::Other,
        })
    }

    /// A list of objects; anything else in a list says nothing. Of those that do not fit, one
    /// shows that there are any.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Kept, A::Error> {
        let mut kept = Vec::new();
        while let Some(value) = list.next_element_seed(self.of(JsonPlace::Inside))? {
            let is_kept = match &value {
                Kept::Object(fields) => !fields.is_empty(),
                Kept::Skipped => kept.is_empty(),
                _ => false,
            };
            if is_kept {
                kept.push(value);
            }
        }
        Ok(Kept::List(kept))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Kept, A::Error> {
        if self.part == JsonPlace::Annotations {
            return self.annotations(object);
        }
        let mut fields: Vec<(&'static str, Kept)> = Vec::new();
        while let Some(key) = object.next_key_seed(Key)? {
            let Some(key) = key else {
                object.next_value::<IgnoredAny>()?;
                continue;
            };
            if fields.iter().any(|(name, _)| *name == key) {
                // Registries take the last of them or the first; nobody knows which.
                return Err(A::Error::custom("a field is there twice"));
            }
            let part = match (self.part, key) {
                (JsonPlace::Document, "annotations") => JsonPlace::Annotations,
                _ => JsonPlace::Inside,
            };
            if !self.count() {
                // A part of it could be taken for another: a foreign layer for one that is not.
                object.next_value::<IgnoredAny>()?;
                while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                return Ok(Kept::Skipped);
            }
            fields.push((key, object.next_value_seed(self.of(part))?));
        }
        Ok(Kept::Object(fields))
    }
}

/// Reads the name of a field; none for one that is skipped.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    /// Go's JSON, which most registries use, takes a name in any case.
    fn visit_str<E: serde_core::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        let key = KEYS.into_iter().find(|key| key.eq_ignore_ascii_case(name));
        match key {
            Some(key) if key != name => Err(E::custom("a field's name is in another case")),
            key => Ok(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> String {
        format!("sha256:{}", format!("{n:02x}").repeat(32))
    }

    fn named(document: &Value) -> Vec<(String, Option<String>)> {
        list_named(document.to_string().as_bytes())
            .into_iter()
            .map(|named| (named.digest.as_str().to_owned(), named.media_type))
            .collect()
    }

    /// A manifest with more layers than are read, and what comes after them.
    fn long(layer: &str, after: &str) -> String {
        let layers: Vec<String> = (0..46_601)
            .map(|n| format!(r#"{{"digest":"sha256:{n:064x}"{layer}}}"#))
            .collect();
        format!(r#"{{"layers":[{}]{after}}}"#, layers.join(","))
    }

    #[test]
    fn bug_a_manifest_of_46_601_digests_named_none() {
        let named = list_named(long(r#","size":1"#, r#","mediaType":"a/b""#).as_bytes());
        assert_eq!(named.len(), DESCRIPTORS_MAX);
        // Its config counts too, wherever it is.
        let config = format!(r#","config":{{"digest":"{}"}}"#, digest(1));
        assert!(!list_named(long("", &config).as_bytes()).is_empty());
    }

    #[test]
    fn what_comes_after_too_many_descriptors_is_not_overlooked() {
        // An image and an index at once, and what is no image by its type.
        for after in [
            r#","manifests":[{"digest":"x"}]"#,
            r#","blobs":[{"digest":"x"}]"#,
            r#","mediaType":"application/vnd.oci.image.index.v1+json""#,
        ] {
            assert_eq!(list_named(long("", after).as_bytes()), [], "{after}");
        }
        // A foreign layer of which only the first fields would fit.
        let foreign = r#","size":1,"urls":["https://elsewhere.example"]"#;
        assert_eq!(list_named(long(foreign, "").as_bytes()), []);
        for fields in 0..7 {
            let fields = (0..fields).map(|n| format!(r#""{}":1,"#, KEYS[n]));
            let first = format!(r#"{{{}"x":1}}"#, fields.collect::<String>());
            let layers = format!(r#"{{"layers":[{first},"#);
            let text = long(foreign, "").replace(r#"{"layers":["#, &layers);
            assert_eq!(list_named(text.as_bytes()), [], "{first}");
        }
    }

    #[test]
    fn bug_a_foreign_layer_opened_another_repositorys_blob() {
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        let restricted = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
        let image = serde_json::json!({"config": {"digest": digest(1)}, "layers": [
            {"digest": digest(2), "urls": ["https://elsewhere.example/layer"]},
            {"urls": [], "digest": digest(3)},
            {"digest": digest(4), "mediaType": foreign},
            {"digest": digest(5), "mediaType": restricted},
            {"digest": digest(6), "urls": null},
        ]});
        assert_eq!(named(&image), [(digest(1), None), (digest(6), None)]);
        let index = serde_json::json!({"manifests": [
            {"digest": digest(2), "urls": ["https://elsewhere.example/"]}]});
        assert_eq!(named(&index), []);
    }

    #[test]
    fn a_document_that_registries_read_differently_names_nothing() {
        let (one, two) = (digest(1), digest(2));
        for text in [
            // Two kinds at once.
            format!(r#"{{"config":{{"digest":"{one}"}},"manifests":[{{"digest":"{two}"}}]}}"#),
            format!(r#"{{"layers":[{{"digest":"{one}"}}],"blobs":[{{"digest":"{two}"}}]}}"#),
            format!(r#"{{"layers":[{{"digest":"{one}"}}],"fsLayers":[{{"blobSum":"{two}"}}]}}"#),
            // A field twice, or in two cases.
            format!(r#"{{"layers":[{{"digest":"{one}"}}],"layers":[{{"digest":"{two}"}}]}}"#),
            format!(r#"{{"layers":[{{"digest":"{one}"}}],"Layers":[{{"digest":"{two}"}}]}}"#),
            format!(r#"{{"Layers":[{{"digest":"{one}"}}]}}"#),
            format!(r#"{{"layers":[{{"digest":"{one}","digest":"{two}"}}]}}"#),
            format!(r#"{{"layers":[{{"digest":"{one}","DIGEST":"{two}"}}]}}"#),
            format!(r#"{{"layers":[{{"digest":"{one}","URLS":["https://x"]}}]}}"#),
            // A media type of another kind.
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json",
                    "manifests":[{{"digest":"{one}"}}]}}"#
            ),
            format!(
                r#"{{"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json",
                    "layers":[{{"digest":"{one}"}}]}}"#
            ),
        ] {
            assert_eq!(list_named(text.as_bytes()), [], "{text}");
        }
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
    fn the_length_is_the_descriptors() {
        let image = json!({"config": {"digest": digest(1), "size": 7},
            "layers": [{"digest": digest(2), "size": "8"}, {"digest": digest(3)}]});
        let sizes = list_named(image.to_string().as_bytes());
        let sizes: Vec<_> = sizes.iter().map(|named| named.size).collect();
        assert_eq!(sizes, [Some(7), None, None]);
    }

    #[test]
    fn what_a_manifest_can_name_is_bounded() {
        let layers: Vec<Value> = (0..DESCRIPTORS_MAX + 10)
            .map(|n| json!({"digest": format!("sha256:{n:064x}"), "size": n, "mediaType": "a/b"}))
            .collect();
        let image = json!({"layers": layers}).to_string();
        assert_eq!(list_named(image.as_bytes()).len(), DESCRIPTORS_MAX);
    }

    /// Values kept, also those inside others.
    fn count(kept: &Kept) -> usize {
        1 + match kept {
            Kept::List(list) => list.iter().map(count).sum(),
            Kept::Object(fields) => fields.iter().map(|(_, value)| count(value)).sum(),
            Kept::Annotations(annotations) => annotations.len(),
            Kept::Text(_) | Kept::Number(_) | Kept::Other | Kept::Null | Kept::Skipped => 0,
        }
    }

    #[test]
    fn a_manifest_of_millions_of_values_keeps_few() {
        let many = |value: &str| format!("{value},").repeat(500_000) + value;
        let inner = format!("[{}]", many(r#"{"size":0}"#));
        for list in [
            many("0"),
            many("{}"),
            many("[]"),
            many("\"a\""),
            many(r#"{"size":0}"#),
            many(r#"{"config":{"config":{}}}"#),
            inner,
        ] {
            let text = format!(r#"{{"layers":[{list}],"mediaType":"a/b"}}"#);
            let kept = count(&read(text.as_bytes()));
            assert!(kept <= 2 * FIELDS_MAX + 2, "{kept}");
        }
        let long = format!(r#"{{"mediaType":"{}"}}"#, "a".repeat(TEXT_BYTES_MAX + 1));
        assert_eq!(read(long.as_bytes()).text("mediaType"), None);
        let pairs: Vec<String> = (0..9_999).map(|n| format!(r#""{n}":"v""#)).collect();
        let text = format!(r#"{{"annotations":{{{}}}}}"#, pairs.join(","));
        assert_eq!(count(&read(text.as_bytes())), 2 + ANNOTATIONS_MAX);
    }

    #[test]
    fn a_field_that_readers_take_differently_is_refused() {
        let first = format!(r#""layers":[{{"digest":"{}"}}]"#, digest(1));
        let other = first.replace("layers", "Layers");
        assert_eq!(list_named(format!("{{{first}}}").as_bytes()).len(), 1);
        for text in [
            format!("{{{first},{first}}}"),
            format!("{{{first},{other}}}"),
        ] {
            assert_eq!(list_named(text.as_bytes()), [], "{text}");
        }
        // Names that are not read may be there as they like.
        let unread = format!(r#"{{"a":1,"A":2,"a":3,{first}}}"#);
        assert_eq!(list_named(unread.as_bytes()).len(), 1);
    }

    #[test]
    fn what_is_no_manifest_names_nothing() {
        for text in ["", "{", "[]", "null", "7", r#"{"layers":{"digest":1}}"#] {
            assert_eq!(list_named(text.as_bytes()), [], "{text}");
        }
        let hostile = serde_json::json!({"config": "x", "layers": [1, {"digest": "sha256:../.."},
            {"digest": 5}, {}], "manifests": [{"digest": "md5:00"}]});
        assert_eq!(named(&hostile), []);
        let deep = "[".repeat(100_000);
        assert_eq!(list_named(deep.as_bytes()), []);
    }
}
