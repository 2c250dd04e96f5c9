//! A DNS server with a script. Owns: its UDP and TCP socket, the names it knows, and its lies.
//! Must not: use the proxy's own way of reading messages.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::Duration;

use crate::core::lock;

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_SOA: u16 = 6;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
const FLAG_TRUNCATED: u16 = 0x0200;
/// Answer, recursion desired and available.
const FLAGS: u16 = 0x8180;
const SERVFAIL: u16 = 2;
const NXDOMAIN: u16 = 3;
/// Where lies lead: an address at which nobody listens.
const ELSEWHERE: [u8; 4] = [127, 66, 66, 66];
/// How often a thread looks whether it is to end.
const POLL: Duration = Duration::from_millis(50);

/// How the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsBehaviour {
    /// As it should.
    Honest,
    /// By UDP only that it is too long.
    Truncated,
    /// The same, and by TCP nothing.
    TruncatedWithoutTcp,
    /// The same, and by TCP half of it, and then silence.
    TruncatedThenHalf,
    /// SERVFAIL.
    Servfail,
    /// Never.
    Silent,
    /// Never to questions for AAAA.
    SilentToV6,
    /// First under another id, for another name, of another type and as a query, each time with
    /// another address, then as it should.
    LiesFirst,
    /// Under another id only.
    WrongId,
    /// With bytes of no meaning behind a right header and question.
    Garbage,
}

/// A question as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsQuery {
    /// The name as it was asked for, without a dot at its end.
    pub name: String,
    /// 1 for A, 28 for AAAA.
    pub kind: u16,
    /// By TCP.
    pub tcp: bool,
    /// The id.
    pub id: u16,
    /// The port it came from.
    pub port: u16,
}

#[derive(Clone)]
enum Entry {
    Addresses(Vec<IpAddr>),
    Alias(String),
}

struct Shared {
    names: Mutex<HashMap<String, (u32, Entry)>>,
    queries: Mutex<Vec<DnsQuery>>,
    behaviour: Mutex<DnsBehaviour>,
    negative_ttl_s: u32,
    /// Aliases are answered without what they lead to.
    bare_aliases: Mutex<bool>,
    stopped: Mutex<bool>,
}

/// The running server, by UDP and TCP on one port. Dropping it stops it.
pub struct Dns {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Dns {
    /// Starts it on a free port of 127.0.0.1. It knows no names yet.
    pub fn start() -> Self {
        let (udp, tcp) = bind();
        let address = udp.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            names: Mutex::default(),
            queries: Mutex::default(),
            behaviour: Mutex::new(DnsBehaviour::Honest),
            negative_ttl_s: 60,
            bare_aliases: Mutex::new(false),
            stopped: Mutex::new(false),
        });
        let for_udp = Arc::clone(&shared);
        let run = move || serve_udp(&for_udp, &udp);
        Builder::new()
            .name("standin-dns-udp".into())
            .spawn(run)
            .expect("a thread");
        let for_tcp = Arc::clone(&shared);
        let run = move || serve_tcp(&for_tcp, &tcp);
        Builder::new()
            .name("standin-dns-tcp".into())
            .spawn(run)
            .expect("a thread");
        Self { address, shared }
    }

    /// Where it listens, for `RESOLVER`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on `name` has these addresses.
    pub fn set(&self, name: &str, ttl_s: u32, addresses: &[&str]) {
        let parsed = addresses.iter().map(|ip| ip.parse().expect("an address"));
        self.put(name, ttl_s, Entry::Addresses(parsed.collect()));
    }

    /// From now on `name` is another name for `target`.
    pub fn alias(&self, name: &str, ttl_s: u32, target: &str) {
        self.put(name, ttl_s, Entry::Alias(target.to_owned()));
    }

    fn put(&self, name: &str, ttl_s: u32, entry: Entry) {
        lock(&self.shared.names).insert(name.to_owned(), (ttl_s, entry));
    }

    /// From now on `name` does not exist.
    pub fn remove(&self, name: &str) {
        lock(&self.shared.names).remove(name);
    }

    /// From now on it answers like this.
    pub fn behave(&self, behaviour: DnsBehaviour) {
        *lock(&self.shared.behaviour) = behaviour;
    }

    /// From now on an alias is answered without what it leads to.
    pub fn answer_aliases_bare(&self) {
        *lock(&self.shared.bare_aliases) = true;
    }

    /// The questions so far.
    pub fn queries(&self) -> Vec<DnsQuery> {
        lock(&self.shared.queries).clone()
    }

    /// How many questions there were for `name`.
    pub fn count(&self, name: &str) -> usize {
        let queries = self.queries();
        queries.iter().filter(|query| query.name == name).count()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        *lock(&self.shared.stopped) = true;
    }
}

