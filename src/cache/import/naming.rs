//! How the images of a layout are called here. Owns: reading their names, which differ with the
//! program that wrote them, and `--as`. Must not: do I/O.

use crate::cache::archive::ArchiveImage;
use crate::cache::names::OwnedScope;
use crate::image_name::ImageName;
use crate::oci::{Reference, Registry, Tag};

/// What completes or replaces the names in a layout.
#[derive(Debug, Clone, Default)]
pub struct Naming {
    /// `--as`: the registry and repository of all of them.
    pub place: Option<OwnedScope>,
    /// `--as` with a tag: that of the one image.
    pub tag: Option<Tag>,
    /// The registry of names without one.
    pub default: Option<Registry>,
}

impl Naming {
    /// Where an image is kept, and its tag; none for one that has a digest only.
    ///
    /// # Errors
    /// Its name is none, or does not say enough.
    pub(super) fn resolve(
        &self,
        image: &ArchiveImage,
    ) -> Result<(OwnedScope, Option<Tag>), String> {
        let name = image.name.as_deref().unwrap_or_default();
        // A word alone is a tag, as `skopeo copy … oci:DIR:v1` and containerd write it.
        let (named, tag) = match name.parse::<Tag>() {
            Ok(tag) => (None, Some(tag)),
            Err(_) if name.is_empty() => (None, None),
            Err(_) => {
                let named: ImageName = name.parse().map_err(|why| format!("index.json: {why}"))?;
                let tag = match named.reference() {
                    Reference::Tag(tag) => Some(tag.clone()),
                    Reference::Digest(_) => None,
                };
                (Some(named), tag)
            }
        };
        let is_untagged = named.is_some() && tag.is_none();
        let is_renamed = !is_untagged && !tag.as_ref().is_some_and(is_referrer_tag);
        let tag = self.tag.clone().filter(|_| is_renamed).or(tag);
        let place = match (&self.place, named) {
            (Some(place), _) if tag.is_some() || is_untagged => Some(place.clone()),
            (None, Some(named)) => {
                let parse = |host: &str| {
                    host.parse()
                        .map_err(|why| format!("index.json: {name:?}: {why}"))
                };
                let registry = named.host().map(parse).transpose()?;
                let registry = registry.or_else(|| self.default.clone());
                registry.map(|registry| OwnedScope {
                    registry,
                    repository: named.repository().clone(),
                })
            }
            _ => None,
        };
        let place = place.ok_or_else(|| {
            let why = "names no registry and repository: give them with --as \
                       REGISTRY/REPOSITORY:TAG";
            format!("index.json calls {} {name:?}, which {why}", image.digest)
        })?;
        Ok((place, tag))
    }

    /// The fault of a name that two images have.
    pub(super) fn describe_double(&self, name: &str) -> String {
        let remedy = match self.place {
            Some(_) => "leave --as or its tag away",
            None => "two images have this name",
        };
        format!("index.json: {name} is there twice: {remedy}")
    }
}

/// True for a tag by which clients find what belongs to an image, such as `sha256-<hex>.sig`.
pub(super) fn is_referrer_tag(tag: &Tag) -> bool {
    let tag = tag.as_str();
    let rest = tag
        .strip_prefix("sha256-")
        .or_else(|| tag.strip_prefix("sha512-"));
    rest.is_some_and(|rest| rest.len() >= 64)
}
