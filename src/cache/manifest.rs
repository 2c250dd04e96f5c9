//! What a manifest names. Owns: reading manifests of every kind, and the limits of that. Must not:
//! do I/O.
//!
//! A manifest is up to 16 MiB of anybody's JSON. It is read in one pass that keeps the fields named
//! in [`KEYS`] and skips the rest, so that reading costs little more memory than the manifest.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::sync::Mutex;

use serde_core::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::locked::Locked as _;
use crate::oci::Digest;

/// Largest manifest that is read into memory: four times what clients and registries take at the
/// most (distribution-spec: 4 MiB).
pub const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// Digests that are read from one manifest; it may name more, which are then looked up one by one
/// when they are asked for. docker builds 127 layers, ECR takes 4,200 (its quotas), and there is
/// the configuration.
pub const DESCRIPTORS_MAX: usize = 4_201;
/// Fields kept of all descriptors of one manifest: nine of each, those of its platform among them.
/// What begins after them is skipped.
const FIELDS_MAX: usize = 9 * DESCRIPTORS_MAX;
/// Longest text that is kept: twice the longest media type (RFC 6838) or digest.
const TEXT_BYTES_MAX: usize = 512;
/// Annotations of a referrer that are repeated in the list of referrers.
const ANNOTATIONS_MAX: usize = 256;
/// Longest value of an annotation that is repeated: an icon, a licence.
const ANNOTATION_BYTES_MAX: usize = 64 * 1024;
/// Manifests above this are read one at a time, so that their memory is needed once.
const LARGE_BYTES: usize = 256 * 1024;

/// Longest name of an operating system, an architecture or a variant.
const PLATFORM_WORD_BYTES_MAX: usize = 32;

/// The fields that are read.
const KEYS: [&str; 19] = [
    "annotations",
    "architecture",
    "artifactType",
    "blobSum",
    "blobs",
    "config",
    "digest",
    "fsLayers",
    "layers",
    "manifests",
    "mediaType",
    "os",
    "platform",
    "schemaVersion",
    "signatures",
    "size",
    "subject",
    "urls",
    "variant",
];

/// The fields of a platform. They only make a name for people, so a second one in another case is
/// no fault: it may be a field of somebody's own.
const PLATFORM_KEYS: [&str; 4] = ["architecture", "os", "platform", "variant"];

/// A digest that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The digest.
    pub digest: Digest,
    /// For a manifest: its media type.
    pub media_type: Option<String>,
    /// Its length in bytes, as the manifest has it.
    pub size: Option<u64>,
    /// Its platform, as an index has it, such as `linux/arm64/v8`.
    pub platform: Option<String>,
}

/// What a manifest names, and how.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ManifestContent {
    /// As [`list_named`] has it.
    pub named: Vec<Named>,
    /// It is an index: what it names are manifests.
    pub is_index: bool,
    /// Its media type, if it says that itself.
    pub media_type: Option<String>,
    /// The configuration, which is one of those named.
    pub config: Option<Digest>,
    /// The manifest that it refers to, as a signature does.
    pub subject: Option<Digest>,
    /// It names more than is read.
    pub is_cut: bool,
}

impl ManifestContent {
    /// Reads a manifest.
    pub fn read(manifest: &[u8]) -> Self {
        let document = read(manifest);
        let digest = |field: &Kept| field.text("digest")?.parse().ok();
        let (named, is_cut) = named_in(&document);
        Self {
            is_index: document.list("manifests").next().is_some(),
            media_type: document.text("mediaType").map(str::to_owned),
            config: document.get("config").and_then(digest),
            subject: document.get("subject").and_then(digest),
            named,
            is_cut,
        }
    }
}

/// The platform in a configuration of an image, such as `linux/arm64/v8`.
pub fn platform_of_config(config: &[u8]) -> Option<String> {
    read(config).words_of_platform()
}

