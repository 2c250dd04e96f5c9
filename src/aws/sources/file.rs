//! Files that somebody else writes. Owns: reading them whole, and within bounds. Must not: know
//! what is in them.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

/// Reads a text file of at most `bytes_max`; none when it is not there.
///
/// # Errors
/// The fault, without the name of the file.
pub(super) fn read(path: &Path, bytes_max: u64) -> Result<Option<String>, String> {
    let text = read_bytes(path, bytes_max)?.map(String::from_utf8);
    text.transpose().map_err(|_| "it is not UTF-8".to_owned())
}

/// Reads a file of at most `bytes_max` in any encoding; none when it is not there.
///
/// # Errors
/// The fault, without the name of the file.
pub(super) fn read_bytes(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, String> {
    let kind = match path.metadata() {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    // Opening a pipe would wait for its writer.
    if !kind.is_file() {
        return Err("it is not a regular file".into());
    }
    let file = match File::open(path) {
        Ok(file) => file,
        // Replaced just now, as Kubernetes does: the next time it is there.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut bytes = Vec::new();
    let mut limited = file.take(bytes_max + 1);
    limited
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
        return Err(format!("it is larger than {bytes_max} bytes"));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::super::super::fake::Folder;
    use super::*;

    #[test]
    fn files_are_read_up_to_their_bound() {
        let folder = Folder::new();
        let path = folder.write("a", "12345");
        assert_eq!(read(&path, 5), Ok(Some("12345".into())));
        let fault = read(&path, 4).unwrap_err();
        assert_eq!(fault, "it is larger than 4 bytes");
    }

    #[test]
    fn what_is_no_text_file_is_a_fault_and_what_is_not_there_is_none() {
        let folder = Folder::new();
        assert_eq!(read(&folder.path().join("missing"), 9), Ok(None));
        let fault = read(folder.path(), 9).unwrap_err();
        assert_eq!(fault, "it is not a regular file");
        std::fs::write(folder.path().join("b"), b"\xff\xfe").unwrap();
        assert_eq!(
            read(&folder.path().join("b"), 9).unwrap_err(),
            "it is not UTF-8"
        );
    }
}
