//! Starting, watching and ending the children that are workers.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{self, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_socket_send_buffer_size;
#[cfg(target_os = "linux")]
use rustix::process::set_parent_process_death_signal;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getrlimit, kill_process, kill_process_group,
    setrlimit, setsid, waitid,
};
use weave_core::text::is_shown;

use crate::admin;
use crate::causes::Death;
use crate::config::{AdminSocket, Config, EngineKind, Isolation, Sandbox};
use crate::gate;
use crate::scoreboard::{self, Scoreboard};
use crate::worker;
use crate::worker_log::WorkerLog;

/// Keeps from workers what this process was started with beside standard input, output and error.
/// What it opens itself is closed in them anyway.
///
/// # Errors
/// This kernel can't do that (Linux before 5.11): they get it all.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "neither std nor rustix closes a range of descriptors")]
pub fn keep_inherited_descriptors() -> io::Result<()> {
    // SAFETY: descriptors are marked and stay open, so that nobody loses one that is in use; no
    // memory is passed.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Only Linux has the call.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn keep_inherited_descriptors() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Descriptors that serving takes beside those that this process was started with: poll, signals, listeners, the
/// socket's lock; and one for a moment each: a client that is told that there is no room, and files that are read.
const OWN_DESCRIPTORS: u64 = 20;
/// A worker's stream, its log, where it says how far it is, and the two ends of the relay's pipe.
const DESCRIPTORS_PER_WORKER: u64 = 5;
/// The other ends of these, and what tells that it has started: needed for a moment, for one worker at a time.
const DESCRIPTORS_TO_START: u64 = 5;
/// Two listeners for TCP.
const DESCRIPTORS_FOR_TCP: u64 = 2;

/// What the settings need of file descriptors, and what there is.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors {
    /// For everything but clients.
    pub own: u64,
    /// For everything.
    pub need: u64,
    /// How many there may be, if this process raises its limit as far as it may.
    pub most: u64,
}

/// How many descriptors this process has open. All that it opens before it asks are closed again.
fn descriptors_open() -> u64 {
    // One of them reads the folder.
    std::fs::read_dir("/proc/self/fd").map_or(3, |folder| (folder.count() as u64).saturating_sub(1))
}

/// So many descriptors are needed for these settings, and at most so many may be had. To be asked before anything is
/// opened to serve.
#[must_use]
pub fn descriptors(config: &Config) -> Descriptors {
    let admin = if config.admin_socket == AdminSocket::Off { 0 } else { admin::CONNECTIONS as u64 };
    let tcp = match (config.tcp, &config.token_file) {
        (None, _) => 0,
        (Some(_), None) => DESCRIPTORS_FOR_TCP,
        (Some(_), Some(_)) => DESCRIPTORS_FOR_TCP + gate::PLACES as u64,
    };
    let workers = config.workers as u64 * DESCRIPTORS_PER_WORKER + DESCRIPTORS_TO_START;
    let own = descriptors_open() + OWN_DESCRIPTORS + workers + admin + tcp;
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    Descriptors { own, need: own + config.connections as u64, most }
}

/// Sees to it that clients can't take the descriptors that workers need: raises the limit as far as
/// it may be raised, and has fewer clients if that is not enough.
///
/// # Errors
/// There would be none for a single client.
pub fn make_room(config: &mut Config) -> Result<(), String> {
    let Descriptors { own, need, most } = descriptors(config);
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < need) {
        let raised = Rlimit { current: Some(need.min(most)), ..limit };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            log::warn!("can't raise the limit on file descriptors: {error}");
        }
    }
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if allowed <= own {
        return Err(too_few(config, own, allowed));
    }
    if allowed < need {
        let connections = usize::try_from(allowed - own).unwrap_or(usize::MAX);
        log::warn!(
            "{} connections need {need} file descriptors, and the limit is {allowed} (`ulimit -n`, LimitNOFILE=): \
             accepting at most {connections}",
            config.connections
        );
        config.connections = connections;
    }
    Ok(())
}

/// That a limit on descriptors is too low to serve anybody, in words.
#[must_use]
pub fn too_few(config: &Config, own: u64, allowed: u64) -> String {
    let Config { connections, .. } = config;
    let (least, all) = (own + 1, own + *connections as u64);
    format!(
        "the limit on file descriptors is {allowed}; weaved needs at least {least} with these settings, and {all} for all \
         {connections} connections: raise it (`ulimit -n {all}`, LimitNOFILE={all})"
    )
}

