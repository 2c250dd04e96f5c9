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
use std::io::{self, Read as _, Seek as _, SeekFrom, Take};
use std::path::{Path, PathBuf};

use serde_json::Value;

use self::tar::TarFile;
pub(super) use self::tar::{END, headers, padding};
use super::links::is_media_type;
use crate::hash::matches;
use crate::oci::Digest;
use crate::platforms::Platforms;
use crate::small_file;

/// Largest `index.json`: that of 13,000 images.
const INDEX_BYTES_MAX: u64 = 4 << 20;
/// The name of an image (image-spec `annotations.md`).
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same by containerd, docker and buildkit, with registry and repository.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// In an `index.json` that `export` has written: `whole`, or `since` and a name.
pub(super) const EXPORT: &str = "aws-ecr-proxy.export";
/// At an image that `export` has written for some platforms: which.
pub(super) const PLATFORMS: &str = "aws-ecr-proxy.platforms";

/// A layout.
#[derive(Debug)]
pub struct Archive {
    files: ArchiveFiles,
    /// What its `index.json` lists.
    pub images: Vec<ArchiveImage>,
    /// For one that `export` has made: `whole`, or `since` and the name of its base.
    pub(super) export: Option<String>,
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

/// The content of a file, from its beginning: as many bytes as its limit says.
pub(super) type ArchiveBlob = Take<File>;

impl Archive {
    /// Opens a layout, and reads its `index.json`. In a tar it reads all headers.
    ///
    /// # Errors
    /// What is wrong with it, with the name of the entry.
    pub fn open(path: &Path) -> Result<Self, String> {
        let files = ArchiveFiles::open(path)?;
        let marker: Value =
            serde_json::from_slice(&files.expect("oci-layout")?).unwrap_or_default();
        let version = marker.get("imageLayoutVersion").and_then(Value::as_str);
        if !version.is_some_and(|version| version.starts_with("1.")) {
            return Err("oci-layout: names no version 1.x of image layouts".to_owned());
        }
        let (images, export) = parse_index(&files.expect("index.json")?)?;
        Ok(Self {
            files,
            images,
            export,
        })
    }

    /// Opens a blob, whose bytes nobody has checked. None when it is not in the layout.
    ///
    /// # Errors
    /// The disk's own, and a name that is no regular file.
    pub(super) fn blob(&self, digest: &Digest) -> io::Result<Option<ArchiveBlob>> {
        self.files.find(&blob_name(digest))
    }

    /// Reads a manifest, and checks its digest. None when it is not in the layout.
    ///
    /// # Errors
    /// What is wrong with it, with its name.
    pub(super) fn manifest(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, String> {
        let name = blob_name(digest);
        match self.files.read(&name, limit)? {
            Some(bytes) if !matches(digest, &bytes) => {
                Err(format!("{name}: its content has another digest"))
            }
            found => Ok(found),
        }
    }
}

/// Reads an `index.json` alone.
pub(super) fn read_index(path: &Path) -> Result<Vec<ArchiveImage>, String> {
    let bytes = small_file::read(path, INDEX_BYTES_MAX).map_err(|error| error.to_string())?;
    parse_index(&bytes).map(|(images, _)| images)
}

/// The files of a layout.
#[derive(Debug)]
enum ArchiveFiles {
    Folder(PathBuf),
    Tar(PathBuf, HashMap<String, TarFile>),
}

impl ArchiveFiles {
    fn open(path: &Path) -> Result<Self, String> {
        let fault = |error: io::Error| error.to_string();
        let metadata = fs::metadata(path).map_err(fault)?;
        if metadata.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        if !metadata.is_file() {
            return Err("expected a directory or a tar file".to_owned());
        }
        let files = tar::list(&File::open(path).map_err(fault)?)?;
        let is_odd = |name: &&String| {
            let digest = name
                .strip_prefix("blobs/")
                .map(|blob| blob.replacen('/', ":", 1));
            digest.is_some_and(|digest| digest.parse::<Digest>().is_err())
        };
        match files.keys().find(is_odd) {
            None => Ok(Self::Tar(path.to_owned(), files)),
            Some(name) => Err(format!(
                "{name:?}: is no name of a blob; expected blobs/sha256/<64 hex digits>, or sha512 \
                 with 128"
            )),
        }
    }

    fn find(&self, name: &str) -> io::Result<Option<ArchiveBlob>> {
        match self {
            Self::Folder(root) => open_file(&root.join(name)),
            Self::Tar(path, files) => {
                let open = |found: &TarFile| {
                    let mut tar = File::open(path)?;
                    tar.seek(SeekFrom::Start(found.offset))?;
                    Ok(tar.take(found.size))
                };
                files.get(name).map(open).transpose()
            }
        }
    }

    fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, String> {
        let fault = |error: io::Error| format!("{name}: {error}");
        let Some(mut blob) = self.find(name).map_err(fault)? else {
            return Ok(None);
        };
        if blob.limit() > limit {
            let size = blob.limit();
            return Err(format!(
                "{name}: has {size} bytes, at most {limit} are read"
            ));
        }
        let mut bytes = Vec::new();
        blob.read_to_end(&mut bytes).map_err(fault)?;
        Ok(Some(bytes))
    }

    fn expect(&self, name: &str) -> Result<Vec<u8>, String> {
        self.read(name, INDEX_BYTES_MAX)?.ok_or_else(|| {
            format!(
                "{name} is not in it: expected an OCI image layout, as `export` or `skopeo copy … \
                 oci:DIR:NAME` makes it; of an old `docker save`, `skopeo copy \
                 docker-archive:FILE oci-archive:OTHER` makes one"
            )
        })
    }
}

/// Where a blob is in a layout.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// Opens a regular file; none when it is absent. A link could lead anywhere, and a pipe could wait.
fn open_file(path: &Path) -> io::Result<Option<ArchiveBlob>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(File::open(path)?.take(metadata.len()))),
        Ok(_) => Err(io::Error::other("is no regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_index(bytes: &[u8]) -> Result<(Vec<ArchiveImage>, Option<String>), String> {
    let index: Value =
        serde_json::from_slice(bytes).map_err(|error| format!("index.json: {error}"))?;
    let list = index.get("manifests").and_then(Value::as_array);
    let list = list.ok_or("index.json: has no list of manifests")?;
    let images = list.iter().map(parse_image).collect::<Result<_, _>>()?;
    Ok((images, annotation(&index, EXPORT)))
}

fn parse_image(descriptor: &Value) -> Result<ArchiveImage, String> {
    let text = |key: &str| descriptor.get(key).and_then(Value::as_str);
    let digest = text("digest").unwrap_or_default().parse::<Digest>();
    let digest = digest.map_err(|error| format!("index.json: {}", error.message))?;
    let media_type = text("mediaType").filter(|kind| is_media_type(kind));
    let media_type = media_type
        .ok_or_else(|| format!("index.json: {digest}: has no mediaType, or an odd one"))?;
    let platforms = annotation(descriptor, PLATFORMS);
    let name = annotation(descriptor, CONTAINERD_NAME);
    Ok(ArchiveImage {
        media_type: media_type.to_owned(),
        name: name.or_else(|| annotation(descriptor, REF_NAME)),
        platforms: platforms.as_deref().unwrap_or("all").parse()?,
        digest,
    })
}

fn annotation(value: &Value, key: &str) -> Option<String> {
    let text = value.get("annotations")?.get(key)?.as_str()?;
    Some(text.to_owned())
}

#[cfg(test)]
mod tests;
