//! The plan by which a profile gets credentials. Owns: following a profile, through the profiles it
//! names, to keys. Must not: read files, run programs or call AWS.

use std::path::PathBuf;

use super::super::super::credentials::{Role, SESSION_NAME};
use super::files::{Profiles, text};
use super::ini::Properties;
use crate::config::{is_role_arn, is_session_name};
use crate::secret::Secret;

/// Most roles assumed one after the other. Each costs a call that the next waits for.
const ROLES_MAX: usize = 8;
/// The seconds that STS lets a role's session last (API reference, `AssumeRole`).
const DURATION_S: std::ops::RangeInclusive<u32> = 900..=43_200;

/// The steps to credentials.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The first credentials.
    pub(super) base: Base,
    /// The roles to assume after that, in order.
    pub(super) roles: Vec<Role>,
}

/// A source of first credentials.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// `aws_access_key_id` and its companions.
    Keys {
        id: String,
        secret: Secret<String>,
        session_token: Option<Secret<String>>,
    },
    /// `credential_source`
    Named(NamedSource),
    /// `credential_process`
    Process(Secret<String>),
    /// `web_identity_token_file` with `role_arn`
    WebIdentity { path: PathBuf, role: Role },
}

/// The values of `credential_source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NamedSource {
    Container,
    Environment,
    InstanceMetadata,
}

/// The plan of profile `name`; none when it has neither keys nor a role, for example only a region.
///
/// # Errors
/// The fault with the name of the profile, and without values that may be secret.
pub(super) fn plan(profiles: &Profiles, name: &str) -> Result<Option<Plan>, String> {
    let mut roles: Vec<Role> = Vec::new();
    let mut visited: Vec<&str> = Vec::new();
    let mut name = name;
    loop {
        let profile = profiles.get(name)?.ok_or_else(|| {
            format!(
                "source_profile = {name}: {}",
                profiles.explain_missing(name)
            )
        })?;
        let fault = |why: String| format!("profile {name}: {why}");
        let keys = keys(profile).map_err(fault)?;
        let is_source = !visited.is_empty();
        // A source's keys come before its role; so a profile may be its own source.
        if is_source && let Some(base) = keys {
            roles.reverse();
            return Ok(Some(Plan { base, roles }));
        }
        if visited.contains(&name) {
            return Err(fault(
                "source_profile leads back to it, and it has no aws_access_key_id".into(),
            ));
        }
        visited.push(name);
        let base = match step(profile).map_err(fault)? {
            Step::Role(role, source) => {
                if roles.len() >= ROLES_MAX {
                    return Err(fault(format!("more than {ROLES_MAX} roles in a row")));
                }
                roles.push(role);
                name = source;
                continue;
            }
            Step::RoleFrom(role, source) => {
                roles.push(role);
                Some(Base::Named(source))
            }
            Step::WebIdentity(path, role) => Some(Base::WebIdentity { path, role }),
            Step::None => match (keys, text(profile, "credential_process")) {
                (Some(keys), _) => Some(keys),
                (None, Some(command)) => Some(Base::Process(Secret::new(command.to_owned()))),
                (None, None) => None,
            },
        };
        roles.reverse();
        return match base {
            Some(base) => Ok(Some(Plan { base, roles })),
            None if is_source => Err(fault(
                "it is a source_profile and has neither keys nor a role".into(),
            )),
            None => Ok(None),
        };
    }
}

/// The part of a profile that ranks before its keys.
enum Step<'a> {
    None,
    /// A role, and the profile to assume it with.
    Role(Role, &'a str),
    RoleFrom(Role, NamedSource),
    WebIdentity(PathBuf, Role),
}

