//! `weaved check`: whether all that serving takes is there. Makes and changes nothing, and starts nothing but
//! another worker, to ask for its version, to try the sandbox, and, where the settings insist on some, for its devices.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;

use rustix::fs::{Access, access};
use rustix::io::Errno;
use weave_trust::{has_no_such_address, other_localhost};

use crate::config::{Config, EngineKind, Isolation, Sandbox};
use crate::model::Profile;
use crate::process::{self, Descriptors};
use crate::socket::{SocketError, check_folder, default_path};
use crate::tcp::{self, TcpError};

/// One thing that was looked at.
#[derive(Debug)]
pub struct Finding {
    kind: Kind,
    /// The setting, mostly.
    what: &'static str,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Good,
    Note,
    Warning,
    Wrong,
}

impl Finding {
    /// It can be used.
    pub fn good(what: &'static str, text: impl fmt::Display) -> Self {
        Self { kind: Kind::Good, what, text: text.to_string() }
    }

    /// It can be used, and whoever looks should know of it.
    pub fn note(what: &'static str, text: impl fmt::Display) -> Self {
        Self { kind: Kind::Note, what, text: text.to_string() }
    }

    /// It can be used, but most likely it isn't meant.
    pub fn warning(what: &'static str, text: impl fmt::Display) -> Self {
        Self { kind: Kind::Warning, what, text: text.to_string() }
    }

    /// It keeps the daemon from serving.
    pub fn wrong(what: &'static str, text: impl fmt::Display) -> Self {
        Self { kind: Kind::Wrong, what, text: text.to_string() }
    }

    /// Whether it keeps the daemon from serving.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        self.kind == Kind::Wrong
    }

    /// Whether it most likely isn't meant.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        self.kind == Kind::Warning
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Good => "ok",
            Kind::Note => "note",
            Kind::Warning => "warn",
            Kind::Wrong => "error",
        };
        write!(f, "{kind:<5} {}: {}", self.what, self.text)
    }
}

/// Looks at everything, in the order in which serving needs it.
#[must_use]
pub fn all(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(model) = model(config, &mut findings) {
        let defaults = config.defaults(model.defaults);
        let text = format_args!("{defaults}, for clients that name none, with {}", model.name);
        findings.push(Finding::good("defaults", text));
    }
    findings.push(device(config));
    findings.extend(sandbox(config));
    findings.extend(config.tuning.without_effect().map(|what| Finding::warning("tuning", what)));
    match config.socket.clone().map_or_else(default_path, Ok) {
        Ok(path) => {
            findings.push(place("socket", &path, config));
            if let Some(path) = config.admin_socket.path(Some(&path)) {
                findings.push(place("admin_socket", &path, config));
            }
        }
        Err(error) => findings.push(Finding::wrong("socket", error)),
    }
    findings.extend(tcp(config));
    findings.push(descriptors(config));
    findings
}

