//! What is known of a registry's token, for people and for metrics. Owns: that view. Must not: show
//! the token, or ask anybody.

use std::time::{Duration, Instant, SystemTime};

use super::super::ecr;
use super::tokens::Tokens;
use crate::oci::Registry;

/// The token of a registry, as it is known now. Times are by this machine's clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenReport {
    /// The region that it is good in.
    pub region: Option<String>,
    /// When it ends; none without a token.
    pub expires: Option<SystemTime>,
    /// How long it was good for when it came.
    pub life: Option<Duration>,
    /// When the next one is fetched; none while one is being fetched.
    pub renews: Option<SystemTime>,
    /// Why the last attempt failed; none after a success.
    pub last_error: Option<String>,
}

impl Tokens {
    /// The token that `registry` gets.
    pub fn report(&self, registry: &Registry) -> TokenReport {
        let (now, wall) = (self.clock.monotonic(), self.clock.now());
        let shared = self.lock();
        let realm = ecr::realm_of(registry, &self.config.aws);
        let realm = realm.or_else(|_| self.default_realm(&shared));
        // None where nobody has asked for anything yet.
        let state = realm.as_ref().ok();
        let state = state.and_then(|realm| shared.regions.get(realm));
        let token = state.and_then(|state| state.usable(now));
        let wall_at = |at: Instant| wall.checked_add(at.saturating_duration_since(now));
        TokenReport {
            region: realm.as_ref().ok().map(ToString::to_string),
            expires: token.and_then(|token| wall_at(token.good_until)),
            life: token.map(|token| token.life),
            renews: state.and_then(|state| state.attempts.next().and_then(wall_at)),
            last_error: match state {
                Some(state) => state.attempts.fault().cloned(),
                None => realm.err(),
            },
        }
    }
}
