//! Failures on the AWS side. Owns: reading the error replies of AWS's APIs in either format,
//! sorting failures by what to do next, and their text. Must not: retry or wait; `token` does.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::redact::Redactor;
use super::xml;
use crate::upstream::ApiReply;

/// Longest message of AWS's that is passed on, in characters: enough for an ARN or two.
const MESSAGE_CHARS_MAX: usize = 300;

/// Codes for a key that AWS does not know.
const UNKNOWN_KEY: [&str; 2] = ["InvalidClientTokenId", "UnrecognizedClientException"];

/// Kinds of failures, by what is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultKind {
    /// Our clock is off, and the reply did not say by how much.
    ClockSkew,
    /// The credentials have ended: fetch new ones.
    ExpiredCredentials,
    /// It stays until somebody changes something.
    Permanent,
    /// Too much at once.
    Throttled {
        /// How long AWS wants us to wait, if it said so.
        retry_after: Option<Duration>,
    },
    /// The next attempt may well succeed.
    Transient,
    /// No credentials or no region are set.
    Unconfigured,
}

/// A failure in words, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsFault {
    /// The failure and its remedy, without secrets.
    pub text: String,
    /// Its kind.
    pub(super) kind: FaultKind,
    /// AWS's error code, if it answered with one.
    pub(super) code: Option<String>,
}

impl AwsFault {
    pub(super) fn new(text: impl Into<String>, kind: FaultKind) -> Self {
        Self {
            text: text.into(),
            kind,
            code: None,
        }
    }

    /// A failure that stays until somebody changes something.
    pub(super) fn lasting(text: impl Into<String>) -> Self {
        Self::new(text, FaultKind::Permanent)
    }

    /// A failure after which the next attempt may well succeed.
    pub(super) fn passing(text: impl Into<String>) -> Self {
        Self::new(text, FaultKind::Transient)
    }

    /// True when somebody must mend something first.
    pub const fn is_lasting(&self) -> bool {
        matches!(
            self.kind,
            FaultKind::ExpiredCredentials | FaultKind::Permanent | FaultKind::Unconfigured
        )
    }

    /// True for codes with which AWS answers a signature that is too old or too new. AccessDenied
    /// is among them for some services (aws-runtime, `service_clock_skew.rs`).
    pub(super) fn may_be_skew(&self) -> bool {
        matches!(
            self.code.as_deref(),
            Some(
                "AccessDeniedException"
                    | "AuthFailure"
                    | "InvalidSignatureException"
                    | "RequestTimeTooSkewed"
                    | "SignatureDoesNotMatch"
            )
        )
    }

    /// True when AWS does not know the key, or does not any more: another one must be fetched.
    pub(super) fn rejects_key(&self) -> bool {
        matches!(
            self.code.as_deref(),
            Some(
                "ExpiredToken"
                    | "ExpiredTokenException"
                    | "InvalidClientTokenId"
                    | "UnrecognizedClientException"
            )
        )
    }
}

impl fmt::Display for AwsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A failed call, as it is put into words.
#[derive(Debug, Clone)]
pub(super) struct CallFault<'a> {
    /// The API's operation.
    pub(super) call: &'static str,
    /// The region signed for.
    pub(super) region: &'a str,
    /// The source of the credentials.
    pub(super) source: &'a str,
    /// The IAM action that the call needs, if any.
    pub(super) permission: Option<&'static str>,
    /// True for a temporary key without its session token.
    pub(super) lacks_token: bool,
    /// The reply's status; none without a reply.
    pub(super) status: Option<u16>,
    /// AWS's words, or our own.
    pub(super) refusal: Refusal,
}

impl From<CallFault<'_>> for AwsFault {
    fn from(fault: CallFault<'_>) -> Self {
        Self {
            text: fault.to_string(),
            kind: fault.refusal.kind,
            code: fault.refusal.code,
        }
    }
}

