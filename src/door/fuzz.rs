//! What the fuzzer calls of the door; compiled for it alone. Owns: what must hold of any bytes.
//! Must not: be part of the program.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::body::BodyReader;
use super::head::{BodyFraming, HeadParser};
use super::lanes::Lanes;
use super::limits::DoorLimits;
use super::socket::ClientSocket;
use super::stream::ClientStream;

/// A head, whole or not: what the door passes, tiny_http accepts, and scanning it piece by piece
/// comes to the same as at once.
///
/// # Panics
/// When that does not hold.
pub fn head(bytes: &[u8], lanes: &Lanes) {
    let at_once = HeadParser::default().advance(bytes);
    let mut parser = HeadParser::default();
    let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
    if parser.advance(half) == Ok(None) {
        assert_eq!(parser.advance(bytes), at_once, "two readings differ");
    }
    let Ok(Some((head, _))) = at_once else {
        return;
    };
    assert!(
        lanes.ask(&head.for_lane("fuzz")).is_ok(),
        "tiny_http refused a head that the door passes: {head:?}"
    );
}

/// A request's body: reading it ends, and its end is one only when the framing says so. The first
/// byte says how it is framed.
///
/// # Panics
/// When that does not hold.
pub fn body(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    // More than a socket takes at once would need a second thread.
    let bytes = bytes.get(..bytes.len().min(32 * 1024)).unwrap_or_default();
    let framing = match kind % 2 {
        0 => BodyFraming::Chunked,
        _ => BodyFraming::Length(u64::from(*kind) * 7),
    };
    let Ok((ours, mut theirs)) = UnixStream::pair() else {
        return;
    };
    theirs.write_all(bytes).expect("room in the socket");
    let _ = theirs.shutdown(Shutdown::Write);
    // Everything is in the socket already: nobody waits.
    let limits = DoorLimits::new(1);
    let mut socket =
        ClientSocket::new(Arc::new(ClientStream::Unix(ours)), &limits).expect("a socket");
    let mut reader = BodyReader::new(&mut socket, framing, false, &limits);
    let mut read = Vec::new();
    let result = reader.read_to_end(&mut read);
    assert_eq!(result.is_ok(), reader.is_done(), "an end that is none");
    assert!(read.len() <= bytes.len(), "more came out than went in");
    if let (BodyFraming::Length(length), true) = (framing, reader.is_done()) {
        assert_eq!(read.len() as u64, length);
    }
}
