//! `weave gateway`: its arguments, its routes, and how it serves connections.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware;
use axum::routing::{get, post};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use weave_cli_base::admin::Admin;
use weave_cli_base::arguments::seconds;
use weave_cli_base::console::tell;
use weave_cli_base::daemon::{Daemon, SOCKET_HELP, ServerUser};
use weave_cli_base::exit::{self, Exit, Failure};
use weave_client::weave_core::limits::{MAX_STEPS, MIN_STEPS};
use weave_client::{Error, ErrorKind, Params};

use crate::arguments::{self, Part};
use crate::connections::{Connections, Origin, PLACES};
use crate::http_error::HttpError;
use crate::links::Links;
use crate::listen::Listeners;
use crate::log::log;
use crate::models::Names;
use crate::pace::Paced;
use crate::provider::ProviderSettings;
use crate::secret::Secret;
use crate::shares::{Addresses, Shares};
use crate::state::{OwnDefaults, Shared};
use crate::statistics::{Kept, Statistics};
use crate::{guard, images, links, page, refusals, status};

/// Open files beside those of connections and requests.
const OTHER_FILES: u64 = 32;
/// For how long it is known that a daemon answers.
const AVAILABLE_FRESH: Duration = Duration::from_secs(2);
/// Longest time for a request's head, and for the next one on a connection.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Longest head of a request.
const HEAD_LEN: usize = 16 << 10;
/// Longest wait for answers under way when it is to end; the daemon's own.
const DRAIN_TIME: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "\
Examples:
  weave gateway                                      for programs on this machine
  weave gateway --listen 8081 --size 1024x1024       at another port, with a size of its own
  weave gateway --model-names dall-e-3,gpt-image-1   for programs that ask for these
  weave gateway --listen 0.0.0.0:8080 --token-file ~/.weave/gateway-token
";

/// Serve OpenAI's images API and a web page over HTTP, until stopped.
///
/// Clients use http://ADDRESS:PORT/v1 as the base URL. docs/gateway.md says what is supported.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::help(EXAMPLES))]
pub struct Gateway {
    /// Address to listen at, or a port of this machine; beyond it, it takes --token-file
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "WEAVE_GATEWAY_LISTEN",
        hide_env_values = true,
        value_parser = arguments::listen,
        default_value = "127.0.0.1:8080"
    )]
    listen: SocketAddr,

    /// File of mode 0600 with the token that clients have to send, as their API key
    #[arg(long, value_name = "FILE", env = "WEAVE_GATEWAY_TOKEN_FILE", hide_env_values = true)]
    token_file: Option<PathBuf>,

    /// Host names that clients may use for it, besides localhost and addresses, with commas between them
    #[arg(
        long,
        value_name = "LIST",
        env = "WEAVE_GATEWAY_ALLOW_HOST",
        hide_env_values = true,
        value_delimiter = ',',
        value_parser = Part(arguments::host)
    )]
    allow_host: Vec<String>,

    /// Origins of other sites' pages that may use it, such as http://localhost:3000
    #[arg(
        long,
        value_name = "LIST",
        env = "WEAVE_GATEWAY_ALLOW_ORIGIN",
        hide_env_values = true,
        value_delimiter = ',',
        value_parser = Part(arguments::origin)
    )]
    allow_origin: Vec<String>,

    /// Where clients reach it, for links to images, if that isn't what they call it: behind a proxy
    #[arg(
        long,
        value_name = "URL",
        env = "WEAVE_GATEWAY_PUBLIC_URL",
        hide_env_values = true,
        value_parser = arguments::public_url
    )]
    public_url: Option<String>,

    /// Names of models that clients ask for and the one here stands in for, such as dall-e-3,gpt-image-1; * for any
    #[arg(
        long,
        value_name = "LIST",
        env = "WEAVE_GATEWAY_MODEL_NAMES",
        hide_env_values = true,
        value_delimiter = ',',
        value_parser = Part(arguments::model_name)
    )]
    model_names: Vec<String>,

    /// Refuse hints without an effect here, such as "quality": "hd"; otherwise the answer names them
    #[arg(long)]
    strict: bool,

    /// Image size where the request has none, or auto [default: what suits the daemon's model]
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = arguments::size, conflicts_with_all = ["width", "height"])]
    size: Option<(u32, u32)>,

    /// The same in two parts
    #[arg(short = 'W', long, value_name = "N", value_parser = arguments::one_side, requires = "height")]
    width: Option<u32>,

    /// See --width
    #[arg(short = 'H', long, value_name = "N", value_parser = arguments::one_side, requires = "width")]
    height: Option<u32>,

    /// Denoising steps where the request has none: 1 to 100 [default: what suits the daemon's model]
    #[arg(long, value_name = "N", value_parser = arguments::whole::<MIN_STEPS, MAX_STEPS>)]
    steps: Option<u32>,

    /// Guidance scale where the request has none: 0 to 20 [default: what suits the daemon's model]
    #[arg(long, value_name = "X", visible_alias = "cfg", value_parser = arguments::cfg_scale)]
    cfg_scale: Option<f32>,

    /// Maximum of image requests at a time, half of it for one address of a network; more are answered with 429
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = arguments::whole::<1, 400>)]
    requests: u32,

    /// Time limit for an image
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "3600")]
    timeout: Duration,

    /// Longest time for which a client may take nothing of an answer
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    client_timeout: Duration,

    #[arg(long, value_name = "ADDRESS", help = SOCKET_HELP)]
    socket: Option<PathBuf>,

    /// File with the token that the daemon asks for over TCP [default: $WEAVE_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    daemon_token_file: Option<PathBuf>,

    /// Its administrative socket, for the page [default: $WEAVE_ADMIN_SOCKET, else NAME-admin.sock beside NAME.sock]
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<PathBuf>,

    #[command(flatten)]
    user: ServerUser,

    #[command(flatten)]
    providers: ProviderSettings,
}

