//! Starts the real `weaved` and talks to it.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its part of it")]

use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use weave_core::error::{self, ErrorCode};
use weave_core::frame::{Kind, Split, split};
use weave_core::limits::{HEADER_LEN, MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD};
use weave_core::request::{Params, Prompts, Request};
use weave_core::response;

/// Long enough for anything that should happen at once, on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the daemon has logged so far.
#[derive(Clone, Default)]
pub struct Log(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Log {
    pub fn follow(&self, source: impl Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(source).lines().map_while(Result::ok) {
                log.0.0.lock().unwrap().push(without_time(&line).to_owned());
                log.0.1.notify_all();
            }
        });
    }

    /// Waits for the `nth` line that contains `text`, counted from 1.
    pub fn wait_nth(&self, text: &str, nth: usize) -> String {
        let until = Instant::now() + PATIENCE;
        let mut lines = self.0.0.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().filter(|line| line.contains(text)).nth(nth - 1) {
                return line.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{text:?} was not logged {nth} times; the log:\n{}", lines.join("\n"));
            lines = self.0.1.wait_timeout(lines, left).unwrap().0;
        }
    }

    pub fn wait(&self, text: &str) -> String {
        self.wait_nth(text, 1)
    }

    pub fn all(&self) -> String {
        // Also for a test that has failed while it waited for a line.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }
}

/// A line of a log without the time at its beginning, if it has one: 2026-01-02T03:04:05.678Z.
pub fn without_time(line: &str) -> &str {
    let is_time = |text: &str| {
        let shape = |c: char| if c.is_ascii_digit() { '0' } else { c };
        text.chars().map(shape).eq("0000-00-00T00:00:00.000Z ".chars())
    };
    line.split_at_checked(25).filter(|(time, _)| is_time(time)).map_or(line, |(_, rest)| rest)
}

/// A folder in which weaved will have a socket.
pub fn private_folder() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().unwrap()
}

pub fn weaved() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weaved"));
    // Neither the daemon nor its worker may read what the user has set.
    command.arg("--no-config").env("WEAVE_CONFIG", "/nonexistent").env("XDG_RUNTIME_DIR", "/nonexistent");
    command
}

/// The `weave` command, built by the cargo that runs these tests. WEAVE_FEATURES=--no-default-features leaves out the
/// gateway, as `make quick` does.
pub fn weave() -> Command {
    let weaved = Path::new(env!("CARGO_BIN_EXE_weaved"));
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "-p", "weave-cli"])
        .args(std::env::var("WEAVE_FEATURES"))
        .args(if cfg!(debug_assertions) { None } else { Some("--release") })
        .status()
        .unwrap();
    assert!(built.success());
    Command::new(weaved.with_file_name("weave"))
}

/// Starts weaved, which must not start. Gives its exit code and its one line.
pub fn refused(socket: &Path, flags: &[&str]) -> (i32, String) {
    let mut command = weaved();
    command.args(["--engine=pattern", "--socket"]).arg(socket).args(flags).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let text = lines.next().unwrap();
    if text.contains("listening") {
        child.kill().unwrap();
        panic!("it was not refused: {flags:?}");
    }
    assert_eq!(lines.next(), None, "{text}");
    (wait(&mut child).code().unwrap(), text)
}

/// A token for tests, in digits of both cases.
pub const DIGITS: &str = "00112233445566778899aabbccddeeffFFEEDDCCBBAA99887766554433221100";

/// A file with this in it, as a token's has to be.
pub fn token_file(folder: &Path, digits: &str) -> String {
    let file = folder.join("token");
    std::fs::write(&file, format!("{digits}\n")).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    file.to_str().unwrap().to_owned()
}

/// A running daemon with a folder of its own. Killed when dropped.
pub struct Daemon {
    pub child: Child,
    pub log: Log,
    pub socket: PathBuf,
    folder: Option<tempfile::TempDir>,
}

impl Daemon {
    /// Starts the pattern engine with these flags.
    pub fn pattern(flags: &[&str]) -> Self {
        Self::start(&[&["--engine=pattern", "--pattern=gradient"], flags].concat())
    }

    pub fn start(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = Self::start_at(&folder.path().join("run/weave.sock"), flags);
        daemon.folder = Some(folder);
        daemon
    }

