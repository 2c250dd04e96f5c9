//! The cache's directory: whose it is, when it cannot be used, and that no request gets out of it.

use std::fs;
use std::path::Path;

use standin::{Layer, Options, Standin};

use crate::support::{Cached, Http, Proxy, SOON, Scratch, listing, wait_until};

const TAG: &str = "/v2/team/app/manifests/1.0";

fn in_front_of(standin: &Standin, directory: &Path) -> Proxy {
    standin.put_image("team/app", "1.0", &[Layer::of_files(&[("a", b"b")])]);
    Proxy::in_front_of(standin, &[("CACHE_DIR", directory.to_str().unwrap())])
}

/// It serves, and keeps nothing.
fn assert_uncached(proxy: &Proxy) {
    for _ in 0..2 {
        let got = Http::get_once(proxy.address(), TAG);
        assert_eq!((got.status, got.header("X-Cache")), (200, None));
    }
}

#[test]
fn a_cache_of_a_newer_format_is_refused() {
    let scratch = Scratch::new();
    let marker = scratch.path().join("aws-ecr-proxy-format");
    fs::write(&marker, "2\n").unwrap();
    let standin = Standin::start(Options::default());
    let mut command = Proxy::command();
    command
        .envs(standin.settings())
        .env("CACHE_DIR", scratch.path());
    let mut proxy = Proxy::spawn(command);
    assert_eq!(proxy.wait_exit().code(), Some(1));
    let log = proxy.log();
    let clear = format!("cache directory {} has format 2", scratch.text());
    assert!(log.contains(&clear) && log.contains("CACHE_DIR"), "{log}");
    // It is as it was.
    assert_eq!(fs::read_to_string(&marker).unwrap(), "2\n");
    assert_eq!(listing(scratch.path()).len(), 1);
}

#[test]
fn a_directory_that_holds_something_else_is_left_alone() {
    let scratch = Scratch::new();
    let theirs = scratch.path().join("d/41");
    fs::create_dir_all(&theirs).unwrap();
    fs::write(theirs.join("nginx"), "cached by nginx").unwrap();
    let standin = Standin::start(Options::default());
    let proxy = in_front_of(&standin, scratch.path());
    for how in ["MISS", "HIT"] {
        let got = Http::get_once(proxy.address(), TAG);
        assert_eq!((got.status, got.header("X-Cache")), (200, Some(how)));
    }
    let text = fs::read_to_string(theirs.join("nginx")).unwrap();
    assert_eq!(text, "cached by nginx");
    let mut names: Vec<_> = fs::read_dir(scratch.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["aws-ecr-proxy", "d"]);
    assert!(scratch.path().join("aws-ecr-proxy/oci-layout").exists());
}

#[test]
fn a_cache_that_another_process_has_for_itself_is_gone_without() {
    let scratch = Scratch::new();
    let marker = scratch.path().join("aws-ecr-proxy-format");
    fs::write(&marker, "1\n").unwrap();
    // As an older version locks it.
    let marker = fs::File::open(marker).unwrap();
    marker.try_lock().unwrap();
    let standin = Standin::start(Options::default());
    let proxy = in_front_of(&standin, scratch.path());
    let line = proxy.wait_for_log("running without a cache");
    assert!(line.contains("in use by another process"), "{line}");
    assert!(line.contains(scratch.text()), "{line}");
    assert_uncached(&proxy);
    assert_eq!(listing(scratch.path()).len(), 1);
}

