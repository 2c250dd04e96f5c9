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
mod fault;
mod given;
mod globs;
mod listen;
mod metadata;
mod near;
mod outbound;
mod parse;
mod prefetch;
mod registry;
mod rows;
mod settings;
mod table;

use std::ffi::OsString;
use std::time::{Duration, UNIX_EPOCH};

use self::given::Given;
use crate::calendar;
use crate::secret::Secret;

pub use access::AccessSettings;
pub use arguments::{Arguments, nearest, takes_value};
pub use aws::{
    AwsSettings, CA_BUNDLE_BYTES_MAX, ProfileEndpoints, REGION_LENGTH_MAX, StsEndpoints,
    is_role_arn, is_session_name,
};
pub use cache::{CacheDir, CacheKey, KeyPart, TagTtl};
pub use clients::TlsSettings;
pub use document::{help, wrapped};
pub use fault::Fault;
pub use given::Origin;
pub use globs::{Globs, ImageGlobs};
pub use listen::{Activation, ListenHost, MetricsListen, MetricsSettings};
pub use metadata::{
    ContainerSettings, InstanceSettings, container_uri, is_container_address, is_field_value,
};
pub use outbound::{BlobRedirect, OutboundSettings, ProxyException, ProxyUrl};
pub use prefetch::{PrefetchList, PrefetchSettings};
pub use registry::{ImageOrigin, UpstreamAuth};
pub use rows::table_rows;
pub use settings::Settings;
pub use table::{Group, Kind, Limits, Preset, Setting, Unit, flag_of};

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

/// Exit code: the command has done its work.
pub const EXIT_OK: u8 = 0;
/// Exit code: the command failed.
pub const EXIT_FAILED: u8 = 1;
/// Exit code: arguments or settings have a fault (`EX_USAGE` of sysexits.h).
pub const EXIT_SETTINGS: u8 = 64;
/// Exit code: a thread that must not end has ended (`EX_SOFTWARE` of sysexits.h).
pub const EXIT_THREAD_LOST: u8 = 70;

/// The effective value of a setting, fit to be shown.
#[derive(Debug, Clone)]
pub struct Effective {
    /// The setting.
    pub setting: &'static Setting,
    /// The value; a secret shows as `***`. None when no value is given and there is no default.
    pub value: Option<String>,
    /// Its origin.
    pub origin: Origin,
}

/// The result of [`resolve`].
#[derive(Debug)]
pub struct Resolution {
    /// The settings, or all their faults.
    pub settings: Result<Settings, Vec<Fault>>,
    /// The settings as far as they could be read, for finding further faults.
    pub as_read: Settings,
    /// Every built setting, and what else was given, in the table's order.
    pub effective: Vec<Effective>,
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
            effective.push(Effective::preset(setting));
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
    settings.aws.home = aws::find_home(environment);
    match listen::activation(environment, std::process::id()) {
        Ok(activation) => settings.activation = activation,
        Err(fault) => faults.push(fault),
    }
    settings.has_notify_socket = environment.iter().any(|(name, _)| name == "NOTIFY_SOCKET");
    if settings.cache_dir == CacheDir::Unset {
        settings.cache_dir = cache::find_systemds_directory(environment).unwrap_or_default();
    }
    if settings.offline && settings.cache_dir == CacheDir::Off {
        let why = "OFFLINE=true: expected CACHE_DIR to name a cache, as nothing else is served";
        faults.push(Fault::new(why.to_owned()));
    }
    let asks_anonymously = settings.upstream_auth == UpstreamAuth::None && !settings.offline;
    if asks_anonymously && is_default(&effective, "ECR") {
        let why = "UPSTREAM_AUTH=none: expected ECR to be set too, as no token names a registry";
        faults.push(Fault::new(why.to_owned()));
    }
    let unknown = registry::unknown_registry(&settings.namespaces, &settings.registries);
    faults.extend(unknown.map(Fault::new));
    let is_missing = |name: &str| is_default(&effective, name);
    // Offline nobody uses the credentials, so nothing is wrong with them.
    if settings.upstream_auth == UpstreamAuth::Ecr && !settings.offline {
        faults.extend(aws::half_key_fault(is_missing).map(Fault::new));
        settings.warnings.extend(settings.aws.warning());
    }
    faults.extend(settings.tls.faults(is_missing));
    for miss in near::find(environment) {
        if miss.setting.keeps_out && is_missing(miss.setting.name) {
            faults.push(miss.fault());
        } else {
            settings.warnings.push(miss.warning());
        }
    }
    Resolution {
        as_read: settings.clone(),
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
        return Err(Fault::new(format!("{}: expected UTF-8", odd.label())));
    }
    let Some(first) = given.first() else {
        return Ok(());
    };
    if let Some(other) = given.iter().find(|other| other.text() != first.text()) {
        let (first, other) = (first.pair(), other.pair());
        let why = format!("{first}: expected the same value as {other}, as both mean one setting");
        return Err(Fault::new(why));
    }
    setting
        .apply(settings, first.text())
        .map_err(|why| Fault::new(format!("{}: {why}", first.pair())))
}

fn apply_preset(setting: &Setting, settings: &mut Settings) -> Result<(), String> {
    match setting.preset {
        Preset::Value(text) => setting.apply(settings, text),
        Preset::Unset(_) => Ok(()),
    }
}

fn is_default(effective: &[Effective], name: &str) -> bool {
    let mut shown = effective.iter();
    shown.any(|shown| shown.setting.name == name && shown.origin == Origin::Default)
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

#[cfg(test)]
mod tests;
