//! DNS messages. Owns: one question, and what a server says to it. Must not: touch a socket, or
//! believe a message that is not the answer to this very question.
//!
//! `simple-dns` reads the records; that a message belongs to the question is decided before, on its
//! bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, ResourceRecord, TYPE};

/// Aliases followed within one message: as many as resolvers follow at the most (BIND: 16).
const ALIASES_MAX: usize = 16;
/// The header (RFC 1035 §4.1.1).
const HEADER_BYTES: usize = 12;
/// A record takes a name of one byte, and 10 more, at the least (RFC 1035 §4.1.3).
const RECORD_BYTES_MIN: usize = 11;
/// RFC 1035 §4.1.1: the message is an answer.
const ANSWER_BIT: u8 = 0x80;
/// RFC 1035 §4.1.1: the kind of query; 0 for an ordinary one.
const OPCODE_BITS: u8 = 0x78;
/// RFC 1035 §4.1.1: there is more than the message has room for.
const TRUNCATED_BIT: u8 = 0x02;

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

/// A question, as it goes to a server.
#[derive(Debug, Clone)]
pub struct DnsQuery {
    name: String,
    family: Family,
    bytes: Vec<u8>,
}

/// A server's answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsAnswer {
    /// These addresses, for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// The name is another's, of which the message says nothing.
    Alias(String),
    /// There are none, for so many seconds if that is said.
    Nothing(Option<u32>),
    /// The answer is too long for one datagram.
    Truncated,
    /// The server does not say, for this reason.
    Failed(String),
}

