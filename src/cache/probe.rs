//! A look at the cache directory from beside a running proxy. Owns: that look. Must not: open the
//! cache, take its lock, or leave anything behind.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::open::{self, CHECK, OpenError};

/// What is written: a full disk takes the name of a file, but no content.
const CHECK_BYTES: [u8; 4096] = [0; 4096];

/// How a cache directory is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where the layout is, or is going to be.
    pub root: PathBuf,
    /// False before a proxy has been started with it.
    pub is_there: bool,
    /// Bytes that may still be written to its file system.
    pub free_bytes: u64,
    /// Bytes that the cache has now.
    pub used_bytes: u64,
}

/// Looks at `dir`: can the cache in it be used, or made? Blocks for as long as the disk takes.
///
/// # Errors
/// The cache is of a newer format, or cannot be written.
pub fn probe(dir: &Path) -> Result<Found, OpenError> {
    let root = open::choose_root(dir)?;
    if !root.exists() {
        return missing(&root);
    }
    let is_there = open::format(&root)?;
    let partial = root.join("partial");
    let folder = if partial.is_dir() { &partial } else { &root };
    write(folder).map_err(|error| OpenError::io(&root, error))?;
    let free_bytes = free_bytes(&root).map_err(|error| OpenError::io(&root, error))?;
    Ok(Found {
        used_bytes: used_bytes(&root),
        root,
        is_there,
        free_bytes,
    })
}

/// Looks at the cache in `dir` without trying to write, as a proxy with `OFFLINE` uses it. Blocks
/// for as long as the disk takes.
///
/// # Errors
/// There is no cache, it is of a newer format, or cannot be read.
pub fn look(dir: &Path) -> Result<Found, OpenError> {
    let (root, _marker) = open::find(dir)?;
    Ok(Found {
        free_bytes: free_bytes(&root).map_err(|error| OpenError::io(&root, error))?,
        used_bytes: used_bytes(&root),
        is_there: true,
        root,
    })
}

/// A directory that the first start is to make. It is made, written and removed again: what the
/// rights of the folder above promise, a read-only file system or a quota may not keep.
fn missing(dir: &Path) -> Result<Found, OpenError> {
    let fault = |error: io::Error| OpenError::io(dir, error);
    let made: Vec<&Path> = dir
        .ancestors()
        .take_while(|above| !above.as_os_str().is_empty() && !above.exists())
        .collect();
    let tried = fs::create_dir_all(dir)
        .and_then(|()| write(dir))
        .and_then(|()| free_bytes(dir));
    for made in made {
        // A program that has put something there meanwhile keeps it.
        let _ = fs::remove_dir(made);
    }
    Ok(Found {
        root: dir.to_owned(),
        is_there: false,
        free_bytes: tried.map_err(fault)?,
        used_bytes: 0,
    })
}

/// Bytes of the blobs and downloads in a layout, as far as they can be counted.
fn used_bytes(root: &Path) -> u64 {
    let folders = ["blobs/sha256", "partial/sha256"].map(|folder| fs::read_dir(root.join(folder)));
    let files = folders.into_iter().flatten().flatten().flatten();
    let lengths = files.filter_map(|file| Some(file.metadata().ok()?.len()));
    lengths.sum()
}

fn write(folder: &Path) -> io::Result<()> {
    let path = folder.join(CHECK);
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&CHECK_BYTES)?;
        file.sync_all()
    });
    match (written, fs::remove_file(&path)) {
        (Err(error), _) => Err(error),
        // Another look at the same time has removed it.
        (Ok(()), Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
        (Ok(()), _) => Ok(()),
    }
}

/// Bytes that may still be written to the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(path)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::super::open::OpenFault;
    use super::*;
    use crate::cache::scratch::Scratch;
    use crate::cache::store::Store;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_cache_that_is_open_is_looked_at_and_left_as_it_is() {
        let scratch = Scratch::new();
        let _open = Store::open(scratch.path()).unwrap();
        let before = names(scratch.path());
        let found = probe(scratch.path()).unwrap();
        assert_eq!(
            (found.root.as_path(), found.is_there),
            (scratch.path(), true)
        );
        assert!(found.free_bytes > 0);
        assert_eq!(names(scratch.path()), before);
        assert_eq!(names(&scratch.path().join("partial")), ["sha256", "sha512"]);
    }

    #[test]
    fn an_empty_or_missing_directory_is_not_made_a_cache() {
        let scratch = Scratch::new();
        let found = probe(scratch.path()).unwrap();
        assert!(!found.is_there);
        assert_eq!(names(scratch.path()), [""; 0]);
        let below = scratch.path().join("a/b");
        let found = probe(&below).unwrap();
        assert_eq!((found.root, found.is_there), (below, false));
        assert_eq!(names(scratch.path()), [""; 0]);
    }

    #[test]
    fn a_foreign_directory_leads_to_the_subdirectory() {
        let scratch = Scratch::new();
        fs::write(scratch.path().join("nginx"), "x").unwrap();
        let found = probe(scratch.path()).unwrap();
        let sub = scratch.path().join(open::SUBDIRECTORY);
        assert_eq!((found.root, found.is_there), (sub.clone(), false));
        assert_eq!(names(scratch.path()), ["nginx"]);
        let open = Store::open(scratch.path()).unwrap();
        let found = probe(scratch.path()).unwrap();
        assert_eq!((found.root.as_path(), found.is_there), (open.root(), true));
        drop(open);
        fs::remove_dir_all(&sub).unwrap();
        fs::create_dir(&sub).unwrap();
        fs::write(sub.join("other"), "x").unwrap();
        let fault = probe(scratch.path()).unwrap_err().to_string();
        assert!(fault.contains("it holds something else"), "{fault}");
    }

    #[test]
    fn a_look_that_was_killed_does_not_make_the_directory_foreign() {
        let scratch = Scratch::new();
        fs::write(scratch.path().join(CHECK), "x").unwrap();
        let store = Store::open(scratch.path()).unwrap();
        assert_eq!(store.root(), scratch.path());
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        let scratch = Scratch::new();
        let file = scratch.path().join("file");
        fs::write(&file, "x").unwrap();
        for bad in [file.clone(), file.join("below")] {
            let fault = probe(&bad).unwrap_err().to_string();
            assert!(fault.contains("set CACHE_DIR to another one"), "{fault}");
        }
        fs::remove_file(&file).unwrap();
        let store = Store::open(scratch.path()).unwrap();
        drop(store);
        fs::write(scratch.path().join(open::MARKER), "99").unwrap();
        let fault = probe(scratch.path()).unwrap_err();
        assert!(matches!(fault.fault, OpenFault::Newer(99)));
    }

    #[test]
    fn a_file_system_that_cannot_be_written_is_told() {
        // Nobody can make files there, not even root.
        assert!(write(Path::new("/proc/self")).is_err());
    }
}
