//! What is shown while the image is being made.
//!
//! The protocol's version 1 doesn't say how far the engine is, so it is the time that is shown, and the
//! [`Situation`] if somebody knows it: on a terminal in a line that moves, elsewhere in lines that become rarer.

use std::fmt::Write as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use weave_cli_base::console::{plain, say};
use weave_client::Progress;

/// How far what is waited for is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Far {
    /// A few words such as "step 3 of 28"; none if nobody knows.
    pub(crate) words: String,
    /// Of all that there is to do, how much is done.
    pub(crate) share: Option<(u64, u64)>,
}

/// How far it is just now, shared with whoever finds it out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Situation(Arc<Mutex<Far>>);

impl Situation {
    pub(crate) fn set(&self, far: Far) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = far;
    }

    fn get(&self) -> Far {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Shows that something happens, until it is dropped.
pub(crate) struct Waiting {
    way: Way,
    situation: Situation,
}

enum Way {
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
        let bar = ProgressBar::new_spinner();
        let way = match quiet {
            true => Way::Silent,
            // Standard error is no terminal, or one that can't move its cursor.
            false if bar.is_hidden() => Way::Lines { what: String::new(), lines: None },
            false => Way::Bar(bar),
        };
        Self { way, situation: Situation::default() }
    }

    /// Whether somebody sees it.
    pub(crate) const fn is_shown(&self) -> bool {
        !matches!(self.way, Way::Silent)
    }

    /// Where to say how far it is.
    pub(crate) const fn situation(&self) -> &Situation {
        &self.situation
    }

    /// From now on it is this that is waited for.
    pub(crate) fn wait_for(&mut self, next: String) {
        let next = plain(&next);
        match &mut self.way {
            Way::Silent => {}
            Way::Bar(bar) => {
                bar.unset_length();
                let situation = self.situation.clone();
                bar.set_style(style("{spinner} {msg}{situation}, {elapsed}").with_key(
                    "situation",
                    move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
                        // Nobody is told where it can't be written.
                        let _ = out.write_str(&on_a_line(&situation.get()));
                    },
                ));
                bar.set_message(next);
                bar.reset();
                bar.enable_steady_tick(Duration::from_millis(100));
            }
            Way::Lines { what, lines } => {
                *lines = None;
                *what = next;
            }
        }
    }

    /// Takes the line that moves away, to write where it stands.
    pub(crate) fn pause(&mut self) {
        match &mut self.way {
            Way::Silent => {}
            Way::Bar(bar) => bar.finish_and_clear(),
            Way::Lines { lines, .. } => *lines = None,
        }
    }

    pub(crate) fn show(&mut self, progress: Progress) {
        match (&mut self.way, progress) {
            (Way::Bar(bar), Progress::Received { bytes, of }) => {
                if bar.length().is_none() {
                    bar.set_style(style("{msg}, {elapsed} [{bar:24}] {bytes}/{total_bytes}"));
                    bar.set_length(of as u64);
                }
                bar.set_position(bytes as u64);
            }
            (Way::Lines { what, lines }, Progress::Sent) if lines.is_none() => {
                *lines = Some(Lines::start(what, self.situation.clone()));
            }
            _ => {}
        }
    }

    /// Something that takes the line that moves away, for whoever ends the process elsewhere.
    pub(crate) fn clear(&self) -> impl FnOnce() + Send + 'static {
        let bar = if let Way::Bar(bar) = &self.way { Some(bar.clone()) } else { None };
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

/// What a line that moves says of it, with a bar.
fn on_a_line(far: &Far) -> String {
    const WIDTH: u64 = 24;

    let mut line = String::new();
    // Writing to a `String` doesn't fail.
    if !far.words.is_empty() {
        let _ = write!(line, ", {}", far.words);
    }
    if let Some((done, of)) = far.share.filter(|(_, of)| *of > 0) {
        let filled = done.min(of).saturating_mul(WIDTH) / of;
        let bar: String = (0..WIDTH).map(|at| if at < filled { '#' } else { '-' }).collect();
        let _ = write!(line, " [{bar}]");
    }
    line
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
    fn start(what: &str, situation: Situation) -> Self {
        say(format_args!("{what}"));
        let (stop, stopped) = channel();
        let wait = move || {
            wait(&stopped, FIRST_LINE, |time| {
                let Far { words, .. } = situation.get();
                let words = if words.is_empty() { "waiting" } else { &words };
                say(format_args!("{words}, {} s", time.as_secs()));
            });
        };
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
    fn steps_have_a_bar() {
        let line = |words: &str, share| on_a_line(&Far { words: words.to_owned(), share });
        assert_eq!(line("", None), "");
        assert_eq!(line("waiting", None), ", waiting");
        assert_eq!(line("step 7 of 28", Some((7, 28))), ", step 7 of 28 [######------------------]");
        assert_eq!(line("", Some((9, 3))), " [########################]");
        assert_eq!(line("", Some((0, 0))), "");
    }

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
