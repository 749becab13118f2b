//! `weave`: images from a Weave daemon, on the command line.

#![forbid(unsafe_code)]

#[cfg(unix)]
mod admin;
mod args;
mod bench;
mod exit;
#[cfg(feature = "gateway")]
mod gateway;
mod generate;
mod inspect;
mod interrupt;
mod manual;
mod output;
mod ping;
mod png_file;
mod prompt;
#[cfg_attr(not(feature = "gateway"), allow(dead_code, reason = "clouds need it"))]
mod provider;
#[cfg(feature = "gateway")]
mod secret;
mod show;
#[cfg(unix)]
mod stats;
mod terminal;
#[cfg(unix)]
mod top;
mod verify;
mod waiting;

use std::process::ExitCode;

use crate::args::Command;
use crate::exit::Exit;

fn main() -> ExitCode {
    let yes = |()| ExitCode::SUCCESS;
    let verdict = |yes| if yes { ExitCode::SUCCESS } else { ExitCode::from(Exit::Local as u8) };
    let args = match args::parse() {
        Ok(args) => args,
        Err(ended) => return ended,
    };
    let done = match args.command {
        Command::Generate(args) => generate::run(&args).map(yes),
        Command::Verify(args) => verify::run(&args).map(verdict),
        Command::Bench(args) => bench::run(&args).map(yes),
        Command::Inspect(args) => inspect::run(&args).map(verdict),
        Command::Ping(args) => ping::run(&args).map(yes),
        #[cfg(unix)]
        Command::Stats(args) => stats::run(&args).map(yes),
        #[cfg(unix)]
        Command::Top(args) => top::run(&args).map(yes),
        #[cfg(not(unix))]
        Command::Stats(_) | Command::Top(_) => Err(exit::Failure::new(
            Exit::Usage,
            "the daemon's figures are on a Unix socket, which this system has none of; ask on its machine",
        )),
        #[cfg(feature = "gateway")]
        Command::Gateway(args) => gateway::run(&args).map(yes),
        Command::Completions(args) => manual::completions(&args).map(yes),
        Command::Manual(args) => manual::run(&args).map(yes),
    };
    done.unwrap_or_else(exit::Failure::report)
}
