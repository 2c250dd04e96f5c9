//! Panics where a request is decided and where it is carried out: 500 for that request, and
//! nothing else is lost.

use std::sync::Arc;
use std::time::Duration;

use aws_ecr_proxy::door::{DoorLimits, HeadParser};
use aws_ecr_proxy::message::{Answer, Reply, Request};

use crate::support::door::{Server, ok};
use crate::support::{Http, in_parallel, wait_until};

const ROUNDS: usize = 50;
/// For connections to be let go.
const CLOSED: Duration = Duration::from_secs(30);

/// Panics on `/panic`, in the exchange of `/later`, and in the body of `/body`.
fn decide(token: &Arc<()>, request: &Request) -> Answer {
    let held = Arc::clone(token);
    match request.path() {
        "/panic" => panic!("a decision that panics"),
        "/later" => Answer::Later(Box::new(move |_| {
            assert!(Arc::strong_count(&held) == 0, "an exchange that panics");
            Reply::new(200, "text/plain", "never")
        })),
        "/good" => Answer::Later(Box::new(move |_| {
            drop(held);
            Reply::new(200, "text/plain", "later\n")
        })),
        _ => Answer::Now(Reply::new(200, "text/plain", "ok\n")),
    }
}

#[test]
fn panics_cost_one_request_each_and_nothing_more() {
    let token = Arc::new(());
    let seen = Arc::clone(&token);
    let server = Server::start(DoorLimits::new(100), move |request| decide(&seen, request));
    in_parallel(4, |thread| {
        let mut client = Http::connect(server.address());
        for round in 0..ROUNDS {
            let path = ["/panic", "/later", "/good", "/"][(thread + round) % 4];
            let reply = client.get(path);
            let expected = match path {
                "/panic" | "/later" => 500,
                _ => 200,
            };
            assert_eq!((reply.status, reply.complete), (expected, true), "{path}");
            if expected == 500 {
                assert!(
                    reply.text().contains("internal error"),
                    "{path}: {}",
                    reply.text()
                );
                assert_eq!(reply.header("content-type"), Some("application/json"));
                assert!(reply.header("x-request-id").is_some());
            }
        }
    });
    for path in ["/panic", "/later"] {
        for _ in 0..ROUNDS {
            assert_eq!(Http::get_once(server.address(), path).status, 500);
        }
    }
    assert_eq!(Http::get_once(server.address(), "/good").text(), "later\n");
    server.assert_whole();
    wait_until("connections are let go", CLOSED, || {
        server.door().connections() == 0
    });
    // What exchanges held is given back: ours and the decider's are left.
    wait_until("exchanges are dropped", CLOSED, || {
        Arc::strong_count(&token) == 2
    });
}

#[test]
fn a_worker_decides_a_connections_first_request_and_its_own_thread_the_others() {
    let server = Server::start(DoorLimits::new(10), |_| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default().to_owned();
        Answer::Now(Reply::new(200, "text/plain", name))
    });
    for _ in 0..2 {
        let mut client = Http::connect(server.address());
        assert!(client.get("/").text().starts_with("worker-"));
        for _ in 0..2 {
            assert!(client.get("/").text().starts_with("conn-"));
        }
    }
    server.assert_whole();
}

/// Numbers that look like chance and are the same every time (xorshift64*, Marsaglia 2003).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap_or_default() % limit
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    /// Any visible characters, and now and then a blank.
    fn text(&mut self, longest: usize) -> String {
        let length = self.below(longest);
        let mut character = || char::from(b' ' + u8::try_from(self.below(95)).unwrap_or_default());
        (0..length).map(|_| character()).collect()
    }

    fn head(&mut self) -> String {
        let methods = [
            "GET",
            "HEAD",
            "PATCH",
            "M-SEARCH",
            "TRACE",
            "!#$%&'*+-.^_`|~",
            "get",
        ];
        let targets = [
            "/",
            "//",
            "/v2/?a=b&c",
            "/%",
            "/a;b,c",
            "http://b/x",
            "/\\\"<>{}|^`",
            "/?",
        ];
        let names = [
            "X",
            "Accept",
            "Connection",
            "Content-Type",
            "TE",
            "Upgrade",
            "Trailer",
            "X-Door",
            "Expect",
            "Cookie",
            "Range",
            "Content-Encoding",
            "!#$%&'*+-.^_`|~",
            "0",
            "Keep-Alive",
        ];
        let values = [
            "",
            "keep-alive",
            "upgrade, x",
            "trailers",
            "100-continue",
            "a:b:c",
            ":",
            "\t",
            "h2c",
            "bytes=0-",
            "\"",
            "close, Host, X-Door",
        ];
        let mut head = format!("{} {}", self.pick(&methods), self.pick(&targets));
        head += &self.text(30).replace(' ', "");
        head += self.pick(&[
            " HTTP/1.1\r\nHost: a\r\n",
            " HTTP/1.0\r\n",
            " HTTP/1.0\r\nHost: [::1]\r\n",
        ]);
        for _ in 0..self.below(6) {
            let value = match self.below(2) {
                0 => self.pick(&values).to_owned(),
                _ => self.text(60),
            };
            head += &format!(
                "{}:{}{value}\r\n",
                self.pick(&names),
                self.pick(&["", " ", "\t "])
            );
        }
        head + "\r\n"
    }
}

#[test]
fn every_head_that_the_door_passes_is_answered() {
    let server = Server::start(DoorLimits::new(100), ok);
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let mut client = Http::connect(server.address());
    let mut passed = 0;
    for _ in 0..5000 {
        let head = chance.head();
        let Ok(Some((checked, _))) = HeadParser::default().advance(head.as_bytes()) else {
            continue;
        };
        passed += 1;
        client.send(head.as_bytes()).unwrap();
        let reply = client.receive(&checked.method);
        let reply = reply.unwrap_or_else(|error| panic!("{head:?}: {error}"));
        assert_eq!(reply.status, 200, "{head:?}");
        if !checked.keep_alive {
            client = Http::connect(server.address());
        }
    }
    assert!(passed > 2000, "only {passed} heads were good");
    server.assert_whole();
}
