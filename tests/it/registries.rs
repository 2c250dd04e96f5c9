//! Several registries behind one proxy: which one a request means, and that nothing of one is
//! taken for the other's.

use serde_json::Value;
use standin::{Fault, Image, Layer, Match, Options, Server, Standin};

use crate::support::{
    Cached, Http, Proxy, Response, SOON, Scratch, error_of, target_of, wait_until,
};

const TAG: &str = "team/app/manifests/1.0";
const EU: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const US: &str = "210987654321.dkr.ecr.us-east-1.amazonaws.com";

/// A proxy in front of two registries: the one of `front` is the default.
struct Two {
    front: Cached,
    other: Standin,
}

impl Two {
    fn start() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let front = Cached::on(Scratch::new(), options.clone(), &[("CACHE_TAG_TTL", "0s")]);
        let other = Standin::start_beside(&front.standin, options);
        let two = Self { front, other };
        two.restarted()
    }

    fn restarted(mut self) -> Self {
        self.front.stop();
        let list = format!(
            "{},{}",
            self.front.standin.registry_url(),
            self.other.registry_url()
        );
        let hosts = format!(
            "{},{}",
            self.front.standin.blob_host(),
            self.other.blob_host()
        );
        let settings = [("ECR", list.as_str()), ("BLOB_HOSTS", hosts.as_str())];
        self.front.start_again_with(&settings);
        self
    }

    /// `127.0.0.1:PORT` of the other registry.
    fn host(&self) -> String {
        host(&self.other)
    }

    fn get(&self, target: &str) -> Response {
        self.front.get(target)
    }

    fn address(&self) -> String {
        format!("http://{}", self.front.address())
    }

    /// The three ways to a path of the other registry: by name, by name encoded, and by path.
    fn ways(&self, path: &str) -> [String; 3] {
        let (host, encoded) = (self.host(), self.host().replace(':', "%3A"));
        let separator = if path.contains('?') { '&' } else { '?' };
        [
            format!("/v2/{path}{separator}ns={host}"),
            format!("/v2/{path}{separator}ns={encoded}"),
            format!("/v2/{host}/{path}"),
        ]
    }
}

fn host(standin: &Standin) -> String {
    standin.registry_url().replace("http://", "")
}

fn put(standin: &Standin, text: &str) -> Image {
    standin.put_image(
        "team/app",
        "1.0",
        &[Layer::of_files(&[("hello", text.as_bytes())])],
    )
}

fn registry_calls(standin: &Standin, method: &str) -> usize {
    standin.count(Server::Registry, method, "")
}

#[test]
fn each_registry_is_reached_by_name_and_by_path() {
    let two = Two::start();
    let (one, other) = (put(&two.front.standin, "one"), put(&two.other, "other"));
    assert_eq!(two.get(&format!("/v2/{TAG}")).body, one.bytes);
    for target in two.ways(TAG) {
        let got = two.get(&target);
        assert_eq!((got.status, &got.body), (200, &other.bytes), "{target}");
        let named = target.contains("ns=").then(|| two.host());
        assert_eq!(got.header("OCI-Namespace"), named.as_deref());
    }
    let own = host(&two.front.standin);
    for target in [format!("/v2/{TAG}?ns={own}"), format!("/v2/{own}/{TAG}")] {
        assert_eq!(two.get(&target).body, one.bytes, "{target}");
    }
    for (target, standin) in [("", &two.front.standin), (&*two.host(), &two.other)] {
        for path in ["_catalog", "team/app/tags/list", ""] {
            let got = two.get(&format!("/v2/{target}/{path}").replace("//", "/"));
            assert_eq!(got.status, 200, "{path}: {}", got.text());
        }
        let seen = standin.requests();
        let targets = seen.iter().filter(|seen| seen.server == Server::Registry);
        let foreign = |target: &str| target.contains("ns=") || target.contains("127.0.0.1");
        assert!(targets.clone().all(|seen| !foreign(&seen.target)));
        assert!(targets.count() >= 3);
    }
    let log = two.front.proxy().log();
    assert!(
        log.contains(&two.other.registry_url()),
        "the list is in the log"
    );
    assert!(
        two.get("/readyz")
            .text()
            .contains(&two.other.registry_url())
    );
}

