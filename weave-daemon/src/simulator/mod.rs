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
//! 5. users have turns one after the other, and so have the clients of one; none has more places than it may, and
//!    those that are kept for the owner are his;
//! 6. once the world quiets down nothing is left undone, and nobody turns in circles.

mod choices;
mod clients;
mod company;
mod judge;
mod piece;
mod report;
mod workers;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use weave_core::frame::{Split, split};
use weave_core::limits::MAX_SKIPPED_PAYLOAD;
use weave_core::request;

use crate::causes::{Cut, Death};
use crate::router::{
    Abandoned, Action, ClientId, ClientOutput, LEAST_PROGRESS, Limits, Order, Router, Unread, Who, WorkerId,
    WorkerInput,
};

use choices::Luck;
pub use choices::{Bytes, Choices, Seeded};
use clients::{Acted, Client, Manners, Reading};
use company::Company;
use judge::Judge;
use piece::Piece;
use report::News;
pub use report::Report;
use workers::{Life, Mood, Worker};

/// Runs one world to its end: at most `events` events of turmoil, then until it is quiet.
/// `worker_bytes`: what every worker sends in place of an answer, for a look at that side alone.
///
/// # Panics
/// If the router breaks one of its promises.
pub fn run(choices: impl Choices, events: u64, worker_bytes: Option<&[u8]>) -> Report {
    let mut world = World::new(choices, worker_bytes);
    while world.report.events < events && !world.luck.0.is_over() {
        world.step();
        world.router.assert_consistent();
    }
    world.quiet_down();
    world.report
}

struct World<'a, C> {
    luck: Luck<C>,
    mood: Mood<'a>,
    router: Router,
    now: Instant,
    /// What has passed in short pauses since everybody last had a chance.
    unsettled: Duration,
    clients: Vec<Option<Client>>,
    workers: Vec<Worker>,
    ready: VecDeque<Who>,
    /// The last one that was given to a request.
    tag: u64,
    judge: Judge,
    company: Company,
    /// How many of the users that there are come.
    users: usize,
    report: Report,
}

/// What the driver's buffer between worker and client holds.
const RELAY_LEN: usize = 64 * 1024;

/// The least of all limits in a world: the driver, too, looks at everybody who is ready before it looks at the clock.
const SHORTEST: Duration = Duration::from_secs(1);

impl<'a, C: Choices> World<'a, C> {
    fn new(choices: C, given: Option<&'a [u8]>) -> Self {
        let mut luck = Luck(choices);
        let seconds = |n: usize| Duration::from_secs(n as u64);
        let limits = Limits {
            connections: luck.between(1, 8),
            in_flight: luck.between(1, 24),
            queue: luck.between(1, 32),
            workers: luck.between(1, 3),
            frame: seconds(luck.between(1, 30)),
            idle: seconds(luck.between(1, 300)),
            queue_wait: seconds(luck.between(1, 300)),
            generation: seconds(luck.between(1, 100)),
            stall: seconds(luck.between(5, 30)),
            busy_stall: seconds(luck.between(1, 10)),
            drain: seconds(luck.between(1, 100)),
            worker_idle: match luck.between(0, 3) {
                0 => Some(seconds(luck.between(1, 100))),
                _ => None,
            },
            warm_up: given.is_none() && luck.between(0, 1) == 1,
            abandoned: if luck.between(0, 2) == 0 { Abandoned::Cancel } else { Abandoned::Finish },
            cancel: seconds(luck.between(0, 5)),
        };
        let patience = [2, 10, 100][luck.between(0, 2)];
        let users = luck.between(1, company::MOST);
        let now = Instant::now();
        Self {
            luck,
            mood: Mood { is_calm: false, patience, given },
            router: Router::new(limits, now),
            now,
            unsettled: Duration::ZERO,
            clients: std::iter::repeat_with(|| None).take(limits.connections).collect(),
            workers: std::iter::repeat_with(Worker::new).take(limits.workers).collect(),
            ready: VecDeque::new(),
            tag: 1,
            judge: Judge::default(),
            company: Company::new(limits.connections, limits.queue),
            users,
            report: Report::default(),
        }
    }

    // ---------------------------------------------------------------- events

