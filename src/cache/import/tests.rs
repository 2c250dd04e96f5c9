//! Tests of imports. Each layout is one that `export` made, or such a one that was changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use super::*;
use crate::cache::export::Exporter;
use crate::cache::names::Scope;
use crate::cache::scratch::{Cache, Scratch, digest_of};
use crate::cache::tree::DEPTH_MAX;

/// A layout in a directory of a cache's `tags` of the repository `app`.
fn layout(
    cache: &Cache,
    tags: &[&str],
    platforms: &str,
    since: Option<&Path>,
) -> (Scratch, PathBuf) {
    let scratch = Scratch::new();
    let path = scratch.path().join("layout");
    let exporter = Exporter {
        disk: &cache.disk(),
        platforms: &platforms.parse().unwrap(),
        stop: &AtomicBool::new(false),
    };
    let scope = OwnedScope {
        registry: cache.registry.clone(),
        repository: "app".parse().unwrap(),
    };
    let images = tags.iter().map(|tag| (scope.clone(), tag.parse().unwrap()));
    let plan = exporter.plan(&images.collect::<Vec<_>>(), since).unwrap();
    exporter.write(&plan, &path, &mut |_, _, _| {}).unwrap();
    (scratch, path)
}

fn importer<'a>(disk: &'a Disk, archive: &'a Archive) -> Importer<'a> {
    static NONE: std::sync::LazyLock<ImageGlobs> = std::sync::LazyLock::new(ImageGlobs::default);
    Importer {
        disk,
        archive,
        frozen: &NONE,
        patience: OTHERS_TIMEOUT,
    }
}

fn import(cache: &Cache, path: &Path, naming: &Naming) -> Result<Vec<ImportImage>, String> {
    let (disk, archive) = (cache.disk(), Archive::open(path)?);
    let importer = importer(&disk, &archive);
    importer.import(naming, &mut |_, _, _| {})
}

fn scope(registry: &str, repository: &str) -> OwnedScope {
    OwnedScope {
        registry: registry.parse().unwrap(),
        repository: repository.parse().unwrap(),
    }
}

/// Every file of a cache, with its content.
fn files(cache: &Cache) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut found, mut open) = (Vec::new(), vec![cache.store.root().to_owned()]);
    while let Some(path) = open.pop() {
        match path.is_dir() {
            true => open.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            ),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found.sort_unstable();
    found
}

fn change_index(path: &Path, change: impl FnOnce(&mut Value)) {
    let file = path.join("index.json");
    let mut index = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(&mut index);
    fs::write(&file, index.to_string()).unwrap();
}

#[test]
fn an_export_comes_back_whole() {
    let from = Cache::new();
    let image = from.image("app", &[b"layer", b"other"], 5);
    let index = from.index("app:v1", &[&image], 5);
    let (_scratch, path) = layout(&from, &["v1"], "all", None);
    let to = Cache::new();
    let images = import(&to, &path, &Naming::default()).unwrap();
    assert_eq!(images[0].name, "host.example/app:v1");
    assert!(to.is_whole("app", &index, &[]) && to.is_whole("app", &image, &[b"layer", b"other"]));
    to.with("app", |scope| {
        let tag = to.names.tag(scope, "", &"v1".parse().unwrap());
        assert_eq!(tag[0].digest, index);
        let link = to.names.link(scope, &digest_of(b"layer")).unwrap();
        assert_eq!(link.size, Some(5));
    });
    // Another time nothing is copied.
    let disk = to.disk();
    let archive = Archive::open(&path).unwrap();
    let importer = importer(&disk, &archive);
    let images = importer.plan(&Naming::default()).unwrap();
    assert_eq!(importer.check(&images, &mut |_, _, _| {}), Ok(0));
}

#[test]
fn bug_a_blob_that_was_damaged_in_the_cache_stayed() {
    let from = Cache::new();
    let image = from.image("app:v1", &[b"layer"], 5);
    let (_scratch, path) = layout(&from, &["v1"], "all", None);
    let layer = digest_of(b"layer");
    for (damaged, with) in [(&layer, "LAYER"), (&layer, "lay"), (&image, "{}")] {
        let to = Cache::new();
        import(&to, &path, &Naming::default()).unwrap();
        fs::write(to.store.root().join(blob_name(damaged)), with).unwrap();
        import(&to, &path, &Naming::default()).unwrap();
        let content = to.store.read(damaged, u64::MAX).unwrap();
        assert!(content.is_some(), "{with}");
        assert!(to.is_whole("app", &image, &[b"layer"]), "{with}");
    }
}

