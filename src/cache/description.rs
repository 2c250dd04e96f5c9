//! What a manifest says about itself. Owns: telling a manifest from anything else that may come in
//! its place. Must not: do I/O, or keep more of a manifest than the fields that describe it.

use super::manifest::read_fields;

/// Longest media type (RFC 6838 §4.2: two names of 127 characters and a slash).
const MEDIA_TYPE_BYTES_MAX: usize = 255;

/// What a manifest says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfDescription {
    /// Its media type, if it names one.
    pub media_type: Option<String>,
    /// True for a schema 1 manifest with signatures in it. Its digest is made without them, so it
    /// is not the digest of all bytes.
    pub is_signed: bool,
}

impl SelfDescription {
    /// Reads a manifest that came as `content_type`. None for anything else, such as the page of a
    /// captive portal or the beginning of a manifest: a manifest is a JSON object with a
    /// `schemaVersion`, or (artifact manifests have none) with a `mediaType` that is the type under
    /// which it came.
    pub fn read(manifest: &[u8], content_type: Option<&str>) -> Option<Self> {
        // Fields that can be read in two ways are the client's business.
        let (document, _) = read_fields(manifest);
        let media_type = document
            .text("mediaType")
            .filter(|name| is_media_type(name));
        let version = document.number("schemaVersion");
        if version.is_none() && (media_type.is_none() || media_type != content_type) {
            return None;
        }
        let is_signed = (version == Some(1) && document.get("signatures").is_some())
            || content_type.is_some_and(|name| name.ends_with("+prettyjws"));
        Some(Self {
            media_type: media_type.map(str::to_owned),
            is_signed,
        })
    }
}

/// True for a name that RFC 6838 §4.2 allows.
fn is_media_type(name: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&c);
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(allowed);
    name.len() <= MEDIA_TYPE_BYTES_MAX
        && name
            .split_once('/')
            .is_some_and(|(kind, subtype)| is_name(kind) && is_name(subtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_or_a_part_is_no_manifest() {
        let read = |text: &str, kind| SelfDescription::read(text.as_bytes(), Some(kind));
        let oci = "application/vnd.oci.image.manifest.v1+json";
        let plain = |media_type: Option<&str>| {
            let media_type = media_type.map(str::to_owned);
            let is_signed = false;
            Some(SelfDescription {
                media_type,
                is_signed,
            })
        };
        assert_eq!(read(r#"{"schemaVersion":2}"#, oci), plain(None));
        let typed = format!(r#"{{"schemaVersion":2,"mediaType":"{oci}"}}"#);
        assert_eq!(read(&typed, "text/plain"), plain(Some(oci)));
        let artifact = r#"{"mediaType":"a/b","blobs":[]}"#;
        assert_eq!(read(artifact, "a/b"), plain(Some("a/b")));
        for text in [
            "",
            "<html>",
            "{}",
            "[]",
            "null",
            r#"{"errors":[]}"#,
            artifact,
            r#"{"schemaVersion":"2"}"#,
            r#"{"schemaVersion":2,"layers":["#,
        ] {
            assert_eq!(read(text, oci), None, "{text}");
        }
        let long = format!("a/{}", "b".repeat(126));
        let typed = |name: &str| format!(r#"{{"schemaVersion":2,"mediaType":"{name}"}}"#);
        assert_eq!(read(&typed(&long), oci), plain(Some(&long)));
        assert_eq!(read(&typed(&"a/b".repeat(5000)), oci), plain(None));
        // What would break a header is no type.
        for odd in ["a", "a/", "/b", "a/b\\r\\nX: y", "a/b; c", "a/b/c"] {
            let text = format!(r#"{{"schemaVersion":2,"mediaType":"{odd}"}}"#);
            assert_eq!(read(&text, oci), plain(None), "{odd}");
        }
    }

    #[test]
    fn a_signed_manifest_is_known_by_its_type_or_its_signatures() {
        let is_signed = |text: &str, kind| {
            let description = SelfDescription::read(text.as_bytes(), Some(kind));
            description.unwrap().is_signed
        };
        let json = "application/json";
        let jws = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert!(is_signed(r#"{"schemaVersion":1,"signatures":[{}]}"#, json));
        assert!(is_signed(r#"{"schemaVersion":1}"#, jws));
        assert!(!is_signed(r#"{"schemaVersion":1}"#, json));
        assert!(!is_signed(r#"{"schemaVersion":2,"signatures":[{}]}"#, json));
    }
}
