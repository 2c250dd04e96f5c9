//! A scripted server at the other end of a real socket, plain and through TLS: what a close with
//! unread bytes does to a connection is the kernel's to say.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use ureq::SendBody;
use ureq::tls::{TlsConfig, TlsProvider};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{LazyBuffers, RustlsConnector};

use super::*;
use crate::upstream::tcp::TcpTransport;

const CERTIFICATE: &[u8] = include_bytes!("../../../tests/data/localhost-cert.pem");
const KEY: &[u8] = include_bytes!("../../../tests/data/localhost-key.pem");
/// The time that these tests give a peer that takes nothing.
const WRITE_TIMEOUT: Duration = Duration::from_millis(200);
/// Far above what any of it takes, far below a body that is sent whole.
const BOUND: Duration = Duration::from_secs(20);
const REFUSAL: &str = "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nX-Why: size\r\n\r\nlarge";

/// The behaviour of the server once a head has come.
#[derive(Clone, Copy)]
struct Script {
    answer: &'static str,
    /// Neither reads nor closes until it is told to.
    hold: bool,
    tls: bool,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Serves one connection; it ends when the sender is dropped.
fn serve(script: Script) -> (SocketAddr, Sender<()>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (go, held) = channel();
    let run = move || {
        let (stream, _) = listener.accept().unwrap();
        // A close with unread bytes throws away what has not left yet.
        stream.set_nodelay(true).unwrap();
        let mut stream = wrapped(stream, script.tls);
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream.write_all(script.answer.as_bytes()).unwrap();
        if script.hold {
            let _ = held.recv();
        }
    };
    let thread = Builder::new().name("server".into()).spawn(run).unwrap();
    (address, go, thread)
}

fn wrapped(stream: TcpStream, tls: bool) -> Box<dyn Stream> {
    if !tls {
        return Box::new(stream);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let connection = ServerConnection::new(Arc::new(config)).unwrap();
    Box::new(StreamOwned::new(connection, stream))
}

/// The program's own transport: unlike ureq's, it takes nothing off a connection by looking at it.
#[derive(Debug)]
struct OwnTcp;

impl Connector for OwnTcp {
    type Out = TcpTransport;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<TcpTransport>, Error> {
        let stream = TcpStream::connect(&details.addrs[..])?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(TcpTransport::new(stream, buffers)))
    }
}

fn agent() -> Agent {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .disable_verification(true)
        .unversioned_rustls_crypto_provider(provider)
        .build();
    let config = Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        .tls_config(tls)
        .timeout_per_write(Some(WRITE_TIMEOUT))
        .timeout_recv_response(Some(BOUND))
        .build();
    let tcp = ().chain(OwnTcp);
    let tls = RustlsConnector::default();
    let whole = tcp.chain(BelowTls).chain(tls).chain(AboveTls);
    // The tests name addresses.
    Agent::with_parts(config, whole, DefaultResolver::default())
}

/// A body without an end, which counts what is taken of it.
struct Endless(u64);

impl Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        into.fill(b'x');
        self.0 += into.len() as u64;
        Ok(into.len())
    }
}

/// The end of an endless upload to such a server: the answer, and the bytes taken of the body.
fn upload(script: Script, length: Option<u64>) -> (Option<Buffered>, u64) {
    let begun = Instant::now();
    let (address, go, server) = serve(script);
    let scheme = if script.tls { "https" } else { "http" };
    let mut request = http::Request::patch(format!("{scheme}://{address}/upload"));
    if let Some(length) = length {
        request = request.header("Content-Length", length);
    }
    let mut body = Endless(0);
    let request = request.body(SendBody::from_reader(&mut body)).unwrap();
    let agent = agent();
    let (sent, broken) = run_upload(|| agent.run(request));
    assert!(sent.is_err());
    // With nothing to come, a held connection costs the whole time.
    let limit = if script.hold && !script.answer.ends_with("large") {
        WRITE_TIMEOUT
    } else {
        BOUND
    };
    let answer = broken.expect("a connection that broke");
    let answer = answer.read_answer_within(limit);
    drop(go);
    server.join().unwrap();
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    (answer, body.0)
}

/// Chunked; a length that the body has not reached for long; one that no loop could count down.
const LENGTHS: [Option<u64>; 3] = [None, Some(64 << 30), Some(u64::MAX)];

#[test]
fn an_answer_before_a_reset_is_read() {
    for tls in [false, true] {
        for length in LENGTHS {
            let (answer, _) = upload(
                Script {
                    answer: REFUSAL,
                    hold: false,
                    tls,
                },
                length,
            );
            let answer = answer.unwrap_or_else(|| panic!("no answer: tls {tls} {length:?}"));
            assert_eq!(answer.status, 413, "tls {tls} {length:?}");
            assert_eq!(answer.headers.first("x-why"), Some("size"));
            assert_eq!(*answer.body, *b"large");
        }
    }
}

