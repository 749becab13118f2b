//! The workers' slots: in each a process, its stream, its log, and the relay of its pixels.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use mio::net::UnixStream;
use mio::{Interest, Registry};

use super::endpoint::{Endpoint, Io};
use super::tokens::Tokens;
use crate::causes::Death;
use crate::config::{Config, EngineKind};
use crate::model::Stamps;
use crate::proc::Process;
use crate::process::{Child, Lines};
use crate::relay::{Moved, Relay};
use crate::router::{Unread, WorkerId};
use crate::scoreboard::{Progress, Scoreboard};
use crate::stream::Stream;
use crate::worker_log::WorkerLog;

/// A worker's end of things, and the pixels that are between it and a client.
struct Slot {
    child: Option<Child>,
    endpoint: Option<Endpoint>,
    log: Option<WorkerLog>,
    scoreboard: Option<Scoreboard>,
    /// What the worker had not read of its request when it died.
    unread: Unread,
    /// Made with the worker, and emptied by being made anew: what a dead one had sent is not for the next.
    relay: Relay,
}

impl Slot {
    fn empty() -> Self {
        Self {
            child: None,
            endpoint: None,
            log: None,
            scoreboard: None,
            unread: Unread::Nothing,
            relay: Relay::by_copy(),
        }
    }
}

/// Nothing comes by this stream after what has come by now. Whoever still has the other end is no worker.
#[cfg(target_os = "linux")]
fn end_after_what_is_there(stream: &Stream) {
    // Fails only for a stream that is at its end.
    let _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Read);
}

/// Elsewhere what has come would be lost; the stream ends when the last one that has it does.
#[cfg(not(target_os = "linux"))]
fn end_after_what_is_there(_: &Stream) {}

/// A worker that is gone.
pub(super) struct Gone {
    pub(super) death: Death,
    pub(super) unread: Unread,
}

/// What came of moving pixels from a worker to a client.
pub(super) enum Relayed {
    /// So many bytes reached the client; none if a signal came in between.
    Moved(usize),
    /// One of the two has to be waited for.
    Waits,
    /// The client takes nothing any more.
    ClientGone,
    /// The worker's stream has ended, before its pixels did.
    WorkerGone,
}

/// All slots.
pub(super) struct Slots {
    slots: Box<[Slot]>,
    /// This program's own file, as it was at the start: it may be replaced while it runs.
    program: PathBuf,
    /// The model's files as they were when the last worker was started.
    stamps: Stamps,
    /// Whether there may be something in a worker's log.
    has_log: bool,
}

impl Slots {
    pub(super) fn new(workers: usize) -> io::Result<Self> {
        let slots = std::iter::repeat_with(Slot::empty).take(workers).collect();
        Ok(Self { slots, program: std::env::current_exe()?, stamps: Stamps::default(), has_log: false })
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn endpoint(&mut self, id: WorkerId) -> Option<&mut Endpoint> {
        self.slots.get_mut(id.0)?.endpoint.as_mut()
    }

    /// Starts a worker.
    pub(super) fn start(
        &mut self,
        id: WorkerId,
        config: &Config,
        registry: &Registry,
        tokens: Tokens,
    ) -> io::Result<()> {
        if config.engine == EngineKind::Sdcpp {
            self.stamps.watch(&config.model);
        }
        let slot = &mut self.slots[id.0];
        let started = Child::start(&self.program, config, id.0).and_then(|(child, lines)| {
            let Lines { stream, log, scoreboard } = lines;
            stream.set_nonblocking(true)?;
            let mut stream = UnixStream::from_std(stream);
            let interest = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut stream, tokens.worker(id), interest)?;
            slot.endpoint = Some(Endpoint::new(Stream::Unix(stream)));
            (slot.log, slot.scoreboard) = (log, Some(scoreboard));
            if let Some(log) = &mut slot.log {
                log.register(registry, tokens.log(id))?;
            }
            (slot.relay, slot.unread) = (Relay::new(), Unread::Nothing);
            slot.child = Some(child);
            Ok(())
        });
        if started.is_err() {
            slot.endpoint = None;
        }
        started
    }

    /// Has a worker cancel the nth request that it was given.
    pub(super) fn cancel(&self, id: WorkerId, nth: u64) {
        if let Some(scoreboard) = &self.slots[id.0].scoreboard {
            scoreboard.cancel(nth);
        }
    }

