//! Pages for operators: metrics and status. Owns: their address, and which clients may see them.
//! Must not: know what they show.
//!
//! They are at `METRICS_LISTEN`, without login, and then nowhere else. Without that setting they
//! are at the registry's address, with the registry's login and client certificates.

use std::sync::Arc;

use super::listen::{self, Bound, SocketFile};
use crate::config::MetricsSettings;
use crate::door::{Door, DoorLimits, Workers};
use crate::log;
use crate::message::{Answer, Entrance, Request};
use crate::proxy::login::Logins;
use crate::status::{Sources, Status};

/// Connections at `METRICS_LISTEN` at a time: a few Prometheus, and people.
pub(super) const CONNECTIONS_MAX: usize = 32;

/// The pages, and which clients may see them.
pub(super) struct OperatorPages {
    status: Arc<Status>,
    /// `STATUS_PAGE`
    has_status: bool,
    /// None: everybody may come.
    logins: Option<Arc<Logins>>,
    settings: MetricsSettings,
}

impl OperatorPages {
    /// `has_status`: `STATUS_PAGE`
    pub(super) fn new(
        sources: Arc<Sources>,
        has_status: bool,
        logins: Option<Arc<Logins>>,
        settings: &MetricsSettings,
    ) -> Self {
        Self {
            status: Arc::new(Status::new(sources)),
            has_status,
            logins,
            settings: settings.clone(),
        }
    }

    /// True for a page that needs neither login nor client certificate.
    pub(super) fn is_open(&self, request: &Request) -> bool {
        self.settings.anonymous && request.path() == "/metrics" && self.has(request)
    }

    /// The answer of one of these pages, as far as the client may see it; none for all else.
    pub(super) fn answer(&self, request: &Arc<Request>) -> Option<Answer> {
        if !self.has(request) {
            return None;
        }
        let is_free = request.peer.entrance == Entrance::Metrics || self.is_open(request);
        let (status, asked) = (Arc::clone(&self.status), Arc::clone(request));
        let answer = move || status.answer(&asked);
        Some(match &self.logins {
            Some(logins) if !is_free => logins.admit(request, answer),
            _ => answer(),
        })
    }

    /// True when the request means one of these pages, and there is one at its address.
    fn has(&self, request: &Request) -> bool {
        let is_main = request.peer.entrance == Entrance::Main;
        let is_elsewhere = is_main && self.settings.listen.is_some();
        match request.path() {
            "/metrics" => !is_elsewhere,
            "/" | "/status.json" => !is_elsewhere && self.has_status,
            _ => false,
        }
    }
}

/// A door of its own, and the file of its socket.
pub(super) struct OwnDoor {
    pub(super) door: Door,
    /// Removes the file of a unix socket when it is dropped.
    _file: Option<SocketFile>,
}

/// Binds `METRICS_LISTEN`, if it is set.
pub(super) fn bind(settings: &MetricsSettings) -> Result<Option<Bound>, String> {
    let listen = settings.listen.as_ref();
    let bound = listen.map(|at| listen::open_at(&at.host, at.port, "METRICS_LISTEN"));
    bound.transpose()
}

/// Lets clients in at `METRICS_LISTEN`.
pub(super) fn open_door(
    bound: Bound,
    workers: Workers,
    on_lost: Arc<dyn Fn(&str) + Send + Sync>,
) -> Result<OwnDoor, String> {
    let (limits, entrance) = (DoorLimits::new(CONNECTIONS_MAX), Entrance::Metrics);
    let door = Door::open(bound.listeners, workers, limits, None, entrance, on_lost)
        .map_err(|error| format!("thread accept: {error}"))?;
    for address in &bound.addresses {
        log::info(&format!("metrics and status on {address}"), &[]);
    }
    let _file = bound.file;
    Ok(OwnDoor { door, _file })
}
