//! systemd's side of things: sockets that it hands over, and what it wants to be told.
//!
//! All of it is in the environment, and none of it is there when somebody else starts the daemon:
//! then there is nothing to take over and nobody to tell.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The name (`FileDescriptorName=`) of a socket that is meant for the administrator.
pub const ADMIN_NAME: &str = "admin";

/// Listening sockets that were handed over.
#[derive(Debug, Default)]
pub struct Handed {
    /// Where clients connect.
    pub clients: Option<UnixListener>,
    /// The administrative socket: the one that is named so.
    pub admin: Option<UnixListener>,
}

/// Takes over the sockets that systemd has opened for this process (socket activation).
///
/// To be called once, before anything else has opened a descriptor that it keeps.
///
/// # Errors
/// What was handed over is not what a daemon can listen on.
pub fn take_listeners() -> Result<Handed, String> {
    let mut handed = Handed::default();
    let given = sd_notify::listen_fds_with_names()
        .map_err(|error| format!("can't take over the sockets that LISTEN_FDS announces: {error}"))?;
    for (fd, name) in given {
        // SAFETY: the descriptor is open, as asking for its flags has shown, and LISTEN_PID says that
        // it was put there for this process. Nothing else in it owns one yet.
        #[allow(unsafe_code, reason = "the start of the process: a number is all that says which descriptor")]
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        if !listens(&socket) {
            return Err(format!(
                "descriptor {fd} ({name}) was handed over to listen on, but is no Unix stream socket that \
                 listens; use ListenStream= with a path"
            ));
        }
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true).map_err(|error| format!("can't use descriptor {fd}: {error}"))?;
        let place = if name == ADMIN_NAME { &mut handed.admin } else { &mut handed.clients };
        if place.replace(listener).is_some() {
            return Err(format!(
                "descriptor {fd} ({name}) was handed over to listen on, but there is one already; hand over \
                 one for clients, and one with FileDescriptorName={ADMIN_NAME}"
            ));
        }
    }
    Ok(handed)
}

/// Whether it is a Unix stream socket that listens.
#[cfg(target_os = "linux")]
fn listens(socket: &OwnedFd) -> bool {
    use rustix::net::{AddressFamily, SocketType, sockopt};

    let is = (sockopt::socket_domain(socket), sockopt::socket_type(socket));
    is == (Ok(AddressFamily::UNIX), Ok(SocketType::STREAM)) && sockopt::socket_acceptconn(socket) == Ok(true)
}

/// There is no systemd but on Linux.
#[cfg(not(target_os = "linux"))]
const fn listens(_: &OwnedFd) -> bool {
    false
}

/// An address without a file.
#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> io::Result<SocketAddr> {
    <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &[u8]) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The shortest time between two status lines.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// What a status line says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Requests that are being worked on.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that were answered since the start.
    pub answered: u64,
    /// Whether a worker is there to take a request.
    pub worker: bool,
    /// Who can't come in.
    pub lost: Option<&'static str>,
}

/// Tells systemd how the daemon is. Without `NOTIFY_SOCKET` it does nothing.
#[derive(Debug, Default)]
pub struct Notifier {
    manager: Option<(UnixDatagram, SocketAddr)>,
    /// How often to show that the event loop turns.
    ping_every: Option<Duration>,
    ping_at: Option<Instant>,
    told: Option<(Status, Instant)>,
    /// When the status line can be renewed, if it has to be.
    status_at: Option<Instant>,
}

impl Notifier {
    /// As the environment says. Watchdog pings start when they are first due.
    #[must_use]
    pub fn from_env(now: Instant) -> Self {
        let name = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let manager = name.and_then(|name| {
            let address = match name.as_bytes() {
                [b'@', name @ ..] => abstract_address(name),
                _ => SocketAddr::from_pathname(Path::new(&name)),
            };
            let socket = UnixDatagram::unbound().and_then(|socket| {
                // A manager that doesn't read must not hold up the loop.
                socket.set_nonblocking(true)?;
                Ok(socket)
            });
            match (socket, address) {
                (Ok(socket), Ok(address)) => Some((socket, address)),
                (Err(error), _) | (_, Err(error)) => {
                    log::warn!("can't notify systemd at {}: {error}", name.display());
                    None
                }
            }
        });
        let limit = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero() && manager.is_some());
        let ping_every = limit.map(|limit| limit / 2);
        Self { manager, ping_every, ping_at: ping_every.map(|_| now), ..Self::default() }
    }

    /// Clients can connect.
    pub fn ready(&self) {
        self.send(&[NotifyState::Ready]);
    }

    /// The settings are being read again; [`ready`](Self::ready) is to follow.
    pub fn reloading(&self) {
        if let Ok(time) = NotifyState::monotonic_usec_now() {
            self.send(&[NotifyState::Reloading, time]);
        }
    }

    /// The end has begun and may take so long.
    pub fn stopping(&self, limit: Duration) {
        let micros = u32::try_from(limit.as_micros()).unwrap_or(u32::MAX);
        self.send(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
    }

    /// Shows that the loop turns and renews the status line, where that is due.
    pub fn tick(&mut self, now: Instant, status: Status) {
        if self.manager.is_none() {
            return;
        }
        if let (Some(at), Some(every)) = (self.ping_at, self.ping_every)
            && at <= now
        {
            self.send(&[NotifyState::Watchdog]);
            self.ping_at = Some(now + every);
        }
        match self.told {
            Some((told, _)) if told == status => self.status_at = None,
            Some((_, then)) if then + STATUS_PAUSE > now => self.status_at = Some(then + STATUS_PAUSE),
            _ => {
                let Status { running, waiting, answered, worker, lost } = status;
                let mut line = heapless::String::<192>::new();
                let worker = if worker { "" } else { "no worker is up; " };
                let (lost, then) = lost.map_or(("", ""), |lost| (lost, "; "));
                // It is made for far longer numbers than there are.
                let _ = write!(
                    line,
                    "{lost}{then}{worker}{running} running, {waiting} waiting, {answered} answered"
                );
                self.send(&[NotifyState::Status(&line)]);
                (self.told, self.status_at) = (Some((status, now)), None);
            }
        }
    }

    /// When [`tick`](Self::tick) has something to do at the latest.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.ping_at.into_iter().chain(self.status_at).min()
    }

    /// Allocates nothing. What can't be said now is not said: the manager has its own time limits.
    fn send(&self, states: &[NotifyState<'_>]) {
        let Some((socket, address)) = &self.manager else { return };
        let mut text = heapless::String::<256>::new();
        if states.iter().try_for_each(|state| writeln!(text, "{state}")).is_err() {
            return;
        }
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address) {
            log::debug!("can't notify systemd of {:?}: {error}", text.trim_end());
        }
    }
}
