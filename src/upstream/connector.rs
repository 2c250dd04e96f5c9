//! The connectors under ureq: TCP, outbound proxies, TLS. Owns: how a connection comes about.
//! Must not: look a name up (ureq hands in the addresses, which are the proxy's where there is
//! one), or know what is asked.
//!
//! A proxy opens a tunnel to an https target (RFC 9110 §9.3.6). For an http target it gets the
//! whole URL in the request line (RFC 9112 §3.2.2), since many proxies refuse tunnels to ports
//! other than 443. ureq's own proxies are not used: they know no nets in `NO_PROXY`, and always
//! ask for a tunnel.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::Uri;
use ureq::unversioned::transport::time as ureq_time;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, RustlsConnector, Transport,
};

use super::early;
use super::error::Stage;
use super::fault::{ConnectorError, stage};
use super::outbound::{OutboundProxy, Proxies};
use super::tcp::{self, TcpTransport};
use crate::log;
use crate::oci::Scheme;

/// Largest head of a proxy's answer to CONNECT; squid's are below 1 KiB.
const CONNECT_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Characters of a proxy's reason phrase that are shown at the most.
const REASON_CHARACTERS_MAX: usize = 80;
/// Longest time to connect when ureq names none; it always does.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything below HTTP: a socket, through the proxy where there is one, with TLS where the URL
/// says so.
pub(super) fn connector(proxies: Arc<Proxies>, tls: &Tls) -> impl Connector {
    let target = TargetConnector {
        proxies,
        tls: tls.clone(),
    };
    ().chain(target)
        .chain(early::BelowTls)
        .chain(tls.clone())
        .chain(early::AboveTls)
}

/// The proxy that leads to `uri`, if there is one.
pub(super) fn proxy_of<'a>(proxies: &'a Proxies, uri: &Uri) -> Option<&'a OutboundProxy> {
    let scheme = match uri.scheme_str() {
        Some("http") => Scheme::Http,
        _ => Scheme::Https,
    };
    proxies.proxy_for(scheme, uri.authority()?.as_str())
}

/// TLS by rustls, with one configuration for all connections. All our requests have settings of
/// their own, and for each of those ureq's connector would parse the roots anew.
#[derive(Debug, Clone, Default)]
pub(super) struct Tls(Arc<RustlsConnector>);

impl<In: Transport> Connector<In> for Tls {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let details = with_agent_settings(details, details.uri);
        let begun = Instant::now();
        let wrapped = self.0.connect(&details, chained)?;
        if details.needs_tls() {
            let (to, took) = (authority(details.uri), begun.elapsed().as_millis());
            log::debug("TLS is up", &[("to", &to), ("ms", &took)]);
        }
        Ok(wrapped.map(|transport| Box::new(transport) as Self::Out))
    }
}

/// `details` for `uri`, marked as if all settings were the agent's own.
fn with_agent_settings<'a>(
    details: &'a ConnectionDetails<'_>,
    uri: &'a Uri,
) -> ConnectionDetails<'a> {
    ConnectionDetails {
        uri,
        addrs: details.resolver.empty(),
        config: details.config,
        request_level: false,
        resolver: details.resolver,
        now: details.now,
        timeout: details.timeout,
        current_time: Arc::clone(&details.current_time),
        run_connector: Arc::clone(&details.run_connector),
        register_shutdown: Arc::clone(&details.register_shutdown),
    }
}

/// Connects by TCP to the target, or to the proxy and through it.
#[derive(Debug)]
struct TargetConnector {
    proxies: Arc<Proxies>,
    /// For proxies that speak TLS.
    tls: Tls,
}

impl Connector for TargetConnector {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let proxy = proxy_of(&self.proxies, details.uri);
        let mut transport = dial(details, proxy)?;
        let Some(proxy) = proxy else {
            return Ok(Some(transport));
        };
        if proxy.scheme == Scheme::Https {
            transport = self.secure(details, proxy, transport)?;
        }
        Ok(Some(if details.needs_tls() {
            Box::new(tunnel(details, proxy, transport)?)
        } else {
            Box::new(ToProxy::new(details.uri, proxy, transport))
        }))
    }
}

