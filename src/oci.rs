//! The terms of the OCI distribution specification. Owns: [`Registry`], [`Repository`], [`Tag`],
//! [`Digest`], [`Reference`], [`Route`] and the error documents. Must not: do I/O.
//!
//! A string is parsed once, where it enters. No function behind that takes a string that still
//! needs checking. Grammar: distribution-spec v1.1, "Pulling manifests"; image-spec
//! `descriptor.md`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest repository name with its registry left out (distribution-spec: many clients take 255
/// characters for host and name together; ECR itself takes 256 for the name).
pub const REPOSITORY_LENGTH_MAX: usize = 256;
/// Longest tag (distribution-spec).
pub const TAG_LENGTH_MAX: usize = 128;
/// Host names of ECR Public: IPv4 and dual-stack. It refuses an expired token in its own way.
pub const ECR_PUBLIC_HOSTS: [&str; 2] = ["public.ecr.aws", "ecr-public.aws.com"];
/// Most bytes that are read of an error document; real ones have a few hundred.
pub const ERROR_DOCUMENT_BYTES_MAX: u64 = 64 * 1024;

/// The protocol towards a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain text: another proxy, or a test.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port when none is named.
    pub const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A registry: its address and its name. The two differ only when another proxy at the address
/// serves several registries. A clone shares the text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Registry {
    scheme: Scheme,
    authority: Arc<str>,
    namespace: Option<Arc<str>>,
}

impl Registry {
    /// The scheme.
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Host, lower case, with `:port` where one was given.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Host without port; an IPv6 address keeps its brackets.
    pub fn host(&self) -> &str {
        host_of(&self.authority)
    }

    /// `scheme://authority`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme.as_str(), self.authority)
    }

    /// Its name: the authority, or the name given to [`serving`](Self::serving).
    pub fn name(&self) -> &str {
        self.namespace.as_deref().unwrap_or(&self.authority)
    }

    /// The registry to ask the other proxy at this address for (`ns`).
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The registry `name` that the other proxy at this address serves.
    #[must_use]
    pub fn serving(&self, name: &str) -> Self {
        Self {
            namespace: Some(name.to_ascii_lowercase().into()),
            ..self.clone()
        }
    }

    /// True when `authority` is its name: a host in any case, with an optional port. Without a
    /// port, the scheme's port is meant.
    pub fn is_called(&self, authority: &str) -> bool {
        let port = |text: &str| match split_port(text).1 {
            Some(port) => port.parse().ok(),
            None => Some(self.scheme.port()),
        };
        let name = self.name();
        host_of(authority).eq_ignore_ascii_case(host_of(name)) && port(authority) == port(name)
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Registry {
    type Err = &'static str;

    /// `[http://|https://]host[:port][/]`; the scheme is https when none is given.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = match text.split_once("://") {
            None => (Scheme::Https, text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
            Some(_) => return Err("a scheme other than http or https"),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err("a path; only a host and a port are allowed");
        }
        if !is_authority(authority) {
            return Err("not a host name with an optional port");
        }
        Ok(Self {
            scheme,
            authority: authority.to_ascii_lowercase().into(),
            namespace: None,
        })
    }
}

/// True for `host`, `host:port`, `1.2.3.4:port` and `[v6]:port` (RFC 3986 §3.2 without userinfo).
pub fn is_authority(text: &str) -> bool {
    let (host, port) = split_port(text);
    let port_ok = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|number| number > 0));
    let host_ok = match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let label = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
            !host.is_empty() && host.len() <= 253 && host.bytes().all(label)
        }
    };
    host_ok && port_ok
}

/// The host of an authority; an IPv6 address keeps its brackets.
pub fn host_of(authority: &str) -> &str {
    split_port(authority).0
}

/// Host and port of an authority.
pub fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// A repository's name: components of lower-case words (distribution-spec "Pulling manifests"). A
/// clone shares the text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Repository(Arc<str>);

