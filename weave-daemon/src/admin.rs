//! The administrative socket: metrics and health over HTTP/1.1, for whoever runs the daemon.
//!
//! It reads and never changes anything. All of it is bounded: a few connections at once (more wait in
//! the kernel), one request on each, a request's head of 4 KiB at most, and five
//! seconds for all of it. It may allocate; serving Weave does not wait for it.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket as new_socket, sockopt};
use serde::Serialize;
use weave_core::text::Text;

use crate::door::Door;
use crate::repeats::{About, Repeats};
use crate::socket::{self, Access, Socket};
use crate::user::User;

/// What can be asked for: all metrics for Prometheus, the same as JSON, what is drawn with, how far each
/// request is, whether the loop turns, whether requests are taken.
/// Clients may ask for those that are about them; the first two are for who runs the daemon.
pub const PAGES: [&str; 6] = ["/metrics", "/stats", "/model", "/requests", "/healthz", "/readyz"];

/// The pages for our own user and root alone: they say who comes how often, and what the machine can bear.
const OPERATORS: [&str; 2] = [PAGES[0], PAGES[1]];

/// Connections at once, of users other than our own and root half of it.
pub(crate) const CONNECTIONS: usize = 8;
/// Longest head of a request.
const HEAD_LEN: usize = 4096;
/// Longest time for a connection.
const LIMIT: Duration = Duration::from_secs(5);
/// Connections that are accepted in one turn.
const ACCEPTS: usize = 32;
/// Longest answer that is read.
const MAX_ANSWER: usize = 1 << 20;

/// What a page says.
#[derive(Debug)]
pub struct Page {
    /// The status of HTTP.
    pub status: u16,
    /// The media type.
    pub kind: &'static str,
    /// The text.
    pub body: String,
}

impl Page {
    /// A few words.
    pub fn words(status: u16, words: impl Into<String>) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body: words.into() + "\n" }
    }

    /// A page for programs.
    pub fn json(page: &impl Serialize) -> Self {
        match serde_json::to_string(page) {
            Ok(json) => Self { status: 200, kind: "application/json", body: json + "\n" },
            Err(error) => Self::words(500, format!("can't be written: {error}")),
        }
    }
}

enum Stage {
    /// The head is not all there.
    Reading,
    /// So many bytes of the answer are written.
    Writing(usize),
    /// All is said; what the peer still sends is dropped until it closes. Closing with bytes unread
    /// would take the answer from it.
    Said,
}

struct Connection {
    stream: UnixStream,
    until: Instant,
    stage: Stage,
    /// Whose it is.
    user: User,
    /// What it asked for and did not get, until the log has it.
    refused: Option<Refused>,
    /// The request's head, then the answer.
    bytes: Vec<u8>,
}

/// A request that got no page.
struct Refused {
    status: u16,
    /// Its first line, as far as it is shown. Empty if it is no line of HTTP: it may be anything, even a prompt.
    line: String,
}

/// Bytes of a request's first line that the log shows.
const SHOWN: usize = 80;

/// The administrative socket and its connections.
pub(crate) struct Admin {
    door: Door,
    /// Who may ask, beside our own user and root: who may ask for images.
    access: Access,
    connections: [Option<Connection>; CONNECTIONS],
    first: usize,
    /// The listener may have somebody.
    accepting: bool,
    /// Something has happened.
    awake: bool,
}

impl Admin {
    /// Takes the tokens from `first` on, one for the listener and one for each connection.
    pub(crate) fn new(
        listener: StdListener,
        socket: Option<Socket>,
        access: Access,
        registry: &Registry,
        first: usize,
    ) -> io::Result<Self> {
        let door =
            Door::new(listener, socket, registry, Token(first), "nobody can ask for metrics and health")?;
        let connections = [const { None }; CONNECTIONS];
        Ok(Self { door, access, connections, first, accepting: true, awake: true })
    }

    /// Whether somebody has come, or said something.
    pub(crate) const fn is_awake(&self) -> bool {
        self.awake
    }

    /// Where they come in.
    pub(crate) const fn door(&self) -> &Door {
        &self.door
    }

    /// Looks whether they still can.
    pub(crate) fn look(&mut self, registry: &Registry) {
        if self.door.look(registry) {
            (self.accepting, self.awake) = (true, true);
        }
    }

