//! Downloads. Owns: exactly one upstream GET for each cold blob, the growing file its clients are
//! served from, resuming. Must not: publish a byte that is not verified, or end because a client
//! went away.
//!
//! A *miss is a hit on a file that is still growing*: the client that asked first is served like
//! any other, from the file. Readers get all but the last byte until length and digest are verified,
//! so that a wrong blob can always be cut.
//!
//! Locks: the map of running fills, and each fill's state; both held for a few reads and writes of
//! memory, never across I/O.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::hash::Hasher;
use super::names::{Names, Scope};
use super::store::{Reading, Store};
use super::sweep::{Reservation, Sweeper};
use crate::message::{Body, Headers, Piece, Pieces};
use crate::oci::{Digest, Registry, Repository};
use crate::upstream::exchange::{Call, Fetched, HEAD_TIMEOUT, Upstream};
use crate::upstream::permits::Permits;
use crate::upstream::{Stage, UpstreamError};
use crate::{log, metrics};

/// Longest wait for one of the fills' threads; then the blob is streamed uncached.
const SLOT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait of a fill for room under the quota.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
/// Failures in a row, without a byte in between, after which a download is given up.
const FAILURES_MAX: u32 = 5;
/// Pause after the first of them; doubles.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Bytes copied at a time.
const COPY_BYTES: usize = 64 * 1024;
/// Longest wait of a reader for the next byte: the fill's own idle limit and its tries.
const READER_TIMEOUT: Duration = Duration::from_secs(90);
/// Room left free on the disk for everything else that writes there.
const FREE_BYTES_MIN: u64 = 1 << 20;
/// A refusal's body is kept this far.
const REFUSAL_BYTES_MAX: u64 = 64 * 1024;
/// Stack of a fill's thread: TLS and hashing.
const STACK_BYTES: usize = 256 * 1024;
/// The same complaint about the disk is logged this often at the most.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// What a blob is asked for under, kept for as long as the download lasts.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The registry.
    pub registry: Registry,
    /// The repository.
    pub repository: Repository,
    /// The blob.
    pub digest: Digest,
}

impl Wanted {
    /// Where its names are kept.
    pub const fn scope(&self) -> Scope<'_> {
        Scope {
            registry: &self.registry,
            repository: &self.repository,
        }
    }

    fn target(&self) -> String {
        format!("/v2/{}/blobs/{}", self.repository, self.digest)
    }
}

/// All downloads.
pub struct Fills {
    store: Arc<Store>,
    names: Arc<Names>,
    sweeper: Arc<Sweeper>,
    upstream: Arc<Upstream>,
    slots: Arc<Permits>,
    running: Mutex<HashMap<Digest, Arc<Growing>>>,
    count: AtomicUsize,
    complained: Mutex<Option<Instant>>,
}

/// What joining a download came to.
pub enum Joined {
    /// It is not to be cached: stream it. The first to take it gets the reply that is there.
    Bypass(Option<Fetched>),
    /// The download failed before it began.
    Failed(UpstreamError),
    /// Bytes are coming, or are all there.
    Growing(Arc<Growing>),
    /// Upstream answered something else than the blob.
    Refused(Refused),
}

/// Upstream's answer where it was not the blob.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Its status.
    pub status: u16,
    /// Its fields.
    pub headers: Headers,
    /// Its body, as far as it is kept.
    pub body: Vec<u8>,
}

/// One download and the file it grows in.
pub struct Growing {
    wanted: Wanted,
    upstream: Arc<Upstream>,
    state: Mutex<State>,
    changed: Condvar,
    _reading: Reading,
}

#[derive(Default)]
struct State {
    /// Upstream has answered with the blob.
    begun: bool,
    total: Option<u64>,
    /// What readers read, and how far it is good.
    file: Option<(Arc<File>, u64)>,
    verified: bool,
    outcome: Option<Outcome>,
    handover: Option<Fetched>,
}

