//! TCP: off unless asked for, within this machine unless asked for twice.
//!
//! The kernel doesn't tell who connects over TCP. A token takes the place of the peer's credentials:
//! 64 hexadecimal digits in a file, which a client sends as a line of its own before its first frame
//! (`TCP.md`). The protocol proper has no place for it and needs none: what comes after the line is
//! Weave as on any other stream.

use std::fmt;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketType, bind};
use subtle::ConstantTimeEq;
use weave_trust::{Rules, SecretError, read_secret};

use crate::config::Config;

/// What the token's line begins with: not a secret, and not how a frame begins.
const PREFIX: &[u8] = b"weave-token ";
/// The token in hexadecimal digits: 256 bits.
const DIGITS: usize = 64;
/// Prefix, digits and a line feed.
const LINE_LEN: usize = PREFIX.len() + DIGITS + 1;

/// How long a client may take to show its token.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that may be at that at once.
pub const PLACES: usize = 64;

/// Why weaved doesn't listen on TCP.
#[derive(Debug)]
pub enum TcpError {
    /// Other machines could reach it, and nobody said that they may.
    Remote(SocketAddr),
    /// Other machines may reach it, and nothing would keep strangers out.
    NoToken(SocketAddr),
    /// The token can't be used.
    Token(PathBuf, String),
    /// Others could have read or written the token.
    OpenToken(PathBuf, String),
    /// The operating system said no.
    Listen(SocketAddr, io::Error),
}

impl fmt::Display for TcpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote(address) => write!(
                f,
                "tcp is {address}, which other machines may reach; use 127.0.0.1 or [::1], or say \
                 --allow-remote and --token-file FILE"
            ),
            Self::NoToken(address) => write!(
                f,
                "tcp is {address} and allow_remote is set: it takes a --token-file FILE as well, or a proxy \
                 with TLS in front of 127.0.0.1 (weave-daemon/TCP.md)"
            ),
            Self::Token(path, why) => write!(
                f,
                "token_file {} {why}; it takes 64 hexadecimal digits: (umask 077; openssl rand -hex 32 >FILE)",
                path.display()
            ),
            Self::OpenToken(path, why) => write!(
                f,
                "token_file {} {why}, so others may know it; make a new one: \
                 (umask 077; openssl rand -hex 32 >FILE)",
                path.display()
            ),
            Self::Listen(address, error) => write!(f, "can't listen on TCP at {address}: {error}"),
        }
    }
}

impl std::error::Error for TcpError {}

/// A TCP address that is listened on, and what its clients have to show.
#[derive(Debug)]
pub struct Tcp {
    /// Where clients arrive.
    pub listener: TcpListener,
    /// Its address, with the port that was found for port 0.
    pub address: SocketAddr,
    /// `None`: every client of this machine may come in.
    pub token: Option<Token>,
}

/// Where the settings would have us listen and what is to be shown there, if they may have that.
///
/// # Errors
/// [`TcpError`], but [`TcpError::Listen`].
pub fn entrance(config: &Config) -> Result<Option<(SocketAddr, Option<Token>)>, TcpError> {
    let token = config.token_file.as_deref().map(|file| Token::read(file, &config.rules())).transpose()?;
    let Some(address) = config.tcp else {
        if token.is_some() {
            log::warn!("token_file has no effect while tcp is off");
        }
        return Ok(None);
    };
    if !address.ip().to_canonical().is_loopback() {
        if !config.allow_remote {
            return Err(TcpError::Remote(address));
        }
        if token.is_none() {
            return Err(TcpError::NoToken(address));
        }
    }
    Ok(Some((address, token)))
}

/// Who may come in, in words.
#[must_use]
pub const fn who(token: Option<&Token>) -> &'static str {
    match token {
        Some(_) => "clients that send the token",
        None => "all users of this machine",
    }
}

/// Whether nobody listens there, without listening.
///
/// # Errors
/// The system wouldn't let us listen there either.
pub fn is_free(address: SocketAddr) -> io::Result<bool> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
    // As the standard library's listener: connections that have ended don't count.
    set_socket_reuseaddr(&socket, true)?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => Ok(false),
        other => other.map(|()| true).map_err(io::Error::from),
    }
}

/// Listens where the settings say, if they say so.
///
/// # Errors
/// [`TcpError`].
pub fn listen(config: &Config) -> Result<Option<Tcp>, TcpError> {
    let Some((address, token)) = entrance(config)? else { return Ok(None) };
    let listen = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    let (listener, address) = listen().map_err(|error| TcpError::Listen(address, error))?;
    Ok(Some(Tcp { listener, address, token }))
}

/// The line that a client has to begin with.
#[derive(Clone)]
pub struct Token([u8; LINE_LEN]);

