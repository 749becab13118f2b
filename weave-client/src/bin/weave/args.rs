//! What the command line says.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use weave_client::Params;

use crate::exit;

/// What is asked for where nobody says otherwise; the seed is drawn. Texts for people name them as well.
pub(crate) const DEFAULTS: Params = Params { width: 512, height: 512, steps: 28, cfg_scale: 7.0, seed: 0 };

const EXAMPLES: &str = "\
Examples:
  weave generate \"a cat in space\" -o cat.png
  weave generate \"a red circle on a blue background\" --width 128 --height 128 --steps 8 --cfg 1
  weave verify cat.png
  weave ping
  weave top
";

const GENERATE_EXAMPLES: &str = "\
Examples:
  weave generate \"a cat in space\"                  writes weave-SEED.png
  weave generate \"a cat in space\" -o cat.png --seed 7
                                                   the same seed draws the same image again
  weave generate \"a cat in space\" -n 4 -o cat.png  cat-1.png to cat-4.png, with seeds one after the other
  weave generate --prompt-file cat.txt --show      the image is shown in the terminal as well
  fortune | weave generate - --json | jq .file     the prompt comes from standard input
  weave generate \"a cat in space\" -o - | display   the image goes to standard output
";

const VERIFY_EXAMPLES: &str = "\
Examples:
  weave verify cat.png
  weave verify cat.png --json | jq .most_difference
";

const BENCH_EXAMPLES: &str = "\
Examples:
  weave bench --width 1024 --height 1024
  weave bench --requests 500 --connections 8 --width 64 --height 64 --steps 1 --cfg 1
  weave bench --duration 60 --in-flight 4 --json > bench.json
";

const INSPECT_EXAMPLES: &str = "\
Examples:
  weave inspect capture.bin
  socat -u UNIX-LISTEN:here.sock - | weave inspect -     what a client sends
  echo '57455645 0001 00ff 00000012' | weave inspect --hex -
  xxd frame.bin | weave inspect --hex -                  also what hexdump -C writes
";

const PING_EXAMPLES: &str = "\
Examples:
  weave ping
  weave ping --socket /run/weave/weave.sock --timeout 1 && echo up
";

const STATS_EXAMPLES: &str = "\
Examples:
  weave stats
  weave stats --json | jq .weave_queue_length
";

const TOP_EXAMPLES: &str = "\
Examples:
  weave top
  weave top --interval 10 --count 6 > minute.txt
";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  weave completions bash > ~/.local/share/bash-completion/completions/weave
  weave completions zsh > ~/.zfunc/_weave             with ~/.zfunc in fpath
  weave completions fish > ~/.config/fish/completions/weave.fish
";

const MANUAL_EXAMPLES: &str = "\
Examples:
  weave manual ~/.local/share/man/man1 && man weave-generate
";

pub(crate) const SOCKET_HELP: &str = "\
The daemon's socket, or tcp://HOST:PORT [default: $WEAVE_SOCKET, else $XDG_RUNTIME_DIR/weave/weave.sock]";

/// Makes images with a Weave daemon.
#[derive(Debug, Parser)]
#[command(name = "weave", version, after_help = exit::help(EXAMPLES))]
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
    Stats(Stats),
    Top(Top),
    #[cfg(feature = "gateway")]
    Gateway(crate::gateway::Gateway),
    Completions(Completions),
    Manual(Manual),
}

/// Has an image made of a prompt and writes it as a PNG file.
///
/// The result is one line on standard output: file, size, seed, the time that the engine took and
/// the time in all. The file also holds prompt and parameters, where other tools look for them.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::help(GENERATE_EXAMPLES))]
pub(crate) struct Generate {
    /// What to draw: 1 to 2048 bytes of text; "-" reads it from standard input
    #[arg(required_unless_present = "prompt_file")]
    pub(crate) prompt: Option<String>,

