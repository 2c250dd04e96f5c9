//! Whether what is in the cache is what it says. Owns: hashing blobs, and the words for what is
//! missing or damaged. Must not: change or remove anything.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::Arc;

use serde_json::Value;

use super::closure::NO_PLATFORM;
use super::holdings::CachedImage;
use super::names::Names;
use super::store::Store;
use crate::oci::Digest;

/// What hashing a blob has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobCondition {
    /// Its bytes are what its name says.
    Whole,
    /// There is no such file.
    Missing,
    /// Its bytes are something else, or cannot be read: why.
    Damaged(String),
}

/// What an image lacks; nothing for one that is complete.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ImageFaults {
    /// Platforms of which nothing was pulled, with the manifest that each needs.
    pub absent: Vec<(String, Digest)>,
    /// For a part of the image: what is missing or damaged.
    pub broken: Vec<String>,
    /// Digests that are damaged.
    pub damaged: usize,
}

impl ImageFaults {
    /// True for an image that is complete.
    pub fn is_none(&self) -> bool {
        self.absent.is_empty() && self.broken.is_empty()
    }
}

/// Looks at images and blobs; each blob is hashed once.
pub struct Audit<'a> {
    /// Blobs.
    pub store: &'a Arc<Store>,
    /// Tags and links.
    pub names: &'a Names,
    /// Called with the bytes of each piece that was hashed.
    pub on_hashed: &'a mut dyn FnMut(u64),
    whole: HashSet<Digest>,
    faulty: HashMap<Digest, BlobCondition>,
}

impl<'a> Audit<'a> {
    /// An audit of this cache.
    pub fn new(store: &'a Arc<Store>, names: &'a Names, on_hashed: &'a mut dyn FnMut(u64)) -> Self {
        Self {
            store,
            names,
            on_hashed,
            whole: HashSet::new(),
            faulty: HashMap::new(),
        }
    }

    /// Blobs that were hashed, or looked for.
    pub fn blob_count(&self) -> usize {
        self.whole.len() + self.faulty.len()
    }

    /// Looks at an image, for the platforms that `picks` takes. Blocks while its blobs are hashed.
    pub fn image(&mut self, image: &CachedImage<'_>, picks: &dyn Fn(&str) -> bool) -> ImageFaults {
        let (mut faults, closure) = (ImageFaults::default(), &image.closure);
        if closure.is_cut {
            let why = "it is larger than any image, or a manifest cannot be read";
            faults.broken.push(why.to_owned());
        }
        // Its manifest proves what it names, and so may do without further links.
        if self.names.link(image.scope, &image.digest).is_none() {
            let why = "its manifest is not known to belong to the repository";
            faults.broken.push(why.to_owned());
        }
        for part in &closure.parts {
            if !picks(&part.platform) {
                continue;
            }
            if part.is_absent() && self.condition(&part.manifest) == BlobCondition::Missing {
                if part.platform != NO_PLATFORM {
                    let absent = (part.platform.clone(), part.manifest.clone());
                    faults.absent.push(absent);
                }
                continue;
            }
            for digest in &part.missing {
                self.look_at(&part.platform, digest, &mut faults);
            }
        }
        for digest in closure.referrers.iter().flat_map(|part| &part.missing) {
            self.look_at("what refers to it", digest, &mut faults);
        }
        // A layer that several parts need is told once, by the first of them.
        for member in &closure.members {
            let platform = member.platform.as_deref();
            if member.is_here && platform.is_none_or(picks) {
                let part = platform.unwrap_or("the image");
                self.look_at(part, &member.digest, &mut faults);
            }
        }
        faults
    }

    /// Adds what is wrong with a digest, if anything is.
    fn look_at(&mut self, part: &str, digest: &Digest, faults: &mut ImageFaults) {
        let fault = match self.condition(digest) {
            BlobCondition::Whole => return,
            BlobCondition::Missing => format!("{part}: missing {digest}"),
            BlobCondition::Damaged(why) => {
                faults.damaged += 1;
                format!("{part}: damaged {digest}: {why}")
            }
        };
        faults.broken.push(fault);
    }

    /// Forgets what was missing or damaged, so that it is looked at again: a proxy that uses the
    /// cache may have evicted or fetched it meanwhile.
    pub fn forget_faults(&mut self) {
        self.faulty.clear();
    }

