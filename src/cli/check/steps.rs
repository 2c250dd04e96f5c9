//! The steps of `check`. Owns: one try each, and what its outcome means. Must not: print, or know
//! how long it may take as a whole.

use std::io::Read as _;
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::outcome::{StepOutcome, StepResult, noted, ok, skipped};
use crate::app::{self, listen};
use crate::aws::token::{FoundCredentials, FoundToken, Tokens};
use crate::cache::probe;
use crate::calendar::format_rfc3339;
use crate::clock::SystemClock;
use crate::config::{Settings, UpstreamAuth};
use crate::door::{ServerTls, TlsFiles};
use crate::message::Headers;
use crate::oci::Registry;
use crate::proxy::login::Logins;
use crate::secret::Secret;
use crate::upstream::client::{Client, Outgoing};
use crate::upstream::incoming::Incoming;
use crate::upstream::secrets::Secrets;
use crate::upstream::{AddressRule, Api as _};

/// A refusal is quoted up to so many bytes.
const QUOTED_BYTES_MAX: u64 = 300;
/// AWS refuses signatures that are older; ours are corrected, other programs' are not.
const CLOCK_OFF_S: u64 = 240;
/// Addresses that share the time for connecting.
const ATTEMPTS: u32 = 2;
/// Addresses shown of a name.
const ADDRESSES_SHOWN: usize = 4;

pub(super) fn probe_cache(settings: &Settings) -> StepResult {
    let Some(directory) = app::cache_directory(settings) else {
        return skipped("off: set CACHE_DIR for a cache");
    };
    if settings.offline {
        let found = probe::look(&directory).map_err(|error| error.to_string())?;
        let (root, used) = (found.root.display(), gib(found.used_bytes));
        return ok(format!("{root} can be read, {used} in it"));
    }
    let found = probe::probe(&directory).map_err(|error| error.to_string())?;
    let state = match found.is_there {
        true => "can be written",
        false => "can be made",
    };
    let (free, quota) = (gib(found.free_bytes), gib(settings.cache_max_size));
    let root = found.root.display();
    ok(format!("{root} {state}, {free} free, quota {quota}"))
}

/// Compares the quota with what the disk can hold.
pub(super) fn judge_quota(settings: &Settings) -> StepResult {
    if settings.offline {
        return skipped("OFFLINE=true: nothing is added");
    }
    let found = app::cache_directory(settings).map(|directory| probe::probe(&directory));
    let Some(Ok(found)) = found else {
        return skipped("there is no cache to judge");
    };
    let room = found.free_bytes.saturating_add(found.used_bytes);
    let (shown, all) = (gib(settings.cache_max_size), gib(room));
    let seen = format!("{shown}, and the disk has room for {all}");
    match room >= settings.cache_max_size {
        true => ok(seen),
        false => noted(format!(
            "{seen}: it is full before the quota is; set CACHE_MAX_SIZE below {all}"
        )),
    }
}

pub(super) fn try_port(settings: &Settings) -> StepResult {
    ok(listen::try_out(settings)?)
}

pub(super) fn load_tls(settings: &Settings) -> StepResult {
    let set = &settings.tls;
    let (true, Some(certificate), Some(key)) = (set.enabled, &set.certificate, &set.key) else {
        return skipped("off: ENABLE_SSL is not true");
    };
    let own = certificate.display();
    let files = TlsFiles {
        certificate: certificate.clone(),
        key: key.clone(),
        client_ca: set.client_ca.clone(),
    };
    let tls = ServerTls::load(files).map_err(|faults| faults.join("; "))?;
    let until = show_end(tls.good_until());
    if tls.good_until().is_some_and(|end| end <= SystemTime::now()) {
        return Err(format!("SSL_CERTIFICATE={own} ended {until}: renew it"));
    }
    let names = tls.names().join(", ");
    if names.is_empty() {
        return Err(format!(
            "SSL_CERTIFICATE={own}: it has no subjectAltName, and clients look at no other name; \
             make one with the names of this host"
        ));
    }
    ok(format!("{own}, for {names}, good until {until}"))
}

