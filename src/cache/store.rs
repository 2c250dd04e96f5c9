//! Blobs and manifests by their digest. Owns: `blobs/`, the format marker with the lock on it, the
//! account of bytes, and the readers of each digest. Must not: know tags or repositories. Downloads
//! are in [`super::partials`].
//!
//! A file below `blobs/` is complete and verified: it comes there by fsync and rename, from
//! `partial/`, after its maker has checked length and digest. No other way leads there.
//!
//! Locks: the account and the readers, each a leaf, held for sums and map operations, not for I/O.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::account::Account;
use super::files;
pub use super::open::{FORMAT, OpenError, OpenFault};
use super::paths::below;
use super::processes::{self, Processes};
use super::verified::{HashVerdict, Stamp, Verified};
use crate::hash::{Hasher, matches};
use crate::locked::Locked as _;
use crate::oci::Digest;
use crate::{log, metrics};

/// The files of the cache.
#[derive(Debug)]
pub struct Store {
    pub(super) root: PathBuf,
    pub(super) account: Mutex<Account>,
    readers: Mutex<HashMap<Digest, usize>>,
    verified: Verified,
    /// None for a store that is only read.
    processes: Option<Processes>,
    /// Keeps the lock on the directory.
    _marker: File,
}

/// A complete blob, open for reading.
#[derive(Debug)]
pub struct Blob {
    /// The file, at its start.
    pub file: Arc<File>,
    /// Its length.
    pub size: u64,
    /// Changes when the file does.
    pub stamp: Stamp,
    /// True when its bytes are known to have the digest: this process has hashed them, and the file
    /// was not changed since.
    pub is_verified: bool,
    /// Keeps eviction from it.
    pub reading: Reading,
}

impl Blob {
    /// Hashes its bytes as `digest` has them, from the start; `on_piece` is told of the bytes of
    /// each piece. Call it once: it reads the file to its end.
    ///
    /// # Errors
    /// The disk's own: a sector that cannot be read.
    pub(super) fn hash(
        &self,
        digest: &Digest,
        on_piece: &mut dyn FnMut(u64),
    ) -> io::Result<String> {
        let mut hasher = Hasher::new(digest);
        files::each_piece(&*self.file, &mut |piece| {
            hasher.update(piece);
            on_piece(piece.len() as u64);
            Ok(())
        })?;
        Ok(hasher.finish())
    }
}

/// While it lives, eviction leaves the digest alone, be it complete or growing.
#[derive(Debug)]
pub struct Reading {
    store: Arc<Store>,
    digest: Digest,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut readers = self.store.readers.locked();
        if let Some(count) = readers.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                readers.remove(&self.digest);
            }
        }
    }
}

/// A file of `blobs/`, with the size that it takes on the disk, or of `partial/`, with its length.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) modified: SystemTime,
}

