//! Tests of a library, behind an adapter on standard input and output. `ADAPTER.md` is the protocol.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc::{Receiver as Lines, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::draft::Draft;
use crate::spec::{Vector, vectors};
use crate::testee::{Output, Process, how_it_ended};
use crate::verdict::{Failure, MAX_FAILURES, Remark, Told, Verdict};
use crate::wire::{self, End, Expectation, Fields, Receiver, code, read};

/// The longest answer that is read as one: more than what is said of any frame.
const MAX_ANSWER: u64 = 16 << 20;

/// How a codec case is run.
pub type CodecCase = fn(&mut Adapter) -> Told;

/// An adapter: the process, and the lines that it writes.
#[derive(Debug)]
pub struct Adapter {
    command: String,
    timeout: Duration,
    running: Option<Running>,
    /// Whether it has ever answered.
    works: bool,
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
    pub const fn new(command: String, timeout: Duration) -> Self {
        Self { command, timeout, running: None, works: false }
    }

    fn start(&mut self) -> Result<&mut Running, Box<Failure>> {
        if self.running.is_none() {
            let harness =
                |problem: String| Box::new(Failure::new("", problem, "an adapter").with(Verdict::Harness));
            let mut process = Process::start(&self.command, None, Stdio::piped(), Output::Taken)
                .map_err(|error| harness(format!("{}: {error}", self.command)))?;
            let (Some(stdin), Some(stdout)) = (process.child().stdin.take(), process.child().stdout.take())
            else {
                return Err(harness("the adapter has no standard input or output".to_owned()));
            };
            // An answer waits until it is asked for: one that nobody has asked for waits for ever.
            let (sender, lines) = sync_channel(1);
            thread::spawn(move || {
                let mut stdout = BufReader::new(stdout);
                let mut line = Vec::new();
                while stdout.by_ref().take(MAX_ANSWER).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                    let text = String::from_utf8_lossy(&std::mem::take(&mut line)).trim_end().to_owned();
                    if sender.send(text).is_err() {
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

    /// Asks a question. The first one of all is one that no library has trouble with: without an answer to it this is
    /// no adapter, and nothing is known of the library.
    ///
    /// # Errors
    /// There is no answer, or it is no JSON.
    fn ask(&mut self, question: &Value) -> Result<Value, Box<Failure>> {
        if !self.works {
            match self.exchange(&json!({ "read": "server", "cut": 1, "bytes": [] })) {
                Err(failure) if failure.verdict != Verdict::Fail => {
                    let problem =
                        format!("{}: no answer to an empty stream: {}", self.command, failure.problem);
                    return Err(Box::new(Failure::new("", problem, "an adapter").with(Verdict::Harness)));
                }
                _ => self.works = true,
            }
        }
        self.exchange(question)
    }

    fn exchange(&mut self, question: &Value) -> Result<Value, Box<Failure>> {
        let timeout = self.timeout;
        let line = question.to_string();
        assert!(line.len() <= MAX_LINE, "a question of {} bytes", line.len());
        let running = self.start()?;
        let sent = writeln!(running.stdin, "{line}").and_then(|()| running.stdin.flush());
        let answer = match sent {
            Ok(()) => running.lines.recv_timeout(timeout),
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
                let deadline = std::time::Instant::now() + Duration::from_secs(1);
                let how = running.process.wait(deadline).map_or("closed its output".to_owned(), how_it_ended);
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
        let expected = vector.expectations();
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
            return wrong(
                format!("{} expectations: {}", frames.len(), short(&answer["frames"])),
                all.join("; "),
            );
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

    /// Has the library read an error with this error_msg, and gives what it would show of that.
    ///
    /// # Errors
    /// There is no answer, or none with a text.
    pub fn shown(&mut self, message: &[u8]) -> Result<Result<String, Remark>, Box<Failure>> {
        let frame = compact(&Draft::error(1, code("INTERNAL"), message).bytes());
        let answer = self.ask(&json!({ "read": "client", "cut": 1 << 25, "bytes": [{ "hex": frame }] }))?;
        if let Some(reason) = unsupported(&answer) {
            return Ok(Err(reason));
        }
        let shown = answer["frames"][0]["error"]["shown"].as_str().and_then(unhex);
        match shown.and_then(|bytes| String::from_utf8(bytes).ok()) {
            Some(text) => Ok(Ok(text)),
            None => {
                let problem = format!("shown is no UTF-8: {}", short(&answer));
                Err(Box::new(Failure::new("", problem, "the text to show")))
            }
        }
    }

    /// Has the library write something. `Err`: what it said instead of bytes.
    ///
    /// # Errors
    /// There is no answer, or it is no JSON.
    pub fn write(&mut self, question: &Value) -> Result<Result<Vec<u8>, Value>, Box<Failure>> {
        let answer = self.ask(question)?;
        Ok(match answer["hex"].as_str().and_then(unhex) {
            Some(bytes) => Ok(bytes),
            None => Err(answer),
        })
    }
}

/// What is wrong with what a person is shown of error_msg (W1-ERR-010). A control character, and bytes that are no
/// UTF-8, may stand there as anything that is not a control character, but not as nothing; so may a character that
/// hides text or turns it around. All others stand there as they are, in their order.
pub(crate) fn shown_wrongly(message: &[u8], shown: &str) -> Option<String> {
    /// What one character may become: longer than any escape.
    const LONGEST: usize = 12;
    if let Some(c) = shown.chars().find(|c| c.is_control()) {
        return Some(format!("a terminal would obey {c:?} in {shown:?}"));
    }
    let hides = |c: char| {
        matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let shown: Vec<char> = shown.chars().collect();
    // How far into `shown` what was looked at can reach.
    let mut reached = BTreeSet::from([0]);
    let replaced = |reached: &BTreeSet<usize>, longest: usize| -> BTreeSet<usize> {
        let next = |at: &usize| at + 1..=(at + longest).min(shown.len());
        reached.iter().flat_map(next).collect()
    };
    for chunk in message.utf8_chunks() {
        for c in chunk.valid().chars() {
            let as_it_is: BTreeSet<usize> =
                reached.iter().filter(|at| shown.get(**at) == Some(&c)).map(|at| at + 1).collect();
            let next = match c {
                c if c.is_control() => replaced(&reached, LONGEST),
                c if hides(c) => replaced(&reached, LONGEST),
                // Whoever escapes with it may double it.
                '\\' => {
                    as_it_is.iter().flat_map(|at| [*at, at + 1]).filter(|at| *at <= shown.len()).collect()
                }
                _ => as_it_is,
            };
            if next.is_empty() {
                return Some(format!("{c:?} is not shown as it should be"));
            }
            reached = next;
        }
        if !chunk.invalid().is_empty() {
            reached = replaced(&reached, LONGEST * chunk.invalid().len());
        }
    }
    (!reached.contains(&shown.len())).then(|| "more is shown than was sent, or less".to_owned())
}

/// That an adapter can't do something, if it says so.
pub(crate) fn unsupported(answer: &Value) -> Option<Remark> {
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

/// Hexadecimal, as adapters get it.
pub(crate) fn compact(bytes: &[u8]) -> String {
    wire::hex(bytes).replace(' ', "")
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

/// A value as JSON, but not too much of it.
pub(crate) fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.len() > 300 { format!("{}…", text.chars().take(300).collect::<String>()) } else { text }
}

/// An expectation in words.
fn described(expectation: &Expectation) -> String {
    match expectation {
        Expectation::Request { fields, .. } => {
            format!(
                "request {} of {}×{}",
                fields.get("request_id"),
                fields.get("width"),
                fields.get("height")
            )
        }
        Expectation::Answer { request_id, code, field, .. } => {
            format!("{} for request {request_id}, because of {field}", wire::code_name(*code))
        }
        Expectation::Response { fields, .. } => {
            format!("response {} of {} bytes", fields.get("request_id"), fields.get("image_data_len"))
        }
        Expectation::Error { fields, .. } => {
            format!("{} for request {}", wire::code_name(fields.get("error_code")), fields.get("request_id"))
        }
        Expectation::Close { because, field } => format!("a close because of {field} ({because})"),
    }
}

/// What of an answer is not as it has to be.
fn difference(expected: &Expectation, answer: &Value) -> Option<String> {
    let (kind, of) = answer.as_object().and_then(|object| object.iter().next())?;
    let (kind, must_be) = match expected {
        Expectation::Request { .. } => (kind, "request"),
        Expectation::Answer { .. } => (kind, "answer"),
        Expectation::Response { .. } => (kind, "response"),
        Expectation::Error { .. } => (kind, "error"),
        Expectation::Close { .. } => (kind, "close"),
    };
    if kind != must_be {
        return Some(format!("it is taken as {}", short(answer)));
    }
    match expected {
        Expectation::Request { fields, prompts } => fields_differ(fields, of, &["cfg_scale"]).or_else(|| {
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
        Expectation::Answer { request_id, code, field, .. } => {
            // Which of two checks with one error_code came first is not on the wire: only a library that tells shows it.
            if let Some(told) = of["field"].as_str().filter(|told| told != field) {
                return Some(format!("{told} is said to be at fault, not {field} (W1-VAL-001)"));
            }
            let Some(frame) = of["hex"].as_str().and_then(unhex) else {
                return Some(format!("the answer has no frame: {}", short(of)));
            };
            let (expectations, end) = read(Receiver::Client, &frame);
            let [Expectation::Error { fields, message, .. }] = expectations.as_slice() else {
                return Some(format!("the error frame is none: {}", wire::hex(&frame)));
            };
            let status = wire::CODES.iter().find(|(number, ..)| number == code).map(|(.., status)| *status);
            let is = (fields.get("request_id"), fields.get("error_code"), Some(fields.get("status")));
            if is != (*request_id, *code, status) || end != End::BetweenFrames {
                return Some(format!("the error frame is\n{}", wire::Shown(&frame)));
            }
            (message.len() > 255).then(|| format!("error_msg has {} bytes", message.len()))
        }
        Expectation::Response { fields, image_data, trailing } => {
            fields_differ(fields, of, &[]).or_else(|| {
                let crc32 = of["crc32"].as_str().and_then(|text| u32::from_str_radix(text, 16).ok());
                if crc32 != Some(crc32fast::hash(image_data)) {
                    return Some(format!("crc32 of image_data is {}", of["crc32"]));
                }
                (of["trailing"] != *trailing)
                    .then(|| format!("trailing is {}, not {trailing}", of["trailing"]))
            })
        }
        Expectation::Error { fields, message, trailing } => fields_differ(fields, of, &["error_msg_len"])
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
        Expectation::Close { .. } => None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::VECTORS;

    #[test]
    fn what_is_shown_has_all_the_text_and_no_control_character() {
        for (message, shown) in [
            (b"no".as_slice(), "no"),
            ("gr\u{f6}\u{df}er \u{732b}".as_bytes(), "gr\u{f6}\u{df}er \u{732b}"),
            (b"a\x1b[2Jb", "a\\u{1b}[2Jb"),
            (b"a\x1b[2Jb", "a^[[2Jb"),
            (b"a\x1b[2Jb", "a\u{fffd}[2Jb"),
            (b"a\nb", "a b"),
            (b"a\xff\xfeb", "a\u{fffd}\u{fffd}b"),
            (b"a\xff\xfeb", "a\\xff\\xfeb"),
            (b"\xff", "?"),
            ("a\u{202e}b".as_bytes(), "a\u{202e}b"),
            ("a\u{202e}b".as_bytes(), "a\\u{202e}b"),
            (b"C:\\x", "C:\\\\x"),
            (b"", ""),
        ] {
            assert_eq!(shown_wrongly(message, shown), None, "{message:?} as {shown:?}");
        }
        for (message, shown) in [
            (b"no".as_slice(), ""),
            (b"no", "n"),
            (b"no", "no!"),
            (b"no", "No"),
            ("gr\u{f6}\u{df}er".as_bytes(), "gr\u{c3}\u{b6}\u{c3}\u{9f}er"),
            ("gr\u{f6}\u{df}er".as_bytes(), "gr??er"),
            (b"a\tb", "a\tb"),
            (b"a\tb", "ab"),
            (b"a\x08b", "b"),
            (b"before\0after", "before"),
            (b"a\xffb", "ab"),
            (b"\xff\xfe", ""),
            (b"a\x1b[2Jb", "a\\u{1b}[2J"),
        ] {
            assert!(shown_wrongly(message, shown).is_some(), "{message:?} as {shown:?}");
        }
    }

    #[test]
    fn every_vector_fits_into_a_line() {
        for vector in VECTORS.iter() {
            let line = json!({ "read": "client", "cut": 1 << 25, "bytes": pieces(vector) }).to_string();
            assert!(line.len() <= MAX_LINE, "{}: {} bytes", vector.name, line.len());
        }
    }
}
