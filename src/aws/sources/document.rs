//! The JSON document in which metadata endpoints and programs give credentials. Owns: reading it.
//! Must not: know where it came from.

use serde_json::Value;

use super::super::credentials::Credentials;
use super::super::fault::one_line;
use super::super::redact::Redactor;
use crate::calendar;
use crate::secret::Secret;

/// Why a document holds no credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unusable {
    /// The document is not as AWS documents it: how it differs.
    Odd(&'static str),
    /// `Code` says that there are none: code and message.
    Refused(String, String),
}

/// Reads the credentials in a document; `source` names them.
///
/// # Errors
/// When it holds none.
pub(super) fn read(body: &[u8], source: String) -> Result<Credentials, Unusable> {
    let document: Value = serde_json::from_slice(body).map_err(|_| Unusable::Odd("is not JSON"))?;
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    // Absent in container documents, and in those of some stand-ins for the instance metadata.
    if let Some(code) = text("Code").filter(|code| !code.eq_ignore_ascii_case("success")) {
        let mut redactor = Redactor::default();
        redactor.add_answer(&String::from_utf8_lossy(body));
        let clean = |text: &str| one_line(&redactor.clean(text));
        let message = text("Message").unwrap_or("no reason given");
        return Err(Unusable::Refused(clean(code), clean(message)));
    }
    keys(&document, "Token", source).map_err(Unusable::Odd)
}

/// The keys in a document, and their end; `token` is the name of the session token's field.
///
/// # Errors
/// The fault, as the end of a sentence that begins with the document's name.
pub(super) fn keys(
    document: &Value,
    token: &str,
    source: String,
) -> Result<Credentials, &'static str> {
    let text = |name: &str| {
        let text = document.get(name).and_then(Value::as_str).map(str::trim);
        text.filter(|text| !text.is_empty())
    };
    // Keys travel in header fields, where anything else would break or forge a line.
    let word = |name: &str| match text(name) {
        Some(word) if word.bytes().all(|b| b.is_ascii_graphic()) => Ok(Some(word.to_owned())),
        Some(_) => Err("has a key that fits no header field"),
        None => Ok(None),
    };
    let expires = text("Expiration").map(|text| {
        let expires = calendar::parse_rfc3339(text);
        expires.ok_or("has an Expiration that is no time as in RFC 3339")
    });
    let secret = word("SecretAccessKey")?.ok_or("has no SecretAccessKey");
    Ok(Credentials {
        access_key_id: word("AccessKeyId")?.ok_or("has no AccessKeyId")?,
        secret: Secret::new(secret?),
        session_token: word(token)?.map(Secret::new),
        expires: expires.transpose()?,
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    const WHOLE: &str = r#"{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"ASIAX",
        "SecretAccessKey":"hunter2","Token":"t+/=","Expiration":"2023-11-15T04:13:20Z"}"#;

    fn odd(body: &str) -> &'static str {
        match read(body.as_bytes(), String::new()) {
            Err(Unusable::Odd(reason)) => reason,
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn a_whole_document_is_read() {
        let found = read(WHOLE.as_bytes(), String::new()).unwrap();
        assert_eq!(found.access_key_id, "ASIAX");
        assert_eq!(found.secret.expose(), "hunter2");
        assert_eq!(found.session_token.as_ref().unwrap().expose(), "t+/=");
        let end = UNIX_EPOCH + Duration::from_secs(1_700_021_600);
        assert_eq!(found.expires, Some(end));
        assert!(!format!("{found:?}").contains("hunter2"));
    }

    #[test]
    fn a_document_without_code_token_or_expiration_is_enough() {
        let found = read(
            br#"{"AccessKeyId":"A","SecretAccessKey":"s"}"#,
            String::new(),
        )
        .unwrap();
        assert_eq!((found.session_token, found.expires), (None, None));
    }

    #[test]
    fn another_code_than_success_is_a_refusal() {
        let body =
            br#"{"Code":"AssumeRoleUnauthorizedAccess","Message":"EC2 cannot assume x.\ny"}"#;
        let refused = Unusable::Refused(
            "AssumeRoleUnauthorizedAccess".into(),
            "EC2 cannot assume x".into(),
        );
        assert_eq!(read(body, String::new()), Err(refused));
        let failed = read(br#"{"Code":"Failed"}"#, String::new());
        assert_eq!(
            failed,
            Err(Unusable::Refused("Failed".into(), "no reason given".into()))
        );
    }

    #[test]
    fn other_documents_are_odd_and_not_shown() {
        assert_eq!(odd(""), "is not JSON");
        assert_eq!(odd("<html>hunter2"), "is not JSON");
        assert_eq!(odd("[]"), "has no AccessKeyId");
        assert_eq!(odd(r#"{"AccessKeyId":" "}"#), "has no AccessKeyId");
        assert_eq!(odd(r#"{"AccessKeyId":"A"}"#), "has no SecretAccessKey");
        let forged = WHOLE.replace("t+/=", "t\\r\\nX: y");
        assert_eq!(odd(&forged), "has a key that fits no header field");
        let late = WHOLE.replace("2023-11-15T04:13:20Z", "tomorrow");
        assert_eq!(
            odd(&late),
            "has an Expiration that is no time as in RFC 3339"
        );
    }
}
