//! One worker's life, and what the pool of them can be asked.
//! The module above has its picture.

use std::ops::{Index, IndexMut};
use std::time::{Duration, Instant};

use weave_core::limits::MAX_REQUEST_FRAME;
use weave_core::request::{Params, Prompts, Request};

use super::agenda::Due;
use super::answer::{Answer, Asked};
use super::connection::Pressure;
use super::interface::{ClientId, Limits, Order, WorkerId};
use super::jobs::{JobId, Jobs};
use super::refusal::MAX_ATTEMPTS;
use super::shared::Shared;
use crate::causes::{Death, Kill};

/// The first wait before a worker is started again; it doubles with every failure in a row.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// The longest wait before a worker is started again.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);

/// What a worker has to make before it is given a request: enough to have all of the model in place.
const WARM_UP: Request<'static> = Request {
    request_id: 0,
    params: Params { width: 64, height: 64, steps: 1, cfg_scale: 1.0, seed: 1 },
    prompts: Prompts::same("warm-up"),
};

/// What a worker does at the moment, or why there is none.
#[derive(Debug)]
pub(super) enum Life {
    /// No process; it is to be started at this time.
    Down { retry_at: Instant },
    /// The driver was told to start it.
    Starting,
    /// No process, and none is needed until a request waits.
    Parked,
    /// It has nothing to do.
    Idle { since: Instant },
    /// It has a task.
    Busy(Busy),
    /// The driver was told to kill it; what it still says is dropped.
    Ending {
        /// What follows its death.
        then: Afterwards,
        /// A job that it can't have begun with, which another worker gets.
        unread: Option<JobId>,
    },
}

/// A task, and how far it has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Busy {
    pub(super) task: Task,
    /// What its answer has to agree with.
    pub(super) asked: Asked,
    /// Bytes of the request that are written.
    pub(super) written: usize,
    pub(super) reading: Reading,
    /// When it was given its task.
    pub(super) given_at: Instant,
    /// When it was given its task, or told to cancel it.
    pub(super) since: Instant,
    /// When it has to be further than it is now.
    pub(super) deadline: Instant,
}

/// What a busy worker was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// A small image that nobody waits for.
    WarmUp,
    /// A client's request.
    Job(JobId),
    /// A request that it was told to cancel, and for what reason. Whatever it answers goes nowhere.
    Cancelled(Kill),
}

/// A worker that has a client's request.
pub(super) struct HasRequest {
    pub(super) worker: WorkerId,
    pub(super) asked: Asked,
    /// When it was given it.
    pub(super) since: Instant,
    /// Whether nobody waits for its image any more.
    pub(super) is_abandoned: bool,
}

/// How much of its answer was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Its first part is being read.
    Listening,
    /// The head is there and waits until the client's output is free, since nothing may come between
    /// the bytes of a frame; so many bytes follow it.
    Held(usize),
    /// Pixels are on their way; so many bytes are left.
    Pixels(usize),
}

/// What follows a worker's death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Afterwards {
    /// It failed, and is started again after a while.
    BackOff,
    /// It was killed for no fault of its own, and is started again at once.
    Restart,
    /// It is started when it is needed.
    Park,
}

/// What a worker runs out of time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timeout {
    /// It is time to start it.
    Start,
    /// It has had no task for so long.
    Idle(Duration),
    /// It is not free of a request that it was told to cancel.
    Cancel(Kill),
    /// It takes too long for what it was given.
    Job(Late),
}

/// What of an answer does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// Its head.
    Head,
    /// Its pixels, for which nobody waits.
    Pixels,
}

/// See the module's documentation.
pub(super) struct Worker {
    pub(super) life: Life,
    pub(super) answer: Answer,
    /// Tasks that it was given since it came up.
    given: u64,
    /// Deaths since its last answer.
    failures: u32,
    last_death: Death,
}

