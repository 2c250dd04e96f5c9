//! Pages of lists as upstream sent them, kept for an outage. Owns: `_lists`, `_referrers` and
//! `_catalog` below `repos/`. Must not: change a link, or know what is listed.
//!
//! A page is a file. Its name is the hash of the query, and its modification time is when upstream
//! last sent it. It is written without fsync: a lost or broken one reads as absent. Clients choose
//! the queries, so a folder holds a bounded number of pages.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::names::{Names, Scope};
use super::paths::{CATALOG, LISTS, REFERRERS, file_names, modified, read_text, unusable_name};
use crate::hash;
use crate::message::Headers;
use crate::oci::{Digest, Registry};

/// Longest list that is kept, and read whole: what the specification allows an index to be.
pub const LIST_BYTES_MAX: u64 = 4 << 20;
/// Pages of one folder: 6400 names as ECR pages them unasked, or referrers of as many images.
const PAGES_MAX: usize = 64;
/// Bytes of one folder: the longest list twice, quotes escaped.
const FOLDER_BYTES_MAX: u64 = 4 * LIST_BYTES_MAX;
/// Most bytes read of a page: escaping doubles quotes at the worst of what registries write.
const PAGE_BYTES_MAX: u64 = 2 * LIST_BYTES_MAX + (64 << 10);
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The query it was asked for with; empty for none.
    pub query: String,
    /// The fields of the list as upstream sent them.
    pub headers: Headers,
    /// JSON.
    pub body: Vec<u8>,
    /// When upstream last sent it.
    pub confirmed: SystemTime,
}

impl Page {
    /// The page of an answer; of its fields those that are kept.
    pub fn new(query: &str, headers: &Headers, body: Vec<u8>, confirmed: SystemTime) -> Self {
        let mut kept = headers.clone();
        kept.retain(|name, _| FIELDS.iter().any(|field| field.eq_ignore_ascii_case(name)));
        Self {
            query: query.to_owned(),
            headers: kept,
            body,
            confirmed,
        }
    }

    fn to_json(&self, key: &str) -> Option<String> {
        let body = std::str::from_utf8(&self.body).ok()?;
        let headers: Vec<[&str; 2]> = self.headers.iter().map(|(n, v)| [n, v]).collect();
        let page = json!({"key": key, "query": self.query, "headers": headers, "body": body});
        Some(page.to_string())
    }

    /// What cannot be read, or is of another key, is none.
    fn parse(text: &str, key: Option<&str>, confirmed: SystemTime) -> Option<Self> {
        let page: Value = serde_json::from_str(text).ok()?;
        let word = |name: &str| page.get(name).and_then(Value::as_str);
        if key.is_some() && word("key") != key {
            return None;
        }
        let fields = page.get("headers")?.as_array()?.iter();
        let headers = fields.filter_map(|pair| {
            let text = |at: usize| pair.get(at)?.as_str();
            Some((text(0)?, text(1)?))
        });
        Some(Self {
            query: word("query")?.to_owned(),
            headers: headers.collect(),
            body: word("body")?.as_bytes().to_vec(),
            confirmed,
        })
    }
}

impl Names {
    /// The page that answers `query`.
    pub fn page(&self, list: List<'_>, query: &str) -> Option<Page> {
        let (path, key) = self.page_path(list, query)?;
        read(&path, Some(&key))
    }

    /// Every page of a list; of referrers every one of the repository.
    pub fn pages(&self, list: List<'_>) -> Vec<Page> {
        let Some(folder) = self.pages_folder(list) else {
            return Vec::new();
        };
        let pages = file_names(&folder).into_iter();
        pages
            .filter_map(|name| read(&folder.join(name), None))
            .collect()
    }

    /// True when a page of the list was ever kept. Reads none.
    pub fn has_pages(&self, list: List<'_>) -> bool {
        self.pages_folder(list)
            .is_some_and(|folder| folder.exists())
    }

