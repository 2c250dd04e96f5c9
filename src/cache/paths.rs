//! Where the files below `repos/` are. Owns: turning parsed names into paths, and reading folders.
//! Must not: write.
//!
//! Every path is made of parsed words ([`Repository`], [`Tag`], [`Digest`]). A word that could
//! still lead somewhere else makes no path.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::files;
use crate::oci::{Digest, Reference, Registry, Repository, Tag};

/// Longest name of a file (`NAME_MAX` of every Linux file system in use).
const COMPONENT_BYTES_MAX: usize = 255;
/// Room for a file of text: usual ones fit, and are read at once.
const TEXT_BYTES: usize = 512;
/// The folder of tags; with `@` and a hash it is that of a partition.
const TAGS: &str = "_tags";
/// The folder of links.
pub(super) const LINKS: &str = "_links";
/// The folder of marks of manifests that upstream no longer has.
pub(super) const GONE: &str = "_gone";
/// The folder of pages of the catalog, below that of a registry.
pub(super) const CATALOG: &str = "_catalog";
/// The folder of pages of the tag list.
pub(super) const LISTS: &str = "_lists";
/// The folder of pages of lists of referrers.
pub(super) const REFERRERS: &str = "_referrers";

/// A repository of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope<'a> {
    /// The registry.
    pub registry: &'a Registry,
    /// The name of the repository there.
    pub repository: &'a Repository,
}

impl Scope<'_> {
    /// The same, with names of its own.
    pub fn to_owned(self) -> OwnedScope {
        OwnedScope {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
        }
    }

    /// The name of an image there: `registry/repository:tag`, or `…@digest`.
    pub fn name_of(self, reference: &Reference) -> String {
        match reference {
            Reference::Tag(tag) => format!("{self}:{}", tag.as_str()),
            Reference::Digest(digest) => format!("{self}@{digest}"),
        }
    }
}

impl fmt::Display for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}

/// The same, with names of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedScope {
    /// The registry.
    pub registry: Registry,
    /// The name of the repository there.
    pub repository: Repository,
}

impl OwnedScope {
    /// As everything takes it.
    pub const fn as_scope(&self) -> Scope<'_> {
        Scope {
            registry: &self.registry,
            repository: &self.repository,
        }
    }
}

/// The folder `repos/`.
#[derive(Debug)]
pub(super) struct Paths {
    pub(super) repos: PathBuf,
}

impl Paths {
    pub(super) fn registry(&self, registry: &Registry) -> Option<PathBuf> {
        let name = usable_name(registry)?;
        Some(below(&self.repos, &[name]))
    }

    pub(super) fn repository(&self, scope: Scope<'_>) -> Option<PathBuf> {
        self.in_repository(scope, &[])
    }

    /// `partition` is empty or a hash in hex.
    pub(super) fn tag(&self, scope: Scope<'_>, partition: &str, tag: &Tag) -> Option<PathBuf> {
        if partition.is_empty() {
            return self.in_repository(scope, &[TAGS, tag.as_str()]);
        }
        let folder = format!("{TAGS}@{partition}");
        is_partition(&folder).then_some(())?;
        self.in_repository(scope, &[&folder, tag.as_str()])
    }

    pub(super) fn link(&self, scope: Scope<'_>, digest: &Digest) -> Option<PathBuf> {
        // The two algorithms differ in length, so the hex digits alone name the digest.
        self.in_repository(scope, &[LINKS, digest.hex()])
    }

    fn in_repository(&self, scope: Scope<'_>, parts: &[&str]) -> Option<PathBuf> {
        let registry = usable_name(scope.registry)?;
        let name = scope.repository.as_str();
        let mut words = name.split('/');
        let short = words.all(|part| part.len() <= COMPONENT_BYTES_MAX);
        short.then(|| below(&self.repos, &[&[registry, name], parts].concat()))
    }

    pub(super) fn gone(&self, scope: Scope<'_>, digest: &Digest) -> Option<PathBuf> {
        Some(self.repository(scope)?.join(GONE).join(digest.hex()))
    }

    /// The tag folders of a repository, that of no partition first.
    pub(super) fn partitions(&self, scope: Scope<'_>) -> Vec<PathBuf> {
        let Some(folder) = self.repository(scope) else {
            return Vec::new();
        };
        let mut names = folder_names(&folder);
        names.retain(|name| is_partition(name));
        names.sort_unstable();
        names.iter().map(|name| folder.join(name)).collect()
    }
}

/// A registry's name that makes a folder's.
fn usable_name(registry: &Registry) -> Option<&str> {
    let name = registry.name();
    // `.` and `..` pass as host names, and names with a leading dot are the cache's own.
    let safe = name.len() <= COMPONENT_BYTES_MAX && !name.starts_with(['.', '_']);
    (safe && !name.contains('/')).then_some(name)
}

/// The path of these parts below a folder. Made in one piece: each `join` makes a copy.
pub(super) fn below(folder: &Path, parts: &[&str]) -> PathBuf {
    let lengths = parts.iter().map(|part| 1 + part.len());
    let mut path = PathBuf::with_capacity(folder.as_os_str().len() + lengths.sum::<usize>());
    path.push(folder);
    path.extend(parts);
    path
}

/// The fault of a name that makes no path.
pub(super) fn unusable_name() -> io::Error {
    let why = "the name is too long for a file, or is not the name of a registry";
    io::Error::new(io::ErrorKind::InvalidFilename, why)
}

/// True for `_tags`, and for `_tags@` with a hash in hex.
pub(super) fn is_partition(name: &str) -> bool {
    let hex = |hash: &str| hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match name.strip_prefix(TAGS) {
        Some("") => true,
        Some(rest) => rest
            .strip_prefix('@')
            .is_some_and(|hash| (1..=128).contains(&hash.len()) && hex(hash)),
        None => false,
    }
}

/// Reads at most `limit` bytes of a text file. One that cannot be read counts as absent.
pub(super) fn read_text(path: &Path, limit: u64) -> Option<String> {
    open_text(path, limit).map(|(text, _)| text)
}

/// The same, with the open file.
pub(super) fn open_text(path: &Path, limit: u64) -> Option<(String, File)> {
    let file = files::open(path).ok()?;
    let bytes = files::read(&file, TEXT_BYTES, limit).ok()?;
    Some((String::from_utf8(bytes).ok()?, file))
}

/// When a file was modified last; the epoch for one that is absent.
pub(super) fn modified(path: &Path) -> SystemTime {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The names of the files in a folder.
pub(super) fn file_names(folder: &Path) -> Vec<String> {
    children(folder, fs::FileType::is_file)
}

/// The names of the folders in a folder.
pub(super) fn folder_names(folder: &Path) -> Vec<String> {
    children(folder, fs::FileType::is_dir)
}

/// A name that is not UTF-8 was not made by the cache.
fn children(folder: &Path, keep: fn(&fs::FileType) -> bool) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let kept = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| keep(&kind)));
    kept.filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
