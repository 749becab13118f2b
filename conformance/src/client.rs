//! Tests of a client: the suite listens, starts the client, reads its request, and answers.
//!
//! A client is a command of the shell with `{address}` in it. It asks for one image of 64×64 pixels, and ends
//! with exit status 0 if it got the image and with another one if it did not. If the server answered with an
//! error, it prints the error's message.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::draft::{Cut, Draft, Segment};
use crate::spec::{Vector, vectors};
use crate::testee::{Folder, Listener, Output, Process, START_TIMEOUT, Stream, how_it_ended};
use crate::verdict::{Failure, MAX_FAILURES, Remark, Told, Verdict, not_applicable};
use crate::wire::{End, Expectation, HEADER_LEN, MAX_REQUEST_PAYLOAD, Receiver, read};

/// How a client case is run.
#[derive(Clone, Copy)]
pub enum ClientCase {
    /// Looks at the request: its bytes, and what the suite's own reader makes of them.
    Request(fn(&[u8], &Expectation) -> Told),
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
    /// Some frames.
    #[must_use]
    pub fn new(name: impl Into<String>, frames: &[Draft], then: Then, wanted: Wanted) -> Self {
        Self { name: name.into(), sends: frames.iter().flat_map(Draft::segments).collect(), then, wanted }
    }

    /// Bytes that need not be frames.
    #[must_use]
    pub fn bytes(name: impl Into<String>, bytes: &[u8], then: Then, wanted: Wanted) -> Self {
        let sends = vec![Segment { field: "bytes".to_owned(), bytes: bytes.to_vec() }];
        Self { name: name.into(), sends, then, wanted }
    }
}

/// A client under test.
#[derive(Debug)]
pub struct Client {
    command: String,
    /// A command with `{count}` in it as well.
    several: Option<String>,
    folder: Folder,
    tcp: bool,
    timeout: Duration,
}

/// A client that has sent its request, or its requests.
struct Asked {
    process: Process,
    stream: Stream,
    /// Frame by frame.
    requests: Vec<Vec<u8>>,
}

impl Asked {
    fn expectation(&self) -> Result<(Expectation, u64), Box<Failure>> {
        let bytes = self.requests.first().map_or(&[][..], Vec::as_slice);
        match read(Receiver::Server, bytes) {
            (mut expectations, End::BetweenFrames) if expectations.len() == 1 => {
                let expectation = expectations.remove(0);
                let id = match &expectation {
                    Expectation::Request { fields, .. } => fields.get("request_id"),
                    Expectation::Answer { request_id, .. } => *request_id,
                    _ => 0,
                };
                Ok((expectation, id))
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
        timeout: Duration,
    ) -> Self {
        Self { command, several, folder, tcp, timeout }
    }

    /// Starts the client and reads what it sends.
    fn ask(&self, command: &str, count: usize) -> Result<Asked, Box<Failure>> {
        let harness = |error: std::io::Error| {
            Box::new(Failure::new("", error.to_string(), "a place to listen").with(Verdict::Harness))
        };
        let listener = Listener::new(&self.folder, self.tcp).map_err(harness)?;
        let address = listener.address().map_err(harness)?;
        let command = command.replace("{count}", &count.to_string());
        let mut process =
            Process::start(&command, Some(&address), Stdio::null(), Output::Kept).map_err(harness)?;
        let deadline = Instant::now() + self.timeout.max(START_TIMEOUT);
        let accepted = listener.accept(deadline, || process.ended().is_some()).map_err(harness)?;
        let Some(mut stream) = accepted else {
            let ended = process.ended();
            let verdict = if ended.is_some() { Verdict::Fail } else { Verdict::Hang };
            let how = ended.map_or("it still runs".to_owned(), how_it_ended);
            let problem =
                format!("the client did not connect: {how}; it said last:\n{}", process.last_words());
            return Err(Box::new(Failure::new("", problem, "a connection").with(verdict)));
        };
        let deadline = Instant::now() + self.timeout;
        let mut requests = Vec::new();
        while requests.len() < count {
            match frame(&mut stream, deadline) {
                Ok(bytes) => requests.push(bytes),
                Err((bytes, problem)) => {
                    // If that is not the client under test, it is somebody who has found the port first.
                    let problem = format!("{problem}{}", stream.origin());
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

    fn look(&self, look: fn(&[u8], &Expectation) -> Told) -> Told {
        let asked = self.ask(&self.command, 1)?;
        let (expectation, _) = asked.expectation()?;
        let bytes = &asked.requests[0];
        look(bytes, &expectation).map_err(|mut failure| {
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
                    let (expectation, id) = asked.expectation()?;
                    if let Expectation::Request { fields, .. } = &expectation
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
            return not_applicable("there is no --exec-several");
        };
        let asked = self.ask(command, COUNT)?;
        let ids: Vec<u64> = asked
            .requests
            .iter()
            .filter_map(|bytes| match read(Receiver::Server, bytes).0.as_slice() {
                [Expectation::Request { fields, .. }] => Some(fields.get("request_id")),
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
        let deadline = Instant::now() + self.timeout;
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
        half.set_timeout(self.timeout);
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
            stream.set_timeout(deadline.saturating_duration_since(Instant::now()));
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
        let Some(status) = process.wait(deadline) else {
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
fn frame(stream: &mut Stream, deadline: Instant) -> Result<Vec<u8>, (Vec<u8>, String)> {
    let mut bytes = Vec::new();
    let mut whole = HEADER_LEN;
    while bytes.len() < whole {
        let mut piece = vec![0; whole - bytes.len()];
        stream.set_timeout(deadline.saturating_duration_since(Instant::now()));
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

/// The answer of a vector, if it is one that a client which asks once for a small image can get.
fn of_vector(vector: &Vector) -> Option<Scene> {
    let expectations = vector.expectations();
    let [expectation] = expectations.as_slice() else { return None };
    if vector.end() == End::InsideAFrame {
        return None;
    }
    let wanted = match expectation {
        Expectation::Response { fields, .. }
            if (fields.get("image_width"), fields.get("image_height")) == (64, 64) =>
        {
            Wanted::Image
        }
        Expectation::Error { message, .. } => {
            // What a client shows of it: up to the first character that it may show otherwise.
            let text = String::from_utf8_lossy(message);
            let plain: String =
                text.chars().take_while(|c| c.is_ascii_graphic() || *c == ' ').take(60).collect();
            Wanted::Error(plain.trim().to_owned())
        }
        Expectation::Close { .. } => Wanted::Close,
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
