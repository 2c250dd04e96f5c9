//! Images that come into the cache without a client: `pull` and `PREFETCH`.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use standin::{Fault, Image, Layer, Match, Options, Server, Standin};

use crate::carry::{Place, Random, run};
use crate::support::{Cached, Http, Proxy, Scratch, wait_until};

/// For what a busy machine does in the background.
const PATIENCE: Duration = Duration::from_secs(60);
const FAST: [(&str, &str); 2] = [("PREFETCH_INTERVAL", "1s"), ("CACHE_TAG_TTL", "0s")];

/// Runs `pull` for the registry of a site, on a directory of its own.
fn pull(site: &Cached, directory: &Scratch, arguments: &[&str]) -> crate::carry::Ran {
    pull_with(site, directory, arguments, "1g")
}

/// The same with this `CACHE_MAX_SIZE`.
fn pull_with(
    site: &Cached,
    directory: &Scratch,
    arguments: &[&str],
    quota: &str,
) -> crate::carry::Ran {
    let cache = directory.path().display().to_string();
    let settings = site.standin.settings();
    let mut settings: Vec<(&str, &str)> = settings
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    settings.extend([("CACHE_DIR", cache.as_str()), ("CACHE_MAX_SIZE", quota)]);
    run(&[&["pull"], arguments].concat(), &settings)
}

fn digests_of(image: &Image) -> BTreeSet<String> {
    let mut digests: BTreeSet<String> = image.layers.iter().cloned().collect();
    digests.extend([image.manifest.clone(), image.config.clone()]);
    digests
}

/// The digests of the blobs in a cache.
fn blobs(directory: &Scratch) -> BTreeSet<String> {
    let entries = fs::read_dir(directory.path().join("blobs/sha256")).expect("a cache");
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.map(|name| format!("sha256:{name}")).collect()
}

#[test]
fn pull_fetches_all_of_an_image_and_what_refers_to_it() {
    let site = Cached::start();
    let (root, images) = site.standin.put_index("team/app", "1.0");
    let signature = site
        .standin
        .attach("team/app", "sha256:", &root, "application/vnd.example.s");
    let directory = Scratch::new();
    let ran = pull(&site, &directory, &["team/app:1.0"]);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    assert!(
        ran.text
            .contains(&format!("team/app:1.0: complete as {root}; ")),
        "{}",
        ran.text
    );
    let here = blobs(&directory);
    for image in images.iter().chain([&signature]) {
        assert!(
            here.is_superset(&digests_of(image)),
            "{image:?} of {here:?}"
        );
    }
    let s3 = site.standin.count(Server::S3, "GET", "");
    let ran = pull(&site, &directory, &["team/app:1.0"]);
    assert!(ran.text.contains("0 blobs fetched"), "{}", ran.text);
    assert_eq!(site.standin.count(Server::S3, "GET", ""), s3);
    // The tag is asked for each time: it may have moved.
    let (newer, _) = site.standin.put_index("team/app", "1.0");
    let ran = pull(&site, &directory, &["team/app:1.0"]);
    assert!(
        ran.text.contains(&format!("complete as {newer}")),
        "{}",
        ran.text
    );
}

#[test]
fn pull_of_one_platform_fetches_no_other() {
    let site = Cached::start();
    let (_, images) = site.standin.put_index("team/app", "1.0");
    let directory = Scratch::new();
    let ran = pull(
        &site,
        &directory,
        &["team/app:1.0", "--platform", "linux/arm64"],
    );
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    let here = blobs(&directory);
    let whole = images
        .iter()
        .filter(|image| here.is_superset(&digests_of(image)));
    assert_eq!(whole.count(), 1, "{here:?}");
    let ran = pull(
        &site,
        &directory,
        &["team/app:1.0", "--platform=linux/mips"],
    );
    let why = "it is not for linux/mips, but for linux/amd64, linux/arm64";
    assert_eq!(ran.code, Some(1));
    assert!(ran.text.contains(why), "{}", ran.text);
    let ran = pull(&site, &directory, &["team/app:1.0", "--platform=all"]);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    let here = blobs(&directory);
    assert!(
        images
            .iter()
            .all(|image| here.is_superset(&digests_of(image)))
    );
}

