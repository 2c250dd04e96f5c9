//! Pages for operators: metrics and status. Owns: the address they are at, and who may see them.
//! Must not: know what they show.
//!
//! They are at `METRICS_LISTEN`, without login, and then nowhere else. Without that setting they
//! are at the registry's address, with the registry's login and client certificates.

use std::sync::Arc;

use super::listen::{self, Address, SocketFile};
use crate::config::MetricsSettings;
use crate::door::{Door, DoorLimits, Listener, Workers};
use crate::log;
use crate::message::{Answer, Entrance, Request};
use crate::proxy::login::Logins;
use crate::status::{self, Sources, Status};

/// Connections at `METRICS_LISTEN` at a time: a few Prometheus, and people.
pub(super) const CONNECTIONS_MAX: usize = 32;

/// The pages, and who may see them.
pub(super) struct OperatorPages {
    sources: Arc<Sources>,
    /// None with `STATUS_PAGE=false`.
    status: Option<Arc<Status>>,
    /// None: everybody may come.
    logins: Option<Arc<Logins>>,
    has_own_address: bool,
    metrics_anonymous: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum OperatorPage {
    Metrics,
    Status,
}

impl OperatorPages {
    /// `with_status`: `STATUS_PAGE`
    pub(super) fn new(
        sources: Arc<Sources>,
        with_status: bool,
        logins: Option<Arc<Logins>>,
        settings: &MetricsSettings,
    ) -> Self {
        Self {
            status: with_status.then(|| Arc::new(Status::new(Arc::clone(&sources)))),
            sources,
            logins,
            has_own_address: settings.listen.is_some(),
            metrics_anonymous: settings.anonymous,
        }
    }

    /// True for a page that needs neither login nor client certificate.
    pub(super) fn is_open(&self, request: &Request) -> bool {
        self.metrics_anonymous && self.find(request) == Some(OperatorPage::Metrics)
    }

    /// The answer of one of these pages, as far as the client may see it; none for all else.
    pub(super) fn answer(&self, request: &Arc<Request>) -> Option<Answer> {
        let page = self.find(request)?;
        let logins = match request.peer.entrance {
            Entrance::Main if !self.is_open(request) => self.logins.as_ref(),
            Entrance::Main | Entrance::Metrics => None,
        };
        let (sources, status, asked) = (
            Arc::clone(&self.sources),
            self.status.clone(),
            Arc::clone(request),
        );
        let answer = move || match (page, status) {
            (OperatorPage::Status, Some(status)) => status.answer(&asked),
            (OperatorPage::Metrics | OperatorPage::Status, _) => {
                status::answer_metrics(&sources, &asked)
            }
        };
        Some(match logins {
            None => answer(),
            Some(logins) => logins.admit(request, answer),
        })
    }

    /// The page that a request means; none where there is none at this address.
    fn find(&self, request: &Request) -> Option<OperatorPage> {
        if self.has_own_address && request.peer.entrance == Entrance::Main {
            return None;
        }
        match request.path() {
            "/metrics" => Some(OperatorPage::Metrics),
            path if Status::owns(path) && self.status.is_some() => Some(OperatorPage::Status),
            _ => None,
        }
    }
}

/// The socket of `METRICS_LISTEN`.
pub(super) struct OwnSocket {
    listeners: Vec<Listener>,
    addresses: Vec<Address>,
    /// Removes the file of a unix socket when it is dropped.
    file: Option<SocketFile>,
}

/// Binds `METRICS_LISTEN`, if it is set.
pub(super) fn bind(settings: &MetricsSettings) -> Result<Option<OwnSocket>, String> {
    let Some(listen) = &settings.listen else {
        return Ok(None);
    };
    let bound = listen::open_at(&listen.host, listen.port, "METRICS_LISTEN")?;
    Ok(Some(OwnSocket {
        listeners: bound.listeners,
        addresses: bound.addresses,
        file: bound.file,
    }))
}

/// A door of its own, and the file of its socket.
pub(super) struct OwnDoor {
    pub(super) door: Door,
    _file: Option<SocketFile>,
}

impl OwnSocket {
    /// Lets clients in.
    pub(super) fn open(
        self,
        workers: Workers,
        on_lost: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Result<OwnDoor, String> {
        let limits = DoorLimits::new(CONNECTIONS_MAX);
        let entrance = Entrance::Metrics;
        let door = Door::open(self.listeners, workers, limits, None, entrance, on_lost)
            .map_err(|error| format!("thread accept: {error}"))?;
        for address in &self.addresses {
            log::info(&format!("metrics and status on {address}"), &[]);
        }
        Ok(OwnDoor {
            door,
            _file: self.file,
        })
    }
}
