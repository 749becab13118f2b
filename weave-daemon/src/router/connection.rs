//! One client's connection: how far it has come, what it may still send, what it has still to take.
//! The module above has its picture.

use std::fmt;
use std::ops::{Index, IndexMut};
use std::time::{Duration, Instant};

use weave_core::error::{self, ErrorCode};
use weave_core::frame::Deframer;
use weave_core::limits::{MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_SKIPPED_PAYLOAD, RESPONSE_HEAD_LEN};

use super::agenda::Due;
use super::interface::{ClientId, LEAST_PROGRESS, Limits, User, WorkerId};
use super::users::Account;

/// Room for what goes out before pixels: three errors, or two and the head of an image. Small, since
/// every connection has it; no frame is looked at unless the error that may answer it has room.
const OUT_LEN: usize = 1024;
const _: () = assert!(OUT_LEN >= 3 * MAX_ERROR_FRAME && MAX_ERROR_FRAME >= RESPONSE_HEAD_LEN);

/// How long a client has that has just connected, or is being answered, before another user may have its place.
const GRACE: Duration = Duration::from_secs(1);

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// There is no such connection.
    Free,
    /// Requests may come.
    Open,
    /// The client will send no more; it still gets its answers.
    HalfClosed,
    /// Nothing more is read: what is in the output goes out, then the connection is closed.
    Closing,
}

/// What a connection is called in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    /// Counts from 1 on, over all connections.
    connection: u64,
    user: User,
}

impl Name {
    pub(super) const fn user(self) -> User {
        self.user
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {} ({})", self.connection, self.user)
    }
}

/// Whether others wait for what this connection holds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pressure {
    /// They don't.
    None,
    /// Its image keeps a worker from another client's request.
    OthersWait,
}

/// Whether a stall clock has just begun to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    /// What the client's socket holds at this time is to be measured.
    Begins,
    AsItWas,
}

/// Whether a client takes its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Its stall timeout has not passed.
    Unasked,
    Enough,
    TooLittle,
}

/// What a connection runs out of time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timeout {
    /// It takes too little of its output.
    Stall,
    /// It does not finish a frame.
    Frame,
    /// It has no request.
    Idle,
    /// Its oldest request waits for a worker.
    Queue,
}

/// See the module's documentation.
pub(super) struct Connection {
    pub(super) name: Name,
    /// Its user's.
    pub(super) account: Account,
    pub(super) state: State,
    pub(super) input: Deframer<MAX_REQUEST_FRAME>,
    out: heapless::Vec<u8, OUT_LEN>,
    /// Bytes of `out` that are written.
    written: usize,
    /// The worker whose pixels follow `out`. Until they are through, `out` takes nothing new: nothing
    /// may come between the bytes of a frame.
    pub(super) relay: Option<WorkerId>,
    /// Requests that are not answered yet.
    pub(super) outstanding: usize,
    /// Since when output has been waiting with less than [`LEAST_PROGRESS`] taken.
    pub(super) stalled_since: Option<Instant>,
    /// Bytes that its socket took since then, or since [`held`](Self::held) was measured.
    taken: usize,
    /// What its socket had of them already when that began, once it was [measured](Self::measured).
    held: Option<usize>,
    /// What the stall timeouts before this one lacked of [`LEAST_PROGRESS`] each.
    lacking: usize,
    /// The stall timeout has passed, and the system is asked whether the client has taken enough all the same.
    is_asked: bool,
    /// Since when the frame that is being read could have been complete. The clock runs only while
    /// input is read.
    frame_since: Option<Instant>,
    /// When it last sent a frame, or took something.
    active_at: Instant,
    opened_at: Instant,
}

impl Connection {
    fn new(user: User, account: Account, now: Instant) -> Self {
        Self {
            name: Name { connection: 0, user },
            account,
            state: State::Free,
            input: Deframer::new(MAX_SKIPPED_PAYLOAD),
            out: heapless::Vec::new(),
            written: 0,
            relay: None,
            outstanding: 0,
            stalled_since: None,
            taken: 0,
            held: None,
            lacking: 0,
            is_asked: false,
            frame_since: None,
            active_at: now,
            opened_at: now,
        }
    }

