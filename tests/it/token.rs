//! Tokens: fetched once, renewed once when refused, and what clients and probes are told when
//! there is none.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use standin::{Dns, Fault, Match, Options, Seen, Server, Standin};

use crate::support::{Cached, Front, Proxy, Response, SOON, Scratch, error_of, wait_until};

const MANIFEST: &str = "/v2/team/app/manifests/1.0";

fn front(options: Options) -> Front {
    let front = Front::with(options, &[]);
    front.standin.put_image("team/app", "1.0", &[]);
    front
}

fn is_ready(front: &Front) -> bool {
    front.get("/readyz").status == 200
}

/// A proxy with some of the stand-in's settings changed; an empty value leaves a setting out.
fn front_without(options: Options, changed: &[(&str, &str)]) -> Front {
    let front = Front::with(options, changed);
    front.standin.put_image("team/app", "1.0", &[]);
    front
}

#[test]
fn one_token_serves_many_pulls() {
    let front = front(Options::default());
    let mut http = front.http();
    for _ in 0..30 {
        assert_eq!(http.get(MANIFEST).status, 200);
    }
    assert_eq!(front.token_calls(), 1);
    let ready = front.get("/readyz");
    assert_eq!(ready.status, 200);
    // Who we are is asked once, and never in the way of a pull.
    let line = front.proxy.wait_for_log("identity");
    assert!(
        line.contains("arn:aws:iam::123456789012:user/stand-in"),
        "{line}"
    );
    let apis = front.seen(Server::Api).len();
    assert_eq!(apis, 2, "one call to ECR and one to STS");
}

#[test]
fn bug_an_answer_of_aws_could_be_a_megabyte_of_json() {
    let standin = Standin::start(Options::default());
    let long = format!("{{\"authorizationData\":[{}0]}}", "0,".repeat(70_000));
    let fault = Fault::Status(200, Vec::new(), long.into_bytes());
    standin.fault(Match::api().path("GetAuthorizationToken"), fault);
    let proxy = Proxy::in_front_of(&standin, &[]);
    proxy.wait_for_log("reply is over 131072 bytes");
    let front = Front { proxy, standin };
    front.standin.put_image("team/app", "1.0", &[]);
    wait_until("the next try", SOON, || front.get(MANIFEST).status == 200);
}

#[test]
fn an_unknown_identity_stops_nothing() {
    let standin = Standin::start(Options::default());
    let pick = Match::api().path("GetCallerIdentity").always();
    standin.fault(pick, Fault::status(403));
    let proxy = Proxy::in_front_of(&standin, &[]);
    let front = Front { proxy, standin };
    front.standin.put_image("team/app", "1.0", &[]);
    front.proxy.wait_for_log("identity unknown");
    assert_eq!(front.get(MANIFEST).status, 200);
    assert!(is_ready(&front));
}

#[test]
fn a_refused_token_is_renewed_once_and_the_pull_succeeds() {
    for refuse in [Standin::expire_tokens, Standin::forget_tokens] {
        let front = front(Options::default());
        let blob = front.standin.add_blob("team/app", b"abc");
        assert_eq!(front.get(MANIFEST).status, 200);
        refuse(&front.standin);
        let got = front.get(&format!("/v2/team/app/blobs/{blob}"));
        assert_eq!((got.status, got.digest.as_str()), (200, blob.as_str()));
        assert_eq!(front.get(MANIFEST).status, 200);
        assert_eq!(front.head(MANIFEST).status, 200);
        assert_eq!(front.token_calls(), 2);
        // A renewal takes effect for requests that are repeated, too: here a POST without a body.
        std::thread::sleep(Duration::from_millis(1100));
        refuse(&front.standin);
        let begun = front.call("POST", "/v2/new/blobs/uploads/", &[], b"");
        assert_eq!((begun.status, front.token_calls()), (202, 3));
        assert_eq!(front.standin.open_uploads(), 1);
    }
}

