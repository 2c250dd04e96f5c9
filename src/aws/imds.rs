//! The EC2 instance metadata service, version 2. Owns: its session token, and requests with their
//! retries. Must not: know what is asked for, or ever speak version 1, which gives credentials to
//! anybody that can make this host send a GET.
//!
//! Locks: `session`, held for a copy; never across a call.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::fault::{AwsFault, FaultKind, one_line};
use super::redact::Redactor;
use crate::clock::Clock;
use crate::config::InstanceSettings;
use crate::locked::Locked as _;
use crate::message::Headers;
use crate::secret::Secret;
use crate::upstream::{Api, ApiCall, ApiReply, Stage, UpstreamError};

/// Life we ask for a session token, in seconds: the longest there is (EC2 user guide, "Use the
/// Instance Metadata Service").
const TOKEN_TTL_S: u64 = 21_600;
/// A token is replaced this long before its end, or at half its life if that is sooner.
const TOKEN_MARGIN: Duration = Duration::from_secs(120);
/// Pause after the first refusal; doubled after each further one.
const PAUSE: Duration = Duration::from_millis(100);
/// No further attempt begins after this: the thread that waits here renews every token.
const ATTEMPTS_TIME_MAX: Duration = Duration::from_secs(6);
/// The path of session tokens.
const TOKEN_PATH: &str = "/latest/api/token";
/// The remedy when a container's requests do not come back.
const HOP_LIMIT: &str = "in a container on EC2, set the instance's metadata hop limit 2";

/// Why the service gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ImdsFault {
    /// The service answered, but without the text that was asked for.
    Failed {
        /// The reply's status; none when the reply broke off.
        status: Option<u16>,
        /// The failure and its remedy.
        text: String,
        /// True when the next attempt may well succeed.
        passes: bool,
    },
    /// Nothing answers at its address: this machine may not be on EC2.
    Unreachable(String),
}

impl fmt::Display for ImdsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { text, .. } | Self::Unreachable(text) => f.write_str(text),
        }
    }
}

impl From<ImdsFault> for AwsFault {
    fn from(fault: ImdsFault) -> Self {
        let (text, kind) = match fault {
            ImdsFault::Failed {
                text, passes: true, ..
            } => (text, FaultKind::Transient),
            ImdsFault::Failed { text, .. } => (text, FaultKind::Permanent),
            ImdsFault::Unreachable(text) => (text, FaultKind::Unconfigured),
        };
        Self::new(text, kind)
    }
}

/// The way to the service.
pub(super) struct Imds {
    api: Arc<dyn Api>,
    clock: Arc<dyn Clock>,
    base: String,
    timeout: Duration,
    attempts: u32,
    session: Mutex<Option<SessionToken>>,
    pause: fn(Duration),
}

#[derive(Clone)]
struct SessionToken {
    token: Secret<String>,
    good_until: Instant,
}

