//! Reading one answer off a connection, in two steps.
//!
//! [`read_head`] says what the answer is and to which request; [`read_pixels`] reads the image, once
//! the caller has found that it fits a request of its own. Nothing is stored for an answer before
//! that, except the words of an error, which are bounded.

use std::error::Error as StdError;
use std::fmt;

use weave_core::error::{self, ErrorCode, ErrorParseError, Status};
use weave_core::frame::{FrameError, Header, Kind, Split, split};
use weave_core::limits::{HEADER_LEN, MAX_RESPONSE_PAYLOAD, MIN_ERROR_PAYLOAD, RESPONSE_FIXED_LEN, VERSION};
use weave_core::response::{ResponseError, ResponseHead};

use crate::link::Link;
use crate::{Error, Progress};

/// As much of an error's payload as its message can reach; what a later version appends is skipped.
const MAX_ERROR: u32 = MIN_ERROR_PAYLOAD + u16::MAX as u32;

/// An answer up to its pixels.
pub(crate) enum Head {
    /// An image follows, and then bytes of a later version, to be skipped.
    Image { head: ResponseHead, trailing: u32 },
    /// An error, complete.
    Refusal { request_id: u64, refusal: Refusal },
}

impl Head {
    pub(crate) const fn request_id(&self) -> u64 {
        match self {
            Self::Image { head, .. } => head.request_id,
            Self::Refusal { request_id, .. } => *request_id,
        }
    }
}

/// An error that the daemon answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whose fault it is: whether the same request can succeed later.
    pub status: Status,
    /// What went wrong.
    pub code: ErrorCode,
    /// The daemon's words, with control characters escaped: they can be shown in a terminal.
    pub message: String,
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

/// Reads an answer up to its pixels.
pub(crate) fn read_head(link: &mut Link) -> Result<Head, Error> {
    link.begin_answer();
    let mut raw = [0; HEADER_LEN];
    link.fill(&mut raw)?;
    let header = Header::parse(&raw, MAX_RESPONSE_PAYLOAD).map_err(Nonsense::Frame)?;
    match header.kind() {
        // An error is read whatever its version: a daemon that doesn't speak ours says so in its own.
        Kind::Response if !header.is_supported() => Err(Nonsense::Version(header.version()).into()),
        Kind::Response => read_response(link, header),
        Kind::Error => read_refusal(link, header, &raw),
        other => Err(Nonsense::Type(other.to_wire()).into()),
    }
}

fn read_response(link: &mut Link, header: Header) -> Result<Head, Error> {
    // Of a payload that is too short only as much as there is; the parser then says so.
    let mut fields = [0; RESPONSE_FIXED_LEN];
    let there = fields.len().min(header.payload_len() as usize);
    link.fill(&mut fields[..there])?;
    let (head, trailing) = ResponseHead::parse(header, &fields).map_err(Nonsense::Response)?;
    Ok(Head::Image { head, trailing })
}

fn read_refusal(link: &mut Link, header: Header, raw: &[u8; HEADER_LEN]) -> Result<Head, Error> {
    let kept = header.payload_len().min(MAX_ERROR);
    let mut frame = raw.to_vec();
    // The frame is made as short as what is kept of it.
    frame[8..12].copy_from_slice(&kept.to_be_bytes());
    frame.resize(HEADER_LEN + kept as usize, 0);
    link.fill(&mut frame[HEADER_LEN..])?;
    link.skip((header.payload_len() - kept) as usize)?;
    match split(&frame, MAX_ERROR).map_err(Nonsense::Frame)? {
        Split::Frame(frame, _) => {
            let error = error::parse(&frame).map_err(Nonsense::Error)?;
            let refusal =
                Refusal { status: error.status, code: error.code, message: error.text().to_string() };
            Ok(Head::Refusal { request_id: error.request_id, refusal })
        }
        // The frame was read to its end.
        Split::Need(_) => unreachable!("a whole frame"),
    }
}

/// Reads the pixels that follow `head`, and what trails behind them.
pub(crate) fn read_pixels(
    link: &mut Link,
    head: &ResponseHead,
    trailing: u32,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<u8>, Error> {
    let mut pixels = vec![0; head.image.data_len() as usize];
    let mut received = 0;
    while received < pixels.len() {
        received += link.receive(&mut pixels[received..])?;
        progress(Progress::Received { bytes: received, of: pixels.len() });
    }
    link.skip(trailing as usize)?;
    Ok(pixels)
}
