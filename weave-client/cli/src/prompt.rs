//! The prompt, from the command line, a file or standard input.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::ValueHint;
use weave_cli_base::console::read_text;
use weave_cli_base::exit::{Exit, Failure};

/// More than any prompt has: what is read of a file before it is refused.
const MOST: u64 = 1 << 16;

/// Where the prompt comes from.
#[derive(Debug, clap::Args)]
pub(crate) struct Prompt {
    /// What to draw: 1 to 2048 bytes of text; "-" reads it from standard input
    #[arg(required_unless_present = "prompt_file")]
    prompt: Option<String>,

    /// Read the prompt from this file, in UTF-8 or Windows' UTF-16, without line ends at its end; "-" is standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
}

impl Prompt {
    /// The text itself. `invite` is called before somebody has to type it.
    pub(crate) fn read(&self, invite: impl FnOnce()) -> Result<String, Failure> {
        let path = match (self.prompt.as_deref(), self.prompt_file.as_deref()) {
            (Some("-"), _) => Path::new("-"),
            // As a shell has it from a file.
            (Some(prompt), _) => return Ok(prompt.strip_prefix('\u{feff}').unwrap_or(prompt).to_owned()),
            (None, Some(path)) => path,
            // The definition of the command line asks for one of them.
            (None, None) => {
                return Err(Failure::new(Exit::Usage, "there is no prompt").next("say what to draw"));
            }
        };
        if path.as_os_str() == "-" && io::stdin().is_terminal() {
            invite();
        }
        let mut text = read_text(path, MOST)?;
        text.truncate(text.trim_end_matches('\n').len());
        Ok(text)
    }
}
