//! What the gateway says while it runs. Lines begin with the time unless a terminal or the journal shows them, as
//! weaved's do.

use std::env;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::time::SystemTime;

use humantime::format_rfc3339_millis;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use weave_cli_base::console::plain;

/// A line on standard error, if that takes one at once: whoever reads it no more must not stop the gateway.
pub(crate) fn log(line: fmt::Arguments<'_>) {
    let line = one_line(&line.to_string(), LACKS_TIMES.then(SystemTime::now));
    let stderr = io::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut ready, Some(&Timespec::default())).is_ok_and(|ready| ready > 0) {
        // A pipe that is ready has room for 4096 bytes, and lines are shorter. Otherwise there is nobody to tell.
        let _ = stderr.lock().write_all(line.as_bytes());
    }
}

/// Whether nobody else adds the time to what stands on standard error.
static LACKS_TIMES: LazyLock<bool> = LazyLock::new(|| {
    let is_journal = || {
        let file = fstat(io::stderr()).ok()?;
        Some(env::var("JOURNAL_STREAM").ok()? == format!("{}:{}", file.st_dev, file.st_ino))
    };
    !io::stderr().is_terminal() && is_journal() != Some(true)
});

/// One line, whatever a client or a daemon has worded in it.
fn one_line(line: &str, time: Option<SystemTime>) -> String {
    let time = time.map(|time| format!("{} ", format_rfc3339_millis(time))).unwrap_or_default();
    format!("{time}weave: {}\n", plain(line).replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_nothing_that_a_terminal_obeys() {
        let hostile = "a\nweave: b\u{1b}[2J\u{202e}";
        assert_eq!(one_line(hostile, None), "weave: a\\nweave: b\\u{1b}[2J\\u{202e}\n");
        let line = one_line("a", Some(SystemTime::UNIX_EPOCH));
        assert_eq!(line, "1970-01-01T00:00:00.000Z weave: a\n");
    }
}
