//! What the fuzzer calls of the proxy; compiled for it alone. Owns: what must hold of any bytes.
//! Must not: be part of the program.

use super::conditional::{self, Selected};
use super::headers;
use super::links::ClientAddress;
use crate::message::Headers;
use crate::oci::{Reference, Route};

/// `Link` and `Location` on their way to the client: a path and query come through byte for byte,
/// and no line break comes in.
///
/// # Panics
/// When that does not hold.
pub fn links(bytes: &[u8]) {
    // A field value is visible ASCII by the time it is here (RFC 9110 §5.5).
    let text: String = bytes
        .iter()
        .map(|byte| char::from(byte & 0x7f))
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .collect();
    for own in ["", "https://proxy.test:8443"] {
        let upstream = Headers::from_iter([("Location", &text), ("Link", &text)]);
        let own_links = ClientAddress {
            origin: own.to_owned(),
            prefix: String::new(),
            added: String::new(),
            parameter: None,
        };
        let client = headers::for_client(upstream, &own_links);
        assert_eq!(client.len(), 2);
        assert!(
            client
                .iter()
                .all(|(_, value)| !value.contains(['\r', '\n']))
        );
        if let Some(path) = text.strip_prefix("https://r.test/v2/")
            && !path.contains([' ', '\\'])
        {
            let location = client.first("Location").unwrap_or_default();
            assert_eq!(location, format!("{own}/v2/{path}"));
        }
    }
}

/// `Range`: a part lies within the blob and is not empty. The first eight bytes are its size.
///
/// # Panics
/// When that does not hold.
pub fn range(bytes: &[u8]) {
    let Some((size, field)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let size = u64::from_le_bytes(*size);
    let Ok(field) = std::str::from_utf8(field) else {
        return;
    };
    let fields = Headers::from_iter([
        ("Range", field),
        ("Accept", field),
        ("If-None-Match", field),
    ]);
    let wanted = conditional::requested_range(&fields, "\"sha256:0\"");
    for size in [size, size % 1000] {
        if let Selected::Part { start, end } = wanted.select(size) {
            assert!(start < end && end <= size, "{start}..{end} of {size}");
        }
    }
    conditional::is_not_modified(&fields, "\"sha256:0\"");
    conditional::accepts(&fields, "application/vnd.oci.image.index.v1+json");
}

/// A request's path: what is parsed names no file outside of its folder.
///
/// # Panics
/// When that does not hold.
pub fn path(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(route) = Route::parse(text) else {
        return;
    };
    let (repository, digest) = match &route {
        Route::Blob(repository, digest) | Route::Referrers(repository, digest) => {
            (Some(repository), Some(digest))
        }
        Route::Manifest(repository, Reference::Digest(digest)) => (Some(repository), Some(digest)),
        Route::Manifest(repository, Reference::Tag(tag)) => {
            assert!(!tag.as_str().contains('/') && !tag.as_str().starts_with('.'));
            (Some(repository), None)
        }
        Route::Tags(repository) | Route::Uploads(repository) | Route::Upload(repository) => {
            (Some(repository), None)
        }
        Route::Base | Route::Catalog => (None, None),
    };
    if let Some(repository) = repository {
        let mut parts = repository.as_str().split('/');
        assert!(parts.all(|part| !part.is_empty() && !part.starts_with('.')));
    }
    if let Some(digest) = digest {
        assert!(digest.hex().bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
    assert!(!route.methods().is_empty());
}
