//! One client's way through a growing file. Owns: waiting for bytes, and going on alone when the
//! shared download has lost its disk. Must not: give out the last byte of what is not verified.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::growing::{COPY_BYTES, FillEnd, Growing};
use crate::locked::Locked as _;
use crate::message::{Body, Headers, Piece, Pieces};
use crate::range::ContentRange;
use crate::transfers::JoinedClient;

/// Longest wait of a reader for the next byte: the fill's own idle limit and its tries.
const READER_TIMEOUT: Duration = Duration::from_secs(90);

/// One client's way through a growing file.
pub(super) struct Reader {
    growing: Arc<Growing>,
    position: u64,
    end: u64,
    file: Option<Arc<File>>,
    /// The client's own download, once the shared one has lost its disk.
    own: Option<Box<dyn Read + Send>>,
    buffer: Vec<u8>,
    _client: JoinedClient,
}

/// What a reader finds.
enum NextBytes {
    Bytes(Arc<File>, u64),
    End,
    OnOwn,
}

impl Growing {
    /// A body of the bytes `start..end`.
    pub fn body(self: &Arc<Self>, start: u64, end: u64) -> Body {
        let length = Some(end.saturating_sub(start));
        let pieces = Box::new(Reader::new(Arc::clone(self), start, end));
        Body::Pieces { pieces, length }
    }
}

impl Pieces for Reader {
    fn next(&mut self) -> io::Result<Piece<'_>> {
        if self.position >= self.end {
            return Ok(Piece::End);
        }
        if self.own.is_none() {
            match self.find()? {
                NextBytes::Bytes(file, length) => {
                    let offset = self.position;
                    self.position += length;
                    let file = self.file.insert(file);
                    return Ok(Piece::File {
                        file,
                        offset,
                        length,
                    });
                }
                NextBytes::End => return Ok(Piece::End),
                NextBytes::OnOwn => self.own = Some(self.download_rest()?),
            }
        }
        self.next_of_own()
    }
}

impl Reader {
    /// Reads `start..end`.
    pub(super) fn new(growing: Arc<Growing>, start: u64, end: u64) -> Self {
        Self {
            _client: growing.transfer.join(),
            growing,
            position: start,
            end,
            file: None,
            own: None,
            buffer: Vec::new(),
        }
    }

    /// Waits for bytes at our position.
    fn find(&self) -> io::Result<NextBytes> {
        let deadline = Instant::now() + READER_TIMEOUT;
        let mut state = self.growing.state.locked();
        loop {
            let until = self.end.min(state.readable());
            if let (Some((file, _)), true) = (&state.file, until > self.position) {
                return Ok(NextBytes::Bytes(Arc::clone(file), until - self.position));
            }
            match &state.outcome {
                Some(FillEnd::Bypass) => return Ok(NextBytes::OnOwn),
                Some(FillEnd::Done) => return Ok(NextBytes::End),
                Some(FillEnd::Failed(error)) => return Err(io::Error::other(error.clone())),
                Some(FillEnd::Refused(refused)) => {
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
            state = self.growing.wait(state, left);
        }
    }

    /// Asks upstream for what this client still lacks.
    fn download_rest(&self) -> io::Result<Box<dyn Read + Send>> {
        let range = format!("bytes={}-{}", self.position, self.end - 1);
        let headers =
            Headers::from_iter([("Accept-Encoding", "identity".to_owned()), ("Range", range)]);
        let fetched = self.growing.ask(&headers).map_err(io::Error::other)?;
        let mut body = fetched.reply.body;
        let range = fetched.reply.headers.first("Content-Range");
        let range = range.and_then(ContentRange::parse);
        match (fetched.reply.status, range.and_then(ContentRange::first)) {
            (206, Some(first)) if first == self.position => Ok(body),
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
        let left = self.end - self.position;
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(COPY_BYTES);
        let count = own.read(self.buffer.get_mut(..most).unwrap_or_default())?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        Ok(Piece::Bytes(self.buffer.get(..count).unwrap_or_default()))
    }
}
