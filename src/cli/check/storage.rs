//! The step `storage` of `check`: the hosts that layers come from. Owns: which they are, and what a
//! failure means. Must not: need a signed URL.

use std::time::{Duration, Instant};

use super::outcome::{StepResult, ok};
use crate::aws::ecr;
use crate::config::Settings;
use crate::message::Headers;
use crate::oci::{Registry, Scheme};
use crate::upstream::client::{Client, Outgoing};
use crate::upstream::{AddressRule, Stage};

/// The URLs of the hosts that `registry` redirects layers to, as far as they are known.
pub(super) fn hosts(settings: &Settings, registry: &Registry) -> Vec<String> {
    let scheme = match registry.scheme() {
        Scheme::Http => "http",
        Scheme::Https => "https",
    };
    let bucket = ecr::layer_host(registry).map(|host| format!("https://{host}"));
    // `.suffix` is no host that could be asked.
    let set = settings
        .blob_hosts
        .iter()
        .filter(|host| !host.starts_with('.'));
    let set = set.map(|host| format!("{scheme}://{host}"));
    bucket.into_iter().chain(set).collect()
}

/// Connects to a host of layers, and waits for any answer: nothing is asked that it could grant.
pub(super) fn reach(client: &Client, url: &str, limit: Duration) -> StepResult {
    let asked = Instant::now();
    let outgoing = Outgoing {
        method: "GET",
        url: &format!("{url}/"),
        headers: &Headers::new(),
        head_deadline: asked + limit,
        whole: false,
        addresses: AddressRule::Any,
    };
    let sent = client.send(outgoing);
    let status = sent
        .map_err(|fault| format!("{fault}; {}", remedy(fault.stage)))?
        .status;
    let took = asked.elapsed().as_millis();
    ok(format!(
        "{url} answers ({status}, asked for nothing) in {took} ms"
    ))
}

/// What opens the way to S3 after a failure at that stage.
pub(super) const fn remedy(stage: Stage) -> &'static str {
    match stage {
        Stage::Resolve => {
            "no layer can be pulled: let RESOLVER or /etc/resolv.conf look up S3's names, and \
             check AWS_REGION and the region in ECR"
        }
        Stage::Tls => {
            "no layer can be pulled: something on the way answers in S3's place; set AWS_CA_BUNDLE \
             to its authority, or let S3 pass"
        }
        _ => {
            "no layer can be pulled: open the firewall for this host (443), or give the subnet's \
             route table the S3 gateway endpoint (com.amazonaws.REGION.s3) with a policy that \
             allows s3:GetObject on this bucket"
        }
    }
}
