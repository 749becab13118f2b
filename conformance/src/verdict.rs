//! What running a case can come to: a verdict, and the failures or the remark that it rests on.

use crate::spec::sentence;

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// All holds.
    Pass,
    /// Allowed, but not good.
    Warn,
    /// Can't be tried in this run, whatever the tested program is like: the reason says why.
    NotApplicable,
    /// Could not be judged, because of what the tested program does: the reason says why.
    Skip,
    /// An error of the suite itself. It says nothing of the tested program, and so it is less than any failure.
    Harness,
    /// Does not hold.
    Fail,
    /// The tested program ended.
    Crash,
    /// The tested program reached a timeout.
    Hang,
}

impl Verdict {
    /// All of them, best first.
    pub const ALL: [Self; 8] = [
        Self::Pass,
        Self::Warn,
        Self::NotApplicable,
        Self::Skip,
        Self::Harness,
        Self::Fail,
        Self::Crash,
        Self::Hang,
    ];

    /// In reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::NotApplicable => "not applicable",
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
        matches!(self, Self::Fail | Self::Crash | Self::Hang)
    }

    /// Whether it is known if the case holds.
    #[must_use]
    pub const fn is_judged(self) -> bool {
        !matches!(self, Self::NotApplicable | Self::Skip | Self::Harness)
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
    /// Nothing is wrong but that the server has no place for the connection now: BUSY for request 0, and a close
    /// (W1-CON-008).
    pub no_place: bool,
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
            no_place: false,
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
    /// Can't be tried in this run, whatever the tested program is like.
    NotApplicable(String),
    /// Could not be judged, because of what the tested program does.
    Skip(String),
}

/// A case's own result.
pub type Told = Result<Remark, Box<Failure>>;

/// After so many failures a case is not tried any further.
pub const MAX_FAILURES: usize = 3;

/// That a requirement is broken.
///
/// # Errors
/// Always: this is the failure.
pub fn fail(requirement: &str, problem: impl Into<String>, expected: impl Into<String>) -> Told {
    Err(Box::new(Failure::new(requirement, problem, expected)))
}

/// That a case can't be tried in this run, and why: over TCP, without `--exec`, as this user. It never counts.
///
/// # Errors
/// None: that is for a case's last line.
pub fn not_applicable(reason: &str) -> Told {
    Ok(Remark::NotApplicable(reason.to_owned()))
}

/// That a case could not be judged because of what the tested program does, and why. A required one counts with
/// `--strict`.
///
/// # Errors
/// None: that is for a case's last line.
pub fn skip(reason: &str) -> Told {
    Ok(Remark::Skip(reason.to_owned()))
}
