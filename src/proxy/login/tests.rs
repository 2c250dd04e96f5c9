//! Tests of logins: who is known, who is refused, who has to wait, and what a reload changes.

use super::*;
use crate::clock::ManualClock;
use crate::message::{Body, Certificate, Entrance, Headers, Peer, RequestBody};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::SystemTime;

// Made by `htpasswd -nbB -C 4`.
const ALICE: &str = "alice:$2y$04$tJBiJ7GRyAeQAAUt4r3xBO4PxvUfKr.f4..LKnYDQkK971koJHPLG";
const BOB: &str = "bob:$2y$04$ls2ZlFzd1.XVO084NzckyeHSB6wWJWCl9jWoYpYbyco47P85ZBtRm";
const RIGHT: &str = "alice:open sesame";
const RIGHT_TOO: &str = "bob:pässwörd";

/// Logins from a file of their own.
struct Rig {
    path: PathBuf,
    clock: Arc<ManualClock>,
    logins: Arc<Logins>,
}

impl Rig {
    fn new(text: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/unit");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("htpasswd-{}-{number}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let clock = Arc::new(ManualClock::at(SystemTime::UNIX_EPOCH));
        let logins = Logins::open(&path, Arc::clone(&clock) as Arc<dyn Clock>);
        let logins = Arc::new(logins.unwrap_or_else(|why| panic!("{why}")));
        Self {
            path,
            clock,
            logins,
        }
    }