#[derive(Clone)]
enum Outcome {
    /// Not to be cached, or not any more: each reader goes on by itself.
    Bypass,
    Done,
    Failed(UpstreamError),
    Refused(Refused),
}

impl Fills {
    /// At most `max` downloads at a time.
    pub fn new(
        store: Arc<Store>,
        names: Arc<Names>,
        sweeper: Arc<Sweeper>,
        upstream: Arc<Upstream>,
        max: usize,
    ) -> Self {
        Self {
            store,
            names,
            sweeper,
            upstream,
            slots: Arc::new(Permits::new(max)),
            running: Mutex::default(),
            count: AtomicUsize::new(0),
            complained: Mutex::new(None),
        }
    }

    /// Joins the download of a blob, or begins it, and waits until upstream has answered. Blocks
    /// for [`HEAD_TIMEOUT`] and a little at the longest.
    pub fn join(self: &Arc<Self>, wanted: &Wanted) -> Joined {
        let deadline = Instant::now() + HEAD_TIMEOUT + Duration::from_secs(1);
        let (growing, first) = self.enter(wanted);
        if first {
            self.begin(&growing);
        }
        growing.wait_until_begun(deadline)
    }

    /// The download of `digest` that is going on, if one is.
    pub fn running(&self, digest: &Digest) -> Option<Arc<Growing>> {
        self.lock().get(digest).cloned()
    }

    fn enter(&self, wanted: &Wanted) -> (Arc<Growing>, bool) {
        let mut running = self.lock();
        if let Some(growing) = running.get(&wanted.digest) {
            return (Arc::clone(growing), false);
        }
        let growing = Arc::new(Growing {
            wanted: wanted.clone(),
            upstream: Arc::clone(&self.upstream),
            state: Mutex::default(),
            changed: Condvar::new(),
            _reading: self.store.reading(&wanted.digest),
        });
        running.insert(wanted.digest.clone(), Arc::clone(&growing));
        (growing, true)
    }

    /// Gives the download a thread; without one it is not cached.
    fn begin(self: &Arc<Self>, growing: &Arc<Growing>) {
        let Some(slot) = self.slots.take_owned(Instant::now() + SLOT_TIMEOUT) else {
            return self.end(growing, Outcome::Bypass);
        };
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let (fills, filling) = (Arc::clone(self), Arc::clone(growing));
        let run = move || {
            let fill = AssertUnwindSafe(|| fills.fill(&filling));
            let outcome = catch_unwind(fill).unwrap_or_else(|_| {
                metrics::PANICS.inc();
                Outcome::Failed(filling.fault(Stage::Transfer, "the download panicked".into()))
            });
            fills.end(&filling, outcome);
            drop(slot);
        };
        let thread = std::thread::Builder::new().name(format!("fill-{number}"));
        if thread.stack_size(STACK_BYTES).spawn(run).is_err() {
            self.end(growing, Outcome::Bypass);
        }
    }

    fn fill(&self, growing: &Growing) -> Outcome {
        match Fill::open(self, growing) {
            Ok(fill) => fill.run(),
            Err(error) => {
                self.complain("partial file", &error);
                Outcome::Bypass
            }
        }
    }

    fn end(&self, growing: &Growing, outcome: Outcome) {
        if let Outcome::Failed(error) = &outcome {
            let digest = &growing.wanted.digest;
            log::warn("download failed", &[("digest", digest), ("error", error)]);
        }
        // Out of the map first: whoever comes now finds the blob in the store, or begins anew.
        self.lock().remove(&growing.wanted.digest);
        growing.change(|state| state.outcome = Some(outcome));
    }

