//! Which daemon: its address, its token, and a client for it.

use std::path::{Path, PathBuf};

use clap::ValueHint;
use clap::builder::{OsStringValueParser, TypedValueParser};
use weave_client::{Address, Client, Token, default_socket_path};

use crate::arguments::{path, variable};
use crate::exit::{Exit, Failure};

/// The help text of `--socket`.
pub const SOCKET_HELP: &str = "\
The daemon's socket, or tcp://HOST:PORT [default: $WEAVE_SOCKET, else $XDG_RUNTIME_DIR/weave/weave.sock or \
~/.weave/weave.sock, else /run/weave/weave.sock]";

/// The daemon, as a command's arguments name it.
#[derive(Debug, clap::Args)]
pub struct Daemon {
    /// Where it listens.
    #[arg(
        long,
        value_name = "ADDRESS",
        value_hint = ValueHint::FilePath,
        value_parser = OsStringValueParser::new().try_map(path),
        help = SOCKET_HELP
    )]
    pub socket: Option<PathBuf>,

    /// File with the token that the daemon asks for over TCP [default: $WEAVE_TOKEN_FILE]
    #[arg(
        long,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        value_parser = OsStringValueParser::new().try_map(path)
    )]
    pub token_file: Option<PathBuf>,

    /// Who it may be.
    #[command(flatten)]
    pub user: ServerUser,
}

/// Whose process may be at a Unix socket's other end.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServerUser {
    /// User who may be the daemon, besides this one, root and a service in /run [default: $WEAVE_SERVER_UID]
    #[arg(long, value_name = "UID", value_parser = uid)]
    pub server_uid: Option<u32>,
}

impl ServerUser {
    /// The user who was named.
    ///
    /// # Errors
    /// The variable names none.
    pub fn find(&self) -> Result<Option<u32>, Failure> {
        let named = if self.server_uid.is_none() { variable("WEAVE_SERVER_UID") } else { None };
        let Some(named) = named else { return Ok(self.server_uid) };
        uid(&named.to_string_lossy()).map(Some).map_err(|error| {
            Failure::new(Exit::Usage, format_args!("WEAVE_SERVER_UID is {named:?}, {error}"))
        })
    }
}

/// The number of a user, for clap.
fn uid(text: &str) -> Result<u32, String> {
    text.trim().parse().map_err(|_| "must be the number of a user, which `id -u NAME` says".to_owned())
}

/// A daemon that was found, and how to be let in there.
#[derive(Clone, Debug)]
pub struct Target {
    address: Address,
    token: Option<Token>,
    server_uid: Option<u32>,
}

impl Target {
    /// A client for it.
    #[must_use]
    pub fn client(&self) -> Client {
        let mut client = Client::new(self.address.clone());
        client.set_token(self.token.clone());
        client.set_server_uid(self.server_uid);
        client
    }
}

impl Daemon {
    /// Where that daemon is, who it may be, and what it wants to see.
    ///
    /// # Errors
    /// Nobody says where it is, or its token can't be read.
    pub fn find(&self) -> Result<Target, Failure> {
        let address = address(self.socket.as_deref())?;
        let server_uid = self.user.find()?;
        if !matches!(address, Address::Tcp(_)) {
            return match self.token_file {
                None => Ok(Target { address, token: None, server_uid }),
                Some(_) => Err(Failure::new(Exit::Usage, "--token-file is for daemons at tcp://HOST:PORT")
                    .next("a Unix socket needs no token: the kernel says who connects")),
            };
        }
        let file = match &self.token_file {
            Some(file) => Some(file.clone()),
            None => named_file("WEAVE_TOKEN_FILE")?,
        };
        let token = match file {
            None => None,
            Some(file) => Some(Token::read(&file).map_err(|error| {
                Failure::new(Exit::Usage, format_args!("can't read the token in {}: {error}", file.display()))
                    .next("it takes the file that the daemon was given as --token-file")
            })?),
        };
        Ok(Target { address, token, server_uid })
    }

    /// A client for it.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn client(&self) -> Result<Client, Failure> {
        Ok(self.find()?.client())
    }
}

/// The address that was named, or the usual one.
///
/// # Errors
/// None was named, and nothing says which is the usual one.
pub fn address(named: Option<&Path>) -> Result<Address, Failure> {
    if named.is_none() {
        // Which is refused here if it can't be meant.
        named_file("WEAVE_SOCKET")?;
    }
    Ok(Address::new(match named {
        Some(address) => address.to_owned(),
        None => default_socket_path()?,
    }))
}

/// The file that a variable names.
///
/// # Errors
/// It is no path that can be meant.
pub(crate) fn named_file(name: &str) -> Result<Option<PathBuf>, Failure> {
    let Some(value) = variable(name) else { return Ok(None) };
    path(value.clone())
        .map(Some)
        .map_err(|error| Failure::new(Exit::Usage, format_args!("{name} is {value:?}, {error}")))
}
