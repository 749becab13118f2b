//! Where connections come in: the listeners, the gate for TCP, and who is let in.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::sockopt;

use crate::config::Config;
use crate::counters::LoopCounters;
use crate::door::Door;
use crate::gate::{Gate, PLACES, Refused, Shown};
use crate::repeats::{About, Repeats};
use crate::socket::{self, Access, Socket};
use crate::stream::Stream;
use crate::tcp::{Tcp, Token as Secret};
use crate::user::User;

/// Connections that are accepted in one turn of a listener.
const ACCEPTS: usize = 64;
/// Room for what a client on this machine has not read yet, unless the system allows less (`net.core.wmem_max`). An
/// image that fits doesn't keep its worker waiting; [`relay`](crate::relay) has what the size does to its speed.
const CLIENT_SEND_BUFFER: usize = 1024 * 1024;
/// How long to leave the listeners alone when there are no descriptors to be had.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// When a TCP peer that says nothing is asked whether it is still there, and how often.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(10), 6);

/// A connection that may become a client.
pub(super) struct Newcomer {
    pub(super) stream: Stream,
    pub(super) user: User,
}

/// What each listener may still accept in this turn.
pub(super) struct Budget {
    unix: usize,
    tcp: usize,
}

impl Budget {
    pub(super) const ONE_TURN: Self = Self { unix: ACCEPTS, tcp: ACCEPTS };
    /// As many as can wait in a listener's queue.
    pub(super) const WHOLE_QUEUE: Self = Self { unix: 4096, tcp: 4096 };
}

/// Whether a listener that could not accept is to be tried again, be it later.
#[derive(PartialEq, Eq)]
enum Again {
    Yes,
    No,
}

/// The listeners.
pub(super) struct Doors {
    access: Access,
    /// `None` once they are closed.
    unix: Option<Door>,
    accepting: bool,
    tcp: Option<TcpDoor>,
    /// Until when no connection is accepted for want of descriptors.
    accept_after: Option<Instant>,
    /// The last try to accept a connection failed, which was logged.
    accept_failed: bool,
}

/// Where clients arrive over TCP.
struct TcpDoor {
    entrances: Vec<Entrance>,
    /// The first one's. Those of the others come behind it, and then those of the gate.
    first: Token,
    /// Which one has its turn, so that none keeps the others waiting.
    turn: usize,
    /// Where they have to prove that they know the token, if there is one.
    gate: Option<Gate>,
    /// Who has shown it and waits to be accepted.
    let_in: Vec<Newcomer>,
}

/// One of the addresses for TCP.
struct Entrance {
    listener: TcpListener,
    accepting: bool,
}

impl TcpDoor {
    /// The next entrance at which there may be somebody.
    fn busy(&mut self) -> Option<usize> {
        let count = self.entrances.len();
        let at =
            (self.turn..self.turn + count).map(|at| at % count).find(|at| self.entrances[*at].accepting)?;
        self.turn = at + 1;
        Some(at)
    }
}

impl Doors {
    pub(super) fn new(
        access: Access,
        listener: std::os::unix::net::UnixListener,
        socket: Option<Socket>,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let unix = Door::new(listener, socket, registry, token, "clients can't come in")?;
        Ok(Self {
            access,
            unix: Some(unix),
            accepting: true,
            tcp: None,
            accept_after: None,
            accept_failed: false,
        })
    }

    /// Opens one for TCP as well, with this token and those behind it.
    pub(super) fn open_tcp(&mut self, tcp: Tcp, registry: &Registry, token: Token) -> io::Result<()> {
        let mut entrances = Vec::with_capacity(tcp.listeners.len());
        for (at, (listener, _)) in tcp.listeners.into_iter().enumerate() {
            let mut listener = TcpListener::from_std(listener);
            registry.register(&mut listener, Token(token.0 + at), Interest::READABLE)?;
            entrances.push(Entrance { listener, accepting: true });
        }
        let gate = tcp.token.map(|secret| Gate::new(secret, token.0 + entrances.len()));
        let let_in = Vec::with_capacity(PLACES);
        self.tcp = Some(TcpDoor { entrances, first: token, turn: 0, gate, let_in });
        Ok(())
    }

