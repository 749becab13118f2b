//! Ctrl-C and SIGTERM: tidy up, then leave.

use std::io;
use std::process;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::exit::say;

/// From now on these signals run `tidy_up` and end the process with 128 and their number, as a
/// shell has it. The main thread may be waiting for the daemon for minutes; closing the connection
/// by ending is what tells the daemon.
pub(crate) fn watch(tidy_up: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            tidy_up();
            say(format_args!("interrupted"));
            process::exit(128 + signal);
        }
    })?;
    Ok(())
}
