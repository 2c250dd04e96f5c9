//! Logins of clients (`AUTH_FILE`). Owns: which logins are proved, the file and its reload, the
//! challenge. Must not: know what a request is for, or show a name's password or its hash.
//!
//! bcrypt takes 0.1 s by design, so it never runs on a worker: [`Logins::admit`] makes it part of
//! the exchange, which runs on the connection's own thread, and at most [`CHECKS_MAX`] at a time.
//! What was proved once, right or wrong, is remembered as a MAC under a key of this process: a
//! worker knows a right login again at once, and a script that repeats an old password costs one
//! bcrypt. Wrong ones are answered slowly, on the connection's own thread, too.
//!
//! Locks: `state` and `brake`, held for map operations, never both, never while bcrypt runs.

mod brake;
mod credentials;
pub mod htpasswd;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ring::{hmac, rand};

use self::brake::Brake;
pub use self::credentials::BasicCredentials;
use self::htpasswd::Users;
use super::answer::refuse;
use crate::clock::Clock;
use crate::locked::Locked as _;
use crate::message::{Answer, Reply, Request};
use crate::metrics;
use crate::oci::{ErrorCode, OciError};
use crate::permits::Permits;
use crate::small_file;

/// bcrypts at a time: a crowd that logs in, or guesses, must leave processors to the rest.
const CHECKS_MAX: usize = 2;
/// Longest wait of a client for its turn. Clients give up after 15 s or later, so they still get
/// the answer.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
/// Value of `Retry-After` when a client's turn did not come.
const TURN_RETRY_SECONDS: &str = "5";
/// Right logins that are kept, and wrong ones, at 48 bytes each. When there are more, the one that
/// was not used for longest has to be proved again.
const REMEMBERED_MAX: usize = 4096;
/// A right login is forgotten when it was not used for so long.
const RIGHT_LIFE: Duration = Duration::from_secs(3600);
/// A wrong login is forgotten when it was not tried for so long.
const WRONG_LIFE: Duration = Duration::from_secs(15 * 60);
/// How long the refusal is held back for a login that was wrong before. A script that tries it all
/// day waits so long each time, and to a person it does not look stuck.
const REPEATED_DELAY: Duration = Duration::from_secs(1);
/// Largest file: 16,000 users.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// RFC 7617 §2; the character set of §2.1 says that names and passwords are UTF-8.
const CHALLENGE: &str = "Basic realm=\"aws-ecr-proxy\", charset=\"UTF-8\"";

/// The logins.
pub struct Logins {
    path: PathBuf,
    /// A key of this process alone, so that MACs are of no use to anybody that sees them.
    key: hmac::Key,
    clock: Arc<dyn Clock>,
    checks: Permits,
    state: Mutex<LoginTable>,
    brake: Mutex<Brake>,
}

struct LoginTable {
    users: Arc<Users>,
    /// Grows with each change of the users: what was proved against older ones does not count.
    generation: u64,
    right: LoginMemory,
    wrong: LoginMemory,
}

/// Logins and when each was used last.
struct LoginMemory {
    used: HashMap<CredentialMac, Instant>,
    life: Duration,
}

/// The MAC under which credentials are remembered.
type CredentialMac = [u8; 32];

/// Credentials that are not known yet.
struct LoginAttempt {
    credentials: BasicCredentials,
    mac: CredentialMac,
    peer: Option<IpAddr>,
}

/// What is known of a login without bcrypt.
enum LoginVerdict {
    /// The name is known.
    Right(String),
    Refused(LoginRefusal),
    Unproved(LoginAttempt),
}

/// Why a client may not come in.
#[derive(Debug, PartialEq, Eq)]
enum LoginRefusal {
    /// There is no login, or it is wrong.
    Challenge {
        /// The reason, for the log.
        why: String,
        /// How long the answer is held back.
        delay: Duration,
    },
    /// Its turn did not come.
    Crowded,
    /// Too many failed side by side.
    TooMany(Duration),
}

