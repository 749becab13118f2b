//! A connection to a server: frames are read from it, and checked for all that holds for every answer.

use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::secret::{PROMPT, part_of_prompt_in};
use crate::talk::Expected;
use crate::testee::Stream;
use crate::verdict::{Failure, Verdict};
use crate::wire::{CODES, Expectation, HEADER_LEN, MAX_RESPONSE_PAYLOAD, Receiver, code, code_name, read};

/// A connection to the server.
pub struct Connection {
    stream: Stream,
    deadline: Instant,
    /// How much is read at once.
    at_most: usize,
    /// The beginnings of all frames that came.
    received: Vec<u8>,
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
            Expectation::Close { because: "W1-ERR-007", .. } => {
                wrong("W1-ERR-002", "status of an error is neither 400 nor 500".to_owned(), "400 or 500")
            }
            Expectation::Close { field: field @ ("image_width" | "image_height"), .. } => wrong(
                "W1-RSP-002",
                format!("{field} of an answer is none that there is"),
                "that of the request",
            ),
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
            Expectation::Close { field, .. } => {
                let requirement = match field {
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
    /// A connection on which answers have to be there by `deadline`.
    #[must_use]
    pub const fn new(stream: Stream, deadline: Instant) -> Self {
        Self { stream, deadline, at_most: usize::MAX, received: Vec::new() }
    }

    /// Writes all of it; an error is no failure here, since a server may close what it has given up.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Writes on a thread of its own, so that answers can be read meanwhile; then does with our direction as
    /// told.
    ///
    /// # Errors
    /// The system gives no second handle to the connection.
    pub fn write_beside(
        &self,
        writes: Vec<Vec<u8>>,
        timeout: Duration,
        then: AfterWriting,
    ) -> Result<thread::JoinHandle<()>, Box<Failure>> {
        let mut half = self.stream.try_clone().map_err(|error| {
            Box::new(Failure::new("", error.to_string(), "a second handle").with(Verdict::Harness))
        })?;
        half.set_timeout(timeout);
        Ok(thread::spawn(move || {
            for write in writes {
                if half.write_all(&write).is_err() {
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
        self.fill(&mut vec![0; count], Part::Beginning).map(drop)
    }

    /// Gives what follows time until `deadline`.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
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
        Ok(Came::Answer(answer))
    }

    /// Reads the bytes of a frame; `None` if the server closed before it began.
    fn read_frame(&mut self) -> Result<Option<Vec<u8>>, Box<Failure>> {
        let mut frame = vec![0; HEADER_LEN];
        match self.fill(&mut frame, Part::Beginning)? {
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
        let mut n = 0;
        while n < buf.len() {
            self.stream.set_timeout(self.deadline.saturating_duration_since(Instant::now()));
            let end = buf.len().min(n.saturating_add(self.at_most));
            match self.stream.read(&mut buf[n..end]) {
                Ok(0) => break,
                Ok(more) => n += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    let what = match (part, n) {
                        (Part::Beginning, 0) => "no answer came",
                        _ => "an answer stopped in its middle",
                    };
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
