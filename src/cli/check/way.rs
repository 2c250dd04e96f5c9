//! The steps of `check` that ask AWS, a registry, and the hosts of its layers. Owns: one try each,
//! and what its outcome means. Must not: print, or need a signed URL.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::local::show_end;
use super::outcome::{StepResult, ok, skipped};
use crate::app;
use crate::aws::ecr::{self, AuthorizationToken};
use crate::aws::token::Tokens;
use crate::config::{Settings, UpstreamAuth};
use crate::message::Headers;
use crate::oci::Registry;
use crate::upstream::client::{Client, Outgoing};
use crate::upstream::exchange::{Call, Fetched, Upstream};
use crate::upstream::incoming::Incoming;
use crate::upstream::secrets::Secrets;
use crate::upstream::{AddressRule, Api as _, FixedToken, Stage, UpstreamError, connect};

/// AWS refuses signatures that are older; ours are corrected, other programs' are not.
const CLOCK_OFF_S: u64 = 240;
/// One name, or one connection to an outbound proxy.
pub(super) const DNS_LIMIT: Duration = Duration::from_secs(6);
/// One answer, connecting included.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// A wait ends so long before the limit of its step: then it says on whom it waited.
const SLACK: Duration = Duration::from_secs(1);
/// Longest wait for one name or connection.
const DNS_WAIT: Duration = DNS_LIMIT.saturating_sub(SLACK);
/// Longest wait for one answer.
const ANSWER_WAIT: Duration = ANSWER_LIMIT.saturating_sub(SLACK);
/// Idle connections: nothing is asked twice.
const POOL: usize = 1;
/// A refusal is quoted up to so many characters.
const QUOTED_CHARACTERS_MAX: usize = 300;
/// Bytes that are read of an answer that is no manifest; a refusal has words.
pub(super) const BODY_BYTES_MAX: u64 = 4 << 10;
/// Addresses shown of a name.
const ADDRESSES_SHOWN: usize = 4;

/// How AWS is asked.
pub(super) struct Account {
    pub(super) settings: Arc<Settings>,
    client: Arc<Client>,
    /// None where the registry wants no token.
    tokens: Option<Arc<Tokens>>,
    has_credentials: AtomicBool,
}

impl Account {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// When nothing can be.
    pub(super) fn new(settings: Arc<Settings>) -> Result<Self, String> {
        let client = Arc::new(app::new_client(&settings, POOL)?);
        let wants_token = settings.upstream_auth == UpstreamAuth::Ecr;
        Ok(Self {
            tokens: wants_token.then(|| app::new_tokens(&settings, &client)),
            has_credentials: AtomicBool::new(false),
            settings,
            client,
        })
    }

    /// Finds credentials, and whose they are.
    pub(super) fn find_identity(&self) -> StepResult {
        let Some(tokens) = &self.tokens else {
            return skipped("not needed: UPSTREAM_AUTH=none");
        };
        let found = tokens.find_identity()?;
        self.has_credentials.store(true, Ordering::Relaxed);
        let until = match found.expires {
            None => "without an end".to_owned(),
            end => format!("until {}", show_end(end)),
        };
        let whose = format!("{}, credentials {until}", found.source);
        match found.identity {
            Ok(identity) => ok(format!("{} via {whose}", identity.arn)),
            Err(fault) if fault.is_lasting() => Err(fault.text),
            // Pulls do not need STS once there are credentials.
            Err(fault) => skipped(format!("the ARN is unknown, {whose}: {}", fault.text)),
        }
    }

    /// The tokens, once there are credentials to fetch one with.
    ///
    /// # Errors
    /// Why no token can be fetched.
    fn tokens(&self) -> Result<&Tokens, &'static str> {
        let tokens = self.tokens.as_deref();
        let tokens = tokens.ok_or("not needed: UPSTREAM_AUTH=none")?;
        match self.has_credentials.load(Ordering::Relaxed) {
            true => Ok(tokens),
            false => Err("no credentials to ask AWS with"),
        }
    }

    /// Compares the clocks, after AWS has answered.
    pub(super) fn compare_clocks(&self) -> StepResult {
        let behind = match self.tokens() {
            Ok(tokens) => tokens.clock_skew_seconds(),
            Err(why) => return skipped(why),
        };
        let Some(behind) = behind else {
            return skipped("AWS has not answered, so there is no clock to compare with");
        };
        let off = behind.unsigned_abs();
        if off <= CLOCK_OFF_S {
            return ok(format!("{off} s off AWS's"));
        }
        let way = if behind > 0 { "behind" } else { "ahead of" };
        Err(format!(
            "this machine's clock is {off} s {way} AWS's: signatures are corrected, but \
             certificates are judged by it; set it (timedatectl set-ntp true, chronyc makestep)"
        ))
    }
}

