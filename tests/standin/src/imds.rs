//! The EC2 instance metadata service, version 2 alone: each GET must bring a session token that a
//! PUT gave out. Must not: touch a socket.

use crate::core::{Core, lock};
use crate::http::{Head, Reply};
use crate::metadata::credentials;

const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TTL_MAX_S: u64 = 21_600;

pub(crate) fn answer(core: &Core, head: &Head) -> Reply {
    match (head.method.as_str(), head.path()) {
        ("PUT", "/latest/api/token") => session(core, head),
        ("GET", path) => match head.first("x-aws-ec2-metadata-token") {
            Some(token) if lock(&core.metadata).knows_session(token) => data(core, path),
            // Without a token: version 1, which is off.
            _ => page(401, "Unauthorized"),
        },
        _ => page(405, "Method Not Allowed"),
    }
}

fn session(core: &Core, head: &Head) -> Reply {
    let ttl_s = head.first(TTL).and_then(|text| text.parse().ok());
    let Some(ttl_s) = ttl_s.filter(|ttl_s| (1..=TTL_MAX_S).contains(ttl_s)) else {
        return page(400, "Bad Request");
    };
    let mut state = lock(&core.metadata);
    let ttl_s = ttl_s.min(state.now.session_life_max);
    let reply = Reply::new(200, state.open_session(ttl_s).into_bytes());
    if state.now.ttl_field {
        reply.with(TTL, ttl_s.to_string())
    } else {
        reply
    }
}

fn data(core: &Core, path: &str) -> Reply {
    let now = lock(&core.metadata).now.clone();
    let text = |text: String| Reply::new(200, text.into_bytes()).with("Content-Type", "text/plain");
    if path == "/latest/meta-data/placement/region" {
        return text(now.region);
    }
    let role = now.role.unwrap_or_default();
    match path.strip_prefix(ROLES) {
        Some("") if !role.is_empty() => text(role),
        Some(asked) if asked == role && !role.is_empty() => {
            let mut document = credentials(core);
            if let Some((code, message)) = now.code {
                if code != "Success" {
                    document = serde_json::json!({"Message": message});
                }
                document["Code"] = code.into();
            }
            text(document.to_string())
        }
        _ => page(404, "Not Found"),
    }
}

/// Errors are pages of HTML.
fn page(status: u16, title: &str) -> Reply {
    let body = format!("<?xml version=\"1.0\"?>\n<html><head><title>{title}</title></head></html>");
    Reply::new(status, body.into_bytes()).with("Content-Type", "text/html")
}
