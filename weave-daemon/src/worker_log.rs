//! What a worker writes on its standard error: passed on to ours as it is, and the last line kept.
//!
//! An engine that gives up says why there and nowhere else, at the end, in words of its own.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use mio::event::Source;
use mio::unix::pipe::{self, Receiver};
use mio::{Interest, Registry, Token};

use crate::logger;

/// Bytes of a line that are kept.
const LINE_LEN: usize = 256;
/// Bytes that are passed on before it is somebody else's turn.
const TURN: usize = 16 * 1024;
/// Bytes that a pipe holds.
const PIPE_LEN: usize = 64 * 1024;

/// The daemon's end of a worker's standard error.
#[derive(Debug)]
pub struct WorkerLog {
    pipe: Receiver,
    /// The line that is being written.
    line: heapless::Vec<u8, LINE_LEN>,
    last: heapless::Vec<u8, LINE_LEN>,
}

impl WorkerLog {
    /// A log, what the worker gets as its standard error, and the name of that as `JOURNAL_STREAM`
    /// gives it: a worker's lines end up where ours do.
    ///
    /// # Errors
    /// There are no more descriptors to be had.
    pub fn new() -> io::Result<(Self, Stdio, String)> {
        let (theirs, ours) = pipe::new()?;
        // Theirs is written by code that knows nothing of waiting.
        theirs.set_nonblocking(false)?;
        let log = Self { pipe: ours, line: heapless::Vec::new(), last: heapless::Vec::new() };
        let theirs = OwnedFd::from(theirs);
        let pipe = rustix::fs::fstat(&theirs)?;
        Ok((log, Stdio::from(theirs), format!("{}:{}", pipe.st_dev, pipe.st_ino)))
    }

    /// Has mio tell when there is something to read.
    ///
    /// # Errors
    /// mio's.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.pipe.register(registry, token, Interest::READABLE)
    }

    /// Passes on what is there. Whether there may be more.
    pub fn pass_on(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let mut moved = 0;
        while moved < TURN {
            match self.pipe.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => {
                    let bytes = buffer.get(..n).unwrap_or_default();
                    logger::pass_on(bytes);
                    self.remember(bytes);
                    moved += n;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Passes on what a worker that is dead has left, and not what a process of its own goes on to write.
    pub fn pass_on_rest(&mut self) {
        let _ = (0..=PIPE_LEN / TURN).all(|_| self.pass_on());
    }

    /// The last line that isn't empty, as far as it is kept and can be shown.
    #[must_use]
    pub fn last_line(&self) -> Option<String> {
        let line = if self.line.is_empty() { &self.last } else { &self.line };
        let shown: String = String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).collect();
        (!shown.is_empty()).then_some(shown)
    }

    fn remember(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte != b'\n' {
                // What is longer is cut off.
                let _ = self.line.push(*byte);
            } else if !self.line.is_empty() {
                self.last = std::mem::take(&mut self.line);
            }
        }
    }
}