/// The order is that of the AWS SDKs: role, web identity, SSO, login; then keys and
/// `credential_process`.
fn step(profile: &Properties) -> Result<Step<'_>, String> {
    let get = |key| text(profile, key);
    let token_file = get("web_identity_token_file");
    if let Some(arn) = get("role_arn") {
        let role = || role(profile, arn);
        return match (get("source_profile"), get("credential_source"), token_file) {
            (Some(source), None, None) => Ok(Step::Role(role()?, source)),
            (None, Some(source), None) => Ok(Step::RoleFrom(role()?, named_source(source)?)),
            (None, None, Some(path)) => Ok(Step::WebIdentity(PathBuf::from(path), role()?)),
            _ => Err(
                "role_arn needs exactly one of source_profile, credential_source and \
                 web_identity_token_file"
                    .into(),
            ),
        };
    }
    if token_file.is_some() {
        return Err("web_identity_token_file needs role_arn".into());
    }
    let interactive = [
        "sso_session",
        "sso_start_url",
        "sso_account_id",
        "login_session",
    ];
    if let Some(key) = interactive.into_iter().find(|key| get(key).is_some()) {
        return Err(format!(
            "it signs in with {key}, which takes a person and a browser; use a role (role_arn with \
             source_profile or credential_source), a credential_process such as `aws configure \
             export-credentials --format process`, or AWS_ACCESS_KEY_ID with \
             AWS_SECRET_ACCESS_KEY"
        ));
    }
    Ok(Step::None)
}

/// `aws_access_key_id` and its companions, if they are there.
fn keys(profile: &Properties) -> Result<Option<Base>, String> {
    let pair = (
        text(profile, "aws_access_key_id"),
        text(profile, "aws_secret_access_key"),
    );
    let (id, secret) = match pair {
        (Some(id), Some(secret)) => (id, secret),
        (None, None) => return Ok(None),
        (Some(_), None) => {
            return Err("aws_access_key_id is there, aws_secret_access_key is not".into());
        }
        (None, Some(_)) => {
            return Err("aws_secret_access_key is there, aws_access_key_id is not".into());
        }
    };
    let token = text(profile, "aws_session_token");
    let all = [Some(id), Some(secret), token];
    if all
        .into_iter()
        .flatten()
        .any(|text| !text.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err("its keys hold other than visible ASCII characters".into());
    }
    Ok(Some(Base::Keys {
        id: id.to_owned(),
        secret: Secret::new(secret.to_owned()),
        session_token: token.map(|token| Secret::new(token.to_owned())),
    }))
}

fn role(profile: &Properties, arn: &str) -> Result<Role, String> {
    let get = |key| text(profile, key);
    if get("mfa_serial").is_some() {
        return Err(
            "mfa_serial asks for a code that nobody types here; use a role whose trust policy asks \
             for none, or a credential_process"
                .into(),
        );
    }
    if !is_role_arn(arn) {
        return Err(format!(
            "role_arn = {arn}: expected arn:PARTITION:iam::ACCOUNT:role/NAME"
        ));
    }
    let session_name = get("role_session_name").unwrap_or(SESSION_NAME);
    if !is_session_name(session_name) {
        return Err("role_session_name: expected 2 to 64 letters, digits and _+=,.@-".into());
    }
    let duration_s = get("duration_seconds").map(|text| {
        let seconds = text.parse().ok();
        seconds
            .filter(|seconds| DURATION_S.contains(seconds))
            .ok_or("duration_seconds: expected a whole number from 900 to 43200 (STS's limits)")
    });
    Ok(Role {
        arn: arn.to_owned(),
        session_name: session_name.to_owned(),
        external_id: get("external_id").map(ToOwned::to_owned),
        duration_s: duration_s.transpose()?,
    })
}

fn named_source(text: &str) -> Result<NamedSource, String> {
    match text.to_ascii_lowercase().as_str() {
        "ec2instancemetadata" => Ok(NamedSource::InstanceMetadata),
        "ecscontainer" => Ok(NamedSource::Container),
        "environment" => Ok(NamedSource::Environment),
        _ => Err(
            "credential_source: expected Environment, Ec2InstanceMetadata or EcsContainer"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests;
