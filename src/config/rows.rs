//! The SETTINGS table: one row a setting. Pure data.
//!
//! A row is added here and nowhere else; flag, parser, `--help` and `docs/configuration.md` follow.
//! `UPDATE_DOCS=1 cargo test` writes the page anew. A row reads:
//!
//! ```text
//! NAME | OTHER_NAME: kind(field of Settings, what the kind asks for),
//!     Value "the default" or Unset "what happens without a value",
//!     "One or two sentences for the user.";
//! ```

use std::time::Duration;

use super::aws::{self, StsEndpoints};
use super::globs::{Globs, ImageGlobs};
use super::outbound::{self, BlobRedirect};
use super::registry::{self, UpstreamAuth};
use super::table::{Group, Kind, Limits, Preset, Setting, Unit, put};
use super::{access, cache, listen, metadata, parse, prefetch};

const URL: &str = "http:// or https://, a host and at most a port";
const PROXY: &str = "[http://|https://][user:password@]host[:port]";
const VISIBLE: &str = "visible ASCII characters without spaces";
const ROLE_ARN: &str = "the ARN of a role, arn:PARTITION:iam::ACCOUNT:role/NAME";
const COUNT_REASON: &str = "each holds up to 256 KiB of buffers";

/// The kind of a row; `s` is the [`Settings`](super::Settings) that its value is stored in.
macro_rules! kind {
    // A whole number of things.
    (count($($field:ident).+, $range:expr, $reason:expr)) => {
        kind!(number($($field).+, $range, $reason, size))
    };
    // A number that `$convert` makes the field of.
    (number($($field:ident).+, $range:expr, $reason:expr, $convert:expr)) => {
        Kind::Number(limits!($range, $reason), |s, number| s.$($field).+ = $convert(number))
    };
    (hours($($field:ident).+, $range:expr, $reason:expr)) => {
        Kind::Hours(limits!($range, $reason), |s, time| s.$($field).+ = time)
    };
    (time($($field:ident).+, $range:expr, $reason:expr)) => {
        Kind::Time(limits!($range, $reason), |s, time| s.$($field).+ = time)
    };
    (path($($field:ident).+)) => {
        Kind::File(|s, path| s.$($field).+ = path.into())
    };
    (switch($($field:ident).+)) => {
        Kind::Switch(|s, on| s.$($field).+ = on.into())
    };
    // A switch whose field is the opposite.
    (inverse($($field:ident).+)) => {
        Kind::Switch(|s, on| s.$($field).+ = !on)
    };
    // A text that `$read` makes the field of.
    (read($($field:ident).+, $unit:ident, $expected:expr, $read:expr)) => {
        Kind::Text(Unit::$unit, $expected, |s, text| put(&mut s.$($field).+, $read(text)))
    };
    // One of a few words.
    (word($($field:ident).+, $expected:expr, $words:expr)) => {
        Kind::Text(Unit::Text, $expected, |s, text| {
            put(&mut s.$($field).+, parse::one_of(text, $words))
        })
    };
    // A value that is checked and kept nowhere.
    (check($unit:ident, $expected:expr, $check:expr)) => {
        Kind::Text(Unit::$unit, $expected, |_, text| $check(text))
    };
}

macro_rules! limits {
    ($range:expr, $reason:expr) => {
        Limits {
            range: $range,
            reason: $reason,
        }
    };
}

