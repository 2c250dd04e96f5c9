//! Uploads and manifests on their way in. Owns: the rule that a push is passed on as it is
//! (streamed, never split, joined or repeated), and what the cache must forget after one. Must not:
//! derive offsets from `Range`.

use super::Pull;
use crate::cache::names::List;
use crate::message::Reply;
use crate::oci::{Reference, Repository, Route};

/// The registry's answer to a push; its `Location` names us already.
pub(super) const fn reply(reply: Reply) -> Reply {
    reply
}

/// Something was pushed or deleted: what the cache says of it is not true any more.
pub(super) fn note(pull: &Pull<'_>, reply: &Reply) {
    if !(200..300).contains(&reply.status) {
        return;
    }
    let cache = pull.cache;
    let forget = |repository: &Repository| cache.negative.forget(&pull.key(repository, &""));
    match &pull.exchange.route {
        Route::Manifest(repository, reference) => {
            cache.count_push();
            forget(repository);
            let scope = pull.scope(repository);
            // Any manifest may refer to another.
            cache.names.forget_referrers(scope);
            if pull.exchange.request.method == "DELETE" {
                cache.names.forget_pages(List::Tags(scope));
            }
            match reference {
                Reference::Tag(tag) => cache.names.remove_tag(scope, tag),
                Reference::Digest(digest) if pull.exchange.request.method == "DELETE" => {
                    cache.names.remove_link(scope, digest);
                    // Tags that led to it are gone upstream, too.
                    for tag in cache
                        .names
                        .tags(scope)
                        .iter()
                        .filter_map(|tag| tag.parse().ok())
                    {
                        let entries = cache.names.tag(scope, "", &tag);
                        if entries.iter().any(|entry| entry.digest == *digest) {
                            cache.names.remove_tag(scope, &tag);
                        }
                    }
                }
                Reference::Digest(_) => {}
            }
            cache.sweeper.mark_dirty();
        }
        Route::Blob(repository, digest) => {
            forget(repository);
            cache.names.remove_link(pull.scope(repository), digest);
        }
        Route::Upload(repository) | Route::Uploads(repository) => forget(repository),
        Route::Base | Route::Catalog | Route::Referrers(..) | Route::Tags(_) => {}
    }
}
