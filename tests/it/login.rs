//! Logins (`AUTH_FILE`): who comes in, what a wrong password never reaches, what it costs, and how
//! the file is read again.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use standin::{Layer, Options, Server, digest};

use crate::support::{
    Cached, Front, Http, Proxy, Response, SOON, Scratch, error_of, in_parallel, wait_until,
};

/// alice:open sesame and bob:pässwörd, by `htpasswd -nbB -C 4`: a check takes a millisecond.
pub(crate) const CHEAP: &str = "\
# people
alice:$2y$04$tJBiJ7GRyAeQAAUt4r3xBO4PxvUfKr.f4..LKnYDQkK971koJHPLG
bob:$2y$04$ls2ZlFzd1.XVO084NzckyeHSB6wWJWCl9jWoYpYbyco47P85ZBtRm
";
/// alice alone.
const ALICE: &str = "alice:$2y$04$tJBiJ7GRyAeQAAUt4r3xBO4PxvUfKr.f4..LKnYDQkK971koJHPLG\n";
/// alice, by `-C 12`: a check takes a quarter of a second and more.
const DEAR: &str = "alice:$2y$12$HI2UcyvtD0kF48y1bnRkQuVu8Ibr.6A8sRfkNhbjCu0FxVrdg8K3.\n";
const RIGHT: &str = "alice:open sesame";
const MANIFEST: &str = "/v2/team/app/manifests/1.0";

/// An htpasswd file in a directory of its own.
struct File {
    folder: Scratch,
}

impl File {
    fn new(text: &str) -> Self {
        let file = Self {
            folder: Scratch::new(),
        };
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("htpasswd")
    }

    fn setting(&self) -> (&'static str, String) {
        ("AUTH_FILE", self.path().to_str().unwrap().to_owned())
    }

    /// Puts another file in its place, as `mv` does.
    fn replace(&self, text: &str) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, self.path()).unwrap();
    }
}

fn front(file: &File) -> Front {
    let (name, value) = file.setting();
    Front::with(Options::default(), &[(name, &value)])
}

