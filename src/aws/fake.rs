//! For tests: an [`Api`] that answers from a script and records what it was asked, and a folder.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::credentials::Credentials;
use crate::clock::{Clock, ManualClock};
use crate::message::Headers;
use crate::secret::Secret;
use crate::upstream::{Api, ApiCall, ApiReply, Stage, UpstreamError};

/// 2023-11-14T22:13:20Z in seconds since 1970.
pub(super) const START: u64 = 1_700_000_000;

pub(super) struct Scripted {
    status: u16,
    headers: Headers,
    body: String,
}

impl Scripted {
    pub(super) fn dated(mut self, date: SystemTime) -> Self {
        self.headers.set("Date", httpdate::fmt_http_date(date));
        self
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.set(name, value);
        self
    }
}

pub(super) fn json(status: u16, body: &str) -> Scripted {
    Scripted {
        status,
        headers: Headers::new(),
        body: body.into(),
    }
}

pub(super) fn refused() -> UpstreamError {
    UpstreamError::new(Stage::Connect, "https://h", "refused")
}

pub(super) fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(UNIX_EPOCH + Duration::from_secs(START)))
}

pub(super) fn credentials() -> Credentials {
    Credentials {
        access_key_id: "AKIDEXAMPLE".into(),
        secret: Secret::new("hunter2".into()),
        session_token: None,
        expires: None,
        source: "environment".into(),
    }
}

pub(super) struct FakeApi {
    clock: Arc<ManualClock>,
    script: Mutex<VecDeque<Result<Scripted, UpstreamError>>>,
    calls: Mutex<Vec<ApiCall>>,
    names: Mutex<HashMap<String, Vec<IpAddr>>>,
    takes: Mutex<Duration>,
}

impl FakeApi {
    pub(super) fn new(clock: &Arc<ManualClock>) -> Arc<Self> {
        Arc::new(Self {
            clock: clock.clone(),
            script: Mutex::default(),
            calls: Mutex::default(),
            names: Mutex::default(),
            takes: Mutex::default(),
        })
    }

    pub(super) fn reply(&self, reply: Scripted) {
        self.script.lock().unwrap().push_back(Ok(reply));
    }

    pub(super) fn fail(&self, fault: UpstreamError) {
        self.script.lock().unwrap().push_back(Err(fault));
    }

    /// From now on each call takes so long.
    pub(super) fn takes(&self, time: Duration) {
        *self.takes.lock().unwrap() = time;
    }

    /// From now on `name` leads to these addresses.
    pub(super) fn name(&self, name: &str, addresses: &[&str]) {
        let parse = |text: &&str| text.parse().unwrap();
        let addresses = addresses.iter().map(parse).collect();
        self.names.lock().unwrap().insert(name.into(), addresses);
    }

    pub(super) fn calls(&self) -> Vec<ApiCall> {
        self.calls.lock().unwrap().clone()
    }
}

impl Api for FakeApi {
    fn call(&self, call: &ApiCall) -> Result<ApiReply, UpstreamError> {
        self.calls.lock().unwrap().push(call.clone());
        self.clock.advance(*self.takes.lock().unwrap());
        let scripted = self.script.lock().unwrap().pop_front();
        let scripted = scripted.unwrap_or_else(|| Err(refused()))?;
        Ok(ApiReply {
            status: scripted.status,
            headers: scripted.headers,
            body: scripted.body.into_bytes(),
            sent: self.clock.now(),
            received: self.clock.now(),
        })
    }
    fn addresses(&self, host: &str, _deadline: Instant) -> Result<Vec<IpAddr>, UpstreamError> {
        if let Ok(address) = host.trim_matches(['[', ']']).parse() {
            return Ok(vec![address]);
        }
        let found = self.names.lock().unwrap().get(host).cloned();
        found.ok_or_else(|| UpstreamError::new(Stage::Resolve, host, "no such name"))
    }
}

/// A directory of the test's own, removed at its end.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("aws-credentials-{}-{number}", std::process::id());
        // The crate's sources leave the environment to `config`.
        let path = Path::new("/tmp").join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