/// Never the token itself.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// Reads the token of a file that nobody else can have read or written: the rules are [`weave_trust`]'s.
    ///
    /// # Errors
    /// [`TcpError::Token`] and [`TcpError::OpenToken`].
    pub fn read(path: &Path, rules: &Rules) -> Result<Self, TcpError> {
        let wrong = |why: &str| TcpError::Token(path.to_owned(), why.to_owned());
        let digits = read_secret(path, DIGITS, rules).map_err(|error| match error {
            error if error.is_exposed() => TcpError::OpenToken(path.to_owned(), error.to_string()),
            SecretError::Io(_) | SecretError::Kind(_) => wrong(&error.to_string()),
            _ => wrong("holds something else"),
        })?;
        let digits = digits.as_bytes();
        if digits.len() != DIGITS || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong("holds something else"));
        }
        let mut line = [b'\n'; LINE_LEN];
        let (prefix, rest) = line.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX);
        for (place, digit) in rest.iter_mut().zip(digits) {
            *place = digit.to_ascii_lowercase();
        }
        Ok(Self(line))
    }
}

/// A client that has not shown its token yet.
struct Waiting {
    stream: TcpStream,
    peer: SocketAddr,
    /// The line, as far as it has come.
    line: [u8; LINE_LEN],
    len: usize,
    until: Instant,
}

/// What has become of a client that had something to say.
#[derive(Debug)]
pub enum Shown {
    /// The token: it may come in. Nothing behind the line was read.
    Token(TcpStream),
    /// Something else, or nothing: the words for the log.
    Refused(String),
}

/// Where clients wait until they have shown their token. They cost one of few places here, and none
/// of those for clients.
pub struct Gate {
    secret: Token,
    places: Box<[Option<Waiting>]>,
    first: usize,
}

impl Gate {
    /// A gate whose clients have the tokens of `mio` from `first` on, [`PLACES`] of them.
    #[must_use]
    pub fn new(secret: Token, first: usize) -> Self {
        Self { secret, places: std::iter::repeat_with(|| None).take(PLACES).collect(), first }
    }

    /// Has a client wait for its token to arrive. If all places are taken, the one that has been
    /// there the longest has to go: honest clients don't stay.
    ///
    /// # Errors
    /// The words for the log: a client that was refused, this one or the one that had to go.
    pub fn wait(
        &mut self,
        mut stream: TcpStream,
        peer: SocketAddr,
        registry: &Registry,
        now: Instant,
    ) -> Result<(), String> {
        let place = self.places.iter().enumerate().min_by_key(|(_, place)| place.as_ref().map(|w| w.until));
        let place = place.map_or(0, |(place, _)| place);
        let token = mio::Token(self.first + place);
        if let Err(error) = registry.register(&mut stream, token, Interest::READABLE) {
            return Err(format!("{peer}: can't watch it: {error}"));
        }
        let waiting = Waiting { stream, peer, line: [0; LINE_LEN], len: 0, until: now + PATIENCE };
        match self.places[place].replace(waiting) {
            Some(gone) => Err(format!("{}: no token yet, and others wait", gone.peer)),
            None => Ok(()),
        }
    }

    /// Reads what the client at this token of `mio` has sent. `None`: there is more to come.
    pub fn read(&mut self, token: mio::Token) -> Option<Shown> {
        let place = self.places.get_mut(token.0.checked_sub(self.first)?)?;
        let waiting = place.as_mut()?;
        let wrong = loop {
            match waiting.stream.read(&mut waiting.line[waiting.len..]) {
                Ok(0) => break "it closed before its token was there",
                Ok(n) => waiting.len += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break "it is gone before its token was there",
            }
            let public = waiting.len.min(PREFIX.len());
            if waiting.line[..public] != PREFIX[..public] {
                break "it did not begin with a token";
            }
            if waiting.len == LINE_LEN {
                // Digits count as lower case. The line feed stays what it is.
                waiting.line.make_ascii_lowercase();
                if bool::from(waiting.line.ct_eq(&self.secret.0)) {
                    return place.take().map(|waiting| Shown::Token(waiting.stream));
                }
                break "its token is wrong";
            }
        };
        let words = format!("{}: {wrong}", waiting.peer);
        *place = None;
        Some(Shown::Refused(words))
    }

    /// Refuses one client whose time is over. Gives the words for the log.
    pub fn expire(&mut self, now: Instant) -> Option<String> {
        let late = self.places.iter_mut().find(|place| place.as_ref().is_some_and(|w| w.until <= now))?;
        late.take().map(|waiting| format!("{}: no token within {PATIENCE:?}", waiting.peer))
    }

    /// When the time of the next one is over.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.places.iter().flatten().map(|waiting| waiting.until).min()
    }
}