#[test]
fn an_answer_of_a_server_that_takes_no_more_is_read() {
    for tls in [false, true] {
        for length in LENGTHS {
            let (answer, taken) = upload(
                Script {
                    answer: REFUSAL,
                    hold: true,
                    tls,
                },
                length,
            );
            assert_eq!(
                *answer.expect("an answer").body,
                *b"large",
                "{tls} {length:?}"
            );
            // The kernel's buffers of both ends, and no more.
            assert!(taken < 64 << 20, "{taken} bytes taken");
        }
    }
}

/// A body that comes slowly, so that there is time between its writes.
struct Slow(u64);

impl Read for Slow {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        std::thread::sleep(Duration::from_millis(10));
        let piece = into.get_mut(..1024).unwrap_or_default();
        piece.fill(b'x');
        self.0 += piece.len() as u64;
        Ok(piece.len())
    }
}

#[test]
fn bug_an_early_answer_was_heard_only_once_a_write_failed() {
    for tls in [false, true] {
        // It takes nothing and does not close: for 64 MiB no write would fail.
        let script = Script {
            answer: REFUSAL,
            hold: true,
            tls,
        };
        let (address, go, server) = serve(script);
        let scheme = if tls { "https" } else { "http" };
        let request = http::Request::patch(format!("{scheme}://{address}/upload"));
        let mut body = Slow(0);
        let request = request.body(SendBody::from_reader(&mut body)).unwrap();
        let (sent, broken) = run_upload(|| agent().run(request));
        assert!(sent.is_err());
        let answer = broken
            .expect("a connection that broke")
            .read_answer_within(BOUND);
        drop(go);
        server.join().unwrap();
        assert_eq!(*answer.expect("an answer").body, *b"large", "tls {tls}");
        assert!(body.0 < 1 << 20, "{} bytes were taken", body.0);
    }
}

#[test]
fn bug_a_success_that_came_early_was_waited_for_again() {
    for tls in [false, true] {
        let script = Script {
            answer: "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n",
            hold: true,
            tls,
        };
        let (address, go, server) = serve(script);
        let scheme = if tls { "https" } else { "http" };
        let request = http::Request::put(format!("{scheme}://{address}/manifest"));
        // Slow enough for the answer to come between two writes.
        let mut body = Slow(0).take(16 << 10);
        let request = request.body(SendBody::from_reader(&mut body)).unwrap();
        let begun = Instant::now();
        let (sent, broken) = run_upload(|| agent().run(request));
        assert_eq!(sent.expect("an answer").status(), 201, "tls {tls}");
        assert!(broken.is_none());
        drop(go);
        server.join().unwrap();
        assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    }
}

#[test]
fn only_refusals_end_an_upload() {
    for (input, refused) in [
        ("HTTP/1.1 400 Bad\r\n", true),
        ("HTTP/1.0 307 Elsewhere\r\n", true),
        ("HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 403 No", true),
        ("HTTP/1.1 100 Continue\r\n\r\n", false),
        ("HTTP/1.1 103 Hints\r\nLink", false),
        ("HTTP/1.1 202 Accepted\r\n", false),
        ("HTTP/1.1 ", false),
        ("", false),
    ] {
        assert_eq!(is_refusal(input.as_bytes()), refused, "{input}");
    }
}

#[test]
fn chunks_and_interim_answers_are_understood() {
    let answer = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n\
                  HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n";
    for tls in [false, true] {
        let hold = false;
        let (answer, _) = upload(Script { answer, hold, tls }, None);
        let answer = answer.expect("an answer");
        assert_eq!((answer.status, &*answer.body), (403, &b"no"[..]));
    }
}

#[test]
fn no_answer_is_none() {
    for tls in [false, true] {
        for answer in ["", "HTTP/1.1 4", "SSH-2.0-x\r\n\r\n"] {
            for hold in [false, true] {
                let (answer, _) = upload(Script { answer, hold, tls }, None);
                assert!(answer.is_none(), "tls {tls} hold {hold}");
            }
        }
    }
}

#[test]
fn a_body_that_breaks_off_is_left_out() {
    let answer = "HTTP/1.1 500 Down\r\nContent-Length: 50\r\n\r\n{\"errors\":[";
    let hold = false;
    let (answer, _) = upload(
        Script {
            answer,
            hold,
            tls: false,
        },
        None,
    );
    let answer = answer.expect("an answer");
    assert_eq!((answer.status, answer.body.len()), (500, 0));
}

#[test]
fn what_broke_outside_of_an_upload_is_not_kept() {
    let script = Script {
        answer: REFUSAL,
        hold: false,
        tls: false,
    };
    let (address, _go, server) = serve(script);
    let mut body = Endless(0);
    let request = http::Request::patch(format!("http://{address}/"));
    let request = request.body(SendBody::from_reader(&mut body)).unwrap();
    assert!(agent().run(request).is_err());
    server.join().unwrap();
    assert!(UPLOAD.with(|upload| matches!(*upload.borrow(), UploadPhase::None)));
    let (_, broken) = run_upload(|| ());
    assert!(broken.is_none());
}
