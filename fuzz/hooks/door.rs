//! The entry points of the fuzzer at the door, compiled for it and for tests. Owns: the rules for
//! any bytes, and their outcome in words. Must not: be part of the program.
#![expect(clippy::expect_used, reason = "a panic is what the fuzzer finds")]

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::body::BodyReader;
use super::head::{BodyFraming, HeadParser};
use super::limits::{DoorLimits, HEAD_BYTES_MAX, HEAD_FIELDS_MAX};
use super::socket::ClientSocket;
use super::stream::ClientStream;

/// A head, whole or not. What the door passes, it passes again. Scanning it piece by piece comes to
/// the same as at once. Returns what the door read.
///
/// # Panics
/// When that does not hold.
pub fn head(bytes: &[u8]) -> String {
    let at_once = HeadParser::default().advance(bytes);
    let mut parser = HeadParser::default();
    let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
    if parser.advance(half) == Ok(None) {
        assert_eq!(parser.advance(bytes), at_once, "two readings differ");
    }
    let head = match at_once {
        Ok(Some((head, _))) => head,
        Ok(None) => return "more".to_owned(),
        Err(refusal) => return format!("refused {}", refusal.status),
    };
    let fields: String = head
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let again = format!("{} {} HTTP/1.1\r\n{fields}\r\n", head.method, head.target);
    // Without a Host it is no HTTP/1.1. `Host` may be one more than the client sent.
    let has_room = head.headers.len() <= HEAD_FIELDS_MAX && again.len() < HEAD_BYTES_MAX;
    if head.headers.first("Host").is_some() && has_room {
        let again = HeadParser::default().advance(again.as_bytes());
        let (again, _) = again.ok().flatten().expect("the door passes what it read");
        assert_eq!(
            (&again.method, &again.target, &again.headers),
            (&head.method, &head.target, &head.headers)
        );
    }
    let framing = match head.framing {
        BodyFraming::Chunked => "chunked".to_owned(),
        BodyFraming::Length(length) => format!("length {length}"),
    };
    let fields = format!("\r\n{fields}").replace("\r\n", ", ");
    let fields = fields.strip_suffix(", ").unwrap_or_default();
    format!(
        "{} {} http11 {} keep {} continue {} {framing}{fields}",
        head.method, head.target, head.http11, head.keep_alive, head.expects_continue
    )
}

/// A request's body. Reading it ends, its end is one only when the framing says so, and its bytes
/// are those that a plain decoder finds. The first byte says how it is framed. Returns the bytes.
///
/// # Panics
/// When that does not hold.
pub fn body(bytes: &[u8]) -> String {
    let Some((kind, bytes)) = bytes.split_first() else {
        return "nothing".to_owned();
    };
    // More than a socket takes at once would need a second thread.
    let bytes = bytes.get(..bytes.len().min(32 * 1024)).unwrap_or_default();
    let framing = match kind % 2 {
        0 => BodyFraming::Chunked,
        _ => BodyFraming::Length(u64::from(*kind) * 7),
    };
    let (ours, mut theirs) = UnixStream::pair().expect("two sockets");
    theirs.write_all(bytes).expect("room in the socket");
    theirs.shutdown(Shutdown::Write).expect("an end");
    // Everything is in the socket already: nobody waits.
    let limits = DoorLimits::new(1);
    let mut socket =
        ClientSocket::new(Arc::new(ClientStream::Unix(ours)), &limits).expect("a socket");
    let mut reader = BodyReader::new(&mut socket, framing, false, &limits);
    let mut read = Vec::new();
    let result = reader.read_to_end(&mut read);
    assert_eq!(result.is_ok(), reader.is_done(), "an end that is none");
    let expected = match framing {
        BodyFraming::Length(length) => usize::try_from(length)
            .ok()
            .and_then(|length| bytes.get(..length).map(<[u8]>::to_vec)),
        BodyFraming::Chunked => dechunk(bytes),
    };
    match (result, expected) {
        (Ok(_), expected) => {
            assert_eq!(Some(&read), expected.as_ref(), "another body than was sent");
            format!("whole {}", read.escape_ascii())
        }
        (Err(_), None) => format!("broken after {}", read.escape_ascii()),
        // Lines and trailers have limits here that the grammar does not have.
        (Err(error), Some(_)) => {
            let longest = bytes.split(|byte| *byte == b'\n').map(<[u8]>::len).max();
            let is_long = longest > Some(250) || bytes.len() > 8 * 1024;
            assert!(is_long, "a whole body is refused: {error}");
            "over a limit".to_owned()
        }
    }
}

/// A chunked body by the grammar of RFC 9112 §7.1, the plain way; none when it is not whole.
fn dechunk(bytes: &[u8]) -> Option<Vec<u8>> {
    let line = |rest: &mut &[u8]| {
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let line = rest.get(..end)?.to_vec();
        *rest = rest.get(end + 2..)?;
        let odd = line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0));
        (!odd).then_some(line)
    };
    let (mut rest, mut body) = (bytes, Vec::new());
    loop {
        let head = String::from_utf8_lossy(&line(&mut rest)?).into_owned();
        let digits = head.split([' ', '\t', ';']).next()?;
        let extension = head.get(digits.len()..)?;
        let blank = extension.trim_start_matches([' ', '\t']);
        let is_extension = blank.starts_with(';')
            && !extension.contains(|c: char| c.is_ascii_control() && c != '\t');
        if digits.len() > 16 || digits.starts_with('+') || !(extension.is_empty() || is_extension) {
            return None;
        }
        let size = usize::from_str_radix(digits, 16).ok()?;
        if size == 0 {
            break;
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
    while !line(&mut rest)?.is_empty() {}
    Some(body)
}
