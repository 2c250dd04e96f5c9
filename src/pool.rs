//! The workers. Owns: tiny_http (nobody else names it) and the worker threads. Must not: decide
//! anything itself, read a body, or write more than one byte.
//!
//! tiny_http listens on a private abstract unix socket. Once the door's lanes are up, the listener
//! is shut down, so that nothing else ever reaches it. The server itself is never dropped: its
//! `Drop` unwraps a path that an abstract socket lacks.

use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::message::{ANSWERED, Decider, Desk, PANICKED};
use crate::random::unguessable;
use crate::{log, metrics};

/// Errors of `recv` that are tolerated: one is expected when the listener is shut down.
const RECEIVE_ERRORS_MAX: usize = 4;
/// Stack of a worker's thread: a decision is shallow.
const WORKER_STACK_BYTES: usize = 256 * 1024;

/// tiny_http and its workers.
pub struct Pool {
    address: SocketAddr,
    listener: UnixListener,
}

impl Pool {
    /// Starts tiny_http and `workers` threads. `on_lost` is called with the thread's name when a
    /// worker ends, which none ever should.
    ///
    /// # Errors
    /// When the socket or a thread is refused.
    pub fn start(
        workers: usize,
        desk: &Arc<Desk>,
        decider: &Arc<Decider>,
        on_lost: &Arc<dyn Fn(&str) + Send + Sync>,
    ) -> io::Result<Self> {
        let name = format!("aws-ecr-proxy-{:016x}{:016x}", unguessable(), unguessable());
        let address = SocketAddr::from_abstract_name(name)?;
        let listener = UnixListener::bind_addr(&address)?;
        let server = tiny_http::Server::from_listener(listener.try_clone()?, None)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let server: &'static tiny_http::Server = Box::leak(Box::new(server));
        let errors = Arc::new(AtomicUsize::new(0));
        for number in 1..=workers {
            let (desk, decider) = (Arc::clone(desk), Arc::clone(decider));
            let (errors, on_lost) = (Arc::clone(&errors), Arc::clone(on_lost));
            let name = format!("worker-{number}");
            let run = move || {
                let name = std::thread::current().name().unwrap_or_default().to_owned();
                let run = AssertUnwindSafe(|| take_requests(server, &desk, &decider, &errors));
                // Returns only when tiny_http itself is broken.
                let _ = catch_unwind(run);
                on_lost(&name);
            };
            let thread = std::thread::Builder::new()
                .name(name)
                .stack_size(WORKER_STACK_BYTES);
            thread.spawn(run)?;
        }
        Ok(Self { address, listener })
    }

    /// The socket on which lanes are opened, until [`Self::seal`].
    pub const fn address(&self) -> &SocketAddr {
        &self.address
    }

    /// Closes tiny_http to everybody but the lanes that are open.
    ///
    /// # Errors
    /// When the listener cannot be shut down.
    pub fn seal(self) -> io::Result<()> {
        rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both)?;
        Ok(())
    }
}

fn take_requests(server: &tiny_http::Server, desk: &Desk, decider: &Decider, errors: &AtomicUsize) {
    loop {
        match server.recv() {
            Ok(request) => answer_request(request, desk, decider),
            Err(error) => {
                log::debug("tiny_http stopped listening", &[("reason", &error)]);
                if errors.fetch_add(1, Ordering::Relaxed) >= RECEIVE_ERRORS_MAX {
                    log::error("tiny_http fails", &[("error", &error)]);
                    return;
                }
            }
        }
    }
}

/// Answers the number of a slot with one byte. The writer is taken first: a `Request` that is
/// dropped with its writer answers 500 by itself.
fn answer_request(request: tiny_http::Request, desk: &Desk, decider: &Decider) {
    let slot = request.url().trim_start_matches('/').parse().unwrap_or(0);
    let mut writer = request.into_writer();
    let _busy = metrics::WORKERS_BUSY.hold();
    let answered = desk.take_up(slot).is_none_or(|(request, scope)| {
        match scope.run(|| decider.decide(&request)) {
            Some(answer) => desk.answer(slot, answer),
            None => return false,
        }
        true
    });
    let byte = if answered { ANSWERED } else { PANICKED };
    // A lane that is gone is noticed at its other end.
    let _ = writer.write_all(&[byte]).and_then(|()| writer.flush());
}
