//! Goes through all of `spec/vectors`: each vector is fed to its receiver in pieces of several sizes,
//! and every field, error and end is compared. Prints what fails, the stack that the codec took, and
//! `N passed, N failed`.
//!
//! `build.rs` makes the table. Bytes that repeat are repeated while they are fed, so that an image
//! of 16 MiB takes no memory.

#![no_std]
#![no_main]

use core::fmt::{self, Write};

use weave_core::error::{self, ErrorCode, ErrorMessage, ErrorParseError};
use weave_core::frame::{Arrived, Deframer, Frame, FrameError, Header, Kind, Skipped, Split, split};
use weave_core::limits::{
    ERROR_FIXED_LEN, HEADER_LEN, MAGIC, MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD,
    MAX_SKIPPED_PAYLOAD, MIN_REQUEST_PAYLOAD, MIN_RESPONSE_PAYLOAD, MODEL_ID_SD35, REQUEST_FIXED_LEN,
    RESPONSE_FIXED_LEN, RESPONSE_HEAD_LEN, STATUS_OK,
};
use weave_core::request::{self, Encoder, Prompts, Request, RequestError};
use weave_core::response::{self, ResponseError, ResponseHead};
use weave_firmware::{print, print_number, stack_used};

// The table.

/// Bytes, and how often they stand there.
#[derive(Clone, Copy)]
struct Run {
    bytes: &'static [u8],
    times: u32,
}

struct Vector {
    name: &'static str,
    to_server: bool,
    bytes: &'static [Run],
    outcomes: &'static [Outcome],
    end: End,
    /// Of a response whose pixels haven't come yet.
    head: Option<Head>,
    /// Whether a sender makes the same bytes of the values.
    same_when_emitted: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    BetweenFrames,
    InsideAFrame,
    Closed,
}

enum Outcome {
    Request {
        request_id: u64,
        model_id: u32,
        width: u32,
        height: u32,
        steps: u32,
        cfg_scale_bits: u32,
        seed: u64,
        prompts: [Prompt; 3],
    },
    Answer {
        request_id: u64,
        status: u32,
        code: u32,
        name: &'static str,
        step: u8,
        field: &'static str,
    },
    Response {
        head: Head,
        pixels: Run,
        trailing: u32,
    },
    Error {
        request_id: u64,
        status: u32,
        code: u32,
        name: Option<&'static str>,
        message_len: usize,
        message: Run,
        trailing: usize,
    },
    Close {
        because: &'static str,
        field: &'static str,
    },
}

struct Prompt {
    offset: usize,
    length: usize,
    text: Run,
}

#[derive(PartialEq)]
struct Head {
    request_id: u64,
    status: u32,
    generation_time_ms: u32,
    image_width: u32,
    image_height: u32,
    channels: u32,
    image_data_len: u32,
}

static VECTORS: &[Vector] = include!(concat!(env!("OUT_DIR"), "/vectors.rs"));

impl Run {
    fn len(&self) -> usize {
        self.bytes.len() * self.times as usize
    }

    fn is(&self, mut bytes: &[u8]) -> bool {
        if bytes.len() != self.len() {
            return false;
        }
        while let Some(rest) = bytes.strip_prefix(self.bytes) {
            if rest.len() == bytes.len() {
                break;
            }
            bytes = rest;
        }
        bytes.is_empty()
    }
}

/// Where a reader is in a vector's bytes.
#[derive(Clone, Copy)]
struct Source {
    runs: &'static [Run],
    /// How often the first run has been read, and how much of it once more.
    times: u32,
    at: usize,
}

impl Source {
    fn new(runs: &'static [Run]) -> Self {
        Self { runs, times: 0, at: 0 }
    }

