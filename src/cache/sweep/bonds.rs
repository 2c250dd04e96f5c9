//! What refers to what in a repository: a signature goes with its image, and stays with it. Owns:
//! those bonds, and that they form no circle with what manifests name. Must not: read a file.

use std::collections::{HashMap, HashSet};

/// A digest's place in the survey.
pub(super) type Id = u32;

/// Digests that are looked at before a bond is made. A signature names three.
const STEPS_MAX: usize = 10_000;

/// Manifests by the one that they refer to.
#[derive(Debug, Default)]
pub(super) struct Bonds {
    referrers: HashMap<Id, Vec<Id>>,
}

impl Bonds {
    /// What refers to a manifest.
    pub(super) fn of(&self, subject: Id) -> &[Id] {
        self.referrers.get(&subject).map_or(&[], Vec::as_slice)
    }

    /// Binds a manifest to its subject. False when it leads back to the subject: the two would hold
    /// each other for ever.
    pub(super) fn bind<'a>(
        &mut self,
        subject: Id,
        referrer: Id,
        named: impl Fn(Id) -> &'a [(Id, bool)],
    ) -> bool {
        let (mut open, mut seen) = (vec![referrer], HashSet::new());
        while let Some(id) = open.pop() {
            if id == subject || seen.len() >= STEPS_MAX {
                return false;
            }
            if seen.insert(id) {
                open.extend(named(id).iter().map(|(child, _)| *child));
                open.extend(self.of(id));
            }
        }
        let referrers = self.referrers.entry(subject).or_default();
        if !referrers.contains(&referrer) {
            referrers.push(referrer);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bonds_form_no_circle() {
        // 1 names 2, and 5 names 1.
        let named = |id: Id| -> &'static [(Id, bool)] {
            match id {
                1 => &[(2, true)],
                5 => &[(1, true)],
                _ => &[],
            }
        };
        let mut bonds = Bonds::default();
        assert!(bonds.bind(2, 3, named) && bonds.bind(2, 3, named));
        assert_eq!(bonds.of(2), [3]);
        assert!(!bonds.bind(1, 1, named), "it refers to itself");
        assert!(!bonds.bind(2, 5, named), "it names its subject from above");
        assert!(!bonds.bind(3, 1, named), "3 is bound to what 1 names");
        assert!(bonds.bind(3, 4, named));
        assert!(!bonds.bind(4, 2, named), "over two bonds");
        let many: Vec<(Id, bool)> = (10..20_000).map(|id| (id, false)).collect();
        let wide = |id: Id| if id == 9 { many.as_slice() } else { &[] };
        assert!(!bonds.bind(8, 9, wide), "too many to look at");
    }
}
