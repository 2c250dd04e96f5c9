//! Checks AWS Signature Version 4 (header form) by hand, so that the proxy's signer is judged by
//! other code than its own. Must not: be used to sign anything.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::Server;
use crate::content::{hex, sha256};
use crate::core::{Core, lock};
use crate::http::Head;
use crate::sts::Key;

/// An AWS error: code and message.
pub(crate) type Refusal = (&'static str, String);

/// How far a signature's date may be off.
const SKEW_MAX: Duration = Duration::from_secs(15 * 60);
const BLOCK_BYTES: usize = 64;

/// The id of the key that signed a request, rightly or not.
pub(crate) fn key_id(head: &Head) -> Option<&str> {
    let (_, credential) = head.first("authorization")?.split_once("Credential=")?;
    credential.split('/').next()
}

/// Checks key id, scope, date, session token and signature of a request for `service`; gives the
/// key.
pub(crate) fn verify(core: &Core, head: &Head, body: &[u8], service: &str) -> Result<Key, Refusal> {
    let options = &core.options;
    let missing = || {
        (
            "MissingAuthenticationTokenException",
            "Missing Authentication Token".into(),
        )
    };
    let incomplete = |what: &str| ("IncompleteSignatureException", format!("{what} is missing"));
    let value = head.first("authorization").ok_or_else(missing)?;
    let fields = value
        .strip_prefix("AWS4-HMAC-SHA256 ")
        .ok_or_else(|| incomplete("AWS4-HMAC-SHA256"))?;
    let field = |name: &str| {
        let mut fields = fields
            .split(',')
            .filter_map(|field| field.trim().split_once('='));
        let found = fields.find(|(other, _)| *other == name);
        found
            .map(|(_, value)| value)
            .ok_or_else(|| incomplete(name))
    };
    let (credential, signed_headers) = (field("Credential")?, field("SignedHeaders")?);
    let (key_id, scope) = credential
        .split_once('/')
        .ok_or_else(|| incomplete("scope"))?;
    let names: Vec<&str> = signed_headers.split(';').collect();
    for name in ["host", "x-amz-date"] {
        if !names.contains(&name) {
            return Err(incomplete(name));
        }
    }
    let token = head.first("x-amz-security-token");
    let unknown = || {
        let message = "The security token included in the request is invalid.";
        ("UnrecognizedClientException", message.to_owned())
    };
    let known = lock(&core.sts).key(key_id).ok_or_else(unknown)?;
    if token != known.token.as_deref() {
        return Err(unknown());
    }
    if known.is_expired(core.now(Server::Api)) {
        let code = match service {
            "sts" => "ExpiredToken",
            _ => "ExpiredTokenException",
        };
        let message = "The security token included in the request is expired";
        return Err((code, message.into()));
    }
    let date = head.first("x-amz-date").unwrap_or_default();
    check_date(date, core.now(Server::Api))?;
    let expected = format!("{}/{}/{service}/aws4_request", &date[..8], options.region);
    if scope != expected {
        let message = format!("Credential should be scoped to {expected}");
        return Err(("InvalidSignatureException", message));
    }
    let request = canonical_request(head, body, signed_headers);
    let text = format!(
        "AWS4-HMAC-SHA256\n{date}\n{scope}\n{}",
        hex(&sha256(request.as_bytes()))
    );
    let key = format!("AWS4{}", known.secret).into_bytes();
    let key = scope
        .split('/')
        .fold(key, |key, part| hmac(&key, part.as_bytes()).to_vec());
    if field("Signature")? != hex(&hmac(&key, text.as_bytes())) {
        let message = "The request signature we calculated does not match the signature you \
                       provided. Check your AWS Secret Access Key and signing method.";
        return Err(("InvalidSignatureException", message.into()));
    }
    Ok(known)
}

fn check_date(date: &str, now: SystemTime) -> Result<(), Refusal> {
    let bad = || {
        (
            "IncompleteSignatureException",
            "x-amz-date is no date".into(),
        )
    };
    let at = parse_time(date).ok_or_else(bad)?;
    let (relation, limit) = if at + SKEW_MAX < now {
        ("Signature expired", "earlier")
    } else if now + SKEW_MAX < at {
        ("Signature not yet current", "later")
    } else {
        return Ok(());
    };
    let message = format!(
        "{relation}: {date} is now {limit} than {} (15 min.)",
        time(now)
    );
    Err(("InvalidSignatureException", message))
}

fn canonical_request(head: &Head, body: &[u8], signed_headers: &str) -> String {
    let mut parameters: Vec<&str> = head.query().split('&').filter(|p| !p.is_empty()).collect();
    parameters.sort_unstable();
    let fields: String = signed_headers
        .split(';')
        .map(|name| {
            let values = head
                .headers
                .iter()
                .filter(|(other, _)| other.eq_ignore_ascii_case(name));
            let values: Vec<String> = values
                .map(|(_, value)| value.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect();
            format!("{name}:{}\n", values.join(","))
        })
        .collect();
    format!(
        "{}\n{}\n{}\n{fields}\n{signed_headers}\n{}",
        head.method,
        head.path(),
        parameters.join("&"),
        hex(&sha256(body))
    )
}

/// RFC 2104.
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0; BLOCK_BYTES];
    if key.len() > BLOCK_BYTES {
        block[..32].copy_from_slice(&sha256(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = [block.map(|byte| byte ^ 0x36).as_slice(), message].concat();
    let outer = [block.map(|byte| byte ^ 0x5c).as_slice(), &sha256(&inner)].concat();
    sha256(&outer)
}

/// `20261122T004758Z`
pub(crate) fn time(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Days of the Gregorian calendar (Howard Hinnant, `civil_from_days`).
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z",
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// The other way round.
pub(crate) fn parse_time(text: &str) -> Option<SystemTime> {
    let rest = text.strip_suffix('Z')?;
    let (date, clock) = rest.split_once('T')?;
    if date.len() != 8
        || clock.len() != 6
        || !date
            .bytes()
            .chain(clock.bytes())
            .all(|b| b.is_ascii_digit())
    {
        return None;
    }
    // httpdate knows the calendar; it wants the month's name and ignores a wrong weekday.
    let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let month: usize = date[4..6].parse().ok()?;
    let month = months.get(3 * month.checked_sub(1)?..3 * month)?;
    let text = format!(
        "{} {month} {} {}:{}:{} GMT",
        &date[6..8],
        &date[..4],
        &clock[..2],
        &clock[2..4],
        &clock[4..6]
    );
    ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
        .iter()
        .find_map(|weekday| httpdate::parse_http_date(&format!("{weekday}, {text}")).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_is_that_of_rfc_4231() {
        let mac = hmac(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(
            hex(&mac),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        let mac = hmac(
            &[0xaa; 131],
            b"Test Using Larger Than Block-Size Key - Hash Key First",
        );
        assert_eq!(
            hex(&mac),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    #[test]
    fn times_go_both_ways() {
        for seconds in [0, 951_782_399, 951_782_400, 1_795_308_478, 4_102_444_799] {
            let at = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(parse_time(&time(at)), Some(at), "{}", time(at));
        }
        assert_eq!(
            time(UNIX_EPOCH + Duration::from_secs(1_440_938_160)),
            "20150830T123600Z"
        );
        for bad in [
            "",
            "20150830T123600",
            "20151330T123600Z",
            "2015083éT12360Z",
            "x",
        ] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }
}