impl CallFault<'_> {
    /// The remedy: a right, a setting, or a wait. Only an odd reply has none, since its message
    /// already says what to look at.
    fn remedy(&self) -> Option<String> {
        if self.refusal.kind == FaultKind::ClockSkew {
            return Some("set this machine's clock".into());
        }
        let code = self.refusal.code.as_deref().unwrap_or_default();
        if self.call == "AssumeRoleWithWebIdentity"
            && let Some(remedy) = web_identity_remedy(code)
        {
            return Some(remedy.into());
        }
        if let "AccessDenied" | "AccessDeniedException" = code {
            return Some(match self.permission {
                Some(action) => format!("grant {action}"),
                None => format!("see that no policy denies {}", self.call),
            });
        }
        if self.lacks_token && UNKNOWN_KEY.contains(&code) {
            let remedy = "the key id begins with ASIA, so it is a temporary one: set its session \
                          token (AWS_SESSION_TOKEN, aws_session_token), too";
            return Some(remedy.into());
        }
        // AWS: "Credential should be scoped to a valid region."
        if self.refusal.message.contains("should be scoped to") {
            return Some(
                "check AWS_REGION: another region was called than the one signed for".into(),
            );
        }
        code_remedy(code)
            .or_else(|| self.remedy_by_kind())
            .map(Into::into)
    }

    const fn remedy_by_kind(&self) -> Option<&'static str> {
        match (self.refusal.kind, self.status) {
            (FaultKind::Throttled { .. }, _) => {
                Some("this account and region make too many calls; it is tried again later")
            }
            (FaultKind::Transient, None) => {
                Some("check network, DNS, HTTPS_PROXY and AWS_CA_BUNDLE")
            }
            (FaultKind::Transient, Some(200)) => None,
            (FaultKind::Transient, Some(_)) => Some("AWS's own failure; it is tried again"),
            (FaultKind::Permanent, Some(_)) if self.refusal.code.is_none() => {
                Some("is the endpoint an AWS API? check AWS_ENDPOINT_URL and the outbound proxy")
            }
            (FaultKind::Permanent, Some(_)) => {
                Some("see the errors of this call in AWS's API reference")
            }
            _ => None,
        }
    }
}

fn code_remedy(code: &str) -> Option<&'static str> {
    Some(match code {
        "ExpiredToken" | "ExpiredTokenException" => "renew the temporary credentials",
        "IncompleteSignature"
        | "IncompleteSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException" => {
            "something changes the request on its way; check the outbound proxy and \
             AWS_ENDPOINT_URL"
        }
        "InvalidClientTokenId" | "UnrecognizedClientException" => {
            "check the access key id, the session token and whether the region is enabled"
        }
        "InvalidSignatureException" | "SignatureDoesNotMatch" => {
            "check the secret access key and this machine's clock"
        }
        "OptInRequired" | "SubscriptionRequiredException" => {
            "enable the service or the region in the account"
        }
        "RegionDisabledException" => {
            "enable STS for this region in the account, or set AWS_REGION to another one"
        }
        "ValidationError" => "check the role's ARN, the name of the session and duration_seconds",
        _ => return None,
    })
}

/// The remedy when STS refuses a web identity token (STS API reference,
/// `AssumeRoleWithWebIdentity`, Errors).
fn web_identity_remedy(code: &str) -> Option<&'static str> {
    Some(match code {
        "AccessDenied" | "AccessDeniedException" => {
            "check the role's ARN, and let its trust policy allow sts:AssumeRoleWithWebIdentity \
             for the token's issuer, subject and audience"
        }
        "ExpiredToken" | "ExpiredTokenException" => {
            "the web identity token has ended; see that its file is rotated"
        }
        "IDPCommunicationError" => "AWS cannot reach the token's issuer; it is tried again",
        "IDPRejectedClaim" => "the token's issuer has rejected or revoked it; issue a new one",
        "InvalidIdentityToken" => {
            "make the token's issuer an identity provider of the role's account (IAM, OpenID \
             Connect), with the token's audience"
        }
        _ => return None,
    })
}

impl fmt::Display for CallFault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.call)?;
        match (self.status, self.refusal.code.as_deref()) {
            (None, _) => f.write_str(" failed")?,
            (Some(status), None) => write!(f, " {status}")?,
            (Some(status), Some(code)) => write!(f, " {status} {code}")?,
        }
        write!(
            f,
            " in {} via {}: {}",
            self.region, self.source, self.refusal.message
        )?;
        match self.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

/// Code, message and kind of a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Option<String>,
    pub(super) message: String,
    pub(super) kind: FaultKind,
}