    /// Read the prompt from this file; "-" is standard input. Line ends at its end don't count
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "prompt")]
    pub(crate) prompt_file: Option<PathBuf>,

    /// Where the image goes; "-" is standard output [default: weave-SEED.png]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,

    /// How many images: 1 to 1000, with seeds counting up. FILE gets a number: cat.png, cat-1.png
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) count: u32,

    /// Replace the file if there is one already
    #[arg(short, long)]
    pub(crate) force: bool,

    /// Width in pixels: 64 to 2048, a multiple of 64 [default: 512]
    #[arg(long, value_name = "N")]
    pub(crate) width: Option<u32>,

    /// Height in pixels: 64 to 2048, a multiple of 64 [default: 512]
    #[arg(long, value_name = "N")]
    pub(crate) height: Option<u32>,

    /// Denoising steps: 1 to 100 [default: 28]
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u32>,

    /// How strictly the image follows the prompt: 0 to 20 [default: 7]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) cfg: Option<f32>,

    /// Which of the possible images: the same seed draws the same one; 0 draws a random seed
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) seed: u64,

    #[command(flatten)]
    pub(crate) daemon: Daemon,

    /// Give up when an answer takes longer than this [default: wait as long as it takes]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,

    /// Show the image in the terminal, which is asked what it can; --show=HOW doesn't ask
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "auto",
        conflicts_with = "json")]
    pub(crate) show: Option<Show>,

    /// A line of JSON for each image instead of one for people
    #[arg(long)]
    pub(crate) json: bool,

    /// Say nothing unless something goes wrong; with --json only what is JSON
    #[arg(short, long)]
    pub(crate) quiet: bool,

    // The last, because its heading would be that of what comes after it.
    #[cfg(feature = "gateway")]
    #[command(flatten)]
    pub(crate) providers: crate::provider::Settings,
}

/// How an image is shown in a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Show {
    /// In the first of the ways below that the terminal can
    Auto,
    /// As kitty has it; also Ghostty, Konsole, WezTerm
    Kitty,
    /// As iTerm2 has it; also mintty, WezTerm
    Iterm2,
    /// As Sixel graphics; also foot, mlterm, Windows Terminal, xterm -ti vt340
    Sixel,
    /// With coloured characters
    HalfBlocks,
}

/// Generates the image of a PNG file again and compares the pixels.
///
/// Prompt and parameters are those that `weave generate` has written into the file. The same daemon
/// with the same model draws the same image; another device may round otherwise.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::help(VERIFY_EXAMPLES))]
pub(crate) struct Verify {
    /// A PNG file that `weave generate` has made; "-" is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,

    #[command(flatten)]
    pub(crate) daemon: Daemon,

    /// Give up when the answer takes longer than this [default: wait as long as it takes]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,

    /// The result as JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Say nothing unless something goes wrong: the exit status is the result
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
}

/// Puts a load on the daemon and measures how it bears it.
///
/// Each connection has so many requests under way, and sends the next one when an answer is there. A
/// latency is the time from sending a request to its last pixel. Seeds count up. If a request fails, the
/// exit status is that of the first that did.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::help(BENCH_EXAMPLES))]
pub(crate) struct Bench {
    /// How many requests, on all connections together
    #[arg(short = 'r', long, value_name = "N", default_value_t = 20, conflicts_with = "duration",
        value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(crate) requests: u64,

    /// Send requests for this time instead
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) duration: Option<Duration>,

    /// Connections: 1 to 1000
    #[arg(short, long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) connections: u16,

    /// Requests under way on each connection: 1 to 1000
    #[arg(short, long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) in_flight: u16,

    /// What to draw
    #[arg(short, long, value_name = "TEXT", default_value = "a cat in space")]
    pub(crate) prompt: String,

    /// Width in pixels: 64 to 2048, a multiple of 64
    #[arg(long, value_name = "N", default_value_t = DEFAULTS.width)]
    pub(crate) width: u32,

    /// Height in pixels: 64 to 2048, a multiple of 64
    #[arg(long, value_name = "N", default_value_t = DEFAULTS.height)]
    pub(crate) height: u32,

    /// Denoising steps: 1 to 100
    #[arg(long, value_name = "N", default_value_t = DEFAULTS.steps)]
    pub(crate) steps: u32,

    /// How strictly the image follows the prompt: 0 to 20
    #[arg(long, value_name = "X", default_value_t = DEFAULTS.cfg_scale, allow_negative_numbers = true)]
    pub(crate) cfg: f32,

    /// Seed of the first request
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,

    #[command(flatten)]
    pub(crate) daemon: Daemon,

    /// Give up a connection whose next answer takes longer than this [default: wait as long as it takes]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,

    /// The figures as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Takes frames apart: each field with its place, bytes and meaning, and what is wrong with it.
