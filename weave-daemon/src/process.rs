//! Starting, watching and ending workers.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use crate::config::{Config, Isolation};
use crate::router::Death;
use crate::{systemd, worker};

/// A worker that was started.
#[derive(Debug)]
pub enum Worker {
    /// A child process.
    Process(Child),
    /// A thread of this process. It can't be ended from outside.
    Thread,
}

impl Worker {
    /// Starts a worker and gives our end of the stream to it, in blocking mode. `program` is this
    /// very program, for a worker of its own process.
    ///
    /// # Errors
    /// There are no more descriptors, processes or threads to be had.
    pub fn start(program: &Path, config: &Config) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let worker = match config.isolation {
            Isolation::Process => {
                let mut command = Command::new(program);
                for variable in systemd::VARIABLES {
                    command.env_remove(variable);
                }
                let child = command
                    .arg("worker")
                    // What is set here is all there is: the file and the environment were read.
                    .arg("--no-config")
                    .args(config.to_flags())
                    // ggml would have a debugger look at a failed assertion, for seconds.
                    .env("GGML_NO_BACKTRACE", "1")
                    .stdin(Stdio::from(OwnedFd::from(theirs)))
                    // Ctrl-C in the daemon's terminal is for the daemon, which lets us finish.
                    .process_group(0)
                    .spawn()?;
                Self::Process(child)
            }
            Isolation::Thread => {
                let config = config.clone();
                thread::Builder::new().name("worker".to_owned()).spawn(move || {
                    if let Err(error) = worker::run(&config, theirs) {
                        log::error!("worker: {error}");
                    }
                })?;
                Self::Thread
            }
        };
        Ok((worker, ours))
    }

    /// Its process, where it has one of its own.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        match self {
            Self::Process(child) => Some(child.id()),
            Self::Thread => None,
        }
    }

    /// Ends the worker at once, as far as that is possible.
    pub fn kill(&mut self) {
        if let Self::Process(child) = self {
            // Fails only for a process that is gone already.
            let _ = child.kill();
        }
    }

    /// How the worker ended, if it has. For a thread the end of its stream is all there is to see.
    pub fn ended(&mut self) -> Option<Death> {
        match self {
            Self::Process(child) => match child.try_wait() {
                Ok(None) => None,
                Ok(Some(status)) => Some(death(status)),
                // Somebody else has waited for it: gone, whatever the reason.
                Err(_) => Some(Death::Exited(-1)),
            },
            Self::Thread => Some(Death::Thread),
        }
    }
}

/// No worker outlives the daemon.
impl Drop for Worker {
    fn drop(&mut self) {
        if let Self::Process(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn death(status: ExitStatus) -> Death {
    match (status.code(), status.signal()) {
        (Some(code), _) => Death::Exited(code),
        (None, Some(signal)) => Death::Killed(signal),
        (None, None) => Death::Exited(-1),
    }
}
