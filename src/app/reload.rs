//! Files that are read again while the proxy runs: on SIGHUP, and when they change. Owns: the
//! thread `reload`, and how a change is noticed. Must not: know what is in the files.
//!
//! A change shows in the result of `stat`, which follows links: a Kubernetes secret changes when a
//! link (`..data`) points elsewhere, other files when they are written or renamed. The files are
//! read once two polls in a row agree. So a certificate and a key that are written one after the
//! other are read together.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::notify;
use super::threads::{self, OnLost};
use crate::log;

/// Time between two polls: a renewed certificate is in use after two of them.
const POLL: Duration = Duration::from_secs(2);
/// Stack of the thread: certificates and lists are parsed there.
const RELOAD_STACK_BYTES: usize = 512 * 1024;

/// Reads files again and puts their content into use. When they are not fit it returns all faults
/// and changes nothing.
pub(super) type Reload = Box<dyn FnMut() -> Result<(), Vec<String>> + Send>;

/// The stamps of files that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileStamps(Vec<(PathBuf, Option<StatFields>)>);

/// The fields of `stat` that change when a file does.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StatFields {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    /// Also changes with owner and mode: a key that has become readable is read.
    changed: (i64, i64),
}

impl FileStamps {
    /// Takes the stamps as they are now. Take them before the files are read, so that no change is
    /// missed.
    pub(super) fn take(paths: Vec<PathBuf>) -> Self {
        let with_stamp = |path: PathBuf| {
            let stamp = StatFields::of(&path);
            (path, stamp)
        };
        Self(paths.into_iter().map(with_stamp).collect())
    }

    fn take_again(&self) -> Self {
        Self::take(self.0.iter().map(|(path, _)| path.clone()).collect())
    }
}

impl StatFields {
    /// None when the file is not there or cannot be seen.
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// Files that belong together, and what to do when they change.
pub(super) struct WatchedFiles {
    what: &'static str,
    /// The stamps when the files were last read, fit or not.
    loaded: FileStamps,
    /// The stamps at the last poll.
    seen: FileStamps,
    reload: Reload,
}

impl WatchedFiles {
    /// `what` names the files in the log; `loaded` was taken before they were read.
    pub(super) fn new(what: &'static str, loaded: FileStamps, reload: Reload) -> Self {
        Self {
            what,
            seen: loaded.clone(),
            loaded,
            reload,
        }
    }

    /// True when the files have changed since they were read, and are not changing now.
    fn is_due(&mut self, now: FileStamps) -> bool {
        let due = now == self.seen && now != self.loaded;
        self.seen = now;
        due
    }

    fn reload(&mut self, reason: &str) {
        self.loaded = self.loaded.take_again();
        match (self.reload)() {
            Ok(()) => log::info("reloaded", &[("what", &self.what), ("reason", &reason)]),
            Err(faults) => {
                for fault in faults {
                    log::error(
                        "reload refused; what was there before stays in use",
                        &[("what", &self.what), ("reason", &reason), ("error", &fault)],
                    );
                }
            }
        }
    }
}

/// The thread that reloads. It ends when this is dropped.
pub(super) struct Reloader {
    now: Option<Sender<()>>,
}

impl Reloader {
    /// Starts it, unless there is nothing to watch. `on_lost` is called with its name if it panics.
    ///
    /// # Errors
    /// When the thread is refused.
    pub(super) fn start(watched: Vec<WatchedFiles>, on_lost: &OnLost) -> Result<Self, String> {
        if watched.is_empty() {
            return Ok(Self { now: None });
        }
        let (now, asked) = channel();
        let work = move || run(watched, &asked);
        threads::start_vital("reload", RELOAD_STACK_BYTES, on_lost, work)?;
        Ok(Self { now: Some(now) })
    }

