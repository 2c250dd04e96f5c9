//! Values that must not be seen. Owns: [`Secret`], and the forms in which a secret may come back.
//! Must not: know where a text goes.

use std::fmt::{self, Display};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

/// Shorter words are not taken for base64.
const BASE64_LENGTH_MIN: usize = 6;

/// A value that no log, error or debug print shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps `value`, as early as it enters the process.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself, for the one place that sends it.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<T> Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The value of `Authorization` for a login, `USER:PASSWORD` (RFC 7617 §2).
pub fn basic_authorization(login: &Secret<String>) -> Secret<String> {
    Secret::new(format!("Basic {}", STANDARD.encode(login.expose())))
}

/// The forms of a secret that must not be seen: the secret without the scheme of `Authorization` in
/// front; if it is base64 (RFC 7617 §2), also the decoded text and the password in that text.
pub fn words_of(secret: &str) -> Vec<String> {
    let word = secret.trim().rsplit(' ').next().unwrap_or_default();
    let mut words = vec![word.to_owned()];
    if let Some(pair) = decode_base64(word) {
        let password = pair.split_once(':').map(|(_, password)| password);
        words.extend(password.map(str::to_owned));
        words.push(pair);
    }
    words
}

/// The text in base64 of either alphabet, with or without padding; none for anything else.
pub fn decode_base64(text: &str) -> Option<String> {
    let text = text.trim_end_matches('=');
    if text.len() < BASE64_LENGTH_MIN {
        return None;
    }
    let standard = text.replace('-', "+").replace('_', "/");
    let text = String::from_utf8(STANDARD_NO_PAD.decode(standard).ok()?).ok()?;
    (!text.chars().any(char::is_control)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print() {
        let secret = Secret::new("hunter2");
        assert_eq!(
            format!("{secret} {secret:?} {:?}", Some(&secret)),
            "*** *** Some(***)"
        );
        assert_eq!(*secret.expose(), "hunter2");
    }

    #[test]
    fn a_login_is_as_in_rfc_7617_section_2() {
        let login = basic_authorization(&Secret::new("Aladdin:open sesame".to_owned()));
        assert_eq!(login.expose(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }
}
