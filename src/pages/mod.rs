//! What the proxy answers of itself. Owns: `/healthz`, `/readyz`, `/version`. Must not: ask
//! upstream, or block.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::message::{Reply, Request};
use crate::oci::{ErrorCode, OciError};

/// Says whether pulls can be answered, and by what, or why not.
pub type Readiness = dyn Fn() -> Result<String, String> + Send + Sync;

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
            "/readyz" => self.ready(),
            "/version" => Reply::new(200, "application/json", self.version.as_str()),
            path => {
                let why = format!("nothing is served at {path}; registries answer under /v2/");
                return document(&OciError::new(ErrorCode::NotFound, why));
            }
        };
        if !matches!(request.method.as_str(), "GET" | "HEAD") {
            let why = format!("{} is not possible here", request.method);
            return document(&OciError::new(ErrorCode::Unsupported, why))
                .with("Allow", "GET, HEAD");
        }
        // A probe wants to know how things are now.
        page.with("Cache-Control", "no-store")
    }

    fn ready(&self) -> Reply {
        if self.draining.load(Ordering::SeqCst) {
            return Reply::new(503, "text/plain", "not ready: shutting down\n");
        }
        match (self.readiness)() {
            Ok(by) => Reply::new(200, "text/plain", format!("ready: {by}\n")),
            Err(why) => Reply::new(503, "text/plain", format!("not ready: {why}\n")),
        }
    }
}

fn document(error: &OciError) -> Reply {
    let mut reply = Reply::new(error.status, "application/json", error.document());
    reply.outcome.error = Some(error.message.clone());
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Certificate, Headers, Peer};

    fn status(pages: &Pages, method: &str, target: &str) -> u16 {
        let request = Request {
            method: method.into(),
            target: target.into(),
            headers: Headers::new(),
            peer: Peer {
                address: None,
                port: 0,
                tls: false,
                certificate: Certificate::NotAsked,
            },
            id: "1".into(),
        };
        pages.answer(&request).status
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