/// Serves until it is told to end.
///
/// # Errors
/// It can't begin like this.
pub fn run(args: &Gateway) -> Result<(), Failure> {
    let token = args.token_file.as_deref().map(Secret::read).transpose()?;
    let is_here = args.listen.ip().to_canonical().is_loopback();
    if token.is_none() && !is_here {
        let what = format_args!("--listen is {}, which other machines may reach", args.listen);
        return Err(Failure::new(Exit::Usage, what)
            .next("listen at 127.0.0.1 or [::1], or make a token: (umask 077; openssl rand -hex 32 >FILE) and --token-file FILE"));
    }
    let size = args.size.or_else(|| args.width.zip(args.height));
    let own_defaults = OwnDefaults { size, steps: args.steps, cfg_scale: args.cfg_scale };
    own_defaults.or(Params::default()).check().map_err(|error| Failure::from(Error::Invalid(error)))?;
    let daemon = Daemon {
        socket: args.socket.clone(),
        token_file: args.daemon_token_file.clone(),
        user: args.user.clone(),
    };
    let shares = Shares::new(args.requests, if is_here { Addresses::DontMatter } else { Addresses::Share });
    let public = args.public_url.as_deref().and_then(|url| arguments::host(url).ok());
    let shared = Shared {
        providers: args.providers.providers(|| daemon.find(), Some(args.timeout))?,
        own_defaults,
        token,
        hosts: args.allow_host.iter().cloned().chain(public).collect(),
        origins: args.allow_origin.clone(),
        names: Names::new(&args.model_names),
        is_strict: args.strict,
        links: Links::new(Arc::clone(&shares), args.public_url.clone()),
        refusals: Arc::default(),
        shares,
        statistics: Statistics::new(
            args.providers
                .has_local()
                .then(|| {
                    let admin = Admin {
                        socket: args.socket.clone(),
                        admin_socket: args.admin_socket.clone(),
                        user: args.user.clone(),
                    };
                    // A daemon that is elsewhere makes images all the same.
                    admin.find().ok()
                })
                .flatten(),
        ),
        under_way: Arc::default(),
        available: Kept::new(AVAILABLE_FRESH),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // One for each request, and some for figures.
        .max_blocking_threads(args.requests as usize + 8)
        .build()
        .map_err(|error| local("can't start", &error))?;
    let served = runtime.block_on(serve(args, Arc::new(shared)));
    // What is still at work has nobody left who waits for it.
    runtime.shutdown_background();
    served
}

fn local(what: &str, error: &io::Error) -> Failure {
    Failure::new(Exit::Local, format_args!("{what}: {error}"))
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/images/generations", post(images::generate))
        .route(&format!("{}{{name}}", links::PATH), get(images::file))
        .route("/v1/models", get(images::models))
        .route("/v1/models/{name}", get(images::model))
        .route("/status", get(status::show))
        .route("/healthz", get(async || "ok\n"))
        .merge(page::router())
        .fallback(async |method: Method, uri: Uri| {
            HttpError::new(404, "not_found", not_here(&method, uri.path()))
        })
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            HttpError::new(405, "method_not_allowed", format!("{} takes no {method}", uri.path()))
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), guard::guard))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared.refusals), refusals::tell))
        .with_state(shared)
}

