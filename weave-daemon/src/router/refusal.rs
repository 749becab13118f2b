//! The router's own no: what it is called, its code, and its words.

use std::fmt;
use std::time::Duration;

use weave_core::error::{self, ErrorCode};
use weave_core::limits::MAX_ERROR_FRAME;

use super::interface::{Bound, Full, User};
use crate::causes::{Death, Kill, Reason};

/// How many workers may die before one has begun with a request, until the request is refused. A
/// worker that can't load its model dies so every time.
pub(super) const MAX_ATTEMPTS: u8 = 3;

/// Why the router itself refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Busy { bound: Bound, user: User },
    ShuttingDown,
    Timeout { limit: Duration },
    QueueWait { limit: Duration },
    NoWorker(Death),
    Quarantined,
    WorkerDied(Death),
    WorkerViolation,
}

impl Refusal {
    pub(super) const fn code(self) -> ErrorCode {
        match self {
            Self::Busy { .. } => ErrorCode::Busy,
            Self::ShuttingDown => ErrorCode::ShuttingDown,
            Self::Timeout { .. } | Self::QueueWait { .. } => ErrorCode::Timeout,
            Self::NoWorker(_) | Self::Quarantined | Self::WorkerDied(_) | Self::WorkerViolation => {
                ErrorCode::GpuError
            }
        }
    }

    pub(super) const fn reason(self) -> Reason {
        match self {
            Self::Busy { bound: Bound::Each(_), .. } => Reason::QueueShare,
            Self::Busy { .. } => Reason::QueueFull,
            Self::ShuttingDown => Reason::ShuttingDown,
            Self::Timeout { .. } => Reason::TooSlow,
            Self::QueueWait { .. } => Reason::QueueWait,
            Self::NoWorker(_) => Reason::NoWorker,
            Self::Quarantined => Reason::Quarantined,
            Self::WorkerDied(_) => Reason::WorkerDied,
            Self::WorkerViolation => Reason::WorkerViolation,
        }
    }

    /// Why a worker is killed whose job is refused so.
    pub(super) const fn kills_as(self) -> Kill {
        match self {
            Self::Timeout { .. } => Kill::TooSlow,
            Self::ShuttingDown => Kill::ShuttingDown,
            _ => Kill::Violation,
        }
    }

    /// How the log says it.
    pub(super) const fn telling(self) -> Telling {
        match self {
            // Each of them took a worker's time, or the worker.
            Self::Timeout { .. } | Self::WorkerDied(_) | Self::WorkerViolation => Telling::Each,
            Self::Busy { bound: Bound::Each(_), .. } => {
                Telling::First("the queue has no more room for this user")
            }
            Self::Busy { .. } => Telling::First("the queue is full"),
            Self::ShuttingDown => Telling::First("weaved is shutting down"),
            Self::QueueWait { .. } => Telling::First("no worker was free in time"),
            Self::NoWorker(_) => Telling::First("no worker comes up"),
            Self::Quarantined => Telling::First("it ended two workers before"),
        }
    }
}

/// How the log tells of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Telling {
    /// Each time, as a warning.
    Each,
    /// The first of its user's; the others are counted, by these words.
    First(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy { bound: Bound::All(queue), .. } => {
                write!(f, "the queue is full: {queue} requests wait, at most {queue} may; try again later")
            }
            Self::Busy { bound: Bound::Guests(n), .. } => write!(
                f,
                "the queue is full for users other than the server's own: {n} of their requests wait, at most {n} may; \
                 try again later"
            ),
            Self::Busy { bound: Bound::Each(n), user } => {
                write!(f, "{n} requests of {user} wait, at most {n} may; try again later")
            }
            Self::ShuttingDown => f.write_str("the server is shutting down; try again when it is back"),
            Self::Timeout { limit } => write!(
                f,
                "generation took longer than the server's limit of {} s; ask for fewer steps or a smaller image",
                limit.as_secs_f32()
            ),
            Self::QueueWait { limit } => write!(
                f,
                "no worker was free within the server's limit of {} s; try again later",
                limit.as_secs_f32()
            ),
            Self::NoWorker(death) => write!(
                f,
                "the worker {death} before it could make an image, {MAX_ATTEMPTS} times or more in a row; tell the \
                 operator to look at the server's log"
            ),
            Self::Quarantined => f.write_str(
                "this very request ended the worker twice and is refused for an hour; change its prompt, size or seed",
            ),
            Self::WorkerDied(death) => {
                write!(f, "the worker {death} while it generated this image; it is restarted, try again")
            }
            Self::WorkerViolation => {
                f.write_str("the worker's answer made no sense; it is restarted, try again")
            }
        }
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user;
        match self.bound {
            Bound::All(n) => write!(f, "all {n} connections are taken; try again later"),
            Bound::Guests(n) => write!(
                f,
                "all {n} connections for users other than the server's own are taken; try again later"
            ),
            Bound::Each(n) => {
                write!(
                    f,
                    "{n} connections of {user} are open, at most {n} may be; close one or try again later"
                )
            }
        }
    }
}

/// The answer for one client too many: BUSY, for request 0. To be written once, then close.
#[must_use]
pub fn no_room_answer(full: Full, out: &mut [u8; MAX_ERROR_FRAME]) -> &[u8] {
    error::emit_frame(0, ErrorCode::Busy, full, out)
}
