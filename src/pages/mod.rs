//! The proxy's own pages. Owns: `/healthz`, `/readyz`, `/version`. Must not: ask
//! upstream, or block.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::message::{Certificate, Entrance, Reply, Request};
use crate::oci::{ErrorCode, OciError};

/// Tells whether pulls can be answered: from what (Ok), or why not (Err).
pub type Readiness = dyn Fn() -> Result<String, String> + Send + Sync;

/// Pages for everybody, without certificate or login: a kubelet has neither.
const OPEN: [&str; 3] = ["/healthz", "/readyz", "/version"];

/// The refusal of a request that came without the client certificate it needs (`SSL_CLIENT_CA`).
/// None when it may go on. Pages and registry have the same rule.
pub fn refusal_without_certificate(request: &Request) -> Option<Reply> {
    if request.peer.certificate != Certificate::Absent || OPEN.contains(&request.path()) {
        return None;
    }
    let why = "this needs a client certificate (SSL_CLIENT_CA), and the client showed none";
    Some(Reply::error(&OciError::new(ErrorCode::Denied, why)))
}

/// The pages.
pub struct Pages {
    readiness: Box<Readiness>,
    draining: Arc<AtomicBool>,
    version: String,
}

impl Pages {
    /// `version`: the JSON document of `/version`.
    pub fn new(readiness: Box<Readiness>, draining: Arc<AtomicBool>, version: String) -> Self {
        Self {
            readiness,
            draining,
            version,
        }
    }

    /// Answers a request outside `/v2`.
    pub fn answer(&self, request: &Request) -> Reply {
        let page = match request.path() {
            "/healthz" => Reply::new(200, "text/plain", "ok\n"),
            "/readyz" => self.readiness_page(),
            "/version" => Reply::new(200, "application/json", self.version.as_str()),
            path => {
                let registry = match request.peer.entrance {
                    Entrance::Main => "under /v2/",
                    Entrance::Metrics => "at another address",
                };
                let why = match path {
                    // What catalinpan/aws-ecr-proxy answers.
                    "/ping" => "there is no page /ping; use /healthz".to_owned(),
                    _ => format!("there is no page {path}; the registry is {registry}"),
                };
                return Reply::error(&OciError::new(ErrorCode::NotFound, why));
            }
        };
        if !matches!(request.method.as_str(), "GET" | "HEAD") {
            let why = format!("{} is not allowed here; use GET or HEAD", request.method);
            return Reply::error(&OciError::new(ErrorCode::Unsupported, why))
                .with("Allow", "GET, HEAD");
        }
        // A probe asks about this moment, so nothing on the way may keep the answer.
        page.with("Cache-Control", "no-store")
    }

    fn readiness_page(&self) -> Reply {
        if self.draining.load(Ordering::SeqCst) {
            return Reply::new(503, "text/plain", "not ready: shutting down\n");
        }
        match (self.readiness)() {
            Ok(by) => Reply::new(200, "text/plain", format!("ready: {by}\n")),
            Err(why) => Reply::new(503, "text/plain", format!("not ready: {why}\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Headers, Peer};

    fn request(method: &str, target: &str, certificate: Certificate) -> Request {
        Request {
            method: method.into(),
            target: target.into(),
            headers: Headers::new(),
            peer: Peer {
                address: None,
                port: 0,
                tls: certificate != Certificate::NotAsked,
                certificate,
                entrance: Entrance::Main,
            },
            id: "1".into(),
        }
    }

    fn status(pages: &Pages, method: &str, target: &str) -> u16 {
        let request = request(method, target, Certificate::NotAsked);
        pages.answer(&request).status
    }

    #[test]
    fn without_a_certificate_only_probes_are_open() {
        let refused = |target, certificate| {
            let request = request("GET", target, certificate);
            refusal_without_certificate(&request).map(|reply| reply.status)
        };
        for target in ["/healthz", "/readyz?verbose", "/version"] {
            assert_eq!(refused(target, Certificate::Absent), None, "{target}");
        }
        for target in [
            "/v2/",
            "/v2",
            "/",
            "/metrics",
            "/healthz/",
            "/healthz/../v2/",
            "//version",
            "/Version",
        ] {
            assert_eq!(refused(target, Certificate::Absent), Some(403), "{target}");
            for fine in [Certificate::NotAsked, Certificate::Verified] {
                assert_eq!(refused(target, fine), None, "{target}");
            }
        }
    }

    #[test]
    fn probes() {
        let draining = Arc::new(AtomicBool::new(false));
        let ready = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ready);
        let readiness = move || {
            let ready = seen.load(Ordering::SeqCst);
            if ready {
                Ok("token".to_owned())
            } else {
                Err("no token".to_owned())
            }
        };
        let pages = Pages::new(Box::new(readiness), Arc::clone(&draining), "{}".into());
        assert_eq!(status(&pages, "GET", "/healthz?x"), 200);
        assert_eq!(status(&pages, "GET", "/readyz"), 503);
        ready.store(true, Ordering::SeqCst);
        assert_eq!(status(&pages, "HEAD", "/readyz"), 200);
        draining.store(true, Ordering::SeqCst);
        assert_eq!(status(&pages, "GET", "/readyz"), 503);
        assert_eq!(status(&pages, "GET", "/healthz"), 200);
        assert_eq!(status(&pages, "GET", "/version"), 200);
        assert_eq!(status(&pages, "POST", "/healthz"), 405);
        assert_eq!(status(&pages, "GET", "/elsewhere"), 404);
    }
}
