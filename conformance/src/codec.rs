//! Tests of a library, behind an adapter on standard input and output. `ADAPTER.md` is the protocol.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc::{Receiver as Lines, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::case::{Case, Failure, Level, MAX_FAILURES, Remark, Run, Told, Verdict, vectors};
use crate::spec::Vector;
use crate::testee::{Process, how_it_ended};
use crate::wire::{self, Draft, End, Fields, Outcome, Receiver, read};

/// How a codec case is run.
pub type CodecCase = fn(&mut Adapter) -> Told;

const fn case(id: &'static str, level: Level, title: &'static str, run: CodecCase) -> Case {
    Case { id, level, title, run: Run::Codec(run) }
}

use Level::{Recommended, Required};

/// What a library is asked besides the vectors.
#[rustfmt::skip] // a table
pub const CASES: &[Case] = &[
    case("W1-TRN-005d", Required, "a request is written as the example of the text", write_example),
    case("W1-HDR-001c", Required, "what is written begins with the magic", |adapter| written(adapter, "magic")),
    case("W1-HDR-002c", Required, "what is written has version 1", |adapter| written(adapter, "version")),
    case("W1-HDR-003d", Required, "payload_len of what is written is what follows", |adapter| written(adapter, "payload_len")),
    case("W1-HDR-004c", Required, "reserved of what is written is 0", |adapter| written(adapter, "reserved")),
    case("W1-FRM-001b", Required, "the longest request is written, a longer one is not", write_longest),
    case("W1-REQ-001g", Recommended, "a request with a value out of its range is not written", write_out_of_range),
    case("W1-REQ-003e", Recommended, "a prompt with the byte 0 is not written", write_nul),
    case("W1-REQ-004b", Recommended, "three prompts are written one after the other", write_three),
    case("W1-REQ-007c", Recommended, "NaN and infinities are not written", write_not_a_number),
    case("W1-RSP-004b", Required, "the head of a response, of every size and both kinds of pixels", write_heads),
    case("W1-ERR-002b", Required, "an error is written with the status of its code", write_errors),
    case("W1-ERR-003b", Required, "a long error_msg is cut to 255 bytes between two characters, or refused", write_long_message),
];

/// An adapter: the process, and the lines that it writes.
#[derive(Debug)]
pub struct Adapter {
    command: String,
    patience: Duration,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    process: Process,
    stdin: ChildStdin,
    lines: Lines<String>,
}

/// The longest line that an adapter is asked with.
const MAX_LINE: usize = 64 * 1024;

impl Adapter {
    /// An adapter that the first question starts.
    #[must_use]
    pub const fn new(command: String, patience: Duration) -> Self {
        Self { command, patience, running: None }
    }

    fn start(&mut self) -> Result<&mut Running, Box<Failure>> {
        if self.running.is_none() {
            let harness =
                |problem: String| Box::new(Failure::new("", problem, "an adapter").with(Verdict::Harness));
            let mut process = Process::start(&self.command, None, Stdio::piped(), false)
                .map_err(|error| harness(format!("{}: {error}", self.command)))?;
            let (Some(stdin), Some(stdout)) = (process.child().stdin.take(), process.child().stdout.take())
            else {
                return Err(harness("the adapter has no standard input or output".to_owned()));
            };
            let (sender, lines) = channel();
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
            self.running = Some(Running { process, stdin, lines });
        }
        self.running
            .as_mut()
            .ok_or_else(|| Box::new(Failure::new("", "no adapter", "an adapter").with(Verdict::Harness)))
    }

