//! What the gateway says while it runs.

use std::fmt;
use std::io::{self, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A line on standard error, if that takes one at once: whoever reads it no more must not stop the gateway.
pub(crate) fn log(line: fmt::Arguments<'_>) {
    let line = format!("weave: {line}\n");
    let stderr = io::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut ready, Some(&Timespec::default())).is_ok_and(|ready| ready > 0) {
        // A pipe that is ready has room for 4096 bytes, and lines are shorter. Otherwise there is nobody to tell.
        let _ = stderr.lock().write_all(line.as_bytes());
    }
}
