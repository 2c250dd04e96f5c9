//! Tags. Owns: the files below `repos/`: how they are written, who is writing which, and when they
//! were used last. Must not: know blobs.
//!
//! A file is replaced whole; an empty or unreadable one counts as absent. The modification time of
//! a tag or link is the time of its last use, which eviction goes by. Links are in
//! [`super::links`], pages of lists in [`super::pages`].
//!
//! Whoever keeps an answer of upstream's passes the moment before it was asked for, and an answer
//! that a change has overtaken is not kept ([`super::changes`]).
//!
//! Locks: one for each part of the files, held while one of them is rewritten. Other processes are
//! kept from it by a lock of [`super::processes`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use super::changes::{Changes, Fact, Moment};
use super::files;
use super::paths::{
    GONE, LINKS, LISTS, Paths, REFERRERS, file_names, folder_names, is_partition, modified,
    open_text, read_text, unusable_name,
};
pub use super::paths::{OwnedScope, Scope};
use super::pending::PendingQueue;
use super::processes;
pub use super::tagfile::TagEntry;
use super::tagfile::{TAG_FILE_BYTES_MAX, TagFile, is_another_time};
use crate::hash;
use crate::locked::Locked as _;
use crate::oci::{Digest, Registry, Repository, Tag};

/// Partitions kept of a repository, that of no `CACHE_KEY` among them. Clients choose them, and
/// each has a folder. One that is taken away costs a question upstream for each of its tags.
const PARTITIONS_MAX: usize = 128;
/// What a directory takes on the disk, as long as it is small.
const BLOCK_BYTES: u64 = 4096;
/// Locks for the files, each for a part of them.
const LOCKS: usize = 32;
/// Longest wait for a process that rewrites a file. One that hangs for longer may undo a change.
const REWRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// The files below `repos/`.
#[derive(Debug)]
pub struct Names {
    /// What was pushed and deleted through us.
    pub changes: Changes,
    pub(super) paths: Paths,
    pub(super) pending: PendingQueue,
    root: PathBuf,
    temps: PathBuf,
    read_only: bool,
    /// Bytes on disk of everything but blobs and downloads.
    used: AtomicU64,
    writing: [Mutex<()>; LOCKS],
}

/// A tag, and when it was used last in any partition.
#[derive(Debug)]
pub(super) struct TagUse {
    pub(super) accessed: SystemTime,
    /// One file for each partition.
    files: Vec<PathBuf>,
}

impl TagUse {
    /// The manifests that the tag means.
    pub(super) fn digests(&self) -> impl Iterator<Item = Digest> {
        let entries = self.files.iter().flat_map(|path| read_tag(path));
        entries.map(|entry| entry.digest)
    }

    /// True when each of its files can be read.
    pub(super) fn is_readable(&self) -> bool {
        let mut files = self.files.iter();
        files.all(|path| !read_tag(path).is_empty())
    }
}

impl Names {
    /// The names of the layout in `root` (see [`super::store::Store::root`]).
    pub fn new(root: &Path) -> Self {
        Self::new_for(root, false)
    }

    /// The same; `read_only`: nothing is kept.
    pub(super) fn new_for(root: &Path, read_only: bool) -> Self {
        Self {
            read_only,
            changes: Changes::default(),
            paths: Paths {
                repos: root.join("repos"),
            },
            pending: PendingQueue::default(),
            root: root.to_owned(),
            temps: root.join("partial"),
            used: AtomicU64::new(0),
            writing: Default::default(),
        }
    }

    /// The manifests that a tag means, one for each media type; the newest confirmation first.
    /// `partition` is empty or a hash in hex.
    pub fn tag(&self, scope: Scope<'_>, partition: &str, tag: &Tag) -> Vec<TagEntry> {
        let path = self.paths.tag(scope, partition, tag);
        path.map_or_else(Vec::new, |path| read_tag(&path))
    }

    /// The same, which counts as a use of the tag.
    pub fn use_tag(&self, scope: Scope<'_>, partition: &str, tag: &Tag) -> Vec<TagEntry> {
        let path = self.paths.tag(scope, partition, tag);
        let opened = path.and_then(|path| open_text(&path, TAG_FILE_BYTES_MAX));
        opened.map_or_else(Vec::new, |(text, file)| {
            files::touch(&file, SystemTime::now());
            TagFile::parse(&text).into_entries()
        })
    }

