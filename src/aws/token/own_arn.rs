//! Our ARN. Owns: when STS is asked for it, and which of its answers holds. Must not: ask, or stop
//! anything: the ARN is for people, and no pull waits for it.

use std::time::{Duration, Instant};

/// Least time after a failure: tokens may come every minute (see `LIFE_FLOOR`), and a VPC may have
/// no way to STS at all.
const RETRY: Duration = Duration::from_secs(3600);

/// Our ARN as STS gave it, and when to ask STS again. The caller hands in the time.
///
/// STS is asked once for each key that signed a token: with another key (credentials refreshed, a
/// profile rewritten) we may be somebody else.
#[derive(Debug, Default)]
pub(super) struct OwnArn {
    arn: Option<String>,
    /// The key that STS was last asked with.
    key: Option<String>,
    due: Option<String>,
    retry_at: Option<Instant>,
}

impl OwnArn {
    /// Notes that a call signed with `key` brought a token. If STS is to be asked, then in
    /// `region`.
    pub(super) fn note_signer(&mut self, key: &str, region: String, now: Instant) {
        let ask = match self.retry_at {
            Some(retry_at) => retry_at <= now,
            None => self.key.as_deref() != Some(key),
        };
        if ask {
            self.due = Some(region);
        }
    }

    /// The region to ask in, if that is due.
    pub(super) fn due(&self) -> Option<&String> {
        self.due.as_ref()
    }

    /// Notes that STS is about to be asked.
    pub(super) fn begin(&mut self) {
        self.due = None;
    }

    /// Notes that STS knows `key` as `arn`. True when that is news.
    pub(super) fn record(&mut self, key: String, arn: String) -> bool {
        let news = self.arn.as_ref() != Some(&arn);
        (self.key, self.arn, self.retry_at) = (Some(key), Some(arn), None);
        news
    }

    /// Notes that STS did not answer for `key`. Its answer for another key holds no longer.
    pub(super) fn record_failure(&mut self, key: String, now: Instant) {
        if self.key.as_ref() != Some(&key) {
            self.arn = None;
        }
        (self.key, self.retry_at) = (Some(key), Some(now + RETRY));
    }

    /// Our ARN, once STS has said so.
    pub(super) const fn arn(&self) -> Option<&String> {
        self.arn.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(own: &mut OwnArn, key: &str, now: Instant) -> bool {
        own.note_signer(key, "eu-west-1".into(), now);
        let due = own.due().is_some();
        own.begin();
        due
    }

    #[test]
    fn each_key_is_asked_for_once() {
        let now = Instant::now();
        let mut own = OwnArn::default();
        assert!(ask(&mut own, "one", now));
        assert!(own.record("one".into(), "arn:a".into()));
        assert!(!ask(&mut own, "one", now + RETRY));
        assert!(ask(&mut own, "two", now));
        assert!(!own.record("two".into(), "arn:a".into()), "no news");
        assert!(ask(&mut own, "three", now));
        assert!(own.record("three".into(), "arn:b".into()));
        assert_eq!(own.arn().unwrap(), "arn:b");
    }

    #[test]
    fn a_failure_is_followed_by_an_hour_of_peace() {
        let now = Instant::now();
        let mut own = OwnArn::default();
        assert!(ask(&mut own, "one", now));
        own.record_failure("one".into(), now);
        assert!(!ask(&mut own, "one", now + RETRY - Duration::from_secs(1)));
        assert!(!ask(&mut own, "two", now + RETRY - Duration::from_secs(1)));
        assert!(ask(&mut own, "one", now + RETRY));
    }

    #[test]
    fn the_arn_of_another_key_is_forgotten_when_sts_does_not_answer_for_this_one() {
        let now = Instant::now();
        let mut own = OwnArn::default();
        own.record("one".into(), "arn:a".into());
        own.record_failure("one".into(), now);
        assert_eq!(own.arn().unwrap(), "arn:a");
        own.record_failure("two".into(), now);
        assert_eq!(own.arn(), None);
    }
}
