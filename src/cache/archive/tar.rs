//! Tar archives (POSIX.1-2024 `pax`, "ustar Interchange Format"; GNU tar's long names). Owns: the
//! headers, read and written. Must not: unpack anything, or read the content of an entry.
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
        if seen.len() >= ENTRIES_MAX {
            let why = format!(
                "{:?}: more than {ENTRIES_MAX} entries; split the archive",
                file.name
            );
            return Err(why);
        }
        let before = seen.insert(file.name.clone(), is_folder);
        // Folders are named again by archives that were added to.
        if before.is_some_and(|before| !(before && is_folder)) {
            return Err(format!("{:?}: is there twice", file.name));
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

/// What extended headers say of the entry that follows.
#[derive(Default)]
struct Extension {
    path: Option<String>,
    size: Option<u64>,
    /// Kinds of extended headers that came.
    kinds: Vec<u8>,
}

impl Reader<'_> {
    /// The next file or folder (true); none at the end.
    fn next(&mut self) -> Result<Option<(TarFile, bool)>, String> {
        let mut extension = Extension::default();
        loop {
            let Some(header) = self.header()? else {
                return match extension.kinds.is_empty() {
                    true => Ok(None),
                    false => Err(format!("after {}: an extended header alone", self.last)),
                };
            };
            let kind = header.kind();
            if !matches!(kind, b'x' | b'g' | b'L' | b'K') {
                return self.entry(&header, extension).map(Some);
            }
            let content = self.extension(&header)?;
            if extension.kinds.contains(&kind) {
                return Err(format!(
                    "after {}: two extended headers of a kind",
                    self.last
                ));
            }
            extension.kinds.push(kind);
            self.read_extension(kind, &content, &mut extension)?;
        }
    }

    /// None at the end mark.
    fn header(&mut self) -> Result<Option<Header>, String> {
        let mut block = [0; BLOCK];
        let end = self.at.saturating_add(BLOCK_BYTES);
        if end > self.length {
            return Err(format!("the archive is cut off after {}", self.last));
        }
        (self.read)(&mut block, self.at)
            .map_err(|error| format!("after {}: {error}", self.last))?;
        self.at = end;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header(block);
        match header.is_intact() {
            true => Ok(Some(header)),
            false => Err(format!(
                "after {}: no tar header (wrong checksum)",
                self.last
            )),
        }
    }

    /// Skips the content of the entry; says where it is.
    fn skip(&mut self, name: &str, size: u64) -> Result<u64, String> {
        let offset = self.at;
        let end = size.checked_next_multiple_of(BLOCK_BYTES);
        let end = end.and_then(|size| offset.checked_add(size));
        self.at = end.filter(|end| *end <= self.length).ok_or_else(|| {
            let left = self.length - offset;
            format!("{name:?}: has {size} bytes, and the archive ends after {left}: it is cut off")
        })?;
        Ok(offset)
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, String> {
        let what = format!("after {}: an extended header", self.last);
        let size = header
            .size()
            .ok_or_else(|| format!("{what} without a size"))?;
        if size > EXTENSION_BYTES_MAX {
            return Err(format!(
                "{what} of {size} bytes, at most {EXTENSION_BYTES_MAX}"
            ));
        }
        let offset = self.skip("extended header", size)?;
        let mut content = vec![0; usize::try_from(size).unwrap_or_default()];
        (self.read)(&mut content, offset).map_err(|error| format!("{what}: {error}"))?;
        Ok(content)
    }

    fn read_extension(
        &self,
        kind: u8,
        content: &[u8],
        extension: &mut Extension,
    ) -> Result<(), String> {
        let fault = |why: &str| format!("after {}: an extended header {why}", self.last);
        let text = |bytes: &[u8]| {
            let text = std::str::from_utf8(bytes).map(str::to_owned);
            text.map_err(|_| fault("that is not UTF-8"))
        };
        if kind == b'L' {
            let name = content.split(|byte| *byte == 0).next().unwrap_or_default();
            return set(&mut extension.path, text(name)?).map_err(fault);
        }
        if kind == b'K' {
            return Ok(());
        }
        for (key, value) in records(content).ok_or_else(|| fault("that cannot be read"))? {
            match key {
                b"path" | b"size" if kind == b'g' => {
                    return Err(fault("for all entries names a path or size"));
                }
                b"path" => set(&mut extension.path, text(value)?).map_err(fault)?,
                b"size" => {
                    let size = text(value)?
                        .parse()
                        .map_err(|_| fault("with an odd size"))?;
                    set(&mut extension.size, size).map_err(fault)?;
                }
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(fault("of a sparse file, which is not supported"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn entry(&mut self, header: &Header, extension: Extension) -> Result<(TarFile, bool), String> {
        let path = extension.path.map_or_else(|| header.name(), Ok);
        let path = path.map_err(|why| format!("after {}: {why}", self.last))?;
        let kind = header.kind();
        let is_folder = kind == b'5' || (matches!(kind, 0 | b'0') && path.ends_with('/'));
        let name = clean_name(&path, is_folder).map_err(|why| format!("{path:?}: {why}"))?;
        if !is_folder && !matches!(kind, 0 | b'0' | b'7') {
            return Err(format!(
                "{path:?}: is {}, expected files only",
                name_kind(kind)
            ));
        }
        let size = extension.size.or_else(|| header.size());
        let size = size.ok_or_else(|| format!("{path:?}: has an odd size"))?;
        if is_folder && size > 0 {
            return Err(format!("{path:?}: is a directory of {size} bytes"));
        }
        let offset = self.skip(&path, size)?;
        self.last = format!("{path:?}");
        Ok((TarFile { name, offset, size }, is_folder))
    }
}

fn set<T>(place: &mut Option<T>, value: T) -> Result<(), &'static str> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err("that names it twice"),
    }
}

/// The records of an extended header: `length key=value\n`, where the length counts itself.
fn records(mut content: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut found = Vec::new();
    while !content.is_empty() {
        let blank = content.iter().position(|byte| *byte == b' ')?;
        let digits = content.get(..blank).filter(|digits| digits.len() < 8)?;
        let length: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
        let record = content.get(blank + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        found.push((record.get(..equals)?, record.get(equals + 1..)?));
        content = content.get(length..)?;
    }
    Some(found)
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
    let mut name = path;
    if is_folder {
        name = name.strip_suffix('/').unwrap_or(name);
    }
    if is_folder && name == "." {
        return Ok(name.to_owned());
    }
    name = name.strip_prefix("./").unwrap_or(name);
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("is a path that leads elsewhere");
    }
    Ok(name.to_owned())
}

const fn name_kind(kind: u8) -> &'static str {
    match kind {
        b'1' => "a hard link",
        b'2' => "a symbolic link",
        b'3' | b'4' => "a device",
        b'6' => "a named pipe",
        b'S' => "a sparse file",
        _ => "of an unknown type",
    }
}

/// A header, in the places that all formats share.
struct Header([u8; BLOCK]);

impl Header {
    const NAME: Range<usize> = 0..100;
    const SIZE: Range<usize> = 124..136;
    const SUM: Range<usize> = 148..156;
    const KIND: usize = 156;
    const MAGIC: Range<usize> = 257..263;
    const PREFIX: Range<usize> = 345..500;

    fn field(&self, range: Range<usize>) -> &[u8] {
        self.0.get(range).unwrap_or_default()
    }

    fn kind(&self) -> u8 {
        self.0.get(Self::KIND).copied().unwrap_or_default()
    }

    fn name(&self) -> Result<String, &'static str> {
        let text = |range| {
            let field = self.field(range).split(|byte| *byte == 0).next();
            std::str::from_utf8(field.unwrap_or_default()).map_err(|_| "a name that is not UTF-8")
        };
        let name = text(Self::NAME)?;
        // GNU tar and older programs have something else in the place of the prefix.
        let prefix = match self.field(Self::MAGIC) {
            b"ustar\0" => text(Self::PREFIX)?,
            _ => "",
        };
        Ok(match prefix {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        })
    }

    fn size(&self) -> Option<u64> {
        number(self.field(Self::SIZE))
    }

    fn is_intact(&self) -> bool {
        number(self.field(Self::SUM)) == Some(self.sum())
    }

    /// The sum of all bytes, where those of the sum itself count as blanks.
    fn sum(&self) -> u64 {
        let bytes = self.0.iter().enumerate();
        let bytes = bytes.map(|(at, byte)| match Self::SUM.contains(&at) {
            true => b' ',
            false => *byte,
        });
        bytes.map(u64::from).sum()
    }

    fn put(&mut self, at: usize, text: &str) {
        for (place, byte) in self.0.iter_mut().skip(at).zip(text.bytes()) {
            *place = byte;
        }
    }
}

/// A number in octal digits, or, where the first bit is set, in binary (GNU tar, for large files).
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if *first == 0x80 {
        let mut number = 0_u64;
        for byte in rest {
            number = number.checked_mul(256)?.checked_add(u64::from(*byte))?;
        }
        return Some(number);
    }
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches(|c| c == ' ' || c == '\0');
    match digits {
        "" => Some(0),
        digits if digits.starts_with('+') => None,
        digits => u64::from_str_radix(digits, 8).ok(),
    }
}

/// The headers of an entry that is written: the same for the same name and size, whoever writes it
/// and when. A name that ends with `/` is a folder's.
pub(in crate::cache) fn headers(name: &str, size: u64) -> Vec<u8> {
    let mut records = String::new();
    if name.len() > Header::NAME.len() {
        records.push_str(&record("path", name));
    }
    if size > OCTAL_SIZE_MAX {
        records.push_str(&record("size", &size.to_string()));
    }
    let mut bytes = Vec::new();
    if !records.is_empty() {
        let length = records.len();
        bytes.extend_from_slice(&header("extended", length as u64, 'x').0);
        bytes.extend_from_slice(records.as_bytes());
        bytes.resize(bytes.len() + padding(length as u64), 0);
    }
    let kind = if name.ends_with('/') { '5' } else { '0' };
    bytes.extend_from_slice(&header(name, size, kind).0);
    bytes
}

fn header(name: &str, size: u64, kind: char) -> Header {
    let mut header = Header([0; BLOCK]);
    // What does not fit stands in the extended header.
    header.put(
        0,
        name.get(..Header::NAME.len().min(name.len()))
            .unwrap_or_default(),
    );
    let mode = if kind == '5' { "0000755" } else { "0000644" };
    header.put(100, mode);
    header.put(108, "0000000");
    header.put(116, "0000000");
    header.put(124, &format!("{:011o}", size.min(OCTAL_SIZE_MAX)));
    header.put(136, "00000000000");
    header.put(Header::KIND, &kind.to_string());
    header.put(257, "ustar");
    header.put(263, "00");
    let sum = header.sum();
    header.put(148, &format!("{sum:06o}\0 "));
    header
}

fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    // The length counts its own digits, of which one more may make one more.
    let length = |digits: usize| rest.len() + digits;
    let digits = (1..).find(|digits| length(*digits).to_string().len() == *digits);
    format!("{}{rest}", length(digits.unwrap_or_default()))
}

/// Bytes after content of this size.
pub(in crate::cache) const fn padding(size: u64) -> usize {
    ((BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES) as usize
}

/// Puts the checksum of a header right; for the fuzzer.
#[cfg(any(fuzzing, test))]
pub(super) fn mend_checksum(block: &mut [u8]) {
    if let Ok(bytes) = <[u8; BLOCK]>::try_from(&*block)
        && bytes.iter().any(|byte| *byte != 0)
    {
        let mut header = Header(bytes);
        let sum = header.sum();
        header.put(148, &format!("{sum:06o}\0 "));
        block.copy_from_slice(&header.0);
    }
}

/// What an archive ends with.
pub(in crate::cache) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

#[cfg(test)]
mod tests;
