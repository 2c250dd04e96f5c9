//! A proxy under attack. Owns: the stand-in behind it, and the verdict whether the proxy is still
//! the same process, at work, with every lane. Must not: attack.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use standin::{Layer, Options, Standin};

use super::{Http, Proxy, wait_until};

/// `/healthz` is to answer within 1 s whatever goes on; tests take ten times that, for machines
/// that are busy with other tests.
pub(crate) const HEALTH_LIMIT: Duration = Duration::from_secs(30);
/// For descriptors and threads to be given back.
const SETTLED: Duration = Duration::from_secs(30);
/// Descriptors that may stay: idle connections to upstream are kept for some seconds.
const POOLED_DESCRIPTORS: usize = 4;

/// A proxy in front of a stand-in that holds `sample/hello:1.0`.
pub(crate) struct Target {
    pub(crate) standin: Standin,
    pub(crate) proxy: Proxy,
    pid: u32,
    descriptors: usize,
    threads: u64,
}

impl Target {
    /// Starts both.
    pub(crate) fn start() -> Self {
        Self::start_with(|standin| Proxy::in_front_of(standin, &[]))
    }

    /// Starts both, the proxy as `start` says.
    pub(crate) fn start_with(start: impl FnOnce(&Standin) -> Proxy) -> Self {
        raise_descriptors();
        let standin = Standin::start(Options::default());
        standin.put_image(
            "sample/hello",
            "1.0",
            &[Layer::of_files(&[("hello", b"hi")])],
        );
        let proxy = start(&standin);
        let pid = proxy.pid();
        let mut target = Self {
            standin,
            proxy,
            pid,
            descriptors: 0,
            threads: 0,
        };
        // With the token and the first connections to upstream, it has all it keeps open.
        target.assert_well();
        target.descriptors = target.proxy.fds();
        target.threads = target.proxy.threads();
        target
    }

    /// Where the proxy listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy.address()
    }

    /// Panics unless the proxy is the same process and answers, from upstream too, on all lanes.
    pub(crate) fn assert_well(&mut self) {
        self.assert_healthy();
        let catalog = Http::get_once(self.address(), "/v2/_catalog");
        assert_eq!(catalog.status, 200, "{}", catalog.text());
        assert!(
            catalog.text().contains("sample/hello"),
            "{}",
            catalog.text()
        );
        assert_no_harm(&self.proxy.log());
    }

    /// Panics unless the proxy is the same process and `/healthz` answers in time.
    pub(crate) fn assert_healthy(&mut self) {
        assert!(self.proxy.is_alive(), "the proxy ended");
        assert_eq!(self.proxy.pid(), self.pid);
        let begun = Instant::now();
        let health = Http::connect_within(self.address(), HEALTH_LIMIT).get("/healthz");
        assert_eq!(
            (health.status, health.text().as_str(), health.complete),
            (200, "ok\n", true)
        );
        let took = begun.elapsed();
        assert!(took < HEALTH_LIMIT, "/healthz took {took:?}");
    }

    /// Panics unless threads and descriptors go back to what they were at the start.
    pub(crate) fn assert_nothing_leaked(&self) {
        let descriptors = self.descriptors + POOLED_DESCRIPTORS;
        wait_until("descriptors and threads are given back", SETTLED, || {
            self.proxy.fds() <= descriptors && self.proxy.threads() <= self.threads
        });
    }

    /// Panics unless threads go back to what they were; connections to upstream may be kept.
    pub(crate) fn assert_no_thread_leaked(&self) {
        wait_until("threads are given back", SETTLED, || {
            self.proxy.threads() <= self.threads
        });
    }

    /// Requests that reached the registry and whose target contains `text`.
    pub(crate) fn reached_upstream(&self, text: &str) -> usize {
        let requests = self.standin.requests();
        requests
            .iter()
            .filter(|seen| seen.target.contains(text))
            .count()
    }
}

/// Panics when a log tells of a panic, or of a lane or thread that went.
fn assert_no_harm(log: &str) {
    for harm in ["panicked", "lane to tiny_http lost", "thread lost"] {
        let line = log.lines().find(|line| line.contains(harm));
        assert_eq!(line, None);
    }
}

/// Runs `job` on so many threads at a time, each with its number, and waits for all.
pub(crate) fn in_parallel(threads: usize, job: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for number in 0..threads {
            let job = &job;
            let builder = std::thread::Builder::new().stack_size(256 * 1024);
            let spawned = builder.spawn_scoped(scope, move || job(number));
            spawned.expect("a thread for a client");
        }
    });
}

/// Lets this process open as many descriptors as the system lets it: its soft limit is often 1024,
/// and these tests hold many connections at a time.
pub(crate) fn raise_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
}
