//! The lanes to tiny_http: a few private connections. The number of a slot on the desk goes in, as
//! the target of a request, and one byte comes back. Owns: opening, lending and closing the lanes.
//! Must not: send what a client sent, or use a lane again that gave an unexpected answer.
//!
//! Locks: the list of free lanes, held to take or return one; never across I/O.

use std::io::{self, Read, Write};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::request_id;
use crate::locked::{Locked as _, TimedWait as _};
use crate::log::RequestScope;
use crate::message::{ANSWERED, Answer, Decider, Desk, Headers, PANICKED, Peer, Reply, Request};
use crate::{log, metrics};

/// Longest wait for a worker's decision. A decision touches memory only, so nothing but a hung
/// worker or a lost lane takes as long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a free lane: a lane is never lent for longer than its answer may take.
const LANE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no decision about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoDecision {
    /// All lanes were busy for too long.
    Busy,
    /// The lane broke, or brought no answer.
    Lost,
    /// Deciding panicked; the lane is good.
    Panicked,
}

/// The way to the workers, which several doors may share.
#[derive(Clone)]
pub struct Workers {
    /// The connections that tell a worker of a request.
    pub lanes: Arc<Lanes>,
    /// Where requests and answers wait.
    pub desk: Arc<Desk>,
    /// The decision that a worker runs.
    pub decider: Arc<Decider>,
}

impl Workers {
    /// Asks a worker what a request gets. Blocks while all lanes are busy, and for a worker that
    /// hangs, 20 s at most.
    pub(super) fn decide(
        &self,
        request: &Arc<Request>,
        scope: &Arc<RequestScope>,
    ) -> Result<Answer, NoDecision> {
        let slot = self.desk.open(Arc::clone(request), Arc::clone(scope));
        let waiting = metrics::DECISIONS_WAITING.hold();
        let asked = self.lanes.ask(slot);
        drop(waiting);
        let answer = self.desk.close(slot);
        asked.and_then(|()| answer.ok_or(NoDecision::Lost))
    }

    /// Decides the request on the caller's thread.
    pub(super) fn decide_here(&self, request: &Arc<Request>) -> Result<Answer, NoDecision> {
        self.decider.decide(request).ok_or(NoDecision::Panicked)
    }

    /// Asks a worker for a page of the proxy's own, as a connection does for its client. None when
    /// the answer would take an exchange. Blocks as [`Self::decide`] does.
    pub fn get(&self, target: &str) -> Option<Reply> {
        let id = request_id::generate();
        let scope = RequestScope::new(id.clone(), None, String::new());
        let request = Request {
            method: "GET".to_owned(),
            target: target.to_owned(),
            headers: Headers::new(),
            peer: Peer::on_unix_socket(),
            id,
        };
        match self.decide(&Arc::new(request), &scope) {
            Ok(Answer::Now(reply)) => Some(reply),
            _ => None,
        }
    }
}

/// The lanes.
pub struct Lanes {
    free: Mutex<Vec<UnixStream>>,
    returned: Condvar,
    opened: usize,
    alive: AtomicUsize,
    on_half_lost: Box<dyn Fn() + Send + Sync>,
}

impl Lanes {
    /// Opens `count` lanes to tiny_http's socket, one after the other, each proved by a request
    /// that a worker answers (tiny_http's pool loses connections that come in a burst).
    /// `on_half_lost` is called when fewer than half of the lanes are left.
    ///
    /// # Errors
    /// When a lane cannot be opened or is not answered.
    pub fn open(
        address: &SocketAddr,
        count: usize,
        on_half_lost: Box<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        let mut free = Vec::with_capacity(count);
        for _ in 0..count {
            let lane = UnixStream::connect_addr(address)?;
            lane.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            lane.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            // Nobody waits in this slot: the worker answers and does nothing else.
            match send_number(&lane, 0)? {
                ANSWERED => free.push(lane),
                other => {
                    let why = format!("a new lane answered byte 0x{other:02x}");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
            }
        }
        Ok(Self {
            free: Mutex::new(free),
            returned: Condvar::new(),
            opened: count,
            alive: AtomicUsize::new(count),
            on_half_lost,
        })
    }

    /// Lanes that still work.
    fn alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }

