//! The common part of the commands about images. Owns: reading their words, opening the cache, and
//! the registry that a name means. Must not: know a single command.

use std::path::Path;

use super::invocation::{CommandFault, Invocation};
use crate::app;
use crate::cache::disk::Disk;
use crate::cache::names::{Names, OwnedScope};
use crate::cache::store::{OpenError, Store};
use crate::image_name::ImageName;
use crate::oci::Registry;
use crate::platforms::Platforms;

impl Invocation<'_> {
    /// The images that its words name, and the platforms: those of `--platform`, else `default`.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub(super) fn images(
        &self,
        default: &Platforms,
    ) -> Result<(Vec<ImageName>, Platforms), CommandFault> {
        let (mut names, mut faults) = (Vec::new(), Vec::new());
        for word in self.words {
            match word.parse() {
                Ok(name) => names.push(name),
                Err(why) => faults.push(why),
            }
        }
        let mut platforms = default.clone();
        if let Some(text) = self.value("--platform") {
            match text.parse() {
                Ok(given) => platforms = given,
                Err(why) => faults.push(format!("--platform={text}: {why}")),
            }
        }
        match faults.is_empty() {
            true => Ok((names, platforms)),
            false => Err(CommandFault::Usage(faults)),
        }
    }

    /// Opens the cache with `open`, beside a proxy that may use it. What is pinned stays.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn open_cache(
        &self,
        open: fn(&Path) -> Result<Store, OpenError>,
    ) -> Result<Disk, String> {
        let directory = app::cache_directory(self.settings);
        let directory = directory.ok_or("there is no cache: set CACHE_DIR")?;
        let store = open(&directory).map_err(|error| error.to_string())?;
        let disk = Disk::new(store, self.settings.cache_max_size);
        disk.sweeper.pin(app::pins(self.settings));
        Ok(disk)
    }

    /// The registry of names without one: the first, or the one that the cache remembers.
    pub(super) fn default_registry(&self, names: &Names) -> Option<Registry> {
        let first = self.settings.registries.first().cloned();
        first.or_else(|| names.remembered_registry())
    }

    /// Where an image is: in one of `ECR`, else in the registry that its host names.
    ///
    /// # Errors
    /// A name that leads to no registry.
    pub(super) fn scope_of(&self, names: &Names, name: &ImageName) -> Result<OwnedScope, String> {
        let mut registries = self.settings.registries.iter();
        let known = registries.find(|registry| name.is_in(registry, false));
        let registry = match (known, name.host()) {
            (Some(registry), _) => registry.clone(),
            (None, Some(host)) => host.parse().map_err(|why| format!("{name}: {why}"))?,
            (None, None) => self.default_registry(names).ok_or_else(|| {
                format!("{name} names no registry: set ECR, or write HOST/{name}")
            })?,
        };
        Ok(OwnedScope {
            registry,
            repository: name.repository().clone(),
        })
    }
}
