//! Tar archives (POSIX.1-2024 `pax`, "ustar Interchange Format"; GNU tar's long names and sizes).
//! Owns: the headers, read and written. Must not: unpack anything, or read the content of an entry.
//!
//! An archive may come from anybody. What could lead an unpacking program out of its directory, or
//! could be read in two ways, is refused with the name of the entry. So no program finds in an
//! archive that passes something that we have not seen.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

/// Bytes of a header; content is filled up to a multiple of it.
const BLOCK: usize = 512;
const BLOCK_BYTES: u64 = BLOCK as u64;
/// Entries of an archive: 10,000 images of 20 blobs.
const ENTRIES_MAX: usize = 200_000;
/// Longest name: that of a blob has 141 characters at the most.
const NAME_BYTES_MAX: usize = 255;
/// Largest extended header: two records that matter have 300 bytes.
const EXTENSION_BYTES_MAX: u64 = 64 * 1024;
/// Largest size that a header holds in octal digits.
const OCTAL_SIZE_MAX: u64 = 0o77_777_777_777;

// Where in a header its fields are, in all formats.
const NAME: Range<usize> = 0..100;
const SIZE: Range<usize> = 124..136;
const SUM: Range<usize> = 148..156;
const KIND: Range<usize> = 156..157;
const MAGIC: Range<usize> = 257..263;
const PREFIX: Range<usize> = 345..500;

/// Reads exactly as many bytes as the buffer has, from an offset on.
pub(super) type ReadAt<'a> = &'a dyn Fn(&mut [u8], u64) -> io::Result<()>;

/// A regular file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TarFile {
    pub(super) name: String,
    /// Where its content begins.
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// Finds the files of an archive of `length` bytes. Reads its headers only.
///
/// # Errors
/// What is wrong with it, with the name of the entry.
pub(super) fn list(read: ReadAt<'_>, length: u64) -> Result<Vec<TarFile>, String> {
    let mut reader = Reader {
        read,
        length,
        at: 0,
        last: "the beginning".to_owned(),
    };
    let mut seen: HashMap<String, bool> = HashMap::new();
    let mut files = Vec::new();
    while let Some((file, is_folder)) = reader.next()? {
        let name = &file.name;
        if seen.len() >= ENTRIES_MAX {
            let why = format!("more than {ENTRIES_MAX} entries; split the archive");
            return Err(format!("{name:?}: {why}"));
        }
        // Folders are named again by archives that were added to.
        let before = seen.insert(name.clone(), is_folder);
        if before.is_some_and(|was_folder| !(was_folder && is_folder)) {
            return Err(format!("{name:?}: is there twice"));
        }
        if !is_folder {
            files.push(file);
        }
    }
    Ok(files)
}

struct Reader<'a> {
    read: ReadAt<'a>,
    length: u64,
    at: u64,
    /// The entry before, for faults.
    last: String,
}

