//! Causes that repeat. Owns: which line is written and which is only counted, so that the log grows
//! with events and not with requests. Must not: write a line.
//!
//! A cause is a message and a text, such as the error of a registry that is down. It is written
//! when it is new, and then once in [`INTERVAL`] with the number of lines that were left out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::level::Level;
use super::text::cut;

/// Least time between two lines of one cause.
pub(super) const INTERVAL: Duration = Duration::from_secs(60);
/// Causes of one message that are told apart: a text may hold what a client chose. Messages are
/// written in our code, so this bounds the table.
const CAUSES_MAX: usize = 16;
/// Longest text that is kept of a cause.
const TEXT_BYTES_MAX: usize = 1024;
/// Stands for the causes past [`CAUSES_MAX`].
const OTHERS: &str = "several others";

/// A cause whose lines were left out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) level: Level,
    pub(super) message: &'static str,
    /// The name of the field with the text.
    pub(super) name: &'static str,
    pub(super) text: String,
    pub(super) count: u64,
}

#[derive(Debug)]
struct Seen {
    level: Level,
    name: &'static str,
    written: Instant,
    left_out: u64,
}

/// The causes of the last minute.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    messages: HashMap<&'static str, HashMap<String, Seen>>,
}

impl Repeats {
    /// Notes a line. Returns how many lines of its cause were left out before it, or none if this
    /// one is to be left out too.
    pub(super) fn note(
        &mut self,
        now: Instant,
        level: Level,
        message: &'static str,
        (name, text): (&'static str, &str),
    ) -> Option<u64> {
        let causes = self.messages.entry(message).or_default();
        let text = cut(text, TEXT_BYTES_MAX);
        let text = match causes.len() < CAUSES_MAX || causes.contains_key(text) {
            true => text,
            false => OTHERS,
        };
        let Some(seen) = causes.get_mut(text) else {
            let seen = Seen {
                level,
                name,
                written: now,
                left_out: 0,
            };
            causes.insert(text.to_owned(), seen);
            return Some(0);
        };
        if now.duration_since(seen.written) < INTERVAL {
            seen.left_out = seen.left_out.saturating_add(1);
            return None;
        }
        seen.written = now;
        Some(std::mem::take(&mut seen.left_out))
    }

    /// Takes what was left out of causes that were last written `age` or longer ago, and forgets
    /// causes that were silent for as long.
    pub(super) fn take(&mut self, now: Instant, age: Duration) -> Vec<LeftOut> {
        let mut taken = Vec::new();
        for (message, causes) in &mut self.messages {
            causes.retain(|text, seen| {
                if now.duration_since(seen.written) < age {
                    return true;
                }
                let count = std::mem::take(&mut seen.left_out);
                if count == 0 {
                    return false;
                }
                seen.written = now;
                taken.push(LeftOut {
                    level: seen.level,
                    message,
                    name: seen.name,
                    text: text.clone(),
                    count,
                });
                true
            });
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = "upstream failed";

    fn note(repeats: &mut Repeats, now: Instant, text: &str) -> Option<u64> {
        repeats.note(now, Level::Warn, MESSAGE, ("error", text))
    }

    #[test]
    fn a_cause_is_written_once_a_minute_with_a_count() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        assert_eq!(note(&mut repeats, start, "refused"), Some(0));
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            assert_eq!(note(&mut repeats, now, "refused"), None);
        }
        assert_eq!(
            note(&mut repeats, start, "silent"),
            Some(0),
            "another cause"
        );
        assert_eq!(note(&mut repeats, start + INTERVAL, "refused"), Some(60));
        assert_eq!(note(&mut repeats, start + INTERVAL, "refused"), None);
    }

    #[test]
    fn what_was_left_out_is_said_when_the_cause_ends() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        for _ in 0..4 {
            note(&mut repeats, start, "refused");
        }
        note(&mut repeats, start, "once");
        assert_eq!(repeats.take(start + INTERVAL / 2, INTERVAL), []);
        let left_out = LeftOut {
            level: Level::Warn,
            message: MESSAGE,
            name: "error",
            text: "refused".into(),
            count: 3,
        };
        assert_eq!(repeats.take(start + INTERVAL, INTERVAL), [left_out]);
        assert_eq!(repeats.take(start + INTERVAL, Duration::ZERO), []);
        assert!(
            repeats.messages[MESSAGE].is_empty(),
            "nothing is kept for ever"
        );
    }

    #[test]
    fn a_client_cannot_make_causes_without_end() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let written = (0..1000).filter(|n| {
            let text = format!("no host {n}.example");
            note(&mut repeats, start, &text).is_some()
        });
        assert_eq!(written.count(), CAUSES_MAX + 1);
        let left_out = repeats.take(start + INTERVAL, INTERVAL);
        assert_eq!(left_out.len(), 1);
        assert_eq!(
            (left_out[0].text.as_str(), left_out[0].count),
            (OTHERS, 983)
        );
        let long = "é".repeat(100_000);
        note(&mut repeats, start, &long);
        let lengths = repeats.messages[MESSAGE].keys().map(String::len);
        assert!(lengths.max().unwrap() <= TEXT_BYTES_MAX);
    }
}
