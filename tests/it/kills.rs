//! `kill -9` at random moments of evictions: what is left verifies clean, and an image that was
//! whole is whole or gone. Kills at other moments are beside what they interrupt: downloads in
//! `cache_resume`, imports in `carry`, `prefetch`, two processes in `cache_shared`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use standin::{Image, Layer};

use crate::carry::{Random, run};
use crate::support::{Cached, Http, SOON, wait_until};

const KILLS: u64 = 50;
/// Longest wait for the first image that goes; a kill without one counts, too.
const RUN: Duration = Duration::from_secs(2);
/// An image is evicted in a few milliseconds.
const EVICTION_US: u64 = 8000;
const SETTINGS: [(&str, &str); 3] = [
    ("CACHE_MAX_SIZE", "2m"),
    ("CACHE_TAG_TTL", "forever"),
    ("PIN", "team/app:pinned*"),
];
const CLIENTS: usize = 2;

/// Images by their tags: each has a layer of its own, and one that all have.
fn put_images(cached: &Cached) -> BTreeMap<String, Image> {
    let numbered = (0..14).map(|number| number.to_string());
    let pinned = (0..2).map(|number| format!("pinned{number}"));
    let put = |(seed, tag): (u64, String)| {
        let layers = [
            Layer::of_noise(50 << 10, 99),
            Layer::of_noise(180 << 10, seed),
        ];
        let image = cached.standin.put_image("team/app", &tag, &layers);
        (tag, image)
    };
    (0..).zip(numbered.chain(pinned)).map(put).collect()
}

/// Pulls all of an image. None when the proxy was killed meanwhile.
fn pull(cached: &Cached, tag: &str, image: &Image) -> Option<()> {
    let blobs = image.layers.iter().chain([&image.config]);
    let blobs = blobs.map(|digest| format!("/v2/team/app/blobs/{digest}"));
    for target in [format!("/v2/team/app/manifests/{tag}")]
        .into_iter()
        .chain(blobs)
    {
        let got = Http::try_get_once(cached.address(), &target)?;
        got.complete.then_some(())?;
        assert_eq!(got.status, 200, "{target}");
    }
    Some(())
}

/// True when all blobs of an image are in the cache.
fn is_here(cached: &Cached, image: &Image) -> bool {
    let mut digests = image.layers.iter().chain([&image.config, &image.manifest]);
    digests.all(|digest| {
        let hex = digest.trim_start_matches("sha256:");
        cached.path("blobs/sha256").join(hex).exists()
    })
}

/// Waits until a tag goes, which is the first of an image that does.
fn wait_for_an_eviction(cached: &Cached) {
    let folder = cached.standin.registry_url().replace("http://", "repos/");
    let folder = cached.path(&folder).join("team/app/_tags");
    let tags = || {
        let names = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        names.map(|name| name.file_name()).collect::<BTreeSet<_>>()
    };
    let (mut before, until) = (tags(), Instant::now() + RUN);
    while Instant::now() < until {
        let now = tags();
        if !before.is_subset(&now) {
            return;
        }
        before = now;
    }
}

/// What `verify` says of the directory: whatever is not complete, by its tag.
fn verify(cached: &Cached, images: &BTreeMap<String, Image>) -> BTreeSet<String> {
    let directory = cached.scratch.path().display().to_string();
    let settings = cached.standin.settings();
    let settings = settings.iter().map(|(name, value)| (*name, value.as_str()));
    let settings: Vec<_> = settings
        .chain([("CACHE_DIR", directory.as_str())])
        .collect();
    let ran = run(&["verify"], &settings);
    assert!(ran.text.contains(" images, "), "{}", ran.text);
    assert!(!ran.text.contains("damaged"), "{}", ran.text);
    let lines = ran.text.lines().filter(|line| line.contains("/team/app"));
    let verdicts = lines.filter_map(|line| line.rsplit_once(' '));
    let faulty = verdicts.filter(|(_, verdict)| *verdict != "complete");
    let tag_of = |name: &str| match name.split_once('@') {
        Some((_, digest)) => {
            let mut found = images.iter().filter(|(_, image)| image.manifest == digest);
            found.next().expect("an image of ours").0.clone()
        }
        None => name.rsplit(':').next().unwrap_or_default().to_owned(),
    };
    faulty.map(|(name, _)| tag_of(name)).collect()
}

#[test]
#[expect(
    clippy::print_stdout,
    reason = "a failure is tried again with its seed"
)]
fn evictions_that_are_killed_leave_each_image_whole_or_gone() {
    let mut cached = Cached::with(&SETTINGS);
    let images = put_images(&cached);
    let seed = std::process::id().into();
    println!("seed {seed}");
    let mut random = Random(seed);
    // Those that were whole once, and are not being pulled again.
    let whole = Mutex::new(BTreeSet::new());
    for tag in ["pinned0", "pinned1"] {
        pull(&cached, tag, &images[tag]).expect("a whole pull");
        wait_until("it is kept", SOON, || is_here(&cached, &images[tag]));
        whole.lock().unwrap().insert(tag.to_owned());
    }
    let mut gone = 0;
    for _ in 0..KILLS {
        let first = usize::try_from(random.below(14)).unwrap();
        let tags = (first..first + 14).map(|number| (number % 14).to_string());
        let tags: Vec<String> = tags.collect();
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (cached, images, whole) = (&cached, &images, &whole);
                let tags = tags.iter().skip(client).step_by(CLIENTS);
                scope.spawn(move || {
                    for tag in tags.cycle() {
                        whole.lock().unwrap().remove(tag);
                        if pull(cached, tag, &images[tag]).is_none() {
                            return;
                        }
                        // One that found no room streams through.
                        if is_here(cached, &images[tag]) {
                            whole.lock().unwrap().insert(tag.clone());
                        }
                    }
                });
            }
            wait_for_an_eviction(&cached);
            std::thread::sleep(Duration::from_micros(random.below(EVICTION_US)));
            cached.proxy().signal("KILL");
        });
        cached.kill();
        gone += whole
            .lock()
            .unwrap()
            .iter()
            .filter(|tag| !is_here(&cached, &images[*tag]))
            .count();
        let faulty = verify(&cached, &images);
        let lost: Vec<_> = whole
            .lock()
            .unwrap()
            .intersection(&faulty)
            .cloned()
            .collect();
        assert!(
            lost.is_empty(),
            "these were whole and lack a blob: {lost:?}"
        );
        assert!(is_here(&cached, &images["pinned0"]) && is_here(&cached, &images["pinned1"]));
        cached.start_again();
    }
    println!("{gone} images were gone after a kill");
    assert!(gone > 0);
    for (tag, image) in &images {
        pull(&cached, tag, image).expect("a whole pull");
    }
}
