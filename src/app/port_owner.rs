//! The process that listens on a port, as far as `/proc` shows it. Owns: reading that. Must not: be
//! needed for anything but the text of a message.

use std::fs;
use std::path::PathBuf;

/// State of a socket that listens (`TCP_LISTEN` of Linux's `tcp_states.h`).
const LISTENING: &str = "0A";

/// The process that listens on a TCP port of any address, else the user of the socket. Blocks while
/// `/proc` is read.
pub(super) fn find(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let mut found = tables
        .iter()
        .filter_map(|table| listener(&fs::read_to_string(table).ok()?, port));
    let (uid, inode) = found.next()?;
    let unnamed = || format!("a process of uid {uid}, which `ss -ltnp` names");
    Some(find_process(&inode).unwrap_or_else(unnamed))
}

/// User and inode of the socket that listens on a port (proc_net_tcp.rst of Linux).
fn listener(table: &str, port: u16) -> Option<(String, String)> {
    let port = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state) = (fields.get(1)?, fields.get(3)?);
        let fits = local.ends_with(&port) && *state == LISTENING;
        let (uid, inode) = (fields.get(7)?, fields.get(9)?);
        fits.then(|| ((*uid).to_owned(), (*inode).to_owned()))
    })
}

/// Name and number of the process that has the socket; none when its descriptors may not be read.
fn find_process(inode: &str) -> Option<String> {
    let socket = PathBuf::from(format!("socket:[{inode}]"));
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let (process, pid) = (entry.path(), entry.file_name());
        let pid: u32 = pid.to_str()?.parse().ok()?;
        let mut descriptors = fs::read_dir(process.join("fd")).ok()?.flatten();
        descriptors.find(|link| fs::read_link(link.path()).is_ok_and(|to| to == socket))?;
        let name = fs::read_to_string(process.join("comm")).ok()?;
        Some(format!("{} (process {pid})", name.trim()))
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
        let process = format!(" (process {})", std::process::id());
        assert!(owner.ends_with(&process), "{owner}");
    }

    #[test]
    fn only_a_socket_that_listens_counts() {
        let table = "sl local_address rem_address st\n\
                     0: 0100007F:1F90 00000000:0000 01 0:0 0:0 0 33 0 7 1\n\
                     1: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 33 0 8 1\n";
        assert_eq!(
            listener(table, 8080),
            Some(("33".to_owned(), "8".to_owned()))
        );
        assert_eq!(listener(table, 8081), None);
    }
}
