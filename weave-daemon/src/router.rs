//! The router's logic: a state machine without sockets, clocks or threads.
//!
//! It sits between clients and workers, which all speak Weave. A driver owns the sockets and binds
//! the two together; [`server`](crate::server) is the one that ships. Four kinds of methods:
//!
//! - *What happened*: [`accept`](Router::accept), [`client_received`](Router::client_received),
//!   [`client_eof`](Router::client_eof), [`client_gone`](Router::client_gone),
//!   [`client_wrote`](Router::client_wrote), [`relayed`](Router::relayed),
//!   [`worker_up`](Router::worker_up), [`worker_wrote`](Router::worker_wrote),
//!   [`worker_received`](Router::worker_received), [`worker_down`](Router::worker_down),
//!   [`tick`](Router::tick).
//! - *What to do next*, polled: [`next_action`](Router::next_action) until it has none, and for
//!   every client or worker that it names, [`client_spare`](Router::client_spare),
//!   [`client_output`](Router::client_output), [`worker_output`](Router::worker_output) and
//!   [`worker_input`](Router::worker_input).
//! - *Commands*: [`drain`](Router::drain), [`abort`](Router::abort).
//! - *Getters*: [`wake_at`](Router::wake_at), [`is_drained`](Router::is_drained).
//!
//! Time is an argument. Memory is fixed: a table of clients, a table of jobs, one small output
//! buffer a client. An answer never waits for memory: a job's own slot holds the error that ends it
//! until the client takes it, and input of a client whose output is full is not read.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use weave_core::error::{self, ErrorCode, ErrorParseError};
use weave_core::frame::{Deframer, FrameError, Header, Kind, Split, split};
use weave_core::limits::{
    HEADER_LEN, MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, MAX_SKIPPED_PAYLOAD,
    RESPONSE_FIXED_LEN, RESPONSE_HEAD_LEN,
};
use weave_core::request;
use weave_core::response::{ImageSize, ResponseError, ResponseHead};

/// Bounds of the router. All memory is taken when it is made.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients at once.
    pub connections: usize,
    /// Requests that wait, besides those that run.
    pub queue: usize,
    /// Workers.
    pub workers: usize,
    /// How long a worker may take for one image, up to the response's head.
    pub generation: Duration,
    /// How long a client may take no byte of an answer that is there for it.
    pub stall: Duration,
    /// How long running work may go on after [`Router::drain`].
    pub drain: Duration,
}

/// The first wait before a worker is started again; it doubles with every failure in a row.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// The longest wait before a worker is started again.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);

/// How many workers may die before one has begun with a request, until the request is refused. A
/// worker that can't load its model dies so every time.
const MAX_ATTEMPTS: u8 = 3;

/// A place in the table of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientId(pub usize);

/// A place in the table of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WorkerId(pub usize);

/// What the driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look at this client's input and output.
    Client(ClientId),
    /// Look at this worker's input and output.
    Worker(WorkerId),
    /// Start this worker, then report [`Router::worker_up`] or [`Router::worker_down`].
    Start(WorkerId),
    /// End this worker, whatever it does, then report [`Router::worker_down`].
    Kill(WorkerId),
}

/// What a client's socket should be given next.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientOutput<'a> {
    /// Nothing for now.
    Idle,
    /// These bytes; report with [`Router::client_wrote`].
    Bytes(&'a [u8]),
    /// At most `len` bytes that come from this worker; report with [`Router::relayed`].
    Relay {
        /// Where they come from.
        worker: WorkerId,
        /// How many are left.
        len: usize,
    },
    /// Close it and report [`Router::client_gone`].
    Close,
}

/// What to do with what a worker sends.
#[derive(Debug, PartialEq, Eq)]
pub enum WorkerInput<'a> {
    /// Read into this; report with [`Router::worker_received`].
    Buffer(&'a mut [u8]),
    /// It is relayed when this client can take it.
    Relay(ClientId),
    /// Read and drop at most so many bytes; report with [`Router::relayed`].
    Discard(usize),
    /// Nothing should come: a byte is a fault of the worker ([`Router::worker_spoke`]), the end of
    /// the stream is its death.
    Silence,
    /// Leave it in the socket.
    Hold,
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// It could not be started.
    NotStarted,
    /// A process ended with this exit code.
    Exited(i32),
    /// A process was ended by this signal.
    Killed(i32),
    /// A thread left its loop.
    Thread,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted => f.write_str("could not be started"),
            Self::Exited(code) => write!(f, "ended with exit code {code}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::Thread => f.write_str("ended"),
        }
    }
}

