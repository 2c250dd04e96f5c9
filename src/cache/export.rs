//! Images of the cache, written as a layout that stands alone or, with `--since`, holds what the
//! other side lacks. Owns: choosing the blobs, and the layout's files. Must not: change the cache.
//!
//! The same images make the same bytes, whenever and wherever they are written. A layout gets its
//! name when it is whole and on the disk.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value, json};

use super::archive::{self, Archive, EXPORT, PLATFORMS, REF_NAME};
use super::closure::{Closure, IMAGE_BYTES_MAX, NO_PLATFORM};
use super::disk::Disk;
use super::files;
use super::names::{OwnedScope, Scope, TagEntry};
use crate::hash::Hasher;
use crate::oci::{Digest, Reference};
use crate::platforms::Platforms;

/// Digests that a fault names.
const NAMED_MAX: usize = 5;
/// Names of compressed files. Layers are compressed already.
const COMPRESSED: [&str; 5] = ["gz", "tgz", "zst", "xz", "bz2"];

/// Told of bytes that are done and of all that there are, with the name of the step.
pub type OnProgress<'a> = &'a mut dyn FnMut(&str, u64, u64);

/// Writes images of the cache as a layout.
#[derive(Debug)]
pub struct Exporter<'a> {
    /// The cache.
    pub disk: &'a Disk,
    /// Which platforms.
    pub platforms: &'a Platforms,
    /// Set when it is to stop: what was written so far is removed.
    pub stop: &'a AtomicBool,
}

/// The content of an export.
#[derive(Debug, Default)]
pub struct ExportPlan {
    /// Descriptors by the name of the image.
    images: BTreeMap<String, Value>,
    /// Sizes by digest, in the order of their paths.
    blobs: BTreeMap<String, (Digest, u64)>,
    /// `whole`, or `since` and the name of the layout that says what the other side has.
    origin: String,
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

