//! The door and its workers in the test's own process, for what the binary offers no setting for:
//! short limits, and deciders that misbehave. Must not: reach any upstream.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_ecr_proxy::door::{Door, DoorLimits, Lanes, Listener, ServerTls, Workers};
use aws_ecr_proxy::log::{Format, Level};
use aws_ecr_proxy::message::{Answer, Decider, Desk, Entrance, Reply, Request};
use aws_ecr_proxy::metrics::LANES_LOST;
use aws_ecr_proxy::pool::Pool;

/// Workers of such a server: fewer than lanes, as in production.
const WORKERS: usize = 2;
/// Lanes of such a server.
pub(crate) const LANES: usize = 4;

/// A door on a free port. Dropping it cuts what is open.
pub(crate) struct Server {
    door: Door,
    address: SocketAddr,
    lost: Arc<Mutex<Vec<String>>>,
    half_lost: Arc<AtomicUsize>,
}

impl Server {
    /// Serves what `decide` says within `limits`.
    pub(crate) fn start(
        limits: DoorLimits,
        decide: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(Vec::new(), limits, None, decide)
    }

    /// The same, listening on `others` too, and speaking TLS where `tls` is given.
    pub(crate) fn start_with(
        others: Vec<Listener>,
        limits: DoorLimits,
        tls: Option<Arc<ServerTls>>,
        decide: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        aws_ecr_proxy::log::init(Level::Error, Format::Text);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("its address");
        let lost: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&lost);
        let on_lost: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(move |name: &str| {
            let mut lost = seen.lock().unwrap_or_else(PoisonError::into_inner);
            lost.push(name.to_owned());
        });
        let half_lost: Arc<AtomicUsize> = Arc::default();
        let alarms = Arc::clone(&half_lost);
        let alarm = Box::new(move || {
            alarms.fetch_add(1, Ordering::SeqCst);
        });
        let desk = Arc::new(Desk::default());
        let decider = Decider::new(move |request: &Arc<Request>| decide(request));
        let decider = Arc::new(decider);
        let pool = Pool::start(WORKERS, &desk, &decider, &on_lost).expect("workers");
        let lanes = Lanes::open(pool.address(), LANES, alarm).expect("lanes");
        pool.seal().expect("a sealed socket");
        let mut listeners = others;
        listeners.push(listener.into());
        let lanes = Arc::new(lanes);
        let workers = Workers {
            lanes,
            desk,
            decider,
        };
        let door = Door::open(listeners, workers, limits, tls, Entrance::Main, on_lost);
        let door = door.expect("a door");
        Self {
            door,
            address,
            lost,
            half_lost,
        }
    }

    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The door.
    pub(crate) const fn door(&self) -> &Door {
        &self.door
    }

    /// Panics unless every lane and every thread is still there.
    pub(crate) fn assert_whole(&self) {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(*lost, Vec::<String>::new(), "threads lost");
        let half_lost = self.half_lost.load(Ordering::SeqCst);
        assert_eq!((LANES_LOST.get(), half_lost), (0, 0), "lanes lost");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.door.drain(Duration::ZERO);
    }
}

/// Says `ok` to everything.
pub(crate) fn ok(_: &Request) -> Answer {
    Answer::Now(Reply::new(200, "text/plain", "ok\n"))
}