impl DnsQuery {
    /// The question for the addresses of `name`, under `id`.
    ///
    /// # Errors
    /// When it is no name (RFC 1035 §2.3.4: labels up to 63 bytes, 255 in all).
    pub fn new(id: u16, name: &str, family: Family) -> Result<Self, String> {
        let kind = match family {
            Family::V4 => TYPE::A,
            Family::V6 => TYPE::AAAA,
        };
        let no_name = || "it is no name of the DNS".to_owned();
        // The crate knows escapes, and drops empty labels.
        let fit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !name
            .split('.')
            .all(|label| !label.is_empty() && label.bytes().all(fit))
        {
            return Err(no_name());
        }
        let fault = |_| no_name();
        let asked = Name::new(name).map_err(fault)?;
        let mut packet = Packet::new_query(id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let question = Question::new(asked, kind.into(), CLASS::IN.into(), false);
        packet.questions.push(question);
        Ok(Self {
            name: name.to_owned(),
            family,
            bytes: packet.build_bytes_vec().map_err(fault)?,
        })
    }

    /// The message to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The answer in `reply`; none when it answers another question.
    pub fn read(&self, reply: &[u8]) -> Option<DnsAnswer> {
        if !self.is_answered_by(reply) {
            return None;
        }
        if reply.get(2).is_some_and(|flags| flags & TRUNCATED_BIT != 0) {
            return Some(DnsAnswer::Truncated);
        }
        let damaged = || DnsAnswer::Failed("its answer cannot be read".to_owned());
        // The crate makes room for as many records as the header promises.
        if records(reply).saturating_mul(RECORD_BYTES_MIN) > reply.len() {
            return Some(damaged());
        }
        Some(Packet::parse(reply).map_or_else(|_| damaged(), |packet| self.read_answers(&packet)))
    }

    /// RFC 5452 §9.1: id and question must be ours. Names may come back in another case.
    fn is_answered_by(&self, reply: &[u8]) -> bool {
        let part = |bytes: &[u8], from, to| bytes.get(from..to).map(<[u8]>::to_vec);
        let question = self.bytes.get(HEADER_BYTES..).unwrap_or_default();
        let answered = reply.get(HEADER_BYTES..HEADER_BYTES + question.len());
        let is_answer = |flags: &u8| flags & ANSWER_BIT != 0 && flags & OPCODE_BITS == 0;
        part(reply, 0, 2) == part(&self.bytes, 0, 2)
            && reply.get(2).is_some_and(is_answer)
            && part(reply, 4, 6) == part(&self.bytes, 4, 6)
            && answered.is_some_and(|answered| answered.eq_ignore_ascii_case(question))
    }

    fn read_answers(&self, packet: &Packet<'_>) -> DnsAnswer {
        let none_there = match packet.rcode() {
            RCODE::NoError => false,
            RCODE::NameError => true,
            code => return DnsAnswer::Failed(format!("it answers {}", words(code))),
        };
        let Ok(mut name) = Name::new(&self.name) else {
            return DnsAnswer::Failed("the name is bad".to_owned());
        };
        let mut ttl_s = u32::MAX;
        for followed in 0..=ALIASES_MAX {
            let own = || packet.answers.iter().filter(|record| is_of(record, &name));
            let found: Vec<(IpAddr, u32)> = own().filter_map(|r| self.address(r)).collect();
            if !found.is_empty() {
                let shortest = found.iter().map(|(_, ttl_s)| *ttl_s).min();
                let ttl_s = shortest.unwrap_or_default().min(ttl_s);
                return DnsAnswer::Addresses(found.into_iter().map(|(ip, _)| ip).collect(), ttl_s);
            }
            let alias = own().find_map(|record| match &record.rdata {
                RData::CNAME(alias) => Some((alias.0.clone(), record.ttl)),
                _ => None,
            });
            match alias {
                Some((alias, alias_ttl_s)) => {
                    name = alias;
                    ttl_s = ttl_s.min(alias_ttl_s);
                }
                None if followed > 0 && !none_there && negative_ttl_s(packet).is_none() => {
                    return DnsAnswer::Alias(name.to_string());
                }
                None => return DnsAnswer::Nothing(negative_ttl_s(packet)),
            }
        }
        DnsAnswer::Failed("it answers with a circle of aliases".to_owned())
    }

    fn address(&self, record: &ResourceRecord<'_>) -> Option<(IpAddr, u32)> {
        let address = match (&record.rdata, self.family) {
            (RData::A(found), Family::V4) => IpAddr::V4(Ipv4Addr::from(found.address)),
            (RData::AAAA(found), Family::V6) => IpAddr::V6(Ipv6Addr::from(found.address)),
            _ => return None,
        };
        Some((address, record.ttl))
    }
}

fn is_of(record: &ResourceRecord<'_>, name: &Name<'_>) -> bool {
    record.class == CLASS::IN && record.name == *name
}

/// How long there is nothing (RFC 2308 §5): the smaller of the SOA's own time and its last field.
fn negative_ttl_s(packet: &Packet<'_>) -> Option<u32> {
    packet
        .name_servers
        .iter()
        .find_map(|record| match &record.rdata {
            RData::SOA(authority) => Some(record.ttl.min(authority.minimum)),
            _ => None,
        })
}

/// All the records that the header promises.
fn records(reply: &[u8]) -> usize {
    let counts = reply.get(6..HEADER_BYTES).unwrap_or_default();
    let count = |pair: &[u8]| {
        pair.iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    counts.chunks(2).map(count).sum()
}

fn words(code: RCODE) -> String {
    match code {
        RCODE::FormatError => "FORMERR".to_owned(),
        RCODE::NotImplemented => "NOTIMP".to_owned(),
        RCODE::Refused => "REFUSED".to_owned(),
        RCODE::ServerFailure => "SERVFAIL".to_owned(),
        code => format!("{code:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simple_dns::rdata::{A, AAAA, CNAME, SOA};

    const HOST: &str = "registry.example";

    fn query(family: Family) -> DnsQuery {
        DnsQuery::new(0x1234, HOST, family).unwrap()
    }

    fn reply_to(query: &DnsQuery) -> Packet<'_> {
        Packet::parse(query.bytes()).unwrap().into_reply()
    }

    fn record<'a>(name: &'a str, ttl_s: u32, rdata: RData<'a>) -> ResourceRecord<'a> {
        ResourceRecord::new(Name::new(name).unwrap(), CLASS::IN, ttl_s, rdata)
    }

    fn a(address: [u8; 4]) -> RData<'static> {
        let address = u32::from_be_bytes(address);
        RData::A(A { address })
    }

    fn alias(name: &str) -> RData<'_> {
        RData::CNAME(CNAME(Name::new(name).unwrap()))
    }

    fn soa(minimum: u32) -> RData<'static> {
        RData::SOA(SOA {
            mname: Name::new("ns.example").unwrap(),
            rname: Name::new("root.example").unwrap(),
            serial: 1,
            refresh: 1,
            retry: 1,
            expire: 1,
            minimum,
        })
    }

