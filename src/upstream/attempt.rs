//! The steps of one call that has its permit and its token. Owns: the one renewal of a refused
//! token, following redirects to blob hosts, reading refusals. Must not: know what a reply means to
//! a client, or keep anything of it.
//!
//! The registry alone gets `Authorization`: S3 answers it with 400 ("Only one auth mechanism
//! allowed"), and a foreign host must never see it.

use std::cell::Cell;
use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::authorizer::{AuthFault, Authorizer, Grant};
use super::call::{Call, Fetched, HEAD_TIMEOUT};
use super::client::{Client, Outgoing};
use super::error::{Stage, UpstreamError};
use super::incoming::Incoming;
use super::redirect::{REDIRECTS_MAX, Redirects, Url};
use super::secrets::Secrets;
use super::throttle::{PauseRequest, read_pause_request};
use crate::log::{self, Level, RequestScope};
use crate::message::{Headers, RequestBody, SharedBytes};
use crate::oci::{ECR_PUBLIC_HOSTS, ERROR_DOCUMENT_BYTES_MAX, Registry};
use crate::via;

/// Longest wait for a reply once a body was sent: ECR checks a whole layer before it answers.
pub(super) const HEAD_TIMEOUT_AFTER_BODY: Duration = Duration::from_secs(300);
/// A refusal whose head came just in time gets this long for its body.
const REFUSAL_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// A redirect's body is read this far, so that its connection can be used again.
const REDIRECT_BODY_BYTES_MAX: u64 = 16 * 1024;
/// Longest wait for it; a new connection takes no longer.
const REDIRECT_BODY_TIMEOUT: Duration = Duration::from_millis(100);

/// What the registry refused, in the sentence of [`Stage::Refused`].
const TOKEN: &str = "the ECR token";

/// The field for the outcomes of the caches between us and the registry (`X-Cache` is our own).
pub const UPSTREAM_CACHE_FIELD: &str = "X-Cache-Upstream";

/// A reply as the steps of an attempt hand it on.
struct JudgedReply {
    fetched: Fetched,
    /// Why it refuses our token, if it does.
    token_refusal: Option<String>,
}

/// Whether a registry's redirect is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    Yes,
    No,
}

/// One call that has its permit and its token.
pub(super) struct Attempt<'a> {
    pub(super) client: &'a Client,
    pub(super) authorizer: &'a dyn Authorizer,
    pub(super) redirects: &'a Redirects,
    pub(super) call: Call<'a>,
    pub(super) grant: Grant,
    pub(super) follow: Follow,
    /// Until when the reply's head must have come.
    pub(super) deadline: Instant,
    /// Set when a reply says that we ask too often.
    pub(super) throttled: &'a Cell<Option<PauseRequest>>,
}

