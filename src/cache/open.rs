//! Opening the cache directory. Owns: whose directory it is, the format marker and the lock on it,
//! and the folders of the layout. Must not: look at a blob.
//!
//! Processes share a directory: each holds the marker locked for sharing. Whoever has to be alone
//! locks it for itself: a version that changes the format, and each version that does not share.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::files;
use super::processes::Processes;
use crate::hash::ALGORITHMS;

/// The index of a layout that holds nothing.
const EMPTY_INDEX: &str = r#"{"schemaVersion":2,"manifests":[]}"#;
/// The format this version writes; a higher number in the marker is a newer cache.
pub const FORMAT: u64 = 1;
/// The file that says whose directory this is. It is the lock, too.
pub(super) const MARKER: &str = "aws-ecr-proxy-format";
/// Where the layout goes in a directory that holds something else.
pub(super) const SUBDIRECTORY: &str = "aws-ecr-proxy";
/// Written and removed again. Opening a cache does not take it for somebody else's file.
pub(super) const CHECK: &str = "temp-check";
/// What a new file system puts into its root.
const LOST_FOUND: &str = "lost+found";
/// Made and removed in every folder at start; one name, so that crashes leave no heap of them.
const PROBE: &str = "temp-probe";
/// A marker is one number; more than this is something else.
const MARKER_BYTES_MAX: u64 = 64;

/// Why there is no cache in a directory.
#[derive(Debug)]
pub struct OpenError {
    /// The directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: OpenFault,
}

/// What is wrong with a directory.
#[derive(Debug)]
pub enum OpenFault {
    /// A newer version made it, of this format.
    Newer(u64),
    /// Another process has it for itself.
    InUse,
    /// It is to be read only, and nothing is there.
    Empty,
    /// It cannot be read or written.
    Io(io::Error),
}

impl OpenError {
    /// True when the directory can perhaps be read, but not be written.
    pub fn is_of_writing(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        let OpenFault::Io(error) = &self.fault else {
            return false;
        };
        matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem)
    }

    pub(super) fn new(path: &Path, fault: OpenFault) -> Self {
        let path = path.to_owned();
        Self { path, fault }
    }

    pub(super) fn io(path: &Path, error: io::Error) -> Self {
        Self::new(path, OpenFault::Io(error))
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uid = rustix::process::getuid().as_raw();
        write!(f, "cache directory {} ", self.path.display())?;
        match &self.fault {
            OpenFault::Newer(found) => write!(
                f,
                "has format {found}, this version knows {FORMAT}; run the newer version, or set \
                 CACHE_DIR to another directory"
            ),
            OpenFault::InUse => f.write_str(
                "is in use by another process, of a version that does not share it; stop that \
                 one, or give each its own CACHE_DIR",
            ),
            OpenFault::Empty => f.write_str(
                "cannot be used: it holds no cache yet; fill it with `pull`, `import` or the \
                 proxy, or set CACHE_DIR to another one",
            ),
            OpenFault::Io(error) if error.kind() == io::ErrorKind::StorageFull => write!(
                f,
                "is on a full disk: {error}; free some space there, or set CACHE_DIR to another one"
            ),
            OpenFault::Io(error) => write!(
                f,
                "cannot be used by uid {uid}: {error}; make it a directory that uid {uid} may \
                 write, or set CACHE_DIR to another one"
            ),
        }
    }
}

impl std::error::Error for OpenError {}

/// Finds or makes the layout in `dir`; returns its root, the locked marker and our place among the
/// processes there.
pub(super) fn prepare(dir: &Path) -> Result<(PathBuf, File, Processes), OpenError> {
    let root = choose_root(dir)?;
    let fault = |error| OpenError::io(&root, error);
    fs::create_dir_all(&root).map_err(fault)?;
    let marker = claim(&root)?;
    let processes = Processes::enter(&root).map_err(fault)?;
    lay_out(&root).map_err(fault)?;
    Ok((root, marker, processes))
}

/// Finds the layout in `dir` without writing anything; returns its root and the marker, which is
/// not locked: another process may write there meanwhile.
pub(super) fn find(dir: &Path) -> Result<(PathBuf, File), OpenError> {
    for root in [dir.to_owned(), dir.join(SUBDIRECTORY)] {
        if format(&root)? {
            let marker = File::open(root.join(MARKER));
            let marker = marker.map_err(|error| OpenError::io(&root, error))?;
            return Ok((root, marker));
        }
    }
    Err(OpenError::new(dir, OpenFault::Empty))
}

