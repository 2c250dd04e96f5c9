//! The tokens of every region in use. Owns: what is known of them, under one lock, and the
//! [`Authorizer`] that gives them out. Must not: fetch them (`thread` does), or know what they are
//! used for.
//!
//! The rules are in `state`, as functions of time. `work` wakes the thread, `done` wakes its
//! callers.
//!
//! Locks: `shared`. A thread that holds it may take the lock of the credentials' chain for a
//! moment. Neither is held across a call to AWS.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use super::super::call::Caller;
use super::super::ecr::{self, Realm};
use super::super::imds::Imds;
use super::super::sources::chain::Chain;
use super::super::sources::profile;
use super::attempts::Availability;
use super::own_arn::OwnArn;
use super::search::Search;
use super::state::{RegionState, Token};
use crate::clock::Clock;
use crate::config::AwsSettings;
use crate::locked::{Locked as _, TimedWait as _};
use crate::log;
use crate::oci::Registry;
use crate::upstream::{Api, AuthFault, Authorizer, Grant};

/// Most regions with a token at a time, ECR Public counted as one: AWS has fewer than 64.
pub(super) const REGIONS_MAX: usize = 64;
/// The machine has slept when wall time runs ahead of monotonic time by this much; clocks that are
/// corrected bit by bit differ by less in a day.
const SLEEP_MIN: Duration = Duration::from_secs(60);
/// A caller with less time than this can serve something else. It asks for an attempt, but after a
/// failed one it does not wait for the outcome.
const PATIENCE_MIN: Duration = Duration::from_secs(3);
/// Longest wait for a fresher token while an old one is still good: a call to AWS takes a second.
const FRESH_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of [`Tokens`].
#[derive(Debug, Clone)]
pub struct TokenConfig {
    /// Identity, region and endpoints.
    pub aws: AwsSettings,
    /// Longest time between renewals.
    pub renew_interval: Duration,
    /// The registry whose region is fetched without being asked; none: that of `AWS_REGION`.
    pub registry: Option<Registry>,
}

/// The state of the default region, for `/readyz` and the status page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenStatus {
    /// True when a token is at hand.
    pub has_token: bool,
    /// When it ends, by this machine's clock.
    pub expires: Option<SystemTime>,
    /// The last attempt's failure; none after a success.
    pub last_error: Option<String>,
    /// Our ARN, once STS has given it.
    pub arn: Option<String>,
    /// The source of the credentials of the last token.
    pub source: Option<String>,
}

/// The tokens of every region in use.
pub struct Tokens {
    pub(super) config: TokenConfig,
    /// The realm fetched at start, or why there is none.
    pub(super) default_realm: Result<Realm, String>,
    /// The fault in the profile's endpoints.
    pub(super) profile_fault: Option<String>,
    pub(super) chain: Chain,
    pub(super) caller: Arc<Caller>,
    /// The service that knows the region; none when a setting has the region or forbids to ask.
    pub(super) imds: Option<Imds>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) shared: Mutex<TokenTable>,
    pub(super) work: Condvar,
    pub(super) done: Condvar,
}

/// The state that the thread and its callers share.
pub(super) struct TokenTable {
    pub(super) regions: HashMap<Realm, RegionState>,
    pub(super) generation: u64,
    pub(super) own_arn: OwnArn,
    /// The credentials that signed last.
    pub(super) signer: Option<Signer>,
    pub(super) search: Search,
    pub(super) stopping: bool,
    /// Both clocks at one moment, to notice that the machine slept.
    clocks: (Instant, SystemTime),
}

/// The names of the credentials that signed a call.
#[derive(Clone)]
pub(super) struct Signer {
    pub(super) source: String,
    pub(super) key_id: String,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({:?})", self.default_realm)
    }
}

