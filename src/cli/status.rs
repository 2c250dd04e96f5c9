//! `status`: the running proxy's `/status.json` in a terminal. Owns: which of its fields are shown.
//! Must not: know more than that document says.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::slice;
use std::time::Duration;

use serde_json::Value;

use super::invocation::{CommandFault, Invocation};
use super::output::Streams;
use super::progress::{bar, bytes};
use super::running::{self, LocalQuestion};
use crate::config::EXIT_OK;
use crate::secret::{Secret, basic_authorization};
use crate::upstream::loopback::LoopbackCertificates;

/// Longest login: a password of bcrypt has 72 bytes.
const LOGIN_BYTES_MAX: u64 = 1024;
/// Time between two pictures with `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Clears a terminal and goes to its beginning (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Shows the status of the proxy that runs with the same settings.
pub(super) fn run(command: Invocation<'_>, streams: &mut Streams<'_>) -> Result<u8, CommandFault> {
    let question = form_question(command).map_err(|why| CommandFault::Usage(vec![why]))?;
    let (json, watch) = (command.has("--json"), command.has("--watch"));
    let clears = watch && !json && std::io::stdout().is_terminal();
    loop {
        let shown = ask(&question, json)?;
        let before = if clears { CLEAR } else { "" };
        // A reader that has gone has seen what it wanted.
        let written = write!(streams.out, "{before}{shown}").and_then(|()| streams.out.flush());
        match written {
            Ok(()) if !watch => return Ok(EXIT_OK),
            Ok(()) => std::thread::sleep(WATCH_INTERVAL),
            Err(_) => return Ok(streams.print("")),
        }
    }
}

/// Builds the question to the proxy. At an address of its own, the status is plain HTTP without
/// login. A login is sent only to the certificate that we know.
fn form_question(command: Invocation<'_>) -> Result<LocalQuestion, String> {
    let settings = command.settings;
    let path = |flag| command.value(flag).map(PathBuf::from);
    let place = match &settings.metrics.listen {
        None => running::place(&settings.listen_host, settings.listen_port, "LISTEN_PORT=0"),
        Some(own) => running::place(&own.host, own.port, "METRICS_LISTEN with port 0"),
    };
    let login = path("--login").map(|path| read_login(&path)).transpose()?;
    let certificate = path("--certificate");
    if let Some(path) = &certificate {
        File::open(path).map_err(|error| format!("--certificate={}: {error}", path.display()))?;
    }
    let shares_door = settings.metrics.listen.is_none();
    let tls = LoopbackCertificates {
        proxy: settings.tls.certificate.clone().filter(|_| login.is_some()),
        client: certificate,
    };
    Ok(LocalQuestion {
        place: place?,
        tls: (settings.tls.enabled && shares_door).then_some(tls),
        authorization: login.filter(|_| shares_door),
        target: "/status.json",
        command: "status",
    })
}

/// The value of `Authorization` for the login in a file.
fn read_login(path: &Path) -> Result<Secret<String>, String> {
    let fault = |why: &str| format!("--login={}: {why}", path.display());
    let mut text = String::new();
    let file =
        File::open(path).and_then(|file| file.take(LOGIN_BYTES_MAX).read_to_string(&mut text));
    let text = Secret::new(text);
    file.map_err(|error| fault(&error.to_string()))?;
    let line = text.expose().lines().next().unwrap_or_default();
    match line.find(':') {
        Some(1..) => Ok(basic_authorization(&Secret::new(line.to_owned()))),
        _ => Err(fault("expected USER:PASSWORD in its first line")),
    }
}

/// The status, as it is shown.
fn ask(question: &LocalQuestion, json: bool) -> Result<String, String> {
    let (status, body) = running::ask(question)?;
    let place = &question.place;
    match (status, &question.authorization) {
        (200, _) => match serde_json::from_str::<Value>(&body) {
            Ok(document) if document.get("sentence").is_none() => {
                Err(format!("another server answers at {place}"))
            }
            Ok(_) if json => Ok(format!("{}\n", body.trim_end())),
            Ok(document) => Ok(describe(&document)),
            Err(error) => Err(format!("{place} answered no JSON: {error}")),
        },
        (401, None) => Err(format!(
            "{place} asks for a login: give --login a file with USER:PASSWORD"
        )),
        (401, Some(_)) => Err(format!("{place} refuses the login")),
        (403, _) => Err(format!(
            "{place} asks for a client certificate: give --certificate a PEM file with one and its \
             key"
        )),
        (404, _) => Err(format!(
            "{place} has no status page: STATUS_PAGE=false, or another server answers there"
        )),
        _ => Err(format!("{place} answered {status}: {}", body.trim())),
    }
}

/// The lines: their name, the place of the object or of the list in the document, how many lines
/// are shown, and their fields.
#[rustfmt::skip]
const ROWS: [(&str, &str, usize, &str); 6] = [
    ("identity", "/identity", 1, "arn source last_error"),
    ("registry", "/registries", usize::MAX,
        "name breaker last_error token/left_s token/renews_s token/last_error"),
    ("cache", "/cache", 1, "directory used_bytes quota_bytes free_bytes is_full_of_pins \
        evicted_images damaged_blobs scrub_percent scrub_ended"),
    ("24 hours", "/day", 1, "hit stale miss other refused failed saved_bytes"),
    // Its kind is the name of the line.
    ("", "/transfers/running", usize::MAX, "left_s idle_s repository digest clients source"),
    ("failure", "/failures", 5, "at status method target error request"),
];