#[test]
fn the_list_of_registries_is_closed() {
    let two = Two::start();
    put(&two.front.standin, "one");
    let before = two.front.calls();
    for target in [
        format!("/v2/{TAG}?ns=evil.example%2F"),
        format!("/v2/{TAG}?ns={EU}"),
        format!("/v2/evil.example:5000/{TAG}"),
        format!("/v2/{US}/{TAG}"),
        format!("/v2/{}/{TAG}?ns={}", two.host(), host(&two.front.standin)),
        format!("/v2/_catalog?ns={EU}"),
    ] {
        let got = two.get(&target);
        assert_eq!(got.status, 404, "{target}");
        assert_eq!(error_of(&got).0, "NAME_UNKNOWN", "{target}");
        assert_eq!(got.header("OCI-Namespace"), None);
    }
    let head = two.front.head(&format!("/v2/{TAG}?ns={EU}"));
    assert_eq!((head.status, head.length), (404, 0));
    assert_eq!((two.front.calls(), two.other.requests().len()), (before, 0));
    // What only looks like a host is a repository of the default registry, if it has one.
    let dotted = two.front.standin.put_image("my.app/x", "1.0", &[]);
    assert_eq!(two.get("/v2/my.app/x/manifests/1.0").body, dotted.bytes);
    let got = two.get("/v2/ghcr.io/x/manifests/1.0");
    assert_eq!((got.status, error_of(&got).0), (404, "NAME_UNKNOWN".into()));
}

/// What clients send that mirror another registry through a prefix here: containerd's
/// `override_path`, BuildKit's `mirrors = ["proxy/docker-hub"]`, CRI-O's and podman's `location`.
#[test]
fn a_mirrored_image_is_found_whatever_origin_the_client_names() {
    let two = Two::start();
    let name = "docker-hub/library/alpine";
    let layer = Layer::of_files(&[("hello", b"alpine")]);
    let image = two.front.standin.put_image(name, "3", &[layer]);
    let digest = &image.manifest;
    let strangers = ["docker.io", "quay.io", "evil.example%3A5000", "10.0.0.1"];
    for query in strangers.map(|origin| format!("?ns={origin}")) {
        let target = format!("/v2/{name}/manifests/3{query}");
        let head = two.front.head(&target);
        assert_eq!((head.status, head.header("OCI-Namespace")), (200, None));
        assert_eq!(two.get(&target).body, image.bytes, "{target}");
        let got = two.get(&format!("/v2/{name}/manifests/{digest}{query}"));
        assert_eq!(got.body, image.bytes);
        // Without a place for it the registry says that there is none.
        let got = two.get(&format!("/v2/library/alpine/manifests/3{query}"));
        assert_eq!((got.status, error_of(&got).0), (404, "NAME_UNKNOWN".into()));
    }
    let plain = two.get(&format!("/v2/{name}/manifests/3"));
    assert_eq!(plain.body, image.bytes);
    assert_eq!(two.other.requests().len(), 0);
}

/// `NAMESPACES`, as containerd's plain `server`, `/v2/ORIGIN/…` and `override_path` use it.
#[test]
fn a_namespace_leads_to_the_place_of_its_origin() {
    let mut two = Two::start();
    let layer = |text: &str| Layer::of_files(&[("hello", text.as_bytes())]);
    let name = "docker-hub/library/alpine";
    let hub = two.front.standin.put_image(name, "3", &[layer("hub")]);
    for n in 0..3 {
        two.front.standin.put_image(name, &format!("3.{n}"), &[]);
    }
    let quay = two
        .other
        .put_image("quay/coreos/etcd", "3", &[layer("quay")]);
    let place = format!("docker.io=docker-hub,quay.io={}/quay", two.host());
    two.front.stop();
    let (own, other) = (host(&two.front.standin), two.host());
    let list = format!("http://{own},http://{other}");
    let settings = [("ECR", list.as_str()), ("NAMESPACES", &place)];
    two.front.start_again_with(&settings);
    let (docker, quay_io) = (Some("docker.io"), Some("quay.io"));
    for (target, image, namespace) in [
        ("/v2/library/alpine/manifests/3?ns=docker.io", &hub, docker),
        (
            "/v2/docker-hub/library/alpine/manifests/3?ns=docker.io",
            &hub,
            docker,
        ),
        ("/v2/docker.io/library/alpine/manifests/3", &hub, None),
        ("/v2/docker-hub/library/alpine/manifests/3", &hub, None),
        ("/v2/coreos/etcd/manifests/3?ns=quay.io", &quay, quay_io),
        ("/v2/quay.io/coreos/etcd/manifests/3", &quay, None),
    ] {
        let head = two.front.head(target);
        assert_eq!(
            (head.status, head.header("OCI-Namespace")),
            (200, namespace)
        );
        let got = two.get(target);
        assert_eq!((got.status, &got.body), (200, &image.bytes), "{target}");
        assert_eq!(got.header("OCI-Namespace"), namespace, "{target}");
    }
    let digest = &hub.manifest;
    let by_digest = format!("/v2/library/alpine/manifests/{digest}?ns=docker.io");
    assert_eq!(two.get(&by_digest).body, hub.bytes);
    assert_pages_stay_at_the_origin(&two);
    // Nothing of the names went upstream.
    for seen in two
        .front
        .standin
        .requests()
        .iter()
        .chain(&two.other.requests())
    {
        assert!(!seen.target.contains("ns="), "{}", seen.target);
        assert!(!seen.target.contains("docker.io"), "{}", seen.target);
    }
    assert_eq!(two.get("/v2/library/alpine/manifests/3").status, 404);
}

