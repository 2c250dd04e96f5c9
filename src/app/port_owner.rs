//! Who listens on a port, as far as `/proc` tells. Owns: that look. Must not: be needed for
//! anything but words.

use std::fmt;
use std::fs;

/// State of a socket that listens (`TCP_LISTEN` of Linux's `tcp_states.h`).
const LISTENING: &str = "0A";

/// Who listens on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PortOwner {
    /// Process and name; none when its descriptors may not be read.
    process: Option<(u32, String)>,
    /// The user of the socket.
    uid: u32,
}

impl PortOwner {
    /// True for a process of this program.
    pub(super) fn is_this_program(&self) -> bool {
        let name = self.process.as_ref().map(|(_, name)| name.as_str());
        name == Some("aws-ecr-proxy")
    }
}

impl fmt::Display for PortOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((pid, name)) => write!(f, "{name} (process {pid})"),
            None => write!(f, "a process of uid {}, which `ss -ltnp` names", self.uid),
        }
    }
}

/// The process that listens on a TCP port of any address. Blocks while `/proc` is read.
pub(super) fn find(port: u16) -> Option<PortOwner> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let mut found = tables
        .iter()
        .filter_map(|table| listener(&fs::read_to_string(table).ok()?, port));
    let (uid, inode) = found.next()?;
    let process = find_process(&inode);
    Some(PortOwner { process, uid })
}

/// User and inode of the socket that listens on a port (proc_net_tcp.rst of Linux).
fn listener(table: &str, port: u16) -> Option<(u32, String)> {
    let port = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state) = (fields.get(1)?, fields.get(3)?);
        let fits = local.ends_with(&port) && *state == LISTENING;
        let (uid, inode) = (fields.get(7)?, fields.get(9)?);
        fits.then_some((uid.parse().ok()?, (*inode).to_owned()))
    })
}

fn find_process(inode: &str) -> Option<(u32, String)> {
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
            descriptors.is_ok_and(|mut found| {
                found.any(|link| {
                    let target = link.and_then(|link| fs::read_link(link.path()));
                    target.is_ok_and(|target| target.as_os_str() == socket.as_str())
                })
            })
        })
        .and_then(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            Some((pid, name.trim().to_owned()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_listener_is_found_with_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let owner = find(listener.local_addr().unwrap().port()).unwrap();
        let (pid, _) = owner.process.clone().unwrap();
        assert_eq!(pid, std::process::id());
        assert!(!owner.is_this_program(), "{owner}");
    }

    #[test]
    fn only_a_socket_that_listens_counts() {
        let table = "sl local_address rem_address st\n\
                     0: 0100007F:1F90 00000000:0000 01 0:0 0:0 0 33 0 7 1\n\
                     1: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 33 0 8 1\n";
        assert_eq!(listener(table, 8080), Some((33, "8".to_owned())));
        assert_eq!(listener(table, 8081), None);
    }
}
