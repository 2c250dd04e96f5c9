//! ECR tokens. Owns: the tokens of every region in use, the thread that fetches them, and the
//! [`Authorizer`] that hands them out. Must not: know what they are used for.
//!
//! The rules are in `state`, as functions of time; here are the lock and the calls. Locks:
//! `shared`, and within it that of the chain of credentials for a look; neither is held across a
//! call to AWS. `work` wakes the thread, `done` wakes its callers.

mod inspect;
mod region;
mod state;
mod who;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use self::region::Search;
use self::state::{LIFE_FLOOR, Look, RegionState, Token};
use self::who::Who;
use super::call::Caller;
use super::credentials::{Chain, Credentials, CredentialsFault, profile};
use super::ecr::{self, AuthorizationToken, Realm};
use super::fault::FaultKind;
use super::imds::Imds;
use crate::calendar;
use crate::clock::Clock;
use crate::config::AwsSettings;
use crate::log;
use crate::oci::Registry;
use crate::random::unguessable;
use crate::upstream::{Api, AuthFault, Authorizer, Grant};

pub use self::inspect::{FoundCredentials, FoundToken, IdentityFault};

/// Most regions with a token at a time, ECR Public counted as one: AWS has fewer than 64.
const REGIONS_MAX: usize = 64;
/// The thread looks up at least this often, so that no error in reckoning can make it sleep for
/// ever.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Longest wait for a fresher token while an old one is still good: a call to AWS takes a second.
const FRESH_TIMEOUT: Duration = Duration::from_secs(5);

/// What [`Tokens`] needs to know.
#[derive(Debug, Clone)]
pub struct TokenConfig {
    /// Identity, region and endpoints.
    pub aws: AwsSettings,
    /// Longest time between renewals.
    pub renew_interval: Duration,
    /// The registry whose region is fetched without being asked; none: that of `AWS_REGION`.
    pub registry: Option<Registry>,
}

/// How things stand, for `/readyz` and the status page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// True when a token is at hand.
    pub has_token: bool,
    /// When it ends, by this machine's clock.
    pub expires: Option<SystemTime>,
    /// The last attempt's failure; none after a success.
    pub last_error: Option<String>,
    /// Who we are, once STS has said so.
    pub arn: Option<String>,
    /// Where the credentials of the last token came from.
    pub source: Option<String>,
}

/// The tokens of every region in use.
pub struct Tokens {
    config: TokenConfig,
    /// The realm fetched at start, or why there is none.
    default_realm: Result<Realm, String>,
    /// What is wrong with the profile's words on endpoints.
    profile_fault: Option<String>,
    chain: Chain,
    caller: Arc<Caller>,
    /// Whom to ask for the region; none where a setting tells it or forbids to ask.
    imds: Option<Imds>,
    clock: Arc<dyn Clock>,
    shared: Mutex<Shared>,
    work: Condvar,
    done: Condvar,
}

struct Shared {
    regions: HashMap<Realm, RegionState>,
    generation: u64,
    who: Who,
    /// Source and key of the credentials that signed last.
    signer: Option<(String, String)>,
    search: Search,
    stopping: bool,
}

/// What the thread is to do next.
enum Job {
    Fetch(Realm),
    Identify(String),
    /// Credentials are about to end.
    Refresh,
    Search,
    Sleep(Duration),
    Stop,
}

/// A failed attempt: words and what to do.
struct Failure {
    text: String,
    kind: FaultKind,
}

impl Failure {
    fn unconfigured(text: String) -> Self {
        Self {
            text,
            kind: FaultKind::Unconfigured,
        }
    }
}

impl From<CredentialsFault> for Failure {
    fn from(fault: CredentialsFault) -> Self {
        Self {
            text: fault.to_string(),
            kind: match fault {
                CredentialsFault::Broken(fault) => fault.kind(),
                CredentialsFault::NotConfigured(_) => FaultKind::Unconfigured,
            },
        }
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({:?})", self.default_realm)
    }
}

