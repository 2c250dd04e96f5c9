//! A download that another process on the same directory runs. Owns: reading on in its file, and
//! taking it over when that process ends. Must not: write while the other does, or trust a byte
//! that is not hashed here.

use std::thread;
use std::time::{Duration, Instant};

use super::download::Fill;
use super::growing::FillEnd;

/// Between two looks at a file that another process writes.
const PAUSE: Duration = Duration::from_millis(20);
/// A file that has not grown for so long is followed no longer: its writer hangs, since it gives up
/// a silent upstream sooner. NFS shows what another host wrote within this time, too.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes hashed between two looks, so that clients get them soon.
const STEP_BYTES: u64 = 4 << 20;

impl Fill<'_> {
    /// Reads what the other process writes, and shows it to our clients. None when the download is
    /// ours to go on with.
    ///
    /// The blob's length comes from its link, which is the proof that it belongs to the repository,
    /// too. Without it each client asks upstream by itself.
    pub(super) fn follow(&mut self) -> Option<FillEnd> {
        let digest = &self.growing.wanted.digest;
        let Some(total) = self.link().and_then(|link| link.size) else {
            return Some(FillEnd::Bypass);
        };
        self.announce(total);
        let mut grown_at = Instant::now();
        loop {
            // Before the file is read: when its writer has ended, this is the last of it.
            let taken = self.disk.store.take_over(digest, &self.file);
            let before = self.have;
            let until = total.min(before.saturating_add(STEP_BYTES));
            let taken = taken.and_then(|taken| self.hash_until(until).map(|()| taken));
            let Some(taken) = self.disk.faults.check("partial file", taken) else {
                return Some(FillEnd::Bypass);
            };
            self.is_ours = taken == Some(true);
            if self.have > before {
                self.show(false);
                grown_at = Instant::now();
            }
            if self.have == total {
                return Some(self.finish());
            }
            if self.have > before {
                continue;
            }
            match taken {
                Some(true) => return None,
                None if grown_at.elapsed() < PATIENCE => thread::sleep(PAUSE),
                // The writer hangs, or has ended with another file than this one.
                None | Some(false) => return Some(FillEnd::Bypass),
            }
        }
    }
}
