//! The providers in the order in which they are asked.

use std::fmt;
use std::time::Duration;

use weave_cli_base::exit::{Exit, Failure};
use weave_cli_base::image::{Made, ProviderName};
use weave_client::{Error, ErrorKind, Progress, Stopper};

use super::ask::{Ask, Cause};
use super::cloud::Cloud;
use super::local::{Local, OnBusy};

/// Longest wait for a daemon that is only asked whether it is there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Providers, in the order in which they are asked.
#[derive(Debug)]
pub struct Providers {
    pub(super) list: Vec<Provider>,
}

#[derive(Debug)]
pub(super) enum Provider {
    Local(Local),
    Cloud(Box<Cloud>),
}

impl Provider {
    const fn name(&self) -> ProviderName {
        match self {
            Self::Local(_) => ProviderName::Local,
            Self::Cloud(cloud) => cloud.name(),
        }
    }
}

impl Providers {
    /// Whether the daemon answers. `None`: it isn't among them.
    pub(crate) fn ask_daemon(&self) -> Option<Result<(), Error>> {
        self.list.iter().find_map(|provider| match provider {
            Provider::Local(local) => {
                let mut client = local.daemon.client();
                client.set_timeout(Some(PATIENCE));
                Some(client.ping().map(drop))
            }
            Provider::Cloud(_) => None,
        })
    }

    /// Whether one of them would hear a request now. A cloud isn't asked.
    pub(crate) fn are_there(&self) -> bool {
        let has_cloud = self.list.iter().any(|provider| matches!(provider, Provider::Cloud(_)));
        has_cloud
            || self.ask_daemon().is_some_and(|answer| match answer {
                Ok(()) => true,
                Err(error) => error.kind() == ErrorKind::Busy,
            })
    }

    /// Asks for one image: the first provider that can makes it.
    ///
    /// `say` is told of each that could not when there is another one. A cloud's call isn't ended by
    /// `stopper`, but no further one begins.
    ///
    /// # Errors
    /// None of them has made it, or one has refused it.
    pub fn make(
        &self,
        ask: &Ask,
        stopper: &Stopper,
        mut progress: impl FnMut(Progress),
        mut say: impl FnMut(&Attempt),
    ) -> Result<Made, Failed> {
        let mut attempts = Vec::new();
        for (at, provider) in self.list.iter().enumerate() {
            let is_last = at + 1 == self.list.len();
            let made = match provider {
                Provider::Local(local) => {
                    // Who can go nowhere else hears of it at once.
                    let on_busy = if is_last { OnBusy::Fail } else { OnBusy::Wait };
                    local.make(ask, stopper, on_busy, &mut progress)
                }
                Provider::Cloud(cloud) => cloud.make(ask),
            };
            let attempt = match made {
                Ok(made) => return Ok(made),
                Err(cause) => Attempt { by: provider.name(), cause },
            };
            let is_over = attempt.cause.is_refusal() || stopper.is_stopped();
            if !is_last && !is_over {
                say(&attempt);
            }
            attempts.push(attempt);
            if is_over {
                break;
            }
        }
        Err(Failed { attempts })
    }
}

/// What came of asking one provider.
#[derive(Debug)]
pub struct Attempt {
    /// Who was asked.
    pub by: ProviderName,
    /// Why there is no image.
    pub cause: Cause,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.by.as_str(), self.cause)
    }
}

/// What came of asking all of them that could be asked.
#[derive(Debug)]
pub struct Failed {
    /// In order; at least one.
    attempts: Vec<Attempt>,
}

impl Failed {
    /// What gives most hope, unless somebody has refused the request. `None`: nobody was asked.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        let hope = |kind: &ErrorKind| match kind {
            ErrorKind::Invalid | ErrorKind::Refused => 0,
            ErrorKind::Busy => 1,
            ErrorKind::ShuttingDown => 2,
            ErrorKind::HungUp => 3,
            ErrorKind::Unreachable => 4,
            ErrorKind::Timeout => 5,
            ErrorKind::Failed => 6,
            ErrorKind::NotWeave => 7,
            ErrorKind::Stranger => 8,
            ErrorKind::Local => 9,
        };
        self.attempts.iter().filter_map(|attempt| attempt.cause.kind()).min_by_key(hope)
    }

    /// What the daemon says, if nobody else was asked.
    #[must_use]
    pub fn local(&self) -> Option<&Error> {
        match self.attempts.as_slice() {
            [Attempt { cause: Cause::Local(error), .. }] => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = self.local() {
            return error.fmt(f);
        }
        f.write_str("no image was made")?;
        for (at, attempt) in self.attempts.iter().enumerate() {
            write!(f, "{} {attempt}", if at == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

impl From<Failed> for Failure {
    fn from(mut failed: Failed) -> Self {
        if failed.local().is_some()
            && let Some(Attempt { cause: Cause::Local(error), .. }) = failed.attempts.pop()
        {
            return error.into();
        }
        // Nobody could be asked for this: it is what was asked for that has to change.
        let exit = failed.kind().map_or(Exit::Usage, Exit::from);
        Self::new(exit, failed)
    }
}
