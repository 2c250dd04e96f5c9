//! Messages between door, pool and proxy. Owns: [`Request`], [`RequestBody`], [`Answer`],
//! [`Reply`], [`Body`], [`Buffered`], [`Headers`], the [`Decider`] that turns a request into an
//! answer, and the [`Desk`] where an answer waits for its connection. Must not: touch a socket, or
//! know what is on the other side.
//!
//! Locks: [`Desk`]'s one mutex, held for a map operation only.

mod headers;
mod note;
mod peer;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;
use std::sync::{Arc, Mutex, OnceLock};

use crate::budget::Share;
use crate::locked::Locked as _;
use crate::log::{self, RequestScope};
use crate::metrics;
use crate::oci::OciError;
pub use headers::Headers;
pub use note::LogNote;
pub use peer::{Certificate, Entrance, Peer};

/// The byte a worker writes back once the answer is on the [`Desk`].
pub const ANSWERED: u8 = b'k';
/// The byte a worker writes back when it panicked.
pub const PANICKED: u8 = b'p';

/// A request without its body, checked by the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method, as sent (methods are case-sensitive, RFC 9110 §9.1).
    pub method: String,
    /// Origin form: a path, and a query if there was one. Visible ASCII only.
    pub target: String,
    /// End-to-end fields; hop-by-hop fields, framing and `Expect` stay with the door.
    pub headers: Headers,
    /// The connection it came on.
    pub peer: Peer,
    /// Names this request in logs and replies. A client may have chosen it, so it is no key.
    pub id: String,
}

impl Request {
    /// The path of the target, as sent.
    pub fn path(&self) -> &str {
        self.target
            .split_once('?')
            .map_or(self.target.as_str(), |(path, _)| path)
    }

    /// The query of the target without its `?`, as sent.
    pub fn query(&self) -> Option<&str> {
        self.target.split_once('?').map(|(_, query)| query)
    }
}

/// The request's body as the connection receives it. A read blocks at most for the door's idle
/// limit. When the body ends before its framing says so, the read is an error, never an early end.
pub struct RequestBody<'a> {
    reader: &'a mut dyn Read,
    length: Option<u64>,
}

impl<'a> RequestBody<'a> {
    /// `length`: bytes by `Content-Length`, `Some(0)` without a body, `None` when chunked.
    pub fn new(reader: &'a mut dyn Read, length: Option<u64>) -> Self {
        Self { reader, length }
    }

    /// Bytes in all, when the client said so; 0 means that there is no body.
    pub const fn length(&self) -> Option<u64> {
        self.length
    }
}

impl Read for RequestBody<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buf)
    }
}

/// Work that produces the reply. The connection's own thread runs it, since it needs the network, a
/// file, or time.
pub type Deferred = Box<dyn FnOnce(&mut RequestBody<'_>) -> Reply + Send>;

/// A worker's decision.
#[expect(
    clippy::large_enum_variant,
    reason = "it is moved twice in a request, and a box would be made for each"
)]
pub enum Answer {
    /// The reply is known.
    Now(Reply),
    /// The connection's thread gets the reply by running this.
    Later(Deferred),
}

/// The next part of a body that comes from files.
pub enum Piece<'a> {
    /// Bytes in memory.
    Bytes(&'a [u8]),
    /// The body is whole.
    End,
    /// Bytes of a file, which the door may send without copying them.
    File {
        /// The file; its own position is not used.
        file: &'a File,
        /// The position of the first byte.
        offset: u64,
        /// How many there are; at least one.
        length: u64,
    },
}

/// A body that comes piece by piece. Each piece is sent whole before the next is asked for.
pub trait Pieces: Send {
    /// The next piece. Blocks until there is one, at most for the idle limit of the source.
    ///
    /// # Errors
    /// When no more piece will come; the reply is then cut.
    fn next(&mut self) -> io::Result<Piece<'_>>;

    /// True when the next piece is there: the reply's head may wait, and leave together with it.
    fn is_ready(&self) -> bool {
        false
    }
}

/// A complete body: a small one in memory, a large one as a file, which costs no memory however
/// many replies send it. A clone shares it.
#[derive(Debug, Clone)]
pub enum WholeBody {
    /// In memory.
    Bytes(SharedBytes),
    /// Bytes of a file that nobody changes.
    File {
        /// The file; its own position is not used.
        file: Arc<File>,
        /// The position of the first byte.
        offset: u64,
        /// Bytes in all.
        length: u64,
    },
}

impl WholeBody {
    /// Bytes in all.
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { length, .. } => *length,
        }
    }
}

