//! The SETTINGS table. Owns: what a setting is and the one list of them all. Must not: read
//! arguments, variables or files (`parse.rs` and `config.rs` do).
//!
//! A row is added here and nowhere else; flag, parser, `--help` and `docs/configuration.md` follow.
//! `UPDATE_DOCS=1 cargo test` writes the page anew.

use std::time::Duration;

use super::{Settings, parse};

/// One setting: everything that parser, help and documentation need to know of it.
#[derive(Debug)]
pub struct Setting {
    /// The environment variable; the flag is the same words (`LISTEN_PORT` = `--listen-port`).
    pub name: &'static str,
    /// Further names, mostly those of the predecessors; each is a variable and a flag too.
    pub other_names: &'static [&'static str],
    /// Where help and documentation show it.
    pub group: Group,
    /// What holds when it is not given.
    pub preset: Preset,
    /// One or two sentences for the user.
    pub meaning: &'static str,
    /// True when no output may show the value.
    pub secret: bool,
    /// Whether the feature exists.
    pub state: State,
}

impl Setting {
    /// The name and the other names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.name).chain(self.other_names.iter().copied())
    }

    /// True when its feature exists in this version.
    pub const fn is_built(&self) -> bool {
        matches!(self.state, State::Built(_))
    }

    /// What a value is measured in.
    pub const fn unit(&self) -> Unit {
        match &self.state {
            State::Built(kind) => kind.unit(),
            State::NotBuilt { unit, .. } => *unit,
        }
    }
}

/// The flag of a variable: `LISTEN_PORT` is `--listen-port`.
pub fn flag_of(name: &str) -> String {
    format!("--{}", name.to_ascii_lowercase().replace('_', "-"))
}

/// Sections of help and documentation, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Which registry, and how to reach it.
    Registry,
    /// The AWS identity.
    Aws,
    /// Listening to clients.
    Clients,
    /// What clients may do.
    Access,
    /// The cache.
    Cache,
    /// Threads and limits.
    Limits,
    /// Log and shutdown.
    Operation,
}

impl Group {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [
        Self::Registry,
        Self::Aws,
        Self::Clients,
        Self::Access,
        Self::Cache,
        Self::Limits,
        Self::Operation,
    ];

    /// The heading.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Access => "Access",
            Self::Aws => "AWS identity",
            Self::Cache => "Cache",
            Self::Clients => "Clients",
            Self::Limits => "Threads and limits",
            Self::Operation => "Operation",
            Self::Registry => "Registry",
        }
    }
}

/// What holds when a setting is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// This text, read as if the user had given it.
    Value(&'static str),
    /// No value; the words say what happens then.
    Unset(&'static str),
}

impl Preset {
    /// For the eye.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Unset(text) | Self::Value(text) => text,
        }
    }
}

/// Whether a setting's feature exists.
#[derive(Debug)]
pub enum State {
    /// It does; this reads a value.
    Built(Kind),
    /// It does not: a value is refused by name, unless it says what is so today.
    NotBuilt {
        /// What a value will be measured in.
        unit: Unit,
        /// The values that are true today.
        accepts: Accepts,
    },
}

/// Values of a feature that is not built which are true all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepts {
    /// Any: without the feature the value changes nothing.
    Anything,
    /// None.
    Nothing,
    /// These, in any case.
    Only(&'static [&'static str]),
}

/// How the value of a built setting is read, and where it goes.
#[derive(Debug)]
pub enum Kind {
    /// A decimal number of hours; the one time without a unit, as the predecessors have it.
    Hours {
        /// Smallest.
        min: Duration,
        /// Largest.
        max: Duration,
        /// Why these limits.
        reason: &'static str,
        /// Stores it.
        set: fn(&mut Settings, Duration),
    },
    /// A whole number.
    Number {
        /// Smallest.
        min: u32,
        /// Largest.
        max: u32,
        /// Why these limits.
        reason: &'static str,
        /// Stores it.
        set: fn(&mut Settings, u32),
    },
    /// True or false.
    Switch(fn(&mut Settings, bool)),
    /// Anything else.
    Text {
        /// What the text is.
        unit: Unit,
        /// What a fault says was expected.
        expected: &'static str,
        /// Reads and stores it; the error says what is wrong with this one, or is empty.
        set: fn(&mut Settings, &str) -> Result<(), String>,
    },
    /// A whole number with one of the units `ms s m h`.
    Time {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
        /// Why these limits.
        reason: &'static str,
        /// Stores it.
        set: fn(&mut Settings, Duration),
    },
}

