//! Binds the router to sockets: one thread, one `mio::Poll`.
//!
//! mio tells of readiness once, so a socket that was put aside with work left stands on our own
//! list of those that are ready, and the next poll doesn't sleep while that list is not empty. Each
//! turn of a socket is bounded, so that none keeps the others waiting.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Events, Interest, Poll, Token};
use rustix::net::sockopt;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use weave_core::limits::MAX_ERROR_FRAME;

use crate::admin::{self, Admin, PAGES, Page};
use crate::causes::Death;
use crate::config::{Config, ConfigError, EngineKind};
use crate::counters::{Gauges, LoopCounters};
use crate::metrics;
use crate::proc::Process;
use crate::process::{Lines, Worker};
use crate::relay::Relay;
use crate::router::{
    Action, ClientId, ClientOutput, Limits, Order, Router, Unread, Who, WorkerId, WorkerInput, no_room_answer,
};
use crate::scoreboard::Scoreboard;
use crate::socket::Socket;
use crate::stream::Stream;
use crate::systemd::{Notifier, Status};
use crate::tcp::{Gate, Shown, Tcp};
use crate::worker_log::WorkerLog;

const LISTENER: Token = Token(0);
const STOP: Token = Token(1);
const CHILD: Token = Token(2);
const HANG_UP: Token = Token(3);
/// The administrative listener, followed by its connections.
const FIRST_ADMIN: usize = 4;
/// The first token of a worker; those of their logs come after the workers', then those of clients,
/// then that of the TCP listener, then those of clients at its gate.
const FIRST_WORKER: usize = FIRST_ADMIN + 1 + admin::CONNECTIONS;

/// Bytes that are moved for one socket before the next one has its turn.
const TURN: usize = 256 * 1024;
/// Connections that are accepted in one turn.
const ACCEPTS: usize = 64;
/// Room for what a client on this machine has not read yet, unless the system allows less (`net.core.wmem_max`). An
/// image that fits doesn't keep its worker waiting; [`relay`](crate::relay) has what the size does to its speed.
const CLIENT_SEND_BUFFER: usize = 1024 * 1024;
/// What systemd is asked for beyond the drain limit, so that it doesn't come first.
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// How long to leave the listeners alone when there are no descriptors to be had.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// When a TCP peer that says nothing is asked whether it is still there, and how often.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(10), 6);

/// What a socket said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// So many bytes moved.
    Moved(usize),
    /// Nothing for now; mio will tell.
    Blocked,
    /// Nothing any more.
    Ended,
    /// Nothing any more, and the peer has closed without reading all that was sent to it.
    Reset,
}

fn outcome(result: io::Result<usize>) -> Outcome {
    match result {
        Ok(0) => Outcome::Ended,
        Ok(n) => Outcome::Moved(n),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Outcome::Blocked,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Outcome::Moved(0),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Outcome::Reset,
        Err(_) => Outcome::Ended,
    }
}

/// A socket, and what mio has said about it that is not used up.
struct Peer {
    stream: Stream,
    readable: bool,
    writable: bool,
}

impl Peer {
    fn read(&mut self, buf: &mut [u8]) -> Outcome {
        let outcome = outcome(self.stream.read(buf));
        self.readable &= outcome != Outcome::Blocked;
        outcome
    }

    fn write(&mut self, bytes: &[u8]) -> Outcome {
        let outcome = outcome(self.stream.write_vectored(&[IoSlice::new(bytes)]));
        self.writable &= outcome != Outcome::Blocked;
        outcome
    }
}

/// A worker's end of things, and the pixels that are between it and a client.
struct Link {
    worker: Option<Worker>,
    peer: Option<Peer>,
    log: Option<WorkerLog>,
    scoreboard: Option<Scoreboard>,
    /// The worker died with its request, or part of it, still in the socket.
    unread: Unread,
    /// Made with the worker, and emptied by being made anew: what a dead one had sent is not for the next.
    relay: Relay,
}

/// Reads the settings again, from where they came the first time.
pub type Reread = Box<dyn FnMut() -> Result<Config, ConfigError> + Send>;