/// Each page of a list leads on to where the client is.
fn assert_pages_stay_at_the_origin(two: &Two) {
    let mut names = Vec::new();
    let mut next = Some("/v2/library/alpine/tags/list?n=2&ns=docker.io".to_owned());
    while let Some(target) = next.take() {
        let got = two.get(&target);
        assert_eq!(got.status, 200, "{target}: {}", got.text());
        let page: Value = serde_json::from_slice(&got.body).unwrap();
        let tags = page["tags"].as_array().unwrap().iter();
        names.extend(tags.map(|tag| tag.as_str().unwrap().to_owned()));
        next = link_of(&got).map(|url| url.replace(&two.address(), ""));
        let begin = "/v2/library/alpine/tags/list?";
        let ours = |url: &String| url.starts_with(begin) && url.contains("ns=docker.io");
        assert!(next.iter().all(ours), "{next:?}");
    }
    names.sort();
    assert_eq!(names, ["3", "3.0", "3.1", "3.2"]);
}

#[test]
fn tags_are_kept_apart_and_blobs_are_shared() {
    let two = Two::start();
    let layer = Layer::of_files(&[("hello", b"shared")]);
    let standins = [&two.front.standin, &two.other];
    let images =
        standins.map(|standin| standin.put_image("team/app", "1.0", std::slice::from_ref(&layer)));
    let digest = &images[0].layers[0];
    let blob = format!("team/app/blobs/{digest}");
    assert_eq!(&two.get(&format!("/v2/{blob}")).digest, digest);
    two.front.wait_for_blob(digest);
    let gets = registry_calls(&two.other, "GET");
    for target in two.ways(&blob) {
        let got = two.get(&target);
        assert_eq!(
            (&got.digest, got.header("X-Cache")),
            (digest, Some("HIT")),
            "{target}"
        );
    }
    // The other registry was asked once whether it has it, and sent nothing.
    assert_eq!(registry_calls(&two.other, "HEAD"), 1);
    assert_eq!(
        (
            registry_calls(&two.other, "GET"),
            two.other.sent(Server::S3)
        ),
        (gets, 0)
    );
    // What the other has not is not there, whoever else brought it into the cache.
    let alone = two.front.standin.add_blob("team/app", b"mine alone");
    let mine = format!("team/app/blobs/{alone}");
    assert_eq!(two.get(&format!("/v2/{mine}")).status, 200);
    two.front.wait_for_blob(&alone);
    for target in two.ways(&mine) {
        assert_eq!(two.get(&target).status, 404, "{target}");
    }
    // So with manifests, by digest.
    let own = put(&two.front.standin, "own");
    let manifest = format!("team/app/manifests/{}", own.manifest);
    assert_eq!(two.get(&format!("/v2/{manifest}")).status, 200);
    for target in two.ways(&manifest) {
        assert_eq!(two.get(&target).status, 404, "{target}");
    }
}