    /// Asks a question.
    ///
    /// # Errors
    /// There is no answer, or it is no JSON.
    fn ask(&mut self, question: &Value) -> Result<Value, Box<Failure>> {
        let patience = self.patience;
        let line = question.to_string();
        assert!(line.len() <= MAX_LINE, "a question of {} bytes", line.len());
        let running = self.start()?;
        let sent = writeln!(running.stdin, "{line}").and_then(|()| running.stdin.flush());
        let answer = match sent {
            Ok(()) => running.lines.recv_timeout(patience),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        };
        let failure = match answer {
            Ok(answer) => match serde_json::from_str(&answer) {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    Failure::new("", format!("the adapter's answer is no JSON: {error}: {answer}"), "JSON")
                }
            },
            Err(RecvTimeoutError::Timeout) => {
                Failure::new("", "the adapter did not answer", "an answer").with(Verdict::Hang)
            }
            Err(RecvTimeoutError::Disconnected) => {
                let until = std::time::Instant::now() + Duration::from_secs(1);
                let how = running.process.wait(until).map_or("closed its output".to_owned(), how_it_ended);
                let words = running.process.last_words();
                Failure::new("", format!("the adapter's end: {how}; it said last:\n{words}"), "an answer")
                    .with(Verdict::Crash)
            }
        };
        self.running = None;
        Err(Box::new(failure))
    }

    /// Runs a case of this module.
    ///
    /// # Errors
    /// The failure.
    pub fn run(&mut self, case: CodecCase, requirement: &str) -> Result<Remark, Vec<Failure>> {
        case(self).map_err(|failure| vec![failure.or_of(requirement)])
    }

    /// Has the library read some vectors, in several cuts, and write again what it has read.
    ///
    /// # Errors
    /// Each failure, but no more than the first few.
    pub fn run_vectors(
        &mut self,
        receiver: Receiver,
        patterns: &[&str],
        requirement: &str,
    ) -> Result<Remark, Vec<Failure>> {
        let (mut failures, mut remark) = (Vec::new(), Remark::Pass);
        for vector in vectors(receiver, patterns) {
            let len: usize = vector.pieces().iter().map(|piece| piece.once().len() * piece.times()).sum();
            let cuts: &[usize] = if len > 1 << 16 { &[usize::MAX, 4_093] } else { &[usize::MAX, 61, 7, 1] };
            for cut in cuts {
                let told = self.read_vector(vector, *cut);
                match told {
                    Ok(Remark::Pass) => {}
                    Ok(other) => remark = other,
                    Err(mut failure) => {
                        failure.variant = match cut {
                            &usize::MAX => format!("{}, whole", vector.name),
                            cut => format!("{}, {cut} bytes at a time", vector.name),
                        };
                        let sent = vector.segments().into_iter().flat_map(|segment| segment.bytes);
                        failure.sent = sent.take(4096).collect();
                        failures.push(failure.or_of(requirement));
                        if failures.len() == MAX_FAILURES {
                            return Err(failures);
                        }
                    }
                }
            }
        }
        if failures.is_empty() { Ok(remark) } else { Err(failures) }
    }

    fn read_vector(&mut self, vector: &Vector, cut: usize) -> Told {
        let cut = cut.min(1 << 25);
        let receiver = if vector.receiver() == Receiver::Server { "server" } else { "client" };
        let answer = self.ask(&json!({ "read": receiver, "cut": cut, "bytes": pieces(vector) }))?;
        if let Some(reason) = unsupported(&answer) {
            return Ok(reason);
        }
        let wrong = |problem: String, expected: String| Err(Box::new(Failure::new("", problem, expected)));
        let expected = vector.outcomes();
        let Some(frames) = answer["frames"].as_array() else {
            return wrong(format!("the answer has no frames: {}", short(&answer)), "frames".to_owned());
        };
        for (n, pair) in expected.iter().zip(frames).enumerate() {
            if let Some(problem) = difference(pair.0, pair.1) {
                return wrong(format!("frame {}: {problem}", n + 1), described(pair.0));
            }
        }
        if frames.len() != expected.len() {
            let all: Vec<String> = expected.iter().map(described).collect();
            return wrong(format!("{} outcomes: {}", frames.len(), short(&answer["frames"])), all.join("; "));
        }
        let end = match vector.end() {
            End::BetweenFrames => "between-frames",
            End::InsideAFrame => "inside-a-frame",
            End::Closed => "closed",
        };
        if answer["end"] != end {
            return wrong(format!("end is {}", answer["end"]), end.to_owned());
        }
        Ok(Remark::Pass)
    }

    /// Has the library write something. `Err`: what it said instead of bytes.
    fn write(&mut self, question: &Value) -> Result<Result<Vec<u8>, Value>, Box<Failure>> {
        let answer = self.ask(question)?;
        Ok(match answer["hex"].as_str().and_then(unhex) {
            Some(bytes) => Ok(bytes),
            None => Err(answer),
        })
    }
}

