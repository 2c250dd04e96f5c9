//! The SETTINGS table: pure data.
//!
//! A row is added here and nowhere else; flag, parser, `--help` and `docs/configuration.md` follow.
//! `UPDATE_DOCS=1 cargo test` writes the page anew.

use std::time::Duration;

use super::table::*;
use super::{cache, parse};

/// Every setting there is.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "ECR",
        other_names: &["UPSTREAM"],
        group: Group::Registry,
        preset: Preset::Unset("the registry that the token names"),
        meaning: "The registry, `[https://]host[:port]`. `http://` is for another proxy or a test.",
        state: text(
            Unit::Url,
            "one registry as [http://|https://]host[:port]",
            parse::registry,
        ),
        ..ROW
    },
    Setting {
        name: "UPSTREAM_AUTH",
        group: Group::Registry,
        preset: Preset::Value("ecr"),
        meaning: "`ecr` sends an ECR token; `none` sends nothing, for an upstream that is another \
                  `aws-ecr-proxy`.",
        state: text(Unit::Text, "ecr or none", parse::upstream_auth),
        ..ROW
    },
    Setting {
        name: "BLOB_HOSTS",
        group: Group::Registry,
        preset: Preset::Unset("none but AWS's own S3 and CloudFront hosts"),
        meaning: "Further hosts that a redirect of the registry may lead to, as `host`, \
                  `host:port` or `.suffix`.",
        state: text(
            Unit::List,
            "at most 64 of host, host:port or .suffix, with commas",
            parse::blob_hosts,
        ),
        ..ROW
    },
    Setting {
        name: "BLOB_REDIRECT",
        preset: Preset::Value("follow"),
        meaning: "`follow` fetches blobs through the proxy; `pass` hands the registry's redirect \
                  to the client.",
        state: later(Unit::Text, Accepts::Only(&["follow"])),
        ..ROW
    },
    Setting {
        name: "RESOLVER",
        preset: Preset::Unset("the system's"),
        meaning: "DNS servers for all upstream names, as `ip[:port]`.",
        state: later(Unit::List, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "HTTPS_PROXY",
        other_names: &["https_proxy"],
        preset: Preset::Unset("none"),
        meaning: "Outbound proxy for https.",
        state: later(Unit::Url, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "HTTP_PROXY",
        other_names: &["http_proxy"],
        preset: Preset::Unset("none"),
        meaning: "Outbound proxy for http.",
        state: later(Unit::Url, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "NO_PROXY",
        other_names: &["no_proxy"],
        preset: Preset::Unset("none"),
        meaning: "Hosts reached without the outbound proxy; true of all hosts while there is none.",
        state: later(Unit::List, Accepts::Anything),
        ..ROW
    },
    Setting {
        name: "OFFLINE",
        preset: Preset::Value("false"),
        meaning: "No upstream or AWS call at all: serve the cache.",
        state: later(Unit::Switch, OFF),
        ..ROW
    },
    Setting {
        name: "AWS_REGION",
        other_names: &["AWS_DEFAULT_REGION"],
        group: Group::Aws,
        preset: Preset::Unset("from the host in `ECR`"),
        meaning: "Signing region. The region in an ECR host name wins for that registry.",
        state: text(
            Unit::Text,
            "1 to 63 of a-z 0-9 and -, such as eu-west-1",
            parse::region,
        ),
        ..ROW
    },
    Setting {
        name: "AWS_ACCESS_KEY_ID",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Access key of the AWS identity.",
        state: text(Unit::Text, VISIBLE, parse::access_key_id),
        ..ROW
    },
    Setting {
        name: "AWS_SECRET_ACCESS_KEY",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Secret that belongs to the access key. Prefer the variable: other processes \
                  can read flags.",
        secret: true,
        state: text(Unit::Text, VISIBLE, parse::secret_access_key),
        ..ROW
    },
    Setting {
        name: "AWS_SESSION_TOKEN",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Session token of temporary credentials. Prefer the variable, as above.",
        secret: true,
        state: text(Unit::Text, VISIBLE, parse::session_token),
        ..ROW
    },
    Setting {
        name: "AWS_ENDPOINT_URL",
        group: Group::Aws,
        preset: Preset::Unset("AWS's own for the region"),
        meaning: "Address of every AWS API, for private endpoints and tests.",
        state: text(Unit::Url, URL, parse::endpoint_url),
        ..ROW
    },
    Setting {
        name: "AWS_ENDPOINT_URL_ECR",
        group: Group::Aws,
        preset: Preset::Unset("`AWS_ENDPOINT_URL`"),
        meaning: "Address of the ECR API.",
        state: text(Unit::Url, URL, parse::endpoint_url_ecr),
        ..ROW
    },
    Setting {
        name: "AWS_ENDPOINT_URL_STS",
        group: Group::Aws,
        preset: Preset::Unset("`AWS_ENDPOINT_URL`"),
        meaning: "Address of the STS API.",
        state: text(Unit::Url, URL, parse::endpoint_url_sts),
        ..ROW
    },
    Setting {
        name: "AWS_CA_BUNDLE",
        group: Group::Aws,
        preset: Preset::Unset("`/etc/ssl/certs/ca-certificates.crt` if there, else built-in roots"),
        meaning: "PEM file of the certificate authorities to trust, in place of all others.",
        state: text(
            Unit::Path,
            "a readable file with at least one PEM CERTIFICATE block",
            parse::ca_bundle,
        ),
        ..ROW
    },
    Setting {
        name: "RENEW_INTERVAL_HOURS",
        group: Group::Aws,
        preset: Preset::Value("6"),
        meaning: "Longest time between two renewals of the token; half of its remaining life if \
                  that is sooner. A decimal number, without a unit.",
        state: State::Built(Kind::Hours {
            min: Duration::from_secs(36),
            max: Duration::from_secs(12 * 3600),
            reason: "a token lives 12 hours",
            set: |settings, time| settings.renew_interval = time,
        }),
        ..ROW
    },
    Setting {
        name: "AWS_PROFILE",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Profile in the shared AWS files.",
        ..ROW
    },
    Setting {
        name: "AWS_SHARED_CREDENTIALS_FILE",
        group: Group::Aws,
        preset: Preset::Unset("`~/.aws/credentials`"),
        meaning: "Shared credentials file.",
        state: later(Unit::Path, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "AWS_CONFIG_FILE",
        group: Group::Aws,
        preset: Preset::Unset("`~/.aws/config`"),
        meaning: "Shared config file.",
        state: later(Unit::Path, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "AWS_ROLE_ARN",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Role to assume with the web identity token.",
        ..ROW
    },
    Setting {
        name: "AWS_WEB_IDENTITY_TOKEN_FILE",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Web identity token (IRSA).",
        state: later(Unit::Path, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "AWS_ROLE_SESSION_NAME",
        group: Group::Aws,
        preset: Preset::Unset("made up"),
        meaning: "Session name of the assumed role.",
        ..ROW
    },
    Setting {
        name: "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Container credentials (ECS).",
        ..ROW
    },
    Setting {
        name: "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Container credentials (EKS Pod Identity).",
        state: later(Unit::Url, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Token for the container credentials.",
        secret: true,
        ..ROW
    },
    Setting {
        name: "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "File with that token.",
        state: later(Unit::Path, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "AWS_EC2_METADATA_DISABLED",
        group: Group::Aws,
        preset: Preset::Value("false"),
        meaning: "Never ask the EC2 instance metadata service.",
        state: later(Unit::Switch, ON),
        ..ROW
    },
    Setting {
        name: "AWS_EC2_METADATA_V1_DISABLED",
        group: Group::Aws,
        preset: Preset::Value("true"),
        meaning: "Never fall back to IMDSv1.",
        state: later(Unit::Switch, ON),
        ..ROW
    },
    Setting {
        name: "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        group: Group::Aws,
        preset: Preset::Unset("the link-local address"),
        meaning: "Address of the instance metadata service.",
        state: later(Unit::Url, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
        group: Group::Aws,
        preset: Preset::Value("IPv4"),
        meaning: "`IPv4` or `IPv6` address of the instance metadata service.",
        ..ROW
    },
    Setting {
        name: "AWS_USE_FIPS_ENDPOINT",
        group: Group::Aws,
        preset: Preset::Value("false"),
        meaning: "FIPS endpoints.",
        state: later(Unit::Switch, OFF),
        ..ROW
    },
    Setting {
        name: "AWS_USE_DUALSTACK_ENDPOINT",
        group: Group::Aws,
        preset: Preset::Value("false"),
        meaning: "Dual-stack endpoints.",
        state: later(Unit::Switch, OFF),
        ..ROW
    },
    Setting {
        name: "AWS_STS_REGIONAL_ENDPOINTS",
        group: Group::Aws,
        preset: Preset::Value("regional"),
        meaning: "`regional` or `legacy` STS endpoints.",
        state: later(Unit::Text, Accepts::Only(&["regional"])),
        ..ROW
    },
    Setting {
        name: "LISTEN_HOST",
        group: Group::Clients,
        preset: Preset::Value("0.0.0.0"),
        meaning: "IP address to listen on; `::` for IPv6. `unix:/path` is not built yet.",
        state: text(Unit::Address, "an IP address", parse::listen_host),
        ..ROW
    },
    Setting {
        name: "LISTEN_PORT",
        other_names: &["PORT"],
        group: Group::Clients,
        preset: Preset::Value("8080"),
        meaning: "Port to listen on; `0` picks one. The address is logged as `listening on …`.",
        state: number(0, 65535, "a TCP port", |settings, port| {
            settings.listen_port = u16::try_from(port).unwrap_or(u16::MAX);
        }),
        ..ROW
    },
    Setting {
        name: "DISABLE_PROXY_HEADERS",
        group: Group::Clients,
        preset: Preset::Value("false"),
        meaning: "Ignore `X-Forwarded-*`, `Forwarded` and `X-Real-IP`.",
        state: State::Built(Kind::Switch(|settings, on| {
            settings.trust_proxy_headers = !on;
        })),
        ..ROW
    },
    Setting {
        name: "ENABLE_SSL",
        group: Group::Clients,
        preset: Preset::Value("false"),
        meaning: "Serve https with the next two.",
        state: later(Unit::Switch, OFF),
        ..ROW
    },
    Setting {
        name: "SSL_CERTIFICATE",
        other_names: &["REGISTRY_HTTP_TLS_CERTIFICATE"],
        group: Group::Clients,
        preset: Preset::Unset("none"),
        meaning: "PEM file of the certificate chain.",
        state: later(Unit::Path, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "SSL_KEY",
        other_names: &["REGISTRY_HTTP_TLS_KEY"],
        group: Group::Clients,
        preset: Preset::Unset("none"),
        meaning: "PEM file of the private key.",
        state: later(Unit::Path, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "SSL_CLIENT_CA",
        group: Group::Access,
        preset: Preset::Unset("none"),
        meaning: "PEM file: clients must show a certificate that it signed.",
        state: later(Unit::Path, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "AUTH_FILE",
        group: Group::Access,
        preset: Preset::Unset("none"),
        meaning: "htpasswd file: clients must log in.",
        state: later(Unit::Path, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "READ_ONLY",
        group: Group::Access,
        preset: Preset::Value("false"),
        meaning: "Refuse everything but GET and HEAD.",
        state: later(Unit::Switch, OFF),
        ..ROW
    },
    Setting {
        name: "ALLOW_REPOSITORIES",
        group: Group::Access,
        preset: Preset::Value("*"),
        meaning: "Globs of the repositories that clients may use.",
        state: later(Unit::List, Accepts::Only(&["*"])),
        ..ROW
    },
    Setting {
        name: "CACHE_DIR",
        group: Group::Cache,
        preset: Preset::Unset("`$CACHE_DIRECTORY`, else `/cache` if it exists, else off"),
        meaning: "Directory of the cache, an OCI image layout; `off` for none.",
        state: text(Unit::Path, "a path, or off", cache::directory),
        ..ROW
    },
    Setting {
        name: "CACHE_MAX_SIZE",
        group: Group::Cache,
        preset: Preset::Value("75g"),
        meaning: "Quota on disk, downloads in progress included.",
        state: text(
            Unit::Size,
            "a whole number of bytes, or with k, m or g",
            cache::max_size,
        ),
        ..ROW
    },
    Setting {
        name: "CACHE_KEY",
        group: Group::Cache,
        preset: Preset::Value("$uri"),
        meaning: "Template that partitions tag entries, of nginx's `$uri $host $scheme $args \
                  $is_args $request_uri $request_method $http_NAME`.",
        state: text(Unit::Text, "a template", cache::key),
        ..ROW
    },
    Setting {
        name: "CACHE_TAG_TTL",
        group: Group::Cache,
        preset: Preset::Value("15s"),
        meaning: "How long a tag is served without asking upstream; `0s` always asks, `forever` \
                  never.",
        state: text(Unit::Time, "a time such as 15s, or forever", cache::tag_ttl),
        ..ROW
    },
    Setting {
        name: "PREFETCH",
        group: Group::Cache,
        preset: Preset::Unset("none"),
        meaning: "Images kept fresh in the cache.",
        state: later(Unit::List, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "PREFETCH_INTERVAL",
        group: Group::Cache,
        preset: Preset::Value("15m"),
        meaning: "Time between two rounds of it.",
        state: later(Unit::Time, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "PREFETCH_PLATFORMS",
        group: Group::Cache,
        preset: Preset::Unset("all"),
        meaning: "Platforms that it fetches.",
        state: later(Unit::List, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "PIN",
        group: Group::Cache,
        preset: Preset::Unset("what `PREFETCH` names"),
        meaning: "Globs of images that eviction never touches.",
        state: later(Unit::List, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "SCRUB_INTERVAL",
        group: Group::Cache,
        preset: Preset::Value("168h"),
        meaning: "Time for one whole re-hash of the cache; `0s` is off.",
        state: later(Unit::Time, Accepts::Only(&["0s"])),
        ..ROW
    },
    Setting {
        name: "WORKERS",
        group: Group::Limits,
        preset: Preset::Value("8"),
        meaning: "Threads that decide on requests. They never wait, so a few suffice.",
        state: number(
            1,
            64,
            "they touch memory only: more than one a core gains nothing",
            |settings, count| settings.workers = size(count),
        ),
        ..ROW
    },
    Setting {
        name: "LANES",
        group: Group::Limits,
        preset: Preset::Value("16"),
        meaning: "Request heads that may be with the workers at a time.",
        state: number(
            2,
            256,
            "each is a thread and two descriptors; with one alone, requests would wait in a row",
            |settings, count| settings.lanes = size(count),
        ),
        ..ROW
    },
    Setting {
        name: "MAX_CONNECTIONS",
        group: Group::Limits,
        preset: Preset::Value("1024"),
        meaning: "Connections of clients at a time; lowered at start to what the system allows. \
                  Past it the longest idle one is closed.",
        state: number(
            1,
            100_000,
            "each is a thread and up to three descriptors",
            |settings, count| settings.max_connections = size(count),
        ),
        ..ROW
    },
    Setting {
        name: "MAX_CONNECTIONS_PER_PEER",
        group: Group::Limits,
        preset: Preset::Value("256"),
        meaning: "Connections of one client address at a time.",
        state: later(Unit::Number, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "MAX_EXCHANGES",
        group: Group::Limits,
        preset: Preset::Value("256"),
        meaning: "Requests that wait for an upstream reply's head at a time; others queue, then \
                  get 503.",
        state: number(1, 10_000, COUNT_REASON, |settings, count| {
            settings.max_exchanges = size(count);
        }),
        ..ROW
    },
    Setting {
        name: "MAX_UPLOADS",
        group: Group::Limits,
        preset: Preset::Value("128"),
        meaning: "Request bodies that are streamed upstream at a time.",
        state: number(1, 10_000, COUNT_REASON, |settings, count| {
            settings.max_uploads = size(count);
        }),
        ..ROW
    },
    Setting {
        name: "MAX_FILLS",
        group: Group::Limits,
        preset: Preset::Value("32"),
        meaning: "Cold blobs fetched into the cache at a time.",
        state: number(1, 1024, "each is a thread", |settings, count| {
            settings.max_fills = size(count);
        }),
        ..ROW
    },
    Setting {
        name: "MIN_RATE",
        group: Group::Limits,
        preset: Preset::Value("256"),
        meaning: "Bytes a second over 60 s; slower clients are cut.",
        state: later(Unit::Size, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "SHUTDOWN_GRACE",
        group: Group::Operation,
        preset: Preset::Value("30s"),
        meaning: "Time that running transfers get to end after SIGTERM.",
        state: State::Built(Kind::Time {
            min: Duration::ZERO,
            max: Duration::from_secs(3600),
            reason: "a stop that takes longer is no stop",
            set: |settings, time| settings.shutdown_grace = time,
        }),
        ..ROW
    },
    Setting {
        name: "LOG_LEVEL",
        group: Group::Operation,
        preset: Preset::Value("INFO"),
        meaning: "`DEBUG`, `INFO`, `WARN` (or `WARNING`) or `ERROR`, in any case.",
        state: text(
            Unit::Text,
            "DEBUG, INFO, WARN or ERROR in any case",
            parse::log_level,
        ),
        ..ROW
    },
    Setting {
        name: "LOG_FORMAT",
        group: Group::Operation,
        preset: Preset::Value("text"),
        meaning: "`text` (key=value) or `json`; one line per request.",
        state: text(Unit::Text, "text or json", parse::log_format),
        ..ROW
    },
];
