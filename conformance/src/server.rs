//! Tests of a server: conversations, each in several variants.
//!
//! A [`Talk`] is what is sent on one connection and what has to come of it. It is held whole, one byte a write, and with
//! a write for each field; and where the connection lives on, also between two other requests, which must not be harmed.
//! That nothing else comes is not waited for: one more request is sent, and its answer must be the next thing.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::case::{Failure, Remark, Told, Verdict, vectors};
use crate::testee::{Address, Process, START, Stream, how_it_ended};
use crate::wire::{
    Draft, End, HEADER_LEN, MAX_RESPONSE_PAYLOAD, Outcome, Receiver, Segment, code, code_name, read,
};

/// How a server case is run.
#[derive(Clone, Copy)]
pub enum ServerCase {
    /// Conversations, in all variants.
    Talks(fn() -> Vec<Talk>),
    /// Anything else.
    By(fn(&mut Server) -> Told),
}

/// An answer that has to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The image of a request.
    Image {
        /// The request's id.
        id: u64,
        /// Pixels in a row.
        width: u64,
        /// Rows.
        height: u64,
    },
    /// An error.
    Error {
        /// The request's id, or 0.
        id: u64,
        /// error_code.
        code: u64,
    },
}

impl Expected {
    /// The image of a 64×64 request.
    #[must_use]
    pub const fn small_image(id: u64) -> Self {
        Self::Image { id, width: 64, height: 64 }
    }

    /// An error, by the code's name.
    #[must_use]
    pub fn error(id: u64, name: &str) -> Self {
        Self::Error { id, code: code(name) }
    }

    const fn id(&self) -> u64 {
        match self {
            Self::Image { id, .. } | Self::Error { id, .. } => *id,
        }
    }

    const fn is_image(&self) -> bool {
        matches!(self, Self::Image { .. })
    }

    /// What has to come of a vector's frame.
    ///
    /// # Panics
    /// If the frame is for a client.
    #[must_use]
    pub fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Request { fields, .. } => Self::Image {
                id: fields.get("request_id"),
                width: fields.get("width"),
                height: fields.get("height"),
            },
            Outcome::Answer { request_id, code, .. } => Self::Error { id: *request_id, code: *code },
            other => panic!("no server makes {other:?}"),
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image { id, width, height } => write!(f, "an image of {width}×{height} for request {id}"),
            Self::Error { id, code } => write!(f, "{} for request {id}", code_name(*code)),
        }
    }
}

/// What is sent on one connection, and what has to come of it.
#[derive(Clone, Debug)]
pub struct Talk {
    /// In reports.
    pub name: String,
    /// What is sent, field by field.
    pub sends: Vec<Segment>,
    /// The answers, in any order.
    pub expected: Vec<Expected>,
    /// How the connection stands then.
    pub end: End,
}

impl Talk {
    /// Frames after which the connection lives on.
    #[must_use]
    pub fn new(name: impl Into<String>, frames: &[Draft], expected: Vec<Expected>) -> Self {
        let sends = frames.iter().flat_map(Draft::segments).collect();
        Self { name: name.into(), sends, expected, end: End::BetweenFrames }
    }

    /// The same with another end.
    #[must_use]
    pub const fn ends(mut self, end: End) -> Self {
        self.end = end;
        self
    }

    /// The same talk between two other requests, if its connection lives on.
    fn between_neighbours(mut self) -> Self {
        let [before, after] = [0x8B00_0000_0000_00B1, 0x8B00_0000_0000_00B2];
        let neighbour = |id| Draft::request(id, "a neighbour").segments();
        self.sends = [neighbour(before), self.sends, neighbour(after)].concat();
        self.expected.insert(0, Expected::small_image(before));
        self.expected.push(Expected::small_image(after));
        self
    }
}

/// How a stream is cut into writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// As few as the system takes.
    Whole,
    /// One for each field.
    Fields,
    /// One for each byte of the beginning and of the end; what lies between, if it is long, in pieces.
    Bytes,
}

