//! A stand-in for ECR's registry, the blob host it redirects to, the AWS APIs (ECR's
//! `GetAuthorizationToken`, STS's `GetCallerIdentity` and roles), and the metadata endpoints that
//! hand out credentials, for tests and for `make run`.
//!
//! Four servers on loopback ports of their own, a thread per connection, and an HTTP server that
//! is written here, so that every byte of an answer can be scripted:
//!
//! ```
//! use standin::{Fault, Layer, Match, Options, Standin};
//!
//! let standin = Standin::start(Options::default());
//! standin.put_image("sample/hello", "1.0", &[Layer::of_files(&[("hello", b"hi")])]);
//! standin.fault(Match::registry().path("/manifests/"), Fault::ExpiredToken403);
//! assert!(standin.registry_url().starts_with("http://127.0.0.1:"));
//! ```
//!
//! It behaves as ECR does, quirks included ([`Quirks`]), checks signatures (SigV4, by its own code)
//! and tokens, and keeps a log of what it saw ([`Standin::requests`]). Dropping it stops it.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "test code: a panic here fails the test, or ends one connection, and says where"
)]

mod aws;
mod container;
mod content;
mod core;
mod dns;
mod fault;
mod forward;
mod http;
pub mod image;
mod imds;
mod listing;
mod metadata;
mod registry;
mod s3;
mod server;
mod sigv4;
mod store;
mod sts;
mod tls;
mod uploads;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::core::{Core, TokenState, lock};
use crate::server::Listener;

pub use crate::content::{Content, Hasher, digest};
pub use crate::dns::{Dns, DnsBehaviour, DnsQuery};
pub use crate::fault::{Fault, Match, Then};
pub use crate::forward::{ForwardBehaviour, ForwardProxy};
pub use crate::image::Layer;
pub use crate::metadata::Metadata;
pub use crate::sts::{Role, StsCall};
pub use crate::tls::{TlsFront, ca_bundle};

/// How many servers there are.
const SERVERS: usize = 4;
/// The account that everything belongs to.
pub const ACCOUNT: &str = "123456789012";

/// One of the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// ECR and STS.
    Api,
    /// Instance metadata and container credentials.
    Metadata,
    /// The registry.
    Registry,
    /// The blob host.
    S3,
}

impl Server {
    /// All of them.
    pub const ALL: [Self; SERVERS] = [Self::Registry, Self::S3, Self::Api, Self::Metadata];

    const fn index(self) -> usize {
        match self {
            Self::Registry => 0,
            Self::S3 => 1,
            Self::Api => 2,
            Self::Metadata => 3,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::S3 => "s3",
            Self::Api => "api",
            Self::Metadata => "metadata",
        }
    }
}

/// How a stand-in behaves from its start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The key id that the APIs know.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
    /// The session token that must come with it, if any.
    pub session_token: Option<String>,
    /// The region signatures must be for.
    pub region: String,
    /// Where the registry differs from the specification.
    pub quirks: Quirks,
    /// Scheme and host in absolute `Link`s and `Location`s, such as
    /// `https://123456789012.dkr.ecr.eu-west-1.amazonaws.com`; none: the registry's own URL.
    pub public_base: Option<String>,
    /// `proxyEndpoint` beside the token; none: the registry's own URL.
    pub proxy_endpoint: Option<String>,
    /// The name of the blob host in redirects; it must lead to 127.0.0.1.
    pub s3_host: String,
    /// How long a presigned URL lasts.
    pub presign_life: Duration,
    /// Refuse requests to the registry that carry no good token.
    pub demand_token: bool,
    /// Each `GetAuthorizationToken` gives out another token (older ones stay good).
    pub rotate_tokens: bool,
    /// Tokens have at least that many characters.
    pub token_bytes: usize,
    /// A line feed after the token.
    pub token_newline: bool,
    /// Seconds until `expiresAt`; may lie in the past. The registry does not hold it to that: see
    /// [`Standin::expire_tokens`].
    pub token_life: i64,
    /// Be ECR Public: its call, bearer tokens, 400 for an expired one. Its region is `us-east-1`.
    pub public: bool,
    /// Seconds by which the APIs' clock is ahead (`Date`, and what a signature is held to).
    pub clock_skew: i64,
    /// A push makes its repository (on ECR: a creation template).
    pub create_on_push: bool,
}

