//! One exchange with a registry. Owns: permits, the one renewal of a refused token, following
//! redirects to blob hosts. Must not: know what a reply means to a client, or keep anything of it.
//!
//! The registry alone gets `Authorization`: S3 answers it with 400 ("Only one auth mechanism
//! allowed"), and a foreign host must never see it.

use std::io::{Cursor, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::authorizer::{AuthFault, Authorizer, Grant};
use super::breaker::Breaker;
use super::client::{Client, Incoming, Outgoing};
use super::error::{Stage, UpstreamError};
use super::redirect::{REDIRECTS_MAX, Redirects, Url};
use super::scrub;
use crate::log;
use crate::message::{Headers, RequestBody};
use crate::oci::{ECR_PUBLIC_HOSTS, ERROR_DOCUMENT_BYTES_MAX, Registry};
use crate::permits::{Permit, Permits};

/// Longest time from a request to its reply's head: containerd gives up at 30 s.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(25);
/// Longest wait for a free permit, out of [`HEAD_TIMEOUT`].
const PERMIT_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for a reply once a body was sent: ECR checks a whole layer before it answers.
const HEAD_TIMEOUT_AFTER_BODY: Duration = Duration::from_secs(300);
/// An upload's token must stay good for so long: a layer of 10 GB at 100 Mbit/s. ECR checks the
/// token when a request begins, and again with the next request of the same upload.
const UPLOAD_FRESH_FOR: Duration = Duration::from_secs(15 * 60);
/// A failure that took this long opens the circuit: every other request would wait as long.
const SLOW_FAILURE: Duration = Duration::from_millis(500);

/// A request for a registry.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The registry.
    pub registry: &'a Registry,
    /// The method.
    pub method: &'a str,
    /// Path and query, sent byte for byte.
    pub target: &'a str,
    /// Fields, without `Host`, framing and `Authorization`.
    pub headers: &'a Headers,
    /// Longest wait for the reply's head, [`HEAD_TIMEOUT`] at the most. It is less where an older
    /// answer is at hand.
    pub patience: Duration,
    /// The reply's body must come within the time for its head, too.
    pub whole: bool,
}

impl Call<'_> {
    /// True for a request that pushes something.
    fn is_upload(&self) -> bool {
        matches!(self.method, "PATCH" | "POST" | "PUT")
    }

    fn url(&self) -> Url {
        Url::for_registry(self.registry, self.target)
    }

    fn fault(&self, stage: Stage, reason: impl Into<String>) -> UpstreamError {
        UpstreamError::at(self.registry, stage, reason)
    }
}

/// A registry's reply.
pub struct Fetched {
    /// The reply.
    pub reply: Incoming,
    /// The reply comes from a blob host that the registry named.
    pub redirected: bool,
}

/// Whether a registry's redirect is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follow {
    Yes,
    No,
}

/// Sends requests to registries.
pub struct Upstream {
    client: Arc<Client>,
    authorizer: Arc<dyn Authorizer>,
    redirects: Redirects,
    breaker: Breaker,
    exchanges: Permits,
    uploads: Permits,
}

impl Upstream {
    /// At most `exchanges` wait for a head, and at most `uploads` send a body, at a time.
    pub fn new(
        client: Arc<Client>,
        authorizer: Arc<dyn Authorizer>,
        redirects: Redirects,
        exchanges: usize,
        uploads: usize,
    ) -> Self {
        let (exchanges, uploads) = (Permits::new(exchanges), Permits::new(uploads));
        Self {
            client,
            authorizer,
            redirects,
            breaker: Breaker::default(),
            exchanges,
            uploads,
        }
    }

    /// Makes the call and waits for the reply's head. Blocks for [`HEAD_TIMEOUT`] and one
    /// connection time-out at the longest; with a body, for as long as that takes.
    ///
    /// # Errors
    /// Why there is no reply that could be passed on.
    pub fn fetch(
        &self,
        call: Call<'_>,
        body: &mut RequestBody<'_>,
    ) -> Result<Fetched, UpstreamError> {
        self.fetch_within_circuit(call, body, Follow::Yes)
    }

    /// The same for a request without a body.
    ///
    /// # Errors
    /// Why there is no reply that could be passed on.
    pub fn fetch_bodiless(&self, call: Call<'_>) -> Result<Fetched, UpstreamError> {
        let mut nothing = std::io::empty();
        self.fetch(call, &mut RequestBody::new(&mut nothing, Some(0)))
    }