    /// Hashes a blob, unless that was done before.
    pub fn condition(&mut self, digest: &Digest) -> BlobCondition {
        if self.whole.contains(digest) {
            return BlobCondition::Whole;
        }
        if let Some(known) = self.faulty.get(digest) {
            return known.clone();
        }
        let condition = self.hash(digest);
        match condition {
            BlobCondition::Whole => drop(self.whole.insert(digest.clone())),
            _ => drop(self.faulty.insert(digest.clone(), condition.clone())),
        }
        condition
    }

    fn hash(&mut self, digest: &Digest) -> BlobCondition {
        let damaged = |why: String| BlobCondition::Damaged(why);
        let blob = match self.store.blob(digest) {
            Ok(Some(blob)) => blob,
            Ok(None) => return BlobCondition::Missing,
            Err(error) => return damaged(error.to_string()),
        };
        match blob.hash(digest, self.on_hashed) {
            Ok(found) if found == digest.as_str() => BlobCondition::Whole,
            Ok(found) => damaged(format!("its {} bytes have {found}", blob.size)),
            Err(error) => damaged(error.to_string()),
        }
    }

    /// Looks at every blob that no image has led to. Says which are damaged.
    ///
    /// # Errors
    /// The disk's own, where the blobs cannot be listed.
    pub fn others(&mut self) -> std::io::Result<Vec<String>> {
        let mut digests = Vec::new();
        self.store.count(&mut |entry| digests.push(entry.digest))?;
        digests.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        let mut faults = Vec::new();
        for digest in digests {
            if self.whole.contains(&digest) || self.faulty.contains_key(&digest) {
                continue;
            }
            if let BlobCondition::Damaged(why) = self.condition(&digest) {
                faults.push(format!("damaged {digest}, which no image needs: {why}"));
            }
        }
        Ok(faults)
    }

    /// Looks at the files that are no blobs: those of the layout, and tags.
    pub fn files(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let read = |name: &str| -> Option<Value> {
            let text = fs::read(self.store.root().join(name)).ok()?;
            serde_json::from_slice(&text).ok()
        };
        let version =
            read("oci-layout").and_then(|it| Some(it.get("imageLayoutVersion")? == "1.0.0"));
        if version != Some(true) {
            faults.push("oci-layout is no layout of version 1.0.0".to_owned());
        }
        let index = read("index.json").and_then(|it| Some(it.get("manifests")?.is_array()));
        if index != Some(true) {
            faults.push("index.json is no index".to_owned());
        }
        for place in self.names.scopes() {
            let scope = place.scope();
            let tags = self.names.tag_uses(scope).into_iter();
            let unreadable = tags.filter(|found| found.digests.is_empty());
            let fault = |tag: &str| format!("{scope}:{tag} cannot be read");
            faults.extend(unreadable.map(|found| fault(found.tag.as_str())));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::holdings::Holdings;
    use crate::cache::scratch::{Cache, digest_of};

    fn faults(cache: &Cache, tag: &str) -> ImageFaults {
        let holdings = Holdings {
            store: &cache.store,
            names: &cache.names,
        };
        let mut bytes = |_| {};
        let mut audit = Audit::new(&cache.store, &cache.names, &mut bytes);
        let tag = tag.parse().unwrap();
        cache.with("a", |scope| {
            let image = holdings.find(scope, &tag).unwrap();
            audit.image(&image, &|_| true)
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
        assert!(faults(&cache, "v1").is_none());
        let (one, two) = (digest_of(b"one"), digest_of(b"two"));
        damage(&cache, &one);
        cache.store.remove(&two).unwrap();
        let found = faults(&cache, "v1");
        assert_eq!((found.damaged, found.broken.len()), (1, 2), "{found:?}");
        let all = found.broken.join("\n");
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
        assert_eq!(found.absent, [("any".to_owned(), elsewhere)]);
        assert!(found.broken.is_empty() && !found.is_none());
    }

    #[test]
    fn a_manifest_that_lost_its_link_is_told_and_a_blob_is_not() {
        let cache = Cache::new();
        let image = cache.image("a:v1", &[b"one"], 5);
        cache.with("a", |scope| {
            cache.names.remove_link(scope, &digest_of(b"one"))
        });
        assert!(faults(&cache, "v1").is_none());
        cache.with("a", |scope| cache.names.remove_link(scope, &image));
        let found = faults(&cache, "v1");
        assert!(found.broken[0].contains("not known to belong"), "{found:?}");
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
    }
}
