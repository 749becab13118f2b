//! Results, for people and for programs.

use std::fmt::Write as _;
use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};
use serde_json::{Map, Value, json};

use crate::case::{Case, Level, Mode, Outcome};
use crate::spec::sentence;
use crate::verdict::{Failure, Verdict};
use crate::wire::{Shown, hex};

/// All of a run, or of what there was of it until something ended it.
pub struct Report {
    /// What was tested.
    pub mode: Mode,
    /// Its name, in the matrix.
    pub name: String,
    /// The command or the address.
    pub testee: String,
    /// Seconds since 1970 at its beginning.
    pub began: u64,
    /// How long it took.
    pub seconds: f64,
    /// The seed of random numbers.
    pub seed: u64,
    /// Whether what is recommended counts.
    pub strict: bool,
    /// Case by case.
    pub outcomes: Vec<Outcome>,
    /// The cases that have not been run, or not to their end.
    pub not_run: Vec<Case>,
    /// What has ended the run before its time.
    pub ended_by: Option<EndedBy>,
}

/// What ends a run before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// A signal, by its name and number.
    Signal(&'static str, u8),
    /// An error of the suite itself.
    Harness,
}

impl EndedBy {
    /// In reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Signal(name, _) => name,
            Self::Harness => Verdict::Harness.name(),
        }
    }
}

