//! Log lines on standard error: level, message. Whoever collects them adds the time. Under systemd
//! the level is the number by which the journal sorts.
//!
//! A line is one write, so that those of the daemon and of its workers don't mix, and it has no
//! control characters, whatever a message quotes. Logging allocates nothing.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Standard error is the journal's.
static JOURNAL: AtomicBool = AtomicBool::new(false);
/// Prompts may be logged.
static PROMPTS: AtomicBool = AtomicBool::new(false);

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = Line { bytes: [0; LINE_LEN], len: 0 };
        // What doesn't fit is left away, see there.
        let _ = if JOURNAL.load(Ordering::Relaxed) {
            write!(line, "<{}>{}", priority(record.level()), record.args())
        } else {
            write!(line, "{:<5} {}", record.level(), record.args())
        };
        // A log that can't be written is no reason to stop serving.
        let _ = std::io::stderr().lock().write_all(line.ended());
    }

    fn flush(&self) {}
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

/// What a pipe takes at once is twice that.
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
            let char = if char.is_control() { ' ' } else { char };
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

/// Starts logging. Later calls only change the level.
pub fn start(level: LevelFilter) {
    JOURNAL.store(is_journal(), Ordering::Relaxed);
    // Fails if a logger is set already: then it is this one.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(level);
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
