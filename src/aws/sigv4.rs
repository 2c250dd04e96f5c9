//! The only user of `aws-sigv4` and `aws-credential-types`. Owns: the signature of a call. Must
//! not: know what the call is for, or read a clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings};
use aws_sigv4::sign::v4;

use super::credentials::Credentials;
use crate::oci;
use crate::upstream::ApiCall;

/// 9999-12-31: the format of `x-amz-date` has four digits for the year, and the date library
/// behind `aws-sigv4` panics beyond them.
const TIME_MAX: Duration = Duration::from_secs(253_402_214_400);

/// Signs `call` (Signature Version 4, headers): adds `x-amz-date`, `authorization` and, for
/// temporary credentials, `x-amz-security-token`. `time` is AWS's, not this machine's.
///
/// `Host` is signed as ureq derives it from the URL: with the port, unless it is the scheme's own.
/// Every field the call has by now is signed, so the fields must be complete.
///
/// # Errors
/// The part that cannot be signed, without any secret.
pub(super) fn sign(
    mut call: ApiCall,
    credentials: &Credentials,
    region: &str,
    service: &str,
    time: SystemTime,
) -> Result<ApiCall, String> {
    check(&call, credentials, time)?;
    let identity = aws_credential_types::Credentials::new(
        credentials.access_key_id.clone(),
        credentials.secret.expose().clone(),
        credentials
            .session_token
            .as_ref()
            .map(|token| token.expose().clone()),
        None,
        "aws-ecr-proxy",
    )
    .into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(service)
        .time(time)
        // The defaults are what ECR and STS document: headers, double encoding, token signed.
        .settings(SigningSettings::default())
        .build()
        .map_err(|fault| format!("cannot sign for {service}: {fault}"))?
        .into();
    let request = SignableRequest::new(
        call.method,
        call.url.as_str(),
        call.headers.iter(),
        SignableBody::Bytes(&call.body),
    )
    .map_err(|fault| format!("cannot sign for {service}: {fault}"))?;
    let (instructions, _signature) = aws_sigv4::http_request::sign(request, &params)
        .map_err(|fault| format!("cannot sign for {service}: {fault}"))?
        .into_parts();
    for (name, value) in instructions.headers() {
        call.headers.set(name, value);
    }
    Ok(call)
}

