//! The settings: one table from which parser, `--help` and `docs/configuration.md` come.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::log::{Format, Level, Secret};
use crate::oci::Registry;

/// Everything a user can set, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `ECR`; none: the registry that the token names.
    pub registry: Option<Registry>,
    /// `UPSTREAM_AUTH`
    pub upstream_auth: UpstreamAuth,
    /// The AWS settings.
    pub aws: AwsSettings,
    /// `RENEW_INTERVAL_HOURS`
    pub renew_interval: Duration,
    /// `LISTEN_HOST`
    pub listen_host: IpAddr,
    /// `LISTEN_PORT`; 0 picks one.
    pub listen_port: u16,
    /// The opposite of `DISABLE_PROXY_HEADERS`
    pub trust_proxy_headers: bool,
    /// `BLOB_HOSTS`: `host`, `host:port`, or `.suffix`
    pub blob_hosts: Vec<String>,
    /// `WORKERS`
    pub workers: usize,
    /// `LANES`
    pub lanes: usize,
    /// `MAX_CONNECTIONS`
    pub max_connections: usize,
    /// `MAX_EXCHANGES`
    pub max_exchanges: usize,
    /// `MAX_UPLOADS`
    pub max_uploads: usize,
    /// `SHUTDOWN_GRACE`
    pub shutdown_grace: Duration,
    /// `LOG_LEVEL`
    pub log_level: Level,
    /// `LOG_FORMAT`
    pub log_format: Format,
}

/// How to authenticate upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamAuth {
    /// With an ECR token.
    Ecr,
    /// Not at all: the upstream is another `aws-ecr-proxy`.
    None,
}

/// The settings AWS SDKs share. Blank counts as unset.
#[derive(Debug, Clone, Default)]
pub struct AwsSettings {
    /// `AWS_REGION`
    pub region: Option<String>,
    /// `AWS_ACCESS_KEY_ID`
    pub access_key_id: Option<String>,
    /// `AWS_SECRET_ACCESS_KEY`
    pub secret_access_key: Option<Secret<String>>,
    /// `AWS_SESSION_TOKEN`
    pub session_token: Option<Secret<String>>,
    /// `AWS_ENDPOINT_URL`
    pub endpoint_url: Option<String>,
    /// `AWS_ENDPOINT_URL_ECR`
    pub endpoint_url_ecr: Option<String>,
    /// `AWS_ENDPOINT_URL_STS`
    pub endpoint_url_sts: Option<String>,
    /// `AWS_CA_BUNDLE`: PEM, in place of the built-in roots.
    pub ca_bundle: Option<PathBuf>,
}