/// What is said of a path that there isn't, and which one is meant, if that can be told.
fn not_here(method: &Method, path: &str) -> String {
    let shown = path.chars().take(200).collect::<String>();
    let what = format!("there is no {method} {shown} here");
    let plain = format!("/{}", path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/"));
    let is_ours =
        |path: &str| path == "/images/generations" || path == "/models" || path.starts_with("/models/");
    match plain.strip_prefix("/v1") {
        None if is_ours(&plain) => format!("{what}; the base URL ends in /v1"),
        Some(rest) if plain != path && is_ours(rest) => format!("{what}; it is {plain}"),
        Some(rest) if rest.strip_prefix("/v1").is_some_and(is_ours) => {
            format!("{what}; the base URL has /v1 once")
        }
        Some("/images/edits" | "/images/variations") => {
            format!("{what}; images are made from a prompt alone: POST /v1/images/generations")
        }
        _ if plain.ends_with("/images/generations") => format!("{what}; it is POST /v1/images/generations"),
        _ => format!("{what}; images are at POST /v1/images/generations"),
    }
}

async fn serve(args: &Gateway, shared: Arc<Shared>) -> Result<(), Failure> {
    let mut ends = Ends::new().map_err(|error| local("can't watch for signals", &error))?;
    let listeners = Listeners::bind(args.listen).await?;
    let addresses = listeners.describe().map_err(|error| local("can't listen", &error))?;
    let who =
        if shared.token.is_some() { "clients that send the token" } else { "all users of this machine" };
    tell(format_args!("listening at {addresses} for {who}"))?;
    let first = listeners.url().map_err(|error| local("can't listen", &error))?;
    tell(format_args!("the page is at {first}/, the base URL for OpenAI's clients is {first}/v1"))?;
    tokio::spawn(say_who_draws(Arc::clone(&shared), args.providers.has_local()));
    tokio::spawn(look_after(Arc::clone(&shared)));

    let of_connections = Arc::clone(&shared);
    let service = TowerToHyperService::new(router(shared));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
    http.max_header_size(HEAD_LEN).max_buf_size(2 * HEAD_LEN);
    let connections = Connections::new(places(args.requests));
    let under_way = GracefulShutdown::new();
    loop {
        let (stream, origin) = tokio::select! {
            next = accept(&listeners, &connections, args.client_timeout) => next,
            () = ends.next() => break,
        };
        let connection = connections.enter(origin);
        let (service, of_request) = (service.clone(), Arc::clone(&connection));
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(Arc::clone(&of_request));
            service.call(request)
        });
        let stream = TokioIo::new(Paced::new(stream, args.client_timeout, reset));
        let served = under_way.watch(http.serve_connection(stream, service));
        let refusals = Arc::clone(&of_connections);
        tokio::spawn(async move {
            tokio::select! {
                // A client that broke it off, or was cut off, needs no answer.
                served = served => if let Err(error) = served && error.is_parse() {
                    log_no_http(&refusals, origin, &error);
                },
                () = connection.must_close() => {}
            }
        });
        // Whoever has sent a request already is heard before the next one is let in, and maybe takes the place.
        tokio::task::yield_now().await;
    }
    drop(listeners);
    log(format_args!("ending: answers under way are finished first"));
    tokio::select! {
        () = under_way.shutdown() => {}
        () = tokio::time::sleep(DRAIN_TIME) => log(format_args!("ending with answers unfinished")),
        () = ends.next() => {}
    }
    Ok(())
}

