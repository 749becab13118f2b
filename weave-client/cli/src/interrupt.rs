//! Ctrl-C and other signals that end a program: tidy up, then leave.

use std::io;
use std::process;
use std::thread;

use weave_cli_base::console::say;

/// What is said of an interrupted command whose request the daemon has.
pub(crate) const ASKED: &str =
    "; the daemon stops drawing for it, unless its setting abandoned is \"finish\"";

/// From now on these signals run `tidy_up`, which says what becomes of the work, and end the process with 128 and their
/// number, as a shell has it. The main thread may be waiting for the daemon for minutes; closing the connection by ending is
/// what tells the daemon.
pub(crate) fn watch(tidy_up: impl FnOnce() -> &'static str + Send + 'static) -> io::Result<()> {
    let next = signals()?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = next() {
            let fate = tidy_up();
            say(format_args!("interrupted{fate}"));
            process::exit(128 + signal);
        }
    })?;
    Ok(())
}

/// Gives what waits for the first signal.
#[cfg(unix)]
fn signals() -> io::Result<impl FnOnce() -> Option<i32>> {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU, SIGXFSZ};

    // A file that is larger than it may be is an error of writing like others.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    let mut ending = vec![SIGINT, SIGTERM, SIGQUIT, SIGXCPU];
    // nohup means it.
    if !is_ignored(SIGHUP) {
        ending.push(SIGHUP);
    }
    let mut signals = signal_hook::iterator::Signals::new(ending)?;
    Ok(move || signals.forever().next())
}

/// Whether whoever has started the program wants it to go on. Where that can't be asked, nobody does.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

/// Elsewhere a signal can only leave a mark, which has to be looked for.
#[cfg(not(unix))]
fn signals() -> io::Result<impl FnOnce() -> Option<i32>> {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use signal_hook::consts::{SIGINT, SIGTERM};

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
