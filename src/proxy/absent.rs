//! The answer when the cache lacks the content and the request must not go upstream. Owns: its
//! status, and the text that names what is missing and how to get it. Must not: decide whether
//! upstream is asked.
//!
//! With `OFFLINE` the status is 404: docker and podman show people the text of no other refusal.
//! The answer has a `Warning`, so that a proxy in front of this one does not take it for the answer
//! of the registry ([`refusal::is_registrys_404`](super::refusal::is_registrys_404)). A client that
//! sends `only-if-cached` gets 504 (RFC 9111 §5.2.1.7).

use super::answer::{CacheOutcome, OFFLINE_MARK, mark, refuse};
use super::exchange::{CacheAlone, Exchange};
use crate::cache::Cache;
use crate::cache::names::Scope;
use crate::message::Reply;
use crate::oci::{Digest, ErrorCode, OciError, Reference};

/// Answers a request for a blob that the cache does not have.
pub(super) fn blob(why: CacheAlone, cache: &Cache, scope: Scope<'_>, digest: &Digest) -> Reply {
    answer(
        why,
        ErrorCode::BlobUnknown,
        explain("blob", cache, scope, digest, why),
    )
}

/// Answers a request for a manifest that the cache does not have, or not in a type that the client
/// accepts. None when upstream may be asked for it.
pub(super) fn manifest(
    exchange: &Exchange,
    cache: &Cache,
    scope: Scope<'_>,
    reference: &Reference,
) -> Option<Reply> {
    let why = exchange.cache_alone()?;
    let text = match reference {
        Reference::Digest(digest) => explain("manifest", cache, scope, digest, why),
        Reference::Tag(tag) => {
            let image = format!("{scope}:{}", tag.as_str());
            let known = cache.names.tag_anywhere(scope, tag);
            match known.first().map(|entry| &entry.digest) {
                Some(digest) if cache.store.has(digest) => format!(
                    "{image} is in the cache as {digest}, but not in a type that the client \
                     accepts or not under its CACHE_KEY; {}",
                    why.reason()
                ),
                Some(digest) => {
                    let subject = format!("manifest {digest} of {image}");
                    advise(&subject, &image, None, why)
                }
                None => advise(&image, &image, None, why),
            }
        }
    };
    Some(answer(why, ErrorCode::ManifestUnknown, text))
}

/// Says that a digest is missing, and from which image, if a cached manifest shows that.
fn explain(
    kind: &str,
    cache: &Cache,
    scope: Scope<'_>,
    digest: &Digest,
    why: CacheAlone,
) -> String {
    let subject = format!("{kind} {digest} of {scope}");
    let Some(found) = cache.holdings().find_image(scope, digest) else {
        return advise(&subject, &format!("{scope}@{digest}"), None, why);
    };
    let part = found.platform.as_deref().unwrap_or("a part");
    let subject = format!("{subject}, {part} of {},", found.image);
    advise(&subject, &found.image, found.platform.as_deref(), why)
}

/// Says what is missing, and which command gets its image.
fn advise(subject: &str, image: &str, platform: Option<&str>, why: CacheAlone) -> String {
    let platform = platform.map_or_else(String::new, |name| format!("--platform {name} "));
    format!(
        "{subject} is not in the cache; {}. To get it: aws-ecr-proxy pull {platform}{image}, \
         where there is a way out, or export there and import here",
        why.reason()
    )
}

fn answer(why: CacheAlone, code: ErrorCode, text: String) -> Reply {
    let reply = match why {
        CacheAlone::OnlyIfCached => {
            refuse(&OciError::new(ErrorCode::Unavailable, text).with_status(504))
        }
        CacheAlone::Offline => {
            let warning = format!("299 - \"{OFFLINE_MARK}it is not in the cache\"");
            refuse(&OciError::new(code, text)).with("Warning", warning)
        }
    };
    mark(reply, CacheOutcome::Miss)
}