    /// One of its tokens has an event.
    pub(crate) fn event(&mut self, token: Token) {
        self.awake = true;
        self.accepting |= token.0 == self.first;
    }

    /// When [`turn`](Self::turn) has something to do at the latest.
    pub(crate) fn wake_at(&self, now: Instant) -> Option<Instant> {
        if self.awake {
            return Some(now);
        }
        self.connections.iter().flatten().map(|connection| connection.until).min()
    }

    /// Does what can be done without waiting. `page` makes the answer to a path.
    pub(crate) fn turn(
        &mut self,
        registry: &Registry,
        repeats: &mut Repeats,
        now: Instant,
        mut page: impl FnMut(&str) -> Page,
    ) {
        if !self.awake && self.connections.iter().flatten().all(|connection| connection.until > now) {
            return;
        }
        self.awake = false;
        for _ in 0..ACCEPTS {
            for place in &mut self.connections {
                place.take_if(|connection| {
                    let goes_on = connection.until > now && connection.go_on(&mut page);
                    connection.tell(repeats, now);
                    !goes_on
                });
            }
            if !self.accepting {
                return;
            }
            let Some(free) = self.connections.iter().position(Option::is_none) else { return };
            let accepted = self.door.accept().and_then(|(mut stream, _)| {
                let interest = Interest::READABLE | Interest::WRITABLE;
                registry.register(&mut stream, Token(self.first + 1 + free), interest)?;
                Ok(stream)
            });
            match accepted {
                Ok(mut stream) => match self.access.check(&stream) {
                    Ok(uid) if self.is_full_for(uid) => {
                        let words = "too many ask here at once; ask again";
                        let _ = stream.write(&response(&Page::words(503, words), Body::Sent, ""));
                    }
                    Ok(uid) => {
                        let bytes = Vec::with_capacity(HEAD_LEN);
                        let (until, user) = (now + LIMIT, socket::user(uid));
                        let connection =
                            Connection { stream, until, stage: Stage::Reading, user, refused: None, bytes };
                        self.connections[free] = Some(connection);
                    }
                    Err(reason) => {
                        if repeats.is_first(About::AdminRefused, socket::peer_user(&stream), now) {
                            log::warn!("admin: refused a connection: {reason}");
                        }
                        let words =
                            "only weaved's own user, root, and users who may ask for images may ask here";
                        // A fresh socket has room for it; if not, closing says enough.
                        let _ = stream.write(&response(&Page::words(403, words), Body::Sent, ""));
                    }
                },
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.accepting = false,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    // Until somebody else comes.
                    _ => {
                        if repeats.is_first(About::AdminUnaccepted, None, now) {
                            log::warn!("admin: can't accept a connection: {error}");
                        }
                        self.accepting = false;
                    }
                },
            }
        }
        self.awake = true;
    }
}

impl Admin {
    /// Whether users like this one have as many connections as they may.
    fn is_full_for(&self, uid: u32) -> bool {
        let is_operator = |user| matches!(user, User::Owner(_));
        let others = self.connections.iter().flatten().filter(|open| !is_operator(open.user)).count();
        !is_operator(socket::user(uid)) && others >= CONNECTIONS / 2
    }
}