/// Gives what the images are made with, where that is known.
fn model(config: &Config, findings: &mut Vec<Finding>) -> Option<Profile> {
    if !config.worker_command.is_empty() {
        findings.push(match process::check_command(config) {
            Ok(()) => Finding::good("worker_command", config.worker_command.join(" ")),
            Err(error) => Finding::wrong("worker_command", error),
        });
    }
    if config.engine == EngineKind::Pattern {
        findings.push(Finding::good("engine", format_args!("pattern: the {}", Profile::PATTERN)));
        return Some(Profile::PATTERN);
    }
    if config.worker_command.is_empty() && cfg!(not(feature = "sdcpp")) {
        findings
            .push(Finding::wrong("engine", "this weaved was built without the sdcpp engine; use pattern"));
        return None;
    }
    let profile = match config.model.check() {
        Err(error) => {
            findings.push(Finding::wrong("model", error));
            return None;
        }
        Ok(None) => config.model.profile(None),
        Ok(Some(found)) => {
            let gigabytes = found.bytes() as f64 / 1e9;
            findings.push(Finding::good("model", format_args!("{found}; {gigabytes:.1} GB of weights")));
            config.model.profile(Some(&found))
        }
    };
    for (name, path) in config.model.parts() {
        let Some(path) = path else { continue };
        let size = fs::metadata(path).map_or(0, |file| file.len());
        findings.push(Finding::good(name, format_args!("{}, {} MB", path.display(), size / 1_000_000)));
    }
    if config.model.is_empty() && !config.worker_command.is_empty() {
        findings.push(Finding::good("model", "the demo model, unpacked by worker_command"));
    }
    #[cfg(feature = "sdcpp")]
    if config.model.is_empty() && config.worker_command.is_empty() {
        findings.push(match crate::demo::cache_dir() {
            Ok(folder) => match crate::demo::check_place(&folder, &config.rules())
                .map_err(|error| error.to_string())
                .and_then(|()| writable(&folder))
                .and_then(|()| has_room(&folder))
            {
                Ok(()) => {
                    Finding::good("model", format_args!("the demo model, unpacked in {}", folder.display()))
                }
                Err(error) => {
                    Finding::wrong("model", format_args!("the demo model can't be unpacked: {error}"))
                }
            },
            Err(error) => Finding::wrong("model", error),
        });
    }
    Some(profile)
}

fn device(config: &Config) -> Finding {
    if config.engine == EngineKind::Pattern {
        return Finding::good("device", "not needed");
    }
    if !config.worker_command.is_empty() {
        return match process::check_devices(config) {
            Ok(()) => Finding::note("device", "chosen by worker_command"),
            Err(error) => Finding::wrong("device", error),
        };
    }
    #[cfg(feature = "sdcpp")]
    {
        use crate::engine::device;
        let back_ends = sdcpp_sys::ENGINE.back_ends;
        // Names only: nothing on a GPU is touched that could be full.
        let devices = device::all();
        let chosen = match device::chosen(&devices, &config.tuning) {
            Ok(chosen) => chosen,
            Err(error) => return Finding::wrong("device", error),
        };
        let control = Path::new("/dev/nvidiactl");
        if back_ends.contains(&"cuda") && access(control, Access::READ_OK | Access::WRITE_OK).is_err() {
            return Finding::warning(
                "device",
                "built for CUDA, but /dev/nvidiactl can't be used; computing on the CPU",
            );
        }
        match chosen {
            Some(device) => Finding::good("device", format_args!("{} ({})", device.name, device.description)),
            None => Finding::good("device", back_ends.join(", ")),
        }
    }
    #[cfg(not(feature = "sdcpp"))]
    Finding::note("device", "none: built without an engine")
}

/// Whether workers can be sandboxed as the settings have it. Another program's own default is its own.
fn sandbox(config: &Config) -> Option<Finding> {
    let mode = match config.sandbox {
        None if !config.worker_command.is_empty() => return None,
        _ => config.decided().sandbox,
    };
    let required = match mode {
        Sandbox::Off => return Some(Finding::note("sandbox", "off: the engine can do what weaved can")),
        Sandbox::On if config.isolation == Isolation::Thread => {
            return Some(Finding::note("sandbox", "none, because the engine runs in a thread of weaved"));
        }
        Sandbox::On | Sandbox::Require => Config { sandbox: Some(Sandbox::Require), ..config.clone() },
    };
    Some(match process::check_sandbox(&required) {
        Ok(()) => Finding::good("sandbox", "this kernel can do all of it"),
        Err(error) if mode == Sandbox::Require => Finding::wrong("sandbox", error),
        Err(error) => Finding::warning("sandbox", format_args!("incomplete; with \"require\": {error}")),
    })
}