impl Cut {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Whole, Self::Fields, Self::Bytes];

    /// In reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Fields => "a write for each field",
            Self::Bytes => "one byte a write",
        }
    }

    /// The writes.
    #[must_use]
    pub fn writes(self, segments: &[Segment]) -> Vec<Vec<u8>> {
        const ENDS: usize = 1024;
        const PIECE: usize = 4093;
        let all = || segments.iter().flat_map(|segment| segment.bytes.clone()).collect::<Vec<u8>>();
        match self {
            Self::Whole => vec![all()],
            Self::Fields => segments.iter().map(|segment| segment.bytes.clone()).collect(),
            Self::Bytes => {
                let all = all();
                let single = |bytes: &[u8]| bytes.iter().map(|byte| vec![*byte]).collect::<Vec<_>>();
                if all.len() <= 4 * ENDS {
                    return single(&all);
                }
                let (begin, rest) = all.split_at(ENDS);
                let (middle, end) = rest.split_at(rest.len() - ENDS);
                [single(begin), middle.chunks(PIECE).map(<[u8]>::to_vec).collect(), single(end)].concat()
            }
        }
    }
}

/// A server under test.
#[derive(Debug)]
pub struct Server {
    address: Address,
    /// How it is started, if it is ours to start.
    command: Option<String>,
    process: Option<Process>,
    /// How long an answer may take.
    pub patience: Duration,
    /// Whether its images are the checkerboard, so that pixels can be looked at.
    checkerboard: Option<bool>,
    /// For random numbers.
    pub seed: u64,
}

/// A connection to the server.
pub struct Connection {
    stream: Stream,
    until: Instant,
    /// How much is read at once.
    at_most: usize,
    /// The beginnings of all frames that came.
    received: Vec<u8>,
}

/// What came on a connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Came {
    /// An answer.
    Answer(Answer),
    /// The server closed between two frames.
    Close,
}

/// An answer as the server sent it.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// An image.
    Image {
        /// request_id.
        id: u64,
        /// generation_time_ms.
        time: u64,
        /// Pixels in a row.
        width: u64,
        /// Rows.
        height: u64,
        /// Bytes of a pixel.
        channels: u64,
        /// The pixels.
        data: Vec<u8>,
    },
    /// An error.
    Error {
        /// request_id.
        id: u64,
        /// error_code.
        code: u64,
        /// status.
        status: u64,
        /// error_msg.
        message: Vec<u8>,
    },
}

impl Answer {
    /// request_id.
    #[must_use]
    pub const fn id(&self) -> u64 {
        match self {
            Self::Image { id, .. } | Self::Error { id, .. } => *id,
        }
    }

    /// The pixels of an image.
    #[must_use]
    pub fn pixels(&self) -> Option<&[u8]> {
        match self {
            Self::Image { data, .. } => Some(data),
            Self::Error { .. } => None,
        }
    }

    fn is(&self, expected: &Expected) -> bool {
        match (self, expected) {
            (Self::Image { id, width, height, .. }, Expected::Image { id: i, width: w, height: h }) => {
                (id, width, height) == (i, w, h)
            }
            (Self::Error { id, code, .. }, Expected::Error { id: i, code: c }) => (id, code) == (i, c),
            // A server that can't serve a right request may say so (W1-VAL-003).
            (Self::Error { id, status: 500, .. }, Expected::Image { id: i, .. }) => id == i,
            _ => false,
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image { id, width, height, .. } => {
                write!(f, "an image of {width}×{height} for request {id}")
            }
            Self::Error { id, code, message, .. } => {
                write!(f, "{} for request {id}: {:?}", code_name(*code), String::from_utf8_lossy(message))
            }
        }
    }
}

