//! Tests of a client: the suite listens, starts the client, reads its request, and answers.
//!
//! A client is a command of the shell with `{address}` in it. It asks for one image of 64×64 pixels, and ends
//! with exit status 0 if it got the image and with another one if it did not. If the server answered with an
//! error, it prints the error's message.
//!
//! The suite's own side keeps to the rules of a server wherever a case does not break one on purpose. It takes
//! any number of connections, answers each request on them alike, goes on writing to a client that has ended
//! its own direction (W1-CON-010), and reads until the client is gone, so that nothing is lost in a reset.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::draft::{Cut, Draft, Segment};
use crate::spec::{Vector, vectors};
use crate::testee::{Folder, Listener, Output, Process, START_TIMEOUT, Stream, how_it_ended, signal_of};
use crate::verdict::{Failure, MAX_FAILURES, Remark, Told, Verdict};
use crate::wire::{End, Expectation, HEADER_LEN, MAX_REQUEST_PAYLOAD, Receiver, code, read};

/// How a client case is run.
#[derive(Clone, Copy)]
pub enum ClientCase {
    /// Looks at the request: its bytes, and what the suite's own reader makes of them.
    Request(fn(&[u8], &Expectation) -> Told),
    /// Looks at the ids of several requests that are sent at once.
    Ids(fn(&[u64]) -> Told),
    /// Answers, each to a client of its own.
    Scenes(fn(u64) -> Vec<Scene>),
    /// Answers, each to a client of its own that sends several requests at once.
    Several(fn(&[u64]) -> Vec<Scene>),
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
    /// Ends its own direction, and reads until the client has closed.
    Close,
}

/// What a client has to make of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It has its image.
    Image,
    /// It has its image, and has asked for it once.
    OneImage,
    /// It has an error, and prints its message.
    Error(Message),
    /// It has no image, for whatever reason.
    NoImage,
    /// It closes the connection and has no image.
    Close,
    /// It ends, in whatever way but a crash.
    Anything,
}

/// An error's message, and what has to be seen of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    bytes: Vec<u8>,
    /// In this order.
    parts: Vec<String>,
    /// What a terminal may get of its control characters.
    harmless: &'static str,
}

impl Message {
    /// Of which the beginning has to be printed: up to the first character that a client may show otherwise.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        const SHOWN: usize = 60;
        let text = String::from_utf8_lossy(bytes);
        let plain: String =
            text.chars().take_while(|c| c.is_ascii_graphic() || *c == ' ').take(SHOWN).collect();
        Self { bytes: bytes.to_vec(), parts: vec![plain.trim().to_owned()], harmless: "\n\t" }
    }

    /// Of which these parts have to be printed, and no control character at all.
    #[must_use]
    pub fn escaped(bytes: &[u8], parts: &[&str]) -> Self {
        let parts = parts.iter().map(|part| (*part).to_owned()).collect();
        Self { bytes: bytes.to_vec(), parts, harmless: "" }
    }

    /// The part that a client has not printed.
    fn missing(&self, mut said: &str) -> Option<&str> {
        for part in &self.parts {
            match spellings(part).iter().find_map(|text| Some(said.find(text.as_str())? + text.len())) {
                Some(end) => said = &said[end..],
                None => return Some(part),
            }
        }
        None
    }

    /// A control character that a client has printed as it came. Colours and the like of the client's own are
    /// told from it by the characters beside it.
    fn obeyed(&self, said: &str) -> Option<char> {
        const NEIGHBOURS: usize = 4;
        let message: Vec<char> = String::from_utf8_lossy(&self.bytes).chars().collect();
        message.windows(NEIGHBOURS.min(message.len()).max(1)).find_map(|window| {
            let control = window.iter().find(|c| c.is_control() && !self.harmless.contains(**c))?;
            said.contains(&window.iter().collect::<String>()).then_some(*control)
        })
    }
}

