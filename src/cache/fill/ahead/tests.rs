//! All bytes come, in order and soon, and no more is held than two pieces.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::*;

/// A body that sends what it is handed, and blocks until then.
struct Handed(mpsc::Receiver<Vec<u8>>);

impl Read for Handed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Ok(bytes) = self.0.recv() else {
            return Ok(0);
        };
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

/// A body without end, that counts what was read of it, and says when it is dropped.
struct Endless(Arc<AtomicUsize>, mpsc::Sender<()>);

impl Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.fetch_add(into.len(), Ordering::Relaxed);
        Ok(into.len())
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        let _ = self.1.send(());
    }
}

fn bytes(count: usize) -> Vec<u8> {
    (0..=250).cycle().take(count).collect()
}

#[test]
fn all_bytes_come_in_order_in_pieces_that_end_at_pages_of_the_file() {
    let all = bytes(3 * PIECE_BYTES + 12_345);
    for offset in [0, 1, 100_000, PIECE_BYTES] {
        let body = Box::new(io::Cursor::new(all.clone()));
        let mut ahead = ReadAhead::start(body, offset as u64).unwrap();
        let mut got = Vec::new();
        loop {
            let piece = ahead.fill_buf().unwrap();
            if piece.is_empty() {
                break;
            }
            let first = (offset + got.len()) / PIECE_BYTES;
            got.extend_from_slice(piece);
            let last = (offset + got.len() - 1) / PIECE_BYTES;
            assert_eq!(first, last, "a piece passes the end of a large page");
            let count = piece.len();
            ahead.consume(count);
        }
        assert!(got == all);
        assert!(ahead.fill_buf().unwrap().is_empty(), "the end stays");
    }
}

#[test]
fn few_bytes_are_handed_over_before_more_come() {
    let (send, handed) = mpsc::channel();
    let mut ahead = ReadAhead::start(Box::new(Handed(handed)), 0).unwrap();
    for word in [&b"first"[..], b"second", b"third"] {
        send.send(word.to_vec()).unwrap();
        assert_eq!(ahead.fill_buf().unwrap(), word);
        ahead.consume(word.len());
    }
    drop(send);
    assert!(ahead.fill_buf().unwrap().is_empty());
}

#[test]
fn an_error_comes_after_the_bytes_before_it() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let all = bytes(PIECE_BYTES + 1);
    let body = io::Cursor::new(all.clone()).chain(Broken);
    let mut ahead = ReadAhead::start(Box::new(body), 0).unwrap();
    let mut got = Vec::new();
    let error = ahead.read_to_end(&mut got).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(got == all);
}

#[test]
fn a_body_that_panics_is_an_error() {
    struct Panics;
    impl Read for Panics {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("a fault in reading");
        }
    }
    let mut ahead = ReadAhead::start(Box::new(Panics), 0).unwrap();
    assert!(ahead.fill_buf().is_err());
}

#[test]
fn no_more_is_read_than_there_is_room_for_and_the_thread_ends_with_its_taker() {
    let (count, (send, ended)) = (Arc::new(AtomicUsize::new(0)), mpsc::channel());
    let body = Box::new(Endless(Arc::clone(&count), send));
    let mut ahead = ReadAhead::start(body, 0).unwrap();
    let mut taken = 0;
    for _ in 0..20 {
        let piece = ahead.fill_buf().unwrap().len();
        ahead.consume(piece);
        taken += piece;
        let read = count.load(Ordering::Relaxed);
        assert!(
            read <= taken + PIECE_BYTES + RECORD_BYTES,
            "{read}, {taken}"
        );
    }
    assert!(ended.try_recv().is_err());
    drop(ahead);
    ended.recv_timeout(Duration::from_secs(60)).unwrap();
}
