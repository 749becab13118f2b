//! Tests of a client: the suite listens, starts the client, reads its request, and answers.
//!
//! A client is a command of the shell with `{address}` in it. It asks for one image of 64×64 pixels, and ends with exit
//! status 0 if it got the image and with another one if it did not. If the server answered with an error, it prints the
//! error's message.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::case::{Case, Failure, Level, MAX_FAILURES, Remark, Run, Told, Verdict, vectors};
use crate::server::{Cut, checkerboard};
use crate::testee::{Folder, Listener, Process, START, Stream, how_it_ended};
use crate::wire::{
    Draft, End, HEADER_LEN, MAX_REQUEST_PAYLOAD, Outcome, REQUEST, Receiver, Segment, read, size,
};

/// How a client case is run.
#[derive(Clone, Copy)]
pub enum ClientCase {
    /// Looks at the request: its bytes, and what the suite's own reader makes of them.
    Request(fn(&[u8], &Outcome) -> Told),
    /// Answers, each to a client of its own.
    Scenes(fn(u64) -> Vec<Scene>),
    /// Answers to a client that sends several requests at once.
    Several(fn(&[u64]) -> Scene),
}

/// What a client gets, and what it has to make of it.
#[derive(Clone, Debug)]
pub struct Scene {
    /// In reports.
    pub name: String,
    /// What is sent, field by field.
    pub sends: Vec<Segment>,
    /// What happens then.
    pub then: Then,
    /// What has to come of it.
    pub wanted: Wanted,
}

/// What the suite does after it has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Waits for the client to close.
    Wait,
    /// Closes.
    Close,
}

/// What a client has to make of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It has its image.
    Image,
    /// It has an error, and prints this of it.
    Error(String),
    /// It closes the connection and has no image.
    Close,
    /// It ends, in whatever way but a crash.
    Anything,
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image => f.write_str("exit status 0: the client has its image"),
            Self::Error(text) => {
                write!(f, "another exit status than 0, and the error's message {text:?} in the output")
            }
            Self::Close => f.write_str("a close by the client, and another exit status than 0"),
            Self::Anything => f.write_str("an end of the client, without a crash"),
        }
    }
}

impl Scene {
    fn new(name: impl Into<String>, frames: &[Draft], then: Then, wanted: Wanted) -> Self {
        Self { name: name.into(), sends: frames.iter().flat_map(Draft::segments).collect(), then, wanted }
    }

    fn bytes(name: impl Into<String>, bytes: &[u8], then: Then, wanted: Wanted) -> Self {
        let sends = vec![Segment { field: "bytes".to_owned(), bytes: bytes.to_vec() }];
        Self { name: name.into(), sends, then, wanted }
    }
}

const fn request(
    id: &'static str,
    level: Level,
    title: &'static str,
    look: fn(&[u8], &Outcome) -> Told,
) -> Case {
    Case { id, level, title, run: Run::Client(ClientCase::Request(look)) }
}

const fn scenes(id: &'static str, level: Level, title: &'static str, scenes: fn(u64) -> Vec<Scene>) -> Case {
    Case { id, level, title, run: Run::Client(ClientCase::Scenes(scenes)) }
}

const fn several(id: &'static str, level: Level, title: &'static str, scene: fn(&[u64]) -> Scene) -> Case {
    Case { id, level, title, run: Run::Client(ClientCase::Several(scene)) }
}

/// What a library can be asked, and a client that asks once can't.
const fn streams(
    id: &'static str,
    level: Level,
    title: &'static str,
    names: &'static [&'static str],
) -> Case {
    Case { id, level, title, run: Run::Streams(names) }
}

const fn answers(
    id: &'static str,
    level: Level,
    title: &'static str,
    names: &'static [&'static str],
) -> Case {
    Case { id, level, title, run: Run::Vectors(Receiver::Client, names) }
}

use Level::{Informational, Recommended, Required, Robustness};

