//! `RESOLVER`: names looked up by DNS servers that answer, are silent, refuse, or lie.

use std::time::{Duration, Instant};

use standin::{Dns, DnsBehaviour, Options, Standin};

use crate::support::{Front, Proxy, Response, SOON, Scratch, error_of, wait_until};

const NAME: &str = "registry.test";
const MANIFEST: &str = "/v2/team/app/manifests/1.0";
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
/// Longest wait for a server that is silent, in the first round.
const ONE_TRY: Duration = Duration::from_secs(1);

/// A proxy that knows its registry by name, and asks these servers for it.
fn front(servers: &[&Dns], further: &[(&str, &str)]) -> Front {
    let standin = Standin::start(Options::default());
    standin.put_image("team/app", "1.0", &[]);
    let addresses: Vec<String> = servers.iter().map(|dns| dns.address()).collect();
    let registry = standin.registry_url().replace("127.0.0.1", NAME);
    let resolver = addresses.join(",");
    let mut settings = vec![
        ("ECR", registry.as_str()),
        ("RESOLVER", &resolver),
        ("ALLOW_PLAIN_TOKEN", "true"),
    ];
    settings.extend_from_slice(further);
    let proxy = Proxy::in_front_of(&standin, &settings);
    Front { proxy, standin }
}

/// A server that knows the registry.
fn dns() -> Dns {
    let dns = Dns::start();
    dns.set(NAME, 60, &["127.0.0.1"]);
    dns
}

fn assert_reached(got: &Response) {
    assert_eq!(got.status, 200, "{}", got.text());
}

/// What the client is told when the name leads nowhere.
fn refusal(got: &Response) -> String {
    let (code, message) = error_of(got);
    assert_eq!(
        (got.status, code.as_str()),
        (504, "UNAVAILABLE"),
        "{message}"
    );
    assert!(
        message.contains("no address for registry.test: "),
        "{message}"
    );
    message
}

#[test]
fn a_name_is_asked_for_once_while_it_holds() {
    let dns = dns();
    let front = front(&[&dns], &[]);
    for _ in 0..3 {
        assert_reached(&front.get(MANIFEST));
    }
    let queries = dns.queries();
    let mut kinds: Vec<u16> = queries.iter().map(|query| query.kind).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [TYPE_A, TYPE_AAAA], "{queries:?}");
    assert!(queries.iter().all(|query| query.name == NAME && !query.tcp));
    assert_ne!(queries[0].port, queries[1].port);
}

#[test]
fn ids_and_ports_are_not_to_be_guessed() {
    let dns = dns();
    let fronts: Vec<Front> = (0..4).map(|_| front(&[&dns], &[])).collect();
    fronts
        .iter()
        .for_each(|front| assert_reached(&front.get(MANIFEST)));
    let queries = dns.queries();
    assert_eq!(queries.len(), 8);
    let distinct = |mut numbers: Vec<u16>| {
        numbers.sort_unstable();
        numbers.dedup();
        numbers.len()
    };
    // Two of 8 random numbers out of 65536 may be the same once in a while, but not three.
    assert!(distinct(queries.iter().map(|query| query.id).collect()) >= 7);
    assert!(distinct(queries.iter().map(|query| query.port).collect()) >= 7);
}

#[test]
fn addresses_and_localhost_are_not_asked_for() {
    let dns = dns();
    let front = front(&[&dns], &[]);
    let blob = front.standin.add_blob("team/app", b"on the blob host");
    let got = front.get(&format!("/v2/team/app/blobs/{blob}"));
    assert_eq!(got.digest, blob);
    assert!(front.standin.s3_url().contains("localhost"));
    let queries = dns.queries();
    assert!(
        queries.iter().all(|query| query.name == NAME),
        "{queries:?}"
    );
}

#[test]
fn an_answer_that_is_cut_is_fetched_by_tcp() {
    let dns = dns();
    dns.behave(DnsBehaviour::Truncated);
    let front = front(&[&dns], &[]);
    assert_reached(&front.get(MANIFEST));
    let tcp = dns.queries().iter().filter(|query| query.tcp).count();
    assert!((1..=2).contains(&tcp), "{:?}", dns.queries());
}

#[test]
fn without_tcp_the_next_server_is_asked() {
    for behaviour in [
        DnsBehaviour::TruncatedWithoutTcp,
        DnsBehaviour::TruncatedThenHalf,
    ] {
        let (bad, good) = (dns(), dns());
        bad.behave(behaviour);
        let front = front(&[&bad, &good], &[]);
        let asked = Instant::now();
        assert_reached(&front.get(MANIFEST));
        assert!(bad.count(NAME) >= 2 && good.count(NAME) == 2);
        assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    }
}

