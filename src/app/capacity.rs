//! How many connections this process can take. Owns: resource limits. Must not: start anything.
//!
//! The cap is lowered until neither descriptors nor threads can run out: a process that runs into
//! either fails in places that have nothing to do with the client that caused it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::operator::CONNECTIONS_MAX as OPERATORS_CONNECTIONS_MAX;
use crate::cache::uploads::WRITERS_MAX;
use crate::config::Settings;
use crate::log;

/// Descriptors of one connection: the client, upstream in use, and an idle one kept for later.
const DESCRIPTORS_PER_CONNECTION: u64 = 3;
/// Descriptors of one connection at `METRICS_LISTEN`: the client. Nothing there asks upstream.
const DESCRIPTORS_PER_OPERATOR: u64 = 1;
/// Descriptors of one lane: our end, and two of tiny_http's.
const DESCRIPTORS_PER_LANE: u64 = 3;
/// Standard streams, signals, name look-ups, and some to spare.
const DESCRIPTORS_RESERVED: u64 = 32;
/// Descriptors of one listener: the accept thread's, and the drain's.
const DESCRIPTORS_PER_LISTENER: u64 = 2;
/// Threads beside workers, lanes, downloads, kept uploads, listeners and connections: main, log,
/// signal, token, resolve, sweep, referrers, reload, drain, the five that tiny_http starts with,
/// and some to spare.
const THREADS_RESERVED: u64 = 20;
/// Threads of one download into the cache: one reads ahead for the other.
const THREADS_PER_FILL: u64 = 2;
/// Descriptors of one download into the cache: its file, and upstream.
const DESCRIPTORS_PER_FILL: u64 = 2;
/// Descriptors of one upload that is kept: its file.
const DESCRIPTORS_PER_KEPT_UPLOAD: u64 = 1;
/// Fewer connections than this are no service.
const CONNECTIONS_MIN: u64 = 4;

/// What the process needs beside the connections of clients.
struct FixedNeeds {
    descriptors: u64,
    threads: u64,
}

impl FixedNeeds {
    fn new(settings: &Settings, listeners: usize, with_cache: bool) -> Self {
        let (listeners, lanes) = (listeners as u64, settings.lanes as u64);
        let (fills, kept_uploads) = if with_cache {
            (settings.max_fills as u64, WRITERS_MAX as u64)
        } else {
            (0, 0)
        };
        let has_operators = settings.metrics.listen.is_some();
        let operators = u64::from(has_operators) * OPERATORS_CONNECTIONS_MAX as u64;
        Self {
            descriptors: DESCRIPTORS_RESERVED
                + DESCRIPTORS_PER_OPERATOR * operators
                + DESCRIPTORS_PER_LANE * lanes
                + DESCRIPTORS_PER_FILL * fills
                + DESCRIPTORS_PER_KEPT_UPLOAD * kept_uploads
                + DESCRIPTORS_PER_LISTENER * listeners,
            threads: THREADS_RESERVED
                + settings.workers as u64
                + lanes
                + THREADS_PER_FILL * fills
                + kept_uploads
                + listeners
                + operators,
        }
    }
}

/// Raises the soft descriptor limit to the hard one and says how many connections fit.
/// `listeners`: those of `METRICS_LISTEN`, too.
///
/// # Errors
/// When too few fit to be of use.
pub(super) fn fit_connections(
    settings: &Settings,
    listeners: usize,
    with_cache: bool,
) -> Result<usize, String> {
    let descriptors = raise_descriptors();
    let fixed = FixedNeeds::new(settings, listeners, with_cache);
    let limits = [
        (
            "RLIMIT_NOFILE",
            descriptors,
            fixed.descriptors,
            DESCRIPTORS_PER_CONNECTION,
        ),
        (
            "RLIMIT_NPROC",
            getrlimit(Resource::Nproc).current,
            fixed.threads,
            1,
        ),
        ("pids.max", cgroup_pids(), fixed.threads, 1),
    ];
    let wanted = settings.max_connections as u64;
    let mut most = wanted;
    for (name, limit, fixed, each) in limits {
        let Some(limit) = limit else { continue };
        let room = divide_rest(limit, fixed, each);
        if room < CONNECTIONS_MIN.min(wanted) {
            let needed = fixed + each * CONNECTIONS_MIN;
            return Err(format!(
                "{name} is {limit}; at least {needed} are needed to serve anybody"
            ));
        }
        if room < most {
            log::warn(
                "fewer connections than MAX_CONNECTIONS fit",
                &[
                    ("limit", &name),
                    ("value", &limit),
                    ("wanted", &wanted),
                    ("fit", &room),
                ],
            );
            most = room;
        }
    }
    Ok(usize::try_from(most).unwrap_or(settings.max_connections))
}

const fn divide_rest(limit: u64, fixed: u64, each: u64) -> u64 {
    limit.saturating_sub(fixed) / each
}

fn raise_descriptors() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            log::warn("cannot raise RLIMIT_NOFILE", &[("error", &error)]);
        }
    }
    getrlimit(Resource::Nofile).current
}

/// The process limit of our own cgroup (version 2), if it has one.
fn cgroup_pids() -> Option<u64> {
    let membership = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = membership
        .lines()
        .find_map(|line| line.strip_prefix("0::"))?;
    // In a container the path may be that of the host; the root is then our own.
    let files = [
        format!("/sys/fs/cgroup{path}/pids.max"),
        "/sys/fs/cgroup/pids.max".to_owned(),
    ];
    files
        .iter()
        .find_map(|file| std::fs::read_to_string(file).ok())?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ListenHost, MetricsListen};

    #[test]
    fn what_is_reserved_is_not_given_out() {
        assert_eq!(divide_rest(200, 80, 3), 40);
        assert_eq!(divide_rest(50, 80, 3), 0);
        assert_eq!(divide_rest(u64::MAX, 80, 1), u64::MAX - 80);
    }

    #[test]
    fn bug_a_connection_for_metrics_was_counted_as_a_listener() {
        let mut settings = Settings::default();
        let without = FixedNeeds::new(&settings, 1, false);
        settings.metrics.listen = Some(MetricsListen {
            host: ListenHost::default(),
            port: 9,
        });
        let with = FixedNeeds::new(&settings, 2, false);
        let connections = OPERATORS_CONNECTIONS_MAX as u64;
        assert_eq!(with.threads, without.threads + 1 + connections);
        assert_eq!(with.descriptors, without.descriptors + 2 + connections);
    }

    #[test]
    fn the_machine_itself_has_room() {
        let settings = Settings {
            max_connections: 16,
            ..Settings::default()
        };
        assert_eq!(fit_connections(&settings, 1, true), Ok(16));
    }
}
