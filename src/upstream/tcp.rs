//! TCP connections out. Owns: trying all addresses of a host, and the socket's reads and writes.
//! Must not: look a name up, or know what is sent.
//!
//! Addresses are tried in their order. The next one is tried as soon as the one before it has
//! failed or been silent for a moment; that one is not given up (RFC 8305 "Happy Eyeballs"; ureq's
//! own connector waits for half of the whole time first). One thread does it all with `poll`.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};
use ureq::unversioned::transport::{Buffers, LazyBuffers, NextTimeout, Transport};

use super::error::Stage;
use super::fault::io_stage;

/// Wait for one address before the next one is tried, too (RFC 8305 §8: 250 ms).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// A peer that acknowledges nothing of a GET for so long is gone, as after a failover that drops
/// packets: a fifth of the time for a head, so that a fresh connection can still answer.
const LOST_PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limits that are longer than this are set in whole seconds.
const EXACT_LIMIT_MAX: Duration = Duration::from_secs(1);
/// Addresses named in an error at the most.
const NAMED_MAX: usize = 4;

/// Why there is no connection.
#[derive(Debug)]
pub struct ConnectFault {
    /// `Connect`, or `Timeout` when an address was silent to the end.
    pub stage: Stage,
    /// Each address and why it failed.
    pub reason: String,
}

/// A connection that is being made.
struct OpeningSocket {
    address: SocketAddr,
    socket: OwnedFd,
}

/// Connects to the first of `addresses` that answers. Blocks until `deadline` at the longest.
///
/// # Errors
/// Why none of them did.
pub fn connect(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, ConnectFault> {
    let mut left = addresses.iter();
    let mut pending: Vec<OpeningSocket> = Vec::new();
    let mut faults: Vec<(SocketAddr, io::Error)> = Vec::new();
    let mut next_at = Instant::now();
    loop {
        let now = Instant::now();
        if now >= next_at || pending.is_empty() {
            match left.next() {
                None if pending.is_empty() => return Err(join_faults(&faults)),
                None => {}
                Some(address) => match start_connecting(*address) {
                    Ok(socket) => {
                        let address = *address;
                        pending.push(OpeningSocket { address, socket });
                        next_at = now + NEXT_ADDRESS;
                    }
                    Err(error) => {
                        faults.push((*address, error));
                        continue;
                    }
                },
            }
        }
        let wake_at = if left.len() == 0 {
            deadline
        } else {
            next_at.min(deadline)
        };
        let ready =
            wait(&pending, wake_at).map_err(|error| join_faults(&[(no_address(), error)]))?;
        let mut index = 0;
        let (done, open): (Vec<OpeningSocket>, Vec<OpeningSocket>) =
            pending.into_iter().partition(|_| {
                index += 1;
                ready.get(index - 1).copied().unwrap_or_default()
            });
        pending = open;
        for OpeningSocket { address, socket } in done {
            match finish(socket) {
                Ok(stream) => return Ok(stream),
                // The next address need not wait for its time.
                Err(error) => {
                    faults.push((address, error));
                    next_at = now;
                }
            }
        }
        if Instant::now() >= deadline {
            let silent = pending.iter().map(|pending| pending.address);
            faults.extend(silent.map(|address| (address, io::ErrorKind::TimedOut.into())));
            return Err(join_faults(&faults));
        }
    }
}

fn no_address() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}

/// Sends the SYN.
fn start_connecting(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Waits until some of them have an outcome; says which.
fn wait(pending: &[OpeningSocket], until: Instant) -> io::Result<Vec<bool>> {
    let left = until.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).map_err(io::Error::other)?;
    let mut fds: Vec<PollFd<'_>> = pending
        .iter()
        .map(|pending| PollFd::new(&pending.socket, PollFlags::OUT))
        .collect();
    match poll(&mut fds, Some(&left)) {
        Ok(_) => Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect()),
        Err(Errno::INTR) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn finish(socket: OwnedFd) -> io::Result<TcpStream> {
    sockopt::socket_error(&socket)??;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn join_faults(faults: &[(SocketAddr, io::Error)]) -> ConnectFault {
    let timed_out = |(_, error): &(SocketAddr, io::Error)| io_stage(error) == Stage::Timeout;
    let stage = if faults.iter().any(timed_out) {
        Stage::Timeout
    } else {
        Stage::Connect
    };
    let words = |(address, error): &(SocketAddr, io::Error)| match error.kind() {
        io::ErrorKind::TimedOut => format!("{address}: no answer in time"),
        _ => format!("{address}: {error}"),
    };
    let mut named: Vec<String> = faults.iter().take(NAMED_MAX).map(words).collect();
    if faults.is_empty() {
        named.push("there is no address".to_owned());
    }
    if faults.len() > NAMED_MAX {
        named.push(format!("and {} more", faults.len() - NAMED_MAX));
    }
    let reason = named.join("; ");
    ConnectFault { stage, reason }
}

thread_local! {
    /// The deadline of reads on this thread, whatever limit their connection has.
    static READ_UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
    /// True while this thread sends what can be sent again.
    static GIVE_UP_LOST_PEERS: Cell<bool> = const { Cell::new(false) };
}

/// Runs `send`, whose requests can be sent again, so that a peer that is gone is noticed soon. An
/// upload must not be given up so soon.
pub(super) fn give_up_lost_peers<T>(send: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            GIVE_UP_LOST_PEERS.set(self.0);
        }
    }
    let _restore = Restore(GIVE_UP_LOST_PEERS.replace(true));
    send()
}