impl Default for Options {
    /// ECR with quirks, a token of natural size that lasts 12 hours, the blob host as `localhost`.
    fn default() -> Self {
        Self {
            access_key_id: "AKIDSTANDIN".into(),
            secret_access_key: "standin/secret+access+key".into(),
            session_token: None,
            region: "eu-west-1".into(),
            quirks: Quirks::ecr(),
            public_base: None,
            proxy_endpoint: None,
            s3_host: "localhost".into(),
            presign_life: Duration::from_secs(3600),
            demand_token: true,
            rotate_tokens: true,
            token_bytes: 0,
            token_newline: false,
            token_life: 12 * 3600,
            public: false,
            clock_skew: 0,
            create_on_push: true,
        }
    }
}

/// Where ECR differs from the specification, or picks the harder of two ways.
#[derive(Debug, Clone)]
pub struct Quirks {
    /// `Link` with scheme and host.
    pub absolute_links: bool,
    /// `Location` with scheme and host.
    pub absolute_locations: bool,
    /// Blobs come by a 307 to the blob host.
    pub blob_redirects: bool,
    /// The 403 of an expired token is an error document, not plain text.
    pub json_denied: bool,
    /// A GET of a manifest has no `Docker-Content-Digest` (a HEAD has).
    pub manifest_get_without_digest: bool,
    /// Blobs may be deleted; ECR says 405.
    pub blob_deletion: bool,
    /// Blobs are mounted from repositories that have them; else every mount begins an upload.
    pub blob_mounts: bool,
    /// A PUT of a manifest is answered without `Docker-Content-Digest`.
    pub manifest_put_without_digest: bool,
    /// A PUT of a manifest is answered without `Location`.
    pub manifest_put_without_location: bool,
    /// Pages of 100, unsorted tags, `last` is an opaque cursor with `+`, `/`, `=` and `%2B`.
    pub opaque_cursors: bool,
    /// The largest `n`, and the status (400 or 405, UNSUPPORTED) for a larger one.
    pub page_limit: Option<(usize, u16)>,
    /// PATCH is answered 201, with a `Range` that sticks at the first chunk; no upload id.
    pub patch_created: bool,
    /// Referrers come in pages of that many.
    pub referrers_page: Option<usize>,
    /// There is no referrers API: 404 in plain text, or this status as an error document.
    pub no_referrers: Option<u16>,
    /// Listings are `text/plain`.
    pub plain_text_listings: bool,
    /// An upload without a byte is refused.
    pub refuse_empty_blobs: bool,
    /// `Link` holds other relations and parameters besides.
    pub several_links: bool,
    /// A POST with a whole blob begins an upload (202), and the blob is not read.
    pub single_post_begins: bool,
    /// Upload `Location`s carry a `_state` that must come back byte for byte.
    pub upload_state: bool,
}

impl Quirks {
    /// As ECR is.
    pub const fn ecr() -> Self {
        Self {
            absolute_links: true,
            absolute_locations: true,
            blob_redirects: true,
            json_denied: false,
            manifest_get_without_digest: true,
            blob_deletion: false,
            blob_mounts: true,
            manifest_put_without_digest: true,
            manifest_put_without_location: true,
            opaque_cursors: true,
            page_limit: Some((1000, 405)),
            patch_created: true,
            referrers_page: None,
            no_referrers: None,
            plain_text_listings: true,
            refuse_empty_blobs: true,
            several_links: false,
            single_post_begins: false,
            upload_state: false,
        }
    }

    /// As the specification says, with everything relative.
    pub const fn none() -> Self {
        Self {
            absolute_links: false,
            absolute_locations: false,
            blob_redirects: false,
            json_denied: true,
            manifest_get_without_digest: false,
            blob_deletion: true,
            blob_mounts: true,
            manifest_put_without_digest: false,
            manifest_put_without_location: false,
            opaque_cursors: false,
            page_limit: None,
            patch_created: false,
            referrers_page: None,
            no_referrers: None,
            plain_text_listings: false,
            refuse_empty_blobs: false,
            several_links: false,
            single_post_begins: false,
            upload_state: true,
        }
    }
}

