//! A world around the router: clients and workers of every temperament, sockets that take as little
//! as they like, a clock that jumps. Nothing in it is real and all of it follows from a stream of
//! choices, so that a failure can be repeated from its seed.
//!
//! The world plays the part of [`server`](crate::server): it looks at a client or a worker only when
//! the router names it or when its socket has something new to say. What would get stuck there gets
//! stuck here.
//!
//! After every event it is checked that
//! 1. every request is answered exactly once, with its own request_id, or its connection is closed;
//! 2. nothing comes between the bytes of a frame;
//! 3. the tables agree with each other and stay within their bounds;
//! 4. a client that behaves is never cut off, and its requests fail only for a reason that lies
//!    with the worker that had them, or with limits that were said;
//! 5. once the world quiets down nothing is left undone, and nobody turns in circles.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use weave_core::error::{self, ErrorCode};
use weave_core::frame::{Deframer, Kind, Split, split};
use weave_core::limits::{
    HEADER_LEN, MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, MAX_SKIPPED_PAYLOAD,
    RESPONSE_FIXED_LEN, RESPONSE_HEAD_LEN,
};
use weave_core::request::{self, Params, Prompts, Request};
use weave_core::response::{ImageSize, ResponseHead};

use crate::causes::Death;
use crate::router::{
    Abandoned, Action, ClientId, ClientOutput, Limits, Order, Router, Unread, Who, WorkerId, WorkerInput,
};

/// Where all that happens in a world comes from.
pub trait Choices {
    /// A number below `n`, which is at least 1.
    fn below(&mut self, n: u32) -> u32;
    /// Whether there is nothing more to choose from: the world comes to its end.
    fn is_over(&self) -> bool;
}

/// Choices from a seed (SplitMix64), without an end.
#[derive(Clone, Debug)]
pub struct Seeded(pub u64);

impl Choices for Seeded {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let high = u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(0);
        // The product's upper half: even enough, and without a division.
        u32::try_from((u64::from(high) * u64::from(n)) >> 32).unwrap_or(0)
    }

    fn is_over(&self) -> bool {
        false
    }
}

/// Choices from bytes, as a fuzzer makes them: one byte each. After the last one, the largest.
#[derive(Clone, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Choices for Bytes<'_> {
    fn below(&mut self, n: u32) -> u32 {
        let Some((first, rest)) = self.0.split_first() else { return n - 1 };
        self.0 = rest;
        u32::from(*first) % n
    }

    fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}

/// What happened in a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events that the router was told of.
    pub events: u64,
    /// Requests that clients sent.
    pub requests: u64,
    /// Images that arrived whole.
    pub images: u64,
    /// Errors that arrived.
    pub errors: u64,
    /// Connections that the router closed.
    pub closed: u64,
    /// Workers that died.
    pub deaths: u64,
    /// Requests that a worker gave up because it was told to.
    pub cancelled: u64,
}

impl Report {
    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            events: self.events + other.events,
            requests: self.requests + other.requests,
            images: self.images + other.images,
            errors: self.errors + other.errors,
            closed: self.closed + other.closed,
            deaths: self.deaths + other.deaths,
            cancelled: self.cancelled + other.cancelled,
        }
    }
}

/// Runs one world to its end: at most `events` events of turmoil, then until it is quiet.
/// `worker_bytes`: what every worker sends in place of an answer, for a look at that side alone.
///
/// # Panics
/// If the router breaks one of its promises.
pub fn run(choices: impl Choices, events: u64, worker_bytes: Option<&[u8]>) -> Report {
    let mut world = World::new(choices, worker_bytes);
    while world.report.events < events && !world.choices.is_over() {
        world.step();
        world.router.assert_consistent();
    }
    world.quiet_down();
    world.report
}

/// How a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manners {
    /// Sends whole requests and reads at once.
    Good,
    /// Good, but sends a lot before it reads.
    Pipelining,
    /// Sends a few bytes at a time.
    Dripping,
    /// Reads a little at a time.
    SlowReader,
    /// Reads nothing.
    Deaf,
    /// Sends what is no request.
    Garbling,
    /// Says nothing, or half of something.
    Silent,
    /// Says its last after a request.
    HalfClosing,
    /// Hangs up at any moment.
    Fleeting,
}

const MANNERS: [Manners; 12] = [
    Manners::Good,
    Manners::Good,
    Manners::Good,
    Manners::Pipelining,
    Manners::Pipelining,
    Manners::Dripping,
    Manners::SlowReader,
    Manners::Deaf,
    Manners::Garbling,
    Manners::Silent,
    Manners::HalfClosing,
    Manners::Fleeting,
];

/// A request that was sent.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// Tells this request from all others: its seed, and the colour of its pixels.
    tag: u64,
    width: u32,
    height: u32,
    /// The error that it has to get, if it is a wrong one.
    fault: Option<ErrorCode>,
}

/// What a client is about to receive.
#[derive(Clone, Copy, Debug)]
enum Reading {
    /// The next frame, of which so many bytes are there.
    Frame,
    /// Pixels of this image, from the one to the other.
    Pixels { tag: u64, at: u64, end: u64 },
}