    /// Reads until `out` is full or the bytes end; returns how much it read.
    fn read(&mut self, out: &mut [u8]) -> usize {
        let mut out = out;
        let mut done = 0;
        while let Some((run, runs)) = self.runs.split_first() {
            if self.times == run.times {
                *self = Self::new(runs);
                continue;
            }
            if let ([byte], false) = (run.bytes, out.is_empty()) {
                let n = out.len().min((run.times - self.times) as usize);
                let Some((now, later)) = out.split_at_mut_checked(n) else { break };
                now.fill(*byte);
                done += n;
                self.times += n as u32;
                out = later;
                continue;
            }
            let Some(from) = run.bytes.get(self.at..) else { break };
            let n = from.len().min(out.len());
            let (Some(from), Some((now, later))) = (from.get(..n), out.split_at_mut_checked(n)) else {
                break;
            };
            now.copy_from_slice(from);
            done += n;
            out = later;
            self.at += n;
            if self.at == run.bytes.len() {
                self.times += 1;
                self.at = 0;
            } else {
                break;
            }
        }
        done
    }

    fn skip(&mut self, mut n: usize) {
        let mut scratch = [0; 512];
        while n > 0 {
            let step = n.min(scratch.len());
            let Some(piece) = scratch.get_mut(..step) else { return };
            let read = self.read(piece);
            if read == 0 {
                return;
            }
            n -= read;
        }
    }

    /// Whether the bytes that come next are those of `run`.
    fn continues_with(&mut self, run: &'static Run) -> bool {
        let mut expected = Self::new(core::slice::from_ref(run));
        let (mut a, mut b) = ([0; 512], [0; 512]);
        let mut left = run.len();
        while left > 0 {
            let step = left.min(a.len());
            let (Some(a), Some(b)) = (a.get_mut(..step), b.get_mut(..step)) else { return false };
            if self.read(a) != step || expected.read(b) != step || a != b {
                return false;
            }
            left -= step;
        }
        true
    }
}

// What weave-core makes of the bytes.

/// Why a vector fails.
type Verdict<T> = Result<T, &'static str>;

fn ensure(holds: bool, what: &'static str) -> Verdict<()> {
    if holds { Ok(()) } else { Err(what) }
}

/// The most stack that each function has taken, in bytes.
#[derive(Default)]
struct Stacks {
    next_frame: u32,
    split: u32,
    request_parse: u32,
    request_emit: u32,
    response_parse: u32,
    response_emit: u32,
    error_parse: u32,
    error_emit: u32,
    error_emit_formatted: u32,
}

/// Does the work and notes its stack. `None` can't happen: the work is always done.
fn measured<T>(most: &mut u32, work: impl FnOnce() -> T) -> Verdict<T> {
    let (mut work, mut result) = (Some(work), None);
    let used = stack_used(&mut || result = work.take().map(|work| work()));
    *most = (*most).max(used);
    result.ok_or("the work was not done")
}

/// A vector's outcomes, as they are met one by one.
struct Check<'s> {
    vector: &'static Vector,
    outcomes: core::slice::Iter<'static, Outcome>,
    /// Where in the stream the next frame begins.
    start: usize,
    stacks: &'s mut Stacks,
}

