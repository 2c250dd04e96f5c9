//! Tests of exports.

use super::*;
use crate::cache::scratch::{Cache, Scratch, digest_of};

static GO_ON: AtomicBool = AtomicBool::new(false);

struct Exported {
    scratch: Scratch,
    plan: ExportPlan,
}

impl Exported {
    fn path(&self) -> PathBuf {
        self.scratch.path().join("out.tar")
    }

    fn digests(&self) -> Vec<&Digest> {
        self.plan.blobs.values().map(|(digest, _)| digest).collect()
    }
}

fn app(cache: &Cache) -> OwnedScope {
    OwnedScope {
        registry: cache.registry.clone(),
        repository: "app".parse().unwrap(),
    }
}

fn export(
    cache: &Cache,
    tag: &str,
    platforms: &str,
    since: Option<&Path>,
) -> Result<Exported, String> {
    let scratch = Scratch::new();
    let exporter = Exporter {
        disk: &cache.disk(),
        platforms: &platforms.parse().unwrap(),
        stop: &GO_ON,
    };
    let reference = tag.parse().unwrap();
    let plan = exporter.plan(&[(app(cache), reference)], since)?;
    let exported = Exported { scratch, plan };
    exporter.write(&exported.plan, &exported.path(), &mut |_, _, _| {})?;
    Ok(exported)
}

#[test]
fn the_same_image_makes_the_same_bytes() {
    let cache = Cache::new();
    cache.image("app:v1", &[b"layer", b"other"], 5);
    let (one, two) = (
        export(&cache, "v1", "all", None),
        export(&cache, "v1", "all", None),
    );
    let [one, two] = [one, two].map(|exported| fs::read(exported.unwrap().path()).unwrap());
    assert_eq!(one, two);
    let files = fs::read_dir(cache.store.root().join("partial")).unwrap();
    assert_eq!(files.count(), 2, "nothing is left in the cache");
}

#[test]
fn a_missing_digest_fails_by_name_before_anything_is_written() {
    let cache = Cache::new();
    let whole = cache.image("app", &[b"one"], 5);
    let part = cache.image("app", &[b"two"], 5);
    cache.index("app:v1", &[&whole, &part], 5);
    let lost = digest_of(b"two");
    cache.store.remove(&lost).unwrap();
    let fault = export(&cache, "v1", "all", None).err().unwrap();
    assert!(
        fault.contains(lost.as_str()) && fault.contains("pull host.example/app:v1"),
        "{fault}"
    );
    assert!(fault.contains("--platform"), "{fault}");
    let fault = export(&cache, "v2", "all", None).err().unwrap();
    assert!(
        fault.contains("host.example/app:v2 is not in the cache"),
        "{fault}"
    );
}

