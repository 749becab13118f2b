//! Whom the driver has to look at, what it is to order, and when to wake.

use std::collections::VecDeque;
use std::time::Instant;

use super::interface::{Action, ClientId, Order, Who, WorkerId};

/// Something that has to happen at some time if nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due<Why> {
    pub(super) at: Instant,
    pub(super) why: Why,
}

/// What is to be done next, each client and worker at most once.
pub(super) struct Agenda {
    looks: VecDeque<Who>,
    clients: Box<[bool]>,
    workers: Box<[Entry]>,
    measures: VecDeque<ClientId>,
    measured: Box<[bool]>,
    /// Not later than anything that is due.
    wake_at: Option<Instant>,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    listed: bool,
    /// Not taken yet. The last one counts.
    order: Option<Order>,
}

impl Agenda {
    pub(super) fn new(connections: usize, workers: usize) -> Self {
        Self {
            looks: VecDeque::with_capacity(connections + workers),
            clients: vec![false; connections].into(),
            workers: vec![Entry::default(); workers].into(),
            measures: VecDeque::with_capacity(connections),
            measured: vec![false; connections].into(),
            wake_at: None,
        }
    }

    /// The driver has to look at this client.
    pub(super) fn mark_client(&mut self, id: ClientId) {
        if !std::mem::replace(&mut self.clients[id.0], true) {
            self.looks.push_back(Who::Client(id));
        }
    }

    /// The driver has to look at this worker.
    pub(super) fn mark_worker(&mut self, id: WorkerId) {
        if !std::mem::replace(&mut self.workers[id.0].listed, true) {
            self.looks.push_back(Who::Worker(id));
        }
    }

    /// The driver has to ask how much of its output this client has not taken.
    pub(super) fn measure(&mut self, id: ClientId) {
        if !std::mem::replace(&mut self.measured[id.0], true) {
            self.measures.push_back(id);
        }
    }

    pub(super) fn order(&mut self, id: WorkerId, order: Order) {
        self.workers[id.0].order = Some(order);
        self.mark_worker(id);
    }

    /// An order that was not taken yet has lost its meaning.
    pub(super) fn withdraw_order(&mut self, id: WorkerId) {
        self.workers[id.0].order = None;
    }

    pub(super) fn next(&mut self) -> Option<Action> {
        if let Some(id) = self.measures.pop_front() {
            self.measured[id.0] = false;
            return Some(Action::Measure(id));
        }
        let who = self.looks.pop_front()?;
        match who {
            Who::Client(id) => self.clients[id.0] = false,
            Who::Worker(id) => {
                let entry = &mut self.workers[id.0];
                entry.listed = false;
                if let Some(order) = entry.order.take() {
                    if matches!(order, Order::Cancel(_)) {
                        // The worker goes on, and may have been marked for something else.
                        self.mark_worker(id);
                    }
                    return Some(Action::Order(id, order));
                }
            }
        }
        Some(Action::Look(who))
    }

    pub(super) fn wake_by(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }

    pub(super) const fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    /// Whether it is time to look at everything that may be due. From then on nothing is.
    pub(super) fn take_wake(&mut self, now: Instant) -> bool {
        self.wake_at.take_if(|at| *at <= now).is_some()
    }
}