/// The document, a line for each thing.
fn describe(document: &Value) -> String {
    let mut text = show("sentence", &document["sentence"]) + "\n";
    for (name, place, most, fields) in ROWS {
        let objects = match document.pointer(place) {
            Some(Value::Array(list)) => list.as_slice(),
            Some(one) => slice::from_ref(one),
            None => &[],
        };
        for object in objects.iter().take(most) {
            let mut words = list_fields(object, fields);
            let mut name = name.to_owned();
            if name.is_empty() {
                name = show("kind", &object["kind"]);
                words.splice(..0, describe_progress(object));
            }
            if !words.is_empty() {
                text.push_str(&format!("{name:<10} {}\n", words.join(", ")));
            }
        }
    }
    text
}

/// How far a transfer is, and how fast.
fn describe_progress(transfer: &Value) -> [String; 2] {
    let number = |name: &str| transfer[name].as_u64().unwrap_or_default();
    let done = match number("total_bytes") {
        0 => bytes(number("bytes")),
        total => bar(number("bytes"), total),
    };
    [done, format!("{}/s", bytes(number("bytes_per_second")))]
}

/// The fields at these places that have a value, each with its name without the unit.
fn list_fields(object: &Value, names: &str) -> Vec<String> {
    let field = |name: &str| {
        let words = name.trim_end_matches("_bytes").trim_end_matches("_s");
        let words = words.replace(['_', '/'], " ");
        match object.pointer(&format!("/{name}"))? {
            Value::Null | Value::Bool(false) => None,
            Value::Bool(true) => Some(words),
            value => Some(format!("{words} {}", show(name, value))),
        }
    };
    names.split(' ').filter_map(field).collect()
}

/// A value in the unit that its field's name has. Names and errors come from clients and
/// registries, so control characters are removed: a terminal obeys them.
fn show(name: &str, value: &Value) -> String {
    let number = value.as_u64().unwrap_or_default();
    match value {
        Value::String(text) => text.replace(char::is_control, " "),
        Value::Number(_) if name.ends_with("_bytes") => bytes(number),
        Value::Number(_) if name.ends_with("_s") => span(number),
        other => other.to_string(),
    }
}

/// A time with its two largest units.
fn span(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bug_any_json_was_shown_as_the_status() {
        use std::io::Write as _;
        for (body, why) in [
            ("{}", "another server answers at "),
            ("ok\x1b[2J", "no JSON"),
        ] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port().to_string();
            let answer = move || {
                let (mut stream, _) = listener.accept().unwrap();
                assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
                write!(stream, "HTTP/1.1 200 OK\r\n\r\n{body}").unwrap();
            };
            let thread = std::thread::Builder::new().spawn(answer).unwrap();
            let command = ["status", "--json", "--listen-port", &port];
            let outcome = super::super::tests::try_run(&command, &[]);
            assert_eq!(outcome.code, crate::config::EXIT_FAILED);
            assert!(outcome.out.contains(why), "{}", outcome.out);
            thread.join().unwrap();
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(300 << 20), "300.0 MiB");
        assert_eq!(bytes(1 << 60), "1.0 EiB");
        assert_eq!([59, 61, 7260].map(span), ["59 s", "1 min 1 s", "2 h 1 min"]);
    }

    #[test]
    fn a_document_is_told_in_lines_and_cannot_steer_the_terminal() {
        let document = serde_json::json!({
            "sentence": "Ready.",
            "identity": {"arn": "arn:aws:iam::1:role/x", "source": "environment"},
            "registries": [{"name": "r.example", "breaker": "open", "last_error": "gone",
                "token": {"left_s": 7260, "renews_s": 61, "last_error": null}}],
            "cache": null,
            "day": {"hit": 3, "saved_bytes": 2048},
            "transfers": {"running": [{"kind": "fill", "bytes": 50, "total_bytes": 200,
                "bytes_per_second": 10, "left_s": 15, "idle_s": 12, "clients": 2,
                "repository": "team/\u{1b}[31mapp", "digest": "sha256:0123456789abcdef",
                "source": "upstream"}]},
            "failures": [],
        });
        let shown = describe(&document);
        for line in [
            "Ready.\n",
            "identity   arn arn:aws:iam::1:role/x, source environment\n",
            "registry   name r.example, breaker open, last error gone, token left 2 h 1 min, token \
             renews 1 min 1 s\n",
            "24 hours   hit 3, saved 2.0 KiB\n",
            "fill       [=====               ]  25% 50 B of 200 B, 10 B/s, left 15 s, idle 12 s, \
             repository team/ [31mapp, digest sha256:0123456789abcdef, clients 2, source \
             upstream\n",
        ] {
            assert!(shown.contains(line), "{line}{shown}");
        }
        assert!(!shown.contains('\u{1b}'));
    }
}