impl Kind {
    const fn unit(&self) -> Unit {
        match self {
            Self::Hours { .. } => Unit::Hours,
            Self::Number { .. } => Unit::Number,
            Self::Switch(_) => Unit::Switch,
            Self::Text { unit, .. } => *unit,
            Self::Time { .. } => Unit::Time,
        }
    }
}

/// What a value is measured in, or what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// An IP address.
    Address,
    /// Hours, as a decimal number.
    Hours,
    /// A list with commas.
    List,
    /// A count.
    Number,
    /// A path of the file system.
    Path,
    /// Bytes, with `k`, `m` or `g`.
    Size,
    /// `true` or `false`; the flag alone means true.
    Switch,
    /// Words.
    Text,
    /// A time, with `ms`, `s`, `m` or `h`.
    Time,
    /// `http://` or `https://`, host and port.
    Url,
}

impl Unit {
    /// The placeholder in help.
    pub const fn placeholder(self) -> &'static str {
        match self {
            Self::Address => "ADDRESS",
            Self::Hours => "HOURS",
            Self::List => "LIST",
            Self::Number => "NUMBER",
            Self::Path => "PATH",
            Self::Size => "SIZE",
            Self::Switch => "",
            Self::Text => "TEXT",
            Self::Time => "TIME",
            Self::Url => "URL",
        }
    }
}

/// What a switch that is off may be called.
const OFF: Accepts = Accepts::Only(&["false", "0", "no", "off"]);
/// What a switch that is on may be called.
const ON: Accepts = Accepts::Only(&["true", "1", "yes", "on"]);

/// The commonest row of a feature that is not built.
const LATER: Setting = Setting {
    name: "",
    other_names: &[],
    group: Group::Registry,
    preset: Preset::Unset(""),
    meaning: "",
    secret: false,
    state: State::NotBuilt {
        unit: Unit::Text,
        accepts: Accepts::Nothing,
    },
};

const fn later(unit: Unit, accepts: Accepts) -> State {
    State::NotBuilt { unit, accepts }
}

const fn number(min: u32, max: u32, reason: &'static str, set: fn(&mut Settings, u32)) -> State {
    let kind = Kind::Number {
        min,
        max,
        reason,
        set,
    };
    State::Built(kind)
}

const fn text(
    unit: Unit,
    expected: &'static str,
    set: fn(&mut Settings, &str) -> Result<(), String>,
) -> State {
    let kind = Kind::Text {
        unit,
        expected,
        set,
    };
    State::Built(kind)
}

const URL: &str = "http:// or https://, a host and at most a port";
const VISIBLE: &str = "visible ASCII characters without spaces";
const COUNT_REASON: &str = "each holds up to 256 KiB of buffers";