impl Tokens {
    /// Knows of no token yet; [`run`](Self::run) fetches them. Reads the profile's region and
    /// endpoints.
    pub fn new(mut config: TokenConfig, api: Arc<dyn Api>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (aws, profile_fault) = profile::complete(config.aws);
        config.aws = aws;
        let default_realm = default_realm(&config);
        let now = clock.monotonic();
        let first = default_realm.iter().cloned();
        let caller = Arc::new(Caller::new(Arc::clone(&api), Arc::clone(&clock)));
        let region = default_realm.as_ref().ok();
        let region = region.map(|realm: &Realm| realm.region.clone());
        let set = config.aws.region.as_deref().unwrap_or_default().trim();
        let search = config.aws.instance.enabled && set.is_empty();
        let imds =
            search.then(|| Imds::new(&config.aws.instance, Arc::clone(&api), Arc::clone(&clock)));
        let search_due = (search && default_realm.is_err()).then_some(now);
        Arc::new(Self {
            chain: Chain::new(&config.aws, &caller, region),
            caller,
            profile_fault,
            shared: Mutex::new(Shared {
                regions: first.map(|realm| (realm, RegionState::new(now))).collect(),
                generation: 0,
                who: Who::default(),
                signer: None,
                search: Search::new(search_due),
                stopping: false,
            }),
            imds,
            work: Condvar::new(),
            done: Condvar::new(),
            config,
            default_realm,
            clock,
        })
    }

    /// Fetches and renews until [`stop`](Self::stop); the thread `token` is made for it. Lets
    /// nothing but its own calls to AWS and a profile's `credential_process` block it, and no
    /// failure end it.
    pub fn run(&self) {
        if let (Err(fault), None) = (&self.default_realm, &self.imds) {
            log::warn("no ECR token is fetched", &[("error", fault)]);
        }
        loop {
            match self.step() {
                Job::Stop => return,
                Job::Fetch(_) | Job::Identify(_) | Job::Refresh | Job::Search => {}
                Job::Sleep(wait) => {
                    let shared = self.lock();
                    // Between step() and here a caller may have asked and notified nobody.
                    if !shared.stopping && matches!(self.next_job(&shared), Job::Sleep(_)) {
                        drop(self.work.wait_timeout(shared, wait));
                    }
                }
            }
        }
    }

    /// Ends [`run`](Self::run) after the call it is at; callers get what is there, or a fault.
    pub fn stop(&self) {
        self.lock().stopping = true;
        self.work.notify_all();
        self.done.notify_all();
    }

    /// How things stand with the default region; without one, with any.
    pub fn status(&self) -> Status {
        let now = self.clock.monotonic();
        let shared = self.lock();
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
        Status {
            has_token: token.is_some(),
            expires: left.and_then(|left| self.clock.now().checked_add(left)),
            last_error: match state {
                Some(state) => state.fault.clone(),
                None => default_realm.err(),
            },
            arn: shared.who.arn().cloned(),
            source: shared.signer.as_ref().map(|(source, _)| source.clone()),
        }
    }

    /// Does the next job, if one is due, and says which.
    fn step(&self) -> Job {
        let job = {
            let mut shared = self.lock();
            let job = self.next_job(&shared);
            match &job {
                Job::Fetch(realm) => {
                    if let Some(state) = shared.regions.get_mut(realm) {
                        state.begin();
                    }
                }
                Job::Identify(_) => shared.who.begin(),
                Job::Search => shared.search.begin(),
                Job::Refresh | Job::Sleep(_) | Job::Stop => {}
            }
            job
        };
        match &job {
            Job::Fetch(realm) => {
                let outcome = self.fetch(realm);
                self.settle(realm, outcome);
            }
            Job::Identify(region) => self.identify(region),
            // A failure is logged there; if they end before it passes, the next token says so.
            Job::Refresh => drop(self.chain.fetch()),
            Job::Search => self.search(),
            Job::Sleep(_) | Job::Stop => {}
        }
        job
    }

    /// Tokens come first, the longest due one before the others; who we are can wait, and so can
    /// credentials that have not ended.
    fn next_job(&self, shared: &Shared) -> Job {
        if shared.stopping {
            return Job::Stop;
        }
        let now = self.clock.monotonic();
        let search = shared.search.next_attempt();
        let next = shared
            .regions
            .iter()
            .filter_map(|(realm, state)| state.next_attempt().map(|due| (due, realm)))
            .min_by_key(|(due, _)| *due);
        let refresh = self.chain.refresh_due();
        match (next, shared.who.due()) {
            // Quick, and what a token waits for.
            _ if search.is_some_and(|due| due <= now) => Job::Search,
            (Some((due, realm)), _) if due <= now => Job::Fetch(realm.clone()),
            (_, Some(region)) => Job::Identify(region.clone()),
            _ if refresh.is_some_and(|due| due <= now) => Job::Refresh,
            (next, _) => {
                let due = next.map(|(due, _)| due).into_iter();
                let due = due.chain(refresh).chain(search).min();
                let wait = due.map_or(IDLE_MAX, |due| due.saturating_duration_since(now));
                Job::Sleep(wait.min(IDLE_MAX))
            }
        }
    }

