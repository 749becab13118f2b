//! A connection that keeps to a deadline, and tells a peer that hung up from one that is slow.

use std::io::{self, Read, Write};
use std::net::ToSocketAddrs;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::{Address, Error, Token};

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
    stream: Socket,
    deadline: Deadline,
    /// Bytes that came since the call began.
    received: u64,
}

impl Link {
    /// Connects, and shows the token if it is for TCP.
    pub(crate) fn connect(
        address: &Address,
        token: Option<&Token>,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        let unreachable = |source| Error::Unreachable { address: address.clone(), source };
        match address {
            Address::Unix(path) => Self::connect_unix(path, deadline)?.map_err(unreachable),
            Address::Tcp(host_and_port) => {
                let mut link = Self::connect_tcp(host_and_port, deadline)?.map_err(unreachable)?;
                if let Some(token) = token {
                    link.send(token.line().as_bytes())?;
                }
                Ok(link)
            }
        }
    }

    /// Within: what the system says why it can't be reached.
    fn connect_unix(path: &Path, deadline: Deadline) -> Result<io::Result<Self>, Error> {
        let address = match SockAddr::unix(path) {
            Ok(address) => address,
            Err(error) => return Ok(Err(error)),
        };
        let stream = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(Error::Io)?;
        loop {
            // A daemon that doesn't accept leaves connect() waiting for a place in its backlog; the
            // kernel counts that as sending.
            stream.set_write_timeout(deadline.left()?).map_err(Error::Io)?;
            match stream.connect(&address) {
                Ok(()) => return Ok(Ok(Self { stream, deadline, received: 0 })),
                Err(error) if is_retry(&error) => {}
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Tries all addresses that the host's name stands for. Looking it up has no time limit.
    fn connect_tcp(host_and_port: &str, deadline: Deadline) -> Result<io::Result<Self>, Error> {
        let addresses = match host_and_port.to_socket_addrs() {
            Ok(addresses) => addresses,
            Err(error) => return Ok(Err(error)),
        };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in addresses {
            let stream = Socket::new(Domain::for_address(address), Type::STREAM, None).map_err(Error::Io)?;
            // Frames are written whole: there is nothing to wait for and send along.
            stream.set_tcp_nodelay(true).map_err(Error::Io)?;
            let connected = match deadline.left()? {
                Some(left) => stream.connect_timeout(&address.into(), left),
                None => stream.connect(&address.into()),
            };
            match connected {
                Ok(()) => return Ok(Ok(Self { stream, deadline, received: 0 })),
                Err(error) => last = error,
            }
        }
        // If the time is over, that is why.
        deadline.left().map(|_| Err(last))
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
