//! What AWS APIs say when they refuse. Owns: reading error replies of either format and sorting
//! them by what to do next. Must not: retry or wait; `token` does.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::xml;
use crate::upstream::{ApiReply, UpstreamError};

/// Longest message of AWS's that is passed on, in characters: enough for an ARN or two.
const MESSAGE_CHARS_MAX: usize = 300;

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultKind {
    /// Our clock is off, and the reply did not say by how much.
    ClockSkew,
    /// The credentials have ended: fetch new ones.
    ExpiredCredentials,
    /// Nothing changes until somebody changes something.
    Permanent,
    /// Too much at once.
    Throttled {
        /// How long AWS wants us to wait, if it said so.
        retry_after: Option<Duration>,
    },
    /// May well work the next time.
    Transient,
    /// No credentials or no region are set.
    Unconfigured,
}

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CallFault {
    /// The API's operation.
    pub(super) call: &'static str,
    /// The reply's status; none without a reply.
    pub(super) status: Option<u16>,
    /// AWS's error code.
    pub(super) code: Option<String>,
    /// AWS's message, or our own reason.
    pub(super) message: String,
    /// The region signed for.
    pub(super) region: String,
    /// Where the credentials came from.
    pub(super) source: String,
    /// The IAM action that the call needs, if any.
    pub(super) permission: Option<&'static str>,
    /// What to do.
    pub(super) kind: FaultKind,
}

impl CallFault {
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

    /// True when AWS knows the key not, or no longer: others must be fetched.
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

    fn remedy(&self) -> Option<String> {
        if let FaultKind::ClockSkew = self.kind {
            return Some("set this machine's clock".into());
        }
        let code = self.code.as_deref()?;
        if let Some(remedy) = web_identity_remedy(self.call, code) {
            return Some(remedy.into());
        }
        let remedy = match code {
            "AccessDenied" | "AccessDeniedException" => {
                return self.permission.map(|action| format!("grant {action}"));
            }
            "ExpiredToken" | "ExpiredTokenException" => "renew the temporary credentials",
            "RegionDisabledException" => {
                "enable STS for this region in the account, or set AWS_REGION to another one"
            }
            "ValidationError" => {
                "check the role's ARN, the name of the session and duration_seconds"
            }
            "InvalidClientTokenId" | "UnrecognizedClientException" => {
                "check the access key id, the session token and whether the region is enabled"
            }
            "InvalidSignatureException" | "SignatureDoesNotMatch" => {
                "check the secret access key and this machine's clock"
            }
            _ => return None,
        };
        Some(remedy.into())
    }
}

/// What to mend when STS refuses a web identity token (STS API reference,
/// `AssumeRoleWithWebIdentity`, Errors).
fn web_identity_remedy(call: &str, code: &str) -> Option<&'static str> {
    if call != "AssumeRoleWithWebIdentity" {
        return None;
    }
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

impl fmt::Display for CallFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.call)?;
        match (self.status, self.code.as_deref()) {
            (None, _) => f.write_str(" failed")?,
            (Some(status), None) => write!(f, " {status}")?,
            (Some(status), Some(code)) => write!(f, " {status} {code}")?,
        }
        write!(
            f,
            " in {} via {}: {}",
            self.region, self.source, self.message
        )?;
        match self.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

/// Code, message and kind of a refusal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Option<String>,
    pub(super) message: String,
    pub(super) kind: FaultKind,
}

