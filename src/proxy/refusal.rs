//! Upstream's refusals on their way to the client. Owns: making each of them an error document that
//! says when to come back and which methods are allowed. Must not: change a document of upstream's.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use serde_json::value::RawValue;

use super::answer::{OFFLINE_MARK, RETRY_AFTER_SECONDS};
use super::elements::for_each;
use crate::message::{Body, Buffered, Headers, Reply, SharedBytes};
use crate::oci::{ERROR_DOCUMENT_BYTES_MAX, ErrorCode, OciError, Route};

/// Longest text, in characters, that is taken from a refusal in plain text.
const TEXT_CHARS_MAX: usize = 1024;

/// Turns a refusal in any other form into an error document: ECR writes `denied: …` in plain text,
/// a load balancer before it writes HTML, and docker shows neither. `allowed`: the methods of
/// `route` that clients may use.
pub(super) fn as_error_document(
    mut reply: Reply,
    route: &Route,
    method: &str,
    allowed: &[&str],
) -> Reply {
    if reply.status == 429 && reply.headers.first("Retry-After").is_none() {
        reply.headers.set("Retry-After", RETRY_AFTER_SECONDS);
    }
    if reply.status == 405 && reply.headers.first("Allow").is_none() {
        // RFC 9110 §15.5.6 demands it; ECR leaves it out, and says 405 to parameters, too.
        let others = allowed.iter().copied();
        let others = others.filter(|other| *other != method || method == "GET");
        reply
            .headers
            .set("Allow", others.collect::<Vec<_>>().join(", "));
    }
    if reply.status < 400 {
        return reply;
    }
    let bytes = match read_document(reply.body) {
        Ok(bytes) => bytes,
        Err(body) => return Reply { body, ..reply },
    };
    if let Some(bytes) = bytes.as_ref().filter(|bytes| is_error_document(bytes)) {
        reply.body = Body::Bytes(bytes.clone());
        return reply;
    }
    let media_type = reply.headers.first("Content-Type").unwrap_or_default();
    let text = bytes.filter(|_| media_type.starts_with("text/plain"));
    let text = text.map_or_else(String::new, |bytes| one_line(&bytes));
    let message = match text.as_str() {
        "" => format!("the registry answered {}", reply.status),
        text => text.to_owned(),
    };
    let error = OciError::new(code(reply.status, route), message).with_status(reply.status);
    reply.headers.set("Content-Type", "application/json");
    reply.headers.remove("Content-Encoding");
    reply.outcome.error = Some(error.message.clone());
    reply.body = Body::Bytes(error.document().into_bytes().into());
    reply
}

/// Reads a body that may be an error document; none when it broke off. The error is the body, when
/// it is too long to be one or has no bytes.
fn read_document(body: Body) -> Result<Option<SharedBytes>, Body> {
    match body {
        Body::Bytes(bytes) if (bytes.len() as u64) < ERROR_DOCUMENT_BYTES_MAX => Ok(Some(bytes)),
        Body::Stream { mut reader, length } => {
            let mut bytes = Vec::new();
            let read = (&mut reader)
                .take(ERROR_DOCUMENT_BYTES_MAX)
                .read_to_end(&mut bytes);
            if read.is_ok() && bytes.len() as u64 == ERROR_DOCUMENT_BYTES_MAX {
                let reader = Box::new(Cursor::new(bytes).chain(reader));
                return Err(Body::Stream { reader, length });
            }
            Ok(read.is_ok().then(|| bytes.into()))
        }
        body => Err(body),
    }
}

/// True when the registry itself says that the content does not exist. An offline proxy on the way
/// says only that its cache lacks it.
pub(super) fn is_registrys_404(refused: &Buffered) -> bool {
    refused.status == 404 && is_error_document(&refused.body) && !is_offline(&refused.headers)
}

/// True for the answer of a proxy that did not ask the registry.
pub(super) fn is_offline(headers: &Headers) -> bool {
    let mut warnings = headers.all("Warning");
    warnings.any(|warning| warning.contains(&format!("\"{OFFLINE_MARK}")))
}

/// True for a registry's own refusal. Whatever else answers in its place (a load balancer without
/// backends, a captive portal) writes something else.
pub(super) fn is_error_document(bytes: &[u8]) -> bool {
    error_code(bytes).is_some()
}

/// The code of the first error in a document: upper case letters and underscores (distribution-spec
/// "Error Codes"). None in what is no such document.
pub(super) fn error_code(bytes: &[u8]) -> Option<String> {
    let mut first = None;
    for_each(bytes, "errors", |error: &RawValue| {
        first.get_or_insert_with(|| error.get().to_owned());
    })?;
    let first = first?;
    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(&first).ok()?;
    let code: String = serde_json::from_str(fields.get("code")?.get()).ok()?;
    let is_code = |c: u8| c.is_ascii_uppercase() || c == b'_';
    (!code.is_empty() && code.bytes().all(is_code)).then_some(code)
}

/// Joins a text to one printable line.
fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let printable = line.chars().filter(|c| !c.is_control());
    printable.take(TEXT_CHARS_MAX).collect()
}

const fn code(status: u16, route: &Route) -> ErrorCode {
    match (status, route) {
        (404, Route::Blob(..)) => ErrorCode::BlobUnknown,
        (404, Route::Manifest(..)) => ErrorCode::ManifestUnknown,
        (404, Route::Upload(_)) => ErrorCode::BlobUploadUnknown,
        (404, Route::Referrers(..) | Route::Tags(_) | Route::Uploads(_)) => ErrorCode::NameUnknown,
        (404, Route::Base | Route::Catalog) => ErrorCode::NotFound,
        (status, _) => code_of(status),
    }
}

