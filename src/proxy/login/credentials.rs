//! The credentials in a client's `Authorization`. Owns: the form of Basic credentials (RFC 7617).
//! Must not: judge them, or show them.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::message::Headers;
use crate::secret::Secret;

/// Some clients leave out the padding.
const BASE_64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A user name and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct BasicCredentials {
    /// `name:password`; a name has no colon.
    pair: Secret<Vec<u8>>,
    colon: usize,
}

impl BasicCredentials {
    /// Reads the one `Authorization` field of a request; `Ok(None)` without such a field.
    ///
    /// # Errors
    /// What is wrong with the field; nothing of its value.
    pub fn from_headers(headers: &Headers) -> Result<Option<Self>, &'static str> {
        let mut values = headers.all("Authorization");
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => Self::parse(value).map(Some),
            // Which of them counts is a matter of taste, and so none does.
            (Some(_), Some(_)) => Err("two Authorization fields"),
        }
    }

    /// Reads `Basic <base64 of name:password>`.
    ///
    /// # Errors
    /// What is wrong with it; nothing of its value.
    pub fn parse(value: &str) -> Result<Self, &'static str> {
        let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
        if !scheme.eq_ignore_ascii_case("Basic") {
            return Err("not Basic credentials");
        }
        let token = token.trim_matches(' ');
        let pair = BASE_64.decode(token).map_err(|_| "not base64")?;
        let colon = pair.iter().position(|b| *b == b':').ok_or("no colon")?;
        // RFC 7617 §2 forbids them, and bcrypt ends at the first NUL.
        if pair.iter().any(u8::is_ascii_control) {
            return Err("control characters");
        }
        Ok(Self {
            pair: Secret::new(pair),
            colon,
        })
    }

    /// The name; empty when it is not UTF-8, as no user's is.
    pub fn name(&self) -> &str {
        let name = self.pair.expose().get(..self.colon).unwrap_or_default();
        str::from_utf8(name).unwrap_or_default()
    }

    /// The password.
    pub fn password(&self) -> &[u8] {
        self.pair.expose().get(self.colon + 1..).unwrap_or_default()
    }

    /// Both, as they came.
    pub fn pair(&self) -> &[u8] {
        self.pair.expose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(value: &str) -> Option<(String, Vec<u8>)> {
        let credentials = BasicCredentials::parse(value).ok()?;
        Some((
            credentials.name().to_owned(),
            credentials.password().to_vec(),
        ))
    }

    fn some(name: &str, password: &[u8]) -> Option<(String, Vec<u8>)> {
        Some((name.to_owned(), password.to_vec()))
    }

    #[test]
    fn basic_credentials() {
        // The example of RFC 7617 §2.
        let example = some("Aladdin", b"open sesame");
        for value in [
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            "basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            "BASIC  QWxhZGRpbjpvcGVuIHNlc2FtZQ",
        ] {
            assert_eq!(parts(value), example, "{value}");
        }
        // And of §2.1: "test" with "123£".
        assert_eq!(
            parts("Basic dGVzdDoxMjPCow=="),
            some("test", "123£".as_bytes())
        );
        assert_eq!(parts("Basic YTpiOmM="), some("a", b"b:c"));
        assert_eq!(parts("Basic Og=="), some("", b""));
        // "\xff:a"
        assert_eq!(parts("Basic /zph"), some("", b"a"));
    }

    #[test]
    fn what_is_malformed() {
        for value in [
            "",
            "Basic",
            "Basic ",
            "Basic YQ==",
            "Basic !!!!",
            "Basic YTpi YTpi",
            "BasicYTpi",
            "Bearer YTpi",
            "YTpi",
            // "a:b\0c", "a\n:b", "a:\x7f"
            "Basic YTpiAGM=",
            "Basic YQo6Yg==",
            "Basic YTp/",
        ] {
            assert_eq!(parts(value), None, "{value}");
        }
    }

    #[test]
    fn one_field_counts_and_two_do_not() {
        let field = ("Authorization", "Basic YTpi");
        let of = |fields: &[(&str, &str)]| {
            BasicCredentials::from_headers(&fields.iter().copied().collect())
        };
        assert!(of(&[]).unwrap_or_else(|why| panic!("{why}")).is_none());
        assert!(of(&[field]).is_ok_and(|found| found.is_some()));
        assert!(of(&[field, ("authorization", "Basic YTpi")]).is_err());
    }
}
