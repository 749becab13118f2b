//! `weave top`: the queue, the workers and the rates, again and again.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGINT, SIGTERM};
use weave_cli_base::admin::{Admin, AdminSocket, Stats};
use weave_cli_base::arguments::seconds;
use weave_cli_base::console::plain;
use weave_cli_base::exit::{Exit, Failure, help};
use weave_cli_base::model::Model;
use weave_cli_base::requests::Requests;

use crate::parameters::count;
use crate::terminal;

const EXAMPLES: &str = "\
Examples:
  weave top
  weave top --interval 10 --count 6 > minute.txt
";

/// Show the queue, the workers and the request rates, again and again.
///
/// On a terminal each table replaces the one before; q or Ctrl-C quits. Elsewhere, and where TERM is "dumb" or not set, they
/// are printed one after the other.
#[derive(Debug, clap::Args)]
#[command(after_help = help(EXAMPLES))]
pub(crate) struct Top {
    #[command(flatten)]
    admin: Admin,

    /// Time between two tables
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    interval: Duration,

    /// Stop after this many tables [default: go on]
    #[arg(long, value_name = "N", value_parser = count::<{ u64::MAX }>, allow_negative_numbers = true)]
    count: Option<u64>,
}

pub(crate) fn run(args: &Top) -> Result<(), Failure> {
    let socket = args.admin.find()?;
    // A daemon that isn't there at all is more likely a wrong path than one that restarts.
    let mut before = (Stats::ask(&socket)?, Instant::now());
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).map_err(local)?;
    }
    let screen = Screen::open().map_err(local)?;
    let mut shown = 0;
    let mut table = self::table(&socket.path, &before.0, None) + &beside(&socket);
    loop {
        // Somebody else's words are among it.
        table = plain(&table);
        match &screen {
            Some(_) => Screen::show(&table).map_err(local)?,
            None => match write(&format!("{table}\n")) {
                // Whoever reads it wants no more.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                other => other.map_err(local)?,
            },
        }
        shown += 1;
        if args.count == Some(shown) || !wait(args.interval, screen.as_ref(), &ended).map_err(local)? {
            return Ok(());
        }
        table = match Stats::ask(&socket) {
            Ok(stats) => {
                let now = Instant::now();
                let table = self::table(&socket.path, &stats, Some((&before.0, now - before.1)));
                let table = table + &beside(&socket);
                before = (stats, now);
                table
            }
            // It may be restarting, and who looks at the screen sees that.
            Err(failure) if screen.is_some() => format!("{}\ntrying again\n", failure.what()),
            Err(failure) => return Err(failure),
        };
    }
}

fn local(error: io::Error) -> Failure {
    Failure::new(Exit::Local, format_args!("can't write to standard output: {error}"))
}

