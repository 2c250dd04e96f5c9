//! What a DNS server says. Nothing but an answer to the question is believed, addresses are of the
//! family that was asked for, and all of them are in the message.
#![no_main]

use std::net::IpAddr;

use aws_ecr_proxy::upstream::dns::message::{DnsAnswer, DnsQuery, Family};
use aws_ecr_proxy_fuzz::show;

const ID: u16 = 0x1234;
const NAME: &str = "registry.test";

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for family in [Family::V4, Family::V6] {
        let query = DnsQuery::new(ID, NAME, family).expect("a question");
        let said = query.read(bytes);
        assert_eq!(said.is_some(), is_answer(query.bytes(), bytes));
        let outcome = match said {
            None => "no answer".to_owned(),
            Some(DnsAnswer::Addresses(addresses, ttl_s)) => {
                assert!(!addresses.is_empty());
                for address in &addresses {
                    assert_eq!(address.is_ipv4(), matches!(family, Family::V4));
                    assert!(holds(bytes, address), "{address} is not in the message");
                }
                format!("{addresses:?} for {ttl_s} s")
            }
            Some(DnsAnswer::Alias(name)) => format!("alias {name}"),
            Some(DnsAnswer::Nothing(ttl_s)) => format!("nothing for {ttl_s:?} s"),
            Some(DnsAnswer::Truncated) => {
                assert!(bytes[2] & 0x02 != 0);
                "truncated".to_owned()
            }
            Some(DnsAnswer::Failed(_)) => "failed".to_owned(),
        };
        show(&outcome);
    }
});

/// Id, QR and opcode, one question, and that question, in any case (RFC 5452 §9.1).
fn is_answer(query: &[u8], reply: &[u8]) -> bool {
    let (Some(header), Some(question)) = (reply.get(..12), reply.get(12..query.len())) else {
        return false;
    };
    header[..2] == ID.to_be_bytes()
        && header[2] & 0xf8 == 0x80
        && header[4..6] == [0, 1]
        && question.eq_ignore_ascii_case(&query[12..])
}

fn holds(bytes: &[u8], address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => bytes.windows(4).any(|part| part == address.octets()),
        IpAddr::V6(address) => bytes.windows(16).any(|part| part == address.octets()),
    }
}
