//! The steps of `check`. Owns: one try each, and what its outcome means. Must not: print, or know
//! how long it may take as a whole.

use std::io::Read as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::outcome::StepOutcome;
use crate::app::{self, listen};
use crate::aws::token::{FoundCredentials, FoundToken, Tokens};
use crate::cache::probe;
use crate::calendar;
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

pub(super) fn probe_cache(settings: &Settings) -> StepOutcome {
    let Some(directory) = app::cache_directory(settings) else {
        return StepOutcome::Skipped("off: set CACHE_DIR for a cache".into());
    };
    if settings.offline {
        return match probe::look(&directory) {
            Ok(found) => {
                let (root, used) = (found.root.display(), gib(found.used_bytes));
                StepOutcome::Ok(format!("{root} can be read, {used} in it"))
            }
            Err(error) => StepOutcome::Failed(error.to_string()),
        };
    }
    match probe::probe(&directory) {
        Ok(found) => {
            let state = if found.is_there {
                "can be written"
            } else {
                "can be made"
            };
            StepOutcome::Ok(format!(
                "{} {state}, {} free, quota {}",
                found.root.display(),
                gib(found.free_bytes),
                gib(settings.cache_max_size)
            ))
        }
        Err(error) => StepOutcome::Failed(error.to_string()),
    }
}

/// Compares the quota with what the disk can hold.
pub(super) fn judge_quota(settings: &Settings) -> StepOutcome {
    if settings.offline {
        return StepOutcome::Skipped("OFFLINE=true: nothing is added".into());
    }
    let found = app::cache_directory(settings).map(|directory| probe::probe(&directory));
    let Some(Ok(found)) = found else {
        return StepOutcome::Skipped("there is no cache to judge".into());
    };
    let (room, quota) = (
        found.free_bytes.saturating_add(found.used_bytes),
        settings.cache_max_size,
    );
    let (shown, all) = (gib(quota), gib(room));
    if room >= quota {
        return StepOutcome::Ok(format!("{shown}, and the disk has room for {all}"));
    }
    StepOutcome::Noted(format!(
        "{shown}, and the disk has room for {all}: it is full before the quota is; set \
         CACHE_MAX_SIZE below {all}"
    ))
}

pub(super) fn try_port(settings: &Settings) -> StepOutcome {
    match listen::try_out(settings) {
        Ok(seen) => StepOutcome::Ok(seen),
        Err(why) => StepOutcome::Failed(why),
    }
}

pub(super) fn load_tls(settings: &Settings) -> StepOutcome {
    let set = &settings.tls;
    let (true, Some(certificate), Some(key)) = (set.enabled, &set.certificate, &set.key) else {
        return StepOutcome::Skipped("off: ENABLE_SSL is not true".into());
    };
    let files = TlsFiles {
        certificate: certificate.clone(),
        key: key.clone(),
        client_ca: set.client_ca.clone(),
    };
    match ServerTls::load(files) {
        Ok(tls) => {
            let until = tls.good_until();
            let until = until.map_or_else(|| "unknown".to_owned(), calendar::format_rfc3339);
            if tls.good_until().is_some_and(|end| end <= SystemTime::now()) {
                let name = certificate.display();
                let why = format!("SSL_CERTIFICATE={name} ended {until}: renew it");
                return StepOutcome::Failed(why);
            }
            let names = tls.names().join(", ");
            if names.is_empty() {
                return StepOutcome::Failed(format!(
                    "SSL_CERTIFICATE={}: it has no subjectAltName, and clients look at no other \
                     name; make one with the names of this host",
                    certificate.display()
                ));
            }
            let own = certificate.display();
            StepOutcome::Ok(format!("{own}, for {names}, good until {until}"))
        }
        Err(faults) => StepOutcome::Failed(faults.join("; ")),
    }
}

pub(super) fn load_logins(settings: &Settings) -> StepOutcome {
    let Some(path) = &settings.access.auth_file else {
        return StepOutcome::Skipped("clients need none: AUTH_FILE is not set".into());
    };
    match Logins::open(path, Arc::new(SystemClock)) {
        Ok(logins) => StepOutcome::Ok(format!("{} users in {}", logins.count(), path.display())),
        Err(why) => StepOutcome::Failed(format!("AUTH_FILE={why}")),
    }
}

/// Finds the identity, its source and the end of its credentials. The flag is true when there are
/// credentials at all.
pub(super) fn find_identity(tokens: &Tokens) -> (StepOutcome, bool) {
    let credentials = match tokens.find_credentials() {
        Ok(credentials) => credentials,
        Err(why) => return (StepOutcome::Failed(why), false),
    };
    let whose = describe(&credentials);
    let verdict = match tokens.find_identity() {
        Ok(identity) => StepOutcome::Ok(format!("{} via {whose}", identity.arn)),
        Err(fault) if fault.refused => StepOutcome::Failed(fault.text),
        // Pulls do not need STS once there are credentials.
        Err(fault) => StepOutcome::Skipped(format!("not told, {whose}: {}", fault.text)),
    };
    (verdict, true)
}

fn describe(credentials: &FoundCredentials) -> String {
    let until = credentials.expires.map_or_else(
        || "without an end".to_owned(),
        |end| format!("until {}", calendar::format_rfc3339(end)),
    );
    format!("{}, credentials {until}", credentials.source)
}