    /// Keeps a page.
    ///
    /// # Errors
    /// The disk's own, names that make no path, and a list that is too long or no text.
    pub fn set_page(&self, list: List<'_>, page: &Page) -> io::Result<()> {
        let (path, key) = self
            .page_path(list, &page.query)
            .ok_or_else(unusable_name)?;
        let text = page
            .to_json(&key)
            .filter(|_| page.body.len() as u64 <= LIST_BYTES_MAX);
        let Some(text) = text else {
            let why = "the list is too long, or no text";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        };
        let _lock = self.lock_file(&path);
        if read_text(&path, PAGE_BYTES_MAX).is_some_and(|old| old == text) {
            return File::options()
                .write(true)
                .open(&path)?
                .set_modified(page.confirmed);
        }
        self.write_unsynced(&path, text.as_bytes())?;
        File::options()
            .write(true)
            .open(&path)?
            .set_modified(page.confirmed)?;
        if let Some(folder) = path.parent() {
            self.bound(folder, PAGES_MAX, FOLDER_BYTES_MAX);
        }
        Ok(())
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
    pub fn set_referrers_api(&self, registry: &Registry, there: bool) -> io::Result<()> {
        let path = self
            .paths
            .registry(registry)
            .ok_or_else(unusable_name)?
            .join(NO_REFERRERS);
        match (there, path.exists()) {
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

fn read(path: &Path, key: Option<&str>) -> Option<Page> {
    Page::parse(&read_text(path, PAGE_BYTES_MAX)?, key, modified(path))
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

    fn page(query: &str, body: &str, seconds: u64) -> Page {
        let headers = Headers::from_iter([
            ("Content-Type", "text/plain"),
            ("link", "</v2/a?last=+/%2B=>; rel=next"),
            ("Link", "<b>"),
            ("Set-Cookie", "x"),
        ]);
        Page::new(query, &headers, body.as_bytes().to_vec(), at(seconds))
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
            assert!(!names.has_pages(list));
            assert_eq!(names.page(list, ""), None);
            for kept in [page("", "{\"a\":\"é\\n\"}", 5), page("n=1", "{}", 6)] {
                names.set_page(list, &kept).unwrap();
                assert_eq!(names.page(list, &kept.query), Some(kept.clone()));
                assert_eq!(kept.headers.len(), 3);
            }
            assert_eq!(names.pages(list).len(), 2);
            // The same again is a new confirmation.
            names.set_page(list, &page("n=1", "{}", 9)).unwrap();
            assert_eq!(names.page(list, "n=1").unwrap().confirmed, at(9));
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
            assert_eq!(
                (names.pages(list), names.has_pages(list)),
                (Vec::new(), false)
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_absent() {
        let (scratch, (registry, ..)) = (Scratch::new(), subjects());
        let names = names(&scratch);
        let list = List::Catalog(&registry);
        names.set_page(list, &page("n=1", "{}", 5)).unwrap();
        let (path, _) = names.page_path(list, "n=1").unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        for text in [
            "",
            "{",
            "[]",
            "{}",
            &whole[..whole.len() / 2],
            &whole.replace("n=1", "n=2"),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(names.page(list, "n=1"), None, "{text}");
        }
    }

    #[test]
    fn a_folder_is_bounded() {
        let (scratch, (registry, ..)) = (Scratch::new(), subjects());
        let names = names(&scratch);
        let list = List::Catalog(&registry);
        for number in 0..PAGES_MAX as u64 + 8 {
            names
                .set_page(list, &page(&format!("n={number}"), "{}", number))
                .unwrap();
        }
        assert_eq!(names.pages(list).len(), PAGES_MAX);
        assert_eq!(names.page(list, "n=7"), None);
        assert!(names.page(list, "n=8").is_some());
        // By bytes too, and one page alone always stays.
        let limit = usize::try_from(LIST_BYTES_MAX).unwrap();
        for number in 100..106 {
            let long = page(&format!("n={number}"), &"x".repeat(limit), number);
            names.set_page(list, &long).unwrap();
        }
        let kept: u64 = names
            .pages(list)
            .iter()
            .map(|page| page.body.len() as u64)
            .sum();
        assert!(
            (LIST_BYTES_MAX..=FOLDER_BYTES_MAX).contains(&kept),
            "{kept}"
        );
        let over = page("n=200", &"x".repeat(limit + 1), 200);
        assert!(names.set_page(list, &over).is_err());
        let binary = Page::new("n=201", &Headers::new(), vec![0xff], at(201));
        assert!(names.set_page(list, &binary).is_err());
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
