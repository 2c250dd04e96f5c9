//! Tags, and the remembered registry. Owns: the files below `repos/`: how they are written, who is
//! writing which, and when they were used last. Must not: know blobs.
//!
//! A file is replaced whole; an empty or unreadable one counts as absent. The modification time of
//! a tag or link is the time of its last use, which eviction goes by. Links are in
//! [`super::links`], pages of lists in [`super::pages`].
//!
//! Locks: the set of files being rewritten, held for set operations; never across I/O.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::SystemTime;

use super::files;
pub use super::paths::Scope;
use super::paths::{
    LINKS, LISTS, Paths, REFERRERS, file_names, folder_names, is_partition, modified, read_text,
    unusable_name,
};
pub use super::tagfile::TagEntry;
use super::tagfile::{TAG_FILE_BYTES_MAX, TagFile};
use crate::oci::{Digest, Registry, Repository, Tag};

/// Holds the registry's URL. No registry's name begins with a dot.
const REMEMBERED: &str = ".registry";

/// The files below `repos/`.
#[derive(Debug)]
pub struct Names {
    pub(super) paths: Paths,
    temps: PathBuf,
    writing: Mutex<HashSet<PathBuf>>,
    written: Condvar,
}

/// A tag as eviction sees it.
#[derive(Debug)]
pub(super) struct TagUse {
    pub(super) tag: Tag,
    pub(super) accessed: SystemTime,
    pub(super) digests: Vec<Digest>,
}

impl Names {
    /// The names of the layout in `root` (see [`super::store::Store::root`]).
    pub fn new(root: &Path) -> Self {
        Self {
            paths: Paths {
                repos: root.join("repos"),
            },
            temps: root.join("partial"),
            writing: Mutex::default(),
            written: Condvar::new(),
        }
    }

    /// The manifests that a tag means, one for each media type; the newest confirmation first.
    /// `partition` is empty or a hash in hex.
    pub fn tag(&self, scope: Scope<'_>, partition: &str, tag: &Tag) -> Vec<TagEntry> {
        let path = self.paths.tag(scope, partition, tag);
        path.map_or_else(Vec::new, |path| read_tag(&path).into_entries())
    }

    /// Sets the manifest that a tag means for the entry's media type. Other media types keep
    /// theirs.
    ///
    /// # Errors
    /// The disk's own, and names that make no path.
    pub fn set_tag(
        &self,
        scope: Scope<'_>,
        partition: &str,
        tag: &Tag,
        entry: TagEntry,
    ) -> io::Result<()> {
        let path = self.paths.tag(scope, partition, tag);
        let path = path.ok_or_else(unusable_name)?;
        let _lock = self.lock_file(&path);
        let mut file = read_tag(&path);
        file.set(entry);
        self.write(&path, file.to_json().as_bytes())
    }

    /// Notes that upstream has confirmed `digest` for the tag. A tag that means something else by
    /// now, or that is gone, stays as it is.
    ///
    /// # Errors
    /// The disk's own, and names that make no path.
    pub fn confirm_tag(
        &self,
        scope: Scope<'_>,
        partition: &str,
        tag: &Tag,
        digest: &Digest,
        now: SystemTime,
    ) -> io::Result<()> {
        let path = self.paths.tag(scope, partition, tag);
        let path = path.ok_or_else(unusable_name)?;
        let _lock = self.lock_file(&path);
        let mut file = read_tag(&path);
        if !file.confirm(digest, now) {
            return Ok(());
        }
        self.write(&path, file.to_json().as_bytes())
    }

    /// Removes a tag from all partitions.
    pub fn remove_tag(&self, scope: Scope<'_>, tag: &Tag) {
        for folder in self.paths.partitions(scope) {
            let path = folder.join(tag.as_str());
            let _lock = self.lock_file(&path);
            self.remove_file(&path);
        }
    }

    /// Notes that a digest was used now, and the tag that led to it.
    pub fn touch(&self, scope: Scope<'_>, partition: &str, tag: Option<&Tag>, digest: &Digest) {
        self.touch_at(scope, partition, tag, digest, SystemTime::now());
    }

    pub(super) fn touch_at(
        &self,
        scope: Scope<'_>,
        partition: &str,
        tag: Option<&Tag>,
        digest: &Digest,
        now: SystemTime,
    ) {
        let tag = tag.and_then(|tag| self.paths.tag(scope, partition, tag));
        for path in tag.into_iter().chain(self.paths.link(scope, digest)) {
            // It may be absent. Where it cannot be written, the order of eviction stays as it was.
            if let Ok(file) = File::options().write(true).open(path) {
                let _ = file.set_modified(now);
            }
        }
    }

    /// The tags of a repository, sorted.
    pub fn tags(&self, scope: Scope<'_>) -> Vec<String> {
        let mut tags = Vec::new();
        for folder in self.paths.partitions(scope) {
            let names = file_names(&folder).into_iter();
            tags.extend(names.filter(|name| {
                name.parse::<Tag>().is_ok() && !read_tag(&folder.join(name)).is_empty()
            }));
        }
        tags.sort_unstable();
        tags.dedup();
        tags
    }

