//! Back-off from a registry that throttles. Owns: which replies ask for it, and until when nobody
//! asks the registry again. Must not: sleep, or know what a client is told.
//!
//! All pulls share one pause: when one pull is throttled, the others wait, too. Pushes have no part
//! in it: ECR counts them apart, they cannot be repeated here, and their clients get the refusal.
//!
//! Lock: the pause, held for arithmetic.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use super::incoming::Incoming;
use crate::locked::Locked as _;
use crate::random::portion;

/// Pause after a reply that names no time, if the last pause was long ago; it doubles.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause, whatever a registry asks for: a wrong clock or setting there must not keep us
/// away for an hour.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// After so long without throttling the next pause is the first one again.
const QUIET: Duration = Duration::from_secs(60);
/// Words of throttling in refusals that have another status than 429 (AWS's error codes, and S3's).
const WORDS: [&str; 3] = ["SlowDown", "ThrottlingException", "TOOMANYREQUESTS"];

/// Until when the registry asked us to stay away.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<Option<Pause>>);

#[derive(Debug)]
struct Pause {
    until: Instant,
    length: Duration,
}

impl Throttle {
    /// A reply that came at `now` asked for a pause, of this length if it named one. `roll`: a
    /// random number, so that many proxies do not come back together. Returns the time until then.
    pub(super) fn note(&self, asked: Option<Duration>, now: Instant, roll: u64) -> Duration {
        let mut pause = self.0.locked();
        let last = pause.as_ref().filter(|last| now < last.until + QUIET);
        let length = match last {
            // Requests that were on their way already say nothing new.
            Some(last) if now < last.until => last.length,
            Some(last) => (last.length * 2).min(PAUSE_MAX),
            None => PAUSE_MIN,
        };
        let wait = asked.unwrap_or(length).min(PAUSE_MAX);
        let until = now + wait + portion(wait / 4, roll);
        let until = last.map_or(until, |last| last.until.max(until));
        *pause = Some(Pause { until, length });
        until - now
    }

    /// How long a pull must wait at `now`; none when it may go. Those that wait come back one
    /// after another, by `roll`.
    pub(super) fn wait(&self, now: Instant, roll: u64) -> Option<Duration> {
        let pause = self.0.locked();
        let pause = pause.as_ref()?;
        let left = pause.until.checked_duration_since(now)?;
        (!left.is_zero()).then(|| left + portion(pause.length / 4, roll))
    }
}

/// A reply that asks us to stay away for a while.
#[derive(Debug, Clone, Copy)]
pub(super) struct PauseRequest {
    /// The time that the reply names, if it names one.
    pub(super) length: Option<Duration>,
}

/// Reads whether a refusal throttles us: 429; 503 that names a time (RFC 9110 §15.6.4); 400 and 503
/// in the words of AWS.
pub(super) fn read_pause_request(reply: &Incoming, body: &[u8]) -> Option<PauseRequest> {
    let asked = reply.headers.first("Retry-After");
    let says = || {
        let mut text = String::from_utf8_lossy(body).into_owned();
        text.retain(|c| !c.is_whitespace());
        WORDS.iter().any(|word| is_code(&text, word))
    };
    let is_throttling = match reply.status {
        429 => true,
        503 => asked.is_some() || says(),
        400 => says(),
        _ => false,
    };
    is_throttling.then(|| PauseRequest {
        length: asked.and_then(|text| retry_after(text, SystemTime::now())),
    })
}

/// True when an error document has this code. A message may repeat what a client asked for; there
/// JSON and XML escape what would make it a code.
fn is_code(text: &str, word: &str) -> bool {
    [
        format!("\"code\":\"{word}\""),
        format!("\"__type\":\"{word}\""),
        format!("<Code>{word}</Code>"),
    ]
    .iter()
    .any(|code| text.contains(code))
}

/// Reads `Retry-After`: seconds or a date (RFC 9110 §10.2.3).
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text.trim()).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_pause_holds_back_all_that_ask() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.wait(now, 0), None);
        assert_eq!(throttle.note(None, now, 0), SECOND);
        assert_eq!(throttle.wait(now, 0), Some(SECOND));
        assert_eq!(throttle.wait(now + SECOND, 0), None);
        // Those that wait come back one after another, and so do proxies.
        let later = throttle.wait(now, 999).unwrap();
        assert!(later > SECOND && later < SECOND * 5 / 4);
        let late = Throttle::default().note(None, now, 999);
        assert!(late > SECOND && late < SECOND * 5 / 4);
    }

    #[test]
    fn pauses_grow_to_a_limit_and_are_forgotten() {
        let (throttle, mut now) = (Throttle::default(), Instant::now());
        let note = |asked, now| throttle.note(asked, now, 0);
        for expected in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(note(None, now), SECOND * expected);
            // One that was on its way does not make it longer.
            assert_eq!(note(None, now), SECOND * expected);
            now += SECOND * expected;
        }
        now += QUIET;
        assert_eq!(note(None, now), SECOND);
        // What is asked for counts, up to a limit, and none ends a pause early.
        assert_eq!(note(Some(SECOND * 7), now), SECOND * 7);
        assert_eq!(note(Some(SECOND), now), SECOND * 7);
        assert_eq!(note(Some(Duration::MAX), now), PAUSE_MAX);
    }

    #[test]
    fn throttling_is_told_from_other_refusals() {
        let asked = |status, retry_after: Option<&str>, body: &[u8]| {
            let fields = retry_after.map(|value| ("Retry-After", value));
            let reply = Incoming {
                status,
                headers: fields.into_iter().collect(),
                body: Box::new(std::io::empty()),
                length: None,
            };
            read_pause_request(&reply, body).map(|asked| asked.length)
        };
        assert_eq!(asked(429, None, b""), Some(None));
        assert_eq!(asked(429, Some("7"), b""), Some(Some(SECOND * 7)));
        assert_eq!(asked(429, Some("soon"), b""), Some(None));
        assert_eq!(asked(503, Some("2"), b""), Some(Some(SECOND * 2)));
        assert_eq!(asked(503, None, b"<Code>SlowDown</Code>"), Some(None));
        assert_eq!(
            asked(400, None, br#"{"code":"ThrottlingException"}"#),
            Some(None)
        );
        for (status, body) in [
            (503, &b""[..]),
            (400, b"bad"),
            (500, b"SlowDown"),
            (200, b"SlowDown"),
        ] {
            assert_eq!(asked(status, None, body), None, "{status}");
        }
        let named = br#"{"errors":[{"code":"X","message":"no \"code\":\"SlowDown\" SlowDown"}]}"#;
        assert_eq!(asked(400, None, named), None, "a client can name anything");
        let spaced = b"{ \"__type\" : \"ThrottlingException\" }";
        assert_eq!(asked(400, None, spaced), Some(None));
        let now = SystemTime::UNIX_EPOCH;
        let date = |text| retry_after(text, now);
        assert_eq!(date("Thu, 01 Jan 1970 00:00:09 GMT"), Some(SECOND * 9));
        assert_eq!(date("Wed, 31 Dec 1969 00:00:00 GMT"), None);
    }
}
