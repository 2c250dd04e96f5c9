//! Who we are to AWS. Owns: [`Credentials`], the [`Chain`] of sources that may have them, and the
//! temporary ones in use. Must not: keep what says no expiry; it is asked for anew at each use, so
//! that rotated keys are noticed. Locks: `kept` alone, never held while a source is asked.

mod container;
mod document;
mod env;
mod file;
mod imds;
mod kept;
mod process;
pub(super) mod profile;
mod web_identity;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use self::kept::{Kept, Standing};
use super::call::Caller;
use super::fault::{CallFault, FaultKind};
use super::sts::Sts;
use crate::calendar;
use crate::config::AwsSettings;
use crate::log;
use crate::secret::Secret;

/// What signs a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Names the key; not a secret.
    pub access_key_id: String,
    /// The secret access key.
    pub secret: Secret<String>,
    /// Goes with temporary credentials.
    pub session_token: Option<Secret<String>>,
    /// When they end; none for those that do not, or do not say.
    pub expires: Option<SystemTime>,
    /// Where they come from, for logs and errors.
    pub source: String,
}

impl Credentials {
    /// What stands in for credentials in a call that has its proof of identity in the body: it
    /// names the source, and hides the proof.
    pub(super) fn bearer(source: String, proof: Secret<String>) -> Self {
        Self {
            access_key_id: String::new(),
            secret: Secret::default(),
            session_token: Some(proof),
            expires: None,
            source,
        }
    }

    /// The same from another source, for errors.
    pub(super) fn with_source(&self, source: String) -> Self {
        Self {
            source,
            ..self.clone()
        }
    }

    /// `text` without our secrets: AWS answers a wrong signature with the request it expected,
    /// session token included.
    pub(super) fn redact(&self, text: &str) -> String {
        let secrets = [Some(&self.secret), self.session_token.as_ref()];
        secrets
            .into_iter()
            .flatten()
            .map(Secret::expose)
            .filter(|secret| !secret.is_empty())
            .fold(text.to_owned(), |text, secret| {
                text.replace(secret.as_str(), "***")
            })
    }
}

/// A place credentials may come from.
pub trait Source: Send + Sync {
    /// Fetches them; none when this source is not configured. May block for its own time-outs.
    ///
    /// # Errors
    /// When the source is configured and fails: what to mend. It does not fall through to the next
    /// source, or a process would act under an identity nobody meant.
    fn fetch(&self) -> Result<Option<Credentials>, String>;

    /// What was tried in vain before this source counted as not configured, if that is worth
    /// telling.
    fn passed_over(&self) -> Option<String> {
        None
    }

    /// The same, saying also whether the failure may pass. Sources that can tell override it; of
    /// others the failure is taken to pass, so that they are asked again soon.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    fn attempt(&self) -> Result<Option<Credentials>, SourceFault> {
        self.fetch().map_err(SourceFault::passing)
    }
}

/// Why a source that is configured has no credentials: words, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFault {
    text: String,
    kind: FaultKind,
}

impl SourceFault {
    /// Nothing changes until somebody changes something.
    pub(super) fn lasting(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            kind: FaultKind::Permanent,
        }
    }

    /// May well work the next time.
    pub(super) fn passing(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            kind: FaultKind::Transient,
        }
    }

    /// What to do.
    pub(super) const fn kind(&self) -> FaultKind {
        self.kind
    }

    /// True when somebody must mend something first.
    pub(super) const fn is_lasting(&self) -> bool {
        matches!(
            self.kind,
            FaultKind::ExpiredCredentials | FaultKind::Permanent | FaultKind::Unconfigured
        )
    }
}

impl From<Box<CallFault>> for SourceFault {
    fn from(fault: Box<CallFault>) -> Self {
        Self {
            text: fault.to_string(),
            kind: fault.kind,
        }
    }
}

impl fmt::Display for SourceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why there are no credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialsFault {
    /// A source is configured and failed.
    Broken(SourceFault),
    /// No source is configured; what was tried, or nothing.
    NotConfigured(String),
}

impl fmt::Display for CredentialsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(reason) => write!(f, "AWS credentials: {reason}"),
            Self::NotConfigured(tried) => {
                f.write_str(
                    "no AWS credentials configured: set AWS_ACCESS_KEY_ID and \
                     AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for temporary ones), or \
                     AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, or AWS_PROFILE",
                )?;
                if tried.is_empty() {
                    return Ok(());
                }
                write!(f, "; {tried}")
            }
        }
    }
}

