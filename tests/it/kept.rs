//! `list`, `verify` and `remove`, beside a proxy that uses the cache and on a directory that
//! nobody may write; and `PIN` with a real quota.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;
use standin::{Image, Layer};

use crate::config::{Run, run};
use crate::support::{Cached, SOON, listing, wait_until};

const SETTINGS: [(&str, &str); 2] = [("CACHE_TAG_TTL", "forever"), ("SCRUB_INTERVAL", "0s")];

fn command(cached: &Cached, words: &[&str], settings: &[(&str, &str)]) -> Run {
    let (directory, ecr) = (cached.scratch.path(), cached.standin.registry_url());
    let mut all = vec![
        ("CACHE_DIR", directory.to_str().unwrap()),
        ("ECR", ecr.as_str()),
        ("ALLOW_PLAIN_TOKEN", "true"),
    ];
    all.extend_from_slice(settings);
    run(words, &all)
}

fn listed(cached: &Cached, settings: &[(&str, &str)]) -> Vec<Value> {
    let list = command(cached, &["list", "--json"], settings);
    assert_eq!((list.code, list.err.as_str()), (Some(0), ""));
    let document: Value = serde_json::from_str(&list.out).unwrap();
    document["images"].as_array().unwrap().clone()
}

fn blob(digest: &str) -> String {
    format!("/v2/team/app/blobs/{digest}")
}

fn pull(cached: &Cached, reference: &str, image: &Image) {
    let got = cached.get(&format!("/v2/team/app/manifests/{reference}"));
    assert_eq!(got.status, 200, "{}", got.text());
    for digest in image.layers.iter().chain([&image.config]) {
        assert_eq!(&cached.get(&blob(digest)).digest, digest);
        cached.wait_for_blob(digest);
    }
}

fn put(cached: &Cached, tag: &str, content: &[u8]) -> Image {
    let layer = Layer::of_files(&[("file", content)]);
    cached.standin.put_image("team/app", tag, &[layer])
}

/// Two images with a signature of the first, and an index of which one platform was pulled.
fn pulled() -> (Cached, Image, Image, String) {
    let cached = Cached::with(&SETTINGS);
    let (one, two) = (put(&cached, "1.0", b"one"), put(&cached, "2.0", b"two"));
    pull(&cached, "1.0", &one);
    pull(&cached, "2.0", &two);
    let signature = cached
        .standin
        .attach("team/app", "sig", &one.manifest, "a/signature");
    pull(&cached, &signature.manifest.clone(), &signature);
    let (index, images) = cached.standin.put_index("team/app", "all");
    assert_eq!(cached.get("/v2/team/app/manifests/all").status, 200);
    pull(&cached, &images[0].manifest.clone(), &images[0]);
    (cached, one, two, index)
}

#[test]
fn images_are_listed_with_what_is_here_of_each() {
    let (cached, one, _, index) = pulled();
    let rows = listed(
        &cached,
        &[("PIN", "team/app:1.*"), ("FREEZE_TAGS", "team/app:all")],
    );
    let tags: Vec<&str> = rows.iter().filter_map(|row| row["tag"].as_str()).collect();
    assert_eq!(tags, ["1.0", "2.0", "all"]);
    assert_eq!(rows.len(), 3, "{rows:?}");
    let row = &rows[0];
    assert_eq!(row["digest"], one.manifest.as_str());
    assert_eq!(row["repository"], "team/app");
    assert_eq!(
        (&row["is_whole"], &row["referrers"]),
        (&true.into(), &1.into())
    );
    assert_eq!(
        (&row["pinned"], &row["frozen"]),
        (&true.into(), &false.into())
    );
    assert!(row["bytes"].as_u64().unwrap() > one.bytes.len() as u64);
    for time in ["pulled", "confirmed"] {
        assert!(row[time].as_str().unwrap().starts_with("20"), "{row}");
    }
    let row = &rows[2];
    assert_eq!(
        (&row["digest"], &row["is_whole"]),
        (&index.into(), &false.into())
    );
    let count = |name: &str| row[name].as_array().unwrap().len();
    assert_eq!((count("platforms"), count("incomplete")), (1, 0));
    assert!(count("absent") >= 1);
    assert_eq!(
        (&row["pinned"], &row["frozen"]),
        (&true.into(), &true.into())
    );
    let table = command(&cached, &["list"], &[]).out;
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines.len() == 4 && lines[0].starts_with("IMAGE"), "{table}");
    assert!(lines[1].contains("team/app:1.0") && lines[1].contains(&one.manifest[..19]));
    assert!(lines[3].contains("not here"), "{table}");
}

