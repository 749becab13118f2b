//! Cutting a byte stream into frames.
//!
//! A frame is a 16-byte header and `payload_len` bytes. [`split`] looks at the front of a buffer;
//! [`Deframer`] does the same for a stream that arrives in pieces, with memory of a fixed size.
//! Both answer one of three things: here is a frame, more bytes are needed, or this stream can't
//! be followed any further ([`FrameError`]). They know nothing of what a payload means.
//!
//! | offset | size | field | value |
//! | --- | --- | --- | --- |
//! | 0 | 4 | magic | `57 45 56 45` |
//! | 4 | 2 | version | 1 |
//! | 6 | 2 | msg_type | [`Kind`] |
//! | 8 | 4 | payload_len | bytes after the header |
//! | 12 | 4 | reserved | senders write 0, receivers ignore it |
//!
//! All integers are big-endian.

use core::fmt;

use nom::IResult;
use nom::error::{ErrorKind, ParseError};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::ErrorCode;
use crate::limits::{HEADER_LEN, MAGIC, REQUEST_FIXED_LEN, VERSION};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    version: U16,
    msg_type: U16,
    payload_len: U32,
    reserved: U32,
}

/// What a frame carries: the header's msg_type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// 0x0001: a generation request.
    Request,
    /// 0x0002: a generation response.
    Response,
    /// 0x00FF: an error.
    Error,
    /// Any other value, kept as it is.
    Unknown(u16),
}

impl Kind {
    /// The number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u16 {
        match self {
            Self::Request => 0x0001,
            Self::Response => 0x0002,
            Self::Error => 0x00FF,
            Self::Unknown(other) => other,
        }
    }

    /// The meaning of a number on the wire.
    #[must_use]
    pub const fn from_wire(value: u16) -> Self {
        match value {
            0x0001 => Self::Request,
            0x0002 => Self::Response,
            0x00FF => Self::Error,
            other => Self::Unknown(other),
        }
    }
}

/// A header whose magic is right and whose payload is short enough to be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    version: u16,
    msg_type: u16,
    payload_len: u32,
}

impl Header {
    /// Reads a header. `max_payload` is the longest payload that the caller is ready to follow.
    ///
    /// # Errors
    /// [`FrameError`]: the stream can't be followed any further.
    pub fn parse(bytes: &[u8; HEADER_LEN], max_payload: u32) -> Result<Self, FrameError> {
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.magic != MAGIC {
            return Err(FrameError::Magic(raw.magic));
        }
        let payload_len = raw.payload_len.get();
        if payload_len > max_payload {
            return Err(FrameError::TooLarge { payload_len, max_payload });
        }
        Ok(Self { version: raw.version.get(), msg_type: raw.msg_type.get(), payload_len })
    }

    /// The header of a frame that this crate emits.
    pub(crate) fn emit(kind: Kind, payload_len: u32) -> [u8; HEADER_LEN] {
        zerocopy::transmute!(RawHeader {
            magic: MAGIC,
            version: U16::new(VERSION),
            msg_type: U16::new(kind.to_wire()),
            payload_len: U32::new(payload_len),
            reserved: U32::new(0),
        })
    }

    /// The version that the sender speaks. Not checked here: a frame of another version still has
    /// its boundaries.
    #[must_use]
    pub const fn version(&self) -> u16 {
        self.version
    }

    /// What the frame carries.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        Kind::from_wire(self.msg_type)
    }

    /// Bytes after the header.
    #[must_use]
    pub const fn payload_len(&self) -> u32 {
        self.payload_len
    }
}

/// Why a stream can't be read any further. Always the end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame doesn't begin with "WEVE".
    Magic([u8; 4]),
    /// The payload is longer than the receiver is ready to follow.
    TooLarge {
        /// What the header announces.
        payload_len: u32,
        /// What would have been followed.
        max_payload: u32,
    },
}

impl FrameError {
    /// The code that a server answers with before it closes.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Magic(_) => ErrorCode::InvalidMagic,
            Self::TooLarge { .. } => ErrorCode::TooLarge,
        }
    }

    /// The requirement of the specification that the sender did not keep, or by which it is told so.
    #[must_use]
    pub const fn requirement(self) -> &'static str {
        match self {
            Self::Magic(_) => "W1-FRM-004",
            Self::TooLarge { .. } => "W1-FRM-002",
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Magic([a, b, c, d]) => {
                write!(f, "magic is {a:02X} {b:02X} {c:02X} {d:02X}, must be 57 45 56 45; closing")
            }
            Self::TooLarge { payload_len, max_payload } => {
                write!(f, "payload_len is {payload_len}, must be at most {max_payload}; closing")
            }
        }
    }
}

