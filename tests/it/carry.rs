//! Images carried to a place without a network: `export`, `import`, and what comes of archives that
//! are damaged or hostile.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use serde_json::{Value, json};
use standin::image::INDEX;
use standin::{Layer, digest};

use crate::offline::{set_writable, without_rights};
use crate::support::{Cached, Http, Proxy, Scratch};

/// A command's end, and what it wrote.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) text: String,
}

/// Runs a command with these settings alone.
pub(crate) fn run(arguments: &[&str], settings: &[(&str, &str)]) -> Ran {
    let mut command = Proxy::command();
    let output = command
        .args(arguments)
        .envs(settings.iter().copied())
        .output();
    let output = output.expect("the binary runs");
    let text = [output.stdout, output.stderr].concat();
    Ran {
        code: output.status.code(),
        text: String::from_utf8(text).expect("text"),
    }
}

/// A place without a network: a directory for its cache.
pub(crate) struct Place {
    scratch: Scratch,
    registry: String,
}

impl Place {
    pub(crate) fn of(registry: &str) -> Self {
        Self {
            scratch: Scratch::new(),
            registry: registry.to_owned(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn settings(&self) -> [(&'static str, String); 3] {
        [
            ("CACHE_DIR", self.path("cache").display().to_string()),
            ("ECR", format!("http://{}", self.registry)),
            ("UPSTREAM_AUTH", "none".to_owned()),
        ]
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        let settings = self.settings();
        let settings: Vec<_> = settings
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        run(arguments, &settings)
    }

    pub(crate) fn import(&self, from: &Path) -> Ran {
        self.run(&["import", from.to_str().expect("UTF-8")])
    }

    /// Starts its proxy; nobody answers at the registry's address.
    fn serve(&self) -> Proxy {
        let mut command = Proxy::command();
        command.envs(self.settings());
        Proxy::start_command(command)
    }

    /// Every file of the cache, with its content.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let (mut found, mut open) = (BTreeMap::new(), vec![self.path("cache")]);
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                match path.is_dir() {
                    true => open.push(path),
                    false => drop(found.insert(path.clone(), fs::read(path).expect("a file"))),
                }
            }
        }
        found
    }

    /// Panics when a blob is not its name.
    pub(crate) fn check_clean(&self) {
        let blobs = self.path("cache/blobs/sha256");
        for entry in fs::read_dir(&blobs).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_str().expect("hex");
            // A start makes and removes an empty file in each folder.
            if name == "temp-probe" {
                continue;
            }
            let content = fs::read(&path).expect("a blob");
            assert_eq!(digest(&content), format!("sha256:{name}"));
        }
    }

    /// Panics when a blob is not its name, or a tag lacks a blob.
    pub(crate) fn check_whole(&self) {
        self.check_clean();
        for (path, content) in self.files() {
            if path.components().any(|part| part.as_os_str() == "_tags") {
                let tag: Value = serde_json::from_slice(&content).expect("a tag's file");
                self.check_closure(tag["entries"][0]["digest"].as_str().expect("a digest"));
            }
        }
    }

    fn check_closure(&self, manifest: &str) {
        let path = self.path("cache/blobs").join(manifest.replace(':', "/"));
        let content = fs::read(&path).unwrap_or_else(|error| panic!("{manifest}: {error}"));
        let document: Value = serde_json::from_slice(&content).expect("a manifest");
        for child in document["manifests"].as_array().into_iter().flatten() {
            self.check_closure(child["digest"].as_str().expect("a digest"));
        }
        let layers = document["layers"].as_array().into_iter().flatten();
        for blob in layers.chain(document.get("config")) {
            let digest = blob["digest"].as_str().expect("a digest");
            let path = self.path("cache/blobs").join(digest.replace(':', "/"));
            assert!(path.exists(), "{manifest} lacks {digest}");
        }
    }
}

/// A site whose cache has an image for two platforms, with a signature that refers to it and one
/// under cosign's tag.
struct Site {
    cached: Cached,
    registry: String,
    root: String,
}

