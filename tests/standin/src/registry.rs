//! The registry. Owns: authentication, routing, manifests and blobs as ECR serves them (or as the
//! specification says, by [`crate::Quirks`]). Must not: touch a socket.

use std::io;

use serde_json::{Value, json};

use crate::content::digest;
use crate::core::{Core, TokenState, lock};
use crate::http::{Head, Reply, RequestBody};
use crate::server::redirect;
use crate::{Fault, Server, image, listing, s3, uploads};

/// What a token is good for, in ECR's own words (aws.md §3).
const EXPIRED: &str = "Your authorization token has expired. Reauthenticate and try again.";
const REALM: &str = "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com/";

pub(crate) fn answer(
    core: &Core,
    head: &Head,
    body: &mut RequestBody<'_>,
    fault: Option<&Fault>,
) -> io::Result<Reply> {
    if let Some(refusal) = refusal(core, head) {
        return Ok(refusal);
    }
    let reply = route(core, head, body, fault)?;
    Ok(reply.with("Docker-Distribution-Api-Version", "registry/2.0"))
}

fn refusal(core: &Core, head: &Head) -> Option<Reply> {
    if !core.options.demand_token {
        return None;
    }
    let scheme = if core.options.public {
        "Bearer "
    } else {
        "Basic "
    };
    let Some(token) = head
        .first("authorization")
        .and_then(|value| value.strip_prefix(scheme))
    else {
        return Some(unauthorized());
    };
    match lock(&core.tokens).state(token) {
        TokenState::Good => None,
        TokenState::Unknown => Some(unauthorized()),
        TokenState::Expired if core.options.public => Some(public_expired()),
        TokenState::Expired => Some(expired(core)),
    }
}

/// ECR's 401: plain text and a challenge that names ECR.
pub(crate) fn unauthorized() -> Reply {
    let challenge = format!("Basic realm=\"{REALM}\",service=\"ecr.amazonaws.com\"");
    Reply::new(401, b"Not Authorized\n".as_slice())
        .with("Docker-Distribution-Api-Version", "registry/2.0")
        .with("Sizes", "")
        .with("Www-Authenticate", challenge)
        .with("Content-Type", "text/plain; charset=utf-8")
}

/// ECR's 403 for an expired token: no challenge.
pub(crate) fn expired(core: &Core) -> Reply {
    if core.options.quirks.json_denied {
        return error(403, "DENIED", EXPIRED);
    }
    Reply::new(403, format!("denied: {EXPIRED}").into_bytes())
        .with("Content-Type", "text/plain; charset=utf-8")
}

/// ECR Public's 400 for an expired token (containers-roadmap#2835): no challenge either.
pub(crate) fn public_expired() -> Reply {
    error(400, "DENIED", EXPIRED)
}

/// An error document.
pub(crate) fn error(status: u16, code: &str, message: &str) -> Reply {
    let body = json!({"errors": [{"code": code, "message": message}]});
    Reply::new(status, body.to_string().into_bytes()).with("Content-Type", "application/json")
}

fn route(
    core: &Core,
    head: &Head,
    body: &mut RequestBody<'_>,
    fault: Option<&Fault>,
) -> io::Result<Reply> {
    let method = head.method.as_str();
    let Some(path) = head.path().strip_prefix("/v2/") else {
        return Ok(error(404, "NAME_UNKNOWN", "not a registry path"));
    };
    let read = matches!(method, "GET" | "HEAD");
    Ok(match path {
        "" if read => json_reply(200, &json!({})),
        "_catalog" if read => listing::catalog(core, head),
        path => {
            if let Some((name, rest)) = path.rsplit_once("/blobs/uploads") {
                return uploads::answer(core, head, body, (name, rest.trim_start_matches('/')));
            }
            if let Some(name) = path.strip_suffix("/tags/list") {
                listing::tags(core, head, name)
            } else if let Some((name, reference)) = path.rsplit_once("/manifests/") {
                match method {
                    "GET" | "HEAD" => get_manifest(core, head, name, &decode(reference)),
                    "PUT" => put_manifest(core, head, name, &decode(reference), body.read_all()?),
                    "DELETE" => delete_manifest(core, name, &decode(reference)),
                    _ => unsupported(),
                }
            } else if let Some((name, digest)) = path.rsplit_once("/blobs/") {
                match method {
                    "GET" | "HEAD" => blob(core, head, name, &decode(digest), fault),
                    "DELETE" if core.options.quirks.blob_deletion => {
                        delete_blob(core, name, &decode(digest))
                    }
                    _ => unsupported(),
                }
            } else if let Some((name, digest)) = path.rsplit_once("/referrers/") {
                referrers(core, head, name, &decode(digest))
            } else {
                unsupported()
            }
        }
    })
}