/// What a client is tried with.
#[rustfmt::skip] // a table
pub const CASES: &[Case] = &[
    scenes("W1-TRN-001b", Required, "an answer is the same however the stream is cut", cut_answers),
    streams("W1-TRN-001c", Required, "answers follow each other on a stream, and may be cut anywhere",
        &["stream-client-out-of-order", "stream-client-two-errors", "stream-client-trailing-between",
            "stream-client-unknown-code-between", "stream-client-largest-then-error", "stream-client-cut-second"]),
    request("W1-TRN-005c", Required, "integers of a request are big-endian", whole_request),
    request("W1-TRN-006b", Required, "fields of a request follow each other without padding", whole_request),
    request("W1-HDR-001b", Required, "a request begins with the magic", |bytes, _| field(bytes, "magic", 0..4, b"WEVE")),
    request("W1-HDR-002b", Required, "a request has version 1", |bytes, _| field(bytes, "version", 4..6, &[0, 1])),
    request("W1-HDR-003c", Required, "payload_len of a request is what follows", right_length),
    request("W1-HDR-004b", Required, "reserved of a request is 0", |bytes, _| field(bytes, "reserved", 12..16, &[0; 4])),
    answers("W1-HDR-005b", Required, "reserved of an answer is ignored", &["response-reserved", "error-reserved"]),
    request("W1-FRM-001a", Required, "a request's payload has at most 6,204 bytes", short_enough),
    answers("W1-FRM-006a", Required, "a wrong magic: the client closes",
        &["client-magic-*", "stream-client-garbage-after-response", "stream-client-lost-stream"]),
    scenes("W1-FRM-006b", Required, "an image in a frame with another magic is none", spoilt_magic),
    answers("W1-FRM-007a", Required, "a payload of more than 16,777,248 bytes: the client closes", &["client-payload-len-*"]),
    scenes("W1-FRM-009d", Required, "an answer that is cut off is none", cut_off),
    streams("W1-FRM-009e", Required, "the rest of an answer may be missing yet", &["client-cut-*", "response-head-example"]),
    answers("W1-FRM-010a", Required, "a frame that is no answer of its version: the client closes",
        &["client-gets-type-*", "response-of-version-2"]),
    request("W1-REQ-001f", Required, "the values of a request are within their ranges", whole_request),
    request("W1-REQ-002b", Required, "the ranges of a request lie within prompt_data", whole_request),
    request("W1-REQ-003d", Required, "the prompts of a request are UTF-8 without the byte 0", whole_request),
    request("W1-REQ-004a", Recommended, "a request has three copies of one prompt, one after the other", three_copies),
    scenes("W1-RSP-001b", Robustness, "an image for somebody else's request is not taken", foreign),
    answers("W1-RSP-005a", Required, "status is 200", &["response-status-*"]),
    answers("W1-RSP-005b", Required, "sides are within their range", &["response-image-width-*", "response-image-height-*"]),
    answers("W1-RSP-005c", Required, "channels are 3 or 4", &["response-channels-*"]),
    answers("W1-RSP-005d", Required, "image_data_len is what sides and channels make",
        &["response-image-data-len-*", "response-product-*"]),
    answers("W1-RSP-005e", Required, "images of all sizes are taken",
        &["response-512-rgb", "response-smallest", "response-smallest-rgba", "response-largest-rgb", "response-largest",
            "response-wide", "response-tall", "response-128-192-rgba", "response-id-*", "response-time-*"]),
    answers("W1-RSP-006a", Required, "payload_len has room for the image", &["response-payload-len-*"]),
    answers("W1-RSP-007a", Required, "bytes after the image are ignored", &["response-trailing-*"]),
    answers("W1-RSP-008a", Required, "a response that contradicts itself ends the connection",
        &["response-status-500", "response-channels-2", "response-payload-len-one-less", "stream-client-bad-response-between"]),
    answers("W1-ERR-006a", Required, "an unknown code is taken by its status", &[
            "error-code-11-of-*", "error-code-19-of-*", "error-code-25-of-*", "error-code-98-of-*", "error-code-100-of-*",
            "error-code-largest-of-*"]),
    answers("W1-ERR-006b", Required, "every code is taken", &["error-example", "error-code-*", "error-status-500-for-400",
        "error-status-400-for-500"]),
    answers("W1-ERR-007a", Required, "a status that is neither 400 nor 500 ends the connection",
        &["error-status-0", "error-status-2*", "error-status-39*", "error-status-401", "error-status-404", "error-status-499",
            "error-status-501", "error-status-503", "error-status-6*", "error-status-largest"]),
    answers("W1-ERR-008a", Required, "payload_len has room for error_msg", &["error-payload-len-*", "error-msg-len-largest"]),
    answers("W1-ERR-009a", Required, "bytes after error_msg are ignored", &["error-trailing-*"]),
    answers("W1-ERR-010a", Required, "error_msg may be anything",
        &["error-msg-empty", "error-msg-1", "error-msg-2*", "error-msg-65535", "error-msg-scripts", "error-msg-controls",
            "error-msg-c1-controls", "error-msg-nul", "error-msg-not-utf-8", "error-msg-cut-character", "error-msg-surrogate",
            "error-id-*"]),
    scenes("W1-ERR-010b", Required, "what is shown of error_msg can't command a terminal", terminal),
    several("W1-CON-001c", Informational, "a client may send several requests at once", in_order),
    several("W1-CON-003b", Required, "answers are told apart by request_id, in any order", backwards),
    several("W1-CON-003c", Required, "an error between images is the error of its own request", error_between),
    scenes("W1-CON-002b", Robustness, "a close without an answer is no image", hang_up),
    scenes("W1-CON-008b", Robustness, "BUSY for request 0 and a close: an error, and no image", busy),
    request("W1-VER-001a", Required, "the version is the highest that there is", |bytes, _| field(bytes, "version", 4..6, &[0, 1])),
    answers("W1-VER-005a", Required, "fields that a later version has appended are ignored",
        &["response-trailing-1", "error-trailing-1"]),
    answers("W1-VER-006a", Required, "an error of any version is read", &["error-of-version-2"]),
    scenes("W1-SEC-001d", Robustness, "noise does no more than end the client", noise),
];