impl TargetConnector {
    /// TLS with the proxy itself.
    fn secure(
        &self,
        details: &ConnectionDetails<'_>,
        proxy: &OutboundProxy,
        transport: Box<dyn Transport>,
    ) -> Result<Box<dyn Transport>, ureq::Error> {
        let fault = |stage, why: &dyn std::fmt::Display| {
            let reason = format!("TLS with the proxy {}: {why}", proxy.shown);
            ConnectorError::boxed(stage, reason)
        };
        let uri: Uri = proxy
            .shown
            .parse()
            .map_err(|error: ureq::http::uri::InvalidUri| fault(Stage::Tls, &error))?;
        let secured = self
            .tls
            .connect(&with_agent_settings(details, &uri), Some(transport));
        let secured = secured.map_err(|error| fault(stage(&error), &error))?;
        secured.ok_or(ureq::Error::ConnectionFailed)
    }
}

fn dial(
    details: &ConnectionDetails<'_>,
    proxy: Option<&OutboundProxy>,
) -> Result<Box<dyn Transport>, ureq::Error> {
    let left = match left(details).after {
        ureq_time::Duration::Exact(left) => left,
        ureq_time::Duration::NotHappening => CONNECT_TIMEOUT,
    };
    let begun = Instant::now();
    let stream = tcp::connect(&details.addrs, begun + left).map_err(|fault| {
        let reason = match proxy {
            None => format!("no connection to {}", fault.reason),
            Some(proxy) => format!(
                "no connection to the proxy {}: {}",
                proxy.shown, fault.reason
            ),
        };
        ConnectorError::boxed(fault.stage, reason)
    })?;
    if let Ok(address) = stream.peer_addr() {
        let (to, took) = (authority(details.uri), begun.elapsed().as_millis());
        let way = proxy.map_or("none", |proxy| proxy.shown.as_str());
        let fields: [log::Field<'_>; 4] = [
            ("to", &to),
            ("address", &address),
            ("proxy", &way),
            ("ms", &took),
        ];
        log::debug("connected", &fields);
    }
    let config = details.config;
    let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
    Ok(Box::new(TcpTransport::new(stream, buffers)))
}

/// The time that is left for connecting.
fn left(details: &ConnectionDetails<'_>) -> NextTimeout {
    let mut timeout = details.timeout;
    let now = (details.current_time)();
    if let (
        ureq_time::Duration::Exact(limit),
        ureq_time::Instant::Exact(start),
        ureq_time::Instant::Exact(now),
    ) = (timeout.after, details.now, now)
    {
        let left = limit.saturating_sub(now.saturating_duration_since(start));
        timeout.after = ureq_time::Duration::Exact(left);
    }
    timeout
}

