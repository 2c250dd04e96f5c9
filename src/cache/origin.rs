//! The image that a missing blob belongs to. Owns: finding it by the manifests that are here, so
//! that a client can be told what to fetch. Must not: change anything, or take longer than
//! [`TIME_MAX`] by much.

use std::time::{Duration, Instant};

use super::closure::{Holdings, read_manifest};
use super::names::Scope;
use crate::oci::Digest;

/// Longest search: a client waits for it.
const TIME_MAX: Duration = Duration::from_secs(1);
/// From a blob to its manifest, and from that to its index.
const STEPS_MAX: usize = 2;

/// What has to be fetched for a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOfDigest {
    /// `registry/repository:tag`, or with the digest of a manifest that no tag means.
    pub image: String,
    /// The platform of an index that the digest belongs to.
    pub platform: Option<String>,
}

impl Holdings<'_> {
    /// Finds the image that a digest belongs to. None when neither a tag of the repository nor a
    /// manifest that is here names it. Blocks while it reads manifests.
    pub fn find_image(&self, scope: Scope<'_>, digest: &Digest) -> Option<ImageOfDigest> {
        let deadline = Instant::now() + TIME_MAX;
        let manifests: Vec<Digest> = self.names.manifests(scope).collect();
        let (mut top, mut platform) = (digest.clone(), None);
        for _ in 0..STEPS_MAX {
            let mut others = manifests.iter().take_while(|_| Instant::now() < deadline);
            let Some(found) = others.find_map(|other| self.names_digest(other, &top)) else {
                break;
            };
            top = found.0;
            platform = platform.or(found.1);
        }
        let image = match self.names.tags_of(scope, &top).next() {
            Some(tag) => format!("{scope}:{}", tag.as_str()),
            None if top == *digest => return None,
            None => format!("{scope}@{top}"),
        };
        Some(ImageOfDigest { image, platform })
    }

    /// True when a manifest of the repository names the digest, which proves that it belongs there:
    /// a power cut may have taken its link. Blocks while it reads manifests.
    pub fn is_named(&self, scope: Scope<'_>, digest: &Digest) -> bool {
        let deadline = Instant::now() + TIME_MAX;
        let manifests = self.names.manifests(scope);
        let mut manifests = manifests.take_while(|_| Instant::now() < deadline);
        manifests.any(|manifest| self.names_digest(&manifest, digest).is_some())
    }

    /// The manifest and the platform that it gives for a digest, if it names that.
    fn names_digest(&self, manifest: &Digest, digest: &Digest) -> Option<(Digest, Option<String>)> {
        let mut named = read_manifest(self.store, manifest)?.named.into_iter();
        let named = named.find(|named| named.digest == *digest)?;
        Some((manifest.clone(), named.platform))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cache::scratch::{Cache, INDEX, digest_of};

    #[test]
    fn a_missing_digest_leads_to_its_image_and_platform() {
        let cache = Cache::new();
        let image = cache.image("team/app:v1", &[b"layer"], 5);
        let loose = cache.image("team/app", &[b"loose"], 5);
        let child = digest_of(b"child");
        let platform = json!({"os": "linux", "architecture": "arm64", "variant": "v8"});
        let index = json!({"manifests": [
            {"digest": image.as_str(), "mediaType": "application/json"},
            {"digest": child.as_str(), "mediaType": "application/json", "platform": platform},
        ]});
        cache.manifest("team/app:multi", INDEX, &index, 6);
        let files = cache.holdings();
        let found = |digest: &Digest| {
            let found = cache.with("team/app", |scope| files.find_image(scope, digest));
            found.map(|found| (found.image, found.platform))
        };
        let app = |reference: &str| format!("host.example/team/app{reference}");
        let arm = Some("linux/arm64/v8".to_owned());
        assert_eq!(found(&child), Some((app(":multi"), arm)));
        assert_eq!(found(&digest_of(b"layer")), Some((app(":multi"), None)));
        let at = app(&format!("@{loose}"));
        assert_eq!(found(&digest_of(b"loose")), Some((at, None)));
        assert_eq!(found(&digest_of(b"strange")), None);
        // A tag whose manifest was lost.
        cache.store.remove(&image).unwrap();
        assert_eq!(found(&image), Some((app(":multi"), None)));
    }
}