/// The daemon, listening.
pub struct Server {
    config: Config,
    /// This program's own file, as it was at the start: it may be replaced while it runs.
    program: PathBuf,
    poll: Poll,
    router: Router,
    listener: Option<UnixListener>,
    socket: Option<Socket>,
    stop: UnixStream,
    child: UnixStream,
    tcp: Option<TcpDoor>,
    hang_up: UnixStream,
    reread: Reread,
    notifier: Notifier,
    links: Box<[Link]>,
    clients: Box<[Option<Peer>]>,
    ready: Ready,
    accepting: bool,
    /// Whether there may be something in a worker's log.
    noisy: bool,
    /// Until when no connection is accepted for want of descriptors.
    accept_after: Option<Instant>,
    /// The last try to accept a connection failed, which was logged.
    accept_failed: bool,
    admin: Option<Admin>,
    counters: LoopCounters,
    /// By the clock that counts on, and by the one that people read.
    started: (Instant, SystemTime),
}

/// Where clients arrive over TCP.
struct TcpDoor {
    listener: TcpListener,
    token: Token,
    accepting: bool,
    /// Where they have to show their token, if there is one.
    gate: Option<Gate>,
}

/// Sockets with something left to do, each at most once.
struct Ready {
    list: VecDeque<Who>,
    clients: Box<[bool]>,
    workers: Box<[bool]>,
}

impl Ready {
    fn new(clients: usize, workers: usize) -> Self {
        let list = VecDeque::with_capacity(clients + workers);
        Self { list, clients: vec![false; clients].into(), workers: vec![false; workers].into() }
    }

    fn listed(&mut self, who: Who) -> Option<&mut bool> {
        match who {
            Who::Client(id) => self.clients.get_mut(id.0),
            Who::Worker(id) => self.workers.get_mut(id.0),
        }
    }

    fn push(&mut self, who: Who) {
        if let Some(listed) = self.listed(who)
            && !std::mem::replace(listed, true)
        {
            self.list.push_back(who);
        }
    }