impl core::error::Error for FrameError {}

/// One frame: a checked header and its payload, still where it was received.
///
/// Only [`split`] and [`Deframer::next_frame`] make one. For a frame that is longer than the
/// [`Deframer`]'s buffer, the body is the payload's first [`REQUEST_FIXED_LEN`] bytes; what came
/// after them was dropped.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    header: Header,
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The header.
    #[must_use]
    pub const fn header(&self) -> Header {
        self.header
    }

    /// The payload, or the beginning of a payload that was too long to keep.
    #[must_use]
    pub const fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The request_id, with which every payload starts; 0 if its eight bytes were not there.
    #[must_use]
    pub fn request_id(&self) -> u64 {
        U64::ref_from_prefix(self.body).map_or(0, |(id, _)| id.get())
    }
}

/// What [`split`] found at the front of a buffer.
#[derive(Clone, Copy, Debug)]
pub enum Split<'a> {
    /// A whole frame, and the bytes after it.
    Frame(Frame<'a>, &'a [u8]),
    /// At least this many more bytes are needed to say more.
    Need(usize),
}

/// Looks for one frame at the front of `buf`, for callers that hold a stream's bytes anyway.
///
/// # Errors
/// [`FrameError`]: nothing in this buffer can be trusted any more.
pub fn split(buf: &[u8], max_payload: u32) -> Result<Split<'_>, FrameError> {
    let Some((header, after)) = buf.split_first_chunk::<HEADER_LEN>() else {
        return Ok(Split::Need(HEADER_LEN.saturating_sub(buf.len())));
    };
    let header = Header::parse(header, max_payload)?;
    let len = to_usize(header.payload_len);
    Ok(match after.split_at_checked(len) {
        Some((body, rest)) => Split::Frame(Frame { header, body }, rest),
        None => Split::Need(len.saturating_sub(after.len())),
    })
}

/// Cuts a stream into frames as it arrives, in `N` bytes of memory.
///
/// Read into [`spare`](Self::spare), say how much came with [`filled`](Self::filled), then take
/// frames with [`next_frame`](Self::next_frame) until it has none. Each header is parsed once and
/// each byte moved at most once, however the stream was cut.
///
/// A payload that doesn't fit but is within `max_payload` is skipped without being stored: its
/// frame comes when its end has passed, with the first [`REQUEST_FIXED_LEN`] bytes as body, which
/// is what it takes to answer it.
///
/// ```
/// use weave_core::frame::Deframer;
/// use weave_core::limits::{MAX_REQUEST_FRAME, MAX_SKIPPED_PAYLOAD};
///
/// let mut stream = Deframer::<MAX_REQUEST_FRAME>::new(MAX_SKIPPED_PAYLOAD);
/// for byte in *b"WEVE\x00\x01\x00\x09\x00\x00\x00\x00\x00\x00\x00\x00" {
///     assert!(stream.next_frame().unwrap().is_none());
///     stream.spare()[0] = byte;
///     stream.filled(1);
/// }
/// assert_eq!(stream.next_frame().unwrap().unwrap().header().payload_len(), 0);
/// assert!(stream.is_between_frames());
/// ```
#[derive(Debug)]
pub struct Deframer<const N: usize> {
    buf: [u8; N],
    /// Received and not yet handed out: `buf[start..end]`. `start <= end <= N` always.
    start: usize,
    end: usize,
    /// Length of the frame that was handed out last: it leaves with the next call.
    handed: usize,
    /// The header at `start`, once it is complete.
    header: Option<Header>,
    /// Payload bytes of the frame at `start` that are still to be dropped.
    skip: usize,
    max_payload: u32,
}

impl<const N: usize> Deframer<N> {
    /// An empty stream. `max_payload` is the longest payload that is followed, stored or not.
    ///
    /// `N` has to hold a header, [`REQUEST_FIXED_LEN`] bytes and at least one more; anything
    /// smaller doesn't compile.
    #[must_use]
    pub const fn new(max_payload: u32) -> Self {
        const { assert!(N > HEADER_LEN + REQUEST_FIXED_LEN) }
        Self { buf: [0; N], start: 0, end: 0, handed: 0, header: None, skip: 0, max_payload }
    }

