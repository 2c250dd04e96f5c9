//! Panics where a request is decided and where it is carried out: 500 for that request, and
//! nothing else is lost.

use std::sync::Arc;
use std::time::Duration;

use aws_ecr_proxy::door::Limits;
use aws_ecr_proxy::message::{Answer, Reply, Request};

use crate::support::door::Server;
use crate::support::{Http, in_parallel, wait_until};

const ROUNDS: usize = 50;
/// For connections to be let go.
const CLOSED: Duration = Duration::from_secs(10);

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
    let server = Server::start(Limits::new(100), move |request| decide(&seen, request));
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