impl Logins {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// The file and what is wrong with it, with the numbers of its lines.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let users = read_users(path)?;
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new());
        let state = LoginTable {
            users: Arc::new(users),
            generation: 0,
            right: LoginMemory::new(RIGHT_LIFE),
            wrong: LoginMemory::new(WRONG_LIFE),
        };
        Ok(Self {
            path: path.to_owned(),
            key: key.map_err(|_| "the system gives no random bytes")?,
            clock,
            checks: Permits::new(CHECKS_MAX),
            state: Mutex::new(state),
            brake: Mutex::default(),
        })
    }

    /// How many users there are.
    pub fn count(&self) -> usize {
        self.state.locked().users.count()
    }

    /// Reads the file again. Logins that were proved against other users are forgotten; when the
    /// file is no good, everything stays as it is.
    ///
    /// # Errors
    /// The file and what is wrong with it.
    pub fn reload(&self) -> Result<(), String> {
        let users = read_users(&self.path)?;
        let mut state = self.state.locked();
        if *state.users != users {
            state.users = Arc::new(users);
            state.generation += 1;
            state.right.used.clear();
            state.wrong.used.clear();
        }
        Ok(())
    }

    /// Answers with `then()` when the client has logged in: at once when its login is remembered,
    /// else after bcrypt, in the exchange. Never blocks.
    pub fn admit(
        self: &Arc<Self>,
        request: &Request,
        then: impl FnOnce() -> Answer + Send + 'static,
    ) -> Answer {
        let attempt = match self.judge_request(request) {
            LoginVerdict::Right(name) => {
                return then().with_note(|note| note.login = Some(name));
            }
            LoginVerdict::Refused(refusal) => return refusal.into_answer(),
            LoginVerdict::Unproved(attempt) => attempt,
        };
        let logins = Arc::clone(self);
        Answer::Later(Box::new(move |body| {
            if let Err(refusal) = logins.prove(&attempt, Instant::now() + TURN_TIMEOUT) {
                std::thread::sleep(refusal.delay());
                return refusal.into_reply();
            }
            let name = attempt.credentials.name().to_owned();
            match then().with_note(|note| note.login = Some(name)) {
                Answer::Now(reply) => reply,
                Answer::Later(exchange) => exchange(body),
            }
        }))
    }

    /// Touches memory only.
    fn judge_request(&self, request: &Request) -> LoginVerdict {
        let challenge = |why: &str| {
            let (why, delay) = (why.to_owned(), Duration::ZERO);
            LoginVerdict::Refused(LoginRefusal::Challenge { why, delay })
        };
        let credentials = match BasicCredentials::from_headers(&request.headers) {
            Ok(Some(credentials)) => credentials,
            Ok(None) => return challenge("no login"),
            Err(why) => return challenge(&format!("malformed Authorization: {why}")),
        };
        let attempt = LoginAttempt {
            mac: self.mac(credentials.pair()),
            credentials,
            peer: request.peer.address,
        };
        match self.recall(&attempt) {
            Some(Ok(())) => {
                let name = attempt.credentials.name().to_owned();
                return LoginVerdict::Right(name);
            }
            Some(Err(refusal)) => return LoginVerdict::Refused(refusal),
            None => {}
        }
        match self.check_rate(&attempt) {
            Some(wait) => LoginVerdict::Refused(LoginRefusal::TooMany(wait)),
            None => LoginVerdict::Unproved(attempt),
        }
    }

    /// Blocks until it is the attempt's turn, at the longest until `deadline`, and then for the
    /// time that bcrypt takes.
    fn prove(&self, attempt: &LoginAttempt, deadline: Instant) -> Result<(), LoginRefusal> {
        let Some(_turn) = self.checks.take(deadline) else {
            return Err(LoginRefusal::Crowded);
        };
        // A crowd with one login waits for one check; one that guesses has to wait longer by now.
        if let Some(known) = self.recall(attempt) {
            return known;
        }
        if let Some(wait) = self.check_rate(attempt) {
            return Err(LoginRefusal::TooMany(wait));
        }
        let (users, generation) = {
            let state = self.state.locked();
            (Arc::clone(&state.users), state.generation)
        };
        metrics::PASSWORD_CHECKS.inc();
        let name = attempt.credentials.name();
        let is_right = users.check(name, attempt.credentials.password(), &self.key);
        let (peer, now) = (attempt.peer, self.clock.monotonic());
        self.state
            .locked()
            .remember(attempt.mac, generation, is_right, now);
        if is_right {
            self.brake.locked().record_success(peer, name, now);
            return Ok(());
        }
        metrics::LOGINS_FAILED.inc();
        let mut brake = self.brake.locked();
        brake.record_failure(peer, name, now);
        let delay = brake.delay(peer, name, now);
        // A name that nobody has may be a password in the wrong place.
        let why = match users.has(name) {
            true => format!("wrong password for {name}"),
            false => "unknown user".to_owned(),
        };
        Err(LoginRefusal::Challenge { why, delay })
    }

    /// The outcome that is remembered of this login, if there is one.
    fn recall(&self, attempt: &LoginAttempt) -> Option<Result<(), LoginRefusal>> {
        let now = self.clock.monotonic();
        let mut table = self.state.locked();
        if table.right.recall(&attempt.mac, now) {
            return Some(Ok(()));
        }
        table.wrong.recall(&attempt.mac, now).then(|| {
            metrics::LOGINS_FAILED.inc();
            Err(LoginRefusal::Challenge {
                why: "the same wrong login as before".to_owned(),
                delay: REPEATED_DELAY,
            })
        })
    }

    fn check_rate(&self, attempt: &LoginAttempt) -> Option<Duration> {
        let (name, now) = (attempt.credentials.name(), self.clock.monotonic());
        let wait = self.brake.locked().wait(attempt.peer, name, now)?;
        metrics::LOGINS_SLOWED.inc();
        Some(wait)
    }

    fn mac(&self, pair: &[u8]) -> CredentialMac {
        let mut mac = CredentialMac::default();
        let signed = hmac::sign(&self.key, pair);
        for (to, from) in mac.iter_mut().zip(signed.as_ref()) {
            *to = *from;
        }
        mac
    }
}

