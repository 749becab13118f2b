//! `weave-conform`: tests servers, clients and libraries of the Weave protocol from outside.

mod manual;
mod session;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, CommandFactory, Parser, Subcommand};
use session::{Console, Session, Shared};
use weave_conformance::case::{Case, Mode, Run};
use weave_conformance::cases::server::be_a_stranger;
use weave_conformance::client::Client;
use weave_conformance::codec::Adapter;
use weave_conformance::report::{Report, matrix};
use weave_conformance::run::{ExpectedFailures, Plan, Selection, run};
use weave_conformance::server::Server;
use weave_conformance::stub::stub;
use weave_conformance::testee::{Address, Folder};
use weave_conformance::verdict::{Failure, Remark};
use weave_conformance::wire::Receiver;

/// Tests implementations of the Weave protocol, in any language, from outside.
#[derive(Parser)]
#[command(name = "weave-conform", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit status: 0 conformant, 1 not conformant, 2 wrong usage, 3 error of the suite itself, or what is tested can't be
started or reached; 129, 130, 131 or 143 ended by SIGHUP, SIGINT, SIGQUIT or SIGTERM.";

#[derive(Subcommand)]
enum Command {
    /// Test a server: one that runs at ADDRESS, or one that --exec starts.
    #[command(after_help = SERVER_EXAMPLES)]
    Server {
        /// Path of a Unix socket, or host:port. Default: a new socket in a temporary directory.
        address: Option<String>,
        /// Shell command that starts the server; {address} is replaced by the address, as one word. The suite
        /// runs it again after a crash.
        #[arg(long, value_name = "COMMAND")]
        exec: Option<String>,
        /// Use a TCP port on the loopback interface instead of a Unix socket.
        #[arg(long, requires = "exec", conflicts_with = "address")]
        tcp: bool,
        #[command(flatten)]
        options: Options,
    },
    /// Test a client that --exec starts.
    #[command(after_help = CLIENT_EXAMPLES)]
    Client {
        /// Shell command that starts the client; {address} is replaced by the server's address, as one word. The
        /// client must request one image of 64×64 pixels, exit with 0 if it got the image and with another status if
        /// not, and print the message of an error.
        #[arg(long, value_name = "COMMAND")]
        exec: Option<String>,
        /// Shell command that requests {count} images, all at once, on one connection.
        #[arg(long, value_name = "COMMAND")]
        exec_several: Option<String>,
        /// Listen on a TCP port of the loopback interface instead of a Unix socket.
        #[arg(long)]
        tcp: bool,
        #[command(flatten)]
        options: Options,
    },
    /// Test a library through an adapter that --exec starts. conformance/ADAPTER.md describes adapters.
    #[command(after_help = CODEC_EXAMPLES)]
    Codec {
        /// Shell command that starts the adapter.
        #[arg(long, value_name = "COMMAND")]
        exec: Option<String>,
        #[command(flatten)]
        options: Options,
    },
    /// Smallest correct server: read one frame from standard input, write a checkerboard or an error to
    /// standard output.
    Stub,
    /// Compare several JSON reports on one HTML page.
    Matrix {
        /// Reports written with --json.
        #[arg(required = true, value_name = "REPORT.json")]
        reports: Vec<PathBuf>,
        /// Write the page to FILE.
        #[arg(long, short, value_name = "FILE.html")]
        output: PathBuf,
    },
    /// Print the manual page.
    Manual,
    #[command(hide = true)]
    Stranger { path: PathBuf, seconds: u64 },
}

const SERVER_EXAMPLES: &str = "\
Examples:
  weave-conform server $XDG_RUNTIME_DIR/weave/weave.sock
  weave-conform server --exec 'weaved --engine pattern --socket {address}'
  weave-conform server --exec './server {address}' --tcp --filter W1-REQ --json report.json
  weave-conform server --list";

const CLIENT_EXAMPLES: &str = "\
Examples:
  weave-conform client --exec 'weave --socket {address} generate x --width 64 --height 64 -o /dev/null'
  weave-conform client --exec 'python3 client.py {address} --width 64 --height 64' --tcp --json report.json";

const CODEC_EXAMPLES: &str = "\
Examples:
  weave-conform codec --exec 'python3 conformance/implementations/python/adapter.py'
  weave-conform codec --exec ./adapter --filter W1-ERR --verbose";