/// A request as a server saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which server.
    pub server: Server,
    /// Requests on one connection have the same number.
    pub connection: u64,
    /// The method.
    pub method: String,
    /// The target, byte for byte.
    pub target: String,
    /// The fields, in order, names as sent.
    pub headers: Vec<(String, String)>,
    /// Bytes of the body, so far as it was read.
    pub body_len: u64,
    /// What was answered; none before, or when nothing was.
    pub status: Option<u16>,
    /// When the head had come.
    pub at: Instant,
}

impl Seen {
    /// The first field of that name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        first(&self.headers, name)
    }
}

fn first<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = headers
        .iter()
        .find(|(other, _)| other.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}

/// An image in the registry: its digests.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of the manifest.
    pub manifest: String,
    /// The digest of the configuration.
    pub config: String,
    /// The digests of the layers, from the lowest up.
    pub layers: Vec<String>,
    /// The manifest's bytes.
    pub bytes: Vec<u8>,
}

/// The running stand-in. All methods may be called at any time, from any thread.
pub struct Standin {
    core: Arc<Core>,
    /// By [`Server::index`]; none while the server is down.
    listeners: Mutex<[Option<Listener>; SERVERS]>,
    /// The ports of the servers that are down, by [`Server::index`].
    held: Mutex<[Option<OwnedFd>; SERVERS]>,
}

impl Standin {
    /// Starts the servers on free ports of 127.0.0.1.
    pub fn start(options: Options) -> Self {
        Self::start_with(options, None)
    }

    /// The same for a further registry of the same region: it takes the tokens of `other`.
    pub fn start_beside(other: &Self, options: Options) -> Self {
        Self::start_with(options, Some(&other.core))
    }

    fn start_with(options: Options, other: Option<&Arc<Core>>) -> Self {
        let sockets = [(); SERVERS].map(|()| server::bind());
        let addresses = sockets.each_ref();
        let addresses = addresses.map(|socket| socket.local_addr().expect("an address"));
        let mut core = Core::new(options, addresses);
        if let Some(other) = other {
            core.tokens = Arc::clone(&other.tokens);
        }
        let core = Arc::new(core);
        let mut servers = Server::ALL.into_iter();
        let listeners = sockets.map(|socket| {
            let server = servers.next().expect("a server for each socket");
            Some(Listener::start(&core, server, socket))
        });
        Self {
            core,
            listeners: Mutex::new(listeners),
            held: Mutex::default(),
        }
    }

    // === where it is ===

    /// `http://127.0.0.1:PORT`
    pub fn registry_url(&self) -> String {
        format!("http://{}", self.core.authority(Server::Registry))
    }

    /// `http://HOST:PORT` with [`Options::s3_host`].
    pub fn s3_url(&self) -> String {
        format!("http://{}", self.blob_host())
    }

    /// `http://127.0.0.1:PORT`, for ECR and STS.
    pub fn api_url(&self) -> String {
        format!("http://{}", self.core.authority(Server::Api))
    }

    /// `HOST:PORT` of the blob host, for `BLOB_HOSTS`.
    pub fn blob_host(&self) -> String {
        self.core.authority(Server::S3)
    }

