//! Static keys out of the settings. Owns: what their combinations mean. Must not: read the
//! environment; `config` did.

use super::super::credentials::{Credentials, Source};
use super::super::fault::AwsFault;
use crate::config::AwsSettings;
use crate::secret::Secret;

const ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET: &str = "AWS_SECRET_ACCESS_KEY";

/// `AWS_ACCESS_KEY_ID` and its companions.
pub(super) struct Environment {
    id: Option<String>,
    secret: Option<Secret<String>>,
    session_token: Option<Secret<String>>,
}

impl Environment {
    pub(super) fn new(settings: &AwsSettings) -> Self {
        Self {
            id: settings.access_key_id.as_deref().and_then(drop_blank),
            secret: drop_blank_secret(settings.secret_access_key.as_ref()),
            session_token: drop_blank_secret(settings.session_token.as_ref()),
        }
    }
}

impl Source for Environment {
    fn fetch(&self) -> Result<Option<Credentials>, AwsFault> {
        // The environment does not change while we run.
        let lacks =
            |set, unset| AwsFault::lasting(format!("{set} is set but {unset} is not: set both"));
        match (&self.id, &self.secret) {
            (Some(id), Some(secret)) => Ok(Some(Credentials {
                access_key_id: id.clone(),
                secret: secret.clone(),
                session_token: self.session_token.clone(),
                expires: None,
                source: "environment".into(),
            })),
            (Some(_), None) => Err(lacks(ID, SECRET)),
            (None, Some(_)) => Err(lacks(SECRET, ID)),
            // A lone session token means nothing, and the SDKs pass over it.
            (None, None) => Ok(None),
        }
    }

    fn explain_absence(&self) -> Option<String> {
        let is_alone = self.session_token.is_some() && self.id.is_none() && self.secret.is_none();
        is_alone.then(|| format!("AWS_SESSION_TOKEN is set, {ID} and {SECRET} are not"))
    }
}

/// Blank counts as unset. Files and secrets mounted as variables often end in a newline, which no
/// key contains.
fn drop_blank(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn drop_blank_secret(secret: Option<&Secret<String>>) -> Option<Secret<String>> {
    drop_blank(secret?.expose()).map(Secret::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch(
        id: Option<&str>,
        secret: Option<&str>,
        token: Option<&str>,
    ) -> Result<Option<Credentials>, String> {
        let settings = AwsSettings {
            access_key_id: id.map(Into::into),
            secret_access_key: secret.map(|text| Secret::new(text.into())),
            session_token: token.map(|text| Secret::new(text.into())),
            ..AwsSettings::default()
        };
        let found = Environment::new(&settings).fetch();
        found.map_err(|fault| fault.text)
    }

    #[test]
    fn keys_are_taken_and_trimmed() {
        let found = fetch(Some("AKID\n"), Some(" s3cret\n"), Some("token\n"))
            .unwrap()
            .unwrap();
        assert_eq!(found.access_key_id, "AKID");
        assert_eq!(found.secret.expose(), "s3cret");
        assert_eq!(found.session_token.unwrap().expose(), "token");
        assert_eq!(found.source, "environment");
        let blank_token = fetch(Some("AKID"), Some("s"), Some(" ")).unwrap().unwrap();
        assert_eq!(blank_token.session_token, None);
    }

    #[test]
    fn half_a_key_is_an_error_that_names_the_other_half() {
        let no_secret = fetch(Some("AKID"), Some(" "), None).unwrap_err();
        assert!(no_secret.contains("AWS_SECRET_ACCESS_KEY is not"));
        let no_id = fetch(None, Some("hunter2"), None).unwrap_err();
        assert!(no_id.contains("AWS_ACCESS_KEY_ID is not"));
        assert!(!no_id.contains("hunter2"));
    }

    #[test]
    fn a_session_token_alone_is_passed_over_and_mentioned() {
        let settings = AwsSettings {
            session_token: Some(Secret::new("hunter2".into())),
            ..AwsSettings::default()
        };
        let why = Environment::new(&settings).explain_absence().unwrap();
        assert!(why.starts_with("AWS_SESSION_TOKEN is set, AWS_ACCESS_KEY_ID and"));
        assert!(!why.contains("hunter2"));
        assert_eq!(
            Environment::new(&AwsSettings::default()).explain_absence(),
            None
        );
    }

    #[test]
    fn no_keys_are_no_error() {
        assert_eq!(fetch(None, None, None), Ok(None));
        assert_eq!(fetch(Some(""), Some(""), Some("token")), Ok(None));
    }
}
