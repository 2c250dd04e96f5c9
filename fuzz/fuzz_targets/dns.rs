//! What a DNS server says: nothing but an answer to the question is believed, and addresses are of
//! the family that was asked for.
#![no_main]

use aws_ecr_proxy::upstream::dns::message::{Family, Query, DnsAnswer};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for family in [Family::V4, Family::V6] {
        let query = Query::new(0x1234, "registry.test", family).expect("a question");
        if let Some(DnsAnswer::Addresses(addresses, _)) = query.read(bytes) {
            assert!(
                bytes.starts_with(&[0x12, 0x34]),
                "another question's answer"
            );
            let is_v4 = matches!(family, Family::V4);
            assert!(addresses.iter().all(|address| address.is_ipv4() == is_v4));
        }
    }
});
