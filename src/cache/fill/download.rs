//! One download, as its thread does it. Owns: the partial file, resuming, verifying, publishing.
//! Must not: know its readers; it tells the growing state, and they look there.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ahead::{PIECE_BYTES, ReadAhead};
use super::growing::{COPY_BYTES, FillEnd, Growing};
use crate::cache::disk::Disk;
use crate::cache::files;
use crate::cache::links::Link;
use crate::cache::sweep::Reservation;
use crate::hash::{self, Hasher};
use crate::locked::Locked as _;
use crate::log::{self, Level};
use crate::message::{Buffered, Headers};
use crate::metrics;
use crate::oci::ERROR_DOCUMENT_BYTES_MAX;
use crate::range::ContentRange;
use crate::upstream::exchange::Fetched;
use crate::upstream::{Stage, UpstreamError};

/// Longest time for making room under the quota, whatever went before: a fill that waited long for
/// upstream gets this much.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
/// A fill may make room until so long after it began. Some hundred thousand files can be removed in
/// it, and the client still gets its head in time: within the upstream's 25 s.
const ROOM_TIMEOUT_FROM_START: Duration = Duration::from_secs(20);
/// Clients of a blob of up to so many bytes are woken once, when it is whole: most blobs come at
/// once, in two or three TLS records. If one does not, each waiting client looks for itself.
const SMALL_BYTES_MAX: u64 = COPY_BYTES as u64;
/// Failures in a row, without getting further in between, after which a download is given up.
const FAILURES_MAX: u32 = 6;
/// Pause after the first of them; doubles, so that an upstream gets 3 s to come back.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Pieces from an earlier download that are hashed beside each new piece, once the rest of the blob
/// is so many times smaller. Hashing is far faster than any line on which this matters.
const CATCH_UP_PIECES: u64 = 4;
/// How often a long download is made to outlive a power cut: 7 MB at 2 Mbit/s.
const SYNC_INTERVAL: Duration = Duration::from_secs(30);

/// The download as its thread does it.
pub(super) struct Fill<'a> {
    pub(super) disk: &'a Disk,
    pub(super) growing: &'a Growing,
    pub(super) file: Arc<File>,
    /// False while another process writes the file, and we only read it.
    pub(super) is_ours: bool,
    pub(super) hasher: Hasher,
    /// Bytes that are in the file.
    pub(super) have: u64,
    /// Bytes of these that were hashed: fewer when an earlier download left a part.
    hashed: u64,
    /// When bytes were last made to outlive a power cut.
    synced_at: Instant,
    /// Files from before a restart, and how far readers may have read them.
    shown: Vec<(Arc<File>, u64)>,
    reserved: Option<Reservation>,
    begun_at: Instant,
}

/// Why one try did not come to the end of the body.
enum Stop {
    /// For good.
    End(FillEnd),
    /// May be tried again.
    Broken(UpstreamError),
    /// To be tried again from the first byte: upstream does not go on where we are.
    Restarted,
}

/// A body by pieces. One that is not large is not worth a thread.
fn read_pieces(body: Box<dyn Read + Send>, have: u64, total: u64) -> io::Result<Box<dyn BufRead>> {
    let left = usize::try_from(total.saturating_sub(have)).unwrap_or(usize::MAX);
    if left > PIECE_BYTES {
        return Ok(Box::new(ReadAhead::start(body, have)?));
    }
    // One byte more than there may be shows a body that is too long.
    let room = COPY_BYTES.min(left + 1);
    Ok(Box::new(BufReader::with_capacity(room, body)))
}

impl<'a> Fill<'a> {
    /// Opens what an earlier download left.
    pub(super) fn open(disk: &'a Disk, growing: &'a Growing) -> io::Result<Self> {
        let digest = &growing.wanted.digest;
        let partial = disk.store.partial(digest)?;
        let mut fill = Self {
            disk,
            growing,
            file: Arc::new(partial.file),
            is_ours: partial.is_ours,
            hasher: Hasher::new(digest),
            have: 0,
            hashed: 0,
            synced_at: Instant::now(),
            shown: Vec::new(),
            reserved: None,
            begun_at: Instant::now(),
        };
        if fill.is_ours {
            fill.have = partial.length;
        }
        Ok(fill)
    }

    /// Hashes what is in the file and not hashed yet, up to byte `end`.
    pub(super) fn hash_until(&mut self, end: u64) -> io::Result<()> {
        let mut buffer = Vec::new();
        while self.hashed < end {
            buffer.resize(COPY_BYTES, 0);
            let most = usize::try_from(end - self.hashed).unwrap_or(COPY_BYTES);
            let piece = buffer.get_mut(..most.min(COPY_BYTES)).unwrap_or_default();
            let count = self.file.read_at(piece, self.hashed)?;
            if count == 0 {
                break;
            }
            self.hasher.update(piece.get(..count).unwrap_or_default());
            self.hashed += count as u64;
        }
        self.have = self.have.max(self.hashed);
        Ok(())
    }

