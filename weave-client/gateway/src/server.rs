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
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use weave_cli_base::admin::Admin;
use weave_cli_base::arguments::{DEFAULTS, seconds};
use weave_cli_base::console::tell;
use weave_cli_base::daemon::{Daemon, SOCKET_HELP, ServerUser};
use weave_cli_base::exit::{self, Exit, Failure};
use weave_client::{Error, Params, RequestError};

use crate::http_error::HttpError;
use crate::log::log;
use crate::provider::ProviderSettings;
use crate::secret::Secret;
use crate::state::Shared;
use crate::statistics::Statistics;
use crate::{guard, images, page, status};

/// Connections at once. More wait in the kernel.
const CONNECTIONS: usize = 256;
/// Longest time for a request's head, and for the next one on a connection.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Longest head of a request.
const HEAD_LEN: usize = 16 << 10;
/// Longest time for which a client may take nothing of an answer.
#[cfg(target_os = "linux")]
const STALL_TIME: Duration = Duration::from_secs(60);
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

    /// Image size where the request has none, or auto
    #[arg(long, value_name = "WxH", default_value = "512x512", value_parser = size)]
    size: (u32, u32),

    /// Denoising steps where the request has none: 1 to 100
    #[arg(long, value_name = "N", default_value_t = DEFAULTS.steps)]
    steps: u32,

    /// Guidance scale where the request has none: 0 to 20
    #[arg(long, value_name = "X", default_value_t = DEFAULTS.cfg_scale)]
    cfg: f32,

    /// Maximum of image requests at a time; more are answered with 429
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=400))]
    requests: u32,

    /// Time limit for an image
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "3600")]
    timeout: Duration,

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
    if token.is_none() && !args.listen.ip().to_canonical().is_loopback() {
        let what = format_args!("--listen is {}, which other machines may reach", args.listen);
        return Err(Failure::new(Exit::Usage, what)
            .next("listen at 127.0.0.1 or [::1], or make a token: (umask 077; openssl rand -hex 32 >FILE) and --token-file FILE"));
    }
    let (width, height) = args.size;
    let defaults = Params { width, height, steps: args.steps, cfg_scale: args.cfg, seed: 0 };
    defaults.check().map_err(|error| match error {
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
        defaults,
        token,
        hosts: args.allow_host.iter().map(|host| host.to_ascii_lowercase()).collect(),
        slots: Arc::new(Semaphore::new(args.requests as usize)),
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
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // One for each request, and some for figures.
        .max_blocking_threads(args.requests as usize + 8)
        .build()
        .map_err(|error| local("can't start", &error))?;
    let served = runtime.block_on(serve(args.listen, Arc::new(shared)));
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

async fn serve(listen: SocketAddr, shared: Arc<Shared>) -> Result<(), Failure> {
    let mut ends = Ends::new().map_err(|error| local("can't watch for signals", &error))?;
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        local(&format!("can't listen at {listen}"), &error).next("choose another with --listen ADDRESS:PORT")
    })?;
    let address = listener.local_addr().map_err(|error| local("can't listen", &error))?;
    let who =
        if shared.token.is_some() { "clients that send the token" } else { "all users of this machine" };
    tell(format_args!("listening at http://{address} for {who}"))?;

    let service = TowerToHyperService::new(router(shared));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_header_size(HEAD_LEN);
    let connections = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let (stream, slot) = tokio::select! {
            next = accept(&listener, &slots) => next,
            () = ends.next() => break,
        };
        let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service.clone()));
        tokio::spawn(async move {
            // A client that broke it off, or was cut off, needs no answer.
            let _ = connection.await;
            drop(slot);
        });
    }
    drop(listener);
    log(format_args!("ending: answers under way are finished first"));
    tokio::select! {
        () = connections.shutdown() => {}
        () = tokio::time::sleep(DRAIN_TIME) => log(format_args!("ending with answers unfinished")),
        () = ends.next() => {}
    }
    Ok(())
}

/// The next connection, when there is a slot for it.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> (TcpStream, Option<tokio::sync::OwnedSemaphorePermit>) {
    // It fails only when it is closed, which nobody does.
    let slot = Arc::clone(slots).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are written whole; and who takes nothing of one is cut off by the kernel.
                let _ = stream.set_nodelay(true);
                #[cfg(target_os = "linux")]
                let _ = rustix::net::sockopt::set_tcp_user_timeout(
                    &stream,
                    u32::try_from(STALL_TIME.as_millis()).unwrap_or(u32::MAX),
                );
                return (stream, slot);
            }
            Err(error) => {
                log(format_args!("can't accept connections: {error}"));
                // Out of file descriptors, most likely: others have to close some.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
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
