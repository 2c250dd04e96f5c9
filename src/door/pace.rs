//! Sending at the client's pace. Owns: how long a client may take to read what it is sent. Must
//! not: touch a socket.
//!
//! We see how fast a client reads only by how fast the kernel takes bytes from us. The kernel hides
//! much of that:
//!
//! * It wakes a blocked write only when a third of the send buffer (up to 4 MiB) is free. At 1 KB/s
//!   that takes 20 minutes. A new write, however, gets in all that the client has acknowledged
//!   since (`sk_stream_memory_free`). So a blocked write gives up after a short while and is tried
//!   again.
//! * The client's own receive buffer stays hidden. Once it is full, the client's system opens the
//!   window in steps, and our system sends whole segments only (RFC 9293 §3.8.6.2.1). Segments on
//!   Ethernet have 1460 bytes, so the steps are small. Segments on loopback have 64 KiB: there a
//!   client that reads 1 KB/s took nothing for 66 s, and for 109 s through TLS.

use std::io;
use std::time::Duration;

use super::limits::DoorLimits;
use super::rate::{MinRate, Rate};

/// A client is judged over so many windows of the least rate. A pause between two steps of its
/// window is then not taken for slowness.
const WINDOWS: u32 = 3;
/// Longest wait within one write. It measures a window of 60 s to a twelfth, and a thousand blocked
/// clients cost 200 tries a second.
const TRY_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// A limit shorter than 12 times [`TRY_TIMEOUT_MAX`] is divided into so many tries.
const TRIES_PER_LIMIT: u32 = 12;
/// Bytes that sendfile hands over at a time (a pipe of 16 pages). Each part has its own time limit.
const PIPE_BYTES: usize = 64 * 1024;
/// Bytes handed to the kernel at a time for a client that takes them at once.
const BYTES_MAX_FAST: usize = 1 << 20;
/// Bytes handed to the kernel at a time for a slower client: few, so that it is judged in time.
const BYTES_MAX_SLOW: usize = PIPE_BYTES;

/// The pace of one client's receiving side.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Rate,
    /// Longest time in which the client may take no byte.
    idle_max: Duration,
    /// Time since the client took a byte.
    idle: Duration,
    try_timeout: Duration,
    is_slow: bool,
}

impl Pace {
    pub(super) fn new(limits: &DoorLimits) -> Self {
        let shortest = limits.write_idle.min(limits.min_rate.window) / TRIES_PER_LIMIT;
        Self {
            rate: Rate::new(MinRate {
                window: limits.min_rate.window.saturating_mul(WINDOWS),
                ..limits.min_rate
            }),
            idle_max: limits.write_idle,
            idle: Duration::ZERO,
            try_timeout: shortest.clamp(Duration::from_millis(1), TRY_TIMEOUT_MAX),
            is_slow: false,
        }
    }

    /// Longest wait within one write.
    pub(super) const fn try_timeout(&self) -> Duration {
        self.try_timeout
    }

    /// Bytes to hand to the kernel next.
    pub(super) const fn bytes_max(&self) -> usize {
        if self.is_slow {
            BYTES_MAX_SLOW
        } else {
            BYTES_MAX_FAST
        }
    }

    /// Notes that a write of `wanted` bytes lasted `waited` and took `taken`.
    ///
    /// # Errors
    /// When the client is too slow.
    pub(super) fn record(
        &mut self,
        waited: Duration,
        wanted: usize,
        taken: usize,
    ) -> io::Result<()> {
        // A write that went out whole may have waited for our disk. The client is charged for no
        // more than the longest wait of each part.
        let parts = u32::try_from(taken / PIPE_BYTES).unwrap_or(u32::MAX);
        let waited = if taken == wanted {
            waited.min(self.try_timeout.saturating_mul(parts.saturating_add(1)))
        } else {
            waited
        };
        self.is_slow = taken < wanted || waited >= self.try_timeout;
        self.idle = if taken == 0 {
            self.idle + waited
        } else {
            Duration::ZERO
        };
        if self.idle >= self.idle_max {
            let limit = self.idle_max.as_secs();
            return Err(too_slow(&format!("took nothing for {limit} s")));
        }
        let verdict = self.rate.record(waited, taken as u64);
        verdict.map_err(|verdict| too_slow(&verdict.to_string()))
    }
}