    /// Ends a worker. Its stream is closed at once; the process is waited for.
    pub(super) fn kill(&mut self, id: WorkerId) -> Option<Gone> {
        let slot = &mut self.slots[id.0];
        slot.endpoint = None;
        if let Some(child) = &mut slot.child {
            child.kill();
        }
        self.reap(id)
    }

    /// The worker has closed its stream, in this way: it is dead or as good as that.
    pub(super) fn hung_up(&mut self, id: WorkerId, how: Io) -> Option<Gone> {
        self.slots[id.0].unread = if how == Io::Reset { Unread::Request } else { Unread::Nothing };
        self.kill(id)
    }

    /// A worker is gone once its process has ended and all that it has said is read. Another process may still have its
    /// stream: that is over then.
    pub(super) fn reap(&mut self, id: WorkerId) -> Option<Gone> {
        let slot = &mut self.slots[id.0];
        if let Some(endpoint) = &slot.endpoint {
            if slot.child.as_ref().is_some_and(Child::has_ended) {
                end_after_what_is_there(&endpoint.stream);
            }
            return None;
        }
        let death = slot.child.as_mut().and_then(Child::ended)?;
        (slot.child, slot.scoreboard) = (None, None);
        let mut log = slot.log.take();
        if let Some(log) = &mut log {
            log.pass_on_rest();
        }
        match log.as_ref().and_then(WorkerLog::last_line) {
            Some(line) => log::warn!("worker {}: {death}; it said last: {line}", id.0),
            None => log::warn!("worker {}: {death}", id.0),
        }
        Some(Gone { death, unread: slot.unread })
    }

    /// Moves pixels to a client. `len`: what is left of the image.
    pub(super) fn relay(
        &mut self,
        id: WorkerId,
        client: &mut Endpoint,
        len: usize,
        moved: &mut Moved,
    ) -> Relayed {
        let slot = &mut self.slots[id.0];
        if slot.relay.is_empty() {
            let Some(worker) = slot.endpoint.as_mut().filter(|worker| worker.readable) else {
                return Relayed::Waits;
            };
            match Io::of(slot.relay.fill(&worker.stream, len)) {
                Io::Moved(0) => return Relayed::Moved(0),
                Io::Moved(_) => {}
                Io::Blocked => {
                    worker.readable = false;
                    return Relayed::Waits;
                }
                Io::Ended | Io::Reset => return Relayed::WorkerGone,
            }
        }
        match Io::of(slot.relay.drain(&client.stream, len, moved)) {
            Io::Moved(n) => Relayed::Moved(n),
            Io::Blocked => {
                client.writable = false;
                Relayed::Waits
            }
            Io::Ended | Io::Reset => Relayed::ClientGone,
        }
    }

    /// Drops pixels of a worker for which there is no client any more.
    pub(super) fn discard(&mut self, id: WorkerId, len: usize) -> Io {
        let slot = &mut self.slots[id.0];
        let Some(worker) = slot.endpoint.as_mut().filter(|worker| worker.readable || !slot.relay.is_empty())
        else {
            return Io::Blocked;
        };
        let io = Io::of(slot.relay.discard(&worker.stream, len));
        worker.readable &= io != Io::Blocked;
        io
    }

    /// A worker's log has something.
    pub(super) fn log_event(&mut self) {
        self.has_log = true;
    }

    pub(super) const fn has_log(&self) -> bool {
        self.has_log
    }

    /// Passes on what workers log, a part at a time: it is in no hurry.
    pub(super) fn pass_on_logs(&mut self, now: Instant) {
        let had_log = std::mem::take(&mut self.has_log);
        for log in self.slots.iter_mut().filter_map(|slot| slot.log.as_mut()) {
            self.has_log |= had_log && log.pass_on(now);
            log.tell(now);
        }
    }

    /// When there is something to say of a worker's log.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.slots.iter().filter_map(|slot| slot.log.as_ref()?.wake_at()).min()
    }

    /// How far each worker is.
    pub(super) fn progress(&self) -> Vec<Progress> {
        let of = |slot: &Slot| slot.scoreboard.as_ref().map(Scoreboard::progress).unwrap_or_default();
        self.slots.iter().map(of).collect()
    }

    /// Bytes in the memory of all worker processes.
    pub(super) fn resident_memory(&self) -> u64 {
        let processes = self.slots.iter().filter_map(|slot| slot.child.as_ref()?.process_id());
        processes.map(|pid| Process::read(&pid.to_string()).resident).sum()
    }
}
