//! Two processes on one cache directory: a rolling update, or a volume that many pods mount. Each
//! serves what the other has fetched, and neither harms what the other does.

use std::net::SocketAddr;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use standin::{Content, Fault, Image, Layer, Match, Server, digest};

use crate::support::{Begun, Cached, Http, Proxy, SOON, wait_until};

const TAG: &str = "/v2/team/app/manifests/1.0";
const SIZE: u64 = 3 << 20;
const HALF: u64 = SIZE / 2;

/// Another process on the same directory.
fn second(cached: &Cached, settings: &[(&str, &str)]) -> Proxy {
    let directory = ("CACHE_DIR", cached.scratch.text());
    let proxy = Proxy::in_front_of(&cached.standin, &[&[directory], settings].concat());
    proxy.wait_for_log("cache opened");
    proxy
}

/// An image with one layer of noise, and that layer's bytes.
fn put(cached: &Cached, seed: u64) -> (Image, Vec<u8>) {
    let layers = [Layer::of_noise(SIZE, seed)];
    let image = cached.standin.put_image("team/app", "1.0", &layers);
    (image, Content::Generated { size: SIZE, seed }.to_vec())
}

fn target(digest: &str) -> String {
    format!("/v2/team/app/blobs/{digest}")
}

/// A layer of which the first process has fetched one half, and both have a client waiting for the
/// rest.
struct Halfway {
    cached: Cached,
    second: Proxy,
    digest: String,
    bytes: Vec<u8>,
    clients: [Begun; 2],
}

impl Halfway {
    fn new(seed: u64) -> Self {
        let cached = Cached::start();
        let (image, bytes) = put(&cached, seed);
        let second = second(&cached, &[]);
        cached.get(TAG);
        Http::get_once(second.address(), TAG);
        cached.standin.fault(Match::s3(), Fault::StallAfter(HALF));
        let digest = image.layers[0].clone();
        let target = target(&digest);
        let mut clients = [cached.address(), second.address()].map(|address| {
            let mut client = Begun::new(address, &target, &[]);
            assert_eq!(client.status(), "200");
            // The stand-in's last bytes may be in a buffer.
            client.read_to(bytes.len() / 4);
            client
        });
        clients[1].read_to(bytes.len() / 3);
        Self {
            cached,
            second,
            digest,
            bytes,
            clients,
        }
    }
}

#[test]
fn what_one_process_has_fetched_the_other_serves() {
    let cached = Cached::with(&[("CACHE_TAG_TTL", "forever")]);
    let (image, bytes) = put(&cached, 1);
    let second = second(&cached, &[("CACHE_TAG_TTL", "forever")]);
    let target = target(&image.layers[0]);
    assert_eq!(cached.get(TAG).body, image.bytes);
    assert_eq!(cached.get(&target).body, bytes);
    cached.wait_for_blob(&image.layers[0]);
    cached.all_down();
    for (target, body) in [(TAG, &image.bytes), (&target, &bytes)] {
        let got = Http::get_once(second.address(), target);
        assert_eq!((got.status, got.header("X-Cache")), (200, Some("HIT")));
        assert_eq!(&got.body, body);
    }
}

#[test]
fn a_blob_that_another_process_downloads_is_fetched_once() {
    let Halfway {
        cached,
        second,
        digest,
        bytes,
        clients,
    } = Halfway::new(2);
    cached.release();
    for client in clients {
        assert_eq!(client.whole(bytes.len()).unwrap(), bytes);
    }
    cached.wait_for_blob(&digest);
    assert_eq!(cached.seen(Server::S3).len(), 1);
    assert_eq!(cached.standin.sent(Server::S3), SIZE);
    let again = Http::get_once(second.address(), &target(&digest));
    assert_eq!(
        (again.header("X-Cache"), &again.body),
        (Some("HIT"), &bytes)
    );
}