/// Waits for the time to pass, and for keys if there is a screen. `false`: it is to end.
fn wait(interval: Duration, screen: Option<&Screen>, ended: &AtomicBool) -> io::Result<bool> {
    let until = Instant::now() + interval;
    let stdin = io::stdin();
    loop {
        if ended.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(true);
        }
        let mut key = [PollFd::new(&stdin, PollFlags::IN)];
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(if screen.is_some() { &mut key } else { &mut [] }, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => {
                let mut typed = [0; 64];
                let n = stdin.lock().read(&mut typed)?;
                if n == 0 || typed[..n].contains(&b'q') {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// A terminal that shows one table in place of another. Dropped, it is as it was.
struct Screen {
    before: Termios,
}

impl Screen {
    /// `None`: there is no terminal, or none that has keys, or that knows what it is told.
    fn open() -> io::Result<Option<Self>> {
        if terminal::is_dumb() || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin())?;
        let mut keys = before.clone();
        // Keys come one by one and don't show. Ctrl-C stays what it is.
        keys.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        tcsetattr(io::stdin(), OptionalActions::Now, &keys)?;
        let screen = Self { before };
        // The other screen, without a cursor.
        write("\x1b[?1049h\x1b[?25l")?;
        Ok(Some(screen))
    }

    fn show(table: &str) -> io::Result<()> {
        // From the top left, each line up to its end, and nothing below.
        let lines = table.replace('\n', "\x1b[K\r\n");
        write(&format!("\x1b[H{lines}\x1b[K\r\nq: leave\x1b[J"))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // If the terminal is gone there is nothing to restore.
        let _ = write("\x1b[?25h\x1b[?1049l");
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// What is shown. Rates are over the time since `before`.
fn table(socket: &Path, now: &Stats, before: Option<(&Stats, Duration)>) -> String {
    let n = |name: &str| now.number(name);
    // A daemon that was restarted counts from the beginning.
    let grown = |name: &str| before.map(|(before, _)| (n(name) - before.number(name)).max(0.0));
    let per_second = |name: &str| {
        let time = before.map_or(0.0, |(_, time)| time.as_secs_f64());
        grown(name).filter(|_| time > 0.0).map(|grown| grown / time)
    };
    let state = if n("weave_draining") > 0.0 {
        "stopping"
    } else if n("weave_ready") > 0.0 {
        "ready"
    } else {
        "not ready"
    };
    let mut out = String::new();
    // Writing to a `String` doesn't fail.
    let _ = writeln!(
        out,
        "weaved {} ({}) at {}: {state}, up {}\n",
        now.label("weave_build_info"),
        now.label("weave_engine_info"),
        socket.display(),
        time(n("weave_uptime_seconds"))
    );
    let _ = writeln!(
        out,
        "waiting   {:>6} of {}, at most {}, the oldest for {}",
        n("weave_queue_length"),
        n("weave_queue_limit"),
        n("weave_queue_length_max"),
        time(n("weave_queue_oldest_seconds"))
    );
    let _ = writeln!(
        out,
        "running   {:>6} on {} of {} workers that are up",
        n("weave_requests_running"),
        n("weave_workers_up"),
        n("weave_workers")
    );
    for worker in 0.. {
        let of = |name: &str| now.known(&format!("{name}/{worker}"));
        // A daemon of an earlier version doesn't say.
        let Some(phase) = of("weave_worker_phase") else { break };
        let (step, steps) = (of("weave_worker_step"), of("weave_worker_steps"));
        let _ = writeln!(out, "worker {worker:<3}{}", doing(phase, step, steps));
    }
    let _ = writeln!(
        out,
        "clients   {:>6} of {}, at most {}",
        n("weave_connections"),
        n("weave_connections_limit"),
        n("weave_connections_max")
    );
    let memory = [n("process_resident_memory_bytes"), n("weave_worker_resident_memory_bytes")].map(bytes);
    let _ = writeln!(out, "memory    {:>9}, workers {}\n", memory[0], memory[1]);

    let _ = writeln!(out, "{:<10}{:>12}{:>14}", "", "in all", "per second");
    for outcome in ["image", "invalid", "busy", "failed", "abandoned"] {
        let name = format!("weave_requests_total/{outcome}");
        let rate = per_second(&name).map_or("-".to_owned(), |rate| format!("{rate:.1}"));
        let _ = writeln!(out, "{outcome:<10}{:>12}{rate:>14}", n(&name));
    }
    for (what, name) in [("bytes in", "weave_received_bytes_total"), ("bytes out", "weave_sent_bytes_total")]
    {
        let rate = per_second(name).map_or("-".to_owned(), bytes);
        let _ = writeln!(out, "{what:<10}{:>12}{rate:>14}", bytes(n(name)));
    }

    let _ = writeln!(out, "\n{:<10}{:>12}{:>14}", "mean", "in all", "just now");
    for (what, name) in [
        ("in queue", "weave_queue_wait_seconds"),
        ("at work", "weave_generation_seconds"),
        ("together", "weave_request_seconds"),
    ] {
        let (count, sum) = (format!("{name}/count"), format!("{name}/sum"));
        let all = (n(&count) > 0.0).then(|| n(&sum) / n(&count));
        let lately = grown(&count).zip(grown(&sum)).filter(|(count, _)| *count > 0.0).map(|(n, sum)| sum / n);
        let [all, lately] = [all, lately].map(|mean| mean.map_or("-".to_owned(), time));
        let _ = writeln!(out, "{what:<10}{all:>12}{lately:>14}");
    }
    let deaths: f64 = ["exit", "signal", "not_started", "thread"]
        .iter()
        .map(|cause| n(&format!("weave_worker_deaths_total/{cause}")))
        .sum();
    let _ = writeln!(out, "\nworkers lost: {deaths}, of these ended for taking too long: {}", {
        n("weave_worker_kills_total/too_slow")
    });
    out
}

/// What other pages than that of the figures say. A daemon of an earlier version has none of them.
fn beside(socket: &AdminSocket) -> String {
    let model = match Model::ask(socket) {
        Ok(Some(Model { name, toy: true, draws: Some(draws), .. })) => {
            format!("model: {name}, to try Weave with: it draws {draws}\n")
        }
        Ok(Some(Model { name, .. })) => format!("model: {name}\n"),
        _ => String::new(),
    };
    model + &list(&Requests::ask(socket))
}

/// A line for each request that is under way or waits, as far as they have room.
fn list(requests: &Result<Option<Requests>, Failure>) -> String {
    /// Of those that wait; the others are no more than the workers.
    const MOST: usize = 8;

    let Ok(Some(Requests { running, waiting })) = requests else { return String::new() };
    let mut out = String::new();
    // Writing to a `String` doesn't fail.
    let mut line = |id: u64, what: &str, seconds: f64| {
        let _ = writeln!(out, "{id:<18}{what:<28} for {}", time(seconds));
    };
    for request in running {
        let step = match request.steps {
            0 => "begun".to_owned(),
            steps => format!("step {} of {steps}", request.step),
        };
        // Nobody will get its image.
        let gone = if request.abandoned { ", its client has gone" } else { "" };
        line(request.request_id, &format!("{step}{gone}"), request.seconds);
    }
    for (at, request) in waiting.iter().take(MOST).enumerate() {
        let place = if at == 0 { "waits, the next one".to_owned() } else { format!("waits, {at} before it") };
        line(request.request_id, &place, request.seconds);
    }
    if waiting.len() > MOST {
        let _ = writeln!(out, "and {} more that wait", waiting.len() - MOST);
    }
    if out.is_empty() { out } else { format!("\n{:<18}\n{out}", "request") }
}

/// What a worker does, by the numbers that stand for it in the metrics.
fn doing(phase: f64, step: Option<f64>, steps: Option<f64>) -> String {
    let phase = match phase {
        0.0 => "idle",
        1.0 => "loads its model",
        2.0 => "encodes the prompt",
        3.0 => "samples",
        4.0 => "decodes",
        _ => "busy",
    };
    match (step, steps.filter(|steps| *steps > 0.0)) {
        (Some(step), Some(steps)) => format!("{phase}, {step} of {steps}"),
        _ => phase.to_owned(),
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s if s < 100.0 * 3600.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} d", s / 86_400.0),
    }
}

fn bytes(number: f64) -> String {
    match number {
        n if n < 1e3 => format!("{n:.0} B"),
        n if n < 1e6 => format!("{:.1} kB", n / 1e3),
        n if n < 1e9 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.1} GB", n / 1e9),
    }
}