impl Repository {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Repository {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        if text.len() > REPOSITORY_LENGTH_MAX {
            let length = text.len();
            let why = format!("name of {length} characters, at most {REPOSITORY_LENGTH_MAX}");
            return Err(OciError::new(ErrorCode::NameInvalid, why));
        }
        if text.split('/').all(is_name_component) {
            return Ok(Self(text.into()));
        }
        let why = format!(
            "repository name {text:?}: expected lower-case words joined by one of . _ __ - and /"
        );
        Err(OciError::new(ErrorCode::NameInvalid, why))
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_name_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().copied().is_some_and(word) || !bytes.last().copied().is_some_and(word) {
        return false;
    }
    bytes.split(|b| word(*b)).all(|separator| match separator {
        [] | [b'.' | b'_'] | [b'_', b'_'] => true,
        run => run.iter().all(|b| *b == b'-'),
    })
}

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// The tag.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let rest = |b: u8| word(b) || b == b'.' || b == b'-';
        let first_ok = text.bytes().next().is_some_and(word);
        if first_ok && text.len() <= TAG_LENGTH_MAX && text.bytes().all(rest) {
            return Ok(Self(text.to_owned()));
        }
        let why = format!("tag {text:?}: expected 1 to {TAG_LENGTH_MAX} of A-Z a-z 0-9 _ . -");
        Err(OciError::new(ErrorCode::TagInvalid, why))
    }
}

/// A content digest of a registered algorithm: `sha256:` and 64, or `sha512:` and 128, lower-case
/// hex digits (image-spec `descriptor.md`). A clone shares the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Arc<str>);

impl Digest {
    /// `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &str {
        self.0
            .split_once(':')
            .map_or("", |(algorithm, _)| algorithm)
    }

    /// The hex digits.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        let hex = |digits: &str| {
            digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        match text.split_once(':') {
            Some(("sha256", digits)) if digits.len() == 64 && hex(digits) => {}
            Some(("sha512", digits)) if digits.len() == 128 && hex(digits) => {}
            _ => {
                let why = format!(
                    "digest {text:?}: expected sha256:<64 hex digits> or sha512:<128 hex digits>"
                );
                return Err(OciError::new(ErrorCode::DigestInvalid, why));
            }
        }
        Ok(Self(text.into()))
    }
}

/// How a manifest is named.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// By its content.
    Digest(Digest),
    /// By a name that may move.
    Tag(Tag),
}

impl Reference {
    /// The digest or tag, as a path has it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Digest(digest) => digest.as_str(),
            Self::Tag(tag) => tag.as_str(),
        }
    }
}

impl From<Digest> for Reference {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}

impl FromStr for Reference {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        if text.contains(':') {
            text.parse().map(Self::Digest)
        } else {
            text.parse().map(Self::Tag)
        }
    }
}