    /// Makes a call without a body, and returns a redirect instead of following it. Blocks as
    /// [`Self::fetch`] does.
    ///
    /// # Errors
    /// Why there is no reply that could be passed on, as when a redirect names no http URL.
    pub fn fetch_unfollowed(&self, call: Call<'_>) -> Result<Incoming, UpstreamError> {
        let mut nothing = std::io::empty();
        let body = &mut RequestBody::new(&mut nothing, Some(0));
        let reply = self.fetch_within_circuit(call, body, Follow::No)?.reply;
        if is_redirect(&reply) {
            let location = reply.headers.first("location").unwrap_or_default();
            let joined = call.url().join(location);
            joined.map_err(|why| call.fault(Stage::Redirect, format!("bad redirect: {why}")))?;
        }
        Ok(reply)
    }

    /// The registry that belongs to the identity, for when none is configured. Blocks until
    /// `deadline` at the longest.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn default_registry(&self, deadline: Instant) -> Result<Registry, UpstreamError> {
        let found = self.authorizer.default_registry(deadline);
        found.map_err(|AuthFault(why)| {
            UpstreamError::new(Stage::Authorize, "the registry of the identity", why)
        })
    }

    fn fetch_within_circuit(
        &self,
        call: Call<'_>,
        body: &mut RequestBody<'_>,
        follow: Follow,
    ) -> Result<Fetched, UpstreamError> {
        let started = Instant::now();
        let deadline = started + call.patience.min(HEAD_TIMEOUT);
        let circuit = call.registry.url();
        self.breaker.allow(&circuit, started).map_err(|left| {
            let left_ms = left.as_millis();
            let why = format!("out of reach lately; next try in {left_ms} ms");
            call.fault(Stage::Connect, why)
        })?;
        let fetched = self.fetch_within_permit(call, body, follow, deadline);
        match &fetched {
            // A refused connection costs nobody any time, and its end is noticed at once.
            Err(error) if error.stage.is_out_of_reach() && started.elapsed() >= SLOW_FAILURE => {
                self.breaker.failed(&circuit, Instant::now());
            }
            _ => self.breaker.succeeded(&circuit),
        }
        fetched
    }

    fn fetch_within_permit(
        &self,
        call: Call<'_>,
        body: &mut RequestBody<'_>,
        follow: Follow,
        deadline: Instant,
    ) -> Result<Fetched, UpstreamError> {
        // A body of any other method has no meaning (RFC 9110 §9.3.1); it is not passed on.
        let has_body = call.is_upload() && body.length() != Some(0);
        // An upload may last hours, and its last request minutes, so they have their own permits.
        let permits = if has_body || call.method == "PUT" {
            &self.uploads
        } else {
            &self.exchanges
        };
        let _permit = take_permit(permits, deadline)?;
        let mut attempt = Attempt {
            upstream: self,
            call,
            grant: self.grant(call, deadline)?,
            follow,
            deadline,
        };
        let secret = attempt.grant.value.clone();
        let mut fetched = if has_body {
            attempt.send_with_body(body)?
        } else {
            if call.method == "PUT" {
                // The end of an upload: what was sent before is checked now.
                attempt.deadline = Instant::now() + HEAD_TIMEOUT_AFTER_BODY;
            }
            attempt.send_with_renewal()?
        };
        if let Some(secret) = secret {
            scrub::scrub(&mut fetched.reply, secret);
        }
        Ok(fetched)
    }

    /// The token. A caller that has an older answer at hand must not wait its whole patience for a
    /// silent API each time, so such callers have a circuit of their own; all others wait.
    fn grant(&self, call: Call<'_>, deadline: Instant) -> Result<Grant, UpstreamError> {
        let in_a_hurry = call.patience < HEAD_TIMEOUT;
        let asked = Instant::now();
        let circuit = format!("token {}", call.registry.url());
        if in_a_hurry && let Err(left) = self.breaker.allow(&circuit, asked) {
            let why = format!("no token came lately; next try in {} ms", left.as_millis());
            return Err(call.fault(Stage::Authorize, why));
        }
        let grant = if call.is_upload() {
            self.authorizer
                .header_fresh_for(call.registry, UPLOAD_FRESH_FOR, deadline)
        } else {
            self.authorizer.header(call.registry, deadline)
        };
        match &grant {
            Err(_) if in_a_hurry && asked.elapsed() >= SLOW_FAILURE => {
                self.breaker.failed(&circuit, Instant::now());
            }
            _ => self.breaker.succeeded(&circuit),
        }
        grant.map_err(|AuthFault(why)| call.fault(Stage::Authorize, why))
    }
}

/// One call that has its permit and its token.
struct Attempt<'a> {
    upstream: &'a Upstream,
    call: Call<'a>,
    grant: Grant,
    follow: Follow,
    /// Until when the reply's head must have come.
    deadline: Instant,
}

