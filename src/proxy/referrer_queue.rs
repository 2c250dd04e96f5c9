//! Images whose referrers are to be fetched. Owns: their queue and its bounds. Must not: fetch.
//!
//! Locks: the queue, held for its own operations.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::purpose::OwnClient;
use crate::cache::closure::subject_of_tag;
use crate::locked::{Locked as _, TimedWait as _};
use crate::log::{self, Level};
use crate::oci::{Digest, Reference};

/// Most images that wait for their turn; each holds the fields of a request.
const QUEUE_MAX: usize = 256;
/// Signatures may be signed, and SBOMs too; nobody takes what is further away for a proof.
const DEPTH_MAX: u8 = 2;
/// Most attempts for one image while upstream is out of order.
const ATTEMPTS_MAX: u32 = 3;
/// Pause before the second attempt; the third waits twice as long.
const PAUSE: Duration = Duration::from_secs(10);

/// The queue.
#[derive(Default)]
pub(super) struct ReferrerQueue {
    waiting: Mutex<VecDeque<QueuedAttempt>>,
    added: Condvar,
}

/// A manifest that came into the cache.
#[derive(Debug, Clone)]
pub(super) struct QueuedImage {
    /// The client that asked for it.
    pub(super) client: OwnClient,
    pub(super) digest: Digest,
}

/// One attempt for an image.
pub(super) struct QueuedAttempt {
    pub(super) image: QueuedImage,
    number: u32,
    due: Instant,
}

impl ReferrerQueue {
    /// Adds an image that was fetched by this reference. Leaves it out when too many wait, or when
    /// it is itself a referrer too far from a client's image.
    pub(super) fn add(&self, image: QueuedImage, reference: &Reference) {
        if image.client.depth >= DEPTH_MAX || is_attached(reference) {
            return;
        }
        self.push(QueuedAttempt {
            image,
            number: 1,
            due: Instant::now(),
        });
    }

    /// Adds the image again after a failed attempt, unless that was the last.
    pub(super) fn retry(&self, failed: QueuedAttempt) {
        if failed.number < ATTEMPTS_MAX {
            self.push(QueuedAttempt {
                due: Instant::now() + PAUSE * failed.number,
                number: failed.number + 1,
                image: failed.image,
            });
        }
    }

    /// Waits for the next attempt that is due.
    pub(super) fn next(&self) -> QueuedAttempt {
        let mut waiting = self.waiting.locked();
        loop {
            let now = Instant::now();
            let due = waiting.iter().position(|attempt| attempt.due <= now);
            if let Some(attempt) = due.and_then(|at| waiting.remove(at)) {
                return attempt;
            }
            let pauses = waiting.iter().map(|attempt| attempt.due - now);
            let pause = pauses.min().unwrap_or(PAUSE);
            waiting = self.added.wait_for(waiting, pause);
        }
    }

    fn push(&self, attempt: QueuedAttempt) {
        let mut waiting = self.waiting.locked();
        if waiting.len() >= QUEUE_MAX {
            drop(waiting);
            let QueuedImage { client, digest } = &attempt.image;
            return client.log_left_out("too many images at a time", digest);
        }
        waiting.push_back(attempt);
        drop(waiting);
        self.added.notify_one();
    }
}

/// True for the tags under which referrers are kept, which name a digest.
fn is_attached(reference: &Reference) -> bool {
    matches!(reference, Reference::Tag(tag) if subject_of_tag(tag).is_some())
}

impl OwnClient {
    /// Warns that not all that refers to an image comes with it.
    pub(super) fn log_left_out(&self, why: &str, digest: &Digest) {
        let repository = &self.scope.repository;
        let fields: [log::Field<'_>; 2] = [("repository", repository), ("digest", digest)];
        log::cause(Level::Warn, "referrers left out", ("reason", &why), &fields);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cache::names::OwnedScope;
    use crate::message::{Headers, Peer, Request};
    use crate::proxy::purpose::Purpose;

    fn attempt(n: usize, due: Instant) -> QueuedAttempt {
        let digest = format!("sha256:{n:064x}");
        let client = OwnClient {
            scope: OwnedScope {
                registry: "r.example".parse().unwrap(),
                repository: "a".parse().unwrap(),
            },
            depth: 0,
            like: Arc::new(Request {
                method: "GET".into(),
                target: "/v2/a/manifests/1".into(),
                headers: Headers::new(),
                peer: Peer::on_unix_socket(),
                id: "1".into(),
            }),
            purpose: Purpose::Client,
        };
        let digest = digest.parse().unwrap();
        let image = QueuedImage { client, digest };
        let number = 1;
        QueuedAttempt { image, number, due }
    }

    #[test]
    fn the_queue_is_bounded_and_what_is_due_goes_first() {
        let (queue, now) = (ReferrerQueue::default(), Instant::now());
        queue.push(attempt(0, now + PAUSE * 100));
        for n in 1..QUEUE_MAX + 5 {
            queue.push(attempt(n, now));
        }
        assert_eq!(queue.waiting.locked().len(), QUEUE_MAX);
        for n in 1..QUEUE_MAX {
            assert_eq!(queue.next().image.digest.hex(), format!("{n:064x}"));
        }
        assert_eq!(queue.waiting.locked().len(), 1, "what is due later waits");
    }

    #[test]
    fn what_is_attached_is_not_an_image() {
        let tag = |text: &str| is_attached(&Reference::Tag(text.parse().unwrap()));
        let hex = "a".repeat(64);
        assert!(tag(&format!("sha256-{hex}")) && tag(&format!("sha256-{hex}.sig")));
        assert!(!tag("1.0") && !tag("sha256-abc"));
        let digest: Digest = format!("sha256:{hex}").parse().unwrap();
        assert!(!is_attached(&digest.into()));
    }

    #[test]
    fn an_image_is_tried_three_times() {
        let queue = ReferrerQueue::default();
        let mut failed = attempt(0, Instant::now());
        for number in 2..=ATTEMPTS_MAX {
            queue.retry(failed);
            failed = queue.waiting.locked().pop_front().expect("another attempt");
            assert_eq!(failed.number, number);
        }
        queue.retry(failed);
        assert!(queue.waiting.locked().is_empty());
    }
}
