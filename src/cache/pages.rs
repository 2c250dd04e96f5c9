//! Pages of lists as upstream sent them, kept for an outage. Owns: `_lists`, `_referrers` and
//! `_catalog` below `repos/`. Must not: change a link, or know what is listed.
//!
//! A page is a file: a heading of one line in JSON, then the list as it came, which is sent from
//! the file. Its name is the hash of the query, and its modification time is when upstream last
//! sent it. It is written without fsync: a lost or damaged one reads as absent. Clients choose the
//! queries, so a folder holds a bounded number of pages.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

use super::changes::{Fact, Moment};
use super::files;
use super::names::{Names, Scope};
use super::paths::{CATALOG, LISTS, REFERRERS, file_names, folder_names, modified, unusable_name};
use crate::budget::{self, BODIES, SHARE_TIMEOUT};
use crate::hash::{self, Hasher};
use crate::message::{Headers, SharedBytes, WholeBody};
use crate::oci::{Digest, Registry};

/// Longest list that is kept, and read whole: what the specification allows an index to be.
pub const LIST_BYTES_MAX: u64 = 4 << 20;
/// Pages of one folder: 6400 names as ECR pages them unasked, or referrers of as many images.
const PAGES_MAX: usize = 64;
/// Bytes of one folder: the longest list four times.
const FOLDER_BYTES_MAX: u64 = 4 * LIST_BYTES_MAX;
/// Longest heading of a page: a query, and fields of one head of upstream's (64 KiB), escaped.
const HEADING_BYTES_MAX: u64 = 256 << 10;
/// An empty file below the folder of a registry: it has no referrers API.
const NO_REFERRERS: &str = "_no-referrers-api";
/// The fields that are kept beside a list.
const FIELDS: [&str; 3] = ["Content-Type", "Link", "OCI-Filters-Applied"];

