//! Descriptors in lists of referrers. Owns: reading them from a list of upstream's, joining several
//! lists, and writing one. Must not: ask anybody for one, or keep more than a list may hold.

use std::collections::HashSet;
use std::fmt;

use serde_core::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::elements::for_each;
use crate::cache::pages::LIST_BYTES_MAX;

/// The media type of a list of referrers.
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Most descriptors of a list that is made here: far more than anybody attaches to an image.
const DESCRIPTORS_MAX: usize = 10_000;

/// A descriptor, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// The whole object.
    pub(super) json: String,
    /// Its digest, unparsed.
    pub(super) digest: String,
}

/// Descriptors of different digests, at most [`DESCRIPTORS_MAX`] in [`LIST_BYTES_MAX`].
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    list: Vec<Descriptor>,
    digests: HashSet<String>,
    bytes: u64,
    /// There were more than a list may hold.
    is_cut: bool,
}

/// True for a list of referrers.
pub(super) fn is_list(body: &[u8]) -> bool {
    for_each(body, "manifests", |_: IgnoredAny| {}).is_some()
}

/// True for a list of referrers with nothing in it, and for anything that is no such list.
pub(super) fn is_empty(body: &[u8]) -> bool {
    let mut count = 0_usize;
    let read = for_each(body, "manifests", |_: IgnoredAny| count += 1);
    read.is_none() || count == 0
}

impl Descriptors {
    /// Reads a list of upstream's; of one type only, if `artifact_type` names it. What is no list
    /// has no descriptors, and what is no descriptor is passed over.
    pub(super) fn read(body: &[u8], artifact_type: Option<&str>) -> Self {
        let mut found = Self::default();
        let read = for_each(body, "manifests", |element: &RawValue| {
            let fields: Fields = serde_json::from_str(element.get()).unwrap_or_default();
            let is_of_type = artifact_type.is_none() || artifact_type == fields.kind();
            if let Some(digest) = fields.digest.clone().filter(|_| is_of_type) {
                let json = element.get().to_owned();
                found.add(Descriptor { json, digest });
            }
        });
        read.map_or_else(Self::default, |()| found)
    }

    /// Adds a descriptor, unless its digest is there already.
    pub(super) fn add(&mut self, descriptor: Descriptor) {
        if self.digests.contains(&descriptor.digest) {
            return;
        }
        let bytes = self.bytes + descriptor.json.len() as u64 + 1;
        if bytes > LIST_BYTES_MAX || self.list.len() >= DESCRIPTORS_MAX {
            self.is_cut = true;
            return;
        }
        self.bytes = bytes;
        self.digests.insert(descriptor.digest.clone());
        self.list.push(descriptor);
    }

    /// Adds those that are not there already.
    pub(super) fn join(&mut self, others: Self) {
        self.is_cut |= others.is_cut;
        others.list.into_iter().for_each(|other| self.add(other));
    }

    /// True when every one of `others` is among them.
    pub(super) fn hold_all(&self, others: &Self) -> bool {
        others.digests.is_subset(&self.digests)
    }

    /// True when there were more than a list may hold.
    pub(super) const fn is_cut(&self) -> bool {
        self.is_cut
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Sorts them by digest.
    pub(super) fn sort(&mut self) {
        self.list
            .sort_by(|one, other| one.digest.cmp(&other.digest));
    }

    /// The list as an image index (distribution-spec "Listing Referrers").
    pub(super) fn to_index(&self) -> String {
        let mut index = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":["#);
        index.reserve(usize::try_from(self.bytes).unwrap_or_default());
        for (at, descriptor) in self.list.iter().enumerate() {
            if at > 0 {
                index.push(',');
            }
            index.push_str(&descriptor.json);
        }
        index.push_str("]}");
        index
    }
}

/// The fields of a descriptor that are looked at. One of another kind than text counts as absent.
#[derive(Default)]
struct Fields {
    digest: Option<String>,
    artifact_type: Option<String>,
}

impl Fields {
    fn kind(&self) -> Option<&str> {
        self.artifact_type.as_deref()
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a descriptor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Fields, A::Error> {
                let mut found = Fields::default();
                while let Some(name) = fields.next_key::<String>()? {
                    let value: &RawValue = fields.next_value()?;
                    let text = || serde_json::from_str(value.get()).ok();
                    match name.as_str() {
                        "digest" => found.digest = text(),
                        "artifactType" => found.artifact_type = text(),
                        _ => {}
                    }
                }
                Ok(found)
            }
        }
        from.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(list: &Descriptors) -> Vec<&str> {
        list.list.iter().map(|one| one.digest.as_str()).collect()
    }

    const LIST: &str = r#"{"manifests":[{"digest":"1","artifactType":"a/b","size":1.5},
        {"digest":"2","artifactType":"c/d"}, {"digest": "3"},7,{},{"digest":5},{"digest":"1"},
        {"digest":"4","artifactType":null}]}"#;

    #[test]
    fn a_list_is_filtered_by_its_type() {
        let all = Descriptors::read(LIST.as_bytes(), None);
        assert_eq!(digests(&all), ["1", "2", "3", "4"]);
        let some = Descriptors::read(LIST.as_bytes(), Some("c/d"));
        assert!(digests(&some) == ["2"] && all.hold_all(&some) && !some.hold_all(&all));
        assert!(Descriptors::read(LIST.as_bytes(), Some("x")).is_empty());
        for text in ["", "[]", "{}", r#"{"manifests":{}}"#, &LIST[..40]] {
            assert!(
                !is_list(text.as_bytes()) && is_empty(text.as_bytes()),
                "{text}"
            );
            assert!(
                Descriptors::read(text.as_bytes(), None).is_empty(),
                "{text}"
            );
        }
        let null = br#"{"manifests":null}"#;
        assert!(is_list(null) && is_empty(null));
        assert!(is_list(LIST.as_bytes()) && !is_empty(LIST.as_bytes()));
    }

    #[test]
    fn a_list_is_written_as_its_descriptors_were() {
        let list = Descriptors::read(LIST.as_bytes(), None);
        let index = list.to_index();
        assert!(
            index.contains(r#"[{"digest":"1","artifactType":"a/b","size":1.5},{"#),
            "{index}"
        );
        assert_eq!(digests(&Descriptors::read(index.as_bytes(), None)).len(), 4);
        let document: serde_json::Value = serde_json::from_str(&index).unwrap();
        assert_eq!(document["mediaType"], INDEX);
    }

    #[test]
    fn a_list_is_bounded_in_number_and_bytes() {
        let descriptor = |number: usize, length: usize| Descriptor {
            json: " ".repeat(length),
            digest: number.to_string(),
        };
        let mut many = Descriptors::default();
        (0..DESCRIPTORS_MAX).for_each(|number| many.add(descriptor(number, 2)));
        assert!(!many.is_cut());
        many.add(descriptor(DESCRIPTORS_MAX, 2));
        assert!(many.is_cut() && many.list.len() == DESCRIPTORS_MAX);
        let (mut large, length) = (Descriptors::default(), 1 << 20);
        (0..3).for_each(|number| large.add(descriptor(number, length)));
        assert!(!large.is_cut());
        let mut more = Descriptors::default();
        more.add(descriptor(9, length));
        large.join(more);
        assert!(large.is_cut() && large.list.len() == 3);
    }
}