///
/// The input is what went over a connection in one direction, or in both. Requests are judged as a server
/// judges them, answers as a client does; behind what is wrong stands the requirement of the specification.
/// Prompts are shown.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::help(INSPECT_EXAMPLES))]
pub(crate) struct Inspect {
    /// A file with one frame or more; "-" is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,

    /// The input is text: hexadecimal digits, with # before comments, or a dump by xxd or hexdump -C
    #[arg(long)]
    pub(crate) hex: bool,
}

/// Asks whether the daemon is there and answers, without troubling its engine.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::help(PING_EXAMPLES))]
pub(crate) struct Ping {
    #[command(flatten)]
    pub(crate) daemon: Daemon,

    /// Give up after this time
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    pub(crate) timeout: Duration,

    /// The result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which daemon, and how to get in.
#[derive(Debug, clap::Args)]
pub(crate) struct Daemon {
    #[arg(long, value_name = "ADDRESS", value_hint = ValueHint::FilePath, help = SOCKET_HELP)]
    pub(crate) socket: Option<PathBuf>,

    /// The file with the token that the daemon wants to see over TCP [default: $WEAVE_TOKEN_FILE]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) token_file: Option<PathBuf>,
}

/// Where the daemon's administrative socket is.
#[derive(Debug, clap::Args)]
pub(crate) struct Admin {
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, help = SOCKET_HELP)]
    pub(crate) socket: Option<PathBuf>,

    /// Its administrative socket [default: $WEAVE_ADMIN_SOCKET, else NAME-admin.sock beside NAME.sock]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) admin_socket: Option<PathBuf>,
}

/// Shows what the daemon has counted and measured, under the names that its metrics have.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::help(STATS_EXAMPLES))]
pub(crate) struct Stats {
    #[command(flatten)]
    pub(crate) admin: Admin,

    /// As JSON, with the distribution of times
    #[arg(long)]
    pub(crate) json: bool,
}

/// Shows the queue, the workers and what they do, again and again.
///
/// On a terminal each table takes the place of the one before; q or Ctrl-C leaves. Elsewhere they
/// follow each other.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::help(TOP_EXAMPLES))]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) admin: Admin,

    /// How long a table stays
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    pub(crate) interval: Duration,

    /// End after so many tables [default: go on]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

/// Writes the completions for a shell to standard output.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::help(COMPLETIONS_EXAMPLES))]
pub(crate) struct Completions {
    /// For which shell
    pub(crate) shell: Shell,
}

/// Writes the manual's pages into a folder: weave.1, weave-generate.1 and so on.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::help(MANUAL_EXAMPLES))]
pub(crate) struct Manual {
    /// Where to; made if it isn't there. Pages that are there are replaced
    #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub(crate) folder: PathBuf,
}

/// What the command line says, or how the command ends because of what it says.
pub(crate) fn parse() -> Result<Args, ExitCode> {
    Args::try_parse().map_err(|error| {
        // Help and version are results like others, and not written is not done.
        if !error.use_stderr() {
            let shown = exit::write_out(error.to_string().as_bytes());
            return shown.map_or_else(exit::Failure::report, |()| ExitCode::SUCCESS);
        }
        // There is nobody to tell if this can't be told.
        let _ = error.print();
        let unknown = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(argument)) if error.kind() == ErrorKind::UnknownArgument => argument,
            _ => "-",
        };
        if !unknown.starts_with('-') && std::env::args().nth(1).is_some_and(|command| command == "generate") {
            exit::say(format_args!(
                "a prompt of several words needs quotes: weave generate \"a cat in space\""
            ));
        }
        ExitCode::from(exit::Exit::Usage as u8)
    })
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.filter(|time| !time.is_zero()).ok_or_else(|| "must be a number of seconds above 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn a_time_limit_is_a_positive_number_of_seconds() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(seconds("90"), Ok(Duration::from_secs(90)));
        for bad in ["", "0", "-1", "nan", "inf", "1e30", "5s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
