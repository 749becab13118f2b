//! A connection that keeps to a deadline, and tells a peer that hung up from one that is slow.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::address::Address;
use crate::error::Error;
use crate::stopper::Stopper;

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

    /// The earlier one: this, or when so much time has passed.
    fn within(self, limit: Option<Duration>) -> Self {
        let other = Self::after(limit);
        match (self.end, other.end) {
            (Some(end), Some(earlier)) if end <= earlier => self,
            (_, Some(_)) => other,
            (_, None) => self,
        }
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

/// Whom to connect to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Server<'a> {
    pub(crate) address: &'a Address,
    /// Who may listen on a Unix socket, beside those who may anyway.
    pub(crate) uid: Option<u32>,
}

/// A connection, and when the call has to be over that uses it.
#[derive(Debug)]
pub(crate) struct Link {
    /// Shared with whoever may stop the call.
    stream: Arc<Socket>,
    deadline: Deadline,
    /// Bytes of the answer that is being read.
    received: u64,
}

impl Link {
    /// Connects within `limit`, and says within the same time what comes before the first frame.
    pub(crate) fn connect(
        server: Server<'_>,
        deadline: Deadline,
        limit: Option<Duration>,
        greet: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let Server { address, uid } = server;
        let unreachable = |source| Error::Unreachable { address: address.clone(), source };
        let too_late = |what, limit: Duration| match deadline.left() {
            Ok(_) => {
                let why = format!("no {what} within {limit:?}");
                unreachable(io::Error::new(io::ErrorKind::TimedOut, why))
            }
            // The call's own time is what is over.
            Err(error) => error,
        };
        let connecting = deadline.within(limit);
        let opened = match address {
            Address::Unix(path) => Self::connect_unix(path, connecting),
            Address::Tcp(host_and_port) => Self::connect_tcp(host_and_port, connecting),
        };
        let mut link = match opened {
            Ok(link) => link.map_err(unreachable)?,
            Err(Error::Timeout(limit)) => return Err(too_late("connection", limit)),
            Err(error) => return Err(error),
        };
        if let Address::Unix(path) = address {
            link.check_server(address, path, uid)?;
        }
        match greet(&mut link) {
            Ok(()) => {}
            Err(Error::Timeout(limit)) => return Err(too_late("proof that it knows the token", limit)),
            Err(error) => return Err(error),
        }
        link.begin_call(deadline);
        Ok(link)
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
                Ok(()) => return Ok(Ok(Self::new(stream, deadline))),
                Err(error) if is_retry(&error) => {}
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Whether it is the daemon's user who listens there.
    #[cfg(unix)]
    fn check_server(&self, address: &Address, path: &Path, uid: Option<u32>) -> Result<(), Error> {
        use weave_trust::Stranger;

        match weave_trust::check_server(&*self.stream, path, uid) {
            Ok(()) => Ok(()),
            Err(Stranger::Unknown(error)) => Err(Error::Io(error)),
            Err(stranger @ Stranger::User(uid)) => {
                Err(Error::Stranger { address: address.clone(), uid, whose: stranger.to_string() })
            }
        }
    }

    #[cfg(not(unix))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as where there is somebody to ask")]
    fn check_server(&self, _: &Address, _: &Path, _: Option<u32>) -> Result<(), Error> {
        Ok(())
    }

    /// Tries all addresses that the host's name stands for. Looking it up has no time limit.
    fn connect_tcp(host_and_port: &str, deadline: Deadline) -> Result<io::Result<Self>, Error> {
        let addresses = match addresses(host_and_port) {
            Ok(addresses) => addresses,
            Err(error) => return Ok(Err(error)),
        };
        let mut why = None;
        for address in addresses {
            let connect = |left| {
                let stream = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
                // Frames are written whole: there is nothing to wait for and send along.
                stream.set_tcp_nodelay(true)?;
                // Closing resets the connection, also when this process is killed: a daemon can't tell an end alone from
                // that of a client that only has no more to say, and would go on with what nobody waits for.
                stream.set_linger(Some(Duration::ZERO))?;
                match left {
                    Some(left) => stream.connect_timeout(&address.into(), left)?,
                    None => stream.connect(&address.into())?,
                }
                Ok(stream)
            };
            match connect(deadline.left()?) {
                Ok(stream) => return Ok(Ok(Self::new(stream, deadline))),
                // The first address is the likeliest one.
                Err(error) => why = why.or(Some(error)),
            }
        }
        // If the time is over, that is why.
        deadline.left()?;
        Ok(Err(why.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address"))))
    }

    fn new(stream: Socket, deadline: Deadline) -> Self {
        Self { stream: Arc::new(stream), deadline, received: 0 }
    }

    /// Lets `stopper` end the calls on this connection. `false`: it has stopped already.
    pub(crate) fn obey(&self, stopper: &Stopper) -> bool {
        stopper.watch(&self.stream)
    }

    /// From now on it is another call that uses the connection.
    pub(crate) fn begin_call(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// What comes from now on is another answer.
    pub(crate) fn begin_answer(&mut self) {
        self.received = 0;
    }

    /// What there is to read while nothing was asked.
    pub(crate) fn unasked(&self) -> Unasked {
        let mut byte = [MaybeUninit::uninit()];
        let found = self.stream.set_nonblocking(true).and_then(|()| self.stream.peek(&mut byte));
        match (found, self.stream.set_nonblocking(false)) {
            (Err(error), Ok(())) if error.kind() == io::ErrorKind::WouldBlock => Unasked::Nothing,
            (Ok(1..), Ok(())) => Unasked::Bytes,
            _ => Unasked::End,
        }
    }

    /// Writes as much as the peer takes at once, and returns the rest.
    pub(crate) fn send_now<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], Error> {
        self.stream.set_nonblocking(true).map_err(Error::Io)?;
        let written = loop {
            match (&*self.stream).write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(self.failed(error)),
            }
            if bytes.is_empty() {
                break Ok(bytes);
            }
        };
        self.stream.set_nonblocking(false).map_err(Error::Io)?;
        written
    }

    pub(crate) fn send(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(self.deadline.left()?).map_err(Error::Io)?;
            match (&*self.stream).write(bytes) {
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
            match (&*self.stream).read(buf) {
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

/// What a peer has done on a connection on which nothing is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unasked {
    Nothing,
    /// It has sent something.
    Bytes,
    /// It has closed.
    End,
}

/// What a host and its port stand for. `localhost` is where weaved listens on this machine, whatever names are told
/// to stand for.
fn addresses(host_and_port: &str) -> io::Result<Vec<SocketAddr>> {
    match host_and_port.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
        Some((host, Ok(port))) if host.eq_ignore_ascii_case("localhost") => {
            Ok(vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()])
        }
        _ => Ok(host_and_port.to_socket_addrs()?.collect()),
    }
}

/// Whether to try again: a signal came in between, or a socket's timeout was over, of which the
/// deadline knows more.
fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
