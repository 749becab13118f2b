//! The prompt, from the command line, a file or standard input.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use crate::args::Generate;
use crate::exit::{Exit, Failure, say};

/// More than any prompt has: what is read of a file before it is refused.
const MOST: u64 = 1 << 16;

pub(crate) fn read(args: &Generate) -> Result<String, Failure> {
    match (args.prompt.as_deref(), args.prompt_file.as_deref()) {
        (Some("-"), _) => from_stdin(args.quiet),
        (Some(prompt), _) => Ok(prompt.to_owned()),
        (None, Some(path)) if path.as_os_str() == "-" => from_stdin(args.quiet),
        (None, Some(path)) => from(path.display(), File::open(path)),
        // The definition of the command line asks for one of them.
        (None, None) => Err(Failure::new(Exit::Usage, "there is no prompt").next("say what to draw")),
    }
}

fn from_stdin(quiet: bool) -> Result<String, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() && !quiet {
        say(format_args!("type the prompt, then Enter and Ctrl-D"));
    }
    from(Path::new("standard input").display(), Ok(stdin.lock()))
}

fn from(name: impl std::fmt::Display, source: io::Result<impl Read>) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    source.and_then(|source| source.take(MOST + 1).read_to_end(&mut bytes)).map_err(|error| {
        Failure::new(Exit::NoInput, format_args!("can't read the prompt from {name}: {error}"))
    })?;
    if bytes.len() as u64 > MOST {
        let what = format_args!("{name} has more than {MOST} bytes, a prompt at most 2048");
        return Err(Failure::new(Exit::Usage, what).next("shorten the prompt"));
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let what = format_args!("{name} is not UTF-8 text from its byte {at} on");
        Failure::new(Exit::NoInput, what).next("a prompt is text in UTF-8")
    })?;
    text.truncate(text.trim_end_matches(['\n', '\r']).len());
    Ok(text)
}
