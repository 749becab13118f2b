//! What crosses the border between the router and its driver.

use std::time::Duration;

pub use crate::user::User;

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
    /// Frame timeout: a client has begun a frame, and its end has not come.
    pub frame: Duration,
    /// Idle timeout: no request outstanding and none being sent.
    pub idle: Duration,
    /// Queue timeout: a request has not been given to a worker.
    pub queue_wait: Duration,
    /// Generation timeout: a worker has a request, and the head of its response has not come.
    pub generation: Duration,
    /// Stall timeout: output is waiting, and fewer than [`LEAST_PROGRESS`] bytes were read since.
    pub stall: Duration,
    /// Stall timeout while this client's image keeps a worker from another client's request.
    pub busy_stall: Duration,
    /// Drain timeout: running work goes on for so long after [`Router::drain`](super::Router::drain).
    pub drain: Duration,
    /// Idle timeout of a worker: it is ended to give its memory back, and the next request starts it
    /// again. `None`: it stays.
    pub worker_idle: Option<Duration>,
    /// Whether a worker has to make a small image before it is given a request.
    pub warm_up: bool,
    /// What becomes of a running request whose client has gone.
    pub abandoned: Abandoned,
    /// Cancel timeout: a worker was told to cancel a request, and is not free. Zero: it is killed
    /// without being asked.
    pub cancel: Duration,
}

/// What becomes of a running request whose client has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandoned {
    /// It runs to its end, and the image is dropped: the worker keeps its model in memory.
    Finish,
    /// It is cancelled; a worker that isn't free within [`Limits::cancel`] is killed.
    Cancel,
}

/// Whose places are all taken: connections, or places in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// One user's, so many.
    Each(usize),
    /// Those of all users but the owner and root.
    Guests(usize),
    /// Everybody's.
    All(usize),
}

/// Why there is no connection for a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// Whose places are taken.
    pub bound: Bound,
    /// Who wanted one.
    pub user: User,
}

/// What a client has to take of an image within the stall timeout, in bytes.
pub const LEAST_PROGRESS: usize = 64 * 1024;

/// A place in the table of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientId(pub usize);

/// A place in the table of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WorkerId(pub usize);

/// One of those between whom the router stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// A client's connection.
    Client(ClientId),
    /// A worker.
    Worker(WorkerId),
}

/// A request that a worker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// The number that its client gave it.
    pub request_id: u64,
    /// Which worker has it.
    pub worker: WorkerId,
    /// Denoising steps that it asks for.
    pub steps: u32,
    /// Since it was given to the worker.
    pub time: Duration,
    /// Whether nobody waits for its image any more.
    pub abandoned: bool,
}

/// A request that waits for a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The number that its client gave it.
    pub request_id: u64,
    /// Since it got its place in the queue.
    pub time: Duration,
}

/// What a worker's process is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Start it, then report [`Router::worker_up`](super::Router::worker_up) or
    /// [`Router::worker_down`](super::Router::worker_down).
    Start,
    /// Kill it, whatever it does, then report [`Router::worker_down`](super::Router::worker_down).
    Kill,
    /// Tell it to cancel the nth request that it was given, counted from 1. It still answers, and until
    /// it has, it is given no other; it may have answered by now.
    Cancel(u64),
}

/// What the driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look at the input and output of this one.
    Look(Who),
    /// Give this worker's process an order.
    Order(WorkerId, Order),
}

/// What a client's socket should be given next.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientOutput<'a> {
    /// Nothing for now.
    Nothing,
    /// These bytes; report with [`Router::client_wrote`](super::Router::client_wrote).
    Bytes(&'a [u8]),
    /// At most `len` bytes that come from this worker; report with
    /// [`Router::relayed`](super::Router::relayed).
    Relay {
        /// Where they come from.
        worker: WorkerId,
        /// How many are left.
        len: usize,
    },
    /// Close it and report [`Router::client_gone`](super::Router::client_gone).
    Close,
}

/// What to do with what a worker sends.
#[derive(Debug, PartialEq, Eq)]
pub enum WorkerInput<'a> {
    /// Read into this; report with [`Router::worker_received`](super::Router::worker_received).
    Buffer(&'a mut [u8]),
    /// It is relayed when this client can take it.
    Relay(ClientId),
    /// Read and drop at most so many bytes; report with [`Router::relayed`](super::Router::relayed).
    Discard(usize),
    /// Nothing should come: a byte is a fault of the worker
    /// ([`Router::worker_spoke`](super::Router::worker_spoke)), the end of the stream is its death.
    Silence,
    /// Leave it in the socket.
    Hold,
}

/// What a worker that has died left unread in its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// Nothing that is known of: it may have begun with its request.
    Nothing,
    /// Some of its request: it can't have begun with it.
    Request,
}

/// For the simulator: a request that the router refused.
#[cfg(feature = "simulator")]
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    /// Whose it was.
    pub client: ClientId,
    /// Its id.
    pub request_id: u64,
    /// Why.
    pub reason: crate::causes::Reason,
    /// How many jobs of the owner and root no worker had at that time.
    pub owners_waiting: usize,
}

/// For the simulator: what became of somebody's turn.
#[cfg(feature = "simulator")]
#[derive(Clone, Copy, Debug)]
pub enum Turn {
    /// This client has jobs that wait for a worker; it had none.
    Waits(ClientId),
    /// It has none any more.
    Leaves(ClientId),
    /// One of its jobs was given to a worker.
    Taken(ClientId),
    /// Such a job is back, and it is its turn again.
    Again(ClientId),
}
