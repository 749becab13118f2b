//! Pixels on their way from a worker's socket to a client's.
//!
//! Where the kernel can do it they go through a pipe with `splice`, and no byte of them is ever in this process's
//! memory; elsewhere through a buffer of fixed size. The choice is made by what the kernel says, not in advance: what
//! it can't splice (a kernel or a sandbox without that call, a descriptor of another kind) is copied from then on,
//! and what is in the pipe by then goes first.
//!
//! Sizes were chosen by measurement (`benches/RESULTS.md` has what came of them): with 4 MiB of send buffer for a
//! worker and 1 MiB for a client, processes wait for each other 5 times in an image of 1024×1024, and 35 times with
//! the 208 KiB of before.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
#[cfg(target_os = "linux")]
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with};

/// Bytes that one step moves at most, and a pipe has room for: what everybody may ask for
/// (`fs.pipe-max-size`).
const RELAY_LEN: usize = 1024 * 1024;
/// The buffer where there is no pipe.
const BUFFER_LEN: usize = 64 * 1024;

/// Bytes that were moved to clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// By the kernel alone.
    pub spliced: u64,
    /// Through this process's memory.
    pub copied: u64,
}

/// What is between one worker and the client that its image is for.
#[derive(Debug)]
pub struct Relay {
    pipe: Option<Pipe>,
    /// Not touched, and so no memory, before the first byte is copied.
    buffer: Box<[u8]>,
    /// The part of `buffer` that is read and not yet written.
    pending: Range<usize>,
}

#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    held: usize,
    /// It can't be used any more, apart from what is in it.
    given_up: bool,
}

impl Relay {
    /// With a pipe, or without one where there is none to be had.
    #[must_use]
    pub fn new() -> Self {
        Self { pipe: Pipe::new().ok(), ..Self::by_copy() }
    }

    /// One that copies.
    #[must_use]
    pub fn by_copy() -> Self {
        Self { pipe: None, buffer: vec![0; BUFFER_LEN].into(), pending: 0..0 }
    }

    /// Whether all that was taken in is out again.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.pipe.as_ref().is_none_or(|pipe| pipe.held == 0)
    }

    /// Takes in at most `len` bytes; to be called when it [is empty](Self::is_empty), so that only the source can
    /// keep it waiting. Gives how many; 0 is the end of the source.
    ///
    /// # Errors
    /// The source's.
    pub fn fill(&mut self, from: impl AsFd, len: usize) -> io::Result<usize> {
        debug_assert!(self.is_empty(), "what is in it would be lost");
        if let Some(pipe) = self.pipe.as_mut().filter(|pipe| !pipe.given_up) {
            match splice(&from, &pipe.into, len.min(RELAY_LEN), Then::Unknown) {
                Err(error) if cant(error) => pipe.given_up = true,
                other => return Ok(other.inspect(|n| pipe.held = *n)?),
            }
        }
        let len = len.min(BUFFER_LEN);
        let n = rustix::io::read(from, &mut self.buffer[..len])?;
        self.pending = 0..n;
        Ok(n)
    }

    /// Gives to a client what was taken in, as far as it takes it. Gives how many bytes. `len`: what is left of the
    /// image, be it taken in or not.
    ///
    /// # Errors
    /// The client's.
    pub fn drain(&mut self, to: impl AsFd, len: usize, moved: &mut Moved) -> io::Result<usize> {
        if let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held > 0) {
            if !pipe.given_up {
                let then = if len > pipe.held { Then::More } else { Then::Unknown };
                match splice(&pipe.out, &to, pipe.held, then) {
                    Err(error) if cant(error) => pipe.given_up = true,
                    other => {
                        let n = other?;
                        pipe.held -= n;
                        moved.spliced += n as u64;
                        return Ok(n);
                    }
                }
            }
            if self.pending.is_empty() {
                let len = pipe.held.min(BUFFER_LEN);
                let n = rustix::io::read(&pipe.out, &mut self.buffer[..len])?;
                pipe.held -= n;
                self.pending = 0..n;
            }
        }
        let n = rustix::io::write(to, &self.buffer[self.pending.clone()])?;
        self.pending.start += n;
        moved.copied += n as u64;
        Ok(n)
    }

    /// Drops at most `len` bytes: first what was taken in, then what the source has. Gives how many; 0 is the end
    /// of the source.
    ///
    /// # Errors
    /// The source's.
    pub fn discard(&mut self, from: impl AsFd, len: usize) -> io::Result<usize> {
        let mut nowhere = [0; 16 * 1024];
        let len = len.min(nowhere.len());
        if !self.pending.is_empty() {
            let n = self.pending.len();
            self.pending = 0..0;
            return Ok(n);
        }
        match self.pipe.as_mut().filter(|pipe| pipe.held > 0) {
            Some(pipe) => {
                let n = rustix::io::read(&pipe.out, &mut nowhere[..len.min(pipe.held)])?;
                pipe.held -= n;
                Ok(n)
            }
            None => Ok(rustix::io::read(from, &mut nowhere[..len])?),
        }
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self::new()
    }
}

/// What comes after the bytes that are spliced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// More of them, at once: the kernel may wait for it before it sends.
    More,
    /// Nothing that is known of.
    Unknown,
}