    fn fetch(&self, realm: &Realm) -> Result<AuthorizationToken, Failure> {
        if let Some(fault) = &self.profile_fault {
            return Err(Failure::unconfigured(fault.clone()));
        }
        let url = ecr::api_url(&self.config.aws, realm).map_err(Failure::unconfigured)?;
        // Where neither settings nor the first registry tell one, a role is assumed here.
        self.chain.suggest_region(&realm.region);
        let credentials = self.chain.fetch()?;
        let ask = |credentials: &Credentials| {
            let signer = (&credentials.source, &credentials.access_key_id);
            self.lock().signer = Some((signer.0.clone(), signer.1.clone()));
            ecr::authorization_token(&self.caller, url.clone(), realm, credentials)
        };
        let outcome = match ask(&credentials) {
            // Somebody may have replaced them since; the same ones would fail again.
            Err(fault) if fault.kind == FaultKind::ExpiredCredentials => {
                match self.chain.refetch() {
                    Ok(fresh) if fresh != credentials => ask(&fresh),
                    Ok(_) => Err(fault),
                    Err(why) => return Err(why.into()),
                }
            }
            outcome => outcome,
        };
        outcome.map_err(|fault| {
            if fault.rejects_key() {
                self.chain.forget();
            }
            Failure {
                text: fault.to_string(),
                kind: fault.kind,
            }
        })
    }

    /// Takes the outcome of an attempt and wakes those who wait for it.
    fn settle(&self, realm: &Realm, outcome: Result<AuthorizationToken, Failure>) {
        match outcome {
            Ok(token) => self.settle_token(realm, token),
            Err(failure) => self.settle_failure(realm, failure),
        }
        self.done.notify_all();
    }

    fn settle_token(&self, realm: &Realm, token: AuthorizationToken) {
        // By AWS's clock, ours corrected, since the expiry is by theirs.
        let wall = self.caller.skew.correct(self.clock.now());
        let remaining = token.expires.and_then(|end| end.duration_since(wall).ok());
        let now = self.clock.monotonic();
        let odd = remaining.is_none_or(|life| life <= LIFE_FLOOR);
        let mut shared = self.lock();
        shared.generation += 1;
        let generation = shared.generation;
        if let Some((_, key)) = shared.signer.clone() {
            shared
                .who
                .token_came(&key, self.identity_region(realm), now);
        }
        let Some(state) = shared.regions.get_mut(realm) else {
            return;
        };
        let renew_in = state.succeed(
            (token.value, generation),
            remaining,
            self.config.renew_interval,
            now,
            unguessable(),
        );
        if token.proxy_endpoint.is_some() {
            state.proxy_endpoint = token.proxy_endpoint;
        }
        let report_odd = odd && !std::mem::replace(&mut state.odd_expiry_reported, odd);
        drop(shared);
        let expires = token
            .expires
            .map_or_else(|| "unknown".into(), calendar::format_rfc3339);
        let seconds = renew_in.as_secs();
        log::info(
            "ECR token obtained",
            &[
                ("region", &realm),
                ("expires", &expires),
                ("generation", &generation),
                ("renew_in_s", &seconds),
            ],
        );
        if report_odd {
            log::warn(
                "ECR token has no life left by its own expiresAt, renewing every minute; check \
                 this machine's clock and AWS_ENDPOINT_URL",
                &[("region", &realm), ("expires", &expires)],
            );
        }
    }

    fn settle_failure(&self, realm: &Realm, failure: Failure) {
        let now = self.clock.monotonic();
        let mut shared = self.lock();
        let Some(state) = shared.regions.get_mut(realm) else {
            return;
        };
        // Settings do not change while we run: one warning says all.
        let told = failure.kind == FaultKind::Unconfigured
            && state.fault.as_deref() == Some(failure.text.as_str());
        let retry_in = state.fail(failure.text.clone(), failure.kind, now, unguessable());
        let kept = state.usable(now).is_some();
        drop(shared);
        if !told {
            let seconds = retry_in.as_secs_f32();
            let seconds = format!("{seconds:.1}");
            log::warn(
                "no new ECR token",
                &[
                    ("region", &realm),
                    ("error", &failure.text),
                    ("next_try_in_s", &seconds),
                    ("old_token_in_use", &kept),
                ],
            );
        }
    }

    fn realm(&self, registry: &Registry, deadline: Instant) -> Result<Realm, AuthFault> {
        let realm = ecr::realm_of(registry, &self.config.aws);
        realm.or_else(|why| self.realm_here(why, deadline))
    }

