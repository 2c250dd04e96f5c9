//! `PREFETCH`: images that are kept fresh in the cache. Owns: how they are listed. Must not: fetch.

use std::path::PathBuf;
use std::time::Duration;

use super::parse;
use crate::image_name::ImageName;
use crate::platforms::Platforms;
use crate::small_file;

/// Most images: each round asks upstream several times for each of them.
const IMAGES_MAX: usize = 1000;
/// Largest `@file`: the longest names of so many images.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Slowest `PREFETCH_RATE`: below it, registries take the silence between two reads for an end.
const RATE_MIN: u64 = 4096;

/// What is prefetched, and how.
#[derive(Debug, Clone, Default)]
pub struct PrefetchSettings {
    /// `PREFETCH`
    pub images: PrefetchList,
    /// `PREFETCH_INTERVAL`
    pub interval: Duration,
    /// `PREFETCH_PLATFORMS`
    pub platforms: Platforms,
    /// `PREFETCH_RATE`, in bytes a second; none: no limit
    pub rate: Option<u64>,
}

/// Where the names of the images are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PrefetchList {
    /// In a file, which is read before each round.
    File(PathBuf),
    /// In the setting.
    Names(Vec<ImageName>),
    /// Nothing is prefetched.
    #[default]
    Nothing,
}

impl PrefetchList {
    /// The images. Reads the file, if there is one.
    ///
    /// # Errors
    /// When the file cannot be read, or has a bad name of an image in it.
    pub fn read(&self) -> Result<Vec<ImageName>, String> {
        let path = match self {
            Self::Nothing => return Ok(Vec::new()),
            Self::Names(names) => return Ok(names.clone()),
            Self::File(path) => path,
        };
        let fault = |why: String| format!("PREFETCH=@{}: {why}", path.display());
        let text = small_file::read_text(path, FILE_BYTES_MAX);
        let text = text.map_err(|error| fault(error.to_string()))?;
        parse_names(&text).map_err(fault)
    }
}

/// Names between commas and on lines; what follows a `#` is left out.
fn parse_names(text: &str) -> Result<Vec<ImageName>, String> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let names: Result<Vec<ImageName>, String> =
        lines.flat_map(parse::list).map(str::parse).collect();
    let names = names?;
    match names.len() {
        0..=IMAGES_MAX => Ok(names),
        count => Err(format!("these are {count} images, at most {IMAGES_MAX}")),
    }
}

/// `PREFETCH`
pub(super) fn images(text: &str) -> Result<PrefetchList, String> {
    match text.strip_prefix('@') {
        Some("") => Err(String::new()),
        Some(path) => Ok(PrefetchList::File(PathBuf::from(path))),
        None => parse_names(text).map(PrefetchList::Names),
    }
}

/// `PREFETCH_PLATFORMS`
pub(super) fn platforms(text: &str) -> Result<Platforms, String> {
    text.parse().map_err(|_| String::new())
}

/// `PREFETCH_RATE`
pub(super) fn rate(text: &str) -> Result<Option<u64>, String> {
    match parse::size(text) {
        Some(rate) if rate >= RATE_MIN => Ok(Some(rate)),
        Some(_) => Err(format!("at least {RATE_MIN}")),
        None => Err(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_listed_in_the_setting_or_in_a_file() {
        let names = |text: &str| parse_names(text).map(|names| names.len());
        assert!(names("app:1, team/app ,r.test/x@sha256:0").is_err());
        assert_eq!(
            names("app:1, team/app\n# none\nr.test:5000/x:2 # two\n\n"),
            Ok(3)
        );
        assert_eq!(
            images("@/etc/list"),
            Ok(PrefetchList::File("/etc/list".into()))
        );
        assert!(images("@").is_err() && images("https://r.test/app").is_err());
        let many = "a,".repeat(IMAGES_MAX + 1);
        assert_eq!(
            names(&many).unwrap_err(),
            "these are 1001 images, at most 1000"
        );
        let missing = PrefetchList::File("/nowhere".into()).read().unwrap_err();
        assert!(missing.starts_with("PREFETCH=@/nowhere: "), "{missing}");
        // A pipe would keep the start waiting.
        let device = PrefetchList::File("/dev/zero".into()).read().unwrap_err();
        assert!(device.ends_with("it is not a regular file"), "{device}");
        assert_eq!(PrefetchList::Nothing.read(), Ok(Vec::new()));
    }

    #[test]
    fn a_rate_is_no_slower_than_registries_bear() {
        assert_eq!(rate("1m"), Ok(Some(1 << 20)));
        assert_eq!(rate("4096"), Ok(Some(4096)));
        assert_eq!(rate("4095"), Err("at least 4096".to_owned()));
        assert!(rate("fast").is_err());
    }
}
