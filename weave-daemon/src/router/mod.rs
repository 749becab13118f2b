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
//! buffer a client. It is reserved at the start, and what was never needed is never touched. An answer never waits for memory: a job's own slot holds the error that ends it
//! until the client takes it, and input of a client whose output is full is not read.
//!
//! Nobody can hold up the others for long: clients with waiting requests are served in turns, each
//! has a bounded number of them, and who takes an image too slowly while others wait is cut off.

mod jobs;
mod suspects;

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use weave_core::error::{self, ErrorCode, ErrorParseError};
use weave_core::frame::{Deframer, FrameError, Header, Kind, Split, split};
use weave_core::limits::{
    HEADER_LEN, MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, MAX_SKIPPED_PAYLOAD,
    RESPONSE_FIXED_LEN, RESPONSE_HEAD_LEN,
};
use weave_core::request::{self, Params, Prompts, Request};
use weave_core::response::{ImageSize, ResponseError, ResponseHead};

use crate::causes::{Cut, Death, Kill, Outcome, Reason};
use crate::counters::Counters;
use jobs::{Job, JobState, Jobs};
use suspects::Suspects;

/// Bounds of the router. All memory is reserved when it is made.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients at once.
    pub connections: usize,
    /// Requests of one client that are not answered yet.
    pub in_flight: usize,
    /// Requests that wait, besides those that run.
    pub queue: usize,
    /// Workers.
    pub workers: usize,
    /// How long a client may take to complete a frame that it has begun.
    pub frame: Duration,
    /// How long a client may stay that wants nothing.
    pub idle: Duration,
    /// How long a request may wait for a worker.
    pub queue_wait: Duration,
    /// How long a worker may take for one image, up to the response's head.
    pub generation: Duration,
    /// How long a client may take less than [`LEAST_PROGRESS`] of an answer that is there for it.
    pub stall: Duration,
    /// The same while other clients' requests wait.
    pub busy_stall: Duration,
    /// How long running work may go on after [`Router::drain`].
    pub drain: Duration,
    /// How long a worker may have nothing to do until it is ended, to give its memory back; the
    /// next request starts it again. `None`: it stays.
    pub worker_idle: Option<Duration>,
    /// Whether a worker has to make a small image before it is given a request.
    pub warm_up: bool,
    /// What becomes of a running request whose client has gone.
    pub abandoned: Abandoned,
    /// How long a worker may take to come free of a request that it is to give up. Zero: it is ended
    /// without being asked.
    pub cancel: Duration,
}

/// What becomes of a running request whose client has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandoned {
    /// It runs to its end, and the image is dropped: the worker keeps its model in memory.
    Finish,
    /// Its worker gives it up, and is ended if it doesn't within [`Limits::cancel`].
    Cancel,
}

/// What a client has to take of an image within the stall limit, in bytes.
pub const LEAST_PROGRESS: usize = 64 * 1024;

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
    /// Tell this worker to give up the nth request that it was given, counted from 1. It still answers,
    /// and until it has, it is given no other; it may have answered by now.
    Cancel(WorkerId, u64),
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

/// Why the router itself refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Busy { queue: usize },
    ShuttingDown,
    Timeout { limit: Duration },
    TooManyInFlight { limit: usize },
    QueueWait { limit: Duration },
    NoWorker(Death),
    KilledBefore,
    WorkerDied(Death),
    WorkerLied,
}

impl Refusal {
    const fn code(self) -> ErrorCode {
        match self {
            Self::Busy { .. } | Self::TooManyInFlight { .. } => ErrorCode::Busy,
            Self::ShuttingDown => ErrorCode::ShuttingDown,
            Self::Timeout { .. } | Self::QueueWait { .. } => ErrorCode::Timeout,
            Self::NoWorker(_) | Self::KilledBefore | Self::WorkerDied(_) | Self::WorkerLied => {
                ErrorCode::GpuError
            }
        }
    }
}