#[test]
fn a_head_with_an_expired_token_renews_it() {
    // Its 403 has no body that could say so.
    let front = front(Options::default());
    assert_eq!(front.head(MANIFEST).status, 200);
    front.standin.expire_tokens();
    assert_eq!(front.head(MANIFEST).status, 200);
    assert_eq!(front.token_calls(), 2);
    // One that is refused for other reasons is an answer.
    let why = "User: arn:aws:iam::1:user/x is not authorized to perform: ecr:BatchGetImage";
    let denied = Fault::registry_error(403, "DENIED", why);
    front.standin.fault(Match::registry().times(2), denied);
    assert_eq!(front.head(MANIFEST).status, 403);
    assert_eq!(
        (front.token_calls(), front.standin.pending_faults()),
        (2, 0)
    );
}

#[test]
fn bug_a_head_with_an_expired_token_was_passed_on_as_refused() {
    let refused = |seen: &[Seen]| seen.iter().filter(|s| s.status == Some(403)).count();
    for cache in ["off", ""] {
        let options = Options::default();
        let settings = [("CACHE_DIR", cache), ("CACHE_TAG_TTL", "0s")];
        let settings = if cache.is_empty() {
            &settings[1..]
        } else {
            &settings
        };
        let cached = Cached::on(Scratch::new(), options, settings);
        let image = cached.standin.put_image("team/app", "1.0", &[]);
        assert_eq!(cached.get(MANIFEST).status, 200);
        for target in [MANIFEST, &format!("/v2/team/app/blobs/{}", image.config)] {
            std::thread::sleep(Duration::from_millis(1100));
            cached.standin.expire_tokens();
            let head = cached.head(target);
            assert_eq!(head.status, 200, "{target}");
            assert_ne!(head.header("X-Cache"), Some("STALE"), "{target}");
        }
        // A HEAD of what may not be seen costs a look at the reason, and no new token.
        let tokens = cached.seen(Server::Api).len();
        let denied = Fault::registry_error(403, "DENIED", "not authorized to perform: ecr:X");
        let pick = Match::registry().path("/v2/secret/").always();
        cached.standin.fault(pick, denied);
        let before = refused(&cached.standin.requests());
        assert_eq!(
            cached
                .head(&format!("/v2/secret/blobs/{}", image.config))
                .status,
            403
        );
        assert_eq!(refused(&cached.standin.requests()), before + 2);
        assert_eq!(cached.seen(Server::Api).len(), tokens);
    }
}

#[test]
fn a_hundred_pulls_with_an_expired_token_renew_it_once() {
    let front = front(Options::default());
    assert_eq!(front.get(MANIFEST).status, 200);
    front.standin.expire_tokens();
    // No refusal is read to its end before all hundred are there.
    let refusals = Match::registry().times(100);
    front.standin.fault(refusals, Fault::StallAfter(0));
    let failed: Vec<Response> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..100)
            .map(|_| scope.spawn(|| front.get(MANIFEST)))
            .collect();
        wait_until("a hundred refusals", SOON, || {
            front.standin.stalled() == 100
        });
        assert_eq!(front.token_calls(), 1);
        front.standin.release();
        let replies = pulls.into_iter().map(|pull| pull.join().unwrap());
        replies.filter(|reply| reply.status != 200).collect()
    });
    assert!(failed.is_empty(), "{}: {}", failed.len(), failed[0].text());
    assert_eq!(front.token_calls(), 2);
    let seen = front.seen(Server::Registry);
    let refused = seen.iter().filter(|seen| seen.status == Some(403)).count();
    assert_eq!((refused, seen.len()), (100, 1 + 100 + 100));
}

