//! The router's logic: a state machine without sockets, clocks or threads.
//!
//! It sits between clients and workers, which all speak Weave. A driver owns the sockets and binds the two
//! together; [`server`](crate::server) is the one that ships. Four kinds of methods:
//!
//! - *What happened*: [`displaced_by`](Router::displaced_by), [`accept`](Router::accept), [`client_received`](Router::client_received),
//!   [`client_eof`](Router::client_eof), [`client_gone`](Router::client_gone),
//!   [`client_wrote`](Router::client_wrote), [`relayed`](Router::relayed), [`worker_up`](Router::worker_up),
//!   [`worker_wrote`](Router::worker_wrote), [`worker_received`](Router::worker_received),
//!   [`worker_spoke`](Router::worker_spoke), [`worker_down`](Router::worker_down), [`tick`](Router::tick).
//! - *What to do next*, polled: [`next_action`](Router::next_action), and for every client or worker that it
//!   names, [`client_spare`](Router::client_spare), [`client_output`](Router::client_output),
//!   [`worker_output`](Router::worker_output) and [`worker_input`](Router::worker_input).
//! - *Commands*: [`drain`](Router::drain), [`abort`](Router::abort), [`set_limits`](Router::set_limits).
//! - *Getters*: [`wake_at`](Router::wake_at), [`is_drained`](Router::is_drained), and those for metrics.
//!
//! # The order in which to poll
//! 1. Report what happened, socket by socket, until each would block or has had its turn.
//! 2. Call [`tick`](Router::tick).
//! 3. Call [`next_action`](Router::next_action) until it has none. Carry out an
//!    [`Order`](Action::Order) at once; put who is to be [looked](Action::Look) at on the list of
//!    those who are ready. A client that is ready is read into `client_spare` and written from
//!    `client_output`, a worker is written from `worker_output` and read as `worker_input` says.
//! 4. Sleep until [`wake_at`](Router::wake_at), unless somebody is ready.
//!
//! # Time
//! Time is an argument, and the router has no clock. Instants of one method's calls never decrease.
//! `tick` takes the instant at which the driver began to ask who is ready: late is who was late by
//! then and still has nothing to say, not whose words lay there while the driver itself stood still.
//!
//! # Memory
//! Memory is reserved at the start, and what was never needed is never touched. An answer never waits
//! for memory: a job's own slot holds the error that ends it until the client takes it, and input of a
//! client whose output is full is not read.
//!
//! # How it is built
//! Two machines below a coordinator. `requests` knows what is *owed*: connections (`connection`),
//! jobs (`jobs`), errors that wait for room. `users` has who they belong to and how many places one may have, `turns` who
//! is next. `worker` knows who *works*, and `answer` reads what a
//! worker says. This file lets them meet: jobs go to idle workers, images to clients, and a death on
//! either side is told to the other. Both write down in the `agenda` what the driver is to do.
//!
//! ```text
//! connection:  Open ──eof──▶ HalfClosed ──last answer taken──▶ closed
//!               ├─ a frame can't be followed, frame timeout ─▶ Closing ── its error is taken ──▶ closed
//!               ├─ stall timeout, idle timeout, half an image ─▶ Closing ──▶ closed
//!               └─ unused, and another user has no place ─▶ closed
//!
//! worker:  Down ──tick──▶ Starting ──up──▶ [Busy: warm-up] ──▶ Idle ──job──▶ Busy ──answered──▶ Idle
//!           ▲                                                   │             │ killed
//!           └──── back-off, or at once ◀── died ◀── Ending ◀────┴─────────────┘
//!                 Parked ◀── died, was idle for too long; a job that waits makes it Down
//! ```
//!
//! Deadlines stand in `due` of `connection` and of `worker` alone. After a change `rearm` announces
//! the next one, `tick` acts on it, and the simulator checks that none was forgotten.
//!
//! # Endings
//! | verb | whom | what it means |
//! | --- | --- | --- |
//! | *cancel* | a worker's request | the worker is told to stop; it still answers, to nobody |
//! | *kill* | a worker | its process ends, whatever it does |
//! | *fail* | a job | its answer is a `Refusal` |
//! | *drop* | a job | its client has gone, and nobody is told |
//! | *close* | a connection | at once, in the middle of whatever is going out |

