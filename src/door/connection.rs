//! One connection's loop: head, answer, reply, and again. Owns: keep-alive, closing (lingering or
//! by reset), the request's log line. Must not: be entered by more than its own thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::body::{BodyFault, BodyReader};
use super::connections::{Connection, DoorState};
use super::head::{BodyFraming, Head, HeadParser};
use super::lanes::NoDecision;
use super::log_line::LogLine;
use super::recent;
use super::reply::{self, ReplyContext, Written};
use super::request_id;
use super::socket::{ClientSocket, is_timeout};
use super::tls::HandshakeFault;
use crate::log::{self, Level, RequestScope};
use crate::message::{Answer, Headers, LogNote, Peer, Reply, Request, RequestBody};
use crate::metrics::{self, Finished, Route};
use crate::oci::{ErrorCode, OciError};

/// Longest wait for the next bytes of a client whose connection is closing.
const LINGER_PIECE: Duration = Duration::from_secs(2);
/// Value of `Retry-After` when the proxy itself is at a limit.
const RETRY_AFTER_SECONDS: &str = "2";

/// The first byte of a ClientHello's record (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// A record with a fatal alert, `handshake_failure` (RFC 8446 §6).
const TLS_REFUSAL: [u8; 7] = [0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x28];

/// Serves the connection until it ends.
pub(super) fn serve(shared: &DoorState, connection: &Arc<Connection>, peer: &Peer) {
    let Ok(mut socket) = ClientSocket::new(connection.stream(), &shared.limits) else {
        return;
    };
    let Some(peer) = shake_hands(shared, peer, &mut socket) else {
        return;
    };
    let mut decides = Decides::Worker;
    while serve_one(shared, connection, &peer, &mut socket, decides) == Next::Request {
        // The drain closes connections that are idle at its start. Others end here when they are
        // idle, after a request that has come meanwhile.
        if shared.is_draining() {
            connection.close_if_idle();
        }
        decides = Decides::OwnThread;
    }
    socket.end_tls();
}

/// The TLS handshake, if there is TLS. Returns the client, or none if it must not be served. The
/// connection counts as idle all that time.
fn shake_hands(shared: &DoorState, peer: &Peer, socket: &mut ClientSocket) -> Option<Peer> {
    let Some(tls) = &shared.tls else {
        return Some(peer.clone());
    };
    let deadline = Instant::now() + shared.limits.handshake;
    let first = socket.peek(deadline).ok()??;
    if first.is_ascii_alphabetic() {
        // No TLS record begins with a letter (RFC 8446 §5.1), and every request does.
        let why = "this port speaks https, and plain HTTP came; use https://";
        refuse_unread(peer, socket, &OciError::new(ErrorCode::BadRequest, why));
        linger(shared, socket);
        return None;
    }
    let session = tls.new_session();
    match session.and_then(|session| socket.start_tls(session, deadline)) {
        Ok(certificate) => Some(Peer {
            tls: true,
            certificate,
            ..peer.clone()
        }),
        Err(fault) => {
            metrics::TLS_HANDSHAKES_FAILED.inc();
            log_handshake_fault(&fault, peer, shared.limits.handshake);
            if !matches!(fault, HandshakeFault::Gone(_)) {
                // The alert must not be overtaken by a reset.
                linger(shared, socket);
            }
            None
        }
    }
}

fn log_handshake_fault(fault: &HandshakeFault, peer: &Peer, limit: Duration) {
    match fault {
        HandshakeFault::Certificate(why) => log::cause(
            Level::Warn,
            "client certificate refused",
            ("error", why),
            &[("peer", peer)],
        ),
        HandshakeFault::Gone(error) if is_timeout(error) => {
            let why = format!("not done within {} s", limit.as_secs());
            let message = "TLS handshake failed";
            log::cause(Level::Info, message, ("error", &why), &[("peer", peer)]);
        }
        HandshakeFault::Gone(error) => {
            log::debug("TLS handshake failed", &[("peer", peer), ("error", error)]);
        }
        HandshakeFault::Protocol(why) => {
            let message = "TLS handshake failed";
            log::cause(Level::Info, message, ("error", why), &[("peer", peer)]);
        }
    }
}

/// Answers a client that speaks TLS to a plain HTTP port, with a TLS alert.
fn refuse_tls(peer: &Peer, socket: &mut ClientSocket) {
    let why = "this port speaks plain http, and TLS came; use http://, or set ENABLE_SSL";
    let message = "TLS came to a plain HTTP port";
    log::cause(Level::Debug, message, ("reason", &why), &[("peer", peer)]);
    // A client that has gone needs no alert.
    let _ = socket.write_all(&TLS_REFUSAL);
}