const fn code_of(status: u16) -> ErrorCode {
    match status {
        401 | 403 => ErrorCode::Denied,
        405 => ErrorCode::Unsupported,
        416 => ErrorCode::RangeInvalid,
        429 => ErrorCode::TooManyRequests,
        500.. => ErrorCode::Unavailable,
        _ => ErrorCode::BadRequest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::LogNote;

    fn documented_of(status: u16, media_type: &str, body: Vec<u8>) -> (Reply, String) {
        let length = Some(body.len() as u64);
        let reply = Reply {
            status,
            headers: Headers::from_iter([("Content-Type", media_type)]),
            body: Body::Stream {
                reader: Box::new(Cursor::new(body)),
                length,
            },
            outcome: LogNote::default(),
        };
        let reply = as_error_document(reply, &Route::Catalog, "GET", &[]);
        let text = match &reply.body {
            Body::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            _ => String::new(),
        };
        (reply, text)
    }

    #[test]
    fn a_document_stays_as_it_is() {
        let text = "{ \"errors\" : [{\"code\":\"X\",\"detail\":{\"a\":1}}] , \"more\": 2}";
        let (reply, body) = documented_of(403, "application/json", text.into());
        assert_eq!((reply.status, body.as_str()), (403, text));
        assert_eq!(
            reply.headers.first("Content-Type"),
            Some("application/json")
        );
    }

    #[test]
    fn an_error_document_has_an_error_with_a_code() {
        let is_document = |text: &str| is_error_document(text.as_bytes());
        assert!(is_document(
            r#"{"errors":[{"message":1,"code":"NAME_UNKNOWN"},5],"x":0}"#
        ));
        for text in [
            "",
            "404 page not found",
            r#"{"message":"Not Found"}"#,
            r#"{"errors":null}"#,
            r#"{"errors":[]}"#,
            r#"{"errors":["NOT_FOUND"]}"#,
            r#"{"errors":[{"status":404,"title":"Not Found"}]}"#,
            r#"{"errors":[{"code":404}]}"#,
            r#"{"errors":[{"code":"not_found"}]}"#,
            r#"{"errors":[{"code":"NOT_FOUND"}]"#,
        ] {
            assert!(!is_document(text), "{text}");
        }
    }

    #[test]
    fn plain_text_becomes_one() {
        let denied = "denied: User: arn:aws:iam::1:user/x is not authorized\n";
        let (reply, body) = documented_of(403, "text/plain; charset=utf-8", denied.into());
        let document: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(reply.status, 403);
        assert_eq!(document["errors"][0]["code"], "DENIED");
        assert_eq!(document["errors"][0]["message"], denied.trim());
        let (_, html) = documented_of(503, "text/html", b"<h1>x</h1>".to_vec());
        assert!(html.contains("the registry answered 503") && !html.contains("<h1>"));
        let (_, none) = documented_of(404, "", Vec::new());
        assert!(none.contains("NOT_FOUND"), "{none}");
    }

    #[test]
    fn what_is_no_refusal_is_not_read() {
        let (reply, _) = documented_of(200, "text/plain", b"layer".to_vec());
        assert!(matches!(
            reply.body,
            Body::Stream {
                length: Some(5),
                ..
            }
        ));
        let long = vec![b'x'; 100_000];
        let (reply, _) = documented_of(500, "text/plain", long);
        assert!(matches!(
            reply.body,
            Body::Stream {
                length: Some(100_000),
                ..
            }
        ));
    }

    #[test]
    fn throttling_says_when_to_come_back() {
        let (reply, _) = documented_of(429, "", Vec::new());
        assert_eq!(
            reply.headers.first("Retry-After"),
            Some(RETRY_AFTER_SECONDS)
        );
        let said = Reply::new(429, "text/plain", "").with("Retry-After", "60");
        let said = as_error_document(said, &Route::Catalog, "GET", &[]);
        assert_eq!(said.headers.first("Retry-After"), Some("60"));
    }

    #[test]
    fn a_method_that_is_refused_is_told_from_those_that_are_not() {
        let allow = |method: &str| {
            let route = Route::parse("/v2/a/manifests/1").unwrap();
            let reply = Reply::new(405, "application/json", "");
            let reply = as_error_document(reply, &route, method, route.methods());
            reply.headers.first("Allow").map(str::to_owned)
        };
        assert_eq!(allow("DELETE").as_deref(), Some("GET, HEAD, PUT"));
        // A GET is allowed as such: the registry refused one of its parameters.
        assert_eq!(allow("GET").as_deref(), Some("GET, HEAD, PUT, DELETE"));
        let own = Reply::new(405, "application/json", "").with("Allow", "GET");
        let own = as_error_document(own, &Route::Base, "PUT", Route::Base.methods());
        assert_eq!(own.headers.first("Allow"), Some("GET"));
    }

    #[test]
    fn what_is_not_there_is_called_by_its_name() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (path, name) in [
            (format!("/v2/a/blobs/{digest}"), "BLOB_UNKNOWN"),
            ("/v2/a/manifests/1".to_owned(), "MANIFEST_UNKNOWN"),
            ("/v2/a/blobs/uploads/1".to_owned(), "BLOB_UPLOAD_UNKNOWN"),
            ("/v2/a/blobs/uploads/".to_owned(), "NAME_UNKNOWN"),
            ("/v2/a/tags/list".to_owned(), "NAME_UNKNOWN"),
            ("/v2/_catalog".to_owned(), "NOT_FOUND"),
        ] {
            let route = Route::parse(&path).unwrap();
            let error = OciError::new(code(404, &route), "");
            assert!(error.document().contains(&format!("\"{name}\"")), "{path}");
            assert_eq!(error.status, 404);
        }
    }
}
