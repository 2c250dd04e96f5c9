//! Replies. Owns: the reply's head, framing (`Content-Length`, chunks, or the end of the
//! connection), and cutting a reply whose body ends early. Must not: change what a reply means.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::time::SystemTime;

use super::socket::ClientSocket;
use crate::message::{Body, Piece, Pieces, Reply};
use crate::metrics;
use crate::transfers::Running;

/// Bytes copied at a time from a streaming body: enough for full speed, and few enough that the
/// time limit of one write limits how slowly a client may read.
const COPY_BYTES: usize = 64 * 1024;
/// Bytes reserved for the head of a reply; a usual head fits.
const HEAD_BYTES: usize = 1024;
/// Fields that only the door writes.
const FRAMING_FIELDS: [&str; 4] = [
    "Connection",
    "Content-Length",
    "Keep-Alive",
    "Transfer-Encoding",
];

/// The facts about a request that its reply depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplyContext<'a> {
    /// HTTP/1.1; otherwise HTTP/1.0.
    pub http11: bool,
    /// The request was a HEAD: the reply carries a body's fields, not its bytes.
    pub head_only: bool,
    /// The connection stays open afterwards.
    pub keep_alive: bool,
    /// The request's id.
    pub id: &'a str,
}

/// How writing went.
#[derive(Debug)]
pub(super) struct Written {
    /// Body bytes written.
    pub bytes: u64,
    /// Why the reply is not whole; none when it is.
    pub fault: Option<WriteFault>,
    /// The connection may carry another request.
    pub keep_alive: bool,
}

/// Why a reply is not whole.
#[derive(Debug)]
pub(super) enum WriteFault {
    /// The client went away or took nothing.
    Client(io::Error),
    /// The body's source failed or ended early; the close must be a reset.
    Source(String),
}

/// Body bytes that the client got.
struct Sent<'a> {
    bytes: u64,
    /// The counter in which others see them.
    transfer: Option<&'a Running>,
}

impl Sent<'_> {
    fn add(&mut self, count: u64) {
        self.bytes += count;
        if let Some(transfer) = self.transfer {
            transfer.add(count);
        }
    }
}

/// How the client learns where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReplyFraming {
    /// 1xx, 204, 304: neither body nor length.
    None,
    Length(u64),
    Chunked,
    /// The connection ends with the body: HTTP/1.0 without a length.
    Close,
}

/// Writes `reply`; `transfer` counts what the client has got of its body. After a fault the
/// connection must be closed.
pub(super) fn write(
    socket: &mut ClientSocket,
    reply: Reply,
    transfer: Option<&Running>,
    context: ReplyContext<'_>,
) -> Written {
    let framing = choose_framing(&reply, context);
    let keep_alive = context.keep_alive && framing != ReplyFraming::Close;
    let mut head = format_head(&reply, context, framing, keep_alive).into_bytes();
    let bodiless = context.head_only || framing == ReplyFraming::None;
    let mut sent = Sent { bytes: 0, transfer };
    let result = match reply.body {
        Body::Bytes(body) if !bodiless => {
            sent.bytes = body.len() as u64;
            // A small reply goes out in one packet. A large one is not copied for each reader.
            let first = body.len().min(COPY_BYTES);
            let (first, rest) = body.split_at_checked(first).unwrap_or_default();
            head.extend_from_slice(first);
            let written = socket
                .write_all(&head)
                .and_then(|()| socket.write_all(rest));
            written.map_err(WriteFault::Client)
        }
        Body::Stream { mut reader, .. } if !bodiless => socket
            .write_all(&head)
            .map_err(WriteFault::Client)
            .and_then(|()| copy_stream(socket, &mut *reader, framing, &mut sent)),
        Body::Pieces { mut pieces, .. } if !bodiless => {
            let written = match pieces.is_ready() {
                true => socket.write_with_more(&head),
                false => socket.write_all(&head),
            };
            written
                .map_err(WriteFault::Client)
                .and_then(|()| send_pieces(socket, &mut *pieces, framing, &mut sent))
        }
        Body::Empty { length: Some(1..) } if !bodiless => Err(WriteFault::Source(
            "a body was announced and is not there".to_owned(),
        )),
        Body::Bytes(_) | Body::Empty { .. } | Body::Pieces { .. } | Body::Stream { .. } => {
            socket.write_all(&head).map_err(WriteFault::Client)
        }
    };
    let fault = result.err();
    if fault.is_some() {
        metrics::REPLIES_CUT.inc();
        socket.reset_on_close();
    }
    Written {
        bytes: sent.bytes,
        keep_alive: keep_alive && fault.is_none(),
        fault,
    }
}

