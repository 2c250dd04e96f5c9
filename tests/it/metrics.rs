//! `/metrics`: the format, the numbers after known requests, who may see it and where, and what no
//! client can make of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;

use standin::{Fault, Layer, Match, Options, Server, digest};

use crate::login::CHEAP;
use crate::support::{Cached, Front, Http, Pki, Response, SOON, Scratch, error_of, wait_until};

const PREFIX: &str = "aws_ecr_proxy_";
const MANIFEST: &str = "/v2/team/app/manifests/1.0";
/// alice:open sesame
const RIGHT: (&str, &str) = ("Authorization", "Basic YWxpY2U6b3BlbiBzZXNhbWU=");

/// The numbers of a scrape, by name and labels as they are written.
struct Scrape {
    samples: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

impl Scrape {
    /// One after which no other request runs: a request is counted when its reply is written, and
    /// its client may be quicker.
    fn of(address: SocketAddr) -> Self {
        let mut last = Self::now(address);
        wait_until("every request is counted", SOON, || {
            last = Self::now(address);
            last.get("requests_running") <= 1.0
        });
        last
    }

    fn now(address: SocketAddr) -> Self {
        Self::read(&Http::get_once(address, "/metrics"))
    }

    /// Reads the text strictly: panics at anything that the format does not have.
    fn read(response: &Response) -> Self {
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(response.complete);
        let kind = "text/plain; version=0.0.4; charset=utf-8";
        assert_eq!(response.header("Content-Type"), Some(kind));
        assert_eq!(response.header("Cache-Control"), Some("no-store"));
        let (mut samples, mut types) = (BTreeMap::new(), BTreeMap::new());
        let (mut family, mut helped) = (String::new(), String::new());
        let text = String::from_utf8(response.body.clone()).expect("UTF-8");
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, words) = help.split_once(' ').expect("a name");
                assert!(!types.contains_key(name) && words.ends_with('.'), "{line}");
                name.clone_into(&mut helped);
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a name");
                assert_eq!(name, helped);
                name.clone_into(&mut family);
                types.insert(name.to_owned(), kind.to_owned());
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                let name = series.split('{').next().unwrap_or_default();
                let rest = name.strip_prefix(&family).expect(line);
                let of_histogram = ["_bucket", "_sum", "_count"].contains(&rest);
                assert!(if types[&family] == "histogram" {
                    of_histogram
                } else {
                    rest.is_empty()
                });
                check_labels(&series[name.len()..]);
                let series = series.strip_prefix(PREFIX).expect("our prefix");
                let value: f64 = value.parse().expect(line);
                assert_eq!(
                    samples.insert(series.to_owned(), value),
                    None,
                    "twice: {line}"
                );
            }
        }
        Self { samples, types }
    }

    /// A number, 0 when it is not there.
    fn get(&self, series: &str) -> f64 {
        self.samples.get(series).copied().unwrap_or_default()
    }

    /// The sum of all numbers of this name that have all of these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let fits = |series: &str| {
            let (own, rest) = series.split_once('{').unwrap_or((series, ""));
            own == name && labels.iter().all(|label| rest.contains(label))
        };
        let series = self.samples.iter().filter(|(series, _)| fits(series));
        series.map(|(_, value)| value).sum()
    }

    fn names(&self) -> BTreeSet<String> {
        self.types.keys().cloned().collect()
    }
}

/// `{name="value",…}` with the escapes of the format, or nothing.
fn check_labels(text: &str) {
    let Some(mut rest) = text.strip_prefix('{') else {
        assert_eq!(text, "");
        return;
    };
    loop {
        let (name, after) = rest.split_once("=\"").expect(text);
        assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        let mut escaped = false;
        let end = after.char_indices().find(|(_, c)| {
            let ends = !escaped && *c == '"';
            escaped = !escaped && *c == '\\';
            ends
        });
        rest = &after[end.expect(text).0 + 1..];
        match rest {
            "}" => return,
            _ => rest = rest.strip_prefix(',').expect(text),
        }
    }
}

fn requests(route: &str, method: &str, status: &str, cache: &str) -> String {
    let labels = format!("route=\"{route}\",method=\"{method}\"");
    format!("requests_total{{{labels},status=\"{status}\",cache=\"{cache}\"}}")
}