    /// A piece was written. What an earlier download left is hashed beside the last part of this
    /// one: a download that is cut every hour reads it once in all, and not once an hour.
    fn hash_piece(&mut self, piece: &[u8], total: u64) -> io::Result<()> {
        let count = piece.len() as u64;
        if self.hashed == self.have {
            self.hasher.update(piece);
            self.hashed += count;
        }
        self.have += count;
        let left = total.saturating_sub(self.have);
        if self.have - self.hashed >= left.saturating_mul(CATCH_UP_PIECES) {
            let until = self.hashed + count * (CATCH_UP_PIECES + 1);
            self.hash_until(until.min(self.have))?;
        }
        if self.synced_at.elapsed() >= SYNC_INTERVAL {
            self.disk.store.sync_partial(&self.file, self.have)?;
            self.synced_at = Instant::now();
        }
        Ok(())
    }

    pub(super) fn run(mut self) -> FillEnd {
        if !self.is_ours
            && let Some(outcome) = self.follow()
        {
            return outcome;
        }
        if self.have == 0
            && let Some(outcome) = self.show_stored()
        {
            return outcome;
        }
        let mut restarted = false;
        let (mut failures, mut furthest) = (0, 0);
        let outcome = loop {
            let error = match self.attempt() {
                Ok(()) => return self.finish(),
                Err(Stop::End(outcome)) => break outcome,
                Err(Stop::Restarted) if !restarted => {
                    restarted = true;
                    continue;
                }
                Err(Stop::Restarted) => {
                    break FillEnd::Failed(self.new_fault("upstream answers no range".to_owned()));
                }
                Err(Stop::Broken(error)) => error,
            };
            // One that starts again and breaks off at the same byte each time has no end.
            failures = match self.have > furthest {
                true => 1,
                false => failures + 1,
            };
            furthest = furthest.max(self.have);
            if failures >= FAILURES_MAX || !self.growing.state.locked().has_begun {
                break FillEnd::Failed(error);
            }
            let digest = &self.growing.wanted.digest;
            let message = "download broke off; resuming";
            let fields: [log::Field<'_>; 2] = [("digest", digest), ("at", &self.have)];
            log::cause(Level::Info, message, ("error", &error), &fields);
            std::thread::sleep(PAUSE_MIN * 2_u32.saturating_pow(failures - 1));
        };
        // What came so far is kept, and the next download goes on from there. Empty files would
        // pile up, one for each digest that is asked for while upstream is down.
        if self.have == 0 || matches!(outcome, FillEnd::Bypass) {
            self.discard();
        }
        outcome
    }

    fn attempt(&mut self) -> Result<(), Stop> {
        if self.have > 0 && self.is_linked() && self.is_whole() {
            return self.publish_whole();
        }
        let mut headers = Headers::from_iter([("Accept-Encoding", "identity")]);
        if self.have > 0 {
            headers.add("Range", format!("bytes={}-", self.have));
        }
        let fetched = self.growing.ask(&headers).map_err(Stop::Broken)?;
        let range = fetched.reply.headers.first("Content-Range");
        let range = range.and_then(ContentRange::parse);
        let starts_here = range.and_then(ContentRange::first) == Some(self.have);
        let rest = range.and_then(ContentRange::total_at_end);
        let total = match (fetched.reply.status, rest) {
            (200, _) => {
                if self.have > 0 {
                    self.start_again()?;
                }
                fetched.reply.length
            }
            (206, Some(total)) if starts_here => {
                metrics::DOWNLOADS_RESUMED.inc();
                Some(total)
            }
            // Upstream has the blob in this repository, and we have all its bytes.
            (416, _) if self.is_whole() => return self.publish_whole(),
            (206 | 416, _) if self.have > 0 => {
                self.start_again()?;
                return Err(Stop::Restarted);
            }
            _ => return Err(self.refused(fetched)),
        };
        if let Err(outcome) = self.begin(total) {
            if matches!(outcome, FillEnd::Bypass) && self.have == 0 {
                self.growing.change(|state| state.handover = Some(fetched));
            }
            return Err(Stop::End(outcome));
        }
        self.copy(fetched.reply.body)
    }

    /// The proof that the blob belongs to the repository.
    pub(super) fn link(&self) -> Option<Link> {
        let wanted = &self.growing.wanted;
        let scope = wanted.scope.as_scope();
        self.disk.names.link(scope, &wanted.digest)
    }

    /// Shows the blob if it came into the cache after the client looked there: another download of
    /// it ended in between.
    fn show_stored(&mut self) -> Option<FillEnd> {
        let (digest, store) = (&self.growing.wanted.digest, &self.disk.store);
        if !store.has(digest) {
            return None;
        }
        self.link()?;
        let blob = store.blob(digest).ok()??;
        self.discard();
        (self.file, self.have, self.is_ours) = (blob.file, blob.size, false);
        self.announce(blob.size);
        Some(self.finish())
    }

    /// True when the repository has the blob, and it may be no longer than what we have.
    fn is_linked(&self) -> bool {
        self.link()
            .is_some_and(|link| link.size.is_none_or(|size| size == self.have))
    }

    /// True when the process was stopped after the last byte and before the blob was published.
    fn is_whole(&mut self) -> bool {
        let digest = &self.growing.wanted.digest;
        let is_read = self.have > 0 && self.hash_until(self.have).is_ok();
        is_read && self.hasher.clone().finish() == digest.as_str()
    }

    fn publish_whole(&mut self) -> Result<(), Stop> {
        self.begin(Some(self.have)).map_err(Stop::End)
    }

    /// Tells readers that bytes are coming, once there is room for them.
    fn begin(&mut self, total: Option<u64>) -> Result<(), FillEnd> {
        let Some(total) = total else {
            log_not_cached("its length is unknown", 0);
            return Err(FillEnd::Bypass);
        };
        let begun = self.growing.total_if_begun();
        if let Some(known) = begun.filter(|known| *known != total) {
            let why = format!("length changed from {known} to {total} bytes");
            return Err(FillEnd::Failed(self.new_fault(why)));
        }
        // An empty body has no last byte that could wait for the hash.
        if total == 0 && !hash::matches(&self.growing.wanted.digest, b"") {
            let why = "blob is empty, and its digest is another".to_owned();
            return Err(FillEnd::Failed(self.new_fault(why)));
        }
        if self.reserved.is_none() {
            self.reserve(total)?;
        }
        if begun.is_none() {
            self.announce(total);
        }
        Ok(())
    }

    fn reserve(&mut self, total: u64) -> Result<(), FillEnd> {
        let missing = total.saturating_sub(self.have);
        let from_start = self.begun_at + ROOM_TIMEOUT_FROM_START;
        let until = from_start.max(Instant::now() + ROOM_TIMEOUT);
        let room = self.disk.make_room(missing, until).map_err(|why| {
            log_not_cached(why, missing);
            FillEnd::Bypass
        })?;
        self.reserved = Some(room);
        Ok(())
    }

    pub(super) fn announce(&self, total: u64) {
        self.growing.transfer.begin(self.have, total);
        let mut state = self.growing.state.locked();
        state.has_begun = true;
        state.total = total;
        drop(state);
        self.show(false);
    }

    fn copy(&mut self, body: Box<dyn Read + Send>) -> Result<(), Stop> {
        let total = self.growing.total();
        let body = read_pieces(body, self.have, total);
        let mut body = body.map_err(|error| self.broken(error.to_string()))?;
        loop {
            let piece = match body.fill_buf() {
                Ok([]) if self.have == total => return Ok(()),
                Ok([]) => return Err(self.broken(format!("body ended at byte {}", self.have))),
                Ok(piece) => piece,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.broken(error.to_string())),
            };
            let count = piece.len();
            self.keep(piece, total)?;
            body.consume(count);
        }
    }