mod agenda;
mod answer;
mod connection;
#[cfg(feature = "simulator")]
mod consistency;
mod interface;
mod jobs;
mod quarantine;
mod refusal;
mod requests;
mod shared;
mod turns;
mod users;
mod worker;

use std::time::{Duration, Instant};

use weave_core::error::ErrorCode;

use crate::causes::{Death, Kill};
use crate::counters::Counters;
use crate::repeats::Repeats;
use agenda::Due;
use answer::{Heard, Violation};
use connection::{Pressure, State};
pub use interface::{
    Abandoned, Action, Bound, ClientId, ClientOutput, Full, LEAST_PROGRESS, Limits, Order, Running, Unread,
    User, Waiting, Who, WorkerId, WorkerInput,
};
#[cfg(feature = "simulator")]
pub use interface::{Refused, Turn};
use jobs::JobId;
use refusal::Refusal;
pub use refusal::no_room_answer;
use requests::Requests;
use shared::Shared;
use worker::{Afterwards, Busy, HasRequest, Late, Life, Pool, Reading, Task};

/// See the module's documentation.
pub struct Router {
    requests: Requests,
    pool: Pool,
    shared: Shared,
}

impl Router {
    /// A router whose workers are all to be started. `now` is the clock's first reading.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            requests: Requests::new(&limits),
            pool: Pool::new(&limits, now),
            shared: Shared::new(limits, now),
        }
    }

    // ---------------------------------------------------------------- getters

    /// When [`tick`](Self::tick) has something to do at the latest.
    #[must_use]
    pub const fn wake_at(&self) -> Option<Instant> {
        self.shared.agenda.wake_at()
    }

    /// After [`drain`](Self::drain): whether every answer has left.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.shared.draining.is_some() && self.requests.connections.are_settled()
    }

    /// What has happened so far.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Lines that were counted instead of logged. The driver sees to it that they are told of; what the router owes
    /// doesn't depend on it.
    #[must_use]
    pub const fn repeats(&self) -> &Repeats {
        &self.shared.repeats
    }

    /// The same, to tell of them.
    pub const fn repeats_mut(&mut self) -> &mut Repeats {
        &mut self.shared.repeats
    }

    /// Connections that are not closed.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.requests.connections.len()
    }

    /// How long the request that waits longest has been waiting.
    #[must_use]
    pub fn oldest_wait(&self, now: Instant) -> Duration {
        self.requests.jobs.oldest().map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Requests that wait for a worker.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.requests.jobs.queued_len()
    }

    /// Workers that have a request, be it one that nobody waits for any more.
    #[must_use]
    pub fn running(&self) -> usize {
        self.pool.running(&self.requests.jobs).count()
    }

    /// Those of them whose request nobody waits for any more.
    #[must_use]
    pub fn running_abandoned(&self) -> usize {
        self.pool.running(&self.requests.jobs).filter(|running| running.is_abandoned).count()
    }

    /// The requests that workers have.
    pub fn running_requests(&self, now: Instant) -> impl Iterator<Item = Running> {
        self.pool.running(&self.requests.jobs).map(
            move |HasRequest { worker, asked, since, is_abandoned }| Running {
                request_id: asked.request_id,
                worker,
                steps: asked.steps,
                time: now.saturating_duration_since(since),
                abandoned: is_abandoned,
            },
        )
    }

    /// The requests that wait for a worker, in the order in which they get one if no others come.
    pub fn waiting_requests(&self, now: Instant) -> impl Iterator<Item = Waiting> {
        self.requests.jobs.in_turn().into_iter().map(move |id| {
            let job = self.requests.jobs.get(id);
            Waiting { request_id: job.asked.request_id, time: now.saturating_duration_since(job.since) }
        })
    }

    /// Workers that can be talked to.
    #[must_use]
    pub fn workers_up(&self) -> usize {
        self.pool.up()
    }

    /// Whether a request that came now would get a worker in its turn. Not while all of them are down,
    /// or still have to make the image that shows that they can.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared.draining.is_none() && self.pool.serves()
    }

    // ---------------------------------------------------------------- commands

    /// Takes other limits, besides those that memory was taken for and those that workers start with.
    /// A worker's task keeps the deadline that it was given.
    pub fn set_limits(&mut self, limits: Limits, now: Instant) {
        self.shared.set_limits(limits, now);
    }

    /// Takes no new requests, refuses those that wait, lets those that run finish until the drain
    /// timeout has passed.
    pub fn drain(&mut self, now: Instant) {
        if self.shared.draining.is_some() {
            return;
        }
        let deadline = now + self.shared.limits.drain;
        self.shared.draining = Some(deadline);
        self.shared.agenda.wake_by(deadline);
        self.requests.fail_waiting(Refusal::ShuttingDown, &mut self.shared);
    }

    /// Refuses what runs, too, and kills the workers.
    pub fn abort(&mut self, now: Instant) {
        self.drain(now);
        for id in self.pool.ids() {
            if self.pool[id].is_up() {
                self.kill_and_fail(id, Refusal::ShuttingDown, now);
            }
        }
    }

    // ---------------------------------------------------------------- clients

    /// Somebody wants to connect, and this client has to make room: close its connection and report
    /// [`client_gone`](Self::client_gone), then [`accept`](Self::accept).
    pub fn displaced_by(&mut self, user: User, now: Instant) -> Option<ClientId> {
        let id = self.requests.displaced_by(user, now)?;
        self.requests.log_displaced(id, &mut self.shared);
        Some(id)
    }

    /// A client has connected.
    ///
    /// # Errors
    /// There is no room for one more ([`no_room_answer`]).
    pub fn accept(&mut self, user: User, now: Instant) -> Result<ClientId, Full> {
        let id = self.requests.accept(user, &mut self.shared, now)?;
        log::debug!("{}: opened", self.requests.connections[id].name);
        self.rearm_client(id);
        Ok(id)
    }

    /// Where to read to; empty when nothing should be read now.
    pub fn client_spare(&mut self, id: ClientId) -> &mut [u8] {
        let connection = &mut self.requests.connections[id];
        if connection.reads() { connection.input.spare() } else { &mut [] }
    }

    /// `n` bytes were read into [`client_spare`](Self::client_spare).
    pub fn client_received(&mut self, id: ClientId, n: usize, now: Instant) {
        self.shared.counters.bytes_in += n as u64;
        self.requests.connections[id].input.filled(n);
        self.take_requests(id, now);
    }

    /// The client will send no more; it still gets its answers.
    pub fn client_eof(&mut self, id: ClientId) {
        let connection = &mut self.requests.connections[id];
        if connection.state == State::Open {
            connection.state = State::HalfClosed;
            self.shared.agenda.mark_client(id);
        }
    }

    /// The client's connection is no more. What waits for it is dropped; for what runs see
    /// [`Abandoned`].
    pub fn client_gone(&mut self, id: ClientId, now: Instant) {
        self.close(id, now);
        log::debug!("{}: closed", self.requests.connections[id].name);
        self.requests.release(id);
    }

    /// What to write next.
    pub fn client_output(&mut self, id: ClientId, now: Instant) -> ClientOutput<'_> {
        if self.requests.fill_output(id, &mut self.shared)
            && let Some((worker, head)) = self.pool.release_held(|job| self.requests.jobs.is_of(job, id))
        {
            self.requests.connections[id].push_head(head, worker);
        }
        if self.requests.connections[id].time_output(now) {
            self.rearm_client(id);
        }
        let connection = &self.requests.connections[id];
        if !connection.pending().is_empty() {
            return ClientOutput::Bytes(connection.pending());
        }
        if let Some(worker) = connection.relay
            && let Some(Busy { reading: Reading::Pixels(len), .. }) = self.pool[worker].busy()
        {
            return ClientOutput::Relay { worker, len: *len };
        }
        if connection.is_finished() { ClientOutput::Close } else { ClientOutput::Nothing }
    }

    /// The client's socket took `n` of the bytes.
    pub fn client_wrote(&mut self, id: ClientId, n: usize, now: Instant) {
        self.shared.counters.bytes_out += n as u64;
        self.requests.connections[id].wrote(n, now);
        // Input that was held back for want of room can go on.
        self.take_requests(id, now);
    }

    /// So many of the worker's bytes went to the client, or were dropped for want of one.
    pub fn relayed(&mut self, id: WorkerId, n: usize, now: Instant) {
        let client = self.audience(id);
        let Some(busy) = self.pool[id].busy_mut() else { return };
        let Reading::Pixels(left) = &mut busy.reading else { return };
        *left = left.saturating_sub(n);
        let (left, task) = (*left, busy.task);
        if let Some(client) = client {
            self.shared.counters.bytes_out += n as u64;
            self.requests.connections[client].took_pixels(n, left, now);
        } else {
            self.shared.counters.bytes_dropped += n as u64;
            busy.deadline = now + self.shared.limits.stall;
        }
        if left > 0 {
            return;
        }
        if let Task::Job(job) = task {
            self.requests.finish_image(job, &mut self.shared, now);
        }
        self.pool.answered(id, &mut self.shared, now);
        // Before more is admitted: what is given to a worker now makes room in the queue.
        self.settle(now);
        if let Some(client) = client {
            self.take_requests(client, now);
        }
    }

    // ---------------------------------------------------------------- workers

    /// The worker can be talked to.
    pub fn worker_up(&mut self, id: WorkerId, now: Instant) {
        self.pool.came_up(id, &mut self.shared, now);
        self.settle(now);
    }

    /// The worker is gone, whether it was killed or not. `unread`: what it has left in its socket.
    pub fn worker_down(&mut self, id: WorkerId, death: Death, unread: Unread, now: Instant) {
        self.shared.counters.worker_died(death);
        self.shared.agenda.withdraw_order(id);
        let (then, not_begun) = match std::mem::replace(&mut self.pool[id].life, Life::Starting) {
            Life::Ending { then, unread } => (then, unread),
            Life::Busy(Busy { task: Task::Job(job), written, .. }) => {
                let has_all = written >= self.requests.jobs.get(job).len();
                if has_all && unread == Unread::Nothing {
                    self.requests.blame(job, id, &mut self.shared, now);
                    self.fail_begun(id, job, Refusal::WorkerDied(death), now);
                    (Afterwards::BackOff, None)
                } else {
                    (Afterwards::BackOff, Some(job))
                }
            }
            _ => (Afterwards::BackOff, None),
        };
        if let Some(job) = not_begun {
            self.requests.try_again(job, death, &mut self.shared);
        }
        self.pool.died(id, death, then, &mut self.shared, now);
        if let Some(death) = self.pool.hopeless() {
            self.requests.fail_waiting(Refusal::NoWorker(death), &mut self.shared);
        }
        self.settle(now);
    }

    /// Request bytes to write; empty when there are none.
    #[must_use]
    pub fn worker_output(&self, id: WorkerId) -> &[u8] {
        let Some(Busy { task, written, .. }) = self.pool[id].busy() else { return &[] };
        let request = match task {
            Task::Job(job) => self.requests.jobs.get(*job).frame(),
            Task::WarmUp => self.pool.warm_up(),
            Task::Cancelled(_) => &[],
        };
        request.get(*written..).unwrap_or_default()
    }

    /// The worker's socket took `n` of the bytes.
    pub fn worker_wrote(&mut self, id: WorkerId, n: usize) {
        if let Some(busy) = self.pool[id].busy_mut() {
            busy.written += n;
        }
    }

    /// What to do with what the worker sends.
    pub fn worker_input(&mut self, id: WorkerId) -> WorkerInput<'_> {
        let audience = self.audience(id);
        let worker = &mut self.pool[id];
        match worker.life {
            Life::Down { .. } | Life::Starting | Life::Parked => WorkerInput::Hold,
            Life::Idle { .. } | Life::Ending { .. } => WorkerInput::Silence,
            Life::Busy(Busy { reading, .. }) => match (reading, audience) {
                (Reading::Listening, _) => WorkerInput::Buffer(worker.answer.spare()),
                (Reading::Held(_), _) => WorkerInput::Hold,
                (Reading::Pixels(_), Some(client)) => WorkerInput::Relay(client),
                (Reading::Pixels(len), None) => WorkerInput::Discard(len),
            },
        }
    }

    /// `n` bytes were read into [`WorkerInput::Buffer`].
    pub fn worker_received(&mut self, id: WorkerId, n: usize, now: Instant) {
        let worker = &mut self.pool[id];
        let Life::Busy(Busy { asked, .. }) = worker.life else { return };
        match worker.answer.filled(n, asked) {
            Ok(Heard::More) => {}
            Ok(Heard::Head(len)) => {
                let audience = self.audience(id);
                self.pool.head_came(id, len, audience, &mut self.shared, now);
                self.hurry();
            }
            Ok(Heard::Error(code)) => self.error_came(id, code, now),
            Err(violation) => self.kill_for(id, violation, now),
        }
    }

    /// The worker sent something when nothing was asked of it.
    pub fn worker_spoke(&mut self, id: WorkerId, now: Instant) {
        if !matches!(self.pool[id].life, Life::Ending { .. }) {
            self.kill_for(id, Violation::Unasked, now);
        }
    }

    // ---------------------------------------------------------------- time

    /// Looks at every deadline that [`wake_at`](Self::wake_at) announced.
    pub fn tick(&mut self, now: Instant) {
        if !self.shared.agenda.take_wake(now) {
            return;
        }
        for id in self.pool.ids() {
            while let Some(Due { at, why }) = self.pool.due(id, self.audience(id), &self.shared) {
                if at > now {
                    self.shared.agenda.wake_by(at);
                    break;
                }
                self.worker_timed_out(id, why, now);
            }
        }
        for id in self.requests.connections.ids() {
            while let Some(Due { at, why }) = self.client_due(id) {
                if at > now {
                    self.shared.agenda.wake_by(at);
                    break;
                }
                self.client_timed_out(id, why, now);
            }
        }
        match self.shared.draining {
            Some(deadline) if deadline <= now => self.abort(now),
            Some(deadline) => self.shared.agenda.wake_by(deadline),
            None => {}
        }
        self.settle(now);
    }

    /// What the driver has to do next; `None`: wait for something to happen.
    pub fn next_action(&mut self) -> Option<Action> {
        self.shared.agenda.next()
    }

    fn client_due(&self, id: ClientId) -> Option<Due<connection::Timeout>> {
        let pressure = self.pool.pressure(id, &self.requests.jobs);
        self.requests.due(id, pressure, &self.shared.limits)
    }

    /// Something about a connection has changed: its next deadline is announced.
    fn rearm_client(&mut self, id: ClientId) {
        let pressure = self.pool.pressure(id, &self.requests.jobs);
        self.requests.rearm(id, pressure, &mut self.shared);
    }

    fn worker_timed_out(&mut self, id: WorkerId, why: worker::Timeout, now: Instant) {
        let refusal = Refusal::Timeout { limit: self.shared.limits.generation };
        match why {
            worker::Timeout::Job(Late::Head) => match self.cancel(id, Kill::TooSlow, now) {
                Some(job) => self.requests.fail(job, refusal, &mut self.shared),
                None => {
                    log::error!("worker {}: generation timeout; killing it", id.0);
                    self.kill_and_fail(id, refusal, now);
                }
            },
            worker::Timeout::Job(Late::Pixels) => {
                log::error!("worker {}: its image stalled; killing it", id.0);
                self.kill_and_fail(id, Refusal::WorkerViolation, now);
            }
            why => self.pool.timed_out(id, why, &mut self.shared),
        }
    }

    fn client_timed_out(&mut self, id: ClientId, why: connection::Timeout, now: Instant) {
        match why {
            connection::Timeout::Stall | connection::Timeout::Idle => {
                self.requests.log_close(id, why, &mut self.shared, now);
                self.close(id, now);
            }
            connection::Timeout::Frame => {
                self.requests.frame_timed_out(id, &mut self.shared, now);
                self.drop_requests(id, now);
            }
            connection::Timeout::Queue => self.requests.queue_timed_out(id, &mut self.shared),
        }
    }

    // ---------------------------------------------------------------- how the two machines meet

    /// What follows when a job was queued, or a worker became free or went: idle workers get jobs, and
    /// as many workers are started as there are jobs.
    fn settle(&mut self, now: Instant) {
        if self.requests.jobs.queued_len() == 0 || self.shared.draining.is_some() {
            return;
        }
        while let Some(id) = self.pool.idle()
            && let Some(job) = self.requests.start_next(id, &mut self.shared, now)
        {
            let asked = self.requests.jobs.get(job).asked;
            self.pool.give(id, Task::Job(job), asked, &mut self.shared, now);
        }
        self.pool.unpark_for(self.waiting(), &mut self.shared, now);
        self.hurry();
    }

    /// A client whose image keeps a worker from another's job has less time.
    fn hurry(&mut self) {
        for id in self.pool.ids() {
            if self.pool[id].is_sending()
                && let Some(client) = self.audience(id)
                && self.requests.jobs.others_wait(client)
            {
                self.requests.rearm(client, Pressure::OthersWait, &mut self.shared);
            }
        }
    }

    /// Admits the requests of this client that have arrived.
    fn take_requests(&mut self, id: ClientId, now: Instant) {
        self.shared.agenda.mark_client(id);
        let connection = &self.requests.connections[id];
        if connection.input.is_between_frames() {
            // The stall clock was announced when it began to run.
            if connection.stalled_since.is_none() {
                self.rearm_client(id);
            }
            return;
        }
        let waiting = self.waiting();
        self.requests.take_frames(id, self.pool.hopeless(), &mut self.shared, now);
        if self.requests.connections[id].state == State::Closing {
            self.drop_requests(id, now);
        }
        self.rearm_client(id);
        if self.waiting() > waiting {
            self.settle(now);
        }
    }

    /// Who gets what this worker sends.
    fn audience(&self, id: WorkerId) -> Option<ClientId> {
        self.pool.audience(id, &self.requests.jobs)
    }

    /// A worker's answer is an error.
    fn error_came(&mut self, id: WorkerId, code: ErrorCode, now: Instant) {
        let worker = &self.pool[id];
        match worker.busy().map(|busy| busy.task) {
            Some(Task::WarmUp) => return self.kill_for(id, Violation::NoWarmUp(code), now),
            Some(Task::Job(job)) => {
                self.requests.answer(job, code, worker.answer.frame(), &mut self.shared);
            }
            Some(Task::Cancelled(_)) | None => {}
        }
        self.pool.answered(id, &mut self.shared, now);
        self.settle(now);
    }

    // ---------------------------------------------------------------- endings

    /// Has a worker cancel its job, which is the caller's from then on. `None`: it was not asked to.
    fn cancel(&mut self, id: WorkerId, why: Kill, now: Instant) -> Option<JobId> {
        let Task::Job(job_id) = self.pool[id].busy()?.task else { return None };
        let len = self.requests.jobs.get(job_id).len();
        self.pool.cancel(id, len, why, &mut self.shared, now).then_some(job_id)
    }

    /// Kills a worker that broke the protocol.
    fn kill_for(&mut self, id: WorkerId, violation: Violation, now: Instant) {
        log::error!("worker {}: {violation}; killing it", id.0);
        self.kill_and_fail(id, Refusal::WorkerViolation, now);
    }

    /// Kills a worker that can't be left alive, and fails the job that it has.
    fn kill_and_fail(&mut self, id: WorkerId, refusal: Refusal, now: Instant) {
        let had = self.pool[id].busy().copied();
        self.pool.kill(id, refusal.kills_as(), Afterwards::BackOff, &mut self.shared);
        let Some(Busy { task: Task::Job(job), written, .. }) = had else { return };
        if refusal == Refusal::WorkerViolation && written < self.requests.jobs.get(job).len() {
            // It can't have begun with the request, which goes to another worker when this one is gone.
            self.pool[id].life = Life::Ending { then: Afterwards::BackOff, unread: Some(job) };
        } else {
            self.fail_begun(id, job, refusal, now);
        }
    }

    /// A worker that is gone, or is being killed, has begun with this job.
    fn fail_begun(&mut self, id: WorkerId, job: JobId, refusal: Refusal, now: Instant) {
        if let Some(client) = self.requests.end_transfer(job, id, &mut self.shared) {
            self.close(client, now);
        }
        self.requests.fail(job, refusal, &mut self.shared);
    }

    /// Closes a client's connection at once, in the middle of whatever is going out.
    fn close(&mut self, id: ClientId, now: Instant) {
        self.drop_requests(id, now);
        if let Some(worker) = self.requests.connections[id].end() {
            self.shared.agenda.mark_worker(worker);
        }
        self.shared.agenda.mark_client(id);
    }

    /// Drops all of a client's jobs: no answer of theirs goes anywhere.
    fn drop_requests(&mut self, id: ClientId, now: Instant) {
        self.requests.drop_waiting(id, &mut self.shared);
        for worker_id in self.pool.ids() {
            if let Some(job) = self.pool[worker_id].job()
                && self.requests.jobs.is_of(job, id)
            {
                self.requests.leave(job);
                self.drop_given(worker_id, job, now);
            }
        }
    }

    /// The client of a job that this worker has is gone.
    fn drop_given(&mut self, id: WorkerId, job: JobId, now: Instant) {
        match &mut self.pool[id].life {
            Life::Busy(Busy { reading: Reading::Held(len) | Reading::Pixels(len), .. }) => {
                let len = *len;
                self.pool.discard(id, len, &mut self.shared, now);
            }
            Life::Busy(_) if self.shared.limits.abandoned == Abandoned::Finish => {}
            Life::Busy(_) => {
                if self.cancel(id, Kill::Abandoned, now).is_none() {
                    self.pool.kill(id, Kill::Abandoned, Afterwards::Restart, &mut self.shared);
                }
                self.requests.drop_job(job, &mut self.shared);
            }
            Life::Ending { unread, .. } => {
                *unread = None;
                self.requests.drop_job(job, &mut self.shared);
            }
            _ => {}
        }
    }
}

/// For the simulator.
#[cfg(feature = "simulator")]
impl Router {
    /// What the router has refused since this was asked last, in order.
    pub fn take_refusals(&mut self) -> Vec<Refused> {
        std::mem::take(&mut self.requests.refusals)
    }

    /// Whose turn it was since this was asked last, in order.
    pub fn take_turns(&mut self) -> Vec<Turn> {
        std::mem::take(&mut self.requests.jobs.turns_taken)
    }

    /// What must be true between any two events.
    ///
    /// # Panics
    /// If it is not.
    pub fn assert_consistent(&self) {
        consistency::check(&self.requests, &self.pool, &self.shared);
    }
}