    fn read(query: &DnsQuery, packet: &Packet<'_>) -> Option<DnsAnswer> {
        let plain = query.read(&packet.build_bytes_vec().unwrap());
        let compressed = query.read(&packet.build_bytes_vec_compressed().unwrap());
        assert_eq!(plain, compressed);
        plain
    }

    #[test]
    fn addresses_of_the_family_asked_for() {
        for family in [Family::V4, Family::V6] {
            let query = query(family);
            let mut packet = reply_to(&query);
            let v6 = RData::AAAA(AAAA { address: 1 });
            packet.answers = vec![
                record("REGISTRY.Example", 60, a([10, 0, 0, 1])),
                record(HOST, 30, a([10, 0, 0, 2])),
                record(HOST, 7, v6),
                record("other.example", 1, a([10, 0, 0, 3])),
            ];
            let expected = match family {
                Family::V4 => {
                    let ips = vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
                    DnsAnswer::Addresses(ips, 30)
                }
                Family::V6 => DnsAnswer::Addresses(vec!["::1".parse().unwrap()], 7),
            };
            assert_eq!(read(&query, &packet), Some(expected));
        }
    }

    #[test]
    fn aliases_are_followed_and_the_shortest_time_holds() {
        let query = query(Family::V4);
        let mut packet = reply_to(&query);
        packet.answers = vec![
            record("c.example", 60, a([10, 0, 0, 1])),
            record("b.example", 5, alias("c.example")),
            record(HOST, 60, alias("B.example")),
        ];
        let expected = DnsAnswer::Addresses(vec![[10, 0, 0, 1].into()], 5);
        assert_eq!(read(&query, &packet), Some(expected));
        packet.answers.remove(0);
        let expected = DnsAnswer::Alias("c.example".to_owned());
        assert_eq!(read(&query, &packet), Some(expected));
        packet.name_servers = vec![record("example", 9, soa(20))];
        assert_eq!(read(&query, &packet), Some(DnsAnswer::Nothing(Some(9))));
    }

    #[test]
    fn a_circle_of_aliases_ends() {
        let query = query(Family::V4);
        let mut packet = reply_to(&query);
        packet.answers = vec![
            record(HOST, 60, alias("b.example")),
            record("b.example", 60, alias(HOST)),
        ];
        let said = read(&query, &packet).unwrap();
        assert!(matches!(said, DnsAnswer::Failed(why) if why.contains("circle")));
    }

    #[test]
    fn negative_answers_last_as_the_zone_says() {
        let query = query(Family::V4);
        let mut packet = reply_to(&query);
        assert_eq!(read(&query, &packet), Some(DnsAnswer::Nothing(None)));
        packet.name_servers = vec![record("example", 900, soa(20))];
        assert_eq!(read(&query, &packet), Some(DnsAnswer::Nothing(Some(20))));
        *packet.rcode_mut() = RCODE::NameError;
        packet.name_servers = vec![record("example", 10, soa(20))];
        assert_eq!(read(&query, &packet), Some(DnsAnswer::Nothing(Some(10))));
    }

