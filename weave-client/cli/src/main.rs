//! `weave`: images from a Weave daemon, on the command line.
//!
//! `weave --help` explains it. `weave gateway` and `--providers` come with the feature `gateway`, which is on by default.
//! The exit status is one of
//!
//! | status | meaning |
//! | --- | --- |
//! | 0 | done |
//! | 1 | something failed on this side, or the answer is no: other pixels (verify), a bad frame (inspect) |
//! | 2 | bad usage, or a parameter out of its range: nothing was sent |
//! | 3 | the daemon refused the request; the same request will be refused again |
//! | 4 | the daemon is busy or ending; the same request may succeed later |
//! | 5 | time ran out, on the daemon's side or by --timeout |
//! | 7 | the daemon failed: it could not generate the image, or hung up |
//! | 66 | a file that was named can't be read, or isn't what it should be |
//! | 69 | no daemon answers at the socket |
//! | 76 | what answers there doesn't speak Weave properly, or doesn't know the token |
//! | 77 | the socket is another user's than the daemon's: nothing was sent |
//! | 130 | interrupted with Ctrl-C; 129 when its terminal was closed, 143 when ended by SIGTERM |

#![forbid(unsafe_code)]

mod args;
mod bench;
mod beside;
mod generate;
mod inspect;
mod interrupt;
mod manual;
mod output;
mod parameters;
mod ping;
mod prompt;
mod show;
#[cfg(unix)]
mod stats;
mod terminal;
#[cfg(unix)]
mod top;
mod verify;
mod waiting;

use std::process::ExitCode;

use clap::CommandFactory;
use weave_cli_base::console::report;
use weave_cli_base::exit::Exit;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let yes = |()| ExitCode::SUCCESS;
    let verdict = |yes| if yes { ExitCode::SUCCESS } else { Exit::Local.into() };
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
        Command::Stats(_) | Command::Top(_) => Err(weave_cli_base::exit::Failure::new(
            Exit::Usage,
            "the daemon's figures are on a Unix socket, which this system has none of; ask on its machine",
        )),
        #[cfg(feature = "gateway")]
        Command::Gateway(args) => weave_gateway::run(&args).map(yes),
        Command::Completions(args) => manual::completions(&args, Args::command()).map(yes),
        Command::Manual(args) => manual::run(&args, Args::command()).map(yes),
    };
    done.unwrap_or_else(|failure| report(&failure))
}

#[cfg(test)]
mod tests {
    use weave_cli_base::exit::MEANINGS;

    #[test]
    fn the_documentation_lists_the_same_statuses() {
        let documented = include_str!("main.rs");
        for (number, meaning) in MEANINGS {
            assert!(documented.contains(&format!("//! | {number} | {meaning} |\n")), "{number}: {meaning}");
        }
    }
}
