//! The `weaved` program: reads the command line, then serves or works.

use std::fmt;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use lexopt::Arg;
use rustix::process::{Signal, set_parent_process_death_signal};
use weave_daemon::config::{
    Config, ConfigError, EngineKind, Isolation, SETTINGS, default_file, unknown_variables,
};
use weave_daemon::model::ModelError;
use weave_daemon::server::Server;
use weave_daemon::socket::{Socket, SocketError, default_path};
use weave_daemon::tcp::{self, TcpError};
use weave_daemon::{logger, process, sandbox, worker};

/// What the command line asks for.
enum Command {
    /// Listen and route.
    Serve,
    /// Be a worker, on the socket that is standard input or on one to connect to.
    Work { connect: Option<PathBuf> },
}

/// Why the program ends otherwise than well.
enum Failure {
    Config(ConfigError),
    Model(ModelError),
    Socket(SocketError),
    Tcp(TcpError),
    Other(String),
}

impl Failure {
    /// 2 usage, 69 somebody else listens, 77 no permission, 78 settings, 1 anything else.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(error) if error.is_usage() => 2,
            Self::Config(_) | Self::Model(_) | Self::Socket(SocketError::NoPlace) => 78,
            Self::Tcp(TcpError::Listen(_, error)) => match error.kind() {
                std::io::ErrorKind::AddrInUse => 69,
                std::io::ErrorKind::PermissionDenied => 77,
                _ => 1,
            },
            Self::Tcp(TcpError::OpenToken(..)) => 77,
            Self::Tcp(_) => 78,
            Self::Socket(SocketError::Taken(_)) => 69,
            Self::Socket(SocketError::Folder(..) | SocketError::Group(..)) => 77,
            Self::Socket(SocketError::Io(_, _, error))
                if error.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                77
            }
            Self::Socket(_) | Self::Other(_) => 1,
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
            Self::Other(error) => f.write_str(error),
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
    let Some((command, mut config)) = read_command_line()? else { return Ok(()) };
    let model = if config.engine == EngineKind::Pattern { "test pictures" } else { find_model(&mut config)? };
    match command {
        Command::Serve => serve(config, model),
        Command::Work { connect } => work(&config, connect),
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

/// `None`: the command line asked for words only, and has them.
fn read_command_line() -> Result<Option<(Command, Config)>, Failure> {
    let usage = |error: lexopt::Error| Failure::from(ConfigError::Usage(error.to_string()));
    let mut parser = lexopt::Parser::from_env();
    let mut flags = Vec::new();
    let (mut command, mut connect, mut file, mut bare) = (None, None, None, false);
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => {
                return tell(&help()).map(|()| None);
            }
            Arg::Short('V') | Arg::Long("version") => {
                return tell(concat!("weaved ", env!("CARGO_PKG_VERSION"), "\n")).map(|()| None);
            }
            Arg::Long("config") => file = Some(PathBuf::from(parser.value().map_err(usage)?)),
            Arg::Long("no-config") => bare = true,
            Arg::Long("connect" | "socket-path") if command == Some("worker") => {
                connect = Some(PathBuf::from(parser.value().map_err(usage)?));
            }
            Arg::Long(name) => {
                let name = name.to_owned();
                let Some(setting) = SETTINGS.iter().find(|setting| setting.flag() == name) else {
                    return Err(ConfigError::Usage(format!("there is no flag --{name} here")).into());
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
            Arg::Value(word) if command.is_none() && word == "serve" => command = Some("serve"),
            Arg::Value(word) if command.is_none() && word == "worker" => command = Some("worker"),
            other => return Err(usage(other.unexpected())),
        }
    }
    let file = file
        .or_else(|| std::env::var_os("WEAVE_CONFIG").filter(|v| !v.is_empty() && !bare).map(PathBuf::from))
        .or_else(|| if bare { None } else { default_file() });
    let environment = || std::env::vars_os().filter(|_| !bare);
    let config = Config::resolve(&flags, environment(), file.as_deref())?;
    logger::start(config.log);
    for name in unknown_variables(environment().map(|(name, _)| name)) {
        log::warn!("{name} is no setting of weaved; `weaved --help` lists them");
    }
    let command = if command == Some("worker") { Command::Work { connect } } else { Command::Serve };
    Ok(Some((command, config)))
}

/// Checks the model files, or sets those of the demo model where none are set. Says which it is.
fn find_model(config: &mut Config) -> Result<&'static str, Failure> {
    config.model.check().map_err(Failure::Model)?;
    if !config.model.is_empty() {
        return Ok("the model that is set");
    }
    #[cfg(feature = "sdcpp")]
    {
        use weave_daemon::demo;
        let unpack = || demo::unpack(&demo::cache_dir()?);
        let files = unpack().map_err(|error| Failure::Other(error.to_string()))?;
        config.model.diffusion_model = Some(files.diffusion_model);
        config.model.clip_l = Some(files.clip_l);
        config.model.taesd = Some(files.taesd);
    }
    Ok("the built-in demo model (coloured shapes only; set model or diffusion_model for SD 3.5)")
}

