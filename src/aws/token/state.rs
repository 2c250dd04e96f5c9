//! The token of one region. Owns: when to fetch the next one, and what callers get meanwhile, as
//! functions of the time handed in. Must not: read a clock, lock, log or call anybody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attempts::{Attempts, Availability, DoublingWait};
use crate::oci::Registry;
use crate::random::portion;
use crate::secret::Secret;
use crate::upstream::secrets::Secrets;

/// A token that has ended by AWS's word, or nearly so, is used this long all the same: either clock
/// may be wrong, and asking anew for every request would only add throttling.
pub(super) const LIFE_FLOOR: Duration = Duration::from_secs(60);
/// Longest life we reckon with, far above the 12 h that AWS documents, so that no reply can
/// overflow an instant.
const LIFE_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Least time between a token and its scheduled renewal, whatever the settings and replies say.
const RENEWAL_GAP_MIN: Duration = Duration::from_secs(1);
/// First and longest time between renewals that the registry's refusals cause: a registry that
/// refuses every token must not make us ask for one per request.
const REACTIVE_GAP: DoublingWait = DoublingWait::seconds(1, 60);
/// After this long without a refusal the gap is the first one again.
const REACTIVE_QUIET: Duration = Duration::from_secs(5 * 60);

/// A token in use.
#[derive(Debug, Clone)]
pub(super) struct Token {
    /// The value of `Authorization`.
    pub(super) value: Arc<Secrets>,
    /// Its number.
    pub(super) generation: u64,
    /// Not sent after this.
    pub(super) good_until: Instant,
    /// How long it was good for when it came.
    pub(super) life: Duration,
    /// True when it has ended by the wall clock, which says that the machine slept. That clock may
    /// have been set, so the token is used all the same when no new one can be had.
    doubted: bool,
}

/// A token that has just come.
pub(super) struct NewToken {
    /// The value of `Authorization`.
    pub(super) value: Secret<String>,
    /// Its number.
    pub(super) generation: u64,
    /// How long it is good for; none: AWS says that it has ended.
    pub(super) remaining: Option<Duration>,
}

/// The token of one region, and when to fetch the next one.
#[derive(Debug)]
pub(super) struct RegionState {
    token: Option<Token>,
    /// The caller's own registry, or why it is not known; kept when the token ends.
    pub(super) registry: Result<Registry, String>,
    /// True once an expiry in the past was reported.
    pub(super) odd_expiry_reported: bool,
    /// The attempts to fetch one.
    pub(super) attempts: Attempts,
    reactive_last: Option<Instant>,
    reactive_gap: Duration,
}

