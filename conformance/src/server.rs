//! Tests of a server: conversations, each in several variants.
//!
//! A [`Talk`] is what is sent on one connection and what has to come of it. It is held whole, one byte a
//! write, and with a write for each field; and where the connection lives on, also between two other
//! requests, which must not be harmed. That nothing else comes is not waited for: one more request is sent,
//! and its answer must be the next thing.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::connection::{AfterWriting, Answer, Came, Connection, Progress, Terms};
use crate::draft::{Cut, Draft, checkerboard};
use crate::spec::vectors;
use crate::talk::{Expected, Talk, list};
use crate::testee::{Address, Memory, Process, how_it_ended};
use crate::verdict::{Failure, MAX_FAILURES, Remark, Told, Verdict};
use crate::wire::{End, Receiver, code, code_name};

/// How a server case is run.
#[derive(Clone, Copy)]
pub enum ServerCase {
    /// Conversations, in all variants.
    Talks(fn() -> Vec<Talk>),
    /// Anything else.
    By(fn(&mut Server) -> Told),
}

/// A server under test.
#[derive(Debug)]
pub struct Server {
    address: Address,
    /// How it is started, if it is ours to start.
    command: Option<String>,
    process: Option<Process>,
    /// How long it may take until an answer comes, or another one.
    pub timeout: Duration,
    /// Whether its images are the checkerboard, so that pixels can be looked at.
    checkerboard: Option<bool>,
    /// For random numbers.
    pub seed: u64,
    progress: Progress,
    /// Each open connection has a clone.
    open: Arc<()>,
    /// The most connections that the case had open at once.
    most_open: usize,
    /// How many connections it serves at once, if it has turned one away for that.
    places: Option<usize>,
    /// How long a small image takes, once that was measured.
    pace: Option<Duration>,
    /// Whether it has kept one connection waiting for others.
    one_by_one: bool,
}

/// A request that can be served, and that was answered with an error of status 500.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Denied {
    id: u64,
    code: u64,
    /// Whether the image is larger than the plain one.
    is_large: bool,
}

/// What else is sent on the connection of a conversation.
#[derive(Clone, Copy)]
enum Company {
    /// Nothing.
    Alone,
    /// A request before it and one after it.
    Neighbours,
}

impl Server {
    /// A server that runs already, or that `command` starts.
    #[must_use]
    pub fn new(address: Address, command: Option<String>, timeout: Duration, seed: u64) -> Self {
        Self {
            address,
            command,
            process: None,
            timeout,
            checkerboard: None,
            seed,
            progress: Progress::begin(),
            open: Arc::new(()),
            most_open: 0,
            places: None,
            pace: None,
            one_by_one: false,
        }
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

    /// Whether the suite starts it.
    #[must_use]
    pub const fn is_ours(&self) -> bool {
        self.command.is_some()
    }

    /// The memory of its processes, if the suite has started it.
    pub fn memory(&self) -> Option<Memory> {
        self.process.as_ref()?.memory()
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
                .connect_until(Instant::now() + self.timeout)
                .map(drop)
                .map_err(|error| harness(format!("{}: {error}", self.address)));
        };
        if self.process.is_none() {
            let process = Process::start_server(command, &self.address, self.timeout).map_err(harness)?;
            self.process = Some(process);
        }
        Ok(())
    }

    /// Ends it, if it is ours.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Has it end as its operator would, by SIGTERM, and starts it anew.
    ///
    /// # Errors
    /// It is not ours, or doesn't start again.
    pub fn restart(&mut self) -> Result<(), Box<Failure>> {
        let Some(process) = &mut self.process else {
            let failure = Failure::new("", "the server was not started by the suite", "a server to restart");
            return Err(Box::new(failure.with(Verdict::Harness)));
        };
        process.signal(Signal::TERM);
        process.wait(Instant::now() + self.timeout);
        self.stop();
        self.ensure_running()?;
        // The connection by which its start was seen may still have its only place.
        self.with_a_place(|server| {
            let mut connection = server.connect()?;
            connection.write(&Draft::unknown_model(1).bytes());
            connection.receive().map(drop)
        })
    }