#[test]
fn a_slow_download_of_one_registry_keeps_nobody_of_another_waiting() {
    let two = Two::start();
    let digest = two.front.standin.add_blob_of("team/app", 300_000, 7);
    let shared = two.other.add_blob_of("team/app", 300_000, 7);
    assert_eq!(digest, shared);
    let stall = Match::s3();
    two.front.standin.fault(stall, Fault::StallAfter(100_000));
    let mut begun = two
        .front
        .begin(&format!("/v2/team/app/blobs/{digest}"), &[]);
    begun.read_to(1);
    let [target, ..] = two.ways(&format!("team/app/blobs/{digest}"));
    // While that download stalls, the other registry sends its own.
    assert_eq!(two.get(&target).digest, digest);
    assert_eq!(registry_calls(&two.other, "GET"), 1);
    two.front.release();
    assert_eq!(
        begun.whole(300_000).map(|body| standin::digest(&body)),
        Some(digest.clone())
    );
    // One that has it not gets no byte of a download that is for another.
    let alone = two.front.standin.add_blob_of("team/app", 300_000, 8);
    let stall = Match::s3();
    two.front.standin.fault(stall, Fault::StallAfter(100_000));
    let mut begun = two.front.begin(&format!("/v2/team/app/blobs/{alone}"), &[]);
    begun.read_to(1);
    let [target, ..] = two.ways(&format!("team/app/blobs/{alone}"));
    assert_eq!(two.get(&target).status, 404);
    two.front.release();
    assert!(begun.whole(300_000).is_some());
}

#[test]
fn an_outage_leaves_each_registry_what_it_had() {
    let two = Two::start();
    let (one, other) = (put(&two.front.standin, "one"), put(&two.other, "other"));
    let [by_name, _, by_path] = two.ways(TAG);
    let own = format!("/v2/{TAG}");
    for target in [&own, &by_name] {
        assert_eq!(two.get(target).status, 200);
    }
    // One is down, the other is not.
    two.other.down(Server::Registry);
    assert_eq!(two.get(&by_path).header("X-Cache"), Some("STALE"));
    assert_eq!(two.get(&own).header("X-Cache"), Some("REVALIDATED"));
    two.front.all_down();
    let two = two.restarted();
    for (target, image) in [(&own, &one), (&by_name, &other), (&by_path, &other)] {
        let got = two.get(target);
        assert_eq!(
            (got.header("X-Cache"), &got.body),
            (Some("STALE"), &image.bytes)
        );
    }
    assert_eq!(two.get("/readyz").status, 200);
    assert_eq!(two.get(&format!("/v2/{TAG}?ns={EU}")).status, 404);
}

/// The URL of the one relation in a `Link` field.
fn link_of(got: &Response) -> Option<String> {
    let link = got.header("Link")?;
    Some(link.split(['<', '>']).nth(1).expect("a URL").to_owned())
}

#[test]
fn pages_lead_back_to_the_registry_that_was_named() {
    let two = Two::start();
    two.other.add_tags("team/app", 250);
    for first in two.ways("team/app/tags/list?n=100") {
        let (mut target, mut count) = (first.clone(), 0);
        loop {
            let got = two.get(&target);
            assert_eq!(got.status, 200, "{target}: {}", got.text());
            let list: Value = serde_json::from_slice(&got.body).unwrap();
            // Upstream's own name for the repository, which is the same under every host.
            assert_eq!(list["name"], "team/app");
            count += list["tags"].as_array().unwrap().len();
            let Some(link) = link_of(&got) else {
                break;
            };
            let start = format!("{}{}", two.address(), &first[..first.find('?').unwrap()]);
            assert!(link.starts_with(&start), "{link}");
            target = target_of(&link).to_owned();
        }
        assert_eq!(count, 250, "{first}");
    }
}

