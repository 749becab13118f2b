//! What can go wrong, and what that means for a caller.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::Duration;

use weave_core::error::{ErrorCode, ErrorParseError, Status};
use weave_core::frame::FrameError;
use weave_core::limits::{MAX_PROMPT_LEN, MIN_PROMPT_LEN, VERSION};
use weave_core::request::RequestError;
use weave_core::response::ResponseError;

use crate::address::Address;

/// Why there is no answer, or not the one that was hoped for. Its text also says what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// Nothing listens on the socket, or not for this user.
    Unreachable {
        /// Where it was expected.
        address: Address,
        /// What the system says.
        source: io::Error,
    },
    /// What listens on TCP didn't prove that it knows the token, so nothing was asked of it. The token was not sent.
    NoProof {
        /// Where it listens.
        address: Address,
        /// What it did.
        why: NoProof,
    },
    /// What listens on the socket belongs to a user who has no business there; nothing was sent.
    Stranger {
        /// Where the daemon was expected.
        address: Address,
        /// The user, by the kernel's word.
        uid: u32,
        /// Whose it is, in words.
        whose: String,
    },
    /// The request can't be made like this; nothing was sent.
    Invalid(RequestError),
    /// The daemon answered with an error.
    Refused(ErrorReply),
    /// The daemon closed the connection before its answer was complete.
    HungUp {
        /// Bytes of the answer that had come.
        received: u64,
    },
    /// The answer breaks the protocol.
    Nonsense(Nonsense),
    /// The time is over that the call was given.
    Timeout(Duration),
    /// A [`Stopper`](crate::Stopper) ended the call.
    Stopped,
    /// The connection failed in some other way.
    Io(io::Error),
}

impl Error {
    /// What can be done about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) => ErrorKind::Invalid,
            Self::Refused(reply) => reply.kind(),
            Self::Timeout(_) => ErrorKind::Timeout,
            Self::HungUp { received: 0 } => ErrorKind::HungUp,
            Self::HungUp { .. } => ErrorKind::Failed,
            Self::Unreachable { .. } => ErrorKind::Unreachable,
            Self::Stranger { .. } => ErrorKind::Stranger,
            Self::NoProof { why: NoProof::HungUp, .. } => ErrorKind::HungUp,
            Self::NoProof { .. } | Self::Nonsense(_) => ErrorKind::NotWeave,
            Self::Stopped | Self::Io(_) => ErrorKind::Local,
        }
    }

    /// The same once more, for the next request that it has ended.
    pub(crate) fn again(&self) -> Self {
        let io = |error: &io::Error| match error.raw_os_error() {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::new(error.kind(), error.to_string()),
        };
        match self {
            Self::Unreachable { address, source } => {
                Self::Unreachable { address: address.clone(), source: io(source) }
            }
            Self::NoProof { address, why } => Self::NoProof { address: address.clone(), why: *why },
            Self::Stranger { address, uid, whose } => {
                Self::Stranger { address: address.clone(), uid: *uid, whose: whose.clone() }
            }
            Self::Invalid(error) => Self::Invalid(*error),
            Self::Refused(reply) => Self::Refused(reply.clone()),
            Self::HungUp { received } => Self::HungUp { received: *received },
            Self::Nonsense(nonsense) => Self::Nonsense(*nonsense),
            Self::Timeout(limit) => Self::Timeout(*limit),
            Self::Stopped => Self::Stopped,
            Self::Io(error) => Self::Io(io(error)),
        }
    }
}

impl From<Nonsense> for Error {
    fn from(nonsense: Nonsense) -> Self {
        Self::Nonsense(nonsense)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { address, source } => write!(
                f,
                "no daemon answers at {address} ({source}); start weaved, or name the socket of one that runs"
            ),
            Self::NoProof { address, why: NoProof::Wrong } => write!(
                f,
                "what listens at {address} doesn't know the token, so nothing was asked of it; check that it is \
                 weaved, and that both have the same token file"
            ),
            Self::NoProof { address, why: NoProof::HungUp } => write!(
                f,
                "what listens at {address} hung up on weave-auth 1; a weaved from before weave-auth does that, and \
                 one that is ending: update it, or see its log"
            ),
            Self::NoProof { address, why: NoProof::NotAsked } => write!(
                f,
                "what listens at {address} asks for no token; start weaved with --token-file, or leave the token \
                 away if every user of its machine may connect"
            ),
            Self::NoProof { address, why: NoProof::Nonsense } => write!(
                f,
                "what listens at {address} doesn't answer weave-auth 1 as weaved does; check that it is weaved"
            ),
            Self::Stranger { address, uid, whose } => write!(
                f,
                "{address} {whose}, so nothing was sent; if that is the daemon's user, say so with \
                 --server-uid {uid} or WEAVE_SERVER_UID={uid}"
            ),
            Self::Invalid(error) => say_invalid(*error, f),
            Self::Refused(reply) => reply.fmt(f),
            Self::HungUp { received: 0 } => f.write_str(
                "the daemon hung up without an answer; it may be ending, not let this user in, or want a token: its \
                 log says more",
            ),
            Self::HungUp { received } => {
                write!(
                    f,
                    "the daemon hung up after {received} bytes of its answer; try again, its log says more"
                )
            }
            Self::Nonsense(nonsense) => write!(
                f,
                "what answers doesn't speak Weave properly: {nonsense}; check that the socket is a daemon's \
                 and that it speaks version {VERSION}"
            ),
            Self::Timeout(limit) => {
                write!(f, "no complete answer within {limit:?}; allow more time, or ask for less")
            }
            Self::Stopped => f.write_str("the call was stopped before the answer was complete"),
            Self::Io(error) => write!(f, "the connection failed: {error}; try again"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Unreachable { source, .. } | Self::Io(source) => Some(source),
            Self::Invalid(error) => Some(error),
            Self::Nonsense(nonsense) => Some(nonsense),
            Self::NoProof { .. }
            | Self::Stranger { .. }
            | Self::Refused(_)
            | Self::HungUp { .. }
            | Self::Timeout(_)
            | Self::Stopped => None,
        }
    }
}