/// A proxy in front of ECR Public, which is known by its name.
fn public_front(dns: &Dns) -> Front {
    let standin = Standin::start(Options {
        public: true,
        region: "us-east-1".into(),
        ..Options::default()
    });
    standin.put_image("team/app", "1.0", &[]);
    dns.set("public.ecr.aws", 60, &["127.0.0.1"]);
    let registry = standin
        .registry_url()
        .replace("127.0.0.1", "public.ecr.aws");
    let settings = [
        ("ECR", registry.as_str()),
        ("RESOLVER", &dns.address()),
        ("ALLOW_PLAIN_TOKEN", "true"),
        ("AWS_REGION", "eu-west-1"),
        // Who we are is asked nearer by, where the stand-in is not.
        ("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1"),
    ];
    let proxy = Proxy::in_front_of(&standin, &settings);
    Front { proxy, standin }
}

#[test]
fn a_400_of_ecr_public_renews_the_token_once_too() {
    let dns = Dns::start();
    let front = public_front(&dns);
    assert_eq!(front.get(MANIFEST).status, 200);
    front.standin.expire_tokens();
    assert_eq!(front.get(MANIFEST).status, 200);
    assert_eq!(front.token_calls(), 2);
    let seen = front.seen(Server::Registry);
    let refused = seen.iter().filter(|seen| seen.status == Some(400)).count();
    assert_eq!(refused, 1);
    for seen in seen {
        assert!(seen.header("Authorization").unwrap().starts_with("Bearer "));
    }
}

#[test]
fn a_400_of_another_registry_is_an_answer() {
    let front = front(Options::default());
    front
        .standin
        .fault(Match::registry(), Fault::PublicExpired400);
    assert_eq!(front.get(MANIFEST).status, 400);
    assert_eq!(front.token_calls(), 1);
}

#[test]
fn a_registry_that_refuses_every_token_is_told_of_and_not_asked_in_a_loop() {
    for fault in [Fault::Unauthorized401, Fault::ExpiredToken403] {
        let front = front(Options::default());
        front.standin.fault(Match::registry().always(), fault);
        let mut http = front.http();
        for _ in 0..20 {
            let got = http.get(MANIFEST);
            assert_eq!(got.status, 502, "{}", got.text());
            assert_eq!(got.header("WWW-Authenticate"), None);
            let (code, message) = error_of(&got);
            assert_eq!(code, "UNAVAILABLE");
            assert!(message.contains("40"), "{message}");
            assert!(message.contains("check "), "{message}");
        }
        assert!(front.token_calls() <= 4, "{} calls", front.token_calls());
        let asked = front.seen(Server::Registry).len();
        assert!(asked <= 40, "{asked} requests for 20 pulls");
        let upload = front.call("PUT", "/v2/new/manifests/1", &[], b"{}");
        assert!(matches!(upload.status, 502 | 503), "{}", upload.text());
        assert_eq!(upload.header("WWW-Authenticate"), None);
    }
}

#[test]
fn pulls_that_come_before_the_first_token_share_it() {
    let standin = Standin::start(Options::default());
    standin.put_image("team/app", "1.0", &[]);
    let pick = Match::api().path("GetAuthorizationToken");
    standin.fault(pick, Fault::StallAfter(10));
    let proxy = Proxy::in_front_of(&standin, &[]);
    let front = Front { proxy, standin };
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| assert_eq!(front.get(MANIFEST).status, 200));
        }
        assert_eq!(front.get("/readyz").status, 503);
        let waiting = || front.proxy.thread_names();
        wait_until("all of them wait", SOON, || {
            waiting()
                .iter()
                .filter(|name| name.starts_with("conn-"))
                .count()
                >= 50
        });
        assert!(front.seen(Server::Registry).is_empty());
        front.standin.release();
    });
    assert_eq!(front.token_calls(), 1);
}