    /// A new connection.
    ///
    /// # Errors
    /// The server is gone, or can't be reached.
    pub fn connect(&mut self) -> Result<Connection, Box<Failure>> {
        let deadline = Instant::now() + self.timeout;
        let others = self.open_now();
        self.address
            .connect_until(deadline)
            .map(|stream| {
                let connection = Connection::new(stream, self.terms());
                self.most_open = self.most_open.max(self.open_now());
                connection
            })
            .map_err(|error| match error.kind() {
                io::ErrorKind::TimedOut if others > 0 => self.keeps_waiting(others),
                kind => {
                    let verdict = if kind == io::ErrorKind::TimedOut { Verdict::Hang } else { Verdict::Fail };
                    let failure =
                        Failure::new("W1-SEC-001", format!("can't connect: {error}"), "a connection");
                    self.with_crash(Box::new(failure.with(verdict)))
                }
            })
    }

    /// That a new connection is neither served nor turned away while others are open.
    fn keeps_waiting(&mut self, others: usize) -> Box<Failure> {
        self.one_by_one = true;
        Box::new(Failure::new(
            "W1-CON-012",
            format!("one connection keeps others waiting: with {others} open, nothing comes on one more"),
            "an answer, or BUSY and a close",
        ))
    }

    fn terms(&self) -> Terms {
        Terms {
            patience: self.timeout,
            progress: self.progress.clone(),
            open: Arc::clone(&self.open),
            in_order: self.places.is_some(),
        }
    }

    fn open_now(&self) -> usize {
        Arc::strong_count(&self.open) - 1
    }

    /// How many of `wanted` connections a case may hold open beside one more: fewer where the server is known to
    /// have fewer places. One that has no place for a second connection gets all, which ends the case.
    #[must_use]
    pub fn room(&self, wanted: usize) -> usize {
        match self.places {
            Some(places) if places > 1 => wanted.min(places - 1),
            _ => wanted,
        }
    }

    /// How many connections the server serves at once. It has turned one away.
    fn count_places(&mut self) -> usize {
        /// So many places are more than any case needs.
        const ENOUGH: usize = 4096;
        const TIMES: usize = 20;
        let mut best = self.places.unwrap_or(0);
        // From now on connections end in order, and what is still counted of those before is gone soon.
        self.places = Some(best);
        let (mut seen, most_open) = (0, self.most_open);
        for _ in 0..TIMES {
            let mut served = Vec::new();
            while served.len() < ENOUGH {
                let Ok(mut connection) = self.connect() else { break };
                connection.write(&Draft::unknown_model(1).bytes());
                match connection.receive() {
                    Ok(Came::Answer(_)) => served.push(connection),
                    _ => break,
                }
            }
            match served.len() {
                more if more > best => (best, seen) = (more, 1),
                same if same == best => seen += 1,
                _ => {}
            }
            if seen == 2 && best > 0 {
                break;
            }
        }
        (self.places, self.most_open) = (Some(best), most_open);
        best
    }