    fn pop(&mut self) -> Option<Who> {
        let who = self.list.pop_front()?;
        if let Some(listed) = self.listed(who) {
            *listed = false;
        }
        Some(who)
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

fn limits(config: &Config) -> Limits {
    Limits {
        connections: config.connections,
        in_flight: config.in_flight,
        queue: config.queue,
        workers: config.workers,
        frame: config.frame_timeout,
        idle: config.idle_timeout,
        queue_wait: config.queue_timeout,
        generation: config.generation_timeout,
        stall: config.stall_timeout,
        busy_stall: config.busy_stall_timeout,
        drain: config.drain_timeout,
        worker_idle: config.worker_idle_timeout,
        warm_up: config.warm_up.unwrap_or(config.engine == EngineKind::Sdcpp),
        abandoned: config.abandoned,
        cancel: config.cancel_timeout,
    }
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
        let mut listener = UnixListener::from_std(listener);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let limits = limits(&config);
        let link = || Link {
            worker: None,
            peer: None,
            log: None,
            scoreboard: None,
            unread: Unread::Nothing,
            relay: Relay::by_copy(),
        };
        Ok(Self {
            stop: signal_pipe(&[SIGTERM, SIGINT], &poll, STOP)?,
            child: signal_pipe(&[SIGCHLD], &poll, CHILD)?,
            hang_up: signal_pipe(&[SIGHUP], &poll, HANG_UP)?,
            reread,
            notifier: Notifier::from_env(Instant::now()),
            router: Router::new(limits, Instant::now()),
            links: std::iter::repeat_with(link).take(limits.workers).collect(),
            clients: std::iter::repeat_with(|| None).take(limits.connections).collect(),
            ready: Ready::new(limits.connections, limits.workers),
            poll,
            listener: Some(listener),
            socket,
            config,
            program: std::env::current_exe()?,
            accepting: true,
            noisy: false,
            accept_after: None,
            accept_failed: false,
            tcp: None,
            admin: None,
            counters: LoopCounters::default(),
            started: (Instant::now(), SystemTime::now()),
        })
    }

    /// Serves clients that come over TCP as well.
    ///
    /// # Errors
    /// The operating system can't watch the listener.
    pub fn listen_on(&mut self, tcp: Tcp) -> io::Result<()> {
        let mut listener = TcpListener::from_std(tcp.listener);
        let token = Token(self.first_client() + self.clients.len());
        self.poll.registry().register(&mut listener, token, Interest::READABLE)?;
        let gate = tcp.token.map(|secret| Gate::new(secret, token.0 + 1));
        self.tcp = Some(TcpDoor { listener, token, accepting: true, gate });
        Ok(())
    }

    /// Shows metrics and health on this socket as well.
    ///
    /// # Errors
    /// The operating system won't watch it.
    pub fn show_on(
        &mut self,
        listener: std::os::unix::net::UnixListener,
        socket: Option<Socket>,
    ) -> io::Result<()> {
        self.admin = Some(Admin::new(listener, socket, self.poll.registry(), FIRST_ADMIN)?);
        Ok(())
    }

    /// Serves until SIGTERM or SIGINT has come and every answer has left.
    ///
    /// # Errors
    /// Polling failed, which leaves nothing to go on with.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        self.notifier.ready();
        // Now, not at the end of the first turn: a client that waited there is heard in that one already.
        let now = Instant::now();
        self.router.tick(now);
        self.take_actions(now);
        loop {
            // Read before it is asked who is ready: late is who was late by then and still has nothing to say, not
            // whose words lay there while this process itself stood still.
            let asked_at = Instant::now();
            match self.poll.poll(&mut events, self.patience(asked_at)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            let now = Instant::now();
            for event in &events {
                self.counters.events += 1;
                match event.token() {
                    LISTENER => self.accepting = true,
                    STOP => self.stopped(now),
                    CHILD => self.child_ended(now),
                    HANG_UP => self.reload(now),
                    token @ Token(FIRST_ADMIN..FIRST_WORKER) => {
                        if let Some(admin) = &mut self.admin {
                            admin.event(token);
                        }
                    }
                    token if self.is_tcp(token) => self.tcp_event(token, now),
                    Token(token) => {
                        let who = if let Some(client) = token.checked_sub(self.first_client()) {
                            Who::Client(ClientId(client))
                        } else if token >= self.first_log() {
                            self.noisy = true;
                            continue;
                        } else {
                            Who::Worker(WorkerId(token - FIRST_WORKER))
                        };
                        let Some(peer) = self.peer(who) else { continue };
                        peer.readable |= event.is_readable() || event.is_read_closed();
                        peer.writable |= event.is_writable();
                        self.ready.push(who);
                        // The peer has closed both ways: nobody will read an answer.
                        if let (Who::Client(id), true) = (who, event.is_write_closed()) {
                            self.close_client(id, now);
                        }
                    }
                }
            }
            let now = Instant::now();
            self.turn(now);
            self.router.tick(asked_at);
            self.take_actions(now);
            self.notifier.tick(now, self.status());
            self.turn_admin(now);
            self.counters.turns += 1;
            if self.router.is_drained() {
                log::info!("stopped; {} requests were answered", self.router.answered());
                return Ok(());
            }
        }
    }

    const fn first_log(&self) -> usize {
        FIRST_WORKER + self.links.len()
    }

    const fn first_client(&self) -> usize {
        self.first_log() + self.links.len()
    }

    /// How long a poll that begins now may sleep.
    fn patience(&self, now: Instant) -> Option<Duration> {
        let accepting = self.accepting || self.tcp.as_ref().is_some_and(|tcp| tcp.accepting);
        if !self.ready.list.is_empty() || self.noisy || (accepting && self.accept_after.is_none()) {
            return Some(Duration::ZERO);
        }
        let admin = self.admin.as_ref().and_then(|admin| admin.wake_at(now));
        let at_gate = self.tcp.as_ref().and_then(|tcp| tcp.gate.as_ref()?.wake_at());
        let others = self.accept_after.into_iter().chain(self.notifier.wake_at()).chain(admin).chain(at_gate);
        let wake_at = self.router.wake_at().into_iter().chain(others).min()?;
        let left = wake_at.saturating_duration_since(now);
        // Rounded up: mio counts in milliseconds, and waking too early would only turn in circles.
        Some(if left.is_zero() { left } else { left + Duration::from_millis(1) })
    }

    /// Does what can be done without waiting, once around.
    fn turn(&mut self, now: Instant) {
        self.accept(now);
        self.take_actions(now);
        for _ in 0..self.ready.list.len() {
            let Some(who) = self.ready.pop() else { break };
            let unfinished = match who {
                Who::Client(id) => self.turn_client(id, now),
                Who::Worker(id) => self.turn_worker(id, now),
            };
            if unfinished {
                self.ready.push(who);
            }
            self.take_actions(now);
        }
        // What workers log is in no hurry.
        if self.noisy {
            self.noisy = false;
            for log in self.links.iter_mut().filter_map(|link| link.log.as_mut()) {
                self.noisy |= log.pass_on();
            }
        }
    }

    fn take_actions(&mut self, now: Instant) {
        while let Some(action) = self.router.next_action() {
            match action {
                Action::Look(who) => self.ready.push(who),
                Action::Order(id, Order::Start) => self.start(id, now),
                Action::Order(id, Order::Kill) => self.kill(id, now),
                Action::Order(id, Order::Cancel(nth)) => {
                    if let Some(scoreboard) = &self.links[id.0].scoreboard {
                        scoreboard.cancel(nth);
                    }
                }
            }
        }
    }

    fn peer(&mut self, who: Who) -> Option<&mut Peer> {
        match who {
            Who::Client(id) => self.clients.get_mut(id.0)?.as_mut(),
            Who::Worker(id) => self.links.get_mut(id.0)?.peer.as_mut(),
        }
    }

    // ---------------------------------------------------------------- clients

    fn accept(&mut self, now: Instant) {
        if self.accept_after.is_some_and(|at| at <= now) {
            self.accept_after = None;
        }
        for _ in 0..ACCEPTS {
            if !self.accepting || self.accept_after.is_some() {
                break;
            }
            match self.listener.as_ref().map(UnixListener::accept) {
                Some(Ok((stream, _))) => {
                    self.accepted();
                    self.welcome_unix(stream, now);
                }
                Some(Err(error)) => self.accepting = self.not_accepted(&error, now),
                None => self.accepting = false,
            }
        }
        for _ in 0..ACCEPTS {
            let Some(tcp) = self.tcp.as_mut().filter(|tcp| tcp.accepting) else { break };
            if self.accept_after.is_some() {
                break;
            }
            match tcp.listener.accept() {
                Ok((stream, peer)) => {
                    self.accepted();
                    self.welcome_tcp(stream, peer, now);
                }
                Err(error) => {
                    let more = self.not_accepted(&error, now);
                    self.tcp.as_mut().into_iter().for_each(|tcp| tcp.accepting = more);
                }
            }
        }
        while let Some(words) = self.tcp.as_mut().and_then(|tcp| tcp.gate.as_mut()?.expire(now)) {
            self.refuse(&words);
        }
    }

    fn accepted(&mut self) {
        if std::mem::take(&mut self.accept_failed) {
            log::info!("connections are accepted again");
        }
    }

    /// Whether to try again, be it later.
    fn not_accepted(&mut self, error: &io::Error, now: Instant) -> bool {
        match error.kind() {
            io::ErrorKind::WouldBlock => return false,
            io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
            _ => {
                self.counters.accept_errors += 1;
                self.accept_after = Some(now + ACCEPT_PAUSE);
                if !std::mem::replace(&mut self.accept_failed, true) {
                    log::warn!("can't accept connections: {error}; those that come have to wait");
                }
            }
        }
        true
    }

    fn refuse(&mut self, who: &str) {
        self.counters.refused_peer += 1;
        log::warn!("refused a connection: {who} ({} so far)", self.counters.refused_peer);
    }

    fn welcome_unix(&mut self, stream: UnixStream, now: Instant) {
        match self.config.access.check(&stream) {
            Ok(uid) => {
                // Only a matter of speed.
                let _ = sockopt::set_socket_send_buffer_size(&stream, CLIENT_SEND_BUFFER);
                self.welcome(Stream::Unix(stream), Some(uid), now);
            }
            Err(reason) => self.refuse(&reason),
        }
    }

    fn welcome_tcp(&mut self, stream: TcpStream, peer: SocketAddr, now: Instant) {
        if let Err(error) = prepare_tcp(&stream) {
            log::debug!("{peer}: {error}");
        }
        let Some(gate) = self.tcp.as_mut().and_then(|tcp| tcp.gate.as_mut()) else {
            return self.welcome(Stream::Tcp(stream), None, now);
        };
        if let Err(words) = gate.wait(stream, peer, self.poll.registry(), now) {
            self.refuse(&words);
        }
    }

    fn is_tcp(&self, token: Token) -> bool {
        self.tcp.as_ref().is_some_and(|tcp| token >= tcp.token)
    }

    fn tcp_event(&mut self, token: Token, now: Instant) {
        let Some(tcp) = &mut self.tcp else { return };
        if token == tcp.token {
            tcp.accepting = true;
            return;
        }
        match tcp.gate.as_mut().and_then(|gate| gate.read(token)) {
            None => {}
            Some(Shown::Refused(words)) => self.refuse(&words),
            Some(Shown::Token(mut stream)) => match self.poll.registry().deregister(&mut stream) {
                Ok(()) => self.welcome(Stream::Tcp(stream), None, now),
                Err(error) => log::warn!("can't watch a connection: {error}"),
            },
        }
    }

    fn welcome(&mut self, mut stream: Stream, uid: Option<u32>, now: Instant) {
        let Some(id) = self.router.accept(now) else {
            log::warn!("refused a connection: all {} are taken", self.clients.len());
            let mut frame = [0; MAX_ERROR_FRAME];
            // A fresh socket has room for it; if not, closing says enough.
            let _ = stream.write(no_room_answer(self.clients.len(), &mut frame));
            return;
        };
        let token = Token(self.first_client() + id.0);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut stream, token, interest) {
            self.counters.refused_error += 1;
            log::warn!("can't watch a connection: {error}");
            self.router.client_gone(id, now);
            return;
        }
        if let Some(uid) = uid {
            self.router.name_client(id, uid);
        }
        self.clients[id.0] = Some(Peer { stream, readable: true, writable: true });
        self.ready.push(Who::Client(id));
    }

