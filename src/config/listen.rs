//! The settings of the sockets that clients connect to. Owns: addresses, unix sockets, and the
//! variables with which systemd hands in sockets. Must not: open any of them.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use super::fault::{Fault, mask};

/// Sockets that may be handed in: each has a thread that accepts, and a descriptor.
const LISTEN_FDS_MAX: u32 = 16;
/// Bytes of a unix socket's path: `sun_path` has 108 with the zero at its end (unix(7)).
const UNIX_PATH_BYTES_MAX: usize = 107;
/// Bytes of a host name (RFC 1035, section 2.3.4).
const NAME_BYTES_MAX: usize = 253;

/// `LISTEN_HOST`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenHost {
    /// An address, on `LISTEN_PORT`.
    Address(IpAddr),
    /// A name such as `localhost`: all its addresses, on `LISTEN_PORT`.
    Name(String),
    /// A unix socket; the port then counts for nothing.
    Unix(PathBuf),
}

impl Default for ListenHost {
    /// Every IPv4 address.
    fn default() -> Self {
        Self::Address(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }
}

/// The address of metrics and status page, and what a client needs to see them.
#[derive(Debug, Clone, Default)]
pub struct MetricsSettings {
    /// `METRICS_LISTEN`; none: on the main address.
    pub listen: Option<MetricsListen>,
    /// `METRICS_ANONYMOUS`
    pub anonymous: bool,
    /// `METRICS_REPOSITORIES`
    pub repositories: bool,
}

/// `METRICS_LISTEN`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsListen {
    /// The address or the unix socket.
    pub host: ListenHost,
    /// The port; 0 picks one. A unix socket has none.
    pub port: u16,
}

/// Sockets that systemd hands in (`sd_listen_fds(3)`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Activation {
    /// Sockets for us, with a name for each; the name is empty when `LISTEN_FDNAMES` has none.
    Handed(Vec<String>),
    /// Sockets for another process, whose environment reached us.
    Misdirected {
        /// `LISTEN_PID`
        pid: String,
    },
    /// No sockets.
    #[default]
    None,
}

/// Reads `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES`; `own_pid` is this process.
pub(super) fn activation(
    environment: &[(OsString, OsString)],
    own_pid: u32,
) -> Result<Activation, Fault> {
    let variable = |name: &str| {
        let (_, value) = environment.iter().find(|(known, _)| known == name)?;
        Some(value.to_string_lossy().trim().to_owned()).filter(|value| !value.is_empty())
    };
    let (Some(count), Some(pid)) = (variable("LISTEN_FDS"), variable("LISTEN_PID")) else {
        return Ok(Activation::None);
    };
    if pid != own_pid.to_string() {
        return Ok(Activation::Misdirected { pid });
    }
    let number: Option<u32> = count.parse().ok().filter(|n| *n <= LISTEN_FDS_MAX);
    let Some(number) = number else {
        let count = mask(&count);
        return Err(Fault::new(format!(
            "LISTEN_FDS={count}: expected a whole number from 0 to {LISTEN_FDS_MAX} (each is a \
             thread)"
        )));
    };
    if number == 0 {
        return Ok(Activation::None);
    }
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let name = |_| names.next().unwrap_or_default().to_owned();
    Ok(Activation::Handed((0..number).map(name).collect()))
}

/// `LISTEN_HOST`: an address, a name, or `unix:` and a path.
pub(super) fn host(text: &str) -> Result<ListenHost, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(path).map(ListenHost::Unix);
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = match bare {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    };
    let name = || is_name(text).then(|| ListenHost::Name(text.to_owned()));
    let address = address.map(ListenHost::Address);
    address.or_else(name).ok_or_else(String::new)
}

/// A host name (RFC 1123, section 2.1). Its last label has a letter, which tells it from an address
/// that was mistyped.
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let inner = label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= NAME_BYTES_MAX
        && text.split('.').all(is_label)
        && last.bytes().any(|b| b.is_ascii_alphabetic())
}

/// `METRICS_LISTEN`: an address with a port, a port alone after a colon, or `unix:` and a path.
pub(super) fn metrics_listen(text: &str) -> Result<MetricsListen, String> {
    if text.starts_with("unix:") {
        let (host, port) = (host(text)?, 0);
        return Ok(MetricsListen { host, port });
    }
    let (address, port) = text.rsplit_once(':').ok_or("this has no port")?;
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse().ok().filter(|_| is_number);
    let host = match address {
        "" => ListenHost::default(),
        _ => host(address)?,
    };
    // Without brackets nobody knows where an IPv6 address ends.
    let is_bare_v6 = address.contains(':') && !address.starts_with('[');
    match port.filter(|_| !is_bare_v6) {
        Some(port) => Ok(MetricsListen { host, port }),
        None => Err(String::new()),
    }
}