/// The pixel bytes of the checkerboard: blocks of 8×8 pixels, 0x00 and 0xFF in turn, 0x00 first.
#[must_use]
pub fn checkerboard(width: u64, height: u64, channels: u64) -> Vec<u8> {
    let row = |odd: bool| -> Vec<u8> {
        let pixel = |x: u64| if (x / 8 % 2 == 1) == odd { 0x00 } else { 0xFF };
        (0..width).flat_map(|x| (0..channels).map(move |_| pixel(x))).collect()
    };
    let rows = [row(false), row(true)];
    (0..height).flat_map(|y| rows[usize::from(y / 8 % 2 == 1)].iter().copied()).collect()
}

impl Connection {
    /// Writes all of it; an error is no failure here, since a server may close what it has given up.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Writes on a thread of its own, so that answers can be read meanwhile; then ends our direction, if asked to.
    fn write_beside(
        &self,
        writes: Vec<Vec<u8>>,
        patience: Duration,
        end_writing: bool,
    ) -> Result<thread::JoinHandle<()>, Box<Failure>> {
        let mut half = self.stream.try_clone().map_err(|error| {
            Box::new(Failure::new("", error.to_string(), "a second handle").with(Verdict::Harness))
        })?;
        half.set_patience(patience);
        Ok(thread::spawn(move || {
            for write in writes {
                if half.write_all(&write).is_err() {
                    break;
                }
            }
            if end_writing {
                half.end_writing();
            }
        }))
    }

    /// Ends our direction.
    pub fn end_writing(&self) {
        self.stream.end_writing();
    }

    /// Ends the connection with a reset where the system can do that.
    pub fn reset(self) {
        self.stream.reset();
    }

    /// From now on reads no more than this at once.
    pub const fn read_at_most(&mut self, at_most: usize) {
        self.at_most = at_most;
    }

    /// Reads so many bytes and forgets them.
    ///
    /// # Errors
    /// They did not come.
    pub fn read_some(&mut self, count: usize) -> Result<(), Box<Failure>> {
        self.fill(&mut vec![0; count], true).map(drop)
    }

    /// More time for what follows.
    pub fn wait_until(&mut self, until: Instant) {
        self.until = until;
    }

