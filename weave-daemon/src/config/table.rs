//! All settings: their names, their words, and how text becomes their value and back.

use std::net::SocketAddr;
use std::path::PathBuf;

use log::LevelFilter;
use weave_core::limits::{MAX_CFG_SCALE, MAX_SIDE, MAX_STEPS, MIN_CFG_SCALE, MIN_SIDE, MIN_STEPS, SIDE_STEP};

use super::{AdminSocket, Config, EngineKind, Isolation, Sandbox};
use crate::engine::pattern::{Faults, Look};
use crate::engine::tuning::{self, MemoryLimit, Tiling};
use crate::router::Abandoned;
use crate::values::{
    BOOLS, count, folders, gib, ids, if_set, list, name_in, named, number, one_of, or, path, seconds, shown,
    shown_folders, shown_path, shown_seconds, shown_switch, some, unless,
};

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
    pub is_path: bool,
    /// What stands between the parts of the value if it is a list, which in a file may be an array.
    pub(super) separator: Option<char>,
    pub(super) set: fn(&mut Config, &str) -> Result<(), String>,
    pub(super) get: fn(&Config) -> Option<String>,
}

/// Other names for settings, in a file, as a flag and as a variable.
pub const ALIASES: &[(&str, &str)] = &[("default_cfg", "default_cfg_scale"), ("socket_path", "socket")];

impl Setting {
    /// The setting with this name in a file.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| name);
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// The setting with this flag, without the dashes.
    #[must_use]
    pub fn find_flag(flag: &str) -> Option<&'static Self> {
        if flag.contains('_') { None } else { Self::find(&flag.replace('-', "_")) }
    }

    /// The setting with this variable.
    #[must_use]
    pub fn find_variable(variable: &str) -> Option<&'static Self> {
        let name = variable.strip_prefix("WEAVE_")?;
        if name.contains(|c: char| c.is_lowercase()) { None } else { Self::find(&name.to_lowercase()) }
    }

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

    /// Whether the value begins with a path.
    pub(super) fn names_files(&self) -> bool {
        self.is_path || matches!(self.name, "worker_command" | "trusted_folders")
    }

    /// The words that it takes, where these are all that it takes: what it says to another one names them.
    #[must_use]
    pub fn words(&self) -> Option<Vec<String>> {
        let allowed = (self.set)(&mut Config::default(), "?").err()?;
        let names = allowed.strip_prefix("auto, or ").unwrap_or(&allowed).strip_prefix("one of ")?;
        let auto = if allowed.starts_with("auto") { Some("auto".to_owned()) } else { None };
        Some(auto.into_iter().chain(names.split(", ").map(str::to_owned)).collect())
    }

    /// What the help text says of the default.
    pub(super) fn default(&self) -> Option<&'static str> {
        Some(self.help.strip_suffix(']')?.rsplit_once('[')?.1)
    }

    /// Whether the value stands in a file without quotation marks.
    pub(super) fn is_bare(&self, value: &str) -> bool {
        !self.is_path && (value.parse::<f64>().is_ok() || value == "true" || value == "false")
    }

    /// The environment's name.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("WEAVE_{}", self.name.to_uppercase())
    }
}

/// A setting: its name, its field in [`Config`] if that is called otherwise, the word for its value, flags (`live`:
/// SIGHUP can change it; `path`: it is one; `list` with commas, `words` with blanks in between), its help text with the default in brackets, and how text becomes its
/// value and back.
macro_rules! setting {
    ($name:ident, $value:literal, $($rest:tt)*) => { setting!($name, $name, $value, $($rest)*) };
    ($name:ident, $($field:ident).+, $value:literal, [$($flag:ident)?], $help:literal, $parse:expr, $show:expr) => {
        Setting {
            name: stringify!($name),
            value: $value,
            help: $help,
            live: setting!(@live $($flag)?),
            is_path: setting!(@path $($flag)?),
            separator: setting!(@separator $($flag)?),
            set: |config, text| {
                config.$($field).+ = $parse(text)?;
                Ok(())
            },
            get: |config| $show(&config.$($field).+),
        }
    };
    (@live live) => { true };
    (@live $($flag:ident)?) => { false };
    (@path path) => { true };
    (@path $($flag:ident)?) => { false };
    (@separator list) => { Some(',') };
    (@separator words) => { Some(' ') };
    (@separator $($flag:ident)?) => { None };
}

