//! A page that a worker and the daemon share: how far the worker is, and which request it is to cancel.
//!
//! Weave v1 has a place for neither, and a worker whose engine works doesn't read its stream. A signal
//! could say "cancel", but not what: one that comes late would hit the next request. Here the request is
//! named, by its number on the worker's stream, so that it can't. The page is an anonymous file of the
//! kernel, read and written by system calls: nothing is mapped, so that no worker can do harm with it,
//! and a step of an engine takes far longer than a call.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

#[cfg(target_os = "linux")]
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};

/// Where in the page the daemon writes the number of the request to cancel.
const CANCELLED_AT: u64 = 0;
/// Where the worker writes its progress: phase, step and steps, in one word.
const PROGRESS_AT: u64 = 8;
/// Bytes of the page.
pub const PAGE_LEN: u64 = 16;

/// No such page can grow or shrink.
#[cfg(target_os = "linux")]
const SEALS: SealFlags = SealFlags::GROW.union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// The environment variable that tells a worker process the page's descriptor.
pub const VARIABLE: &str = "WEAVED_SCOREBOARD";

/// What a worker is busy with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing.
    #[default]
    Idle,
    /// It reads the model's weights.
    Load,
    /// It turns the prompt into what the model takes.
    Encode,
    /// It draws.
    Sample,
    /// It turns what it drew into pixels.
    Decode,
}

impl Phase {
    /// All of them; a phase's place is its number in the page and in the metrics.
    pub const ALL: [Self; 5] = [Self::Idle, Self::Load, Self::Encode, Self::Sample, Self::Decode];
}

/// How far a worker is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What it is busy with.
    pub phase: Phase,
    /// Steps of this phase that are done: tensors, steps of the sampler, or tiles.
    pub step: u32,
    /// Steps of this phase in all; 0 where nobody counts them.
    pub steps: u32,
}

/// Bits of a number of steps in the page.
const STEP_BITS: u32 = 28;
const STEP_MAX: u32 = (1 << STEP_BITS) - 1;

impl Progress {
    fn to_word(self) -> u64 {
        let steps = [self.step, self.steps].map(|n| u64::from(n.min(STEP_MAX)));
        (self.phase as u64) << (2 * STEP_BITS) | steps[0] << STEP_BITS | steps[1]
    }

    /// What makes no sense is no progress: the page is a worker's to write.
    fn from_word(word: u64) -> Self {
        let phase = usize::try_from(word >> (2 * STEP_BITS)).ok().and_then(|at| Phase::ALL.get(at));
        let steps = [word >> STEP_BITS, word]
            .map(|bits| u32::try_from(bits & u64::from(STEP_MAX)).unwrap_or(STEP_MAX));
        phase.map_or(Self::default(), |phase| Self { phase: *phase, step: steps[0], steps: steps[1] })
    }
}

/// The page, in the daemon.
#[derive(Clone, Debug)]
pub struct Scoreboard(Arc<File>);

impl Scoreboard {
    /// A page for a worker that is about to be started.
    ///
    /// # Errors
    /// There are no more descriptors to be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(page()?)))
    }

    /// Has processes that are started from now on inherit it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open_to_children(&self) -> io::Result<()> {
        Ok(fcntl_setfd(&*self.0, FdFlags::empty())?)
    }

    /// Keeps it from processes that are started from now on.
    ///
    /// # Errors
    /// The operating system's.
    pub fn close_to_children(&self) -> io::Result<()> {
        Ok(fcntl_setfd(&*self.0, FdFlags::CLOEXEC)?)
    }

    /// For [`VARIABLE`].
    #[must_use]
    pub fn descriptor(&self) -> String {
        self.0.as_raw_fd().to_string()
    }

    /// The worker's side, for a worker of this process.
    #[must_use]
    pub fn control(&self) -> Control {
        Control { page: Some(self.clone()), request: 0 }
    }

    /// Has the worker cancel the `nth` request that it was given, counted from 1, if it is busy with
    /// that or has yet to begin.
    pub fn cancel(&self, nth: u64) {
        // Fails only if there is no memory for the page; then the worker is ended when its time is over.
        let _ = self.0.write_all_at(&nth.to_ne_bytes(), CANCELLED_AT);
    }

    /// How far the worker is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress::from_word(self.read(PROGRESS_AT))
    }

    fn read(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        match self.0.read_exact_at(&mut word, at) {
            Ok(()) => u64::from_ne_bytes(word),
            Err(_) => 0,
        }
    }
}