/// Refuses input on which `aws-sigv4` would panic, or that fits no header field.
fn check(call: &ApiCall, credentials: &Credentials, time: SystemTime) -> Result<(), String> {
    let visible = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if !visible(&credentials.access_key_id) {
        return Err("the access key id holds other than visible ASCII characters".into());
    }
    let token = credentials.session_token.as_ref();
    if token.is_some_and(|token| !visible(token.expose())) {
        return Err("the session token holds other than visible ASCII characters".into());
    }
    let authority = call
        .url
        .split_once("://")
        .and_then(|(_, rest)| rest.split(['/', '?', '#']).next());
    if !authority.is_some_and(oci::is_authority) {
        return Err("the URL to sign has no host".into());
    }
    let since = time
        .duration_since(UNIX_EPOCH)
        .map_err(|_| "the clock is before 1970: set this machine's clock")?;
    if since > TIME_MAX {
        return Err("the clock is after 9999: set this machine's clock".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Headers;
    use crate::secret::Secret;

    /// 2015-08-30T12:36:00Z, the date of the AWS Signature Version 4 test suite.
    const SUITE_TIME: Duration = Duration::from_secs(1_440_938_160);
    const SUITE_TOKEN: &str = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwd\
        QWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2\
        wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38x\
        Vqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/\
        oLxBA==";

    fn credentials(token: Option<&str>) -> Credentials {
        Credentials {
            access_key_id: "AKIDEXAMPLE".into(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into()),
            session_token: token.map(|token| Secret::new(token.into())),
            expires: None,
            source: "test".into(),
        }
    }

    fn call(method: &'static str, url: &str, fields: &[(&str, &str)], body: &str) -> ApiCall {
        ApiCall {
            method,
            url: url.into(),
            headers: fields.iter().copied().collect::<Headers>(),
            body: body.into(),
            connect_timeout: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            through_proxy: true,
        }
    }

    fn sign_as_suite(call: ApiCall, credentials: &Credentials) -> Result<ApiCall, String> {
        sign(
            call,
            credentials,
            "us-east-1",
            "service",
            UNIX_EPOCH + SUITE_TIME,
        )
    }

    fn authorization(signed: &ApiCall) -> (&str, &str) {
        let value = signed.headers.first("authorization").unwrap();
        let scope = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/\
                     aws4_request, SignedHeaders=";
        let rest = value.strip_prefix(scope).unwrap();
        rest.split_once(", Signature=").unwrap()
    }

    #[test]
    fn vectors_of_the_aws_test_suite() {
        let url = "https://example.amazonaws.com/";
        let form = [("Content-Type", "application/x-www-form-urlencoded")];
        let table = [
            // get-vanilla
            (
                call("GET", url, &[], ""),
                None,
                "host;x-amz-date",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            // post-x-www-form-urlencoded
            (
                call("POST", url, &form, "Param1=value1"),
                None,
                "content-type;host;x-amz-date",
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
            // post-sts-header-before
            (
                call("POST", url, &[], ""),
                Some(SUITE_TOKEN),
                "host;x-amz-date;x-amz-security-token",
                "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
            ),
        ];
        for (call, token, fields, signature) in table {
            let signed = sign_as_suite(call, &credentials(token)).unwrap();
            assert_eq!(authorization(&signed), (fields, signature));
            assert_eq!(signed.headers.first("x-amz-date"), Some("20150830T123600Z"));
            assert_eq!(signed.headers.first("x-amz-security-token"), token);
        }
    }

    #[test]
    fn the_host_is_signed_as_ureq_sends_it() {
        let signature = |url: &str| {
            let signed = sign_as_suite(call("GET", url, &[], ""), &credentials(None)).unwrap();
            authorization(&signed).1.to_owned()
        };
        let with_host = |host: &str| {
            let call = call("GET", "http://x/", &[("host", host)], "");
            let signed = sign_as_suite(call, &credentials(None)).unwrap();
            authorization(&signed).1.to_owned()
        };
        assert_eq!(
            signature("http://127.0.0.1:5951/"),
            with_host("127.0.0.1:5951")
        );
        assert_eq!(
            signature("https://ecr.example:443/"),
            with_host("ecr.example")
        );
        assert_eq!(signature("http://[::1]:8080/"), with_host("[::1]:8080"));
    }

    #[test]
    fn what_cannot_be_signed_is_an_error() {
        let plain = || call("GET", "https://h/", &[], "");
        let mut newline_id = credentials(None);
        newline_id.access_key_id = "AKID\r\nX: y".into();
        assert!(sign_as_suite(plain(), &newline_id).is_err());
        let fault = sign_as_suite(plain(), &credentials(Some("hunter2\n"))).unwrap_err();
        assert!(!fault.contains("hunter2"));
        for url in [
            "",
            "/",
            "https://",
            "https:///x",
            "http://u@h/",
            "http://h:0/",
            "http://h /",
        ] {
            let refused = sign_as_suite(call("GET", url, &[], ""), &credentials(None));
            assert!(refused.is_err(), "{url}");
        }
        let odd_field = call("GET", "https://h/", &[("a b", "c")], "");
        assert!(sign_as_suite(odd_field, &credentials(None)).is_err());
        for time in [
            UNIX_EPOCH - Duration::from_secs(1),
            UNIX_EPOCH + TIME_MAX + Duration::from_secs(1),
        ] {
            assert!(sign(plain(), &credentials(None), "r", "s", time).is_err());
        }
    }
}