#[test]
fn bug_pull_called_an_image_complete_that_was_damaged() {
    let site = Cached::start();
    let layer = Layer::of_noise(1000, 1);
    let image = site.standin.put_image("team/app", "1.0", &[layer]);
    let directory = Scratch::new();
    let ran = pull(&site, &directory, &["team/app:1.0"]);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    let hex = image.layers[0].replace("sha256:", "");
    let path = directory.path().join("blobs/sha256").join(hex);
    let good = fs::read(&path).unwrap();
    fs::write(&path, "damaged").unwrap();
    let ran = pull(&site, &directory, &["team/app:1.0"]);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    assert!(ran.text.contains("; 1 blobs fetched"), "{}", ran.text);
    assert!(fs::read(&path).unwrap() == good);
}

#[test]
fn pull_names_what_failed() {
    let site = Cached::start();
    let image = site
        .standin
        .put_image("team/app", "1.0", &[Layer::of_noise(1000, 1)]);
    let directory = Scratch::new();
    let lost = &image.layers[0];
    site.standin.fault(
        Match::s3().always(),
        Fault::registry_error(500, "UNKNOWN", "no"),
    );
    let ran = pull(
        &site,
        &directory,
        &["team/app:1.0", "team/none:1", "other.test/app:1"],
    );
    assert_eq!(ran.code, Some(1), "{}", ran.text);
    assert!(ran.text.contains(&format!("blob {lost}: ")), "{}", ran.text);
    assert!(
        ran.text.contains("team/none:1: failed: manifest 1: 404"),
        "{}",
        ran.text
    );
    assert!(
        ran.text.contains("other.test is in neither ECR"),
        "{}",
        ran.text
    );
    site.standin.clear_faults();
    assert_eq!(pull(&site, &directory, &["team/app:1.0"]).code, Some(0));
    // What upstream does not confirm is not whole, though all of it is here.
    site.all_down();
    let ran = pull(&site, &directory, &["team/app:1.0"]);
    assert_eq!(ran.code, Some(1), "{}", ran.text);
    for (arguments, why) in [
        (&["https://r.test/app"][..], "leave out its scheme"),
        (&["app", "--platform", "x"], "--platform=x"),
        (&[], "expected IMAGE"),
    ] {
        let ran = pull(&site, &directory, arguments);
        assert_eq!(
            (ran.code, ran.text.contains(why)),
            (Some(64), true),
            "{}",
            ran.text
        );
    }
    let offline = run(
        &["pull", "app"],
        &[("OFFLINE", "true"), ("CACHE_DIR", "/tmp")],
    );
    assert_eq!(
        (offline.code, offline.text.contains("OFFLINE=true")),
        (Some(1), true)
    );
}

#[test]
fn bug_pull_did_not_see_whether_the_blob_of_a_referrer_was_kept() {
    const SIZE: u64 = 4 << 20;
    let site = Cached::start();
    let image = site.standin.put_image("team/app", "1.0", &[]);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let (empty, sbom) = (
        site.standin.add_blob("team/app", b"{}"),
        site.standin.add_blob_of("team/app", SIZE, 1),
    );
    let artifact = json!({
        "schemaVersion": 2,
        "mediaType": kind,
        "artifactType": "application/vnd.example.sbom",
        "config": {"mediaType": "a/b", "digest": empty, "size": 2},
        "layers": [{"mediaType": "a/b", "digest": sbom, "size": SIZE}],
        "subject": {"mediaType": kind, "digest": image.manifest, "size": 1},
    });
    let artifact = artifact.to_string();
    site.standin
        .add_manifest("team/app", "sha256:", kind, artifact.as_bytes());
    let directory = Scratch::new();
    let ran = pull_with(&site, &directory, &["team/app:1.0"], "2m");
    assert_eq!(ran.code, Some(1), "{}", ran.text);
    let said = format!("not all referrers of {} ", image.manifest);
    assert!(ran.text.contains(&said), "{}", ran.text);
    let ran = pull_with(&site, &directory, &["team/app:1.0"], "20m");
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    assert!(blobs(&directory).contains(&sbom), "{}", ran.text);
}

