//! Tags and belonging. Owns: `repos/`: which digest a tag means, which digests upstream has shown
//! to belong to a repository, and the remembered registry. Must not: know blobs.
//!
//! Every path is made of parsed words ([`Repository`], [`Tag`], [`Digest`]), and a word that could
//! still lead astray makes no path at all. Files are replaced whole; an empty or unreadable one
//! counts as absent. The access order of eviction is the files' modification time.
//!
//! Locks: the set of files being rewritten, held for set operations; never across I/O.

mod pages;

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::SystemTime;

pub use self::pages::{LIST_BYTES_MAX, List, Page};
use super::files;
pub use super::manifest::named_by;
pub use super::tagfile::TagEntry;
use super::tagfile::{TAG_FILE_BYTES_MAX, TagFile};
use crate::oci::{Digest, Registry, Repository, Tag};

/// Longest name of a file (`NAME_MAX` of every Linux file system in use).
const COMPONENT_BYTES_MAX: usize = 255;
/// Longest media type (RFC 6838 §4.2: two names of 127 characters and a slash), and the file's end.
const LINK_BYTES_MAX: u64 = 256;
/// What the link of a digest holds that is no manifest; shorter than any media type.
const BLOB_LINK: &str = "-\n";
const TAGS: &str = "_tags";
const LINKS: &str = "_links";
/// Hold pages of lists, and nothing that makes a repository one of the cache's.
const CATALOG: &str = "_catalog";
const LISTS: &str = "_lists";
const REFERRERS: &str = "_referrers";
/// Empty: the registry has no referrers API.
const NO_REFERRERS: &str = "_no-referrers-api";
/// Holds the registry's URL; no registry's name begins with a dot.
const REMEMBERED: &str = ".registry";

/// The files below `repos/`.
#[derive(Debug)]
pub struct Names {
    repos: PathBuf,
    temps: PathBuf,
    writing: Mutex<HashSet<PathBuf>>,
    written: Condvar,
}

/// A repository of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope<'a> {
    /// Whose it is.
    pub registry: &'a Registry,
    /// Its name there.
    pub repository: &'a Repository,
}

impl fmt::Display for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}

/// A digest that belongs to a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// For a manifest: its type.
    pub media_type: Option<String>,
}

/// A tag as eviction sees it.
#[derive(Debug)]
pub(super) struct TagUse {
    pub(super) tag: Tag,
    pub(super) accessed: SystemTime,
    pub(super) digests: Vec<Digest>,
}

/// A link as eviction sees it.
#[derive(Debug)]
pub(super) struct LinkUse {
    pub(super) digest: Digest,
    pub(super) accessed: SystemTime,
    pub(super) manifest: bool,
}

impl Names {
    /// The names of the layout in `root` (see [`super::store::Store::root`]).
    pub fn new(root: &Path) -> Self {
        Self {
            repos: root.join("repos"),
            temps: root.join("partial"),
            writing: Mutex::default(),
            written: Condvar::new(),
        }
    }

    /// What a tag means: newest confirmation first, one entry a media type. `partition` is empty or
    /// a hash in hex.
    pub fn tag(&self, scope: Scope<'_>, partition: &str, tag: &Tag) -> Vec<TagEntry> {
        let path = self.tag_path(scope, partition, tag);
        path.map_or_else(Vec::new, |path| read_tag(&path).into_entries())
    }

