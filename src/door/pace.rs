//! Sending at the client's pace. Owns: how long a client may take for what it is sent. Must not:
//! touch a socket.
//!
//! What a client takes shows in what the kernel takes off us, and the kernel hides much of it: a
//! blocked write is woken only when a third of the send buffer (up to 4 MiB) is free, which at
//! 1 KB/s takes 20 minutes. But a write that is *tried* gets in whatever has been acknowledged
//! since (`sk_stream_memory_free`), so a blocked write gives up after a short while and is tried
//! again. What stays hidden is the client's own receive buffer: once it is full its system opens
//! the window in lumps, and ours sends no less than a segment (RFC 9293 §3.8.6.2.1). By Ethernet,
//! with segments of 1460 bytes, the lumps are small. By loopback, with segments of 64 KiB, a client
//! that reads 1 KB/s was seen to take nothing for 66 s, and for 109 s through TLS.

use std::io;
use std::time::Duration;

use super::limits::DoorLimits;
use super::rate::{MinRate, Rate};

/// Windows of the least rate over which a client is judged, so that a silence between two lumps is
/// not taken for slowness.
const WINDOWS: u32 = 3;
/// Longest wait within one write. With it a window of 60 s is seen to a twelfth, and a thousand
/// blocked clients cost 200 tries a second.
const TRY_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// Tries in the shortest limit, where that is below 12 times [`TRY_TIMEOUT_MAX`].
const TRIES_PER_LIMIT: u32 = 12;
/// What sendfile hands over at a time (a pipe of 16 pages), each with a time limit of its own.
const PIPE_BYTES: usize = 64 * 1024;
/// Bytes handed to the kernel in one go: many for who takes them at once, ...
const BYTES_MAX_FAST: usize = 1 << 20;
/// ... few for who does not, so that the verdict comes in time.
const BYTES_MAX_SLOW: usize = PIPE_BYTES;

/// The pace of one client's receiving side.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Rate,
    /// Longest time without a byte taken.
    idle_max: Duration,
    /// Time since a byte was taken.
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
        // One that went whole may have waited for our disk. For the client it waited no longer than
        // each of its parts may.
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

    /// What is said to a client that takes `bytes` off each `every`th try of 5 s, within an hour.
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
    fn who_takes_nothing_is_cut_and_so_is_who_takes_too_little() {
        assert_eq!(fate(0, 1).as_deref(), Some("took nothing for 180 s"));
        let slow = "slower than 256 bytes/s over 180 s (MIN_RATE)";
        assert_eq!(fate(100 * 5, 1).as_deref(), Some(slow));
        assert_eq!(fate(1024 * 5, 1), None);
        // 1 KB/s as it is seen: a lump of half the client's buffer, every half minute.
        assert_eq!(fate(32 * 1024, 6), None);
    }

    #[test]
    fn bug_who_reads_1_kb_a_second_through_tls_was_cut_for_taking_nothing() {
        let mut pace = pace();
        let mut tries = |count: u32, taken: usize| {
            for _ in 0..count {
                let noted = pace.record(Duration::from_secs(5), PIECE, 0);
                assert!(noted.is_ok(), "{noted:?}");
            }
            pace.record(Duration::from_secs(1), PIECE, taken).unwrap();
        };
        // By loopback: the first lump while our own buffer grows, the next 109 s later.
        tries(1, 18 * 1024);
        tries(22, 94 * 1024);
        for _ in 0..100 {
            tries(19, 94 * 1024);
        }
    }

    #[test]
    fn without_a_rate_who_takes_nothing_is_cut_all_the_same() {
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
    fn who_is_slow_gets_small_pieces() {
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