    fn open(&mut self, number: u64, user: User, account: Account, now: Instant) {
        (self.name, self.account) = (Name { connection: number, user }, account);
        self.state = State::Open;
        self.input.reset();
        self.out.clear();
        (self.written, self.relay, self.outstanding) = (0, None, 0);
        (self.stalled_since, self.frame_since, self.is_asked) = (None, None, false);
        (self.active_at, self.opened_at) = (now, now);
    }

    // ---------------------------------------------------------------- input

    /// Whether something is read from the socket. `in_flight`: how many requests may be under way.
    pub(super) fn reads(&self, in_flight: usize) -> bool {
        self.state == State::Open && self.takes_request(in_flight)
    }

    /// Whether frames that were read are looked at.
    pub(super) fn takes_frames(&self, in_flight: usize) -> bool {
        matches!(self.state, State::Open | State::HalfClosed) && self.takes_request(in_flight)
    }

    /// Whether there is room for one more request, and for the error that may answer it.
    fn takes_request(&self, in_flight: usize) -> bool {
        self.outstanding < in_flight && self.takes_error()
    }

    /// A whole frame has come.
    pub(super) const fn frame_came(&mut self, now: Instant) {
        (self.active_at, self.frame_since) = (now, None);
    }

    /// After all frames that are there were looked at: the clock of the next one runs if it was begun.
    pub(super) fn time_frame(&mut self, in_flight: usize, now: Instant) {
        let is_waited_for = self.reads(in_flight) && !self.input.is_between_frames();
        self.frame_since = is_waited_for.then(|| self.frame_since.unwrap_or(now));
    }

    // ---------------------------------------------------------------- output

    /// What waits to be written.
    pub(super) fn pending(&self) -> &[u8] {
        self.out.get(self.written..).unwrap_or_default()
    }

    /// Whether one more error frame has room in the output, now.
    pub(super) fn takes_error(&self) -> bool {
        self.relay.is_none() && self.out.capacity() - self.out.len() >= MAX_ERROR_FRAME
    }

    /// Puts an error into the output, for which [`takes_error`](Self::takes_error) was asked.
    pub(super) fn push_error(&mut self, request_id: u64, code: ErrorCode, text: impl fmt::Display) {
        let mut frame = [0; MAX_ERROR_FRAME];
        self.push(error::emit_frame(request_id, code, text, &mut frame));
    }

    /// Puts a whole error frame into the output, for which [`takes_error`](Self::takes_error) was asked.
    pub(super) fn push(&mut self, frame: &[u8]) {
        let fits = self.out.extend_from_slice(frame).is_ok();
        debug_assert!(fits, "room was asked for");
        if !self.takes_error() {
            self.frame_since = None;
        }
    }

    /// Whether the head of an image has room in the output, now.
    pub(super) fn takes_head(&self) -> bool {
        self.relay.is_none() && self.out.capacity() - self.out.len() >= RESPONSE_HEAD_LEN
    }

    /// Puts a head into the output, for which [`takes_head`](Self::takes_head) was asked. Its worker's
    /// pixels follow.
    pub(super) fn push_head(&mut self, head: &[u8], worker: WorkerId) {
        self.push(head);
        self.relay = Some(worker);
        self.frame_since = None;
    }

    /// If output waits whose stall clock does not run yet, it runs from now on. Whether it begins so.
    pub(super) fn time_output(&mut self, now: Instant) -> Clock {
        if self.out.is_empty() || self.stalled_since.is_some() {
            return Clock::AsItWas;
        }
        self.begin_stall(now)
    }

    /// The stall clock begins, or begins anew.
    const fn begin_stall(&mut self, now: Instant) -> Clock {
        (self.stalled_since, self.taken, self.held) = (Some(now), 0, None);
        (self.lacking, self.is_asked) = (0, false);
        Clock::Begins
    }