impl Store {
    /// Opens the cache in `dir`, or makes it: there, or in its subdirectory `aws-ecr-proxy` when
    /// `dir` holds something else. Does not look at the blobs.
    ///
    /// # Errors
    /// The cache is of a newer format, another process has it for itself, or it cannot be written.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let (root, marker, processes) = super::open::prepare(dir)?;
        Self::of(root, marker, Some(processes))
    }

    /// Opens the cache in `dir` for reading: nothing is written, now or later, and the directory is
    /// not locked.
    ///
    /// # Errors
    /// There is no cache, it is of a newer format, or cannot be read.
    pub fn open_read_only(dir: &Path) -> Result<Self, OpenError> {
        let (root, marker) = super::open::find(dir)?;
        Self::of(root, marker, None)
    }

    fn of(root: PathBuf, marker: File, processes: Option<Processes>) -> Result<Self, OpenError> {
        let read_only = processes.is_none();
        let account = Account {
            arrived: Some(HashMap::new()),
            ..Account::default()
        };
        let store = Self {
            root,
            account: Mutex::new(account),
            readers: Mutex::default(),
            verified: Verified::default(),
            processes,
            _marker: marker,
        };
        // Few, so they are counted at once; from here on the account follows every change.
        let mut partial = 0;
        let counted = store.each_partial(&mut |entry| partial += entry.size);
        // A copy of a cache may lack folders that hold nothing.
        counted
            .or_else(|error| if read_only { Ok(()) } else { Err(error) })
            .map_err(|error| OpenError::io(&store.root, error))?;
        store.account.locked().partial = partial;
        Ok(store)
    }

    /// True when nothing may be written.
    pub const fn is_read_only(&self) -> bool {
        self.processes.is_none()
    }

    /// Takes a lock that only one process may hold, or waits for it for `patience`. None for a
    /// store that is only read.
    pub(super) fn lock(&self, name: &str, patience: Duration) -> Option<File> {
        self.processes.as_ref()?;
        processes::lock(&self.root, name, patience)
    }

    /// Removes the temporary files that ended processes left. Says whether another process uses
    /// the directory; a store that is only read does not ask.
    pub(super) fn tidy(&self) -> io::Result<bool> {
        let tidied = self.processes.as_ref().map(Processes::tidy);
        tidied.unwrap_or(Ok(false))
    }

    /// The directory of the layout.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Opens a complete blob.
    ///
    /// # Errors
    /// The disk's own; an absent blob is none.
    pub fn blob(self: &Arc<Self>, digest: &Digest) -> io::Result<Option<Blob>> {
        let reading = self.reading(digest);
        let Some((file, stamp)) = self.open_blob(digest)? else {
            return Ok(None);
        };
        Ok(Some(Blob {
            file: Arc::new(file),
            size: stamp.size(),
            stamp,
            is_verified: self.verified.has(digest, stamp, Instant::now()),
            reading,
        }))
    }

    /// True when the blob is complete.
    pub fn has(&self, digest: &Digest) -> bool {
        self.size(digest).is_some()
    }

    /// The size of a complete blob.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        let metadata = fs::metadata(self.blob_path(digest)).ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// Opens a blob, such as a large manifest, whose digest is checked unless this process has
    /// done so before. None of it stays in memory. One that is not what its name says is
    /// [removed](Self::remove_damaged) and counts as absent.
    ///
    /// # Errors
    /// The disk's own, and a blob of more than `limit` bytes.
    pub fn open_verified(
        self: &Arc<Self>,
        digest: &Digest,
        limit: u64,
    ) -> io::Result<Option<Blob>> {
        let Some(blob) = self.blob(digest)? else {
            return Ok(None);
        };
        refuse_larger(digest, blob.size, limit)?;
        if blob.is_verified {
            return Ok(Some(blob));
        }
        if blob.hash(digest, &mut |_| {})? == digest.as_str() {
            self.set_verified(digest, blob.stamp);
            return Ok(Some(blob));
        }
        self.remove_damaged(digest, blob.stamp);
        Ok(None)
    }

    /// Reads a whole small blob, such as a manifest, and checks its digest again. One that is not
    /// what its name says is [removed](Self::remove_damaged) and counts as absent.
    ///
    /// # Errors
    /// The disk's own, and a blob of more than `limit` bytes.
    pub fn read(&self, digest: &Digest, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let Some((file, stamp)) = self.open_blob(digest)? else {
            return Ok(None);
        };
        refuse_larger(digest, stamp.size(), limit)?;
        self.read_opened(digest, &file, stamp)
    }

    /// The same; a blob of more than `limit` bytes is none.
    ///
    /// # Errors
    /// The disk's own.
    pub fn read_small(&self, digest: &Digest, limit: u64) -> io::Result<Option<Vec<u8>>> {
        match self.open_blob(digest)? {
            Some((file, stamp)) if stamp.size() <= limit => self.read_opened(digest, &file, stamp),
            _ => Ok(None),
        }
    }

    fn read_opened(
        &self,
        digest: &Digest,
        file: &File,
        stamp: Stamp,
    ) -> io::Result<Option<Vec<u8>>> {
        // Exactly as many as there are: a vector that grows by itself takes twice the memory.
        let mut bytes = Vec::with_capacity(usize::try_from(stamp.size()).unwrap_or_default());
        file.take(stamp.size()).read_to_end(&mut bytes)?;
        if matches(digest, &bytes) {
            return Ok(Some(bytes));
        }
        self.remove_damaged(digest, stamp);
        Ok(None)
    }

    /// Stores verified bytes. A blob that is there already stays.
    ///
    /// # Errors
    /// The disk's own; nothing is kept then.
    pub fn put(&self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        // Noted first: an eviction that runs then leaves a blob that is here already.
        if let Some(watched) = &mut self.account.locked().watched {
            watched.push(digest.clone());
        }
        if self.has(digest) {
            return Ok(());
        }
        let (path, mut file) = self.create_unnamed()?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        let stored = written.and_then(|()| self.move_in(digest, &path, &file));
        if stored.is_err() {
            let _ = fs::remove_file(&path);
        }
        stored
    }

    /// A new file for content whose digest comes later. The account leaves it out, so its writer
    /// must hold a reservation. The next start removes such a file of a process that has ended.
    ///
    /// # Errors
    /// The disk's own.
    pub fn create_unnamed(&self) -> io::Result<(PathBuf, File)> {
        self.refuse_if_read_only()?;
        let path = self.partial_root().join(files::temp_name());
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        Ok((path, file))
    }

    /// Makes such a file, which its caller has verified, a blob.
    ///
    /// # Errors
    /// The disk's own.
    pub fn publish_unnamed(&self, digest: &Digest, path: &Path, file: &File) -> io::Result<()> {
        file.sync_all()?;
        self.move_in(digest, path, file)?;
        self.set_verified(digest, Stamp::of(&file.metadata()?));
        Ok(())
    }

    pub(super) fn refuse_if_read_only(&self) -> io::Result<()> {
        match self.is_read_only() {
            true => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            false => Ok(()),
        }
    }

    /// Makes a file that is on the disk a blob, and lets that outlive a power cut.
    pub(super) fn move_in(&self, digest: &Digest, from: &Path, file: &File) -> io::Result<()> {
        let (to, size) = (self.blob_path(digest), files::on_disk(&file.metadata()?));
        let before = files::tree_on_disk(&to);
        self.expect_arrival(digest);
        if let Err(error) = fs::rename(from, &to) {
            self.forget_arrival(digest);
            return Err(error);
        }
        self.record_arrival(digest, size, before);
        files::sync_directory(&below(&self.root, &["blobs", digest.algorithm()]))
    }

    /// Removes a blob; readers that have it open keep it. An absent one is no error.
    ///
    /// # Errors
    /// The disk's own.
    pub fn remove(&self, digest: &Digest) -> io::Result<()> {
        let path = self.blob_path(digest);
        let size = match fs::metadata(&path) {
            Ok(metadata) => files::on_disk(&metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        match fs::remove_file(&path) {
            Ok(()) => {
                self.verified.remove(digest);
                self.record_departure(digest, size);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes a blob whose bytes are not what its name says: counted, and said in the log. It is
    /// deleted, not kept aside, so that the quota holds.
    pub fn remove_damaged(&self, digest: &Digest, stamp: Stamp) {
        let there = fs::metadata(self.blob_path(digest));
        if there.is_ok_and(|there| !Stamp::of(&there).is_same_file(stamp)) {
            // Somebody has fetched it again meanwhile.
            return;
        }
        metrics::CACHE_BLOBS_DAMAGED.inc();
        let result = self
            .refuse_if_read_only()
            .and_then(|()| self.remove(digest));
        let outcome = result.map_or_else(|error| error.to_string(), |()| "removed".to_owned());
        log::warn(
            "cached blob is damaged; it will be fetched again, check the disk",
            &[("digest", digest), ("outcome", &outcome)],
        );
    }

    /// Makes a blob look as if it had just come: another process leaves it, though nothing names it
    /// yet. One that is gone stays so.
    pub fn renew(&self, digest: &Digest) {
        let opened = File::options().append(true).open(self.blob_path(digest));
        let _ = opened.and_then(|file| file.set_modified(SystemTime::now()));
    }

    /// Bytes of all blobs and downloads. Until the first count has ended, those of earlier runs'
    /// blobs are missing.
    pub fn used_bytes(&self) -> u64 {
        let account = self.account.locked();
        account.blobs.saturating_add(account.partial)
    }

    /// How many blobs there are. Until the first count has ended, those of earlier runs are
    /// missing.
    pub fn blob_count(&self) -> u64 {
        self.account.locked().count
    }

    /// Adds what a download grew (or, negative, was cut by).
    pub fn add_used(&self, bytes: i64) {
        let mut account = self.account.locked();
        account.partial = account.partial.saturating_add_signed(bytes);
        account.partial_changes += 1;
    }

    /// Bytes that may still be written to the file system.
    ///
    /// # Errors
    /// The disk's own.
    pub fn free_bytes(&self) -> io::Result<u64> {
        super::probe::free_bytes(&self.root)
    }

    /// Keeps eviction from a digest.
    pub fn reading(self: &Arc<Self>, digest: &Digest) -> Reading {
        *self.readers.locked().entry(digest.clone()).or_insert(0) += 1;
        Reading {
            store: Arc::clone(self),
            digest: digest.clone(),
        }
    }

    /// True while a [`Reading`] of the digest lives.
    pub fn is_read(&self, digest: &Digest) -> bool {
        self.readers.locked().contains_key(digest)
    }

    /// Notes that the file with this stamp has the digest.
    pub(super) fn set_verified(&self, digest: &Digest, stamp: Stamp) {
        self.verified.insert(digest, stamp, Instant::now());
    }

    /// Judges a blob of which all was read, and had the digest `found`. One that is damaged is
    /// [removed](Self::remove_damaged); so is one with a sector that cannot be read.
    pub(super) fn judge(
        &self,
        digest: &Digest,
        file: &File,
        stamp: Stamp,
        found: io::Result<String>,
    ) -> HashVerdict {
        let now = file.metadata().map(|metadata| Stamp::of(&metadata));
        if now.ok() != Some(stamp) {
            return HashVerdict::Unknown;
        }
        if found.is_ok_and(|found| found == digest.as_str()) {
            self.set_verified(digest, stamp);
            return HashVerdict::Whole;
        }
        self.remove_damaged(digest, stamp);
        HashVerdict::Damaged
    }

    pub(super) fn open_blob(&self, digest: &Digest) -> io::Result<Option<(File, Stamp)>> {
        let file = match files::open(&self.blob_path(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        Ok(metadata.is_file().then(|| (file, Stamp::of(&metadata))))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        below(&self.root, &["blobs", digest.algorithm(), digest.hex()])
    }

    pub(super) fn partial_path(&self, digest: &Digest) -> PathBuf {
        below(&self.root, &["partial", digest.algorithm(), digest.hex()])
    }

    /// Where temporary files are made.
    pub(super) fn partial_root(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// Must come before the rename, so that a running count sees the blob here or not at all.
    fn expect_arrival(&self, digest: &Digest) {
        let mut account = self.account.locked();
        if let Some(arrived) = &mut account.arrived {
            arrived.insert(digest.clone(), 0);
        }
    }

    /// The blob did not come.
    fn forget_arrival(&self, digest: &Digest) {
        if let Some(arrived) = &mut self.account.locked().arrived {
            arrived.remove(digest);
        }
    }

    /// Must come after the rename, so that a client that is told of the blob can read it.
    fn record_arrival(&self, digest: &Digest, grown: u64, shrunk: u64) {
        let mut account = self.account.locked();
        account.blobs = account.blobs.saturating_add(grown).saturating_sub(shrunk);
        account.count += u64::from(shrunk == 0);
        // A count that ended meanwhile has left it out: then the line above was all.
        if let Some(arrived) = &mut account.arrived {
            arrived.insert(digest.clone(), grown);
        }
        if let Some(watched) = &mut account.watched {
            watched.push(digest.clone());
        }
    }

    fn record_departure(&self, digest: &Digest, size: u64) {
        let mut account = self.account.locked();
        account.blobs = account.blobs.saturating_sub(size);
        account.count = account.count.saturating_sub(1);
        if let Some(arrived) = &mut account.arrived {
            arrived.remove(digest);
        }
    }

    pub(super) fn partial_shrunk(&self, bytes: u64) {
        let mut account = self.account.locked();
        account.partial = account.partial.saturating_sub(bytes);
        account.partial_changes += 1;
    }
}

/// Fails when the blob has more than `limit` bytes.
fn refuse_larger(digest: &Digest, size: u64, limit: u64) -> io::Result<()> {
    if size <= limit {
        return Ok(());
    }
    let why = format!("blob {digest} has {size} bytes; at most {limit} are read at once");
    Err(io::Error::new(io::ErrorKind::FileTooLarge, why))
}

#[cfg(test)]
mod tests;
