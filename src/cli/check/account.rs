//! The steps of `check` that ask AWS: whose credentials, and the clock. Owns: one try each, and
//! what its outcome means. Must not: print.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::local::show_end;
use super::outcome::{StepResult, ok, skipped};
use crate::app;
use crate::aws::token::Tokens;
use crate::config::{Settings, UpstreamAuth};
use crate::upstream::client::Client;

/// AWS refuses signatures that are older; ours are corrected, other programs' are not.
const CLOCK_OFF_S: u64 = 240;

/// How AWS is asked.
pub(super) struct Account {
    pub(super) settings: Arc<Settings>,
    pub(super) client: Arc<Client>,
    /// None where the registry wants no token.
    tokens: Option<Arc<Tokens>>,
    has_credentials: AtomicBool,
}

impl Account {
    pub(super) fn new(settings: Arc<Settings>, client: Arc<Client>) -> Self {
        let wants_token = settings.upstream_auth == UpstreamAuth::Ecr;
        Self {
            tokens: wants_token.then(|| app::new_tokens(&settings, &client)),
            has_credentials: AtomicBool::new(false),
            settings,
            client,
        }
    }

    /// Finds credentials, and whose they are.
    pub(super) fn find_identity(&self) -> StepResult {
        let Some(tokens) = &self.tokens else {
            return skipped("not needed: UPSTREAM_AUTH=none");
        };
        let found = tokens.find_identity()?;
        self.has_credentials.store(true, Ordering::Relaxed);
        let until = match found.expires {
            None => "without an end".to_owned(),
            end => format!("until {}", show_end(end)),
        };
        let whose = format!("{}, credentials {until}", found.source);
        match found.identity {
            Ok(identity) => ok(format!("{} via {whose}", identity.arn)),
            Err(fault) if fault.is_lasting() => Err(fault.text),
            // Pulls do not need STS once there are credentials.
            Err(fault) => skipped(format!("not told, {whose}: {}", fault.text)),
        }
    }

    /// What fetches tokens.
    ///
    /// # Errors
    /// Why nothing does.
    pub(super) fn tokens(&self) -> Result<&Tokens, &'static str> {
        let tokens = self.tokens.as_deref();
        let tokens = tokens.ok_or("not needed: UPSTREAM_AUTH=none")?;
        match self.has_credentials.load(Ordering::Relaxed) {
            true => Ok(tokens),
            false => Err("no credentials to ask AWS with"),
        }
    }

    /// Compares the clocks, after AWS has answered.
    pub(super) fn compare_clocks(&self) -> StepResult {
        let behind = match self.tokens() {
            Ok(tokens) => tokens.clock_skew_seconds(),
            Err(why) => return skipped(why),
        };
        let off = behind.unsigned_abs();
        if off <= CLOCK_OFF_S {
            return ok(format!("{off} s off AWS's, as far as AWS has answered"));
        }
        let way = if behind > 0 { "behind" } else { "ahead of" };
        Err(format!(
            "this machine's clock is {off} s {way} AWS's: signatures are corrected, but \
             certificates are judged by it; set it (timedatectl set-ntp true, chronyc makestep)"
        ))
    }
}
