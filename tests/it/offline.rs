//! No way out, on purpose: `OFFLINE`, `only-if-cached`, and a site's proxy before a node's. Holds
//! `docs/offline.md` to the tests that it names.

use std::path::Path;
use std::process::Command;

use standin::{Dns, Image, Layer, Options};

use crate::protocol::tests;
use crate::security;
use crate::support::{Cached, Http, Proxy, Response, SOON, Scratch};
use crate::support::{error_of, listing, wait_until};

const TAG: &str = "/v2/team/app/manifests/1.0";
const TAGS: &str = "/v2/team/app/tags/list";
const OFFLINE: (&str, &str) = ("OFFLINE", "true");
const ONLY_IF_CACHED: (&str, &str) = ("Cache-Control", "max-stale, Only-If-Cached");
/// Claims of `docs/offline.md`; fewer would mean that the page was not read.
const CLAIMS_MIN: usize = 14;

/// A cache that holds an image, its tag list and the list of its referrers.
fn pulled(settings: &[(&str, &str)]) -> (Cached, Image) {
    let mut all = vec![("CACHE_TAG_TTL", "0s")];
    all.extend_from_slice(settings);
    let cached = Cached::on(Scratch::new(), Options::default(), &all);
    let layer = Layer::of_files(&[("hello", b"offline")]);
    let image = cached.standin.put_image("team/app", "1.0", &[layer]);
    for target in [TAG.to_owned(), TAGS.to_owned(), referrers(&image)] {
        assert_eq!(cached.get(&target).status, 200, "{target}");
    }
    for digest in image.layers.iter().chain([&image.config]) {
        assert_eq!(&cached.get(&blob(digest)).digest, digest);
        cached.wait_for_blob(digest);
    }
    (cached, image)
}

/// The same, restarted with `OFFLINE`; nothing that was asked before counts.
fn offline(settings: &[(&str, &str)]) -> (Cached, Image) {
    let (mut cached, image) = pulled(&[]);
    cached.stop();
    let mut all = vec![OFFLINE];
    all.extend_from_slice(settings);
    cached.start_again_with(&all);
    (cached, image)
}

fn blob(digest: &str) -> String {
    format!("/v2/team/app/blobs/{digest}")
}

fn manifest(digest: &str) -> String {
    format!("/v2/team/app/manifests/{digest}")
}

fn referrers(image: &Image) -> String {
    format!("/v2/team/app/referrers/{}", image.manifest)
}

fn x_cache(got: &Response) -> &str {
    got.header("X-Cache").unwrap_or_default()
}