fn too_slow(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 64 * 1024;

    fn pace() -> Pace {
        Pace::new(&DoorLimits::new(1))
    }

    /// Why a client is cut that takes `bytes` at each `every`th try of 5 s; none within an hour.
    fn fate(bytes: usize, every: u32) -> Option<String> {
        let mut pace = pace();
        assert_eq!(pace.try_timeout(), Duration::from_secs(5));
        (1..=720).find_map(|round: u32| {
            let taken = if round.is_multiple_of(every) {
                bytes
            } else {
                0
            };
            let noted = pace.record(Duration::from_secs(5), PIECE, taken);
            noted.err().map(|error| error.to_string())
        })
    }

    #[test]
    fn a_client_that_takes_nothing_or_too_little_is_cut() {
        assert_eq!(fate(0, 1).as_deref(), Some("took nothing for 180 s"));
        let slow = "slower than 256 bytes/s over 180 s (MIN_RATE)";
        assert_eq!(fate(100 * 5, 1).as_deref(), Some(slow));
        assert_eq!(fate(1024 * 5, 1), None);
        // How 1 KB/s shows: half of the client's buffer every half minute.
        assert_eq!(fate(32 * 1024, 6), None);
    }

    #[test]
    fn bug_a_client_that_reads_1_kb_a_second_through_tls_was_cut() {
        let mut pace = pace();
        let mut tries = |count: u32, taken: usize| {
            for _ in 0..count {
                let noted = pace.record(Duration::from_secs(5), PIECE, 0);
                assert!(noted.is_ok(), "{noted:?}");
            }
            pace.record(Duration::from_secs(1), PIECE, taken).unwrap();
        };
        // On loopback: the first bytes while our own buffer grows, the next 109 s later.
        tries(1, 18 * 1024);
        tries(22, 94 * 1024);
        for _ in 0..100 {
            tries(19, 94 * 1024);
        }
    }

    #[test]
    fn without_a_rate_a_client_that_takes_nothing_is_cut() {
        let mut limits = DoorLimits::new(1);
        limits.min_rate.bytes_per_second = 0;
        let mut pace = Pace::new(&limits);
        let mut seconds = 0;
        let why = loop {
            seconds += 5;
            if let Err(error) = pace.record(Duration::from_secs(5), PIECE, 0) {
                break error.to_string();
            }
        };
        assert_eq!((seconds, why.as_str()), (180, "took nothing for 180 s"));
    }

    #[test]
    fn our_own_disk_is_not_counted() {
        let mut pace = pace();
        for _ in 0..1000 {
            let noted = pace.record(Duration::from_secs(600), 1 << 20, 1 << 20);
            assert!(noted.is_ok(), "{noted:?}");
        }
    }

    #[test]
    fn a_slow_client_gets_small_pieces() {
        let mut pace = pace();
        assert_eq!(pace.bytes_max(), BYTES_MAX_FAST);
        pace.record(Duration::from_millis(1), PIECE, PIECE).unwrap();
        assert_eq!(pace.bytes_max(), BYTES_MAX_FAST);
        pace.record(Duration::from_secs(1), PIECE, 1).unwrap();
        assert_eq!(pace.bytes_max(), BYTES_MAX_SLOW);
        pace.record(Duration::from_millis(1), PIECE, PIECE).unwrap();
        assert_eq!(pace.bytes_max(), BYTES_MAX_FAST);
    }

    #[test]
    fn tries_are_short_where_limits_are() {
        let short = DoorLimits {
            write_idle: Duration::from_millis(240),
            ..DoorLimits::new(1)
        };
        assert_eq!(Pace::new(&short).try_timeout(), Duration::from_millis(20));
        let none = DoorLimits {
            write_idle: Duration::ZERO,
            ..DoorLimits::new(1)
        };
        assert_eq!(Pace::new(&none).try_timeout(), Duration::from_millis(1));
    }
}
