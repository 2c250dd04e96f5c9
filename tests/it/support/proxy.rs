//! The proxy as a child process. Owns: its start with a clean environment, its log, its end.
//! Must not: be shared between tests.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use standin::Standin;

/// For the proxy to listen, or to end: a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at a condition that nobody signals.
const POLL: Duration = Duration::from_millis(10);

/// Waits until `done` is true; panics with `what` when that takes longer than `limit`.
pub(crate) fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// The proxy in front of a stand-in.
pub(crate) fn proxy_for(standin: &Standin) -> Proxy {
    Proxy::in_front_of(standin, &[])
}

/// A running proxy. Dropping it kills it, and shows its log when the test is failing.
pub(crate) struct Proxy {
    child: Child,
    log: Arc<Log>,
    address: Option<SocketAddr>,
}

#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Proxy {
    /// Starts the proxy with these settings alone and waits until it listens.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        let mut command = Self::command();
        command.envs(settings.iter().copied());
        Self::start_command(command)
    }

    /// Starts it in front of a stand-in, with further (or other) settings.
    pub(crate) fn in_front_of(standin: &Standin, settings: &[(&str, &str)]) -> Self {
        let mut command = Self::command();
        command
            .envs(standin.settings())
            .envs(settings.iter().copied());
        Self::start_command(command)
    }

    /// The binary with the settings all tests share, and nothing of the test's own environment.
    pub(crate) fn command() -> Command {
        Self::clean(Command::new(env!("CARGO_BIN_EXE_aws-ecr-proxy")))
    }

    /// The same, started by a shell after `prefix` (such as `ulimit -n 200;`), in the shell's own
    /// process.
    pub(crate) fn command_after(prefix: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        let script = format!("{prefix} exec \"$0\" \"$@\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_aws-ecr-proxy")]);
        Self::clean(command)
    }

    /// The same, started by a program that takes the place of itself, such as `unshare`.
    pub(crate) fn command_through(program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg(env!("CARGO_BIN_EXE_aws-ecr-proxy"));
        Self::clean(command)
    }

    fn clean(mut command: Command) -> Command {
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("LISTEN_HOST", "127.0.0.1")
            .env("LISTEN_PORT", "0")
            .env("LOG_LEVEL", "DEBUG")
            // No test may ask the machine that it runs on for its role.
            .env("AWS_EC2_METADATA_DISABLED", "true");
        command
    }

    /// Starts a command and waits until it listens.
    pub(crate) fn start_command(command: Command) -> Self {
        let mut proxy = Self::spawn(command);
        let found = proxy
            .log
            .wait(PATIENCE, |lines| lines.iter().find_map(|l| listening(l)));
        let Some(address) = found else {
            // Dropping it shows the log.
            panic!("the proxy does not listen: {:?}", proxy.child.try_wait());
        };
        proxy.address = Some(address);
        proxy
    }

    /// Starts a command without waiting, for starts that are to fail.
    pub(crate) fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Self::spawn_on(command)
    }

    /// The same with standard input and output as they are set.
    pub(crate) fn spawn_on(mut command: Command) -> Self {
        command.stderr(Stdio::piped());
        let mut child = command.spawn().expect("the proxy's process");
        let log = Arc::new(Log::default());
        let errors = child.stderr.take().expect("its standard error");
        Log::collect(&log, "proxy-stderr", errors, true);
        if let Some(output) = child.stdout.take() {
            Log::collect(&log, "proxy-stdout", output, false);
        }
        Self {
            child,
            log,
            address: None,
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address.expect("a proxy that listens")
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All lines it has written so far, standard output included.
    pub(crate) fn log(&self) -> String {
        self.log.lines().join("\n")
    }

    /// Waits for a line that contains `text`.
    pub(crate) fn wait_for_log(&self, text: &str) -> String {
        self.wait_for_log_within(text, PATIENCE)
    }

    /// Waits for a line that contains `text`, no longer than `limit`.
    pub(crate) fn wait_for_log_within(&self, text: &str, limit: Duration) -> String {
        let find = |lines: &[String]| lines.iter().find(|line| line.contains(text)).cloned();
        let found = self.log.wait(limit, find);
        found.unwrap_or_else(|| panic!("no line with {text:?} within {limit:?}"))
    }

    /// True while the process runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("the child's status").is_none()
    }

    /// Resident memory in KiB.
    pub(crate) fn rss_kib(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The highest resident memory there was, in KiB.
    pub(crate) fn peak_rss_kib(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Threads.
    pub(crate) fn threads(&self) -> u64 {
        self.status("Threads:")
    }

    /// The names of its threads.
    pub(crate) fn thread_names(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid()));
        let tasks = tasks.expect("a running proxy").filter_map(Result::ok);
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
        tasks
            .filter_map(|task| name(task).ok())
            .map(|name| name.trim().to_owned())
            .collect()
    }

    /// Open descriptors.
    pub(crate) fn fds(&self) -> usize {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
        fds.expect("a running proxy").count()
    }

    /// CPU time used so far, of all threads.
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        let stat = stat.expect("a running proxy");
        // proc(5): after the name in brackets, utime and stime are fields 12 and 13 (from 1), in
        // ticks of 1/100 s.
        let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
        let fields = fields.split(' ').skip(11).take(2);
        let ticks: u64 = fields
            .map(|ticks| ticks.parse::<u64>().expect("ticks"))
            .sum();
        Duration::from_millis(ticks * 10)
    }

    fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("a running proxy");
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {status}"))
    }

    /// Sends SIGTERM.
    pub(crate) fn term(&self) {
        self.signal("TERM");
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(
            sent.expect("the kill command").success(),
            "kill -s {name} {pid}"
        );
    }

    /// Waits for its end.
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        self.wait_exit_within(PATIENCE)
    }

    /// Waits for its end, no longer than `limit`. Its log is whole afterwards.
    pub(crate) fn wait_exit_within(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        wait_until("the proxy ends", limit, || {
            status = self.child.try_wait().expect("the child's status");
            status.is_some()
        });
        self.log.wait_closed();
        status.expect("a status")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.log.wait_closed();
            let log = self.log();
            #[expect(
                clippy::print_stderr,
                reason = "the harness shows it with the failed test"
            )]
            {
                eprintln!("--- log of the proxy ---\n{log}\n--- end of the log ---");
            }
        }
    }
}

