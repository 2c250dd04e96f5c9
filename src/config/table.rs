//! What a setting is. Owns: the type of a row and its words. Must not: read arguments, variables or
//! files (`parse.rs` and `config.rs` do). The rows themselves are in `rows.rs`.

use std::time::Duration;

use super::Settings;

/// One setting: everything that parser, help and documentation need to know of it.
#[derive(Debug)]
pub struct Setting {
    /// The environment variable; the flag is the same words (`LISTEN_PORT` = `--listen-port`).
    pub name: &'static str,
    /// Further names, mostly those of the predecessors; each is a variable and a flag too.
    pub other_names: &'static [&'static str],
    /// Where help and documentation show it.
    pub group: Group,
    /// What holds when it is not given.
    pub preset: Preset,
    /// One or two sentences for the user.
    pub meaning: &'static str,
    /// True when no output may show the value.
    pub secret: bool,
    /// Whether the feature exists.
    pub state: State,
}

impl Setting {
    /// The name and the other names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.name).chain(self.other_names.iter().copied())
    }

    /// True when its feature exists in this version.
    pub const fn is_built(&self) -> bool {
        matches!(self.state, State::Built(_))
    }

    /// What a value is measured in.
    pub const fn unit(&self) -> Unit {
        match &self.state {
            State::Built(kind) => kind.unit(),
            State::NotBuilt { unit, .. } => *unit,
        }
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

/// Whether a setting's feature exists.
#[derive(Debug)]
pub enum State {
    /// It does; this reads a value.
    Built(Kind),
    /// It does not: a value is refused by name, unless it says what is so today.
    NotBuilt {
        /// What a value will be measured in.
        unit: Unit,
        /// The values that are true today.
        accepts: Accepts,
    },
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

/// How the value of a built setting is read, and where it goes.
#[derive(Debug)]
pub enum Kind {
    /// A decimal number of hours; the one time without a unit, as the predecessors have it.
    Hours {
        /// Smallest.
        min: Duration,
        /// Largest.
        max: Duration,
        /// Why these limits.
        reason: &'static str,
        /// Stores it.
        set: fn(&mut Settings, Duration),
    },
    /// A whole number.
    Number {
        /// Smallest.
        min: u32,
        /// Largest.
        max: u32,
        /// Why these limits.
        reason: &'static str,
        /// Stores it.
        set: fn(&mut Settings, u32),
    },
    /// True or false.
    Switch(fn(&mut Settings, bool)),
    /// Anything else.
    Text {
        /// What the text is.
        unit: Unit,
        /// What a fault says was expected.
        expected: &'static str,
        /// Reads and stores it; the error says what is wrong with this one, or is empty.
        set: fn(&mut Settings, &str) -> Result<(), String>,
    },
    /// A whole number with one of the units `ms s m h`.
    Time {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
        /// Why these limits.
        reason: &'static str,
        /// Stores it.
        set: fn(&mut Settings, Duration),
    },
}

impl Kind {
    const fn unit(&self) -> Unit {
        match self {
            Self::Hours { .. } => Unit::Hours,
            Self::Number { .. } => Unit::Number,
            Self::Switch(_) => Unit::Switch,
            Self::Text { unit, .. } => *unit,
            Self::Time { .. } => Unit::Time,
        }
    }
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
    /// Bytes, with `k`, `m` or `g`.
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

/// What most rows share: one name, no secret, not built.
pub(super) const ROW: Setting = Setting {
    name: "",
    other_names: &[],
    group: Group::Registry,
    preset: Preset::Unset(""),
    meaning: "",
    secret: false,
    state: State::NotBuilt {
        unit: Unit::Text,
        accepts: Accepts::Nothing,
    },
};

pub(super) const fn later(unit: Unit, accepts: Accepts) -> State {
    State::NotBuilt { unit, accepts }
}

pub(super) const fn number(
    min: u32,
    max: u32,
    reason: &'static str,
    set: fn(&mut Settings, u32),
) -> State {
    let kind = Kind::Number {
        min,
        max,
        reason,
        set,
    };
    State::Built(kind)
}

pub(super) const fn text(
    unit: Unit,
    expected: &'static str,
    set: fn(&mut Settings, &str) -> Result<(), String>,
) -> State {
    let kind = Kind::Text {
        unit,
        expected,
        set,
    };
    State::Built(kind)
}

pub(super) const URL: &str = "http:// or https://, a host and at most a port";
pub(super) const VISIBLE: &str = "visible ASCII characters without spaces";
pub(super) const ROLE_ARN: &str = "the ARN of a role, arn:PARTITION:iam::ACCOUNT:role/NAME";
pub(super) const COUNT_REASON: &str = "each holds up to 256 KiB of buffers";

/// A count as the rest of the program keeps it; lossless, as Linux has no 16-bit machines.
pub(super) fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
