//! Settings: flags, then environment, then a TOML file, then defaults.
//!
//! Every setting stands once, in [`SETTINGS`]: `queue` there is `--queue` on the command line,
//! `WEAVE_QUEUE` in the environment and `queue` in the file. A value that can't be used is an error
//! that says where it came from and what is allowed, never a silent default.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::pattern::{Faults, Look};
use crate::engine::tuning::{self, MemoryLimit, Tiling, Tuning};
use crate::model::ModelFiles;
use crate::router::Abandoned;
use crate::socket::Access;

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
    /// The TCP address to listen on as well; `None`: none.
    pub tcp: Option<SocketAddr>,
    /// Whether that address may be reached from other machines.
    pub allow_remote: bool,
    /// The file with the token that TCP clients have to show.
    pub token_file: Option<PathBuf>,
    /// Whether worker processes give up what they don't need; `None`: as the worker's own build has it.
    pub sandbox: Option<bool>,
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
    /// CPU threads of the engine; `None`: half of the processors.
    pub threads: Option<u16>,
    /// Whether the diffusion model's attention is computed without the whole matrix in memory.
    pub flash_attention: bool,
    /// What else trades the engine's memory, time and pixels against each other.
    pub tuning: Tuning,
    /// Workers, each with an engine of its own.
    pub workers: usize,
    /// Whether a worker has to make a small image before it is given requests; `None`: if the
    /// engine is a real one.
    pub warm_up: Option<bool>,
    /// Requests that may wait.
    pub queue: usize,
    /// Clients at once.
    pub connections: usize,
    /// Requests of one client that are not answered yet.
    pub in_flight: usize,
    /// Longest time between the first and the last byte of a request.
    pub frame_timeout: Duration,
    /// Longest time that a client may stay that wants nothing.
    pub idle_timeout: Duration,
    /// Longest time that a request may wait for a worker.
    pub queue_timeout: Duration,
    /// Longest time for one image.
    pub generation_timeout: Duration,
    /// Longest time that a client may take next to nothing of its answer.
    pub stall_timeout: Duration,
    /// The same while other clients' requests wait.
    pub busy_stall_timeout: Duration,
    /// What becomes of a running request whose client has gone.
    pub abandoned: Abandoned,
    /// Longest time in which a worker may come free of a request that it is to give up.
    pub cancel_timeout: Duration,
    /// How long a worker may have nothing to do until it is ended; `None`: it stays.
    pub worker_idle_timeout: Option<Duration>,
    /// Longest time that running work may take after SIGTERM.
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
            tcp: None,
            allow_remote: false,
            token_file: None,
            sandbox: None,
            admin_socket: AdminSocket::Beside,
            engine: if cfg!(feature = "sdcpp") { EngineKind::Sdcpp } else { EngineKind::Pattern },
            isolation: Isolation::Process,
            worker_command: Vec::new(),
            model: ModelFiles::default(),
            threads: None,
            flash_attention: false,
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
            abandoned: Abandoned::Finish,
            cancel_timeout: Duration::from_secs(5),
            worker_idle_timeout: None,
            drain_timeout: Duration::from_secs(60),
            log: log::LevelFilter::Info,
            log_prompts: false,
            pattern: Look::Checkerboard,
            faults: Faults::default(),
        }
    }
}

/// One setting: its names, its words, and how text becomes its value and back.
pub struct Setting {
    /// The name in the TOML file; flag and variable are made from it.
    pub name: &'static str,
    /// What stands for the value in the help text; empty for a switch, which needs none.
    pub value: &'static str,
    /// One line for the help text.
    pub help: &'static str,
    /// Whether SIGHUP can change it while the daemon runs. Then it always has a value.
    pub live: bool,
    /// Whether the value is a path, which in a file counts from the file's folder.
    is_path: bool,
    set: fn(&mut Config, &str) -> Result<(), String>,
    get: fn(&Config) -> Option<String>,
}

impl Setting {
    /// The command line's name, without the dashes.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// Whether the flag alone means yes.
    #[must_use]
    pub const fn is_switch(&self) -> bool {
        self.value.is_empty()
    }

    /// What the help text says of the default.
    fn default(&self) -> Option<&'static str> {
        Some(self.help.strip_suffix(']')?.rsplit_once('[')?.1)
    }

    /// Whether the value stands in a file without quotation marks.
    fn is_bare(&self, value: &str) -> bool {
        !self.is_path && (value.parse::<f64>().is_ok() || value == "true" || value == "false")
    }

    /// The environment's name.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("WEAVE_{}", self.name.to_uppercase())
    }
}

