//! Tests of a server: conversations, each in several variants.
//!
//! A [`Talk`] is what is sent on one connection and what has to come of it. It is held whole, one byte a
//! write, and with a write for each field; and where the connection lives on, also between two other
//! requests, which must not be harmed. That nothing else comes is not waited for: one more request is sent,
//! and its answer must be the next thing.

use std::io;
use std::time::{Duration, Instant};

use crate::connection::{AfterWriting, Answer, Came, Connection};
use crate::draft::{Cut, Draft, checkerboard};
use crate::spec::vectors;
use crate::talk::{Expected, Talk, list};
use crate::testee::{Address, Memory, Process, how_it_ended};
use crate::verdict::{Failure, MAX_FAILURES, Remark, Told, Verdict};
use crate::wire::{End, Receiver, code_name};

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
    /// How long an answer may take.
    pub timeout: Duration,
    /// Whether its images are the checkerboard, so that pixels can be looked at.
    checkerboard: Option<bool>,
    /// For random numbers.
    pub seed: u64,
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
    pub const fn new(address: Address, command: Option<String>, timeout: Duration, seed: u64) -> Self {
        Self { address, command, process: None, timeout, checkerboard: None, seed }
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

    /// A new connection.
    ///
    /// # Errors
    /// The server is gone, or can't be reached.
    pub fn connect(&mut self) -> Result<Connection, Box<Failure>> {
        let deadline = Instant::now() + self.timeout;
        self.address.connect_until(deadline).map(|stream| Connection::new(stream, deadline)).map_err(
            |error| {
                let failure = Failure::new("W1-SEC-001", format!("can't connect: {error}"), "a connection");
                let verdict =
                    if error.kind() == io::ErrorKind::TimedOut { Verdict::Hang } else { Verdict::Fail };
                self.with_crash(Box::new(failure.with(verdict)))
            },
        )
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
            expected: vector.expectations().iter().map(Expected::of).collect(),
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
            let mut variants: Vec<(Cut, Company)> = Cut::ALL.map(|cut| (cut, Company::Alone)).to_vec();
            if talk.end == End::BetweenFrames && talk.expected.len() < 100 {
                variants.push((Cut::Whole, Company::Neighbours));
                variants.push((Cut::Fields, Company::Neighbours));
            }
            for (cut, company) in variants {
                let (variant, words) = match company {
                    Company::Alone => (talk.clone(), ""),
                    Company::Neighbours => {
                        (talk.clone().between_neighbours(), ", between two other requests")
                    }
                };
                match self.hold(&variant, cut) {
                    Ok(Remark::Pass) => {}
                    Ok(other) => remark = other,
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
        const SENT: usize = 16 * 1024;
        let mut connection = self.connect()?;
        let writes = cut.writes(&talk.sends);
        let result = self.exchange(&mut connection, talk, writes);
        result.map_err(|mut failure| {
            let sent = talk.sends.iter().flat_map(|segment| segment.bytes.iter().copied());
            failure.sent = sent.take(SENT).collect();
            failure.received = connection.take_received();
            self.with_crash(failure)
        })
    }

    fn exchange(&mut self, connection: &mut Connection, talk: &Talk, writes: Vec<Vec<u8>>) -> Told {
        /// Of so many requests at once, some may well find the queue full (W1-CON-007).
        const MANY: usize = 32;
        let mut remark = Remark::Pass;
        let mut missing = talk.expected.clone();
        let then = if talk.end == End::InsideAFrame { AfterWriting::End } else { AfterWriting::Go };
        let writer = connection.write_beside(writes, self.timeout, then)?;
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
            connection.close();
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

    /// Proves that a connection lives, and that nothing else comes on it: the answer to one more request is
    /// next.
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
        let writer = connection.write_beside(vec![bytes], self.timeout, AfterWriting::Go)?;
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

fn unexpected(answer: &Answer) -> Box<Failure> {
    Box::new(Failure::new(
        "W1-CON-002",
        format!("an answer that nobody asked for: {answer}"),
        "one answer to each request",
    ))
}