impl Refusal {
    /// Reads a reply whose status is not 200. AWS's JSON protocols, its query protocol (XML) and
    /// the bare pages of things in between are all taken, whatever was asked.
    pub(super) fn read(reply: &ApiReply) -> Self {
        let body = String::from_utf8_lossy(&reply.body);
        let (code, message) = match serde_json::from_str::<Value>(&body) {
            Ok(document) => from_json(&document),
            Err(_) => (
                xml::first_text(&body, "Code"),
                xml::first_text(&body, "Message"),
            ),
        };
        let code = code
            .or_else(|| reply.headers.first("x-amzn-errortype").map(bare_code))
            .filter(|code| is_code(code));
        let message = one_line(&message.unwrap_or_default());
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

    /// No reply came.
    pub(super) fn no_reply(fault: &UpstreamError) -> Self {
        Self {
            code: None,
            message: fault.to_string(),
            kind: FaultKind::Transient,
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
                // The two of STS pass when an issuer is back, or known everywhere in AWS: the SDK
                // for Go tries again after either (`stscreds`, `WebIdentityRoleProvider`).
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
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::message::Headers;

    fn read(status: u16, fields: &[(&str, &str)], body: &str) -> Refusal {
        Refusal::read(&ApiReply {
            status,
            headers: fields.iter().copied().collect::<Headers>(),
            body: body.into(),
            sent: UNIX_EPOCH,
            received: UNIX_EPOCH,
        })
    }

    fn code_of(body: &str) -> Option<String> {
        read(400, &[], body).code
    }

    #[test]
    fn codes_are_found_in_every_format() {
        let code = Some("ThrottlingException".to_owned());
        assert_eq!(code_of(r#"{"__type":"ThrottlingException"}"#), code);
        assert_eq!(
            code_of(r#"{"__type":"com.amazon#ThrottlingException"}"#),
            code
        );
        let with_url = r#"{"__type":"ThrottlingException:http://internal/x#y"}"#;
        assert_eq!(code_of(with_url), code);
        assert_eq!(code_of(r#"{"code":"ThrottlingException"}"#), code);
        let xml = "<ErrorResponse><Errors><Error><Code>ThrottlingException</Code>\
                   <Message>a &amp; b</Message></Error></Errors></ErrorResponse>";
        assert_eq!(code_of(xml), code);
        assert_eq!(read(400, &[], xml).message, "a & b");
        let header = [("x-amzn-ErrorType", "ThrottlingException:http://x/")];
        assert_eq!(read(400, &header, "").code, code);
        for none in [
            "",
            "[]",
            "null",
            "{\"__type\":7}",
            "<html>no</html>",
            "{\"__type\":\"a b\"}",
        ] {
            assert_eq!(code_of(none), None, "{none}");
        }
    }

    #[test]
    fn messages_are_one_short_line() {
        let message = |text: &str| {
            let body = serde_json::json!({"__type": "X", "Message": text}).to_string();
            read(400, &[], &body).message
        };
        assert_eq!(message("first.\n\nThe Canonical String\nsecret"), "first");
        assert_eq!(message(""), "no reason given");
        assert_eq!(
            message(&"é".repeat(1000)).chars().count(),
            MESSAGE_CHARS_MAX
        );
    }

    #[test]
    fn kinds_follow_from_code_and_status() {
        let throttled = |retry_after| FaultKind::Throttled { retry_after };
        let table = [
            (400, "UnrecognizedClientException", FaultKind::Permanent),
            (400, "ExpiredTokenException", FaultKind::ExpiredCredentials),
            (403, "ExpiredToken", FaultKind::ExpiredCredentials),
            (400, "AccessDeniedException", FaultKind::Permanent),
            (400, "ThrottlingException", throttled(None)),
            (503, "SlowDown", throttled(None)),
            (429, "", throttled(None)),
            (400, "ServerException", FaultKind::Transient),
            (500, "", FaultKind::Transient),
            (408, "", FaultKind::Transient),
            (301, "", FaultKind::Permanent),
            (403, "RequestTimeTooSkewed", FaultKind::ClockSkew),
            (403, "SignatureDoesNotMatch", FaultKind::Permanent),
            (400, "IDPCommunicationError", FaultKind::Transient),
            (400, "InvalidIdentityToken", FaultKind::Transient),
            (403, "IDPRejectedClaim", FaultKind::Permanent),
            (403, "RegionDisabledException", FaultKind::Permanent),
        ];
        for (status, code, kind) in table {
            let body = serde_json::json!({"__type": code}).to_string();
            assert_eq!(read(status, &[], &body).kind, kind, "{status} {code}");
        }
        let late =
            r#"{"__type":"InvalidSignatureException","message":"Signature expired: 2017 …"}"#;
        assert_eq!(read(400, &[], late).kind, FaultKind::ClockSkew);
    }

    #[test]
    fn waits_asked_for_are_honoured() {
        let wait = |status, fields: &[(&str, &str)]| read(status, fields, "").kind;
        let throttled = |seconds| FaultKind::Throttled {
            retry_after: Some(Duration::from_millis(seconds)),
        };
        assert_eq!(wait(429, &[("Retry-After", "7")]), throttled(7000));
        let both = [("x-amz-retry-after", "250"), ("Retry-After", "7")];
        assert_eq!(wait(503, &both), throttled(250));
        let date = [
            ("Date", "Sun, 06 Nov 1994 08:49:30 GMT"),
            ("Retry-After", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ];
        assert_eq!(wait(429, &date), throttled(7000));
        assert_eq!(wait(503, &[("Retry-After", "soon")]), FaultKind::Transient);
    }

    #[test]
    fn the_text_names_call_region_source_and_remedy() {
        let mut fault = CallFault {
            call: "GetAuthorizationToken",
            status: Some(403),
            code: Some("AccessDenied".into()),
            message: "user x is not authorized".into(),
            region: "eu-west-1".into(),
            source: "environment".into(),
            permission: Some("ecr:GetAuthorizationToken"),
            kind: FaultKind::Permanent,
        };
        assert_eq!(
            fault.to_string(),
            "GetAuthorizationToken 403 AccessDenied in eu-west-1 via environment: user x is not \
             authorized; grant ecr:GetAuthorizationToken"
        );
        fault.status = None;
        fault.code = None;
        fault.message = "connect failed for https://h: refused".into();
        assert_eq!(
            fault.to_string(),
            "GetAuthorizationToken failed in eu-west-1 via environment: connect failed for \
             https://h: refused"
        );
        fault.kind = FaultKind::ClockSkew;
        assert!(fault.to_string().ends_with("; set this machine's clock"));
    }

    #[test]
    fn each_refusal_of_sts_says_what_to_mend() {
        let told = |call: &'static str, code: &str| {
            let fault = CallFault {
                call,
                status: Some(403),
                code: Some(code.into()),
                message: "no".into(),
                region: "eu-west-1".into(),
                source: "web identity".into(),
                permission: Some("sts:AssumeRole"),
                kind: FaultKind::Permanent,
            };
            fault.to_string()
        };
        for (code, remedy) in [
            ("AccessDenied", "trust policy"),
            ("ExpiredTokenException", "its file is rotated"),
            ("IDPCommunicationError", "tried again"),
            ("IDPRejectedClaim", "issue a new one"),
            ("InvalidIdentityToken", "identity provider"),
            ("RegionDisabledException", "AWS_REGION"),
            ("ValidationError", "the role's ARN"),
        ] {
            let text = told("AssumeRoleWithWebIdentity", code);
            let start =
                format!("AssumeRoleWithWebIdentity 403 {code} in eu-west-1 via web identity");
            assert!(text.starts_with(&start) && text.contains(remedy), "{text}");
        }
        assert!(told("AssumeRole", "AccessDenied").ends_with("; grant sts:AssumeRole"));
        assert!(told("AssumeRole", "ExpiredToken").ends_with("temporary credentials"));
    }
}
