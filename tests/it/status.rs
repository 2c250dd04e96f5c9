//! The status page and its data: every field and its document, who may see them, what they cost,
//! and that what runs is there to be seen.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use standin::{Fault, Layer, Match, Options};

use crate::support::{
    Cached, Front, Http, Pki, Proxy, Response, SOON, Scratch, in_parallel, wait_until,
};

fn json(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("Content-Type"), Some("application/json"));
    serde_json::from_slice(&response.body).unwrap()
}

fn status(cached: &Cached, query: &str) -> Value {
    json(&cached.get(&format!("/status.json{query}")))
}

/// The fields of a document: `a.b`, and `a[].b` for those of a list's elements.
fn fields(value: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let name = format!("{prefix}{name}");
                fields(value, &format!("{name}."), found);
                found.insert(name);
            }
        }
        Value::Array(list) => {
            let prefix = format!("{}[].", prefix.trim_end_matches('.'));
            list.iter().for_each(|value| fields(value, &prefix, found));
        }
        _ => {}
    }
}

/// The fields that `docs/status.md` lists, in the first column of its table.
fn documented() -> BTreeSet<String> {
    let text = include_str!("../../docs/status.md");
    let (_, table) = text.split_once("| field |").unwrap();
    let firsts = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let names = firsts.flat_map(|cell| cell.split(' '));
    names
        .map(|name| name.trim_matches('`').to_owned())
        .collect()
}

/// An image in the stand-in, pulled through the proxy with all it holds.
fn pull(cached: &Cached, tag: &str) {
    let layer = Layer::of_files(&[("hello.txt", b"hello".as_slice())]);
    cached.standin.put_image("team/app", tag, &[layer]);
    let manifest = cached.get(&format!("/v2/team/app/manifests/{tag}"));
    let document: Value = serde_json::from_slice(&manifest.body).unwrap();
    let layers = document["layers"].as_array().unwrap().iter();
    for descriptor in layers.chain([&document["config"]]) {
        let digest = descriptor["digest"].as_str().unwrap();
        assert_eq!(
            cached.get(&format!("/v2/team/app/blobs/{digest}")).status,
            200
        );
        cached.wait_for_blob(digest);
    }
}

#[test]
fn every_field_is_documented_and_every_documented_field_is_there() {
    let prefetch = [("PREFETCH", "none/app:1"), ("PREFETCH_INTERVAL", "1s")];
    let cached = Cached::with(&[("CACHE_TAG_TTL", "0s"), prefetch[0], prefetch[1]]);
    wait_until("an image is to be prefetched", SOON, || {
        status(&cached, "")["prefetch"]["images"][0]["name"] == "none/app:1"
    });
    pull(&cached, "1.0");
    let digest = cached.standin.add_blob_of("team/app", 1 << 20, 1);
    cached.standin.fault(Match::s3(), Fault::StallAfter(1000));
    let running = cached.begin(&format!("/v2/team/app/blobs/{digest}"), &[]);
    cached.standin.fault(
        Match::registry().path("/broken/"),
        Fault::registry_error(500, "UNKNOWN", "no"),
    );
    assert!(cached.get("/v2/broken/manifests/1").status >= 500);
    cached.standin.put_image("team/app", "1.0", &[]);
    assert_eq!(cached.get("/v2/team/app/manifests/1.0").status, 200);
    let document = status(&cached, "?history&images=0");
    let mut found = BTreeSet::new();
    fields(&document, "", &mut found);
    found.remove("transfers");
    found.remove("prefetch.images");
    found.remove("day");
    found.remove("history");
    found.remove("images");
    assert_eq!(found, documented());
    cached.release();
    drop(running);
}

