//! One look at everything, for `check`. Owns: the calls of the token thread, each made once by the
//! caller's own thread. Must not: run beside the token thread; `check` has none.

use std::time::SystemTime;

use super::super::ecr::{self, AuthorizationToken, Realm};
use super::super::fault::AwsFault;
use super::super::sts::{self, Identity};
use super::tokens::Tokens;
use crate::oci::Registry;

/// Credentials as they were found, and whose they are.
#[derive(Debug)]
pub struct FoundIdentity {
    /// Their source.
    pub source: String,
    /// Their end, by AWS's clock. None when they have no end, or do not say it.
    pub expires: Option<SystemTime>,
    /// Our identity, as STS tells it.
    pub identity: Result<Identity, AwsFault>,
}

impl Tokens {
    /// Finds credentials, and asks STS whose they are. Blocks for as long as their source takes,
    /// and for two calls at the longest.
    ///
    /// # Errors
    /// When the deciding source fails, or none is configured.
    pub fn find_identity(&self) -> Result<FoundIdentity, String> {
        if let Some(fault) = &self.profile_fault {
            return Err(fault.clone());
        }
        let realm = self.realm_now(None);
        if let Ok(realm) = &realm {
            self.chain.suggest_region(&realm.region);
        }
        let credentials = self.chain.fetch().map_err(|fault| fault.text)?;
        let identity = realm.map_err(AwsFault::lasting).and_then(|realm| {
            let region = self.identity_region(&realm);
            sts::caller_identity(&self.caller, &self.config.aws, &region, &credentials)
        });
        Ok(FoundIdentity {
            source: credentials.source,
            expires: credentials.expires,
            identity,
        })
    }

    /// Fetches a token for `registry`, or for the region of the settings. Gives its region, too.
    /// Blocks for two calls at the longest, and for the credentials.
    ///
    /// # Errors
    /// The failure.
    pub fn find_token(
        &self,
        registry: Option<&Registry>,
    ) -> Result<(String, AuthorizationToken), String> {
        let realm = self.realm_now(registry)?;
        let token = self.fetch(&realm).map_err(|fault| fault.text)?;
        Ok((realm.to_string(), token))
    }

    /// The realm of `registry`, else the default one. Asks the instance metadata for the region
    /// where nothing else gives it.
    fn realm_now(&self, registry: Option<&Registry>) -> Result<Realm, String> {
        let known = || match registry {
            Some(registry) => ecr::realm_of(registry, &self.config.aws),
            None => self.default_realm(&self.lock()),
        };
        known().or_else(|why| {
            if self.lock().search.attempts.count_ended() == 0 {
                self.search();
            }
            self.realm_found(&self.lock(), why)
        })
    }
}
