//! What the fuzzer calls of the proxy; compiled for it and for tests. Owns: what must hold of any
//! bytes, and what comes of them in words. Must not: be part of the program.

use super::conditional::{self, Selected};
use super::headers;
use super::links::{ClientAddress, next_link};
use crate::media_type;
use crate::message::Headers;
use crate::oci::{Reference, Repository, Route};

/// `Link` and `Location` on their way to the client. A path and query come through byte for byte,
/// and no line break comes in. Returns both fields.
///
/// # Panics
/// When that does not hold.
pub fn links(bytes: &[u8]) -> String {
    // A field value is visible ASCII by the time it is here (RFC 9110 §5.5).
    let text: String = bytes
        .iter()
        .map(|byte| char::from(byte & 0x7f))
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .collect();
    let mut outcome = format!("next {}", next_link(&text).unwrap_or("none"));
    for (origin, prefix) in [
        ("", ""),
        ("https://proxy.test:8443", ""),
        ("http://h", "r.test/"),
    ] {
        let parameter = prefix.is_empty().then(|| "ns=r.test".to_owned());
        let own = ClientAddress {
            origin: origin.to_owned(),
            prefix: prefix.to_owned(),
            added: String::new(),
            parameter: parameter.filter(|_| !origin.is_empty()),
        };
        let upstream = Headers::from_iter([("Location", &text), ("Link", &text)]);
        let client = headers::for_client(upstream, &own);
        assert_eq!(client.len(), 2);
        for (name, value) in client.iter() {
            assert!(!value.contains(['\r', '\n']), "{value:?}");
            outcome.push_str(&format!("; {name} {value}"));
        }
        path_comes_through(&text, &own);
    }
    outcome
}

/// Whatever the path of a URL of the registry's is, it is the same at the client's.
fn path_comes_through(text: &str, own: &ClientAddress) {
    let path = text.trim_start_matches(['/', ' ']);
    if path.contains([' ', '\\', '<', '>', '"', '?']) {
        return;
    }
    let query = own.parameter.as_ref().map(|own| format!("?{own}"));
    // An absolute URL gets the client's address, a relative one stays relative.
    let absolute = (format!("https://r.test/v2/{path}"), own.origin.as_str());
    let relative = (format!("/v2/{path}"), "");
    for (url, origin) in [absolute, relative] {
        let expected = format!("{origin}/v2/{}{path}", own.prefix);
        let link = format!("<{url}>; rel=\"next\"");
        assert_eq!(next_link(&link), Some(url.as_str()));
        let upstream = Headers::from_iter([("Location", &url), ("Link", &link)]);
        let client = headers::for_client(upstream, own);
        assert_eq!(client.first("Location"), Some(expected.as_str()));
        let link = format!(
            "<{expected}{}>; rel=\"next\"",
            query.as_deref().unwrap_or("")
        );
        assert_eq!(client.first("Link"), Some(link.as_str()));
    }
}

/// `Range`, `Accept` and `If-None-Match`. The first eight bytes are a blob's size, and the next
/// sixteen two numbers. Returns what is selected of the blob, and whether the conditions hold.
///
/// # Panics
/// When a part is not what the numbers say, or does not lie within the blob.
pub fn range(bytes: &[u8]) -> String {
    let Some((size, field)) = bytes.split_first_chunk::<8>() else {
        return "nothing".to_owned();
    };
    let size = u64::from_le_bytes(*size);
    if let Some((numbers, _)) = field.split_first_chunk::<16>() {
        let numbers = u128::from_le_bytes(*numbers);
        // Small numbers lie near the size far more often than those of 64 bits.
        for bits in [4, 64] {
            let small = |number: u128| u64::try_from(number % (1 << bits)).unwrap_or_default();
            numbers_select(small(size.into()), small(numbers), small(numbers >> 64));
        }
    }
    let Ok(field) = std::str::from_utf8(field) else {
        return "no text".to_owned();
    };
    let mut outcome = String::new();
    let ranged = Headers::from_iter([("Range", field)]);
    for size in [size, size % 1000] {
        let selected = conditional::requested_range(&ranged, "\"sha256:0\"").select(size);
        outcome.push_str(&match selected {
            Selected::Part { start, end } => {
                assert!(start < end && end <= size, "{start}..{end} of {size}");
                format!("{start}..{end} of {size}; ")
            }
            Selected::Unsatisfiable => format!("none of {size}; "),
            Selected::Whole => format!("all of {size}; "),
        });
    }
    let tag = "\"sha256:0\"";
    let held = conditional::is_not_modified(&Headers::from_iter([("If-None-Match", field)]), tag);
    let other = Headers::from_iter([("If-Range", field), ("Range", "bytes=0-0")]);
    let same =
        conditional::requested_range(&other, tag).select(2) == Selected::Part { start: 0, end: 1 };
    let accept = Headers::from_iter([("Accept", field)]);
    let takes = media_type::accepts(&accept, "application/vnd.oci.image.index.v1+json");
    format!("{outcome}held {held}, same {same}, accepted {takes}")
}