impl Imds {
    pub(super) fn new(
        settings: &InstanceSettings,
        api: Arc<dyn Api>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            api,
            clock,
            base: settings.base().to_owned(),
            timeout: settings.timeout,
            attempts: settings.attempts,
            session: Mutex::default(),
            pause: std::thread::sleep,
        }
    }

    /// The same without pauses between attempts.
    #[cfg(test)]
    pub(super) fn hasty(mut self) -> Self {
        self.pause = |_| {};
        self
    }

    /// The address of the service.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// The text at `path`. Blocks for a second or two when nothing answers, for
    /// [`ATTEMPTS_TIME_MAX`] and one more attempt when errors do.
    ///
    /// # Errors
    /// Why the service gave no text.
    pub(super) fn get(&self, path: &str) -> Result<String, ImdsFault> {
        let begun = self.clock.monotonic();
        let mut attempt = 1;
        loop {
            let fault = match self.once(path) {
                Ok(text) => return Ok(text),
                Err(fault) => fault,
            };
            let spent = self.clock.monotonic().saturating_duration_since(begun);
            match fault {
                Again::Now(_) | Again::Later(_)
                    if attempt < self.attempts && spent < ATTEMPTS_TIME_MAX =>
                {
                    if let Again::Later(_) = fault {
                        (self.pause)(PAUSE.saturating_mul(1 << (attempt - 1).min(4)));
                    }
                    attempt += 1;
                }
                Again::Later(fault) | Again::Never(fault) | Again::Now(fault) => return Err(fault),
            }
        }
    }

    fn once(&self, path: &str) -> Result<String, Again> {
        let token = self.token()?;
        let headers = Headers::from_iter([("X-aws-ec2-metadata-token", token.expose().as_str())]);
        let what = format!("GET {path}");
        let reply = self
            .call("GET", path, headers)
            .map_err(|fault| self.explain_break(&what, &fault))?;
        match reply.status {
            200 => text_of(&reply).ok_or_else(|| {
                let odd = "it is no text; is this the instance metadata service?";
                Again::Never(self.new_fault(Some(200), &what, odd, false))
            }),
            // The token ended earlier than announced, or the instance was started anew.
            401 => {
                self.forget(&token);
                let text = "it refuses the session token that it gave out";
                Err(Again::Now(self.new_fault(Some(401), &what, text, true)))
            }
            status => Err(self.explain_refusal(status, &what, &reply)),
        }
    }

    /// The session token; fetches one when there is none.
    fn token(&self) -> Result<Secret<String>, Again> {
        let now = self.clock.monotonic();
        if let Some(session) = self.session().filter(|session| now < session.good_until) {
            return Ok(session.token);
        }
        let ttl = TOKEN_TTL_S.to_string();
        let headers = Headers::from_iter([("X-aws-ec2-metadata-token-ttl-seconds", ttl.as_str())]);
        let what = format!("PUT {TOKEN_PATH}");
        let reply = match self.call("PUT", TOKEN_PATH, headers) {
            Ok(reply) => reply,
            Err(fault) if fault.stage.is_out_of_reach() => {
                return Err(Again::Never(self.unreachable(&fault)));
            }
            Err(fault) => return Err(self.explain_break(&what, &fault)),
        };
        if reply.status != 200 {
            return Err(self.explain_refusal(reply.status, &what, &reply));
        }
        let fits = |text: &String| text.bytes().all(|b| b.is_ascii_graphic()) && !text.is_empty();
        let Some(token) = text_of(&reply).filter(fits) else {
            let odd = "it is no token; is this the instance metadata service?";
            return Err(Again::Never(self.new_fault(Some(200), &what, odd, false)));
        };
        let field = reply.headers.first("x-aws-ec2-metadata-token-ttl-seconds");
        let ttl_s = field.and_then(|text| text.trim().parse().ok());
        let life = Duration::from_secs(ttl_s.unwrap_or(TOKEN_TTL_S).min(TOKEN_TTL_S));
        let session = SessionToken {
            token: Secret::new(token),
            good_until: now + (life - TOKEN_MARGIN.min(life / 2)),
        };
        let token = session.token.clone();
        *self.session.locked() = Some(session);
        Ok(token)
    }

    fn call(
        &self,
        method: &'static str,
        path: &str,
        headers: Headers,
    ) -> Result<ApiReply, UpstreamError> {
        self.api.call(&ApiCall {
            method,
            url: format!("{}{path}", self.base),
            headers,
            body: Vec::new(),
            connect_timeout: self.timeout,
            timeout: self.timeout * 2,
            // A proxy would answer for its own machine, or hand our role to it.
            through_proxy: false,
        })
    }

    fn session(&self) -> Option<SessionToken> {
        let session = self.session.lock();
        session.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Drops the session, unless somebody has a newer one already.
    fn forget(&self, token: &Secret<String>) {
        let mut session = self.session.locked();
        session.take_if(|session| session.token == *token);
    }

    /// The fault for a status that is no success.
    fn explain_refusal(&self, status: u16, what: &str, reply: &ApiReply) -> Again {
        let text = text_of(reply).unwrap_or_default();
        let mut redactor = Redactor::new(self.session().as_ref().map(|session| &session.token));
        redactor.add_answer(&text);
        let said = one_line(&redactor.clean(&text));
        let said = if said.is_empty() || said.starts_with('<') {
            "no reason given".to_owned()
        } else {
            said
        };
        let remedy = match status {
            403 => "; enable the instance's metadata service, or set AWS_EC2_METADATA_DISABLED",
            400 | 404 | 405 if what.starts_with("PUT") => {
                "; this is not version 2 of the instance metadata service, the only one used: set \
                 AWS_EC2_METADATA_DISABLED"
            }
            _ => "",
        };
        let passes = status >= 500 || status == 429;
        let fault = self.new_fault(Some(status), what, &format!("{said}{remedy}"), passes);
        if passes {
            Again::Later(fault)
        } else {
            Again::Never(fault)
        }
    }

    /// The fault for a reply that broke off: something is there.
    fn explain_break(&self, what: &str, fault: &UpstreamError) -> Again {
        let failed = self.new_fault(None, what, &fault.to_string(), true);
        match fault.stage {
            // A connection kept from before may have been closed meanwhile.
            Stage::Transfer => Again::Later(failed),
            _ => Again::Never(failed),
        }
    }

    fn unreachable(&self, fault: &UpstreamError) -> ImdsFault {
        let hint = match fault.stage {
            // With a hop limit of 1 the reply ends at the container's bridge.
            Stage::Timeout => format!("; {HOP_LIMIT}"),
            _ => String::new(),
        };
        ImdsFault::Unreachable(format!(
            "the EC2 instance metadata service does not answer ({fault}){hint}"
        ))
    }

    fn new_fault(&self, status: Option<u16>, what: &str, said: &str, passes: bool) -> ImdsFault {
        let shown = status.map_or_else(|| " failed".to_owned(), |status| format!(" {status}"));
        let text = format!(
            "the EC2 instance metadata service at {}: {what}{shown}: {said}",
            self.base
        );
        ImdsFault::Failed {
            status,
            text,
            passes,
        }
    }
}

