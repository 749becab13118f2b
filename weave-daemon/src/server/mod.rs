//! Binds the router to sockets: one thread, one `mio::Poll`.
//!
//! mio tells of readiness once, so a socket that was put aside with work left stands on our own
//! list of those that are ready, and the next poll doesn't sleep while that list is not empty. Each
//! turn of a socket is bounded, so that none keeps the others waiting.

mod doors;
mod endpoint;
mod operator;
mod pages;
mod slots;
mod tokens;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Token};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use weave_core::limits::MAX_ERROR_FRAME;

use crate::causes::Death;
use crate::config::Config;
use crate::counters::LoopCounters;
use crate::model::Profile;
use crate::repeats::{About, Repeats};
use crate::router::{
    Action, ClientId, ClientOutput, Order, Router, Unread, Who, WorkerId, WorkerInput, no_room_answer,
};
use crate::socket::Socket;
use crate::tcp::Tcp;

use doors::{Budget, Doors, Newcomer};
use endpoint::{Endpoint, Io, Ready};
pub use operator::Reread;
use operator::{Operator, View};
use slots::{Gone, Relayed, Slots};
use tokens::{CHILD, FIRST_ADMIN, FIRST_WORKER, HANG_UP, LISTENER, Owner, STOP, Tokens};

/// Bytes that are moved for one socket before the next one has its turn.
const TURN: usize = 256 * 1024;
/// What systemd is asked for beyond the drain limit, so that it doesn't come first.
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// How often to look whether one can still come in.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// The daemon, listening.
pub struct Server {
    config: Config,
    poll: Poll,
    tokens: Tokens,
    router: Router,
    doors: Doors,
    clients: Box<[Option<Endpoint>]>,
    slots: Slots,
    ready: Ready,
    operator: Operator,
    counters: LoopCounters,
    repeats: Repeats,
    /// When to look again whether one can come in.
    look_at: Instant,
    stop: UnixStream,
    child: UnixStream,
    hang_up: UnixStream,
}

/// How a socket's turn ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// There is nothing more to do for now.
    Done,
    /// It was stopped with work left, for others to have their turn.
    WorkLeft,
}

impl Server {
    /// Makes everything that serving takes. Clients may connect from now on. `socket` is the
    /// listener's file, where it is ours to remove; `reread` is for SIGHUP.
    ///
    /// # Errors
    /// The operating system has no descriptors to give.
    pub fn new(
        config: Config,
        socket: Option<Socket>,
        listener: std::os::unix::net::UnixListener,
        reread: Reread,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let limits = config.limits();
        Ok(Self {
            stop: signal_pipe(&[SIGTERM, SIGINT], &poll, STOP)?,
            child: signal_pipe(&[SIGCHLD], &poll, CHILD)?,
            hang_up: signal_pipe(&[SIGHUP], &poll, HANG_UP)?,
            tokens: Tokens::new(limits.workers, limits.connections),
            router: Router::new(limits, Instant::now()),
            doors: Doors::new(config.access.clone(), listener, socket, poll.registry(), LISTENER)?,
            clients: std::iter::repeat_with(|| None).take(limits.connections).collect(),
            slots: Slots::new(limits.workers)?,
            ready: Ready::new(limits.connections, limits.workers),
            operator: Operator::new(reread),
            counters: LoopCounters::default(),
            repeats: Repeats::default(),
            look_at: Instant::now() + LOOK_PAUSE,
            poll,
            config,
        })
    }

    /// Serves clients that come over TCP as well.
    ///
    /// # Errors
    /// The operating system can't watch the listener.
    pub fn listen_on(&mut self, tcp: Tcp) -> io::Result<()> {
        self.doors.open_tcp(tcp, self.poll.registry(), self.tokens.tcp())
    }

    /// Shows metrics, health and what the images are made with on this socket as well.
    ///
    /// # Errors
    /// The operating system won't watch it.
    pub fn show_on(
        &mut self,
        listener: std::os::unix::net::UnixListener,
        socket: Option<Socket>,
        model: Profile,
    ) -> io::Result<()> {
        let access = self.config.access.clone();
        self.operator.show_on(listener, socket, model, access, self.poll.registry())
    }