#[derive(Args)]
struct Options {
    /// List the cases and run none; with --verbose, also the requirement of each.
    #[arg(long)]
    list: bool,
    /// Run only cases whose id begins with TEXT or whose title contains it; may be repeated.
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Skip cases whose id begins with TEXT or whose title contains it; may be repeated.
    #[arg(long, value_name = "TEXT")]
    exclude: Vec<String>,
    /// List of known failures: a case id and a reason per line. A listed case that passes counts as a
    /// failure.
    #[arg(long, value_name = "FILE")]
    expected_failures: Option<PathBuf>,
    /// Count failures of recommended cases as well, and required cases that could not be judged because of what
    /// the tested program does.
    #[arg(long)]
    strict: bool,
    /// Run each case N times and keep the worst result.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Seed of the cases that use random numbers.
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    seed: u64,
    /// Timeout of an answer, in seconds. A program may take this long to start as well, and always 20 seconds.
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = positive)]
    timeout: f64,
    /// Name of the tested implementation in reports.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Show the requirements of passed cases as well.
    #[arg(long, short)]
    verbose: bool,
    /// Write a JSON report to FILE, which is emptied before the first case.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a JUnit XML report to FILE, which is emptied before the first case.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(seconds),
        _ => Err("a number of seconds, more than 0 and at most 86400".to_owned()),
    }
}

/// Why the suite could not do its work.
enum Trouble {
    /// The command line is at fault.
    Usage(String),
    /// Something else is.
    Harness(String),
}