fn unsupported(answer: &Value) -> Option<Remark> {
    answer["unsupported"].as_str().map(|reason| Remark::Skip(format!("the library can't: {reason}")))
}

/// The bytes of a vector as an adapter gets them.
fn pieces(vector: &Vector) -> Vec<Value> {
    const MAX_REPEATED: usize = 64;
    let mut all = Vec::new();
    for piece in vector.pieces() {
        let (once, times) = (piece.once(), piece.times());
        match times {
            1 => all.push(json!({ "hex": compact(&once) })),
            _ if once.len() <= MAX_REPEATED => all.push(json!({ "hex": compact(&once), "times": times })),
            _ => all.push(json!({ "hex": compact(&once.repeat(times)) })),
        }
    }
    all
}

fn compact(bytes: &[u8]) -> String {
    wire::hex(bytes).replace(' ', "")
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.len() > 300 { format!("{}…", text.chars().take(300).collect::<String>()) } else { text }
}

/// An outcome in words.
fn described(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Request { fields, .. } => {
            format!(
                "request {} of {}×{}",
                fields.get("request_id"),
                fields.get("width"),
                fields.get("height")
            )
        }
        Outcome::Answer { request_id, code, field, .. } => {
            format!("{} for request {request_id}, because of {field}", wire::code_name(*code))
        }
        Outcome::Response { fields, .. } => {
            format!("response {} of {} bytes", fields.get("request_id"), fields.get("image_data_len"))
        }
        Outcome::Error { fields, .. } => {
            format!("{} for request {}", wire::code_name(fields.get("error_code")), fields.get("request_id"))
        }
        Outcome::Close { because, field } => format!("a close because of {field} ({because})"),
    }
}