#[test]
fn pull_works_beside_a_proxy_on_the_same_directory() {
    let site = Cached::start();
    let image = site
        .standin
        .put_image("team/app", "1.0", &[Layer::of_noise(1 << 20, 1)]);
    let ran = pull(&site, &site.scratch, &["team/app:1.0"]);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    site.all_down();
    let got = site.get("/v2/team/app/manifests/1.0");
    assert_eq!((got.status, got.body == image.bytes), (200, true));
    assert_eq!(
        site.get(&format!("/v2/team/app/blobs/{}", image.layers[0]))
            .status,
        200
    );
}

/// A site that prefetches, with a stand-in that has these images already.
fn prefetching(list: &str, further: &[(&str, &str)], put: impl FnOnce(&Cached)) -> Cached {
    let mut site = Cached::start();
    site.stop();
    put(&site);
    let settings = [&FAST[..], &[("PREFETCH", list)], further].concat();
    site.start_again_with(&settings);
    site
}

fn wait_whole(site: &Cached, image: &Image) {
    wait_until("the image is prefetched", PATIENCE, || {
        blobs(&site.scratch).is_superset(&digests_of(image))
    });
}

fn prefetch_status(site: &Cached) -> Value {
    let got = site.get("/status.json");
    serde_json::from_slice::<Value>(&got.body).unwrap()["prefetch"].take()
}

#[test]
fn images_are_kept_fresh_with_their_referrers() {
    let mut found = None;
    let site = prefetching("team/app:1.0,none/app:1", &[], |site| {
        let image = site
            .standin
            .put_image("team/app", "1.0", &[Layer::of_noise(1000, 1)]);
        let subject = &image.manifest;
        let kind = "application/vnd.example.signature";
        let signature = site.standin.attach("team/app", "sha256:", subject, kind);
        found = Some((image, signature));
    });
    let (image, signature) = found.unwrap();
    wait_whole(&site, &image);
    wait_whole(&site, &signature);
    let newer = site
        .standin
        .put_image("team/app", "1.0", &[Layer::of_noise(1000, 2)]);
    wait_whole(&site, &newer);
    wait_until("a round has ended", PATIENCE, || {
        prefetch_status(&site)["images"][0]["digest"] == newer.manifest
    });
    let status = prefetch_status(&site);
    assert_eq!(status["images"][0]["error"], Value::Null, "{status}");
    let error = status["images"][1]["error"].as_str().unwrap();
    assert!(error.contains("404"), "{status}");
    let metrics = site.get("/metrics").text();
    for line in [
        "prefetch_images{state=\"whole\"} 1",
        "prefetch_images{state=\"failed\"} 1",
    ] {
        assert!(
            metrics.contains(&format!("aws_ecr_proxy_{line}")),
            "{metrics}"
        );
    }
    site.all_down();
    let got = site.get("/v2/team/app/manifests/1.0");
    assert_eq!((got.status, got.body == newer.bytes), (200, true));
    site.proxy().wait_for_log("prefetch round ended");
}

#[test]
fn bug_a_round_had_no_number_of_failed_images_in_json() {
    let site = prefetching("team/app:none", &[("LOG_FORMAT", "json")], |_| {});
    let line = site.proxy().wait_for_log("prefetch round ended");
    let line = &line[line.find('{').expect("JSON")..];
    let line: Value = serde_json::from_str(line).expect("a whole line");
    assert_eq!(line["images_failed"], 1, "{line}");
}

