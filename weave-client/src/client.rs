//! Requests and their answers.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use weave_core::error::{ErrorCode, Status};
use weave_core::limits::MAX_REQUEST_FRAME;
use weave_core::request::{EmitError, Params, Prompts, Request, RequestError, probe};
use weave_core::response::ImageSize;

use crate::address::{Address, Token};
use crate::answer::{Head, Nonsense, Refusal, read_head, read_pixels};
use crate::link::{Deadline, Link};

/// A connection to a daemon, which answers one request at a time.
///
/// It can be used again after every error: a connection that may be out of step is closed, and the
/// next call makes a new one.
#[derive(Debug)]
pub struct Client {
    address: Address,
    token: Option<Token>,
    timeout: Option<Duration>,
    /// `None` before the first call and after a call that left it out of step.
    link: Option<Link>,
    last_id: u64,
}

impl Client {
    /// A client for the daemon that listens at `address`: the path of a Unix socket, or
    /// `tcp://HOST:PORT`. The first call connects.
    #[must_use]
    pub fn new(address: impl Into<Address>) -> Self {
        Self { address: address.into(), token: None, timeout: None, link: None, last_id: 0 }
    }

    /// Connects to the daemon that listens at `address`, without a time limit.
    ///
    /// # Errors
    /// [`Error::Unreachable`]: nobody listens there, or not for this user.
    pub fn connect(address: impl Into<Address>) -> Result<Self, Error> {
        let mut client = Self::new(address);
        client.link = Some(client.begin()?);
        Ok(client)
    }

    /// Shows a token on each TCP connection that is made from now on.
    pub fn set_token(&mut self, token: Option<Token>) {
        self.token = token;
    }

    /// Limits the time that each call from now on takes as a whole, connecting included. `None`, as
    /// in the beginning, lets it take as long as it does.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Where the daemon listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Has an image made and waits for it.
    ///
    /// # Errors
    /// [`Error`]. Of all of them only [`Error::Invalid`] is certain to come before anything was sent.
    pub fn generate(&mut self, params: &Params, prompt: &str) -> Result<Image, Error> {
        self.generate_with(params, prompt, |_| ())
    }

    /// Like [`generate`](Self::generate), and says how far it is.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_with(
        &mut self,
        params: &Params,
        prompt: &str,
        mut progress: impl FnMut(Progress),
    ) -> Result<Image, Error> {
        let request_id = self.next_id();
        let request = Request { request_id, params: *params, prompts: Prompts::same(prompt) };
        let mut frame = [0; MAX_REQUEST_FRAME];
        let frame = request.emit(&mut frame).map_err(|error| match error {
            EmitError::Invalid(error) => Error::Invalid(error),
            EmitError::NoRoom(error) => Error::Io(io::Error::other(error)),
        })?;

        let mut link = self.begin()?;
        match exchange(&mut link, request_id, frame, &mut progress)? {
            Head::Image { head, trailing } => {
                let asked = (params.width, params.height);
                let received = (head.image.width(), head.image.height());
                if asked != received {
                    return Err(Nonsense::Size { asked, received }.into());
                }
                let pixels = read_pixels(&mut link, &head, trailing, &mut progress)?;
                self.link = Some(link);
                let generation_time_ms = head.generation_time_ms;
                Ok(Image { request_id, size: head.image, generation_time_ms, pixels })
            }
            Head::Refusal { request_id, refusal } => {
                self.keep_after_refusal(link, request_id);
                Err(Error::Refused(refusal))
            }
        }
    }

    /// Asks whether a daemon is there and speaks Weave, without troubling its engine. Returns the
    /// time that it took to answer.
    ///
    /// # Errors
    /// [`Error`]; a daemon that is too busy to talk is [`Error::Refused`].
    pub fn ping(&mut self) -> Result<Duration, Error> {
        let request_id = self.next_id();
        let mut link = self.begin()?;
        let start = Instant::now();
        match exchange(&mut link, request_id, &probe(request_id), &mut |_| ())? {
            Head::Image { .. } => Err(Nonsense::Image.into()),
            Head::Refusal { request_id, refusal } => {
                let took = start.elapsed();
                self.keep_after_refusal(link, request_id);
                match refusal.code {
                    // What the probe is made for.
                    ErrorCode::InvalidModelId => Ok(took),
                    _ => Err(Error::Refused(refusal)),
                }
            }
        }
    }

    /// Never 0, with which a daemon answers what it could not read.
    fn next_id(&mut self) -> u64 {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        self.last_id
    }

    /// The connection for the next call. Whoever takes it puts it back when the answer was complete.
    fn begin(&mut self) -> Result<Link, Error> {
        let deadline = Deadline::after(self.timeout);
        match self.link.take() {
            Some(mut link) => {
                link.begin(deadline);
                Ok(link)
            }
            None => Link::connect(&self.address, self.token.as_ref(), deadline),
        }
    }

    /// An error that names no request is the last thing that a daemon sends on a connection.
    fn keep_after_refusal(&mut self, link: Link, request_id: u64) {
        if request_id != 0 {
            self.link = Some(link);
        }
    }
}

