//! Names are kept, survive a restart, and lead nowhere else.

use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::cache::changes::Moment;
use crate::cache::files::{USE_INTERVAL, set_used, touch};
use crate::cache::manifest::Named;
use crate::cache::scratch::Scratch;

struct Case {
    scratch: Scratch,
    names: Names,
    registry: Registry,
    repository: Repository,
}

impl Case {
    fn new() -> Self {
        let scratch = Scratch::new();
        fs::create_dir_all(scratch.path().join("partial")).unwrap();
        fs::create_dir_all(scratch.path().join("repos")).unwrap();
        Self {
            names: Names::new(scratch.path()),
            scratch,
            registry: "host.example:5000".parse().unwrap(),
            repository: "team/app".parse().unwrap(),
        }
    }

    fn scope(&self) -> Scope<'_> {
        Scope {
            registry: &self.registry,
            repository: &self.repository,
        }
    }

    fn file(&self, below: &str) -> PathBuf {
        let repos = self.scratch.path().join("repos");
        repos.join("host.example:5000/team/app").join(below)
    }

    /// Every file below the scratch directory.
    fn files(&self) -> Vec<PathBuf> {
        let (mut open, mut found) = (vec![self.scratch.path().to_owned()], Vec::new());
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => open.push(entry.path()),
                    false => found.push(entry.path()),
                }
            }
        }
        found
    }
}