#[test]
fn a_refusal_of_another_kind_is_an_answer() {
    let front = front(Options::default());
    let why = "User: arn:aws:iam::1:user/x is not authorized to perform: ecr:BatchGetImage";
    let denied = Fault::registry_error(403, "DENIED", why);
    front.standin.fault(Match::registry().times(4), denied);
    for _ in 0..3 {
        let got = front.get(MANIFEST);
        assert_eq!(got.status, 403);
        assert_eq!(error_of(&got), ("DENIED".to_owned(), why.to_owned()));
    }
    assert_eq!(front.head(MANIFEST).status, 403);
    assert_eq!(front.get(MANIFEST).status, 200);
    assert_eq!(front.token_calls(), 1);
}

#[test]
fn an_expiry_in_the_past_is_no_reason_for_a_loop() {
    // As moto says it: 2015-01-01.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let token_life = 1_420_070_400 - i64::try_from(now).unwrap();
    for token_life in [token_life, 0, 1] {
        let front = front(Options {
            token_life,
            ..Options::default()
        });
        let mut http = front.http();
        for _ in 0..50 {
            assert_eq!(http.get(MANIFEST).status, 200);
        }
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(http.get(MANIFEST).status, 200);
        assert!(front.token_calls() <= 2, "{} calls", front.token_calls());
    }
}

#[test]
fn tokens_of_any_length_and_with_a_line_feed_are_used() {
    for (token_bytes, token_newline) in [(5 * 1024, false), (0, true), (20 * 1024, true)] {
        let front = front(Options {
            token_bytes,
            token_newline,
            ..Options::default()
        });
        assert_eq!(front.get(MANIFEST).status, 200);
        let seen = front.seen(Server::Registry).pop().unwrap();
        assert!(seen.header("Authorization").unwrap().len() > token_bytes);
    }
}

#[test]
fn a_clock_that_is_a_day_off_is_corrected() {
    for clock_skew in [86_400, -86_400] {
        let front = front(Options {
            clock_skew,
            ..Options::default()
        });
        assert_eq!(front.get(MANIFEST).status, 200);
        assert!(is_ready(&front));
        // The refused one and the corrected one, then STS at the first try.
        assert_eq!(front.token_calls(), 2);
        let told = front.proxy.wait_for_log("clock differs from AWS's");
        let seconds = if clock_skew > 0 {
            "seconds=86"
        } else {
            "seconds=-86"
        };
        assert!(told.contains(seconds), "{told}");
        front
            .proxy
            .wait_for_log("arn:aws:iam::123456789012:user/stand-in");
    }
}

#[test]
fn temporary_credentials_bring_their_session_token() {
    let with_token = || Options {
        session_token: Some("session+token/secret==".into()),
        ..Options::default()
    };
    assert_eq!(front(with_token()).get(MANIFEST).status, 200);
    let front = front_without(with_token(), &[("AWS_SESSION_TOKEN", "another")]);
    let got = front.get(MANIFEST);
    assert_eq!(got.status, 503);
    assert!(
        got.text().contains("UnrecognizedClientException"),
        "{}",
        got.text()
    );
}

#[test]
fn without_credentials_it_starts_and_says_what_to_set() {
    let none = [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")];
    let front = front_without(Options::default(), &none);
    assert_eq!(front.get("/healthz").status, 200);
    assert_eq!(front.get("/v2/").status, 200);
    front.proxy.wait_for_log("no new ECR token");
    let ready = front.get("/readyz");
    assert_eq!(ready.status, 503);
    let pull = front.get(MANIFEST);
    assert_eq!(pull.status, 503);
    assert!(pull.header("Retry-After").is_some());
    let upload = front.call("POST", "/v2/new/blobs/uploads/", &[], b"");
    assert_eq!(upload.status, 503);
    for text in [ready.text(), error_of(&pull).1, error_of(&upload).1] {
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
            assert!(text.contains(name), "{text}");
        }
    }
    assert!(front.standin.requests().is_empty());
}