#[test]
fn the_list_is_read_again_and_platforms_are_picked() {
    let lists = Scratch::new();
    let list = lists.path().join("list");
    fs::write(&list, "# images\nteam/app:1.0\n").unwrap();
    let mut images = Vec::new();
    let at = format!("@{}", list.display());
    let site = prefetching(&at, &[("PREFETCH_PLATFORMS", "linux/arm64")], |site| {
        images = site.standin.put_index("team/app", "1.0").1;
    });
    let has = |image: &Image| blobs(&site.scratch).is_superset(&digests_of(image));
    wait_until("one platform is here", PATIENCE, || {
        images.iter().filter(|i| has(i)).count() == 1
    });
    let other = site
        .standin
        .put_image("base", "2", &[Layer::of_noise(1000, 3)]);
    fs::write(&list, "base:2 # the other one").unwrap();
    wait_whole(&site, &other);
    fs::write(&list, "not//a name").unwrap();
    wait_until("the fault is told", PATIENCE, || {
        let error = prefetch_status(&site)["list_error"].clone();
        error
            .as_str()
            .is_some_and(|error| error.contains("not//a name"))
    });
    assert_eq!(images.iter().filter(|image| has(image)).count(), 1);
}

#[test]
fn bug_images_to_prefetch_were_ignored_where_there_is_no_cache() {
    let standin = Standin::start(Options::default());
    let settings = [("CACHE_DIR", "off"), ("PREFETCH", "team/app:1.0")];
    let proxy = Proxy::in_front_of(&standin, &settings);
    proxy.wait_for_log("WARN nothing is prefetched: there is no cache");
}

#[test]
fn bug_a_list_that_was_a_pipe_held_up_the_start() {
    let lists = Scratch::new();
    let list = lists.path().join("list");
    let made = Command::new("mkfifo").arg(&list).status();
    assert!(made.expect("mkfifo runs").success());
    let site = prefetching(&format!("@{}", list.display()), &[], |_| {});
    let told = |what: &str| {
        wait_until(what, PATIENCE, || {
            prefetch_status(&site)["list_error"]
                .as_str()
                .is_some_and(|error| error.contains(what))
        });
    };
    told("it is not a regular file");
    fs::remove_file(&list).unwrap();
    fs::write(&list, "#".repeat((1 << 20) + 1)).unwrap();
    told("it is larger than 1 MiB");
}

#[test]
fn bug_what_was_prefetched_was_there_under_no_cache_key() {
    let mut image = None;
    let site = prefetching("team/app:1.0", &[("CACHE_KEY", "$host$uri")], |site| {
        let layer = Layer::of_noise(1000, 1);
        image = Some(site.standin.put_image("team/app", "1.0", &[layer]));
    });
    let image = image.unwrap();
    wait_whole(&site, &image);
    site.all_down();
    let got = site.get("/v2/team/app/manifests/1.0");
    assert_eq!((got.status, got.body), (200, image.bytes));
}

