//! `credential_process`: a program that prints credentials. Owns: its command line, its bounds and
//! its end. Must not: use a shell, or show what it printed to standard output.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::super::credentials::Credentials;
use super::super::fault::AwsFault;
use super::document;
use crate::secret::Secret;

/// Longest time for the program, as in the SDK for Go (`processcreds.DefaultTimeout`).
const TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes of credentials; session tokens have a few kB.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// Most bytes kept of standard error; the rest is read and thrown away.
const COMPLAINT_BYTES_MAX: usize = 4 * 1024;
/// Most characters of it that are passed on.
const COMPLAINT_CHARS_MAX: usize = 300;
/// Pause between two checks whether it has ended: its children may hold the pipes open.
const STEP: Duration = Duration::from_millis(20);
/// Words of this length with both letters and digits are taken for secrets.
const SECRET_LENGTH_MIN: usize = 16;

/// The limits of a program.
#[derive(Debug, Clone, Copy)]
struct ProgramLimits {
    time: Duration,
    output_bytes: usize,
}

const LIMITS: ProgramLimits = ProgramLimits {
    time: TIMEOUT,
    output_bytes: OUTPUT_BYTES_MAX,
};

/// Runs `command` and reads the credentials it prints; `source` names them. Blocks for [`TIMEOUT`]
/// at the longest.
///
/// # Errors
/// Why there are none.
pub(super) fn fetch(command: &Secret<String>, source: &str) -> Result<Credentials, AwsFault> {
    let fault = |why: String| format!("{source}: {why}");
    let words = split(command.expose())
        .map_err(|why| AwsFault::lasting(fault(format!("credential_process: {why}"))))?;
    let output = run(&words, LIMITS).map_err(|why| AwsFault::passing(fault(why)))?;
    read(&output, source).map_err(|why| AwsFault::passing(fault(why)))
}

/// The credentials in what the program printed (SDKs and Tools reference guide, "Process
/// credential provider").
fn read(output: &Secret<Vec<u8>>, source: &str) -> Result<Credentials, String> {
    let document: Value = serde_json::from_slice(output.expose())
        .map_err(|_| "what the program printed is not JSON".to_owned())?;
    if document.get("Version").and_then(Value::as_u64) != Some(1) {
        return Err("what the program printed lacks \"Version\": 1".into());
    }
    document::keys(&document, "SessionToken", source.to_owned())
        .map_err(|why| format!("what the program printed {why}"))
}

/// Splits a command line as a POSIX shell would, without expanding anything.
pub(super) fn split(command: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        let literal = match (quote, c) {
            (Some(mark), c) if c == mark => {
                quote = None;
                continue;
            }
            (Some('\''), c) => c,
            // Between double quotation marks it escapes these two only.
            (Some(_), '\\') => match chars.next() {
                Some(c @ ('"' | '\\')) => c,
                Some(c) => {
                    word.get_or_insert_default().push('\\');
                    c
                }
                None => return Err("a quotation mark is not closed"),
            },
            (Some(_), c) => c,
            (None, mark @ ('"' | '\'')) => {
                quote = Some(mark);
                word.get_or_insert_default();
                continue;
            }
            (None, '\\') => chars.next().ok_or("it ends in a backslash")?,
            (None, c) if c.is_whitespace() => {
                words.extend(word.take());
                continue;
            }
            (None, c) => c,
        };
        word.get_or_insert_default().push(literal);
    }
    if quote.is_some() {
        return Err("a quotation mark is not closed");
    }
    words.extend(word);
    if words.first().is_none_or(String::is_empty) {
        return Err("it names no program");
    }
    Ok(words)
}