/// Room for an image that was not relayed yet, unless the system allows less (`net.core.wmem_max`): the largest but
/// those of more than 1182×1182 pixels. [`relay`](crate::relay) has what that does to its speed.
const SEND_BUFFER: usize = 4 * 1024 * 1024;

/// Without it ggml has a debugger look at a failed assertion, for seconds.
pub const NO_BACKTRACE: (&str, &str) = ("GGML_NO_BACKTRACE", "1");

/// What a worker was started with, apart from itself.
#[derive(Debug)]
pub struct Lines {
    /// Our end of its stream, in blocking mode.
    pub stream: UnixStream,
    /// Its log, where it has one of its own.
    pub log: Option<WorkerLog>,
    /// How far it is, and which request it is to cancel.
    pub scoreboard: Scoreboard,
}

/// A worker that was started.
#[derive(Debug)]
pub enum Child {
    /// A child process.
    Process(process::Child),
    /// A thread of this process. It can't be ended from outside.
    Thread,
}

impl Child {
    /// Starts a worker. `program` is this very program, for a worker of its own process, unless the
    /// settings name another; `index` says which of all workers it is.
    ///
    /// # Errors
    /// There are no more descriptors, processes or threads to be had.
    pub fn start(program: &Path, config: &Config, index: usize) -> io::Result<(Self, Lines)> {
        let (stream, theirs) = UnixStream::pair()?;
        // Only a matter of speed.
        let _ = set_socket_send_buffer_size(&theirs, SEND_BUFFER);
        let scoreboard = Scoreboard::new()?;
        let mut log = None;
        let worker = match config.isolation {
            Isolation::Process => {
                let (ours, stderr) = WorkerLog::new(index)?;
                log = Some(ours);
                let mut command = worker_command(program, config);
                on_its_own(&mut command);
                scoreboard.open_to_children()?;
                let child = command
                    // What is set here is all there is: the file and the environment were read.
                    .arg("--no-config")
                    .args(config.to_flags())
                    .env(NO_BACKTRACE.0, NO_BACKTRACE.1)
                    .envs(devices(config.workers, index))
                    .env(scoreboard::VARIABLE, scoreboard.descriptor())
                    .stdin(Stdio::from(OwnedFd::from(theirs)))
                    // Ours may be a terminal, and is nothing that a worker needs.
                    .stdout(Stdio::null())
                    .stderr(stderr)
                    .spawn();
                // Not by the next one as well.
                scoreboard.close_to_children()?;
                Self::Process(child?)
            }
            Isolation::Thread => {
                let (config, control) = (config.clone(), scoreboard.control());
                thread::Builder::new().name("worker".to_owned()).spawn(move || {
                    // What is taken from a thread is taken from this whole process.
                    if let Err(error) = worker::run(&config, theirs, control, &worker::stay_open) {
                        log::error!("worker: {error}");
                    }
                })?;
                Self::Thread
            }
        };
        Ok((worker, Lines { stream, log, scoreboard }))
    }

    /// Its process, where it has one of its own.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        match self {
            Self::Process(child) => Some(child.id()),
            Self::Thread => None,
        }
    }

    /// Ends the worker at once, as far as that is possible, and what it has started.
    pub fn kill(&mut self) {
        let Some((child, _)) = self.not_waited_for() else { return };
        // Both fail only for what is gone already.
        let _ = kill_process_group(child, Signal::KILL);
        let _ = kill_process(child, Signal::KILL);
    }

    /// Whether the worker has ended, though something that it has started may still have its stream.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.not_waited_for().is_some_and(|(_, has_ended)| has_ended)
    }

    /// Its process, as long as that keeps its number for itself and for its group, and whether it has ended.
    fn not_waited_for(&self) -> Option<(Pid, bool)> {
        let Self::Process(child) = self else { return None };
        let child = Pid::from_child(child);
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Some((child, waitid(WaitId::Pid(child), look).ok()?.is_some()))
    }

    /// How the worker ended, if it has; what it has left behind ends with it. For a thread the end of its stream is
    /// all there is to see.
    pub fn ended(&mut self) -> Option<Death> {
        if self.has_ended() {
            self.kill();
        }
        match self {
            Self::Process(child) => match child.try_wait() {
                Ok(None) => None,
                Ok(Some(status)) => Some(death(status)),
                // Somebody else has waited for it: gone, whatever the reason.
                Err(_) => Some(Death::Exited(-1)),
            },
            Self::Thread => Some(Death::Thread),
        }
    }
}