    /// Sets the manifest that a tag means for the entry's media type, and notes it when that was
    /// another one. Other media types keep theirs.
    ///
    /// # Errors
    /// The disk's own, and names that make no path.
    pub fn set_tag(
        &self,
        scope: Scope<'_>,
        partition: &str,
        tag: &Tag,
        entry: TagEntry,
        asked_at: Moment,
    ) -> io::Result<()> {
        let path = self.paths.tag(scope, partition, tag);
        let path = path.ok_or_else(unusable_name)?;
        let (digest, confirmed) = (entry.digest.clone(), entry.confirmed);
        let facts = [Fact::Tag(tag), Fact::Present(&digest)];
        let is_new = path.parent().is_some_and(|folder| !folder.exists());
        let mut before = None;
        let is_kept = self.keep(scope, &facts, asked_at, &path, || {
            let text = read_tag_text(&path);
            let mut file = TagFile::parse(&text);
            before = file.set(entry);
            self.rewrite_tag(&path, &text, &file)
        })?;
        if let Some(before) = before.filter(|before| is_kept && *before != digest) {
            self.note_move(scope, tag, (&before, &digest), confirmed)?;
        }
        if is_new && !partition.is_empty() {
            self.bound_partitions(scope);
        }
        Ok(())
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
        asked_at: Moment,
    ) -> io::Result<()> {
        let path = self.paths.tag(scope, partition, tag);
        let path = path.ok_or_else(unusable_name)?;
        let facts = [Fact::Tag(tag), Fact::Present(digest)];
        let confirmed = self.keep(scope, &facts, asked_at, &path, || {
            let text = read_tag_text(&path);
            let mut file = TagFile::parse(&text);
            match file.confirm(digest, now) {
                true => self.rewrite_tag(&path, &text, &file),
                false => Ok(()),
            }
        });
        confirmed.map(|_| ())
    }

    /// Replaces a tag's file. Another time of confirmation alone need not outlive a power cut, and
    /// costs no fsync.
    fn rewrite_tag(&self, path: &Path, before: &str, file: &TagFile) -> io::Result<()> {
        let after = file.to_json();
        match is_another_time(before, &after) {
            true => files::overwrite(path, after.as_bytes()),
            false => self.write(path, after.as_bytes()),
        }
    }

    /// Removes a tag from all partitions.
    pub fn remove_tag(&self, scope: Scope<'_>, tag: &Tag) {
        self.remove_tag_if(scope, tag, || true);
    }

    /// Removes a tag that upstream says is not there. What it meant may be nowhere else by now.
    pub fn remove_missing_tag(&self, scope: Scope<'_>, tag: &Tag, asked_at: Moment) {
        let facts = [Fact::Tag(tag)];
        let still = || self.changes.are_unchanged(asked_at, scope, &facts);
        let entries = self.tag_anywhere(scope, tag);
        self.remove_tag_if(scope, tag, still);
        for entry in entries {
            if still() && self.link(scope, &entry.digest).is_some() {
                // Without the mark it goes as early as others.
                let _ = self.mark_gone(scope, &entry.digest);
            }
        }
    }

    fn remove_tag_if(&self, scope: Scope<'_>, tag: &Tag, is_gone: impl Fn() -> bool) {
        for folder in self.paths.partitions(scope) {
            let path = folder.join(tag.as_str());
            let _lock = self.lock_file(&path);
            if is_gone() {
                self.remove_file(&path);
            }
        }
    }

    /// The tags of a repository that mean something, sorted.
    pub fn tags(&self, scope: Scope<'_>) -> Vec<Tag> {
        let tags = self.tag_uses(scope, usize::MAX).into_iter();
        let tags = tags.filter(|(_, found)| found.digests().next().is_some());
        tags.map(|(tag, _)| tag).collect()
    }

    /// The tags of a repository that mean a digest, sorted.
    pub fn tags_of(&self, scope: Scope<'_>, digest: &Digest) -> impl Iterator<Item = Tag> {
        let tags = self.tag_uses(scope, usize::MAX).into_iter();
        let tags = tags.filter(move |(_, found)| found.digests().any(|found| found == *digest));
        tags.map(|(tag, _)| tag)
    }

