//! How the command ends when it doesn't succeed.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use weave_client::{Address, Client, Error, ErrorKind, NoSocketPath, Token, default_socket_path};

use crate::args::Daemon;

/// Declares the statuses of a failure once: name, number, meaning.
macro_rules! exits {
    ($($name:ident = $number:literal, $meaning:literal;)*) => {
        /// An exit status that says what failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Exit {
            $(#[doc = $meaning] $name = $number,)*
        }

        const MEANINGS: &[(u8, &str)] = &[
            (0, "done"),
            $(($number, $meaning),)*
            (130, "interrupted with Ctrl-C; 143 when ended by SIGTERM"),
        ];
    };
}

exits! {
    Local = 1, "something failed on this side, or the answer is no: other pixels (verify), a bad frame (inspect)";
    Usage = 2, "bad usage, or a parameter out of its range: nothing was sent";
    Refused = 3, "the daemon refused the request; the same request will be refused again";
    Busy = 4, "the daemon is busy or ending; the same request may succeed later";
    Timeout = 5, "time ran out, on the daemon's side or by --timeout";
    Daemon = 7, "the daemon failed: it could not generate the image, or hung up";
    NoInput = 66, "a file that was named can't be read, or isn't what it should be";
    NoDaemon = 69, "no daemon answers at the socket";
    NotWeave = 76, "what answers there doesn't speak Weave properly";
}

/// What stands at the end of a help text.
pub(crate) fn help(examples: &str) -> String {
    let mut text = format!("{examples}\nExit status:\n");
    for (number, meaning) in MEANINGS {
        text.push_str(&format!("{number:>5}  {meaning}\n"));
    }
    text
}

/// Why the command ends early.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    what: String,
    next: Option<&'static str>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl fmt::Display) -> Self {
        Self { exit, what: what.to_string(), next: None }
    }

    /// With a second line: what to do.
    pub(crate) fn next(self, next: &'static str) -> Self {
        Self { next: Some(next), ..self }
    }

    /// What has failed.
    #[cfg(unix)]
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// Says it on standard error.
    pub(crate) fn report(self) -> ExitCode {
        say(format_args!("{}", self.what));
        if let Some(next) = self.next {
            say(format_args!("{next}"));
        }
        ExitCode::from(self.exit as u8)
    }
}

/// A line on standard error. Where that can't be written to, there is nobody to tell.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "weave: {line}");
}

/// A result on standard output, as a line.
pub(crate) fn tell(line: fmt::Arguments<'_>) -> Result<(), Failure> {
    write_out(format!("{line}\n").as_bytes())
}

/// A result on standard output. A reader that has gone wanted no more; that is no failure.
pub(crate) fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Local, format_args!("can't write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// All of a file that was named, or of standard input for "-"; at most `most` bytes.
pub(crate) fn read_in(path: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    let (name, source): (String, io::Result<Box<dyn Read>>) = match path.to_str() {
        Some("-") => ("standard input".to_owned(), Ok(Box::new(io::stdin().lock()))),
        _ => (path.display().to_string(), File::open(path).map(|file| Box::new(file) as _)),
    };
    let mut bytes = Vec::new();
    source
        .and_then(|source| source.take(most.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(|error| Failure::new(Exit::NoInput, format_args!("can't read {name}: {error}")))?;
    match bytes.len() as u64 > most {
        true => Err(Failure::new(Exit::NoInput, format_args!("{name} has more than {most} bytes"))),
        false => Ok(bytes),
    }
}

/// The address that was named, or the usual one.
pub(crate) fn address(named: Option<&PathBuf>) -> Result<Address, Failure> {
    Ok(Address::new(match named {
        Some(address) => address.clone(),
        None => default_socket_path()?,
    }))
}

/// A client for the daemon that was named, or for the usual one.
pub(crate) fn client(daemon: &Daemon) -> Result<Client, Failure> {
    let (address, token) = self::daemon(daemon)?;
    let mut client = Client::new(address);
    client.set_token(token);
    Ok(client)
}

/// Where that daemon is, and what it wants to see.
pub(crate) fn daemon(daemon: &Daemon) -> Result<(Address, Option<Token>), Failure> {
    let address = address(daemon.socket.as_ref())?;
    if !matches!(address, Address::Tcp(_)) {
        return match daemon.token_file {
            None => Ok((address, None)),
            Some(_) => Err(Failure::new(Exit::Usage, "--token-file is for daemons at tcp://HOST:PORT")
                .next("a Unix socket needs no token: the kernel says who connects")),
        };
    }
    let named = || std::env::var_os("WEAVE_TOKEN_FILE").filter(|file| !file.is_empty()).map(PathBuf::from);
    let token = match daemon.token_file.clone().or_else(named) {
        None => None,
        Some(file) => Some(Token::read(&file).map_err(|error| {
            Failure::new(Exit::Usage, format_args!("can't read the token in {}: {error}", file.display()))
                .next("it takes the file that the daemon was given as --token-file")
        })?),
    };
    Ok((address, token))
}

impl From<NoSocketPath> for Failure {
    fn from(error: NoSocketPath) -> Self {
        Self::new(Exit::NoDaemon, error).next("or name it with --socket PATH")
    }
}

/// The one table from what went wrong to the exit status.
impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Invalid => Self::Usage,
            ErrorKind::Refused => Self::Refused,
            ErrorKind::Busy | ErrorKind::ShuttingDown => Self::Busy,
            ErrorKind::Timeout => Self::Timeout,
            ErrorKind::Failed | ErrorKind::HungUp => Self::Daemon,
            ErrorKind::Unreachable => Self::NoDaemon,
            ErrorKind::NotWeave => Self::NotWeave,
            ErrorKind::Local => Self::Local,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let next = match &error {
            Error::Unreachable { .. } => Some("a socket is named with --socket PATH or in WEAVE_SOCKET"),
            Error::Invalid(invalid) => flag(invalid),
            Error::Timeout(_) => Some("more time is allowed with --timeout SECONDS"),
            _ => None,
        };
        Self { next, ..Self::new(error.kind().into(), error) }
    }
}

/// What to change on the command line.
fn flag(invalid: &weave_client::RequestError) -> Option<&'static str> {
    use weave_client::RequestError as E;
    Some(match invalid {
        E::Width(_) => "change it with --width N",
        E::Height(_) => "change it with --height N",
        E::Steps(_) => "change it with --steps N",
        E::CfgScale(_) => "change it with --cfg X",
        E::PromptLength { length: 0, .. } => "say what to draw",
        E::PromptLength { .. } => "shorten the prompt",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_the_same_statuses() {
        let documented = include_str!("../../lib.rs");
        for (number, meaning) in MEANINGS {
            assert!(documented.contains(&format!("//! | {number} | {meaning} |\n")), "{number}: {meaning}");
        }
    }
}
