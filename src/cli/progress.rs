//! How far a long command is. Owns: bars and numbers for people. Must not: know what is done.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Characters of a bar.
const BAR_WIDTH: u64 = 20;
/// Time between two pictures of a bar on a terminal.
const FRAME: Duration = Duration::from_millis(100);
/// Time between two lines when there is no terminal.
const LINE: Duration = Duration::from_secs(10);
/// Goes to the beginning of the line and clears it (ECMA-48: CR, EL).
const CLEAR: &str = "\r\x1b[K";

/// A bar on a terminal, else a line now and then; both on standard error.
pub(super) struct Progress {
    is_terminal: bool,
    begun: Instant,
    due: Instant,
}

impl Progress {
    /// Begins; shows nothing yet.
    pub(super) fn new() -> Self {
        Self::on(io::stderr().is_terminal())
    }

    fn on(is_terminal: bool) -> Self {
        let begun = Instant::now();
        Self {
            is_terminal,
            begun,
            due: begun + if is_terminal { FRAME } else { LINE },
        }
    }

    /// Shows how far `step` is, if that is due. A closed standard error is no fault.
    pub(super) fn show(&mut self, step: &str, done: u64, total: u64) {
        if let Some(picture) = self.draw(Instant::now(), step, done, total) {
            let mut err = io::stderr();
            let _ = err.write_all(picture.as_bytes()).and_then(|()| err.flush());
        }
    }

    fn draw(&mut self, now: Instant, step: &str, done: u64, total: u64) -> Option<String> {
        if now < self.due || total == 0 {
            return None;
        }
        let seconds = self.begun.elapsed().as_secs().max(1);
        let text = format!("{step} {}, {}/s", bar(done, total), bytes(done / seconds));
        self.due = now + if self.is_terminal { FRAME } else { LINE };
        Some(match self.is_terminal {
            true => format!("{CLEAR}{text}"),
            false => format!("{text}\n"),
        })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal {
            let _ = io::stderr().write_all(CLEAR.as_bytes());
        }
    }
}

/// A bar, and the numbers behind it.
pub(super) fn bar(done: u64, total: u64) -> String {
    let part = done.min(total);
    let full = usize::try_from(part.saturating_mul(BAR_WIDTH) / total.max(1)).unwrap_or_default();
    let empty = usize::try_from(BAR_WIDTH).unwrap_or_default() - full;
    let percent = part.saturating_mul(100) / total.max(1);
    format!(
        "[{}{}] {percent:>3}% {} of {}",
        "=".repeat(full),
        " ".repeat(empty),
        bytes(done),
        bytes(total)
    )
}

/// Bytes with one digit after the point.
pub(super) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut tenths, mut unit) = (count.saturating_mul(10), "B");
    for larger in units {
        if tenths < 10_000 {
            break;
        }
        (tenths, unit) = (tenths / 1024, larger);
    }
    match unit {
        "B" => format!("{count} B"),
        unit => format!("{}.{} {unit}", tenths / 10, tenths % 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_now_and_then_and_a_bar_is_never_longer() {
        let mut progress = Progress::on(false);
        let begun = progress.begun;
        assert_eq!(progress.draw(begun, "import", 1, 2), None);
        assert_eq!(progress.draw(begun + LINE, "import", 1, 0), None);
        let shown = progress
            .draw(begun + LINE, "import", 3 << 20, 2 << 20)
            .unwrap();
        let expected = "import [====================] 100% 3.0 MiB of 2.0 MiB, ";
        assert!(
            shown.starts_with(expected) && shown.ends_with("/s\n"),
            "{shown}"
        );
        assert_eq!(progress.draw(begun + LINE, "import", 4, 5), None);
        let mut bar = Progress::on(true);
        let shown = bar.draw(begun + LINE, "import", 1, 2).unwrap();
        assert!(
            shown.starts_with("\r\u{1b}[Kimport [==========          ]  50% "),
            "{shown:?}"
        );
    }
}