/// Ranges that are made of numbers select what the numbers say.
fn numbers_select(size: u64, first: u64, last: u64) {
    let select = |range: String| {
        conditional::requested_range(&Headers::from_iter([("Range", range)]), "\"t\"").select(size)
    };
    let expect = |first: u64, last: u64| match (size, first) {
        (0, _) => Selected::Whole,
        _ if first >= size => Selected::Unsatisfiable,
        _ => Selected::Part {
            start: first,
            end: last.min(size - 1) + 1,
        },
    };
    let both = format!("bytes={first}-{last}");
    let expected = match first <= last {
        true => expect(first, last),
        // A range whose end is before its beginning is refused.
        false => expect(u64::MAX, last),
    };
    assert_eq!(select(both.clone()), expected, "{both} of {size}");
    let open = format!("bytes={first}-");
    assert_eq!(select(open.clone()), expect(first, u64::MAX), "{open}");
    let suffix = format!("bytes=-{last}");
    let expected = match last {
        0 if size > 0 => Selected::Unsatisfiable,
        _ => expect(size.saturating_sub(last), u64::MAX),
    };
    assert_eq!(select(suffix.clone()), expected, "{suffix} of {size}");
}

/// A request's path. What is parsed names no file outside of its folder, and written out again it
/// is the path that was read. Returns the route and its methods.
///
/// # Panics
/// When that does not hold.
pub fn path(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return "no text".to_owned();
    };
    let route = match Route::parse(text) {
        Ok(route) => route,
        Err(error) => return format!("refused {}", error.status),
    };
    let hex = |text: &str| {
        let small = |b: u8| b"0123456789abcdef".contains(&b);
        matches!(text.len(), 64 | 128) && text.bytes().all(small)
    };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (repository, rest) = match &route {
        Route::Blob(repository, digest) => {
            assert!(hex(digest.hex()), "{digest}");
            (Some(repository), format!("/blobs/{digest}"))
        }
        Route::Referrers(repository, digest) => {
            assert!(hex(digest.hex()), "{digest}");
            (Some(repository), format!("/referrers/{digest}"))
        }
        Route::Manifest(repository, Reference::Digest(digest)) => {
            assert!(hex(digest.hex()), "{digest}");
            (Some(repository), format!("/manifests/{digest}"))
        }
        Route::Manifest(repository, Reference::Tag(tag)) => {
            let tag = tag.as_str();
            assert!(tag.len() <= 128 && tag.starts_with(word), "{tag}");
            assert!(tag.chars().all(|c| word(c) || ".-".contains(c)), "{tag}");
            (Some(repository), format!("/manifests/{tag}"))
        }
        Route::Tags(repository) => (Some(repository), "/tags/list".to_owned()),
        Route::Uploads(repository) => (Some(repository), "/blobs/uploads".to_owned()),
        Route::Upload(repository) => {
            let (_, session) = text.rsplit_once("/blobs/uploads/").unwrap_or_default();
            let mut parts = session.split('/');
            assert!(parts.all(|part| !matches!(part, "" | "." | "..")), "{text}");
            (Some(repository), format!("/blobs/uploads/{session}"))
        }
        Route::Base => (None, String::new()),
        Route::Catalog => (None, "/_catalog".to_owned()),
    };
    let name = repository.map(|repository| format!("/{repository}"));
    let written = format!("/v2{}{rest}", name.unwrap_or_default());
    let may_end_in_slash = matches!(route, Route::Base | Route::Uploads(_));
    assert!(
        text == written || may_end_in_slash && text == format!("{written}/"),
        "{text:?} was read as {written:?}"
    );
    repository.inspect(|repository| is_a_name(repository));
    format!("{written} {}", route.methods().join(" "))
}

/// The grammar of the specification: parts of small letters and digits, with separators between
/// them only.
fn is_a_name(repository: &Repository) {
    let name = repository.as_str();
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    assert!(name.len() <= 256, "{name}");
    for part in name.split('/') {
        assert!(part.starts_with(plain) && part.ends_with(plain), "{name}");
        let separators = part.split(plain).filter(|between| !between.is_empty());
        for between in separators {
            let dashes = between.bytes().all(|b| b == b'-');
            assert!(dashes || matches!(between, "." | "_" | "__"), "{name}");
        }
    }
}
