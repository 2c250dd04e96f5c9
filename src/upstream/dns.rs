//! Our own DNS look-ups, for `RESOLVER`. Owns: the order of servers, time-outs, UDP and TCP.
//! Must not: keep an answer (the resolver does), read `/etc/hosts`, or add a search domain.
//!
//! A and AAAA are asked for at the same time, each under an id of its own and from a socket of its
//! own. The kernel picks the socket's port at random (RFC 5452 §9.2). The socket is connected, so
//! that the kernel drops datagrams from elsewhere. A datagram that does not answer the question
//! is ignored, and the wait goes on.
//!
//! No EDNS: every server understands a question without it. An answer that does not fit into 512
//! bytes is asked for again by TCP.

pub mod message;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::message::{DnsAnswer, DnsQuery, Family};
use super::resolver::{Addresses, Lookup, LookupError};
use crate::random::unguessable;

/// Wait for one server's answer, in the first round and in the second: a resolver that has the
/// answer needs milliseconds, one that must ask around mostly less than one second.
const TRY_TIMEOUTS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// Wait for an answer by TCP, which the server has at hand by then.
const TCP_TIMEOUT: Duration = Duration::from_secs(2);
/// Wait for the other family once one has addresses: those that drop AAAA questions are many (RFC
/// 8305 §3 waits 50 ms).
const OTHER_FAMILY_TIMEOUT: Duration = Duration::from_millis(100);
/// Longest look-up: no caller waits longer.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(8);
/// Aliases asked for one after the other, where a server does not follow them itself.
const ALIASES_MAX: usize = 8;
/// A datagram may be longer than the 512 bytes of RFC 1035 §4.2.1 by mistake.
const DATAGRAM_BYTES_MAX: usize = 4096;
/// How long a negative answer counts that does not say so itself.
const NOTHING_TTL_S: u32 = 2;

/// The servers.
#[derive(Debug)]
pub struct Dns {
    servers: Vec<SocketAddr>,
    /// The one that answered last is asked first.
    first: AtomicUsize,
}

impl Dns {
    /// Look-ups by `servers`, in this order until one of them does not answer.
    pub fn lookup(servers: Vec<SocketAddr>) -> std::sync::Arc<Lookup> {
        let first = AtomicUsize::new(0);
        let dns = Self { servers, first };
        std::sync::Arc::new(move |host| dns.look_up(host, Instant::now() + LOOKUP_TIMEOUT))
    }

    fn look_up(&self, host: &str, deadline: Instant) -> Result<Addresses, LookupError> {
        let count = self.servers.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut faults: Vec<String> = Vec::new();
        for timeout in TRY_TIMEOUTS {
            for index in (first..first + count).map(|index| index % count.max(1)) {
                let Some(server) = self.servers.get(index) else {
                    continue;
                };
                let until = (Instant::now() + timeout).min(deadline);
                match ask(*server, host, until) {
                    Ok(found) => {
                        self.first.store(index, Ordering::Relaxed);
                        return Ok(found);
                    }
                    Err(LookupError::NoAddress(why, fresh)) => {
                        self.first.store(index, Ordering::Relaxed);
                        return Err(LookupError::NoAddress(why, fresh));
                    }
                    Err(LookupError::Unknown(why)) => {
                        faults.retain(|fault| !fault.starts_with(&format!("{server}: ")));
                        faults.push(format!("{server}: {why}"));
                    }
                }
                if Instant::now() >= deadline {
                    break;
                }
            }
        }
        Err(LookupError::Unknown(faults.join("; ")))
    }
}

/// The addresses of both families by one server.
fn ask(server: SocketAddr, host: &str, until: Instant) -> Result<Addresses, LookupError> {
    let mut v4 = Question::new(Family::V4, host);
    let mut v6 = Question::new(Family::V6, host);
    for followed in 0..=ALIASES_MAX {
        exchange(server, [&mut v4, &mut v6], until)
            .map_err(|error| LookupError::Unknown(error.to_string()))?;
        let is_alias = |asked: &Question| matches!(asked.answer, Some(DnsAnswer::Alias(_)));
        let over = followed == ALIASES_MAX || Instant::now() >= until;
        if over || !is_alias(&v4) && !is_alias(&v6) {
            break;
        }
        for asked in [&mut v4, &mut v6] {
            if let Some(DnsAnswer::Alias(name)) = &asked.answer {
                *asked = Question::new(asked.family, &name.clone());
            }
        }
    }
    join_families(v4.answer, v6.answer)
}