impl Tokens {
    /// Makes the table of tokens, which is empty until [`run`](Self::run) fetches some. Reads the
    /// profile's region and endpoints.
    pub fn new(mut config: TokenConfig, api: Arc<dyn Api>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (aws, profile_fault) = profile::complete(config.aws);
        config.aws = aws;
        let default_realm = default_realm(&config);
        let now = clock.monotonic();
        let caller = Arc::new(Caller::new(Arc::clone(&api), Arc::clone(&clock)));
        let region = default_realm.as_ref().ok();
        let region = region.map(|realm: &Realm| realm.region.clone());
        let set = config.aws.region.as_deref().unwrap_or_default().trim();
        let search = config.aws.instance.enabled && set.is_empty();
        let search_due = (search && default_realm.is_err()).then_some(now);
        let first = default_realm.iter().cloned();
        Arc::new(Self {
            chain: Chain::new(&config.aws, &caller, region),
            caller,
            profile_fault,
            shared: Mutex::new(TokenTable {
                regions: first.map(|realm| (realm, RegionState::new(now))).collect(),
                generation: 0,
                own_arn: OwnArn::default(),
                signer: None,
                search: Search::new(search_due),
                stopping: false,
                clocks: (now, clock.now()),
            }),
            imds: search.then(|| Imds::new(&config.aws.instance, api, Arc::clone(&clock))),
            work: Condvar::new(),
            done: Condvar::new(),
            config,
            default_realm,
            clock,
        })
    }

    /// Ends [`run`](Self::run) after the call it is at; callers get what is there, or a fault.
    pub fn stop(&self) {
        self.lock().stopping = true;
        self.work.notify_all();
        self.done.notify_all();
    }

    /// The state of the default region; without one, that of any.
    pub fn status(&self) -> TokenStatus {
        let shared = self.lock();
        let now = self.clock.monotonic();
        let default_realm = self.default_realm(&shared);
        let state = match &default_realm {
            Ok(realm) => shared.regions.get(realm),
            Err(_) => shared
                .regions
                .values()
                .max_by_key(|state| state.usable(now).is_some()),
        };
        let token = state.and_then(|state| state.usable(now));
        let left = token.map(|token| token.good_until.saturating_duration_since(now));
        TokenStatus {
            has_token: token.is_some(),
            expires: left.and_then(|left| self.clock.now().checked_add(left)),
            last_error: match state {
                Some(state) => state.attempts.fault().cloned(),
                None => default_realm.err(),
            },
            arn: shared.own_arn.arn().cloned(),
            source: shared.signer.as_ref().map(|signer| signer.source.clone()),
        }
    }

    /// When the temporary credentials in use end, by this machine's clock; none when there are
    /// none, or they have no end.
    pub fn credentials_expire(&self) -> Option<SystemTime> {
        let expires = self.chain.expires()?;
        let ahead = self.clock_skew_seconds().unwrap_or_default();
        let by = Duration::from_secs(ahead.unsigned_abs());
        match ahead > 0 {
            true => expires.checked_sub(by),
            false => expires.checked_add(by),
        }
    }

    /// Seconds by which AWS's clock is ahead of ours; none before AWS has answered.
    pub fn clock_skew_seconds(&self) -> Option<i64> {
        self.caller.skew.seconds()
    }

    /// The realm that is fetched without being asked, or why there is none (yet).
    pub(super) fn default_realm(&self, shared: &TokenTable) -> Result<Realm, String> {
        let default = self.default_realm.clone();
        default.or_else(|why| self.realm_found(shared, why))
    }

