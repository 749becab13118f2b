//! The `weaved` program: reads the command line, then serves or works.

mod completions;
mod manual;
mod work;

use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::Arg;
use weave_daemon::config::{
    AdminSocket, Config, ConfigError, EngineKind, Isolation, Resolved, Sandbox, Setting, default_file,
    nearest, unknown_flag, unknown_variable, unknown_variables,
};
use weave_daemon::model::{ModelError, Profile};
use weave_daemon::server::Server;
use weave_daemon::socket::{Socket, SocketError, default_path, usual_path, usual_paths};
use weave_daemon::tcp::{self, TcpError};
use weave_daemon::{admin, check, logger, process, systemd};

/// What the command line asks for.
enum Command {
    /// Listen and route.
    Serve,
    /// Be a worker, on the socket that is standard input or on one to connect to.
    Work { connect: Option<PathBuf> },
    /// Say whether this kernel can put a worker into its sandbox.
    TrySandbox,
    /// Say whether all that the settings name can be used.
    Check { strict: bool },
    /// Say what the settings are and where they come from.
    Show { format: Format },
    /// Ask the running daemon whether it is ready.
    Status,
    /// Say what the engine can compute on.
    Devices { format: Format, about: About },
}

/// How a list is printed: for people, or for programs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// What `weaved devices` is to tell.
#[derive(Clone, Copy)]
enum About {
    All,
    /// Not their memory, for which a process is started for each.
    Names,
    /// What such a process is asked: the memory of the device with this number.
    Memory(usize),
}

/// Where the settings come from: what it takes to read them again.
#[derive(Clone)]
struct Sources {
    flags: Vec<(String, String)>,
    /// As the command line or the environment name it.
    file: Option<PathBuf>,
    /// Neither a file that isn't named nor the environment.
    bare: bool,
}

impl Sources {
    fn file(&self) -> Option<PathBuf> {
        self.file.clone().or_else(|| if self.bare { None } else { default_file() })
    }

    fn environment(&self) -> impl Iterator<Item = (OsString, OsString)> {
        let bare = self.bare;
        std::env::vars_os().filter(move |_| !bare)
    }

    fn read(&self) -> Result<Resolved, ConfigError> {
        Resolved::new(&self.flags, self.environment(), self.file().as_deref())
    }
}

/// Why the program ends otherwise than well.
enum Failure {
    Config(ConfigError),
    Model(ModelError),
    Socket(SocketError),
    Tcp(TcpError),
    /// Another program can't be the worker.
    Worker(String),
    /// What systemd handed over can't be used.
    Handed(String),
    /// Whoever is to give a worker its requests is not to be trusted.
    Stranger(String),
    /// There are too few file descriptors to be had.
    Descriptors(String),
    /// A device that the settings insist on is missing.
    Devices(String),
    /// The settings insist on the sandbox, and it can't be had.
    Sandbox(String),
    /// `weaved check` has found something, and has said what.
    Found,
    /// The same, where only `--strict` makes it count.
    Warned,
    /// The daemon that was asked is not ready, or not there.
    NotReady(String),
    Other(String),
}

