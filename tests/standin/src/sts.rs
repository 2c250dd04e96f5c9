//! STS. Owns: the keys that the APIs know, the roles that may be assumed, and the sessions that
//! come of it. Must not: touch a socket.

use std::time::{Duration, SystemTime};

use crate::core::{Core, lock};
use crate::http::{Head, Reply};
use crate::sigv4::{self, Refusal};
use crate::{ACCOUNT, Options, Server, Standin};

/// A role that may be assumed.
#[derive(Debug, Clone)]
pub struct Role {
    /// `arn:aws:iam::ACCOUNT:role/NAME`
    pub arn: String,
    /// What `AssumeRole` must bring along.
    pub external_id: Option<String>,
    /// What `AssumeRoleWithWebIdentity` must bring along; none: that way is closed.
    pub web_identity_token: Option<String>,
    /// Who may assume it with `AssumeRole`: part of the caller's ARN; none: everybody.
    pub trusts: Option<String>,
    /// Seconds that a session lasts; the APIs hold it to that.
    pub session_s: u64,
}

impl Role {
    /// A role of that name which lasts an hour and which any key may assume.
    pub fn named(name: &str) -> Self {
        Self {
            arn: format!("arn:aws:iam::{ACCOUNT}:role/{name}"),
            external_id: None,
            web_identity_token: None,
            trusts: None,
            session_s: 3600,
        }
    }
}

/// A call as STS saw it.
#[derive(Debug, Clone)]
pub struct StsCall {
    /// The form, decoded, in order.
    pub fields: Vec<(String, String)>,
    /// The key that signed it; none for an unsigned one.
    pub key_id: Option<String>,
}

impl StsCall {
    /// A field of the form.
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// A key that the APIs know.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
    arn: String,
    expires: Option<SystemTime>,
}

impl Key {
    pub(crate) fn is_expired(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }
}

pub(crate) struct State {
    keys: Vec<Key>,
    roles: Vec<Role>,
    calls: Vec<StsCall>,
    sessions: u64,
}

impl State {
    pub(crate) fn new(options: &Options) -> Self {
        let key = Key {
            id: options.access_key_id.clone(),
            secret: options.secret_access_key.clone(),
            token: options.session_token.clone(),
            arn: format!("arn:aws:iam::{ACCOUNT}:user/stand-in"),
            expires: None,
        };
        Self {
            keys: vec![key],
            roles: Vec::new(),
            calls: Vec::new(),
            sessions: 0,
        }
    }

    pub(crate) fn key(&self, id: &str) -> Option<Key> {
        self.keys.iter().find(|key| key.id == id).cloned()
    }

    fn begin_session(&mut self, role: &Role, session_name: &str, now: SystemTime) -> Key {
        self.sessions += 1;
        let number = self.sessions;
        let name = role.arn.rsplit('/').next().unwrap_or_default();
        let key = Key {
            id: format!("ASIASTANDIN{number}"),
            secret: format!("session/secret+of+number+{number}"),
            token: Some(format!("session+token/of/number+{number}==")),
            arn: format!("arn:aws:sts::{ACCOUNT}:assumed-role/{name}/{session_name}"),
            expires: Some(now + Duration::from_secs(role.session_s)),
        };
        self.keys.push(key.clone());
        key
    }
}

impl Standin {
    /// Adds a role.
    pub fn add_role(&self, role: Role) {
        let mut sts = lock(&self.core.sts);
        sts.roles.retain(|other| other.arn != role.arn);
        sts.roles.push(role);
    }

    /// Adds a key of a user `name`.
    pub fn add_key(&self, name: &str, id: &str, secret: &str) {
        lock(&self.core.sts).keys.push(Key {
            id: id.into(),
            secret: secret.into(),
            token: None,
            arn: format!("arn:aws:iam::{ACCOUNT}:user/{name}"),
            expires: None,
        });
    }