/// Runs `read`, which reads from connections on this thread, so that it ends by `deadline`. ureq
/// takes its time limits with the request, when nobody knows yet how the reply is to be read.
pub(super) fn read_until<T>(deadline: Instant, read: impl FnOnce() -> T) -> T {
    struct Restore(Option<Instant>);
    impl Drop for Restore {
        fn drop(&mut self) {
            READ_UNTIL.set(self.0);
        }
    }
    let _restore = Restore(READ_UNTIL.replace(Some(deadline)));
    read()
}

/// The nearer of a limit and a deadline.
fn sooner(
    limit: Option<Duration>,
    deadline: Option<Instant>,
    timeout: NextTimeout,
) -> Result<Option<Duration>, ureq::Error> {
    let Some(deadline) = deadline else {
        return Ok(limit);
    };
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(ureq::Error::Timeout(timeout.reason)),
        left => Ok(Some(limit.map_or(left, |limit| limit.min(left)))),
    }
}

/// A connected socket with buffers, as ureq uses it.
pub(super) struct TcpTransport {
    stream: TcpStream,
    buffers: LazyBuffers,
    /// The time limits that the socket has, so that they are set only when they change.
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    /// True when the socket has [`LOST_PEER_TIMEOUT`].
    gives_up_lost_peer: bool,
}

impl TcpTransport {
    pub(super) const fn new(stream: TcpStream, buffers: LazyBuffers) -> Self {
        Self {
            stream,
            buffers,
            read_timeout: None,
            write_timeout: None,
            gives_up_lost_peer: false,
        }
    }

    /// Sets the kernel's limit for bytes that nobody acknowledges (tcp(7), `TCP_USER_TIMEOUT`).
    fn set_lost_peer_timeout(&mut self) -> io::Result<()> {
        let gives_up = GIVE_UP_LOST_PEERS.get();
        if gives_up == self.gives_up_lost_peer {
            return Ok(());
        }
        let limit = if gives_up {
            LOST_PEER_TIMEOUT
        } else {
            Duration::ZERO
        };
        let limit_ms = u32::try_from(limit.as_millis()).map_err(io::Error::other)?;
        sockopt::set_tcp_user_timeout(&self.stream, limit_ms)?;
        self.gives_up_lost_peer = gives_up;
        Ok(())
    }
}

/// A limit as a socket takes it.
fn limit(timeout: NextTimeout) -> Result<Option<Duration>, ureq::Error> {
    if timeout.after.is_not_happening() {
        return Ok(None);
    }
    if timeout.after.is_zero() {
        return Err(ureq::Error::Timeout(timeout.reason));
    }
    Ok(Some(*timeout.after))
}

/// A limit as the socket gets it. What is left of a minute is less with each record of TLS, and
/// would be set anew for each.
fn round_up(limit: Duration) -> Duration {
    if limit <= EXACT_LIMIT_MAX {
        return limit;
    }
    Duration::from_secs(limit.as_secs() + u64::from(limit.subsec_nanos() > 0))
}

/// A socket's time limit shows as `WouldBlock`. The kernel's own means that the peer is gone.
fn name_timeout(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    if error.raw_os_error() == Some(Errno::TIMEDOUT.raw_os_error()) {
        let why = "the peer acknowledges nothing";
        return io::Error::new(io::ErrorKind::ConnectionReset, why).into();
    }
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => error.into(),
    }
}

impl Transport for TcpTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.set_lost_peer_timeout()?;
        let timeout = timeout.for_write();
        let limit = limit(timeout)?;
        let limit = limit.map(round_up);
        if limit != self.write_timeout {
            self.stream.set_write_timeout(limit)?;
            self.write_timeout = limit;
        }
        let output = self.buffers.output();
        let output = output.get(..amount).unwrap_or_default();
        let written = self.stream.write_all(output);
        written.map_err(|error| name_timeout(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let timeout = timeout.for_read();
        let started = Instant::now();
        let mut limit = sooner(limit(timeout)?, READ_UNTIL.get(), timeout)?;
        loop {
            let rounded = limit.map(round_up);
            if rounded != self.read_timeout {
                self.stream.set_read_timeout(rounded)?;
                self.read_timeout = rounded;
            }
            match self.stream.read(self.buffers.input_append_buf()) {
                Ok(amount) => {
                    self.buffers.input_appended(amount);
                    return Ok(amount > 0);
                }
                // A signal ends a read with a time limit even where others are begun again.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    let elapsed = started.elapsed();
                    limit = limit.map(|limit| limit.saturating_sub(elapsed));
                    if limit.is_some_and(|limit| limit.is_zero()) {
                        return Err(ureq::Error::Timeout(timeout.reason));
                    }
                }
                Err(error) => return Err(name_timeout(error, timeout)),
            }
        }
    }

    /// Between two exchanges nothing may come, not even an end.
    fn is_open(&mut self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = rustix::net::recv(&self.stream, &mut [0_u8; 1], flags);
        peeked.is_err_and(|error| error == Errno::AGAIN)
    }
}