#[test]
fn bug_a_blob_that_was_evicted_meanwhile_was_missing_in_the_end() {
    let from = Cache::new();
    let image = from.image("app:v1", &[b"old", b"new"], 5);
    let (_scratch, path) = layout(&from, &["v1"], "all", None);
    let to = Cache::new();
    let old = to.blob("other", b"old");
    let evicting = to.store.lock("evict", Duration::ZERO).unwrap();
    let evicting = std::sync::Mutex::new(Some(evicting));
    let (disk, archive) = (to.disk(), Archive::open(&path).unwrap());
    let importer = importer(&disk, &archive);
    // The one blob that is not here is copied while another process evicts the other one.
    importer
        .import(&Naming::default(), &mut |step, _, _| {
            if let ("import", Some(_lock)) = (step, evicting.lock().unwrap().take()) {
                to.store.remove(&old).unwrap();
            }
        })
        .unwrap();
    assert!(to.is_whole("app", &image, &[b"old", b"new"]));
}

#[test]
fn another_process_that_evicts_is_waited_for_and_not_for_ever() {
    let from = Cache::new();
    let image = from.image("app:v1", &[b"layer"], 5);
    let (_scratch, path) = layout(&from, &["v1"], "all", None);
    let to = Cache::new();
    let (disk, archive) = (to.disk(), Archive::open(&path).unwrap());
    let hurried = Importer {
        patience: Duration::ZERO,
        ..importer(&disk, &archive)
    };
    let evicting = to.store.lock("evict", Duration::ZERO).unwrap();
    let (naming, progress) = (Naming::default(), &mut |_: &str, _, _| {});
    let fault = hurried.import(&naming, progress).unwrap_err();
    let expected = "host.example/app:v1: another process evicts; try again";
    assert_eq!(fault, expected);
    let tag = |scope: Scope<'_>| to.names.tag(scope, "", &"v1".parse().unwrap());
    assert!(to.with("app", tag).is_empty());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let patient = importer(&disk, &archive);
            patient.import(&Naming::default(), &mut |_, _, _| {})
        });
        drop(evicting);
        assert_eq!(waiting.join().unwrap().unwrap().len(), 1);
    });
    assert!(to.is_whole("app", &image, &[b"layer"]));
}

#[test]
fn a_blob_that_another_process_downloads_is_waited_for_and_not_for_ever() {
    let from = Cache::new();
    let image = from.image("app:v1", &[b"layer"], 5);
    let (_scratch, path) = layout(&from, &["v1"], "all", None);
    let layer = digest_of(b"layer");
    for is_brought in [true, false] {
        let to = Cache::new();
        let (disk, archive) = (to.disk(), Archive::open(&path).unwrap());
        let hurried = Importer {
            patience: Duration::ZERO,
            ..importer(&disk, &archive)
        };
        let downloading = to.store.partial(&layer).unwrap();
        let (naming, progress) = (Naming::default(), &mut |_: &str, _, _| {});
        let fault = hurried.import(&naming, progress).unwrap_err();
        let expected = "another process downloads it; try again when it has";
        assert!(
            fault.contains(expected) && fault.contains(layer.hex()),
            "{fault}"
        );
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let patient = importer(&disk, &archive);
                patient.import(&Naming::default(), &mut |_, _, _| {})
            });
            // The other one ends, with the blob or without it.
            if is_brought {
                downloading.file.write_all_at(b"layer", 0).unwrap();
                to.store.publish(&layer, &downloading.file).unwrap();
            }
            drop(downloading);
            assert_eq!(waiting.join().unwrap().unwrap().len(), 1);
        });
        assert!(to.is_whole("app", &image, &[b"layer"]));
    }
}

#[test]
fn a_manifest_that_was_evicted_meanwhile_is_no_empty_one() {
    let from = Cache::new();
    from.image("app:v1", &[b"base"], 5);
    let (_first, base) = layout(&from, &["v1"], "all", None);
    let image = from.image("app:v2", &[b"base"], 5);
    from.index("app:v3", &[&image], 5);
    let (_second, delta) = layout(&from, &["v3"], "all", Some(&base));
    fs::remove_file(delta.join(blob_name(&image))).ok();
    let to = Cache::new();
    import(&to, &base, &Naming::default()).unwrap();
    let (disk, archive) = (to.disk(), Archive::open(&delta).unwrap());
    let importer = importer(&disk, &archive);
    let images = importer.plan(&Naming::default()).unwrap();
    to.store.remove(&image).unwrap();
    let fault = importer.keep(&images[0], &mut |_| {}).unwrap_err();
    assert!(fault.contains("was evicted meanwhile"), "{fault}");
    assert!(!to.store.has(&image));
}

