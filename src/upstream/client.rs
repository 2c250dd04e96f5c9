//! HTTP out. Owns: ureq (nobody but this folder names it), the connection pool, TLS roots, time
//! limits of each stage, what an error means. Must not: follow redirects, add an authorization, or
//! retry anything but a connection that had gone stale in the pool.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ureq::http;
use ureq::tls::{TlsConfig, TlsProvider};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver as UreqResolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::{Agent, SendBody};

use super::address_rule::AddressRule;
use super::api::{API_BODY_BYTES_MAX, Api, ApiCall, ApiReply, origin};
use super::connector::{self, Tls, explain_407, proxy_of};
use super::early::{self, Broken};
use super::error::{Stage, UpstreamError};
use super::fault::{ConnectorError, classify};
use super::incoming::Incoming;
use super::outbound::Proxies;
use super::resolver::{LOOKUP_TIMEOUT, Resolver};
use super::roots::read_roots;
use super::steps::log_answer;
use super::tcp;
use crate::log::{self, Level};
use crate::message::{Headers, RequestBody};

/// Longest time to connect, TLS handshake included: two lost SYNs, and with a head at its own limit
/// still under the 30 s after which containerd gives up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest wait for the next piece of a body, in either direction.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for upstream to take anything more of an upload. Less than [`IDLE_TIMEOUT`]: a
/// registry that has answered and takes no more is only heard then, and the kernel may take small
/// pieces for another such time or two before it takes nothing.
const UPLOAD_WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// Buffers of one connection, each way: one copy's worth.
const BUFFER_BYTES: usize = 64 * 1024;
/// Largest head taken from upstream.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Idle connections kept in all and per host at the most: as many as a busy node uses at a time.
pub const POOL_MAX: usize = 64;
/// Idle connections are closed before the load balancers in front of ECR and S3 do it.
const POOL_AGE_MAX: Duration = Duration::from_secs(20);
/// ureq takes this many addresses of a host, and panics at the next.
const ADDRESSES_MAX: usize = 16;

/// One request to one host, without its body.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// The method.
    pub method: &'a str,
    /// The whole URL.
    pub url: &'a str,
    /// Fields, without framing.
    pub headers: &'a Headers,
    /// Until when the reply's head must have come; connecting counts, sending a body does not.
    pub head_deadline: Instant,
    /// The body must have come by then, too: it is read whole before a client gets a head.
    pub whole: bool,
    /// Which addresses the host may have.
    pub addresses: AddressRule,
}

/// Sends requests by HTTP.
pub struct Client {
    /// For hosts that the operator gave, and AWS APIs.
    agent: Agent,
    /// Agents that allow fewer addresses. Each has a pool of its own, so that no request gets a
    /// connection that its own rule forbids.
    not_metadata: Agent,
    not_local: Agent,
    /// For requests that no proxy may see.
    direct: Agent,
    names: CheckedLookup,
}

