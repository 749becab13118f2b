//! The router's logic: a state machine without sockets, clocks or threads.
//!
//! It sits between clients and workers, which all speak Weave. A driver owns the sockets and binds
//! the two together; [`server`](crate::server) is the one that ships. Four kinds of methods:
//!
//! - *What happened*: [`accept`](Router::accept), [`client_received`](Router::client_received),
//!   [`client_eof`](Router::client_eof), [`client_gone`](Router::client_gone),
//!   [`client_wrote`](Router::client_wrote), [`relayed`](Router::relayed),
//!   [`worker_up`](Router::worker_up), [`worker_wrote`](Router::worker_wrote),
//!   [`worker_received`](Router::worker_received), [`worker_spoke`](Router::worker_spoke),
//!   [`worker_down`](Router::worker_down), [`tick`](Router::tick).
//! - *What to do next*, polled: [`next_action`](Router::next_action), and for every client or worker
//!   that it names, [`client_spare`](Router::client_spare), [`client_output`](Router::client_output),
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
//! Memory is fixed: a table of connections, a table of jobs, one small output buffer a connection. It
//! is reserved at the start, and what was never needed is never touched. An answer never waits for
//! memory: a job's own slot holds the error that ends it until the client takes it, and input of a
//! client whose output is full is not read.
//!
//! # Fairness
//! No client can hold up the others for long: clients with waiting requests are served in turns, each
//! has a bounded number of them, and a client that takes its image too slowly while others wait is
//! closed.
//!
//! # How it is built
//! Two machines below a coordinator. [`requests`] knows what is *owed*: connections, jobs, errors that
//! wait for room. [`worker`] knows who *works*. This file lets them meet: jobs go to idle workers,
//! images to clients, and a death on either side is told to the other.
//!
//! | file | holds | its states |
//! | --- | --- | --- |
//! | `interface` | what crosses the border to a driver | |
//! | `requests` | admission, errors that wait, how jobs end | |
//! | `connection` | one connection | Free, Open, HalfClosed, Closing |
//! | `jobs` | whose turn it is | Free, Queued, Running, Failed |
//! | `worker` | one worker | Down, Starting, Parked, Idle, Busy, Ending |
//! | `answer` | reading a worker's answer | |
//! | `agenda` | whom to look at, what to order, when to wake | |
//! | `refusal` | the router's own no | |
//! | `quarantine` | requests that workers died of | |
//!
//! ```text
//! connection:  Open ──eof──▶ HalfClosed ──last answer taken──▶ closed
//!               ├─ a frame can't be followed, frame timeout ─▶ Closing ── its error is taken ──▶ closed
//!               └─ stall timeout, idle timeout, half an image ─▶ Closing ──▶ closed
//!
//! worker:  Down ──tick──▶ Starting ──up──▶ [Busy: warm-up] ──▶ Idle ──job──▶ Busy ──answered──▶ Idle
//!           ▲                                                   │             │ killed
//!           └──── back-off, or at once ◀── died ◀── Ending ◀────┴─────────────┘
//!                 Parked ◀── died, was idle for too long; a job that waits makes it Down
//! ```
//!
//! A deadline stands in one place: `due` of [`connection`] and of [`worker`] say what is due next and
//! why. Whatever changes one of them is followed by `rearm_client` or `rearm_worker`, which announce
//! it; `tick` acts on it; the simulator checks that none was forgotten.
//!
//! # Endings
//! | verb | whom | what it means |
//! | --- | --- | --- |
//! | *cancel* | a worker's request | the worker is told to stop; it still answers, to nobody |
//! | *kill* | a worker | its process ends, whatever it does |
//! | *fail* | a job | its answer is a [`Refusal`] |
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
mod worker;

use std::time::{Duration, Instant};

use weave_core::error::ErrorCode;
use weave_core::limits::MAX_REQUEST_FRAME;
use weave_core::request::{Params, Prompts, Request};

