//! Credentials and where they come from. Owns: the keys that sign a call, their [`Source`], and the
//! role that may be assumed with them. Must not: fetch, keep or use any of these; `sources` and
//! `call` do.

use std::time::SystemTime;

use super::fault::AwsFault;
use super::redact::Redactor;
use crate::secret::Secret;

/// The session's name unless another one is set: a constant, so that trust policies can demand it
/// (`sts:RoleSessionName`).
pub(super) const SESSION_NAME: &str = "aws-ecr-proxy";
/// The keys that sign a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    /// Names the key; not a secret.
    pub(super) access_key_id: String,
    /// The secret access key.
    pub(super) secret: Secret<String>,
    /// Goes with temporary credentials.
    pub(super) session_token: Option<Secret<String>>,
    /// When they end; none when they have no end, or do not say it.
    pub(super) expires: Option<SystemTime>,
    /// Their source, for logs and errors.
    pub(super) source: String,
}

impl Credentials {
    /// A stand-in for credentials in a call that has its proof of identity in the body: it names
    /// the source, and hides the proof.
    pub(super) fn bearer(source: String, proof: Secret<String>) -> Self {
        Self {
            access_key_id: String::new(),
            secret: Secret::default(),
            session_token: Some(proof),
            expires: None,
            source,
        }
    }

    /// The same credentials under the name of another source, for errors.
    pub(super) fn with_source(&self, source: String) -> Self {
        Self {
            source,
            ..self.clone()
        }
    }

    /// True for a temporary key without its session token, which AWS does not take (IAM user guide,
    /// "Unique identifiers").
    pub(super) fn lacks_token(&self) -> bool {
        self.access_key_id.starts_with("ASIA") && self.session_token.is_none()
    }

    /// Hides our secrets: AWS answers a wrong signature with the request it expected, session token
    /// included.
    pub(super) fn redactor(&self) -> Redactor {
        Redactor::new(
            [Some(&self.secret), self.session_token.as_ref()]
                .into_iter()
                .flatten(),
        )
    }
}

/// A place credentials may come from.
pub(super) trait Source: Send + Sync {
    /// Fetches them; none when this source is not configured. May block for its own time-outs.
    ///
    /// # Errors
    /// What to mend when the source is configured and fails. The next source is not asked then, or
    /// a process would act under an identity that nobody intended.
    fn fetch(&self) -> Result<Option<Credentials>, AwsFault>;

    /// Why this source counted as not configured, if it was tried in vain.
    fn explain_absence(&self) -> Option<String> {
        None
    }
}

/// A role to assume, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Role {
    /// Its ARN.
    pub(super) arn: String,
    /// Shown in CloudTrail and in the assumed identity's ARN.
    pub(super) session_name: String,
    /// An id that the trust policy may ask for; no secret (IAM user guide, "third party").
    pub(super) external_id: Option<String>,
    /// How long the session lasts; none: an hour.
    pub(super) duration_s: Option<u32>,
}
