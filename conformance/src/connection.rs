//! A connection to a server: frames are read from it, and checked for all that holds for every answer.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::secret::{PROMPT, part_of_prompt_in};
use crate::talk::Expected;
use crate::testee::Stream;
use crate::verdict::{Failure, Verdict};
use crate::wire::{
    CODES, Expectation, HEADER_LEN, MAX_RESPONSE_PAYLOAD, Receiver, TYPE_RESPONSE, code, code_name, read,
};

/// A connection to the server.
pub struct Connection {
    stream: Stream,
    terms: Terms,
    /// When waiting began for what is read now.
    began: Instant,
    /// Until when all has to be there, instead of each answer within the patience of the terms.
    deadline: Option<Instant>,
    /// How much is read at once.
    at_most: usize,
    /// The beginnings of all frames that came.
    received: Vec<u8>,
    /// Whether a frame has come.
    answered: bool,
    /// The beginning of a frame, if it was waited for.
    ahead: Vec<u8>,
    was_reset: bool,
    /// Whether BUSY for request 0 is an answer like others.
    busy_is_an_answer: bool,
}

/// What the connections to one server have in common.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How long nothing may come, on any of them.
    pub patience: Duration,
    /// When an answer came last.
    pub progress: Progress,
    /// How many are open: so many clones there are.
    pub open: Arc<()>,
    /// Whether an end waits for the server's, so that its place is free by then.
    pub in_order: bool,
}

/// When an answer came last, on any connection to a server: as long as some come, it is slow and not stuck.
#[derive(Clone, Debug)]
pub struct Progress(Arc<Mutex<Instant>>);

impl Progress {
    /// As if an answer had come just now.
    #[must_use]
    pub fn begin() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn mark(&self) {
        if let Ok(mut last) = self.0.lock() {
            *last = Instant::now();
        }
    }

    /// The later of `began` and the last answer.
    fn since(&self, began: Instant) -> Instant {
        self.0.lock().map_or(began, |last| began.max(*last))
    }
}