    /// The manifests that a tag means in any partition; the newest confirmation first.
    pub fn tag_anywhere(&self, scope: Scope<'_>, tag: &Tag) -> Vec<TagEntry> {
        let folders = self.paths.partitions(scope).into_iter();
        let mut entries: Vec<TagEntry> = folders
            .flat_map(|folder| read_tag(&folder.join(tag.as_str())).into_entries())
            .collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.confirmed));
        entries
    }

    /// True when the cache holds a repository of any registry. Does not look into it.
    pub fn has_repositories(&self) -> bool {
        let registries = folder_names(&self.paths.repos);
        registries.iter().any(|registry| {
            let children = folder_names(&self.paths.repos.join(registry));
            children.iter().any(|child| !child.starts_with('_'))
        })
    }

    /// The repositories of a registry that hold tags or links, sorted.
    pub fn repositories(&self, registry: &Registry) -> Vec<String> {
        let Some(root) = self.paths.registry(registry) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        let mut open = vec![(root, String::new())];
        while let Some((folder, name)) = open.pop() {
            let mut holds = false;
            for child in folder_names(&folder) {
                if child.starts_with('_') {
                    holds |= child == LINKS || is_partition(&child);
                    continue;
                }
                let below = match name.as_str() {
                    "" => child.clone(),
                    name => format!("{name}/{child}"),
                };
                if below.parse::<Repository>().is_ok() {
                    open.push((folder.join(child), below));
                }
            }
            if holds && !name.is_empty() {
                found.push(name);
            }
        }
        found.sort_unstable();
        found
    }

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

    /// The registry that was remembered last.
    pub fn remembered_registry(&self) -> Option<Registry> {
        let text = fs::read_to_string(self.paths.repos.join(REMEMBERED)).ok()?;
        text.trim().parse().ok()
    }
}

/// Writing and removing files.
impl Names {
    /// Replaces a file whole, and makes it outlive a power cut.
    pub(super) fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        files::replace(&self.temps, path, bytes)
    }

    /// Replaces a file whole. One that a power cut takes away costs a question upstream.
    pub(super) fn write_unsynced(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        files::replace_unsynced(&self.temps, path, bytes)
    }

    /// Removes a file. An absent one is no fault.
    pub(super) fn remove_file(&self, path: &Path) {
        let _ = fs::remove_file(path);
    }

    /// Until the lock is dropped, nobody else rewrites the file: two changes of one tag do not undo
    /// each other.
    pub(super) fn lock_file<'a>(&'a self, path: &'a Path) -> FileLock<'a> {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        while !writing.insert(path.to_owned()) {
            writing = self
                .written
                .wait(writing)
                .unwrap_or_else(PoisonError::into_inner);
        }
        FileLock { names: self, path }
    }
}

/// What the sweep and the layout ask for.
impl Names {
    /// Every registry that has a folder. The file name does not say how a registry is spoken to.
    pub(super) fn registries(&self) -> Vec<Registry> {
        let mut names = folder_names(&self.paths.repos);
        names.sort_unstable();
        names.iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Every tag file. One that cannot be read names no digest.
    pub(super) fn tag_uses(&self, scope: Scope<'_>) -> Vec<TagUse> {
        let mut uses: Vec<TagUse> = Vec::new();
        for folder in self.paths.partitions(scope) {
            for name in file_names(&folder) {
                let Ok(tag) = name.parse::<Tag>() else {
                    continue;
                };
                let path = folder.join(name);
                let entries = read_tag(&path).into_entries();
                let digests = entries.into_iter().map(|entry| entry.digest).collect();
                uses.push(TagUse {
                    tag,
                    accessed: modified(&path),
                    digests,
                });
            }
        }
        uses
    }

    /// When a tag (in any partition) or one of the digests was used last.
    pub(super) fn accessed<'a>(
        &self,
        scope: Scope<'_>,
        tag: Option<&Tag>,
        digests: impl Iterator<Item = &'a Digest>,
    ) -> SystemTime {
        let links = digests.filter_map(|digest| self.paths.link(scope, digest));
        let mut latest = links.map(|path| modified(&path)).max();
        if let Some(tag) = tag {
            let folders = self.paths.partitions(scope).into_iter();
            latest = latest.max(folders.map(|f| modified(&f.join(tag.as_str()))).max());
        }
        latest.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Removes the folders of a repository that have become empty.
    pub(super) fn prune(&self, scope: Scope<'_>) {
        let Some(folder) = self.paths.repository(scope) else {
            return;
        };
        for tags in self.paths.partitions(scope) {
            let _ = fs::remove_dir(tags);
        }
        let _ = fs::remove_dir(folder.join(LINKS));
        if self.paths.partitions(scope).is_empty() && !folder.join(LINKS).exists() {
            for pages in [LISTS, REFERRERS] {
                let _ = fs::remove_dir_all(folder.join(pages));
            }
        }
        let mut folder = folder.as_path();
        // It ends at a folder that is not empty: another repository lives below that.
        while folder != self.paths.repos && fs::remove_dir(folder).is_ok() {
            let Some(parent) = folder.parent() else {
                return;
            };
            folder = parent;
        }
    }
}

/// The right to rewrite one file.
pub(super) struct FileLock<'a> {
    names: &'a Names,
    path: &'a Path,
}

impl Drop for FileLock<'_> {
    fn drop(&mut self) {
        let writing = self.names.writing.lock();
        writing
            .unwrap_or_else(PoisonError::into_inner)
            .remove(self.path);
        self.names.written.notify_all();
    }
}

fn read_tag(path: &Path) -> TagFile {
    let text = read_text(path, TAG_FILE_BYTES_MAX);
    text.map_or_else(TagFile::default, |text| TagFile::parse(&text))
}

#[cfg(test)]
mod tests;