    /// Reads a frame and checks all that holds for every frame of a server's.
    ///
    /// # Errors
    /// What is wrong with it, or that nothing came.
    pub fn receive(&mut self) -> Result<Came, Box<Failure>> {
        let mut frame = vec![0; HEADER_LEN];
        match self.fill(&mut frame, true)? {
            0 => return Ok(Came::Close),
            HEADER_LEN => {}
            n => return Err(self.cut_off(&frame[..n])),
        }
        let number = |at: usize, size: usize| {
            frame[at..at + size].iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        let (version, payload_len, reserved) = (number(4, 2), number(8, 4), number(12, 4));
        let bad = |requirement, problem: String, expected: &str| {
            Err(Box::new(Failure::new(requirement, problem, expected)))
        };
        if &frame[..4] != b"WEVE" {
            self.note(&frame);
            return bad("W1-HDR-001", "an answer does not begin with the magic".to_owned(), "a frame");
        }
        if payload_len > MAX_RESPONSE_PAYLOAD {
            self.note(&frame);
            return bad(
                "W1-HDR-003",
                format!("payload_len of an answer is {payload_len}"),
                "at most 16,777,248",
            );
        }
        frame.resize(HEADER_LEN + usize::try_from(payload_len).unwrap_or(usize::MAX), 0);
        let n = self.fill(&mut frame[HEADER_LEN..], false)?;
        self.note(&frame[..HEADER_LEN + n]);
        if n < frame.len() - HEADER_LEN {
            return Err(self.cut_off(&frame[..HEADER_LEN + n]));
        }
        if reserved != 0 {
            return bad("W1-HDR-004", format!("reserved of an answer is {reserved}"), "0");
        }
        let (mut outcomes, _) = read(Receiver::Client, &frame);
        let Some(outcome) = outcomes.pop() else {
            return bad("W1-HDR-003", "no frame".to_owned(), "a frame");
        };
        let answer = match outcome {
            Outcome::Response { fields, image_data, .. } => Answer::Image {
                id: fields.get("request_id"),
                time: fields.get("generation_time_ms"),
                width: fields.get("image_width"),
                height: fields.get("image_height"),
                channels: fields.get("channels"),
                data: image_data,
            },
            Outcome::Error { fields, message, .. } => Answer::Error {
                id: fields.get("request_id"),
                code: fields.get("error_code"),
                status: fields.get("status"),
                message,
            },
            Outcome::Close { field, .. } => {
                let requirement = match field {
                    "version" => "W1-HDR-002",
                    "status" | "image_data_len" => "W1-RSP-004",
                    _ => "W1-HDR-003",
                };
                return bad(requirement, format!("{field} of an answer is wrong"), "a response or an error");
            }
            Outcome::Request { .. } | Outcome::Answer { .. } => unreachable!("those are a server's"),
        };
        if let Answer::Error { code, status, message, .. } = &answer {
            let known = crate::wire::CODES.iter().find(|(number, ..)| number == code);
            match known {
                Some((_, name, must_be)) if must_be != status => {
                    return bad(
                        "W1-ERR-002",
                        format!("{name} has the status {status}"),
                        &must_be.to_string(),
                    );
                }
                _ => {}
            }
            if message.len() > 255 {
                return bad("W1-ERR-003", format!("error_msg has {} bytes", message.len()), "at most 255");
            }
            if version != 1 && *code != code_of_version() {
                return bad(
                    "W1-VER-002",
                    format!("an answer has the version {version}"),
                    "1, as the request has",
                );
            }
        }
        Ok(Came::Answer(answer))
    }

    /// Reads until the buffer is full or the stream ends.
    fn fill(&mut self, buf: &mut [u8], idle: bool) -> Result<usize, Box<Failure>> {
        let mut n = 0;
        while n < buf.len() {
            self.stream.set_patience(self.until.saturating_duration_since(Instant::now()));
            let end = buf.len().min(n.saturating_add(self.at_most));
            match self.stream.read(&mut buf[n..end]) {
                Ok(0) => break,
                Ok(more) => n += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    let what =
                        if idle && n == 0 { "no answer came" } else { "an answer stopped in its middle" };
                    self.note(&buf[..n]);
                    return Err(Box::new(Failure::new("", what, "an answer").with(Verdict::Hang)));
                }
                // A reset is an end as well.
                Err(_) => break,
            }
        }
        Ok(n)
    }

    fn cut_off(&mut self, bytes: &[u8]) -> Box<Failure> {
        self.note(bytes);
        Box::new(Failure::new(
            "W1-CON-006",
            "the connection ended in the middle of an answer",
            "whole frames",
        ))
    }

    fn note(&mut self, frame: &[u8]) {
        const EACH: usize = 80;
        const ALL: usize = 16 * EACH;
        if self.received.len() < ALL {
            self.received.extend(&frame[..frame.len().min(EACH)]);
        }
    }
}

fn code_of_version() -> u64 {
    code("UNSUPPORTED_VERSION")
}

