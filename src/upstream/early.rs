//! Answers that come before a request's body was sent. Owns: a connection whose write failed, and
//! reading the answer from it. Must not: write to such a connection, or let it be used again.
//!
//! A registry that refuses an upload answers at once and closes; the rest of the body then meets a
//! reset. ureq gives up at the failed write and drops the connection, and the answer with it. So
//! [`AboveTls`] looks for a refusal between writes, and makes the next write fail if there is one.
//! When a write fails first, the answer is there: Linux keeps the bytes readable that came before a
//! reset. [`AboveTls`] keeps a connection that is dropped after a failed write. [`BelowTls`] takes
//! what TLS still wants to send, because TLS sends before it reads. Then ureq itself reads the
//! answer, as the answer to a request that is never sent.
//!
//! One upload happens on one thread, so the connection is kept in a thread-local variable.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read};
use std::sync::Mutex;
use std::time::Duration;

use ureq::config::Config;
use ureq::http;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};
use ureq::{Agent, Error};

use crate::locked::Locked as _;
use crate::message::{Buffered, Headers};
use crate::oci::ERROR_DOCUMENT_BYTES_MAX;

/// Longest wait for an answer once a write has failed: it came before that, or it is on its way
/// with the close that made the write fail.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest look for the rest of what has begun to come, between two writes.
const LOOK_TIMEOUT: Duration = Duration::from_millis(10);

thread_local! {
    static UPLOAD: RefCell<UploadPhase> = const { RefCell::new(UploadPhase::None) };
}

/// How things stand with this thread's upload.
enum UploadPhase {
    None,
    Running,
    /// A write has failed, and ureq has given up.
    Broken(Box<dyn Transport>),
    /// Its answer is being read.
    Answering,
}

/// Runs an upload, and keeps its connection if a write to it fails.
pub(super) fn run_upload<T>(upload: impl FnOnce() -> T) -> (T, Option<Broken>) {
    UPLOAD.set(UploadPhase::Running);
    let outcome = upload();
    match UPLOAD.replace(UploadPhase::None) {
        UploadPhase::Broken(transport) => (outcome, Some(Broken(transport))),
        UploadPhase::Answering | UploadPhase::None | UploadPhase::Running => (outcome, None),
    }
}

/// A connection that nothing can be sent on any more.
pub(super) struct Broken(Box<dyn Transport>);

impl Broken {
    /// Reads the answer, if one has come. Its body is empty if that broke off, or was longer than
    /// any error document. Blocks for twice [`ANSWER_TIMEOUT`] at the longest.
    pub(super) fn read_answer(self) -> Option<Buffered> {
        self.read_answer_within(ANSWER_TIMEOUT)
    }

    fn read_answer_within(self, limit: Duration) -> Option<Buffered> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(limit * 2))
            .timeout_recv_response(Some(limit))
            .max_idle_connections(0)
            .max_idle_connections_per_host(0)
            .build();
        let handed = Handover(Mutex::new(Some(ReadOnly {
            transport: self.0,
            is_begun: false,
        })));
        let agent = Agent::with_parts(config, handed, NoResolver);
        let request = http::Request::get("http://answered.invalid/").body(());
        UPLOAD.set(UploadPhase::Answering);
        let answer = request.ok().and_then(|request| {
            let (head, body) = agent.run(request).ok()?.into_parts();
            let mut bytes = Vec::new();
            let mut reader = body.into_reader().take(ERROR_DOCUMENT_BYTES_MAX + 1);
            let read = reader.read_to_end(&mut bytes);
            if read.is_err() || bytes.len() as u64 > ERROR_DOCUMENT_BYTES_MAX {
                bytes = Vec::new();
            }
            Some(Buffered {
                status: head.status.as_u16(),
                headers: fields(&head.headers),
                body: bytes.into(),
            })
        });
        UPLOAD.set(UploadPhase::None);
        answer
    }
}

/// The fields of a head; those that are not visible ASCII are left out.
pub(super) fn fields(headers: &http::HeaderMap) -> Headers {
    let text = |value: &http::HeaderValue| value.to_str().ok().map(str::to_owned);
    headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), text(value)?)))
        .collect()
}

/// Goes above TLS: keeps a connection of an upload that is dropped after a failed write.
#[derive(Debug)]
pub(super) struct AboveTls;

impl<In: Transport> Connector<In> for AboveTls {
    type Out = Rescuing;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Rescuing>, Error> {
        Ok(chained.map(|transport| Rescuing {
            transport: transport.boxed(),
            failed: false,
            has_looked: false,
        }))
    }
}

#[derive(Debug)]
pub(super) struct Rescuing {
    transport: Box<dyn Transport>,
    failed: bool,
    /// A look between writes has read input that ureq has not seen.
    has_looked: bool,
}

impl Transport for Rescuing {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.transport.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.has_refusal() {
            self.failed = true;
            return Err(Error::Io(io::ErrorKind::BrokenPipe.into()));
        }
        let sent = self.transport.transmit_output(amount, timeout);
        self.failed |= sent.is_err();
        sent
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        // ureq waits before it reads what is there. A success that came early is whole already.
        let has_looked = std::mem::take(&mut self.has_looked);
        if has_looked && !self.transport.buffers().input().is_empty() {
            return Ok(true);
        }
        self.transport.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        !self.failed && self.transport.is_open()
    }

    fn is_tls(&self) -> bool {
        self.transport.is_tls()
    }
}

