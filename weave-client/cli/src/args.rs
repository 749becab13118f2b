//! The command line: all commands, each of which owns its arguments.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use weave_cli_base::console::{report, say, write_out};
use weave_cli_base::exit::{Exit, help};

use crate::bench::Bench;
use crate::generate::Generate;
use crate::inspect::Inspect;
use crate::manual::{Completions, Manual};
use crate::ping::Ping;
#[cfg(unix)]
use crate::stats::Stats;
#[cfg(unix)]
use crate::top::Top;
use crate::verify::Verify;

const EXAMPLES: &str = "\
Examples:
  weave generate \"a cat in space\" -o cat.png
  weave generate \"a red circle on a blue background\" --width 128 --height 128 --steps 8 --cfg 1
  weave verify cat.png
  weave ping
  weave top
";

/// Generate images with a Weave daemon.
#[derive(Debug, Parser)]
#[command(name = "weave", version, after_help = help(EXAMPLES))]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Generate(Generate),
    Verify(Verify),
    Bench(Bench),
    Inspect(Inspect),
    Ping(Ping),
    #[cfg(unix)]
    Stats(Stats),
    #[cfg(unix)]
    Top(Top),
    /// Show the daemon's statistics: only on systems with Unix sockets
    #[cfg(not(unix))]
    Stats(OnUnix),
    /// Show the queue, the workers and the request rates: only on systems with Unix sockets
    #[cfg(not(unix))]
    Top(OnUnix),
    #[cfg(feature = "gateway")]
    Gateway(weave_gateway::Gateway),
    Completions(Completions),
    Manual(Manual),
}

/// The arguments of a command that takes a Unix socket, on a system that has none.
#[cfg(not(unix))]
#[derive(Debug, clap::Args)]
pub(crate) struct OnUnix {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    ignored: Vec<std::ffi::OsString>,
}

/// What the command line says, or how the command ends because of what it says.
pub(crate) fn parse() -> Result<Args, ExitCode> {
    let found = without_empty_variables(Args::command()).try_get_matches();
    found.and_then(|found| Args::from_arg_matches(&found)).map_err(|error| {
        // Help and version are results like others, and not written is not done.
        if !error.use_stderr() {
            let shown = write_out(error.to_string().as_bytes());
            return shown.map_or_else(|failure| report(&failure), |()| ExitCode::SUCCESS);
        }
        // There is nobody to tell if this can't be told.
        let _ = error.print();
        let unknown = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(argument)) if error.kind() == ErrorKind::UnknownArgument => argument,
            _ => "-",
        };
        if !unknown.starts_with('-') && std::env::args().nth(1).is_some_and(|command| command == "generate") {
            say(format_args!("a prompt of several words needs quotes: weave generate \"a cat in space\""));
        }
        Exit::Usage.into()
    })
}

/// A variable that is set to nothing counts as one that isn't set.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty =
        |arg: &clap::Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| if is_empty(&arg) { arg.env(None::<&'static str>) } else { arg })
        .mut_subcommands(without_empty_variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }
}
