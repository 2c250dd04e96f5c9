//! Settings of the cache. Owns: their types and how they are read. Must not: open anything.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::parse::{size, time};

/// `CACHE_DIR`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CacheDir {
    /// This directory.
    At(PathBuf),
    /// No cache.
    Off,
    /// Not set: `/cache` if it exists.
    #[default]
    Unset,
}

/// `CACHE_TAG_TTL`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagTtl {
    /// For this long; zero: always ask.
    For(Duration),
    /// Never ask again.
    Forever,
}

impl Default for TagTtl {
    /// Always ask.
    fn default() -> Self {
        Self::For(Duration::ZERO)
    }
}

/// `CACHE_KEY`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheKey(Vec<KeyPart>);

/// A part of a [`CacheKey`]: text, or one of nginx's variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPart {
    /// `$args`: the query.
    Args,
    /// `$http_NAME`: a header field; dashes are underscores in NAME.
    Field(String),
    /// `$host`: without port, lower case.
    Host,
    /// `$is_args`: `?` when there is a query.
    IsArgs,
    /// `$request_method`
    Method,
    /// `$scheme`
    Scheme,
    /// `$request_uri`: path and query.
    Target,
    /// Itself.
    Text(String),
    /// `$uri`: the path.
    Uri,
}

impl Default for CacheKey {
    /// `$uri`
    fn default() -> Self {
        Self(vec![KeyPart::Uri])
    }
}

impl CacheKey {
    /// True for a key that tells no two requests for one tag apart: `$uri` alone.
    pub fn is_default(&self) -> bool {
        self.0.as_slice() == [KeyPart::Uri]
    }

    /// The parts in order.
    pub fn parts(&self) -> &[KeyPart] {
        &self.0
    }
}

/// Smallest quota that can hold an image worth having.
const SIZE_MIN: u64 = 1 << 20;
/// Longest template.
const KEY_LENGTH_MAX: usize = 1024;
/// Longest time to live but `forever`: a year.
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

impl From<PathBuf> for CacheDir {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "off" {
            Self::Off
        } else {
            Self::At(path)
        }
    }
}

/// The directory of systemd's `CacheDirectory=`, which has a variable of its own; of several the
/// first.
pub(super) fn find_systemds_directory(environment: &[(OsString, OsString)]) -> Option<CacheDir> {
    let (_, value) = environment
        .iter()
        .find(|(name, _)| name == "CACHE_DIRECTORY")?;
    let first = value.to_str()?.split(':').next()?;
    (!first.trim().is_empty()).then(|| CacheDir::At(PathBuf::from(first)))
}

/// `CACHE_MAX_SIZE`
pub(super) fn max_size(text: &str) -> Result<u64, String> {
    match size(text).ok_or_else(String::new)? {
        bytes if bytes < SIZE_MIN => Err("at least 1m; CACHE_DIR=off is for no cache".to_owned()),
        bytes => Ok(bytes),
    }
}

/// `CACHE_TAG_TTL`
pub(super) fn tag_ttl(text: &str) -> Result<TagTtl, String> {
    if text == "forever" {
        return Ok(TagTtl::Forever);
    }
    match time(text)? {
        ttl if ttl <= TTL_MAX => Ok(TagTtl::For(ttl)),
        _ => Err("at most 8760h, or forever".to_owned()),
    }
}

/// `CACHE_KEY`
pub(super) fn key(text: &str) -> Result<CacheKey, String> {
    if text.len() > KEY_LENGTH_MAX {
        return Err(format!("at most {KEY_LENGTH_MAX} characters"));
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        push_text(&mut parts, before);
        let (name, left) = variable(after);
        parts.push(part(name).ok_or_else(|| {
            format!(
                "the variable ${name} is unknown; expected of $uri $host $scheme $args $is_args \
                 $request_uri $request_method $proxy_host $http_NAME"
            )
        })?);
        rest = left;
    }
    push_text(&mut parts, rest);
    Ok(CacheKey(parts))
}

/// The name after a `$`, with or without braces, and what follows.
fn variable(text: &str) -> (&str, &str) {
    if let Some(braced) = text.strip_prefix('{') {
        return braced.split_once('}').unwrap_or((braced, ""));
    }
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    text.split_at(end.unwrap_or(text.len()))
}

