//! Attempts at something that others wait for. Owns: when the next one is due, as functions of the
//! time handed in, and how long to wait after a failure. Must not: read a clock, lock or log.

use std::time::{Duration, Instant};

use super::super::fault::{AwsFault, FaultKind};
use crate::random::portion;

/// First and longest wait after a failure that may pass by itself.
const BACK_OFF: DoublingWait = DoublingWait::seconds(1, 60);
/// First and longest wait after a failure that somebody must mend.
const BACK_OFF_PERMANENT: DoublingWait = DoublingWait::seconds(60, 300);
/// Least time after a failed attempt before a caller can have the next one made at once. A caller
/// need not wait for the end of a long pause when the network is back, but AWS must not be asked in
/// a loop.
pub(super) const ASKED_GAP: Duration = Duration::from_secs(2);
/// A failure that repeats in the same words is reported once in this time.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);
/// Longest wait that AWS may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15 * 60);

/// A wait that doubles each time.
pub(super) struct DoublingWait {
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

impl DoublingWait {
    pub(super) const fn seconds(first: u64, longest: u64) -> Self {
        Self {
            first: Duration::from_secs(first),
            longest: Duration::from_secs(longest),
        }
    }

    /// The wait after `failures` failures, at least one.
    fn after(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

/// The answer to a caller that wants the outcome.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Availability<T> {
    /// Here it is.
    Ready(T),
    /// There is none, and why.
    Refused(String),
    /// The outcome comes with the attempt of this number.
    Wait(u64),
}

/// The attempts at one thing.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// When the next one starts; none: when somebody asks for it.
    due: Option<Instant>,
    running: bool,
    /// Failures since the last success.
    failures: u32,
    ended: u64,
    /// The last attempt's failure; none after a success.
    fault: Option<String>,
    /// No caller can have an attempt made before this.
    not_before: Option<Instant>,
    /// When the failure was last reported.
    reported: Option<Instant>,
}

impl Attempts {
    pub(super) fn new(due: Option<Instant>) -> Self {
        Self {
            due,
            ..Self::default()
        }
    }

    /// When the next attempt is to start; none while one is running, or when nobody wants one.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.filter(|_| !self.running)
    }

    /// How many attempts have ended.
    pub(super) const fn count_ended(&self) -> u64 {
        self.ended
    }

    /// Why the last attempt failed; none after a success.
    pub(super) const fn fault(&self) -> Option<&String> {
        self.fault.as_ref()
    }

    /// True when an attempt runs or is to start now.
    pub(super) fn is_pending(&self, now: Instant) -> bool {
        self.running || self.due.is_some_and(|due| due <= now)
    }

    /// Notes that an attempt starts.
    pub(super) fn begin(&mut self) {
        self.running = true;
    }

    /// Notes that the attempt has succeeded; the next one starts at `due`, if there is to be one.
    pub(super) fn succeed(&mut self, due: Option<Instant>) {
        (self.running, self.due) = (false, due);
        (self.failures, self.fault) = (0, None);
        self.ended += 1;
    }

    /// Notes that the attempt has failed. Returns the time until the next one.
    pub(super) fn fail(&mut self, fault: &AwsFault, now: Instant, roll: u64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let wait = back_off(fault.kind, self.failures, roll);
        (self.running, self.due) = (false, Some(now + wait));
        let asked = match fault.kind {
            FaultKind::Throttled { .. } => wait,
            _ => wait.min(ASKED_GAP),
        };
        self.not_before = Some(now + asked);
        self.fault = Some(fault.text.clone());
        self.ended += 1;
        wait
    }

    /// True when the failure `fault` is to be reported: it is new, or a while has passed. To be
    /// called before [`fail`](Self::fail).
    pub(super) fn is_news(&mut self, fault: &AwsFault, now: Instant) -> bool {
        let is_known = self.fault.as_ref() == Some(&fault.text);
        // Settings do not change while we run: one report is enough.
        let again = fault.kind != FaultKind::Unconfigured;
        let last = self.reported.filter(|_| is_known);
        let is_news = last.is_none_or(|last| again && now >= last + REPORT_INTERVAL);
        if is_news {
            self.reported = Some(now);
        }
        is_news
    }

    /// Moves the next attempt forward by `slept`: the machine has slept so long.
    pub(super) fn move_forward(&mut self, slept: Duration, now: Instant) {
        self.due = self.due.map(|due| due.checked_sub(slept).unwrap_or(now));
    }

    /// Lets an attempt start now; a caller waits for its outcome.
    pub(super) fn start<T>(&mut self, now: Instant) -> Availability<T> {
        self.due = Some(now);
        self.wait()
    }

    /// The outcome of the attempt that is running or next.
    pub(super) const fn wait<T>(&self) -> Availability<T> {
        Availability::Wait(self.ended + 1)
    }

    /// The answer to a caller while there is nothing to give: the outcome of an attempt that is
    /// made now, or the last failure while it is too early for another attempt.
    pub(super) fn wait_or_refuse<T>(&mut self, now: Instant) -> Availability<T> {
        if self.is_pending(now) {
            return self.wait();
        }
        match (&self.fault, self.not_before) {
            (Some(fault), Some(not_before)) if now < not_before => {
                let seconds = (not_before - now).as_secs() + 1;
                Availability::Refused(format!("{fault} (next try in {seconds} s)"))
            }
            _ => self.start(now),
        }
    }
}