fn choose_framing(reply: &Reply, context: ReplyContext<'_>) -> ReplyFraming {
    match (reply.status, reply.body.length()) {
        (100..200 | 204 | 304, _) => ReplyFraming::None,
        (_, Some(length)) => ReplyFraming::Length(length),
        // A reply to HEAD has no body. When its length is unknown, it has no length either.
        (_, None) if context.head_only => ReplyFraming::None,
        (_, None) if context.http11 => ReplyFraming::Chunked,
        (_, None) => ReplyFraming::Close,
    }
}

fn format_head(
    reply: &Reply,
    context: ReplyContext<'_>,
    framing: ReplyFraming,
    keep_alive: bool,
) -> String {
    let mut text = String::with_capacity(HEAD_BYTES);
    let reason = reason_phrase(reply.status);
    let _ = write!(text, "HTTP/1.1 {} {reason}\r\n", reply.status);
    for (name, value) in reply.headers.iter() {
        let own = FRAMING_FIELDS
            .iter()
            .any(|field| field.eq_ignore_ascii_case(name));
        // A field that could end the head or begin another field is left out.
        let clean = |text: &str| {
            !text
                .bytes()
                .any(|byte| byte.is_ascii_control() && byte != b'\t')
        };
        if !own && clean(name) && clean(value) {
            let _ = write!(text, "{name}: {value}\r\n");
        }
    }
    if reply.headers.first("Date").is_none() {
        let _ = write!(
            text,
            "Date: {}\r\n",
            httpdate::fmt_http_date(SystemTime::now())
        );
    }
    let _ = match framing {
        ReplyFraming::None | ReplyFraming::Close => Ok(()),
        ReplyFraming::Length(length) => write!(text, "Content-Length: {length}\r\n"),
        ReplyFraming::Chunked => write!(text, "Transfer-Encoding: chunked\r\n"),
    };
    let _ = write!(text, "X-Request-Id: {}\r\n", context.id);
    if !keep_alive {
        text.push_str("Connection: close\r\n");
    } else if !context.http11 {
        text.push_str("Connection: keep-alive\r\n");
    }
    text.push_str("\r\n");
    text
}

/// Copies a streaming body, piece by piece as it comes.
fn copy_stream(
    socket: &mut ClientSocket,
    reader: &mut dyn Read,
    framing: ReplyFraming,
    sent: &mut Sent<'_>,
) -> Result<(), WriteFault> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let left = match framing {
            ReplyFraming::Length(length) => length - sent.bytes,
            ReplyFraming::None | ReplyFraming::Chunked | ReplyFraming::Close => u64::MAX,
        };
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .clamp(1, COPY_BYTES);
        let into = buffer.get_mut(..most).unwrap_or_default();
        let count = match reader.read(into) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(WriteFault::Source(error.to_string())),
        };
        let piece = into.get(..count).unwrap_or_default();
        match (framing, count) {
            (ReplyFraming::Length(_), 0) if left > 0 => {
                return Err(WriteFault::Source(format!("body ended {left} bytes early")));
            }
            // The source is still read to its end: only then can its connection be used again.
            (ReplyFraming::Length(_), 0) => return Ok(()),
            (ReplyFraming::Length(length), _) if left == 0 => {
                return Err(WriteFault::Source(format!(
                    "body is longer than its {length} bytes"
                )));
            }
            (ReplyFraming::Chunked, 0) => {
                return socket.write_all(b"0\r\n\r\n").map_err(WriteFault::Client);
            }
            (_, 0) => return Ok(()),
            (ReplyFraming::Chunked, _) => {
                let mut chunk = format!("{count:x}\r\n").into_bytes();
                chunk.extend_from_slice(piece);
                chunk.extend_from_slice(b"\r\n");
                socket.write_all(&chunk).map_err(WriteFault::Client)?;
            }
            _ => socket.write_all(piece).map_err(WriteFault::Client)?,
        }
        sent.add(count as u64);
    }
}