/// Asks the proxy for a tunnel to the target.
fn tunnel(
    details: &ConnectionDetails<'_>,
    proxy: &OutboundProxy,
    mut transport: Box<dyn Transport>,
) -> Result<Tunnel, ureq::Error> {
    let target = authority(details.uri);
    let mut head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(authorization) = &proxy.authorization {
        head.push_str("Proxy-Authorization: ");
        head.push_str(authorization.expose());
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    let fault = |error: ureq::Error| {
        let stage = stage(&error);
        let reason = match stage {
            Stage::Timeout => format!("the proxy {} does not answer CONNECT {target}", proxy.shown),
            _ => format!(
                "the proxy {} broke off CONNECT {target}: {error}",
                proxy.shown
            ),
        };
        // Whatever happened, the target was not reached.
        let stage = if stage == Stage::Transfer {
            Stage::Connect
        } else {
            stage
        };
        ConnectorError::boxed(stage, reason)
    };
    send(&mut *transport, head.as_bytes(), || left(details)).map_err(fault)?;
    let answer = read_answer(&mut *transport, || left(details)).map_err(fault)?;
    match parse_status(&answer) {
        Some((200..=299, _)) => Ok(Tunnel(transport)),
        Some((407, _)) => Err(ConnectorError::boxed(Stage::Connect, explain_407(proxy))),
        Some((status, reason)) => Err(ConnectorError::boxed(
            Stage::Connect,
            format!(
                "the proxy {} refused CONNECT {target}: {status} {reason}",
                proxy.shown
            ),
        )),
        None => Err(ConnectorError::boxed(
            Stage::Connect,
            format!("{} does not speak HTTP as a proxy does", proxy.shown),
        )),
    }
}

/// The words for a proxy's 407, with the remedy.
pub(super) fn explain_407(proxy: &OutboundProxy) -> String {
    let (shown, setting) = (&proxy.shown, proxy.setting);
    if proxy.authorization.is_some() {
        format!("the proxy {shown} refuses the user and password in {setting} (407)")
    } else {
        format!(
            "the proxy {shown} wants a login (407); set {setting} to \
             {}://USER:PASSWORD@{}:{}",
            proxy.scheme.as_str(),
            proxy.host,
            proxy.port
        )
    }
}

/// Host and port of a URL, the default port too: CONNECT must name it (RFC 9110 §9.3.6).
fn authority(uri: &Uri) -> String {
    let default = if uri.scheme_str() == Some("http") {
        80
    } else {
        443
    };
    let port = uri.port_u16().unwrap_or(default);
    format!("{}:{port}", uri.host().unwrap_or_default())
}

/// Sends bytes that are not in the transport's own buffer.
fn send(
    transport: &mut dyn Transport,
    bytes: &[u8],
    left: impl Fn() -> NextTimeout,
) -> Result<(), ureq::Error> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let output = transport.buffers().output();
        let (piece, after) = rest.split_at(rest.len().min(output.len()));
        for (to, from) in output.iter_mut().zip(piece) {
            *to = *from;
        }
        transport.transmit_output(piece.len(), left())?;
        rest = after;
    }
    Ok(())
}

/// The head of the proxy's answer; what follows it stays in the buffer.
fn read_answer(
    transport: &mut dyn Transport,
    left: impl Fn() -> NextTimeout,
) -> Result<Vec<u8>, ureq::Error> {
    loop {
        let progress = transport.maybe_await_input(left())?;
        let buffers = transport.buffers();
        let input = buffers.input();
        if let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = input.get(..end).unwrap_or_default().to_vec();
            buffers.input_consume(end + 4);
            return Ok(head);
        }
        if !progress || input.len() > CONNECT_HEAD_BYTES_MAX {
            let kind = std::io::ErrorKind::UnexpectedEof;
            let why = "no whole head came";
            return Err(std::io::Error::new(kind, why).into());
        }
        // Without this the buffer counts as read.
        buffers.input_consume(0);
    }
}

/// Status and reason phrase of a head (RFC 9112 §4).
fn parse_status(head: &[u8]) -> Option<(u16, String)> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let line = String::from_utf8_lossy(line);
    let (version, rest) = line.split_once(' ')?;
    let (status, reason) = rest.split_once(' ').unwrap_or((rest, ""));
    let digits = status.len() == 3 && status.bytes().all(|b| b.is_ascii_digit());
    if !version.starts_with("HTTP/1.") || !digits {
        return None;
    }
    let shown = reason.chars().filter(|c| !c.is_control());
    let reason = shown.take(REASON_CHARACTERS_MAX).collect();
    Some((status.parse().ok()?, reason))
}

/// A connection through a proxy. The target has seen no TLS yet, even where the proxy has.
#[derive(Debug)]
struct Tunnel(Box<dyn Transport>);

impl Transport for Tunnel {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.0.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }
}

/// A connection to a proxy that takes requests for an http target.
struct ToProxy {
    transport: Box<dyn Transport>,
    /// `http://host:port` of the target.
    origin: String,
    /// The `Proxy-Authorization` line, or nothing.
    authorization: String,
    /// True when the next bytes begin a request.
    at_head: bool,
    /// True when something was read since the last write.
    answered: bool,
}

