//! The traffic light. Owns: which state the proxy is in, and the one sentence that says so. Must
//! not: look anything up.

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
    /// Why the default registry was out of reach lately.
    pub(super) unreachable: Option<String>,
    /// Something was kept in the cache.
    pub(super) has_content: bool,
}

/// The state, and why: `ready` for pulls and pushes, `cache_only`, or `not_ready`.
pub(super) fn judge(facts: &Facts) -> (&'static str, String) {
    let why = if facts.draining {
        return ("not_ready", "Not ready: shutting down.".to_owned());
    } else if facts.offline && facts.has_content {
        return ("cache_only", "Offline: serving the cache alone.".to_owned());
    } else if facts.offline {
        "offline, and the cache is empty".to_owned()
    } else if let Some(why) = &facts.no_token {
        format!("no ECR token ({why})")
    } else if let Some(why) = &facts.unreachable {
        format!("the registry is out of reach ({why})")
    } else {
        let registry = facts.registry.as_deref();
        let registry = registry.unwrap_or("the registry of the identity");
        return (
            "ready",
            format!("Ready: pulls and pushes go to {registry}."),
        );
    };
    match facts.has_content {
        true => (
            "cache_only",
            format!("Serving from the cache alone: {why}."),
        ),
        false => ("not_ready", format!("Not ready: {why}.")),
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
            ("ready", "Ready: pulls and pushes go to r.example.")
        );
        let cut_off = Facts {
            unreachable: Some("connect failed".into()),
            ..ready.clone()
        };
        assert_eq!(judge(&cut_off).0, "not_ready");
        let (state, sentence) = judge(&Facts {
            has_content: true,
            ..cut_off
        });
        assert_eq!(state, "cache_only");
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
        assert_eq!(state, "cache_only");
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
        assert_eq!(state, "cache_only");
        assert_eq!(sentence, "Offline: serving the cache alone.");
        assert_eq!(offline(false).0, "not_ready");
        let (state, sentence) = judge(&Facts {
            draining: true,
            ..ready
        });
        assert_eq!(
            (state, sentence.as_str()),
            ("not_ready", "Not ready: shutting down.")
        );
    }
}