/// A client, and both directions of its socket.
struct Client {
    manners: Manners,
    /// Not sent yet.
    script: VecDeque<u8>,
    /// Sent, and not yet read by the router.
    sent: VecDeque<u8>,
    has_said_its_last: bool,
    last_is_heard: bool,
    /// Bytes that its side of the socket takes.
    room: usize,
    asked: BTreeMap<u64, Vec<Asked>>,
    /// What has arrived of a frame.
    head: Vec<u8>,
    reading: Reading,
    /// It has sent what makes the router give up.
    is_lost: bool,
    next_id: u64,
}

impl Client {
    fn owes(&self) -> usize {
        self.asked.values().map(Vec::len).sum()
    }
}

/// What a worker does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Answer,
    /// Takes its time.
    Draw,
    Refuse,
    /// Does as it is told, half-way through.
    GiveUp,
    /// Dies before, in the middle of, or after its answer.
    DieBefore,
    DieWithin,
    DieAfter,
    Hang,
    /// Stops in the middle of the pixels.
    HangWithin,
    WrongId,
    WrongSize,
    /// Announces more than it sends, then goes on with the next frame.
    TooShort,
    /// Sends more than it announces.
    TooLong,
    Garbage,
    /// Bytes from outside.
    Given,
}

const BAD_DEEDS: [Deed; 11] = [
    Deed::DieBefore,
    Deed::DieWithin,
    Deed::DieAfter,
    Deed::Hang,
    Deed::HangWithin,
    Deed::WrongId,
    Deed::WrongSize,
    Deed::TooShort,
    Deed::TooLong,
    Deed::Garbage,
    Deed::Refuse,
];

/// A piece of what a worker sends.
#[derive(Clone, Debug)]
enum Piece {
    Bytes(VecDeque<u8>),
    Pixels { tag: u64, at: u64, end: u64 },
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Pixels { at, end, .. } => usize::try_from(end - at).unwrap_or(usize::MAX),
        }
    }

    /// The first `n` bytes of it.
    fn take(&mut self, n: usize) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.drain(..n).collect()),
            Self::Pixels { tag, at, .. } => {
                let from = *at;
                *at += n as u64;
                Self::Pixels { tag: *tag, at: from, end: *at }
            }
        }
    }

    /// Its bytes, where somebody wants to look at them.
    fn copy_to(self, out: &mut [u8]) {
        match self {
            Self::Bytes(bytes) => out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = byte),
            Self::Pixels { tag, .. } => out.fill(tag.to_le_bytes()[0]),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// There is no such process.
    None,
    Up,
    /// It has ended by itself; what it said can still be read.
    Over,
    /// It was told to die, and its death is not known yet.
    Killed,
}

/// A worker, and both directions of its socket.
struct Worker {
    life: Life,
    /// Written by the router, and not yet read.
    inbox: VecDeque<u8>,
    input: Box<Deframer<MAX_REQUEST_FRAME>>,
    /// Requests that it has read.
    read: u64,
    /// Requests that were written to it, in part at least.
    given: u64,
    /// The last one that it was told to give up.
    cancelled: u64,
    /// What it is busy with.
    draws: Option<(u64, Params)>,
    /// Said, and not yet read by the router.
    outbox: VecDeque<Piece>,
    /// The request whose bytes the router writes, or wrote last.
    tag: u64,
    /// It has done something that whoever has business with it may suffer from.
    is_bad: bool,
    /// It does nothing more.
    hangs: bool,
    /// Ends once `outbox` is read.
    dies: bool,
    /// Read from the worker for a client, and not yet written: the driver's buffer.
    relayed: Option<Piece>,
}

struct World<'a, C> {
    choices: C,
    given: Option<&'a [u8]>,
    router: Router,
    now: Instant,
    /// What has passed in short pauses since everybody last had a chance.
    unsettled: Duration,
    clients: Vec<Option<Client>>,
    workers: Vec<Worker>,
    ready: VecDeque<Who>,
    tag: u64,
    /// Requests that a worker answers well, on average, before it does something else.
    patience: usize,
    /// Requests that a bad worker had.
    harmed: BTreeSet<u64>,
    /// Requests that a worker took its time for.
    slow: BTreeSet<u64>,
    is_draining: bool,
    /// From now on everybody behaves.
    is_calm: bool,
    report: Report,
}

/// What the driver's buffer between worker and client holds.
const RELAY_LEN: usize = 64 * 1024;

/// The least of all limits in a world: the driver, too, looks at everybody who is ready before it looks at the clock.
const SHORTEST: Duration = Duration::from_secs(1);

