//! The log of tags that moved. Owns: one file for each registry, `_moves`: a line of JSON for each
//! time that a tag in the cache came to mean another manifest. Must not: say what a tag means.
//!
//! A line is appended with one write, so that two processes do not mix theirs, and without fsync:
//! after a power cut the last lines may be missing, or the last one cut. The file has a bound.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::names::{Names, Scope};
use super::paths::{read_text, unusable_name};
use crate::calendar::format_rfc3339;
use crate::oci::{Digest, Registry, Tag};

/// The name of the file, below the folder of a registry.
const MOVES: &str = "_moves";
/// Most bytes of a file, some 1000 moves. When there are more, the older half goes.
const LOG_BYTES_MAX: u64 = 256 * 1024;

/// A tag that came to mean another manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagMove {
    /// When, as RFC 3339 has it, in UTC.
    pub at: String,
    /// The repository.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// What it meant before.
    pub from: Digest,
    /// What it means since then.
    pub to: Digest,
}

impl Names {
    /// Notes that a tag means another manifest from `at` on.
    ///
    /// # Errors
    /// The disk's own, and names that make no path.
    pub fn note_move(
        &self,
        scope: Scope<'_>,
        tag: &Tag,
        (from, to): (&Digest, &Digest),
        at: SystemTime,
    ) -> io::Result<()> {
        let folder = self.paths.registry(scope.registry);
        let folder = folder.ok_or_else(unusable_name)?;
        let path = folder.join(MOVES);
        let line = json!({
            "at": format_rfc3339(at),
            "repository": scope.repository.as_str(),
            "tag": tag.as_str(),
            "from": from.as_str(),
            "to": to.as_str(),
        });
        let _lock = self.lock_file(&path);
        self.account(&path, |path| {
            // Eviction takes empty folders away at any moment.
            fs::create_dir_all(&folder)?;
            let mut file = File::options().append(true).create(true).open(path)?;
            file.write_all(format!("{line}\n").as_bytes())
        })?;
        let text = match path.metadata()?.len() {
            length if length > LOG_BYTES_MAX => read_text(&path, length).unwrap_or_default(),
            _ => return Ok(()),
        };
        let lines: Vec<&str> = text.lines().collect();
        let kept = lines.get(lines.len() / 2..).unwrap_or_default();
        self.write_unsynced(&path, format!("{}\n", kept.join("\n")).as_bytes())
    }

    /// The tags of a registry that moved, the last one first. Blocks while it reads a file of 256
    /// KiB at the most.
    pub fn moves(&self, registry: &Registry) -> Vec<TagMove> {
        let path = self.paths.registry(registry).map(|path| path.join(MOVES));
        let text = path.and_then(|path| read_text(&path, 2 * LOG_BYTES_MAX));
        let text = text.unwrap_or_default();
        text.lines().rev().filter_map(parse).collect()
    }
}

/// Reads a line. What a power cut left of the line before may stand in front of it.
fn parse(line: &str) -> Option<TagMove> {
    let line: Value = serde_json::from_str(line.get(line.rfind('{')?..)?).ok()?;
    let word = |name: &str| line.get(name).and_then(Value::as_str);
    Some(TagMove {
        at: word("at")?.to_owned(),
        repository: word("repository")?.to_owned(),
        tag: word("tag")?.to_owned(),
        from: word("from")?.parse().ok()?,
        to: word("to")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::changes::Fact;
    use crate::cache::names::TagEntry;
    use crate::cache::scratch::{Cache, at, digest_of};

    fn moves(cache: &Cache) -> Vec<(String, Digest, Digest)> {
        let found = cache.names.moves(&cache.registry).into_iter();
        let found = found.map(|found| (found.tag, found.from, found.to));
        found.collect()
    }

    #[test]
    fn a_tag_that_means_another_manifest_of_the_same_type_has_moved() {
        let cache = Cache::new();
        let (one, two) = (
            cache.image("app:v1", &[b"1"], 5),
            cache.image("app:v1", &[b"2"], 6),
        );
        cache.image("app:v2", &[b"2"], 6);
        let index = cache.index("app:v1", &[&one], 7);
        assert_eq!(moves(&cache), [("v1".to_owned(), one.clone(), two.clone())]);
        let cache = cache.restart();
        let first = &cache.names.moves(&cache.registry)[0];
        assert_eq!((first.repository.as_str(), &first.to), ("app", &two));
        assert!(first.at.ends_with('Z'), "{first:?}");
        // The same again, and one that is gone, are no moves.
        cache.image("app:v1", &[b"2"], 8);
        cache.index("app:v1", &[&one], 8);
        assert_eq!(moves(&cache).len(), 1);
        let tag: Tag = "v1".parse().unwrap();
        cache.with("app", |scope| cache.names.remove_tag(scope, &tag));
        cache.image("app:v1", &[b"1"], 9);
        assert_eq!(moves(&cache).len(), 1);
        assert_ne!(index, two);
    }

    #[test]
    fn an_answer_that_is_not_kept_is_no_move() {
        let cache = Cache::new();
        let one = cache.image("app:v1", &[b"1"], 5);
        let tag: Tag = "v1".parse().unwrap();
        let media_type = cache.with("app", |scope| cache.names.tag(scope, "", &tag));
        let entry = TagEntry {
            digest: digest_of(b"other"),
            media_type: media_type[0].media_type.clone(),
            confirmed: at(9),
        };
        let early = cache.names.changes.now();
        cache.with("app", |scope| {
            cache.names.changes.note(scope, Fact::Tag(&tag));
            cache.names.set_tag(scope, "", &tag, entry, early).unwrap();
        });
        assert_eq!(moves(&cache), []);
        assert!(cache.store.has(&one));
    }

    #[test]
    fn the_log_is_bounded_and_outlives_a_cut_line() {
        let cache = Cache::new();
        let (from, to) = (digest_of(b"from"), digest_of(b"to"));
        let note = |number: usize| {
            let tag: Tag = format!("v{number}").parse().unwrap();
            cache.with("app", |scope| {
                cache
                    .names
                    .note_move(scope, &tag, (&from, &to), at(5))
                    .unwrap();
            });
        };
        (0..2000).for_each(note);
        let path = cache.scratch.path().join("repos/host.example").join(MOVES);
        let length = fs::metadata(&path).unwrap().len();
        assert!(length <= LOG_BYTES_MAX, "{length}");
        let kept = moves(&cache);
        assert_eq!(kept[0].0, "v1999");
        assert!(kept.len() > 400, "{}", kept.len());
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 20]).unwrap();
        note(7);
        let after = moves(&cache);
        assert_eq!((after[0].0.as_str(), after[1].0.as_str()), ("v7", "v1998"));
        fs::write(&path, "{\n{}\nx\n").unwrap();
        assert_eq!(moves(&cache), []);
    }
}
