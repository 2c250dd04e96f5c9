//! `Via` (RFC 9110 §7.6.3). Owns: this process's name in it, and which requests have come too far.
//! Must not: change what other proxies wrote.

use std::borrow::Cow;
use std::sync::OnceLock;

use crate::message::Headers;
use crate::random::unguessable;

/// The field.
pub const VIA: &str = "Via";
/// Proxies that a request may have passed before this one: a balancer and three tiers are six, and
/// a circle of proxies that write no names of their own must end somewhere.
pub const HOPS_MAX: usize = 16;
/// Bytes of a field that is passed on, with room for [`HOPS_MAX`] long names.
const BYTES_MAX: usize = 2048;

/// Why a request goes no further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViaFault {
    /// The request has been here before.
    Loop,
    /// The request names more proxies than [`HOPS_MAX`], or its field is longer than those need.
    TooFar,
}

/// This process's name: the same for all its requests, another after a restart and for each process
/// of a host, since two tiers may share one.
pub fn pseudonym() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| format!("aws-ecr-proxy-{:016x}", unguessable()))
}

/// The field with this process at its end, for a message that came in HTTP/1.1 or 1.0.
pub fn append(headers: &Headers, http11: bool) -> Cow<'static, str> {
    static OWN: [OnceLock<String>; 2] = [const { OnceLock::new() }; 2];
    let [old, new] = &OWN;
    let (own, protocol) = if http11 { (new, "1.1") } else { (old, "1.0") };
    let own = own.get_or_init(|| format!("{protocol} {}", pseudonym()));
    match headers.join_values(VIA) {
        Some(others) if !others.is_empty() => format!("{others}, {own}").into(),
        _ => own.as_str().into(),
    }
}

/// Checks how far a request has come.
///
/// # Errors
/// When it must go no further.
pub fn check(headers: &Headers) -> Result<(), ViaFault> {
    let Some(value) = headers.join_values(VIA) else {
        return Ok(());
    };
    // Our name counts anywhere in the field: a comment that is not closed must not hide it.
    if value
        .split([',', ' ', '\t'])
        .any(|word| word == pseudonym())
    {
        return Err(ViaFault::Loop);
    }
    // A comma in a comment counts, too; they are rare, and the limit is far.
    let hops = value.split(',').filter(|hop| !hop.trim().is_empty());
    match hops.count() > HOPS_MAX || value.len() > BYTES_MAX {
        true => Err(ViaFault::TooFar),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(values: &[&str]) -> Headers {
        values.iter().map(|value| (VIA, *value)).collect()
    }

    #[test]
    fn every_proxy_on_the_way_stays_in_the_field() {
        let own = format!("1.1 {}", pseudonym());
        assert_eq!(append(&Headers::new(), true), own);
        let others = fields(&["1.1 a (x, y)", "1.0 b:80"]);
        assert_eq!(
            append(&others, true),
            format!("1.1 a (x, y), 1.0 b:80, {own}")
        );
        assert!(append(&Headers::new(), false).starts_with("1.0 aws-ecr-proxy-"));
    }

    #[test]
    fn a_request_that_was_here_before_is_known() {
        let own = pseudonym();
        let is_loop = |value: &str| check(&fields(&["1.1 x", value])) == Err(ViaFault::Loop);
        for value in [
            format!("1.1 {own}"),
            format!("1.1 a, HTTP/1.1\t{own} (b, c) , 1.1 d"),
            format!("1.1 a (not closed,1.1 {own},1.1 d"),
        ] {
            assert!(is_loop(&value), "{value}");
        }
        for value in ["1.1 aws-ecr-proxy-0".to_owned(), format!("1.1 a{own}")] {
            assert!(!is_loop(&value), "{value}");
        }
    }

    #[test]
    fn a_field_is_bounded_in_proxies_and_in_bytes() {
        let hops = |count: usize| vec!["1.1 a (x y)"; count];
        assert_eq!(check(&fields(&hops(HOPS_MAX))), Ok(()));
        assert_eq!(check(&fields(&hops(HOPS_MAX + 1))), Err(ViaFault::TooFar));
        assert_eq!(
            check(&fields(&[&hops(99).join(",")])),
            Err(ViaFault::TooFar)
        );
        let long = |bytes: usize| check(&fields(&[&format!("1.1 {}", "x".repeat(bytes))]));
        assert_eq!(long(BYTES_MAX - 4), Ok(()));
        assert_eq!(long(BYTES_MAX - 3), Err(ViaFault::TooFar));
        assert_eq!(check(&fields(&[", ,", ""])), Ok(()));
    }
}