impl Failure {
    /// 2 usage, 69 somebody else listens, 77 no permission, 78 settings, 1 anything else.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(error) if error.is_usage() => 2,
            Self::Config(_) | Self::Model(_) | Self::Socket(SocketError::NoPlace) => 78,
            Self::Tcp(TcpError::Listen(_, error) | TcpError::Twin(_, _, error)) => match error.kind() {
                std::io::ErrorKind::AddrInUse => 69,
                std::io::ErrorKind::PermissionDenied => 77,
                _ => 1,
            },
            Self::Tcp(TcpError::OpenToken(..)) => 77,
            Self::Tcp(_) => 78,
            Self::Worker(_)
            | Self::Handed(_)
            | Self::Descriptors(_)
            | Self::Devices(_)
            | Self::Sandbox(_)
            | Self::Found
            | Self::Warned => 78,
            Self::Stranger(_) => 77,
            Self::Socket(SocketError::Taken(_) | SocketError::Locked(_)) => 69,
            Self::Socket(SocketError::Folder(..) | SocketError::Way(..) | SocketError::Group(..)) => 77,
            Self::Socket(SocketError::Io(_, _, error))
                if error.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                77
            }
            Self::Socket(_) | Self::NotReady(_) | Self::Other(_) => 1,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Model(error) => error.fmt(f),
            Self::Socket(error) => error.fmt(f),
            Self::Tcp(error) => error.fmt(f),
            Self::Found => f.write_str("what is marked as wrong keeps the daemon from serving"),
            Self::Warned => {
                f.write_str("weaved would serve, but with --strict nothing may be marked as warn")
            }
            Self::Worker(error)
            | Self::Handed(error)
            | Self::Descriptors(error)
            | Self::Stranger(error)
            | Self::Devices(error)
            | Self::Sandbox(error)
            | Self::NotReady(error)
            | Self::Other(error) => f.write_str(error),
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Where nobody can be told, the exit code still says it.
            let _ = writeln!(std::io::stderr(), "weaved: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run() -> Result<(), Failure> {
    let Some((command, sources)) = read_command_line()? else { return Ok(()) };
    let settings = match sources.read() {
        Err(error) if matches!(command, Command::Check { .. }) && !error.is_usage() => {
            println!("{}", check::Finding::wrong("settings", &error));
            return Err(Failure::Found);
        }
        other => other.map_err(Failure::Config)?,
    };
    match command {
        Command::Check { strict } => return look(&settings.config, &sources, strict),
        Command::Show { format } => return show(&settings, format),
        Command::Status => return ask(&settings.config),
        Command::Devices { format, about } => return devices(&settings.config, format, about),
        Command::TrySandbox => return work::try_sandbox(&settings.config),
        Command::Serve | Command::Work { .. } => {}
    }
    let mut config = settings.config;
    let computes = matches!(command, Command::Work { .. }) || config.isolation == Isolation::Thread;
    if computes && config.engine == EngineKind::Sdcpp {
        set_openmp_up(&config);
    }
    match command {
        // The daemon that has started it reads its lines.
        Command::Work { connect: None } => logger::start_without_times(config.log),
        _ => logger::start(config.log),
    }
    logger::show_prompts(config.log_prompts);
    for name in unknown_variables(sources.environment().map(|(name, _)| name)) {
        log::warn!("{}", unknown_variable(&name));
    }
    let (model, profile) = if config.engine == EngineKind::Pattern {
        (format!("the {}", Profile::PATTERN), Profile::PATTERN)
    } else {
        find_model(&mut config)?
    };
    match command {
        Command::Work { connect } => {
            // The sandbox doesn't show the machine's cores.
            config.threads = Some(config.decided().threads);
            work::serve(&config, connect)
        }
        _ => serve(config, &model, profile, sources),
    }
}

const COMMANDS: [&str; 8] =
    ["serve", "worker", "check", "config", "status", "devices", "manual", "completions"];

/// Starts this program once more, as the same process, with OpenMP's threads set to sleep while they wait for
/// each other, unless somebody has said otherwise: spinning takes a hundred times as long on a machine that
/// has other work. And without what binds threads to processors, which the sandbox doesn't allow: OpenMP would give
/// up. It looks at its variables before `main`.
fn set_openmp_up(config: &Config) {
    const VARIABLE: &str = "OMP_WAIT_POLICY";
    const BINDING: [&str; 3] = ["GOMP_CPU_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND"];
    let is_sandboxed = config.isolation == Isolation::Process && config.decided().sandbox != Sandbox::Off;
    let is_bound = is_sandboxed && BINDING.iter().any(|name| std::env::var_os(name).is_some());
    let policy = std::env::var_os(VARIABLE);
    if cfg!(not(feature = "openmp")) || policy.is_some() && !is_bound {
        return;
    }
    let mut arguments = std::env::args_os();
    if let (Ok(program), Some(name)) = (std::env::current_exe(), arguments.next()) {
        let mut again = std::process::Command::new(program);
        again.arg0(name).args(arguments).env(VARIABLE, policy.unwrap_or_else(|| "PASSIVE".into()));
        if is_bound {
            for name in BINDING {
                again.env_remove(name);
            }
        }
        // Comes back only where it fails: then threads spin.
        let _ = again.exec();
    }
}

