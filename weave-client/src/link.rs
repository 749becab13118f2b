//! A connection that keeps to a deadline, and tells a peer that hung up from one that is slow.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::Error;

/// When a call has to be over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    /// `None`: never.
    end: Option<Instant>,
    limit: Duration,
}

impl Deadline {
    pub(crate) fn after(limit: Option<Duration>) -> Self {
        // A limit beyond what the clock can count is none.
        let end = limit.and_then(|limit| Instant::now().checked_add(limit));
        Self { end, limit: limit.unwrap_or_default() }
    }

    /// The time that is left, as a socket's timeout: never zero, which would mean no limit.
    fn left(self) -> Result<Option<Duration>, Error> {
        let Some(end) = self.end else { return Ok(None) };
        match end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(Error::Timeout(self.limit)),
            left => Ok(Some(left)),
        }
    }
}

/// A connection in the course of one call.
#[derive(Debug)]
pub(crate) struct Link {
    stream: UnixStream,
    deadline: Deadline,
    /// Bytes that came since the call began.
    received: u64,
}

impl Link {
    pub(crate) fn connect(path: &Path, deadline: Deadline) -> Result<Self, Error> {
        let unreachable = |source| Error::Unreachable { path: path.to_owned(), source };
        let address = SockAddr::unix(path).map_err(unreachable)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(Error::Io)?;
        loop {
            // A daemon that doesn't accept leaves connect() waiting for a place in its backlog; the
            // kernel counts that as sending.
            socket.set_write_timeout(deadline.left()?).map_err(Error::Io)?;
            match socket.connect(&address) {
                Ok(()) => {
                    let stream = UnixStream::from(OwnedFd::from(socket));
                    return Ok(Self { stream, deadline, received: 0 });
                }
                Err(error) if is_retry(&error) => {}
                Err(error) => return Err(unreachable(error)),
            }
        }
    }

    /// Starts the next call on this connection.
    pub(crate) fn begin(&mut self, deadline: Deadline) {
        (self.deadline, self.received) = (deadline, 0);
    }

    pub(crate) fn send(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(self.deadline.left()?).map_err(Error::Io)?;
            match self.stream.write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if is_retry(&error) => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }

    /// Reads at least one byte into `buf`, which must not be empty.
    pub(crate) fn receive(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        loop {
            self.stream.set_read_timeout(self.deadline.left()?).map_err(Error::Io)?;
            match self.stream.read(buf) {
                Ok(0) => return Err(Error::HungUp { received: self.received }),
                Ok(count) => {
                    self.received = self.received.saturating_add(count as u64);
                    return Ok(count);
                }
                Err(error) if is_retry(&error) => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    /// Reads as much as `buf` holds.
    pub(crate) fn fill(&mut self, mut buf: &mut [u8]) -> Result<(), Error> {
        while !buf.is_empty() {
            let count = self.receive(buf)?;
            buf = buf.get_mut(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Reads `count` bytes and drops them.
    pub(crate) fn skip(&mut self, mut count: usize) -> Result<(), Error> {
        let mut dropped = [0; 4096];
        while count > 0 {
            let room = dropped.len().min(count);
            count -= self.receive(&mut dropped[..room])?;
        }
        Ok(())
    }

    fn failed(&self, error: io::Error) -> Error {
        match error.kind() {
            // A peer that closes with our bytes unread resets the connection.
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                Error::HungUp { received: self.received }
            }
            _ => Error::Io(error),
        }
    }
}

/// Whether to try again: a signal came in between, or a socket's timeout was over, of which the
/// deadline knows more.
fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