fn basic(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

/// A request with a login.
fn call(address: SocketAddr, method: &str, target: &str, pair: &str) -> Response {
    let login = basic(pair);
    Http::once(address, method, target, &[("Authorization", &login)], b"")
}

fn get(address: SocketAddr, target: &str, pair: &str) -> Response {
    call(address, "GET", target, pair)
}

fn assert_challenged(got: &Response, what: &str) {
    assert_eq!(got.status, 401, "{what}: {}", got.text());
    let challenge = got.header("WWW-Authenticate").expect("a challenge");
    assert_eq!(
        challenge,
        "Basic realm=\"aws-ecr-proxy\", charset=\"UTF-8\""
    );
    assert_eq!(
        got.header("Docker-Distribution-Api-Version"),
        Some("registry/2.0")
    );
}

#[test]
fn a_client_logs_in_as_docker_does() {
    let front = front(&File::new(CHEAP));
    let image = front.standin.put_image("team/app", "1.0", &[]);
    let asked = front.get("/v2/");
    assert_challenged(&asked, "GET /v2/");
    assert_eq!(error_of(&asked).0, "UNAUTHORIZED");
    let head = front.head("/v2/");
    assert_challenged(&head, "HEAD /v2/");
    assert_eq!(head.length, 0);
    let mut http = front.http();
    let login = basic(RIGHT);
    let login = [("Authorization", login.as_str())];
    assert_eq!(http.request("GET", "/v2/", &login, b"").status, 200);
    let pulled = http.request("GET", MANIFEST, &login, b"");
    assert_eq!(pulled.body, image.bytes);
    let blob = format!("/v2/team/app/blobs/{}", image.config);
    assert_eq!(http.request("GET", &blob, &login, b"").digest, image.config);
    let pushed = digest(b"pushed");
    let target = format!("/v2/team/new/blobs/uploads/?digest={pushed}");
    assert_eq!(http.request("POST", &target, &login, b"pushed").status, 201);
    assert_eq!(
        front.standin.blob("team/new", &pushed).unwrap().to_vec(),
        b"pushed"
    );
    // The other one, with letters beyond ASCII, and a scheme in another case.
    let other = basic("bob:pässwörd").replacen("Basic", "bAsIc", 1);
    let got = front.call("GET", MANIFEST, &[("Authorization", &other)], b"");
    assert_eq!(got.status, 200);
    for seen in front.seen(Server::Registry) {
        let sent = seen.header("Authorization").expect("our own token");
        assert!(
            sent != login[0].1 && sent != other,
            "the client's login went upstream"
        );
    }
}

#[test]
fn a_first_request_may_have_login_and_body() {
    // Its body is read by the same thread that runs bcrypt, after it.
    let front = front(&File::new(CHEAP));
    let login = basic(RIGHT);
    let pushed = digest(b"pushed");
    let target = format!("/v2/team/new/blobs/uploads/?digest={pushed}");
    let got = front.call("POST", &target, &[("Authorization", &login)], b"pushed");
    assert_eq!(got.status, 201, "{}", got.text());
}

#[test]
fn wrong_logins_reach_neither_upstream_nor_cache() {
    let file = File::new(CHEAP);
    let (name, value) = file.setting();
    let cached = Cached::with(&[("CACHE_TAG_TTL", "1h"), (name, &value)]);
    let layer = Layer::of_files(&[("hello", b"login")]);
    let image = cached.standin.put_image("team/app", "1.0", &[layer]);
    cached.standin.put_image("team/cold", "1.0", &[]);
    let blob = format!("/v2/team/app/blobs/{}", image.layers[0]);
    let address = cached.address();
    assert_eq!(get(address, MANIFEST, RIGHT).body, image.bytes);
    assert_eq!(get(address, &blob, RIGHT).digest, image.layers[0]);
    cached.wait_for_blob(&image.layers[0]);
    let (calls, held) = (cached.calls(), cached.blobs());
    let wrong = [
        basic("alice:wrong"),
        basic("alice:"),
        basic("alice:open sesame "),
        basic("ALICE:open sesame"),
        basic("eve:open sesame"),
        basic(":"),
        basic("alice"),
        "Basic".to_owned(),
        "Basic !".to_owned(),
        format!("Bearer {}", STANDARD.encode(RIGHT)),
        basic(RIGHT).replace("Basic ", "Basic"),
        basic(&format!("{RIGHT}\0")),
        basic(&"x".repeat(20_000)),
    ];
    for target in [
        MANIFEST,
        &blob,
        "/v2/team/cold/manifests/1.0",
        "/v2/_catalog",
        "/v2/",
        "/v2/x",
    ] {
        assert_challenged(&cached.get(target), target);
        assert_eq!(cached.head(target).status, 401);
    }
    for login in &wrong {
        for (method, target) in [("GET", MANIFEST), ("GET", &blob), ("DELETE", MANIFEST)] {
            let got = cached.call(method, target, &[("Authorization", login)]);
            // Past a few of them it says that it is too soon.
            assert!(matches!(got.status, 401 | 429), "{login}: {}", got.status);
        }
    }
    // Two fields, one of them right.
    let (one, two) = (basic(RIGHT), basic("eve:x"));
    let both = [
        ("Authorization", one.as_str()),
        ("Authorization", two.as_str()),
    ];
    assert_challenged(&cached.call("GET", MANIFEST, &both), "two fields");
    assert_eq!((cached.calls(), cached.blobs()), (calls, held));
    // A hit needs the login too, and has it.
    assert_eq!(get(address, MANIFEST, RIGHT).header("X-Cache"), Some("HIT"));
}

#[test]
fn a_refused_push_sends_nothing_upstream() {
    let front = front(&File::new(CHEAP));
    let mut http = front.http();
    let login = basic("alice:wrong");
    let target = format!("/v2/team/app/blobs/uploads/?digest={}", digest(b"x"));
    let fields = [
        ("Authorization", login.as_str()),
        ("Content-Length", "5000000000"),
    ];
    http.send_head("POST", &target, &fields).unwrap();
    let got = http.receive("POST").unwrap();
    assert_challenged(&got, "a push");
    assert_eq!(got.header("Connection"), Some("close"));
    assert!(front.seen(Server::Registry).is_empty());
}

#[test]
fn probes_need_no_login() {
    let front = front(&File::new(CHEAP));
    wait_until("the proxy is ready", SOON, || {
        front.get("/readyz").status == 200
    });
    for page in ["/healthz", "/version"] {
        assert_eq!(front.get(page).status, 200, "{page}");
        assert_eq!(
            get(front.address(), page, "alice:wrong").status,
            200,
            "{page}"
        );
    }
}

#[test]
fn a_remembered_login_costs_no_bcrypt() {
    let front = front(&File::new(DEAR));
    front.standin.put_image("team/app", "1.0", &[]);
    let before = front.proxy.cpu_time();
    assert_eq!(get(front.address(), MANIFEST, RIGHT).status, 200);
    let of_bcrypt = front.proxy.cpu_time().saturating_sub(before);
    assert!(
        of_bcrypt > Duration::from_millis(50),
        "{of_bcrypt:?} is no bcrypt"
    );
    let before = front.proxy.cpu_time();
    for _ in 0..30 {
        // Each on a connection of its own.
        assert_eq!(get(front.address(), "/v2/", RIGHT).status, 200);
    }
    let of_all = front.proxy.cpu_time().saturating_sub(before);
    assert!(
        of_all < of_bcrypt * 3,
        "{of_all:?} for 30, {of_bcrypt:?} for the first"
    );
}

#[test]
fn a_name_that_nobody_has_costs_as_much_as_one_that_somebody_has() {
    let front = front(&File::new(DEAR));
    let cost = |pair: &str| {
        let before = front.proxy.cpu_time();
        assert_eq!(get(front.address(), "/v2/", pair).status, 401);
        front.proxy.cpu_time().saturating_sub(before)
    };
    let (known, unknown) = (cost("alice:wrong"), cost("eve:wrong"));
    assert!(
        unknown * 3 > known && known * 3 > unknown,
        "{unknown:?} for a name that nobody has, {known:?} for the other"
    );
    assert!(unknown > Duration::from_millis(50), "{unknown:?}");
}

/// Threads that run, or would if there were a processor.
fn runnable(proxy: &Proxy, name: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).unwrap();
    let runs = |task: &std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // proc(5): number, name in brackets, state.
        stat.contains(&format!("({name}")) && stat.contains(") R ")
    };
    tasks.filter_map(Result::ok).filter(runs).count()
}

