//! Secrets that neither log nor reply may ever show, and the log line of a reply that was cut.

use standin::{Fault, Match, Options, Seen, Server};

use crate::support::{Front, Response, SOON, raw, target_of, wait_until};

const CLIENT_LOGIN: &str = "Basic Y2xpZW50OmNsaWVudC1zZWNyZXQ=";
const SECRET_KEY: &str = "the+secret/access/key==";
const SESSION_TOKEN: &str = "the+session/token==";

/// All bytes a client got.
fn text(reply: &Response) -> String {
    format!("{} {:?} {}", reply.status, reply.headers, reply.text())
}

/// Values that upstream saw and nobody else may: authorizations, signatures, upload states.
fn secrets_of(seen: &[Seen]) -> Vec<String> {
    let mut secrets = Vec::new();
    for seen in seen {
        let value = seen.header("Authorization").unwrap_or_default();
        secrets.push(value.to_owned());
        secrets.extend(value.split_once("Signature=").map(|(_, s)| s.to_owned()));
        let query = seen.target.split_once('?').map_or("", |(_, query)| query);
        for parameter in query.split('&') {
            let (name, value) = parameter.split_once('=').unwrap_or_default();
            if name.starts_with("X-Amz-S") || name == "X-Amz-Credential" {
                secrets.push(value.to_owned());
            }
        }
    }
    // `host` stands in X-Amz-SignedHeaders.
    secrets.retain(|secret| secret.len() > 8);
    secrets
}

fn pull_push_and_fail(front: &Front) -> Vec<Response> {
    let standin = &front.standin;
    standin.put_image("team/app", "1.0", &[]);
    let blob = standin.add_blob_of("team/app", 1 << 20, 6);
    let (manifest, blob) = (
        "/v2/team/app/manifests/1.0",
        format!("/v2/team/app/blobs/{blob}"),
    );
    let login = [("Authorization", CLIENT_LOGIN)];
    let mut replies = vec![
        front.call("GET", manifest, &login, b""),
        front.call("GET", &blob, &login, b""),
        front.call(
            "GET",
            &format!("{manifest}?X-Amz-Signature={SECRET_KEY}"),
            &login,
            b"",
        ),
    ];
    standin.expire_tokens();
    replies.push(front.get(manifest));
    let begun = front.call("POST", "/v2/new/blobs/uploads/", &login, b"");
    let target = target_of(begun.header("Location").unwrap()).to_owned();
    replies.push(begun);
    replies.push(front.call("PATCH", &target, &login, b"abc"));
    let faults = [
        (Match::registry(), Fault::Unauthorized401),
        (Match::registry().times(2), Fault::CloseBeforeHead),
        (
            Match::registry(),
            Fault::RedirectTo(format!("http://evil.example/?X-Amz-Signature={SECRET_KEY}")),
        ),
        (
            Match::registry(),
            Fault::RedirectTo(format!("http://evil:{SESSION_TOKEN}@localhost/")),
        ),
        (Match::s3().times(2), Fault::PresignExpired),
        (Match::s3().times(2), Fault::CloseBeforeHead),
        (Match::s3().times(2), Fault::garbage_head()),
        (Match::s3().times(2), Fault::status(500)),
    ];
    for (pick, fault) in faults {
        standin.fault(pick, fault);
        replies.push(front.call("GET", &blob, &login, b""));
        standin.clear_faults();
    }
    standin.fault(Match::s3(), Fault::CutAfter(1000));
    replies.push(front.call("GET", &blob, &login, b""));
    standin.expire_tokens();
    replies.push(front.call("PATCH", &target, &login, b"abc"));
    standin.down(Server::S3);
    replies.push(front.get(&blob));
    standin.down(Server::Api);
    standin.expire_tokens();
    replies.push(front.get(manifest));
    replies.extend(["/readyz", "/version", "/healthz"].map(|page| front.get(page)));
    let broken =
        format!("GET /v2/ HTTP/1.1\r\nAuthorization: {CLIENT_LOGIN}\r\nBad Field: x\r\n\r\n");
    let answer = raw(front.address(), broken.as_bytes());
    assert!(!String::from_utf8_lossy(&answer).contains(&CLIENT_LOGIN[6..]));
    replies
}

#[test]
fn no_secret_is_in_the_log_or_in_a_reply() {
    for format in ["text", "json"] {
        let options = Options {
            secret_access_key: SECRET_KEY.into(),
            session_token: Some(SESSION_TOKEN.into()),
            ..Options::default()
        };
        let mut front = Front::with(options, &[("LOG_FORMAT", format), ("LOG_LEVEL", "DEBUG")]);
        let sts = |seen: &[Seen]| seen.iter().filter(|s| s.server == Server::Api).count() >= 2;
        assert!(front.standin.wait_for(SOON, sts), "no call to STS");
        let replies = pull_push_and_fail(&front);
        let failed = replies.iter().filter(|reply| reply.status >= 500).count();
        assert!(failed >= 8, "{failed} failures among {}", replies.len());
        front.proxy.term();
        front.proxy.wait_exit();
        let mut secrets = front.standin.secrets();
        secrets.extend(secrets_of(&front.standin.requests()));
        secrets.push(CLIENT_LOGIN["Basic ".len()..].to_owned());
        assert!(secrets.len() > 20, "only {} secrets", secrets.len());
        let log = front.proxy.log();
        assert!(log.lines().count() > 20, "{log}");
        let told: Vec<String> = replies.iter().map(text).collect();
        for secret in &secrets {
            assert!(!log.contains(secret.as_str()), "in the log: {secret}");
            let reply = told.iter().find(|told| told.contains(secret.as_str()));
            assert_eq!(reply, None, "in a reply: {secret}");
        }
    }
}

