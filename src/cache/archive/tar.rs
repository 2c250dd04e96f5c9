//! Tar archives (POSIX.1-2024 `pax`, "ustar Interchange Format"; GNU tar's long names and sizes).
//! Owns: the headers, read and written. Must not: unpack anything, or read the content of a file.
//!
//! An archive may come from anybody. What programs write that make layouts is read. All else, and
//! what could be read in two ways, is refused with the name of the entry. So no program finds in an
//! archive that passes something that we have not seen.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

/// Bytes of a header; content is filled up to a multiple of it.
const BLOCK: usize = 512;
const BLOCK_BYTES: u64 = BLOCK as u64;
/// Files of an archive: 10,000 images of 20 blobs.
const FILES_MAX: usize = 200_000;
/// Longest name: that of a blob has 141 characters at the most.
const NAME_BYTES_MAX: usize = 255;
/// Largest extended header: two records that matter have 300 bytes.
const EXTENSION_BYTES_MAX: u64 = 64 * 1024;
/// Largest size that a header holds in octal digits.
const OCTAL_SIZE_MAX: u64 = 0o77_777_777_777;
/// What a larger size begins with, in binary (GNU tar).
const BINARY: [u8; 4] = [0x80, 0, 0, 0];

// Where in a header its fields are, in all formats.
const NAME: Range<usize> = 0..100;
const SIZE: Range<usize> = 124..136;
const SUM: Range<usize> = 148..156;
const KIND: usize = 156;
const MAGIC: Range<usize> = 257..263;
const PREFIX: Range<usize> = 345..500;

type TarHeader = [u8; BLOCK];

/// A regular file of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TarFile {
    /// Where its content begins.
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// Finds the files of an archive by their names. Reads its headers only.
///
/// # Errors
/// What is wrong with it, with the name of the entry.
pub(super) fn list(file: &File) -> Result<HashMap<String, TarFile>, String> {
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    let mut reader = TarReader {
        file,
        length: metadata.len(),
        at: 0,
        last: "the beginning".to_owned(),
    };
    let (mut files, mut extension) = (HashMap::new(), Extension::default());
    while let Some(header) = reader.header()? {
        if matches!(header[KIND], b'L' | b'x') {
            let read = reader.extend(&header, &mut extension);
            read.map_err(|why| format!("after {}: an extended header {why}", reader.last))?;
            continue;
        }
        let entry = reader.entry(&header, std::mem::take(&mut extension))?;
        let Some((name, found)) = entry else {
            continue;
        };
        if files.len() >= FILES_MAX {
            let why = format!("more than {FILES_MAX} entries; split the archive");
            return Err(format!("{name:?}: {why}"));
        }
        if files.insert(name, found).is_some() {
            return Err(format!("{}: is there twice", reader.last));
        }
    }
    Ok(files)
}

struct TarReader<'a> {
    file: &'a File,
    length: u64,
    at: u64,
    /// The entry before, for faults.
    last: String,
}

impl TarReader<'_> {
    /// None at the end mark.
    fn header(&mut self) -> Result<Option<TarHeader>, String> {
        let mut header = [0; BLOCK];
        let read = self.file.read_exact_at(&mut header, self.at);
        read.map_err(|error| format!("the archive is cut off after {}: {error}", self.last))?;
        self.at += BLOCK_BYTES;
        if header == [0; BLOCK] {
            return Ok(None);
        }
        // A fuzzer would get no further.
        if cfg!(fuzzing) || number(field(&header, SUM)) == Some(sum_of(&header)) {
            return Ok(Some(header));
        }
        Err(format!(
            "after {}: no tar header (wrong checksum); if the archive is compressed, unpack it \
             first, as with `gunzip`",
            self.last
        ))
    }

    /// Reads an extended header.
    fn extend(&mut self, header: &TarHeader, extension: &mut Extension) -> Result<(), String> {
        let size = number(field(header, SIZE)).filter(|size| *size <= EXTENSION_BYTES_MAX);
        let size = size.ok_or_else(|| format!("has more than {EXTENSION_BYTES_MAX} bytes"))?;
        let mut content = vec![0; usize::try_from(size).unwrap_or_default()];
        let at = self.skip(size)?;
        let read = self.file.read_exact_at(&mut content, at);
        read.map_err(|error| error.to_string())?;
        extension.read(header[KIND], &content)
    }

    /// Skips the content of an entry; says where it is.
    fn skip(&mut self, size: u64) -> Result<u64, String> {
        let (at, left) = (self.at, self.length - self.at);
        let whole = size.checked_next_multiple_of(BLOCK_BYTES);
        let whole = whole.filter(|whole| *whole <= left).ok_or_else(|| {
            format!("has {size} bytes, and the archive ends after {left}: it is cut off")
        })?;
        self.at += whole;
        Ok(at)
    }

    /// A file; none for a folder.
    fn entry(
        &mut self,
        header: &TarHeader,
        extension: Extension,
    ) -> Result<Option<(String, TarFile)>, String> {
        let path = extension.path.map_or_else(|| path_of(header), Ok);
        let path = path.map_err(|why| format!("after {}: a name {why}", self.last))?;
        let fault = |why: String| format!("{path:?}: {why}");
        let size = extension.size.or_else(|| number(field(header, SIZE)));
        let size = size.ok_or_else(|| fault("has an odd size".to_owned()))?;
        let is_folder = match (header[KIND], size) {
            (b'5', 0) => true,
            (0 | b'0' | b'7', _) => path.ends_with('/'),
            (kind, _) => {
                let kind = char::from(kind);
                let why = format!("is no file but a link, a device or the like (type {kind:?})");
                return Err(fault(why));
            }
        };
        let name = clean_name(&path, is_folder);
        let name = name.ok_or_else(|| fault("leads out of the layout, or is odd".to_owned()))?;
        let offset = self.skip(size).map_err(fault)?;
        self.last = format!("{name:?}");
        Ok((!is_folder).then(|| (name.to_owned(), TarFile { offset, size })))
    }
}

