//! The AWS side. Owns: our identity (`credentials`, `sources`), signed calls (`sigv4`, `call`), the
//! APIs we call (`ecr`, `sts`) and the tokens they give ([`token`]). Must not: know of clients,
//! repositories or caches, or open a connection itself (an [`Api`](crate::upstream::Api) is handed
//! in).

mod call;
mod credentials;
pub mod ecr;
mod endpoint;
mod fault;
mod imds;
mod redact;
mod sigv4;
mod skew;
mod sources;
pub mod sts;
pub mod token;
mod xml;

#[cfg(any(fuzzing, test))]
pub use self::sources::profile::fuzz;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