impl Site {
    fn new() -> Self {
        let cached = Cached::with(&[("FILL_REFERRERS", "true"), ("CACHE_TAG_TTL", "0s")]);
        let (root, _) = cached.standin.put_index("team/app", "1.0");
        let kind = "application/vnd.example.signature";
        cached.standin.attach("team/app", "sha256:", &root, kind);
        let tag = format!("{}.sig", root.replace(':', "-"));
        cached.standin.attach("team/app", &tag, &root, kind);
        let registry = cached.standin.registry_url().replace("http://", "");
        let site = Self {
            cached,
            registry,
            root,
        };
        site.pull("1.0");
        for target in [
            format!("referrers/{}", site.root),
            format!("manifests/{tag}"),
        ] {
            site.pull_all(&format!("/v2/team/app/{target}"));
        }
        site
    }

    fn pull(&self, tag: &str) {
        self.pull_all(&format!("/v2/team/app/manifests/{tag}"));
    }

    /// Pulls a manifest or list, and all that it names.
    fn pull_all(&self, target: &str) {
        let got = self.cached.get(target);
        assert_eq!(got.status, 200, "{target}: {}", got.text());
        let document: Value = serde_json::from_slice(&got.body).expect("a manifest");
        for child in document["manifests"].as_array().into_iter().flatten() {
            let digest = child["digest"].as_str().expect("a digest");
            self.pull_all(&format!("/v2/team/app/manifests/{digest}"));
        }
        let layers = document["layers"].as_array().into_iter().flatten();
        for blob in layers.chain(document.get("config")) {
            let digest = blob["digest"].as_str().expect("a digest");
            assert_eq!(
                self.cached
                    .get(&format!("/v2/team/app/blobs/{digest}"))
                    .status,
                200
            );
            self.cached.wait_for_blob(digest);
        }
    }

    fn image(&self, tag: &str) -> String {
        format!("{}/team/app:{tag}", self.registry)
    }

    /// Exports with the proxy stopped.
    fn export(&mut self, to: &Path, tags: &[&str], flags: &[&str]) -> Ran {
        if self.cached.is_running() {
            self.cached.stop();
        }
        let images: Vec<String> = tags.iter().map(|tag| self.image(tag)).collect();
        let mut arguments = vec!["export", "--to", to.to_str().expect("UTF-8")];
        arguments.extend(images.iter().map(String::as_str));
        arguments.extend(flags);
        let cache = self.cached.scratch.path().display().to_string();
        run(&arguments, &[("CACHE_DIR", &cache)])
    }
}

#[test]
fn bug_an_imported_image_was_there_under_no_cache_key() {
    let mut site = Site::new();
    let place = Place::of(&site.registry);
    let (first, second) = (place.path("first.tar"), place.path("second.tar"));
    assert_eq!(site.export(&first, &["1.0"], &[]).code, Some(0));
    site.cached.start_again();
    let (newer, _) = site.cached.standin.put_index("team/app", "1.0");
    site.pull("1.0");
    assert_eq!(site.export(&second, &["1.0"], &[]).code, Some(0));
    let serve = || {
        let mut command = Proxy::command();
        let key = ("CACHE_KEY", "$scheme$proxy_host$uri$http_x_team");
        command.envs(place.settings()).envs([key]);
        Proxy::start_command(command)
    };
    let ask = |proxy: &Proxy, team: &str| {
        let fields = [("X-Team", team), ("Accept", "*/*")];
        let target = "/v2/team/app/manifests/1.0";
        Http::once(proxy.address(), "GET", target, &fields, b"").digest
    };
    let proxy = serve();
    for (from, digest) in [(&first, &site.root), (&second, &newer)] {
        assert_eq!(place.import(from).code, Some(0));
        for team in ["one", "two"] {
            assert_eq!(ask(&proxy, team), *digest);
        }
    }
}