/// A setting for one model file.
macro_rules! model_file {
    ($field:ident, $help:literal) => {
        Setting {
            name: stringify!($field),
            value: "FILE",
            help: $help,
            live: false,
            is_path: true,
            set: |config, text| {
                config.model.$field = Some(path(text)?);
                Ok(())
            },
            get: |config| shown(config.model.$field.as_deref()),
        }
    };
}

/// A setting in seconds.
macro_rules! seconds {
    ($field:ident, $help:literal) => {
        Setting {
            name: stringify!($field),
            value: "SECONDS",
            help: $help,
            live: true,
            is_path: false,
            set: |config, text| {
                config.$field = seconds(text)?;
                Ok(())
            },
            get: |config| Some(config.$field.as_secs_f64().to_string()),
        }
    };
}

/// A whole number with bounds.
macro_rules! count {
    ($field:ident, $range:expr, $live:literal, $help:literal) => {
        Setting {
            name: stringify!($field),
            value: "N",
            help: $help,
            live: $live,
            is_path: false,
            set: |config, text| {
                config.$field = count(text, $range)?;
                Ok(())
            },
            get: |config| Some(config.$field.to_string()),
        }
    };
}

/// A setting of the engine: how text becomes the value of this field in [`Tuning`], and back.
macro_rules! tuning {
    ($field:ident, $value:literal, $help:literal, $parse:expr, $show:expr) => {
        Setting {
            name: stringify!($field),
            value: $value,
            help: $help,
            live: false,
            is_path: false,
            set: |config, text| {
                config.tuning.$field = $parse(text)?;
                Ok(())
            },
            get: |config| $show(&config.tuning.$field),
        }
    };
}

/// A list of users or groups: `uids` in [`Access`] is the setting `allow_uids`.
macro_rules! ids {
    ($field:ident, $names:literal, $help:literal) => {
        Setting {
            name: concat!("allow_", stringify!($field)),
            value: "LIST",
            help: $help,
            live: false,
            is_path: false,
            set: |config, text| {
                config.access.$field = ids(text, Path::new($names))?;
                Ok(())
            },
            get: |config| {
                let list: Vec<_> = config.access.$field.iter().map(u32::to_string).collect();
                (!list.is_empty()).then(|| list.join(","))
            },
        }
    };
}