/// A client under test.
#[derive(Debug)]
pub struct Client {
    command: String,
    /// A command with `{count}` in it as well.
    several: Option<String>,
    folder: Folder,
    tcp: bool,
    patience: Duration,
}

/// A client that has sent its request, or its requests.
struct Asked {
    process: Process,
    stream: Stream,
    /// Frame by frame.
    requests: Vec<Vec<u8>>,
}

impl Asked {
    fn outcome(&self) -> Result<(Outcome, u64), Box<Failure>> {
        let bytes = self.requests.first().map_or(&[][..], Vec::as_slice);
        match read(Receiver::Server, bytes) {
            (mut outcomes, End::BetweenFrames) if outcomes.len() == 1 => {
                let outcome = outcomes.remove(0);
                let id = match &outcome {
                    Outcome::Request { fields, .. } => fields.get("request_id"),
                    Outcome::Answer { request_id, .. } => *request_id,
                    _ => 0,
                };
                Ok((outcome, id))
            }
            _ => Err(Box::new(Failure::new("W1-HDR-003", "the client sent no whole frame", "a request"))),
        }
    }
}

impl Client {
    /// A client that `command` starts; `several` has it send `{count}` requests at once.
    #[must_use]
    pub const fn new(
        command: String,
        several: Option<String>,
        folder: Folder,
        tcp: bool,
        patience: Duration,
    ) -> Self {
        Self { command, several, folder, tcp, patience }
    }

