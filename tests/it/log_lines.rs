//! The log grows with events, not with requests: one line for each request, and each cause once.

use std::sync::Arc;

use serde_json::Value;
use standin::{Fault, Match, Options, Server};

use crate::support::{Front, Http, Pki, Proxy, SOON, Scratch, wait_until};

const REQUESTS: usize = 40;

fn count(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn bug_each_request_to_a_dead_registry_had_two_lines() {
    let front = Front::start();
    front.standin.down(Server::Registry);
    for n in 0..REQUESTS {
        let got = front.get(&format!("/v2/team/app/manifests/{n}"));
        assert_eq!(got.status, 504);
    }
    let requests = |log: &str| count(log, " WARN request method=GET path=/v2/team/app/manifests/");
    wait_until("all requests are in the log", SOON, || {
        requests(&front.proxy.log()) >= REQUESTS
    });
    let log = front.proxy.log();
    assert_eq!(requests(&log), REQUESTS, "{log}");
    // The breaker may have a cause of its own.
    let warnings = count(&log, " WARN ") - REQUESTS;
    let causes = count(&log, " INFO upstream failed");
    assert!((1..=3).contains(&causes), "{log}");
    assert!(warnings <= 1, "at most that everybody may come in: {log}");
    // How often, is said at the latest when the process ends.
    front.proxy.term();
    let line = front.proxy.wait_for_log("repeated=");
    assert!(line.contains("INFO upstream failed error="), "{line}");
}

#[test]
fn a_long_target_is_cut_in_the_log() {
    let front = Front::start();
    let long = format!("/v2/team/app/manifests/{}", "x".repeat(8000));
    front.get(&long);
    front.get(&format!("/v2/team/app/tags/list?last={}", "y".repeat(8000)));
    front.get(&format!("/{}", "z".repeat(8000)));
    for letter in ["x", "y", "z"] {
        let line = front.proxy.wait_for_log(&letter.repeat(400));
        // The error may quote the tag, and is cut as well.
        assert!(line.len() < 2000, "{} bytes: {line}", line.len());
        assert!(line.contains(&format!("{letter}…")), "{line}");
    }
}

/// Clients that speak nothing we do, in a crowd.
#[test]
fn handshakes_that_fail_alike_are_one_line() {
    let pki = Pki::new();
    let settings = pki.settings();
    let settings: Vec<(&str, &str)> = settings
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let front = Front::with(Options::default(), &settings);
    let mut config = (*pki.client()).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    for _ in 0..REQUESTS {
        assert!(Http::connect_tls(front.address(), &config).is_err());
    }
    front.proxy.wait_for_log("TLS handshake failed");
    assert_eq!(count(&front.proxy.log(), "TLS handshake failed"), 1);
    front.proxy.term();
    let line = front.proxy.wait_for_log("repeated=");
    assert!(line.contains("TLS handshake failed"), "{line}");
}

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The JSON lines with this message, once there are so many.
fn lines_of(front: &Front, message: &str, count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    // A line about a long transfer comes after half a minute.
    wait_until(message, 3 * SOON, || {
        let log = front.proxy.log();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        found = lines
            .filter(|line: &Value| line["message"] == message)
            .collect();
        found.len() >= count
    });
    found
}

/// The line of the request for `path`. Lines of two connections may come in any order.
fn request_to<'a>(lines: &'a [Value], path: &str) -> &'a Value {
    let mut lines = lines.iter();
    lines.find(|line| line["path"] == path).expect("a line")
}

fn json_front(more: &[(&str, &str)]) -> Front {
    let settings = [&[("LOG_FORMAT", "json")], more].concat();
    Front::with(Options::default(), &settings)
}

#[test]
fn a_clients_id_is_kept_answered_and_sent_upstream() {
    let front = json_front(&[]);
    front.standin.put_image("team/app", "1.0", &[]);
    let path = "/v2/team/app/manifests/1.0";
    let got = front.call("GET", path, &[("X-Request-Id", "build-7/a")], b"");
    assert_eq!(got.header("X-Request-Id"), Some("build-7/a"));
    let got = front.call(
        "GET",
        "/v2/team/app/tags/list",
        &[("traceparent", TRACE)],
        b"",
    );
    assert_eq!(
        got.header("X-Request-Id"),
        Some("4bf92f3577b34da6a3ce929d0e0e4736")
    );
    let seen = front.seen(Server::Registry);
    let of = |text: &str| seen.iter().find(|seen| seen.target.contains(text)).unwrap();
    assert_eq!(of("manifests").header("X-Request-Id"), Some("build-7/a"));
    assert_eq!(of("manifests").header("traceparent"), None);
    assert_eq!(
        of("tags").header("X-Request-Id"),
        Some("4bf92f3577b34da6a3ce929d0e0e4736")
    );
    assert_eq!(of("tags").header("traceparent"), Some(TRACE));
    let lines = lines_of(&front, "request", 2);
    assert_eq!(request_to(&lines, path)["id"], "build-7/a");
}