impl Client {
    /// Builds the client, with up to `pool` idle connections. `ca_bundle` takes the place of the
    /// system's or built-in roots.
    ///
    /// # Errors
    /// When the bundle cannot be read or holds no certificate.
    pub fn new(
        resolver: Resolver,
        proxies: Proxies,
        ca_bundle: Option<&Path>,
        pool: usize,
    ) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(read_roots(ca_bundle)?)
            .client_cert(None)
            .use_sni(true)
            .disable_verification(false)
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(false)
            .ip_family(ureq::config::IpFamily::Any)
            .tls_config(tls)
            .proxy(None)
            .no_delay(true)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .save_redirect_history(false)
            .user_agent("")
            .accept("")
            .accept_encoding("")
            .timeout_global(None)
            .timeout_per_call(None)
            .timeout_per_read(Some(IDLE_TIMEOUT))
            .timeout_per_write(Some(IDLE_TIMEOUT))
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_send_request(Some(IDLE_TIMEOUT))
            .timeout_send_body(None)
            .timeout_recv_response(None)
            .timeout_recv_body(None)
            .max_response_header_size(HEAD_BYTES_MAX)
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .max_idle_connections(pool)
            .max_idle_connections_per_host(pool)
            .max_idle_age(POOL_AGE_MAX)
            .allow_non_standard_methods(false)
            .build();
        let tls = Tls::default();
        let agent = |names: CheckedLookup| {
            let connector = connector::connector(Arc::clone(&names.proxies), &tls);
            Agent::with_parts(config.clone(), connector, names)
        };
        let names = CheckedLookup {
            resolver,
            proxies: Arc::new(proxies),
            rule: AddressRule::Any,
        };
        let direct = CheckedLookup {
            proxies: Arc::default(),
            ..names.clone()
        };
        Ok(Self {
            agent: agent(names.clone()),
            not_metadata: agent(names.under(AddressRule::NotMetadata)),
            not_local: agent(names.under(AddressRule::NotLocal)),
            direct: agent(direct),
            names,
        })
    }

    /// True for a client that connects to nothing (`OFFLINE`).
    pub const fn is_offline(&self) -> bool {
        self.names.resolver.is_closed()
    }

    const fn agent(&self, rule: AddressRule) -> &Agent {
        match rule {
            AddressRule::Any => &self.agent,
            AddressRule::NotMetadata => &self.not_metadata,
            AddressRule::NotLocal => &self.not_local,
        }
    }

    /// Sends one request without a body and waits for the reply's head. Blocks until then.
    ///
    /// # Errors
    /// The stage that failed, and why.
    pub fn send(&self, outgoing: Outgoing<'_>) -> Result<Incoming, UpstreamError> {
        let to = origin(outgoing.url);
        self.look_up(outgoing, &to)?;
        let begun = Instant::now();
        let sent = self.send_once(&to, outgoing, POOL_AGE_MAX);
        log_answer(&to, outgoing.method, begun, sent.as_ref());
        let broken = sent
            .as_ref()
            .is_err_and(|error| error.stage == Stage::Transfer);
        if broken && is_repeatable(outgoing.method) {
            // Its peer has closed a pooled connection, and with it perhaps all others of this
            // origin, as after a load balancer's failover. So they are dropped.
            let begun = Instant::now();
            let again = self.send_once(&to, outgoing, Duration::ZERO);
            log_answer(&to, outgoing.method, begun, again.as_ref());
            return again;
        }
        sent
    }

    /// `pool_age_max`: a connection that was idle for so long is not used again, but closed.
    fn send_once(
        &self,
        to: &str,
        outgoing: Outgoing<'_>,
        pool_age_max: Duration,
    ) -> Result<Incoming, UpstreamError> {
        let request = builder(outgoing);
        // Without a length, ureq would send these as chunked.
        let (request, body) = match outgoing.method {
            "PATCH" | "POST" | "PUT" => {
                let empty = SendBody::from_owned_reader(io::empty());
                (request.header("Content-Length", 0), empty)
            }
            _ => (request, SendBody::none()),
        };
        let request = request
            .body(body)
            .map_err(|fault| classify(&fault.into(), to.into()))?;
        let left = left(to, outgoing.head_deadline)?;
        let agent = self.agent(outgoing.addresses);
        let request = agent
            .configure_request(request)
            .max_idle_age(pool_age_max)
            .timeout_connect(Some(left.min(CONNECT_TIMEOUT)))
            .timeout_recv_response(Some(left))
            .timeout_global(outgoing.whole.then_some(left))
            .build();
        let reply = if is_repeatable(outgoing.method) {
            tcp::give_up_lost_peers(|| agent.run(request))
        } else {
            agent.run(request)
        };
        let reply = reply.map(convert_reply);
        let reply = reply.map_err(|fault| classify(&fault, to.into()))?;
        self.refuse_proxy_407(outgoing.url, reply)
    }

    /// Sends one request, streaming its body, and waits up to `head_timeout` after the body for
    /// the reply's head. Blocks until then.
    ///
    /// # Errors
    /// The stage that failed, and why.
    pub fn send_with_body(
        &self,
        outgoing: Outgoing<'_>,
        body: &mut RequestBody<'_>,
        head_timeout: Duration,
    ) -> Result<Incoming, UpstreamError> {
        let (to, begun) = (origin(outgoing.url), Instant::now());
        let sent = self.send_body_to(&to, outgoing, body, head_timeout);
        log_answer(&to, outgoing.method, begun, sent.as_ref());
        sent
    }

    fn send_body_to(
        &self,
        to: &str,
        outgoing: Outgoing<'_>,
        body: &mut RequestBody<'_>,
        head_timeout: Duration,
    ) -> Result<Incoming, UpstreamError> {
        self.look_up(outgoing, to)?;
        let agent = self.agent(outgoing.addresses);
        let mut request = builder(outgoing);
        if let Some(length) = body.length() {
            request = request.header("Content-Length", length);
        }
        let mut body = LengthChecked {
            remaining: body.length(),
            body,
            failed: false,
        };
        let request = request
            .body(SendBody::from_reader(&mut body))
            .map_err(|fault| classify(&fault.into(), to.into()))?;
        let request = agent
            .configure_request(request)
            .timeout_connect(Some(left(to, outgoing.head_deadline)?.min(CONNECT_TIMEOUT)))
            .timeout_recv_response(Some(head_timeout))
            .timeout_per_read(Some(head_timeout))
            .timeout_per_write(Some(UPLOAD_WRITE_TIMEOUT))
            .build();
        let (sent, broken) = early::run_upload(|| agent.run(request));
        let fault = match sent {
            Ok(reply) => return self.refuse_proxy_407(outgoing.url, convert_reply(reply)),
            Err(fault) => fault,
        };
        if body.failed {
            let why = "the client's body ended early";
            return Err(UpstreamError::new(Stage::ClientBody, to, why));
        }
        match broken.and_then(read_refusal) {
            Some(refusal) => self.refuse_proxy_407(outgoing.url, refusal),
            None => Err(classify(&fault, to.into())),
        }
    }

    /// The outbound proxy that leads to `url`, without its login; none when it is reached directly.
    pub fn outbound_proxy(&self, url: &str) -> Option<String> {
        let uri = url.parse().ok()?;
        let proxy = proxy_of(&self.names.proxies, &uri)?;
        Some(format!("{} ({})", proxy.shown, proxy.setting))
    }

    /// Host, port and description of the outbound proxy that leads to `url`; none when it is
    /// reached directly.
    pub fn outbound_proxy_address(&self, url: &str) -> Option<(String, u16, String)> {
        let uri = url.parse().ok()?;
        let proxy = proxy_of(&self.names.proxies, &uri)?;
        let host = proxy.host.trim_matches(['[', ']']).to_owned();
        Some((host, proxy.port, self.outbound_proxy(url)?))
    }

    /// Looks the name up before ureq does, so that the time it takes counts for the deadline.
    fn look_up(&self, outgoing: Outgoing<'_>, to: &str) -> Result<(), UpstreamError> {
        let bad = |error: http::uri::InvalidUri| {
            classify(&http::Error::from(error).into(), to.to_owned())
        };
        let uri = outgoing.url.parse().map_err(bad)?;
        let names = self.names.under(outgoing.addresses);
        let begun = Instant::now();
        let found = names.addresses(&uri, outgoing.head_deadline);
        let found = found.map_err(|fault| classify(&fault, to.to_owned()))?;
        if log::enabled(Level::Debug) {
            let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
            let (shown, took) = (shown.join(","), begun.elapsed().as_millis());
            let fields: [log::Field<'_>; 3] = [("to", &to), ("addresses", &shown), ("ms", &took)];
            log::debug("name looked up", &fields);
        }
        Ok(())
    }

    /// A proxy's own 407 instead of the target's answer is no answer.
    fn refuse_proxy_407(&self, url: &str, reply: Incoming) -> Result<Incoming, UpstreamError> {
        if reply.status != 407 {
            return Ok(reply);
        }
        let uri: Option<http::Uri> = url.parse().ok();
        let proxy = uri.and_then(|uri| Some(explain_407(proxy_of(&self.names.proxies, &uri)?)));
        proxy.map_or(Ok(reply), |reason| {
            Err(UpstreamError::new(Stage::Connect, origin(url), reason))
        })
    }
}

