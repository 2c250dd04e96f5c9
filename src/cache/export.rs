//! Images of the cache, written as a layout that stands alone or, with `--since`, holds what the
//! other side lacks. Owns: choosing the blobs, and the layout's files. Must not: change the cache.
//!
//! The same images make the same bytes, whenever and wherever they are written. A layout gets its
//! name when it is whole and on the disk.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::archive::{self, Archive, EXPORT, Origin, PLATFORMS, REF_NAME};
use super::closure::{Closure, ClosureWalk, ImagePart, MemberKind, NO_PLATFORM, ReferrerIndex};
use super::files;
use super::manifest::list_named;
use super::names::{Names, OwnedScope, Scope};
use super::store::Store;
use crate::hash::Hasher;
use crate::oci::{Digest, Reference};
use crate::platforms::Platforms;

/// Bytes copied at a time.
const COPY_BYTES: usize = 128 * 1024;
/// Digests that a fault names.
const NAMED_MAX: usize = 5;
/// Bytes of a manifest at the most, as everywhere.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// Names of compressed files. Layers are compressed already.
const COMPRESSED: [&str; 5] = ["gz", "tgz", "zst", "xz", "bz2"];

/// Told of bytes that are done and of all that there are, with the name of the step.
pub type Progress<'a> = &'a mut dyn FnMut(&str, u64, u64);

/// What an export is made of.
#[derive(Debug)]
pub struct Exporter<'a> {
    /// Manifests and blobs.
    pub store: &'a Arc<Store>,
    /// Tags.
    pub names: &'a Names,
    /// Which platforms.
    pub platforms: &'a Platforms,
}

/// What an export writes.
#[derive(Debug, Default)]
pub struct ExportPlan {
    /// Descriptors by the name of the image.
    images: BTreeMap<String, Value>,
    /// Sizes by digest, in the order of their paths.
    blobs: BTreeMap<String, (Digest, u64)>,
    /// What the other side has: the name of the layout that says so.
    since: Option<String>,
    /// Blobs that the other side has.
    pub known: usize,
    /// Referrers that are not whole in the cache, and why.
    pub left_out: Vec<String>,
}

impl ExportPlan {
    /// How many blobs and manifests there are.
    pub fn blob_count(&self) -> usize {
        self.blobs.len()
    }

    /// Bytes of all blobs and manifests.
    pub fn bytes(&self) -> u64 {
        self.blobs.values().map(|(_, size)| size).sum()
    }
}

/// What the other side has.
struct Since {
    archive: Option<Archive>,
    known: HashSet<Digest>,
}

