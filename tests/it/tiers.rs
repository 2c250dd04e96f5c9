//! Proxies in front of proxies: what passes through each tier, and what stays of a pull when the
//! tier above is gone.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use standin::{Fault, Layer, Match, Options, Server, Standin};

use crate::support::{
    Begun, Http, Proxy, Relay, Response, SOON, Scratch, error_of, in_parallel, raise_descriptors,
    target_of, wait_until,
};

/// A proxy with a cache of its own; it ends before its cache goes.
struct Tier {
    proxy: Proxy,
    scratch: Scratch,
}

impl Tier {
    /// In front of the registry itself.
    fn top(standin: &Standin, scratch: Scratch, settings: &[(&str, &str)]) -> Self {
        let mut command = Proxy::command();
        command.envs(standin.settings());
        command.env("CACHE_DIR", scratch.path());
        command.envs(settings.iter().copied());
        let proxy = Proxy::start_command(command);
        Self { proxy, scratch }
    }

    /// In front of another tier.
    fn below(url: &str, settings: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new();
        let mut command = Proxy::command();
        command.env("ECR", url).env("UPSTREAM_AUTH", "none");
        command.env("CACHE_DIR", scratch.path());
        command.envs(settings.iter().copied());
        let proxy = Proxy::start_command(command);
        Self { proxy, scratch }
    }

    fn address(&self) -> SocketAddr {
        self.proxy.address()
    }

    fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    fn get(&self, target: &str) -> Response {
        self.call("GET", target, &[], b"")
    }

    fn call(&self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Response {
        Http::once(self.address(), method, target, fields, body)
    }
}

/// A site in front of the stand-in, and a node in front of the site.
struct Tiers {
    node: Tier,
    /// None while it is gone.
    site: Option<Tier>,
    relay: Relay,
    standin: Standin,
}

const TAG: &str = "/v2/team/app/manifests/1.0";

impl Tiers {
    fn start(site: &[(&str, &str)], node: &[(&str, &str)]) -> Self {
        let standin = Standin::start(Options::default());
        let (relay, site) = (Relay::start(), Tier::top(&standin, Scratch::new(), site));
        relay.lead_to(site.address());
        let node = Tier::below(&relay.url(), node);
        Self {
            node,
            site: Some(site),
            relay,
            standin,
        }
    }

    fn site(&self) -> &Tier {
        self.site.as_ref().expect("a site")
    }

    /// Ends the site at whatever it does; its cache stays.
    fn kill_site(&mut self) -> Scratch {
        let Tier { proxy, scratch } = self.site.take().expect("a site");
        drop(proxy);
        scratch
    }

