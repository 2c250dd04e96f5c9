//! Who we are. Owns: when STS is asked, and what of its answers holds. Must not: stop anything: who
//! we are is for people, and no pull waits for it.

use std::time::{Duration, Instant};

use super::super::credentials::Credentials;
use super::super::{endpoint, sts};
use super::{Realm, Tokens};
use crate::calendar;
use crate::log;

/// Least time after a failure: tokens may come every minute (see `LIFE_FLOOR`), and a VPC may have
/// no way to STS at all.
const RETRY: Duration = Duration::from_secs(3600);

/// What STS has said, and whether to ask it (again), as functions of the time handed in.
///
/// The key that signed a token is asked for once: with another one, temporary credentials
/// refreshed or a profile rewritten, we may be somebody else.
#[derive(Debug, Default)]
pub(super) struct Who {
    arn: Option<String>,
    /// The key that STS was last asked with.
    key: Option<String>,
    due: Option<String>,
    retry_at: Option<Instant>,
}

impl Who {
    /// A token came, signed with `key`; STS is to be asked in `region`, if it is to be asked.
    pub(super) fn token_came(&mut self, key: &str, region: String, now: Instant) {
        let failed = self.retry_at;
        let again = failed.is_some_and(|retry_at| retry_at <= now);
        let other = failed.is_none() && self.key.as_deref() != Some(key);
        if again || other {
            self.due = Some(region);
        }
    }

    /// Where to ask, if that is due.
    pub(super) fn due(&self) -> Option<&String> {
        self.due.as_ref()
    }

    /// STS is about to be asked.
    pub(super) fn begin(&mut self) {
        self.due = None;
    }

    /// STS knows `key` as `arn`. True when that is news.
    fn told(&mut self, key: String, arn: String) -> bool {
        let news = self.arn.as_ref() != Some(&arn);
        (self.key, self.arn, self.retry_at) = (Some(key), Some(arn), None);
        news
    }

    /// STS was asked for `key` in vain. What it said of another key holds no longer.
    fn untold(&mut self, key: String, now: Instant) {
        if self.key.as_ref() != Some(&key) {
            self.arn = None;
        }
        (self.key, self.retry_at) = (Some(key), Some(now + RETRY));
    }

    /// Our ARN, once STS has said so.
    pub(super) const fn arn(&self) -> Option<&String> {
        self.arn.as_ref()
    }
}

impl Tokens {
    /// Asks who we are, for the log and the probes alone.
    pub(super) fn identify(&self, region: &str) {
        let Ok(credentials) = self.chain.fetch() else {
            return;
        };
        let key = credentials.access_key_id.clone();
        match sts::caller_identity(&self.caller, &self.config.aws, region, &credentials) {
            Ok(identity) => {
                let news = self.lock().who.told(key, identity.arn.clone());
                if news {
                    log_identity(&identity, &credentials, region);
                }
            }
            Err(error) => {
                self.lock().who.untold(key, self.clock.monotonic());
                log::warn("identity unknown, going on without", &[("error", &error)]);
            }
        }
    }

    /// ECR Public has one region for the world; STS is asked nearer by, where one is set.
    pub(super) fn identity_region(&self, realm: &Realm) -> String {
        let configured = self.config.aws.region.as_deref();
        match configured.and_then(endpoint::region) {
            Some(region) if realm.public => region,
            _ => realm.region.clone(),
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
mod tests {
    use super::*;

    fn ask(who: &mut Who, key: &str, now: Instant) -> bool {
        who.token_came(key, "eu-west-1".into(), now);
        let due = who.due().is_some();
        who.begin();
        due
    }

    #[test]
    fn each_key_is_asked_for_once() {
        let now = Instant::now();
        let mut who = Who::default();
        assert!(ask(&mut who, "one", now));
        assert!(who.told("one".into(), "arn:a".into()));
        assert!(!ask(&mut who, "one", now + RETRY));
        assert!(ask(&mut who, "two", now));
        assert!(!who.told("two".into(), "arn:a".into()), "no news");
        assert!(ask(&mut who, "three", now));
        assert!(who.told("three".into(), "arn:b".into()));
        assert_eq!(who.arn().unwrap(), "arn:b");
    }

    #[test]
    fn a_failure_is_followed_by_an_hour_of_peace() {
        let now = Instant::now();
        let mut who = Who::default();
        assert!(ask(&mut who, "one", now));
        who.untold("one".into(), now);
        assert!(!ask(&mut who, "one", now + RETRY - Duration::from_secs(1)));
        assert!(!ask(&mut who, "two", now + RETRY - Duration::from_secs(1)));
        assert!(ask(&mut who, "one", now + RETRY));
    }

    #[test]
    fn what_was_said_of_another_key_is_forgotten_when_nothing_is_said_of_this_one() {
        let now = Instant::now();
        let mut who = Who::default();
        who.told("one".into(), "arn:a".into());
        who.untold("one".into(), now);
        assert_eq!(who.arn().unwrap(), "arn:a");
        who.untold("two".into(), now);
        assert_eq!(who.arn(), None);
    }
}
