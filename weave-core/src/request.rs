//! The generation request (msg_type 0x0001).
//!
//! | payload offset | size | field | range |
//! | --- | --- | --- | --- |
//! | 0 | 8 | request_id | chosen by the client |
//! | 8 | 4 | model_id | 0, Stable Diffusion 3.5 |
//! | 12 | … | what the model takes, [`Params`] and [`Prompts`] | |
//!
//! [`parse`] checks in the order of the protocol, and the first failure decides: version,
//! msg_type, room for the first 12 bytes, model_id, room for the parameters, width and height,
//! steps, cfg_scale, the three lengths, the size of prompt_data, the three ranges, UTF-8, NUL.

use core::fmt;

use nom::{Finish, Parser};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes::{NoRoom, Short, fixed, write_parts};
use crate::frame::{Arrived, Frame, Header, Kind, Skipped};
use crate::limits::{HEADER_LEN, MIN_PREFIX_PAYLOAD, MIN_REQUEST_PAYLOAD, MODEL_ID_SD35, REQUEST_PREFIX_LEN};

mod error;
mod sd35;

pub use error::{Encoder, RequestError};
pub use sd35::{Params, Prompts};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPrefix {
    request_id: U64,
    model_id: U32,
}

const _: () = assert!(size_of::<RawPrefix>() == REQUEST_PREFIX_LEN);

/// A generation request with every range checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request<'a> {
    /// Chosen by the client; comes back with the answer.
    pub request_id: u64,
    /// Size, steps, guidance, seed.
    pub params: Params,
    /// What to draw.
    pub prompts: Prompts<'a>,
}

/// Reads what a server's stream brought. Copies nothing.
///
/// # Errors
/// Those of [`parse`] and [`check_skipped`]. The answer to them carries [`Arrived::request_id`].
pub fn parse_arrived<'a>(arrived: &Arrived<'a>) -> Result<Request<'a>, RequestError> {
    match arrived {
        Arrived::Whole(frame) => parse(frame),
        Arrived::Skipped(skipped) => Err(check_skipped(skipped)),
    }
}

/// Reads a request frame and checks all of it. Copies nothing.
///
/// # Errors
/// The first [`RequestError`] in the protocol's order of checks. The answer to it carries
/// [`Frame::request_id`].
pub fn parse<'a>(frame: &Frame<'a>) -> Result<Request<'a>, RequestError> {
    parse_payload(frame.header(), frame.payload())
}

/// What is wrong with a request that was too long to keep: the first failure in the protocol's order
/// of checks. The answer to it carries [`Skipped::request_id`].
#[cold]
#[must_use]
pub fn check_skipped(skipped: &Skipped<'_>) -> RequestError {
    let payload_len = skipped.header().payload_len();
    let parsed = parse_payload(skipped.header(), skipped.front());
    // A prompt has a byte at least, and none was kept: there always is an error.
    parsed.err().unwrap_or(RequestError::PromptDataLength(payload_len.saturating_sub(MIN_REQUEST_PAYLOAD)))
}

fn parse_payload(header: Header, payload: &[u8]) -> Result<Request<'_>, RequestError> {
    if !header.is_supported() {
        return Err(RequestError::Version(header.version()));
    }
    if header.kind() != Kind::Request {
        return Err(RequestError::Type(header.kind().to_wire()));
    }
    let payload_len = header.payload_len();
    let short = |Short| RequestError::Short { payload_len, need: MIN_PREFIX_PAYLOAD };
    let (after, prefix) = fixed::<RawPrefix>.parse_complete(payload).finish().map_err(short)?;
    match prefix.model_id.get() {
        MODEL_ID_SD35 => {
            let (params, prompts) = sd35::parse(payload_len, after)?;
            Ok(Request { request_id: prefix.request_id.get(), params, prompts })
        }
        other => Err(RequestError::ModelId(other)),
    }
}