#[test]
fn a_directory_that_cannot_be_used_is_named_and_gone_without() {
    let scratch = Scratch::new();
    let file = scratch.path().join("file");
    fs::write(&file, "in the way").unwrap();
    let standin = Standin::start(Options::default());
    // A file in its place, a file in its way, and a file system that takes none.
    for path in [file.clone(), file.join("below"), "/proc/cache".into()] {
        let proxy = in_front_of(&standin, &path);
        let line = proxy.wait_for_log("running without a cache");
        for part in [path.to_str().unwrap(), "uid ", "set CACHE_DIR"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(line.contains("ERROR"), "{line}");
        assert_uncached(&proxy);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "in the way");
}

#[test]
fn a_damaged_file_is_fetched_again() {
    let mut cached = Cached::with(&[("CACHE_TAG_TTL", "forever")]);
    let image = cached.standin.put_image("team/app", "1.0", &[]);
    assert_eq!(cached.get(TAG).body, image.bytes);
    let folder = cached.path("blobs/sha256");
    fs::write(folder.join(&image.manifest[7..]), b"{}").unwrap();
    let got = cached.get(TAG);
    assert_eq!((got.status, &got.body), (200, &image.bytes));
    assert!(cached.has(&image.manifest));
    // A tag's file that is nonsense is as one that is not there.
    cached.stop();
    for (path, length) in listing(&cached.path("repos")) {
        if length > 0 {
            fs::write(path, b"\xff\0{nonsense").unwrap();
        }
    }
    fs::write(cached.path("index.json"), b"nonsense").unwrap();
    cached.start_again_with(&[("ECR", &cached.standin.registry_url())]);
    assert_eq!(cached.get(TAG).body, image.bytes);
}

#[test]
fn no_request_gets_out_of_the_cache() {
    let scratch = Scratch::new();
    let standin = Standin::start(Options::default());
    let outside = scratch.path().join("outside");
    let inside = scratch.path().join("a/b/cache");
    fs::create_dir_all(&outside).unwrap();
    fs::create_dir_all(&inside).unwrap();
    fs::write(outside.join("secret"), "hunter2").unwrap();
    let proxy = in_front_of(&standin, &inside);
    assert_eq!(Http::get_once(proxy.address(), TAG).status, 200);
    // The last that is written for this pull.
    wait_until("index.json names the tag", SOON, || {
        let index = fs::read_to_string(inside.join("index.json")).unwrap();
        index.contains("team/app:1.0")
    });
    let before = listing(scratch.path());
    let zeros = "0".repeat(64);
    let odd = [
        "/v2/../../../outside/manifests/secret".to_owned(),
        "/v2/team/app/manifests/../../../../../outside/secret".to_owned(),
        "/v2/team/app/manifests/..".to_owned(),
        "/v2/team/app/manifests/%2e%2e%2f%2e%2e%2foutside%2fsecret".to_owned(),
        "/v2/team%2f..%2f..%2foutside/manifests/secret".to_owned(),
        "/v2/team/../app/manifests/1.0".to_owned(),
        "/v2/./app/manifests/1.0".to_owned(),
        "/v2/_tags/manifests/1.0".to_owned(),
        "/v2/team/_links/manifests/1.0".to_owned(),
        "/v2/team/app/blobs/sha256:..".to_owned(),
        "/v2/team/app/blobs/sha256:../../../../outside/secret".to_owned(),
        format!("/v2/team/app/blobs/sha256:{}", "0".repeat(63)),
        format!("/v2/team/app/blobs/sha256:{}G", "0".repeat(63)),
        format!("/v2/team/app/blobs/md5:{}", "0".repeat(32)),
        format!("/v2/team/app/blobs/../blobs/sha256:{zeros}"),
        format!("/v2/team/app/blobs/sha256%3A{}%2f..", "0".repeat(61)),
        "/v2/team/app/tags/../../outside".to_owned(),
    ];
    for target in &odd {
        for method in ["GET", "HEAD", "DELETE", "PUT"] {
            let mut http = Http::connect(proxy.address());
            let Ok(got) = http.try_request(method, target, &[], b"") else {
                continue;
            };
            assert!(
                [400, 404, 405].contains(&got.status),
                "{method} {target}: {}",
                got.status
            );
            assert!(!got.text().contains("hunter2"), "{method} {target}");
        }
    }
    assert_eq!(listing(scratch.path()), before);
}
