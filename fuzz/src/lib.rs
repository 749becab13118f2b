//! What the fuzz targets do, as functions that any toolchain can call: each takes bytes and panics when something does
//! not hold. The programs in `fuzz_targets` hand them what libFuzzer makes up, `tests/replay.rs` what it has found.

mod config;
mod model;
#[cfg(feature = "engine")]
mod prompt;
mod router;

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use arbitrary::{Arbitrary, Unstructured};
use weave_conformance::spec::REQUIREMENTS;
use weave_conformance::wire;
use weave_core::error::{self, ErrorCode};
use weave_core::frame::{Arrived, Deframer, Frame, FrameError, Header, Kind, Split};
use weave_core::limits::{
    HEADER_LEN, MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, MAX_SKIPPED_PAYLOAD,
    REQUEST_FIXED_LEN, RESPONSE_FIXED_LEN, SIDE_STEP,
};
use weave_core::request::{self, Params, Prompts, Request};
use weave_core::response::{self, ImageSize, ResponseHead};
use weave_core::text::is_shown;

pub use config::config;
pub use model::model;
#[cfg(feature = "engine")]
pub use prompt::prompt;
pub use router::{router, worker_link};

/// The specification has a requirement of this id.
fn assert_is_required(id: &str) {
    static IDS: LazyLock<HashSet<&str>> =
        LazyLock::new(|| REQUIREMENTS.iter().map(|known| known.id.as_str()).collect());
    assert!(IDS.contains(id), "no requirement {id}");
}