    /// Sets what a tag means for the entry's media type; other media types keep theirs.
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
        let path = self.tag_path(scope, partition, tag).ok_or_else(no_path)?;
        let _alone = self.alone(&path);
        let mut file = read_tag(&path);
        file.set(entry, SystemTime::now());
        files::replace(&self.temps, &path, file.to_json().as_bytes())
    }

    /// Upstream said again that the tag means `digest`. A tag that means something else by now, or
    /// that is gone, stays as it is.
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
        let path = self.tag_path(scope, partition, tag).ok_or_else(no_path)?;
        let _alone = self.alone(&path);
        let mut file = read_tag(&path);
        if !file.confirm(digest, now) {
            return Ok(());
        }
        files::replace(&self.temps, &path, file.to_json().as_bytes())
    }

    /// Forgets a tag, in all partitions.
    pub fn remove_tag(&self, scope: Scope<'_>, tag: &Tag) {
        let Some(folder) = self.folder(scope) else {
            return;
        };
        for tags in partitions(&folder) {
            let path = tags.join(tag.as_str());
            let _alone = self.alone(&path);
            let _ = fs::remove_file(&path);
        }
    }

    /// Whether a digest belongs to a repository.
    pub fn link(&self, scope: Scope<'_>, digest: &Digest) -> Option<Link> {
        read_link(&self.link_path(scope, digest)?)
    }

    /// A digest belongs to a repository. One that is known to be a manifest stays one.
    ///
    /// # Errors
    /// The disk's own, names that make no path, and a media type longer than RFC 6838 has them.
    pub fn set_link(
        &self,
        scope: Scope<'_>,
        digest: &Digest,
        media_type: Option<&str>,
    ) -> io::Result<()> {
        let path = self.link_path(scope, digest).ok_or_else(no_path)?;
        let text = match media_type {
            None => BLOB_LINK.to_owned(),
            Some(media_type) => {
                let text = format!("{media_type}\n");
                if parse_link(&text).is_none_or(|link| link.media_type.is_none()) {
                    let why = format!("{media_type:?} is no media type");
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
                }
                text
            }
        };
        let _alone = self.alone(&path);
        match read_link(&path) {
            Some(known) if media_type.is_none() || known.media_type.as_deref() == media_type => {
                Ok(())
            }
            // A manifest may name a hundred blobs, and a client waits for it.
            _ => files::replace_unsynced(&self.temps, &path, text.as_bytes()),
        }
    }

    /// A digest belongs to a repository no longer.
    pub fn remove_link(&self, scope: Scope<'_>, digest: &Digest) {
        if let Some(path) = self.link_path(scope, digest) {
            let _alone = self.alone(&path);
            let _ = fs::remove_file(&path);
        }
    }

    /// Somebody used a tag, or a digest: eviction takes what was not used for longest.
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
        let tag = tag.and_then(|tag| self.tag_path(scope, partition, tag));
        for path in tag.into_iter().chain(self.link_path(scope, digest)) {
            // Absent: not used through a name. Read-only: the order stays as it was.
            if let Ok(file) = File::options().write(true).open(path) {
                let _ = file.set_modified(now);
            }
        }
    }

    /// The tags of a repository, sorted.
    pub fn tags(&self, scope: Scope<'_>) -> Vec<String> {
        let folders = self.folder(scope).map_or_else(Vec::new, |f| partitions(&f));
        let mut tags: Vec<String> = folders
            .iter()
            .flat_map(|folder| {
                file_names(folder)
                    .into_iter()
                    .map(move |name| (folder, name))
            })
            .filter(|(folder, name)| {
                name.parse::<Tag>().is_ok() && !read_tag(&folder.join(name)).is_empty()
            })
            .map(|(_, name)| name)
            .collect();
        tags.sort_unstable();
        tags.dedup();
        tags
    }

    /// The manifests of a repository: digest and media type.
    pub fn manifests(&self, scope: Scope<'_>) -> Vec<(Digest, String)> {
        let links = self.link_uses(scope).into_iter();
        let manifests = links.filter(|link| link.manifest).filter_map(|link| {
            let media_type = self.link(scope, &link.digest)?.media_type?;
            Some((link.digest, media_type))
        });
        manifests.collect()
    }

    /// True when there is a repository of any registry here. Does not look into it.
    pub fn has_repositories(&self) -> bool {
        let registries = folder_names(&self.repos);
        registries.iter().any(|registry| {
            let children = folder_names(&self.repos.join(registry));
            children.iter().any(|child| !child.starts_with('_'))
        })
    }

    /// The repositories of a registry of which something is known, sorted.
    pub fn repositories(&self, registry: &Registry) -> Vec<String> {
        let Some(root) = self.registry_path(registry) else {
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
        files::replace(&self.temps, &self.repos.join(REMEMBERED), text.as_bytes())
    }

    /// The registry that was remembered last.
    pub fn remembered_registry(&self) -> Option<Registry> {
        let text = fs::read_to_string(self.repos.join(REMEMBERED)).ok()?;
        text.trim().parse().ok()
    }

    fn registry_path(&self, registry: &Registry) -> Option<PathBuf> {
        let name = registry.name();
        // `.` and `..` pass as host names, and a leading dot is ours.
        let safe = name.len() <= COMPONENT_BYTES_MAX && !name.starts_with(['.', '_']);
        (safe && !name.contains('/')).then(|| self.repos.join(name))
    }

    fn folder(&self, scope: Scope<'_>) -> Option<PathBuf> {
        let registry = self.registry_path(scope.registry)?;
        let name = scope.repository.as_str();
        let short = name
            .split('/')
            .all(|part| part.len() <= COMPONENT_BYTES_MAX);
        short.then(|| registry.join(name))
    }

    fn tag_path(&self, scope: Scope<'_>, partition: &str, tag: &Tag) -> Option<PathBuf> {
        let folder = match partition {
            "" => TAGS.to_owned(),
            partition => format!("{TAGS}@{partition}"),
        };
        is_partition(&folder).then_some(())?;
        Some(self.folder(scope)?.join(folder).join(tag.as_str()))
    }

    fn link_path(&self, scope: Scope<'_>, digest: &Digest) -> Option<PathBuf> {
        // The two algorithms differ in length, so the digits alone name the digest.
        Some(self.folder(scope)?.join(LINKS).join(digest.hex()))
    }

    /// Until dropped, nobody else rewrites the file: two changes to one tag do not undo each other.
    fn alone<'a>(&'a self, path: &'a Path) -> Alone<'a> {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        while !writing.insert(path.to_owned()) {
            writing = self
                .written
                .wait(writing)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Alone { names: self, path }
    }
}

/// What the sweep and the layout ask for.
impl Names {
    /// Every registry something is known of. How it is spoken to is not kept.
    pub(super) fn registries(&self) -> Vec<Registry> {
        let mut names = folder_names(&self.repos);
        names.sort_unstable();
        names.iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Every tag file, also one that cannot be read (it names no digest then).
    pub(super) fn tag_uses(&self, scope: Scope<'_>) -> Vec<TagUse> {
        let folders = self.folder(scope).map_or_else(Vec::new, |f| partitions(&f));
        let mut uses: Vec<TagUse> = Vec::new();
        for folder in folders {
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

    /// Every link.
    pub(super) fn link_uses(&self, scope: Scope<'_>) -> Vec<LinkUse> {
        let Some(folder) = self.folder(scope).map(|folder| folder.join(LINKS)) else {
            return Vec::new();
        };
        let Ok(entries) = fs::read_dir(folder) else {
            return Vec::new();
        };
        let uses = entries.flatten().filter_map(|entry| {
            let digest = digest_of(entry.file_name().to_str()?)?;
            let metadata = entry.metadata().ok()?;
            Some(LinkUse {
                digest,
                accessed: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                // By its length, so that a million links are not opened.
                manifest: metadata.len() > BLOB_LINK.len() as u64,
            })
        });
        uses.collect()
    }

    /// When a tag (in any partition) or one of the digests was used last.
    pub(super) fn accessed<'a>(
        &self,
        scope: Scope<'_>,
        tag: Option<&Tag>,
        digests: impl Iterator<Item = &'a Digest>,
    ) -> SystemTime {
        let links = digests.filter_map(|digest| self.link_path(scope, digest));
        let mut latest = links.map(|path| modified(&path)).max();
        if let (Some(tag), Some(folder)) = (tag, self.folder(scope)) {
            let tags = partitions(&folder);
            let tags = tags
                .iter()
                .map(|folder| modified(&folder.join(tag.as_str())));
            latest = latest.max(tags.max());
        }
        latest.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// What a tag means in any partition, newest first.
    pub fn tag_anywhere(&self, scope: Scope<'_>, tag: &Tag) -> Vec<TagEntry> {
        let folders = self.folder(scope).map_or_else(Vec::new, |f| partitions(&f));
        let mut entries: Vec<TagEntry> = folders
            .iter()
            .flat_map(|folder| read_tag(&folder.join(tag.as_str())).into_entries())
            .collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.confirmed));
        entries
    }

    /// Removes the folders of a repository that have become empty.
    pub(super) fn prune(&self, scope: Scope<'_>) {
        let Some(folder) = self.folder(scope) else {
            return;
        };
        for tags in partitions(&folder) {
            let _ = fs::remove_dir(tags);
        }
        let _ = fs::remove_dir(folder.join(LINKS));
        if partitions(&folder).is_empty() && !folder.join(LINKS).exists() {
            for pages in [LISTS, REFERRERS] {
                let _ = fs::remove_dir_all(folder.join(pages));
            }
        }
        let mut folder = folder.as_path();
        // Not empty is the usual end: another repository lives below.
        while folder != self.repos && fs::remove_dir(folder).is_ok() {
            let Some(parent) = folder.parent() else {
                return;
            };
            folder = parent;
        }
    }
}

struct Alone<'a> {
    names: &'a Names,
    path: &'a Path,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let writing = self.names.writing.lock();
        writing
            .unwrap_or_else(PoisonError::into_inner)
            .remove(self.path);
        self.names.written.notify_all();
    }
}