/// All settings, in the order of the help text.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "socket",
        value: "PATH",
        help: "Unix socket to listen on [$XDG_RUNTIME_DIR/weave/weave.sock]",
        live: false,
        is_path: true,
        set: |config, text| {
            config.socket = Some(path(text)?);
            Ok(())
        },
        get: |config| shown(config.socket.as_deref()),
    },
    ids!(uids, "/etc/passwd", "users that may connect to it, beside weaved's own and root: 1000,alice"),
    ids!(
        gids,
        "/etc/group",
        "groups that may: 1000,weave; with one of them the socket gets it, and mode 0660"
    ),
    Setting {
        name: "tcp",
        value: "ADDRESS:PORT",
        help: "listen on TCP as well; port 0 takes any that is free [off]",
        live: false,
        is_path: false,
        set: |config, text| {
            let address = text.parse();
            config.tcp =
                Some(address.map_err(|_| "an address and a port: 127.0.0.1:7433, [::1]:7433".to_owned())?);
            Ok(())
        },
        get: |config| config.tcp.map(|address| address.to_string()),
    },
    Setting {
        name: "allow_remote",
        value: "",
        help: "let that address be one that other machines reach; needs token_file [off]",
        live: false,
        is_path: false,
        set: |config, text| {
            config.allow_remote = one_of(text, &[("true", true), ("false", false)])?;
            Ok(())
        },
        get: |config| config.allow_remote.then(|| "true".to_owned()),
    },
    Setting {
        name: "token_file",
        value: "FILE",
        help: "64 hexadecimal digits that TCP clients have to show (`openssl rand -hex 32`)",
        live: false,
        is_path: true,
        set: |config, text| {
            config.token_file = Some(path(text)?);
            Ok(())
        },
        get: |config| shown(config.token_file.as_deref()),
    },
    Setting {
        name: "sandbox",
        value: "on|off",
        help: "worker processes: no network, no files but what the engine needs to read [on; off in a GPU build]",
        live: false,
        is_path: false,
        set: |config, text| {
            config.sandbox = Some(one_of(text, &[("on", true), ("off", false)])?);
            Ok(())
        },
        get: |config| config.sandbox.map(|on| if on { "on" } else { "off" }.to_owned()),
    },
    Setting {
        name: "admin_socket",
        value: "PATH",
        help: "Unix socket for metrics and health, or off [NAME-admin.sock beside NAME.sock]",
        live: false,
        is_path: true,
        set: |config, text| {
            config.admin_socket = match text {
                "off" => AdminSocket::Off,
                _ => AdminSocket::At(path(text)?),
            };
            Ok(())
        },
        get: |config| match &config.admin_socket {
            AdminSocket::Beside => None,
            AdminSocket::Off => Some("off".to_owned()),
            AdminSocket::At(path) => shown(Some(path)),
        },
    },
    Setting {
        name: "engine",
        value: "NAME",
        help: "sdcpp (stable-diffusion.cpp) or pattern (test pictures, no model) [sdcpp]",
        live: false,
        is_path: false,
        set: |config, text| {
            config.engine = one_of(text, &[("sdcpp", EngineKind::Sdcpp), ("pattern", EngineKind::Pattern)])?;
            Ok(())
        },
        get: |config| Some(if config.engine == EngineKind::Sdcpp { "sdcpp" } else { "pattern" }.to_owned()),
    },
    Setting {
        name: "isolation",
        value: "KIND",
        help: "process (survives a crash of the engine) or thread [process]",
        live: false,
        is_path: false,
        set: |config, text| {
            config.isolation =
                one_of(text, &[("process", Isolation::Process), ("thread", Isolation::Thread)])?;
            Ok(())
        },
        get: |config| {
            Some(if config.isolation == Isolation::Process { "process" } else { "thread" }.to_owned())
        },
    },
    Setting {
        name: "worker_command",
        value: "COMMAND",
        help: "a weaved of the same version that is the worker: \"/usr/lib/weave/weaved-cuda worker\" [this program]",
        live: false,
        is_path: false,
        set: |config, text| {
            let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
            if words.is_empty() {
                return Err("a program and its arguments, with blanks in between".to_owned());
            }
            config.worker_command = words;
            Ok(())
        },
        get: |config| (!config.worker_command.is_empty()).then(|| config.worker_command.join(" ")),
    },
    model_file!(model, "SD 3.5 checkpoint in one file (safetensors or GGUF) [the demo model]"),
    model_file!(diffusion_model, "SD 3.5 diffusion model alone; needs an encoder and a decoder"),
    model_file!(clip_l, "CLIP-L text encoder"),
    model_file!(clip_g, "CLIP-G text encoder"),
    model_file!(t5xxl, "T5-XXL text encoder"),
    model_file!(vae, "VAE decoder"),
    model_file!(taesd, "TAESD decoder: smaller and faster than the VAE, coarser"),
    tuning!(
        preset,
        "NAME",
        "for a GPU with so much memory: 4gb, 8gb, 12gb, 16gb, 24gb; sets some of the following, each may be set all the same",
        |text| tuning::named(text, &tuning::preset_names()).map(Some),
        |value: &Option<&str>| value.map(str::to_owned)
    ),
    tuning!(
        device,
        "NAME",
        "what the engine computes on: CUDA0, Vulkan1, gpu, cpu; `weaved devices` lists them [the first GPU, else cpu]",
        |text| tuning::device(text).map(Some),
        Option::clone
    ),
    tuning!(
        require_gpu,
        "",
        "do not serve on the CPU where a GPU is missing [off]",
        |text| one_of(text, BOOLS),
        |value: &bool| value.then(|| "true".to_owned())
    ),
    tuning!(
        backend,
        "LIST",
        "parts (diffusion, te, vae) on other devices: te=cpu [auto]",
        |text| tuning::assignments(text, false),
        |value: &String| Some(value.clone())
    ),
    tuning!(
        params_backend,
        "LIST",
        "where weights wait until they are needed: cpu, disk, or by part: te=cpu,vae=disk [auto: where they are used]",
        |text| tuning::assignments(text, true),
        |value: &String| Some(value.clone())
    ),
    tuning!(
        max_vram,
        "GIB",
        "budget for a graph and the weights that it brings, which is cut to fit; 0: none, -1: free memory less 1 [0]",
        |text| tuning::number(text, -64.0..=1024.0),
        shown_number
    ),
    tuning!(
        stream_layers,
        "BOOL",
        "with max_vram and params_backend=cpu: weights are kept and fetched ahead layer by layer [false]",
        |text| one_of(text, BOOLS),
        shown_bool
    ),
    tuning!(
        mmap,
        "BOOL",
        "map the model's files into memory instead of reading them: less RAM, and shared between workers [false]",
        |text| one_of(text, BOOLS),
        shown_bool
    ),
    Setting {
        name: "threads",
        value: "N",
        help: "CPU threads of the engine, 1 to 256 [half of the processors]",
        live: false,
        is_path: false,
        set: |config, text| {
            config.threads = Some(count(text, 1..=256)?);
            Ok(())
        },
        get: |config| config.threads.map(|threads| threads.to_string()),
    },
    Setting {
        name: "flash_attention",
        value: "BOOL",
        help: "flash attention where the device has it: faster on GPUs, less memory; other pixels [false]",
        live: false,
        is_path: false,
        set: |config, text| {
            config.flash_attention = one_of(text, &[("true", true), ("false", false)])?;
            Ok(())
        },
        get: |config| Some(config.flash_attention.to_string()),
    },
    tuning!(
        flash_attention_everywhere,
        "BOOL",
        "flash attention in text encoders and VAE too: the VAE's takes most at large sizes [false]",
        |text| one_of(text, BOOLS),
        shown_bool
    ),
    tuning!(
        memory_limit,
        "GIB",
        "most that an image may take beside the weights, 0.001 to 1024; a larger one is refused; auto: what is free, or off [auto]",
        |text| match text {
            "auto" => Ok(MemoryLimit::Free),
            "off" => Ok(MemoryLimit::Off),
            _ => tuning::number(text, 0.001..=1024.0).map(MemoryLimit::Gib),
        },
        |value: &MemoryLimit| match value {
            MemoryLimit::Free => Some("auto".to_owned()),
            MemoryLimit::Off => Some("off".to_owned()),
            MemoryLimit::Gib(number) => Some(number.to_string()),
        }
    ),
    tuning!(
        vae_tiling,
        "WHEN",
        "decode in tiles, for less memory and other pixels at their seams: on, off, auto (where memory is short) [auto]",
        |text| one_of(text, &[("auto", Tiling::Auto), ("on", Tiling::On), ("off", Tiling::Off)]),
        |value: &Tiling| Some(format!("{value:?}").to_lowercase())
    ),
    tuning!(
        vae_tiling_above,
        "SIDE",
        "with auto also where an image has more than SIDE×SIDE pixels, 64 to 2048, or never [never]",
        |text| if text == "never" { Ok(None) } else { count(text, 64..=2048).map(Some) },
        |value: &Option<u16>| Some(value.map_or("never".to_owned(), |side| side.to_string()))
    ),
    tuning!(
        vae_tile_size,
        "N",
        "side of a tile in latent pixels, each 8×8 of the image, 8 to 256 [32]",
        |text| count(text, 8..=256),
        |value: &u16| Some(value.to_string())
    ),
    tuning!(
        vae_tile_overlap,
        "SHARE",
        "share of a tile that its neighbour computes too, 0 to 0.5 [0.5]",
        |text| tuning::number(text, 0.0..=0.5),
        shown_number
    ),
    tuning!(
        vae_conv_direct,
        "BOOL",
        "the VAE's convolutions without a copy of what they read: much less memory, slower on some devices [false]",
        |text| one_of(text, BOOLS),
        shown_bool
    ),
    tuning!(
        weight_type,
        "TYPE",
        "turn weights into this while loading: f16, bf16, q8_0, q6_K, q5_K, q4_K, q4_0 and more; less memory, other pixels [auto]",
        |text| tuning::named_or_auto(text, tuning::WEIGHT_TYPES),
        shown_name
    ),
    tuning!(
        tensor_type_rules,
        "LIST",
        "exceptions, as regular expressions for names of tensors: ^vae\\.=f16,model\\.=q8_0",
        |text| tuning::type_rules(text).map(Some),
        Option::clone
    ),
    tuning!(
        sampler,
        "NAME",
        "euler, euler_a, heun, dpm2, dpm++2s_a, dpm++2m, dpm++2mv2, ipndm, ipndm_v, lcm and more [auto: euler]",
        |text| tuning::named_or_auto(text, tuning::SAMPLERS),
        shown_name
    ),
    tuning!(
        scheduler,
        "NAME",
        "discrete, karras, exponential, gits, sgm_uniform, simple, smoothstep, kl_optimal, lcm, bong_tangent [auto: discrete]",
        |text| tuning::named_or_auto(text, tuning::SCHEDULERS),
        shown_name
    ),
    tuning!(
        flow_shift,
        "X",
        "share of the noisier steps, 0.1 to 100, or auto [auto: 3]",
        |text| if text == tuning::AUTO { Ok(None) } else { tuning::number(text, 0.1..=100.0).map(Some) },
        |value: &Option<f32>| Some(value.map_or(tuning::AUTO.to_owned(), |x| x.to_string()))
    ),
    tuning!(
        rng,
        "NAME",
        "what makes noise of the seed: cuda (the same on every device), cpu, std_default [cuda]",
        |text| tuning::named(text, tuning::RNGS),
        shown_name
    ),
    count!(workers, 1..=64, false, "workers, each with an engine and a GPU of its own, 1 to 64 [1]"),
    Setting {
        name: "warm_up",
        value: "BOOL",
        help: "whether a worker makes a small image before it is given requests [true; false for pattern]",
        live: false,
        is_path: false,
        set: |config, text| {
            config.warm_up = Some(one_of(text, &[("true", true), ("false", false)])?);
            Ok(())
        },
        get: |config| config.warm_up.map(|yes| yes.to_string()),
    },
    count!(queue, 1..=4096, false, "requests that may wait, 1 to 4096 [64]"),
    count!(connections, 1..=65_536, false, "clients at once, 1 to 65536 [256]"),
    count!(in_flight, 1..=4096, true, "unanswered requests of one client, 1 to 4096 [32]"),
    seconds!(frame_timeout, "longest time between the first and the last byte of a request [30]"),
    seconds!(idle_timeout, "longest time that a client may stay that wants nothing [600]"),
    seconds!(queue_timeout, "longest time that a request may wait for a worker [3600]"),
    seconds!(generation_timeout, "longest time for one image; then its worker has to give it up [3600]"),
    seconds!(stall_timeout, "longest time in which a client may take less than 64 KiB of an image [30]"),
    seconds!(busy_stall_timeout, "the same while other clients' requests wait [5]"),
    Setting {
        name: "abandoned",
        value: "WHAT",
        help: "a running request whose client is gone: finish it, or have its worker give it up [finish]",
        live: true,
        is_path: false,
        set: |config, text| {
            let choices = [("finish", Abandoned::Finish), ("cancel", Abandoned::Cancel)];
            config.abandoned = one_of(text, &choices)?;
            Ok(())
        },
        get: |config| {
            Some(if config.abandoned == Abandoned::Cancel { "cancel" } else { "finish" }.to_owned())
        },
    },
    seconds!(cancel_timeout, "longest time in which a worker may give an image up; then it is ended [5]"),
    Setting {
        name: "worker_idle_timeout",
        value: "SECONDS",
        help: "a worker without work for so long is ended until it is needed, or never [never]",
        live: true,
        is_path: false,
        set: |config, text| {
            config.worker_idle_timeout = if text == "never" { None } else { Some(seconds(text)?) };
            Ok(())
        },
        get: |config| {
            let time = config.worker_idle_timeout.map(|time| time.as_secs_f64().to_string());
            Some(time.unwrap_or("never".to_owned()))
        },
    },
    seconds!(drain_timeout, "longest time that running work may take after SIGTERM [60]"),
    Setting {
        name: "log",
        value: "LEVEL",
        help: "error, warn, info, debug or trace [info]",
        live: true,
        is_path: false,
        set: |config, text| {
            use log::LevelFilter::{Debug, Error, Info, Trace, Warn};
            let levels =
                [("error", Error), ("warn", Warn), ("info", Info), ("debug", Debug), ("trace", Trace)];
            config.log = one_of(text, &levels)?;
            Ok(())
        },
        get: |config| Some(config.log.to_string().to_lowercase()),
    },
    Setting {
        name: "log_prompts",
        value: "BOOL",
        help: "true: prompts stand in the log too, and are no longer private; false [false]",
        live: false,
        is_path: false,
        set: |config, text| {
            config.log_prompts = one_of(text, &[("true", true), ("false", false)])?;
            Ok(())
        },
        get: |config| Some(config.log_prompts.to_string()),
    },
    Setting {
        name: "pattern",
        value: "LOOK",
        help: "pattern engine: checkerboard, or gradient (tells prompts and seeds apart) [checkerboard]",
        live: false,
        is_path: false,
        set: |config, text| {
            config.pattern =
                one_of(text, &[("checkerboard", Look::Checkerboard), ("gradient", Look::Gradient)])?;
            Ok(())
        },
        get: |config| {
            Some(if config.pattern == Look::Gradient { "gradient" } else { "checkerboard" }.to_owned())
        },
    },
    Setting {
        name: "faults",
        value: "LIST",
        help: "pattern engine: fail@N, hang@N, crash@N (N: a worker's Nth request, or a word of the prompt), slow=SECONDS a step",
        live: false,
        is_path: false,
        set: |config, text| {
            config.faults = text.parse()?;
            Ok(())
        },
        get: |config| config.faults.is_any().then(|| config.faults.to_string()),
    },
];

