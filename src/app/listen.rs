//! The sockets for clients. Owns: binding addresses and unix sockets, taking over the sockets that
//! systemd hands in, removing the file of a unix socket. Must not: accept.

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::port_owner;
use crate::config::{Activation, ListenHost, Settings};
use crate::door::Listener;
use crate::log;

/// The rights of a unix socket: its user and its group may connect (connect(2) needs the right to
/// write).
const UNIX_MODE: u32 = 0o660;
/// Connections that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// How the name of a process of this program begins.
const OWN_PROCESS: &str = "aws-ecr-proxy (process ";
/// Addresses of a name in `LISTEN_HOST` that are bound: each has a thread that accepts.
const NAME_ADDRESSES_MAX: usize = 4;

/// The sockets, and where each is.
#[derive(Default)]
pub(super) struct Bound {
    pub(super) listeners: Vec<Listener>,
    pub(super) addresses: Vec<Address>,
    /// Removes the file of a unix socket when it is dropped.
    pub(super) file: Option<SocketFile>,
}

/// The address of a socket, as the log calls it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Address {
    Tcp(SocketAddr),
    /// Without a path when it is an abstract one that was handed in.
    Unix(Option<PathBuf>),
}

impl Address {
    /// True when only users of this machine can reach it.
    pub(super) const fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(Some(path)) => write!(f, "unix:{}", path.display()),
            Self::Unix(None) => write!(f, "unix:"),
        }
    }
}

/// Opens the socket that `settings` name, or takes over the sockets that systemd hands in.
///
/// Call it before a thread looks up names: taking over removes variables from the environment,
/// which getaddrinfo(3) reads.
pub(super) fn open(settings: &Settings) -> Result<Bound, String> {
    match &settings.activation {
        Activation::Handed(names) => return take_over(names),
        Activation::Misdirected { pid } => log::warn(
            "LISTEN_FDS is not for this process; binding LISTEN_HOST",
            &[("listen_pid", pid)],
        ),
        Activation::None => {}
    }
    let names = "LISTEN_HOST or LISTEN_PORT";
    open_at(&settings.listen_host, settings.listen_port, names)
}

/// Opens the sockets of an address; `names`: the settings that give it.
pub(super) fn open_at(host: &ListenHost, port: u16, names: &str) -> Result<Bound, String> {
    match host {
        ListenHost::Unix(path) => open_unix(path, names),
        ListenHost::Address(host) => bind_all(&[SocketAddr::new(*host, port)], names),
        ListenHost::Name(name) => {
            let addresses = (name.as_str(), port).to_socket_addrs();
            let addresses = addresses
                .map_err(|error| format!("cannot look up {name}: {error}; set {names}"))?;
            let mut addresses: Vec<SocketAddr> = addresses.take(NAME_ADDRESSES_MAX).collect();
            addresses.dedup();
            bind_all(&addresses, names)
        }
    }
}

/// Binds every address. Those that this machine does not have are left out, as long as it has one:
/// where IPv6 is switched off, `localhost` means `::1` all the same.
fn bind_all(addresses: &[SocketAddr], names: &str) -> Result<Bound, String> {
    let mut bound = Bound::default();
    let mut left_out = "it has no address".to_owned();
    for address in addresses {
        let mut address = *address;
        // For port 0 the kernel picks a port. Then all addresses get that one.
        if let Some(Address::Tcp(first)) = bound.addresses.first() {
            address.set_port(first.port());
        }
        match bind(address) {
            Ok(listener) => {
                let address = listener.local_addr().unwrap_or(address);
                bound.listeners.push(listener.into());
                bound.addresses.push(Address::Tcp(address));
            }
            Err(error) => {
                if addresses.len() == 1 || error.kind() != io::ErrorKind::AddrNotAvailable {
                    return Err(explain(address, &error, names));
                }
                left_out = format!("cannot listen on {address}: {error}");
            }
        }
    }
    if bound.listeners.is_empty() {
        return Err(format!("{left_out}; set {names}"));
    }
    Ok(bound)
}

/// Why an address cannot be bound, and what to do; `names`: the settings that give it.
fn explain(address: SocketAddr, error: &io::Error, names: &str) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => match port_owner::find(address.port()) {
            Some(owner) => format!("the port is taken by {owner}; stop that, or set {names}"),
            None => format!("the port is taken; set {names}"),
        },
        io::ErrorKind::PermissionDenied => format!(
            "a low port needs CAP_NET_BIND_SERVICE: choose one from 1024 on ({names}), give the \
             process that capability (AmbientCapabilities= of systemd, --cap-add of a container), \
             or let systemd bind the port (aws-ecr-proxy.socket)"
        ),
        _ => format!("set {names}"),
    };
    format!("cannot listen on {address}: {error}; {remedy}")
}