#[test]
fn a_wrong_secret_is_named_by_its_code() {
    let wrong = [("AWS_SECRET_ACCESS_KEY", "wrong/secret+key")];
    let front = front_without(Options::default(), &wrong);
    let got = front.get(MANIFEST);
    assert_eq!(got.status, 503);
    let (_, message) = error_of(&got);
    assert!(message.contains("InvalidSignatureException"), "{message}");
    assert!(message.contains("check the secret access key"), "{message}");
    assert_eq!(got.header("WWW-Authenticate"), None);
    for _ in 0..10 {
        assert_eq!(front.get(MANIFEST).status, 503);
    }
    assert_eq!(front.get("/readyz").status, 503);
    assert_eq!(front.get("/healthz").status, 200);
    assert!(front.token_calls() <= 3, "{} calls", front.token_calls());
    assert!(front.seen(Server::Registry).is_empty());
}

#[test]
fn it_becomes_ready_by_itself_when_aws_is_back() {
    let standin = Standin::start(Options::default());
    standin.put_image("team/app", "1.0", &[]);
    standin.down(Server::Api);
    let proxy = Proxy::in_front_of(&standin, &[]);
    let front = Front { proxy, standin };
    front.proxy.wait_for_log("no new ECR token");
    let ready = front.get("/readyz");
    assert_eq!(ready.status, 503);
    assert_eq!(front.get("/healthz").status, 200);
    assert_eq!(front.get(MANIFEST).status, 503);
    front.standin.up(Server::Api);
    wait_until("the proxy is ready", SOON, || is_ready(&front));
    assert_eq!(front.get(MANIFEST).status, 200);
}

#[test]
fn an_old_token_serves_while_aws_is_out_of_reach() {
    let front = front_without(Options::default(), &[("RENEW_INTERVAL_HOURS", "0.01")]);
    assert_eq!(front.get(MANIFEST).status, 200);
    front.standin.down(Server::Api);
    assert_eq!(front.get(MANIFEST).status, 200);
    // Refused by the registry as well, it can serve no longer; the reply says why.
    front.standin.expire_tokens();
    let got = front.get(MANIFEST);
    assert_eq!(got.status, 502);
    assert_eq!(got.header("WWW-Authenticate"), None);
    assert!(
        error_of(&got).1.contains("GetAuthorizationToken"),
        "{}",
        got.text()
    );
}

#[test]
fn without_ecr_the_registry_is_the_one_that_the_token_names() {
    let front = front_without(Options::default(), &[("ECR", "")]);
    let got = front.get(MANIFEST);
    assert_eq!(got.status, 200, "{}", got.text());
    assert!(is_ready(&front));
    assert_eq!(front.token_calls(), 1);
    let standin = Standin::start(Options::default());
    standin.down(Server::Api);
    let proxy = Proxy::in_front_of(&standin, &[("ECR", "")]);
    proxy.wait_for_log("no new ECR token");
    let front = Front { proxy, standin };
    assert_eq!(front.get(MANIFEST).status, 503);
}

#[test]
fn another_proxy_needs_no_token() {
    let open = Options {
        demand_token: false,
        ..Options::default()
    };
    let front = front_without(open, &[("UPSTREAM_AUTH", "none")]);
    assert_eq!(front.get(MANIFEST).status, 200);
    assert!(is_ready(&front));
    assert!(front.seen(Server::Api).is_empty());
    let seen = front.seen(Server::Registry).pop().unwrap();
    assert_eq!(seen.header("Authorization"), None);
    front
        .standin
        .fault(Match::registry(), Fault::Unauthorized401);
    let got = front.get(MANIFEST);
    assert_eq!((got.status, got.header("WWW-Authenticate")), (502, None));
    assert!(error_of(&got).1.contains("UPSTREAM_AUTH"), "{}", got.text());
}

