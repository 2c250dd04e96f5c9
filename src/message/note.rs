//! Notes for the log about a reply. Owns: [`LogNote`]. Must not: write a line.

use std::sync::Arc;

use crate::metrics::CacheOutcome;
use crate::oci::{Digest, Registry, Repository};
use crate::transfers::Running;

/// Notes on how a reply came about, for the request's log line.
#[derive(Debug, Clone, Default)]
pub struct LogNote {
    /// The cache's part; none when it was not asked.
    pub cache: Option<CacheOutcome>,
    /// Upstream's status; none when upstream did not answer, or was not asked.
    pub upstream_status: Option<u16>,
    /// The stage at which upstream failed.
    pub upstream_fault: Option<&'static str>,
    /// The user that has logged in.
    pub login: Option<String>,
    /// The registry that was chosen.
    pub registry: Option<Registry>,
    /// The repository in the path.
    pub repository: Option<Repository>,
    /// The tag or digest in the path of a manifest.
    pub reference: Option<String>,
    /// The digest in the path, or that of the manifest that was found.
    pub digest: Option<Digest>,
    /// What went wrong, for the person on call.
    pub error: Option<String>,
    /// The listed transfer of the body, which counts what the client has got.
    pub transfer: Option<Arc<Running>>,
}