#[test]
fn verify_tells_what_is_complete_missing_or_damaged_and_changes_nothing() {
    let (mut cached, one, two, _) = pulled();
    let name = |tag: &str| format!("team/app:{tag}");
    let good = command(&cached, &["verify", &name("1.0"), &name("2.0")], &[]);
    assert_eq!(good.code, Some(0), "{}{}", good.out, good.err);
    assert_eq!(good.out.matches(" complete\n").count(), 2, "{}", good.out);
    let partial = command(&cached, &["verify", &name("all")], &[]);
    assert_eq!(partial.code, Some(1));
    assert!(
        partial.out.contains("not here, missing sha256:"),
        "{}",
        partial.out
    );
    let platform = listed(&cached, &[])[2]["platforms"][0]
        .as_str()
        .unwrap()
        .to_owned();
    let picked = command(
        &cached,
        &["verify", &name("all"), "--platform", &platform],
        &[],
    );
    assert_eq!(picked.code, Some(0), "{}", picked.out);

    cached.stop();
    let path = |digest: &str| cached.path("blobs/sha256").join(&digest[7..]);
    fs::write(path(&one.layers[0]), "damaged").unwrap();
    fs::remove_file(path(&two.config)).unwrap();
    let before = listing(cached.scratch.path());
    let all = command(&cached, &["verify"], &[]);
    assert_eq!(all.code, Some(1));
    for said in [
        format!("damaged {}: its 7 bytes", one.layers[0]),
        format!("missing {}", two.config),
        "3 images, 0 complete".to_owned(),
    ] {
        assert!(all.out.contains(&said), "{said}: {}", all.out);
    }
    // A damaged manifest is damage, not absence.
    fs::write(path(&two.manifest), "{").unwrap();
    let manifest = command(&cached, &["verify", &name("2.0")], &[]);
    let said = format!("damaged {}", two.manifest);
    assert!(manifest.out.contains(&said), "{}", manifest.out);
    let after = listing(cached.scratch.path());
    let names = |listing: &BTreeMap<_, _>| listing.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before));
}

#[test]
fn verify_names_what_is_not_there_and_refuses_what_is_no_image() {
    let (cached, ..) = pulled();
    let absent = command(&cached, &["verify", "team/app:9.9"], &[]);
    assert_eq!(absent.code, Some(1));
    assert!(
        absent.out.contains("team/app:9.9 is not in the cache"),
        "{}",
        absent.out
    );
    for words in [
        &["verify", "Team/app"][..],
        &["verify", "a", "--platform", "x"],
    ] {
        let bad = command(&cached, words, &[]);
        assert_eq!((bad.code, bad.out.as_str()), (Some(64), ""), "{}", bad.err);
        assert!(bad.err.contains("expected"), "{}", bad.err);
    }
    let none = run(&["verify"], &[("CACHE_DIR", "/nonexistent/cache")]);
    assert_eq!(none.code, Some(1), "{}{}", none.out, none.err);
    // A file of the layout is looked at, too.
    fs::write(cached.path("oci-layout"), "{}").unwrap();
    let layout = command(&cached, &["verify"], &[]).out;
    assert!(layout.contains("oci-layout is no layout"), "{layout}");
}