/// The value of a field in a line of the text format.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!(" {name}="))?;
    rest.split(' ').next()
}

/// The one line of a request.
fn request_line(front: &Front, id: &str) -> String {
    let mut found = None;
    wait_until("the request is in the log", SOON, || {
        let log = front.proxy.log();
        let of_it = |line: &&str| line.contains(id) && line.contains(" request method=");
        found = log.lines().find(of_it).map(str::to_owned);
        found.is_some()
    });
    found.expect("a line")
}

#[test]
fn each_request_has_one_line() {
    let front = Front::start();
    front.standin.put_image("team/app", "1.0", &[]);
    let blob = front.standin.add_blob("team/app", b"abcdefghij");
    let blob = format!("/v2/team/app/blobs/{blob}");
    front
        .standin
        .fault(Match::registry().path("/missing/"), Fault::CloseBeforeHead);
    front
        .standin
        .fault(Match::registry().path("/missing/"), Fault::CloseBeforeHead);
    let list = "/v2/team/app/tags/list?n=5&secret=x";
    let (tag, missing) = ("/v2/team/app/manifests/1.0", "/v2/missing/manifests/1");
    let cases = [
        ("GET", "/healthz", "200", "3", None),
        ("HEAD", tag, "200", "0", Some("200")),
        ("GET", &blob, "200", "10", Some("200")),
        ("GET", list, "200", "", Some("200")),
        ("GET", missing, "502", "", Some("transfer")),
        ("DELETE", "/v2/", "405", "", None),
    ];
    for (method, target, status, bytes, upstream) in cases {
        let reply = front.call(method, target, &[("X-Request-Id", "for ged")], b"");
        let id = reply.header("X-Request-Id").expect("an id").to_owned();
        assert_eq!(reply.all("X-Request-Id").count(), 1);
        assert_ne!(id, "for ged");
        let line = request_line(&front, &id);
        let level = match target {
            "/healthz" => "DEBUG",
            "/v2/missing/manifests/1" => "WARN",
            _ => "INFO",
        };
        assert!(line.contains(&format!(" {level} request ")), "{line}");
        let get = |name| field(&line, name);
        assert_eq!((get("method"), get("status")), (Some(method), Some(status)));
        let shown = target.replace("secret=x", "…");
        assert_eq!(get("path"), Some(shown.as_str()), "{line}");
        let length = if bytes.is_empty() {
            reply.length.to_string()
        } else {
            bytes.into()
        };
        assert_eq!(get("bytes"), Some(length.as_str()), "{line}");
        let told = get("upstream_status").or_else(|| get("upstream_fault"));
        assert_eq!(told, upstream, "{line}");
        let duration = get("duration_ms").and_then(|ms| ms.parse::<f64>().ok());
        assert!(
            duration.is_some_and(|ms| (0.0..20_000.0).contains(&ms)),
            "{line}"
        );
        assert!(
            get("peer").is_some_and(|peer| peer.starts_with("127.0.0.1:")),
            "{line}"
        );
        let of_it = |line: &&str| line.contains(&id) && line.contains(" request method=");
        assert_eq!(front.proxy.log().lines().filter(of_it).count(), 1);
    }
    for forged in front.seen(Server::Registry) {
        assert_ne!(forged.header("X-Request-Id"), Some("for ged"));
    }
}

#[test]
fn a_reply_that_was_cut_says_so_in_its_line() {
    let front = Front::start();
    let blob = front.standin.add_blob_of("team/app", 1 << 20, 8);
    front.standin.fault(Match::s3(), Fault::CutAfter(1000));
    let got = front
        .http()
        .try_request("GET", &format!("/v2/team/app/blobs/{blob}"), &[], b"");
    assert!(!got.is_ok_and(|got| got.complete));
    let line = front.proxy.wait_for_log(" aborted=");
    assert!(line.contains("cut: ") && line.contains("bytes="), "{line}");
}

#[test]
fn json_lines_are_json() {
    let mut front = Front::with(Options::default(), &[("LOG_FORMAT", "json")]);
    front.standin.put_image("team/app", "1.0", &[]);
    let got = front.get("/v2/team/app/manifests/1.0?x=%22%0a");
    let id = got.header("X-Request-Id").unwrap().to_owned();
    assert_eq!(front.get("/v2/A/manifests/1").status, 400);
    raw(front.address(), b"GET / HTTP/1.1\r\nX: \"\x01\r\n\r\n");
    raw(front.address(), b"\x16\x03\x01\x02\x00\r\n\r\n");
    front.proxy.term();
    assert!(front.proxy.wait_exit().success());
    let log = front.proxy.log();
    let mut requests = 0;
    for line in log.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for name in ["time", "level", "message"] {
            assert!(line[name].is_string(), "{line}");
        }
        if line["message"] != "request" {
            continue;
        }
        requests += 1;
        for name in ["method", "path", "peer", "id"] {
            assert!(line[name].is_string(), "{name} in {line}");
        }
        for name in ["duration_ms", "first_byte_ms"] {
            assert!(line[name].is_number(), "{name} in {line}");
        }
        assert!(line["status"].is_u64() && line["bytes"].is_u64(), "{line}");
        if line["id"] == id.as_str() {
            assert_eq!(line["path"], "/v2/team/app/manifests/1.0?…");
        }
    }
    // TLS at a plain port is no request.
    assert_eq!(requests, 3, "{log}");
}