    fn close_client(&mut self, id: ClientId, now: Instant) {
        if self.clients[id.0].take().is_some() {
            self.router.client_gone(id, now);
        }
    }

    /// Reads and writes what a client has and can take. Whether it was stopped with work left.
    fn turn_client(&mut self, id: ClientId, now: Instant) -> bool {
        // Read once: the buffer bounds how many requests one turn can bring.
        let mut unread = false;
        if let Some(peer) = &mut self.clients[id.0] {
            let spare = self.router.client_spare(id);
            if peer.readable && !spare.is_empty() {
                match peer.read(spare) {
                    Outcome::Moved(n) => {
                        self.router.client_received(id, n, now);
                        unread = true;
                    }
                    Outcome::Blocked => {}
                    Outcome::Ended | Outcome::Reset => {
                        peer.readable = false;
                        self.router.client_eof(id);
                    }
                }
            }
        }
        let mut budget = TURN;
        while budget > 0 {
            let Some(peer) = &mut self.clients[id.0] else { return false };
            let moved = match self.router.client_output(id, now) {
                ClientOutput::Nothing => return unread,
                ClientOutput::Close => {
                    self.close_client(id, now);
                    return false;
                }
                _ if !peer.writable => return unread,
                ClientOutput::Bytes(bytes) => match peer.write(bytes) {
                    Outcome::Moved(n) => {
                        self.router.client_wrote(id, n, now);
                        n
                    }
                    Outcome::Blocked => return unread,
                    Outcome::Ended | Outcome::Reset => {
                        self.close_client(id, now);
                        return false;
                    }
                },
                ClientOutput::Relay { worker, len } => match self.relay(worker, id, len, now) {
                    Outcome::Moved(n) => n,
                    Outcome::Blocked => return unread,
                    Outcome::Ended | Outcome::Reset => {
                        self.close_client(id, now);
                        return false;
                    }
                },
            };
            budget = budget.saturating_sub(moved.max(1));
        }
        true
    }

