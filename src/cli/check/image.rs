//! The steps `manifest` and `layer` of `check IMAGE`: the rights on one repository. Owns:
//! naming the action that is missing. Must not: download more than a manifest and a
//! byte.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::outcome::{StepOutcome, StepResult, ok};
use super::storage;
use crate::aws::ecr;
use crate::image_name::ImageName;
use crate::message::{Headers, RequestBody};
use crate::oci::{Digest, Registry};
use crate::secret::Secret;
use crate::upstream::client::Client;
use crate::upstream::exchange::{Call, Upstream};
use crate::upstream::redirect::Redirects;
use crate::upstream::secrets::Secrets;
use crate::upstream::{AuthFault, Authorizer, Grant, Stage};

/// Largest manifest that is read, as the proxy itself has it.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// A refusal is quoted up to so many characters.
const QUOTED_CHARACTERS_MAX: usize = 300;
/// An index leads to a manifest, and no further.
const STEPS_MAX: usize = 2;
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Gives the one token that `check` has fetched.
struct FetchedToken(Option<Arc<Secrets>>);

impl Authorizer for FetchedToken {
    fn header(&self, _: &Registry, _: Instant) -> Result<Grant, AuthFault> {
        let value = self.0.clone();
        Ok(Grant {
            value,
            generation: 0,
        })
    }

    fn renew(&self, _: &Registry, _: u64, _: Instant) -> Result<Grant, AuthFault> {
        Err(AuthFault("it is fresh".to_owned()))
    }

    fn default_registry(&self, _: Instant) -> Result<Registry, AuthFault> {
        Err(AuthFault("set ECR".to_owned()))
    }
}

/// A repository that is asked, and how.
pub(super) struct Rights {
    upstream: Upstream,
    registry: Registry,
    image: ImageName,
    limit: Duration,
}

impl Rights {
    pub(super) fn new(
        client: &Arc<Client>,
        redirects: Redirects,
        (registry, token): (Registry, Option<Secret<String>>),
        image: ImageName,
        limit: Duration,
    ) -> Self {
        let token = token.map(|token| Arc::new(Secrets::new(token)));
        let token = Arc::new(FetchedToken(token));
        Self {
            upstream: Upstream::new(Arc::clone(client), token, redirects, 1, 1),
            registry,
            image,
            limit,
        }
    }

    /// Fetches the manifest; gives the digest of a layer, too, when there is one.
    pub(super) fn read_manifest(&self) -> Result<(StepOutcome, Option<Digest>), String> {
        let mut reference = self.image.reference().as_str().to_owned();
        for _ in 0..STEPS_MAX {
            let headers = Headers::from_iter([("Accept", ACCEPT)]);
            let target = format!("/v2/{}/manifests/{reference}", self.image.repository());
            let (body, _) = self.get(&target, &headers, MANIFEST_BYTES_MAX, "ecr:BatchGetImage")?;
            let document: Value = serde_json::from_slice(&body).unwrap_or_default();
            let digest_at = |path: &str| document.pointer(path)?.as_str().map(str::to_owned);
            if let Some(digest) = digest_at("/manifests/0/digest") {
                reference = digest;
                continue;
            }
            let layer = digest_at("/layers/0/digest").or_else(|| digest_at("/fsLayers/0/blobSum"));
            let layer = layer.and_then(|layer| layer.parse().ok());
            let (url, size) = (self.registry.url(), body.len());
            let detail = format!("GET {url}{target}: {size} bytes");
            return Ok((StepOutcome::Ok(detail), layer));
        }
        Err("its index leads to an index, and to no manifest".to_owned())
    }

    /// Fetches the first byte of a layer, from wherever the registry sends us.
    pub(super) fn read_layer(&self, digest: &Digest) -> StepResult {
        let headers = Headers::from_iter([("Range", "bytes=0-0")]);
        let target = format!("/v2/{}/blobs/{digest}", self.image.repository());
        let (_, redirected) = self.get(&target, &headers, 1, "ecr:GetDownloadUrlForLayer")?;
        let way = match redirected {
            true => "by the host that the registry named",
            false => "by the registry itself",
        };
        ok(format!("the first byte of {digest} was sent {way}"))
    }

    /// The beginning of the body, and whether another host than the registry sent it.
    fn get(
        &self,
        target: &str,
        headers: &Headers,
        bytes_max: u64,
        action: &str,
    ) -> Result<(Vec<u8>, bool), String> {
        let deadline = Instant::now() + self.limit;
        let call = Call {
            registry: &self.registry,
            method: "GET",
            target,
            headers,
            patience: self.limit,
            whole: false,
        };
        let mut nothing = std::io::empty();
        let mut body = RequestBody::new(&mut nothing, Some(0));
        let fetched = self.upstream.fetch(call, &mut body);
        let mut fetched = fetched.map_err(|fault| {
            let is_storage = fault.stage == Stage::Redirect || fault.to != self.registry.url();
            match is_storage {
                true => format!("{fault}; {}", storage::remedy(fault.stage)),
                false => format!("GET {target}: {fault}"),
            }
        })?;
        let body = fetched.reply.read_body(bytes_max, deadline);
        let body = body.map_err(|error| format!("GET {target} broke off: {error}"))?;
        match fetched.reply.status {
            200 | 206 => Ok((body, fetched.redirected)),
            status => Err(self.explain(status, target, &body, action)),
        }
    }

    /// Words for a refusal; a 403 names the action that the identity lacks.
    fn explain(&self, status: u16, target: &str, body: &[u8], action: &str) -> String {
        let said: String = String::from_utf8_lossy(body)
            .chars()
            .filter(|c| !c.is_control())
            .take(QUOTED_CHARACTERS_MAX)
            .collect();
        let remedy = match status {
            401 | 403 => {
                let action = named_action(&said).unwrap_or(action);
                let repository = self.image.repository();
                let arn = ecr::repository_arn(&self.registry, repository);
                let place = arn.unwrap_or_else(|| format!("the repository {repository}"));
                format!("grant {action} on {place}")
            }
            404 => "there is no such image: check its name and tag, and the registry".to_owned(),
            _ => "try again later".to_owned(),
        };
        format!("GET {target} {status}: {said}; {remedy}")
    }
}

/// The action in `… is not authorized to perform: ecr:BatchGetImage on resource: …`.
fn named_action(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("to perform: ")?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != ':' && c != '-');
    rest.get(..end.unwrap_or(rest.len()))
        .filter(|action| action.starts_with("ecr"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_action_that_is_missing_is_read_out_of_the_refusal() {
        let said =
            "denied: User: arn:x is not authorized to perform: ecr:BatchGetImage on resource";
        assert_eq!(named_action(said), Some("ecr:BatchGetImage"));
        for other in ["denied", "to perform: s3:GetObject on", "to perform: "] {
            assert_eq!(named_action(other), None);
        }
    }
}
