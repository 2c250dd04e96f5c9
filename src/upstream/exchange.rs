//! Exchanges with registries. Owns: which of them may be begun: permits, circuits, and the token.
//! Must not: know what a reply means to a client, or keep anything of it.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use super::attempt::UPSTREAM_CACHE_FIELD;
use super::attempt::{Attempt, Follow, HEAD_TIMEOUT_AFTER_BODY, is_redirect};
use super::authorizer::{AuthFault, Authorizer, Grant};
use super::breaker::{Breaker, Patience};
pub use super::call::{Call, Fetched, HEAD_TIMEOUT};
use super::client::Client;
use super::error::{OFFLINE, Stage, UpstreamError};
use super::incoming::Incoming;
use super::last_errors::{LastError, LastErrors};
use super::part;
use super::redirect::Redirects;
use super::throttle::Throttle;
use crate::locked::Locked as _;
use crate::log;
use crate::message::RequestBody;
use crate::metrics::{self, registry_label};
use crate::oci::Registry;
use crate::permits::{OwnedPermit, Permits};
use crate::random::unguessable;

/// Longest wait for a free permit, out of [`HEAD_TIMEOUT`].
const PERMIT_TIMEOUT: Duration = Duration::from_secs(20);
/// An upload's token must stay good for so long: a layer of 10 GB at 100 Mbit/s. ECR checks the
/// token when a request begins, and again with the next request of the same upload.
const UPLOAD_FRESH_FOR: Duration = Duration::from_secs(15 * 60);
/// A failure that took this long opens the circuit: every other request would wait as long.
const SLOW_FAILURE: Duration = Duration::from_millis(500);
/// Longest wait for the end of a registry's pause; twice that, and the reply to it, fit into
/// [`HEAD_TIMEOUT`]. After a longer one the client is told to come again.
const THROTTLED_WAIT_MAX: Duration = Duration::from_secs(5);
/// Registries that have permits; a proxy knows a handful.
const REGISTRIES_MAX: usize = 256;

/// Sends requests to registries.
pub struct Upstream {
    client: Arc<Client>,
    authorizer: Arc<dyn Authorizer>,
    redirects: Redirects,
    breaker: Breaker,
    throttle: Throttle,
    last_errors: LastErrors,
    exchanges: RegistryPermits,
    uploads: RegistryPermits,
}

/// How a registry is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryState {
    /// It was out of reach: how long until it is tried again.
    pub pause: Option<Duration>,
    /// The last failure; there may have been successes since.
    pub last_error: Option<LastError>,
}

/// Permits for each registry, so that one that is slow keeps no other waiting.
struct RegistryPermits {
    each: usize,
    permits: Mutex<HashMap<String, Arc<Permits>>>,
}

impl RegistryPermits {
    fn new(each: usize) -> Self {
        let permits = Mutex::default();
        Self { each, permits }
    }

    /// Takes one for `registry`, waiting until `deadline`, and for [`PERMIT_TIMEOUT`] at most.
    fn take(&self, registry: &Registry, deadline: Instant) -> Result<OwnedPermit, UpstreamError> {
        let deadline = deadline.min(Instant::now() + PERMIT_TIMEOUT);
        let permit = self.permits_of(registry).take_owned(deadline);
        permit.ok_or_else(|| {
            let reason = format!("no turn came within {} s", PERMIT_TIMEOUT.as_secs());
            UpstreamError::at(registry, Stage::Queue, reason)
        })
    }

    fn permits_of(&self, registry: &Registry) -> Arc<Permits> {
        let mut permits = self.permits.locked();
        if permits.len() >= REGISTRIES_MAX {
            permits.retain(|_, permits| Arc::strong_count(permits) > 1);
        }
        let permits = permits.entry(registry.to_string());
        Arc::clone(permits.or_insert_with(|| Arc::new(Permits::new(self.each))))
    }
}