const BOOLS: &[(&str, bool)] = &[("true", true), ("false", false)];

fn shown_bool(value: &bool) -> Option<String> {
    Some(value.to_string())
}

fn shown_number(value: &f32) -> Option<String> {
    Some(value.to_string())
}

fn shown_name(value: &&'static str) -> Option<String> {
    Some((*value).to_owned())
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag(String),
    /// The environment.
    Variable(String),
    /// A file, and the line in it.
    File(PathBuf, usize),
    /// A preset.
    Preset(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Variable(name) => f.write_str(name),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Preset(name) => write!(f, "preset {name}"),
        }
    }
}

/// Why the settings can't be used.
#[derive(Debug)]
pub enum ConfigError {
    /// A value outside its range.
    Value {
        /// Where it came from.
        origin: Origin,
        /// Which setting it is for.
        name: &'static str,
        /// What was said.
        value: String,
        /// What is allowed.
        reason: String,
    },
    /// No setting has this name.
    Unknown(Origin, String),
    /// The file can't be read.
    File(PathBuf, std::io::Error),
    /// The file isn't TOML.
    Syntax(PathBuf, usize, String),
    /// The command line can't be understood.
    Usage(String),
}

impl ConfigError {
    /// Whether the command line is to blame.
    #[must_use]
    pub const fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Usage(_) | Self::Unknown(Origin::Flag(_), _) | Self::Value { origin: Origin::Flag(_), .. }
        )
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { origin, name, value, reason } => {
                write!(f, "{origin}: {name} is {value:?}, must be {reason}")
            }
            Self::Unknown(origin, name) => {
                write!(f, "{origin}: there is no setting {name:?}; `weaved --help` lists them")
            }
            Self::File(path, error) => write!(f, "can't read the settings in {}: {error}", path.display()),
            Self::Syntax(path, line, what) => write!(f, "{}:{line}: {what}", path.display()),
            Self::Usage(what) => write!(f, "{what}; `weaved --help` shows what there is"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The settings, and where each came from.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The settings.
    pub config: Config,
    /// In the order of [`SETTINGS`]; `None` is a default.
    origins: Vec<Option<Origin>>,
}