    /// Moves pixels from a worker to a client. `Ended` is the client's end; that of the worker comes to
    /// light when its own turn comes.
    fn relay(&mut self, id: WorkerId, client: ClientId, len: usize, now: Instant) -> Outcome {
        let link = &mut self.links[id.0];
        if link.relay.is_empty() {
            let Some(worker) = link.peer.as_mut().filter(|worker| worker.readable) else {
                return Outcome::Blocked;
            };
            match outcome(link.relay.fill(&worker.stream, len)) {
                // A signal came in between.
                Outcome::Moved(0) => return Outcome::Moved(0),
                Outcome::Moved(_) => {}
                Outcome::Blocked => {
                    worker.readable = false;
                    return Outcome::Blocked;
                }
                Outcome::Ended | Outcome::Reset => {
                    self.kill(id, now);
                    return Outcome::Blocked;
                }
            }
        }
        let Some(peer) = &mut self.clients[client.0] else { return Outcome::Ended };
        let outcome = outcome(link.relay.drain(&peer.stream, len, &mut self.counters.relayed));
        match outcome {
            Outcome::Moved(n) => self.router.relayed(id, n, now),
            Outcome::Blocked => peer.writable = false,
            Outcome::Ended | Outcome::Reset => {}
        }
        outcome
    }