    /// The manifests that a tag means in any partition; the newest confirmation first.
    pub fn tag_anywhere(&self, scope: Scope<'_>, tag: &Tag) -> Vec<TagEntry> {
        let folders = self.paths.partitions(scope).into_iter();
        let entries = folders.flat_map(|folder| read_tag(&folder.join(tag.as_str())));
        let mut entries: Vec<TagEntry> = entries.collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.confirmed));
        entries
    }

    /// True when the cache holds a tag of the repository. Reads none.
    pub fn has_tags(&self, scope: Scope<'_>) -> bool {
        let folders = self.paths.partitions(scope);
        let mut entries = folders.iter().flat_map(fs::read_dir).flatten().flatten();
        entries.any(|entry| {
            let name = entry.file_name();
            name.to_str()
                .is_some_and(|name| name.parse::<Tag>().is_ok())
        })
    }

    /// True when the cache holds a repository of the registry. Does not look into it.
    pub fn has_repository(&self, registry: &Registry) -> bool {
        let folder = self.paths.registry(registry);
        let children = folder.map(|folder| folder_names(&folder));
        let mut children = children.into_iter().flatten();
        children.any(|child| !child.starts_with('_'))
    }

    /// True when the cache holds a repository of any registry. Does not look into it.
    pub fn has_repositories(&self) -> bool {
        let mut registries = self.registries().into_iter();
        registries.any(|registry| self.has_repository(&registry))
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
}

/// Writing and removing files.
impl Names {
    /// Writes the file at `path`, which holds an answer of upstream's, unless one of the facts has
    /// changed since. False when it is not kept.
    pub(super) fn keep(
        &self,
        scope: Scope<'_>,
        facts: &[Fact<'_>],
        asked_at: Moment,
        path: &Path,
        write: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<bool> {
        if self.read_only {
            return Ok(false);
        }
        let is_current = || self.changes.are_unchanged(asked_at, scope, facts);
        let _lock = self.lock_file(path);
        if !is_current() {
            return Ok(false);
        }
        let written = write();
        // A change that came meanwhile may have looked for the file too early.
        let is_kept = is_current();
        if !is_kept {
            self.remove_file(path);
        }
        written.map(|()| is_kept)
    }

    /// Replaces a file whole, and makes it outlive a power cut.
    pub(super) fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.account(path, |path| files::replace(&self.temps, path, bytes))
    }

    /// Replaces a file whole. One that a power cut takes away costs a question upstream.
    pub(super) fn write_unsynced(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.account(path, |path| {
            files::replace_unsynced(&self.temps, path, bytes)
        })
    }

    /// The same for a few bytes whose beginning alone reads as absent.
    pub(super) fn put_unsynced(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.account(path, |path| files::put_unsynced(&self.temps, path, bytes))
    }

    /// Removes a file. An absent one is no fault.
    pub(super) fn remove_file(&self, path: &Path) {
        let _ = self.account(path, |path| fs::remove_file(path));
    }

    /// Removes a directory, if it is empty. Says whether it is gone.
    fn remove_folder(&self, path: &Path) -> bool {
        self.account(path, |path| fs::remove_dir(path)).is_ok()
    }

    /// Removes a directory with all that it holds.
    pub(super) fn remove_tree(&self, path: &Path) {
        let bytes = files::tree_on_disk(path);
        let _ = fs::remove_dir_all(path);
        self.change_used(bytes, files::tree_on_disk(path));
    }

    /// Bytes on disk of everything but blobs and downloads, as it was counted last and changed
    /// since.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Counts the bytes on disk of everything but blobs and downloads. Blocks, for as long as it
    /// takes to look at every file.
    pub(super) fn count(&self) {
        let before = self.used_bytes();
        let root = self.paths.repos.parent().unwrap_or(&self.paths.repos);
        let mut counted = 0_u64;
        for name in ["blobs", "partial"] {
            for below in ["", "sha256", "sha512"] {
                counted += metadata_on_disk(&root.join(name).join(below));
            }
        }
        for child in fs::read_dir(root).into_iter().flatten().flatten() {
            let name = child.file_name();
            if name != "blobs" && name != "partial" {
                counted += files::tree_on_disk(&child.path());
            }
        }
        // What changed meanwhile is in the count, or in the difference, or in both until the next.
        self.change_used(before, counted);
    }

    /// Makes a change to one file, and puts what it took or gave back on the account. Directories
    /// that it makes count as one block each.
    pub(super) fn account<T>(
        &self,
        path: &Path,
        change: impl FnOnce(&Path) -> io::Result<T>,
    ) -> io::Result<T> {
        let before = metadata_on_disk(path);
        let above = path.ancestors().skip(1);
        let missing = above.take_while(|folder| !folder.exists()).count() as u64;
        let changed = change(path);
        let made = if changed.is_ok() {
            missing * BLOCK_BYTES
        } else {
            0
        };
        self.change_used(before, metadata_on_disk(path) + made);
        changed
    }

    fn change_used(&self, before: u64, after: u64) {
        let change = |used: u64| Some(used.saturating_add(after).saturating_sub(before));
        let _ = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// Until the lock is dropped, nobody else rewrites the file, nor does another process: two
    /// changes of one tag do not undo each other. A thread must not hold two: they may be one.
    #[expect(clippy::indexing_slicing, reason = "a remainder is within the locks")]
    pub(super) fn lock_file(&self, path: &Path) -> FileLock<'_> {
        // The directory may have another path in another process.
        let below = path.strip_prefix(&self.paths.repos).unwrap_or(path);
        let hash = hash::sha256(below.as_os_str().as_bytes());
        let number = hash.first().map_or(0, |byte| usize::from(*byte) % LOCKS);
        let threads = self.writing[number].locked();
        let name = format!("names-{number}");
        FileLock {
            _processes: processes::lock(&self.root, &name, REWRITE_TIMEOUT),
            _threads: threads,
        }
    }
}

/// What the sweep and the layout ask for.
impl Names {
    /// Every registry that has a folder. The file name does not say how a registry is spoken to.
    pub fn registries(&self) -> Vec<Registry> {
        let mut names = folder_names(&self.paths.repos);
        names.sort_unstable();
        names.iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Every repository that holds tags or links, by registry and name.
    pub fn scopes(&self) -> Vec<OwnedScope> {
        let registries = self.registries().into_iter();
        let scopes = registries.flat_map(|registry| {
            let names = self.repositories(&registry).into_iter();
            let names = names.filter_map(|name| name.parse().ok());
            let scopes = names.map(|repository| OwnedScope {
                registry: registry.clone(),
                repository,
            });
            scopes.collect::<Vec<_>>()
        });
        scopes.collect()
    }

    /// The tags of a repository, at most `limit`, whether they can be read or not.
    pub(super) fn tag_uses(&self, scope: Scope<'_>, limit: usize) -> BTreeMap<Tag, TagUse> {
        let mut uses: BTreeMap<Tag, TagUse> = BTreeMap::new();
        for folder in self.paths.partitions(scope) {
            for name in file_names(&folder) {
                let Ok(tag) = name.parse::<Tag>() else {
                    continue;
                };
                if uses.len() >= limit && !uses.contains_key(&tag) {
                    continue;
                }
                let path = folder.join(name);
                let found = uses.entry(tag).or_insert(TagUse {
                    accessed: SystemTime::UNIX_EPOCH,
                    files: Vec::new(),
                });
                found.accessed = found.accessed.max(modified(&path));
                found.files.push(path);
            }
        }
        uses
    }

    /// When a tag (in any partition) or one of the digests was used last.
    pub(super) fn last_use<'a>(
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
            self.remove_folder(&tags);
        }
        self.remove_folder(&folder.join(LINKS));
        self.remove_folder(&folder.join(GONE));
        if self.paths.partitions(scope).is_empty() && !folder.join(LINKS).exists() {
            for pages in [LISTS, REFERRERS] {
                self.remove_tree(&folder.join(pages));
            }
        }
        self.prune_from(&folder);
    }

