//! Downloads. Owns: the files below `partial/sha256` and `partial/sha512`, the right to write to
//! each, and how one becomes a blob. Must not: download, or know what a file holds.
//!
//! Only the holder of a file's lock may write to it, and change what its name means. That holds
//! within this process, too.
//!
//! A power cut leaves a file of which any bytes that were not synced may be lost. So the file has a
//! mark, an extended attribute: which start of the machine it was written in, and how many bytes
//! were synced. After another start it is cut to these. Where files can have no mark, the hash
//! of the whole tells in the end.

use std::fs::{self, File};
use std::io;
use std::sync::OnceLock;

use super::files;
use super::processes;
use super::store::Store;
use super::verified::Stamp;
use crate::hash;
use crate::oci::Digest;

/// Another process may put a new file in the place of a download while it is opened.
const OPEN_ATTEMPTS: usize = 8;

/// The attribute: eight bytes that tell the start of the machine, and the length as eight bytes. An
/// inode of ext4 has room for that.
const MARK: &str = "user.ecr-synced";
/// A new one at each start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

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
        for _ in 0..OPEN_ATTEMPTS {
            let mut file = files::open_or_create(&path)?;
            let mut is_ours = processes::try_lock(&file)?;
            if is_ours && !processes::is_at(&file, &path)? {
                continue;
            }
            if is_ours && let Some((blob, _)) = self.open_blob(digest)? {
                // It came since its reader looked for it.
                self.discard_partial(digest);
                (file, is_ours) = (blob, false);
            }
            let mut length = file.metadata()?.len();
            if is_ours {
                length = self.cut_to_synced(&file, length)?;
            }
            return Ok(Partial {
                file,
                length,
                is_ours,
            });
        }
        let why = format!("the download of {digest} is replaced again and again");
        Err(io::Error::other(why))
    }

    /// Cuts a file that was written before this start of the machine to what was synced, and marks
    /// it as one of this start. Says how long it is.
    fn cut_to_synced(&self, file: &File, length: u64) -> io::Result<u64> {
        let mark = read_mark(file);
        if length > 0 && mark.is_none_or(|(boot, _)| boot == this_boot()) {
            return Ok(length);
        }
        let kept = mark.map_or(0, |(_, synced)| synced).min(length);
        if kept < length {
            file.set_len(kept)?;
            self.partial_shrunk(length - kept);
        }
        set_mark(file, kept);
        Ok(kept)
    }

    /// Makes the first `length` bytes of a download outlive a power cut.
    ///
    /// # Errors
    /// The disk's own.
    pub fn sync_partial(&self, file: &File, length: u64) -> io::Result<()> {
        file.sync_data()?;
        set_mark(file, length);
        Ok(())
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
        let (temp, file) = self.create_unnamed()?;
        let old = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        // Nobody else knows its name yet.
        let locked = processes::try_lock(&file);
        if let Err(error) = locked.and_then(|_| fs::rename(&temp, &path)) {
            let _ = fs::remove_file(&temp);
            return Err(error);
        }
        self.partial_shrunk(old);
        set_mark(&file, 0);
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
        if !processes::is_at(file, &from)? {
            // Renaming it would publish bytes that nobody has verified.
            let why = format!("the download of {digest} was replaced while it was verified");
            return Err(io::Error::other(why));
        }
        // A blob needs none, and it may take a block. A download without one counts as synced.
        let _ = rustix::fs::fremovexattr(file, MARK);
        self.move_in(digest, &from, file)?;
        let ours = file.metadata()?;
        self.partial_shrunk(ours.len());
        self.set_verified(digest, Stamp::of(&ours));
        Ok(())
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

/// The start of the machine and the synced length in a file's mark.
fn read_mark(file: &File) -> Option<([u8; 8], u64)> {
    let mut mark = [0; 16];
    let length = rustix::fs::fgetxattr(file, MARK, &mut mark[..]).ok()?;
    let (boot, synced) = mark.split_first_chunk::<8>()?;
    (length == mark.len()).then_some((*boot, u64::from_le_bytes(synced.try_into().ok()?)))
}

/// Sets the mark of a file. Where that fails, the file has none.
fn set_mark(file: &File, synced: u64) {
    let mark = [this_boot(), synced.to_le_bytes()].concat();
    let flags = rustix::fs::XattrFlags::empty();
    let _ = rustix::fs::fsetxattr(file, MARK, &mark, flags);
}

fn this_boot() -> [u8; 8] {
    static BOOT: OnceLock<[u8; 8]> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let id = fs::read(BOOT_ID).unwrap_or_default();
        let hash = hash::sha256(&id);
        hash.first_chunk().copied().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::cache::scratch::{Cache, digest_of};

    #[test]
    fn after_a_power_cut_only_what_was_synced_counts() {
        let cache = Cache::new();
        let digest = digest_of(b"hello world");
        let (store, long_ago) = (&cache.store, [7_u8; 8]);
        let open = || store.partial(&digest).unwrap();
        let mut partial = open();
        assert_eq!(read_mark(&partial.file), Some((this_boot(), 0)));
        partial.file.write_all(b"hello ").unwrap();
        store.add_used(6);
        store.sync_partial(&partial.file, 6).unwrap();
        partial.file.write_all(b"wor").unwrap();
        store.add_used(3);
        drop(partial);
        // Killed: the kernel has all of it.
        let partial = open();
        assert_eq!((partial.length, store.used_bytes()), (9, 9));
        // Another start of the machine.
        let mark = [long_ago, 6_u64.to_le_bytes()].concat();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(&partial.file, MARK, &mark, flags).unwrap();
        drop(partial);
        let partial = open();
        assert_eq!((partial.length, store.used_bytes()), (6, 6));
        assert_eq!(read_mark(&partial.file), Some((this_boot(), 6)));
        drop(partial);
        // One without a mark, as an older version or another file system leaves it, is kept.
        let path = store.partial_path(&digest);
        fs::write(&path, "hello w").unwrap();
        rustix::fs::removexattr(&path, MARK).unwrap();
        let mut partial = open();
        assert_eq!(partial.length, 7);
        partial.file = File::options().append(true).open(&path).unwrap();
        partial.file.write_all(b"orld").unwrap();
        set_mark(&partial.file, 3);
        store.publish(&digest, &partial.file).unwrap();
        let (blob, _) = store.open_blob(&digest).unwrap().unwrap();
        assert_eq!(read_mark(&blob), None);
    }

    #[test]
    fn bug_a_download_lost_its_mark_before_its_bytes_were_synced() {
        let cache = Cache::new();
        let digest = digest_of(b"hello");
        let partial = cache.store.partial(&digest).unwrap();
        cache.store.fresh_partial(&digest).unwrap();
        // What fails between the two leaves the mark.
        assert!(cache.store.publish(&digest, &partial.file).is_err());
        assert_eq!(read_mark(&partial.file), Some((this_boot(), 0)));
    }
}
