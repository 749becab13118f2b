//! Settings: flags, then environment, then a TOML file, then defaults.
//!
//! Every setting stands once, in [`SETTINGS`]: `queue` there is `--queue` on the command line,
//! `WEAVE_QUEUE` in the environment and `queue` in the file. A value that can't be used is an error
//! that says where it came from and what is allowed, never a silent default.

mod resolve;
mod table;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::engine::pattern::{Faults, Look};
use crate::engine::tuning::Tuning;
use crate::model::{Defaults, ModelFiles};
use crate::router::{Abandoned, Limits};
use crate::socket::Access;
use weave_trust::Rules;

pub use crate::values::nearest;
pub use resolve::{
    ConfigError, Origin, Resolved, default_file, unknown_flag, unknown_variable, unknown_variables,
};
pub use table::{ALIASES, SETTINGS, Setting};

/// What makes the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// stable-diffusion.cpp.
    Sdcpp,
    /// Test pictures; no model is needed.
    Pattern,
}

/// Where the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// In a child process: whatever the engine does, the daemon lives on.
    Process,
    /// On a thread of the daemon: an abort of the engine ends the daemon.
    Thread,
}

/// Whether worker processes give up what they don't need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// They keep everything.
    Off,
    /// As far as this kernel can take it from them.
    On,
    /// All of it; where this kernel can't do that, nobody is served.
    Require,
}

/// Where metrics and health are to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminSocket {
    /// `weave-admin.sock` beside `weave.sock`, and so on; nowhere if that was handed over by systemd.
    Beside,
    /// Nowhere.
    Off,
    /// At this path.
    At(PathBuf),
}

impl AdminSocket {
    /// Its path, given that of the clients' socket, if that one is ours to place.
    #[must_use]
    pub fn path(&self, clients: Option<&Path>) -> Option<PathBuf> {
        match self {
            Self::Beside => clients.map(|clients| {
                let mut name = clients.file_stem().unwrap_or_default().to_owned();
                name.push("-admin.sock");
                clients.with_file_name(name)
            }),
            Self::Off => None,
            Self::At(path) => Some(path.clone()),
        }
    }
}

/// All settings, with their defaults where nothing else was said.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The Unix socket; `None`: the default place.
    pub socket: Option<PathBuf>,
    /// Who may connect to it, beside our own user and root.
    pub access: Access,
    /// Folders that are taken whatever their owner and mode are.
    pub trusted_folders: Vec<PathBuf>,
    /// The TCP address to listen on as well; `None`: none.
    pub tcp: Option<SocketAddr>,
    /// Whether that address may be reached from other machines.
    pub allow_remote: bool,
    /// The file with the token that TCP clients have to show.
    pub token_file: Option<PathBuf>,
    /// Whether worker processes give up what they don't need; `None`: as the worker's own build has it.
    pub sandbox: Option<Sandbox>,
    /// Where metrics and health are to be had.
    pub admin_socket: AdminSocket,
    /// What makes the images.
    pub engine: EngineKind,
    /// Where the engine runs.
    pub isolation: Isolation,
    /// Program and arguments that are started as a worker; none at all means this very program.
    pub worker_command: Vec<String>,
    /// Model files; none at all means the demo model.
    pub model: ModelFiles,
    /// Width and height of an image for clients that name none; `None`: what suits the model.
    pub default_size: Option<(u32, u32)>,
    /// The same for denoising steps.
    pub default_steps: Option<u32>,
    /// The same for the guidance scale.
    pub default_cfg_scale: Option<f32>,
    /// CPU threads of the engine; `None`: as many as there are cores for each worker.
    pub threads: Option<u16>,
    /// What trades the engine's memory, time and pixels against each other.
    pub tuning: Tuning,
    /// Workers, each with an engine of its own.
    pub workers: usize,
    /// Whether a worker has to make a small image before it is given requests; `None`: if the
    /// engine is a real one.
    pub warm_up: Option<bool>,
    /// Requests that may wait.
    pub queue: usize,
    /// Client connections at once.
    pub connections: usize,
    /// Requests of one client that are not answered yet.
    pub in_flight: usize,
    /// Frame timeout: from the first to the last byte of a request.
    pub frame_timeout: Duration,
    /// Idle timeout of a connection without a request.
    pub idle_timeout: Duration,
    /// Queue timeout: how long a request may wait for a worker.
    pub queue_timeout: Duration,
    /// Generation timeout of one image.
    pub generation_timeout: Duration,
    /// Stall timeout of a client that reads next to nothing of its answer.
    pub stall_timeout: Duration,
    /// Stall timeout while other clients' requests wait.
    pub busy_stall_timeout: Duration,
    /// What becomes of a running request whose client has gone.
    pub abandoned: Abandoned,
    /// Cancel timeout: how long a worker may take to cancel a request until it is killed.
    pub cancel_timeout: Duration,
    /// Idle timeout of a worker, after which it is ended until it is needed; `None`: it stays.
    pub worker_idle_timeout: Option<Duration>,
    /// Drain timeout: how long running requests may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Least severe messages that are logged.
    pub log: log::LevelFilter,
    /// Whether prompts may be logged.
    pub log_prompts: bool,
    /// What the pattern engine draws.
    pub pattern: Look,
    /// What the pattern engine does wrong.
    pub faults: Faults,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: None,
            access: Access::default(),
            trusted_folders: Vec::new(),
            tcp: None,
            allow_remote: false,
            token_file: None,
            sandbox: None,
            admin_socket: AdminSocket::Beside,
            engine: if cfg!(feature = "sdcpp") { EngineKind::Sdcpp } else { EngineKind::Pattern },
            isolation: Isolation::Process,
            worker_command: Vec::new(),
            model: ModelFiles::default(),
            default_size: None,
            default_steps: None,
            default_cfg_scale: None,
            threads: None,
            tuning: Tuning::default(),
            workers: 1,
            warm_up: None,
            queue: 64,
            connections: 256,
            in_flight: 32,
            frame_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(600),
            queue_timeout: Duration::from_secs(3600),
            generation_timeout: Duration::from_secs(3600),
            stall_timeout: Duration::from_secs(30),
            busy_stall_timeout: Duration::from_secs(5),
            abandoned: Abandoned::Cancel,
            // More than a step takes on most machines: a worker that is killed has to load its model again.
            cancel_timeout: Duration::from_secs(30),
            worker_idle_timeout: None,
            drain_timeout: Duration::from_secs(60),
            log: log::LevelFilter::Info,
            log_prompts: false,
            pattern: Look::Checkerboard,
            faults: Faults::default(),
        }
    }
}