impl Refusal {
    /// Reads a reply whose status is not 200. It may be in AWS's JSON protocols, in its query
    /// protocol (XML), or the bare page of a server in between, whatever was asked.
    ///
    /// Secrets are removed before the text is shortened: those that `redactor` hides, and those in
    /// the reply.
    pub(super) fn read(reply: &ApiReply, mut redactor: Redactor) -> Self {
        let body = String::from_utf8_lossy(&reply.body);
        redactor.add_answer(&body);
        let (code, message) = match serde_json::from_str::<Value>(&body) {
            Ok(document) => from_json(&document),
            Err(_) => (
                xml::first_text(&body, "Code"),
                xml::first_text(&body, "Message"),
            ),
        };
        let code = code
            .or_else(|| reply.headers.first("x-amzn-errortype").map(bare_code))
            .filter(|code| is_code(code) && redactor.clean(code) == *code);
        let message = one_line(&redactor.clean(&message.unwrap_or_default()));
        let kind = kind(reply, code.as_deref(), &message);
        let message = if message.is_empty() {
            "no reason given".to_owned()
        } else {
            message
        };
        Self {
            code,
            message,
            kind,
        }
    }

    /// A failure that is not AWS's answer.
    pub(super) const fn of_ours(message: String, kind: FaultKind) -> Self {
        Self {
            code: None,
            message,
            kind,
        }
    }
}

fn from_json(document: &Value) -> (Option<String>, Option<String>) {
    let text = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| document.get(name)?.as_str().map(ToOwned::to_owned))
    };
    let code = text(&["__type", "code"]).map(|code| bare_code(&code));
    (code, text(&["message", "Message", "errorMessage"]))
}

/// `Code` out of `ns#Code`, `Code:url` and both at once (botocore, `parsers.py`).
fn bare_code(text: &str) -> String {
    let text = text.split(':').next().unwrap_or_default();
    let code = text.rsplit('#').next().unwrap_or_default();
    code.trim().to_owned()
}

fn is_code(code: &str) -> bool {
    !code.is_empty()
        && code.len() <= 100
        && code
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// The first line, shortened: AWS appends the whole request it expected to its signature errors.
pub(super) fn one_line(message: &str) -> String {
    let line = message.trim().lines().next().unwrap_or_default();
    let line = line.trim().trim_end_matches('.');
    line.chars()
        .filter(|c| !c.is_control())
        .take(MESSAGE_CHARS_MAX)
        .collect()
}

fn kind(reply: &ApiReply, code: Option<&str>, message: &str) -> FaultKind {
    let retry_after = retry_after(reply);
    match (reply.status, code) {
        (
            _,
            Some(
                "LimitExceededException"
                | "RequestLimitExceeded"
                | "SlowDown"
                | "Throttling"
                | "ThrottlingException"
                | "TooManyRequestsException",
            ),
        )
        | (429, _) => FaultKind::Throttled { retry_after },
        (_, Some("ExpiredToken" | "ExpiredTokenException")) => FaultKind::ExpiredCredentials,
        (_, Some("RequestExpired" | "RequestTimeTooSkewed")) => FaultKind::ClockSkew,
        (_, Some("InvalidSignatureException" | "SignatureDoesNotMatch"))
            if message.contains("Signature expired") || message.contains("not yet current") =>
        {
            FaultKind::ClockSkew
        }
        // With Retry-After a server under maintenance asks for the same as one under load.
        (500.., _) if retry_after.is_some() => FaultKind::Throttled { retry_after },
        (408 | 500.., _)
        | (
            _,
            Some(
                // The two codes of STS go away when the issuer is back, or when all of AWS knows
                // it. The SDK for Go tries again after either (`stscreds`,
                // `WebIdentityRoleProvider`).
                "IDPCommunicationError"
                | "InternalFailure"
                | "InvalidIdentityToken"
                | "RequestTimeout"
                | "RequestTimeoutException"
                | "ServerException"
                | "ServiceUnavailable",
            ),
        ) => FaultKind::Transient,
        _ => FaultKind::Permanent,
    }
}

/// `x-amz-retry-after` in milliseconds (AWS SDKs), else `Retry-After` in seconds or as a date
/// (RFC 9110 §10.2.3).
fn retry_after(reply: &ApiReply) -> Option<Duration> {
    let millis = reply.headers.first("x-amz-retry-after");
    if let Some(millis) = millis.and_then(|text| text.trim().parse().ok()) {
        return Some(Duration::from_millis(millis));
    }
    let text = reply.headers.first("retry-after")?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let date = |text| httpdate::parse_http_date(text).ok();
    let now: SystemTime = reply
        .headers
        .first("date")
        .and_then(date)
        .unwrap_or(reply.received);
    Some(until.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests;