#[test]
fn a_rate_holds_for_the_background_and_no_client_waits_for_it() {
    let size = 4 << 20;
    let mut found = None;
    let site = prefetching("team/app:1.0", &[("PREFETCH_RATE", "64k")], |site| {
        found = Some(
            site.standin
                .put_image("team/app", "1.0", &[Layer::of_noise(size, 1)]),
        );
    });
    let image = found.unwrap();
    let layer = &image.layers[0];
    wait_until("the download has begun", PATIENCE, || {
        site.partials().contains_key(layer)
    });
    let begun = Instant::now();
    // At the rate it would take 64 s.
    let got = site.get(&format!("/v2/team/app/blobs/{layer}"));
    assert_eq!((got.status, got.body.len() as u64), (200, size));
    assert!(
        begun.elapsed() < Duration::from_secs(40),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn bug_manifests_did_not_count_for_the_rate() {
    let begun = Instant::now();
    let mut found = None;
    let site = prefetching("team/app:1.0", &[("PREFETCH_RATE", "64k")], |site| {
        let config = site.standin.add_blob("team/app", b"{}");
        let document = json!({
            "schemaVersion": 2,
            "mediaType": standin::image::MANIFEST,
            "config": {"mediaType": "application/json", "digest": config, "size": 2},
            "layers": [],
            "annotations": {"filling": "x".repeat(256 << 10)},
        });
        let bytes = document.to_string().into_bytes();
        let kind = standin::image::MANIFEST;
        site.standin.add_manifest("team/app", "1.0", kind, &bytes);
        found = Some(config);
    });
    let config = found.unwrap();
    wait_until("the configuration is here", PATIENCE, || {
        blobs(&site.scratch).contains(&config)
    });
    // The manifest alone takes 4 s.
    assert!(begun.elapsed() >= Duration::from_secs(4));
}

#[test]
fn prefetch_waits_while_a_client_waits_for_a_blob() {
    let (list, scratch) = (Scratch::new(), Scratch::new());
    let path = list.path().join("list");
    fs::write(&path, "").unwrap();
    let at = format!("@{}", path.display());
    let settings = [FAST[0], FAST[1], ("PREFETCH", at.as_str())];
    let site = Cached::on(scratch, Options::default(), &settings);
    let image = site
        .standin
        .put_image("team/app", "1.0", &[Layer::of_noise(1000, 1)]);
    let digest = site.standin.add_blob_of("other", 1 << 20, 7);
    site.standin.fault(Match::s3(), Fault::StallAfter(1000));
    let running = site.begin(&format!("/v2/other/blobs/{digest}"), &[]);
    wait_until("the client's blob stalls", PATIENCE, || {
        site.standin.stalled() > 0
    });
    fs::write(&path, "team/app:1.0").unwrap();
    wait_until("the image has its turn", PATIENCE, || {
        prefetch_status(&site)["running"] == "team/app:1.0"
    });
    std::thread::sleep(Duration::from_millis(500));
    assert!(!blobs(&site.scratch).contains(&image.manifest));
    site.release();
    wait_whole(&site, &image);
    drop(running);
}

#[test]
#[expect(
    clippy::print_stdout,
    reason = "a failure is tried again with its seed"
)]
fn a_proxy_that_is_killed_while_it_prefetches_leaves_a_clean_cache() {
    const KILLS: usize = 50;
    let site = Cached::start();
    let registry = site.standin.registry_url().replace("http://", "");
    let names: Vec<String> = (0..6).map(|n| format!("team/app:{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        let (repository, tag) = name.split_once(':').unwrap();
        site.standin
            .put_image(repository, tag, &[Layer::of_noise(256 << 10, n as u64)]);
    }
    let list = names.join(",");
    let start = |place: &Place| {
        let mut command = Proxy::command();
        command
            .envs(site.standin.settings())
            .env("CACHE_DIR", place.path("cache"));
        command
            .env("PREFETCH", &list)
            .env("PREFETCH_INTERVAL", "1s");
        Proxy::start_command(command)
    };
    let seed = std::process::id().into();
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut place = Place::of(&registry);
    for kill in 0..KILLS {
        // Until all of it is there, which takes a few rounds that are killed.
        if kill % 5 == 0 {
            place = Place::of(&registry);
        }
        let proxy = start(&place);
        let asked = site.standin.requests().len();
        wait_until("a round has begun", PATIENCE, || {
            site.standin.requests().len() > asked
        });
        std::thread::sleep(Duration::from_millis(random.below(60)));
        // Dropping it kills it.
        drop(proxy);
        place.check_clean();
    }
    let proxy = start(&place);
    let whole = || {
        let got = Http::get_once(proxy.address(), "/metrics").text();
        got.contains("aws_ecr_proxy_prefetch_images{state=\"whole\"} 6")
    };
    wait_until("all images are whole", PATIENCE, whole);
    drop(proxy);
    place.check_whole();
}