#[test]
fn after_servfail_or_garbage_the_next_server_is_asked_at_once() {
    for behaviour in [DnsBehaviour::Servfail, DnsBehaviour::Garbage] {
        let (bad, good) = (dns(), dns());
        bad.behave(behaviour);
        let front = front(&[&bad, &good], &[]);
        let asked = Instant::now();
        assert_reached(&front.get(MANIFEST));
        assert!(asked.elapsed() < ONE_TRY, "{:?}", asked.elapsed());
        assert_eq!((bad.count(NAME), good.count(NAME)), (2, 2));
    }
}

#[test]
fn after_silence_the_next_server_is_asked_and_from_then_on_first() {
    let (bad, good) = (dns(), dns());
    bad.behave(DnsBehaviour::Silent);
    good.set("api.test", 60, &["127.0.0.1"]);
    let standin = Standin::start(Options::default());
    standin.put_image("team/app", "1.0", &[]);
    let named = |url: String, name| url.replace("127.0.0.1", name);
    let settings = [
        ("ECR", named(standin.registry_url(), NAME)),
        ("AWS_ENDPOINT_URL", named(standin.api_url(), "api.test")),
        ("RESOLVER", format!("{},{}", bad.address(), good.address())),
        ("ALLOW_PLAIN_TOKEN", "true".to_owned()),
    ];
    let settings = settings
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let proxy = Proxy::in_front_of(&standin, &settings);
    let front = Front { proxy, standin };
    assert_reached(&front.get(MANIFEST));
    assert_eq!((good.count(NAME), good.count("api.test")), (2, 2));
    // One of the names found the silence; the other one did not ask there any more.
    let asked = bad.count(NAME) + bad.count("api.test");
    assert_eq!(asked, 2, "{:?}", bad.queries());
}

#[test]
fn a_server_that_is_not_there_is_passed_over() {
    let good = dns();
    let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = gone.local_addr().unwrap().to_string();
    drop(gone);
    let resolver = format!("{address},{}", good.address());
    let front = front(&[], &[("RESOLVER", &resolver)]);
    let asked = Instant::now();
    assert_reached(&front.get(MANIFEST));
    assert!(asked.elapsed() < ONE_TRY, "{:?}", asked.elapsed());
}

#[test]
fn a_family_that_is_never_answered_holds_nobody_up() {
    let dns = dns();
    dns.behave(DnsBehaviour::SilentToV6);
    let front = front(&[&dns], &[]);
    let asked = Instant::now();
    assert_reached(&front.get(MANIFEST));
    assert!(asked.elapsed() < ONE_TRY, "{:?}", asked.elapsed());
}

#[test]
fn lies_before_the_answer_are_ignored() {
    let dns = dns();
    dns.behave(DnsBehaviour::LiesFirst);
    let front = front(&[&dns], &[]);
    assert_reached(&front.get(MANIFEST));
    assert_eq!(dns.count(NAME), 2);
}

#[test]
fn an_answer_to_another_id_is_no_answer() {
    let dns = dns();
    dns.behave(DnsBehaviour::WrongId);
    let front = front(&[&dns], &[]);
    let asked = Instant::now();
    let message = refusal(&front.get(MANIFEST));
    assert!(
        message.contains(&format!("{}: no answer", dns.address())),
        "{message}"
    );
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
}

#[test]
fn a_name_that_does_not_exist_is_told_and_not_asked_for_again_at_once() {
    let dns = Dns::start();
    let front = front(&[&dns], &[]);
    for _ in 0..3 {
        let message = refusal(&front.get(MANIFEST));
        assert!(message.contains("know no address"), "{message}");
    }
    assert_eq!(dns.count(NAME), 2);
}

#[test]
fn what_all_servers_say_is_told() {
    let (one, other) = (Dns::start(), Dns::start());
    one.behave(DnsBehaviour::Servfail);
    other.behave(DnsBehaviour::Garbage);
    let front = front(&[&one, &other], &[]);
    let message = refusal(&front.get(MANIFEST));
    for told in [
        format!("{}: it answers SERVFAIL", one.address()),
        format!("{}: its answer cannot be read", other.address()),
    ] {
        assert!(message.contains(&told), "{message}");
    }
}

