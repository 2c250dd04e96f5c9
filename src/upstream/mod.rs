//! The way to registries and AWS. Owns: every outgoing connection. Must not: know what is cached,
//! or how an AWS identity comes about (an [`Authorizer`] is handed in).

pub mod breaker;
pub mod client;
pub mod dns;
mod early;
pub mod exchange;
mod fault;
pub mod loopback;
pub mod outbound;
pub mod redirect;
pub mod resolver;
mod scrub;
mod tcp;
mod way;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::message::Headers;
use crate::oci::Registry;
use crate::secret::Secret;

/// Gives out the `Authorization` value for a registry. Implemented by the token thread's front.
pub trait Authorizer: Send + Sync {
    /// The value for `registry`. Blocks at the longest until `deadline`, and only while there is
    /// no usable token at all.
    ///
    /// # Errors
    /// Why there is none, for the person on call.
    fn header(&self, registry: &Registry, deadline: Instant) -> Result<Grant, AuthFault>;

    /// The same for an upload, which is refused when the token ends before it does and cannot be
    /// repeated: a value that is good for `fresh_for` from now on, if a renewal can give one. An
    /// older one that is still good is better than none.
    ///
    /// # Errors
    /// Why there is none.
    fn header_fresh_for(
        &self,
        registry: &Registry,
        _fresh_for: Duration,
        deadline: Instant,
    ) -> Result<Grant, AuthFault> {
        self.header(registry, deadline)
    }

    /// The registry refused `generation`: gets a newer value, fetched once however many callers
    /// ask. Returns at once when a newer one is there already.
    ///
    /// # Errors
    /// Why there is none.
    fn renew(
        &self,
        registry: &Registry,
        generation: u64,
        deadline: Instant,
    ) -> Result<Grant, AuthFault>;

    /// The registry that belongs to the identity (`proxyEndpoint`), for when none is configured.
    ///
    /// # Errors
    /// Why it is not known.
    fn default_registry(&self, deadline: Instant) -> Result<Registry, AuthFault>;
}

/// An `Authorization` value and the number of the token it was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The whole field value (`Basic …`); none when the registry wants no authorization.
    pub value: Option<Secret<String>>,
    /// Grows with each token.
    pub generation: u64,
}

/// The authorizer of an upstream that wants no authorization: another `aws-ecr-proxy`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anonymous;

impl Authorizer for Anonymous {
    fn header(&self, _registry: &Registry, _deadline: Instant) -> Result<Grant, AuthFault> {
        Ok(Grant {
            value: None,
            generation: 0,
        })
    }

    fn renew(&self, _: &Registry, _: u64, _: Instant) -> Result<Grant, AuthFault> {
        let why = "the upstream asks for a login and UPSTREAM_AUTH is none; set it to ecr";
        Err(AuthFault(why.to_owned()))
    }

    fn default_registry(&self, _deadline: Instant) -> Result<Registry, AuthFault> {
        Err(AuthFault("no registry is known; set ECR".to_owned()))
    }
}

/// Why there is no authorization: what failed, on what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthFault(pub String);

impl fmt::Display for AuthFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A call to an AWS API: small both ways. Its fields and body hold signatures and tokens, so that
/// it prints as its method and host alone.
#[derive(Clone)]
pub struct ApiCall {
    /// The method.
    pub method: &'static str,
    /// The whole URL.
    pub url: String,
    /// Fields, sent as they are.
    pub headers: Headers,
    /// The body, sent with its `Content-Length`.
    pub body: Vec<u8>,
    /// Longest time to connect, TLS handshake included.
    pub connect_timeout: Duration,
    /// Longest time from start to end.
    pub timeout: Duration,
    /// False for metadata addresses, which no outbound proxy may see.
    pub through_proxy: bool,
}

impl fmt::Debug for ApiCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, client::origin(&self.url))
    }
}