#[test]
fn a_download_whose_process_is_killed_goes_on_in_the_other() {
    let Halfway {
        mut cached,
        second: _second,
        digest,
        bytes,
        clients,
    } = Halfway::new(3);
    cached.kill();
    let [_cut, client] = clients;
    assert_eq!(client.whole(bytes.len()).unwrap(), bytes);
    cached.wait_for_blob(&digest);
    let seen = cached.seen(Server::S3);
    assert_eq!(seen.len(), 2);
    let from = seen[1].header("Range").expect("a range");
    let from: u64 = from["bytes=".len()..]
        .trim_end_matches('-')
        .parse()
        .unwrap();
    // What its client had got was in the file.
    assert!(from >= SIZE / 3, "from byte {from}");
    cached.standin.release();
}

#[test]
fn a_blob_of_unknown_length_is_asked_for_by_each_process() {
    let cached = Cached::start();
    let digest = cached.standin.add_blob_of("team/app", SIZE, 4);
    let bytes = Content::Generated {
        size: SIZE,
        seed: 4,
    }
    .to_vec();
    let second = second(&cached, &[]);
    cached.standin.fault(Match::s3(), Fault::StallAfter(HALF));
    let mut first = cached.begin(&target(&digest), &[]);
    first.read_to(bytes.len() / 4);
    let got = Http::get_once(second.address(), &target(&digest));
    assert_eq!((got.header("X-Cache"), &got.body), (Some("BYPASS"), &bytes));
    cached.release();
    assert_eq!(first.whole(bytes.len()).unwrap(), bytes);
    cached.wait_for_blob(&digest);
    assert_eq!(cached.seen(Server::S3).len(), 2);
}

/// Images `0` … with one layer of noise each.
fn put_many(cached: &Cached, count: u64, size: u64) -> Vec<Image> {
    let put = |n: u64| {
        let layers = [Layer::of_noise(size, n)];
        cached
            .standin
            .put_image("team/app", &n.to_string(), &layers)
    };
    (0..count).map(put).collect()
}

/// Pulls an image. None when the process went away, and never a wrong byte.
fn pull(address: SocketAddr, tag: usize, image: &Image) -> Option<()> {
    let get = |target: &str| {
        let got = Http::try_get_once(address, target)?;
        got.complete.then_some(got)
    };
    let got = get(&format!("/v2/team/app/manifests/{tag}"))?;
    assert_eq!((got.status, &got.body), (200, &image.bytes));
    for digest in image.layers.iter().chain([&image.config]) {
        let got = get(&target(digest))?;
        assert_eq!((got.status, &got.digest), (200, digest));
    }
    Some(())
}

/// Every blob is what its name says, and no process has left anything half done.
fn assert_clean(cached: &Cached) {
    for entry in std::fs::read_dir(cached.path("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        // What another process evicts now is gone.
        let Ok(bytes) = std::fs::read(&path) else {
            continue;
        };
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(digest(&bytes), format!("sha256:{name}"));
    }
}

fn temporary_files(cached: &Cached) -> usize {
    let entries = std::fs::read_dir(cached.path("partial")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name());
    let temps = names.filter(|name| name.to_str().unwrap().starts_with("temp-"));
    temps.count()
}

/// Numbers that differ from run to run; the seed is printed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seed = u64::from(now.subsec_nanos()) | 1;
        #[expect(
            clippy::print_stderr,
            reason = "the harness shows it with the failed test"
        )]
        {
            eprintln!("seed {seed}");
        }
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn pulls_go_on_while_the_other_process_evicts() {
    const QUOTA: u64 = 6 << 20;
    let settings = [("CACHE_MAX_SIZE", "6m"), ("CACHE_TAG_TTL", "forever")];
    let cached = Cached::with(&settings);
    let second = second(&cached, &settings);
    let images = put_many(&cached, 16, 1 << 20);
    std::thread::scope(|scope| {
        for (number, address) in [cached.address(), second.address()].into_iter().enumerate() {
            let images = &images;
            scope.spawn(move || {
                // From both ends, so that the one drives out what the other has just pulled.
                for round in 0..2 * images.len() {
                    let tag = (round * (2 * number + 1) * 5) % images.len();
                    pull(address, tag, &images[tag]).expect("a whole pull");
                }
            });
        }
    });
    assert_clean(&cached);
    let blobs = || cached.blobs().values().sum::<u64>();
    wait_until("both hold the quota", SOON, || {
        blobs() <= QUOTA && temporary_files(&cached) == 0
    });
}