    /// Serves until SIGTERM or SIGINT has come and every answer has left.
    ///
    /// # Errors
    /// Polling failed, which leaves nothing to go on with.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        self.operator.ready();
        // Now, not at the end of the first turn: a client that waited there is heard in that one already.
        let now = Instant::now();
        self.router.tick(now);
        self.take_actions(now);
        loop {
            // Read before it is asked who is ready: late is who was late by then and still has nothing to say, not
            // whose words lay there while this process itself stood still.
            let asked_at = Instant::now();
            match self.poll.poll(&mut events, self.poll_timeout(asked_at)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            let now = Instant::now();
            for event in &events {
                self.counters.events += 1;
                self.take_event(event, now);
            }
            let now = Instant::now();
            self.turn(now);
            self.router.tick(asked_at);
            self.take_actions(now);
            // Whoever asks how things are gets to know how they are now.
            if self.look_at <= now || self.operator.is_asked() {
                self.look(now);
            }
            self.operator.tell_status(&self.router, self.doors.lost(), now);
            let view = View {
                router: &self.router,
                slots: &self.slots,
                config: &self.config,
                is_draining: !self.doors.are_open(),
                lost: self.doors.lost(),
                now,
            };
            self.operator.answer(self.poll.registry(), &mut self.counters, &mut self.repeats, &view);
            self.repeats.tell(now);
            self.router.repeats_mut().tell(now);
            self.counters.turns += 1;
            if self.router.is_drained() {
                self.repeats.tell_all();
                self.router.repeats_mut().tell_all();
                log::info!("stopped; {} requests were answered", self.router.counters().requests());
                return Ok(());
            }
        }
    }

    /// How long a poll that begins now may sleep.
    fn poll_timeout(&self, now: Instant) -> Option<Duration> {
        if self.ready.len() > 0 || self.slots.has_log() || self.doors.are_busy() {
            return Some(Duration::ZERO);
        }
        let look_at = (self.doors.have_file() || self.operator.has_file()).then_some(self.look_at);
        let others = self.doors.wake_at().into_iter().chain(self.operator.wake_at(now)).chain(look_at);
        let others = others
            .chain(self.slots.wake_at())
            .chain(self.repeats.wake_at())
            .chain(self.router.repeats().wake_at());
        let wake_at = self.router.wake_at().into_iter().chain(others).min()?;
        let left = wake_at.saturating_duration_since(now);
        // Rounded up: mio counts in milliseconds, and waking too early would only turn in circles.
        Some(if left.is_zero() { left } else { left + Duration::from_millis(1) })
    }

    fn take_event(&mut self, event: &mio::event::Event, now: Instant) {
        let token = event.token();
        match token {
            LISTENER => self.doors.unix_event(),
            STOP => self.stop(now),
            CHILD => self.child_ended(now),
            HANG_UP => self.reload(now),
            Token(FIRST_ADMIN..FIRST_WORKER) => self.operator.event(token),
            _ => match self.tokens.owner(token) {
                Owner::Log => self.slots.log_event(),
                Owner::Tcp => {
                    let registry = self.poll.registry();
                    let (counters, repeats) = (&mut self.counters, &mut self.repeats);
                    self.doors.tcp_event(token, registry, counters, repeats, now);
                }
                Owner::Who(who) => {
                    let Some(endpoint) = self.endpoint(who) else { return };
                    endpoint.readable |= event.is_readable() || event.is_read_closed();
                    endpoint.writable |= event.is_writable();
                    self.ready.push(who);
                    // The peer has closed both ways: nobody will read an answer.
                    if let (Who::Client(id), true) = (who, event.is_write_closed()) {
                        self.close_client(id, now);
                    }
                }
            },
        }
    }

    /// Does what can be done without waiting, once around.
    fn turn(&mut self, now: Instant) {
        for _ in 0..self.ready.len() {
            let Some(who) = self.ready.pop() else { break };
            let turn = match who {
                Who::Client(id) => self.serve_client(id, now),
                Who::Worker(id) => self.serve_worker(id, now),
            };
            if turn == Turn::WorkLeft {
                self.ready.push(who);
            }
            self.take_actions(now);
        }
        // Who has something to say has said it by now, and is not taken for idle when a newcomer needs a place.
        self.accept(Budget::ONE_TURN, now);
        self.take_actions(now);
        self.slots.pass_on_logs(now);
    }

    fn take_actions(&mut self, now: Instant) {
        while let Some(action) = self.router.next_action() {
            match action {
                Action::Look(who) => self.ready.push(who),
                Action::Measure(id) => {
                    let held = self.clients[id.0].as_ref().and_then(|client| client.stream.unsent());
                    self.router.client_holds(id, held, now);
                }
                Action::Order(id, Order::Start) => self.start(id, now),
                Action::Order(id, Order::Kill) => self.kill(id, now),
                Action::Order(id, Order::Cancel(nth)) => self.slots.cancel(id, nth),
            }
        }
    }

    /// Looks whether one can still come in.
    fn look(&mut self, now: Instant) {
        self.look_at = now + LOOK_PAUSE;
        self.doors.look(self.poll.registry());
        self.operator.look(self.poll.registry());
    }

