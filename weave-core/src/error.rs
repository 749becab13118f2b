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

use crate::bytes::{NoRoom, Short, fixed, write_parts};
use crate::frame::{Frame, Header, Kind};
use crate::limits::{
    ERROR_FIXED_LEN, HEADER_LEN, MAX_ERROR_FRAME, MAX_ERROR_MESSAGE_LEN, MIN_ERROR_PAYLOAD,
    STATUS_CLIENT_ERROR, STATUS_SERVER_ERROR,
};

use crate::text::Text;

pub use crate::code::{ErrorCode, Status};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawError {
    request_id: U64,
    status: U32,
    error_code: U32,
    error_msg_len: U16,
}

/// A frame with a message of the longest length.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct LongestFrame {
    header: [u8; HEADER_LEN],
    fields: RawError,
    message: [u8; MAX_ERROR_MESSAGE_LEN],
}

const _: () = assert!(size_of::<RawError>() == ERROR_FIXED_LEN);

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
    /// The message for a person: whatever isn't UTF-8 is replaced, and what [may not be shown](crate::text::is_shown)
    /// is escaped, so that a peer can't write into a terminal.
    #[must_use]
    pub const fn text(&self) -> Text<'a> {
        Text::new(self.message)
    }
}

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
    let (rest, raw) = fixed::<RawError>.parse_complete(frame.payload()).finish().map_err(short)?;
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
/// [`NoRoom`]: `out` is too small. [`emit_frame`] takes a buffer that never is.
pub fn emit(
    request_id: u64,
    code: ErrorCode,
    message: impl fmt::Display,
    out: &mut [u8],
) -> Result<&[u8], NoRoom> {
    let mut longest = [0; MAX_ERROR_FRAME];
    write_parts(out, [emit_frame(request_id, code, message, &mut longest)])
}

/// Writes an error frame into `out`, where every one fits, and returns it. The message is cut after
/// [`MAX_ERROR_MESSAGE_LEN`] bytes, at the end of a character.
pub fn emit_frame(
    request_id: u64,
    code: ErrorCode,
    message: impl fmt::Display,
    out: &mut [u8; MAX_ERROR_FRAME],
) -> &[u8] {
    let frame: &mut LongestFrame = zerocopy::transmute_mut!(out);
    let mut text = Truncating(&mut frame.message);
    // Only the message's own Display can fail; an error without all of its words is still an error.
    let _ = write!(text, "{message}");
    let message_len = MAX_ERROR_MESSAGE_LEN.saturating_sub(text.0.len());
    // At most 255, so neither conversion saturates.
    let error_msg_len = u16::try_from(message_len).unwrap_or(u16::MAX);
    frame.header = Header::emit(Kind::Error, u32::from(error_msg_len).saturating_add(MIN_ERROR_PAYLOAD));
    frame.fields = RawError {
        request_id: U64::new(request_id),
        status: U32::new(code.status().to_wire()),
        error_code: U32::new(code.to_wire()),
        error_msg_len: U16::new(error_msg_len),
    };
    let len = (HEADER_LEN + ERROR_FIXED_LEN).saturating_add(message_len);
    // It never is longer than `out`: that holds the longest message.
    out.get(..len).unwrap_or(out)
}

/// Takes text into what is left of a place until that is full, then drops the rest.
struct Truncating<'o>(&'o mut [u8]);

impl Write for Truncating<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = core::mem::take(&mut self.0);
        // The longest beginning that fits and ends with a character.
        let fits = (0..=room.len().min(text.len())).rev().find_map(|end| text.get(..end)).unwrap_or_default();
        let Some((place, rest)) = room.split_at_mut_checked(fits.len()) else { return Err(fmt::Error) };
        place.copy_from_slice(fits.as_bytes());
        self.0 = rest;
        if fits.len() == text.len() { Ok(()) } else { Err(fmt::Error) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Split, split};
    use crate::limits::MAX_RESPONSE_PAYLOAD;

    #[rustfmt::skip]
    static FRAME: [u8; 39] = [
        0x57, 0x45, 0x56, 0x45, 0, 1, 0, 0xFF, 0, 0, 0, 23, 0, 0, 0, 0, // header
        1, 2, 3, 4, 5, 6, 7, 8, // request_id
        0, 0, 1, 0xF4, // status
        0, 0, 0, 23, // error_code
        0, 5, // error_msg_len
        b'l', b'a', b't', b'e', b'r',
    ];
    const ID: u64 = 0x0102_0304_0506_0708;

    fn parse_bytes(bytes: &[u8]) -> Result<ErrorMessage<'_>, ErrorParseError> {
        match split(bytes, MAX_RESPONSE_PAYLOAD) {
            Ok(Split::Frame(frame, [])) => parse(&frame),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn known_bytes_are_taken_apart() {
        let message = ErrorMessage {
            request_id: ID,
            status: Status::ServerError,
            code: ErrorCode::Busy,
            message: b"later",
        };
        assert_eq!(parse_bytes(&FRAME), Ok(message));
    }

    #[test]
    fn values_are_rebuilt_to_the_same_bytes() {
        let mut out = [0xA5; MAX_ERROR_FRAME];
        assert_eq!(emit_frame(ID, ErrorCode::Busy, "later", &mut out), FRAME);
        assert!(out[FRAME.len()..].iter().all(|byte| *byte == 0xA5), "written beyond the frame");
        let mut out = [0xA5; FRAME.len()];
        let no_room = NoRoom { need: FRAME.len(), have: FRAME.len() - 1 };
        assert_eq!(emit(ID, ErrorCode::Busy, "later", &mut out[1..]), Err(no_room));
        assert_eq!(emit(ID, ErrorCode::Busy, "later", &mut out), Ok(&FRAME[..]));
    }

    #[test]
    fn a_message_is_cut_at_the_end_of_a_character() {
        for before in 0..4 {
            let mut out = [0xA5; MAX_ERROR_FRAME];
            // Characters of three bytes, moved on by some of one; the last piece would fit, but comes too late.
            let message = format_args!("{:.before$}{:宇>90}{}", "---", "", "-");
            let frame = emit_frame(0, ErrorCode::Internal, message, &mut out);
            let kept = parse_bytes(frame).unwrap().message;
            assert_eq!(kept.len(), before + (MAX_ERROR_MESSAGE_LEN - before) / 3 * 3);
            assert!(core::str::from_utf8(kept).unwrap().ends_with('宇'));
        }
    }

    #[test]
    fn a_message_whose_display_fails_is_sent_as_far_as_it_came() {
        struct Fails;

        impl fmt::Display for Fails {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("later").and(Err(fmt::Error))
            }
        }

        let mut out = [0xA5; MAX_ERROR_FRAME];
        assert_eq!(emit_frame(ID, ErrorCode::Busy, Fails, &mut out), FRAME);
    }

    #[test]
    fn every_length_before_the_end_of_the_message_is_short() {
        for payload_len in 0..23u32 {
            let mut bytes = FRAME;
            bytes[8..12].copy_from_slice(&payload_len.to_be_bytes());
            let short = ErrorParseError::Short { payload_len };
            assert_eq!(parse_bytes(&bytes[..HEADER_LEN + payload_len as usize]), Err(short));
        }
    }
}