/// Words for standard output. Whoever has gone there wanted no more of them.
fn tell(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Other(format!("can't write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// What to say of a word that is no command.
fn unknown_command(word: &str) -> String {
    // What others call it, and what the other program does.
    const OTHERS: [(&str, &str); 14] = [
        ("start", "weaved serve"),
        ("run", "weaved serve"),
        ("help", "weaved --help"),
        ("version", "weaved --version"),
        ("settings", "weaved config"),
        ("health", "weaved status"),
        ("generate", "weave generate"),
        ("verify", "weave verify"),
        ("inspect", "weave inspect"),
        ("ping", "weave ping"),
        ("stats", "weave stats"),
        ("top", "weave top"),
        ("bench", "weave bench"),
        ("gateway", "weave gateway"),
    ];
    let meant = COMMANDS.iter().map(|name| (*name, format!("weaved {name}")));
    let meant: Vec<_> = meant.chain(OTHERS.map(|(name, meant)| (name, meant.to_owned()))).collect();
    let nearest = nearest(&word.to_lowercase(), meant.iter().map(|(name, _)| *name));
    match meant.iter().find(|(name, _)| Some(*name) == nearest) {
        Some((_, meant)) => format!("there is no command {word:?} here; did you mean `{meant}`?"),
        None => format!("there is no command {word:?}"),
    }
}

/// `weaved manual`: prints the page, or writes it into a folder.
fn give_page(folder: Option<PathBuf>) -> Result<(), Failure> {
    let Some(folder) = folder else { return tell(&manual::page()) };
    let file = folder.join("weaved.8");
    let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&file, manual::page()));
    written.map_err(|error| Failure::Other(format!("can't write {}: {error}", file.display())))?;
    tell(&format!("{}\n", file.display()))
}

/// A path that a flag names. Blanks around it are dropped, as around all values.
fn named_file(flag: &str, value: OsString) -> Result<PathBuf, Failure> {
    let value = trimmed(value);
    match value.as_os_str().is_empty() {
        true => Err(ConfigError::Usage(format!("--{flag} is empty, must be a path")).into()),
        false => Ok(value),
    }
}

fn trimmed(value: OsString) -> PathBuf {
    PathBuf::from(value.to_str().map(|text| text.trim().into()).unwrap_or(value))
}

/// `None`: the command line asked for words only, and has them.
fn read_command_line() -> Result<Option<(Command, Sources)>, Failure> {
    let usage = |error: lexopt::Error| Failure::from(ConfigError::Usage(error.to_string()));
    let mut parser = lexopt::Parser::from_env();
    let mut flags = Vec::new();
    let (mut command, mut operand, mut connect, mut file, mut bare) = (None, None, None, None, false);
    let (mut about, mut format, mut tries_sandbox, mut strict) = (About::All, Format::Text, false, false);
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => {
                return tell(&manual::help()).map(|()| None);
            }
            Arg::Short('V') | Arg::Long("version") => {
                return tell(concat!("weaved ", env!("CARGO_PKG_VERSION"), "\n")).map(|()| None);
            }
            Arg::Long("config") => file = Some(named_file("config", parser.value().map_err(usage)?)?),
            Arg::Long("no-config") => bare = true,
            Arg::Long("connect" | "socket-path") if command == Some("worker") => {
                connect = Some(named_file("connect", parser.value().map_err(usage)?)?);
            }
            Arg::Long("json") if matches!(command, Some("config" | "devices")) => format = Format::Json,
            Arg::Long("strict") if command == Some("check") => strict = true,
            // Of a worker too: it may be another program, and is asked in the words that start it.
            Arg::Long("names") if matches!(command, Some("devices" | "worker")) => about = About::Names,
            Arg::Long("try-sandbox") if command == Some("worker") => tries_sandbox = true,
            Arg::Long("memory-of") if command == Some("devices") => {
                let number = parser.value().map_err(usage)?.to_str().and_then(|text| text.parse().ok());
                let number =
                    number.ok_or_else(|| ConfigError::Usage("--memory-of takes a number".to_owned()))?;
                about = About::Memory(number);
            }
            Arg::Long(name) => {
                let name = name.to_owned();
                let Some(setting) = Setting::find_flag(&name) else {
                    return Err(ConfigError::Usage(unknown_flag(&name)).into());
                };
                let value = match parser.optional_value() {
                    Some(value) => value,
                    None if setting.is_switch() => "true".into(),
                    None => parser.value().map_err(usage)?,
                };
                let value = value
                    .into_string()
                    .map_err(|_| ConfigError::Usage(format!("the value of --{name} must be UTF-8")))?;
                flags.push((name, value));
            }
            Arg::Value(word) if command.is_none() => {
                command = COMMANDS.into_iter().find(|name| word == **name);
                if command.is_none() {
                    return Err(ConfigError::Usage(unknown_command(&word.to_string_lossy())).into());
                }
            }
            Arg::Value(word) if matches!(command, Some("manual" | "completions")) && operand.is_none() => {
                operand = Some(word);
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    let file = file.or_else(|| {
        std::env::var_os("WEAVE_CONFIG")
            .filter(|_| !bare)
            .map(trimmed)
            .filter(|path| !path.as_os_str().is_empty())
    });
    let command = match command {
        Some("manual") => return give_page(operand.map(PathBuf::from)).map(|()| None),
        Some("completions") => {
            let script = completions::script(operand.as_ref().and_then(|shell| shell.to_str()));
            return tell(&script.map_err(ConfigError::Usage)?).map(|()| None);
        }
        Some("worker") if tries_sandbox => Command::TrySandbox,
        Some("worker") if matches!(about, About::Names) => Command::Devices { format: Format::Text, about },
        Some("worker") => Command::Work { connect },
        Some("check") => Command::Check { strict },
        Some("config") => Command::Show { format },
        Some("status") => Command::Status,
        Some("devices") => Command::Devices { format, about },
        _ => Command::Serve,
    };
    Ok(Some((command, Sources { flags, file, bare })))
}

/// What to do for more than a toy.
const REAL_ONE: &str = "set model or diffusion_model for SD 3.5";

/// Checks the model files, or sets those of the demo model where none are set. Says which it is.
fn find_model(config: &mut Config) -> Result<(String, Profile), Failure> {
    if let Some(found) = config.model.check().map_err(Failure::Model)? {
        let profile = config.model.profile(Some(&found));
        return Ok((format!("{profile} ({found})"), profile));
    }
    if !config.worker_command.is_empty() {
        return Ok((format!("worker_command's {}; {REAL_ONE}", Profile::DEMO), Profile::DEMO));
    }
    #[cfg(feature = "sdcpp")]
    {
        use weave_daemon::demo;
        let unpack = || demo::unpack(&demo::cache_dir()?, &config.rules());
        let files = unpack().map_err(|error| Failure::Other(error.to_string()))?;
        config.model.diffusion_model = Some(files.diffusion_model);
        config.model.clip_l = Some(files.clip_l);
        config.model.taesd = Some(files.taesd);
    }
    Ok((format!("the built-in {}; {REAL_ONE}", Profile::DEMO), Profile::DEMO))
}

fn serve(mut config: Config, model: &str, profile: Profile, sources: Sources) -> Result<(), Failure> {
    process::make_room(&mut config).map_err(Failure::Descriptors)?;
    process::check_command(&config).map_err(|error| Failure::Worker(format!("worker_command: {error}")))?;
    if let Err(error) = process::keep_inherited_descriptors() {
        log::info!("workers inherit all descriptors that weaved was started with: {error}");
    }
    if config.decided().sandbox == Sandbox::On && config.isolation == Isolation::Thread {
        log::info!("the engine runs in a thread of weaved, so it is not sandboxed");
    }
    process::check_sandbox(&config).map_err(Failure::Sandbox)?;
    process::check_devices(&config).map_err(Failure::Devices)?;
    let handed = systemd::take_listeners().map_err(Failure::Handed)?;
    let (socket, listener, path) = match handed.clients {
        Some(listener) => {
            if let Some(path) = &config.socket {
                log::warn!("systemd passed a socket, so {} is not used", path.display());
            }
            (None, listener, None)
        }
        None => {
            let path = socket_path(&config).map_err(Failure::Socket)?;
            let (socket, listener) =
                Socket::bind(&path, &config.access, &config.rules()).map_err(Failure::Socket)?;
            (Some(socket), listener, Some(path))
        }
    };
    let tcp = tcp::listen(&config).map_err(Failure::Tcp)?;
    let admin = admin_listener(&config, handed.admin, path.as_deref())?;
    let origin = if path.is_some() { Origin::Bound } else { Origin::HandedOver };
    let place = place(&listener, origin);
    let io = |error: std::io::Error| Failure::Other(format!("can't serve: {error}"));
    // The demo model's files are no setting.
    let files = config.model.clone();
    let reread = move || {
        let mut new = sources.read()?.config;
        if new.model.is_empty() {
            new.model = files.clone();
        }
        Ok(new)
    };
    let mut server = Server::new(config, socket, listener, Box::new(reread)).map_err(io)?;
    if let Some((listener, socket)) = admin {
        let origin = if socket.is_some() { Origin::Bound } else { Origin::HandedOver };
        log::info!("metrics and health on {}", self::place(&listener, origin));
        server.show_on(listener, socket, profile).map_err(io)?;
    }
    if let Some(tcp) = tcp {
        let who = tcp::who(tcp.token.as_ref());
        let places: Vec<_> = tcp.listeners.iter().map(|(_, address)| format!("tcp://{address}")).collect();
        log::info!("listening on {} too, for {who}", places.join(" and "));
        server.listen_on(tcp).map_err(io)?;
    }
    log::info!("listening on {place}, with {model}");
    server.run().map_err(io)
}

/// Where a listener is from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// This process has made its socket.
    Bound,
    /// systemd has, and passed it on.
    HandedOver,
}

/// Where a listener is, in words.
fn place(listener: &UnixListener, origin: Origin) -> String {
    let address = listener.local_addr().ok();
    let path = address.as_ref().and_then(|address| address.as_pathname());
    let path = path.map_or("a socket".to_owned(), |path| path.display().to_string());
    match origin {
        Origin::Bound => path,
        Origin::HandedOver => path + " (passed by systemd)",
    }
}

/// What metrics and health are shown on. Where nobody has asked for it, it may be missing.
fn admin_listener(
    config: &Config,
    handed: Option<UnixListener>,
    clients: Option<&Path>,
) -> Result<Option<(UnixListener, Option<Socket>)>, Failure> {
    if let Some(listener) = handed {
        return Ok(Some((listener, None)));
    }
    let Some(path) = config.admin_socket.path(clients) else { return Ok(None) };
    match Socket::bind(&path, &config.access, &config.rules()) {
        Ok((socket, listener)) => Ok(Some((listener, Some(socket)))),
        Err(error) if config.admin_socket == AdminSocket::Beside => {
            log::warn!(
                "metrics and health are not available: {error}; set admin_socket to a path, or to off"
            );
            Ok(None)
        }
        Err(error) => Err(Failure::Socket(error)),
    }
}

/// Where clients connect.
fn socket_path(config: &Config) -> Result<PathBuf, SocketError> {
    config.socket.clone().map_or_else(default_path, Ok)
}

/// `weaved check`: a line for everything that serving takes.
fn look(config: &Config, sources: &Sources, strict: bool) -> Result<(), Failure> {
    let mut findings = vec![check::Finding::good(
        "settings",
        match sources.file() {
            Some(file) => format!("{}, flags and variables", file.display()),
            None => "no file; flags, variables and defaults".to_owned(),
        },
    )];
    for name in unknown_variables(sources.environment().map(|(name, _)| name)) {
        findings.push(check::Finding::warning("settings", unknown_variable(&name)));
    }
    findings.extend(check::all(config));
    tell(&findings.iter().map(|finding| format!("{finding}\n")).collect::<String>())?;
    if findings.iter().any(check::Finding::is_wrong) {
        Err(Failure::Found)
    } else if strict && findings.iter().any(check::Finding::is_warning) {
        Err(Failure::Warned)
    } else {
        Ok(())
    }
}

/// `weaved status`: what a health check wants to know.
fn ask(config: &Config) -> Result<(), Failure> {
    let off =
        || Failure::NotReady("admin_socket is off, so there is nobody to ask; set it to a path".to_owned());
    let clients = match &config.admin_socket {
        AdminSocket::Beside => {
            Some(config.socket.clone().map_or_else(usual_path, Ok).map_err(Failure::Socket)?)
        }
        _ => None,
    };
    let path = config.admin_socket.path(clients.as_deref()).ok_or_else(off)?;
    match admin::ask(&path, "/readyz") {
        Ok((200, words)) => tell(&format!("{words}\n")),
        Ok((_, words)) => Err(Failure::NotReady(words)),
        Err(unanswered) => {
            let mut what = unanswered.to_string();
            if config.socket.is_none() && config.admin_socket == AdminSocket::Beside {
                let places =
                    usual_paths().into_iter().filter_map(|path| config.admin_socket.path(Some(&path)));
                let places: Vec<_> = places.map(|path| path.display().to_string()).collect();
                what += &format!("; without that it is looked for at {}", places.join(", then at "));
            }
            Err(Failure::NotReady(what))
        }
    }
}

/// `weaved devices`: what the engine can compute on, and whether what the settings name is there.
#[cfg(feature = "sdcpp")]
fn devices(config: &Config, format: Format, about: About) -> Result<(), Failure> {
    use weave_daemon::engine::device;
    if let About::Memory(index) = about {
        let memory = device::memory(index).ok_or_else(|| Failure::NotReady("unknown".to_owned()))?;
        return tell(&format!("{} {}\n", memory.free, memory.total));
    }
    let all = device::all();
    // A GPU that is full ends the process that asks how much it has: that must not be this one.
    let memory_of = |index: usize| -> Option<weave_daemon::proc::Memory> {
        let mut child = std::process::Command::new(std::env::current_exe().ok()?);
        let child = child.args(["devices", "--no-config", &format!("--memory-of={index}")]);
        let output = child
            .env(process::NO_BACKTRACE.0, process::NO_BACKTRACE.1)
            .stderr(std::process::Stdio::null())
            .output()
            .ok()?;
        let words = String::from_utf8(output.stdout).ok()?;
        let (free, total) = words.trim().split_once(' ')?;
        Some(weave_daemon::proc::Memory { free: free.parse().ok()?, total: total.parse().ok()? })
    };
    let memory_of = |index| if matches!(about, About::All) { memory_of(index) } else { None };
    let described: Vec<_> =
        all.iter().enumerate().map(|(index, device)| (device, memory_of(index))).collect();
    let text = match format {
        Format::Text => device::to_text(&described),
        Format::Json => device::to_json(&described),
    };
    tell(&text)?;
    device::chosen(&all, &config.tuning).map(drop).map_err(Failure::NotReady)
}

#[cfg(not(feature = "sdcpp"))]
fn devices(_: &Config, format: Format, about: About) -> Result<(), Failure> {
    match about {
        About::All | About::Names if format == Format::Json => return tell("[]\n"),
        About::Memory(index) => return Err(Failure::NotReady(format!("there is no device {index}"))),
        _ => {}
    }
    Err(Failure::NotReady("this weaved was built without the sdcpp engine, so it has no devices".to_owned()))
}

/// `weaved config`: as a settings file, or as JSON.
fn show(settings: &Resolved, format: Format) -> Result<(), Failure> {
    let text = match format {
        Format::Text => settings.to_toml(),
        Format::Json => settings.to_json(),
    };
    print!("{text}");
    Ok(())
}
