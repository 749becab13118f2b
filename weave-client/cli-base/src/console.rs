//! Standard output for results, standard error for what else there is to say, and input.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::exit::{Exit, Failure};

/// A line on standard error. Where that can't be written to, there is nobody to tell.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "weave: {line}");
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
    write_out(format!("{line}\n").as_bytes())
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
