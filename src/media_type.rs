//! Media types in header fields. Owns: which of them `Accept` takes (RFC 9110 §12.5.1), and the
//! type of a body without its parameters. Must not: know what a type means.

use crate::message::Headers;

/// The media type of a body, without parameters: clients compare it with a manifest's own.
pub fn read(headers: &Headers) -> Option<String> {
    let value = headers.first("Content-Type")?.split(';').next()?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// True when `Accept` takes `media_type`, or takes everything by being absent.
pub fn accepts(headers: &Headers, media_type: &str) -> bool {
    let mut ranges = headers
        .all("Accept")
        .flat_map(|field| field.split(','))
        .peekable();
    ranges.peek().is_none()
        || ranges.any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let refused = parts.any(|part| {
                let quality = part
                    .strip_prefix("q=")
                    .and_then(|quality| quality.parse().ok());
                quality.is_some_and(|quality: f32| quality == 0.0)
            });
            !refused && is_in_range(name, media_type)
        })
}

fn is_in_range(range: &str, media_type: &str) -> bool {
    match range.split_once('/') {
        Some(("*", "*")) => true,
        Some((kind, "*")) => media_type
            .split('/')
            .next()
            .is_some_and(|other| other.eq_ignore_ascii_case(kind)),
        _ => range.is_empty() || range.eq_ignore_ascii_case(media_type),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types() {
        let oci = "application/vnd.oci.image.index.v1+json";
        let takes = |fields: &[&str]| {
            accepts(
                &fields.iter().map(|field| ("Accept", *field)).collect(),
                oci,
            )
        };
        assert!(takes(&[]));
        assert!(takes(&["*/*"]) && takes(&["application/*;q=0.5"]) && takes(&["text/x, */*"]));
        assert!(takes(&[
            "text/x",
            "Application/vnd.oci.image.index.v1+json"
        ]));
        assert!(!takes(&[
            "application/vnd.docker.distribution.manifest.v2+json"
        ]));
        assert!(!takes(&[&format!("{oci};q=0")]));
    }
}