impl Request<'_> {
    /// Writes the request frame into `out` and returns it. A request that was parsed becomes the
    /// same frame again (a reserved field that was not 0, and a cfg_scale of -0.0, become 0).
    ///
    /// # Errors
    /// [`EmitError::Invalid`]: a field is out of its range. [`EmitError::NoRoom`]: `out` is too
    /// small; [`MAX_REQUEST_FRAME`](crate::limits::MAX_REQUEST_FRAME) bytes always do.
    pub fn emit<'o>(&self, out: &'o mut [u8]) -> Result<&'o [u8], EmitError> {
        self.params.check().map_err(EmitError::Invalid)?;
        self.prompts.check().map_err(EmitError::Invalid)?;
        let mut table = None;
        let prompts = self.prompts.emit(&mut table);
        const BEFORE_TABLE: usize = size_of::<RawPrefix>() + size_of::<sd35::RawParams>();
        let payload_len = prompts.iter().fold(BEFORE_TABLE, |sum, part| sum.saturating_add(part.len()));
        let header = Header::emit(Kind::Request, u32::try_from(payload_len).unwrap_or(u32::MAX));
        let prefix = RawPrefix { request_id: U64::new(self.request_id), model_id: U32::new(MODEL_ID_SD35) };
        let params = self.params.emit();
        let [a, b, c, d] = prompts;
        write_parts(out, [&header, prefix.as_bytes(), params.as_bytes(), a, b, c, d])
            .map_err(EmitError::NoRoom)
    }
}

/// A request for a model that no server has: whoever answers it with INVALID_MODEL_ID and the same
/// id speaks Weave, and no engine was troubled. v1 has no message of its own for that question.
#[must_use]
pub fn probe(request_id: u64) -> [u8; HEADER_LEN + REQUEST_PREFIX_LEN] {
    #[derive(IntoBytes, Immutable, Unaligned)]
    #[repr(C)]
    struct Probe {
        header: [u8; HEADER_LEN],
        prefix: RawPrefix,
    }
    zerocopy::transmute!(Probe {
        header: Header::emit(Kind::Request, MIN_PREFIX_PAYLOAD),
        prefix: RawPrefix { request_id: U64::new(request_id), model_id: U32::new(u32::MAX) },
    })
}

/// Why a request can't be emitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EmitError {
    /// A field is out of its range.
    Invalid(RequestError),
    /// The output slice is too small.
    NoRoom(NoRoom),
}