impl Attempt<'_> {
    /// Sends the call with its body, which can be sent only once. When the registry refuses the
    /// token, it is renewed and the client is told to try again.
    pub(super) fn send_with_body(
        &self,
        body: &mut RequestBody<'_>,
    ) -> Result<Fetched, UpstreamError> {
        let url = self.call.url();
        let headers = self.authorized_headers();
        let outgoing = Outgoing {
            method: self.call.method,
            url: &url.whole(),
            headers: &headers,
            head_deadline: self.deadline,
            whole: false,
            addresses: self.redirects.address_rule(self.call.registry, &url),
        };
        let reply = self
            .client
            .send_with_body(outgoing, body, HEAD_TIMEOUT_AFTER_BODY)?;
        let answer = self.read_answer(self.call.method, reply);
        let Some(why) = answer.token_refusal else {
            return Ok(answer.fetched);
        };
        let outcome = match self.renew(Instant::now() + HEAD_TIMEOUT) {
            Ok(_) => "the token is renewed now; try again".to_owned(),
            Err(AuthFault(fault)) => fault,
        };
        let reason = format!("{why}; {outcome}");
        Err(self.call.fault(Stage::Authorize, reason))
    }

    /// Sends the call; when the token is refused, renews it and sends the call once more.
    pub(super) fn send_with_renewal(&mut self) -> Result<Fetched, UpstreamError> {
        let answer = self.send_and_follow()?;
        let Some(why) = answer.token_refusal else {
            return Ok(answer.fetched);
        };
        let had_token = self.grant.value.is_some();
        if had_token {
            let message = "registry refused the token; renewing it";
            let fields: [log::Field<'_>; 1] = [("registry", self.call.registry)];
            log::cause(Level::Info, message, ("reason", &why), &fields);
        }
        self.grant = self.renew(self.deadline).map_err(|fault| {
            let refused = if had_token {
                TOKEN
            } else {
                "a request without a token"
            };
            self.call
                .fault(Stage::Refused, format!("{refused}: {why}; {fault}"))
        })?;
        let answer = self.send_and_follow()?;
        match answer.token_refusal {
            None => Ok(answer.fetched),
            Some(why) => Err(self.call.fault(
                Stage::Refused,
                format!(
                    "{TOKEN}: {why}, with a fresh token too; check that this identity may use this \
                     registry and that the registry is in the token's region"
                ),
            )),
        }
    }

    fn renew(&self, deadline: Instant) -> Result<Grant, AuthFault> {
        let (registry, generation) = (self.call.registry, self.grant.generation);
        self.authorizer.renew(registry, generation, deadline)
    }

    /// Sends a request without a body, and follows the registry's redirect if it may.
    fn send_and_follow(&self) -> Result<JudgedReply, UpstreamError> {
        let method = self.call.method;
        let follows = self.follow == Follow::Yes && matches!(method, "GET" | "HEAD");
        let mut asked_again = false;
        loop {
            let mut answer = self.ask_registry(method)?;
            if !follows || !is_redirect(&answer.fetched.reply) {
                if (method, answer.fetched.reply.status) == ("HEAD", 403) {
                    answer.token_refusal = self.find_refusal_by_get();
                }
                return Ok(answer);
            }
            let mut reply = self.follow_redirects(answer.fetched.reply)?;
            match reply.status {
                200 | 206 | 304 | 416 => return Ok(self.read_redirected(reply)),
                // The signed URL has expired on its way here: the registry signs a new one.
                403 if !asked_again => asked_again = true,
                status => {
                    self.read_refusal(method, &mut reply);
                    let stage = match self.throttled.get() {
                        Some(_) => Stage::Throttled,
                        None => Stage::Redirect,
                    };
                    let reason = format!("the blob host that the registry named answered {status}");
                    return Err(self.call.fault(stage, reason));
                }
            }
        }
    }

    fn ask_registry(&self, method: &str) -> Result<JudgedReply, UpstreamError> {
        let headers = self.authorized_headers();
        let reply = self.send_once(method, &self.call.url(), &headers)?;
        let id = reply.headers.first("x-amzn-requestid");
        if let Some(request) = RequestScope::current() {
            request.note_upstream(id, cache_outcomes(&reply.headers));
        }
        Ok(self.read_answer(method, reply))
    }

    /// The 403 to a HEAD has no body that could tell why (RFC 9110 §9.3.2), so a GET asks the
    /// same, and only its refusal is read. Without an answer to the GET, the first answer stands.
    fn find_refusal_by_get(&self) -> Option<String> {
        self.ask_registry("GET").ok()?.token_refusal
    }

    /// Reads a reply of the registry itself: removes our token, and reads a refusal whole.
    fn read_answer(&self, method: &str, mut reply: Incoming) -> JudgedReply {
        if let Some(secrets) = self.secrets() {
            secrets.remove_from(&mut reply);
        }
        let refusal = self.read_refusal(method, &mut reply);
        let (registry, status) = (self.call.registry, reply.status);
        let token_refusal = token_refusal(registry, status, refusal.as_deref().unwrap_or_default());
        JudgedReply {
            fetched: Fetched {
                reply,
                redirected: false,
            },
            token_refusal,
        }
    }

    /// Reads a reply of a blob host, which has never seen our token.
    fn read_redirected(&self, mut reply: Incoming) -> JudgedReply {
        self.read_refusal(self.call.method, &mut reply);
        JudgedReply {
            fetched: Fetched {
                reply,
                redirected: true,
            },
            token_refusal: None,
        }
    }

    /// Reads a refusal's body before the client gets its head, so that no registry holds us up by
    /// sending it slowly. A body that is late, broken off or too long is left out; so is the body
    /// of a redirect, which says nothing.
    fn read_refusal(&self, method: &str, reply: &mut Incoming) -> Option<SharedBytes> {
        if method == "HEAD" || matches!(reply.status, ..300 | 304) {
            if let Some(asked) = read_pause_request(reply, b"") {
                self.throttled.set(Some(asked));
            }
            return None;
        }
        let body = if reply.status < 400 {
            self.discard_body(reply);
            Vec::new()
        } else {
            let read = reply.read_body(ERROR_DOCUMENT_BYTES_MAX + 1, self.refusal_deadline());
            let read = read
                .ok()
                .filter(|body| body.len() as u64 <= ERROR_DOCUMENT_BYTES_MAX);
            read.unwrap_or_default()
        };
        if let Some(asked) = read_pause_request(reply, &body) {
            self.throttled.set(Some(asked));
        }
        let body = SharedBytes::from(body);
        reply.length = Some(body.len() as u64);
        reply.body = Box::new(Cursor::new(body.clone()));
        Some(body)
    }

    fn refusal_deadline(&self) -> Instant {
        let now = Instant::now();
        if self.call.is_upload() {
            return now + HEAD_TIMEOUT;
        }
        self.deadline.max(now + REFUSAL_TIMEOUT_MIN)
    }

    /// Reads a short body that is there, so that its connection can be used again. Any other is
    /// dropped, and its connection with it.
    fn discard_body(&self, reply: &mut Incoming) {
        let deadline = self.deadline.min(Instant::now() + REDIRECT_BODY_TIMEOUT);
        let _ = reply.read_body(REDIRECT_BODY_BYTES_MAX, deadline);
    }

    fn follow_redirects(&self, first: Incoming) -> Result<Incoming, UpstreamError> {
        let fault = |reason| self.call.fault(Stage::Redirect, reason);
        let headers = blob_headers(self.call.headers);
        let (mut url, mut reply) = (self.call.url(), first);
        for _ in 0..REDIRECTS_MAX {
            let location = reply.headers.first("location").unwrap_or_default();
            url = url
                .join(location)
                .map_err(|why| fault(format!("bad redirect: {why}")))?;
            self.redirects
                .check(self.call.registry, &url)
                .map_err(fault)?;
            self.discard_body(&mut reply);
            reply = self.send_once(self.call.method, &url, &headers)?;
            if self.call.method == "HEAD" && matches!(reply.status, 403 | 405) {
                // A URL that is signed for GET refuses HEAD. The head of a GET is the same.
                reply = self.send_once("GET", &url, &headers)?;
            }
            if !is_redirect(&reply) {
                return Ok(reply);
            }
        }
        Err(fault(format!(
            "more than {REDIRECTS_MAX} redirects in a row"
        )))
    }

    fn send_once(
        &self,
        method: &str,
        url: &Url,
        headers: &Headers,
    ) -> Result<Incoming, UpstreamError> {
        self.client.send(Outgoing {
            method,
            url: &url.whole(),
            headers,
            head_deadline: self.deadline,
            whole: self.call.whole,
            addresses: self.redirects.address_rule(self.call.registry, url),
        })
    }

    /// Our token, in the forms in which it may come back.
    pub(super) const fn secrets(&self) -> Option<&Arc<Secrets>> {
        self.grant.value.as_ref()
    }

    /// The fields for the registry. They name the request, so that its log and ours match, and the
    /// way that it came, so that a circle of proxies ends.
    fn authorized_headers(&self) -> Headers {
        let mut headers = authorize(self.call.headers, &self.grant);
        let request = RequestScope::current();
        let via = request.as_ref().map(|request| request.via.clone());
        let via = via.unwrap_or_else(|| via::append(&Headers::new(), true));
        headers.set(via::VIA, via);
        if let Some(request) = request {
            headers.set("X-Request-Id", request.id.as_str());
            if let Some(trace) = &request.trace {
                headers.set("traceparent", trace.as_str());
            }
        }
        headers
    }
}

