//! The Elastic Container Registry's API. Owns: registry host names, API hosts and
//! GetAuthorizationToken. Must not: keep tokens; `token` does.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::call::{CALL_TIMEOUT, Caller, UnsignedCall};
use super::credentials::Credentials;
use super::endpoint;
use super::fault::AwsFault;
use crate::config::AwsSettings;
use crate::message::Headers;
use crate::oci::{self, Registry, Repository, Scheme};
use crate::secret::Secret;

/// The only region of ECR Public's API.
pub const PUBLIC_REGION: &str = "us-east-1";
/// Digits of an AWS account id.
const ACCOUNT_DIGITS: usize = 12;

/// A registry as its host name describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EcrHost {
    /// A private registry.
    Private {
        /// The account it belongs to.
        account: String,
        /// The region it is in, which is also the one to sign for.
        region: String,
        /// True for a FIPS endpoint.
        fips: bool,
        /// True for an endpoint with IPv6.
        dual_stack: bool,
    },
    /// ECR Public.
    Public,
}

impl EcrHost {
    /// Reads `host[:port]`, in any case; none when it is not a name of ECR (a CNAME, a test
    /// server).
    pub fn parse(authority: &str) -> Option<Self> {
        let host = oci::host_of(authority).to_ascii_lowercase();
        if oci::ECR_PUBLIC_HOSTS.contains(&host.as_str()) {
            return Some(Self::Public);
        }
        let (rest, dual_stack) = without_domain(&host)?;
        let (account, rest) = rest.split_once('.')?;
        if account.len() != ACCOUNT_DIGITS || !account.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let rest = rest
            .strip_prefix("dkr.ecr")
            .or_else(|| rest.strip_prefix("dkr-ecr"))?;
        let (fips, rest) = match rest.strip_prefix("-fips") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        Some(Self::Private {
            account: account.to_owned(),
            region: endpoint::region(rest.strip_prefix('.')?)?,
            fips,
            dual_stack,
        })
    }
}

/// A registry's name without its partition's domain, and whether that domain has IPv6.
fn without_domain(host: &str) -> Option<(&str, bool)> {
    let strip = |domain: &str| host.strip_suffix(domain)?.strip_suffix('.');
    endpoint::PARTITIONS.iter().find_map(|partition| {
        let dual_stack = partition.registry_dual_stack_suffix.and_then(strip);
        let found = dual_stack.map(|rest| (rest, true));
        found.or_else(|| Some((strip(partition.suffix)?, false)))
    })
}

/// The host of the private registry's API in `region`.
pub fn api_host(region: &str, fips: bool, dual_stack: bool) -> String {
    let partition = endpoint::partition(region);
    match (fips, dual_stack) {
        (false, false) => format!("api.ecr.{region}.{}", partition.suffix),
        (false, true) => format!("ecr.{region}.{}", partition.dual_stack_suffix),
        // Newer rule sets of the SDKs say `api.ecr-fips`, the documentation says this one.
        (true, false) => format!("ecr-fips.{region}.{}", partition.suffix),
        (true, true) => format!("ecr-fips.{region}.{}", partition.dual_stack_suffix),
    }
}

/// The part of ECR for which a token is good: one region of the private registries, or ECR Public.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Realm {
    /// The region to sign for.
    pub(super) region: String,
    /// True for ECR Public.
    pub(super) public: bool,
    /// True when it is fetched from the FIPS host, as settings or the registry's name ask.
    pub(super) fips: bool,
    /// True when it is fetched from the dual-stack host, for the same reasons.
    pub(super) dual_stack: bool,
}

impl Realm {
    /// The realm of the private registries in `region`, with the hosts that `settings` ask for.
    pub(super) fn private(region: String, settings: &AwsSettings) -> Self {
        Self {
            region,
            public: false,
            fips: settings.use_fips == Some(true),
            dual_stack: settings.use_dual_stack == Some(true),
        }
    }
}

impl fmt::Display for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.region)?;
        f.write_str(if self.public { " (public)" } else { "" })?;
        f.write_str(if self.fips { " (FIPS)" } else { "" })?;
        f.write_str(if self.dual_stack { " (dual-stack)" } else { "" })
    }
}

