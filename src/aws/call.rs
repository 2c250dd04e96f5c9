//! One call to an AWS API. Owns: the order sign → send → learn the clock → read a refusal,
//! and the single retry after the clock was found to be off. Must not: know single services, or
//! retry anything else; `token` decides when to come again. No locks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::credentials::Credentials;
use super::fault::{AwsFault, CallFault, FaultKind, Refusal};
use super::sigv4;
use super::skew::Skew;
use crate::clock::Clock;
use crate::locked::Locked as _;
use crate::message::Headers;
use crate::secret::Secret;
use crate::upstream::{Api, ApiCall, ApiReply};

/// Longest time to connect to an AWS API: enough for three lost SYNs.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for a whole call. Clients wait at most 30 s for a reply's head (containerd), and a
/// call that fails must leave time to tell them.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Tokens that are hidden in messages: one for each region, and some that they have replaced.
const TOKENS_MAX: usize = 128;

/// A call before it is signed.
#[derive(Debug, Clone)]
pub(super) struct UnsignedCall {
    /// The API's operation.
    pub(super) operation: &'static str,
    /// The signing name of the service.
    pub(super) service: &'static str,
    /// The region to sign for.
    pub(super) region: String,
    /// The URL that is called.
    pub(super) url: String,
    /// The fields.
    pub(super) headers: Headers,
    /// The body, which may hold a proof of identity.
    pub(super) body: Secret<String>,
    /// The IAM action it needs, if any.
    pub(super) permission: Option<&'static str>,
    /// Longest time for the whole call.
    pub(super) timeout: Duration,
}

impl UnsignedCall {
    /// A failure of this call.
    fn fault(
        &self,
        credentials: &Credentials,
        status: Option<u16>,
        mut refusal: Refusal,
    ) -> AwsFault {
        refusal.message = credentials.redactor().clean(&refusal.message);
        AwsFault::from(CallFault {
            call: self.operation,
            region: &self.region,
            source: &credentials.source,
            permission: self.permission,
            lacks_token: credentials.lacks_token(),
            status,
            refusal,
        })
    }

    /// The failure of a reply with status 200 that is not as the API documents it.
    pub(super) fn odd_reply(&self, credentials: &Credentials, reason: &str) -> AwsFault {
        let message = format!("the reply {reason}; is the endpoint an AWS API?");
        let refusal = Refusal::of_ours(message, FaultKind::Transient);
        self.fault(credentials, Some(200), refusal)
    }
}

/// Makes calls at AWS's time.
pub(super) struct Caller {
    pub(super) api: Arc<dyn Api>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) skew: Skew,
    /// The tokens given out last, which no message may show.
    tokens: Mutex<VecDeque<Secret<String>>>,
}

impl Caller {
    pub(super) fn new(api: Arc<dyn Api>, clock: Arc<dyn Clock>) -> Self {
        Self {
            api,
            clock,
            skew: Skew::default(),
            tokens: Mutex::default(),
        }
    }

    /// Hides `token` in AWS's messages from now on.
    pub(super) fn hide(&self, token: Secret<String>) {
        let mut tokens = self.tokens.locked();
        if tokens.len() >= TOKENS_MAX {
            tokens.pop_front();
        }
        tokens.push_back(token);
    }

    /// AWS's time, as far as we know it.
    pub(super) fn aws_now(&self) -> SystemTime {
        self.skew.correct(self.clock.now())
    }

    /// Makes a signed call; blocks for twice [`UnsignedCall::timeout`] at the longest.
    ///
    /// # Errors
    /// No reply, or one whose status is not 200.
    pub(super) fn call(
        &self,
        unsigned: &UnsignedCall,
        credentials: &Credentials,
    ) -> Result<ApiReply, AwsFault> {
        let outcome = match self.once(unsigned, credentials) {
            Err(failed) if failed.has_moved_clock && failed.fault.may_be_skew() => {
                self.once(unsigned, credentials)
            }
            outcome => outcome,
        };
        outcome.map_err(|failed| failed.fault)
    }

    /// Makes a call whose body holds the proof of identity (see [`Credentials::bearer`]); blocks
    /// for [`UnsignedCall::timeout`] at the longest.
    ///
    /// # Errors
    /// No reply, or one whose status is not 200.
    pub(super) fn call_unsigned(
        &self,
        unsigned: &UnsignedCall,
        bearer: &Credentials,
    ) -> Result<ApiReply, AwsFault> {
        let outcome = self.send(unsigned, bearer, &request(unsigned));
        outcome.map_err(|failed| failed.fault)
    }

    fn once(
        &self,
        unsigned: &UnsignedCall,
        credentials: &Credentials,
    ) -> Result<ApiReply, FailedCall> {
        let signed = sigv4::sign(
            request(unsigned),
            credentials,
            &unsigned.region,
            unsigned.service,
            self.aws_now(),
        );
        let signed = signed.map_err(|message| {
            let refusal = Refusal::of_ours(message, FaultKind::Permanent);
            FailedCall::from(unsigned.fault(credentials, None, refusal))
        })?;
        self.send(unsigned, credentials, &signed)
    }