/// What of an answer is not as it has to be.
fn difference(expected: &Outcome, answer: &Value) -> Option<String> {
    let (kind, of) = answer.as_object().and_then(|object| object.iter().next())?;
    let (kind, must_be) = match expected {
        Outcome::Request { .. } => (kind, "request"),
        Outcome::Answer { .. } => (kind, "answer"),
        Outcome::Response { .. } => (kind, "response"),
        Outcome::Error { .. } => (kind, "error"),
        Outcome::Close { .. } => (kind, "close"),
    };
    if kind != must_be {
        return Some(format!("it is taken as {}", short(answer)));
    }
    match expected {
        Outcome::Request { fields, prompts } => fields_differ(fields, of, &["cfg_scale"]).or_else(|| {
            let bits = of["cfg_scale"].as_str().and_then(|text| u64::from_str_radix(text, 16).ok());
            if bits != Some(fields.get("cfg_scale")) {
                return Some(format!(
                    "cfg_scale is {}, not \"{:08X}\"",
                    of["cfg_scale"],
                    fields.get("cfg_scale")
                ));
            }
            ["clip_l", "clip_g", "t5"].into_iter().zip(prompts).find_map(|(name, prompt)| {
                let is = of[name]["hex"].as_str().and_then(unhex);
                (is.as_ref() != Some(prompt)).then(|| format!("{name} is {}", short(&of[name])))
            })
        }),
        Outcome::Answer { request_id, code, .. } => {
            let Some(frame) = of["hex"].as_str().and_then(unhex) else {
                return Some(format!("the answer has no frame: {}", short(of)));
            };
            let (outcomes, end) = read(Receiver::Client, &frame);
            let [Outcome::Error { fields, message, .. }] = outcomes.as_slice() else {
                return Some(format!("the error frame is none: {}", wire::hex(&frame)));
            };
            let status = wire::CODES.iter().find(|(number, ..)| number == code).map(|(.., status)| *status);
            let is = (fields.get("request_id"), fields.get("error_code"), Some(fields.get("status")));
            if is != (*request_id, *code, status) || end != End::BetweenFrames {
                return Some(format!("the error frame is\n{}", wire::Shown(&frame)));
            }
            (message.len() > 255).then(|| format!("error_msg has {} bytes", message.len()))
        }
        Outcome::Response { fields, image_data, trailing } => fields_differ(fields, of, &[]).or_else(|| {
            let crc32 = of["crc32"].as_str().and_then(|text| u32::from_str_radix(text, 16).ok());
            if crc32 != Some(crc32fast::hash(image_data)) {
                return Some(format!("crc32 of image_data is {}", of["crc32"]));
            }
            (of["trailing"] != *trailing).then(|| format!("trailing is {}, not {trailing}", of["trailing"]))
        }),
        Outcome::Error { fields, message, trailing } => fields_differ(fields, of, &["error_msg_len"])
            .or_else(|| {
                if of["hex"].as_str().and_then(unhex).as_ref() != Some(message) {
                    return Some(format!("error_msg is {}", short(&of["hex"])));
                }
                let shown =
                    of["shown"].as_str().and_then(unhex).and_then(|bytes| String::from_utf8(bytes).ok());
                match shown {
                    None => return Some(format!("shown is no UTF-8: {}", short(&of["shown"]))),
                    Some(text) if text.chars().any(char::is_control) => {
                        return Some(format!("a terminal would obey what is shown: {text:?} (W1-ERR-010)"));
                    }
                    Some(_) => {}
                }
                (of["trailing"] != *trailing)
                    .then(|| format!("trailing is {}, not {trailing}", of["trailing"]))
            }),
        Outcome::Close { .. } => None,
    }
}

/// Compares numbers: a field `clip_l_offset` is `offset` of `clip_l`.
fn fields_differ(fields: &Fields, of: &Value, except: &[&str]) -> Option<String> {
    fields.iter().filter(|(name, _)| !except.contains(name)).find_map(|(name, must_be)| {
        let value = match name.rsplit_once('_') {
            Some((encoder @ ("clip_l" | "clip_g" | "t5"), part)) => &of[encoder][part],
            _ => &of[name],
        };
        let is = value.as_u64().or_else(|| value.as_str()?.parse().ok());
        (is != Some(must_be)).then(|| format!("{name} is {value}, not {must_be}"))
    })
}

// Writing ---------------------------------------------------------------------------------------------------------

const EXAMPLE: &str = "a cat in space";

/// The question for a request; the fields that `but` has are changed.
fn question(prompts: [&[u8]; 3], but: &[(&str, Value)]) -> Value {
    let [clip_l, clip_g, t5] = prompts.map(compact);
    let mut question = json!({
        "write": "request", "request_id": "1", "width": 512, "height": 512, "steps": 28, "cfg_scale": "40E00000",
        "seed": "0", "clip_l": clip_l, "clip_g": clip_g, "t5": t5,
    });
    for (name, value) in but {
        question[*name] = value.clone();
    }
    question
}

fn same(prompt: &str) -> [&[u8]; 3] {
    [prompt.as_bytes(); 3]
}

fn expect(bytes: &Result<Vec<u8>, Value>, expected: &[u8]) -> Told {
    match bytes {
        Ok(bytes) if bytes == expected => Ok(Remark::Pass),
        Ok(bytes) => {
            let mut failure = Failure::new("", "other bytes were written", wire::Shown(expected).to_string());
            failure.problem = format!("what was written is\n{}", wire::Shown(bytes));
            Err(Box::new(failure))
        }
        Err(answer) => match unsupported(answer) {
            Some(skip) => Ok(skip),
            None => Err(Box::new(Failure::new("", format!("the answer is {}", short(answer)), "bytes"))),
        },
    }
}