#[test]
fn two_checks_at_a_time_and_nobody_else_waits_for_them() {
    const GUESSES: u8 = 12;
    let front = front(&File::new(DEAR));
    front.standin.put_image("team/app", "1.0", &[]);
    let address = front.address();
    assert_eq!(get(address, MANIFEST, RIGHT).status, 200);
    std::thread::scope(|scope| {
        let guess = |number: u8| {
            move || {
                // Each from an address of its own, so that none is slowed down.
                let pair = format!("user{number}:guess");
                get_from([127, 0, 1, number].into(), address, &basic(&pair))
            }
        };
        let guesses: Vec<_> = (1..=GUESSES)
            .map(|number| scope.spawn(guess(number)))
            .collect();
        let (mut looks, mut crowded, mut slowest) = (0, 0, Duration::ZERO);
        while guesses.iter().any(|guess| !guess.is_finished()) {
            let running = runnable(&front.proxy, "conn-");
            looks += 1;
            // One more may be caught while it takes up its turn.
            crowded += u32::from(running > 3);
            let started = Instant::now();
            assert_eq!(front.get("/healthz").status, 200);
            assert_eq!(get(address, MANIFEST, RIGHT).status, 200);
            slowest = slowest.max(started.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        for guess in guesses {
            let answer = guess.join().unwrap();
            // 503: its turn did not come within 10 s, on a machine that is busy.
            assert!(
                answer.contains(" 401 ") || answer.contains(" 503 "),
                "{answer}"
            );
        }
        // Threads that have just begun, on a machine that is busy, are seen now and then; checks
        // beyond the cap would be seen most of the time.
        assert!(looks > 5 && crowded * 4 < looks, "{crowded} of {looks}");
        assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    });
}

/// GET of the manifest, by a client at `from`; the whole reply.
fn get_from(from: IpAddr, to: SocketAddr, login: &str) -> String {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::new(from, 0)).unwrap();
    connect(&socket, &to).unwrap();
    let mut stream = TcpStream::from(socket);
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let head = format!(
        "GET {MANIFEST} HTTP/1.1\r\nHost: x\r\nAuthorization: {login}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    String::from_utf8_lossy(&reply).into_owned()
}

#[test]
fn a_client_that_guesses_is_slowed_down_and_no_other() {
    let front = front(&File::new(CHEAP));
    front.standin.put_image("team/app", "1.0", &[]);
    let address = front.address();
    assert_eq!(get(address, "/v2/", "bob:pässwörd").status, 200);
    // Side by side, as neither people nor scripts do.
    let guess = |number: usize| get(address, MANIFEST, &format!("alice:guess {number}"));
    let slowed = Mutex::new(None);
    in_parallel(80, |number| {
        let got = guess(number);
        assert!(matches!(got.status, 401 | 429), "{}", got.status);
        if got.status == 429 {
            *slowed.lock().unwrap() = Some(got);
        }
    });
    let slowed = slowed.into_inner().unwrap().expect("a guess too many");
    assert_eq!(error_of(&slowed).0, "TOOMANYREQUESTS");
    let wait: u64 = slowed.header("Retry-After").unwrap().parse().unwrap();
    assert!((1..=4).contains(&wait), "{wait}");
    // Who came in before, at the same address; who comes in now; and the same name elsewhere.
    assert_eq!(get(address, MANIFEST, "bob:pässwörd").status, 200);
    let elsewhere = get_from([127, 0, 2, 1].into(), address, &basic(RIGHT));
    assert!(elsewhere.starts_with("HTTP/1.1 200 "), "{elsewhere}");
    // That login is remembered now, wherever it is used.
    assert_eq!(get(address, MANIFEST, RIGHT).status, 200);
    assert_eq!(front.standin.count(Server::Registry, "GET", MANIFEST), 3);
}

#[test]
fn bug_five_wrong_passwords_made_clients_hang_for_a_minute() {
    let front = front(&File::new(CHEAP));
    let address = front.address();
    // A person that mistypes, and a script that repeats an old password: always "unauthorized",
    // never a 429 that clients repeat in silence.
    for number in 0..12 {
        let got = get(address, "/v2/", &format!("alice:slip {number}"));
        assert_challenged(&got, "a slip");
    }
    let begun = Instant::now();
    for _ in 0..4 {
        assert_challenged(&get(address, "/v2/", "alice:slip 0"), "an old password");
    }
    assert!(
        begun.elapsed() >= Duration::from_secs(4),
        "answered at once"
    );
    assert_eq!(get(address, "/v2/", RIGHT).status, 200);
}

#[test]
fn an_address_that_a_client_makes_up_is_no_way_around_the_brake() {
    let front = front(&File::new(CHEAP));
    let statuses = Mutex::new(Vec::new());
    in_parallel(80, |number| {
        let login = basic(&format!("alice:guess {number}"));
        let made_up = format!("10.1.2.{number}");
        let fields = [
            ("Authorization", login.as_str()),
            ("X-Forwarded-For", &made_up),
        ];
        let got = front.call("GET", MANIFEST, &fields, b"");
        statuses.lock().unwrap().push(got.status);
    });
    let statuses = statuses.into_inner().unwrap();
    assert!(statuses.contains(&429), "{statuses:?}");
}

#[test]
fn the_file_is_read_again_on_a_signal_and_by_itself() {
    let file = File::new(CHEAP);
    let front = front(&file);
    let address = front.address();
    let status = |pair: &str| get(address, "/v2/", pair).status;
    assert_eq!((status(RIGHT), status("bob:pässwörd")), (200, 200));
    file.replace(ALICE);
    front.proxy.signal("HUP");
    front.proxy.wait_for_log("AUTH_FILE read again users=1");
    assert_eq!((status(RIGHT), status("bob:pässwörd")), (200, 401));
    // A file that is no good is told once, and changes nothing.
    file.replace("alice:open sesame\n");
    let line = front.proxy.wait_for_log("reload refused");
    assert!(
        line.contains(" ERROR ") && line.contains("what=AUTH_FILE") && line.contains("line 1: "),
        "{line}"
    );
    assert!(line.contains(file.path().to_str().unwrap()), "{line}");
    assert_eq!(status(RIGHT), 200);
    // By itself.
    file.replace(CHEAP);
    front.proxy.wait_for_log("AUTH_FILE read again users=2");
    assert_eq!(status("bob:pässwörd"), 200);
    assert_eq!(front.proxy.log().matches("reload refused").count(), 1);
}

#[test]
fn a_file_that_cannot_be_used_ends_the_start_with_64() {
    let standin = standin::Standin::start(Options::default());
    let file = File::new(CHEAP);
    let start = |path: &str| {
        let mut command = Proxy::command();
        command.envs(standin.settings()).env("AUTH_FILE", path);
        let mut proxy = Proxy::spawn(command);
        assert_eq!(proxy.wait_exit().code(), Some(64), "{}", proxy.log());
        let log = proxy.log();
        assert!(log.contains(&format!("AUTH_FILE={path}: ")), "{log}");
        assert!(!log.contains("listening on"));
        log
    };
    let path = file.path().to_str().unwrap().to_owned();
    let apr1 = "$apr1$tCSHMuh2$dqHwCH9FMJ8Vgr2zJDt5o0";
    let dearest = DEAR.replace("$12$", "$15$");
    for (line, why) in [
        (
            format!("carol:{apr1}"),
            "line 4: MD5 (apr1) is not accepted",
        ),
        (
            "carol:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=".to_owned(),
            "line 4: SHA-1 is not",
        ),
        (
            "carol:rqXexS6ZhobKA".to_owned(),
            "line 4: what stands there is not",
        ),
        ("rqXexS6ZhobKA".to_owned(), "line 4: expected name:hash"),
        (
            dearest.replace("alice", "carol"),
            "line 4: a bcrypt hash of cost 15, expected 4 to 14",
        ),
        (ALICE.to_owned(), "line 4: the same name as line 2"),
    ] {
        std::fs::write(file.path(), format!("{CHEAP}{line}")).unwrap();
        let log = start(&path);
        assert!(log.contains(why), "{log}");
        for secret in ["tCSHMuh2", "W6ph5Mm5", "rqXexS6", "HI2Ucyvt", "tJBiJ7GR"] {
            assert!(!log.contains(secret), "{log}");
        }
    }
    std::fs::write(file.path(), "").unwrap();
    assert!(start(&path).contains("names no user"));
    std::fs::remove_file(file.path()).unwrap();
    assert!(start(&path).contains("cannot be read"));
    assert!(start(file.folder.text()).contains("not a regular file"));
}

#[test]
fn no_log_has_a_password_or_a_hash() {
    for format in ["text", "json"] {
        let file = File::new(CHEAP);
        let (name, value) = file.setting();
        let settings = [(name, value.as_str()), ("LOG_FORMAT", format)];
        let mut front = Front::with(Options::default(), &settings);
        let address = front.address();
        let pairs = [RIGHT, "alice:hunter2", "hunter3:x", "bob:pässwörd"];
        for pair in pairs {
            get(address, "/v2/", pair);
            get(address, MANIFEST, pair);
        }
        let told = get(address, "/v2/", "alice:hunter2").text();
        file.replace("alice:hunter4\n");
        front.proxy.signal("HUP");
        front.proxy.wait_for_log("reload refused");
        front.proxy.term();
        front.proxy.wait_exit();
        let log = front.proxy.log();
        assert!(
            log.contains("wrong password for alice") && log.contains("unknown user"),
            "{log}"
        );
        let mut secrets: Vec<String> = pairs.map(|pair| STANDARD.encode(pair)).into();
        secrets
            .extend(["open sesame", "hunter", "pässwörd", "$2y$04", "tJBiJ7GR"].map(String::from));
        for secret in secrets {
            assert!(
                !log.contains(&secret) && !told.contains(&secret),
                "{secret} in {log}"
            );
        }
    }
}