    fn endpoint(&mut self, who: Who) -> Option<&mut Endpoint> {
        match who {
            Who::Client(id) => self.clients.get_mut(id.0)?.as_mut(),
            Who::Worker(id) => self.slots.endpoint(id),
        }
    }

    // ---------------------------------------------------------------- clients

    fn accept(&mut self, mut budget: Budget, now: Instant) {
        loop {
            let registry = self.poll.registry();
            let (counters, repeats) = (&mut self.counters, &mut self.repeats);
            let Some(newcomer) = self.doors.accept(&mut budget, registry, counters, repeats, now) else {
                break;
            };
            self.welcome(newcomer, now);
        }
    }

    fn welcome(&mut self, Newcomer { mut stream, user }: Newcomer, now: Instant) {
        if let Some(id) = self.router.displaced_by(user, now) {
            self.close_client(id, now);
        }
        let id = match self.router.accept(user, now) {
            Ok(id) => id,
            Err(full) => {
                if self.repeats.is_first(About::NoRoom, Some(user), now) {
                    log::warn!("refused a connection: {full}");
                }
                let mut frame = [0; MAX_ERROR_FRAME];
                // A fresh socket has room for it; if not, closing says enough.
                let _ = stream.write(no_room_answer(full, &mut frame));
                return;
            }
        };
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut stream, self.tokens.client(id), interest) {
            self.counters.refused_error += 1;
            if self.repeats.is_first(About::Unwatched, Some(user), now) {
                log::warn!("can't watch a connection: {error}");
            }
            self.router.client_gone(id, now);
            return;
        }
        self.clients[id.0] = Some(Endpoint::new(stream));
        self.ready.push(Who::Client(id));
    }

    fn close_client(&mut self, id: ClientId, now: Instant) {
        if self.clients[id.0].take().is_some() {
            self.router.client_gone(id, now);
        }
    }

    /// Reads and writes what a client has and can take.
    fn serve_client(&mut self, id: ClientId, now: Instant) -> Turn {
        // Read once: the buffer bounds how many requests one turn can bring.
        let mut turn = Turn::Done;
        if let Some(client) = &mut self.clients[id.0] {
            let spare = self.router.client_spare(id);
            if client.readable && !spare.is_empty() {
                match client.read(spare) {
                    Io::Moved(n) => {
                        self.router.client_received(id, n, now);
                        turn = Turn::WorkLeft;
                    }
                    Io::Blocked => {}
                    Io::Ended | Io::Reset => {
                        client.readable = false;
                        self.router.client_eof(id);
                    }
                }
            }
        }
        let mut budget = TURN;
        while budget > 0 {
            let Some(client) = &mut self.clients[id.0] else { return Turn::Done };
            let io = match self.router.client_output(id, now) {
                ClientOutput::Nothing => return turn,
                ClientOutput::Close => {
                    if let Some(client) = self.clients[id.0].take() {
                        client.part();
                        self.router.client_gone(id, now);
                    }
                    return Turn::Done;
                }
                _ if !client.writable => return turn,
                ClientOutput::Bytes(bytes) => {
                    let io = client.write(bytes);
                    if let Io::Moved(n) = io {
                        self.router.client_wrote(id, n, now);
                    }
                    io
                }
                ClientOutput::Relay { worker, len } => self.relay(worker, id, len, now),
            };
            match io {
                Io::Moved(n) => budget = budget.saturating_sub(n.max(1)),
                Io::Blocked => return turn,
                Io::Ended | Io::Reset => {
                    self.close_client(id, now);
                    return Turn::Done;
                }
            }
        }
        Turn::WorkLeft
    }

    /// Moves pixels from a worker to a client. `Ended` is the client's end; that of the worker comes to
    /// light when its own turn comes.
    fn relay(&mut self, id: WorkerId, client: ClientId, len: usize, now: Instant) -> Io {
        let Some(client) = &mut self.clients[client.0] else { return Io::Ended };
        match self.slots.relay(id, client, len, &mut self.counters.relayed) {
            Relayed::Moved(n) => {
                if n > 0 {
                    self.router.relayed(id, n, now);
                }
                Io::Moved(n)
            }
            Relayed::Waits => Io::Blocked,
            Relayed::ClientGone => Io::Ended,
            Relayed::WorkerGone => {
                self.kill(id, now);
                Io::Blocked
            }
        }
    }

    // ---------------------------------------------------------------- workers

    fn start(&mut self, id: WorkerId, now: Instant) {
        match self.slots.start(id, &self.config, self.poll.registry(), self.tokens) {
            Ok(()) => self.router.worker_up(id, now),
            Err(error) => {
                log::error!("worker {}: can't start it: {error}", id.0);
                self.router.worker_down(id, Death::NotStarted, Unread::Request, now);
            }
        }
    }

    fn kill(&mut self, id: WorkerId, now: Instant) {
        let gone = self.slots.kill(id);
        self.tell_death(id, gone, now);
    }

    fn tell_death(&mut self, id: WorkerId, gone: Option<Gone>, now: Instant) {
        if let Some(Gone { death, unread }) = gone {
            self.router.worker_down(id, death, unread, now);
        }
    }

    fn child_ended(&mut self, now: Instant) {
        empty(&mut self.child);
        for id in (0..self.slots.len()).map(WorkerId) {
            // If its stream is still open, what it has said is heard first.
            if let Some(worker) = self.slots.endpoint(id) {
                worker.readable = true;
            }
            self.ready.push(Who::Worker(id));
            let gone = self.slots.reap(id);
            self.tell_death(id, gone, now);
        }
    }

    /// Writes a worker's request and reads its answer.
    fn serve_worker(&mut self, id: WorkerId, now: Instant) -> Turn {
        while let Some(worker) = self.slots.endpoint(id) {
            let bytes = self.router.worker_output(id);
            if bytes.is_empty() || !worker.writable {
                break;
            }
            match worker.write(bytes) {
                Io::Moved(n) => self.router.worker_wrote(id, n),
                Io::Blocked => break,
                // What it has said before it died is still to be heard.
                Io::Ended | Io::Reset => worker.writable = false,
            }
        }
        let mut budget = TURN;
        while budget > 0 {
            let Some(worker) = self.slots.endpoint(id).filter(|worker| worker.readable) else {
                return Turn::Done;
            };
            let io = match self.router.worker_input(id) {
                WorkerInput::Hold => return Turn::Done,
                WorkerInput::Relay(client) => {
                    self.ready.push(Who::Client(client));
                    return Turn::Done;
                }
                WorkerInput::Buffer(buf) => {
                    let io = worker.read(buf);
                    if let Io::Moved(n) = io {
                        self.router.worker_received(id, n, now);
                    }
                    io
                }
                WorkerInput::Discard(len) => {
                    let io = self.slots.discard(id, len);
                    match io {
                        Io::Moved(n) => self.router.relayed(id, n, now),
                        Io::Blocked => {}
                        Io::Ended | Io::Reset => {
                            self.kill(id, now);
                            return Turn::Done;
                        }
                    }
                    io
                }
                WorkerInput::Silence => {
                    let io = worker.read(&mut [0; 64]);
                    if matches!(io, Io::Moved(1..)) {
                        self.router.worker_spoke(id, now);
                    }
                    io
                }
            };
            match io {
                Io::Moved(n) => budget = budget.saturating_sub(n.max(1)),
                Io::Blocked => return Turn::Done,
                how @ (Io::Ended | Io::Reset) => {
                    let gone = self.slots.hung_up(id, how);
                    self.tell_death(id, gone, now);
                    return Turn::Done;
                }
            }
            self.take_actions(now);
        }
        Turn::WorkLeft
    }

    // ---------------------------------------------------------------- signals

    /// SIGHUP.
    fn reload(&mut self, now: Instant) {
        empty(&mut self.hang_up);
        if self.doors.are_open() {
            self.operator.reload(&mut self.config, &mut self.router, &mut self.counters, now);
            self.doors.reload_token(&self.config);
            self.look(now);
        }
    }

    /// SIGTERM or SIGINT: the first one lets running work finish, the second one doesn't.
    fn stop(&mut self, now: Instant) {
        empty(&mut self.stop);
        if self.doors.are_open() {
            // Who has connected by now gets an answer, not a broken connection.
            self.doors.take_the_last();
            self.accept(Budget::WHOLE_QUEUE, now);
            self.doors.close();
            log::info!("stopping: no new requests; what runs may take {:?}", self.config.drain_timeout);
            self.operator.stopping(self.config.drain_timeout.saturating_add(STOP_MARGIN));
            self.router.drain(now);
        } else {
            log::info!("stopping at once");
            self.router.abort(now);
        }
    }
}

/// A pipe that turns a signal into a readable socket.
fn signal_pipe(signals: &[i32], poll: &Poll, token: Token) -> io::Result<UnixStream> {
    let (ours, theirs) = StdStream::pair()?;
    theirs.set_nonblocking(true)?;
    ours.set_nonblocking(true)?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, theirs.try_clone()?)?;
    }
    let mut ours = UnixStream::from_std(ours);
    poll.registry().register(&mut ours, token, Interest::READABLE)?;
    Ok(ours)
}

/// Reads a signal's pipe until there is nothing in it.
fn empty(pipe: &mut UnixStream) {
    while matches!(pipe.read(&mut [0; 64]), Ok(1..)) {}
}
