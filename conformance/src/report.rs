//! Results, for people and for programs.

use std::fmt::Write as _;
use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};
use serde_json::{Value, json};

use crate::case::{Mode, Outcome};
use crate::spec::sentence;
use crate::verdict::{Failure, Verdict};
use crate::wire::{Shown, hex};

/// All of a run.
#[derive(Debug)]
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

    /// Whether nothing counts against it.
    #[must_use]
    pub fn is_conformant(&self) -> bool {
        self.against().next().is_none()
    }

    /// Whether the suite itself was in trouble.
    #[must_use]
    pub fn has_harness_error(&self) -> bool {
        self.count(Verdict::Harness) > 0
    }

    /// What a person reads: everything that did not pass, and a summary.
    #[must_use]
    pub fn console(&self, verbose: bool, colour: bool) -> String {
        let mut text = String::new();
        let paint = |verdict: Verdict, word: &str| match (colour, verdict) {
            (false, _) => word.to_owned(),
            (true, Verdict::Pass) => format!("\x1b[32m{word}\x1b[0m"),
            (true, Verdict::Warn | Verdict::Skip) => format!("\x1b[33m{word}\x1b[0m"),
            (true, _) => format!("\x1b[31m{word}\x1b[0m"),
        };
        for outcome in &self.outcomes {
            let is_quiet = matches!(outcome.verdict, Verdict::Pass) && !outcome.expected_to_fail;
            if is_quiet && !verbose {
                continue;
            }
            let word = paint(outcome.verdict, &outcome.verdict.name().to_uppercase());
            let _ = writeln!(text, "{word} {} ({}): {}", outcome.id, outcome.level.name(), outcome.title);
            let _ = writeln!(text, "    {}: {}", outcome.requirement(), sentence(outcome.requirement()));
            match (&outcome.reason, outcome.expected_to_fail, outcome.verdict.is_bad()) {
                (Some(reason), true, true) => _ = writeln!(text, "    expected to fail: {reason}"),
                (Some(reason), true, false) => {
                    let _ = writeln!(text, "    was expected to fail, and does not any more: {reason}");
                }
                (Some(reason), false, _) => _ = writeln!(text, "    {reason}"),
                (None, ..) => {}
            }
            for failure in &outcome.failures {
                text.push_str(&in_words(failure));
                // Another requirement that came in the way of the case's own.
                if !["", outcome.requirement()].contains(&failure.requirement.as_str()) {
                    let _ = writeln!(text, "    {}: {}", failure.requirement, failure.sentence());
                }
            }
        }
        let counts: Vec<String> = Verdict::ALL
            .into_iter()
            .filter(|verdict| self.count(*verdict) > 0)
            .map(|verdict| format!("{} {}", self.count(verdict), verdict.name()))
            .collect();
        let _ = writeln!(
            text,
            "{} {}: {} cases in {:.1} s: {}",
            self.mode.name(),
            self.name,
            self.outcomes.len(),
            self.seconds,
            counts.join(", ")
        );
        let skipped = self.count(Verdict::Skip);
        let _ = match self.against().count() {
            0 if skipped > 0 => {
                let tried = paint(Verdict::Pass, "conformant as far as it was tried");
                writeln!(text, "{tried}: {skipped} cases were skipped")
            }
            0 => writeln!(text, "{}", paint(Verdict::Pass, "conformant")),
            n => writeln!(text, "{}: {n} cases count against it", paint(Verdict::Fail, "NOT conformant")),
        };
        text
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
        let failed = self.against().filter(|outcome| outcome.verdict != Verdict::Harness).count();
        let errors = self.against().count() - failed;
        xml.create_element("testsuites").write_inner_content(|xml| {
            xml.create_element("testsuite")
                .with_attribute(("name", suite.as_str()))
                .with_attribute(("tests", number(self.outcomes.len()).as_str()))
                .with_attribute(("failures", number(failed).as_str()))
                .with_attribute(("errors", number(errors).as_str()))
                .with_attribute(("skipped", number(self.count(Verdict::Skip)).as_str()))
                .with_attribute(("time", format!("{:.3}", self.seconds).as_str()))
                .write_inner_content(|xml| {
                    self.outcomes.iter().try_for_each(|outcome| self.junit_case(xml, &suite, outcome))
                })
                .map(drop)
        })?;
        String::from_utf8(xml.into_inner()).map_err(io::Error::other)
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
            Verdict::Harness => ("error", "the suite is in trouble".to_owned()),
            verdict if outcome.counts(self.strict) => ("failure", verdict.name().to_owned()),
            Verdict::Skip => ("skipped", reason),
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