/// Answers what cannot be understood as a request.
fn refuse_unread(peer: &Peer, socket: &mut ClientSocket, error: &OciError) {
    let id = request_id::generate();
    let context = ReplyContext {
        http11: true,
        head_only: false,
        keep_alive: false,
        id: &id,
    };
    let line = LogLine {
        started: Instant::now(),
        peer,
        scope: &RequestScope::new(id.clone(), None, String::new()),
        method: "-",
        target: "-",
        headers: &Headers::new(),
        forwarded: false,
    };
    write_and_log(line, socket, Reply::error(error), context);
}

/// The thread that decides what a request gets. A worker decides the first request of a connection,
/// so that a crowd of new clients queues for the workers. The connection's own thread decides the
/// others.
#[derive(Clone, Copy)]
enum Decides {
    Worker,
    OwnThread,
}

#[derive(PartialEq, Eq)]
enum Next {
    Close,
    Request,
}

/// How waiting for a head ended without one.
enum NoHead {
    /// The client closed, or said nothing for the idle limit: no answer is due.
    Silent,
    Refused(OciError),
}

fn serve_one(
    shared: &DoorState,
    connection: &Connection,
    peer: &Peer,
    socket: &mut ClientSocket,
    decides: Decides,
) -> Next {
    let head = match read_head(shared, connection, socket) {
        Ok(head) => head,
        Err(NoHead::Silent) => return Next::Close,
        Err(NoHead::Refused(refusal)) => {
            match !peer.tls && socket.buffered().first() == Some(&TLS_HANDSHAKE) {
                true => refuse_tls(peer, socket),
                false => refuse_unread(peer, socket, &refusal),
            }
            // While it lingers, the connection may be closed to make room for another.
            connection.set_idle();
            linger(shared, socket);
            return Next::Close;
        }
    };
    let running = metrics::REQUESTS_RUNNING.hold();
    let scope = request_id::new_scope(&head.headers, head.http11);
    let written = scope.run(|| answer(shared, peer, socket, head, &scope, decides));
    drop(running);
    connection.set_idle();
    if written.keep_alive {
        return Next::Request;
    }
    if written.fault.is_none() {
        linger(shared, socket);
    }
    Next::Close
}

/// Gets the reply to a request, writes it, and logs it.
fn answer(
    shared: &DoorState,
    peer: &Peer,
    socket: &mut ClientSocket,
    head: Head,
    scope: &Arc<RequestScope>,
    decides: Decides,
) -> Written {
    let started = Instant::now();
    let (http11, keep_alive) = (head.http11, head.keep_alive);
    let (framing, expects_continue) = (head.framing, head.expects_continue);
    let request = Arc::new(Request {
        method: head.method,
        target: head.target,
        headers: head.headers,
        peer: peer.clone(),
        id: scope.id.clone(),
    });
    let cross_origin = &shared.limits.cross_origin;
    let (mut reply, body_done) = match cross_origin.preflight(&request.method, &request.headers) {
        Some(reply) => (reply, framing == BodyFraming::Length(0)),
        None => {
            let decided = match decides {
                Decides::Worker => shared.workers.decide(&request, scope),
                Decides::OwnThread => shared.workers.decide_here(&request),
            };
            get_reply(shared, socket, decided, framing, expects_continue)
        }
    };
    cross_origin.mark(&request.headers, &mut reply);
    let context = ReplyContext {
        http11,
        head_only: request.method == "HEAD",
        keep_alive: keep_alive && body_done && !shared.is_draining(),
        id: &scope.id,
    };
    let line = LogLine {
        started,
        peer,
        scope,
        method: &request.method,
        target: &request.target,
        headers: &request.headers,
        forwarded: shared.limits.trust_proxy_headers,
    };
    write_and_log(line, socket, reply, context)
}

/// Waits for a head: as long as the idle limit for its first byte, then the head limit.
fn read_head(
    shared: &DoorState,
    connection: &Connection,
    socket: &mut ClientSocket,
) -> Result<Head, NoHead> {
    let mut deadline = Instant::now() + shared.limits.idle;
    let mut begun = false;
    let mut parser = HeadParser::default();
    loop {
        // An empty line before a request is ignored (RFC 9112 §2.2).
        while socket.buffered().starts_with(b"\r\n") {
            socket.consume(2);
            parser = HeadParser::default();
        }
        if !begun && !socket.buffered().is_empty() {
            begun = true;
            deadline = Instant::now() + shared.limits.head;
        }
        let parsed = parser.advance(socket.buffered());
        if let Some((head, length)) = parsed.map_err(NoHead::Refused)? {
            socket.consume(length);
            // A request that came before the drain is answered. Its body could come no more.
            let forgiven = shared.is_draining() && head.framing == BodyFraming::Length(0);
            // From here on nobody may close the connection for being idle.
            let is_busy = connection.set_busy(forgiven);
            return is_busy.then_some(head).ok_or(NoHead::Silent);
        }
        match socket.fill(deadline) {
            Ok(0) => return Err(NoHead::Silent),
            Ok(_) => {}
            Err(error) if begun && is_timeout(&error) => {
                let limit = shared.limits.head.as_secs();
                let why = format!("head did not come whole within {limit} s");
                let refusal = OciError::new(ErrorCode::BadRequest, why).with_status(408);
                return Err(NoHead::Refused(refusal));
            }
            Err(_) => return Err(NoHead::Silent),
        }
    }
}

