//! What a request names, for its log line. Owns: finding it in route and reply. Must not: change
//! the reply itself.

use super::headers::DIGEST_FIELD;
use crate::message::Reply;
use crate::oci::{Digest, Reference, Route};

/// Notes what a route names. A tag's digest is the one that the reply names.
pub(super) fn note_target(reply: &mut Reply, route: &Route) {
    let (repository, reference, digest) = match route {
        Route::Base | Route::Catalog => return,
        Route::Blob(repository, digest) | Route::Referrers(repository, digest) => {
            (repository, None, Some(digest.clone()))
        }
        Route::Manifest(repository, reference) => {
            let named = reply.headers.first(DIGEST_FIELD);
            let named = named.and_then(|named| named.parse::<Digest>().ok());
            let digest = match reference {
                Reference::Digest(digest) => Some(digest.clone()),
                Reference::Tag(_) => named,
            };
            (repository, Some(reference.as_str().to_owned()), digest)
        }
        Route::Tags(repository) | Route::Upload(repository) | Route::Uploads(repository) => {
            (repository, None, None)
        }
    };
    reply.outcome.repository = Some(repository.clone());
    reply.outcome.reference = reference;
    reply.outcome.digest = digest;
}