/// What becomes of our direction when all is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterWriting {
    /// More may be written.
    Go,
    /// It ends.
    End,
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

    /// Whether this answer is the one that has to come.
    #[must_use]
    pub fn is(&self, expected: &Expected) -> bool {
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

impl Answer {
    /// What a client reads in a frame.
    fn read(frame: &[u8]) -> Result<Self, Box<Failure>> {
        let (mut expectations, _) = read(Receiver::Client, frame);
        let Some(expectation) = expectations.pop() else {
            return wrong("W1-HDR-003", "no frame".to_owned(), "a frame");
        };
        match expectation {
            Expectation::Response { trailing: n @ 1.., .. } => {
                wrong("W1-RSP-012", format!("{n} bytes follow image_data"), "none in version 1")
            }
            Expectation::Error { trailing: n @ 1.., .. } => {
                wrong("W1-ERR-012", format!("{n} bytes follow error_msg"), "none in version 1")
            }
            Expectation::Response { fields, image_data, .. } => Ok(Self::Image {
                id: fields.get("request_id"),
                time: fields.get("generation_time_ms"),
                width: fields.get("image_width"),
                height: fields.get("image_height"),
                channels: fields.get("channels"),
                data: image_data,
            }),
            Expectation::Error { fields, message, .. } => Ok(Self::Error {
                id: fields.get("request_id"),
                code: fields.get("error_code"),
                status: fields.get("status"),
                message,
            }),
            Expectation::Close { because, field } => {
                let requirement = match field {
                    // A request is answered with a response or an error, which this is not.
                    "msg_type" => "W1-CON-002",
                    "status" if because == "W1-ERR-007" => "W1-ERR-002",
                    "image_width" | "image_height" => "W1-RSP-002",
                    "channels" => "W1-RSP-009",
                    "version" => "W1-HDR-002",
                    "status" | "image_data_len" => "W1-RSP-004",
                    _ => "W1-HDR-003",
                };
                wrong(requirement, format!("{field} of an answer is wrong"), "a response or an error")
            }
            Expectation::Request { .. } | Expectation::Answer { .. } => unreachable!("those are a server's"),
        }
    }

    /// What holds for every answer, besides what a client checks.
    fn check(&self, version: u64) -> Result<(), Box<Failure>> {
        let Self::Error { code: number, status, message, .. } = self else { return Ok(()) };
        if version != 1 {
            let problem = format!("an answer has the version {version}");
            return if *number == code("UNSUPPORTED_VERSION") {
                wrong("W1-VER-003", problem, "1, the highest that the server speaks")
            } else {
                wrong("W1-VER-002", problem, "1, as the request has")
            };
        }
        match CODES.iter().find(|(known, ..)| known == number) {
            Some((_, name, must_be)) if must_be != status => {
                return wrong("W1-ERR-002", format!("{name} has the status {status}"), &must_be.to_string());
            }
            Some(_) => {}
            None => return wrong("W1-ERR-013", format!("error_code is {number}"), "one of the table"),
        }
        if message.len() > 255 {
            return wrong("W1-ERR-003", format!("error_msg has {} bytes", message.len()), "at most 255");
        }
        if let Err(error) = std::str::from_utf8(message) {
            return wrong("W1-ERR-011", format!("error_msg is not UTF-8: {error}"), "UTF-8");
        }
        if message.ends_with(&[0]) {
            return wrong("W1-ERR-011", "error_msg ends with a byte 0".to_owned(), "no byte 0 at its end");
        }
        if let Some(part) = part_of_prompt_in(message, 3) {
            let problem = format!("error_msg has {part} of the prompt {PROMPT:?} in it");
            return wrong("W1-ERR-005", problem, "nothing of a prompt");
        }
        Ok(())
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

/// Which part of a frame is read.
#[derive(Clone, Copy)]
enum Part {
    Beginning,
    Rest,
}

fn wrong<T>(requirement: &str, problem: String, expected: &str) -> Result<T, Box<Failure>> {
    Err(Box::new(Failure::new(requirement, problem, expected)))
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl Connection {
    /// A connection on these terms.
    #[must_use]
    pub fn new(stream: Stream, terms: Terms) -> Self {
        stream.set_timeout(terms.patience);
        Self {
            stream,
            terms,
            began: Instant::now(),
            deadline: None,
            at_most: usize::MAX,
            received: Vec::new(),
            answered: false,
            ahead: Vec::new(),
            was_reset: false,
            busy_is_an_answer: false,
        }
    }

    /// Writes all of it; an error is no failure here, since a server may close what it has given up.
    pub fn write(&mut self, bytes: &[u8]) {
        write_all(&mut self.stream, bytes, &self.terms.progress, self.terms.patience);
    }

    /// Writes on a thread of its own, so that answers can be read meanwhile; then does with our direction as
    /// told.
    ///
    /// # Errors
    /// The system gives no second handle to the connection.
    pub fn write_beside(
        &self,
        writes: Vec<Vec<u8>>,
        then: AfterWriting,
    ) -> Result<thread::JoinHandle<()>, Box<Failure>> {
        let mut half = self.stream.try_clone().map_err(|error| {
            Box::new(Failure::new("", error.to_string(), "a second handle").with(Verdict::Harness))
        })?;
        let (progress, patience) = (self.terms.progress.clone(), self.terms.patience);
        Ok(thread::spawn(move || {
            for write in writes {
                if !write_all(&mut half, &write, &progress, patience) {
                    break;
                }
            }
            if then == AfterWriting::End {
                half.end_writing();
            }
        }))
    }

    /// Ends our direction.
    pub fn end_writing(&self) {
        self.stream.end_writing();
    }

    /// Ends both directions, so that a thread that still writes comes back.
    pub fn close(&self) {
        self.stream.close();
    }

    /// The beginnings of all frames that came, which are forgotten with this.
    pub fn take_received(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.received)
    }

    /// Ends the connection with a reset where the system can do that.
    pub fn reset(mut self) {
        self.terms.in_order = false;
        if let Ok(handle) = self.stream.try_clone() {
            handle.reset();
        }
    }

    /// Ends the connection without a word, whatever is under way on it.
    pub fn abandon(mut self) {
        self.terms.in_order = false;
    }

    /// From now on BUSY for request 0 is an answer like others, and not one to the connection.
    pub const fn take_busy_as_an_answer(&mut self) {
        self.busy_is_an_answer = true;
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
        self.began = Instant::now();
        self.fill(&mut vec![0; count], Part::Beginning).map(drop)
    }

    /// Waits until an answer begins. Returns whether it is an image, as far as its header says.
    ///
    /// # Errors
    /// None came.
    pub fn await_beginning(&mut self) -> Result<bool, Box<Failure>> {
        self.began = Instant::now();
        let mut header = vec![0; HEADER_LEN];
        let n = self.fill(&mut header, Part::Beginning)?;
        header.truncate(n);
        self.ahead = header;
        Ok(self.ahead.get(6..8).is_some_and(|msg_type| big_endian(msg_type) == TYPE_RESPONSE))
    }

    /// What comes within so much time; `None` if nothing does, which is no failure here.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn wait(&mut self, time: Duration) -> Result<Option<Came>, Box<Failure>> {
        let before = self.deadline.replace(Instant::now() + time);
        let came = self.receive();
        self.deadline = before;
        match came {
            Ok(came) => Ok(Some(came)),
            Err(failure) if failure.problem == NO_ANSWER => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Whether the connection has ended with a reset.
    #[must_use]
    pub const fn was_reset(&self) -> bool {
        self.was_reset
    }

    /// Gives all that follows time until `deadline`, instead of each answer its own.
    pub const fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// Reads a frame and checks all that holds for every frame of a server's.
    ///
    /// # Errors
    /// What is wrong with it, or that nothing came.
    pub fn receive(&mut self) -> Result<Came, Box<Failure>> {
        let Some(frame) = self.read_frame()? else { return Ok(Came::Close) };
        let number = |at: usize, size: usize| big_endian(&frame[at..at + size]);
        let (version, reserved) = (number(4, 2), number(12, 4));
        if reserved != 0 {
            return wrong("W1-HDR-004", format!("reserved of an answer is {reserved}"), "0");
        }
        let answer = Answer::read(&frame)?;
        answer.check(version)?;
        self.terms.progress.mark();
        let is_first = !std::mem::replace(&mut self.answered, true);
        if is_first && !self.busy_is_an_answer && answer.is(&Expected::error(0, "BUSY")) {
            return Err(self.no_place());
        }
        Ok(Came::Answer(answer))
    }

    /// After BUSY for request 0 a close has to follow.
    fn no_place(&mut self) -> Box<Failure> {
        let mut failure = Failure::new(
            "W1-CON-008",
            "the server has no place for the connection (BUSY for request 0, and a close)",
            "a place",
        );
        failure.no_place = matches!(self.read_frame(), Ok(None));
        if !failure.no_place {
            "BUSY for request 0, and no close".clone_into(&mut failure.problem);
            "a close".clone_into(&mut failure.expected);
        }
        Box::new(failure)
    }

    fn until(&self) -> Instant {
        self.deadline.unwrap_or_else(|| self.terms.progress.since(self.began) + self.terms.patience)
    }

    /// Reads the bytes of a frame; `None` if the server closed before it began.
    fn read_frame(&mut self) -> Result<Option<Vec<u8>>, Box<Failure>> {
        self.began = Instant::now();
        let mut frame = std::mem::take(&mut self.ahead);
        let ahead = frame.len();
        frame.resize(HEADER_LEN, 0);
        match ahead + self.fill(&mut frame[ahead..], Part::Beginning)? {
            0 => return Ok(None),
            HEADER_LEN => {}
            n => return Err(self.cut_off(&frame[..n])),
        }
        let payload_len = big_endian(&frame[8..12]);
        if &frame[..4] != b"WEVE" {
            self.note(&frame);
            return wrong("W1-HDR-001", "an answer does not begin with the magic".to_owned(), "a frame");
        }
        if payload_len > MAX_RESPONSE_PAYLOAD {
            self.note(&frame);
            let problem = format!("payload_len of an answer is {payload_len}");
            return wrong("W1-HDR-003", problem, "at most 16,777,248");
        }
        frame.resize(HEADER_LEN + usize::try_from(payload_len).unwrap_or(usize::MAX), 0);
        let n = self.fill(&mut frame[HEADER_LEN..], Part::Rest)?;
        if n < frame.len() - HEADER_LEN {
            return Err(self.cut_off(&frame[..HEADER_LEN + n]));
        }
        self.note(&frame);
        Ok(Some(frame))
    }

    /// Reads until the buffer is full or the stream ends.
    fn fill(&mut self, buf: &mut [u8], part: Part) -> Result<usize, Box<Failure>> {
        /// So much of an image is progress as well.
        const PROGRESS: usize = 64 * 1024;
        let mut n = 0;
        while n < buf.len() {
            self.stream.set_timeout(self.until().saturating_duration_since(Instant::now()));
            let end = buf.len().min(n.saturating_add(self.at_most));
            match self.stream.read(&mut buf[n..end]) {
                Ok(0) => break,
                Ok(more) => {
                    if n / PROGRESS < (n + more) / PROGRESS {
                        self.began = Instant::now();
                    }
                    n += more;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if has_waited(&error) && Instant::now() < self.until() => {}
                Err(error) if has_waited(&error) => {
                    let what = match (part, n) {
                        (Part::Beginning, 0) => NO_ANSWER,
                        _ => "an answer stopped in its middle",
                    };
                    self.note(&buf[..n]);
                    return Err(Box::new(Failure::new("", what, "an answer").with(Verdict::Hang)));
                }
                // A reset is an end as well.
                Err(_) => {
                    self.was_reset = true;
                    break;
                }
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

/// A bounded server counts the connection until it has seen its end.
impl Drop for Connection {
    fn drop(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        if self.terms.in_order {
            self.end_writing();
            self.set_deadline(Instant::now() + PATIENCE);
            let mut rest = vec![0; 64 * 1024];
            while self.fill(&mut rest, Part::Rest).is_ok_and(|n| n > 0) {}
        }
    }
}

const NO_ANSWER: &str = "no answer came";

/// Whether a read or a write came back because of its timeout.
fn has_waited(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Whether all of it could be written, with no more than so much time between two pieces or answers.
fn write_all(stream: &mut Stream, mut bytes: &[u8], progress: &Progress, patience: Duration) -> bool {
    let mut began = Instant::now();
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return false,
            Ok(n) => {
                bytes = &bytes[n..];
                began = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if has_waited(&error) && Instant::now() < progress.since(began) + patience => {}
            Err(_) => return false,
        }
    }
    true
}