impl Attempt<'_> {
    /// A body can be sent once only. When the token is refused, the client is told to try again,
    /// and the token is new by then.
    fn send_with_body(&self, body: &mut RequestBody<'_>) -> Result<Fetched, UpstreamError> {
        let url = self.call.url().whole();
        let headers = self.authorized_headers();
        let outgoing = Outgoing {
            method: self.call.method,
            url: &url,
            headers: &headers,
            head_deadline: self.deadline,
            whole: false,
        };
        let client = &self.upstream.client;
        let mut reply = client.send_with_body(outgoing, body, HEAD_TIMEOUT_AFTER_BODY)?;
        let Some(why) = token_refusal(self.call.registry, &mut reply) else {
            let redirected = false;
            return Ok(Fetched { reply, redirected });
        };
        let outcome = match self.renew(Instant::now() + HEAD_TIMEOUT) {
            Ok(_) => "the token was renewed, try again".to_owned(),
            Err(AuthFault(fault)) => fault,
        };
        let reason = format!("{why}; {outcome}");
        Err(self.call.fault(Stage::Authorize, reason))
    }

    /// Sends the call; when the token is refused, renews it and sends the call once more.
    fn send_with_renewal(&mut self) -> Result<Fetched, UpstreamError> {
        let mut fetched = self.send_and_follow()?;
        let Some(why) = self.find_token_refusal(&mut fetched) else {
            return Ok(fetched);
        };
        log::info(
            "registry refused the token; renewing it",
            &[("registry", self.call.registry), ("reason", &why)],
        );
        self.grant = self.renew(self.deadline).map_err(|fault| {
            let reason = format!("{why}; {fault}");
            self.call.fault(Stage::Refused, reason)
        })?;
        let mut fetched = self.send_and_follow()?;
        match self.find_token_refusal(&mut fetched) {
            None => Ok(fetched),
            Some(why) => Err(self.call.fault(
                Stage::Refused,
                format!(
                    "{why}, with a fresh token too; check that this identity may use this \
                     registry and that the registry is in the token's region"
                ),
            )),
        }
    }

    fn renew(&self, deadline: Instant) -> Result<Grant, AuthFault> {
        let (registry, generation) = (self.call.registry, self.grant.generation);
        self.upstream
            .authorizer
            .renew(registry, generation, deadline)
    }

    /// Says why the reply refuses our token, if it does. The 403 to a HEAD has no body that could
    /// tell (RFC 9110 §9.3.2), so a GET asks the same, and only its refusal is read.
    fn find_token_refusal(&self, fetched: &mut Fetched) -> Option<String> {
        if fetched.redirected {
            return None;
        }
        if (self.call.method, fetched.reply.status) != ("HEAD", 403) {
            return token_refusal(self.call.registry, &mut fetched.reply);
        }
        // Without an answer to the GET, the first answer stands.
        let sent = self.send_once("GET", &self.call.url(), &self.authorized_headers());
        token_refusal(self.call.registry, &mut sent.ok()?)
    }

    /// Sends a request without a body, and follows the registry's redirect if it may.
    fn send_and_follow(&self) -> Result<Fetched, UpstreamError> {
        let method = self.call.method;
        let follows = self.follow == Follow::Yes && matches!(method, "GET" | "HEAD");
        let mut asked_again = false;
        loop {
            let url = self.call.url();
            let reply = self.send_once(method, &url, &self.authorized_headers())?;
            if !follows || !is_redirect(&reply) {
                let redirected = false;
                return Ok(Fetched { reply, redirected });
            }
            let reply = self.follow_redirects(url, reply)?;
            match reply.status {
                200 | 206 | 304 | 416 => {
                    let redirected = true;
                    return Ok(Fetched { reply, redirected });
                }
                // The signed URL has expired on its way here: the registry signs a new one.
                403 if !asked_again => asked_again = true,
                status => {
                    let reason = format!("the blob host that the registry named answered {status}");
                    return Err(self.call.fault(Stage::Redirect, reason));
                }
            }
        }
    }

    fn follow_redirects(&self, mut url: Url, reply: Incoming) -> Result<Incoming, UpstreamError> {
        let fault = |reason| self.call.fault(Stage::Redirect, reason);
        let headers = blob_headers(self.call.headers);
        let mut reply = reply;
        for _ in 0..REDIRECTS_MAX {
            let location = reply.headers.first("location").unwrap_or_default();
            url = url
                .join(location)
                .map_err(|why| fault(format!("bad redirect: {why}")))?;
            let redirects = &self.upstream.redirects;
            redirects.check(self.call.registry, &url).map_err(fault)?;
            // A short body is read, so that the connection can be used again.
            let body = &mut reply.body.take(ERROR_DOCUMENT_BYTES_MAX);
            let _ = std::io::copy(body, &mut std::io::sink());
            reply = self.send_once(self.call.method, &url, &headers)?;
            if self.call.method == "HEAD" && matches!(reply.status, 403 | 405) {
                // A URL that is signed for GET refuses HEAD. The head of a GET is the same.
                reply = self.send_once("GET", &url, &headers)?;
            }
            if !is_redirect(&reply) {
                return Ok(reply);
            }
        }
        Err(fault(format!("over {REDIRECTS_MAX} redirects in a row")))
    }

    fn send_once(
        &self,
        method: &str,
        url: &Url,
        headers: &Headers,
    ) -> Result<Incoming, UpstreamError> {
        self.upstream.client.send(Outgoing {
            method,
            url: &url.whole(),
            headers,
            head_deadline: self.deadline,
            whole: self.call.whole,
        })
    }

    fn authorized_headers(&self) -> Headers {
        authorize(self.call.headers, &self.grant)
    }
}