/// Sends a request and reads the head of the answer to it.
fn exchange(
    link: &mut Link,
    request_id: u64,
    frame: &[u8],
    progress: &mut dyn FnMut(Progress),
) -> Result<Head, Error> {
    let head = match link.send(frame) {
        Ok(()) => {
            progress(Progress::Sent);
            read_head(link)?
        }
        // A daemon that has no room for another connection says so and closes, maybe before it was
        // asked anything.
        Err(hung_up @ Error::HungUp { .. }) => match read_head(link) {
            Ok(head @ Head::Refusal { .. }) => head,
            _ => return Err(hung_up),
        },
        Err(error) => return Err(error),
    };
    match (head.request_id(), &head) {
        (received, _) if received == request_id => Ok(head),
        // It could not read the id, or didn't try.
        (0, Head::Refusal { .. }) => Ok(head),
        (received, _) => Err(Nonsense::RequestId { sent: request_id, received }.into()),
    }
}

/// An image as the daemon made it.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    /// The request that it answers: of this client's requests the first is 1.
    pub request_id: u64,
    /// Width, height and how a pixel is stored.
    pub size: ImageSize,
    /// What the engine took, without waiting.
    pub generation_time_ms: u32,
    /// Rows from the top, pixels from the left, one byte a channel, no padding.
    pub pixels: Vec<u8>,
}

/// Without the pixels.
impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("request_id", &self.request_id)
            .field("size", &self.size)
            .field("generation_time_ms", &self.generation_time_ms)
            .finish_non_exhaustive()
    }
}

/// How far a request is. Version 1 of the protocol tells no more than this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The request is out; the daemon has it or will have it.
    Sent,
    /// Pixels arrive.
    Received {
        /// Bytes of them that are there.
        bytes: usize,
        /// Bytes of the whole image.
        of: usize,
    },
}

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
    /// The request can't be made like this; nothing was sent.
    Invalid(RequestError),
    /// The daemon answered with an error.
    Refused(Refusal),
    /// The daemon closed the connection before its answer was complete.
    HungUp {
        /// Bytes of the answer that had come.
        received: u64,
    },
    /// The answer breaks the protocol.
    Nonsense(Nonsense),
    /// The time is over that the call was given.
    Timeout(Duration),
    /// The connection failed in some other way.
    Io(io::Error),
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
            Self::Invalid(error) => error.fmt(f),
            Self::Refused(Refusal { status, code, message }) => {
                let what = match (code, status) {
                    (ErrorCode::Busy, _) => "the daemon is busy and may take the request later",
                    (ErrorCode::ShuttingDown, _) => {
                        "the daemon is ending and takes requests again when it has been restarted"
                    }
                    (ErrorCode::Timeout, _) => {
                        "the daemon ran out of time; a smaller image or fewer steps take less"
                    }
                    (ErrorCode::OutOfMemory, _) => {
                        "the daemon lacks memory for this image; a smaller one takes less"
                    }
                    (_, Status::ClientError) => "the daemon refused the request and will refuse it again",
                    (_, Status::ServerError) => "the daemon could not make the image; its log says more",
                };
                // The daemon's own advice, if it has any, stands at the end.
                write!(f, "{what} ({code})")?;
                if message.is_empty() { Ok(()) } else { write!(f, ": {message}") }
            }
            Self::HungUp { received: 0 } => f.write_str(
                "the daemon hung up without an answer; it may be ending, not let this user in, or want \
                 another token: its log says more",
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
                 and that it speaks version {}",
                weave_core::limits::VERSION
            ),
            Self::Timeout(limit) => {
                write!(f, "no complete answer within {limit:?}; allow more time, or ask for less")
            }
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
            Self::Refused(_) | Self::HungUp { .. } | Self::Timeout(_) => None,
        }
    }
}