    /// The realm of the region that the search has found; `why` says why it is needed.
    pub(super) fn realm_found(&self, shared: &TokenTable, why: String) -> Result<Realm, String> {
        match (shared.search.region(), shared.search.attempts.fault()) {
            (Some(region), _) => Ok(Realm::private(region.clone(), &self.config.aws)),
            (None, Some(fault)) => Err(format!("{why}; {fault}")),
            (None, None) => Err(why),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, TokenTable> {
        self.shared.locked()
    }

    /// The realm of `registry`; waits for the search for a region where nothing else gives one.
    fn realm(&self, registry: &Registry, deadline: Instant) -> Result<Realm, AuthFault> {
        let realm = ecr::realm_of(registry, &self.config.aws);
        realm.or_else(|why| self.realm_here(&why, deadline))
    }

    /// The realm of the region we are in; waits for the search. `why` says why it is needed.
    fn realm_here(&self, why: &str, deadline: Instant) -> Result<Realm, AuthFault> {
        // Only where no setting gives the region is there anybody to ask.
        if self.imds.is_none() {
            return Err(AuthFault(why.to_owned()));
        }
        let mut shared = self.lock();
        let mut answer = shared.search.get(self.clock.monotonic());
        let mut ended = true;
        if let Availability::Wait(attempt) = answer {
            (shared, ended) = self.wait(shared, deadline, |shared| {
                shared.search.attempts.count_ended() >= attempt
            });
            answer = shared.search.get(self.clock.monotonic());
        }
        Err(AuthFault(match answer {
            Availability::Ready(region) => return Ok(Realm::private(region, &self.config.aws)),
            Availability::Refused(fault) => format!("{why}; {fault}"),
            Availability::Wait(_) if ended => why.to_owned(),
            Availability::Wait(_) => {
                format!("{why}; the EC2 instance metadata service has not answered yet")
            }
        }))
    }

    /// Asks the state of `realm` for a token and, if need be, waits for the outcome of one attempt.
    fn obtain(
        &self,
        realm: &Realm,
        deadline: Instant,
        ask: impl FnOnce(&mut RegionState, Instant) -> Availability<Token>,
        accept: impl Fn(&Token) -> bool,
    ) -> Result<Grant, AuthFault> {
        let mut shared = self.lock();
        // Under the lock, so that nothing that is noted there lies after it.
        let now = self.clock.monotonic();
        shared.notice_sleep(&*self.clock);
        let state = shared.region(realm, now)?;
        let attempt = match ask(state, now) {
            Availability::Ready(token) => return Ok(grant(&token)),
            Availability::Refused(fault) => return Err(AuthFault(fault)),
            Availability::Wait(attempt) => attempt,
        };
        let known = state.attempts.fault().cloned();
        if let Some(fault) = known
            && deadline.saturating_duration_since(now) < PATIENCE_MIN
        {
            self.work.notify_all();
            return state.usable(now).map(grant).ok_or(AuthFault(fault));
        }
        let (mut shared, ended) = self.wait(shared, deadline, |shared| {
            let state = shared.regions.get(realm);
            state.is_some_and(|state| state.attempts.count_ended() >= attempt)
        });
        let now = self.clock.monotonic();
        let state = shared.region(realm, now)?;
        let fault = state.attempts.fault().cloned();
        if ended {
            let token = state.usable(now).filter(|token| accept(token));
            let fault = || AuthFault(fault.unwrap_or_else(|| "shutting down".into()));
            return token.map(grant).ok_or_else(fault);
        }
        let detail = match fault {
            Some(fault) => format!("; before: {fault}"),
            None => ": AWS has not answered yet".into(),
        };
        Err(AuthFault(format!(
            "no ECR token for {realm} in time{detail}"
        )))
    }

    /// Wakes the thread and waits until `is_over` or we stop; false when `deadline` comes first.
    fn wait<'a>(
        &self,
        mut shared: MutexGuard<'a, TokenTable>,
        deadline: Instant,
        is_over: impl Fn(&TokenTable) -> bool,
    ) -> (MutexGuard<'a, TokenTable>, bool) {
        self.work.notify_all();
        loop {
            if shared.stopping || is_over(&shared) {
                return (shared, true);
            }
            let left = deadline.saturating_duration_since(self.clock.monotonic());
            if left.is_zero() {
                return (shared, false);
            }
            shared = self.done.wait_for(shared, left);
        }
    }
}

impl TokenTable {
    /// Makes tokens older by the time that the machine slept. Monotonic time stands still while it
    /// sleeps, or while a virtual machine is suspended; the wall clock is put right afterwards.
    pub(super) fn notice_sleep(&mut self, clock: &dyn Clock) {
        let (now, wall) = (clock.monotonic(), clock.now());
        let (then, wall_then) = self.clocks;
        let awake = now.saturating_duration_since(then);
        let Ok(passed) = wall.duration_since(wall_then + awake) else {
            // Set back: from now on it is compared with this.
            self.clocks = (now, wall);
            return;
        };
        if passed < SLEEP_MIN {
            return;
        }
        self.clocks = (now, wall);
        for state in self.regions.values_mut() {
            state.age(passed, now);
        }
        log::info(
            "the clock went ahead, tokens are that much older",
            &[("seconds", &passed.as_secs())],
        );
    }