fn expect_refusal(bytes: &Result<Vec<u8>, Value>, what: &str) -> Told {
    match bytes {
        Err(answer) if answer["refused"].is_string() => Ok(Remark::Pass),
        Err(answer) => match unsupported(answer) {
            Some(skip) => Ok(skip),
            None => {
                Err(Box::new(Failure::new("", format!("the answer is {}", short(answer)), "\"refused\"")))
            }
        },
        Ok(bytes) => Err(Box::new(Failure::new(
            "",
            format!("{what} was written:\n{}", wire::Shown(bytes)),
            "that it is refused",
        ))),
    }
}

/// The request of the example, as the suite writes it.
fn example() -> Draft {
    Draft::request(1, EXAMPLE)
        .set("width", 512)
        .set("height", 512)
        .set("steps", 28)
        .set("cfg_scale", 0x40E0_0000)
        .set("seed", 0)
}

fn write_example(adapter: &mut Adapter) -> Told {
    expect(&adapter.write(&question(same(EXAMPLE), &[]))?, &example().bytes())
}

/// One field of the header of a request, a response's head and an error.
fn written(adapter: &mut Adapter, field: &str) -> Told {
    let expected = [
        (question(same(EXAMPLE), &[]), example().bytes()),
        (head(64, 64, 3), Draft::response(1, 64, 64, &[]).set("payload_len", 32 + 64 * 64 * 3).bytes()),
        (error(6, b"steps is 0"), Draft::error(1, 6, b"steps is 0").bytes()),
    ];
    let place = match field {
        "magic" => 0..4,
        "version" => 4..6,
        "payload_len" => 8..12,
        _ => 12..16,
    };
    for (question, expected) in expected {
        match adapter.write(&question)? {
            Ok(bytes) if bytes.get(place.clone()) == expected.get(place.clone()) => {}
            Ok(bytes) => {
                let problem = format!("{field} of {} is wrong:\n{}", question["write"], wire::Shown(&bytes));
                return Err(Box::new(Failure::new("", problem, wire::hex(&expected[place]))));
            }
            Err(answer) if unsupported(&answer).is_some() => {}
            Err(answer) => return Err(Box::new(Failure::new("", short(&answer), "bytes"))),
        }
    }
    Ok(Remark::Pass)
}

fn write_longest(adapter: &mut Adapter) -> Told {
    let longest = "x".repeat(2048);
    let told = expect(
        &adapter.write(&question(same(&longest), &[]))?,
        &Draft::request(1, &longest)
            .set("width", 512)
            .set("height", 512)
            .set("steps", 28)
            .set("cfg_scale", 0x40E0_0000)
            .set("seed", 0)
            .bytes(),
    )?;
    let longer = "x".repeat(2049);
    let refused =
        adapter.write(&question([longest.as_bytes(), longest.as_bytes(), longer.as_bytes()], &[]))?;
    expect_refusal(&refused, "a prompt of 2,049 bytes").map(|_| told)
}

fn write_out_of_range(adapter: &mut Adapter) -> Told {
    let wrong = [
        ("width", json!(0)),
        ("width", json!(65)),
        ("width", json!(2112)),
        ("height", json!(32)),
        ("height", json!(4096)),
        ("steps", json!(0)),
        ("steps", json!(101)),
        ("cfg_scale", json!("41A00001")),
        ("cfg_scale", json!("BF800000")),
        ("clip_l", json!("")),
        ("t5", json!("")),
    ];
    let mut told = Remark::Pass;
    for (name, value) in wrong {
        let bytes = adapter.write(&question(same(EXAMPLE), &[(name, value.clone())]))?;
        told = expect_refusal(&bytes, &format!("{name} {value}"))?;
    }
    Ok(told)
}