impl fmt::Display for EmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(error) => error.fmt(f),
            Self::NoRoom(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for EmitError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Deframer, Split, split};
    use crate::limits::{MAX_REQUEST_FRAME, MAX_SKIPPED_PAYLOAD};

    #[rustfmt::skip]
    static FRAME: [u8; 80] = [
        0x57, 0x45, 0x56, 0x45, 0, 1, 0, 1, 0, 0, 0, 64, 0, 0, 0, 0, // header
        1, 2, 3, 4, 5, 6, 7, 8, // request_id
        0, 0, 0, 0, // model_id
        0, 0, 2, 0, 0, 0, 1, 0, // width, height
        0, 0, 0, 28, 0x40, 0xE0, 0, 0, // steps, cfg_scale
        0, 0, 0, 0, 0, 0, 0, 42, // seed
        0, 0, 0, 0, 0, 0, 0, 2, // CLIP-L
        0, 0, 0, 2, 0, 0, 0, 1, // CLIP-G
        0, 0, 0, 3, 0, 0, 0, 1, // T5
        b'a', b'b', b'c', b'd',
    ];

    fn values() -> Request<'static> {
        Request {
            request_id: 0x0102_0304_0506_0708,
            params: Params { width: 512, height: 256, steps: 28, cfg_scale: 7.0, seed: 42 },
            prompts: Prompts::each("ab", "c", "d"),
        }
    }

    /// The frame with a payload of `len` bytes of the known one.
    fn cut_to(len: u32, bytes: &mut [u8; FRAME.len()]) -> Frame<'_> {
        *bytes = FRAME;
        bytes[8..12].copy_from_slice(&len.to_be_bytes());
        match split(&bytes[..HEADER_LEN + len as usize], MAX_SKIPPED_PAYLOAD) {
            Ok(Split::Frame(frame, [])) => frame,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn known_bytes_are_taken_apart() {
        let mut bytes = FRAME;
        let parsed = parse(&cut_to(64, &mut bytes)).unwrap();
        assert_eq!(parsed, values());
        assert_eq!((parsed.prompts.clip_l(), parsed.prompts.clip_g(), parsed.prompts.t5()), ("ab", "c", "d"));
    }

    #[test]
    fn values_are_rebuilt_to_the_same_bytes() {
        let mut out = [0xA5; MAX_REQUEST_FRAME];
        assert_eq!(values().emit(&mut out).unwrap(), FRAME);
        assert!(out[FRAME.len()..].iter().all(|byte| *byte == 0xA5), "written beyond the frame");
        let mut bytes = FRAME;
        let received = parse(&cut_to(64, &mut bytes)).unwrap();
        let mut out = [0xA5; FRAME.len()];
        assert_eq!(received.emit(&mut out).unwrap(), FRAME);
        let no_room = NoRoom { need: FRAME.len(), have: FRAME.len() - 1 };
        assert_eq!(received.emit(&mut out[1..]), Err(EmitError::NoRoom(no_room)));
    }

    #[test]
    fn a_probe_is_a_prefix_for_no_model() {
        let mut expected = [0; HEADER_LEN + REQUEST_PREFIX_LEN];
        expected[..HEADER_LEN].copy_from_slice(&FRAME[..HEADER_LEN]);
        expected[11] = 12;
        expected[23..].copy_from_slice(&[9, 0xFF, 0xFF, 0xFF, 0xFF]);
        assert_eq!(probe(9), expected);
    }

    #[test]
    fn a_payload_without_room_for_the_prefix_is_short() {
        for len in 0..MIN_PREFIX_PAYLOAD {
            let short = RequestError::Short { payload_len: len, need: 12 };
            assert_eq!(parse(&cut_to(len, &mut FRAME.clone())), Err(short));
        }
    }

    #[test]
    fn a_payload_without_room_for_the_parameters_is_short() {
        for len in MIN_PREFIX_PAYLOAD..MIN_REQUEST_PAYLOAD {
            let short = RequestError::Short { payload_len: len, need: 60 };
            assert_eq!(parse(&cut_to(len, &mut FRAME.clone())), Err(short));
        }
    }

    #[test]
    fn a_payload_without_room_for_a_prompt_does_not_hold_its_range() {
        for (len, encoder, offset, length) in [
            (60, Encoder::ClipL, 0, 2),
            (61, Encoder::ClipL, 0, 2),
            (62, Encoder::ClipG, 2, 1),
            (63, Encoder::T5, 3, 1),
        ] {
            let range = RequestError::PromptRange { encoder, offset, length, available: len - 60 };
            assert_eq!(parse(&cut_to(len, &mut FRAME.clone())), Err(range));
        }
    }

    /// What a stream with room for payloads of 61 bytes makes of the known frame with another
    /// payload_len, and with one byte changed.
    fn skipped(payload_len: u32, (at, value): (usize, u8)) -> (u64, RequestError) {
        let mut stream = Deframer::<{ HEADER_LEN + 61 }>::new(MAX_SKIPPED_PAYLOAD);
        let mut bytes = FRAME;
        bytes[8..12].copy_from_slice(&payload_len.to_be_bytes());
        bytes[at] = value;
        let mut rest =
            (0..HEADER_LEN + payload_len as usize).map(|at| bytes.get(at).copied().unwrap_or(b'x'));
        loop {
            match stream.next_frame().unwrap() {
                Some(arrived @ Arrived::Skipped(_)) => {
                    return (arrived.request_id(), parse_arrived(&arrived).unwrap_err());
                }
                Some(Arrived::Whole(frame)) => panic!("kept: {frame:?}"),
                None => {}
            }
            let spare = stream.spare();
            let n = spare.iter_mut().zip(&mut rest).map(|(place, byte)| *place = byte).count();
            stream.filled(n);
        }
    }

    #[test]
    fn a_request_that_was_skipped_is_refused_for_the_first_failure() {
        let same = (0, FRAME[0]);
        let id = values().request_id;
        assert_eq!(skipped(60 + 6145, same), (id, RequestError::PromptDataLength(6145)));
        let range = RequestError::PromptRange { encoder: Encoder::ClipL, offset: 0, length: 2, available: 0 };
        assert_eq!(skipped(60 + 6144, same), (id, range), "short enough, but not kept");
        assert_eq!(skipped(64, same), (id, range));
        for (change, error) in [
            ((5, 2), RequestError::Version(2)),
            ((7, 9), RequestError::Type(9)),
            ((27, 1), RequestError::ModelId(1)),
            ((39, 0), RequestError::Steps(0)),
            ((75, 0), RequestError::PromptLength { encoder: Encoder::T5, length: 0 }),
        ] {
            assert_eq!(skipped(60 + 6145, change), (id, error));
        }
    }
}