impl Connection {
    /// Reads and writes what there is. Whether there is more to wait for.
    fn go_on(&mut self, page: &mut impl FnMut(&str) -> Page) -> bool {
        loop {
            let moved = match self.stage {
                Stage::Reading => self.read(page),
                Stage::Writing(sent) => match self.stream.write(self.bytes.get(sent..).unwrap_or_default()) {
                    Ok(n) if sent + n == self.bytes.len() => {
                        self.stage = Stage::Said;
                        self.stream.shutdown(std::net::Shutdown::Write).map(|()| n)
                    }
                    Ok(n) => {
                        self.stage = Stage::Writing(sent + n);
                        Ok(n)
                    }
                    Err(error) => Err(error),
                },
                Stage::Said => self.stream.read(&mut [0; HEAD_LEN]),
            };
            match moved {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Logs that it got no page, or has asked for none in time.
    fn tell(&mut self, repeats: &mut Repeats, now: Instant) {
        let by = Name(Some(self.user));
        if let Some(Refused { status, line }) = self.refused.take() {
            let reason = reason(status);
            if repeats.is_first(About::AdminRequest(reason), Some(self.user), now) {
                let colon = if line.is_empty() { "" } else { ": " };
                log::info!("admin: refused a request of {by}: {status} {reason}{colon}{line}");
            }
        } else if self.until <= now
            && matches!(self.stage, Stage::Reading)
            && repeats.is_first(About::AdminRequest("not complete in time"), Some(self.user), now)
        {
            log::info!("admin: a request of {by} was not complete within {LIMIT:?}; closing");
        }
    }

    fn read(&mut self, page: &mut impl FnMut(&str) -> Page) -> io::Result<usize> {
        let mut part = [0; HEAD_LEN];
        let n = self.stream.read(&mut part)?;
        self.bytes.extend_from_slice(&part[..n]);
        let answer = match head(&self.bytes) {
            None if self.bytes.len() < HEAD_LEN => return Ok(n),
            None => {
                let page = Page::words(431, format!("a request's head has {HEAD_LEN} bytes at most"));
                (431, response(&page, Body::Sent, ""))
            }
            Some(head) => answer(head, &mut |path: &str| {
                if OPERATORS.contains(&path) && !matches!(self.user, User::Owner(_)) {
                    let words = "only weaved's own user and root may see this page; others may ask for ";
                    return Page::words(403, words.to_owned() + &PAGES[OPERATORS.len()..].join(", "));
                }
                page(path)
            }),
        };
        let (status, answer) = answer;
        // Not ready is an answer, too.
        if status >= 400 && status != 503 {
            let line = self.bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let shown = if matches!(status, 403..=405) { line.len().min(SHOWN) } else { 0 };
            let line = String::from_utf8_lossy(&line[..shown]).into_owned();
            self.refused = Some(Refused { status, line });
        }
        self.bytes = answer;
        self.stage = Stage::Writing(0);
        Ok(n)
    }
}

/// A request's head, once all of it is there.
fn head(bytes: &[u8]) -> Option<&[u8]> {
    let ends = |end: &[u8]| bytes.windows(end.len()).position(|window| window == end);
    let end = ends(b"\r\n\r\n").into_iter().chain(ends(b"\n\n")).min()?;
    bytes.get(..end)
}

/// The answer to a request, and its status.
fn answer(head: &[u8], page: &mut impl FnMut(&str) -> Page) -> (u16, Vec<u8>) {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = str::from_utf8(line).unwrap_or_default().trim_end_matches('\r');
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        let words = "this is weaved's administrative socket, which speaks HTTP/1.1: GET /readyz HTTP/1.1";
        return (400, response(&Page::words(400, words), Body::Sent, ""));
    };
    if !version.starts_with("HTTP/1.") {
        return (505, response(&Page::words(505, "this socket speaks HTTP/1.1"), Body::Sent, ""));
    }
    if method != "GET" && method != "HEAD" {
        let page = Page::words(405, "only GET and HEAD; nothing can be changed here");
        return (405, response(&page, Body::Sent, "Allow: GET, HEAD\r\n"));
    }
    let body = if method == "HEAD" { Body::LeftOut } else { Body::Sent };
    let page = page(path_of(target));
    (page.status, response(&page, body, ""))
}

/// The page that is meant: also by the whole address, and with a slash or a query behind it.
fn path_of(target: &str) -> &str {
    let target = target.split(['?', '#']).next().unwrap_or_default();
    let path = match target.split_once("://") {
        Some((_, place)) if !target.starts_with('/') => place.find('/').map_or("", |at| &place[at..]),
        _ => target,
    };
    match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    }
}

/// Whether a page follows its headers, which are the same without it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    Sent,
    LeftOut,
}

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "HTTP Version Not Supported",
    }
}

/// Who has asked, in words.
struct Name(Option<User>);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(user) => user.fmt(f),
            None => f.write_str("somebody"),
        }
    }
}

fn response(page: &Page, sent: Body, more: &str) -> Vec<u8> {
    let Page { status, kind, body } = page;
    let reason = reason(*status);
    let length = body.len();
    let body = if sent == Body::Sent { body } else { "" };
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n{more}\r\n{body}"
    )
    .into_bytes()
}