/// Why the router itself refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Busy { queue: usize },
    ShuttingDown,
    Timeout { limit: Duration },
    WorkerDied(Death),
    WorkerLied,
}

impl Refusal {
    const fn code(self) -> ErrorCode {
        match self {
            Self::Busy { .. } => ErrorCode::Busy,
            Self::ShuttingDown => ErrorCode::ShuttingDown,
            Self::Timeout { .. } => ErrorCode::Timeout,
            Self::WorkerDied(_) | Self::WorkerLied => ErrorCode::GpuError,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy { queue } => {
                write!(f, "the queue is full: {queue} requests wait, at most {queue} may; try again later")
            }
            Self::ShuttingDown => f.write_str("the server is shutting down; try again when it is back"),
            Self::Timeout { limit } => write!(
                f,
                "generation took longer than the server's limit of {} s; ask for fewer steps or a smaller image",
                limit.as_secs_f32()
            ),
            Self::WorkerDied(death) => {
                write!(f, "the worker {death} while it generated this image; it is restarted, try again")
            }
            Self::WorkerLied => f.write_str("the worker's answer made no sense; it is restarted, try again"),
        }
    }
}

/// The answer for one client too many: BUSY, for request 0. To be written once, then close.
#[must_use]
pub fn no_room_answer(connections: usize, out: &mut [u8; MAX_ERROR_FRAME]) -> &[u8] {
    let text = format_args!("all {connections} connections are taken; try again later");
    error::emit(0, ErrorCode::Busy, text, out).unwrap_or_default()
}

/// Room for a few errors, or for the head of a response.
const OUT_LEN: usize = 1024;

/// How far a client's connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nobody is here.
    Free,
    /// Requests may come.
    Open,
    /// The client has said its last; it still gets its answers.
    HalfClosed,
    /// The stream is lost: what is in the output goes out, then the connection is closed.
    Closing,
}

struct Client {
    stage: Stage,
    input: Deframer<MAX_REQUEST_FRAME>,
    out: heapless::Vec<u8, OUT_LEN>,
    /// Bytes of `out` that are written.
    sent: usize,
    /// The worker whose pixels follow `out`. Until they are through, `out` takes nothing new.
    relay: Option<WorkerId>,
    /// Jobs that are not answered yet.
    outstanding: usize,
    /// Since when output has been waiting without a byte taken.
    stalled_since: Option<Instant>,
    /// Named by an action that was not taken yet.
    noted: bool,
}

impl Client {
    const fn new() -> Self {
        Self {
            stage: Stage::Free,
            input: Deframer::new(MAX_SKIPPED_PAYLOAD),
            out: heapless::Vec::new(),
            sent: 0,
            relay: None,
            outstanding: 0,
            stalled_since: None,
            noted: false,
        }
    }

    /// Whether one more error frame has a place in the output, now.
    fn takes_error(&self) -> bool {
        self.relay.is_none() && self.out.capacity() - self.out.len() >= MAX_ERROR_FRAME
    }

    /// Puts an error into the output, for which [`takes_error`](Self::takes_error) was asked.
    fn push_error(&mut self, request_id: u64, code: ErrorCode, text: impl fmt::Display) {
        let mut frame = [0; MAX_ERROR_FRAME];
        let frame = error::emit(request_id, code, text, &mut frame).unwrap_or_default();
        self.push(frame);
    }

    fn push(&mut self, frame: &[u8]) {
        let fits = self.out.extend_from_slice(frame).is_ok();
        debug_assert!(fits, "room was asked for");
    }
}

/// A request on its way, in a slot of its own.
struct Job {
    state: JobState,
    /// Who waits for it; `None` once nobody does.
    client: Option<ClientId>,
    request_id: u64,
    width: u32,
    height: u32,
    /// Workers that were given it.
    attempts: u8,
    /// The request; once the job has failed, the error frame that answers it.
    frame: [u8; MAX_REQUEST_FRAME],
    /// Bytes of `frame` that count.
    len: usize,
}

