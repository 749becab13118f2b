//! A socket and what is known of its readiness, and the list of those with work left.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};

use crate::router::Who;
use crate::stream::Stream;

/// What came of reading or writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Io {
    /// So many bytes moved.
    Moved(usize),
    /// Nothing for now; mio will tell.
    Blocked,
    /// Nothing any more.
    Ended,
    /// Nothing any more, and the peer has closed without reading all that was sent to it.
    Reset,
}

impl Io {
    pub(super) fn of(result: io::Result<usize>) -> Self {
        match result {
            Ok(0) => Self::Ended,
            Ok(n) => Self::Moved(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Self::Blocked,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Self::Moved(0),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Self::Reset,
            Err(_) => Self::Ended,
        }
    }
}

/// A socket, and what mio has said about it that is not used up.
pub(super) struct Endpoint {
    pub(super) stream: Stream,
    pub(super) readable: bool,
    pub(super) writable: bool,
}

impl Endpoint {
    /// A socket that nothing is known of, so that everything is tried.
    pub(super) const fn new(stream: Stream) -> Self {
        Self { stream, readable: true, writable: true }
    }

    pub(super) fn read(&mut self, buf: &mut [u8]) -> Io {
        let io = Io::of(self.stream.read(buf));
        self.readable &= io != Io::Blocked;
        io
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Io {
        let io = Io::of(self.stream.write_vectored(&[IoSlice::new(bytes)]));
        self.writable &= io != Io::Blocked;
        io
    }

    /// Closes it such that the last answer arrives: bytes left unread would have the system reset the connection, and
    /// over TCP that destroys what the client has not read yet (W1-CON-015). Drops what has come by now, and waits for nobody.
    pub(super) fn part(mut self) {
        const PIECES: usize = 64;
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write);
        let mut dropped = [0; 16 * 1024];
        for _ in 0..PIECES {
            if !matches!(self.read(&mut dropped), Io::Moved(_)) {
                break;
            }
        }
    }
}

/// Sockets with something left to do, each at most once.
pub(super) struct Ready {
    list: VecDeque<Who>,
    clients: Box<[bool]>,
    workers: Box<[bool]>,
}

impl Ready {
    pub(super) fn new(clients: usize, workers: usize) -> Self {
        let list = VecDeque::with_capacity(clients + workers);
        Self { list, clients: vec![false; clients].into(), workers: vec![false; workers].into() }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    fn listed(&mut self, who: Who) -> Option<&mut bool> {
        match who {
            Who::Client(id) => self.clients.get_mut(id.0),
            Who::Worker(id) => self.workers.get_mut(id.0),
        }
    }

    pub(super) fn push(&mut self, who: Who) {
        if let Some(listed) = self.listed(who)
            && !std::mem::replace(listed, true)
        {
            self.list.push_back(who);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Who> {
        let who = self.list.pop_front()?;
        if let Some(listed) = self.listed(who) {
            *listed = false;
        }
        Some(who)
    }
}