fn main() -> ExitCode {
    let done = match Cli::try_parse() {
        Ok(cli) => dispatch(cli.command),
        Err(error) if error.use_stderr() => error.exit(),
        // Help was asked for, or the version.
        Err(error) => print(&error.render().to_string()),
    };
    match done {
        Ok(code) => code,
        Err(Trouble::Usage(text)) => {
            eprintln!("weave-conform: {text}");
            ExitCode::from(2)
        }
        Err(Trouble::Harness(text)) => {
            eprintln!("weave-conform: {text}");
            ExitCode::from(3)
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode, Trouble> {
    match command {
        Command::Server { address, exec, tcp, options } => server(address.as_deref(), exec, tcp, &options),
        Command::Client { exec, exec_several, tcp, options } => client(exec, exec_several, tcp, &options),
        Command::Codec { exec, options } => codec(exec, &options),
        Command::Stub => stub(&mut std::io::stdin().lock(), &mut std::io::stdout().lock())
            .map(|()| ExitCode::SUCCESS)
            .map_err(harness),
        Command::Matrix { reports, output } => {
            let texts: Result<Vec<_>, _> = reports.iter().map(|path| read_report(path)).collect();
            write_file(&output, &matrix(&texts?)).map(|()| ExitCode::SUCCESS)
        }
        Command::Manual => {
            let mut page = Vec::new();
            manual::write(Cli::command(), &mut page).map_err(harness)?;
            print(&String::from_utf8_lossy(&page))
        }
        Command::Stranger { path, seconds } => {
            be_a_stranger(&path, Duration::from_secs(seconds));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn harness(error: impl std::fmt::Display) -> Trouble {
    Trouble::Harness(error.to_string())
}

fn print(text: &str) -> Result<ExitCode, Trouble> {
    let mut console = Console::new();
    console.say(text);
    console.end().map(|()| ExitCode::SUCCESS).map_err(Trouble::Harness)
}

fn server(
    address: Option<&str>,
    exec: Option<String>,
    tcp: bool,
    options: &Options,
) -> Result<ExitCode, Trouble> {
    let plan = match options.plan(Mode::Server)? {
        Planned::Run(plan) => plan,
        Planned::List(text) => return print(&text),
    };
    let mut folder = None;
    let address = match (address, &exec) {
        (None, None) => {
            return Err(Trouble::Usage(
                "where is the server? Give ADDRESS, or --exec COMMAND to start one".to_owned(),
            ));
        }
        (None, Some(command)) if !command.contains("{address}") => {
            return Err(Trouble::Usage("--exec has no {address} in it, and there is no ADDRESS".to_owned()));
        }
        (None, Some(_)) if tcp => {
            // The port is free for the moment; nothing better can be had for a command that takes an address.
            let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(harness)?;
            Address::Tcp(listener.local_addr().map_err(harness)?.to_string())
        }
        (None, Some(_)) => {
            use std::os::unix::fs::DirBuilderExt;
            let folder = folder.insert(Folder::new().map_err(harness)?);
            let path = folder.socket("weave/weave.sock").map_err(harness)?;
            if let Some(parent) = path.parent() {
                std::fs::DirBuilder::new().mode(0o700).create(parent).map_err(harness)?;
            }
            Address::Unix(path)
        }
        (Some(address), _) => Address::parse(address),
    };
    let testee = exec.clone().unwrap_or_else(|| address.to_string());
    let mut server = Server::new(address, exec, options.timeout(), options.seed);
    raise_the_limit_of_open_files();
    options.report(Mode::Server, testee, plan, |case| match &case.run {
        Run::Server(how) => server.run(how, case.requirement()),
        Run::Vectors(_, names) => server.run_vectors(names, case.requirement()),
        _ => unreachable!("the plan is of this mode"),
    })
}

fn client(
    exec: Option<String>,
    several: Option<String>,
    tcp: bool,
    options: &Options,
) -> Result<ExitCode, Trouble> {
    let plan = match options.plan(Mode::Client)? {
        Planned::Run(plan) => plan,
        Planned::List(text) => return print(&text),
    };
    let Some(exec) = exec else { return Err(Trouble::Usage("--exec COMMAND is missing".to_owned())) };
    for command in [Some(&exec), several.as_ref()].into_iter().flatten() {
        if !command.contains("{address}") {
            return Err(Trouble::Usage(format!("{command:?} has no {{address}} in it")));
        }
    }
    let folder = Folder::new().map_err(harness)?;
    let client = Client::new(exec.clone(), several, folder, tcp, options.timeout());
    options.report(Mode::Client, exec, plan, |case| match case.run {
        Run::Client(how) => client.run(how, case.requirement()),
        Run::Vectors(_, names) => client.run_vectors(names, case.requirement()),
        _ => unreachable!("the plan is of this mode"),
    })
}

fn codec(exec: Option<String>, options: &Options) -> Result<ExitCode, Trouble> {
    let plan = match options.plan(Mode::Codec)? {
        Planned::Run(plan) => plan,
        Planned::List(text) => return print(&text),
    };
    let Some(exec) = exec else { return Err(Trouble::Usage("--exec COMMAND is missing".to_owned())) };
    let mut adapter = Adapter::new(exec.clone(), options.timeout());
    options.report(Mode::Codec, exec, plan, |case| match case.run {
        Run::Codec(how) => adapter.run(how, case.requirement()),
        Run::Vectors(receiver, names) => adapter.run_vectors(receiver, names, case.requirement()),
        Run::Streams(names) => adapter.run_vectors(Receiver::Client, names, case.requirement()),
        _ => unreachable!("the plan is of this mode"),
    })
}

impl Options {
    fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }

    fn plan(&self, mode: Mode) -> Result<Planned, Trouble> {
        let selection = Selection { filter: self.filter.clone(), exclude: self.exclude.clone() };
        let cases = selection.of(mode).map_err(Trouble::Usage)?;
        if self.list {
            let mut text = String::new();
            for case in &cases {
                let _ = writeln!(text, "{:<14} {:<14} {}", case.id, case.level.name(), case.title);
                if self.verbose {
                    let _ = writeln!(text, "    {}: {}", case.requirement(), case.sentence());
                }
            }
            return Ok(Planned::List(text));
        }
        let expected_failures = match &self.expected_failures {
            Some(path) => ExpectedFailures::read(path).map_err(Trouble::Usage)?,
            None => ExpectedFailures::default(),
        };
        Ok(Planned::Run(Plan { cases, expected_failures, repeat: self.repeat }))
    }

    fn report(
        &self,
        mode: Mode,
        testee: String,
        plan: Plan,
        one: impl FnMut(&Case) -> Result<Remark, Vec<Failure>>,
    ) -> Result<ExitCode, Trouble> {
        let report = Report {
            mode,
            name: self.name.clone().unwrap_or_else(|| testee.clone()),
            testee,
            began: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            seconds: 0.0,
            seed: self.seed,
            strict: self.strict,
            outcomes: Vec::new(),
            not_run: plan.cases.clone(),
            ended_by: None,
        };
        let session = Session::new(report, self.verbose, self.json.as_deref(), self.junit.as_deref())
            .map_err(Trouble::Usage)?;
        let session = Shared::new(session).map_err(harness)?;
        run(&plan, one, |outcome| session.push(outcome));
        Ok(ExitCode::from(session.end()))
    }
}

/// What is to be done with the cases that were chosen.
enum Planned {
    Run(Plan),
    /// They are only to be shown.
    List(String),
}

fn read_report(path: &Path) -> Result<serde_json::Value, Trouble> {
    let usage = |error: String| Trouble::Usage(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| usage(error.to_string()))?;
    let report: serde_json::Value = serde_json::from_str(&text).map_err(|error| usage(error.to_string()))?;
    if report["suite"]["name"] != "weave-conform" || !report["cases"].is_array() {
        return Err(usage("this is no report of weave-conform; --json FILE makes one".to_owned()));
    }
    Ok(report)
}

fn write_file(path: &Path, text: &str) -> Result<(), Trouble> {
    std::fs::write(path, text).map_err(|error| harness(format!("{}: {error}", path.display())))
}

/// Thousands of connections take as many files.
fn raise_the_limit_of_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
