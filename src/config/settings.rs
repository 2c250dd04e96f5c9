//! Everything a user can set. Owns: the fields, one for each built row of the table. Must not: read
//! a value.

use std::time::Duration;

use super::access::AccessSettings;
use super::aws::AwsSettings;
use super::cache::{CacheDir, CacheKey, TagTtl};
use super::clients::TlsSettings;
use super::globs::ImageGlobs;
use super::listen::{Activation, ListenHost, MetricsSettings};
use super::outbound::OutboundSettings;
use super::prefetch::PrefetchSettings;
use super::registry::{ImageOrigin, UpstreamAuth};
use crate::log::{Format, Level};
use crate::oci::Registry;

/// Everything a user can set, checked. The default is blank, for the table to write on: only
/// [`resolve`](super::resolve) fills it.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `ECR`, the default one first; none: the registry that the token names.
    pub registries: Vec<Registry>,
    /// `NAMESPACES`
    pub namespaces: Vec<ImageOrigin>,
    /// `UPSTREAM_AUTH`
    pub upstream_auth: UpstreamAuth,
    /// `ALLOW_PLAIN_TOKEN`
    pub allow_plain_token: bool,
    /// The rights of clients.
    pub access: AccessSettings,
    /// The AWS settings.
    pub aws: AwsSettings,
    /// Outbound connections.
    pub outbound: OutboundSettings,
    /// TLS towards clients.
    pub tls: TlsSettings,
    /// Metrics and the status page.
    pub metrics: MetricsSettings,
    /// `RENEW_INTERVAL_HOURS`
    pub renew_interval: Duration,
    /// `LISTEN_HOST`
    pub listen_host: ListenHost,
    /// `LISTEN_FDS`; sockets that are handed in take precedence over address, port and path.
    pub activation: Activation,
    /// True when `NOTIFY_SOCKET` is set: a service manager wants to know our state.
    pub has_notify_socket: bool,
    /// `LISTEN_PORT`; 0 picks one.
    pub listen_port: u16,
    /// The opposite of `DISABLE_PROXY_HEADERS`
    pub trust_proxy_headers: bool,
    /// `BLOB_HOSTS`: `host`, `host:port`, or `.suffix`; lower case
    pub blob_hosts: Vec<String>,
    /// `CACHE_DIR`
    pub cache_dir: CacheDir,
    /// `CACHE_MAX_SIZE`, in bytes
    pub cache_max_size: u64,
    /// `CACHE_KEY`
    pub cache_key: CacheKey,
    /// `CACHE_TAG_TTL`
    pub cache_tag_ttl: TagTtl,
    /// `OFFLINE`
    pub offline: bool,
    /// `SCRUB_INTERVAL`; zero is off.
    pub scrub_interval: Duration,
    /// `PIN`; the default pins none.
    pub pin: ImageGlobs,
    /// `FREEZE_TAGS`; the default freezes none.
    pub freeze_tags: ImageGlobs,
    /// `FILL_REFERRERS`
    pub fill_referrers: bool,
    /// The images kept fresh in the cache.
    pub prefetch: PrefetchSettings,
    /// `WORKERS`
    pub workers: usize,
    /// `LANES`
    pub lanes: usize,
    /// `MAX_CONNECTIONS`
    pub max_connections: usize,
    /// `MAX_CONNECTIONS_PER_PEER`
    pub max_connections_per_peer: usize,
    /// `MIN_RATE`, in bytes a second; 0: off
    pub min_rate: u64,
    /// `MAX_EXCHANGES`
    pub max_exchanges: usize,
    /// `MAX_UPLOADS`
    pub max_uploads: usize,
    /// `MAX_FILLS`
    pub max_fills: usize,
    /// `STATUS_PAGE`
    pub status_page: bool,
    /// `SHUTDOWN_GRACE`
    pub shutdown_grace: Duration,
    /// `LOG_LEVEL`
    pub log_level: Level,
    /// `LOG_FORMAT`
    pub log_format: Format,
    /// Warnings for the log at the start, such as a variable that looks like a misspelt setting.
    pub warnings: Vec<String>,
}