impl ToProxy {
    fn new(uri: &Uri, proxy: &OutboundProxy, transport: Box<dyn Transport>) -> Self {
        let authorization = proxy.authorization.as_ref();
        let line = |value: &str| format!("Proxy-Authorization: {value}\r\n");
        let named = uri.authority().map(|authority| authority.as_str());
        Self {
            transport,
            origin: format!("http://{}", named.unwrap_or_default()),
            authorization: authorization.map_or_else(String::new, |value| line(value.expose())),
            at_head: true,
            answered: false,
        }
    }

    /// `GET /path HTTP/1.1` becomes `GET http://host/path HTTP/1.1`, and the login follows.
    fn rewrite_head(&self, output: &[u8]) -> Option<Vec<u8>> {
        let line = output.iter().position(|byte| *byte == b'\n')? + 1;
        let target = output.iter().position(|byte| *byte == b' ')? + 1;
        let mut head = Vec::with_capacity(output.len() + self.origin.len());
        head.extend_from_slice(output.get(..target)?);
        head.extend_from_slice(self.origin.as_bytes());
        head.extend_from_slice(output.get(target..line)?);
        head.extend_from_slice(self.authorization.as_bytes());
        head.extend_from_slice(output.get(line..)?);
        Some(head)
    }
}

impl Transport for ToProxy {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.transport.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.answered = false;
        if !self.at_head {
            return self.transport.transmit_output(amount, timeout);
        }
        self.at_head = false;
        let output = self.transport.buffers().output();
        let output = output.get(..amount).unwrap_or_default().to_vec();
        let head = self.rewrite_head(&output).ok_or_else(|| {
            let reason = "the request line is longer than the buffer".to_owned();
            ConnectorError::boxed(Stage::Transfer, reason)
        })?;
        send(&mut *self.transport, &head, || timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.answered = true;
        self.transport.await_input(timeout)
    }

    /// ureq asks between two exchanges: after an answer a request comes next. During an upload
    /// `early` asks between two writes, and the body goes on.
    fn is_open(&mut self) -> bool {
        self.at_head |= self.answered;
        self.transport.is_open()
    }
}

impl std::fmt::Debug for ToProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ToProxy({:?})", self.transport)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_status_is_read() {
        let read = |head: &str| parse_status(head.as_bytes());
        let expected = Some((200, "Connection established".to_owned()));
        assert_eq!(
            read("HTTP/1.1 200 Connection established\r\nVia: x"),
            expected
        );
        assert_eq!(read("HTTP/1.0 403"), Some((403, String::new())));
        assert_eq!(read("HTTP/1.1 502 a\u{1b}b"), Some((502, "ab".into())));
        let long = read(&format!("HTTP/1.1 502 {}", "x".repeat(200))).unwrap();
        assert_eq!(long.1.len(), REASON_CHARACTERS_MAX);
        for odd in [
            "",
            "SSH-2.0-x",
            "HTTP/2 200 OK",
            "HTTP/1.1 20 OK",
            "HTTP/1.1 2000",
        ] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_request_names_its_target_whole() {
        let uri: Uri = "http://r.example:5000/v2/".parse().unwrap();
        let to_proxy = |authorization: &str| ToProxy {
            transport: Box::new(Tunnel(Box::new(()))),
            origin: format!("http://{}", uri.authority().unwrap()),
            authorization: authorization.to_owned(),
            at_head: true,
            answered: false,
        };
        let head = b"GET /v2/a?b=http://c HTTP/1.1\r\nHost: r.example:5000\r\n\r\nbody\n";
        let rewritten = to_proxy("P: b\r\n").rewrite_head(head).unwrap();
        let expected = "GET http://r.example:5000/v2/a?b=http://c HTTP/1.1\r\nP: b\r\n\
                        Host: r.example:5000\r\n\r\nbody\n";
        assert_eq!(String::from_utf8(rewritten).unwrap(), expected);
        assert_eq!(to_proxy("").rewrite_head(b"GET /v2/a"), None);
    }

    #[test]
    fn the_port_of_a_tunnel_is_always_said() {
        for (uri, expected) in [
            ("https://r.example/v2/", "r.example:443"),
            ("https://r.example:5000", "r.example:5000"),
            ("https://[::1]/", "[::1]:443"),
        ] {
            assert_eq!(authority(&uri.parse().unwrap()), expected);
        }
    }
}