    fn step(&mut self) {
        match self.luck.below(16) {
            0..=7 => self.drive(),
            8..=9 => {
                let client = self.luck.below(self.clients.len());
                self.act_client(ClientId(client));
            }
            10..=13 => {
                let worker = self.luck.below(self.workers.len());
                self.act_worker(WorkerId(worker));
            }
            14 => {
                let pause = Duration::from_millis(self.luck.below(100) as u64);
                if self.is_settled() {
                    self.unsettled = Duration::ZERO;
                }
                if self.unsettled + pause < SHORTEST {
                    self.unsettled += pause;
                    self.pass(pause);
                }
            }
            // Long enough for every limit, but only when everybody has had a chance.
            _ if self.is_settled() => match (self.luck.below(4), self.router.wake_at()) {
                (0, _) => {
                    let pause = self.luck.below(200);
                    self.pass(Duration::from_secs(pause as u64));
                }
                (_, Some(at)) => self.pass(at.saturating_duration_since(self.now)),
                (_, None) => {}
            },
            _ => {
                if !self.judge.is_draining && self.luck.below(200) == 1 && self.luck.below(20) == 1 {
                    self.judge.is_draining = true;
                    self.router.drain(self.now);
                    self.report.events += 1;
                    self.take_actions();
                }
            }
        }
    }

    /// Whether everybody who does what is asked has done so.
    fn is_settled(&self) -> bool {
        self.ready.is_empty() && !self.workers.iter().any(Worker::works)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.report.events += 1;
        self.router.tick(self.now);
        self.take_actions();
    }

    fn mark(&mut self, who: Who) {
        if !self.ready.contains(&who) {
            self.ready.push_back(who);
        }
    }

    fn mark_if(&mut self, news: News, who: Who) {
        if news == News::Some {
            self.mark(who);
        }
    }

