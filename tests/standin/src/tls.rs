//! TLS in front of a server that speaks plain HTTP. Owns: the certificates of the tests (`data/`;
//! for `registry.test`, `proxy.test`, `localhost` and 127.0.0.1), and relaying. Must not: know HTTP.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Builder;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{HandshakeKind, ServerConfig, ServerConnection, StreamOwned};

use crate::forward::RELAY_POLL;

const CERTIFICATE: &[u8] = include_bytes!("../data/server.pem");
const KEY: &[u8] = include_bytes!("../data/server.key");

/// The certificate authority of the tests, for `AWS_CA_BUNDLE`.
pub fn ca_bundle() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/ca.pem")
}

/// A port that speaks TLS and leads to another one that does not. Dropping it closes the port.
pub struct TlsFront {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    resumed: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

impl TlsFront {
    /// Starts it in front of `target`, a URL or an authority of 127.0.0.1.
    pub fn start(target: &str) -> Self {
        let target = target.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let (connections, stopped) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let resumed = Arc::<AtomicUsize>::default();
        let (count, ends) = (Arc::clone(&connections), Arc::clone(&stopped));
        let (again, config) = (Arc::clone(&resumed), config());
        let run = move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                count.fetch_add(1, Ordering::SeqCst);
                let (target, again) = (target.clone(), Arc::clone(&again));
                let config = Arc::clone(&config);
                let run = move || drop(serve(stream, &target, config, &again));
                let _ = Builder::new().name("standin-tls".into()).spawn(run);
            }
        };
        Builder::new()
            .name("standin-tls".into())
            .spawn(run)
            .expect("a thread");
        Self {
            address,
            connections,
            resumed,
            stopped,
        }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Handshakes so far that took up an earlier session.
    pub fn resumed(&self) -> usize {
        self.resumed.load(Ordering::SeqCst)
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    stream: TcpStream,
    target: &str,
    config: Arc<ServerConfig>,
    resumed: &AtomicUsize,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let raw = stream.try_clone()?;
    let mut stream = handshake(stream, config)?;
    if stream.conn.handshake_kind() == Some(HandshakeKind::Resumed) {
        resumed.fetch_add(1, Ordering::SeqCst);
    }
    let target = TcpStream::connect(target)?;
    target.set_nodelay(true)?;
    relay(&mut stream, &raw, target)
}

/// The server's side of a handshake.
pub(crate) fn accept(stream: TcpStream) -> io::Result<StreamOwned<ServerConnection, TcpStream>> {
    handshake(stream, config())
}

fn config() -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_slice_iter(CERTIFICATE).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(KEY).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain.expect("certificates"), key)
        .expect("a certificate that fits its key");
    Arc::new(config)
}

fn handshake(
    mut stream: TcpStream,
    config: Arc<ServerConfig>,
) -> io::Result<StreamOwned<ServerConnection, TcpStream>> {
    let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// Copies both ways until one side ends. `raw` is the socket below `link`.
pub(crate) fn relay<L: Read + Write + ?Sized>(
    link: &mut L,
    raw: &TcpStream,
    mut target: TcpStream,
) -> io::Result<()> {
    raw.set_read_timeout(Some(RELAY_POLL))?;
    target.set_read_timeout(Some(RELAY_POLL))?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match link.read(&mut buffer) {
            Ok(0) => {
                return target.shutdown(Shutdown::Both);
            }
            Ok(count) => target.write_all(&buffer[..count])?,
            Err(error) if is_early(&error) => {}
            Err(error) => return Err(error),
        }
        match target.read(&mut buffer) {
            Ok(0) => return raw.shutdown(Shutdown::Both),
            Ok(count) => link.write_all(&buffer[..count])?,
            Err(error) if is_early(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