impl Worker {
    fn new(now: Instant) -> Self {
        Self {
            life: Life::Down { retry_at: now },
            answer: Answer::new(),
            given: 0,
            failures: 0,
            last_death: Death::NotStarted,
        }
    }

    pub(super) const fn busy(&self) -> Option<&Busy> {
        match &self.life {
            Life::Busy(busy) => Some(busy),
            _ => None,
        }
    }

    pub(super) const fn busy_mut(&mut self) -> Option<&mut Busy> {
        match &mut self.life {
            Life::Busy(busy) => Some(busy),
            _ => None,
        }
    }

    /// The job that it has, whether it can do it or not.
    pub(super) const fn job(&self) -> Option<JobId> {
        match self.life {
            Life::Busy(Busy { task: Task::Job(job), .. }) => Some(job),
            Life::Ending { unread, .. } => unread,
            _ => None,
        }
    }

    /// Whether its image is there and not all gone.
    pub(super) const fn is_sending(&self) -> bool {
        matches!(self.life, Life::Busy(Busy { reading: Reading::Held(_) | Reading::Pixels(_), .. }))
    }

    /// Whether it can be talked to.
    pub(super) const fn is_up(&self) -> bool {
        matches!(self.life, Life::Idle { .. } | Life::Busy(_))
    }

    /// Whether it is on its way to its first task.
    const fn is_coming(&self) -> bool {
        matches!(self.life, Life::Down { .. } | Life::Starting | Life::Busy(Busy { task: Task::WarmUp, .. }))
    }

    /// Whether a job that came now would get it in its turn.
    const fn serves(&self) -> bool {
        self.is_up() && !self.is_coming() || matches!(self.life, Life::Parked)
    }

    /// How long to wait after one more failure.
    fn back_off(&mut self) -> Duration {
        let doubled = FIRST_BACK_OFF.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        // The first death after an image was made is no pattern yet: start at once.
        if self.failures > 1 { doubled.min(LONGEST_BACK_OFF) } else { Duration::ZERO }
    }

    /// What it runs out of time for next. `audience`: the client that waits for what it sends, whose
    /// own clock runs then.
    fn due(&self, audience: Option<ClientId>, shared: &Shared) -> Option<Due<Timeout>> {
        let is_serving = shared.draining.is_none();
        match &self.life {
            Life::Down { retry_at } if is_serving => Some(Due { at: *retry_at, why: Timeout::Start }),
            Life::Idle { since } if is_serving => {
                shared.limits.worker_idle.map(|limit| Due { at: *since + limit, why: Timeout::Idle(limit) })
            }
            Life::Busy(busy) => {
                let why = match (busy.reading, busy.task) {
                    (Reading::Listening, Task::Cancelled(why)) => Timeout::Cancel(why),
                    (Reading::Listening, Task::Job(_) | Task::WarmUp) => Timeout::Job(Late::Head),
                    (Reading::Held(_), _) => return None,
                    (Reading::Pixels(_), _) if audience.is_some() => return None,
                    (Reading::Pixels(_), _) => Timeout::Job(Late::Pixels),
                };
                Some(Due { at: busy.deadline, why })
            }
            Life::Down { .. } | Life::Idle { .. } | Life::Starting | Life::Parked | Life::Ending { .. } => {
                None
            }
        }
    }
}

/// All workers.
pub(super) struct Pool {
    workers: Box<[Worker]>,
    /// The request that each new worker has to answer; empty if none.
    warm_up: Box<[u8]>,
}

impl Pool {
    /// Workers that are all to be started.
    pub(super) fn new(limits: &Limits, now: Instant) -> Self {
        let mut frame = [0; MAX_REQUEST_FRAME];
        let warm_up = WARM_UP.emit(&mut frame).expect("the warm-up keeps to the protocol's bounds");
        Self {
            workers: std::iter::repeat_with(|| Worker::new(now)).take(limits.workers).collect(),
            warm_up: if limits.warm_up { warm_up.into() } else { Box::default() },
        }
    }