/// The way to one registry: its name, and the token to ask with.
pub(super) struct Way {
    account: Arc<Account>,
    /// None: the one that the token names.
    named: Option<Registry>,
    token: OnceLock<AuthorizationToken>,
}

impl Way {
    /// The ways to the registries of the settings, else to that of the identity.
    pub(super) fn all(account: &Arc<Account>) -> Vec<Arc<Self>> {
        let named = &account.settings.registries;
        let mut names: Vec<Option<Registry>> = named.iter().cloned().map(Some).collect();
        if names.is_empty() {
            names.push(None);
        }
        let way = |named| Self {
            account: Arc::clone(account),
            named,
            token: OnceLock::new(),
        };
        names.into_iter().map(way).map(Arc::new).collect()
    }

    /// The registry.
    ///
    /// # Errors
    /// Why it is not known.
    pub(super) fn registry(&self) -> Result<&Registry, String> {
        let own = || self.token.get()?.registry.as_ref().ok();
        let found = self.named.as_ref().or_else(own);
        found.ok_or_else(|| "not known: set ECR, or mend the token, which names one".to_owned())
    }

    pub(super) fn fetch_token(&self) -> StepResult {
        let tokens = match self.account.tokens() {
            Ok(tokens) => tokens,
            Err(why) => return skipped(why),
        };
        let (region, token) = tokens.find_token(self.named.as_ref())?;
        let detail = format!("of {region}, until {}", show_end(token.expires));
        let _ = self.token.set(token);
        ok(detail)
    }

    /// True when the registry wants a token and there is none.
    pub(super) fn lacks_token(&self) -> bool {
        self.account.settings.upstream_auth == UpstreamAuth::Ecr && self.token.get().is_none()
    }

    pub(super) fn try_outbound_proxy(&self) -> StepResult {
        let url = self.registry()?.url();
        let client = &self.account.client;
        let Some((host, port, shown)) = client.outbound_proxy_address(&url) else {
            return skipped(format!("none leads to {url}"));
        };
        let deadline = Instant::now() + DNS_WAIT;
        let found = client.addresses(&host, deadline);
        let found = found.map_err(|fault| format!("{shown} is to lead to {url}: {fault}"))?;
        let at = |address: &IpAddr| SocketAddr::new(*address, port);
        let addresses: Vec<SocketAddr> = found.iter().map(at).collect();
        match connect(&addresses, deadline) {
            Ok(_) => ok(format!("{shown} leads to {url}")),
            Err(fault) => Err(format!(
                "{shown} is to lead to {url}, and is out of reach: {}; mend it, or set NO_PROXY",
                fault.reason
            )),
        }
    }

    pub(super) fn look_up(&self) -> StepResult {
        let (registry, client) = (self.registry()?, &self.account.client);
        let host = registry.host();
        if let Some(proxy) = client.outbound_proxy(&registry.url()) {
            return skipped(format!("{host} is looked up by {proxy}"));
        }
        let found = client.addresses(host, Instant::now() + DNS_WAIT);
        let found = found.map_err(|fault| {
            format!("{fault}; check the name in ECR, and RESOLVER or /etc/resolv.conf")
        })?;
        let shown = found.iter().take(ADDRESSES_SHOWN);
        let shown: Vec<String> = shown.map(ToString::to_string).collect();
        ok(format!("{host} is {}", shown.join(", ")))
    }

    /// Sends `GET /v2/`, with which every client begins (distribution-spec, end-1).
    pub(super) fn ask_registry(&self) -> StepResult {
        let what = format!("GET {}/v2/", self.registry()?.url());
        let asked = Instant::now();
        let (reply, body) = match self.get("/v2/", &Headers::new(), BODY_BYTES_MAX) {
            Ok((fetched, body)) => (fetched.reply, body),
            Err(fault) if fault.stage == Stage::Refused && self.lacks_token() => {
                return ok(format!("{what} 401: within reach, asked without a token"));
            }
            Err(fault) => return Err(self.explain(&what, &fault)),
        };
        let took = asked.elapsed().as_millis();
        let seen = format!("{what} {} in {took} ms", reply.status);
        let remedy = match reply.status {
            200 if is_registry(&reply) => return ok(seen),
            200 => {
                "it is a web site and no registry: a private registry is \
                 ACCOUNT.dkr.ecr.REGION.amazonaws.com, ECR Public is public.ecr.aws; check ECR"
            }
            400 | 403 => {
                "it refuses the token: check that the registry is in the token's region and \
                 partition, and its policy"
            }
            429 => "it throttles: try again later",
            500.. => "it fails: try again later",
            _ => "is it a registry? check ECR",
        };
        Err(quote(&seen, &body, remedy))
    }

