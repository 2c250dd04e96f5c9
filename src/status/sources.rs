//! The parts that know what the status and the metrics show. Owns: the list of these parts, whether
//! pulls can be answered, and the text about that in `/readyz` and on the status page. Must not:
//! ask upstream or AWS, or wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use crate::aws::token::{TokenStatus, Tokens};
use crate::cache::Cache;
use crate::calendar::format_rfc3339;
use crate::config::Globs;
use crate::oci::Registry;
use crate::upstream::Authorizer as _;
use crate::upstream::exchange::Upstream;

/// The parts that the status comes from.
pub struct Sources {
    /// `ECR`; empty: the identity's own registry.
    pub registries: Vec<Registry>,
    /// `OFFLINE`
    pub offline: bool,
    /// None with `UPSTREAM_AUTH=none` and with `OFFLINE`.
    pub tokens: Option<Arc<Tokens>>,
    /// Circuits, and the last failures.
    pub upstream: Arc<Upstream>,
    /// None when it is off.
    pub cache: Option<Arc<Cache>>,
    /// The repositories that clients may use; others are not listed.
    pub allowed: Globs,
    /// True once the process ends.
    pub draining: Arc<AtomicBool>,
    /// When the process started, by both clocks.
    pub started: (Instant, SystemTime),
    /// `WORKERS`
    pub workers: usize,
    /// Connections of clients at the most.
    pub connections_max: usize,
}

impl Sources {
    /// True while pulls can be answered, as `/readyz` has it.
    pub(super) fn is_ready(&self) -> bool {
        self.readiness().is_ok() && !self.draining.load(Ordering::SeqCst)
    }

    /// True when something was kept in the cache.
    pub(super) fn has_content(&self) -> bool {
        self.cache.as_ref().is_some_and(|it| it.has_content())
    }

    /// What pulls are answered from, as `/readyz` says it.
    ///
    /// # Errors
    /// Why they cannot be answered.
    pub fn readiness(&self) -> Result<String, String> {
        let has_content = self.has_content();
        if self.offline {
            return match has_content {
                true => Ok("offline (OFFLINE=true): serving the cache alone".to_owned()),
                false => Err("offline (OFFLINE=true), and the cache is empty".to_owned()),
            };
        }
        let Some(tokens) = &self.tokens else {
            let registries = list_registries(&self.registries);
            return Ok(format!(
                "the upstream needs no token; registries: {registries}"
            ));
        };
        let status = tokens.status();
        if status.has_token {
            return Ok(self.describe_token(tokens, status));
        }
        let why = status.last_error;
        let why = why.unwrap_or_else(|| "waiting for the first token".to_owned());
        match has_content {
            true => Ok(format!("cache only, without a token: {why}")),
            false => Err(why),
        }
    }

    fn describe_token(&self, tokens: &Tokens, status: TokenStatus) -> String {
        let or = |text: Option<String>, other: &str| text.unwrap_or_else(|| other.to_owned());
        let who = or(status.arn, "an identity not yet named");
        let source = or(status.source, "an unknown source");
        let until = or(status.expires.map(format_rfc3339), "unknown");
        // Without a setting it is the one that the token named; nothing is waited for.
        let named = tokens.default_registry(Instant::now()).ok();
        let registries = match (self.registries.as_slice(), named) {
            ([], Some(named)) => named.url(),
            (set, _) => list_registries(set),
        };
        let not_renewed = status.last_error.map(|why| format!("; not renewed: {why}"));
        let not_renewed = not_renewed.unwrap_or_default();
        format!("token of {who} via {source} until {until}; registries: {registries}{not_renewed}")
    }

    /// The state, and why: `ready` for pulls and pushes, `cache_only`, or `not_ready`. `registry`:
    /// the default one; none before it is known.
    pub(super) fn verdict(&self, registry: Option<&Registry>) -> (&'static str, String) {
        let has_content = self.has_content();
        if self.draining.load(Ordering::SeqCst) {
            return ("not_ready", "Not ready: shutting down.".to_owned());
        }
        if self.offline && has_content {
            return ("cache_only", "Offline: serving the cache alone.".to_owned());
        }
        match (self.find_trouble(registry), has_content) {
            (Some(why), true) => {
                let sentence = format!("Serving from the cache alone: {why}.");
                ("cache_only", sentence)
            }
            (Some(why), false) => ("not_ready", format!("Not ready: {why}.")),
            (None, _) => {
                let registry = registry.map(Registry::to_string);
                let registry = registry.unwrap_or_else(|| "the registry of the identity".into());
                let sentence = format!("Ready: pulls and pushes go to {registry}.");
                ("ready", sentence)
            }
        }
    }

    /// Why upstream cannot be asked.
    fn find_trouble(&self, registry: Option<&Registry>) -> Option<String> {
        if self.offline {
            return Some("offline, and the cache is empty".to_owned());
        }
        let token = self.tokens.as_ref().map(|tokens| tokens.status());
        if let Some(token) = token.filter(|token| !token.has_token) {
            let why = token.last_error.as_deref();
            let why = why.unwrap_or("waiting for the first one");
            return Some(format!("no ECR token ({why})"));
        }
        let state = self.upstream.state(registry?);
        let why = state.last_error.map(|(_, why)| why);
        let why = why.unwrap_or_else(|| "no answer".to_owned());
        state
            .is_out_of_reach
            .then(|| format!("the registry is out of reach ({why})"))
    }
}

/// The registries of the settings, the default one first.
pub fn list_registries(registries: &[Registry]) -> String {
    if registries.is_empty() {
        return "that of the identity".to_owned();
    }
    let urls: Vec<String> = registries.iter().map(Registry::url).collect();
    urls.join(",")
}