fn show_end(end: Option<SystemTime>) -> String {
    end.map_or_else(|| "unknown".to_owned(), format_rfc3339)
}

pub(super) fn load_logins(settings: &Settings) -> StepResult {
    let Some(path) = &settings.access.auth_file else {
        return skipped("clients need none: AUTH_FILE is not set");
    };
    let logins = Logins::open(path, Arc::new(SystemClock));
    let logins = logins.map_err(|why| format!("AUTH_FILE={why}"))?;
    ok(format!("{} users in {}", logins.count(), path.display()))
}

/// Finds out whose the credentials are.
pub(super) fn find_identity(tokens: &Tokens, credentials: &FoundCredentials) -> StepResult {
    let until = match credentials.expires {
        Some(end) => format!("until {}", format_rfc3339(end)),
        None => "without an end".to_owned(),
    };
    let whose = format!("{}, credentials {until}", credentials.source);
    match tokens.find_identity() {
        Ok(identity) => ok(format!("{} via {whose}", identity.arn)),
        Err(fault) if fault.refused => Err(fault.text),
        // Pulls do not need STS once there are credentials.
        Err(fault) => skipped(format!("not told, {whose}: {}", fault.text)),
    }
}

/// Fetches a token; the outcome says when it ends.
pub(super) fn fetch_token(
    tokens: &Tokens,
    registry: Option<&Registry>,
) -> Result<(StepOutcome, FoundToken), String> {
    let token = tokens.find_token(registry)?;
    let detail = format!("of {}, until {}", token.region, show_end(token.expires));
    Ok((StepOutcome::Ok(detail), token))
}

/// Compares the clocks, after AWS has answered.
pub(super) fn compare_clocks(tokens: &Tokens) -> StepResult {
    let behind = tokens.clock_behind_s();
    let off = behind.unsigned_abs();
    if off <= CLOCK_OFF_S {
        return ok(format!("{off} s off AWS's, as far as AWS has answered"));
    }
    let way = if behind > 0 { "behind" } else { "ahead of" };
    Err(format!(
        "this machine's clock is {off} s {way} AWS's: signatures are corrected, but certificates \
         are judged by it; set it (timedatectl set-ntp true, chronyc makestep)"
    ))
}

/// A registry, and how it is asked.
pub(super) struct Target {
    pub(super) client: Arc<Client>,
    pub(super) auth: UpstreamAuth,
    pub(super) registry: Registry,
    /// The value of `Authorization`.
    pub(super) token: Option<Secret<String>>,
}

impl Target {
    /// What follows from the settings alone for the way out.
    pub(super) fn try_outbound_proxy(&self, limit: Duration) -> StepResult {
        let url = self.registry.url();
        let Some((host, port, shown)) = self.client.outbound_proxy_address(&url) else {
            return skipped(format!("none leads to {url}"));
        };
        let found = self.client.addresses(&host, Instant::now() + limit);
        let connected = found
            .map_err(|fault| fault.to_string())
            .and_then(|found| connect_to_any(&found, port, limit));
        match connected {
            Ok(()) => ok(format!("{shown} leads to {url}")),
            Err(why) => Err(format!(
                "{shown} is to lead to {url}, and is out of reach: {why}; mend it, or set NO_PROXY"
            )),
        }
    }

    pub(super) fn look_up(&self, limit: Duration) -> StepResult {
        let host = self.registry.host();
        if let Some(proxy) = self.client.outbound_proxy(&self.registry.url()) {
            return skipped(format!("{host} is looked up by {proxy}"));
        }
        let found = self.client.addresses(host, Instant::now() + limit);
        let found = found.map_err(|fault| {
            format!("{fault}; check the name in ECR, and RESOLVER or /etc/resolv.conf")
        })?;
        let shown = found.iter().take(ADDRESSES_SHOWN);
        let shown: Vec<String> = shown.map(ToString::to_string).collect();
        ok(format!("{host} is {}", shown.join(", ")))
    }