/// No worker outlives the daemon.
impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        if let Self::Process(child) = self {
            let _ = child.wait();
        }
    }
}

/// A session of its own, without the daemon's terminal; with it goes a process group. Ctrl-C in that terminal is for
/// the daemon, which lets workers finish. And an end with the daemon's: a worker sees to that itself, but a program
/// that is between the two may not.
#[expect(unsafe_code, reason = "std starts no session")]
fn on_its_own(command: &mut Command) {
    let become_leader = || {
        setsid()?;
        #[cfg(target_os = "linux")]
        set_parent_process_death_signal(Some(Signal::KILL))?;
        Ok(())
    };
    // SAFETY: two system calls, which may be made between fork and exec.
    unsafe { command.pre_exec(become_leader) };
}

/// How long a program may take to say its version or its devices: it may load a GPU's libraries first.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether the program of the setting `worker_command` is a `weaved` of our own version that knows all flags it
/// will be started with: those are what changes between versions, and between two builds of one.
///
/// # Errors
/// A sentence that says why it can't be the worker.
pub fn check_command(config: &Config) -> Result<(), String> {
    const OURS: &str = concat!("weaved ", env!("CARGO_PKG_VERSION"));
    let Some(program) = config.worker_command.first() else { return Ok(()) };
    if config.isolation == Isolation::Thread {
        return Err(format!("{program} is a process of its own: isolation must be process, not thread"));
    }
    let mut asked = worker_command(Path::new(program), config);
    asked.arg("--no-config").args(config.to_flags()).arg("--version");
    let output = answer(&mut asked).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => {
            format!("{program} did not say its version within {} seconds", PATIENCE.as_secs())
        }
        _ => format!("can't start {program}: {error}"),
    })?;
    let said = if output.status.success() { &output.stdout } else { &output.stderr };
    let said = String::from_utf8_lossy(said);
    let said: String = said.trim().chars().filter(|c| is_shown(*c)).take(MAX_WORDS).collect();
    match death(output.status) {
        Death::Exited(0) if said == OURS => Ok(()),
        Death::Exited(0) if said.starts_with("weaved ") => Err(format!(
            "{program} is {said} and this is {OURS}: router and worker have to be of the same version"
        )),
        Death::Exited(0) => {
            Err(format!("{program} says {said:?} when asked for its version, so it is no weaved"))
        }
        death => Err(format!("{program} {death} when asked for its version, and said: {said}")),
    }
}

/// Whether the devices that the settings insist on are there. A worker is asked, so that the daemon itself never touches
/// a driver.
///
/// # Errors
/// The worker's sentence about the one that is missing.
pub fn check_devices(config: &Config) -> Result<(), String> {
    let tuning = &config.tuning;
    if config.engine == EngineKind::Pattern || (!tuning.require_gpu && tuning.devices().next().is_none()) {
        return Ok(());
    }
    ask_worker(config, "--names", "its devices")
}

/// Whether workers can have the sandbox that the settings insist on. One is started to try it, so that it is known
/// for the very program, kernel and container.
///
/// # Errors
/// A sentence that says what it would keep.
pub fn check_sandbox(config: &Config) -> Result<(), String> {
    match config.sandbox {
        Some(Sandbox::Require) if config.isolation == Isolation::Thread => Err(
            "sandbox is \"require\", and a thread of weaved has none: isolation must be process, not thread"
                .to_owned(),
        ),
        Some(Sandbox::Require) => ask_worker(config, "--try-sandbox", "its sandbox"),
        _ => Ok(()),
    }
}