impl Upstream {
    /// At most `exchanges` wait for a head, and at most `uploads` send a body, at a time and
    /// registry.
    pub fn new(
        client: Arc<Client>,
        authorizer: Arc<dyn Authorizer>,
        redirects: Redirects,
        exchanges: usize,
        uploads: usize,
    ) -> Self {
        Self {
            client,
            authorizer,
            redirects,
            breaker: Breaker::default(),
            throttle: Throttle::default(),
            last_errors: LastErrors::default(),
            exchanges: RegistryPermits::new(exchanges),
            uploads: RegistryPermits::new(uploads),
        }
    }

    /// Makes the call and waits for the reply's head. Blocks for [`HEAD_TIMEOUT`] and one
    /// connection time-out at the longest; with a body, for as long as that takes.
    ///
    /// # Errors
    /// Why there is no reply that could be passed on.
    pub fn fetch(
        &self,
        call: Call<'_>,
        body: &mut RequestBody<'_>,
    ) -> Result<Fetched, UpstreamError> {
        let fetched = self.fetch_politely(call, body, Follow::Yes)?;
        check_range(call, fetched)
    }

    /// The same for a request without a body. A caller that resumes looks at the range itself.
    ///
    /// # Errors
    /// Why there is no reply that could be passed on.
    pub fn fetch_bodiless(&self, call: Call<'_>) -> Result<Fetched, UpstreamError> {
        let mut nothing = std::io::empty();
        let body = &mut RequestBody::new(&mut nothing, Some(0));
        self.fetch_politely(call, body, Follow::Yes)
    }

    /// Makes a call without a body, and returns a redirect instead of following it. Blocks as
    /// [`Self::fetch`] does.
    ///
    /// # Errors
    /// Why there is no reply that could be passed on, as when a redirect names no http URL.
    pub fn fetch_unfollowed(&self, call: Call<'_>) -> Result<Incoming, UpstreamError> {
        let mut nothing = std::io::empty();
        let body = &mut RequestBody::new(&mut nothing, Some(0));
        let fetched = self.fetch_politely(call, body, Follow::No)?;
        let reply = check_range(call, fetched)?.reply;
        if is_redirect(&reply) {
            let location = reply.headers.first("location").unwrap_or_default();
            let joined = call.url().join(location);
            joined.map_err(|why| call.fault(Stage::Redirect, format!("bad redirect: {why}")))?;
        }
        Ok(reply)
    }