    /// Starts the client and reads what it sends.
    fn ask(&self, command: &str, count: usize) -> Result<Asked, Box<Failure>> {
        let harness = |error: std::io::Error| {
            Box::new(Failure::new("", error.to_string(), "a place to listen").with(Verdict::Harness))
        };
        let listener = Listener::new(self.folder.path(), self.tcp).map_err(harness)?;
        let address = listener.address().map_err(harness)?;
        let command = command.replace("{count}", &count.to_string());
        let mut process = Process::start(&command, Some(&address), Stdio::null(), true).map_err(harness)?;
        let until = Instant::now() + self.patience.max(START);
        let accepted = listener.accept(until, || process.ended().is_some()).map_err(harness)?;
        let Some(mut stream) = accepted else {
            let ended = process.ended();
            let verdict = if ended.is_some() { Verdict::Fail } else { Verdict::Hang };
            let how = ended.map_or("it still runs".to_owned(), how_it_ended);
            let problem =
                format!("the client did not connect: {how}; it said last:\n{}", process.last_words());
            return Err(Box::new(Failure::new("", problem, "a connection").with(verdict)));
        };
        let until = Instant::now() + self.patience;
        let mut requests = Vec::new();
        while requests.len() < count {
            match frame(&mut stream, until) {
                Ok(bytes) => requests.push(bytes),
                Err((bytes, problem)) => {
                    let mut failure = Failure::new("W1-HDR-003", problem, "a whole request");
                    failure.received = bytes;
                    return Err(Box::new(failure));
                }
            }
        }
        Ok(Asked { process, stream, requests })
    }

    /// Runs a case of this module.
    ///
    /// # Errors
    /// Each failure, but no more than the first few.
    pub fn run(&self, case: ClientCase, requirement: &str) -> Result<Remark, Vec<Failure>> {
        let told = match case {
            ClientCase::Request(look) => self.look(look),
            ClientCase::Scenes(scenes) => {
                // The client's id is not known before it asks, the scenes' number is the same for every id.
                let count = scenes(0).len();
                return self.play_all(count, requirement, |n, id| scenes(id).swap_remove(n));
            }
            ClientCase::Several(scene) => self.play_several(scene),
        };
        told.map_err(|failure| vec![failure.or_of(requirement)])
    }

    /// Has the client get the answers of some vectors.
    ///
    /// # Errors
    /// Each failure, but no more than the first few.
    pub fn run_vectors(&self, patterns: &[&str], requirement: &str) -> Result<Remark, Vec<Failure>> {
        let usable: Vec<_> = vectors(Receiver::Client, patterns).filter_map(of_vector).collect();
        self.play_all(usable.len(), requirement, |n, id| with_id(usable[n].clone(), id))
    }

    fn look(&self, look: fn(&[u8], &Outcome) -> Told) -> Told {
        let asked = self.ask(&self.command, 1)?;
        let (outcome, _) = asked.outcome()?;
        let bytes = &asked.requests[0];
        look(bytes, &outcome).map_err(|mut failure| {
            failure.received.clone_from(bytes);
            failure
        })
    }

    fn play_all(
        &self,
        count: usize,
        requirement: &str,
        scene: impl Fn(usize, u64) -> Scene,
    ) -> Result<Remark, Vec<Failure>> {
        let mut failures = Vec::new();
        for n in 0..count {
            let wanted = scene(n, 0).wanted;
            // What is refused is refused however it comes.
            let cuts: &[Cut] = match wanted {
                Wanted::Image | Wanted::Error(_) => &Cut::ALL,
                Wanted::Close | Wanted::Anything => &[Cut::Whole],
            };
            for cut in cuts {
                let played = self.ask(&self.command, 1).and_then(|asked| {
                    let (outcome, id) = asked.outcome()?;
                    if let Outcome::Request { fields, .. } = &outcome
                        && (fields.get("width"), fields.get("height")) != (64, 64)
                    {
                        let reason = "the client has to ask for an image of 64×64 pixels".to_owned();
                        return Ok((Remark::Skip(reason), String::new()));
                    }
                    let scene = scene(n, id);
                    self.play(asked, &scene, *cut).map(|remark| (remark, scene.name))
                });
                match played {
                    Ok((Remark::Skip(reason), _)) => return Ok(Remark::Skip(reason)),
                    Ok(_) => {}
                    Err(mut failure) => {
                        failure.variant = format!("{}, {}", scene(n, 0).name, cut.name());
                        failures.push(failure.or_of(requirement));
                        if failures.len() == MAX_FAILURES {
                            return Err(failures);
                        }
                    }
                }
            }
        }
        if failures.is_empty() { Ok(Remark::Pass) } else { Err(failures) }
    }