/// The reply to an [`ApiCall`], which may hold a token; it prints as its status alone.
#[derive(Clone)]
pub struct ApiReply {
    /// The status.
    pub status: u16,
    /// The fields.
    pub headers: Headers,
    /// The body, at most [`client::API_BODY_BYTES_MAX`].
    pub body: Vec<u8>,
    /// Wall clock when the call was sent.
    pub sent: SystemTime,
    /// Wall clock when the reply had come.
    pub received: SystemTime,
}

impl fmt::Debug for ApiReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)
    }
}

/// Makes calls to AWS APIs. Blocks for [`ApiCall::timeout`] at the longest.
pub trait Api: Send + Sync {
    /// Makes the call; any status is a reply.
    ///
    /// # Errors
    /// When no whole reply came: the stage and the reason.
    fn call(&self, call: &ApiCall) -> Result<ApiReply, UpstreamError>;

    /// The addresses of `host` (a name or an address, in brackets or not). Blocks until `deadline`
    /// at the longest. For callers that must know where a name leads before they send a secret.
    ///
    /// # Errors
    /// When it has none, or none in time.
    fn addresses(&self, host: &str, deadline: Instant) -> Result<Vec<IpAddr>, UpstreamError>;
}

impl<T: Api + ?Sized> Api for Arc<T> {
    fn call(&self, call: &ApiCall) -> Result<ApiReply, UpstreamError> {
        (**self).call(call)
    }

    fn addresses(&self, host: &str, deadline: Instant) -> Result<Vec<IpAddr>, UpstreamError> {
        (**self).addresses(host, deadline)
    }
}

/// Why no reply came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamError {
    /// Where it failed.
    pub stage: Stage,
    /// Whom we called: scheme, host and port, never path or query.
    pub to: String,
    /// The reason in words.
    pub reason: String,
}

impl UpstreamError {
    /// A call to `registry` failed.
    pub fn at(registry: &Registry, stage: Stage, reason: String) -> Self {
        let to = registry.url();
        Self { stage, to, reason }
    }
}

/// Where an exchange with upstream failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// No authorization to send.
    Authorize,
    /// The client's own body failed or ended early.
    ClientBody,
    /// No connection.
    Connect,
    /// A redirect that may not be followed, or whose target refuses.
    Redirect,
    /// The registry refuses an authorization that is fresh.
    Refused,
    /// The name has no address.
    Resolve,
    /// The connection broke, or what came was not HTTP.
    Transfer,
    /// A time-out.
    Timeout,
    /// A certificate or handshake.
    Tls,
    /// Too many exchanges at a time.
    Queue,
}

impl Stage {
    /// True when the registry could not be reached at all, so that others need not try at once.
    pub const fn is_out_of_reach(self) -> bool {
        matches!(
            self,
            Self::Connect | Self::Resolve | Self::Timeout | Self::Tls
        )
    }

    /// One word for logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Authorize => "authorize",
            Self::ClientBody => "client-body",
            Self::Connect => "connect",
            Self::Queue => "queue",
            Self::Redirect => "redirect",
            Self::Refused => "authorization refused",
            Self::Resolve => "resolve",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::Transfer => "transfer",
        }
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} failed for {}: {}",
            self.stage.name(),
            self.to,
            self.reason
        )
    }
}

impl std::error::Error for UpstreamError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_replies_print_no_secret() {
        let headers = Headers::from_iter([("authorization", "AWS4 hunter2")]);
        let call = ApiCall {
            method: "POST",
            url: "https://sts.example/?Token=hunter2".into(),
            headers: headers.clone(),
            body: b"hunter2".to_vec(),
            connect_timeout: Duration::ZERO,
            timeout: Duration::ZERO,
            through_proxy: true,
        };
        assert_eq!(format!("{call:?}"), "POST https://sts.example");
        let (sent, received) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
        let reply = ApiReply {
            status: 200,
            headers,
            body: b"hunter2".to_vec(),
            sent,
            received,
        };
        assert_eq!(format!("{reply:?}"), "200");
    }
}