fn no_path() -> io::Error {
    let why = "the name is too long for a file, or no name of a registry";
    io::Error::new(io::ErrorKind::InvalidFilename, why)
}

fn read_tag(path: &Path) -> TagFile {
    let text = read_bounded(path, TAG_FILE_BYTES_MAX);
    text.map_or_else(TagFile::default, |text| TagFile::parse(&text))
}

fn read_link(path: &Path) -> Option<Link> {
    parse_link(&read_bounded(path, LINK_BYTES_MAX)?)
}

/// A dash, or a media type; each with its line end, without which the file is not whole.
fn parse_link(text: &str) -> Option<Link> {
    if text == BLOB_LINK {
        return Some(Link { media_type: None });
    }
    let media_type = text.strip_suffix('\n')?;
    let graphic = media_type
        .bytes()
        .all(|b| b.is_ascii_graphic() || b == b' ');
    let fits = text.len() as u64 <= LINK_BYTES_MAX && text.len() > BLOB_LINK.len();
    (fits && graphic && media_type.contains('/')).then(|| Link {
        media_type: Some(media_type.to_owned()),
    })
}

fn read_bounded(path: &Path, limit: u64) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = File::open(path).ok()?;
    file.take(limit).read_to_string(&mut text).ok()?;
    Some(text)
}

