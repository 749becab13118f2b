//! What a worker writes on its standard error: lines of our log under the worker's name, and the last one kept.
//!
//! An engine that gives up says why there and nowhere else, at the end, in words of its own. A worker that somebody
//! has taken over says there what it wants: it can't pass for anybody else, and what it may say is bounded. All of
//! it is read, so that a worker never waits for its log; what is too much is dropped and counted.

use std::fmt::{self, Write};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use log::Level;
use mio::event::Source;
use mio::unix::pipe::{self, Receiver};
use mio::{Interest, Registry, Token};
use weave_core::text::Text;

/// Bytes of a line that are shown.
const LINE_LEN: usize = 1024;
/// Bytes of the last line that are kept.
const LAST_LEN: usize = 256;
/// Bytes that are read at once, and before it is somebody else's turn.
const READ_LEN: usize = 16 * 1024;
const TURN: usize = 64 * 1024;
/// Bytes that a pipe holds.
const PIPE_LEN: usize = 64 * 1024;

/// Bytes of the log that a worker may take at once, and in each second for as long as it likes.
const BURST: i64 = 1024 * 1024;
const RATE: i64 = 64 * 1024;
/// What stands in a line before the worker's name, at most.
const HEAD_LEN: usize = "2026-01-02T03:04:05.678Z INFO  ".len();
/// How often the log says at most how much of a flood was dropped, while it lasts.
const MINUTE: Duration = Duration::from_secs(60);

/// The daemon's end of a worker's standard error.
#[derive(Debug)]
pub struct WorkerLog {
    /// Which of all workers it is.
    index: usize,
    pipe: Receiver,
    /// The line that is being written.
    line: heapless::Vec<u8, LINE_LEN>,
    /// The rest of that line is not shown.
    skips: bool,
    last: heapless::Vec<u8, LAST_LEN>,
    allowance: Allowance,
    /// Bytes that were dropped and not told of yet.
    dropped: u64,
    dropped_since: Option<Instant>,
}

impl WorkerLog {
    /// A log, and what the worker with this index gets as its standard error.
    ///
    /// # Errors
    /// There are no more descriptors to be had.
    pub fn new(index: usize) -> io::Result<(Self, Stdio)> {
        let (theirs, pipe) = pipe::new()?;
        // Theirs is written by code that knows nothing of waiting.
        theirs.set_nonblocking(false)?;
        let log = Self {
            index,
            pipe,
            line: heapless::Vec::new(),
            skips: false,
            last: heapless::Vec::new(),
            allowance: Allowance { left: BURST, at: None },
            dropped: 0,
            dropped_since: None,
        };
        Ok((log, Stdio::from(OwnedFd::from(theirs))))
    }