    /// Drops pixels of a worker for which there is no client any more.
    fn discard(&mut self, id: WorkerId, len: usize, now: Instant) -> Outcome {
        let link = &mut self.links[id.0];
        let Some(worker) = link.peer.as_mut().filter(|worker| worker.readable || !link.relay.is_empty())
        else {
            return Outcome::Blocked;
        };
        let outcome = outcome(link.relay.discard(&worker.stream, len));
        match outcome {
            Outcome::Moved(n) => self.router.relayed(id, n, now),
            Outcome::Blocked => worker.readable = false,
            Outcome::Ended | Outcome::Reset => self.kill(id, now),
        }
        outcome
    }

    // ---------------------------------------------------------------- workers

    fn start(&mut self, id: WorkerId, now: Instant) {
        let first_log = self.first_log();
        let link = &mut self.links[id.0];
        let started = Worker::start(&self.program, &self.config, id.0).and_then(|(worker, lines)| {
            let Lines { stream, log, scoreboard } = lines;
            stream.set_nonblocking(true)?;
            let mut stream = UnixStream::from_std(stream);
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(FIRST_WORKER + id.0), interest)?;
            link.peer = Some(Peer { stream: Stream::Unix(stream), readable: true, writable: true });
            (link.log, link.scoreboard) = (log, Some(scoreboard));
            if let Some(log) = &mut link.log {
                log.register(self.poll.registry(), Token(first_log + id.0))?;
            }
            (link.relay, link.unread) = (Relay::new(), Unread::Nothing);
            link.worker = Some(worker);
            Ok(())
        });
        match started {
            Ok(()) => self.router.worker_up(id, now),
            Err(error) => {
                log::error!("worker {}: can't start it: {error}", id.0);
                link.peer = None;
                self.router.worker_down(id, Death::NotStarted, Unread::Request, now);
            }
        }
    }

    /// The router wants it gone. Its stream is closed at once; the process is waited for.
    fn kill(&mut self, id: WorkerId, now: Instant) {
        let link = &mut self.links[id.0];
        link.peer = None;
        if let Some(worker) = &mut link.worker {
            worker.kill();
        }
        self.reap(id, now);
    }

    /// The worker has closed its stream: it is dead or as good as that.
    fn worker_ended(&mut self, id: WorkerId, how: Outcome, now: Instant) {
        let unread = if how == Outcome::Reset { Unread::Request } else { Unread::Nothing };
        self.links[id.0].unread = unread;
        self.kill(id, now);
    }

    /// Takes note of a worker's death once both its stream and its process have ended.
    fn reap(&mut self, id: WorkerId, now: Instant) {
        let link = &mut self.links[id.0];
        if link.peer.is_some() {
            return;
        }
        if let Some(death) = link.worker.as_mut().and_then(Worker::ended) {
            (link.worker, link.scoreboard) = (None, None);
            let mut log = link.log.take();
            if let Some(log) = &mut log {
                log.pass_on_rest();
            }
            match log.as_ref().and_then(WorkerLog::last_line) {
                Some(line) => log::warn!("worker {}: {death}; it said last: {line}", id.0),
                None => log::warn!("worker {}: {death}", id.0),
            }
            self.router.worker_down(id, death, link.unread, now);
        }
    }

    fn child_ended(&mut self, now: Instant) {
        empty(&mut self.child);
        for id in (0..self.links.len()).map(WorkerId) {
            // If its stream is still open, what it has said is heard first.
            if let Some(peer) = &mut self.links[id.0].peer {
                peer.readable = true;
            }
            self.ready.push(Who::Worker(id));
            self.reap(id, now);
        }
    }

    /// Writes a worker's request and reads its answer. Whether it was stopped with work left.
    fn turn_worker(&mut self, id: WorkerId, now: Instant) -> bool {
        while let Some(peer) = &mut self.links[id.0].peer {
            let bytes = self.router.worker_output(id);
            if bytes.is_empty() || !peer.writable {
                break;
            }
            match peer.write(bytes) {
                Outcome::Moved(n) => self.router.worker_wrote(id, n),
                Outcome::Blocked => break,
                // What it has said before it died is still to be heard.
                Outcome::Ended | Outcome::Reset => peer.writable = false,
            }
        }
        let mut budget = TURN;
        while budget > 0 {
            let Some(peer) = &mut self.links[id.0].peer else { return false };
            if !peer.readable {
                return false;
            }
            let moved = match self.router.worker_input(id) {
                WorkerInput::Hold => return false,
                WorkerInput::Relay(client) => {
                    self.ready.push(Who::Client(client));
                    return false;
                }
                WorkerInput::Buffer(buf) => match peer.read(buf) {
                    Outcome::Moved(n) => {
                        self.router.worker_received(id, n, now);
                        n
                    }
                    Outcome::Blocked => return false,
                    how @ (Outcome::Ended | Outcome::Reset) => {
                        self.worker_ended(id, how, now);
                        return false;
                    }
                },
                WorkerInput::Discard(len) => match self.discard(id, len, now) {
                    Outcome::Moved(n) => n,
                    Outcome::Blocked | Outcome::Ended | Outcome::Reset => return false,
                },
                WorkerInput::Silence => match peer.read(&mut [0; 64]) {
                    Outcome::Moved(0) => 0,
                    Outcome::Moved(n) => {
                        self.router.worker_spoke(id, now);
                        n
                    }
                    Outcome::Blocked => return false,
                    how @ (Outcome::Ended | Outcome::Reset) => {
                        self.worker_ended(id, how, now);
                        return false;
                    }
                },
            };
            budget = budget.saturating_sub(moved.max(1));
            self.take_actions(now);
        }
        true
    }

    // ---------------------------------------------------------------- whoever runs the daemon

    fn status(&self) -> Status {
        let router = &self.router;
        Status {
            running: router.running(),
            waiting: router.waiting(),
            answered: router.answered(),
            worker: router.is_ready(),
        }
    }

    fn turn_admin(&mut self, now: Instant) {
        let Self { admin: Some(admin), poll, counters, router, links, config, started, listener, .. } = self
        else {
            return;
        };
        let draining = listener.is_none();
        admin.turn(poll.registry(), now, |path| {
            let page = PAGES.iter().position(|page| *page == path);
            counters.admin_requests[page.unwrap_or(PAGES.len())] += 1;
            let gauges = || gauges(router, links, config, *started, draining, now);
            match path {
                "/metrics" => Page {
                    status: 200,
                    kind: "text/plain; version=0.0.4; charset=utf-8",
                    body: metrics::prometheus(router.counters(), counters, &gauges()),
                },
                "/stats" => Page {
                    status: 200,
                    kind: "application/json",
                    body: metrics::json(router.counters(), counters, &gauges()),
                },
                "/healthz" => Page::words(200, "the event loop turns"),
                "/readyz" if draining => Page::words(503, "not ready: stopping"),
                "/readyz" if !router.is_ready() => match router.workers_up() {
                    0 => Page::words(503, "not ready: no worker is up"),
                    _ => Page::words(503, "not ready: no worker has made its first image yet"),
                },
                "/readyz" => Page::words(
                    200,
                    format!("ready: {} running, {} waiting", router.running(), router.waiting()),
                ),
                _ => Page::words(404, format!("there are {}", PAGES.join(", "))),
            }
        });
    }

    /// SIGHUP: takes what can be changed from the settings as they are now, or leaves all as it is.
    fn reload(&mut self, now: Instant) {
        empty(&mut self.hang_up);
        if self.listener.is_none() {
            return;
        }
        self.notifier.reloading();
        match (self.reread)() {
            Ok(new) => {
                self.counters.reloads += 1;
                let (taken, left) = self.config.take_live(&new);
                log::set_max_level(self.config.log);
                self.router.set_limits(limits(&self.config), now);
                let taken = if taken.is_empty() { "nothing".to_owned() } else { taken.join(", ") };
                log::info!("read the settings again: {taken} changed");
                if !left.is_empty() {
                    log::warn!("changed as well, but only a restart can apply it: {}", left.join(", "));
                }
            }
            Err(error) => {
                self.counters.reload_failures += 1;
                log::error!("the settings stay as they were: {error}");
            }
        }
        self.notifier.ready();
    }

    // ---------------------------------------------------------------- the end

    /// SIGTERM or SIGINT: the first one lets running work finish, the second one doesn't.
    fn stopped(&mut self, now: Instant) {
        empty(&mut self.stop);
        if self.listener.is_some() {
            // Who has connected by now gets an answer, not a broken connection, unless systemd keeps the
            // socket for the next daemon. More than these don't fit into the listener's queue.
            self.accepting = self.socket.is_some();
            for _ in 0..4096 / ACCEPTS {
                self.accept(now);
            }
            self.listener = None;
            log::info!("stopping: no new requests; what runs may take {:?}", self.config.drain_timeout);
            self.socket = None;
            self.tcp = None;
            self.notifier.stopping(self.config.drain_timeout.saturating_add(STOP_MARGIN));
            self.router.drain(now);
        } else {
            log::info!("stopping at once");
            self.router.abort(now);
        }
    }
}