    /// Tries again while the server has no place for a connection though it ought to have one: it may not have seen
    /// yet that others have ended.
    fn with_a_place<T>(
        &mut self,
        mut attempt: impl FnMut(&mut Self) -> Result<T, Box<Failure>>,
    ) -> Result<T, Box<Failure>> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match attempt(self) {
                Err(failure) if failure.no_place && Instant::now() < deadline => {
                    let held = self.open_now();
                    // With connections of the case's own still open it can't be counted.
                    let places = if held == 0 { self.count_places() } else { self.places.unwrap_or(0) };
                    if held >= places {
                        return Err(failure);
                    }
                    thread::sleep(Duration::from_millis(2));
                }
                result => return result,
            }
        }
    }

    /// How long a small image takes when the server has nothing else to do. Nothing, if no answer came.
    pub fn pace(&mut self) -> Duration {
        const TIMES: u64 = 3;
        if let Some(pace) = self.pace {
            return pace;
        }
        let mut best = None;
        for id in 1..=TIMES {
            let began = Instant::now();
            match self.ask(&[Draft::request(id, "how long?")]) {
                Ok(_) => best = Some(began.elapsed().min(best.unwrap_or(Duration::MAX))),
                Err(failure) => {
                    // What hangs would hang the case too. Whether it can be started is seen there.
                    if failure.verdict == Verdict::Hang {
                        self.stop();
                        let _ = self.ensure_running();
                    }
                    break;
                }
            }
        }
        *self.pace.insert(best.unwrap_or_default())
    }

    /// How many small images a case may ask for: `most`, or fewer where the server takes long for each, but at least
    /// `least`.
    pub fn affordable(&mut self, least: u64, most: u64) -> u64 {
        const TIME: Duration = Duration::from_secs(5);
        let pace = self.pace().as_micros().max(1);
        u64::try_from(TIME.as_micros() / pace).unwrap_or(most).clamp(least, most)
    }

    /// Whether a failure is because the server is gone.
    fn with_crash(&mut self, mut failure: Box<Failure>) -> Box<Failure> {
        if failure.no_place {
            return failure;
        }
        let is_ours = self.is_ours();
        let gone = match &mut self.process {
            // It may be about to end.
            Some(process) => process.wait(Instant::now() + Duration::from_millis(100)).map(|status| {
                format!(
                    "the server ended with {}; it said last:\n{}",
                    how_it_ended(status),
                    process.last_words()
                )
            }),
            // The suite has ended it.
            None if is_ours => None,
            None => self
                .address
                .connect_until(Instant::now() + self.timeout)
                .err()
                .filter(|error| error.kind() != io::ErrorKind::TimedOut)
                .map(|error| format!("the server is gone: {error}")),
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
        self.run_with_places(|server| match case {
            ServerCase::By(run) => run(server).map_err(|failure| {
                let failure = server.with_crash(failure);
                vec![server.finish(*failure, requirement)]
            }),
            ServerCase::Talks(talks) => server.hold_all(talks(), requirement),
        })
    }

    /// Runs a case; again, while the server has no place for its connections though it ought to.
    fn run_with_places(
        &mut self,
        run: impl Fn(&mut Self) -> Result<Remark, Vec<Failure>>,
    ) -> Result<Remark, Vec<Failure>> {
        let deadline = Instant::now() + self.timeout;
        loop {
            self.ensure_running().map_err(|failure| vec![*failure])?;
            self.most_open = 0;
            let result = run(self);
            let Err(failures) = &result else { return result };
            if !failures.iter().any(|failure| failure.no_place) {
                return result;
            }
            // What was found out now, the case may go by the second time.
            let (needs, was_known) = (self.most_open, self.places.is_some());
            let places = self.count_places();
            if was_known && needs > places {
                return Ok(Remark::NotApplicable(format!(
                    "the server has no place for the {needs} connections that this case needs"
                )));
            }
            if Instant::now() > deadline {
                return result;
            }
        }
    }

    /// Runs the conversations of some vectors.
    ///
    /// # Errors
    /// Each failure, but no more than the first few.
    pub fn run_vectors(&mut self, patterns: &[&str], requirement: &str) -> Result<Remark, Vec<Failure>> {
        let talks = vectors(Receiver::Server, patterns).map(|vector| Talk {
            name: vector.name.clone(),
            sends: vector.segments(),
            expected: vector.expectations().iter().map(Expected::of).collect(),
            end: vector.end(),
        });
        let talks: Vec<Talk> = talks.collect();
        self.run_with_places(|server| server.hold_all(talks.clone(), requirement))
    }

    fn finish(&mut self, failure: Failure, requirement: &str) -> Failure {
        if matches!(failure.verdict, Verdict::Hang | Verdict::Crash) || self.one_by_one {
            // What hangs would hang the next case too, and what was left in a queue would be in its way.
            self.stop();
        }
        failure.or_of(requirement)
    }

    fn hold_all(&mut self, talks: Vec<Talk>, requirement: &str) -> Result<Remark, Vec<Failure>> {
        let (mut failures, mut remark) = (Vec::new(), Remark::Pass);
        'all: for talk in talks {
            let mut variants: Vec<(Cut, Company)> = Cut::ALL.map(|cut| (cut, Company::Alone)).to_vec();
            if talk.end == End::BetweenFrames && talk.expected.len() < 100 {
                variants.push((Cut::Whole, Company::Neighbours));
                variants.push((Cut::Fields, Company::Neighbours));
            }
            for (cut, company) in variants {
                let (variant, words) = match company {
                    Company::Alone => (talk.clone(), ""),
                    Company::Neighbours => {
                        let [before, after] = [0x8B00_0000_0000_00B1, 0x8B00_0000_0000_00B2]
                            .map(|id| self.probe(id, "a neighbour"));
                        (talk.clone().between(before, after), ", between two other requests")
                    }
                };
                match self.hold(&variant, cut) {
                    Ok(Remark::Pass) => {}
                    // What could not be judged is more to know than what was not good.
                    Ok(other) => {
                        if !matches!(remark, Remark::Skip(_)) {
                            remark = other;
                        }
                    }
                    Err(failure) if failure.no_place => return Err(vec![*failure]),
                    Err(mut failure) => {
                        failure.variant = format!("{}, {}{words}", talk.name, cut.name());
                        failures.push(self.finish(*failure, requirement));
                        if failures.len() == MAX_FAILURES || self.ensure_running().is_err() {
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
        /// An engine may fail once.
        const AGAIN: usize = 2;
        let began = Instant::now();
        let mut denied = self.hold_once(talk, cut)?;
        for _ in 0..AGAIN {
            if denied.is_empty() {
                return Ok(Remark::Pass);
            }
            if denied.iter().any(|one| one.code == code("BUSY")) {
                // What others have left in the queue is not this talk's. Whether there are images at all is asked later.
                let _ = self.recovers("W1-CON-007");
            }
            let again = self.hold_once(talk, cut)?;
            denied.retain(|one| happens_again(*one, &again, talk));
        }
        match denied.first() {
            Some(one) => self.judge(*one, talk, began.elapsed()),
            None => Ok(Remark::Pass),
        }
    }

    /// Holds a conversation in each cut, or, where the server takes long for each image, in one.
    ///
    /// # Errors
    /// As [`Server::hold`].
    pub fn hold_in_cuts(&mut self, talk: &Talk) -> Told {
        let cuts = if self.is_slow() { &Cut::ALL[..1] } else { &Cut::ALL };
        let mut remark = Remark::Pass;
        for cut in cuts {
            let told = self.hold(talk, *cut).map_err(|mut failure| {
                failure.variant = format!("{}, {}", talk.name, cut.name());
                failure
            })?;
            if remark == Remark::Pass {
                remark = told;
            }
        }
        Ok(remark)
    }

    /// What to say of a request that can be served, and that was answered with an error of status 500 each time.
    fn judge(&mut self, denied: Denied, talk: &Talk, took: Duration) -> Told {
        let Denied { id, code: number, is_large } = denied;
        let name = code_name(number);
        let is = |other: &str| number == code(other);
        let problem = format!("request {id}, which can be served, was answered with {name} each time");
        if !self.makes_images()? {
            return Ok(Remark::Skip(format!("could not be judged: {problem}, as a plain one is")));
        }
        let images: Vec<u64> = talk.expected.iter().filter(|one| one.is_image()).map(Expected::id).collect();
        let same_id = images.iter().filter(|other| **other == id).count();
        let is_allowed = (is("BUSY") && images.len() > 1)
            || (is("OUT_OF_MEMORY") && is_large)
            || (is("TIMEOUT") && took > NO_DEADLINE);
        if is_allowed {
            return Ok(Remark::Warn(problem));
        }
        Err(Box::new(Failure::new(
            if same_id > 1 { "W1-CON-004" } else { "W1-VAL-004" },
            format!("{problem}, while a plain one gets its image"),
            "an image",
        )))
    }

    /// Whether a plain request gets an image, of several at least one.
    ///
    /// # Errors
    /// The server doesn't answer.
    pub fn makes_images(&mut self) -> Result<bool, Box<Failure>> {
        const TIMES: u64 = 10;
        for id in 1..=TIMES {
            if self.ask(&[Draft::request(id, "plain")])?[0].pixels().is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Proves that a plain request gets its image again, once what was under way before is done with.
    ///
    /// # Errors
    /// It got none until the timeout; the failure is of this requirement.
    pub fn recovers(&mut self, requirement: &str) -> Result<(), Box<Failure>> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let answer = self.ask(&[Draft::request(1, "again")])?.swap_remove(0);
            if answer.pixels().is_some() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let problem = format!("a plain request, alone, still gets {answer}");
                return Err(Box::new(Failure::new(requirement, problem, "an image, as before")));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn hold_once(&mut self, talk: &Talk, cut: Cut) -> Result<Vec<Denied>, Box<Failure>> {
        const SENT: usize = 16 * 1024;
        self.with_a_place(|server| {
            let mut connection = server.connect()?;
            if talk.expected.iter().any(|one| one.is_image() && one.id() == 0) {
                connection.take_busy_as_an_answer();
            }
            let writes = cut.writes(&talk.sends);
            let result = server.exchange(&mut connection, talk, writes);
            result.map_err(|mut failure| {
                let sent = talk.sends.iter().flat_map(|segment| segment.bytes.iter().copied());
                failure.sent = sent.take(SENT).collect();
                failure.received = connection.take_received();
                server.with_crash(failure)
            })
        })
    }

    /// Returns the requests that got an error of status 500.
    fn exchange(
        &mut self,
        connection: &mut Connection,
        talk: &Talk,
        writes: Vec<Vec<u8>>,
    ) -> Result<Vec<Denied>, Box<Failure>> {
        /// Of so many requests at once, some may well find the queue full (W1-CON-007).
        const MANY: usize = 32;
        // Which of several requests with the same id an error is for shows when the others are answered.
        let mut errors: Vec<(u64, u64)> = Vec::new();
        let mut missing = talk.expected.clone();
        let then = if talk.end == End::InsideAFrame { AfterWriting::End } else { AfterWriting::Go };
        let writer = connection.write_beside(writes, then)?;
        let result = (|| {
            while missing.len() > errors.len() {
                match connection.receive()? {
                    Came::Answer(answer) => errors.extend(self.take(&answer, &mut missing, &errors)?),
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
            connection.close();
        }
        let _ = writer.join();
        let was_given_up = result?;
        let mut denied = Vec::new();
        for (id, number) in errors {
            let at = missing.iter().position(|expected| expected.is_image() && expected.id() == id);
            if let Some(Expected::Image { width, height, .. }) = at.map(|at| missing.remove(at))
                && (talk.expected.len() < MANY || number != code("BUSY"))
            {
                denied.push(Denied { id, code: number, is_large: (width, height) != (64, 64) });
            }
        }
        if was_given_up {
            return Ok(denied);
        }
        match talk.end {
            End::BetweenFrames => self.barrier(connection)?,
            End::Closed | End::InsideAFrame => match connection.receive()? {
                Came::Close => {}
                Came::Answer(answer) => return Err(unexpected(&answer)),
            },
        }
        Ok(denied)
    }

    /// Ticks an answer off; or returns request_id and code of an error where an image could have come, as it did for
    /// `errors` before.
    fn take(
        &mut self,
        answer: &Answer,
        missing: &mut Vec<Expected>,
        errors: &[(u64, u64)],
    ) -> Result<Option<(u64, u64)>, Box<Failure>> {
        let id = answer.id();
        let images = missing.iter().filter(|expected| expected.is_image() && expected.id() == id).count();
        let is_left = images > errors.iter().filter(|(other, _)| *other == id).count();
        let at = missing.iter().position(|expected| answer.is(expected) && (is_left || !expected.is_image()));
        match (at, answer) {
            (Some(at), Answer::Error { code, .. }) if missing[at].is_image() => return Ok(Some((id, *code))),
            (Some(at), _) => {
                missing.swap_remove(at);
                return self.look_at_pixels(answer).map(|()| None);
            }
            (None, _) => {}
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

    /// Proves that a connection lives, and that nothing else comes on it: the answer to one more request is
    /// next.
    ///
    /// # Errors
    /// Something else came.
    pub fn barrier(&mut self, connection: &mut Connection) -> Result<(), Box<Failure>> {
        const ID: u64 = 0xB0BA_0000_0000_000F;
        let (request, expected) = self.probe(ID, "is it still there?");
        connection.write(&request.bytes());
        match connection.receive()? {
            Came::Answer(answer) if answer.is(&expected) => self.look_at_pixels(&answer),
            Came::Answer(answer) => Err(unexpected(&answer)),
            Came::Close => Err(Box::new(Failure::new(
                "W1-CON-005",
                "the server closed a connection that has to live on",
                "the answer to one more request",
            ))),
        }
    }

    /// Whether a small image takes so long that a run would take too long if it asked for one wherever it could.
    fn is_slow(&self) -> bool {
        const LONG: Duration = Duration::from_millis(20);
        self.pace.is_some_and(|pace| pace > LONG)
    }

    /// A request whose answer shows that the server lives: for an image, but where each takes long one that is refused.
    fn probe(&self, id: u64, prompt: &str) -> (Draft, Expected) {
        if self.is_slow() {
            (Draft::unknown_model(id), Expected::error(id, "INVALID_MODEL_ID"))
        } else {
            (Draft::request(id, prompt), Expected::small_image(id))
        }
    }

    /// Proves that the server still serves others.
    ///
    /// # Errors
    /// It doesn't.
    pub fn still_serves(&mut self) -> Result<(), Box<Failure>> {
        /// It is known by then that it does not.
        const SHORT: Duration = Duration::from_secs(1);
        self.with_a_place(|server| {
            let others = server.open_now();
            let mut connection = server.connect()?;
            if server.one_by_one {
                connection.set_deadline(Instant::now() + server.timeout.min(SHORT));
            }
            server.barrier(&mut connection).map_err(|mut failure| match failure.verdict {
                Verdict::Hang if others > 0 => server.keeps_waiting(others),
                _ => {
                    // One that has many may have no room even to say BUSY. If it has places, that is found out now.
                    failure.no_place |= others > 0 && failure.requirement == "W1-CON-005";
                    server.with_crash(failure)
                }
            })
        })
    }

    /// The answers to some frames on a connection of their own.
    ///
    /// # Errors
    /// Fewer came.
    pub fn ask(&mut self, frames: &[Draft]) -> Result<Vec<Answer>, Box<Failure>> {
        self.with_a_place(|server| server.ask_once(frames))
    }

    fn ask_once(&mut self, frames: &[Draft]) -> Result<Vec<Answer>, Box<Failure>> {
        let mut connection = self.connect()?;
        let bytes: Vec<u8> = frames.iter().flat_map(Draft::bytes).collect();
        let writer = connection.write_beside(vec![bytes], AfterWriting::Go)?;
        let mut answers = Vec::new();
        while answers.len() < frames.len() {
            match connection.receive() {
                Ok(Came::Answer(answer)) => answers.push(answer),
                Ok(Came::Close) => {
                    let failure = Failure::new("W1-CON-002", "the server closed the connection", "an answer");
                    return Err(self.with_crash(Box::new(failure)));
                }
                Err(failure) => {
                    connection.close();
                    return Err(self.with_crash(failure));
                }
            }
        }
        let _ = writer.join();
        Ok(answers)
    }
}

/// No deadline that is worth the name has passed before (TIMEOUT).
pub(crate) const NO_DEADLINE: Duration = Duration::from_millis(500);

/// Whether a request was denied in another exchange too: the one with its id, or of several with the same id half at
/// least.
fn happens_again(denied: Denied, again: &[Denied], talk: &Talk) -> bool {
    let asked = talk.expected.iter().filter(|one| one.is_image() && one.id() == denied.id).count();
    let count = again.iter().filter(|one| one.id == denied.id).count();
    count > 0 && 2 * count >= asked
}

fn unexpected(answer: &Answer) -> Box<Failure> {
    Box::new(Failure::new(
        "W1-CON-002",
        format!("an answer that nobody asked for: {answer}"),
        "one answer to each request",
    ))
}
