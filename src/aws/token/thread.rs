//! The thread that fetches tokens. Owns: which job comes next, the calls to AWS, and the log of
//! what came of them. Must not: hold the lock of [`Tokens`] across a call.

use std::time::Duration;

use super::super::credentials::Credentials;
use super::super::ecr::{self, AuthorizationToken, Realm};
use super::super::fault::{AwsFault, FaultKind};
use super::super::{endpoint, sts};
use super::search;
use super::state::{LIFE_FLOOR, NewToken};
use super::tokens::{Signer, TokenTable, Tokens};
use crate::calendar;
use crate::log;
use crate::metrics;
use crate::random::unguessable;

/// The thread wakes at least this often, so that no wrong due time can make it sleep for ever.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// The next thing that the thread does.
pub(super) enum TokenJob {
    Fetch(Realm),
    Identify(String),
    /// Credentials are about to end.
    Refresh,
    Search,
    Sleep(Duration),
    Stop,
}

impl Tokens {
    /// Fetches and renews until [`stop`](Self::stop); the thread `token` is made for it. Only its
    /// own calls to AWS and a profile's `credential_process` block it, and no failure ends it.
    pub fn run(&self) {
        if let (Err(fault), None) = (&self.default_realm, &self.imds) {
            log::warn("no ECR token is fetched", &[("error", fault)]);
        }
        loop {
            match self.step() {
                TokenJob::Stop => return,
                TokenJob::Fetch(_)
                | TokenJob::Identify(_)
                | TokenJob::Refresh
                | TokenJob::Search => {}
                TokenJob::Sleep(wait) => {
                    let shared = self.lock();
                    // Between step() and here a caller may have asked and notified nobody.
                    if !shared.stopping && matches!(self.next_job(&shared), TokenJob::Sleep(_)) {
                        drop(self.work.wait_timeout(shared, wait));
                    }
                }
            }
        }
    }

    /// Does the next job, if one is due, and returns it.
    pub(super) fn step(&self) -> TokenJob {
        let job = {
            let mut shared = self.lock();
            shared.notice_sleep(&*self.clock);
            let job = self.next_job(&shared);
            match &job {
                TokenJob::Fetch(realm) => {
                    if let Some(state) = shared.regions.get_mut(realm) {
                        state.attempts.begin();
                    }
                }
                TokenJob::Identify(_) => shared.own_arn.begin(),
                TokenJob::Search => shared.search.attempts.begin(),
                TokenJob::Refresh | TokenJob::Sleep(_) | TokenJob::Stop => {}
            }
            job
        };
        match &job {
            TokenJob::Fetch(realm) => {
                match self.fetch(realm) {
                    Ok(token) => self.settle_token(realm, token),
                    Err(fault) => self.settle_failure(realm, &fault),
                }
                self.done.notify_all();
            }
            TokenJob::Identify(region) => self.identify(region),
            // The chain logs a failure. If it lasts until the credentials end, the next token
            // fails.
            TokenJob::Refresh => drop(self.chain.fetch()),
            TokenJob::Search => self.search(),
            TokenJob::Sleep(_) | TokenJob::Stop => {}
        }
        job
    }

    /// Tokens come first, the longest due one before the others. Our ARN can wait, and so can
    /// credentials that have not ended.
    fn next_job(&self, shared: &TokenTable) -> TokenJob {
        if shared.stopping {
            return TokenJob::Stop;
        }
        let now = self.clock.monotonic();
        let search = shared.search.attempts.next();
        let next = shared
            .regions
            .iter()
            .filter_map(|(realm, state)| state.attempts.next().map(|due| (due, realm)))
            .min_by_key(|(due, _)| *due);
        let refresh = self.chain.refresh_due();
        match (next, shared.own_arn.due()) {
            // It is quick, and a token waits for it.
            _ if search.is_some_and(|due| due <= now) => TokenJob::Search,
            (Some((due, realm)), _) if due <= now => TokenJob::Fetch(realm.clone()),
            (_, Some(region)) => TokenJob::Identify(region.clone()),
            _ if refresh.is_some_and(|due| due <= now) => TokenJob::Refresh,
            (next, _) => {
                let due = next.map(|(due, _)| due).into_iter();
                let due = due.chain(refresh).chain(search).min();
                let wait = due.map_or(IDLE_MAX, |due| due.saturating_duration_since(now));
                TokenJob::Sleep(wait.min(IDLE_MAX))
            }
        }
    }

    /// Fetches a token. Blocks for two calls at the longest, and for the credentials.
    ///
    /// # Errors
    /// The failure and its remedy.
    pub(super) fn fetch(&self, realm: &Realm) -> Result<AuthorizationToken, AwsFault> {
        let unconfigured = |why| AwsFault::new(why, FaultKind::Unconfigured);
        if let Some(fault) = &self.profile_fault {
            return Err(unconfigured(fault.clone()));
        }
        let url = ecr::api_url(&self.config.aws, realm).map_err(unconfigured)?;
        // A role is assumed in this region, if neither settings nor the first registry have one.
        self.chain.suggest_region(&realm.region);
        let credentials = self.chain.fetch()?;
        let ask = |credentials: &Credentials| {
            self.lock().signer = Some(Signer {
                source: credentials.source.clone(),
                key_id: credentials.access_key_id.clone(),
            });
            ecr::authorization_token(&self.caller, url.clone(), realm, credentials)
        };
        let outcome = match ask(&credentials) {
            // Somebody may have replaced them since; the same ones would fail again.
            Err(fault) if fault.kind == FaultKind::ExpiredCredentials => {
                match self.chain.refetch()? {
                    fresh if fresh != credentials => ask(&fresh),
                    _ => Err(fault),
                }
            }
            outcome => outcome,
        };
        if outcome.as_ref().is_err_and(AwsFault::rejects_key) {
            self.chain.forget();
        }
        outcome
    }