fn digest(n: u8) -> Digest {
    let hex = format!("{n:02x}").repeat(32);
    format!("sha256:{hex}").parse().unwrap()
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
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
fn two_processes_that_write_one_tag_lose_no_media_type() {
    let case = Case::new();
    fs::create_dir_all(case.scratch.path().join("locks")).unwrap();
    let other = Names::new(case.scratch.path());
    let (scope, latest) = (case.scope(), tag("latest"));
    for round in 0..50 {
        std::thread::scope(|threads| {
            for (n, names, kind) in [(1, &case.names, "a/a"), (2, &other, "b/b")] {
                let (new, latest) = (entry(n, kind, round), &latest);
                threads.spawn(move || names.set_tag(scope, "", latest, new, Moment::LAST));
            }
        });
        let kept = other.tag(scope, "", &latest);
        assert_eq!(kept.len(), 2, "round {round}: {kept:?}");
        assert!(kept.iter().all(|entry| entry.confirmed == at(round)));
    }
}

#[test]
fn a_tag_is_kept_for_each_media_type() {
    let case = Case::new();
    let (names, scope, latest) = (&case.names, case.scope(), tag("latest"));
    assert_eq!(names.tag(scope, "", &latest), []);
    names
        .set_tag(scope, "", &latest, entry(1, "a/a", 10), Moment::LAST)
        .unwrap();
    names
        .set_tag(scope, "", &latest, entry(2, "b/b", 20), Moment::LAST)
        .unwrap();
    let both = [entry(2, "b/b", 20), entry(1, "a/a", 10)];
    assert_eq!(names.tag(scope, "", &latest), both);
    names
        .set_tag(scope, "", &latest, entry(3, "b/b", 5), Moment::LAST)
        .unwrap();
    let moved = [entry(1, "a/a", 10), entry(3, "b/b", 5)];
    assert_eq!(
        Names::new(case.scratch.path()).tag(scope, "", &latest),
        moved
    );
    // The tag, and the log of its move.
    assert_eq!(case.files().len(), 2);
}

#[test]
fn a_confirmation_changes_only_what_is_there() {
    let case = Case::new();
    let (names, scope, latest) = (&case.names, case.scope(), tag("latest"));
    let confirm = |n, now| names.confirm_tag(scope, "", &latest, &digest(n), at(now), Moment::LAST);
    confirm(1, 5).unwrap();
    assert_eq!(names.tag(scope, "", &latest), []);
    names
        .set_tag(scope, "", &latest, entry(1, "a/a", 10), Moment::LAST)
        .unwrap();
    names
        .set_tag(scope, "", &latest, entry(2, "b/b", 20), Moment::LAST)
        .unwrap();
    confirm(1, 30).unwrap();
    confirm(9, 40).unwrap();
    let expected = [entry(1, "a/a", 30), entry(2, "b/b", 20)];
    assert_eq!(names.tag(scope, "", &latest), expected);
}

#[test]
fn partitions_are_apart_and_removed_together() {
    let case = Case::new();
    let (names, scope, latest) = (&case.names, case.scope(), tag("latest"));
    for (partition, n) in [("", 1), ("a0", 2), ("b1", 3)] {
        let new = entry(n, "a/a", u64::from(n));
        names
            .set_tag(scope, partition, &latest, new, Moment::LAST)
            .unwrap();
    }
    names
        .set_tag(scope, "b1", &tag("other"), entry(4, "a/a", 4), Moment::LAST)
        .unwrap();
    assert_eq!(names.tag(scope, "a0", &latest), [entry(2, "a/a", 2)]);
    assert_eq!(names.tag_anywhere(scope, &latest)[0], entry(3, "a/a", 3));
    assert_eq!(names.tags(scope), [tag("latest"), tag("other")]);
    names.remove_tag(scope, &latest);
    for partition in ["", "a0", "b1"] {
        assert_eq!(names.tag(scope, partition, &latest), []);
    }
    assert_eq!(names.tags(scope), [tag("other")]);
}

#[test]
fn a_file_that_cannot_be_read_is_absent() {
    let case = Case::new();
    let (names, scope, latest) = (&case.names, case.scope(), tag("latest"));
    names
        .set_tag(scope, "", &latest, entry(1, "a/a", 1), Moment::LAST)
        .unwrap();
    names
        .link_manifest(scope, &digest(1), "a/a", Moment::LAST)
        .unwrap();
    for bad in [b"".as_slice(), b"{\"entries\":[", b"\xff\xfe", b"a/a"] {
        fs::write(case.file("_tags/latest"), bad).unwrap();
        fs::write(case.file("_links").join(digest(1).hex()), bad).unwrap();
        assert_eq!(names.tag(scope, "", &latest), []);
        assert_eq!(names.tags(scope), []);
        assert_eq!(names.link(scope, &digest(1)), None);
    }
    names
        .set_tag(scope, "", &latest, entry(2, "a/a", 2), Moment::LAST)
        .unwrap();
    names
        .link_manifest(scope, &digest(1), "a/a", Moment::LAST)
        .unwrap();
    assert_eq!(names.tag(scope, "", &latest), [entry(2, "a/a", 2)]);
    assert!(names.link(scope, &digest(1)).is_some());
}

#[test]
fn a_link_is_never_degraded() {
    let case = Case::new();
    let (names, scope) = (&case.names, case.scope());
    let media_type = |names: &Names| names.link(scope, &digest(1)).map(|link| link.media_type);
    assert_eq!(media_type(names), None);
    names
        .link_blob(scope, &digest(1), None, Moment::LAST)
        .unwrap();
    assert_eq!(media_type(names), Some(None));
    names
        .link_manifest(scope, &digest(1), "a/b", Moment::LAST)
        .unwrap();
    names
        .link_blob(scope, &digest(1), None, Moment::LAST)
        .unwrap();
    assert_eq!(media_type(names), Some(Some("a/b".to_owned())));
    names
        .link_manifest(scope, &digest(1), "c/d", Moment::LAST)
        .unwrap();
    assert_eq!(
        media_type(&Names::new(case.scratch.path())),
        Some(Some("c/d".to_owned()))
    );
    for bad in [
        "",
        "-",
        "/",
        "blob",
        "a/b\nc",
        "a/é",
        &"a/".repeat(128),
        "é/\0",
    ] {
        assert!(
            names
                .link_manifest(scope, &digest(1), bad, Moment::LAST)
                .is_err(),
            "{bad}"
        );
    }
    assert_eq!(media_type(names), Some(Some("c/d".to_owned())));
    let other: Repository = "team/other".parse().unwrap();
    let elsewhere = Scope {
        repository: &other,
        ..scope
    };
    assert_eq!(names.link(elsewhere, &digest(1)), None);
    names.remove_link(elsewhere, &digest(1));
    names.remove_link(scope, &digest(1));
    assert_eq!(media_type(names), None);
}

#[test]
fn every_link_is_seen_with_its_kind() {
    let case = Case::new();
    let (names, scope) = (&case.names, case.scope());
    let long: Digest = format!("sha512:{}", "a".repeat(128)).parse().unwrap();
    names.link_blob(scope, &long, None, Moment::LAST).unwrap();
    // The shortest media type there is, beside a blob.
    names
        .link_manifest(scope, &digest(2), "a/b", Moment::LAST)
        .unwrap();
    let mut seen: Vec<(Digest, bool)> = names
        .link_uses(scope)
        .into_iter()
        .map(|link| (link.digest, link.manifest))
        .collect();
    seen.sort_by_key(|(_, manifest)| *manifest);
    assert_eq!(seen, [(long, false), (digest(2), true)]);
}

#[test]
fn use_is_remembered_to_the_millisecond() {
    let case = Case::new();
    let (names, scope, latest) = (&case.names, case.scope(), tag("latest"));
    names
        .set_tag(scope, "", &latest, entry(1, "a/a", 1), Moment::LAST)
        .unwrap();
    names
        .link_manifest(scope, &digest(1), "a/a", Moment::LAST)
        .unwrap();
    let later = at(2_000_000_000) + Duration::from_millis(1);
    names.touch_at(scope, "", None, &digest(1), later);
    let names = Names::new(case.scratch.path());
    assert_eq!(names.link_uses(scope)[0].accessed, later);
    let tag_used = || names.tag_uses(scope, 1).pop_first().unwrap().1.accessed;
    assert!(tag_used() < later);
    names.touch_at(
        scope,
        "",
        Some(&latest),
        &digest(2),
        later + Duration::from_millis(1),
    );
    assert_eq!(names.link_uses(scope)[0].accessed, later);
    assert_eq!(tag_used(), later + Duration::from_millis(1));
    let all = [digest(1), digest(2)];
    let accessed = names.last_use(scope, Some(&latest), all.iter());
    assert_eq!(accessed, later + Duration::from_millis(1));
    // Nothing comes of touching what is not there.
    assert_eq!(names.link(scope, &digest(2)), None);
}

#[test]
fn repositories_are_listed_and_pruned() {
    let case = Case::new();
    let names = &case.names;
    let list: Vec<Repository> = ["b", "a/b/c", "a", "a_x"]
        .map(|n| n.parse().unwrap())
        .into();
    for repository in &list {
        let scope = Scope {
            registry: &case.registry,
            repository,
        };
        names
            .link_blob(scope, &digest(1), None, Moment::LAST)
            .unwrap();
    }
    let foreign = case
        .scratch
        .path()
        .join("repos/host.example:5000/Upper/_tags");
    fs::create_dir_all(foreign).unwrap();
    assert_eq!(
        names.repositories(&case.registry),
        ["a", "a/b/c", "a_x", "b"]
    );
    assert_eq!(names.registries().len(), 1);
    let other: Registry = "other.example".parse().unwrap();
    assert!(names.repositories(&other).is_empty());
    for repository in &list {
        let scope = Scope {
            registry: &case.registry,
            repository,
        };
        names.prune(scope);
        assert!(names.link(scope, &digest(1)).is_some());
        names.remove_link(scope, &digest(1));
        names.prune(scope);
    }
    assert!(names.repositories(&case.registry).is_empty());
    assert!(case.scratch.path().join("repos").is_dir());
}

#[test]
fn the_registry_is_remembered() {
    let case = Case::new();
    assert_eq!(case.names.remembered_registry(), None);
    for url in [
        "http://127.0.0.1:5000",
        "https://1.dkr.ecr.eu-west-1.amazonaws.com",
    ] {
        let registry: Registry = url.parse().unwrap();
        case.names.remember_registry(&registry).unwrap();
        case.names.remember_registry(&registry).unwrap();
        let names = Names::new(case.scratch.path());
        assert_eq!(names.remembered_registry(), Some(registry));
    }
    assert!(case.names.registries().is_empty());
    fs::write(case.scratch.path().join("repos/.registry"), "ftp://x/y").unwrap();
    assert_eq!(case.names.remembered_registry(), None);
}

#[test]
fn no_name_leads_out_of_the_directory() {
    let case = Case::new();
    let names = &case.names;
    let check = |registry: &Registry, repository: &Repository, partition: &str| {
        let scope = Scope {
            registry,
            repository,
        };
        let latest = tag("latest");
        let new = entry(1, "a/a", 1);
        let set = names.set_tag(scope, partition, &latest, new, Moment::LAST);
        assert!(set.is_err(), "{registry} {partition}");
        assert_eq!(names.tag(scope, partition, &latest), []);
        assert!(
            names
                .confirm_tag(scope, partition, &latest, &digest(1), at(1), Moment::LAST)
                .is_err()
        );
        assert_eq!(names.use_tag(scope, partition, &latest), []);
        assert!(names.use_link(scope, &digest(1)).is_none());
        names.remove_tag(scope, &latest);
        names.prune(scope);
        assert!(names.tags(scope).is_empty());
    };
    for authority in [
        ".",
        "..",
        ".registry",
        "_x",
        "..:80",
        &format!("{}.a:80", "a".repeat(251)),
    ] {
        let registry: Registry = authority.parse().unwrap();
        check(&registry, &case.repository, "");
        let scope = Scope {
            registry: &registry,
            repository: &case.repository,
        };
        assert!(
            names
                .link_blob(scope, &digest(1), None, Moment::LAST)
                .is_err()
        );
        assert_eq!(names.link(scope, &digest(1)), None);
        assert!(names.repositories(&registry).is_empty());
    }
    let long: Repository = "a".repeat(256).parse().unwrap();
    check(&case.registry, &long, "");
    for partition in [
        "..",
        "/",
        "../..",
        "a/b",
        "A",
        "x",
        "a.",
        " ",
        &"a".repeat(129),
    ] {
        check(&case.registry, &case.repository, partition);
    }
    for hostile in [
        "../a", "a/../b", "/a", "a//b", "_tags", "a/_links", "", "a\0", "a%2fb",
    ] {
        assert!(hostile.parse::<Repository>().is_err(), "{hostile}");
    }
    for hostile in ["..", "../a", "a/b", ".", "", "a\0", "a%2f"] {
        assert!(hostile.parse::<Tag>().is_err(), "{hostile}");
    }
    assert_eq!(case.files(), Vec::<PathBuf>::new());
}

#[test]
fn changes_to_one_tag_do_not_undo_each_other() {
    let case = Case::new();
    let (names, scope, latest) = (&case.names, case.scope(), tag("latest"));
    std::thread::scope(|threads| {
        for n in 1..=8 {
            let latest = &latest;
            threads.spawn(move || {
                let new = entry(n, &format!("a/{n}"), u64::from(n));
                names.set_tag(scope, "", latest, new, Moment::LAST).unwrap();
            });
        }
    });
    assert_eq!(names.tag(scope, "", &latest).len(), 8);
}

#[test]
fn the_length_of_a_blob_is_kept_beside_it() {
    let case = Case::new();
    let (names, scope) = (&case.names, case.scope());
    let size = || names.link(scope, &digest(1)).and_then(|link| link.size);
    names
        .link_blob(scope, &digest(1), None, Moment::LAST)
        .unwrap();
    assert_eq!(size(), None);
    let claim = |size| {
        let named = Named {
            digest: digest(1),
            media_type: None,
            size: Some(size),
            platform: None,
        };
        names.link_named(scope, vec![named], Moment::LAST).unwrap();
        names.write_links(&|| true).unwrap();
    };
    claim(u64::MAX);
    assert_eq!(size(), Some(u64::MAX));
    assert!(!names.link_uses(scope)[0].manifest);
    // A manifest may lie; what was hashed does not.
    claim(7);
    names
        .link_blob(scope, &digest(1), None, Moment::LAST)
        .unwrap();
    assert_eq!(size(), Some(u64::MAX));
    names
        .link_blob(scope, &digest(1), Some(9), Moment::LAST)
        .unwrap();
    assert_eq!(size(), Some(9));
    names
        .link_manifest(scope, &digest(1), "a/b", Moment::LAST)
        .unwrap();
    names
        .link_blob(scope, &digest(1), Some(9), Moment::LAST)
        .unwrap();
    let link = names.link(scope, &digest(1)).unwrap();
    assert_eq!((link.media_type.as_deref(), link.size), (Some("a/b"), None));
    assert!(names.link_uses(scope)[0].manifest);
}

#[test]
fn partitions_of_a_repository_are_bounded() {
    let case = Case::new();
    let (names, scope) = (&case.names, case.scope());
    let put = |partition: &str, n: usize| {
        let name = tag(&format!("t{n}"));
        names
            .set_tag(scope, partition, &name, entry(1, "a/a", 1), Moment::LAST)
            .unwrap();
    };
    put("", 0);
    for n in 1..PARTITIONS_MAX + 8 {
        put(&format!("{n:x}"), n);
        // So that the order of age is certain.
        let folder = case.file(&format!("_tags@{n:x}"));
        File::open(folder)
            .unwrap()
            .set_modified(at(n as u64))
            .unwrap();
    }
    File::open(case.file("_tags"))
        .unwrap()
        .set_modified(at(9_999))
        .unwrap();
    put("ffff", 5);
    assert_eq!(names.paths.partitions(scope).len(), PARTITIONS_MAX);
    assert!(names.tag(scope, "1", &tag("t1")).is_empty());
    let last = format!("{:x}", PARTITIONS_MAX + 7);
    assert_eq!(
        names
            .tag(scope, &last, &tag(&format!("t{}", PARTITIONS_MAX + 7)))
            .len(),
        1
    );
    assert_eq!(names.tag(scope, "", &tag("t0")).len(), 1);
    assert_eq!(names.tag(scope, "ffff", &tag("t5")).len(), 1);
}

#[test]
fn an_answer_that_a_change_overtakes_leaves_no_file() {
    let case = Case::new();
    let (names, scope, latest) = (&case.names, case.scope(), tag("latest"));
    let before = case.files();
    let asked_at = names.changes.now();
    names.changes.note(scope, Fact::Tag(&latest));
    names.changes.note(scope, Fact::Present(&digest(2)));
    for partition in ["", "a1"] {
        let new = entry(1, "a/a", 1);
        names
            .set_tag(scope, partition, &latest, new, asked_at)
            .unwrap();
    }
    names.link_blob(scope, &digest(2), None, asked_at).unwrap();
    assert!(
        !names
            .link_manifest(scope, &digest(2), "a/a", asked_at)
            .unwrap()
    );
    assert_eq!(case.files(), before);
    // What was not changed is kept.
    names.link_blob(scope, &digest(1), None, asked_at).unwrap();
    assert!(names.link(scope, &digest(1)).is_some());
}

#[test]
fn an_answer_that_is_overtaken_while_it_is_written_is_taken_back() {
    let case = Case::new();
    let (names, scope, latest) = (&case.names, case.scope(), tag("latest"));
    let path = case.file("_tags/latest");
    let facts = [Fact::Tag(&latest)];
    let asked_at = names.changes.now();
    let kept = names.keep(scope, &facts, asked_at, &path, || {
        names.changes.note(scope, facts[0]);
        names.write(&path, b"old")
    });
    assert!(!kept.unwrap() && !path.exists());
    // And a 404 from before takes nothing away.
    let pushed_at = names.changes.now();
    let new = entry(1, "a/a", 1);
    names.set_tag(scope, "", &latest, new, pushed_at).unwrap();
    names.remove_missing_tag(scope, &latest, asked_at);
    assert!(path.exists());
    names.remove_missing_tag(scope, &latest, pushed_at);
    assert!(!path.exists());
}

#[test]
fn a_use_is_noted_again_after_a_while() {
    let case = Case::new();
    let path = case.scratch.path().join("file");
    fs::write(&path, "x").unwrap();
    set_used(&path, at(1000));
    let noted_at = |now| {
        touch(&File::open(&path).unwrap(), now);
        modified(&path)
    };
    let nearly = at(1000) + USE_INTERVAL - Duration::from_millis(1);
    assert_eq!(noted_at(nearly), at(1000));
    assert_eq!(noted_at(at(1000) + USE_INTERVAL), at(1000) + USE_INTERVAL);
    // A clock that was set back is believed.
    assert_eq!(noted_at(at(5)), at(5));
}