impl Check<'_> {
    /// Compares a frame's outcome; returns whether it ends the connection.
    fn frame(&mut self, arrived: &Arrived<'_>) -> Verdict<bool> {
        let start = self.start;
        let header = arrived.header();
        self.start += HEADER_LEN + header.payload_len() as usize;
        let outcome = self.outcomes.next().ok_or("more frames than expected")?;
        if self.vector.to_server {
            return self.server(arrived, outcome).map(|()| false);
        }
        match (header.kind(), arrived) {
            (Kind::Response, _) => self.response(arrived, start, outcome),
            (Kind::Error, Arrived::Whole(frame)) => self.error(frame, header.payload_len(), outcome),
            (Kind::Error, Arrived::Skipped(skipped)) => self.skipped_error(skipped, outcome),
            _ => closes("W1-FRM-010", "msg_type", outcome),
        }
    }

    fn server(&mut self, arrived: &Arrived<'_>, outcome: &'static Outcome) -> Verdict<()> {
        match (measured(&mut self.stacks.request_parse, || request::parse_arrived(arrived))?, arrived) {
            (Ok(request), Arrived::Whole(frame)) => self.request(frame, &request, outcome),
            (Ok(_), Arrived::Skipped(_)) => Err("a request without its prompts was accepted"),
            (Err(error), _) => {
                let (step, field, suffix) = step(error)?;
                self.answer(arrived.request_id(), error.code(), &error, step, [field, suffix], outcome)
            }
        }
    }

    fn request(&mut self, frame: &Frame<'_>, got: &Request<'_>, outcome: &'static Outcome) -> Verdict<()> {
        let Outcome::Request {
            request_id,
            model_id,
            width,
            height,
            steps,
            cfg_scale_bits,
            seed,
            prompts: [clip_l, clip_g, t5],
        } = outcome
        else {
            return Err("a request was accepted");
        };
        ensure(got.request_id == *request_id && frame.request_id() == *request_id, "request_id")?;
        ensure(*model_id == MODEL_ID_SD35, "model_id")?;
        ensure(got.params.width == *width, "width")?;
        ensure(got.params.height == *height, "height")?;
        ensure(got.params.steps == *steps, "steps")?;
        ensure(got.params.cfg_scale.to_bits() == *cfg_scale_bits, "cfg_scale")?;
        ensure(got.params.seed == *seed, "seed")?;
        // The prompts are views into the frame: where they begin is how far they are from its payload.
        let data_at = frame.payload().as_ptr().addr() + REQUEST_FIXED_LEN;
        let is = |text: &str, expected: &Prompt| {
            text.as_ptr().addr() == data_at + expected.offset
                && text.len() == expected.length
                && expected.text.is(text.as_bytes())
        };
        ensure(is(got.prompts.clip_l(), clip_l), "clip_l")?;
        ensure(is(got.prompts.clip_g(), clip_g), "clip_g")?;
        ensure(is(got.prompts.t5(), t5), "t5")?;

        let mut out = [0xA5; MAX_REQUEST_FRAME];
        let emitted = measured(&mut self.stacks.request_emit, || got.emit(&mut out))?;
        let emitted = emitted.map_err(|_| "an accepted request can't be emitted")?;
        if self.vector.same_when_emitted {
            ensure(emitted.get(HEADER_LEN..) == Some(frame.payload()), "emitted differently")?;
        }
        let Ok(Split::Frame(again, [])) = split(emitted, MAX_SKIPPED_PAYLOAD) else {
            return Err("what is emitted is no frame");
        };
        ensure(request::parse(&again) == Ok(*got), "what is emitted is another request")?;
        let texts = &got.prompts;
        ensure(
            texts.are_equal()
                == (clip_l.text.is(texts.t5().as_bytes()) && clip_l.text.is(texts.clip_g().as_bytes())),
            "are_equal",
        )?;
        let mut out = [0xA5; MAX_REQUEST_FRAME];
        let prompts = Prompts::each(texts.clip_l(), texts.clip_g(), texts.t5());
        ensure(Request { prompts, ..*got }.emit(&mut out).is_ok(), "can't be made from its values")
    }

    /// Makes the error frame that a server sends, and reads it as a client does.
    fn answer(
        &mut self,
        request_id: u64,
        code: ErrorCode,
        words: &dyn fmt::Display,
        step: u8,
        field: [&str; 2],
        outcome: &'static Outcome,
    ) -> Verdict<()> {
        let Outcome::Answer {
            request_id: expected_id,
            status,
            code: expected_code,
            name,
            step: expected_step,
            field: expected_field,
        } = outcome
        else {
            return Err("a frame was refused");
        };
        let mut out = [0xA5; MAX_ERROR_FRAME];
        measured(&mut self.stacks.error_emit, || error::emit(request_id, code, "refused", &mut out).is_ok())?;
        let sent = measured(&mut self.stacks.error_emit_formatted, || {
            error::emit(request_id, code, words, &mut out)
        })?;
        let sent = sent.map_err(|_| "the answer has no room")?;
        let Ok(Split::Frame(frame, [])) = split(sent, MAX_RESPONSE_PAYLOAD) else {
            return Err("the answer is no frame");
        };
        let got = measured(&mut self.stacks.error_parse, || error::parse(&frame))?;
        let got = got.map_err(|_| "the answer is no error")?;
        ensure(got.request_id == *expected_id, "the answer's request_id")?;
        ensure(got.status.to_wire() == *status, "the answer's status")?;
        ensure(got.code.to_wire() == *expected_code, "the answer's error_code")?;
        ensure(got.code.name() == *name, "the answer's name")?;
        ensure(step == *expected_step, "the step of the order of checks")?;
        let [prefix, suffix] = field;
        ensure(expected_field.strip_prefix(prefix) == Some(suffix), "the field that is refused")?;
        // The words survive: both sides of the wire show the same text.
        let (mut said, mut read) = (Text::new(), Text::new());
        let is_shown = write!(said, "{words}").is_ok() && write!(read, "{}", got.text()).is_ok();
        ensure(is_shown && !said.is_empty() && said.bytes() == read.bytes(), "the words of the answer")
    }

    fn response(&mut self, arrived: &Arrived<'_>, start: usize, outcome: &'static Outcome) -> Verdict<bool> {
        let header = arrived.header();
        let front = match arrived {
            Arrived::Whole(frame) => frame.payload(),
            Arrived::Skipped(skipped) => skipped.front(),
        };
        let fields = front.first_chunk::<RESPONSE_FIXED_LEN>();
        let from_head = match fields {
            Some(fields) => {
                measured(&mut self.stacks.response_parse, || ResponseHead::parse(header, fields))?
            }
            None => {
                Err(ResponseError::Short { payload_len: header.payload_len(), need: MIN_RESPONSE_PAYLOAD })
            }
        };
        let mut pixels_here = None;
        if let Arrived::Whole(frame) = arrived {
            let whole = measured(&mut self.stacks.response_parse, || response::parse(frame))?;
            ensure(
                whole.map(|whole| whole.head) == from_head.map(|(head, _)| head),
                "head and whole differ",
            )?;
            pixels_here = whole.ok().map(|whole| whole.pixels);
        }
        let (head, got_trailing) = match from_head {
            Ok(parsed) => parsed,
            Err(error) => {
                let (because, field) = match error {
                    ResponseError::Short { .. } => ("W1-RSP-006", "payload_len"),
                    ResponseError::Status(_) => ("W1-RSP-005", "status"),
                    ResponseError::Side { name, .. } => ("W1-RSP-005", name),
                    ResponseError::Channels(_) => ("W1-RSP-005", "channels"),
                    ResponseError::DataLen { .. } => ("W1-RSP-005", "image_data_len"),
                    ResponseError::NotAResponse => ("W1-FRM-010", "version"),
                    _ => return Err("a response of another kind"),
                };
                return closes(because, field, outcome);
            }
        };
        let Outcome::Response { head: expected, pixels, trailing } = outcome else {
            return Err("a response was accepted");
        };
        ensure(head_of(&head) == *expected, "a field of the response's head")?;
        ensure(got_trailing == *trailing, "trailing")?;
        ensure(pixels.len() == head.image.data_len() as usize, "image_data_len")?;
        let mut stream = Source::new(self.vector.bytes);
        stream.skip(start);
        let mut wire = [0; RESPONSE_HEAD_LEN];
        stream.read(&mut wire);
        match pixels_here {
            Some(bytes) => ensure(pixels.is(bytes), "pixels")?,
            // Too long for the buffer: the pixels are where the head says, in the stream.
            None => ensure(stream.continues_with(pixels), "pixels in the stream")?,
        }
        let emitted = measured(&mut self.stacks.response_emit, || head.emit())?;
        ensure(!self.vector.same_when_emitted || emitted == wire, "the head is emitted differently")?;
        Ok(false)
    }

    /// An error that is longer than the buffer, by what a later version appended: it is read as if it
    /// ended where it was cut.
    fn skipped_error(&mut self, skipped: &Skipped<'_>, outcome: &'static Outcome) -> Verdict<bool> {
        let header = skipped.header();
        let mut bytes = [0; HEADER_LEN + REQUEST_FIXED_LEN];
        let parts: [&[u8]; 6] = [
            &MAGIC,
            &header.version().to_be_bytes(),
            &header.kind().to_wire().to_be_bytes(),
            &MIN_REQUEST_PAYLOAD.to_be_bytes(),
            &[0; 4],
            skipped.front(),
        ];
        bytes.iter_mut().zip(parts.into_iter().flatten()).for_each(|(place, byte)| *place = *byte);
        match split(&bytes, MAX_RESPONSE_PAYLOAD) {
            Ok(Split::Frame(frame, [])) => self.error(&frame, header.payload_len(), outcome),
            _ => Err("the front of an error is no frame"),
        }
    }

    fn error(&mut self, frame: &Frame<'_>, payload_len: u32, outcome: &'static Outcome) -> Verdict<bool> {
        let got: ErrorMessage<'_> = match measured(&mut self.stacks.error_parse, || error::parse(frame))? {
            Ok(got) => got,
            Err(ErrorParseError::Short { .. }) => return closes("W1-ERR-008", "payload_len", outcome),
            Err(ErrorParseError::Status(_)) => return closes("W1-ERR-007", "status", outcome),
            Err(_) => return Err("an error of another kind"),
        };
        let Outcome::Error { request_id, status, code, name, message_len, message, trailing } = outcome
        else {
            return Err("an error was accepted");
        };
        ensure(got.request_id == *request_id, "request_id")?;
        ensure(got.status.to_wire() == *status, "status")?;
        ensure(got.code.to_wire() == *code && ErrorCode::from_wire(*code) == got.code, "error_code")?;
        let got_name = match got.code {
            ErrorCode::Unknown(_) => None,
            known => Some(known.name()),
        };
        ensure(got_name == *name, "name")?;
        ensure(got.message.len() == *message_len && message.is(got.message), "error_msg")?;
        ensure(payload_len as usize - ERROR_FIXED_LEN - got.message.len() == *trailing, "trailing")?;
        if self.vector.same_when_emitted
            && let Ok(words) = core::str::from_utf8(got.message)
        {
            let mut out = [0xA5; MAX_ERROR_FRAME];
            let sent = measured(&mut self.stacks.error_emit, || {
                error::emit(got.request_id, got.code, words, &mut out)
            })?;
            let sent = sent.map_err(|_| "the error has no room")?;
            let same = frame.payload().get(..ERROR_FIXED_LEN + got.message.len());
            ensure(sent.get(HEADER_LEN..) == same, "the error is emitted differently")?;
        }
        let mut shown = Text::new();
        // Longer texts than the buffer are cut, which is no failure of weave-core.
        let _ = write!(shown, "{}", got.text());
        let is_tame = shown.bytes().iter().all(|byte| *byte >= b' ' && *byte != 0x7F);
        ensure(is_tame, "a terminal would obey the text").map(|()| false)
    }

    /// The stream can't be followed any further.
    fn lost(&mut self, error: FrameError) -> Verdict<()> {
        let outcome = self.outcomes.next().ok_or("the stream was given up")?;
        let (step, field, because) = match error {
            FrameError::Magic(_) => (1, "magic", "W1-FRM-006"),
            FrameError::TooLarge { .. } => (2, "payload_len", "W1-FRM-007"),
            _ => return Err("given up for another reason"),
        };
        if self.vector.to_server {
            return self.answer(0, error.code(), &error, step, [field, ""], outcome);
        }
        closes(because, field, outcome).map(drop)
    }

    fn end(&mut self, end: End) -> Verdict<()> {
        ensure(self.outcomes.next().is_none(), "fewer frames than expected")?;
        ensure(end == self.vector.end, "how the stream ends")?;
        let Some(expected) = &self.vector.head else { return Ok(()) };
        let mut stream = Source::new(self.vector.bytes);
        stream.skip(self.start);
        let mut wire = [0; RESPONSE_HEAD_LEN];
        ensure(stream.read(&mut wire) == RESPONSE_HEAD_LEN, "too short for a head")?;
        let (Some((header, _)), Some(fields)) = (wire.split_first_chunk::<HEADER_LEN>(), wire.last_chunk())
        else {
            return Err("too short for a head");
        };
        let header = Header::parse(header, MAX_RESPONSE_PAYLOAD).map_err(|_| "the head's header")?;
        let (head, _) = ResponseHead::parse(header, fields).map_err(|_| "the head's fields")?;
        ensure(head_of(&head) == *expected && head.emit() == wire, "the head")
    }
}

