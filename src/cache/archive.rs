//! An OCI image layout that comes from elsewhere: a directory, or a tar of one (image-spec
//! `image-layout.md`). Owns: finding what is in it. Must not: trust any of it, or write.
//!
//! Nothing is unpacked: a blob is read from where it is in the archive, so that neither memory nor
//! disk is needed for it. Names are looked up, never followed.

#[cfg(any(fuzzing, test))]
#[path = "../../fuzz/hooks/archive.rs"]
pub mod fuzz;
mod tar;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use self::tar::TarFile;
pub(super) use self::tar::{END, headers, padding};
use super::links::is_media_type;
use crate::hash::matches;
use crate::oci::Digest;
use crate::platforms::Platforms;

/// Largest `index.json`: that of 13,000 images.
const INDEX_BYTES_MAX: u64 = 4 << 20;
/// Largest `oci-layout`, which holds one number.
const MARKER_BYTES_MAX: u64 = 4096;
/// The name of an image (image-spec `annotations.md`).
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same by containerd, docker and buildkit, with registry and repository.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// In an `index.json` that `export` has written: `whole`, or `since` and a name.
pub(super) const EXPORT: &str = "aws-ecr-proxy.export";
/// At an image that `export` has written for some platforms: which.
pub(super) const PLATFORMS: &str = "aws-ecr-proxy.platforms";
/// What compressed archives begin with.
const COMPRESSED: [(&[u8], &str); 4] = [
    (b"\x1f\x8b", "gunzip"),
    (b"\x28\xb5\x2f\xfd", "unzstd"),
    (b"BZh", "bunzip2"),
    (b"\xfd7zXZ", "unxz"),
];

/// A layout.
#[derive(Debug)]
pub struct Archive {
    files: ArchiveFiles,
    /// What its `index.json` lists.
    pub images: Vec<ArchiveImage>,
    /// Whether `export` has made it, and how.
    pub origin: Origin,
}

/// Who made a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `export --since` the layout of this name: it lacks what that one has.
    Delta(String),
    /// `export`.
    Export,
    /// Another program.
    Foreign,
}

/// An image that a layout lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveImage {
    /// Its manifest.
    pub digest: Digest,
    /// The manifest's media type.
    pub media_type: String,
    /// Its name; what it says differs with the program that made the layout.
    pub name: Option<String>,
    /// Platforms that it was exported for.
    pub platforms: Platforms,
}

/// The content of a file.
#[derive(Debug)]
pub struct ArchiveBlob {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl ArchiveBlob {
    /// Bytes not yet read.
    pub const fn left(&self) -> u64 {
        self.left
    }
}

impl Read for ArchiveBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        let piece = buffer.get_mut(..most).unwrap_or_default();
        self.file.read_exact_at(piece, self.at)?;
        self.at += most as u64;
        self.left -= most as u64;
        Ok(most)
    }
}

impl Archive {
    /// Opens a layout, and reads its `index.json`. Of a tar it reads all headers.
    ///
    /// # Errors
    /// What is wrong with it, with the name of the entry.
    pub fn open(path: &Path) -> Result<Self, String> {
        Self::of_files(ArchiveFiles::open(path)?)
    }

    fn of_files(files: ArchiveFiles) -> Result<Self, String> {
        check_marker(&files.expect("oci-layout", MARKER_BYTES_MAX)?)?;
        let (images, origin) = parse_index(&files.expect("index.json", INDEX_BYTES_MAX)?)?;
        Ok(Self {
            files,
            images,
            origin,
        })
    }

    /// Opens a blob, whose bytes nobody has checked. None when it is not in the layout.
    ///
    /// # Errors
    /// The disk's own, and a name that is no regular file.
    pub fn blob(&self, digest: &Digest) -> io::Result<Option<ArchiveBlob>> {
        self.files.find(&blob_name(digest))
    }

    /// Reads a manifest, and checks its digest. None when it is not in the layout.
    ///
    /// # Errors
    /// What is wrong with it, with its name.
    pub fn manifest(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, String> {
        let name = blob_name(digest);
        let Some(bytes) = self.files.read(&name, limit)? else {
            return Ok(None);
        };
        match matches(digest, &bytes) {
            true => Ok(Some(bytes)),
            false => Err(format!("{name}: its content has another digest")),
        }
    }
}

/// Reads an `index.json` alone.
pub(super) fn read_index(path: &Path) -> Result<Vec<ArchiveImage>, String> {
    let blob = open_file(path).map_err(|error| error.to_string())?;
    let blob = blob.ok_or_else(|| "is not there".to_owned())?;
    let bytes = read_whole(blob, "index.json", INDEX_BYTES_MAX)?;
    parse_index(&bytes).map(|(images, _)| images)
}

/// The files of a layout.
#[derive(Debug)]
enum ArchiveFiles {
    Folder(PathBuf),
    /// Where each is in a tar, and its size.
    Tar(Arc<File>, HashMap<String, (u64, u64)>),
}

impl ArchiveFiles {
    fn open(path: &Path) -> Result<Self, String> {
        let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
        if metadata.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        if !metadata.is_file() {
            return Err("expected a directory or a tar file".to_owned());
        }
        let file = File::open(path).map_err(|error| error.to_string())?;
        Self::in_tar(file, metadata.len())
    }