/// The meaning of a path under `/v2` (distribution-spec, "Endpoints").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`
    Base,
    /// `/v2/<name>/blobs/<digest>`
    Blob(Repository, Digest),
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<name>/manifests/<reference>`
    Manifest(Repository, Reference),
    /// `/v2/<name>/referrers/<digest>`
    Referrers(Repository, Digest),
    /// `/v2/<name>/tags/list`
    Tags(Repository),
    /// `/v2/<name>/blobs/uploads/<session>`
    Upload(Repository),
    /// `/v2/<name>/blobs/uploads/`
    Uploads(Repository),
}

impl Route {
    /// Reads a path. Nothing is percent-decoded: no valid name needs it.
    ///
    /// # Errors
    /// [`ErrorCode::NameInvalid`] and its siblings for a path of the right form with a wrong part,
    /// [`ErrorCode::NotFound`] for any other path.
    pub fn parse(path: &str) -> Result<Self, OciError> {
        let Some(rest) = path.strip_prefix("/v2") else {
            return Err(not_found(path));
        };
        let rest = match rest {
            "" | "/" => return Ok(Self::Base),
            "/_catalog" => return Ok(Self::Catalog),
            rest => rest.strip_prefix('/').ok_or_else(|| not_found(path))?,
        };
        // Read from the right: a repository may have components such as "blobs" or "tags".
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Ok(Self::Tags(name.parse()?));
        }
        if let Some((name, session)) = rest.rsplit_once("/blobs/uploads/") {
            return Self::upload(path, name, session);
        }
        if let Some(name) = rest.strip_suffix("/blobs/uploads") {
            return Ok(Self::Uploads(name.parse()?));
        }
        let (head, last) = rest.rsplit_once('/').ok_or_else(|| not_found(path))?;
        let (name, kind) = head.rsplit_once('/').ok_or_else(|| not_found(path))?;
        match kind {
            "blobs" => Ok(Self::Blob(name.parse()?, last.parse()?)),
            "manifests" => Ok(Self::Manifest(name.parse()?, last.parse()?)),
            "referrers" => Ok(Self::Referrers(name.parse()?, last.parse()?)),
            _ => Err(not_found(path)),
        }
    }

    fn upload(path: &str, name: &str, session: &str) -> Result<Self, OciError> {
        let name = name.parse()?;
        // The registry chooses the session, so only parts that could change the path are refused.
        // Some servers cut a segment at `;`, so that `..;x` leads upwards.
        let safe =
            |part: &str| part.bytes().any(|byte| byte != b'.') && !part.contains(['%', '\\', ';']);
        match session {
            "" => Ok(Self::Uploads(name)),
            session if session.split('/').all(safe) => Ok(Self::Upload(name)),
            _ => Err(not_found(path)),
        }
    }

    /// The methods of this route, as `Allow` lists them.
    pub const fn methods(&self) -> &'static [&'static str] {
        match self {
            Self::Base | Self::Catalog | Self::Referrers(..) | Self::Tags(_) => &["GET", "HEAD"],
            Self::Blob(..) => &["GET", "HEAD", "DELETE"],
            Self::Manifest(..) => &["GET", "HEAD", "PUT", "DELETE"],
            Self::Upload(_) => &["GET", "HEAD", "PATCH", "PUT", "DELETE"],
            Self::Uploads(_) => &["POST"],
        }
    }
}

fn not_found(path: &str) -> OciError {
    OciError::new(ErrorCode::NotFound, format!("no such endpoint: {path}"))
}

/// The error codes of distribution-spec, "Error codes", and a few that it leaves to registries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The request is not valid HTTP (RFC 9112).
    BadRequest,
    /// `BLOB_UNKNOWN`
    BlobUnknown,
    /// `BLOB_UPLOAD_UNKNOWN`
    BlobUploadUnknown,
    /// `DENIED`
    Denied,
    /// `DIGEST_INVALID`
    DigestInvalid,
    /// `MANIFEST_INVALID`
    ManifestInvalid,
    /// `MANIFEST_UNKNOWN`
    ManifestUnknown,
    /// `NAME_INVALID`
    NameInvalid,
    /// `NAME_UNKNOWN`
    NameUnknown,
    /// The path is no endpoint of the specification.
    NotFound,
    /// `PAGINATION_NUMBER_INVALID`
    PaginationNumberInvalid,
    /// `RANGE_INVALID`, as the reference implementation names it.
    RangeInvalid,
    /// `TAG_INVALID`
    TagInvalid,
    /// `TOOMANYREQUESTS`
    TooManyRequests,
    /// `UNAUTHORIZED`
    Unauthorized,
    /// The registry, or our access to it, does not work now.
    Unavailable,
    /// `UNSUPPORTED`
    Unsupported,
}

impl ErrorCode {
    const fn code(self) -> &'static str {
        match self {
            Self::BadRequest => "BAD_REQUEST",
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::Denied => "DENIED",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::NotFound => "NOT_FOUND",
            Self::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Self::RangeInvalid => "RANGE_INVALID",
            Self::TagInvalid => "TAG_INVALID",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unsupported => "UNSUPPORTED",
        }
    }

    const fn status(self) -> u16 {
        match self {
            Self::BadRequest
            | Self::DigestInvalid
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::PaginationNumberInvalid
            | Self::TagInvalid => 400,
            Self::Denied => 403,
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown
            | Self::NotFound => 404,
            Self::RangeInvalid => 416,
            Self::TooManyRequests => 429,
            Self::Unauthorized => 401,
            Self::Unavailable => 503,
            Self::Unsupported => 405,
        }
    }
}

/// A failure, in the form that the client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciError {
    /// The HTTP status.
    pub status: u16,
    /// The code in the document.
    pub code: ErrorCode,
    /// The failure and its remedy; lower case, without a full stop.
    pub message: String,
}

impl OciError {
    /// An error with its code's usual status.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            status: code.status(),
            code,
            message: message.into(),
        }
    }

    /// Sets another status.
    #[must_use]
    pub const fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// `{"errors":[{"code":…,"message":…}]}`
    pub fn document(&self) -> String {
        let error = serde_json::json!({"code": self.code.code(), "message": self.message});
        serde_json::json!({"errors": [error]}).to_string()
    }
}

impl fmt::Display for OciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code.code(), self.message)
    }
}

#[cfg(test)]
mod tests;
