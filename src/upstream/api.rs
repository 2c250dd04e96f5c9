//! Calls to AWS APIs. Owns: what such a call and its reply hold, and that neither prints a secret.
//! Must not: sign a call, or know what it is for.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::error::UpstreamError;
use crate::message::Headers;

/// Longest body of an API reply: ECR's token and a session's keys take 4 KiB. It is parsed as a
/// tree, which takes up to twenty times its bytes.
pub const API_BODY_BYTES_MAX: u64 = 128 << 10;

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
        write!(f, "{} {}", self.method, origin(&self.url))
    }
}

/// The reply to an [`ApiCall`], which may hold a token; it prints as its status alone.
#[derive(Clone)]
pub struct ApiReply {
    /// The status.
    pub status: u16,
    /// The fields.
    pub headers: Headers,
    /// The body, at most [`API_BODY_BYTES_MAX`].
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

/// Scheme, host and port of a URL: what may be shown.
pub(super) fn origin(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    let length = url.get(start..).and_then(|rest| rest.find(['/', '?']));
    let end = length.map_or(url.len(), |length| start + length);
    url.get(..end).unwrap_or(url).to_owned()
}

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

    #[test]
    fn origins_leave_paths_and_queries_out() {
        for (url, shown) in [
            ("https://a.b:1/v2/?X-Amz-Signature=s", "https://a.b:1"),
            ("http://a?q", "http://a"),
            ("http://a", "http://a"),
        ] {
            assert_eq!(origin(url), shown);
        }
    }
}