/// The sources in the order they are asked; the first that is configured decides.
///
/// Only the token thread asks, so there is one flight at a time without a lock around it.
pub struct Chain {
    sources: Vec<Arc<dyn Source>>,
    caller: Arc<Caller>,
    sts: Arc<Sts>,
    /// Temporary credentials in use.
    kept: Mutex<Option<Kept>>,
}

impl Chain {
    /// The sources that `settings` speak of. STS is asked in the settings' region, else in
    /// `region`.
    pub(super) fn new(
        settings: &AwsSettings,
        caller: &Arc<Caller>,
        region: Option<String>,
    ) -> Self {
        let sts = Arc::new(Sts::new(caller, settings, region));
        let (api, clock) = (|| Arc::clone(caller.api()), || Arc::clone(caller.clock()));
        let environment: Arc<dyn Source> = Arc::new(env::Environment::new(settings));
        let container: Arc<dyn Source> =
            Arc::new(container::Container::new(settings, api(), clock()));
        let instance: Arc<dyn Source> = Arc::new(imds::InstanceRole::new(settings, api(), clock()));
        // Sources that a profile may name as its `credential_source`, too.
        let named = profile::NamedSources {
            environment: Arc::clone(&environment),
            container: Some(Arc::clone(&container)),
            instance_metadata: Some(Arc::clone(&instance)),
        };
        let profile = Arc::new(profile::Profile::new(settings, &sts, named));
        let sources: Vec<Arc<dyn Source>> = vec![
            Arc::new(profile::UnlessTakenBy::new(&profile, environment)),
            Arc::new(web_identity::WebIdentity::from_environment(settings, &sts)),
            profile,
            container,
            // Last: without a setting of its own it is asked whenever nothing else is configured.
            instance,
        ];
        Self::of(sources, caller, sts)
    }

    fn of(sources: Vec<Arc<dyn Source>>, caller: &Arc<Caller>, sts: Arc<Sts>) -> Self {
        Self {
            sources,
            caller: Arc::clone(caller),
            sts,
            kept: Mutex::new(None),
        }
    }

    /// STS is asked in `region` from now on, unless it has one: the settings', or an earlier one.
    pub(super) fn suggest_region(&self, region: &str) {
        self.sts.suggest_region(region);
    }

    /// Credentials that AWS should take: those in use until they are about to end, else fresh
    /// ones. When fresh ones fail to come, those in use stay until their real end.
    ///
    /// # Errors
    /// When the deciding source fails, or none is configured.
    pub fn fetch(&self) -> Result<Credentials, CredentialsFault> {
        let now = self.caller.monotonic();
        let kept = self.lock().clone();
        let standing = kept
            .as_ref()
            .map(|kept| kept.standing(self.caller.aws_now(), now));
        match (kept, standing) {
            (Some(kept), Some(Standing::Fresh)) => Ok(kept.credentials),
            (Some(kept), Some(Standing::Due)) => match self.refetch() {
                Err(fault) => {
                    log::warn(
                        "AWS credentials not refreshed, the old ones stay in use until their end",
                        &[
                            ("source", &kept.credentials.source),
                            ("expires", &calendar::format_rfc3339(kept.expires)),
                            ("error", &fault),
                        ],
                    );
                    let credentials = kept.credentials.clone();
                    *self.lock() = Some(kept.tried(now));
                    Ok(credentials)
                }
                fresh => fresh,
            },
            _ => self.refetch(),
        }
    }

    /// Fresh credentials, whatever is in use: AWS says that those have ended. They are given out
    /// even if they seem to have ended, too: our clock may be wrong, and AWS judges by its own.
    ///
    /// # Errors
    /// When the deciding source fails, or none is configured.
    pub fn refetch(&self) -> Result<Credentials, CredentialsFault> {
        for source in &self.sources {
            let found = source.attempt().map_err(CredentialsFault::Broken)?;
            if let Some(credentials) = found {
                *self.lock() = Kept::new(&credentials, self.caller.monotonic());
                return Ok(credentials);
            }
        }
        let tried = self
            .sources
            .iter()
            .filter_map(|source| source.passed_over());
        let tried: Vec<String> = tried.collect();
        Err(CredentialsFault::NotConfigured(tried.join("; ")))
    }

    /// Forgets what is in use: AWS does not know it.
    pub fn forget(&self) {
        *self.lock() = None;
    }

    /// When those in use are to be refreshed; none when there are none, or only such as do not
    /// end. Once they have ended this waits until somebody needs credentials.
    pub fn refresh_due(&self) -> Option<Instant> {
        let now = self.caller.monotonic();
        let kept = self.lock();
        kept.as_ref()?.due(self.caller.aws_now(), now)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Kept>> {
        // A whole value is put there, or none.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