    /// The whole frame of [`Task::WarmUp`].
    pub(super) const fn warm_up(&self) -> &[u8] {
        &self.warm_up
    }

    pub(super) fn ids(&self) -> impl DoubleEndedIterator<Item = WorkerId> + use<> {
        (0..self.workers.len()).map(WorkerId)
    }

    /// Workers that have a job.
    #[cfg(feature = "simulator")]
    pub(super) fn with_job(&self) -> usize {
        self.workers.iter().filter(|worker| worker.job().is_some()).count()
    }

    /// Workers that have a client's request, be it one that they are to cancel.
    pub(super) fn running(&self, jobs: &Jobs) -> impl Iterator<Item = HasRequest> {
        self.ids().filter_map(move |worker| match &self[worker].life {
            Life::Busy(Busy { task: Task::Cancelled(_), asked, given_at, .. }) => {
                Some(HasRequest { worker, asked: *asked, since: *given_at, is_abandoned: true })
            }
            Life::Busy(Busy { task: Task::Job(job), asked, given_at, .. }) => {
                let is_abandoned = jobs.get(*job).client.is_none();
                Some(HasRequest { worker, asked: *asked, since: *given_at, is_abandoned })
            }
            // Another worker gets it when this one is gone.
            Life::Ending { unread: Some(job), .. } => {
                let job = jobs.get(*job);
                let is_abandoned = job.client.is_none();
                Some(HasRequest { worker, asked: job.asked, since: job.since, is_abandoned })
            }
            _ => None,
        })
    }

    /// Workers that can be talked to.
    pub(super) fn up(&self) -> usize {
        self.workers.iter().filter(|worker| worker.is_up()).count()
    }

    /// Whether a job that came now would get a worker in its turn.
    pub(super) fn serves(&self) -> bool {
        self.workers.iter().any(Worker::serves)
    }

    /// A worker that has nothing to do.
    pub(super) fn idle(&self) -> Option<WorkerId> {
        self.ids().find(|id| matches!(self[*id].life, Life::Idle { .. }))
    }

    /// Who gets what this worker sends.
    pub(super) fn audience(&self, id: WorkerId, jobs: &Jobs) -> Option<ClientId> {
        match self[id].busy()?.task {
            Task::Job(job) => jobs.get(job).client,
            Task::WarmUp | Task::Cancelled(_) => None,
        }
    }

    /// Whether this client keeps a worker from somebody else's job.
    pub(super) fn pressure(&self, id: ClientId, jobs: &Jobs) -> Pressure {
        let holds = |worker| self[worker].is_sending() && self.audience(worker, jobs) == Some(id);
        if jobs.queued_len() > 0 && jobs.others_wait(id) && self.ids().any(holds) {
            Pressure::OthersWait
        } else {
            Pressure::None
        }
    }

    /// If no worker has come up for a while: how one of them died.
    pub(super) fn hopeless(&self) -> Option<Death> {
        let is_hopeless = |worker: &Worker| {
            matches!(worker.life, Life::Down { .. } | Life::Starting)
                && worker.failures >= u32::from(MAX_ATTEMPTS)
        };
        self.workers.iter().all(is_hopeless).then(|| self.workers.first().map(|worker| worker.last_death))?
    }

    // ---------------------------------------------------------------- what becomes of them

    /// When this worker runs out of time next, and for what.
    pub(super) fn due(
        &self,
        id: WorkerId,
        audience: Option<ClientId>,
        shared: &Shared,
    ) -> Option<Due<Timeout>> {
        self[id].due(audience, shared)
    }

    /// A worker's life has changed, in a way in which no client's clock runs instead of its own: its
    /// next deadline is announced.
    fn rearm(&self, id: WorkerId, shared: &mut Shared) {
        if let Some(Due { at, .. }) = self.due(id, None, shared) {
            shared.agenda.wake_by(at);
        }
    }