impl std::fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TcpTransport({:?})", self.stream.peer_addr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// A port that refuses: bound, and not listening.
    fn refusing() -> (OwnedFd, SocketAddr) {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let bound = rustix::net::getsockname(&socket).unwrap();
        (socket, bound.try_into().unwrap())
    }

    /// A port that is silent: its queue is full, so that the kernel drops each further SYN.
    fn silent() -> (TcpListener, Vec<OwnedFd>, SocketAddr) {
        let (listener, address) = listener();
        rustix::net::listen(&listener, 0).unwrap();
        let waiting = (0..3).map(|_| start_connecting(address).unwrap()).collect();
        (listener, waiting, address)
    }

    #[test]
    fn a_refused_address_is_passed_over_at_once() {
        let (_listener, good) = listener();
        let (_socket, bad) = refusing();
        let started = Instant::now();
        let stream = connect(&[bad, bad, good], started + PATIENCE).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(started.elapsed() < NEXT_ADDRESS, "{:?}", started.elapsed());
    }

    #[test]
    fn a_silent_address_costs_a_moment() {
        let (_listener, good) = listener();
        let (_full, _waiting, bad) = silent();
        let started = Instant::now();
        let stream = connect(&[bad, good], started + PATIENCE).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(started.elapsed() >= NEXT_ADDRESS);
        assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    }

    #[test]
    fn all_that_failed_are_named() {
        let (_socket, refusing) = refusing();
        let fault = connect(&[refusing], Instant::now() + PATIENCE).unwrap_err();
        assert_eq!(fault.stage, Stage::Connect);
        assert!(
            fault
                .reason
                .starts_with(&format!("{refusing}: Connection refused"))
        );
        let (_full, _waiting, silent) = silent();
        let soon = Instant::now() + Duration::from_millis(50);
        let fault = connect(&[silent, refusing], soon).unwrap_err();
        assert_eq!(fault.stage, Stage::Timeout);
        assert_eq!(fault.reason, format!("{silent}: no answer in time"));
        let many = [refusing; NAMED_MAX + 2];
        let fault = connect(&many, Instant::now() + PATIENCE).unwrap_err();
        assert!(fault.reason.ends_with("; and 2 more"), "{}", fault.reason);
        let fault = connect(&[], Instant::now() + PATIENCE).unwrap_err();
        assert_eq!(fault.reason, "there is no address");
    }

    #[test]
    fn a_peer_is_given_up_soon_by_what_can_be_sent_again_alone() {
        let (_listener, address) = listener();
        let stream = connect(&[address], Instant::now() + PATIENCE).unwrap();
        let mut transport = TcpTransport::new(stream, LazyBuffers::new(16, 16));
        let mut send = || {
            transport
                .transmit_output(1, NextTimeout::default())
                .unwrap();
            sockopt::tcp_user_timeout(&transport.stream).unwrap()
        };
        assert_eq!(send(), 0);
        assert_eq!(
            u128::from(give_up_lost_peers(&mut send)),
            LOST_PEER_TIMEOUT.as_millis()
        );
        assert_eq!(send(), 0);
        let lost = io::Error::from_raw_os_error(Errno::TIMEDOUT.raw_os_error());
        let error = name_timeout(lost, NextTimeout::default());
        assert_eq!(super::super::fault::stage(&error), Stage::Transfer);
        let late = io::Error::from(io::ErrorKind::WouldBlock);
        let error = name_timeout(late, NextTimeout::default());
        assert!(matches!(error, ureq::Error::Timeout(_)));
    }

    #[test]
    fn what_is_left_of_a_long_limit_is_not_set_anew_for_each_record() {
        let ms = Duration::from_millis;
        assert_eq!(round_up(ms(59_999)), ms(60_000));
        assert_eq!(round_up(ms(59_001)), ms(60_000));
        assert_eq!(round_up(ms(59_000)), ms(59_000));
        assert_eq!(round_up(ms(10)), ms(10));
        assert_eq!(round_up(EXACT_LIMIT_MAX), EXACT_LIMIT_MAX);
        assert!(round_up(ms(1_001)) <= ms(2_000));
    }

    #[test]
    fn a_connection_is_open_while_nothing_has_come() {
        let (listener, address) = listener();
        let stream = connect(&[address], Instant::now() + PATIENCE).unwrap();
        let mut transport = TcpTransport::new(stream, LazyBuffers::new(16, 16));
        let (mut peer, _) = listener.accept().unwrap();
        assert!(transport.is_open());
        peer.write_all(b"x").unwrap();
        drop(peer);
        let mut peeked = [0];
        transport.stream.peek(&mut peeked).unwrap();
        assert!(!transport.is_open());
        assert!(transport.await_input(NextTimeout::default()).unwrap());
        assert!(!transport.await_input(NextTimeout::default()).unwrap());
        assert!(!transport.is_open());
    }
}
