//! The region, where neither a setting nor a registry's name tells it. Owns: asking the instance
//! metadata for it, and who waits for that. Must not: be asked where a setting says it.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::super::endpoint;
use super::super::fault::FaultKind;
use super::super::imds::{Imds, ImdsFault};
use super::state::back_off;
use super::{AuthFault, Realm, Shared, Tokens};
use crate::log;
use crate::random::unguessable;

/// Where the region is told (EC2 user guide, "Instance metadata categories").
const PATH: &str = "/latest/meta-data/placement/region";

/// The search for the region, as functions of the time handed in.
#[derive(Debug, Default)]
pub(super) struct Search {
    region: Option<String>,
    fault: Option<String>,
    /// None before anybody wants to know.
    due: Option<Instant>,
    searching: bool,
    failures: u32,
    attempts: u64,
}

/// What somebody who wants to know the region gets.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    Known(String),
    Refused(String),
    /// The outcome of the attempt of this number.
    Wait(u64),
}

impl Search {
    /// Due at once, or only when somebody wants to know.
    pub(super) fn new(due: Option<Instant>) -> Self {
        Self {
            due,
            ..Self::default()
        }
    }

    /// When the next attempt is to start, if one is.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        self.due
            .filter(|_| !self.searching && self.region.is_none())
    }

    /// An attempt starts.
    pub(super) fn begin(&mut self) {
        self.searching = true;
    }

    /// True when an attempt has ended.
    pub(super) const fn is_over(&self) -> bool {
        self.attempts > 0
    }

    fn look(&mut self, now: Instant) -> Look {
        if let Some(region) = &self.region {
            return Look::Known(region.clone());
        }
        let due = *self.due.get_or_insert(now);
        match &self.fault {
            Some(fault) if !self.searching && due > now => {
                let seconds = due.saturating_duration_since(now).as_secs() + 1;
                Look::Refused(format!("{fault} (next try in {seconds} s)"))
            }
            _ => Look::Wait(self.attempts + 1),
        }
    }

    fn found(&mut self, region: String) {
        self.searching = false;
        self.attempts += 1;
        self.fault = None;
        self.region = Some(region);
    }

    /// Gives the time until the next attempt.
    fn failed(&mut self, fault: String, kind: FaultKind, now: Instant, roll: u64) -> Duration {
        self.searching = false;
        self.attempts += 1;
        self.failures = self.failures.saturating_add(1);
        self.fault = Some(fault);
        let wait = back_off(kind, self.failures, roll);
        self.due = Some(now + wait);
        wait
    }
}

/// Asks once.
fn ask(imds: &Imds) -> Result<String, (String, FaultKind)> {
    let text = imds.get(PATH).map_err(|fault| {
        let kind = match &fault {
            ImdsFault::Failed { passes: true, .. } => FaultKind::Transient,
            ImdsFault::Failed { .. } => FaultKind::Permanent,
            ImdsFault::Unreachable(_) => FaultKind::Unconfigured,
        };
        (fault.to_string(), kind)
    })?;
    endpoint::region(&text).ok_or_else(|| {
        let base = imds.base();
        let text = format!("the EC2 instance metadata service at {base} tells no region");
        (text, FaultKind::Permanent)
    })
}

impl Tokens {
    /// The realm that is fetched without being asked, or why there is none (yet).
    pub(super) fn default_realm(&self, shared: &Shared) -> Result<Realm, String> {
        let Err(why) = &self.default_realm else {
            return self.default_realm.clone();
        };
        self.realm_in(shared, why.clone())
    }

    /// The realm of the region that a search has found; `why` says what is missing.
    pub(super) fn realm_found(&self, why: String) -> Result<Realm, String> {
        self.realm_in(&self.lock(), why)
    }

    fn realm_in(&self, shared: &Shared, why: String) -> Result<Realm, String> {
        match (&shared.search.region, &shared.search.fault) {
            (Some(region), _) => Ok(Realm::private(region.clone(), &self.config.aws)),
            (None, Some(fault)) => Err(format!("{why}; {fault}")),
            (None, None) => Err(why),
        }
    }

    /// The realm of the region we are in, for want of a better one; waits for the search. `why`
    /// says what is missing.
    pub(super) fn realm_here(&self, why: String, deadline: Instant) -> Result<Realm, AuthFault> {
        // Only where no setting tells the region is there anybody to ask.
        if self.imds.is_none() {
            return Err(AuthFault(why));
        }
        let mut shared = self.lock();
        let mut awaited = None;
        loop {
            let now = self.clock.monotonic();
            let attempts = shared.search.attempts;
            let ended = awaited.is_some_and(|attempt| attempts >= attempt) || shared.stopping;
            match shared.search.look(now) {
                Look::Known(region) => return Ok(Realm::private(region, &self.config.aws)),
                Look::Refused(fault) => return Err(AuthFault(format!("{why}; {fault}"))),
                Look::Wait(_) if ended => return Err(AuthFault(why)),
                Look::Wait(attempt) => awaited = awaited.or(Some(attempt)),
            }
            self.work.notify_all();
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                let late = "the EC2 instance metadata service has not answered yet";
                return Err(AuthFault(format!("{why}; {late}")));
            }
            let waited = self.done.wait_timeout(shared, left);
            shared = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks for the region, on the thread.
    pub(super) fn search(&self) {
        let Some(imds) = &self.imds else {
            return;
        };
        let outcome = ask(imds);
        let now = self.clock.monotonic();
        let mut shared = self.lock();
        match outcome {
            Ok(region) => {
                if self.default_realm.is_err() {
                    // In use from now on, so that its token is fetched without being asked for.
                    let _ = shared.region(&Realm::private(region.clone(), &self.config.aws), now);
                }
                shared.search.found(region.clone());
                drop(shared);
                let source = "EC2 instance metadata";
                log::info("region found", &[("region", &region), ("source", &source)]);
            }
            Err((fault, kind)) => {
                let told = shared.search.fault.as_deref() == Some(fault.as_str());
                let wait = shared
                    .search
                    .failed(fault.clone(), kind, now, unguessable());
                drop(shared);
                if !told {
                    log::warn(
                        "no region found; set AWS_REGION",
                        &[("error", &fault), ("next_try_in_s", &wait.as_secs())],
                    );
                }
            }
        }
        self.done.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn nobody_is_asked_before_somebody_wants_to_know() {
        let now = Instant::now();
        let mut search = Search::new(None);
        assert_eq!(search.next_attempt(), None);
        assert_eq!(search.look(now), Look::Wait(1));
        assert_eq!(search.next_attempt(), Some(now));
        search.begin();
        assert_eq!(search.next_attempt(), None);
        assert_eq!(search.look(now + SECOND), Look::Wait(1));
        search.found("eu-west-1".into());
        assert_eq!(search.look(now), Look::Known("eu-west-1".into()));
        assert_eq!(search.next_attempt(), None);
    }

    #[test]
    fn a_failed_search_is_told_and_backs_off() {
        let now = Instant::now();
        let mut search = Search::new(Some(now));
        let mut waits = Vec::new();
        for _ in 0..4 {
            search.begin();
            let wait = search.failed("boom".into(), FaultKind::Unconfigured, now, 0);
            waits.push(wait.as_secs());
        }
        assert_eq!(waits, [60, 120, 240, 300]);
        let told = Look::Refused("boom (next try in 301 s)".into());
        assert_eq!(search.look(now), told);
        assert_eq!(search.next_attempt(), Some(now + SECOND * 300));
        assert_eq!(search.look(now + SECOND * 300), Look::Wait(5));
    }
}
