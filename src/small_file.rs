//! Small files that somebody else writes. Owns: reading them whole, within a bound, without waiting
//! for a writer. Must not: know what is in them.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Opens a regular file. Links are followed: secrets of Kubernetes are links.
///
/// # Errors
/// The system's own, and one for pipes, devices and directories.
pub fn open(path: &Path) -> io::Result<File> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    // A pipe may have taken its place by now: to open one would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Reads a regular file of at most `bytes_max`.
///
/// # Errors
/// As [`open`], and when the file is larger.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if length as u64 > bytes_max {
        let limit = match bytes_max >> 20 {
            mib if mib << 20 == bytes_max => format!("{mib} MiB"),
            _ => format!("{bytes_max} bytes"),
        };
        let why = format!("it is larger than {limit}");
        return Err(io::Error::new(ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

/// Reads a regular text file of at most `bytes_max`.
///
/// # Errors
/// As [`read`], and when the text is not UTF-8.
pub fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    String::from_utf8(read(path, bytes_max)?)
        .map_err(|_| io::Error::new(ErrorKind::InvalidData, "it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let name = format!("small-file-{test}-{}", std::process::id());
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let folder = root.join("target/tmp").join(name);
            std::fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn write(&self, bytes: &[u8]) -> PathBuf {
            let path = self.0.join("file");
            std::fs::write(&path, bytes).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn refusal(path: &Path, bytes_max: u64) -> String {
        read_text(path, bytes_max).unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_read_up_to_its_bound() {
        let folder = Folder::new("bound");
        let path = folder.write(b"12345");
        let link = folder.0.join("link");
        symlink(&path, &link).unwrap();
        assert_eq!(read_text(&link, 5).unwrap(), "12345");
        assert_eq!(refusal(&path, 4), "it is larger than 4 bytes");
        // A hole of a gigabyte is read as far as the bound, too.
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(1 << 30))
            .unwrap();
        assert_eq!(refusal(&path, 2 << 20), "it is larger than 2 MiB");
        assert_eq!(refusal(&folder.write(b"\xff\xfe"), 9), "it is not UTF-8");
    }

    #[test]
    fn nothing_else_is_opened() {
        let folder = Folder::new("kind");
        let pipe = folder.0.join("pipe");
        let made = Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for path in [&*pipe, &*folder.0, Path::new("/dev/zero")] {
            assert_eq!(refusal(path, 9), "it is not a regular file", "{path:?}");
        }
        let missing = read(&folder.0.join("missing"), 9).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }
}
