//! Log lines on standard error: time, level, message. A terminal's user needs no time, and the journal has its own; under
//! systemd the level is the number by which it sorts.
//!
//! A line is one write, and has no character that [may not be shown](is_shown), whatever a message quotes.
//! Logging allocates nothing. A collector that reads no more must not stop the daemon: a line that would
//! have to wait is dropped, and the next one that finds room says how many were. Lines of workers are
//! lines of the daemon's like all others ([`worker_log`](crate::worker_log)).

use std::fmt::{self, Write as _};
use std::io::{IsTerminal, StderrLock, Write as _};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use humantime::format_rfc3339_millis;
use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use weave_core::text::is_shown;

/// Standard error is the journal's.
static JOURNAL: AtomicBool = AtomicBool::new(false);
/// Lines begin with the time.
static TIMES: AtomicBool = AtomicBool::new(false);
/// Prompts may be logged.
static PROMPTS: AtomicBool = AtomicBool::new(false);

/// Lines that were dropped, and how many of them the log tells of.
static DROPPED: AtomicU64 = AtomicU64::new(0);
static TOLD: AtomicU64 = AtomicU64::new(0);

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut stderr = std::io::stderr().lock();
        if !takes_a_line(&stderr) {
            DROPPED.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let dropped = DROPPED.load(Ordering::Relaxed);
        let untold = dropped - TOLD.swap(dropped, Ordering::Relaxed);
        if untold > 0 {
            put(&mut stderr, Level::Warn, format_args!("nobody read the log: {untold} lines were dropped"));
        }
        put(&mut stderr, record.level(), *record.args());
    }

    fn flush(&self) {}
}

fn put(stderr: &mut StderrLock<'_>, level: Level, message: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; LINE_LEN], len: 0 };
    // What doesn't fit is left away, see there.
    let _ = if JOURNAL.load(Ordering::Relaxed) {
        write!(line, "<{}>{message}", priority(level))
    } else if TIMES.load(Ordering::Relaxed) {
        write!(line, "{} {level:<5} {message}", format_rfc3339_millis(SystemTime::now()))
    } else {
        write!(line, "{level:<5} {message}")
    };
    // A log that can't be written is no reason to stop serving.
    let _ = stderr.write_all(line.ended());
}

/// Whether a line can be written without waiting. A pipe says so only while a page of it is free.
fn takes_a_line(stderr: &StderrLock<'_>) -> bool {
    let mut polled = [PollFd::new(stderr, PollFlags::OUT)];
    // If that can't be told, writing will tell.
    poll(&mut polled, Some(&Timespec::default())) != Ok(0)
}

/// As syslog counts.
const fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Less than the page of a pipe that is known to be free.
const LINE_LEN: usize = 2048;
/// What ends a line that was cut off.
const CUT: &str = "…";

/// A line in the making. The end of one that is too long is left away.
struct Line {
    bytes: [u8; LINE_LEN],
    len: usize,
}

impl Line {
    /// The line, with its end.
    fn ended(&mut self) -> &[u8] {
        self.bytes[self.len] = b'\n';
        &self.bytes[..=self.len]
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            let char = if is_shown(char) { char } else { ' ' };
            let room = LINE_LEN - 1 - CUT.len();
            if self.len + char.len_utf8() > room {
                self.bytes[self.len..self.len + CUT.len()].copy_from_slice(CUT.as_bytes());
                self.len += CUT.len();
                return Err(fmt::Error);
            }
            self.len += char.encode_utf8(&mut self.bytes[self.len..]).len();
        }
        Ok(())
    }
}

/// Starts logging. Lines begin with the time unless a terminal or the journal shows them.
pub fn start(level: LevelFilter) {
    start_with(level, !std::io::stderr().is_terminal());
}

/// Starts logging where whoever reads the lines adds the time, as a daemon does for its workers.
pub fn start_without_times(level: LevelFilter) {
    start_with(level, false);
}

fn start_with(level: LevelFilter, times: bool) {
    JOURNAL.store(is_journal(), Ordering::Relaxed);
    TIMES.store(times, Ordering::Relaxed);
    // Fails if a logger is set already: then it is this one.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(level);
}

/// Lines that were dropped because nobody read the log.
#[must_use]
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Whether prompts may be logged. They may not until somebody says so.
pub fn show_prompts(prompts: bool) {
    PROMPTS.store(prompts, Ordering::Relaxed);
}

/// Whether prompts may be logged, and with them the engine's lines that repeat them.
#[must_use]
pub fn shows_prompts() -> bool {
    PROMPTS.load(Ordering::Relaxed)
}

/// Whether standard error is the very stream that systemd has connected to its journal. A program
/// in between that has redirected it reads plain lines.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(std::io::stderr().as_fd())
        .is_ok_and(|file| stream == format!("{}:{}", file.st_dev, file.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        let mut line = Line { bytes: [0; LINE_LEN], len: 0 };
        let _ = write!(line, "INFO  {text}");
        String::from_utf8(line.ended().to_vec()).unwrap()
    }

    #[test]
    fn a_line_is_one_line_whatever_it_quotes() {
        assert_eq!(line("a\nb\u{1b}[2J\u{85}c\r"), "INFO  a b [2J c \n");
        assert_eq!(line("a\u{202e}b\u{2028}c\u{feff}d"), "INFO  a b c d\n");
        assert_eq!(line(""), "INFO  \n");
    }

    #[test]
    fn what_is_too_long_is_cut_at_a_character() {
        for char in ["x", "é", "€", "😀"] {
            let line = line(&char.repeat(LINE_LEN));
            assert!(line.len() <= LINE_LEN && line.len() > LINE_LEN - 8, "{}", line.len());
            assert!(line.ends_with(&format!("{char}…\n")));
        }
    }
}