    /// The state of `realm`, which is in use from now on.
    pub(super) fn region(
        &mut self,
        realm: &Realm,
        now: Instant,
    ) -> Result<&mut RegionState, AuthFault> {
        if !self.regions.contains_key(realm) && self.regions.len() >= REGIONS_MAX {
            return Err(AuthFault(format!(
                "no ECR token for {realm}: {REGIONS_MAX} regions are in use, the most allowed"
            )));
        }
        let state = self.regions.entry(realm.clone());
        Ok(state.or_insert_with(|| RegionState::new(now)))
    }
}

fn log_use(registry: &Registry, realm: &Realm, grant: &Grant) {
    let fields: [log::Field<'_>; 3] = [
        ("registry", registry),
        ("region", realm),
        ("generation", &grant.generation),
    ];
    log::debug("token used", &fields);
}

impl Authorizer for Tokens {
    fn header(&self, registry: &Registry, deadline: Instant) -> Result<Grant, AuthFault> {
        let realm = self.realm(registry, deadline)?;
        let grant = self.obtain(&realm, deadline, RegionState::get, |_| true)?;
        log_use(registry, &realm, &grant);
        Ok(grant)
    }

    fn header_fresh_for(
        &self,
        registry: &Registry,
        fresh_for: Duration,
        deadline: Instant,
    ) -> Result<Grant, AuthFault> {
        let realm = self.realm(registry, deadline)?;
        let soon = deadline.min(self.clock.monotonic() + FRESH_TIMEOUT);
        let ask = |state: &mut RegionState, now| state.get_fresh(fresh_for, now);
        // No new one came soon enough. There may be an old one, or more time.
        let Ok(grant) = self.obtain(&realm, soon, ask, |_| true) else {
            return self.header(registry, deadline);
        };
        log_use(registry, &realm, &grant);
        Ok(grant)
    }

    fn renew(
        &self,
        registry: &Registry,
        generation: u64,
        deadline: Instant,
    ) -> Result<Grant, AuthFault> {
        let realm = self.realm(registry, deadline)?;
        let ask = |state: &mut RegionState, now| state.renew(generation, now);
        self.obtain(&realm, deadline, ask, |token| token.generation > generation)
    }

    fn default_registry(&self, deadline: Instant) -> Result<Registry, AuthFault> {
        let realm = self.default_realm.clone();
        let realm = realm.or_else(|why| self.realm_here(&why, deadline))?;
        let known = || {
            let shared = self.lock();
            let state = shared.regions.get(&realm);
            match state {
                Some(state) => state.registry.clone(),
                None => Err("has not come yet".into()),
            }
        };
        if let Ok(registry) = known() {
            return Ok(registry);
        }
        self.obtain(&realm, deadline, RegionState::get, |_| true)?;
        known().map_err(|why| {
            AuthFault(format!(
                "the ECR token for {realm} {why}: set ECR to the registry's address"
            ))
        })
    }
}

fn grant(token: &Token) -> Grant {
    Grant {
        value: Some(Arc::clone(&token.value)),
        generation: token.generation,
    }
}

fn default_realm(config: &TokenConfig) -> Result<Realm, String> {
    match &config.registry {
        Some(registry) => ecr::realm_of(registry, &config.aws),
        None => ecr::find_configured_realm(&config.aws, || {
            "no registry and no region: set ECR or AWS_REGION".into()
        }),
    }
}
