//! What is tested, as far as it is a process or an address: started, watched, killed, and started again.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl Address {
    /// `host:port`, or else a path.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let is_tcp = !text.contains('/')
            && text
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if is_tcp { Self::Tcp(text.to_owned()) } else { Self::Unix(PathBuf::from(text)) }
    }

    /// Connects, and bounds later reads and writes by the time that is left. Where the queue of connections is
    /// full, it waits for a place in it.
    ///
    /// # Errors
    /// The system's own; of the kind `TimedOut` if there was no place until `deadline`.
    pub fn connect_until(&self, deadline: Instant) -> io::Result<Stream> {
        let stream = match self {
            Self::Unix(path) => Stream::Unix(connect_unix(path, deadline)?),
            Self::Tcp(address) => Stream::Tcp(connect_tcp(address, deadline)?),
        };
        stream.set_timeout(deadline.saturating_duration_since(Instant::now()));
        Ok(stream)
    }

    /// Makes a place for a server: a socket that a killed one has left is removed.
    ///
    /// # Errors
    /// Somebody listens there, or the old socket can't be removed.
    fn make_free(&self) -> io::Result<()> {
        /// What a killed server has started may hold its socket for a moment longer.
        const MOMENT: Duration = Duration::from_secs(1);
        let deadline = Instant::now() + MOMENT;
        loop {
            match self.connect_until(deadline) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => break,
                // There is nothing, or nothing that is the suite's to remove.
                Err(error) if error.kind() != io::ErrorKind::TimedOut => return Ok(()),
                _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                _ => return Err(io::Error::other("another program listens there already")),
            }
        }
        match self {
            Self::Unix(path)
                if std::fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket()) =>
            {
                std::fs::remove_file(path)
            }
            _ => Ok(()),
        }
    }

    /// As a word of the shell: quoted, if it has characters that mean something there.
    fn word(&self) -> OsString {
        let bytes = match self {
            Self::Unix(path) => path.as_os_str().as_bytes(),
            Self::Tcp(address) => address.as_bytes(),
        };
        if bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-./:,+@%".contains(byte)) {
            return OsStr::from_bytes(bytes).to_owned();
        }
        let mut word = vec![b'\''];
        for byte in bytes {
            match byte {
                b'\'' => word.extend(br"'\''"),
                byte => word.push(*byte),
            }
        }
        word.push(b'\'');
        OsString::from_vec(word)
    }
}