#[test]
fn a_site_without_a_network_gets_an_image_its_signatures_and_a_delta() {
    let mut site = Site::new();
    let place = Place::of(&site.registry);
    let (first, delta) = (place.path("first.tar"), place.path("delta.tar"));
    let ran = site.export(&first, &["1.0"], &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    assert!(ran.text.contains("blobs and manifests"), "{}", ran.text);

    site.cached.start_again();
    let (newer, _) = site.cached.standin.put_index("team/app", "2.0");
    site.pull("2.0");
    let since = first.to_str().unwrap();
    let ran = site.export(&delta, &["2.0"], &["--since", since]);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    site.cached.all_down();

    let ran = place.import(&first);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    let line = format!("{}: complete\n", site.image("1.0"));
    assert!(ran.text.contains(&line), "{}", ran.text);
    let ran = place.import(&delta);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    place.check_whole();

    let proxy = place.serve();
    let get = |target: &str| Http::get_once(proxy.address(), target);
    for (tag, root) in [("1.0", &site.root), ("2.0", &newer)] {
        let got = get(&format!("/v2/team/app/manifests/{tag}"));
        assert_eq!(
            (got.status, got.header("Content-Type")),
            (200, Some(INDEX)),
            "{}",
            got.text()
        );
        assert_eq!(&digest(&got.body), root);
        let index: Value = serde_json::from_slice(&got.body).unwrap();
        for child in index["manifests"].as_array().unwrap() {
            let child = child["digest"].as_str().unwrap();
            let manifest = get(&format!("/v2/team/app/manifests/{child}"));
            let manifest: Value = serde_json::from_slice(&manifest.body).unwrap();
            let layer = manifest["layers"][0]["digest"].as_str().unwrap();
            let blob = get(&format!("/v2/team/app/blobs/{layer}"));
            assert_eq!(digest(&blob.body), layer);
        }
    }
    let referrers = get(&format!("/v2/team/app/referrers/{}", site.root));
    let referrers: Value = serde_json::from_slice(&referrers.body).unwrap();
    assert!(!referrers["manifests"].as_array().unwrap().is_empty());
    let signature = format!("/v2/team/app/manifests/{}.sig", site.root.replace(':', "-"));
    assert_eq!(get(&signature).status, 200);
}

#[test]
fn one_platform_is_carried_and_said_to_be_one() {
    let mut site = Site::new();
    let place = Place::of(&site.registry);
    let to = place.path("layout");
    let ran = site.export(&to, &["1.0"], &["--platform", "linux/arm64"]);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    let ran = place.import(&to);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    let line = format!(
        "{}: without linux/amd64, which the layout lacks\n",
        site.image("1.0")
    );
    assert!(ran.text.contains(&line), "{}", ran.text);
    // The base of a delta is left alone, and so is a directory that holds something.
    let base = to.to_str().unwrap();
    let ran = site.export(&to, &["1.0"], &["--since", base]);
    assert_eq!(ran.code, Some(64));
    assert!(ran.text.contains("would be lost"), "{}", ran.text);
    let ran = site.export(&to, &["1.0"], &[]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.text.contains("is not empty"), "{}", ran.text);
    let ran = site.export(&place.path("x"), &["1.0"], &["--platform", "amd64"]);
    assert_eq!(ran.code, Some(64));
    assert!(
        ran.text
            .contains("--platform=amd64: \"amd64\": expected `all`"),
        "{}",
        ran.text
    );
}

#[test]
fn an_image_that_is_not_whole_is_not_exported() {
    let site = Cached::start();
    let image = site
        .standin
        .put_image("app", "1", &[Layer::of_noise(1000, 1)]);
    assert_eq!(site.get("/v2/app/manifests/1").status, 200);
    let mut site = Site {
        registry: site.standin.registry_url().replace("http://", ""),
        cached: site,
        root: image.manifest,
    };
    let place = Place::of(&site.registry);
    let to = place.path("x.tar");
    site.cached.stop();
    let cache = site.cached.scratch.path().display().to_string();
    let name = format!("{}/app:1", site.registry);
    let arguments = ["export", &name, "--to", to.to_str().unwrap()];
    let ran = run(&arguments, &[("CACHE_DIR", &cache)]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.text.contains(&image.layers[0]), "{}", ran.text);
    assert!(
        ran.text.contains(&format!("aws-ecr-proxy pull {name}")),
        "{}",
        ran.text
    );
    assert_eq!(fs::read_dir(place.scratch.path()).unwrap().count(), 0);
    let ran = run(&["export", &name], &[("CACHE_DIR", &cache)]);
    assert_eq!(
        (ran.code, ran.text.contains("expected --to")),
        (Some(64), true),
        "{}",
        ran.text
    );
    let ran = site.export(&to, &["none"], &[]);
    assert!(
        ran.text.contains("team/app:none is not in the cache"),
        "{}",
        ran.text
    );
}

/// One header of a tar, with a checksum that is right.
fn header(name: &str, size: u64, kind: u8) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    match size < 1 << 33 {
        true => block[124..135].copy_from_slice(format!("{size:011o}").as_bytes()),
        // A size beyond octal digits is binary (GNU tar).
        false => {
            block[124] = 0x80;
            block[128..136].copy_from_slice(&size.to_be_bytes());
        }
    }
    block[156] = kind;
    block[257..262].copy_from_slice(b"ustar");
    block[263..265].copy_from_slice(b"00");
    block[148..156].copy_from_slice(b"        ");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

fn entry(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, content.len() as u64, kind);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A good layout of one image, as entries of a tar.
fn good() -> Vec<Vec<u8>> {
    layout("r.test/app:1", b"layer")
}

/// A layout of one image with one layer.
fn layout(name: &str, layer: &[u8]) -> Vec<Vec<u8>> {
    let manifest = json!({"layers": [{"digest": digest(layer), "size": layer.len()}]}).to_string();
    let index = json!({"manifests": [{
        "digest": digest(manifest.as_bytes()),
        "mediaType": standin::image::MANIFEST,
        "annotations": {"org.opencontainers.image.ref.name": name},
    }]});
    let blob = |content: &[u8]| {
        let name = format!("blobs/{}", digest(content).replace(':', "/"));
        entry(&name, b'0', content)
    };
    vec![
        entry("oci-layout", b'0', br#"{"imageLayoutVersion":"1.0.0"}"#),
        entry("index.json", b'0', index.to_string().as_bytes()),
        blob(manifest.as_bytes()),
        blob(layer),
    ]
}

#[test]
fn bug_an_import_evicted_pinned_images() {
    let place = Place::of("r.test");
    let (path, cache) = (place.path("x.tar"), place.path("cache"));
    let cache = cache.to_str().unwrap();
    let settings = [
        ("CACHE_DIR", cache),
        ("CACHE_MAX_SIZE", "1m"),
        ("PIN", "app:keep"),
    ];
    for (number, tag) in ["keep", "2", "3", "4"].into_iter().enumerate() {
        let layer = vec![u8::try_from(number).unwrap(); 400 << 10];
        let entries = layout(&format!("r.test/app:{tag}"), &layer);
        fs::write(&path, [entries.concat(), vec![0; 1024]].concat()).unwrap();
        let ran = run(&["import", path.to_str().unwrap()], &settings);
        assert_eq!(ran.code, Some(0), "{}", ran.text);
    }
    let verify = |tag: &str| run(&["verify", &format!("r.test/app:{tag}")], &settings);
    assert_eq!(verify("keep").code, Some(0), "{}", verify("keep").text);
    assert!(verify("2").text.contains("is not in the cache"));
}

#[test]
fn bug_a_directory_that_nobody_may_write_was_not_exported_from() {
    let place = Place::of("r.test");
    let (cache, path, to) = (
        place.path("cache"),
        place.path("x.tar"),
        place.path("y.tar"),
    );
    fs::write(&path, [good().concat(), vec![0; 1024]].concat()).unwrap();
    assert_eq!(place.import(&path).code, Some(0));
    let export = || {
        let mut command = without_rights();
        command.args(["export", "r.test/app:1", "--to", to.to_str().unwrap()]);
        command.env("CACHE_DIR", &cache).output().unwrap()
    };
    set_writable(&cache, false);
    let (before, exported) = (place.files(), export());
    assert!(exported.status.success(), "{exported:?}");
    assert!(before == place.files());
    // A pull has no place there, and names it.
    let mut command = without_rights();
    command.args(["pull", "app:1"]).envs(place.settings());
    let pulled = command.output().unwrap().stdout;
    let why = format!(
        "pull: cache directory {}: cannot be written\n",
        cache.display()
    );
    assert_eq!(String::from_utf8(pulled), Ok(why));
    set_writable(&cache, true);
    // Where no cache was, there is none afterwards.
    fs::rename(&cache, place.path("away")).unwrap();
    assert!(!export().status.success() && !cache.exists());
}

/// The good archive with another entry at a place.
fn swapped(at: usize, with: Vec<u8>) -> Vec<Vec<u8>> {
    let mut entries = good();
    entries[at] = with;
    entries
}

/// Archives that are refused before a blob is looked at, and why.
fn hostile() -> Vec<(Vec<Vec<u8>>, &'static str)> {
    let index = |text: &str| entry("index.json", b'0', text.as_bytes());
    let pax = |records: &str| entry("pax", b'x', records.as_bytes());
    let unknown = r#"{"manifests":[{"digest":"md5:0","mediaType":"a/b"}]}"#;
    let nested = format!("{{\"manifests\":{}", "[".repeat(100_000));
    let more = |further: Vec<Vec<u8>>| [good(), further].concat();
    vec![
        (
            more(vec![entry("../../etc/cron.d/x", b'0', b"x")]),
            "\"../../etc/cron.d/x\": leads out of the layout",
        ),
        (
            more(vec![entry("/etc/cron.d/x", b'0', b"x")]),
            "\"/etc/cron.d/x\": leads out of the layout",
        ),
        (
            more(vec![entry("blobs/link", b'2', b"")]),
            "\"blobs/link\": is no file but a link, a device or the like (type '2')",
        ),
        (
            more(vec![entry("blobs/link", b'1', b"")]),
            "\"blobs/link\": is no file but a link",
        ),
        (
            more(vec![entry("sda", b'4', b"")]),
            "\"sda\": is no file but a link, a device",
        ),
        (more(vec![entry("tty", b'3', b"")]), "\"tty\": is no file"),
        (more(vec![entry("fifo", b'6', b"")]), "\"fifo\": is no file"),
        (
            more(vec![entry("sparse", b'S', b"")]),
            "\"sparse\": is no file",
        ),
        (
            more(vec![good()[1].clone()]),
            "\"index.json\": is there twice",
        ),
        (
            more(vec![pax("19 path=../../evil\n"), entry("x", b'0', b"")]),
            "\"../../evil\"",
        ),
        (more(vec![pax("21 GNU.sparse.size=1\n")]), "sparse"),
        (
            more(vec![header("zeros", 10 << 30, b'0')]),
            "\"zeros\": has 10737418240 bytes",
        ),
        (
            more(vec![entry("blobs/sha256/short", b'0', b"x")]),
            "\"blobs/sha256/short\"",
        ),
        (
            more(vec![entry("blobs/md5/00", b'0', b"x")]),
            "\"blobs/md5/00\"",
        ),
        (
            swapped(1, index(&" ".repeat(5 << 20))),
            "index.json: has 5242880 bytes",
        ),
        (swapped(1, index(unknown)), "index.json: digest \"md5:0\""),
        (swapped(1, index(&nested)), "index.json: recursion limit"),
        (
            swapped(0, entry("oci-layout", b'0', b"{}")),
            "oci-layout: names no version",
        ),
        (good().split_off(1), "oci-layout is not in it"),
        (
            vec![b"\x1f\x8b\x08\0".repeat(300)],
            "unpack it first, as with `gunzip`",
        ),
    ]
}

#[test]
fn a_hostile_archive_is_refused_by_the_name_of_the_entry_and_changes_nothing() {
    let place = Place::of("r.test");
    let path = place.path("x.tar");
    let end = [0; 1024];
    fs::write(&path, [good().concat(), end.to_vec()].concat()).unwrap();
    let ran = place.import(&path);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    let before = place.files();

    for (entries, why) in hostile() {
        fs::write(&path, [entries.concat(), end.to_vec()].concat()).unwrap();
        refuse(&place, &path, why);
        assert!(before == place.files(), "{why}");
    }
    let mut wrong = good();
    let last = wrong[3].len() - 512;
    wrong[3][last] = b'L';
    wrong[0] = good()[0].clone();
    let other = entry(&format!("blobs/sha256/{}", "a".repeat(64)), b'0', b"other");
    // Into an empty cache, so that the blobs are looked at.
    let empty = Place::of("r.test");
    for (entries, why) in [
        (wrong, "5 bytes have another digest".to_owned()),
        (
            swapped(3, other),
            format!("{} is neither", digest(b"layer")),
        ),
    ] {
        fs::write(&path, [entries.concat(), end.to_vec()].concat()).unwrap();
        refuse(&empty, &path, &why);
        assert!(
            empty
                .files()
                .keys()
                .all(|path| !path.to_str().unwrap().contains("sha256/"))
        );
    }
    for length in [100, 512, 1500, good().concat().len()] {
        fs::write(&path, &good().concat()[..length]).unwrap();
        refuse(&place, &path, "cut off");
    }
    assert!(before == place.files());
    for odd in ["/dev/null", "/nowhere"] {
        assert_eq!(place.import(Path::new(odd)).code, Some(1), "{odd}");
    }
}

fn refuse(place: &Place, path: &Path, why: &str) {
    let ran = place.import(path);
    assert_eq!(ran.code, Some(1), "{why}: {}", ran.text);
    assert!(
        ran.text.contains(why) && ran.text.contains("x.tar"),
        "{why}: {}",
        ran.text
    );
    assert!(!ran.text.contains("panicked"), "{}", ran.text);
}

#[test]
fn a_hundred_gigabytes_of_zeros_and_200_000_entries_cost_nothing() {
    let place = Place::of("r.test");
    let path = place.path("x.tar");
    // A file with a hole: its length is its own, and its blob is larger than the cache may be.
    let size: u64 = 100 << 30;
    let zeros = "a".repeat(64);
    let manifest = json!({"layers": [{"digest": format!("sha256:{zeros}"), "size": size}]});
    let manifest = manifest.to_string();
    let missing = size + manifest.len() as u64;
    let index = json!({"manifests": [{"digest": digest(manifest.as_bytes()),
        "mediaType": standin::image::MANIFEST,
        "annotations": {"org.opencontainers.image.ref.name": "r.test/app:1"}}]});
    let root = format!("blobs/{}", digest(manifest.as_bytes()).replace(':', "/"));
    let mut bytes = good()[0].clone();
    bytes.extend(entry("index.json", b'0', index.to_string().as_bytes()));
    bytes.extend(entry(&root, b'0', manifest.as_bytes()));
    bytes.extend(header(&format!("blobs/sha256/{zeros}"), size, b'0'));
    let file = fs::File::create(&path).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    file.set_len(bytes.len() as u64 + size + 1024).unwrap();
    refuse(
        &place,
        &path,
        &format!("{zeros}: has {size} of {missing} bytes"),
    );

    let million: Vec<u8> = (0..200_001)
        .flat_map(|n| header(&format!("f{n}"), 0, b'0'))
        .collect();
    fs::write(&path, million).unwrap();
    refuse(&place, &path, "more than 200000 entries");
}

/// SplitMix64: the same numbers from the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

#[test]
#[expect(
    clippy::print_stdout,
    reason = "a failure is tried again with its seed"
)]
fn an_import_that_is_killed_leaves_a_clean_cache_and_is_gone_on_with() {
    const KILLS: usize = 50;
    let site = Cached::start();
    let layers: Vec<Layer> = (0..6).map(|n| Layer::of_noise(3 << 20, n)).collect();
    let image = site.standin.put_image("team/app", "1.0", &layers);
    let mut site = Site {
        registry: site.standin.registry_url().replace("http://", ""),
        cached: site,
        root: image.manifest,
    };
    site.pull("1.0");
    let seed = std::process::id().into();
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut place = Place::of(&site.registry);
    let archive = Scratch::new();
    let to = archive.path().join("x.tar");
    assert_eq!(site.export(&to, &["1.0"], &[]).code, Some(0));
    let spawn = |place: &Place| -> Child {
        let mut command = Proxy::command();
        command
            .args(["import".as_ref(), to.as_os_str()])
            .envs(place.settings());
        command
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("the binary runs")
    };
    let (mut ended, mut killed) = (0, 0);
    while killed < KILLS {
        let mut child = spawn(&place);
        std::thread::sleep(Duration::from_millis(random.below(150)));
        if child.try_wait().unwrap().is_some() {
            ended += 1;
            place.check_whole();
            place = Place::of(&site.registry);
            continue;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed += 1;
        place.check_whole();
    }
    println!("{killed} killed, {ended} ended before");
    let ran = place.import(&to);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    place.check_whole();
    assert!(place.files().len() > 8);
}

/// Copies a directory as `rsync -a --exclude /partial --exclude /locks` does: what goes meanwhile
/// is left out.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        match path.is_dir() {
            true if entry.file_name() == "partial" || entry.file_name() == "locks" => {}
            true => copy(&path, &target),
            false => drop(fs::copy(&path, &target)),
        }
    }
}