/// The result of both families. The addresses of one are enough. That there are none counts only
/// when both say so.
fn join_families(v4: Option<DnsAnswer>, v6: Option<DnsAnswer>) -> Result<Addresses, LookupError> {
    let mut lists = Vec::new();
    let mut found_ttl_s = u32::MAX;
    let mut nothing_ttls_s = Vec::new();
    let mut why = "no answer".to_owned();
    for said in [v6, v4].into_iter().flatten() {
        match said {
            DnsAnswer::Addresses(addresses, its_ttl_s) => {
                found_ttl_s = found_ttl_s.min(its_ttl_s);
                lists.push(addresses);
            }
            DnsAnswer::Nothing(its_ttl_s) => {
                nothing_ttls_s.push(its_ttl_s.unwrap_or(NOTHING_TTL_S))
            }
            DnsAnswer::Failed(fault) => why = fault,
            DnsAnswer::Alias(_) => why = format!("over {ALIASES_MAX} aliases in a row"),
            DnsAnswer::Truncated => {}
        }
    }
    let seconds = |ttl_s: u32| Duration::from_secs(u64::from(ttl_s));
    if !lists.is_empty() {
        let addresses = interleave(&lists);
        let fresh = seconds(found_ttl_s);
        return Ok(Addresses { addresses, fresh });
    }
    if let [one, other] = nothing_ttls_s[..] {
        let why = "the name servers know no address for it".to_owned();
        return Err(LookupError::NoAddress(why, seconds(one.min(other))));
    }
    Err(LookupError::Unknown(why))
}

/// The families in turn (RFC 8305 §4), so that the second address tried is of the other one.
fn interleave(lists: &[Vec<IpAddr>]) -> Vec<IpAddr> {
    let longest = lists.iter().map(Vec::len).max().unwrap_or_default();
    let mut joined = Vec::new();
    for index in 0..longest {
        let turn = lists.iter().filter_map(|list| list.get(index));
        for address in turn {
            if !joined.contains(address) {
                joined.push(*address);
            }
        }
    }
    joined
}

/// One family's question and its answer.
struct Question {
    family: Family,
    name: String,
    answer: Option<DnsAnswer>,
}

impl Question {
    fn new(family: Family, name: &str) -> Self {
        Self {
            family,
            name: name.to_owned(),
            answer: None,
        }
    }
}

/// A question that was sent.
struct Waiting<'a> {
    asked: &'a mut Question,
    query: DnsQuery,
    socket: UdpSocket,
}

/// Sends the questions that have no answer yet, and waits for answers until the time is over.
fn exchange(server: SocketAddr, asked: [&mut Question; 2], until: Instant) -> io::Result<()> {
    let mut waiting = Vec::new();
    let mut until = until;
    for asked in asked {
        if asked.answer.is_some() {
            continue;
        }
        let [low, high, ..] = unguessable().to_le_bytes();
        match DnsQuery::new(u16::from_le_bytes([low, high]), &asked.name, asked.family) {
            Ok(query) => {
                let socket = send(server, &query)?;
                waiting.push(Waiting {
                    asked,
                    query,
                    socket,
                });
            }
            Err(why) => asked.answer = Some(DnsAnswer::Failed(why)),
        }
    }
    while !waiting.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        wait_readable(&waiting, left)?;
        let mut open = Vec::new();
        for waiting in waiting {
            match receive(server, &waiting) {
                None => open.push(waiting),
                Some(said) => {
                    if matches!(said, DnsAnswer::Addresses(..)) {
                        until = until.min(Instant::now() + OTHER_FAMILY_TIMEOUT);
                    }
                    waiting.asked.answer = Some(said);
                }
            }
        }
        waiting = open;
    }
    Ok(())
}

fn send(server: SocketAddr, query: &DnsQuery) -> io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    socket.send(query.bytes())?;
    Ok(socket)
}