impl Rescuing {
    /// True when the registry has refused an upload that is still on its way.
    fn has_refusal(&mut self) -> bool {
        let is_upload = UPLOAD.with(|upload| matches!(*upload.borrow(), UploadPhase::Running));
        // Open: nothing has come. That look is one call of the system.
        if !is_upload || self.transport.is_open() {
            return false;
        }
        // An answer, an end, or a ticket of TLS, which goes away by being read.
        let look = NextTimeout {
            after: LOOK_TIMEOUT.into(),
            reason: ureq::Timeout::SendBody,
            per_read: None,
            per_write: None,
        };
        let _ = self.transport.await_input(look);
        self.has_looked = true;
        is_refusal(self.transport.buffers().input())
    }
}

/// True for the begin of an answer that refuses. Interim answers and a success that comes early
/// leave the upload to go on.
fn is_refusal(mut input: &[u8]) -> bool {
    while let [b'H', b'T', b'T', b'P', b'/', _, b'.', _, b' ', class, ..] = input {
        if *class != b'1' {
            return matches!(class, b'3'..=b'5');
        }
        let end = input.windows(4).position(|four| four == b"\r\n\r\n");
        let rest = end.and_then(|end| input.get(end + 4..));
        input = rest.unwrap_or_default();
    }
    false
}

impl Drop for Rescuing {
    fn drop(&mut self) {
        if !self.failed {
            return;
        }
        // The unit transport is ureq's own nothing.
        let transport = std::mem::replace(&mut self.transport, Box::new(()));
        // Err: the thread is ending.
        let _ = UPLOAD.try_with(|upload| {
            if let Ok(mut upload) = upload.try_borrow_mut()
                && matches!(*upload, UploadPhase::Running)
            {
                *upload = UploadPhase::Broken(transport);
            }
        });
    }
}

/// Goes below TLS: after a failed write nothing is written any more. While the answer is read,
/// writing succeeds and does nothing.
#[derive(Debug)]
pub(super) struct BelowTls;

impl<In: Transport> Connector<In> for BelowTls {
    type Out = SilentAfterFailure<In>;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|transport| SilentAfterFailure {
            transport,
            failed: None,
        }))
    }
}

pub(super) struct SilentAfterFailure<In> {
    transport: In,
    failed: Option<WriteFailure>,
}

#[derive(Debug, Clone, Copy)]
enum WriteFailure {
    Io(io::ErrorKind),
    Timeout(ureq::Timeout),
}

impl<In: Transport> fmt::Debug for SilentAfterFailure<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.transport.fmt(f)
    }
}

impl<In: Transport> Transport for SilentAfterFailure<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.transport.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let answering =
            |upload: &RefCell<UploadPhase>| matches!(*upload.borrow(), UploadPhase::Answering);
        match self.failed {
            Some(_) if UPLOAD.with(answering) => return Ok(()),
            // TLS keeps the first failure of a write to itself and tries again: a peer that takes
            // nothing would cost a second time-out, and one that takes a part would get garbage.
            Some(WriteFailure::Io(kind)) => return Err(Error::Io(kind.into())),
            Some(WriteFailure::Timeout(timeout)) => return Err(Error::Timeout(timeout)),
            None => {}
        }
        let sent = self.transport.transmit_output(amount, timeout);
        self.failed = match &sent {
            Ok(()) => None,
            Err(Error::Timeout(timeout)) => Some(WriteFailure::Timeout(*timeout)),
            Err(Error::Io(error)) => Some(WriteFailure::Io(error.kind())),
            Err(_) => Some(WriteFailure::Io(io::ErrorKind::BrokenPipe)),
        };
        sent
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.transport.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.failed.is_none() && self.transport.is_open()
    }

    fn is_tls(&self) -> bool {
        self.transport.is_tls()
    }
}

/// Gives out one connection that there is already.
#[derive(Debug)]
struct Handover(Mutex<Option<ReadOnly>>);

impl Connector for Handover {
    type Out = ReadOnly;

    fn connect(&self, _: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<ReadOnly>, Error> {
        let mut spent = self.0.locked();
        Ok(spent.take())
    }
}

/// A connection that is only read from.
#[derive(Debug)]
struct ReadOnly {
    transport: Box<dyn Transport>,
    is_begun: bool,
}

impl Transport for ReadOnly {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.transport.buffers()
    }

    fn transmit_output(&mut self, _: usize, _: NextTimeout) -> Result<(), Error> {
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        // A look between writes may have read some of the answer, or all of it.
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        if is_first && !self.transport.buffers().input().is_empty() {
            return Ok(true);
        }
        self.transport.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        false
    }

    fn is_tls(&self) -> bool {
        self.transport.is_tls()
    }
}

/// Nobody is to be connected to.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(
        &self,
        _: &http::Uri,
        _: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        Ok(self.empty())
    }
}

#[cfg(test)]
mod tests;