    fn index(&self) -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.images.values().collect::<Vec<_>>(),
            "annotations": {EXPORT: self.origin},
        })
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
        let mut plan = ExportPlan {
            origin: "whole".to_owned(),
            ..ExportPlan::default()
        };
        for (scope, reference) in images {
            self.add_image(&mut plan, scope.as_scope(), reference)?;
        }
        if let Some(path) = since {
            let left_out = self.leave_out_known(&mut plan, path);
            left_out.map_err(|why| format!("--since={}: {why}", path.display()))?;
            let name = path.file_name().unwrap_or_default();
            plan.origin = format!("since {}", name.to_string_lossy());
        }
        Ok(plan)
    }

    fn add_image(
        &self,
        plan: &mut ExportPlan,
        scope: Scope<'_>,
        reference: &Reference,
    ) -> Result<(), String> {
        let name = scope.name_of(reference);
        let found = self.disk.holdings().find(scope, reference);
        let found = found.filter(|image| self.disk.store.has(&image.digest));
        let found = found.ok_or_else(|| {
            format!("{name} is not in the cache; fetch it with `aws-ecr-proxy pull {name}`")
        })?;
        let (root, closure) = (found.digest, found.closure);
        if closure.is_cut {
            return Err(format!(
                "{name} is larger than any image that registries take"
            ));
        }
        if let Some(why) = closure.refuse(self.platforms) {
            return Err(format!("{name}: {why}"));
        }
        let (chosen, missing) = choose(&closure, self.platforms);
        if !missing.is_empty() {
            return Err(describe_missing(&name, &missing));
        }
        let mut entries = vec![(reference.clone(), root.clone(), chosen)];
        for part in closure.referrers {
            let digest = part.manifest;
            match part.missing.first() {
                None => entries.push((digest.clone().into(), digest, part.digests)),
                Some(missing) => plan
                    .left_out
                    .push(format!("{digest}, which refers to {root}: lacks {missing}")),
            }
        }
        for (tag, TagEntry { digest, .. }) in closure.attached {
            // An index of referrers is of use when all of them come with it.
            let needs = self.disk.holdings().closure(&digest, IMAGE_BYTES_MAX);
            if needs.is_whole() {
                entries.push((Reference::Tag(tag), digest.clone(), vec![digest]));
            }
        }
        for (reference, digest, parts) in entries {
            let descriptor = self.describe(scope, &reference, &digest);
            let descriptor = descriptor.ok_or_else(|| evicted(&digest))?;
            plan.images.insert(scope.name_of(&reference), descriptor);
            for part in parts {
                let size = self.disk.store.size(&part).ok_or_else(|| evicted(&part))?;
                plan.blobs.insert(archive::blob_name(&part), (part, size));
            }
        }
        Ok(())
    }

    /// An image as the layout's index has it. None for one that was evicted.
    fn describe(&self, scope: Scope<'_>, reference: &Reference, digest: &Digest) -> Option<Value> {
        let mut annotations = BTreeMap::from([(REF_NAME, scope.name_of(reference))]);
        if !self.platforms.is_all() {
            annotations.insert(PLATFORMS, self.platforms.to_string());
        }
        Some(json!({
            "mediaType": self.disk.names.link(scope, digest)?.media_type?,
            "digest": digest.as_str(),
            "size": self.disk.store.size(digest)?,
            "annotations": annotations,
        }))
    }

    /// Leaves out what the other side has: the blobs in a layout, and of an earlier export or an
    /// `index.json` alone all that its images are made of.
    fn leave_out_known(&self, plan: &mut ExportPlan, path: &Path) -> Result<(), String> {
        let is_index = path.is_file() && path.extension().is_some_and(|end| end == "json");
        let (archive, images) = match is_index {
            true => (None, archive::read_index(path)?),
            false => {
                let archive = Archive::open(path)?;
                let images = archive.export.as_ref().map(|_| archive.images.clone());
                (Some(archive), images.unwrap_or_default())
            }
        };
        let mut known = HashSet::new();
        for image in images {
            let closure = self.disk.holdings().closure(&image.digest, IMAGE_BYTES_MAX);
            known.extend(choose(&closure, &image.platforms).0);
        }
        let count = plan.blobs.len();
        plan.blobs.retain(|_, (digest, size)| {
            let archive = archive.as_ref();
            let stored = archive.and_then(|archive| archive.blob(digest).ok().flatten());
            !known.contains(digest) && stored.is_none_or(|blob| blob.limit() != *size)
        });
        plan.known = count - plan.blobs.len();
        Ok(())
    }

    /// Writes a layout to a new directory, or to a file whose name ends with `.tar`.
    ///
    /// # Errors
    /// A blob that is damaged or was evicted meanwhile; the disk's own.
    pub fn write(
        &self,
        plan: &ExportPlan,
        to: &Path,
        progress: OnProgress<'_>,
    ) -> Result<(), String> {
        let is_tar = is_tar(to)?;
        // A directory that is there may be a mount or a link: it stays, and gets the files.
        let is_there = !is_tar && to.is_dir();
        let folder = match to.parent() {
            _ if is_there => to,
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let temp = folder.join(files::temp_name());
        let written = LayoutWriter::create(&temp, is_tar)
            .and_then(|layout| self.write_files(plan, layout, progress))
            .and_then(|()| match is_there {
                true => move_files(&temp, to),
                false => fs::rename(&temp, to),
            })
            .and_then(|()| files::sync_directory(folder));
        written.map_err(|error| {
            let _ = fs::remove_dir_all(&temp).or_else(|_| fs::remove_file(&temp));
            format!("{}: {error}", to.display())
        })
    }

    fn write_files(
        &self,
        plan: &ExportPlan,
        mut layout: LayoutWriter,
        progress: OnProgress<'_>,
    ) -> io::Result<()> {
        let (total, mut done) = (plan.bytes(), 0);
        for (name, (digest, size)) in &plan.blobs {
            let damaged = |why| io::Error::other(format!("{digest}: {why}; `verify` says more"));
            let blob = self.disk.store.blob(digest)?;
            let blob = blob.ok_or_else(|| damaged("it was evicted meanwhile"))?;
            let mut hasher = Hasher::new(digest);
            layout.add(name, *size, &mut &*blob.file, &mut |piece| {
                hasher.update(piece);
                done += piece.len() as u64;
                progress("export", done, total);
                match self.stop.load(Relaxed) {
                    true => Err(io::Error::other("stopped by a signal")),
                    false => Ok(()),
                }
            })?;
            if hasher.finish() != digest.as_str() {
                return Err(damaged("the cached blob is damaged"));
            }
        }
        let marker = json!({"imageLayoutVersion": "1.0.0"});
        for (name, document) in [("index.json", plan.index()), ("oci-layout", marker)] {
            let text = document.to_string();
            layout.add(name, text.len() as u64, &mut text.as_bytes(), &mut |_| {
                Ok(())
            })?;
        }
        layout.finish()
    }
}