impl Refusal {
    const fn reason(self) -> Reason {
        match self {
            Self::Busy { .. } => Reason::QueueFull,
            Self::TooManyInFlight { .. } => Reason::InFlight,
            Self::ShuttingDown => Reason::ShuttingDown,
            Self::Timeout { .. } => Reason::TooSlow,
            Self::QueueWait { .. } => Reason::QueueWait,
            Self::NoWorker(_) => Reason::NoWorker,
            Self::KilledBefore => Reason::Quarantined,
            Self::WorkerDied(_) => Reason::WorkerDied,
            Self::WorkerLied => Reason::WorkerViolation,
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
            Self::TooManyInFlight { limit } => {
                write!(f, "{limit} requests of this connection are not answered yet, at most {limit} may be")
            }
            Self::QueueWait { limit } => write!(
                f,
                "no worker was free within the server's limit of {} s; try again later",
                limit.as_secs_f32()
            ),
            Self::NoWorker(death) => write!(
                f,
                "the worker {death} before it could make an image, {MAX_ATTEMPTS} times or more in a row; tell the \
                 operator to look at the server's log"
            ),
            Self::KilledBefore => f.write_str(
                "this very request ended the worker twice and is refused for an hour; ask for another size or prompt",
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

/// What a worker has to make before it is given a request: enough to have all of the model in place.
const WARM_UP: Request<'static> = Request {
    request_id: 0,
    params: Params { width: 64, height: 64, steps: 1, cfg_scale: 1.0, seed: 1 },
    prompts: Prompts::same("warm-up"),
};
const WARM_UP_LEN: usize = 128;

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

/// Who a client is, in the log.
#[derive(Clone, Copy, Debug)]
struct Name {
    /// Counts from 1 on, over all connections.
    connection: u64,
    uid: Option<u32>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.uid {
            Some(uid) => write!(f, "connection {} (uid {uid})", self.connection),
            None => write!(f, "connection {}", self.connection),
        }
    }
}

struct Client {
    name: Name,
    stage: Stage,
    input: Deframer<MAX_REQUEST_FRAME>,
    out: heapless::Vec<u8, OUT_LEN>,
    /// Bytes of `out` that are written.
    sent: usize,
    /// The worker whose pixels follow `out`. Until they are through, `out` takes nothing new.
    relay: Option<WorkerId>,
    /// Jobs that are not answered yet.
    outstanding: usize,
    /// Since when output has been waiting with less than [`LEAST_PROGRESS`] taken.
    stalled_since: Option<Instant>,
    /// Bytes taken since then.
    progress: usize,
    /// Since when the frame that is being read has been incomplete.
    frame_since: Option<Instant>,
    /// When it last wanted something, or got it.
    active_at: Option<Instant>,
    /// Named by an action that was not taken yet.
    noted: bool,
}

impl Client {
    const fn new() -> Self {
        Self {
            name: Name { connection: 0, uid: None },
            stage: Stage::Free,
            input: Deframer::new(MAX_SKIPPED_PAYLOAD),
            out: heapless::Vec::new(),
            sent: 0,
            relay: None,
            outstanding: 0,
            stalled_since: None,
            progress: 0,
            frame_since: None,
            active_at: None,
            noted: false,
        }
    }

    /// Whether it stays and has all that it asked for.
    fn is_idle(&self) -> bool {
        self.stage != Stage::Closing
            && self.outstanding == 0
            && self.out.is_empty()
            && self.frame_since.is_none()
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// No process; it is started at this time, `None` once that was asked for.
    Down(Option<Instant>),
    /// No process, and none is needed until a request waits.
    Parked,
    /// Nothing to do since then.
    Idle(Instant),
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

/// What a busy worker was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// A small image that nobody waits for.
    WarmUp,
    /// A client's request.
    Job(usize),
    /// A request that it was told to give up, and for what reason. Whatever it answers goes nowhere.
    Cancelled { request_id: u64, width: u32, height: u32, why: Kill },
}

/// What a worker does after its death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Afterwards {
    /// It failed, and is started again after a while.
    BackOff,
    /// It was ended for reasons of ours, and is started again at once.
    Restart,
    /// It is started when it is needed.
    Park,
}

struct Worker {
    link: Link,
    task: Option<Task>,
    /// Bytes of the request that are written.
    sent: usize,
    progress: Progress,
    /// The beginning of the answer: the head of a response, or a whole error.
    answer: [u8; MAX_ERROR_FRAME],
    /// Bytes of `answer` that are read.
    have: usize,
    /// Bytes of `answer` that are to be read before it can be understood further.
    wanted: usize,
    /// Tasks that it was given since it came up.
    given: u64,
    /// When it was given its task, or told to give it up.
    given_at: Instant,
    /// When the worker has to be further than it is now.
    deadline: Instant,
    /// Deaths since the last image.
    failures: u32,
    last_death: Death,
    afterwards: Afterwards,
    noted: bool,
    /// An order that was not taken yet.
    order: Option<Action>,
}

/// See the module's documentation.
pub struct Router {
    limits: Limits,
    /// As many as there ever were at once, in memory that is reserved for all that may be.
    clients: Vec<Client>,
    /// Places in that table where nobody is.
    free_clients: Vec<ClientId>,
    jobs: Jobs,
    suspects: Suspects,
    /// The request that each new worker has to answer, if any.
    warm_up: heapless::Vec<u8, WARM_UP_LEN>,
    workers: Box<[Worker]>,
    /// Clients and workers that an action has to name; each at most once.
    noted: VecDeque<Action>,
    draining: Option<Instant>,
    /// Not later than the next deadline.
    wake_at: Option<Instant>,
    counters: Counters,
}

impl Router {
    /// A router whose workers are all to be started. `now` is the clock's first reading.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        let worker = || Worker {
            link: Link::Down(Some(now)),
            task: None,
            sent: 0,
            progress: Progress::Header,
            answer: [0; MAX_ERROR_FRAME],
            have: 0,
            wanted: HEADER_LEN,
            given: 0,
            given_at: now,
            deadline: now,
            failures: 0,
            last_death: Death::NotStarted,
            afterwards: Afterwards::BackOff,
            noted: false,
            order: None,
        };
        let mut warm_up = [0; MAX_REQUEST_FRAME];
        let warm_up: &[u8] = match limits.warm_up {
            true => WARM_UP.emit(&mut warm_up).unwrap_or_default(),
            false => &[],
        };
        Self {
            limits,
            free_clients: Vec::with_capacity(limits.connections),
            clients: Vec::with_capacity(limits.connections),
            jobs: Jobs::new(limits.queue + limits.workers, limits.connections),
            suspects: Suspects::new(),
            warm_up: heapless::Vec::from_slice(warm_up).unwrap_or_default(),
            workers: std::iter::repeat_with(worker).take(limits.workers).collect(),
            noted: VecDeque::with_capacity(limits.connections + 2 * limits.workers),
            draining: None,
            wake_at: Some(now),
            counters: Counters::default(),
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
        self.counters.requests()
    }

    /// What has happened so far.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections that are not closed.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.len() - self.free_clients.len()
    }

    /// How long the request that waits longest has been waiting.
    #[must_use]
    pub fn oldest_wait(&self, now: Instant) -> Duration {
        self.jobs.oldest().map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Requests that wait for a worker.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.jobs.queued_len()
    }

    /// Workers that have a request.
    #[must_use]
    pub fn running(&self) -> usize {
        self.workers.iter().filter(|worker| matches!(worker.task, Some(Task::Job(_)))).count()
    }

    /// Workers that can be talked to.
    #[must_use]
    pub fn workers_up(&self) -> usize {
        self.workers.iter().filter(|worker| matches!(worker.link, Link::Idle(_) | Link::Busy)).count()
    }

