//! Exchanges with registries. Owns: which exchanges may begin (permits, circuits, and the token).
//! Must not: know what a reply means to a client, or keep anything of it.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

pub use super::attempt::UPSTREAM_CACHE_FIELD;
use super::attempt::{Attempt, Follow, HEAD_TIMEOUT_AFTER_BODY, is_redirect};
use super::authorizer::{AuthFault, Authorizer, Grant};
use super::breaker::Patience;
pub use super::call::{Call, Fetched, HEAD_TIMEOUT};
use super::client::Client;
use super::contact::{Contact, Contacts, LastError};
use super::error::{OFFLINE, Stage, UpstreamError};
use super::incoming::Incoming;
use super::part;
use super::redirect::Redirects;
use super::throttle::PauseRequest;
use crate::locked::Locked as _;
use crate::log;
use crate::message::RequestBody;
use crate::metrics::{self, registry_label};
use crate::oci::Registry;
use crate::random::unguessable;

/// Longest wait for a free permit, out of [`HEAD_TIMEOUT`].
const PERMIT_TIMEOUT: Duration = Duration::from_secs(20);
/// An upload's token must stay good for so long: a layer of 10 GB at 100 Mbit/s. ECR checks the
/// token when a request begins, and again with the next request of the same upload.
const UPLOAD_FRESH_FOR: Duration = Duration::from_secs(15 * 60);
/// A failure that took this long opens the circuit: every other request would wait as long.
const SLOW_FAILURE: Duration = Duration::from_millis(500);
/// A registry that could not be reached counts as away for so long, if it is not asked again: it
/// may be back since.
const AWAY_FOR: Duration = Duration::from_secs(60);
/// Longest wait for the end of a registry's pause; twice that, and the reply to it, fit into
/// [`HEAD_TIMEOUT`]. After a longer one the client is told to come again.
const THROTTLED_WAIT_MAX: Duration = Duration::from_secs(5);

/// Sends requests to registries.
pub struct Upstream {
    client: Arc<Client>,
    authorizer: Arc<dyn Authorizer>,
    redirects: Redirects,
    contacts: Contacts,
}

/// One call, what is known of its registry, and what came of it.
struct RegistryCall<'a> {
    upstream: &'a Upstream,
    contact: &'a Contact,
    call: Call<'a>,
    follow: Follow,
    /// Set when a reply says that we ask too often.
    throttled: Cell<Option<PauseRequest>>,
}

/// How a registry is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryState {
    /// How long until the registry is tried again, when it was out of reach.
    pub pause: Option<Duration>,
    /// True while it is not tried, and when the last call did not reach it, lately.
    pub is_out_of_reach: bool,
    /// The last failure; there may have been successes since.
    pub last_error: Option<LastError>,
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
            contacts: Contacts::new(exchanges, uploads),
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
        let fetched = self.exchange(call, body, Follow::Yes)?;
        check_range(call, fetched)
    }

    /// Makes a call without a body. Does not check the range of a 206: a caller that resumes a
    /// download does that itself.
    ///
    /// # Errors
    /// Why there is no reply that could be passed on.
    pub fn fetch_bodiless(&self, call: Call<'_>) -> Result<Fetched, UpstreamError> {
        let mut nothing = std::io::empty();
        let body = &mut RequestBody::new(&mut nothing, Some(0));
        self.exchange(call, body, Follow::Yes)
    }

    /// Makes a call without a body, and returns a redirect instead of following it. Blocks as
    /// [`Self::fetch`] does.
    ///
    /// # Errors
    /// Why there is no reply that could be passed on, as when a redirect names no http URL.
    pub fn fetch_unfollowed(&self, call: Call<'_>) -> Result<Incoming, UpstreamError> {
        let mut nothing = std::io::empty();
        let body = &mut RequestBody::new(&mut nothing, Some(0));
        let fetched = self.exchange(call, body, Follow::No)?;
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

    /// How a registry is doing, from memory.
    pub fn state(&self, registry: &Registry) -> RegistryState {
        let Some(contact) = self.contacts.get(registry) else {
            return RegistryState::default();
        };
        let pause = contact.breaker.pause(Instant::now());
        let last_error = contact.last_error.locked().clone();
        let is_recent = |(at, _): &LastError| at.elapsed().is_ok_and(|past| past < AWAY_FOR);
        let is_away = contact.is_away.load(Relaxed) && last_error.as_ref().is_some_and(is_recent);
        RegistryState {
            is_out_of_reach: pause.is_some() || is_away,
            pause,
            last_error,
        }
    }

    fn exchange(
        &self,
        call: Call<'_>,
        body: &mut RequestBody<'_>,
        follow: Follow,
    ) -> Result<Fetched, UpstreamError> {
        let asked = RegistryCall {
            upstream: self,
            contact: &self.contacts.of(call.registry),
            call,
            follow,
            throttled: Cell::default(),
        };
        match call.method {
            "GET" | "HEAD" => asked.fetch_politely(body),
            _ => asked.fetch_within_circuit(body),
        }
    }
}

