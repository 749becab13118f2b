//! The prompt, from the command line, a file or standard input.

use std::io::{self, IsTerminal};
use std::path::Path;

use crate::args::Generate;
use crate::exit::{Exit, Failure, read_in, say};

/// More than any prompt has: what is read of a file before it is refused.
const MOST: u64 = 1 << 16;

pub(crate) fn read(args: &Generate) -> Result<String, Failure> {
    let path = match (args.prompt.as_deref(), args.prompt_file.as_deref()) {
        (Some("-"), _) => Path::new("-"),
        (Some(prompt), _) => return Ok(prompt.to_owned()),
        (None, Some(path)) => path,
        // The definition of the command line asks for one of them.
        (None, None) => return Err(Failure::new(Exit::Usage, "there is no prompt").next("say what to draw")),
    };
    if path.as_os_str() == "-" && io::stdin().is_terminal() && !args.quiet {
        say(format_args!("type the prompt, then Enter and Ctrl-D"));
    }
    let mut text = String::from_utf8(read_in(path, MOST)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let what = format_args!("{} is not UTF-8 text from its byte {at} on", path.display());
        Failure::new(Exit::NoInput, what).next("a prompt is text in UTF-8")
    })?;
    text.truncate(text.trim_end_matches(['\n', '\r']).len());
    Ok(text)
}
