//! The sources in their order. Owns: the [`Chain`], and the temporary credentials in use. Must not:
//! keep credentials without an expiry; they are fetched anew at each use, so that rotated keys are
//! noticed.
//! Locks: `kept` alone, never held while a source is asked.

mod kept;

use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use self::kept::{LastingCredentials, Standing};
use super::super::call::Caller;
use super::super::credentials::{Credentials, Source};
use super::super::fault::{AwsFault, FaultKind};
use super::super::sts::Sts;
use super::{container, env, instance, profile, web_identity};
use crate::calendar;
use crate::config::AwsSettings;
use crate::locked::Locked as _;
use crate::log;

/// The failure when no source is configured.
const NOT_CONFIGURED: &str = "no AWS credentials configured: set AWS_ACCESS_KEY_ID and \
    AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for temporary ones), or \
    AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, or AWS_PROFILE";

/// The sources in the order they are asked; the first that is configured decides.
///
/// Only the token thread asks, so there is one flight at a time without a lock around it.
pub(in crate::aws) struct Chain {
    sources: Vec<Arc<dyn Source>>,
    caller: Arc<Caller>,
    sts: Arc<Sts>,
    /// The settings of sources that are given.
    given: Vec<&'static str>,
    /// Temporary credentials in use.
    kept: Mutex<Option<LastingCredentials>>,
}

impl Chain {
    /// The sources that `settings` speak of. STS is asked in the settings' region, else in
    /// `region`.
    pub(in crate::aws) fn new(
        settings: &AwsSettings,
        caller: &Arc<Caller>,
        region: Option<String>,
    ) -> Self {
        let sts = Arc::new(Sts::new(caller, settings, region));
        let (api, clock) = (|| Arc::clone(&caller.api), || Arc::clone(&caller.clock));
        let environment: Arc<dyn Source> = Arc::new(env::Environment::new(settings));
        let container: Arc<dyn Source> =
            Arc::new(container::Container::new(settings, api(), clock()));
        let instance: Arc<dyn Source> =
            Arc::new(instance::InstanceRole::new(settings, api(), clock()));
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
        Self {
            given: settings.given_sources(),
            ..Self::of(sources, caller, sts)
        }
    }

    fn of(sources: Vec<Arc<dyn Source>>, caller: &Arc<Caller>, sts: Arc<Sts>) -> Self {
        Self {
            sources,
            caller: Arc::clone(caller),
            sts,
            kept: Mutex::new(None),
            given: Vec::new(),
        }
    }

    /// Asks STS in `region` from now on, unless the settings or an earlier call gave another
    /// region.
    pub(in crate::aws) fn suggest_region(&self, region: &str) {
        self.sts.suggest_region(region);
    }

    /// Credentials that AWS should take: those in use until they are about to end, else fresh
    /// ones. When no fresh ones come, those in use stay until their real end.
    ///
    /// # Errors
    /// When the deciding source fails, or none is configured.
    pub(in crate::aws) fn fetch(&self) -> Result<Credentials, AwsFault> {
        let now = self.caller.clock.monotonic();
        let Some(kept) = self.kept.locked().clone() else {
            return self.refetch();
        };
        match kept.judge(self.caller.aws_now(), now) {
            Standing::Fresh => Ok(kept.credentials),
            Standing::Due => self.refetch().or_else(|fault| {
                log::warn(
                    "AWS credentials not refreshed, the old ones stay in use until their end",
                    &[
                        ("source", &kept.credentials.source),
                        ("expires", &calendar::format_rfc3339(kept.expires)),
                        ("error", &fault),
                    ],
                );
                let credentials = kept.credentials.clone();
                *self.kept.locked() = Some(kept.postpone(now));
                Ok(credentials)
            }),
            Standing::Ended => self.refetch(),
        }
    }

    /// Fetches fresh credentials, because AWS says that those in use have ended. Gives them out
    /// even if they seem to have ended, too: our clock may be wrong, and AWS judges by its own.
    ///
    /// # Errors
    /// When the deciding source fails, or none is configured.
    pub(in crate::aws) fn refetch(&self) -> Result<Credentials, AwsFault> {
        for source in &self.sources {
            let found = source.fetch().map_err(|fault| AwsFault {
                text: format!("AWS credentials: {fault}"),
                ..fault
            })?;
            if let Some(credentials) = found {
                *self.kept.locked() =
                    LastingCredentials::new(&credentials, self.caller.clock.monotonic());
                return Ok(credentials);
            }
        }
        let given = match self.given.as_slice() {
            [] => "none of them is set".to_owned(),
            given => format!("the only settings given are {}", given.join(", ")),
        };
        let mut text = format!("{NOT_CONFIGURED}; {given}");
        for absence in self
            .sources
            .iter()
            .filter_map(|source| source.explain_absence())
        {
            text.push_str("; ");
            text.push_str(&absence);
        }
        Err(AwsFault::new(text, FaultKind::Unconfigured))
    }

    /// Forgets the credentials in use: AWS does not know their key.
    pub(in crate::aws) fn forget(&self) {
        *self.kept.locked() = None;
    }

    /// When those in use are to be refreshed; none when there are none, or they have no end. Once
    /// they have ended, nothing is due until somebody needs credentials.
    pub(in crate::aws) fn refresh_due(&self) -> Option<Instant> {
        let now = self.caller.clock.monotonic();
        let kept = self.kept.locked();
        kept.as_ref()?.due(self.caller.aws_now(), now)
    }

    /// When those in use end, by AWS's clock.
    pub(in crate::aws) fn expires(&self) -> Option<SystemTime> {
        self.kept.locked().as_ref().map(|kept| kept.expires)
    }
}

#[cfg(test)]
mod tests;
