//! One exchange with a registry. Owns: permits, the one renew-and-retry, following redirects to
//! blob hosts. Must not: know what a reply means to a client, or keep anything of it.
//!
//! `Authorization` goes to the registry alone: a blob host answers it with 400 (S3: "Only one auth
//! mechanism allowed"), and a foreign one must never see it.

use std::io::{Cursor, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::breaker::Breaker;
use super::client::{Client, Incoming, Outgoing};
use super::redirect::{REDIRECTS_MAX, Redirects, Url};
use super::{AuthFault, Authorizer, Grant, Stage, UpstreamError, scrub};
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
/// An upload's token must stay good for so long: a layer of 10 GB at 100 Mbit/s. ECR looks at it
/// when the request begins, and again with the next one of the same upload.
const UPLOAD_FRESH_FOR: Duration = Duration::from_secs(15 * 60);
/// A failure that took this long opens the circuit: everybody would wait as long.
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
    /// Longest wait for the reply's head, [`HEAD_TIMEOUT`] at the most; less where an older
    /// answer is at hand.
    pub patience: Duration,
    /// The reply's body must come within the time for its head, too.
    pub whole: bool,
}

/// A registry's reply.
pub struct Fetched {
    /// The reply.
    pub reply: Incoming,
    /// The reply comes from a blob host that the registry named.
    pub redirected: bool,
}

/// What becomes of a registry's redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follow {
    Yes,
    No,
}

