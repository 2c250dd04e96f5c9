//! Credentials of a container: ECS tasks, and EKS Pod Identity. Owns: which endpoint may be asked,
//! and with which token. Must not: send that token, or take credentials, in plain text beyond this
//! host and AWS's link-local addresses.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::super::credentials::{Credentials, Source};
use super::super::fault::{AwsFault, Refusal};
use super::super::redact::Redactor;
use super::document::{self, Unusable};
use super::file;
use crate::clock::Clock;
use crate::config::{
    AwsSettings, ContainerSettings, container_uri, is_container_address, is_field_value,
};
use crate::message::Headers;
use crate::oci;
use crate::secret::Secret;
use crate::upstream::{Api, ApiCall, ApiReply, Stage, UpstreamError};

/// The host of ECS for `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`.
const ECS: &str = "169.254.170.2";
/// Longest time to connect to what is on this very host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for one attempt: the agent may have to ask AWS first (5 s in the SDKs).
const CALL_TIMEOUT: Duration = Duration::from_secs(7);
/// Attempts in all (botocore).
const ATTEMPTS: u32 = 3;
/// Pause between two of them (botocore).
const PAUSE: Duration = Duration::from_secs(1);
/// No further attempt begins after this: the thread that waits here renews every token, and clients
/// wait 30 s at the most.
const ATTEMPTS_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest token: a field that servers take; a projected service account token has 1 to 2 KB.
const TOKEN_BYTES_MAX: u64 = 16 * 1024;
const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";

/// The container we run in.
pub(super) struct Container {
    settings: ContainerSettings,
    api: Arc<dyn Api>,
    clock: Arc<dyn Clock>,
    pause: fn(Duration),
}

/// An endpoint that may be asked. Its URL leads nowhere else.
#[derive(Debug, PartialEq, Eq)]
struct Endpoint {
    /// With an address in place of a name that was looked up.
    url: String,
    /// The value of `Host`.
    host: String,
}

/// A failed attempt.
struct FailedAttempt {
    fault: AwsFault,
    /// True when another attempt may succeed at once.
    is_worth_retry: bool,
    /// True when nothing listens at the address.
    is_absent: bool,
}

impl Container {
    pub(super) fn new(settings: &AwsSettings, api: Arc<dyn Api>, clock: Arc<dyn Clock>) -> Self {
        Self {
            settings: settings.container.clone(),
            api,
            clock,
            pause: std::thread::sleep,
        }
    }

    /// The whole URI, and the setting it comes from; none when neither is set.
    fn uri(&self) -> Option<(String, &'static str)> {
        let relative = self.settings.relative_uri.as_ref();
        let relative = relative.map(|path| {
            (
                format!("http://{ECS}{path}"),
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            )
        });
        let full = self.settings.full_uri.as_ref();
        relative.or_else(|| Some((full?.clone(), "AWS_CONTAINER_CREDENTIALS_FULL_URI")))
    }

    /// Tries a few times. Blocks for [`ATTEMPTS_TIME_MAX`] and one more attempt at the longest.
    fn retrieve(&self, uri: &str, setting: &str) -> Result<Credentials, AwsFault> {
        let begun = self.clock.monotonic();
        let mut attempt = 1;
        loop {
            let failure = match self.once(uri, setting) {
                Ok(credentials) => return Ok(credentials),
                Err(failure) => failure,
            };
            let spent = self.clock.monotonic().saturating_duration_since(begun);
            if !failure.is_worth_retry || attempt >= ATTEMPTS || spent >= ATTEMPTS_TIME_MAX {
                return Err(failure.fault);
            }
            (self.pause)(PAUSE);
            attempt += 1;
        }
    }

    fn once(&self, uri: &str, setting: &str) -> Result<Credentials, FailedAttempt> {
        // Read each time: kubelet replaces the file long before the token in it ends.
        let token = self.token().map_err(FailedAttempt::passing)?;
        let mut failure = None;
        for endpoint in self.endpoints(uri, setting)? {
            match self.ask(&endpoint, token.as_ref(), setting) {
                // A name may have an address of each family, and a server listen to one.
                Err(absent) if absent.is_absent => failure = Some(absent),
                outcome => return outcome,
            }
        }
        Err(failure.unwrap_or_else(|| FailedAttempt::lasting(format!("{setting} leads nowhere"))))
    }

