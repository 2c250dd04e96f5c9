//! Text in URIs. Owns: percent-encoding (RFC 3986 §2.1) and the parameters of a query. Must not:
//! know what a parameter means.
//!
//! A reader of configuration or of a name refuses a text that is encoded wrongly. A guard must find
//! whatever a registry may find, so it decodes all that can be decoded: see [`decode_leniently`].

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Everything but the unreserved characters (RFC 3986 §2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The decoded text. None when a `%` begins no encoding, or when the result is not UTF-8.
pub fn decode(text: &str) -> Option<String> {
    encoded_bytes(text)?;
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.ok().map(Cow::into_owned)
}

/// The decoded text. None when a `%` begins no encoding, or hides anything but visible ASCII: no
/// name in a registry needs that.
pub fn decode_visible(text: &str) -> Option<String> {
    let visible = encoded_bytes(text)?.iter().all(u8::is_ascii_graphic);
    visible.then(|| decode(text)).flatten()
}

/// The text as the most tolerant server reads it: decoded once, `+` as a blank (as in forms); a `%`
/// that begins no encoding stays as it is.
pub fn decode_leniently(text: &str) -> String {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8_lossy().into_owned()
}

/// The text with everything but RFC 3986's unreserved characters as `%XX`.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// The query of a target, without its question mark; empty when there is none.
pub fn query_of(target: &str) -> &str {
    target.split_once('?').map_or("", |(_, query)| query)
}

/// The value of a parameter as it is written; of several with that name, the first.
pub fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .find(|(other, _)| *other == name)
        .map(|(_, value)| value)
}

/// The bytes that are encoded in the text. None when a `%` begins no encoding.
fn encoded_bytes(text: &str) -> Option<Vec<u8>> {
    let parts = text.split('%').skip(1);
    let byte = |part: &str| {
        let digits = part.get(..2)?;
        let hexadecimal = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        hexadecimal
            .then(|| u8::from_str_radix(digits, 16).ok())
            .flatten()
    };
    parts.map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_decoder_keeps_its_rule() {
        for (text, strict, visible, lenient) in [
            ("a%2Fb%2fc", Some("a/b/c"), Some("a/b/c"), "a/b/c"),
            ("%252F", Some("%2F"), Some("%2F"), "%2F"),
            ("a+b", Some("a+b"), Some("a+b"), "a b"),
            ("é", Some("é"), Some("é"), "é"),
            ("%C3%A9", Some("é"), None, "é"),
            ("%20", Some(" "), None, " "),
            ("%00", Some("\0"), None, "\0"),
            ("%ff", None, None, "\u{fffd}"),
            ("100%", None, None, "100%"),
            ("%zz%4", None, None, "%zz%4"),
            ("%+1", None, None, "% 1"),
            ("%4é", None, None, "%4é"),
            ("", Some(""), Some(""), ""),
        ] {
            assert_eq!(decode(text).as_deref(), strict, "{text}");
            assert_eq!(decode_visible(text).as_deref(), visible, "{text}");
            assert_eq!(decode_leniently(text), lenient, "{text}");
        }
    }

    #[test]
    fn a_query_has_parameters() {
        assert_eq!(query_of("/v2/?n=1?2"), "n=1?2");
        assert_eq!(query_of("/v2/"), "");
        let query = "n&n=1&last=a%2Fb=c&n=2&=x";
        assert_eq!(parameter(query, "n"), Some("1"));
        assert_eq!(parameter(query, "last"), Some("a%2Fb=c"));
        assert_eq!(parameter(query, "Last"), None);
        assert_eq!(parameter("", "n"), None);
    }
}
