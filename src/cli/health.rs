//! `health`: asks the running proxy's `/readyz`, for a container's health check in an image without
//! a shell. Owns: that question, and what is made of the answer. Must not: send a secret.

use super::invocation::{CommandFault, Invocation};
use super::output::Streams;
use super::running::{self, LocalQuestion};
use crate::upstream::loopback::LoopbackCertificates;

/// Asks `/readyz` of the proxy that runs with the same settings.
pub(super) fn run(command: Invocation<'_>, streams: &mut Streams<'_>) -> Result<u8, CommandFault> {
    let set = command.settings;
    let place = running::place(&set.listen_host, set.listen_port, "LISTEN_PORT=0");
    let place = place.map_err(|why| CommandFault::Usage(vec![why]))?;
    let (status, body) = running::ask(&LocalQuestion {
        place: place.clone(),
        // Nothing secret is asked or answered, and the probes need no certificate of ours.
        tls: set.tls.enabled.then(LoopbackCertificates::default),
        authorization: None,
        target: "/readyz",
        command: "health",
    })?;
    let reason = body.trim().replace(char::is_control, " ");
    Ok(match status {
        200 if reason.starts_with("ready") => streams.print(&format!("{reason}\n")),
        200 => streams.fail(&format!("another server answers at {place}\n")),
        _ => streams.fail(&format!("not ready: {status} {reason}\n")),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::try_run;
    use crate::config::{EXIT_FAILED, EXIT_OK, EXIT_SETTINGS};
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread;

    /// Answers one connection with `reply` and returns what it was asked.
    fn responder(reply: &'static [u8]) -> (u16, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 1024];
            let length = stream.read(&mut asked).unwrap();
            stream.write_all(reply).unwrap();
            String::from_utf8_lossy(&asked[..length]).into_owned()
        };
        let thread = thread::Builder::new().spawn(answer).unwrap();
        (port, thread)
    }

    #[test]
    fn health_is_the_answer_of_readyz() {
        for (reply, code, expected) in [
            (
                &b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nready\n"[..],
                EXIT_OK,
                "ready\n",
            ),
            (
                b"HTTP/1.1 503 Service Unavailable\r\n\r\nno token:\ndraining",
                EXIT_FAILED,
                "not ready: 503 no token: draining\n",
            ),
        ] {
            let (port, thread) = responder(reply);
            let outcome = try_run(&["health"], &[("LISTEN_PORT", &port.to_string())]);
            assert_eq!((outcome.code, outcome.out.as_str()), (code, expected));
            let asked = thread.join().unwrap();
            assert!(asked.starts_with("GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:"));
        }
    }

    #[test]
    fn bug_any_server_that_answered_200_was_healthy() {
        let (port, thread) = responder(b"HTTP/1.1 200 OK\r\n\r\n<html>It works!</html>");
        let outcome = try_run(&["health"], &[("LISTEN_PORT", &port.to_string())]);
        let expected = format!("another server answers at 127.0.0.1:{port}\n");
        assert_eq!((outcome.code, outcome.out), (EXIT_FAILED, expected));
        thread.join().unwrap();
    }

    #[test]
    fn health_fails_when_the_answer_is_not_http_or_there_is_none() {
        for reply in [&b""[..], b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 \r\n\r\n"] {
            let (port, thread) = responder(reply);
            let outcome = try_run(&["health"], &[("LISTEN_PORT", &port.to_string())]);
            assert_eq!(outcome.code, EXIT_FAILED);
            assert!(
                outcome.out.contains("the reply is not HTTP"),
                "{}",
                outcome.out
            );
            thread.join().unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        drop(listener);
        let outcome = try_run(&["health", "--listen-port", &port], &[]);
        assert_eq!(outcome.code, EXIT_FAILED);
        assert!(
            outcome.out.contains("no answer from 127.0.0.1:"),
            "{}",
            outcome.out
        );
    }

    #[test]
    fn health_needs_a_port() {
        let outcome = try_run(&["health"], &[("LISTEN_PORT", "0")]);
        assert_eq!(outcome.code, EXIT_SETTINGS);
        assert!(outcome.err.contains("LISTEN_PORT=0: expected the port"));
    }
}
