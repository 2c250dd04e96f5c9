//! The settings: one table from which parser, `--help` and `docs/configuration.md` come. Owns: the
//! environment of the process, and the choice among several values of a setting. Must not: act on a
//! value.
//!
//! `table.rs` is the table, `arguments.rs` reads the command line, `parse.rs` reads values,
//! `document.rs` writes help and documentation. A flag beats a variable, which beats the default;
//! all faults are reported at once.

mod access;
mod arguments;
mod aws;
mod cache;
mod clients;
mod document;
mod globs;
mod listen;
mod metadata;
mod near;
mod outbound;
mod parse;
mod registry;
mod rows;
mod table;

use std::ffi::OsString;
use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use crate::calendar;
use crate::log::{Format, Level};
use crate::oci::Registry;
use crate::secret::Secret;

pub use access::AccessSettings;
pub use arguments::Arguments;
pub use aws::{
    AwsSettings, ProfileEndpoints, REGION_LENGTH_MAX, StsEndpoints, is_role_arn, is_session_name,
};
pub use cache::{CacheDir, CacheKey, KeyPart, TagTtl};
pub use clients::TlsSettings;
pub use document::{help, markdown_page, markdown_tables};
pub use globs::Globs;
pub use listen::{Activation, ListenHost};
pub use metadata::{
    ContainerSettings, InstanceSettings, container_uri, is_container_address, is_field_value,
};
pub use outbound::{BlobRedirect, OutboundSettings, ProxyException, ProxyUrl};
pub use registry::{ImageOrigin, UpstreamAuth};
pub use rows::table_rows;
pub use table::{Accepts, Group, Kind, Preset, Setting, Unit, flag_of};

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The git commit it was built from, or `unknown`.
pub const COMMIT: &str = env!("BUILD_COMMIT");

/// When it was built (RFC 3339), or what `SOURCE_DATE_EPOCH` said then.
pub fn build_date() -> String {
    let epoch_s = env!("BUILD_EPOCH_S").parse().unwrap_or_default();
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(epoch_s));
    calendar::format_rfc3339(time.unwrap_or(UNIX_EPOCH))
}

/// Exit code: what was asked for is done.
pub const EXIT_OK: u8 = 0;
/// Exit code: it failed.
pub const EXIT_FAILED: u8 = 1;
/// Exit code: arguments or settings at fault (`EX_USAGE` of sysexits.h).
pub const EXIT_SETTINGS: u8 = 64;
/// Exit code: a thread that must not end has ended (`EX_SOFTWARE` of sysexits.h).
pub const EXIT_THREAD_LOST: u8 = 70;

/// Longest part of a value that is shown.
const SHOWN_CHARACTERS_MAX: usize = 200;

/// Everything a user can set, checked. The default is blank, for the table to write on: only
/// [`resolve`] fills it.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `ECR`, the default one first; none: the registry that the token names.
    pub registries: Vec<Registry>,
    /// `NAMESPACES`
    pub namespaces: Vec<ImageOrigin>,
    /// `UPSTREAM_AUTH`
    pub upstream_auth: UpstreamAuth,
    /// `ALLOW_PLAIN_TOKEN`
    pub allow_plain_token: bool,
    /// What clients may do.
    pub access: AccessSettings,
    /// The AWS settings.
    pub aws: AwsSettings,
    /// The way out.
    pub outbound: OutboundSettings,
    /// TLS towards clients.
    pub tls: TlsSettings,
    /// `RENEW_INTERVAL_HOURS`
    pub renew_interval: Duration,
    /// `LISTEN_HOST`
    pub listen_host: ListenHost,
    /// `LISTEN_FDS`; what it hands in goes before address, port and path.
    pub activation: Activation,
    /// `LISTEN_PORT`; 0 picks one.
    pub listen_port: u16,
    /// The opposite of `DISABLE_PROXY_HEADERS`
    pub trust_proxy_headers: bool,
    /// `BLOB_HOSTS`: `host`, `host:port`, or `.suffix`; lower case
    pub blob_hosts: Vec<String>,
    /// `CACHE_DIR`
    pub cache_dir: CacheDir,
    /// `CACHE_MAX_SIZE`, in bytes
    pub cache_max_size: u64,
    /// `CACHE_KEY`
    pub cache_key: CacheKey,
    /// `CACHE_TAG_TTL`
    pub cache_tag_ttl: TagTtl,
    /// `FILL_REFERRERS`
    pub fill_referrers: bool,
    /// `WORKERS`
    pub workers: usize,
    /// `LANES`
    pub lanes: usize,
    /// `MAX_CONNECTIONS`
    pub max_connections: usize,
    /// `MAX_CONNECTIONS_PER_PEER`
    pub max_connections_per_peer: usize,
    /// `MIN_RATE`, in bytes a second; 0: off
    pub min_rate: u64,
    /// `MAX_EXCHANGES`
    pub max_exchanges: usize,
    /// `MAX_UPLOADS`
    pub max_uploads: usize,
    /// `MAX_FILLS`
    pub max_fills: usize,
    /// `SHUTDOWN_GRACE`
    pub shutdown_grace: Duration,
    /// `LOG_LEVEL`
    pub log_level: Level,
    /// `LOG_FORMAT`
    pub log_format: Format,
    /// Variables that look like misspelt settings, a sentence for each. To be said at the start.
    pub warnings: Vec<String>,
}