impl From<WholeBody> for Body {
    fn from(body: WholeBody) -> Self {
        match body {
            WholeBody::Bytes(bytes) => Self::Bytes(bytes),
            WholeBody::File {
                file,
                offset,
                length,
            } => Self::Pieces {
                pieces: Box::new(WholeFile {
                    file,
                    offset,
                    left: length,
                }),
                length: Some(length),
            },
        }
    }
}

/// The one piece of a whole file.
struct WholeFile {
    file: Arc<File>,
    offset: u64,
    /// Bytes not given out yet: all or none.
    left: u64,
}

impl Pieces for WholeFile {
    fn is_ready(&self) -> bool {
        self.left > 0
    }

    fn next(&mut self) -> io::Result<Piece<'_>> {
        let (file, offset) = (&*self.file, self.offset);
        Ok(match std::mem::take(&mut self.left) {
            0 => Piece::End,
            length => Piece::File {
                file,
                offset,
                length,
            },
        })
    }
}

/// Bytes in memory that several owners share: a clone copies none of them.
#[derive(Debug, Clone, Default)]
pub struct SharedBytes(Arc<CountedBytes>);

#[derive(Debug, Default)]
struct CountedBytes {
    bytes: Vec<u8>,
    /// The bytes' share of the budget, given back with them.
    share: OnceLock<Share>,
}

impl SharedBytes {
    /// True when they count against a budget.
    pub fn is_counted(&self) -> bool {
        self.0.share.get().is_some()
    }

    /// Counts the bytes against a budget, unless they are counted already.
    pub fn count(&self, share: Share) {
        // On Err the bytes have a share already, and this one is given back.
        let _ = self.0.share.set(share);
    }

    /// Bytes that count against a budget for as long as anybody holds them.
    pub fn with_share(bytes: Vec<u8>, share: Share) -> Self {
        let counted = Self::from(bytes);
        counted.count(share);
        counted
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let share = OnceLock::new();
        Self(Arc::new(CountedBytes { bytes, share }))
    }
}

impl PartialEq for SharedBytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for SharedBytes {}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// A reply of upstream that was read to its end. A clone shares the body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Buffered {
    /// The status.
    pub status: u16,
    /// The fields, as upstream sent them.
    pub headers: Headers,
    /// The whole body.
    pub body: SharedBytes,
}

/// A reply's body. The door derives `Content-Length` and `Transfer-Encoding` from it, so a reply's
/// headers hold neither.
pub enum Body {
    /// No bytes; `Content-Length` says what a GET would carry (answers to HEAD), 0 otherwise.
    Empty {
        /// Bytes a GET would carry, when known.
        length: Option<u64>,
    },
    /// Bytes in memory.
    Bytes(SharedBytes),
    /// Pieces of files, complete or still growing. When the source fails, or ends before `length`,
    /// the connection is reset.
    Pieces {
        /// Their source.
        pieces: Box<dyn Pieces>,
        /// Bytes in all, when known; otherwise as for [`Body::Stream`].
        length: Option<u64>,
    },
    /// Bytes that are still arriving. When the reader fails, or ends before `length`, the
    /// connection is reset, so that no client takes the body for whole.
    Stream {
        /// Their source; reading may block for its idle limit.
        reader: Box<dyn Read + Send>,
        /// Bytes in all, when known; otherwise the reply is chunked (or, in HTTP/1.0, ends with
        /// the connection).
        length: Option<u64>,
    },
}

impl Body {
    /// An empty body.
    pub const fn empty() -> Self {
        Self::Empty { length: Some(0) }
    }

    /// Bytes in all, when known.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Empty { length } | Self::Pieces { length, .. } | Self::Stream { length, .. } => {
                *length
            }
            Self::Bytes(bytes) => Some(bytes.len() as u64),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Empty { .. } => "empty",
            Self::Bytes(_) => "bytes",
            Self::Pieces { .. } => "pieces",
            Self::Stream { .. } => "stream",
        };
        write!(f, "{kind}({:?})", self.length())
    }
}

impl Answer {
    /// Adds something to the notes of the reply.
    #[must_use]
    pub fn with_note(self, add: impl FnOnce(&mut LogNote) + Send + 'static) -> Self {
        match self {
            Self::Now(mut reply) => {
                add(&mut reply.outcome);
                Self::Now(reply)
            }
            Self::Later(exchange) => Self::Later(Box::new(move |body| {
                let mut reply = exchange(body);
                add(&mut reply.outcome);
                reply
            })),
        }
    }
}

