//! Our token in what upstream sends back. Owns: finding it, decoded or not, in fields, bodies and
//! error texts, and keeping it there. Must not: change anything else, or the length of a body.
//!
//! A registry, or what stands before it, may show in an error what it was sent; such pages are
//! there to help a developer. A hostile one may send it in anything. The client must not see our
//! token, so an error's body gets stars in its place. Any other body would be damaged by that, so
//! it is cut.

use std::io::{self, Read};
use std::sync::Arc;

use super::incoming::Incoming;
use crate::secret::{Secret, words_of};
use crate::uri;

/// Shorter words than this are no tokens, and would be found everywhere.
const WORD_BYTES_MIN: usize = 8;
/// How `/` and `+` are written: in base64, in base64 for URLs, and in JSON, where PHP escapes the
/// slash, .NET the plus, and others both, since a page may hold the text.
const SIGNS: [(&str, &str); 8] = [
    ("/", "+"),
    ("_", "-"),
    ("\\/", "+"),
    ("/", "\\u002b"),
    ("/", "\\u002B"),
    ("\\u002F", "+"),
    ("\\u002f", "\\u002b"),
    ("\\u002F", "\\u002B"),
];
/// Bytes read from a body at a time. Each reply holds as much for as long as its client reads.
const READ_BYTES: usize = 16 * 1024;

/// One token, and all the forms in which it may come back. To find them takes a millisecond, so
/// they are found once for each token.
#[derive(Debug, PartialEq, Eq)]
pub struct Secrets {
    authorization: Secret<String>,
    words: Secret<Vec<SoughtText>>,
    /// True for a byte that one of the words begins with.
    first_bytes: Secret<Box<[bool; 256]>>,
}

impl Secrets {
    /// `authorization`: a value of `Authorization`. Its words are the credentials as they are, and
    /// for `Basic` also `user:password` and the password (RFC 7617 §2), each of them plain,
    /// percent-encoded once or twice, in base64's form for URLs, and with its signs escaped as
    /// writers of JSON do.
    pub fn new(authorization: Secret<String>) -> Self {
        let mut forms: Vec<String> = Vec::new();
        for word in words_of(authorization.expose()) {
            // It is as secret without the padding, which some leave out and some escape.
            let word = word.trim_end_matches('=');
            let encoded = uri::encode(word);
            let lower = lower_escapes(&encoded);
            let percent = [uri::encode(&encoded), uri::encode(&lower), encoded, lower];
            let written = SIGNS.map(|(slash, plus)| word.replace('/', slash).replace('+', plus));
            for form in written.into_iter().chain(percent) {
                if form.len() >= WORD_BYTES_MIN && !forms.contains(&form) {
                    forms.push(form);
                }
            }
        }
        let mut first_bytes = Box::new([false; 256]);
        for byte in forms.iter().filter_map(|form| form.bytes().next()) {
            if let Some(begins) = first_bytes.get_mut(usize::from(byte)) {
                *begins = true;
            }
        }
        Self {
            authorization,
            words: Secret::new(forms.into_iter().map(SoughtText::new).collect()),
            first_bytes: Secret::new(first_bytes),
        }
    }

    /// The value of `Authorization` itself.
    pub const fn authorization(&self) -> &Secret<String> {
        &self.authorization
    }

    /// Removes the fields that hold the token, and guards the body.
    pub fn remove_from(self: &Arc<Self>, reply: &mut Incoming) {
        if self.words.expose().is_empty() {
            return;
        }
        reply
            .headers
            .retain(|name, value| [name, value].iter().all(|text| self.is_free(text)));
        let body = std::mem::replace(&mut reply.body, Box::new(io::empty()));
        reply.body = Box::new(Guarded {
            body,
            secrets: Arc::clone(self),
            masks: reply.status >= 400,
            bytes: Vec::new(),
            at: 0,
            clean: 0,
            end: None,
        });
    }

    /// Puts stars in the place of the token.
    pub fn mask(&self, bytes: &mut [u8]) {
        let mut from = 0;
        while let Some((start, end)) = self.find(bytes, from) {
            if let Some(found) = bytes.get_mut(start..end) {
                found.fill(b'*');
            }
            from = end;
        }
    }

    /// Puts stars in the place of the token in a text.
    pub fn mask_text(&self, text: &mut String) {
        let mut bytes = std::mem::take(text).into_bytes();
        self.mask(&mut bytes);
        *text = String::from_utf8_lossy(&bytes).into_owned();
    }

    fn is_free(&self, text: &str) -> bool {
        self.find(text.as_bytes(), 0).is_none()
    }

    /// The place of the first of its forms, at or after `from`.
    fn find(&self, bytes: &[u8], from: usize) -> Option<(usize, usize)> {
        let found = self.words.expose().iter().filter_map(|word| {
            let start = word.find(bytes, from)?;
            Some((start, start + word.text.len()))
        });
        found.min()
    }

