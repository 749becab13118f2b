//! Ctrl-C and SIGTERM: tidy up, then leave.

use std::io;
use std::process;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use weave_cli_base::console::say;

/// From now on these signals run `tidy_up` and end the process with 128 and their number, as a
/// shell has it. The main thread may be waiting for the daemon for minutes; closing the connection
/// by ending is what tells the daemon.
pub(crate) fn watch(tidy_up: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let next = signals()?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = next() {
            tidy_up();
            say(format_args!("interrupted"));
            process::exit(128 + signal);
        }
    })?;
    Ok(())
}

/// Gives what waits for the first signal.
#[cfg(unix)]
fn signals() -> io::Result<impl FnOnce() -> Option<i32>> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    Ok(move || signals.forever().next())
}

/// Elsewhere a signal can only leave a mark, which has to be looked for.
#[cfg(not(unix))]
fn signals() -> io::Result<impl FnOnce() -> Option<i32>> {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    let came = Arc::new(AtomicUsize::new(0));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_usize(signal, Arc::clone(&came), signal as usize)?;
    }
    Ok(move || {
        loop {
            match i32::try_from(came.load(Ordering::Relaxed)) {
                Ok(0) => thread::sleep(Duration::from_millis(50)),
                signal => return signal.ok(),
            }
        }
    })
}