    fn play_several(&self, scene: fn(&[u64]) -> Scene) -> Told {
        const COUNT: usize = 5;
        let Some(command) = &self.several else {
            return Ok(Remark::Skip("there is no --exec-several".to_owned()));
        };
        let asked = self.ask(command, COUNT)?;
        let ids: Vec<u64> = asked
            .requests
            .iter()
            .filter_map(|bytes| match read(Receiver::Server, bytes).0.as_slice() {
                [Outcome::Request { fields, .. }] => Some(fields.get("request_id")),
                _ => None,
            })
            .collect();
        if ids.len() != COUNT {
            return Err(Box::new(Failure::new(
                "W1-REQ-001",
                "not all requests can be served",
                "five requests",
            )));
        }
        let mut unique = ids.clone();
        unique.sort_unstable();
        unique.dedup();
        if unique.len() != COUNT {
            let problem = format!("five requests at once have the ids {ids:?}");
            return Err(Box::new(Failure::new("W1-CON-004", problem, "five different ids")));
        }
        self.play(asked, &scene(&ids), Cut::Whole)
    }

    /// Answers, and looks at what the client makes of it.
    fn play(&self, asked: Asked, scene: &Scene, cut: Cut) -> Told {
        let Asked { mut process, mut stream, .. } = asked;
        let until = Instant::now() + self.patience;
        let wrong = |problem: String, verdict: Verdict| {
            let mut failure = Failure::new("", problem, scene.wanted.to_string()).with(verdict);
            failure.sent = scene.sends.iter().flat_map(|segment| segment.bytes.clone()).take(4096).collect();
            Err(Box::new(failure))
        };
        let harness = |error: std::io::Error| {
            Box::new(Failure::new("", error.to_string(), "a second handle").with(Verdict::Harness))
        };
        let (writes, then, mut half) =
            (cut.writes(&scene.sends), scene.then, stream.try_clone().map_err(harness)?);
        half.set_patience(self.patience);
        let writer = thread::spawn(move || {
            for write in writes {
                if half.write_all(&write).is_err() {
                    break;
                }
            }
            if then == Then::Close {
                half.close();
            }
        });
        // Until the client closes its side, or the time is up.
        let mut rest = [0; 4096];
        let closed = loop {
            stream.set_patience(until.saturating_duration_since(Instant::now()));
            match stream.read(&mut rest) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    break false;
                }
                Err(_) => break true,
            }
        };
        stream.close();
        let _ = writer.join();
        if !closed {
            return wrong("the client did not close the connection".to_owned(), Verdict::Hang);
        }
        let Some(status) = process.wait(until) else {
            return wrong("the client closed the connection and did not end".to_owned(), Verdict::Hang);
        };
        let said = process.all_said();
        if status.signal().is_some() {
            return wrong(
                format!("{}; it said last:\n{}", how_it_ended(status), process.last_words()),
                Verdict::Crash,
            );
        }
        let ended = format!("{}; it said:\n{}", how_it_ended(status), process.last_words());
        match &scene.wanted {
            Wanted::Image if !status.success() => wrong(ended, Verdict::Fail),
            Wanted::Close | Wanted::Error(_) if status.success() => wrong(ended, Verdict::Fail),
            Wanted::Error(text) if !said.contains(text.as_str()) => wrong(ended, Verdict::Fail),
            _ => match said.chars().find(|c| c.is_control() && !"\n\r\t".contains(*c)) {
                Some(control) => {
                    let mut failure = Failure::new(
                        "W1-ERR-010",
                        format!("the client printed the control character {control:?}"),
                        "no control characters but line ends and tabs",
                    );
                    failure.sent =
                        scene.sends.iter().flat_map(|segment| segment.bytes.clone()).take(4096).collect();
                    Err(Box::new(failure))
                }
                None => Ok(Remark::Pass),
            },
        }
    }
}