#[test]
fn a_pulled_image_and_its_hits_are_shown() {
    let cached = Cached::start();
    wait_until("the proxy is ready", SOON, || {
        cached.get("/readyz").status == 200
    });
    let before = status(&cached, "?images=0");
    assert_eq!(
        (&before["state"], &before["images"]["total"]),
        (&"ready".into(), &0.into())
    );
    pull(&cached, "1.0");
    cached.get("/v2/team/app/manifests/1.0");
    let look = || status(&cached, "?images=0&search=TEAM%20app&history");
    // A reply is counted once it is written.
    wait_until("the hit is counted", SOON, || look()["day"]["hit"] == 1);
    let after = look();
    let image = &after["images"]["list"][0];
    assert_eq!(image["repository"], "team/app");
    assert_eq!(
        (&image["tag"], &image["platforms"][0]),
        (&"1.0".into(), &"linux/amd64".into())
    );
    assert!(image["bytes"].as_u64().unwrap() > 100, "{image}");
    assert_eq!(image["incomplete"], serde_json::json!([]));
    assert_eq!(after["day"]["hit"], 1, "{}", after["day"]);
    assert!(after["day"]["saved_bytes"].as_u64().unwrap() > 0);
    let hits = after["history"]["hit"].as_array().unwrap();
    assert_eq!(hits.iter().filter_map(Value::as_u64).sum::<u64>(), 1);
    assert_eq!(
        status(&cached, "?images=0&search=other")["images"]["matching"],
        0
    );
    // The page's own requests are none of the registry's.
    assert_eq!(status(&cached, "")["day"], after["day"]);
    assert!(status(&cached, "").get("images").is_none());
    for (query, named) in [("images=x", "images"), ("images=0&limit=-1", "limit")] {
        let refused = cached.get(&format!("/status.json?{query}"));
        assert_eq!(refused.status, 400, "{query}");
        assert!(refused.text().contains(named), "{}", refused.text());
    }
}

#[test]
fn a_fill_shows_its_progress_and_its_clients() {
    let cached = Cached::start();
    let digest = cached.standin.add_blob_of("team/app", 1 << 20, 2);
    cached
        .standin
        .fault(Match::s3(), Fault::StallAfter(300_000));
    let target = format!("/v2/team/app/blobs/{digest}");
    let (first, second) = (cached.begin(&target, &[]), cached.begin(&target, &[]));
    let running = || {
        status(&cached, "")["transfers"]["running"]
            .as_array()
            .unwrap()
            .clone()
    };
    wait_until("the first bytes have come", SOON, || {
        running()
            .first()
            .is_some_and(|fill| fill["bytes"] == 300_000)
    });
    let fill = running().remove(0);
    assert_eq!(running().len(), 1, "the clients wait for the fill");
    assert_eq!(
        (&fill["kind"], &fill["source"]),
        (&"fill".into(), &"upstream".into())
    );
    assert_eq!(
        (&fill["total_bytes"], &fill["clients"]),
        (&(1 << 20).into(), &2.into())
    );
    assert_eq!(
        (&fill["repository"], &fill["digest"]),
        (&"team/app".into(), &digest.clone().into())
    );
    wait_until("a stall shows", SOON, || {
        running()[0]["idle_s"].as_u64().unwrap() > 0
    });
    cached.release();
    for client in [first, second] {
        assert_eq!(client.whole(1 << 20).map(|body| body.len()), Some(1 << 20));
    }
    wait_until("nothing runs any more", SOON, || running().is_empty());
}

#[test]
fn a_client_that_is_slower_than_upstream_is_shown() {
    let cached = Cached::start();
    const SIZE: usize = 64 << 20;
    let digest = cached.standin.add_blob_of("team/app", SIZE as u64, 3);
    let client = cached.begin(&format!("/v2/team/app/blobs/{digest}"), &[]);
    cached.wait_for_blob(&digest);
    let document = status(&cached, "");
    let pull = &document["transfers"]["running"][0];
    assert_eq!(
        (&pull["kind"], &pull["source"]),
        (&"pull".into(), &"cache".into())
    );
    assert_eq!(pull["total_bytes"], SIZE);
    assert!(pull["bytes"].as_u64().unwrap() < SIZE as u64);
    assert!(pull["request"].is_string() && pull["peer"].as_str().unwrap().starts_with("127."));
    assert!(client.whole(SIZE).is_some());
}

#[test]
fn an_upload_shows_its_progress() {
    let front = Front::start();
    let begun = front.call("POST", "/v2/team/app/blobs/uploads/", &[], b"");
    let location = begun.header("Location").unwrap().to_owned();
    let mut http = front.http();
    let length = [("Content-Length", "1000000")];
    http.send_head("PATCH", crate::support::target_of(&location), &length)
        .unwrap();
    http.send(&[7; 300_000]).unwrap();
    let running = || json(&front.get("/status.json"))["transfers"].clone();
    wait_until("the upload shows", SOON, || {
        running()["running"][0]["bytes"] == 300_000
    });
    let upload = running();
    assert_eq!(
        (&upload["uploads"], &upload["downloads"]),
        (&1.into(), &0.into())
    );
    assert_eq!(upload["running"][0]["kind"], "push");
    assert_eq!(upload["running"][0]["total_bytes"], 1_000_000);
    drop(http);
    wait_until("a client that left is gone", SOON, || {
        running()["uploads"] == 0
    });
}

