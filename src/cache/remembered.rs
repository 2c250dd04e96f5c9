//! The registry that is asked when none is set, for a start without a network. Owns: the file that
//! names it. Must not: ask anybody.

use std::fs;
use std::io;

use super::names::Names;
use crate::oci::Registry;

/// Holds the registry's URL. No registry's name begins with a dot.
const REMEMBERED: &str = ".registry";

impl Names {
    /// Keeps the default registry for a start without network.
    ///
    /// # Errors
    /// The disk's own.
    pub fn remember_registry(&self, registry: &Registry) -> io::Result<()> {
        if self.remembered_registry().as_ref() == Some(registry) {
            return Ok(());
        }
        let text = format!("{}\n", registry.url());
        self.write(&self.paths.repos.join(REMEMBERED), text.as_bytes())
    }

    /// The registry that was remembered last, else the only one that the cache holds something of.
    pub(super) fn find_registry(&self) -> Option<Registry> {
        self.remembered_registry().or_else(|| {
            let mut registries = self.registries();
            registries.retain(|registry| self.has_repository(registry));
            registries.pop().filter(|_| registries.is_empty())
        })
    }

    /// The registry that was remembered last.
    pub fn remembered_registry(&self) -> Option<Registry> {
        let text = fs::read_to_string(self.paths.repos.join(REMEMBERED)).ok()?;
        text.trim().parse().ok()
    }
}