    /// The settings with which a proxy uses this stand-in.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let options = &self.core.options;
        let mut settings = vec![
            ("ECR", self.registry_url()),
            ("BLOB_HOSTS", self.blob_host()),
            ("AWS_ENDPOINT_URL", self.api_url()),
            ("AWS_REGION", options.region.clone()),
            ("AWS_ACCESS_KEY_ID", options.access_key_id.clone()),
            ("AWS_SECRET_ACCESS_KEY", options.secret_access_key.clone()),
        ];
        if let Some(token) = &options.session_token {
            settings.push(("AWS_SESSION_TOKEN", token.clone()));
        }
        settings
    }

    /// Everything that no log may show: keys, tokens and passwords given out so far, and what
    /// stands in every presigned URL.
    pub fn secrets(&self) -> Vec<String> {
        let options = &self.core.options;
        let mut secrets = vec![options.secret_access_key.clone(), s3::SESSION_TOKEN.into()];
        secrets.extend(options.session_token.clone());
        secrets.extend(self.metadata_secrets());
        for token in lock(&self.core.tokens).issued() {
            let user_and_password = decode_token(token);
            secrets.push(user_and_password["AWS:".len()..].to_owned());
            secrets.push(token.to_owned());
        }
        secrets.extend(self.sts_secrets());
        secrets
    }

    // === what it holds ===

    /// Puts an image with these layers there, under a tag (or a digest: then untagged).
    pub fn put_image(&self, repository: &str, tag: &str, layers: &[Layer]) -> Image {
        self.put_image_for("amd64", repository, tag, layers)
    }

    /// The same for another architecture.
    pub fn put_image_for(
        &self,
        architecture: &str,
        repository: &str,
        tag: &str,
        layers: &[Layer],
    ) -> Image {
        let config = image::config(architecture, layers);
        let bytes = image::manifest(&config, layers);
        let add = |layer: &Layer| self.add_content(repository, layer.content.clone());
        Image {
            layers: layers.iter().map(add).collect(),
            config: self.add_blob(repository, &config),
            manifest: self.add_manifest(repository, tag, image::MANIFEST, &bytes),
            bytes,
        }
    }

    /// Puts an index over small images for amd64 and arm64 there; returns its digest and them.
    pub fn put_index(&self, repository: &str, tag: &str) -> (String, Vec<Image>) {
        let put = |architecture: &str| {
            let layer = Layer::of_files(&[("hello", architecture.as_bytes())]);
            // A digest as reference: the image gets no tag.
            self.put_image_for(architecture, repository, "sha256:", &[layer])
        };
        let images = vec![put("amd64"), put("arm64")];
        let entries = [("amd64", &*images[0].bytes), ("arm64", &*images[1].bytes)];
        let digest = self.add_index(repository, tag, &entries);
        (digest, images)
    }

    /// Adds an index over manifests, each with its architecture; returns its digest.
    pub fn add_index(&self, repository: &str, tag: &str, manifests: &[(&str, &[u8])]) -> String {
        self.add_manifest(repository, tag, image::INDEX, &image::index(manifests))
    }

    /// Adds a manifest under a tag (or a digest: then untagged); returns its digest.
    pub fn add_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> String {
        lock(&self.core.store).add_manifest(repository, tag, media_type, bytes.to_vec())
    }

    /// Attaches an artifact of that type, with one blob, to a manifest; under a tag (or a digest:
    /// then untagged).
    pub fn attach(&self, repository: &str, tag: &str, subject: &str, artifact_type: &str) -> Image {
        let payload = format!("{artifact_type} of {subject}").into_bytes();
        let bytes = image::artifact(subject, artifact_type, &payload);
        Image {
            layers: vec![self.add_blob(repository, &payload)],
            config: self.add_blob(repository, b"{}"),
            manifest: self.add_manifest(repository, tag, image::MANIFEST, &bytes),
            bytes,
        }
    }

    /// Adds a blob; returns its digest.
    pub fn add_blob(&self, repository: &str, bytes: &[u8]) -> String {
        self.add_content(repository, bytes.into())
    }

    /// Adds a blob of noise that takes no memory; returns its digest.
    pub fn add_blob_of(&self, repository: &str, size: u64, seed: u64) -> String {
        self.add_content(repository, Content::Generated { size, seed })
    }

    fn add_content(&self, repository: &str, content: Content) -> String {
        let digest = content.digest();
        lock(&self.core.store).add_blob(repository, digest.clone(), content);
        digest
    }

    /// Adds empty repositories `many/repository-0000` …
    pub fn add_repositories(&self, count: usize) {
        let mut store = lock(&self.core.store);
        for number in 0..count {
            store.repository(&format!("many/repository-{number:04}"));
        }
    }

    /// Adds tags `tag-0000` … of one small manifest.
    pub fn add_tags(&self, repository: &str, count: usize) {
        let image = self.put_image(repository, "tag-0000", &[]);
        for number in 1..count {
            let tag = format!("tag-{number:04}");
            self.add_manifest(repository, &tag, image::MANIFEST, &image.bytes);
        }
    }

    /// A blob that is there, by upload or otherwise.
    pub fn blob(&self, repository: &str, digest: &str) -> Option<Content> {
        lock(&self.core.store).blob(repository, digest)
    }

    /// A manifest that is there, by tag or digest: its digest, media type and bytes.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<(String, String, Vec<u8>)> {
        let (digest, manifest) = lock(&self.core.store).manifest(repository, reference)?;
        Some((digest, manifest.media_type, manifest.bytes))
    }

    /// Removes a manifest's tag: from now on a true 404.
    pub fn remove_tag(&self, repository: &str, tag: &str) {
        let mut store = lock(&self.core.store);
        store
            .repository(repository)
            .tags
            .retain(|(other, _)| other != tag);
    }

    /// Uploads begun and not ended.
    pub fn open_uploads(&self) -> usize {
        lock(&self.core.store).uploads.len()
    }

    // === tokens ===

    /// Gives out a token as the API does, for requests past the proxy: what follows `Basic `.
    pub fn token(&self) -> String {
        self.core.issue_token()
    }

    /// From now on the tokens given out so far are expired (403, or 400 for ECR Public).
    pub fn expire_tokens(&self) {
        lock(&self.core.tokens).mark_all(TokenState::Expired);
    }

    /// From now on the tokens given out so far are unknown (401).
    pub fn forget_tokens(&self) {
        lock(&self.core.tokens).mark_all(TokenState::Unknown);
    }

    /// Sets [`Options::token_life`] for tokens to come.
    pub fn set_token_life(&self, seconds: i64) {
        lock(&self.core.tokens).life = seconds;
    }

    // === faults ===

    /// Lays `fault` on the requests that `pick` picks. Earlier faults go first.
    pub fn fault(&self, pick: Match, fault: Fault) {
        lock(&self.core.script).add(pick, fault);
    }

    /// Forgets all faults.
    pub fn clear_faults(&self) {
        lock(&self.core.script).clear();
    }

    /// Faults that have not struck as often as they should (those for ever are not counted).
    pub fn pending_faults(&self) -> usize {
        lock(&self.core.script).pending()
    }

    /// Lets everything go on that is stalled now.
    pub fn release(&self) {
        self.core.release();
    }

    /// How many requests are stalled now: a release reaches no later ones.
    pub fn stalled(&self) -> usize {
        self.core.stalled()
    }

    /// Sends no faster than that, all connections of the server together; none: no limit.
    pub fn throttle(&self, server: Server, bytes_per_second: Option<u64>) {
        self.core.set_rate(server, bytes_per_second);
    }

    /// Closes a server's port and cuts its connections: connecting is refused from now on.
    pub fn down(&self, server: Server) {
        let listener = lock(&self.listeners)[server.index()].take();
        drop(listener);
        self.core.cut_connections(server);
        // Bound and not listening: refused, and nobody else's until it is up again.
        let held = server::hold(self.core.addresses[server.index()]);
        lock(&self.held)[server.index()] = Some(held);
    }

    /// Opens the same port again.
    pub fn up(&self, server: Server) {
        let mut listeners = lock(&self.listeners);
        let listener = &mut listeners[server.index()];
        if listener.is_none() {
            let held = lock(&self.held)[server.index()].take();
            let socket = held.map_or_else(server::bind, server::listen);
            *listener = Some(Listener::start(&self.core, server, socket));
        }
    }

    // === what it saw ===

    /// The requests so far, in the order their heads came.
    pub fn requests(&self) -> Vec<Seen> {
        self.core.seen()
    }

    /// How many requests of that method had a target that contains `text`.
    pub fn count(&self, server: Server, method: &str, text: &str) -> usize {
        let fits = |seen: &&Seen| {
            seen.server == server && seen.method == method && seen.target.contains(text)
        };
        self.requests().iter().filter(fits).count()
    }

    /// Bytes of bodies that a server has sent so far.
    pub fn sent(&self, server: Server) -> u64 {
        self.core.sent(server)
    }

    /// Waits until `done` likes the requests so far; false when it does not in time.
    pub fn wait_for(&self, limit: Duration, done: impl FnMut(&[Seen]) -> bool) -> bool {
        self.core.wait_for(limit, done)
    }

    /// Connections that all servers have accepted so far.
    pub fn accepted(&self) -> usize {
        self.core.accepted()
    }

    /// Connections open now.
    pub fn connections(&self, server: Server) -> usize {
        self.core.connections(server)
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        self.core.stop();
        let listeners = std::mem::take(&mut *lock(&self.listeners));
        drop(listeners);
        // Once more for connections that were being accepted.
        self.core.stop();
    }
}

/// `user:password` of a token.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn decode_token(token: &str) -> String {
    let bytes = STANDARD.decode(token).expect("tokens are base64");
    String::from_utf8(bytes).expect("and text")
}