    fn in_tar(file: File, length: u64) -> Result<Self, String> {
        let read = |buffer: &mut [u8], offset: u64| file.read_exact_at(buffer, offset);
        refuse_compressed(&read)?;
        let mut files = HashMap::new();
        for TarFile { name, offset, size } in tar::list(&read, length)? {
            if let Some(blob) = name.strip_prefix("blobs/") {
                let digest: Result<Digest, _> = blob.replacen('/', ":", 1).parse();
                digest.map_err(|_| {
                    let expected = "expected blobs/sha256/<64 hex digits>, or sha512 with 128";
                    format!("{name:?}: is no name of a blob; {expected}")
                })?;
            }
            files.insert(name, (offset, size));
        }
        Ok(Self::Tar(Arc::new(file), files))
    }

    fn find(&self, name: &str) -> io::Result<Option<ArchiveBlob>> {
        match self {
            Self::Folder(root) => open_file(&root.join(name)),
            Self::Tar(file, files) => Ok(files.get(name).map(|(at, left)| ArchiveBlob {
                file: Arc::clone(file),
                at: *at,
                left: *left,
            })),
        }
    }

    fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, String> {
        let found = self
            .find(name)
            .map_err(|error| format!("{name}: {error}"))?;
        found.map(|blob| read_whole(blob, name, limit)).transpose()
    }

    fn expect(&self, name: &str, limit: u64) -> Result<Vec<u8>, String> {
        if let Some(bytes) = self.read(name, limit)? {
            return Ok(bytes);
        }
        let why = match self.find("manifest.json") {
            Ok(Some(_)) => {
                "it is of an old `docker save`; make a layout of it with `skopeo copy \
                 docker-archive:FILE oci-archive:OTHER`"
            }
            _ => {
                "expected an OCI image layout, as `export` or `skopeo copy … oci:DIR:NAME` makes it"
            }
        };
        Err(format!("{name} is not in it: {why}"))
    }
}

fn refuse_compressed(read: tar::ReadAt<'_>) -> Result<(), String> {
    let mut start = [0; 6];
    // What is shorter is no archive, and is refused as such.
    let _ = read(&mut start, 0);
    let mut known = COMPRESSED.iter();
    match known.find(|(magic, _)| start.starts_with(magic)) {
        None => Ok(()),
        Some((_, program)) => Err(format!(
            "it is compressed; unpack it with `{program}` first"
        )),
    }
}

/// Where a blob is in a layout.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// Opens a regular file; none when it is absent. A link could lead anywhere, and a pipe could wait.
fn open_file(path: &Path) -> io::Result<Option<ArchiveBlob>> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return Err(io::Error::other("is no regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(ArchiveBlob {
        file: Arc::new(File::open(path)?),
        at: 0,
        left: metadata.len(),
    }))
}

fn read_whole(mut blob: ArchiveBlob, name: &str, limit: u64) -> Result<Vec<u8>, String> {
    let size = blob.left;
    if size > limit {
        return Err(format!(
            "{name}: has {size} bytes, at most {limit} are read"
        ));
    }
    let mut bytes = Vec::new();
    let read = blob.read_to_end(&mut bytes);
    read.map_err(|error| format!("{name}: {error}"))?;
    Ok(bytes)
}

fn check_marker(bytes: &[u8]) -> Result<(), String> {
    let marker: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let version = marker.get("imageLayoutVersion").and_then(Value::as_str);
    match version.is_some_and(|version| version.starts_with("1.")) {
        true => Ok(()),
        false => Err("oci-layout: names no version 1.x of image layouts".to_owned()),
    }
}

fn parse_index(bytes: &[u8]) -> Result<(Vec<ArchiveImage>, Origin), String> {
    let index: Value =
        serde_json::from_slice(bytes).map_err(|error| format!("index.json: {error}"))?;
    let origin = match annotation(&index, EXPORT) {
        None => Origin::Foreign,
        Some(how) => match how.strip_prefix("since ") {
            Some(base) => Origin::Delta(base.to_owned()),
            None => Origin::Export,
        },
    };
    let list = index.get("manifests").and_then(Value::as_array);
    let list = list.ok_or("index.json: has no list of manifests")?;
    let images = list.iter().map(parse_image).collect::<Result<_, _>>()?;
    Ok((images, origin))
}

fn parse_image(descriptor: &Value) -> Result<ArchiveImage, String> {
    let text = |key: &str| descriptor.get(key).and_then(Value::as_str);
    let digest = text("digest").unwrap_or_default().parse::<Digest>();
    let digest = digest.map_err(|error| format!("index.json: {}", error.message))?;
    let media_type = text("mediaType").filter(|kind| is_media_type(kind));
    let media_type = media_type
        .ok_or_else(|| format!("index.json: {digest}: has no mediaType, or an odd one"))?;
    let name = annotation(descriptor, CONTAINERD_NAME);
    Ok(ArchiveImage {
        media_type: media_type.to_owned(),
        name: name
            .or_else(|| annotation(descriptor, REF_NAME))
            .map(str::to_owned),
        platforms: annotation(descriptor, PLATFORMS).unwrap_or("all").parse()?,
        digest,
    })
}

fn annotation<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get("annotations")?.get(key)?.as_str()
}

#[cfg(test)]
mod tests;
