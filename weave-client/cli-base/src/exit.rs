//! How the command ends when it doesn't succeed.

use std::fmt;
use std::process::ExitCode;

use weave_client::weave_core::limits::MAX_PROMPT_LEN;
use weave_client::{Error, ErrorKind, NoSocketPath, RequestError};

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
    next: Option<&'static str>,
}

impl Failure {
    /// With one line: what has failed.
    pub fn new(exit: Exit, what: impl fmt::Display) -> Self {
        Self { exit, what: what.to_string(), next: None }
    }

    /// With a second line: what to do.
    #[must_use]
    pub fn next(self, next: &'static str) -> Self {
        Self { next: Some(next), ..self }
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
    pub const fn next_step(&self) -> Option<&'static str> {
        self.next
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
        let exit = error.kind().into();
        match &error {
            Error::Invalid(RequestError::PromptLength { length: 0, .. }) => {
                Self::new(exit, "the prompt is empty").next("say what to draw")
            }
            Error::Invalid(RequestError::PromptLength { length, .. }) => {
                let what = format_args!("the prompt has {length} bytes, must have 1 to {MAX_PROMPT_LEN}");
                Self::new(exit, what).next("shorten the prompt")
            }
            Error::Invalid(RequestError::PromptNul { .. }) => {
                Self::new(exit, "the prompt has a NUL, a byte that is no text").next("leave it out")
            }
            _ => Self { next: next(&error), ..Self::new(exit, error) },
        }
    }
}

/// What to do about it on the command line.
fn next(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::Unreachable { .. } => "a socket is named with --socket PATH or in WEAVE_SOCKET",
        Error::Invalid(RequestError::Width(_)) => "change it with --width N or --size WxH",
        Error::Invalid(RequestError::Height(_)) => "change it with --height N or --size WxH",
        Error::Invalid(RequestError::Steps(_)) => "change it with --steps N",
        Error::Invalid(RequestError::CfgScale(_)) => "change it with --cfg-scale X",
        Error::Timeout(_) => "more time is allowed with --timeout SECONDS",
        _ => return None,
    })
}
