//! What an event comes to: for the driver, and for the count of a whole world.

/// What happened in a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events that the router was told of.
    pub events: u64,
    /// Requests that clients sent.
    pub requests: u64,
    /// Images that arrived whole.
    pub images: u64,
    /// Errors that arrived.
    pub errors: u64,
    /// Connections that the router closed.
    pub closed: u64,
    /// Those of them that had to make room for another user.
    pub displaced: u64,
    /// Workers that died.
    pub deaths: u64,
    /// Requests that a worker cancelled because it was told to.
    pub cancelled: u64,
}

impl Report {
    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            events: self.events + other.events,
            requests: self.requests + other.requests,
            images: self.images + other.images,
            errors: self.errors + other.errors,
            closed: self.closed + other.closed,
            displaced: self.displaced + other.displaced,
            deaths: self.deaths + other.deaths,
            cancelled: self.cancelled + other.cancelled,
        }
    }
}

/// Whether somebody's socket has something that the driver has not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum News {
    None,
    Some,
}