#[test]
fn requests_are_counted_by_what_became_of_them() {
    let cached = Cached::start();
    let layer = Layer::of_files(&[("a", b"a")]);
    let bytes = layer.content.to_vec();
    let (layer_digest, size) = (digest(&bytes), bytes.len() as f64);
    let image = cached.standin.put_image("team/app", "1.0", &[layer]);
    let blob = format!("/v2/team/app/blobs/{layer_digest}");
    assert_eq!(cached.get(MANIFEST).header("X-Cache"), Some("MISS"));
    assert_eq!(cached.get(MANIFEST).header("X-Cache"), Some("REVALIDATED"));
    assert_eq!(cached.get(&blob).header("X-Cache"), Some("MISS"));
    cached.wait_for_blob(&layer_digest);
    for _ in 0..3 {
        assert_eq!(cached.get(&blob).header("X-Cache"), Some("HIT"));
    }
    assert_eq!(cached.head(&blob).status, 200);
    assert_eq!(cached.get("/v2/team/none/manifests/1.0").status, 404);
    assert_eq!(cached.get("/nowhere").status, 404);
    let before = Scrape::of(cached.address());
    cached.all_down();
    assert_eq!(cached.get(MANIFEST).header("X-Cache"), Some("STALE"));
    assert_eq!(cached.get("/v2/team/other/manifests/1.0").status / 100, 5);
    let scrape = Scrape::of(cached.address());
    for (series, count) in [
        (requests("manifest", "GET", "200", "miss"), 1.0),
        (requests("manifest", "GET", "200", "revalidated"), 1.0),
        (requests("manifest", "GET", "200", "stale"), 1.0),
        (requests("manifest", "GET", "404", "miss"), 1.0),
        (requests("blob", "GET", "200", "miss"), 1.0),
        (requests("blob", "GET", "200", "hit"), 3.0),
        (requests("blob", "HEAD", "200", "hit"), 1.0),
        (requests("other", "GET", "404", "none"), 1.0),
    ] {
        assert_eq!(scrape.get(&series), count, "{series}");
    }
    assert_eq!(before.sum("requests_total", &["cache=\"stale\""]), 0.0);
    let failed = scrape.sum("requests_total", &["route=\"manifest\"", "status=\"50"]);
    assert_eq!(failed, 1.0);
    let manifest = image.bytes.len() as f64;
    let from_cache = scrape.get("sent_bytes_total{source=\"cache\"}");
    assert_eq!(from_cache, 2.0 * manifest + 3.0 * size);
    assert!(scrape.get("sent_bytes_total{source=\"upstream\"}") >= manifest + size);
    let count = |labels| scrape.get(&format!("request_duration_seconds_count{{{labels}}}"));
    assert_eq!(count("route=\"blob\""), 5.0);
    let hits = "request_first_byte_seconds_count{cache=\"hit\"}";
    assert_eq!(scrape.get(hits), 4.0);
    let hits = "request_first_byte_seconds_bucket{cache=\"hit\",le=\"+Inf\"}";
    assert_eq!(scrape.get(hits), 4.0);
    assert_eq!(scrape.get("fills_total{result=\"done\"}"), 1.0);
    assert_eq!(scrape.get("filled_bytes_total"), size);
    assert!(scrape.sum("upstream_replies_total", &["status=\"2xx\""]) >= 3.0);
    assert!(scrape.sum("upstream_errors_total", &["stage=\"connect\""]) >= 2.0);
    assert!(scrape.sum("upstream_head_seconds_count", &[]) >= 3.0);
}