/// Pages are moved, not copied, where that can be; nobody waits.
#[cfg(target_os = "linux")]
fn splice(from: impl AsFd, to: impl AsFd, len: usize, then: Then) -> rustix::io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    let flags = if then == Then::More { flags | SpliceFlags::MORE } else { flags };
    rustix::pipe::splice(from, None, to, None, len, flags)
}

/// Only Linux has the call.
#[cfg(not(target_os = "linux"))]
fn splice(_: impl AsFd, _: impl AsFd, _: usize, _: Then) -> rustix::io::Result<usize> {
    Err(Errno::NOSYS)
}

/// Whether an error says that the kernel won't splice these two, as opposed to something about them.
fn cant(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS)
}

impl Pipe {
    #[cfg(not(target_os = "linux"))]
    fn new() -> io::Result<Self> {
        Err(Errno::NOSYS.into())
    }

    #[cfg(target_os = "linux")]
    fn new() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A smaller one does as well, only in more steps.
        let _ = fcntl_setpipe_size(&into, RELAY_LEN);
        Ok(Self { out, into, held: 0, given_up: false })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (one, other) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        other.set_nonblocking(true).unwrap();
        (one, other)
    }

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|at| (at % 251).to_le_bytes()[0]).collect()
    }

    /// Sends `n` bytes through, into a socket that is read now and then; gives what arrived.
    fn through(relay: &mut Relay, n: usize, moved: &mut Moved) -> Vec<u8> {
        let ((mut worker, ours), (to, mut client)) = (pair(), pair());
        let (sent, mut arrived) = (bytes(n), Vec::new());
        let (mut written, mut left) = (0, n);
        while left > 0 {
            written += worker.write(&sent[written..]).unwrap_or(0);
            if relay.is_empty() {
                assert!(relay.fill(&ours, left).unwrap() <= left);
            }
            match relay.drain(&to, left, moved) {
                Ok(n) => left -= n,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    let mut some = [0; 100_000];
                    let n = client.read(&mut some).unwrap();
                    arrived.extend(&some[..n]);
                }
            }
        }
        assert!(relay.is_empty());
        drop(to);
        client.read_to_end(&mut arrived).unwrap();
        assert!(arrived == sent, "other bytes than those that were sent");
        arrived
    }

    #[test]
    fn by_pipe_nothing_is_copied_and_by_buffer_everything_is() {
        let mut moved = Moved::default();
        through(&mut Relay::new(), 3_000_000, &mut moved);
        assert_eq!(moved, Moved { spliced: 3_000_000, copied: 0 });
        through(&mut Relay::by_copy(), 1_000_000, &mut moved);
        assert_eq!(moved, Moved { spliced: 3_000_000, copied: 1_000_000 });
    }

    #[test]
    fn what_the_kernel_wont_splice_is_copied_and_what_the_pipe_holds_comes_first() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // Nothing is spliced into a file that is appended to.
        let to = OpenOptions::new().append(true).open(file.path()).unwrap();
        let (mut worker, ours) = pair();
        let sent = bytes(150_000);
        worker.write_all(&sent).unwrap();
        let (mut relay, mut moved, mut left) = (Relay::new(), Moved::default(), sent.len());
        while left > 0 {
            if relay.is_empty() {
                relay.fill(&ours, left).unwrap();
            }
            left -= relay.drain(&to, left, &mut moved).unwrap();
        }
        assert_eq!(moved, Moved { spliced: 0, copied: 150_000 });
        assert!(std::fs::read(file.path()).unwrap() == sent);
        // From a socket as well, from now on.
        through(&mut relay, 100_000, &mut moved);
        assert_eq!(moved, Moved { spliced: 0, copied: 250_000 });
    }

    #[test]
    fn what_is_dropped_is_what_was_taken_in_and_then_what_follows() {
        // Dropped before any of it was given to the client, and after.
        for (mut relay, is_begun) in
            [(Relay::new(), false), (Relay::by_copy(), false), (Relay::new(), true), (Relay::by_copy(), true)]
        {
            let ((mut worker, ours), (to, mut client)) = (pair(), pair());
            worker.write_all(&bytes(100_000)).unwrap();
            relay.fill(&ours, 50_000).unwrap();
            let given = if is_begun { relay.drain(&to, 50_000, &mut Moved::default()).unwrap() } else { 0 };
            let mut left = 100_000 - given - 10;
            while left > 0 {
                left -= relay.discard(&ours, left).unwrap();
            }
            // The ten that are left are the last ones.
            relay.fill(&ours, 10).unwrap();
            relay.drain(&to, 10, &mut Moved::default()).unwrap();
            drop(to);
            let mut arrived = Vec::new();
            client.read_to_end(&mut arrived).unwrap();
            assert!(arrived == [&bytes(given), &bytes(100_000)[99_990..]].concat());
        }
    }

    #[test]
    fn ends_and_waits_are_told_apart() {
        let ((worker, ours), (to, client)) = (pair(), pair());
        let mut relay = Relay::new();
        assert_eq!(relay.fill(&ours, 10).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        (&worker).write_all(b"0123456789").unwrap();
        drop((worker, client));
        assert_eq!(relay.fill(&ours, 10).unwrap(), 10);
        let gone = relay.drain(&to, 10, &mut Moved::default()).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(relay.discard(&ours, 10).unwrap(), 10);
        assert_eq!(relay.fill(&ours, 10).unwrap(), 0);
    }
}
