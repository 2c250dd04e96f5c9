//! Texts from outside, without secrets. Owns: the forms in which a secret may come back, and the
//! looks of words that are secrets. Must not: know where a text goes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::Value;

use super::xml;
use crate::secret::{Secret, decode_base64, words_of};
use crate::uri;

/// Shorter words are no secrets, and would be found everywhere.
const SECRET_LENGTH_MIN: usize = 6;
/// A word of this length with small letters, capitals and digits is a token, of any kind.
/// The longest names in AWS's messages, the ARN of a role's session, have parts of 142 at most.
const TOKEN_LENGTH_MIN: usize = 150;
/// The user name in an ECR token.
const ECR_USER: &str = "AWS:";
/// The fields of AWS's replies, JSON and XML, that hold secrets.
const SECRET_FIELDS: [&str; 6] = [
    "authorizationToken",
    "Password",
    "SecretAccessKey",
    "SessionToken",
    "Token",
    "WebIdentityToken",
];

/// The secrets that a text must not show, in every form in which they may come back.
#[derive(Default)]
pub(super) struct Redactor(Vec<Secret<String>>);

impl Redactor {
    /// Hides these secrets: as they are, percent-encoded, in base64, and decoded from base64.
    pub(super) fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret<String>>) -> Self {
        let mut redactor = Self::default();
        for secret in secrets {
            redactor.add(secret.expose());
        }
        redactor
    }

    /// Hides the secrets in an answer of AWS, too.
    pub(super) fn add_answer(&mut self, body: &str) {
        match serde_json::from_str(body) {
            Ok(document) => self.add_json(&document),
            Err(_) => {
                let fields = SECRET_FIELDS.iter();
                for text in fields.filter_map(|name| xml::first_text(body, name)) {
                    self.add(&text);
                }
            }
        }
    }

    fn add_json(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.add_json(item)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    let is_secret = SECRET_FIELDS
                        .iter()
                        .any(|field| field.eq_ignore_ascii_case(name));
                    match value.as_str() {
                        Some(text) if is_secret => self.add(text),
                        _ => self.add_json(value),
                    }
                }
            }
            _ => {}
        }
    }

    /// Hides `secret`, too.
    pub(super) fn add(&mut self, secret: &str) {
        for text in words_of(secret) {
            for form in [
                uri::encode(&text),
                STANDARD_NO_PAD.encode(&text),
                // Base64 without its padding, and in the alphabet for URLs.
                text.trim_end_matches('=').to_owned(),
                text.replace('+', "-").replace('/', "_"),
                text,
            ] {
                if form.len() >= SECRET_LENGTH_MIN && !self.0.iter().any(|f| *f.expose() == form) {
                    self.0.push(Secret::new(form));
                }
            }
        }
        // The longest first: a form may hold another.
        self.0
            .sort_by_key(|form| std::cmp::Reverse(form.expose().len()));
    }

    /// `text` with `***` in place of secrets.
    pub(super) fn clean(&self, text: &str) -> String {
        let text = self.0.iter().fold(text.to_owned(), |text, form| {
            text.replace(form.expose().as_str(), "***")
        });
        let ends = |c: char| c.is_whitespace() || "\"'`<>(){}[],;".contains(c);
        text.split_inclusive(ends)
            .map(|word| {
                let bare = word.trim_end_matches(ends);
                let after = word.strip_prefix(bare).unwrap_or_default();
                match bare.split_at_checked(secret_at(bare)) {
                    Some((before, secret)) if !secret.is_empty() => format!("{before}***{after}"),
                    _ => word.to_owned(),
                }
            })
            .collect()
    }
}

/// The position in `word` at which a text begins that looks like a secret; its end without one.
fn secret_at(word: &str) -> usize {
    if let Some(at) = word.find(ECR_USER)
        && word.len() > at + ECR_USER.len()
    {
        return at;
    }
    // Marks at the end are the padding of base64, or punctuation.
    let bare = word.trim_end_matches(['=', ':']);
    let value_at = bare.rfind(['=', ':']).map_or(0, |at| at + 1);
    let value = word.get(value_at..).unwrap_or_default();
    let has = |of: fn(&u8) -> bool| value.as_bytes().iter().any(of);
    let is_token = value.len() >= TOKEN_LENGTH_MIN
        && has(u8::is_ascii_lowercase)
        && has(u8::is_ascii_uppercase)
        && has(u8::is_ascii_digit);
    let is_ecr =
        decode_base64(value.trim_end_matches(':')).is_some_and(|text| text.starts_with(ECR_USER));
    if is_token || is_ecr {
        return value_at;
    }
    word.len()
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn base64(text: &str) -> String {
        STANDARD.encode(text)
    }

    fn redactor(secrets: &[&str]) -> Redactor {
        let secrets: Vec<_> = secrets
            .iter()
            .map(|s| Secret::new((*s).to_owned()))
            .collect();
        Redactor::new(&secrets)
    }

    #[test]
    fn a_secret_is_hidden_in_every_form() {
        let secret = "wJalr/K7MDENG+bPx==";
        let hides = redactor(&[secret]);
        for form in [
            secret.to_owned(),
            uri::encode(secret),
            base64(secret),
            base64(secret).trim_end_matches('=').to_owned(),
            secret.trim_end_matches('=').to_owned(),
            secret.replace('/', "_").replace('+', "-"),
        ] {
            let text = hides.clean(&format!("key {form}, or '{form}'"));
            assert!(
                !text.contains(&form) && text.starts_with("key ***"),
                "{text}"
            );
        }
    }

    #[test]
    fn an_ecr_token_is_hidden_with_what_it_holds() {
        let token = base64("AWS:pass/word");
        let hides = redactor(&[&format!("Basic {token}")]);
        for form in [&token, "AWS:pass/word", "pass/word", "pass%2Fword"] {
            assert_eq!(hides.clean(&format!("got {form}!")), "got ***!", "{form}");
        }
        // One that nobody knows yet shows by its looks.
        let none = Redactor::default();
        assert_eq!(none.clean(&format!("got \"{token}\".")), "got \"***\".");
        assert_eq!(none.clean(&format!("token={token} x")), "token=*** x");
        assert_eq!(none.clean("user AWS:pass/word x"), "user *** x");
    }

    #[test]
    fn answers_name_their_secrets() {
        let mut hides = Redactor::default();
        hides.add_answer(r#"{"a":[{"authorizationToken":"hunter22"}],"token":"hunter33"}"#);
        hides.add_answer("<r><SecretAccessKey>hunter44</SecretAccessKey></r>");
        let text = hides.clean("hunter22 hunter33 hunter44 hunter55");
        assert_eq!(text, "*** *** *** hunter55");
    }

    #[test]
    fn long_tokens_are_hidden_and_messages_of_aws_are_not() {
        let none = Redactor::default();
        let token = "IQoJb3JpZ2luX2VjE".repeat(10);
        assert_eq!(none.clean(&format!("token {token}: no")), "token *** no");
        for text in [
            "User: arn:aws:sts::123456789012:assumed-role/eks-Node-Role-ABCDEFGH12345/\
             i-0123456789abcdef0 is not authorized to perform: ecr:GetAuthorizationToken on \
             resource: *",
            "x",
            "",
            "a = b, c: d; (e)",
            "request id 2f1c3c9e-0e3b-4f7e-9a53-4f1d3a6f8a77",
        ] {
            assert_eq!(none.clean(text), text);
        }
        let arn = format!(
            "arn:aws:sts::123456789012:assumed-role/{}1/{}2",
            "aB".repeat(31),
            "cD".repeat(31)
        );
        assert_eq!(none.clean(&arn), arn);
    }
}
