//! The container credentials of ECS and EKS Pod Identity: one path, and only for whoever brings the
//! right token. Must not: touch a socket.

use serde_json::json;

use crate::ACCOUNT;
use crate::core::{Core, lock};
use crate::http::{Head, Reply};
use crate::metadata::credentials;

pub(crate) fn answer(core: &Core, head: &Head) -> Reply {
    let now = lock(&core.metadata).now.clone();
    if head.method != "GET" || head.path() != now.container_path {
        return error(404, "NotFoundException", "no such credentials");
    }
    if head.first("authorization") != now.container_token.as_deref() {
        return error(403, "AccessDeniedException", "the token is not valid");
    }
    let mut document = credentials(core);
    document["RoleArn"] = format!("arn:aws:iam::{ACCOUNT}:role/stand-in-role").into();
    document["AccountId"] = ACCOUNT.into();
    reply(200, &document)
}

fn error(status: u16, code: &str, message: &str) -> Reply {
    reply(status, &json!({"code": code, "message": message}))
}

fn reply(status: u16, document: &serde_json::Value) -> Reply {
    let body = document.to_string().into_bytes();
    Reply::new(status, body).with("Content-Type", "application/json")
}