#[test]
fn what_is_there_now_is_shown() {
    let settings = [
        ("CACHE_TAG_TTL", "1h"),
        ("CACHE_MAX_SIZE", "1g"),
        ("WORKERS", "3"),
    ];
    let mut cached = Cached::with(&settings);
    let image = cached.standin.put_image("team/app", "1.0", &[]);
    assert_eq!(cached.get(MANIFEST).body, image.bytes);
    wait_until("the index counts the image", SOON, || {
        Scrape::of(cached.address()).get("cache_images") == 1.0
    });
    let scrape = Scrape::of(cached.address());
    for (name, value) in [
        ("ready", 1.0),
        ("workers", 3.0),
        ("cache_quota_bytes", f64::from(1 << 30)),
        ("cache_blobs", 1.0),
        ("tokens_obtained_total", 1.0),
        ("token_failures_total", 0.0),
        // The scrape itself.
        ("requests_running", 1.0),
        ("panics_total", 0.0),
    ] {
        assert_eq!(scrape.samples.get(name), Some(&value), "{name}");
    }
    assert!(scrape.get("cache_used_bytes") >= 4096.0);
    assert!(scrape.get("connections") >= 1.0);
    assert!(scrape.get("connections_accepted_total") >= 2.0);
    assert_eq!(scrape.sum("build_info", &["version=\"", "commit=\""]), 1.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap().as_secs_f64();
    let expiry = scrape.sum("token_expiry_timestamp_seconds", &["region=\""]);
    let renewal = scrape.sum("token_renewal_timestamp_seconds", &["registry=\""]);
    assert!(
        expiry > now + 3600.0 && renewal > now && renewal < expiry,
        "{renewal} {expiry}"
    );
    let started = scrape.get("start_timestamp_seconds");
    assert!(started > now - 600.0 && started <= now, "{started}");
    // What is on the disk is counted again after a restart.
    cached.stop();
    cached.start_again();
    wait_until("the cache is counted", SOON, || {
        let scrape = Scrape::of(cached.address());
        (scrape.get("cache_images"), scrape.get("cache_blobs")) == (1.0, 1.0)
    });
}

#[test]
fn transfers_and_damage_are_counted() {
    const SIZE: u64 = 2 << 20;
    let cached = Cached::start();
    let blob = cached.standin.add_blob_of("team/app", SIZE, 1);
    let target = format!("/v2/team/app/blobs/{blob}");
    cached
        .standin
        .fault(Match::s3(), Fault::StallAfter(SIZE / 2));
    let mut first = cached.begin(&target, &[]);
    first.read_to(1);
    let second = cached.begin(&target, &[]);
    let scrape = Scrape::now(cached.address());
    assert_eq!(scrape.get("transfers_running{kind=\"fill\"}"), 1.0);
    assert_eq!(scrape.get("fills_joined_total"), 1.0);
    assert!(scrape.get("requests_running") >= 3.0);
    cached.release();
    let length = usize::try_from(SIZE).unwrap();
    assert!(first.whole(length).is_some() && second.whole(length).is_some());
    cached.wait_for_blob(&blob);
    let path = cached.path("blobs/sha256").join(&blob[7..]);
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(b"damaged", 4096).unwrap();
    assert_eq!(cached.get(&target).digest, blob);
    wait_until("everything has ended", SOON, || {
        let scrape = Scrape::of(cached.address());
        scrape.get("transfers_running{kind=\"fill\"}") == 0.0
            && scrape.get("fills_total{result=\"done\"}") == 2.0
    });
    let scrape = Scrape::of(cached.address());
    assert_eq!(scrape.get("cache_damaged_blobs_total"), 1.0);
    // Bytes that do not have the digest never become a blob.
    let other = cached.standin.add_blob_of("team/app", SIZE, 2);
    cached.standin.fault(Match::s3(), Fault::WrongBytes);
    let _ = cached.try_get(&format!("/v2/team/app/blobs/{other}"));
    wait_until("the wrong digest is counted", SOON, || {
        Scrape::of(cached.address()).get("digest_failures_total") == 1.0
    });
}

#[test]
fn a_push_is_counted() {
    let cached = Cached::start();
    let bytes = vec![7; 100_000];
    let target = format!("/v2/new/repo/blobs/uploads/?digest={}", digest(&bytes));
    let got = Http::once(cached.address(), "POST", &target, &[], &bytes);
    assert_eq!(got.status, 201, "{}", got.text());
    let scrape = Scrape::of(cached.address());
    assert_eq!(scrape.get(&requests("upload", "POST", "201", "none")), 1.0);
    assert_eq!(scrape.get("received_bytes_total"), 100_000.0);
}

fn auth_file(folder: &Scratch) -> String {
    let path = folder.path().join("htpasswd");
    std::fs::write(&path, CHEAP).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_login_holds_for_metrics_unless_they_are_anonymous() {
    let folder = Scratch::new();
    let file = auth_file(&folder);
    for anonymous in ["false", "true"] {
        let settings = [
            ("AUTH_FILE", file.as_str()),
            ("METRICS_ANONYMOUS", anonymous),
        ];
        let front = Front::with(Options::default(), &settings);
        let without = front.get("/metrics");
        if anonymous == "true" {
            let scrape = Scrape::read(&without);
            assert_eq!(scrape.get("logins_failed_total"), 0.0);
        } else {
            assert_eq!(without.status, 401);
            assert!(without.header("WWW-Authenticate").is_some());
            assert_eq!(error_of(&without).0, "UNAUTHORIZED");
        }
        let wrong = ("Authorization", "Basic YWxpY2U6d3Jvbmc=");
        let refused = front.call("GET", MANIFEST, &[wrong], b"");
        assert_eq!(refused.status, 401);
        wait_until("the wrong login is counted", SOON, || {
            let scrape = Scrape::read(&front.call("GET", "/metrics", &[RIGHT], b""));
            assert_eq!(scrape.get("logins_failed_total"), 1.0);
            scrape.get(&requests("manifest", "GET", "401", "none")) == 1.0
        });
        // Nothing else is open because of it.
        for page in ["/", "/status.json", "/v2/"] {
            assert_eq!(front.get(page).status, 401, "{page}");
        }
    }
}

#[test]
fn client_certificates_hold_for_metrics_unless_they_are_anonymous() {
    let pki = Pki::new();
    for (anonymous, expected) in [("false", 403), ("true", 200)] {
        let mut settings = pki.settings_with_clients();
        settings.push(("METRICS_ANONYMOUS", anonymous.to_owned()));
        let settings: Vec<(&str, &str)> = settings
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let front = Front::with(Options::default(), &settings);
        let mut client = Http::connect_tls(front.address(), &pki.client()).unwrap();
        assert_eq!(client.get("/metrics").status, expected);
        assert_eq!(client.get("/status.json").status, 403);
        assert_eq!(client.get("/v2/").status, 403);
    }
}

/// The address that the proxy has logged for metrics.
fn own_address(front: &Front) -> SocketAddr {
    let line = front.proxy.wait_for_log("metrics and status on ");
    let after = line.split("metrics and status on ").nth(1).unwrap();
    let end = after.find([' ', '"', '\n']).unwrap_or(after.len());
    after[..end]
        .parse()
        .unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn metrics_have_an_address_of_their_own_and_are_then_nowhere_else() {
    let (pki, folder) = (Pki::new(), Scratch::new());
    let file = auth_file(&folder);
    let mut settings = pki.settings_with_clients();
    settings.push(("AUTH_FILE", file));
    settings.push(("METRICS_LISTEN", "127.0.0.1:0".to_owned()));
    let settings: Vec<(&str, &str)> = settings
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let mut front = Front::with(Options::default(), &settings);
    let own = own_address(&front);
    // Plain HTTP, and without login.
    let scrape = Scrape::of(own);
    assert_eq!(scrape.get("workers"), 8.0);
    for (page, status) in [
        ("/", 200),
        ("/status.json", 200),
        ("/healthz", 200),
        ("/version", 200),
        ("/v2/", 404),
        (MANIFEST, 404),
        ("/nowhere", 404),
    ] {
        assert_eq!(Http::get_once(own, page).status, status, "{page}");
    }
    let identity = pki.authority.sign("node.example", 2090);
    let versions = [&rustls::version::TLS13];
    let config = pki.authority.client(&versions, Some(&identity));
    let mut client = Http::connect_tls(front.address(), &config).unwrap();
    for page in ["/metrics", "/", "/status.json"] {
        assert_eq!(
            client.request("GET", page, &[RIGHT], b"").status,
            404,
            "{page}"
        );
    }
    assert_eq!(client.request("GET", "/v2/", &[RIGHT], b"").status, 200);
    for method in ["POST", "DELETE"] {
        let refused = Http::once(own, method, "/metrics", &[], b"");
        assert_eq!(
            (refused.status, refused.header("Allow")),
            (405, Some("GET, HEAD"))
        );
    }
    let head = Http::once(own, "HEAD", "/metrics", &[], b"");
    assert_eq!((head.status, head.length), (200, 0));
    assert!(front.seen(Server::Registry).is_empty());
    drop(client);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_aws-ecr-proxy"));
    let settings = settings
        .iter()
        .filter(|(name, _)| *name != "METRICS_LISTEN");
    command
        .env_clear()
        .envs(settings.copied())
        .env("METRICS_LISTEN", own.to_string());
    let status = command.args(["status", "--json"]).output().unwrap();
    let document: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert!(
        status.status.success() && document["state"].is_string(),
        "{document}"
    );
    front.proxy.term();
    assert_eq!(front.proxy.wait_exit().code(), Some(0));
}

#[test]
fn an_address_that_is_taken_ends_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = crate::support::Proxy::command();
    command.env("METRICS_LISTEN", &address);
    let mut proxy = crate::support::Proxy::spawn(command);
    assert_eq!(proxy.wait_exit().code(), Some(1));
    let log = proxy.log();
    assert!(
        log.contains(&address) && log.contains("set METRICS_LISTEN"),
        "{log}"
    );
}

#[test]
fn repositories_are_counted_on_request_and_no_more_than_a_thousand() {
    let front = Front::with(Options::default(), &[("METRICS_REPOSITORIES", "true")]);
    front.standin.add_repositories(2000);
    let mut http = front.http();
    for number in 0..2000 {
        let target = format!("/v2/many/repository-{number:04}/tags/list");
        assert_eq!(http.get(&target).status, 200);
    }
    // Clients' own inventions do not count.
    for number in 0..50 {
        assert_eq!(
            http.get(&format!("/v2/none/{number}/tags/list")).status,
            404
        );
    }
    let scrape = Scrape::of(front.address());
    let of = |name: &str| {
        let series = scrape
            .samples
            .keys()
            .filter(|series| series.starts_with(name));
        series.cloned().collect::<Vec<String>>()
    };
    let counted = of("repository_requests_total{");
    assert_eq!(counted.len(), 1001);
    assert!(!counted.iter().any(|series| series.contains("none/")));
    assert_eq!(scrape.sum("repository_requests_total", &[]), 2000.0);
    let others = "repository_requests_total{registry=\"other\",repository=\"other\"}";
    assert_eq!(scrape.get(others), 1000.0);
    assert_eq!(of("repository_sent_bytes_total{").len(), 1001);
    // Without the setting no name is shown.
    let front = Front::start();
    front.standin.add_repositories(1);
    assert_eq!(front.get("/v2/many/repository-0000/tags/list").status, 200);
    let text = front.get("/metrics").text();
    assert!(!text.contains("many/repository"), "{text}");
}

#[test]
fn hostile_requests_make_no_labels() {
    let front = Front::with(Options::default(), &[("METRICS_REPOSITORIES", "true")]);
    for target in [
        "/v2/a\"}/manifests/1",
        "/v2/%22%7D%0Aforged%201/blobs/x",
        "/metrics?\"}",
        "/%0A#%20HELP",
        "/v2/a\\/tags/list",
    ] {
        for method in ["GET", "FORGED", "G\"}", "get"] {
            let head =
                format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            crate::support::raw(front.address(), head.as_bytes());
        }
    }
    let scrape = Scrape::of(front.address());
    let text = format!("{:?}", scrape.samples);
    for forged in ["forged", "FORGED", "HELP", "%"] {
        assert!(!text.contains(forged), "{forged}");
    }
    let methods: BTreeSet<&str> = scrape
        .samples
        .keys()
        .filter_map(|series| series.split("method=\"").nth(1)?.split('"').next())
        .collect();
    assert!(
        methods
            .iter()
            .all(|method| ["GET", "other"].contains(method)),
        "{methods:?}"
    );
}

#[test]
fn the_document_names_what_is_shown() {
    let page = std::fs::read_to_string("docs/metrics.md").unwrap();
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let known: BTreeSet<&str> = rows.filter(|name| name.starts_with(PREFIX)).collect();
    let cached = Cached::with(&[("METRICS_REPOSITORIES", "true"), ("PREFETCH", "@/dev/null")]);
    cached.standin.put_image("team/app", "1.0", &[]);
    assert_eq!(cached.get(MANIFEST).status, 200);
    let shown = Scrape::of(cached.address()).names();
    let unknown: Vec<&String> = shown
        .iter()
        .filter(|name| !known.contains(name.as_str()))
        .collect();
    assert!(unknown.is_empty(), "not in docs/metrics.md: {unknown:?}");
    let hidden: Vec<&&str> = known
        .iter()
        .filter(|name| !shown.contains(**name))
        .collect();
    // Static keys do not end, no call has failed, and no scrub was due.
    let expected = [
        "cache_scrub_end_timestamp_seconds",
        "cache_scrub_progress_percent",
        "credentials_expiry_timestamp_seconds",
        "upstream_errors_total",
    ];
    let expected = expected.map(|name| format!("{PREFIX}{name}"));
    let hidden: Vec<String> = hidden.into_iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(hidden, expected);
}