    /// Sends `GET /v2/`, with which every client begins (distribution-spec, end-1).
    pub(super) fn ask_registry(&self, limit: Duration) -> StepResult {
        let url = format!("{}/v2/", self.registry.url());
        let mut headers = Headers::new();
        if let Some(token) = &self.token {
            headers.set("Authorization", token.expose());
        }
        let asked = Instant::now();
        let outgoing = Outgoing {
            method: "GET",
            url: &url,
            headers: &headers,
            head_deadline: asked + limit,
            whole: true,
            addresses: AddressRule::Any,
        };
        let reply = self.client.send(outgoing).map_err(|fault| {
            format!("GET {url}: {fault}; check network, firewall, HTTPS_PROXY and AWS_CA_BUNDLE")
        })?;
        let (status, took) = (reply.status, asked.elapsed().as_millis());
        let seen = format!("GET {url} {status} in {took} ms");
        let remedy = match (status, &self.token, self.auth) {
            (200, ..) if !is_registry(&reply) => {
                "it is a web site and no registry: a private registry is \
                 ACCOUNT.dkr.ecr.REGION.amazonaws.com, ECR Public is public.ecr.aws; check ECR"
            }
            (200, ..) => return ok(seen),
            (401, None, UpstreamAuth::Ecr) => {
                return ok(format!("{seen}: within reach, asked without a token"));
            }
            (401, _, UpstreamAuth::None) => {
                "it asks for a login, and UPSTREAM_AUTH is none: set UPSTREAM_AUTH=ecr for ECR \
                 itself"
            }
            (400 | 401 | 403, ..) => {
                "it refuses the token: check that the registry is in the token's region and \
                 partition, and its policy"
            }
            (429, ..) => "it throttles: try again later",
            (500.., ..) => "it fails: try again later",
            _ => "is it a registry? check ECR",
        };
        Err(format!(
            "{seen}{}; {remedy}",
            quote(reply, self.token.as_ref())
        ))
    }
}

/// Connects to the first of a few addresses that takes it.
fn connect_to_any(addresses: &[IpAddr], port: u16, limit: Duration) -> Result<(), String> {
    let mut why = "no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&(*address, port).into(), limit / ATTEMPTS) {
            Ok(_) => return Ok(()),
            Err(error) => why = format!("{address}:{port}: {error}"),
        }
    }
    Err(why)
}

/// True for an answer that says that it is a registry's (distribution-spec, "Determining Support"),
/// or at least is no page for people.
fn is_registry(reply: &Incoming) -> bool {
    let media_type = reply.headers.first("Content-Type").unwrap_or_default();
    let version = reply.headers.first("Docker-Distribution-Api-Version");
    version.is_some() || media_type.trim_start().starts_with("application/json")
}

/// The text of a refusal, without our token; empty when it has none or is HTML.
fn quote(mut reply: Incoming, token: Option<&Secret<String>>) -> String {
    if let Some(token) = token {
        Arc::new(Secrets::new(token.clone())).remove_from(&mut reply);
    }
    let mut said = Vec::new();
    let _ = reply.body.take(QUOTED_BYTES_MAX).read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said);
    let said = said.trim();
    if said.is_empty() || said.starts_with('<') {
        return String::new();
    }
    format!(": {said}")
}

/// Tenths of a gibibyte.
fn gib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_gibibytes() {
        for (bytes, text) in [
            (0, "0.0 GiB"),
            (75 << 30, "75.0 GiB"),
            ((1 << 30) * 3 / 2, "1.5 GiB"),
            (u64::MAX, "1717986918.3 GiB"),
        ] {
            assert_eq!(gib(bytes), text);
        }
    }
}