/// Fetches a token; the verdict says when it ends and how far our clock is off.
pub(super) fn fetch_token(
    tokens: &Tokens,
    registry: Option<&Registry>,
) -> (StepOutcome, Option<FoundToken>) {
    let token = match tokens.find_token(registry) {
        Ok(token) => token,
        Err(why) => return (StepOutcome::Failed(why), None),
    };
    let until = token
        .expires
        .map_or_else(|| "unknown".to_owned(), calendar::format_rfc3339);
    let detail = format!("of {}, until {until}", token.region);
    (StepOutcome::Ok(detail), Some(token))
}

/// Compares the clocks, after AWS has answered.
pub(super) fn compare_clocks(tokens: &Tokens) -> StepOutcome {
    let behind = tokens.clock_behind_s();
    let off = behind.unsigned_abs();
    if off <= CLOCK_OFF_S {
        return StepOutcome::Ok(format!("{off} s off AWS's, as far as AWS has answered"));
    }
    let way = if behind > 0 { "behind" } else { "ahead of" };
    StepOutcome::Failed(format!(
        "this machine's clock is {off} s {way} AWS's: signatures are corrected, but certificates \
         are judged by it; set it (timedatectl set-ntp true, chronyc makestep)"
    ))
}

/// What follows from the settings alone for the way out.
pub(super) fn try_outbound_proxy(client: &Client, url: &str, limit: Duration) -> StepOutcome {
    let Some((host, port, shown)) = client.outbound_proxy_address(url) else {
        return StepOutcome::Skipped(format!("none leads to {url}"));
    };
    let connected = client
        .addresses(&host, Instant::now() + limit)
        .map_err(|fault| fault.to_string())
        .and_then(|found| {
            let mut tries = found.into_iter().map(|address| {
                TcpStream::connect_timeout(&(address, port).into(), limit / ATTEMPTS)
                    .map_err(|error| format!("{address}:{port}: {error}"))
            });
            let first = tries.next().unwrap_or_else(|| Err("no address".to_owned()));
            first.or_else(|why| tries.find_map(Result::ok).ok_or(why))
        });
    match connected {
        Ok(_) => StepOutcome::Ok(format!("{shown} leads to {url}")),
        Err(why) => StepOutcome::Failed(format!(
            "{shown} is to lead to {url}, and is out of reach: {why}; mend it, or set NO_PROXY"
        )),
    }
}

pub(super) fn look_up(client: &Client, registry: &Registry, limit: Duration) -> StepOutcome {
    let host = registry.host();
    if let Some(proxy) = client.outbound_proxy(&registry.url()) {
        return StepOutcome::Skipped(format!("{host} is looked up by {proxy}"));
    }
    match client.addresses(host, Instant::now() + limit) {
        Ok(found) => {
            let shown = found.iter().take(ADDRESSES_SHOWN);
            let shown: Vec<String> = shown.map(ToString::to_string).collect();
            StepOutcome::Ok(format!("{host} is {}", shown.join(", ")))
        }
        Err(fault) => StepOutcome::Failed(format!(
            "{fault}; check the name in ECR, and RESOLVER or /etc/resolv.conf"
        )),
    }
}

/// Sends `GET /v2/`, with which every client begins (distribution-spec, end-1).
pub(super) fn ask_registry(
    client: &Client,
    registry: &Registry,
    token: Option<&Secret<String>>,
    auth: UpstreamAuth,
    limit: Duration,
) -> StepOutcome {
    let url = format!("{}/v2/", registry.url());
    let mut headers = Headers::new();
    if let Some(token) = token {
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
    let reply = match client.send(outgoing) {
        Ok(reply) => reply,
        Err(fault) => {
            return StepOutcome::Failed(format!(
                "GET {url}: {fault}; check network, firewall, HTTPS_PROXY and AWS_CA_BUNDLE"
            ));
        }
    };
    let (status, took) = (reply.status, asked.elapsed().as_millis());
    let seen = format!("GET {url} {status} in {took} ms");
    let remedy = match (status, token, auth) {
        (200, ..) if !is_registry(&reply) => {
            "it is a web site and no registry: a private registry is \
             ACCOUNT.dkr.ecr.REGION.amazonaws.com, ECR Public is public.ecr.aws; check ECR"
        }
        (200, ..) => return StepOutcome::Ok(seen),
        (401, None, UpstreamAuth::Ecr) => {
            return StepOutcome::Ok(format!("{seen}: within reach, asked without a token"));
        }
        (401, _, UpstreamAuth::None) => {
            "it asks for a login, and UPSTREAM_AUTH is none: set UPSTREAM_AUTH=ecr for ECR itself"
        }
        (400 | 401 | 403, ..) => {
            "it refuses the token: check that the registry is in the token's region and partition, \
             and its policy"
        }
        (429, ..) => "it throttles: try again later",
        (500.., ..) => "it fails: try again later",
        _ => "is it a registry? check ECR",
    };
    StepOutcome::Failed(format!("{seen}{}; {remedy}", quote(reply, token)))
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
        Arc::new(Secrets::new(token)).remove_from(&mut reply);
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