/// How programs write a text whose characters their output may not have: as it is, and with escapes.
fn spellings(text: &str) -> [String; 5] {
    let escaped = |escape: &dyn Fn(char) -> String| -> String {
        text.chars().map(|c| if c.is_ascii() { c.to_string() } else { escape(c) }).collect()
    };
    let utf16 = |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect();
    [
        text.to_owned(),
        escaped(&|c| c.escape_unicode().to_string()),
        escaped(&utf16),
        escaped(&|c| match u32::from(c) {
            short @ ..0x100 => format!("\\x{short:02x}"),
            medium @ ..0x1_0000 => format!("\\u{medium:04x}"),
            long => format!("\\U{long:08x}"),
        }),
        escaped(&|c| c.encode_utf8(&mut [0; 4]).bytes().map(|byte| format!("\\x{byte:02x}")).collect()),
    ]
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image => f.write_str("exit status 0: the client has its image"),
            Self::OneImage => f.write_str("exit status 0 after one request"),
            Self::Error(message) => {
                write!(f, "another exit status than 0, and of the error's message {:?}", message.parts)
            }
            Self::NoImage => f.write_str("another exit status than 0"),
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

/// How many requests a client sends that sends several at once.
const SEVERAL: usize = 5;
/// How often a client that tries again may ask for an image, in a scene. "A few times at most", says section 6.
const MAX_ASKS: usize = 12;
/// What a client may send in a scene: far more than so many requests of ordinary prompts have.
const MAX_RECEIVED: usize = 1 << 20;
/// What is kept of the bytes for a report.
const MAX_REPORTED: usize = 4096;
/// How often the client's process is looked at while nothing comes.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// A client under test.
#[derive(Debug)]
pub struct Client {
    command: String,
    /// A command with `{count}` in it as well.
    several: Option<String>,
    folder: Folder,
    tcp: bool,
    timeout: Duration,
    /// Whether it has ever connected.
    works: Cell<bool>,
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
        Self { command, several, folder, tcp, timeout, works: Cell::new(false) }
    }

    /// Runs a case of this module.
    ///
    /// # Errors
    /// Each failure, but no more than the first few.
    pub fn run(&self, case: ClientCase, requirement: &str) -> Result<Remark, Vec<Failure>> {
        // A client's ids are not known before it asks; the scenes' number and names are the same for all ids.
        match case {
            ClientCase::Request(look) => self.look(look).map_err(|failure| vec![failure.or_of(requirement)]),
            ClientCase::Ids(look) => {
                let Some(command) = &self.several else { return Ok(no_several()) };
                let told = self.meet(command, SEVERAL, |meeting| {
                    let requests = meeting.requests()?;
                    look(&requests.iter().map(|bytes| id_of(bytes)).collect::<Vec<_>>())
                });
                told.map_err(|failure| vec![failure.or_of(requirement)])
            }
            ClientCase::Scenes(scenes) => {
                let count = scenes(0).len();
                self.play_all(&self.command, 1, count, requirement, |n, ids| scenes(ids[0]).swap_remove(n))
            }
            ClientCase::Several(scenes) => {
                let Some(command) = &self.several else { return Ok(no_several()) };
                let count = scenes(&[0; SEVERAL]).len();
                self.play_all(command, SEVERAL, count, requirement, |n, ids| scenes(ids).swap_remove(n))
            }
        }
    }

    /// Has the client get the answers of some vectors.
    ///
    /// # Errors
    /// Each failure, but no more than the first few.
    pub fn run_vectors(&self, patterns: &[&str], requirement: &str) -> Result<Remark, Vec<Failure>> {
        let usable: Vec<_> = vectors(Receiver::Client, patterns).filter_map(of_vector).collect();
        self.play_all(&self.command, 1, usable.len(), requirement, |n, ids| {
            with_id(usable[n].clone(), ids[0])
        })
    }

    /// Looks at the client's one request, and at each of several.
    fn look(&self, look: fn(&[u8], &Expectation) -> Told) -> Told {
        let commands = [(Some(&self.command), 1), (self.several.as_ref(), SEVERAL)];
        let mut told = Remark::Pass;
        for (command, count) in commands.into_iter().filter_map(|(command, count)| Some((command?, count))) {
            let remark = self.meet(command, count, |meeting| {
                let mut told = Remark::Pass;
                for bytes in meeting.requests()? {
                    let remark = look(&bytes, &expectation(&bytes)).map_err(|mut failure| {
                        failure.received = bytes;
                        failure
                    })?;
                    if told == Remark::Pass {
                        told = remark;
                    }
                }
                Ok(told)
            })?;
            if told == Remark::Pass {
                told = remark;
            }
        }
        Ok(told)
    }

    /// Plays so many scenes, each in all ways to cut it.
    fn play_all(
        &self,
        command: &str,
        requests: usize,
        count: usize,
        requirement: &str,
        scene: impl Fn(usize, &[u64]) -> Scene,
    ) -> Result<Remark, Vec<Failure>> {
        let mut failures = Vec::new();
        for n in 0..count {
            let Scene { name, wanted, .. } = scene(n, &[0; SEVERAL]);
            // What is refused is refused however it comes, as a text is shown; and several answers are long
            // enough as they are.
            let cuts: &[Cut] = match &wanted {
                Wanted::Error(message) if message.harmless.is_empty() => &[Cut::Whole],
                Wanted::Image | Wanted::Error(_) if requests == 1 => &Cut::ALL,
                _ => &[Cut::Whole],
            };
            for cut in cuts {
                let played = self.meet(command, requests, |meeting| meeting.play(*cut, |ids| scene(n, ids)));
                match played {
                    Ok(Remark::Skip(reason)) => return Ok(Remark::Skip(reason)),
                    Ok(_) => {}
                    Err(mut failure) => {
                        failure.variant = format!("{name}, {}", cut.name());
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

    /// Starts the client; what then fails is reported with the bytes of both sides.
    fn meet(&self, command: &str, count: usize, then: impl FnOnce(&mut Meeting) -> Told) -> Told {
        let listener = Listener::new(&self.folder, self.tcp).map_err(harness)?;
        let address = listener.address().map_err(harness)?;
        let command = command.replace("{count}", &count.to_string());
        let process =
            Process::start(&command, Some(&address), Stdio::null(), Output::Kept).map_err(harness)?;
        let began = Instant::now();
        let mut meeting = Meeting {
            listener,
            process,
            lines: Vec::new(),
            count,
            timeout: self.timeout,
            progress: began,
            // Whatever a client does to look busy.
            limit: began + START_TIMEOUT + 6 * self.timeout,
        };
        let told = then(&mut meeting);
        self.works.set(self.works.get() || !meeting.lines.is_empty());
        told.map_err(|mut failure| {
            // Nothing is known of a program that can't even be started.
            if !self.works.get() {
                failure.verdict = Verdict::Harness;
                failure.problem = format!("{command}: {}", failure.problem);
            }
            let beginning = |of: fn(&Line) -> &[u8]| -> Vec<u8> {
                meeting.lines.iter().flat_map(of).copied().take(MAX_REPORTED).collect()
            };
            if failure.received.is_empty() {
                failure.received = beginning(|line| &line.received);
            }
            failure.sent = beginning(|line| &line.sent);
            failure
        })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn harness(error: std::io::Error) -> Box<Failure> {
    Box::new(Failure::new("", error.to_string(), "a place to listen").with(Verdict::Harness))
}

fn no_several() -> Remark {
    Remark::NotApplicable("there is no --exec-several".to_owned())
}

/// A connection of the client's.
struct Line {
    stream: Stream,
    /// All that came.
    received: Vec<u8>,
    /// How much of it was frames.
    taken: usize,
    /// The requests that have been answered.
    answered: usize,
    /// The beginning of what was sent.
    sent: Vec<u8>,
    /// The writes that are due, and how much of the first is done.
    unsent: VecDeque<Vec<u8>>,
    done: usize,
    then: Then,
    /// The client sends nothing any more.
    is_ended: bool,
    /// The client has closed, or both directions are at their end.
    is_gone: bool,
    /// We send nothing any more.
    is_closed: bool,
}

impl Line {
    fn new(stream: Stream) -> std::io::Result<Self> {
        match &stream {
            Stream::Unix(stream) => stream.set_nonblocking(true)?,
            Stream::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
            }
        }
        Ok(Self {
            stream,
            received: Vec::new(),
            taken: 0,
            answered: 0,
            sent: Vec::new(),
            unsent: VecDeque::new(),
            done: 0,
            then: Then::Wait,
            is_ended: false,
            is_gone: false,
            is_closed: false,
        })
    }

    /// What to wait for; `None` if nothing can happen any more.
    fn flags(&self) -> Option<PollFlags> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, !self.is_ended);
        flags.set(PollFlags::OUT, !self.unsent.is_empty());
        (!self.is_gone).then_some(flags)
    }

    /// Reads what is there. Says whether anything was.
    fn read(&mut self) -> Result<bool, Box<Failure>> {
        let mut buf = [0; 16 * 1024];
        let mut some = false;
        while !self.is_ended {
            match self.stream.read(&mut buf) {
                Ok(0) => self.is_ended = true,
                Ok(n) => self.received.extend(&buf[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => (self.is_ended, self.is_gone) = (true, true),
            }
            some = true;
            if self.received.len() > MAX_RECEIVED {
                return Err(Box::new(Failure::new("", "the client sends without end", "a request")));
            }
        }
        Ok(some)
    }

    /// Writes what there is room for. Says whether there was any.
    fn write(&mut self) -> bool {
        let mut some = false;
        while let (false, Some(first)) = (self.is_gone, self.unsent.front()) {
            match self.stream.write(&first[self.done..]) {
                Ok(n) => {
                    let room = MAX_REPORTED.saturating_sub(self.sent.len());
                    self.sent.extend(first[self.done..self.done + n].iter().take(room));
                    self.done += n;
                    if self.done == first.len() {
                        self.unsent.pop_front();
                        self.done = 0;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The client has closed: with its own direction alone ended, writing would go on.
                Err(_) => self.is_gone = true,
            }
            some = true;
        }
        some
    }

    /// The next frame, if it is there as a whole.
    fn frame(&mut self) -> Result<Option<Vec<u8>>, Box<Failure>> {
        let rest = &self.received[self.taken..];
        let Some(header) = rest.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        // If that is not the client under test, it is somebody who has found the port first.
        let origin = self.stream.origin();
        if !header.starts_with(b"WEVE") {
            let what = if self.taken == 0 { "what came" } else { "what came after a request" };
            let problem = format!("{what} does not begin with the magic{origin}");
            return Err(Box::new(Failure::new("W1-HDR-001", problem, "a request")));
        }
        let len = header[8..12].iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        if len > MAX_REQUEST_PAYLOAD {
            let problem = format!("the payload of a request has {len} bytes{origin}");
            return Err(Box::new(Failure::new("W1-FRM-001", problem, "at most 6,204")));
        }
        let whole = HEADER_LEN + usize::try_from(len).unwrap_or(usize::MAX);
        let Some(frame) = rest.get(..whole).map(<[u8]>::to_vec) else { return Ok(None) };
        self.taken += whole;
        Ok(Some(frame))
    }
}

/// A client at work, and the suite as the server that it has found.
struct Meeting {
    listener: Listener,
    process: Process,
    lines: Vec<Line>,
    /// How many requests the client has to send at once.
    count: usize,
    timeout: Duration,
    /// When anything last happened.
    progress: Instant,
    /// When it has to be over, whatever happens.
    limit: Instant,
}

impl Meeting {
    /// Waits until something happens or could have, and takes part in it.
    fn turn(&mut self) -> Result<(), Box<Failure>> {
        let mut at = Vec::new();
        let mut places = vec![PollFd::from_borrowed_fd(fd(&self.listener), PollFlags::IN)];
        for (n, line) in self.lines.iter().enumerate() {
            if let Some(flags) = line.flags() {
                at.push(n);
                places.push(PollFd::from_borrowed_fd(line_fd(line), flags));
            }
        }
        match poll(&mut places, Some(&TICK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(harness(error.into())),
        }
        let gone = PollFlags::HUP | PollFlags::ERR;
        let hung_up: Vec<bool> = places[1..].iter().map(|place| place.revents().intersects(gone)).collect();
        let mut some = false;
        for (n, hung_up) in at.into_iter().zip(hung_up) {
            let line = &mut self.lines[n];
            some |= line.read()? | line.write();
            // What was in the stream has been read: a client's last words count.
            line.is_gone |= hung_up && line.is_ended;
            if line.is_gone {
                line.unsent.clear();
            }
            let is_due = line.then == Then::Close && line.answered > 0;
            if line.unsent.is_empty() && is_due && !line.is_closed {
                line.is_closed = true;
                line.stream.end_writing();
            }
        }
        while let Some(stream) = self.listener.accept(Instant::now(), || true).map_err(harness)? {
            self.lines.push(Line::new(stream).map_err(harness)?);
            some = true;
        }
        if some {
            self.progress = Instant::now();
        }
        Ok(())
    }

    /// Fails if too much time has passed since anything happened.
    fn check_time(&mut self, wanted: &str) -> Result<(), Box<Failure>> {
        let now = Instant::now();
        let start = if self.lines.is_empty() { START_TIMEOUT } else { Duration::ZERO };
        if now < self.limit && now < self.progress + self.timeout.max(start) {
            return Ok(());
        }
        let asked: usize = self.lines.iter().map(|line| line.answered).sum();
        let problem = match () {
            () if self.lines.is_empty() => {
                format!(
                    "the client did not connect: it still runs; it said last:\n{}",
                    self.process.last_words()
                )
            }
            () if asked == 0 && self.count == 1 => "no whole request came".to_owned(),
            () if asked == 0 => format!("no {} whole requests came on one connection", self.count),
            () if now >= self.limit => "the client comes to no end".to_owned(),
            () if self.lines.iter().any(|line| !line.unsent.is_empty()) => {
                "the client does not read the answer".to_owned()
            }
            () if self.lines.iter().all(|line| line.is_gone) => {
                "the client closed the connection and did not end".to_owned()
            }
            () if self.lines.iter().all(|line| line.is_ended) => {
                "the client ended its own direction, and neither closed the connection nor ended".to_owned()
            }
            () => "the client did not close the connection".to_owned(),
        };
        Err(Box::new(Failure::new("", problem, wanted).with(Verdict::Hang)))
    }

    /// The requests that have to come before the first answer.
    fn requests(&mut self) -> Result<Vec<Vec<u8>>, Box<Failure>> {
        let mut requests: Vec<Vec<Vec<u8>>> = Vec::new();
        loop {
            let ended = self.process.ended();
            self.turn()?;
            requests.resize(self.lines.len(), Vec::new());
            for (line, requests) in self.lines.iter_mut().zip(&mut requests) {
                while let Some(frame) = line.frame()? {
                    requests.push(frame);
                }
                if requests.len() >= self.count {
                    return Ok(std::mem::take(requests));
                }
            }
            if let Some(status) = ended {
                return Err(self.without_request(status));
            }
            self.check_time("a request")?;
        }
    }

    /// That a client has ended before it has asked.
    fn without_request(&mut self, status: ExitStatus) -> Box<Failure> {
        let (how, words) = (how_it_ended(status), self.process.last_words());
        let (requirement, what) = match self.lines.iter().map(|line| line.received.len()).max() {
            None => ("", "the client did not connect"),
            Some(0) => ("", "the client connected and sent nothing: no whole request came"),
            Some(_) if self.count > 1 => ("", "the client sent too few requests"),
            Some(_) => ("W1-HDR-003", "the client ended its request before its end"),
        };
        let problem = format!("{what}: {how}; it said last:\n{words}");
        let verdict = if signal_of(status).is_some() { Verdict::Crash } else { Verdict::Fail };
        Box::new(Failure::new(requirement, problem, "a request").with(verdict))
    }

    /// Answers each request, and looks at what the client makes of it.
    fn play(&mut self, cut: Cut, scene: impl Fn(&[u64]) -> Scene) -> Told {
        let wanted = scene(&[0; SEVERAL]).wanted;
        let is_served =
            matches!(wanted, Wanted::Image | Wanted::OneImage | Wanted::Error(_) | Wanted::NoImage);
        let mut waiting: Vec<Vec<Vec<u8>>> = Vec::new();
        let mut asked = 0;
        let mut ended: Option<(ExitStatus, Instant)> = None;
        let status = loop {
            if ended.is_none() {
                ended = self.process.ended().map(|status| (status, Instant::now()));
            }
            self.turn()?;
            waiting.resize(self.lines.len(), Vec::new());
            for (line, waiting) in self.lines.iter_mut().zip(&mut waiting) {
                while let Some(frame) = line.frame()? {
                    waiting.push(frame);
                }
                // After the first answers a client of several may try again with some of its requests.
                let due = if asked == 0 { self.count } else { 1 };
                while waiting.len() >= due && !line.is_closed {
                    let requests: Vec<Vec<u8>> = waiting.drain(..due).collect();
                    if let Some(reason) = not_usable(&requests, asked) {
                        return Ok(Remark::Skip(reason));
                    }
                    let ids: Vec<u64> = requests.iter().map(|bytes| id_of(bytes)).collect();
                    if due == self.count {
                        let Scene { sends, then, .. } = scene(&ids);
                        line.unsent.extend(cut.writes(&sends).into_iter().filter(|write| !write.is_empty()));
                        line.then = then;
                    } else {
                        let text = match &wanted {
                            Wanted::Error(message) => message.bytes.as_slice(),
                            _ => b"this was answered before",
                        };
                        line.unsent.push_back(Draft::error(ids[0], code("INTERNAL"), text).bytes());
                    }
                    line.answered += due;
                    asked += 1;
                    if asked > MAX_ASKS * self.count {
                        let problem = format!("the client has asked {asked} times, and goes on");
                        return Err(Box::new(Failure::new("", problem, wanted.to_string())));
                    }
                    if due > 1 {
                        break;
                    }
                }
                // A server closes when such a client has its answers (W1-CON-010); where the client has to
                // close, it does not help.
                let is_idle = line.unsent.is_empty() && (line.answered > 0 || line.received.is_empty());
                if line.is_ended && is_idle && is_served && !line.is_closed {
                    line.is_closed = true;
                    line.stream.end_writing();
                }
            }
            let is_over = self.lines.iter().all(|line| line.is_ended || line.is_gone);
            match ended {
                Some((status, _)) if is_over => break status,
                Some((status, since)) if since.elapsed() > self.timeout => {
                    let problem =
                        format!("{}, but something keeps the connection open", how_it_ended(status));
                    return Err(Box::new(Failure::new("", problem, "a close").with(Verdict::Hang)));
                }
                Some(_) => {}
                None => self.check_time(&wanted.to_string())?,
            }
        };
        if asked == 0 {
            return Err(self.without_request(status));
        }
        self.judge(&wanted, status, asked)
    }

    fn judge(&mut self, wanted: &Wanted, status: ExitStatus, asked: usize) -> Told {
        let said = self.process.all_said();
        let ended = format!("{}; it said:\n{}", how_it_ended(status), self.process.last_words());
        let wrong = |requirement: &str, problem: String, verdict: Verdict| {
            Err(Box::new(Failure::new(requirement, problem, wanted.to_string()).with(verdict)))
        };
        if signal_of(status).is_some() {
            return wrong("", ended, Verdict::Crash);
        }
        let has_image = matches!(wanted, Wanted::Image | Wanted::OneImage);
        if *wanted != Wanted::Anything && status.success() != has_image {
            return wrong("", ended, Verdict::Fail);
        }
        let is_served = has_image || matches!(wanted, Wanted::Error(_));
        if is_served && self.lines.iter().any(|line| line.taken < line.received.len()) {
            let problem = "after its request the client sent bytes that are no whole frame".to_owned();
            return wrong("W1-HDR-003", problem, Verdict::Fail);
        }
        match wanted {
            Wanted::OneImage if asked > 1 => {
                wrong("", format!("the client has asked {asked} times"), Verdict::Fail)
            }
            Wanted::Error(message) => {
                if let Some(part) = message.missing(&said) {
                    return wrong("", format!("{part:?} is not in the output: {ended}"), Verdict::Fail);
                }
                if let Some(control) = message.obeyed(&said) {
                    let problem =
                        format!("the client printed error_msg's control character {control:?} as it came");
                    let expected = "an escape, or anything else that a terminal does not obey";
                    return Err(Box::new(Failure::new("W1-ERR-010", problem, expected)));
                }
                Ok(Remark::Pass)
            }
            _ => Ok(Remark::Pass),
        }
    }
}

fn fd(listener: &Listener) -> BorrowedFd<'_> {
    match listener {
        Listener::Unix(listener, _) => listener.as_fd(),
        Listener::Tcp(listener) => listener.as_fd(),
    }
}

fn line_fd(line: &Line) -> BorrowedFd<'_> {
    match &line.stream {
        Stream::Unix(stream) => stream.as_fd(),
        Stream::Tcp(stream) => stream.as_fd(),
    }
}

/// What a server makes of a request, which is a whole frame.
fn expectation(request: &[u8]) -> Expectation {
    match read(Receiver::Server, request) {
        (mut expectations, _) if expectations.len() == 1 => expectations.remove(0),
        (expectations, end) => unreachable!("a frame is read as {expectations:?}, {end:?}"),
    }
}

fn id_of(request: &[u8]) -> u64 {
    match expectation(request) {
        Expectation::Request { fields, .. } => fields.get("request_id"),
        Expectation::Answer { request_id, .. } => request_id,
        _ => 0,
    }
}

/// Why nothing can be said with these requests.
fn not_usable(requests: &[Vec<u8>], asked: usize) -> Option<String> {
    let is_small = |bytes: &Vec<u8>| match expectation(bytes) {
        Expectation::Request { fields, .. } => (fields.get("width"), fields.get("height")) == (64, 64),
        _ => true,
    };
    if asked == 0 && !requests.iter().all(is_small) {
        return Some("the client has to ask for an image of 64×64 pixels".to_owned());
    }
    let mut ids: Vec<u64> = requests.iter().map(|bytes| id_of(bytes)).collect();
    ids.sort_unstable();
    ids.dedup();
    (ids.len() < requests.len()).then(|| "the client's requests have the same ids".to_owned())
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
        Expectation::Error { message, .. } => Wanted::Error(Message::new(message)),
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