/// All of the image, by GET, HEAD and range.
fn assert_pulls(cached: &Cached, image: &Image) {
    let got = cached.get(TAG);
    assert_eq!((got.status, x_cache(&got)), (200, "HIT"), "{}", got.text());
    assert_eq!(got.body, image.bytes);
    let age = got.header("Age").unwrap_or_default();
    assert!(age.parse::<u64>().is_ok(), "{age:?}");
    assert_eq!(got.header("Warning"), None);
    assert_eq!(cached.head(TAG).status, 200);
    assert_eq!(cached.get(&manifest(&image.manifest)).body, image.bytes);
    for digest in image.layers.iter().chain([&image.config]) {
        let got = cached.get(&blob(digest));
        assert_eq!((x_cache(&got), &got.digest), ("HIT", digest));
        assert_eq!(cached.head(&blob(digest)).status, 200);
        let part = cached.call("GET", &blob(digest), &[("Range", "bytes=1-3")]);
        assert_eq!((part.status, part.length), (206, 3));
    }
    let tags = cached.get(TAGS);
    assert_eq!(tags.text(), r#"{"name":"team/app","tags":["1.0"]}"#);
    assert!(
        tags.header("Warning")
            .is_some_and(|warning| warning.starts_with("299 - \"offline: OFFLINE=true"))
    );
    assert_eq!(cached.get("/v2/_catalog").status, 200);
    assert_eq!(cached.get(&referrers(image)).status, 200);
}

#[test]
fn every_claim_is_held_by_tests_that_are_there() {
    let path = format!("{}/docs/offline.md", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(path).expect("docs/offline.md");
    let faults = security::faults(&page, &tests(), CLAIMS_MIN);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Reads and pushes on every route, of what is there and what is not, in two registries.
fn ask_on_all_routes(cached: &Cached) {
    let strange = format!("sha256:{}", "0".repeat(64));
    for repository in ["team/app", "team/other", "registry.example/team/app"] {
        for target in [
            "manifests/2.0".to_owned(),
            format!("manifests/{strange}"),
            format!("blobs/{strange}"),
            format!("referrers/{strange}"),
            "tags/list?n=1".to_owned(),
            "tags/list?n=1&last=0".to_owned(),
        ] {
            for method in ["GET", "HEAD"] {
                let target = format!("/v2/{repository}/{target}");
                let got = cached.call(method, &target, &[]);
                assert!(
                    matches!(got.status, 200 | 404 | 504),
                    "{method} {target}: {}",
                    got.status
                );
            }
        }
        for (method, target) in [
            ("POST", "blobs/uploads/"),
            ("PUT", "manifests/1.0"),
            ("PATCH", "blobs/uploads/1"),
            ("DELETE", "manifests/1.0"),
        ] {
            let got = cached.call(method, &format!("/v2/{repository}/{target}"), &[]);
            assert_eq!(got.status, 405, "{method} {target}");
        }
    }
    assert_eq!(cached.get("/v2/registry.example/_catalog").status, 504);
    for page in ["/", "/status.json?images=0", "/metrics", "/readyz", "/v2/"] {
        assert_eq!(cached.get(page).status, 200, "{page}");
    }
}

#[test]
fn nothing_goes_out_on_any_route() {
    let (mut cached, image) = pulled(&[]);
    cached.stop();
    let (dns, folder) = (Dns::start(), Scratch::new());
    let ran = folder.path().join("ran");
    let config = folder.path().join("config");
    let process = format!(
        "[default]\ncredential_process = /usr/bin/touch {}\n",
        ran.display()
    );
    std::fs::write(&config, process).expect("a config file");
    let before = cached.standin.accepted();
    let registries = format!("{},https://registry.example", cached.standin.registry_url());
    let settings = cached.standin.settings();
    let api = settings
        .iter()
        .find(|(name, _)| *name == "AWS_ENDPOINT_URL");
    cached.start_again_with(&[
        OFFLINE,
        ("ECR", &registries),
        ("RESOLVER", &dns.address()),
        ("HTTPS_PROXY", "http://proxy.example:3128"),
        ("AWS_CONFIG_FILE", config.to_str().expect("a path")),
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_EC2_METADATA_DISABLED", "false"),
        (
            "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            &api.expect("an address").1,
        ),
        ("FILL_REFERRERS", "true"),
    ]);
    assert_pulls(&cached, &image);
    ask_on_all_routes(&cached);
    let threads = cached.proxy().thread_names();
    for name in ["token", "resolve", "referrers"] {
        assert!(!threads.iter().any(|thread| thread == name), "{threads:?}");
    }
    cached.stop();
    assert_eq!(cached.standin.accepted(), before);
    assert_eq!(dns.queries(), []);
    assert!(!ran.exists(), "a credential_process ran");
}

#[test]
fn what_was_pulled_is_served_after_a_restart() {
    let (mut cached, image) = offline(&[]);
    cached.all_down();
    assert_pulls(&cached, &image);
    cached.kill();
    cached.start_again_with(&[OFFLINE]);
    assert_pulls(&cached, &image);
}

#[test]
fn credentials_and_the_registry_are_not_needed() {
    let (mut cached, image) = offline(&[]);
    let gone = [
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_ENDPOINT_URL", ""),
        ("ECR", ""),
    ];
    let broken = [
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_PROFILE", "absent"),
        ("AWS_CONFIG_FILE", "/nonexistent/config"),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent/token"),
    ];
    let chained = [("UPSTREAM_AUTH", "none"), ("ECR", "")];
    for settings in [&gone[..], &broken, &chained] {
        cached.stop();
        let all: Vec<_> = [OFFLINE].iter().chain(settings).copied().collect();
        cached.start_again_with(&all);
        assert_pulls(&cached, &image);
        assert_eq!(cached.get("/readyz").status, 200);
    }
}

#[test]
fn links_that_a_power_cut_took_cost_nothing() {
    let (mut cached, image) = pulled(&[]);
    cached.stop();
    let host = cached.standin.registry_url();
    let host = host.trim_start_matches("http://");
    let links = cached.path(&format!("repos/{host}/team/app/_links"));
    // Those of blobs are written without fsync; that of the manifest names its type.
    let entries = std::fs::read_dir(&links).expect("links");
    let paths = entries.map(|entry| entry.expect("a link").path());
    let (of_manifests, of_blobs): (Vec<_>, Vec<_>) = paths.partition(|path| {
        let text = std::fs::read_to_string(path).expect("a link");
        text.contains('/')
    });
    assert_eq!((of_manifests.len(), of_blobs.len()), (1, 2));
    for settings in [&[OFFLINE][..], &[("CACHE_TAG_TTL", "forever")]] {
        for link in &of_blobs {
            std::fs::remove_file(link).expect("a link");
        }
        cached.start_again_with(settings);
        cached.all_down();
        for digest in image.layers.iter().chain([&image.config]) {
            let got = cached.get(&blob(digest));
            assert_eq!((got.status, &got.digest), (200, digest), "{}", got.text());
        }
        // What no manifest of the repository names is no more open than before.
        let other = format!("/v2/team/other/blobs/{}", image.config);
        assert!(matches!(cached.get(&other).status, 404 | 503 | 504));
        cached.stop();
        // Read-only, as OFFLINE is, it writes none.
        of_blobs
            .iter()
            .for_each(|link| std::fs::write(link, "blob\n").expect("a link"));
    }
}

#[test]
fn a_wrong_clock_changes_nothing() {
    let (mut cached, image) = offline(&[]);
    // A clock that is wrong by years is one by which the tag was confirmed years ago, or in years.
    let host = cached.standin.registry_url();
    let host = host.trim_start_matches("http://");
    let tag = cached.path(&format!("repos/{host}/team/app/_tags/1.0"));
    let text = std::fs::read_to_string(&tag).expect("the tag's file");
    let at = text.find("\"confirmed\":").expect("a time") + "\"confirmed\":".len();
    let digits = text[at..].bytes().take_while(u8::is_ascii_digit).count();
    for millis in ["0", "4102444800000", "18446744073709551615"] {
        let changed = format!("{}{millis}{}", &text[..at], &text[at + digits..]);
        std::fs::write(&tag, changed).expect("a tag's file");
        assert_pulls(&cached, &image);
        cached.stop();
        cached.start_again_with(&[OFFLINE]);
        assert_pulls(&cached, &image);
    }
}

/// Changes who may write a directory and all below it.
pub(crate) fn set_writable(folder: &Path, writable: bool) {
    let mode = if writable { "u+w" } else { "a-w" };
    let mut command = Command::new("chmod");
    let done = command.args(["-R", mode]).arg(folder).status();
    assert!(done.expect("chmod runs").success());
}

/// The proxy without root's right to write where nobody may.
pub(crate) fn without_rights() -> Command {
    if rustix::process::geteuid().is_root() {
        return Proxy::command_through("setpriv", &["--bounding-set", "-dac_override"]);
    }
    Proxy::command()
}

/// The proxy where `CACHE_DIR` is a read-only mount.
fn with_read_only_mount() -> Command {
    let script = "mount --bind \"$CACHE_DIR\" \"$CACHE_DIR\" && \
                  mount -o remount,bind,ro \"$CACHE_DIR\" && exec \"$0\" \"$@\"";
    Proxy::command_through(
        "unshare",
        &["--map-root-user", "--mount", "/bin/sh", "-ec", script],
    )
}

#[test]
fn a_read_only_directory_serves() {
    let (mut cached, image) = offline(&[]);
    cached.stop();
    cached.start_again_through(with_read_only_mount(), &[OFFLINE]);
    assert_pulls(&cached, &image);
    assert!(
        !cached.proxy().log().contains(" WARN "),
        "{}",
        cached.proxy().log()
    );
    cached.stop();
    set_writable(cached.scratch.path(), false);
    let before = listing(cached.scratch.path());
    cached.start_again_through(without_rights(), &[OFFLINE]);
    assert_pulls(&cached, &image);
    let log = cached.proxy().log();
    assert!(!log.contains(" WARN "), "{log}");
    assert!(log.contains("read_only=true"), "{log}");
    cached.stop();
    assert_eq!(listing(cached.scratch.path()), before);
    set_writable(cached.scratch.path(), true);
}

#[test]
fn a_read_only_directory_serves_without_offline() {
    let (mut cached, image) = pulled(&[]);
    let other = cached.standin.put_image("team/app", "2.0", &[]);
    cached.stop();
    set_writable(cached.scratch.path(), false);
    let before = listing(cached.scratch.path());
    cached.start_again_through(without_rights(), &[]);
    for _ in 0..2 {
        assert_eq!(x_cache(&cached.get(TAG)), "REVALIDATED");
        assert_eq!(x_cache(&cached.get(&blob(&image.config))), "HIT");
        let got = cached.get(&manifest("2.0"));
        assert_eq!((got.status, &got.body), (200, &other.bytes));
        assert_eq!(cached.get(&blob(&other.config)).digest, other.config);
    }
    cached.all_down();
    assert_eq!(x_cache(&cached.get(TAG)), "STALE");
    let log = cached.proxy().log();
    assert_eq!(log.matches("cannot be written").count(), 1, "{log}");
    cached.stop();
    assert_eq!(listing(cached.scratch.path()), before);
    set_writable(cached.scratch.path(), true);
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    let (cached, _) = offline(&[]);
    let strange = format!("sha256:{}", "0".repeat(64));
    let host = cached.standin.registry_url();
    let app = format!("{}/team/app", host.trim_start_matches("http://"));
    for (target, code, image) in [
        (manifest("2.0"), "MANIFEST_UNKNOWN", format!("{app}:2.0")),
        (
            manifest(&strange),
            "MANIFEST_UNKNOWN",
            format!("{app}@{strange}"),
        ),
        (blob(&strange), "BLOB_UNKNOWN", format!("{app}@{strange}")),
    ] {
        let got = cached.get(&target);
        let (found, text) = error_of(&got);
        assert_eq!((got.status, found.as_str()), (404, code), "{text}");
        assert_eq!(x_cache(&got), "MISS");
        let command = format!("aws-ecr-proxy pull {image},");
        assert!(text.contains(&command), "{text}");
        assert!(
            text.contains("OFFLINE=true") && text.contains("export"),
            "{text}"
        );
        assert_eq!(cached.head(&target).status, 404);
        let ranged = cached.call("GET", &target, &[("Range", "bytes=0-1")]);
        assert_eq!(ranged.status, 404);
    }
    let types = [("Accept", "application/vnd.example+json")];
    let got = cached.call("GET", TAG, &types);
    assert_eq!(got.status, 404);
    assert!(error_of(&got).1.contains("not in a type"), "{}", got.text());
    let got = cached.get("/v2/team/other/tags/list");
    assert_eq!(got.status, 504);
    let text = error_of(&got).1;
    assert!(text.contains("not in the cache; OFFLINE=true"), "{text}");
}

#[test]
fn a_missing_platform_is_named() {
    let mut cached = Cached::start();
    let (index, images) = cached.standin.put_index("team/app", "1.0");
    assert_eq!(cached.get(TAG).status, 200);
    let [amd64, arm64] = &images[..] else {
        panic!("two images");
    };
    assert_eq!(cached.get(&manifest(&amd64.manifest)).status, 200);
    cached.stop();
    cached.start_again_with(&[OFFLINE]);
    assert_eq!(cached.get(&manifest(&index)).status, 200);
    assert_eq!(cached.get(&manifest(&amd64.manifest)).status, 200);
    let got = cached.get(&manifest(&arm64.manifest));
    let text = error_of(&got).1;
    assert_eq!(got.status, 404, "{text}");
    let host = cached.standin.registry_url();
    let app = format!("{}/team/app:1.0", host.trim_start_matches("http://"));
    assert!(text.contains(&arm64.manifest), "{text}");
    assert!(text.contains(&format!("linux/arm64 of {app}")), "{text}");
    let command = format!("aws-ecr-proxy pull --platform linux/arm64 {app},");
    assert!(text.contains(&command), "{text}");
    // A blob of the platform that is here.
    let got = cached.get(&blob(&amd64.config));
    assert!(
        error_of(&got).1.contains("linux/amd64 of"),
        "{}",
        got.text()
    );
}

#[test]
fn pushes_are_refused() {
    let (cached, image) = offline(&[]);
    for (method, target) in [
        ("PUT", TAG.to_owned()),
        ("DELETE", TAG.to_owned()),
        ("DELETE", blob(&image.config)),
        ("POST", "/v2/team/app/blobs/uploads/".to_owned()),
        ("PATCH", "/v2/team/app/blobs/uploads/1".to_owned()),
        ("PUT", "/v2/team/app/blobs/uploads/1".to_owned()),
    ] {
        let got = cached.call(method, &target, &[]);
        let (code, text) = error_of(&got);
        assert_eq!((got.status, code.as_str()), (405, "UNSUPPORTED"));
        assert!(text.contains("OFFLINE=true"), "{text}");
    }
    assert_pulls(&cached, &image);
}

#[test]
fn everything_says_that_it_is_offline() {
    let (cached, _) = offline(&[]);
    let ready = cached.get("/readyz");
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains("offline"), "{}", ready.text());
    let status = cached.get("/status.json").text();
    let status: serde_json::Value = serde_json::from_str(&status).expect("a document");
    assert_eq!(status["offline"], true);
    assert_eq!(status["state"], "cache_only");
    assert_eq!(status["sentence"], "Offline: serving the cache alone.");
    assert!(status["identity"].is_null());
    let metrics = cached.get("/metrics").text();
    assert!(metrics.contains("\naws_ecr_proxy_offline 1\n"));
    assert!(metrics.contains("\naws_ecr_proxy_ready 1\n"));
    wait_until("the image is counted", SOON, || {
        let metrics = cached.get("/metrics").text();
        metrics.contains("\naws_ecr_proxy_cache_images 1\n")
    });
    cached.proxy().wait_for_log("offline=true");
    let run = |command: &str, directory: &Path| {
        let mut ask = Proxy::command();
        ask.arg(command).env(OFFLINE.0, OFFLINE.1);
        let output = ask.env("CACHE_DIR", directory).output();
        let output = output.expect("the binary runs");
        let text = String::from_utf8(output.stdout).expect("text");
        (output.status.code(), text)
    };
    let (code, out) = run("check", cached.scratch.path());
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("can be read"), "{out}");
    assert_eq!(
        out.matches("OFFLINE=true: nothing is asked").count(),
        5,
        "{out}"
    );
    let (code, out) = run("settings", cached.scratch.path());
    assert_eq!(code, Some(0));
    let mut lines = out.lines();
    assert!(lines.any(|line| line.starts_with("OFFLINE ") && line.contains("true")));
    let (code, out) = run("check", Scratch::new().path());
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("holds no cache"), "{out}");
}