/// Where the layout of `dir` is, or is going to be: there, or in its subdirectory `aws-ecr-proxy`
/// when `dir` holds something else.
pub(super) fn choose_root(dir: &Path) -> Result<PathBuf, OpenError> {
    let below = dir.join(SUBDIRECTORY);
    for root in [dir, &below] {
        if !is_foreign(root).map_err(|error| OpenError::io(root, error))? {
            return Ok(root.to_owned());
        }
    }
    let why = io::Error::new(io::ErrorKind::AlreadyExists, "it holds something else");
    Err(OpenError::io(&below, why))
}

/// True for a directory with something in it that is no cache of ours.
fn is_foreign(dir: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    let mut foreign = false;
    for entry in entries {
        let name = entry?.file_name();
        if name == MARKER {
            return Ok(false);
        }
        foreign |= name != LOST_FOUND && name != CHECK;
    }
    Ok(foreign)
}

/// Locks the marker and checks the format in it. The marker is the first file made in a new
/// directory, so that one half made is known for ours; until its number is written it is empty.
fn claim(root: &Path) -> Result<File, OpenError> {
    let fault = |error| OpenError::io(root, error);
    let mut marker = files::open_or_create(&root.join(MARKER)).map_err(fault)?;
    match marker.try_lock_shared() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::new(root, OpenFault::InUse)),
        Err(TryLockError::Error(error)) => return Err(fault(error)),
    }
    if !known_format(root, &marker)? {
        writeln!(marker, "{FORMAT}").map_err(fault)?;
        marker.sync_all().map_err(fault)?;
    }
    Ok(marker)
}

/// True when there is a cache of the format we know, without locking it; false for none.
///
/// # Errors
/// Another format, or the disk's own.
pub(super) fn format(root: &Path) -> Result<bool, OpenError> {
    match File::open(root.join(MARKER)) {
        Ok(marker) => known_format(root, &marker),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(OpenError::io(root, error)),
    }
}