/// The digests of the image for these platforms, and those that are missing. Attestations go along
/// when they are here.
fn choose(closure: &Closure, platforms: &Platforms) -> (Vec<Digest>, Vec<Digest>) {
    let (mut digests, mut missing) = (closure.indexes.clone(), Vec::new());
    for part in &closure.parts {
        let is_chosen = match part.platform.as_str() {
            NO_PLATFORM => part.missing.is_empty(),
            _ => closure.picks(part, platforms),
        };
        if is_chosen {
            digests.extend(part.digests.iter().cloned());
            missing.extend(part.missing.iter().cloned());
        }
    }
    (digests, missing)
}

fn evicted(digest: &Digest) -> String {
    format!("{digest} was evicted meanwhile")
}

fn describe_missing(name: &str, missing: &[Digest]) -> String {
    let shown: Vec<&str> = missing.iter().take(NAMED_MAX).map(Digest::as_str).collect();
    format!(
        "{name} is not whole in the cache, {} of its digests are missing: {}; fetch it with \
         `aws-ecr-proxy pull {name}`, or export what `list` shows as whole with --platform",
        missing.len(),
        shown.join(", ")
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
    let is_new = match fs::read_dir(to) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    match end == "tar" {
        false if !is_new => {
            let why =
                "is not empty, or no directory; name a new one, or a file that ends with .tar";
            Err(format!("{}: {why}", to.display()))
        }
        is_tar => Ok(is_tar),
    }
}

/// Moves a layout into a directory. Without its marker, which comes last, it is none.
fn move_files(from: &Path, to: &Path) -> io::Result<()> {
    let names = ["blobs", "index.json", "oci-layout"].into_iter();
    for name in names.filter(|name| from.join(name).exists()) {
        fs::rename(from.join(name), to.join(name))?;
    }
    fs::remove_dir(from)
}

/// Writes the files of a layout.
enum LayoutWriter {
    Folder(PathBuf),
    Tar(BufWriter<File>),
}

impl LayoutWriter {
    fn create(path: &Path, is_tar: bool) -> io::Result<Self> {
        match is_tar {
            true => Ok(Self::Tar(BufWriter::new(File::create_new(path)?))),
            false => fs::create_dir(path).map(|()| Self::Folder(path.to_owned())),
        }
    }

    /// Adds a file of `size` bytes; `on_piece` is told of each piece of its content, and may end
    /// it.
    fn add(
        &mut self,
        name: &str,
        size: u64,
        content: &mut dyn Read,
        on_piece: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut copy = |out: &mut dyn Write| {
            let written = files::each_piece(&mut *content, &mut |piece| {
                on_piece(piece)?;
                out.write_all(piece)
            })?;
            match written == size {
                true => Ok(()),
                false => Err(io::Error::other(format!("{name}: has changed meanwhile"))),
            }
        };
        match self {
            Self::Tar(tar) => {
                tar.write_all(&archive::headers(name, size))?;
                copy(tar)?;
                tar.write_all(&vec![0; archive::padding(size)])
            }
            Self::Folder(root) => {
                let path = root.join(name);
                fs::create_dir_all(path.parent().unwrap_or(root))?;
                let mut file = File::create_new(path)?;
                copy(&mut file)?;
                file.sync_all()
            }
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
