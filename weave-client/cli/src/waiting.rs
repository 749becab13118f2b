//! What is shown while the image is being made.
//!
//! The protocol's version 1 doesn't say how far the engine is, so it is the time that is shown: on
//! a terminal in a line that moves, elsewhere in lines that become rarer.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use weave_cli_base::console::{plain, say};
use weave_client::Progress;

/// Shows that something happens, until it is dropped.
pub(crate) enum Waiting {
    Silent,
    Bar(ProgressBar),
    /// The lines begin when the request is out: until then there is nothing to wait for.
    Lines {
        what: String,
        lines: Option<Lines>,
    },
}

impl Waiting {
    pub(crate) fn start(quiet: bool) -> Self {
        if quiet {
            return Self::Silent;
        }
        let bar = ProgressBar::new_spinner();
        // Standard error is no terminal, or one that can't move its cursor.
        if bar.is_hidden() {
            return Self::Lines { what: String::new(), lines: None };
        }
        Self::Bar(bar)
    }

    /// From now on it is this that is waited for.
    pub(crate) fn wait_for(&mut self, next: String) {
        let next = plain(&next);
        match self {
            Self::Silent => {}
            Self::Bar(bar) => {
                bar.unset_length();
                bar.set_style(style("{spinner} {msg}, {elapsed}"));
                bar.set_message(next);
                bar.reset();
                bar.enable_steady_tick(Duration::from_millis(100));
            }
            Self::Lines { what, lines } => {
                *lines = None;
                *what = next;
            }
        }
    }

    /// Takes the line that moves away, to write where it stands.
    pub(crate) fn pause(&mut self) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => bar.finish_and_clear(),
            Self::Lines { lines, .. } => *lines = None,
        }
    }

    pub(crate) fn show(&mut self, progress: Progress) {
        match (self, progress) {
            (Self::Bar(bar), Progress::Received { bytes, of }) => {
                if bar.length().is_none() {
                    bar.set_style(style("{msg}, {elapsed} [{bar:24}] {bytes}/{total_bytes}"));
                    bar.set_length(of as u64);
                }
                bar.set_position(bytes as u64);
            }
            (Self::Lines { what, lines }, Progress::Sent) if lines.is_none() => {
                *lines = Some(Lines::start(what));
            }
            _ => {}
        }
    }

    /// Something that takes the line that moves away, for whoever ends the process elsewhere.
    pub(crate) fn clear(&self) -> impl FnOnce() + Send + 'static {
        let bar = if let Self::Bar(bar) = self { Some(bar.clone()) } else { None };
        move || {
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.clear()();
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates above are sound, and a wrong one is no reason to fail.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// A thread that writes lines until its owner is dropped.
pub(crate) struct Lines {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Lines {
    fn start(what: &str) -> Self {
        say(format_args!("{what}"));
        let (stop, stopped) = channel();
        let wait =
            move || wait(&stopped, FIRST_LINE, |time| say(format_args!("waiting, {} s", time.as_secs())));
        // Without the thread there are just no lines.
        let thread = thread::Builder::new().name("waiting".into()).spawn(wait).ok();
        Self { stop: Some(stop), thread }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It can only have ended.
            let _ = thread.join();
        }
    }
}

const FIRST_LINE: Duration = Duration::from_secs(5);

/// Calls `line` after `first`, then each time the time has doubled, but at least once in twelve
/// times `first`: after 5 s, 10, 20, 40, 80, 140, 200.
fn wait(stopped: &Receiver<()>, first: Duration, mut line: impl FnMut(Duration)) {
    let start = Instant::now();
    let mut next = first;
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(next.saturating_sub(start.elapsed())) {
        line(next);
        next += next.min(first * 12);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_rarer_and_end_when_told() {
        let (stop, stopped) = channel::<()>();
        let mut stop = Some(stop);
        let mut times = Vec::new();
        wait(&stopped, Duration::from_millis(1), |time| {
            times.push(time.as_millis());
            if times.len() == 7 {
                stop = None;
            }
        });
        assert_eq!(times, [1, 2, 4, 8, 16, 28, 40]);
    }
}
