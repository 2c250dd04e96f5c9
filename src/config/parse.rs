//! Text to values. Owns: how each kind of value is written. Must not: know where a text came from,
//! or name the setting in an error (the caller does).

use std::time::Duration;

use crate::log::{Format, Level};
use crate::oci::{Registry, Scheme};

/// Largest `MIN_RATE`: above it, healthy clients behind a slow line would be cut.
const MIN_RATE_MAX: u64 = 64 << 10;
/// The words of `LOG_LEVEL`.
pub(super) const LOG_LEVELS: &[(&str, Level)] = &[
    ("debug", Level::Debug),
    ("info", Level::Info),
    ("warn", Level::Warn),
    ("warning", Level::Warn),
    ("error", Level::Error),
];
/// The words of `LOG_FORMAT`.
pub(super) const LOG_FORMATS: &[(&str, Format)] = &[("json", Format::Json), ("text", Format::Text)];

/// `true`, `yes`, `on`, `1` and their opposites, in any case.
pub(super) fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "on" | "true" | "yes" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// Digits only: `u32::from_str` would take a sign.
pub(super) fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// `6`, `0.5`; no exponent, sign or infinity, which `f64::from_str` would take.
pub(super) fn hours(text: &str) -> Option<Duration> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) {
        return None;
    }
    let hours: f64 = text.parse().ok()?;
    Duration::try_from_secs_f64(hours * 3600.0).ok()
}

/// A whole number and one of `ms s m h`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    const FORM: &str = "such as 500ms, 30s, 5m or 2h";
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at_checked(end).unwrap_or((text, ""));
    if digits.is_empty() {
        return Err(FORM.to_owned());
    }
    let unit_ms: u64 = match unit {
        "h" => 3_600_000,
        "m" => 60_000,
        "ms" => 1,
        "s" => 1000,
        "" => {
            return Err(format!(
                "with its unit, {FORM}; for {digits} seconds write {digits}s"
            ));
        }
        _ => return Err(FORM.to_owned()),
    };
    let ms = digits.parse().ok().and_then(|n| unit_ms.checked_mul(n));
    ms.map(Duration::from_millis).ok_or_else(|| FORM.to_owned())
}

/// A whole number of bytes, or of one of the units `k m g t`, `ki mi gi ti`, `kb mb gb tb` and `kib
/// mib gib tib`, in any case. All are powers of 1024, as nginx has them.
pub(super) fn size(text: &str) -> Option<u64> {
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at_checked(end)?;
    let bytes: u64 = digits.parse().ok()?;
    let Some(letter) = unit.chars().next() else {
        return Some(bytes);
    };
    let shift = match letter.to_ascii_lowercase() {
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        _ => return None,
    };
    let rest = unit.get(1..)?.to_ascii_lowercase();
    let is_unit = matches!(rest.as_str(), "" | "i" | "b" | "ib");
    is_unit.then(|| bytes.checked_mul(1 << shift)).flatten()
}

