//! The steps of `check` on this machine: disk, port, files. Owns: one try each, and what its
//! outcome means. Must not: print, or ask anybody.

use std::sync::Arc;
use std::time::SystemTime;

use super::super::progress::bytes;
use super::outcome::{StepResult, noted, ok, skipped};
use crate::app::{self, listen};
use crate::cache::probe;
use crate::calendar::format_rfc3339;
use crate::clock::SystemClock;
use crate::config::Settings;
use crate::door::{ServerTls, TlsFiles};
use crate::proxy::login::Logins;

type LocalStep = (&'static str, fn(&Settings) -> StepResult);

/// The steps in their order.
pub(super) const STEPS: [LocalStep; 5] = [
    ("cache", probe_cache),
    ("quota", judge_quota),
    ("port", |settings| ok(listen::try_out(settings)?)),
    ("tls", load_tls),
    ("logins", load_logins),
];

fn probe_cache(settings: &Settings) -> StepResult {
    let Some(directory) = app::cache_directory(settings) else {
        return skipped("off: set CACHE_DIR for a cache");
    };
    let look = match settings.offline {
        true => probe::look,
        false => probe::probe,
    };
    let found = look(&directory).map_err(|error| error.to_string())?;
    let root = found.root.display();
    let (used, free) = (bytes(found.used_bytes), bytes(found.free_bytes));
    let quota = bytes(settings.cache_max_size);
    match (settings.offline, found.is_there) {
        (true, _) => ok(format!("{root} can be read, {used} in it")),
        (false, true) => ok(format!("{root} can be written, {free} free, quota {quota}")),
        (false, false) => ok(format!("{root} can be made, {free} free, quota {quota}")),
    }
}

/// Compares the quota with what the disk can hold.
fn judge_quota(settings: &Settings) -> StepResult {
    if settings.offline {
        return skipped("OFFLINE=true: nothing is added");
    }
    let found = app::cache_directory(settings).map(|directory| probe::probe(&directory));
    let Some(Ok(found)) = found else {
        return skipped("there is no cache to judge");
    };
    let room = found.free_bytes.saturating_add(found.used_bytes);
    let (quota, all) = (bytes(settings.cache_max_size), bytes(room));
    let seen = format!("{quota}, and the disk has room for {all}");
    match room >= settings.cache_max_size {
        true => ok(seen),
        false => noted(format!(
            "{seen}: it is full before the quota is; set CACHE_MAX_SIZE below {all}"
        )),
    }
}

fn load_tls(settings: &Settings) -> StepResult {
    let files = TlsFiles::of(&settings.tls).filter(|_| settings.tls.enabled);
    let Some(files) = files else {
        return skipped("off: ENABLE_SSL is not true");
    };
    let own = files.certificate.display().to_string();
    let tls = ServerTls::load(files).map_err(|faults| faults.join("; "))?;
    let until = show_end(tls.good_until());
    if tls.good_until().is_some_and(|end| end <= SystemTime::now()) {
        return Err(format!("SSL_CERTIFICATE={own} ended {until}: renew it"));
    }
    let names = tls.names().join(", ");
    if names.is_empty() {
        return Err(format!(
            "SSL_CERTIFICATE={own}: it has no subjectAltName, and clients look at no other name; \
             make one with the names of this host"
        ));
    }
    ok(format!("{own}, for {names}, good until {until}"))
}

/// The end of a certificate or a token.
pub(super) fn show_end(end: Option<SystemTime>) -> String {
    end.map_or_else(|| "unknown".to_owned(), format_rfc3339)
}

fn load_logins(settings: &Settings) -> StepResult {
    let Some(path) = &settings.access.auth_file else {
        return skipped("clients need none: AUTH_FILE is not set");
    };
    let logins = Logins::open(path, Arc::new(SystemClock));
    let logins = logins.map_err(|why| format!("AUTH_FILE={why}"))?;
    ok(format!("{} users in {}", logins.count(), path.display()))
}
