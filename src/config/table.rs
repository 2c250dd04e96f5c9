//! The type of a setting. Owns: the fields of a row, and how a text becomes the value of its field.
//! Must not: look for arguments or variables. The rows themselves are in `rows.rs`.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::parse;
use super::settings::Settings;

/// One setting: everything that parser, help and documentation need to know about it.
#[derive(Debug)]
pub struct Setting {
    /// The section it is shown in.
    pub group: Group,
    /// The environment variable; the flag is the same words (`LISTEN_PORT` = `--listen-port`).
    pub name: &'static str,
    /// Further names, mostly those of the predecessors; each is a variable and a flag too.
    pub other_names: &'static [&'static str],
    /// Its default.
    pub preset: Preset,
    /// How a value is read, and which field it goes to.
    pub kind: Kind,
    /// One or two sentences for the user.
    pub meaning: &'static str,
    /// True when no output may show the value.
    pub secret: bool,
    /// True when the rights of clients depend on it: a misspelt name ends the start.
    pub keeps_out: bool,
}

impl Setting {
    /// The name and the other names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.name).chain(self.other_names.iter().copied())
    }

    /// Reads `text` and stores it in `settings`.
    ///
    /// The error is the part of a fault after `NAME=value: `.
    pub(super) fn apply(&self, settings: &mut Settings, text: &str) -> Result<(), String> {
        match &self.kind {
            Kind::File(set) => set(settings, PathBuf::from(text)),
            Kind::Hours(limits, set) => {
                let time = parse::hours(text);
                let time = limits.check(time, "a number of hours", parse::in_hours)?;
                set(settings, time);
            }
            Kind::Number(limits, set) => {
                let number = parse::number(text);
                set(
                    settings,
                    limits.check(number, "a whole number", u32::clone)?,
                );
            }
            Kind::Switch(set) => {
                let expected = "expected true or false (or yes, no, on, off, 1, 0)";
                set(settings, parse::switch(text).ok_or(expected)?);
            }
            Kind::Text(_, expected, set) => {
                set(settings, text).map_err(|why| match why.as_str() {
                    "" => format!("expected {expected}"),
                    why => format!("expected {expected}; {why}"),
                })?
            }
            Kind::Time(limits, set) => {
                let time = parse::time(text).map_err(|why| format!("expected a time {why}"))?;
                set(
                    settings,
                    limits.check(Some(time), "a time", parse::format_time)?,
                );
            }
        }
        Ok(())
    }

    /// Marks the setting as one that keeps clients out.
    pub(super) const fn keeps_out(mut self) -> Self {
        self.keeps_out = true;
        self
    }

    /// Marks the setting as a secret: its value is never shown.
    pub(super) const fn secret(mut self) -> Self {
        self.secret = true;
        self
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
    /// The rights of clients.
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

/// The default of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// This text, read as if the user had given it.
    Value(&'static str),
    /// No value; the words say what the proxy does then.
    Unset(&'static str),
}

impl Preset {
    /// The text for help and documentation.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Unset(text) | Self::Value(text) => text,
        }
    }
}

/// How a value is read, and where it goes.
#[derive(Debug)]
pub enum Kind {
    /// A path. It is not looked at when it is read.
    File(fn(&mut Settings, PathBuf)),
    /// A decimal number of hours; the one time without a unit, as the predecessors have it.
    Hours(Limits<Duration>, fn(&mut Settings, Duration)),
    /// A whole number.
    Number(Limits<u32>, fn(&mut Settings, u32)),
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
    Time(Limits<Duration>, fn(&mut Settings, Duration)),
}

impl Kind {
    /// The unit of a value.
    pub const fn unit(&self) -> Unit {
        match self {
            Self::File(_) => Unit::Path,
            Self::Hours(..) => Unit::Hours,
            Self::Number(..) => Unit::Number,
            Self::Switch(_) => Unit::Switch,
            Self::Text(unit, ..) => *unit,
            Self::Time(..) => Unit::Time,
        }
    }
}

/// The smallest and the largest value.
#[derive(Debug)]
pub struct Limits<T> {
    /// From the smallest to the largest.
    pub range: RangeInclusive<T>,
    /// Why these limits.
    pub reason: &'static str,
}

impl<T: PartialOrd> Limits<T> {
    /// `1 to 64`, each end as `write` writes it.
    pub(super) fn ends<W: Display>(&self, write: impl Fn(&T) -> W) -> String {
        let (min, max) = (self.range.start(), self.range.end());
        format!("{} to {}", write(min), write(max))
    }

    /// The value, if it is within the limits; otherwise what was expected.
    fn check<W: Display>(
        &self,
        value: Option<T>,
        what: &str,
        write: impl Fn(&T) -> W,
    ) -> Result<T, String> {
        let outside = || {
            let (ends, reason) = (self.ends(write), self.reason);
            format!("expected {what} from {ends} ({reason})")
        };
        let inside = value.filter(|value| self.range.contains(value));
        inside.ok_or_else(outside)
    }
}

/// The unit of a value, or its form.
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

/// Stores what was read from a value in its field.
pub(super) fn put<T, F: From<T>>(field: &mut F, read: Result<T, String>) -> Result<(), String> {
    *field = read?.into();
    Ok(())
}