/// The host of the bucket that a private registry keeps its layers in (AWS: "Amazon ECR interface
/// VPC endpoints", "Minimum Amazon S3 bucket permissions"). None for any other registry.
pub fn layer_host(registry: &Registry) -> Option<String> {
    let host = EcrHost::parse(registry.authority())?;
    let EcrHost::Private {
        region, dual_stack, ..
    } = host
    else {
        return None;
    };
    let suffix = endpoint::partition(&region).suffix;
    let stack = if dual_stack { "dualstack." } else { "" };
    Some(format!(
        "prod-{region}-starport-layer-bucket.s3.{stack}{region}.{suffix}"
    ))
}

/// The ARN of a repository in a private registry; none in any other registry.
pub fn repository_arn(registry: &Registry, repository: &Repository) -> Option<String> {
    match EcrHost::parse(registry.authority())? {
        EcrHost::Private {
            account, region, ..
        } => {
            let partition = endpoint::partition(&region).id;
            Some(format!(
                "arn:{partition}:ecr:{region}:{account}:repository/{repository}"
            ))
        }
        EcrHost::Public => None,
    }
}

/// The region in the name of a private registry.
pub fn region_of(registry: &Registry) -> Option<String> {
    match EcrHost::parse(registry.authority())? {
        EcrHost::Private { region, .. } => Some(region),
        EcrHost::Public => None,
    }
}

/// The realm of `registry`. Its own region wins over the setting: a token is good in its region
/// only.
///
/// # Errors
/// When neither gives a region: what to set.
pub(super) fn realm_of(registry: &Registry, settings: &AwsSettings) -> Result<Realm, String> {
    match EcrHost::parse(registry.authority()) {
        Some(EcrHost::Private {
            region,
            fips,
            dual_stack,
            ..
        }) => {
            let mut realm = Realm::private(region, settings);
            // A network that reaches only such registries reaches only such APIs, too
            // (amazon-ecr-credential-helper does the same).
            realm.fips |= fips;
            realm.dual_stack |= dual_stack;
            Ok(realm)
        }
        Some(EcrHost::Public) => {
            let mut realm = Realm::private(PUBLIC_REGION.into(), settings);
            realm.public = true;
            Ok(realm)
        }
        None => find_configured_realm(settings, || {
            format!("the name of registry {registry} has no region: set AWS_REGION")
        }),
    }
}

/// The realm of `AWS_REGION`.
///
/// # Errors
/// `missing` when it is not set, or what is wrong with it.
pub(super) fn find_configured_realm(
    settings: &AwsSettings,
    missing: impl FnOnce() -> String,
) -> Result<Realm, String> {
    let text = settings
        .region
        .as_deref()
        .filter(|text| !text.trim().is_empty());
    let text = text.ok_or_else(missing)?;
    let region = endpoint::region(text)
        .ok_or_else(|| format!("AWS_REGION={text:?}: expected a region such as eu-west-1"))?;
    Ok(Realm::private(region, settings))
}

/// A token as AWS handed it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationToken {
    /// The whole value of `Authorization`.
    pub value: Secret<String>,
    /// When it ends, by AWS's clock; none when the reply does not say so in a form we know.
    pub expires: Option<SystemTime>,
    /// The private registry of the caller's own account in this region, or why it is not known, as
    /// the end of a sentence that begins with the token.
    pub registry: Result<Registry, String>,
}

/// The URL of the API for `realm`.
///
/// # Errors
/// A bad endpoint setting.
pub(super) fn api_url(settings: &AwsSettings, realm: &Realm) -> Result<String, String> {
    let service = if realm.public {
        endpoint::Service::EcrPublic
    } else {
        endpoint::Service::Ecr
    };
    if let Some(url) = endpoint::custom(settings, service)? {
        return Ok(url);
    }
    let host = match realm {
        Realm {
            public: true,
            fips: true,
            ..
        } => {
            return Err(
                "ECR Public has no FIPS endpoint: unset AWS_USE_FIPS_ENDPOINT or use another \
                 registry"
                    .into(),
            );
        }
        Realm {
            public: true,
            dual_stack: true,
            ..
        } => format!("ecr-public.{PUBLIC_REGION}.api.aws"),
        Realm { public: true, .. } => format!("api.ecr-public.{PUBLIC_REGION}.amazonaws.com"),
        realm => api_host(&realm.region, realm.fips, realm.dual_stack),
    };
    Ok(format!("https://{host}/"))
}

