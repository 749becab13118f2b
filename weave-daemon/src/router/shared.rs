//! What both machines need: the limits, the agenda, what is counted, and whether the end has begun.

use std::time::Instant;

use super::agenda::Agenda;
use super::interface::Limits;
use crate::counters::Counters;
use crate::repeats::Repeats;

pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) agenda: Agenda,
    pub(super) counters: Counters,
    pub(super) repeats: Repeats,
    /// When what still runs is aborted, once nothing new is taken.
    pub(super) draining: Option<Instant>,
}

impl Shared {
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        let mut agenda = Agenda::new(limits.connections, limits.workers);
        agenda.wake_by(now);
        Self { limits, agenda, counters: Counters::default(), repeats: Repeats::default(), draining: None }
    }

    /// Requests of one connection that may be under way. At the end all that come are refused at once, and take no place.
    pub(super) const fn in_flight(&self) -> usize {
        if self.draining.is_some() { usize::MAX } else { self.limits.in_flight }
    }

    /// Takes other limits, besides those that memory was taken for and those that workers start with.
    pub(super) fn set_limits(&mut self, limits: Limits, now: Instant) {
        let Limits { connections, queue, workers, warm_up, .. } = self.limits;
        self.limits = Limits { connections, queue, workers, warm_up, ..limits };
        self.agenda.wake_by(now);
    }
}