impl Log {
    /// Adds each line that comes, in a thread that ends with the stream.
    fn collect(
        log: &Arc<Self>,
        thread: &str,
        stream: impl std::io::Read + Send + 'static,
        closes: bool,
    ) {
        let log = Arc::clone(log);
        let collect = move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream
                .read_until(b'\n', &mut line)
                .is_ok_and(|count| count > 0)
            {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                log.change(|lines| lines.0.push(text));
                line.clear();
            }
            log.change(|lines| lines.1 |= closes);
        };
        let spawned = Builder::new().name(thread.into()).spawn(collect);
        spawned.expect("a thread for the proxy's log");
    }

    fn change(&self, change: impl FnOnce(&mut (Vec<String>, bool))) {
        change(&mut self.lines.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn lines(&self) -> Vec<String> {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .clone()
    }

    /// Waits until `find` finds something, the log is closed, or the time is over.
    fn wait<T>(&self, limit: Duration, find: impl Fn(&[String]) -> Option<T>) -> Option<T> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let open = |lines: &mut (Vec<String>, bool)| !lines.1 && find(&lines.0).is_none();
        let outcome = self.changed.wait_timeout_while(lines, limit, open);
        let lines = outcome.unwrap_or_else(PoisonError::into_inner).0;
        find(&lines.0)
    }

    fn wait_closed(&self) {
        self.wait(Duration::from_secs(2), |_| None::<()>);
    }
}

/// The address in a line that says `listening on …`.
fn listening(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("listening on ")?;
    let end = rest.find(|c: char| !c.is_ascii_hexdigit() && !".:[]".contains(c));
    rest[..end.unwrap_or(rest.len())].parse().ok()
}

mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_address_is_found_in_text_and_in_json() {
        let text = "2026-11-22T02:45:01.123Z INFO listening on 127.0.0.1:34567 workers=8";
        assert_eq!(listening(text).unwrap().port(), 34567);
        let json = r#"{"level":"INFO","message":"listening on [::1]:8080","workers":8}"#;
        assert_eq!(listening(json).unwrap().to_string(), "[::1]:8080");
        assert_eq!(listening("INFO shutting down"), None);
        assert_eq!(listening("INFO listening on nothing"), None);
    }

    #[test]
    fn a_process_is_watched_signalled_and_awaited() {
        let script = "echo 'INFO listening on 127.0.0.1:9 x=y' >&2; echo out; exec sleep 60";
        let mut proxy = Proxy::start_command(shell(script));
        assert_eq!(proxy.address().port(), 9);
        proxy.wait_for_log("out");
        assert!(proxy.is_alive() && proxy.rss_kib() > 0 && proxy.fds() >= 3);
        assert_eq!((proxy.threads(), proxy.thread_names().len()), (1, 1));
        assert!(proxy.cpu_time() < Duration::from_secs(5));
        proxy.term();
        assert_eq!(proxy.wait_exit().code(), None);
        assert!(!proxy.is_alive());
    }

    #[test]
    fn a_start_that_fails_shows_its_status_and_log() {
        let mut proxy = Proxy::spawn(shell("echo 'LISTEN_PORT=x: expected' >&2; exit 64"));
        assert_eq!(proxy.wait_exit().code(), Some(64));
        assert!(proxy.log().contains("expected"));
    }
}
