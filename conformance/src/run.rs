//! Which cases are run, in which order, and what their results mean together.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

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
            if text.is_empty() {
                return Err("an empty text is no filter: every case has it".to_owned());
            }
            if !cases.iter().any(|case| fits(case, text)) {
                return Err(format!(
                    "no case of {} has {text:?} in its id or title; --list shows them",
                    mode.name()
                ));
            }
        }
        let wanted: Vec<Case> = cases
            .into_iter()
            .filter(|case| self.filter.is_empty() || self.filter.iter().any(|text| fits(case, text)))
            .filter(|case| !self.exclude.iter().any(|text| fits(case, text)))
            .collect();
        if wanted.is_empty() { Err("--exclude leaves no case".to_owned()) } else { Ok(wanted) }
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
    /// How often each is run; the worst result is kept.
    pub repeat: u32,
}

/// Runs the cases of a plan and tells of each when it has ended. An error of the suite itself, such as a program
/// that can't be started, ends the run: it would be the same for every other case.
pub fn run(
    plan: &Plan,
    mut one: impl FnMut(&Case) -> Result<Remark, Vec<Failure>>,
    mut ended: impl FnMut(Outcome),
) {
    let mut progress = Progress::new(plan.cases.len());
    for case in &plan.cases {
        progress.show(case);
        let mut worst = timed(case, plan, &mut one);
        for _ in 1..plan.repeat {
            if worst.has_harness_error() {
                break;
            }
            let next = timed(case, plan, &mut one);
            match (next.has_harness_error(), next.verdict > worst.verdict) {
                (_, true) => worst = next,
                (true, false) => worst.failures.extend(next.failures),
                (false, false) => {}
            }
        }
        let is_over = worst.has_harness_error();
        progress.clear();
        progress.count(&worst);
        ended(worst);
        if is_over {
            break;
        }
    }
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
    done: usize,
    bad: usize,
    is_terminal: bool,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self { total, done: 0, bad: 0, is_terminal: std::io::stderr().is_terminal() }
    }

    fn show(&self, case: &Case) {
        if self.is_terminal {
            let line =
                format!("{}/{}, {} failed: {} {}", self.done + 1, self.total, self.bad, case.id, case.title);
            let line: String = line.chars().take(78).collect();
            let _ = write!(std::io::stderr(), "\r\x1b[2K{line}");
        }
    }

    fn count(&mut self, outcome: &Outcome) {
        self.done += 1;
        self.bad += usize::from(outcome.verdict.is_bad());
    }

    fn clear(&self) {
        if self.is_terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}