impl<'a, C: Choices> World<'a, C> {
    fn new(mut choices: C, given: Option<&'a [u8]>) -> Self {
        let mut some = |from: usize, to: usize| {
            let span = u32::try_from(to - from + 1).unwrap_or(1);
            from + usize::try_from(choices.below(span)).unwrap_or(0)
        };
        let seconds = |n: usize| Duration::from_secs(n as u64);
        let limits = Limits {
            connections: some(1, 8),
            in_flight: some(1, 24),
            queue: some(1, 32),
            workers: some(1, 3),
            frame: seconds(some(1, 30)),
            idle: seconds(some(1, 300)),
            queue_wait: seconds(some(1, 300)),
            generation: seconds(some(1, 100)),
            stall: seconds(some(5, 30)),
            busy_stall: seconds(some(1, 10)),
            drain: seconds(some(1, 100)),
            worker_idle: match some(0, 3) {
                0 => Some(seconds(some(1, 100))),
                _ => None,
            },
            warm_up: given.is_none() && some(0, 1) == 1,
            abandoned: if some(0, 2) == 0 { Abandoned::Cancel } else { Abandoned::Finish },
            cancel: seconds(some(0, 5)),
        };
        let patience = [2, 10, 100][some(0, 2)];
        let now = Instant::now();
        let worker = || Worker {
            life: Life::None,
            inbox: VecDeque::new(),
            input: Box::new(Deframer::new(MAX_SKIPPED_PAYLOAD)),
            read: 0,
            given: 0,
            cancelled: 0,
            draws: None,
            outbox: VecDeque::new(),
            tag: 0,
            is_bad: false,
            hangs: false,
            dies: false,
            relayed: None,
        };
        Self {
            choices,
            given,
            router: Router::new(limits, now),
            now,
            unsettled: Duration::ZERO,
            clients: std::iter::repeat_with(|| None).take(limits.connections).collect(),
            workers: std::iter::repeat_with(worker).take(limits.workers).collect(),
            ready: VecDeque::new(),
            tag: 1,
            patience,
            harmed: BTreeSet::new(),
            slow: BTreeSet::new(),
            is_draining: false,
            is_calm: false,
            report: Report::default(),
        }
    }

    fn below(&mut self, n: usize) -> usize {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        usize::try_from(self.choices.below(n.max(1))).unwrap_or(0)
    }

