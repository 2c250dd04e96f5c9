//! The names of a layout's images in the cache. Owns: reading them, which differ with the
//! program that wrote them, and `--as`. Must not: do I/O.

use crate::cache::archive::ArchiveImage;
use crate::cache::closure::subject_of_tag;
use crate::cache::names::OwnedScope;
use crate::image_name::ImageName;
use crate::oci::{Reference, Registry, Tag};

/// What completes or replaces the names in a layout.
#[derive(Debug, Clone, Default)]
pub struct Naming {
    /// `--as`: the registry and repository of all of them.
    pub scope: Option<OwnedScope>,
    /// `--as` with a tag: that of the one image.
    pub tag: Option<Tag>,
    /// The registry of names without one.
    pub default: Option<Registry>,
}

impl Naming {
    /// Where an image is kept, and its tag or digest.
    ///
    /// # Errors
    /// The name is not valid, or does not say enough.
    pub(super) fn resolve(&self, image: &ArchiveImage) -> Result<(OwnedScope, Reference), String> {
        let name = image.name.as_deref().unwrap_or_default();
        // A word alone is a tag, as `skopeo copy … oci:DIR:v1` and containerd write it.
        let word = name.parse::<Tag>().ok();
        let named: Option<ImageName> = match name.is_empty() || word.is_some() {
            true => None,
            false => Some(name.parse().map_err(|why| format!("index.json: {why}"))?),
        };
        let reference = match &named {
            Some(named) if named.digest().is_some() => Some(image.digest.clone().into()),
            Some(named) => Some(named.reference().clone()),
            None => word.map(Reference::Tag),
        };
        // What belongs to an image is found by its own name.
        let keeps_name = reference.as_ref().is_some_and(is_referrer);
        let new = self.tag.clone().filter(|_| !keeps_name);
        let scope = match (&self.scope, named) {
            (Some(scope), _) => Some(scope.clone()),
            (None, Some(named)) => self.scope_of(&named)?,
            (None, None) => None,
        };
        scope
            .zip(new.map(Reference::Tag).or(reference))
            .ok_or_else(|| {
                let why = "names no registry and repository: give them with --as \
                       REGISTRY/REPOSITORY:TAG";
                format!("index.json calls {} {name:?}, which {why}", image.digest)
            })
    }

    /// None for a name without a registry, where there is no default one.
    fn scope_of(&self, named: &ImageName) -> Result<Option<OwnedScope>, String> {
        let registry = match named.host() {
            Some(host) => {
                let registry = host.parse::<Registry>();
                Some(registry.map_err(|why| format!("index.json: {named}: {why}"))?)
            }
            None => self.default.clone(),
        };
        Ok(registry.map(|registry| OwnedScope {
            registry,
            repository: named.repository().clone(),
        }))
    }
}

/// True for the name of a signature or another artifact of an image.
pub(super) fn is_referrer(reference: &Reference) -> bool {
    match reference {
        Reference::Tag(tag) => subject_of_tag(tag).is_some(),
        Reference::Digest(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::scratch::digest_of;

    #[test]
    fn names_of_other_programs_are_completed() {
        let digest = digest_of(b"x");
        let resolve = |name: Option<&str>, naming: &Naming| {
            let image = ArchiveImage {
                digest: digest.clone(),
                media_type: "a/b".to_owned(),
                name: name.map(str::to_owned),
                platforms: "all".parse().unwrap(),
            };
            let resolved = naming.resolve(&image);
            resolved.map(|(scope, reference)| scope.as_scope().name_of(&reference))
        };
        let none = Naming::default();
        let default = Naming {
            default: Some("r.test".parse().unwrap()),
            ..Naming::default()
        };
        let placed = Naming {
            scope: Some(OwnedScope {
                registry: "r.test".parse().unwrap(),
                repository: "team/app".parse().unwrap(),
            }),
            ..Naming::default()
        };
        let tagged = Naming {
            tag: Some("new".parse().unwrap()),
            ..placed.clone()
        };
        let by_digest = format!("h.test/app@{digest}");
        let renamed_digest = format!("r.test/team/app@{digest}");
        let signature = format!("h.test/app:sha256-{}.sig", digest.hex());
        let renamed = format!("r.test/team/app:sha256-{}.sig", digest.hex());
        for (name, naming, expected) in [
            (Some("h.test/app:v1"), &none, "h.test/app:v1"),
            (Some("h.test/app:v1"), &placed, "r.test/team/app:v1"),
            (Some("h.test/app:v1"), &tagged, "r.test/team/app:new"),
            (Some(by_digest.as_str()), &none, by_digest.as_str()),
            (Some(by_digest.as_str()), &tagged, renamed_digest.as_str()),
            (Some(signature.as_str()), &tagged, renamed.as_str()),
            (Some("app:v1"), &default, "r.test/app:v1"),
            (Some("team/app"), &default, "r.test/team/app:latest"),
            (Some("v1"), &placed, "r.test/team/app:v1"),
            (None, &tagged, "r.test/team/app:new"),
        ] {
            assert_eq!(resolve(name, naming).unwrap(), expected, "{name:?}");
        }
        for (name, naming) in [
            (Some("v1"), &default),
            (Some("app:v1"), &none),
            (None, &placed),
        ] {
            let fault = resolve(name, naming).unwrap_err();
            assert!(
                fault.contains("--as REGISTRY/REPOSITORY:TAG"),
                "{name:?}: {fault}"
            );
        }
        let fault = resolve(Some("../app:v1"), &default).unwrap_err();
        assert!(
            fault.contains("repository name \"..\"") || fault.contains("../app"),
            "{fault}"
        );
    }
}
