//! TCP: off unless asked for, within this machine unless asked for twice.
//!
//! The kernel doesn't tell who connects over TCP. A token takes the place of the peer's credentials:
//! 64 hexadecimal digits in a file, which both sides know. That they do they prove before the first
//! frame, at the [`gate`](crate::gate) (`TCP.md`). The protocol proper has no place for it and needs
//! none: what comes after that is Weave as on any other stream.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketType, bind};
use weave_trust::{Rules, SecretError, has_no_such_address, other_localhost, read_secret};

use crate::config::Config;

/// The token in hexadecimal digits: 256 bits.
pub(crate) const DIGITS: usize = 64;
/// How often a port is looked for that is free at both loopback addresses.
const TRIES: usize = 16;

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
    /// It said no to the other address that `localhost` may stand for: to the first beside the second.
    Twin(SocketAddr, SocketAddr, io::Error),
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
            Self::Listen(address, error) => {
                let todo = match error.kind() {
                    io::ErrorKind::AddrInUse => {
                        "; another program has this port: end it, or take another port"
                    }
                    io::ErrorKind::AddrNotAvailable => "; this machine has no such address: see `ip address`",
                    io::ErrorKind::PermissionDenied => "; take a port above 1023",
                    _ => "",
                };
                write!(f, "can't listen on TCP at {address}: {error}{todo}")
            }
            Self::Twin(twin, address, error) => write!(
                f,
                "can't listen on TCP at {twin} beside {address}: {error}; whoever listens there could answer to \
                 localhost instead of weaved: end that program, or take another port"
            ),
        }
    }
}

impl std::error::Error for TcpError {}

/// What is listened on for TCP, and what its clients have to know.
#[derive(Debug)]
pub struct Tcp {
    /// Where clients arrive, each with its address and the port that was found for port 0. One, or two if
    /// `localhost` can stand for two.
    pub listeners: Vec<(TcpListener, SocketAddr)>,
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
        Some(_) => "clients that know the token",
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
    let mut tries = 0;
    loop {
        tries += 1;
        let first = open(address).map_err(|error| TcpError::Listen(address, error))?;
        let address_found = first.1;
        let Some(twin) = other_localhost(address_found) else {
            return Ok(Some(Tcp { listeners: vec![first], token }));
        };
        match open(twin) {
            Ok(second) => return Ok(Some(Tcp { listeners: vec![first, second], token })),
            Err(error) if has_no_such_address(&error) => {
                return Ok(Some(Tcp { listeners: vec![first], token }));
            }
            // The port was anybody's choice.
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && address.port() == 0 && tries < TRIES => {}
            Err(error) => return Err(TcpError::Twin(twin, address_found, error)),
        }
    }
}

fn open(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// What both sides know.
#[derive(Clone)]
pub struct Token(pub(crate) [u8; DIGITS / 2]);

/// The bytes that 64 hexadecimal digits stand for, in either case.
pub(crate) fn from_hex(digits: &[u8]) -> Option<[u8; DIGITS / 2]> {
    let mut bytes = [0; DIGITS / 2];
    if digits.len() != DIGITS {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = char::from(*digit).to_digit(16)?;
            *byte = *byte << 4 | u8::try_from(value).ok()?;
        }
    }
    Some(bytes)
}

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
        from_hex(digits.as_bytes()).map(Self).ok_or_else(|| wrong("holds something else"))
    }
}
