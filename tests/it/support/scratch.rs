//! Directories for caches. Owns: their making and their end. Must not: know what is in them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// An empty directory, removed with all that is in it when dropped.
pub(crate) struct Scratch {
    path: PathBuf,
    mounted: bool,
}

impl Scratch {
    /// A directory on the disk.
    pub(crate) fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("aws-ecr-proxy-it-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a scratch directory");
        Self {
            path,
            mounted: false,
        }
    }

    /// A file system in memory, of `options` such as `size=64m`.
    pub(crate) fn tmpfs(options: &str) -> Self {
        let mut scratch = Self::new();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]);
        let done = mount.arg(&scratch.path).status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "this test mounts a small tmpfs as the disk that fills up: run it as root"
        );
        scratch.mounted = true;
        scratch
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same, as a setting's value.
    pub(crate) fn text(&self) -> &str {
        self.path.to_str().expect("a path that is text")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        }
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