    /// Writes and hashes a piece.
    fn keep(&mut self, piece: &[u8], total: u64) -> Result<(), Stop> {
        let count = piece.len() as u64;
        if self.have + count > total {
            self.discard();
            let why = "body is longer than its length".to_owned();
            return Err(Stop::End(FillEnd::Failed(self.new_fault(why))));
        }
        let written = self.file.write_all_at(piece, self.have);
        let written = written.and_then(|()| self.hash_piece(piece, total));
        self.check_disk(written)?;
        metrics::DOWNLOADED_BYTES.add(count);
        self.disk.store.add_used(i64::try_from(count).unwrap_or(0));
        if let Some(reserved) = &mut self.reserved {
            reserved.spend(count);
        }
        // The last piece is shown once it is verified.
        if self.have < total {
            self.show(false);
        }
        let transfer = &self.growing.transfer;
        self.growing.pace.wait(count, || transfer.is_background());
        Ok(())
    }

    /// Lets readers see what was written. After a restart in a new file they keep the old one until
    /// the new one has come further.
    pub(super) fn show(&self, is_verified: bool) {
        let (file, have) = (Arc::clone(&self.file), self.have);
        self.growing.transfer.set_bytes(have);
        let mut state = self.growing.state.locked();
        state.is_verified |= is_verified;
        if state.written() <= have {
            state.file = Some((file, have));
        }
        if is_verified || state.total > SMALL_BYTES_MAX {
            self.growing.changed.notify_all();
        }
    }