fn unsupported() -> Reply {
    error(405, "UNSUPPORTED", "The operation is unsupported.")
}

fn json_reply(status: u16, body: &Value) -> Reply {
    Reply::new(status, body.to_string().into_bytes()).with("Content-Type", "application/json")
}

/// Percent-decoding, for digests (`sha256%3A…`) and repository names in queries.
pub(crate) fn decode(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..2).map(|hex| u8::from_str_radix(hex, 16)) {
            Some(Ok(byte)) => {
                bytes.push(byte);
                bytes.extend_from_slice(&part.as_bytes()[2..]);
            }
            _ => {
                bytes.push(b'%');
                bytes.extend_from_slice(part.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The 404 of a repository that does not exist, if it does not.
pub(crate) fn unknown_repository(core: &Core, name: &str) -> Option<Reply> {
    let known = lock(&core.store).repositories.contains_key(name);
    let message = format!(
        "The repository with name '{name}' does not exist in the registry with id '123456789012'"
    );
    (!known).then(|| error(404, "NAME_UNKNOWN", &message))
}

fn get_manifest(core: &Core, head: &Head, name: &str, reference: &str) -> Reply {
    if let Some(reply) = unknown_repository(core, name) {
        return reply;
    }
    let found = lock(&core.store).manifest(name, reference);
    let Some((digest, manifest)) = found else {
        return error(404, "MANIFEST_UNKNOWN", "Requested image not found");
    };
    if !accepts(head, &manifest.media_type) {
        return error(
            404,
            "MANIFEST_UNKNOWN",
            "No manifest of an accepted media type",
        );
    }
    let reply = Reply::new(200, manifest.bytes).with("Content-Type", manifest.media_type);
    if head.method == "GET" && core.options.quirks.manifest_get_without_digest {
        return reply;
    }
    reply.with("Docker-Content-Digest", digest)
}

/// True when some `Accept` line names the type. No such line, or a wildcard, accepts all.
fn accepts(head: &Head, media_type: &str) -> bool {
    let mut none = true;
    for (name, value) in &head.headers {
        if !name.eq_ignore_ascii_case("accept") {
            continue;
        }
        none = false;
        let mut types = value
            .split(',')
            .map(|part| part.split(';').next().unwrap_or(part).trim());
        if types.any(|accepted| ["*/*", "application/*", media_type].contains(&accepted)) {
            return true;
        }
    }
    none
}

fn put_manifest(core: &Core, head: &Head, name: &str, reference: &str, bytes: Vec<u8>) -> Reply {
    if !core.options.create_on_push
        && let Some(reply) = unknown_repository(core, name)
    {
        return reply;
    }
    let Ok(manifest) = serde_json::from_slice::<Value>(&bytes) else {
        return error(400, "MANIFEST_INVALID", "not JSON");
    };
    if reference.contains(':') && reference != digest(&bytes) {
        return error(400, "DIGEST_INVALID", "the manifest has another digest");
    }
    let mut store = lock(&core.store);
    if let Some(digest) = store.missing(name, &manifest) {
        return error(404, "MANIFEST_BLOB_UNKNOWN", &digest);
    }
    let media_type = head.first("content-type").unwrap_or_default();
    let digest = store.add_manifest(name, reference, media_type, bytes);
    let reply = match core.options.quirks.manifest_put_without_digest {
        true => Reply::empty(201),
        false => Reply::empty(201).with("Docker-Content-Digest", &digest),
    };
    let reply = match manifest["subject"]["digest"].as_str() {
        Some(subject) => reply.with("OCI-Subject", subject),
        None => reply,
    };
    if core.options.quirks.manifest_put_without_location {
        return reply;
    }
    reply.with(
        "Location",
        uploads::location(core, &format!("/v2/{name}/manifests/{digest}")),
    )
}

fn delete_manifest(core: &Core, name: &str, reference: &str) -> Reply {
    let mut store = lock(&core.store);
    let Some((digest, _)) = store.manifest(name, reference) else {
        return error(404, "MANIFEST_UNKNOWN", "Requested image not found");
    };
    let repository = store.repository(name);
    if reference.contains(':') {
        repository.manifests.remove(&digest);
        repository.tags.retain(|(_, tagged)| *tagged != digest);
    } else {
        repository.tags.retain(|(tag, _)| tag != reference);
    }
    Reply::empty(202)
}

fn delete_blob(core: &Core, name: &str, digest: &str) -> Reply {
    let mut store = lock(&core.store);
    match store.repository(name).blobs.remove(digest) {
        true => Reply::empty(202),
        false => error(404, "BLOB_UNKNOWN", "blob unknown to registry"),
    }
}

fn blob(core: &Core, head: &Head, name: &str, digest: &str, fault: Option<&Fault>) -> Reply {
    if let Some(reply) = unknown_repository(core, name) {
        return reply;
    }
    let Some(content) = lock(&core.store).blob(name, digest) else {
        return error(404, "BLOB_UNKNOWN", "blob unknown to registry");
    };
    if head.method == "GET" && core.options.quirks.blob_redirects {
        let expired = matches!(fault, Some(Fault::PresignExpired));
        let host = core.authority(Server::S3);
        return redirect(s3::presign(core, &host, digest, expired));
    }
    let range = head.first("range").filter(|_| head.method == "GET");
    Reply::of(content, range)
        .with("Content-Type", "application/octet-stream")
        .with("Docker-Content-Digest", digest)
}

fn referrers(core: &Core, head: &Head, name: &str, subject: &str) -> Reply {
    match core.options.quirks.no_referrers {
        Some(404) => {
            let text = b"404 page not found\n".as_slice();
            return Reply::new(404, text).with("Content-Type", "text/plain; charset=utf-8");
        }
        Some(status) => return error(status, "UNSUPPORTED", "The operation is unsupported."),
        None => {}
    }
    if let Some(reply) = unknown_repository(core, name) {
        return reply;
    }
    let wanted = head.parameter("artifactType").map(decode);
    let found = attached(core, name, subject, wanted.as_deref());
    let page = core.options.quirks.referrers_page.unwrap_or(usize::MAX);
    let start = head.parameter("from").and_then(|from| from.parse().ok());
    let start = start.unwrap_or(0_usize).min(found.len());
    let end = start.saturating_add(page).min(found.len());
    let media_type = image::INDEX;
    let index = json!({"schemaVersion": 2, "mediaType": media_type,
        "manifests": &found[start..end]});
    let mut reply = Reply::new(200, index.to_string().into_bytes());
    if end < found.len() {
        let kind = head.parameter("artifactType");
        let kind = kind.map_or_else(String::new, |kind| format!("artifactType={kind}&"));
        let base = core.public_base();
        let next = format!("<{base}{}?{kind}from={end}>; rel=\"next\"", head.path());
        reply = reply.with("Link", next);
    }
    let reply = reply.with("Content-Type", media_type);
    match wanted {
        Some(_) => reply.with("OCI-Filters-Applied", "artifactType"),
        None => reply,
    }
}

/// Descriptors of what refers to `subject`, of one type or all.
fn attached(core: &Core, name: &str, subject: &str, wanted: Option<&str>) -> Vec<Value> {
    let store = lock(&core.store);
    let repository = store.repositories.get(name);
    let manifests = repository.into_iter().flat_map(|found| &found.manifests);
    let described = manifests.filter_map(|(own_digest, manifest)| {
        let value: Value = serde_json::from_slice(&manifest.bytes).ok()?;
        let own_type = value["artifactType"].as_str();
        let own_type = own_type.or_else(|| value["config"]["mediaType"].as_str());
        let fits = wanted.is_none() || wanted == own_type;
        (value["subject"]["digest"] == subject && fits).then(|| {
            json!({
                "mediaType": manifest.media_type,
                "digest": own_digest,
                "size": manifest.bytes.len(),
                "artifactType": own_type,
                "annotations": value["annotations"],
            })
        })
    });
    described.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_codes_are_decoded_and_others_kept() {
        assert_eq!(decode("sha256%3Aab%2f"), "sha256:ab/");
        assert_eq!(decode("a%zz%2"), "a%zz%2");
        assert_eq!(decode("plain"), "plain");
    }
}