impl Exporter<'_> {
    /// Chooses what is written. Reads manifests.
    ///
    /// # Errors
    /// An image that is not here, or that lacks a blob; what is wrong with `since`.
    pub fn plan(
        &self,
        images: &[(OwnedScope, Reference)],
        since: Option<&Path>,
    ) -> Result<ExportPlan, String> {
        let since_name = since.and_then(Path::file_name);
        let mut plan = ExportPlan {
            since: since_name.map(|name| name.to_string_lossy().into_owned()),
            ..ExportPlan::default()
        };
        let read = |path: &Path| {
            let since = self.read_since(path);
            since.map_err(|why| format!("--since={}: {why}", path.display()))
        };
        let since = since.map(read).transpose()?;
        for (scope, reference) in images {
            self.add_image(&mut plan, scope.scope(), reference, since.as_ref())?;
        }
        Ok(plan)
    }

    fn add_image(
        &self,
        plan: &mut ExportPlan,
        scope: Scope<'_>,
        reference: &Reference,
        since: Option<&Since>,
    ) -> Result<(), String> {
        let walk = ClosureWalk::new(self.store, self.names);
        let name = match reference {
            Reference::Tag(tag) => format!("{scope}:{}", tag.as_str()),
            Reference::Digest(digest) => format!("{scope}@{digest}"),
        };
        let root = walk
            .root(scope, reference)
            .filter(|root| self.store.has(root));
        let root = root.ok_or_else(|| {
            format!("{name} is not in the cache; fetch it with `aws-ecr-proxy pull {name}`")
        })?;
        let index = ReferrerIndex::read(self.store, self.names, scope);
        let closure = walk.closure_with_referrers(scope, &root, &index);
        let (mut digests, missing) = self.choose(&closure, self.platforms);
        if closure.is_cut {
            return Err(format!(
                "{name} is larger than any image that registries take"
            ));
        }
        if !missing.is_empty() {
            return Err(describe_missing(&name, &missing, &closure));
        }
        self.describe(plan, name, scope, &root)?;
        for part in &closure.referrers {
            if let Some(missing) = part.missing.first() {
                let manifest = &part.manifest;
                plan.left_out.push(format!(
                    "{manifest}, which refers to {root}: lacks {missing}"
                ));
                continue;
            }
            self.describe(
                plan,
                format!("{scope}@{}", part.manifest),
                scope,
                &part.manifest,
            )?;
            digests.extend(self.contents(part));
        }
        // An index of referrers is of use when all of them come with it.
        let attached = closure.attached.iter().filter(|_| plan.left_out.is_empty());
        for (tag, entry) in attached.collect::<Vec<_>>() {
            self.describe(
                plan,
                format!("{scope}:{}", tag.as_str()),
                scope,
                &entry.digest,
            )?;
        }
        self.add_blobs(plan, digests, since)
    }

    fn add_blobs(
        &self,
        plan: &mut ExportPlan,
        digests: Vec<Digest>,
        since: Option<&Since>,
    ) -> Result<(), String> {
        for digest in digests {
            let size = self.store.size(&digest);
            let size = size.ok_or_else(|| format!("{digest} was evicted meanwhile"))?;
            let path = archive::blob_name(&digest);
            if plan.blobs.contains_key(&path) {
                continue;
            }
            match since.is_some_and(|since| since.has(&digest, size)) {
                true => plan.known += 1,
                false => drop(plan.blobs.insert(path, (digest, size))),
            }
        }
        Ok(())
    }

    /// The digests of the image for these platforms, and those that are missing. Attestations go
    /// along when they are here.
    fn choose(&self, closure: &Closure, platforms: &Platforms) -> (Vec<Digest>, Vec<Digest>) {
        let indexes = closure
            .members
            .iter()
            .filter(|m| m.kind == MemberKind::Index);
        let mut digests: Vec<Digest> = indexes.map(|index| index.digest.clone()).collect();
        let mut missing = Vec::new();
        for part in &closure.parts {
            let is_attestation = part.platform == NO_PLATFORM;
            if is_attestation && part.missing.is_empty() {
                digests.extend(self.contents(part));
            } else if !is_attestation && platforms.picks(&part.platform) {
                missing.extend(part.missing.iter().cloned());
                digests.extend(self.contents(part));
            }
        }
        (digests, missing)
    }

    fn contents(&self, part: &ImagePart) -> Vec<Digest> {
        let bytes = self
            .store
            .read(&part.manifest, MANIFEST_BYTES_MAX)
            .ok()
            .flatten();
        let named = list_named(&bytes.unwrap_or_default()).into_iter();
        let digests = named.map(|named| named.digest);
        std::iter::once(part.manifest.clone())
            .chain(digests)
            .collect()
    }

    fn describe(
        &self,
        plan: &mut ExportPlan,
        name: String,
        scope: Scope<'_>,
        digest: &Digest,
    ) -> Result<(), String> {
        let link = self.names.link(scope, digest);
        let media_type = link.and_then(|link| link.media_type);
        let media_type = media_type.ok_or_else(|| format!("{name} was evicted meanwhile"))?;
        let mut annotations = json!({REF_NAME: name});
        if let (Some(map), false) = (annotations.as_object_mut(), self.platforms.is_all()) {
            map.insert(PLATFORMS.to_owned(), self.platforms.to_string().into());
        }
        let descriptor = json!({
            "mediaType": media_type,
            "digest": digest.as_str(),
            "size": self.store.size(digest).unwrap_or_default(),
            "annotations": annotations,
        });
        plan.images.insert(name, descriptor);
        Ok(())
    }

    /// What the other side has: the blobs in a layout, and of an earlier export or an `index.json`
    /// alone all that its images are made of.
    fn read_since(&self, path: &Path) -> Result<Since, String> {
        let is_index = path.is_file() && path.extension().is_some_and(|end| end == "json");
        let (archive, images) = match is_index {
            true => (None, archive::read_index(path)?),
            false => {
                let archive = Archive::open(path)?;
                let images = match archive.origin {
                    Origin::Foreign => Vec::new(),
                    Origin::Export | Origin::Delta(_) => archive.images.clone(),
                };
                (Some(archive), images)
            }
        };
        let mut known = HashSet::new();
        for image in images {
            let closure = ClosureWalk::new(self.store, self.names).closure(&image.digest);
            known.extend(self.choose(&closure, &image.platforms).0);
        }
        Ok(Since { archive, known })
    }

    /// Writes a layout to a directory, or to a file whose name ends with `.tar`.
    ///
    /// # Errors
    /// A blob that is damaged or was evicted meanwhile; the disk's own.
    pub fn write(
        &self,
        plan: &ExportPlan,
        to: &Path,
        progress: Progress<'_>,
    ) -> Result<(), String> {
        let fault = |error: io::Error| format!("{}: {error}", to.display());
        let folder = match to.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let temp = folder.join(files::temp_name());
        let written = self.write_files(plan, to, &temp, progress);
        let written = written.and_then(|()| fs::rename(&temp, to).map_err(fault));
        if written.is_err() {
            let _ = fs::remove_dir_all(&temp);
            let _ = fs::remove_file(&temp);
            return written;
        }
        files::sync_directory(folder).map_err(fault)
    }

    fn write_files(
        &self,
        plan: &ExportPlan,
        to: &Path,
        temp: &Path,
        progress: Progress<'_>,
    ) -> Result<(), String> {
        let fault = |error: io::Error| format!("{}: {error}", to.display());
        let mut layout = LayoutWriter::create(temp, is_tar(to)?).map_err(fault)?;
        let (total, mut done) = (plan.bytes(), 0);
        let mut folder = String::new();
        layout.folder("blobs/").map_err(fault)?;
        for (path, (digest, size)) in &plan.blobs {
            let above = format!("blobs/{}/", digest.algorithm());
            if folder != above {
                layout.folder(&above).map_err(fault)?;
                folder = above;
            }
            let damaged = |why: String| format!("{digest}: {why}; `verify` says more");
            let mut blob = self
                .store
                .blob(digest)
                .map_err(|error| damaged(error.to_string()))?;
            let blob = blob.as_mut().filter(|blob| blob.size == *size);
            let blob = blob.ok_or_else(|| damaged("it was evicted meanwhile".to_owned()))?;
            let mut hasher = Hasher::new(digest);
            let out = layout.begin(path, *size).map_err(fault)?;
            let mut buffer = vec![0; COPY_BYTES];
            let mut left = (&*blob.file).take(*size);
            loop {
                let count = left
                    .read(&mut buffer)
                    .map_err(|error| damaged(error.to_string()))?;
                let piece = buffer.get(..count).filter(|piece| !piece.is_empty());
                let Some(piece) = piece else {
                    break;
                };
                hasher.update(piece);
                out.write_all(piece).map_err(fault)?;
                done += count as u64;
                progress("export", done, total);
            }
            if left.limit() > 0 || hasher.finish() != digest.as_str() {
                return Err(damaged("the cached blob is damaged".to_owned()));
            }
            layout.end(*size).map_err(fault)?;
        }
        for (name, document) in [("index.json", plan.index()), ("oci-layout", marker())] {
            let text = document.to_string();
            let out = layout.begin(name, text.len() as u64).map_err(fault)?;
            out.write_all(text.as_bytes()).map_err(fault)?;
            layout.end(text.len() as u64).map_err(fault)?;
        }
        layout.finish().map_err(fault)
    }
}

