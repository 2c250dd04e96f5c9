//! How far this machine's clock is from AWS's. Owns: the measured difference. Must not: call
//! anybody; it learns from replies that others fetched. No locks: one atomic.
//!
//! The rules are those of the AWS SDK for Rust (aws-runtime, `service_clock_skew.rs`).

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use crate::log;
use crate::upstream::ApiReply;

/// A refused signature is put down to the clock only above this difference: AWS itself accepts 5
/// minutes in most services and 15 in ECR.
const SKEW_MIN: Duration = Duration::from_secs(4 * 60);
/// A reply that took longer says nothing about the clock.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(15 * 60);

/// Stands for a difference that nobody has measured yet.
const UNMEASURED: i64 = i64::MIN;

/// Milliseconds to add to our clock to get AWS's.
#[derive(Debug)]
pub(super) struct Skew(AtomicI64);

impl Default for Skew {
    fn default() -> Self {
        Self(AtomicI64::new(UNMEASURED))
    }
}

/// The difference, once it is measured.
fn known(millis: i64) -> Option<i64> {
    Some(millis).filter(|millis| *millis != UNMEASURED)
}

impl Skew {
    /// `time` of our clock as AWS has it.
    pub(super) fn correct(&self, time: SystemTime) -> SystemTime {
        let millis = known(self.0.load(Relaxed)).unwrap_or_default();
        let by = Duration::from_millis(millis.unsigned_abs());
        let corrected = if millis < 0 {
            time.checked_sub(by)
        } else {
            time.checked_add(by)
        };
        corrected.unwrap_or(time)
    }

    /// Whole seconds to add to our clock to get AWS's; none before AWS has answered.
    pub(super) fn seconds(&self) -> Option<i64> {
        Some(known(self.0.load(Relaxed))? / 1000)
    }

    /// Takes the difference from a reply's `Date`. True when it moved so far that a signature
    /// refused in this very reply deserves a second try.
    pub(super) fn learn(&self, reply: &ApiReply) -> bool {
        let Some(measured) = measure(reply) else {
            return false;
        };
        let before = known(self.0.swap(measured, Relaxed)).unwrap_or_default();
        let moved = u128::from(measured.abs_diff(before)) > SKEW_MIN.as_millis();
        if moved {
            log::warn(
                "clock differs from AWS's, calls are signed with AWS's time; set this clock",
                &[("seconds", &(measured / 1000))],
            );
        }
        moved
    }
}

/// Milliseconds between the reply's `Date` and the middle of its round trip; none when the reply
/// does not show it. `Age` marks a stored reply, whose `Date` is old (RFC 9111 §5.1).
fn measure(reply: &ApiReply) -> Option<i64> {
    if reply.headers.first("age").is_some() {
        return None;
    }
    let date = httpdate::parse_http_date(reply.headers.first("date")?.trim()).ok()?;
    let round_trip = reply.received.duration_since(reply.sent).ok()?;
    if round_trip > ROUND_TRIP_MAX {
        return None;
    }
    let middle = reply.sent.checked_add(round_trip / 2)?;
    match date.duration_since(middle) {
        Ok(ahead) => i64::try_from(ahead.as_millis()).ok(),
        Err(behind) => i64::try_from(behind.duration().as_millis())
            .ok()
            .map(|n| -n),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::message::Headers;

    const DAY: Duration = Duration::from_secs(86_400);

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn reply(sent: u64, received: u64, date: u64) -> ApiReply {
        ApiReply {
            status: 200,
            headers: Headers::from_iter([("Date", httpdate::fmt_http_date(at(date)))]),
            body: Vec::new(),
            sent: at(sent),
            received: at(received),
        }
    }

    #[test]
    fn a_day_either_way_is_learned_from_the_middle_of_the_round_trip() {
        let skew = Skew::default();
        assert!(skew.learn(&reply(1_700_000_000, 1_700_000_004, 1_700_086_402)));
        assert_eq!(skew.correct(at(1_700_000_000)), at(1_700_000_000) + DAY);
        assert!(skew.learn(&reply(1_700_086_400, 1_700_086_400, 1_700_000_000)));
        assert_eq!(skew.correct(at(1_700_086_400)), at(1_700_000_000));
    }

    #[test]
    fn small_differences_are_corrected_but_excuse_no_refusal() {
        let skew = Skew::default();
        assert!(!skew.learn(&reply(1_700_000_000, 1_700_000_000, 1_700_000_240)));
        assert_eq!(skew.correct(at(0)), at(240));
        assert!(!skew.learn(&reply(1_700_000_000, 1_700_000_000, 1_700_000_240)));
        assert!(skew.learn(&reply(1_700_000_000, 1_700_000_000, 1_700_000_481)));
    }

    #[test]
    fn replies_that_say_nothing_about_the_clock_are_passed_over() {
        let skew = Skew::default();
        let mut stored = reply(1_700_000_000, 1_700_000_000, 1_600_000_000);
        stored.headers.add("Age", "5");
        let mut undated = stored.clone();
        undated.headers = Headers::new();
        let mut odd = stored.clone();
        odd.headers = Headers::from_iter([("Date", "yesterday")]);
        let slow = reply(1_700_000_000, 1_700_000_901, 1_600_000_000);
        let stepped_back = reply(1_700_000_001, 1_700_000_000, 1_600_000_000);
        for silent in [stored, undated, odd, slow, stepped_back] {
            assert!(!skew.learn(&silent), "{silent:?}");
            assert_eq!(skew.correct(at(7)), at(7));
        }
    }
}