    /// How many bytes at the end may be the beginning of the token.
    fn begun_at_end(&self, bytes: &[u8]) -> usize {
        let words = self.words.expose();
        let longest = words.iter().map(|word| word.text.len()).max();
        let most = longest.unwrap_or_default().saturating_sub(1);
        let first = bytes.len().saturating_sub(most);
        let begins = |at: &usize| {
            let end = bytes.get(*at..).unwrap_or_default();
            // Most bytes begin no word, and one look tells.
            let first_byte = usize::from(end.first().copied().unwrap_or_default());
            let may_begin = self.first_bytes.expose().get(first_byte) == Some(&true);
            may_begin && words.iter().any(|w| w.text.as_bytes().starts_with(end))
        };
        let start = (first..bytes.len()).find(begins);
        start.map_or(0, |start| bytes.len() - start)
    }
}

/// An encoded text with the digits of its escapes in lower case: `%2f` in place of `%2F`.
fn lower_escapes(encoded: &str) -> String {
    let mut parts = encoded.split('%');
    let mut lower = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        lower.push('%');
        lower.push_str(&digits.to_ascii_lowercase());
        lower.push_str(rest);
    }
    lower
}

/// A text that is looked for, by Horspool's method: words are long, so most bytes are skipped.
#[derive(PartialEq, Eq)]
struct SoughtText {
    text: String,
    /// How far to go on when a window ends with this byte.
    skips: Box<[u16; 256]>,
}

impl SoughtText {
    fn new(text: String) -> Self {
        let last = text.len().saturating_sub(1);
        // To go on by less finds the same.
        let short = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
        let mut skips = Box::new([short(text.len()); 256]);
        for (at, byte) in text.bytes().enumerate().take(last) {
            if let Some(skip) = skips.get_mut(usize::from(byte)) {
                *skip = short(last - at);
            }
        }
        Self { text, skips }
    }

    fn find(&self, bytes: &[u8], from: usize) -> Option<usize> {
        let mut start = from;
        while let Some(window) = bytes.get(start..start + self.text.len()) {
            if window == self.text.as_bytes() {
                return Some(start);
            }
            let last = window.last().copied().unwrap_or_default();
            let skip = self.skips.get(usize::from(last)).copied();
            start += usize::from(skip.unwrap_or(1));
        }
        None
    }
}

/// A body that never gives out the token.
struct Guarded {
    body: Box<dyn Read + Send>,
    secrets: Arc<Secrets>,
    /// Stars take the token's place; otherwise the body is cut.
    masks: bool,
    /// The bytes that were read: given out up to `at`, and free of the token up to `clean`.
    bytes: Vec<u8>,
    at: usize,
    clean: usize,
    /// How the body ended. The fault is given out after the bytes before it.
    end: Option<io::Result<()>>,
}

impl Guarded {
    /// Reads more, and says how much of it may be given out.
    fn fill(&mut self) {
        self.bytes.drain(..self.at);
        self.at = 0;
        let old = self.bytes.len();
        self.bytes.resize(old + READ_BYTES, 0);
        let read = self
            .body
            .read(self.bytes.get_mut(old..).unwrap_or_default());
        self.bytes.truncate(old + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => self.end = Some(Ok(())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.end = Some(Err(error)),
        }
        if self.masks {
            self.secrets.mask(&mut self.bytes);
        } else if self.secrets.find(&self.bytes, 0).is_some() {
            self.bytes.clear();
            let why = "the registry sends our own token back; the body is cut before it";
            self.end = Some(Err(io::Error::other(why)));
        }
        let held_back = match self.end {
            None => self.secrets.begun_at_end(&self.bytes),
            Some(_) => 0,
        };
        self.clean = self.bytes.len() - held_back;
    }
}

impl Read for Guarded {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.clean && !into.is_empty() {
            match self.end.take() {
                None => self.fill(),
                Some(end) => {
                    self.end = Some(Ok(()));
                    return end.map(|()| 0);
                }
            }
        }
        let ready = self.bytes.get(self.at..self.clean).unwrap_or_default();
        let count = (&mut &*ready).read(into)?;
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Headers;

    /// `AWS:pass/word+1`.
    const TOKEN: &str = "QVdTOnBhc3Mvd29yZCsx";

    fn secrets() -> Arc<Secrets> {
        Arc::new(Secrets::new(Secret::new(format!("Basic {TOKEN}"))))
    }

    /// Gives out a few bytes at a time.
    struct Slowly(Vec<u8>, usize);

    impl Read for Slowly {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(into.len());
            let piece: Vec<u8> = self.0.drain(..count).collect();
            (&*piece).read(into)
        }
    }

