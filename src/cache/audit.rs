//! The check of what is in the cache. Owns: hashing blobs, and the words for what is missing or
//! damaged. Must not: change or remove anything.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;

use serde_json::Value;

use super::closure::NO_PLATFORM;
use super::holdings::CachedImage;
use super::names::Names;
use super::store::Store;
use crate::oci::Digest;
use crate::platforms::Platforms;

/// The condition of an image or a blob, the worst last.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing is missing or damaged.
    #[default]
    Complete,
    /// Nothing was pulled of some platforms.
    Partial,
    /// Something is missing of a platform that was pulled.
    Incomplete,
    /// Bytes are not what their name says, or cannot be read.
    Damaged,
}

impl Verdict {
    /// The same as a word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Partial => "partial",
            Self::Incomplete => "incomplete",
            Self::Damaged => "damaged",
        }
    }
}

/// The faults of an image: how bad each is, and its words, with platform and digest.
pub type ImageFaults = Vec<(Verdict, String)>;

/// Looks at images and blobs; each blob is hashed once.
pub struct Audit<'a> {
    store: &'a Arc<Store>,
    names: &'a Names,
    /// Called with the bytes of each piece that was hashed.
    on_hashed: &'a mut dyn FnMut(u64),
    /// The condition of each blob, and its fault.
    known: HashMap<Digest, (Verdict, String)>,
}

impl<'a> Audit<'a> {
    /// An audit of this cache.
    pub fn new(store: &'a Arc<Store>, names: &'a Names, on_hashed: &'a mut dyn FnMut(u64)) -> Self {
        Self {
            store,
            names,
            on_hashed,
            known: HashMap::new(),
        }
    }

    /// Blobs that were hashed, or looked for.
    pub fn blob_count(&self) -> usize {
        self.known.len()
    }

    /// Looks at an image, for these platforms. Blocks while its blobs are hashed.
    pub fn image(&mut self, image: &CachedImage, platforms: &Platforms) -> ImageFaults {
        let (mut found, closure) = (ImageFaults::new(), &image.closure);
        if closure.is_cut {
            let why = "it is larger than any image, or a manifest cannot be read";
            found.push((Verdict::Incomplete, why.to_owned()));
        }
        // Its manifest proves what it names, and so may do without further links.
        let link = self.names.link(image.scope.as_scope(), &image.digest);
        if link.is_none() {
            let why = "its manifest is not known to belong to the repository";
            found.push((Verdict::Incomplete, why.to_owned()));
        }
        for index in &closure.indexes {
            self.look_at("the image", index, &mut found);
        }
        let refused = closure.refuse(platforms);
        found.extend(refused.map(|why| (Verdict::Partial, why)));
        let parts = closure.parts.iter();
        for part in parts.filter(|part| closure.picks(part, platforms)) {
            let (platform, manifest) = (&part.platform, &part.manifest);
            if part.is_absent() && self.condition(manifest).0 == Verdict::Incomplete {
                if platform != NO_PLATFORM {
                    let fault = format!("{platform}: not here, missing {manifest}");
                    found.push((Verdict::Partial, fault));
                }
                continue;
            }
            for digest in &part.digests {
                self.look_at(platform, digest, &mut found);
            }
        }
        for digest in closure.referrers.iter().flat_map(|part| &part.digests) {
            self.look_at("what refers to it", digest, &mut found);
        }
        found
    }

    /// Adds what is wrong with a digest, if anything is.
    fn look_at(&mut self, part: &str, digest: &Digest, found: &mut ImageFaults) {
        let (verdict, fault) = self.condition(digest);
        if verdict != Verdict::Complete {
            found.push((verdict, format!("{part}: {fault}")));
        }
    }

    /// Forgets what was missing or damaged, so that it is looked at again: a proxy that uses the
    /// cache may have evicted or fetched it meanwhile.
    pub fn forget_faults(&mut self) {
        let known = &mut self.known;
        known.retain(|_, (verdict, _)| *verdict == Verdict::Complete);
    }

    /// Hashes a blob, unless that was done before.
    fn condition(&mut self, digest: &Digest) -> (Verdict, String) {
        if let Some(known) = self.known.get(digest) {
            return known.clone();
        }
        let condition = self.hash(digest);
        self.known.insert(digest.clone(), condition.clone());
        condition
    }

