//! The daemon's administrative socket: figures about it, over HTTP.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueHint;
use clap::builder::{OsStringValueParser, TypedValueParser};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use weave_client::weave_core::text::Text;
use weave_client::{Address, Error};
use weave_trust::{Stranger, check_server};

use crate::arguments::path;
use crate::daemon::{SOCKET_HELP, ServerUser, address, named_file};
use crate::exit::{Exit, Failure};

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(5);
/// An answer is some kilobytes.
const MAX_ANSWER: usize = 1 << 20;

/// Where the daemon's administrative socket is.
#[derive(Debug, clap::Args)]
pub struct Admin {
    /// Where the daemon listens.
    #[arg(
        long,
        value_name = "PATH",
        value_hint = ValueHint::FilePath,
        value_parser = OsStringValueParser::new().try_map(path),
        help = SOCKET_HELP
    )]
    pub socket: Option<PathBuf>,

    /// Its administrative socket [default: $WEAVE_ADMIN_SOCKET, else NAME-admin.sock beside NAME.sock]
    #[arg(
        long,
        value_name = "PATH",
        value_hint = ValueHint::FilePath,
        value_parser = OsStringValueParser::new().try_map(path)
    )]
    pub admin_socket: Option<PathBuf>,

    /// Who it may be.
    #[command(flatten)]
    pub user: ServerUser,
}

/// An administrative socket that was found, and who may listen there.
#[derive(Clone, Debug)]
pub struct AdminSocket {
    /// Where it is.
    pub path: PathBuf,
    server_uid: Option<u32>,
    limit: Duration,
}

impl Admin {
    /// The socket that was named, or the one beside the daemon's.
    ///
    /// # Errors
    /// Nobody says where it is.
    pub fn find(&self) -> Result<AdminSocket, Failure> {
        Ok(AdminSocket { path: self.path()?, server_uid: self.user.find()?, limit: LIMIT })
    }

    fn path(&self) -> Result<PathBuf, Failure> {
        let named = match &self.admin_socket {
            None if self.socket.is_none() => named_file("WEAVE_ADMIN_SOCKET")?,
            named => named.clone(),
        };
        match named {
            Some(path) => Ok(path),
            None => match address(self.socket.as_deref())? {
                Address::Unix(path) => Ok(beside(&path)),
                address => {
                    let what = format_args!("{address} is for requests; figures are on a Unix socket");
                    Err(Failure::new(Exit::Usage, what)
                        .next("name it with --admin-socket PATH, on the daemon's machine"))
                }
            },
        }
    }
}

impl AdminSocket {
    /// The same, which has this time for each answer: five seconds otherwise.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// A page of JSON. `None`: the daemon has no such page, which one of another version may not have.
    pub(crate) fn ask(&self, page: &str) -> Result<Option<Value>, Failure> {
        let Self { path: socket, server_uid, limit } = self;
        let until = Instant::now() + *limit;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                let what = format_args!("{} doesn't answer within {limit:?}", socket.display());
                Failure::new(Exit::Timeout, what)
                    .next("the daemon is stopped, or its machine has no time for it; try again")
            }
            io::ErrorKind::InvalidData => self.not_weave(),
            io::ErrorKind::PermissionDenied => {
                Failure::new(Exit::NoDaemon, format_args!("{} doesn't tell this user", socket.display()))
                    .next("ask as weaved's own user or as root")
            }
            _ => unreachable(socket, &error),
        };
        let mut stream = connect(socket, until).map_err(failed)?;
        check_server(&stream, socket, *server_uid).map_err(|stranger| match stranger {
            Stranger::Unknown(error) => unreachable(socket, &error),
            Stranger::User(uid) => {
                Error::Stranger { address: socket.as_path().into(), uid, whose: stranger.to_string() }.into()
            }
        })?;
        let text = get(&mut stream, page, until).map_err(failed)?;
        match text.map(|text| serde_json::from_str(&text)) {
            None => Ok(None),
            Some(Ok(json)) => Ok(Some(json)),
            Some(Err(_)) => Err(self.not_weave()),
        }
    }

    pub(crate) fn not_weave(&self) -> Failure {
        let what =
            format_args!("{} doesn't answer as a daemon's administrative socket does", self.path.display());
        Failure::new(Exit::NotWeave, what).next("weaved says at its start where its administrative socket is")
    }
}

/// The place of the administrative socket if nobody has said another: `weave-admin.sock` for
/// `weave.sock`, so that several daemons can share a folder.
fn beside(clients: &Path) -> PathBuf {
    let mut name = clients.file_stem().unwrap_or_default().to_owned();
    name.push("-admin.sock");
    clients.with_file_name(name)
}

/// What the daemon has counted and measured, under the names that its metrics have.
#[derive(Debug)]
pub struct Stats(Value);

impl Stats {
    /// Asks for it.
    ///
    /// # Errors
    /// The daemon doesn't answer, or something else does.
    pub fn ask(from: &AdminSocket) -> Result<Self, Failure> {
        match from.ask("/stats")? {
            Some(all @ Value::Object(_)) => Ok(Self(all)),
            _ => Err(from.not_weave()),
        }
    }