    /// Takes the token that its file holds now, for who connects from now on. If it can't be used, the old one still counts.
    pub(super) fn reload_token(&mut self, config: &Config) {
        let Some(gate) = self.tcp.as_mut().and_then(|tcp| tcp.gate.as_mut()) else { return };
        let Some(file) = &config.token_file else { return };
        match Secret::read(file, &config.rules()) {
            Ok(token) => {
                if gate.change(token) {
                    log::info!("token reloaded: clients that connect from now on have to know the new one");
                }
            }
            Err(error) => log::error!("token not reloaded, the old one still counts: {error}"),
        }
    }

    /// Whether anybody may still come.
    pub(super) const fn are_open(&self) -> bool {
        self.unix.is_some()
    }

    /// Has those who are there already be accepted before the end, unless systemd keeps the socket for the next
    /// daemon.
    pub(super) fn take_the_last(&mut self) {
        self.accepting = self.unix.as_ref().is_some_and(Door::is_ours);
    }

    pub(super) fn close(&mut self) {
        (self.unix, self.tcp) = (None, None);
    }

    /// Whether there is a file to look at.
    pub(super) fn have_file(&self) -> bool {
        self.unix.as_ref().is_some_and(Door::is_ours)
    }

    /// Looks whether clients can still come in by the Unix socket.
    pub(super) fn look(&mut self, registry: &Registry) {
        self.accepting |= self.unix.as_mut().is_some_and(|unix| unix.look(registry));
    }

    /// Why clients can't come in, and what to do.
    pub(super) fn lost(&self) -> Option<&str> {
        const NOT_ACCEPTED: &str = "connections can't be accepted; the log says why";
        self.unix.as_ref().and_then(Door::lost).or(self.accept_failed.then_some(NOT_ACCEPTED))
    }

    /// Whether there may be somebody to accept at once.
    pub(super) fn are_busy(&self) -> bool {
        let accepting = self.accepting
            || self.tcp.as_ref().is_some_and(|tcp| tcp.entrances.iter().any(|entrance| entrance.accepting));
        accepting && self.accept_after.is_none()
    }