/// All settings, in the order of the help text.
pub const SETTINGS: &[Setting] = &[
    setting!(
        socket,
        "PATH",
        [path],
        "Unix socket to listen on [$XDG_RUNTIME_DIR/weave/weave.sock; without that variable ~/.weave/weave.sock]",
        some(socket),
        if_set(shown_path)
    ),
    setting!(
        allow_uids,
        access.uids,
        "LIST",
        [list],
        "users that may connect to it, besides weaved's own user and root: 1000,alice",
        ids("/etc/passwd"),
        |uids: &Vec<u32>| list(uids)
    ),
    setting!(
        allow_gids,
        access.gids,
        "LIST",
        [list],
        "groups that may connect to it: 1000,weave; a single group gets the socket, with mode 0660",
        ids("/etc/group"),
        |gids: &Vec<u32>| list(gids)
    ),
    setting!(
        trusted_folders,
        "LIST",
        [list],
        "folders that only weaved uses although others may write to them: /cache,/run/weave [none]",
        folders,
        |folders: &Vec<PathBuf>| shown_folders(folders)
    ),
    setting!(
        tcp,
        "ADDRESS:PORT",
        [],
        "also listen on TCP; port 0 picks a free port [off]",
        some(address),
        if_set(shown)
    ),
    setting!(
        allow_remote,
        "",
        [],
        "allow a TCP address that other machines can reach; needs token_file [off]",
        one_of(BOOLS),
        shown_switch
    ),
    setting!(
        token_file,
        "FILE",
        [path],
        "file with the 64 hex digits that TCP clients must know (`openssl rand -hex 32`)",
        some(path),
        if_set(shown_path)
    ),
    setting!(
        sandbox,
        "on|off|require",
        [],
        "sandbox worker processes: no network, no files except those the engine reads; require: serve with all of it or not at all [on; off in a GPU build]",
        some(one_of(SANDBOXES)),
        if_set(name_in(SANDBOXES))
    ),
    setting!(
        admin_socket,
        "PATH",
        [path],
        "Unix socket for metrics and health checks, or off [NAME-admin.sock beside NAME.sock]",
        admin_socket,
        shown_admin_socket
    ),
    setting!(
        engine,
        "NAME",
        [],
        "sdcpp (stable-diffusion.cpp) or pattern (test pictures, no model) [sdcpp]",
        one_of(ENGINES),
        name_in(ENGINES)
    ),
    setting!(
        isolation,
        "KIND",
        [],
        "run the engine in a process (weaved survives its crashes) or in a thread [process]",
        one_of(ISOLATIONS),
        name_in(ISOLATIONS)
    ),
    setting!(
        worker_command,
        "COMMAND",
        [words],
        "program to run as the worker, a weaved of the same version: \"/usr/lib/weave/weaved-cuda worker\" [this program]",
        words,
        |words: &Vec<String>| (!words.is_empty()).then(|| words.join(" "))
    ),
    setting!(
        model,
        model.model,
        "FILE",
        [path],
        "SD 3.5 checkpoint in one file (safetensors or GGUF) [the demo model]",
        some(path),
        if_set(shown_path)
    ),
    setting!(
        diffusion_model,
        model.diffusion_model,
        "FILE",
        [path],
        "SD 3.5 diffusion model alone; needs a text encoder and a decoder",
        some(path),
        if_set(shown_path)
    ),
    setting!(clip_l, model.clip_l, "FILE", [path], "CLIP-L text encoder", some(path), if_set(shown_path)),
    setting!(clip_g, model.clip_g, "FILE", [path], "CLIP-G text encoder", some(path), if_set(shown_path)),
    setting!(t5xxl, model.t5xxl, "FILE", [path], "T5-XXL text encoder", some(path), if_set(shown_path)),
    setting!(vae, model.vae, "FILE", [path], "VAE decoder", some(path), if_set(shown_path)),
    setting!(
        taesd,
        model.taesd,
        "FILE",
        [path],
        "TAESD decoder: smaller and faster than the VAE, coarser",
        some(path),
        if_set(shown_path)
    ),
    setting!(
        default_size,
        "WIDTHxHEIGHT",
        [live],
        "image size for clients that name none, each side 64 to 2048 and a multiple of 64, or auto [auto: what suits the model]",
        unless(tuning::AUTO, size),
        or(tuning::AUTO, |(width, height): &(u32, u32)| Some(format!("{width}x{height}")))
    ),
    setting!(
        default_steps,
        "N",
        [live],
        "denoising steps for clients that name none, 1 to 100, or auto [auto: what suits the model]",
        unless(tuning::AUTO, count(MIN_STEPS..=MAX_STEPS)),
        or(tuning::AUTO, shown)
    ),
    setting!(
        default_cfg_scale,
        "X",
        [live],
        "guidance scale for clients that name none, 0 to 20, or auto; default_cfg is the same [auto: what suits the model]",
        unless(tuning::AUTO, number(MIN_CFG_SCALE..=MAX_CFG_SCALE)),
        or(tuning::AUTO, shown)
    ),
    setting!(
        preset,
        tuning.preset,
        "NAME",
        [],
        "settings for a GPU with this much memory: 4gb, 8gb, 12gb, 16gb, 24gb; each can be overridden",
        some(named(&tuning::preset_names())),
        if_set(shown)
    ),
    setting!(
        device,
        tuning.device,
        "NAME",
        [],
        "device to compute on: CUDA0, Vulkan1, gpu, cpu; `weaved devices` lists them [the first GPU, else cpu]",
        some(tuning::device),
        if_set(shown)
    ),
    setting!(
        require_gpu,
        tuning.require_gpu,
        "",
        [],
        "refuse to serve on the CPU if there is no GPU [off]",
        one_of(BOOLS),
        shown_switch
    ),
    setting!(
        backend,
        tuning.backend,
        "LIST",
        [list],
        "device per model part (diffusion, te, vae): te=cpu [auto]",
        tuning::part_devices,
        shown
    ),
    setting!(
        params_backend,
        tuning.params_backend,
        "LIST",
        [list],
        "where weights are kept until they are used: cpu, disk, or per part: te=cpu,vae=disk [auto: where they are used]",
        tuning::part_places,
        shown
    ),
    setting!(
        max_vram,
        tuning.max_vram,
        "GIB",
        [],
        "GPU memory budget in GiB; a larger compute graph is split. 0: no budget, -1: free memory minus 1 GiB [0]",
        gib(-64.0..=1024.0),
        shown
    ),
    setting!(
        stream_layers,
        tuning.stream_layers,
        "BOOL",
        [],
        "prefetch weights layer by layer; needs max_vram and params_backend=cpu [false]",
        one_of(BOOLS),
        shown
    ),
    setting!(
        mmap,
        tuning.mmap,
        "BOOL",
        [],
        "map model files into memory instead of reading them: less RAM, shared between workers [false]",
        one_of(BOOLS),
        shown
    ),
    setting!(
        threads,
        "N",
        [],
        "CPU threads of each engine, 1 to 256 [the cores of this machine, shared between workers]",
        some(count(1..=256)),
        if_set(shown)
    ),
    setting!(
        flash_attention,
        tuning.flash_attention,
        "BOOL",
        [],
        "flash attention in the diffusion model: faster on GPUs, less memory, slightly different images [false]",
        one_of(BOOLS),
        shown
    ),
    setting!(
        flash_attention_everywhere,
        tuning.flash_attention_everywhere,
        "BOOL",
        [],
        "flash attention in the text encoders and the VAE too: saves most memory at large sizes [false]",
        one_of(BOOLS),
        shown
    ),
    setting!(
        memory_limit,
        tuning.memory_limit,
        "GIB",
        [],
        "memory limit per image, without weights, 0.001 to 1024; larger images are refused; auto: free memory; or off [auto]",
        memory_limit,
        shown_memory_limit
    ),
    setting!(
        vae_tiling,
        tuning.vae_tiling,
        "WHEN",
        [],
        "decode in tiles: on, off, auto (if memory is short); less memory, different pixels at the seams [auto]",
        one_of(TILINGS),
        name_in(TILINGS)
    ),
    setting!(
        vae_tiling_above,
        tuning.vae_tiling_above,
        "SIDE",
        [],
        "with vae_tiling=auto, also tile images of more than SIDE×SIDE pixels, 64 to 2048, or never [never]",
        unless("never", count(64..=2048)),
        or("never", shown)
    ),
    setting!(
        vae_tile_size,
        tuning.vae_tile_size,
        "N",
        [],
        "tile size in latent pixels, 8×8 image pixels each, 8 to 256 [32]",
        count(8..=256),
        shown
    ),
    setting!(
        vae_tile_overlap,
        tuning.vae_tile_overlap,
        "SHARE",
        [],
        "fraction of a tile that overlaps its neighbour, 0 to 0.5 [0.5]",
        number(0.0..=0.5),
        shown
    ),
    setting!(
        vae_conv_direct,
        tuning.vae_conv_direct,
        "BOOL",
        [],
        "direct convolutions in the VAE: much less memory, slower on some devices [false]",
        one_of(BOOLS),
        shown
    ),
    setting!(
        weight_type,
        tuning.weight_type,
        "TYPE",
        [],
        "convert weights while loading: f16, bf16, q8_0, q6_K, q5_K, q4_K, q4_0 and more; less memory, other images [auto]",
        tuning::named_or_auto(tuning::WEIGHT_TYPES),
        shown
    ),
    setting!(
        tensor_type_rules,
        tuning.tensor_type_rules,
        "LIST",
        [list],
        "per-tensor overrides of weight_type, as REGEX=TYPE,…: ^vae\\.=f16,model\\.=q8_0",
        some(tuning::type_rules),
        if_set(shown)
    ),
    setting!(
        sampler,
        tuning.sampler,
        "NAME",
        [],
        "euler, euler_a, heun, dpm2, dpm++2s_a, dpm++2m, dpm++2mv2, ipndm, ipndm_v, lcm and more [auto: euler]",
        tuning::named_or_auto(tuning::SAMPLERS),
        shown
    ),
    setting!(
        scheduler,
        tuning.scheduler,
        "NAME",
        [],
        "discrete, karras, exponential, gits, sgm_uniform, simple, smoothstep, kl_optimal, lcm, bong_tangent [auto: discrete]",
        tuning::named_or_auto(tuning::SCHEDULERS),
        shown
    ),
    setting!(
        flow_shift,
        tuning.flow_shift,
        "X",
        [],
        "timestep shift: a higher one spends more steps on high noise, 0.1 to 100, or auto [auto: 3]",
        unless(tuning::AUTO, number(0.1..=100.0)),
        or(tuning::AUTO, shown)
    ),
    setting!(
        rng,
        tuning.rng,
        "NAME",
        [],
        "random number generator for the initial noise: cuda (the same on every device), cpu, std_default [cuda]",
        named(tuning::RNGS),
        shown
    ),
    setting!(
        workers,
        "N",
        [],
        "workers, each with an engine and a GPU of its own, 1 to 64 [1]",
        count(1..=64),
        shown
    ),
    setting!(
        warm_up,
        "BOOL",
        [],
        "generate a small image in each worker before it gets requests [true; false for pattern]",
        some(one_of(BOOLS)),
        if_set(shown)
    ),
    setting!(queue, "N", [], "limit on waiting requests, 1 to 4096 [64]", count(1..=4096), shown),
    setting!(connections, "N", [], "limit on client connections, 1 to 65536 [256]", count(1..=65_536), shown),
    setting!(
        in_flight,
        "N",
        [live],
        "requests under way per connection, 1 to 4096: with so many no more are read from it [32]",
        count(1..=4096),
        shown
    ),
    setting!(
        frame_timeout,
        "TIME",
        [live],
        "frame timeout: from the first to the last byte of a request [30]",
        seconds,
        shown_seconds
    ),
    setting!(
        idle_timeout,
        "TIME",
        [live],
        "idle timeout: closes a connection without a request [600]",
        seconds,
        shown_seconds
    ),
    setting!(
        queue_timeout,
        "TIME",
        [live],
        "queue timeout: from a request to its dispatch to a worker [3600]",
        seconds,
        shown_seconds
    ),
    setting!(
        generation_timeout,
        "TIME",
        [live],
        "generation timeout: cancels an image that takes longer [3600]",
        seconds,
        shown_seconds
    ),
    setting!(
        stall_timeout,
        "TIME",
        [live],
        "stall timeout: closes a connection that reads less than 64 KiB of an image in this time [30]",
        seconds,
        shown_seconds
    ),
    setting!(
        busy_stall_timeout,
        "TIME",
        [live],
        "stall timeout while other clients' requests wait [5]",
        seconds,
        shown_seconds
    ),
    setting!(
        abandoned,
        "WHAT",
        [live],
        "running request of a client that has disconnected: finish or cancel it [cancel]",
        one_of(ABANDONED),
        name_in(ABANDONED)
    ),
    setting!(
        cancel_timeout,
        "TIME",
        [live],
        "cancel timeout: kills a worker that takes longer to cancel a request, such as for one step of the engine [30]",
        seconds,
        shown_seconds
    ),
    setting!(
        worker_idle_timeout,
        "TIME",
        [live],
        "worker idle timeout: stops a worker until it is needed again, or never [never]",
        unless("never", seconds),
        or("never", shown_seconds)
    ),
    setting!(
        drain_timeout,
        "TIME",
        [live],
        "drain timeout: how long running requests may go on after SIGTERM [60]",
        seconds,
        shown_seconds
    ),
    setting!(
        log,
        "LEVEL",
        [live],
        "log level: error, warn, info, debug or trace [info]",
        one_of(LEVELS),
        name_in(LEVELS)
    ),
    setting!(
        log_prompts,
        "BOOL",
        [],
        "log prompts, which makes them readable to all who can read the log [false]",
        one_of(BOOLS),
        shown
    ),
    setting!(
        pattern,
        "LOOK",
        [],
        "pattern engine: checkerboard, or gradient (differs by prompt and seed) [checkerboard]",
        one_of(LOOKS),
        name_in(LOOKS)
    ),
    setting!(
        faults,
        "LIST",
        [list],
        "pattern engine: fail@N, hang@N, crash@N (N: a worker's Nth request, or a word in the prompt), slow=TIME per step",
        str::parse,
        |faults: &Faults| faults.is_any().then(|| faults.to_string())
    ),
];