/// True for a marker with our format in it, false for one that is empty.
fn known_format(root: &Path, marker: &File) -> Result<bool, OpenError> {
    let fault = |error| OpenError::io(root, error);
    let mut text = String::new();
    marker
        .take(MARKER_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(fault)?;
    let number = text.trim();
    match number.parse::<u64>() {
        Ok(FORMAT) => Ok(true),
        Ok(found) if found > FORMAT => Err(OpenError::new(root, OpenFault::Newer(found))),
        _ if number.is_empty() => Ok(false),
        _ => {
            let why = format!("{MARKER} holds {number:?}, expected a number from {FORMAT} up");
            Err(fault(io::Error::new(io::ErrorKind::InvalidData, why)))
        }
    }
}

/// Makes what is missing, and proves that files can be made.
fn lay_out(root: &Path) -> io::Result<()> {
    let mut folders = vec![root.join("repos"), root.join("partial")];
    for kind in ["blobs", "partial"] {
        folders.extend(ALGORITHMS.map(|algorithm| root.join(kind).join(algorithm)));
    }
    for folder in &folders {
        fs::create_dir_all(folder)?;
        // An empty file: a full disk is no reason to do without what it holds.
        let probe = folder.join(PROBE);
        File::create(&probe)?;
        match fs::remove_file(&probe) {
            // Another process that starts now has removed it.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let temps = root.join("partial");
    for (name, text) in [
        ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", EMPTY_INDEX),
    ] {
        let path = root.join(name);
        if !path.exists() {
            files::replace(&temps, &path, text.as_bytes())?;
        }
    }
    files::sync_directory(root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::scratch::Scratch;
    use crate::cache::store::Store;

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_new_directory_becomes_a_layout() {
        let scratch = Scratch::new();
        let dir = scratch.path().join("a/b");
        fs::create_dir_all(dir.join(LOST_FOUND)).unwrap();
        let store = Store::open(&dir).unwrap();
        assert_eq!(store.root(), dir);
        let made = [
            "aws-ecr-proxy-format",
            "blobs",
            "index.json",
            "locks",
            LOST_FOUND,
            "oci-layout",
        ];
        assert_eq!(
            names(&dir),
            [made.as_slice(), &["partial", "repos"]].concat()
        );
        for kind in ["blobs", "partial"] {
            assert_eq!(names(&dir.join(kind)), ALGORITHMS);
            assert!(names(&dir.join(kind).join("sha256")).is_empty());
        }
        let layout = fs::read(dir.join("oci-layout")).unwrap();
        let layout: serde_json::Value = serde_json::from_slice(&layout).unwrap();
        assert_eq!(layout["imageLayoutVersion"], "1.0.0");
        assert_eq!(fs::read_to_string(dir.join(MARKER)).unwrap(), "1\n");
        drop(store);
        assert_eq!(Store::open(&dir).unwrap().root(), dir);
    }

    #[test]
    fn a_foreign_directory_is_left_alone() {
        let scratch = Scratch::new();
        fs::write(scratch.path().join("nginx"), "x").unwrap();
        let below = scratch.path().join(SUBDIRECTORY);
        assert_eq!(Store::open(scratch.path()).unwrap().root(), below);
        assert_eq!(Store::open(scratch.path()).unwrap().root(), below);
        assert_eq!(names(scratch.path()), [SUBDIRECTORY, "nginx"]);

        let full = Scratch::new();
        fs::create_dir(full.path().join(SUBDIRECTORY)).unwrap();
        fs::write(full.path().join(SUBDIRECTORY).join("x"), "x").unwrap();
        let error = Store::open(full.path()).unwrap_err();
        assert!(error.to_string().contains("something else"), "{error}");
        assert_eq!(names(&full.path().join(SUBDIRECTORY)), ["x"]);
    }

    #[test]
    fn only_a_known_format_is_opened() {
        let scratch = Scratch::new();
        let marker = scratch.path().join(MARKER);
        fs::write(&marker, "2\n").unwrap();
        let error = Store::open(scratch.path()).unwrap_err();
        assert!(matches!(error.fault, OpenFault::Newer(2)));
        assert!(
            error.to_string().contains("run the newer version"),
            "{error}"
        );
        for text in ["x", "0", "-1", "1 2"] {
            fs::write(&marker, text).unwrap();
            let error = Store::open(scratch.path()).unwrap_err();
            assert!(matches!(error.fault, OpenFault::Io(_)), "{text}: {error}");
            assert_eq!(fs::read_to_string(&marker).unwrap(), text);
        }
        // A crash between making the marker and writing it.
        fs::write(&marker, "").unwrap();
        Store::open(scratch.path()).unwrap();
        assert_eq!(fs::read_to_string(&marker).unwrap(), "1\n");
    }

    #[test]
    fn processes_share_a_directory_unless_one_has_it_for_itself() {
        let scratch = Scratch::new();
        let first = Store::open(scratch.path()).unwrap();
        let second = Store::open(scratch.path()).unwrap();
        let marker = File::open(scratch.path().join(MARKER)).unwrap();
        let locked = marker.try_lock();
        assert!(matches!(locked, Err(TryLockError::WouldBlock)));
        drop((first, second));
        marker.try_lock().unwrap();
        let error = Store::open(scratch.path()).unwrap_err();
        assert!(matches!(error.fault, OpenFault::InUse), "{error}");
    }

    #[test]
    fn what_cannot_be_written_is_named_with_its_remedy() {
        let scratch = Scratch::new();
        let file = scratch.path().join("file");
        fs::write(&file, "x").unwrap();
        let uid = format!("uid {}", rustix::process::getuid().as_raw());
        // The kernel makes no directories in /proc, not even for root.
        for dir in [
            file.as_path(),
            Path::new("/proc/cache"),
            Path::new("/proc/sys"),
        ] {
            let error = Store::open(dir).unwrap_err();
            assert!(matches!(error.fault, OpenFault::Io(_)), "{error}");
            let text = error.to_string();
            for part in [dir.to_str().unwrap(), uid.as_str(), "set CACHE_DIR"] {
                assert!(text.contains(part), "{text}");
            }
        }
        let scratch = Scratch::new();
        Store::open(scratch.path()).unwrap();
        fs::remove_dir(scratch.path().join("blobs/sha512")).unwrap();
        fs::write(scratch.path().join("blobs/sha512"), "").unwrap();
        assert!(Store::open(scratch.path()).is_err());
    }
}