#[test]
fn a_process_killed_at_random_harms_neither_the_other_nor_the_cache() {
    const KILLS: usize = 50;
    let settings = [("CACHE_MAX_SIZE", "8m"), ("CACHE_TAG_TTL", "0s")];
    let mut cached = Cached::with(&settings);
    let second = second(&cached, &settings);
    let images = put_many(&cached, 24, 700 << 10);
    let mut random = Random::new();
    let over = AtomicBool::new(false);
    let pulls = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (images, over, pulls, address) = (&images, &over, &pulls, second.address());
            scope.spawn(move || {
                let mut tag = thread * 7;
                while !over.load(Ordering::Relaxed) {
                    tag = (tag + 5) % images.len();
                    pull(address, tag, &images[tag]).expect("the survivor serves");
                    pulls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..KILLS {
            let address = cached.address();
            let first = usize::try_from(random.below(24)).unwrap();
            std::thread::scope(|scope| {
                for client in 0..2 {
                    let images = &images;
                    scope.spawn(move || {
                        let tags = (0..images.len()).map(|n| (first + n + 3 * client) % 24);
                        // Until it is killed.
                        tags.take_while(|tag| pull(address, *tag, &images[*tag]).is_some())
                            .count()
                    });
                }
                std::thread::sleep(Duration::from_millis(random.below(120)));
                cached.kill();
            });
            cached.start_again();
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(pulls.into_inner() > 0);
    assert_clean(&cached);
    wait_until("leftovers are gone", SOON, || {
        temporary_files(&cached) == 0 && cached.blobs().values().sum::<u64>() <= 8 << 20
    });
    // Whatever a download left: the next one ends it.
    for (tag, image) in images.iter().enumerate() {
        pull(second.address(), tag, image).expect("a whole pull");
    }
    assert_clean(&cached);
}

/// What a balancer sends to whichever process it knows. It forgets the old one first, and sends it
/// nothing more; what that one has begun to answer goes on.
fn balance(active: &RwLock<SocketAddr>, target: &str, length: usize) -> Vec<u8> {
    let begun = {
        let address = active.read().unwrap();
        Begun::new(*address, target, &[])
    };
    assert_eq!(begun.status(), "200", "{target}");
    begun.whole(length).expect("a whole reply")
}

#[test]
fn a_rolling_update_fails_no_pull() {
    const PULLS: usize = 1000;
    const UPDATES: usize = 4;
    let mut cached = Cached::with(&[("CACHE_TAG_TTL", "forever")]);
    let images = put_many(&cached, 40, 256 << 10);
    let bytes = |n: usize| {
        let (size, seed) = (256 << 10, n as u64);
        Content::Generated { size, seed }.to_vec()
    };
    let layers: Vec<Vec<u8>> = (0..images.len()).map(bytes).collect();
    let (count, active) = (AtomicUsize::new(0), RwLock::new(cached.address()));
    let mut found = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while count.load(Ordering::Relaxed) < PULLS {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    // Some of them are cold, at any time.
                    let tag = (number / 25 * (number % 3)) % images.len();
                    let (image, layer) = (&images[tag], &layers[tag]);
                    let manifest = format!("/v2/team/app/manifests/{tag}");
                    let got = balance(&active, &manifest, image.bytes.len());
                    assert_eq!(got, image.bytes);
                    let got = balance(&active, &target(&image.layers[0]), layer.len());
                    assert!(got == *layer, "layer {tag}");
                }
            });
        }
        for update in 1..=UPDATES {
            let next = second(&cached, &[("CACHE_TAG_TTL", "forever")]);
            wait_until("pulls go on", 4 * SOON, || {
                count.load(Ordering::Relaxed) >= update * PULLS / (UPDATES + 1)
            });
            *active.write().unwrap() = next.address();
            cached.stop();
            // At once what the old one had.
            let got = Http::get_once(next.address(), "/v2/team/app/manifests/0");
            found.push(got.header("X-Cache").map(str::to_owned));
            cached.adopt(next);
        }
    });
    assert!(count.into_inner() >= PULLS);
    assert_eq!(found, vec![Some("HIT".to_owned()); UPDATES]);
    assert_clean(&cached);
}
