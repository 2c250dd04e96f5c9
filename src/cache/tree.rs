//! The manifests of an image, one below the other: an index, and those that it names. Owns: the
//! order of the walk, and that it ends. Must not: read or fetch a manifest.

use std::collections::HashSet;

use super::manifest::ManifestContent;
use crate::oci::Digest;

/// Manifests below one another: an index of an index is rare.
pub const DEPTH_MAX: usize = 8;

/// Digests that the manifests of one image name: an archive has as many entries. Callers keep what
/// they read, some 150 bytes for each.
const NAMED_MAX: usize = 200_000;

/// A manifest that a walk has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeManifest {
    /// Its digest.
    pub digest: Digest,
    /// Its media type, as its index has it.
    pub media_type: Option<String>,
    /// Its platform, as its index has it.
    pub platform: Option<String>,
    depth: usize,
}

/// A walk. The caller reads each manifest that it gets, and passes it to [`Self::descend`].
#[derive(Debug)]
pub struct ManifestWalk {
    open: Vec<TreeManifest>,
    met: HashSet<Digest>,
    manifests_max: usize,
    named: usize,
    is_cut: bool,
}

impl ManifestWalk {
    /// A walk through so many manifests at the most.
    pub fn new(manifests_max: usize) -> Self {
        Self {
            open: Vec::new(),
            met: HashSet::new(),
            manifests_max,
            named: 0,
            is_cut: false,
        }
    }

    /// Lets the walk go on with this manifest and what is below it.
    pub fn enter(&mut self, root: &Digest) {
        self.open.push(TreeManifest {
            digest: root.clone(),
            media_type: None,
            platform: None,
            depth: 0,
        });
    }

    /// Lets the walk go on with what an index names, in that order. Other manifests end there.
    pub fn descend(&mut self, from: &TreeManifest, content: &ManifestContent) {
        self.is_cut |= content.is_cut;
        self.named += content.named.len();
        let children = content.named.iter().filter(|_| content.is_index).rev();
        for named in children.filter(|named| !self.met.contains(&named.digest)) {
            self.open.push(TreeManifest {
                digest: named.digest.clone(),
                media_type: named.media_type.clone(),
                platform: content.platforms.get(&named.digest).cloned(),
                depth: from.depth + 1,
            });
        }
    }

    /// The next manifest. Each comes once, however many name it.
    pub fn advance(&mut self) -> Option<TreeManifest> {
        while let Some(found) = self.open.pop() {
            if self.met.contains(&found.digest) {
                continue;
            }
            let has_room = self.met.len() < self.manifests_max && self.named <= NAMED_MAX;
            if found.depth <= DEPTH_MAX && has_room {
                self.met.insert(found.digest.clone());
                return Some(found);
            }
            self.is_cut = true;
        }
        None
    }

    /// There was more than the bounds allow, so far.
    pub const fn is_cut(&self) -> bool {
        self.is_cut
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cache::manifest::DESCRIPTORS_MAX;
    use crate::cache::scratch::digest_of;

    fn index(children: &[&Digest]) -> ManifestContent {
        let child = |digest: &&Digest| {
            let platform = json!({"os": "linux", "architecture": "arm64"});
            json!({"digest": digest.as_str(), "mediaType": "a/b", "size": 5, "platform": platform})
        };
        let manifests: Vec<_> = children.iter().map(child).collect();
        let text = json!({"manifests": manifests}).to_string();
        ManifestContent::read(text.as_bytes())
    }

    #[test]
    fn manifests_come_in_order_and_once() {
        let [root, one, two] = [b"0", b"1", b"2"].map(|name| digest_of(name));
        let mut walk = ManifestWalk::new(10);
        walk.enter(&root);
        let found = walk.advance().unwrap();
        // An index cannot name itself, but one that is damaged may.
        walk.descend(&found, &index(&[&one, &root, &two, &one]));
        let first = walk.advance().unwrap();
        assert_eq!(
            (&first.digest, first.platform.as_deref()),
            (&one, Some("linux/arm64"))
        );
        walk.descend(&first, &index(&[&two]));
        assert_eq!(walk.advance().unwrap().digest, two);
        assert_eq!(walk.advance(), None);
        assert!(!walk.is_cut());
    }

    #[test]
    fn depth_and_number_are_bounded() {
        let names: Vec<Digest> = (0..=DEPTH_MAX + 1)
            .map(|n| digest_of(&n.to_le_bytes()))
            .collect();
        let mut walk = ManifestWalk::new(100);
        walk.enter(&names[0]);
        for (above, below) in names.iter().zip(&names[1..]) {
            let found = walk.advance().unwrap();
            assert_eq!(found.digest, *above);
            walk.descend(&found, &index(&[below]));
        }
        assert_eq!((walk.advance(), walk.is_cut()), (None, true));
        let mut walk = ManifestWalk::new(2);
        walk.enter(&names[0]);
        let found = walk.advance().unwrap();
        walk.descend(&found, &index(&[&names[1], &names[2]]));
        assert_eq!(walk.advance().unwrap().digest, names[1]);
        assert_eq!((walk.advance(), walk.is_cut()), (None, true));
        // Manifests that each name as much as is read.
        let many: Vec<Digest> = (0..DESCRIPTORS_MAX)
            .map(|n| digest_of(&n.to_le_bytes()))
            .collect();
        let wide = index(&many.iter().collect::<Vec<_>>());
        let mut walk = ManifestWalk::new(DESCRIPTORS_MAX);
        walk.enter(&names[0]);
        let mut count = 0;
        while let Some(found) = walk.advance() {
            walk.descend(&found, &wide);
            count += 1;
        }
        assert_eq!(
            (count, walk.is_cut()),
            (NAMED_MAX / DESCRIPTORS_MAX + 1, true)
        );
    }
}