/// The way to registries.
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
        self.watched(call, body, Follow::Yes)
    }

    /// Makes the call under the registry's circuit.
    fn watched(
        &self,
        call: Call<'_>,
        body: &mut RequestBody<'_>,
        follow: Follow,
    ) -> Result<Fetched, UpstreamError> {
        let deadline = Instant::now() + call.patience.min(HEAD_TIMEOUT);
        let registry = call.registry;
        let circuit = registry.url();
        self.breaker
            .allow(&circuit, Instant::now())
            .map_err(|left| UpstreamError {
                stage: Stage::Connect,
                to: circuit.clone(),
                reason: format!("out of reach lately; next try in {} ms", left.as_millis()),
            })?;
        let asked = Instant::now();
        let fetched = self.fetch_from(registry, call, body, follow, deadline);
        match &fetched {
            // A refused connection costs nobody any time, and is noticed to be back at once.
            Err(error) if error.stage.is_out_of_reach() && asked.elapsed() >= SLOW_FAILURE => {
                self.breaker.failed(&circuit, Instant::now());
            }
            _ => self.breaker.succeeded(&circuit),
        }
        fetched
    }

    /// Makes a call without a body, and brings a redirect back instead of following it. Blocks as
    /// [`Self::fetch`] does.
    ///
    /// # Errors
    /// Why there is no reply that could be passed on; a redirect to what is no http URL is one.
    pub fn fetch_unfollowed(&self, call: Call<'_>) -> Result<Incoming, UpstreamError> {
        let mut nothing = std::io::empty();
        let body = &mut RequestBody::new(&mut nothing, Some(0));
        let reply = self.watched(call, body, Follow::No)?.reply;
        if is_redirect(&reply) {
            let location = reply.headers.first("location").unwrap_or_default();
            let joined = Url::of(call.registry, call.target).join(location);
            joined.map_err(|why| UpstreamError {
                stage: Stage::Redirect,
                to: call.registry.url(),
                reason: format!("bad redirect: {why}"),
            })?;
        }
        Ok(reply)
    }

    /// The same for a request without a body.
    ///
    /// # Errors
    /// Why there is no reply that could be passed on.
    pub fn fetch_bodiless(&self, call: Call<'_>) -> Result<Fetched, UpstreamError> {
        let mut nothing = std::io::empty();
        self.fetch(call, &mut RequestBody::new(&mut nothing, Some(0)))
    }

    /// The registry that belongs to the identity, for when none is configured. Blocks until
    /// `deadline` at the longest.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn default_registry(&self, deadline: Instant) -> Result<Registry, UpstreamError> {
        let unknown = |fault: AuthFault| unauthorized("the registry of the identity", &fault);
        self.authorizer.default_registry(deadline).map_err(unknown)
    }

    fn fetch_from(
        &self,
        registry: &Registry,
        call: Call<'_>,
        body: &mut RequestBody<'_>,
        follow: Follow,
        deadline: Instant,
    ) -> Result<Fetched, UpstreamError> {
        // A body on any other method has no meaning (RFC 9110 §9.3.1); it is not passed on.
        let has_body = is_upload(call) && body.length() != Some(0);
        // An upload may last hours, and its end minutes, so they take a permit of their own kind.
        let permits = if has_body || call.method == "PUT" {
            &self.uploads
        } else {
            &self.exchanges
        };
        let _permit = take(permits, deadline)?;
        let grant = self.grant(registry, call, deadline)?;
        let secret = grant.value.clone();
        let (mut reply, redirected) = if has_body {
            (
                self.send_with_body(registry, call, body, &grant, deadline)?,
                false,
            )
        } else {
            let deadline = match call.method {
                // The end of an upload: what was sent before is checked now.
                "PUT" => Instant::now() + HEAD_TIMEOUT_AFTER_BODY,
                _ => deadline,
            };
            self.send_with_retry(registry, call, grant, follow, deadline)?
        };
        if let Some(secret) = secret {
            scrub::scrub(&mut reply, secret);
        }
        Ok(Fetched { reply, redirected })
    }

    /// The token. Where an older answer is at hand, an API that is silent must not cost every
    /// request its patience: a circuit of its own sees to that. Who has nothing else waits.
    fn grant(
        &self,
        registry: &Registry,
        call: Call<'_>,
        deadline: Instant,
    ) -> Result<Grant, UpstreamError> {
        let in_a_hurry = call.patience < HEAD_TIMEOUT;
        let (to, asked) = (registry.url(), Instant::now());
        let circuit = format!("token {to}");
        if in_a_hurry && let Err(left) = self.breaker.allow(&circuit, asked) {
            let why = format!("no token came lately; next try in {} ms", left.as_millis());
            return Err(unauthorized(&to, &AuthFault(why)));
        }
        let grant = if is_upload(call) {
            self.authorizer
                .header_fresh_for(registry, UPLOAD_FRESH_FOR, deadline)
        } else {
            self.authorizer.header(registry, deadline)
        };
        match &grant {
            Err(_) if in_a_hurry && asked.elapsed() >= SLOW_FAILURE => {
                self.breaker.failed(&circuit, Instant::now());
            }
            _ => self.breaker.succeeded(&circuit),
        }
        grant.map_err(|fault| unauthorized(&to, &fault))
    }

    /// A body streams past once, so a refusal can only be told: the client tries again, with a
    /// token that is new by then.
    fn send_with_body(
        &self,
        registry: &Registry,
        call: Call<'_>,
        body: &mut RequestBody<'_>,
        grant: &Grant,
        deadline: Instant,
    ) -> Result<Incoming, UpstreamError> {
        let url = Url::of(registry, call.target).whole();
        let headers = &authorized(call.headers, grant);
        let (method, head_deadline) = (call.method, deadline);
        let outgoing = Outgoing {
            method,
            url: &url,
            headers,
            head_deadline,
            whole: false,
        };
        let mut reply = self
            .client
            .send_with_body(outgoing, body, HEAD_TIMEOUT_AFTER_BODY)?;
        match refusal(registry, &mut reply) {
            None => Ok(reply),
            Some(why) => {
                let renewed = self.authorizer.renew(
                    registry,
                    grant.generation,
                    Instant::now() + HEAD_TIMEOUT,
                );
                let outcome = match renewed {
                    Ok(_) => "the token was renewed, try again".to_owned(),
                    Err(fault) => fault.0,
                };
                let reason = format!("{why}; {outcome}");
                Err(UpstreamError {
                    stage: Stage::Authorize,
                    to: registry.url(),
                    reason,
                })
            }
        }
    }

    fn send_with_retry(
        &self,
        registry: &Registry,
        call: Call<'_>,
        grant: Grant,
        follow: Follow,
        deadline: Instant,
    ) -> Result<(Incoming, bool), UpstreamError> {
        let (mut reply, redirected) =
            self.send_and_follow(registry, call, &grant, follow, deadline)?;
        let why = self.refusal_of(call, &grant, redirected, &mut reply, deadline);
        let Some(why) = why else {
            return Ok((reply, redirected));
        };
        log::info(
            "registry refused the token; renewing it",
            &[("registry", registry), ("reason", &why)],
        );
        let refused = |reason: String| UpstreamError {
            stage: Stage::Refused,
            to: registry.url(),
            reason,
        };
        let grant = self
            .authorizer
            .renew(registry, grant.generation, deadline)
            .map_err(|fault| refused(format!("{why}; {fault}")))?;
        let (mut reply, redirected) =
            self.send_and_follow(registry, call, &grant, follow, deadline)?;
        match self.refusal_of(call, &grant, redirected, &mut reply, deadline) {
            None => Ok((reply, redirected)),
            Some(why) => Err(refused(format!(
                "{why}, with a fresh token too; check that this identity may use this registry \
                 and that the registry is in the token's region"
            ))),
        }
    }

    /// Says whether the reply refuses our token. A HEAD's 403 has no body that could tell (RFC 9110
    /// §9.3.2), so the same is asked by a GET, of which no more than its refusal is read.
    fn refusal_of(
        &self,
        call: Call<'_>,
        grant: &Grant,
        redirected: bool,
        reply: &mut Incoming,
        deadline: Instant,
    ) -> Option<String> {
        if redirected {
            return None;
        }
        if (call.method, reply.status) != ("HEAD", 403) {
            return refusal(call.registry, reply);
        }
        let url = Url::of(call.registry, call.target);
        let headers = authorized(call.headers, grant);
        // Without an answer there is nothing that speaks against the first one.
        let mut told = self.send_once(call, "GET", &url, &headers, deadline).ok()?;
        refusal(call.registry, &mut told)
    }

    /// Sends a request without a body and follows where the registry points, if so wanted.
    fn send_and_follow(
        &self,
        registry: &Registry,
        call: Call<'_>,
        grant: &Grant,
        follow: Follow,
        deadline: Instant,
    ) -> Result<(Incoming, bool), UpstreamError> {
        let mut asked_again = false;
        loop {
            let first = Url::of(registry, call.target);
            let headers = authorized(call.headers, grant);
            let reply = self.send_once(call, call.method, &first, &headers, deadline)?;
            let follows = follow == Follow::Yes && matches!(call.method, "GET" | "HEAD");
            if !follows || !is_redirect(&reply) {
                return Ok((reply, false));
            }
            let reply = self.follow(registry, call, first, reply, deadline)?;
            match reply.status {
                200 | 206 | 304 | 416 => return Ok((reply, true)),
                // A presigned URL that expired on its way here: the registry signs a new one.
                403 if !asked_again => asked_again = true,
                status => {
                    let reason = format!("the blob host that the registry named answered {status}");
                    let to = registry.url();
                    return Err(UpstreamError {
                        stage: Stage::Redirect,
                        to,
                        reason,
                    });
                }
            }
        }
    }

    fn follow(
        &self,
        registry: &Registry,
        call: Call<'_>,
        mut url: Url,
        mut reply: Incoming,
        deadline: Instant,
    ) -> Result<Incoming, UpstreamError> {
        let fault = |reason| UpstreamError {
            stage: Stage::Redirect,
            to: registry.url(),
            reason,
        };
        let headers = blob_headers(call.headers);
        for _ in 0..REDIRECTS_MAX {
            let location = reply.headers.first("location").unwrap_or_default();
            url = url
                .join(location)
                .map_err(|why| fault(format!("bad redirect: {why}")))?;
            self.redirects.check(registry, &url).map_err(&fault)?;
            // The rest of the reply is dropped, and with it the connection if it is long.
            let _ = std::io::copy(
                &mut reply.body.take(ERROR_DOCUMENT_BYTES_MAX),
                &mut std::io::sink(),
            );
            reply = self.send_once(call, call.method, &url, &headers, deadline)?;
            if call.method == "HEAD" && matches!(reply.status, 403 | 405) {
                // A URL signed for GET refuses HEAD; its head is the same.
                reply = self.send_once(call, "GET", &url, &headers, deadline)?;
            }
            if !is_redirect(&reply) {
                return Ok(reply);
            }
        }
        Err(fault(format!("over {REDIRECTS_MAX} redirects in a row")))
    }

    fn send_once(
        &self,
        call: Call<'_>,
        method: &str,
        url: &Url,
        headers: &Headers,
        deadline: Instant,
    ) -> Result<Incoming, UpstreamError> {
        let url = url.whole();
        self.client.send(Outgoing {
            method,
            url: &url,
            headers,
            head_deadline: deadline,
            whole: call.whole,
        })
    }
}