    /// From now on the APIs do not know that key.
    pub fn remove_key(&self, id: &str) {
        lock(&self.core.sts).keys.retain(|key| key.id != id);
    }

    /// From now on the sessions given out so far are over, whatever was said of their end.
    pub fn expire_sessions(&self) {
        let mut sts = lock(&self.core.sts);
        let sessions = sts.keys.iter_mut().filter(|key| key.expires.is_some());
        sessions.for_each(|key| key.expires = Some(SystemTime::UNIX_EPOCH));
    }

    /// What STS was asked so far, refused calls included.
    pub fn sts_calls(&self) -> Vec<StsCall> {
        lock(&self.core.sts).calls.clone()
    }

    /// Secrets of keys, sessions and web identities.
    pub(crate) fn sts_secrets(&self) -> Vec<String> {
        let sts = lock(&self.core.sts);
        let of_key = |key: &Key| [Some(key.secret.clone()), key.token.clone()];
        let of_keys = sts.keys.iter().flat_map(of_key).flatten();
        let of_roles = sts.roles.iter();
        let of_roles = of_roles.filter_map(|role| role.web_identity_token.clone());
        of_keys.chain(of_roles).collect()
    }
}

pub(crate) fn answer(core: &Core, head: &Head, body: &[u8]) -> Reply {
    let call = StsCall {
        fields: fields(&String::from_utf8_lossy(body)),
        key_id: sigv4::key_id(head).map(ToOwned::to_owned),
    };
    lock(&core.sts).calls.push(call.clone());
    let answered = match call.field("Action") {
        Some("GetCallerIdentity") => identity(core, head, body),
        Some("AssumeRole") => assume(core, head, body, &call),
        Some("AssumeRoleWithWebIdentity") => assume_with_web_identity(core, head, &call),
        _ => Err(("InvalidAction", "Could not find operation".into())),
    };
    answered.unwrap_or_else(|refusal| error(&refusal))
}

fn identity(core: &Core, head: &Head, body: &[u8]) -> Result<Reply, Refusal> {
    let key = sigv4::verify(core, head, body, "sts")?;
    let (arn, id) = (key.arn, key.id);
    Ok(document(
        "GetCallerIdentity",
        &format!("<Arn>{arn}</Arn><UserId>AIDA{id}</UserId><Account>{ACCOUNT}</Account>"),
    ))
}

fn assume(core: &Core, head: &Head, body: &[u8], call: &StsCall) -> Result<Reply, Refusal> {
    let caller = sigv4::verify(core, head, body, "sts")?.arn;
    let arn = call.field("RoleArn").unwrap_or_default();
    let denied = || {
        let message = format!(
            "User: {caller} is not authorized to perform: sts:AssumeRole on resource: {arn}"
        );
        ("AccessDenied", message)
    };
    let role = role(core, arn).ok_or_else(denied)?;
    let trusted = role
        .trusts
        .as_ref()
        .is_none_or(|part| caller.contains(part));
    if !trusted || role.external_id.as_deref() != call.field("ExternalId") {
        return Err(denied());
    }
    session(core, "AssumeRole", &role, call)
}

fn assume_with_web_identity(core: &Core, head: &Head, call: &StsCall) -> Result<Reply, Refusal> {
    if head.first("authorization").is_some() || head.first("x-amz-security-token").is_some() {
        let message = "this call takes no signature";
        return Err(("ValidationError", message.into()));
    }
    let denied = "Not authorized to perform sts:AssumeRoleWithWebIdentity";
    let denied = || ("AccessDenied", denied.to_owned());
    let role = role(core, call.field("RoleArn").unwrap_or_default()).ok_or_else(denied)?;
    let token = role.web_identity_token.as_deref().ok_or_else(denied)?;
    let sent = call.field("WebIdentityToken").unwrap_or_default();
    if sent != token {
        // As verbose as a service could be: no such text may reach a log.
        let message = format!("The web identity token {sent} could not be validated");
        return Err(("InvalidIdentityToken", message));
    }
    session(core, "AssumeRoleWithWebIdentity", &role, call)
}

