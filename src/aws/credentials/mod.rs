//! Who we are to AWS. Owns: [`Credentials`] and the [`Chain`] of sources that may have them. Must
//! not: keep credentials; the caller asks anew for each use, so that rotated ones are noticed.

mod container;
mod document;
mod env;
mod imds;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::clock::Clock;
use crate::config::AwsSettings;
use crate::log::Secret;
use crate::upstream::Api;

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
}

/// Why there are no credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialsFault {
    /// A source is configured and failed.
    Broken(String),
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
                     AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for temporary ones)",
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
pub struct Chain(Vec<Box<dyn Source>>);

impl Chain {
    /// The sources that `settings` speak of.
    pub fn new(settings: &AwsSettings, api: &Arc<dyn Api>, clock: &Arc<dyn Clock>) -> Self {
        let (container_api, container_clock) = (Arc::clone(api), Arc::clone(clock));
        let (imds_api, imds_clock) = (Arc::clone(api), Arc::clone(clock));
        Self(vec![
            Box::new(env::Environment::new(settings)),
            Box::new(container::Container::new(
                settings,
                container_api,
                container_clock,
            )),
            // Last: without a setting of its own it is asked whenever nothing else is configured.
            Box::new(imds::InstanceRole::new(settings, imds_api, imds_clock)),
        ])
    }

    /// Fetches credentials.
    ///
    /// # Errors
    /// When the deciding source fails, or none is configured.
    pub fn fetch(&self) -> Result<Credentials, CredentialsFault> {
        for source in &self.0 {
            if let Some(credentials) = source.fetch().map_err(CredentialsFault::Broken)? {
                return Ok(credentials);
            }
        }
        let tried = self.0.iter().filter_map(|source| source.passed_over());
        let tried: Vec<String> = tried.collect();
        Err(CredentialsFault::NotConfigured(tried.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Result<Option<&'static str>, &'static str>);

    impl Source for Fixed {
        fn fetch(&self) -> Result<Option<Credentials>, String> {
            let credentials = |id: &str| Credentials {
                access_key_id: id.into(),
                secret: Secret::new("hunter2".into()),
                session_token: Some(Secret::new("token+/=".into())),
                expires: None,
                source: "test".into(),
            };
            self.0
                .map(|id| id.map(credentials))
                .map_err(ToOwned::to_owned)
        }
    }

    fn chain(sources: [Fixed; 3]) -> Result<String, CredentialsFault> {
        let boxed = sources.map(|source| Box::new(source) as Box<dyn Source>);
        Chain(boxed.into()).fetch().map(|found| found.access_key_id)
    }

    #[test]
    fn the_first_configured_source_decides_even_by_failing() {
        let found = chain([Fixed(Ok(None)), Fixed(Ok(Some("b"))), Fixed(Err("late"))]);
        assert_eq!(found, Ok("b".into()));
        let failed = chain([Fixed(Ok(None)), Fixed(Err("broken")), Fixed(Ok(Some("c")))]);
        assert_eq!(failed, Err(CredentialsFault::Broken("broken".into())));
        let none = chain([Fixed(Ok(None)), Fixed(Ok(None)), Fixed(Ok(None))]);
        assert_eq!(none, Err(CredentialsFault::NotConfigured(String::new())));
    }

    #[test]
    fn secrets_are_cut_out_of_texts_and_debug_prints() {
        let credentials = Fixed(Ok(Some("AKID"))).fetch().unwrap().unwrap();
        let text = credentials.redact("key hunter2, x-amz-security-token:token+/= for AKID");
        assert_eq!(text, "key ***, x-amz-security-token:*** for AKID");
        let debug = format!("{credentials:?}");
        assert!(!debug.contains("hunter2") && !debug.contains("token+"));
    }
}