    /// So many bytes of the output were written.
    pub(super) fn wrote(&mut self, n: usize, now: Instant) -> Clock {
        self.written += n;
        if self.written >= self.out.len() {
            self.out.clear();
            self.written = 0;
        }
        self.took(n, now)
    }

    /// So many bytes of an image were written; so many are left.
    pub(super) fn took_pixels(&mut self, n: usize, left: usize, now: Instant) -> Clock {
        if left == 0 {
            self.relay = None;
        }
        self.took(n, now)
    }

    /// The client's socket took so many bytes. If that is enough, its stall clock begins anew.
    fn took(&mut self, n: usize, now: Instant) -> Clock {
        self.active_at = now;
        self.taken = self.taken.saturating_add(n);
        if self.out.is_empty() && self.relay.is_none() {
            (self.stalled_since, self.is_asked) = (None, false);
        } else if self.taken >= LEAST_PROGRESS {
            return self.begin_stall(now);
        }
        Clock::AsItWas
    }

    /// The stall timeout has passed. What the client has really taken is to be asked.
    pub(super) const fn ask(&mut self) {
        self.is_asked = true;
    }

    /// The system still has so many bytes of the output; `None`: it can't say. Whether the client has taken enough, if
    /// that was the question.
    ///
    /// The system frees what it has in pieces of up to [`LEAST_PROGRESS`], so that a timeout may seem to have too
    /// little of what the next one has too much of. What one lacks is carried on to the next: who takes nothing is
    /// found out at once, and who takes too little soon.
    pub(super) fn measured(&mut self, held: Option<usize>, now: Instant) -> Progress {
        let before = std::mem::replace(&mut self.held, held);
        let taken = std::mem::take(&mut self.taken);
        if !std::mem::take(&mut self.is_asked) {
            return Progress::Unasked;
        }
        let (Some(before), Some(held)) = (before, held) else { return Progress::TooLittle };
        let took = before.saturating_add(taken).saturating_sub(held);
        self.lacking = (self.lacking + LEAST_PROGRESS).saturating_sub(took);
        if took == 0 || self.lacking >= LEAST_PROGRESS {
            return Progress::TooLittle;
        }
        self.stalled_since = Some(now);
        Progress::Enough
    }

    // ---------------------------------------------------------------- endings

    /// Nothing more is read. What is in the output still goes out.
    pub(super) fn end_input(&mut self) {
        (self.state, self.frame_since) = (State::Closing, None);
    }

    /// Nothing more is read or written. The worker whose pixels were going out, if any.
    pub(super) fn end(&mut self) -> Option<WorkerId> {
        self.end_input();
        self.out.clear();
        (self.written, self.stalled_since, self.is_asked) = (0, None, false);
        self.relay.take()
    }

    /// Whether all that was asked for was taken, and nothing more is to come.
    pub(super) fn is_finished(&self) -> bool {
        match self.state {
            State::Closing => true,
            State::HalfClosed => self.outstanding == 0,
            State::Free | State::Open => false,
        }
    }

    /// Whether it owes nothing and is owed nothing.
    pub(super) fn is_settled(&self) -> bool {
        self.state == State::Free || (self.outstanding == 0 && self.out.is_empty())
    }

    /// What it runs out of time for next. `waits_since`: its oldest request that waits for a worker.
    pub(super) fn due(
        &self,
        limits: &Limits,
        pressure: Pressure,
        waits_since: Option<Instant>,
    ) -> Option<Due<Timeout>> {
        if self.state == State::Free {
            return None;
        }
        let stall = match pressure {
            Pressure::None => limits.stall,
            Pressure::OthersWait => limits.busy_stall.min(limits.stall),
        };
        let mut first: Option<Due<Timeout>> = None;
        let mut consider = |since: Option<Instant>, limit: Duration, why: Timeout| {
            if let Some(at) = since.map(|since| since + limit)
                && first.is_none_or(|first| at < first.at)
            {
                first = Some(Due { at, why });
            }
        };
        consider(self.stalled_since.filter(|_| !self.is_asked), stall, Timeout::Stall);
        consider(self.frame_since, limits.frame, Timeout::Frame);
        consider(self.idle_since(), limits.idle, Timeout::Idle);
        consider(waits_since, limits.queue_wait, Timeout::Queue);
        first
    }

