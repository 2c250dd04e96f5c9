//! The log grows with events, not with requests: one line for each request, and each cause once.

use std::sync::Arc;

use standin::{Options, Server};

use crate::support::{Front, Http, Pki, SOON, wait_until};

const REQUESTS: usize = 40;

fn count(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn bug_each_request_to_a_dead_registry_had_two_lines() {
    let front = Front::start();
    front.standin.down(Server::Registry);
    for n in 0..REQUESTS {
        let got = front.get(&format!("/v2/team/app/manifests/{n}"));
        assert_eq!(got.status, 504);
    }
    let requests = |log: &str| count(log, " INFO request method=GET path=/v2/team/app/manifests/");
    wait_until("all requests are in the log", SOON, || {
        requests(&front.proxy.log()) >= REQUESTS
    });
    let log = front.proxy.log();
    assert_eq!(requests(&log), REQUESTS, "{log}");
    // The breaker may have a cause of its own.
    let warnings = count(&log, " WARN ");
    let causes = count(&log, " WARN upstream failed");
    assert!((1..=3).contains(&causes), "{log}");
    assert!(
        warnings <= causes + 1,
        "at most that everybody may come in: {log}"
    );
    // How often, is said at the latest when the process ends.
    front.proxy.term();
    let line = front.proxy.wait_for_log("repeated=");
    assert!(line.contains("WARN upstream failed error="), "{line}");
}

#[test]
fn a_long_target_is_cut_in_the_log() {
    let front = Front::start();
    let long = format!("/v2/team/app/manifests/{}", "x".repeat(8000));
    front.get(&long);
    front.get(&format!("/v2/team/app/tags/list?last={}", "y".repeat(8000)));
    front.get(&format!("/{}", "z".repeat(8000)));
    for letter in ["x", "y", "z"] {
        let line = front.proxy.wait_for_log(&letter.repeat(400));
        // The error may quote the tag, and is cut as well.
        assert!(line.len() < 2000, "{} bytes: {line}", line.len());
        assert!(line.contains(&format!("{letter}…")), "{line}");
    }
}

/// Clients that speak nothing we do, in a crowd.
#[test]
fn handshakes_that_fail_alike_are_one_line() {
    let pki = Pki::new();
    let settings = pki.settings();
    let settings: Vec<(&str, &str)> = settings
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let front = Front::with(Options::default(), &settings);
    let mut config = (*pki.client()).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    for _ in 0..REQUESTS {
        assert!(Http::connect_tls(front.address(), &config).is_err());
    }
    front.proxy.wait_for_log("TLS handshake failed");
    assert_eq!(count(&front.proxy.log(), "TLS handshake failed"), 1);
    front.proxy.term();
    let line = front.proxy.wait_for_log("repeated=");
    assert!(line.contains("TLS handshake failed"), "{line}");
}