/// Why a daemon's administrative socket has not answered.
#[derive(Debug)]
pub struct Unanswered {
    path: PathBuf,
    why: io::Error,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, why } = self;
        let path = path.display();
        let limit = LIMIT.as_secs();
        match why.kind() {
            io::ErrorKind::NotFound => write!(
                f,
                "no weaved is running: there is no {path}; start it, or say --socket PATH as it was started with"
            ),
            io::ErrorKind::ConnectionRefused => {
                write!(f, "no weaved is running: {path} is left over from one that has died; start it again")
            }
            io::ErrorKind::PermissionDenied => {
                write!(f, "this user may not ask at {path}; ask as weaved's own user or as root")
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => write!(
                f,
                "no answer from weaved at {path} within {limit} s; it stands still or has too much to do: restart it if \
                 that lasts"
            ),
            io::ErrorKind::InvalidData => {
                write!(f, "what answers at {path} is no weaved; set admin_socket to the socket of one")
            }
            _ => write!(f, "no weaved answers at {path}: {why}"),
        }
    }
}

impl std::error::Error for Unanswered {}

/// Asks another daemon's administrative socket. Gives the status and the body, on one line, as it can be shown.
///
/// # Errors
/// Nobody is there, or not in time, or what is there speaks no HTTP.
pub fn ask(socket: &Path, target: &str) -> Result<(u16, String), Unanswered> {
    exchange(socket, target).map_err(|why| Unanswered { path: socket.to_owned(), why })
}

fn exchange(socket: &Path, target: &str) -> io::Result<(u16, String)> {
    let until = Instant::now() + LIMIT;
    let stream = new_socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    // Of connecting too: a daemon that stands still takes nobody from its queue.
    sockopt::set_socket_timeout(&stream, sockopt::Timeout::Send, Some(LIMIT))?;
    connect(&stream, &SocketAddrUnix::new(socket)?)?;
    let mut stream = std::os::unix::net::UnixStream::from(stream);
    // Whoever is refused may be told so before it has asked.
    let asked = stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: weaved\r\n\r\n").as_bytes());
    let (mut answer, mut part) = (Vec::new(), [0; HEAD_LEN]);
    while answer.len() < MAX_ANSWER {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&part[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !answer.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    if answer.is_empty() {
        asked?;
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    match (status, text.split_once("\r\n\r\n")) {
        (Some(status), Some((_, body))) => Ok((status, Text::new(body.trim_end().as_bytes()).to_string())),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(head: &str) -> String {
        let page = |path: &str| Page::words(200, format!("page {path}"));
        String::from_utf8(answer(head.as_bytes(), &mut { page }).1).unwrap()
    }

    #[test]
    fn a_head_ends_with_an_empty_line() {
        assert_eq!(head(b"GET / HTTP/1.1\r\nHost: x\r\n"), None);
        assert_eq!(head(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nbody"), Some(&b"GET / HTTP/1.1\r\nHost: x"[..]));
        assert_eq!(head(b"GET / HTTP/1.0\n\n"), Some(&b"GET / HTTP/1.0"[..]));
    }

    #[test]
    fn only_reading_is_understood() {
        let found = ask("GET /stats?x=1 HTTP/1.1\r\nHost: x");
        assert!(
            found.starts_with("HTTP/1.1 200 OK\r\n") && found.ends_with("\r\n\r\npage /stats\n"),
            "{found}"
        );
        for target in
            ["/stats/", "http://weaved/stats", "http://localhost:80/stats/?x", "/stats#a", "/stats?u=a://b"]
        {
            let found = ask(&format!("GET {target} HTTP/1.0\r\nAccept: */*"));
            assert!(found.ends_with("\r\n\r\npage /stats\n"), "{found}");
        }
        for target in ["/", "//", "http://weaved", "http://weaved/", "?x"] {
            assert!(ask(&format!("GET {target} HTTP/1.1")).ends_with("page /\n"), "{target}");
        }
        let found = ask("HEAD /stats HTTP/1.0");
        assert!(found.contains("Content-Length: 12\r\n") && found.ends_with("\r\n\r\n"), "{found}");
        for (head, status) in [
            ("POST /stats HTTP/1.1", 405),
            ("GET /stats HTTP/2.0", 505),
            ("GET /stats", 400),
            ("GET  /stats HTTP/1.1", 400),
            ("", 400),
            ("state", 400),
        ] {
            assert!(ask(head).starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        }
        assert_eq!(answer(b"\xff\xfe / HTTP/1.1", &mut |_| Page::words(200, "")).0, 400);
    }
}
