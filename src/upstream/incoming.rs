//! A reply from upstream on its way in. Owns: [`Incoming`]. Must not: send anything.

use std::io::{self, Read};
use std::time::Instant;

use super::tcp;
use crate::message::{Buffered, Headers};

/// A reply whose body is still to be read.
pub struct Incoming {
    /// The status.
    pub status: u16,
    /// The fields.
    pub headers: Headers,
    /// The body. An early end is an error.
    pub body: Box<dyn Read + Send>,
    /// `Content-Length`; for a HEAD, of what a GET would bring.
    pub length: Option<u64>,
}

impl Incoming {
    /// Status and AWS's id of it, for the log.
    pub(super) fn seen(&self) -> (u16, &str) {
        let id = self.headers.first("x-amzn-requestid");
        (self.status, id.unwrap_or_default())
    }

    /// The body, up to `bytes_max` bytes. Blocks until `deadline` at the longest.
    ///
    /// # Errors
    /// When the body breaks off, or has not come by then.
    pub fn read_body(&mut self, bytes_max: u64, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut reader = (&mut self.body).take(bytes_max);
        tcp::read_until(deadline, || reader.read_to_end(&mut bytes))?;
        Ok(bytes)
    }
}

impl From<Buffered> for Incoming {
    fn from(reply: Buffered) -> Self {
        Self {
            status: reply.status,
            headers: reply.headers,
            length: Some(reply.body.len() as u64),
            body: Box::new(io::Cursor::new(reply.body)),
        }
    }
}