#[test]
fn bug_a_registry_that_refused_connections_was_called_ready() {
    let cached = Cached::with(&[("CACHE_TAG_TTL", "0s")]);
    pull(&cached, "1.0");
    assert_eq!(status(&cached, "")["state"], "ready");
    cached.all_down();
    let stale = cached.get("/v2/team/app/manifests/1.0");
    assert_eq!(stale.header("X-Cache"), Some("STALE"));
    let document = status(&cached, "");
    assert_eq!(document["state"], "cache_only");
    let sentence = document["sentence"].as_str().unwrap();
    assert!(
        sentence.contains("the registry is out of reach (connect failed"),
        "{sentence}"
    );
}

#[test]
fn bug_a_registry_that_answered_500_had_no_last_error() {
    let front = Front::start();
    front.standin.fault(Match::registry(), Fault::status(500));
    assert_eq!(front.get("/v2/team/app/manifests/1").status, 500);
    let document = json(&front.get("/status.json"));
    let told = document["registries"][0]["last_error"].as_str().unwrap();
    assert!(told.ends_with(" answered 500"), "{told}");
}

#[test]
fn failures_carry_the_id_of_the_request() {
    let front = Front::start();
    front.standin.fault(
        Match::registry(),
        Fault::registry_error(403, "DENIED", "not yours"),
    );
    let refused = front.get("/v2/team/app/manifests/1?token=secret-word");
    assert_eq!(refused.status, 403);
    assert_eq!(front.get("/v2/team/app/manifests/absent").status, 404);
    // A request counts a moment after its client has the reply.
    wait_until("both are counted", SOON, || {
        let day = &json(&front.get("/status.json"))["day"];
        day["refused"] == 1 && day["other"] == 1
    });
    let document = json(&front.get("/status.json"));
    let failures = document["failures"].as_array().unwrap();
    assert_eq!(failures.len(), 1, "a 404 is no failure");
    let failure = &failures[0];
    assert_eq!(failure["request"].as_str(), refused.header("X-Request-Id"));
    assert_eq!(
        (&failure["status"], &failure["method"]),
        (&403.into(), &"GET".into())
    );
    assert!(!document.to_string().contains("secret-word"));
    assert_eq!(document["day"]["refused"], 1);
}

#[test]
fn the_light_turns_when_upstream_is_gone() {
    let mut cached = Cached::start();
    pull(&cached, "1.0");
    cached.kill();
    cached.all_down();
    cached.start_again();
    wait_until("it serves from the cache alone", SOON, || {
        status(&cached, "")["state"] == "cache_only"
    });
    let document = status(&cached, "");
    let sentence = document["sentence"].as_str().unwrap();
    assert!(
        sentence.starts_with("Serving from the cache alone: no ECR token ("),
        "{sentence}"
    );
    assert!(document["registries"][0]["token"]["last_error"].is_string());
    assert!(document["registries"][0]["token"]["expires"].is_null());
    let mut empty = Cached::start();
    let document = status(&empty, "");
    let sentence = document["sentence"].as_str().unwrap();
    assert_eq!(document["state"], "ready");
    assert!(
        sentence.starts_with("Ready: pulls and pushes go to "),
        "{sentence}"
    );
    empty.all_down();
    empty.stop();
    empty.start_again();
    let document = status(&empty, "");
    let sentence = document["sentence"].as_str().unwrap();
    assert_eq!(document["state"], "not_ready");
    assert!(
        sentence.starts_with("Not ready: no ECR token ("),
        "{sentence}"
    );
}

