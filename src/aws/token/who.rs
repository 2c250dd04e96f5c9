//! Our ARN. Owns: when STS is asked for it, and which of its answers holds. Must not: ask, or stop
//! anything: the ARN is for people, and no pull waits for it.

use std::time::{Duration, Instant};

/// Least time after a failure: tokens may come every minute (see `LIFE_FLOOR`), and a VPC may have
/// no way to STS at all.
const RETRY: Duration = Duration::from_secs(3600);

/// The answer of STS, and the time to ask it (again). The caller hands in the time.
///
/// STS is asked once for each key that signed a token: with another key (credentials refreshed, a
/// profile rewritten) we may be somebody else.
#[derive(Debug, Default)]
pub(super) struct Who {
    arn: Option<String>,
    /// The key that STS was last asked with.
    key: Option<String>,
    due: Option<String>,
    retry_at: Option<Instant>,
}

impl Who {
    /// A token came, signed with `key`; STS is to be asked in `region`, if it is to be asked.
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

    /// STS is about to be asked.
    pub(super) fn begin(&mut self) {
        self.due = None;
    }

    /// STS knows `key` as `arn`. True when that is news.
    pub(super) fn record(&mut self, key: String, arn: String) -> bool {
        let news = self.arn.as_ref() != Some(&arn);
        (self.key, self.arn, self.retry_at) = (Some(key), Some(arn), None);
        news
    }

    /// STS did not answer for `key`. Its answer for another key holds no longer.
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

    fn ask(who: &mut Who, key: &str, now: Instant) -> bool {
        who.note_signer(key, "eu-west-1".into(), now);
        let due = who.due().is_some();
        who.begin();
        due
    }

    #[test]
    fn each_key_is_asked_for_once() {
        let now = Instant::now();
        let mut who = Who::default();
        assert!(ask(&mut who, "one", now));
        assert!(who.record("one".into(), "arn:a".into()));
        assert!(!ask(&mut who, "one", now + RETRY));
        assert!(ask(&mut who, "two", now));
        assert!(!who.record("two".into(), "arn:a".into()), "no news");
        assert!(ask(&mut who, "three", now));
        assert!(who.record("three".into(), "arn:b".into()));
        assert_eq!(who.arn().unwrap(), "arn:b");
    }

    #[test]
    fn a_failure_is_followed_by_an_hour_of_peace() {
        let now = Instant::now();
        let mut who = Who::default();
        assert!(ask(&mut who, "one", now));
        who.record_failure("one".into(), now);
        assert!(!ask(&mut who, "one", now + RETRY - Duration::from_secs(1)));
        assert!(!ask(&mut who, "two", now + RETRY - Duration::from_secs(1)));
        assert!(ask(&mut who, "one", now + RETRY));
    }

    #[test]
    fn the_arn_of_another_key_is_forgotten_when_sts_does_not_answer_for_this_one() {
        let now = Instant::now();
        let mut who = Who::default();
        who.record("one".into(), "arn:a".into());
        who.record_failure("one".into(), now);
        assert_eq!(who.arn().unwrap(), "arn:a");
        who.record_failure("two".into(), now);
        assert_eq!(who.arn(), None);
    }
}
