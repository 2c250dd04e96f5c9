//! The steps `manifest` and `layer` of `check IMAGE`: the rights on one repository. Owns:
//! naming the action that is missing. Must not: download more than a manifest and a
//! byte.

use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::outcome::{StepResult, ok, skipped};
use super::way::{BODY_BYTES_MAX, Way, quote};
use crate::aws::ecr;
use crate::image_name::ImageName;
use crate::message::Headers;
use crate::oci::Digest;
use crate::proxy::ACCEPT;

/// Largest manifest that is read, as the proxy itself has it.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// An index leads to a manifest, and no further.
const STEPS_MAX: usize = 2;

/// A repository that is asked, and how.
pub(super) struct Rights {
    pub(super) way: Arc<Way>,
    pub(super) image: ImageName,
    /// The first layer that the manifest names, once it has been read.
    pub(super) layer: OnceLock<Digest>,
}

impl Rights {
    pub(super) fn read_manifest(&self) -> StepResult {
        if self.way.lacks_token() {
            return skipped("no token to ask with");
        }
        let mut reference = self.image.reference().as_str().to_owned();
        for _ in 0..STEPS_MAX {
            let target = format!("/v2/{}/manifests/{reference}", self.image.repository());
            let (accept, action) = (("Accept", ACCEPT), "ecr:BatchGetImage");
            let (body, _) = self.get(&target, accept, MANIFEST_BYTES_MAX, action)?;
            let document: Value = serde_json::from_slice(&body).unwrap_or_default();
            let digest_at = |path: &str| document.pointer(path)?.as_str().map(str::to_owned);
            if let Some(digest) = digest_at("/manifests/0/digest") {
                reference = digest;
                continue;
            }
            let layer = digest_at("/layers/0/digest").or_else(|| digest_at("/fsLayers/0/blobSum"));
            if let Some(layer) = layer.and_then(|layer| layer.parse().ok()) {
                let _ = self.layer.set(layer);
            }
            return ok(format!("GET {target}: {} bytes", body.len()));
        }
        Err("its index leads to an index, and to no manifest".to_owned())
    }

    /// Fetches the first byte of a layer, from wherever the registry sends us.
    pub(super) fn read_layer(&self) -> StepResult {
        let Some(digest) = self.layer.get() else {
            return skipped("there is none to try");
        };
        let target = format!("/v2/{}/blobs/{digest}", self.image.repository());
        let (range, action) = (("Range", "bytes=0-0"), "ecr:GetDownloadUrlForLayer");
        let (_, redirected) = self.get(&target, range, BODY_BYTES_MAX, action)?;
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
        header: (&str, &str),
        bytes_max: u64,
        action: &str,
    ) -> Result<(Vec<u8>, bool), String> {
        let what = format!("GET {target}");
        let headers = Headers::from_iter([header]);
        let fetched = self.way.get(target, &headers, bytes_max);
        let (fetched, body) = fetched.map_err(|fault| self.way.explain(&what, &fault))?;
        let remedy = match fetched.reply.status {
            200 | 206 => return Ok((body, fetched.redirected)),
            403 => self.name_grant(&String::from_utf8_lossy(&body), action),
            404 => "there is no such image: check its name and tag, and the registry".to_owned(),
            _ => "try again later".to_owned(),
        };
        let seen = format!("{what} {}", fetched.reply.status);
        Err(quote(&seen, &body, &remedy))
    }

    /// The action that the identity lacks: the one that a refusal names, else `action`.
    fn name_grant(&self, said: &str, action: &str) -> String {
        let repository = self.image.repository();
        let registry = self.way.registry().ok();
        let arn = registry.and_then(|registry| ecr::repository_arn(registry, repository));
        let place = arn.unwrap_or_else(|| format!("the repository {repository}"));
        format!("grant {} on {place}", named_action(said).unwrap_or(action))
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
