//! A relay of connections whose port is known before its target is. Owns: that port. Must not: look
//! at what passes.

use std::io::copy;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

/// It runs until the test's process ends.
pub(crate) struct Relay {
    address: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
    count: Arc<AtomicUsize>,
}

impl Relay {
    /// Leads nowhere: connections are closed.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let relay = Self {
            address,
            target: Arc::default(),
            count: Arc::default(),
        };
        let (target, count) = (Arc::clone(&relay.target), Arc::clone(&relay.count));
        let accept = move || {
            for client in listener.incoming().filter_map(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let target = *target.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(server) = target.and_then(|target| TcpStream::connect(target).ok()) {
                    pipe(&client, &server);
                    pipe(&server, &client);
                }
            }
        };
        spawn("relay", accept);
        relay
    }

    /// Leads there from now on.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = Some(target);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections that have come.
    pub(crate) fn connections(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

fn pipe(from: &TcpStream, to: &TcpStream) {
    let clone = |stream: &TcpStream| stream.try_clone().expect("a second handle");
    let (mut from, mut to) = (clone(from), clone(to));
    spawn("relay-pipe", move || {
        let _ = copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    let spawned = Builder::new().name(name.into()).spawn(work);
    spawned.expect("a thread of the relay");
}