/// A worker's answer to a question: nothing, or what is wrong.
fn ask_worker(config: &Config, question: &str, about: &str) -> Result<(), String> {
    let output = std::env::current_exe().and_then(|program| {
        let mut asked = worker_command(&program, config);
        asked.args([question, "--no-config"]).args(config.to_flags()).env(NO_BACKTRACE.0, NO_BACKTRACE.1);
        answer(&mut asked)
    });
    let output = output.map_err(|error| format!("a worker can't be asked for {about}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let silent = format!("a worker that was asked for {about} {}", death(output.status));
    let last = words.lines().last().unwrap_or(&silent);
    let last = last.strip_prefix("weaved: ").unwrap_or(last);
    Err(last.chars().filter(|c| is_shown(*c)).take(MAX_WORDS).collect())
}

/// More than a program says that is asked for its version or its devices, in bytes, and what is shown of it, in
/// characters.
const MOST: u64 = 64 * 1024;
const MAX_WORDS: usize = 600;

/// What a program says, and how it ends. One that takes too long is ended, with all that it has started; one that says
/// too much is not heard to its end.
fn answer(command: &mut Command) -> io::Result<Output> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = child.spawn()?;
    let group = Pid::from_child(&child);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(hear(child)));
    told.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let _ = kill_process_group(group, Signal::KILL);
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} seconds", PATIENCE.as_secs()),
        ))
    })
}

fn hear(mut child: process::Child) -> io::Result<Output> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let stderr = thread::spawn(move || beginning(stderr));
    let stdout = beginning(stdout);
    let stderr = stderr.join().unwrap_or_else(|_| Ok(Vec::new()));
    let status = child.wait()?;
    Ok(Output { status, stdout: stdout?, stderr: stderr? })
}

/// The pipe is closed behind it, which ends most who go on to write.
fn beginning(pipe: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    pipe.map(|pipe| pipe.take(MOST).read_to_end(&mut bytes)).transpose()?;
    Ok(bytes)
}

/// What a worker is started with before all flags: this very program, unless the settings name another. Of the
/// environment it has what it needs.
fn worker_command(program: &Path, config: &Config) -> Command {
    let mut command = match config.worker_command.as_slice() {
        [other, arguments @ ..] => {
            let mut command = Command::new(other);
            command.args(arguments);
            command
        }
        [] => {
            let mut command = Command::new(program);
            command.arg("worker");
            command
        }
    };
    command.env_clear().envs(std::env::vars_os().filter(|(name, _)| is_for_workers(name)));
    command
}

/// Variables that a worker gets: where programs, libraries, caches and time zones are, and in which language it
/// speaks; where the demo model is unpacked.
const VARIABLES: &[&str] = &[
    "HOME",
    "LANG",
    "LANGUAGE",
    "LOGNAME",
    "PATH",
    "RUST_BACKTRACE",
    "SHELL",
    "TMPDIR",
    "TZ",
    "USER",
    "WEAVE_CACHE_DIR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_DIRS",
    "XDG_DATA_HOME",
];

/// How the names of further ones begin: of the locale; of the dynamic linker and the C library; of OpenMP; of the
/// engine; of drivers for GPUs; of sanitizers and what counts coverage.
const BEGINNINGS: &[&str] = &[
    "LC_",
    "LD_",
    "GLIBC_TUNABLES",
    "MALLOC_",
    "GOMP_",
    "KMP_",
    "OMP_",
    "GGML_",
    "SD_",
    "AMD_",
    "ANV_",
    "CUDA_",
    "DRI_",
    "DRIRC_",
    "EGL_",
    "GALLIUM_",
    "INTEL_",
    "LIBGL_",
    "LP_",
    "MESA_",
    "NVIDIA_",
    "NVK_",
    "RADV_",
    "TU_",
    "VK_",
    "ZINK_",
    "__EGL_",
    "__GL_",
    "__NV_",
    "ASAN_",
    "GCOV_",
    "LLVM_PROFILE_",
    "LSAN_",
    "MSAN_",
    "TSAN_",
    "UBSAN_",
    "VALGRIND_",
];

fn is_for_workers(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        VARIABLES.contains(&name) || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
    })
}

/// What has the engines of CUDA and Vulkan see one device each, if there are several workers: of
/// those that the daemon may use, the one at this place.
fn devices(workers: usize, index: usize) -> impl Iterator<Item = (&'static str, String)> {
    let variables =
        ["CUDA_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"].into_iter().filter(move |_| workers > 1);
    variables.map(move |variable| {
        let all = std::env::var(variable).unwrap_or_default();
        let chosen = all.split(',').map(str::trim).filter(|device| !device.is_empty()).nth(index);
        (variable, chosen.map_or_else(|| index.to_string(), str::to_owned))
    })
}

fn death(status: ExitStatus) -> Death {
    match (status.code(), status.signal()) {
        (Some(code), _) => Death::Exited(code),
        (None, Some(signal)) => Death::Killed(signal),
        (None, None) => Death::Exited(-1),
    }
}
