//! Messages to systemd: ready, status, reload, signs of life, the end.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use standin::{Options, Standin};

use crate::login::CHEAP;
use crate::support::{Http, Proxy, SOON, Scratch};

/// The service manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    folder: Scratch,
}

impl Manager {
    fn new() -> Self {
        let folder = Scratch::new();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self { socket, folder }
    }

    fn start(&self, standin: &Standin, settings: &[(&str, &str)]) -> Proxy {
        let path = self.folder.path().join("notify");
        let mut command = Proxy::command();
        command.envs(standin.settings()).env("NOTIFY_SOCKET", path);
        command.envs(settings.iter().copied());
        Proxy::start_command(command)
    }

    /// The next message.
    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = loop {
            match self.socket.recv(&mut buffer) {
                // A call with a time-out is not taken up again after a signal (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result.expect("a message in time"),
            }
        };
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// The first message with a line that begins so.
    fn wait_for(&self, line: &str) -> String {
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            let message = self.next();
            if message.lines().any(|found| found.starts_with(line)) {
                return message;
            }
        }
        panic!("no {line}");
    }
}

#[test]
fn a_service_manager_hears_how_the_proxy_is() {
    let (manager, standin) = (Manager::new(), Standin::start(Options::default()));
    let logins = manager.folder.path().join("htpasswd");
    std::fs::write(&logins, CHEAP).unwrap();
    let login = ("AUTH_FILE", logins.to_str().unwrap());
    let mut proxy = manager.start(&standin, &[login, ("WATCHDOG_USEC", "1000000")]);
    let first = manager.wait_for("READY=1");
    assert_eq!(Http::get_once(proxy.address(), "/healthz").status, 200);
    let status = "STATUS=ready: token of arn:aws:iam::123456789012:user/stand-in";
    if !first.contains(status) {
        manager.wait_for(status);
    }
    // A status that stays the same is said once, signs of life go on.
    for _ in 0..3 {
        assert_eq!(manager.next(), "WATCHDOG=1\n");
    }
    proxy.signal("HUP");
    let reloading = manager.wait_for("RELOADING=1");
    let mut lines = reloading.lines();
    let since = lines.find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(since.unwrap().parse::<u64>().unwrap() > 0, "{reloading}");
    manager.wait_for("READY=1");
    proxy.wait_for_log("AUTH_FILE read again");
    proxy.term();
    manager.wait_for("STOPPING=1");
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn without_files_a_reload_is_done_at_once() {
    let (manager, standin) = (Manager::new(), Standin::start(Options::default()));
    let proxy = manager.start(&standin, &[]);
    manager.wait_for("READY=1");
    proxy.signal("HUP");
    manager.wait_for("RELOADING=1");
    manager.wait_for("READY=1");
}

#[test]
fn the_status_says_why_it_is_not_ready() {
    let (manager, standin) = (Manager::new(), Standin::start(Options::default()));
    let _proxy = manager.start(&standin, &[("AWS_SECRET_ACCESS_KEY", "another")]);
    let said = manager.wait_for("STATUS=not ready: ");
    assert!(!said.contains("another"), "{said}");
}

#[test]
fn a_service_manager_that_is_gone_stops_nothing() {
    let standin = Standin::start(Options::default());
    let mut command = Proxy::command();
    command.envs(standin.settings());
    command.env("NOTIFY_SOCKET", "/nonexistent/notify");
    let mut proxy = Proxy::start_command(command);
    proxy.wait_for_log("the service manager was not told");
    assert_eq!(Http::get_once(proxy.address(), "/healthz").status, 200);
    proxy.signal("HUP");
    proxy.wait_for_log("nothing to reload");
    assert!(proxy.is_alive());
}
