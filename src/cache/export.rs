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
use super::closure::{Closure, ClosureWalk, NO_PLATFORM, ReferrerIndex};
use super::files;
use super::names::{Names, OwnedScope, Scope};
use super::store::Store;
use crate::hash::Hasher;
use crate::oci::{Digest, Reference};
use crate::platforms::Platforms;

/// Digests that a fault names.
const NAMED_MAX: usize = 5;
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
#[derive(Default)]
struct Since {
    archive: Option<Archive>,
    known: HashSet<Digest>,
}

impl Since {
    fn has(&self, digest: &Digest, size: u64) -> bool {
        let archive = self.archive.as_ref();
        let stored = archive.and_then(|archive| archive.blob(digest).ok().flatten());
        self.known.contains(digest) || stored.is_some_and(|blob| blob.left() == size)
    }
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
        let since = since.map(|path| {
            let since = self.read_since(path);
            since.map_err(|why| format!("--since={}: {why}", path.display()))
        });
        let since = since.transpose()?.unwrap_or_default();
        let mut digests = HashSet::new();
        for (place, reference) in images {
            self.add_image(&mut plan, place.scope(), reference, &mut digests)?;
        }
        for digest in digests {
            let size = self.store.size(&digest);
            let size = size.ok_or_else(|| format!("{digest} was evicted meanwhile"))?;
            match since.has(&digest, size) {
                true => plan.known += 1,
                false => {
                    plan.blobs
                        .insert(archive::blob_name(&digest), (digest, size));
                }
            }
        }
        Ok(plan)
    }

    fn add_image(
        &self,
        plan: &mut ExportPlan,
        scope: Scope<'_>,
        reference: &Reference,
        digests: &mut HashSet<Digest>,
    ) -> Result<(), String> {
        let walk = ClosureWalk::new(self.store, self.names);
        let name = match reference {
            Reference::Tag(tag) => format!("{scope}:{}", tag.as_str()),
            Reference::Digest(digest) => format!("{scope}@{digest}"),
        };
        let root = walk.root(scope, reference);
        let root = root.filter(|root| self.store.has(root)).ok_or_else(|| {
            format!("{name} is not in the cache; fetch it with `aws-ecr-proxy pull {name}`")
        })?;
        let index = ReferrerIndex::read(self.store, self.names, scope);
        let closure = walk.closure_with_referrers(scope, &root, &index);
        if closure.is_cut {
            return Err(format!(
                "{name} is larger than any image that registries take"
            ));
        }
        let (chosen, missing) = choose(&closure, self.platforms);
        if !missing.is_empty() {
            return Err(describe_missing(&name, &missing, &closure));
        }
        digests.extend(chosen);
        self.describe(plan, name, scope, &root)?;
        for part in &closure.referrers {
            let manifest = &part.manifest;
            if let Some(missing) = part.missing.first() {
                plan.left_out.push(format!(
                    "{manifest}, which refers to {root}: lacks {missing}"
                ));
                continue;
            }
            digests.extend(part.digests.iter().cloned());
            self.describe(plan, format!("{scope}@{manifest}"), scope, manifest)?;
        }
        for (tag, entry) in &closure.attached {
            // An index of referrers is of use when all of them come with it.
            if walk.closure(&entry.digest).is_whole() {
                digests.insert(entry.digest.clone());
                let name = format!("{scope}:{}", tag.as_str());
                self.describe(plan, name, scope, &entry.digest)?;
            }
        }
        Ok(())
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
        let mut since = Since::default();
        let images = match path.is_file() && path.extension().is_some_and(|end| end == "json") {
            true => archive::read_index(path)?,
            false => {
                let archive = since.archive.insert(Archive::open(path)?);
                match archive.origin {
                    Origin::Foreign => Vec::new(),
                    Origin::Export | Origin::Delta(_) => archive.images.clone(),
                }
            }
        };
        for image in images {
            let closure = ClosureWalk::new(self.store, self.names).closure(&image.digest);
            let (chosen, _) = choose(&closure, &image.platforms);
            since.known.extend(chosen);
        }
        Ok(since)
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
        let is_tar = is_tar(to)?;
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or_else(|| Path::new("."));
        let temp = folder.join(files::temp_name());
        let written = LayoutWriter::create(&temp, is_tar)
            .and_then(|layout| self.write_files(plan, layout, progress))
            .and_then(|()| fs::rename(&temp, to));
        if written.is_err() {
            let _ = fs::remove_dir_all(&temp).or_else(|_| fs::remove_file(&temp));
        }
        let synced = written.and_then(|()| files::sync_directory(folder));
        synced.map_err(fault)
    }

    fn write_files(
        &self,
        plan: &ExportPlan,
        mut layout: LayoutWriter,
        progress: Progress<'_>,
    ) -> io::Result<()> {
        let (total, mut done) = (plan.bytes(), 0);
        for (path, (digest, size)) in &plan.blobs {
            let damaged = |why| io::Error::other(format!("{digest}: {why}; `verify` says more"));
            let blob = self.store.blob(digest)?.filter(|blob| blob.size == *size);
            let blob = blob.ok_or_else(|| damaged("it was evicted meanwhile"))?;
            let mut hasher = Hasher::new(digest);
            layout.add(path, *size, &mut |out| {
                files::each_piece((&*blob.file).take(*size), &mut |piece| {
                    hasher.update(piece);
                    done += piece.len() as u64;
                    progress("export", done, total);
                    out.write_all(piece)
                })
            })?;
            if hasher.finish() != digest.as_str() {
                return Err(damaged("the cached blob is damaged"));
            }
        }
        let marker = json!({"imageLayoutVersion": "1.0.0"});
        for (name, document) in [("index.json", plan.index()), ("oci-layout", marker)] {
            let text = document.to_string();
            layout.add(name, text.len() as u64, &mut |out| {
                files::each_piece(text.as_bytes(), &mut |piece| out.write_all(piece))
            })?;
        }
        layout.finish()
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

/// The digests of the image for these platforms, and those that are missing. Attestations go along
/// when they are here.
fn choose(closure: &Closure, platforms: &Platforms) -> (Vec<Digest>, Vec<Digest>) {
    let (mut digests, mut missing) = (closure.indexes.clone(), Vec::new());
    for part in &closure.parts {
        let is_chosen = match part.platform.as_str() {
            NO_PLATFORM => part.missing.is_empty(),
            platform => platforms.picks(platform),
        };
        if is_chosen {
            digests.extend(part.digests.iter().cloned());
            missing.extend(part.missing.iter().cloned());
        }
    }
    (digests, missing)
}

fn describe_missing(name: &str, missing: &[Digest], closure: &Closure) -> String {
    let shown: Vec<&str> = missing.iter().take(NAMED_MAX).map(Digest::as_str).collect();
    let more = match missing.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let whole = closure.parts.iter().filter(|part| part.missing.is_empty());
    let whole = whole.map(|part| part.platform.as_str());
    let whole: Vec<&str> = whole.filter(|name| *name != NO_PLATFORM).collect();
    let partly = match whole.as_slice() {
        [] => String::new(),
        whole => format!(
            ", or export what is whole with `--platform {}`",
            whole.join(",")
        ),
    };
    let shown = shown.join(", ");
    format!(
        "{name} is not whole in the cache: {shown}{more} missing; fetch it with `aws-ecr-proxy \
         pull {name}`{partly}"
    )
}

/// # Errors
/// A place that cannot be written to.
fn is_tar(to: &Path) -> Result<bool, String> {
    let end = to.extension().unwrap_or_default().to_ascii_lowercase();
    if COMPRESSED.iter().any(|compressed| end == *compressed) {
        let why = "layers are compressed already: name a file that ends with .tar";
        return Err(format!("{}: {why}", to.display()));
    }
    if end == "tar" || to.is_file() {
        return Ok(true);
    }
    if to.exists() && !to.is_dir() {
        return Err(format!("{}: expected a directory or a file", to.display()));
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
    Folder(PathBuf),
    Tar(BufWriter<File>),
}

/// Writes the content of a file; says how many bytes that were.
type WriteContent<'a> = &'a mut dyn FnMut(&mut dyn Write) -> io::Result<u64>;

impl LayoutWriter {
    fn create(path: &Path, is_tar: bool) -> io::Result<Self> {
        match is_tar {
            true => Ok(Self::Tar(BufWriter::new(File::create_new(path)?))),
            false => fs::create_dir(path).map(|()| Self::Folder(path.to_owned())),
        }
    }

    /// Adds a file of `size` bytes.
    fn add(&mut self, name: &str, size: u64, content: WriteContent<'_>) -> io::Result<()> {
        let written = match self {
            Self::Tar(tar) => {
                tar.write_all(&archive::headers(name, size))?;
                let written = content(tar)?;
                tar.write_all(&vec![0; archive::padding(size)])?;
                written
            }
            Self::Folder(root) => {
                let path = root.join(name);
                fs::create_dir_all(path.parent().unwrap_or(root))?;
                let mut file = File::create_new(path)?;
                let written = content(&mut file)?;
                file.sync_all()?;
                written
            }
        };
        match written == size {
            true => Ok(()),
            false => Err(io::Error::other(format!("{name}: was cut meanwhile"))),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Tar(mut tar) => {
                tar.write_all(&archive::END)?;
                tar.into_inner()?.sync_all()
            }
            Self::Folder(root) => ["", "blobs", "blobs/sha256", "blobs/sha512"]
                .map(|name| root.join(name))
                .iter()
                .filter(|folder| folder.exists())
                .try_for_each(|folder| files::sync_directory(folder)),
        }
    }
}

#[cfg(test)]
mod tests;
