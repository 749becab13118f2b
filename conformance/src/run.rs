//! Which cases are run, in which order, and what their results mean together.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::case::{Case, Mode, Outcome};
use crate::cases::all_cases;
use crate::verdict::{Failure, Remark, Verdict};

/// Which cases are wanted.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only those whose id or title has one of these in it.
    pub filter: Vec<String>,
    /// None of those.
    pub exclude: Vec<String>,
}

impl Selection {
    /// The cases of a mode that are wanted.
    ///
    /// # Errors
    /// A filter means no case.
    pub fn of(&self, mode: Mode) -> Result<Vec<Case>, String> {
        let cases: Vec<Case> = all_cases().into_iter().filter(|case| case.modes().contains(&mode)).collect();
        let fits = |case: &Case, text: &String| {
            case.id.starts_with(text.as_str()) || case.title.contains(text.as_str())
        };
        for text in self.filter.iter().chain(&self.exclude) {
            if !cases.iter().any(|case| fits(case, text)) {
                return Err(format!(
                    "no case of {} has {text:?} in its id or title; --list shows them",
                    mode.name()
                ));
            }
        }
        Ok(cases
            .into_iter()
            .filter(|case| self.filter.is_empty() || self.filter.iter().any(|text| fits(case, text)))
            .filter(|case| !self.exclude.iter().any(|text| fits(case, text)))
            .collect())
    }
}

/// Which cases are expected to fail, and why.
#[derive(Clone, Debug, Default)]
pub struct ExpectedFailures(BTreeMap<String, String>);

impl ExpectedFailures {
    /// Reads a file with a case's id and a reason on each line; `#` begins a comment.
    ///
    /// # Errors
    /// The file can't be read, names no case, or gives no reason.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut all = BTreeMap::new();
        for (n, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let at = |problem: &str| format!("{}:{}: {problem}", path.display(), n + 1);
            let (id, reason) = line.split_once(' ').ok_or_else(|| at("an id and a reason are wanted"))?;
            if !all_cases().iter().any(|case| case.id == id) {
                return Err(at(&format!("there is no case {id}; --list shows them")));
            }
            all.insert(id.to_owned(), reason.trim().to_owned());
        }
        Ok(Self(all))
    }
}

/// How cases are run.
#[derive(Clone)]
pub struct Plan {
    /// The cases, in their order.
    pub cases: Vec<Case>,
    /// Which are expected to fail.
    pub expected_failures: ExpectedFailures,
    /// Whether what is recommended counts.
    pub strict: bool,
    /// How often each is run; the worst result is kept.
    pub repeat: u32,
}

/// Runs all cases of a plan.
pub fn run(plan: &Plan, mut one: impl FnMut(&Case) -> Result<Remark, Vec<Failure>>) -> Vec<Outcome> {
    let mut progress = Progress::new(plan.cases.len());
    let mut outcomes = Vec::new();
    for case in &plan.cases {
        progress.show(case, &outcomes);
        let outcome =
            (0..plan.repeat).map(|_| timed(case, plan, &mut one)).max_by_key(|outcome| outcome.verdict);
        outcomes.extend(outcome);
    }
    progress.clear();
    outcomes
}

fn timed(case: &Case, plan: &Plan, one: &mut impl FnMut(&Case) -> Result<Remark, Vec<Failure>>) -> Outcome {
    let began = Instant::now();
    let result = one(case);
    let expected = plan.expected_failures.0.get(case.id);
    let mut outcome = Outcome {
        id: case.id,
        level: case.level,
        title: case.title,
        verdict: Verdict::Pass,
        reason: expected.cloned(),
        failures: Vec::new(),
        expected_to_fail: expected.is_some(),
        time: began.elapsed(),
    };
    match result {
        Ok(Remark::Pass) => {}
        Ok(Remark::Warn(reason)) => (outcome.verdict, outcome.reason) = (Verdict::Warn, Some(reason)),
        Ok(Remark::NotApplicable(reason)) => {
            (outcome.verdict, outcome.reason) = (Verdict::NotApplicable, Some(reason));
        }
        Ok(Remark::Skip(reason)) => (outcome.verdict, outcome.reason) = (Verdict::Skip, Some(reason)),
        Err(failures) => {
            outcome.verdict = failures.iter().map(|failure| failure.verdict).max().unwrap_or(Verdict::Fail);
            outcome.failures = failures;
        }
    }
    outcome
}

/// A line at the bottom of a terminal that says how far it is.
struct Progress {
    total: usize,
    is_terminal: bool,
    last: Option<Instant>,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self { total, is_terminal: std::io::stderr().is_terminal(), last: None }
    }

    fn show(&mut self, case: &Case, done: &[Outcome]) {
        const PAUSE: Duration = Duration::from_millis(50);
        if !self.is_terminal || self.last.is_some_and(|last| last.elapsed() < PAUSE) {
            return;
        }
        self.last = Some(Instant::now());
        let bad = done.iter().filter(|outcome| outcome.verdict.is_bad()).count();
        let line = format!("{}/{}, {bad} failed: {} {}", done.len() + 1, self.total, case.id, case.title);
        let line: String = line.chars().take(78).collect();
        let _ = write!(std::io::stderr(), "\r\x1b[2K{line}");
    }

    fn clear(&self) {
        if self.is_terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}
