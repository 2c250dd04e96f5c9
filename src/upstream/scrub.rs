//! Errors in upstream's own words, without our secrets. Owns: finding the token in what comes back.
//! Must not: change anything else, or the length of a body.
//!
//! A registry, or what stands before it, may show in an error what it was sent; such pages are
//! there to help a developer. Our token is not the client's to see.

use std::io::{self, Cursor, Read};

use super::client::Incoming;
use crate::oci::ERROR_DOCUMENT_BYTES_MAX;
use crate::secret::Secret;

/// Shorter words than this are no tokens, and would be found everywhere.
const TOKEN_LENGTH_MIN: usize = 8;

/// Hides `secret`, a value of `Authorization`, in an error's body; fields that hold it go.
pub(super) fn scrub(reply: &mut Incoming, secret: Secret<String>) {
    if reply.status < 400 || token(&secret).len() < TOKEN_LENGTH_MIN {
        return;
    }
    reply
        .headers
        .retain(|_, field| !field.contains(token(&secret)));
    let body = std::mem::replace(&mut reply.body, Box::new(io::empty()));
    reply.body = Box::new(Scrubbed {
        body,
        secret,
        start: None,
        fault: None,
    });
}

/// The token with or without its scheme in front.
fn token(secret: &Secret<String>) -> &str {
    let value = secret.expose().as_str();
    value.rsplit(' ').next().unwrap_or(value)
}

/// Read from the body when it is read from.
struct Scrubbed {
    body: Box<dyn Read + Send>,
    secret: Secret<String>,
    start: Option<Cursor<Vec<u8>>>,
    /// How reading the start ended; told once the start is read.
    fault: Option<io::Error>,
}

impl Read for Scrubbed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let start = match &mut self.start {
            Some(start) => start,
            None => {
                let mut bytes = Vec::new();
                let read = (&mut self.body)
                    .take(ERROR_DOCUMENT_BYTES_MAX)
                    .read_to_end(&mut bytes);
                self.fault = read.err();
                mask(&mut bytes, token(&self.secret).as_bytes());
                self.start.insert(Cursor::new(bytes))
            }
        };
        match start.read(into)? {
            0 => match self.fault.take() {
                Some(fault) => Err(fault),
                None => self.body.read(into),
            },
            count => Ok(count),
        }
    }
}

fn mask(bytes: &mut [u8], token: &[u8]) {
    let mut from = 0;
    while let Some(at) = bytes
        .get(from..)
        .and_then(|rest| rest.windows(token.len()).position(|word| word == token))
    {
        let end = from + at + token.len();
        if let Some(found) = bytes.get_mut(from + at..end) {
            found.fill(b'*');
        }
        from = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Headers;

    const TOKEN: &str = "QVdTOnBhc3N3b3Jk";

    fn scrubbed(status: u16, body: impl Read + Send + 'static) -> (Headers, io::Result<String>) {
        let secret = Secret::new(format!("Basic {TOKEN}"));
        let echo = format!("you sent {TOKEN}");
        let mut reply = Incoming {
            status,
            headers: Headers::from_iter([("X-Echo", echo.as_str()), ("X-Other", "kept")]),
            body: Box::new(body),
            length: None,
        };
        scrub(&mut reply, secret);
        let mut text = String::new();
        let read = reply.body.read_to_string(&mut text);
        (reply.headers, read.map(|_| text))
    }

    #[test]
    fn the_token_is_hidden_in_errors() {
        let body = format!("Basic {TOKEN} and {TOKEN}{TOKEN}.");
        let (headers, text) = scrubbed(403, Cursor::new(body.clone()));
        let text = text.unwrap();
        assert_eq!(text, body.replace(TOKEN, &"*".repeat(TOKEN.len())));
        assert_eq!(headers.len(), 1);
        assert_eq!(headers.first("X-Other"), Some("kept"));
        // Nothing but errors is looked at.
        assert_eq!(scrubbed(200, Cursor::new(body.clone())).1.unwrap(), body);
    }

    #[test]
    fn everything_else_stays() {
        let long = "x".repeat(200_000);
        assert_eq!(scrubbed(500, Cursor::new(long.clone())).1.unwrap(), long);
        assert_eq!(scrubbed(404, io::empty()).1.unwrap(), "");
        // A body that breaks off still does, after what came of it.
        struct Broken(bool);
        impl Read for Broken {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.0, true) {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                (&b"part"[..]).read(into)
            }
        }
        assert!(scrubbed(500, Broken(false)).1.is_err());
    }
}
