//! `status`: the running proxy's `/status.json` in a terminal. Owns: its words. Must not: know more
//! than that document says.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::output::Streams;
use super::progress::{bar, bytes};
use super::running::{self, LocalQuestion, ProxyAddress};
use crate::config::{EXIT_OK, Settings};
use crate::secret::{Secret, basic_authorization};
use crate::upstream::loopback::LoopbackCertificates;

/// The document is made in a moment.
const LIMIT: Duration = Duration::from_secs(5);
/// The largest document, with 200 transfers and 100 failures, has some 300 KB.
const BYTES_MAX: usize = 4 << 20;
/// Longest login: a password of bcrypt has 72 bytes.
const LOGIN_BYTES_MAX: u64 = 1024;
/// Time between two looks with `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Failures that are shown.
const FAILURES_SHOWN: usize = 5;
/// Clears a terminal and goes to its beginning (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What the command line asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form<'a> {
    /// The document itself.
    pub(super) json: bool,
    /// Again and again, until the output or the proxy is gone.
    pub(super) watch: bool,
    /// A file with `USER:PASSWORD`.
    pub(super) login: Option<&'a Path>,
    /// A PEM file with our certificate and its key.
    pub(super) certificate: Option<&'a Path>,
}

/// Shows the status of the proxy that runs with the same settings.
pub(super) fn run(settings: &Settings, form: Form<'_>, streams: &mut Streams<'_>) -> u8 {
    let place = ProxyAddress::of_status(settings);
    let login = form.login.map(read_login).transpose();
    let (place, login) = match (place, login) {
        (Ok(place), Ok(login)) => (place, login),
        (Err(why), _) | (_, Err(why)) => return streams.complain(&[why]),
    };
    // At an address of its own it is plain HTTP, without login. A secret goes to the certificate
    // that we know.
    let is_tls = settings.tls.enabled && settings.metrics.listen.is_none();
    let known = settings.tls.certificate.as_deref();
    let question = LocalQuestion {
        tls: is_tls.then_some(LoopbackCertificates {
            proxy: known.filter(|_| login.is_some()),
            client: form.certificate,
        }),
        authorization: login.as_ref().filter(|_| settings.metrics.listen.is_none()),
        target: "/status.json",
        command: "status",
        limit: LIMIT,
        bytes_max: BYTES_MAX,
    };
    let clears = form.watch && !form.json && std::io::stdout().is_terminal();
    loop {
        let shown = match ask(&place, question, form.json) {
            Ok(shown) => shown,
            Err(why) => return streams.fail(&format!("{why}\n")),
        };
        let before = if clears { CLEAR } else { "" };
        // A reader that has gone has seen what it wanted.
        let written = write!(streams.out, "{before}{shown}").and_then(|()| streams.out.flush());
        match written {
            Ok(()) if !form.watch => return EXIT_OK,
            Ok(()) => std::thread::sleep(WATCH_INTERVAL),
            Err(_) => return streams.print(""),
        }
    }
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
fn ask(place: &ProxyAddress, question: LocalQuestion<'_>, json: bool) -> Result<String, String> {
    let answer = running::ask(place, question);
    let (status, body) = answer.map_err(|error| format!("no answer from {place}: {error}"))?;
    match (status, question.authorization) {
        (200, _) if json => Ok(format!("{}\n", body.trim_end())),
        (200, _) => match serde_json::from_str(&body) {
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
        (404, _) => Err(format!("{place} has no status page: STATUS_PAGE=false")),
        _ => Err(format!("{place} answered {status}: {}", body.trim())),
    }
}

/// The document in words.
fn describe(document: &Value) -> String {
    let mut lines = vec![text(&document["sentence"])];
    let mut row = |name: &str, words: String| lines.push(format!("{name:<10} {words}"));
    let identity = &document["identity"];
    if !identity.is_null() {
        let source = text(&identity["source"]);
        row(
            "identity",
            format!("{} (from {source})", text(&identity["arn"])),
        );
    }
    for registry in list(&document["registries"]) {
        row("registry", describe_registry(registry));
    }
    let cache = &document["cache"];
    if !cache.is_null() {
        row("cache", describe_cache(cache));
    }
    let day = &document["day"];
    let count = |name: &str| format!("{} {name}", number(&day[name]));
    let names = ["hit", "stale", "miss", "other", "refused", "failed"].map(count);
    let saved = bytes(number(&day["saved_bytes"]));
    row("24 hours", format!("{}; {saved} saved", names.join(", ")));
    let transfers = &document["transfers"];
    for transfer in list(&transfers["running"]) {
        row(
            text(&transfer["kind"]).as_str(),
            describe_transfer(transfer),
        );
    }
    for failure in list(&document["failures"]).iter().take(FAILURES_SHOWN) {
        let [at, method, target] = ["at", "method", "target"].map(|name| text(&failure[name]));
        let (error, id) = (text(&failure["error"]), text(&failure["request"]));
        let status = number(&failure["status"]);
        row(
            "failure",
            format!("{at} {status} {method} {target}: {error} (request {id})"),
        );
    }
    // Names and errors come from clients and registries; a terminal obeys control characters.
    let clean = lines.iter().map(|line| line.replace(char::is_control, " "));
    clean.map(|line| line + "\n").collect()
}

fn describe_registry(registry: &Value) -> String {
    let token = &registry["token"];
    let mut words = text(&registry["name"]);
    if let Some(left) = token["left_s"].as_u64() {
        words.push_str(&format!(": token {} left", span(left)));
        if let Some(renews) = token["renews_s"].as_u64() {
            words.push_str(&format!(", renewal in {}", span(renews)));
        }
    } else if !token.is_null() {
        words.push_str(": no token");
    }
    if registry["breaker"] == "open" {
        words.push_str("; out of reach");
    }
    for error in [&token["last_error"], &registry["last_error"]] {
        if let Some(error) = error.as_str() {
            words.push_str(&format!("; last error: {error}"));
        }
    }
    words
}

fn describe_cache(cache: &Value) -> String {
    let [used, quota, free] =
        ["used_bytes", "quota_bytes", "free_bytes"].map(|name| bytes(number(&cache[name])));
    let [evicted, damaged] = ["evicted_images", "damaged_blobs"].map(|name| number(&cache[name]));
    let directory = text(&cache["directory"]);
    let pins = match cache["is_full_of_pins"] == true {
        true => "; pinned images fill it, others are not kept",
        false => "",
    };
    let scrub = match (&cache["scrub_ended"], cache["scrub_percent"].as_u64()) {
        (_, Some(percent)) => format!("; scrub at {percent}%"),
        (Value::String(ended), None) => format!("; last scrub {ended}"),
        _ => String::new(),
    };
    format!(
        "{used} of {quota} in {directory}{pins}{scrub}; {free} free on the disk; {evicted} images \
         evicted, {damaged} blobs damaged"
    )
}

fn describe_transfer(transfer: &Value) -> String {
    let (done, total) = (number(&transfer["bytes"]), transfer["total_bytes"].as_u64());
    let mut words = match total.filter(|total| *total > 0) {
        Some(total) => bar(done, total),
        None => bytes(done),
    };
    words.push_str(&format!(
        ", {}/s",
        bytes(number(&transfer["bytes_per_second"]))
    ));
    if let Some(left) = transfer["left_s"].as_u64() {
        words.push_str(&format!(", {} left", span(left)));
    }
    let idle = number(&transfer["idle_s"]);
    if idle >= 10 {
        words.push_str(&format!(", NO BYTE FOR {}", span(idle)));
    }
    let digest: String = text(&transfer["digest"]).chars().take(19).collect();
    let (repository, clients) = (text(&transfer["repository"]), number(&transfer["clients"]));
    format!(
        "{words}; {repository} {digest}, {clients} clients, from {}",
        text(&transfer["source"])
    )
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("not known").to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
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
            "registry   r.example: token 2 h 1 min left, renewal in 1 min 1 s; out of reach; last \
             error: gone\n",
            "24 hours   3 hit, 0 stale, 0 miss, 0 other, 0 refused, 0 failed; 2.0 KiB saved\n",
            "fill       [=====               ]  25% 50 B of 200 B, 10 B/s, 15 s left, NO BYTE FOR \
             12 s; team/ [31mapp sha256:0123456789ab, 2 clients, from upstream\n",
        ] {
            assert!(shown.contains(line), "{line}{shown}");
        }
        assert!(!shown.contains('\u{1b}'));
    }
}