/// ureq's view of name look-ups: called for every request, also when a pooled connection is then
/// used. Where a proxy leads to the target, the proxy looks that up, and we the proxy.
#[derive(Debug, Clone)]
struct CheckedLookup {
    resolver: Resolver,
    proxies: Arc<Proxies>,
    /// For targets that are reached directly. A proxy looks up those behind it.
    rule: AddressRule,
}

impl CheckedLookup {
    fn under(&self, rule: AddressRule) -> Self {
        Self {
            rule,
            ..self.clone()
        }
    }

    /// The host and port to connect to for `uri`.
    fn addresses(
        &self,
        uri: &http::Uri,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, ureq::Error> {
        let (host, port, rule) = match proxy_of(&self.proxies, uri) {
            Some(proxy) => (proxy.host.as_str(), proxy.port, AddressRule::Any),
            None => {
                let default = if uri.scheme_str() == Some("http") {
                    80
                } else {
                    443
                };
                let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
                (host, uri.port_u16().unwrap_or(default), self.rule)
            }
        };
        let found = self.resolver.addresses(host, deadline);
        let found = found.map_err(|error| ureq::Error::Other(Box::new(error)))?;
        let allowed = found.iter().filter(|found| rule.refusal(**found).is_none());
        let allowed: Vec<_> = allowed.map(|ip| SocketAddr::new(*ip, port)).collect();
        match (allowed.is_empty(), found.first()) {
            (true, Some(address)) => Err(forbid(host, *address, rule)),
            _ => Ok(allowed),
        }
    }
}

fn forbid(host: &str, address: IpAddr, rule: AddressRule) -> ureq::Error {
    let kind = rule.refusal(address).unwrap_or_default();
    let reason = format!(
        "{host} has the address {address}, which is {kind} and never connected to unless ECR or \
         BLOB_HOSTS gives it"
    );
    ConnectorError::boxed(Stage::Resolve, reason)
}

impl UreqResolver for CheckedLookup {
    fn resolve(
        &self,
        uri: &http::Uri,
        _config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let limit = if timeout.after.is_not_happening() {
            LOOKUP_TIMEOUT
        } else {
            *timeout.after
        };
        let found = self.addresses(uri, Instant::now() + limit)?;
        let mut resolved = self.empty();
        for address in found.into_iter().take(ADDRESSES_MAX) {
            resolved.push(address);
        }
        Ok(resolved)
    }
}

impl Api for Client {
    fn call(&self, call: &ApiCall) -> Result<ApiReply, UpstreamError> {
        let to = origin(&call.url);
        let request = http::Request::builder().method(call.method).uri(&call.url);
        let fields = call.headers.iter();
        let request = fields.fold(request, |request, (name, value)| {
            request.header(name, value)
        });
        let (request, body) = match call.method {
            "GET" => (request, SendBody::none()),
            _ => {
                let request = request.header("Content-Length", call.body.len());
                let body = io::Cursor::new(call.body.clone());
                (request, SendBody::from_owned_reader(body))
            }
        };
        let request = request
            .body(body)
            .map_err(|fault| classify(&fault.into(), to.clone()))?;
        let agent = if call.through_proxy {
            &self.agent
        } else {
            &self.direct
        };
        let request = agent
            .configure_request(request)
            .timeout_connect(Some(call.connect_timeout))
            .timeout_global(Some(call.timeout))
            .build();
        let (sent, begun) = (SystemTime::now(), Instant::now());
        let reply = agent.run(request).map(convert_reply);
        let reply = reply.map_err(|fault| classify(&fault, to.clone()));
        log_answer(&to, call.method, begun, reply.as_ref());
        let mut reply = reply?;
        if call.through_proxy {
            reply = self.refuse_proxy_407(&call.url, reply)?;
        }
        let received = SystemTime::now();
        let mut body = Vec::new();
        let read = reply
            .body
            .take(API_BODY_BYTES_MAX + 1)
            .read_to_end(&mut body);
        let fault = match read {
            Ok(_) if body.len() as u64 <= API_BODY_BYTES_MAX => {
                let (status, headers) = (reply.status, reply.headers);
                return Ok(ApiReply {
                    status,
                    headers,
                    body,
                    sent,
                    received,
                });
            }
            Ok(_) => format!("reply is over {API_BODY_BYTES_MAX} bytes"),
            Err(error) => error.to_string(),
        };
        Err(UpstreamError::new(Stage::Transfer, to, fault))
    }