    /// Looks at the state of `realm` and, if need be, waits for the outcome of one attempt.
    fn obtain(
        &self,
        realm: &Realm,
        deadline: Instant,
        mut look: impl FnMut(&mut RegionState, Instant) -> Look,
        accept: impl Fn(&Token) -> bool,
    ) -> Result<Grant, AuthFault> {
        let now = self.clock.monotonic();
        let mut shared = self.lock();
        let attempt = match look(shared.region(realm, now)?, now) {
            Look::Ready(token) => return Ok(grant(&token)),
            Look::Refused(fault) => return Err(AuthFault(fault)),
            Look::Wait(attempt) => attempt,
        };
        self.work.notify_all();
        loop {
            let now = self.clock.monotonic();
            let stopping = shared.stopping;
            let state = shared.region(realm, now)?;
            if state.attempts() >= attempt || stopping {
                let token = state.usable(now).filter(|token| accept(token));
                let fault = || {
                    let fault = state.fault.clone();
                    AuthFault(fault.unwrap_or_else(|| "shutting down".into()))
                };
                return token.map(grant).ok_or_else(fault);
            }
            let Some(left) = deadline
                .checked_duration_since(now)
                .filter(|d| !d.is_zero())
            else {
                return Err(AuthFault(state.fault.clone().map_or_else(
                    || format!("no ECR token for {realm} in time: AWS has not answered yet"),
                    |fault| format!("no ECR token for {realm} in time; before: {fault}"),
                )));
            };
            shared = self
                .done
                .wait_timeout(shared, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Each change under the lock is complete before anything that could fail.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// The state of `realm`, which is in use from now on.
    fn region(&mut self, realm: &Realm, now: Instant) -> Result<&mut RegionState, AuthFault> {
        if !self.regions.contains_key(realm) && self.regions.len() >= REGIONS_MAX {
            return Err(AuthFault(format!(
                "no ECR token for {realm}: {REGIONS_MAX} regions are in use, the most allowed"
            )));
        }
        Ok(self
            .regions
            .entry(realm.clone())
            .or_insert_with(|| RegionState::new(now)))
    }
}

impl Authorizer for Tokens {
    fn header(&self, registry: &Registry, deadline: Instant) -> Result<Grant, AuthFault> {
        let realm = self.realm(registry, deadline)?;
        self.obtain(&realm, deadline, RegionState::look, |_| true)
    }

    fn header_fresh_for(
        &self,
        registry: &Registry,
        fresh_for: Duration,
        deadline: Instant,
    ) -> Result<Grant, AuthFault> {
        let realm = self.realm(registry, deadline)?;
        let soon = deadline.min(self.clock.monotonic() + FRESH_TIMEOUT);
        let look = |state: &mut RegionState, now| state.look_fresh(fresh_for, now);
        match self.obtain(&realm, soon, look, |_| true) {
            Ok(grant) => Ok(grant),
            // Too late for a new one; there may be an old one, or more time.
            Err(_) => self.header(registry, deadline),
        }
    }

    fn renew(
        &self,
        registry: &Registry,
        generation: u64,
        deadline: Instant,
    ) -> Result<Grant, AuthFault> {
        let realm = self.realm(registry, deadline)?;
        self.obtain(
            &realm,
            deadline,
            |state, now| state.renew(generation, now),
            |token| token.generation > generation,
        )
    }

    fn default_registry(&self, deadline: Instant) -> Result<Registry, AuthFault> {
        let realm = self.default_realm.clone();
        let realm = realm.or_else(|why| self.realm_here(why, deadline))?;
        let known = |shared: &mut Shared| {
            let state = shared.regions.get(&realm);
            state.and_then(|state| state.proxy_endpoint.clone())
        };
        if let Some(registry) = known(&mut self.lock()) {
            return Ok(registry);
        }
        self.obtain(&realm, deadline, RegionState::look, |_| true)?;
        known(&mut self.lock()).ok_or_else(|| {
            AuthFault(format!(
                "the ECR token for {realm} names no registry: set ECR to the registry's address"
            ))
        })
    }
}

fn grant(token: &Token) -> Grant {
    Grant {
        value: Some(token.value.clone()),
        generation: token.generation,
    }
}

fn default_realm(config: &TokenConfig) -> Result<Realm, String> {
    match &config.registry {
        Some(registry) => ecr::realm_of(registry, &config.aws),
        None => ecr::configured_realm(&config.aws, || {
            "no registry and no region: set ECR or AWS_REGION".into()
        }),
    }
}

#[cfg(test)]
mod tests;