/// The first frame of some bytes: theirs, if they begin as one, or else one of this type that carries them.
fn with_frame(data: &[u8], msg_type: u8, max_payload: u32, look: impl FnOnce(&Frame<'_>)) {
    let made;
    let bytes = if data.starts_with(b"WEVE") {
        data
    } else {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes();
        made = [b"WEVE\0\x01\0", &[msg_type][..], &len, &[0; 4], data].concat();
        &made
    };
    if let Ok(Split::Frame(frame, _)) = weave_core::frame::split(bytes, max_payload) {
        look(&frame);
    }
}

// Framing ---------------------------------------------------------------------------------------------------------

type Frames = (Vec<(u16, u32, Vec<u8>)>, Option<FrameError>, bool);

/// The frames of a stream that comes in pieces of these sizes, taken in turn.
fn deframe(stream: &[u8], sizes: &[usize]) -> Frames {
    let mut deframer = Deframer::<MAX_REQUEST_FRAME>::new(MAX_SKIPPED_PAYLOAD);
    let (mut frames, mut rest, mut sizes) = (Vec::new(), stream, sizes.iter().cycle());
    loop {
        match deframer.next_frame() {
            Ok(Some(arrived)) => {
                let header = arrived.header();
                let kept = match arrived {
                    Arrived::Whole(frame) => frame.payload(),
                    Arrived::Skipped(skipped) => skipped.front(),
                };
                frames.push((header.kind().to_wire(), header.payload_len(), kept.to_vec()));
            }
            Err(error) => {
                assert_is_required(error.requirement());
                assert!(!error.to_string().is_empty());
                assert_eq!(deframer.next_frame().unwrap_err(), error, "an error does not stay");
                return (frames, Some(error), false);
            }
            Ok(None) if rest.is_empty() => return (frames, None, deframer.is_between_frames()),
            Ok(None) => {
                let spare = deframer.spare();
                assert!(!spare.is_empty(), "no room and no frame");
                let n = sizes.next().copied().unwrap_or(1).clamp(1, spare.len()).min(rest.len());
                spare[..n].copy_from_slice(&rest[..n]);
                deframer.filled(n);
                rest = &rest[n..];
            }
        }
    }
}

/// Any bytes, any cuts: the same frames as in one piece, and as [`weave_core::frame::split`] gives them.
pub fn split(data: &[u8]) {
    let Some((cuts, stream)) = data.split_first_chunk::<4>() else { return };
    let sizes = cuts.map(|cut| 1 + usize::from(cut) * usize::from(cut) / 8);
    let whole = deframe(stream, &[usize::MAX]);
    assert_eq!(deframe(stream, &sizes), whole, "cut into {sizes:?}");
    let mut rest = stream;
    for (kind, payload_len, payload) in &whole.0 {
        match weave_core::frame::split(rest, MAX_SKIPPED_PAYLOAD) {
            Ok(Split::Frame(frame, after)) => {
                assert_eq!(
                    (frame.header().kind().to_wire(), frame.header().payload_len()),
                    (*kind, *payload_len)
                );
                let kept = if frame.payload().len() + HEADER_LEN > MAX_REQUEST_FRAME {
                    REQUEST_FIXED_LEN
                } else {
                    payload.len()
                };
                assert_eq!(payload, &frame.payload()[..kept]);
                rest = after;
            }
            other => panic!("{other:?} instead of a frame"),
        }
    }
    let end = weave_core::frame::split(rest, MAX_SKIPPED_PAYLOAD);
    assert_eq!(end.err(), whole.1);
}

// Messages --------------------------------------------------------------------------------------------------------

/// A request is refused for a requirement of the text, or its values are in range and make the same bytes again.
pub fn request(data: &[u8]) {
    with_frame(data, 1, MAX_SKIPPED_PAYLOAD, |frame| match request::parse(frame) {
        Ok(parsed) => {
            parsed.params.check().expect("values in their ranges");
            parsed.prompts.check().expect("prompts that can be sent");
            let texts = [parsed.prompts.clip_l(), parsed.prompts.clip_g(), parsed.prompts.t5()];
            assert_eq!(parsed.prompts.are_equal(), texts == [texts[0]; 3]);
            let [clip_l, clip_g, t5] = texts.map(str::len);
            assert_eq!(
                format!("{:?}", parsed.prompts),
                format!("Prompts({clip_l}, {clip_g} and {t5} bytes)")
            );
            let mut out = [0xA5; MAX_REQUEST_FRAME];
            let emitted = parsed.emit(&mut out).expect("what was accepted can be sent");
            let mut sent = frame.payload().to_vec();
            // The only values that a sender writes otherwise.
            if sent[24..28] == [0x80, 0, 0, 0] {
                sent[24] = 0;
            }
            assert_eq!(&emitted[HEADER_LEN..], sent);
        }
        Err(wrong) => {
            assert_is_required(wrong.requirement());
            let mut out = [0; MAX_ERROR_FRAME];
            let answer =
                error::emit(frame.request_id(), wrong.code(), wrong, &mut out).expect("room for any error");
            let Ok(Split::Frame(answer, [])) = weave_core::frame::split(answer, MAX_RESPONSE_PAYLOAD) else {
                panic!("the answer is no frame")
            };
            assert_eq!(error::parse(&answer).expect("an error").code, wrong.code());
        }
    });
}

/// The pixels of the smallest image, which no fuzzer has to make up: as they may follow an input.
const PIXELS: [u8; 64 * 64 * 4] = [0; 64 * 64 * 4];

/// A response is not believed for a requirement of the text, or its head makes the same bytes again. It is tried as it
/// is and with pixels after it.
pub fn response(data: &[u8]) {
    for pixels in [0, 64 * 64 * 3, 64 * 64 * 4] {
        with_frame(&[data, &PIXELS[..pixels]].concat(), 2, MAX_RESPONSE_PAYLOAD, response_frame);
    }
    // A client that streams the pixels has no frame: it reads header and fields, whatever the length that the header says.
    if let Some((header, after)) = data.split_first_chunk::<HEADER_LEN>()
        && let Ok(header) = Header::parse(header, MAX_RESPONSE_PAYLOAD)
        && let Some(fields) = after.first_chunk::<RESPONSE_FIXED_LEN>()
    {
        match ResponseHead::parse(header, fields) {
            Ok((head, after)) => {
                let told = u64::from(header.payload_len());
                assert_eq!(
                    told,
                    RESPONSE_FIXED_LEN as u64 + u64::from(head.image.data_len()) + u64::from(after)
                );
            }
            Err(wrong) => assert_is_required(wrong.requirement()),
        }
    }
}

fn response_frame(frame: &Frame<'_>) {
    let fields = frame.payload().first_chunk::<RESPONSE_FIXED_LEN>();
    let head = fields.map(|fields| ResponseHead::parse(frame.header(), fields));
    match response::parse(frame) {
        Ok(parsed) => {
            assert_eq!(parsed.pixels.len(), parsed.head.image.data_len() as usize);
            assert_eq!(parsed.head.emit()[HEADER_LEN..], frame.payload()[..RESPONSE_FIXED_LEN]);
            let after = frame.payload().len() - RESPONSE_FIXED_LEN - parsed.pixels.len();
            assert_eq!(head, Some(Ok((parsed.head, u32::try_from(after).unwrap()))));
        }
        Err(wrong) => {
            assert_is_required(wrong.requirement());
            assert!(!wrong.to_string().is_empty());
            assert!(head.is_none_or(|head| head == Err(wrong)), "head and whole are judged differently");
        }
    }
}

/// An error is not believed for a requirement of the text, or makes the same bytes again where a sender would make them.
pub fn error(data: &[u8]) {
    with_frame(data, 0xFF, MAX_RESPONSE_PAYLOAD, |frame| match error::parse(frame) {
        Ok(parsed) => {
            let shown = parsed.text().to_string();
            assert!(shown.chars().all(is_shown), "a terminal would obey {shown:?}");
            assert_eq!(ErrorCode::from_wire(parsed.code.to_wire()), parsed.code);
            assert!(!parsed.code.to_string().is_empty() && !parsed.code.name().is_empty());
            let (Ok(text), true) =
                (std::str::from_utf8(parsed.message), parsed.status == parsed.code.status())
            else {
                return;
            };
            let mut out = [0; MAX_ERROR_FRAME];
            let emitted =
                error::emit(parsed.request_id, parsed.code, text, &mut out).expect("room for any error");
            if text.len() <= 255 {
                assert_eq!(emitted[HEADER_LEN..], frame.payload()[..18 + text.len()]);
            } else {
                assert!(
                    emitted.len() <= MAX_ERROR_FRAME
                        && text.as_bytes().starts_with(&emitted[HEADER_LEN + 18..])
                );
            }
        }
        Err(wrong) => {
            assert_is_required(wrong.requirement());
            assert!(!wrong.to_string().is_empty());
        }
    });
}

/// Values that can be sent, and bytes to change in what is sent.
#[derive(Arbitrary, Debug)]
struct Message<'a> {
    request_id: u64,
    width: u8,
    height: u8,
    steps: u8,
    cfg_scale: u16,
    seed: u64,
    texts: [&'a str; 3],
    flips: [(u16, u8); 4],
    count: u8,
}

/// `text` without NUL, as long as a prompt may be, and not empty.
fn sendable(text: &str) -> String {
    let mut prompt = text.replace('\0', "0");
    while prompt.len() > 2048 {
        prompt.pop();
    }
    if prompt.is_empty() { "x".to_owned() } else { prompt }
}

/// What is sent is read to the same values; with one to four bytes changed it is refused, or its values are in range.
pub fn structured(data: &[u8]) {
    let Ok(message) = Message::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let side = |side: u8| (u32::from(side) % 32 + 1) * SIDE_STEP;
    let params = Params {
        width: side(message.width),
        height: side(message.height),
        steps: u32::from(message.steps) % 100 + 1,
        cfg_scale: f32::from(message.cfg_scale) * (20.0 / 65_535.0),
        seed: message.seed,
    };
    let texts = message.texts.map(sendable);
    let [clip_l, clip_g, t5] = &texts;
    let sent = Request { request_id: message.request_id, params, prompts: Prompts::each(clip_l, clip_g, t5) };
    let mut out = [0xA5; MAX_REQUEST_FRAME];
    let bytes = sent.emit(&mut out).expect("values in their ranges").to_vec();
    with_frame(&bytes, 1, MAX_SKIPPED_PAYLOAD, |frame| assert_eq!(request::parse(frame), Ok(sent)));

    let image = ImageSize::new(params.width, params.height, 3 + params.steps % 2).expect("a size");
    let head = ResponseHead { request_id: message.request_id, generation_time_ms: params.steps, image };
    let wire = head.emit();
    let (header, fields) = wire.split_first_chunk().expect("a header");
    let header = Header::parse(header, MAX_RESPONSE_PAYLOAD).expect("a header");
    assert_eq!(ResponseHead::parse(header, fields.first_chunk().expect("the fields")), Ok((head, 0)));

    let mut flipped = bytes;
    for (at, value) in &message.flips[..usize::from(message.count % 4) + 1] {
        let at = usize::from(*at) % flipped.len();
        flipped[at] ^= (*value).max(1);
    }
    request(&flipped);
    differential(&[&[0, 0], flipped.as_slice()].concat());
}

// Three implementations -------------------------------------------------------------------------------------------

unsafe extern "C" {
    fn weave_c_server(data: *const u8, len: usize, cut: usize, out: *mut u64, room: usize) -> usize;
    fn weave_c_client(data: *const u8, len: usize, cut: usize, out: *mut u64, room: usize) -> usize;
}

/// FNV-1a.
fn hashed(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

/// What the C implementation makes of a stream.
fn by_c(is_server: bool, stream: &[u8], cut: usize) -> Vec<u64> {
    let read = if is_server { weave_c_server } else { weave_c_client };
    /// Kept from one call to the next; and the C code has static buffers of its own, for which this is the lock.
    static NUMBERS: Mutex<Vec<u64>> = Mutex::new(Vec::new());
    let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    // A frame makes no more than sixteen numbers, and takes at least sixteen bytes.
    let most = stream.len() + 32;
    if numbers.len() < most {
        numbers.resize(most, 0);
    }
    // SAFETY: `stream` and `numbers` live through the call, and are as long as is said. The function keeps neither, and
    // whoever calls it has the lock.
    let len = unsafe { read(stream.as_ptr(), stream.len(), cut, numbers.as_mut_ptr(), numbers.len()) };
    numbers.get(..len).expect("no more numbers than there may be").to_vec()
}

/// What the conformance suite's reader makes of it.
fn by_suite(is_server: bool, stream: &[u8]) -> Vec<u64> {
    let receiver = if is_server { wire::Receiver::Server } else { wire::Receiver::Client };
    let (expectations, end) = wire::read(receiver, stream);
    let mut numbers = Vec::new();
    for expectation in expectations {
        match expectation {
            wire::Expectation::Request { fields, prompts } => {
                let get = |name: &str| fields.get(name);
                numbers.extend([1, get("request_id"), get("width"), get("height"), get("steps")]);
                numbers.extend([get("cfg_scale"), get("seed")]);
                for (encoder, prompt) in ["clip_l", "clip_g", "t5"].into_iter().zip(prompts) {
                    let place = ["offset", "length"].map(|part| get(&format!("{encoder}_{part}")));
                    numbers.extend([place[0], place[1], hashed(&prompt)]);
                }
            }
            wire::Expectation::Answer { request_id, code, .. } => numbers.extend([2, request_id, code]),
            wire::Expectation::Response { fields, image_data, trailing } => {
                let get = |name: &str| fields.get(name);
                numbers.extend([3, get("request_id"), get("generation_time_ms"), get("image_width")]);
                numbers.extend([get("image_height"), get("channels"), hashed(&image_data), trailing as u64]);
            }
            wire::Expectation::Error { fields, message, trailing } => {
                let get = |name: &str| fields.get(name);
                numbers.extend([4, get("request_id"), get("status"), get("error_code"), hashed(&message)]);
                numbers.push(trailing as u64);
            }
            wire::Expectation::Close { because, .. } => {
                assert_is_required(because);
                numbers.push(5);
            }
        }
    }
    numbers.push(match end {
        wire::End::BetweenFrames => 100,
        wire::End::InsideAFrame => 101,
        wire::End::Closed => 102,
    });
    numbers
}

/// What `weave-core` makes of it, fed as its users feed it: a server by [`Deframer`], a client by whole frames.
fn by_core(is_server: bool, stream: &[u8], cut: usize) -> Vec<u64> {
    let mut numbers = Vec::new();
    if is_server {
        let mut deframer = Deframer::<MAX_REQUEST_FRAME>::new(MAX_SKIPPED_PAYLOAD);
        let mut rest = stream;
        loop {
            match deframer.next_frame() {
                Ok(Some(arrived)) => core_request(&arrived, &mut numbers),
                Ok(None) if rest.is_empty() => {
                    numbers.push(if deframer.is_between_frames() { 100 } else { 101 });
                    return numbers;
                }
                Ok(None) => {
                    let spare = deframer.spare();
                    let n = cut.min(spare.len()).min(rest.len());
                    spare[..n].copy_from_slice(&rest[..n]);
                    deframer.filled(n);
                    rest = &rest[n..];
                }
                Err(lost) => {
                    numbers.extend([2, 0, lost.code().to_wire().into(), 102]);
                    return numbers;
                }
            }
        }
    }
    let mut rest = stream;
    loop {
        match weave_core::frame::split(rest, MAX_RESPONSE_PAYLOAD) {
            Ok(Split::Need(_)) => {
                numbers.push(if rest.is_empty() { 100 } else { 101 });
                return numbers;
            }
            Ok(Split::Frame(frame, after)) => {
                if !core_answer(&frame, &mut numbers) {
                    numbers.extend([5, 102]);
                    return numbers;
                }
                rest = after;
            }
            Err(_) => {
                numbers.extend([5, 102]);
                return numbers;
            }
        }
    }
}

fn core_request(arrived: &Arrived<'_>, numbers: &mut Vec<u64>) {
    match request::parse_arrived(arrived) {
        Ok(request) => {
            let Arrived::Whole(frame) = arrived else { panic!("a request without its prompts was accepted") };
            let params = request.params;
            numbers.extend([
                1,
                request.request_id,
                params.width.into(),
                params.height.into(),
                params.steps.into(),
            ]);
            numbers.extend([params.cfg_scale.to_bits().into(), params.seed]);
            let data_at = frame.payload().as_ptr().addr() + REQUEST_FIXED_LEN;
            for text in [request.prompts.clip_l(), request.prompts.clip_g(), request.prompts.t5()] {
                let offset = text.as_ptr().addr() - data_at;
                numbers.extend([offset as u64, text.len() as u64, hashed(text.as_bytes())]);
            }
        }
        Err(wrong) => numbers.extend([2, arrived.request_id(), wrong.code().to_wire().into()]),
    }
}

/// Whether the connection lives on.
fn core_answer(frame: &Frame<'_>, numbers: &mut Vec<u64>) -> bool {
    match frame.header().kind() {
        Kind::Response => {
            let Ok(parsed) = response::parse(frame) else { return false };
            let image = parsed.head.image;
            let trailing = frame.payload().len() - RESPONSE_FIXED_LEN - parsed.pixels.len();
            numbers.extend([
                3,
                parsed.head.request_id,
                parsed.head.generation_time_ms.into(),
                image.width().into(),
            ]);
            numbers.extend([image.height().into(), image.channels().count().into(), hashed(parsed.pixels)]);
            numbers.push(trailing as u64);
            true
        }
        Kind::Error => {
            let Ok(parsed) = error::parse(frame) else { return false };
            let trailing = frame.payload().len() - 18 - parsed.message.len();
            numbers.extend([
                4,
                parsed.request_id,
                parsed.status.to_wire().into(),
                parsed.code.to_wire().into(),
            ]);
            numbers.extend([hashed(parsed.message), trailing as u64]);
            true
        }
        _ => false,
    }
}

/// Whether a stream ends before its reader has to say whether it can be trusted: within the 16 bytes of a header, or, for
/// a client, within a frame. There an implementation may give up early: a wrong magic or a wrong field is wrong already.
fn is_undecided(numbers: &[u64]) -> bool {
    numbers.last() == Some(&101)
}

/// The same verdict, error code and fields from `weave-core`, the C implementation and the suite's own reader. The first
/// byte says who reads, and how many pixels follow the input; the second how it is cut.
pub fn differential(data: &[u8]) {
    let Some(([who, cut], stream)) = data.split_first_chunk::<2>().map(|(first, rest)| (*first, rest)) else {
        return;
    };
    let (is_server, cut) = (who % 2 == 0, 1 + usize::from(cut) * usize::from(cut));
    let with_pixels;
    let stream = match who / 2 % 4 {
        // An even chance for a response to be whole, where there can be one.
        some @ 2.. if !is_server => {
            with_pixels = [stream, &PIXELS[..64 * 64 * usize::from(some + 1)]].concat();
            &with_pixels
        }
        _ => stream,
    };
    let core = by_core(is_server, stream, cut);
    let suite = by_suite(is_server, stream);
    assert_eq!(core, suite, "weave-core and the suite's reader");
    let c = by_c(is_server, stream, cut);
    if is_undecided(&core) {
        // It may have told earlier what it will have to tell.
        let known = core.len() - 1;
        assert_eq!(c.get(..known), core.get(..known), "weave-core and C");
    } else {
        assert_eq!(c, core, "C and weave-core");
    }
}