    /// The endpoints that `uri` leads to, one for each address.
    fn endpoints(&self, uri: &str, setting: &str) -> Result<Vec<Endpoint>, FailedAttempt> {
        let lasting = |why: &str| FailedAttempt::lasting(format!("{setting}: {why}"));
        let (scheme, authority, path) = container_uri(uri).map_err(|why| lasting(&why))?;
        let endpoint = |address: &str| Endpoint {
            url: format!("{scheme}://{address}{path}"),
            host: authority.to_owned(),
        };
        let (name, port) = oci::split_port(authority);
        let literal = name.starts_with('[') || name.parse::<IpAddr>().is_ok();
        if scheme == "https" || literal {
            // A certificate, or the check of the setting, vouches for it.
            return Ok(vec![endpoint(authority)]);
        }
        let deadline = self.clock.monotonic() + CONNECT_TIMEOUT;
        let found = self.api.addresses(name, deadline);
        let found = found.map_err(|fault| FailedAttempt::no_reply(&fault, setting))?;
        if let Some(foreign) = found
            .iter()
            .find(|address| !is_container_address(**address))
        {
            return Err(lasting(&format!(
                "{name} leads to {foreign}, which is neither loopback nor an address of ECS or \
                 EKS; use https"
            )));
        }
        // The address that was checked is dialled, not the name: it may lead elsewhere by then.
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        let dialled = found.iter().map(|address| match address {
            IpAddr::V4(v4) => endpoint(&format!("{v4}{port}")),
            IpAddr::V6(v6) => endpoint(&format!("[{v6}]{port}")),
        });
        Ok(dialled.collect())
    }

    fn ask(
        &self,
        endpoint: &Endpoint,
        token: Option<&Secret<String>>,
        setting: &str,
    ) -> Result<Credentials, FailedAttempt> {
        let mut headers = Headers::from_iter([
            ("Host", endpoint.host.as_str()),
            ("Accept", "application/json"),
        ]);
        if let Some(token) = token {
            headers.set("Authorization", token.expose());
        }
        let call = ApiCall {
            method: "GET",
            url: endpoint.url.clone(),
            headers,
            body: Vec::new(),
            connect_timeout: CONNECT_TIMEOUT,
            timeout: CALL_TIMEOUT,
            // A proxy would be asked for its own credentials, with our token.
            through_proxy: false,
        };
        let reply = self.api.call(&call);
        let reply = reply.map_err(|fault| FailedAttempt::no_reply(&fault, setting))?;
        if reply.status != 200 {
            return Err(self.explain_refusal(&reply, token, setting));
        }
        let source = format!("container credentials ({setting})");
        document::read(&reply.body, source).map_err(|why| match why {
            Unusable::Odd(reason) => FailedAttempt::passing(format!(
                "container credentials: the reply {reason}; check {setting}"
            )),
            Unusable::Refused(code, message) => FailedAttempt::lasting(format!(
                "container credentials: {code}: {message}; check the role"
            )),
        })
    }

    fn explain_refusal(
        &self,
        reply: &ApiReply,
        token: Option<&Secret<String>>,
        setting: &str,
    ) -> FailedAttempt {
        let refusal = Refusal::read(reply, Redactor::new(token));
        let status = reply.status;
        let code = refusal
            .code
            .map_or_else(String::new, |code| format!(" {code}"));
        let message = refusal.message;
        let remedy = match status {
            401 | 403 if self.settings.authorization_token_file.is_some() => {
                format!("check {TOKEN_FILE} and the role's trust policy")
            }
            401 | 403 if token.is_some() => format!("check {TOKEN} and the role's trust policy"),
            401 | 403 => format!("set {TOKEN_FILE} or {TOKEN}"),
            _ => format!("check {setting} and the task's or pod's role"),
        };
        let text = format!("container credentials {status}{code}: {message}; {remedy}");
        match status {
            429 | 500.. => FailedAttempt {
                is_worth_retry: true,
                ..FailedAttempt::passing(text)
            },
            _ => FailedAttempt::lasting(text),
        }
    }

    /// The value of `Authorization`, if one is to be sent.
    fn token(&self) -> Result<Option<Secret<String>>, String> {
        let Some(path) = &self.settings.authorization_token_file else {
            return Ok(self.settings.authorization_token.clone());
        };
        let fault = |why: &str| format!("{TOKEN_FILE}={}: {why}", path.display());
        let text = file::read(path, TOKEN_BYTES_MAX).map_err(|why| fault(&why))?;
        let text = Secret::new(text.ok_or_else(|| fault("there is no such file"))?);
        let token = text.expose().trim_end_matches(['\r', '\n']);
        if token.is_empty() {
            return Err(fault("it is empty"));
        }
        if !is_field_value(token) {
            return Err(fault(
                "it holds line breaks or other characters that fit no header field",
            ));
        }
        Ok(Some(Secret::new(token.to_owned())))
    }
}

impl Source for Container {
    fn fetch(&self) -> Result<Option<Credentials>, AwsFault> {
        let Some((uri, setting)) = self.uri() else {
            return Ok(None);
        };
        self.retrieve(&uri, setting).map(Some)
    }
}

impl FailedAttempt {
    /// A failure that stays until somebody mends it.
    fn lasting(text: String) -> Self {
        Self {
            fault: AwsFault::lasting(text),
            is_worth_retry: false,
            is_absent: false,
        }
    }

    /// A failure after which another attempt is worth it soon, but not at once.
    fn passing(text: String) -> Self {
        Self {
            fault: AwsFault::passing(text),
            is_worth_retry: false,
            is_absent: false,
        }
    }

    fn no_reply(fault: &UpstreamError, setting: &str) -> Self {
        let text = format!("container credentials: {fault}; check {setting}");
        Self {
            is_worth_retry: true,
            is_absent: fault.stage == Stage::Connect,
            ..Self::passing(text)
        }
    }
}

#[cfg(test)]
mod tests;
