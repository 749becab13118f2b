//! Standard output for results, standard error for what else there is to say, and input.
//!
//! Somebody else may have worded a part of each line: a daemon, a cloud, whoever has named a file. What
//! [may not be shown](is_shown) is escaped here, once for all of it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use weave_client::weave_core::text::is_shown;

use crate::exit::{Exit, Failure};

/// A line on standard error. Where that can't be written to, there is nobody to tell.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "weave: {}", plain(&line.to_string()));
}

/// Says on standard error what has failed, and what to do.
pub fn report(failure: &Failure) -> ExitCode {
    say(format_args!("{}", failure.what()));
    if let Some(next) = failure.next_step() {
        say(format_args!("{next}"));
    }
    failure.exit().into()
}

/// A result on standard output, as a line.
///
/// # Errors
/// It can't be written.
pub fn tell(line: fmt::Arguments<'_>) -> Result<(), Failure> {
    write_out(format!("{}\n", plain(&line.to_string())).as_bytes())
}

/// A result on standard output, as JSON.
///
/// # Errors
/// It can't be made, or not be written.
pub fn tell_json(result: &impl Serialize, layout: Layout) -> Result<(), Failure> {
    let json = match layout {
        Layout::Line => serde_json::to_string(result),
        Layout::Indented => serde_json::to_string_pretty(result),
    };
    let json = json.map_err(|error| Failure::new(Exit::Local, format_args!("can't make JSON: {error}")))?;
    let mut shown = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        if c == '\n' || is_shown(c) {
            shown.push(c);
        } else {
            // It stands in a string, and JSON has its own escape for it.
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| shown.push_str(&format!("\\u{unit:04x}")));
        }
    }
    shown.push('\n');
    write_out(shown.as_bytes())
}

/// How JSON is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In one line.
    Line,
    /// Each member in a line of its own.
    Indented,
}

/// Text as a terminal may have it; line ends stay.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c == '\n' || is_shown(c) {
            true => plain.push(c),
            false => plain.extend(c.escape_default()),
        }
    }
    plain
}

/// A result on standard output. A reader that has gone wanted no more; that is no failure.
///
/// # Errors
/// It can't be written.
pub fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Local, format_args!("can't write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// All of a file that was named, or of standard input for "-"; at most `most` bytes.
///
/// # Errors
/// It can't be read, or has more.
pub fn read_in(path: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    let (name, source): (String, io::Result<Box<dyn Read>>) = match path.to_str() {
        Some("-") => ("standard input".to_owned(), Ok(Box::new(io::stdin().lock()))),
        _ => (path.display().to_string(), File::open(path).map(|file| Box::new(file) as _)),
    };
    let mut bytes = Vec::new();
    source
        .and_then(|source| source.take(most.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(|error| Failure::new(Exit::NoInput, format_args!("can't read {name}: {error}")))?;
    match bytes.len() as u64 > most {
        true => Err(Failure::new(Exit::NoInput, format_args!("{name} has more than {most} bytes"))),
        false => Ok(bytes),
    }
}

/// The same as [text](weave_trust::text), whatever system it was written on.
///
/// # Errors
/// It can't be read, has more, or isn't text.
pub fn read_text(path: &Path, most: u64) -> Result<String, Failure> {
    let name = if path.as_os_str() == "-" { "standard input".into() } else { path.to_string_lossy() };
    weave_trust::text(&read_in(path, most)?)
        .map_err(|error| Failure::new(Exit::NoInput, format_args!("{name} {error}")))
}
