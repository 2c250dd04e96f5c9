//! The region, where neither a setting nor a registry's name gives it. Owns: asking the instance
//! metadata for it. Must not: run where a setting gives the region.

use std::time::Instant;

use super::super::endpoint;
use super::super::fault::{AwsFault, FaultKind};
use super::super::imds::Imds;
use super::attempts::{Attempts, Availability};

/// The path of the region (EC2 user guide, "Instance metadata categories").
const PATH: &str = "/latest/meta-data/placement/region";

/// The search for the region, as functions of the time handed in.
#[derive(Debug, Default)]
pub(super) struct Search {
    region: Option<String>,
    /// The attempts to find it.
    pub(super) attempts: Attempts,
}

impl Search {
    /// Due at once, or only when somebody wants to know.
    pub(super) fn new(due: Option<Instant>) -> Self {
        Self {
            region: None,
            attempts: Attempts::new(due),
        }
    }

    /// The region, once it is found.
    pub(super) const fn region(&self) -> Option<&String> {
        self.region.as_ref()
    }

    /// The answer to a caller that wants to know the region.
    pub(super) fn get(&mut self, now: Instant) -> Availability<String> {
        match &self.region {
            Some(region) => Availability::Ready(region.clone()),
            None => self.attempts.wait_or_refuse(now),
        }
    }

    /// Notes that the region is found; no further attempt is made.
    pub(super) fn succeed(&mut self, region: String) {
        self.region = Some(region);
        self.attempts.succeed(None);
    }
}

/// Asks once. Blocks as [`Imds::get`] does.
///
/// # Errors
/// Why the region is not known.
pub(super) fn ask(imds: &Imds) -> Result<String, AwsFault> {
    let text = imds.get(PATH)?;
    endpoint::region(&text).ok_or_else(|| {
        let base = imds.base();
        let text = format!("the EC2 instance metadata service at {base} names no region");
        AwsFault::new(text, FaultKind::Permanent)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn nobody_is_asked_before_somebody_wants_to_know() {
        let now = Instant::now();
        let mut search = Search::new(None);
        assert_eq!(search.attempts.next(), None);
        assert_eq!(search.get(now), Availability::Wait(1));
        assert_eq!(search.attempts.next(), Some(now));
        search.attempts.begin();
        assert_eq!(search.attempts.next(), None);
        assert_eq!(search.get(now + SECOND), Availability::Wait(1));
        search.succeed("eu-west-1".into());
        assert_eq!(search.get(now), Availability::Ready("eu-west-1".into()));
        assert_eq!(search.attempts.next(), None);
    }

    #[test]
    fn a_failed_search_is_reported_and_backs_off() {
        let now = Instant::now();
        let mut search = Search::new(Some(now));
        let fault = AwsFault::new("boom", FaultKind::Unconfigured);
        let mut waits = Vec::new();
        for _ in 0..4 {
            search.attempts.begin();
            let wait = search.attempts.fail(&fault, now, 0);
            waits.push(wait.as_secs());
        }
        assert_eq!(waits, [60, 120, 240, 300]);
        let refused = Availability::Refused("boom (next try in 3 s)".into());
        assert_eq!(search.get(now), refused);
        assert_eq!(search.attempts.next(), Some(now + SECOND * 300));
        assert_eq!(search.get(now + SECOND * 300), Availability::Wait(5));
    }
}
