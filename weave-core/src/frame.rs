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

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes::to_usize;
use crate::code::ErrorCode;
use crate::limits::{HEADER_LEN, MAGIC, VERSION};

mod deframer;

pub use deframer::Deframer;

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

    /// Whether that is a version that this crate speaks.
    #[must_use]
    pub const fn is_supported(&self) -> bool {
        self.version == VERSION
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

/// One frame: a checked header and all of its payload, still where it was received.
///
/// Only [`split`] and [`Deframer::next_frame`] make one.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    header: Header,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The header.
    #[must_use]
    pub const fn header(&self) -> Header {
        self.header
    }

    /// The payload: [`payload_len`](Header::payload_len) bytes.
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The request_id, with which every payload starts; 0 if its eight bytes are not there.
    #[must_use]
    pub fn request_id(&self) -> u64 {
        request_id(self.payload)
    }
}

/// A frame whose payload was longer than the [`Deframer`]'s buffer and was dropped, but for its
/// beginning. It is over: the next frame follows.
#[derive(Clone, Copy, Debug)]
pub struct Skipped<'a> {
    header: Header,
    front: &'a [u8],
}

impl<'a> Skipped<'a> {
    /// The header.
    #[must_use]
    pub const fn header(&self) -> Header {
        self.header
    }

    /// The payload's first [`REQUEST_FIXED_LEN`](crate::limits::REQUEST_FIXED_LEN) bytes, which is
    /// what it takes to answer it.
    #[must_use]
    pub const fn front(&self) -> &'a [u8] {
        self.front
    }

    /// The request_id, with which every payload starts.
    #[must_use]
    pub fn request_id(&self) -> u64 {
        request_id(self.front)
    }
}

/// What came out of a stream: a frame, or what is left of one that was too long to keep.
#[derive(Clone, Copy, Debug)]
pub enum Arrived<'a> {
    /// A frame with all of its payload.
    Whole(Frame<'a>),
    /// A frame whose payload was dropped.
    Skipped(Skipped<'a>),
}

impl Arrived<'_> {
    /// The header.
    #[must_use]
    pub const fn header(&self) -> Header {
        match self {
            Self::Whole(frame) => frame.header,
            Self::Skipped(skipped) => skipped.header,
        }
    }

    /// The request_id, with which every payload starts; 0 if its eight bytes are not there.
    #[must_use]
    pub fn request_id(&self) -> u64 {
        match self {
            Self::Whole(frame) => frame.request_id(),
            Self::Skipped(skipped) => skipped.request_id(),
        }
    }
}

fn request_id(payload: &[u8]) -> u64 {
    U64::ref_from_prefix(payload).map_or(0, |(id, _)| id.get())
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
        Some((payload, rest)) => Split::Frame(Frame { header, payload }, rest),
        None => Split::Need(len.saturating_sub(after.len())),
    })
}