/// What is listed.
#[derive(Debug, Clone, Copy)]
pub enum List<'a> {
    /// The repositories of a registry.
    Catalog(&'a Registry),
    /// The manifests that refer to one.
    Referrers(Scope<'a>, &'a Digest),
    /// The tags of a repository.
    Tags(Scope<'a>),
}

/// A page as upstream sent it.
#[derive(Debug, Clone)]
pub struct Page {
    /// The query it was asked for with; empty for none.
    pub query: String,
    /// The fields of the list as upstream sent them.
    pub headers: Headers,
    /// When upstream last sent it.
    pub confirmed: SystemTime,
    file: Arc<File>,
    /// Where in the file the list begins.
    offset: u64,
    length: u64,
}

impl Page {
    /// The list, to be sent from its file.
    pub fn body(&self) -> WholeBody {
        WholeBody::File {
            file: Arc::clone(&self.file),
            offset: self.offset,
            length: self.length,
        }
    }

    /// The list in memory, out of the budget for that. None when there is no room, and when the
    /// disk fails.
    pub fn read(&self) -> Option<SharedBytes> {
        let share = BODIES.take(
            budget::count_bytes(self.length),
            Instant::now() + SHARE_TIMEOUT,
        )?;
        let mut bytes = vec![0; usize::try_from(self.length).ok()?];
        self.file.read_exact_at(&mut bytes, self.offset).ok()?;
        Some(SharedBytes::with_share(bytes, share))
    }

    /// Opens a page. One that cannot be read, is damaged, or is of another key, is none.
    fn open(path: &Path, key: Option<&str>) -> Option<Self> {
        let file = File::open(path).ok()?;
        let metadata = file.metadata().ok()?;
        let mut heading = Vec::new();
        let mut reader = BufReader::new((&file).take(HEADING_BYTES_MAX));
        reader.read_until(b'\n', &mut heading).ok()?;
        let offset = heading.len() as u64;
        let heading: Value = serde_json::from_slice(&heading).ok()?;
        let word = |name: &str| heading.get(name).and_then(Value::as_str);
        let length = metadata.len().checked_sub(offset)?;
        if (key.is_some() && word("key") != key)
            || length > LIST_BYTES_MAX
            || word("sha256") != Some(&hash_from(&file, offset).ok()?)
        {
            return None;
        }
        let fields = heading.get("headers")?.as_array()?.iter();
        let headers = fields.filter_map(|pair| {
            let text = |at: usize| pair.get(at)?.as_str();
            Some((text(0)?, text(1)?))
        });
        Some(Self {
            query: word("query")?.to_owned(),
            headers: headers.collect(),
            confirmed: metadata.modified().ok()?,
            file: Arc::new(file),
            offset,
            length,
        })
    }
}

/// The SHA-256 of a file from `offset` on.
fn hash_from(mut file: &File, offset: u64) -> io::Result<String> {
    file.seek(SeekFrom::Start(offset))?;
    let mut hasher = Hasher::sha256();
    files::each_piece(file, &mut |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    Ok(hasher.finish())
}

/// The first line of a page's file.
fn heading(key: &str, query: &str, headers: &Headers, body: &[u8]) -> String {
    let is_kept = |name: &str| FIELDS.iter().any(|field| field.eq_ignore_ascii_case(name));
    let headers = headers.iter().filter(|(name, _)| is_kept(name));
    let headers: Vec<[&str; 2]> = headers.map(|(name, value)| [name, value]).collect();
    let mut hasher = Hasher::sha256();
    hasher.update(body);
    let sha256 = hasher.finish();
    let heading = json!({"key": key, "query": query, "headers": headers, "sha256": sha256});
    format!("{heading}\n")
}

impl Names {
    /// The page that answers `query`.
    pub fn page(&self, list: List<'_>, query: &str) -> Option<Page> {
        let (path, key) = self.page_path(list, query)?;
        Page::open(&path, Some(&key))
    }

    /// Every page of a list; of referrers every one of the repository.
    pub fn pages(&self, list: List<'_>) -> Vec<Page> {
        let Some(folder) = self.pages_folder(list) else {
            return Vec::new();
        };
        let pages = file_names(&folder).into_iter();
        pages
            .filter_map(|name| Page::open(&folder.join(name), None))
            .collect()
    }

    /// True when a page of the list was ever kept. Reads none.
    pub fn has_pages(&self, list: List<'_>) -> bool {
        self.pages_folder(list)
            .is_some_and(|folder| folder.exists())
    }

    /// Keeps the page that upstream sent now in answer to `query`. False when the repository was
    /// changed since `asked_at`, and it is not kept.
    ///
    /// # Errors
    /// The disk's own, names that make no path, and a list that is too long.
    pub fn set_page(
        &self,
        list: List<'_>,
        query: &str,
        headers: &Headers,
        body: &[u8],
        now: SystemTime,
        asked_at: Moment,
    ) -> io::Result<bool> {
        let (path, key) = self.page_path(list, query).ok_or_else(unusable_name)?;
        let heading = heading(&key, query, headers, body);
        if body.len() as u64 > LIST_BYTES_MAX || heading.len() as u64 > HEADING_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the list is too long",
            ));
        }
        let mut is_new = false;
        let mut write = || {
            // The heading holds the list's hash, so the same heading is the same page.
            let old = Page::open(&path, Some(&key));
            is_new = !old.is_some_and(|old| begins_with(&old.file, &heading));
            if is_new {
                self.write_unsynced(&path, &[heading.as_bytes(), body].concat())?;
            }
            File::options().write(true).open(&path)?.set_modified(now)
        };
        let is_kept = match list {
            List::Referrers(scope, _) | List::Tags(scope) => {
                self.keep(scope, &[Fact::Contents], asked_at, &path, write)?
            }
            // A catalog does not tell what is in a repository.
            List::Catalog(_) => {
                let _lock = self.lock_file(&path);
                write().map(|()| true)?
            }
        };
        if let Some(folder) = path.parent().filter(|_| is_new) {
            self.bound(folder, PAGES_MAX, FOLDER_BYTES_MAX);
        }
        Ok(is_kept)
    }

    /// The pages of a list are true no longer; of referrers those of the whole repository.
    pub fn forget_pages(&self, list: List<'_>) {
        if let Some(folder) = self.pages_folder(list) {
            self.remove_tree(&folder);
        }
    }

    /// No list of referrers in the repository is true any longer.
    pub fn forget_referrers(&self, scope: Scope<'_>) {
        if let Some(folder) = self.paths.repository(scope) {
            self.remove_tree(&folder.join(REFERRERS));
        }
    }

    /// Notes whether a registry has a referrers API.
    ///
    /// # Errors
    /// The disk's own.
    pub fn set_referrers_api(&self, registry: &Registry, is_there: bool) -> io::Result<()> {
        let folder = self.paths.registry(registry).ok_or_else(unusable_name)?;
        let path = folder.join(NO_REFERRERS);
        match (is_there, path.exists()) {
            (true, true) => fs::remove_file(path),
            (false, false) => self.write_unsynced(&path, b""),
            _ => Ok(()),
        }
    }

    /// False when a registry said that it has no referrers API.
    pub fn has_referrers_api(&self, registry: &Registry) -> bool {
        let path = self.paths.registry(registry);
        path.is_none_or(|path| !path.join(NO_REFERRERS).exists())
    }

    /// Takes the oldest files away until there are few enough.
    fn bound(&self, folder: &Path, count_max: usize, bytes_max: u64) {
        let Ok(entries) = fs::read_dir(folder) else {
            return;
        };
        let files = entries.flatten().filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some((metadata.modified().ok()?, metadata.len(), entry.path()))
        });
        let mut files: Vec<(SystemTime, u64, PathBuf)> = files.collect();
        files.sort_unstable_by_key(|file| std::cmp::Reverse(file.0));
        let mut bytes: u64 = 0;
        for (at, (_, length, path)) in files.iter().enumerate() {
            bytes = bytes.saturating_add(*length);
            if at >= count_max || (bytes > bytes_max && at > 0) {
                self.remove_file(path);
            }
        }
    }

    fn pages_folder(&self, list: List<'_>) -> Option<PathBuf> {
        Some(match list {
            List::Catalog(registry) => self.paths.registry(registry)?.join(CATALOG),
            List::Referrers(scope, _) => self.paths.repository(scope)?.join(REFERRERS),
            List::Tags(scope) => self.paths.repository(scope)?.join(LISTS),
        })
    }

    fn page_path(&self, list: List<'_>, query: &str) -> Option<(PathBuf, String)> {
        let key = match list {
            List::Catalog(_) | List::Tags(_) => query.to_owned(),
            List::Referrers(_, digest) => format!("{digest}?{query}"),
        };
        let name = hash::sha256_hex(key.as_bytes());
        Some((self.pages_folder(list)?.join(name), key))
    }
}