/// A port that is free for both.
fn bind() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind(("127.0.0.1", 0)).expect("a port");
        let address = udp.local_addr().expect("an address");
        if let Ok(tcp) = TcpListener::bind(address) {
            udp.set_read_timeout(Some(POLL)).expect("a time limit");
            tcp.set_nonblocking(true).expect("a socket");
            return (udp, tcp);
        }
    }
}

fn serve_udp(shared: &Shared, socket: &UdpSocket) {
    let mut datagram = [0; 4096];
    while !*lock(&shared.stopped) {
        let Ok((length, from)) = socket.recv_from(&mut datagram) else {
            continue;
        };
        let Some(question) = Question::read(&datagram[..length]) else {
            continue;
        };
        shared.note(&question, false, from.port());
        for reply in shared.by_udp(&question) {
            let _ = socket.send_to(&reply, from);
        }
    }
}

fn serve_tcp(shared: &Arc<Shared>, listener: &TcpListener) {
    while !*lock(&shared.stopped) {
        let Ok((stream, from)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let shared = Arc::clone(shared);
        let run = move || drop(answer_tcp(&shared, stream, from.port()));
        let _ = Builder::new().name("standin-dns".into()).spawn(run);
    }
}

fn answer_tcp(shared: &Shared, mut stream: TcpStream, port: u16) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    let Some(question) = Question::read(&message) else {
        return Ok(());
    };
    shared.note(&question, true, port);
    if *lock(&shared.behaviour) == DnsBehaviour::TruncatedWithoutTcp {
        return Ok(());
    }
    let reply = shared.right(&question);
    // In two pieces, as networks do.
    let length = u16::try_from(reply.len()).expect("a short answer");
    stream.write_all(&length.to_be_bytes())?;
    stream.flush()?;
    let (start, rest) = reply.split_at(reply.len() / 2);
    stream.write_all(start)?;
    stream.flush()?;
    if *lock(&shared.behaviour) == DnsBehaviour::TruncatedThenHalf {
        // Until the other side has had enough.
        return stream.read_exact(&mut [0]);
    }
    stream.write_all(rest)
}

#[derive(Clone)]
struct Question {
    id: u16,
    name: String,
    kind: u16,
    /// Name, type and class as they came.
    bytes: Vec<u8>,
}

impl Question {
    fn read(message: &[u8]) -> Option<Self> {
        let id = u16::from_be_bytes([*message.first()?, *message.get(1)?]);
        let mut labels = Vec::new();
        let mut at = 12;
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            let label = message.get(at..at + length)?;
            labels.push(String::from_utf8(label.to_vec()).ok()?);
            at += length;
        }
        let kind = u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]);
        Some(Self {
            id,
            name: labels.join("."),
            kind,
            bytes: message.get(12..at + 4)?.to_vec(),
        })
    }

    fn reply(&self, flags: u16, answers: &[Vec<u8>], authority: &[Vec<u8>]) -> Vec<u8> {
        let mut reply = Vec::new();
        let count = |list: &[Vec<u8>]| u16::try_from(list.len()).expect("few records");
        for number in [self.id, flags, 1, count(answers), count(authority), 0] {
            reply.extend(number.to_be_bytes());
        }
        reply.extend(&self.bytes);
        reply.extend(answers.concat());
        reply.extend(authority.concat());
        reply
    }
}

fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label"));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

fn record(name: &str, kind: u16, ttl_s: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = encoded(name);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(CLASS_IN.to_be_bytes());
    bytes.extend(ttl_s.to_be_bytes());
    let length = u16::try_from(data.len()).expect("short data");
    bytes.extend(length.to_be_bytes());
    bytes.extend(data);
    bytes
}