#[test]
fn an_id_that_many_clients_choose_mixes_no_answers() {
    let front = Front::start();
    let blobs: Vec<_> = (0..8_u8)
        .map(|n| front.standin.add_blob("team/app", &[n; 1000]))
        .collect();
    std::thread::scope(|scope| {
        for (n, blob) in blobs.iter().enumerate() {
            let front = &front;
            scope.spawn(move || {
                let path = format!("/v2/team/app/blobs/{blob}");
                for _ in 0..10 {
                    let got = front.call("GET", &path, &[("X-Request-Id", "same")], b"");
                    assert_eq!(got.status, 200);
                    assert!(got.body.iter().all(|byte| usize::from(*byte) == n));
                }
            });
        }
    });
}

#[test]
fn a_request_line_says_who_asked_for_what() {
    let folder = Scratch::new();
    let users = folder.path().join("users");
    // bcrypt of "secret", cost 4.
    let hash = "$2y$04$YVXnFUVXXD8xX4VlNm38ButPAUweGLNRll/jzff0hsUsC1hYVraTG";
    std::fs::write(&users, format!("0123:{hash}\n")).unwrap();
    let cache = folder.path().join("cache");
    let front = json_front(&[
        ("AUTH_FILE", users.to_str().unwrap()),
        ("CACHE_DIR", cache.to_str().unwrap()),
    ]);
    let digest = front.standin.put_image("0042", "7", &[]).manifest;
    // "0123:secret"
    let login = ("Authorization", "Basic MDEyMzpzZWNyZXQ=");
    let from = ("X-Forwarded-For", "192.0.2.7, 10.0.0.1");
    let agent = ("User-Agent", "containerd/2.0");
    let fields = [login, from, agent];
    let got = front.call("GET", "/v2/0042/manifests/7", &fields, b"");
    assert_eq!(got.status, 200, "{}", got.text());
    let id = ("x-amzn-RequestId", "ecr-1234".to_owned());
    let headers = vec![(id.0.to_owned(), id.1)];
    let missing = Fault::Status(404, headers, b"{\"errors\":[{\"code\":\"X\"}]}".to_vec());
    front.standin.fault(
        Match::registry().path("/0042/manifests/8").always(),
        missing,
    );
    assert_eq!(
        front
            .call("GET", "/v2/0042/manifests/8", &fields, b"")
            .status,
        404
    );
    assert_eq!(
        front.call("GET", "/v2/0042/tags/list", &[from], b"").status,
        401
    );
    let lines = lines_of(&front, "request", 3);
    let [found, missing, refused] = [
        "/v2/0042/manifests/7",
        "/v2/0042/manifests/8",
        "/v2/0042/tags/list",
    ]
    .map(|path| request_to(&lines, path));
    let host = front.address().to_string();
    for (name, value) in [
        ("login", "0123"),
        ("forwarded_for", "192.0.2.7, 10.0.0.1"),
        ("host", &host),
        ("user_agent", "containerd/2.0"),
        ("repository", "0042"),
        ("reference", "7"),
        ("digest", &digest),
        ("cache", "miss"),
    ] {
        assert_eq!(found[name], value, "{}", found);
    }
    assert!(
        front
            .standin
            .registry_url()
            .ends_with(found["registry"].as_str().unwrap())
    );
    assert_eq!(missing["upstream_request_id"], "ecr-1234", "{}", missing);
    assert_eq!(missing["upstream_status"], 404);
    // A name that was not proved may be a password.
    assert!(refused["login"].is_null() && refused["forwarded_for"].is_string());
}

#[test]
fn a_front_end_that_is_not_trusted_names_no_client() {
    let front = json_front(&[("DISABLE_PROXY_HEADERS", "true")]);
    front.call("GET", "/v2/", &[("X-Forwarded-For", "192.0.2.7")], b"");
    assert!(lines_of(&front, "request", 1)[0]["forwarded_for"].is_null());
}

#[test]
fn a_failure_has_the_id_of_its_request() {
    let folder = Scratch::new();
    let front = json_front(&[("CACHE_DIR", folder.path().to_str().unwrap())]);
    let blob = front.standin.add_blob_of("team/app", 1 << 20, 8);
    front
        .standin
        .fault(Match::s3().always(), Fault::CutAfter(0));
    let path = format!("/v2/team/app/blobs/{blob}");
    let _ = front
        .http()
        .try_request("GET", &path, &[("X-Request-Id", "pull-1")], b"");
    let failed = lines_of(&front, "download failed", 1);
    assert_eq!(
        (&failed[0]["id"], &failed[0]["level"]),
        (&"pull-1".into(), &"WARN".into())
    );
    let resumed = lines_of(&front, "download broke off; resuming", 1);
    assert!(resumed[0]["id"] == "pull-1" && resumed[0]["at"].is_u64());
    front.standin.down(Server::Registry);
    front.call(
        "GET",
        "/v2/team/app/manifests/1",
        &[("X-Request-Id", "pull-2")],
        b"",
    );
    assert_eq!(lines_of(&front, "upstream failed", 1)[0]["id"], "pull-2");
    assert_eq!(
        lines_of(&front, "upstream did not answer", 1)[0]["to"],
        front.standin.registry_url()
    );
}