#[test]
fn the_page_is_one_document_with_a_strict_policy() {
    let front = Front::start();
    let page = front.get("/");
    assert_eq!(
        page.header("Content-Type"),
        Some("text/html; charset=utf-8")
    );
    let policy = page.header("Content-Security-Policy").unwrap();
    for part in [
        "default-src 'none'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(
        !policy.contains("unsafe") && !policy.contains('*'),
        "{policy}"
    );
    let head = front.head("/");
    assert_eq!(head.header("Content-Length"), page.header("Content-Length"));
    assert_eq!((head.status, head.length), (200, 0));
    let etag = page.header("ETag").unwrap();
    let again = front.call("GET", "/", &[("If-None-Match", etag)], b"");
    assert_eq!((again.status, again.length), (304, 0));
    for target in ["/", "/status.json"] {
        let refused = front.call("POST", target, &[], b"");
        assert_eq!(
            (refused.status, refused.header("Allow")),
            (405, Some("GET, HEAD"))
        );
    }
    let head = front.head("/status.json");
    assert_eq!((head.status, head.length), (200, 0));
}

#[test]
fn the_page_is_gone_when_it_is_switched_off() {
    let front = Front::with(Options::default(), &[("STATUS_PAGE", "false")]);
    for target in ["/", "/status.json", "/status.json?images=0"] {
        assert_eq!(front.get(target).status, 404, "{target}");
    }
}

#[test]
fn the_page_asks_for_the_login_of_the_registry() {
    let folder = Scratch::new();
    let path = folder.path().join("htpasswd");
    std::fs::write(&path, crate::login::CHEAP).unwrap();
    let front = Front::with(Options::default(), &[("AUTH_FILE", path.to_str().unwrap())]);
    let right = format!("Basic {}", STANDARD.encode("alice:open sesame"));
    let wrong = format!("Basic {}", STANDARD.encode("alice:wrong"));
    for target in ["/", "/status.json?images=0&history"] {
        let asked = front.get(target);
        assert_eq!(asked.status, 401, "{target}");
        assert!(
            asked
                .header("WWW-Authenticate")
                .unwrap()
                .starts_with("Basic realm=")
        );
        let answer = |login: &str| front.call("GET", target, &[("Authorization", login)], b"");
        assert_eq!(answer(&wrong).status, 401);
        for _ in 0..2 {
            assert_eq!(answer(&right).status, 200, "{target}");
        }
    }
}

#[test]
fn the_page_asks_for_the_certificate_of_the_registry() {
    let pki = Pki::new();
    let settings = pki.settings_with_clients();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let front = Front::with(Options::default(), &settings);
    let config = pki.authority.client(&[&rustls::version::TLS13], None);
    for target in ["/", "/status.json"] {
        let mut http = Http::connect_tls(front.address(), &config).unwrap();
        assert_eq!(http.get(target).status, 403, "{target}");
    }
}