/// Runs the program and gives back what it wrote to standard output.
fn run(words: &[String], limits: ProgramLimits) -> Result<Secret<Vec<u8>>, String> {
    let (program, arguments) = words.split_first().ok_or("it names no program")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that it can be ended with all that it has started.
        .process_group(0);
    let child = command.spawn().map_err(|error| {
        format!(
            "{program} cannot be run: {error}; the container image has no programs, mount one \
             that is static"
        )
    })?;
    let mut running = ChildGuard(child);
    let deadline = Instant::now() + limits.time;
    let ProgramEnd {
        output,
        complaint,
        status,
    } = running.watch(deadline, limits.output_bytes)?;
    let status = status.ok_or_else(|| {
        format!(
            "{program} has not ended within {} s, and was killed{}",
            limits.time.as_secs_f32(),
            describe_complaint(&complaint)
        )
    })?;
    if output.expose().len() > limits.output_bytes {
        let limit = limits.output_bytes;
        return Err(format!("{program} printed more than {limit} bytes"));
    }
    if !status.success() {
        return Err(format!(
            "{program} failed: {status}{}",
            describe_complaint(&complaint)
        ));
    }
    Ok(output)
}

/// A program that is killed with all its children when this goes.
struct ChildGuard(Child);

/// The results of a program.
struct ProgramEnd {
    /// Standard output.
    output: Secret<Vec<u8>>,
    /// Standard error.
    complaint: Vec<u8>,
    /// None when it has not ended.
    status: Option<ExitStatus>,
}

impl ChildGuard {
    /// Reads both its outputs until it ends, prints too much, or the time is over.
    fn watch(&mut self, deadline: Instant, output_bytes: usize) -> Result<ProgramEnd, String> {
        let mut output = Capture::new(self.0.stdout.take());
        let mut complaint = Capture::new(self.0.stderr.take());
        let fault =
            |error: &dyn std::fmt::Display| format!("the program cannot be watched: {error}");
        let status = loop {
            // This comes before reading: when it has ended, the pipes hold all that it wrote.
            let ended = self.0.try_wait().map_err(|error| fault(&error))?;
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = if ended.is_some() {
                Duration::ZERO
            } else {
                STEP.min(left)
            };
            let ready = wait_readable(output.pipe.as_ref(), complaint.pipe.as_ref(), wait);
            let (has_output, has_complaint) = ready.map_err(|error| fault(&error))?;
            if has_output && output.read_once(output_bytes + 1) {
                break Some(ended.unwrap_or_default());
            }
            if has_complaint {
                complaint.read_once(COMPLAINT_BYTES_MAX);
            }
            if ended.is_some() && !has_output && !has_complaint {
                break ended;
            }
            if left.is_zero() {
                break None;
            }
        };
        Ok(ProgramEnd {
            output: Secret::new(output.bytes),
            complaint: complaint.bytes,
            status,
        })
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        // Nobody else can get its number, or that of its group, until it is waited for.
        if let Ok(None) = self.0.try_wait() {
            if let Some(group) = i32::try_from(self.0.id())
                .ok()
                .and_then(rustix::process::Pid::from_raw)
            {
                let kill = rustix::process::Signal::KILL;
                let _ = rustix::process::kill_process_group(group, kill);
            }
            let _ = self.0.wait();
        }
    }
}

/// Waits until a pipe can be read, or `wait` is over. Says for each pipe whether it can be.
fn wait_readable(
    output: Option<&impl AsFd>,
    complaint: Option<&impl AsFd>,
    wait: Duration,
) -> rustix::io::Result<(bool, bool)> {
    let mut fds = Vec::with_capacity(2);
    fds.extend(output.map(|pipe| PollFd::new(pipe, PollFlags::IN)));
    fds.extend(complaint.map(|pipe| PollFd::new(pipe, PollFlags::IN)));
    let wait = Timespec {
        tv_sec: 0,
        tv_nsec: wait.subsec_nanos().into(),
    };
    match poll(&mut fds, Some(&wait)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error),
    }
    let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
    let output = output.is_some() && ready.next().unwrap_or_default();
    let complaint = complaint.is_some() && ready.next().unwrap_or_default();
    Ok((output, complaint))
}

/// A pipe of the program, and the first bytes that came from it.
struct Capture<R> {
    /// None once it has ended.
    pipe: Option<R>,
    bytes: Vec<u8>,
}

impl<R: Read> Capture<R> {
    const fn new(pipe: Option<R>) -> Self {
        Self {
            pipe,
            bytes: Vec::new(),
        }
    }