impl Job {
    fn frame(&self) -> &[u8] {
        self.frame.get(..self.len).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JobState {
    Free,
    Queued,
    Running,
    /// `frame` is the answer and waits for room in the client's output.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// No process; it is started at this time, `None` once that was asked for.
    Down(Option<Instant>),
    Idle,
    Busy,
    /// Told to die; what it still says is dropped.
    Dying,
}

/// How far a busy worker has come with its answer.
#[derive(Clone, Copy, Debug)]
enum Progress {
    /// The header is being read.
    Header,
    /// The rest of a response's head, or of an error, is being read.
    Body(Header),
    /// The head is there and waits until the client's output is free; so many bytes follow it.
    Ready(usize),
    /// Pixels are on their way; so many bytes are left.
    Pixels(usize),
}

struct Worker {
    link: Link,
    job: Option<usize>,
    /// Bytes of the job's request that are written.
    sent: usize,
    progress: Progress,
    /// The beginning of the answer: the head of a response, or a whole error.
    answer: [u8; MAX_ERROR_FRAME],
    /// Bytes of `answer` that are read.
    have: usize,
    /// Bytes of `answer` that are to be read before it can be understood further.
    wanted: usize,
    /// When the worker has to be further than it is now.
    deadline: Instant,
    /// Deaths since the last image.
    failures: u32,
    noted: bool,
    /// An order to start or kill that was not taken yet.
    order: Option<Action>,
}

/// See the module's documentation.
pub struct Router {
    limits: Limits,
    clients: Box<[Client]>,
    jobs: Box<[Job]>,
    /// Jobs in state `Queued`, the oldest first. Never longer than the table of jobs.
    queue: VecDeque<usize>,
    workers: Box<[Worker]>,
    /// Clients and workers that an action has to name; each at most once.
    noted: VecDeque<Action>,
    draining: Option<Instant>,
    /// Not later than the next deadline.
    wake_at: Option<Instant>,
    answered: u64,
}

impl Router {
    /// A router whose workers are all to be started. `now` is the clock's first reading.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        let client = || Client::new();
        let job = || Job {
            state: JobState::Free,
            client: None,
            request_id: 0,
            width: 0,
            height: 0,
            attempts: 0,
            frame: [0; MAX_REQUEST_FRAME],
            len: 0,
        };
        let worker = || Worker {
            link: Link::Down(Some(now)),
            job: None,
            sent: 0,
            progress: Progress::Header,
            answer: [0; MAX_ERROR_FRAME],
            have: 0,
            wanted: HEADER_LEN,
            deadline: now,
            failures: 0,
            noted: false,
            order: None,
        };
        let jobs = limits.queue + limits.workers;
        Self {
            limits,
            clients: std::iter::repeat_with(client).take(limits.connections).collect(),
            jobs: std::iter::repeat_with(job).take(jobs).collect(),
            queue: VecDeque::with_capacity(jobs),
            workers: std::iter::repeat_with(worker).take(limits.workers).collect(),
            noted: VecDeque::with_capacity(limits.connections + 2 * limits.workers),
            draining: None,
            wake_at: Some(now),
            answered: 0,
        }
    }

    // ---------------------------------------------------------------- getters

    /// When [`tick`](Self::tick) has something to do at the latest.
    #[must_use]
    pub const fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    /// After [`drain`](Self::drain): whether every answer has left.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.draining.is_some()
            && self.clients.iter().all(|c| c.stage == Stage::Free || (c.outstanding == 0 && c.out.is_empty()))
    }

    /// Requests that were answered since the start, in whatever way.
    #[must_use]
    pub const fn answered(&self) -> u64 {
        self.answered
    }

    // ---------------------------------------------------------------- commands

    /// Takes no new requests, refuses those that wait, lets those that run finish until the drain
    /// limit has passed.
    pub fn drain(&mut self, now: Instant) {
        if self.draining.is_some() {
            return;
        }
        let deadline = now + self.limits.drain;
        self.draining = Some(deadline);
        self.wake_by(deadline);
        while let Some(job) = self.queue.pop_front() {
            self.fail(job, Refusal::ShuttingDown, now);
        }
    }

    /// Refuses what runs, too, and ends the workers.
    pub fn abort(&mut self, now: Instant) {
        self.drain(now);
        for id in 0..self.workers.len() {
            if matches!(self.workers[id].link, Link::Idle | Link::Busy) {
                self.condemn(WorkerId(id), Refusal::ShuttingDown, now);
            }
        }
    }

    // ---------------------------------------------------------------- clients

    /// Somebody connected. `None`: the table is full ([`no_room_answer`]).
    pub fn accept(&mut self) -> Option<ClientId> {
        let id = self.clients.iter().position(|client| client.stage == Stage::Free)?;
        let client = &mut self.clients[id];
        client.stage = Stage::Open;
        client.input.reset();
        client.out.clear();
        (client.sent, client.relay, client.outstanding, client.stalled_since) = (0, None, 0, None);
        Some(ClientId(id))
    }

