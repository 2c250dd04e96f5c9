//! How the images of a layout are called here. Owns: reading their names, which differ with the
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
    pub place: Option<OwnedScope>,
    /// `--as` with a tag: that of the one image.
    pub tag: Option<Tag>,
    /// The registry of names without one.
    pub default: Option<Registry>,
}

impl Naming {
    /// Where an image is kept, and its tag or digest.
    ///
    /// # Errors
    /// Its name is none, or does not say enough.
    pub(super) fn resolve(&self, image: &ArchiveImage) -> Result<(OwnedScope, Reference), String> {
        let name = image.name.as_deref().unwrap_or_default();
        // A word alone is a tag, as `skopeo copy … oci:DIR:v1` and containerd write it.
        let (named, reference) = match name.parse::<Tag>() {
            Ok(tag) => (None, Some(Reference::Tag(tag))),
            Err(_) if name.is_empty() => (None, None),
            Err(_) => {
                let named: ImageName = name.parse().map_err(|why| format!("index.json: {why}"))?;
                let reference = match named.reference() {
                    Reference::Digest(_) => Reference::Digest(image.digest.clone()),
                    tag => tag.clone(),
                };
                (Some(named), Some(reference))
            }
        };
        let reference = match (reference, &self.tag) {
            (None, Some(tag)) => Some(Reference::Tag(tag.clone())),
            // What belongs to an image is found by its tag.
            (Some(Reference::Tag(old)), Some(tag)) if subject_of_tag(&old).is_none() => {
                Some(Reference::Tag(tag.clone()))
            }
            (reference, _) => reference,
        };
        let place = match (&self.place, named) {
            (Some(place), _) => Some(place.clone()),
            (None, Some(named)) => self.place_of(&named)?,
            (None, None) => None,
        };
        place.zip(reference).ok_or_else(|| {
            let why = "names no registry and repository: give them with --as \
                       REGISTRY/REPOSITORY:TAG";
            format!("index.json calls {} {name:?}, which {why}", image.digest)
        })
    }

    /// None for a name without a registry, where there is no default one.
    fn place_of(&self, named: &ImageName) -> Result<Option<OwnedScope>, String> {
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
