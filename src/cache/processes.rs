//! Several processes on one cache directory. Owns: `locks/`, which shows which of them live, and
//! which one does what only one may do. Must not: wait without a limit.
//!
//! Every lock is flock(2)'s: the kernel gives it back when a process ends, however it ends. NFS has
//! them since Linux 2.6.12.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::files;

/// The folder of the locks. They are empty files, and a copy of the cache needs none of them.
const FOLDER: &str = "locks";
/// The beginning of the name of a living process's file.
const PROCESS: &str = "process-";
/// Between two looks at a lock that another process holds.
const PAUSE: Duration = Duration::from_millis(2);
/// Attempts to enter: a file that was made and not yet locked may be taken for a dead process's.
const ENTER_ATTEMPTS: usize = 8;

/// This process among those on the directory.
#[derive(Debug)]
pub(super) struct Processes {
    root: PathBuf,
    path: PathBuf,
    /// Locked for as long as we live.
    alive: File,
}

/// A process that ends in order leaves no file. That of one that is killed is removed by
/// [`Processes::tidy`] of another.
impl Drop for Processes {
    fn drop(&mut self) {
        // Not while another store of this process has the directory open.
        if try_lock(&self.alive).is_ok_and(|is_alone| is_alone) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Takes the lock `name`, or waits for it for `patience`. None when another holds it for longer, or
/// the disk makes no such file.
pub(super) fn lock(root: &Path, name: &str, patience: Duration) -> Option<File> {
    let file = files::open_or_create(&root.join(FOLDER).join(name)).ok()?;
    let until = Instant::now() + patience;
    while !try_lock(&file).ok()? {
        if Instant::now() >= until {
            return None;
        }
        thread::sleep(PAUSE);
    }
    Some(file)
}

/// Locks a file, unless another process has. False then.
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// True when `path` names this very file.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Processes {
    /// Shows that this process lives. Must come before it makes any temporary file.
    pub(super) fn enter(root: &Path) -> io::Result<Self> {
        let folder = root.join(FOLDER);
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{PROCESS}{}", files::run()));
        for _ in 0..ENTER_ATTEMPTS {
            let alive = files::open_or_create(&path)?;
            alive.lock_shared()?;
            if is_at(&alive, &path)? {
                return Ok(Self {
                    root: root.to_owned(),
                    path,
                    alive,
                });
            }
        }
        Err(io::Error::other("its lock file is removed again and again"))
    }

    /// Removes the temporary files that ended processes left. Says whether another process lives.
    pub(super) fn tidy(&self) -> io::Result<bool> {
        // Files before processes: one that comes in between has made none of these.
        let (locks, partial) = (self.root.join(FOLDER), self.root.join("partial"));
        let temps = list(&partial)?;
        let (mut living, mut dead) = (HashSet::new(), Vec::new());
        for name in list(&locks)? {
            let Some(run) = name.strip_prefix(PROCESS) else {
                continue;
            };
            let (path, is_own) = (locks.join(&name), run == files::run());
            match File::options().read(true).write(true).open(&path) {
                Ok(file) if !is_own && try_lock(&file)? => dead.push((file, path)),
                Ok(_) => drop(living.insert(run.to_owned())),
                Err(_) => {}
            }
        }
        for name in temps {
            if files::run_of(&name).is_some_and(|run| !living.contains(run)) {
                let _ = fs::remove_file(partial.join(name));
            }
        }
        for (_file, path) in dead {
            let _ = fs::remove_file(path);
        }
        living.remove(files::run());
        Ok(!living.is_empty())
    }
}

fn list(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::scratch::Scratch;

    fn processes(scratch: &Scratch) -> Processes {
        fs::create_dir_all(scratch.path().join("partial/sha256")).unwrap();
        Processes::enter(scratch.path()).unwrap()
    }

    #[test]
    fn files_of_the_living_stay_and_those_of_the_dead_go() {
        let scratch = Scratch::new();
        let own = processes(&scratch);
        let temp = |run: &str| {
            let path = scratch.path().join(format!("partial/temp-{run}-0"));
            fs::write(&path, "x").unwrap();
            path
        };
        let process = |run: &str| {
            files::open_or_create(&scratch.path().join("locks/process-".to_owned() + run))
        };
        let (ours, theirs, dead) = (temp(files::run()), temp("1.2"), temp("3.4"));
        let older = temp("5.6");
        let other = process("1.2").unwrap();
        other.lock_shared().unwrap();
        drop(process("3.4").unwrap());
        assert!(own.tidy().unwrap());
        assert!(ours.exists() && theirs.exists() && !dead.exists() && !older.exists());
        drop(other);
        assert!(!own.tidy().unwrap());
        assert!(ours.exists() && !theirs.exists());
        assert_eq!(list(&scratch.path().join(FOLDER)).unwrap().len(), 1);
        assert!(scratch.path().join("partial/sha256").exists());
    }

    #[test]
    fn a_lock_is_waited_for_and_not_without_end() {
        let scratch = Scratch::new();
        let _own = processes(&scratch);
        let first = lock(scratch.path(), "evict", Duration::ZERO).unwrap();
        assert!(lock(scratch.path(), "evict", Duration::from_millis(5)).is_none());
        assert!(lock(scratch.path(), "index", Duration::ZERO).is_some());
        thread::scope(|scope| {
            scope.spawn(|| lock(scratch.path(), "evict", Duration::from_secs(60)).unwrap());
            drop(first);
        });
    }
}