/// Reads a frame; if there is no whole one, what there is, and why.
fn frame(stream: &mut Stream, until: Instant) -> Result<Vec<u8>, (Vec<u8>, String)> {
    let mut bytes = Vec::new();
    let mut whole = HEADER_LEN;
    while bytes.len() < whole {
        let mut piece = vec![0; whole - bytes.len()];
        stream.set_patience(until.saturating_duration_since(Instant::now()));
        match stream.read(&mut piece) {
            Ok(0) => return Err((bytes, "the client ended its request before its end".to_owned())),
            Ok(n) => bytes.extend(&piece[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err((bytes, format!("no whole request came: {error}"))),
        }
        if bytes.len() == HEADER_LEN {
            let len = bytes[8..12].iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
            if &bytes[..4] != b"WEVE" || len > MAX_REQUEST_PAYLOAD {
                return Err((bytes, "what came is no header of a request".to_owned()));
            }
            whole += usize::try_from(len).unwrap_or(0);
        }
    }
    Ok(bytes)
}

// Requests --------------------------------------------------------------------------------------------------------

fn field(bytes: &[u8], name: &str, place: std::ops::Range<usize>, expected: &[u8]) -> Told {
    match bytes.get(place) {
        Some(is) if is == expected => Ok(Remark::Pass),
        is => {
            let problem = format!("{name} is {}", crate::wire::hex(is.unwrap_or_default()));
            Err(Box::new(Failure::new("", problem, crate::wire::hex(expected))))
        }
    }
}

fn whole_request(_: &[u8], outcome: &Outcome) -> Told {
    match outcome {
        Outcome::Request { fields, .. } if (fields.get("width"), fields.get("height")) == (64, 64) => {
            Ok(Remark::Pass)
        }
        Outcome::Request { fields, .. } => {
            let problem =
                format!("the request is for {}×{} pixels", fields.get("width"), fields.get("height"));
            Err(Box::new(Failure::new("", problem, "64×64, which is what the client has to ask for")))
        }
        Outcome::Answer { code, field, .. } => {
            let problem = format!("a server answers {}, because of {field}", crate::wire::code_name(*code));
            Err(Box::new(Failure::new("", problem, "a request that can be served")))
        }
        _ => Err(Box::new(Failure::new("", "this is no request", "a request"))),
    }
}

/// The frame was read by its length; that nothing is left of it or missing is seen by what its fields say.
fn right_length(bytes: &[u8], outcome: &Outcome) -> Told {
    let Outcome::Request { fields, .. } = outcome else { return whole_request(bytes, outcome) };
    let end = ["clip_l", "clip_g", "t5"]
        .map(|encoder| fields.get(&format!("{encoder}_offset")) + fields.get(&format!("{encoder}_length")))
        .into_iter()
        .max();
    let is = bytes.len() - HEADER_LEN - size(REQUEST);
    if end == u64::try_from(is).ok() {
        return Ok(Remark::Pass);
    }
    Ok(Remark::Warn(format!(
        "prompt_data has {is} bytes, and the last prompt ends after {}",
        end.unwrap_or(0)
    )))
}

fn short_enough(bytes: &[u8], _: &Outcome) -> Told {
    let len = bytes.len() - HEADER_LEN;
    if u64::try_from(len).is_ok_and(|len| len <= MAX_REQUEST_PAYLOAD) {
        return Ok(Remark::Pass);
    }
    Err(Box::new(Failure::new("", format!("the payload has {len} bytes"), "at most 6,204")))
}

fn three_copies(_: &[u8], outcome: &Outcome) -> Told {
    let Outcome::Request { fields, prompts } = outcome else { return whole_request(&[], outcome) };
    let [first, second, third] = prompts;
    let starts = ["clip_l_offset", "clip_g_offset", "t5_offset"].map(|name| fields.get(name));
    let len = first.len() as u64;
    if first == second && first == third && starts == [0, len, 2 * len] {
        return Ok(Remark::Pass);
    }
    Err(Box::new(Failure::new(
        "",
        format!("prompts of {} bytes each begin at {starts:?}", first.len()),
        "three copies",
    )))
}

// Answers ---------------------------------------------------------------------------------------------------------

/// The answer of a vector, if it is one that a client which asks once for a small image can get.
fn of_vector(vector: &crate::spec::Vector) -> Option<Scene> {
    let outcomes = vector.outcomes();
    let [outcome] = outcomes.as_slice() else { return None };
    if vector.end() == End::InsideAFrame {
        return None;
    }
    let wanted = match outcome {
        Outcome::Response { fields, .. }
            if (fields.get("image_width"), fields.get("image_height")) == (64, 64) =>
        {
            Wanted::Image
        }
        Outcome::Error { message, .. } => {
            // What a client shows of it: up to the first character that it may show otherwise.
            let text = String::from_utf8_lossy(message);
            let plain: String =
                text.chars().take_while(|c| c.is_ascii_graphic() || *c == ' ').take(60).collect();
            Wanted::Error(plain.trim().to_owned())
        }
        Outcome::Close { .. } => Wanted::Close,
        _ => return None,
    };
    // A client with a foreign id waits for its own answer: the id is put in, where there is one.
    Some(Scene { name: vector.name.clone(), sends: vector.segments(), then: Then::Wait, wanted })
}

/// Puts the client's id into an answer.
fn with_id(mut scene: Scene, id: u64) -> Scene {
    for segment in &mut scene.sends {
        if segment.field == "request_id" && segment.bytes.len() == 8 {
            segment.bytes = id.to_be_bytes().to_vec();
        }
    }
    scene
}

fn image(id: u64) -> Draft {
    Draft::response(id, 64, 64, &checkerboard(64, 64, 3))
}

const TEXT: &str = "the xylophone is out of tune";

fn failure_of(id: u64, name: &str) -> Draft {
    Draft::error(id, crate::wire::code(name), TEXT.as_bytes())
}

fn cut_answers(id: u64) -> Vec<Scene> {
    let image_bytes = image(id).bytes();
    let error_bytes = failure_of(id, "GPU_ERROR").bytes();
    let mut all = vec![
        Scene::new("an image", &[image(id)], Then::Wait, Wanted::Image),
        Scene::new("an error", &[failure_of(id, "GPU_ERROR")], Then::Wait, Wanted::Error(TEXT.to_owned())),
    ];
    let halves = |name: String, bytes: &[u8], at: usize, wanted: Wanted| {
        let half = |bytes: &[u8]| Segment { field: "half".to_owned(), bytes: bytes.to_vec() };
        Scene { name, sends: vec![half(&bytes[..at]), half(&bytes[at..])], then: Then::Wait, wanted }
    };
    for at in [1, 15, 16, 17, 47, 48, 49, image_bytes.len() - 1] {
        all.push(halves(format!("an image cut after {at} bytes"), &image_bytes, at, Wanted::Image));
    }
    for at in [4, 16, 33, 34, 35, error_bytes.len() - 1] {
        all.push(halves(
            format!("an error cut after {at} bytes"),
            &error_bytes,
            at,
            Wanted::Error(TEXT.to_owned()),
        ));
    }
    all
}

fn spoilt_magic(id: u64) -> Vec<Scene> {
    [0x5845_5645, 0x5744_5645, 0x5745_5545, 0x5745_5646, 0x4556_4557, 0x7765_7665]
        .into_iter()
        .map(|magic| {
            let name = format!("an image with the magic {magic:08x}");
            Scene::new(name, &[image(id).set("magic", magic)], Then::Wait, Wanted::Close)
        })
        .collect()
}

fn cut_off(id: u64) -> Vec<Scene> {
    let (image, error) = (image(id).bytes(), failure_of(id, "GPU_ERROR").bytes());
    let cut = |what: &str, bytes: &[u8], at: usize| {
        Scene::bytes(format!("{what} of which {at} bytes come"), &bytes[..at], Then::Close, Wanted::Close)
    };
    let images = [1, 15, 16, 20, 47, 48, 5_000, image.len() - 1].map(|at| cut("an image", &image, at));
    let errors = [8, 16, 33, 34, error.len() - 1].map(|at| cut("an error", &error, at));
    images.into_iter().chain(errors).collect()
}

fn foreign(id: u64) -> Vec<Scene> {
    let other = id.wrapping_add(1);
    vec![
        Scene::new("an image for another id, then a close", &[image(other)], Then::Close, Wanted::Close),
        Scene::new(
            "an image for the id with its bytes swapped",
            &[image(id.swap_bytes() ^ 1)],
            Then::Close,
            Wanted::Close,
        ),
    ]
}

fn terminal(id: u64) -> Vec<Scene> {
    let scene = |name: &str, message: &[u8]| {
        let draft =
            Draft::error(id, crate::wire::code("INTERNAL"), &[b"before ", message, b" after"].concat());
        Scene::new(name, &[draft], Then::Wait, Wanted::Error("before".to_owned()))
    };
    vec![
        scene("an escape sequence", b"\x1b[2J\x1b]0;title\x07"),
        scene("C1 controls", "\u{9b}31m\u{85}".as_bytes()),
        scene("a carriage return and a backspace", b"\rgone\x08\x08"),
        scene("bytes that are no UTF-8", b"\xff\xfe\x1b"),
        scene("the byte 0", b"a\0b"),
    ]
}

fn hang_up(id: u64) -> Vec<Scene> {
    vec![
        Scene { name: "nothing".to_owned(), sends: Vec::new(), then: Then::Close, wanted: Wanted::Close },
        Scene::new(
            "an error, then a close",
            &[failure_of(id, "SHUTTING_DOWN")],
            Then::Close,
            Wanted::Error(TEXT.to_owned()),
        ),
        Scene::new("an image, then a close", &[image(id)], Then::Close, Wanted::Image),
    ]
}

fn busy(_: u64) -> Vec<Scene> {
    vec![Scene::new(
        "BUSY for request 0",
        &[failure_of(0, "BUSY")],
        Then::Close,
        Wanted::Error(TEXT.to_owned()),
    )]
}

fn noise(id: u64) -> Vec<Scene> {
    let good = image(id).bytes();
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..40)
        .map(|n| {
            let mut bytes = good.clone();
            for _ in 0..=n % 4 {
                let at = usize::try_from(random() % 48).unwrap_or(0);
                bytes[at] = random().to_le_bytes()[3];
            }
            Scene::bytes(
                format!("an image with bytes changed, number {n}"),
                &bytes,
                Then::Close,
                Wanted::Anything,
            )
        })
        .collect()
}

// Several requests ------------------------------------------------------------------------------------------------

fn in_order(ids: &[u64]) -> Scene {
    let frames: Vec<Draft> = ids.iter().map(|id| image(*id)).collect();
    Scene::new("five images in order", &frames, Then::Wait, Wanted::Image)
}

fn backwards(ids: &[u64]) -> Scene {
    let frames: Vec<Draft> = ids.iter().rev().map(|id| image(*id)).collect();
    Scene::new("five images backwards", &frames, Then::Wait, Wanted::Image)
}

fn error_between(ids: &[u64]) -> Scene {
    let answer = |(n, id): (usize, &u64)| if n == 2 { failure_of(*id, "GPU_ERROR") } else { image(*id) };
    let frames: Vec<Draft> = ids.iter().rev().enumerate().map(answer).collect();
    Scene::new("an error between four images", &frames, Then::Wait, Wanted::Error(TEXT.to_owned()))
}