/// A fault in arguments or variables: one line, no secret in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(String);

impl Fault {
    /// A fault that shows only outside the table. `text` must hold no secret.
    pub const fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Neither a flag nor a variable.
    Default,
    /// The variable of this name.
    Environment(&'static str),
    /// The flag that belongs to the variable of this name.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {}", flag_of(name)),
        }
    }
}

/// The effective value of a setting, fit to be shown.
#[derive(Debug, Clone)]
pub struct Effective {
    /// The setting.
    pub setting: &'static Setting,
    /// The value, secrets as `***`; none when nothing is given and nothing is the default.
    pub value: Option<String>,
    /// Where it comes from.
    pub origin: Origin,
}

/// The result of [`resolve`].
#[derive(Debug)]
pub struct Resolution {
    /// The settings, or all their faults.
    pub settings: Result<Settings, Vec<Fault>>,
    /// Every built setting, and what else was given, in the table's order.
    pub effective: Vec<Effective>,
}

/// A value and the name it was given by.
#[derive(Debug, Clone)]
struct Given {
    setting: &'static Setting,
    /// The variable's name, also where its flag was used.
    name: &'static str,
    by_flag: bool,
    /// None: not UTF-8. It stays a `Secret` until the setting is known not to be one.
    value: Option<Secret<String>>,
}

/// The arguments of this process, without its own name.
pub fn process_arguments() -> Vec<OsString> {
    std::env::args_os().skip(1).collect()
}

/// The environment of this process.
pub fn process_environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().collect()
}

/// Joins arguments, variables and defaults. Reads the file that `AWS_CA_BUNDLE` names.
pub fn resolve(arguments: &Arguments, environment: &[(OsString, OsString)]) -> Resolution {
    let mut faults = arguments.faults.clone();
    let mut settings = Settings::default();
    let mut effective = Vec::new();
    for setting in table_rows() {
        let given = find_given(setting, arguments, environment);
        let Some(first) = given.first() else {
            // A test holds every default to its own row, so this cannot fail.
            let _ = apply_preset(setting, &mut settings);
            if setting.is_built() {
                effective.push(Effective::preset(setting));
            }
            continue;
        };
        effective.push(Effective {
            setting,
            value: Some(first.shown()),
            origin: first.origin(),
        });
        if let Err(fault) = store(setting, &given, &mut settings) {
            faults.push(fault);
        }
    }
    aws::take_over_home(&mut settings, environment);
    match listen::activation(environment, std::process::id()) {
        Ok(activation) => settings.activation = activation,
        Err(fault) => faults.push(fault),
    }
    if settings.cache_dir == CacheDir::Unset {
        cache::take_over_directory(&mut settings, environment);
    }
    if settings.upstream_auth == UpstreamAuth::None && is_default(&effective, "ECR") {
        let why = "UPSTREAM_AUTH=none: expected ECR to be set too, as no token names a registry";
        faults.push(Fault(why.to_owned()));
    }
    let unknown = registry::unknown_registry(&settings.namespaces, &settings.registries);
    faults.extend(unknown.map(Fault));
    let is_missing = |name: &str| is_default(&effective, name);
    faults.extend(settings.tls.faults(is_missing));
    for miss in near::find(environment) {
        if miss.setting.keeps_out && is_missing(miss.setting.name) {
            faults.push(miss.fault());
        } else {
            settings.warnings.push(miss.warning());
        }
    }
    Resolution {
        settings: if faults.is_empty() {
            Ok(settings)
        } else {
            Err(faults)
        },
        effective,
    }
}