/// The wait after `failures` failures, at least one; the last was of this kind.
fn back_off(kind: FaultKind, failures: u32, roll: u64) -> Duration {
    match kind {
        FaultKind::Permanent | FaultKind::Unconfigured => {
            let wait = BACK_OFF_PERMANENT.after(failures);
            wait + portion(wait / 10, roll)
        }
        FaultKind::ClockSkew | FaultKind::ExpiredCredentials | FaultKind::Transient => {
            add_jitter(BACK_OFF.after(failures), roll)
        }
        FaultKind::Throttled { retry_after } => {
            let asked = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
            // Later than asked, never earlier.
            let asked = asked + portion(asked / 10, roll);
            asked.max(add_jitter(BACK_OFF.after(failures), roll))
        }
    }
}

/// Between half of `wait` and all of it.
fn add_jitter(wait: Duration, roll: u64) -> Duration {
    wait - portion(wait / 2, roll)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn fault(kind: FaultKind) -> AwsFault {
        AwsFault::new("boom", kind)
    }

    #[test]
    fn failures_back_off_by_kind() {
        let now = Instant::now();
        let waits = |kind, count| {
            let mut attempts = Attempts::new(Some(now));
            (0..count)
                .map(|_| attempts.fail(&fault(kind), now, 0).as_secs())
                .collect::<Vec<_>>()
        };
        assert_eq!(waits(FaultKind::Transient, 8), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(waits(FaultKind::Permanent, 4), [60, 120, 240, 300]);
        assert_eq!(waits(FaultKind::Unconfigured, 2), [60, 120]);
        let throttled = |seconds| FaultKind::Throttled {
            retry_after: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(waits(throttled(10), 6), [10, 10, 10, 10, 16, 32]);
        assert_eq!(waits(throttled(86_400), 1), [900]);
        let mut attempts = Attempts::new(Some(now));
        for _ in 0..100_000 {
            assert!(attempts.fail(&fault(FaultKind::Transient), now, 0) >= SECOND);
        }
    }

    #[test]
    fn a_caller_has_an_attempt_made_two_seconds_after_a_failure_however_long_the_pause() {
        for kind in [
            FaultKind::ClockSkew,
            FaultKind::ExpiredCredentials,
            FaultKind::Permanent,
            FaultKind::Transient,
            FaultKind::Unconfigured,
        ] {
            let now = Instant::now();
            let mut attempts = Attempts::new(Some(now));
            for _ in 0..9 {
                attempts.fail(&fault(kind), now, 0);
            }
            let early = attempts.wait_or_refuse::<()>(now + SECOND);
            let refused = Availability::Refused("boom (next try in 2 s)".into());
            assert_eq!(early, refused, "{kind:?}");
            assert!(attempts.next().unwrap() > now + SECOND * 30);
            let asked = attempts.wait_or_refuse::<()>(now + ASKED_GAP);
            assert_eq!(asked, Availability::Wait(10), "{kind:?}");
            assert_eq!(attempts.next(), Some(now + ASKED_GAP));
        }
    }

    #[test]
    fn no_caller_shortens_a_pause_that_aws_asked_for() {
        let now = Instant::now();
        let mut attempts = Attempts::new(Some(now));
        let kind = FaultKind::Throttled {
            retry_after: Some(SECOND * 90),
        };
        attempts.fail(&fault(kind), now, 0);
        let refused = Availability::Refused("boom (next try in 2 s)".into());
        assert_eq!(attempts.wait_or_refuse::<()>(now + SECOND * 89), refused);
        assert_eq!(attempts.next(), Some(now + SECOND * 90));
    }

    #[test]
    fn a_failure_in_the_same_words_is_news_once_a_minute() {
        let now = Instant::now();
        let mut attempts = Attempts::new(Some(now));
        let mut fails = |text: &str, kind, second: u32| {
            let (fault, then) = (AwsFault::new(text, kind), now + SECOND * second);
            let is_news = attempts.is_news(&fault, then);
            attempts.fail(&fault, then, 0);
            is_news
        };
        assert!(fails("a", FaultKind::Transient, 0));
        assert!(!fails("a", FaultKind::Transient, 59));
        assert!(fails("a", FaultKind::Transient, 60));
        assert!(fails("b", FaultKind::Unconfigured, 61));
        assert!(!fails("b", FaultKind::Unconfigured, 600));
    }

    #[test]
    fn jitter_shortens_back_off_by_half_at_most_and_never_a_retry_after() {
        let now = Instant::now();
        let mut attempts = Attempts::new(Some(now));
        let half = attempts.fail(&fault(FaultKind::Transient), now, 1000);
        assert_eq!(half, SECOND / 2);
        let kind = FaultKind::Throttled {
            retry_after: Some(SECOND * 10),
        };
        assert_eq!(attempts.fail(&fault(kind), now, 1000), SECOND * 11);
    }
}