    #[test]
    fn failures_are_named() {
        let query = query(Family::V4);
        for (code, told) in [
            (RCODE::ServerFailure, "SERVFAIL"),
            (RCODE::Refused, "REFUSED"),
            (RCODE::NotImplemented, "NOTIMP"),
            (RCODE::FormatError, "FORMERR"),
        ] {
            let mut packet = reply_to(&query);
            *packet.rcode_mut() = code;
            let expected = DnsAnswer::Failed(format!("it answers {told}"));
            assert_eq!(read(&query, &packet), Some(expected));
        }
    }

    #[test]
    fn what_answers_another_question_is_no_answer() {
        let query = query(Family::V4);
        let right = reply_to(&query).build_bytes_vec().unwrap();
        assert!(query.read(&right).is_some());
        let changed = |at: usize, to: u8| {
            let mut bytes = right.clone();
            bytes[at] = to;
            query.read(&bytes)
        };
        assert_eq!(changed(0, 0x99), None, "id");
        assert_eq!(changed(1, 0x99), None, "id");
        assert_eq!(changed(2, 0x01), None, "a query");
        assert_eq!(changed(2, 0x91), None, "another opcode");
        assert_eq!(changed(5, 0), None, "no question");
        assert_eq!(changed(5, 2), None, "two questions");
        assert_eq!(changed(13, b'x'), None, "name");
        assert_eq!(changed(right.len() - 3, 28), None, "type");
        assert_eq!(changed(right.len() - 1, 3), None, "class");
        assert!(changed(13, b'R').is_some(), "the name in another case");
        assert_eq!(query.read(query.bytes()), None, "our own query");
        for length in 0..right.len() {
            assert_eq!(query.read(&right[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn truncation_is_seen_before_the_records_are_read() {
        let query = query(Family::V4);
        let mut bytes = reply_to(&query).build_bytes_vec().unwrap();
        bytes[2] |= TRUNCATED_BIT;
        bytes[7] = 3;
        bytes.extend([0xc0, 12, 0]);
        assert_eq!(query.read(&bytes), Some(DnsAnswer::Truncated));
    }

    #[test]
    fn a_header_that_promises_too_much_makes_no_room() {
        let query = query(Family::V4);
        let mut bytes = reply_to(&query).build_bytes_vec().unwrap();
        bytes[6..12].fill(0xff);
        let said = query.read(&bytes).unwrap();
        assert!(matches!(said, DnsAnswer::Failed(why) if why.contains("cannot be read")));
    }

    #[test]
    fn only_names_are_asked_for() {
        let long = format!("{}.example", "a".repeat(64));
        let longer = "a.".repeat(130);
        for bad in ["", ".", "a..b", "a.", "a\\.b", "a b", &long, &longer] {
            assert!(DnsQuery::new(1, bad, Family::V4).is_err(), "{bad}");
        }
        let query = DnsQuery::new(1, "a.example", Family::V6).unwrap();
        assert_eq!(query.bytes().len(), 12 + 11 + 4);
    }

    /// Odd messages by the hundred thousand: no panic, no endless loop, and nothing that belongs
    /// to another question.
    #[test]
    fn garbage_is_survived() {
        let query = query(Family::V4);
        let mut packet = reply_to(&query);
        packet.answers = vec![
            record(HOST, 60, alias("b.example")),
            record("b.example", 60, a([10, 0, 0, 1])),
        ];
        packet.name_servers = vec![record("example", 10, soa(20))];
        let seed = packet.build_bytes_vec_compressed().unwrap();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            // xorshift64: the same numbers each time.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        let mut read = 0_u32;
        for _ in 0..100_000 {
            let mut bytes = seed.clone();
            for _ in 0..=next(6) {
                match next(4) {
                    0 => bytes.truncate(next(bytes.len()).max(1)),
                    1 => bytes.extend((0..next(40)).map(|_| 0xc0)),
                    _ => {
                        let at = next(bytes.len());
                        bytes[at] = u8::try_from(next(256)).unwrap();
                    }
                }
            }
            if query.read(&bytes).is_some() {
                assert_eq!(bytes[..2], seed[..2]);
                read += 1;
            }
        }
        assert!(read > 10_000, "{read}");
    }
}
