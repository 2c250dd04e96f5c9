//! Temporary credentials in use. Owns: when they are to be replaced, as functions of the time
//! handed in. Must not: read a clock, or ask a source.

use std::time::{Duration, Instant, SystemTime};

use super::super::super::credentials::Credentials;

/// Credentials are replaced this long before their end, as in the AWS SDK for Go: time enough for
/// several tries, and STS hands out nothing shorter than 15 minutes.
const REFRESH_BEFORE: Duration = Duration::from_secs(5 * 60);
/// Least time between two fetches while the credentials have not ended, so that a source that
/// fails, or that gives short-lived credentials, is not asked in a loop.
const GAP: Duration = Duration::from_secs(60);

/// The use that credentials are still good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// To be used.
    Fresh,
    /// To be replaced if that works, else used.
    Due,
    /// Not to be used.
    Ended,
}

/// Credentials with an end.
#[derive(Debug, Clone)]
pub(super) struct LastingCredentials {
    pub(super) credentials: Credentials,
    /// By AWS's clock.
    pub(super) expires: SystemTime,
    /// They are not replaced before this, unless they have ended.
    retry_at: Instant,
}

impl LastingCredentials {
    /// Notes credentials that were fetched at `now`; none when they have no end.
    pub(super) fn new(credentials: &Credentials, now: Instant) -> Option<Self> {
        Some(Self {
            expires: credentials.expires?,
            credentials: credentials.clone(),
            retry_at: now + GAP,
        })
    }

    /// Puts off the next fetch, after one that failed.
    pub(super) fn postpone(mut self, now: Instant) -> Self {
        self.retry_at = now + GAP;
        self
    }

    /// Judges what they are still good for; `aws_now` is AWS's time.
    pub(super) fn judge(&self, aws_now: SystemTime, now: Instant) -> Standing {
        match self.expires.duration_since(aws_now) {
            Ok(left) if left > REFRESH_BEFORE => Standing::Fresh,
            Ok(left) if left.is_zero() => Standing::Ended,
            Ok(_) if now < self.retry_at => Standing::Fresh,
            Ok(_) => Standing::Due,
            Err(_) => Standing::Ended,
        }
    }

    /// When they become due; none once they have ended.
    pub(super) fn due(&self, aws_now: SystemTime, now: Instant) -> Option<Instant> {
        let left = self.expires.duration_since(aws_now).ok()?;
        if left.is_zero() {
            return None;
        }
        let due = now.checked_add(left.saturating_sub(REFRESH_BEFORE))?;
        Some(due.max(self.retry_at))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::fake::credentials;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn kept(life: Duration, now: Instant) -> LastingCredentials {
        let mut credentials = credentials();
        credentials.expires = Some(SystemTime::UNIX_EPOCH + life);
        LastingCredentials::new(&credentials, now).unwrap()
    }

    #[test]
    fn they_are_replaced_five_minutes_before_their_end_and_not_used_after_it() {
        let now = Instant::now();
        let kept = kept(SECOND * 3600, now);
        let at = |seconds: u32| {
            let passed = SECOND * seconds;
            kept.judge(SystemTime::UNIX_EPOCH + passed, now + passed)
        };
        assert_eq!(at(0), Standing::Fresh);
        assert_eq!(at(3299), Standing::Fresh);
        assert_eq!(at(3300), Standing::Due);
        assert_eq!(at(3599), Standing::Due);
        assert_eq!(at(3600), Standing::Ended);
        assert_eq!(at(9999), Standing::Ended);
        let due = kept.due(SystemTime::UNIX_EPOCH, now);
        assert_eq!(due, Some(now + SECOND * 3300));
        assert_eq!(kept.due(SystemTime::UNIX_EPOCH + SECOND * 3600, now), None);
    }

    #[test]
    fn a_failed_try_is_followed_by_a_minute_without_one() {
        let now = Instant::now();
        let later = now + SECOND * 3400;
        let kept = kept(SECOND * 3600, now).postpone(later);
        let at = |seconds: u32| {
            let passed = SECOND * seconds;
            kept.judge(SystemTime::UNIX_EPOCH + passed, now + passed)
        };
        assert_eq!(at(3459), Standing::Fresh);
        assert_eq!(at(3460), Standing::Due);
        let aws_now = SystemTime::UNIX_EPOCH + SECOND * 3410;
        assert_eq!(kept.due(aws_now, now + SECOND * 3410), Some(later + GAP));
    }

    #[test]
    fn short_lived_ones_are_not_fetched_in_a_loop() {
        let now = Instant::now();
        let kept = kept(SECOND * 200, now);
        let at = |seconds: u32| {
            let passed = SECOND * seconds;
            kept.judge(SystemTime::UNIX_EPOCH + passed, now + passed)
        };
        assert_eq!(at(0), Standing::Fresh);
        assert_eq!(kept.due(SystemTime::UNIX_EPOCH, now), Some(now + GAP));
        assert_eq!(at(60), Standing::Due);
        assert_eq!(at(200), Standing::Ended);
    }

    #[test]
    fn those_without_an_end_are_not_kept() {
        assert!(LastingCredentials::new(&credentials(), Instant::now()).is_none());
    }
}
