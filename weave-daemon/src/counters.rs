//! What the daemon counts.
//!
//! One thread counts, so a counter is a plain number. Counting allocates nothing.
//! [`metrics`](crate::metrics) shows it.

use std::time::Duration;

use weave_core::error::{ErrorCode, Status};

use crate::causes::{Cut, Death, Kill, Outcome, Reason};
use crate::proc::Process;
use crate::scoreboard::Progress;

/// Times, sorted into [`BUCKETS`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Histogram {
    /// How many fell between a bucket's bound and the one before; the last has no bound.
    buckets: [u64; BUCKETS.len() + 1],
    sum: Duration,
}

/// Upper bounds in seconds: from a queue that is empty to the longest images on a CPU.
pub const BUCKETS: [f64; 14] =
    [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0, 3600.0];

impl Histogram {
    /// Counts one.
    pub fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        let at = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.buckets[at] += 1;
        self.sum = self.sum.saturating_add(time);
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their sum.
    #[must_use]
    pub const fn sum(&self) -> Duration {
        self.sum
    }

    /// For every bound in [`BUCKETS`], how many did not exceed it.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        BUCKETS.into_iter().zip(self.buckets).scan(0, |sum, (bound, count)| {
            *sum += count;
            Some((bound, *sum))
        })
    }
}

/// What happens between clients and workers. The router counts it.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Connections that became clients.
    pub connections: u64,
    /// Connections for which there was no place.
    pub refused_full: u64,
    /// Connections of users that had as many as one user may.
    pub refused_share: u64,
    /// Most clients at once.
    pub most_clients: usize,
    /// Connections closed from this side, by [`Cut`].
    pub cuts: [u64; Cut::NAMES.len()],
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Bytes of images for which there was no client any more.
    pub bytes_dropped: u64,
    /// Frames from clients, whether they could be understood or not.
    pub frames: u64,
    /// Requests that got a place in the queue.
    pub requests_queued: u64,
    /// Most requests that waited at once.
    pub longest_queue: usize,
    /// Requests that were given to a worker.
    pub dispatched: u64,
    /// Requests that went back into the queue because their worker died before it had begun.
    pub retried: u64,
    /// Requests that ended with an image.
    pub images: u64,
    /// Requests that ended with an error that was the client's fault.
    pub client_errors: u64,
    /// Requests that ended with BUSY.
    pub busy: u64,
    /// Requests that ended with any other error that was not.
    pub server_errors: u64,
    /// Requests that nobody waited for any more.
    pub abandoned: u64,
    /// Requests that the daemon itself did not serve, by [`Reason`].
    pub refusals: [u64; Reason::NAMES.len()],
    /// Requests that were put into quarantine, because two workers died of them.
    pub quarantined: u64,
    /// Errors sent, by their place in [`ErrorCode::ALL`]; the last is for codes of later versions.
    pub errors: [u64; ErrorCode::ALL.len() + 1],
    /// Pixels of images that were made.
    pub pixels: u64,
    /// From a place in the queue to a worker.
    pub queue_wait: Histogram,
    /// From a worker to the beginning of its answer, where that is an image.
    pub generation: Histogram,
    /// From a place in the queue to the last byte of the image.
    pub request: Histogram,
    /// Workers that came up.
    pub worker_starts: u64,
    /// Workers that have shown that they can make an image.
    pub warm_ups: u64,
    /// Workers that are gone, by [`Death`].
    pub worker_deaths: [u64; Death::NAMES.len()],
    /// Workers that were ended from this side, by [`Kill`].
    pub worker_kills: [u64; Kill::NAMES.len()],
    /// Requests that a worker was told to cancel, by the reason for which it is killed if it doesn't.
    pub worker_cancels: [u64; Kill::NAMES.len()],
    /// From that word to a worker that is free.
    pub cancel: Histogram,
}