/// Finds the flags that name `setting`; without any, the variables.
fn find_given(
    setting: &'static Setting,
    arguments: &Arguments,
    environment: &[(OsString, OsString)],
) -> Vec<Given> {
    let flags = arguments.given.iter();
    let flags: Vec<Given> = flags
        .filter(|given| given.setting.name == setting.name)
        .cloned()
        .collect();
    if !flags.is_empty() {
        return flags;
    }
    let variable = |name: &'static str| {
        let (_, value) = environment.iter().find(|(known, _)| known == name)?;
        let value = value.to_str().map(str::to_owned);
        // Blank is unset: compose files and unit files cannot leave a variable out by condition.
        let blank = value.as_ref().is_some_and(|text| text.trim().is_empty());
        let value = value.map(Secret::new);
        (!blank).then_some(Given {
            setting,
            name,
            by_flag: false,
            value,
        })
    };
    setting.names().filter_map(variable).collect()
}

/// Stores the one value that all of `given` agree on.
fn store(setting: &Setting, given: &[Given], settings: &mut Settings) -> Result<(), Fault> {
    if let Some(odd) = given.iter().find(|given| given.value.is_none()) {
        return Err(Fault(format!("{}: expected UTF-8", odd.label())));
    }
    let Some(first) = given.first() else {
        return Ok(());
    };
    if let Some(other) = given.iter().find(|other| other.text() != first.text()) {
        let (first, other) = (first.pair(), other.pair());
        let why = format!("{first}: expected the same value as {other}, as both mean one setting");
        return Err(Fault(why));
    }
    parse::apply(setting, settings, first.text())
        .map_err(|why| Fault(format!("{}: {why}", first.pair())))
}

fn apply_preset(setting: &Setting, settings: &mut Settings) -> Result<(), String> {
    match setting.preset {
        Preset::Value(text) if setting.is_built() => parse::apply(setting, settings, text),
        Preset::Unset(_) | Preset::Value(_) => Ok(()),
    }
}

fn is_default(effective: &[Effective], name: &str) -> bool {
    let mut shown = effective.iter();
    shown.any(|shown| shown.setting.name == name && shown.origin == Origin::Default)
}

impl Given {
    fn label(&self) -> String {
        if self.by_flag {
            flag_of(self.name)
        } else {
            self.name.to_owned()
        }
    }

    /// The value. A line feed at its end, which a secret mounted from a file often has, is dropped.
    fn text(&self) -> &str {
        let value = self.value.as_ref().map(Secret::expose);
        value.map_or("", |value| value.trim())
    }

    fn pair(&self) -> String {
        format!("{}={}", self.label(), self.shown())
    }

    fn shown(&self) -> String {
        match &self.value {
            Some(value) if self.setting.secret => value.to_string(),
            Some(_) => mask(self.text()),
            None => "(not UTF-8)".to_owned(),
        }
    }

    const fn origin(&self) -> Origin {
        if self.by_flag {
            Origin::Flag(self.name)
        } else {
            Origin::Environment(self.name)
        }
    }
}

impl Effective {
    fn preset(setting: &'static Setting) -> Self {
        Self {
            setting,
            value: match setting.preset {
                Preset::Unset(_) => None,
                Preset::Value(text) => Some(text.to_owned()),
            },
            origin: Origin::Default,
        }
    }
}

/// A value fit to be shown: on one line, and without the parts of a URL that may hold a password
/// (RFC 3986 §3.2.1 user information, §3.4 query).
fn mask(value: &str) -> String {
    // In `@file` nothing precedes the sign. A password may hold a `?`, so it goes first.
    let without_user = match value.rsplit_once('@') {
        Some((user, rest)) if !user.is_empty() => {
            let scheme = user.find("://").and_then(|end| user.get(..end + 3));
            format!("{}***@{rest}", scheme.unwrap_or_default())
        }
        _ => value.to_owned(),
    };
    let (head, query) = match without_user.split_once('?') {
        Some((head, _)) => (head, "?…"),
        None => (without_user.as_str(), ""),
    };
    let mut shown = head.to_owned();
    shown.push_str(query);
    let mut line: String = shown
        .chars()
        .take(SHOWN_CHARACTERS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if shown.chars().nth(SHOWN_CHARACTERS_MAX).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests;
