//! A role for a token in a file (IRSA and its like). Owns: reading the token anew each time, and
//! the retry that AWS advises. Must not: keep either token or credentials.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::credentials::{Credentials, Role, SESSION_NAME, Source};
use super::super::fault::{AwsFault, FaultKind};
use super::super::sts::Sts;
use super::file;
use crate::config::AwsSettings;
use crate::log;
use crate::secret::Secret;

/// Largest token file. STS takes tokens of up to 20 000 characters (API reference).
const TOKEN_BYTES_MAX: u64 = 20_000 + 2;

/// A role, and the file with the token that entitles us to it.
#[derive(Debug)]
pub(super) struct TokenFile {
    /// The file.
    pub(super) path: PathBuf,
    /// The variable or the key of a profile that names the file, for errors.
    pub(super) named_by: String,
    /// The source of the credentials, for logs and errors.
    pub(super) source: String,
    /// The role.
    pub(super) role: Role,
}

impl TokenFile {
    /// Fetches credentials.
    ///
    /// # Errors
    /// The fault in the file, or AWS's answer.
    pub(super) fn fetch(&self, sts: &Sts) -> Result<Credentials, AwsFault> {
        match self.exchange(sts) {
            // Rotated between reading and sending; or the issuer was out of AWS's reach for a
            // moment, when the API reference says to try again.
            Err(fault)
                if fault.kind == FaultKind::ExpiredCredentials
                    || fault.code.as_deref() == Some("IDPCommunicationError") =>
            {
                self.exchange(sts)
            }
            outcome => outcome,
        }
    }

    fn exchange(&self, sts: &Sts) -> Result<Credentials, AwsFault> {
        let token = self.read()?;
        sts.assume_role_with_web_identity(&self.source, &token, &self.role)
    }

    fn read(&self) -> Result<Secret<String>, AwsFault> {
        let fault = |why: &str| {
            AwsFault::passing(format!(
                "{}={}: {why}; mount the web identity token there",
                self.named_by,
                self.path.display()
            ))
        };
        let text = file::read(&self.path, TOKEN_BYTES_MAX).map_err(|why| fault(&why))?;
        let text = text.ok_or_else(|| fault("there is no such file"))?;
        let token = text.trim();
        if token.is_empty() {
            return Err(fault("it is empty"));
        }
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(fault("it holds other than one token"));
        }
        Ok(Secret::new(token.to_owned()))
    }
}

/// `AWS_WEB_IDENTITY_TOKEN_FILE` and its companions.
pub(super) struct WebIdentity {
    token: Option<Result<TokenFile, &'static str>>,
    /// True when a role is set and no token for it.
    is_role_alone: bool,
    sts: Arc<Sts>,
}

impl WebIdentity {
    pub(super) fn from_environment(settings: &AwsSettings, sts: &Arc<Sts>) -> Self {
        let is_role_alone =
            settings.role_arn.is_some() && settings.web_identity_token_file.is_none();
        if is_role_alone {
            log::warn(
                "AWS_ROLE_ARN is not used without AWS_WEB_IDENTITY_TOKEN_FILE; to assume a role \
                 with keys, set it as role_arn in a profile",
                &[],
            );
        }
        let token = settings.web_identity_token_file.clone().map(|path| {
            let arn = settings.role_arn.clone().ok_or(
                "AWS_WEB_IDENTITY_TOKEN_FILE is set but AWS_ROLE_ARN is not: set both, on EKS by \
                 the annotation eks.amazonaws.com/role-arn of the service account",
            )?;
            let session_name = settings.role_session_name.clone();
            Ok(TokenFile {
                path,
                named_by: "AWS_WEB_IDENTITY_TOKEN_FILE".into(),
                source: "web identity".into(),
                role: Role {
                    arn,
                    session_name: session_name.unwrap_or_else(|| SESSION_NAME.into()),
                    external_id: None,
                    duration_s: None,
                },
            })
        });
        Self {
            token,
            is_role_alone,
            sts: Arc::clone(sts),
        }
    }
}

impl Source for WebIdentity {
    fn fetch(&self) -> Result<Option<Credentials>, AwsFault> {
        match &self.token {
            None => Ok(None),
            Some(Err(why)) => Err(AwsFault::lasting(*why)),
            Some(Ok(token)) => token.fetch(&self.sts).map(Some),
        }
    }

