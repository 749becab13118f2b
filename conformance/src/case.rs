//! What a case is: an id, what has to hold, how much that matters, and how it is found out.

use std::time::Duration;

use crate::client::{ClientCase, Scene};
use crate::codec::{Adapter, CodecCase};
use crate::server::{Server, ServerCase};
use crate::spec::sentence;
use crate::talk::Talk;
use crate::verdict::{Failure, Told, Verdict};
use crate::wire::{Expectation, Receiver};

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
    /// Input that the specification doesn't mention must be survived; whoever fails is not conformant.
    Robustness,
    /// A SHOULD: a failure is a warning, unless the run is strict.
    Recommended,
    /// A MAY, or something to know.
    Informational,
}

impl Level {
    /// All of them, the weightiest first.
    pub const ALL: [Self; 4] = [Self::Required, Self::Robustness, Self::Recommended, Self::Informational];

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
    /// The vectors with these names, against a server or a client, and against a library. `*` stands for any
    /// end of a name.
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

/// What has to hold, and how much that matters: with a way to find out it becomes a [`Case`].
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    id: &'static str,
    level: Level,
    title: &'static str,
}

/// A MUST of the specification.
pub(crate) const fn required(id: &'static str, title: &'static str) -> Claim {
    Claim { id, level: Level::Required, title }
}

/// What has to be survived.
pub(crate) const fn robustness(id: &'static str, title: &'static str) -> Claim {
    Claim { id, level: Level::Robustness, title }
}

/// A SHOULD of the specification.
pub(crate) const fn recommended(id: &'static str, title: &'static str) -> Claim {
    Claim { id, level: Level::Recommended, title }
}

/// A MAY, or something to know.
pub(crate) const fn informational(id: &'static str, title: &'static str) -> Claim {
    Claim { id, level: Level::Informational, title }
}

impl Claim {
    const fn by(self, run: Run) -> Case {
        Case { id: self.id, level: self.level, title: self.title, run }
    }

    /// A server, and a library as one, takes the vectors with these names as they say. `*` stands for any end
    /// of a name.
    pub(crate) const fn server_vectors(self, names: &'static [&'static str]) -> Case {
        self.by(Run::Vectors(Receiver::Server, names))
    }

    /// A client, and a library as one, takes the vectors with these names as they say.
    pub(crate) const fn client_vectors(self, names: &'static [&'static str]) -> Case {
        self.by(Run::Vectors(Receiver::Client, names))
    }

    /// A library takes these vectors for a client: what a client that asks once can't be sent.
    pub(crate) const fn client_streams(self, names: &'static [&'static str]) -> Case {
        self.by(Run::Streams(names))
    }

    /// Each of these conversations with a server goes as it says, in all variants.
    pub(crate) const fn talks(self, talks: fn() -> Vec<Talk>) -> Case {
        self.by(Run::Server(ServerCase::Talks(talks)))
    }

    /// Anything else that is tried on a server.
    pub(crate) const fn server(self, run: fn(&mut Server) -> Told) -> Case {
        self.by(Run::Server(ServerCase::By(run)))
    }

    /// A client's request looks like this: its bytes, and what the suite's own reader makes of them.
    pub(crate) const fn request(self, look: fn(&[u8], &Expectation) -> Told) -> Case {
        self.by(Run::Client(ClientCase::Request(look)))
    }

    /// A client takes each of these answers to the request with the given id as the scene says.
    pub(crate) const fn scenes(self, scenes: fn(u64) -> Vec<Scene>) -> Case {
        self.by(Run::Client(ClientCase::Scenes(scenes)))
    }

    /// The ids of a client's requests that are sent at once look like this.
    pub(crate) const fn ids(self, look: fn(&[u64]) -> Told) -> Case {
        self.by(Run::Client(ClientCase::Ids(look)))
    }

    /// A client that has sent requests with the given ids at once takes each of these answers as the scene says.
    pub(crate) const fn several(self, scenes: fn(&[u64]) -> Vec<Scene>) -> Case {
        self.by(Run::Client(ClientCase::Several(scenes)))
    }

    /// A library, behind its adapter, does this.
    pub(crate) const fn codec(self, run: fn(&mut Adapter) -> Told) -> Case {
        self.by(Run::Codec(run))
    }
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
        requirement_of(self.id)
    }

    /// The requirement, in the words of the specification.
    #[must_use]
    pub fn sentence(&self) -> &'static str {
        sentence(self.requirement())
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

fn requirement_of(id: &'static str) -> &'static str {
    id.trim_end_matches(|letter: char| letter.is_ascii_lowercase())
}

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
    /// At most [`MAX_FAILURES`](crate::verdict::MAX_FAILURES).
    pub failures: Vec<Failure>,
    /// Whether the list of expected failures has the case.
    pub expected_to_fail: bool,
    /// How long it took.
    pub time: Duration,
}

impl Outcome {
    /// The requirement's id.
    #[must_use]
    pub fn requirement(&self) -> &'static str {
        requirement_of(self.id)
    }

    /// Whether it counts against the testee. What is said of the suite's own errors never does.
    #[must_use]
    pub fn counts(&self, strict: bool) -> bool {
        match (self.level, self.verdict) {
            (_, verdict) if self.expected_to_fail => verdict.is_judged() && !verdict.is_bad(),
            (Level::Required, Verdict::Skip) => strict,
            (Level::Required | Level::Robustness, verdict) => verdict.is_bad(),
            (Level::Recommended, verdict) => verdict.is_bad() && strict,
            (Level::Informational, _) => false,
        }
    }

    /// Whether the suite itself was in trouble, be it after a failure.
    #[must_use]
    pub fn has_harness_error(&self) -> bool {
        self.failures.iter().any(|failure| failure.verdict == Verdict::Harness)
    }
}