/// What the library has answered by itself.
fn log_no_http(shared: &Shared, origin: Origin, error: &hyper::Error) {
    let line = match error.is_parse_too_large() {
        true => format!("431: the head has more than {HEAD_LEN} bytes, or too many lines"),
        false => "400: this is no HTTP/1.1 (https:// in place of http://?)".to_owned(),
    };
    shared.refusals.log(origin, format_args!("refused: {line}, from {origin}"));
}

/// What draws, or that nobody does.
async fn say_who_draws(shared: Arc<Shared>, has_local: bool) {
    if !has_local {
        return;
    }
    match shared.model().await {
        Some(model) if model.toy => {
            let draws = model.draws.map(|draws| format!("; it draws {draws}")).unwrap_or_default();
            log(format_args!(
                "images are drawn by the {}, which is no real model but one to try the programs with{draws}",
                model.name
            ));
        }
        Some(model) => log(format_args!("images are drawn by {}", model.name)),
        None => {
            let asked = tokio::task::spawn_blocking(move || shared.providers.ask_daemon()).await;
            if let Ok(Some(Err(error))) = asked
                && error.kind() == ErrorKind::Unreachable
            {
                log(format_args!("{error}; until then requests are answered with 503"));
            }
        }
    }
}

/// Once a minute.
async fn look_after(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(refusals::MINUTE).await;
        shared.links.sweep();
        shared.refusals.next_minute();
    }
}

/// The next connection, and where it comes from.
async fn accept(listeners: &Listeners, connections: &Connections, patience: Duration) -> (TcpStream, Origin) {
    loop {
        match listeners.accept().await {
            Ok((stream, from)) => {
                // Answers are written whole.
                let _ = stream.set_nodelay(true);
                // For who has vanished.
                #[cfg(target_os = "linux")]
                let _ = rustix::net::sockopt::set_tcp_user_timeout(
                    &stream,
                    u32::try_from(patience.as_millis()).unwrap_or(u32::MAX),
                );
                return (stream, from.ip().into());
            }
            Err(error) => {
                log(format_args!("can't accept connections: {error}"));
                // Out of file descriptors, most likely.
                connections.make_room();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Has the kernel forget what a client hasn't taken, as soon as its connection is closed.
fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

/// How many connections there may be of strangers, and of clients: each takes an open file, and so does each request.
fn places(requests: u32) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = 2 * PLACES as u64 + u64::from(requests) + OTHER_FILES;
    let maximum = limit.maximum.unwrap_or(wanted);
    let mut files = limit.current.unwrap_or(wanted);
    if files < wanted {
        let more = Rlimit { current: Some(wanted.min(maximum)), maximum: limit.maximum };
        if setrlimit(Resource::Nofile, more).is_ok() {
            files = wanted.min(maximum);
        }
    }
    let left = files.saturating_sub(u64::from(requests) + OTHER_FILES) / 2;
    usize::try_from(left).unwrap_or(PLACES).clamp(8, PLACES)
}

/// Ctrl-C and SIGTERM.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
}

impl Ends {
    fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