    fn hash(&mut self, digest: &Digest) -> (Verdict, String) {
        let why = match self.store.blob(digest) {
            Ok(None) => return (Verdict::Incomplete, format!("missing {digest}")),
            Ok(Some(blob)) => match blob.hash(digest, self.on_hashed) {
                Ok(found) if found == digest.as_str() => return Default::default(),
                Ok(found) => format!("its {} bytes have {found}", blob.size),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        (Verdict::Damaged, format!("damaged {digest}: {why}"))
    }

    /// Looks at every blob that no image has led to. Says which are damaged.
    ///
    /// # Errors
    /// The disk's own, where the blobs cannot be listed.
    pub fn others(&mut self) -> std::io::Result<Vec<String>> {
        let mut digests = Vec::new();
        self.store.count(&mut |entry| digests.push(entry.digest))?;
        digests.retain(|digest| !self.known.contains_key(digest));
        digests.sort_unstable();
        let mut faults = Vec::new();
        for digest in digests {
            let (verdict, fault) = self.condition(&digest);
            if verdict == Verdict::Damaged {
                faults.push(format!("needed by no image: {fault}"));
            }
        }
        Ok(faults)
    }

    /// Looks at the files that are no blobs: those of the layout, and tags.
    pub fn files(&self) -> Vec<String> {
        let mut faults = Vec::new();
        // A missing file is no fault: a start that was killed leaves it to the next one.
        let read = |name: &str| match fs::read(self.store.root().join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            text => Some(serde_json::from_slice(&text.unwrap_or_default()).unwrap_or_default()),
        };
        let is_layout = |it: Value| it.get("imageLayoutVersion").is_some_and(|it| it == "1.0.0");
        if read("oci-layout").is_some_and(|it| !is_layout(it)) {
            faults.push("oci-layout is no layout of version 1.0.0".to_owned());
        }
        let is_index = |it: Value| it.get("manifests").is_some_and(Value::is_array);
        if read("index.json").is_some_and(|it| !is_index(it)) {
            faults.push("index.json is no index".to_owned());
        }
        for scope in self.names.scopes() {
            let scope = scope.as_scope();
            let tags = self.names.tag_uses(scope, usize::MAX).into_iter();
            let unreadable = tags.filter(|(_, found)| !found.is_readable());
            let fault = |tag: &str| format!("{scope}:{tag} cannot be read");
            faults.extend(unreadable.map(|(tag, _)| fault(tag.as_str())));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::scratch::{Cache, digest_of};

    fn worst(faults: &ImageFaults) -> Verdict {
        faults.iter().map(|(verdict, _)| *verdict).max().unwrap()
    }

    fn faults(cache: &Cache, tag: &str) -> ImageFaults {
        faults_of(cache, tag, &Platforms::default())
    }

    fn faults_of(cache: &Cache, tag: &str, platforms: &Platforms) -> ImageFaults {
        let holdings = cache.holdings();
        let mut bytes = |_| {};
        let mut audit = Audit::new(&cache.store, &cache.names, &mut bytes);
        let tag = tag.parse().unwrap();
        cache.with("a", |scope| {
            let image = holdings.find(scope, &tag).unwrap();
            audit.image(&image, platforms)
        })
    }

    fn others(cache: &Cache) -> Vec<String> {
        let mut on_hashed = |_| {};
        let mut audit = Audit::new(&cache.store, &cache.names, &mut on_hashed);
        let found = audit.others().unwrap();
        assert_eq!(audit.others().unwrap(), [""; 0], "each is hashed once");
        found
    }

    fn damage(cache: &Cache, digest: &Digest) {
        let path = cache.scratch.path().join("blobs/sha256").join(digest.hex());
        fs::write(path, "damaged").unwrap();
    }

    #[test]
    fn what_is_missing_or_damaged_is_named_and_stays() {
        let cache = Cache::new();
        let image = cache.image("a:v1", &[b"one", b"two"], 5);
        assert_eq!(faults(&cache, "v1"), []);
        let (one, two) = (digest_of(b"one"), digest_of(b"two"));
        damage(&cache, &one);
        cache.store.remove(&two).unwrap();
        let found = faults(&cache, "v1");
        assert_eq!((worst(&found), found.len()), (Verdict::Damaged, 2));
        let all = format!("{found:?}");
        assert!(all.contains(&format!("missing {two}")), "{all}");
        assert!(all.contains(&format!("damaged {one}: its 7 bytes have sha256:")));
        assert!(cache.store.has(&one) && cache.store.has(&image));
    }

    #[test]
    fn a_platform_that_was_never_pulled_is_absent() {
        let cache = Cache::new();
        let here = cache.image("a", &[b"one"], 5);
        let elsewhere = digest_of(b"elsewhere");
        cache.index("a:v1", &[&here, &elsewhere], 5);
        let found = faults(&cache, "v1");
        let fault = format!("any: not here, missing {elsewhere}");
        assert_eq!(found, [(Verdict::Partial, fault)]);
    }

    #[test]
    fn bug_a_layer_of_two_platforms_was_not_hashed_for_the_second() {
        let cache = Cache::new();
        let one = cache.image("a", &[b"shared"], 5);
        let two = cache.image("a", &[b"shared", b"own"], 5);
        let manifest = |digest: &Digest, os: &str| {
            let platform = serde_json::json!({"os": os, "architecture": "arm64"});
            let media_type = crate::cache::scratch::IMAGE;
            serde_json::json!({
                "digest": digest.as_str(), "mediaType": media_type, "platform": platform,
            })
        };
        let manifests = [manifest(&one, "linux"), manifest(&two, "windows")];
        let index = serde_json::json!({"manifests": manifests});
        cache.manifest("a:v1", crate::cache::scratch::INDEX, &index, 5);
        damage(&cache, &digest_of(b"shared"));
        let found = faults_of(&cache, "v1", &"windows/arm64".parse().unwrap());
        assert_eq!((worst(&found), found.len()), (Verdict::Damaged, 1));
        let found = faults_of(&cache, "v1", &"linux/mips".parse().unwrap());
        let why = "it is not for linux/mips, but for linux/arm64, windows/arm64";
        assert_eq!(found, [(Verdict::Partial, why.to_owned())]);
    }

    #[test]
    fn bug_an_image_for_one_platform_was_not_hashed_for_another() {
        let cache = Cache::new();
        let config = br#"{"os": "linux", "architecture": "amd64"}"#;
        let config = cache.blob("a", config);
        let lost = digest_of(b"lost");
        let image = serde_json::json!({
            "config": {"digest": config.as_str()}, "layers": [{"digest": lost.as_str()}],
        });
        cache.manifest("a:v1", crate::cache::scratch::IMAGE, &image, 5);
        let found = faults_of(&cache, "v1", &"linux/arm64".parse().unwrap());
        let fault = format!("linux/amd64: missing {lost}");
        assert_eq!(found, [(Verdict::Incomplete, fault)]);
    }

    #[test]
    fn a_manifest_that_lost_its_link_is_told_and_a_blob_is_not() {
        let cache = Cache::new();
        let image = cache.image("a:v1", &[b"one"], 5);
        cache.with("a", |scope| {
            cache.names.remove_link(scope, &digest_of(b"one"))
        });
        assert_eq!(faults(&cache, "v1"), []);
        cache.with("a", |scope| cache.names.remove_link(scope, &image));
        let found = faults(&cache, "v1");
        assert!(found[0].1.contains("not known to belong"), "{found:?}");
    }

    #[test]
    fn blobs_that_nothing_names_are_hashed_too() {
        let cache = Cache::new();
        let (good, bad) = (cache.blob("a", b"good"), cache.blob("a", b"bad"));
        assert_eq!(others(&cache), [""; 0]);
        damage(&cache, &bad);
        let found = others(&cache);
        assert!(found[0].contains(bad.as_str()) && found.len() == 1);
        assert!(cache.store.has(&good) && cache.store.has(&bad));
    }

    #[test]
    fn files_of_the_layout_and_tags_are_read() {
        let cache = Cache::new();
        cache.image("a:v1", &[b"one"], 5);
        let files = || {
            let mut bytes = |_| {};
            Audit::new(&cache.store, &cache.names, &mut bytes).files()
        };
        assert_eq!(files(), [""; 0]);
        let root = cache.scratch.path();
        fs::write(root.join("index.json"), "{").unwrap();
        fs::write(root.join("oci-layout"), "{}").unwrap();
        let repository = root.join("repos/host.example/a");
        fs::write(repository.join("_tags/v2"), "").unwrap();
        let found = files();
        assert_eq!(found.len(), 3, "{found:?}");
        fs::remove_file(root.join("index.json")).unwrap();
        fs::remove_file(root.join("oci-layout")).unwrap();
        assert_eq!(
            files().len(),
            1,
            "a first start that was killed is no fault"
        );
    }
}