fn serve(config: Config, model: &str) -> Result<(), Failure> {
    if let Err(error) = process::keep_inherited_descriptors() {
        log::info!("workers get all descriptors that weaved was started with: {error}");
    }
    let path = match &config.socket {
        Some(path) => path.clone(),
        None => default_path().map_err(Failure::Socket)?,
    };
    if config.sandbox && config.isolation == Isolation::Thread {
        log::info!("the engine runs on a thread of weaved, so it is in no sandbox");
    }
    let (socket, listener) = Socket::bind(&path, &config.access).map_err(Failure::Socket)?;
    let tcp = tcp::listen(&config).map_err(Failure::Tcp)?;
    let io = |error: std::io::Error| Failure::Other(format!("can't serve: {error}"));
    let mut server = Server::new(config, socket, listener).map_err(io)?;
    if let Some(tcp) = tcp {
        let who = if tcp.token.is_some() { "who shows the token" } else { "every user of this machine" };
        log::info!("listening on tcp://{} as well, for {who}", tcp.address);
        server.listen_on(tcp).map_err(io)?;
    }
    log::info!("listening on {}, with {model}", path.display());
    server.run().map_err(io)
}

fn work(config: &Config, connect: Option<PathBuf>) -> Result<(), Failure> {
    let stream = match &connect {
        Some(path) => UnixStream::connect(path)
            .map_err(|error| Failure::Other(format!("can't connect to {}: {error}", path.display())))?,
        None => {
            // Without this a worker whose daemon was killed would finish its image first.
            if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
                log::warn!("this worker may outlive its daemon for the time of an image: {error}");
            }
            inherited_socket()?
        }
    };
    if config.sandbox {
        let files: Vec<_> = config.model.parts().into_iter().filter_map(|(_, path)| path).collect();
        match sandbox::enter(&files).join(", ") {
            kept if kept.is_empty() => log::debug!("in the sandbox: no network, no files but the engine's"),
            kept => log::warn!(
                "the worker keeps what it doesn't need: {kept}; --sandbox off if that is all right"
            ),
        }
    }
    if connect.is_some() {
        // Whoever started this process holds the other end of standard input: if that ends, so do
        // we, whatever the engine is doing.
        thread::spawn(|| {
            let mut input = std::io::stdin().lock();
            while matches!(input.read(&mut [0; 256]), Ok(1..)) {}
            std::process::exit(0);
        });
    }
    worker::run(config, stream).map_err(Failure::Other)
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

fn help() -> String {
    let mut text = String::from(
        "weaved: image generation behind a Unix socket\n\n\
         Usage: weaved [serve] [SETTINGS]\n       \
         weaved worker --connect PATH [SETTINGS]   serve requests on a socket that somebody else listens\n       \
         on, until it is closed or standard input ends (--socket-path is the same)\n\n\
         Settings come from flags, then WEAVE_… variables, then a TOML file, then defaults [in brackets]:\n\n",
    );
    for setting in SETTINGS {
        let flag = format!("--{} {}", setting.flag(), setting.value);
        let _ = writeln!(text, "  {flag:<30} {}", setting.help);
    }
    text.push_str(
        "\n  --config FILE                  TOML file, with names like diffusion_model \
         [$XDG_CONFIG_HOME/weave/weaved.toml, /etc/weave/weaved.toml]\n  \
         --no-config                    read neither a file nor the environment\n  \
         -h, --help                     this text\n  \
         -V, --version                  the version\n\n\
         Exit codes: 0 stopped by SIGTERM or SIGINT, 1 failure, 2 usage, 69 another daemon has the socket,\n\
         77 no permission, 78 settings or model files.\n\n\
         Example: weaved --diffusion-model sd3.5_medium.safetensors --vae sd3_vae.safetensors \\\n                \
         --clip-l clip_l.safetensors --clip-g clip_g.safetensors --t5xxl t5xxl_fp16.safetensors\n",
    );
    text
}