#[test]
fn debug_shows_each_step_and_why_the_cache_decided() {
    let folder = Scratch::new();
    let front = json_front(&[("CACHE_DIR", folder.path().to_str().unwrap())]);
    front.standin.put_image("team/app", "1.0", &[]);
    for _ in 0..2 {
        let id = [("X-Request-Id", "hunted")];
        assert_eq!(
            front
                .call("GET", "/v2/team/app/manifests/1.0", &id, b"")
                .status,
            200
        );
    }
    let of_it = |message: &str| {
        let mut lines = lines_of(&front, message, 1);
        lines.retain(|line| line["id"] == "hunted");
        assert!(!lines.is_empty(), "{message}: {}", front.proxy.log());
        lines
    };
    assert!(of_it("name looked up")[0]["addresses"].is_string());
    let connected = of_it("connected");
    let to = connected[0]["to"].as_str().unwrap();
    assert!(front.standin.registry_url().ends_with(to), "{to}");
    assert_eq!(of_it("token used")[0]["region"], "eu-west-1");
    let answered = of_it("upstream answered");
    assert_eq!(answered[0]["upstream_status"], 200);
    assert!(answered[0]["first_byte_ms"].is_number());
    lines_of(&front, "request", 2);
    let reasons = of_it("cache decided");
    let reason = |n: usize| reasons[n]["reason"].as_str().unwrap();
    assert!(reason(0).ends_with("upstream is asked"), "{}", reason(0));
    assert_eq!(reason(1), "the tag was confirmed within CACHE_TAG_TTL");
}

#[test]
fn probes_are_debug_and_one_that_fails_is_a_cause() {
    let front = json_front(&[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")]);
    for _ in 0..5 {
        assert_eq!(front.get("/readyz").status, 503);
        assert_eq!(front.get("/healthz").status, 200);
    }
    let requests = lines_of(&front, "request", 10);
    assert!(requests.iter().all(|line| line["level"] == "DEBUG"));
    let failed = lines_of(&front, "probe failed", 1);
    assert!(failed.len() <= 2, "the reason may have changed: {failed:?}");
    assert!(failed[0]["level"] == "WARN" && failed[0]["path"] == "/readyz");
}

#[test]
fn faults_of_settings_are_in_the_format_of_the_log() {
    let run = |settings: &[(&str, &str)]| {
        let mut command = Proxy::command();
        command.arg("--nope=1").envs(settings.iter().copied());
        let output = command.output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(64));
        String::from_utf8(output.stderr).unwrap()
    };
    let json = run(&[("LOG_FORMAT", "JSON"), ("WORKERS", "0"), ("READ_ONLY", "2")]);
    let faults: Vec<Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(faults.len(), 3, "{json}");
    for fault in &faults {
        assert_eq!(
            (&fault["level"], &fault["message"]),
            (&"ERROR".into(), &"bad setting".into())
        );
        assert!(
            fault["error"].is_string() && fault["time"].is_string(),
            "{fault}"
        );
    }
    let text = run(&[("WORKERS", "0")]);
    assert!(
        text.lines().all(|line| line.starts_with("aws-ecr-proxy: ")),
        "{text}"
    );
}

#[test]
fn a_pull_that_hangs_says_where_it_stands() {
    let folder = Scratch::new();
    let front = json_front(&[("CACHE_DIR", folder.path().to_str().unwrap())]);
    let blob = front.standin.add_blob_of("team/app", 1 << 20, 8);
    front
        .standin
        .fault(Match::s3().always(), Fault::StallAfter(5000));
    let path = format!("/v2/team/app/blobs/{blob}");
    std::thread::scope(|scope| {
        scope.spawn(|| front.http().try_request("GET", &path, &[], b""));
        let lines = lines_of(&front, "transfer still runs", 1);
        front.proxy.signal("KILL");
        let line = &lines[0];
        assert_eq!(
            (&line["kind"], &line["clients"]),
            (&"fill".into(), &1.into())
        );
        assert_eq!(
            (&line["bytes"], &line["bytes_total"]),
            (&5000.into(), &(1 << 20).into())
        );
        assert_eq!(line["digest"], blob.to_string());
        assert!(
            line["age_s"].as_u64() >= Some(30) && line["idle_s"].is_u64(),
            "{line}"
        );
    });
}