    pub fn start_at(socket: &Path, flags: &[&str]) -> Self {
        Self::run(weaved().arg("--socket").arg(socket).args(flags).stdin(Stdio::null()), socket)
    }

    /// Starts what is to become a daemon that listens there.
    pub fn run(command: &mut Command, socket: &Path) -> Self {
        let mut child = command
            .stderr(Stdio::piped())
            // As a shell does it for a job.
            .process_group(0)
            .spawn()
            .unwrap();
        let log = Log::default();
        log.follow(child.stderr.take().unwrap());
        log.wait("listening on");
        Self { child, log, socket: socket.to_owned(), folder: None }
    }

    pub fn connect(&self) -> Client {
        Client::new(UnixStream::connect(&self.socket).unwrap())
    }

    /// The address in the line that the daemon logs for TCP.
    pub fn tcp_address(&self) -> String {
        let line = self.log.wait("listening on tcp://");
        line.split("tcp://").nth(1).unwrap().split(' ').next().unwrap().to_owned()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Has it stand still while it waits for something to happen. SIGCONT ends that.
    pub fn freeze(&self) {
        let pid = self.child.id().try_into().unwrap();
        eventually("it waits", || state(pid) == Some('S'));
        freeze(pid);
    }

    /// The process ids of the daemon's children.
    pub fn workers(&self) -> Vec<i32> {
        children(self.child.id().try_into().unwrap())
    }

    pub fn kill_worker(&self) {
        let [worker] = self.workers()[..] else { panic!("one worker expected: {:?}", self.workers()) };
        kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    /// Proves that the daemon still makes images for others.
    pub fn assert_serves(&self) {
        let mut client = self.connect();
        client.send(4711, "still there?", 1);
        client.expect_gradient(4711, "still there?", 1);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log.all());
        }
    }
}

/// Waits for a process to end, but not for ever.
pub fn wait(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < until, "the process did not end");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for something that can only be asked for.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The administrative socket.
pub fn admin(daemon: &Daemon) -> PathBuf {
    daemon.socket.with_file_name("weave-admin.sock")
}

/// What the administrative socket answers to these bytes.
pub fn say(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may have answered before it has read all.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // It closed without reading what came after its answer.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !answer.is_empty() => {}
        ended => drop(ended.unwrap()),
    }
    String::from_utf8(answer).unwrap()
}

/// Status and body of a page. Checks what all answers have in common.
pub fn get(socket: &Path, page: &str) -> (u16, String) {
    let text = say(socket, format!("GET {page} HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n").as_bytes());
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    assert_eq!(field("Content-Length: "), body.len().to_string());
    assert_eq!(field("Connection: "), "close");
    (status, body.to_owned())
}

/// What the daemon's metrics say of this one, which stands there as `sample`.
pub fn metric(daemon: &Daemon, sample: &str) -> f64 {
    let (_, text) = get(&admin(daemon), "/metrics");
    let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{sample} is not there")).parse().unwrap()
}

/// What a process has started.
pub fn children(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// A second is what a supervisor may take to start the next one.
pub fn assert_gone_within_a_second(processes: &[i32]) {
    let started = Instant::now();
    eventually("they are gone", || !processes.iter().any(|pid| is_alive(*pid)));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

/// The letter that the kernel has for what a process does; `None`: it is gone.
fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// Whether a process exists and is no zombie.
pub fn is_alive(pid: i32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// Stops a process. One in the middle of a system call goes on to the end of that, or until it has to wait.
pub fn freeze(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    eventually("it stands still", || state(pid) == Some('T'));
}

/// An answer as it came.
#[derive(PartialEq)]
pub enum Answer {
    Image { id: u64, width: u32, height: u32, pixels: Vec<u8> },
    Error { id: u64, code: ErrorCode, text: String },
}

/// Without the pixels.
impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image { id, width, height, .. } => write!(f, "image {id}, {width}×{height}"),
            Self::Error { id, code, text } => write!(f, "{code} for {id}: {text}"),
        }
    }
}

impl Answer {
    pub fn id(&self) -> u64 {
        match self {
            Self::Image { id, .. } | Self::Error { id, .. } => *id,
        }
    }
}

pub const SIDE: u32 = 64;

