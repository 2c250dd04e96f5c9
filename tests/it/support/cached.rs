//! A proxy with a cache, in front of a stand-in. Owns: both, the cache's directory, restarts, and
//! what can be seen of the directory from outside. Must not: write into it.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use standin::{Hasher, Options, Seen, Server, Standin};

use super::client::DEADLINE;
use super::{Http, Proxy, Response, SOON, Scratch, wait_until};

/// The proxy, what is in front of it, and its cache.
pub(crate) struct Cached {
    proxy: Option<Proxy>,
    pub(crate) standin: Standin,
    pub(crate) scratch: Scratch,
    settings: Vec<(String, String)>,
}

impl Cached {
    /// In front of a stand-in that behaves as ECR does; tags are asked for every time.
    pub(crate) fn start() -> Self {
        Self::with(&[("CACHE_TAG_TTL", "0s")])
    }

    /// With these settings of the proxy.
    pub(crate) fn with(settings: &[(&str, &str)]) -> Self {
        Self::on(Scratch::new(), Options::default(), settings)
    }

    /// With that directory and these options of the stand-in, too.
    pub(crate) fn on(scratch: Scratch, options: Options, settings: &[(&str, &str)]) -> Self {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut cached = Self {
            proxy: None,
            standin: Standin::start(options),
            settings: settings.iter().map(own).collect(),
            scratch,
        };
        cached.start_again();
        cached
    }

    pub(crate) fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a running proxy")
    }

    pub(crate) const fn is_running(&self) -> bool {
        self.proxy.is_some()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy().address()
    }

    /// Ends it with SIGKILL, at whatever it is doing.
    pub(crate) fn kill(&mut self) {
        drop(self.proxy.take());
    }

    /// Ends it with SIGTERM and waits.
    pub(crate) fn stop(&mut self) {
        self.proxy().term();
        self.wait_stopped();
    }

    /// Waits for the end of one that is ending; its log.
    pub(crate) fn wait_stopped(&mut self) -> String {
        let mut proxy = self.proxy.take().expect("a running proxy");
        assert_eq!(proxy.wait_exit().code(), Some(0));
        proxy.log()
    }

    /// Another proxy on the same directory takes its place.
    pub(crate) fn adopt(&mut self, proxy: Proxy) {
        self.proxy = Some(proxy);
    }

    /// Starts it on the same directory, with the same settings.
    pub(crate) fn start_again(&mut self) {
        self.start_again_with(&[]);
    }

    /// With further settings (an empty value: without that setting).
    pub(crate) fn start_again_with(&mut self, further: &[(&str, &str)]) {
        self.start_again_through(Proxy::command(), further);
    }

    /// The same with a command that begins otherwise.
    pub(crate) fn start_again_through(&mut self, mut command: Command, further: &[(&str, &str)]) {
        command.envs(self.standin.settings());
        command.env("CACHE_DIR", self.scratch.path());
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        for (name, value) in further {
            if value.is_empty() {
                command.env_remove(name);
            } else {
                command.env(name, value);
            }
        }
        self.proxy = Some(Proxy::start_command(command));
    }

    /// All of AWS goes.
    pub(crate) fn all_down(&self) {
        Server::ALL.into_iter().for_each(|s| self.standin.down(s));
    }

    /// And comes back.
    pub(crate) fn all_up(&self) {
        Server::ALL.into_iter().for_each(|s| self.standin.up(s));
    }

    /// Lets the transfer that is to stall go on, once it has stalled.
    pub(crate) fn release(&self) {
        wait_until("a transfer has stalled", SOON, || {
            self.standin.stalled() > 0
        });
        self.standin.release();
    }

    pub(crate) fn get(&self, target: &str) -> Response {
        Http::get_once(self.address(), target)
    }

    pub(crate) fn head(&self, target: &str) -> Response {
        self.call("HEAD", target, &[])
    }

    pub(crate) fn call(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        Http::once(self.address(), method, target, headers, b"")
    }

    /// GET whose connection may be cut before a head.
    pub(crate) fn try_get(&self, target: &str) -> Option<Response> {
        let mut http = Http::connect(self.address());
        http.try_request("GET", target, &[], b"").ok()
    }

    /// A GET that is read as the test likes.
    pub(crate) fn begin(&self, target: &str, headers: &[(&str, &str)]) -> Begun {
        Begun::new(self.address(), target, headers)
    }

    /// What one of the servers saw.
    pub(crate) fn seen(&self, server: Server) -> Vec<Seen> {
        let mut seen = self.standin.requests();
        seen.retain(|seen| seen.server == server);
        seen
    }

    /// How many requests registry and blob host saw.
    pub(crate) fn calls(&self) -> usize {
        self.seen(Server::Registry).len() + self.seen(Server::S3).len()
    }

    // === what is on disk ===

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.scratch.path().join(path)
    }

    /// The complete blobs: digest and size. Panics when one is not what its name says.
    pub(crate) fn blobs(&self) -> BTreeMap<String, u64> {
        let blobs = sizes(&self.path("blobs/sha256"));
        for (name, size) in &blobs {
            let path = self.path("blobs/sha256").join(&name["sha256:".len()..]);
            // One that was evicted meanwhile is no fault.
            if let Ok(mut file) = std::fs::File::open(path) {
                let mut hasher = Hasher::default();
                let mut buf = vec![0; 256 * 1024];
                loop {
                    let count = file.read(&mut buf).expect("a readable blob");
                    if count == 0 {
                        break;
                    }
                    hasher.update(&buf[..count]);
                }
                assert_eq!(hasher.len(), *size);
                assert_eq!(&hasher.digest(), name, "a blob that is not its name");
            }
        }
        blobs
    }

    pub(crate) fn has(&self, digest: &str) -> bool {
        self.blobs().contains_key(digest)
    }

    /// The downloads: digest and bytes so far.
    pub(crate) fn partials(&self) -> BTreeMap<String, u64> {
        sizes(&self.path("partial/sha256"))
    }

    /// Bytes of blobs and downloads that were there at the same time. A blob that is evicted while
    /// the folders are read may have made room for a download, so it does not count; one that moves
    /// from the one to the other counts once.
    pub(crate) fn disk_use(&self) -> u64 {
        let before = sizes(&self.path("blobs/sha256"));
        let mut all = self.partials();
        let after = sizes(&self.path("blobs/sha256"));
        all.extend(
            after
                .into_iter()
                .filter(|(name, _)| before.contains_key(name)),
        );
        all.values().sum()
    }

    pub(crate) fn wait_for_blob(&self, digest: &str) {
        let path = self.path("blobs/sha256").join(&digest["sha256:".len()..]);
        wait_until("the blob is complete", SOON, || path.exists());
        assert!(self.has(digest));
        // The link comes after the blob.
        wait_until("no download is left", SOON, || {
            !self.partials().contains_key(digest)
        });
    }
}

