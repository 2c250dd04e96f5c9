//! Patterns of repositories and images. Owns: what a pattern is, and what it matches. Must not:
//! know what a match is used for.

/// Most patterns: each request is compared with each of them.
const PATTERNS_MAX: usize = 256;
/// Longest pattern: a repository's name has 256 characters.
const PATTERN_LENGTH_MAX: usize = 256;
/// Longest pattern of an image: a host has 253 characters and a port, a tag has 128.
const IMAGE_LENGTH_MAX: usize = 645;

/// A list of patterns. `*` stands for any characters, `/` among them, also for none; `?` for one.
/// The default has no pattern, and so matches nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Globs(Vec<String>);

impl Globs {
    /// Reads a list with commas; blanks around a pattern are dropped.
    ///
    /// # Errors
    /// Says which pattern could never match the name of a repository, and why.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_with(text, check)
    }

    fn parse_with(text: &str, check: fn(&str) -> Result<(), String>) -> Result<Self, String> {
        let patterns: Vec<String> = super::parse::list(text).map(str::to_owned).collect();
        match patterns.len() {
            0 => return Err("this names none".to_owned()),
            1..=PATTERNS_MAX => {}
            count => return Err(format!("these are {count}, at most {PATTERNS_MAX}")),
        }
        patterns.iter().try_for_each(|pattern| check(pattern))?;
        Ok(Self(patterns))
    }

    /// True when one of the patterns matches the whole of `name`.
    pub fn matches(&self, name: &str) -> bool {
        let mut patterns = self.0.iter();
        patterns.any(|pattern| matches(pattern.as_bytes(), name.as_bytes()))
    }

    /// True when every name matches: one of the patterns is `*`.
    pub fn match_everything(&self) -> bool {
        self.0.iter().any(|pattern| pattern == "*")
    }
}

/// A list of patterns of images: `repository:tag`, or `registry/repository:tag`. The default
/// matches none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageGlobs(Globs);

impl ImageGlobs {
    /// Reads a list with commas.
    ///
    /// # Errors
    /// Says which pattern could never match an image, and why.
    pub fn parse(text: &str) -> Result<Self, String> {
        Globs::parse_with(text, check_image).map(Self)
    }

    /// True when there is no pattern.
    pub const fn is_empty(&self) -> bool {
        self.0.0.is_empty()
    }

    /// True when one of the patterns matches the image, with its registry or without. `registry` is
    /// its name, without a scheme.
    pub fn matches(&self, registry: &str, repository: &str, tag: &str) -> bool {
        if self.is_empty() {
            return false;
        }
        let image = format!("{repository}:{tag}");
        self.0.matches(&image) || self.0.matches(&format!("{registry}/{image}"))
    }
}

/// Refuses a pattern that no image can match.
fn check_image(pattern: &str) -> Result<(), String> {
    check_length(pattern, IMAGE_LENGTH_MAX)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-/:*?[]".contains(c);
    if let Some(odd) = pattern.chars().find(|c| !fits(*c)) {
        return Err(format!("{odd:?} is in no image's name"));
    }
    let last = pattern.rsplit('/').next().unwrap_or_default();
    if !last.contains([':', '*']) {
        return Err(format!("{pattern} names no tag: write {pattern}:*"));
    }
    if last.ends_with(':') {
        return Err(format!("{pattern} names no tag: write {pattern}*"));
    }
    let address = pattern.split(']').next().unwrap_or_default();
    if pattern.contains('[') && !(address.starts_with('[') && address.contains(':')) {
        return Err("[ is for an address such as [::1]:5000, and for no set of characters".into());
    }
    // What is before the tag: registries' and repositories' names are lower case.
    let tag = last.split_once(':').or_else(|| last.split_once('*'));
    let tag = tag.map_or("", |(_, tag)| tag);
    let name = pattern.strip_suffix(tag).unwrap_or_default();
    match name.chars().find(char::is_ascii_uppercase) {
        Some(odd) => Err(format!("{odd:?} is in no registry's or repository's name")),
        None => Ok(()),
    }
}

fn check_length(pattern: &str, limit: usize) -> Result<(), String> {
    match pattern.len() {
        length if length > limit => Err(format!("one has {length} characters, at most {limit}")),
        _ => Ok(()),
    }
}