    /// Removes a folder and those above it, as long as they are empty: another repository may live
    /// below them.
    pub(super) fn prune_from(&self, folder: &Path) {
        let mut folder = folder;
        while folder != self.paths.repos && self.remove_folder(folder) {
            let Some(parent) = folder.parent() else {
                return;
            };
            folder = parent;
        }
    }

    /// Takes the partitions away that were not written for longest, until there are few enough.
    fn bound_partitions(&self, scope: Scope<'_>) {
        let folders = self.paths.partitions(scope).into_iter();
        let mut folders: Vec<_> = folders.map(|folder| (modified(&folder), folder)).collect();
        let more = folders.len().saturating_sub(PARTITIONS_MAX);
        folders.sort_unstable();
        for (_, folder) in folders.iter().take(more) {
            self.remove_tree(folder);
        }
    }
}

/// The right to rewrite one file.
pub(super) struct FileLock<'a> {
    _processes: Option<File>,
    _threads: MutexGuard<'a, ()>,
}

fn metadata_on_disk(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |metadata| files::on_disk(&metadata))
}

fn read_tag(path: &Path) -> Vec<TagEntry> {
    TagFile::parse(&read_tag_text(path)).into_entries()
}

/// Empty where there is none.
fn read_tag_text(path: &Path) -> String {
    read_text(path, TAG_FILE_BYTES_MAX).unwrap_or_default()
}

#[cfg(test)]
mod tests;