#[test]
fn bug_an_import_moved_a_frozen_tag() {
    let from = Cache::new();
    let old = from.image("app:v1", &[b"old"], 5);
    let (_first, before) = layout(&from, &["v1"], "all", None);
    from.image("app:v1", &[b"new"], 6);
    let (_second, after) = layout(&from, &["v1"], "all", None);
    let (to, frozen) = (Cache::new(), ImageGlobs::parse("app:v*").unwrap());
    let disk = to.disk();
    let import = |path: &Path| {
        let archive = Archive::open(path).unwrap();
        let importer = Importer {
            frozen: &frozen,
            ..importer(&disk, &archive)
        };
        importer.import(&Naming::default(), &mut |_, _, _| {})
    };
    for _ in 0..2 {
        assert_eq!(import(&before).unwrap().len(), 1);
    }
    let fault = import(&after).unwrap_err();
    assert!(
        fault.contains(&format!("FREEZE_TAGS keeps it at {old}")),
        "{fault}"
    );
    assert!(!to.store.has(&digest_of(b"new")));
}

#[test]
fn bug_what_was_no_manifest_was_whole() {
    let from = Cache::new();
    let image = from.image("app:v1", &[b"layer"], 5);
    let two = json!({
        "layers": [{"digest": digest_of(b"layer").as_str()}],
        "manifests": [{"digest": image.as_str(), "mediaType": "a/b"}],
    });
    let untyped = json!({"manifests": [{"digest": image.as_str()}]});
    for (content, why) in [
        (two.to_string(), "can be read in two ways"),
        ("layer".to_owned(), "is no manifest"),
        ("{}".to_owned(), "is no manifest"),
        (untyped.to_string(), "without a media type of its own"),
        (json!({"manifests": []}).to_string(), ""),
    ] {
        let (_scratch, path) = layout(&from, &["v1"], "all", None);
        let root = digest_of(content.as_bytes());
        fs::write(path.join(blob_name(&root)), content).unwrap();
        change_index(&path, |index| {
            index["manifests"][0]["digest"] = root.as_str().into()
        });
        let imported = import(&Cache::new(), &path, &Naming::default());
        let fault = imported.err().unwrap_or_default();
        assert!(
            fault.contains(why) && fault.is_empty() == why.is_empty(),
            "{fault}"
        );
    }
}

#[test]
fn bug_a_list_gave_a_manifest_a_type_that_no_client_takes() {
    let from = Cache::new();
    let layers = json!([{"digest": digest_of(b"layer").as_str(), "size": 5}]);
    from.image("app", &[b"layer"], 5);
    let typed = json!({"mediaType": "a/image", "layers": layers});
    from.manifest("app:v1", "a/image", &typed, 5);
    let (_scratch, path) = layout(&from, &["v1"], "all", None);
    change_index(&path, |index| {
        index["manifests"][0]["mediaType"] = "text/plain".into()
    });
    let to = Cache::new();
    import(&to, &path, &Naming::default()).unwrap();
    to.with("app", |scope| {
        let tag = to.names.tag(scope, "", &"v1".parse().unwrap());
        assert_eq!(tag[0].media_type, "a/image");
        let link = to.names.link(scope, &tag[0].digest).unwrap();
        assert_eq!(link.media_type.as_deref(), Some("a/image"));
    });
}

#[test]
fn bug_a_digest_that_is_a_blob_and_a_manifest_was_a_blob_only() {
    let from = Cache::new();
    let image = from.image("app", &[b"layer"], 5);
    let other = json!({"layers": [{"digest": image.as_str()}]});
    let other = from.manifest("app", "a/b", &other, 5);
    for children in [[&image, &other], [&other, &image]] {
        from.index("app:v1", &children, 5);
        let (_scratch, path) = layout(&from, &["v1"], "all", None);
        for file in [&image, &other, &digest_of(b"layer")] {
            let name = blob_name(file);
            fs::copy(from.store.root().join(&name), path.join(&name)).unwrap();
        }
        let to = Cache::new();
        import(&to, &path, &Naming::default()).unwrap();
        assert!(to.is_whole("app", &image, &[b"layer"]));
    }
}

#[test]
fn bug_an_image_that_is_listed_twice_was_refused() {
    let from = Cache::new();
    from.image("app:v1", &[b"layer"], 5);
    let (_scratch, path) = layout(&from, &["v1"], "all", None);
    change_index(&path, |index| {
        let twice = index["manifests"][0].clone();
        index["manifests"].as_array_mut().unwrap().push(twice);
    });
    let images = import(&Cache::new(), &path, &Naming::default()).unwrap();
    assert_eq!(images.len(), 1);
    change_index(&path, |index| index["manifests"] = json!([]));
    let fault = import(&Cache::new(), &path, &Naming::default()).unwrap_err();
    assert_eq!(fault, "index.json: lists no image");
}

