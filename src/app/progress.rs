//! Long transfers in the log: a pull that hangs must not be silent until it ends. Owns: when a
//! transfer says where it stands, and how many do. Must not: wait, or count.

use std::time::{Duration, Instant};

use crate::log;
use crate::transfers::{TRANSFERS, Transfer};

/// A transfer says where it stands each time that so much of its life is over.
const INTERVAL: Duration = Duration::from_secs(30);
/// Time between two looks at the transfers.
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// Transfers that are named in one look: more than a node pulls at a time. The others are counted.
const NAMED_MAX: usize = 32;

/// What was said last.
pub(super) struct Progress {
    looked: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        let looked = Instant::now();
        Self { looked }
    }

    /// Writes a line for each transfer that has one due. Looks at most once in [`LOOK`].
    pub(super) fn log(&mut self) {
        let since = self.looked.elapsed();
        if since < LOOK {
            return;
        }
        self.looked = Instant::now();
        let (running, _) = TRANSFERS.running();
        let due = running
            .iter()
            .filter(|running| is_due(running.age(), since));
        let mut left_out = 0_u64;
        for (number, transfer) in due.enumerate() {
            match number < NAMED_MAX {
                true => log_transfer(transfer),
                false => left_out += 1,
            }
        }
        if left_out > 0 {
            log::info("more transfers still run", &[("count", &left_out)]);
        }
    }
}

/// True when an interval has ended within the last `since`.
fn is_due(age: Duration, since: Duration) -> bool {
    let intervals = |age: Duration| age.as_millis() / INTERVAL.as_millis();
    intervals(age) > intervals(age.saturating_sub(since))
}

fn log_transfer(transfer: &Transfer) {
    let subject = &transfer.subject;
    let kind = transfer.kind.name();
    let (bytes, rate) = (transfer.bytes(), transfer.rate());
    let (age, idle) = (transfer.age().as_secs(), transfer.idle().as_secs());
    let clients = transfer.clients();
    let mut fields: Vec<log::Field<'_>> = vec![
        ("kind", &kind),
        ("registry", &subject.registry),
        ("repository", &subject.repository),
        ("bytes", &bytes),
        ("bytes_per_s", &rate),
        ("age_s", &age),
        ("idle_s", &idle),
    ];
    let total = transfer.total();
    if let Some(total) = &total {
        fields.push(("bytes_total", total));
    }
    if let Some(digest) = &subject.digest {
        fields.push(("digest", digest));
    }
    if let Some(peer) = &subject.peer {
        fields.push(("peer", peer));
    }
    match &subject.request {
        Some(request) => fields.push(("id", request)),
        None => fields.push(("clients", &clients)),
    }
    log::info("transfer still runs", &fields);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_once_in_each_interval() {
        let seconds = Duration::from_secs;
        let due = |until: u64| {
            (0..until)
                .filter(|n| is_due(seconds(*n), seconds(1)))
                .count()
        };
        assert_eq!((due(30), due(31), due(60), due(91)), (0, 1, 1, 3));
        // A look that comes late misses none.
        assert!(is_due(seconds(34), seconds(6)) && !is_due(seconds(40), seconds(6)));
    }
}