/// Fetches a token for `realm` from `url`. `registryIds` is deprecated and changes nothing, so it
/// is not sent.
///
/// # Errors
/// AWS's refusal, or why there was no usable reply.
pub(super) fn authorization_token(
    caller: &Caller,
    url: String,
    realm: &Realm,
    credentials: &Credentials,
) -> Result<AuthorizationToken, AwsFault> {
    let (service, target, permission) = if realm.public {
        (
            "ecr-public",
            "SpencerFrontendService.GetAuthorizationToken",
            "ecr-public:GetAuthorizationToken and sts:GetServiceBearerToken",
        )
    } else {
        (
            "ecr",
            "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
            "ecr:GetAuthorizationToken",
        )
    };
    let unsigned = UnsignedCall {
        operation: "GetAuthorizationToken",
        service,
        region: realm.region.clone(),
        url,
        headers: Headers::from_iter([
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", target),
        ]),
        body: Secret::new("{}".into()),
        permission: Some(permission),
        timeout: CALL_TIMEOUT,
    };
    let reply = caller.call(&unsigned, credentials)?;
    read_token(&reply.body, realm, &unsigned.url)
        .map_err(|reason| unsigned.odd_reply(credentials, reason))
}

fn read_token(body: &[u8], realm: &Realm, api: &str) -> Result<AuthorizationToken, &'static str> {
    let document: Value = serde_json::from_slice(body).map_err(|_| "is not JSON")?;
    let data = document
        .get("authorizationData")
        .ok_or("has no authorizationData")?;
    // An array in ECR, an object in ECR Public.
    let data = data.get(0).unwrap_or(data);
    let token = data
        .get("authorizationToken")
        .and_then(Value::as_str)
        .ok_or("has no authorizationToken")?;
    let token: String = token.split_ascii_whitespace().collect();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("has an authorizationToken that fits no header field");
    }
    let kind = if realm.public { "Bearer" } else { "Basic" };
    Ok(AuthorizationToken {
        value: Secret::new(format!("{kind} {token}")),
        expires: data.get("expiresAt").and_then(Value::as_f64).and_then(time),
        registry: own_registry(data.get("proxyEndpoint").and_then(Value::as_str), api),
    })
}

/// The registry of the reply's `proxyEndpoint`. It gets tokens, so it must be https and a name of
/// ECR's. An API other than AWS's own may name other hosts. One on this machine (a stand-in) may
/// also name loopback addresses. The API got only our signature, but the registry gets the token.
fn own_registry(endpoint: Option<&str>, api: &str) -> Result<Registry, String> {
    let endpoint = endpoint.map(str::trim).filter(|text| !text.is_empty());
    let endpoint = endpoint.ok_or("names no registry")?;
    let parsed = endpoint.parse::<Registry>().ok();
    let registry = parsed.ok_or("names a registry that is no address")?;
    let api = oci::host_of(api.split('/').nth(2).unwrap_or_default());
    let host = registry.host();
    let is_https = registry.scheme() == Scheme::Https;
    let is_ecr = EcrHost::parse(host).is_some();
    let is_named = !endpoint::is_aws(api) && !is_address(host);
    if is_https && (is_ecr || is_named) || is_loopback(api) && is_loopback(host) {
        return Ok(registry);
    }
    Err(format!(
        "names {} as its registry, which is not an https address of ECR",
        registry.url()
    ))
}

/// True for an IP address, also in one of the old forms that resolvers take (`127.1`,
/// `0x7f000001`): no name ends in a number.
fn is_address(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    last.starts_with(|c: char| c.is_ascii_digit()) || host.starts_with('[')
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Seconds since 1970, fractions included.
fn time(seconds: f64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}

#[cfg(test)]
mod tests;
