//! What the registry holds. Owns: blobs, manifests, tags, uploads. Must not: know HTTP.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use crate::content::{Content, digest};

#[derive(Default)]
pub(crate) struct Store {
    /// By digest, across repositories.
    pub(crate) blobs: HashMap<String, Content>,
    pub(crate) repositories: BTreeMap<String, Repository>,
    pub(crate) uploads: HashMap<String, Upload>,
    uploads_begun: u64,
}

#[derive(Default)]
pub(crate) struct Repository {
    /// Digests of `Store::blobs` that belong here.
    pub(crate) blobs: BTreeSet<String>,
    /// By digest.
    pub(crate) manifests: BTreeMap<String, Manifest>,
    /// Tag and digest, in the order they came (ECR's tags are unsorted).
    pub(crate) tags: Vec<(String, String)>,
}

#[derive(Clone)]
pub(crate) struct Manifest {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) struct Upload {
    pub(crate) repository: String,
    pub(crate) data: Vec<u8>,
    /// Length of the first chunk, at which ECR's `Range` sticks.
    pub(crate) first_chunk: Option<u64>,
    /// What the next request must carry as `_state`, byte for byte.
    pub(crate) state: String,
}

impl Store {
    pub(crate) fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    pub(crate) fn add_blob(&mut self, repository: &str, digest: String, content: Content) {
        self.repository(repository).blobs.insert(digest.clone());
        self.blobs.insert(digest, content);
    }

    pub(crate) fn blob(&self, repository: &str, digest: &str) -> Option<Content> {
        let repository = self.repositories.get(repository)?;
        repository.blobs.get(digest)?;
        self.blobs.get(digest).cloned()
    }

    /// Tags it when `reference` is no digest. Returns the digest.
    pub(crate) fn add_manifest(
        &mut self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> String {
        let digest = digest(&bytes);
        let repository = self.repository(repository);
        let manifest = Manifest {
            media_type: media_type.to_owned(),
            bytes,
        };
        repository.manifests.insert(digest.clone(), manifest);
        if !reference.contains(':') {
            let tag = repository.tags.iter_mut().find(|(tag, _)| tag == reference);
            match tag {
                Some((_, old)) => old.clone_from(&digest),
                None => repository.tags.push((reference.to_owned(), digest.clone())),
            }
        }
        digest
    }

    /// A manifest by tag or digest, with its digest.
    pub(crate) fn manifest(&self, repository: &str, reference: &str) -> Option<(String, Manifest)> {
        let repository = self.repositories.get(repository)?;
        let tagged = repository.tags.iter().find(|(tag, _)| tag == reference);
        let digest = tagged.map_or(reference, |(_, digest)| digest);
        let manifest = repository.manifests.get(digest)?;
        Some((digest.to_owned(), manifest.clone()))
    }

    /// What a manifest names and the repository lacks.
    pub(crate) fn missing(&self, repository: &str, manifest: &Value) -> Option<String> {
        let empty = Repository::default();
        let repository = self.repositories.get(repository).unwrap_or(&empty);
        let list = |name: &str| manifest[name].as_array().cloned().unwrap_or_default();
        let digest = |descriptor: &Value| descriptor["digest"].as_str().map(str::to_owned);
        let blobs = list("layers")
            .into_iter()
            .chain([manifest["config"].clone()]);
        let is_foreign = |descriptor: &Value| {
            let media_type = descriptor["mediaType"].as_str().unwrap_or_default();
            descriptor.get("urls").is_some() || media_type.contains(".foreign.")
        };
        let blobs = blobs.filter(|descriptor| !is_foreign(descriptor));
        // An image with a field of an index in it is taken for an image.
        let is_index = manifest["config"].is_null();
        let manifests = if is_index {
            list("manifests")
        } else {
            Vec::new()
        };
        let absent_blob = blobs
            .filter_map(|descriptor| digest(&descriptor))
            .find(|digest| !repository.blobs.contains(digest));
        absent_blob.or_else(|| {
            let mut digests = manifests.iter().filter_map(digest);
            digests.find(|digest| !repository.manifests.contains_key(digest))
        })
    }

    /// Opens an upload and returns its name.
    pub(crate) fn begin_upload(&mut self, repository: &str) -> String {
        self.uploads_begun += 1;
        let hex = &digest(&self.uploads_begun.to_be_bytes())["sha256:".len()..];
        let name = format!(
            "{}-{}-4{}-8{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..15],
            &hex[15..18],
            &hex[18..30]
        );
        let upload = Upload {
            repository: repository.to_owned(),
            data: Vec::new(),
            first_chunk: None,
            state: String::new(),
        };
        self.uploads.insert(name.clone(), upload);
        name
    }
}

impl Upload {
    /// A new state, full of characters that a careless proxy would encode or decode.
    pub(crate) fn renew_state(&mut self) {
        let seed = format!("{}{}", self.state, self.data.len());
        let hex = &digest(seed.as_bytes())["sha256:".len()..][..16];
        self.state = format!("{}+/{}%2B%3D==", &hex[..8], &hex[8..]);
    }
}