    /// Has mio tell when there is something to read.
    ///
    /// # Errors
    /// mio's.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.pipe.register(registry, token, Interest::READABLE)
    }

    /// Passes on what is there. Whether there may be more.
    pub fn pass_on(&mut self, now: Instant) -> bool {
        self.allowance.grow(now);
        self.read()
    }

    /// Passes on what a worker that is dead has left, and not what a process of its own goes on to write.
    pub fn pass_on_rest(&mut self) {
        let _ = (0..=PIPE_LEN / TURN).all(|_| self.read());
        self.end_line("");
        self.tell_dropped();
    }

    /// The last line that isn't empty, as far as it is kept and as it can be shown.
    #[must_use]
    pub fn last_line(&self) -> Option<String> {
        (!self.last.is_empty()).then(|| Text::new(whole_characters(&self.last)).to_string())
    }

    /// When [`tell`](Self::tell) has something to do.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        Some(self.allowance.calm_at()?.min(self.dropped_since? + MINUTE))
    }

    /// Says how many bytes were dropped, if that has come to an end or goes on for long.
    pub fn tell(&mut self, now: Instant) {
        if self.wake_at().is_some_and(|at| at <= now) {
            self.tell_dropped();
        }
    }

    fn tell_dropped(&mut self) {
        let dropped = std::mem::take(&mut self.dropped);
        if self.dropped_since.take().is_some() {
            let index = self.index;
            log::warn!(
                "worker {index}: {dropped} bytes of its log were dropped: more than {RATE} in a second"
            );
        }
    }

    fn read(&mut self) -> bool {
        let mut buffer = [0; READ_LEN];
        let mut moved = 0;
        while moved < TURN {
            match self.pipe.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => {
                    let bytes = buffer.get(..n).unwrap_or_default();
                    match self.allowance.take(n) {
                        true => self.take(bytes),
                        false => self.drop(bytes),
                    }
                    moved += n;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn take(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = part.strip_suffix(b"\n").unwrap_or(part);
            if self.skips {
                append(&mut self.last, text);
            } else if append(&mut self.line, text) < text.len() {
                self.end_line("…");
                self.skips = true;
            }
            if text.len() < part.len() {
                self.end_line("");
                self.skips = false;
            }
        }
    }

    /// What is dropped is looked at only for its last line, which may be the engine's last word.
    fn drop(&mut self, bytes: &[u8]) {
        self.end_line("…");
        self.dropped += bytes.len() as u64;
        self.dropped_since = self.dropped_since.or(self.allowance.at);
        let goes_on = std::mem::replace(&mut self.skips, bytes.last() != Some(&b'\n'));
        let tail = bytes.get(bytes.len().saturating_sub(LAST_LEN)..).unwrap_or_default().trim_ascii_end();
        let line = tail.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        if line.is_empty() {
            return;
        }
        // All of these bytes belong to the line that was dropped before.
        if !goes_on || line.len() < tail.len() || tail.len() < bytes.trim_ascii_end().len() {
            self.last.clear();
        }
        append(&mut self.last, line);
    }

    /// The line is logged as far as it is there, with this at its end.
    fn end_line(&mut self, end: &str) {
        let line = self.line.trim_ascii_end();
        if !line.is_empty() {
            let line = if end.is_empty() { line } else { whole_characters(line) };
            let (level, text) = level_of(line);
            let (index, text) = (self.index, Text::new(text));
            let mut len = Length(HEAD_LEN);
            let _ = write!(len, "worker {index}: {text}{end}");
            self.allowance.owe(len.0.saturating_sub(line.len()));
            log::log!(level, "worker {index}: {text}{end}");
            self.last.clear();
            append(&mut self.last, line);
        }
        self.line.clear();
    }
}

/// How long a text is.
struct Length(usize);

impl Write for Length {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

/// Appends what there is room for; how much that is.
fn append<const N: usize>(to: &mut heapless::Vec<u8, N>, bytes: &[u8]) -> usize {
    let fits = bytes.len().min(to.capacity() - to.len());
    let _ = to.extend_from_slice(bytes.get(..fits).unwrap_or_default());
    fits
}

/// Without the beginning of a character at the end of text that was cut off.
fn whole_characters(bytes: &[u8]) -> &[u8] {
    let last = bytes.utf8_chunks().last().map_or(0, |chunk| chunk.invalid().len());
    let whole = bytes.len() - last;
    match str::from_utf8(bytes.get(whole..).unwrap_or_default()) {
        Err(error) if error.error_len().is_none() => bytes.get(..whole).unwrap_or_default(),
        _ => bytes,
    }
}

/// The level that a worker's own weaved has put before a line. It may be a lie; the worker's name stands behind it.
fn level_of(line: &[u8]) -> (Level, &[u8]) {
    let levels = [
        (b"ERROR ", Level::Error),
        (b"WARN  ", Level::Warn),
        (b"INFO  ", Level::Info),
        (b"DEBUG ", Level::Debug),
        (b"TRACE ", Level::Trace),
    ];
    let found = levels.iter().find_map(|(name, level)| Some((*level, line.strip_prefix(*name)?)));
    found.unwrap_or((Level::Info, line))
}

/// Bytes that may be passed on.
#[derive(Debug)]
struct Allowance {
    /// Less than none if lines became longer than they came.
    left: i64,
    /// When it has grown last.
    at: Option<Instant>,
}

impl Allowance {
    fn grow(&mut self, now: Instant) {
        let since = *self.at.get_or_insert(now);
        let (most, passed) = (time_for(BURST - self.left), now.saturating_duration_since(since));
        if passed >= most {
            (self.left, self.at) = (BURST, Some(now));
            return;
        }
        // It is less than what `most` is for. What is less than a byte counts the next time.
        let grown =
            i64::try_from(passed.as_nanos() * RATE.unsigned_abs() as u128 / 1_000_000_000).unwrap_or(0);
        self.left += grown;
        self.at = Some(since + time_for(grown));
    }

    fn take(&mut self, n: usize) -> bool {
        let n = i64::try_from(n).unwrap_or(i64::MAX);
        let is_there = self.left >= n;
        self.left -= if is_there { n } else { 0 };
        is_there
    }

    /// So much more was passed on than was taken.
    fn owe(&mut self, n: usize) {
        self.left = self.left.saturating_sub_unsigned(n as u64);
    }

    /// When a second's worth will be there, if nothing is taken until then. During a flood there never is.
    fn calm_at(&self) -> Option<Instant> {
        Some(self.at? + time_for(RATE - self.left))
    }
}

/// How long it takes until so many bytes may be written.
fn time_for(bytes: i64) -> Duration {
    let nanos = u64::try_from(bytes).unwrap_or(0).saturating_mul(1_000_000_000);
    Duration::from_nanos(nanos.div_ceil(RATE.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_a_word_at_the_beginning() {
        assert_eq!(level_of(b"WARN  x"), (Level::Warn, &b"x"[..]));
        assert_eq!(level_of(b"ERROR x"), (Level::Error, &b"x"[..]));
        for line in [&b"WARN x"[..], b" WARN  x", b"<3>x", b"ERROR", b"ERRORS x", b""] {
            assert_eq!(level_of(line), (Level::Info, line));
        }
    }

    #[test]
    fn what_was_cut_ends_with_a_character() {
        let text = "x🐈".as_bytes();
        assert_eq!(whole_characters(text), text);
        for cut in 2..5 {
            assert_eq!(whole_characters(&text[..cut]), b"x");
        }
        // That was no character from the beginning.
        assert_eq!(whole_characters(b"x\xff"), b"x\xff");
        assert_eq!(whole_characters(b""), b"");
    }

    #[test]
    fn the_allowance_is_a_burst_and_then_a_rate() {
        let start = Instant::now();
        let after = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let (burst, rate) = (usize::try_from(BURST).unwrap(), usize::try_from(RATE).unwrap());
        let mut allowance = Allowance { left: BURST, at: None };
        allowance.grow(start);
        assert!(allowance.take(burst) && !allowance.take(1));
        // However often it is asked, it grows no faster and no slower.
        for step in 1..=100_000 {
            allowance.grow(after(f64::from(step) / 1e5));
        }
        assert!(!allowance.take(rate + 1) && allowance.take(rate - 64), "{allowance:?}");
        // What lines became longer is paid for as well.
        allowance.owe(2 * rate);
        assert!(
            allowance.calm_at() > Some(after(3.9)) && allowance.calm_at() < Some(after(4.1)),
            "{allowance:?}"
        );
        allowance.grow(after(1e6));
        assert!(!allowance.take(burst + 1) && allowance.take(burst));
    }

    fn log() -> WorkerLog {
        WorkerLog::new(0).unwrap().0
    }

    #[test]
    fn the_last_line_is_known_whatever_was_dropped() {
        let dropped = |pieces: &[&[u8]]| {
            let mut log = log();
            pieces.iter().for_each(|piece| log.drop(piece));
            log.last_line()
        };
        assert_eq!(dropped(&[b"a\nb\n"]).unwrap(), "b");
        assert_eq!(dropped(&[b"a\nb"]).unwrap(), "b");
        assert_eq!(dropped(&[b"a\nb", b"c", b"d\n\n"]).unwrap(), "bcd");
        assert_eq!(dropped(&[b"a\nb", b"c\nd"]).unwrap(), "d");
        assert_eq!(dropped(&[b"a\n", b"\n"]).unwrap(), "a");
        assert_eq!(dropped(&[b"a\n", b"b"]).unwrap(), "b");
        assert_eq!(dropped(&[b"\n"]), None);
        let long = [b'x'; 5000];
        assert_eq!(dropped(&[b"a", &long]).unwrap().len(), LAST_LEN);
        assert_eq!(dropped(&[&long, b"\nthe end"]).unwrap(), "the end");
    }

    #[test]
    fn the_last_line_goes_on_where_dropping_ended() {
        let mut log = log();
        log.take(b"begun and ");
        log.drop(b"so\nan assert");
        log.take(b"ion failed\n");
        assert_eq!(log.last_line().unwrap(), "an assertion failed");
        log.take(b"\nnext");
        assert_eq!(log.last_line().unwrap(), "an assertion failed");
        log.pass_on_rest();
        assert_eq!(log.last_line().unwrap(), "next");
    }
}