    /// Reads once from a pipe that is ready, which does not block. Keeps `bytes_max` bytes in all;
    /// true when so many have come.
    fn read_once(&mut self, bytes_max: usize) -> bool {
        let mut piece = [0; 4096];
        let read = self.pipe.as_mut().map(|pipe| pipe.read(&mut piece));
        match read {
            Some(Ok(count @ 1..)) => {
                let room = bytes_max.saturating_sub(self.bytes.len()).min(count);
                self.bytes.extend(piece.iter().take(room));
            }
            _ => self.pipe = None,
        }
        self.bytes.len() >= bytes_max
    }
}

/// Standard error on one line, without words that may be secrets.
fn describe_complaint(complaint: &[u8]) -> String {
    let text = String::from_utf8_lossy(complaint);
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let words: Vec<String> = words.filter(|word| !word.is_empty()).map(redact).collect();
    if words.is_empty() {
        return String::new();
    }
    let line = words.join(" ");
    format!(
        ": {}",
        line.chars().take(COMPLAINT_CHARS_MAX).collect::<String>()
    )
}

/// Generated keys, tokens and passwords are long, and mix letters with digits. Between two marks,
/// words and paths seldom do both. An equals sign is no such mark: base64 may end in one.
fn redact(word: &str) -> String {
    let part = |c: char| c.is_ascii_alphanumeric() || "+/=_-".contains(c);
    let mut out = String::new();
    let mut rest = word;
    while !rest.is_empty() {
        let end = rest.find(|c| !part(c)).unwrap_or(rest.len());
        let (run, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        let secret = run.len() >= SECRET_LENGTH_MIN
            && run.bytes().any(|b| b.is_ascii_digit())
            && run.bytes().any(|b| b.is_ascii_alphabetic());
        out.push_str(if secret { "***" } else { run });
        let mut marks = after.chars();
        out.extend(marks.next());
        rest = marks.as_str();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<String> {
        ["/bin/sh", "-c", script].map(ToOwned::to_owned).to_vec()
    }

    fn limited(script: &str, time_ms: u64) -> Result<String, String> {
        let limits = ProgramLimits {
            time: Duration::from_millis(time_ms),
            output_bytes: 100,
        };
        let output = run(&shell(script), limits)?;
        Ok(String::from_utf8(output.expose().clone()).unwrap())
    }

    #[test]
    fn command_lines_are_split_as_a_shell_would() {
        for (command, words) in [
            ("/bin/x --a b", &["/bin/x", "--a", "b"][..]),
            ("  x\t'a b'  \"c d\" ", &["x", "a b", "c d"]),
            (r#"x "a\"b\\c\d" 'e\f'"#, &["x", "a\"b\\c\\d", "e\\f"]),
            (r"x a\ b \'c", &["x", "a b", "'c"]),
            ("x '' a''b\"c\"", &["x", "", "abc"]),
            ("x $HOME `id` *;&|", &["x", "$HOME", "`id`", "*;&|"]),
        ] {
            assert_eq!(split(command).unwrap(), words, "{command}");
        }
        for bad in ["", "  ", "''", "x 'a", "x \"a", "x \"a\\", "x a\\"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn credentials_are_read_with_or_without_an_end() {
        let output = |text: &str| Secret::new(text.as_bytes().to_vec());
        let whole = r#"{"Version": 1, "AccessKeyId": "AKID", "SecretAccessKey": "hunter2",
            "SessionToken": "t", "Expiration": "2023-11-14T23:13:20+00:00"}"#;
        let found = read(&output(whole), "p").unwrap();
        assert_eq!(
            (found.access_key_id.as_str(), found.source.as_str()),
            ("AKID", "p")
        );
        assert_eq!(found.secret.expose(), "hunter2");
        assert_eq!(found.session_token, Some(Secret::new("t".into())));
        let expires = Duration::from_secs(1_700_003_600);
        assert_eq!(found.expires, Some(std::time::UNIX_EPOCH + expires));
        let short = r#"{"Version":1,"AccessKeyId":"AKID","SecretAccessKey":"hunter2"}"#;
        let found = read(&output(short), "p").unwrap();
        assert_eq!((found.session_token, found.expires), (None, None));
        for (cut, with, told) in [
            ("{", "hunter2", "is not JSON"),
            ("\"Version\":1", "\"Version\":2", "lacks \"Version\": 1"),
            ("\"Version\":1,", "", "lacks \"Version\": 1"),
            (
                "AccessKeyId\":\"AKID",
                "AccessKeyId\":\" ",
                "no AccessKeyId",
            ),
            ("\"hunter2\"", "7", "no SecretAccessKey"),
            (
                "}",
                ",\"Expiration\":\"soon\"}",
                "an Expiration that is no time",
            ),
        ] {
            let fault = read(&output(&short.replacen(cut, with, 1)), "p").unwrap_err();
            assert!(
                fault.contains(told) && !fault.contains("hunter2"),
                "{fault}"
            );
        }
    }

    #[test]
    fn what_a_program_prints_is_taken_whole() {
        assert_eq!(limited("printf abc; printf def", 9000).unwrap(), "abcdef");
        let exact = "a".repeat(100);
        assert_eq!(limited(&format!("printf {exact}"), 9000).unwrap(), exact);
        // It has ended; that its child holds the pipes is no reason to wait.
        let begun = Instant::now();
        assert_eq!(limited("sleep 30 & echo x", 20_000).unwrap(), "x\n");
        assert!(begun.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn a_failure_tells_its_status_and_complaint_but_no_output() {
        let script = "echo hunter2; echo 'no session for dev' >&2; exit 3";
        let fault = limited(script, 9000).unwrap_err();
        assert_eq!(fault, "/bin/sh failed: exit status: 3: no session for dev");
        let many = "i=0; while [ $i -lt 9000 ]; do echo many words >&2; i=$((i+1)); done; exit 1";
        let fault = limited(many, 20_000).unwrap_err();
        assert!(fault.len() < 400, "{fault}");
        let fault = run(&["/nonexistent/x".into()], LIMITS).unwrap_err();
        let told = "/nonexistent/x cannot be run: No such file";
        assert!(
            fault.starts_with(told) && fault.contains("static"),
            "{fault}"
        );
    }

    #[test]
    fn a_program_that_prints_without_end_is_killed() {
        let begun = Instant::now();
        let fault = limited("while :; do echo 0123456789; done", 60_000).unwrap_err();
        assert_eq!(fault, "/bin/sh printed more than 100 bytes");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_its_children() {
        let script = "echo waiting >&2; sleep 600 & echo $! >&2; wait";
        let fault = limited(script, 700).unwrap_err();
        let told = "/bin/sh has not ended within 0.7 s, and was killed: waiting ";
        let child = fault.strip_prefix(told).expect(&fault).to_owned();
        let status = format!("/proc/{child}/stat");
        // Gone, or a zombie for which its new parent has not waited yet.
        let lives = || {
            let stat = std::fs::read_to_string(&status).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
        };
        let until = Instant::now() + Duration::from_secs(60);
        while lives() {
            assert!(Instant::now() < until, "{child} lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn complaints_are_short_and_without_what_looks_like_a_secret() {
        for (complaint, told) in [
            ("", ""),
            (" \n", ""),
            ("no such\n\x1b profile: dev\n", ": no such profile: dev"),
            (
                "key: wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY!",
                ": key: ***!",
            ),
            ("key=wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY!", ": ***!"),
            (
                "token 'IQoJb3JpZ2luX2VjEJr' and /usr/share/vault-plugins",
                ": token '***' and /usr/share/vault-plugins",
            ),
            (
                "arn:aws:iam::123456789012:role/puller",
                ": arn:aws:iam::123456789012:role/puller",
            ),
        ] {
            assert_eq!(
                describe_complaint(complaint.as_bytes()),
                told,
                "{complaint}"
            );
        }
        assert_eq!(
            describe_complaint(&b"ab ".repeat(1000)).len(),
            COMPLAINT_CHARS_MAX + 2
        );
    }
}