#[cfg(target_os = "linux")]
const DESCRIPTORS: &str = "/proc/self/fd";
#[cfg(not(target_os = "linux"))]
const DESCRIPTORS: &str = "/dev/fd";

#[cfg(target_os = "linux")]
fn page() -> io::Result<File> {
    let file =
        File::from(memfd_create("weaved-scoreboard", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(PAGE_LEN)?;
    fcntl_add_seals(&file, SEALS)?;
    Ok(file)
}

/// A file without a name, where the kernel has none that is anonymous.
#[cfg(not(target_os = "linux"))]
fn page() -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    let path = std::env::temp_dir().join(format!("weaved-scoreboard-{:016x}", getrandom::u64()?));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    file.set_len(PAGE_LEN)?;
    Ok(file)
}

#[cfg(target_os = "linux")]
fn is_page(file: &File) -> bool {
    fcntl_get_seals(file).is_ok_and(|seals| seals == SEALS)
}

#[cfg(not(target_os = "linux"))]
fn is_page(file: &File) -> bool {
    file.metadata().is_ok_and(|file| file.is_file() && file.len() == PAGE_LEN)
}

/// The page, in the worker.
#[derive(Clone, Debug, Default)]
pub struct Control {
    page: Option<Scoreboard>,
    /// The request that the worker is busy with, counted from 1.
    request: u64,
}

impl Control {
    /// For a worker that nobody looks at.
    #[must_use]
    pub const fn none() -> Self {
        Self { page: None, request: 0 }
    }

    /// The page that was inherited under this descriptor. `None`: there is none.
    #[must_use]
    pub fn inherited(descriptor: u32) -> Option<Self> {
        // A descriptor of its own, so that the number need not be trusted.
        let file = File::options().read(true).write(true).open(format!("{DESCRIPTORS}/{descriptor}")).ok()?;
        is_page(&file).then(|| Scoreboard(Arc::new(file)).control())
    }

    /// The worker has read another request.
    pub fn next_request(&mut self) {
        self.request += 1;
    }

    /// Whether the present request is cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        let is_named = |page: &Scoreboard| page.read(CANCELLED_AT) == self.request;
        self.request != 0 && self.page.as_ref().is_some_and(is_named)
    }

    /// Tells how far the worker is.
    pub fn report(&self, phase: Phase, step: u32, steps: u32) {
        if let Some(page) = &self.page {
            let word = Progress { phase, step, steps }.to_word();
            // Nobody suffers if it can't be told.
            let _ = page.0.write_all_at(&word.to_ne_bytes(), PROGRESS_AT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_as_it_was_written() {
        let page = Scoreboard::new().unwrap();
        let control = page.control();
        assert_eq!(page.progress(), Progress::default());
        for phase in Phase::ALL {
            control.report(phase, 3, 28);
            assert_eq!(page.progress(), Progress { phase, step: 3, steps: 28 });
        }
        control.report(Phase::Decode, u32::MAX, u32::MAX);
        assert_eq!(page.progress(), Progress { phase: Phase::Decode, step: STEP_MAX, steps: STEP_MAX });
        page.0.write_all_at(&[0xFF; 8], PROGRESS_AT).unwrap();
        assert_eq!(page.progress(), Progress::default());
    }

    #[test]
    fn the_request_that_is_named_is_cancelled_and_no_other() {
        let page = Scoreboard::new().unwrap();
        let mut control = page.control();
        // Before it is read, and after the next one is.
        for nth in [1, 3] {
            page.cancel(nth);
            for request in 1..5 {
                control.request = request;
                assert_eq!(control.is_cancelled(), request == nth);
            }
        }
        // What is done before the first one can't be cancelled.
        let mut control = Scoreboard::new().unwrap().control();
        assert!(!control.is_cancelled());
        control.next_request();
        assert_eq!(control.request, 1);
        assert!(!Control::none().is_cancelled());
    }

    #[test]
    fn only_such_a_page_is_inherited() {
        let page = Scoreboard::new().unwrap();
        page.cancel(1);
        let mut control = Control::inherited(page.descriptor().parse().unwrap()).unwrap();
        control.next_request();
        assert!(control.is_cancelled());
        let other = tempfile::tempfile().unwrap();
        assert!(Control::inherited(other.as_raw_fd().try_into().unwrap()).is_none());
        assert!(Control::inherited(u32::MAX).is_none());
        assert!(page.0.set_len(PAGE_LEN - 1).is_err() && page.0.set_len(PAGE_LEN + 1).is_err());
    }
}
