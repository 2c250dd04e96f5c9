//! Opening the cache directory. Owns: whose directory it is, the format marker and the lock on it,
//! and the folders of the layout. Must not: look at a blob.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::files;
use super::store::ALGORITHMS;

/// The format this version writes; a higher number in the marker is a newer cache.
pub const FORMAT: u64 = 1;
/// The file that says whose directory this is. It is the lock, too.
const MARKER: &str = "aws-ecr-proxy-format";
/// Where the layout goes in a directory that holds something else.
const SUBDIRECTORY: &str = "aws-ecr-proxy";
/// What a new file system puts into its root.
const LOST_FOUND: &str = "lost+found";
/// Made and removed in every folder at start; one name, so that crashes leave no heap of them.
const PROBE: &str = "temp-probe";
/// A marker is one number; more than this is something else.
const MARKER_BYTES_MAX: u64 = 64;

/// Why there is no cache.
#[derive(Debug)]
pub enum OpenError {
    /// A newer version made it.
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest format known here.
        known: u64,
    },
    /// Another process has it open.
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// It cannot be read or written.
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl OpenError {
    pub(super) fn io(path: &Path, error: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            error,
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uid = rustix::process::getuid().as_raw();
        match self {
            Self::Newer { path, found, known } => write!(
                f,
                "cache directory {} has format {found}, this version knows {known}; run the newer \
                 version, or set CACHE_DIR to another directory",
                path.display()
            ),
            Self::InUse { path } => write!(
                f,
                "cache directory {} is in use by another process; stop it, or give each its own \
                 CACHE_DIR",
                path.display()
            ),
            Self::Io { path, error } => write!(
                f,
                "cache directory {} cannot be used by uid {uid}: {error}; make it a directory that \
                 uid {uid} may write, or set CACHE_DIR to another one",
                path.display()
            ),
        }
    }
}

impl std::error::Error for OpenError {}

/// Finds or makes the layout in `dir`; returns its root and the locked marker.
pub(super) fn prepare(dir: &Path) -> Result<(PathBuf, File), OpenError> {
    let fault = |error| OpenError::io(dir, error);
    fs::create_dir_all(dir).map_err(fault)?;
    let mut root = dir.to_owned();
    if is_foreign(&root).map_err(fault)? {
        root = dir.join(SUBDIRECTORY);
        fs::create_dir_all(&root).map_err(|error| OpenError::io(&root, error))?;
        if is_foreign(&root).map_err(|error| OpenError::io(&root, error))? {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "it holds something else");
            return Err(OpenError::io(&root, error));
        }
    }
    let marker = claim(&root)?;
    lay_out(&root).map_err(|error| OpenError::io(&root, error))?;
    Ok((root, marker))
}

/// True for a directory with something in it that is no cache of ours.
fn is_foreign(dir: &Path) -> io::Result<bool> {
    let mut foreign = false;
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if name == MARKER {
            return Ok(false);
        }
        foreign |= name != LOST_FOUND;
    }
    Ok(foreign)
}

/// Locks the marker and checks the format in it. The marker is the first file made in a new
/// directory, so that one half made is known for ours; until its number is written it is empty.
fn claim(root: &Path) -> Result<File, OpenError> {
    let fault = |error| OpenError::io(root, error);
    let mut marker = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(root.join(MARKER))
        .map_err(fault)?;
    match marker.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(OpenError::InUse {
                path: root.to_owned(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(fault(error)),
    }
    let mut text = String::new();
    (&marker)
        .take(MARKER_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(fault)?;
    match text.trim() {
        "" => {
            writeln!(marker, "{FORMAT}").map_err(fault)?;
            marker.sync_all().map_err(fault)?;
        }
        number => match number.parse::<u64>() {
            Ok(FORMAT) => {}
            Ok(found) if found > FORMAT => {
                return Err(OpenError::Newer {
                    path: root.to_owned(),
                    found,
                    known: FORMAT,
                });
            }
            _ => {
                let why = format!("{MARKER} holds {number:?}, expected a number from {FORMAT} up");
                return Err(fault(io::Error::new(io::ErrorKind::InvalidData, why)));
            }
        },
    }
    Ok(marker)
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
        fs::remove_file(&probe)?;
    }
    let temps = root.join("partial");
    for (name, text) in [
        ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", super::layout::EMPTY_INDEX),
    ] {
        let path = root.join(name);
        if !path.exists() {
            files::replace(&temps, &path, text.as_bytes())?;
        }
    }
    files::sync_directory(root)
}
