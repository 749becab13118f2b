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
use weave_cli_base::arguments::{DEFAULTS, seconds};
use weave_cli_base::console::tell;
use weave_cli_base::daemon::{Daemon, SOCKET_HELP, ServerUser};
use weave_cli_base::exit::{self, Exit, Failure};
use weave_client::{Error, RequestError};

use crate::connections::{Connections, Origin, PLACES};
use crate::http_error::HttpError;
use crate::listen::Listeners;
use crate::log::log;
use crate::pace::Paced;
use crate::provider::ProviderSettings;
use crate::secret::Secret;
use crate::shares::{Addresses, Shares};
use crate::state::{OwnDefaults, Shared};
use crate::statistics::{Kept, Statistics};
use crate::{guard, images, page, status};

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
  weave gateway                                    for programs on this machine
  weave gateway --size 128x128 --steps 8 --cfg 1   with what the built-in model needs
  weave gateway --listen 0.0.0.0:8080 --token-file ~/.weave/gateway-token
";

/// Serve OpenAI's images API and a web page over HTTP, until stopped.
///
/// Clients use http://ADDRESS:PORT/v1 as the base URL. docs/gateway.md says what is supported.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::help(EXAMPLES))]
pub struct Gateway {
    /// Address to listen at; beyond this machine it takes --token-file
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "WEAVE_GATEWAY_LISTEN",
        hide_env_values = true,
        default_value = "127.0.0.1:8080"
    )]
    listen: SocketAddr,

    /// File of mode 0600 with the token that clients have to send, as their API key
    #[arg(long, value_name = "FILE", env = "WEAVE_GATEWAY_TOKEN_FILE", hide_env_values = true)]
    token_file: Option<PathBuf>,

    /// Host names that clients may use for it, besides localhost and addresses
    #[arg(
        long,
        value_name = "LIST",
        env = "WEAVE_GATEWAY_ALLOW_HOST",
        hide_env_values = true,
        value_delimiter = ','
    )]
    allow_host: Vec<String>,

    /// Image size where the request has none, or auto [default: what suits the daemon's model]
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = size)]
    size: Option<(u32, u32)>,

    /// Denoising steps where the request has none: 1 to 100 [default: what suits the daemon's model]
    #[arg(long, value_name = "N")]
    steps: Option<u32>,

    /// Guidance scale where the request has none: 0 to 20 [default: what suits the daemon's model]
    #[arg(long, value_name = "X", visible_alias = "cfg")]
    cfg_scale: Option<f32>,

    /// Maximum of image requests at a time, half of it for one address of a network; more are answered with 429
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=400))]
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

/// Width and height as OpenAI writes them.
fn size(text: &str) -> Result<(u32, u32), String> {
    images::size(text).ok_or_else(|| "must be WIDTHxHEIGHT".to_owned())
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
    let own_defaults = OwnDefaults { size: args.size, steps: args.steps, cfg_scale: args.cfg_scale };
    own_defaults.or(DEFAULTS).check().map_err(|error| match error {
        RequestError::Width(_) | RequestError::Height(_) => {
            Failure::new(Exit::Usage, error).next("change it with --size WxH")
        }
        error => Failure::from(Error::Invalid(error)),
    })?;
    let daemon = Daemon {
        socket: args.socket.clone(),
        token_file: args.daemon_token_file.clone(),
        user: args.user.clone(),
    };
    let shared = Shared {
        providers: args.providers.providers(|| daemon.find(), Some(args.timeout))?,
        own_defaults,
        token,
        hosts: args.allow_host.iter().map(|host| host.to_ascii_lowercase()).collect(),
        shares: Shares::new(args.requests, if is_here { Addresses::DontMatter } else { Addresses::Share }),
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
        .route("/v1/models", get(images::models))
        .route("/v1/models/{id}", get(images::model))
        .route("/status", get(status::show))
        .route("/healthz", get(async || "ok\n"))
        .merge(page::router())
        .fallback(async |method: Method, uri: Uri| {
            HttpError::new(404, "not_found", format!("there is no {method} {} here", uri.path()))
        })
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            HttpError::new(405, "method_not_allowed", format!("{} takes no {method}", uri.path()))
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), guard::guard))
        .with_state(shared)
}

async fn serve(args: &Gateway, shared: Arc<Shared>) -> Result<(), Failure> {
    let mut ends = Ends::new().map_err(|error| local("can't watch for signals", &error))?;
    let listeners = Listeners::bind(args.listen).await?;
    let addresses = listeners.describe().map_err(|error| local("can't listen", &error))?;
    let who =
        if shared.token.is_some() { "clients that send the token" } else { "all users of this machine" };
    tell(format_args!("listening at {addresses} for {who}"))?;

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
        tokio::spawn(async move {
            tokio::select! {
                // A client that broke it off, or was cut off, needs no answer.
                _ = served => {}
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