impl LoginTable {
    fn remember(&mut self, mac: CredentialMac, generation: u64, is_right: bool, now: Instant) {
        if generation != self.generation {
            return;
        }
        let memory = if is_right {
            &mut self.right
        } else {
            &mut self.wrong
        };
        memory.add(mac, now);
    }
}

impl LoginMemory {
    fn new(life: Duration) -> Self {
        let used = HashMap::new();
        Self { used, life }
    }

    fn recall(&mut self, mac: &CredentialMac, now: Instant) -> bool {
        match self.used.get_mut(mac) {
            Some(used) if now < *used + self.life => {
                *used = now;
                true
            }
            _ => false,
        }
    }

    fn add(&mut self, mac: CredentialMac, now: Instant) {
        if self.used.len() >= REMEMBERED_MAX {
            self.used.retain(|_, used| now < *used + self.life);
        }
        if self.used.len() >= REMEMBERED_MAX {
            let unused_longest = self.used.iter().min_by_key(|(_, used)| **used);
            if let Some(mac) = unused_longest.map(|(mac, _)| *mac) {
                self.used.remove(&mac);
            }
        }
        self.used.insert(mac, now);
    }
}

impl LoginRefusal {
    /// How long the reply is to be held back.
    const fn delay(&self) -> Duration {
        match self {
            Self::Challenge { delay, .. } => *delay,
            Self::Crowded | Self::TooMany(_) => Duration::ZERO,
        }
    }

    /// The reply, which a worker must not wait for.
    fn into_answer(self) -> Answer {
        let delay = self.delay();
        if delay.is_zero() {
            return Answer::Now(self.into_reply());
        }
        Answer::Later(Box::new(move |_| {
            std::thread::sleep(delay);
            self.into_reply()
        }))
    }

    fn into_reply(self) -> Reply {
        match self {
            Self::Challenge { why, .. } => {
                // The same whatever was wrong.
                let words = "login required, with a name and password that this proxy knows";
                let mut reply = refuse(&OciError::new(ErrorCode::Unauthorized, words));
                reply.headers.set("WWW-Authenticate", CHALLENGE);
                reply.outcome.error = Some(why);
                reply
            }
            Self::Crowded => {
                let words = "too many logins at a time; try again";
                refuse(&OciError::new(ErrorCode::Unavailable, words))
                    .with("Retry-After", TURN_RETRY_SECONDS)
            }
            Self::TooMany(wait) => {
                let seconds = wait.as_millis().div_ceil(1000);
                let words = format!("too many failed logins: try again in {seconds} s");
                refuse(&OciError::new(ErrorCode::TooManyRequests, words))
                    .with("Retry-After", seconds.to_string())
            }
        }
    }
}

fn read_users(path: &Path) -> Result<Users, String> {
    let shown = path.display();
    let bytes = small_file::read(path, FILE_BYTES_MAX)
        .map_err(|error| format!("{shown}: it cannot be read: {error}"))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = error
            .as_bytes()
            .iter()
            .take(error.utf8_error().valid_up_to());
        let line = 1 + before.filter(|b| **b == b'\n').count();
        format!("{shown}: line {line}: expected UTF-8")
    })?;
    Users::parse(&text).map_err(|fault| format!("{shown}: {fault}"))
}

#[cfg(test)]
mod tests;