/// What the settings that depend on others, on the build or on the machine come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Whether a worker has to make a small image before it is given requests.
    pub warm_up: bool,
    /// Whether worker processes give up what they don't need.
    pub sandbox: Sandbox,
    /// CPU threads of the engine.
    pub threads: u16,
}

impl Config {
    /// Which folders and files may be trusted.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules::with_exceptions(&self.trusted_folders)
    }

    /// Decides what was left unset: the one place that says what `None` means for these settings.
    #[must_use]
    pub fn decided(&self) -> Decided {
        // Not tried with the drivers of GPUs: a worker that quietly falls back to the CPU would be worse.
        let drives_gpus = cfg!(any(feature = "cuda", feature = "vulkan", feature = "metal"));
        Decided {
            // Test pictures need no warming up.
            warm_up: self.warm_up.unwrap_or(self.engine == EngineKind::Sdcpp),
            // Only Linux has a sandbox.
            sandbox: self.sandbox.unwrap_or(if cfg!(target_os = "linux") && !drives_gpus {
                Sandbox::On
            } else {
                Sandbox::Off
            }),
            threads: self.threads.unwrap_or_else(|| cores(self.workers)),
        }
    }

    /// What clients are to ask for where nobody says otherwise, given what suits the model.
    #[must_use]
    pub fn defaults(&self, model: Defaults) -> Defaults {
        let (width, height) = self.default_size.unwrap_or((model.width, model.height));
        Defaults {
            width,
            height,
            steps: self.default_steps.unwrap_or(model.steps),
            cfg_scale: self.default_cfg_scale.unwrap_or(model.cfg_scale),
        }
    }

    /// The router's bounds. Its names are shorter: a timeout is the [`Duration`] of its field.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            connections: self.connections,
            in_flight: self.in_flight,
            queue: self.queue,
            workers: self.workers,
            frame: self.frame_timeout,
            idle: self.idle_timeout,
            queue_wait: self.queue_timeout,
            generation: self.generation_timeout,
            stall: self.stall_timeout,
            busy_stall: self.busy_stall_timeout,
            drain: self.drain_timeout,
            worker_idle: self.worker_idle_timeout,
            warm_up: self.decided().warm_up,
            abandoned: self.abandoned,
            cancel: self.cancel_timeout,
        }
    }
}

/// The cores that there are for each of so many workers. Not the processors, of which a core often has two: they share what
/// computes, and without OpenMP the engine's threads spin while they wait for each other, which costs other work more than
/// it gains. Fewer where this process may use fewer.
fn cores(workers: usize) -> u16 {
    let may_use = thread::available_parallelism().map_or(1, usize::from);
    let cores = num_cpus::get_physical().min(may_use) / workers.max(1);
    u16::try_from(cores).unwrap_or(256).clamp(1, 256)
}
