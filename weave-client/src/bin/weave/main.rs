//! `weave`: images from a Weave daemon, on the command line.

#![forbid(unsafe_code)]

mod admin;
mod args;
mod exit;
mod generate;
mod interrupt;
mod manual;
mod output;
mod ping;
mod png_file;
mod prompt;
mod show;
mod stats;
mod top;
mod waiting;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Generate(args) => generate::run(&args),
        Command::Ping(args) => ping::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Manual(args) => manual::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