impl RegionState {
    /// A region whose first attempt is due.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            token: None,
            registry: Err("has not come yet".into()),
            odd_expiry_reported: false,
            attempts: Attempts::new(Some(now)),
            reactive_last: None,
            reactive_gap: REACTIVE_GAP.first,
        }
    }

    /// The token, while it may be sent.
    pub(super) fn usable(&self, now: Instant) -> Option<&Token> {
        self.token.as_ref().filter(|token| now < token.good_until)
    }

    /// Takes the token that an attempt brought. Returns the time until the next attempt.
    ///
    /// Renewal comes at half of the remaining life, as in amazon-ecr-credential-helper, and up to
    /// a tenth earlier, so that a fleet started together does not ask together.
    pub(super) fn succeed(
        &mut self,
        new: NewToken,
        renew_interval: Duration,
        now: Instant,
        roll: u64,
    ) -> Duration {
        let remaining = new.remaining.filter(|life| *life > LIFE_FLOOR);
        let (life, wait) = match remaining.map(|life| life.min(LIFE_MAX)) {
            Some(life) => (life, renew_interval.min(life / 2)),
            // It stays usable until after its renewal, so that no request waits for that.
            None => (LIFE_FLOOR * 2, LIFE_FLOOR.min(renew_interval)),
        };
        let wait = (wait - portion(wait / 10, roll)).max(RENEWAL_GAP_MIN);
        self.token = Some(Token {
            value: Arc::new(Secrets::new(new.value)),
            generation: new.generation,
            good_until: now + life,
            life,
            doubted: false,
        });
        self.attempts.succeed(Some(now + wait));
        wait
    }

    /// Makes the token older by `slept`, while the machine slept: `now` does not count that time.
    pub(super) fn age(&mut self, slept: Duration, now: Instant) {
        let Some(token) = &mut self.token else {
            return;
        };
        match token.good_until.checked_sub(slept) {
            Some(end) if end > now => token.good_until = end,
            _ => token.doubted = true,
        }
        self.attempts.move_forward(slept, now);
    }

    /// The answer to a caller without a token.
    pub(super) fn get(&mut self, now: Instant) -> Availability<Token> {
        let token = self.usable(now).cloned();
        match token {
            Some(token) if !token.doubted => Availability::Ready(token),
            None => self.attempts.wait_or_refuse(now),
            Some(token) => match self.attempts.wait_or_refuse(now) {
                Availability::Refused(_) => Availability::Ready(token),
                renewal => renewal,
            },
        }
    }

    /// The answer to a caller that needs a token that stays good for `fresh_for`. One with half of
    /// its life left counts as fresh, however short that is: the next would be no better.
    pub(super) fn get_fresh(&mut self, fresh_for: Duration, now: Instant) -> Availability<Token> {
        let Some(token) = self.usable(now).filter(|token| !token.doubted) else {
            return self.get(now);
        };
        let left = token.good_until.saturating_duration_since(now);
        let is_fresh = left >= fresh_for.min(token.life / 2);
        // A failure's own back-off is not shortened by uploads.
        let has_failed = self.attempts.fault().is_some();
        if self.attempts.is_pending(now) && !is_fresh {
            self.attempts.wait()
        } else if is_fresh || has_failed {
            Availability::Ready(token.clone())
        } else {
            self.attempts.start(now)
        }
    }

    /// The answer to a caller whose token `generation` the registry refused.
    pub(super) fn renew(&mut self, generation: u64, now: Instant) -> Availability<Token> {
        if let Some(token) = self.usable(now)
            && token.generation > generation
        {
            return Availability::Ready(token.clone());
        }
        // After a failure the attempts have their own limit.
        if self.attempts.is_pending(now) || self.attempts.fault().is_some() {
            return self.attempts.wait_or_refuse(now);
        }
        if let Err(wait) = self.allow_reactive(now) {
            return Availability::Refused(format!(
                "the registry refused ECR token {generation}, and renewals are limited: next in {} \
                 s; check the policies of the identity and of the repository",
                wait.as_secs() + 1
            ));
        }
        self.attempts.start(now)
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

#[cfg(test)]
mod tests {
    use super::super::super::fault::{AwsFault, FaultKind};
    use super::super::attempts::ASKED_GAP;
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const SECOND: Duration = Duration::from_secs(1);

    fn new(generation: u64, remaining: Option<Duration>) -> NewToken {
        NewToken {
            value: Secret::new(format!("Basic {generation}")),
            generation,
            remaining,
        }
    }

    fn fetch(
        state: &mut RegionState,
        generation: u64,
        life: Option<Duration>,
        now: Instant,
    ) -> Duration {
        state.attempts.begin();
        state.succeed(new(generation, life), HOUR * 6, now, 0)
    }

    fn fail(state: &mut RegionState, kind: FaultKind, now: Instant) -> Duration {
        state.attempts.begin();
        state.attempts.fail(&AwsFault::new("boom", kind), now, 0)
    }

    fn generation(answer: Availability<Token>) -> u64 {
        match answer {
            Availability::Ready(token) => token.generation,
            other => panic!("expected a token, got {other:?}"),
        }
    }

    fn refusal(answer: Availability<Token>) -> String {
        match answer {
            Availability::Refused(fault) => fault,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn a_region_waits_for_its_first_token_and_then_never_again() {
        let now = Instant::now();
        let mut state = RegionState::new(now);
        assert!(matches!(state.get(now), Availability::Wait(1)));
        state.attempts.begin();
        assert_eq!(state.attempts.next(), None);
        assert!(matches!(state.get(now), Availability::Wait(1)));
        assert_eq!(fetch(&mut state, 1, Some(HOUR * 12), now), HOUR * 6);
        assert_eq!(state.attempts.next(), Some(now + HOUR * 6));
        // Due, begun and failed: the old token is served to its end.
        let later = now + HOUR * 6;
        assert_eq!(generation(state.get(later)), 1);
        fail(&mut state, FaultKind::Transient, later);
        assert_eq!(generation(state.get(now + HOUR * 12 - SECOND)), 1);
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
            let token = new(1, Some(life));
            assert_eq!(state.succeed(token, interval, now, roll), wait);
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
                assert_eq!(generation(state.get(now + SECOND * second)), 1);
                assert_eq!(state.attempts.next(), Some(now + LIFE_FLOOR));
            }
            // Still there while the renewal is on its way.
            assert_eq!(generation(state.get(now + LIFE_FLOOR)), 1);
            assert!(state.usable(now + LIFE_FLOOR * 2).is_none());
        }
    }

    #[test]
    fn a_known_failure_is_answered_at_once_and_forgotten_after_success() {
        let now = Instant::now();
        let mut state = RegionState::new(now);
        fail(&mut state, FaultKind::Permanent, now);
        let refused = refusal(state.get(now + SECOND));
        assert_eq!(refused, "boom (next try in 2 s)");
        assert!(matches!(
            state.get(now + SECOND * 60),
            Availability::Wait(2)
        ));
        fetch(&mut state, 1, Some(HOUR), now);
        assert_eq!(state.attempts.fault(), None);
        assert_eq!(fail(&mut state, FaultKind::Transient, now), SECOND);
    }

    #[test]
    fn a_refused_token_is_renewed_once_for_all() {
        let now = Instant::now();
        let mut state = RegionState::new(now);
        fetch(&mut state, 1, Some(HOUR), now);
        assert!(matches!(state.renew(1, now), Availability::Wait(2)));
        assert!(matches!(state.renew(1, now), Availability::Wait(2)));
        assert_eq!(state.attempts.next(), Some(now));
        state.attempts.begin();
        assert!(matches!(state.renew(1, now), Availability::Wait(2)));
        fetch(&mut state, 2, Some(HOUR), now);
        assert_eq!(generation(state.renew(1, now)), 2);
    }

    #[test]
    fn an_upload_gets_a_token_that_outlives_it_unless_none_can_be_had() {
        const FRESH: Duration = Duration::from_secs(15 * 60);
        let now = Instant::now();
        let mut state = RegionState::new(now);
        assert!(matches!(state.get_fresh(FRESH, now), Availability::Wait(1)));
        fetch(&mut state, 1, Some(HOUR * 12), now);
        let end = now + HOUR * 12;
        // Its renewal is long due: an upload waits for it, a pull does not.
        let late = end - FRESH + SECOND;
        assert_eq!(generation(state.get_fresh(FRESH, end - FRESH)), 1);
        assert!(matches!(
            state.get_fresh(FRESH, late),
            Availability::Wait(2)
        ));
        assert_eq!(generation(state.get(late)), 1);
        // It fails: what is there is used, and AWS is not asked once per upload.
        fail(&mut state, FaultKind::Transient, late);
        let due = state.attempts.next();
        assert_eq!(generation(state.get_fresh(FRESH, late)), 1);
        assert_eq!(state.attempts.next(), due);
        // After the end there is none.
        fail(&mut state, FaultKind::Permanent, end);
        assert!(refusal(state.get_fresh(FRESH, end)).starts_with("boom"));
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
                assert_eq!(generation(state.get_fresh(FRESH, then)), 1);
                assert_eq!(state.attempts.next(), Some(now + renewal));
            }
        }
        // Ended early by a setting, not by a failure: renewed at once, once for all.
        let mut state = RegionState::new(now);
        fetch(&mut state, 1, Some(HOUR), now);
        state.attempts = Attempts::new(Some(now + HOUR));
        let late = now + HOUR - SECOND;
        assert!(matches!(
            state.get_fresh(FRESH, late),
            Availability::Wait(1)
        ));
        assert_eq!(state.attempts.next(), Some(late));
        state.attempts.begin();
        assert!(matches!(
            state.get_fresh(FRESH, late),
            Availability::Wait(1)
        ));
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
            if let Availability::Wait(_) = state.renew(generation, now) {
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
        assert!(matches!(
            state.renew(generation, quiet),
            Availability::Wait(_)
        ));
        fetch(&mut state, generation + 1, Some(HOUR), quiet);
        assert!(matches!(
            state.renew(generation + 1, quiet + SECOND),
            Availability::Wait(_)
        ));
    }

    #[test]
    fn after_a_failure_refusals_have_an_attempt_made_once_in_two_seconds() {
        let now = Instant::now();
        let mut state = RegionState::new(now);
        fetch(&mut state, 1, Some(HOUR), now);
        fail(&mut state, FaultKind::Permanent, now);
        assert!(refusal(state.renew(1, now + SECOND)).starts_with("boom"));
        assert_eq!(state.attempts.next(), Some(now + SECOND * 60));
        let asked = state.renew(1, now + ASKED_GAP);
        assert!(matches!(asked, Availability::Wait(3)));
        assert_eq!(state.attempts.next(), Some(now + ASKED_GAP));
        // Other requests still use the token they have.
        assert_eq!(generation(state.get(now)), 1);
    }

    #[test]
    fn after_a_sleep_beyond_its_end_a_token_is_renewed_before_it_is_used() {
        let now = Instant::now();
        let mut state = RegionState::new(now);
        fetch(&mut state, 1, Some(HOUR * 12), now);
        state.age(HOUR * 13, now + SECOND);
        let now = now + SECOND;
        assert!(state.attempts.is_pending(now));
        assert!(matches!(state.get(now), Availability::Wait(2)));
        assert!(matches!(state.get_fresh(HOUR, now), Availability::Wait(2)));
        // The network is not up yet; and the clock may have been set, not the machine asleep.
        fail(&mut state, FaultKind::Transient, now);
        assert_eq!(generation(state.get(now)), 1);
        assert!(matches!(state.get(now + ASKED_GAP), Availability::Wait(3)));
        fetch(&mut state, 2, Some(HOUR * 12), now + ASKED_GAP);
        assert_eq!(generation(state.get(now + ASKED_GAP)), 2);
    }

    #[test]
    fn a_shorter_sleep_brings_end_and_renewal_nearer() {
        let now = Instant::now();
        let mut state = RegionState::new(now);
        state.age(HOUR, now);
        fetch(&mut state, 1, Some(HOUR * 12), now);
        state.age(HOUR * 2, now);
        assert_eq!(generation(state.get(now)), 1);
        assert_eq!(state.attempts.next(), Some(now + HOUR * 4));
        assert!(state.usable(now + HOUR * 10 - SECOND).is_some());
        assert!(state.usable(now + HOUR * 10).is_none());
    }
}