    /// Says, once in a while, that the cache cannot be written.
    pub fn complain(&self, what: &str, error: &io::Error) {
        metrics::CACHE_WRITE_FAILURES.inc();
        let now = Instant::now();
        let mut last = self
            .complained
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| now - last >= COMPLAINT_INTERVAL) {
            *last = Some(now);
            drop(last);
            let root = self.store.root().display();
            log::warn(
                "the cache cannot be written; pulls go on without it",
                &[("what", &what), ("error", error), ("directory", &root)],
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Growing>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Growing {
    /// Bytes in all, once upstream has said so.
    pub fn total(&self) -> Option<u64> {
        self.lock().total
    }

    /// How far it has come.
    pub fn written(&self) -> u64 {
        self.lock()
            .file
            .as_ref()
            .map_or(0, |(_, readable)| *readable)
    }

    /// A body of the bytes `start..end`; without `end`, to wherever the blob ends.
    pub fn body(self: &Arc<Self>, start: u64, end: Option<u64>) -> Body {
        let length = end.map(|end| end.saturating_sub(start));
        let pieces = Reader {
            growing: Arc::clone(self),
            position: start,
            end,
            file: None,
            own: None,
            buffer: Vec::new(),
        };
        Body::Pieces {
            pieces: Box::new(pieces),
            length,
        }
    }

    fn wait_until_begun(self: Arc<Self>, deadline: Instant) -> Joined {
        let mut state = self.lock();
        loop {
            match (&state.outcome, state.begun) {
                (Some(Outcome::Refused(refused)), _) => return Joined::Refused(refused.clone()),
                (Some(Outcome::Failed(error)), false) => return Joined::Failed(error.clone()),
                (Some(Outcome::Bypass), false) => return Joined::Bypass(state.handover.take()),
                (_, true) => {
                    drop(state);
                    return Joined::Growing(self);
                }
                (Some(Outcome::Done), false) => {
                    let why = "the download ended before it began".to_owned();
                    return Joined::Failed(self.fault(Stage::Transfer, why));
                }
                (None, false) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let why = "no answer came in time".to_owned();
                return Joined::Failed(self.fault(Stage::Timeout, why));
            }
            let waited = self.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn fault(&self, stage: Stage, reason: String) -> UpstreamError {
        UpstreamError {
            stage,
            to: self.wanted.registry.url(),
            reason,
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a few assignments, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The download as its thread does it.
struct Fill<'a> {
    fills: &'a Fills,
    growing: &'a Growing,
    file: Arc<File>,
    hasher: Hasher,
    /// Bytes written to the file, and hashed.
    have: u64,
    /// Bytes of it that this run downloaded.
    downloaded: u64,
    reserved: Option<Reservation>,
}

/// How one try ended.
enum Try {
    /// The body came to its end.
    Complete,
    /// For good.
    End(Outcome),
    /// May be tried again.
    Broken(UpstreamError),
}

impl<'a> Fill<'a> {
    /// Opens what an earlier download left, and hashes it.
    fn open(fills: &'a Fills, growing: &'a Growing) -> io::Result<Self> {
        let digest = &growing.wanted.digest;
        let partial = fills.store.partial(digest)?;
        let mut hasher = Hasher::new(digest);
        let mut buffer = vec![0; COPY_BYTES];
        let mut have = 0;
        while have < partial.length {
            let count = partial.file.read_at(&mut buffer, have)?;
            if count == 0 {
                break;
            }
            hasher.update(buffer.get(..count).unwrap_or_default());
            have += count as u64;
        }
        let file = Arc::new(partial.file);
        Ok(Self {
            fills,
            growing,
            file,
            hasher,
            have,
            downloaded: 0,
            reserved: None,
        })
    }

    fn run(mut self) -> Outcome {
        let mut failures = 0;
        loop {
            let before = self.downloaded;
            match self.attempt() {
                Try::Complete => return self.finish(),
                Try::End(outcome) => {
                    if self.have == 0 || matches!(outcome, Outcome::Bypass) {
                        self.discard();
                    }
                    return outcome;
                }
                Try::Broken(error) => {
                    failures = if self.downloaded > before {
                        1
                    } else {
                        failures + 1
                    };
                    if failures >= FAILURES_MAX || !self.growing.lock().begun {
                        // What came so far is kept: the next download goes on from there.
                        return Outcome::Failed(error);
                    }
                    let digest = &self.growing.wanted.digest;
                    log::info(
                        "download broke off; resuming",
                        &[("digest", digest), ("at", &self.have), ("error", &error)],
                    );
                    std::thread::sleep(PAUSE_MIN * 2_u32.saturating_pow(failures - 1));
                }
            }
        }
    }

    fn attempt(&mut self) -> Try {
        let wanted = &self.growing.wanted;
        let mut headers = Headers::from_iter([("Accept-Encoding", "identity")]);
        if self.have > 0 {
            headers.add("Range", format!("bytes={}-", self.have));
        }
        let call = Call {
            registry: &wanted.registry,
            method: "GET",
            target: &wanted.target(),
            headers: &headers,
            patience: HEAD_TIMEOUT,
            whole: false,
        };
        let fetched = self.fills.upstream.fetch_bodiless(call);
        let mut fetched = match fetched {
            Ok(fetched) => fetched,
            Err(error) => return Try::Broken(error),
        };
        let total = match (fetched.reply.status, content_range(&fetched.reply.headers)) {
            (200, _) if self.have > 0 => match self.start_again() {
                Ok(()) => fetched.reply.length,
                Err(error) => return self.disk_failed("partial file", &error),
            },
            (200, _) => fetched.reply.length,
            (206, Some((start, total))) if start == self.have => Some(total),
            (206 | 416, _) if self.have > 0 => {
                return match self.start_again() {
                    Ok(()) => Try::Broken(self.broken("upstream has no such range".into())),
                    Err(error) => self.disk_failed("partial file", &error),
                };
            }
            _ => return self.refused(fetched),
        };
        if let Err(outcome) = self.begin(total) {
            if matches!(outcome, Outcome::Bypass) && self.have == 0 {
                self.growing.change(|state| state.handover = Some(fetched));
            }
            return Try::End(outcome);
        }
        self.copy(total, &mut *fetched.reply.body)
    }

    /// Tells readers that bytes are coming, once there is room for them.
    fn begin(&mut self, total: Option<u64>) -> Result<(), Outcome> {
        let begun = self.growing.lock().begun;
        if begun {
            let known = self.growing.lock().total;
            if known.is_some() && total.is_some() && known != total {
                let why = format!("length changed from {known:?} to {total:?} bytes");
                return Err(Outcome::Failed(self.broken(why)));
            }
            return Ok(());
        }
        let missing = total.unwrap_or(0).saturating_sub(self.have);
        let free = self.fills.store.free_bytes().unwrap_or(u64::MAX);
        if free.saturating_sub(FREE_BYTES_MIN) < missing {
            log::info(
                "blob is larger than the free space; not cached",
                &[("bytes", &missing)],
            );
            return Err(Outcome::Bypass);
        }
        self.reserved = self
            .fills
            .sweeper
            .make_room(missing, Instant::now() + ROOM_TIMEOUT);
        if self.reserved.is_none() {
            log::info(
                "no room for the blob in CACHE_MAX_SIZE; not cached",
                &[("bytes", &missing)],
            );
            return Err(Outcome::Bypass);
        }
        self.growing.change(|state| {
            state.begun = true;
            state.total = total;
        });
        self.show();
        Ok(())
    }

    fn copy(&mut self, total: Option<u64>, body: &mut dyn Read) -> Try {
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let count = match body.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Try::Broken(self.broken(error.to_string())),
            };
            if count == 0 {
                return match total {
                    Some(total) if self.have < total => {
                        Try::Broken(self.broken(format!("body ended at byte {}", self.have)))
                    }
                    _ => Try::Complete,
                };
            }
            let piece = buffer.get(..count).unwrap_or_default();
            if total.is_some_and(|total| self.have + count as u64 > total) {
                self.discard();
                let why = "body is longer than its length".to_owned();
                return Try::End(Outcome::Failed(self.broken(why)));
            }
            if let Err(error) = self.file.write_all_at(piece, self.have) {
                return self.disk_failed("partial file", &error);
            }
            self.hasher.update(piece);
            self.have += count as u64;
            self.downloaded += count as u64;
            self.fills.store.add_used(i64::try_from(count).unwrap_or(0));
            if let Some(reserved) = &mut self.reserved {
                reserved.spend(count as u64);
            }
            self.show();
        }
    }

    /// Lets readers see what was written. After a restart in a new file they keep the old one until
    /// the new one has come further.
    fn show(&self) {
        let (file, have) = (Arc::clone(&self.file), self.have);
        self.growing.change(|state| {
            if state
                .file
                .as_ref()
                .is_none_or(|(_, readable)| *readable <= have)
            {
                state.file = Some((file, have));
            }
        });
    }

    /// A new file, for what upstream sends from its first byte on again.
    fn start_again(&mut self) -> io::Result<()> {
        let digest = &self.growing.wanted.digest;
        self.file = Arc::new(self.fills.store.fresh_partial(digest)?);
        self.hasher = Hasher::new(digest);
        self.have = 0;
        Ok(())
    }

    fn finish(&mut self) -> Outcome {
        let wanted = &self.growing.wanted;
        let found = std::mem::replace(&mut self.hasher, Hasher::new(&wanted.digest)).finish();
        if found != wanted.digest.as_str() {
            metrics::DIGEST_FAILURES.inc();
            self.discard();
            return Outcome::Failed(self.broken(format!("blob has the digest {found}")));
        }
        let have = self.have;
        self.growing.change(|state| {
            state.verified = true;
            state.total = Some(have);
        });
        if let Err(error) = self.fills.store.publish(&wanted.digest, &self.file) {
            self.fills.complain("blob", &error);
            self.discard();
            return Outcome::Done;
        }
        if let Err(error) = self
            .fills
            .names
            .set_link(wanted.scope(), &wanted.digest, None)
        {
            self.fills.complain("link", &error);
        }
        self.fills.sweeper.mark_dirty();
        Outcome::Done
    }

    fn refused(&self, fetched: Fetched) -> Try {
        if self.growing.lock().begun {
            return Try::Broken(self.broken(format!("answered {}", fetched.reply.status)));
        }
        let mut body = Vec::new();
        let read = fetched
            .reply
            .body
            .take(REFUSAL_BYTES_MAX)
            .read_to_end(&mut body);
        if let Err(error) = read {
            return Try::Broken(self.broken(error.to_string()));
        }
        let (status, headers) = (fetched.reply.status, fetched.reply.headers);
        Try::End(Outcome::Refused(Refused {
            status,
            headers,
            body,
        }))
    }

    fn disk_failed(&self, what: &str, error: &io::Error) -> Try {
        self.fills.complain(what, error);
        Try::End(Outcome::Bypass)
    }

    fn discard(&self) {
        self.fills
            .store
            .discard_partial(&self.growing.wanted.digest);
    }

    fn broken(&self, reason: String) -> UpstreamError {
        self.growing.fault(Stage::Transfer, reason)
    }
}

/// Start and total of `Content-Range: bytes start-end/total` (RFC 9110 §14.4).
fn content_range(headers: &Headers) -> Option<(u64, u64)> {
    let (range, total) = headers
        .first("Content-Range")?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end, total): (u64, u64, u64) =
        (start.parse().ok()?, end.parse().ok()?, total.parse().ok()?);
    (start <= end && end.checked_add(1)? == total).then_some((start, total))
}

/// One client's way through a growing file.
struct Reader {
    growing: Arc<Growing>,
    position: u64,
    end: Option<u64>,
    file: Option<Arc<File>>,
    /// The client's own download, once the shared one has lost its disk.
    own: Option<Box<dyn Read + Send>>,
    buffer: Vec<u8>,
}

/// What a reader finds.
enum Found {
    Bytes(Arc<File>, u64),
    End,
    OnOwn,
}

impl Pieces for Reader {
    fn next(&mut self) -> io::Result<Piece<'_>> {
        if self.end.is_some_and(|end| self.position >= end) {
            return Ok(Piece::End);
        }
        if self.own.is_none() {
            match self.find()? {
                Found::Bytes(file, length) => {
                    let offset = self.position;
                    self.position += length;
                    let file = self.file.insert(file);
                    return Ok(Piece::File {
                        file,
                        offset,
                        length,
                    });
                }
                Found::End => return Ok(Piece::End),
                Found::OnOwn => self.own = Some(self.download_rest()?),
            }
        }
        self.next_of_own()
    }
}

impl Reader {
    /// Waits for bytes at our position.
    fn find(&mut self) -> io::Result<Found> {
        let deadline = Instant::now() + READER_TIMEOUT;
        let mut state = self.growing.lock();
        loop {
            let readable = state.readable();
            if state.verified {
                self.end = self.end.or(state.total);
            }
            let until = self.end.map_or(readable, |end| end.min(readable));
            if let (Some((file, _)), true) = (&state.file, until > self.position) {
                return Ok(Found::Bytes(Arc::clone(file), until - self.position));
            }
            match &state.outcome {
                Some(Outcome::Bypass) => return Ok(Found::OnOwn),
                Some(Outcome::Done) => return Ok(Found::End),
                Some(Outcome::Failed(error)) => return Err(io::Error::other(error.clone())),
                Some(Outcome::Refused(refused)) => {
                    let why = format!("upstream answered {}", refused.status);
                    return Err(io::Error::other(why));
                }
                None => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "upstream sent nothing",
                ));
            }
            let waited = self.growing.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks upstream for what this client still lacks.
    fn download_rest(&self) -> io::Result<Box<dyn Read + Send>> {
        let wanted = &self.growing.wanted;
        let range = match self.end {
            Some(end) => format!("bytes={}-{}", self.position, end - 1),
            None => format!("bytes={}-", self.position),
        };
        let headers =
            Headers::from_iter([("Accept-Encoding", "identity".to_owned()), ("Range", range)]);
        let call = Call {
            registry: &wanted.registry,
            method: "GET",
            target: &wanted.target(),
            headers: &headers,
            patience: HEAD_TIMEOUT,
            whole: false,
        };
        let fetched = self
            .growing
            .upstream
            .fetch_bodiless(call)
            .map_err(io::Error::other)?;
        let mut body = fetched.reply.body;
        match (
            fetched.reply.status,
            content_range_start(&fetched.reply.headers),
        ) {
            (206, Some(start)) if start == self.position => Ok(body),
            (200, _) => {
                let skipped = io::copy(&mut (&mut body).take(self.position), &mut io::sink())?;
                if skipped < self.position {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(body)
            }
            (status, _) => Err(io::Error::other(format!(
                "upstream answered {status} to a range"
            ))),
        }
    }

    fn next_of_own(&mut self) -> io::Result<Piece<'_>> {
        let Some(own) = &mut self.own else {
            return Ok(Piece::End);
        };
        self.buffer.resize(COPY_BYTES, 0);
        let left = self.end.map_or(u64::MAX, |end| end - self.position);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(COPY_BYTES);
        let count = own.read(self.buffer.get_mut(..most).unwrap_or_default())?;
        if count == 0 {
            return match self.end {
                Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
                None => Ok(Piece::End),
            };
        }
        self.position += count as u64;
        Ok(Piece::Bytes(self.buffer.get(..count).unwrap_or_default()))
    }
}

fn content_range_start(headers: &Headers) -> Option<u64> {
    let range = headers.first("Content-Range")?.strip_prefix("bytes ")?;
    range.split_once('-')?.0.parse().ok()
}

impl State {
    /// All but the last byte may be read until the blob is verified.
    fn readable(&self) -> u64 {
        let readable = self.file.as_ref().map_or(0, |(_, readable)| *readable);
        match (self.verified, self.total) {
            (true, _) => readable,
            (false, Some(total)) => readable.min(total.saturating_sub(1)),
            (false, None) => readable.saturating_sub(1),
        }
    }
}