#[test]
fn a_damaged_blob_fails_by_name_and_leaves_no_file() {
    let cache = Cache::new();
    cache.image("app:v1", &[b"layer"], 5);
    let digest = digest_of(b"layer");
    let path = cache.store.root().join(archive::blob_name(&digest));
    fs::write(path, b"later").unwrap();
    let scratch = Scratch::new();
    let exporter = Exporter {
        disk: &cache.disk(),
        platforms: &Platforms::default(),
        stop: &GO_ON,
    };
    let reference = "v1".parse().unwrap();
    let plan = exporter.plan(&[(app(&cache), reference)], None).unwrap();
    for to in ["out.tar", "out"] {
        let to = scratch.path().join(to);
        let fault = exporter.write(&plan, &to, &mut |_, _, _| {});
        let fault = fault.unwrap_err();
        assert!(
            fault.contains(digest.as_str()) && fault.contains("damaged"),
            "{fault}"
        );
    }
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn since_leaves_out_what_the_other_side_has() {
    let cache = Cache::new();
    cache.image("app:v1", &[b"base", b"one"], 5);
    let first = export(&cache, "v1", "all", None).unwrap();
    let new = cache.image("app:v2", &[b"base", b"two"], 6);
    let delta = export(&cache, "v2", "all", Some(&first.path())).unwrap();
    let mut expected = [digest_of(b"two"), new.clone()];
    expected.sort();
    assert_eq!(delta.digests(), expected.iter().collect::<Vec<_>>());
    assert_eq!(delta.plan.known, 1);
    // The delta stands for all that its images are made of, and so does an index alone.
    let again = export(&cache, "v2", "all", Some(&delta.path())).unwrap();
    assert_eq!(again.plan.blob_count(), 0);
    let index = first.scratch.path().join("index.json");
    fs::write(&index, first.plan.index().to_string()).unwrap();
    let by_index = export(&cache, "v2", "all", Some(&index)).unwrap();
    assert_eq!(by_index.digests(), delta.digests());
    // A cache directory is a layout, too; what it holds it has.
    super::super::layout::write_index(&cache.store, &cache.names).unwrap();
    let by_cache = export(&cache, "v2", "all", Some(cache.store.root())).unwrap();
    assert_eq!(by_cache.plan.blob_count(), 0);
}

#[test]
fn bug_a_signature_was_left_out_for_another_that_is_not_whole() {
    let cache = Cache::new();
    let root = cache.image("app:v1", &[b"layer"], 5);
    let lost = cache.blob("app", b"lost");
    let referrer = json!({
        "layers": [{"digest": lost.as_str()}],
        "subject": {"digest": root.as_str()},
    });
    let referrer = cache.manifest("app", "a/b", &referrer, 5);
    let tag = format!("sha256-{}.sig", root.hex());
    let signature = cache.image(&format!("app:{tag}"), &[b"signature"], 5);
    cache.store.remove(&lost).unwrap();
    let exported = export(&cache, "v1", "all", None).unwrap();
    let names: Vec<&String> = exported.plan.images.keys().collect();
    let expected = [
        format!("host.example/app:{tag}"),
        "host.example/app:v1".to_owned(),
        format!("host.example/app@{signature}"),
    ];
    assert_eq!(names, expected.iter().collect::<Vec<_>>());
    assert!(exported.digests().contains(&&digest_of(b"signature")));
    let left_out = &exported.plan.left_out;
    assert!(left_out[0].contains(referrer.as_str()) && left_out.len() == 1);
    assert!(!exported.digests().contains(&&referrer));
}

#[test]
fn bug_what_two_images_share_was_counted_twice() {
    let cache = Cache::new();
    cache.image("app:v1", &[b"base", b"one"], 5);
    cache.image("app:v2", &[b"base", b"two"], 5);
    let first = export(&cache, "v1", "all", None).unwrap();
    let exporter = Exporter {
        disk: &cache.disk(),
        platforms: &Platforms::default(),
        stop: &GO_ON,
    };
    let images = ["v1", "v2"].map(|tag| (app(&cache), tag.parse().unwrap()));
    let plan = exporter.plan(&images, Some(&first.path())).unwrap();
    assert_eq!((plan.known, plan.blob_count()), (3, 2));
}

#[test]
fn a_place_that_cannot_be_written_to_is_refused() {
    let scratch = Scratch::new();
    for name in ["a.tar.gz", "a.tgz", "a.tar.zst"] {
        let fault = is_tar(&scratch.path().join(name)).unwrap_err();
        assert!(fault.contains("compressed already"), "{fault}");
    }
    assert!(is_tar(&scratch.path().join("a.tar")).unwrap());
    assert!(is_tar(&scratch.path().join("A.TAR")).unwrap());
    let fault = is_tar(Path::new("/dev/null")).unwrap_err();
    assert!(fault.contains("or no directory; name a new one"), "{fault}");
    assert!(!is_tar(&scratch.path().join("new")).unwrap());
    fs::write(scratch.path().join("file"), "").unwrap();
    assert!(is_tar(scratch.path()).unwrap_err().contains("is not empty"));
}

#[test]
fn bug_an_export_for_a_platform_that_an_image_has_not_was_empty() {
    let cache = Cache::new();
    let config = cache.blob("app", br#"{"os": "linux", "architecture": "amd64"}"#);
    let image = json!({"config": {"digest": config.as_str()}});
    let image = cache.manifest("app:one", crate::cache::scratch::IMAGE, &image, 5);
    // An image that is no index is exported for any platform, as in a pull.
    let exported = export(&cache, "one", "linux/arm64", None).unwrap();
    assert!(exported.digests().contains(&&image));
    let platform = json!({"os": "linux", "architecture": "amd64"});
    let child = json!({"digest": image.as_str(), "mediaType": "a/b", "platform": platform});
    let index = json!({"manifests": [child]});
    cache.manifest("app:v1", crate::cache::scratch::INDEX, &index, 5);
    let fault = export(&cache, "v1", "linux/arm64", None).err().unwrap();
    let why = "app:v1: it is not for linux/arm64, but for linux/amd64";
    assert!(fault.ends_with(why), "{fault}");
}

#[test]
fn bug_an_empty_directory_that_is_a_link_or_a_mount_was_no_place() {
    let cache = Cache::new();
    cache.image("app:v1", &[b"layer"], 5);
    let exporter = Exporter {
        disk: &cache.disk(),
        platforms: &Platforms::default(),
        stop: &GO_ON,
    };
    let images = [(app(&cache), "v1".parse().unwrap())];
    let plan = exporter.plan(&images, None).unwrap();
    let (scratch, link) = (Scratch::new(), Scratch::new());
    let link = link.path().join("link");
    std::os::unix::fs::symlink(scratch.path(), &link).unwrap();
    exporter.write(&plan, &link, &mut |_, _, _| {}).unwrap();
    assert_eq!(Archive::open(&link).unwrap().images.len(), 1);
    assert!(link.is_symlink());
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 3);
}

#[test]
fn bug_an_export_that_was_stopped_left_a_file() {
    let cache = Cache::new();
    cache.image("app:v1", &[b"layer"], 5);
    let exporter = Exporter {
        disk: &cache.disk(),
        platforms: &Platforms::default(),
        stop: &AtomicBool::new(true),
    };
    let images = [(app(&cache), "v1".parse().unwrap())];
    let plan = exporter.plan(&images, None).unwrap();
    let scratch = Scratch::new();
    for name in ["out.tar", "new", ""] {
        let to = scratch.path().join(name);
        let fault = exporter.write(&plan, &to, &mut |_, _, _| {});
        let fault = fault.unwrap_err();
        assert!(fault.ends_with(": stopped by a signal"), "{fault}");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