impl Reader<'_> {
    /// The next file or folder (true); none at the end.
    fn next(&mut self) -> Result<Option<(TarFile, bool)>, String> {
        let mut extension = Extension::default();
        while let Some(header) = self.header()? {
            let kind = kind_of(&header);
            if !matches!(kind, b'x' | b'g' | b'L' | b'K') {
                return self.entry(&header, extension).map(Some);
            }
            let content = self.extended(&header)?;
            let read = extension.read(kind, &content);
            read.map_err(|why| self.fault(&format!("an extended header {why}")))?;
        }
        match extension.kinds.is_empty() {
            true => Ok(None),
            false => Err(self.fault("an extended header alone")),
        }
    }

    fn fault(&self, why: &str) -> String {
        format!("after {}: {why}", self.last)
    }

    /// None at the end mark.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, String> {
        let mut header = [0; BLOCK];
        if self.length - self.at < BLOCK_BYTES {
            return Err(format!("the archive is cut off after {}", self.last));
        }
        let read = (self.read)(&mut header, self.at);
        read.map_err(|error| self.fault(&error.to_string()))?;
        self.at += BLOCK_BYTES;
        match number(field(&header, SUM)) {
            _ if header == [0; BLOCK] => Ok(None),
            Some(sum) if sum == sum_of(&header) => Ok(Some(header)),
            _ => Err(self.fault("no tar header (wrong checksum)")),
        }
    }

    /// Skips the content of an entry; says where it is.
    fn skip(&mut self, name: &str, size: u64) -> Result<u64, String> {
        let (offset, left) = (self.at, self.length - self.at);
        let whole = size.checked_next_multiple_of(BLOCK_BYTES);
        let whole = whole.filter(|whole| *whole <= left).ok_or_else(|| {
            format!("{name:?}: has {size} bytes, and the archive ends after {left}: it is cut off")
        })?;
        self.at += whole;
        Ok(offset)
    }

    fn extended(&mut self, header: &[u8]) -> Result<Vec<u8>, String> {
        let size = number(field(header, SIZE)).filter(|size| *size <= EXTENSION_BYTES_MAX);
        let size = size.ok_or_else(|| {
            self.fault(&format!(
                "an extended header of at most {EXTENSION_BYTES_MAX} bytes is read"
            ))
        })?;
        let offset = self.skip("extended header", size)?;
        let mut content = vec![0; usize::try_from(size).unwrap_or_default()];
        let read = (self.read)(&mut content, offset);
        read.map_err(|error| self.fault(&error.to_string()))?;
        Ok(content)
    }

    fn entry(&mut self, header: &[u8], extension: Extension) -> Result<(TarFile, bool), String> {
        let path = extension.path.map_or_else(|| path_of(header), Ok);
        let path = path.map_err(|why| self.fault(why))?;
        let fault = |why: &str| format!("{path:?}: {why}");
        let kind = kind_of(header);
        let is_folder = kind == b'5' || (matches!(kind, 0 | b'0') && path.ends_with('/'));
        let name = clean_name(&path, is_folder).map_err(fault)?;
        if let (false, Some(what)) = (is_folder, describe_odd(kind)) {
            return Err(fault(&format!("is {what}, expected files only")));
        }
        let size = extension.size.or_else(|| number(field(header, SIZE)));
        let size = size.ok_or_else(|| fault("has an odd size"))?;
        if is_folder && size > 0 {
            return Err(fault(&format!("is a directory of {size} bytes")));
        }
        let offset = self.skip(&path, size)?;
        self.last = format!("{path:?}");
        Ok((TarFile { name, offset, size }, is_folder))
    }
}

/// What extended headers say of the entry that follows.
#[derive(Default)]
struct Extension {
    path: Option<String>,
    size: Option<u64>,
    /// Kinds of extended headers that came.
    kinds: Vec<u8>,
}

impl Extension {
    fn read(&mut self, kind: u8, content: &[u8]) -> Result<(), &'static str> {
        if self.kinds.contains(&kind) {
            return Err("of a kind that came before");
        }
        self.kinds.push(kind);
        match kind {
            b'L' => self.set_path(until_nul(content)),
            // The target of a link, which is refused.
            b'K' => Ok(()),
            _ => self.read_records(content, kind == b'g'),
        }
    }

    /// Records of `length key=value\n`, where the length counts itself.
    fn read_records(&mut self, mut content: &[u8], is_global: bool) -> Result<(), &'static str> {
        while !content.is_empty() {
            let (record, rest) = split_record(content).ok_or("that cannot be read")?;
            content = rest;
            match record {
                (b"path" | b"size", _) if is_global => {
                    return Err("for all entries names a path or size");
                }
                (b"path", value) => self.set_path(value)?,
                (b"size", value) => {
                    let size = std::str::from_utf8(value).ok();
                    let size = size.and_then(|size| size.parse().ok());
                    if self.size.replace(size.ok_or("with an odd size")?).is_some() {
                        return Err("that names a size twice");
                    }
                }
                (key, _) if key.starts_with(b"GNU.sparse") => {
                    return Err("of a sparse file, which is not supported");
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn set_path(&mut self, path: &[u8]) -> Result<(), &'static str> {
        let path = std::str::from_utf8(path).map_err(|_| "that is not UTF-8")?;
        match self.path.replace(path.to_owned()) {
            None => Ok(()),
            Some(_) => Err("that names a path twice"),
        }
    }
}

type Record<'a> = (&'a [u8], &'a [u8]);

fn split_record(content: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let blank = content.iter().position(|byte| *byte == b' ')?;
    let length = std::str::from_utf8(content.get(..blank)?).ok()?;
    let length: usize = length.parse().ok()?;
    let record = content.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let record = (record.get(..equals)?, record.get(equals + 1..)?);
    Some((record, content.get(length..)?))
}

/// The name without `./` before it or `/` behind it.
fn clean_name(path: &str, is_folder: bool) -> Result<String, &'static str> {
    if path.len() > NAME_BYTES_MAX {
        return Err("is a longer name than a layout has");
    }
    if path.starts_with('/') {
        return Err("is an absolute path");
    }
    if path.contains(|c: char| c.is_control() || c == '\\') {
        return Err("is a name with odd characters");
    }
    let name = path.strip_suffix('/').filter(|_| is_folder);
    let name = name.unwrap_or(path);
    if is_folder && name == "." {
        return Ok(name.to_owned());
    }
    let name = name.strip_prefix("./").unwrap_or(name);
    match name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        true => Err("is a path that leads elsewhere"),
        false => Ok(name.to_owned()),
    }
}