    /// The registry that belongs to the identity, for when none is configured. Blocks until
    /// `deadline` at the longest.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn default_registry(&self, deadline: Instant) -> Result<Registry, UpstreamError> {
        let found = self.authorizer.default_registry(deadline);
        found.map_err(|AuthFault(why)| {
            UpstreamError::new(Stage::Authorize, "the registry of the identity", why)
        })
    }

    /// Makes the call when the registry wants to be asked. One that is throttled is made once
    /// more after a short pause, unless the caller has an older answer. A push is only passed on.
    fn fetch_politely(
        &self,
        mut call: Call<'_>,
        body: &mut RequestBody<'_>,
        follow: Follow,
    ) -> Result<Fetched, UpstreamError> {
        if !matches!(call.method, "GET" | "HEAD") {
            return self.fetch_within_circuit(call, body, follow).0;
        }
        let is_patient = call.patience_kind() == Patience::Full;
        let deadline = Instant::now() + call.patience;
        let mut may_repeat = is_patient;
        loop {
            if self.wait_while_throttled(call, is_patient)? {
                call.patience = deadline.saturating_duration_since(Instant::now());
            }
            let (fetched, throttled) = self.fetch_within_circuit(call, body, follow);
            let Some(asked) = throttled else {
                return fetched;
            };
            let wait = self
                .throttle
                .note(call.registry, asked, Instant::now(), unguessable());
            let fields: [log::Field<'_>; 2] =
                [("registry", call.registry), ("ms", &wait.as_millis())];
            log::info("registry throttles; backing off", &fields);
            if !std::mem::take(&mut may_repeat) || wait > THROTTLED_WAIT_MAX {
                return fetched;
            }
        }
    }

    /// Waits for the end of a short pause, if there is one.
    ///
    /// # Errors
    /// When the pause is long, or the caller has an older answer.
    fn wait_while_throttled(
        &self,
        call: Call<'_>,
        is_patient: bool,
    ) -> Result<bool, UpstreamError> {
        let wait = self
            .throttle
            .wait(call.registry, Instant::now(), unguessable());
        let Some(wait) = wait else {
            return Ok(false);
        };
        if is_patient && wait <= THROTTLED_WAIT_MAX {
            std::thread::sleep(wait);
            return Ok(true);
        }
        count_error(call.registry, Stage::Throttled);
        let mut error = call.fault(
            Stage::Throttled,
            format!("next try in {} ms", wait.as_millis()),
        );
        error.retry_after = Some(wait);
        Err(error)
    }

    /// Says besides whether a reply asked for a pause, and for how long.
    fn fetch_within_circuit(
        &self,
        call: Call<'_>,
        body: &mut RequestBody<'_>,
        follow: Follow,
    ) -> (Result<Fetched, UpstreamError>, Option<Option<Duration>>) {
        if self.client.is_offline() {
            return (Err(call.fault(Stage::Offline, OFFLINE)), None);
        }
        let started = Instant::now();
        let deadline = started + call.patience.min(HEAD_TIMEOUT);
        let (circuit, patience) = (call.registry.url(), call.patience_kind());
        let allowed = self.breaker.allow(&circuit, patience, started);
        if let Err(left) = allowed {
            count_error(call.registry, Stage::Connect);
            let left_ms = left.as_millis();
            let why = format!("out of reach lately; next try in {left_ms} ms");
            return (Err(call.fault(Stage::Connect, why)), None);
        }
        let throttled = Cell::default();
        let fetched = self.fetch_within_permit(call, body, (follow, deadline), &throttled);
        let is_open = match &fetched {
            // A refused connection costs nobody any time, and its end is noticed at once.
            Err(error) if error.stage.is_out_of_reach() && started.elapsed() >= SLOW_FAILURE => {
                self.breaker
                    .note_failure(&circuit, patience, Instant::now())
            }
            _ => {
                self.breaker.note_success(&circuit, patience);
                false
            }
        };
        let label = registry_label(call.registry.name());
        metrics::UPSTREAM_CIRCUITS.of([label]).set(is_open.into());
        match &fetched {
            Err(error) => count_error(call.registry, error.stage),
            Ok(fetched) => {
                let class = format!("{}xx", fetched.reply.status / 100);
                metrics::UPSTREAM_REPLIES.of([label, &class]).inc();
            }
        }
        if let Err(error) = &fetched
            && error.stage != Stage::ClientBody
        {
            self.last_errors.note(&circuit, error.to_string());
        }
        (fetched, throttled.take())
    }

    /// How a registry is doing, from memory.
    pub fn state(&self, registry: &Registry) -> RegistryState {
        let circuit = registry.url();
        RegistryState {
            pause: self.breaker.pause(&circuit, Instant::now()),
            last_error: self.last_errors.get(&circuit),
        }
    }

    fn fetch_within_permit(
        &self,
        call: Call<'_>,
        body: &mut RequestBody<'_>,
        (follow, deadline): (Follow, Instant),
        throttled: &Cell<Option<Option<Duration>>>,
    ) -> Result<Fetched, UpstreamError> {
        // A body of any other method has no meaning (RFC 9110 §9.3.1); it is not passed on.
        let has_body = call.is_upload() && body.length() != Some(0);
        // An upload may last hours, so bodies have their own permits.
        let permits = if has_body {
            &self.uploads
        } else {
            &self.exchanges
        };
        let _permit = permits.take(call.registry, deadline)?;
        let grant = self.grant(call, deadline)?;
        let sent = Instant::now();
        let mut attempt = Attempt {
            client: &self.client,
            authorizer: &*self.authorizer,
            redirects: &self.redirects,
            call,
            grant,
            follow,
            deadline,
            throttled,
        };
        let fetched = if has_body {
            attempt.send_with_body(body)
        } else {
            if call.method == "PUT" {
                // The end of an upload: what was sent before is checked now.
                attempt.deadline = Instant::now() + HEAD_TIMEOUT_AFTER_BODY;
            }
            attempt.send_with_renewal()
        };
        if fetched.is_ok() && !has_body {
            let label = registry_label(call.registry.name());
            metrics::UPSTREAM_HEAD_TIMES
                .of([label])
                .observe(sent.elapsed());
        }
        fetched.map_err(|mut error| {
            if let Some(secrets) = attempt.secrets() {
                secrets.mask_text(&mut error.reason);
            }
            error
        })
    }

    /// The token. A caller that has an older answer at hand must not wait its whole patience for a
    /// silent API each time, so such callers have a circuit of their own; all others wait.
    fn grant(&self, call: Call<'_>, deadline: Instant) -> Result<Grant, UpstreamError> {
        let patience = call.patience_kind();
        let in_a_hurry = patience == Patience::Short;
        let asked = Instant::now();
        let circuit = format!("token {}", call.registry.url());
        if in_a_hurry && let Err(left) = self.breaker.allow(&circuit, patience, asked) {
            let why = format!("no token came lately; next try in {} ms", left.as_millis());
            return Err(call.fault(Stage::Authorize, why));
        }
        let grant = if call.is_upload() {
            self.authorizer
                .header_fresh_for(call.registry, UPLOAD_FRESH_FOR, deadline)
        } else {
            self.authorizer.header(call.registry, deadline)
        };
        match &grant {
            Err(_) if in_a_hurry && asked.elapsed() >= SLOW_FAILURE => {
                self.breaker
                    .note_failure(&circuit, patience, Instant::now());
            }
            _ => self.breaker.note_success(&circuit, Patience::Short),
        }
        grant.map_err(|AuthFault(why)| call.fault(Stage::Authorize, why))
    }
}

