//! Dates and times as text. Owns: the Gregorian calendar in UTC, and RFC 3339 both ways. Must not:
//! read a clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds of a day; RFC 3339 in UTC knows no other days.
const DAY_SECONDS: u32 = 86_400;

/// RFC 3339 in UTC with milliseconds.
pub fn format_rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let day_seconds = u64::from(DAY_SECONDS);
    let (days, seconds) = (since.as_secs() / day_seconds, since.as_secs() % day_seconds);
    let (year, month, day) = civil_from_days(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_millis()
    )
}

/// Reads `2026-11-22T01:44:13Z`, with or without a fraction (moto sends one) and with an offset or
/// `UTC` in place of `Z` (tools that print credentials, and botocore). None for anything else, or
/// before 1970.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let text = text.trim();
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let zone_at = rest.find(|c: char| c.is_ascii_alphabetic() || "+-".contains(c))?;
    let (clock, zone) = rest.split_at_checked(zone_at)?;
    let clock = clock.trim_end();
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let valid = (1..=12).contains(&month)
        && (1..=days_of(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !valid {
        return None;
    }
    let clock_seconds = hour * 3600 + minute * 60 + second - offset_seconds(zone)?;
    let time = time_at(year, month, day, clock_seconds)?;
    time.checked_add(Duration::from_nanos(nanos(fraction)?))
}

/// The time `seconds` after the beginning of a day in UTC. None before 1970.
fn time_at(year: i64, month: i64, day: i64, seconds: i64) -> Option<SystemTime> {
    let day_seconds = days_since_1970(year, month, day).checked_mul(DAY_SECONDS.into())?;
    let since = u64::try_from(day_seconds.checked_add(seconds)?).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(since))
}

/// As many numbers as there are lengths, each with that many digits.
fn numbers<const N: usize>(text: &str, separator: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut found = [0; N];
    for (number, length) in found.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != length || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(found)
}

/// `Z`, `UTC`, `GMT`, `+01:00` or `+0100`.
fn offset_seconds(zone: &str) -> Option<i64> {
    let utc = ["Z", "UTC", "GMT"];
    if utc.iter().any(|name| zone.eq_ignore_ascii_case(name)) {
        return Some(0);
    }
    let (sign, clock) = match zone.strip_prefix('+') {
        Some(clock) => (1, clock),
        None => (-1, zone.strip_prefix('-')?),
    };
    let clock = clock.replace(':', "");
    let (hours, minutes) = clock.split_at_checked(2)?;
    let [hours] = numbers(hours, ':', [2])?;
    let [minutes] = numbers(minutes, ':', [2])?;
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// The digits after the point, to the nanosecond.
fn nanos(fraction: &str) -> Option<u64> {
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nine: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    nine.parse().ok()
}

const fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date, negative before it (Howard Hinnant, `days_from_civil`).
const fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The date that is `days` after 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms").
const fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(text: &str) -> Option<u128> {
        let since = parse_rfc3339(text)?.duration_since(UNIX_EPOCH);
        Some(since.unwrap().as_millis())
    }

    #[test]
    fn times_are_formatted_as_rfc_3339() {
        let at = |seconds| format_rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(1_795_309_445), "2026-11-22T01:04:05.000Z");
    }

    #[test]
    fn times_of_sts_and_of_tools_are_read() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-22T01:44:13Z", 1_795_311_853_000),
            ("2026-11-22T01:44:13.065241Z", 1_795_311_853_065),
            ("2026-11-22T02:44:13+01:00", 1_795_311_853_000),
            ("2026-11-21T20:14:13-0530", 1_795_311_853_000),
            (" 2026-11-22t01:44:13z\n", 1_795_311_853_000),
            ("2000-02-29T23:59:59Z", 951_868_799_000),
            ("2024-12-31T23:59:60Z", 1_735_689_600_000),
            ("2026-11-22T01:44:13+00:00", 1_795_311_853_000),
            ("2026-11-22T01:44:13UTC", 1_795_311_853_000),
            ("2026-11-22T01:44:13.065241UTC", 1_795_311_853_065),
            ("2026-11-22 01:44:13 UTC", 1_795_311_853_000),
            ("2026-11-22T01:44:13gmt", 1_795_311_853_000),
        ] {
            assert_eq!(millis(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn formatted_times_read_back() {
        for seconds in [0, 951_782_400, 1_709_164_799, 4_102_444_799] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(parse_rfc3339(&format_rfc3339(time)), Some(time));
        }
    }

    #[test]
    fn other_texts_are_no_times() {
        for text in [
            "",
            "soon",
            "1795311853",
            "2026-11-22",
            "2026-11-22T01:44:13",
            "2026-11-22T01:44Z",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-22T00:00:00Z",
            "2026-11-00T00:00:00Z",
            "2026-11-22-01T01:04:05Z",
            "2026-11-22T01:60:05Z",
            "26-11-22T01:04:05Z",
            "2026-11-22T24:00:00Z",
            "2026-11-22T01:44:13.Z",
            "2026-11-22T01:44:13.x1Z",
            "2026-11-22T01:44:13CET",
            "2026-11-22T01:44:13UTCx",
            "2026-11-22T01:44:13+1:00",
            "1969-12-31T23:59:59Z",
            "+026-11-22T01:44:13Z",
            "2026-11-22T01:44:13é",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }
}
