//! When to fetch a token, and what callers get meanwhile. Owns: the rules, as functions of the
//! time handed in. Must not: read a clock, lock, log or call anybody.

use std::time::{Duration, Instant};

use super::super::fault::FaultKind;
use crate::oci::Registry;
use crate::secret::Secret;

/// A token that AWS says is over, or nearly so, is used this long all the same: either clock may
/// be wrong, and asking anew for every request would only add throttling.
pub(super) const LIFE_FLOOR: Duration = Duration::from_secs(60);
/// Longest life we reckon with, far above the 12 h that AWS documents, so that no reply can
/// overflow an instant.
const LIFE_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Least time between a token and its scheduled renewal, whatever the settings and replies say.
const RENEWAL_GAP_MIN: Duration = Duration::from_secs(1);
/// First and longest wait after a failure that may pass by itself.
const BACK_OFF: Wait = Wait::seconds(1, 60);
/// The same after one that somebody must mend.
const BACK_OFF_PERMANENT: Wait = Wait::seconds(60, 300);
/// Longest wait that AWS may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15 * 60);
/// First and longest time between renewals that the registry's refusals cause: a registry that
/// refuses every token must not make us ask for one per request.
const REACTIVE_GAP: Wait = Wait::seconds(1, 60);
/// After this long without a refusal the gap is the first one again.
const REACTIVE_QUIET: Duration = Duration::from_secs(5 * 60);

/// A wait that doubles.
struct Wait {
    first: Duration,
    longest: Duration,
}

impl Wait {
    const fn seconds(first: u64, longest: u64) -> Self {
        Self {
            first: Duration::from_secs(first),
            longest: Duration::from_secs(longest),
        }
    }

    /// The wait after `failures` failures, at least one.
    fn after(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

/// The wait after `failures` failures, at least one, of which the last was of this kind.
pub(super) fn back_off(kind: FaultKind, failures: u32, roll: u64) -> Duration {
    match kind {
        FaultKind::Permanent | FaultKind::Unconfigured => {
            let wait = BACK_OFF_PERMANENT.after(failures);
            wait + portion(wait / 10, roll)
        }
        FaultKind::ClockSkew | FaultKind::ExpiredCredentials | FaultKind::Transient => {
            jittered(BACK_OFF.after(failures), roll)
        }
        FaultKind::Throttled { retry_after } => {
            let asked = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
            // Later than asked, never earlier.
            let asked = asked + portion(asked / 10, roll);
            asked.max(jittered(BACK_OFF.after(failures), roll))
        }
    }
}

/// A token in use.
#[derive(Debug, Clone)]
pub(super) struct Token {
    /// The value of `Authorization`.
    pub(super) value: Secret<String>,
    /// Its number.
    pub(super) generation: u64,
    /// Not sent after this.
    pub(super) good_until: Instant,
    /// How long it was good for when it came.
    life: Duration,
}

/// What a caller gets.
#[derive(Debug)]
pub(super) enum Look {
    /// This token.
    Ready(Token),
    /// Nothing, and why.
    Refused(String),
    /// The outcome of the attempt of this number.
    Wait(u64),
}

/// The token of one region, and when to fetch the next one.
#[derive(Debug)]
pub(super) struct RegionState {
    token: Option<Token>,
    /// The caller's own registry; kept when the token ends.
    pub(super) proxy_endpoint: Option<Registry>,
    /// The last attempt's failure; none after a success.
    pub(super) fault: Option<String>,
    /// True once an expiry in the past was reported.
    pub(super) odd_expiry_reported: bool,
    due: Instant,
    fetching: bool,
    failures: u32,
    attempts: u64,
    reactive_last: Option<Instant>,
    reactive_gap: Duration,
}

impl RegionState {
    /// A region whose first attempt is due.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            token: None,
            proxy_endpoint: None,
            fault: None,
            odd_expiry_reported: false,
            due: now,
            fetching: false,
            failures: 0,
            attempts: 0,
            reactive_last: None,
            reactive_gap: REACTIVE_GAP.first,
        }
    }