    /// Where to read to; empty when nothing should be read now.
    pub fn client_spare(&mut self, id: ClientId) -> &mut [u8] {
        let client = &mut self.clients[id.0];
        if client.stage == Stage::Open && client.takes_error() { client.input.spare() } else { &mut [] }
    }

    /// `n` bytes were read into [`client_spare`](Self::client_spare).
    pub fn client_received(&mut self, id: ClientId, n: usize, now: Instant) {
        self.clients[id.0].input.filled(n);
        self.take_requests(id, now);
    }

    /// The client will send no more; it still gets its answers.
    pub fn client_eof(&mut self, id: ClientId) {
        let client = &mut self.clients[id.0];
        if client.stage == Stage::Open {
            client.stage = Stage::HalfClosed;
            self.note_client(id);
        }
    }

    /// The client's connection is no more. What waits for it is dropped; what runs, runs to its end.
    pub fn client_gone(&mut self, id: ClientId) {
        self.cut(id);
        self.clients[id.0].stage = Stage::Free;
    }

    /// What to write next.
    pub fn client_output(&mut self, id: ClientId, now: Instant) -> ClientOutput<'_> {
        self.fill_output(id);
        if !self.clients[id.0].out.is_empty() && self.clients[id.0].stalled_since.is_none() {
            self.clients[id.0].stalled_since = Some(now);
            self.wake_by(now + self.limits.stall);
        }
        let client = &self.clients[id.0];
        if !client.out.is_empty() {
            return ClientOutput::Bytes(client.out.get(client.sent..).unwrap_or_default());
        }
        if let Some(worker) = client.relay
            && let Progress::Pixels(len) = self.workers[worker.0].progress
        {
            return ClientOutput::Relay { worker, len };
        }
        match client.stage {
            Stage::Closing => ClientOutput::Close,
            Stage::HalfClosed if client.outstanding == 0 => ClientOutput::Close,
            _ => ClientOutput::Idle,
        }
    }

    /// The client's socket took `n` of the bytes.
    pub fn client_wrote(&mut self, id: ClientId, n: usize, now: Instant) {
        let client = &mut self.clients[id.0];
        client.sent += n;
        if client.sent >= client.out.len() {
            client.out.clear();
            client.sent = 0;
        }
        self.moved(id, now);
        // Input that was held back for want of room can go on.
        self.take_requests(id, now);
    }

    /// So many of the worker's bytes went to the client, or were dropped for want of one.
    pub fn relayed(&mut self, id: WorkerId, n: usize, now: Instant) {
        let worker = &mut self.workers[id.0];
        let Progress::Pixels(left) = worker.progress else { return };
        let left = left.saturating_sub(n);
        worker.progress = Progress::Pixels(left);
        let client = worker.job.and_then(|job| self.jobs[job].client);
        if left > 0 {
            if let Some(client) = client {
                self.moved(client, now);
            }
            return;
        }
        self.workers[id.0].failures = 0;
        if let Some(client) = client {
            self.clients[client.0].relay = None;
            self.moved(client, now);
        }
        self.end_task(id, now);
        if let Some(client) = client {
            self.take_requests(client, now);
        }
    }

    // ---------------------------------------------------------------- workers

    /// The worker can be talked to.
    pub fn worker_up(&mut self, id: WorkerId, now: Instant) {
        let worker = &mut self.workers[id.0];
        worker.link = Link::Idle;
        self.note_worker(id);
        self.dispatch(now);
    }

    /// The worker is gone, whether it was told to die or not. `request_unread`: it left in its
    /// socket some of what was written to it, so it can't have begun with the request.
    pub fn worker_down(&mut self, id: WorkerId, death: Death, request_unread: bool, now: Instant) {
        let worker = &mut self.workers[id.0];
        match worker.job {
            // It died before it had the whole request: another one can have it.
            Some(job)
                if (request_unread || worker.sent < self.jobs[job].len)
                    && self.jobs[job].attempts < MAX_ATTEMPTS =>
            {
                worker.job = None;
                if self.jobs[job].client.is_some() && self.draining.is_none() {
                    self.jobs[job].state = JobState::Queued;
                    self.queue.push_front(job);
                } else {
                    self.fail(job, Refusal::ShuttingDown, now);
                }
            }
            _ => self.lose_job(id, Refusal::WorkerDied(death), now),
        }
        let worker = &mut self.workers[id.0];
        let back_off = FIRST_BACK_OFF.saturating_mul(1 << worker.failures.min(16)).min(LONGEST_BACK_OFF);
        worker.failures = worker.failures.saturating_add(1);
        // The first death after an image was made is no pattern yet: start at once.
        let at = if worker.failures > 1 { now + back_off } else { now };
        worker.link = Link::Down(Some(at));
        worker.order = None;
        self.wake_by(at);
    }

    /// Request bytes to write; empty when there are none.
    #[must_use]
    pub fn worker_output(&self, id: WorkerId) -> &[u8] {
        let worker = &self.workers[id.0];
        match (worker.link, worker.job) {
            (Link::Busy, Some(job)) => self.jobs[job].frame().get(worker.sent..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// The worker's socket took `n` of the bytes.
    pub fn worker_wrote(&mut self, id: WorkerId, n: usize) {
        self.workers[id.0].sent += n;
    }

    /// What to do with what the worker sends.
    pub fn worker_input(&mut self, id: WorkerId) -> WorkerInput<'_> {
        let worker = &mut self.workers[id.0];
        match (worker.link, worker.progress) {
            (Link::Down(_), _) | (Link::Busy, Progress::Ready(_)) => WorkerInput::Hold,
            (Link::Idle | Link::Dying, _) => WorkerInput::Silence,
            (Link::Busy, Progress::Header | Progress::Body(_)) => {
                WorkerInput::Buffer(worker.answer.get_mut(worker.have..worker.wanted).unwrap_or_default())
            }
            (Link::Busy, Progress::Pixels(len)) => match worker.job.and_then(|job| self.jobs[job].client) {
                Some(client) => WorkerInput::Relay(client),
                None => WorkerInput::Discard(len),
            },
        }
    }

    /// `n` bytes were read into [`WorkerInput::Buffer`].
    pub fn worker_received(&mut self, id: WorkerId, n: usize, now: Instant) {
        let worker = &mut self.workers[id.0];
        worker.have += n;
        if worker.have < worker.wanted {
            return;
        }
        if let Err(what) = self.understand(id, now) {
            log::error!("worker {}: {what}; ending it", id.0);
            self.condemn(id, Refusal::WorkerLied, now);
        }
    }

    /// The worker sent something when nothing was asked of it.
    pub fn worker_spoke(&mut self, id: WorkerId, now: Instant) {
        if self.workers[id.0].link != Link::Dying {
            log::error!("worker {}: sent bytes that nothing asked for; ending it", id.0);
            self.condemn(id, Refusal::WorkerLied, now);
        }
    }

    // ---------------------------------------------------------------- time

    /// Looks at every deadline that [`wake_at`](Self::wake_at) announced.
    pub fn tick(&mut self, now: Instant) {
        if self.wake_at.is_none_or(|at| at > now) {
            return;
        }
        self.wake_at = None;
        for id in (0..self.workers.len()).map(WorkerId) {
            self.tick_worker(id, now);
        }
        for id in (0..self.clients.len()).map(ClientId) {
            let Some(since) = self.clients[id.0].stalled_since else { continue };
            let deadline = since + self.limits.stall;
            if deadline <= now {
                log::warn!("client {}: took nothing for {:?}; closing", id.0, self.limits.stall);
                self.cut(id);
            } else {
                self.wake_by(deadline);
            }
        }
        match self.draining {
            Some(deadline) if deadline <= now => self.abort(now),
            Some(deadline) => self.wake_by(deadline),
            None => {}
        }
    }

    /// What the driver has to do next; `None`: wait for something to happen.
    pub fn next_action(&mut self) -> Option<Action> {
        let action = self.noted.pop_front()?;
        match action {
            Action::Client(id) => self.clients[id.0].noted = false,
            Action::Worker(id) => {
                let worker = &mut self.workers[id.0];
                worker.noted = false;
                return Some(worker.order.take().unwrap_or(action));
            }
            Action::Start(_) | Action::Kill(_) => {}
        }
        Some(action)
    }

    // ---------------------------------------------------------------- inside

    /// Takes the requests that have arrived, as long as an immediate answer would have a place.
    fn take_requests(&mut self, id: ClientId, now: Instant) {
        let client = &mut self.clients[id.0];
        while matches!(client.stage, Stage::Open | Stage::HalfClosed) && client.takes_error() {
            let frame = match client.input.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    self.give_up(id, error);
                    break;
                }
            };
            let request_id = frame.request_id();
            let request = match request::parse(&frame) {
                Ok(request) => request,
                Err(error) => {
                    self.answered += 1;
                    client.push_error(request_id, error.code(), error);
                    continue;
                }
            };
            let free = self.jobs.iter().position(|job| job.state == JobState::Free);
            let refusal = match free {
                _ if self.draining.is_some() => Refusal::ShuttingDown,
                Some(free) if self.queue.len() < self.limits.queue => {
                    let job = &mut self.jobs[free];
                    job.len = request.emit(&mut job.frame).map_or(0, <[u8]>::len);
                    (job.state, job.client, job.request_id) = (JobState::Queued, Some(id), request_id);
                    (job.width, job.height) = (request.params.width, request.params.height);
                    job.attempts = 0;
                    client.outstanding += 1;
                    self.queue.push_back(free);
                    continue;
                }
                _ => Refusal::Busy { queue: self.limits.queue },
            };
            self.answered += 1;
            client.push_error(request_id, refusal.code(), refusal);
        }
        self.dispatch(now);
        self.note_client(id);
    }

    /// The stream of this client can't be followed: answer, flush, close.
    fn give_up(&mut self, id: ClientId, error: FrameError) {
        self.forget_jobs(id);
        let client = &mut self.clients[id.0];
        client.push_error(0, error.code(), error);
        client.stage = Stage::Closing;
    }

    /// Closes a client's connection at once, in the middle of whatever is going out.
    fn cut(&mut self, id: ClientId) {
        self.forget_jobs(id);
        let client = &mut self.clients[id.0];
        client.stage = Stage::Closing;
        client.out.clear();
        client.sent = 0;
        client.stalled_since = None;
        if let Some(worker) = client.relay.take() {
            self.note_worker(worker);
        }
        self.note_client(id);
    }

    /// Nobody waits for this client's jobs any more.
    fn forget_jobs(&mut self, id: ClientId) {
        for index in 0..self.jobs.len() {
            let job = &mut self.jobs[index];
            if job.client != Some(id) {
                continue;
            }
            match job.state {
                JobState::Running => {
                    job.client = None;
                    self.clients[id.0].outstanding -= 1;
                }
                JobState::Queued => {
                    self.queue.retain(|queued| *queued != index);
                    self.free_job(index);
                }
                JobState::Failed | JobState::Free => self.free_job(index),
            }
        }
        for id in (0..self.workers.len()).map(WorkerId) {
            let worker = &mut self.workers[id.0];
            if let (Progress::Ready(len), Some(job)) = (worker.progress, worker.job)
                && self.jobs[job].client.is_none()
            {
                worker.progress = Progress::Pixels(len);
                self.note_worker(id);
            }
        }
    }

    /// Moves into the client's output what has been waiting for a place there.
    fn fill_output(&mut self, id: ClientId) {
        let client = &mut self.clients[id.0];
        if client.outstanding == 0 || client.stage == Stage::Closing {
            return;
        }
        for index in 0..self.jobs.len() {
            let job = &self.jobs[index];
            if job.client == Some(id) && job.state == JobState::Failed && self.clients[id.0].takes_error() {
                self.clients[id.0].push(job.frame());
                self.free_job(index);
            }
        }
        let client = &mut self.clients[id.0];
        if client.relay.is_some() || client.out.capacity() - client.out.len() < RESPONSE_HEAD_LEN {
            return;
        }
        for (index, worker) in self.workers.iter_mut().enumerate() {
            if let (Progress::Ready(len), Some(job)) = (worker.progress, worker.job)
                && self.jobs[job].client == Some(id)
            {
                client.push(worker.answer.get(..RESPONSE_HEAD_LEN).unwrap_or_default());
                client.relay = Some(WorkerId(index));
                worker.progress = Progress::Pixels(len);
                break;
            }
        }
    }

    /// The client's output moved: it is not stalled.
    fn moved(&mut self, id: ClientId, now: Instant) {
        let client = &mut self.clients[id.0];
        client.stalled_since = (!client.out.is_empty()).then_some(now);
        if let Some(worker) = client.relay {
            self.workers[worker.0].deadline = now + self.limits.stall;
        }
    }

    /// Gives waiting jobs to idle workers.
    fn dispatch(&mut self, now: Instant) {
        for id in (0..self.workers.len()).map(WorkerId) {
            if self.workers[id.0].link != Link::Idle {
                continue;
            }
            let Some(job) = self.queue.pop_front() else { return };
            self.jobs[job].state = JobState::Running;
            self.jobs[job].attempts += 1;
            let worker = &mut self.workers[id.0];
            (worker.link, worker.job, worker.sent) = (Link::Busy, Some(job), 0);
            (worker.progress, worker.have, worker.wanted) = (Progress::Header, 0, HEADER_LEN);
            worker.deadline = now + self.limits.generation;
            self.wake_by(now + self.limits.generation);
            self.note_worker(id);
        }
    }

    /// Reads what is in `answer`, which is as long as was wanted. Says what is wrong with it.
    fn understand(&mut self, id: WorkerId, now: Instant) -> Result<(), Lie> {
        let worker = &mut self.workers[id.0];
        let Some(index) = worker.job else { return Err(Lie::Unasked) };
        let job = &mut self.jobs[index];
        let answer = worker.answer.get(..worker.have).unwrap_or_default();
        match worker.progress {
            Progress::Header => {
                let header = answer.first_chunk().ok_or(Lie::Unasked)?;
                let header = Header::parse(header, MAX_RESPONSE_PAYLOAD).map_err(Lie::Frame)?;
                let payload_len = usize::try_from(header.payload_len()).unwrap_or(usize::MAX);
                worker.wanted = match header.kind() {
                    Kind::Response => RESPONSE_HEAD_LEN,
                    Kind::Error if payload_len <= MAX_ERROR_FRAME - HEADER_LEN => HEADER_LEN + payload_len,
                    _ => return Err(Lie::Kind(header)),
                };
                worker.progress = Progress::Body(header);
                // An error without a payload is wrong, and all there: look at it right away.
                if worker.wanted == HEADER_LEN { self.understand(id, now) } else { Ok(()) }
            }
            Progress::Body(header) if header.kind() == Kind::Response => {
                let fields = answer.last_chunk::<RESPONSE_FIXED_LEN>().ok_or(Lie::Unasked)?;
                let (head, trailing) = ResponseHead::parse(header, fields).map_err(Lie::Response)?;
                if head.request_id != job.request_id {
                    return Err(Lie::RequestId(head.request_id));
                }
                if (head.image.width(), head.image.height()) != (job.width, job.height) {
                    return Err(Lie::Size(head.image));
                }
                let len = head.image.data_len().saturating_add(trailing);
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                worker.deadline = now + self.limits.stall;
                self.wake_by(now + self.limits.stall);
                let worker = &mut self.workers[id.0];
                match self.jobs[index].client {
                    Some(client) => {
                        worker.progress = Progress::Ready(len);
                        self.note_client(client);
                    }
                    None => worker.progress = Progress::Pixels(len),
                }
                Ok(())
            }
            Progress::Body(_) => {
                let Ok(Split::Frame(frame, _)) = split(answer, MAX_RESPONSE_PAYLOAD) else {
                    return Err(Lie::Unasked);
                };
                let error = error::parse(&frame).map_err(Lie::Error)?;
                if error.request_id != job.request_id {
                    return Err(Lie::RequestId(error.request_id));
                }
                job.len = answer.len();
                if let Some(place) = job.frame.get_mut(..answer.len()) {
                    place.copy_from_slice(answer);
                }
                self.settle(index);
                self.workers[id.0].failures = 0;
                self.end_task(id, now);
                Ok(())
            }
            Progress::Ready(_) | Progress::Pixels(_) => Err(Lie::Unasked),
        }
    }

    fn tick_worker(&mut self, id: WorkerId, now: Instant) {
        let worker = &mut self.workers[id.0];
        match (worker.link, worker.progress) {
            (Link::Down(Some(_)), _) if self.draining.is_some() => {}
            (Link::Down(Some(at)), _) if at <= now => {
                worker.link = Link::Down(None);
                worker.order = Some(Action::Start(id));
                self.note_worker(id);
            }
            (Link::Down(Some(at)), _) => self.wake_by(at),
            (Link::Busy, Progress::Header | Progress::Body(_)) if worker.deadline <= now => {
                log::error!("worker {}: no answer within {:?}; ending it", id.0, self.limits.generation);
                self.condemn(id, Refusal::Timeout { limit: self.limits.generation }, now);
            }
            (Link::Busy, Progress::Pixels(_)) if worker.deadline <= now => {
                let client = worker.job.and_then(|job| self.jobs[job].client);
                match client {
                    // The client is given up first; if the worker then still sends nothing, it is to blame.
                    Some(client) => {
                        log::warn!(
                            "client {}: an image stood still for {:?}; closing",
                            client.0,
                            self.limits.stall
                        );
                        worker.deadline = now + self.limits.stall;
                        self.wake_by(now + self.limits.stall);
                        self.cut(client);
                    }
                    None => {
                        log::error!("worker {}: its image stood still; ending it", id.0);
                        self.condemn(id, Refusal::WorkerLied, now);
                    }
                }
            }
            // Waiting for a client that doesn't take what comes first: that one's own deadline runs.
            (Link::Busy, Progress::Ready(_)) => {}
            (Link::Busy, _) => {
                let deadline = worker.deadline;
                self.wake_by(deadline);
            }
            (Link::Down(None) | Link::Idle | Link::Dying, _) => {}
        }
    }

    /// Ends a worker that can't be left alive, and the job that it has with this refusal.
    fn condemn(&mut self, id: WorkerId, refusal: Refusal, now: Instant) {
        self.lose_job(id, refusal, now);
        let worker = &mut self.workers[id.0];
        worker.link = Link::Dying;
        worker.order = Some(Action::Kill(id));
        self.note_worker(id);
    }

    /// The worker won't finish what it has.
    fn lose_job(&mut self, id: WorkerId, refusal: Refusal, now: Instant) {
        let worker = &mut self.workers[id.0];
        let Some(job) = worker.job.take() else { return };
        let client = self.jobs[job].client;
        let in_transfer = client.filter(|client| self.clients[client.0].relay == Some(id));
        if let Some(client) = in_transfer {
            // Half a frame is out: only closing tells the client so.
            self.clients[client.0].relay = None;
            self.cut(client);
            self.jobs[job].client = None;
        }
        self.fail(job, refusal, now);
    }

    /// Turns a job into the error that answers it.
    fn fail(&mut self, index: usize, refusal: Refusal, now: Instant) {
        let job = &mut self.jobs[index];
        job.len = error::emit(job.request_id, refusal.code(), refusal, &mut job.frame).map_or(0, <[u8]>::len);
        self.settle(index);
        self.dispatch(now);
    }

    /// A job's `frame` is now an error: it goes to the client, if there still is one.
    fn settle(&mut self, index: usize) {
        match self.jobs[index].client {
            Some(client) => {
                self.jobs[index].state = JobState::Failed;
                self.note_client(client);
            }
            None => self.free_job(index),
        }
    }

    /// The worker has said all of its answer and can have the next job.
    fn end_task(&mut self, id: WorkerId, now: Instant) {
        let worker = &mut self.workers[id.0];
        worker.link = Link::Idle;
        worker.progress = Progress::Header;
        if let Some(job) = worker.job.take()
            && self.jobs[job].state == JobState::Running
        {
            self.free_job(job);
        }
        self.note_worker(id);
        self.dispatch(now);
    }

    fn free_job(&mut self, index: usize) {
        let job = &mut self.jobs[index];
        if job.state == JobState::Free {
            return;
        }
        job.state = JobState::Free;
        if let Some(client) = job.client.take() {
            self.clients[client.0].outstanding -= 1;
            self.note_client(client);
        }
        self.answered += 1;
    }

    fn wake_by(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn note_client(&mut self, id: ClientId) {
        if !std::mem::replace(&mut self.clients[id.0].noted, true) {
            self.noted.push_back(Action::Client(id));
        }
    }

    fn note_worker(&mut self, id: WorkerId) {
        if !std::mem::replace(&mut self.workers[id.0].noted, true) {
            self.noted.push_back(Action::Worker(id));
        }
    }
}

/// How a worker broke the protocol.
#[derive(Clone, Copy, Debug)]
enum Lie {
    Unasked,
    Frame(FrameError),
    Kind(Header),
    Response(ResponseError),
    Error(ErrorParseError),
    RequestId(u64),
    Size(ImageSize),
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unasked => f.write_str("sent what nothing asked for"),
            Self::Frame(error) => error.fmt(f),
            Self::Kind(header) => {
                write!(f, "answered with {:?} of {} bytes", header.kind(), header.payload_len())
            }
            Self::Response(error) => error.fmt(f),
            Self::Error(error) => error.fmt(f),
            Self::RequestId(id) => write!(f, "answered request {id}, which it was not given"),
            Self::Size(size) => {
                write!(f, "made {}×{} pixels, not what was asked", size.width(), size.height())
            }
        }
    }
}