#[test]
fn a_copy_of_a_directory_in_use_serves() {
    let site = Cached::start();
    let put = |tag: usize| {
        let layers = [Layer::of_noise(2 << 20, tag as u64)];
        site.standin
            .put_image("team/app", &tag.to_string(), &layers)
    };
    let images: Vec<_> = (0..8).map(put).collect();
    let get = |tag: usize| {
        assert_eq!(
            site.get(&format!("/v2/team/app/manifests/{tag}")).status,
            200
        );
        for blob in images[tag].layers.iter().chain([&images[tag].config]) {
            assert_eq!(site.get(&format!("/v2/team/app/blobs/{blob}")).status, 200);
            site.wait_for_blob(blob);
        }
    };
    get(0);
    get(1);
    // Links are written a moment after the answer.
    site.proxy().term();
    let mut site = site;
    site.wait_stopped();
    site.start_again();
    let place = Place::of(&site.standin.registry_url().replace("http://", ""));
    let (source, target) = (site.scratch.path().to_owned(), place.path("cache"));
    let pulls = std::thread::scope(|scope| {
        let copies = scope.spawn(|| (0..5).for_each(|_| copy(&source, &target)));
        for (tag, image) in images.iter().enumerate().skip(2) {
            let manifest = site.get(&format!("/v2/team/app/manifests/{tag}"));
            assert_eq!(manifest.status, 200);
            let layer = &image.layers[0];
            assert_eq!(site.get(&format!("/v2/team/app/blobs/{layer}")).status, 200);
        }
        copies.join()
    });
    pulls.unwrap();
    site.all_down();
    place.check_clean();
    let proxy = place.serve();
    for (tag, image) in images.iter().enumerate().take(2) {
        let get = |target: &str| Http::get_once(proxy.address(), target);
        assert_eq!(
            get(&format!("/v2/team/app/manifests/{tag}")).body,
            image.bytes
        );
        for blob in image.layers.iter().chain([&image.config]) {
            let got = get(&format!("/v2/team/app/blobs/{blob}"));
            assert_eq!((got.status, digest(&got.body) == *blob), (200, true));
        }
    }
}