    /// A worker has run out of time for something that concerns no job.
    pub(super) fn timed_out(&mut self, id: WorkerId, why: Timeout, shared: &mut Shared) {
        match why {
            Timeout::Start => {
                self[id].life = Life::Starting;
                shared.agenda.order(id, Order::Start);
            }
            Timeout::Cancel(why) => {
                log::error!("worker {}: cancel timeout, it is not free; killing it", id.0);
                let is_at_fault = why == Kill::TooSlow;
                let then = if is_at_fault { Afterwards::BackOff } else { Afterwards::Restart };
                self.kill(id, why, then, shared);
            }
            Timeout::Idle(limit) => {
                log::info!("worker {}: idle for {limit:?}; ending it until it is needed", id.0);
                self.kill(id, Kill::Parked, Afterwards::Park, shared);
            }
            Timeout::Job(_) => {}
        }
    }

    /// It can be talked to.
    pub(super) fn came_up(&mut self, id: WorkerId, shared: &mut Shared, now: Instant) {
        shared.counters.worker_starts += 1;
        self[id].given = 0;
        if self.warm_up.is_empty() || shared.draining.is_some() {
            self.rest(id, shared, now);
        } else {
            self.give(id, Task::WarmUp, Asked::by(&WARM_UP), shared, now);
        }
    }

    /// So many jobs wait: parked workers are started for those that no worker is coming for.
    pub(super) fn unpark_for(&mut self, jobs: usize, shared: &mut Shared, now: Instant) {
        let is_parked = |worker: &Worker| matches!(worker.life, Life::Parked);
        if !self.workers.iter().any(is_parked) {
            return;
        }
        let coming = self.workers.iter().filter(|worker| worker.is_coming()).count();
        let parked = self.workers.iter_mut().filter(|worker| is_parked(worker));
        for worker in parked.take(jobs.saturating_sub(coming)) {
            worker.life = Life::Down { retry_at: now };
            shared.agenda.wake_by(now);
        }
    }

    /// Has a worker that is free do this, and answer what was asked.
    pub(super) fn give(&mut self, id: WorkerId, task: Task, asked: Asked, shared: &mut Shared, now: Instant) {
        let (reading, deadline) = (Reading::Listening, now + shared.limits.generation);
        let worker = &mut self[id];
        worker.answer.begin();
        worker.given += 1;
        worker.life =
            Life::Busy(Busy { task, asked, written: 0, reading, given_at: now, since: now, deadline });
        shared.agenda.mark_worker(id);
        self.rearm(id, shared);
    }

    /// The worker has nothing to do.
    fn rest(&mut self, id: WorkerId, shared: &mut Shared, now: Instant) {
        self[id].life = Life::Idle { since: now };
        shared.agenda.mark_worker(id);
        self.rearm(id, shared);
    }

    /// The head of a worker's response is there; `len` bytes follow, for this client or for nobody.
    pub(super) fn head_came(
        &mut self,
        id: WorkerId,
        len: usize,
        audience: Option<ClientId>,
        shared: &mut Shared,
        now: Instant,
    ) {
        let Some(Busy { task, asked, since, .. }) = self[id].busy() else { return };
        match task {
            Task::WarmUp => shared.counters.warm_ups += 1,
            // It was quicker than the word that it need not.
            Task::Cancelled(_) => shared.counters.pixels += asked.pixels(),
            Task::Job(_) => {
                shared.counters.generation.observe(now.saturating_duration_since(*since));
                shared.counters.pixels += asked.pixels();
            }
        }
        if let Some(client) = audience {
            shared.agenda.mark_client(client);
            self.send(id, Reading::Held(len), shared, now);
        } else {
            self.send(id, Reading::Pixels(len), shared, now);
        }
    }