impl Resolved {
    /// Every setting with its value, if it has one, and where that came from, if it is no default.
    pub fn settings(&self) -> impl Iterator<Item = (&'static Setting, Option<String>, Option<&Origin>)> {
        SETTINGS.iter().zip(&self.origins).map(|(s, origin)| (s, (s.get)(&self.config), origin.as_ref()))
    }

    /// As a settings file with the same values, each with its origin.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for (setting, value, origin) in self.settings() {
            let line = match &value {
                Some(value) if setting.is_bare(value) => format!("{} = {value}", setting.name),
                Some(value) => format!("{} = {}", setting.name, quoted(value)),
                None => format!("#{} =", setting.name),
            };
            let origin = match (origin, setting.default()) {
                (Some(origin), _) => origin.to_string(),
                (None, Some(default)) if value.is_none() => format!("default: {default}"),
                (None, _) => "default".to_owned(),
            };
            text.push_str(&format!("{line:<40} # {origin}\n"));
        }
        text
    }

    /// The same as a list of objects.
    #[must_use]
    pub fn to_json(&self) -> String {
        let entries: Vec<_> = self
            .settings()
            .map(|(setting, value, origin)| {
                let kind = match origin {
                    None => "default",
                    Some(Origin::Flag(_)) => "flag",
                    Some(Origin::Variable(_)) => "variable",
                    Some(Origin::File(..)) => "file",
                    Some(Origin::Preset(_)) => "preset",
                };
                let or_null = |text: Option<String>| text.map_or("null".to_owned(), |text| quoted(&text));
                format!(
                    "  {{\"name\": {}, \"value\": {}, \"kind\": {}, \"origin\": {}, \"live\": {}}}",
                    quoted(setting.name),
                    or_null(value),
                    quoted(kind),
                    or_null(origin.map(ToString::to_string)),
                    setting.live
                )
            })
            .collect();
        format!("[\n{}\n]\n", entries.join(",\n"))
    }

    /// Puts all sources together. `flags` are (name, value) as the command line had them, `vars` the
    /// environment, `file` the settings file if there is one.
    ///
    /// # Errors
    /// [`ConfigError`]: the first value that can't be used.
    pub fn new(
        flags: &[(String, String)],
        vars: impl Iterator<Item = (OsString, OsString)>,
        file: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let text = match file {
            Some(path) => {
                Some(std::fs::read_to_string(path).map_err(|e| ConfigError::File(path.to_owned(), e))?)
            }
            None => None,
        };
        Self::from_sources(flags, vars, file.zip(text.as_deref()))
    }

    /// The same with the text of the file instead of the file.
    ///
    /// # Errors
    /// [`ConfigError`]: the first value that can't be used.
    pub fn from_sources(
        flags: &[(String, String)],
        vars: impl Iterator<Item = (OsString, OsString)>,
        file: Option<(&Path, &str)>,
    ) -> Result<Self, ConfigError> {
        let mut all = Self { config: Config::default(), origins: vec![None; SETTINGS.len()] };
        let vars: Vec<_> = vars.collect();
        all.take_all(flags, &vars, file)?;
        // A preset comes before everything else, whoever named it: all of that once more, on top of it.
        let chosen = all.config.tuning.preset;
        if let Some((name, values)) = tuning::PRESETS.iter().find(|(name, _)| Some(*name) == chosen) {
            all = Self { config: Config::default(), origins: vec![None; SETTINGS.len()] };
            for setting in SETTINGS {
                if let Some((_, value)) = values.iter().find(|(of, _)| *of == setting.name) {
                    all.take(setting, value, Origin::Preset(name))?;
                }
            }
            all.take_all(flags, &vars, file)?;
        }
        // What this program can't do itself is no default for one that is another program's router.
        let is_set = |name| SETTINGS.iter().zip(&all.origins).any(|(s, o)| s.name == name && o.is_some());
        if is_set("worker_command") && !is_set("engine") {
            all.config.engine = EngineKind::Sdcpp;
        }
        Ok(all)
    }

    /// Takes what the file, the environment and the command line say, in this order.
    fn take_all(
        &mut self,
        flags: &[(String, String)],
        vars: &[(OsString, OsString)],
        file: Option<(&Path, &str)>,
    ) -> Result<(), ConfigError> {
        if let Some((path, text)) = file {
            self.take_file(path, text)?;
        }
        for (variable, value) in vars {
            let (Some(variable), Some(value)) = (variable.to_str(), value.to_str()) else { continue };
            let Some(setting) = SETTINGS.iter().find(|setting| setting.variable() == variable) else {
                continue;
            };
            if !value.is_empty() {
                self.take(setting, value, Origin::Variable(variable.to_owned()))?;
            }
        }
        for (flag, value) in flags {
            let origin = Origin::Flag(flag.clone());
            let Some(setting) = SETTINGS.iter().find(|setting| setting.flag() == *flag) else {
                return Err(ConfigError::Usage(format!("there is no flag --{flag}")));
            };
            self.take(setting, value, origin)?;
        }
        Ok(())
    }

    fn take(&mut self, setting: &'static Setting, value: &str, origin: Origin) -> Result<(), ConfigError> {
        // A worker gets its settings on its command line, which can't carry a NUL.
        let set = if value.contains('\0') {
            Err("text without NUL".to_owned())
        } else {
            (setting.set)(&mut self.config, value)
        };
        match set {
            Ok(()) => {
                if let Some(at) = SETTINGS.iter().position(|other| other.name == setting.name) {
                    self.origins[at] = Some(origin);
                }
                Ok(())
            }
            Err(reason) => {
                Err(ConfigError::Value { origin, name: setting.name, value: value.to_owned(), reason })
            }
        }
    }

    fn take_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let line_of = |at: usize| 1 + text.get(..at).unwrap_or(text).matches('\n').count();
        let table = toml::de::DeTable::parse(text).map_err(|error| {
            let line = line_of(error.span().map_or(0, |span| span.start));
            ConfigError::Syntax(path.to_owned(), line, error.message().to_owned())
        })?;
        // In the order of the file, so that the first error is the topmost one.
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let origin = Origin::File(path.to_owned(), line_of(key.span().start));
            let name = key.get_ref().as_ref();
            let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
                return Err(ConfigError::Unknown(origin, name.to_owned()));
            };
            let text = match value.get_ref() {
                // The one word that is no path.
                toml::de::DeValue::String(text)
                    if setting.is_path && (name, text.as_ref()) != ("admin_socket", "off") =>
                {
                    let folder = path.parent().unwrap_or(Path::new(""));
                    folder.join(text.as_ref()).to_string_lossy().into_owned()
                }
                toml::de::DeValue::String(text) => text.to_string(),
                toml::de::DeValue::Integer(number) => number.to_string(),
                toml::de::DeValue::Float(number) => number.to_string(),
                toml::de::DeValue::Boolean(value) => value.to_string(),
                other => {
                    let (value, reason) = (other.type_str().to_owned(), "a string or a number".to_owned());
                    return Err(ConfigError::Value { origin, name: setting.name, value, reason });
                }
            };
            self.take(setting, &text, origin)?;
        }
        Ok(())
    }
}