impl Counters {
    /// Requests that have ended, in whatever way.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.images + self.client_errors + self.busy + self.server_errors + self.abandoned
    }

    /// A request got a place in the queue, which is now so long.
    pub fn queued(&mut self, length: usize) {
        self.requests_queued += 1;
        self.longest_queue = self.longest_queue.max(length);
    }

    /// A request has ended.
    pub fn ended(&mut self, outcome: Outcome) {
        let count = match outcome {
            Outcome::Image => &mut self.images,
            Outcome::Abandoned => &mut self.abandoned,
            Outcome::Error(ErrorCode::Busy) => &mut self.busy,
            Outcome::Error(code) if code.status() == Status::ClientError => &mut self.client_errors,
            Outcome::Error(_) => &mut self.server_errors,
        };
        *count += 1;
        if let Outcome::Error(code) = outcome {
            self.error(code);
        }
    }

    /// An error was sent, be it for a request or for a whole connection.
    pub fn error(&mut self, code: ErrorCode) {
        let known = ErrorCode::ALL.iter().position(|known| *known == code);
        self.errors[known.unwrap_or(ErrorCode::ALL.len())] += 1;
    }

    /// The daemon itself does not serve a request.
    pub fn refused(&mut self, why: Reason) {
        self.refusals[why as usize] += 1;
    }

    /// A connection was closed from this side.
    pub fn cut(&mut self, why: Cut) {
        self.cuts[why as usize] += 1;
    }

    /// A worker is gone.
    pub fn worker_died(&mut self, death: Death) {
        self.worker_deaths[death.index()] += 1;
    }

    /// A worker is ended from this side.
    pub fn worker_killed(&mut self, why: Kill) {
        self.worker_kills[why as usize] += 1;
    }

    /// A worker is told to cancel what it does.
    pub fn worker_cancelled(&mut self, why: Kill) {
        self.worker_cancels[why as usize] += 1;
    }

    /// Errors sent, by name.
    pub fn errors_named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = ErrorCode::ALL.iter().map(|code| code.name()).chain(["UNKNOWN"]);
        // NONE is never sent.
        names.zip(self.errors).skip(1)
    }
}

/// What happens around the router. The event loop counts it.
#[derive(Clone, Debug, Default)]
pub struct LoopCounters {
    /// Connections of users who may not connect.
    pub refused_peer: u64,
    /// Connections that could not be watched.
    pub refused_error: u64,
    /// Times that a connection could not be accepted.
    pub accept_errors: u64,
    /// Turns of the loop.
    pub turns: u64,
    /// Events that the operating system had to tell.
    pub events: u64,
    /// Bytes of images that went to clients, by how.
    pub relayed: crate::relay::Moved,
    /// Administrative requests, by their place in [`crate::admin::PAGES`]; the last is for others.
    pub admin_requests: [u64; crate::admin::PAGES.len() + 1],
    /// Settings that were read again and taken.
    pub reloads: u64,
    /// Settings that could not be taken.
    pub reload_failures: u64,
}

/// How things are at this moment.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// This daemon's engine.
    pub engine: &'static str,
    /// Since the daemon began.
    pub uptime: Duration,
    /// When it began, in seconds since 1970.
    pub started: f64,
    /// Whether a request that came now would get a worker in time.
    pub ready: bool,
    /// Whether the daemon is about to end.
    pub draining: bool,
    /// Clients.
    pub clients: usize,
    /// Most clients.
    pub client_limit: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Most requests that may wait.
    pub queue_limit: usize,
    /// Requests that workers have.
    pub running: usize,
    /// Those of them that nobody waits for any more.
    pub running_abandoned: usize,
    /// Workers.
    pub workers: usize,
    /// Workers that have a request or could take one.
    pub workers_up: usize,
    /// How long the oldest request has been waiting.
    pub oldest_wait: Duration,
    /// This process, as /proc has it.
    pub process: Process,
    /// The workers' processes.
    pub worker_memory: u64,
    /// How far each worker is.
    pub progress: Vec<Progress>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_the_bucket_whose_bound_they_do_not_exceed() {
        let mut times = Histogram::default();
        for millis in [0, 5, 6, 25, 3_600_000, 3_600_001] {
            times.observe(Duration::from_millis(millis));
        }
        assert_eq!((times.count(), times.buckets[0], times.buckets[1]), (6, 2, 2));
        assert_eq!((times.buckets[BUCKETS.len() - 1], times.buckets[BUCKETS.len()]), (1, 1));
        assert!(BUCKETS.is_sorted());
    }

    #[test]
    fn every_error_is_counted_once_whatever_it_is_called() {
        let mut counters = Counters::default();
        for code in ErrorCode::ALL.iter().skip(1).copied().chain([ErrorCode::Unknown(777)]) {
            counters.ended(Outcome::Error(code));
        }
        let all = u64::try_from(ErrorCode::ALL.len()).unwrap();
        assert!(counters.errors_named().all(|(_, count)| count == 1));
        assert_eq!((counters.busy, counters.requests()), (1, all));
    }
}