    /// If it stays, has all that it asked for and sends nothing: since when.
    fn idle_since(&self) -> Option<Instant> {
        let is_idle = self.state != State::Closing
            && self.outstanding == 0
            && self.out.is_empty()
            && self.frame_since.is_none();
        is_idle.then_some(self.active_at)
    }

    /// If another user may have its place: since when it is of no use. It owes no image, but may go on talking: what it
    /// has begun to send, or does not take, is not worth a place.
    pub(super) fn unused_since(&self, now: Instant) -> Option<Instant> {
        let stays = match self.state {
            State::Free => false,
            State::Open | State::HalfClosed => true,
            // With nothing to say it ends by itself.
            State::Closing => !self.out.is_empty(),
        };
        let is_answered = !self.out.is_empty() && self.stalled_since.is_none_or(|since| since + GRACE > now);
        let is_new = self.opened_at + GRACE > now;
        (stays && self.outstanding == 0 && !is_answered && !is_new).then_some(self.active_at)
    }
}

/// The table of connections.
pub(super) struct Connections {
    /// As many as there ever were at once, in memory that is reserved for all that may be.
    table: Vec<Connection>,
    /// Entries of the table that are free.
    free: Vec<ClientId>,
    opened: u64,
}

impl Connections {
    pub(super) fn new(limit: usize) -> Self {
        Self { table: Vec::with_capacity(limit), free: Vec::with_capacity(limit), opened: 0 }
    }

    /// Opens a connection, for which there has to be room.
    pub(super) fn open(&mut self, user: User, account: Account, now: Instant) -> ClientId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.table.push(Connection::new(user, account, now));
            ClientId(self.table.len() - 1)
        });
        self.opened += 1;
        self.table[id.0].open(self.opened, user, account, now);
        id
    }

    /// The connection is no more. Whose it was, if it was open.
    pub(super) fn release(&mut self, id: ClientId) -> Option<Account> {
        let connection = &mut self.table[id.0];
        if std::mem::replace(&mut connection.state, State::Free) == State::Free {
            return None;
        }
        self.free.push(id);
        Some(connection.account)
    }

    /// Connections that are open.
    pub(super) fn len(&self) -> usize {
        self.table.len() - self.free.len()
    }

    /// All entries of the table that were ever used.
    pub(super) fn ids(&self) -> impl Iterator<Item = ClientId> + use<> {
        (0..self.table.len()).map(ClientId)
    }

    /// Whether every answer has left.
    pub(super) fn are_settled(&self) -> bool {
        self.table.iter().all(Connection::is_settled)
    }
}

impl Index<ClientId> for Connections {
    type Output = Connection;

    fn index(&self, id: ClientId) -> &Connection {
        &self.table[id.0]
    }
}

impl IndexMut<ClientId> for Connections {
    fn index_mut(&mut self, id: ClientId) -> &mut Connection {
        &mut self.table[id.0]
    }
}

/// For the simulator: what must be true between any two events.
#[cfg(feature = "simulator")]
impl Connections {
    /// Whose the open ones are.
    pub(super) fn accounts(&self) -> Vec<(Account, User)> {
        let open = self.table.iter().filter(|connection| connection.state != State::Free);
        open.map(|connection| (connection.account, connection.name.user)).collect()
    }

    /// # Panics
    /// If it is not.
    pub(super) fn assert_consistent(&self, in_flight: usize) {
        let free = self.table.iter().filter(|connection| connection.state == State::Free).count();
        assert_eq!(self.free.len(), free, "entries that are free");
        for (index, connection) in self.table.iter().enumerate() {
            assert!(connection.outstanding <= in_flight, "client {index} has more than it may");
            assert!(connection.written <= connection.out.len());
            assert!(connection.state != State::Free || connection.outstanding == 0, "requests of nobody");
        }
    }
}