/// Puts our own `Authorization` in the place of the client's.
fn authorize(headers: &Headers, grant: &Grant) -> Headers {
    let mut headers = headers.clone();
    headers.remove("Authorization");
    if let Some(value) = &grant.value {
        headers.add("Authorization", value.authorization().expose());
    }
    headers
}

/// The outcomes of the registry's own cache and of those behind it, the nearest first.
fn cache_outcomes(headers: &Headers) -> Option<String> {
    let own = headers.first("X-Cache")?;
    Some(match headers.first(UPSTREAM_CACHE_FIELD) {
        Some(others) => format!("{own}, {others}"),
        None => own.to_owned(),
    })
}

/// The fields for a blob host: none that names the client, and none that looks like a login.
fn blob_headers(headers: &Headers) -> Headers {
    let mut kept = Headers::from_iter([("Accept-Encoding", "identity")]);
    for name in ["Range", "If-Range", "User-Agent"] {
        if let Some(value) = headers.first(name) {
            kept.add(name, value);
        }
    }
    kept
}

pub(super) fn is_redirect(reply: &Incoming) -> bool {
    matches!(reply.status, 301 | 302 | 303 | 307 | 308) && reply.headers.first("location").is_some()
}

/// Says why a reply refuses our token; none when it answers the request. A 401 refuses the token, a
/// 403 does when it speaks of the authorization token (an expired one has no challenge), and so
/// does a 400 from ECR Public.
fn token_refusal(registry: &Registry, status: u16, body: &[u8]) -> Option<String> {
    let text = || String::from_utf8_lossy(body).to_ascii_lowercase();
    match status {
        401 => Some("the registry answered 401".to_owned()),
        400 if ECR_PUBLIC_HOSTS.contains(&registry.host()) => {
            Some("the registry answered 400".to_owned())
        }
        403 if text().contains("authorization token") => {
            Some("the registry answered 403: the token has expired".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn a_refused_token_is_told_from_a_refused_request() {
        let private = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
        let expired = "denied: Your authorization token has expired. Reauthenticate and try again.";
        let denied = "denied: User: arn is not authorized to perform: ecr:BatchGetImage";
        for (host, status, body, refused) in [
            (private, 401, "", true),
            (private, 403, expired, true),
            (private, 403, denied, false),
            (private, 400, "x", false),
            (private, 404, "authorization token", false),
            ("public.ecr.aws", 400, "", true),
        ] {
            let found = token_refusal(&host.parse().unwrap(), status, body.as_bytes());
            assert_eq!(found.is_some(), refused, "{host} {status} {body}");
        }
    }

    #[test]
    fn a_blob_host_gets_no_authorization() {
        let headers = Headers::from_iter([
            ("Authorization", "Basic x"),
            ("Range", "bytes=1-"),
            ("Cookie", "c"),
            ("X-Forwarded-For", "10.0.0.1"),
        ]);
        let kept = blob_headers(&headers);
        let names: Vec<&str> = kept.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["Accept-Encoding", "Range"]);
    }

    #[test]
    fn a_clients_authorization_is_replaced() {
        let headers = Headers::from_iter([("authorization", "Basic client")]);
        let grant = Grant {
            value: Some(Arc::new(Secrets::new(Secret::new("Basic ours".into())))),
            generation: 1,
        };
        assert_eq!(
            authorize(&headers, &grant)
                .join_values("Authorization")
                .as_deref(),
            Some("Basic ours")
        );
        let none = Grant {
            value: None,
            generation: 0,
        };
        assert_eq!(
            authorize(&headers, &none).join_values("Authorization"),
            None
        );
    }
}
