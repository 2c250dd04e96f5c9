//! The endpoints from which AWS's own machines get credentials: one server, instance metadata
//! below `/latest/`, container credentials elsewhere. Owns: what both hand out. Must not: touch a
//! socket.

use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::core::{Core, lock};
use crate::http::{Head, Reply};
use crate::{Match, Options, Server, Standin, container, imds, sigv4};

/// What the metadata endpoints hand out. The credentials are those that the APIs know.
#[derive(Debug, Clone)]
pub struct Metadata {
    /// The instance's role; without one the list of roles is 404.
    pub role: Option<String>,
    /// The instance's region.
    pub region: String,
    /// `Code` and `Message` beside the instance's credentials; with another code than `Success`
    /// there are none. Without both there are credentials and no `Code`.
    pub code: Option<(String, String)>,
    /// Seconds until the credentials expire; may lie in the past.
    pub credentials_life: i64,
    /// Session tokens say how long they last.
    pub ttl_field: bool,
    /// Longest life of a session token in seconds, whatever is asked for.
    pub session_life_max: u64,
    /// The `Authorization` that the container endpoint demands.
    pub container_token: Option<String>,
    /// Where the container's credentials are.
    pub container_path: String,
}

/// The state behind it.
pub(crate) struct State {
    pub(crate) now: Metadata,
    /// Session tokens given out, and when they end.
    sessions: Vec<(String, Instant)>,
    /// Each container token there was.
    container_tokens: Vec<String>,
}

impl State {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            now: Metadata {
                role: Some("stand-in-role".into()),
                region: options.region.clone(),
                code: Some(("Success".into(), String::new())),
                credentials_life: 6 * 3600,
                ttl_field: true,
                session_life_max: 21_600,
                container_token: Some("stand-in-container-token".into()),
                container_path: "/v1/credentials".into(),
            },
            sessions: Vec::new(),
            container_tokens: Vec::new(),
        }
    }

    /// A session token that lasts so many seconds.
    pub(crate) fn open_session(&mut self, seconds: u64) -> String {
        let token = format!("stand-in-session-{}==", self.sessions.len() + 1);
        let end = Instant::now() + Duration::from_secs(seconds);
        self.sessions.push((token.clone(), end));
        token
    }

    pub(crate) fn knows_session(&self, token: &str) -> bool {
        let now = Instant::now();
        let mut sessions = self.sessions.iter();
        sessions.any(|(known, end)| known == token && now < *end)
    }
}

pub(crate) fn answer(core: &Core, head: &Head) -> Reply {
    // Absolute, or with a trace: it came through a proxy, which nobody may trust with these.
    if !head.target.starts_with('/') || head.first("x-forwarded-for").is_some() {
        return Reply::empty(403);
    }
    if head.path().starts_with("/latest/") {
        imds::answer(core, head)
    } else {
        container::answer(core, head)
    }
}

/// The credentials that the APIs know, as both endpoints write them.
pub(crate) fn credentials(core: &Core) -> Value {
    let options = &core.options;
    let life = lock(&core.metadata).now.credentials_life;
    let by = Duration::from_secs(life.unsigned_abs());
    let now = core.now(Server::Metadata);
    let expiration = if life < 0 { now - by } else { now + by };
    json!({
        "AccessKeyId": options.access_key_id,
        "SecretAccessKey": options.secret_access_key,
        "Token": options.session_token,
        "Expiration": extended(expiration),
    })
}

/// `2026-11-22T00:47:58Z`
fn extended(at: SystemTime) -> String {
    let basic = sigv4::time(at);
    let part = |from: usize, to: usize| &basic[from..to];
    format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4),
        part(4, 6),
        part(6, 8),
        part(9, 11),
        part(11, 13),
        part(13, 15)
    )
}

impl Match {
    /// Requests to the metadata endpoints.
    pub fn metadata() -> Self {
        Self::to(Server::Metadata)
    }
}

impl Standin {
    /// `http://127.0.0.1:PORT` of the metadata endpoints.
    pub fn metadata_url(&self) -> String {
        format!("http://{}", self.core.authority(Server::Metadata))
    }

    /// Changes what the metadata endpoints hand out from now on.
    pub fn set_metadata(&self, change: impl FnOnce(&mut Metadata)) {
        let mut state = lock(&self.core.metadata);
        let old = state.now.container_token.clone();
        state.container_tokens.extend(old);
        change(&mut state.now);
    }

    /// From now on the instance metadata refuses the session tokens given out so far (401).
    pub fn end_metadata_sessions(&self) {
        let now = Instant::now();
        let mut state = lock(&self.core.metadata);
        state.sessions.iter_mut().for_each(|(_, end)| *end = now);
    }

    /// Session tokens and container tokens so far.
    pub(crate) fn metadata_secrets(&self) -> Vec<String> {
        let state = lock(&self.core.metadata);
        let sessions = state.sessions.iter().map(|(token, _)| token.clone());
        let mut secrets: Vec<String> = sessions.collect();
        secrets.extend(state.container_tokens.iter().cloned());
        secrets.extend(state.now.container_token.clone());
        secrets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_aws_does() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        assert_eq!(extended(at), "2015-08-30T12:36:00Z");
    }
}