impl RegistryCall<'_> {
    /// Makes the call when the registry is ready to be asked. A throttled call is made once more
    /// after a short pause, unless the caller has an older answer. A push is only passed on.
    fn fetch_politely(mut self, body: &mut RequestBody<'_>) -> Result<Fetched, UpstreamError> {
        let is_patient = self.call.patience_kind() == Patience::Full;
        let deadline = Instant::now() + self.call.patience;
        let mut may_repeat = is_patient;
        loop {
            if self.wait_while_throttled(is_patient)? {
                self.call.patience = deadline.saturating_duration_since(Instant::now());
            }
            let fetched = self.fetch_within_circuit(body);
            let Some(asked) = self.throttled.take() else {
                return fetched;
            };
            let throttle = &self.contact.throttle;
            let wait = throttle.note(asked.length, Instant::now(), unguessable());
            let fields: [log::Field<'_>; 2] =
                [("registry", self.call.registry), ("ms", &wait.as_millis())];
            log::info("registry throttles; backing off", &fields);
            if !std::mem::take(&mut may_repeat) || wait > THROTTLED_WAIT_MAX {
                return fetched;
            }
        }
    }

    /// Waits for the end of a short pause. False when there is no pause.
    ///
    /// # Errors
    /// When the pause is long, or the caller has an older answer.
    fn wait_while_throttled(&self, is_patient: bool) -> Result<bool, UpstreamError> {
        let wait = self.contact.throttle.wait(Instant::now(), unguessable());
        let Some(wait) = wait else {
            return Ok(false);
        };
        if is_patient && wait <= THROTTLED_WAIT_MAX {
            std::thread::sleep(wait);
            return Ok(true);
        }
        self.count_error(Stage::Throttled);
        let reason = format!("next try in {} ms", wait.as_millis());
        let mut error = self.call.fault(Stage::Throttled, reason);
        error.retry_after = Some(wait);
        Err(error)
    }

    fn fetch_within_circuit(&self, body: &mut RequestBody<'_>) -> Result<Fetched, UpstreamError> {
        if self.upstream.client.is_offline() {
            return Err(self.call.fault(Stage::Offline, OFFLINE));
        }
        let (breaker, patience) = (&self.contact.breaker, self.call.patience_kind());
        let started = Instant::now();
        if let Err(left) = breaker.allow(patience, started) {
            self.count_error(Stage::Connect);
            let left_ms = left.as_millis();
            let why = format!("it was out of reach lately; next try in {left_ms} ms");
            return Err(self.call.fault(Stage::Connect, why));
        }
        let deadline = started + self.call.patience.min(HEAD_TIMEOUT);
        let fetched = self.fetch_within_permit(body, deadline);
        let is_open = match &fetched {
            // A refused connection costs nobody any time, and its end is noticed at once.
            Err(error) if error.stage.is_out_of_reach() && started.elapsed() >= SLOW_FAILURE => {
                breaker.note_failure(patience, Instant::now())
            }
            _ => {
                breaker.note_success(patience);
                false
            }
        };
        let label = registry_label(self.call.registry.name());
        metrics::UPSTREAM_CIRCUITS.of([label]).set(is_open.into());
        match &fetched {
            Err(error) => {
                self.count_error(error.stage);
                if error.stage.is_out_of_reach() {
                    self.contact.is_away.store(true, Relaxed);
                }
            }
            Ok(fetched) => {
                self.contact.is_away.store(false, Relaxed);
                let class = format!("{}xx", fetched.reply.status / 100);
                metrics::UPSTREAM_REPLIES.of([label, &class]).inc();
            }
        }
        let failure = match &fetched {
            Err(error) if error.stage != Stage::ClientBody => Some(error.to_string()),
            Ok(fetched) if fetched.reply.status >= 500 => {
                let (registry, status) = (self.call.registry, fetched.reply.status);
                Some(format!("{registry} answered {status}"))
            }
            _ => None,
        };
        if let Some(failure) = failure {
            *self.contact.last_error.locked() = Some((SystemTime::now(), failure));
        }
        fetched
    }

    fn fetch_within_permit(
        &self,
        body: &mut RequestBody<'_>,
        deadline: Instant,
    ) -> Result<Fetched, UpstreamError> {
        let call = self.call;
        // A body of any other method has no meaning (RFC 9110 §9.3.1); it is not passed on.
        let has_body = call.is_upload() && body.length() != Some(0);
        let permits = match has_body {
            true => &self.contact.uploads,
            false => &self.contact.exchanges,
        };
        let turn = permits.take(deadline.min(Instant::now() + PERMIT_TIMEOUT));
        let _turn = turn.ok_or_else(|| {
            let reason = format!("no turn came within {} s", PERMIT_TIMEOUT.as_secs());
            call.fault(Stage::Queue, reason)
        })?;
        let grant = self.grant(deadline)?;
        let sent = Instant::now();
        let mut attempt = Attempt {
            client: &self.upstream.client,
            authorizer: &*self.upstream.authorizer,
            redirects: &self.upstream.redirects,
            call,
            grant,
            follow: self.follow,
            deadline,
            throttled: &self.throttled,
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

    /// Gets the token. A caller that has an older answer at hand must not wait for a silent API
    /// each time, so such callers have a circuit of their own. All others wait.
    fn grant(&self, deadline: Instant) -> Result<Grant, UpstreamError> {
        let (call, breaker) = (self.call, &self.contact.token_breaker);
        let in_a_hurry = call.patience_kind() == Patience::Short;
        let asked = Instant::now();
        if in_a_hurry && let Err(left) = breaker.allow(Patience::Short, asked) {
            let why = format!("no token came lately; next try in {} ms", left.as_millis());
            return Err(call.fault(Stage::Authorize, why));
        }
        let authorizer = &self.upstream.authorizer;
        let grant = if call.is_upload() {
            authorizer.header_fresh_for(call.registry, UPLOAD_FRESH_FOR, deadline)
        } else {
            authorizer.header(call.registry, deadline)
        };
        match &grant {
            Err(_) if in_a_hurry && asked.elapsed() >= SLOW_FAILURE => {
                breaker.note_failure(Patience::Short, Instant::now());
            }
            _ => breaker.note_success(Patience::Short),
        }
        grant.map_err(|AuthFault(why)| call.fault(Stage::Authorize, why))
    }

    /// Counts a call to this registry that failed.
    fn count_error(&self, stage: Stage) {
        let label = registry_label(self.call.registry.name());
        metrics::UPSTREAM_ERRORS.of([label, stage.name()]).inc();
    }
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
