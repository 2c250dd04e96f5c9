//! One look at everything, for `check`. Owns: the calls of the token thread, each made once by the
//! caller's own thread. Must not: run beside the token thread; `check` has none.

use std::time::SystemTime;

use super::super::ecr::{self, Realm};
use super::super::sts::{self, Identity};
use super::tokens::Tokens;
use crate::oci::Registry;
use crate::secret::Secret;

/// Credentials as they were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundCredentials {
    /// Their source.
    pub source: String,
    /// Their end, by AWS's clock. None when they have no end, or do not say it.
    pub expires: Option<SystemTime>,
}

/// A token as it was fetched.
#[derive(Debug, Clone)]
pub struct FoundToken {
    /// The region it is good in.
    pub region: String,
    /// Its end, by AWS's clock, if AWS says one.
    pub expires: Option<SystemTime>,
    /// The registry of the caller's own account.
    pub registry: Option<Registry>,
    /// The value of `Authorization`.
    pub value: Secret<String>,
}

/// Why our identity is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFault {
    /// The failure and its remedy.
    pub text: String,
    /// True when AWS or a setting says no. False when nobody answered, so that a later call may
    /// succeed.
    pub refused: bool,
}

impl Tokens {
    /// Finds credentials. Blocks for as long as their source takes.
    ///
    /// # Errors
    /// When the deciding source fails, or none is configured.
    pub fn find_credentials(&self) -> Result<FoundCredentials, String> {
        if let Some(fault) = &self.profile_fault {
            return Err(fault.clone());
        }
        if let Ok(realm) = self.realm_now(None) {
            self.chain.suggest_region(&realm.region);
        }
        let found = self.chain.fetch().map_err(|fault| fault.text)?;
        Ok(FoundCredentials {
            source: found.source,
            expires: found.expires,
        })
    }

    /// Asks STS for our identity. Blocks for two calls at the longest, and for the credentials.
    ///
    /// # Errors
    /// The failure.
    pub fn find_identity(&self) -> Result<Identity, IdentityFault> {
        let refused = |text: String| IdentityFault {
            text,
            refused: true,
        };
        let realm = self.realm_now(None).map_err(refused)?;
        let region = self.identity_region(&realm);
        let found = self.chain.fetch();
        let credentials = found.map_err(|fault| refused(fault.text))?;
        let outcome = sts::caller_identity(&self.caller, &self.config.aws, &region, &credentials);
        outcome.map_err(|fault| IdentityFault {
            refused: fault.is_lasting(),
            text: fault.text,
        })
    }

    /// Fetches a token for `registry`, or for the region of the settings. Blocks for two calls at
    /// the longest, and for the credentials.
    ///
    /// # Errors
    /// The failure.
    pub fn find_token(&self, registry: Option<&Registry>) -> Result<FoundToken, String> {
        let realm = self.realm_now(registry)?;
        let token = self.fetch(&realm).map_err(|fault| fault.text)?;
        Ok(FoundToken {
            region: realm.to_string(),
            expires: token.expires,
            registry: token.registry.ok(),
            value: token.value,
        })
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
