//! Pushing blobs. Owns: the upload session from POST to PUT. Must not: touch a socket.

use std::io;

use crate::content::digest as digest_of;
use crate::core::{Core, lock};
use crate::http::{Head, Reply, RequestBody};
use crate::registry::{decode, error, unknown_repository};
use crate::store::Upload;

/// `path`: repository and the upload's name, which is empty for a new one.
pub(crate) fn answer(
    core: &Core,
    head: &Head,
    body: &mut RequestBody<'_>,
    path: (&str, &str),
) -> io::Result<Reply> {
    let (repository, name) = path;
    if !core.options.create_on_push
        && let Some(reply) = unknown_repository(core, repository)
    {
        return Ok(reply);
    }
    if name.is_empty() {
        return match head.method.as_str() {
            "POST" => begin(core, head, body, repository),
            _ => Ok(error(405, "UNSUPPORTED", "The operation is unsupported.")),
        };
    }
    if let Some(refusal) = refusal(core, head, repository, name) {
        return Ok(refusal);
    }
    Ok(match head.method.as_str() {
        "PATCH" => append(core, head, name, body.read_all()?),
        "PUT" => complete(core, head, name, body.read_all()?),
        "GET" => progress(core, name),
        "DELETE" => {
            lock(&core.store).uploads.remove(name);
            Reply::empty(204)
        }
        _ => error(405, "UNSUPPORTED", "The operation is unsupported."),
    })
}

/// A path as this registry puts it into `Location`.
pub(crate) fn location(core: &Core, path: &str) -> String {
    if core.options.quirks.absolute_locations {
        return format!("{}{path}", core.public_base());
    }
    path.to_owned()
}

fn upload_location(core: &Core, name: &str, upload: &mut Upload) -> String {
    let path = format!("/v2/{}/blobs/uploads/{name}", upload.repository);
    if !core.options.quirks.upload_state {
        return location(core, &path);
    }
    upload.renew_state();
    location(core, &format!("{path}?_state={}", upload.state))
}

/// An unknown upload, another repository's, or a `_state` that did not come back byte for byte.
fn refusal(core: &Core, head: &Head, repository: &str, name: &str) -> Option<Reply> {
    let store = lock(&core.store);
    let Some(upload) = store
        .uploads
        .get(name)
        .filter(|upload| upload.repository == repository)
    else {
        return Some(error(
            404,
            "BLOB_UPLOAD_UNKNOWN",
            "blob upload unknown to registry",
        ));
    };
    let state = head.parameter("_state").unwrap_or_default();
    (upload.state != state).then(|| error(400, "BLOB_UPLOAD_INVALID", "the state is another one"))
}

fn begin(
    core: &Core,
    head: &Head,
    body: &mut RequestBody<'_>,
    repository: &str,
) -> io::Result<Reply> {
    if core.options.quirks.blob_mounts
        && let Some(digest) = head.parameter("mount").map(decode)
    {
        let from = head.parameter("from").map(decode).unwrap_or_default();
        let mut store = lock(&core.store);
        if let Some(content) = store.blob(&from, &digest) {
            store.add_blob(repository, digest.clone(), content);
            return Ok(created(core, repository, &digest));
        }
    }
    let name = lock(&core.store).begin_upload(repository);
    if head.parameter("digest").is_some() && !core.options.quirks.single_post_begins {
        return Ok(complete(core, head, &name, body.read_all()?));
    }
    let mut store = lock(&core.store);
    let upload = store.uploads.get_mut(&name).expect("the upload just begun");
    let reply = Reply::empty(202).with("Location", upload_location(core, &name, upload));
    if core.options.quirks.patch_created {
        // ECR names no upload id (distribution#2927).
        return Ok(reply);
    }
    Ok(reply.with("Docker-Upload-UUID", name).with("Range", "0-0"))
}

fn created(core: &Core, repository: &str, digest: &str) -> Reply {
    Reply::empty(201)
        .with(
            "Location",
            location(core, &format!("/v2/{repository}/blobs/{digest}")),
        )
        .with("Docker-Content-Digest", digest)
}

fn append(core: &Core, head: &Head, name: &str, bytes: Vec<u8>) -> Reply {
    let mut store = lock(&core.store);
    let Some(upload) = store.uploads.get_mut(name) else {
        return error(
            404,
            "BLOB_UPLOAD_UNKNOWN",
            "blob upload unknown to registry",
        );
    };
    let have = upload.data.len() as u64;
    let start = head.first("content-range").map(|range| {
        let range = range.trim_start_matches("bytes ");
        range
            .split('-')
            .next()
            .and_then(|start| start.parse::<u64>().ok())
    });
    if start.is_some_and(|start| start != Some(have)) {
        return error(416, "BLOB_UPLOAD_INVALID", "out of order")
            .with("Range", format!("0-{}", have.saturating_sub(1)));
    }
    upload.first_chunk.get_or_insert(bytes.len() as u64);
    upload.data.extend_from_slice(&bytes);
    let reply = Reply::empty(if core.options.quirks.patch_created {
        201
    } else {
        202
    });
    let range = range_of(core, upload);
    let location = upload_location(core, name, upload);
    reply.with("Location", location).with("Range", range)
}

/// ECR's `Range` sticks at the first chunk, though the bytes were stored (containers-roadmap#2831).
fn range_of(core: &Core, upload: &Upload) -> String {
    let have = match upload.first_chunk {
        Some(first) if core.options.quirks.patch_created => first,
        _ => upload.data.len() as u64,
    };
    format!("0-{}", have.saturating_sub(1))
}

fn progress(core: &Core, name: &str) -> Reply {
    let mut store = lock(&core.store);
    let Some(upload) = store.uploads.get_mut(name) else {
        return error(
            404,
            "BLOB_UPLOAD_UNKNOWN",
            "blob upload unknown to registry",
        );
    };
    let range = range_of(core, upload);
    let location = upload_location(core, name, upload);
    Reply::empty(204)
        .with("Location", location)
        .with("Range", range)
}

fn complete(core: &Core, head: &Head, name: &str, last: Vec<u8>) -> Reply {
    let Some(wanted) = head.parameter("digest").map(decode) else {
        return error(400, "DIGEST_INVALID", "no digest");
    };
    let Some(mut upload) = lock(&core.store).uploads.remove(name) else {
        return error(
            404,
            "BLOB_UPLOAD_UNKNOWN",
            "blob upload unknown to registry",
        );
    };
    if upload.data.is_empty() {
        upload.data = last;
    } else {
        upload.data.extend_from_slice(&last);
    }
    if upload.data.is_empty() && core.options.quirks.refuse_empty_blobs {
        return error(
            400,
            "BLOB_UPLOAD_INVALID",
            "The upload cannot be completed because it does not have any parts",
        );
    }
    let digest = digest_of(&upload.data);
    if digest != wanted {
        return error(400, "DIGEST_INVALID", "the blob has another digest");
    }
    lock(&core.store).add_blob(&upload.repository, digest.clone(), upload.data.into());
    created(core, &upload.repository, &digest)
}