#[test]
fn without_a_cache_there_is_no_start() {
    for (directory, code, told) in [
        ("off", 64, "OFFLINE=true: expected CACHE_DIR"),
        ("/proc/nowhere", 1, "cannot be used"),
    ] {
        let mut command = Proxy::command();
        command
            .env(OFFLINE.0, OFFLINE.1)
            .env("CACHE_DIR", directory);
        let mut proxy = Proxy::spawn(command);
        assert_eq!(proxy.wait_exit().code(), Some(code), "{directory}");
        assert!(proxy.log().contains(told), "{}", proxy.log());
    }
    // An empty one waits for images, which another process may bring.
    let scratch = Scratch::new();
    let directory = scratch.path().to_str().expect("a path");
    let everywhere = ("LISTEN_HOST", "0.0.0.0");
    let proxy = Proxy::start(&[OFFLINE, ("CACHE_DIR", directory), everywhere]);
    let ready = || Http::get_once(proxy.address(), "/readyz");
    assert_eq!(ready().status, 503);
    assert!(ready().text().contains("the cache is empty"));
    let (mut other, image) = pulled(&[]);
    other.stop();
    let mut copy = Command::new("cp");
    copy.arg("-r")
        .args([other.path("repos"), other.path("blobs")]);
    assert!(
        copy.arg(scratch.path())
            .status()
            .expect("cp runs")
            .success()
    );
    // Not even the registry's name is needed, when there is only one.
    std::fs::remove_file(scratch.path().join("repos/.registry")).expect("a file");
    assert_eq!(ready().status, 200);
    let got = Http::get_once(proxy.address(), TAG);
    assert_eq!((got.status, got.body), (200, image.bytes));
    assert!(!proxy.log().contains("AWS rights"), "it has none offline");
}