    /// Forgets everything, for the next connection.
    pub fn reset(&mut self) {
        (self.start, self.end, self.handed, self.skip) = (0, 0, 0, 0);
        self.header = None;
    }

    /// Where to put the bytes that come next. Never empty after [`next_frame`](Self::next_frame)
    /// has said that it has no frame.
    pub fn spare(&mut self) -> &mut [u8] {
        self.release();
        if self.start > 0 {
            self.close_gap(0, self.start);
        }
        self.buf.get_mut(self.end..).unwrap_or_default()
    }

    /// Says that the first `n` bytes of [`spare`](Self::spare) are now the stream's next ones.
    pub fn filled(&mut self, n: usize) {
        self.end = self.end.saturating_add(n).min(N);
    }

    /// The next whole frame, or `None` if more bytes are needed for it.
    ///
    /// # Errors
    /// [`FrameError`], from then on at every call, since the header that is wrong stays where it is.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        self.release();
        let header = match self.header {
            Some(header) => header,
            None => {
                let Some(bytes) = self.pending().first_chunk::<HEADER_LEN>() else {
                    return Ok(None);
                };
                let header = Header::parse(bytes, self.max_payload)?;
                self.header = Some(header);
                let len = to_usize(header.payload_len);
                if len > N.saturating_sub(HEADER_LEN) {
                    self.skip = len.saturating_sub(REQUEST_FIXED_LEN);
                }
                header
            }
        };
        let kept =
            to_usize(header.payload_len).min(if self.is_whole(header) { N } else { REQUEST_FIXED_LEN });
        let frame_len = HEADER_LEN.saturating_add(kept);
        if self.skip > 0 {
            let excess = self.pending().len().saturating_sub(frame_len).min(self.skip);
            let from = self.start.saturating_add(frame_len);
            self.close_gap(from, from.saturating_add(excess));
            self.skip = self.skip.saturating_sub(excess);
        }
        if self.skip > 0 || self.pending().len() < frame_len {
            return Ok(None);
        }
        self.handed = frame_len;
        self.header = None;
        let body = self.pending().get(HEADER_LEN..frame_len).unwrap_or_default();
        Ok(Some(Frame { header, body }))
    }

    /// Whether the stream could end here without cutting a frame.
    #[must_use]
    pub const fn is_between_frames(&self) -> bool {
        self.end.saturating_sub(self.start) == self.handed && self.header.is_none()
    }

    /// Whether a frame is stored with all of its payload.
    fn is_whole(&self, header: Header) -> bool {
        to_usize(header.payload_len) <= N.saturating_sub(HEADER_LEN)
    }

    fn pending(&self) -> &[u8] {
        self.buf.get(self.start..self.end).unwrap_or_default()
    }

    /// Lets go of the frame that was handed out last.
    fn release(&mut self) {
        self.start = self.start.saturating_add(self.handed).min(self.end);
        self.handed = 0;
    }

    /// Moves `buf[to..end]` down to `from`, over what lies between them.
    fn close_gap(&mut self, from: usize, to: usize) {
        if from <= to && to <= self.end && self.end <= N {
            self.buf.copy_within(to..self.end, from);
            let gap = to.saturating_sub(from);
            self.end = self.end.saturating_sub(gap);
            self.start = self.start.min(from);
        }
    }
}

/// A length off the wire as a length in memory. Saturates where an address has fewer than 32 bits;
/// such a length then never fits and is refused like any that is too long.
pub(crate) fn to_usize(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// The input ended before the field did. The only way in which taking a field can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short;

impl ParseError<&[u8]> for Short {
    fn from_error_kind(_: &[u8], _: ErrorKind) -> Self {
        Self
    }

    fn append(_: &[u8], _: ErrorKind, other: Self) -> Self {
        other
    }
}

/// A nom parser for a layout of fixed size: a view of `T` over the front of the input.
pub(crate) fn fixed<T>(input: &[u8]) -> IResult<&[u8], &T, Short>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    match T::ref_from_prefix(input) {
        Ok((value, rest)) => Ok((rest, value)),
        Err(_) => Err(nom::Err::Error(Short)),
    }
}