fn part(name: &str) -> Option<KeyPart> {
    Some(match name {
        "args" => KeyPart::Args,
        "host" => KeyPart::Host,
        "is_args" => KeyPart::IsArgs,
        // The registry, whose own entries these are anyway.
        "proxy_host" => KeyPart::Text(String::new()),
        "request_method" => KeyPart::Method,
        "request_uri" => KeyPart::Target,
        "scheme" => KeyPart::Scheme,
        "uri" => KeyPart::Uri,
        name => {
            let field = name
                .strip_prefix("http_")
                .filter(|field| !field.is_empty())?;
            KeyPart::Field(field.replace('_', "-"))
        }
    })
}

fn push_text(parts: &mut Vec<KeyPart>, text: &str) {
    if !text.is_empty() {
        parts.push(KeyPart::Text(text.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, bytes) in [
            ("1048576", 1 << 20),
            ("2m", 2 << 20),
            ("75g", 75 << 30),
            ("5K", 5 << 10),
            ("5kb", 5 << 10),
            ("5KiB", 5 << 10),
            ("3Mi", 3 << 20),
            ("3MB", 3 << 20),
            ("75Gi", 75 << 30),
            ("75GB", 75 << 30),
            ("2t", 2 << 40),
            ("2TiB", 2 << 40),
            ("2tb", 2 << 40),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for bad in [
            "",
            "g",
            "-1m",
            "+1m",
            "1.5g",
            "1 g",
            "1b",
            "1kbi",
            "1kk",
            "1ii",
            "1e",
            "1pb",
            "1é",
            "16777216t",
            "99999999999999999999",
            "18446744073709551615g",
        ] {
            assert_eq!(size(bad), None, "{bad}");
        }
        assert!(max_size("1k").unwrap_err().contains("at least 1m"));
        assert_eq!(max_size("10m"), Ok(10 << 20));
    }

    #[test]
    fn times_to_live() {
        assert_eq!(tag_ttl("0s"), Ok(TagTtl::For(Duration::ZERO)));
        assert_eq!(tag_ttl("5m"), Ok(TagTtl::For(Duration::from_secs(300))));
        assert_eq!(tag_ttl("forever"), Ok(TagTtl::Forever));
        for bad in ["", "15", "never", "9000h"] {
            assert!(tag_ttl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_key_of_nginx_itself_is_taken() {
        let parts = key("$scheme$proxy_host$uri$request_method").unwrap().0;
        let kept = parts
            .iter()
            .filter(|part| **part != KeyPart::Text(String::new()));
        let wanted = [KeyPart::Scheme, KeyPart::Uri, KeyPart::Method];
        assert!(kept.eq(wanted.iter()), "{parts:?}");
    }

    #[test]
    fn keys_are_templates() {
        let parts = |text| key(text).map(|key| key.0);
        assert_eq!(parts("$uri"), Ok(CacheKey::default().0));
        assert!(CacheKey::default().is_default());
        let text = |text: &str| KeyPart::Text(text.to_owned());
        assert_eq!(
            parts("a-${scheme}://$host$uri$is_args$args|$http_x_team"),
            Ok(vec![
                text("a-"),
                KeyPart::Scheme,
                text("://"),
                KeyPart::Host,
                KeyPart::Uri,
                KeyPart::IsArgs,
                KeyPart::Args,
                text("|"),
                KeyPart::Field("x-team".into()),
            ])
        );
        for bad in ["$", "$nope", "${uri", "$http_", "${}"] {
            let fault = parts(bad);
            assert!(bad == "${uri" || fault.is_err(), "{bad}");
        }
        assert!(parts(&"x".repeat(KEY_LENGTH_MAX + 1)).is_err());
    }

    #[test]
    fn a_directory_or_none() {
        assert_eq!(CacheDir::default(), CacheDir::Unset);
        assert_eq!(CacheDir::from(PathBuf::from("off")), CacheDir::Off);
        let path = PathBuf::from("/var/cache/ecr");
        assert_eq!(CacheDir::from(path.clone()), CacheDir::At(path));
    }

    #[test]
    fn systemds_directory_is_taken_when_none_is_set() {
        let read = |variables: &[(&str, &str)]| {
            let pair = |(name, value): &(&str, &str)| (name.into(), value.into());
            let environment: Vec<(OsString, OsString)> = variables.iter().map(pair).collect();
            let resolution =
                super::super::resolve(&super::super::Arguments::parse([]), &environment);
            resolution.settings.unwrap().cache_dir
        };
        let systemd = ("CACHE_DIRECTORY", "/var/cache/a:/var/cache/b");
        assert_eq!(read(&[systemd]), CacheDir::At("/var/cache/a".into()));
        assert_eq!(read(&[systemd, ("CACHE_DIR", "off")]), CacheDir::Off);
        assert_eq!(read(&[("CACHE_DIRECTORY", "")]), CacheDir::Unset);
    }
}
