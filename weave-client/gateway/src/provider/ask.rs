//! What a provider is asked for, and why it made no image.

use std::fmt;

use weave_client::{Error, ErrorKind, Params};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What to draw. Checked.
    pub prompt: String,
    /// Checked. A daemon takes all of them.
    pub params: Params,
    /// The number that the daemon gets to know it by, drawn at random: 1 or more.
    pub request_id: u64,
    /// Which of them somebody has named. A cloud has defaults of its own for the others.
    pub named: Named,
}

/// See [`Ask::named`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Named {
    /// Width or height.
    pub size: bool,
    /// Denoising steps.
    pub steps: bool,
    /// The guidance scale.
    pub cfg: bool,
    /// A seed that isn't 0.
    pub seed: bool,
}

/// Why a provider made no image.
#[derive(Debug)]
pub enum Cause {
    /// What the daemon's client says.
    Local(Error),
    /// A cloud's call has gone wrong.
    Cloud(ErrorKind, String),
    /// A cloud wasn't asked: it can't do this, which was named.
    Passed(&'static str),
}

impl Cause {
    /// What can be done about it. `None`: it wasn't even asked.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Local(error) => Some(error.kind()),
            Self::Cloud(kind, _) => Some(*kind),
            Self::Passed(_) => None,
        }
    }

    /// What is wrong with the request is wrong everywhere.
    pub(super) fn is_refusal(&self) -> bool {
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
