//! Causes that repeat. Owns: which line is written and which is only counted, so that the log grows
//! with events and not with requests. Must not: write a line.
//!
//! A cause is a message and a text, such as the error of a registry that is down. It is written
//! when it is new, and then once in [`INTERVAL`] with the number of lines that were left out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::fields::Field;
use super::level::Level;

/// Least time between two lines of one cause.
pub(super) const INTERVAL: Duration = Duration::from_secs(60);
/// Causes of one message that are told apart: a text may hold what a client chose. Messages are
/// written in our code, so this bounds the table.
const CAUSES_MAX: usize = 16;
/// Longest text that is kept of a cause.
const TEXT_BYTES_MAX: usize = 1024;
/// Stands for the causes past [`CAUSES_MAX`].
const OTHERS: &str = "several others";

/// The causes of the last minute, by message and text.
#[derive(Debug, Default)]
pub(super) struct Repeats(HashMap<&'static str, HashMap<String, Seen>>);

#[derive(Debug)]
struct Seen {
    level: Level,
    /// The name of the field with the text.
    name: &'static str,
    written: Instant,
    left_out: u64,
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
        let causes = self.0.entry(message).or_default();
        let (mut text, _) = text.split_at(text.floor_char_boundary(TEXT_BYTES_MAX));
        if causes.len() >= CAUSES_MAX && !causes.contains_key(text) {
            text = OTHERS;
        }
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
            seen.left_out += 1;
            return None;
        }
        seen.written = now;
        Some(std::mem::take(&mut seen.left_out))
    }

    /// Takes the numbers of lines that were left out, for causes that were last written `age` or
    /// longer ago. Forgets causes that were silent for as long.
    pub(super) fn take(
        &mut self,
        now: Instant,
        age: Duration,
        mut tell: impl FnMut(Level, &str, &[Field<'_>]),
    ) {
        for (message, causes) in &mut self.0 {
            causes.retain(|text, seen| {
                let is_due = now.duration_since(seen.written) >= age;
                if is_due && seen.left_out > 0 {
                    let fields: [Field<'_>; 2] = [(seen.name, text), ("repeated", &seen.left_out)];
                    tell(seen.level, message, &fields);
                    (seen.written, seen.left_out) = (now, 0);
                    return true;
                }
                !is_due
            });
        }
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

    /// What is told at this time, in words.
    fn take(repeats: &mut Repeats, now: Instant, age: Duration) -> Vec<String> {
        let mut told = Vec::new();
        repeats.take(now, age, |level, message, fields| {
            let fields = fields
                .iter()
                .map(|(name, value)| format!(" {name}={value}"));
            let fields: String = fields.collect();
            told.push(format!("{} {message}{fields}", level.name()));
        });
        told
    }

    #[test]
    fn what_was_left_out_is_said_when_the_cause_ends() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        for _ in 0..4 {
            note(&mut repeats, start, "refused");
        }
        note(&mut repeats, start, "once");
        assert!(take(&mut repeats, start + INTERVAL / 2, INTERVAL).is_empty());
        let told = take(&mut repeats, start + INTERVAL, INTERVAL);
        assert_eq!(told, ["WARN upstream failed error=refused repeated=3"]);
        assert!(take(&mut repeats, start + INTERVAL, Duration::ZERO).is_empty());
        assert!(repeats.0[MESSAGE].is_empty(), "nothing is kept for ever");
    }

    #[test]
    fn a_client_cannot_make_causes_without_end() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let written = (0..1000).filter(|n| {
            let text = format!("no host {n}.example");
            note(&mut repeats, start, &text).is_some()
        });
        assert_eq!(written.count(), CAUSES_MAX + 1);
        let told = take(&mut repeats, start + INTERVAL, INTERVAL);
        assert_eq!(
            told,
            [format!("WARN {MESSAGE} error={OTHERS} repeated=983")]
        );
        let long = "é".repeat(100_000);
        note(&mut repeats, start, &long);
        let lengths = repeats.0[MESSAGE].keys().map(String::len);
        assert!(lengths.max().unwrap() <= TEXT_BYTES_MAX);
    }
}
