//! What a case is, and what comes of running it.

use std::time::Duration;

use crate::client::ClientCase;
use crate::codec::CodecCase;
use crate::server::ServerCase;
use crate::spec::{VECTORS, Vector, sentence};
use crate::wire::Receiver;

/// What is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A server, over a socket.
    Server,
    /// A client that the suite starts.
    Client,
    /// A library behind an adapter.
    Codec,
}

impl Mode {
    /// As the command line has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Codec => "codec",
        }
    }
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A MUST: whoever fails is not conformant.
    Required,
    /// Must survive what the protocol doesn't speak of; whoever fails is not conformant.
    Robustness,
    /// A SHOULD: a failure is a warning, unless the run is strict.
    Recommended,
    /// A MAY, or something to know.
    Informational,
}

impl Level {
    /// In reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Robustness => "robustness",
            Self::Recommended => "recommended",
            Self::Informational => "informational",
        }
    }
}

/// How a case is run.
#[derive(Clone, Copy)]
pub enum Run {
    /// The vectors with these names, against a server or a client, and against a library. `*` stands for any end of a
    /// name.
    Vectors(Receiver, &'static [&'static str]),
    /// Vectors for a client, against a library alone.
    Streams(&'static [&'static str]),
    /// Against a server.
    Server(ServerCase),
    /// Against a client.
    Client(ClientCase),
    /// Against a library.
    Codec(CodecCase),
}

/// A case. Its id is that of a requirement and letters; it is never changed and never given to another case.
#[derive(Clone, Copy)]
pub struct Case {
    /// Such as W1-HDR-001a.
    pub id: &'static str,
    /// What a failure means.
    pub level: Level,
    /// What has to hold.
    pub title: &'static str,
    /// How it is found out.
    pub run: Run,
}

impl Case {
    /// The requirement's id.
    #[must_use]
    pub fn requirement(&self) -> &'static str {
        self.id.trim_end_matches(|letter: char| letter.is_ascii_lowercase())
    }

    /// The modes that have it.
    #[must_use]
    pub const fn modes(&self) -> &'static [Mode] {
        match self.run {
            Run::Vectors(Receiver::Server, _) => &[Mode::Server, Mode::Codec],
            Run::Vectors(Receiver::Client, _) => &[Mode::Client, Mode::Codec],
            Run::Server(_) => &[Mode::Server],
            Run::Client(_) => &[Mode::Client],
            Run::Codec(_) | Run::Streams(_) => &[Mode::Codec],
        }
    }
}

/// The vectors for a receiver that some patterns mean.
pub fn vectors(receiver: Receiver, patterns: &[&str]) -> impl Iterator<Item = &'static Vector> {
    VECTORS.iter().filter(move |vector| {
        vector.receiver() == receiver && patterns.iter().any(|pattern| fits(pattern, &vector.name))
    })
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

/// What came of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// All holds.
    Pass,
    /// Allowed, but not good.
    Warn,
    /// Could not be tried; the reason says why.
    Skip,
    /// Does not hold.
    Fail,
    /// The testee is gone.
    Crash,
    /// The testee did nothing for too long.
    Hang,
    /// The suite itself is in trouble.
    Harness,
}

impl Verdict {
    /// All of them, best first.
    pub const ALL: [Self; 7] =
        [Self::Pass, Self::Warn, Self::Skip, Self::Fail, Self::Crash, Self::Hang, Self::Harness];

    /// In reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Skip => "skip",
            Self::Fail => "fail",
            Self::Crash => "crash",
            Self::Hang => "hang",
            Self::Harness => "harness error",
        }
    }

    /// Whether the case does not hold.
    #[must_use]
    pub const fn is_bad(self) -> bool {
        matches!(self, Self::Fail | Self::Crash | Self::Hang | Self::Harness)
    }
}

/// One way in which a case did not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Fail, Crash, Hang or Harness.
    pub verdict: Verdict,
    /// The vector, the cut, the neighbours.
    pub variant: String,
    /// The requirement that is broken: the case's own or another that came in its way.
    pub requirement: String,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub expected: String,
    /// The bytes that were sent; the beginning, if they are many.
    pub sent: Vec<u8>,
    /// The bytes that came back; of each frame the beginning.
    pub received: Vec<u8>,
}

impl Failure {
    /// A failure without bytes.
    #[must_use]
    pub fn new(requirement: &str, problem: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            variant: String::new(),
            requirement: requirement.to_owned(),
            problem: problem.into(),
            expected: expected.into(),
            sent: Vec::new(),
            received: Vec::new(),
        }
    }

    /// The same with another verdict.
    #[must_use]
    pub const fn with(mut self, verdict: Verdict) -> Self {
        self.verdict = verdict;
        self
    }

    /// The same, of this requirement if it names none.
    #[must_use]
    pub fn or_of(mut self, requirement: &str) -> Self {
        if self.requirement.is_empty() {
            requirement.clone_into(&mut self.requirement);
        }
        self
    }

    /// The sentence of the specification.
    #[must_use]
    pub fn sentence(&self) -> &'static str {
        sentence(&self.requirement)
    }
}

/// What a case has to say when it does not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// All holds.
    Pass,
    /// Allowed, but not good.
    Warn(String),
    /// Could not be tried.
    Skip(String),
}

/// A case's own result.
pub type Told = Result<Remark, Box<Failure>>;

/// A case's result in a report.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The case's id.
    pub id: &'static str,
    /// The case's level.
    pub level: Level,
    /// The case's title.
    pub title: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// Of a warning or a skip; and why an expected failure was expected.
    pub reason: Option<String>,
    /// At most [`MAX_FAILURES`].
    pub failures: Vec<Failure>,
    /// Whether the list of expected failures has the case.
    pub expected_to_fail: bool,
    /// How long it took.
    pub time: Duration,
}

/// After so many failures a case is not tried any further.
pub const MAX_FAILURES: usize = 3;

impl Outcome {
    /// Whether it counts against the testee.
    #[must_use]
    pub fn counts(&self, strict: bool) -> bool {
        match self.level {
            _ if self.expected_to_fail => !self.verdict.is_bad() && self.verdict != Verdict::Skip,
            Level::Required | Level::Robustness => self.verdict.is_bad(),
            Level::Recommended => self.verdict.is_bad() && strict,
            Level::Informational => false,
        }
    }
}