fn write_nul(adapter: &mut Adapter) -> Told {
    let bytes = adapter.write(&question([b"abc", b"a\0c", b"abc"], &[]))?;
    expect_refusal(&bytes, "a prompt with the byte 0")
}

fn write_three(adapter: &mut Adapter) -> Told {
    let texts: [&[u8]; 3] = [b"one", "zwei €".as_bytes(), b"3"];
    let expected = example()
        .bytes()
        .into_iter()
        .take(16 + 36)
        .chain(offsets(texts).into_iter().flat_map(u32::to_be_bytes))
        .chain(texts.concat())
        .collect::<Vec<u8>>();
    let mut expected = expected;
    let payload_len = u32::try_from(expected.len() - 16).unwrap_or(u32::MAX);
    expected[8..12].copy_from_slice(&payload_len.to_be_bytes());
    expect(&adapter.write(&question(texts, &[]))?, &expected)
}

/// The offset table of texts that follow each other.
fn offsets(texts: [&[u8]; 3]) -> Vec<u32> {
    let mut at = 0;
    texts
        .into_iter()
        .flat_map(|text| {
            let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
            at += len;
            [at - len, len]
        })
        .collect()
}

fn write_not_a_number(adapter: &mut Adapter) -> Told {
    let mut told = Remark::Pass;
    for bits in ["7FC00000", "7F800000", "FF800000", "FFFFFFFF"] {
        let bytes = adapter.write(&question(same(EXAMPLE), &[("cfg_scale", json!(bits))]))?;
        told = expect_refusal(&bytes, &format!("cfg_scale {bits}"))?;
    }
    Ok(told)
}

fn head(width: u64, height: u64, channels: u64) -> Value {
    json!({
        "write": "response-head", "request_id": "1", "generation_time_ms": 12, "image_width": width,
        "image_height": height, "channels": channels,
    })
}

fn write_heads(adapter: &mut Adapter) -> Told {
    let mut told = Remark::Pass;
    for (width, height, channels) in
        [(64, 64, 3), (64, 2048, 4), (512, 768, 3), (2048, 2048, 3), (2048, 2048, 4)]
    {
        let len = width * height * channels;
        let expected = Draft::response(1, width, height, &[])
            .set("channels", channels)
            .set("image_data_len", len)
            .set("payload_len", 32 + len);
        told = expect(&adapter.write(&head(width, height, channels))?, &expected.bytes())?;
    }
    Ok(told)
}

fn error(code: u64, message: &[u8]) -> Value {
    json!({ "write": "error", "request_id": "1", "error_code": code, "error_msg": compact(message) })
}

fn write_errors(adapter: &mut Adapter) -> Told {
    let mut told = Remark::Pass;
    for (code, name, _) in wire::CODES {
        let message = name.as_bytes();
        told = expect(&adapter.write(&error(*code, message))?, &Draft::error(1, *code, message).bytes())?;
    }
    Ok(told)
}

fn write_long_message(adapter: &mut Adapter) -> Told {
    let mut told = Remark::Pass;
    for (text, kept) in
        [("m".repeat(255), 255), ("m".repeat(300), 255), ("é".repeat(200), 254), ("€".repeat(99), 255)]
    {
        let bytes = adapter.write(&error(99, text.as_bytes()))?;
        // A sender may also leave the cutting to its caller.
        let is_refused =
            text.len() > 255 && bytes.as_ref().is_err_and(|answer| answer["refused"].is_string());
        if !is_refused {
            told = expect(&bytes, &Draft::error(1, 99, &text.as_bytes()[..kept]).bytes())?;
        }
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::VECTORS;

    #[test]
    fn every_vector_fits_into_a_line() {
        for vector in VECTORS.iter() {
            let line = json!({ "read": "client", "cut": 1 << 25, "bytes": pieces(vector) }).to_string();
            assert!(line.len() <= MAX_LINE, "{}: {} bytes", vector.name, line.len());
        }
    }
}