/// Counts a call to this registry that failed.
fn count_error(registry: &Registry, stage: Stage) {
    let label = registry_label(registry.name());
    metrics::UPSTREAM_ERRORS.of([label, stage.name()]).inc();
}

/// A 206 with another range than asked for is no answer.
fn check_range(call: Call<'_>, mut fetched: Fetched) -> Result<Fetched, UpstreamError> {
    if let (206, Some(asked)) = (fetched.reply.status, call.headers.first("Range")) {
        let reply = &mut fetched.reply;
        let length = part::check_reply(asked, &reply.headers, reply.length);
        reply.length = length.map_err(|why| call.fault(Stage::Transfer, why))?;
    }
    Ok(fetched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_registry_has_permits_of_its_own() {
        let permits = RegistryPermits::new(1);
        let [one, other] = ["one.example", "other.example"].map(|host| host.parse().unwrap());
        let soon = || Instant::now() + Duration::from_millis(10);
        let held = permits.take(&one, soon()).unwrap();
        assert_eq!(permits.take(&one, soon()).unwrap_err().stage, Stage::Queue);
        assert!(permits.take(&other, soon()).is_ok());
        // Forgetting idle ones keeps those that are held.
        for number in 0..=REGISTRIES_MAX {
            let registry = format!("r{number}.example").parse().unwrap();
            assert!(permits.take(&registry, soon()).is_ok());
        }
        assert!(permits.take(&one, soon()).is_err());
        assert!(permits.permits.lock().unwrap().len() <= REGISTRIES_MAX);
        drop(held);
        assert!(permits.take(&one, soon()).is_ok());
    }
}
