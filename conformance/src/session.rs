//! A run's results, kept so that they are told whatever ends the run: its last case, a signal, an error of the
//! suite.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Instant;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXFSZ};
use weave_conformance::case::Outcome;
use weave_conformance::report::{EndedBy, Report};
use weave_conformance::testee::end_all;

/// Standard output, whose reader may have gone: that is no error, but a full disk is one.
pub(crate) struct Console {
    is_gone: bool,
    error: Option<io::Error>,
}

impl Console {
    pub(crate) const fn new() -> Self {
        Self { is_gone: false, error: None }
    }

    pub(crate) fn say(&mut self, text: &str) {
        if self.is_gone {
            return;
        }
        let mut out = io::stdout().lock();
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            self.is_gone = true;
            self.error = Some(error).filter(|error| error.kind() != io::ErrorKind::BrokenPipe);
        }
    }

    /// # Errors
    /// Something could not be written.
    pub(crate) fn end(self) -> Result<(), String> {
        self.error.map_or(Ok(()), |error| Err(format!("standard output: {error}")))
    }
}

/// A file for a report, opened before there is one.
struct Target {
    path: PathBuf,
    file: File,
    write: fn(&Report) -> io::Result<String>,
}

/// The results so far, and where they go.
pub(crate) struct Session {
    report: Report,
    began: Instant,
    verbose: bool,
    colour: bool,
    console: Console,
    targets: Vec<Target>,
}

impl Session {
    /// Opens the files for reports.
    ///
    /// # Errors
    /// One can't be opened.
    pub(crate) fn new(
        report: Report,
        verbose: bool,
        json: Option<&Path>,
        junit: Option<&Path>,
    ) -> Result<Self, String> {
        let as_json =
            |report: &Report| serde_json::to_string_pretty(&report.json()).map_err(io::Error::other);
        let mut targets = Vec::new();
        for (path, write) in [(json, as_json as fn(&Report) -> _), (junit, Report::junit)] {
            let Some(path) = path else { continue };
            let file = File::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
            targets.push(Target { path: path.to_owned(), file, write });
        }
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Ok(Self { report, began: Instant::now(), verbose, colour, console: Console::new(), targets })
    }

    /// Takes the result of a case, and tells it.
    fn push(&mut self, outcome: Outcome) {
        self.console.say(&Report::lines(&outcome, self.verbose, self.colour));
        self.report.push(outcome);
    }

    /// Tells the end, and writes the reports. Gives the exit status.
    fn end(mut self) -> u8 {
        self.report.seconds = self.began.elapsed().as_secs_f64();
        self.console.say(&self.report.summary(self.colour));
        let mut problems = Vec::new();
        for mut target in self.targets {
            let text = (target.write)(&self.report);
            let written = text.and_then(|text| target.file.write_all(text.as_bytes()));
            problems.extend(written.err().map(|error| format!("{}: {error}", target.path.display())));
        }
        problems.extend(self.console.end().err());
        for problem in &problems {
            let _ = writeln!(io::stderr(), "weave-conform: {problem}");
        }
        if problems.is_empty() { self.report.exit_status() } else { 3 }
    }
}

/// A session that a signal may end at any time. Whoever takes it out ends it; nobody else tells anything then.
#[derive(Clone)]
pub(crate) struct Shared {
    session: Arc<Mutex<Option<Session>>>,
    /// A signal came: what happens to the tested program from then on is its doing.
    is_over: Arc<AtomicBool>,
}

impl Shared {
    /// From now on a signal that ends programs ends the session and this program.
    ///
    /// # Errors
    /// The system's own.
    pub(crate) fn new(session: Session) -> io::Result<Self> {
        let shared = Self { session: Arc::new(Mutex::new(Some(session))), is_over: Arc::default() };
        shared.watch_signals()?;
        shared.watch_panics();
        Ok(shared)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Session>> {
        if self.is_over.load(Ordering::SeqCst) {
            wait_for_the_end();
        }
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the result of a case.
    pub(crate) fn push(&self, outcome: Outcome) {
        match self.lock().as_mut() {
            Some(session) => session.push(outcome),
            None => wait_for_the_end(),
        }
    }

    /// Ends the session when all cases have been run. Gives the exit status.
    pub(crate) fn end(&self) -> u8 {
        let session = self.lock().take();
        session.map_or_else(|| wait_for_the_end(), Session::end)
    }

    fn watch_signals(&self) -> io::Result<()> {
        // A report that is larger than files may be is an error of writing like others.
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        let mut ending = vec![(SIGINT, "SIGINT"), (SIGQUIT, "SIGQUIT"), (SIGTERM, "SIGTERM")];
        // nohup means it.
        if !is_ignored(SIGHUP) {
            ending.push((SIGHUP, "SIGHUP"));
        }
        // Whoever asks twice doesn't want to wait for reports.
        for (signal, _) in &ending {
            let again = Arc::clone(&self.is_over);
            signal_hook::flag::register_conditional_shutdown(*signal, 128 + *signal, again)?;
        }
        let mut signals = signal_hook::iterator::Signals::new(ending.iter().map(|(signal, _)| *signal))?;
        let shared = self.clone();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let Some(came) = signals.forever().next() else { return };
            shared.is_over.store(true, Ordering::SeqCst);
            // Before the session: whoever has it may wait for a reader of standard output.
            end_all();
            let name =
                ending.iter().find(|(signal, _)| *signal == came).map_or("a signal", |(_, name)| *name);
            let number = u8::try_from(came).unwrap_or(0);
            // If there is none, its end is being told already.
            let session = shared.session.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(session) = session {
                end_early(session, EndedBy::Signal(name, number));
            }
        })?;
        Ok(())
    }

    /// A mistake in the suite's own code must not leave anything behind.
    fn watch_panics(&self) {
        let tell = std::panic::take_hook();
        let shared = self.clone();
        std::panic::set_hook(Box::new(move |info| {
            tell(info);
            end_all();
            let session = match shared.session.try_lock() {
                Ok(mut session) => session.take(),
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().take(),
                Err(TryLockError::WouldBlock) => None,
            };
            match session {
                Some(session) => end_early(session, EndedBy::Harness),
                None => process::exit(3),
            }
        }));
    }
}

/// For who has nothing to tell any more, since another thread is about to end this program.
fn wait_for_the_end() -> ! {
    loop {
        thread::park();
    }
}

fn end_early(mut session: Session, by: EndedBy) -> ! {
    session.report.ended_by = Some(by);
    process::exit(session.end().into())
}

/// Whether whoever has started the program wants it to go on. Where that can't be asked, nobody does.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}