    fn explain_absence(&self) -> Option<String> {
        let why = "AWS_ROLE_ARN is set, AWS_WEB_IDENTITY_TOKEN_FILE is not";
        self.is_role_alone.then(|| why.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::call::Caller;
    use super::super::super::fake::{FakeApi, Folder, clock, json};
    use super::*;

    const SESSION: &str = "<AccessKeyId>ASIAX</AccessKeyId><SecretAccessKey>s</SecretAccessKey>\
        <SessionToken>t</SessionToken><Expiration>2023-11-14T23:13:20Z</Expiration>";

    fn source(api: &Arc<FakeApi>, path: Option<PathBuf>, role: Option<&str>) -> WebIdentity {
        let settings = AwsSettings {
            web_identity_token_file: path,
            role_arn: role.map(Into::into),
            region: Some("eu-west-1".into()),
            ..AwsSettings::default()
        };
        let caller = Arc::new(Caller::new(api.clone(), clock()));
        let sts = Arc::new(Sts::new(&caller, &settings, None));
        WebIdentity::from_environment(&settings, &sts)
    }

    fn bodies(api: &FakeApi) -> Vec<String> {
        let calls = api.calls().into_iter();
        calls
            .map(|call| String::from_utf8(call.body).unwrap())
            .collect()
    }

    fn refusal(code: &str) -> String {
        format!("<ErrorResponse><Error><Code>{code}</Code></Error></ErrorResponse>")
    }

    const ROLE: Option<&str> = Some("arn:aws:iam::123456789012:role/puller");

    #[test]
    fn the_token_is_read_anew_for_each_fetch() {
        let (api, folder) = (FakeApi::new(&clock()), Folder::new());
        let path = folder.write("token", "one\n");
        let source = source(&api, Some(path), ROLE);
        api.reply(json(200, SESSION));
        let found = source.fetch().unwrap().unwrap();
        assert_eq!(found.access_key_id, "ASIAX");
        folder.write("token", "two");
        api.reply(json(200, SESSION));
        source.fetch().unwrap().unwrap();
        let bodies = bodies(&api);
        assert!(bodies[0].ends_with("&WebIdentityToken=one"), "{bodies:?}");
        assert!(bodies[1].ends_with("&WebIdentityToken=two"), "{bodies:?}");
        assert!(bodies[0].contains("&RoleSessionName=aws-ecr-proxy&"));
    }

    #[test]
    fn an_ended_token_and_an_issuer_out_of_reach_are_tried_once_more() {
        for code in ["ExpiredTokenException", "IDPCommunicationError"] {
            let (api, folder) = (FakeApi::new(&clock()), Folder::new());
            let source = source(&api, Some(folder.write("token", "t")), ROLE);
            api.reply(json(400, &refusal(code)));
            api.reply(json(200, SESSION));
            assert!(source.fetch().is_ok(), "{code}");
            api.reply(json(400, &refusal(code)));
            api.reply(json(400, &refusal(code)));
            let fault = source.fetch().unwrap_err();
            assert!(fault.to_string().contains(code), "{fault}");
            assert_ne!(fault.kind, FaultKind::Permanent);
            assert_eq!(api.calls().len(), 4);
        }
    }

    #[test]
    fn other_refusals_are_told_at_once() {
        for (code, kind) in [
            ("AccessDenied", FaultKind::Permanent),
            ("InvalidIdentityToken", FaultKind::Transient),
            ("IDPRejectedClaim", FaultKind::Permanent),
        ] {
            let (api, folder) = (FakeApi::new(&clock()), Folder::new());
            let source = source(&api, Some(folder.write("token", "t")), ROLE);
            api.reply(json(403, &refusal(code)));
            let fault = source.fetch().unwrap_err();
            assert_eq!(fault.kind, kind, "{fault}");
            assert_eq!(api.calls().len(), 1);
        }
    }

    #[test]
    fn what_is_missing_is_named_and_no_call_is_made() {
        let (api, folder) = (FakeApi::new(&clock()), Folder::new());
        let fault = |path: PathBuf, role| {
            let fault = source(&api, Some(path), role).fetch().unwrap_err().text;
            assert!(!fault.contains("hunter2"), "{fault}");
            fault
        };
        let token = folder.write("token", "hunter2");
        assert!(fault(token, None).contains("AWS_ROLE_ARN is not: set both"));
        let missing = fault("/nonexistent/token".into(), ROLE);
        let told = "AWS_WEB_IDENTITY_TOKEN_FILE=/nonexistent/token: there is no such file; mount";
        assert!(missing.starts_with(told), "{missing}");
        assert!(fault(folder.write("empty", " \n"), ROLE).contains("it is empty"));
        assert!(fault(folder.write("two", "hunter2 b"), ROLE).contains("other than one token"));
        let large = folder.write("large", &"a".repeat(20_003));
        assert!(fault(large, ROLE).contains("larger than 20002 bytes"));
        assert!(api.calls().is_empty());
    }

    #[test]
    fn a_role_without_a_token_is_no_source() {
        let api = FakeApi::new(&clock());
        let alone = source(&api, None, ROLE);
        assert_eq!(alone.fetch(), Ok(None));
        assert!(
            alone
                .explain_absence()
                .unwrap()
                .starts_with("AWS_ROLE_ARN is set")
        );
    }
}