impl Config {
    /// [`Resolved::new`], where only the values matter.
    ///
    /// # Errors
    /// [`ConfigError`]: the first value that can't be used.
    pub fn resolve(
        flags: &[(String, String)],
        vars: impl Iterator<Item = (OsString, OsString)>,
        file: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        Resolved::new(flags, vars, file).map(|all| all.config)
    }

    /// Whether a worker of this build gives up what it doesn't need: on Linux, the only system where it can. Not
    /// tried with the drivers of GPUs: a worker that quietly falls back to the CPU would be worse.
    #[must_use]
    pub fn is_sandboxed(&self) -> bool {
        let drives_gpus = cfg!(any(feature = "cuda", feature = "vulkan", feature = "metal"));
        self.sandbox.unwrap_or(cfg!(target_os = "linux") && !drives_gpus)
    }

    /// The same settings as flags, for a worker's command line.
    #[must_use]
    pub fn to_flags(&self) -> Vec<String> {
        SETTINGS
            .iter()
            // It starts none.
            .filter(|setting| setting.name != "worker_command")
            .filter_map(|setting| (setting.get)(self).map(|value| format!("--{}={value}", setting.flag())))
            .collect()
    }

    /// Takes from `new` what can be changed while the daemon runs. Says what changed so, and what
    /// else differs.
    pub fn take_live(&mut self, new: &Self) -> (Vec<&'static str>, Vec<&'static str>) {
        let (mut taken, mut left) = (Vec::new(), Vec::new());
        for setting in SETTINGS {
            let value = (setting.get)(new);
            if value == (setting.get)(self) {
                continue;
            }
            match value {
                // What one `Config` has given another one takes.
                Some(value) if setting.live && (setting.set)(self, &value).is_ok() => {
                    taken.push(setting.name)
                }
                _ => left.push(setting.name),
            }
        }
        (taken, left)
    }
}