    fn guard(status: u16, body: impl Read + Send + 'static) -> (Headers, io::Result<String>) {
        let echo = format!("you sent {TOKEN}");
        let mut reply = Incoming {
            status,
            headers: Headers::from_iter([
                ("X-Echo", echo.as_str()),
                ("Location", "/v2/?p=pass%2fword%2b1"),
                ("X-Other", "kept"),
            ]),
            body: Box::new(body),
            length: None,
        };
        secrets().remove_from(&mut reply);
        let mut text = String::new();
        let read = reply.body.read_to_string(&mut text);
        (reply.headers, read.map(|_| text))
    }

    #[test]
    fn the_token_is_masked_in_errors_in_every_form() {
        for form in [
            TOKEN,
            "AWS:pass/word+1",
            "pass/word+1",
            r"pass\/word+1",
            "AWS%3Apass%2Fword%2B1",
            "pass%2fword%2b1",
            "pass%252Fword%252B1",
            "pass_word-1",
            r"pass\u002Fword\u002B1",
            r"AWS:pass\u002fword\u002b1",
            r"pass/word\u002B1",
        ] {
            for step in [1, 2, 7, 100_000] {
                let body = format!("{form}, {form}{form} {}", "x".repeat(70_000));
                let (headers, text) = guard(403, Slowly(body.clone().into_bytes(), step));
                let text = text.unwrap();
                assert_eq!(text.len(), body.len());
                assert!(
                    !text.contains(form) && !text.contains("word"),
                    "{form} {step}"
                );
                assert!(text.ends_with(&"x".repeat(70_000)));
                assert_eq!(headers.len(), 1, "{headers:?}");
                assert_eq!(headers.first("X-Other"), Some("kept"));
            }
        }
    }

    #[test]
    fn bug_a_token_without_its_padding_was_not_found() {
        let padded = Secrets::new(Secret::new("Basic QVdTOmV5SndZWGxzYjJGa0lqb2k9".to_owned()));
        // In it `AWS:eyJwYXlsb2FkIjoi=`.
        for form in [
            "eyJwYXlsb2FkIjoi",
            r"eyJwYXlsb2FkIjoi\u003d",
            "eyJwYXlsb2FkIjoi%3D",
        ] {
            let mut text = format!("you sent {form}");
            padded.mask_text(&mut text);
            assert!(!text.contains("eyJ"), "{text}");
        }
        let mut reply = Incoming {
            status: 200,
            headers: Headers::from_iter([("eyJwYXlsb2FkIjoi", "x"), ("X-Other", "kept")]),
            body: Box::new(io::empty()),
            length: None,
        };
        Arc::new(padded).remove_from(&mut reply);
        assert_eq!(reply.headers.len(), 1);
    }

    #[test]
    fn any_other_body_is_cut_before_the_token() {
        for step in [1, 10, 100_000] {
            let body = format!("{}{TOKEN}", "x".repeat(100_000));
            let mut guarded = Incoming {
                status: 200,
                headers: Headers::new(),
                body: Box::new(Slowly(body.into_bytes(), step)),
                length: None,
            };
            secrets().remove_from(&mut guarded);
            let mut got = Vec::new();
            assert!(guarded.body.read_to_end(&mut got).is_err());
            assert!(got.iter().all(|byte| *byte == b'x'), "{step}");
        }
    }

    #[test]
    fn everything_else_stays_and_nothing_waits() {
        let long = "x".repeat(200_000);
        for status in [200, 500] {
            let body = io::Cursor::new(long.clone());
            assert_eq!(guard(status, body).1.unwrap(), long);
        }
        assert_eq!(guard(404, io::empty()).1.unwrap(), "");
        // The beginning of a token at the end is no token.
        let body = "half of it: QVdTOnBhc3M";
        assert_eq!(guard(200, Slowly(body.into(), 5)).1.unwrap(), body);
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
        assert!(guard(500, Broken(false)).1.is_err());
        // The bytes that have come are given out before more are read.
        let mut reply = Incoming {
            status: 200,
            headers: Headers::new(),
            body: Box::new(Slowly(b"abcdef".to_vec(), 4)),
            length: None,
        };
        secrets().remove_from(&mut reply);
        let mut got = [0; 16];
        assert_eq!(reply.body.read(&mut got).unwrap(), 4);
    }

    #[test]
    fn short_words_are_not_looked_for() {
        let secrets = Secrets::new(Secret::new("Basic YTpi".to_owned()));
        let mut text = "YTpi a:b b".to_owned();
        secrets.mask_text(&mut text);
        assert_eq!(text, "YTpi a:b b");
        secrets.mask(&mut []);
        assert!(!format!("{secrets:?}").contains("YTpi"));
    }
}