fn modified(path: &Path) -> SystemTime {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn digest_of(hex: &str) -> Option<Digest> {
    let algorithm = if hex.len() == 128 { "sha512" } else { "sha256" };
    format!("{algorithm}:{hex}").parse().ok()
}

/// `_tags`, or `_tags@` and a hash in hex.
fn is_partition(name: &str) -> bool {
    let hex = |hash: &str| hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match name.strip_prefix(TAGS) {
        Some("") => true,
        Some(rest) => rest
            .strip_prefix('@')
            .is_some_and(|hash| (1..=128).contains(&hash.len()) && hex(hash)),
        None => false,
    }
}

/// The tag folders of a repository; the default one first.
fn partitions(folder: &Path) -> Vec<PathBuf> {
    let mut names = folder_names(folder);
    names.retain(|name| is_partition(name));
    names.sort_unstable();
    names.iter().map(|name| folder.join(name)).collect()
}

fn file_names(folder: &Path) -> Vec<String> {
    children(folder, |kind| kind.is_file())
}

fn folder_names(folder: &Path) -> Vec<String> {
    children(folder, |kind| kind.is_dir())
}

/// Names that are no UTF-8 are none of ours.
fn children(folder: &Path, wanted: fn(&fs::FileType) -> bool) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let wanted = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| wanted(&kind)));
    wanted
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests;