#[test]
fn faults_of_the_api_pass_and_are_told_meanwhile() {
    for fault in [
        Fault::aws_error(400, "ThrottlingException", "Rate exceeded"),
        Fault::aws_error(500, "ServerException", "again"),
        Fault::status(503),
        Fault::Status(200, Vec::new(), b"{\"authorizationData\":[]}".to_vec()),
        Fault::Status(200, Vec::new(), b"no json".to_vec()),
        Fault::Status(200, Vec::new(), vec![b' '; 3 << 20]),
        Fault::CutAfter(20),
        Fault::CloseBeforeHead,
        Fault::garbage_head(),
    ] {
        let standin = Standin::start(Options::default());
        standin.put_image("team/app", "1.0", &[]);
        standin.fault(Match::api(), fault.clone());
        let proxy = Proxy::in_front_of(&standin, &[]);
        let front = Front { proxy, standin };
        // In `/readyz` too, until the next try, which may have come by now.
        front.proxy.wait_for_log("no new ECR token");
        front.proxy.wait_for_log("error=\"GetAuthorizationToken");
        if matches!(fault, Fault::Status(200, ..)) {
            // Whether that mends itself is not ours to say.
            continue;
        }
        wait_until("the proxy is ready", SOON, || is_ready(&front));
        assert_eq!(front.get(MANIFEST).status, 200, "{fault:?}");
    }
}

#[test]
fn an_endpoint_that_is_no_registry_is_told() {
    for proxy_endpoint in [
        "garbage /x",
        "",
        // Tokens would leave in clear, or to an address.
        "http://registry.example:5000",
        "http://169.254.169.254",
        "https://10.1.2.3",
    ] {
        let options = Options {
            proxy_endpoint: Some(proxy_endpoint.into()),
            ..Options::default()
        };
        let front = front_without(options, &[("ECR", "")]);
        let got = front.get(MANIFEST);
        assert_eq!(got.status, 503);
        assert!(error_of(&got).1.contains("set ECR"), "{}", got.text());
    }
}

#[test]
fn no_message_of_aws_shows_a_secret_in_any_form() {
    let front = front(Options::default());
    assert_eq!(front.get(MANIFEST).status, 200);
    let secrets = known_secrets(&front);
    let encoded: Vec<String> = secrets.iter().map(|s| encoded(s)).collect();
    let all = [secrets.clone(), encoded].concat();
    // Some stand behind more than anybody reads, and some across the end of what is passed on.
    let far = format!("{} {}", "far ".repeat(17_000), all.join(" "));
    let cut = format!("{}{}", "x ".repeat(145), all.join(" "));
    for message in [all.join(", "), far, cut] {
        front.standin.expire_tokens();
        let fault = Fault::aws_error(400, "AccessDeniedException", &message);
        front.standin.fault(Match::api().always(), fault);
        let got = front.get(MANIFEST);
        assert_ne!(got.status, 200);
        let log = front.proxy.log();
        for secret in &all {
            assert!(!got.text().contains(secret.as_str()), "{secret} in a reply");
            assert!(!log.contains(secret.as_str()), "{secret} in the log");
        }
        front.standin.clear_faults();
        wait_until("a pull", SOON, || front.get(MANIFEST).status == 200);
    }
}

/// The secrets that the proxy knows: its key, and tokens with what they hold.
fn known_secrets(front: &Front) -> Vec<String> {
    let sent = front.seen(Server::Registry);
    let is_sent = |token: &str| {
        let value = format!("Basic {token}");
        let mut sent = sent.iter();
        sent.any(|seen| seen.header("Authorization") == Some(value.as_str()))
    };
    let mut secrets = vec![Options::default().secret_access_key];
    // Each token stands behind its password.
    for pair in front.standin.secrets().windows(2) {
        if is_sent(&pair[1]) {
            secrets.extend_from_slice(pair);
            secrets.push(format!("AWS:{}", pair[0]));
        }
    }
    assert!(secrets.len() >= 4);
    secrets
}

fn encoded(text: &str) -> String {
    let byte = |b: u8| match b {
        b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    };
    text.bytes().map(byte).collect()
}
