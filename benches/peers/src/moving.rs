//! An image of 1024×1024 from a process that has it to one that wants it.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::Instant;

use axum::routing::post;
use axum::{Json, Router};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use prost::bytes::Bytes;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, Context, Poll, Service, http};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::format::{
    JsonResponse, PbRequest, PbResponse, SIDE, SerdeRequest, json_response, pb_request, pb_response,
    read_json_response, serde_request,
};
use crate::measure::{percentile, processor_time, say};
use crate::peer::{Client, Daemon, Process, beside, this};

const ROUNDS: usize = 15;
/// Images of a round.
const IMAGES: usize = 40;
/// Images under way at once, when it is for throughput: each on a connection of its own.
const AT_ONCE: usize = 4;

static PIXELS: LazyLock<Bytes> =
    LazyLock::new(|| vec![0x80; usize::try_from(SIDE * SIDE * 3).expect("a length")].into());

// ------------------------------------------------------------------------------------------ servers

async fn listen() -> tokio::net::TcpListener {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("{}", listener.local_addr().expect("an address"));
    listener
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

async fn make(body: Bytes) -> Json<JsonResponse<'static>> {
    let request: SerdeRequest<'_> = serde_json::from_slice(&body).expect("a request");
    assert_eq!(request.width, SIDE);
    Json(json_response(&PIXELS))
}

pub fn serve_http() {
    runtime().block_on(async {
        let app = Router::new().route("/generate", post(make));
        axum::serve(listen().await, app).await.expect("it serves");
    });
}

/// What `tonic-build` would make of a service with one method.
#[derive(Clone)]
struct Weave;

impl tonic::server::NamedService for Weave {
    const NAME: &'static str = "weave.Weave";
}

impl tonic::server::UnaryService<PbRequest> for Weave {
    type Response = PbResponse;
    type Future = BoxFuture<Response<PbResponse>, Status>;

    fn call(&mut self, request: Request<PbRequest>) -> Self::Future {
        assert_eq!(request.get_ref().width, SIDE);
        Box::pin(async { Ok(Response::new(pb_response(PIXELS.clone()))) })
    }
}

impl Service<http::Request<tonic::body::Body>> for Weave {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<PbResponse, PbRequest>::default());
            Ok(grpc.unary(Self, request).await)
        })
    }
}

pub fn serve_grpc() {
    runtime().block_on(async {
        let incoming = tonic::transport::server::TcpIncoming::from(listen().await).with_nodelay(Some(true));
        Server::builder().add_service(Weave).serve_with_incoming(incoming).await.expect("it serves");
    });
}

/// One of the two, as a process of its own, and where it listens.
fn server(name: &str) -> (Process, String) {
    let mut child = this(&[name]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut address = String::new();
    BufReader::new(child.stdout.take().expect("its words")).read_line(&mut address).expect("an address");
    (Process(child), address.trim().to_owned())
}

// ------------------------------------------------------------------------------------------ clients

/// Someone who asks for an image and has its pixels in memory.
trait Asks {
    /// So many at once, so many in all. Gives how long each took, in microseconds.
    fn ask(&mut self, at_once: usize, images: usize) -> Vec<f64>;
}

struct OfWeave<S>(Vec<Client<S>>);

impl<S: Read + Write> Asks for OfWeave<S> {
    fn ask(&mut self, at_once: usize, images: usize) -> Vec<f64> {
        let clients = &mut self.0[..at_once];
        let ask = |client: &mut Client<S>| {
            client.ask(SIDE);
            Instant::now()
        };
        let mut asked: Vec<Instant> = clients.iter_mut().map(ask).collect();
        let mut times = Vec::new();
        for n in 0..images {
            let client = &mut clients[n % at_once];
            client.take();
            times.push(asked[n % at_once].elapsed().as_secs_f64() * 1e6);
            if n + at_once < images {
                asked[n % at_once] = ask(client);
            }
        }
        times
    }
}

struct OfHttp(tokio::runtime::Runtime, Vec<SendRequest<Full<Bytes>>>);

impl OfHttp {
    fn new(address: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let connections = runtime.block_on(async {
            let mut all = Vec::new();
            for _ in 0..AT_ONCE {
                let stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
                stream.set_nodelay(true).expect("a socket");
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
                tokio::spawn(connection);
                all.push(sender);
            }
            all
        });
        Self(runtime, connections)
    }
}

impl Asks for OfHttp {
    fn ask(&mut self, at_once: usize, images: usize) -> Vec<f64> {
        let one = |mut sender: SendRequest<Full<Bytes>>| async move {
            let mut times = Vec::new();
            for _ in 0..images / at_once {
                let began = Instant::now();
                let body = serde_json::to_vec(&serde_request()).expect("JSON");
                let request = hyper::Request::post("/generate")
                    .header("host", "localhost")
                    .header("content-type", "application/json")
                    .body(Full::new(Bytes::from(body)))
                    .expect("a request");
                sender.ready().await.expect("a connection");
                let answer = sender.send_request(request).await.expect("an answer");
                let body = answer.into_body().collect().await.expect("a body").to_bytes();
                assert_eq!(read_json_response(&body).len(), PIXELS.len());
                times.push(began.elapsed().as_secs_f64() * 1e6);
            }
            (sender, times)
        };
        let Self(runtime, connections) = self;
        runtime.block_on(async {
            let spare = connections.split_off(at_once);
            let tasks: Vec<_> = connections.drain(..).map(|sender| tokio::spawn(one(sender))).collect();
            let mut times = Vec::new();
            for task in tasks {
                let (sender, some) = task.await.expect("an end");
                connections.push(sender);
                times.extend(some);
            }
            connections.extend(spare);
            times
        })
    }
}

struct OfGrpc(tokio::runtime::Runtime, Vec<Channel>);

impl OfGrpc {
    fn new(address: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let channels = runtime.block_on(async {
            let mut all = Vec::new();
            for _ in 0..AT_ONCE {
                let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
                all.push(endpoint.tcp_nodelay(true).connect().await.expect("it listens"));
            }
            all
        });
        Self(runtime, channels)
    }
}

impl Asks for OfGrpc {
    fn ask(&mut self, at_once: usize, images: usize) -> Vec<f64> {
        let one = |channel: Channel| async move {
            let mut grpc = tonic::client::Grpc::new(channel);
            let mut times = Vec::new();
            for _ in 0..images / at_once {
                let began = Instant::now();
                grpc.ready().await.expect("a connection");
                let path = PathAndQuery::from_static("/weave.Weave/Generate");
                let codec = ProstCodec::<PbRequest, PbResponse>::default();
                let answer = grpc.unary(Request::new(pb_request()), path, codec).await.expect("an answer");
                assert_eq!(answer.get_ref().pixels.len(), PIXELS.len());
                times.push(began.elapsed().as_secs_f64() * 1e6);
            }
            times
        };
        let Self(runtime, channels) = self;
        runtime.block_on(async {
            let tasks: Vec<_> =
                channels[..at_once].iter().map(|one_| tokio::spawn(one(one_.clone()))).collect();
            let mut times = Vec::new();
            for task in tasks {
                times.extend(task.await.expect("an end"));
            }
            times
        })
    }
}

// ------------------------------------------------------------------------------------------ figures

/// The most memory that a process has had, in bytes.
fn peak(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process that is there");
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).expect("a size");
    line.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok()).expect("kB") * 1024.0
}