impl Report {
    /// How many cases have this verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.verdict == verdict).count()
    }

    /// The cases that count against the testee.
    pub fn against(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|outcome| outcome.counts(self.strict))
    }

    /// Takes the result of the next case.
    pub fn push(&mut self, outcome: Outcome) {
        self.not_run.retain(|case| case.id != outcome.id);
        if outcome.has_harness_error() {
            self.ended_by = Some(EndedBy::Harness);
        }
        self.outcomes.push(outcome);
    }

    /// Whether nothing counts against it in a whole run.
    #[must_use]
    pub fn is_conformant(&self) -> bool {
        self.ended_by.is_none() && self.against().next().is_none()
    }

    /// How many cases of a level were not judged, for whatever reason.
    #[must_use]
    pub fn not_judged(&self, level: Level) -> usize {
        let outcomes = self.outcomes.iter().filter(|outcome| !outcome.verdict.is_judged());
        let levels = outcomes.map(|outcome| outcome.level).chain(self.not_run.iter().map(|case| case.level));
        levels.filter(|other| *other == level).count()
    }

    /// The exit status: a failure that was seen counts, though the suite came no further.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self.ended_by {
            Some(EndedBy::Signal(_, number)) => 128 + number,
            _ if self.against().next().is_some() => 1,
            Some(EndedBy::Harness) => 3,
            None => 0,
        }
    }

    /// A case in a line, and what a person wants to know of one that did not pass.
    #[must_use]
    pub fn lines(outcome: &Outcome, verbose: bool, colour: bool) -> String {
        let word = paint(outcome.verdict, &outcome.verdict.name().to_uppercase(), colour);
        let mut text = format!("{word} {} ({}): {}\n", outcome.id, outcome.level.name(), outcome.title);
        if outcome.verdict == Verdict::Pass && !outcome.expected_to_fail && !verbose {
            return text;
        }
        let _ = writeln!(text, "    {}: {}", outcome.requirement(), sentence(outcome.requirement()));
        match (&outcome.reason, outcome.expected_to_fail, outcome.verdict) {
            (Some(reason), true, verdict) if verdict.is_bad() => {
                let _ = writeln!(text, "    expected to fail: {reason}");
            }
            (Some(reason), true, verdict) if verdict.is_judged() => {
                let _ = writeln!(text, "    was expected to fail, and does not any more: {reason}");
            }
            (Some(reason), ..) => _ = writeln!(text, "    {reason}"),
            (None, ..) => {}
        }
        for failure in &outcome.failures {
            text.push_str(&in_words(failure));
            // Another requirement that came in the way of the case's own.
            if !["", outcome.requirement()].contains(&failure.requirement.as_str()) {
                let _ = writeln!(text, "    {}: {}", failure.requirement, failure.sentence());
            }
        }
        text
    }

    /// The end of what a person reads.
    #[must_use]
    pub fn summary(&self, colour: bool) -> String {
        let mut text = String::new();
        let counts: Vec<String> = Verdict::ALL
            .into_iter()
            .filter(|verdict| self.count(*verdict) > 0)
            .map(|verdict| format!("{} {}", self.count(verdict), verdict.name()))
            .collect();
        let _ = writeln!(
            text,
            "{} {}: {} in {:.1} s: {}",
            self.mode.name(),
            indent(&self.name, 0),
            cases(self.outcomes.len()),
            self.seconds,
            if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
        );
        let not_judged: Vec<String> = Level::ALL
            .into_iter()
            .filter(|level| self.not_judged(*level) > 0)
            .map(|level| format!("{} {}", self.not_judged(level), level.name()))
            .collect();
        if !not_judged.is_empty() {
            let unknown = self.outcomes.iter().filter(|outcome| !outcome.verdict.is_judged());
            let ids = unknown.map(|outcome| outcome.id).chain(self.not_run.iter().map(|case| case.id));
            let _ = writeln!(text, "not judged: {}: {}", not_judged.join(", "), some(ids));
        }
        let ids: Vec<&str> = self.against().map(|outcome| outcome.id).collect();
        if !ids.is_empty() {
            let verdict = paint(Verdict::Fail, "NOT conformant", colour);
            let word = if ids.len() == 1 { "counts" } else { "count" };
            let all = some(ids.iter().copied());
            let _ = writeln!(text, "{verdict}: {} {word} against it: {all}", cases(ids.len()));
        }
        let not_run = cases(self.not_run.len());
        let _ = match self.ended_by {
            Some(EndedBy::Signal(name, _)) => {
                let word = paint(Verdict::Harness, "interrupted", colour);
                writeln!(text, "{word} by {name}: {not_run} not run to the end; what it had started is ended")
            }
            Some(EndedBy::Harness) => {
                let word = paint(Verdict::Harness, "the suite could not go on", colour);
                writeln!(text, "{word}: {not_run} not run; that says nothing of what is tested")
            }
            None if !ids.is_empty() => Ok(()),
            None if not_judged.is_empty() => writeln!(text, "{}", paint(Verdict::Pass, "conformant", colour)),
            None => {
                let word = paint(Verdict::Pass, "conformant as far as it was judged", colour);
                writeln!(text, "{word}: not in {} of {}", self.unknown(), cases(self.outcomes.len()))
            }
        };
        text
    }

    fn unknown(&self) -> usize {
        Level::ALL.into_iter().map(|level| self.not_judged(level)).sum()
    }

    /// JSON; `report.schema.json` describes it.
    #[must_use]
    pub fn json(&self) -> Value {
        let cases: Vec<Value> = self
            .outcomes
            .iter()
            .map(|outcome| {
                let failures: Vec<Value> = outcome
                    .failures
                    .iter()
                    .map(|failure| {
                        json!({
                            "variant": failure.variant,
                            "requirement": failure.requirement,
                            "sentence": failure.sentence(),
                            "problem": failure.problem,
                            "expected": failure.expected,
                            "sent": hex(&failure.sent),
                            "received": hex(&failure.received),
                            "received_fields": Shown(&failure.received).to_string(),
                        })
                    })
                    .collect();
                json!({
                    "id": outcome.id,
                    "requirement": outcome.requirement(),
                    "level": outcome.level.name(),
                    "title": outcome.title,
                    "verdict": outcome.verdict.name(),
                    "reason": outcome.reason,
                    "expected_to_fail": outcome.expected_to_fail,
                    "counts_against": outcome.counts(self.strict),
                    "seconds": outcome.time.as_secs_f64(),
                    "failures": failures,
                })
            })
            .collect();
        let not_judged: Map<String, Value> = Level::ALL
            .into_iter()
            .map(|level| (level.name().to_owned(), self.not_judged(level).into()))
            .collect();
        json!({
            "suite": { "name": "weave-conform", "version": env!("CARGO_PKG_VERSION") },
            "protocol": { "name": "weave", "version": 1 },
            "mode": self.mode.name(),
            "name": self.name,
            "testee": self.testee,
            "began": self.began,
            "seconds": self.seconds,
            "seed": self.seed,
            "strict": self.strict,
            "conformant": self.is_conformant(),
            "ended_by": self.ended_by.map(EndedBy::name),
            "not_judged": not_judged,
            "not_run": self.not_run.iter().map(|case| case.id).collect::<Vec<_>>(),
            "cases": cases,
        })
    }

    /// JUnit's XML, as continuous integration reads it.
    ///
    /// # Errors
    /// None: it is written into memory.
    pub fn junit(&self) -> io::Result<String> {
        let mut xml = Writer::new_with_indent(Vec::new(), b' ', 2);
        xml.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
        let suite = format!("weave-conform.{}", self.mode.name());
        let number = |count: usize| count.to_string();
        // The case in which a signal came has no result, and must not look like one that was left out.
        let interrupted = usize::from(matches!(self.ended_by, Some(EndedBy::Signal(..))));
        let stopped = self.not_run.len().min(interrupted);
        let skipped = self.count(Verdict::NotApplicable)
            + self.outcomes.iter().filter(|o| self.is_skipped(o)).count()
            + self.not_run.len()
            - stopped;
        let errors = self.count(Verdict::Harness) + stopped;
        let ended_by = self.ended_by.map_or("", EndedBy::name);
        xml.create_element("testsuites").write_inner_content(|xml| {
            xml.create_element("testsuite")
                .with_attribute(("name", suite.as_str()))
                .with_attribute(("tests", number(self.outcomes.len() + self.not_run.len()).as_str()))
                .with_attribute(("failures", number(self.against().count()).as_str()))
                .with_attribute(("errors", number(errors).as_str()))
                .with_attribute(("skipped", number(skipped).as_str()))
                .with_attribute(("time", format!("{:.3}", self.seconds).as_str()))
                .write_inner_content(|xml| {
                    xml.create_element("properties").write_inner_content(|xml| {
                        let mut property = |name: &str, value: &str| {
                            let element = xml.create_element("property").with_attribute(("name", name));
                            element.with_attribute(("value", value)).write_empty().map(drop)
                        };
                        if self.ended_by.is_some() {
                            property("ended_by", ended_by)?;
                        }
                        Level::ALL.into_iter().try_for_each(|level| {
                            property(&format!("not_judged.{}", level.name()), &number(self.not_judged(level)))
                        })
                    })?;
                    self.outcomes.iter().try_for_each(|outcome| self.junit_case(xml, &suite, outcome))?;
                    self.not_run.iter().enumerate().try_for_each(|(n, case)| {
                        let element = if n < stopped { "error" } else { "skipped" };
                        let name = format!("{} {}", case.id, case.title);
                        let message = format!("not run to its end: {ended_by}");
                        xml.create_element("testcase")
                            .with_attribute(("classname", suite.as_str()))
                            .with_attribute(("name", name.as_str()))
                            .with_attribute(("time", "0"))
                            .write_inner_content(|xml| {
                                let element = xml.create_element(element);
                                element.with_attribute(("message", message.as_str())).write_empty().map(drop)
                            })
                            .map(drop)
                    })
                })
                .map(drop)
        })?;
        String::from_utf8(xml.into_inner()).map_err(io::Error::other)
    }

    /// Whether a case was skipped and that doesn't count.
    fn is_skipped(&self, outcome: &Outcome) -> bool {
        outcome.verdict == Verdict::Skip && !outcome.counts(self.strict)
    }

    fn junit_case(&self, xml: &mut Writer<Vec<u8>>, suite: &str, outcome: &Outcome) -> io::Result<()> {
        let name = format!("{} {}", outcome.id, outcome.title);
        let case = xml
            .create_element("testcase")
            .with_attribute(("classname", suite))
            .with_attribute(("name", name.as_str()))
            .with_attribute(("time", format!("{:.3}", outcome.time.as_secs_f64()).as_str()));
        let reason = outcome.reason.clone().unwrap_or_default();
        let (element, message) = match outcome.verdict {
            _ if outcome.counts(self.strict) && outcome.expected_to_fail => {
                ("failure", format!("was expected to fail: {reason}"))
            }
            Verdict::Harness => ("error", "an error of the suite itself".to_owned()),
            Verdict::Skip if outcome.counts(self.strict) => ("failure", format!("not judged: {reason}")),
            verdict if outcome.counts(self.strict) => ("failure", verdict.name().to_owned()),
            Verdict::Skip | Verdict::NotApplicable => ("skipped", reason),
            _ => return case.write_empty().map(drop),
        };
        case.write_inner_content(|xml| {
            let element = xml.create_element(element).with_attribute(("message", message.as_str()));
            let mut text = String::new();
            for failure in &outcome.failures {
                let _ = writeln!(
                    text,
                    "{} {}\nexpected: {}\n{}: {}\nsent: {}\nreceived: {}",
                    failure.variant,
                    failure.problem,
                    failure.expected,
                    failure.requirement,
                    failure.sentence(),
                    hex(&failure.sent[..failure.sent.len().min(256)]),
                    hex(&failure.received)
                );
            }
            // XML 1.0 has no place for control characters.
            text.retain(|c| !c.is_control() || c == '\n');
            element.write_text_content(BytesText::new(&text)).map(drop)
        })
        .map(drop)
    }
}