macro_rules! rows {
    ($($group:ident { $(
        $(#[$mark:ident])? $name:ident $(| $other:ident)*: $kind:ident $values:tt,
        $preset:ident $default:literal, $meaning:literal;
    )+ })+) => {
        &[$($(
            Setting {
                group: Group::$group,
                name: stringify!($name),
                other_names: &[$(stringify!($other)),*],
                preset: Preset::$preset($default),
                kind: kind!($kind $values),
                meaning: $meaning,
                secret: false,
                keeps_out: false,
            }$(.$mark())?,
        )+)+]
    };
}

static ROWS: &[Setting] = rows! {
    Registry {
        ECR | UPSTREAM:
            read(registries, List, "at most 64 of [http://|https://]host[:port], with commas",
                registry::registries),
            Unset "the registry that the token names",
            "The registries, as `[https://]host[:port]` with commas between them; the first is \
             the default. `http://` is for another proxy or a test.";
        UPSTREAM_AUTH: word(upstream_auth, "ecr or none", UpstreamAuth::WORDS),
            Value "ecr",
            "`ecr` sends an ECR token; `none` sends nothing, for an upstream that is another \
             `aws-ecr-proxy`.";
        ALLOW_PLAIN_TOKEN: switch(allow_plain_token),
            Value "false",
            "Allow the ECR token to go over http, or to a host whose name is not one of ECR's (in \
             a test, or where an endpoint has a name of your own). Loopback is always allowed.";
        NAMESPACES:
            read(namespaces, List,
                "at most 64 of ORIGIN=PREFIX or ORIGIN=HOST[/PREFIX], with commas",
                registry::origins),
            Unset "none",
            "Where ECR keeps the images of other registries, such as the prefix of a pull-through \
             cache rule: `docker.io=docker-hub,quay.io=HOST/quay`. HOST must be one of `ECR`.";
        BLOB_HOSTS:
            read(blob_hosts, List, "at most 64 of host, host:port or .suffix, with commas",
                registry::blob_hosts),
            Unset "none but AWS's own S3 and CloudFront hosts",
            "Further hosts to which the registry may redirect, as `host`, `host:port` or \
             `.suffix`.";
        BLOB_REDIRECT: word(outbound.blob_redirect, "follow or pass", BlobRedirect::WORDS),
            Value "follow",
            "`follow` fetches blobs through the proxy; `pass` hands the registry's redirect to \
             the client, so that blobs are not cached.";
        OFFLINE: switch(offline),
            Value "false",
            "Make no upstream or AWS call at all: what is in the cache is served, all else is \
             404, and pushes are refused. The cache directory may be read-only.";
        RESOLVER:
            read(outbound.resolvers, List, "at most 4 of ip, ip:port or [ipv6]:port, with commas",
                outbound::resolvers),
            Unset "the system's",
            "DNS servers for all upstream names, asked in this order. `/etc/hosts` and search \
             domains are not used then.";
        HTTPS_PROXY | https_proxy: read(outbound.https_proxy, Url, PROXY, outbound::proxy_url),
            Unset "none",
            "Outbound proxy for https. The proxy asks it for a tunnel (CONNECT). Never used for \
             loopback and metadata addresses.";
        HTTP_PROXY | http_proxy: read(outbound.http_proxy, Url, PROXY, outbound::proxy_url),
            Unset "none",
            "Outbound proxy for http. Never used for loopback and metadata addresses.";
        NO_PROXY | no_proxy:
            read(outbound.no_proxy, List,
                "at most 256 of host, .suffix, address, address/bits, with commas",
                outbound::no_proxy),
            Unset "none",
            "Hosts reached without the outbound proxy: `host` and `.host` (with all below them), \
             addresses, `10.0.0.0/8`, each with `:port` or without; `*` for all.";
    }
    Aws {
        AWS_REGION | AWS_DEFAULT_REGION:
            read(aws.region, Text, "1 to 63 of a-z 0-9 and -, such as eu-west-1", aws::region),
            Unset "from the `ECR` host, the profile, or the instance metadata",
            "Signing region. The region in an ECR host name wins for that registry.";
        AWS_ENDPOINT_URL: read(aws.endpoint_url, Url, URL, parse::url),
            Unset "AWS's own for the region",
            "Address of every AWS API, for private endpoints and tests.";
        AWS_ENDPOINT_URL_ECR: read(aws.endpoint_url_ecr, Url, URL, parse::url),
            Unset "`AWS_ENDPOINT_URL`", "Address of the ECR API.";
        AWS_ENDPOINT_URL_STS: read(aws.endpoint_url_sts, Url, URL, parse::url),
            Unset "`AWS_ENDPOINT_URL`", "Address of the STS API.";
        AWS_CA_BUNDLE:
            read(aws.ca_bundle, Path, "a readable file with at least one PEM CERTIFICATE block",
                aws::ca_bundle),
            Unset "`/etc/ssl/certs/ca-certificates.crt` if there, else built-in roots",
            "PEM file of the certificate authorities to trust, in place of all others.";
        RENEW_INTERVAL_HOURS:
            hours(renew_interval, Duration::from_secs(36)..=Duration::from_secs(12 * 3600),
                "a token lives 12 hours"),
            Value "6",
            "Longest time between two renewals of the token; it is renewed earlier when half of \
             its remaining life is over. A decimal number, without a unit.";
        AWS_USE_FIPS_ENDPOINT: switch(aws.use_fips),
            Unset "`false`, or `use_fips_endpoint` of the profile",
            "Call the FIPS endpoints of ECR and STS. A registry with `ecr-fips` in its name \
             always gets its token from there.";
        AWS_USE_DUALSTACK_ENDPOINT: switch(aws.use_dual_stack),
            Unset "`false`, or `use_dualstack_endpoint` of the profile",
            "Call the dual-stack (IPv6) endpoints of ECR and STS. A registry with a dual-stack \
             name always gets its token from there.";
        AWS_STS_REGIONAL_ENDPOINTS:
            word(aws.sts_endpoints, "regional or legacy", StsEndpoints::WORDS),
            Unset "`regional`, or `sts_regional_endpoints` of the profile",
            "`regional`, or `legacy`: `sts.amazonaws.com` for the older regions.";
        AWS_IGNORE_CONFIGURED_ENDPOINT_URLS: switch(aws.ignore_endpoint_urls),
            Unset "`false`, or `ignore_configured_endpoint_urls` of the profile",
            "Call AWS's own addresses, whatever `AWS_ENDPOINT_URL` and its kin or the profile \
             say.";
        AWS_ACCESS_KEY_ID: read(aws.access_key_id, Text, VISIBLE, aws::visible),
            Unset "none", "Access key of the AWS identity.";
        #[secret] AWS_SECRET_ACCESS_KEY:
            read(aws.secret_access_key, Text, VISIBLE, aws::visible_secret),
            Unset "none",
            "Secret that belongs to the access key. Prefer the variable, because other processes \
             can read flags.";
        #[secret] AWS_SESSION_TOKEN: read(aws.session_token, Text, VISIBLE, aws::visible_secret),
            Unset "none", "Session token of temporary credentials. Prefer the variable here, too.";
        AWS_PROFILE | AWS_DEFAULT_PROFILE:
            read(aws.profile, Text, "the name of a profile", aws::profile),
            Unset "`default`, if the shared files have it",
            "Profile in the shared AWS files. A profile that is named must be there.";
        AWS_SHARED_CREDENTIALS_FILE: path(aws.credentials_file),
            Unset "`~/.aws/credentials`", "Shared credentials file, read anew at each use.";
        AWS_CONFIG_FILE: path(aws.config_file),
            Unset "`~/.aws/config`",
            "Shared config file. Credentials in it are read anew at each use, regions and \
             endpoints at the start.";
        AWS_ROLE_ARN: read(aws.role_arn, Text, ROLE_ARN, aws::role_arn),
            Unset "none", "Role to assume with the web identity token.";
        AWS_WEB_IDENTITY_TOKEN_FILE: path(aws.web_identity_token_file),
            Unset "none",
            "File with the web identity token (IRSA), read anew at each use. Needs `AWS_ROLE_ARN`.";
        AWS_ROLE_SESSION_NAME:
            read(aws.role_session_name, Text, "2 to 64 letters, digits and _+=,.@-",
                aws::session_name),
            Unset "`aws-ecr-proxy`",
            "Session name of the role that is assumed with the web identity token.";
        AWS_CONTAINER_CREDENTIALS_RELATIVE_URI:
            read(aws.container.relative_uri, Text,
                "a path from its slash on, such as /v2/credentials/ID", metadata::relative_uri),
            Unset "none", "Path of the container credentials at `169.254.170.2` (ECS sets it).";
        AWS_CONTAINER_CREDENTIALS_FULL_URI:
            read(aws.container.full_uri, Url,
                "https:// and a host, or http:// and loopback, 169.254.170.2, 169.254.170.23, \
                 [fd00:ec2::23] or a name that leads to one of these", metadata::full_uri),
            Unset "none",
            "Address of the container credentials when no path is given (EKS Pod Identity sets \
             it). Over http, only loopback, `169.254.170.2`, `169.254.170.23` and \
             `[fd00:ec2::23]` are allowed.";
        #[secret] AWS_CONTAINER_AUTHORIZATION_TOKEN:
            read(aws.container.authorization_token, Text,
                "visible ASCII characters and spaces on one line", metadata::authorization_token),
            Unset "none", "Token that the container credentials ask for.";
        AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: path(aws.container.authorization_token_file),
            Unset "none",
            "File with the token that the container credentials ask for, read anew at each use. \
           It ranks above the token itself.";
        AWS_EC2_METADATA_DISABLED: inverse(aws.instance.enabled),
            Value "false",
            "Never ask the EC2 instance metadata service, neither for credentials nor for the \
             region.";
        AWS_EC2_METADATA_V1_DISABLED: check(Switch, "true", metadata::check_v1_disabled),
            Value "true",
            "Version 1 of the instance metadata service is never used, so only `true` is \
             accepted.";
        AWS_EC2_METADATA_SERVICE_ENDPOINT: read(aws.instance.endpoint, Url, URL, parse::url),
            Unset "the link-local address", "Address of the instance metadata service.";
        AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE:
            word(aws.instance.ipv6, "IPv4 or IPv6", metadata::MODES),
            Value "IPv4",
            "`IPv4` or `IPv6`: which link-local address of the instance metadata service.";
        AWS_METADATA_SERVICE_TIMEOUT:
            number(aws.instance.timeout, 1..=10, "fetching a token waits for it", seconds),
            Value "1",
            "Seconds to connect to the instance metadata service, and again for its reply; \
             without a unit, as in the AWS SDKs.";
        AWS_METADATA_SERVICE_NUM_ATTEMPTS:
            number(aws.instance.attempts, 1..=10, "fetching a token waits for them", u32::from),
            Value "4",
            "How often a request is sent when the instance metadata service answers it with an \
             error of its own.";
    }
    Clients {
        #[keeps_out] LISTEN_HOST:
            read(listen_host, Address, "an IP address, a name, or unix: and a path", listen::host),
            Value "0.0.0.0",
            "IP address to listen on (`::` for IPv6), a name such as `localhost` (all its \
             addresses), or `unix:/path` for a unix socket, which its user and group may use. \
             Not used when systemd hands in sockets.";
        LISTEN_PORT | PORT: number(listen_port, 0..=65535, "a TCP port", port),
            Value "8080",
            "Port to listen on; `0` picks one. The address is logged as `listening on …`.";
        DISABLE_PROXY_HEADERS: inverse(trust_proxy_headers),
            Value "false", "Ignore `X-Forwarded-*`, `Forwarded` and `X-Real-IP`.";
        #[keeps_out] ENABLE_SSL: switch(tls.enabled),
            Value "false",
            "Serve https (TLS 1.2 and 1.3, HTTP/1.1) with `SSL_CERTIFICATE` and `SSL_KEY`, and \
             nothing else on that port.";
        #[keeps_out] SSL_CERTIFICATE | REGISTRY_HTTP_TLS_CERTIFICATE: path(tls.certificate),
            Unset "none",
            "PEM file of the certificate chain, the proxy's own certificate first. Read again on \
             SIGHUP and when it changes; without `ENABLE_SSL=true` it is not used.";
        #[keeps_out] SSL_KEY | REGISTRY_HTTP_TLS_KEY: path(tls.key),
            Unset "none",
            "PEM file of the private key (PKCS #8, PKCS #1 or SEC 1, without passphrase). Read \
             again together with the certificate.";
    }
    Access {
        #[keeps_out] SSL_CLIENT_CA: path(tls.client_ca),
            Unset "none",
            "PEM file of authorities: a client must show a certificate that one of them signed. A \
             client without one gets only the probes and `/version`. Needs `ENABLE_SSL=true`; \
             read again together with the certificate.";
        #[keeps_out] AUTH_FILE: path(access.auth_file),
            Unset "none",
            "htpasswd file with bcrypt hashes (`htpasswd -B`): clients must log in. Read again on \
             SIGHUP and when it changes.";
        #[keeps_out] READ_ONLY: switch(access.read_only),
            Value "false", "Refuse everything but GET and HEAD.";
        #[keeps_out] ALLOW_REPOSITORIES:
            read(access.repositories, List,
                "repository names in which * stands for any characters and ? for one",
                Globs::parse),
            Value "*",
            "Patterns of the repositories that clients may use, such as `team-a/*,base`; `*` \
             stands for any characters, also for `/`. Other repositories get 403 and are not in \
             the catalogue.";
        #[keeps_out] ACCESS_CONTROL_ALLOW_ORIGIN:
            read(access.origins, List,
                "* or at most 64 of http://host[:port] or https://host[:port], with commas",
                access::origins),
            Unset "none",
            "Web pages that may use the registry from a browser (CORS), such as the address of a \
             registry's user interface: `https://ui.example`. `*` stands for every page, without \
             the login that a browser remembers.";
    }
    Cache {
        CACHE_DIR: path(cache_dir),
            Unset "`$CACHE_DIRECTORY`, else `/cache` if it exists, else off",
            "Directory of the cache, an OCI image layout; `off` for none.";
        CACHE_MAX_SIZE:
            read(cache_max_size, Size,
                "a whole number of bytes, or with a unit such as k, m, g, t or GiB",
                cache::max_size),
            Value "75g", "Quota on disk, including downloads in progress.";
        CACHE_KEY: read(cache_key, Text, "a template", cache::key),
            Value "$uri",
            "Template that partitions tag entries, with nginx's variables `$uri $host $scheme \
             $args $is_args $request_uri $request_method $proxy_host $http_NAME`.";
        CACHE_TAG_TTL: read(cache_tag_ttl, Time, "a time such as 15s, or forever", cache::tag_ttl),
            Value "15s",
            "How long a tag is served without asking upstream. `0s` always asks, `forever` never \
             does.";
        FREEZE_TAGS:
            read(freeze_tags, List,
                "[registry/]repository:tag, in which * stands for any characters and ? for one",
                ImageGlobs::parse),
            Unset "none",
            "Patterns of tags that keep their first digest, such as `team/app:v*` or \
             `HOST/base/*:*`. Once such a tag is cached, upstream is not asked for it again, and \
             no client may move or delete it. `*` stands for any characters, also for `/`.";
        FILL_REFERRERS: switch(fill_referrers),
            Value "false",
            "Fetch what refers to an image (signatures, attestations, SBOMs) when the image comes \
             into the cache, so that it can be verified offline.";
        PREFETCH: read(prefetch.images, List, "names of images with commas, or @FILE",
                prefetch::images),
            Unset "none",
            "Images kept fresh in the cache, with all that refers to them: `team/app:1,base/os`, \
             or `@FILE` with one on each line, which is read before each round.";
        PREFETCH_INTERVAL:
            time(prefetch.interval, Duration::from_secs(1)..=Duration::from_secs(168 * 3600),
                "a tag would be out of date for longer"),
            Value "15m", "Time between two rounds of `PREFETCH`.";
        PREFETCH_PLATFORMS:
            read(prefetch.platforms, List, "all, or platforms as in linux/amd64,linux/arm64/v8",
                prefetch::platforms),
            Value "all",
           "Platforms that `PREFETCH` fetches; one without a variant means all variants.";
        PREFETCH_RATE:
            read(prefetch.rate, Size, "bytes a second, or with k or m", prefetch::rate),
            Unset "no limit",
            "Bytes a second that `PREFETCH` may fetch, in all. A blob that a client waits for is \
             fetched at full speed.";
        PIN:
            read(pin, List,
                "[registry/]repository:tag, in which * stands for any characters and ? for one",
                ImageGlobs::parse),
            Unset "what `PREFETCH` names",
            "Patterns of tags that eviction never removes, written as in `FREEZE_TAGS`. Each stays \
             with all that its image needs and with its signatures. What `FREEZE_TAGS` matches is \
             pinned, too.";
        SCRUB_INTERVAL:
            time(scrub_interval, Duration::ZERO..=Duration::from_secs(10_000 * 3600),
                "a longer one finds damage when it is too late"),
            Value "168h",
            "Once in this time the whole cache is read and hashed again, slowly; damaged blobs are \
             removed and fetched anew. `0s` is off.";
    }
    Limits {
        WORKERS:
            count(workers, 1..=64, "they touch memory only: more than one a core gains nothing"),
            Value "8", "Threads that decide on requests. They never wait, so a few suffice.";
        LANES:
            count(lanes, 2..=256,
                "each is a thread and two descriptors; with one alone, requests would wait in a \
                 row"),
            Value "16", "Request heads that may be with the workers at a time.";
        MAX_CONNECTIONS:
            count(max_connections, 1..=100_000, "each is a thread and up to three descriptors"),
            Value "1024",
            "Connections of clients at a time, lowered at the start to what the system allows. \
             Above it, the connection that has been idle longest is closed.";
        MAX_CONNECTIONS_PER_PEER: count(max_connections_per_peer, 1..=100_000, "each is a thread"),
            Value "256",
            "Connections of one client address (IPv6: of one /64) at a time; not on unix sockets. \
             Raise it where all clients come through one load balancer.";
        MAX_EXCHANGES: count(max_exchanges, 1..=10_000, COUNT_REASON),
            Value "256",
            "Requests that may wait for the reply of one registry at a time. Others queue, then \
             get 503.";
        MAX_UPLOADS: count(max_uploads, 1..=10_000, COUNT_REASON),
            Value "128",
            "Request bodies that are streamed to one registry at a time; at most half as many \
             from one client address.";
        MAX_FILLS: count(max_fills, 1..=1024, "each is a thread"),
            Value "32", "Cold blobs fetched into the cache at a time.";
        MIN_RATE: read(min_rate, Size, "bytes a second, or with k", parse::min_rate),
            Value "256",
            "Bytes a second that a client must reach over 60 s in which the proxy waits for it \
             (180 s while it takes a reply). Slower clients are cut. `0` switches it off.";
    }
    Operation {
        STATUS_PAGE: switch(status_page),
            Value "true",
            "Serve the status page at `/` and its data at `/status.json`, for those who may use \
             the registry. `false` removes both.";
        SHUTDOWN_GRACE:
            time(shutdown_grace, Duration::ZERO..=Duration::from_secs(3600),
                "a stop that takes longer is no stop"),
            Value "30s", "Time that running transfers get to end after SIGTERM.";
        LOG_LEVEL: word(log_level, "DEBUG, INFO, WARN or ERROR in any case", parse::LOG_LEVELS),
            Value "INFO", "`DEBUG`, `INFO`, `WARN` (or `WARNING`) or `ERROR`, in any case.";
        LOG_FORMAT: word(log_format, "text or json", parse::LOG_FORMATS),
            Value "text", "`text` (key=value) or `json`; one line per request.";
        #[keeps_out] METRICS_LISTEN:
            read(metrics.listen, Address, "an IP address or a name with a port, :PORT, or unix: \
                and a path", listen::metrics_listen),
            Unset "on the main address",
            "Separate address for `/metrics` and the status page, such as `127.0.0.1:9090` or \
             `:9090`: plain HTTP, without login. The two pages are then absent from the main \
             address, and the registry is absent from this one.";
        METRICS_ANONYMOUS: switch(metrics.anonymous),
            Value "false",
            "`/metrics` on the main address needs neither login (`AUTH_FILE`) nor client \
             certificate (`SSL_CLIENT_CA`). The status page always needs what the registry needs.";
        METRICS_REPOSITORIES: switch(metrics.repositories),
            Value "false",
            "Count requests and bytes by repository, too: the first 1000 by name, all others \
             together. Whoever sees the metrics then sees the names.";
    }
};

/// Every setting there is, in the order of help and documentation.
pub fn table_rows() -> impl Iterator<Item = &'static Setting> + Clone {
    ROWS.iter()
}

/// A count as the rest of the program keeps it; lossless, as Linux has no 16-bit machines.
fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Lossless within the row's limits.
fn port(number: u32) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

fn seconds(number: u32) -> Duration {
    Duration::from_secs(number.into())
}
