//! Pages of other origins (Fetch standard, "HTTP-header syntax" of CORS). Owns: which pages a
//! browser lets read our replies, and the reply to its preflight request. Must not: decide what a
//! client may do; login and rules stay as they are.

use crate::message::{Body, Headers, LogNote, Reply};

/// Stands for every origin.
const ANY: &str = "*";
/// Seconds for which a browser need not ask again: the most that Chromium keeps.
const MAX_AGE_SECONDS: &str = "7200";
/// Methods of the distribution-spec that change nothing.
const READ_METHODS: &str = "GET, HEAD";
/// All methods of the distribution-spec.
const ALL_METHODS: &str = "GET, HEAD, PUT, POST, PATCH, DELETE";
/// Fields that a page may send.
const REQUEST_FIELDS: &str = "Accept, Authorization, Cache-Control, Content-Digest, \
    Content-Range, Content-Type, If-Match, If-Modified-Since, If-None-Match, If-Range, \
    If-Unmodified-Since, Range, Traceparent, X-Request-Id, X-Requested-With";
/// Fields that a page may read, besides those that every page may.
const REPLY_FIELDS: &str = "Accept-Ranges, Age, Allow, Content-Length, Content-Range, Date, \
    Docker-Content-Digest, Docker-Distribution-Api-Version, Docker-Upload-UUID, ETag, Link, \
    Location, OCI-Chunk-Min-Length, OCI-Filters-Applied, OCI-Namespace, OCI-Subject, Range, \
    Retry-After, Warning, WWW-Authenticate, X-Cache, X-Cache-Status, X-Request-Id";

/// The pages that may read our replies. The default allows none, and answers no preflight.
#[derive(Debug, Clone, Default)]
pub struct CrossOrigin {
    /// `scheme://host[:port]` as browsers write it; one `*` stands for all.
    pub origins: Vec<String>,
    /// True when no request may change anything.
    pub read_only: bool,
}

impl CrossOrigin {
    /// No page.
    pub const fn none() -> Self {
        Self {
            origins: Vec::new(),
            read_only: false,
        }
    }

    /// The reply to a preflight (OPTIONS) for a page that may read replies; none for any other
    /// request. It needs no login, since a browser sends none with a preflight.
    pub(super) fn preflight(&self, method: &str, request: &Headers) -> Option<Reply> {
        if method != "OPTIONS" {
            return None;
        }
        self.allowed(request)?;
        let methods = if self.read_only {
            READ_METHODS
        } else {
            ALL_METHODS
        };
        let reply = Reply {
            status: 204,
            headers: Headers::new(),
            body: Body::empty(),
            outcome: LogNote::default(),
        };
        let reply = reply.with("Access-Control-Allow-Methods", methods);
        let reply = reply.with("Access-Control-Allow-Headers", REQUEST_FIELDS);
        Some(reply.with("Access-Control-Max-Age", MAX_AGE_SECONDS))
    }

    /// Adds the fields that let the page behind a request read the reply, if it may.
    pub(super) fn mark(&self, request: &Headers, reply: &mut Reply) {
        if self.origins.is_empty() {
            return;
        }
        let fields = &mut reply.headers;
        // Without an origin too: a cache on the way could hand that reply to a page.
        fields.add("Vary", "Origin");
        let Some(allowed) = self.allowed(request) else {
            return;
        };
        fields.set("Access-Control-Allow-Origin", allowed);
        fields.set("Access-Control-Expose-Headers", REPLY_FIELDS);
        // Never for all pages: each could then use the login that a browser remembers.
        if allowed != ANY {
            fields.set("Access-Control-Allow-Credentials", "true");
        }
    }

    /// Value of `Access-Control-Allow-Origin` for the page that sent the request; none when that
    /// page may not read the reply.
    fn allowed(&self, request: &Headers) -> Option<&str> {
        // Several fields are no origin, and match none.
        let origin = request.join_values("Origin")?;
        let mut allowed = self.origins.iter().map(String::as_str);
        allowed.find(|allowed| *allowed == ANY || *allowed == origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UI: &str = "https://ui.example";

    fn fields(origins: &[&str], sent: &[&str]) -> Headers {
        let rules = CrossOrigin {
            origins: origins.iter().map(|&origin| origin.to_owned()).collect(),
            read_only: false,
        };
        let request = sent.iter().map(|&origin| ("Origin", origin)).collect();
        let mut reply = Reply::new(200, "text/plain", "ok").with("Vary", "Accept");
        rules.mark(&request, &mut reply);
        reply.headers
    }

    #[test]
    fn a_page_that_is_named_may_read_with_its_login() {
        let seen = fields(&["http://localhost:3000", UI], &[UI]);
        assert_eq!(seen.first("Access-Control-Allow-Origin"), Some(UI));
        assert_eq!(seen.first("Access-Control-Allow-Credentials"), Some("true"));
        let readable = seen.first("Access-Control-Expose-Headers").unwrap();
        for field in ["Docker-Content-Digest", "Link", "WWW-Authenticate"] {
            assert!(readable.split(", ").any(|name| name == field), "{field}");
        }
        assert_eq!(seen.join_values("Vary").as_deref(), Some("Accept, Origin"));
    }

    #[test]
    fn any_page_may_read_without_the_login_that_the_browser_remembers() {
        for origin in [UI, "null"] {
            let seen = fields(&["*"], &[origin]);
            assert_eq!(seen.first("Access-Control-Allow-Origin"), Some("*"));
            assert_eq!(seen.first("Access-Control-Allow-Credentials"), None);
        }
    }

    #[test]
    fn no_other_page_may_read() {
        for sent in [
            &[][..],
            &["null"],
            &["http://ui.example"],
            &["https://ui.example.evil"],
            &["https://UI.example"],
            &["https://ui.example:8443"],
            &["https://x.ui.example"],
            &["https://ui.example/"],
            &["*"],
            &[UI, "https://evil"],
        ] {
            let seen = fields(&[UI], sent);
            assert_eq!(seen.len(), 3, "{sent:?}: {seen:?}");
            assert!(seen.all("Vary").any(|value| value == "Origin"));
        }
        assert_eq!(fields(&[], &[UI]).len(), 2);
    }

    #[test]
    fn the_question_beforehand() {
        let asked = |method: &str, origin: &str, read_only| {
            let request = Headers::from_iter([("Origin", origin)]);
            let origins = vec![UI.to_owned()];
            let reply = CrossOrigin { origins, read_only }.preflight(method, &request)?;
            assert_eq!(reply.status, 204);
            let methods = reply.headers.first("Access-Control-Allow-Methods");
            methods.map(str::to_owned)
        };
        assert_eq!(asked("OPTIONS", UI, false).as_deref(), Some(ALL_METHODS));
        assert_eq!(asked("OPTIONS", UI, true).as_deref(), Some(READ_METHODS));
        assert_eq!(asked("OPTIONS", "https://evil", false), None);
        assert_eq!(asked("GET", UI, false), None);
    }
}