#[test]
fn a_delta_needs_its_base() {
    let from = Cache::new();
    from.image("app:v1", &[b"base", b"one"], 5);
    let (_first, base) = layout(&from, &["v1"], "all", None);
    let new = from.image("app:v2", &[b"base", b"two"], 6);
    let (_second, delta) = layout(&from, &["v2"], "all", Some(&base));
    let to = Cache::new();
    let before = files(&to);
    let fault = import(&to, &delta, &Naming::default()).unwrap_err();
    let lost = digest_of(b"base");
    assert!(
        fault.contains(lost.as_str()) && fault.contains("--since layout; import that"),
        "{fault}"
    );
    assert!(before == files(&to));
    import(&to, &base, &Naming::default()).unwrap();
    // What is damaged is not there.
    fs::write(to.store.root().join(blob_name(&lost)), "BASE").unwrap();
    let fault = import(&to, &delta, &Naming::default()).unwrap_err();
    assert!(
        fault.contains(lost.as_str()) && fault.contains("import that"),
        "{fault}"
    );
    import(&to, &base, &Naming::default()).unwrap();
    import(&to, &delta, &Naming::default()).unwrap();
    assert!(to.is_whole("app", &new, &[b"base", b"two"]));
}

#[test]
fn a_layout_that_is_damaged_changes_nothing() {
    let from = Cache::new();
    let image = from.image("app:v1", &[b"layer", b"other"], 5);
    type Damage<'a> = &'a dyn Fn(&Path);
    let blob = |path: &Path, digest: &Digest| path.join(blob_name(digest));
    let layer = digest_of(b"layer");
    let cases: [(&str, Damage<'_>); 6] = [
        ("have another digest", &|path| {
            fs::write(blob(path, &layer), b"LAYER").unwrap()
        }),
        ("neither in the layout nor in the cache", &|path| {
            fs::remove_file(blob(path, &layer)).unwrap();
        }),
        ("is no regular file", &|path| {
            fs::remove_file(blob(path, &layer)).unwrap();
            fs::create_dir(blob(path, &layer)).unwrap();
        }),
        ("content has another digest", &|path| {
            fs::write(blob(path, &image), b"{}").unwrap()
        }),
        ("neither in the layout nor in the cache", &|path| {
            fs::remove_file(blob(path, &image)).unwrap();
        }),
        ("unknown algorithm", &|path| {
            change_index(path, |index| {
                index["manifests"][0]["digest"] = "md5:00".into()
            });
        }),
    ];
    for (why, damage) in cases {
        let (_scratch, path) = layout(&from, &["v1"], "all", None);
        damage(&path);
        let to = Cache::new();
        let before = files(&to);
        let fault = import(&to, &path, &Naming::default()).unwrap_err();
        let why = if why == "unknown algorithm" {
            "digest \"md5:00\""
        } else {
            why
        };
        assert!(fault.contains(why), "{why}: {fault}");
        assert!(before == files(&to), "{why}");
    }
}

#[test]
fn a_blob_of_another_size_than_its_manifest_says_is_refused() {
    let from = Cache::new();
    let layer = from.blob("app", b"layer");
    let manifest = json!({"layers": [{"digest": layer.as_str(), "size": 4}]}).to_string();
    let root = from.blob("app", manifest.as_bytes());
    let (_scratch, path) = {
        from.image("app:v1", &[b"layer"], 5);
        layout(&from, &["v1"], "all", None)
    };
    fs::write(path.join(blob_name(&root)), manifest).unwrap();
    change_index(&path, |index| {
        index["manifests"][0]["digest"] = root.as_str().into()
    });
    let fault = import(&Cache::new(), &path, &Naming::default()).unwrap_err();
    assert!(
        fault.contains("has 5 bytes, and its manifest says 4"),
        "{fault}"
    );
}

#[test]
fn manifests_below_one_another_have_an_end() {
    let from = Cache::new();
    let mut digest = from.image("app", &[b"layer"], 5);
    for _ in 0..DEPTH_MAX {
        digest = from.index("app", &[&digest], 5);
    }
    let deep = from.index("app:deep", &[&digest], 5);
    let scratch = Scratch::new();
    let path = scratch.path().join("layout");
    fs::create_dir_all(path.join("blobs")).unwrap();
    fs::rename(
        from.store.root().join("blobs/sha256"),
        path.join("blobs/sha256"),
    )
    .unwrap();
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = |root: &Digest| {
        let name = json!({"org.opencontainers.image.ref.name": "r.test/app:v1"});
        json!({"manifests": [{"digest": root.as_str(), "mediaType": "a/b", "annotations": name}]})
    };
    fs::write(path.join("index.json"), index(&deep).to_string()).unwrap();
    let fault = import(&Cache::new(), &path, &Naming::default()).unwrap_err();
    assert!(fault.contains("larger or deeper than any image"), "{fault}");
    fs::write(path.join("index.json"), index(&digest).to_string()).unwrap();
    import(&Cache::new(), &path, &Naming::default()).unwrap();
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_read() {
    let from = Cache::new();
    let large = [7; 10_000];
    from.image("app:v1", &[b"layer", &large], 5);
    let (_scratch, path) = layout(&from, &["v1"], "all", None);
    let to = Cache::new();
    let before = files(&to);
    let small = Disk {
        sweeper: crate::cache::sweep::Sweeper::new(
            Arc::clone(&to.store),
            Arc::clone(&to.names),
            17,
        ),
        ..to.disk()
    };
    let archive = Archive::open(&path).unwrap();
    let importer = importer(&small, &archive);
    let images = importer.plan(&Naming::default()).unwrap();
    let fault = importer.check(&images, &mut |_, _, _| {}).unwrap_err();
    let largest = digest_of(&large);
    assert!(
        fault.contains(largest.hex()) && fault.contains("free space leave 17 bytes"),
        "{fault}"
    );
    assert!(before == files(&to));
}

#[test]
fn a_partial_blob_is_gone_on_with_if_it_is_the_beginning() {
    let from = Cache::new();
    let image = from.image("app:v1", &[b"layer"], 5);
    let (_scratch, path) = layout(&from, &["v1"], "all", None);
    let layer = digest_of(b"layer");
    for (left, read) in [
        (&b"lay"[..], 5),
        (b"LAY", 5),
        (b"layer", 5),
        (b"too long", 5),
        (b"", 5),
    ] {
        let to = Cache::new();
        let partial = to.store.partial(&layer).unwrap();
        partial.file.write_all_at(left, 0).unwrap();
        drop(partial);
        let (disk, archive) = (to.disk(), Archive::open(&path).unwrap());
        let importer = importer(&disk, &archive);
        let images = importer.plan(&Naming::default()).unwrap();
        let mut done = 0;
        importer
            .keep(&images[0], &mut |bytes| done += bytes)
            .unwrap();
        let manifest = from.store.size(&image).unwrap();
        assert_eq!(done, read + manifest, "{left:?}");
        assert!(to.is_whole("app", &image, &[b"layer"]), "{left:?}");
    }
}

#[test]
fn platforms_that_other_programs_leave_out_are_told() {
    let from = Cache::new();
    let one = from.image("app", &[b"one"], 5);
    let two = from.image("app", &[b"two"], 5);
    from.index("app:v1", &[&one, &two], 5);
    let (_scratch, path) = layout(&from, &["v1"], "all", None);
    for file in [&two, &digest_of(b"two")] {
        fs::remove_file(path.join(blob_name(file))).unwrap();
    }
    let fault = import(&Cache::new(), &path, &Naming::default()).unwrap_err();
    assert!(
        fault.contains(two.as_str()) && fault.contains("the layout is not whole"),
        "{fault}"
    );
    change_index(&path, |index| {
        drop(index.as_object_mut().unwrap().remove("annotations"))
    });
    let images = import(&Cache::new(), &path, &Naming::default()).unwrap();
    assert_eq!(images[0].absent, [two.as_str()]);
    fs::remove_file(path.join(blob_name(&one))).unwrap();
    let fault = import(&Cache::new(), &path, &Naming::default()).unwrap_err();
    assert!(
        fault.contains("no platform of it is in the layout"),
        "{fault}"
    );
}

#[test]
fn two_images_do_not_get_one_name() {
    let from = Cache::new();
    from.image("app:v1", &[b"one"], 5);
    from.image("app:v2", &[b"two"], 5);
    let (_scratch, path) = layout(&from, &["v1", "v2"], "all", None);
    let naming = Naming {
        scope: Some(scope("r.test", "app")),
        tag: Some("v3".parse().unwrap()),
        default: None,
    };
    let fault = import(&Cache::new(), &path, &naming).unwrap_err();
    assert!(fault.contains("r.test/app:v3 is there twice"), "{fault}");
}
