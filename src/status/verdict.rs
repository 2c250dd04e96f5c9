//! The traffic light. Owns: which state the proxy is in, and the one sentence that says so. Must
//! not: look anything up.

use crate::label::label;

label! {
    /// What the proxy can do now.
    pub(super) enum ProxyState {
        /// Pulls and pushes.
        Ready = "ready",
        /// Pulls of what is in the cache.
        CacheOnly = "cache_only",
        /// Nothing.
        NotReady = "not_ready",
    }
}

/// What the state depends on.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) draining: bool,
    /// `OFFLINE`
    pub(super) offline: bool,
    /// Why there is no token; none when there is one, or when none is needed.
    pub(super) no_token: Option<String>,
    /// The default registry; none before it is known.
    pub(super) registry: Option<String>,
    /// The default registry was out of reach lately.
    pub(super) unreachable: bool,
    /// Its last failure.
    pub(super) last_error: Option<String>,
    /// Something was kept in the cache.
    pub(super) has_content: bool,
}

/// The state, and why.
pub(super) fn judge(facts: &Facts) -> (ProxyState, String) {
    let why = match facts {
        Facts { draining: true, .. } => {
            return (ProxyState::NotReady, "Not ready: shutting down.".to_owned());
        }
        Facts {
            offline: true,
            has_content: true,
            ..
        } => {
            let sentence = "Offline: serving the cache alone.";
            return (ProxyState::CacheOnly, sentence.to_owned());
        }
        Facts { offline: true, .. } => "offline, and the cache is empty".to_owned(),
        Facts {
            no_token: Some(why),
            ..
        } => format!("no ECR token ({why})"),
        Facts {
            unreachable: true,
            last_error,
            ..
        } => {
            let why = last_error.as_deref().unwrap_or("no answer");
            format!("the registry is out of reach ({why})")
        }
        Facts { registry, .. } => {
            let registry = registry.as_deref();
            let registry = registry.unwrap_or("the registry of the identity");
            let sentence = format!("Ready: pulls and pushes go to {registry}.");
            return (ProxyState::Ready, sentence);
        }
    };
    match facts.has_content {
        true => (
            ProxyState::CacheOnly,
            format!("Serving from the cache alone: {why}."),
        ),
        false => (ProxyState::NotReady, format!("Not ready: {why}.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_follows_from_token_registry_and_cache() {
        let ready = Facts {
            registry: Some("r.example".into()),
            ..Facts::default()
        };
        let (state, sentence) = judge(&ready);
        assert_eq!(
            (state, sentence.as_str()),
            (
                ProxyState::Ready,
                "Ready: pulls and pushes go to r.example."
            )
        );
        let cut_off = Facts {
            unreachable: true,
            last_error: Some("connect failed".into()),
            ..ready.clone()
        };
        assert_eq!(judge(&cut_off).0, ProxyState::NotReady);
        let (state, sentence) = judge(&Facts {
            has_content: true,
            ..cut_off
        });
        assert_eq!(state, ProxyState::CacheOnly);
        assert!(
            sentence.ends_with("out of reach (connect failed)."),
            "{sentence}"
        );
        let tokenless = Facts {
            no_token: Some("expired".into()),
            ..ready.clone()
        };
        assert_eq!(judge(&tokenless).1, "Not ready: no ECR token (expired).");
        let (state, _) = judge(&Facts {
            has_content: true,
            ..tokenless
        });
        assert_eq!(state, ProxyState::CacheOnly);
        let offline = |has_content| {
            let (offline, no_token) = (true, Some("none".into()));
            judge(&Facts {
                offline,
                no_token,
                has_content,
                ..Facts::default()
            })
        };
        let (state, sentence) = offline(true);
        assert_eq!(state, ProxyState::CacheOnly);
        assert_eq!(sentence, "Offline: serving the cache alone.");
        assert_eq!(offline(false).0, ProxyState::NotReady);
        let (state, sentence) = judge(&Facts {
            draining: true,
            ..ready
        });
        assert_eq!(
            (state, sentence.as_str()),
            (ProxyState::NotReady, "Not ready: shutting down.")
        );
    }
}
