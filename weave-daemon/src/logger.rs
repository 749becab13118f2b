//! Log lines on standard error: level, message. Whoever collects them adds the time.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // A log that can't be written is no reason to stop serving.
            let _ = writeln!(std::io::stderr().lock(), "{:<5} {}", record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Writes bytes that somebody else has made into lines.
pub fn pass_on(bytes: &[u8]) {
    let _ = std::io::stderr().lock().write_all(bytes);
}

/// Starts logging. Later calls only change the level.
pub fn start(level: LevelFilter) {
    // Fails if a logger is set already: then it is this one.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(level);
}
