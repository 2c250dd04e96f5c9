//! The JSON document in which AWS's metadata endpoints hand out credentials. Owns: reading it, and
//! its dates. Must not: know where it came from.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::super::fault::one_line;
use crate::log::Secret;

/// Credentials as an endpoint handed them out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Document {
    pub(super) access_key_id: String,
    pub(super) secret: Secret<String>,
    pub(super) session_token: Option<Secret<String>>,
    pub(super) expires: Option<SystemTime>,
}

/// Why a document holds no credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unusable {
    /// It is not what AWS documents; what about it is not.
    Odd(&'static str),
    /// `Code` says that there are none: code and message.
    Refused(String, String),
}

/// Reads a document.
///
/// # Errors
/// When it holds no credentials.
pub(super) fn read(body: &[u8]) -> Result<Document, Unusable> {
    let document: Value = serde_json::from_slice(body).map_err(|_| Unusable::Odd("is not JSON"))?;
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    // Absent in container documents, and in those of some stand-ins for the instance metadata.
    if let Some(code) = text("Code").filter(|code| !code.eq_ignore_ascii_case("success")) {
        let message = text("Message").unwrap_or("no reason given");
        return Err(Unusable::Refused(one_line(code), one_line(message)));
    }
    // Keys travel in header fields, where anything else would break or forge a line.
    let word = |name: &str| {
        let found = text(name).map(str::trim).filter(|word| !word.is_empty());
        match found {
            Some(word) if word.bytes().all(|b| b.is_ascii_graphic()) => Ok(Some(word.to_owned())),
            Some(_) => Err(Unusable::Odd("has a key that fits no header field")),
            None => Ok(None),
        }
    };
    let expires = match text("Expiration") {
        None => None,
        Some(text) => Some(time(text).ok_or(Unusable::Odd("has an Expiration that is no date"))?),
    };
    Ok(Document {
        access_key_id: word("AccessKeyId")?.ok_or(Unusable::Odd("has no AccessKeyId"))?,
        secret: word("SecretAccessKey")?
            .map(Secret::new)
            .ok_or(Unusable::Odd("has no SecretAccessKey"))?,
        session_token: word("Token")?.map(Secret::new),
        expires,
    })
}

/// A date and time as AWS writes them (RFC 3339 in UTC, with or without a fraction); none for any
/// other text, and for times before 1970.
pub(super) fn time(text: &str) -> Option<SystemTime> {
    let text = text.trim();
    let text = text
        .strip_suffix(['Z', 'z'])
        .or_else(|| text.strip_suffix("+00:00"))?;
    let (date, clock) = text.split_once(['T', 't'])?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    // A leap second is 60 (RFC 3339 §5.6).
    if !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
        || fraction.is_empty()
        || !fraction.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let days = days_since_1970(year, month, day)?;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Three numbers of these many digits.
fn numbers(text: &str, separator: char, digits: [usize; 3]) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let mut next = |digits: usize| {
        let part = parts.next()?;
        let fits = part.len() == digits && part.bytes().all(|b| b.is_ascii_digit());
        if fits { part.parse().ok() } else { None }
    };
    let found = [next(digits[0])?, next(digits[1])?, next(digits[2])?];
    parts.next().is_none().then_some(found)
}

/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
const fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    if year < 1970 {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"ASIAX",
        "SecretAccessKey":"hunter2","Token":"t+/=","Expiration":"2023-11-15T04:13:20Z"}"#;

    fn odd(body: &str) -> &'static str {
        match read(body.as_bytes()) {
            Err(Unusable::Odd(reason)) => reason,
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn a_whole_document_is_read() {
        let found = read(WHOLE.as_bytes()).unwrap();
        assert_eq!(found.access_key_id, "ASIAX");
        assert_eq!(found.secret.expose(), "hunter2");
        assert_eq!(found.session_token.as_ref().unwrap().expose(), "t+/=");
        let end = UNIX_EPOCH + Duration::from_secs(1_700_021_600);
        assert_eq!(found.expires, Some(end));
        assert!(!format!("{found:?}").contains("hunter2"));
    }

    #[test]
    fn a_document_without_code_token_or_expiration_is_enough() {
        let found = read(br#"{"AccessKeyId":"A","SecretAccessKey":"s"}"#).unwrap();
        assert_eq!((found.session_token, found.expires), (None, None));
    }

    #[test]
    fn another_code_than_success_is_a_refusal() {
        let body =
            br#"{"Code":"AssumeRoleUnauthorizedAccess","Message":"EC2 cannot assume x.\ny"}"#;
        let refused = Unusable::Refused(
            "AssumeRoleUnauthorizedAccess".into(),
            "EC2 cannot assume x".into(),
        );
        assert_eq!(read(body), Err(refused));
        let failed = read(br#"{"Code":"Failed"}"#);
        assert_eq!(
            failed,
            Err(Unusable::Refused("Failed".into(), "no reason given".into()))
        );
    }

    #[test]
    fn other_documents_are_odd_and_not_shown() {
        assert_eq!(odd(""), "is not JSON");
        assert_eq!(odd("<html>hunter2"), "is not JSON");
        assert_eq!(odd("[]"), "has no AccessKeyId");
        assert_eq!(odd(r#"{"AccessKeyId":" "}"#), "has no AccessKeyId");
        assert_eq!(odd(r#"{"AccessKeyId":"A"}"#), "has no SecretAccessKey");
        let forged = WHOLE.replace("t+/=", "t\\r\\nX: y");
        assert_eq!(odd(&forged), "has a key that fits no header field");
        let late = WHOLE.replace("2023-11-15T04:13:20Z", "tomorrow");
        assert_eq!(odd(&late), "has an Expiration that is no date");
    }

    #[test]
    fn dates_of_aws() {
        let at = |text: &str| Some(time(text)?.duration_since(UNIX_EPOCH).unwrap().as_secs());
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T00:00:00Z", 951_782_400),
            ("2026-11-22T01:04:05Z", 1_795_309_445),
            ("2026-11-22T01:04:05.065241Z", 1_795_309_445),
            ("2026-11-22T01:04:05+00:00", 1_795_309_445),
            ("2016-12-31T23:59:60Z", 1_483_228_800),
        ] {
            assert_eq!(at(text), Some(seconds), "{text}");
        }
        for bad in [
            "",
            "2026-11-22",
            "2026-11-22T01:04:05",
            "2026-11-22T01:04:05+02:00",
            "2026-13-22T01:04:05Z",
            "2026-00-22T01:04:05Z",
            "2026-11-00T01:04:05Z",
            "2026-11-22T24:04:05Z",
            "2026-11-22T01:60:05Z",
            "2026-11-22T01:04:05.Z",
            "2026-11-22T01:04:05.xZ",
            "1969-12-31T23:59:59Z",
            "26-11-22T01:04:05Z",
            "+026-11-22T01:04:05Z",
            "2026-11-22-01T01:04:05Z",
        ] {
            assert_eq!(at(bad), None, "{bad}");
        }
        assert!(at("9999-12-31T23:59:59Z").is_some());
    }
}
