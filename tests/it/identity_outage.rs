//! What goes on while the identity fails: pulls with the token at hand, then cached images; and a
//! pull under which everything is replaced.

use standin::{Fault, Layer, Match, Options, Role, Server, Standin};

use crate::support::{Front, Proxy, SOON, Scratch, error_of, wait_until};

const CACHED: &str = "/v2/team/cached/manifests/1.0";
const FRESH: &str = "/v2/team/fresh/manifests/1.0";
const LATE: &str = "/v2/team/late/manifests/1.0";
const WEB_TOKEN: &str = "web.identity.token";

/// A proxy with a cache, whose identity is a role assumed with a web identity.
fn front(folder: &Scratch) -> Front {
    let standin = Standin::start(Options::default());
    let role = Role {
        web_identity_token: Some(WEB_TOKEN.into()),
        ..Role::named("puller")
    };
    let arn = role.arn.clone();
    standin.add_role(role);
    let token = folder.path().join("token");
    std::fs::write(&token, WEB_TOKEN).unwrap();
    let cache = folder.path().join("cache");
    let settings = [
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ROLE_ARN", &arn),
        ("CACHE_DIR", cache.to_str().unwrap()),
        ("CACHE_TAG_TTL", "0s"),
    ];
    let proxy = Proxy::in_front_of(&standin, &settings);
    Front { proxy, standin }
}

#[test]
fn the_token_ends_while_sts_is_down() {
    let folder = Scratch::new();
    let front = front(&folder);
    let layer = || [Layer::of_files(&[("hello", b"hi")])];
    let image = front.standin.put_image("team/cached", "1.0", &layer());
    front.standin.put_image("team/fresh", "1.0", &[]);
    front.standin.put_image("team/late", "1.0", &[]);
    let blob = format!("/v2/team/cached/blobs/{}", image.layers[0]);
    assert_eq!(front.get(CACHED).status, 200);
    assert_eq!(front.get(&blob).status, 200);
    front.proxy.wait_for_log(" identity ");
    // STS and ECR's API are gone, and so is the session.
    front.standin.down(Server::Api);
    front.standin.expire_sessions();
    assert_eq!(front.get(FRESH).status, 200, "the token goes on");
    assert_eq!(front.get(CACHED).header("X-Cache"), Some("REVALIDATED"));
    // The token ends, too: what is cached serves, what is not is told of.
    front.standin.expire_tokens();
    let got = front.get(CACHED);
    assert_eq!((got.status, got.header("X-Cache")), (200, Some("STALE")));
    assert_eq!(front.get(&blob).status, 200);
    let got = front.get(LATE);
    assert_eq!(got.status, 502, "{}", got.text());
    let (_, message) = error_of(&got);
    let words = [
        "GetAuthorizationToken failed in eu-west-1 via web identity, role ",
        "check network",
    ];
    for word in words {
        assert!(message.contains(word), "no {word:?} in {message}");
    }
    let ready = front.get("/readyz");
    assert_eq!(ready.status, 200);
    assert!(
        ready
            .text()
            .contains("; not renewed: GetAuthorizationToken failed"),
        "{}",
        ready.text()
    );
    // STS is back: nobody has to do anything.
    front.standin.up(Server::Api);
    wait_until("a pull of what is not cached", SOON, || {
        front.get(LATE).status == 200
    });
    assert!(!front.get("/readyz").text().contains("not renewed"));
}

#[test]
fn credentials_rotate_under_a_running_pull() {
    let folder = Scratch::new();
    let keys = folder.path().join("credentials");
    let write = |id: &str, secret: &str| {
        let text = format!("[default]\naws_access_key_id={id}\naws_secret_access_key={secret}\n");
        std::fs::write(&keys, text).unwrap();
    };
    write("AKIDSTANDIN", "standin/secret+access+key");
    let standin = Standin::start(Options::default());
    standin.put_image("team/late", "1.0", &[]);
    let blob = standin.add_blob_of("team/app", 8 << 20, 7);
    let settings = [
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_SHARED_CREDENTIALS_FILE", keys.to_str().unwrap()),
    ];
    let proxy = Proxy::in_front_of(&standin, &settings);
    let front = Front { proxy, standin };
    front.proxy.wait_for_log(" identity ");
    front.standin.fault(Match::s3(), Fault::StallAfter(1 << 20));
    std::thread::scope(|scope| {
        let pull = scope.spawn(|| front.get(&format!("/v2/team/app/blobs/{blob}")));
        wait_until("a pull half-way", SOON, || front.standin.stalled() == 1);
        front
            .standin
            .add_key("second", "AKIDSECOND", "the/second+secret");
        front.standin.remove_key("AKIDSTANDIN");
        write("AKIDSECOND", "the/second+secret");
        front.standin.expire_tokens();
        assert_eq!(front.get(LATE).status, 200, "a pull beside it");
        front.standin.release();
        let got = pull.join().unwrap();
        assert_eq!((got.status, got.digest.as_str()), (200, blob.as_str()));
    });
    assert_eq!(front.token_calls(), 2);
    // Another key, perhaps another identity: told again.
    let second = "arn:aws:iam::123456789012:user/second";
    front.proxy.wait_for_log(second);
    wait_until("/readyz names it", SOON, || {
        front.get("/readyz").text().contains(second)
    });
}

/// Boots before the network: the source of credentials, or AWS, refuses or is out of reach.
fn boots_before(settings: &[(&str, &str)], standin: Standin, back: impl FnOnce(&Standin)) {
    standin.put_image("team/app", "1.0", &[]);
    let proxy = Proxy::in_front_of(&standin, settings);
    let front = Front { proxy, standin };
    let image = "/v2/team/app/manifests/1.0";
    let got = front.get(image);
    assert!([502, 503].contains(&got.status), "{}", got.text());
    let calls = front.token_calls();
    (0..20).for_each(|_| assert!(front.get(image).status >= 500));
    assert!(front.token_calls() - calls < 20, "not one call a request");
    back(&front.standin);
    // Its own pause is longer than this.
    wait_until("a pull after it is back", SOON, || {
        front.get(image).status == 200
    });
}

#[test]
fn a_host_that_boots_before_its_network_pulls_as_soon_as_it_is_there() {
    let standin = Standin::start(Options::default());
    standin.down(Server::Api);
    boots_before(&[], standin, |standin| standin.up(Server::Api));
}

#[test]
fn a_refusal_that_has_been_mended_is_noticed_by_the_next_pull() {
    let standin = Standin::start(Options::default());
    let denied = Fault::aws_error(400, "AccessDeniedException", "not yet");
    standin.fault(Match::api().always(), denied);
    boots_before(&[], standin, Standin::clear_faults);
}

#[test]
fn an_instance_whose_role_comes_late_pulls_as_soon_as_it_is_there() {
    let standin = Standin::start(Options {
        session_token: Some("temporary+session/token==".into()),
        ..Options::default()
    });
    standin.fault(
        Match::metadata().always(),
        Fault::Status(403, Vec::new(), Vec::new()),
    );
    let endpoint = standin.metadata_url();
    let settings = [
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str()),
    ];
    boots_before(&settings, standin, Standin::clear_faults);
}