const ENGINES: &[(&str, EngineKind)] = &[("sdcpp", EngineKind::Sdcpp), ("pattern", EngineKind::Pattern)];
const ISOLATIONS: &[(&str, Isolation)] = &[("process", Isolation::Process), ("thread", Isolation::Thread)];
const SANDBOXES: &[(&str, Sandbox)] =
    &[("on", Sandbox::On), ("off", Sandbox::Off), ("require", Sandbox::Require)];
const TILINGS: &[(&str, Tiling)] = &[("auto", Tiling::Auto), ("on", Tiling::On), ("off", Tiling::Off)];
const ABANDONED: &[(&str, Abandoned)] = &[("finish", Abandoned::Finish), ("cancel", Abandoned::Cancel)];
const LOOKS: &[(&str, Look)] = &[("checkerboard", Look::Checkerboard), ("gradient", Look::Gradient)];
const LEVELS: &[(&str, LevelFilter)] = &[
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

fn socket(text: &str) -> Result<PathBuf, String> {
    match text.starts_with("tcp://") {
        // Which WEAVE_SOCKET may be to clients.
        true => Err("the path of a Unix socket; tcp is the setting for ADDRESS:PORT".to_owned()),
        false => path(text),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an address and a port: 127.0.0.1:7433, [::1]:7433".to_owned())
}

fn admin_socket(text: &str) -> Result<AdminSocket, String> {
    if text == "off" { Ok(AdminSocket::Off) } else { path(text).map(AdminSocket::At) }
}

fn shown_admin_socket(socket: &AdminSocket) -> Option<String> {
    match socket {
        AdminSocket::Beside => None,
        AdminSocket::Off => Some("off".to_owned()),
        AdminSocket::At(path) => shown_path(path),
    }
}

fn size(text: &str) -> Result<(u32, u32), String> {
    let is_side = |side: &u32| (MIN_SIDE..=MAX_SIDE).contains(side) && side.is_multiple_of(SIDE_STEP);
    let side = |text: &str| text.parse().ok().filter(is_side);
    text.split_once('x').and_then(|(width, height)| Some((side(width)?, side(height)?))).ok_or_else(|| {
        format!("WIDTHxHEIGHT, each {MIN_SIDE} to {MAX_SIDE} and a multiple of {SIDE_STEP}, such as 512x768")
    })
}

fn words(text: &str) -> Result<Vec<String>, String> {
    let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
    if words.is_empty() {
        return Err("a program and its arguments, with blanks in between".to_owned());
    }
    Ok(words)
}

fn memory_limit(text: &str) -> Result<MemoryLimit, String> {
    match text {
        "auto" => Ok(MemoryLimit::Free),
        "off" => Ok(MemoryLimit::Off),
        _ => {
            gib(0.001..=1024.0)(text).map(MemoryLimit::Gib).map_err(|error| format!("auto, off, or {error}"))
        }
    }
}

fn shown_memory_limit(limit: &MemoryLimit) -> Option<String> {
    match limit {
        MemoryLimit::Free => Some("auto".to_owned()),
        MemoryLimit::Off => Some("off".to_owned()),
        MemoryLimit::Gib(number) => shown(number),
    }
}
