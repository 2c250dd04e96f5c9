//! The blob host. Owns: presigned URLs and who may use them. Must not: touch a socket.

use std::time::{Duration, SystemTime};

use crate::content::digest;
use crate::core::{Core, lock};
use crate::http::{Head, Reply};
use crate::sigv4::{parse_time, time};
use crate::{Fault, Server};

/// Never to be seen in a log.
pub(crate) const SESSION_TOKEN: &str = "presigned%2Fsession%2Btoken-secret%3D";
/// Nobody else signs with it.
const SIGNING_KEY: &str = "the blob host's own key";

/// A URL that opens the blob for a GET.
pub(crate) fn presign(core: &Core, host: &str, digest: &str, expired: bool) -> String {
    let path = format!("/starport/{}", digest.trim_start_matches("sha256:"));
    let life = core.options.presign_life.as_secs();
    let age = if expired { life + 3600 } else { 0 };
    let at = time(SystemTime::now() - Duration::from_secs(age));
    let query = format!(
        "X-Amz-Security-Token={SESSION_TOKEN}&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={at}\
         &X-Amz-SignedHeaders=host&X-Amz-Expires={life}&X-Amz-Credential=ASIASTANDIN%2F{}%2F\
         eu-west-1%2Fs3%2Faws4_request",
        &at[..8]
    );
    let signature = signature(host, &path, &query);
    format!("http://{host}{path}?{query}&X-Amz-Signature={signature}")
}

/// Stands for SigV4: it depends on the method (GET only), host, path and query, byte for byte.
fn signature(host: &str, path: &str, query: &str) -> String {
    let signed = format!("{SIGNING_KEY}\nGET\n{host}\n{path}\n{query}");
    digest(signed.as_bytes()).split_off("sha256:".len())
}

pub(crate) fn answer(core: &Core, head: &Head, fault: Option<&Fault>) -> Reply {
    if head.first("authorization").is_some() {
        return error(
            400,
            "InvalidArgument",
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature \
             query string parameter or the Authorization header should be specified",
        );
    }
    let host = head.first("host").unwrap_or_default();
    let (query, sent) = head
        .query()
        .split_once("&X-Amz-Signature=")
        .unwrap_or_default();
    if head.method != "GET" || sent != signature(host, head.path(), query) {
        let message = "The request signature we calculated does not match the signature you \
                       provided. Check your key and signing method.";
        return error(403, "SignatureDoesNotMatch", message);
    }
    let expires = head
        .parameter("X-Amz-Date")
        .and_then(parse_time)
        .and_then(|at| {
            let life = head.parameter("X-Amz-Expires")?.parse().ok()?;
            Some(at + Duration::from_secs(life))
        });
    let expired = expires.is_none_or(|expires| expires <= core.now(Server::S3));
    if expired || matches!(fault, Some(Fault::PresignExpired)) {
        return error(403, "AccessDenied", "Request has expired");
    }
    let digest = format!("sha256:{}", head.path().trim_start_matches("/starport/"));
    let content = lock(&core.store).blobs.get(&digest).cloned();
    let Some(content) = content else {
        return error(404, "NoSuchKey", "The specified key does not exist.");
    };
    Reply::of(content, head.first("range"))
        .with("Content-Type", "application/octet-stream")
        .with("ETag", format!("\"{}\"", &digest[7..39]))
        .with("x-amz-request-id", "STANDIN0000000001")
        .with("Server", "AmazonS3")
}

fn error(status: u16, code: &str, message: &str) -> Reply {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}\
         </Message><RequestId>STANDIN</RequestId></Error>"
    );
    Reply::new(status, body.into_bytes()).with("Content-Type", "application/xml")
}