    /// The token, while it may be sent.
    pub(super) fn usable(&self, now: Instant) -> Option<&Token> {
        self.token.as_ref().filter(|token| now < token.good_until)
    }

    /// When the next attempt is to start; none while one is going on.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        (!self.fetching).then_some(self.due)
    }

    /// How many attempts have ended.
    pub(super) const fn attempts(&self) -> u64 {
        self.attempts
    }

    /// An attempt starts.
    pub(super) fn begin(&mut self) {
        self.fetching = true;
    }

    /// The attempt brought a token that lives for `remaining` (none: AWS says it is over). Gives
    /// the time until the next attempt.
    ///
    /// Renewal comes at half of the remaining life, as in amazon-ecr-credential-helper, and up to
    /// a tenth earlier, so that a fleet started together does not ask together.
    pub(super) fn succeed(
        &mut self,
        fresh: (Secret<String>, u64),
        remaining: Option<Duration>,
        renew_interval: Duration,
        now: Instant,
        roll: u64,
    ) -> Duration {
        let remaining = remaining.filter(|life| *life > LIFE_FLOOR);
        let (life, wait) = match remaining.map(|life| life.min(LIFE_MAX)) {
            Some(life) => (life, renew_interval.min(life / 2)),
            // Usable for longer than until the renewal, so that no request waits for that.
            None => (LIFE_FLOOR * 2, LIFE_FLOOR.min(renew_interval)),
        };
        let wait = (wait - portion(wait / 10, roll)).max(RENEWAL_GAP_MIN);
        let (value, generation) = fresh;
        self.token = Some(Token {
            value,
            generation,
            good_until: now + life,
            life,
        });
        self.fault = None;
        self.failures = 0;
        self.ended(now + wait);
        wait
    }

    /// The attempt failed. Gives the time until the next one. An old token stays.
    pub(super) fn fail(
        &mut self,
        fault: String,
        kind: FaultKind,
        now: Instant,
        roll: u64,
    ) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let wait = back_off(kind, self.failures, roll);
        self.fault = Some(fault);
        self.ended(now + wait);
        wait
    }

    /// What a caller without a token gets.
    pub(super) fn look(&mut self, now: Instant) -> Look {
        if let Some(token) = self.usable(now) {
            return Look::Ready(token.clone());
        }
        if self.pending(now) {
            return Look::Wait(self.attempts + 1);
        }
        match &self.fault {
            Some(fault) => Look::Refused(self.with_next_try(fault, now)),
            // Ended before its renewal was due: the settings or the reply were odd.
            None => {
                self.due = now;
                Look::Wait(self.attempts + 1)
            }
        }
    }

    /// What a caller gets who needs a token that stays good for `fresh_for`. One with half of its
    /// life left counts as fresh, however short that is: the next would be no better.
    pub(super) fn look_fresh(&mut self, fresh_for: Duration, now: Instant) -> Look {
        let Some(token) = self.usable(now) else {
            return self.look(now);
        };
        let left = token.good_until.saturating_duration_since(now);
        if left >= fresh_for.min(token.life / 2) {
            return Look::Ready(token.clone());
        }
        if !self.pending(now) {
            // A failure's own back-off is not shortened by uploads.
            if self.fault.is_some() {
                return Look::Ready(token.clone());
            }
            self.due = now;
        }
        Look::Wait(self.attempts + 1)
    }

    /// What a caller gets whose token `generation` the registry refused.
    pub(super) fn renew(&mut self, generation: u64, now: Instant) -> Look {
        if let Some(token) = self.usable(now)
            && token.generation > generation
        {
            return Look::Ready(token.clone());
        }
        if self.pending(now) {
            return Look::Wait(self.attempts + 1);
        }
        // A failure's own back-off is not shortened by refusals.
        if let Some(fault) = &self.fault {
            return Look::Refused(self.with_next_try(fault, now));
        }
        if let Err(wait) = self.allow_reactive(now) {
            return Look::Refused(format!(
                "the registry refused ECR token {generation}, and renewals are limited: next in {} \
                 s; check the policies of the identity and of the repository",
                wait.as_secs() + 1
            ));
        }
        self.due = now;
        Look::Wait(self.attempts + 1)
    }

    fn pending(&self, now: Instant) -> bool {
        self.fetching || self.due <= now
    }

    fn ended(&mut self, due: Instant) {
        self.fetching = false;
        self.attempts += 1;
        self.due = due;
    }

    fn with_next_try(&self, fault: &str, now: Instant) -> String {
        let seconds = self.due.saturating_duration_since(now).as_secs() + 1;
        format!("{fault} (next try in {seconds} s)")
    }

    /// # Errors
    /// How long to wait.
    fn allow_reactive(&mut self, now: Instant) -> Result<(), Duration> {
        let quiet = self
            .reactive_last
            .map(|last| now.saturating_duration_since(last));
        self.reactive_gap = match quiet {
            None => REACTIVE_GAP.first,
            Some(quiet) if quiet >= REACTIVE_QUIET => REACTIVE_GAP.first,
            Some(quiet) if quiet < self.reactive_gap => return Err(self.reactive_gap - quiet),
            Some(_) => (self.reactive_gap * 2).min(REACTIVE_GAP.longest),
        };
        self.reactive_last = Some(now);
        Ok(())
    }
}

