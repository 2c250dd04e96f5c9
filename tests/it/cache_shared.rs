//! Two processes on one cache directory: a rolling update, or a volume that many pods mount. Each
//! serves what the other has fetched, and neither harms what the other does.

use standin::{Content, Fault, Image, Layer, Match, Server};

use crate::support::{Begun, Cached, Http, Proxy};

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
    assert!(from > SIZE / 3, "from byte {from}");
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
