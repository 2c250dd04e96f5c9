//! Writing small files so that a crash leaves the old one or the new one, and noting their use.
//! Owns: the names of temporary files. Must not: know what is in a file.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};

/// A use is noted again after this time: eviction asks for no finer order, and of thousands of
/// clients that pull one image at once, a hundred a second make the three calls of the system.
pub(super) const USE_INTERVAL: Duration = Duration::from_millis(10);
/// The beginning of every temporary file's name.
const PREFIX: &str = "temp-";
/// Bytes of a file that are read at a time.
const PIECE_BYTES: usize = 128 * 1024;

/// Replaces `path` with a file that holds `bytes`: a temporary file in `temps` (same file system),
/// fsync, rename, fsync of the directory. Makes missing directories.
pub(super) fn replace(temps: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_by(temps, path, |temp| write(temp, bytes))?;
    sync_directory(path.parent().unwrap_or(temps))
}

/// The same without any fsync, for what costs no more than a question upstream when it is lost. A
/// file that a power cut leaves empty must read as absent.
pub(super) fn replace_unsynced(temps: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_by(temps, path, |temp| fs::write(temp, bytes))
}

fn replace_by(
    temps: &Path,
    path: &Path,
    write: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let temp = temps.join(temp_name());
    let folder = path.parent().unwrap_or(temps);
    let replaced = write(&temp).and_then(|()| rename(&temp, path, folder));
    if replaced.is_err() {
        let _ = fs::remove_file(&temp);
    }
    replaced
}

/// The same without a temporary file where there is no file yet. A crash may then leave a
/// beginning of `bytes`, which must read as absent.
pub(super) fn put_unsynced(temps: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let Ok(mut file) = File::options().write(true).create_new(true).open(path) else {
        return replace_unsynced(temps, path, bytes);
    };
    let written = file.write_all(bytes);
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

/// Writes `bytes` over a file that is as long, without fsync. A reader, or a power cut, may find
/// some of the old bytes among the new ones.
pub(super) fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.write_all_at(bytes, 0)
}

/// Bytes that a file or directory takes on the disk: whole blocks (stat(2): `st_blocks` counts
/// 512).
pub(super) fn on_disk(metadata: &Metadata) -> u64 {
    metadata.blocks().saturating_mul(512)
}

/// Bytes that `path` takes on the disk, with all below it; 0 when it is absent.
pub(super) fn tree_on_disk(path: &Path) -> u64 {
    let (mut sum, mut open) = (0_u64, vec![path.to_owned()]);
    while let Some(path) = open.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        sum = sum.saturating_add(on_disk(&metadata));
        if metadata.is_dir() {
            let children = fs::read_dir(&path).into_iter().flatten().flatten();
            open.extend(children.map(|child| child.path()));
        }
    }
    sum
}

/// Renames into a directory that may be missing: eviction takes empty ones away at any moment.
fn rename(from: &Path, to: &Path, folder: &Path) -> io::Result<()> {
    const ATTEMPTS: usize = 4;
    let mut renamed = fs::rename(from, to);
    for _ in 0..ATTEMPTS {
        match &renamed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => break,
        }
        fs::create_dir_all(folder)?;
        renamed = fs::rename(from, to);
    }
    renamed
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Reads to the end, piece by piece. Says how many bytes that were.
pub(super) fn each_piece(
    mut from: impl Read,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let (mut buffer, mut total) = (vec![0; PIECE_BYTES], 0);
    loop {
        let count = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if count == 0 {
            return Ok(total);
        }
        take(buffer.get(..count).unwrap_or_default())?;
        total += count as u64;
    }
}

/// Makes a rename in `path` outlive a power cut.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Notes that a file was used, once in [`USE_INTERVAL`].
pub(super) fn touch(file: &File, now: SystemTime) {
    let modified = file.metadata().and_then(|metadata| metadata.modified());
    let age = modified.map_or(None, |modified| now.duration_since(modified).ok());
    if age.is_none_or(|age| age >= USE_INTERVAL) {
        // Where it cannot be written, the order of eviction stays as it was.
        let _ = file.set_modified(now);
    }
}

/// Opens a file for reading, in one call of the system: the standard library on musl makes two.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Opens a file for reading and writing; one that is not there is made.
pub(super) fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path)
}

/// Reads at most `limit` bytes of a file of about `usual` bytes: in one call when it has fewer.
pub(super) fn read(mut file: &File, usual: usize, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usual];
    let count = file.read(&mut bytes)?;
    // A file on a disk gives fewer bytes than it was asked for only at its end.
    let is_whole = count < bytes.len();
    bytes.truncate(count);
    if !is_whole {
        let left = limit.saturating_sub(count as u64);
        file.take(left).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
pub(super) fn set_used(path: &Path, now: SystemTime) {
    if let Ok(file) = File::options().write(true).open(path) {
        let _ = file.set_modified(now);
    }
}

/// A name no other temporary file has, of this process or an earlier one.
pub(super) fn temp_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{PREFIX}{}-{}", run(), COUNT.fetch_add(1, Relaxed))
}

/// The process that made a temporary file; none for another file.
pub(super) fn run_of(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)?.split('-').next()
}

/// This process: in a container each one has the same pid, so the time of its start goes along.
pub(super) fn run() -> &'static str {
    static RUN: OnceLock<String> = OnceLock::new();
    RUN.get_or_init(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanos = since.map_or(0, |since| since.as_nanos());
        format!("{nanos:x}.{}", std::process::id())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::scratch::Scratch;

    #[test]
    fn a_file_is_replaced_whole_and_no_temp_stays() {
        let scratch = Scratch::new();
        let path = scratch.path().join("a/b/file");
        replace(scratch.path(), &path, b"one").unwrap();
        replace(scratch.path(), &path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_small_file_is_put_where_it_is_to_be_and_replaced_later() {
        let scratch = Scratch::new();
        let path = scratch.path().join("a/file");
        // The folder is missing, then the file is there, then it is new.
        put_unsynced(scratch.path(), &path, b"one").unwrap();
        put_unsynced(scratch.path(), &path, b"two").unwrap();
        put_unsynced(scratch.path(), &scratch.path().join("a/new"), b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read(scratch.path().join("a/new")).unwrap(), b"three");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(scratch.path().join("a")).unwrap().count(), 2);
    }

    #[test]
    fn a_failed_write_leaves_no_temp() {
        let scratch = Scratch::new();
        fs::write(scratch.path().join("in-the-way"), "").unwrap();
        let path = scratch.path().join("in-the-way/file");
        assert!(replace(scratch.path(), &path, b"one").is_err());
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_temporary_file_names_its_process() {
        assert_ne!(temp_name(), temp_name());
        assert_eq!(run_of(&temp_name()), Some(run()));
        assert_eq!(run_of("temp-18c0ffee.1-0"), Some("18c0ffee.1"));
        assert_eq!(run_of("sha256"), None);
    }
}