    /// A new file, for what upstream sends from its first byte on again.
    fn start_again(&mut self) -> Result<(), Stop> {
        let digest = &self.growing.wanted.digest;
        self.shown.extend(self.growing.state.locked().file.clone());
        self.file = Arc::new(self.check_disk(self.disk.store.fresh_partial(digest))?);
        self.hasher = Hasher::new(digest);
        (self.have, self.hashed) = (0, 0);
        Ok(())
    }

    pub(super) fn finish(&mut self) -> FillEnd {
        let wanted = &self.growing.wanted;
        let hashed = self.hash_until(self.have);
        if self.disk.faults.check("partial file", hashed).is_none() {
            self.discard();
            return FillEnd::Bypass;
        }
        let found = std::mem::replace(&mut self.hasher, Hasher::new(&wanted.digest)).finish();
        if found != wanted.digest.as_str() {
            metrics::DIGEST_FAILURES.inc();
            self.discard();
            return FillEnd::Failed(self.new_fault(format!("blob has the digest {found}")));
        }
        let same = self.was_shown_right();
        // The link first: a client that asks for a blob without a link costs a HEAD.
        wanted.link(self.disk, Some(self.growing.total()));
        self.show(same);
        let outcome = match same {
            true => FillEnd::Done,
            // The blob is good, and what readers got of it before the restart is not.
            false => {
                FillEnd::Failed(self.new_fault("the bytes from before a restart are wrong".into()))
            }
        };
        if !self.is_ours {
            // Its writer publishes it.
            return outcome;
        }
        let published = self.disk.store.publish(&wanted.digest, &self.file);
        match self.disk.faults.check("blob", published) {
            Some(()) => self.disk.sweeper.note_blob(),
            None => self.discard(),
        }
        outcome
    }

    /// True when the bytes that readers may have got from before a restart are those of the
    /// verified file: only its digest was checked.
    fn was_shown_right(&self) -> bool {
        let mut good = Vec::new();
        self.shown.iter().all(|(file, readable)| {
            let mut at = 0;
            let is_rewound = (&**file).rewind().is_ok();
            let compared = files::each_piece((&**file).take(*readable), &mut |piece| {
                good.resize(piece.len(), 0);
                self.file.read_exact_at(&mut good, at)?;
                at += piece.len() as u64;
                match good == piece {
                    true => Ok(()),
                    false => Err(io::ErrorKind::InvalidData.into()),
                }
            });
            is_rewound && compared.is_ok_and(|compared| compared == *readable)
        })
    }

    fn refused(&self, fetched: Fetched) -> Stop {
        if self.growing.state.locked().has_begun {
            return self.broken(format!("answered {}", fetched.reply.status));
        }
        let mut body = Vec::new();
        let mut document = fetched.reply.body.take(ERROR_DOCUMENT_BYTES_MAX);
        if let Err(error) = document.read_to_end(&mut body) {
            return self.broken(error.to_string());
        }
        let (status, headers) = (fetched.reply.status, fetched.reply.headers);
        Stop::End(FillEnd::Refused(Buffered {
            status,
            headers,
            body: body.into(),
        }))
    }

    fn check_disk<T>(&self, result: io::Result<T>) -> Result<T, Stop> {
        let result = self.disk.faults.check("partial file", result);
        result.ok_or(Stop::End(FillEnd::Bypass))
    }

    fn broken(&self, reason: String) -> Stop {
        Stop::Broken(self.new_fault(reason))
    }

    fn discard(&self) {
        if self.is_ours {
            self.disk.store.discard_partial(&self.growing.wanted.digest);
        }
    }

    fn new_fault(&self, reason: String) -> UpstreamError {
        self.growing.fault(Stage::Transfer, reason)
    }
}

impl Drop for Fill<'_> {
    fn drop(&mut self) {
        // Its readers keep the file open, and the next download needs the lock.
        let _ = self.file.unlock();
    }
}

/// `bytes`: what is missing of the blob; 0 when nobody knows.
fn log_not_cached(why: &str, bytes: u64) {
    let fields: [log::Field<'_>; 1] = [("bytes", &bytes)];
    log::cause(Level::Warn, "blob not cached", ("reason", &why), &fields);
}