/// Refuses a pattern that no name can match: it is a typing error, and would deny what it was
/// meant to allow.
fn check(pattern: &str) -> Result<(), String> {
    check_length(pattern, PATTERN_LENGTH_MAX)?;
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/*?".contains(c);
    if let Some(odd) = pattern.chars().find(|c| !fits(*c)) {
        return Err(format!("{odd:?} is in no repository's name"));
    }
    if pattern.starts_with('/') || pattern.ends_with('/') {
        return Err("no repository's name begins or ends with /".to_owned());
    }
    Ok(())
}

/// Matches one pattern. After a mismatch it goes back to the last `*` only, since an earlier one
/// could match nothing more. So the time is at most the product of the lengths.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut name_at) = (0, 0);
    // The two positions from which to go on when the last `*` takes one more character.
    let mut retry = None;
    while let Some(character) = name.get(name_at) {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at + 1, name_at));
                at += 1;
                continue;
            }
            Some(expected) if *expected == b'?' || expected == character => {
                (at, name_at) = (at + 1, name_at + 1);
                continue;
            }
            Some(_) | None => {}
        }
        let Some((after_star, taken)) = retry else {
            return false;
        };
        retry = Some((after_star, taken + 1));
        (at, name_at) = (after_star, taken + 1);
    }
    let rest = pattern.get(at..).unwrap_or_default();
    rest.iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_star_matches_slashes_too() {
        let globs = Globs::parse("team-a/*, base,lib/*/stable,v?/x").unwrap();
        for name in [
            "team-a/app",
            "team-a/deep/er",
            "base",
            "lib/a/stable",
            "lib/a/b/stable",
            "v1/x",
        ] {
            assert!(globs.matches(name), "{name}");
        }
        for name in [
            "team-a",
            "team-ab/app",
            "x/team-a/app",
            "base/x",
            "xbase",
            "lib/stable",
            "lib/a/stable/x",
            "v12/x",
            "v/x",
            "",
        ] {
            assert!(!globs.matches(name), "{name}");
        }
        assert!(!globs.match_everything() && !Globs::default().matches("a"));
        assert!(
            Globs::parse("a,*")
                .unwrap()
                .matches("anything/at/all.even-this")
        );
        assert!(Globs::parse("*").unwrap().match_everything());
    }

    #[test]
    fn stars_in_every_place() {
        for (pattern, yes, no) in [
            ("*a*b", "xaxb", "xbxa"),
            ("a**b", "ab", "a"),
            ("*/app", "team/app", "app"),
            ("a*a", "aa", "a"),
            ("*ab", "aab", "aba"),
            ("a*bc*d", "abbcxd", "abxcd"),
            ("?*", "a", ""),
        ] {
            let globs = Globs::parse(pattern).unwrap();
            assert!(globs.matches(yes), "{pattern} {yes}");
            assert!(!globs.matches(no), "{pattern} {no}");
        }
    }

    #[test]
    fn no_pattern_takes_exponential_time() {
        let globs = Globs::parse(&format!("{}b", "a*".repeat(127))).unwrap();
        let started = Instant::now();
        assert!(!globs.matches(&"a".repeat(256)));
        // With going back to every star, this is 10^75 steps.
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn patterns_that_could_match_nothing_are_faults() {
        for (text, why) in [
            (",", "none"),
            ("Team/*", "'T' is in no"),
            ("a b", "' ' is in no"),
            ("{a}", "'{' is in no"),
            ("a:1", "':' is in no"),
            ("team/", "ends with /"),
            ("/team", "begins or"),
        ] {
            let fault = Globs::parse(text).unwrap_err();
            assert!(fault.contains(why), "{text}: {fault}");
        }
        let long = "a".repeat(PATTERN_LENGTH_MAX);
        assert!(Globs::parse(&long).is_ok());
        assert!(Globs::parse(&format!("{long}a")).is_err());
        assert!(Globs::parse(&"a,".repeat(PATTERNS_MAX)).is_ok());
        assert!(Globs::parse(&"a,".repeat(PATTERNS_MAX + 1)).is_err());
    }

    #[test]
    fn images_are_matched_with_their_registry_or_without() {
        let globs = ImageGlobs::parse("team/app:v*, r.example:5000/base/*:*,lib/?:Latest").unwrap();
        for (registry, repository, tag, expected) in [
            ("any.example", "team/app", "v1", true),
            ("any.example", "team/app", "w1", false),
            ("any.example", "x/team/app", "v1", false),
            ("r.example:5000", "base/a/b", "1", true),
            ("r.example", "base/a/b", "1", false),
            ("r.example", "lib/a", "Latest", true),
            ("r.example", "lib/a", "latest", false),
        ] {
            let found = globs.matches(registry, repository, tag);
            assert_eq!(found, expected, "{registry}/{repository}:{tag}");
        }
        assert!(!ImageGlobs::default().matches("r", "a", "1"));
        assert!(ImageGlobs::parse("*").unwrap().matches("r", "a", "1"));
        for (text, why) in [
            ("team/app", "write team/app:*"),
            ("r.example:5000/app", "names no tag"),
            ("team/app:", "write team/app:*"),
            ("team/App:v1", "'A' is in no"),
            ("[ab]/app:v1", "no set of characters"),
            ("app:[12]", "no set of characters"),
            ("team/app:v 1", "' ' is in no"),
            (",", "none"),
        ] {
            let fault = ImageGlobs::parse(text).unwrap_err();
            assert!(fault.contains(why), "{text}: {fault}");
        }
        for text in ["*A*", "app:*A", "*:A", "[::1]:5000/*", "r.example/app*:A*"] {
            assert!(ImageGlobs::parse(text).is_ok(), "{text}");
        }
        let long = format!("*{}", "a".repeat(IMAGE_LENGTH_MAX));
        assert!(
            ImageGlobs::parse(&long)
                .unwrap_err()
                .contains("at most 645")
        );
    }
}