    /// Tells a worker of the request in a slot, and waits until its answer is on the desk.
    pub(super) fn ask(&self, slot: u64) -> Result<(), NoDecision> {
        let lane = self.borrow().ok_or(NoDecision::Busy)?;
        match send_number(&lane, slot) {
            Ok(byte @ (ANSWERED | PANICKED)) => {
                self.give_back(lane);
                if byte == ANSWERED {
                    Ok(())
                } else {
                    Err(NoDecision::Panicked)
                }
            }
            other => {
                drop(lane);
                self.count_lost(&other);
                Err(NoDecision::Lost)
            }
        }
    }

    fn borrow(&self) -> Option<UnixStream> {
        let (free, deadline) = (self.free.locked(), Instant::now() + LANE_TIMEOUT);
        let is_over = |free: &Vec<UnixStream>| !free.is_empty() || self.alive() == 0;
        self.returned.wait_until(free, deadline, is_over).pop()
    }

    fn give_back(&self, lane: UnixStream) {
        self.free.locked().push(lane);
        self.returned.notify_one();
    }

    fn count_lost(&self, answer: &io::Result<u8>) {
        let left = self.alive.fetch_sub(1, Ordering::Relaxed).saturating_sub(1);
        metrics::LANES_LOST.inc();
        let why = match answer {
            Ok(byte) => format!("answered byte 0x{byte:02x}"),
            Err(error) => error.to_string(),
        };
        log::error(
            "lane to tiny_http lost",
            &[("reason", &why), ("left", &left)],
        );
        self.returned.notify_all();
        if left * 2 < self.opened {
            (self.on_half_lost)();
        }
    }
}

fn send_number(mut lane: &UnixStream, slot: u64) -> io::Result<u8> {
    // In one piece: each write wakes the other side.
    let request = format!("GET /{slot} HTTP/1.1\r\n\r\n");
    lane.write_all(request.as_bytes())?;
    let mut answer = [0];
    lane.read_exact(&mut answer)?;
    Ok(answer[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::UnixListener;

    /// A stand-in for tiny_http that answers each request on its lanes with the next byte of
    /// `answers`, and then closes.
    fn lanes(count: usize, answers: &'static [u8]) -> (Lanes, Arc<AtomicUsize>) {
        let name = format!("lanes-test-{:x}", crate::random::unguessable());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let serve = move || {
            for stream in listener.incoming().take(count) {
                let mut stream = stream.unwrap();
                let lane = move || {
                    for answer in answers {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            let mut byte = [0];
                            if stream.read(&mut byte).unwrap_or(0) == 0 {
                                return;
                            }
                            head.push(byte[0]);
                        }
                        stream.write_all(&[*answer]).unwrap();
                    }
                };
                std::thread::Builder::new().spawn(lane).unwrap();
            }
        };
        std::thread::Builder::new().spawn(serve).unwrap();
        let alarms = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&alarms);
        let alarm = Box::new(move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        (Lanes::open(&address, count, alarm).unwrap(), alarms)
    }

    #[test]
    fn a_panic_costs_no_lane() {
        let (lanes, alarms) = lanes(1, b"kpk");
        assert_eq!(lanes.ask(1), Err(NoDecision::Panicked));
        assert_eq!(lanes.ask(1), Ok(()));
        assert_eq!((lanes.alive(), alarms.load(Ordering::Relaxed)), (1, 0));
    }

    #[test]
    fn a_lane_that_answers_anything_else_is_closed() {
        let (lanes, alarms) = lanes(2, b"kH");
        assert_eq!(lanes.ask(1), Err(NoDecision::Lost));
        assert_eq!((lanes.alive(), alarms.load(Ordering::Relaxed)), (1, 0));
        assert_eq!(lanes.ask(1), Err(NoDecision::Lost));
        assert_eq!((lanes.alive(), alarms.load(Ordering::Relaxed)), (0, 1));
        assert_eq!(lanes.ask(1), Err(NoDecision::Busy));
    }

    #[test]
    fn workers_that_do_not_answer_give_no_sign_of_life() {
        let (lanes, _) = lanes(1, b"kkp");
        let (lanes, desk) = (Arc::new(lanes), Arc::new(Desk::default()));
        let decider = Arc::new(Decider::new(|_| unreachable!()));
        let workers = Workers {
            lanes,
            desk,
            decider,
        };
        // The byte came without an answer; then a panic; then the lane is lost, as it is when a
        // worker hangs; then there is none.
        for _ in 0..4 {
            assert!(workers.get("/readyz").is_none());
        }
        assert_eq!(workers.lanes.alive(), 0);
    }
}