fn wait_readable(waiting: &[Waiting<'_>], left: Duration) -> io::Result<()> {
    let mut fds: Vec<PollFd<'_>> = waiting
        .iter()
        .map(|waiting| PollFd::new(&waiting.socket, PollFlags::IN))
        .collect();
    let left = Timespec::try_from(left).map_err(io::Error::other)?;
    match poll(&mut fds, Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The answer to one question, if it has come.
fn receive(server: SocketAddr, waiting: &Waiting<'_>) -> Option<DnsAnswer> {
    let mut datagram = [0; DATAGRAM_BYTES_MAX];
    loop {
        let received = match waiting.socket.recv(&mut datagram) {
            Ok(length) => datagram.get(..length).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Some(DnsAnswer::Failed(error.to_string())),
        };
        match waiting.query.read(received) {
            None => {}
            Some(DnsAnswer::Truncated) => {
                let answer = by_tcp(server, &waiting.query);
                let failed = |error| DnsAnswer::Failed(format!("by TCP: {error}"));
                return Some(answer.unwrap_or_else(failed));
            }
            said => return said,
        }
    }
}

/// Asks the question again by TCP (RFC 7766), where a message follows its length.
fn by_tcp(server: SocketAddr, query: &DnsQuery) -> io::Result<DnsAnswer> {
    let until = Instant::now() + TCP_TIMEOUT;
    let left = || match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&server, left()?)?;
    let length = u16::try_from(query.bytes().len()).map_err(io::Error::other)?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend_from_slice(query.bytes());
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(&message)?;
    let mut read = |buffer: &mut [u8]| {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            stream.set_read_timeout(Some(left()?))?;
            match stream.read(rest) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    let mut length = [0; 2];
    read(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    read(&mut reply)?;
    match query.read(&reply) {
        Some(DnsAnswer::Truncated) => Err(io::Error::other("the answer is cut there, too")),
        Some(said) => Ok(said),
        None => Err(io::Error::other("the answer is to another question")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn v6(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_are_tried_in_turn() {
        let some = |ips: &[IpAddr], ttl_s| Some(DnsAnswer::Addresses(ips.to_vec(), ttl_s));
        let found = join_families(
            some(&[v4(1), v4(2), v4(3)], 60),
            some(&[v6("fd00::1"), v6("fd00::2")], 20),
        );
        let found = found.unwrap();
        let expected = [v6("fd00::1"), v4(1), v6("fd00::2"), v4(2), v4(3)];
        assert_eq!(found.addresses, expected);
        assert_eq!(found.fresh, Duration::from_secs(20));
    }

    #[test]
    fn one_family_is_enough_whatever_the_other_does() {
        let addresses = DnsAnswer::Addresses(vec![v4(1)], 60);
        for other in [
            None,
            Some(DnsAnswer::Nothing(Some(1))),
            Some(DnsAnswer::Nothing(None)),
            Some(DnsAnswer::Failed("it answers SERVFAIL".into())),
        ] {
            let found = join_families(Some(addresses.clone()), other.clone()).unwrap();
            assert_eq!(found.addresses, [v4(1)], "{other:?}");
            assert_eq!(found.fresh, Duration::from_secs(60), "{other:?}");
            let found = join_families(other, Some(addresses.clone())).unwrap();
            assert_eq!(found.fresh, Duration::from_secs(60));
        }
    }

    #[test]
    fn that_there_is_nothing_both_families_must_say() {
        let nothing = |ttl_s| Some(DnsAnswer::Nothing(ttl_s));
        let failed = join_families(nothing(Some(30)), nothing(Some(20))).unwrap_err();
        let LookupError::NoAddress(_, fresh) = failed else {
            panic!("{failed:?}");
        };
        assert_eq!(fresh, Duration::from_secs(20));
        for other in [None, Some(DnsAnswer::Failed("it answers SERVFAIL".into()))] {
            let failed = join_families(nothing(Some(30)), other).unwrap_err();
            assert!(matches!(failed, LookupError::Unknown(_)), "{failed:?}");
        }
        let failed = join_families(None, None).unwrap_err();
        assert!(matches!(failed, LookupError::Unknown(why) if why == "no answer"));
    }
}