/// Variables that look like settings and are none: most likely they are misspelt.
pub fn unknown_variables(names: impl Iterator<Item = OsString>) -> impl Iterator<Item = String> {
    // The last ones are the build's.
    const OTHERS: [&str; 5] =
        ["WEAVE_CONFIG", "WEAVE_CACHE_DIR", "WEAVE_NATIVE", "WEAVE_CUDA_ARCHITECTURES", "WEAVE_CUDA_SETUP"];
    // These, and what begins with them, are the `weave` command's.
    const CLIENTS: [&str; 4] = ["WEAVE_AZURE_", "WEAVE_GATEWAY_", "WEAVE_OPENAI_", "WEAVE_PROVIDERS"];
    names.filter_map(|name| name.into_string().ok()).filter(|name| {
        name.starts_with("WEAVE_")
            && !OTHERS.contains(&name.as_str())
            && !CLIENTS.iter().any(|clients| name.starts_with(clients))
            && !SETTINGS.iter().any(|setting| setting.variable() == *name)
    })
}

/// The settings file to read when none was named: the user's, else the system's.
#[must_use]
pub fn default_file() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = var("XDG_CONFIG_HOME").or_else(|| var("HOME").map(|home| home.join(".config")));
    let user = user.map(|folder| folder.join("weave/weaved.toml"));
    user.into_iter().chain([PathBuf::from("/etc/weave/weaved.toml")]).find(|path| path.exists())
}