/// What somebody did instead of proving that it knows the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoProof {
    /// It sent a proof that only another token makes.
    Wrong,
    /// It hung up: a `weaved` from before there were proofs does, and one that is ending.
    HungUp,
    /// It is a daemon without a token.
    NotAsked,
    /// It said something else.
    Nonsense,
}

/// What can be done about an [`Error`]: programs turn these into exit statuses, or into HTTP's.
// Exhaustive, so that no program's table can leave one out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A parameter is out of its range; nothing was sent.
    Invalid,
    /// The daemon refused the request and will refuse it again.
    Refused,
    /// The daemon is busy; the same request may succeed later.
    Busy,
    /// The daemon is shutting down; the same request may succeed when it has been restarted.
    ShuttingDown,
    /// Time ran out, on the daemon's side or on this one.
    Timeout,
    /// The daemon could not generate the image, or hung up within its answer.
    Failed,
    /// The daemon hung up before it had answered anything.
    HungUp,
    /// No daemon answers.
    Unreachable,
    /// The socket is another user's than the daemon's; nothing was sent.
    Stranger,
    /// What answers doesn't speak Weave properly, or doesn't know the token.
    NotWeave,
    /// Something failed on this side, or ended the call.
    Local,
}

/// An error that the daemon answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorReply {
    /// Whose fault it is: whether the same request can succeed later.
    pub status: Status,
    /// What went wrong.
    pub code: ErrorCode,
    /// The daemon's words, with what [may not be shown](weave_core::text::is_shown) escaped.
    pub message: String,
}

impl ErrorReply {
    fn kind(&self) -> ErrorKind {
        match (self.code, self.status) {
            (ErrorCode::Busy, _) => ErrorKind::Busy,
            (ErrorCode::ShuttingDown, _) => ErrorKind::ShuttingDown,
            (ErrorCode::Timeout, _) => ErrorKind::Timeout,
            // It isn't the request: the daemon wants a token before it, or none.
            (ErrorCode::InvalidMagic, _) => ErrorKind::NotWeave,
            (_, Status::ClientError) => ErrorKind::Refused,
            (_, Status::ServerError) => ErrorKind::Failed,
        }
    }
}

/// What the daemon's answer means, what to do, and the daemon's words.
impl fmt::Display for ErrorReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.code, self.status) {
            (ErrorCode::Busy, _) => "the daemon is busy and may take the request later",
            (ErrorCode::ShuttingDown, _) => {
                "the daemon is ending and takes requests again when it has been restarted"
            }
            (ErrorCode::Timeout, _) => "the daemon ran out of time; a smaller image or fewer steps take less",
            (ErrorCode::OutOfMemory, _) => "the daemon lacks memory for this image; a smaller one takes less",
            (ErrorCode::InvalidMagic, _) => "the daemon expects something else before the first request",
            (_, Status::ClientError) => "the daemon refused the request and will refuse it again",
            (_, Status::ServerError) => "the daemon could not make the image; its log says more",
        };
        // The daemon's own advice, if it has any, stands at the end.
        write!(f, "{what} ({})", self.code)?;
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

/// In words of who calls: one prompt goes to all of the model's encoders, whose names say nothing to them.
fn say_invalid(error: RequestError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match error {
        RequestError::PromptLength { length: 0, .. } => {
            write!(f, "the prompt is empty, must have {MIN_PROMPT_LEN} to {MAX_PROMPT_LEN} bytes")
        }
        RequestError::PromptLength { length, .. } => {
            write!(f, "the prompt has {length} bytes, must have {MIN_PROMPT_LEN} to {MAX_PROMPT_LEN}")
        }
        RequestError::PromptNul { at, .. } => {
            write!(f, "the prompt has a NUL after {at} bytes, must have none")
        }
        // The others are called on the wire as they are here.
        error => fmt::Display::fmt(&error, f),
    }
}

/// How an answer breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Nonsense {
    /// It isn't a Weave frame, or one that is too long.
    Frame(FrameError),
    /// It is of a version that this client doesn't speak.
    Version(u16),
    /// It is neither a response nor an error, but of this msg_type.
    Type(u16),
    /// It is a response that contradicts itself.
    Response(ResponseError),
    /// It is an error that contradicts itself.
    Error(ErrorParseError),
    /// It answers a request that wasn't made.
    RequestId {
        /// The id of the request that has waited longest for its answer.
        sent: u64,
        /// The answer's.
        received: u64,
    },
    /// It is an image of another size than was asked for.
    Size {
        /// Width and height in the request.
        asked: (u32, u32),
        /// Width and height in the answer.
        received: (u32, u32),
    },
    /// It is an image, though none was asked for.
    Image,
}

impl fmt::Display for Nonsense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(error) => error.fmt(f),
            Self::Version(version) => write!(f, "version is {version}, must be {VERSION}"),
            Self::Type(msg_type) => {
                write!(f, "msg_type is {msg_type:#06x}, must be 0x0002 (response) or 0x00ff (error)")
            }
            Self::Response(error) => error.fmt(f),
            Self::Error(error) => error.fmt(f),
            Self::RequestId { sent, received } => write!(f, "request_id is {received}, must be {sent}"),
            Self::Size { asked, received } => {
                write!(f, "the image is {}×{}, must be {}×{}", received.0, received.1, asked.0, asked.1)
            }
            Self::Image => f.write_str("an image came, though none was asked for"),
        }
    }
}

impl StdError for Nonsense {}
