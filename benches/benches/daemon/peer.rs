//! Both ends: a client that reads images as fast as it can, a worker that has them already, a `weaved` in between.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::measure::weaved;
use weave_core::frame::Header;
use weave_core::limits::{HEADER_LEN, MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD};
use weave_core::request::{Params, Prompts, Request};
use weave_core::response::ImageSize;
use weave_daemon::engine::{Engine, EngineError, Generation, Image};
use weave_daemon::scoreboard::Control;

/// A connection to whatever serves, and room for what it sends.
pub(crate) struct Client<S> {
    pub(crate) stream: S,
    buffer: Vec<u8>,
}

impl<S: Read + Write> Client<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, buffer: vec![0; 64 * 1024] }
    }

    pub(crate) fn ask(&mut self, side: u32) {
        let params = Params { width: side, height: side, steps: 1, cfg_scale: 1.0, seed: 1 };
        let mut out = [0; MAX_REQUEST_FRAME];
        let request = Request { request_id: 1, params, prompts: Prompts::same("a cat in space") };
        self.stream.write_all(request.emit(&mut out).expect("a request")).expect("a peer that reads");
    }

    /// Reads one answer, whatever it is. Gives its length.
    pub(crate) fn take(&mut self) -> usize {
        let mut header = [0; HEADER_LEN];
        self.stream.read_exact(&mut header).expect("an answer");
        let header = Header::parse(&header, MAX_RESPONSE_PAYLOAD).expect("a header");
        let len = usize::try_from(header.payload_len()).expect("a length");
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        self.stream.read_exact(&mut self.buffer[..len]).expect("a whole answer");
        HEADER_LEN + len
    }

    /// Has `count` images made, with `depth` requests under way. Gives the bytes that came.
    pub(crate) fn pull(&mut self, side: u32, count: usize, depth: usize) -> usize {
        for _ in 0..depth.min(count) {
            self.ask(side);
        }
        let mut bytes = 0;
        for taken in 0..count {
            bytes += self.take();
            if taken + depth < count {
                self.ask(side);
            }
        }
        bytes
    }
}

/// A child process, killed when dropped.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running `weaved` with its socket in a folder of its own.
pub(crate) struct Daemon {
    pub(crate) process: Process,
    pub(crate) socket: PathBuf,
    pub(crate) tcp: Option<String>,
    _folder: tempfile::TempDir,
}

impl Daemon {
    pub(crate) fn start(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("run/weave.sock");
        let mut command = Command::new(weaved());
        command.args(["--no-config", "--engine", "pattern", "--socket"]).arg(&socket).args(flags);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("weaved starts");
        let mut log = BufReader::new(child.stderr.take().expect("its log"));
        let (mut line, mut tcp) = (String::new(), None);
        while log.read_line(&mut line).expect("its log") > 0 && !line.contains("listening on /") {
            if let Some((_, address)) = line.split_once("tcp://") {
                tcp = address.split_whitespace().next().map(|word| word.to_owned());
            }
            line.clear();
        }
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let tcp = tcp.map(|address| address.trim_end_matches(',').to_owned());
        Self { process: Process(child), socket, tcp, _folder: folder }
    }

    /// One whose worker has its images already.
    pub(crate) fn with_ready_images(flags: &[&str]) -> Self {
        let this = std::env::current_exe().expect("this program");
        let command = format!("{} worker", this.display());
        Self::start(&[&["--worker-command", &command], flags].concat())
    }

    pub(crate) fn connect(&self) -> Client<UnixStream> {
        Client::new(UnixStream::connect(&self.socket).expect("weaved listens"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// A figure of its metrics.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let admin = self.socket.with_file_name("weave-admin.sock");
        let mut stream = UnixStream::connect(admin).expect("weaved listens there as well");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n").expect("a peer that reads");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("a page");
        let value = page.lines().find_map(|line| line.strip_prefix(name)).expect("a metric of that name");
        value.trim().parse().expect("a number")
    }

    /// Its workers' processes.
    pub(crate) fn workers(&self) -> Vec<u32> {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children");
        children.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }
}

/// A process with one end of a socket pair as its standard input, and the other end.
pub(crate) fn beside(command: &mut Command) -> (Process, Client<UnixStream>) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stderr(Stdio::null());
    (Process(command.spawn().expect("it starts")), Client::new(ours))
}

/// This very program, with these arguments.
pub(crate) fn this(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(args);
    command
}

/// Hands out images that it made once.
#[derive(Default)]
struct Ready(Vec<(ImageSize, Arc<[u8]>)>);

impl Engine for Ready {
    fn generate(&mut self, job: &Generation<'_>, _: &Control) -> Result<Image, EngineError> {
        let size = ImageSize::new(job.params.width, job.params.height, 3).expect("a size of v1");
        let known = self.0.iter().find(|(known, _)| *known == size).map(|(_, pixels)| Arc::clone(pixels));
        let pixels = known.unwrap_or_else(|| {
            let pixels: Arc<[u8]> = vec![0x80; usize::try_from(size.data_len()).expect("a length")].into();
            self.0.push((size, Arc::clone(&pixels)));
            pixels
        });
        Image::new(size, pixels)
    }
}

fn standard_input() -> UnixStream {
    std::io::stdin().as_fd().try_clone_to_owned().expect("a socket").into()
}

/// The worker's own loop, with images that are ready.
pub(crate) fn work() {
    let (engine, control) = (&mut Ready::default(), &mut Control::none());
    let _ =
        weave_daemon::worker::serve(&mut standard_input(), engine, control, &weave_daemon::worker::stay_open);
}

/// Writes `args[1]` images of side `args[0]`, one after the other, without being asked, whenever a byte comes.
pub(crate) fn write(args: &[String]) {
    let [side, count] = [0, 1].map(|at| args[at].parse().expect("a number"));
    let frame = weave_benches::response(side);
    let mut stream = standard_input();
    while matches!(stream.read(&mut [0; 1]), Ok(1)) {
        for _ in 0..count {
            stream.write_all(&frame).expect("a peer that reads");
        }
    }
}

/// Has `args[2]` images of side `args[1]` made at the socket `args[0]`, `args[3]` at a time: something to profile.
pub(crate) fn pull(args: &[String]) {
    let stream = UnixStream::connect(&args[0]).expect("something listens");
    let [side, count, depth] = [1, 2, 3].map(|at| args[at].parse::<usize>().expect("a number"));
    let bytes = Client::new(stream).pull(u32::try_from(side).expect("a side"), count, depth);
    println!("{bytes} bytes");
}