pub fn request(id: u64, prompt: &str, seed: u64) -> Vec<u8> {
    sized_request(id, prompt, seed, SIDE, SIDE, 1)
}

pub fn sized_request(id: u64, prompt: &str, seed: u64, width: u32, height: u32, steps: u32) -> Vec<u8> {
    let params = Params { width, height, steps, cfg_scale: 1.0, seed };
    let mut out = [0; MAX_REQUEST_FRAME];
    Request { request_id: id, params, prompts: Prompts::same(prompt) }.emit(&mut out).unwrap().to_vec()
}

/// A client that can do everything wrong.
pub struct Client {
    pub stream: UnixStream,
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send(&mut self, id: u64, prompt: &str, seed: u64) {
        self.write(&request(id, prompt, seed));
    }

    /// The next answer; `None` if the daemon closed between two of them.
    pub fn answer(&mut self) -> Option<Answer> {
        self.try_answer().expect("the answer is whole")
    }

    /// The next answer; an error if the daemon closed in the middle of it, or says nothing.
    pub fn try_answer(&mut self) -> io::Result<Option<Answer>> {
        let mut bytes = vec![0; HEADER_LEN];
        let first = match self.stream.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            other => other?,
        };
        if first == 0 {
            return Ok(None);
        }
        self.stream.read_exact(&mut bytes[first..])?;
        loop {
            match split(&bytes, MAX_RESPONSE_PAYLOAD).unwrap() {
                Split::Need(n) => {
                    let have = bytes.len();
                    bytes.resize(have + n, 0);
                    self.stream.read_exact(&mut bytes[have..])?;
                }
                Split::Frame(frame, rest) => {
                    assert!(rest.is_empty());
                    return Ok(Some(match frame.header().kind() {
                        Kind::Response => {
                            let response = response::parse(&frame).unwrap();
                            Answer::Image {
                                id: response.head.request_id,
                                width: response.head.image.width(),
                                height: response.head.image.height(),
                                pixels: response.pixels.to_vec(),
                            }
                        }
                        Kind::Error => {
                            let error = error::parse(&frame).unwrap();
                            assert_eq!(error.status, error.code.status());
                            let text = error.text().to_string();
                            Answer::Error { id: error.request_id, code: error.code, text }
                        }
                        other => panic!("an answer of type {other:?}"),
                    }));
                }
            }
        }
    }

    pub fn image(&mut self) -> (u64, Vec<u8>) {
        match self.answer() {
            Some(Answer::Image { id, pixels, .. }) => (id, pixels),
            other => panic!("an image was expected, not {other:?}"),
        }
    }

    /// The next answer must be this error; gives its text.
    pub fn expect_error(&mut self, id: u64, code: ErrorCode) -> String {
        match self.answer() {
            Some(Answer::Error { id: its_id, code: its_code, text }) => {
                assert_eq!((its_id, its_code), (id, code), "{text}");
                text
            }
            other => panic!("{code} for {id} was expected, not {other:?}"),
        }
    }

    pub fn expect_gradient(&mut self, id: u64, prompt: &str, seed: u64) {
        let (its_id, pixels) = self.image();
        assert_eq!(its_id, id);
        assert!(pixels == gradient(prompt, seed), "not the picture of {prompt:?}, {seed}");
    }

    pub fn expect_close(&mut self) {
        assert_eq!(self.answer(), None);
    }
}

/// What the pattern engine must draw. Made here from its description, not by its code.
pub fn gradient(prompt: &str, seed: u64) -> Vec<u8> {
    sized_gradient(prompt, seed, SIDE)
}

/// The same, as a square of any side.
pub fn sized_gradient(prompt: &str, seed: u64, side: u32) -> Vec<u8> {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in seed.to_le_bytes().into_iter().chain(prompt.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let start = hash.to_le_bytes();
    let along = |at: u32, channel: usize| start[channel].wrapping_add(u8::try_from(at * 256 / side).unwrap());
    let mut row: Vec<u8> = (0..side).flat_map(|x| [along(x, 0), 0, start[2]]).collect();
    let mut pixels = Vec::new();
    for y in 0..side {
        let green = along(y, 1);
        row.chunks_exact_mut(3).for_each(|pixel| pixel[1] = green);
        pixels.extend_from_slice(&row);
    }
    pixels
}
