//! Who makes an image: the daemon, and clouds that may stand in for it.
//!
//! They are asked in the order of a list, which has only the daemon unless somebody says otherwise. The
//! next one is asked only if one can't be reached, is busy for too long, or fails. A request that one of
//! them has refused is over: what is wrong with it is wrong everywhere, and whoever asked has to know.

#[cfg(feature = "gateway")]
mod cloud;
mod local;
#[cfg(feature = "gateway")]
mod settings;

use std::fmt;

use weave_client::{Channels, ErrorKind, Image, Params, Progress, Stopper};

use self::local::Local;
use crate::exit::{Exit, Failure};

#[cfg(feature = "gateway")]
pub(crate) use settings::Settings;

/// A provider's name, as the list has it and as results tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Name {
    /// The daemon.
    Local,
    /// OpenAI, or something that speaks as it does.
    Openai,
    /// Azure OpenAI.
    Azure,
}

impl Name {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Openai => "openai",
            Self::Azure => "azure",
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) prompt: String,
    /// Checked. A daemon takes all of them.
    pub(crate) params: Params,
    /// Which of them somebody has named. A cloud has defaults of its own for the others.
    pub(crate) named: Named,
}

/// See [`Ask::named`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Named {
    pub(crate) size: bool,
    pub(crate) steps: bool,
    pub(crate) cfg: bool,
    pub(crate) seed: bool,
}

/// An image.
pub(crate) struct Made {
    pub(crate) by: Name,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) channels: Channels,
    /// Rows from the top, pixels from the left, one byte a channel, no padding.
    pub(crate) pixels: Vec<u8>,
    pub(crate) how: How,
}

impl Made {
    /// What the daemon has made of `params`.
    pub(crate) fn local(image: Image, params: Params) -> Self {
        Self {
            by: Name::Local,
            width: image.size.width(),
            height: image.size.height(),
            channels: image.size.channels(),
            how: How::Local { params, generation_time_ms: image.generation_time_ms },
            pixels: image.pixels,
        }
    }
}

/// What is known about how an image was made.
pub(crate) enum How {
    /// By the daemon: all of it.
    Local { params: Params, generation_time_ms: u32 },
    /// By a cloud.
    Cloud {
        model: String,
        /// The prompt that it says it has used instead.
        revised_prompt: Option<String>,
        /// What was named and had no effect.
        dropped: Vec<&'static str>,
    },
}

/// Providers, in the order in which they are asked.
#[derive(Debug)]
pub(crate) struct Providers {
    list: Vec<Provider>,
}

#[derive(Debug)]
enum Provider {
    Local(Local),
    #[cfg(feature = "gateway")]
    Cloud(Box<cloud::Cloud>),
}

impl Provider {
    const fn name(&self) -> Name {
        match self {
            Self::Local(_) => Name::Local,
            #[cfg(feature = "gateway")]
            Self::Cloud(cloud) => cloud.name(),
        }
    }
}

impl Providers {
    /// Has one image made by the first provider that can.
    ///
    /// `say` is told of each that could not when there is another one. A cloud's call isn't ended by
    /// `stopper`, but no further one begins.
    pub(crate) fn make(
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
                Provider::Local(local) => local.make(ask, stopper, is_last, &mut progress),
                #[cfg(feature = "gateway")]
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
pub(crate) struct Attempt {
    pub(crate) by: Name,
    pub(crate) cause: Cause,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.by.as_str(), self.cause)
    }
}

/// Why a provider made no image.
#[derive(Debug)]
pub(crate) enum Cause {
    Local(weave_client::Error),
    /// A cloud's call has gone wrong.
    Cloud(ErrorKind, String),
    /// A cloud wasn't asked: it can't do this, which was named.
    Passed(&'static str),
}

impl Cause {
    /// What can be done about it. `None`: it wasn't even asked.
    pub(crate) fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Local(error) => Some(error.kind()),
            Self::Cloud(kind, _) => Some(*kind),
            Self::Passed(_) => None,
        }
    }

    /// What is wrong with the request is wrong everywhere.
    fn is_refusal(&self) -> bool {
        matches!(self.kind(), Some(ErrorKind::Invalid | ErrorKind::Refused))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(error) => error.fmt(f),
            Self::Cloud(_, what) => f.write_str(what),
            Self::Passed(what) => {
                write!(f, "was not asked, because it takes no {what}; leave that out to allow it")
            }
        }
    }
}

/// What came of asking all of them that could be asked.
#[derive(Debug)]
pub(crate) struct Failed {
    /// In order; at least one.
    attempts: Vec<Attempt>,
}

impl Failed {
    /// What gives most hope, unless somebody has refused the request. `None`: nobody was asked.
    pub(crate) fn kind(&self) -> Option<ErrorKind> {
        let hope = |kind: &ErrorKind| match kind {
            ErrorKind::Invalid | ErrorKind::Refused => 0,
            ErrorKind::Busy => 1,
            ErrorKind::ShuttingDown => 2,
            ErrorKind::HungUp => 3,
            ErrorKind::Unreachable => 4,
            ErrorKind::Timeout => 5,
            ErrorKind::Failed => 6,
            ErrorKind::NotWeave => 7,
            ErrorKind::Local => 8,
        };
        self.attempts.iter().filter_map(|attempt| attempt.cause.kind()).min_by_key(hope)
    }

    /// What the daemon says, if nobody else was asked.
    pub(crate) fn local(&self) -> Option<&weave_client::Error> {
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