/// A request that pushes something.
fn is_upload(call: Call<'_>) -> bool {
    matches!(call.method, "PATCH" | "POST" | "PUT")
}

fn take(permits: &Permits, deadline: Instant) -> Result<Permit<'_>, UpstreamError> {
    permits
        .take(deadline.min(Instant::now() + PERMIT_TIMEOUT))
        .ok_or_else(|| UpstreamError {
            stage: Stage::Queue,
            to: "upstream".to_owned(),
            reason: format!("no turn came within {} s", PERMIT_TIMEOUT.as_secs()),
        })
}

fn unauthorized(to: &str, fault: &AuthFault) -> UpstreamError {
    UpstreamError {
        stage: Stage::Authorize,
        to: to.to_owned(),
        reason: fault.0.clone(),
    }
}

fn authorized(headers: &Headers, grant: &Grant) -> Headers {
    let mut headers = headers.clone();
    headers.remove("Authorization");
    if let Some(value) = &grant.value {
        headers.add("Authorization", value.expose());
    }
    headers
}

/// What a blob host gets: nothing that names the client, and nothing it could take for a login.
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

/// Says whether the reply refuses our token, rather than what was asked: 401; 403 that speaks of
/// the authorization token (an expired one has no challenge); 400 from ECR Public. A 403 of any
/// other kind is an answer, and its body is kept.
fn refusal(registry: &Registry, reply: &mut Incoming) -> Option<String> {
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
        let refused = refusal(&host.parse().unwrap(), &mut reply).is_some();
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
            authorized(&headers, &grant)
                .joined("Authorization")
                .as_deref(),
            Some("Basic ours")
        );
        let none = Grant {
            value: None,
            generation: 0,
        };
        assert_eq!(authorized(&headers, &none).joined("Authorization"), None);
    }
}