#[test]
fn only_if_cached_never_asks() {
    let (cached, image) = pulled(&[]);
    // The last that AWS is asked for.
    cached.proxy().wait_for_log("identity arn");
    let before = cached.standin.accepted();
    let asked = cached.standin.requests().len();
    let ask = |method: &str, target: &str| cached.call(method, target, &[ONLY_IF_CACHED]);
    let got = ask("GET", TAG);
    assert_eq!((got.status, x_cache(&got)), (200, "STALE"));
    assert_eq!(got.body, image.bytes);
    assert!(got.header("Age").is_some());
    assert_eq!(ask("HEAD", TAG).status, 200);
    assert_eq!(ask("GET", &blob(&image.config)).digest, image.config);
    let range = [ONLY_IF_CACHED, ("Range", "bytes=0-0")];
    assert_eq!(cached.call("GET", &blob(&image.config), &range).status, 206);
    assert_eq!(ask("GET", TAGS).status, 200);
    assert_eq!(ask("GET", &referrers(&image)).status, 200);
    let strange = format!("sha256:{}", "0".repeat(64));
    for target in [
        manifest("2.0"),
        manifest(&strange),
        blob(&strange),
        "/v2/team/other/tags/list".to_owned(),
        format!("/v2/team/app/referrers/{strange}"),
    ] {
        for method in ["GET", "HEAD"] {
            assert_eq!(ask(method, &target).status, 504, "{method} {target}");
        }
        let (code, text) = error_of(&ask("GET", &target));
        assert_eq!(code, "UNAVAILABLE");
        assert!(text.contains("only-if-cached"), "{text}");
    }
    assert!(error_of(&ask("GET", &blob(&strange))).1.contains(&strange));
    assert_eq!(cached.standin.requests().len(), asked);
    assert_eq!(cached.standin.accepted(), before);
    // OFFLINE does not make a 404 of it.
    let (cached, _) = offline(&[]);
    let got = cached.call("GET", &manifest("2.0"), &[ONLY_IF_CACHED]);
    assert_eq!(got.status, 504);
}

