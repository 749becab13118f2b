//! The command line: all commands, each of which owns its arguments.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use weave_cli_base::console::{report, say, write_out};
use weave_cli_base::exit::{Exit, Failure, help};

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
  weave generate \"a red circle on a blue background\" --size 128x128 --steps 8 --cfg-scale 1
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
        if let Some(failure) = wanted(&error) {
            return report(&failure);
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

/// What is there instead, for what people know from other programs, or have not said.
fn wanted(error: &clap::Error) -> Option<Failure> {
    let command = std::env::args().nth(1).unwrap_or_default();
    let said = |kind| match error.get(kind) {
        Some(ContextValue::String(said)) => Some(said.as_str()),
        _ => None,
    };
    let failure = |what: std::fmt::Arguments<'_>, next| Failure::new(Exit::Usage, what).next(next);
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let name = said(ContextKind::InvalidSubcommand)?;
            Some(failure(format_args!("there is no `weave {name}`"), instead_of_command(name)?))
        }
        ErrorKind::UnknownArgument => {
            let name = said(ContextKind::InvalidArg)?;
            let (name, _) = name.split_once('=').unwrap_or((name, ""));
            let next = instead_of_option(name).filter(|_| ["generate", "bench"].contains(&&*command))?;
            Some(failure(format_args!("`weave {command}` has no {name}"), next))
        }
        ErrorKind::MissingRequiredArgument if command == "generate" => Some(failure(
            format_args!("there is no prompt"),
            "say what to draw: weave generate \"a cat in space\"; or --prompt-file FILE, or - to read standard input",
        )),
        _ => None,
    }
}

fn instead_of_command(name: &str) -> Option<&'static str> {
    Some(match name {
        "status" | "health" => {
            "`weaved status` says whether the daemon is ready, `weave top` and `weave stats` what it does"
        }
        "model" | "models" | "list" | "ls" | "pull" | "download" | "show" => {
            "a daemon has one model, which its setting `model` names; docs/models.md says how to get one"
        }
        "serve" | "server" | "start" | "daemon" | "run" => {
            "`weaved` is the daemon, `weave gateway` the server for OpenAI's API"
        }
        "check" | "config" | "devices" => "that is for the daemon's program: `weaved --help`",
        "draw" | "create" | "make" | "image" | "txt2img" | "imagine" => {
            "`weave generate \"a cat in space\"` makes an image"
        }
        _ => return None,
    })
}

fn instead_of_option(name: &str) -> Option<&'static str> {
    Some(match name.trim_start_matches('-').replace('_', "-").as_str() {
        "negative-prompt" | "negative" | "neg" => {
            "say in the prompt what to draw; docs/limits.md has what Weave can't do, and what to do instead"
        }
        "sampler" | "sampling-method" | "sampler-name" | "scheduler" | "schedule" | "rng" | "clip-skip" => {
            "the daemon has one for all images: its settings sampler, scheduler and so on; see docs/limits.md"
        }
        "model" | "m" | "checkpoint" | "ckpt" | "diffusion-model" | "vae" | "clip-l" | "clip-g" | "t5xxl" => {
            "the daemon has one for all images: its setting model; docs/models.md says how to get one"
        }
        "lora" | "lora-model-dir" | "control-net" | "controlnet" | "embeddings" | "img2img" | "init-img"
        | "i" | "init-image" | "image" | "mask" | "strength" | "denoise" | "upscale" | "upscale-model"
        | "hires" => "docs/limits.md has what Weave can't do, and what to do instead",
        "batch-count" | "batch" | "batch-size" | "b" | "num-images" | "images" => "-n N makes several",
        "guidance" | "guidance-scale" | "scale" => "that is --cfg-scale X",
        "num-inference-steps" | "sampling-steps" => "that is --steps N",
        "p" | "text" => "the prompt stands alone: weave generate \"a cat in space\"",
        "out" | "out-file" | "file" => "that is -o FILE",
        "format" | "output-format" => "the suffix says it: -o cat.png, cat.jpg, cat.jpeg or cat.webp",
        "threads" | "t" | "device" | "gpu" => "that is a setting of the daemon: `weaved --help`",
        _ => return None,
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
