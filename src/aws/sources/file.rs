//! Files with credentials and tokens. Owns: that one may be missing. Must not: know what is in
//! them.

use std::io::{self, ErrorKind};
use std::path::Path;

use crate::small_file;

/// Reads a text file of at most `bytes_max`; none when it is not there.
///
/// # Errors
/// The fault, without the name of the file.
pub(super) fn read(path: &Path, bytes_max: u64) -> Result<Option<String>, String> {
    unless_absent(small_file::read_text(path, bytes_max))
}

/// Reads a file of at most `bytes_max` in any encoding; none when it is not there.
///
/// # Errors
/// The fault, without the name of the file.
pub(super) fn read_bytes(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, String> {
    unless_absent(small_file::read(path, bytes_max))
}

fn unless_absent<T>(read: io::Result<T>) -> Result<Option<T>, String> {
    match read {
        Ok(content) => Ok(Some(content)),
        // Perhaps replaced just now, as Kubernetes does: the next time it is there.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fake::Folder;
    use super::*;

    #[test]
    fn a_missing_file_is_no_fault_and_a_bad_one_is() {
        let folder = Folder::new();
        assert_eq!(read(&folder.path().join("missing"), 9), Ok(None));
        let path = folder.write("a", "12345");
        assert_eq!(read(&path, 5), Ok(Some("12345".into())));
        let fault = read_bytes(&path, 4).unwrap_err();
        assert_eq!(fault, "it is larger than 4 bytes");
    }
}
