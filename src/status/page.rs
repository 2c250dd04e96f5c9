//! The page itself: one document, put together once. Owns: its fields, the Content-Security-Policy
//! among them. Must not: hold anything that changes; the page fetches that from `/status.json`.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::hash::sha256;
use crate::message::{Body, Reply, SharedBytes};

/// The document, with places for style and script.
const HTML: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

struct StatusPage {
    bytes: SharedBytes,
    etag: String,
    policy: String,
}

static PAGE: LazyLock<StatusPage> = LazyLock::new(|| {
    let text = HTML
        .replacen("/*style*/", STYLE, 1)
        .replacen("/*script*/", SCRIPT, 1);
    let hash = |text: &str| STANDARD.encode(sha256(text.as_bytes()));
    // Whatever a name in the data may hold, the browser runs and loads nothing but this.
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(SCRIPT),
        hash(STYLE)
    );
    StatusPage {
        etag: format!("\"{}\"", hash(&text)),
        bytes: text.into_bytes().into(),
        policy,
    }
});

/// The page. `held`: the entity tags that the client holds (`If-None-Match`).
pub(super) fn answer(held: Option<&str>) -> Reply {
    let page = &*PAGE;
    let is_same = |tag: &str| tag == "*" || tag.trim_start_matches("W/") == page.etag;
    let unchanged = held.is_some_and(|held| held.split(',').any(|tag| is_same(tag.trim())));
    let mut reply = Reply::new(200, "text/html; charset=utf-8", Vec::new())
        .with("ETag", page.etag.as_str())
        .with("Cache-Control", "no-cache")
        .with("Content-Security-Policy", page.policy.as_str())
        .with("Referrer-Policy", "no-referrer")
        .with("X-Content-Type-Options", "nosniff");
    reply.body = Body::Bytes(page.bytes.clone());
    if unchanged {
        (reply.status, reply.body) = (304, Body::empty());
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text between the tags of an element that is there once.
    fn content<'a>(html: &'a str, name: &str) -> &'a str {
        let (_, rest) = html.split_once(&format!("<{name}>")).unwrap();
        let (content, rest) = rest.split_once(&format!("</{name}>")).unwrap();
        assert!(!rest.contains(&format!("<{name}")), "{name} twice");
        content
    }

    #[test]
    fn the_policy_names_the_hashes_of_what_is_in_the_page() {
        let Body::Bytes(bytes) = answer(None).body else {
            panic!("no page");
        };
        let html = std::str::from_utf8(&bytes).unwrap();
        assert!(html.len() <= 30_000, "{} bytes", html.len());
        let policy = &PAGE.policy;
        for (name, part) in [("style", "style-src"), ("script", "script-src")] {
            let hash = STANDARD.encode(sha256(content(html, name).as_bytes()));
            assert!(
                policy.contains(&format!("{part} 'sha256-{hash}';")),
                "{policy}"
            );
        }
    }

    #[test]
    fn the_page_loads_nothing_and_takes_no_text_for_markup() {
        for text in [HTML, STYLE, SCRIPT] {
            for never in [
                "innerHTML",
                "outerHTML",
                "insertAdjacent",
                "document.write",
                "eval(",
            ] {
                assert!(!text.contains(never), "{never}");
            }
            for outside in [" src=", "@import", "url(", " href=\"http", "style=\""] {
                assert!(!text.contains(outside), "{outside}");
            }
        }
    }

    #[test]
    fn a_page_that_the_client_holds_is_not_sent_again() {
        let etag = PAGE.etag.as_str();
        assert_eq!(answer(Some(&format!("\"x\", W/{etag}"))).status, 304);
        assert_eq!(answer(Some("*")).status, 304);
        assert_eq!(answer(Some("\"x\"")).status, 200);
    }
}