fn role(core: &Core, arn: &str) -> Option<Role> {
    let sts = lock(&core.sts);
    sts.roles.iter().find(|role| role.arn == arn).cloned()
}

fn session(core: &Core, action: &str, role: &Role, call: &StsCall) -> Result<Reply, Refusal> {
    let name = call.field("RoleSessionName").unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    if !(2..=64).contains(&name.len()) || !name.chars().all(fits) {
        return Err(("ValidationError", format!("roleSessionName {name:?}")));
    }
    let duration = call.field("DurationSeconds").map(str::parse::<u64>);
    if duration.is_some_and(|seconds| !seconds.is_ok_and(|s| (900..=43_200).contains(&s))) {
        return Err(("ValidationError", "durationSeconds".into()));
    }
    let now = core.now(Server::Api);
    let key = lock(&core.sts).begin_session(role, name, now);
    let expires = rfc_3339(key.expires.unwrap_or(now));
    let token = key.token.unwrap_or_default();
    let (id, secret, arn) = (key.id, key.secret, key.arn);
    Ok(document(
        action,
        &format!(
            "<Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}\
             </SecretAccessKey><SessionToken>{token}</SessionToken>\
             <Expiration>{expires}</Expiration></Credentials>\
             <AssumedRoleUser><AssumedRoleId>AROA:{name}</AssumedRoleId><Arn>{arn}</Arn>\
             </AssumedRoleUser>"
        ),
    ))
}

/// `2026-11-22T01:44:13.065241Z`, with a fraction as some stand-ins for AWS have it.
fn rfc_3339(at: SystemTime) -> String {
    let basic = sigv4::time(at);
    let part = |range: std::ops::Range<usize>| &basic[range];
    format!(
        "{}-{}-{}T{}:{}:{}.065241Z",
        part(0..4),
        part(4..6),
        part(6..8),
        part(9..11),
        part(11..13),
        part(13..15)
    )
}

fn document(action: &str, result: &str) -> Reply {
    let body = format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <{action}Result>{result}</{action}Result>\
         <ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></{action}Response>"
    );
    Reply::new(200, body.into_bytes()).with("Content-Type", "text/xml")
}

fn error((code, message): &Refusal) -> Reply {
    let status = match *code {
        "InvalidAction" | "InvalidIdentityToken" | "ValidationError" => 400,
        _ => 403,
    };
    Reply::new(status, error_document(code, message)).with("Content-Type", "text/xml")
}

/// An error document of STS.
pub(crate) fn error_document(code: &str, message: &str) -> Vec<u8> {
    let message = message.replace('&', "&amp;").replace('<', "&lt;");
    let body = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>\
         <Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>\
         <RequestId>1</RequestId></ErrorResponse>"
    );
    body.into_bytes()
}

/// The fields of a form (`application/x-www-form-urlencoded`).
fn fields(form: &str) -> Vec<(String, String)> {
    let pairs = form.split('&').filter_map(|field| field.split_once('='));
    pairs
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (byte, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(value)) => {
                bytes.push(value);
                rest = &after[2..];
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded() {
        let fields = fields("Action=A&RoleArn=arn%3Aaws%3A%2Fx&Id=a+b%zz&Empty=");
        let value = |name: &str| {
            let call = StsCall {
                fields: fields.clone(),
                key_id: None,
            };
            call.field(name).map(ToOwned::to_owned)
        };
        assert_eq!(value("RoleArn").as_deref(), Some("arn:aws:/x"));
        assert_eq!(value("Id").as_deref(), Some("a b%zz"));
        assert_eq!(value("Empty").as_deref(), Some(""));
        assert_eq!(value("Missing"), None);
    }

    #[test]
    fn ends_of_sessions_are_written_as_moto_does() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_311_853);
        assert_eq!(rfc_3339(at), "2026-11-22T01:44:13.065241Z");
    }
}