use crate::causes::{Cut, Death, Kill};
use crate::counters::Counters;
use agenda::Due;
use answer::{Asked, Heard, Violation};
use connection::{Pressure, State};
pub use interface::{
    Abandoned, Action, ClientId, ClientOutput, LEAST_PROGRESS, Limits, Order, Unread, Who, WorkerId,
    WorkerInput,
};
use jobs::JobId;
use refusal::Refusal;
pub use refusal::no_room_answer;
use requests::Requests;
use shared::Shared;
use worker::{Afterwards, Audience, Busy, Life, Pool, Reading, Task};

/// What a worker has to make before it is given a request: enough to have all of the model in place.
const WARM_UP: Request<'static> = Request {
    request_id: 0,
    params: Params { width: 64, height: 64, steps: 1, cfg_scale: 1.0, seed: 1 },
    prompts: Prompts::same("warm-up"),
};

/// See the module's documentation.
pub struct Router {
    requests: Requests,
    pool: Pool,
    shared: Shared,
    /// The request that each new worker has to answer; empty if none.
    warm_up: Box<[u8]>,
}

impl Router {
    /// A router whose workers are all to be started. `now` is the clock's first reading.
    ///
    /// # Panics
    /// Never: the warm-up is a request like any other.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        let mut frame = [0; MAX_REQUEST_FRAME];
        let warm_up = WARM_UP.emit(&mut frame).expect("the warm-up keeps to the protocol's bounds");
        Self {
            requests: Requests::new(&limits),
            pool: Pool::new(limits.workers, now),
            shared: Shared::new(limits, now),
            warm_up: if limits.warm_up { warm_up.into() } else { Box::default() },
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

    /// Requests that were answered since the start, in whatever way.
    #[must_use]
    pub const fn answered(&self) -> u64 {
        self.shared.counters.requests()
    }

    /// What has happened so far.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.shared.counters
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

    /// Workers that have a request.
    #[must_use]
    pub fn running(&self) -> usize {
        self.pool.running()
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
        let Limits { connections, queue, workers, warm_up, .. } = self.shared.limits;
        self.shared.limits = Limits { connections, queue, workers, warm_up, ..limits };
        self.shared.agenda.wake_by(now);
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

    /// A client has connected. `None`: there is no room for one more ([`no_room_answer`]).
    pub fn accept(&mut self, now: Instant) -> Option<ClientId> {
        let counters = &mut self.shared.counters;
        let Some(id) = self.requests.connections.open(now) else {
            counters.refused_full += 1;
            counters.error(ErrorCode::Busy);
            return None;
        };
        counters.connections += 1;
        counters.most_clients = counters.most_clients.max(self.requests.connections.len());
        self.rearm_client(id);
        Some(id)
    }

    /// Who this client is, for the log.
    pub fn name_client(&mut self, id: ClientId, uid: u32) {
        let connection = &mut self.requests.connections[id];
        connection.set_uid(uid);
        log::debug!("{}: opened", connection.name);
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
        self.settle(now);
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
        self.requests.connections.release(id);
    }

    /// What to write next.
    pub fn client_output(&mut self, id: ClientId, now: Instant) -> ClientOutput<'_> {
        if self.requests.fill_output(id, &mut self.shared) {
            self.send_held_image(id);
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
        self.settle(now);
    }

    /// So many of the worker's bytes went to the client, or were dropped for want of one.
    pub fn relayed(&mut self, id: WorkerId, n: usize, now: Instant) {
        let client = self.audience(id);
        let Some(busy) = self.pool[id].busy_mut() else { return };
        let Reading::Pixels(left) = &mut busy.reading else { return };
        *left = left.saturating_sub(n);
        let (is_through, task) = (*left == 0, busy.task);
        if let Some(client) = client {
            self.shared.counters.bytes_out += n as u64;
            self.requests.connections[client].took_pixels(n, is_through, now);
        } else {
            self.shared.counters.bytes_dropped += n as u64;
            busy.deadline = now + self.shared.limits.stall;
        }
        if !is_through {
            return;
        }
        if let Task::Job(job) = task {
            self.requests.finish_image(job, &mut self.shared, now);
        }
        self.pool.answered(id, &mut self.shared, now);
        // Before more is admitted: what is given to a worker now makes room in the queue.
        self.dispatch(now);
        if let Some(client) = client {
            self.take_requests(client, now);
        }
        self.settle(now);
    }

    // ---------------------------------------------------------------- workers

    /// The worker can be talked to.
    pub fn worker_up(&mut self, id: WorkerId, now: Instant) {
        self.shared.counters.worker_starts += 1;
        self.pool[id].given = 0;
        if self.warm_up.is_empty() || self.shared.draining.is_some() {
            self.pool.rest(id, &mut self.shared, now);
        } else {
            self.pool.give(id, Task::WarmUp, &mut self.shared, now);
        }
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
            Task::WarmUp => &self.warm_up,
            Task::Cancelled { .. } => &[],
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
        let Life::Busy(Busy { task, .. }) = worker.life else { return };
        let asked = match task {
            Task::WarmUp => Asked::by(&WARM_UP),
            Task::Job(job) => self.requests.jobs.get(job).asked,
            Task::Cancelled { asked, .. } => asked,
        };
        match worker.answer.filled(n, asked) {
            Ok(Heard::More) => return,
            Ok(Heard::Head(len)) => self.head_came(id, asked, len, now),
            Ok(Heard::Error(code)) => self.error_came(id, code, now),
            Err(violation) => self.kill_for(id, violation, now),
        }
        self.settle(now);
    }

    /// The worker sent something when nothing was asked of it.
    pub fn worker_spoke(&mut self, id: WorkerId, now: Instant) {
        if !matches!(self.pool[id].life, Life::Ending { .. }) {
            self.kill_for(id, Violation::Unasked, now);
            self.settle(now);
        }
    }

    // ---------------------------------------------------------------- time

    /// Looks at every deadline that [`wake_at`](Self::wake_at) announced.
    pub fn tick(&mut self, now: Instant) {
        if !self.shared.agenda.take_wake(now) {
            return;
        }
        for id in self.pool.ids() {
            while let Some(Due { at, why }) = self.worker_due(id) {
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

    fn worker_due(&self, id: WorkerId) -> Option<Due<worker::Timeout>> {
        let audience = self.audience(id).map_or(Audience::Nobody, |_| Audience::Client);
        self.pool.due(id, audience, &self.shared)
    }

    fn client_due(&self, id: ClientId) -> Option<Due<connection::Timeout>> {
        self.requests.due(id, self.pressure(id), &self.shared.limits)
    }

    /// Something about a connection has changed: its next deadline is announced.
    fn rearm_client(&mut self, id: ClientId) {
        let pressure = self.pressure(id);
        self.requests.rearm(id, pressure, &mut self.shared);
    }

    fn worker_timed_out(&mut self, id: WorkerId, why: worker::Timeout, now: Instant) {
        match why {
            worker::Timeout::Start => self.pool.start(id, &mut self.shared),
            worker::Timeout::Generation => {
                let refusal = Refusal::Timeout { limit: self.shared.limits.generation };
                if let Some(job) = self.cancel(id, Kill::TooSlow, now) {
                    self.requests.fail(job, refusal, &mut self.shared);
                } else {
                    log::error!("worker {}: generation timeout; killing it", id.0);
                    self.kill_and_fail(id, refusal, now);
                }
            }
            worker::Timeout::Cancel(why) => {
                log::error!("worker {}: cancel timeout, it is not free; killing it", id.0);
                let is_at_fault = why == Kill::TooSlow;
                let then = if is_at_fault { Afterwards::BackOff } else { Afterwards::Restart };
                self.pool.kill(id, why, then, &mut self.shared);
            }
            worker::Timeout::Pixels => {
                log::error!("worker {}: its image stood still; killing it", id.0);
                self.kill_and_fail(id, Refusal::WorkerViolation, now);
            }
            worker::Timeout::Idle(limit) => {
                log::info!("worker {}: idle for {limit:?}; ending it until it is needed", id.0);
                self.pool.kill(id, Kill::Parked, Afterwards::Park, &mut self.shared);
            }
        }
    }

    fn client_timed_out(&mut self, id: ClientId, why: connection::Timeout, now: Instant) {
        let (name, limits) = (self.requests.connections[id].name, self.shared.limits);
        match why {
            connection::Timeout::Stall => {
                log::warn!("{name}: stall timeout, it took too little of its answer; closing");
                self.shared.counters.cut(Cut::Stalled);
                self.close(id, now);
            }
            connection::Timeout::Frame => {
                log::warn!("{name}: frame timeout, not complete after {:?}; closing", limits.frame);
                self.shared.counters.cut(Cut::HalfFrame);
                let why = format_args!(
                    "a frame was not complete {} s after it was begun; send it at once, and connect anew",
                    limits.frame.as_secs_f32()
                );
                self.requests.reject_stream(id, ErrorCode::Timeout, why, &mut self.shared);
                self.drop_requests(id, now);
            }
            connection::Timeout::Idle => {
                log::info!("{name}: idle timeout, no request for {:?}; closing", limits.idle);
                self.shared.counters.cut(Cut::Idle);
                self.close(id, now);
            }
            connection::Timeout::Queue => {
                if let Some(job) = self.requests.jobs.take_queued(id) {
                    let refusal = Refusal::QueueWait { limit: limits.queue_wait };
                    self.requests.fail(job, refusal, &mut self.shared);
                }
            }
        }
    }

    // ---------------------------------------------------------------- how the two machines meet

    /// What every event ends with: idle workers get jobs, and a client that keeps a worker from the next
    /// one has less time.
    fn settle(&mut self, now: Instant) {
        self.dispatch(now);
        if self.requests.jobs.queued_len() == 0 {
            return;
        }
        for id in self.pool.ids() {
            if self.pool[id].is_sending()
                && let Some(client) = self.audience(id)
            {
                self.rearm_client(client);
            }
        }
    }

    /// Gives waiting jobs to idle workers, and has as many workers started as there are jobs.
    fn dispatch(&mut self, now: Instant) {
        if self.requests.jobs.queued_len() == 0 || self.shared.draining.is_some() {
            return;
        }
        while let Some(id) = self.pool.idle()
            && let Some(job) = self.requests.start_next(id, &mut self.shared, now)
        {
            self.pool.give(id, Task::Job(job), &mut self.shared, now);
        }
        let missing = self.requests.jobs.queued_len().saturating_sub(self.pool.coming());
        self.pool.unpark(missing, &mut self.shared, now);
    }

    /// Admits the requests of this client that have arrived.
    fn take_requests(&mut self, id: ClientId, now: Instant) {
        self.requests.take_frames(id, self.pool.hopeless(), &mut self.shared, now);
        if self.requests.connections[id].state == State::Closing {
            self.drop_requests(id, now);
        }
        self.rearm_client(id);
    }

    /// If an image waits for this client's output, which has room for its head, it goes out now.
    fn send_held_image(&mut self, id: ClientId) {
        for worker_id in self.pool.ids() {
            let worker = &mut self.pool[worker_id];
            if let Life::Busy(Busy { task: Task::Job(job), reading, .. }) = &mut worker.life
                && let Reading::Held(len) = *reading
                && self.requests.jobs.get(*job).client == Some(id)
            {
                *reading = Reading::Pixels(len);
                self.requests.connections[id].push_head(worker.answer.head(), worker_id);
                return;
            }
        }
    }

    /// Who gets what this worker sends.
    fn audience(&self, id: WorkerId) -> Option<ClientId> {
        match self.pool[id].busy()?.task {
            Task::Job(job) => self.requests.jobs.get(job).client,
            Task::WarmUp | Task::Cancelled { .. } => None,
        }
    }

    /// Whether this client keeps a worker from somebody else's request.
    fn pressure(&self, id: ClientId) -> Pressure {
        let holds = |worker| self.pool[worker].is_sending() && self.audience(worker) == Some(id);
        let holds_up = self.requests.jobs.others_wait(id) && self.pool.ids().any(holds);
        if holds_up { Pressure::OthersWait } else { Pressure::None }
    }

    /// The head of a worker's response is there; `len` bytes follow.
    fn head_came(&mut self, id: WorkerId, asked: Asked, len: usize, now: Instant) {
        let Some(Busy { task, since, .. }) = self.pool[id].busy().copied() else { return };
        let counters = &mut self.shared.counters;
        match task {
            Task::WarmUp => counters.warm_ups += 1,
            // It was quicker than the word that it need not.
            Task::Cancelled { .. } => counters.pixels += asked.pixels(),
            Task::Job(_) => {
                counters.generation.observe(now.saturating_duration_since(since));
                counters.pixels += asked.pixels();
            }
        }
        if let Some(client) = self.audience(id) {
            self.shared.agenda.mark_client(client);
            self.pool.head_came(id, len, Audience::Client, &mut self.shared, now);
        } else {
            self.pool.head_came(id, len, Audience::Nobody, &mut self.shared, now);
        }
    }

    /// A worker's answer is an error.
    fn error_came(&mut self, id: WorkerId, code: ErrorCode, now: Instant) {
        let worker = &self.pool[id];
        match worker.busy().map(|busy| busy.task) {
            Some(Task::WarmUp) => return self.kill_for(id, Violation::NoWarmUp(code), now),
            Some(Task::Job(job)) => {
                self.requests.answer(job, code, worker.answer.frame(), &mut self.shared);
            }
            Some(Task::Cancelled { .. }) | None => {}
        }
        self.pool.answered(id, &mut self.shared, now);
    }

    // ---------------------------------------------------------------- endings

    /// Has a worker cancel its job, which is the caller's from then on. `None`: it was not asked to.
    fn cancel(&mut self, id: WorkerId, why: Kill, now: Instant) -> Option<JobId> {
        let Task::Job(job_id) = self.pool[id].busy()?.task else { return None };
        let job = self.requests.jobs.get(job_id);
        self.pool.cancel(id, job, why, &mut self.shared, now).ok().map(|()| job_id)
    }

    /// Kills a worker that broke the protocol.
    fn kill_for(&mut self, id: WorkerId, violation: Violation, now: Instant) {
        log::error!("worker {}: {violation}; killing it", id.0);
        self.kill_and_fail(id, Refusal::WorkerViolation, now);
    }

    /// Kills a worker that can't be left alive, and fails the job that it has.
    fn kill_and_fail(&mut self, id: WorkerId, refusal: Refusal, now: Instant) {
        let had = self.pool[id].busy().copied();
        let why = match refusal {
            Refusal::Timeout { .. } => Kill::TooSlow,
            Refusal::ShuttingDown => Kill::ShuttingDown,
            _ => Kill::Violation,
        };
        self.pool.kill(id, why, Afterwards::BackOff, &mut self.shared);
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
        let Requests { connections, jobs, .. } = &mut self.requests;
        if let Some(client) = jobs.get(job).client
            && connections[client].relay == Some(id)
        {
            // Half a frame is out: only closing tells the client so.
            log::warn!("{}: its image can't be finished; closing", connections[client].name);
            self.shared.counters.cut(Cut::HalfImage);
            self.requests.leave(job);
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
                && self.requests.jobs.get(job).client == Some(id)
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
