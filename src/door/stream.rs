//! Sockets of either family, TCP or unix. Owns: what both can do under one name. Must not: know
//! what is said on them.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

/// A socket that clients connect to.
#[derive(Debug)]
pub struct Listener {
    socket: ListenerSocket,
    /// True for a socket that was handed in: its owner still uses it after our end.
    inherited: bool,
}

#[derive(Debug)]
enum ListenerSocket {
    /// An address and a port.
    Tcp(TcpListener),
    /// A path of the file system.
    Unix(UnixListener),
}

impl Listener {
    /// Marks the listener as handed in: it stays open when we stop.
    #[must_use]
    pub fn inherited(self) -> Self {
        Self {
            inherited: true,
            ..self
        }
    }

    /// A second handle on the same socket.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        let socket = match &self.socket {
            ListenerSocket::Tcp(listener) => ListenerSocket::Tcp(listener.try_clone()?),
            ListenerSocket::Unix(listener) => ListenerSocket::Unix(listener.try_clone()?),
        };
        Ok(Self { socket, ..*self })
    }

    /// Lets [`accept`](Self::accept) return, not block, when the client has left before it.
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        match &self.socket {
            ListenerSocket::Tcp(listener) => listener.set_nonblocking(true),
            ListenerSocket::Unix(listener) => listener.set_nonblocking(true),
        }
    }

    /// Blocks until there is a client, or `stop` is readable.
    pub(super) fn wait(&self, stop: impl AsFd) -> io::Result<()> {
        let own = self.as_fd();
        let mut awaited = [
            PollFd::from_borrowed_fd(own, PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        rustix::event::poll(&mut awaited, None)?;
        Ok(())
    }

    /// The next client and its address; a client on a unix socket has none.
    pub(super) fn accept(&self) -> io::Result<(ClientStream, Option<SocketAddr>)> {
        match &self.socket {
            ListenerSocket::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                Ok((ClientStream::Tcp(stream), Some(address)))
            }
            ListenerSocket::Unix(listener) => Ok((ClientStream::Unix(listener.accept()?.0), None)),
        }
    }

    /// Refuses clients from now on. A socket that was handed in stays open: shutting it down would
    /// shut down its owner's socket, where clients wait for the next process.
    pub(super) fn close(&self) {
        if !self.inherited {
            // On Linux a listening socket may be shut down (shutdown(2), tcp(7)).
            let _ = rustix::net::shutdown(self.as_fd(), rustix::net::Shutdown::Both);
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            ListenerSocket::Tcp(listener) => listener.as_fd(),
            ListenerSocket::Unix(listener) => listener.as_fd(),
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self {
            socket: ListenerSocket::Tcp(listener),
            inherited: false,
        }
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self {
            socket: ListenerSocket::Unix(listener),
            inherited: false,
        }
    }
}

/// A client's connection.
#[derive(Debug)]
pub(super) enum ClientStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl ClientStream {
    /// Sends small pieces at once; a unix socket always does.
    pub(super) fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nodelay(true),
            Self::Unix(_) => Ok(()),
        }
    }

    pub(super) fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nonblocking(on),
            Self::Unix(stream) => stream.set_nonblocking(on),
        }
    }

    pub(super) fn set_read_timeout(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(limit)),
            Self::Unix(stream) => stream.set_read_timeout(Some(limit)),
        }
    }

    pub(super) fn set_write_timeout(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(Some(limit)),
            Self::Unix(stream) => stream.set_write_timeout(Some(limit)),
        }
    }

    pub(super) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        }
    }
}

impl From<TcpStream> for ClientStream {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl AsFd for ClientStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for &ClientStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            ClientStream::Tcp(stream) => (&mut &*stream).read(into),
            ClientStream::Unix(stream) => (&mut &*stream).read(into),
        }
    }
}

impl Write for &ClientStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            ClientStream::Tcp(stream) => (&mut &*stream).write(bytes),
            ClientStream::Unix(stream) => (&mut &*stream).write(bytes),
        }
    }

    /// TLS hands over several records at a time.
    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            ClientStream::Tcp(stream) => (&mut &*stream).write_vectored(parts),
            ClientStream::Unix(stream) => (&mut &*stream).write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