#[test]
fn aliases_lead_on() {
    let dns = Dns::start();
    dns.alias(NAME, 60, "alias.test");
    dns.alias("alias.test", 60, "host.test");
    dns.set("host.test", 60, &["127.0.0.1"]);
    let first = front(&[&dns], &[]);
    assert_reached(&first.get(MANIFEST));
    assert_eq!(dns.count("host.test"), 0);
    // Some servers leave the rest of the way to who asks.
    dns.answer_aliases_bare();
    let second = front(&[&dns], &[]);
    assert_reached(&second.get(MANIFEST));
    assert_eq!(dns.count("host.test"), 2);
    dns.alias("host.test", 60, NAME);
    let third = front(&[&dns], &[]);
    let message = refusal(&third.get(MANIFEST));
    assert!(message.contains("aliases in a row"), "{message}");
}

#[test]
fn all_addresses_are_tried() {
    let dns = Dns::start();
    // Nobody listens at the first three.
    let addresses = ["::1", "127.66.66.66", "127.66.66.67", "127.0.0.1"];
    dns.set(NAME, 60, &addresses);
    let front = front(&[&dns], &[]);
    assert_reached(&front.get(MANIFEST));
    // More than the HTTP client takes.
    let many: Vec<String> = (0..40).map(|n| format!("127.66.66.{}", 100 + n)).collect();
    let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
    many.insert(3, "127.0.0.1");
    dns.set("many.test", 60, &many);
    let registry = front
        .standin
        .registry_url()
        .replace("127.0.0.1", "many.test");
    let settings = [("ECR", registry.as_str()), ("UPSTREAM_AUTH", "none")];
    let of_many = self::front(&[&dns], &settings);
    // The other stand-in wants a token: reached it is all the same.
    assert_eq!(of_many.get(MANIFEST).status, 502);
    dns.set("nowhere.test", 60, &["127.66.66.66", "127.66.66.67"]);
    let registry = front
        .standin
        .registry_url()
        .replace("127.0.0.1", "nowhere.test");
    let nowhere = self::front(&[&dns], &[("ECR", &registry)]);
    let (_, message) = error_of(&nowhere.get(MANIFEST));
    for address in ["127.66.66.66:", "127.66.66.67:", "Connection refused"] {
        assert!(message.contains(address), "{message}");
    }
}

#[test]
fn a_name_outlives_its_name_server_but_not_its_end() {
    let dns = Dns::start();
    dns.set(NAME, 0, &["127.0.0.1"]);
    let front = front(&[&dns], &[]);
    let again = |asked: usize| {
        wait_until("the name is asked for again", SOON * 2, || {
            assert_reached(&front.get(MANIFEST));
            dns.count(NAME) > asked
        });
    };
    // A TTL of 0 does not mean a question per request.
    (0..5).for_each(|_| assert_reached(&front.get(MANIFEST)));
    assert_eq!(dns.count(NAME), 2);
    dns.behave(DnsBehaviour::Silent);
    again(2);
    let asked = Instant::now();
    (0..5).for_each(|_| assert_reached(&front.get(MANIFEST)));
    assert!(asked.elapsed() < SOON / 2, "{:?}", asked.elapsed());
    dns.behave(DnsBehaviour::Honest);
    dns.remove(NAME);
    wait_until("the name is gone", SOON * 2, || {
        front.get(MANIFEST).status == 504
    });
    refusal(&front.get(MANIFEST));
}

#[test]
fn the_cache_serves_when_no_name_is_found() {
    let scratch = Scratch::new();
    let dns = dns();
    let settings = [("CACHE_DIR", scratch.text()), ("CACHE_TAG_TTL", "0s")];
    let front = front(&[&dns], &settings);
    assert_reached(&front.get(MANIFEST));
    let registry = front.standin.registry_url().replace("127.0.0.1", NAME);
    let Front { proxy, standin } = front;
    drop(proxy);
    for behaviour in [DnsBehaviour::Servfail, DnsBehaviour::Silent] {
        dns.behave(behaviour);
        let resolver = dns.address();
        let mut again = vec![
            ("ECR", registry.as_str()),
            ("RESOLVER", &resolver),
            ("ALLOW_PLAIN_TOKEN", "true"),
        ];
        again.extend_from_slice(&settings);
        let proxy = Proxy::in_front_of(&standin, &again);
        let got = crate::support::Http::get_once(proxy.address(), MANIFEST);
        assert_reached(&got);
        assert_eq!(got.header("X-Cache"), Some("STALE"));
        let warning = got.header("Warning").unwrap_or_default();
        assert!(
            warning.contains("no address for registry.test"),
            "{warning}"
        );
    }
}