fn unix_path(path: &str) -> Result<PathBuf, String> {
    if path.starts_with('@') {
        return Err("abstract sockets have no file whose rights could be set".to_owned());
    }
    // A relative path would depend on where the process was started.
    if !Path::new(path).is_absolute() {
        return Err("this path does not begin with /".to_owned());
    }
    if path.len() > UNIX_PATH_BYTES_MAX {
        let length = path.len();
        return Err(format!(
            "this path has {length} bytes, and a socket's may have {UNIX_PATH_BYTES_MAX}"
        ));
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: u32 = 4711;

    fn read(pairs: &[(&str, &str)]) -> Result<Activation, String> {
        let own = |(name, value): &(&str, &str)| (OsString::from(name), OsString::from(value));
        let environment: Vec<(OsString, OsString)> = pairs.iter().map(own).collect();
        activation(&environment, PID).map_err(|fault| fault.to_string())
    }

    fn handed(names: &[&str]) -> Result<Activation, String> {
        let names = names.iter().map(|name| (*name).to_owned());
        Ok(Activation::Handed(names.collect()))
    }

    #[test]
    fn sockets_are_ours_when_the_pid_is() {
        let fds = ("LISTEN_FDS", "2");
        let pid = ("LISTEN_PID", "4711");
        assert_eq!(read(&[fds, pid]), handed(&["", ""]));
        let names = ("LISTEN_FDNAMES", "web:local:more");
        assert_eq!(read(&[fds, pid, names]), handed(&["web", "local"]));
        assert_eq!(
            read(&[fds, pid, ("LISTEN_FDNAMES", "web")]),
            handed(&["web", ""])
        );
        // sd_listen_fds(3): without a PID, or with another's, they are not for us.
        assert_eq!(read(&[fds]), Ok(Activation::None));
        assert_eq!(read(&[pid]), Ok(Activation::None));
        assert_eq!(
            read(&[fds, ("LISTEN_PID", "1")]),
            Ok(Activation::Misdirected { pid: "1".into() })
        );
        assert_eq!(read(&[("LISTEN_FDS", "0"), pid]), Ok(Activation::None));
        assert_eq!(read(&[("LISTEN_FDS", " "), pid]), Ok(Activation::None));
    }

    #[test]
    fn odd_counts_are_faults() {
        let pid = ("LISTEN_PID", "4711");
        let most = LISTEN_FDS_MAX.to_string();
        let most = read(&[("LISTEN_FDS", &most), pid]).unwrap();
        assert_eq!(most, handed(&[""; 16]).unwrap());
        for bad in ["17", "-1", "x", "1.0", "99999999999999999999"] {
            let fault = read(&[("LISTEN_FDS", bad), pid]).unwrap_err();
            let start = format!("LISTEN_FDS={bad}: expected a whole number from 0 to 16");
            assert!(fault.starts_with(&start), "{fault}");
        }
    }

    #[test]
    fn metrics_listen_on_an_address_and_a_port() {
        let listen = |text: &str| metrics_listen(text).map(|listen| (listen.host, listen.port));
        for (text, address, port) in [
            (":9090", "0.0.0.0", 9090),
            ("127.0.0.1:0", "127.0.0.1", 0),
            ("[::1]:65535", "::1", 65535),
        ] {
            let address = ListenHost::Address(address.parse().unwrap());
            assert_eq!(listen(text), Ok((address, port)), "{text}");
        }
        let socket = ListenHost::Unix("/run/m.sock".into());
        assert_eq!(listen("unix:/run/m.sock"), Ok((socket, 0)));
        for bad in [
            "9090",
            "::1",
            "::1:9090",
            "127.0.0.1:",
            "a b:1",
            "127.0.0.1:65536",
            ":+1",
        ] {
            assert!(listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_host_is_an_address_or_a_path() {
        assert_eq!(
            host("unix:/run/p.sock"),
            Ok(ListenHost::Unix("/run/p.sock".into()))
        );
        assert_eq!(host("::1"), Ok(ListenHost::Address("::1".parse().unwrap())));
        for name in ["localhost", "node-1.example.com", "4ever"] {
            assert_eq!(host(name), Ok(ListenHost::Name(name.into())));
        }
        let long = format!("{}a", "a.".repeat(127));
        for bad in [
            "0.0.0",
            "1.2.3.4.5",
            "256.1.1.1",
            "a..b",
            "-a",
            "a b",
            "a:80",
            "[::1",
            &long,
            "",
        ] {
            assert_eq!(host(bad), Err(String::new()), "{bad}");
        }
        let longest = format!("unix:/{}", "x".repeat(UNIX_PATH_BYTES_MAX - 1));
        host(&longest).unwrap();
        assert!(
            metrics_listen(&longest).is_ok() && metrics_listen(&format!("{longest}x")).is_err()
        );
        for (bad, why) in [
            (format!("{longest}x"), "has 108 bytes"),
            ("unix:".to_owned(), "does not begin with /"),
            ("unix:run/p".to_owned(), "does not begin with /"),
            ("unix:@abstract".to_owned(), "abstract sockets"),
        ] {
            let fault = host(&bad).unwrap_err();
            assert!(fault.contains(why), "{bad}: {fault}");
        }
    }
}