/// A failed attempt and whether another one is worth it.
enum Again {
    Later(ImdsFault),
    Never(ImdsFault),
    Now(ImdsFault),
}

fn text_of(reply: &ApiReply) -> Option<String> {
    let text = std::str::from_utf8(&reply.body).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeApi, clock, json, refused};
    use super::*;
    use crate::clock::ManualClock;

    const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
    const TOKEN: &str = "x-aws-ec2-metadata-token";

    struct Bench {
        api: Arc<FakeApi>,
        clock: Arc<ManualClock>,
        imds: Imds,
    }

    fn bench() -> Bench {
        let clock = clock();
        let api = FakeApi::new(&clock);
        let settings = InstanceSettings::default();
        let imds = Imds::new(&settings, api.clone(), clock.clone()).hasty();
        Bench { api, clock, imds }
    }

    impl Bench {
        /// Method, path and session token of each call so far.
        fn calls(&self) -> Vec<String> {
            let calls = self.api.calls();
            let shown = calls.iter().map(|call| {
                let path = call.url.strip_prefix("http://169.254.169.254").unwrap();
                let token = call.headers.first(TOKEN).unwrap_or_default();
                format!("{} {path} {token}", call.method)
            });
            shown.collect()
        }

        fn timeout(&self) {
            self.api.fail(UpstreamError {
                stage: Stage::Timeout,
                ..refused()
            });
        }
    }

    fn text(fault: &ImdsFault) -> String {
        assert!(matches!(fault, ImdsFault::Failed { .. }), "{fault:?}");
        fault.to_string()
    }

    #[test]
    fn each_get_brings_the_token_which_is_fetched_once() {
        let bench = bench();
        bench.api.reply(json(200, "t1\n").with(TTL, "21600"));
        bench.api.reply(json(200, " a\n"));
        bench.api.reply(json(200, "b"));
        assert_eq!(bench.imds.get("/a").as_deref(), Ok("a"));
        assert_eq!(bench.imds.get("/b").as_deref(), Ok("b"));
        let expected = ["PUT /latest/api/token ", "GET /a t1", "GET /b t1"];
        assert_eq!(bench.calls(), expected);
        for call in bench.api.calls() {
            assert!(!call.through_proxy && call.body.is_empty());
            assert_eq!(call.connect_timeout, Duration::from_secs(1));
            assert_eq!(call.timeout, Duration::from_secs(2));
        }
        assert_eq!(bench.api.calls()[0].headers.first(TTL), Some("21600"));
    }

    #[test]
    fn the_token_is_replaced_before_its_end() {
        for (ttl, good) in [("21600", 21_480), ("100", 50), ("x", 21_480), ("0", 0)] {
            let bench = bench();
            bench.api.reply(json(200, "t1").with(TTL, ttl));
            bench.api.reply(json(200, "a"));
            bench.imds.get("/a").unwrap();
            if good > 0 {
                bench.clock.advance(Duration::from_secs(good) - PAUSE);
                bench.api.reply(json(200, "b"));
                assert_eq!(bench.imds.get("/b").as_deref(), Ok("b"), "{ttl}");
                bench.clock.advance(PAUSE);
            }
            bench.api.reply(json(200, "t2"));
            bench.api.reply(json(200, "c"));
            assert_eq!(bench.imds.get("/c").as_deref(), Ok("c"), "{ttl}");
            let last = bench.calls().pop().unwrap();
            assert_eq!(last, "GET /c t2", "{ttl}");
        }
    }

    #[test]
    fn a_refused_token_is_replaced_and_not_for_ever() {
        let bench = bench();
        bench.api.reply(json(200, "t1"));
        bench.api.reply(json(401, ""));
        bench.api.reply(json(200, "t2"));
        bench.api.reply(json(200, "a"));
        assert_eq!(bench.imds.get("/a").as_deref(), Ok("a"));
        assert_eq!(bench.calls().pop().unwrap(), "GET /a t2");
        for number in 0..10 {
            bench.api.reply(json(401, ""));
            bench.api.reply(json(200, &format!("n{number}")));
        }
        let fault = bench.imds.get("/a").unwrap_err();
        assert!(
            text(&fault).contains("refuses the session token"),
            "{fault}"
        );
        let gets = bench
            .calls()
            .iter()
            .filter(|c| c.starts_with("GET"))
            .count();
        assert_eq!(gets, 2 + 4);
    }

    #[test]
    fn errors_of_the_service_are_tried_four_times() {
        for status in [500, 503, 429] {
            let bench = bench();
            bench.api.reply(json(200, "t1"));
            (0..3).for_each(|_| bench.api.reply(json(status, "busy")));
            bench.api.reply(json(200, "a"));
            assert_eq!(bench.imds.get("/a").as_deref(), Ok("a"));
            (0..9).for_each(|_| bench.api.reply(json(status, "busy.")));
            let fault = bench.imds.get("/a").unwrap_err();
            let expected = format!("GET /a {status}: busy");
            assert!(text(&fault).ends_with(&expected), "{fault}");
            assert!(matches!(fault, ImdsFault::Failed { passes: true, .. }));
            assert_eq!(bench.calls().len(), 5 + 4);
        }
        let bench = bench();
        bench.api.reply(json(500, ""));
        bench.api.reply(json(200, "t1"));
        bench.api.reply(json(200, "a"));
        assert_eq!(bench.imds.get("/a").as_deref(), Ok("a"));
    }

    #[test]
    fn slow_errors_do_not_hold_the_thread() {
        let bench = bench();
        bench.api.takes(Duration::from_secs(2));
        bench.api.reply(json(200, "t1"));
        (0..9).for_each(|_| bench.api.reply(json(500, "")));
        assert!(bench.imds.get("/a").is_err());
        // The token took two seconds, each attempt two more; at six none is begun.
        assert_eq!(bench.calls().len(), 3);
    }

    #[test]
    fn refusals_are_not_tried_again() {
        for status in [400, 403, 404, 307] {
            let bench = bench();
            bench.api.reply(json(200, "t1"));
            bench.api.reply(json(status, "<html>"));
            let fault = bench.imds.get("/a").unwrap_err();
            let ImdsFault::Failed {
                status: told,
                passes,
                ..
            } = &fault
            else {
                panic!("{fault:?}");
            };
            assert_eq!((*told, *passes), (Some(status), false));
            assert!(text(&fault).contains("no reason given"), "{fault}");
            assert_eq!(bench.calls().len(), 2);
        }
    }

    #[test]
    fn without_version_two_nothing_is_asked() {
        for (status, remedy) in [
            (403, "enable the instance's metadata service"),
            (404, "not version 2"),
            (405, "not version 2"),
        ] {
            let bench = bench();
            bench.api.reply(json(status, ""));
            let fault = bench.imds.get("/a").unwrap_err();
            assert!(text(&fault).contains(remedy), "{fault}");
            assert_eq!(bench.calls(), ["PUT /latest/api/token "]);
        }
    }

    #[test]
    fn a_silent_token_request_hints_at_the_hop_limit_and_is_not_repeated() {
        let bench = bench();
        bench.timeout();
        let fault = bench.imds.get("/a").unwrap_err();
        assert!(matches!(fault, ImdsFault::Unreachable(_)));
        assert!(fault.to_string().contains("hop limit 2"), "{fault}");
        assert_eq!(bench.calls().len(), 1);
        bench.api.fail(refused());
        let fault = bench.imds.get("/a").unwrap_err();
        assert!(matches!(fault, ImdsFault::Unreachable(_)));
        assert!(!fault.to_string().contains("hop limit"), "{fault}");
        assert_eq!(bench.calls().len(), 2);
    }

    #[test]
    fn what_falls_silent_after_the_token_is_there_all_the_same() {
        let bench = bench();
        bench.api.reply(json(200, "t1"));
        bench.timeout();
        let fault = bench.imds.get("/a").unwrap_err();
        assert!(matches!(fault, ImdsFault::Failed { passes: true, .. }));
        assert_eq!(bench.calls().len(), 2);
    }

    #[test]
    fn a_connection_that_breaks_is_tried_again() {
        let bench = bench();
        let broken = || UpstreamError {
            stage: Stage::Transfer,
            ..refused()
        };
        bench.api.fail(broken());
        bench.api.reply(json(200, "t1"));
        bench.api.fail(broken());
        bench.api.reply(json(200, "a"));
        assert_eq!(bench.imds.get("/a").as_deref(), Ok("a"));
    }

    #[test]
    fn a_token_that_fits_no_field_is_no_token() {
        for token in ["", "a b", "a\r\nX: y", "é"] {
            let bench = bench();
            bench.api.reply(json(200, token));
            let fault = bench.imds.get("/a").unwrap_err();
            assert!(
                text(&fault).contains("it is no token"),
                "{token:?}: {fault}"
            );
            assert_eq!(bench.calls().len(), 1);
        }
    }
}