#[test]
fn list_and_verify_read_a_directory_that_nobody_may_write() {
    let (mut cached, ..) = pulled();
    cached.stop();
    let before = listing(cached.scratch.path());
    let set = |mode| {
        for folder in ["", "blobs/sha256", "partial", "repos"] {
            fs::set_permissions(cached.path(folder), Permissions::from_mode(mode)).unwrap();
        }
    };
    set(0o555);
    let rows = listed(&cached, &[]);
    let verified = command(&cached, &["verify", "team/app:1.0"], &[]);
    set(0o755);
    assert_eq!(
        (rows.len(), verified.code),
        (3, Some(0)),
        "{}",
        verified.out
    );
    assert_eq!(listing(cached.scratch.path()), before);
}

#[test]
fn remove_takes_an_image_and_leaves_what_others_need() {
    let (mut cached, one, two, _) = pulled();
    let pinned = command(&cached, &["remove", "team/app:1.0"], &[("PIN", "*:1.0")]);
    assert_eq!(pinned.code, Some(1));
    assert!(pinned.out.contains("it is pinned"), "{}", pinned.out);
    let removed = command(&cached, &["remove", "team/app:1.0", "team/app:9.9"], &[]);
    assert_eq!(removed.code, Some(1), "one of them is not there");
    assert!(
        removed.out.contains("team/app:1.0 removed"),
        "{}",
        removed.out
    );
    assert!(
        removed.out.contains("team/app:9.9 was not removed: "),
        "{}",
        removed.out
    );
    assert!(!cached.has(&one.manifest) && !cached.has(&one.layers[0]));
    assert_eq!(listed(&cached, &[]).len(), 2);
    // The proxy that runs fetches it again, and serves the rest.
    cached.all_down();
    assert!(cached.get("/v2/team/app/manifests/1.0").status >= 500);
    assert_eq!(cached.get("/v2/team/app/manifests/2.0").body, two.bytes);
    cached.all_up();
    wait_until("upstream is asked again", SOON, || {
        cached.get("/v2/team/app/manifests/1.0").status == 200
    });
    cached.stop();
    let digest = format!("team/app@{}", two.manifest);
    let by_digest = command(&cached, &["remove", &digest], &[]);
    assert_eq!(by_digest.code, Some(0), "{}", by_digest.out);
    assert!(!cached.has(&two.layers[0]));
    assert_eq!(command(&cached, &["remove"], &[]).code, Some(64));
}

#[test]
fn a_pinned_image_outlives_a_full_cache() {
    outlive_a_full_cache(("PIN", "team/app:keep"));
}

#[test]
fn an_image_that_is_prefetched_outlives_a_full_cache() {
    outlive_a_full_cache(("PREFETCH", "team/app:keep"));
}

fn outlive_a_full_cache(pin: (&str, &str)) {
    const SIZE: usize = 400 << 10;
    let settings = [
        ("CACHE_MAX_SIZE", "1m"),
        ("PREFETCH_INTERVAL", "168h"),
        pin,
        ("SCRUB_INTERVAL", "0s"),
        ("CACHE_TAG_TTL", "forever"),
    ];
    let cached = Cached::with(&settings);
    let noise = |seed: u8| -> Vec<u8> {
        let mut state = u32::from(seed) + 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[0]
        };
        (0..SIZE).map(|_| next()).collect()
    };
    let kept = put(&cached, "keep", &noise(0));
    pull(&cached, "keep", &kept);
    for seed in 1..6 {
        let tag = format!("other{seed}");
        let image = put(&cached, &tag, &noise(seed));
        assert_eq!(
            cached.get(&format!("/v2/team/app/manifests/{tag}")).status,
            200
        );
        for digest in image.layers.iter().chain([&image.config]) {
            assert_eq!(&cached.get(&blob(digest)).digest, digest);
        }
    }
    let verified = command(&cached, &["verify", "team/app:keep"], &settings);
    assert_eq!(verified.code, Some(0), "{}", verified.out);
    cached.all_down();
    for digest in kept.layers.iter().chain([&kept.config]) {
        assert_eq!(&cached.get(&blob(digest)).digest, digest);
    }
}