/// Between half of `wait` and all of it.
fn jittered(wait: Duration, roll: u64) -> Duration {
    wait - portion(wait / 2, roll)
}

/// A part of `whole`: nothing for a `roll` of 0, all of it for one of 1000, and so on in turns.
fn portion(whole: Duration, roll: u64) -> Duration {
    let thousandths = u32::try_from(roll % 1001).unwrap_or_default();
    whole * thousandths / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const SECOND: Duration = Duration::from_secs(1);

    fn fetch(
        state: &mut RegionState,
        generation: u64,
        life: Option<Duration>,
        now: Instant,
    ) -> Duration {
        state.begin();
        let fresh = (Secret::new(format!("Basic {generation}")), generation);
        state.succeed(fresh, life, HOUR * 6, now, 0)
    }

    fn fail(state: &mut RegionState, kind: FaultKind, now: Instant) -> Duration {
        state.begin();
        state.fail("boom".into(), kind, now, 0)
    }

    fn generation(look: Look) -> u64 {
        match look {
            Look::Ready(token) => token.generation,
            other => panic!("expected a token, got {other:?}"),
        }
    }

    fn refusal(look: Look) -> String {
        match look {
            Look::Refused(fault) => fault,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn a_region_waits_for_its_first_token_and_then_never_again() {
        let now = Instant::now();
        let mut state = RegionState::new(now);
        assert!(matches!(state.look(now), Look::Wait(1)));
        state.begin();
        assert_eq!(state.next_attempt(), None);
        assert!(matches!(state.look(now), Look::Wait(1)));
        assert_eq!(fetch(&mut state, 1, Some(HOUR * 12), now), HOUR * 6);
        assert_eq!(state.next_attempt(), Some(now + HOUR * 6));
        // Due, begun and failed: the old token is served to its end.
        let later = now + HOUR * 6;
        assert_eq!(generation(state.look(later)), 1);
        fail(&mut state, FaultKind::Transient, later);
        assert_eq!(generation(state.look(now + HOUR * 12 - SECOND)), 1);
        assert!(state.usable(now + HOUR * 12).is_none());
    }

    #[test]
    fn renewal_is_at_half_of_the_life_or_the_interval_and_a_tenth_earlier_at_most() {
        let now = Instant::now();
        for (life, interval, roll, wait) in [
            (HOUR * 12, HOUR * 6, 0, HOUR * 6),
            (HOUR * 12, HOUR * 6, 1000, HOUR * 6 - HOUR * 6 / 10),
            (HOUR * 12, HOUR * 2, 0, HOUR * 2),
            (HOUR * 2, HOUR * 6, 0, HOUR),
            (HOUR * 12, Duration::ZERO, 0, RENEWAL_GAP_MIN),
        ] {
            let mut state = RegionState::new(now);
            let fresh = (Secret::new(String::new()), 1);
            assert_eq!(state.succeed(fresh, Some(life), interval, now, roll), wait);
        }
        let mut state = RegionState::new(now);
        fetch(&mut state, 1, Some(Duration::MAX), now);
        assert!(state.usable(now + HOUR * 24).is_some());
    }

    #[test]
    fn an_expiry_in_the_past_is_used_for_a_minute_without_asking() {
        let now = Instant::now();
        for life in [None, Some(Duration::ZERO), Some(LIFE_FLOOR)] {
            let mut state = RegionState::new(now);
            assert_eq!(fetch(&mut state, 1, life, now), LIFE_FLOOR);
            for second in 0..60 {
                assert_eq!(generation(state.look(now + SECOND * second)), 1);
                assert_eq!(state.next_attempt(), Some(now + LIFE_FLOOR));
            }
            // Still there while the renewal is on its way.
            assert_eq!(generation(state.look(now + LIFE_FLOOR)), 1);
            assert!(state.usable(now + LIFE_FLOOR * 2).is_none());
        }
    }

    #[test]
    fn failures_back_off_by_kind() {
        let now = Instant::now();
        let waits = |kind, count| {
            let mut state = RegionState::new(now);
            (0..count)
                .map(|_| fail(&mut state, kind, now).as_secs())
                .collect::<Vec<_>>()
        };
        assert_eq!(waits(FaultKind::Transient, 8), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(waits(FaultKind::Permanent, 4), [60, 120, 240, 300]);
        assert_eq!(waits(FaultKind::Unconfigured, 2), [60, 120]);
        let throttled = |seconds| FaultKind::Throttled {
            retry_after: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(waits(throttled(10), 6), [10, 10, 10, 10, 16, 32]);
        assert_eq!(waits(throttled(86_400), 1), [900]);
        let mut state = RegionState::new(now);
        for _ in 0..100_000 {
            assert!(fail(&mut state, FaultKind::Transient, now) >= SECOND);
        }
    }

    #[test]
    fn jitter_shortens_back_off_by_half_at_most_and_never_a_retry_after() {
        let now = Instant::now();
        let mut state = RegionState::new(now);
        let half = state.fail("boom".into(), FaultKind::Transient, now, 1000);
        assert_eq!(half, SECOND / 2);
        let kind = FaultKind::Throttled {
            retry_after: Some(SECOND * 10),
        };
        assert_eq!(state.fail("boom".into(), kind, now, 1000), SECOND * 11);
    }

    #[test]
    fn a_known_failure_is_told_at_once_and_forgotten_after_success() {
        let now = Instant::now();
        let mut state = RegionState::new(now);
        fail(&mut state, FaultKind::Permanent, now);
        assert_eq!(
            refusal(state.look(now + SECOND * 10)),
            "boom (next try in 51 s)"
        );
        assert!(matches!(state.look(now + SECOND * 60), Look::Wait(2)));
        fetch(&mut state, 1, Some(HOUR), now);
        assert_eq!(state.fault, None);
        assert_eq!(fail(&mut state, FaultKind::Transient, now), SECOND);
    }

    #[test]
    fn a_refused_token_is_renewed_once_for_all() {
        let now = Instant::now();
        let mut state = RegionState::new(now);
        fetch(&mut state, 1, Some(HOUR), now);
        assert!(matches!(state.renew(1, now), Look::Wait(2)));
        assert!(matches!(state.renew(1, now), Look::Wait(2)));
        assert_eq!(state.next_attempt(), Some(now));
        state.begin();
        assert!(matches!(state.renew(1, now), Look::Wait(2)));
        fetch(&mut state, 2, Some(HOUR), now);
        assert_eq!(generation(state.renew(1, now)), 2);
    }

    #[test]
    fn an_upload_gets_a_token_that_outlives_it_unless_none_can_be_had() {
        const FRESH: Duration = Duration::from_secs(15 * 60);
        let now = Instant::now();
        let mut state = RegionState::new(now);
        assert!(matches!(state.look_fresh(FRESH, now), Look::Wait(1)));
        fetch(&mut state, 1, Some(HOUR * 12), now);
        let end = now + HOUR * 12;
        // Its renewal is long due: an upload waits for it, a pull does not.
        let late = end - FRESH + SECOND;
        assert_eq!(generation(state.look_fresh(FRESH, end - FRESH)), 1);
        assert!(matches!(state.look_fresh(FRESH, late), Look::Wait(2)));
        assert_eq!(generation(state.look(late)), 1);
        // It fails: what is there is used, and AWS is not asked once per upload.
        fail(&mut state, FaultKind::Transient, late);
        let due = state.next_attempt();
        assert_eq!(generation(state.look_fresh(FRESH, late)), 1);
        assert_eq!(state.next_attempt(), due);
        // After the end there is none.
        fail(&mut state, FaultKind::Permanent, end);
        assert!(refusal(state.look_fresh(FRESH, end)).starts_with("boom"));
    }

    #[test]
    fn short_tokens_are_not_renewed_for_every_upload() {
        const FRESH: Duration = Duration::from_secs(15 * 60);
        let now = Instant::now();
        for life in [None, Some(SECOND * 90), Some(SECOND * 600)] {
            let mut state = RegionState::new(now);
            let renewal = fetch(&mut state, 1, life, now);
            for part in 0..10 {
                let then = now + renewal * part / 10;
                assert_eq!(generation(state.look_fresh(FRESH, then)), 1);
                assert_eq!(state.next_attempt(), Some(now + renewal));
            }
        }
        // Ended early by a setting, not by a failure: renewed at once, once for all.
        let mut state = RegionState::new(now);
        fetch(&mut state, 1, Some(HOUR), now);
        state.due = now + HOUR;
        let late = now + HOUR - SECOND;
        assert!(matches!(state.look_fresh(FRESH, late), Look::Wait(2)));
        assert_eq!(state.next_attempt(), Some(late));
        state.begin();
        assert!(matches!(state.look_fresh(FRESH, late), Look::Wait(2)));
    }

    #[test]
    fn refusal_after_refusal_renews_less_and_less_often() {
        let start = Instant::now();
        let mut state = RegionState::new(start);
        let mut generation = 1;
        fetch(&mut state, generation, Some(HOUR * 12), start);
        let mut renewals = Vec::new();
        for second in 0..=250 {
            let now = start + SECOND * second;
            if let Look::Wait(_) = state.renew(generation, now) {
                renewals.push(second);
                generation += 1;
                fetch(&mut state, generation, Some(HOUR * 12), now);
            }
        }
        assert_eq!(renewals, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]);
        let limited = refusal(state.renew(generation, start + SECOND * 250));
        assert!(
            limited.contains("renewals are limited: next in 54 s"),
            "{limited}"
        );
        let quiet = start + SECOND * 250 + REACTIVE_QUIET;
        assert!(matches!(state.renew(generation, quiet), Look::Wait(_)));
        fetch(&mut state, generation + 1, Some(HOUR), quiet);
        assert!(matches!(
            state.renew(generation + 1, quiet + SECOND),
            Look::Wait(_)
        ));
    }

    #[test]
    fn refusals_do_not_shorten_a_failures_back_off() {
        let now = Instant::now();
        let mut state = RegionState::new(now);
        fetch(&mut state, 1, Some(HOUR), now);
        fail(&mut state, FaultKind::Permanent, now);
        assert!(refusal(state.renew(1, now + SECOND * 59)).starts_with("boom"));
        assert_eq!(state.next_attempt(), Some(now + SECOND * 60));
        // Other requests still use the token they have.
        assert_eq!(generation(state.look(now)), 1);
    }
}