pub fn measure() {
    let daemon = Daemon::with_ready_images(&["--tcp", "127.0.0.1:0"]);
    let address = daemon.tcp.clone().expect("an address");
    let through: Vec<u32> = std::iter::once(daemon.pid()).chain(daemon.workers()).collect();
    let (worker, direct) = beside(&mut this(&["worker"]));
    let (http, http_address) = server("http");
    let (grpc, grpc_address) = server("grpc");
    let tcp = || TcpStream::connect(&address).inspect(|stream| stream.set_nodelay(true).expect("a socket"));
    let mut all: Vec<(&str, Vec<u32>, usize, Box<dyn Asks>)> = vec![
        ("Weave,_worker_alone", vec![worker.0.id()], 1, Box::new(OfWeave(vec![direct]))),
        (
            "Weave,_through_weaved",
            through.clone(),
            AT_ONCE,
            Box::new(OfWeave((0..AT_ONCE).map(|_| daemon.connect()).collect())),
        ),
        (
            "Weave,_through_weaved,_TCP",
            through,
            AT_ONCE,
            Box::new(OfWeave((0..AT_ONCE).map(|_| Client::new(tcp().expect("it listens"))).collect())),
        ),
        ("HTTP_1.1,_JSON,_base64_(axum)", vec![http.0.id()], AT_ONCE, Box::new(OfHttp::new(&http_address))),
        ("gRPC_(tonic)", vec![grpc.0.id()], AT_ONCE, Box::new(OfGrpc::new(&grpc_address))),
    ];
    let me = std::process::id();
    let mut figures: Vec<[Vec<f64>; 5]> = all.iter().map(|_| Default::default()).collect();
    for round in 0..=ROUNDS {
        for ((_, pids, at_once, asks), figures) in all.iter_mut().zip(&mut figures) {
            let cpu = |pids: &[u32]| pids.iter().map(|pid| processor_time(*pid)).sum::<f64>();
            let times = asks.ask(1, IMAGES);
            let before = (cpu(pids), cpu(&[me]), Instant::now());
            asks.ask(*at_once, IMAGES);
            let took = before.2.elapsed().as_secs_f64();
            let (servers, client) = (cpu(pids) - before.0, cpu(&[me]) - before.1);
            if round > 0 {
                let images = IMAGES as f64;
                let values = [
                    percentile(&times, 50),
                    percentile(&times, 99),
                    images / took,
                    servers / images * 1e3,
                    client / images * 1e3,
                ];
                figures.iter_mut().zip(values).for_each(|(all, value)| all.push(value));
            }
        }
    }
    for ((name, pids, ..), figures) in all.iter().zip(&figures) {
        for (what, values) in
            ["median_us", "p99_us", "per_s", "server_cpu_ms", "client_cpu_ms"].into_iter().zip(figures)
        {
            say(&format!("moving/{name}/{what}"), percentile(values, 50));
        }
        say(&format!("moving/{name}/peak_bytes"), pids.iter().map(|pid| peak(*pid)).sum());
    }
}
