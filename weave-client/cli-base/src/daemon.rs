//! Which daemon: its address, its token, and a client for it.

use std::path::{Path, PathBuf};

use clap::ValueHint;
use weave_client::{Address, Client, Token, default_socket_path};

use crate::exit::{Exit, Failure};

/// The help text of `--socket`.
pub const SOCKET_HELP: &str = "\
The daemon's socket, or tcp://HOST:PORT [default: $WEAVE_SOCKET, else $XDG_RUNTIME_DIR/weave/weave.sock]";

/// The daemon, as a command's arguments name it.
#[derive(Debug, clap::Args)]
pub struct Daemon {
    /// Where it listens.
    #[arg(long, value_name = "ADDRESS", value_hint = ValueHint::FilePath, help = SOCKET_HELP)]
    pub socket: Option<PathBuf>,

    /// File with the token that the daemon asks for over TCP [default: $WEAVE_TOKEN_FILE]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
}

impl Daemon {
    /// Where that daemon is, and what it wants to see.
    ///
    /// # Errors
    /// Nobody says where it is, or its token can't be read.
    pub fn find(&self) -> Result<(Address, Option<Token>), Failure> {
        let address = address(self.socket.as_deref())?;
        if !matches!(address, Address::Tcp(_)) {
            return match self.token_file {
                None => Ok((address, None)),
                Some(_) => Err(Failure::new(Exit::Usage, "--token-file is for daemons at tcp://HOST:PORT")
                    .next("a Unix socket needs no token: the kernel says who connects")),
            };
        }
        let named =
            || std::env::var_os("WEAVE_TOKEN_FILE").filter(|file| !file.is_empty()).map(PathBuf::from);
        let token = match self.token_file.clone().or_else(named) {
            None => None,
            Some(file) => Some(Token::read(&file).map_err(|error| {
                Failure::new(Exit::Usage, format_args!("can't read the token in {}: {error}", file.display()))
                    .next("it takes the file that the daemon was given as --token-file")
            })?),
        };
        Ok((address, token))
    }

    /// A client for it.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn client(&self) -> Result<Client, Failure> {
        let (address, token) = self.find()?;
        let mut client = Client::new(address);
        client.set_token(token);
        Ok(client)
    }
}

/// The address that was named, or the usual one.
///
/// # Errors
/// None was named, and nothing says which is the usual one.
pub fn address(named: Option<&Path>) -> Result<Address, Failure> {
    Ok(Address::new(match named {
        Some(address) => address.to_owned(),
        None => default_socket_path()?,
    }))
}
