//! `weaved worker`: what comes before its engine.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
#[cfg(target_os = "linux")]
use rustix::process::set_parent_process_death_signal;
use rustix::process::{Signal, getpid, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use weave_daemon::config::{Config, ConfigError, Sandbox};
use weave_daemon::sandbox::{self, Rules};
use weave_daemon::scoreboard::{self, Control};
use weave_daemon::worker::{self, Settled};
use weave_trust::check_server;

use crate::Failure;

/// Serves whoever has started this process, or listens at `connect`.
pub(crate) fn serve(config: &Config, connect: Option<PathBuf>) -> Result<(), Failure> {
    // Who was started by hand may be stopped by hand. A daemon's own worker is ended by the daemon.
    let stop = connect.as_ref().map(|_| Stop::new()).transpose();
    let stop = stop.map_err(|error| Failure::Other(format!("can't wait for signals: {error}")))?;
    let stream = match &connect {
        Some(path) => connect_to(path)?,
        None => {
            // Also while this process itself is stopped. If it can't be had, the stream's end does it.
            #[cfg(target_os = "linux")]
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            inherited_socket()?
        }
    };
    let control = inherited_scoreboard();
    // The sandbox lets no descriptor be doubled.
    let other_end = stream.try_clone().map_err(|error| Failure::Other(error.to_string()))?;
    let mode = config.decided().sandbox;
    let entered = match mode {
        Sandbox::Off => {
            log::info!("this worker is not sandboxed: sandbox is off (the default of builds for GPUs alone)");
            None
        }
        Sandbox::On | Sandbox::Require => Some(enter_sandbox(config, mode)?),
    };
    let settle = || {
        let Some(entered) = &entered else { return Ok(Settled::Open) };
        match entered.settle() {
            Ok(settled) => Ok(settled),
            Err(kept) if mode == Sandbox::Require => Err(too_little(&kept)),
            Err(kept) => {
                log::warn!("{}", incomplete(&kept));
                Ok(Settled::Open)
            }
        }
    };
    // If whoever started this process is gone, so are we, whatever the engine is doing.
    if connect.is_some() {
        thread::spawn(|| {
            let mut input = std::io::stdin().lock();
            while matches!(input.read(&mut [0; 256]), Ok(1..)) {}
            log::warn!(
                "standard input has ended, and so does this worker: whoever starts one with --connect keeps its standard \
                 input open as long as it is to run"
            );
            std::process::exit(0);
        });
    } else {
        thread::spawn(move || end_with(&other_end));
    }
    match stop {
        None => worker::run(config, stream, control, &settle),
        Some(stop) => worker::run(config, Stoppable { stream, stop }, control, &settle),
    }
    .map_err(Failure::Other)
}

/// Connects to whoever is to give this worker its requests, if that may be trusted with what it draws.
fn connect_to(path: &Path) -> Result<UnixStream, Failure> {
    let stream = UnixStream::connect(path)
        .map_err(|error| Failure::Other(format!("can't connect to {}: {error}", path.display())))?;
    check_server(&stream, path, None).map_err(|stranger| {
        let path = path.display();
        Failure::Stranger(format!("{path} {stranger}; start this worker as the user whose socket it is"))
    })?;
    Ok(stream)
}

/// SIGTERM and SIGINT: the first one ends this process after its image, the second one at once.
struct Stop(UnixStream);

impl Stop {
    fn new() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        let came = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // In this order: whether it came before is asked before it has come.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&came))?;
            signal_hook::flag::register(signal, Arc::clone(&came))?;
            signal_hook::low_level::pipe::register(signal, theirs.try_clone()?)?;
        }
        Ok(Self(ours))
    }
}

/// A stream that has no more to read once this process is to stop.
struct Stoppable {
    stream: UnixStream,
    stop: Stop,
}

impl Read for Stoppable {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready =
                [PollFd::new(&self.stop.0, PollFlags::IN), PollFd::new(&self.stream, PollFlags::IN)];
            match poll(&mut ready, None) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            if !ready[0].revents().is_empty() {
                log::info!("told to stop: no request is under way");
                return Ok(0);
            }
            return self.stream.read(buf);
        }
    }
}

impl Write for Stoppable {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// `weaved worker --try-sandbox`: whether all of it can be had here, asked before anybody is served.
pub(crate) fn try_sandbox(config: &Config) -> Result<(), Failure> {
    let settled = enter_sandbox(config, Sandbox::Require)?.settle();
    settled.map(drop).map_err(|kept| Failure::Sandbox(too_little(&kept)))
}

fn too_little(kept: &str) -> String {
    format!(
        "sandbox is \"require\", but a worker would keep {kept}; use a newer kernel with Landlock and seccomp (Linux \
         5.13, in builds for GPUs 6.12), or set sandbox to \"on\" to do without"
    )
}

fn incomplete(kept: &str) -> String {
    format!("the sandbox is incomplete, the worker keeps {kept}; set --sandbox off to accept that")
}

/// Gives up what a worker doesn't need. Where that is required, all of it or none of it is good.
fn enter_sandbox(config: &Config, mode: Sandbox) -> Result<sandbox::Entered, Failure> {
    let files: Vec<_> = config.model.parts().into_iter().filter_map(|(_, path)| path).collect();
    let rules = Rules { maps_files: config.tuning.mmap, ..Rules::new(&files) };
    let entered = sandbox::enter(&rules);
    match entered.missing().join(", ") {
        kept if kept.is_empty() => {
            log::debug!("in the sandbox: no network, no files except the engine's");
            Ok(entered)
        }
        kept if mode == Sandbox::Require => Err(Failure::Sandbox(too_little(&kept))),
        kept => {
            log::warn!("{}", incomplete(&kept));
            Ok(entered)
        }
    }
}

/// Ends this process when nobody has the other end of its stream any more. The signal of a parent's death alone would
/// not do: the parent may be a script.
fn end_with(stream: &UnixStream) {
    // Nothing but the end: what comes is for the engine.
    let mut end = [PollFd::new(stream, PollFlags::empty())];
    while poll(&mut end, None).is_err() {}
    // Who isn't busy sees it, and ends well.
    thread::sleep(Duration::from_millis(100));
    let _ = kill_process(getpid(), Signal::KILL);
}

/// Where the daemon looks how far this worker is. Taken before the sandbox closes the way to it.
fn inherited_scoreboard() -> Control {
    let Some(number) = std::env::var_os(scoreboard::VARIABLE) else { return Control::none() };
    let number = number.to_str().and_then(|number| number.parse().ok());
    number.and_then(Control::inherited).unwrap_or_else(|| {
        log::warn!("this worker can't report progress or be cancelled: is /proc missing?");
        Control::none()
    })
}

/// Standard input, if it is the socket that the daemon puts there.
fn inherited_socket() -> Result<UnixStream, Failure> {
    let stdin = std::io::stdin();
    if rustix::net::sockopt::socket_type(stdin.as_fd()).is_err() {
        return Err(Failure::Config(ConfigError::Usage(
            "a worker takes its requests from a socket: say --connect PATH".to_owned(),
        )));
    }
    let socket = stdin.as_fd().try_clone_to_owned();
    socket.map(UnixStream::from).map_err(|error| Failure::Other(format!("can't use standard input: {error}")))
}