#[test]
fn a_push_goes_where_its_path_says() {
    let two = Two::start();
    let uploads = "/v2/new/repo/blobs/uploads/";
    let host = two.host();
    let call = |method: &str, target: &str, body: &[u8]| {
        Http::once(two.front.address(), method, target, &[], body)
    };
    // By the path, and every step leads there again.
    let begun = call("POST", &format!("/v2/{host}/new/repo/blobs/uploads/"), b"");
    assert_eq!(begun.status, 202);
    let location = begun.header("Location").unwrap();
    let start = format!("{}/v2/{host}/new/repo/blobs/uploads/", two.address());
    assert!(location.starts_with(&start), "{location}");
    let patched = call("PATCH", target_of(location), b"abc");
    let location = patched.header("Location").unwrap();
    assert!(location.starts_with(&start), "{location}");
    let digest = standin::digest(b"abc");
    let separator = if location.contains('?') { '&' } else { '?' };
    let put = format!("{}{separator}digest={digest}", target_of(location));
    assert_eq!(call("PUT", &put, b"").status, 201);
    assert!(two.other.blob("new/repo", &digest).is_some());
    assert!(two.front.standin.blob("new/repo", &digest).is_none());
    // A name in the query says nothing of a push (containerd sends none with it).
    for name in [host.as_str(), "docker.io"] {
        let begun = call("POST", &format!("{uploads}?ns={name}"), b"");
        assert_eq!((begun.status, begun.header("OCI-Namespace")), (202, None));
        let location = begun.header("Location").unwrap();
        assert!(
            location.starts_with(&format!("{}{uploads}", two.address())),
            "{location}"
        );
    }
    assert_eq!(
        two.front.standin.count(Server::Registry, "POST", "uploads"),
        2
    );
    // A mount is asked for in the registry's own words.
    two.other.add_blob("old", b"abcdef");
    let mount = standin::digest(b"abcdef");
    let from = format!("{host}/old")
        .replace(':', "%3A")
        .replace('/', "%2F");
    let mounted = call(
        "POST",
        &format!("/v2/{host}/new/repo/blobs/uploads/?mount={mount}&from={from}"),
        b"",
    );
    assert_eq!(mounted.status, 201, "{}", mounted.text());
    assert!(two.other.blob("new/repo", &mount).is_some());
}

#[test]
fn the_identitys_registry_is_known_by_its_name() {
    let mut cached = Cached::start();
    let image = put(&cached.standin, "own");
    cached.stop();
    cached.start_again_with(&[("ECR", "")]);
    let own = host(&cached.standin);
    for target in [format!("/v2/{TAG}?ns={own}"), format!("/v2/{own}/{TAG}")] {
        // Whether it is a name of ECR's or not, it is known once there is a token.
        wait_until("a token is there", SOON, || {
            cached.get("/readyz").status == 200
        });
        assert_eq!(cached.get(&target).body, image.bytes, "{target}");
    }
    // A name that may be the identity's waits for the token, and is refused if it is not.
    let got = cached.get(&format!("/v2/{TAG}?ns={US}"));
    assert_eq!((got.status, error_of(&got).0), (404, "NAME_UNKNOWN".into()));
    // And from a start without network.
    cached.all_down();
    cached.stop();
    cached.start_again_with(&[("ECR", "")]);
    let got = cached.get(&format!("/v2/{own}/{TAG}"));
    assert_eq!(
        (got.header("X-Cache"), &got.body),
        (Some("STALE"), &image.bytes)
    );
    assert_eq!(cached.get(&format!("/v2/{TAG}?ns={US}")).status, 404);
}

#[test]
fn a_proxy_behind_a_proxy_knows_ecrs_names() {
    let site = Cached::start();
    let image = put(&site.standin, "site");
    let scratch = Scratch::new();
    let url = format!("http://{}", site.address());
    let cache = scratch.path().to_str().unwrap().to_owned();
    let settings = [
        ("ECR", url.as_str()),
        ("UPSTREAM_AUTH", "none"),
        ("CACHE_DIR", &cache),
    ];
    let node = Proxy::start(&settings);
    let get = |target: String| Http::get_once(node.address(), &target);
    for target in [format!("/v2/{TAG}?ns={EU}"), format!("/v2/{EU}/{TAG}")] {
        let got = get(target);
        assert_eq!(
            (got.status, &got.body),
            (200, &image.bytes),
            "{}",
            got.text()
        );
    }
    // Each name is a registry of its own to the node: the site may have several.
    let tag = format!("repos/{EU}/team/app/_tags/1.0");
    assert!(scratch.path().join(tag).exists());
    assert_eq!(get(format!("/v2/{TAG}?ns=%zz")).status, 404);
    // The site took the name, and its registry saw nothing of it.
    site.proxy().wait_for_log(&format!("ns={EU}"));
    let seen = site.seen(Server::Registry);
    assert!(!seen.is_empty() && seen.iter().all(|seen| !seen.target.contains("ns=")));
}
