//! Downloads. Owns: the files below `partial/sha256` and `partial/sha512`, who writes to each, and
//! how one becomes a blob. Must not: download, or know what a file holds.
//!
//! Whoever has locked a file may write to it, and change what its name means: nobody else, in this
//! process or another one.

use std::fs::{self, File};
use std::io;

use super::files;
use super::processes;
use super::store::Store;
use super::verified::Stamp;
use crate::oci::Digest;

/// Another process may put a new file in the place of a download while it is opened.
const OPEN_ATTEMPTS: usize = 8;

/// A download that has begun or may go on.
#[derive(Debug)]
pub struct Partial {
    /// Open for reading and writing.
    pub file: File,
    /// Bytes it holds.
    pub length: u64,
    /// False while another process downloads the blob, and when one just has: then the file is to
    /// be read, and nothing else.
    pub is_ours: bool,
}

impl Store {
    /// Opens the download of a blob, which may hold bytes of an earlier attempt. Hold a
    /// [`Reading`] of the digest from before this call to after [`Self::publish`]: a download that
    /// nobody holds is the first thing evicted.
    ///
    /// The file is locked. Unlock it at the end: clients that still read it keep it open.
    ///
    /// # Errors
    /// The disk's own.
    pub fn partial(&self, digest: &Digest) -> io::Result<Partial> {
        self.refuse_if_read_only()?;
        let path = self.partial_path(digest);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        for _ in 0..OPEN_ATTEMPTS {
            let mut file = options.open(&path)?;
            let mut is_ours = processes::try_lock(&file)?;
            if is_ours && !processes::is_at(&file, &path)? {
                continue;
            }
            if is_ours && let Some((blob, _)) = self.open_blob(digest)? {
                // It came since its reader looked for it.
                self.discard_partial(digest);
                (file, is_ours) = (blob, false);
            }
            let length = file.metadata()?.len();
            return Ok(Partial {
                file,
                length,
                is_ours,
            });
        }
        let why = format!("the download of {digest} is replaced again and again");
        Err(io::Error::other(why))
    }

    /// Takes over the download that [`Self::partial`] found in another process's hands. None while
    /// that process has it; false when the file is a download no longer.
    ///
    /// # Errors
    /// The disk's own.
    pub fn take_over(&self, digest: &Digest, file: &File) -> io::Result<Option<bool>> {
        if !processes::try_lock(file)? {
            return Ok(None);
        }
        processes::is_at(file, &self.partial_path(digest)).map(Some)
    }

    /// Puts a new, empty file in the place of a download; readers of the old one keep theirs.
    ///
    /// # Errors
    /// The disk's own.
    pub fn fresh_partial(&self, digest: &Digest) -> io::Result<File> {
        let path = self.partial_path(digest);
        let temp = self.partial_root().join(files::temp_name());
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temp)?;
        let old = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        // Nobody else knows its name yet.
        let locked = processes::try_lock(&file);
        if let Err(error) = locked.and_then(|_| fs::rename(&temp, &path)) {
            let _ = fs::remove_file(&temp);
            return Err(error);
        }
        self.partial_shrunk(old);
        Ok(file)
    }

    /// Makes a download that its caller has verified a blob. `file` must be the very file that
    /// [`Self::partial`] or [`Self::fresh_partial`] gave out last.
    ///
    /// # Errors
    /// The disk's own, and a download that somebody replaced or removed meanwhile.
    pub fn publish(&self, digest: &Digest, file: &File) -> io::Result<()> {
        file.sync_all()?;
        let from = self.partial_path(digest);
        let ours = file.metadata()?;
        if !processes::is_at(file, &from)? {
            // Renaming it would publish bytes that nobody has verified.
            let why = format!("the download of {digest} was replaced while it was verified");
            return Err(io::Error::other(why));
        }
        self.move_in(digest, &from, files::on_disk(&ours))?;
        self.partial_shrunk(ours.len());
        self.set_verified(digest, Stamp::of(&file.metadata()?));
        files::sync_directory(&self.folder("blobs", digest))
    }

    /// Removes a download.
    pub fn discard_partial(&self, digest: &Digest) {
        let path = self.partial_path(digest);
        let size = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        if fs::remove_file(&path).is_ok() {
            self.partial_shrunk(size);
        }
    }

    /// Removes a download that no process goes on with.
    pub(super) fn discard_idle_partial(&self, digest: &Digest) -> io::Result<()> {
        let path = self.partial_path(digest);
        let file = File::options().read(true).write(true).open(&path)?;
        if processes::try_lock(&file)? && processes::is_at(&file, &path)? {
            self.discard_partial(digest);
        }
        Ok(())
    }
}
