//! What the gateway says while it runs.

use std::fmt;
use std::io::{self, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use weave_cli_base::console::plain;

/// A line on standard error, if that takes one at once: whoever reads it no more must not stop the gateway.
pub(crate) fn log(line: fmt::Arguments<'_>) {
    let line = one_line(&line.to_string());
    let stderr = io::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut ready, Some(&Timespec::default())).is_ok_and(|ready| ready > 0) {
        // A pipe that is ready has room for 4096 bytes, and lines are shorter. Otherwise there is nobody to tell.
        let _ = stderr.lock().write_all(line.as_bytes());
    }
}

/// One line, whatever a client or a daemon has worded in it.
fn one_line(line: &str) -> String {
    format!("weave: {}\n", plain(line).replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_nothing_that_a_terminal_obeys() {
        assert_eq!(one_line("a\nweave: b\u{1b}[2J\u{202e}"), "weave: a\\nweave: b\\u{1b}[2J\\u{202e}\n");
    }
}
