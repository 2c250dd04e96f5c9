//! Long transfers in the log: a pull that hangs must not be silent until it ends. Owns: when the
//! progress of a transfer is logged, and of how many. Must not: wait, or count.

use std::time::{Duration, Instant};

use crate::log;
use crate::transfers::{TRANSFERS, Transfer};

/// Time between two lines about one transfer.
const INTERVAL: Duration = Duration::from_secs(30);
/// Time between two looks at the transfers.
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// Most transfers that are logged at a time: more than a node pulls. The others are counted.
const NAMED_MAX: usize = 32;

/// Writes a line for each transfer that has one due. `looked`: when this was done last.
pub(super) fn log_due(looked: &mut Instant) {
    let since = looked.elapsed();
    if since < LOOK {
        return;
    }
    *looked = Instant::now();
    let (mut due, _) = TRANSFERS.running();
    due.retain(|transfer| is_due(transfer.age(), since));
    let left_out = due.split_off(due.len().min(NAMED_MAX));
    due.iter().for_each(|transfer| log_transfer(transfer));
    if !left_out.is_empty() {
        log::info("more transfers still run", &[("count", &left_out.len())]);
    }
}

/// True when an interval has ended within the last `since`.
fn is_due(age: Duration, since: Duration) -> bool {
    let intervals = |age: Duration| age.as_millis() / INTERVAL.as_millis();
    intervals(age) > intervals(age.saturating_sub(since))
}

fn log_transfer(transfer: &Transfer) {
    let subject = &transfer.subject;
    // A fill may serve many.
    let clients = subject.request.is_none().then(|| transfer.clients());
    let total = transfer.total();
    let fields: [log::Field<'_>; 7] = [
        ("kind", &transfer.kind.name()),
        ("registry", &subject.registry),
        ("repository", &subject.repository),
        ("bytes", &transfer.bytes()),
        ("bytes_per_s", &transfer.rate()),
        ("age_s", &transfer.age().as_secs()),
        ("idle_s", &transfer.idle().as_secs()),
    ];
    let others: [Option<log::Field<'_>>; 5] = [
        log::optional("bytes_total", &total),
        log::optional("digest", &subject.digest),
        log::optional("peer", &subject.peer),
        log::optional("id", &subject.request),
        log::optional("clients", &clients),
    ];
    let fields = fields.into_iter().chain(others.into_iter().flatten());
    log::info("transfer still runs", &fields.collect::<Vec<_>>());
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