/// The step in the order of checks, and the field in two parts.
fn step(error: RequestError) -> Verdict<(u8, &'static str, &'static str)> {
    let name = Encoder::name;
    Ok(match error {
        RequestError::Version(_) => (3, "version", ""),
        RequestError::Type(_) => (4, "msg_type", ""),
        RequestError::Short { need: 12, .. } => (5, "payload_len", ""),
        RequestError::ModelId(_) => (6, "model_id", ""),
        RequestError::Short { .. } => (7, "payload_len", ""),
        RequestError::Width(_) => (8, "width", ""),
        RequestError::Height(_) => (8, "height", ""),
        RequestError::Steps(_) => (9, "steps", ""),
        RequestError::CfgScale(_) => (10, "cfg_scale", ""),
        RequestError::PromptLength { encoder, .. } => (11, name(encoder), "_length"),
        RequestError::PromptDataLength(_) => (12, "payload_len", ""),
        RequestError::PromptRange { encoder, .. } => (13, name(encoder), "_offset"),
        RequestError::PromptUtf8 { encoder, .. } => (14, name(encoder), ""),
        RequestError::PromptNul { encoder, .. } => (15, name(encoder), ""),
        _ => return Err("refused for another reason"),
    })
}

fn closes(because: &str, field: &str, outcome: &'static Outcome) -> Verdict<bool> {
    let Outcome::Close { because: expected, field: expected_field } = outcome else {
        return Err("the client closes");
    };
    ensure(because == *expected && field == *expected_field, "why the client closes").map(|()| true)
}