    /// If a head is held for one of these jobs: its worker and the head, which goes out now.
    pub(super) fn release_held(&mut self, is_meant: impl Fn(JobId) -> bool) -> Option<(WorkerId, &[u8])> {
        let mut workers = self.workers.iter_mut().enumerate();
        workers.find_map(|(index, worker)| {
            if let Life::Busy(Busy { task: Task::Job(job), reading, .. }) = &mut worker.life
                && let Reading::Held(len) = *reading
                && is_meant(*job)
            {
                *reading = Reading::Pixels(len);
                return Some((WorkerId(index), worker.answer.head()));
            }
            None
        })
    }

    /// The client that this worker's image was for has gone: the rest is dropped, and has to come.
    pub(super) fn discard(&mut self, id: WorkerId, len: usize, shared: &mut Shared, now: Instant) {
        self.send(id, Reading::Pixels(len), shared, now);
        shared.agenda.mark_worker(id);
    }

    fn send(&mut self, id: WorkerId, reading: Reading, shared: &mut Shared, now: Instant) {
        if let Some(busy) = self[id].busy_mut() {
            (busy.reading, busy.deadline) = (reading, now + shared.limits.stall);
            self.rearm(id, shared);
        }
    }

    /// The worker has said all of its answer, and is free.
    pub(super) fn answered(&mut self, id: WorkerId, shared: &mut Shared, now: Instant) {
        let worker = &mut self[id];
        worker.failures = 0;
        if let Some(Busy { task: Task::Cancelled(_), asked, since, .. }) = worker.busy() {
            let took = now.saturating_duration_since(*since);
            shared.counters.cancel.observe(took);
            let request_id = asked.request_id;
            log::info!("worker {}: free of request {request_id} after {:.3} s", id.0, took.as_secs_f64());
        }
        self.rest(id, shared, now);
    }

    /// Has a worker cancel its job, whose request is so long; the job is the caller's from then on.
    /// Whether it was asked to: it can't be if it has not read all of the request, and is not if the
    /// cancel timeout is zero.
    pub(super) fn cancel(
        &mut self,
        id: WorkerId,
        len: usize,
        why: Kill,
        shared: &mut Shared,
        now: Instant,
    ) -> bool {
        let nth = self[id].given;
        let Some(busy) = self[id].busy_mut().filter(|busy| busy.written >= len) else { return false };
        if shared.limits.cancel.is_zero() {
            return false;
        }
        (busy.task, busy.since) = (Task::Cancelled(why), now);
        busy.deadline = now + shared.limits.cancel;
        log::info!("worker {}: told to cancel request {}: {}", id.0, busy.asked.request_id, why.name());
        shared.counters.worker_cancelled(why);
        shared.agenda.order(id, Order::Cancel(nth));
        self.rearm(id, shared);
        true
    }

    /// Kills a worker. A job that it had is the caller's.
    pub(super) fn kill(&mut self, id: WorkerId, why: Kill, then: Afterwards, shared: &mut Shared) {
        shared.counters.worker_killed(why);
        self[id].life = Life::Ending { then, unread: None };
        shared.agenda.order(id, Order::Kill);
    }

    /// The worker is gone.
    pub(super) fn died(
        &mut self,
        id: WorkerId,
        death: Death,
        then: Afterwards,
        shared: &mut Shared,
        now: Instant,
    ) {
        let worker = &mut self[id];
        worker.last_death = death;
        worker.life = match then {
            Afterwards::BackOff => Life::Down { retry_at: now + worker.back_off() },
            Afterwards::Restart => Life::Down { retry_at: now },
            Afterwards::Park => Life::Parked,
        };
        self.rearm(id, shared);
    }
}

impl Index<WorkerId> for Pool {
    type Output = Worker;

    fn index(&self, id: WorkerId) -> &Worker {
        &self.workers[id.0]
    }
}

impl IndexMut<WorkerId> for Pool {
    fn index_mut(&mut self, id: WorkerId) -> &mut Worker {
        &mut self.workers[id.0]
    }
}