#[test]
fn only_if_cached_keeps_nobody_from_upstream() {
    let (cached, _) = pulled(&[]);
    let new = cached.standin.put_image("team/app", "2.0", &[]);
    let address = cached.address();
    std::thread::scope(|scope| {
        for number in 0..20 {
            let alone = number % 2 == 0;
            scope.spawn(move || {
                let fields: &[_] = if alone { &[ONLY_IF_CACHED] } else { &[] };
                let got = Http::once(address, "GET", &manifest("2.0"), fields, b"");
                assert!(
                    got.status == 200 || (alone && got.status == 504),
                    "{}",
                    got.status
                );
            });
        }
    });
    assert_eq!(cached.get(&manifest("2.0")).body, new.bytes);
    // A push is no question to a cache.
    let bytes = &new.bytes;
    let put = Http::once(address, "PUT", &manifest("3.0"), &[ONLY_IF_CACHED], bytes);
    assert_eq!(put.status, 201, "{}", put.text());
}

/// A node's proxy behind a site's, with a cache of its own.
struct Node {
    proxy: Proxy,
    _scratch: Scratch,
}

impl Node {
    fn behind(site: &Cached) -> Self {
        let scratch = Scratch::new();
        let proxy = Proxy::start(&[
            ("ECR", &format!("http://{}", site.address())),
            ("UPSTREAM_AUTH", "none"),
            ("CACHE_TAG_TTL", "0s"),
            ("CACHE_DIR", scratch.path().to_str().expect("a path")),
        ]);
        Self {
            proxy,
            _scratch: scratch,
        }
    }