/// A reply: what the client gets, and what the log says about it.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The fields, without framing, `Connection` and `Date`: the door adds those.
    pub headers: Headers,
    /// The body.
    pub body: Body,
    /// Notes for the log line.
    pub outcome: LogNote,
}

impl Reply {
    /// A reply with a body in memory.
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Headers::from_iter([("Content-Type", content_type)]),
            body: Body::Bytes(body.into().into()),
            outcome: LogNote::default(),
        }
    }

    /// An error document; its message goes to the log, too.
    pub fn error(error: &OciError) -> Self {
        let mut reply = Self::new(error.status, "application/json", error.document());
        reply.outcome.error = Some(error.message.clone());
        reply
    }

    /// Sets a field.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.headers.set(name, value);
        self
    }
}

type Decide = dyn Fn(&Arc<Request>) -> Answer + Send + Sync;

/// Decides what a request gets. It touches memory only: no network, no file, no waiting.
pub struct Decider(Box<Decide>);

impl Decider {
    /// Wraps a function that touches memory only.
    pub fn new(decide: impl Fn(&Arc<Request>) -> Answer + Send + Sync + 'static) -> Self {
        Self(Box::new(decide))
    }

    /// The decision; none when deciding panicked, which is logged and counted.
    pub fn decide(&self, request: &Arc<Request>) -> Option<Answer> {
        let answer = metrics::count_panic(|| (self.0)(request));
        if answer.is_none() {
            log::error("a decision panicked", &[("method", &request.method)]);
        }
        answer
    }
}

/// The place where requests wait for their answers. The door leaves a request in a new slot. The
/// worker takes it and leaves the answer. The door fetches it and closes the slot. Only the slot's
/// number goes through tiny_http.
#[derive(Default)]
pub struct Desk {
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    opened: u64,
    open: HashMap<u64, Slot>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each request that waits"
)]
enum Slot {
    Asked(Arc<Request>, Arc<RequestScope>),
    Deciding,
    Answered(Answer),
}

impl Desk {
    /// Door: opens a slot for a request. Returns its number, which is never 0.
    pub fn open(&self, request: Arc<Request>, scope: Arc<RequestScope>) -> u64 {
        let mut slots = self.slots.locked();
        slots.opened += 1;
        let slot = slots.opened;
        slots.open.insert(slot, Slot::Asked(request, scope));
        slot
    }

    /// Worker: takes the request in a slot. None when nobody waits for it.
    pub fn take_up(&self, slot: u64) -> Option<(Arc<Request>, Arc<RequestScope>)> {
        match std::mem::replace(self.slots.locked().open.get_mut(&slot)?, Slot::Deciding) {
            Slot::Asked(request, scope) => Some((request, scope)),
            Slot::Deciding | Slot::Answered(_) => None,
        }
    }

    /// Worker: leaves the answer. It is dropped when nobody waits for it any more.
    pub fn answer(&self, slot: u64, answer: Answer) {
        if let Some(slot) = self.slots.locked().open.get_mut(&slot) {
            *slot = Slot::Answered(answer);
        }
    }

    /// Door: closes the slot and fetches the answer, if one was left.
    pub fn close(&self, slot: u64) -> Option<Answer> {
        match self.slots.locked().open.remove(&slot)? {
            Slot::Answered(answer) => Some(answer),
            Slot::Asked(..) | Slot::Deciding => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            method: "GET".into(),
            target: "/v2/?a?b".into(),
            headers: Headers::new(),
            peer: Peer::on_unix_socket(),
            id: "same".into(),
        }
    }

    #[test]
    fn a_slot_is_answered_once_and_only_while_it_is_open() {
        let desk = Desk::default();
        let open = || {
            desk.open(
                Arc::new(request()),
                RequestScope::new("same".into(), None, String::new()),
            )
        };
        let first = open();
        let (asked, scope) = desk.take_up(first).unwrap();
        assert_eq!((&*asked, scope.id.as_str()), (&request(), "same"));
        assert!(desk.take_up(first).is_none());
        desk.answer(first, Answer::Now(Reply::new(200, "text/plain", "ok")));
        assert!(matches!(desk.close(first), Some(Answer::Now(reply)) if reply.status == 200));
        assert!(desk.close(first).is_none());
        desk.answer(first, Answer::Now(Reply::new(200, "text/plain", "late")));
        assert!(desk.close(first).is_none());
        let second = open();
        assert!(second != first && first != 0);
        assert!(desk.close(second).is_none());
    }

    #[test]
    fn a_target_splits_at_the_first_question_mark() {
        let request = request();
        assert_eq!((request.path(), request.query()), ("/v2/", Some("a?b")));
    }
}
