//! What `/readyz` says. Owns: its words. Must not: wait for anything.

use std::sync::Arc;
use std::time::Instant;

use crate::aws::token::Tokens;
use crate::cache::Cache;
use crate::calendar;
use crate::oci::Registry;
use crate::pages::Readiness;
use crate::upstream::Authorizer as _;

/// The default one first.
pub(super) fn list_registries(registries: &[Registry]) -> String {
    if registries.is_empty() {
        return "that of the identity".to_owned();
    }
    let urls: Vec<String> = registries.iter().map(Registry::url).collect();
    urls.join(",")
}

/// With `OFFLINE`: pulls can be answered when there is something in the cache.
pub(super) fn offline(cache: Arc<Cache>) -> Box<Readiness> {
    Box::new(move || match cache.has_content() {
        true => Ok("offline (OFFLINE=true): serving the cache alone".to_owned()),
        false => Err("offline (OFFLINE=true), and the cache is empty".to_owned()),
    })
}

/// Pulls can be answered when there is a token, or something in the cache.
pub(super) fn of_token(
    tokens: Option<Arc<Tokens>>,
    cache: Option<Arc<Cache>>,
    registries: Vec<Registry>,
) -> Box<Readiness> {
    let Some(tokens) = tokens else {
        let registries = list_registries(&registries);
        let text = format!("the upstream needs no token; registries: {registries}");
        return Box::new(move || Ok(text.clone()));
    };
    Box::new(move || {
        let status = tokens.status();
        if status.has_token {
            let who = status
                .arn
                .unwrap_or_else(|| "an identity not yet named".to_owned());
            let until = status
                .expires
                .map_or_else(|| "unknown".to_owned(), calendar::format_rfc3339);
            let source = status
                .source
                .unwrap_or_else(|| "an unknown source".to_owned());
            // Without a setting it is the one that the token named; nothing is waited for.
            let named = tokens.default_registry(Instant::now()).ok();
            let registries = match (registries.as_slice(), named) {
                ([], Some(named)) => named.url(),
                _ => list_registries(&registries),
            };
            let mut line =
                format!("token of {who} via {source} until {until}; registries: {registries}");
            if let Some(why) = status.last_error {
                line.push_str(&format!("; not renewed: {why}"));
            }
            return Ok(line);
        }
        let why = status
            .last_error
            .unwrap_or_else(|| "waiting for the first token".to_owned());
        match &cache {
            Some(cache) if cache.has_content() => Ok(format!("cache only, without a token: {why}")),
            _ => Err(why),
        }
    })
}
