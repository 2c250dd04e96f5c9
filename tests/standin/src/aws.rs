//! The AWS APIs. Owns: which of them is asked, and `GetAuthorizationToken` (ECR, or ECR Public), for
//! a rightly signed request only. Must not: touch a socket.

use std::time::UNIX_EPOCH;

use serde_json::{Number, Value, json};

use crate::core::{Core, lock};
use crate::http::{Head, Reply};
use crate::sigv4::{self, Refusal};
use crate::{Server, sts};

const GET_TOKEN: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
const GET_PUBLIC_TOKEN: &str = "SpencerFrontendService.GetAuthorizationToken";

pub(crate) fn answer(core: &Core, head: &Head, body: &[u8]) -> Reply {
    if head.method != "POST" || head.path() != "/" {
        return json_error(&("UnknownOperationException", String::new()), 404);
    }
    // ECR and ECR Public do not know each other's call.
    let (get_token, service) = match core.options.public {
        true => (GET_PUBLIC_TOKEN, "ecr-public"),
        false => (GET_TOKEN, "ecr"),
    };
    match head.first("x-amz-target") {
        Some(target) if target == get_token => match sigv4::verify(core, head, body, service) {
            Ok(_) if serde_json::from_slice::<Value>(body).is_ok() => token(core),
            Ok(_) => json_error(&("SerializationException", "not JSON".into()), 400),
            Err(refusal) => json_error(&refusal, 400),
        },
        Some(_) => json_error(&("UnknownOperationException", String::new()), 400),
        None => sts::answer(core, head, body),
    }
}

fn token(core: &Core) -> Reply {
    let mut token = core.issue_token();
    if core.options.token_newline {
        token.push('\n');
    }
    let now = core
        .now(Server::Api)
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let life = lock(&core.tokens).life;
    let expires = now.as_secs().saturating_add_signed(life);
    // ECR sends a float: seconds with a fraction.
    let expires: Number = serde_json::from_str(&format!("{expires}.123")).expect("a number");
    let own = || format!("http://{}", core.authority(Server::Registry));
    let endpoint = core.options.proxy_endpoint.clone().unwrap_or_else(own);
    let data = if core.options.public {
        json!({"authorizationToken": token, "expiresAt": expires})
    } else {
        json!([{
            "authorizationToken": token,
            "expiresAt": expires,
            "proxyEndpoint": endpoint,
        }])
    };
    let body = json!({"authorizationData": data});
    Reply::new(200, body.to_string().into_bytes())
        .with("Content-Type", "application/x-amz-json-1.1")
        .with("x-amzn-RequestId", "00000000-0000-0000-0000-000000000001")
}

fn json_error((code, message): &Refusal, status: u16) -> Reply {
    let body = json!({"__type": code, "message": message});
    Reply::new(status, body.to_string().into_bytes())
        .with("Content-Type", "application/x-amz-json-1.1")
        .with("x-amzn-ErrorType", *code)
}
