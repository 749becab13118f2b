//! What is tested, as far as it is a process or an address: started, watched, killed, and started again.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

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

    /// Connects.
    ///
    /// # Errors
    /// The system's own.
    pub fn connect(&self) -> io::Result<Stream> {
        Ok(match self {
            Self::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
        })
    }
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
    pub fn new(folder: &Path, tcp: bool) -> io::Result<Self> {
        if tcp {
            return Ok(Self::Tcp(TcpListener::bind(("127.0.0.1", 0))?));
        }
        let path = folder.join("client.sock");
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

impl Process {
    /// Starts a command of the shell, in which `{address}` stands for the address. What it writes to standard
    /// error is kept.
    ///
    /// # Errors
    /// The system's own.
    pub fn start(command: &str, address: Option<&Address>, stdin: Stdio, stdout: Output) -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh");
        let filled = match address {
            Some(address) => command.replace("{address}", &address.to_string()),
            None => command.to_owned(),
        };
        let mut child = shell
            .arg("-c")
            .arg(OsString::from(format!("exec {filled}")))
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let mut followers = Vec::new();
        followers.extend(child.stderr.take().map(|stderr| follow(stderr, said.clone())));
        if stdout == Output::Kept {
            followers.extend(child.stdout.take().map(|stdout| follow(stdout, said.clone())));
        }
        Ok(Self { child, said, followers })
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
            let threads =
                std::fs::read_dir(format!("/proc/{}/task", all[at])).into_iter().flatten().flatten();
            for thread in threads {
                let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
                all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
            at += 1;
        }
        all
    }

    /// Bytes that its family has asked the system for, and can write to.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        let mut all = 0;
        for pid in self.family() {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmData:"))?;
            all += line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024;
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

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), signal);
    }

    /// All that it says until its end. Waits for that, so the process has to have ended.
    pub fn all_said(&mut self) -> String {
        for follower in self.followers.drain(..) {
            let _ = follower.join();
        }
        self.said()
    }

    /// What it has said so far.
    #[must_use]
    pub fn said(&self) -> String {
        self.said.lock().map(|lines| lines.join("\n")).unwrap_or_default()
    }

    /// Its last words. If it has ended, waits a moment for them to arrive; what it has started may still hold
    /// its outputs.
    #[must_use]
    pub fn last_words(&mut self) -> String {
        let deadline = Instant::now() + Duration::from_secs(1);
        while self.ended().is_some()
            && !self.followers.iter().all(JoinHandle::is_finished)
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
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

/// "exit status 3", "signal 6".
#[must_use]
pub fn how_it_ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
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
    /// The system's own.
    pub fn new() -> io::Result<Self> {
        let base = std::env::temp_dir();
        for n in 0..1000 {
            let path = base.join(format!("weave-conform-{}-{n}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => {
                    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700))?;
                    return Ok(Self(path));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("no free name for a temporary folder"))
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_end_is_kept_in_pieces_and_not_whole() {
        let said = Arc::new(Mutex::new(Vec::new()));
        follow(std::io::repeat(b'x').take(200_000_000), Arc::clone(&said)).join().unwrap();
        let said = said.lock().unwrap();
        assert_eq!(said.len(), MAX_LINES);
        assert!(said.iter().all(|line| line.len() as u64 == MAX_LINE_LEN));
    }
}
