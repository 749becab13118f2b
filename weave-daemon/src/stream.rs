//! A connection, be it to a Unix socket or over TCP.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

/// One of the two.
#[derive(Debug)]
pub enum Stream {
    /// A peer on this machine.
    Unix(UnixStream),
    /// A peer that may be anywhere.
    Tcp(TcpStream),
}

impl Stream {
    /// Bytes that the system still has of what was written, about. To a Unix socket: memory of whole pieces that the
    /// peer has not read to their end. To a TCP one: what the peer's system has not acknowledged. `None` where it can't
    /// be asked.
    #[cfg(target_os = "linux")]
    #[expect(unsafe_code, reason = "neither std nor rustix has this question")]
    pub fn unsent(&self) -> Option<usize> {
        use std::os::fd::AsRawFd;

        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open as long as `self` lives; the kernel writes one int to `bytes`.
        let done = unsafe { libc::ioctl(self.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        if done == 0 { usize::try_from(bytes).ok() } else { None }
    }

    /// Nobody says it here.
    #[cfg(not(target_os = "linux"))]
    pub const fn unsent(&self) -> Option<usize> {
        None
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buf),
            Self::Tcp(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write_vectored(bufs),
            Self::Tcp(stream) => stream.write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Source for Stream {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.register(registry, token, interests),
            Self::Tcp(stream) => stream.register(registry, token, interests),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.reregister(registry, token, interests),
            Self::Tcp(stream) => stream.reregister(registry, token, interests),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.deregister(registry),
            Self::Tcp(stream) => stream.deregister(registry),
        }
    }
}