impl Server {
    /// A server that runs already, or that `command` starts.
    #[must_use]
    pub const fn new(address: Address, command: Option<String>, patience: Duration, seed: u64) -> Self {
        Self { address, command, process: None, patience, checkerboard: None, seed }
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// The process, if the suite has started it.
    pub const fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Makes sure that it runs, and starts it if that is ours to do.
    ///
    /// # Errors
    /// It doesn't run.
    pub fn ensure_running(&mut self) -> Result<(), Box<Failure>> {
        let harness = |problem: String| {
            Box::new(Failure::new("", problem, "a server that accepts connections").with(Verdict::Harness))
        };
        if self.process.as_mut().is_some_and(|process| process.ended().is_some()) {
            self.process = None;
        }
        let Some(command) = &self.command else {
            return self
                .address
                .connect()
                .map(drop)
                .map_err(|error| harness(format!("{}: {error}", self.address)));
        };
        if self.process.is_some() {
            return Ok(());
        }
        let mut process = Process::start(command, Some(&self.address), std::process::Stdio::null(), true)
            .map_err(|error| harness(format!("{command}: {error}")))?;
        let until = Instant::now() + self.patience.max(START);
        loop {
            if self.address.connect().is_ok() {
                self.process = Some(process);
                return Ok(());
            }
            if let Some(status) = process.ended() {
                return Err(harness(format!(
                    "{command}: {} before it listened at {}\n{}",
                    how_it_ended(status),
                    self.address,
                    process.last_words()
                )));
            }
            if Instant::now() > until {
                return Err(harness(format!(
                    "{command}: did not listen at {} in time\n{}",
                    self.address,
                    process.last_words()
                )));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it, if it is ours.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// A new connection.
    ///
    /// # Errors
    /// The server is gone, or can't be reached.
    pub fn connect(&mut self) -> Result<Connection, Box<Failure>> {
        let until = Instant::now() + self.patience;
        loop {
            match self.address.connect() {
                Ok(stream) => {
                    return Ok(Connection { stream, until, at_most: usize::MAX, received: Vec::new() });
                }
                // The queue of connections is full for now.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(error) => {
                    let failure =
                        Failure::new("W1-SEC-001", format!("can't connect: {error}"), "a connection");
                    return Err(self.with_crash(Box::new(failure)));
                }
            }
        }
    }

    /// Whether a failure is because the server is gone.
    fn with_crash(&mut self, mut failure: Box<Failure>) -> Box<Failure> {
        let gone = match &mut self.process {
            // It may be about to end.
            Some(process) => process.wait(Instant::now() + Duration::from_millis(100)).map(|status| {
                format!(
                    "the server ended with {}; it said last:\n{}",
                    how_it_ended(status),
                    process.last_words()
                )
            }),
            None => self.address.connect().err().map(|error| format!("the server is gone: {error}")),
        };
        if let Some(gone) = gone {
            failure.verdict = Verdict::Crash;
            failure.problem = format!("{}; {gone}", failure.problem);
        }
        failure
    }

    /// Runs a case.
    ///
    /// # Errors
    /// Each failure, but no more than the first few.
    pub fn run(&mut self, case: &ServerCase, requirement: &str) -> Result<Remark, Vec<Failure>> {
        self.ensure_running().map_err(|failure| vec![*failure])?;
        match case {
            ServerCase::By(run) => run(self).map_err(|failure| {
                let failure = self.with_crash(failure);
                vec![self.finish(*failure, requirement)]
            }),
            ServerCase::Talks(talks) => self.hold_all(talks(), requirement),
        }
    }

    /// Runs the conversations of some vectors.
    ///
    /// # Errors
    /// Each failure, but no more than the first few.
    pub fn run_vectors(&mut self, patterns: &[&str], requirement: &str) -> Result<Remark, Vec<Failure>> {
        self.ensure_running().map_err(|failure| vec![*failure])?;
        let talks = vectors(Receiver::Server, patterns).map(|vector| Talk {
            name: vector.name.clone(),
            sends: vector.segments(),
            expected: vector.outcomes().iter().map(Expected::of).collect(),
            end: vector.end(),
        });
        self.hold_all(talks.collect(), requirement)
    }

    fn finish(&mut self, failure: Failure, requirement: &str) -> Failure {
        if matches!(failure.verdict, Verdict::Hang | Verdict::Crash) {
            // What hangs would hang the next case too.
            self.stop();
        }
        failure.or_of(requirement)
    }

    fn hold_all(&mut self, talks: Vec<Talk>, requirement: &str) -> Result<Remark, Vec<Failure>> {
        let (mut failures, mut remark) = (Vec::new(), Remark::Pass);
        'all: for talk in talks {
            let mut variants: Vec<(Cut, bool)> = Cut::ALL.map(|cut| (cut, false)).to_vec();
            if talk.end == End::BetweenFrames && talk.expected.len() < 100 {
                variants.push((Cut::Whole, true));
                variants.push((Cut::Fields, true));
            }
            for (cut, neighbours) in variants {
                let variant = if neighbours { talk.clone().between_neighbours() } else { talk.clone() };
                match self.hold(&variant, cut) {
                    Ok(Remark::Pass) => {}
                    Ok(other) => remark = other,
                    Err(mut failure) => {
                        let between = if neighbours { ", between two other requests" } else { "" };
                        failure.variant = format!("{}, {}{between}", talk.name, cut.name());
                        failures.push(self.finish(*failure, requirement));
                        if failures.len() == crate::case::MAX_FAILURES || self.ensure_running().is_err() {
                            break 'all;
                        }
                    }
                }
            }
        }
        if failures.is_empty() { Ok(remark) } else { Err(failures) }
    }

    /// Holds a conversation.
    ///
    /// # Errors
    /// Another answer came than has to come, or none, or the connection did not end as it has to.
    pub fn hold(&mut self, talk: &Talk, cut: Cut) -> Told {
        const SENT: usize = 16 * 1024;
        let mut connection = self.connect()?;
        let writes = cut.writes(&talk.sends);
        let result = self.exchange(&mut connection, talk, writes);
        result.map_err(|mut failure| {
            let sent = talk.sends.iter().flat_map(|segment| segment.bytes.iter().copied());
            failure.sent = sent.take(SENT).collect();
            failure.received = std::mem::take(&mut connection.received);
            self.with_crash(failure)
        })
    }

    fn exchange(&mut self, connection: &mut Connection, talk: &Talk, writes: Vec<Vec<u8>>) -> Told {
        /// Of so many requests at once, some may well find the queue full (W1-CON-007).
        const MANY: usize = 32;
        let mut remark = Remark::Pass;
        let mut missing = talk.expected.clone();
        let writer = connection.write_beside(writes, self.patience, talk.end == End::InsideAFrame)?;
        let result = (|| {
            while !missing.is_empty() {
                match connection.receive()? {
                    Came::Answer(answer) => {
                        if let Some(note) = self.take(&answer, &mut missing)?
                            && talk.expected.len() < MANY
                        {
                            remark = Remark::Warn(note);
                        }
                    }
                    // A server that gives a stream up may leave requests without an answer (W1-CON-002).
                    Came::Close if talk.end == End::Closed && missing.iter().all(Expected::is_image) => {
                        return Ok(true);
                    }
                    Came::Close => {
                        return Err(Box::new(Failure::new(
                            if talk.end == End::Closed { "W1-CON-002" } else { "W1-CON-005" },
                            format!("the server closed the connection; missing: {}", list(&missing)),
                            list(&talk.expected),
                        )));
                    }
                }
            }
            Ok(false)
        })();
        if result.is_err() {
            // Whoever waits for the writer would wait for the server.
            connection.stream.close();
        }
        let _ = writer.join();
        if result? {
            return Ok(remark);
        }
        match talk.end {
            End::BetweenFrames => self.barrier(connection)?,
            End::Closed | End::InsideAFrame => match connection.receive()? {
                Came::Close => {}
                Came::Answer(answer) => return Err(unexpected(&answer)),
            },
        }
        Ok(remark)
    }

    /// Ticks an answer off. Says so if it is not what a client hopes for.
    fn take(&mut self, answer: &Answer, missing: &mut Vec<Expected>) -> Result<Option<String>, Box<Failure>> {
        if let Some(at) = missing.iter().position(|expected| answer.is(expected)) {
            let expected = missing.swap_remove(at);
            self.look_at_pixels(answer)?;
            return Ok(match (answer, expected) {
                (Answer::Error { code, .. }, Expected::Image { .. }) => {
                    Some(format!("a request that can be served was answered with {}", code_name(*code)))
                }
                _ => None,
            });
        }
        match missing.iter().find(|expected| expected.id() == answer.id()) {
            Some(expected) => {
                Err(Box::new(Failure::new("", format!("the answer is {answer}"), expected.to_string())))
            }
            None if missing.len() == 1 => Err(Box::new(Failure::new(
                match answer {
                    Answer::Image { .. } => "W1-RSP-001",
                    Answer::Error { .. } => "W1-ERR-001",
                },
                format!("the answer is {answer}"),
                list(missing),
            ))),
            None => Err(unexpected(answer)),
        }
    }

    /// Once a server has drawn the checkerboard, all of its images have to be one.
    fn look_at_pixels(&mut self, answer: &Answer) -> Result<(), Box<Failure>> {
        let Answer::Image { id, width, height, channels, data, .. } = answer else { return Ok(()) };
        if self.checkerboard == Some(false) {
            return Ok(());
        }
        let is_one = *data == checkerboard(*width, *height, *channels);
        match self.checkerboard {
            None => self.checkerboard = Some(is_one),
            Some(_) if !is_one => {
                return Err(Box::new(Failure::new(
                    "W1-CON-006",
                    format!("the pixels of request {id} are not the checkerboard, which others were"),
                    "the same picture each time",
                )));
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Proves that a connection lives, and that nothing else comes on it: the answer to one more request is next.
    ///
    /// # Errors
    /// Something else came.
    pub fn barrier(&mut self, connection: &mut Connection) -> Result<(), Box<Failure>> {
        const ID: u64 = 0xB0BA_0000_0000_000F;
        connection.write(&Draft::request(ID, "is it still there?").bytes());
        match connection.receive()? {
            Came::Answer(answer) if answer.is(&Expected::small_image(ID)) => self.look_at_pixels(&answer),
            Came::Answer(answer) => Err(unexpected(&answer)),
            Came::Close => Err(Box::new(Failure::new(
                "W1-CON-005",
                "the server closed a connection that has to live on",
                "the answer to one more request",
            ))),
        }
    }

    /// Proves that the server still serves others.
    ///
    /// # Errors
    /// It doesn't.
    pub fn still_serves(&mut self) -> Result<(), Box<Failure>> {
        let mut connection = self.connect()?;
        self.barrier(&mut connection).map_err(|failure| self.with_crash(failure))
    }

    /// The answers to some frames on a connection of their own.
    ///
    /// # Errors
    /// Fewer came.
    pub fn ask(&mut self, frames: &[Draft]) -> Result<Vec<Answer>, Box<Failure>> {
        let mut connection = self.connect()?;
        let bytes: Vec<u8> = frames.iter().flat_map(Draft::bytes).collect();
        let writer = connection.write_beside(vec![bytes], self.patience, false)?;
        let mut answers = Vec::new();
        while answers.len() < frames.len() {
            match connection.receive() {
                Ok(Came::Answer(answer)) => answers.push(answer),
                Ok(Came::Close) => {
                    let failure = Failure::new("W1-CON-002", "the server closed the connection", "an answer");
                    return Err(self.with_crash(Box::new(failure)));
                }
                Err(failure) => {
                    connection.stream.close();
                    return Err(self.with_crash(failure));
                }
            }
        }
        let _ = writer.join();
        Ok(answers)
    }
}

fn unexpected(answer: &Answer) -> Box<Failure> {
    Box::new(Failure::new(
        "W1-CON-002",
        format!("an answer that nobody asked for: {answer}"),
        "one answer to each request",
    ))
}

fn list(expected: &[Expected]) -> String {
    const SHOWN: usize = 5;
    let mut text = String::new();
    for one in expected.iter().take(SHOWN) {
        let _ = write!(text, "{}{one}", if text.is_empty() { "" } else { "; " });
    }
    match expected.len() {
        0 => "nothing".to_owned(),
        n if n > SHOWN => format!("{text}; and {} more", n - SHOWN),
        _ => text,
    }
}
