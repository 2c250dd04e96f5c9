//! The manifests of an image, one below the other: an index, and those that it names. Owns: the
//! order of the walk, and that it ends. Must not: read or fetch a manifest.

use std::collections::HashSet;

use super::manifest::{ManifestContent, Named};
use crate::oci::Digest;

/// Manifests below one another: an index of an index is rare.
pub const DEPTH_MAX: usize = 8;

/// Digests that the manifests of one image name: an archive has as many entries. Callers keep what
/// they read, some 150 bytes for each.
const NAMED_MAX: usize = 200_000;

/// A walk. The caller reads each manifest that it gets, and passes it to [`Self::descend`].
#[derive(Debug, Default)]
pub struct ManifestWalk {
    /// What is still to be walked, and how deep each is.
    open: Vec<(Named, usize)>,
    met: HashSet<Digest>,
    manifests_max: usize,
    /// How deep the last manifest is.
    depth: usize,
    named: usize,
    /// There was more than the bounds allow, so far.
    pub is_cut: bool,
}

impl ManifestWalk {
    /// A walk through so many manifests at the most.
    pub fn new(manifests_max: usize) -> Self {
        Self {
            manifests_max,
            ..Self::default()
        }
    }

    /// Lets the walk go on with this manifest, of this media type if that is known, and what is
    /// below it.
    pub fn enter(&mut self, root: &Digest, media_type: Option<&str>) {
        let root = Named {
            digest: root.clone(),
            media_type: media_type.map(str::to_owned),
            size: None,
            platform: None,
        };
        self.open.push((root, 0));
    }

    /// Lets the walk go on with what the last manifest names if it is an index, in that order.
    pub fn descend(&mut self, content: &ManifestContent) {
        self.is_cut |= content.is_cut;
        self.named += content.named.len();
        let children = content.named.iter().filter(|_| content.is_index).rev();
        for named in children.filter(|named| !self.met.contains(&named.digest)) {
            self.open.push((named.clone(), self.depth + 1));
        }
    }

    /// The next manifest. Each comes once, however many name it.
    pub fn advance(&mut self) -> Option<Named> {
        while let Some((found, depth)) = self.open.pop() {
            if self.met.contains(&found.digest) {
                continue;
            }
            let has_room = self.met.len() < self.manifests_max && self.named <= NAMED_MAX;
            if depth <= DEPTH_MAX && has_room {
                self.met.insert(found.digest.clone());
                self.depth = depth;
                return Some(found);
            }
            self.is_cut = true;
        }
        None
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
        walk.enter(&root, None);
        walk.advance().unwrap();
        // An index cannot name itself, but one that is damaged may.
        walk.descend(&index(&[&one, &root, &two, &one]));
        let first = walk.advance().unwrap();
        assert_eq!(
            (&first.digest, first.platform.as_deref()),
            (&one, Some("linux/arm64"))
        );
        walk.descend(&index(&[&two]));
        assert_eq!(walk.advance().unwrap().digest, two);
        assert_eq!(walk.advance(), None);
        assert!(!walk.is_cut);
    }

    #[test]
    fn depth_and_number_are_bounded() {
        let names: Vec<Digest> = (0..=DEPTH_MAX + 1)
            .map(|n| digest_of(&n.to_le_bytes()))
            .collect();
        let mut walk = ManifestWalk::new(100);
        walk.enter(&names[0], None);
        for (above, below) in names.iter().zip(&names[1..]) {
            let found = walk.advance().unwrap();
            assert_eq!(found.digest, *above);
            walk.descend(&index(&[below]));
        }
        assert_eq!((walk.advance(), walk.is_cut), (None, true));
        let mut walk = ManifestWalk::new(2);
        walk.enter(&names[0], None);
        walk.advance().unwrap();
        walk.descend(&index(&[&names[1], &names[2]]));
        assert_eq!(walk.advance().unwrap().digest, names[1]);
        assert_eq!((walk.advance(), walk.is_cut), (None, true));
        // Manifests that each name as much as is read.
        let many: Vec<Digest> = (0..DESCRIPTORS_MAX)
            .map(|n| digest_of(&n.to_le_bytes()))
            .collect();
        let wide = index(&many.iter().collect::<Vec<_>>());
        let mut walk = ManifestWalk::new(DESCRIPTORS_MAX);
        walk.enter(&names[0], None);
        let mut count = 0;
        while walk.advance().is_some() {
            walk.descend(&wide);
            count += 1;
        }
        assert_eq!(
            (count, walk.is_cut),
            (NAMED_MAX / DESCRIPTORS_MAX + 1, true)
        );
    }
}