    /// Reads everything again, changed or not. Does not wait for it.
    pub(super) fn reload_now(&self) {
        notify::reloading();
        match &self.now {
            // A thread that ended has reported that itself.
            Some(now) => drop(now.send(())),
            None => {
                log::info("nothing to reload on SIGHUP", &[]);
                notify::ready();
            }
        }
    }
}

fn run(mut watched: Vec<WatchedFiles>, asked: &Receiver<()>) {
    loop {
        match asked.recv_timeout(POLL) {
            Ok(()) => {
                watched.iter_mut().for_each(|files| files.reload("SIGHUP"));
                notify::ready();
            }
            Err(RecvTimeoutError::Timeout) => {
                for files in &mut watched {
                    if files.is_due(files.seen.take_again()) {
                        files.reload("changed");
                    }
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("reload-{name}-{}", std::process::id());
            let below = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/unit");
            let path = below.join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn every_kind_of_change_is_seen() {
        let folder = Folder::new("kinds");
        let path = folder.path("file");
        let mut last = FileStamps::take(vec![path.clone()]);
        let mut changed = |how: &str| {
            let now = last.take_again();
            assert_ne!(now, last, "{how}");
            assert_eq!(now, now.take_again(), "{how}");
            last = now;
        };
        fs::write(&path, "one").unwrap();
        changed("made");
        fs::write(&path, "three").unwrap();
        changed("written");
        fs::write(folder.path("new"), "three").unwrap();
        fs::rename(folder.path("new"), &path).unwrap();
        changed("another put in its place");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        changed("mode");
        fs::remove_file(&path).unwrap();
        changed("removed");
    }

    /// How kubelet updates a volume: FILE → ..data/FILE, ..data → a directory of its own.
    #[test]
    fn a_kubernetes_secret_that_changes_is_seen() {
        let folder = Folder::new("secret");
        for version in ["..1", "..2"] {
            fs::create_dir(folder.path(version)).unwrap();
            fs::write(folder.path(version).join("tls.crt"), "same").unwrap();
        }
        symlink("..1", folder.path("..data")).unwrap();
        symlink("..data/tls.crt", folder.path("tls.crt")).unwrap();
        let before = FileStamps::take(vec![folder.path("tls.crt")]);
        symlink("..2", folder.path("..data_tmp")).unwrap();
        fs::rename(folder.path("..data_tmp"), folder.path("..data")).unwrap();
        assert_ne!(before.take_again(), before);
    }

    #[test]
    fn a_change_is_acted_upon_once_when_it_has_come_to_rest() {
        let look = |size| {
            let stamp = StatFields {
                file: (1, 1),
                size,
                modified: (1, 1),
                changed: (1, 1),
            };
            FileStamps(vec![(PathBuf::from("/nonexistent"), Some(stamp))])
        };
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let reload = move || match counted.fetch_add(1, Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(vec!["not fit".to_owned()]),
        };
        let mut files = WatchedFiles::new("test", look(1), Box::new(reload));
        assert!(!files.is_due(look(1)));
        assert!(!files.is_due(look(2)), "seen for the first time");
        assert!(!files.is_due(look(3)), "still changing");
        assert!(files.is_due(look(3)));
        files.reload("changed");
        files.loaded = look(3);
        assert!(!files.is_due(look(3)), "read already");
        assert!(!files.is_due(look(1)));
        assert!(files.is_due(look(1)));
        files.reload("changed");
        files.loaded = look(1);
        // A file that is not fit is read again only when it changes.
        assert!(!files.is_due(look(1)));
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn without_files_there_is_no_thread() {
        let on_lost: OnLost = Arc::new(|_: &str| {});
        let reloader = Reloader::start(Vec::new(), &on_lost).unwrap();
        assert!(reloader.now.is_none());
        reloader.reload_now();
    }

    #[test]
    fn it_reloads_when_asked_and_its_end_is_told() {
        let (told, lost) = channel();
        let on_lost: OnLost = Arc::new(move |name: &str| {
            told.send(name.to_owned()).unwrap();
        });
        let (done, reloads) = channel();
        let mut times = 0;
        let reload = move || {
            times += 1;
            done.send(times).unwrap();
            assert!(times < 3, "the third time it breaks");
            Err(vec!["not fit".to_owned()])
        };
        let files = WatchedFiles::new("test", FileStamps(Vec::new()), Box::new(reload));
        let reloader = Reloader::start(vec![files], &on_lost).unwrap();
        for time in 1..=3 {
            reloader.reload_now();
            assert_eq!(reloads.recv_timeout(Duration::from_secs(60)), Ok(time));
        }
        let lost = lost.recv_timeout(Duration::from_secs(60));
        assert_eq!(lost.as_deref(), Ok("reload"));
    }
}
