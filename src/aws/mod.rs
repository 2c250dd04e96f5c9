//! The AWS side. Owns: who we are ([`credentials`]), what we sign (`sigv4`), whom we call (`ecr`,
//! `sts`) and the tokens that come of it ([`token`]). Must not: know of clients, repositories or
//! caches, or open a connection itself (an [`Api`](crate::upstream::Api) is handed in).

mod call;
pub mod credentials;
pub mod ecr;
mod endpoint;
mod fault;
#[cfg(fuzzing)]
pub mod fuzz;
mod imds;
mod sigv4;
mod skew;
pub mod sts;
pub mod token;
mod xml;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod hosts;
