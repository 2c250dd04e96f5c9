//! The `Authorization` of a registry. Owns: the interface between an exchange and the token. Must
//! not: know how to find an AWS identity.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::secrets::Secrets;
use crate::oci::Registry;

/// Gives out the `Authorization` value for a registry. Implemented by the token thread's front.
pub trait Authorizer: Send + Sync {
    /// The value for `registry`. Blocks at the longest until `deadline`, and only while there is
    /// no usable token at all.
    ///
    /// # Errors
    /// Why there is none, for the person on call.
    fn header(&self, registry: &Registry, deadline: Instant) -> Result<Grant, AuthFault>;

    /// The value for an upload: one that is good for `fresh_for` from now on, if a renewal can give
    /// one. An upload is refused when its token ends before it does, and it cannot be repeated. An
    /// older value that is still good is better than none.
    ///
    /// # Errors
    /// Why there is none.
    fn header_fresh_for(
        &self,
        registry: &Registry,
        _fresh_for: Duration,
        deadline: Instant,
    ) -> Result<Grant, AuthFault> {
        self.header(registry, deadline)
    }

    /// Gets a newer value, because the registry refused `generation`. It is fetched once, however
    /// many callers ask. Returns at once when a newer one is there already.
    ///
    /// # Errors
    /// Why there is none.
    fn renew(
        &self,
        registry: &Registry,
        generation: u64,
        deadline: Instant,
    ) -> Result<Grant, AuthFault>;

    /// The registry that belongs to the identity (`proxyEndpoint`), for when none is configured.
    ///
    /// # Errors
    /// Why it is not known.
    fn default_registry(&self, deadline: Instant) -> Result<Registry, AuthFault>;
}

/// An `Authorization` value and the number of the token it was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The whole field value (`Basic …`); none when the registry wants no authorization.
    pub value: Option<Arc<Secrets>>,
    /// Grows with each token.
    pub generation: u64,
}

/// Gives the one value that there is. Without one it is the authorizer for an upstream that wants
/// no authorization, such as another `aws-ecr-proxy`.
#[derive(Debug, Clone, Default)]
pub struct FixedToken(pub Option<Arc<Secrets>>);

impl Authorizer for FixedToken {
    fn header(&self, _registry: &Registry, _deadline: Instant) -> Result<Grant, AuthFault> {
        Ok(Grant {
            value: self.0.clone(),
            generation: 0,
        })
    }

    fn renew(&self, registry: &Registry, _: u64, deadline: Instant) -> Result<Grant, AuthFault> {
        if self.0.is_some() {
            return self.header(registry, deadline);
        }
        let why = "the upstream asks for a login and UPSTREAM_AUTH is none; set it to ecr";
        Err(AuthFault(why.to_owned()))
    }

    fn default_registry(&self, _deadline: Instant) -> Result<Registry, AuthFault> {
        Err(AuthFault("no registry is known; set ECR".to_owned()))
    }
}

/// Why there is no authorization: what failed, on what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthFault(pub String);

impl fmt::Display for AuthFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