    fn send(
        &self,
        unsigned: &UnsignedCall,
        credentials: &Credentials,
        call: &ApiCall,
    ) -> Result<ApiReply, FailedCall> {
        let reply = self.api.call(call).map_err(|fault| {
            let refusal = Refusal::of_ours(fault.to_string(), FaultKind::Transient);
            FailedCall::from(unsigned.fault(credentials, None, refusal))
        })?;
        let has_moved_clock = self.skew.learn(&reply);
        if reply.status == 200 {
            return Ok(reply);
        }
        let mut redactor = credentials.redactor();
        for token in self.tokens.locked().iter() {
            redactor.add(token.expose());
        }
        let refusal = Refusal::read(&reply, redactor);
        Err(FailedCall {
            fault: unsigned.fault(credentials, Some(reply.status), refusal),
            has_moved_clock,
        })
    }
}

/// A call that failed.
struct FailedCall {
    fault: AwsFault,
    /// True when the reply moved our idea of AWS's time far.
    has_moved_clock: bool,
}

impl From<AwsFault> for FailedCall {
    fn from(fault: AwsFault) -> Self {
        Self {
            fault,
            has_moved_clock: false,
        }
    }
}

fn request(unsigned: &UnsignedCall) -> ApiCall {
    ApiCall {
        method: "POST",
        url: unsigned.url.clone(),
        headers: unsigned.headers.clone(),
        body: unsigned.body.expose().clone().into_bytes(),
        connect_timeout: CONNECT_TIMEOUT,
        timeout: unsigned.timeout,
        through_proxy: true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeApi, clock, credentials, json, refused};
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const LATE: &str = r#"{"__type":"InvalidSignatureException","message":"Signature expired"}"#;

    fn unsigned_call() -> UnsignedCall {
        UnsignedCall {
            operation: "GetAuthorizationToken",
            service: "ecr",
            region: "eu-west-1".into(),
            url: "https://h/".into(),
            headers: Headers::new(),
            body: Secret::new("{}".into()),
            permission: None,
            timeout: CALL_TIMEOUT,
        }
    }

    #[test]
    fn a_clock_off_by_a_day_costs_one_retry_and_no_more() {
        let (api, clock) = (FakeApi::new(&clock()), clock());
        api.reply(json(400, LATE).dated(clock.now() + DAY));
        api.reply(json(200, "{}").dated(clock.now() + DAY));
        api.reply(json(200, "{}").dated(clock.now() + DAY));
        let caller = Caller::new(api.clone(), clock);
        caller.call(&unsigned_call(), &credentials()).unwrap();
        caller.call(&unsigned_call(), &credentials()).unwrap();
        let dates: Vec<String> = api.calls().iter().map(date_of).collect();
        assert_eq!(
            dates,
            ["20231114T221320Z", "20231115T221320Z", "20231115T221320Z"]
        );
    }

    fn date_of(call: &ApiCall) -> String {
        call.headers.first("x-amz-date").unwrap().to_owned()
    }

    #[test]
    fn a_refused_signature_with_a_good_clock_is_not_retried() {
        let (api, clock) = (FakeApi::new(&clock()), clock());
        api.reply(json(400, LATE).dated(clock.now()));
        let fault = Caller::new(api.clone(), clock)
            .call(&unsigned_call(), &credentials())
            .unwrap_err();
        assert_eq!(fault.code.as_deref(), Some("InvalidSignatureException"));
        assert_eq!(api.calls().len(), 1);
    }

    #[test]
    fn other_refusals_are_not_retried_even_when_the_clock_is_off() {
        let (api, clock) = (FakeApi::new(&clock()), clock());
        let body = r#"{"__type":"UnrecognizedClientException","message":"invalid"}"#;
        api.reply(json(400, body).dated(clock.now() + DAY));
        let fault = Caller::new(api.clone(), clock)
            .call(&unsigned_call(), &credentials())
            .unwrap_err();
        assert_eq!(fault.kind, FaultKind::Permanent);
        assert_eq!(api.calls().len(), 1);
    }

    #[test]
    fn secrets_in_a_refusal_do_not_reach_the_fault() {
        let (api, clock) = (FakeApi::new(&clock()), clock());
        let body = r#"{"__type":"SignatureDoesNotMatch","message":"expected key hunter2"}"#;
        api.reply(json(403, body));
        let fault = Caller::new(api, clock)
            .call(&unsigned_call(), &credentials())
            .unwrap_err();
        assert!(fault.to_string().contains("expected key ***"), "{fault}");
    }

    #[test]
    fn a_call_that_brings_its_own_proof_is_not_signed_and_hides_it() {
        let (api, clock) = (FakeApi::new(&clock()), clock());
        let body = r#"{"__type":"InvalidIdentityToken","message":"bad token hunter2"}"#;
        api.reply(json(400, body));
        let bearer = Credentials::bearer("web identity".into(), Secret::new("hunter2".into()));
        let fault = Caller::new(api.clone(), clock)
            .call_unsigned(&unsigned_call(), &bearer)
            .unwrap_err();
        assert!(
            fault
                .to_string()
                .contains("via web identity: bad token ***")
        );
        let call = api.calls().remove(0);
        assert_eq!(call.headers.first("authorization"), None);
        assert_eq!(call.headers.first("x-amz-security-token"), None);
        assert!(!format!("{:?}", unsigned_call()).contains("{}"));
    }

    #[test]
    fn a_call_without_reply_names_its_stage() {
        let (api, clock) = (FakeApi::new(&clock()), clock());
        api.fail(refused());
        let fault = Caller::new(api, clock)
            .call(&unsigned_call(), &credentials())
            .unwrap_err();
        assert_eq!(fault.kind, FaultKind::Transient);
        assert!(
            fault
                .to_string()
                .contains("connect failed for https://h: refused")
        );
    }
}