    fn addresses(&self, host: &str, deadline: Instant) -> Result<Vec<IpAddr>, UpstreamError> {
        let found = self.names.resolver.addresses(host, deadline);
        found.map_err(|error| UpstreamError::new(Stage::Resolve, host, error.to_string()))
    }
}

/// ureq waits forever, at full load, for a body that ends before its length; this makes it fail.
struct LengthChecked<'a, 'b> {
    body: &'a mut RequestBody<'b>,
    remaining: Option<u64>,
    failed: bool,
}

impl Read for LengthChecked<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let result = match self.body.read(into) {
            Ok(0) if self.remaining.is_some_and(|left| left > 0) && !into.is_empty() => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            other => other,
        };
        match &result {
            Ok(count) => {
                self.remaining = self
                    .remaining
                    .map(|left| left.saturating_sub(*count as u64));
            }
            Err(error) => self.failed |= error.kind() != io::ErrorKind::Interrupted,
        }
        result
    }
}

/// True for a method whose request may be sent twice (RFC 9110 §9.2.1).
fn is_repeatable(method: &str) -> bool {
    matches!(method, "GET" | "HEAD")
}

fn builder(outgoing: Outgoing<'_>) -> http::request::Builder {
    let start = http::Request::builder()
        .method(outgoing.method)
        .uri(outgoing.url);
    let fields = outgoing.headers.iter();
    fields.fold(start, |request, (name, value)| request.header(name, value))
}

