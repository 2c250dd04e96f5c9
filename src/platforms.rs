//! The platforms of an image that are wanted. Owns: [`Platforms`]. Must not: do I/O.

use std::fmt;
use std::str::FromStr;

/// `all`, or a list such as `linux/amd64,linux/arm64`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Platforms(Vec<String>);

impl Platforms {
    /// True for `all`.
    pub const fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// True for a wanted platform, such as `linux/arm64/v8`. A wanted platform without a variant
    /// means all variants. Content without a platform, such as a chart, is always wanted.
    pub fn picks(&self, platform: &str) -> bool {
        let picks = |wanted: &String| {
            let rest = platform.strip_prefix(wanted.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.is_all() || !platform.contains('/') || self.0.iter().any(picks)
    }

    /// Why an image has nothing that is wanted, if so. `found`: what it has.
    pub fn refuse(&self, found: &[&str]) -> Option<String> {
        let is_refused = !found.is_empty() && !found.iter().any(|platform| self.picks(platform));
        is_refused.then(|| format!("it is not for {self}, but for {}", found.join(", ")))
    }
}

impl fmt::Display for Platforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_all() {
            true => f.write_str("all"),
            false => f.write_str(&self.0.join(",")),
        }
    }
}

impl FromStr for Platforms {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "all" {
            return Ok(Self::default());
        }
        let word = |word: &str| {
            let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            !word.is_empty() && word.bytes().all(fits)
        };
        let mut wanted: Vec<String> = Vec::new();
        for platform in text.split(',').map(str::trim) {
            let words: Vec<&str> = platform.split('/').collect();
            if !(2..=3).contains(&words.len()) || !words.iter().all(|part| word(part)) {
                return Err(format!(
                    "{platform:?}: expected `all`, or platforms as in linux/amd64,linux/arm64/v8"
                ));
            }
            wanted.push(platform.to_owned());
        }
        wanted.sort_unstable();
        wanted.dedup();
        Ok(Self(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_picked_with_all_their_variants() {
        let wanted: Platforms = "linux/arm64, linux/amd64,linux/arm/v7".parse().unwrap();
        assert_eq!(wanted.to_string(), "linux/amd64,linux/arm/v7,linux/arm64");
        assert_eq!(wanted.to_string().parse(), Ok(wanted.clone()));
        for (platform, picked) in [
            ("linux/amd64", true),
            ("linux/arm64/v8", true),
            ("linux/arm/v7", true),
            ("linux/arm/v6", false),
            ("linux/arm", false),
            ("linux/amd64p", false),
            ("windows/amd64", false),
            ("any", true),
        ] {
            assert_eq!(wanted.picks(platform), picked, "{platform}");
            assert!("all".parse::<Platforms>().unwrap().picks(platform));
        }
        for odd in [
            "",
            "linux",
            "linux/",
            "linux/a/b/c",
            "linux/amd64,",
            "a b/c",
            "all,linux/a",
        ] {
            let fault = odd.parse::<Platforms>().unwrap_err();
            assert!(fault.contains("expected `all`, or platforms"), "{fault}");
        }
    }
}