/// A time as [`time`] reads it, in the largest unit that is exact.
pub(super) fn format_time(time: &Duration) -> String {
    let ms = time.as_millis();
    match ms {
        0 => "0s".to_owned(),
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

/// A time as [`hours`] reads it.
pub(super) fn in_hours(time: &Duration) -> f64 {
    time.as_secs_f64() / 3600.0
}

/// The value that a word stands for, in any case.
pub(super) fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let mut words = words.iter();
    let found = words.find(|(word, _)| word.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(String::new)
}

/// The text, if it `fits`. The error is empty, since the row says what is expected.
pub(super) fn keep_if(text: &str, fits: bool) -> Result<String, String> {
    if fits {
        Ok(text.to_owned())
    } else {
        Err(String::new())
    }
}

/// The entries of a list with commas, blanks around them dropped.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

/// `scheme://host[:port]`, without a slash at the end.
pub(super) fn url(text: &str) -> Result<String, String> {
    if !text.contains("://") {
        return Err("this has no scheme".to_owned());
    }
    let endpoint: Registry = text.parse().map_err(|why| format!("this has {why}"))?;
    // The default port is left out, because clients leave it out of the Host field that is signed.
    let default_port = match endpoint.scheme() {
        Scheme::Http => ":80",
        Scheme::Https => ":443",
    };
    let url = endpoint.url();
    Ok(url.strip_suffix(default_port).unwrap_or(&url).to_owned())
}

pub(super) fn min_rate(text: &str) -> Result<u64, String> {
    let rate = size(text).ok_or_else(String::new)?;
    if rate > MIN_RATE_MAX {
        return Err(format!(
            "more than {MIN_RATE_MAX} would cut clients behind slow lines"
        ));
    }
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_need_a_unit() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(time("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(time("2h"), Ok(Duration::from_secs(7200)));
        assert!(time("90").unwrap_err().ends_with("write 90s"));
        for bad in [
            "", "s", "-1s", "+1s", "1.5s", "1 s", "1S", "1d", "1m30s", "1µs",
        ] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert!(time("18446744073709551615h").is_err());
        assert!(time("18446744073709551616ms").is_err());
    }

    #[test]
    fn written_times_read_back() {
        for ms in [0, 1, 999, 1000, 1500, 60_000, 61_000, 3_600_000, 7_200_000] {
            let duration = Duration::from_millis(ms);
            assert_eq!(time(&format_time(&duration)), Ok(duration));
        }
    }

    #[test]
    fn hours_are_plain_decimals() {
        assert_eq!(hours("6"), Some(Duration::from_secs(6 * 3600)));
        assert_eq!(hours("0.5"), Some(Duration::from_secs(1800)));
        assert_eq!(hours("0.01"), Some(Duration::from_secs(36)));
        for bad in [
            "", ".", ".5", "5.", "-1", "+1", "1e3", "inf", "nan", "6h", "1.2.3", "1,5",
        ] {
            assert_eq!(hours(bad), None, "{bad}");
        }
        assert_eq!(hours(&"9".repeat(400)), None);
    }

    #[test]
    fn numbers_are_digits() {
        assert_eq!(number("0"), Some(0));
        assert_eq!(number("65536"), Some(65536));
        for bad in ["", "+1", "-1", "1k", " 1", "0x1", "4294967296", "٣"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }

    #[test]
    fn switches() {
        for on in ["true", "TRUE", "1", "yes", "On"] {
            assert_eq!(switch(on), Some(true), "{on}");
        }
        for off in ["false", "0", "No", "off"] {
            assert_eq!(switch(off), Some(false), "{off}");
        }
        for bad in ["", "t", "2", "enabled"] {
            assert_eq!(switch(bad), None, "{bad}");
        }
    }

    #[test]
    fn rates_are_sizes_up_to_a_limit() {
        for (text, bytes) in [("0", 0), ("1k", 1024), ("64k", MIN_RATE_MAX)] {
            assert_eq!(min_rate(text), Ok(bytes));
        }
        assert_eq!(min_rate("fast"), Err(String::new()));
        let why = min_rate("65537").unwrap_err();
        assert!(why.starts_with("more than 65536 would cut"), "{why}");
    }

    #[test]
    fn urls_have_a_scheme_and_a_host() {
        for (text, kept) in [
            ("http://127.0.0.1:5000/", "http://127.0.0.1:5000"),
            (
                "https://VPCE.ecr.amazonaws.com",
                "https://vpce.ecr.amazonaws.com",
            ),
            ("https://h:443", "https://h"),
            ("http://h:80/", "http://h"),
            ("http://h:443", "http://h:443"),
        ] {
            assert_eq!(url(text).as_deref(), Ok(kept));
        }
        for bad in [
            "h",
            "h:80",
            "ftp://h",
            "http://",
            "http://u:p@h",
            "http://h/path",
            "http://h?x=1",
        ] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }
}