    /// Whether a request that came now would get a worker in its turn. Not while all of them are down,
    /// or still have to make the image that shows that they can.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let serves = |worker: &Worker| match worker.link {
            Link::Idle(_) | Link::Parked => true,
            Link::Busy => worker.task != Some(Task::WarmUp),
            Link::Down(_) | Link::Dying => false,
        };
        self.draining.is_none() && self.workers.iter().any(serves)
    }

    // ---------------------------------------------------------------- commands

    /// Takes other limits, besides those that memory was taken for and those that workers start with.
    /// A worker's task keeps the deadline that it was given.
    pub fn set_limits(&mut self, limits: Limits, now: Instant) {
        let Limits { connections, queue, workers, warm_up, .. } = self.limits;
        self.limits = Limits { connections, queue, workers, warm_up, ..limits };
        self.wake_by(now);
    }

    /// Takes no new requests, refuses those that wait, lets those that run finish until the drain
    /// limit has passed.
    pub fn drain(&mut self, now: Instant) {
        if self.draining.is_some() {
            return;
        }
        let deadline = now + self.limits.drain;
        self.draining = Some(deadline);
        self.wake_by(deadline);
        while let Some(job) = self.jobs.take_any() {
            self.fail(job, Refusal::ShuttingDown, now);
        }
    }

    /// Refuses what runs, too, and ends the workers.
    pub fn abort(&mut self, now: Instant) {
        self.drain(now);
        for id in 0..self.workers.len() {
            if matches!(self.workers[id].link, Link::Idle(_) | Link::Busy) {
                self.condemn(WorkerId(id), Refusal::ShuttingDown, now);
            }
        }
    }

    // ---------------------------------------------------------------- clients

    /// Somebody connected. `None`: the table is full ([`no_room_answer`]).
    pub fn accept(&mut self, now: Instant) -> Option<ClientId> {
        let id = match self.free_clients.pop() {
            Some(id) => id,
            None if self.clients.len() < self.limits.connections => {
                self.clients.push(Client::new());
                ClientId(self.clients.len() - 1)
            }
            None => {
                self.counters.refused_full += 1;
                self.counters.error(ErrorCode::Busy);
                return None;
            }
        };
        self.counters.connections += 1;
        let client = &mut self.clients[id.0];
        client.name = Name { connection: self.counters.connections, uid: None };
        client.stage = Stage::Open;
        client.input.reset();
        client.out.clear();
        (client.sent, client.relay, client.outstanding, client.stalled_since) = (0, None, 0, None);
        (client.frame_since, client.active_at) = (None, Some(now));
        self.wake_by(now + self.limits.idle);
        self.counters.most_clients = self.counters.most_clients.max(self.clients());
        Some(id)
    }

    /// Who this client is, for the log.
    pub fn name_client(&mut self, id: ClientId, uid: u32) {
        let name = &mut self.clients[id.0].name;
        name.uid = Some(uid);
        log::debug!("{name}: opened");
    }

    /// Where to read to; empty when nothing should be read now.
    pub fn client_spare(&mut self, id: ClientId) -> &mut [u8] {
        let client = &mut self.clients[id.0];
        if client.stage == Stage::Open && client.takes_error() { client.input.spare() } else { &mut [] }
    }

    /// `n` bytes were read into [`client_spare`](Self::client_spare).
    pub fn client_received(&mut self, id: ClientId, n: usize, now: Instant) {
        self.counters.bytes_in += n as u64;
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

    /// The client's connection is no more. What waits for it is dropped; for what runs see
    /// [`Abandoned`].
    pub fn client_gone(&mut self, id: ClientId, now: Instant) {
        self.cut(id, now);
        if std::mem::replace(&mut self.clients[id.0].stage, Stage::Free) != Stage::Free {
            self.free_clients.push(id);
        }
        log::debug!("{}: closed", self.clients[id.0].name);
    }

    /// What to write next.
    pub fn client_output(&mut self, id: ClientId, now: Instant) -> ClientOutput<'_> {
        self.fill_output(id, now);
        if !self.clients[id.0].out.is_empty() && self.clients[id.0].stalled_since.is_none() {
            self.clients[id.0].stalled_since = Some(now);
            self.clients[id.0].progress = 0;
            self.wake_by(now + self.stall_limit(id));
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
        self.counters.bytes_out += n as u64;
        let client = &mut self.clients[id.0];
        client.sent += n;
        if client.sent >= client.out.len() {
            client.out.clear();
            client.sent = 0;
        }
        self.moved(id, n, now);
        // Input that was held back for want of room can go on.
        self.take_requests(id, now);
    }

    /// So many of the worker's bytes went to the client, or were dropped for want of one.
    pub fn relayed(&mut self, id: WorkerId, n: usize, now: Instant) {
        let worker = &mut self.workers[id.0];
        let Progress::Pixels(left) = worker.progress else { return };
        let left = left.saturating_sub(n);
        worker.progress = Progress::Pixels(left);
        let client = self.audience(id);
        let bytes =
            if client.is_some() { &mut self.counters.bytes_out } else { &mut self.counters.bytes_dropped };
        *bytes += n as u64;
        if left > 0 {
            match client {
                Some(client) => self.moved(client, n, now),
                None => self.workers[id.0].deadline = now + self.limits.stall,
            }
            return;
        }
        self.workers[id.0].failures = 0;
        if let Some(client) = client {
            self.clients[client.0].relay = None;
            self.moved(client, n, now);
        }
        self.end_task(id, now);
        if let Some(client) = client {
            self.take_requests(client, now);
        }
    }

    // ---------------------------------------------------------------- workers

    /// The worker can be talked to.
    pub fn worker_up(&mut self, id: WorkerId, now: Instant) {
        self.counters.worker_starts += 1;
        self.workers[id.0].given = 0;
        if self.warm_up.is_empty() || self.draining.is_some() {
            self.rest(id, now);
        } else {
            self.give(id, Task::WarmUp, now);
        }
        self.dispatch(now);
    }

    /// The worker is gone, whether it was told to die or not. `request_unread`: it left in its
    /// socket some of what was written to it, so it can't have begun with the request.
    pub fn worker_down(&mut self, id: WorkerId, death: Death, request_unread: bool, now: Instant) {
        self.counters.worker_died(death);
        let worker = &mut self.workers[id.0];
        let was_asked = worker.link == Link::Dying;
        match worker.task {
            // It died before it had the whole request: another one can have it.
            Some(Task::Job(job)) if request_unread || worker.sent < self.jobs.get(job).len => {
                worker.task = None;
                let job_state = self.jobs.get(job);
                if job_state.client.is_none() {
                    self.release(job, Outcome::Abandoned, now);
                } else if self.draining.is_some() {
                    self.fail(job, Refusal::ShuttingDown, now);
                } else if job_state.attempts >= MAX_ATTEMPTS {
                    self.fail(job, Refusal::NoWorker(death), now);
                } else {
                    let since = job_state.since;
                    self.counters.retried += 1;
                    self.jobs.enqueue_again(job);
                    self.wake_by(since + self.limits.queue_wait);
                }
            }
            Some(Task::Job(job)) => {
                if !was_asked && let Some(digest) = self.suspects.blame(self.jobs.get(job).frame(), now) {
                    self.counters.quarantined += 1;
                    log::error!(
                        "worker {}: died of request {digest:016x} again; refusing that for an hour",
                        id.0
                    );
                }
                self.lose_task(id, Refusal::WorkerDied(death), now);
            }
            Some(Task::WarmUp | Task::Cancelled { .. }) | None => worker.task = None,
        }
        let worker = &mut self.workers[id.0];
        worker.last_death = death;
        worker.order = None;
        let afterwards = std::mem::replace(&mut worker.afterwards, Afterwards::BackOff);
        let at = match afterwards {
            Afterwards::BackOff => {
                let doubled = FIRST_BACK_OFF.saturating_mul(1 << worker.failures.min(16));
                worker.failures = worker.failures.saturating_add(1);
                // The first death after an image was made is no pattern yet: start at once.
                if worker.failures > 1 { Some(now + doubled.min(LONGEST_BACK_OFF)) } else { Some(now) }
            }
            Afterwards::Restart => Some(now),
            Afterwards::Park => None,
        };
        match at {
            Some(at) => {
                worker.link = Link::Down(Some(at));
                self.wake_by(at);
            }
            None => worker.link = Link::Parked,
        }
        if let Some(death) = self.hopeless() {
            while let Some(job) = self.jobs.take_any() {
                self.fail(job, Refusal::NoWorker(death), now);
            }
        }
        self.dispatch(now);
        self.hurry_up();
    }

    /// Request bytes to write; empty when there are none.
    #[must_use]
    pub fn worker_output(&self, id: WorkerId) -> &[u8] {
        let worker = &self.workers[id.0];
        let request = match (worker.link, worker.task) {
            (Link::Busy, Some(Task::Job(job))) => self.jobs.get(job).frame(),
            (Link::Busy, Some(Task::WarmUp)) => &self.warm_up,
            _ => &[],
        };
        request.get(worker.sent..).unwrap_or_default()
    }

    /// The worker's socket took `n` of the bytes.
    pub fn worker_wrote(&mut self, id: WorkerId, n: usize) {
        self.workers[id.0].sent += n;
    }

    /// What to do with what the worker sends.
    pub fn worker_input(&mut self, id: WorkerId) -> WorkerInput<'_> {
        let audience = self.audience(id);
        let worker = &mut self.workers[id.0];
        match (worker.link, worker.progress) {
            (Link::Down(_) | Link::Parked, _) | (Link::Busy, Progress::Ready(_)) => WorkerInput::Hold,
            (Link::Idle(_) | Link::Dying, _) => WorkerInput::Silence,
            (Link::Busy, Progress::Header | Progress::Body(_)) => {
                WorkerInput::Buffer(worker.answer.get_mut(worker.have..worker.wanted).unwrap_or_default())
            }
            (Link::Busy, Progress::Pixels(len)) => match audience {
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
            self.tick_client(id, now);
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
                let order = worker.order.take();
                if let Some(Action::Cancel(..)) = order {
                    // It goes on from there, and may have been named for something else.
                    self.note_worker(id);
                }
                return Some(order.unwrap_or(action));
            }
            Action::Start(_) | Action::Kill(_) | Action::Cancel(..) => {}
        }
        Some(action)
    }

    // ---------------------------------------------------------------- inside

    /// Takes the requests that have arrived, as long as an immediate answer would have a place.
    fn take_requests(&mut self, id: ClientId, now: Instant) {
        let hopeless = self.hopeless();
        let client = &mut self.clients[id.0];
        let mut waiting_since = client.frame_since.take().unwrap_or(now);
        while matches!(client.stage, Stage::Open | Stage::HalfClosed) && client.takes_error() {
            let frame = match client.input.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    log::info!("{}: can't be followed any further: {error}", client.name);
                    self.counters.cut(Cut::Malformed);
                    self.give_up(id, error.code(), error, now);
                    return;
                }
            };
            (waiting_since, client.active_at) = (now, Some(now));
            self.counters.frames += 1;
            let request_id = frame.request_id();
            let request = match request::parse_arrived(&frame) {
                Ok(request) => request,
                Err(error) => {
                    log::debug!("request {request_id} of {}: {}: {error}", client.name, error.code());
                    self.counters.ended(Outcome::Error(error.code()));
                    client.push_error(request_id, error.code(), error);
                    continue;
                }
            };
            let refusal = if self.draining.is_some() {
                Refusal::ShuttingDown
            } else if self.suspects.is_refused(&request, now) {
                Refusal::KilledBefore
            } else if let Some(death) = hopeless {
                Refusal::NoWorker(death)
            } else if client.outstanding >= self.limits.in_flight {
                Refusal::TooManyInFlight { limit: self.limits.in_flight }
            } else if self.jobs.queued_len() < self.limits.queue
                && let Some(free) = self.jobs.take_free(now)
            {
                let job = self.jobs.get_mut(free);
                job.len = request.emit(&mut job.frame).map_or(0, <[u8]>::len);
                (job.client, job.request_id) = (Some(id), request_id);
                (job.width, job.height) = (request.params.width, request.params.height);
                (job.since, job.attempts) = (now, 0);
                client.outstanding += 1;
                self.jobs.enqueue(free);
                self.counters.queued(self.jobs.queued_len());
                log::debug!("request {request_id} of {}: queued", client.name);
                self.wake_at = earlier(self.wake_at, now + self.limits.queue_wait);
                continue;
            } else {
                Refusal::Busy { queue: self.limits.queue }
            };
            log::debug!("request {request_id} of {}: {}: {refusal}", client.name, refusal.code());
            self.counters.refused(refusal.reason());
            self.counters.ended(Outcome::Error(refusal.code()));
            client.push_error(request_id, refusal.code(), refusal);
        }
        // The clock runs only while the client could go on.
        if client.stage == Stage::Open && client.takes_error() && !client.input.is_between_frames() {
            client.frame_since = Some(waiting_since);
            self.wake_by(waiting_since + self.limits.frame);
        }
        self.dispatch(now);
        self.hurry_up();
        self.note_client(id);
    }

    /// Who keeps a worker from its next request has less time when others wait for one.
    fn hurry_up(&mut self) {
        for worker in (0..self.workers.len()).map(WorkerId) {
            if self.is_sending(worker)
                && let Some(client) = self.audience(worker)
                && let Some(since) = self.clients[client.0].stalled_since
            {
                self.wake_by(since + self.stall_limit(client));
            }
        }
    }

    /// How long this client may take too little of what is there for it.
    fn stall_limit(&self, id: ClientId) -> Duration {
        let mut workers = (0..self.workers.len()).map(WorkerId);
        let holds_up = self.jobs.others_wait(id)
            && workers.any(|worker| self.is_sending(worker) && self.audience(worker) == Some(id));
        let Limits { stall, busy_stall, .. } = self.limits;
        if holds_up { busy_stall.min(stall) } else { stall }
    }

    /// Whether a worker's image is there and not all gone.
    fn is_sending(&self, id: WorkerId) -> bool {
        let worker = &self.workers[id.0];
        worker.link == Link::Busy && matches!(worker.progress, Progress::Ready(_) | Progress::Pixels(_))
    }

    /// If no worker has come up for a while: how the last one died.
    fn hopeless(&self) -> Option<Death> {
        let is_down = |worker: &Worker| {
            matches!(worker.link, Link::Down(_)) && worker.failures >= u32::from(MAX_ATTEMPTS)
        };
        self.workers.iter().all(is_down).then(|| self.workers.first().map(|worker| worker.last_death))?
    }

    /// Who gets what this worker sends.
    fn audience(&self, id: WorkerId) -> Option<ClientId> {
        match self.workers[id.0].task {
            Some(Task::Job(job)) => self.jobs.get(job).client,
            Some(Task::WarmUp | Task::Cancelled { .. }) | None => None,
        }
    }

    /// The stream of this client can't be followed: answer, flush, close.
    fn give_up(&mut self, id: ClientId, code: ErrorCode, why: impl fmt::Display, now: Instant) {
        self.forget_jobs(id, now);
        self.counters.error(code);
        let client = &mut self.clients[id.0];
        client.push_error(0, code, why);
        client.stage = Stage::Closing;
        client.frame_since = None;
        self.note_client(id);
        self.dispatch(now);
    }

    /// Closes a client's connection at once, in the middle of whatever is going out.
    fn cut(&mut self, id: ClientId, now: Instant) {
        self.forget_jobs(id, now);
        let client = &mut self.clients[id.0];
        client.stage = Stage::Closing;
        client.out.clear();
        client.sent = 0;
        (client.stalled_since, client.frame_since) = (None, None);
        if let Some(worker) = client.relay.take() {
            self.note_worker(worker);
        }
        self.note_client(id);
    }

    /// Nobody waits for this client's jobs any more.
    fn forget_jobs(&mut self, id: ClientId, now: Instant) {
        while let Some(job) = self.jobs.take_queued(id).or_else(|| self.jobs.take_failed(id)) {
            self.release(job, Outcome::Abandoned, now);
        }
        for worker_id in (0..self.workers.len()).map(WorkerId) {
            let worker = &mut self.workers[worker_id.0];
            let Some(Task::Job(job)) = worker.task else { continue };
            let job = self.jobs.get_mut(job);
            if job.client != Some(id) {
                continue;
            }
            job.client = None;
            self.clients[id.0].outstanding -= 1;
            match worker.progress {
                // What it sends is dropped from now on, and it has to come.
                Progress::Ready(len) | Progress::Pixels(len) => {
                    worker.progress = Progress::Pixels(len);
                    worker.deadline = now + self.limits.stall;
                    self.wake_by(now + self.limits.stall);
                    self.note_worker(worker_id);
                }
                Progress::Header | Progress::Body(_) if self.limits.abandoned == Abandoned::Cancel => {
                    if let Some(job) = self.cancel(worker_id, Kill::Abandoned, now) {
                        self.release(job, Outcome::Abandoned, now);
                    } else {
                        self.counters.worker_killed(Kill::Abandoned);
                        self.end_worker(worker_id, Afterwards::Restart);
                    }
                }
                Progress::Header | Progress::Body(_) => {}
            }
        }
    }

    /// Moves into the client's output what has been waiting for a place there.
    fn fill_output(&mut self, id: ClientId, now: Instant) {
        let client = &mut self.clients[id.0];
        if client.outstanding == 0 || client.stage == Stage::Closing {
            return;
        }
        while self.clients[id.0].takes_error()
            && let Some(job) = self.jobs.take_failed(id)
        {
            self.clients[id.0].push(self.jobs.get(job).frame());
            self.release(job, Outcome::Error(self.jobs.get(job).code), now);
        }
        let client = &mut self.clients[id.0];
        if client.relay.is_some() || client.out.capacity() - client.out.len() < RESPONSE_HEAD_LEN {
            return;
        }
        for (index, worker) in self.workers.iter_mut().enumerate() {
            if let (Progress::Ready(len), Some(Task::Job(job))) = (worker.progress, worker.task)
                && self.jobs.get(job).client == Some(id)
            {
                client.push(worker.answer.get(..RESPONSE_HEAD_LEN).unwrap_or_default());
                client.relay = Some(WorkerId(index));
                worker.progress = Progress::Pixels(len);
                break;
            }
        }
    }

    /// The client took so much of its output. If that is enough, its time starts anew.
    fn moved(&mut self, id: ClientId, n: usize, now: Instant) {
        let client = &mut self.clients[id.0];
        client.active_at = Some(now);
        client.progress = client.progress.saturating_add(n);
        if client.out.is_empty() && client.relay.is_none() {
            client.stalled_since = None;
            self.wake_by(now + self.limits.idle);
        } else if client.progress >= LEAST_PROGRESS {
            client.progress = 0;
            client.stalled_since = Some(now);
        }
    }

    /// Gives waiting jobs to idle workers.
    fn dispatch(&mut self, now: Instant) {
        if self.jobs.queued_len() == 0 || self.draining.is_some() {
            return;
        }
        for id in (0..self.workers.len()).map(WorkerId) {
            if matches!(self.workers[id.0].link, Link::Idle(_)) {
                let Some(job) = self.jobs.start_next() else { return };
                let queued = self.jobs.get_mut(job);
                queued.attempts += 1;
                self.counters.dispatched += 1;
                if queued.attempts == 1 {
                    self.counters.queue_wait.observe(now.saturating_duration_since(queued.since));
                }
                if let Some(client) = queued.client {
                    let (request_id, name) = (queued.request_id, self.clients[client.0].name);
                    log::debug!("request {request_id} of {name}: given to worker {}", id.0);
                }
                self.give(id, Task::Job(job), now);
            }
        }
        // As many workers as there is work for.
        let coming = self.workers.iter().filter(|worker| match worker.link {
            Link::Down(_) => true,
            Link::Busy => worker.task == Some(Task::WarmUp),
            Link::Parked | Link::Idle(_) | Link::Dying => false,
        });
        let mut missing = self.jobs.queued_len().saturating_sub(coming.count());
        for id in 0..self.workers.len() {
            if missing > 0 && self.workers[id].link == Link::Parked {
                self.workers[id].link = Link::Down(Some(now));
                self.wake_by(now);
                missing -= 1;
            }
        }
    }

    /// Has an idle worker do this.
    fn give(&mut self, id: WorkerId, task: Task, now: Instant) {
        let worker = &mut self.workers[id.0];
        (worker.link, worker.task, worker.sent) = (Link::Busy, Some(task), 0);
        (worker.progress, worker.have, worker.wanted) = (Progress::Header, 0, HEADER_LEN);
        worker.given += 1;
        (worker.given_at, worker.deadline) = (now, now + self.limits.generation);
        self.wake_by(now + self.limits.generation);
        self.note_worker(id);
    }

    /// The worker has nothing to do.
    fn rest(&mut self, id: WorkerId, now: Instant) {
        let worker = &mut self.workers[id.0];
        (worker.link, worker.progress) = (Link::Idle(now), Progress::Header);
        if let Some(limit) = self.limits.worker_idle {
            self.wake_by(now + limit);
        }
        self.note_worker(id);
    }

    /// Reads what is in `answer`, which is as long as was wanted. Says what is wrong with it.
    fn understand(&mut self, id: WorkerId, now: Instant) -> Result<(), Lie> {
        let worker = &mut self.workers[id.0];
        let Some(task) = worker.task else { return Err(Lie::Unasked) };
        let (request_id, width, height) = match task {
            Task::Job(job) => {
                let job = self.jobs.get(job);
                (job.request_id, job.width, job.height)
            }
            Task::WarmUp => (WARM_UP.request_id, WARM_UP.params.width, WARM_UP.params.height),
            Task::Cancelled { request_id, width, height, .. } => (request_id, width, height),
        };
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
                if head.request_id != request_id {
                    return Err(Lie::RequestId(head.request_id));
                }
                if (head.image.width(), head.image.height()) != (width, height) {
                    return Err(Lie::Size(head.image));
                }
                match task {
                    // It was quicker than the word that it need not.
                    Task::Cancelled { .. } => self.counters.pixels += u64::from(width) * u64::from(height),
                    Task::Job(_) => {
                        self.counters.generation.observe(now.saturating_duration_since(worker.given_at));
                        self.counters.pixels += u64::from(width) * u64::from(height);
                    }
                    Task::WarmUp => self.counters.warm_ups += 1,
                }
                let len = head.image.data_len().saturating_add(trailing);
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                worker.deadline = now + self.limits.stall;
                self.wake_by(now + self.limits.stall);
                let audience = self.audience(id);
                let worker = &mut self.workers[id.0];
                match audience {
                    Some(client) => {
                        worker.progress = Progress::Ready(len);
                        self.note_client(client);
                        self.hurry_up();
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
                if error.request_id != request_id {
                    return Err(Lie::RequestId(error.request_id));
                }
                let index = match task {
                    Task::Job(index) => index,
                    Task::WarmUp => return Err(Lie::NoWarmUp(error.code)),
                    Task::Cancelled { .. } => {
                        self.end_task(id, now);
                        return Ok(());
                    }
                };
                let job = self.jobs.get_mut(index);
                (job.len, job.code) = (answer.len(), error.code);
                if let Some(place) = job.frame.get_mut(..answer.len()) {
                    place.copy_from_slice(answer);
                }
                self.settle(index, now);
                self.workers[id.0].failures = 0;
                self.end_task(id, now);
                Ok(())
            }
            Progress::Ready(_) | Progress::Pixels(_) => Err(Lie::Unasked),
        }
    }

    fn tick_worker(&mut self, id: WorkerId, now: Instant) {
        let has_audience = self.audience(id).is_some();
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
                if let Some(Task::Cancelled { why, .. }) = worker.task {
                    let limit = self.limits.cancel;
                    log::error!("worker {}: not free within {limit:?} of being told to; ending it", id.0);
                    self.counters.worker_killed(why);
                    let by_fault = why == Kill::TooSlow;
                    self.end_worker(id, if by_fault { Afterwards::BackOff } else { Afterwards::Restart });
                    return;
                }
                let limit = self.limits.generation;
                if let Some(job) = self.cancel(id, Kill::TooSlow, now) {
                    self.fail(job, Refusal::Timeout { limit }, now);
                } else {
                    log::error!("worker {}: no answer within {limit:?}; ending it", id.0);
                    self.condemn(id, Refusal::Timeout { limit }, now);
                }
            }
            // Waiting for a client, or sending to one: the client's own deadline runs. It is given up
            // first; if the worker then still sends nothing, it is to blame.
            (Link::Busy, Progress::Ready(_) | Progress::Pixels(_)) if has_audience => {}
            (Link::Busy, Progress::Pixels(_)) if worker.deadline <= now => {
                log::error!("worker {}: its image stood still; ending it", id.0);
                self.condemn(id, Refusal::WorkerLied, now);
            }
            (Link::Busy, _) => {
                let deadline = worker.deadline;
                self.wake_by(deadline);
            }
            (Link::Idle(since), _) => {
                let Some(limit) = self.limits.worker_idle else { return };
                if since + limit > now {
                    self.wake_by(since + limit);
                } else if self.draining.is_none() {
                    log::info!("worker {}: nothing to do for {limit:?}; ending it until it is needed", id.0);
                    self.counters.worker_killed(Kill::Parked);
                    self.end_worker(id, Afterwards::Park);
                }
            }
            (Link::Down(None) | Link::Parked | Link::Dying, _) => {}
        }
    }

    fn tick_client(&mut self, id: ClientId, now: Instant) {
        let client = &self.clients[id.0];
        if client.stage == Stage::Free {
            return;
        }
        if let Some(since) = client.stalled_since {
            let limit = self.stall_limit(id);
            if since + limit <= now {
                log::warn!("{}: took too little for {limit:?}; closing", client.name);
                self.counters.cut(Cut::Stalled);
                return self.cut(id, now);
            }
            self.wake_by(since + limit);
        }
        let client = &self.clients[id.0];
        if let Some(since) = client.frame_since {
            let limit = self.limits.frame;
            if !client.takes_error() {
                // Its output has to move first, which has a deadline of its own.
                self.clients[id.0].frame_since = Some(now);
                self.wake_by(now + limit);
            } else if since + limit <= now {
                log::warn!("{}: its frame was not complete after {limit:?}; closing", client.name);
                self.counters.cut(Cut::HalfFrame);
                let why = format_args!(
                    "a frame was not complete {} s after it was begun; send it at once, and connect anew",
                    limit.as_secs_f32()
                );
                return self.give_up(id, ErrorCode::Timeout, why, now);
            } else {
                self.wake_by(since + limit);
            }
        } else if client.is_idle()
            && let Some(since) = client.active_at
        {
            let limit = self.limits.idle;
            if since + limit <= now {
                log::info!("{}: wanted nothing for {limit:?}; closing", client.name);
                self.counters.cut(Cut::Idle);
                return self.cut(id, now);
            }
            self.wake_by(since + limit);
        }
        loop {
            let limit = self.limits.queue_wait;
            match self.jobs.take_waiting_since(id, now.checked_sub(limit)) {
                Ok(job) => self.fail(job, Refusal::QueueWait { limit }, now),
                Err(since) => {
                    if let Some(since) = since {
                        self.wake_by(since + limit);
                    }
                    return;
                }
            }
        }
    }

    /// Has a worker give up its job, which is the caller's from then on. `None`: it can't be asked to,
    /// because it has not read all of the request, or not to be asked.
    fn cancel(&mut self, id: WorkerId, why: Kill, now: Instant) -> Option<usize> {
        let worker = &mut self.workers[id.0];
        let Some(Task::Job(index)) = worker.task else { return None };
        let job = self.jobs.get(index);
        if worker.sent < job.len || self.limits.cancel.is_zero() {
            return None;
        }
        log::info!("worker {}: told to give up request {}: {}", id.0, job.request_id, why.name());
        let Job { request_id, width, height, .. } = *job;
        worker.task = Some(Task::Cancelled { request_id, width, height, why });
        worker.order = Some(Action::Cancel(id, worker.given));
        (worker.given_at, worker.deadline) = (now, now + self.limits.cancel);
        self.counters.worker_cancelled(why);
        self.wake_by(now + self.limits.cancel);
        self.note_worker(id);
        Some(index)
    }

    /// Ends a worker that can't be left alive, and the job that it has with this refusal.
    fn condemn(&mut self, id: WorkerId, refusal: Refusal, now: Instant) {
        self.counters.worker_killed(match refusal {
            Refusal::Timeout { .. } => Kill::TooSlow,
            Refusal::ShuttingDown => Kill::ShuttingDown,
            _ => Kill::Violation,
        });
        self.end_worker(id, Afterwards::BackOff);
        let worker = &self.workers[id.0];
        let is_unread = matches!(worker.task, Some(Task::Job(job)) if worker.sent < self.jobs.get(job).len);
        // A request that the worker can't have begun with goes to another one when this one is gone.
        if refusal != Refusal::WorkerLied || !is_unread {
            self.lose_task(id, refusal, now);
        }
    }

    /// Ends a worker. What it has is still its own.
    fn end_worker(&mut self, id: WorkerId, afterwards: Afterwards) {
        let worker = &mut self.workers[id.0];
        (worker.link, worker.afterwards) = (Link::Dying, afterwards);
        worker.order = Some(Action::Kill(id));
        self.note_worker(id);
    }

    /// The worker won't finish what it has.
    fn lose_task(&mut self, id: WorkerId, refusal: Refusal, now: Instant) {
        let worker = &mut self.workers[id.0];
        let Some(Task::Job(job)) = worker.task.take() else { return };
        let client = self.jobs.get(job).client;
        let in_transfer = client.filter(|client| self.clients[client.0].relay == Some(id));
        if let Some(client) = in_transfer {
            // Half a frame is out: only closing tells the client so.
            log::warn!("{}: its image can't be finished; closing", self.clients[client.0].name);
            self.counters.cut(Cut::HalfImage);
            self.clients[client.0].relay = None;
            if self.jobs.get_mut(job).client.take().is_some() {
                self.clients[client.0].outstanding -= 1;
            }
            self.cut(client, now);
        }
        self.fail(job, refusal, now);
    }

    /// Turns a job into the error that answers it.
    fn fail(&mut self, index: usize, refusal: Refusal, now: Instant) {
        let job = self.jobs.get_mut(index);
        job.len = error::emit(job.request_id, refusal.code(), refusal, &mut job.frame).map_or(0, <[u8]>::len);
        job.code = refusal.code();
        if let Some(client) = job.client {
            let (request_id, name) = (job.request_id, self.clients[client.0].name);
            let level = match refusal.reason() {
                Reason::TooSlow | Reason::WorkerDied | Reason::WorkerViolation => log::Level::Warn,
                Reason::QueueWait | Reason::NoWorker => log::Level::Info,
                // Nobody's fault, and many at once.
                _ => log::Level::Debug,
            };
            log::log!(level, "request {request_id} of {name}: {}: {refusal}", refusal.code());
        }
        self.counters.refused(refusal.reason());
        self.settle(index, now);
        self.dispatch(now);
    }

    /// A job's `frame` is now an error: it goes to the client, if there still is one.
    fn settle(&mut self, index: usize, now: Instant) {
        match self.jobs.get(index).client {
            Some(client) => {
                self.jobs.set_failed(index);
                self.note_client(client);
            }
            None => self.release(index, Outcome::Abandoned, now),
        }
    }

    /// The worker has said all of its answer and can have the next job.
    fn end_task(&mut self, id: WorkerId, now: Instant) {
        match self.workers[id.0].task.take() {
            Some(Task::Job(job)) if self.jobs.get(job).state() == JobState::Running => {
                let has_client = self.jobs.get(job).client.is_some();
                self.release(job, if has_client { Outcome::Image } else { Outcome::Abandoned }, now);
            }
            Some(Task::Cancelled { request_id, .. }) => {
                let worker = &mut self.workers[id.0];
                worker.failures = 0;
                let took = now.saturating_duration_since(worker.given_at);
                self.counters.cancel.observe(took);
                log::info!("worker {}: free of request {request_id} after {:.3} s", id.0, took.as_secs_f64());
            }
            _ => {}
        }
        self.rest(id, now);
        self.dispatch(now);
    }

    /// A job is answered, or nobody waits for it.
    fn release(&mut self, job: usize, outcome: Outcome, now: Instant) {
        let Job { client, request_id, since, .. } = *self.jobs.get(job);
        if outcome == Outcome::Image {
            self.counters.request.observe(now.saturating_duration_since(since));
        }
        self.counters.ended(outcome);
        if let Some(client) = client {
            log::debug!("request {request_id} of {}: {outcome}", self.clients[client.0].name);
            self.clients[client.0].outstanding -= 1;
            self.note_client(client);
        }
        self.jobs.release(job);
    }

    fn wake_by(&mut self, at: Instant) {
        self.wake_at = earlier(self.wake_at, at);
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

/// For the simulator.
#[cfg(feature = "simulator")]
impl Router {
    /// What must be true between any two events.
    ///
    /// # Panics
    /// If it is not.
    pub fn assert_consistent(&self) {
        self.jobs.assert_consistent(self.running());
        assert!(self.jobs.never_begun_len() <= self.limits.queue, "the queue is over its bound");
        let c = &self.counters;
        assert_eq!(c.frames, c.requests() + self.jobs.taken_len() as u64, "every request is counted once");
        let free = self.clients.iter().filter(|client| client.stage == Stage::Free).count();
        assert_eq!(self.free_clients.len(), free, "places where nobody is");
        for (index, client) in self.clients.iter().enumerate() {
            let id = ClientId(index);
            let runs =
                (0..self.workers.len()).filter(|worker| self.audience(WorkerId(*worker)) == Some(id)).count();
            assert_eq!(client.outstanding, runs + self.jobs.waiting_len(id), "requests of client {index}");
            assert!(client.outstanding <= self.limits.in_flight, "client {index} has more than it may");
            assert!(
                client.relay.is_none_or(|worker| self.audience(worker) == Some(id)),
                "a relay from elsewhere"
            );
            assert!(client.sent <= client.out.len());
            assert!(client.stage != Stage::Free || client.outstanding == 0, "requests of nobody");
        }
        let overdue = self.deadlines().find(|(_, at)| self.wake_at.is_none_or(|wake_at| wake_at > *at));
        assert!(overdue.is_none(), "nobody will be woken for {overdue:?}, but {:?}", self.wake_at);
    }

    /// Everything that has to happen at some time if nothing else does.
    fn deadlines(&self) -> impl Iterator<Item = (&'static str, Instant)> {
        let workers = self.workers.iter().enumerate().filter_map(|(index, worker)| match worker.link {
            Link::Down(Some(at)) if self.draining.is_none() => Some(("a start", at)),
            Link::Busy => match worker.progress {
                Progress::Ready(_) | Progress::Pixels(_) if self.audience(WorkerId(index)).is_some() => None,
                _ => Some(("a worker's answer", worker.deadline)),
            },
            Link::Idle(since) if self.draining.is_none() => {
                self.limits.worker_idle.map(|limit| ("an idle worker", since + limit))
            }
            _ => None,
        });
        let clients = self.clients.iter().enumerate().filter(|(_, client)| client.stage != Stage::Free);
        let clients = clients.flat_map(|(index, client)| {
            let id = ClientId(index);
            let stalled =
                client.stalled_since.map(|since| ("a stalled client", since + self.stall_limit(id)));
            let frame = client.frame_since.map(|since| ("a frame", since + self.limits.frame));
            let idle = client.active_at.filter(|_| client.is_idle());
            let idle = idle.map(|since| ("an idle client", since + self.limits.idle));
            let queued = self.jobs.oldest_of(id).map(|since| ("a request", since + self.limits.queue_wait));
            stalled.into_iter().chain(frame).chain(idle).chain(queued)
        });
        let is_busy = self.workers.iter().any(|worker| worker.link == Link::Busy);
        workers.chain(clients).chain(self.draining.filter(|_| is_busy).map(|at| ("the end", at)))
    }
}

fn earlier(known: Option<Instant>, at: Instant) -> Option<Instant> {
    Some(known.map_or(at, |known| known.min(at)))
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
    NoWarmUp(ErrorCode),
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
            Self::NoWarmUp(code) => write!(f, "can't make an image to warm up: {code}"),
        }
    }
}