fn begins_with(file: &File, text: &str) -> bool {
    let mut beginning = vec![0; text.len()];
    file.read_exact_at(&mut beginning, 0).is_ok() && beginning == text.as_bytes()
}

/// What the sweep asks for.
impl Names {
    /// Every folder of pages, with the time of its last change.
    pub(super) fn page_folders(&self) -> Vec<(PathBuf, SystemTime)> {
        let (mut found, mut open) = (Vec::new(), vec![self.paths.repos.clone()]);
        while let Some(folder) = open.pop() {
            for child in folder_names(&folder) {
                let path = folder.join(&child);
                match child.as_str() {
                    CATALOG | LISTS | REFERRERS => found.push((path.clone(), modified(&path))),
                    name if name.starts_with('_') => {}
                    _ => open.push(path),
                }
            }
        }
        found
    }

    /// Removes a folder of pages, and the folders above it that are empty then.
    pub(super) fn remove_pages(&self, folder: &Path) {
        self.remove_tree(folder);
        if let Some(parent) = folder.parent() {
            self.prune_from(parent);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::cache::scratch::Scratch;
    use crate::oci::Repository;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn set(names: &Names, list: List<'_>, query: &str, body: &str, seconds: u64) {
        let headers = Headers::from_iter([
            ("Content-Type", "text/plain"),
            ("link", "</v2/a?last=+/%2B=>; rel=next"),
            ("Link", "<b>"),
            ("Set-Cookie", "x"),
        ]);
        let (body, now) = (body.as_bytes(), at(seconds));
        let set = names.set_page(list, query, &headers, body, now, Moment::LAST);
        set.unwrap();
    }

    fn names(scratch: &Scratch) -> Names {
        fs::create_dir_all(scratch.path().join("partial")).unwrap();
        Names::new(scratch.path())
    }

    fn subjects() -> (Registry, Repository, Digest) {
        let digest = format!("sha256:{}", "a".repeat(64));
        (
            "r.example".parse().unwrap(),
            "a/b".parse().unwrap(),
            digest.parse().unwrap(),
        )
    }

    #[test]
    fn a_page_reads_as_it_was_kept() {
        let (scratch, (registry, repository, digest)) = (Scratch::new(), subjects());
        let names = names(&scratch);
        let scope = Scope {
            registry: &registry,
            repository: &repository,
        };
        let lists = [
            List::Catalog(&registry),
            List::Tags(scope),
            List::Referrers(scope, &digest),
        ];
        for list in lists {
            assert!(!names.has_pages(list) && names.page(list, "").is_none());
            for (query, body, seconds) in [("", "{\"a\":\"é\\n\"}\n{}", 5), ("n=1", "{}", 6)] {
                set(&names, list, query, body, seconds);
                let page = names.page(list, query).unwrap();
                assert_eq!((page.query.as_str(), page.confirmed), (query, at(seconds)));
                assert_eq!(page.headers.len(), 3);
                assert_eq!(&*page.read().unwrap(), body.as_bytes());
                assert_eq!(page.body().length(), body.len() as u64);
            }
            assert_eq!(names.pages(list).len(), 2);
            // The same again is a new confirmation, and what came in its place is the page.
            set(&names, list, "n=1", "{}", 9);
            let old = names.page(list, "n=1").unwrap();
            assert_eq!(old.confirmed, at(9));
            set(&names, list, "n=1", "[1]", 10);
            assert_eq!(&*names.page(list, "n=1").unwrap().read().unwrap(), b"[1]");
            assert_eq!(
                &*old.read().unwrap(),
                b"{}",
                "a reader of the old one reads on"
            );
        }
        assert!(
            names.repositories(&registry).is_empty(),
            "a list makes no repository"
        );
        assert!(
            names.has_repositories(),
            "but there is something in the folder"
        );
        for list in lists {
            names.forget_pages(list);
            assert!(names.pages(list).is_empty() && !names.has_pages(list));
        }
    }

    #[test]
    fn bug_a_damaged_page_was_read_as_a_list() {
        let (scratch, (registry, ..)) = (Scratch::new(), subjects());
        let names = names(&scratch);
        let list = List::Catalog(&registry);
        set(&names, list, "n=1", "{\"repositories\":[\"a\"]}", 5);
        let (path, _) = names.page_path(list, "n=1").unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        for text in [
            "",
            "{",
            "[]",
            "{}",
            &whole[..whole.len() / 2],
            &whole[..whole.len() - 1],
            &format!("{whole} "),
            &whole.replace("[\"a\"]", "[\"b\"]"),
            &whole.replace("n=1", "n=2"),
        ] {
            fs::write(&path, text).unwrap();
            assert!(names.page(list, "n=1").is_none(), "{text}");
        }
        fs::write(&path, whole).unwrap();
        assert!(names.page(list, "n=1").is_some());
    }

    #[test]
    fn a_folder_is_bounded() {
        let (scratch, (registry, ..)) = (Scratch::new(), subjects());
        let names = names(&scratch);
        let list = List::Catalog(&registry);
        for number in 0..PAGES_MAX as u64 + 8 {
            set(&names, list, &format!("n={number}"), "{}", number);
        }
        assert_eq!(names.pages(list).len(), PAGES_MAX);
        assert!(names.page(list, "n=7").is_none() && names.page(list, "n=8").is_some());
        // By bytes too, and one page alone always stays.
        let limit = usize::try_from(LIST_BYTES_MAX).unwrap();
        for number in 100..106 {
            set(
                &names,
                list,
                &format!("n={number}"),
                &"x".repeat(limit),
                number,
            );
        }
        let kept: u64 = names.pages(list).iter().map(|page| page.length).sum();
        assert!(
            (LIST_BYTES_MAX..=FOLDER_BYTES_MAX).contains(&kept),
            "{kept}"
        );
        let over = "x".repeat(limit + 1);
        let (headers, over) = (Headers::new(), over.as_bytes());
        let set = names.set_page(list, "n=200", &headers, over, at(200), Moment::LAST);
        assert!(set.is_err());
        let long = "x".repeat(usize::try_from(HEADING_BYTES_MAX).unwrap());
        assert!(
            names
                .set_page(list, &long, &Headers::new(), b"{}", at(201), Moment::LAST)
                .is_err()
        );
    }

    #[test]
    fn whether_there_is_a_referrers_api_is_remembered() {
        let (scratch, (registry, ..)) = (Scratch::new(), subjects());
        let names = names(&scratch);
        assert!(names.has_referrers_api(&registry));
        names.set_referrers_api(&registry, false).unwrap();
        assert!(!names.has_referrers_api(&registry));
        assert!(names.repositories(&registry).is_empty());
        names.set_referrers_api(&registry, true).unwrap();
        assert!(names.has_referrers_api(&registry));
    }
}
