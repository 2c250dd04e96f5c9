//! The content of a tag's file: what the tag means, and what it meant. Owns: its JSON. Must not: do
//! I/O.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::names::TagEntry;
use crate::oci::Digest;

/// Media types kept for one tag: clients in use ask for four.
const ENTRIES_MAX: usize = 8;
/// Earlier meanings kept, for whoever wants to know what a tag was.
const HISTORY_MAX: usize = 8;
/// Enough for all entries and the history, each with the longest media type and digest.
pub(super) const TAG_FILE_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Default)]
pub(super) struct TagFile {
    entries: Vec<TagEntry>,
    /// Newest first.
    history: Vec<Value>,
}

impl TagFile {
    /// What cannot be read is left out.
    pub(super) fn parse(text: &str) -> Self {
        let document: Value = serde_json::from_str(text).unwrap_or_default();
        let list = |name: &str| document.get(name).and_then(Value::as_array);
        let entries = list("entries").into_iter().flatten().filter_map(entry);
        let history = list("history").into_iter().flatten().cloned();
        let mut file = Self {
            entries: entries.take(ENTRIES_MAX).collect(),
            history: history.take(HISTORY_MAX).collect(),
        };
        file.sort();
        file
    }

    pub(super) fn to_json(&self) -> String {
        let entries: Vec<Value> = self
            .entries
            .iter()
            .map(|entry| {
                json!({
                    "digest": entry.digest.as_str(),
                    "mediaType": entry.media_type,
                    "size": entry.size,
                    "confirmed": millis(entry.confirmed),
                })
            })
            .collect();
        json!({"entries": entries, "history": self.history}).to_string()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Newest confirmation first.
    pub(super) fn into_entries(self) -> Vec<TagEntry> {
        self.entries
    }

    /// Replaces the entry of the same media type.
    pub(super) fn set(&mut self, new: TagEntry, now: SystemTime) {
        let same = |entry: &TagEntry| entry.media_type == new.media_type;
        for old in self.entries.extract_if(.., |entry| same(entry)) {
            if old.digest != new.digest {
                let digest = old.digest.as_str();
                let meant = json!({"digest": digest, "mediaType": old.media_type,
                    "replaced": millis(now)});
                self.history.insert(0, meant);
            }
        }
        self.history.truncate(HISTORY_MAX);
        self.entries.insert(0, new);
        self.sort();
        self.entries.truncate(ENTRIES_MAX);
    }

    /// Says whether an entry has the digest.
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

fn entry(value: &Value) -> Option<TagEntry> {
    let confirmed = Duration::from_millis(value.get("confirmed")?.as_u64()?);
    Some(TagEntry {
        digest: value.get("digest")?.as_str()?.parse().ok()?,
        media_type: value.get("mediaType")?.as_str()?.to_owned(),
        size: value.get("size")?.as_u64()?,
        confirmed: UNIX_EPOCH.checked_add(confirmed)?,
    })
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