    fn take_actions(&mut self) {
        while let Some(action) = self.router.next_action() {
            match action {
                Action::Look(who) => self.mark(who),
                Action::Measure(id) => self.measure(id),
                Action::Order(id, Order::Start) => self.start(id),
                Action::Order(id, Order::Cancel(nth)) => {
                    let worker = &mut self.workers[id.0];
                    assert!(worker.life != Life::None, "a worker is told something that isn't there");
                    assert!((1..=worker.given).contains(&nth), "request {nth} of {} cancelled", worker.given);
                    assert!(nth > worker.cancelled, "told twice");
                    worker.cancelled = nth;
                }
                Action::Order(id, Order::Kill) => {
                    let worker = &mut self.workers[id.0];
                    assert!(worker.life != Life::None, "a worker is ended that isn't there");
                    worker.life = Life::Killed;
                    worker.relayed = None;
                    self.mark(Who::Worker(id));
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
        // Sometimes somebody comes though there may be no place.
        let comes = if self.clients[id.0].is_none() { self.luck.below(4) == 0 } else { self.luck.seldom(30) };
        if comes && !self.judge.is_draining {
            self.connect();
        }
        let Some(client) = &mut self.clients[id.0] else { return };
        match client.act(&mut self.luck, &mut self.tag, &mut self.report) {
            Acted::Stayed(news) => self.mark_if(news, Who::Client(id)),
            Acted::HungUp(news) => {
                self.mark_if(news, Who::Client(id));
                self.hang_up(id);
            }
        }
    }

    fn connect(&mut self) {
        self.report.events += 1;
        let user = company::user(self.luck.below(self.users));
        self.hear();
        if let Some(id) = self.router.displaced_by(user, self.now) {
            self.company.displaced(id, user, &self.connected());
            self.report.displaced += 1;
            self.report.closed += 1;
            self.clients[id.0].iter_mut().for_each(Judge::displaced);
            self.hang_up(id);
        }
        let connected = self.connected();
        let id = match self.router.accept(user, self.now) {
            Ok(id) => id,
            Err(full) => return self.company.refused(full, &connected),
        };
        assert!(self.clients[id.0].is_none(), "one place for two clients");
        self.hear();
        self.company.accepted(id, user, &connected);
        self.judge.forget(id);
        self.clients[id.0] = Some(Client::new(&mut self.luck));
        self.mark(Who::Client(id));
    }

    /// The clients that there are.
    fn connected(&self) -> Vec<ClientId> {
        (0..self.clients.len()).map(ClientId).filter(|id| self.clients[id.0].is_some()).collect()
    }

    /// Takes down what the router has decided.
    fn hear(&mut self) {
        let refusals = self.router.take_refusals();
        self.company.judge_refusals(&refusals);
        self.company.judge_turns(self.router.take_turns());
        self.judge.hear(refusals);
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
        let cut = 1 + self.luck.below(8000);
        if let Some(client) = &mut self.clients[id.0] {
            let spare = self.router.client_spare(id);
            let n = spare.len().min(client.sent.len()).min(cut);
            if n > 0 {
                spare.iter_mut().zip(client.sent.drain(..n)).for_each(|(place, byte)| *place = byte);
                self.report.events += 1;
                self.router.client_received(id, n, self.now);
                self.mark(Who::Client(id));
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
        for _ in 0..=self.luck.below(8) {
            let Some(client) = &mut self.clients[id.0] else { return };
            match self.router.client_output(id, self.now) {
                ClientOutput::Nothing => return,
                ClientOutput::Close => return self.closed(id),
                _ if client.room == 0 => return,
                ClientOutput::Bytes(bytes) => {
                    assert!(!bytes.is_empty(), "a write of nothing");
                    let n = bytes.len().min(client.room).min(cut);
                    let bytes = bytes[..n].to_vec();
                    client.take_in(n);
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
        self.mark(Who::Client(id));
    }

    /// The router wants to know how much a client has not read. Nobody may be cut off who has read enough meanwhile.
    fn measure(&mut self, id: ClientId) {
        let held = self.clients[id.0].as_ref().map(|client| client.held);
        let stalled = |router: &Router| router.counters().cuts[Cut::Stalled as usize];
        let before = stalled(&self.router);
        self.report.events += 1;
        self.router.client_holds(id, held, self.now);
        if let Some(client) = &mut self.clients[id.0] {
            let has_read = std::mem::take(&mut client.has_read);
            let is_cut = stalled(&self.router) > before;
            assert!(
                !is_cut || has_read < LEAST_PROGRESS,
                "who has read {has_read} bytes is cut off as stalled"
            );
        }
    }

    /// The router closes a client's connection.
    fn closed(&mut self, id: ClientId) {
        let Some(mut client) = self.clients[id.0].take() else { return };
        self.report.closed += 1;
        self.report.events += 1;
        self.judge.closed(&mut client);
        self.router.client_gone(id, self.now);
    }

    /// Bytes arrive at a client.
    fn receive(&mut self, id: ClientId, piece: Piece) {
        self.hear();
        let Some(client) = &mut self.clients[id.0] else { return };
        self.judge.receive(id, client, piece, &mut self.report);
    }

    // ---------------------------------------------------------------- workers

    fn start(&mut self, id: WorkerId) {
        self.report.events += 1;
        assert_eq!(self.workers[id.0].life, Life::None, "a worker is started twice");
        assert!(!self.judge.is_draining, "a worker is started to serve nobody");
        if !self.mood.is_calm && self.luck.seldom(8) {
            self.report.deaths += 1;
            return self.router.worker_down(id, Death::NotStarted, Unread::Request, self.now);
        }
        self.workers[id.0].start();
        self.router.worker_up(id, self.now);
        self.mark(Who::Worker(id));
    }

    /// A worker does something.
    fn act_worker(&mut self, id: WorkerId) {
        let worker = &mut self.workers[id.0];
        let news = worker.act(&mut self.luck, &self.mood, &mut self.judge, &mut self.report);
        self.mark_if(news, Who::Worker(id));
    }

    /// The driver's turn with a worker.
    fn turn_worker(&mut self, id: WorkerId) {
        if self.workers[id.0].life == Life::Killed {
            return self.buried(id, Death::Killed(9), Unread::Nothing);
        }
        // Written as far as it is taken.
        let cut = 1 + self.luck.below(8000);
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
                    self.judge.harmed.insert(worker.tag);
                }
                self.report.events += 1;
                self.router.worker_wrote(id, n);
                self.mark(Who::Worker(id));
            }
        }
        for _ in 0..=self.luck.below(8) {
            let worker = &mut self.workers[id.0];
            if matches!(worker.life, Life::None | Life::Killed) {
                return;
            }
            let can_read = worker.outbox.front().map(Piece::len);
            match self.router.worker_input(id) {
                WorkerInput::Hold => return,
                WorkerInput::Relay(client) => return self.mark(Who::Client(client)),
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
        self.mark(Who::Worker(id));
    }

    /// There is nothing to read from a worker: for now, or for ever.
    fn starved(&mut self, id: WorkerId) {
        let worker = &self.workers[id.0];
        if worker.life == Life::Over {
            let unread = if worker.inbox.is_empty() { Unread::Nothing } else { Unread::Request };
            let death = if self.luck.seldom(2) { Death::Killed(11) } else { Death::Exited(1) };
            self.buried(id, death, unread);
        }
    }

    fn buried(&mut self, id: WorkerId, death: Death, unread: Unread) {
        let worker = &mut self.workers[id.0];
        worker.life = Life::None;
        worker.relayed = None;
        if unread == Unread::Nothing {
            self.judge.harmed.insert(worker.tag);
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
                    self.mark(Who::Worker(id));
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
            client.take_in(n);
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
        self.mood.is_calm = true;
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
        if self.judge.is_draining {
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
                    let news = [client.send(usize::MAX), client.make_room(1 << 20)];
                    if news.contains(&News::Some) {
                        self.mark(Who::Client(id));
                    }
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