    /// Sends a GET as pulls do. Gives the answer, and the beginning of its body.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(super) fn get(
        &self,
        target: &str,
        headers: &Headers,
        bytes_max: u64,
    ) -> Result<(Fetched, Vec<u8>), UpstreamError> {
        let unknown = |why| UpstreamError::new(Stage::Authorize, "the registry", why);
        let registry = self.registry().map_err(unknown)?;
        let token = self.token.get().map(|token| token.value.clone());
        let token = FixedToken(token.map(Secrets::new).map(Arc::new));
        let redirects = app::redirects(&self.account.settings);
        let client = Arc::clone(&self.account.client);
        let upstream = Upstream::new(client, Arc::new(token), redirects, 1, 1);
        let deadline = Instant::now() + ANSWER_WAIT;
        let mut fetched = upstream.fetch_bodiless(Call {
            registry,
            method: "GET",
            target,
            headers,
            patience: ANSWER_WAIT,
            whole: false,
        })?;
        let body = fetched.reply.read_body(bytes_max, deadline);
        let broken = |error| UpstreamError::at(registry, Stage::Transfer, format!("{error}"));
        Ok((fetched, body.map_err(broken)?))
    }

    /// Explains why there is no answer, and what to do.
    pub(super) fn explain(&self, what: &str, fault: &UpstreamError) -> String {
        let own = self.registry().map(Registry::url);
        let is_registry = own.is_ok_and(|own| own == fault.to);
        let remedy = match fault.stage {
            // These say what to do.
            Stage::Authorize | Stage::Refused => return format!("{what}: {fault}"),
            Stage::Redirect => storage_remedy(fault.stage),
            _ if is_registry => "check network, firewall, HTTPS_PROXY and AWS_CA_BUNDLE",
            _ => storage_remedy(fault.stage),
        };
        format!("{what}: {fault}; {remedy}")
    }

    /// The URLs of the hosts that the registry redirects layers to, as far as they are known.
    pub(super) fn storage_hosts(&self) -> Vec<String> {
        let Ok(registry) = self.registry() else {
            return Vec::new();
        };
        let bucket = ecr::layer_host(registry).map(|host| format!("https://{host}"));
        let url = registry.url();
        let (scheme, _) = url.split_once(':').unwrap_or_default();
        // `.suffix` is no host that could be asked.
        let set = self.account.settings.blob_hosts.iter();
        let set = set.filter(|host| !host.starts_with('.'));
        let set = set.map(|host| format!("{scheme}://{host}"));
        bucket.into_iter().chain(set).collect()
    }

    /// Connects to a host of layers and waits for any answer. The request asks for nothing that the
    /// host could grant.
    pub(super) fn reach_storage(&self, url: &str) -> StepResult {
        let asked = Instant::now();
        let sent = self.account.client.send(Outgoing {
            method: "GET",
            url: &format!("{url}/"),
            headers: &Headers::new(),
            head_deadline: asked + ANSWER_WAIT,
            whole: false,
            addresses: AddressRule::Any,
        });
        let reply = sent.map_err(|fault| format!("{fault}; {}", storage_remedy(fault.stage)))?;
        let (status, took) = (reply.status, asked.elapsed().as_millis());
        ok(format!(
            "{url} answers ({status}, asked for nothing) in {took} ms"
        ))
    }
}

/// What opens the way to S3 after a failure at that stage.
const fn storage_remedy(stage: Stage) -> &'static str {
    match stage {
        Stage::Resolve => {
            "no layer can be pulled: let RESOLVER or /etc/resolv.conf look up S3's names, and \
             check AWS_REGION and the region in ECR"
        }
        Stage::Tls => {
            "no layer can be pulled: something on the way answers in S3's place; set AWS_CA_BUNDLE \
             to its authority, or let S3 pass"
        }
        _ => {
            "no layer can be pulled: open the firewall for this host (443), or give the subnet's \
             route table the S3 gateway endpoint (com.amazonaws.REGION.s3) with a policy that \
             allows s3:GetObject on this bucket"
        }
    }
}

/// True for an answer that says that it is a registry's (distribution-spec, "Determining Support"),
/// or at least is no page for people.
fn is_registry(reply: &Incoming) -> bool {
    let media_type = reply.headers.first("Content-Type").unwrap_or_default();
    let version = reply.headers.first("Docker-Distribution-Api-Version");
    version.is_some() || media_type.trim_start().starts_with("application/json")
}

/// A refusal with the remedy. Its own text is quoted, unless it is a page for people.
pub(super) fn quote(seen: &str, body: &[u8], remedy: &str) -> String {
    let said = String::from_utf8_lossy(body);
    let said: String = said.trim().chars().take(QUOTED_CHARACTERS_MAX).collect();
    match said.is_empty() || said.starts_with('<') {
        true => format!("{seen}; {remedy}"),
        false => format!("{seen}: {said}; {remedy}"),
    }
}