impl Since {
    fn has(&self, digest: &Digest, size: u64) -> bool {
        let stored = self
            .archive
            .as_ref()
            .and_then(|archive| archive.blob(digest).ok().flatten());
        self.known.contains(digest) || stored.is_some_and(|blob| blob.left() == size)
    }
}

impl ExportPlan {
    fn index(&self) -> Value {
        let origin = match &self.since {
            None => "whole".to_owned(),
            Some(since) => format!("since {since}"),
        };
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.images.values().collect::<Vec<_>>(),
            "annotations": {EXPORT: origin},
        })
    }
}

fn marker() -> Value {
    json!({"imageLayoutVersion": "1.0.0"})
}

fn describe_missing(name: &str, missing: &[Digest], closure: &Closure) -> String {
    let shown: Vec<&str> = missing.iter().take(NAMED_MAX).map(Digest::as_str).collect();
    let more = match missing.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let whole = closure.parts.iter().filter(|part| part.missing.is_empty());
    let whole = whole
        .map(|part| part.platform.as_str())
        .filter(|name| *name != NO_PLATFORM);
    let whole: Vec<&str> = whole.collect();
    let partly = match whole.is_empty() {
        true => String::new(),
        false => format!(
            ", or export what is whole with `--platform {}`",
            whole.join(",")
        ),
    };
    format!(
        "{name} is not whole in the cache: {}{more} missing; fetch it with `aws-ecr-proxy pull \
         {name}`{partly}",
        shown.join(", ")
    )
}

