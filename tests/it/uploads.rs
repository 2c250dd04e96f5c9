//! Uploads: one client that drips leaves room for everybody else.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use standin::{Options, Server};

use crate::support::{Front, SOON, wait_until};

const TARGET: &str = "/v2/new/repo/blobs/uploads/";
/// Above the wait for a share.
const PATIENCE: Duration = Duration::from_secs(60);

/// Begins an upload from `from`, with a body of which one byte comes.
fn begin(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::new(from, 0)).unwrap();
    connect(&socket, &to).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("POST {TARGET} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

fn answer(mut stream: &TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "an answer");
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn bug_one_client_that_drips_held_all_upload_slots() {
    let front = Front::with(Options::default(), &[("MAX_UPLOADS", "4")]);
    let (greedy, other) = ([127, 0, 0, 1].into(), [127, 0, 2, 1].into());
    // Half of four.
    let dripping = [(); 2].map(|()| begin(greedy, front.address()));
    let begun = || front.standin.count(Server::Registry, "POST", TARGET);
    wait_until("both are on their way", SOON, || begun() == 2);
    let refused = answer(&begin(greedy, front.address()));
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(refused.contains("\r\nRetry-After: "), "{refused}");
    // What has no body needs no share, and others have theirs.
    assert_eq!(front.call("POST", TARGET, &[], b"").status, 202);
    let mut whole = begin(other, front.address());
    whole.write_all(b"12345678").unwrap();
    let answered = answer(&whole);
    assert!(!answered.starts_with("HTTP/1.1 503"), "{answered}");
    drop(dripping);
}