    /// Puts another file in its place, as `mv` does.
    fn replace(&self, text: &str) {
        let new = self.path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &self.path).unwrap();
    }

    fn attempt(&self, pair: &str) -> Result<Option<LoginAttempt>, LoginRefusal> {
        match self.logins.judge_request(&request(pair, "10.0.0.1")) {
            LoginVerdict::Right(_) => Ok(None),
            LoginVerdict::Refused(refusal) => Err(refusal),
            LoginVerdict::Unproved(attempt) => Ok(Some(attempt)),
        }
    }

    /// The status a client gets, 200 when it may come in.
    fn log_in(&self, pair: &str) -> u16 {
        let attempt = match self.attempt(pair) {
            Ok(Some(attempt)) => attempt,
            Ok(None) => return 200,
            Err(refusal) => return refusal.into_reply().status,
        };
        let proved = self.logins.prove(&attempt, Instant::now());
        proved.map_or_else(|refusal| refusal.into_reply().status, |()| 200)
    }

    fn is_known(&self, pair: &str) -> bool {
        matches!(self.attempt(pair), Ok(None))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn request(pair: &str, peer: &str) -> Request {
    let value = format!("Basic {}", STANDARD.encode(pair));
    Request {
        headers: Headers::from_iter([("Authorization", value)]),
        ..bare(peer)
    }
}

fn bare(peer: &str) -> Request {
    Request {
        method: "GET".into(),
        target: "/v2/".into(),
        headers: Headers::new(),
        peer: Peer {
            address: Some(peer.parse().unwrap()),
            port: 1,
            tls: false,
            certificate: Certificate::NotAsked,
            entrance: Entrance::Main,
        },
        id: "1".into(),
    }
}

fn text(reply: &Reply) -> String {
    let Body::Bytes(bytes) = &reply.body else {
        panic!("a document");
    };
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn without_a_login_there_is_a_challenge() {
    let rig = Rig::new(ALICE);
    let mut malformed = bare("10.0.0.1");
    malformed.headers.set("Authorization", "Bearer x");
    for request in [bare("10.0.0.1"), malformed] {
        let LoginVerdict::Refused(refusal) = rig.logins.judge_request(&request) else {
            panic!("let in");
        };
        let reply = refusal.into_reply();
        assert_eq!(reply.status, 401);
        assert_eq!(
            reply.headers.first("WWW-Authenticate"),
            Some("Basic realm=\"aws-ecr-proxy\", charset=\"UTF-8\"")
        );
        assert!(text(&reply).contains("\"UNAUTHORIZED\""));
    }
}

#[test]
fn a_proved_login_is_known_at_once() {
    let rig = Rig::new(ALICE);
    assert!(!rig.is_known(RIGHT));
    assert_eq!(rig.log_in(RIGHT), 200);
    assert!(rig.is_known(RIGHT));
    assert!(!rig.is_known("alice:open sesam") && !rig.is_known("alice2:open sesame"));
}

#[test]
fn wrong_names_and_wrong_passwords_look_alike_to_the_client() {
    let rig = Rig::new(ALICE);
    let refuse = |pair| {
        let attempt = rig.attempt(pair).unwrap().unwrap();
        rig.logins
            .prove(&attempt, Instant::now())
            .unwrap_err()
            .into_reply()
    };
    let (password, name) = (refuse("alice:wrong"), refuse("hunter2:open sesame"));
    assert_eq!((password.status, name.status), (401, 401));
    assert_eq!(password.headers, name.headers);
    assert_eq!(text(&password), text(&name));
    let why = |reply: Reply| reply.outcome.error.unwrap();
    assert_eq!(why(password), "wrong password for alice");
    // It may be somebody's password.
    assert_eq!(why(name), "unknown user");
    assert!(!rig.is_known("alice:wrong"));
}

#[test]
fn bcrypt_is_left_to_the_connections_own_thread() {
    let rig = Rig::new(ALICE);
    let passed = Arc::new(AtomicUsize::new(0));
    let then = || {
        let passed = Arc::clone(&passed);
        move || {
            passed.fetch_add(1, Ordering::SeqCst);
            Answer::Later(Box::new(|_| Reply::new(200, "text/plain", "in")))
        }
    };
    let run = |answer| match answer {
        Answer::Later(exchange) => {
            let mut nothing = std::io::empty();
            exchange(&mut RequestBody::new(&mut nothing, Some(0))).status
        }
        Answer::Now(reply) => reply.status,
    };
    let ask = |pair| rig.logins.admit(&request(pair, "10.0.0.1"), then());
    let wrong = ask("alice:wrong");
    assert!(matches!(wrong, Answer::Later(_)));
    assert_eq!((run(wrong), passed.load(Ordering::SeqCst)), (401, 0));
    let right = ask(RIGHT);
    assert_eq!(
        passed.load(Ordering::SeqCst),
        0,
        "nothing is decided before"
    );
    assert_eq!((run(right), passed.load(Ordering::SeqCst)), (200, 1));
    let known = ask(RIGHT);
    assert_eq!(passed.load(Ordering::SeqCst), 2, "decided by the worker");
    assert_eq!(run(known), 200);
    let none = rig.logins.admit(&bare("10.0.0.1"), then());
    assert!(matches!(none, Answer::Now(reply) if reply.status == 401));
}

#[test]
fn no_more_than_two_checks_at_a_time() {
    let rig = Rig::new(ALICE);
    let attempt = rig.attempt(RIGHT).unwrap().unwrap();
    let now = Instant::now();
    let (one, two) = (rig.logins.checks.take(now), rig.logins.checks.take(now));
    assert!(one.is_some() && two.is_some());
    let reply = rig.logins.prove(&attempt, now).unwrap_err().into_reply();
    assert_eq!(reply.status, 503);
    assert_eq!(reply.headers.first("Retry-After"), Some("5"));
    drop(two);
    assert!(rig.logins.prove(&attempt, now).is_ok());
}

#[test]
fn a_crowd_with_one_login_makes_one_check() {
    let rig = Rig::new(&format!("{ALICE}\n{BOB}"));
    let [one, two] = [(); 2].map(|()| rig.attempt(RIGHT).unwrap().unwrap());
    let now = Instant::now();
    assert!(rig.logins.prove(&one, now).is_ok());
    // A second check would be refused by now.
    for _ in 0..100 {
        rig.logins
            .brake
            .locked()
            .record_failure(two.peer, "alice", rig.clock.monotonic());
    }
    assert!(rig.logins.prove(&two, now).is_ok());
}

#[test]
fn guesses_side_by_side_get_429_and_only_guesses() {
    let rig = Rig::new(&format!("{ALICE}\n{BOB}"));
    assert_eq!(rig.log_in(RIGHT_TOO), 200);
    let waiting = rig.attempt("alice:guessed meanwhile").unwrap().unwrap();
    for number in 0..30 {
        assert_eq!(rig.log_in(&format!("alice:guess {number}")), 401);
    }
    let reply = rig.attempt("alice:guess").err().unwrap().into_reply();
    assert_eq!(reply.status, 429);
    assert_eq!(reply.headers.first("Retry-After"), Some("2"));
    assert!(text(&reply).contains("TOOMANYREQUESTS"));
    // Also one that came before, and waited for its turn.
    let reply = rig.logins.prove(&waiting, Instant::now());
    assert_eq!(reply, Err(LoginRefusal::TooMany(Duration::from_secs(2))));
    assert!(rig.is_known(RIGHT_TOO), "what is remembered is not held up");
    let elsewhere = rig.logins.judge_request(&request(RIGHT, "10.0.0.2"));
    assert!(matches!(elsewhere, LoginVerdict::Unproved(_)));
    rig.clock.advance(Duration::from_secs(2));
    assert_eq!(rig.log_in("alice:guess"), 401);
    rig.clock.advance(Duration::from_secs(2));
    assert_eq!(rig.log_in(RIGHT), 200);
    assert_eq!(rig.log_in("alice:another guess"), 401, "forgiven");
}

#[test]
fn bug_a_script_with_an_old_password_was_told_429_for_a_minute() {
    let rig = Rig::new(ALICE);
    let checks = || metrics::PASSWORD_CHECKS.get();
    let refuse = || match rig.logins.judge_request(&request("alice:old", "10.0.0.1")) {
        LoginVerdict::Refused(refusal) => refusal,
        LoginVerdict::Unproved(attempt) => {
            let now = Instant::now();
            rig.logins
                .prove(&attempt, now)
                .expect_err("a wrong password")
        }
        LoginVerdict::Right(_) => panic!("a wrong password is right"),
    };
    let (mut delays, before) = (Vec::new(), checks());
    for _ in 0..1000 {
        let refusal = refuse();
        delays.push(refusal.delay());
        assert_eq!(refusal.into_reply().status, 401);
    }
    // Other tests check passwords meanwhile, but none so many.
    assert!(checks() - before < 500, "bcrypt ran for each");
    assert_eq!(delays[0], Duration::ZERO);
    assert!(delays[1..].iter().all(|delay| *delay == REPEATED_DELAY));
    // The right one is not held up by them, here neither.
    assert_eq!(rig.log_in(RIGHT), 200);
}

#[test]
fn a_password_that_was_wrong_is_right_once_the_file_says_so() {
    let rig = Rig::new(ALICE);
    assert_eq!((rig.log_in(RIGHT_TOO), rig.log_in(RIGHT_TOO)), (401, 401));
    rig.replace(&format!("{ALICE}\n{BOB}"));
    rig.logins.reload().unwrap();
    assert_eq!(rig.log_in(RIGHT_TOO), 200);
}

#[test]
fn a_slow_refusal_is_never_waited_for_by_a_worker() {
    let rig = Rig::new(ALICE);
    let wrong = request("alice:wrong", "10.0.0.1");
    assert_eq!(rig.log_in("alice:wrong"), 401);
    let answer = rig.logins.admit(&wrong, || panic!("let in"));
    assert!(matches!(answer, Answer::Later(_)));
}

#[test]
fn what_is_not_used_is_forgotten() {
    let rig = Rig::new(ALICE);
    assert_eq!(rig.log_in(RIGHT), 200);
    for _ in 0..3 {
        rig.clock.advance(RIGHT_LIFE - Duration::from_secs(1));
        assert!(rig.is_known(RIGHT));
    }
    rig.clock.advance(RIGHT_LIFE);
    assert!(!rig.is_known(RIGHT));
}

#[test]
fn what_is_remembered_is_bounded() {
    let rig = Rig::new(ALICE);
    let table = &mut *rig.logins.state.locked();
    let start = Instant::now();
    let mac = |number: usize| {
        let mut mac = CredentialMac::default();
        mac[..8].copy_from_slice(&number.to_be_bytes());
        mac
    };
    for is_right in [true, false] {
        for number in 0..=REMEMBERED_MAX {
            let now = start + Duration::from_millis(u64::try_from(number).unwrap());
            table.remember(mac(number), 0, is_right, now);
        }
    }
    for memory in [&mut table.right, &mut table.wrong] {
        let now = start + Duration::from_secs(10);
        assert_eq!(memory.used.len(), REMEMBERED_MAX);
        assert!(!memory.recall(&mac(0), now) && memory.recall(&mac(1), now));
        memory.add(mac(0), now + 2 * RIGHT_LIFE);
        assert_eq!(memory.used.len(), 1);
    }
}

#[test]
fn a_reload_ends_what_was_proved_before() {
    let rig = Rig::new(ALICE);
    assert_eq!(rig.log_in(RIGHT), 200);
    rig.replace(BOB);
    assert!(rig.is_known(RIGHT));
    rig.logins.reload().unwrap();
    assert!(!rig.is_known(RIGHT));
    assert_eq!(rig.log_in(RIGHT), 401);
    assert_eq!(rig.log_in(RIGHT_TOO), 200);
    // A check that began before the reload is not remembered after it.
    let now = rig.clock.monotonic();
    let mut table = rig.logins.state.locked();
    table.remember(CredentialMac::default(), 0, true, now);
    assert!(!table.right.recall(&CredentialMac::default(), now));
}

#[test]
fn a_reload_of_the_same_users_forgets_nobody() {
    let rig = Rig::new(ALICE);
    assert_eq!(rig.log_in(RIGHT), 200);
    rig.replace(&format!("# a remark\n{ALICE}\n"));
    rig.logins.reload().unwrap();
    assert!(rig.is_known(RIGHT));
}

#[test]
fn a_bad_file_changes_nothing() {
    let rig = Rig::new(ALICE);
    assert_eq!(rig.log_in(RIGHT), 200);
    for (text, why) in [("alice:x\n", "line 1: "), ("", "no user")] {
        rig.replace(text);
        let fault = rig.logins.reload().unwrap_err();
        assert!(fault.contains(why), "{fault}");
        assert!(rig.is_known(RIGHT));
    }
    std::fs::remove_file(&rig.path).unwrap();
    assert!(rig.logins.reload().unwrap_err().contains("cannot be read"));
    assert!(rig.is_known(RIGHT));
    rig.replace(&format!("{ALICE}\n{BOB}"));
    rig.logins.reload().unwrap();
    assert_eq!(rig.logins.count(), 2);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let rig = Rig::new(ALICE);
    let fault = |path: &Path| {
        let clock = Arc::clone(&rig.clock) as Arc<dyn Clock>;
        let fault = Logins::open(path, clock).err().unwrap();
        assert!(fault.starts_with(path.to_str().unwrap()), "{fault}");
        fault
    };
    assert!(fault(&rig.path.with_extension("none")).contains("cannot be read: No such"));
    assert!(fault(rig.path.parent().unwrap()).contains("not a regular file"));
    std::fs::write(&rig.path, [ALICE.as_bytes(), b"\n\nb\xffb:x\n"].concat()).unwrap();
    assert!(fault(&rig.path).contains("line 3: expected UTF-8"));
    let longest = usize::try_from(FILE_BYTES_MAX).unwrap();
    let padded = |length: usize| format!("{ALICE}\n#{}", "x".repeat(length - ALICE.len() - 2));
    std::fs::write(&rig.path, padded(longest + 1)).unwrap();
    assert!(fault(&rig.path).contains("larger than 1 MiB"));
    std::fs::write(&rig.path, padded(longest)).unwrap();
    rig.logins.reload().unwrap();
}
