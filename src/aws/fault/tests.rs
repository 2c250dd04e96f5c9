//! Refusals of AWS as they are sorted, and the words in which they are told.

use std::time::UNIX_EPOCH;

use super::*;
use crate::message::Headers;
use crate::secret::Secret;

fn read(status: u16, fields: &[(&str, &str)], body: &str) -> Refusal {
    let reply = ApiReply {
        status,
        headers: fields.iter().copied().collect::<Headers>(),
        body: body.into(),
        sent: UNIX_EPOCH,
        received: UNIX_EPOCH,
    };
    Refusal::read(&reply, Redactor::default())
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
    let late = r#"{"__type":"InvalidSignatureException","message":"Signature expired: 2017 …"}"#;
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
        region: "eu-west-1",
        source: "environment",
        permission: Some("ecr:GetAuthorizationToken"),
        lacks_token: true,
        status: Some(403),
        refusal: Refusal {
            code: Some("AccessDenied".into()),
            message: "user x is not authorized".into(),
            kind: FaultKind::Permanent,
        },
    };
    assert_eq!(
        fault.to_string(),
        "GetAuthorizationToken 403 AccessDenied in eu-west-1 via environment: user x is not \
         authorized; grant ecr:GetAuthorizationToken"
    );
    fault.status = None;
    fault.refusal.code = None;
    fault.refusal.message = "connect failed for https://h: refused".into();
    assert_eq!(
        fault.to_string(),
        "GetAuthorizationToken failed in eu-west-1 via environment: connect failed for \
         https://h: refused"
    );
    fault.refusal.kind = FaultKind::Transient;
    let shown = fault.to_string();
    assert!(shown.ends_with("refused; check network, DNS, HTTPS_PROXY and AWS_CA_BUNDLE"));
    fault.refusal.kind = FaultKind::ClockSkew;
    assert!(fault.to_string().ends_with("; set this machine's clock"));
}

#[test]
fn every_refusal_of_ecr_says_what_to_grant_set_or_wait_for() {
    for (status, code, remedy) in [
        (
            400,
            "AccessDeniedException",
            "grant ecr:GetAuthorizationToken",
        ),
        (
            400,
            "ExpiredTokenException",
            "renew the temporary credentials",
        ),
        (
            400,
            "InvalidSignatureException",
            "check the secret access key",
        ),
        (403, "SignatureDoesNotMatch", "check the secret access key"),
        (
            400,
            "UnrecognizedClientException",
            "check the access key id",
        ),
        (403, "InvalidClientTokenId", "whether the region is enabled"),
        (400, "RequestExpired", "set this machine's clock"),
        (400, "ThrottlingException", "it is tried again later"),
        (429, "", "it is tried again later"),
        (
            400,
            "ServerException",
            "AWS's own failure; it is tried again",
        ),
        (503, "", "AWS's own failure; it is tried again"),
        (
            400,
            "IncompleteSignatureException",
            "check the outbound proxy",
        ),
        (
            400,
            "MissingAuthenticationTokenException",
            "AWS_ENDPOINT_URL",
        ),
        (403, "OptInRequired", "enable the service or the region"),
        (400, "ValidationException", "in AWS's API reference"),
        (
            404,
            "",
            "is the endpoint an AWS API? check AWS_ENDPOINT_URL",
        ),
        (407, "", "and the outbound proxy"),
    ] {
        let body = serde_json::json!({"__type": code, "message": "no."}).to_string();
        let refusal = read(status, &[], &body);
        let fault = CallFault {
            call: "GetAuthorizationToken",
            region: "eu-west-1",
            source: "environment",
            permission: Some("ecr:GetAuthorizationToken"),
            lacks_token: false,
            status: Some(status),
            refusal,
        };
        let text = fault.to_string();
        let shown = format!("{status} {code}");
        let shown = shown.trim_end();
        let start = format!("GetAuthorizationToken {shown} in eu-west-1 via environment: no; ");
        assert!(text.starts_with(&start), "{text}");
        assert!(text.contains(remedy), "{text}");
    }
}

#[test]
fn each_refusal_of_sts_says_what_to_mend() {
    let told = |call: &'static str, code: &str| {
        let fault = CallFault {
            call,
            region: "eu-west-1",
            source: "web identity",
            permission: Some("sts:AssumeRole"),
            lacks_token: call == "AssumeRole",
            status: Some(403),
            refusal: Refusal {
                code: Some(code.into()),
                message: "no".into(),
                kind: FaultKind::Permanent,
            },
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
        ("MalformedPolicyDocument", "AWS's API reference"),
    ] {
        let text = told("AssumeRoleWithWebIdentity", code);
        let start = format!("AssumeRoleWithWebIdentity 403 {code} in eu-west-1 via web identity");
        assert!(text.starts_with(&start) && text.contains(remedy), "{text}");
    }
    assert!(told("AssumeRole", "InvalidClientTokenId").contains("begins with ASIA"));
    assert!(!told("AssumeRoleWithWebIdentity", "InvalidClientTokenId").contains("ASIA"));
    assert!(told("AssumeRole", "AccessDenied").ends_with("; grant sts:AssumeRole"));
    assert!(told("AssumeRole", "ExpiredToken").ends_with("temporary credentials"));
}

#[test]
fn bug_a_secret_across_the_cut_of_a_message_was_shown_in_part() {
    let secret = Secret::new("hunter2hunter2hunter2".to_owned());
    for before in [0, MESSAGE_CHARS_MAX - 10, 70_000] {
        let message = format!("{}{}", ". ".repeat(before / 2), secret.expose());
        let body = serde_json::json!({"__type": secret.expose(), "message": message});
        let reply = ApiReply {
            status: 400,
            headers: Headers::from_iter([("x-amzn-errortype", secret.expose().as_str())]),
            body: body.to_string().into(),
            sent: UNIX_EPOCH,
            received: UNIX_EPOCH,
        };
        let refusal = Refusal::read(&reply, Redactor::new([&secret]));
        assert!(!refusal.message.contains("hunter"), "{refusal:?}");
        assert_eq!(refusal.code, None);
    }
}

#[test]
fn a_refusal_that_holds_secrets_does_not_show_them() {
    let json = r#"{"message":"no token s3cr3tword","authorizationToken":"s3cr3tword"}"#;
    assert_eq!(read(400, &[], json).message, "no token ***");
    let xml = "<r><Message>no key s3cr3tword</Message><SecretAccessKey>s3cr3tword\
               </SecretAccessKey></r>";
    assert_eq!(read(400, &[], xml).message, "no key ***");
}