fn take_permit(permits: &Permits, deadline: Instant) -> Result<Permit<'_>, UpstreamError> {
    let permit = permits.take(deadline.min(Instant::now() + PERMIT_TIMEOUT));
    permit.ok_or_else(|| {
        let reason = format!("no turn came within {} s", PERMIT_TIMEOUT.as_secs());
        UpstreamError::new(Stage::Queue, "upstream", reason)
    })
}

/// Puts our own `Authorization` in the place of the client's.
fn authorize(headers: &Headers, grant: &Grant) -> Headers {
    let mut headers = headers.clone();
    headers.remove("Authorization");
    if let Some(value) = &grant.value {
        headers.add("Authorization", value.expose());
    }
    headers
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

fn is_redirect(reply: &Incoming) -> bool {
    matches!(reply.status, 301 | 302 | 303 | 307 | 308) && reply.headers.first("location").is_some()
}

/// Says why the reply refuses our token, and not what was asked for, if it does: 401; 403 that
/// speaks of the authorization token (an expired one has no challenge); 400 from ECR Public. Any
/// other 403 is an answer, and its body is kept.
fn token_refusal(registry: &Registry, reply: &mut Incoming) -> Option<String> {
    match reply.status {
        401 => Some("the registry answered 401".to_owned()),
        // ECR Public says 400 to an expired token (containers-roadmap#2835).
        400 if ECR_PUBLIC_HOSTS.contains(&registry.host()) => {
            Some("the registry answered 400".to_owned())
        }
        403 => {
            let mut start = Vec::new();
            let whole = (&mut reply.body)
                .take(ERROR_DOCUMENT_BYTES_MAX)
                .read_to_end(&mut start);
            let text = String::from_utf8_lossy(&start).to_ascii_lowercase();
            let refused = whole.is_ok() && text.contains("authorization token");
            let rest = std::mem::replace(&mut reply.body, Box::new(std::io::empty()));
            reply.body = Box::new(Cursor::new(start).chain(rest));
            refused.then(|| "the registry answered 403: the token has expired".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: &'static str) -> Incoming {
        let headers = Headers::new();
        Incoming {
            status,
            headers,
            body: Box::new(body.as_bytes()),
            length: None,
        }
    }

    fn refused(host: &str, mut reply: Incoming) -> (bool, String) {
        let refused = token_refusal(&host.parse().unwrap(), &mut reply).is_some();
        let mut body = String::new();
        reply.body.read_to_string(&mut body).unwrap();
        (refused, body)
    }

    #[test]
    fn a_refused_token_is_told_from_a_refused_request() {
        let private = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
        let expired = "denied: Your authorization token has expired. Reauthenticate and try again.";
        let denied = "denied: User: arn is not authorized to perform: ecr:BatchGetImage";
        assert!(refused(private, reply(401, "")).0);
        assert!(refused(private, reply(403, expired)).0);
        assert_eq!(
            refused(private, reply(403, denied)),
            (false, denied.to_owned())
        );
        assert_eq!(refused(private, reply(400, "x")), (false, "x".to_owned()));
        assert!(refused("public.ecr.aws", reply(400, "")).0);
        assert!(!refused(private, reply(404, "authorization token")).0);
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
            value: Some(crate::secret::Secret::new("Basic ours".into())),
            generation: 1,
        };
        assert_eq!(
            authorize(&headers, &grant)
                .joined("Authorization")
                .as_deref(),
            Some("Basic ours")
        );
        let none = Grant {
            value: None,
            generation: 0,
        };
        assert_eq!(authorize(&headers, &none).joined("Authorization"), None);
    }
}
