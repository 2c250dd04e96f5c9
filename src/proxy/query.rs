//! The query parameters that decide what a request does. Owns: which they are, and their one
//! reading. Must not: change a byte of the query on its way upstream.
//!
//! Registries take a query apart in different ways: some decode names, some take `;` for a
//! separator, some ignore case, some take the first of two and some the last. A query that two
//! readers could take differently is refused, so that upstream does what was checked here.

use crate::oci::{ErrorCode, OciError};
use crate::uri::{decode, decode_leniently};

/// The parameters, and whether one may stand in a query more than once.
const DECIDING: [(&str, Repeat); 6] = [
    ("digest", Repeat::Never),
    ("from", Repeat::Never),
    ("mount", Repeat::Never),
    ("n", Repeat::Never),
    // Several may name the same registry.
    ("ns", Repeat::Allowed),
    // A manifest may be pushed under several tags (distribution-spec "Pushing Manifests").
    ("tag", Repeat::Allowed),
];
/// Rounds of percent-decoding that are looked through: more than any chain of front ends makes.
const DECODINGS_MAX: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Allowed,
    Never,
}

/// The deciding parameters of one request, decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Query {
    parameters: Vec<(&'static str, String)>,
}

impl Query {
    /// Reads a query, without its `?`.
    ///
    /// # Errors
    /// [`ErrorCode::BadRequest`], which names the parameter, if it is written in a way that
    /// upstream may read differently.
    pub(super) fn parse(query: &str) -> Result<Self, OciError> {
        let mut parameters: Vec<(&'static str, String)> = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let mut parts = parameter.split(';');
            let pair = parts.next().unwrap_or_default();
            if let Some(hidden) = parts.find_map(|part| find_deciding(name_of(part))) {
                let why = "after a semicolon: expected & between parameters";
                return Err(refuse(hidden.0, why));
            }
            if let Some(hidden) = find_hidden(parameter) {
                let why = "is hidden in another one: expected it to stand by itself";
                return Err(refuse(hidden, why));
            }
            let Some((name, repeat)) = find_deciding(name_of(pair)) else {
                continue;
            };
            if name_of(pair) != name {
                return Err(refuse(name, "is encoded: expected its plain name"));
            }
            if parameter.len() > pair.len() {
                return Err(refuse(name, "holds a semicolon: expected it encoded"));
            }
            if repeat == Repeat::Never && parameters.iter().any(|(other, _)| *other == name) {
                return Err(refuse(name, "stands there twice: expected it once"));
            }
            let value = pair.split_once('=').map_or("", |(_, value)| value);
            let why = "is encoded wrongly: expected %, two hexadecimal digits, UTF-8";
            let value = decode(value).ok_or_else(|| refuse(name, why))?;
            parameters.push((name, value));
        }
        Ok(Self { parameters })
    }

    /// The decoded value of a parameter that may stand there once.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// The decoded values of a parameter.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let named = self.parameters.iter().filter(move |(own, _)| *own == name);
        named.map(|(_, value)| value.as_str())
    }
}

/// The deciding parameter that a front end finds in this one, if it decodes a query before it takes
/// it apart.
fn find_hidden(parameter: &str) -> Option<&'static str> {
    let mut plain = parameter.to_owned();
    (0..DECODINGS_MAX).find_map(|_| {
        plain = decode_leniently(&plain);
        let mut parts = plain.split(['&', ';', '?', '#']).skip(1);
        parts.find_map(|part| Some(find_deciding(name_of(part))?.0))
    })
}

fn name_of(parameter: &str) -> &str {
    parameter.split('=').next().unwrap_or_default()
}

/// The deciding parameter that some registry could read `name` as.
fn find_deciding(name: &str) -> Option<(&'static str, Repeat)> {
    let mut plain = name.to_owned();
    for _ in 0..DECODINGS_MAX {
        plain = decode_leniently(&plain);
    }
    // Blanks around a name, zero bytes and the brackets of a list are left out by some.
    plain.retain(|c| !c.is_control() && !c.is_whitespace() && !matches!(c, '[' | ']'));
    let mut known = DECIDING.into_iter();
    // In any case, also where a letter beyond ASCII has the same capital (`ſ`).
    known.find(|(known, _)| known.to_uppercase() == plain.to_uppercase())
}

fn refuse(name: &str, why: &str) -> OciError {
    OciError::new(ErrorCode::BadRequest, format!("parameter {name} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_once() {
        let query = Query::parse("_state=a;b%3D&digest=sha256%3Aab&n=5&tag=a&tag=%2562").unwrap();
        assert_eq!(query.get("digest"), Some("sha256:ab"));
        assert_eq!(query.get("n"), Some("5"));
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["a", "%62"]);
        assert_eq!(query.get("mount"), None);
        assert_eq!(Query::parse("").unwrap(), Query::default());
        for odd in [
            "last=a+b/c==;x",
            "&&",
            "=",
            "digests=1",
            "fromage=1",
            "x=digest=1",
            "_n=1",
            "_state=a%26b%3Bc%3Fd",
            "artifactType=application%2Fvnd.x%2Bjson",
        ] {
            assert_eq!(Query::parse(odd).unwrap(), Query::default(), "{odd}");
        }
    }

    #[test]
    fn bug_a_name_that_only_upstream_decoded_named_another_digest() {
        for query in [
            "%64igest=a&digest=b",
            "digest=b&%64igest=a",
            "%2564igest=a",
            "digest=a&digest=b",
            "Digest=a",
            "digest%20=a",
            "digest+=a",
            "digest%00=a",
            "digest[]=a",
            "digest%5B%5D=a",
            "%6dount=a&from=b",
            "%6Dount=a",
            "mount=a&mount=b",
            "from=a&from=b",
            "FROM=a",
            "x=1;from=a",
            "x=1;%66rom=a",
            "digest=a;digest=b",
            "digest=a;x=1",
            "n=1&n=2",
            "%6e=2000",
            "tag=a;b",
            "%74ag=a",
            "%6es=r.example",
            "digest=%ff",
            "x%26digest=a",
            "x=1%26digest%3Da",
            "x=1%2526%2564igest%253Da",
            "digest=a%26mount=b",
            "x=1%3Bfrom=a",
            "x=%23%3Fn=5",
            "dige%C5%BFt=a",
        ] {
            let error = Query::parse(query).expect_err(query);
            assert_eq!(
                (error.code, error.status),
                (ErrorCode::BadRequest, 400),
                "{query}"
            );
            assert!(error.message.starts_with("parameter "), "{}", error.message);
        }
    }
}