    fn settle_token(&self, realm: &Realm, token: AuthorizationToken) {
        metrics::TOKENS_OBTAINED.inc();
        // By AWS's clock, since the expiry is by theirs.
        let aws_now = self.caller.aws_now();
        let remaining = token
            .expires
            .and_then(|end| end.duration_since(aws_now).ok());
        let odd = remaining.is_none_or(|life| life <= LIFE_FLOOR);
        let mut shared = self.lock();
        let now = self.clock.monotonic();
        shared.generation += 1;
        let generation = shared.generation;
        if let Some(signer) = shared.signer.clone() {
            let region = self.identity_region(realm);
            shared.own_arn.note_signer(&signer.key_id, region, now);
        }
        let Some(state) = shared.regions.get_mut(realm) else {
            return;
        };
        self.caller.hide(token.value.clone());
        let new = NewToken {
            value: token.value,
            generation,
            remaining,
        };
        let renew_in = state.succeed(new, self.config.renew_interval, now, unguessable());
        if token.registry.is_ok() || state.registry.is_err() {
            state.registry = token.registry;
        }
        let report_odd = odd && !std::mem::replace(&mut state.odd_expiry_reported, odd);
        drop(shared);
        let expires = token
            .expires
            .map_or_else(|| "unknown".into(), calendar::format_rfc3339);
        log::info(
            "ECR token obtained",
            &[
                ("region", &realm),
                ("expires", &expires),
                ("generation", &generation),
                ("renew_in_s", &renew_in.as_secs()),
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

    fn settle_failure(&self, realm: &Realm, fault: &AwsFault) {
        metrics::TOKENS_FAILED.inc();
        let mut shared = self.lock();
        let now = self.clock.monotonic();
        let Some(state) = shared.regions.get_mut(realm) else {
            return;
        };
        let is_news = state.attempts.is_news(fault, now);
        let retry_in = state.attempts.fail(fault, now, unguessable());
        let kept = state.usable(now).is_some();
        drop(shared);
        if is_news {
            let seconds = format!("{:.1}", retry_in.as_secs_f32());
            log::warn(
                "no new ECR token",
                &[
                    ("region", &realm),
                    ("error", &fault),
                    ("next_try_in_s", &seconds),
                    ("old_token_in_use", &kept),
                ],
            );
        }
    }

    /// Asks STS for our ARN, for the log and the probes alone.
    fn identify(&self, region: &str) {
        let Ok(credentials) = self.chain.fetch() else {
            return;
        };
        let key = credentials.access_key_id.clone();
        match sts::caller_identity(&self.caller, &self.config.aws, region, &credentials) {
            Ok(identity) => {
                let is_news = self.lock().own_arn.record(key, identity.arn.clone());
                if is_news {
                    log_identity(&identity, &credentials, region);
                }
            }
            Err(fault) => {
                self.lock()
                    .own_arn
                    .record_failure(key, self.clock.monotonic());
                log::warn("identity unknown, going on without", &[("error", &fault)]);
            }
        }
    }

    /// The region to ask STS in. ECR Public has one region for the world; the one that is set is
    /// nearer.
    pub(super) fn identity_region(&self, realm: &Realm) -> String {
        let configured = self.config.aws.region.as_deref();
        match configured.and_then(endpoint::region) {
            Some(region) if realm.public => region,
            _ => realm.region.clone(),
        }
    }

    /// Asks the instance metadata for the region.
    pub(super) fn search(&self) {
        let Some(imds) = &self.imds else {
            return;
        };
        let outcome = search::ask(imds);
        self.settle_search(outcome);
        self.done.notify_all();
    }

    fn settle_search(&self, outcome: Result<String, AwsFault>) {
        let mut shared = self.lock();
        let now = self.clock.monotonic();
        match outcome {
            Ok(region) => {
                if self.default_realm.is_err() {
                    // In use from now on, so that its token is fetched without being asked for.
                    let _ = shared.region(&Realm::private(region.clone(), &self.config.aws), now);
                }
                shared.search.succeed(region.clone());
                drop(shared);
                let source = "EC2 instance metadata";
                log::info("region found", &[("region", &region), ("source", &source)]);
            }
            Err(fault) => {
                let attempts = &mut shared.search.attempts;
                let is_news = attempts.is_news(&fault, now);
                let wait = attempts.fail(&fault, now, unguessable());
                drop(shared);
                if is_news {
                    log::warn(
                        "no region found; set AWS_REGION",
                        &[("error", &fault), ("next_try_in_s", &wait.as_secs())],
                    );
                }
            }
        }
    }
}

fn log_identity(identity: &sts::Identity, credentials: &Credentials, region: &str) {
    let until = credentials
        .expires
        .map_or_else(|| "unlimited".to_owned(), calendar::format_rfc3339);
    log::info(
        "identity",
        &[
            ("arn", &identity.arn),
            ("account", &identity.account),
            ("source", &credentials.source),
            ("credentials_until", &until),
            ("region", &region),
        ],
    );
}

#[cfg(test)]
mod tests;
