//! The content of a tag's file. Owns: its JSON. Must not: do I/O.
//!
//! A tag may mean one manifest for each media type, as registries answer by `Accept`. The file
//! holds one entry for each: `{"entries": [{"digest": …, "mediaType": …, "confirmed":
//! milliseconds}]}`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::oci::Digest;

/// The manifest that a tag means for one media type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagEntry {
    /// The manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// When upstream last confirmed it; the file keeps milliseconds.
    pub confirmed: SystemTime,
}

/// Media types kept for one tag: clients in use ask for four.
const ENTRIES_MAX: usize = 8;
/// Most bytes read of a file: eight entries with the longest media type and digest take a tenth.
pub(super) const TAG_FILE_BYTES_MAX: u64 = 64 * 1024;

/// The entries of a tag, the newest confirmation first.
#[derive(Debug, Default)]
pub(super) struct TagFile {
    entries: Vec<TagEntry>,
}

impl TagFile {
    /// Reads a file. An entry that cannot be read is left out.
    pub(super) fn parse(text: &str) -> Self {
        let document: Value = serde_json::from_str(text).unwrap_or_default();
        let entries = document.get("entries").and_then(Value::as_array);
        let entries = entries.into_iter().flatten().filter_map(parse_entry);
        let mut file = Self {
            entries: entries.take(ENTRIES_MAX).collect(),
        };
        file.sort();
        file
    }

    /// Writes the file.
    pub(super) fn to_json(&self) -> String {
        let entries = self.entries.iter().map(|entry| {
            json!({
                "digest": entry.digest.as_str(),
                "mediaType": entry.media_type,
                "confirmed": to_millis(entry.confirmed),
            })
        });
        json!({"entries": entries.collect::<Vec<_>>()}).to_string()
    }

    /// The entries, the newest confirmation first.
    pub(super) fn into_entries(self) -> Vec<TagEntry> {
        self.entries
    }

    /// Replaces the entry of the same media type, and returns its digest; the oldest entry goes
    /// when there are too many.
    pub(super) fn set(&mut self, new: TagEntry) -> Option<Digest> {
        let same = |entry: &TagEntry| entry.media_type == new.media_type;
        let known = self.entries.iter().position(same);
        let replaced = known.map(|at| self.entries.remove(at).digest);
        self.entries.insert(0, new);
        self.sort();
        self.entries.truncate(ENTRIES_MAX);
        replaced
    }

    /// Sets the time of confirmation of the entries with this digest. False when there is none.
    pub(super) fn confirm(&mut self, digest: &Digest, now: SystemTime) -> bool {
        let mut found = false;
        for entry in &mut self.entries {
            if entry.digest == *digest {
                entry.confirmed = now;
                found = true;
            }
        }
        self.sort();
        found
    }

    fn sort(&mut self) {
        self.entries
            .sort_by_key(|entry| std::cmp::Reverse(entry.confirmed));
    }
}

/// True when two texts differ in digits alone: as long as milliseconds have 13 of them, that is the
/// time of the same entries, in the same order.
pub(super) fn is_another_time(before: &str, after: &str) -> bool {
    let mut pairs = before.bytes().zip(after.bytes());
    before.len() == after.len()
        && pairs.all(|(b, a)| b == a || (b.is_ascii_digit() && a.is_ascii_digit()))
}

fn parse_entry(value: &Value) -> Option<TagEntry> {
    let confirmed = Duration::from_millis(value.get("confirmed")?.as_u64()?);
    Some(TagEntry {
        digest: value.get("digest")?.as_str()?.parse().ok()?,
        media_type: value.get("mediaType")?.as_str()?.to_owned(),
        confirmed: UNIX_EPOCH.checked_add(confirmed)?,
    })
}

fn to_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        let hex = format!("{n:02x}").repeat(32);
        format!("sha256:{hex}").parse().unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn entry(n: u8, media_type: &str, confirmed: u64) -> TagEntry {
        TagEntry {
            digest: digest(n),
            media_type: media_type.to_owned(),
            confirmed: at(confirmed),
        }
    }

    #[test]
    fn a_file_reads_as_it_was_written() {
        let mut file = TagFile::default();
        file.set(entry(1, "a/a", 5));
        file.set(entry(2, "b/b", 7));
        file.set(entry(3, "a/a", 6));
        let read = TagFile::parse(&file.to_json());
        let expected = [entry(2, "b/b", 7), entry(3, "a/a", 6)];
        assert_eq!(read.into_entries(), expected);
    }

    #[test]
    fn another_time_is_told_from_another_entry() {
        let text = |entries: &[TagEntry]| {
            let mut file = TagFile::default();
            for entry in entries {
                file.set(entry.clone());
            }
            file.to_json()
        };
        let now = 1_700_000_000;
        let before = text(&[entry(0xaa, "a/a", now), entry(0xbb, "b/b", now - 9)]);
        for (after, is_another) in [
            (
                text(&[entry(0xaa, "a/a", now + 7), entry(0xbb, "b/b", now)]),
                true,
            ),
            // The order changes with the newest.
            (
                text(&[entry(0xaa, "a/a", now), entry(0xbb, "b/b", now + 1)]),
                false,
            ),
            (text(&[entry(0xaa, "a/a", now)]), false),
            (
                text(&[entry(0xcc, "a/a", now), entry(0xbb, "b/b", now)]),
                false,
            ),
            (String::new(), false),
        ] {
            assert_eq!(is_another_time(&before, &after), is_another, "{after}");
        }
    }

    #[test]
    fn the_longest_file_still_reads() {
        let mut file = TagFile::default();
        let long = format!("sha512:{}", "a".repeat(128));
        for n in 0..40 {
            let mut new = entry(1, &format!("{}/{n}", "m".repeat(250)), n);
            new.digest = long.parse().unwrap();
            file.set(new);
        }
        let text = file.to_json();
        assert!((text.len() as u64) < TAG_FILE_BYTES_MAX, "{}", text.len());
        let read = TagFile::parse(&text);
        assert_eq!(read.entries.len(), ENTRIES_MAX);
        assert_eq!(read.entries[0].confirmed, at(39));
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        for text in ["", "{", "7", r#"{"entries":{}}"#, r#"{"entries":[{}, 5]}"#] {
            assert!(TagFile::parse(text).into_entries().is_empty(), "{text}");
        }
        let mut file = TagFile::default();
        file.set(entry(1, "a/a", 5));
        let text = file.to_json();
        assert!(!TagFile::parse(&text).into_entries().is_empty());
        assert!(
            TagFile::parse(&text.replace("sha256:", "sha256:../"))
                .into_entries()
                .is_empty()
        );
        let far = TagFile::parse(&text.replace("5000", "18446744073709551615"));
        assert!(far.into_entries()[0].confirmed > at(5));
        assert!(
            TagFile::parse(&text.replace("5000", "-5"))
                .into_entries()
                .is_empty()
        );
    }
}