/// A refusal that came before the body was sent. Any other status is no answer to a request that
/// was not sent whole.
fn read_refusal(broken: Broken) -> Option<Incoming> {
    let answer = broken.read_answer()?;
    (400..600).contains(&answer.status).then(|| answer.into())
}

fn convert_reply(reply: http::Response<ureq::Body>) -> Incoming {
    let (parts, body) = reply.into_parts();
    let headers = early::fields(&parts.headers);
    let length = headers
        .first("content-length")
        .and_then(|length| length.parse().ok());
    let length = length.filter(|_| headers.first("transfer-encoding").is_none());
    let status = parts.status.as_u16();
    Incoming {
        status,
        headers,
        body: Box::new(TimedBody(body.into_reader())),
        length,
    }
}

/// ureq's time-outs reach a body's reader as errors of no kind; this names them.
struct TimedBody<R>(R);

impl<R: Read> Read for TimedBody<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into).map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
            if let Some(ureq::Error::Timeout(_)) = inner {
                return io::Error::new(io::ErrorKind::TimedOut, error);
            }
            error
        })
    }
}

fn left(to: &str, deadline: Instant) -> Result<Duration, UpstreamError> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(UpstreamError::new(
            Stage::Timeout,
            to,
            "no time was left to ask",
        )),
        left => Ok(left),
    }
}
