//! The administrative socket: metrics and health over HTTP/1.1, for whoever runs the daemon.
//!
//! It reads and never changes anything. All of it is bounded: a few connections at once (more wait in
//! the kernel), one request on each, a request's head of 4 KiB at most, and five
//! seconds for all of it. It may allocate; serving Weave does not wait for it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::time::{Duration, Instant};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use serde::Serialize;
use weave_core::text::Text;

use crate::repeats::{About, Repeats};
use crate::socket::{self, Access, Socket};

/// What can be asked for: all metrics for Prometheus, the same as JSON, what is drawn with, how far each
/// request is, whether the loop turns, whether requests are taken.
pub const PAGES: [&str; 6] = ["/metrics", "/stats", "/model", "/requests", "/healthz", "/readyz"];

/// Connections at once.
pub(crate) const CONNECTIONS: usize = 8;
/// Longest head of a request.
const HEAD_LEN: usize = 4096;
/// Longest time for a connection.
const LIMIT: Duration = Duration::from_secs(5);
/// Connections that are accepted in one turn.
const ACCEPTS: usize = 32;

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
    /// The request's head, then the answer.
    bytes: Vec<u8>,
}

/// The administrative socket and its connections.
pub(crate) struct Admin {
    listener: UnixListener,
    /// Its file, where that is ours to remove.
    _socket: Option<Socket>,
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
        registry: &Registry,
        first: usize,
    ) -> io::Result<Self> {
        let mut listener = UnixListener::from_std(listener);
        registry.register(&mut listener, Token(first), Interest::READABLE)?;
        let connections = [const { None }; CONNECTIONS];
        Ok(Self { listener, _socket: socket, connections, first, accepting: true, awake: true })
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
                place.take_if(|connection| connection.until <= now || !connection.go_on(&mut page));
            }
            if !self.accepting {
                return;
            }
            let Some(free) = self.connections.iter().position(Option::is_none) else { return };
            let accepted = self.listener.accept().and_then(|(mut stream, _)| {
                let interest = Interest::READABLE | Interest::WRITABLE;
                registry.register(&mut stream, Token(self.first + 1 + free), interest)?;
                Ok(stream)
            });
            match accepted {
                Ok(stream) => match Access::default().check(&stream) {
                    Ok(_) => {
                        let bytes = Vec::with_capacity(HEAD_LEN);
                        let connection =
                            Connection { stream, until: now + LIMIT, stage: Stage::Reading, bytes };
                        self.connections[free] = Some(connection);
                    }
                    Err(reason) => {
                        if repeats.is_first(About::AdminRefused, socket::peer_user(&stream), now) {
                            log::warn!("admin: refused a connection: {reason}");
                        }
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

    fn read(&mut self, page: &mut impl FnMut(&str) -> Page) -> io::Result<usize> {
        let mut part = [0; HEAD_LEN];
        let n = self.stream.read(&mut part)?;
        self.bytes.extend_from_slice(&part[..n]);
        let answer = match head(&self.bytes) {
            None if self.bytes.len() < HEAD_LEN => return Ok(n),
            None => response(
                &Page::words(431, format!("a request's head has {HEAD_LEN} bytes at most")),
                Body::Sent,
                "",
            ),
            Some(head) => answer(head, page),
        };
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

fn answer(head: &[u8], page: &mut impl FnMut(&str) -> Page) -> Vec<u8> {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = str::from_utf8(line).unwrap_or_default().trim_end_matches('\r');
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return response(&Page::words(400, "this socket speaks HTTP/1.1"), Body::Sent, "");
    };
    if !version.starts_with("HTTP/1.") {
        return response(&Page::words(505, "this socket speaks HTTP/1.1"), Body::Sent, "");
    }
    if method != "GET" && method != "HEAD" {
        let page = Page::words(405, "only GET and HEAD; nothing can be changed here");
        return response(&page, Body::Sent, "Allow: GET, HEAD\r\n");
    }
    let body = if method == "HEAD" { Body::LeftOut } else { Body::Sent };
    response(&page(target.split('?').next().unwrap_or_default()), body, "")
}

/// Whether a page follows its headers, which are the same without it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    Sent,
    LeftOut,
}

fn response(page: &Page, sent: Body, more: &str) -> Vec<u8> {
    let Page { status, kind, body } = page;
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "HTTP Version Not Supported",
    };
    let length = body.len();
    let body = if sent == Body::Sent { body } else { "" };
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n{more}\r\n{body}"
    )
    .into_bytes()
}

/// Asks another daemon's administrative socket. Gives the status and the body, on one line, as it can be shown.
///
/// # Errors
/// Nobody is there, or not in time, or what is there speaks no HTTP.
pub fn ask(socket: &Path, target: &str) -> io::Result<(u16, String)> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: weaved\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.take(1 << 20).read_to_string(&mut text)?;
    let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    match (status, text.split_once("\r\n\r\n")) {
        (Some(status), Some((_, body))) => Ok((status, Text::new(body.trim_end().as_bytes()).to_string())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is no HTTP")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(head: &str) -> String {
        let page = |path: &str| Page::words(200, format!("page {path}"));
        String::from_utf8(answer(head.as_bytes(), &mut { page })).unwrap()
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
        assert!(answer(b"\xff\xfe / HTTP/1.1", &mut |_| Page::words(200, "")).starts_with(b"HTTP/1.1 400"));
    }
}