    /// One number; 0 where the daemon has none of this name.
    #[must_use]
    pub fn number(&self, name: &str) -> f64 {
        self.known(name).unwrap_or(0.0)
    }

    /// One number, if the daemon has it.
    #[must_use]
    pub fn known(&self, name: &str) -> Option<f64> {
        self.0.pointer(&format!("/{name}")).and_then(Value::as_f64)
    }

    /// The label of something that is there only to have one.
    #[must_use]
    pub fn label(&self, name: &str) -> String {
        self.0.get(name).and_then(Value::as_object).and_then(|of| of.keys().next()).map_or("?".into(), shown)
    }
}

impl Stats {
    /// As it came.
    #[must_use]
    pub const fn json(&self) -> &Value {
        &self.0
    }

    /// Every figure in a line of its own; of times their number and mean.
    #[must_use]
    pub fn lines(&self) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        for (name, value) in self.0.as_object().into_iter().flatten() {
            match value.as_object() {
                None => lines.push((shown(name), value.to_string())),
                Some(times) if times.contains_key("buckets") => {
                    let count = self.number(&format!("{name}/count"));
                    let mean = self.number(&format!("{name}/sum")) / count.max(1.0);
                    lines.push((shown(name), format!("{count} times, {mean:.3} s each")));
                }
                Some(labels) => {
                    lines.extend(
                        labels
                            .iter()
                            .map(|(of, value)| (shown(&format!("{name}{{{of}}}")), value.to_string())),
                    );
                }
            }
        }
        lines
    }
}

/// A name from a stranger, on one line.
fn shown(name: &String) -> String {
    Text::new(name.as_bytes()).to_string()
}

fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::NoDaemon, format_args!("{} doesn't answer: {error}", socket.display()))
        .next("weaved says at its start where its administrative socket is")
}

/// What is left until then, and no less than a system takes as a limit.
fn left(until: Instant) -> io::Result<Option<Duration>> {
    match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(Some(left)),
    }
}

/// A daemon that doesn't accept leaves connect() waiting for a place in its backlog, which the kernel counts as sending.
fn connect(path: &Path, until: Instant) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    loop {
        socket.set_write_timeout(left(until)?)?;
        match socket.connect(&SockAddr::unix(path)?) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done.map(|()| OwnedFd::from(socket).into()),
        }
    }
}

fn get(stream: &mut UnixStream, page: &str, until: Instant) -> io::Result<Option<String>> {
    stream.set_write_timeout(left(until)?)?;
    let asked = stream.write_all(format!("GET {page} HTTP/1.1\r\nHost: weaved\r\n\r\n").as_bytes());
    let mut bytes = Vec::new();
    let heard = read(stream, &mut bytes, until);
    match heard {
        // It is too late, however much there is of it.
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            return Err(error);
        }
        // Something else may have hung up, but not without a word.
        heard if bytes.is_empty() => asked.and(heard)?,
        _ => {}
    }
    let text = String::from_utf8_lossy(&bytes);
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(Some(body.to_owned())),
        Some((head, _)) if head.starts_with("HTTP/1.1 403 ") => Err(io::ErrorKind::PermissionDenied.into()),
        Some((head, _)) if head.starts_with("HTTP/1.1 404 ") => Ok(None),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn read(stream: &mut UnixStream, bytes: &mut Vec<u8>, until: Instant) -> io::Result<()> {
    let mut part = [0; 4096];
    while bytes.len() < MAX_ANSWER {
        stream.set_read_timeout(left(until)?)?;
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(count) => bytes.extend(part.iter().take(count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_user_who_may_not_ask_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno\n");
        });
        let socket = AdminSocket { path, server_uid: None, limit: LIMIT };
        let failure = format!("{:?}", Stats::ask(&socket).unwrap_err());
        assert!(failure.contains("doesn't tell this user"), "{failure}");
        daemon.join().unwrap();
    }

    /// One that doesn't answer, one that says a byte now and then, and one that doesn't even accept.
    #[test]
    fn an_answer_that_does_not_come_is_not_waited_for_longer_than_that() {
        let folder = tempfile::tempdir().unwrap();
        let limit = Duration::from_millis(200);
        let ask = |name: &str| {
            let socket = AdminSocket { path: folder.path().join(name), server_uid: None, limit };
            let began = Instant::now();
            let failure = socket.ask("/stats").unwrap_err();
            assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
            assert_eq!(failure.exit(), Exit::Timeout, "{}", failure.what());
            assert!(failure.what().ends_with("doesn't answer within 200ms"), "{}", failure.what());
        };
        let _silent = UnixListener::bind(folder.path().join("silent")).unwrap();
        ask("silent");
        let slow = UnixListener::bind(folder.path().join("slow")).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = slow.accept().unwrap();
            while stream.write_all(b"H").is_ok() {
                std::thread::sleep(limit / 4);
            }
        });
        ask("slow");
        let full = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        let path = folder.path().join("full");
        full.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        full.listen(0).unwrap();
        let _waits = UnixStream::connect(&path).unwrap();
        ask("full");
    }
}