/// What is no file; none for what is one.
const fn describe_odd(kind: u8) -> Option<&'static str> {
    match kind {
        0 | b'0' | b'7' => None,
        b'1' => Some("a hard link"),
        b'2' => Some("a symbolic link"),
        b'3' | b'4' => Some("a device"),
        b'6' => Some("a named pipe"),
        b'S' => Some("a sparse file"),
        _ => Some("of an unknown type"),
    }
}

fn field(header: &[u8], range: Range<usize>) -> &[u8] {
    header.get(range).unwrap_or_default()
}

fn kind_of(header: &[u8]) -> u8 {
    field(header, KIND).first().copied().unwrap_or_default()
}

fn path_of(header: &[u8]) -> Result<String, &'static str> {
    let text = |range| {
        let text = std::str::from_utf8(until_nul(field(header, range)));
        text.map_err(|_| "a name that is not UTF-8")
    };
    let name = text(NAME)?;
    // GNU tar and older programs have something else in the place of the prefix.
    match field(header, MAGIC) == b"ustar\0" && !text(PREFIX)?.is_empty() {
        true => Ok(format!("{}/{name}", text(PREFIX)?)),
        false => Ok(name.to_owned()),
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number in octal digits, or, where the first bit is set, in binary (GNU tar, for large files).
fn number(field: &[u8]) -> Option<u64> {
    if let Some((0x80, rest)) = field.split_first() {
        return rest.iter().try_fold(0_u64, |number, byte| {
            number.checked_mul(256)?.checked_add(u64::from(*byte))
        });
    }
    let text = std::str::from_utf8(field).ok()?;
    match text.trim_matches([' ', '\0']) {
        "" => Some(0),
        digits if digits.starts_with('+') => None,
        digits => u64::from_str_radix(digits, 8).ok(),
    }
}

/// The sum of all bytes, where those of the sum itself count as blanks.
fn sum_of(header: &[u8]) -> u64 {
    let all: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = field(header, SUM).iter().map(|byte| u64::from(*byte)).sum();
    all - own + SUM.len() as u64 * u64::from(b' ')
}

fn write_sum(header: &mut [u8]) {
    let sum = format!("{:06o}\0 ", sum_of(header));
    if let Some(place) = header.get_mut(SUM) {
        place.copy_from_slice(sum.as_bytes());
    }
}

/// The headers of an entry that is written, in GNU's format: the same for the same name and size,
/// whoever writes it and when.
pub(in crate::cache) fn headers(name: &str, size: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if name.len() > NAME.len() {
        let content = format!("{name}\0");
        bytes = header("././@LongLink", content.len() as u64, 'L');
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
        false => header.extend([&[0x80, 0, 0, 0], &size.to_be_bytes()[..]].concat()),
    }
    header.extend_from_slice(format!("00000000000\0        {kind}").as_bytes());
    header.resize(MAGIC.start, 0);
    header.extend_from_slice(b"ustar  ");
    header.resize(BLOCK, 0);
    write_sum(&mut header);
    header
}

/// Bytes after content of this size.
pub(in crate::cache) const fn padding(size: u64) -> usize {
    ((BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES) as usize
}

/// What an archive ends with.
pub(in crate::cache) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Puts the checksum of a header right; for the fuzzer.
#[cfg(any(fuzzing, test))]
pub(super) fn mend_checksum(block: &mut [u8]) {
    if block.len() == BLOCK && block.iter().any(|byte| *byte != 0) {
        write_sum(block);
    }
}

#[cfg(test)]
mod tests;