#[test]
fn ten_thousand_images_are_listed_in_a_bounded_moment_and_block_nothing() {
    let mut cached = Cached::start();
    pull(&cached, "1.0");
    cached.stop();
    let repos = cached.path("repos");
    let registry = std::fs::read_dir(&repos)
        .unwrap()
        .flatten()
        .find(|e| e.path().is_dir())
        .unwrap();
    let tags = registry.path().join("team/app/_tags");
    for number in 0..10_000 {
        let (folder, tag) = (number / 100, number % 100);
        let folder = registry.path().join(format!("crowd/r{folder}/_tags"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(tags.join("1.0"), folder.join(format!("v{tag}"))).unwrap();
    }
    cached.start_again();
    let begun = Instant::now();
    in_parallel(4, |_| {
        let document = status(&cached, "?images=9950");
        assert_eq!(document["images"]["total"], 10_001);
        assert_eq!(document["images"]["list"].as_array().unwrap().len(), 51);
        assert_eq!(cached.get("/v2/team/app/manifests/1.0").status, 200);
    });
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );
    let found = status(&cached, "?images=0&search=r42:v7");
    assert_eq!(found["images"]["matching"], 11, "v7 and v70 to v79");
    let short = status(&cached, "?images=0&limit=20");
    assert_eq!(short["images"]["list"].as_array().unwrap().len(), 20);
}

/// `aws-ecr-proxy status` beside the proxy at this address, with these settings.
fn command(address: SocketAddr, arguments: &[&str], settings: &[(&str, &str)]) -> Command {
    let mut command = Proxy::command();
    command.arg("status").args(arguments);
    command.env("LISTEN_PORT", address.port().to_string());
    command.envs(settings.iter().copied());
    command
}

#[test]
fn the_command_shows_it_in_a_terminal() {
    let pki = Pki::new();
    let settings = pki.settings();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let tls = Front::with(Options::default(), &settings);
    let plain = Cached::start();
    pull(&plain, "1.0");
    for (address, settings) in [(tls.address(), &settings[..]), (plain.address(), &[])] {
        let output = command(address, &[], settings).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        for part in [
            "Ready: pulls and pushes go to ",
            "\nregistry ",
            "\n24 hours ",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
    let output = command(plain.address(), &["--json"], &[]).output().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["state"], "ready");
}

#[test]
fn the_command_says_why_it_cannot() {
    let off = Front::with(Options::default(), &[("STATUS_PAGE", "false")]);
    let folder = Scratch::new();
    let path = folder.path().join("htpasswd");
    std::fs::write(&path, crate::login::CHEAP).unwrap();
    let login = Front::with(Options::default(), &[("AUTH_FILE", path.to_str().unwrap())]);
    let gone = {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        closed.local_addr().unwrap()
    };
    for (address, why) in [
        (off.address(), "STATUS_PAGE=false"),
        (login.address(), "give --login a file with USER:PASSWORD"),
        (gone, "no answer from 127.0.0.1:"),
    ] {
        let output = command(address, &[], &[]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(why), "{text}");
    }
    for odd in [&["--watched"][..], &["twice"]] {
        let output = command(gone, odd, &[]).output().unwrap();
        assert_eq!(output.status.code(), Some(64));
    }
    let mut health = Proxy::command();
    let output = health.args(["health", "--watch"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{text}");
    assert!(text.contains("--watch: health does not take it"), "{text}");
}

#[test]
fn watching_goes_on_until_the_reader_is_gone() {
    let front = Front::start();
    let mut command = command(front.address(), &["--json", "--watch"], &[]);
    let mut watching = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let document: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert!(document["uptime_s"].is_u64());
    }
    drop(lines);
    let mut ended = || watching.try_wait().unwrap();
    wait_until("the command has ended", SOON, || ended().is_some());
    assert_eq!(ended().unwrap().code(), Some(0));
}

#[test]
fn the_command_logs_in_and_shows_a_certificate() {
    let pki = Pki::new();
    let client = pki.authority.sign("operator.example", 2090);
    let client = client.certificate.pem() + &client.key.serialize_pem();
    let client = pki.write("client.pem", &client);
    let login = pki.write("login", "alice:open sesame\n");
    let wrong = pki.write("wrong", "alice:closed sesame\n");
    let odd = pki.write("odd", "open sesame\n");
    let mut settings = pki.settings_with_clients();
    settings.push(("AUTH_FILE", pki.write("htpasswd", crate::login::CHEAP)));
    let settings: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let front = Front::with(Options::default(), &settings);
    let other = Pki::new();
    let other = other.path("tls.crt");
    let (certificate, mut strange) = (["--certificate", &client], settings.clone());
    strange.push(("SSL_CERTIFICATE", other.to_str().unwrap()));
    for (flags, settings, code, why) in [
        (["--login", &login], &settings, 0, "Ready: pulls and pushes"),
        (["--login", &wrong], &settings, 1, "refuses the login"),
        (["--login", &odd], &settings, 64, "expected USER:PASSWORD"),
        (["--login", "/absent"], &settings, 64, "--login=/absent: "),
        (
            ["--login", &login],
            &strange,
            1,
            "shows another certificate",
        ),
        (["--json", "--json"], &settings, 1, "give --login a file"),
    ] {
        let arguments = [flags, certificate].concat();
        let output = command(front.address(), &arguments, settings);
        let output = { output }.output().unwrap();
        let [text, said] =
            [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
        assert_eq!(output.status.code(), Some(code), "{flags:?}: {text}{said}");
        assert!(
            (text.clone() + &said).contains(why),
            "{flags:?}: {text}{said}"
        );
        assert!(!text.contains("sesame") && !said.contains("sesame"));
    }
    let without = command(front.address(), &["--login", &login], &settings).output();
    let text = String::from_utf8(without.unwrap().stdout).unwrap();
    assert!(text.contains("give --certificate a PEM file"), "{text}");
}