/// Tries what [`open`] does, also for `METRICS_LISTEN`, and closes the sockets again. A proxy that
/// runs already may have the ports.
///
/// # Errors
/// Why the proxy could not listen there.
pub fn try_out(settings: &Settings) -> Result<String, String> {
    // Held until the other address is tried: it may be the same one.
    let (main, _bound) = match &settings.activation {
        Activation::Handed(names) => {
            let shown = format!("systemd hands in {} sockets", names.len());
            (shown, Bound::default())
        }
        _ => try_one(&settings.listen_host, settings.listen_port, || {
            open(settings)
        })?,
    };
    let Some(own) = &settings.metrics.listen else {
        return Ok(main);
    };
    let open_own = || open_at(&own.host, own.port, "METRICS_LISTEN");
    let (own, _) = try_one(&own.host, own.port, open_own)?;
    Ok(format!("{main}; {own} (METRICS_LISTEN)"))
}

fn try_one(
    host: &ListenHost,
    port: u16,
    open: impl FnOnce() -> Result<Bound, String>,
) -> Result<(String, Bound), String> {
    let owner = Some(port).filter(|port| *port != 0);
    let owner = owner.and_then(port_owner::find).unwrap_or_default();
    let this = format!("{OWN_PROCESS}{})", std::process::id());
    let is_served = owner.starts_with(OWN_PROCESS) && owner != this;
    let served = match host {
        ListenHost::Unix(path) if UnixStream::connect(path).is_ok() => {
            format!("unix:{} is served already", path.display())
        }
        ListenHost::Address(_) | ListenHost::Name(_) if is_served => {
            format!("{port} is served already, by {owner}")
        }
        _ => {
            let bound = open()?;
            let shown: Vec<String> = bound.addresses.iter().map(ToString::to_string).collect();
            return Ok((format!("{} can be bound", shown.join(", ")), bound));
        }
    };
    Ok((served, Bound::default()))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // The standard library asks for 128, which a burst of a few hundred clients overruns: a client
    // that finds the queue full tries again a second later. A second `listen` only changes the
    // length.
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

fn take_over(names: &[String]) -> Result<Bound, String> {
    log::info(
        "sockets are handed in by LISTEN_FDS; LISTEN_HOST and LISTEN_PORT are not bound",
        &[("count", &names.len())],
    );
    let mut descriptors = listenfd::ListenFd::from_env();
    let mut bound = Bound::default();
    for (index, name) in names.iter().enumerate() {
        let (listener, address) = take_socket(&mut descriptors, index)
            // By convention the first is 3 (sd_listen_fds(3)).
            .map_err(|why| format!("LISTEN_FDS: descriptor {} ({name}) {why}", 3 + index))?;
        bound.listeners.push(listener.inherited());
        bound.addresses.push(address);
    }
    Ok(bound)
}

/// One of the sockets, closed on exec from then on, and its address.
fn take_socket(
    descriptors: &mut listenfd::ListenFd,
    index: usize,
) -> Result<(Listener, Address), &'static str> {
    const NEITHER: &str = "is neither a TCP nor a unix stream socket; use ListenStream=";
    let is_listening = |socket: &dyn std::os::fd::AsFd| {
        let listening = rustix::net::sockopt::socket_acceptconn(socket.as_fd());
        listening
            .is_ok_and(|listening| listening)
            .then_some(())
            .ok_or("does not listen; use ListenStream= without Accept=yes")
    };
    if let Ok(Some(listener)) = descriptors.take_tcp_listener(index) {
        is_listening(&listener)?;
        let address = listener.local_addr().map_err(|_| NEITHER)?;
        return Ok((listener.into(), Address::Tcp(address)));
    }
    let listener = descriptors.take_unix_listener(index).map_err(|_| NEITHER)?;
    let listener = listener.ok_or(NEITHER)?;
    is_listening(&listener)?;
    let address = listener.local_addr().map_err(|_| NEITHER)?;
    let path = address.as_pathname().map(Path::to_owned);
    Ok((listener.into(), Address::Unix(path)))
}