/// Sends a body piece by piece. Files go out without being copied, unless pieces need framing.
fn send_pieces(
    socket: &mut ClientSocket,
    pieces: &mut dyn Pieces,
    framing: ReplyFraming,
    sent: &mut Sent<'_>,
) -> Result<(), WriteFault> {
    let chunked = framing == ReplyFraming::Chunked;
    let frame = |socket: &mut ClientSocket, text: &str| match chunked {
        true => socket
            .write_all(text.as_bytes())
            .map_err(WriteFault::Client),
        false => Ok(()),
    };
    loop {
        let piece = pieces
            .next()
            .map_err(|error| WriteFault::Source(error.to_string()))?;
        let length = match &piece {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::End => {
                return end_pieces(framing, sent.bytes).and_then(|()| frame(socket, "0\r\n\r\n"));
            }
            Piece::File { length, .. } => *length,
        };
        if matches!(framing, ReplyFraming::Length(whole) if length > whole - sent.bytes) {
            return Err(WriteFault::Source(
                "body is longer than its length".to_owned(),
            ));
        }
        if length == 0 {
            continue;
        }
        frame(socket, &format!("{length:x}\r\n"))?;
        match piece {
            Piece::Bytes(bytes) => {
                socket.write_all(bytes).map_err(WriteFault::Client)?;
                sent.add(length);
            }
            Piece::End => {}
            Piece::File {
                file,
                offset,
                length,
            } => send_file(socket, file, offset, length, sent)?,
        }
        frame(socket, "\r\n")?;
    }
}

fn end_pieces(framing: ReplyFraming, sent: u64) -> Result<(), WriteFault> {
    match framing {
        ReplyFraming::Length(length) if sent < length => Err(WriteFault::Source(format!(
            "body ended {} bytes early",
            length - sent
        ))),
        _ => Ok(()),
    }
}

/// Sends a part of a file. Counts while it sends, since the client may leave half-way.
fn send_file(
    socket: &mut ClientSocket,
    file: &File,
    offset: u64,
    length: u64,
    sent: &mut Sent<'_>,
) -> Result<(), WriteFault> {
    let (mut done, mut buffer) = (0, Vec::new());
    while done < length {
        match socket.send_file(file, offset + done, length - done, &mut buffer) {
            Ok(0) => {
                return Err(WriteFault::Source(
                    "the cached file is too short".to_owned(),
                ));
            }
            Ok(count) => {
                done += count;
                sent.add(count);
            }
            Err(error) => return Err(WriteFault::Client(error)),
        }
    }
    Ok(())
}

