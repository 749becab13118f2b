//! The error message (msg_type 0x00FF).
//!
//! | payload offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | request_id, 0 if it could not be read |
//! | 8 | 4 | status: 400 the client's fault, 500 the server's |
//! | 12 | 4 | error_code, [`ErrorCode`] |
//! | 16 | 2 | error_msg_len |
//! | 18 | … | error_msg, UTF-8 |

use core::fmt::{self, Write};

use nom::bytes::complete::take;
use nom::{Finish, Parser};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::NoRoom;
use crate::frame::{Frame, Header, Kind, Short, fixed};
use crate::limits::{
    ERROR_FIXED_LEN, HEADER_LEN, MAX_ERROR_MESSAGE_LEN, STATUS_CLIENT_ERROR, STATUS_SERVER_ERROR,
};

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// 400: the same request will fail again.
    ClientError,
    /// 500: the same request may succeed later.
    ServerError,
}

impl Status {
    /// The number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::ClientError => STATUS_CLIENT_ERROR,
            Self::ServerError => STATUS_SERVER_ERROR,
        }
    }
}

/// Declares the codes once: variant, number, name in the specification, status, meaning.
macro_rules! error_codes {
    ($($variant:ident = $number:literal, $name:literal, $status:ident, $doc:literal;)*) => {
        /// What went wrong. A code that this crate doesn't know is kept; go by the status then.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $(#[doc = $doc] $variant,)*
            /// A code from a later version.
            Unknown(u32),
        }

        impl ErrorCode {
            /// Every code that v1 defines.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The number on the wire.
            #[must_use]
            pub const fn to_wire(self) -> u32 {
                match self {
                    $(Self::$variant => $number,)*
                    Self::Unknown(other) => other,
                }
            }

            /// The meaning of a number on the wire.
            #[must_use]
            pub const fn from_wire(number: u32) -> Self {
                match number {
                    $($number => Self::$variant,)*
                    other => Self::Unknown(other),
                }
            }

            /// The name in the specification; "UNKNOWN" for a code of a later version.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::Unknown(_) => "UNKNOWN",
                }
            }

            /// The status that goes with the code. For an unknown code the frame's own counts.
            #[must_use]
            pub const fn status(self) -> Status {
                match self {
                    $(Self::$variant => Status::$status,)*
                    Self::Unknown(_) => Status::ServerError,
                }
            }
        }
    };
}

error_codes! {
    None = 0, "NONE", ServerError, "0: reserved, never sent.";
    InvalidMagic = 1, "INVALID_MAGIC", ClientError, "1: the frame doesn't begin with \"WEVE\".";
    UnsupportedVersion = 2, "UNSUPPORTED_VERSION", ClientError, "2: the header's version isn't spoken here.";
    InvalidModelId = 3, "INVALID_MODEL_ID", ClientError, "3: no such model here.";
    InvalidPrompt = 4, "INVALID_PROMPT", ClientError, "4: a prompt's length, place or text.";
    InvalidDimensions = 5, "INVALID_DIMENSIONS", ClientError, "5: width or height.";
    InvalidSteps = 6, "INVALID_STEPS", ClientError, "6: steps.";
    InvalidCfg = 7, "INVALID_CFG", ClientError, "7: cfg_scale.";
    OutOfMemory = 8, "OUT_OF_MEMORY", ServerError, "8: the image doesn't fit into the device's memory.";
    GpuError = 9, "GPU_ERROR", ServerError, "9: the engine failed or died.";
    Timeout = 10, "TIMEOUT", ServerError, "10: a deadline passed.";
    Malformed = 20, "MALFORMED", ClientError, "20: the payload is too short.";
    TooLarge = 21, "TOO_LARGE", ClientError, "21: the payload is too long to follow; the server closes.";
    UnsupportedType = 22, "UNSUPPORTED_TYPE", ClientError, "22: a msg_type that a server doesn't take.";
    Busy = 23, "BUSY", ServerError, "23: the queue is full.";
    ShuttingDown = 24, "SHUTTING_DOWN", ServerError, "24: the server is ending.";
    Internal = 99, "INTERNAL", ServerError, "99: anything else on the server's side.";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(number) => write!(f, "error code {number}"),
            known => f.write_str(known.name()),
        }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawError {
    request_id: U64,
    status: U32,
    error_code: U32,
    error_msg_len: U16,
}

/// An error as it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorMessage<'a> {
    /// The request that is answered; 0 if the server could not read its id.
    pub request_id: u64,
    /// Whose fault it is.
    pub status: Status,
    /// What went wrong.
    pub code: ErrorCode,
    /// The sender's words: UTF-8 if the sender keeps to the rules. [`text`](Self::text) shows it.
    pub message: &'a [u8],
}

impl<'a> ErrorMessage<'a> {
    /// The message for a person: whatever isn't UTF-8 is replaced, control characters are escaped,
    /// so that a peer can't write into a terminal.
    #[must_use]
    pub const fn text(&self) -> Text<'a> {
        Text(self.message)
    }
}

