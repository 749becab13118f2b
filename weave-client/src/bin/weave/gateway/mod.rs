//! `weave gateway`: OpenAI's images API in front of the daemon, and a page for people.
//!
//! A process of its own: HTTP, and whoever speaks it, stay out of the daemon. It reads nothing from a
//! client without a limit on size and time, and makes nothing without knowing who asks: no browser that
//! another site has sent, and beyond this machine nobody without the token.

mod format;
mod guard;
mod images;
mod page;
mod refusal;
mod status;

use std::io::{self, Write};
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
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use weave_client::{Error, Params};

use self::refusal::Refusal;
use crate::admin;
use crate::args::{self, DEFAULTS, seconds};
use crate::exit::{self, Exit, Failure, tell};
use crate::provider::{Providers, Settings};
use crate::secret::Secret;

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

/// Serves OpenAI's images API over HTTP, and a page for people, until it is told to end.
///
/// Programs give http://ADDRESS:PORT/v1 as the base URL. docs/gateway.md has what is taken and what is
/// refused.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::help(EXAMPLES))]
pub(crate) struct Gateway {
    /// Where to listen; beyond this machine it takes --token-file
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "WEAVE_GATEWAY_LISTEN",
        hide_env_values = true,
        default_value = "127.0.0.1:8080"
    )]
    listen: SocketAddr,

    /// A file of mode 0600 with the token that clients have to show, as OpenAI's take an API key
    #[arg(long, value_name = "FILE", env = "WEAVE_GATEWAY_TOKEN_FILE", hide_env_values = true)]
    token_file: Option<PathBuf>,

    /// Names that clients may call it by, besides localhost and addresses
    #[arg(
        long,
        value_name = "LIST",
        env = "WEAVE_GATEWAY_ALLOW_HOST",
        hide_env_values = true,
        value_delimiter = ','
    )]
    allow_host: Vec<String>,

    /// Size of images for which none is asked, or auto
    #[arg(long, value_name = "WxH", default_value = "512x512", value_parser = size)]
    size: (u32, u32),

    /// Denoising steps where none are asked for: 1 to 100
    #[arg(long, value_name = "N", default_value_t = DEFAULTS.steps)]
    steps: u32,

    /// How strictly images follow the prompt where that isn't asked for: 0 to 20
    #[arg(long, value_name = "X", default_value_t = DEFAULTS.cfg_scale)]
    cfg: f32,

    /// Requests for images at once; more are answered with 429
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=400))]
    requests: u32,

    /// Longest time for an image
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "3600")]
    timeout: Duration,

    #[arg(long, value_name = "ADDRESS", help = args::SOCKET_HELP)]
    socket: Option<PathBuf>,

    /// The file with the token that a daemon wants to see over TCP [default: $WEAVE_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    daemon_token_file: Option<PathBuf>,

    /// Its administrative socket, for the page [default: $WEAVE_ADMIN_SOCKET, else NAME-admin.sock beside NAME.sock]
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<PathBuf>,

    #[command(flatten)]
    providers: Settings,
}

/// Width and height as OpenAI writes them.
fn size(text: &str) -> Result<(u32, u32), String> {
    images::size(text).ok_or_else(|| "must be WIDTHxHEIGHT".to_owned())
}

/// What all requests share.
struct Shared {
    providers: Providers,
    /// For what a request leaves open. The seed is 0.
    defaults: Params,
    token: Option<Secret>,
    /// Names in lower case.
    hosts: Vec<String>,
    /// For requests that images are made for.
    places: Arc<Semaphore>,
    status: status::Source,
}

pub(crate) fn run(args: &Gateway) -> Result<(), Failure> {
    let token = args.token_file.as_deref().map(Secret::read).transpose()?;
    if token.is_none() && !args.listen.ip().to_canonical().is_loopback() {
        let what = format_args!("--listen is {}, which other machines may reach", args.listen);
        return Err(Failure::new(Exit::Usage, what)
            .next("listen at 127.0.0.1 or [::1], or make a token: (umask 077; openssl rand -hex 32 >FILE) and --token-file FILE"));
    }
    let (width, height) = args.size;
    let defaults = Params { width, height, steps: args.steps, cfg_scale: args.cfg, seed: 0 };
    defaults.check().map_err(Error::Invalid)?;
    let daemon = args::Daemon { socket: args.socket.clone(), token_file: args.daemon_token_file.clone() };
    let shared = Shared {
        providers: args.providers.providers(|| exit::daemon(&daemon), Some(args.timeout))?,
        defaults,
        token,
        hosts: args.allow_host.iter().map(|host| host.to_ascii_lowercase()).collect(),
        places: Arc::new(Semaphore::new(args.requests as usize)),
        status: status::Source::new(
            args.providers
                .has_local()
                .then(|| {
                    let admin =
                        args::Admin { socket: args.socket.clone(), admin_socket: args.admin_socket.clone() };
                    // A daemon that is elsewhere makes images all the same.
                    admin::socket(&admin).ok()
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
            Refusal::new(404, "not_found", format!("there is no {method} {} here", uri.path()))
        })
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            Refusal::new(405, "method_not_allowed", format!("{} takes no {method}", uri.path()))
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
    let who = if shared.token.is_some() { "who shows the token" } else { "every user of this machine" };
    tell(format_args!("listening at http://{address} for {who}"))?;

    let service = TowerToHyperService::new(router(shared));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_header_size(HEAD_LEN);
    let connections = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let (stream, place) = tokio::select! {
            next = accept(&listener, &places) => next,
            () = ends.next() => break,
        };
        let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service.clone()));
        tokio::spawn(async move {
            // A client that broke it off, or was cut off, needs no answer.
            let _ = connection.await;
            drop(place);
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

/// The next connection, when there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, Option<tokio::sync::OwnedSemaphorePermit>) {
    // It fails only when it is closed, which nobody does.
    let place = Arc::clone(places).acquire_owned().await.ok();
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
                return (stream, place);
            }
            Err(error) => {
                log(format_args!("can't accept connections: {error}"));
                // Out of file descriptors, most likely: others have to close some.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// A line on standard error, if that takes one at once: whoever reads it no more must not stop the gateway.
fn log(line: std::fmt::Arguments<'_>) {
    let line = format!("weave: {line}\n");
    let stderr = io::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut ready, Some(&Timespec::default())).is_ok_and(|ready| ready > 0) {
        // A pipe that is ready has room for 4096 bytes, and lines are shorter. Otherwise there is nobody to tell.
        let _ = stderr.lock().write_all(line.as_bytes());
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
