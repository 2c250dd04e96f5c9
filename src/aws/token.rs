//! ECR tokens. Owns: the list of its parts. Must not: hold code.

mod attempts;
mod inspect;
mod own_arn;
mod report;
mod search;
mod state;
mod thread;
mod tokens;

pub use self::inspect::FoundIdentity;
pub use self::report::TokenReport;
pub use self::tokens::{TokenConfig, TokenStatus, Tokens};