impl Shared {
    fn note(&self, question: &Question, tcp: bool, port: u16) {
        lock(&self.queries).push(DnsQuery {
            name: question.name.clone(),
            kind: question.kind,
            tcp,
            id: question.id,
            port,
        });
    }

    fn by_udp(&self, question: &Question) -> Vec<Vec<u8>> {
        let behaviour = *lock(&self.behaviour);
        match behaviour {
            DnsBehaviour::Silent => Vec::new(),
            DnsBehaviour::SilentToV6 if question.kind == TYPE_AAAA => Vec::new(),
            DnsBehaviour::Honest | DnsBehaviour::SilentToV6 => vec![self.right(question)],
            DnsBehaviour::Truncated
            | DnsBehaviour::TruncatedWithoutTcp
            | DnsBehaviour::TruncatedThenHalf => {
                vec![question.reply(FLAGS | FLAG_TRUNCATED, &[], &[])]
            }
            DnsBehaviour::Servfail => vec![question.reply(FLAGS | SERVFAIL, &[], &[])],
            DnsBehaviour::WrongId => vec![lie(question).remove(0)],
            DnsBehaviour::LiesFirst => {
                let mut replies = lie(question);
                replies.push(self.right(question));
                replies
            }
            DnsBehaviour::Garbage => {
                let mut reply = question.reply(FLAGS, &[vec![0xff; 40]], &[]);
                reply.extend([0xc0; 40]);
                vec![reply]
            }
        }
    }

    fn right(&self, question: &Question) -> Vec<u8> {
        let names = lock(&self.names);
        let mut answers = Vec::new();
        let mut name = question.name.to_ascii_lowercase();
        let mut exists = true;
        loop {
            let (ttl_s, addresses) = match names.get(&name) {
                Some((ttl_s, Entry::Addresses(addresses))) => (*ttl_s, addresses),
                Some((ttl_s, Entry::Alias(target))) if answers.len() < 20 => {
                    answers.push(record(&name, TYPE_CNAME, *ttl_s, &encoded(target)));
                    name = target.clone();
                    if *lock(&self.bare_aliases) {
                        return question.reply(FLAGS, &answers, &[]);
                    }
                    continue;
                }
                Some(_) => break,
                None => {
                    exists = false;
                    break;
                }
            };
            let before = answers.len();
            for address in addresses {
                match (address, question.kind) {
                    (IpAddr::V4(v4), TYPE_A) => {
                        answers.push(record(&name, TYPE_A, ttl_s, &v4.octets()));
                    }
                    (IpAddr::V6(v6), TYPE_AAAA) => {
                        answers.push(record(&name, TYPE_AAAA, ttl_s, &v6.octets()));
                    }
                    _ => {}
                }
            }
            if answers.len() > before {
                return question.reply(FLAGS, &answers, &[]);
            }
            break;
        }
        let mut soa = encoded("ns.test");
        soa.extend(encoded("root.test"));
        for number in [1, 3600, 600, 86_400, self.negative_ttl_s] {
            soa.extend(u32::to_be_bytes(number));
        }
        let authority = record("test", TYPE_SOA, self.negative_ttl_s, &soa);
        let flags = if exists { FLAGS } else { FLAGS | NXDOMAIN };
        question.reply(flags, &answers, &[authority])
    }
}

/// Answers that are not to this question.
fn lie(question: &Question) -> Vec<Vec<u8>> {
    let answer = |name: &str| vec![record(name, TYPE_A, 60, &ELSEWHERE)];
    let wrong_id = Question {
        id: question.id ^ 1,
        ..question.clone()
    };
    let other = "other.test";
    let mut bytes = encoded(other);
    bytes.extend(question.kind.to_be_bytes());
    bytes.extend(CLASS_IN.to_be_bytes());
    let wrong_name = Question {
        bytes,
        ..question.clone()
    };
    let mut wrong_type = question.clone();
    let at = wrong_type.bytes.len() - 3;
    wrong_type.bytes[at] = 16;
    vec![
        wrong_id.reply(FLAGS, &answer(&question.name), &[]),
        wrong_name.reply(FLAGS, &answer(other), &[]),
        wrong_type.reply(FLAGS, &answer(&question.name), &[]),
        question.reply(FLAGS & !0x8000, &answer(&question.name), &[]),
        vec![0; 3],
    ]
}
