//! What the benchmarks, the instruction counts and the allocation test work on.
//!
//! All three take their messages from here, so that their figures speak of the same bytes.

use weave_core::frame::{Deframer, Frame, FrameError, Split, split};
use weave_core::limits::{
    HEADER_LEN, MAX_REQUEST_FRAME, MAX_SKIPPED_PAYLOAD, REQUEST_FIXED_LEN, RESPONSE_FIXED_LEN,
};
use weave_core::request::{Params, Prompts, Request};
use weave_core::response::{ImageSize, ResponseHead};

/// The splitter as the daemon has it.
pub type Stream = Deframer<MAX_REQUEST_FRAME>;

/// How many bytes arrive at once when a stream is split.
pub const CUTS: [usize; 4] = [1, 16, 1_500, 65_536];

/// Lengths of the streams that show whether splitting is linear.
pub const STREAM_LENS: [usize; 3] = [64 * 1024, 1024 * 1024, 4 * 1024 * 1024];

/// The request of the examples: three times "a cat in space".
#[must_use]
pub fn request<'a>() -> Request<'a> {
    with_prompts(Prompts::same("a cat in space"))
}

fn with_prompts(prompts: Prompts<'_>) -> Request<'_> {
    let params = Params { width: 512, height: 512, steps: 28, cfg_scale: 7.0, seed: 42 };
    Request { request_id: 1, params, prompts }
}

/// The frame of [`request`], 118 bytes.
#[must_use]
pub fn example() -> Vec<u8> {
    emitted(&request())
}

/// The largest legal request, 6,220 bytes, all ASCII.
#[must_use]
pub fn largest() -> Vec<u8> {
    emitted(&with_prompts(Prompts::same(&"a cat in space, ".repeat(128))))
}

/// The largest legal request, 6,220 bytes, in characters of three bytes.
#[must_use]
pub fn largest_wide() -> Vec<u8> {
    emitted(&with_prompts(Prompts::same(&["宇宙の猫".repeat(170).as_str(), "宇宙ab"].concat())))
}

/// The shortest request, 77 bytes: its three ranges are the same single byte. Parsing it takes every
/// step but the look at a prompt's bytes, which here is a look at one.
///
/// # Panics
/// If the example is no request.
#[must_use]
pub fn shortest() -> Vec<u8> {
    let mut frame = example();
    frame.truncate(HEADER_LEN + REQUEST_FIXED_LEN + 1);
    let ranges = frame.get_mut(HEADER_LEN + 36..HEADER_LEN + 60).expect("the three ranges");
    ranges.copy_from_slice(&[0u32.to_be_bytes(), 1u32.to_be_bytes()].concat().repeat(3));
    let payload_len = frame.get_mut(8..12).expect("a header");
    payload_len.copy_from_slice(&61u32.to_be_bytes());
    frame
}

/// The example with steps 0.
///
/// # Panics
/// If the example is no request.
#[must_use]
pub fn refused() -> Vec<u8> {
    let mut frame = example();
    frame.get_mut(HEADER_LEN + 20..HEADER_LEN + 24).expect("steps").fill(0);
    frame
}

/// The head of a response with a square RGB image.
///
/// # Panics
/// If v1 has no such image.
#[must_use]
pub fn response_head(side: u32) -> ResponseHead {
    let image = ImageSize::new(side, side, 3).expect("a size of v1");
    ResponseHead { request_id: 1, generation_time_ms: 1_500, image }
}

/// A whole response frame.
#[must_use]
pub fn response(side: u32) -> Vec<u8> {
    let head = response_head(side);
    let pixels = usize::try_from(head.image.data_len()).unwrap_or(usize::MAX);
    [head.emit().as_slice(), &vec![0x80; pixels]].concat()
}

/// Exactly `len` bytes of frames: the example over and over, then a frame of an unknown type that
/// fills what is left. `len` has to leave room for its header or for nothing.
///
/// # Panics
/// If it doesn't.
#[must_use]
pub fn stream(len: usize) -> Vec<u8> {
    let example = example();
    let mut bytes = example.repeat(len / example.len());
    let left = len % example.len();
    if left > 0 {
        let payload =
            u32::try_from(left).ok().and_then(|left| left.checked_sub(16)).expect("room for a header");
        bytes.extend(*b"WEVE\x00\x01\x00\x09");
        bytes.extend(payload.to_be_bytes());
        bytes.resize(len, 0);
    }
    bytes
}

/// The header and fields of a response, as [`ResponseHead::parse`] takes them.
///
/// # Panics
/// If `frame` is no response.
#[must_use]
pub fn response_parts(frame: &[u8]) -> (&[u8; HEADER_LEN], &[u8; RESPONSE_FIXED_LEN]) {
    let (header, payload) = frame.split_first_chunk().expect("a header");
    (header, payload.first_chunk().expect("the fields"))
}

/// The frame at the front of `bytes`.
///
/// # Panics
/// If there is none.
#[inline]
#[must_use]
pub fn frame(bytes: &[u8]) -> Frame<'_> {
    match split(bytes, MAX_SKIPPED_PAYLOAD) {
        Ok(Split::Frame(frame, _)) => frame,
        other => panic!("not a frame: {other:?}"),
    }
}

/// Sends `bytes` through `stream`, at most `cut` at a time, and counts the frames that come out.
///
/// # Errors
/// The stream's own.
#[inline]
pub fn split_all(stream: &mut Stream, bytes: &[u8], cut: usize) -> Result<usize, FrameError> {
    let mut frames = 0;
    for mut piece in bytes.chunks(cut) {
        while !piece.is_empty() {
            let spare = stream.spare();
            let taken = spare.len().min(piece.len());
            let (now, later) = piece.split_at(taken);
            spare[..taken].copy_from_slice(now);
            stream.filled(taken);
            piece = later;
            while let Some(frame) = stream.next_frame()? {
                std::hint::black_box(&frame);
                frames += 1;
            }
        }
    }
    Ok(frames)
}

fn emitted(request: &Request<'_>) -> Vec<u8> {
    let mut out = [0; MAX_REQUEST_FRAME];
    request.emit(&mut out).expect("a legal request").to_vec()
}