/// # Errors
/// A place that cannot be written to.
fn is_tar(to: &Path) -> Result<bool, String> {
    let end = to
        .extension()
        .and_then(|end| end.to_str())
        .unwrap_or_default();
    if COMPRESSED.contains(&end) {
        let why = "layers are compressed already: name a file that ends with .tar";
        return Err(format!("{}: {why}", to.display()));
    }
    if end == "tar" || to.is_file() {
        return Ok(true);
    }
    match fs::read_dir(to).map(|mut entries| entries.next().is_none()) {
        Ok(false) => Err(format!(
            "{}: is not empty; name a new directory",
            to.display()
        )),
        _ => Ok(false),
    }
}

/// Writes the files of a layout.
enum LayoutWriter {
    Folder {
        root: PathBuf,
        file: Option<File>,
        folders: Vec<PathBuf>,
    },
    Tar(BufWriter<File>),
}

impl LayoutWriter {
    fn create(path: &Path, is_tar: bool) -> io::Result<Self> {
        if is_tar {
            return Ok(Self::Tar(BufWriter::new(File::create_new(path)?)));
        }
        fs::create_dir(path)?;
        let (root, file, folders) = (path.to_owned(), None, vec![path.to_owned()]);
        Ok(Self::Folder {
            root,
            file,
            folders,
        })
    }

    fn folder(&mut self, name: &str) -> io::Result<()> {
        match self {
            Self::Tar(file) => file.write_all(&archive::headers(name, 0)),
            Self::Folder { root, folders, .. } => {
                folders.push(root.join(name));
                fs::create_dir(root.join(name))
            }
        }
    }

    fn begin(&mut self, name: &str, size: u64) -> io::Result<&mut dyn Write> {
        match self {
            Self::Tar(file) => {
                file.write_all(&archive::headers(name, size))?;
                Ok(file)
            }
            Self::Folder { root, file, .. } => Ok(file.insert(File::create_new(root.join(name))?)),
        }
    }

    fn end(&mut self, size: u64) -> io::Result<()> {
        match self {
            Self::Tar(file) => file.write_all(&vec![0; archive::padding(size)]),
            Self::Folder { file, .. } => file.take().map_or(Ok(()), |file| file.sync_all()),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Tar(mut file) => {
                file.write_all(&archive::END)?;
                file.into_inner()?.sync_all()
            }
            Self::Folder { folders, .. } => folders
                .iter()
                .try_for_each(|folder| files::sync_directory(folder)),
        }
    }
}

#[cfg(test)]
mod tests;