/// A string as TOML and JSON both have it.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => out.extend(['\\', char]),
            '\0'..=' ' | '\x7f' if char != ' ' => out.push_str(&format!("\\u{:04x}", u32::from(char))),
            _ => out.push(char),
        }
    }
    out.push('"');
    out
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("a path".to_owned()) } else { Ok(PathBuf::from(text)) }
}

fn shown(path: Option<&Path>) -> Option<String> {
    path.map(|path| path.to_string_lossy().into_owned())
}

fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        format!("one of {}", names.join(", "))
    })
}

fn count<T>(text: &str, range: std::ops::RangeInclusive<T>) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + fmt::Display,
{
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("a whole number from {} to {}", range.start(), range.end())),
    }
}

/// Numbers, or names that stand in `file`, where the third of the fields between colons is the number.
fn ids(text: &str, file: &Path) -> Result<Vec<u32>, String> {
    let known = std::fs::read_to_string(file).unwrap_or_default();
    let number_of = |name: &str| {
        let line = known.lines().find(|line| line.split(':').next() == Some(name))?;
        line.split(':').nth(2)?.parse().ok()
    };
    let id = |part: &str| part.parse().ok().or_else(|| number_of(part));
    text.split(',')
        .map(|part| id(part.trim()))
        .collect::<Option<_>>()
        .ok_or_else(|| format!("numbers, or names that stand in {}, with commas in between", file.display()))
}

/// The longest time that a setting takes: ten years, far inside what the clock can add.
const LONGEST: f64 = 10.0 * 365.0 * 86_400.0;
/// The shortest: anything less would become no time at all, which no worker's command line may say.
const SHORTEST: f64 = 1e-9;

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (SHORTEST..=LONGEST).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("seconds, from {SHORTEST} to {LONGEST}")),
    }
}