fn open_unix(path: &Path, names: &str) -> Result<Bound, String> {
    let shown = path.display();
    let failed =
        |why: &dyn fmt::Display| format!("cannot listen on unix:{shown}: {why}; set {names}");
    remove_stale(path).map_err(|why| failed(&why))?;
    let (listener, file) = bind_unix(path).map_err(|error| failed(&error))?;
    Ok(Bound {
        listeners: vec![listener.into()],
        addresses: vec![Address::Unix(Some(path.to_owned()))],
        file: Some(file),
    })
}

/// Removes a socket that no process listens on any more, and nothing else.
fn remove_stale(path: &Path) -> Result<(), String> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    if !metadata.file_type().is_socket() {
        return Err("something that is no socket is there already".to_owned());
    }
    match UnixStream::connect(path) {
        Ok(_) => Err("another process listens there".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| format!("stale socket: {error}"))
        }
        Err(error) => Err(format!("whether anybody listens there: {error}")),
    }
}

/// Binds, sets the rights, and only then listens: before that nobody can connect.
fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let file = SocketFile::of(path)?;
    fs::set_permissions(path, Permissions::from_mode(UNIX_MODE))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((UnixListener::from(socket), file))
}

/// The file of a unix socket. Dropping it removes it, unless another has taken its place.
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // If it stays, the next start removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let unique = crate::random::unguessable();
            let folder = Path::new("/tmp").join(format!("listen-{unique:x}"));
            fs::create_dir(&folder).unwrap();
            Self(folder)
        }

        fn socket(&self) -> PathBuf {
            self.0.join("socket")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_unix_socket_is_for_its_user_and_group_and_goes_at_the_end() {
        let folder = Folder::new();
        let bound = open_unix(&folder.socket(), "LISTEN_HOST")
            .map_err(drop)
            .unwrap();
        let mode = fs::metadata(folder.socket()).unwrap().mode();
        assert_eq!(mode & 0o777, UNIX_MODE);
        let address = Address::Unix(Some(folder.socket()));
        assert_eq!(
            address.to_string(),
            format!("unix:{}", folder.socket().display())
        );
        assert_eq!(bound.addresses, [address]);
        UnixStream::connect(folder.socket()).unwrap();
        drop(bound);
        assert!(!folder.socket().exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = Folder::new();
        drop(UnixListener::bind(folder.socket()).unwrap());
        assert!(folder.socket().exists());
        let bound = open_unix(&folder.socket(), "LISTEN_HOST")
            .map_err(drop)
            .unwrap();
        let why = open_unix(&folder.socket(), "LISTEN_HOST")
            .map(drop)
            .unwrap_err();
        assert!(why.contains("another process listens there"), "{why}");
        UnixStream::connect(folder.socket()).unwrap();
        drop(bound);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = Folder::new();
        fs::write(folder.socket(), "precious").unwrap();
        let why = open_unix(&folder.socket(), "LISTEN_HOST")
            .map(drop)
            .unwrap_err();
        assert!(why.contains("no socket is there already"), "{why}");
        assert_eq!(fs::read(folder.socket()).unwrap(), b"precious");
        let nowhere = folder.0.join("none").join("socket");
        let why = open_unix(&nowhere, "LISTEN_HOST").map(drop).unwrap_err();
        assert!(
            why.contains("No such file") && why.contains("LISTEN_HOST"),
            "{why}"
        );
    }

    #[test]
    fn unix_sockets_and_loopback_are_for_this_machine() {
        for (address, local) in [
            ("127.0.0.1:80", true),
            ("[::1]:80", true),
            ("[::ffff:127.0.0.1]:80", true),
            ("0.0.0.0:80", false),
            ("[::]:80", false),
            ("192.0.2.1:80", false),
        ] {
            let bound = Address::Tcp(address.parse().unwrap());
            assert_eq!(bound.is_local(), local, "{address}");
        }
        assert!(Address::Unix(Some("/run/p".into())).is_local());
        assert!(Address::Unix(None).is_local());
    }

    #[test]
    fn the_socket_of_a_successor_is_left_alone() {
        let folder = Folder::new();
        let bound = open_unix(&folder.socket(), "LISTEN_HOST")
            .map_err(drop)
            .unwrap();
        fs::rename(folder.socket(), folder.0.join("moved")).unwrap();
        let _successor = UnixListener::bind(folder.socket()).unwrap();
        drop(bound);
        assert!(folder.socket().exists());
    }
}