/// One page, which needs no other file, with several reports side by side.
#[must_use]
pub fn matrix(reports: &[Value]) -> String {
    // In a script element only `<` could end the data before its end.
    let data = Value::from(reports.to_vec()).to_string().replace('<', "\\u003c");
    include_str!("matrix.html").replace("\"REPORTS\"", &data)
}

fn paint(verdict: Verdict, word: &str, colour: bool) -> String {
    let number = match verdict {
        _ if !colour => return word.to_owned(),
        Verdict::Pass => 32,
        Verdict::Warn | Verdict::NotApplicable | Verdict::Skip => 33,
        _ => 31,
    };
    format!("\x1b[{number}m{word}\x1b[0m")
}

/// "1 case", "2 cases".
fn cases(count: usize) -> String {
    format!("{count} case{}", if count == 1 { "" } else { "s" })
}

/// The first few ids, and how many more.
fn some<'a>(ids: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 12;
    let ids: Vec<&str> = ids.collect();
    match ids.len().saturating_sub(SHOWN) {
        0 => ids.join(", "),
        more => format!("{} and {more} more", ids[..SHOWN].join(", ")),
    }
}

/// A failure, with what was sent and received.
fn in_words(failure: &Failure) -> String {
    let mut text = String::new();
    let variant = if failure.variant.is_empty() { String::new() } else { format!(" [{}]", failure.variant) };
    let _ = writeln!(text, "    {}{variant}", indent(&failure.problem, 4));
    let _ = writeln!(text, "    expected: {}", indent(&failure.expected, 4));
    if !failure.sent.is_empty() {
        let _ = writeln!(text, "    sent:\n        {}", indent(&clipped(&failure.sent), 8));
        let _ = writeln!(text, "    received:\n        {}", indent(&clipped(&failure.received), 8));
    }
    text
}

/// The frames of some bytes, but not more of them than one reads.
fn clipped(bytes: &[u8]) -> String {
    const LINES: usize = 60;
    let shown = Shown(bytes).to_string();
    let lines: Vec<&str> = shown.lines().collect();
    match lines.len() {
        n if n > LINES => format!("{}\n… {} more lines", lines[..LINES].join("\n"), n - LINES),
        _ => shown,
    }
}

/// The tested program's words are among it: what isn't printable is escaped.
fn indent(text: &str, by: usize) -> String {
    let mut indented = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => indented.push_str(&format!("\n{:by$}", "")),
            '\'' | '"' | '\\' => indented.push(c),
            c => indented.extend(c.escape_debug()),
        }
    }
    indented
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_tested_program_are_shown_and_do_nothing() {
        let shown = indent("it said:\n\u{1b}[2Jgone \u{202e}\"turned\" größer 猫\\", 4);
        assert_eq!(shown, "it said:\n    \\u{1b}[2Jgone \\u{202e}\"turned\" größer 猫\\");
    }
}
