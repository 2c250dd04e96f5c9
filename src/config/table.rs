//! What a setting is. Owns: the type of a row and its words. Must not: read arguments, variables or
//! files (`parse.rs` and `config.rs` do). The rows themselves are in `rows.rs`.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use super::Settings;

/// One setting: everything that parser, help and documentation need to know about it.
#[derive(Debug)]
pub struct Setting {
    /// The environment variable; the flag is the same words (`LISTEN_PORT` = `--listen-port`).
    pub name: &'static str,
    /// Further names, mostly those of the predecessors; each is a variable and a flag too.
    pub other_names: &'static [&'static str],
    /// What holds when it is not given.
    pub preset: Preset,
    /// How a value is read, and which field it goes to.
    pub kind: Kind,
    /// One or two sentences for the user.
    pub meaning: &'static str,
    /// True when no output may show the value.
    pub secret: bool,
    /// True when without it clients could do more: a misspelt name ends the start.
    pub keeps_out: bool,
}

impl Setting {
    /// The name and the other names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.name).chain(self.other_names.iter().copied())
    }

    /// True when its feature exists in this version.
    pub const fn is_built(&self) -> bool {
        !matches!(self.kind, Kind::Later(..))
    }

    /// The same row with further names.
    pub(super) const fn also(mut self, other_names: &'static [&'static str]) -> Self {
        self.other_names = other_names;
        self
    }

    /// The same row, for a setting that keeps clients out.
    pub(super) const fn keeps_out(mut self) -> Self {
        self.keeps_out = true;
        self
    }

    /// The same row, its value never shown.
    pub(super) const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }
}

/// A row with one name and no secret. The closures in `kind` call the [`Settings`] `s`.
pub(super) const fn row(
    name: &'static str,
    preset: Preset,
    kind: Kind,
    meaning: &'static str,
) -> Setting {
    Setting {
        name,
        other_names: &[],
        preset,
        kind,
        meaning,
        secret: false,
        keeps_out: false,
    }
}

/// The flag of a variable: `LISTEN_PORT` is `--listen-port`.
pub fn flag_of(name: &str) -> String {
    format!("--{}", name.to_ascii_lowercase().replace('_', "-"))
}

/// Sections of help and documentation, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Which registry, and how to reach it.
    Registry,
    /// The AWS identity.
    Aws,
    /// Listening to clients.
    Clients,
    /// What clients may do.
    Access,
    /// The cache.
    Cache,
    /// Threads and limits.
    Limits,
    /// Log and shutdown.
    Operation,
}

impl Group {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [
        Self::Registry,
        Self::Aws,
        Self::Clients,
        Self::Access,
        Self::Cache,
        Self::Limits,
        Self::Operation,
    ];

    /// The heading.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Access => "Access",
            Self::Aws => "AWS identity",
            Self::Cache => "Cache",
            Self::Clients => "Clients",
            Self::Limits => "Threads and limits",
            Self::Operation => "Operation",
            Self::Registry => "Registry",
        }
    }
}

/// What holds when a setting is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// This text, read as if the user had given it.
    Value(&'static str),
    /// No value; the words say what happens then.
    Unset(&'static str),
}

impl Preset {
    /// For the eye.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Unset(text) | Self::Value(text) => text,
        }
    }
}

/// Values of a feature that is not built which are true all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepts {
    /// Any: without the feature the value changes nothing.
    Anything,
    /// None.
    Nothing,
    /// These, in any case.
    Only(&'static [&'static str]),
}

/// How a value is read, and where it goes.
#[derive(Debug)]
pub enum Kind {
    /// A path. It is not looked at when it is read.
    File(fn(&mut Settings, PathBuf)),
    /// A decimal number of hours; the one time without a unit, as the predecessors have it.
    Hours(Range<Duration>, fn(&mut Settings, Duration)),
    /// The feature is not built: a value is refused by name, unless it is true without the feature.
    Later(Unit, Accepts),
    /// A whole number.
    Number(Range<u32>, fn(&mut Settings, u32)),
    /// True or false.
    Switch(fn(&mut Settings, bool)),
    /// Anything else. The text says what was expected; the function's error says what is wrong with
    /// this value, or is empty.
    Text(
        Unit,
        &'static str,
        fn(&mut Settings, &str) -> Result<(), String>,
    ),
    /// A whole number with one of the units `ms s m h`.
    Time(Range<Duration>, fn(&mut Settings, Duration)),
}

impl Kind {
    /// What a value is measured in.
    pub const fn unit(&self) -> Unit {
        match self {
            Self::File(_) => Unit::Path,
            Self::Hours(..) => Unit::Hours,
            Self::Number(..) => Unit::Number,
            Self::Switch(_) => Unit::Switch,
            Self::Later(unit, _) | Self::Text(unit, ..) => *unit,
            Self::Time(..) => Unit::Time,
        }
    }
}

/// The smallest and the largest value.
#[derive(Debug)]
pub struct Range<T> {
    min: T,
    max: T,
    /// Why these limits.
    pub reason: &'static str,
}

impl<T: PartialOrd> Range<T> {
    pub(super) fn contains(&self, value: &T) -> bool {
        (&self.min..=&self.max).contains(&value)
    }

    /// `1 to 64`, each end as `write` writes it.
    pub(super) fn ends<W: Display>(&self, write: impl Fn(&T) -> W) -> String {
        format!("{} to {}", write(&self.min), write(&self.max))
    }
}

pub(super) const fn range<T: Copy>(min: T, max: T, reason: &'static str) -> Range<T> {
    Range { min, max, reason }
}

/// What a value is measured in, or what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// An IP address.
    Address,
    /// Hours, as a decimal number.
    Hours,
    /// A list with commas.
    List,
    /// A count.
    Number,
    /// A path of the file system.
    Path,
    /// Bytes, or with a unit such as `k` or `GiB`.
    Size,
    /// `true` or `false`; the flag alone means true.
    Switch,
    /// Words.
    Text,
    /// A time, with `ms`, `s`, `m` or `h`.
    Time,
    /// `http://` or `https://`, host and port.
    Url,
}

impl Unit {
    /// The placeholder in help.
    pub const fn placeholder(self) -> &'static str {
        match self {
            Self::Address => "ADDRESS",
            Self::Hours => "HOURS",
            Self::List => "LIST",
            Self::Number => "NUMBER",
            Self::Path => "PATH",
            Self::Size => "SIZE",
            Self::Switch => "",
            Self::Text => "TEXT",
            Self::Time => "TIME",
            Self::Url => "URL",
        }
    }
}

/// What a switch that is off may be called.
pub(super) const OFF: Accepts = Accepts::Only(&["false", "0", "no", "off"]);

pub(super) const URL: &str = "http:// or https://, a host and at most a port";
pub(super) const VISIBLE: &str = "visible ASCII characters without spaces";
pub(super) const ROLE_ARN: &str = "the ARN of a role, arn:PARTITION:iam::ACCOUNT:role/NAME";
pub(super) const COUNT_REASON: &str = "each holds up to 256 KiB of buffers";

/// Stores what was read from a value in its field.
pub(super) fn put<T, F: From<T>>(field: &mut F, read: Result<T, String>) -> Result<(), String> {
    *field = read?.into();
    Ok(())
}

/// The value that a word stands for, in any case.
pub(super) fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let mut words = words.iter();
    let found = words.find(|(word, _)| word.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(String::new)
}

/// A count as the rest of the program keeps it; lossless, as Linux has no 16-bit machines.
pub(super) fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