/// Small frames go out at once, and a peer that is gone without a word is found out.
fn prepare_tcp(stream: &TcpStream) -> io::Result<()> {
    let (idle, interval, count) = KEEPALIVE;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, idle)?;
    sockopt::set_tcp_keepintvl(stream, interval)?;
    Ok(sockopt::set_tcp_keepcnt(stream, count)?)
}

/// How things are, for those who ask.
fn gauges(
    router: &Router,
    links: &[Link],
    config: &Config,
    (started, since): (Instant, SystemTime),
    draining: bool,
    now: Instant,
) -> Gauges {
    let progress = |link: &Link| link.scoreboard.as_ref().map(Scoreboard::progress).unwrap_or_default();
    let processes = links.iter().filter_map(|link| link.worker.as_ref()?.process_id());
    Gauges {
        engine: if config.engine == EngineKind::Sdcpp { "sdcpp" } else { "pattern" },
        uptime: now.saturating_duration_since(started),
        started: since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        ready: router.is_ready(),
        draining,
        clients: router.clients(),
        client_limit: config.connections,
        waiting: router.waiting(),
        queue_limit: config.queue,
        running: router.running(),
        workers: links.len(),
        workers_up: router.workers_up(),
        oldest_wait: router.oldest_wait(now),
        process: Process::read("self"),
        progress: links.iter().map(progress).collect(),
        worker_memory: processes.map(|pid| Process::read(&pid.to_string()).resident).sum(),
    }
}

/// Reads a signal's pipe until there is nothing in it.
fn empty(pipe: &mut UnixStream) {
    while matches!(pipe.read(&mut [0; 64]), Ok(1..)) {}
}