fn sizes(folder: &Path) -> BTreeMap<String, u64> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return BTreeMap::new();
    };
    let size = |entry: std::fs::DirEntry| {
        let name = format!("sha256:{}", entry.file_name().to_str()?);
        Some((name, entry.metadata().ok()?.len()))
    };
    entries.filter_map(Result::ok).filter_map(size).collect()
}

/// All paths below a directory, with their lengths.
pub(crate) fn listing(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let entry = entry.expect("an entry");
            let metadata = entry.metadata().expect("its metadata");
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            let length = if metadata.is_file() {
                metadata.len()
            } else {
                0
            };
            found.insert(entry.path(), length);
        }
    }
    found
}

/// A reply of which the head has come, read piece by piece.
pub(crate) struct Begun {
    stream: TcpStream,
    /// Up to the empty line.
    pub(crate) head: String,
    /// What came of the body.
    pub(crate) body: Vec<u8>,
}

impl Begun {
    /// Asks, and waits for the head.
    pub(crate) fn new(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Self {
        use std::io::Write as _;
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
        let mut head = format!("GET {target} HTTP/1.1\r\nHost: x\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).expect("a head sent");
        let mut bytes = Vec::new();
        let end = loop {
            let mut buf = [0; 4096];
            let count = stream.read(&mut buf).expect("a head");
            assert!(count > 0, "closed before a head");
            bytes.extend_from_slice(&buf[..count]);
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let body = bytes.split_off(end);
        let head = String::from_utf8_lossy(&bytes).into_owned();
        Self { stream, head, body }
    }

    pub(crate) fn status(&self) -> &str {
        &self.head["HTTP/1.1 ".len()..][..3]
    }

    /// Waits until so many bytes of the body have come.
    pub(crate) fn read_to(&mut self, length: usize) {
        let mut buf = [0; 64 * 1024];
        while self.body.len() < length {
            let count = self.stream.read(&mut buf).expect("more of the body");
            assert!(count > 0, "ended at {} of {length}", self.body.len());
            self.body.extend_from_slice(&buf[..count]);
        }
    }

    /// True when not a byte more comes within `limit`.
    pub(crate) fn is_silent_for(&mut self, limit: Duration) -> bool {
        self.stream
            .set_read_timeout(Some(limit))
            .expect("a time-out");
        let mut buf = [0; 1];
        let read = self.stream.read(&mut buf);
        self.stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a time-out");
        if let Ok(count) = read {
            self.body.extend_from_slice(&buf[..count]);
        }
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// Reads on until the body has `length` bytes; none when it is cut before.
    pub(crate) fn whole(mut self, length: usize) -> Option<Vec<u8>> {
        let mut buf = vec![0; 64 * 1024];
        while self.body.len() < length {
            match self.stream.read(&mut buf) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.body.extend_from_slice(&buf[..count]),
            }
        }
        Some(self.body)
    }
}
