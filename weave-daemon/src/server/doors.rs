//! Where connections come in: the listeners, the gate for TCP, and who is let in.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::sockopt;

use crate::counters::LoopCounters;
use crate::router::User;
use crate::socket::{Access, Socket, is_ours};
use crate::stream::Stream;
use crate::tcp::{Gate, PLACES, Shown, Tcp};

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
    listener: Option<UnixListener>,
    /// The listener's file, where it is ours to remove.
    socket: Option<Socket>,
    accepting: bool,
    tcp: Option<TcpDoor>,
    /// Until when no connection is accepted for want of descriptors.
    accept_after: Option<Instant>,
    /// The last try to accept a connection failed, which was logged.
    accept_failed: bool,
}

/// Where clients arrive over TCP.
struct TcpDoor {
    listener: TcpListener,
    token: Token,
    accepting: bool,
    /// Where they have to show their token, if there is one.
    gate: Option<Gate>,
    /// Who has shown it and waits to be accepted.
    let_in: Vec<Newcomer>,
}

impl Doors {
    pub(super) fn new(
        access: Access,
        listener: std::os::unix::net::UnixListener,
        socket: Option<Socket>,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let mut listener = UnixListener::from_std(listener);
        registry.register(&mut listener, token, Interest::READABLE)?;
        Ok(Self {
            access,
            listener: Some(listener),
            socket,
            accepting: true,
            tcp: None,
            accept_after: None,
            accept_failed: false,
        })
    }

    /// Opens one for TCP as well, with this token and those behind it.
    pub(super) fn open_tcp(&mut self, tcp: Tcp, registry: &Registry, token: Token) -> io::Result<()> {
        let mut listener = TcpListener::from_std(tcp.listener);
        registry.register(&mut listener, token, Interest::READABLE)?;
        let gate = tcp.token.map(|secret| Gate::new(secret, token.0 + 1));
        let let_in = Vec::with_capacity(PLACES);
        self.tcp = Some(TcpDoor { listener, token, accepting: true, gate, let_in });
        Ok(())
    }

    /// Whether anybody may still come.
    pub(super) const fn are_open(&self) -> bool {
        self.listener.is_some()
    }

    /// Has those who are there already be accepted before the end, unless systemd keeps the socket for the next
    /// daemon.
    pub(super) fn take_the_last(&mut self) {
        self.accepting = self.socket.is_some();
    }

    pub(super) fn close(&mut self) {
        (self.listener, self.socket, self.tcp) = (None, None, None);
    }

    /// Whether there may be somebody to accept at once.
    pub(super) fn are_busy(&self) -> bool {
        let accepting = self.accepting || self.tcp.as_ref().is_some_and(|tcp| tcp.accepting);
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

    /// The TCP listener has somebody, or somebody at its gate has said something.
    pub(super) fn tcp_event(&mut self, token: Token, registry: &Registry, counters: &mut LoopCounters) {
        let Some(tcp) = &mut self.tcp else { return };
        if token == tcp.token {
            tcp.accepting = true;
            return;
        }
        match tcp.gate.as_mut().and_then(|gate| gate.read(token)) {
            None => {}
            Some(Shown::Refused(words)) => refuse(&words, counters),
            Some(Shown::Token(mut stream)) => {
                match registry.deregister(&mut stream).and_then(|()| stream.peer_addr()) {
                    Ok(peer) => {
                        tcp.let_in.push(Newcomer { stream: Stream::Tcp(stream), user: user_at(peer.ip()) });
                    }
                    Err(error) => log::warn!("can't watch a connection: {error}"),
                }
            }
        }
    }

    /// Accepts connections until one of them may come in.
    pub(super) fn accept(
        &mut self,
        budget: &mut Budget,
        registry: &Registry,
        counters: &mut LoopCounters,
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
            match self.listener.as_ref().map(UnixListener::accept) {
                Some(Ok((stream, _))) => {
                    self.accepted();
                    match self.admit_unix(stream) {
                        Ok(newcomer) => return Some(newcomer),
                        Err(reason) => refuse(&reason, counters),
                    }
                }
                Some(Err(error)) => self.accepting = self.not_accepted(&error, counters, now) == Again::Yes,
                None => self.accepting = false,
            }
        }
        while budget.tcp > 0 && self.accept_after.is_none() {
            let Some(tcp) = self.tcp.as_mut().filter(|tcp| tcp.accepting) else { break };
            budget.tcp -= 1;
            match tcp.listener.accept() {
                Ok((stream, peer)) => {
                    self.accepted();
                    match self.admit_tcp(stream, peer, registry, now) {
                        Ok(Some(newcomer)) => return Some(newcomer),
                        Ok(None) => {}
                        Err(words) => refuse(&words, counters),
                    }
                }
                Err(error) => {
                    let again = self.not_accepted(&error, counters, now);
                    self.tcp.as_mut().into_iter().for_each(|tcp| tcp.accepting = again == Again::Yes);
                }
            }
        }
        while let Some(words) = self.tcp.as_mut().and_then(|tcp| tcp.gate.as_mut()?.expire(now)) {
            refuse(&words, counters);
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

    /// Lets a user in who may connect. The error says why not, for the log.
    fn admit_unix(&self, stream: UnixStream) -> Result<Newcomer, String> {
        let uid = self.access.check(&stream)?;
        let user = if is_ours(uid) { User::Owner(uid) } else { User::Uid(uid) };
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
    ) -> Result<Option<Newcomer>, String> {
        if let Err(error) = prepare_tcp(&stream) {
            log::debug!("{peer}: {error}");
        }
        match self.tcp.as_mut().and_then(|tcp| tcp.gate.as_mut()) {
            None => Ok(Some(Newcomer { stream: Stream::Tcp(stream), user: user_at(peer.ip()) })),
            Some(gate) => gate.wait(stream, peer, registry, now).map(|()| None),
        }
    }
}

/// Over TCP an address is all that tells users apart.
fn user_at(address: IpAddr) -> User {
    match address.to_canonical() {
        IpAddr::V4(address) => User::Ipv4(address.to_bits()),
        // The same machine, by its other name.
        IpAddr::V6(address) if address.is_loopback() => User::Ipv4(Ipv4Addr::LOCALHOST.to_bits()),
        IpAddr::V6(address) => User::Ipv6(u64::try_from(address.to_bits() >> 64).unwrap_or(0)),
    }
}

fn refuse(who: &str, counters: &mut LoopCounters) {
    counters.refused_peer += 1;
    log::warn!("refused a connection: {who} ({} so far)", counters.refused_peer);
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