    fn start_site(&mut self, scratch: Scratch, settings: &[(&str, &str)]) {
        let site = Tier::top(&self.standin, scratch, settings);
        self.relay.lead_to(site.address());
        self.site = Some(site);
    }
}

fn words<'a>(reply: &'a Response, name: &'a str) -> Vec<&'a str> {
    let lists = reply.all(name).flat_map(|value| value.split(','));
    lists.map(str::trim).collect()
}

fn age_of(reply: &Response) -> u64 {
    reply.header("Age").map_or(0, |age| age.parse().unwrap())
}

#[test]
fn the_way_and_the_id_of_a_request_pass_through_every_tier() {
    let tiers = Tiers::start(&[], &[]);
    tiers.standin.put_image("team/app", "1.0", &[]);
    let blob = tiers.standin.add_blob("team/app", b"layer");
    let fields = [("Via", "1.1 balancer (a, b)"), ("X-Request-Id", "mine")];
    for target in [TAG, &format!("/v2/team/app/blobs/{blob}"), "/v2/_catalog"] {
        let reply = tiers.node.call("GET", target, &fields, b"");
        assert_eq!(
            (reply.status, reply.header("X-Request-Id")),
            (200, Some("mine"))
        );
        let back = words(&reply, "Via");
        assert_eq!(
            back.iter()
                .filter(|hop| hop.contains("aws-ecr-proxy-"))
                .count(),
            back.len()
        );
        let seen = tiers.standin.requests();
        let seen: Vec<_> = seen.iter().filter(|seen| seen.target == target).collect();
        assert!(!seen.is_empty(), "{target}");
        for seen in seen {
            let via = seen.header("Via").unwrap();
            let hops: Vec<&str> = via.split(", 1.1 ").collect();
            assert_eq!((hops.len(), hops[0]), (3, "1.1 balancer (a, b)"), "{via}");
            assert!(
                hops[1] != hops[2] && back.last().unwrap().ends_with(hops[1]),
                "{via}"
            );
            assert_eq!(seen.header("X-Request-Id"), Some("mine"));
        }
    }
    // The blob host is no tier of ours.
    let hosts = tiers.standin.requests();
    let mut hosts = hosts.iter().filter(|seen| seen.server == Server::S3);
    assert!(hosts.all(|seen| seen.header("Via").is_none()));
    for tier in [&tiers.node, tiers.site()] {
        tier.proxy.wait_for_log("id=mine");
    }
}

#[test]
fn each_tier_says_what_its_own_cache_had() {
    let tiers = Tiers::start(&[], &[]);
    let other = Tier::below(&tiers.site().url(), &[]);
    let third = Tier::below(&other.url(), &[]);
    tiers.standin.put_image("team/app", "1.0", &[]);
    let blob = tiers.standin.add_blob("team/app", b"layer");
    for target in [TAG, &format!("/v2/team/app/blobs/{blob}")] {
        let said = |reply: &Response| {
            let said = ["X-Cache", "X-Cache-Status", "X-Cache-Upstream"];
            said.map(|name| reply.header(name).unwrap_or_default().to_owned())
        };
        assert_eq!(said(&tiers.node.get(target)), ["MISS", "MISS", "MISS"]);
        // A blob is a miss until its download is kept.
        for tier in [tiers.site(), &tiers.node] {
            let mut reply = tier.get(target);
            wait_until("a hit", SOON, || {
                reply = tier.get(target);
                reply.header("X-Cache") == Some("HIT")
            });
            assert_eq!(said(&reply), ["HIT", "HIT", ""]);
        }
        assert_eq!(said(&third.get(target)), ["MISS", "MISS", "MISS, HIT"]);
    }
    let uncached = Tier::below(&tiers.site().url(), &[("CACHE_DIR", "off")]);
    let reply = uncached.get(TAG);
    assert_eq!(reply.header("X-Cache"), None);
    assert_eq!(reply.header("X-Cache-Upstream"), Some("HIT"));
}

#[test]
fn a_circle_of_proxies_is_refused_with_508() {
    for tiers in [1, 2] {
        let relay = Relay::start();
        let other = (tiers == 2).then(|| Tier::below(&relay.url(), &[]));
        let url = other.as_ref().map_or_else(|| relay.url(), Tier::url);
        let tier = Tier::below(&url, &[]);
        relay.lead_to(tier.address());
        let digest = format!("sha256:{}", "a".repeat(64));
        let blob = format!("/v2/team/app/blobs/{digest}");
        for (method, target) in [
            ("GET", TAG),
            ("GET", TAG),
            ("GET", &*blob),
            ("HEAD", &*blob),
            ("GET", "/v2/team/app/tags/list"),
            ("POST", "/v2/team/app/blobs/uploads/"),
            ("PUT", TAG),
        ] {
            let reply = tier.call(method, target, &[], b"");
            assert_eq!(reply.status, 508, "{method} {target}: {}", reply.text());
            if method != "HEAD" {
                let (code, message) = error_of(&reply);
                assert_eq!(code, "UNAVAILABLE");
                assert!(message.contains("been at this proxy before"), "{message}");
            }
        }
        let connections = relay.connections();
        assert!(connections <= 7, "{connections} connections for 7 requests");
        assert!(tier.proxy.fds() < 100, "{} descriptors", tier.proxy.fds());
    }
}

#[test]
fn a_request_that_has_passed_too_many_proxies_is_refused() {
    let tiers = Tiers::start(&[], &[]);
    tiers.standin.put_image("team/app", "1.0", &[]);
    let ask = |hops: usize| {
        let via = vec!["1.1 x"; hops].join(", ");
        tiers.node.call("GET", TAG, &[("Via", &via)], b"")
    };
    // The node is the sixteenth that the site sees.
    assert_eq!(ask(15).status, 200);
    let refused = ask(17);
    assert_eq!(refused.status, 508);
    assert!(error_of(&refused).1.contains("more than 16 proxies"));
    let blob = tiers.standin.add_blob("team/app", b"layer");
    let target = format!("/v2/team/app/blobs/{blob}");
    let via = vec!["1.1 x"; 16].join(", ");
    let refused = tiers.node.call("GET", &target, &[("Via", &via)], b"");
    assert_eq!(refused.status, 508, "it is the site that refuses");
    assert_eq!(tiers.node.get(&target).digest, blob);
}

#[test]
fn cached_images_outlive_the_tier_above() {
    let mut tiers = Tiers::start(&[], &[("CACHE_TAG_TTL", "0s")]);
    let image = tiers.standin.put_image("team/app", "1.0", &[]);
    let config = format!("/v2/team/app/blobs/{}", image.config);
    let other = tiers.standin.add_blob("team/app", b"not pulled before");
    let other = format!("/v2/team/app/blobs/{other}");
    assert_eq!(tiers.node.get(TAG).body, image.bytes);
    assert_eq!(tiers.node.get(&config).digest, image.config);
    let scratch = tiers.kill_site();
    for _ in 0..3 {
        let stale = tiers.node.get(TAG);
        assert_eq!((stale.status, &stale.body), (200, &image.bytes));
        assert_eq!(stale.header("X-Cache"), Some("STALE"));
        assert!(stale.header("Warning").is_some() && stale.header("Age").is_some());
        assert_eq!(tiers.node.get(&config).digest, image.config);
    }
    // What was not pulled before is an outage, and no 404 that anybody remembers.
    for target in [&*other, "/v2/team/app/manifests/2.0"] {
        let status = tiers.node.get(target).status;
        assert!(matches!(status, 502 | 504), "{target} {status}");
    }
    tiers.start_site(scratch, &[]);
    let tag = tiers.standin.put_image("team/app", "2.0", &[]);
    let until = Instant::now() + SOON;
    while tiers.node.get(&other).status != 200 {
        assert!(Instant::now() < until, "the site is back");
    }
    assert_eq!(tiers.node.get("/v2/team/app/manifests/2.0").body, tag.bytes);
}

#[test]
fn a_pull_goes_on_when_the_tier_above_is_killed_in_the_middle() {
    let mut tiers = Tiers::start(&[], &[]);
    let size = 8_000_000;
    let blob = tiers.standin.add_blob_of("team/app", size as u64, 3);
    tiers
        .standin
        .fault(Match::s3(), Fault::StallAfter(3_000_000));
    let target = format!("/v2/team/app/blobs/{blob}");
    let mut client = Begun::new(tiers.node.address(), &target, &[]);
    client.read_to(1_000_000);
    let scratch = tiers.kill_site();
    tiers
        .node
        .proxy
        .wait_for_log("download broke off; resuming");
    tiers.standin.release();
    tiers.start_site(scratch, &[]);
    assert!(client.whole(size).is_some(), "the pull was cut");
    assert_eq!(tiers.node.get(&target).digest, blob);
    // The last byte comes when the blob is verified; then it is synced, and published.
    wait_until("the blob is kept", SOON, || {
        tiers.node.get(&target).header("X-Cache") == Some("HIT")
    });
}

#[test]
fn the_504_of_the_tier_above_is_no_404() {
    let tiers = Tiers::start(&[], &[]);
    let image = tiers.standin.put_image("team/app", "1.0", &[]);
    let config = format!("/v2/team/app/blobs/{}", image.config);
    tiers.standin.down(Server::Registry);
    for target in [TAG, &*config] {
        let reply = tiers.node.get(target);
        assert_eq!(reply.status, 504, "{target}");
    }
    tiers.standin.up(Server::Registry);
    let until = Instant::now() + SOON;
    while tiers.node.get(TAG).status != 200 {
        assert!(Instant::now() < until, "the registry is back");
    }
    assert_eq!(tiers.node.get(&config).digest, image.config);
}

#[test]
fn what_the_tier_above_could_not_confirm_is_stale_below_too() {
    let tiers = Tiers::start(&[("CACHE_TAG_TTL", "0s")], &[("CACHE_TAG_TTL", "1h")]);
    let image = tiers.standin.put_image("team/app", "1.0", &[]);
    assert_eq!(tiers.site().get(TAG).status, 200);
    tiers.standin.down(Server::Registry);
    std::thread::sleep(Duration::from_secs(2));
    let stale = tiers.node.get(TAG);
    assert_eq!((stale.status, &stale.body), (200, &image.bytes));
    assert_eq!(stale.header("X-Cache"), Some("STALE"));
    assert_eq!(stale.header("X-Cache-Upstream"), Some("STALE"));
    assert!(
        stale
            .header("Warning")
            .unwrap()
            .contains("answers from its cache")
    );
    assert!(age_of(&stale) >= 2, "{:?}", stale.header("Age"));
}

#[test]
fn the_age_of_a_tag_adds_up_and_no_tier_starts_its_time_anew() {
    let ttl = Duration::from_secs(4);
    let settings = [("CACHE_TAG_TTL", "4s")];
    let tiers = Tiers::start(&settings, &settings);
    tiers.standin.put_image("team/app", "1.0", &[]);
    tiers.site().get(TAG);
    let asked = Instant::now();
    let moved = tiers.standin.put_image_for("arm64", "team/app", "1.0", &[]);
    std::thread::sleep(Duration::from_secs(2));
    let mut ages = Vec::new();
    loop {
        let reply = tiers.node.get(TAG);
        if reply.body == moved.bytes {
            break;
        }
        let age = age_of(&reply);
        assert!(age <= ttl.as_secs(), "{age}: {:?}", reply.headers);
        ages.push(age);
        assert!(
            asked.elapsed() < SOON,
            "the tag moved {:?} ago",
            asked.elapsed()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    // Pulled in the middle of the site's time: the node had the rest of it and no more.
    assert!(ages.first().is_none_or(|age| *age >= 2), "{ages:?}");
}

#[test]
fn the_token_stays_at_the_top() {
    let tiers = Tiers::start(&[], &[]);
    tiers.standin.put_image("team/app", "1.0", &[]);
    let blob = tiers.standin.add_blob("team/app", b"layer");
    let login = [("Authorization", "Basic Y2xpZW50OnBhc3N3b3Jk")];
    let mut said = String::new();
    for target in [
        TAG,
        &format!("/v2/team/app/blobs/{blob}"),
        "/v2/_catalog",
        "/v2/no/tags/list",
    ] {
        let reply = tiers.node.call("GET", target, &login, b"");
        said.push_str(&format!("{:?} {}", reply.headers, reply.text()));
    }
    said.push_str(&tiers.node.proxy.log());
    for secret in tiers.standin.secrets() {
        assert!(!said.contains(&secret), "a secret came down");
    }
    // In front of a registry that shows what it was sent.
    let site = Standin::start(Options {
        demand_token: false,
        ..Options::default()
    });
    let node = Tier::below(&site.registry_url(), &[("BLOB_HOSTS", &site.blob_host())]);
    site.put_image("team/app", "1.0", &[]);
    assert_eq!(node.call("GET", TAG, &login, b"").status, 200);
    assert_eq!(
        node.call("POST", "/v2/team/app/blobs/uploads/", &login, b"")
            .status,
        202
    );
    assert!(
        site.requests()
            .iter()
            .all(|seen| seen.header("Authorization").is_none())
    );
    assert_eq!(site.count(Server::Api, "POST", ""), 0);
}

#[test]
fn a_push_through_two_tiers_is_pulled_at_once_from_both() {
    let tiers = Tiers::start(&[("CACHE_TAG_TTL", "1h")], &[("CACHE_TAG_TTL", "1h")]);
    tiers.standin.put_image("team/app", "1.0", &[]);
    for tier in [tiers.site(), &tiers.node] {
        assert_eq!(tier.get(TAG).status, 200);
        assert_eq!(tier.get("/v2/team/app/manifests/new").status, 404);
    }
    let layer = b"a layer that is pushed";
    let digest = standin::digest(layer);
    let node = &tiers.node;
    let begun = node.call("POST", "/v2/team/app/blobs/uploads/", &[], b"");
    let location = begun.header("Location").unwrap().to_owned();
    assert!(location.starts_with(&node.url()), "{location}");
    let patch = node.call("PATCH", target_of(&location), &[], layer);
    assert_eq!(patch.status, 202);
    let location = target_of(patch.header("Location").unwrap()).to_owned();
    let mark = if location.contains('?') { '&' } else { '?' };
    let put = node.call("PUT", &format!("{location}{mark}digest={digest}"), &[], b"");
    assert_eq!(put.status, 201, "{}", put.text());
    let config = standin::image::config("amd64", &[]);
    let manifest = standin::image::manifest(&config, &[]);
    let fields = [("Content-Type", standin::image::MANIFEST)];
    for tag in [TAG, "/v2/team/app/manifests/new"] {
        let put = node.call("PUT", tag, &fields, &manifest);
        assert_eq!(put.status, 201, "{}", put.text());
        for tier in [&tiers.node, tiers.site()] {
            assert_eq!(tier.get(tag).body, manifest, "{tag}");
        }
    }
    for tier in [&tiers.node, tiers.site()] {
        assert_eq!(
            tier.get(&format!("/v2/team/app/blobs/{digest}")).body,
            layer
        );
    }
}

/// Layers of the image that a crowd pulls.
const LAYERS: usize = 200;

/// An image of many small layers, under this tag: what a client asks for in turn.
fn many_layers(tiers: &Tiers, tag: &str) -> Vec<String> {
    let layer = |number: usize| Layer::of_files(&[(tag, number.to_string().as_bytes())]);
    let layers: Vec<Layer> = (0..LAYERS).map(layer).collect();
    let image = tiers.standin.put_image("team/app", tag, &layers);
    let blobs = image.layers.iter().chain([&image.config]);
    let blobs = blobs.map(|digest| format!("/v2/team/app/blobs/{digest}"));
    let manifest = format!("/v2/team/app/manifests/{tag}");
    [manifest].into_iter().chain(blobs).collect()
}

/// Pulls all of it over one connection, and says how long that took.
fn pull(tiers: &Tiers, targets: &[String]) -> Duration {
    let begun = Instant::now();
    let mut http = Http::connect(tiers.node.address());
    for target in targets {
        let got = http.get(target);
        assert_eq!(got.status, 200, "{target}: {}", got.text());
        assert!(target.contains("/manifests/") || target.ends_with(&got.digest));
    }
    begun.elapsed()
}

#[test]
fn a_crowd_of_300_costs_each_blob_once_through_two_tiers() {
    raise_descriptors();
    let room = [("MAX_CONNECTIONS_PER_PEER", "400"), ("LOG_LEVEL", "INFO")];
    let tiers = Tiers::start(&room, &room);
    let (alone, shared) = (many_layers(&tiers, "alone"), many_layers(&tiers, "shared"));
    // The link is what one client waits for: 200 layers of 2 KB in some seconds.
    tiers.standin.throttle(Server::S3, Some(100_000));
    let single = pull(&tiers, &alone);
    let times = Mutex::new(Vec::new());
    in_parallel(300, |_| {
        let time = pull(&tiers, &shared);
        times.lock().unwrap().push(time);
    });
    let slowest = times.into_inner().unwrap().into_iter().max().unwrap();
    for target in &shared {
        let asked = tiers.standin.count(Server::Registry, "GET", target);
        assert_eq!(asked, 1, "{target}");
    }
    assert_eq!(tiers.standin.count(Server::S3, "GET", ""), 2 * (LAYERS + 1));
    // The shipped binary: 1.06 times at 12 KB/s, 1.2 at 25 KB/s; here the processor is the bound.
    assert!(
        slowest < single * 10 + SOON,
        "{slowest:?}, one alone {single:?}"
    );
}