/// Whether a socket can be made there.
fn place(what: &'static str, path: &Path, config: &Config) -> Finding {
    let shown = path.display();
    if let Err(error) = SocketAddr::from_pathname(path) {
        return Finding::wrong(what, format_args!("{shown}: {error}"));
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let is_no_folder = |error: &SocketError| matches!(error, SocketError::Io(_, _, error) if error.kind() == ErrorKind::NotADirectory);
    if let Err(error) = check_folder(path, &config.access, &config.rules())
        // Which is said better below.
        && !is_no_folder(&error)
    {
        return Finding::wrong(what, error);
    }
    if let Err(error) = writable(folder) {
        return Finding::wrong(what, error);
    }
    match fs::symlink_metadata(path) {
        Err(_) => Finding::good(what, shown),
        Ok(file) if !file.file_type().is_socket() => {
            Finding::wrong(what, SocketError::NotASocket(path.to_owned()))
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            Finding::note(what, format_args!("{shown}: already in use"))
        }
        Ok(_) => {
            Finding::good(what, format_args!("{shown}, replaces the stale socket of a daemon that has died"))
        }
    }
}

/// Whether files can be made in a folder, which may have to be made itself.
fn writable(folder: &Path) -> Result<(), String> {
    let there = folder.ancestors().map(|at| if at.as_os_str().is_empty() { Path::new(".") } else { at });
    let Some(there) = there.into_iter().find(|at| at.exists()) else { return Ok(()) };
    if !there.is_dir() {
        return Err(format!("{} is not a folder", there.display()));
    }
    access(there, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| format!("can't write in {}: {error}", there.display()))
}

/// Whether the demo model's files fit where they are to be.
#[cfg(feature = "sdcpp")]
fn has_room(cache: &Path) -> Result<(), String> {
    let missing = crate::demo::missing(cache).map_err(|error| error.to_string())?;
    let Some(there) = cache.ancestors().find(|at| at.exists()) else { return Ok(()) };
    // Where that can't be told, writing will tell.
    let Ok(disk) = rustix::fs::statvfs(there) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < missing {
        return Err(format!(
            "it takes {} MB, and the disk of {} has {} MB left; make room, or set WEAVE_CACHE_DIR to another folder",
            missing.div_ceil(1_000_000),
            there.display(),
            free / 1_000_000
        ));
    }
    Ok(())
}

fn tcp(config: &Config) -> Option<Finding> {
    let (address, token) = match tcp::entrance(config) {
        Err(error) => return Some(Finding::wrong("tcp", error)),
        Ok(entrance) => entrance?,
    };
    match tcp::is_free(address) {
        Ok(true) => {}
        Ok(false) => return Some(Finding::note("tcp", format_args!("{address}: already in use"))),
        Err(error) => return Some(Finding::wrong("tcp", TcpError::Listen(address, error))),
    }
    let who = tcp::who(token.as_ref());
    let Some(twin) = other_localhost(address) else {
        return Some(Finding::good("tcp", format_args!("{address}, for {who}")));
    };
    Some(match tcp::is_free(twin) {
        Ok(true) => Finding::good("tcp", format_args!("{address} and {twin}, for {who}")),
        Ok(false) => Finding::wrong("tcp", TcpError::Twin(twin, address, Errno::ADDRINUSE.into())),
        Err(error) if has_no_such_address(&error) => {
            Finding::good("tcp", format_args!("{address}, for {who}"))
        }
        Err(error) => Finding::wrong("tcp", TcpError::Twin(twin, address, error)),
    })
}

fn descriptors(config: &Config) -> Finding {
    match process::descriptors(config) {
        Descriptors { own, most, .. } if most <= own => {
            Finding::wrong("connections", process::too_few(config, own, most))
        }
        Descriptors { own, need, most } if most < need => Finding::warning(
            "connections",
            format_args!(
                "up to {} need {need} file descriptors, and the limit is {most}, so there will be {}; raise `ulimit -n` or \
                 LimitNOFILE=",
                config.connections,
                most - own
            ),
        ),
        _ => Finding::good("connections", format_args!("up to {}", config.connections)),
    }
}
