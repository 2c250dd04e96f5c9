//! From when until when a certificate is good, and for which names. Owns: as much DER as it takes
//! to find that out. Must not: judge anything else of a certificate; rustls does.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use crate::calendar;

/// Tags of X.690 §8, as they appear in certificates.
const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0] EXPLICIT Version`, which certificates of version 1 leave out.
const VERSION: u8 = 0xa0;

const BOOLEAN: u8 = 0x01;
const OCTET_STRING: u8 = 0x04;
/// `id-ce-subjectAltName`, 2.5.29.17, as an OBJECT IDENTIFIER.
const SUBJECT_ALT_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 0x11];
/// `[2] dNSName` and `[7] iPAddress` of a GeneralName.
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

/// The time in which a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: SystemTime,
    pub(super) until: SystemTime,
}

/// `Certificate.tbsCertificate.validity` (RFC 5280 §4.1); none where that cannot be read.
pub(super) fn validity(certificate: &[u8]) -> Option<Validity> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (mut rest, _) = expect(certificate, SEQUENCE)?;
    if rest.first() == Some(&VERSION) {
        (_, _, rest) = element(rest)?;
    }
    // serialNumber, signature, issuer
    for _ in 0..3 {
        (_, _, rest) = element(rest)?;
    }
    let (times, _) = expect(rest, SEQUENCE)?;
    let (tag, from, rest) = element(times)?;
    let from = time(tag, from)?;
    let (tag, until, _) = element(rest)?;
    let until = time(tag, until)?;
    Some(Validity { from, until })
}

/// True when a certificate is of version 1, which has no extensions and so no names that count.
pub(super) fn is_version_1(certificate: &[u8]) -> bool {
    let inner = expect(certificate, SEQUENCE).and_then(|(inner, _)| expect(inner, SEQUENCE));
    inner.is_some_and(|(inner, _)| inner.first() != Some(&VERSION))
}

/// The names and addresses in `subjectAltName` (RFC 5280 §4.2.1.6); none without the extension.
pub(super) fn names(certificate: &[u8]) -> Vec<String> {
    // The extension's value follows its identifier, as an OCTET STRING that holds a SEQUENCE.
    let found = certificate
        .windows(SUBJECT_ALT_NAME.len())
        .position(|bytes| bytes == SUBJECT_ALT_NAME);
    let value = found.and_then(|at| certificate.get(at + SUBJECT_ALT_NAME.len()..));
    let value = value.and_then(|value| {
        let value = match element(value)? {
            // `critical`
            (BOOLEAN, _, rest) => rest,
            _ => value,
        };
        let (value, _) = expect(value, OCTET_STRING)?;
        Some(expect(value, SEQUENCE)?.0)
    });
    let mut rest = value.unwrap_or_default();
    let mut names = Vec::new();
    while let Some((tag, content, after)) = element(rest) {
        rest = after;
        let v6 = <[u8; 16]>::try_from(content).map(Ipv6Addr::from);
        match (tag, <[u8; 4]>::try_from(content)) {
            (DNS_NAME, _) => names.push(String::from_utf8_lossy(content).into_owned()),
            (IP_ADDRESS, Ok(v4)) => names.push(Ipv4Addr::from(v4).to_string()),
            (IP_ADDRESS, Err(_)) => names.extend(v6.map(|v6| v6.to_string())),
            _ => {}
        }
    }
    names
}

/// The first element's content and what follows it, when it has that tag.
fn expect(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(bytes)?;
    (found == tag).then_some((content, rest))
}

/// The first element's tag and content, and what follows it (X.690 §10.1: definite lengths).
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        // Four bytes of length are 4 GiB.
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            let add = |sum: usize, digit: &u8| sum.checked_mul(256)?.checked_add((*digit).into());
            (digits.iter().try_fold(0, add)?, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280 §4.1.2.5), as a time of our kind.
fn time(tag: u8, text: &[u8]) -> Option<SystemTime> {
    let text = std::str::from_utf8(text).ok()?;
    let year = match (tag, text.len()) {
        // Two digits mean 1950 to 2049.
        (UTC_TIME, 13) if text < "5" => "20",
        (UTC_TIME, 13) => "19",
        (GENERALIZED_TIME, 15) => "",
        _ => return None,
    };
    let text = format!("{year}{text}");
    let part = |from: usize, to: usize| text.get(from..to);
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(8, 10)?, part(10, 12)?, part(12, 14)?);
    let zone = text.get(14..).filter(|zone| *zone == "Z")?;
    calendar::parse_rfc3339(&format!(
        "{year}-{month}-{day}T{hour}:{minute}:{second}{zone}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn seconds(tag: u8, text: &str) -> Option<u64> {
        let time = time(tag, text.as_bytes())?;
        Some(time.duration_since(UNIX_EPOCH).unwrap().as_secs())
    }

    #[test]
    fn names_and_version_are_read() {
        let key = rcgen::KeyPair::generate().unwrap();
        let wanted = ["a.example", "*.b.example", "192.0.2.1", "2001:db8::1"];
        let wanted = wanted.map(str::to_owned).to_vec();
        let own = rcgen::CertificateParams::new(wanted.clone()).unwrap();
        let own = own.self_signed(&key).unwrap();
        assert_eq!(names(own.der()), wanted);
        assert!(!is_version_1(own.der()));
        let bare = rcgen::CertificateParams::new(Vec::new()).unwrap();
        let bare = bare.self_signed(&key).unwrap();
        assert_eq!(names(bare.der()), [""; 0]);
        for length in 0..own.der().len() {
            // Whatever is cut off, nothing panics.
            let cut = &own.der()[..length];
            assert!(names(cut).len() <= wanted.len() && !is_version_1(cut));
        }
    }

    #[test]
    fn times_of_both_kinds() {
        assert_eq!(seconds(UTC_TIME, "700101000000Z"), Some(0));
        assert_eq!(seconds(UTC_TIME, "491231235959Z"), Some(2_524_607_999));
        assert_eq!(
            seconds(GENERALIZED_TIME, "20000229120000Z"),
            Some(951_825_600)
        );
        assert_eq!(
            seconds(GENERALIZED_TIME, "99991231235959Z"),
            Some(253_402_300_799)
        );
        for (tag, bad) in [
            (UTC_TIME, "20000229120000Z"),
            (GENERALIZED_TIME, "000229120000Z"),
            (UTC_TIME, "700101000000"),
            (UTC_TIME, "701301000000Z"),
            (UTC_TIME, "700100000000Z"),
            (UTC_TIME, "7001010000+0Z"),
            (UTC_TIME, "690101000000Z"),
            (UTC_TIME, ""),
            (0x16, "700101000000Z"),
        ] {
            assert_eq!(seconds(tag, bad), None, "{bad}");
        }
    }

    #[test]
    fn lengths_of_both_forms() {
        assert_eq!(element(&[4, 1, 7, 9]), Some((4, &[7][..], &[9][..])));
        assert_eq!(element(&[4, 0x81, 1, 7]), Some((4, &[7][..], &[][..])));
        assert_eq!(element(&[4, 0x82, 0, 1, 7]), Some((4, &[7][..], &[][..])));
        for short in [
            &[][..],
            &[4],
            &[4, 1],
            &[4, 0x80, 0, 0],
            &[4, 0x81],
            &[4, 0x84, 255, 255, 255, 255],
            &[4, 0x89, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        ] {
            assert_eq!(element(short), None, "{short:?}");
        }
    }

    #[test]
    fn a_certificate_says_how_long_it_is_good() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut wanted = rcgen::CertificateParams::new(vec!["a.example".into()]).unwrap();
        wanted.not_before = rcgen::date_time_ymd(2024, 2, 29);
        wanted.not_after = rcgen::date_time_ymd(2050, 1, 1);
        let certificate = wanted.self_signed(&key).unwrap();
        let found = validity(certificate.der()).unwrap();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let (from, until) = (at(1_709_164_800), at(2_524_608_000));
        assert_eq!(found, Validity { from, until });
        // Whatever is cut off, it is none or the same, never a panic.
        for length in 0..certificate.der().len() {
            assert_eq!(validity(&certificate.der()[..length]), None);
        }
    }
}