fn head_of(head: &ResponseHead) -> Head {
    Head {
        request_id: head.request_id,
        status: STATUS_OK,
        generation_time_ms: head.generation_time_ms,
        image_width: head.image.width(),
        image_height: head.image.height(),
        channels: head.image.channels().count(),
        image_data_len: head.image.data_len(),
    }
}

/// Text of up to 1 KiB; the rest is refused.
struct Text {
    bytes: [u8; 1024],
    len: usize,
}

impl Text {
    fn new() -> Self {
        Self { bytes: [0; 1024], len: 0 }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let place = self.bytes.get_mut(self.len..).and_then(|spare| spare.get_mut(..text.len()));
        place.ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

// The run.

/// Feeds a vector to a stream, `cut` bytes at a time.
fn in_pieces<const N: usize>(check: &mut Check<'_>, stream: &mut Deframer<N>, cut: usize) -> Verdict<()> {
    stream.reset();
    let mut source = Source::new(check.vector.bytes);
    loop {
        loop {
            // Painting the stack for every byte would take minutes.
            let next = if cut >= 1000 {
                let most = &mut check.stacks.next_frame;
                measured(most, || stream.next_frame())?
            } else {
                stream.next_frame()
            };
            match next {
                Ok(Some(arrived)) => {
                    if check.frame(&arrived)? {
                        return check.end(End::Closed);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    check.lost(error)?;
                    ensure(stream.next_frame().is_err(), "the stream recovered")?;
                    return check.end(End::Closed);
                }
            }
        }
        let spare = stream.spare();
        let cut = cut.min(spare.len());
        let n = spare.get_mut(..cut).map_or(0, |place| source.read(place));
        stream.filled(n);
        if n == 0 {
            ensure(cut > 0, "there is no spare room")?;
            return check.end(if stream.is_between_frames() {
                End::BetweenFrames
            } else {
                End::InsideAFrame
            });
        }
    }
}

/// Reads bytes that are all there.
fn in_one_piece(check: &mut Check<'_>, bytes: &[u8]) -> Verdict<()> {
    let max_payload = if check.vector.to_server { MAX_SKIPPED_PAYLOAD } else { MAX_RESPONSE_PAYLOAD };
    let mut rest = bytes;
    loop {
        match measured(&mut check.stacks.split, || split(rest, max_payload))? {
            Ok(Split::Frame(frame, after)) => {
                if check.frame(&Arrived::Whole(frame))? {
                    return check.end(End::Closed);
                }
                rest = after;
            }
            Ok(Split::Need(need)) => {
                ensure(need > 0, "more bytes are needed, but none")?;
                return check.end(if rest.is_empty() { End::BetweenFrames } else { End::InsideAFrame });
            }
            Err(error) => {
                check.lost(error)?;
                return check.end(End::Closed);
            }
        }
    }
}

/// The longest error that a peer can send and still be read as a whole: 65,535 bytes of message.
const CLIENT_BUFFER: usize = HEADER_LEN + ERROR_FIXED_LEN + 65_535;
/// Vectors of up to so many bytes are read in one piece as well.
const ONE_PIECE: usize = 32 * 1024;

/// Returns whether all vectors pass.
#[unsafe(no_mangle)]
extern "C" fn firmware() -> bool {
    let mut server = Deframer::<MAX_REQUEST_FRAME>::new(MAX_SKIPPED_PAYLOAD);
    let mut client = Deframer::<CLIENT_BUFFER>::new(MAX_RESPONSE_PAYLOAD);
    let mut one_piece = [0; ONE_PIECE];
    let mut stacks = Stacks::default();
    let (mut passed, mut failed) = (0, 0);
    for vector in VECTORS {
        let verdict = run(vector, &mut server, &mut client, &mut one_piece, &mut stacks);
        match verdict {
            Ok(()) => passed += 1,
            Err(what) => {
                failed += 1;
                for text in ["FAILED ", vector.name, ": ", what, "\n"] {
                    print(text);
                }
            }
        }
    }
    if !print_stacks(&stacks) {
        failed += 1;
    }
    print_number(passed);
    print(" passed, ");
    print_number(failed);
    print(" failed\n");
    failed == 0 && passed > 0
}

fn run(
    vector: &'static Vector,
    server: &mut Deframer<MAX_REQUEST_FRAME>,
    client: &mut Deframer<CLIENT_BUFFER>,
    one_piece: &mut [u8; ONE_PIECE],
    stacks: &mut Stacks,
) -> Verdict<()> {
    let mut check = Check { vector, outcomes: vector.outcomes.iter(), start: 0, stacks };
    let len: usize = vector.bytes.iter().map(Run::len).sum();
    // Mebibytes one by one would take minutes and show nothing new.
    let cuts: &[usize] = if len > 1 << 17 { &[4093] } else { &[1, 7, 61, 1499, usize::MAX] };
    for cut in cuts {
        (check.outcomes, check.start) = (vector.outcomes.iter(), 0);
        if vector.to_server {
            in_pieces(&mut check, server, *cut)?;
        } else {
            in_pieces(&mut check, client, *cut)?;
        }
    }
    if let Some(bytes) = one_piece.get_mut(..len) {
        Source::new(vector.bytes).read(bytes);
        (check.outcomes, check.start) = (vector.outcomes.iter(), 0);
        in_one_piece(&mut check, bytes)?;
    }
    Ok(())
}

/// Returns whether none is larger than 1 KiB.
fn print_stacks(stacks: &Stacks) -> bool {
    let of_codec = [
        ("Deframer::next_frame", stacks.next_frame),
        ("split", stacks.split),
        ("request::parse", stacks.request_parse),
        ("Request::emit", stacks.request_emit),
        ("response::parse", stacks.response_parse),
        ("ResponseHead::emit", stacks.response_emit),
        ("error::parse", stacks.error_parse),
        ("error::emit of plain text", stacks.error_emit),
        ("error::emit of a RequestError", stacks.error_emit_formatted),
    ];
    for (name, bytes) in of_codec {
        print("stack ");
        print_number(bytes);
        for text in [" bytes: ", name, if bytes > 1024 { ": FAILED, more than 1 KiB\n" } else { "\n" }] {
            print(text);
        }
    }
    of_codec.iter().all(|(_, bytes)| *bytes <= 1024)
}
