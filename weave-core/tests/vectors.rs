//! The vectors of `spec/vectors`: each is read as its receiver would, and gives what it expects.
//!
//! What is accepted is also emitted again, to the same bytes. The exceptions are the vectors that
//! have a `sender`, which says what a sender does otherwise.

use std::collections::BTreeSet;
use std::fmt;
use std::num::ParseIntError;

use serde::Deserialize;
use weave_core::error::{self, ErrorCode, ErrorMessage, ErrorParseError};
use weave_core::frame::{Arrived, Deframer, Frame, FrameError, Header, Kind, Split, split};
use weave_core::limits::{
    HEADER_LEN, MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, MAX_SKIPPED_PAYLOAD, MODEL_ID_SD35,
    REQUEST_FIXED_LEN, RESPONSE_FIXED_LEN, RESPONSE_HEAD_LEN, STATUS_OK, VERSION,
};
use weave_core::request::{self, Prompts, Request, RequestError};
use weave_core::response::{self, ResponseError, ResponseHead};

mod common;

// What the files hold. `schema.json` says the same to other languages.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "$schema")]
    schema: String,
    protocol: String,
    version: u16,
    subject: String,
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    name: String,
    about: String,
    exercises: Vec<String>,
    receiver: Receiver,
    bytes: Vec<common::Segment>,
    expect: Expect,
    sender: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Receiver {
    Server,
    Client,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Expect {
    frames: Vec<Outcome>,
    end: End,
    head: Option<HeadFields>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum End {
    BetweenFrames,
    InsideAFrame,
    Closed,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    Request(RequestFields),
    Answer(Answer),
    Response(ResponseFields),
    Error(ErrorFields),
    Close(Close),
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct RequestFields {
    request_id: Decimal,
    model_id: u32,
    width: u32,
    height: u32,
    steps: u32,
    cfg_scale: Float,
    seed: Decimal,
    clip_l: Prompt,
    clip_g: Prompt,
    t5: Prompt,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Answer {
    request_id: Decimal,
    status: u32,
    error_code: u32,
    name: String,
    step: u8,
    field: String,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct HeadFields {
    request_id: Decimal,
    status: u32,
    generation_time_ms: u32,
    image_width: u32,
    image_height: u32,
    channels: u32,
    image_data_len: u32,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct ResponseFields {
    request_id: Decimal,
    status: u32,
    generation_time_ms: u32,
    image_width: u32,
    image_height: u32,
    channels: u32,
    image_data_len: u32,
    image_data: Blob,
    trailing: u32,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct ErrorFields {
    request_id: Decimal,
    status: u32,
    error_code: u32,
    name: Option<String>,
    error_msg_len: u16,
    error_msg: Blob,
    trailing: u32,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Close {
    because: String,
    field: String,
}

/// A u64, which JSON's numbers can't hold in every language.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(try_from = "String")]
struct Decimal(u64);

impl TryFrom<String> for Decimal {
    type Error = ParseIntError;

    fn try_from(text: String) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFloat {
    bits: String,
    value: f32,
}

/// A float, compared by its bits.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(try_from = "RawFloat")]
struct Float(u32);

impl TryFrom<RawFloat> for Float {
    type Error = String;

    fn try_from(raw: RawFloat) -> Result<Self, String> {
        let bits = u32::from_str_radix(&raw.bits, 16).map_err(|error| error.to_string())?;
        if bits == raw.value.to_bits() {
            Ok(Self(bits))
        } else {
            Err(format!("{bits:08X} is not {}", raw.value))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPrompt {
    offset: u32,
    length: u32,
    text: String,
    times: Option<usize>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(from = "RawPrompt")]
struct Prompt {
    offset: u32,
    length: u32,
    text: Blob,
}

impl From<RawPrompt> for Prompt {
    fn from(raw: RawPrompt) -> Self {
        let text = Blob(raw.text.repeat(raw.times.unwrap_or(1)).into_bytes());
        Self { offset: raw.offset, length: raw.length, text }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBlob {
    text: Option<String>,
    hex: Option<String>,
    times: Option<usize>,
}

/// Bytes of any length, shown up to a length that one can read.
#[derive(Deserialize, PartialEq)]
#[serde(try_from = "RawBlob")]
struct Blob(Vec<u8>);

impl TryFrom<RawBlob> for Blob {
    type Error = &'static str;

    fn try_from(raw: RawBlob) -> Result<Self, &'static str> {
        let once = match (raw.text, raw.hex) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(hex)) => common::unhex(&hex).ok_or("not hex")?,
            _ => return Err("either text or hex"),
        };
        Ok(Self(once.repeat(raw.times.unwrap_or(1))))
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(40)];
        write!(f, "{} bytes, \"{}\"", self.0.len(), shown.escape_ascii())
    }
}

// What weave-core makes of the bytes.

fn u32_of(len: usize) -> u32 {
    u32::try_from(len).unwrap()
}

fn server_outcome(arrived: &Arrived<'_>) -> Outcome {
    let request = match request::parse_arrived(arrived) {
        Ok(request) => request,
        Err(error) => return refusal(arrived.request_id(), error),
    };
    let Arrived::Whole(frame) = arrived else { panic!("a request without its prompts was accepted") };
    // The prompts are views into the frame: where they begin is how far they are from its payload.
    let data_at = frame.payload().as_ptr().addr() + REQUEST_FIXED_LEN;
    let prompt = |text: &str| Prompt {
        offset: u32_of(text.as_ptr().addr() - data_at),
        length: u32_of(text.len()),
        text: Blob(text.as_bytes().to_vec()),
    };
    Outcome::Request(RequestFields {
        request_id: Decimal(request.request_id),
        model_id: MODEL_ID_SD35,
        width: request.params.width,
        height: request.params.height,
        steps: request.params.steps,
        cfg_scale: Float(request.params.cfg_scale.to_bits()),
        seed: Decimal(request.params.seed),
        clip_l: prompt(request.prompts.clip_l()),
        clip_g: prompt(request.prompts.clip_g()),
        t5: prompt(request.prompts.t5()),
    })
}

fn refusal(request_id: u64, error: RequestError) -> Outcome {
    let (step, field) = match error {
        RequestError::Version(_) => (3, "version".to_owned()),
        RequestError::Type(_) => (4, "msg_type".to_owned()),
        RequestError::Short { need: 12, .. } => (5, "payload_len".to_owned()),
        RequestError::ModelId(_) => (6, "model_id".to_owned()),
        RequestError::Short { .. } => (7, "payload_len".to_owned()),
        RequestError::Width(_) => (8, "width".to_owned()),
        RequestError::Height(_) => (8, "height".to_owned()),
        RequestError::Steps(_) => (9, "steps".to_owned()),
        RequestError::CfgScale(_) => (10, "cfg_scale".to_owned()),
        RequestError::PromptLength { encoder, .. } => (11, format!("{}_length", encoder.name())),
        RequestError::PromptDataLength(_) => (12, "payload_len".to_owned()),
        RequestError::PromptRange { encoder, .. } => (13, format!("{}_offset", encoder.name())),
        RequestError::PromptUtf8 { encoder, .. } => (14, encoder.name().to_owned()),
        RequestError::PromptNul { encoder, .. } => (15, encoder.name().to_owned()),
        other => panic!("which step is {other:?}?"),
    };
    answer(request_id, error.code(), &error, step, field)
}

fn lost_stream(error: FrameError) -> Outcome {
    let (step, field) = match error {
        FrameError::Magic(_) => (1, "magic"),
        FrameError::TooLarge { .. } => (2, "payload_len"),
        other => panic!("which step is {other:?}?"),
    };
    answer(0, error.code(), &error, step, field.to_owned())
}

/// The error frame that a server sends, as a client reads it.
fn answer(id: u64, code: ErrorCode, words: &dyn fmt::Display, step: u8, field: String) -> Outcome {
    let mut out = [0xA5; MAX_ERROR_FRAME];
    let sent = error::emit(id, code, words, &mut out).unwrap();
    let Ok(Split::Frame(frame, [])) = split(sent, MAX_RESPONSE_PAYLOAD) else { panic!("no frame") };
    let received = error::parse(&frame).unwrap();
    assert_eq!(received.text().to_string(), words.to_string(), "the words did not survive");
    Outcome::Answer(Answer {
        request_id: Decimal(received.request_id),
        status: received.status.to_wire(),
        error_code: received.code.to_wire(),
        name: received.code.name().to_owned(),
        step,
        field,
    })
}

fn client_outcome(frame: &Frame<'_>) -> Outcome {
    match frame.header().kind() {
        Kind::Response => match response::parse(frame) {
            Ok(response) => response_outcome(frame, &response),
            Err(ResponseError::NotAResponse) => close("W1-FRM-010", "version"),
            Err(error) => unbelievable(error),
        },
        Kind::Error => match error::parse(frame) {
            Ok(error) => error_outcome(frame, &error),
            Err(ErrorParseError::Short { .. }) => close("W1-ERR-008", "payload_len"),
            Err(ErrorParseError::Status(_)) => close("W1-ERR-007", "status"),
            Err(other) => panic!("which requirement is {other:?}?"),
        },
        _ => close("W1-FRM-010", "msg_type"),
    }
}

fn close(because: &str, field: &str) -> Outcome {
    Outcome::Close(Close { because: because.to_owned(), field: field.to_owned() })
}

fn unbelievable(error: ResponseError) -> Outcome {
    match error {
        ResponseError::Short { .. } => close("W1-RSP-006", "payload_len"),
        ResponseError::Status(_) => close("W1-RSP-005", "status"),
        ResponseError::Side { name, .. } => close("W1-RSP-005", name),
        ResponseError::Channels(_) => close("W1-RSP-005", "channels"),
        ResponseError::DataLen { .. } => close("W1-RSP-005", "image_data_len"),
        other => panic!("which requirement is {other:?}?"),
    }
}

fn head_fields(head: &ResponseHead) -> HeadFields {
    HeadFields {
        request_id: Decimal(head.request_id),
        status: STATUS_OK,
        generation_time_ms: head.generation_time_ms,
        image_width: head.image.width(),
        image_height: head.image.height(),
        channels: head.image.channels().count(),
        image_data_len: head.image.data_len(),
    }
}

fn response_outcome(frame: &Frame<'_>, response: &response::Response<'_>) -> Outcome {
    let fields = frame.payload().first_chunk::<RESPONSE_FIXED_LEN>().unwrap();
    let (head, trailing) = ResponseHead::parse(frame.header(), fields).unwrap();
    assert_eq!(head, response.head, "head and whole are read differently");
    let HeadFields {
        request_id,
        status,
        generation_time_ms,
        image_width,
        image_height,
        channels,
        image_data_len,
    } = head_fields(&head);
    Outcome::Response(ResponseFields {
        request_id,
        status,
        generation_time_ms,
        image_width,
        image_height,
        channels,
        image_data_len,
        image_data: Blob(response.pixels.to_vec()),
        trailing,
    })
}

fn error_outcome(frame: &Frame<'_>, error: &ErrorMessage<'_>) -> Outcome {
    let shown = error.text().to_string();
    assert!(shown.chars().all(weave_core::text::is_shown), "a terminal would obey {shown:?}");
    Outcome::Error(ErrorFields {
        request_id: Decimal(error.request_id),
        status: error.status.to_wire(),
        error_code: error.code.to_wire(),
        name: match error.code {
            ErrorCode::Unknown(_) => None,
            known => Some(known.name().to_owned()),
        },
        error_msg_len: u16::try_from(error.message.len()).unwrap(),
        error_msg: Blob(error.message.to_vec()),
        trailing: u32_of(frame.payload().len() - 18 - error.message.len()),
    })
}

/// Reads bytes that are all there.
fn whole(receiver: Receiver, bytes: &[u8]) -> Expect {
    let (max_payload, outcome): (_, fn(&Frame<'_>) -> Outcome) = match receiver {
        Receiver::Server => (MAX_SKIPPED_PAYLOAD, |frame| server_outcome(&Arrived::Whole(*frame))),
        Receiver::Client => (MAX_RESPONSE_PAYLOAD, client_outcome),
    };
    let mut frames = Vec::new();
    let mut rest = bytes;
    let end = loop {
        match split(rest, max_payload) {
            Ok(Split::Frame(frame, after)) => {
                frames.push(outcome(&frame));
                rest = after;
                if let Some(Outcome::Close(_)) = frames.last() {
                    break End::Closed;
                }
            }
            Ok(Split::Need(_)) => break if rest.is_empty() { End::BetweenFrames } else { End::InsideAFrame },
            Err(error) => {
                frames.push(match (receiver, error) {
                    (Receiver::Server, error) => lost_stream(error),
                    (Receiver::Client, FrameError::Magic(_)) => close("W1-FRM-006", "magic"),
                    (Receiver::Client, _) => close("W1-FRM-007", "payload_len"),
                });
                break End::Closed;
            }
        }
    };
    let head = match (receiver, rest.first_chunk::<RESPONSE_HEAD_LEN>()) {
        (Receiver::Client, Some(head)) if rest.len() == RESPONSE_HEAD_LEN => {
            let (header, fields) = head.split_first_chunk::<HEADER_LEN>().unwrap();
            let header = Header::parse(header, MAX_RESPONSE_PAYLOAD).unwrap();
            let (head, _) = ResponseHead::parse(header, fields.try_into().unwrap()).unwrap();
            assert_eq!(head.emit(), rest, "the head is emitted differently");
            Some(head_fields(&head))
        }
        _ => None,
    };
    Expect { frames, end, head }
}

/// Reads bytes as a server does, `cut` at a time.
fn in_pieces(bytes: &[u8], cut: usize) -> Expect {
    let mut stream = Deframer::<MAX_REQUEST_FRAME>::new(MAX_SKIPPED_PAYLOAD);
    let mut frames = Vec::new();
    let mut rest = bytes;
    loop {
        loop {
            match stream.next_frame() {
                Ok(Some(arrived)) => frames.push(server_outcome(&arrived)),
                Ok(None) => break,
                Err(error) => {
                    frames.push(lost_stream(error));
                    return Expect { frames, end: End::Closed, head: None };
                }
            }
        }
        if rest.is_empty() {
            let end = if stream.is_between_frames() { End::BetweenFrames } else { End::InsideAFrame };
            return Expect { frames, end, head: None };
        }
        let spare = stream.spare();
        let n = cut.min(spare.len()).min(rest.len());
        spare[..n].copy_from_slice(&rest[..n]);
        stream.filled(n);
        rest = &rest[n..];
    }
}

/// A frame that was accepted, emitted again; `None` if it wasn't accepted.
fn emitted_again(receiver: Receiver, frame: &Frame<'_>) -> Option<Vec<u8>> {
    match (receiver, frame.header().kind()) {
        (Receiver::Server, _) => {
            let request = request::parse(frame).ok()?;
            let mut out = [0xA5; MAX_REQUEST_FRAME];
            let again = request.emit(&mut out).unwrap().to_vec();
            // And from the values alone, if its layout is the one that senders choose.
            let texts = [request.prompts.clip_l(), request.prompts.clip_g(), request.prompts.t5()];
            let apart = Request { prompts: Prompts::each(texts[0], texts[1], texts[2]), ..request };
            let mut out = [0xA5; MAX_REQUEST_FRAME];
            let made = apart.emit(&mut out).unwrap();
            let offsets_follow = texts[0].as_ptr().addr()
                == frame.payload().as_ptr().addr() + REQUEST_FIXED_LEN
                && texts.windows(2).all(|w| w[0].as_ptr().addr() + w[0].len() == w[1].as_ptr().addr());
            assert_eq!(made == again, offsets_follow && made.len() == again.len(), "made from values alone");
            Some(again)
        }
        (Receiver::Client, Kind::Response) => {
            let response = response::parse(frame).ok()?;
            Some([response.head.emit().as_slice(), response.pixels].concat())
        }
        (Receiver::Client, _) => {
            let error = error::parse(frame).ok()?;
            let mut out = [0xA5; MAX_ERROR_FRAME];
            let words = String::from_utf8_lossy(error.message);
            Some(error::emit(error.request_id, error.code, words, &mut out).unwrap().to_vec())
        }
    }
}

/// Whether every frame that is accepted is emitted to the same bytes.
fn all_emitted_the_same(receiver: Receiver, bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Ok(Split::Frame(frame, after)) = split(rest, MAX_RESPONSE_PAYLOAD) {
        let received = &rest[..rest.len() - after.len()];
        if emitted_again(receiver, &frame).is_some_and(|again| again != received) {
            return false;
        }
        rest = after;
    }
    true
}

fn problems(vector: &Vector) -> Vec<String> {
    let bytes: Vec<u8> = vector.bytes.iter().flat_map(common::Segment::bytes).collect();
    let mut problems = Vec::new();
    let mut compare = |how: &str, is: &Expect| {
        if is != &vector.expect {
            problems.push(format!("{how}:\n  expected {:?}\n  got      {is:?}", vector.expect));
        }
    };
    compare("in one piece", &whole(vector.receiver, &bytes));
    if let Receiver::Server = vector.receiver {
        // Ten mebibytes one by one would take long and show nothing new.
        let small = if bytes.len() < 1 << 17 { 1 } else { 4093 };
        for cut in [small, 17, 1500, 1 << 16, usize::MAX].into_iter().filter(|cut| *cut >= small) {
            compare(&format!("{cut} bytes at a time"), &in_pieces(&bytes, cut));
        }
    }
    match (&vector.sender, all_emitted_the_same(vector.receiver, &bytes)) {
        (None, false) => problems.push("an accepted frame is not emitted to the same bytes".to_owned()),
        (Some(_), true) => problems.push("has a `sender`, and every frame is emitted as it was".to_owned()),
        _ => {}
    }
    problems
}

/// Runs a file's vectors and says of all that fail why.
fn run(file: &str) {
    let File { schema, protocol, version, subject, vectors } = common::vector_file(file);
    assert_eq!((schema.as_str(), protocol.as_str(), version), ("schema.json", "weave", VERSION));
    assert!(!subject.is_empty() && !vectors.is_empty());
    let mut failures = String::new();
    for vector in &vectors {
        for problem in problems(vector) {
            failures += &format!("{}, {problem}\n", vector.name);
        }
    }
    assert!(failures.is_empty(), "{file}.json:\n{failures}");
}

#[test]
fn requests_served() {
    run("requests-served");
}

#[test]
fn requests_refused() {
    run("requests-refused");
}

#[test]
fn order_of_checks() {
    run("order-of-checks");
}

#[test]
fn framing() {
    run("framing");
}

#[test]
fn responses() {
    run("responses");
}

#[test]
fn errors() {
    run("errors");
}

#[test]
fn streams() {
    run("streams");
}

#[test]
fn no_file_is_left_out() {
    let run = [
        "errors",
        "framing",
        "order-of-checks",
        "requests-refused",
        "requests-served",
        "responses",
        "streams",
    ];
    assert_eq!(common::vector_files(), run);
}

#[test]
fn names_are_unique_and_descriptions_complete() {
    let mut names = BTreeSet::new();
    for file in common::vector_files() {
        let file: File = common::vector_file(&file);
        for Vector { name, about, exercises, .. } in file.vectors {
            let kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(name.chars().all(kebab) && !name.contains("--"), "{name}");
            assert!(about.ends_with('.'), "{name}: {about}");
            assert!(!exercises.is_empty() && exercises.is_sorted_by(|a, b| a < b), "{name}: {exercises:?}");
            assert!(names.insert(name.clone()), "{name} is there twice");
        }
    }
    assert!(names.len() >= 150, "{} vectors", names.len());
}

/// A label says which field the bytes are, at the place and of the size that the text gives it.
#[test]
fn labels_are_true() {
    let text = common::text();
    let [header, request, response, error] =
        ["### 3.1 ", "## 4. ", "## 5. ", "## 6. "].map(|heading| common::table(&text, heading));
    let mut failures = String::new();
    for file in common::vector_files() {
        let file: File = common::vector_file(&file);
        for vector in file.vectors {
            let mut payload = &request;
            let mut at = 0;
            let mut in_a_frame = false;
            for (i, segment) in vector.bytes.iter().enumerate() {
                let (label, bytes) = (segment.field.as_str(), segment.bytes());
                if label == "magic" || label == "junk" {
                    (at, in_a_frame) = (0, label == "magic");
                }
                let row = |fields: &[Vec<String>], from: usize| -> Option<(usize, Option<usize>)> {
                    let row = fields.iter().find(|row| row[3] == label)?;
                    Some((from + row[0].parse::<usize>().unwrap(), row[1].parse().ok()))
                };
                let is_last =
                    vector.bytes.get(i + 1).is_none_or(|next| next.field == "magic" || next.field == "junk");
                let true_label = match row(&header, 0).or_else(|| row(payload, HEADER_LEN)) {
                    Some((offset, Some(size))) => {
                        in_a_frame && at == offset && (bytes.len() == size || is_last && bytes.len() < size)
                    }
                    Some((offset, None)) => in_a_frame && at >= offset,
                    None => {
                        label == "junk" && !in_a_frame
                            || ["payload", "trailing"].contains(&label) && in_a_frame
                    }
                };
                if !true_label {
                    failures += &format!("{}: {label} at {at}, {} bytes\n", vector.name, bytes.len());
                }
                if label == "msg_type" {
                    payload = match bytes.as_slice() {
                        [0, 0x02] => &response,
                        [0, 0xFF] => &error,
                        _ => &request,
                    };
                }
                at += bytes.len();
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// Every code that a server can send has a vector, and every code that parsing gives as well.
#[test]
fn every_error_code_has_a_vector() {
    let mut received = BTreeSet::new();
    let mut answered = BTreeSet::new();
    for file in common::vector_files() {
        let file: File = common::vector_file(&file);
        for outcome in file.vectors.into_iter().flat_map(|vector| vector.expect.frames) {
            match outcome {
                Outcome::Error(error) => drop(received.insert(error.error_code)),
                Outcome::Answer(answer) => drop(answered.insert(answer.error_code)),
                _ => {}
            }
        }
    }
    for code in ErrorCode::ALL {
        assert!(*code == ErrorCode::None || received.contains(&code.to_wire()), "{code} is never received");
    }
    assert_eq!(answered, BTreeSet::from([1, 2, 3, 4, 5, 6, 7, 20, 21, 22]));
}
