//! Upstream's refusals on their way to the client. Owns: that each of them is an error document,
//! and when to come back. Must not: change a document of upstream's own.

use std::io::{Cursor, Read};

use super::RETRY_AFTER_SECONDS;
use crate::message::{Body, Reply};
use crate::oci::{ErrorCode, OciError};

/// A refusal is read this far to find out whether it is an error document; their texts have a few
/// hundred bytes.
const DOCUMENT_BYTES_MAX: u64 = 64 * 1024;
/// Characters of a text that is no document, at the most.
const TEXT_CHARS_MAX: usize = 1024;

/// Makes an error document of what is none: ECR says `denied: …` in plain text, and what stands
/// before a registry answers in HTML. docker shows neither.
pub(super) fn documented(mut reply: Reply) -> Reply {
    if reply.status == 429 && reply.headers.first("Retry-After").is_none() {
        reply.headers.set("Retry-After", RETRY_AFTER_SECONDS);
    }
    let Body::Stream { mut reader, length } = reply.body else {
        return reply;
    };
    // 416 of a blob host: its document says the size, in a field that clients read.
    if reply.status < 400 {
        reply.body = Body::Stream { reader, length };
        return reply;
    }
    let mut bytes = Vec::new();
    let read = (&mut reader)
        .take(DOCUMENT_BYTES_MAX)
        .read_to_end(&mut bytes);
    if read.is_ok() && bytes.len() as u64 == DOCUMENT_BYTES_MAX {
        let reader = Box::new(Cursor::new(bytes).chain(reader));
        reply.body = Body::Stream { reader, length };
        return reply;
    }
    if read.is_ok() && is_document(&bytes) {
        reply.body = Body::Bytes(bytes);
        return reply;
    }
    let media_type = reply.headers.first("Content-Type").unwrap_or_default();
    let text = match media_type.starts_with("text/plain") && read.is_ok() {
        true => said(&bytes),
        false => String::new(),
    };
    let message = match text.as_str() {
        "" => format!("the registry answered {}", reply.status),
        text => text.to_owned(),
    };
    let error = OciError::new(code(reply.status), message).with_status(reply.status);
    reply.headers.set("Content-Type", "application/json");
    reply.headers.remove("Content-Encoding");
    reply.outcome.error = Some(error.message.clone());
    reply.body = Body::Bytes(error.document().into_bytes());
    reply
}

fn is_document(bytes: &[u8]) -> bool {
    let document: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    document
        .get("errors")
        .is_some_and(serde_json::Value::is_array)
}

/// One line of text.
fn said(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let printable = line.chars().filter(|c| !c.is_control());
    printable.take(TEXT_CHARS_MAX).collect()
}

const fn code(status: u16) -> ErrorCode {
    match status {
        401 | 403 => ErrorCode::Denied,
        404 => ErrorCode::NotFound,
        405 => ErrorCode::Unsupported,
        429 => ErrorCode::TooManyRequests,
        500.. => ErrorCode::Unavailable,
        _ => ErrorCode::BadRequest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Headers, Outcome};

    fn documented_of(status: u16, media_type: &str, body: Vec<u8>) -> (Reply, String) {
        let length = Some(body.len() as u64);
        let reply = documented(Reply {
            status,
            headers: Headers::from_iter([("Content-Type", media_type)]),
            body: Body::Stream {
                reader: Box::new(Cursor::new(body)),
                length,
            },
            outcome: Outcome::default(),
        });
        let text = match &reply.body {
            Body::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
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
        assert_eq!(documented(said).headers.first("Retry-After"), Some("60"));
    }
}
