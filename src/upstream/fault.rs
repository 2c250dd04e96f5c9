//! The meaning of ureq's errors. Owns: the stage of each. Must not: decide what follows from it.

use std::io;

use super::error::{Stage, UpstreamError};
use super::resolver::ResolveError;

/// An error of our own connectors, on its way through ureq.
#[derive(Debug)]
pub(super) struct ConnectorError {
    /// The stage that failed.
    pub(super) stage: Stage,
    /// The failure, its host, and the remedy.
    pub(super) reason: String,
}

impl std::fmt::Display for ConnectorError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for ConnectorError {}

impl ConnectorError {
    /// As ureq carries it.
    pub(super) fn boxed(stage: Stage, reason: String) -> ureq::Error {
        ureq::Error::Other(Box::new(Self { stage, reason }))
    }
}

/// Says in which stage a call failed.
pub(super) fn classify(fault: &ureq::Error, to: String) -> UpstreamError {
    let reason = match fault {
        ureq::Error::Other(inner) => inner.to_string(),
        fault => fault.to_string(),
    };
    UpstreamError::new(stage(fault), to, reason)
}

/// The stage of ureq's error.
pub(super) fn stage(fault: &ureq::Error) -> Stage {
    match fault {
        ureq::Error::Timeout(_) => Stage::Timeout,
        ureq::Error::HostNotFound => Stage::Resolve,
        ureq::Error::Other(inner) if inner.is::<ResolveError>() => Stage::Resolve,
        ureq::Error::Other(inner) => inner
            .downcast_ref::<ConnectorError>()
            .map_or(Stage::Transfer, |fault| fault.stage),
        ureq::Error::ConnectionFailed => Stage::Connect,
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::Pem(_) => Stage::Tls,
        ureq::Error::Io(error) => io_stage(error),
        _ => Stage::Transfer,
    }
}

/// The stage of a socket's error.
pub(super) fn io_stage(error: &io::Error) -> Stage {
    if error
        .get_ref()
        .is_some_and(|inner| inner.is::<rustls::Error>())
    {
        return Stage::Tls;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::PermissionDenied => Stage::Connect,
        io::ErrorKind::TimedOut => Stage::Timeout,
        _ => Stage::Transfer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_their_stage() {
        let io = |kind: io::ErrorKind| ureq::Error::Io(kind.into());
        let connector = |stage| ConnectorError::boxed(stage, "why".into());
        for (fault, expected) in [
            (io(io::ErrorKind::ConnectionRefused), Stage::Connect),
            (io(io::ErrorKind::TimedOut), Stage::Timeout),
            (io(io::ErrorKind::ConnectionReset), Stage::Transfer),
            (io(io::ErrorKind::UnexpectedEof), Stage::Transfer),
            (ureq::Error::HostNotFound, Stage::Resolve),
            (ureq::Error::ConnectionFailed, Stage::Connect),
            (ureq::Error::Tls("bad"), Stage::Tls),
            (connector(Stage::Connect), Stage::Connect),
            (connector(Stage::Tls), Stage::Tls),
        ] {
            assert_eq!(stage(&fault), expected, "{fault}");
        }
        let resolve = ureq::Error::Other(Box::new(ResolveError("no address".into())));
        let error = classify(&resolve, "https://r".into());
        assert_eq!(
            (error.stage, error.reason.as_str()),
            (Stage::Resolve, "no address")
        );
        assert_eq!(
            classify(&connector(Stage::Connect), "r".into()).reason,
            "why"
        );
    }
}