/// A Unix socket's connect waits for ever for a place in a full queue, unless it must not wait at all.
fn connect_unix(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    // The system's own error doesn't say what is too long.
    std::os::unix::net::SocketAddr::from_pathname(path)?;
    let place = SocketAddrUnix::new(path)?;
    loop {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        match rustix::net::connect(&stream, &place) {
            Ok(()) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(Errno::AGAIN) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(Errno::AGAIN) => {
                let problem = "the server accepts no connection, and its queue of connections is full";
                return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn connect_tcp(address: &str, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::other("there is no such host");
    for place in address.to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&place, left) {
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {
                // Nobody listens at this free port, and the system took the same one for our side.
                Stream::Tcp(stream).reset();
                last = io::ErrorKind::ConnectionRefused.into();
            }
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// A connection of either kind.
#[derive(Debug)]
pub enum Stream {
    /// Over a Unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
}

macro_rules! either {
    ($stream:expr, $name:ident => $call:expr) => {
        match $stream {
            Stream::Unix($name) => $call,
            Stream::Tcp($name) => $call,
        }
    };
}

impl Stream {
    /// Another handle to the same connection.
    ///
    /// # Errors
    /// The system's own.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    /// Where the other side is, in words, if anybody of this machine may have been it: over TCP.
    #[must_use]
    pub fn origin(&self) -> String {
        match self {
            Self::Unix(_) => String::new(),
            Self::Tcp(stream) => {
                stream.peer_addr().map_or(String::new(), |peer| format!(" (who came from {peer})"))
            }
        }
    }

    /// Ends our direction.
    pub fn end_writing(&self) {
        // A peer that is gone has ended it already.
        let _ = either!(self, stream => stream.shutdown(Shutdown::Write));
    }

    /// Ends both directions, so that whoever reads or writes on another handle comes back.
    pub fn close(&self) {
        let _ = either!(self, stream => stream.shutdown(Shutdown::Both));
    }

    /// Bounds each later read and write.
    pub fn set_timeout(&self, timeout: Duration) {
        let timeout = Some(timeout.max(Duration::from_millis(1)));
        let _ = either!(self, stream => stream.set_read_timeout(timeout));
        let _ = either!(self, stream => stream.set_write_timeout(timeout));
    }

    /// Makes the connection end with a reset (TCP; a Unix socket does so by itself if bytes are left).
    pub fn reset(self) {
        if let Self::Tcp(stream) = &self {
            let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        either!(self, stream => stream.read(buf))
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        either!(self, stream => stream.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A place where the suite listens, for clients.
#[derive(Debug)]
pub enum Listener {
    /// At the path of a Unix socket.
    Unix(UnixListener, PathBuf),
    /// At a port of the loopback interface.
    Tcp(TcpListener),
}

impl Listener {
    /// Listens in `folder`, or at a free port.
    ///
    /// # Errors
    /// The system's own.
    pub fn new(folder: &Folder, tcp: bool) -> io::Result<Self> {
        if tcp {
            return Ok(Self::Tcp(TcpListener::bind(("127.0.0.1", 0))?));
        }
        let path = folder.socket("client.sock")?;
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
        Ok(Self::Unix(listener, path))
    }

    /// What a client has to be given.
    ///
    /// # Errors
    /// The system's own.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match self {
            Self::Unix(_, path) => Address::Unix(path.clone()),
            Self::Tcp(listener) => Address::Tcp(listener.local_addr()?.to_string()),
        })
    }

    /// The next connection. `None`: there was none until `deadline`, or `gave_up` said so.
    ///
    /// # Errors
    /// The system's own.
    pub fn accept(&self, deadline: Instant, mut gave_up: impl FnMut() -> bool) -> io::Result<Option<Stream>> {
        match self {
            Self::Unix(listener, _) => listener.set_nonblocking(true)?,
            Self::Tcp(listener) => listener.set_nonblocking(true)?,
        }
        loop {
            let accepted = match self {
                Self::Unix(listener, _) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
                Self::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
            };
            match accepted {
                Ok(stream) => {
                    either!(&stream, stream => stream.set_nonblocking(false))?;
                    return Ok(Some(stream));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if Instant::now() > deadline || gave_up() {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What there is of the tested program now, for whoever has to end it before its time.
struct Live {
    /// Nothing more is started.
    is_over: bool,
    processes: Vec<Pid>,
    folders: Vec<PathBuf>,
}

static LIVE: Mutex<Live> = Mutex::new(Live { is_over: false, processes: Vec::new(), folders: Vec::new() });

fn live() -> MutexGuard<'static, Live> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends all that runs of the tested program, and removes the suite's folders. Nothing can be started any more.
pub fn end_all() {
    let mut live = live();
    live.is_over = true;
    for pid in &live.processes {
        kill_group(*pid);
        // Whoever has started it gets its exit status.
        let _ = waitid(WaitId::Pid(*pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    }
    end_strays(&live.processes);
    for folder in live.folders.drain(..) {
        let _ = std::fs::remove_dir_all(folder);
    }
}

/// Ends a process and its group, which it may have left.
fn kill_group(pid: Pid) {
    let _ = kill_process_group(pid, Signal::KILL);
    // If it has been waited for, its number may be another's.
    if waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG).is_ok()
    {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Ends what has left the process group of one that has ended: this process has inherited it.
fn end_strays(known: &[Pid]) {
    loop {
        let strays: Vec<Pid> = children_of(std::process::id())
            .into_iter()
            .filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
            .filter(|pid| !known.contains(pid))
            .collect();
        if strays.is_empty() {
            return;
        }
        for pid in strays {
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
        }
    }
}

fn children_of(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut all = Vec::new();
    for thread in threads {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    all
}

/// A process of the testee's, in a process group of its own, which is killed with it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    /// They end when the process and all that it has started have closed their outputs.
    followers: Vec<JoinHandle<()>>,
}

/// How long a process may take until it listens or connects, where answers have to be there sooner: it has to
/// start first, on a machine that may be busy.
pub const START_TIMEOUT: Duration = Duration::from_secs(20);

/// What is kept of what a process says.
const MAX_LINES: usize = 20_000;
/// A longer line counts as several.
const MAX_LINE_LEN: u64 = 4096;

/// What becomes of a process's standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// It is kept, like standard error.
    Kept,
    /// The caller takes it from [`Process::child`].
    Taken,
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Asked for, and can be written to: stacks and caches as well.
    pub reserved: u64,
    /// Was written to.
    pub touched: u64,
}

impl Process {
    /// Starts a command of the shell, in which `{address}` stands for the address, as one word. What it writes to
    /// standard error is kept.
    ///
    /// # Errors
    /// The system's own.
    pub fn start(command: &str, address: Option<&Address>, stdin: Stdio, stdout: Output) -> io::Result<Self> {
        let filled = match address {
            Some(address) => filled(command, &address.word()),
            None => OsString::from(command),
        };
        let mut live = live();
        if live.is_over {
            return Err(io::Error::other("the run is at its end"));
        }
        #[cfg(target_os = "linux")]
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let mut child = Command::new("/bin/sh")
            .arg("-c")
            .arg(filled)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        live.processes.push(Pid::from_child(&child));
        drop(live);
        let said = Arc::new(Mutex::new(Vec::new()));
        let mut followers = Vec::new();
        followers.extend(child.stderr.take().map(|stderr| follow(stderr, said.clone())));
        if stdout == Output::Kept {
            followers.extend(child.stdout.take().map(|stdout| follow(stdout, said.clone())));
        }
        Ok(Self { child, said, followers })
    }

    /// Starts a server, and waits until it listens.
    ///
    /// # Errors
    /// Why it doesn't, in words.
    pub fn start_server(command: &str, address: &Address, timeout: Duration) -> Result<Self, String> {
        address.make_free().map_err(|error| format!("{address}: {error}"))?;
        let mut process = Self::start(command, Some(address), Stdio::null(), Output::Kept)
            .map_err(|error| format!("{command}: {error}"))?;
        let deadline = Instant::now() + timeout.max(START_TIMEOUT);
        loop {
            let problem = match (address.connect_until(deadline), process.ended()) {
                (Ok(_), None) => return Ok(process),
                (_, Some(status)) => format!("{} before it listened at {address}", how_it_ended(status)),
                (Err(error), None) if Instant::now() > deadline => {
                    format!("did not listen at {address} in time: {error}")
                }
                (Err(_), None) => {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                }
            };
            return Err(format!("{command}: {problem}\n{}", process.last_words()));
        }
    }

    /// The process itself.
    pub const fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its process id, and those of all processes that come from it.
    #[must_use]
    pub fn family(&self) -> Vec<u32> {
        let mut all = vec![self.id()];
        let mut at = 0;
        while at < all.len() {
            all.extend(children_of(all[at]));
            at += 1;
        }
        all
    }

    /// The memory of its family.
    #[must_use]
    pub fn memory(&self) -> Option<Memory> {
        let mut all = Memory::default();
        for pid in self.family() {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let bytes = |name: &str| -> Option<u64> {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
            };
            all.reserved += bytes("VmData:")?;
            all.touched += bytes("RssAnon:")? + bytes("RssShmem:")?;
        }
        Some(all)
    }

    /// How it ended; `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end, until `deadline`.
    pub fn wait(&mut self, deadline: Instant) -> Option<ExitStatus> {
        loop {
            let ended = self.ended();
            if ended.is_some() || Instant::now() > deadline {
                return ended;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends a signal to what the command has come to: the process alone, or, where a shell stays between, what
    /// that has started.
    pub fn signal(&self, signal: Signal) {
        let mut targets = vec![self.id()];
        while let Some(at) = targets.iter().position(|pid| is_shell(*pid) && !children_of(*pid).is_empty()) {
            let shell = targets.swap_remove(at);
            targets.extend(children_of(shell));
        }
        for pid in targets {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, signal);
            }
        }
    }

    /// All that it said until its end.
    pub fn all_said(&mut self) -> String {
        self.settle();
        self.said()
    }

    /// If it has ended, waits for its last words; but only a moment, since what it has started may hold its outputs.
    fn settle(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(1);
        while self.ended().is_some()
            && !self.followers.iter().all(JoinHandle::is_finished)
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What it has said so far.
    #[must_use]
    pub fn said(&self) -> String {
        self.said.lock().map(|lines| lines.join("\n")).unwrap_or_default()
    }

    /// Its last words.
    #[must_use]
    pub fn last_words(&mut self) -> String {
        self.settle();
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        kill_group(pid);
        let _ = self.child.wait();
        let mut live = live();
        live.processes.retain(|other| *other != pid);
        end_strays(&live.processes);
    }
}

/// A command in which all `{address}` are replaced. Paths need not be UTF-8.
fn filled(command: &str, address: &OsStr) -> OsString {
    let mut filled = OsString::new();
    for (n, piece) in command.split("{address}").enumerate() {
        if n > 0 {
            filled.push(address);
        }
        filled.push(piece);
    }
    filled
}

/// Whether a process is a shell that waits for what it has started.
fn is_shell(pid: u32) -> bool {
    const SHELLS: [&str; 8] = ["ash", "bash", "busybox", "dash", "ksh", "mksh", "sh", "zsh"];
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| {
        program.file_name().is_some_and(|name| SHELLS.iter().any(|shell| name == *shell))
    })
}

fn follow(source: impl Read + Send + 'static, said: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut line = Vec::new();
        while source.by_ref().take(MAX_LINE_LEN).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            line.clear();
            let Ok(mut lines) = said.lock() else { return };
            if lines.len() < MAX_LINES {
                lines.push(text);
            }
        }
    })
}

/// The signal that has ended a process. A shell that stays between tells it by an exit status.
#[must_use]
pub fn signal_of(status: ExitStatus) -> Option<i32> {
    // SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL, SIGSEGV and SIGTERM: no program has these by chance.
    const TOLD: [i32; 8] = [4, 5, 6, 7, 8, 9, 11, 15];
    status.signal().or_else(|| status.code().map(|code| code - 128).filter(|signal| TOLD.contains(signal)))
}

/// "exit status 3", "signal 6", "exit status 134, as a shell tells signal 6".
#[must_use]
pub fn how_it_ended(status: ExitStatus) -> String {
    match (status.code(), signal_of(status)) {
        (Some(code), Some(signal)) => format!("exit status {code}, as a shell tells signal {signal}"),
        (Some(code), None) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// A folder of this run's own, for sockets: under 0700, removed at the end.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes one.
    ///
    /// # Errors
    /// The system's own, with the folder's path.
    pub fn new() -> io::Result<Self> {
        let told = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error} (TMPDIR says where)", path.display()))
        };
        let temp = std::env::temp_dir();
        // A command may go elsewhere before it uses the address.
        let base = std::path::absolute(&temp).map_err(|error| told(&temp, error))?;
        let mut live = live();
        for n in 0..1000 {
            let path = base.join(format!("weave-conform-{}-{n}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    live.folders.push(path.clone());
                    return Ok(Self(path));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(told(&path, error)),
            }
        }
        Err(io::Error::other(format!("{}: no free name for a temporary folder", base.display())))
    }

    /// The path of a Unix socket in it.
    ///
    /// # Errors
    /// It is longer than a socket's path may be.
    pub fn socket(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        std::os::unix::net::SocketAddr::from_pathname(&path).map_err(|error| {
            io::Error::other(format!(
                "{}: {} bytes are too many for the path of a Unix socket ({error}): set TMPDIR to a folder with a \
                 shorter path",
                path.display(),
                path.as_os_str().len()
            ))
        })?;
        Ok(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        live().folders.retain(|path| *path != self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_waits_for_a_place_in_a_full_queue_and_not_for_ever() {
        let folder = Folder::new().unwrap();
        let path = folder.socket("full.sock").unwrap();
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = Address::Unix(path);
        let waiting: Vec<_> = std::iter::repeat_with(|| address.connect_until(Instant::now()))
            .map_while(|connected| {
                connected.map_err(|error| assert_eq!(error.kind(), io::ErrorKind::TimedOut)).ok()
            })
            .take(10)
            .collect();
        assert!((1..10).contains(&waiting.len()), "{} wait", waiting.len());
        std::thread::scope(|scope| {
            let one_more =
                scope.spawn(|| address.connect_until(Instant::now() + Duration::from_secs(60)).map(drop));
            drop(rustix::net::accept(&listener).unwrap());
            one_more.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_line_without_end_is_kept_in_pieces_and_not_whole() {
        let said = Arc::new(Mutex::new(Vec::new()));
        follow(std::io::repeat(b'x').take(200_000_000), Arc::clone(&said)).join().unwrap();
        let said = said.lock().unwrap();
        assert_eq!(said.len(), MAX_LINES);
        assert!(said.iter().all(|line| line.len() as u64 == MAX_LINE_LEN));
    }
}
