//! Why requests, connections and workers end.

use std::fmt;

use weave_core::error::ErrorCode;

/// Declares causes: the variants, and what each is called in metrics and logs.
macro_rules! causes {
    ($(#[$doc:meta])* $name:ident { $(#[doc = $what:literal] $variant:ident = $shown:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $(#[doc = $what] $variant,)*
        }

        impl $name {
            /// What they are called, in their order.
            pub const NAMES: &[&str] = &[$($shown),*];

            /// What it is called in metrics and logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                Self::NAMES[self as usize]
            }
        }
    };
}

causes! {
    /// Why a request was not served, where that was the daemon's own decision.
    Reason {
        /// The queue is full.
        QueueFull = "queue_full",
        /// Its user has as many requests in the queue as one user may.
        QueueShare = "queue_share",
        /// It waited in the queue for too long.
        QueueWait = "queue_wait",
        /// Its generation took too long.
        TooSlow = "too_slow",
        /// The worker died of it, or with it.
        WorkerDied = "worker_died",
        /// The worker broke the protocol.
        WorkerViolation = "worker_violation",
        /// No worker comes up.
        NoWorker = "no_worker",
        /// Two workers died of it, and it is in quarantine.
        Quarantined = "quarantined",
        /// The daemon ends.
        ShuttingDown = "shutting_down",
    }
}

causes! {
    /// Why a client's connection was closed from this side.
    Cut {
        /// It read too little for too long.
        Stalled = "stalled",
        /// It did not finish a frame.
        HalfFrame = "half_frame",
        /// It had no request for too long.
        Idle = "idle",
        /// It had no request, and another user needed its place.
        Displaced = "displaced",
        /// It sent a frame after which the stream can't be read.
        Malformed = "malformed",
        /// The worker died in the middle of its image.
        HalfImage = "half_image",
    }
}

causes! {
    /// Why a worker was ended.
    Kill {
        /// Its generation took too long.
        TooSlow = "too_slow",
        /// It broke the protocol.
        Violation = "violation",
        /// It was idle, and its memory is given back.
        Parked = "parked",
        /// The client of its request had gone.
        Abandoned = "abandoned",
        /// The daemon ends.
        ShuttingDown = "shutting_down",
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of its image was handed to the client.
    Image,
    /// An error was its answer.
    Error(ErrorCode),
    /// The client left, or was closed, before there was an answer.
    Abandoned,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image => f.write_str("done"),
            Self::Error(code) => write!(f, "answered with {code}"),
            Self::Abandoned => f.write_str("abandoned"),
        }
    }
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// It could not be started.
    NotStarted,
    /// A process ended with this exit code.
    Exited(i32),
    /// A process was ended by this signal.
    Killed(i32),
    /// A thread left its loop.
    Thread,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted => f.write_str("could not be started"),
            Self::Exited(code) => write!(f, "ended with exit code {code}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::Thread => f.write_str("ended"),
        }
    }
}

impl Death {
    /// What each kind is called in metrics, by [`index`](Self::index).
    pub const NAMES: &[&str] = &["exit", "signal", "not_started", "thread"];

    /// The place of its kind in [`NAMES`](Self::NAMES).
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Exited(_) => 0,
            Self::Killed(_) => 1,
            Self::NotStarted => 2,
            Self::Thread => 3,
        }
    }
}