    fn ask(&self, target: &str, fields: &[(&str, &str)]) -> Response {
        Http::once(self.proxy.address(), "GET", target, fields, b"")
    }
}

/// The site restarts at the same address.
fn restart(site: &mut Cached, settings: &[(&str, &str)]) {
    let port = site.address().port().to_string();
    site.stop();
    let mut all = vec![("LISTEN_PORT", port.as_str())];
    all.extend_from_slice(settings);
    site.start_again_with(&all);
}

#[test]
fn a_node_serves_behind_a_site_that_is_offline_or_gone() {
    let (mut site, image) = pulled(&[]);
    let node = Node::behind(&site);
    let pull = || {
        let got = node.ask(TAG, &[]);
        assert_eq!(
            (got.status, &got.body),
            (200, &image.bytes),
            "{}",
            got.text()
        );
        assert_eq!(node.ask(&blob(&image.config), &[]).digest, image.config);
        assert_eq!(node.ask(TAGS, &[]).status, 200);
        x_cache(&got).to_owned()
    };
    pull();
    restart(&mut site, &[OFFLINE]);
    assert_eq!(pull(), "REVALIDATED");
    site.stop();
    assert_eq!(pull(), "STALE");
}

#[test]
fn a_404_of_an_offline_site_is_not_remembered() {
    let (mut site, image) = pulled(&[]);
    let node = Node::behind(&site);
    assert_eq!(node.ask(TAG, &[]).status, 200);
    // The site loses what the node has.
    site.stop();
    std::fs::remove_dir_all(site.path("repos")).expect("the site's names");
    let port = node_port(&node);
    site.start_again_with(&[OFFLINE, ("LISTEN_PORT", &port)]);
    let got = node.ask(TAG, &[]);
    assert_eq!(
        (got.status, x_cache(&got)),
        (200, "STALE"),
        "{}",
        got.text()
    );
    assert_eq!(got.body, image.bytes);
    for target in [manifest("2.0"), blob(&image.config)] {
        let got = node.ask(&target, &[]);
        let (_, text) = error_of(&got);
        assert_eq!(got.status, 404, "{text}");
        assert!(text.contains("OFFLINE=true"), "{text}");
    }
    // Back online, it is asked again at once.
    site.standin.put_image("team/app", "2.0", &[]);
    restart(&mut site, &[]);
    for target in [manifest("2.0"), blob(&image.config)] {
        assert_eq!(node.ask(&target, &[]).status, 200, "{target}");
    }
}

/// The port of the site that a node asks.
fn node_port(node: &Node) -> String {
    let line = node.proxy.wait_for_log("registry=http://");
    let (_, rest) = line
        .split_once("registry=http://127.0.0.1:")
        .expect("a port");
    rest.chars().take_while(char::is_ascii_digit).collect()
}

#[test]
fn a_node_does_not_pass_only_if_cached_on() {
    let (site, image) = pulled(&[]);
    let node = Node::behind(&site);
    let lines = || site.proxy().log().matches("method=GET").count();
    let before = lines();
    let got = node.ask(TAG, &[ONLY_IF_CACHED]);
    assert_eq!(got.status, 504, "{}", got.text());
    assert_eq!(node.ask(TAG, &[]).body, image.bytes);
    assert!(lines() > before);
    let before = lines();
    assert_eq!(x_cache(&node.ask(TAG, &[ONLY_IF_CACHED])), "STALE");
    assert_eq!(lines(), before);
}
