//! A Unix socket that somebody can come in by, and whether they still can.
//!
//! A listener lives on when its file is gone, and nobody can tell from inside: so the file is looked at now and
//! then. One that was removed is made again where nothing else is in its place. What can't be mended is said once in
//! the log, and is what [`lost`](Door::lost) says.

use std::io;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};

use crate::socket::{Lost, Socket};

/// A listener, and its file where that is ours. A socket that systemd has passed is not ours to judge.
pub(crate) struct Door {
    listener: UnixListener,
    token: Token,
    socket: Option<Socket>,
    /// What it means that nobody can come in.
    means: &'static str,
    lost: Option<(Lost, String)>,
}

impl Door {
    pub(crate) fn new(
        listener: StdListener,
        socket: Option<Socket>,
        registry: &Registry,
        token: Token,
        means: &'static str,
    ) -> io::Result<Self> {
        let mut listener = UnixListener::from_std(listener);
        registry.register(&mut listener, token, Interest::READABLE)?;
        Ok(Self { listener, token, socket, means, lost: None })
    }

    pub(crate) fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        self.listener.accept()
    }

    /// Whether there is a file to look at.
    pub(crate) const fn is_ours(&self) -> bool {
        self.socket.is_some()
    }

    /// Why nobody can come in, and what to do.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.as_ref().map(|(_, words)| words.as_str())
    }

    /// Looks at the file, and mends what can be mended. Whether there is a new listener, which may have somebody.
    pub(crate) fn look(&mut self, registry: &Registry) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        let (lost, failure) = match socket.look() {
            Ok(()) => {
                if self.lost.take().is_some() {
                    log::info!("{} is this daemon's socket again", socket.path().display());
                }
                return false;
            }
            Err(Lost::Removed) => match Self::open_again(socket, registry, self.token) {
                Ok(listener) => {
                    (self.listener, self.lost) = (listener, None);
                    log::warn!("{} was removed; it is made again", socket.path().display());
                    return true;
                }
                Err(error) => (Lost::Removed, format!(" and can't be made again: {error}")),
            },
            Err(lost) => (lost, String::new()),
        };
        if self.lost.as_ref().is_some_and(|(known, _)| *known == lost) {
            return false;
        }
        let words = format!(
            "{}: {} is no longer this daemon's socket ({lost}{failure}); restart weaved",
            self.means,
            socket.path().display()
        );
        log::error!("{words}");
        self.lost = Some((lost, words));
        false
    }

    fn open_again(socket: &mut Socket, registry: &Registry, token: Token) -> Result<UnixListener, String> {
        let listener = socket.bind_again().map_err(|error| error.to_string())?;
        let mut listener = UnixListener::from_std(listener);
        registry.register(&mut listener, token, Interest::READABLE).map_err(|error| error.to_string())?;
        Ok(listener)
    }
}