/// Every setting there is.
pub static SETTINGS: &[Setting] = &[
    // Registry
    Setting {
        name: "ECR",
        other_names: &["UPSTREAM"],
        group: Group::Registry,
        preset: Preset::Unset("the registry that the token names"),
        meaning: "The registry, `[https://]host[:port]`. `http://` is for another proxy or a test.",
        secret: false,
        state: text(
            Unit::Url,
            "one registry as [http://|https://]host[:port]",
            parse::registry,
        ),
    },
    Setting {
        name: "UPSTREAM_AUTH",
        other_names: &[],
        group: Group::Registry,
        preset: Preset::Value("ecr"),
        meaning: "`ecr` sends an ECR token; `none` sends nothing, for an upstream that is another \
                  `aws-ecr-proxy`.",
        secret: false,
        state: text(Unit::Text, "ecr or none", parse::upstream_auth),
    },
    Setting {
        name: "BLOB_HOSTS",
        other_names: &[],
        group: Group::Registry,
        preset: Preset::Unset("none but AWS's own S3 and CloudFront hosts"),
        meaning: "Further hosts that a redirect of the registry may lead to, as `host`, \
                  `host:port` or `.suffix`.",
        secret: false,
        state: text(
            Unit::List,
            "at most 64 of host, host:port or .suffix, with commas",
            parse::blob_hosts,
        ),
    },
    Setting {
        name: "BLOB_REDIRECT",
        preset: Preset::Value("follow"),
        meaning: "`follow` fetches blobs through the proxy; `pass` hands the registry's redirect \
                  to the client.",
        state: later(Unit::Text, Accepts::Only(&["follow"])),
        ..LATER
    },
    Setting {
        name: "RESOLVER",
        preset: Preset::Unset("the system's"),
        meaning: "DNS servers for all upstream names, as `ip[:port]`.",
        state: later(Unit::List, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "HTTPS_PROXY",
        other_names: &["https_proxy"],
        preset: Preset::Unset("none"),
        meaning: "Outbound proxy for https.",
        state: later(Unit::Url, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "HTTP_PROXY",
        other_names: &["http_proxy"],
        preset: Preset::Unset("none"),
        meaning: "Outbound proxy for http.",
        state: later(Unit::Url, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "NO_PROXY",
        other_names: &["no_proxy"],
        preset: Preset::Unset("none"),
        meaning: "Hosts reached without the outbound proxy; true of all hosts while there is none.",
        state: later(Unit::List, Accepts::Anything),
        ..LATER
    },
    Setting {
        name: "OFFLINE",
        preset: Preset::Value("false"),
        meaning: "No upstream or AWS call at all: serve the cache.",
        state: later(Unit::Switch, OFF),
        ..LATER
    },
    // AWS identity
    Setting {
        name: "AWS_REGION",
        other_names: &["AWS_DEFAULT_REGION"],
        group: Group::Aws,
        preset: Preset::Unset("from the host in `ECR`"),
        meaning: "Signing region. The region in an ECR host name wins for that registry.",
        secret: false,
        state: text(
            Unit::Text,
            "1 to 63 of a-z 0-9 and -, such as eu-west-1",
            parse::region,
        ),
    },
    Setting {
        name: "AWS_ACCESS_KEY_ID",
        other_names: &[],
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Access key of the AWS identity.",
        secret: false,
        state: text(Unit::Text, VISIBLE, parse::access_key_id),
    },
    Setting {
        name: "AWS_SECRET_ACCESS_KEY",
        other_names: &[],
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Secret that belongs to the access key. Prefer the variable: other processes \
                  can read flags.",
        secret: true,
        state: text(Unit::Text, VISIBLE, parse::secret_access_key),
    },
    Setting {
        name: "AWS_SESSION_TOKEN",
        other_names: &[],
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Session token of temporary credentials. Prefer the variable, as above.",
        secret: true,
        state: text(Unit::Text, VISIBLE, parse::session_token),
    },
    Setting {
        name: "AWS_ENDPOINT_URL",
        other_names: &[],
        group: Group::Aws,
        preset: Preset::Unset("AWS's own for the region"),
        meaning: "Address of every AWS API, for private endpoints and tests.",
        secret: false,
        state: text(Unit::Url, URL, parse::endpoint_url),
    },
    Setting {
        name: "AWS_ENDPOINT_URL_ECR",
        other_names: &[],
        group: Group::Aws,
        preset: Preset::Unset("`AWS_ENDPOINT_URL`"),
        meaning: "Address of the ECR API.",
        secret: false,
        state: text(Unit::Url, URL, parse::endpoint_url_ecr),
    },
    Setting {
        name: "AWS_ENDPOINT_URL_STS",
        other_names: &[],
        group: Group::Aws,
        preset: Preset::Unset("`AWS_ENDPOINT_URL`"),
        meaning: "Address of the STS API.",
        secret: false,
        state: text(Unit::Url, URL, parse::endpoint_url_sts),
    },
    Setting {
        name: "AWS_CA_BUNDLE",
        other_names: &[],
        group: Group::Aws,
        preset: Preset::Unset("the built-in roots of Mozilla"),
        meaning: "PEM file of the certificate authorities to trust, in place of the built-in ones.",
        secret: false,
        state: text(
            Unit::Path,
            "a readable file with at least one PEM CERTIFICATE block",
            parse::ca_bundle,
        ),
    },
    Setting {
        name: "RENEW_INTERVAL_HOURS",
        other_names: &[],
        group: Group::Aws,
        preset: Preset::Value("6"),
        meaning: "Longest time between two renewals of the token; half of its remaining life if \
                  that is sooner. A decimal number, without a unit.",
        secret: false,
        state: State::Built(Kind::Hours {
            min: Duration::from_secs(36),
            max: Duration::from_secs(12 * 3600),
            reason: "a token lives 12 hours",
            set: |settings, time| settings.renew_interval = time,
        }),
    },
    Setting {
        name: "AWS_PROFILE",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Profile in the shared AWS files.",
        ..LATER
    },
    Setting {
        name: "AWS_SHARED_CREDENTIALS_FILE",
        group: Group::Aws,
        preset: Preset::Unset("`~/.aws/credentials`"),
        meaning: "Shared credentials file.",
        state: later(Unit::Path, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "AWS_CONFIG_FILE",
        group: Group::Aws,
        preset: Preset::Unset("`~/.aws/config`"),
        meaning: "Shared config file.",
        state: later(Unit::Path, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "AWS_ROLE_ARN",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Role to assume with the web identity token.",
        ..LATER
    },
    Setting {
        name: "AWS_WEB_IDENTITY_TOKEN_FILE",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Web identity token (IRSA).",
        state: later(Unit::Path, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "AWS_ROLE_SESSION_NAME",
        group: Group::Aws,
        preset: Preset::Unset("made up"),
        meaning: "Session name of the assumed role.",
        ..LATER
    },
    Setting {
        name: "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Container credentials (ECS).",
        ..LATER
    },
    Setting {
        name: "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Container credentials (EKS Pod Identity).",
        state: later(Unit::Url, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Token for the container credentials.",
        secret: true,
        ..LATER
    },
    Setting {
        name: "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "File with that token.",
        state: later(Unit::Path, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "AWS_EC2_METADATA_DISABLED",
        group: Group::Aws,
        preset: Preset::Value("false"),
        meaning: "Never ask the EC2 instance metadata service.",
        state: later(Unit::Switch, ON),
        ..LATER
    },
    Setting {
        name: "AWS_EC2_METADATA_V1_DISABLED",
        group: Group::Aws,
        preset: Preset::Value("true"),
        meaning: "Never fall back to IMDSv1.",
        state: later(Unit::Switch, ON),
        ..LATER
    },
    Setting {
        name: "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        group: Group::Aws,
        preset: Preset::Unset("the link-local address"),
        meaning: "Address of the instance metadata service.",
        state: later(Unit::Url, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
        group: Group::Aws,
        preset: Preset::Value("IPv4"),
        meaning: "`IPv4` or `IPv6` address of the instance metadata service.",
        ..LATER
    },
    Setting {
        name: "AWS_USE_FIPS_ENDPOINT",
        group: Group::Aws,
        preset: Preset::Value("false"),
        meaning: "FIPS endpoints.",
        state: later(Unit::Switch, OFF),
        ..LATER
    },
    Setting {
        name: "AWS_USE_DUALSTACK_ENDPOINT",
        group: Group::Aws,
        preset: Preset::Value("false"),
        meaning: "Dual-stack endpoints.",
        state: later(Unit::Switch, OFF),
        ..LATER
    },
    Setting {
        name: "AWS_STS_REGIONAL_ENDPOINTS",
        group: Group::Aws,
        preset: Preset::Value("regional"),
        meaning: "`regional` or `legacy` STS endpoints.",
        state: later(Unit::Text, Accepts::Only(&["regional"])),
        ..LATER
    },
    // Clients
    Setting {
        name: "LISTEN_HOST",
        other_names: &[],
        group: Group::Clients,
        preset: Preset::Value("0.0.0.0"),
        meaning: "IP address to listen on; `::` for IPv6. `unix:/path` is not built yet.",
        secret: false,
        state: text(Unit::Address, "an IP address", parse::listen_host),
    },
    Setting {
        name: "LISTEN_PORT",
        other_names: &["PORT"],
        group: Group::Clients,
        preset: Preset::Value("8080"),
        meaning: "Port to listen on; `0` picks one. The address is logged as `listening on …`.",
        secret: false,
        state: number(0, 65535, "a TCP port", |settings, port| {
            settings.listen_port = u16::try_from(port).unwrap_or(u16::MAX);
        }),
    },
    Setting {
        name: "DISABLE_PROXY_HEADERS",
        other_names: &[],
        group: Group::Clients,
        preset: Preset::Value("false"),
        meaning: "Ignore `X-Forwarded-*`, `Forwarded` and `X-Real-IP`.",
        secret: false,
        state: State::Built(Kind::Switch(|settings, on| {
            settings.trust_proxy_headers = !on;
        })),
    },
    Setting {
        name: "ENABLE_SSL",
        group: Group::Clients,
        preset: Preset::Value("false"),
        meaning: "Serve https with the next two.",
        state: later(Unit::Switch, OFF),
        ..LATER
    },
    Setting {
        name: "SSL_CERTIFICATE",
        other_names: &["REGISTRY_HTTP_TLS_CERTIFICATE"],
        group: Group::Clients,
        preset: Preset::Unset("none"),
        meaning: "PEM file of the certificate chain.",
        state: later(Unit::Path, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "SSL_KEY",
        other_names: &["REGISTRY_HTTP_TLS_KEY"],
        group: Group::Clients,
        preset: Preset::Unset("none"),
        meaning: "PEM file of the private key.",
        state: later(Unit::Path, Accepts::Nothing),
        ..LATER
    },
    // Access
    Setting {
        name: "SSL_CLIENT_CA",
        group: Group::Access,
        preset: Preset::Unset("none"),
        meaning: "PEM file: clients must show a certificate that it signed.",
        state: later(Unit::Path, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "AUTH_FILE",
        group: Group::Access,
        preset: Preset::Unset("none"),
        meaning: "htpasswd file: clients must log in.",
        state: later(Unit::Path, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "READ_ONLY",
        group: Group::Access,
        preset: Preset::Value("false"),
        meaning: "Refuse everything but GET and HEAD.",
        state: later(Unit::Switch, OFF),
        ..LATER
    },
    Setting {
        name: "ALLOW_REPOSITORIES",
        group: Group::Access,
        preset: Preset::Value("*"),
        meaning: "Globs of the repositories that clients may use.",
        state: later(Unit::List, Accepts::Only(&["*"])),
        ..LATER
    },
    // Cache
    Setting {
        name: "CACHE_DIR",
        group: Group::Cache,
        preset: Preset::Unset("`$CACHE_DIRECTORY`, else `/cache` if it exists, else off"),
        meaning: "Directory of the cache; `off` for none.",
        state: later(Unit::Path, Accepts::Only(&["off"])),
        ..LATER
    },
    Setting {
        name: "CACHE_MAX_SIZE",
        group: Group::Cache,
        preset: Preset::Value("75g"),
        meaning: "Quota on disk.",
        state: later(Unit::Size, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "CACHE_KEY",
        group: Group::Cache,
        preset: Preset::Value("$uri"),
        meaning: "Template that partitions tag entries.",
        state: later(Unit::Text, Accepts::Only(&["$uri"])),
        ..LATER
    },
    Setting {
        name: "CACHE_TAG_TTL",
        group: Group::Cache,
        preset: Preset::Value("15s"),
        meaning: "How long a tag is served without asking upstream.",
        state: later(Unit::Time, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "PREFETCH",
        group: Group::Cache,
        preset: Preset::Unset("none"),
        meaning: "Images kept fresh in the cache.",
        state: later(Unit::List, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "PREFETCH_INTERVAL",
        group: Group::Cache,
        preset: Preset::Value("15m"),
        meaning: "Time between two rounds of it.",
        state: later(Unit::Time, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "PREFETCH_PLATFORMS",
        group: Group::Cache,
        preset: Preset::Unset("all"),
        meaning: "Platforms that it fetches.",
        state: later(Unit::List, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "PIN",
        group: Group::Cache,
        preset: Preset::Unset("what `PREFETCH` names"),
        meaning: "Globs of images that eviction never touches.",
        state: later(Unit::List, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "SCRUB_INTERVAL",
        group: Group::Cache,
        preset: Preset::Value("168h"),
        meaning: "Time for one whole re-hash of the cache; `0s` is off.",
        state: later(Unit::Time, Accepts::Only(&["0s"])),
        ..LATER
    },
    // Threads and limits
    Setting {
        name: "WORKERS",
        other_names: &[],
        group: Group::Limits,
        preset: Preset::Value("8"),
        meaning: "Threads that decide on requests. They never wait, so a few suffice.",
        secret: false,
        state: number(
            1,
            64,
            "they touch memory only: more than one a core gains nothing",
            |settings, count| settings.workers = size(count),
        ),
    },
    Setting {
        name: "LANES",
        other_names: &[],
        group: Group::Limits,
        preset: Preset::Value("16"),
        meaning: "Request heads that may be with the workers at a time.",
        secret: false,
        state: number(
            2,
            256,
            "each is a thread and two descriptors; with one alone, requests would wait in a row",
            |settings, count| settings.lanes = size(count),
        ),
    },
    Setting {
        name: "MAX_CONNECTIONS",
        other_names: &[],
        group: Group::Limits,
        preset: Preset::Value("1024"),
        meaning: "Connections of clients at a time; lowered at start to what the system allows. \
                  Past it the longest idle one is closed.",
        secret: false,
        state: number(
            1,
            100_000,
            "each is a thread and up to three descriptors",
            |settings, count| settings.max_connections = size(count),
        ),
    },
    Setting {
        name: "MAX_CONNECTIONS_PER_PEER",
        group: Group::Limits,
        preset: Preset::Value("256"),
        meaning: "Connections of one client address at a time.",
        state: later(Unit::Number, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "MAX_EXCHANGES",
        other_names: &[],
        group: Group::Limits,
        preset: Preset::Value("256"),
        meaning: "Requests that wait for an upstream reply's head at a time; others queue, then \
                  get 503.",
        secret: false,
        state: number(1, 10_000, COUNT_REASON, |settings, count| {
            settings.max_exchanges = size(count);
        }),
    },
    Setting {
        name: "MAX_UPLOADS",
        other_names: &[],
        group: Group::Limits,
        preset: Preset::Value("128"),
        meaning: "Request bodies that are streamed upstream at a time.",
        secret: false,
        state: number(1, 10_000, COUNT_REASON, |settings, count| {
            settings.max_uploads = size(count);
        }),
    },
    Setting {
        name: "MAX_FILLS",
        group: Group::Limits,
        preset: Preset::Value("32"),
        meaning: "Cold blobs fetched into the cache at a time.",
        state: later(Unit::Number, Accepts::Nothing),
        ..LATER
    },
    Setting {
        name: "MIN_RATE",
        group: Group::Limits,
        preset: Preset::Value("256"),
        meaning: "Bytes a second over 60 s; slower clients are cut.",
        state: later(Unit::Size, Accepts::Nothing),
        ..LATER
    },
    // Operation
    Setting {
        name: "SHUTDOWN_GRACE",
        other_names: &[],
        group: Group::Operation,
        preset: Preset::Value("30s"),
        meaning: "Time that running transfers get to end after SIGTERM.",
        secret: false,
        state: State::Built(Kind::Time {
            min: Duration::ZERO,
            max: Duration::from_secs(3600),
            reason: "a stop that takes longer is no stop",
            set: |settings, time| settings.shutdown_grace = time,
        }),
    },
    Setting {
        name: "LOG_LEVEL",
        other_names: &[],
        group: Group::Operation,
        preset: Preset::Value("INFO"),
        meaning: "`DEBUG`, `INFO`, `WARN` (or `WARNING`) or `ERROR`, in any case.",
        secret: false,
        state: text(
            Unit::Text,
            "DEBUG, INFO, WARN or ERROR in any case",
            parse::log_level,
        ),
    },
    Setting {
        name: "LOG_FORMAT",
        other_names: &[],
        group: Group::Operation,
        preset: Preset::Value("text"),
        meaning: "`text` (key=value) or `json`; one line per request.",
        secret: false,
        state: text(Unit::Text, "text or json", parse::log_format),
    },
];

/// A count as the rest of the program keeps it; lossless, as Linux has no 16-bit machines.
fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