/// What extended headers say of the entry that follows.
#[derive(Default)]
struct Extension {
    path: Option<String>,
    size: Option<u64>,
}

impl Extension {
    /// GNU's have a long name. Others have records of `length key=value\n`, where the length counts
    /// itself.
    fn read(&mut self, kind: u8, mut content: &[u8]) -> Result<(), String> {
        if kind == b'L' {
            return set(&mut self.path, text(until_nul(content))?);
        }
        while !content.is_empty() {
            let (key, value, rest) = split_record(content).ok_or("that cannot be read")?;
            match key {
                b"path" => set(&mut self.path, text(value)?)?,
                b"size" => set(
                    &mut self.size,
                    text(value)?.parse().map_err(|_| "of an odd size")?,
                )?,
                key if key.starts_with(b"GNU.sparse") => return Err("of a sparse file".to_owned()),
                _ => {}
            }
            content = rest;
        }
        Ok(())
    }
}

/// Splits a record off: its key, its value, and what comes after it.
fn split_record(content: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = content.iter().position(|byte| *byte == b' ')?;
    let length = std::str::from_utf8(content.get(..blank)?).ok()?;
    let (record, rest) = content.split_at_checked(length.parse().ok()?)?;
    let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, rest))
}

fn set<T>(place: &mut Option<T>, value: T) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err("that says the same twice".to_owned()),
    }
}

/// The name without `./` before it or `/` behind it. None for one that no layout has.
fn clean_name(path: &str, is_folder: bool) -> Option<&str> {
    let name = path.strip_prefix("./").unwrap_or(path);
    let name = name.strip_suffix('/').unwrap_or(name);
    let is_odd = |part: &str| matches!(part, "" | "." | "..");
    let is_root = is_folder && path == "./";
    let is_plain = name.len() <= NAME_BYTES_MAX
        && !name.contains(|c: char| c.is_control() || c == '\\')
        && !name.split('/').any(is_odd);
    (is_root || is_plain).then_some(name)
}

fn field(header: &TarHeader, range: Range<usize>) -> &[u8] {
    header.get(range).unwrap_or_default()
}

fn path_of(header: &TarHeader) -> Result<String, String> {
    let part = |range| text(until_nul(field(header, range)));
    let name = part(NAME)?;
    // GNU tar and older programs have something else in the place of the prefix.
    match field(header, MAGIC) == b"ustar\0" && header[PREFIX.start] != 0 {
        true => Ok(format!("{}/{name}", part(PREFIX)?)),
        false => Ok(name),
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "that is not UTF-8".to_owned())
}

/// A number in octal digits, or a size in binary.
fn number(field: &[u8]) -> Option<u64> {
    if let Some(bytes) = field.strip_prefix(&BINARY) {
        return bytes.try_into().ok().map(u64::from_be_bytes);
    }
    let digits = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    u64::from_str_radix(digits, 8).ok()
}

/// The sum of all bytes, where those of the sum itself count as blanks.
fn sum_of(header: &TarHeader) -> u64 {
    let all: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = field(header, SUM).iter().map(|byte| u64::from(*byte)).sum();
    all - own + SUM.len() as u64 * u64::from(b' ')
}

/// The headers of a file that is written, in GNU's format: the same for the same name and size,
/// whoever writes it and when.
pub(in crate::cache) fn headers(name: &str, size: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if name.len() > NAME.len() {
        let content = format!("{name}\0");
        bytes.extend(header("././@LongLink", content.len() as u64, 'L'));
        bytes.extend_from_slice(content.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.extend(header(name, size, '0'));
    bytes
}

fn header(name: &str, size: u64, kind: char) -> Vec<u8> {
    let mut header = name.as_bytes().to_vec();
    header.resize(NAME.len(), 0);
    header.extend_from_slice(b"0000644 0000000 0000000 ");
    match size <= OCTAL_SIZE_MAX {
        true => header.extend_from_slice(format!("{size:011o}\0").as_bytes()),
        false => header.extend([&BINARY[..], &size.to_be_bytes()].concat()),
    }
    header.extend_from_slice(format!("00000000000\0        {kind}").as_bytes());
    header.resize(MAGIC.start, 0);
    header.extend_from_slice(b"ustar  ");
    header.resize(BLOCK, 0);
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    header.splice(SUM, format!("{sum:06o}\0 ").into_bytes());
    header
}

/// Bytes after content of this size.
pub(in crate::cache) const fn padding(size: u64) -> usize {
    ((BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES) as usize
}

/// What an archive ends with.
pub(in crate::cache) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

#[cfg(test)]
mod tests;