/// Shows bytes from a peer. Made by [`ErrorMessage::text`].
#[derive(Clone, Copy, Debug)]
pub struct Text<'a>(&'a [u8]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    f.write_char(c)?;
                }
            }
            if !chunk.invalid().is_empty() {
                f.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        Ok(())
    }
}

/// Why a frame of type 0x00FF can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorParseError {
    /// The frame is of another type.
    NotAnError,
    /// The payload ends before the message does.
    Short {
        /// Bytes that the header announces.
        payload_len: u32,
    },
    /// The status is neither 400 nor 500.
    Status(u32),
}

impl ErrorParseError {
    /// The requirement of the specification by which a client doesn't believe the error.
    #[must_use]
    pub const fn requirement(self) -> &'static str {
        match self {
            Self::NotAnError => "W1-FRM-010",
            Self::Short { .. } => "W1-ERR-008",
            Self::Status(_) => "W1-ERR-007",
        }
    }
}

impl fmt::Display for ErrorParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnError => f.write_str("the frame is not an error"),
            Self::Short { payload_len } => {
                write!(f, "payload_len is {payload_len}, too short for the error that it holds")
            }
            Self::Status(status) => write!(f, "status is {status}, must be 400 or 500 in an error"),
        }
    }
}

impl core::error::Error for ErrorParseError {}

/// Reads an error frame of any version: one that doesn't speak ours says so in its own. Bytes after
/// the message are ignored.
///
/// # Errors
/// [`ErrorParseError`]: the frame contradicts itself.
pub fn parse<'a>(frame: &Frame<'a>) -> Result<ErrorMessage<'a>, ErrorParseError> {
    let header = frame.header();
    if header.kind() != Kind::Error {
        return Err(ErrorParseError::NotAnError);
    }
    let short = |Short| ErrorParseError::Short { payload_len: header.payload_len() };
    let (rest, raw) = fixed::<RawError>.parse_complete(frame.body()).finish().map_err(short)?;
    let status = match raw.status.get() {
        STATUS_CLIENT_ERROR => Status::ClientError,
        STATUS_SERVER_ERROR => Status::ServerError,
        other => return Err(ErrorParseError::Status(other)),
    };
    let (_, message) = take(raw.error_msg_len.get()).parse_complete(rest).finish().map_err(short)?;
    Ok(ErrorMessage {
        request_id: raw.request_id.get(),
        status,
        code: ErrorCode::from_wire(raw.error_code.get()),
        message,
    })
}

/// Writes an error frame into `out` and returns it. The message is cut after
/// [`MAX_ERROR_MESSAGE_LEN`] bytes, at the end of a character.
///
/// # Errors
/// [`NoRoom`]: `out` is too small; [`MAX_ERROR_FRAME`](crate::limits::MAX_ERROR_FRAME) bytes always do.
pub fn emit(
    request_id: u64,
    code: ErrorCode,
    message: impl fmt::Display,
    out: &mut [u8],
) -> Result<&[u8], NoRoom> {
    let mut text = Truncating(heapless::String::<MAX_ERROR_MESSAGE_LEN>::new());
    // Only the message's own Display can fail; an error without all of its words is still an error.
    let _ = write!(text, "{message}");
    let message = text.0.as_bytes();
    // At most 255, so neither conversion saturates.
    let message_len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let payload_len = u32::from(message_len).saturating_add(18);
    let header = Header::emit(Kind::Error, payload_len);
    let raw = RawError {
        request_id: U64::new(request_id),
        status: U32::new(code.status().to_wire()),
        error_code: U32::new(code.to_wire()),
        error_msg_len: U16::new(message_len),
    };
    write_parts(out, [&header, raw.as_bytes(), message])
}

/// Writes `parts` one after the other to the front of `out`.
pub(crate) fn write_parts<'o, const P: usize>(
    out: &'o mut [u8],
    parts: [&[u8]; P],
) -> Result<&'o [u8], NoRoom> {
    let have = out.len();
    let need = parts.iter().fold(0usize, |sum, part| sum.saturating_add(part.len()));
    let Some(target) = out.get_mut(..need) else {
        return Err(NoRoom { need, have });
    };
    let mut rest = &mut *target;
    for part in parts {
        let Some((place, after)) = rest.split_at_mut_checked(part.len()) else {
            return Err(NoRoom { need, have });
        };
        place.copy_from_slice(part);
        rest = after;
    }
    Ok(target)
}

/// Takes text until it is full, then drops the rest.
struct Truncating(heapless::String<MAX_ERROR_MESSAGE_LEN>);

impl Write for Truncating {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_ERROR_MESSAGE_LEN.saturating_sub(self.0.len());
        if self.0.push_str(text).is_ok() {
            return Ok(());
        }
        // The longest beginning that fits and ends with a character.
        let beginning = (0..=room).rev().find_map(|end| text.get(..end));
        let _ = self.0.push_str(beginning.unwrap_or_default());
        Err(fmt::Error)
    }
}

const _: () = assert!(size_of::<RawError>() == ERROR_FIXED_LEN && HEADER_LEN == 16);
