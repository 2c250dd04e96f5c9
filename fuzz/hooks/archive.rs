//! The entry point of the fuzzer for archives, compiled for it and for tests. Owns: the rules that
//! hold for any bytes, and their outcome in words. Must not: be part of the program.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::tar::{self, TarFile};
use super::{Archive, ArchiveFiles};

/// A tar. Checksums of headers are put right first, or no change of a header would get further.
/// Returns what was found in it.
///
/// # Panics
/// When a file is outside the archive or overlaps another, or its name leads elsewhere or is there
/// twice; when what was found, written anew, is read as something else.
pub fn tar(bytes: &[u8]) -> String {
    let mended = RefCell::new(bytes.to_vec());
    let read = |buffer: &mut [u8], offset: u64| {
        let mut bytes = mended.borrow_mut();
        let piece = piece_at(&mut bytes, buffer.len(), offset)?;
        tar::mend_checksum(piece);
        buffer.copy_from_slice(piece);
        Ok(())
    };
    let length = bytes.len() as u64;
    let files = match tar::list(&read, length) {
        Ok(files) => files,
        Err(why) => return format!("refused: {why}"),
    };
    let (mut end, mut names) = (0, HashSet::new());
    for file in &files {
        assert!(end <= file.offset, "{file:?} overlaps another");
        end = file.offset + file.size;
        assert!(end <= length, "{file:?} is outside");
        assert!(names.insert(file.name.as_str()), "{file:?} is there twice");
        let mut parts = file.name.split('/');
        let leads_elsewhere = parts.any(|part| matches!(part, "" | "." | ".."));
        assert!(!leads_elsewhere, "{file:?} leads elsewhere");
    }
    check_written(&files);
    let layout = Archive::of_bytes(&mended.borrow());
    let layout = layout.map(|found| format!("{} images", found.images.len()));
    let names: Vec<String> = files
        .iter()
        .map(|f| format!("{} {}", f.name, f.size))
        .collect();
    let layout = layout.unwrap_or_else(|why| why);
    format!("{}: {layout}", names.join(", "))
}

impl Archive {
    fn of_bytes(bytes: &[u8]) -> Result<Self, String> {
        let fault = |error: io::Error| error.to_string();
        let memory = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC);
        let file = File::from(memory.map_err(|error| fault(error.into()))?);
        file.write_all_at(bytes, 0).map_err(fault)?;
        Self::of_files(ArchiveFiles::in_tar(file, bytes.len() as u64)?)
    }
}

fn check_written(files: &[TarFile]) {
    let mut bytes = Vec::new();
    for file in files {
        bytes.extend(tar::headers(&file.name, 0));
    }
    bytes.extend(tar::END);
    let written = RefCell::new(bytes);
    let read = |buffer: &mut [u8], offset: u64| {
        let mut bytes = written.borrow_mut();
        buffer.copy_from_slice(piece_at(&mut bytes, buffer.len(), offset)?);
        Ok(())
    };
    let length = written.borrow().len() as u64;
    let again = tar::list(&read, length);
    let names = |files: &[TarFile]| files.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
    assert_eq!(again.map(|again| names(&again)), Ok(names(files)));
}

fn piece_at(bytes: &mut [u8], length: usize, offset: u64) -> io::Result<&mut [u8]> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let end = start.checked_add(length);
    let piece = end.and_then(|end| bytes.get_mut(start..end));
    piece.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_hold_for_what_is_written() {
        let mut bytes = tar::headers("index.json", 2);
        bytes.extend(b"{}");
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes.extend(tar::END);
        let outcome = "index.json 2: oci-layout is not in it: expected an OCI image layout, as \
                       `export` or `skopeo copy … oci:DIR:NAME` makes it";
        assert_eq!(tar(&bytes), outcome);
        // A wrong checksum is put right.
        bytes[148] = b'7';
        assert_eq!(tar(&bytes), outcome);
        assert_eq!(
            tar(b""),
            "refused: the archive is cut off after the beginning"
        );
    }
}
