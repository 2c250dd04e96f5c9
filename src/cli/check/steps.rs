//! The steps of `check`. Owns: one try each, and what its outcome means. Must not: print, or know
//! how long it may take as a whole.

use std::io::Read as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::outcome::StepOutcome;
use crate::app;
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
/// Addresses shown of a name.
const ADDRESSES_SHOWN: usize = 4;

pub(super) fn probe_cache(settings: &Settings) -> StepOutcome {
    let Some(directory) = app::cache_directory(settings) else {
        return StepOutcome::Skipped("off: set CACHE_DIR for a cache".into());
    };
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
            StepOutcome::Ok(format!("{}, good until {until}", certificate.display()))
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
    let mut detail = format!("of {}, until {until}", token.region);
    let off = token.clock_behind_s.unsigned_abs();
    if off > CLOCK_OFF_S {
        let way = if token.clock_behind_s > 0 {
            "behind"
        } else {
            "ahead of"
        };
        let note = format!("; this machine's clock is {off} s {way} AWS's, which is corrected");
        detail.push_str(&note);
    }
    (StepOutcome::Ok(detail), Some(token))
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
