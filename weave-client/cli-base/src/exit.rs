//! How the command ends when it doesn't succeed.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use weave_client::{Address, Error, ErrorKind, NoSocketPath, RequestError, usual_socket_paths};

use crate::arguments::variable;

/// Declares the statuses of a failure once: name, number, meaning.
macro_rules! exits {
    ($($name:ident = $number:literal, $meaning:literal;)*) => {
        /// An exit status that says what failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Exit {
            $(#[doc = $meaning] $name = $number,)*
        }

        /// All exit statuses and what they mean.
        pub const MEANINGS: &[(u8, &str)] = &[
            (0, "done"),
            $(($number, $meaning),)*
            (130, "interrupted with Ctrl-C; 129 when its terminal was closed, 143 when ended by SIGTERM"),
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
    NotWeave = 76, "what answers there doesn't speak Weave properly, or doesn't know the token";
    Stranger = 77, "the socket is another user's than the daemon's: nothing was sent";
}

/// What stands at the end of a help text.
#[must_use]
pub fn help(examples: &str) -> String {
    let mut text = format!("{examples}\nExit status:\n");
    for (number, meaning) in MEANINGS {
        text.push_str(&format!("{number:>5}  {meaning}\n"));
    }
    text
}

/// Why the command ends early.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    what: String,
    next: Option<Cow<'static, str>>,
}

impl Failure {
    /// With one line: what has failed.
    pub fn new(exit: Exit, what: impl fmt::Display) -> Self {
        Self { exit, what: what.to_string(), next: None }
    }

    /// With a second line: what to do.
    #[must_use]
    pub fn next(self, next: impl Into<Cow<'static, str>>) -> Self {
        Self { next: Some(next.into()), ..self }
    }

    /// The exit status that it ends with.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        self.exit
    }

    /// What has failed.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What to do.
    #[must_use]
    pub fn next_step(&self) -> Option<&str> {
        self.next.as_deref()
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
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
            ErrorKind::Stranger => Self::Stranger,
            ErrorKind::Local => Self::Local,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let next = match &error {
            Error::Unreachable { address: Address::Unix(path), .. } => Some(looked_at(path).into()),
            Error::Unreachable { .. } => Some(NAMED.into()),
            Error::Invalid(invalid) => flag(invalid).map(Cow::from),
            Error::Timeout(_) => Some("more time is allowed with --timeout SECONDS".into()),
            _ => None,
        };
        Self { next, ..Self::new(error.kind().into(), error) }
    }
}

const NAMED: &str = "a socket is named with --socket PATH or in WEAVE_SOCKET";

/// Where else a daemon was looked for, if nobody had said where it is.
fn looked_at(path: &PathBuf) -> String {
    let usual = usual_socket_paths();
    if variable("WEAVE_SOCKET").is_some() || !usual.contains(path) {
        return NAMED.to_owned();
    }
    let usual: Vec<_> = usual.iter().map(|path| path.display().to_string()).collect();
    format!("{NAMED}; without that it is looked for at {}", usual.join(", then at "))
}

/// What to change on the command line.
fn flag(invalid: &RequestError) -> Option<&'static str> {
    use RequestError as E;
    Some(match invalid {
        E::Width(_) => "change it with --width N or --size WxH",
        E::Height(_) => "change it with --height N or --size WxH",
        E::Steps(_) => "change it with --steps N",
        E::CfgScale(_) => "change it with --cfg-scale X",
        E::PromptLength { length: 0, .. } => "say what to draw",
        E::PromptLength { .. } => "shorten the prompt",
        E::PromptNul { .. } => "leave it out",
        _ => return None,
    })
}
