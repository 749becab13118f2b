//! Reading one answer off a connection, in two steps.
//!
//! [`read_head`] says what the answer is and to which request; [`read_pixels`] reads the image, once
//! the caller has found that it fits a request of its own. Nothing is stored for an answer before
//! that, except the words of an error, which are bounded.

use weave_core::error;
use weave_core::frame::{Header, Kind, Split, split};
use weave_core::limits::{HEADER_LEN, MAX_RESPONSE_PAYLOAD, MIN_ERROR_PAYLOAD, RESPONSE_FIXED_LEN};
use weave_core::response::ResponseHead;

use crate::error::{Error, ErrorReply, Nonsense};
use crate::link::Link;

/// As much of an error's payload as its message can reach; what a later version appends is skipped.
const MAX_ERROR: u32 = MIN_ERROR_PAYLOAD + u16::MAX as u32;

/// An answer up to its pixels.
pub(crate) enum Head {
    /// An image follows, and then bytes of a later version, to be skipped.
    Image { head: ResponseHead, trailing: u32 },
    /// An error, complete.
    Error { request_id: u64, reply: ErrorReply },
}

impl Head {
    pub(crate) const fn request_id(&self) -> u64 {
        match self {
            Self::Image { head, .. } => head.request_id,
            Self::Error { request_id, .. } => *request_id,
        }
    }
}

/// Reads an answer up to its pixels.
pub(crate) fn read_head(link: &mut Link) -> Result<Head, Error> {
    link.begin_answer();
    let mut raw = [0; HEADER_LEN];
    link.fill(&mut raw)?;
    read_head_behind(link, &raw)
}

/// The same, where the header was read already.
pub(crate) fn read_head_behind(link: &mut Link, raw: &[u8; HEADER_LEN]) -> Result<Head, Error> {
    let header = Header::parse(raw, MAX_RESPONSE_PAYLOAD).map_err(Nonsense::Frame)?;
    match header.kind() {
        // An error is read whatever its version: a daemon that doesn't speak ours says so in its own.
        Kind::Response if !header.is_supported() => Err(Nonsense::Version(header.version()).into()),
        Kind::Response => read_response(link, header),
        Kind::Error => read_error(link, header, raw),
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

fn read_error(link: &mut Link, header: Header, raw: &[u8; HEADER_LEN]) -> Result<Head, Error> {
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
            let reply =
                ErrorReply { status: error.status, code: error.code, message: error.text().to_string() };
            Ok(Head::Error { request_id: error.request_id, reply })
        }
        // The frame was read to its end.
        Split::Need(_) => unreachable!("a whole frame"),
    }
}

/// Reads the pixels that follow `head`, and what trails behind them. `progress` is told how many bytes of how many
/// are there.
pub(crate) fn read_pixels(
    link: &mut Link,
    head: &ResponseHead,
    trailing: u32,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<u8>, Error> {
    let mut pixels = vec![0; head.image.data_len() as usize];
    let mut received = 0;
    while received < pixels.len() {
        received += link.receive(&mut pixels[received..])?;
        progress(received, pixels.len());
    }
    link.skip(trailing as usize)?;
    Ok(pixels)
}