    /// When there is something to do at the latest.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let at_gate = self.tcp.as_ref().and_then(|tcp| tcp.gate.as_ref()?.wake_at());
        self.accept_after.into_iter().chain(at_gate).min()
    }

    /// The listener on the Unix socket has somebody.
    pub(super) fn unix_event(&mut self) {
        self.accepting = true;
    }

    /// A TCP listener has somebody, or somebody at the gate has said something.
    pub(super) fn tcp_event(
        &mut self,
        token: Token,
        registry: &Registry,
        counters: &mut LoopCounters,
        repeats: &mut Repeats,
        now: Instant,
    ) {
        let Some(tcp) = &mut self.tcp else { return };
        if let Some(entrance) = token.0.checked_sub(tcp.first.0).and_then(|at| tcp.entrances.get_mut(at)) {
            entrance.accepting = true;
            return;
        }
        match tcp.gate.as_mut().and_then(|gate| gate.read(token)) {
            None => {}
            Some(Shown::Refused(refused)) => refuse(refused.about(), &refused, counters, repeats, now),
            Some(Shown::Token(mut stream, user)) => match registry.deregister(&mut stream) {
                Ok(()) => tcp.let_in.push(Newcomer { stream: Stream::Tcp(stream), user }),
                Err(error) => {
                    counters.refused_error += 1;
                    if repeats.is_first(About::Unwatched, Some(user), now) {
                        log::warn!("can't watch a connection of {user}: {error}; closing it");
                    }
                }
            },
        }
    }

    /// Accepts connections until one of them may come in.
    pub(super) fn accept(
        &mut self,
        budget: &mut Budget,
        registry: &Registry,
        counters: &mut LoopCounters,
        repeats: &mut Repeats,
        now: Instant,
    ) -> Option<Newcomer> {
        if self.accept_after.is_some_and(|at| at <= now) {
            self.accept_after = None;
        }
        if let Some(newcomer) = self.tcp.as_mut().and_then(|tcp| tcp.let_in.pop()) {
            return Some(newcomer);
        }
        while budget.unix > 0 && self.accepting && self.accept_after.is_none() {
            budget.unix -= 1;
            match self.unix.as_ref().map(Door::accept) {
                Some(Ok((stream, _))) => {
                    self.accepted();
                    match self.admit_unix(stream) {
                        Ok(newcomer) => return Some(newcomer),
                        Err((by, reason)) => {
                            refuse((About::Refused(""), by), &reason, counters, repeats, now);
                        }
                    }
                }
                Some(Err(error)) => self.accepting = self.not_accepted(&error, counters, now) == Again::Yes,
                None => self.accepting = false,
            }
        }
        while budget.tcp > 0 && self.accept_after.is_none() {
            let Some(tcp) = self.tcp.as_mut() else { break };
            let Some(at) = tcp.busy() else { break };
            budget.tcp -= 1;
            match tcp.entrances[at].listener.accept() {
                Ok((stream, peer)) => {
                    self.accepted();
                    match self.admit_tcp(stream, peer, registry, now) {
                        Ok(Some(newcomer)) => return Some(newcomer),
                        Ok(None) => {}
                        Err(refused) => refuse(refused.about(), &refused, counters, repeats, now),
                    }
                }
                Err(error) => {
                    let again = self.not_accepted(&error, counters, now);
                    if let Some(tcp) = &mut self.tcp {
                        tcp.entrances[at].accepting = again == Again::Yes;
                    }
                }
            }
        }
        while let Some(refused) = self.tcp.as_mut().and_then(|tcp| tcp.gate.as_mut()?.expire(now)) {
            refuse(refused.about(), &refused, counters, repeats, now);
        }
        None
    }

    fn accepted(&mut self) {
        if std::mem::take(&mut self.accept_failed) {
            log::info!("connections are accepted again");
        }
    }

    fn not_accepted(&mut self, error: &io::Error, counters: &mut LoopCounters, now: Instant) -> Again {
        match error.kind() {
            io::ErrorKind::WouldBlock => return Again::No,
            io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
            _ => {
                counters.accept_errors += 1;
                self.accept_after = Some(now + ACCEPT_PAUSE);
                if !std::mem::replace(&mut self.accept_failed, true) {
                    log::warn!("can't accept connections: {error}; new connections wait");
                }
            }
        }
        Again::Yes
    }

    /// Lets a user in who may connect. The error says who it is and why not, for the log.
    fn admit_unix(&self, stream: UnixStream) -> Result<Newcomer, (Option<User>, String)> {
        let uid = self.access.check(&stream).map_err(|why| (socket::peer_user(&stream), why))?;
        let user = socket::user(uid);
        // Only a matter of speed.
        let _ = sockopt::set_socket_send_buffer_size(&stream, CLIENT_SEND_BUFFER);
        Ok(Newcomer { stream: Stream::Unix(stream), user })
    }

    /// Lets a TCP peer in, or has it wait at the gate. The error says who is refused, for the log.
    fn admit_tcp(
        &mut self,
        stream: TcpStream,
        peer: SocketAddr,
        registry: &Registry,
        now: Instant,
    ) -> Result<Option<Newcomer>, Refused> {
        if let Err(error) = prepare_tcp(&stream) {
            log::debug!("{peer}: {error}");
        }
        match self.tcp.as_mut().and_then(|tcp| tcp.gate.as_mut()) {
            None => Ok(Some(Newcomer { stream: Stream::Tcp(stream), user: User::at(peer.ip()) })),
            Some(gate) => gate.wait(stream, peer, registry, now).map(|()| None),
        }
    }
}

fn refuse(
    (about, by): (About, Option<User>),
    why: &dyn Display,
    counters: &mut LoopCounters,
    repeats: &mut Repeats,
    now: Instant,
) {
    counters.refused_peer += 1;
    if repeats.is_first(about, by, now) {
        log::warn!("refused a connection: {why} ({} so far)", counters.refused_peer);
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