/// Reason phrases of RFC 9110 §15; clients ignore them, people read them.
const fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::limits::DoorLimits;
    use crate::message::{Headers, LogNote};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    fn context(http11: bool, head_only: bool) -> ReplyContext<'static> {
        ReplyContext {
            http11,
            head_only,
            keep_alive: true,
            id: "1",
        }
    }

    fn reply(status: u16, body: Body) -> Reply {
        Reply {
            status,
            headers: Headers::new(),
            body,
            outcome: LogNote::default(),
        }
    }

    fn stream(bytes: &'static [u8], length: Option<u64>) -> Body {
        Body::Stream {
            reader: Box::new(bytes),
            length,
        }
    }

    /// The bytes that the client gets, and whether the connection ended without a reset.
    fn written(reply: Reply, context: ReplyContext<'_>) -> (String, bool, Written) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Arc::new(listener.accept().unwrap().0.into());
        let mut socket = ClientSocket::new(stream, &DoorLimits::new(1)).unwrap();
        let written = write(&mut socket, reply, None, context);
        drop(socket);
        let mut got = Vec::new();
        let clean = client.read_to_end(&mut got).is_ok();
        (String::from_utf8(got).unwrap(), clean, written)
    }

    #[test]
    fn bytes_have_a_length() {
        let (got, clean, written) = written(Reply::new(200, "a/b", "hello"), context(true, false));
        assert!(
            got.starts_with("HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nDate: "),
            "{got}"
        );
        assert!(
            got.ends_with("\r\nContent-Length: 5\r\nX-Request-Id: 1\r\n\r\nhello"),
            "{got}"
        );
        assert!(clean && written.keep_alive && written.bytes == 5);
    }

    #[test]
    fn a_head_request_gets_the_length_alone() {
        let (got, _, _) = written(Reply::new(200, "a/b", "hello"), context(true, true));
        assert!(
            got.contains("Content-Length: 5\r\n") && got.ends_with("\r\n\r\n"),
            "{got}"
        );
        let (got, _, _) = written(
            reply(
                200,
                Body::Empty {
                    length: Some(70_000),
                },
            ),
            context(true, true),
        );
        assert!(
            got.contains("Content-Length: 70000\r\n") && got.ends_with("\r\n\r\n"),
            "{got}"
        );
        let (got, _, _) = written(
            reply(200, Body::Empty { length: None }),
            context(true, true),
        );
        assert!(
            !got.contains("Content-Length") && !got.contains("chunked"),
            "{got}"
        );
    }

    #[test]
    fn a_stream_without_length_is_chunked_and_in_http_1_0_ends_with_the_connection() {
        let (got, clean, _) = written(reply(200, stream(b"hello", None)), context(true, false));
        assert!(
            got.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n") && clean,
            "{got}"
        );
        let (got, clean, done) = written(reply(200, stream(b"hello", None)), context(false, false));
        assert!(
            got.contains("Connection: close\r\n") && !got.contains("chunked"),
            "{got}"
        );
        assert!(got.ends_with("\r\n\r\nhello") && clean && !done.keep_alive);
    }

    #[test]
    fn a_stream_that_ends_early_is_cut() {
        let (_, clean, done) = written(reply(200, stream(b"hell", Some(5))), context(true, false));
        assert!(!clean && !done.keep_alive);
        assert!(matches!(done.fault, Some(WriteFault::Source(_))));
    }

    #[test]
    fn a_file_that_is_too_short_counts_what_was_sent() {
        struct Short(File);
        impl Pieces for Short {
            fn next(&mut self) -> io::Result<Piece<'_>> {
                Ok(Piece::File {
                    file: &self.0,
                    offset: 0,
                    length: u64::MAX,
                })
            }
        }
        let file = File::open("Cargo.toml").unwrap();
        let size = file.metadata().unwrap().len();
        let body = Body::Pieces {
            pieces: Box::new(Short(file)),
            length: Some(u64::MAX),
        };
        let (_, clean, done) = written(reply(200, body), context(true, false));
        // bug: a reply that was cut in its first piece was logged with `bytes=0`.
        assert!(!clean && done.bytes == size, "{}", done.bytes);
    }

    #[test]
    fn a_stream_that_fails_is_cut_without_a_last_chunk() {
        struct Failing(bool);
        impl Read for Failing {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                if std::mem::take(&mut self.0) {
                    into[..2].copy_from_slice(b"he");
                    return Ok(2);
                }
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let body = Body::Stream {
            reader: Box::new(Failing(true)),
            length: None,
        };
        let (got, clean, _) = written(reply(200, body), context(true, false));
        assert!(!clean && !got.contains("\r\n0\r\n"), "{got}");
    }

    #[test]
    fn a_stream_that_goes_on_past_its_length_is_cut() {
        let (got, clean, done) =
            written(reply(200, stream(b"hello!", Some(5))), context(true, false));
        assert!(!clean && !got.ends_with('!'), "{got}");
        assert!(matches!(done.fault, Some(WriteFault::Source(_))));
    }

    #[test]
    fn not_modified_and_no_content_have_no_framing() {
        for status in [204, 304] {
            let (got, clean, done) = written(reply(status, Body::empty()), context(true, false));
            assert!(
                !got.contains("Content-Length") && !got.contains("chunked"),
                "{got}"
            );
            assert!(clean && done.keep_alive);
        }
    }

    #[test]
    fn a_field_cannot_split_the_reply() {
        let split = reply(200, Body::empty())
            .with("X-Evil", "1\r\nSet-Cookie: a")
            .with("X-Ok", "1");
        let (got, _, _) = written(split, context(true, false));
        assert!(
            !got.contains("Set-Cookie") && got.contains("X-Ok: 1\r\n"),
            "{got}"
        );
    }
}