/// Gets the reply that was decided on, perhaps from an exchange. Also returns whether the request's
/// body was read to its end.
fn get_reply(
    shared: &DoorState,
    socket: &mut ClientSocket,
    decided: Result<Answer, NoDecision>,
    framing: BodyFraming,
    expects_continue: bool,
) -> (Reply, bool) {
    let has_no_body = framing == BodyFraming::Length(0);
    let exchange = match decided {
        Ok(Answer::Now(reply)) => return (reply, has_no_body),
        Ok(Answer::Later(exchange)) => exchange,
        Err(fault) => return (no_decision_reply(fault), has_no_body),
    };
    let length = match framing {
        BodyFraming::Chunked => None,
        BodyFraming::Length(length) => Some(length),
    };
    let mut reader = BodyReader::new(socket, framing, expects_continue, &shared.limits);
    // A panic drops the exchange. Nothing that it left half done is used again, since the
    // connection is closed.
    let run = || exchange(&mut RequestBody::new(&mut reader, length));
    let reply = metrics::count_panic(run);
    let reply = reply.unwrap_or_else(|| internal_error("the exchange panicked"));
    match reader.fault() {
        None => {
            let done = reader.is_done();
            (reply, done)
        }
        Some(fault) => (body_fault_reply(fault, reply.outcome), false),
    }
}

/// The reply to a request whose own body failed, whatever the exchange made of that.
fn body_fault_reply(fault: &BodyFault, outcome: LogNote) -> Reply {
    let (status, why) = match fault {
        BodyFault::Gone => (400, "request body ended early".to_owned()),
        BodyFault::Malformed(why) => (400, why.clone()),
        BodyFault::Slow(why) => (408, format!("request body {why}")),
        BodyFault::Stalled => (408, "request body stalled".to_owned()),
    };
    let mut reply =
        Reply::error(&OciError::new(ErrorCode::BadRequest, why.clone()).with_status(status));
    reply.outcome = LogNote {
        error: Some(why),
        ..outcome
    };
    reply
}

fn no_decision_reply(fault: NoDecision) -> Reply {
    match fault {
        NoDecision::Busy => {
            let error = OciError::new(ErrorCode::Unavailable, "all workers are busy; try again");
            Reply::error(&error).with("Retry-After", RETRY_AFTER_SECONDS)
        }
        NoDecision::Panicked => internal_error("the decision panicked"),
        NoDecision::Lost => internal_error("the lane to the worker was lost"),
    }
}

fn internal_error(why: &str) -> Reply {
    let error = OciError::new(
        ErrorCode::Unavailable,
        "internal error; the log names it by this id",
    );
    let mut reply = Reply::error(&error.with_status(500));
    reply.outcome.error = Some(why.to_owned());
    reply
}

/// Writes the reply and the request's log line.
fn write_and_log(
    line: LogLine<'_>,
    socket: &mut ClientSocket,
    mut reply: Reply,
    context: ReplyContext<'_>,
) -> Written {
    let (status, outcome) = (reply.status, std::mem::take(&mut reply.outcome));
    let first_byte = line.started.elapsed();
    let written = reply::write(socket, reply, outcome.transfer.as_deref(), context);
    let path = line.target.split('?').next().unwrap_or_default();
    let named = outcome.registry.as_ref().zip(outcome.repository.as_ref());
    let named = named.map(|(registry, name)| [registry.name(), name.as_str()]);
    let finished = Finished {
        route: Route::of(path),
        method: line.method,
        status,
        cache: outcome.cache,
        asked_upstream: outcome.upstream_status.is_some() || outcome.upstream_fault.is_some(),
        repository: named,
        bytes: written.bytes,
        first_byte,
        duration: line.started.elapsed(),
    };
    finished.record();
    recent::note(&finished, &line, &outcome, written.fault.as_ref());
    line.write(&finished, &outcome, written.fault.as_ref());
    written
}

/// Reads what the client still sends, within limits: closing with unread bytes would reset the
/// connection, and the reset could overtake the reply (RFC 9112 §9.6).
fn linger(shared: &DoorState, socket: &mut ClientSocket) {
    socket.finish_writing();
    let end = Instant::now() + shared.limits.linger;
    let mut left = shared.limits.linger_bytes;
    let mut sink = vec![0; 16 * 1024];
    while left > 0 {
        let deadline = end.min(Instant::now() + LINGER_PIECE);
        match socket.read(&mut sink, deadline) {
            Ok(0) | Err(_) => return,
            Ok(count) => left = left.saturating_sub(count as u64),
        }
    }
}