    /// One of `n` times.
    fn seldom(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    // ---------------------------------------------------------------- events

    fn step(&mut self) {
        match self.below(16) {
            0..=7 => self.drive(),
            8..=9 => {
                let client = self.below(self.clients.len());
                self.act_client(ClientId(client));
            }
            10..=13 => {
                let worker = self.below(self.workers.len());
                self.act_worker(WorkerId(worker));
            }
            14 => {
                let pause = Duration::from_millis(self.below(100) as u64);
                if self.is_settled() {
                    self.unsettled = Duration::ZERO;
                }
                if self.unsettled + pause < SHORTEST {
                    self.unsettled += pause;
                    self.pass(pause);
                }
            }
            // Long enough for every limit, but only when everybody has had a chance.
            _ if self.is_settled() => match (self.below(4), self.router.wake_at()) {
                (0, _) => {
                    let pause = self.below(200);
                    self.pass(Duration::from_secs(pause as u64));
                }
                (_, Some(at)) => self.pass(at.saturating_duration_since(self.now)),
                (_, None) => {}
            },
            _ => {
                if !self.is_draining && self.below(200) == 1 && self.below(20) == 1 {
                    self.is_draining = true;
                    self.router.drain(self.now);
                    self.report.events += 1;
                    self.take_actions();
                }
            }
        }
    }

    /// Whether everybody who does what is asked has done so.
    fn is_settled(&self) -> bool {
        let works = |worker: &Worker| worker.life == Life::Up && !worker.hangs && !worker.inbox.is_empty();
        self.ready.is_empty() && !self.workers.iter().any(works)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.report.events += 1;
        self.router.tick(self.now);
        self.take_actions();
    }

    fn note(&mut self, who: Who) {
        if !self.ready.contains(&who) {
            self.ready.push_back(who);
        }
    }

    fn take_actions(&mut self) {
        while let Some(action) = self.router.next_action() {
            match action {
                Action::Look(who) => self.note(who),
                Action::Order(id, Order::Start) => self.start(id),
                Action::Order(id, Order::Cancel(nth)) => {
                    let worker = &mut self.workers[id.0];
                    assert!(worker.life != Life::None, "a worker is told something that isn't there");
                    assert!((1..=worker.given).contains(&nth), "request {nth} of {} given up", worker.given);
                    assert!(nth > worker.cancelled, "told twice");
                    worker.cancelled = nth;
                }
                Action::Order(id, Order::Kill) => {
                    let worker = &mut self.workers[id.0];
                    assert!(worker.life != Life::None, "a worker is ended that isn't there");
                    worker.life = Life::Killed;
                    worker.relayed = None;
                    self.note(Who::Worker(id));
                }
            }
        }
    }

    /// One turn of somebody who is ready.
    fn drive(&mut self) {
        let Some(who) = self.ready.pop_front() else { return };
        match who {
            Who::Client(id) => self.turn_client(id),
            Who::Worker(id) => self.turn_worker(id),
        }
        self.take_actions();
    }

    // ---------------------------------------------------------------- clients

    /// A client does something.
    fn act_client(&mut self, id: ClientId) {
        let Some(client) = &self.clients[id.0] else {
            if !self.is_draining && self.below(4) == 0 {
                self.connect();
            }
            return;
        };
        let manners = client.manners;
        let owes = client.owes();
        match manners {
            Manners::Good => {
                if owes < 2 {
                    self.ask(id, None);
                }
                self.send(id, usize::MAX);
            }
            Manners::Pipelining => {
                if owes < 4 {
                    for _ in 0..self.below(16) {
                        self.ask(id, None);
                    }
                }
                self.send(id, usize::MAX);
            }
            Manners::Dripping => {
                if self.clients[id.0].as_ref().is_some_and(|client| client.script.is_empty()) {
                    self.ask(id, None);
                }
                let n = 1 + self.below(30);
                self.send(id, n);
            }
            Manners::SlowReader | Manners::Deaf => {
                if owes < 6 {
                    self.ask(id, None);
                }
                self.send(id, usize::MAX);
            }
            Manners::Garbling => {
                match self.below(8) {
                    0 if owes == 0 => {
                        if let Some(client) = &mut self.clients[id.0] {
                            client.script.extend(b"GET / HTTP/1.1\r\n\r\n");
                            client.is_lost = true;
                        }
                    }
                    1 | 2 => self.ask(id, Some(ErrorCode::UnsupportedType)),
                    3 | 4 => self.ask(id, Some(ErrorCode::InvalidSteps)),
                    _ => self.ask(id, None),
                }
                self.send(id, usize::MAX);
            }
            Manners::Silent => {
                if self.seldom(20) {
                    self.ask(id, None);
                    let n = 1 + self.below(60);
                    self.send(id, n);
                }
            }
            Manners::HalfClosing => {
                if owes < 3 {
                    self.ask(id, None);
                }
                self.send(id, usize::MAX);
                if self.seldom(6)
                    && let Some(client) = &mut self.clients[id.0]
                {
                    client.has_said_its_last = true;
                    self.note(Who::Client(id));
                }
            }
            Manners::Fleeting => {
                self.ask(id, None);
                let n = self.below(300);
                self.send(id, n);
                if self.seldom(6) {
                    self.hang_up(id);
                    return;
                }
            }
        }
        let gets = match manners {
            Manners::SlowReader => self.below(3000),
            Manners::Dripping if self.seldom(10) => 1 << 16,
            Manners::Dripping | Manners::Deaf => 0,
            _ => 1 << 20,
        };
        self.read(id, gets);
    }

    fn connect(&mut self) {
        self.report.events += 1;
        let Some(id) = self.router.accept(self.now) else {
            assert!(self.clients.iter().all(Option::is_some), "a connection is refused while there is room");
            return;
        };
        assert!(self.clients[id.0].is_none(), "one place for two clients");
        let manners = MANNERS[self.below(MANNERS.len())];
        let room = match manners {
            Manners::Deaf => self.below(3) * 20_000,
            Manners::SlowReader | Manners::Dripping => 3000,
            _ => 1 << 16,
        };
        self.clients[id.0] = Some(Client {
            manners,
            script: VecDeque::new(),
            sent: VecDeque::new(),
            has_said_its_last: false,
            last_is_heard: false,
            room,
            asked: BTreeMap::new(),
            head: Vec::new(),
            reading: Reading::Frame,
            is_lost: false,
            next_id: 1,
        });
        self.note(Who::Client(id));
    }

    /// Adds a request to what a client will send; one that has to get this error, if any.
    fn ask(&mut self, id: ClientId, fault: Option<ErrorCode>) {
        let side = 64 * (1 + u32::try_from(self.below(3)).unwrap_or(0));
        let same_id = self.seldom(10);
        let again = self.seldom(50);
        let Some(client) = &mut self.clients[id.0] else { return };
        if client.has_said_its_last || client.is_lost || client.owes() > 64 {
            return;
        }
        // The very same request once more, also under the same id, or a new one.
        let twin = client.asked.get(&client.next_id).and_then(|asked| asked.last().copied());
        let asked = match twin {
            Some(twin) if same_id || again => twin,
            _ => {
                self.tag += 1;
                Asked { tag: self.tag, width: side, height: 64, fault }
            }
        };
        if twin.is_none() || !same_id {
            client.next_id += 1;
        }
        let fault = asked.fault;
        let params = Params { width: asked.width, height: 64, steps: 1, cfg_scale: 1.0, seed: asked.tag };
        let request = Request { request_id: client.next_id, params, prompts: Prompts::same("a prompt") };
        let mut out = [0; MAX_REQUEST_FRAME];
        let mut frame = request.emit(&mut out).unwrap_or_default().to_vec();
        match fault {
            Some(ErrorCode::InvalidSteps) => frame[36..40].fill(0),
            Some(ErrorCode::UnsupportedType) => frame[6..8].fill(0x77),
            _ => {}
        }
        client.script.extend(frame);
        client.asked.entry(client.next_id).or_default().push(asked);
        self.report.requests += 1;
    }

    /// Sends up to `n` bytes.
    fn send(&mut self, id: ClientId, n: usize) {
        let Some(client) = &mut self.clients[id.0] else { return };
        let n = n.min(client.script.len()).min(50_000_usize.saturating_sub(client.sent.len()));
        if n > 0 {
            client.sent.extend(client.script.drain(..n));
            self.note(Who::Client(id));
        }
    }

    /// Makes room for what comes.
    fn read(&mut self, id: ClientId, n: usize) {
        let Some(client) = &mut self.clients[id.0] else { return };
        if n > 0 && client.room < n {
            client.room = n;
            self.note(Who::Client(id));
        }
    }

    fn hang_up(&mut self, id: ClientId) {
        self.clients[id.0] = None;
        self.report.events += 1;
        self.router.client_gone(id, self.now);
        self.take_actions();
    }

    /// The driver's turn with a client.
    fn turn_client(&mut self, id: ClientId) {
        // Once: as the real one, which reads at most so much before it is the next one's turn.
        let cut = 1 + self.below(8000);
        if let Some(client) = &mut self.clients[id.0] {
            let spare = self.router.client_spare(id);
            let n = spare.len().min(client.sent.len()).min(cut);
            if n > 0 {
                spare.iter_mut().zip(client.sent.drain(..n)).for_each(|(place, byte)| *place = byte);
                self.report.events += 1;
                self.router.client_received(id, n, self.now);
                self.note(Who::Client(id));
            } else if client.sent.is_empty()
                && client.has_said_its_last
                && client.script.is_empty()
                && !client.last_is_heard
                && !spare.is_empty()
            {
                client.last_is_heard = true;
                self.report.events += 1;
                self.router.client_eof(id);
            }
        }
        for _ in 0..=self.below(8) {
            let Some(client) = &mut self.clients[id.0] else { return };
            match self.router.client_output(id, self.now) {
                ClientOutput::Nothing => return,
                ClientOutput::Close => return self.closed(id),
                _ if client.room == 0 => return,
                ClientOutput::Bytes(bytes) => {
                    assert!(!bytes.is_empty(), "a write of nothing");
                    let n = bytes.len().min(client.room).min(cut);
                    let bytes = bytes[..n].to_vec();
                    client.room -= n;
                    self.receive(id, Piece::Bytes(bytes.into()));
                    self.report.events += 1;
                    self.router.client_wrote(id, n, self.now);
                }
                ClientOutput::Relay { worker, len } => {
                    if !self.relay(worker, Some(id), len) {
                        return;
                    }
                }
            }
        }
        self.note(Who::Client(id));
    }

    /// The router closes a client's connection. Had it a right to?
    fn closed(&mut self, id: ClientId) {
        let Some(mut client) = self.clients[id.0].take() else { return };
        self.report.closed += 1;
        self.report.events += 1;
        let in_transfer = match client.reading {
            Reading::Pixels { tag, .. } => Some(tag),
            Reading::Frame => None,
        };
        if client.manners == Manners::Good {
            // What it sent while it was being closed as idle was read by nobody.
            let unread = client.sent.make_contiguous().windows(4).filter(|word| word == b"WEVE").count();
            let excused = client.owes() == unread && in_transfer.is_none()
                || in_transfer.is_some_and(|tag| self.harmed.contains(&tag))
                || self.is_draining;
            assert!(excused, "a client that behaves was cut off, with {} requests open", client.owes());
        }
        self.router.client_gone(id, self.now);
    }

    /// Bytes arrive at a client: they have to make sense.
    fn receive(&mut self, id: ClientId, piece: Piece) {
        let Some(client) = &mut self.clients[id.0] else { return };
        if client.manners == Manners::Good {
            client.room = 1 << 16;
        }
        let mut piece = piece;
        while piece.len() > 0 {
            match (client.reading, piece) {
                (Reading::Pixels { tag, at, end }, mut got) => {
                    let n = usize::try_from(end - at).unwrap_or(usize::MAX).min(got.len());
                    let part = got.take(n);
                    // What a bad worker puts in the place of pixels is pixels, as far as anybody can tell.
                    if !self.harmed.contains(&tag) {
                        match part {
                            Piece::Pixels { tag: from, at: start, .. } => {
                                assert_eq!(
                                    (from, start),
                                    (tag, at),
                                    "pixels of another image, or of another place"
                                );
                            }
                            Piece::Bytes(_) => panic!("bytes between pixels"),
                        }
                    }
                    let at = at + n as u64;
                    client.reading = if at == end {
                        self.report.images += 1;
                        Reading::Frame
                    } else {
                        Reading::Pixels { tag, at, end }
                    };
                    piece = got;
                }
                (Reading::Frame, Piece::Pixels { .. }) => panic!("pixels where a frame should begin"),
                (Reading::Frame, Piece::Bytes(mut bytes)) => {
                    let Some(byte) = bytes.pop_front() else { return };
                    client.head.push(byte);
                    piece = Piece::Bytes(bytes);
                    if client.head.len() >= HEADER_LEN {
                        let (harmed, slow) = (&self.harmed, &self.slow);
                        if take_answer(client, self.is_draining, harmed, slow) {
                            client.head.clear();
                            if matches!(client.reading, Reading::Frame) {
                                self.report.errors += 1;
                            }
                        }
                    }
                }
            }
        }
    }

    // ---------------------------------------------------------------- workers

    fn start(&mut self, id: WorkerId) {
        self.report.events += 1;
        assert_eq!(self.workers[id.0].life, Life::None, "a worker is started twice");
        assert!(!self.is_draining, "a worker is started to serve nobody");
        if !self.is_calm && self.seldom(8) {
            self.report.deaths += 1;
            return self.router.worker_down(id, Death::NotStarted, Unread::Request, self.now);
        }
        let worker = &mut self.workers[id.0];
        worker.life = Life::Up;
        worker.inbox.clear();
        worker.input.reset();
        worker.outbox.clear();
        (worker.is_bad, worker.hangs, worker.dies, worker.relayed) = (false, false, false, None);
        (worker.read, worker.given, worker.cancelled, worker.draws) = (0, 0, 0, None);
        worker.tag = 0;
        self.router.worker_up(id, self.now);
        self.note(Who::Worker(id));
    }

    /// A worker does something.
    fn act_worker(&mut self, id: WorkerId) {
        let worker = &mut self.workers[id.0];
        if worker.life != Life::Up {
            return;
        }
        if worker.hangs {
            return;
        }
        if worker.dies {
            worker.life = Life::Over;
            self.note(Who::Worker(id));
            return;
        }
        if !self.is_calm && self.seldom(100 * self.patience) {
            return match self.below(3) {
                0 => self
                    .turn_bad(id, |worker| worker.outbox.push_back(Piece::Bytes(b"hello".to_vec().into()))),
                _ => self.turn_bad(id, |worker| worker.dies = true),
            };
        }
        if let Some((request_id, params)) = self.workers[id.0].draws {
            let is_cancelled = self.workers[id.0].cancelled == self.workers[id.0].read;
            // Some do not listen, and some are done just then.
            let deed = match is_cancelled && !self.seldom(4) {
                true => Deed::GiveUp,
                false if self.is_calm || self.seldom(4) => Deed::Answer,
                false => return,
            };
            self.workers[id.0].draws = None;
            self.note(Who::Worker(id));
            return self.answer(id, (request_id, params), deed);
        }
        let n = 1 + self.below(7000);
        let worker = &mut self.workers[id.0];
        let spare = worker.input.spare();
        let n = n.min(spare.len()).min(worker.inbox.len());
        spare.iter_mut().zip(worker.inbox.drain(..n)).for_each(|(place, byte)| *place = byte);
        worker.input.filled(n);
        self.note(Who::Worker(id));
        let worker = &mut self.workers[id.0];
        let request = match worker.input.next_frame() {
            Ok(None) => return,
            Ok(Some(arrived)) => match request::parse_arrived(&arrived) {
                Ok(request) => {
                    worker.read += 1;
                    (request.request_id, request.params)
                }
                Err(error) => panic!("the router passed on a request that is wrong: {error}"),
            },
            Err(error) => panic!("the router wrote what is no frame: {error}"),
        };
        let deed = match (self.is_calm, self.given) {
            (true, _) => Deed::Answer,
            (_, Some(_)) => Deed::Given,
            _ if self.seldom(self.patience) => BAD_DEEDS[self.below(BAD_DEEDS.len())],
            _ if self.seldom(4) => Deed::Draw,
            _ => Deed::Answer,
        };
        self.answer(id, request, deed);
    }

    /// From now on nothing is to be expected of this worker.
    fn turn_bad(&mut self, id: WorkerId, how: impl FnOnce(&mut Worker)) {
        let worker = &mut self.workers[id.0];
        worker.is_bad = true;
        self.harmed.insert(worker.tag);
        how(worker);
        self.note(Who::Worker(id));
    }

    fn answer(&mut self, id: WorkerId, (request_id, params): (u64, Params), deed: Deed) {
        let tag = params.seed;
        let head = |request_id: u64, width: u32| {
            let image = ImageSize::new(width, params.height, 3).unwrap_or_else(|_| unreachable!("a size"));
            Piece::Bytes(ResponseHead { request_id, generation_time_ms: 1, image }.emit().to_vec().into())
        };
        let end = u64::from(params.width) * u64::from(params.height) * 3;
        let pixels = |end: u64| Piece::Pixels { tag, at: 0, end };
        let error = |request_id: u64, code: ErrorCode, text: &str| {
            let mut out = [0; MAX_ERROR_FRAME];
            let frame = error::emit(request_id, code, text, &mut out).unwrap_or_default();
            Piece::Bytes(frame.to_vec().into())
        };
        let refusal = |request_id: u64| error(request_id, ErrorCode::OutOfMemory, "no room");
        let some = self.below(usize::try_from(end).unwrap_or(1)) as u64;
        let given: VecDeque<u8> = self.given.unwrap_or_default().iter().copied().collect();
        match deed {
            Deed::Answer | Deed::Refuse => {}
            Deed::Draw => {
                self.slow.insert(tag);
            }
            Deed::GiveUp => self.report.cancelled += 1,
            _ => self.turn_bad(id, |_| {}),
        }
        let worker = &mut self.workers[id.0];
        let say = &mut worker.outbox;
        match deed {
            Deed::Answer => say.extend([head(request_id, params.width), pixels(end)]),
            Deed::Draw => worker.draws = Some((request_id, params)),
            Deed::Refuse => say.push_back(refusal(request_id)),
            // For nobody: no client may see it.
            Deed::GiveUp => say.push_back(error(request_id, ErrorCode::Internal, "given up")),
            Deed::DieBefore => worker.dies = true,
            Deed::DieWithin => {
                say.extend([head(request_id, params.width), pixels(some)]);
                worker.dies = true;
            }
            Deed::DieAfter => {
                say.extend([head(request_id, params.width), pixels(end)]);
                worker.dies = true;
            }
            Deed::Hang => worker.hangs = true,
            Deed::HangWithin => {
                say.extend([head(request_id, params.width), pixels(some)]);
                worker.hangs = true;
            }
            Deed::WrongId => say.extend([head(request_id ^ 1, params.width), pixels(end)]),
            Deed::WrongSize => say.extend([head(request_id, params.width % 128 + 64), pixels(end)]),
            Deed::TooShort => say.extend([head(request_id, params.width), pixels(some), refusal(request_id)]),
            Deed::TooLong => say.extend([head(request_id, params.width), pixels(end), pixels(1 + some)]),
            Deed::Garbage => say.push_back(pixels(1 + some)),
            Deed::Given => say.push_back(Piece::Bytes(given)),
        }
        say.retain(|piece| piece.len() > 0);
    }

    /// The driver's turn with a worker.
    fn turn_worker(&mut self, id: WorkerId) {
        if self.workers[id.0].life == Life::Killed {
            return self.buried(id, Death::Killed(9), Unread::Nothing);
        }
        // Written as far as it is taken.
        let cut = 1 + self.below(8000);
        let output = self.router.worker_output(id);
        if !output.is_empty() && self.workers[id.0].life != Life::None {
            let n = output.len().min(cut);
            if output.starts_with(b"WEVE") && self.workers[id.0].life == Life::Up {
                self.workers[id.0].given += 1;
            }
            if let Ok(Split::Frame(frame, _)) = split(output, MAX_SKIPPED_PAYLOAD)
                && let Ok(request) = request::parse(&frame)
            {
                self.workers[id.0].tag = request.params.seed;
            }
            let is_whole = n == output.len();
            let worker = &mut self.workers[id.0];
            if worker.life == Life::Up {
                worker.inbox.extend(&output[..n]);
                if worker.is_bad && is_whole {
                    self.harmed.insert(worker.tag);
                }
                self.report.events += 1;
                self.router.worker_wrote(id, n);
                self.note(Who::Worker(id));
            }
        }
        for _ in 0..=self.below(8) {
            let worker = &mut self.workers[id.0];
            if matches!(worker.life, Life::None | Life::Killed) {
                return;
            }
            let can_read = worker.outbox.front().map(Piece::len);
            match self.router.worker_input(id) {
                WorkerInput::Hold => return,
                WorkerInput::Relay(client) => return self.note(Who::Client(client)),
                WorkerInput::Buffer(buffer) => {
                    let Some(len) = can_read else { return self.starved(id) };
                    assert!(!buffer.is_empty(), "a read of nothing");
                    let n = len.min(buffer.len()).min(cut);
                    if let Some(piece) = worker.outbox.front_mut() {
                        piece.take(n).copy_to(&mut buffer[..n]);
                    }
                    worker.outbox.retain(|piece| piece.len() > 0);
                    self.report.events += 1;
                    self.router.worker_received(id, n, self.now);
                }
                WorkerInput::Discard(len) => {
                    if !self.relay(id, None, len) {
                        return;
                    }
                }
                WorkerInput::Silence => {
                    if can_read.is_none() {
                        return self.starved(id);
                    }
                    worker.outbox.clear();
                    self.report.events += 1;
                    self.router.worker_spoke(id, self.now);
                }
            }
            self.take_actions();
        }
        self.note(Who::Worker(id));
    }

    /// There is nothing to read from a worker: for now, or for ever.
    fn starved(&mut self, id: WorkerId) {
        let worker = &self.workers[id.0];
        if worker.life == Life::Over {
            let unread = if worker.inbox.is_empty() { Unread::Nothing } else { Unread::Request };
            let death = if self.seldom(2) { Death::Killed(11) } else { Death::Exited(1) };
            self.buried(id, death, unread);
        }
    }

    fn buried(&mut self, id: WorkerId, death: Death, unread: Unread) {
        let worker = &mut self.workers[id.0];
        worker.life = Life::None;
        worker.relayed = None;
        if unread == Unread::Nothing {
            self.harmed.insert(worker.tag);
        }
        self.report.deaths += 1;
        self.report.events += 1;
        self.router.worker_down(id, death, unread, self.now);
    }

    /// Moves pixels to a client, or to nowhere. Whether any moved.
    fn relay(&mut self, id: WorkerId, client: Option<ClientId>, len: usize) -> bool {
        let worker = &mut self.workers[id.0];
        if worker.relayed.is_none() {
            let Some(piece) = worker.outbox.front_mut() else {
                // The driver sees the end of the stream and ends the worker.
                if worker.life == Life::Over {
                    worker.life = Life::Killed;
                    self.note(Who::Worker(id));
                }
                return false;
            };
            let n = piece.len().min(len).min(RELAY_LEN);
            worker.relayed = Some(piece.take(n));
            worker.outbox.retain(|piece| piece.len() > 0);
        }
        let Some(pending) = &mut worker.relayed else { return false };
        let mut n = pending.len();
        if let Some(client) = client {
            let Some(client) = &mut self.clients[client.0] else { return false };
            n = n.min(client.room);
            if n == 0 {
                return false;
            }
            client.room -= n;
        }
        let part = pending.take(n);
        if pending.len() == 0 {
            worker.relayed = None;
        }
        if let Some(client) = client {
            self.receive(client, part);
        }
        self.report.events += 1;
        self.router.relayed(id, n, self.now);
        true
    }

    // ---------------------------------------------------------------- the end

    /// Everybody behaves, and what is begun is finished.
    fn quiet_down(&mut self) {
        self.is_calm = true;
        for round in 0.. {
            assert!(round < 500, "the world does not come to rest");
            self.settle();
            // An image whose head has come is one that is still owed.
            let owes = |client: &Client| {
                client.owes() + usize::from(matches!(client.reading, Reading::Pixels { .. }))
            };
            let owed: usize = self.clients.iter().flatten().map(owes).sum();
            if owed == 0 {
                break;
            }
            let Some(at) = self.router.wake_at() else { panic!("{owed} requests are stuck") };
            self.pass(at.saturating_duration_since(self.now));
        }
        if self.is_draining {
            assert!(self.router.is_drained(), "nothing is owed, and yet it is not over");
        }
    }

    /// Until nobody has anything to do without the clock.
    fn settle(&mut self) {
        for turns in 0.. {
            assert!(turns < 200_000, "somebody turns in circles");
            for id in (0..self.clients.len()).map(ClientId) {
                if let Some(client) = &mut self.clients[id.0] {
                    if client.manners == Manners::Deaf || client.is_lost {
                        client.manners = Manners::Pipelining;
                    }
                    self.send(id, usize::MAX);
                    self.read(id, 1 << 20);
                }
            }
            for id in (0..self.workers.len()).map(WorkerId) {
                let worker = &self.workers[id.0];
                if !worker.inbox.is_empty() || worker.dies || worker.draws.is_some() {
                    self.act_worker(id);
                }
            }
            if self.ready.is_empty() {
                return;
            }
            self.drive();
            self.router.assert_consistent();
        }
    }
}

/// Looks at what a client has of a frame. Whether it was whole, or is the head of an image.
fn take_answer(client: &mut Client, is_draining: bool, harmed: &BTreeSet<u64>, slow: &BTreeSet<u64>) -> bool {
    let head = client.head.as_slice();
    let Some((header, fields)) = head.split_first_chunk::<HEADER_LEN>() else { return false };
    let header = match weave_core::frame::Header::parse(header, MAX_RESPONSE_PAYLOAD) {
        Ok(header) => header,
        Err(error) => panic!("a client got what is no frame: {error}"),
    };
    match header.kind() {
        Kind::Response => {
            if head.len() < RESPONSE_HEAD_LEN {
                return false;
            }
            let Some(fields) = fields.first_chunk::<RESPONSE_FIXED_LEN>() else { return false };
            let (head, trailing) = match ResponseHead::parse(header, fields) {
                Ok(parsed) => parsed,
                Err(error) => panic!("a client got a response that is wrong: {error}"),
            };
            let Some(asked) = client.asked.get_mut(&head.request_id) else {
                panic!("an image for request {}, which is not open", head.request_id)
            };
            let fits = |asked: &Asked| {
                asked.fault.is_none()
                    && (asked.width, asked.height) == (head.image.width(), head.image.height())
            };
            let Some(at) = asked.iter().position(fits) else { panic!("an image of another size") };
            let asked_for = asked.remove(at);
            client.asked.retain(|_, asked| !asked.is_empty());
            // With one id for two requests only the pixels tell which one it was.
            let end = u64::from(head.image.data_len()) + u64::from(trailing);
            client.reading = Reading::Pixels { tag: asked_for.tag, at: 0, end };
            true
        }
        Kind::Error => {
            let Ok(Split::Frame(frame, _)) = split(head, MAX_RESPONSE_PAYLOAD) else { return false };
            let error = match error::parse(&frame) {
                Ok(error) => error,
                Err(error) => panic!("a client got an error that is wrong: {error}"),
            };
            if error.request_id == 0 && !client.asked.contains_key(&0) {
                let gave_up = matches!(error.code, ErrorCode::InvalidMagic | ErrorCode::Timeout);
                assert!(gave_up, "an error for nobody: {:?}", error.code);
                assert!(client.manners != Manners::Good, "a client that behaves is given up");
                client.asked.clear();
                return true;
            }
            let Some(asked) = client.asked.get_mut(&error.request_id) else {
                panic!("an error for request {}, which is not open", error.request_id)
            };
            let text = error.text().to_string();
            let may_be = |asked: &Asked| match asked.fault {
                Some(code) => error.code == code,
                None => match error.code {
                    ErrorCode::Busy => true,
                    ErrorCode::ShuttingDown => is_draining,
                    ErrorCode::OutOfMemory => text == "no room",
                    ErrorCode::Timeout => {
                        text.contains("no worker was free")
                            || harmed.contains(&asked.tag)
                            || slow.contains(&asked.tag)
                    }
                    ErrorCode::GpuError => {
                        text.contains("in a row")
                            || text.contains("is refused for an hour")
                            || harmed.contains(&asked.tag)
                    }
                    _ => false,
                },
            };
            let Some(at) = asked.iter().position(may_be) else {
                panic!("request {}: {:?} for no reason: {text}", error.request_id, error.code)
            };
            asked.remove(at);
            client.asked.retain(|_, asked| !asked.is_empty());
            true
        }
        kind => panic!("a client got a frame of type {kind:?}"),
    }
}
