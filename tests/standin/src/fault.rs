//! The fault script. Owns: which request is answered wrongly, and how. Must not: touch a socket.

use std::time::Duration;

use crate::Server;

/// Picks requests: the next one that fits, once, unless said otherwise.
#[derive(Debug, Clone)]
pub struct Match {
    server: Option<Server>,
    method: Option<String>,
    target: Option<String>,
    skip: u64,
    times: Option<u64>,
}

impl Match {
    /// Requests to any of the servers.
    pub const fn any() -> Self {
        Self {
            server: None,
            method: None,
            target: None,
            skip: 0,
            times: Some(1),
        }
    }

    /// Requests to the registry.
    pub fn registry() -> Self {
        Self::to(Server::Registry)
    }

    /// Requests to the blob host.
    pub fn s3() -> Self {
        Self::to(Server::S3)
    }

    /// Requests to the AWS APIs (ECR and STS).
    pub fn api() -> Self {
        Self::to(Server::Api)
    }

    pub(crate) fn to(server: Server) -> Self {
        Self {
            server: Some(server),
            ..Self::any()
        }
    }

    /// Only this method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Only targets (for the APIs: `X-Amz-Target`, or the form) that contain `text`.
    #[must_use]
    pub fn path(mut self, text: &str) -> Self {
        self.target = Some(text.to_owned());
        self
    }

    /// Starts with the `nth` matching request, counted from 1.
    #[must_use]
    pub fn nth(mut self, nth: u64) -> Self {
        self.skip = nth.saturating_sub(1);
        self
    }

    /// So many requests; 1 unless said otherwise.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Every request from the first matching one on.
    #[must_use]
    pub fn always(mut self) -> Self {
        self.times = None;
        self
    }

    fn fits(&self, server: Server, method: &str, target: &str) -> bool {
        self.server.is_none_or(|wanted| wanted == server)
            && self.method.as_ref().is_none_or(|wanted| wanted == method)
            && self
                .target
                .as_ref()
                .is_none_or(|wanted| target.contains(wanted.as_str()))
    }
}

/// What happens to a matched request. Those that speak of a body leave the right answer otherwise
/// as it is.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Another answer, after the request's body was read. The body's length is sent.
    Status(u16, Vec<(String, String)>, Vec<u8>),
    /// ECR's 401, with its challenge.
    Unauthorized401,
    /// ECR's 403 for an expired token, without a challenge.
    ExpiredToken403,
    /// ECR Public's 400 for an expired token.
    PublicExpired400,
    /// 429, with `Retry-After` in seconds.
    TooMany429 {
        /// Seconds; no field without.
        retry_after: Option<u64>,
    },
    /// Closes the connection after so many bytes of the body.
    CutAfter(u64),
    /// Resets the connection after so many bytes of the body (the last of them may get lost).
    ResetAfter(u64),
    /// The last byte of the body is another one.
    WrongBytes,
    /// `Content-Length` is so much too high or too low; the connection is closed after the body.
    WrongLength(i64),
    /// The body comes chunked, without `Content-Length`; with `cut_after` it ends there, without
    /// its last chunk.
    Chunked {
        /// Bytes before the connection is closed.
        cut_after: Option<u64>,
    },
    /// Stops after the head and so many bytes of the body, and goes on when released.
    StallAfter(u64),
    /// Answers when released, with what was true when it was asked.
    Late,
    /// Sends so many bytes of the body at a time.
    Drip {
        /// Bytes a piece.
        bytes: usize,
        /// Pause after each piece.
        every: Duration,
    },
    /// At the blob host: 403, the presigned URL has expired. At the registry: a 307 to such a URL.
    PresignExpired,
    /// 307 to the same URL, again.
    RedirectLoop,
    /// 307 to that URL.
    RedirectTo(String),
    /// Closes the connection as soon as the request's head is there.
    CloseBeforeHead,
    /// Never answers; closes when released.
    Silent,
    /// Reads so many bytes of the request's body, then no more; closes when released.
    StallUpload(u64),
    /// Answers before reading the request's body, with an error document.
    RefuseEarly {
        /// The status.
        status: u16,
        /// What follows the answer.
        then: Then,
    },
    /// The same after so many bytes of the request's body.
    RefuseMidway {
        /// Bytes read before.
        after: u64,
        /// The status.
        status: u16,
        /// What follows the answer.
        then: Then,
    },
    /// Sends these bytes in place of an answer and closes.
    Raw(Vec<u8>),
}

/// What follows an answer that came before the request's body was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The connection is closed at once: with unread bytes there that is a reset.
    Close,
    /// The rest of the body is read and thrown away, then the connection is closed.
    Drain,
    /// Neither read nor closed, until released.
    Hold,
}

impl Fault {
    /// A status without a body.
    pub const fn status(status: u16) -> Self {
        Self::Status(status, Vec::new(), Vec::new())
    }

    /// A head that is no HTTP.
    pub fn garbage_head() -> Self {
        Self::Raw(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n".to_vec())
    }

    /// An error document of the registry API.
    pub fn registry_error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({"errors": [{"code": code, "message": message}]});
        let json = vec![("Content-Type".into(), "application/json".into())];
        Self::Status(status, json, body.to_string().into_bytes())
    }

    /// An error document of STS (XML).
    pub fn sts_error(status: u16, code: &str, message: &str) -> Self {
        let body = crate::sts::error_document(code, message);
        let xml = vec![("Content-Type".into(), "text/xml".into())];
        Self::Status(status, xml, body)
    }

    /// An error document of the ECR API (`x-amz-json-1.1`).
    pub fn aws_error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({"__type": code, "message": message});
        let json = vec![("Content-Type".into(), "application/x-amz-json-1.1".into())];
        Self::Status(status, json, body.to_string().into_bytes())
    }
}

/// The rules, in the order they were given; the first that fits takes the request.
#[derive(Debug, Default)]
pub(crate) struct Script(Vec<(Match, Fault)>);

impl Script {
    pub(crate) fn add(&mut self, pick: Match, fault: Fault) {
        self.0.push((pick, fault));
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Rules that still wait for a request; those that match for ever are not counted.
    pub(crate) fn pending(&self) -> usize {
        let waits = |(pick, _): &&(Match, Fault)| pick.times.is_some_and(|times| times > 0);
        self.0.iter().filter(waits).count()
    }

    pub(crate) fn take(&mut self, server: Server, method: &str, target: &str) -> Option<Fault> {
        for (pick, fault) in &mut self.0 {
            if pick.times == Some(0) || !pick.fits(server, method, target) {
                continue;
            }
            if pick.skip > 0 {
                pick.skip -= 1;
                continue;
            }
            pick.times = pick.times.map(|times| times - 1);
            return Some(fault.clone());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_fit_skip_and_run_out() {
        let mut script = Script::default();
        let pick = Match::registry().method("GET").path("/blobs/");
        script.add(pick.nth(2).times(2), Fault::WrongBytes);
        let mut take = |server, method, target| script.take(server, method, target).is_some();
        assert!(!take(Server::S3, "GET", "/v2/a/blobs/x"));
        assert!(!take(Server::Registry, "HEAD", "/v2/a/blobs/x"));
        assert!(!take(Server::Registry, "GET", "/v2/a/manifests/x"));
        let blob = (Server::Registry, "GET", "/v2/a/blobs/x");
        let taken: Vec<bool> = (0..4).map(|_| take(blob.0, blob.1, blob.2)).collect();
        assert_eq!(taken, [false, true, true, false]);
        assert_eq!(script.pending(), 0);
    }
}