/// Everything a manifest names: config, layers and blobs (without a media type), and the manifests
/// of an index (with theirs); at most [`DESCRIPTORS_MAX`]. What is no manifest names nothing.
///
/// A `subject` is not among them: a registry takes a manifest whose subject it does not have
/// (distribution-spec "Pushing Manifests with Subject"), so it vouches for nothing. Neither are
/// foreign layers, whose bytes are elsewhere: no registry looks whether it has them.
pub fn list_named(manifest: &[u8]) -> Vec<Named> {
    named_in(&read(manifest)).0
}

/// What is named, and whether there is more.
fn named_in(document: &Kept) -> (Vec<Named>, bool) {
    let mut named = Vec::new();
    if !document.is_of_one_kind() {
        return (named, false);
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
    let mut lists = ["layers", "blobs", "fsLayers", "manifests"].into_iter();
    let is_skipped = |part: &Kept| matches!(part, Kept::Skipped);
    let is_cut =
        named.len() > DESCRIPTORS_MAX || lists.any(|key| document.list(key).any(is_skipped));
    named.truncate(DESCRIPTORS_MAX);
    (named, is_cut)
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

/// What is read of a manifest; nothing, when it could be read in two ways.
fn read(manifest: &[u8]) -> Kept {
    match read_fields(manifest) {
        (kept, false) => kept,
        (_, true) => Kept::Other,
    }
}

/// The fields of a document, and whether one of them could be read in two ways. Nothing, when it is
/// not JSON.
pub(super) fn read_fields(manifest: &[u8]) -> (Kept, bool) {
    static LARGE: Mutex<()> = Mutex::new(());
    let _one_at_a_time = (manifest.len() > LARGE_BYTES).then(|| LARGE.locked());
    let (left, is_odd) = (Cell::new(FIELDS_MAX), Cell::new(false));
    let mut json = serde_json::Deserializer::from_slice(manifest);
    let kept = Keep {
        left: &left,
        is_odd: &is_odd,
        part: JsonPlace::Document,
    };
    let kept = kept.deserialize(&mut json);
    let kept = kept.and_then(|kept| json.end().map(|()| kept));
    (kept.unwrap_or(Kept::Other), is_odd.get())
}

/// What is kept of a JSON value.
#[derive(Debug)]
pub(super) enum Kept {
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
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let Self::Object(fields) = self else {
            return None;
        };
        let field = fields.iter().find(|(name, _)| *name == key);
        field.map(|(_, value)| value)
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Self::Number(number) => Some(*number),
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

    /// `os/architecture`, and the variant if there is one (image-spec `image-index.md`).
    fn words_of_platform(&self) -> Option<String> {
        let word = |key| {
            let word: Option<&str> = self.text(key);
            word.filter(|word| !word.is_empty() && word.len() < PLATFORM_WORD_BYTES_MAX)
        };
        let (os, architecture) = (word("os")?, word("architecture")?);
        Some(match word("variant") {
            Some(variant) => format!("{os}/{architecture}/{variant}"),
            None => format!("{os}/{architecture}"),
        })
    }

    fn describe(&self, digest: &str, media_type: Option<&str>) -> Option<Named> {
        if self.is_foreign() {
            return None;
        }
        Some(Named {
            digest: self.text(digest)?.parse().ok()?,
            media_type: media_type.map(str::to_owned),
            size: self.number("size"),
            platform: self.get("platform").and_then(Self::words_of_platform),
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
    /// A field could be read in two ways.
    is_odd: &'a Cell<bool>,
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
                Kept::Skipped => !matches!(kept.last(), Some(Kept::Skipped)),
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
        while let Some(name) = object.next_key::<String>()? {
            let key = KEYS.into_iter().find(|key| key.eq_ignore_ascii_case(&name));
            let Some(key) = key.filter(|key| *key == name) else {
                if key.is_some_and(|key| !PLATFORM_KEYS.contains(&key)) {
                    // Go's JSON, which most registries use, takes a name in any case.
                    self.is_odd.set(true);
                }
                object.next_value::<IgnoredAny>()?;
                continue;
            };
            if let Some(before) = fields.iter().position(|(name, _)| *name == key) {
                // Registries take the last of them or the first; nobody knows which.
                self.is_odd.set(true);
                fields.swap_remove(before);
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

#[cfg(test)]
mod tests;
