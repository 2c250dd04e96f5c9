//! The entry point of the fuzzer for archives, compiled for it and for tests. Owns: the rules that
//! hold for any bytes, and their outcome in words. Must not: be part of the program.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::Archive;
use super::tar::{self, TarFile};

/// A tar, of which no checksum is looked at. Returns what was found in it.
///
/// # Panics
/// When a file is outside the archive or overlaps another, or its name leads elsewhere; when what
/// was found, written anew, is read as something else.
pub fn tar(bytes: &[u8]) -> String {
    let found = file_of(bytes).and_then(|file| describe(&file, bytes.len() as u64));
    found.unwrap_or_else(|why| format!("refused: {why}"))
}

fn describe(file: &File, length: u64) -> Result<String, String> {
    let mut files: Vec<(String, TarFile)> = tar::list(file)?.into_iter().collect();
    files.sort_by_key(|(_, found)| found.offset);
    let (mut end, mut written, mut shown) = (0, Vec::new(), Vec::new());
    for (name, found) in &files {
        assert!(end <= found.offset, "{name:?} overlaps another");
        end = found.offset + found.size;
        assert!(end <= length, "{name:?} is outside");
        let mut parts = name.split('/');
        let leads_elsewhere = parts.any(|part| matches!(part, "" | "." | ".."));
        assert!(!leads_elsewhere, "{name:?} leads elsewhere");
        written.extend(tar::headers(name, 0));
        shown.push(format!("{name} {}", found.size));
    }
    written.extend(tar::END);
    let again = tar::list(&file_of(&written)?);
    let names = |files: HashMap<String, TarFile>| files.into_keys().collect::<BTreeSet<_>>();
    assert_eq!(again.map(names), Ok(names(files.into_iter().collect())));
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let layout = Archive::open(Path::new(&path));
    let layout = layout.map(|found| format!("{} images", found.images.len()));
    let layout = layout.unwrap_or_else(|why| why);
    Ok(format!("{}: {layout}", shown.join(", ")))
}

fn file_of(bytes: &[u8]) -> Result<File, String> {
    let memory = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC);
    let file = File::from(memory.map_err(|error| error.to_string())?);
    let written = file.write_all_at(bytes, 0);
    written.map(|()| file).map_err(|error| error.to_string())
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
        let outcome = tar(&bytes);
        let expected = "index.json 2: oci-layout is not in it: expected an OCI image layout";
        assert!(outcome.starts_with(expected), "{outcome}");
        let outcome = tar(b"");
        let expected = "refused: the archive is cut off after the beginning";
        assert!(outcome.starts_with(expected), "{outcome}");
    }
}
